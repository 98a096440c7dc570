"""Training under masks: one epoch, one evaluation, the learning-rate plan. Devices and precision by accelerate."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from randprune_lab import ranks
from randprune_lab.config import RunConfig
from randprune_lab.distill import (
    Features,
    Shares,
    Teacher,
    all_logits,
    counts,
    features,
    loss_terms,
    total,
    wanted,
)
from randprune_lab.events import Score
from randprune_lab.hooks import Hook
from randprune_lab.masks import Masks
from randprune_lab.metrics import measure, task_loss
from randprune_lab.sampling import seed_of
from randprune_lab.splits import Batch, Split, Task, Tokens

if TYPE_CHECKING:
    import accelerate

LOSS_EVERY = 50  # steps between looks at the loss: each costs a GPU a stop
POOL = 50  # batches among which texts of like length are put together


class OutOfMemory(RuntimeError):  # noqa: N818, what happened, not a fault of the program
    """There was not enough memory; the text names the settings to lower."""


@contextlib.contextmanager
def telling_of_memory(config: RunConfig | None = None) -> Iterator[None]:
    """Inside, an allocation that fails, on a GPU or on the CPU, raises ``OutOfMemory`` with advice for a run.

    On Ray a wave is of no use: each candidate has a worker of its own.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_of_memory(error):
            raise
        smaller = "a smaller wave (--wave 1 trains one candidate at a time, with the same results)"
        if config is not None and config.executor == "ray" and config.compares:
            smaller = (
                "a larger ray_gpus (--ray-gpus 1: none shares its GPU), or fewer candidates at once (--executor "
                "serial: one at a time, here), with the same results"
            )
        raise OutOfMemory(
            f"out of memory ({str(error).split(chr(10))[0] or 'no more to be had'}). Resume with {smaller}; if that is "
            "not enough, start again with a smaller batch_size or max_length, or hidden_weight = attention_weight = 0."
        ) from error


def is_of_memory(error: BaseException) -> bool:
    """What torch says when an allocation fails."""
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(word in str(error) for word in words)


class Diverged(RuntimeError):  # noqa: N818, what happened, not a fault of the program
    """The loss became NaN or infinite; the text names phase, step and learning rate."""


def start_accelerator(config: RunConfig) -> accelerate.Accelerator:
    """Device and precision of a run. accelerate keeps them for the whole process: they are forgotten first.

    Where several processes were launched they find one another, once; their connection stays from run to run.

    Raises:
        ValueError: the device is not here, or not all of the processes have found one another.
    """
    import accelerate
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    if config.deterministic:  # without it cuBLAS refuses to work; it is read at its first call
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if config.device in ("cuda", "mps") and not getattr(torch, config.device).is_available():
        raise ValueError(f"device = {config.device!r}: not available here. Pass cpu or auto.")
    one_of_many = "LOCAL_RANK" in os.environ
    if one_of_many:
        # What these functions default to is the connection that there is when they are imported, as the first optimizer
        # does. Held by them it outlives ranks.end, and its threads may abort a process that ends.
        from torch.distributed.nn import functional  # noqa: F401
    on_cpu = config.device == "cpu" or (one_of_many and config.device == "auto" and not torch.cuda.is_available())
    accelerator = accelerate.Accelerator(cpu=on_cpu, mixed_precision=config.precision)
    if accelerator.device.type == "cpu":
        accelerator.state.device = torch.device("cpu")  # of several processes it says cpu:0
    launched = int(os.environ.get("WORLD_SIZE", 1)) if one_of_many else 1
    if accelerator.num_processes < launched:
        raise ValueError(f"device = {config.device!r}: {launched} processes cannot work together there. Pass cpu.")
    if accelerator.num_processes == 1 and not one_of_many and _meant_several():
        raise ValueError(
            "accelerate launch starts several processes on CPUs only over MPI, and has started one. Use torchrun: "
            "torchrun --nproc-per-node 2 -m randprune_lab run --device cpu"
        )
    return accelerator


def _meant_several() -> bool:
    """``accelerate launch --cpu --num_processes 2`` leaves this behind in the one process that it starts."""
    return os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true" and "MASTER_PORT" in os.environ


@contextlib.contextmanager
def using_threads(count: int) -> Iterator[None]:
    """So many CPU threads of torch inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclasses.dataclass
class Session:
    """What every phase of a run shares.

    ``prunable``: the names of the parameters to prune. ``hooks``: what the run's method does in a phase, too.
    """

    config: RunConfig
    task: Task
    model: nn.Module
    accelerator: accelerate.Accelerator
    teacher: Teacher | None = None
    prunable: tuple[str, ...] = ()
    hooks: Callable[[Phase], Sequence[Hook]] = lambda _: ()

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch of fine-tuning; the last batch may be smaller."""
        return self.steps_of("fine-tuning")

    def rows_of(self, phase: str) -> int:
        """The rows of train that a phase learns from: the dense network sees only the data set's own."""
        return self.task.original or len(self.task.train) if phase == "dense" else len(self.task.train)

    def steps_of(self, phase: str) -> int:
        """Optimizer steps of an epoch of a phase."""
        all_rows = math.ceil(self.rows_of(phase) / self.config.batch_size)
        most = self.config.max_steps_per_epoch
        if phase == "emep":
            most = self.config.emep_steps or most
        return min(all_rows, most or all_rows)

    def evaluate(self, split: Split, model: nn.Module | None = None) -> Score:
        """The task's metrics and mean loss on a split."""
        rows = len(split)
        with self.accelerator.autocast():
            logits = ranks.gathered(all_logits(model or self.model, split.inputs, rows=ranks.dealt(rows)), rows)
        labels = split.labels.to(logits.device)
        others = {name: measure(name, logits, labels) for name in self.task.others}
        return Score(measure(self.task.metric, logits, labels), float(task_loss(logits, labels)), others)

    def report(self) -> Score:
        """On the test split; what there is besides it stands among ``others``."""
        score = self.evaluate(self.task.test)
        for name, split in self.task.also.items():
            more = self.evaluate(split)
            others = {self.task.metric: more.metric, **more.others}
            named = {f"{name} {metric}": value for metric, value in others.items()}
            score = dataclasses.replace(score, others=score.others | named)
        return score

    @property
    def deciding_split(self) -> Split:
        """The split that patience and MCSS look at."""
        return self.task.test if self.config.select_on == "validation" else self.task.selection


class Phase:
    """A stretch of training with one fresh AdamW: the dense network, a candidate's EMEP, or a stage's fine-tuning.

    Batch order is a function of (seed, stage, name, epoch), dropout of (seed, stage, name, step). The candidate is left
    out on purpose: all of a stage see the same. After every step every weight outside the masks is exactly 0, and so
    are the optimizer's moments, lest momentum revive it.
    """

    def __init__(
        self,
        session: Session,
        name: str,
        stage: int,
        masks: Masks,
        learning_rate: Callable[[int], float],
        model: nn.Module | None = None,
    ) -> None:
        self.session, self.name, self.stage, self.learning_rate = session, name, stage, learning_rate
        self.model = session.model if model is None else model
        self.failed: str | None = None
        self.terms: dict[str, list[Tensor]] = {}
        self.losses: list[Tensor] = []
        self.parameters = dict(self.model.named_parameters())
        self.masks = dict(masks)  # a method may move them
        self.factors: dict[str, tuple[Tensor, Tensor]] = {}
        self.hooks = list(session.hooks(self))
        self.label_smoothing = session.config.label_smoothing if name == "fine-tuning" else 0.0
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=learning_rate(0), weight_decay=session.config.weight_decay, fused=True
        )
        self._mask()

    def epoch(self, number: int) -> float:
        """Train epoch ``number`` (from 0); the mean loss of its batches.

        Raises:
            Diverged: the loss became NaN or infinite.
        """
        train_epoch(self.session, self.name, self.stage, number, [self])
        if self.failed is not None:
            raise Diverged(self.failed)
        for hook in self.hooks:
            hook.epoch_over()
        return float(torch.stack(self.losses).mean())

    def mean_terms(self) -> dict[str, float]:
        """The mean of each part of the loss over the last epoch, before its weight."""
        return {name: float(torch.stack(values).mean()) for name, values in self.terms.items()}

    def step(
        self, step: int, batch: Batch, labels: Tensor, taught: Features | None, shares: Shares | None = None
    ) -> None:
        """One optimizer step, number ``step`` of the phase; ``shares``: of the whole batch, where this is but a part.

        Several ranks draw the same random numbers in the hooks, and each its own in the network.
        """
        session, config, device = self.session, self.session.config, self.session.accelerator.device
        rate = self.learning_rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        seed_dropout(seed_of(config.seed, self.stage, self.name, step), device)
        with contextlib.ExitStack() as around:
            for hook in self.hooks:
                around.enter_context(hook.forward(step))
            if ranks.rank():
                seed_dropout(seed_of(config.seed, self.stage, self.name, step, "rank", ranks.rank()), device)
            with session.accelerator.autocast():
                seen = features(self.model, batch, **wanted(config)) if taught else features(self.model, batch)
                terms = loss_terms(
                    seen, taught, batch, labels, config, label_smoothing=self.label_smoothing, shares=shares
                )
                loss = total(terms, config, dense=self.name == "dense")
            session.accelerator.backward(loss)
        loss, *parts = ranks.add_up(self.parameters.values(), [loss, *terms.values()])
        terms = dict(zip(terms, parts, strict=True))
        for hook in self.hooks:
            hook.backward(step)
            terms |= hook.terms()
        self.optimizer.step()
        self.optimizer.zero_grad()  # at once: candidates in lockstep need not keep their gradients
        self._mask()
        self.losses.append(loss.detach())
        for name, term in terms.items():
            self.terms.setdefault(name, []).append(term.detach())

    @torch.no_grad()
    def _mask(self) -> None:
        """Zero what lies outside the masks. A layer that is frozen or unused has no moments."""
        tensors: list[Tensor] = []
        factors: list[Tensor] = []
        for name, mask in self.masks.items():
            parameter = self.parameters[name]
            if name not in self.factors or self.factors[name][0] is not mask:  # it is new
                self.factors[name] = mask, mask.to(parameter.dtype)
            state = self.optimizer.state.get(parameter, {})
            moments = [state[moment] for moment in ("exp_avg", "exp_avg_sq") if moment in state]
            tensors += [parameter, *moments]
            factors += [self.factors[name][1]] * (1 + len(moments))
        if tensors:
            torch._foreach_mul_(tensors, factors)

    def score(self, step: int) -> Score:
        """On the deciding split, after step ``step`` (from 0).

        Raises:
            Diverged: the last step ruined the weights; the loss of training has not seen that.
        """
        with contextlib.ExitStack() as around:
            for hook in self.hooks:
                around.enter_context(hook.scoring())
            score = self.session.evaluate(self.session.deciding_split, self.model)
        if not math.isfinite(score.loss):
            raise self._diverged(step)
        return score

    def check(self, step: int) -> None:
        """Look at the losses so far, of which that of ``step`` is the last.

        Raises:
            Diverged: one is NaN or infinite.
        """
        finite = torch.isfinite(torch.stack(self.losses)).tolist()
        if not all(finite):
            raise self._diverged(step - len(finite) + 1 + finite.index(False))

    def _diverged(self, step: int) -> Diverged:
        where = f"in {self.name} of stage {self.stage}" if self.stage else "while the dense network trained,"
        fix = " or use precision='no'" if self.session.config.precision != "no" else ""
        return Diverged(
            f"the loss became NaN or infinite {where} at step {step}, learning rate {self.learning_rate(step):g}. "
            f"Lower the learning rate{fix}."
        )

    def finish(self) -> None:
        """The last epoch was trained: an ordinary network is left."""
        for hook in self.hooks:
            hook.finish()

    def taken(self) -> list[str]:
        """What the hooks have to say since they were last asked."""
        said = [sentence for hook in self.hooks for sentence in hook.said]
        for hook in self.hooks:
            hook.said.clear()
        return said

    def state(self) -> dict[str, Tensor]:
        """The optimizer's tensors, "NAME.KEY", and those of each hook, "*NUMBER.KEY"."""
        moments = {
            f"{name}.{key}": value
            for name, parameter in self.parameters.items()
            for key, value in self.optimizer.state[parameter].items()
        }
        return moments | {
            f"*{number}.{key}": value for number, hook in enumerate(self.hooks) for key, value in hook.state().items()
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on with what ``state`` gave."""
        for number, hook in enumerate(self.hooks):
            own = f"*{number}."
            part = {label.removeprefix(own): value for label, value in state.items() if label.startswith(own)}
            if part:
                hook.load_state(part)
        for label, value in state.items():
            if label.startswith("*"):
                continue
            name, key = label.rsplit(".", 1)
            parameter = self.parameters[name]
            place = "cpu" if key == "step" and parameter.device.type == "cpu" else parameter.device
            self.optimizer.state[parameter][key] = value.clone().to(place)


_asked_to_stop: contextvars.ContextVar[Callable[[], bool]] = contextvars.ContextVar("stop", default=lambda: False)


class Stopped(Exception):  # noqa: N818, what happened, not a fault of the program
    """Training has ended early because it was asked to."""


@contextlib.contextmanager
def stopping_when(asked: Callable[[], bool]) -> Iterator[None]:
    """Training inside asks before each step whether it is to stop, and then raises ``Stopped``."""
    before = _asked_to_stop.set(asked)
    try:
        yield
    finally:
        _asked_to_stop.reset(before)


def train_epoch(session: Session, name: str, stage: int, number: int, phases: Iterable[Phase]) -> list[Phase]:
    """``train_steps`` over epoch ``number`` (from 0)."""
    steps = session.steps_of(name)
    return train_steps(session, name, stage, range(number * steps, (number + 1) * steps), phases)


def train_steps(session: Session, name: str, stage: int, steps: range, phases: Iterable[Phase]) -> list[Phase]:
    """Train phases of one name and stage in lockstep: the same batches in the same order, the teacher once for all.

    ``steps`` counts from the first step of the phase over all its epochs, of which it may begin or end in the middle.
    ``phases`` may make them one by one, each when the one before has done its first step. One whose loss diverges is
    left behind, and has ``failed``. What each comes to does not depend on which others are there, nor on how its steps
    are divided among calls. Returns all of them.
    """
    joined: list[Phase] = []
    device, stop = session.accelerator.device, _asked_to_stop.get()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for step, rows in zip(steps, _rows_of(session, name, stage, steps), strict=True):
            if stop():
                raise Stopped(f"stopped before step {step} of {name}")
            mine = ranks.share(rows)
            batch, labels = session.task.train.batch(mine)
            taught = None
            if session.teacher is not None and name != "dense":
                with session.accelerator.autocast():
                    taught = session.teacher.features(batch, mine)
            shares = None
            if ranks.number() > 1:
                shares = Shares.of(ranks.weights(counts(batch, labels, taught, session.config), len(rows)))
            first = step == steps[0]
            for phase in phases if first else [phase for phase in joined if phase.failed is None]:
                if first:
                    phase.losses, phase.terms = [], {}
                    phase.model.train()
                    joined.append(phase)
                phase.step(step, batch, labels, taught, shares)
                if step % LOSS_EVERY == 0 or step == steps[-1]:
                    try:
                        phase.check(step)
                    except Diverged as error:
                        phase.failed = str(error)  # not the error itself: it would keep all of this in memory
            if all(phase.failed for phase in joined):
                break
    return joined


def _rows_of(session: Session, name: str, stage: int, steps: range) -> Iterator[Tensor]:
    """Row numbers of the batch of each of ``steps``."""
    an_epoch = session.steps_of(name)
    for epoch in range(steps.start // an_epoch, math.ceil(steps.stop / an_epoch)):
        first = epoch * an_epoch
        batches = _batches(session, name, stage, epoch)
        yield from itertools.islice(batches, max(steps.start - first, 0), min(steps.stop - first, an_epoch))


def _batches(session: Session, name: str, stage: int, epoch: int) -> Iterator[Tensor]:
    """Row numbers of an epoch's batches, where the labels are."""
    config, train = session.config, session.task.train
    generator = torch.Generator().manual_seed(seed_of(config.seed, stage, name, "order", epoch))
    order = torch.randperm(session.rows_of(name), generator=generator)
    if isinstance(train.inputs, Tokens):
        batches = grouped(order, train.inputs.lengths, config.batch_size, generator)
    else:
        batches = list(torch.split(order.to(train.labels.device), config.batch_size))
    yield from batches[: session.steps_of(name)]


def grouped(order: Tensor, lengths: Tensor, batch_size: int, generator: torch.Generator) -> list[Tensor]:
    """Rows in ``order``, those of like length together, in batches whose order is random again.

    Less padding, still nearly random: within every ``POOL`` batches the rows are sorted by length.
    """
    pools = [pool[lengths[pool].argsort(stable=True)] for pool in torch.split(order, POOL * batch_size)]
    batches = [batch for pool in pools for batch in torch.split(pool, batch_size)]
    return [batches[place] for place in torch.randperm(len(batches), generator=generator)]


def seed_dropout(seed: int, device: torch.device) -> None:
    """Seed the ambient random state of the CPU and of ``device``."""
    torch.default_generator.manual_seed(seed)  # a hundred times cheaper than torch.manual_seed
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def fine_tuning_rate(config: RunConfig, stage: int, steps_per_epoch: int) -> Callable[[int], float]:
    """The learning rate of each step of a stage's fine-tuning.

    One plan over all stages: linear warm-up over the first tenth of all planned steps, then constant; in the last stage
    linear to 0.
    """
    a_stage = config.max_epochs * steps_per_epoch
    warm_up = 0.1 * a_stage * len(config.stages)

    def rate(step: int) -> float:
        factor = min(1.0, ((stage - 1) * a_stage + step + 1) / warm_up)
        if stage == len(config.stages):
            factor *= 1 - step / a_stage
        return float(config.learning_rate * factor)

    return rate
