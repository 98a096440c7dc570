"""What a weight is worth: scores that masks are drawn from instead of magnitudes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from randprune_lab.sampling import seed_of
from randprune_lab.splits import Task

# (the prunable weights by name, the model that they belong to, the task) -> the score of every weight, by name. The
# model is a copy, in evaluation mode. Only ``task.train`` may be looked at: what decides is no longer a fair judge of
# what it has helped to make.
Criterion = Callable[[Mapping[str, Tensor], nn.Module, Task], Mapping[str, Tensor]]


def scores_of(
    criterion: Criterion, model: nn.Module, names: Mapping[str, object], task: Task, *, seed: int, stage: int
) -> dict[str, Tensor]:
    """The scores of a stage: larger = worth keeping. The same for the same weights, so that a run can be resumed.

    ``names`` are those of the prunable parameters. The criterion looks at a copy of the model: what it does to it, and
    to the global random numbers, is forgotten.

    Raises:
        ValueError: it does not give a finite score, 0 or more, for every prunable weight.
    """
    model = copy.deepcopy(model).eval()
    weights = {name: model.get_parameter(name) for name in names}
    with torch.random.fork_rng():
        torch.manual_seed(seed_of(seed, stage, "criterion"))
        scores = criterion(weights, model, task)
    if not isinstance(scores, Mapping) or set(scores) != set(weights):
        missing = sorted(set(weights) ^ set(scores if isinstance(scores, Mapping) else ()))
        raise ValueError(
            f"the criterion must return a score tensor by the name of every prunable parameter; wrong: {missing[:3]}. "
            "Return {name: ... for name, weight in weights.items()}."
        )
    return {name: _checked(name, scores[name], weight) for name, weight in weights.items()}


def _checked(name: str, score: object, weight: Tensor) -> Tensor:
    if not isinstance(score, Tensor) or score.shape != weight.shape or not score.is_floating_point():
        what = f"{score.dtype}, {tuple(score.shape)}" if isinstance(score, Tensor) else type(score).__name__
        raise ValueError(
            f"the criterion's score of {name} is {what}: must be a tensor of decimals of shape {tuple(weight.shape)}, "
            "a number for each weight. Return such a one."
        )
    score = score.detach().to(weight.device)
    if not bool(torch.isfinite(score).all()) or bool((score < 0).any()):
        raise ValueError(
            f"the criterion's score of {name} has negative, infinite or NaN values: weights are drawn with "
            "probability score**T, and the largest are kept. Return abs() of it, or its ranks."
        )
    return score
