"""What a weight is worth: scores that masks are drawn from instead of magnitudes."""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from randprune_lab.histogram import check_weight
from randprune_lab.sampling import seed_of
from randprune_lab.splits import Task

# (the prunable weights by name, the model that they belong to, the task) -> the score of every weight, by name. The
# model is a copy, in evaluation mode, and the weights are its own parameters, so that they can have gradients;
# ``distill.features(model, batch).logits`` asks any model. Only ``task.train`` may be looked at: what decides is no
# longer a fair judge of what it has helped to make.
Criterion = Callable[[Mapping[str, Tensor], nn.Module, Task], Mapping[str, Tensor]]


def scores_of(
    criterion: Criterion, model: nn.Module, names: Mapping[str, object], task: Task, *, seed: int, stage: int
) -> dict[str, Tensor]:
    """The scores of a stage: larger = worth keeping. The same for the same weights, so that a run can be resumed.

    ``names`` are those of the prunable parameters. The criterion looks at a copy of the model: what it does to it, and
    to the random numbers of torch, numpy and Python, is forgotten.

    Raises:
        ValueError: it does not give a finite score, 0 or more, for every prunable weight, or has changed the data.
    """
    model = copy.deepcopy(model).eval()
    weights = {name: model.get_parameter(name) for name in names}
    before = task.digest()
    with _random_numbers(seed_of(seed, stage, "criterion")), torch.enable_grad():
        scores = criterion(weights, model, task)
    if task.digest() != before:
        raise ValueError("the criterion has changed the task's data. Work on a copy: task.train.inputs.clone().")
    if not isinstance(scores, Mapping) or set(scores) != set(weights):
        missing = sorted(map(str, set(weights) ^ set(scores if isinstance(scores, Mapping) else ())))
        raise ValueError(
            f"the criterion must return a score tensor by the name of every prunable parameter; wrong: {missing[:3]}. "
            "Return {name: ... for name, weight in weights.items()}."
        )
    return {name: _checked(name, scores[name], weight) for name, weight in weights.items()}


def near_one(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The scores divided by one power of two, so that the largest is near 1; only their proportions count.

    Masks are drawn in float32, which holds neither 1e300 nor 1e-50. A power of two changes no digit.
    """
    exponent = int(np.frexp(max(float(score.max()) for score in scores.values()))[1])
    return {name: torch.ldexp(score, torch.tensor(-exponent, device=score.device)) for name, score in scores.items()}


@contextlib.contextmanager
def _random_numbers(seed: int) -> Iterator[None]:
    """Those of torch, numpy and Python begin at ``seed``, and are afterwards as they were."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002, somebody else's code may use it
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def _checked(name: str, score: object, weight: Tensor) -> Tensor:
    if not isinstance(score, Tensor) or score.shape != weight.shape or not score.is_floating_point():
        what = f"{score.dtype}, {tuple(score.shape)}" if isinstance(score, Tensor) else type(score).__name__
        raise ValueError(
            f"the criterion's score of {name} is {what}: must be a tensor of decimals of shape {tuple(weight.shape)}, "
            "a number for each weight. Return such a one."
        )
    try:
        check_weight(score, None)
    except ValueError as error:
        raise ValueError(f"the criterion's score of {name}: {error}") from None
    score = score.detach().to(weight.device)
    if not bool(torch.isfinite(score).all()) or bool((score < 0).any()):
        raise ValueError(
            f"the criterion's score of {name} has negative, infinite or NaN values: weights are drawn with "
            "probability score**T, and the largest are kept. Return abs() of it, or its ranks."
        )
    return score
