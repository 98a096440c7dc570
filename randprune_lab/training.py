"""Training under masks: one epoch, one evaluation, the learning-rate plan. Devices and precision by accelerate."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator

import accelerate
import torch
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from randprune_lab.config import RunConfig
from randprune_lab.distill import Teacher, all_logits, task_loss
from randprune_lab.events import Score
from randprune_lab.masks import Masks
from randprune_lab.sampling import seed_of
from randprune_lab.tasks import Split, Task

LOSS_EVERY = 50  # steps between looks at the loss: each costs a GPU a stop


class Diverged(RuntimeError):  # noqa: N818, what happened, not a fault of the program
    """The loss became NaN or infinite; the text names phase, step and learning rate."""


def start_accelerator(config: RunConfig) -> accelerate.Accelerator:
    """Device and precision of a run. accelerate keeps them for the whole process: they are forgotten first."""
    AcceleratorState._reset_state(reset_partial_state=True)
    if config.device in ("cuda", "mps") and not getattr(torch, config.device).is_available():
        raise ValueError(f"device = {config.device!r}: not available here. Pass cpu or auto.")
    return accelerate.Accelerator(cpu=config.device == "cpu", mixed_precision=config.precision)


@dataclasses.dataclass
class Session:
    """What every phase of a run shares."""

    config: RunConfig
    task: Task
    model: nn.Module
    accelerator: accelerate.Accelerator
    teacher: Teacher | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps an epoch; the last batch may be smaller."""
        return math.ceil(len(self.task.train) / self.config.batch_size)

    def evaluate(self, split: Split) -> Score:
        """Accuracy and mean cross-entropy on a split."""
        with self.accelerator.autocast():
            logits = all_logits(self.model, split.inputs)
        accuracy = float((logits.argmax(dim=1) == split.labels).double().mean())
        return Score(accuracy, float(task_loss(logits, split.labels)))

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
        self, session: Session, name: str, stage: int, masks: Masks, learning_rate: Callable[[int], float]
    ) -> None:
        self.session, self.name, self.stage, self.learning_rate = session, name, stage, learning_rate
        self.parameters = dict(session.model.named_parameters())
        self.pruned: list[Tensor] = [self.parameters[name] for name in masks]
        self.factors = [mask.to(parameter.dtype) for mask, parameter in zip(masks.values(), self.pruned, strict=True)]
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=learning_rate(0), weight_decay=session.config.weight_decay, fused=True
        )
        self._mask()

    def epoch(self, number: int) -> float:
        """Train epoch ``number`` (from 0); the mean loss of its batches.

        Raises:
            Diverged: the loss became NaN or infinite.
        """
        session = self.session
        session.model.train()
        losses: list[Tensor] = []
        with torch.random.fork_rng():
            for at, rows in enumerate(self._batches(number)):
                step = number * session.steps_per_epoch + at
                rate = self.learning_rate(step)
                for group in self.optimizer.param_groups:
                    group["lr"] = rate
                _seed_dropout(seed_of(session.config.seed, self.stage, self.name, step), session.accelerator.device)
                losses.append(self._step(rows))
                if step % LOSS_EVERY == 0:
                    self._check(losses, step)
        self._check(losses, (number + 1) * session.steps_per_epoch - 1)
        return float(torch.stack(losses).mean())

    def _step(self, rows: Tensor) -> Tensor:
        session, config = self.session, self.session.config
        with session.accelerator.autocast():
            logits = session.model(session.task.train.inputs[rows])
            loss = task_loss(logits, session.task.train.labels[rows])
            if self.name != "dense":
                loss = config.task_weight * loss
            if session.teacher is not None:
                loss = loss + session.teacher.loss(logits.float(), rows, config)
        self.optimizer.zero_grad()
        session.accelerator.backward(loss)
        self.optimizer.step()
        self._mask()
        return loss.detach()

    @torch.no_grad()
    def _mask(self) -> None:
        """Zero what lies outside the masks. A layer that is frozen or unused has no moments."""
        tensors, factors = list(self.pruned), list(self.factors)
        for parameter, factor in zip(self.pruned, self.factors, strict=True):
            for moment in ("exp_avg", "exp_avg_sq"):
                if moment in self.optimizer.state.get(parameter, {}):
                    tensors.append(self.optimizer.state[parameter][moment])
                    factors.append(factor)
        if tensors:
            torch._foreach_mul_(tensors, factors)

    def score(self, epoch: int) -> Score:
        """On the deciding split, after epoch ``epoch`` (from 0).

        Raises:
            Diverged: the last step ruined the weights; the loss of training has not seen that.
        """
        score = self.session.evaluate(self.session.deciding_split)
        if not math.isfinite(score.loss):
            raise self._diverged((epoch + 1) * self.session.steps_per_epoch - 1)
        return score

    def _batches(self, epoch: int) -> Iterator[Tensor]:
        config, train = self.session.config, self.session.task.train
        seed = seed_of(config.seed, self.stage, self.name, "order", epoch)
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed)).to(train.labels.device)
        yield from torch.split(order, config.batch_size)

    def _check(self, losses: list[Tensor], step: int) -> None:
        finite = torch.isfinite(torch.stack(losses)).tolist()
        if not all(finite):
            first = step - len(finite) + 1 + finite.index(False)
            raise self._diverged(first)

    def _diverged(self, step: int) -> Diverged:
        return Diverged(
            f"the loss became NaN or infinite in {self.name} of stage {self.stage} at step {step}, learning rate "
            f"{self.learning_rate(step):g}. Lower the learning rate, or use precision='no'."
        )

    def state(self) -> dict[str, Tensor]:
        """The optimizer's tensors, "NAME.KEY"."""
        return {
            f"{name}.{key}": value
            for name, parameter in self.parameters.items()
            for key, value in self.optimizer.state[parameter].items()
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on with what ``state`` gave."""
        for label, value in state.items():
            name, key = label.rsplit(".", 1)
            parameter = self.parameters[name]
            place = "cpu" if key == "step" and parameter.device.type == "cpu" else parameter.device
            self.optimizer.state[parameter][key] = value.clone().to(place)


def _seed_dropout(seed: int, device: torch.device) -> None:
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
