"""What a run will cost, before it starts: seconds, memory and disk, from timed steps of the real thing.

    python -m randprune_lab.estimate < config.json

prints {"estimate": ...} or {"problem": one sentence}. Whatever ``engine.prune`` would refuse is refused here.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import json
import math
import os
import statistics
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import save
from torch import Tensor, nn

from randprune_lab import store
from randprune_lab.augment import augment
from randprune_lab.config import RunConfig
from randprune_lab.engine import _Run
from randprune_lab.executors import SPARE, free_memory, in_passing
from randprune_lab.files import free_disk
from randprune_lab.jobs import module_command, module_environment
from randprune_lab.methods import METHODS
from randprune_lab.processes import end_with
from randprune_lab.splits import Tokens
from randprune_lab.training import Phase, Session, telling_of_memory, train_epoch, using_threads

ROUNDS = 3  # stretches of steps that are timed, after one step that warms up; the median counts
STRETCH = 0.2  # seconds that a stretch takes, or one step
LONGEST_WAIT = 600.0  # seconds after which nobody waits any longer
EVALUATED = 128  # texts of an evaluation's batch
LONGEST = 1000  # characters of a problem


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a run will cost.

    Attributes:
        seconds: of the whole run, on a machine with nothing else to do; an upper bound where ``patience`` may stop it.
        memory_bytes: at most; of the GPU where it runs on one.
        disk_bytes: what the run's folder holds at the end.
        step_seconds: of one step of fine-tuning, the teacher's part included.
        sentence: all of it.
        warnings: what this machine lacks, a sentence each.
    """

    seconds: float
    memory_bytes: int
    disk_bytes: int
    step_seconds: float
    sentence: str
    warnings: tuple[str, ...] = ()


def estimate(config: RunConfig) -> Estimate:
    """Build what the run would build, time some steps of each kind, and count how many there will be.

    Nothing is trained and nothing written but what data sets and models keep in their caches. Copies of texts
    (``augment``) are not made: they are counted, as many as there can be.

    Raises:
        ValueError: what ``engine.prune`` would say.
        OutOfMemory: not even this fits.
    """
    # With fewer rows an epoch is shorter than stated: the check of emep_steps is left to the run.
    lighter = {"augment": 0, "emep_steps": None} if config.augment else {}
    with telling_of_memory(), using_threads(config.threads):
        clock = _clock(config)
        begun = clock()
        run = _Run(config.model_copy(update=lighter), dict.fromkeys(("model", "task", "criterion")), None)
        building = clock() - begun
        return _Plan(config, run, clock).estimate(building)


def _clock(config: RunConfig) -> Callable[[], float]:
    """Seconds: of the CPU where one thread computes, so that what else the machine does hardly counts."""
    if torch.cuda.is_available() and config.device in ("auto", "cuda"):

        def when_done() -> float:
            torch.cuda.synchronize()
            return time.perf_counter()

        return when_done
    return time.process_time if config.threads == 1 and config.device != "mps" else time.perf_counter


class _Plan:
    """The numbers of all that a run does, and what each takes."""

    def __init__(self, config: RunConfig, run: _Run, clock: Callable[[], float]) -> None:
        self.config, self.run, self.clock = config, run, clock
        self.session: Session = run.session
        self.device = self.session.accelerator.device
        self.candidates = len(METHODS[config.method].candidates(config))

    def estimate(self, building: float) -> Estimate:
        config, session, run = self.config, self.session, self.run
        stages = len(config.stages)
        still = lambda _: 0.0  # a learning rate that trains nothing takes as long as any other
        dense = self.step("dense", [Phase(session, "dense", 0, {}, still)]) if config.dense_epochs else 0.0
        run.dense = run._model_state()
        teaching_all = self.seconds(run.take_teacher)
        begun = self.clock()
        masks = run.candidates(1)
        scoring = self.clock() - begun  # a criterion may take longer than all that follows
        masks.draw(1)
        drawing = self.seconds(lambda: masks.draw(1))
        mask = masks.draw(1)
        phase = Phase(session, "fine-tuning", 1, mask, still)
        tuning = self.step("fine-tuning", [phase])
        run.masks, run.optimizer = mask, phase.state()
        kept = self.files()
        run.optimizer = {}
        pair: list[Phase] = []
        teaching, judging = 0.0, 0.0
        if self.candidates > 1:
            pair = [Phase(session, "emep", 1, mask, still, copy.deepcopy(session.model)) for _ in range(2)]
            both = self.step("emep", pair)
            teaching = self.teaching()
            judging = max(both - teaching, 0.0) / 2
        score = self.scoring()
        self.take_longest(phase)
        memory = self.memory(len(pair))
        decide = score * len(session.deciding_split)
        reported = session.task.splits.keys() - {"train"}
        if config.select_on == "selection" and not phase.hooks:  # the last epoch has told
            reported -= {"selection"}
        report = score * sum(len(session.task.splits[name]) for name in reported)
        choosing = 0.0
        if self.candidates > 1:
            choosing = self.race(teaching, judging, decide + drawing) + self.candidates * drawing
        seconds = (
            building
            + self.augmenting()
            + config.dense_epochs * (self.steps("dense") * dense + decide + kept.saving)
            + report
            + kept.closing
            + teaching_all * self.rows("fine-tuning") / len(session.task.train)
            + stages * scoring
            + stages * choosing
            + stages * config.max_epochs * (self.steps("fine-tuning") * tuning + decide + kept.saving)
            + stages * (report + 2 * kept.closing)
        )
        return self.said(seconds, memory, kept, tuning)

    # ---- how often

    def rows(self, phase: str) -> int:
        """Rows of an epoch; each copy of a text is counted, though a few will turn out to be equal."""
        copies = 0 if phase == "dense" else self.config.augment * self.session.rows_of("dense")
        return self.session.rows_of(phase) + copies

    def steps(self, phase: str) -> int:
        """Optimizer steps of an epoch, as ``Session.steps_of`` counts them."""
        every = math.ceil(self.rows(phase) / self.config.batch_size)
        most = self.config.max_steps_per_epoch
        most = (self.config.emep_steps or most) if phase == "emep" else most
        return min(every, most or every)

    def race(self, teaching: float, judging: float, around: float) -> float:
        """Seconds of a stage's EMEP: a step takes ``judging`` of each candidate, a round ``around`` it.

        There is but one round where candidates do not race.
        """
        seconds, start = 0.0, 0
        for field, end in self.config.rounds(self.steps("emep") * self.config.emep_epochs):
            seconds += (end - start) * (math.ceil(field / self.wave()) * teaching + field * judging) + field * around
            start = end
        return seconds

    def wave(self) -> int:
        """Candidates that are trained at once."""
        if self.config.executor == "serial":
            return 1
        free = (1 - SPARE) * free_memory(self.device) - in_passing(self.device)
        fits = max(int(free / max(self.of_candidate(), 1)), 1)
        return min(self.candidates, self.config.wave or self.candidates, fits)

    # ---- how long

    def seconds(self, work: Callable[[], object]) -> float:
        start = self.clock()
        work()
        return self.clock() - start

    def step(self, name: str, phases: Iterable[Phase]) -> float:
        """Seconds of a step of these phases together."""
        every = self.session.steps_of(name)

        def stretch(steps: int) -> float:
            settings = {"max_steps_per_epoch": steps, "emep_steps": None}
            short = dataclasses.replace(self.session, config=self.config.model_copy(update=settings))
            return self.seconds(lambda: train_epoch(short, name, 1, 0, phases)) / steps

        stretch(1)  # warms up
        steps = min(max(round(STRETCH / max(stretch(1), 1e-6)), 1), every)
        return statistics.median(stretch(steps) for _ in range(ROUNDS))

    def teaching(self) -> float:
        """Seconds that the teacher takes for a batch."""
        teacher, task = self.session.teacher, self.session.task
        if teacher is None or teacher.model is None:
            return 0.0
        size, times = min(self.config.batch_size, len(task.train)), []
        for number in range(ROUNDS + 1):
            rows = torch.arange(number * size, (number + 1) * size) % len(task.train)
            batch, _ = task.train.batch(rows)
            with self.session.accelerator.autocast():
                times.append(self.seconds(functools.partial(teacher.features, batch, rows)))
        return statistics.median(times[1:])

    def scoring(self) -> float:
        """Seconds that a row of an evaluation takes."""
        split = self.session.deciding_split
        for rows in (64, 64, 1024):  # the first warms up
            part = split.first(rows)
            taken = self.seconds(functools.partial(self.session.evaluate, part))
            a_row = taken / len(part)
            if taken > STRETCH:
                break
        return a_row

    def augmenting(self) -> float:
        """Seconds for the copies of all texts, where they lie in no cache yet; also shows that they can be made."""
        config, inputs = self.config, self.session.task.train.inputs
        if not config.augment or not isinstance(inputs, Tokens):
            return 0.0
        tokenizer: Any = self.run.tokenizer
        numbers = [inputs.ids[inputs.starts[row] : inputs.starts[row + 1]] for row in range(min(9, len(inputs)))]
        texts = [(tokenizer.decode(ids.tolist(), skip_special_tokens=True),) for ids in numbers]
        make = functools.partial(
            augment,
            model=config.augment_model or config.model,
            copies=config.augment,
            glove=Path(config.glove) if config.glove else None,
            device=self.device.type,
        )
        one, all_ = self.seconds(lambda: make(texts[:1])), self.seconds(lambda: make(texts))
        return max(all_ - one, 0.0) / max(len(texts) - 1, 1) * self.session.rows_of("dense")

    # ---- how large

    def take_longest(self, phase: Phase) -> None:
        """A step and an evaluation with the longest texts, which take most memory."""
        task, session = self.session.task, self.session
        if not isinstance(task.train.inputs, Tokens):
            return
        rows = task.train.inputs.longest(self.config.batch_size)
        batch, labels = task.train.batch(rows)
        phase.step(0, batch, labels, None if session.teacher is None else session.teacher.features(batch, rows))
        inputs: Any = session.deciding_split.inputs
        with torch.no_grad(), session.accelerator.autocast():
            session.model.eval()(**inputs[inputs.longest(EVALUATED)])

    def files(self) -> _Kept:
        """A checkpoint with the optimizer's state is made in memory, to see what it takes and how large it is."""
        begun = self.clock()
        checkpoint = self.run._checkpoint()
        inside = len(save(checkpoint.tensors))
        store._checksum(checkpoint.tensors, {"progress": "", "events": ""})
        saving = self.clock() - begun
        begun = self.clock()
        histograms = len(json.dumps(store._histograms(checkpoint.tensors)))
        closing = self.clock() - begun + saving
        boundary = sum(_bytes(tensor) for name, tensor in checkpoint.tensors.items() if "optimizer." not in name)
        model = sum(_bytes(tensor) for name, tensor in checkpoint.tensors.items() if name.startswith("model."))
        return _Kept(inside, boundary, model, histograms, saving, closing)

    def of_candidate(self) -> int:
        """Bytes that a candidate holds while it is trained: weights, two moments, its mask as a factor and as bits."""
        prunable = sum(self.run.sizes.values())
        return 3 * _size(self.session.model) + 5 * prunable

    def memory(self, alive: int) -> int:
        """Bytes at most, measured while ``alive`` candidates are there."""
        if self.device.type == "cuda":
            now = torch.cuda.memory_allocated(self.device)
        else:
            now = psutil.Process().memory_info().rss
        judging = self.wave() * self.of_candidate() if self.candidates > 1 else 0
        if self.config.racing and self.device.type == "cpu":  # the others' states between two rounds
            judging += (self.candidates - self.wave()) * 3 * _size(self.session.model)
        # While a checkpoint is written: the moments, and twice weights and moments, as tensors and as a file.
        writing = (2 if self.device.type == "cuda" else 8) * _size(self.session.model)
        return now + in_passing(self.device) - alive * self.of_candidate() + max(judging, writing)

    # ---- in words

    def said(self, seconds: float, memory: int, kept: _Kept, step: float) -> Estimate:
        disk = kept.at_the_end(self.config)
        bound = "At most about" if self.config.patience is not None else "About"
        gpu = "GPU memory" if self.device.type == "cuda" else "memory"
        sentence = (
            f"{bound} {in_time(seconds)}, {in_bytes(memory)} of {gpu}, {in_bytes(disk)} on disk; one training step "
            f"takes {in_time(step)}, measured just now."
        )
        warnings = []
        free = free_disk(store.runs_folder())
        peak = kept.at_most(self.config)
        if peak > free:
            warnings.append(
                f"The disk of the runs folder has {in_bytes(free)} free, the run needs up to {in_bytes(peak)}. Make "
                "room, or keep only the last stage (keep stages)."
            )
        own = 0 if self.device.type == "cuda" else psutil.Process().memory_info().rss
        free = free_memory(self.device) + own
        if memory > free:
            warnings.append(
                f"Only {in_bytes(free)} of {gpu} are free. Close other programs, or take a smaller batch size or wave."
            )
        return Estimate(seconds, memory, disk, step, sentence, tuple(warnings))


@dataclasses.dataclass(frozen=True)
class _Kept:
    """Bytes of a checkpoint inside a stage (without best weights), of one between two, of model/ and of a histogram.

    ``saving``: seconds of a checkpoint; ``closing``: with its histogram.
    """

    inside: int
    boundary: int
    model: int
    histograms: int
    saving: float
    closing: float

    def at_the_end(self, config: RunConfig) -> int:
        """Of the whole folder: the last checkpoint inside a stage stays. Events and report: about a histogram each."""
        stages = len(config.stages) + 1 if config.keep_stages == "all" else min(len(config.stages) + 1, 3)
        return stages * self.boundary + self.inside + self.model + (len(config.stages) + 1) * self.histograms

    def at_most(self, config: RunConfig) -> int:
        """At the end of the last stage: two checkpoints inside it lie there, with the best weights so far."""
        best = 0 if config.patience is None else 2 * self.model
        return self.at_the_end(config) + self.inside + best


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _size(model: nn.Module) -> int:
    return sum(_bytes(parameter) for parameter in model.parameters())


def in_time(seconds: float) -> str:
    """A length of time with two digits or so: "1.3 ms", "40 s", "12 min", "5.2 h", "3 days"."""
    for size, unit in ((86400.0, "days"), (3600.0, "h"), (60.0, "min"), (1.0, "s"), (1e-3, "ms")):
        if seconds >= (2 if unit in ("days", "min") else 1) * size or unit == "ms":
            number = seconds / size
            return f"{number:,.0f} {unit}" if number >= 10 else f"{number:.2g} {unit}"
    raise AssertionError


def in_bytes(count: float) -> str:
    """A size with two digits or so: "410 kB", "12 MB", "1.4 GB"."""
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= size or unit == "kB":
            number = count / size
            return f"{number:,.0f} {unit}" if number >= 10 else f"{number:.2g} {unit}"
    raise AssertionError


# ---- in a process of its own


class Asking:
    """An estimate that is made in a process of its own, at low priority: ``poll`` it, or ``cancel`` it.

    The process ends with its answer, when cancelled or forgotten, after ten minutes, or with this one.
    """

    def __init__(self, config: RunConfig) -> None:
        self._begun = time.monotonic()
        self._answer: Estimate | str | None = None
        self._process = subprocess.Popen(
            [*module_command("estimate"), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=module_environment(),
        )
        self._end = weakref.finalize(self, _end, self._process)
        assert self._process.stdin is not None
        with contextlib.suppress(OSError), self._process.stdin as stdin:
            stdin.write(config.model_dump_json().encode())

    def poll(self) -> Estimate | str | None:
        """The estimate; a sentence on why there is none; None while it is being made."""
        if self._answer is None and self._process.poll() is not None:
            assert self._process.stdout is not None
            self._answer = _read(self._process.stdout.read(), self._process.returncode)
            self._end()
        elif self._answer is None and time.monotonic() - self._begun > LONGEST_WAIT:
            self._answer = "No estimate: it took more than ten minutes to load model and data and to train some steps."
            self._end()
        return self._answer

    def cancel(self) -> None:
        """End the process, if it still runs."""
        if self._answer is None:
            self._answer = "No estimate: it was cancelled."
        self._end()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _read(output: bytes, code: int) -> Estimate | str:
    """What the process printed last."""
    try:
        said = json.loads(output.splitlines()[-1])
        if "problem" in said:
            return str(said["problem"])
        return Estimate(**{**said["estimate"], "warnings": tuple(said["estimate"]["warnings"])})
    except (ValueError, KeyError, TypeError, IndexError):
        return f"No estimate: its process ended with code {code}, perhaps for lack of memory. Lower the batch size."


def main() -> None:
    """Configuration as JSON on standard input, estimate or problem as JSON on standard output."""
    _own_process()
    try:
        config = RunConfig.model_validate_json(sys.stdin.read())
        answer: dict[str, Any] = {"estimate": dataclasses.asdict(estimate(config))}
    except Exception as error:  # of many libraries; whoever asked wants a sentence
        text = " ".join(str(error).split())[:LONGEST]
        known = isinstance(error, ValueError | RuntimeError) and text
        answer = {"problem": text if known else f"{type(error).__name__}: {text}. Try other settings."}
    sys.stdout.write(json.dumps(answer) + "\n")


def _own_process() -> None:
    """Be humble, and end with whoever asked."""
    psutil.Process().nice(getattr(psutil, "BELOW_NORMAL_PRIORITY_CLASS", 10))  # Windows has names for it
    asker = int(sys.argv[1]) if len(sys.argv) > 1 else os.getppid()
    end_with(asker)


if __name__ == "__main__":
    main()
