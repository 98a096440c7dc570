"""What a pruned network learns from its teacher, the dense network: soft logits, hidden states, attention scores.

The terms are those of TinyBERT (Jiao et al. 2020, Eqs. 7 to 11) and of SparseBERT, which arXiv 2310.13183 follows: mean
squared errors of hidden states and of attention scores before the softmax, summed over the blocks.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812, its usual name
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from randprune_lab.config import RunConfig
from randprune_lab.metrics import task_loss
from randprune_lab.splits import Batch, Images, Tokens, send

EAGER = "load it with attn_implementation='eager'"


class Features(NamedTuple):
    """What a network says of a batch of B rows.

    Attributes:
        logits: B x classes.
        hidden: of the embeddings and every block, B x tokens x width each, as transformers has them (GPT-2's last one
            comes after its final norm).
        scores: of every block before the softmax, B x heads x tokens x tokens each.
    """

    logits: Tensor
    hidden: tuple[Tensor, ...] = ()
    scores: tuple[Tensor, ...] = ()


class SoftmaxTap(TorchFunctionMode):
    """Sees the attention scores that go into a softmax: transformers returns only what comes out of it."""

    def __init__(self) -> None:
        super().__init__()
        self.scores: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Every torch function that is called inside the ``with`` block comes by here."""
        if func in (F.softmax, torch.softmax, torch.Tensor.softmax) and args and args[0].ndim == 4:
            self.scores.append(args[0])
        return func(*args, **(kwargs or {}))


class Unseen(TorchFunctionMode):
    """Keeps transformers from looking whether anything in a batch is padded: on a GPU the look costs a stop.

    It asks ``mask.all()`` to leave out a mask that hides nothing. Answered with no, the mask stays; the result is the
    same but for rounding.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Every torch function that is called inside the ``with`` block comes by here."""
        if func is torch.Tensor.all and len(args) == 1 and args[0].ndim == 2 and args[0].dtype == torch.bool:
            return torch.tensor(False)  # in main memory: no stop
        return func(*args, **(kwargs or {}))


def features(model: nn.Module, inputs: Batch, *, hidden: bool = False, scores: bool = False) -> Features:
    """One forward pass.

    Raises:
        ValueError: the model does not tell its hidden states, or its attention scores cannot be seen.
    """
    if not isinstance(inputs, dict) and not hidden and not scores:
        answer = model(inputs)
        return Features(getattr(answer, "logits", answer))
    if not isinstance(inputs, dict):
        raise ValueError(
            "hidden_weight and attention_weight are for transformers, this model has no blocks of attention. "
            "Set both to 0."
        )
    tap = SoftmaxTap()
    on_gpu = next(iter(inputs.values())).is_cuda
    with tap if scores else contextlib.nullcontext(), Unseen() if on_gpu else contextlib.nullcontext():
        answer = model(**inputs, **({"output_hidden_states": True} if hidden or scores else {}))
    if not hidden and not scores:
        return Features(answer.logits)
    blocks = len(answer.hidden_states) - 1
    if scores and len(tap.scores) != blocks:
        raise ValueError(
            f"attention_weight: {len(tap.scores)} attention scores could be seen in {blocks} blocks of "
            f"{type(model).__name__}. For a model of your own, {EAGER}; or set attention_weight to 0."
        )
    return Features(answer.logits, answer.hidden_states if hidden else (), tuple(tap.scores))


@dataclasses.dataclass(frozen=True, eq=False)
class Teacher:
    """The frozen network that is learned from: run for every batch, or, where logits are all that is asked for, once.

    Attributes:
        model: in evaluation mode; None where ``logits`` (of every row of the training split) say it all.
    """

    config: RunConfig
    model: nn.Module | None = None
    logits: Tensor | None = None

    def to(self, device: torch.device) -> Teacher:
        """A copy on another device."""
        model = None if self.model is None else copy.deepcopy(self.model).to(device)
        return Teacher(self.config, model, None if self.logits is None else self.logits.to(device))

    @torch.no_grad()
    def features(self, inputs: Batch, rows: Tensor) -> Features:
        """Of the batch ``inputs``, which are the training split's ``rows``."""
        if self.model is None:
            assert self.logits is not None
            return Features(self.logits[send(rows, self.logits.device)])
        return features(self.model, inputs, **wanted(self.config))


def wanted(config: RunConfig) -> dict[str, bool]:
    """Which features the terms of a run's loss are made of."""
    return {"hidden": config.hidden_weight > 0, "scores": config.attention_weight > 0}


def loss_terms(
    student: Features,
    teacher: Features | None,
    inputs: Batch,
    labels: Tensor,
    config: RunConfig,
    *,
    label_smoothing: float = 0.0,
    shares: Shares | None = None,
) -> dict[str, Tensor]:
    """Each part of the loss before its weight, by name: "task", "logits", "hidden", "attention"; only those in use.

    With ``shares`` each is what these rows, a part of a batch, contribute to the mean over all of it.
    """
    terms: dict[str, Tensor] = {}
    if config.task_weight or teacher is None:
        terms["task"] = task_loss(student.logits, labels, label_smoothing)
    if teacher is None:
        return _parts(terms, shares)
    mask = inputs.get("attention_mask") if isinstance(inputs, dict) else None
    if config.logit_weight:
        terms["logits"] = logit_loss(
            student.logits, teacher.logits, config.temperature, regression=labels.is_floating_point()
        )
    if config.hidden_weight:
        pairs = _mapped(student.hidden[1:], teacher.hidden[1:], config)
        pairs = [(student.hidden[0], teacher.hidden[0]), *pairs]
        terms["hidden"] = torch.stack([hidden_loss(ours, theirs, mask) for ours, theirs in pairs]).sum()
    if config.attention_weight:
        pairs = _mapped(student.scores, teacher.scores, config)
        blocks = torch.stack([attention_loss(ours, theirs, mask) for ours, theirs in pairs])
        terms["attention"] = (blocks if shares is None else shares.pairs * blocks).sum()
    return _parts(terms, shares)


def _parts(terms: dict[str, Tensor], shares: Shares | None) -> dict[str, Tensor]:
    """What means over these rows contribute; attention's blocks, each of which has a share of its own, have theirs."""
    if shares is None:
        return terms
    of = {"task": shares.rows, "logits": shares.rows, "hidden": shares.tokens}
    return {name: of[name] * term if name in of else term for name, term in terms.items()}


class Shares(NamedTuple):
    """How much of a batch's means these rows, a part of the batch, make up: numbers in [0, 1].

    Attributes:
        rows: of a mean over rows.
        tokens: of a mean over tokens that are no padding.
        pairs: of a mean over pairs of tokens of which one looks at the other, for each block that is learned.
    """

    rows: Tensor
    tokens: Tensor
    pairs: Tensor

    @classmethod
    def of(cls, values: Tensor) -> Shares:
        """From one vector, in the order of ``counts``."""
        return cls(values[0], values[1], values[2:])


def counts(inputs: Batch, labels: Tensor, teacher: Features | None, config: RunConfig) -> Tensor:
    """What the means of ``loss_terms`` are taken over: rows, tokens, and for each block pairs of tokens; one vector."""
    mask = inputs.get("attention_mask") if isinstance(inputs, dict) else None
    rows = torch.tensor(len(labels), device=labels.device)
    scores = teacher.scores if teacher is not None else ()
    learned = [scores[block - 1] for block in config.layer_map] if scores and config.layer_map else scores
    return torch.stack([rows, rows if mask is None else (mask > 0).sum(), *(_seen(s, mask).sum() for s in learned)])


def total(terms: Mapping[str, Tensor], config: RunConfig, *, dense: bool = False) -> Tensor:
    """The weighted sum; the dense network's own training knows no weight."""
    if dense:
        return terms["task"]
    weights = {
        "task": config.task_weight,
        "logits": config.logit_weight,
        "hidden": config.hidden_weight,
        "attention": config.attention_weight,
    }
    loss: Tensor = sum(weights[name] * term for name, term in terms.items())  # type: ignore[assignment]
    return loss


def logit_loss(student: Tensor, teacher: Tensor, temperature: float, *, regression: bool = False) -> Tensor:
    """KL divergence of the softened answers times temperature squared (Hinton et al. 2015).

    Mean over the rows; logits are B x classes. Of a ``regression`` the mean squared error.
    """
    student, teacher = student.float(), teacher.float()
    if regression:
        return F.mse_loss(student, teacher)
    divergence = F.kl_div(
        F.log_softmax(student / temperature, dim=-1),
        F.log_softmax(teacher / temperature, dim=-1),
        reduction="batchmean",
        log_target=True,
    )
    return temperature**2 * divergence


def hidden_loss(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared difference of hidden states (B x tokens x width) over what is no padding (Jiao et al. 2020, Eq. 8).

    ``mask``: B x tokens, 1 where a token is; None: everywhere.
    """
    _check_alike("hidden_weight", student, teacher)
    valid = None if mask is None else (mask > 0)[:, :, None]
    return _mean_square(student, teacher, valid)


def attention_loss(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared difference of attention scores before the softmax (Jiao et al. 2020, Eq. 7).

    Scores are B x heads x tokens x tokens. Only where a token looks at a token counts: neither padding nor, in a causal
    model, the future.
    """
    _check_alike("attention_weight", student, teacher)
    return _mean_square(student, teacher, _seen(teacher, mask))


def _seen(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Where a token looks at a token."""
    valid = scores > torch.finfo(scores.dtype).min / 2  # what attention must not see was set to the lowest number
    return valid if mask is None else valid & (mask > 0)[:, None, :, None]


def _mean_square(student: Tensor, teacher: Tensor, valid: Tensor | None) -> Tensor:
    if valid is None:
        return F.mse_loss(student.float(), teacher.float())
    # Chosen before squaring: the square of the lowest number is infinite, and its gradient NaN.
    difference = torch.where(valid, student.float() - teacher.float(), 0.0)
    return difference.square().sum() / valid.expand_as(difference).sum()


def _mapped(student: tuple[Tensor, ...], teacher: tuple[Tensor, ...], config: RunConfig) -> list[tuple[Tensor, Tensor]]:
    """Each block of the student with the teacher's that it learns from: one to one, or as ``layer_map`` says."""
    blocks = config.layer_map or tuple(range(1, len(student) + 1))
    if len(blocks) != len(student) or (not config.layer_map and len(teacher) != len(student)):
        raise ValueError(
            f"the student has {len(student)} blocks, the teacher {len(teacher)}, layer_map names "
            f"{len(config.layer_map)}: name one of the teacher's blocks for each of the student's, as --layer-map "
            f"{','.join(str(round((at + 1) * len(teacher) / len(student))) for at in range(len(student)))}."
        )
    if not all(1 <= block <= len(teacher) for block in blocks):
        raise ValueError(f"layer_map = {blocks}: the teacher's blocks are 1 to {len(teacher)}. Name only those.")
    return [(ours, teacher[block - 1]) for ours, block in zip(student, blocks, strict=True)]


def _check_alike(name: str, student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape:
        raise ValueError(
            f"{name}: the student's features have shape {tuple(student.shape)}, the teacher's {tuple(teacher.shape)}. "
            f"Take a teacher of the same width and heads, or set {name} to 0."
        )


@torch.no_grad()
def all_logits(
    model: nn.Module, inputs: Tensor | Tokens | Images, batch_size: int = 1024, *, rows: Tensor | None = None
) -> Tensor:
    """The model's answers to every row, or to ``rows``, in evaluation mode, as float32 where the model is."""
    was_training = model.training
    model.eval()
    if isinstance(inputs, Tokens):
        rows = torch.arange(len(inputs)) if rows is None else rows
        order = inputs.lengths[rows].argsort(descending=True, stable=True)
        batches = torch.split(rows[order], min(batch_size, 128))
        answers = torch.cat([features(model, inputs[batch]).logits.float() for batch in batches])
        logits = torch.empty_like(answers)
        logits[order.to(answers.device)] = answers
    else:
        parts: Sequence[Any] = [slice(at, at + batch_size) for at in range(0, len(inputs), batch_size)]
        if rows is not None:
            parts = torch.split(rows.to(inputs.device), batch_size)
        logits = torch.cat([features(model, inputs[part]).logits.float() for part in parts])
    model.train(was_training)
    return logits
