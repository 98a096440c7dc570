"""The masks of a model: one bool tensor per prunable parameter, by the parameter's name; True = kept."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from randprune_lab.keepcurve import Ties
from randprune_lab.sampling import Sampler, candidate_generator, introduced_randomness, magnitude_mask, random_mask

Masks = dict[str, Tensor]


def deterministic_masks(weights: Mapping[str, Tensor], sparsity: float, alive: Mapping[str, Tensor]) -> Masks:
    """The plain magnitude mask of every tensor, among the weights that are alive."""
    return {name: magnitude_mask(weight, sparsity, alive=alive[name]) for name, weight in weights.items()}


def randomized_masks(
    weights: Mapping[str, Tensor],
    sparsity: float,
    alive: Mapping[str, Tensor],
    *,
    seed: int,
    stage: int,
    candidate: int,
    samples: int,
    power: float,
    reach: float | None,
    method: Sampler,
    ties: Ties,
) -> Masks:
    """Candidate ``candidate`` of a stage: a random mask of every tensor, each from its own generator."""
    return {
        name: random_mask(
            weight,
            sparsity,
            samples=samples,
            power=power,
            reach=reach,
            method=method,
            ties=ties,
            alive=alive[name],
            generator=candidate_generator(seed, stage, candidate, name, weight.device),
        )
        for name, weight in weights.items()
    }


def apply_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Set every weight outside the masks to exactly 0."""
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(name).mul_(mask)


def flatten(masks: Mapping[str, Tensor]) -> Tensor:
    """All masks as one vector, in parameter order."""
    return torch.cat([mask.reshape(-1) for mask in masks.values()])


def model_randomness(masks: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> float:
    """The introduced randomness over all tensors together (arXiv 2310.13183, Eq. 1)."""
    return introduced_randomness(flatten(masks), flatten(reference))


def model_swapped(masks: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> float:
    """The share of all kept weights that the reference would not keep; 0.0 when nothing is kept."""
    kept, plain = flatten(masks), flatten(reference)
    return int((kept & ~plain).sum()) / max(int(kept.sum()), 1)
