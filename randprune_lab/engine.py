"""The engine: iterative magnitude pruning with randomized candidates (arXiv 2310.13183, Algorithm 1).

It writes and prints nothing. ``prune`` yields what happens, and checkpoints to go on from; ``store.record`` keeps both.
The algorithm as printed rewinds after its loop over the candidates; every candidate must start from the same weights.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import importlib.metadata
import math
from collections.abc import Generator, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from randprune_lab import on_ray, ranks
from randprune_lab.config import OBJECT, RunConfig
from randprune_lab.distill import Teacher, all_logits, wanted
from randprune_lab.events import (
    CandidateScored,
    Checkpoint,
    DenseFinished,
    EpochFinished,
    Event,
    MaskChosen,
    Progress,
    Resumed,
    RunFinished,
    RunStarted,
    Score,
    StageFinished,
    StageStarted,
    Warned,
)
from randprune_lab.executors import Train, judge_candidates, standing, train_candidates
from randprune_lab.fitting import (
    check_fit,
    check_method,
    check_own,
    check_same_run,
    check_schedule,
    check_steps,
    check_teacher,
    initialize,
    network_for,
    prepare,
)
from randprune_lab.masks import (
    Masks,
    StageMasks,
    apply_masks,
    kept,
    model_randomness,
    model_swapped,
    pack,
    stage_masks,
    unpack,
)
from randprune_lab.methods import METHODS, hooks_of
from randprune_lab.models import is_transformer, prunable_weights
from randprune_lab.pretrained import companions, load_tokenizer
from randprune_lab.sampling import introduced_randomness
from randprune_lab.schedules import next_centre, spread_targets
from randprune_lab.scores import Criterion, stage_scores
from randprune_lab.splits import Task
from randprune_lab.tables import check_files
from randprune_lab.tasks import as_images, is_text, load_task
from randprune_lab.training import Diverged, Phase, Session, fine_tuning_rate, start_accelerator, telling_of_memory

Said = Iterator[Event | Checkpoint]


def prune(
    config: RunConfig,
    *,
    model: nn.Module | None = None,
    data: Task | None = None,
    criterion: Criterion | None = None,
    resume: Checkpoint | None = None,
) -> Said:
    """Prune a network: an iterator of Events and Checkpoints. Closing it stops the run; ``resume`` goes on.

    Args:
        config: everything that the run depends on.
        model: your own classifier, inputs -> logits; trained and pruned in place. None: the one that config names.
        data: your own task (``Task.of``). None: the one that config names.
        criterion: what a weight is worth instead of its magnitude: (weights, model, task) -> scores, by name; see
            ``scores.Criterion``. Masks, plain and random ones, are then drawn from the scores. Resume with the same.
        resume: what ``store.last_checkpoint`` gave.

    Raises:
        ValueError: before anything is trained: config, model, data and checkpoint do not fit one another; later: the
            criterion's scores do not fit the weights.
        Diverged: a loss became NaN or infinite, while the network was trained or for every candidate.
        OutOfMemory: the run can be resumed with less at a time, as the text says, which changes no result.
    """
    with telling_of_memory(config):
        run = _Run(config, {"model": model, "task": data, "criterion": criterion}, resume)
        on_ray.check(config, run.session.accelerator.device)
        return _steps(run)


def _steps(run: _Run) -> Said:
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(run.config.threads)
    torch.use_deterministic_algorithms(run.config.deterministic)
    test: Score | None = None
    try:
        with telling_of_memory(run.config), contextlib.ExitStack() as around:
            yield from run.begin()  # first, so that a run that Ray then refuses can be resumed without it
            run.train = around.enter_context(on_ray.executor(run.session))
            if run.at("dense"):
                yield from run.train_dense()
            run.take_teacher()
            for stage in run.stages_left():
                if run.at("scoring"):
                    candidates = run.candidates(stage)
                    winner = yield from run.judge(candidates, stage)  # EMEP; same start for all
                    yield from run.choose(candidates, winner, stage)  # MCSS
                    del candidates  # with its copy of the weights
                test = yield from run.fine_tune(stage)
            yield from run.finish(test)
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(strict)


def best(scores: list[CandidateScored]) -> int:
    """The winner among those that were trained to the end: best metric; equal: lower loss; still equal: the earlier."""
    judged = [
        standing(score.selection, score.candidate)
        for score in scores
        if score.selection is not None and math.isfinite(score.selection.loss) and not score.steps
    ]
    if not judged:
        who = " that the race did not drop" * any(score.steps for score in scores)
        raise Diverged(f"every candidate{who} failed; the first: {next(each.failed for each in scores if each.failed)}")
    return -max(judged)[2]


def _version() -> str:
    """Of this package; "" in a checkout that is not installed."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version("randprune-lab")
    return ""


class _Run:
    """A run's state, and the steps that change it."""

    def __init__(self, config: RunConfig, own: dict[str, Any], resume: Checkpoint | None) -> None:
        config = config.model_copy(update={name: OBJECT for name, thing in own.items() if thing is not None})
        check_own(config, own, resume)
        check_same_run(config, resume)
        model, data, self.criterion = (own.get(name) for name in ("model", "task", "criterion"))
        self.config, self.resume = config, resume
        self.train: Train = train_candidates
        accelerator = start_accelerator(config)
        self.tokenizer = None
        if config.task == "text" and data is None:
            check_files(config.dataset)
        if data is None and is_text(config.task) and (model is not None or is_transformer(config.model)):
            self.tokenizer = load_tokenizer(config.model if model is None else getattr(model, "name_or_path", ""))
        task = data if data is not None else load_task(config, self.tokenizer)
        fine_tuned = config.dense_epochs == 0 and is_transformer(config.model)
        network = model if model is not None else network_for(config.model, task, config, trained=fine_tuned)
        prepare(network, self.tokenizer, config)
        initialize(network, config)
        task = as_images(task, network)
        if config.selection_rows:
            task = dataclasses.replace(task, selection=task.selection.first(config.selection_rows))
        self.session = Session(
            config,
            task.to(accelerator.device),
            network.to(accelerator.device),
            accelerator,
            prunable=tuple(prunable_weights(network, config.include, config.exclude)),
            hooks=hooks_of(config),
        )
        self.teacher: nn.Module | None = None
        if config.teacher:  # now, lest it turn out not to fit when the dense network has been trained
            self.teacher = network_for(config.teacher, task, config, trained=True).to(accelerator.device)
            prepare(self.teacher, self.tokenizer, config)
        self.sizes = {name: weight.numel() for name, weight in self.weights().items()}
        check_fit(self.session)
        check_method(self.session)
        check_steps(self.session)
        if self.teacher is not None:
            check_teacher(self.session, self.teacher, self.tokenizer)
        check_schedule(config, network, self.weights())
        ranks.check(config, network)
        self.masks: Masks = {name: torch.ones_like(w, dtype=torch.bool) for name, w in self.weights().items()}
        self.progress = Progress()
        self.optimizer: dict[str, Tensor] = {}
        self.best: dict[str, Tensor] = {}
        if resume is not None:
            if resume.data not in ("", self.session.task.digest()):
                raise ValueError(
                    f"the data of task {config.task!r} is not what this run began with. Restore it, or start anew."
                )
            self._load(resume)

    def weights(self) -> dict[str, Tensor]:
        return prunable_weights(self.session.model, self.config.include, self.config.exclude)

    def at(self, phase: str) -> bool:
        return self.progress.phase == phase

    def stages_left(self) -> range:
        done = len(self.config.stages) if self.at("finished") else max(self.progress.stage, 1) - 1
        return range(done + 1, len(self.config.stages) + 1)

    def begin(self) -> Said:
        """Say what starts, or that it goes on."""
        if ranks.number() > 1:
            settings = self.config.model_dump_json(exclude={"group", "control"})
            begun = {"settings": settings, "data": self.session.task.digest(), "progress": repr(self.progress)}
            ranks.check_same("run's", begun)
            self._agree()
        if self.resume is not None:
            yield Resumed(self.resume.events, self.resume.recorded)
            for damaged in self.resume.damaged:
                yield Warned(f"checkpoint {damaged} is damaged and was passed over; the one before it is used.")
            before, now = self.resume.processes, ranks.number()
            if self.resume.events and before not in (None, now):
                yield Warned(
                    f"the run was begun with processes = {before} and goes on with {now}: sums are rounded in another "
                    "order, and results may differ in their last digits from those of either number."
                )
        if self.resume is None or self.resume.events == 0:
            yield RunStarted(
                config=self.config.model_dump(mode="json"),
                prunable=self.sizes,
                parameters=sum(parameter.numel() for parameter in self.session.model.parameters()),
                device=str(self.session.accelerator.device),
                torch=torch.__version__,
                deterministic=self.config.deterministic or self.session.accelerator.device.type == "cpu",
                metric=self.session.task.metric,
                data=self.session.task.digest(),
                processes=ranks.number(),
                lab=_version(),
            )
            for note in self.session.task.notes:
                yield Warned(note)

    def train_dense(self) -> Said:
        phase = Phase(self.session, "dense", 0, {}, lambda _: self.config.learning_rate)
        known = yield from self._train(phase, self.config.dense_epochs, patience=None)
        session = self.session
        yield DenseFinished(known or session.evaluate(session.task.selection), session.report())
        self.progress = Progress("scoring", stage=1)
        self.dense = self._model_state()
        yield self._checkpoint()

    def take_teacher(self) -> None:
        """Freeze the dense network, or load the teacher that was asked for; where only logits count, run it once."""
        session, config = self.session, self.config
        if not config.distils or self.at("finished"):
            return
        network = self.teacher
        if network is None:
            network = copy.deepcopy(session.model)
            network.load_state_dict(self.dense)
        network.eval().requires_grad_(False)
        if any(wanted(config).values()):
            session.teacher = Teacher(config, network)
        else:
            session.teacher = Teacher(config, logits=all_logits(network, session.task.train.inputs))
        self.dense = {}  # the teacher has them now

    def candidates(self, stage: int) -> StageMasks:
        session = self.session
        scores = stage_scores(self.criterion, session.model, self.masks, session.task, self.config, stage)
        found = stage_masks(scores, self.masks, stage, self.config, targets=self.targets())
        return dataclasses.replace(
            found, draw=lambda number: ranks.from_first(lambda: found.draw(number), like=self.masks)
        )

    def targets(self) -> dict[int, float]:
        """With adaptive randomness: what ir each random candidate of the coming stage aims at."""
        first = self.config.target_of(1)
        if self.config.randomness != "adaptive" or first is None:
            return {}
        numbers = METHODS[self.config.method].candidates(self.config)
        return spread_targets(self.progress.centre or first, [number for number in numbers if number])

    def _agree(self) -> None:
        """Several processes hold the same masks and weights."""
        ranks.check_same("weights", self.session.model.state_dict())
        ranks.check_same("mask of", self.masks)

    def judge(self, masks: StageMasks, stage: int) -> Generator[Event, None, int]:
        """Score the candidates that were not scored before; returns the winner of all."""
        numbers = METHODS[self.config.method].candidates(self.config)
        known = self.resume.scores if self.resume is not None else ()
        scores = [score for score in known if score.stage == stage]
        if not (self.resume and self.resume.announced and self.resume.progress.stage == stage):
            drawn = any(numbers)  # plain pruning draws nothing
            samples, power = (masks.samples, masks.power) if drawn else ({}, {})
            yield StageStarted(stage, self.config.stages[stage - 1], numbers, samples, power, masks.targets)
            for text in masks.clamped if drawn else ():
                yield Warned(text)
        if len(numbers) == 1:  # nothing to compare
            return numbers[0]
        plain = masks.draw(0)
        left = [number for number in numbers if number not in {score.candidate for score in scores}]
        for number, score, failed, steps in judge_candidates(self.session, masks.draw, left, stage, self.train):
            mask = masks.draw(number)
            ir, swapped = model_randomness(mask, plain), model_swapped(mask, plain)
            scores.append(CandidateScored(stage, number, score, ir, swapped, failed, steps))
            yield scores[-1]
        return best(scores)

    def choose(self, candidates: StageMasks, winner: int, stage: int) -> Said:
        """Take the winner's mask."""
        plain, self.masks = candidates.draw(0), candidates.draw(winner)
        apply_masks(self.session.model, self.masks)
        self._agree()
        ir = model_randomness(self.masks, plain)
        centre = next_centre(ir, candidates.targets) if candidates.targets else 0.0
        self.progress = Progress("fine-tuning", stage, centre=centre)
        tensors = {
            name: {
                "kept": int(torch.count_nonzero(mask)),
                "swapped": model_swapped({name: mask}, {name: plain[name]}),
                # in global scope the two keep different numbers of a tensor's weights: no ir
                **({"ir": introduced_randomness(mask, plain[name])} if self.config.scope == "layer" else {}),
            }
            for name, mask in self.masks.items()
        }
        yield MaskChosen(stage, winner, kept(self.masks), ir, model_swapped(self.masks, plain), tensors)
        yield self._checkpoint()

    def fine_tune(self, stage: int) -> Generator[Event | Checkpoint, None, Score]:
        """Train under the mask, from the dense network's answers too, and close the stage; returns the test score."""
        session, config, last = self.session, self.config, stage == len(self.config.stages)
        rate = fine_tuning_rate(config, stage, session.steps_per_epoch)
        phase = Phase(session, "fine-tuning", stage, self.masks, rate)
        known = yield from self._train(phase, config.max_epochs, patience=None if last else config.patience)
        self._agree()
        selection, test = known or session.evaluate(session.task.selection), session.report()
        sparsity = 1 - kept(self.masks) / sum(self.sizes.values())
        yield StageFinished(stage, sparsity, kept(self.masks), selection, test)
        done = Progress("finished", stage) if last else Progress("scoring", stage + 1)
        self.progress = dataclasses.replace(done, centre=self.progress.centre)
        yield self._checkpoint()
        return test

    def finish(self, test: Score | None) -> Said:
        """``test``: the last stage's score; None: the run was resumed after it."""
        sparsity = 1 - kept(self.masks) / sum(self.sizes.values())
        yield RunFinished(sparsity, test or self.session.report())

    def _train(
        self, phase: Phase, epochs: int, *, patience: int | None
    ) -> Generator[Event | Checkpoint, None, Score | None]:
        """Epochs of a phase; with patience until it stops improving, and then back to the best one.

        Returns:
            What the network that is left scores on the selection split, where an epoch has told.
        """
        known: Score | None = None
        phase.load_state(self.optimizer)
        while self.progress.epoch < epochs and (
            patience is None or self.progress.epoch - self.progress.best_epoch < patience
        ):
            done = self.progress
            loss = phase.epoch(done.epoch)
            last = (done.epoch + 1) * self.session.steps_of(phase.name) - 1
            score = phase.score(last)
            self.progress = dataclasses.replace(done, epoch=done.epoch + 1)
            better = (score.metric, -score.loss) > (done.best_metric, -done.best_loss)
            if patience is not None and better:
                self.best = {name: tensor.cpu() for name, tensor in self._model_state().items()}
                self.progress = dataclasses.replace(
                    self.progress, best_epoch=done.epoch + 1, best_metric=score.metric, best_loss=score.loss
                )
            if patience is None or better:
                known = score
            terms = phase.mean_terms()
            self.masks |= phase.masks
            for sentence in phase.taken():
                yield Warned(sentence)
            yield EpochFinished(
                phase.name, phase.stage, self.progress.epoch, loss, phase.learning_rate(last), score, terms
            )
            self.optimizer = phase.state()
            yield self._checkpoint()
        phase.finish()
        if self.best:
            self.session.model.load_state_dict(self.best)
        self.optimizer, self.best = {}, {}
        # What hooks do while an epoch is scored ends with the phase.
        return known if self.config.select_on == "selection" and not phase.hooks else None

    def _model_state(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self.session.model.state_dict().items()}

    def _checkpoint(self) -> Checkpoint:
        """What is needed to go on from here; copies on the CPU."""
        parts = {
            "model": self.session.model.state_dict(),
            "mask": {name: pack(mask) for name, mask in self.masks.items()},
            "optimizer": self.optimizer,
            "best": self.best,
        }
        tensors = {
            f"{part}.{name}": tensor.detach().to("cpu", copy=True).contiguous()
            for part, named in parts.items()
            for name, tensor in named.items()
        }
        files = companions(self.session.model, self.tokenizer) if self.at("finished") else {}
        return Checkpoint(self.progress, tensors, files=files)

    def _load(self, checkpoint: Checkpoint) -> None:
        def part(name: str) -> dict[str, Tensor]:
            device, prefix = self.session.accelerator.device, f"{name}."
            return {
                label.removeprefix(prefix): tensor.clone() if name == "mask" else tensor.to(device, copy=True)
                for label, tensor in checkpoint.tensors.items()
                if label.startswith(prefix)
            }

        self.progress = checkpoint.progress
        if checkpoint.tensors:
            self.session.model.load_state_dict(part("model"))
            self.masks = {
                name: unpack(packed, self.masks[name].shape, self.masks[name].device)
                for name, packed in part("mask").items()
            }
            self.optimizer, self.best = part("optimizer"), part("best")
        self.dense = {name: tensor.to(self.session.accelerator.device) for name, tensor in checkpoint.dense.items()}
        self.resume = dataclasses.replace(checkpoint, tensors={}, dense={})  # no second copy of everything
