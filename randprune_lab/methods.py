"""Methods of pruning: what each makes of a stage, and of a network's training. The engine's loop is the same for all.

Besides its method a run has a criterion (``criteria.py``), an initialization, a pattern and smoothed training
(``smoothing.py``): settings of their own, so that whatever belongs to one method can be tried with every other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from randprune_lab.config import RunConfig
from randprune_lab.hooks import Hook
from randprune_lab.learned import LearnedMask
from randprune_lab.regrow import Regrow
from randprune_lab.smoothing import Smoothing
from randprune_lab.training import Phase

Hooks = Callable[[Phase], Sequence[Hook]]


@dataclasses.dataclass(frozen=True)
class Method:
    """A method is a set of hooks that the engine calls.

    Attributes:
        says: what it does, in a sentence, with its source.
        candidates: the numbers of the masks that a stage compares; 0 is the deterministic one, all others are random.
            One alone is taken without being judged.
        hooks: what it does while a network trains.
    """

    says: str
    candidates: Callable[[RunConfig], tuple[int, ...]] = lambda _: (0,)
    hooks: Hooks = lambda _: ()


def _learned_mask(phase: Phase) -> Sequence[Hook]:
    """While the dense network trains."""
    if phase.name != "dense":
        return ()
    names = phase.session.prunable
    return (LearnedMask({name: phase.parameters[name] for name in names}, phase.session.config),)


def _regrow(phase: Phase) -> Sequence[Hook]:
    """Under the mask."""
    if phase.name != "fine-tuning":
        return ()
    session, config = phase.session, phase.session.config
    weights = {name: phase.parameters[name] for name in phase.masks}
    steps = config.max_epochs * session.steps_per_epoch
    return (Regrow(weights, phase.masks, config, stage=phase.stage, steps=steps),)


def _smoothing(phase: Phase) -> Sequence[Hook]:
    """After each pruning, whatever the method."""
    config = phase.session.config
    if phase.name != "fine-tuning" or not (config.soft_activations or config.soft_skips):
        return ()
    return (
        Smoothing(
            phase.model,
            activations=config.soft_activations,
            skips=config.soft_skips,
            steps=config.max_epochs * phase.session.steps_per_epoch,
            until=config.soft_until,
        ),
    )


METHODS: dict[str, Method] = {
    "imp": Method("the smallest scores go, stage by stage (iterative magnitude pruning: Han et al. 2015)"),
    "randomized": Method(
        "random masks and the plain one are judged by a short training at each stage, the best stays (arXiv "
        "2310.13183)",
        candidates=lambda config: tuple(range(config.candidates)),
    ),
    "randomized-no-selection": Method(
        "one random mask a stage, unjudged: what chance alone does", candidates=lambda _: (1,)
    ),
    "learned-mask": Method(
        "each weight's chance to be kept is trained with the dense network; then as imp (arXiv 2312.01653)",
        hooks=_learned_mask,
    ),
    "snip": Method(
        "once, before training: what the loss feels most, |w dL/dw|; published for global scope (Lee et al. 2019, "
        "arXiv 1810.02340)"
    ),
    "grasp": Method(
        "once, before training: what keeps the gradient large, w * Hg; published for global scope (Wang et al. 2020, "
        "arXiv 2002.07376)"
    ),
    "synflow": Method(
        "before training and without data, in 100 rounds: paths through all layers; published for global scope (Tanaka "
        "et al. 2020, arXiv 2006.05467)"
    ),
    "random": Method("once, before training, whatever chance says: what any other method must beat"),
    "set": Method(
        "a random mask whose smallest weights give way to random others while it trains; published for densities erk "
        "(Mocanu et al. 2018)",
        hooks=_regrow,
    ),
    "rigl": Method(
        "as set, but what grows is where the gradient is largest (Evci et al. 2020, arXiv 1911.11134)", hooks=_regrow
    ),
}


def hooks_of(config: RunConfig) -> Hooks:
    """What a run's method, and the smoothing that it asks for, do in a phase."""
    return lambda phase: (*METHODS[config.method].hooks(phase), *_smoothing(phase))


def planned_epochs(config: RunConfig) -> dict[str, float]:
    """The epochs that a run trains at most: of the dense network, of judging candidates, of fine-tuning.

    Whole numbers, unless candidates race.
    """
    stages = len(config.stages)
    return {
        "dense": config.dense_epochs,
        "judging": stages * config.judging_epochs,
        "tuning": stages * config.max_epochs,
    }
