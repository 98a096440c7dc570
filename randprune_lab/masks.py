"""The masks of a model: one bool tensor per prunable parameter, by the parameter's name; True = kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from randprune_lab.config import RunConfig
from randprune_lab.densities import erk
from randprune_lab.histogram import MagnitudeHistogram
from randprune_lab.patterns import Pattern, pattern_mask, pattern_sampler
from randprune_lab.sampling import candidate_generator, introduced_randomness, magnitude_mask, mask_sampler
from randprune_lab.schedules import OutOfReachError, power_for_ir, samples_for_ratio, spread_targets
from randprune_lab.state import ExploreState

Masks = dict[str, Tensor]
EVERYTHING = "*"  # the name of the one vector that all tensors form in global scope
MOST_DRAWN = 2**26  # weights x samples that the exact sampler takes on in global scope


@dataclasses.dataclass(frozen=True)
class StageMasks:
    """The masks of one stage: what is common to its candidates is worked out once.

    Attributes:
        samples, power: M and T of each tensor ("*" in global scope); no power where it differs among candidates.
        clamped: tensors whose target ir is out of reach, and what they get instead; sentences.
        draw: number of the candidate -> its masks; 0 is the deterministic one.
        targets: with adaptive randomness the ir that each random candidate aims at.
    """

    samples: dict[str, int]
    power: dict[str, float]
    clamped: tuple[str, ...]
    draw: Callable[[int], Masks]
    targets: dict[int, float] = dataclasses.field(default_factory=dict)


def stage_masks(
    weights: Mapping[str, Tensor],
    alive: Mapping[str, Tensor],
    stage: int,
    config: RunConfig,
    *,
    targets: Mapping[int, float] | None = None,
) -> StageMasks:
    """The masks of stage ``stage`` (from 1) of a run: of ``weights``, among those that are ``alive``.

    In global scope all tensors are one long vector in parameter order: one threshold, one M, one seed. ``weights``
    may be any scores, 0 or more, that masks shall be drawn from instead of magnitudes. ``targets``: for adaptive
    randomness, candidate -> ir; None: those of the first stage.
    """
    whole = config.scope == "global"
    shapes = {name: weight.shape for name, weight in weights.items()}
    if whole:
        weights = {EVERYTHING: torch.cat([weight.reshape(-1) for weight in weights.values()])}
        alive = {EVERYTHING: flatten(alive)}
    overall = config.stages[stage - 1]
    sparsities = tensor_sparsities({name: weight.shape for name, weight in weights.items()}, overall, config)
    pattern = Pattern.of(config.pattern)
    samples = {name: samples_of(weight.numel(), sparsities[name], config) for name, weight in weights.items()}
    power, target = dict.fromkeys(weights, config.power), config.target_of(stage)
    clamped: list[str] = []
    powers: dict[int, dict[str, float]] = {}  # of candidates that have their own
    if target is not None:
        histograms = {name: MagnitudeHistogram.of(weight, alive=alive[name]) for name, weight in weights.items()}
        if config.randomness == "adaptive":
            power = {}
            targets = spread_targets(target, range(1, config.candidates)) if targets is None else targets
            for candidate, own in targets.items():
                powers[candidate], nearest = powers_of(histograms, sparsities, own, config)
                clamped += _all_clamped(stage, candidate, own, nearest)
        else:
            power, nearest = powers_of(histograms, sparsities, target, config)
            clamped = [
                f"stage {stage}, {name}: an ir of {target:g} is out of reach, it gets {ir:.4g}."
                for name, ir in nearest.items()
            ]
    samplers: dict[str, Callable[[torch.Generator], Tensor]] = {}
    drawn_with = power

    def plain(name: str, weight: Tensor) -> Tensor:
        if pattern is not None:
            return pattern_mask(weight, sparsities[name], pattern, alive=alive[name])
        return magnitude_mask(weight, sparsities[name], alive=alive[name])

    def sampler(name: str, weight: Tensor) -> Callable[[torch.Generator], Tensor]:
        settings: dict[str, Any] = {
            "samples": samples[name],
            "power": drawn_with[name],
            "reach": config.reach,
            "method": config.sampler,
            "ties": config.ties,
            "alive": alive[name],
        }
        if pattern is not None:
            return pattern_sampler(weight, sparsities[name], pattern, **settings)
        return mask_sampler(weight, sparsities[name], **settings)

    def draw(candidate: int) -> Masks:
        nonlocal drawn_with
        if candidate == 0:
            masks = {name: plain(name, weight) for name, weight in weights.items()}
        else:
            masks = {}
            own = powers.get(candidate, power)
            if own is not drawn_with:  # samplers are as large as the weights: those of one candidate at a time
                samplers.clear()
                drawn_with = own
            for name, weight in weights.items():
                if name not in samplers:
                    samplers[name] = sampler(name, weight)
                masks[name] = samplers[name](candidate_generator(config.seed, stage, candidate, name, weight.device))
        return split(masks[EVERYTHING], shapes) if whole else masks

    return StageMasks(samples, power, tuple(clamped), draw, dict(targets or {}) if powers else {})


def tensor_sparsities(shapes: Mapping[str, Sequence[int]], sparsity: float, config: RunConfig) -> dict[str, float]:
    """The sparsity of each tensor where that of all together is ``sparsity``."""
    return erk(shapes, sparsity) if config.densities == "erk" else dict.fromkeys(shapes, sparsity)


def samples_of(size: int, sparsity: float, config: RunConfig | ExploreState) -> int:
    """M of a tensor (or, in global scope, of everything) of ``size`` weights.

    Raises:
        ValueError: more than can be drawn.
    """
    samples = config.samples
    if config.randomness in ("decrease", "increase"):
        samples = samples_for_ratio(config.sampling_ratio, size, sparsity, config.randomness)  # type: ignore[arg-type]
    if config.scope == "global" and config.sampler == "exact" and size * samples > MOST_DRAWN:
        raise ValueError(
            f"sampler = 'exact' in global scope would draw {size:,} weights {samples:,} times: at most 2**26 together. "
            "Use sampler='fast', or fewer samples."
        )
    return samples


def powers_of(
    histograms: Mapping[str, MagnitudeHistogram], sparsities: Mapping[str, float], target_ir: float, config: RunConfig
) -> tuple[dict[str, float], dict[str, float]]:
    """T of each tensor for a target ir; and the nearest ir of those where it is out of reach."""
    powers, clamped = {}, {}
    for name, histogram in histograms.items():
        powers[name], nearest = power_of(histogram, sparsities[name], target_ir, config)
        if nearest != target_ir:
            clamped[name] = nearest
    return powers, clamped


def _all_clamped(stage: int, candidate: int, target: float, nearest: Mapping[str, float]) -> list[str]:
    """One sentence for all tensors, since there are many candidates; none where nothing was clamped."""
    if not nearest:
        return []
    others = f" and {len(nearest) - 1} more" if len(nearest) > 1 else ""
    least, most = min(nearest.values()), max(nearest.values())
    get = f"it gets {least:.4g}" if least == most else f"they get {least:.4g} to {most:.4g}"
    where = f"{next(iter(nearest))}{others}"
    return [f"stage {stage}, mask {candidate}: an ir of {target:.4g} is out of reach in {where}, {get}."]


def power_of(
    histogram: MagnitudeHistogram, sparsity: float, target_ir: float, config: RunConfig | ExploreState
) -> tuple[float, float]:
    """T of one tensor for a target ir, and the ir that it gives: the target, or the nearest one within reach."""

    def power_at(ir: float) -> float:
        return power_for_ir(histogram, sparsity, ir, samples=config.samples, reach=config.reach)

    try:
        return power_at(target_ir), target_ir
    except OutOfReachError as out:
        nearest = min(max(target_ir, out.least), out.most)
        return config.power if nearest == 0 else power_at(nearest), nearest  # 0: nothing is random at any power


def pack(mask: Tensor) -> Tensor:
    """A mask as uint8, eight weights a byte."""
    return torch.from_numpy(np.packbits(mask.reshape(-1).cpu().numpy()))


def unpack(packed: Tensor, shape: torch.Size, device: torch.device | str = "cpu") -> Tensor:
    """The mask that ``pack`` packed."""
    bits = np.unpackbits(packed.numpy(), count=shape.numel()).astype(bool)
    return torch.from_numpy(bits).view(shape).to(device)


def apply_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Set every weight outside the masks to exactly 0."""
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(name).mul_(mask)


def flatten(masks: Mapping[str, Tensor]) -> Tensor:
    """All masks as one vector, in parameter order."""
    return torch.cat([mask.reshape(-1) for mask in masks.values()])


def split(vector: Tensor, shapes: Mapping[str, torch.Size]) -> Masks:
    """The inverse of ``flatten``."""
    parts: list[Tensor] = list(torch.split(vector, [shape.numel() for shape in shapes.values()]))
    return {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def kept(masks: Mapping[str, Tensor]) -> int:
    """The number of weights inside the masks."""
    return sum(int(torch.count_nonzero(mask)) for mask in masks.values())


def model_randomness(masks: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> float:
    """The introduced randomness over all tensors together (arXiv 2310.13183, Eq. 1)."""
    return introduced_randomness(flatten(masks), flatten(reference))


def model_swapped(masks: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> float:
    """The share of all kept weights that the reference would not keep; 0.0 when nothing is kept."""
    ours, plain = flatten(masks), flatten(reference)
    return int((ours & ~plain).sum()) / max(int(ours.sum()), 1)
