"""The masks of a checkpoint's tensors, worked out when their turn comes, with one tensor in memory at a time."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import pydantic
import torch
from pydantic import Field
from torch import Tensor

from randprune_lab.checks import keep_count
from randprune_lab.config import (
    Patterns,
    Power,
    Randomness,
    Reach,
    Samples,
    SamplingRatio,
    Scope,
    Seed,
    Sparsity,
    TargetIr,
)
from randprune_lab.histogram import MagnitudeHistogram
from randprune_lab.keepcurve import KeepCurve
from randprune_lab.masks import EVERYTHING, power_of, samples_of
from randprune_lab.pieces import Part, VectorMask, histograms, merged, vector_mask
from randprune_lab.sampling import candidate_generator, magnitude_mask, mask_sampler
from randprune_lab.shards import DTYPES, StoredTensor
from randprune_lab.state import ExploreState

# In scope layer, tensors of up to so many weights are masked as a run masks them. A random mask takes up to 60 bytes a
# weight for that: this bounds memory to 1 GB. Larger ones are masked by pieces, in their own bytes and up to 0.4 GB.
WHOLE = 2**24
STAGE = 1  # which masks are drawn as
Facts = dict[str, Any]


class MaskSettings(pydantic.BaseModel):
    """How a checkpoint is masked. ``candidate`` 0 is the plain mask; others are random ones, by ``randomness``."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    sparsity: Sparsity
    scope: Scope = "layer"
    candidate: Annotated[int, Field(ge=0, le=2**31, description="which of the masks that the seed gives; 0: plain")] = 0
    randomness: Randomness = "fixed"
    samples: Samples = 4
    sampling_ratio: SamplingRatio = 5e-5
    target_ir: TargetIr = 0.01
    power: Power = 5.0
    reach: Reach = None
    seed: Seed = 0
    include: Patterns = ()
    exclude: Patterns = ()

    def explored(self) -> ExploreState:
        """The explorer's state that draws such masks."""
        own = self.model_dump(exclude={"candidate", "include", "exclude"})
        return ExploreState(**own, stage=STAGE)

    def told(self) -> dict[str, Any]:
        """The settings that count: those of randomness only for a random mask, and only those that rule."""
        of_randomness = {"fixed": ["samples", "power"], "target_ir": ["samples", "target_ir"]}
        ruling = of_randomness.get(self.randomness, ["sampling_ratio", "power"])
        names = ["sparsity", "scope", "candidate"]
        names += ["randomness", *ruling, "reach", "seed"] if self.candidate else []
        return {name: getattr(self, name) for name in names} | {
            name: list(getattr(self, name)) for name in ("include", "exclude") if getattr(self, name)
        }


class StoredMasks:
    """The masks of a checkpoint's tensors, each worked out when its turn comes; of scope global all beforehand."""

    def __init__(self, chosen: Sequence[StoredTensor], settings: MaskSettings, device: torch.device) -> None:
        self.settings, self.device = settings, device
        self.state = settings.explored()
        self.parts = {
            tensor.name: Part(tensor.name, tensor.size, DTYPES[tensor.dtype], functools.partial(self._read, tensor))
            for tensor in chosen
        }
        self.bytes_of = {tensor.name: tensor.nbytes for tensor in chosen}
        self.notes: list[str] = []
        self.whole: tuple[VectorMask, Facts] | None = None

    def _read(self, tensor: StoredTensor) -> Tensor:
        return tensor.read().to(self.device)

    def first_pass(self, tell: Callable[[Part], object]) -> None:
        """In scope global: what has to be known of all tensors before the first one is masked."""
        if self.settings.scope == "global":
            self.whole = self._vector(list(self.parts.values()), EVERYTHING, tell)

    def apply(self, tensor: StoredTensor) -> tuple[Tensor, Facts]:
        """A tensor's weights with its mask applied, in main memory, and the facts of it."""
        part = self.parts[tensor.name]
        try:
            if self.whole is None and part.size <= WHOLE:
                return self._like_a_run(part)
            mask, facts = self.whole or self._vector([part], part.name)
            weight = tensor.read()
            kept, moved = mask.apply(part.name, weight, self.device)
        except ValueError as error:
            raise error if str(error).startswith(part.name) else ValueError(f"{part.name}: {error}") from error
        return weight, facts | counted(part.size, kept, moved, alone=self.whole is None)

    def _like_a_run(self, part: Part) -> tuple[Tensor, Facts]:
        weight, settings = part.read(), self.settings
        plain = magnitude_mask(weight, settings.sparsity)
        threshold = float(weight[plain].abs().min()) if plain.any() else math.inf
        mask, facts = plain, {}
        if settings.candidate:
            facts = self._randomness(part.size, part.name, lambda: MagnitudeHistogram.of(weight))
            draw = mask_sampler(weight, settings.sparsity, **facts, reach=settings.reach)
            mask = draw(candidate_generator(settings.seed, STAGE, settings.candidate, part.name, weight.device))
        kept, moved = int(mask.sum()), int((mask & ~plain).sum())
        masked = weight.masked_fill_(~mask, 0).cpu()
        return masked, {"threshold": threshold, **facts, **counted(part.size, kept, moved, alone=True)}

    def _vector(
        self, parts: list[Part], name: str, tell: Callable[[Part], object] = lambda _: None
    ) -> tuple[VectorMask, Facts]:
        """Of tensors that form one vector, ``name`` in messages: its mask, threshold, and M and T."""
        settings = self.settings
        of_parts = histograms(parts, tell)
        whole = merged(of_parts)
        facts: Facts = {}
        curve = None
        if settings.candidate:
            facts = self._randomness(whole.size, name, lambda: whole)
            curve = KeepCurve.of(whole, settings.sparsity, **facts, reach=settings.reach)
        seeds = (settings.seed, STAGE, settings.candidate)
        mask = vector_mask(parts, of_parts, curve, keep_count(whole.size, settings.sparsity), seeds, name)
        return mask, {"threshold": mask.plain.magnitude, **facts}

    def _randomness(self, size: int, name: str, histogram: Callable[[], MagnitudeHistogram]) -> Facts:
        """M and T."""
        settings = self.settings
        samples, power = samples_of(size, settings.sparsity, self.state), settings.power
        if settings.randomness == "target_ir":
            power, nearest = power_of(histogram(), settings.sparsity, settings.target_ir, self.state)
            if nearest != settings.target_ir:
                label = "all tensors" if name == EVERYTHING else name
                self.notes.append(
                    f"{label}: an ir of {settings.target_ir:g} is out of reach, expected is {nearest:.4g}."
                )
        return {"samples": samples, "power": power}


def counted(size: int, kept: int, moved: int, *, alone: bool) -> Facts:
    """``moved``: how many of the kept weights the plain mask would prune. ir compares masks that keep as many each."""
    facts: Facts = {"size": size, "kept": kept, "moved": moved, "swapped": moved / max(kept, 1)}
    return facts | ({"ir": overall_ir(size - kept, moved)} if alone else {})


def overall_ir(pruned: int, moved: int) -> float:
    """The introduced randomness of a mask (arXiv 2310.13183, Eq. 1)."""
    return 0.0 if moved == 0 else math.inf if moved == pruned else moved / (pruned - moved)
