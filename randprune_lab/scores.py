"""From a criterion to the scores of a stage: on a copy, the same for the same weights, and fit to draw masks from."""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from randprune_lab.config import RunConfig
from randprune_lab.criteria import CRITERIA, BuiltIn, Scene
from randprune_lab.histogram import check_weight
from randprune_lab.masks import Masks, apply_masks, flatten, kept, split, tensor_sparsities
from randprune_lab.sampling import magnitude_mask, seed_of
from randprune_lab.splits import Task
from randprune_lab.training import Diverged

# One's own: (the prunable weights by name, the model that they belong to, the task) -> the score of every weight, by
# name. The model is a copy, in evaluation mode, and the weights are its own parameters, so that they can have
# gradients; ``distill.features(model, batch).logits`` asks any model. Only ``task.train`` may be looked at: what
# decides is no longer a fair judge of what it has helped to make.
Criterion = Callable[[Mapping[str, Tensor], nn.Module, Task], Mapping[str, Tensor]]


def stage_scores(
    own: Criterion | None, model: nn.Module, alive: Masks, task: Task, config: RunConfig, stage: int
) -> dict[str, Tensor]:
    """The scores that the masks of ``stage`` are drawn from: larger = worth keeping. ``own``: instead of config's.

    The same for the same weights, so that a run can be resumed. Signed scores become ranks among the alive, divided by
    their number: in (0, 1], in global scope over all tensors.

    Raises:
        ValueError: the scores do not fit the weights.
    """
    if own is not None:
        return near_one(scores_of(own, model, alive, task, seed=config.seed, stage=stage))
    if config.criterion == "magnitude":
        return {name: model.get_parameter(name).detach().clone() for name in alive}
    criterion = CRITERIA[config.criterion]
    device = next(iter(alive.values())).device
    with _random_numbers(seed_of(config.seed, stage, "criterion"), device), torch.enable_grad():
        if criterion.rounds > 1:
            scores = _order_of_rounds(criterion, model, alive, task, config, stage)
        else:
            scores = _of_a_copy(criterion, model, alive, task, config)
    if criterion.signed or criterion.rounds > 1:
        return ranks(scores, alive, together=config.scope == "global")
    return near_one(scores)


def scores_of(
    criterion: Criterion, model: nn.Module, names: Mapping[str, object], task: Task, *, seed: int, stage: int
) -> dict[str, Tensor]:
    """The scores of one's own criterion.

    ``names`` are those of the prunable parameters. The criterion looks at a copy of the model: what it does to it, and
    to the random numbers of torch, numpy and Python, is forgotten.

    Raises:
        ValueError: it does not give a finite score, 0 or more, for every prunable weight, or has changed the data.
    """
    model = copy.deepcopy(model).eval()
    weights = {name: model.get_parameter(name) for name in names}
    before = task.digest()
    device = next(iter(weights.values())).device
    with _random_numbers(seed_of(seed, stage, "criterion"), device), torch.enable_grad():
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


def _of_a_copy(criterion: BuiltIn, model: nn.Module, alive: Masks, task: Task, config: RunConfig) -> dict[str, Tensor]:
    """A criterion's scores, of a copy of the network."""
    model = copy.deepcopy(model).requires_grad_(True)
    apply_masks(model, alive)
    weights = {name: model.get_parameter(name) for name in alive}
    scores = criterion.score(Scene(weights, model, task, config, alive))
    for name, score in scores.items():
        if not bool(torch.isfinite(score).all()):
            raise Diverged(
                f"criterion {config.criterion}: the scores of {name} are not finite. Lower the learning rate, or use "
                "another criterion."
            )
    return {name: score.detach() for name, score in scores.items()}


def _order_of_rounds(
    criterion: BuiltIn, model: nn.Module, alive: Masks, task: Task, config: RunConfig, stage: int
) -> dict[str, Tensor]:
    """Prune in rounds, the density falling by the same factor in each (Tanaka et al. 2020, Algorithm 1).

    A weight's place in the order: the round that it got through, and within the round its score.
    """
    order = {name: torch.zeros_like(mask, dtype=torch.float64) for name, mask in alive.items()}
    total, left = sum(mask.numel() for mask in alive.values()), alive
    first, last = kept(alive) / total, 1 - config.stages[stage - 1]
    for number in range(1, criterion.rounds + 1):
        scores = near_one(_of_a_copy(criterion, model, left, task, config))
        at_end = number == criterion.rounds
        sparsity = config.stages[stage - 1] if at_end else 1 - first * (last / first) ** (number / criterion.rounds)
        survivors = _best(scores, left, sparsity, config)
        gone = {name: mask & ~survivors[name] for name, mask in left.items()}
        for placed, behind in ((gone, number - 1), (survivors, number)) if at_end else ((gone, number - 1),):
            for name, rank in ranks(scores, placed, together=True).items():
                order[name] = torch.where(placed[name], behind + rank, order[name])
        left = survivors
    return order


def _best(scores: Mapping[str, Tensor], alive: Masks, sparsity: float, config: RunConfig) -> Masks:
    """The largest scores among the alive, without a pattern.

    A tensor that has fewer left than its share keeps all: blocks are counted whole, and so a tensor may have lost more.
    """
    if config.scope == "global":
        return split(
            magnitude_mask(flatten(scores), sparsity, alive=flatten(alive)),
            {name: score.shape for name, score in scores.items()},
        )
    shares = tensor_sparsities({name: score.shape for name, score in scores.items()}, sparsity, config)
    return {
        name: magnitude_mask(score, max(shares[name], 1 - float(alive[name].double().mean())), alive=alive[name])
        for name, score in scores.items()
    }


def ranks(scores: Mapping[str, Tensor], alive: Masks, *, together: bool) -> dict[str, Tensor]:
    """Each score's place among those of the alive weights, divided by their number: in (0, 1]; equal scores share it.

    ``together``: among all tensors; else each tensor by itself. What is not alive gets 0.
    """
    if together:
        one = ranks({"": flatten(scores)}, {"": flatten(alive)}, together=False)[""]
        return split(one, {name: score.shape for name, score in scores.items()})
    found = {}
    for name, score in scores.items():
        lives = alive[name]
        rising, order = score[lives].sort()
        place = torch.searchsorted(rising, rising, right=True) / max(len(rising), 1)
        found[name] = torch.zeros(score.shape, device=score.device)
        found[name][lives] = torch.empty_like(place).index_copy_(0, order, place)
    return found


def near_one(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The scores divided by one power of two, so that the largest is near 1; only their proportions count.

    Masks are drawn in float32, which holds neither 1e300 nor 1e-50. A power of two changes no digit.
    """
    exponent = int(np.frexp(max(float(score.max()) for score in scores.values()))[1])
    return {name: torch.ldexp(score, torch.tensor(-exponent, device=score.device)) for name, score in scores.items()}


@contextlib.contextmanager
def _random_numbers(seed: int, device: torch.device) -> Iterator[None]:
    """Those of torch, numpy and Python begin at ``seed``, and are afterwards as they were."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002, somebody else's code may use it
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
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
