"""The pruning loop: randomized candidates, the best of them chosen, the network fine-tuned under it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from randprune_lab.checks import keep_count
from randprune_lab.config import RunConfig
from randprune_lab.events import CandidateScored, DenseTrained, Event, Score, StageFinished
from randprune_lab.masks import (
    Masks,
    apply_masks,
    deterministic_masks,
    flatten,
    model_randomness,
    model_swapped,
    randomized_masks,
)
from randprune_lab.models import build_model, prunable_weights
from randprune_lab.sampling import seed_of
from randprune_lab.tasks import Task, digits
from randprune_lab.training import evaluate, train


def prune(config: RunConfig) -> Iterator[Event]:
    """Train a dense network and prune it stage by stage; say what happens (arXiv 2310.13183, Algorithm 1).

    The algorithm as printed rewinds after the candidate loop; every candidate must start from the same weights.
    """
    torch.set_num_threads(config.threads)
    task = digits()
    model = build_model(config.model, seed_of(config.seed, "model"))
    masks: Masks = {name: torch.ones_like(w, dtype=torch.bool) for name, w in prunable_weights(model).items()}
    for name, mask in masks.items():
        if keep_count(mask.numel(), config.stages[-1]) == 0:
            raise ValueError(
                f"stages end at {config.stages[-1]}: nothing of {name} ({mask.numel()} weights) would be kept. "
                f"End at {1 - 1 / mask.numel():.4f} or less."
            )
    _train(model, task, masks, config, "dense")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    yield DenseTrained(evaluate(model, task.test), len(flatten(masks)), parameters)

    for stage, sparsity in enumerate(config.stages, start=1):
        candidates = list(_candidates(model, masks, stage, sparsity, config))
        scored: list[CandidateScored] = []
        for number, candidate in enumerate(candidates):
            score = _early_score(model, task, candidate, stage, config)
            scored.append(CandidateScored(stage, number, score, model_randomness(candidate, candidates[0])))
            yield scored[-1]
        winner = max(scored, key=lambda c: (c.selection.accuracy, -c.selection.loss, -c.candidate)).candidate
        masks = candidates[winner]
        _train(model, task, masks, config, "fine-tuning", stage)
        yield StageFinished(
            stage=stage,
            sparsity=1 - float(flatten(masks).double().mean()),
            kept=int(flatten(masks).sum()),
            winner=winner,
            ir=model_randomness(masks, candidates[0]),
            swapped=model_swapped(masks, candidates[0]),
            test=evaluate(model, task.test),
        )


def _candidates(
    model: nn.Module, alive: Mapping[str, Tensor], stage: int, sparsity: float, config: RunConfig
) -> Iterator[Masks]:
    """The deterministic mask first, then as many random ones as the method asks for."""
    weights = prunable_weights(model)
    yield deterministic_masks(weights, sparsity, alive)
    for candidate in range(1, config.candidates if config.method == "randomized" else 1):
        yield randomized_masks(
            weights,
            sparsity,
            alive,
            seed=config.seed,
            stage=stage,
            candidate=candidate,
            samples=config.samples,
            power=config.power,
            reach=config.reach,
            method=config.sampler,
            ties=config.ties,
        )


def _early_score(model: nn.Module, task: Task, masks: Masks, stage: int, config: RunConfig) -> Score:
    """EMEP: apply, train shortly at a large learning rate, score on the selection split, restore."""
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    _train(model, task, masks, config, "emep", stage)
    score = evaluate(model, task.selection)
    model.load_state_dict(start)
    return score


def _train(model: nn.Module, task: Task, masks: Masks, config: RunConfig, phase: str, stage: int = 0) -> None:
    epochs = {"dense": config.dense_epochs, "emep": config.emep_epochs, "fine-tuning": config.max_epochs}[phase]
    apply_masks(model, masks)
    train(
        model,
        task.train,
        masks,
        epochs=epochs,
        learning_rate=config.emep_learning_rate if phase == "emep" else config.learning_rate,
        batch_size=config.batch_size,
        seed=seed_of(config.seed, stage, phase),  # not of the candidate: all see the same batches
    )
