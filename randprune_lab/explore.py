"""What a person looks at, as small tables: so far, every weight matrix of a checkpoint in one row."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from randprune_lab.checks import check_option, check_positive, check_power, check_reach, check_samples, check_sparsity
from randprune_lab.keepcurve import TIES, KeepCurve, Ties
from randprune_lab.models import weight_matrices
from randprune_lab.sampling import candidate_generator, introduced_randomness, magnitude_mask, mask_sampler
from randprune_lab.schedules import RATIO_SCHEDULES, RatioSchedule, samples_for_ratio


@dataclasses.dataclass(frozen=True)
class ExploreSettings:
    """How the masks of a checkpoint would be drawn. ``samples`` given: it rules; None: ``sampling_ratio`` does."""

    sparsity: float = 0.9375
    sampling_ratio: float = 5e-5
    schedule: RatioSchedule = "decrease"
    samples: int | None = None
    power: float = 5.0
    reach: float | None = None
    ties: Ties = "random"
    draw: int = 0  # random masks to draw besides, candidates 1, 2, ... of stage 1 of a run with this seed
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what no tensor could be drawn with."""
        check_sparsity(self.sparsity)
        check_positive("sampling_ratio", self.sampling_ratio)
        check_option("schedule", self.schedule, RATIO_SCHEDULES)
        if self.samples is not None:
            check_samples(self.samples)
        check_power(self.power)
        check_reach(self.reach)
        check_option("ties", self.ties, TIES)


@dataclasses.dataclass(frozen=True)
class TensorRow:
    """One weight matrix.

    Attributes:
        name, shape: as in the checkpoint.
        n: its weights, zeros included.
        alive: those that are not 0.
        threshold: tau, the smallest magnitude that the deterministic mask keeps; None when it keeps nothing.
        near_threshold: the share of the existing weights from 2/3 tau to 4/3 tau (arXiv 2310.13183, Figure 1).
        samples: M, the masks drawn and added up.
        expected_ir: introduced randomness to expect (Eq. 1).
        swapped: share of the kept weights to expect that the deterministic mask would not keep.
        drawn_ir: introduced randomness of the masks that were really drawn, one each.
    """

    name: str
    shape: tuple[int, ...]
    n: int
    alive: int
    threshold: float | None
    near_threshold: float
    samples: int
    expected_ir: float
    swapped: float
    drawn_ir: tuple[float, ...]


def tensor_table(
    model: str | Path, settings: ExploreSettings, *, include: str = "", exclude: str | None = None
) -> Iterator[TensorRow]:
    """A row for every weight matrix of a checkpoint whose name ``include`` finds and ``exclude`` does not.

    ``model`` is a ``.safetensors`` file, a folder with such files, or a Hub id; it is read tensor by tensor.

    Raises:
        ValueError: nothing readable is there, no matrix matches, or a setting does not fit a tensor (it is named).
    """
    wanted, unwanted = _pattern("include", include), _pattern("exclude", exclude) if exclude else None
    seen = 0
    for name, weight in weight_matrices(model):
        if wanted.search(name) and not (unwanted and unwanted.search(name)):
            seen += 1
            try:
                yield tensor_row(name, weight, settings)
            except ValueError as error:
                raise ValueError(f"{name}: {error} Or leave this tensor out with exclude.") from error
    if not seen:
        raise ValueError(
            f"{model}: no floating-point weight matrix matches include = {include!r}, exclude = {exclude!r}. "
            "Choose patterns that match the names of its tensors."
        )


def tensor_row(name: str, weight: Tensor, settings: ExploreSettings) -> TensorRow:
    """What ``settings`` do to one weight matrix."""
    number = settings.samples
    if number is None:
        number = samples_for_ratio(settings.sampling_ratio, weight.numel(), settings.sparsity, settings.schedule)
    curve = KeepCurve.of(
        weight,
        settings.sparsity,
        samples=number,
        power=settings.power,
        reach=settings.reach,
        ties=settings.ties,
    )
    tau = curve.threshold
    return TensorRow(
        name=name,
        shape=tuple(weight.shape),
        n=weight.numel(),
        alive=curve.histogram.alive,
        threshold=tau if curve.keep else None,
        near_threshold=curve.histogram.share_within(2 / 3 * tau, 4 / 3 * tau) if curve.keep else 0.0,
        samples=number,
        expected_ir=curve.expected_ir,
        swapped=curve.swapped,
        drawn_ir=_drawn(name, weight, number, settings) if settings.draw else (),
    )


def _drawn(name: str, weight: Tensor, samples: int, settings: ExploreSettings) -> tuple[float, ...]:
    sampler = mask_sampler(
        weight,
        settings.sparsity,
        samples=samples,
        power=settings.power,
        reach=settings.reach,
        ties=settings.ties,
    )
    plain = magnitude_mask(weight, settings.sparsity)
    generators = (candidate_generator(settings.seed, 1, number + 1, name) for number in range(settings.draw))
    return tuple(introduced_randomness(sampler(generator), plain) for generator in generators)


def _pattern(name: str, text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise ValueError(f"{name} = {text!r}: no regular expression ({error}). Escape with a backslash.") from error
