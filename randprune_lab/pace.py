"""How fast training is: beside transformers' own Trainer, with distillation, and with candidates in lockstep.

Ratios inside one process, of CPU time on a CPU, so that what else the machine does hardly counts.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from randprune_lab.bench import Measurement, bench_device
from randprune_lab.config import RunConfig
from randprune_lab.distill import Teacher
from randprune_lab.masks import Masks, stage_masks
from randprune_lab.models import prunable_weights
from randprune_lab.pretrained import quiet
from randprune_lab.splits import Split, Task, Tokens
from randprune_lab.training import Phase, Session, start_accelerator, train_epoch, using_threads

CANDIDATES = 8
# What is measured: a few layers of a small encoder on a CPU, BERT-base on a GPU.
SMALL = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 512}
SHAPES = {"cpu": (32, 48, 2000), "cuda": (32, 128, 30522)}  # rows a batch, tokens a row, vocabulary


def training_table(*, device: str = "cpu", steps: int = 25, pairs: int = 7, threads: int = 1) -> list[Measurement]:
    """Time training steps of a BERT with random weights under masks of sparsity 0.9375.

    Args:
        device: "cpu" or "cuda".
        steps: optimizer steps of each measured stretch.
        pairs: stretches of each contestant, in alternating order; the median ratio counts.
        threads: CPU threads of torch meanwhile.

    Raises:
        ValueError: there is no such device here.
    """
    where = bench_device(device)
    with using_threads(threads):
        plain, beside = trainer_ratio(where, steps=steps, pairs=pairs)
        lockstep = lockstep_ratio(where, steps=steps)
    return [
        Measurement("step without distillation, masks on", 1e3 * plain, "ms"),
        Measurement("step with distillation, the teacher's part not counted (s)", 1e3 * lockstep.student, "ms"),
        Measurement("teacher's part of a batch (t)", 1e3 * lockstep.teacher, "ms"),
        Measurement("throughput / transformers.Trainer's", beside, "x", ">= 0.97", beside >= 0.97),
        Measurement(f"floor of lockstep, {CANDIDATES} candidates: (8s + t) / (8(s + t))", lockstep.floor, "x"),
        Measurement(
            "lockstep / one after another",
            lockstep.ratio,
            "x",
            f"<= {lockstep.floor + 0.03:.3f}",
            lockstep.ratio <= lockstep.floor + 0.03,
        ),
    ]


@dataclasses.dataclass(frozen=True)
class Lockstep:
    """Seconds of a student's step and of the teacher's forward pass; lockstep's time as a share of serial's."""

    student: float
    teacher: float
    ratio: float

    @property
    def floor(self) -> float:
        """What no lockstep can beat: the teacher once instead of once for each candidate."""
        return (CANDIDATES * self.student + self.teacher) / (CANDIDATES * (self.student + self.teacher))


def trainer_ratio(device: torch.device, *, steps: int = 25, pairs: int = 7) -> tuple[float, float]:
    """Seconds of our step under masks, and our throughput as a multiple of ``transformers.Trainer``'s.

    Same network, rows, batch size and optimizer (fused AdamW, no clipping), no distillation, no evaluation.
    """
    session = bench_session(device, steps, distilled=False)
    masks = bench_masks(session)
    phase = Phase(session, "emep", 1, masks, lambda _: 1e-4)
    ours: list[float] = []
    ratios: list[float] = []
    with _trainer(session, steps, device) as trainer:
        for pair in range(pairs + 1):
            mine = functools.partial(train_epoch, session, "emep", 1, pair, [phase])
            contestants: dict[str, Callable[[], float]] = {
                "ours": functools.partial(_seconds, mine, device, parts=steps),
                "theirs": trainer,
            }
            taken: dict[str, float] = {}
            for name in sorted(contestants, reverse=bool(pair % 2)):
                session.accelerator = start_accelerator(session.config)  # the Trainer leaves none behind
                taken[name] = contestants[name]()
            if pair:  # the first one warms up
                ours.append(taken["ours"])
                ratios.append(taken["theirs"] / taken["ours"])
    return statistics.median(ours), statistics.median(ratios)


def lockstep_ratio(device: torch.device, *, steps: int = 25, rounds: int = 3) -> Lockstep:
    """Eight candidates with all terms of distillation, in lockstep and one after another; steady state."""
    session = bench_session(device, steps, distilled=True)
    phases = [
        Phase(session, "emep", 1, bench_masks(session, number), lambda _: 1e-4, copy.deepcopy(session.model))
        for number in range(CANDIDATES)
    ]

    def teach() -> None:
        assert session.teacher is not None
        for at in range(steps):
            rows = torch.arange(at * session.config.batch_size, (at + 1) * session.config.batch_size)
            batch, _ = session.task.train.batch(rows)
            with session.accelerator.autocast():
                session.teacher.features(batch, rows)

    taken: dict[str, list[float]] = {"together": [], "alone": [], "teacher": []}
    train_epoch(session, "emep", 1, 0, phases)
    for number in range(1, rounds + 1):
        spent = {"together": 0.0, "alone": 0.0}
        for how in sorted(spent, reverse=bool(number % 2)):  # in alternating order
            groups = [phases] if how == "together" else [[phase] for phase in phases]
            for group in groups:
                spent[how] += _seconds(functools.partial(train_epoch, session, "emep", 1, number, group), device)
            taken[how].append(spent[how])
        taken["teacher"].append(_seconds(teach, device))
    ratio = statistics.median(a / b for a, b in zip(taken["together"], taken["alone"], strict=True))
    teacher = statistics.median(taken["teacher"]) / steps
    return Lockstep(statistics.median(taken["alone"]) / CANDIDATES / steps - teacher, teacher, ratio)


def bench_session(device: torch.device, steps: int, *, distilled: bool) -> Session:
    """A BERT with random weights, random texts of one length, and the frozen network that it learns from."""
    from transformers import BertConfig, BertForSequenceClassification

    batch, length, vocabulary = SHAPES[device.type]
    weight = 1.0 if distilled else 0.0
    config = RunConfig(
        stages=(0.9375,),
        batch_size=batch,
        max_steps_per_epoch=steps,
        learning_rate=1e-4,
        hidden_weight=weight,
        attention_weight=weight,
        logit_weight=weight,
        device=device.type,
        precision="bf16" if device.type == "cuda" else "no",
    )
    shape: dict[str, Any] = SMALL if device.type == "cpu" else {}
    settings = BertConfig(vocab_size=vocabulary, **shape)
    settings._attn_implementation = "eager" if distilled else "sdpa"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: nn.Module = BertForSequenceClassification(settings)
    generator = torch.Generator().manual_seed(0)
    rows = batch * steps
    ids = torch.randint(5, vocabulary, (rows * length,), generator=generator, dtype=torch.int32)
    starts = torch.arange(rows + 1) * length
    split = Split(Tokens(ids, starts, 0), torch.randint(0, 2, (rows,), generator=generator)).to(device)
    session = Session(config, Task("bench", split, split, split), model.to(device), start_accelerator(config))
    if distilled:
        session.teacher = Teacher(config, copy.deepcopy(model).eval().requires_grad_(False))
    return session


def bench_masks(session: Session, number: int = 1) -> Masks:
    """Random masks of sparsity 0.9375 for the session's network."""
    weights = prunable_weights(session.model)
    alive = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    return stage_masks(weights, alive, 1, session.config).draw(number)


@contextlib.contextmanager
def _trainer(session: Session, steps: int, device: torch.device) -> Iterator[Callable[[], float]]:
    """A function that trains one epoch by transformers' own Trainer, on a copy of the network and the same rows.

    It returns the seconds of a step; what the Trainer does before its second step is not counted.
    """
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Clock(TrainerCallback):
        def on_step_end(self, args: object, state: Any, control: object, **_: object) -> None:  # noqa: ARG002
            times.append(_now(device))

    times: list[float] = []

    train, batch = session.task.train, session.config.batch_size
    ids: Any = train.inputs
    length = int(ids.lengths[0])
    examples = [
        {"input_ids": ids.ids[row * length : (row + 1) * length].long(), "attention_mask": torch.ones(length).long()}
        | {"labels": train.labels[row]}
        for row in range(len(train))
    ]
    network = copy.deepcopy(session.model)
    options = functools.partial(
        TrainingArguments,
        per_device_train_batch_size=batch,
        max_steps=steps,
        learning_rate=1e-4,
        lr_scheduler_type="constant",
        optim="adamw_torch_fused",
        max_grad_norm=0.0,
        weight_decay=session.config.weight_decay,
        use_cpu=device.type == "cpu",
        bf16=device.type == "cuda",
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
        save_strategy="no",
        dataloader_pin_memory=device.type == "cuda",
    )

    with tempfile.TemporaryDirectory() as folder, quiet():
        arguments = options(output_dir=folder)

        def train_once() -> float:
            times.clear()
            with contextlib.redirect_stdout(io.StringIO()), torch.random.fork_rng():
                Trainer(model=network, args=arguments, train_dataset=examples, callbacks=[Clock()]).train()
            return (times[-1] - times[0]) / (len(times) - 1)

        yield train_once


def _seconds(work: Callable[[], object], device: torch.device, *, parts: int = 1) -> float:
    start = _now(device)
    work()
    return (_now(device) - start) / parts


def _now(device: torch.device) -> float:
    """CPU time of this process, all threads; on a GPU the time when its work is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()
