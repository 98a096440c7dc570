"""Do settings, model and data fit one another? Whatever would only show after hours of training is looked at first."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from randprune_lab.checks import keep_count
from randprune_lab.config import RunConfig
from randprune_lab.distill import features, loss_terms, wanted
from randprune_lab.masks import samples_of
from randprune_lab.models import build_model
from randprune_lab.pretrained import is_pretrained, load_tokenizer
from randprune_lab.sampling import seed_of
from randprune_lab.splits import Split, Task, Tokens
from randprune_lab.training import Session, is_of_memory


def network_for(name: str, task: Task, config: RunConfig, *, trained: bool = False) -> nn.Module:
    """The network that ``name`` names, with a head for the task."""
    return build_model(
        name,
        seed_of(config.seed, "model"),
        outputs=task.classes,
        labels=task.labels,
        regression=task.regression,
        images=not isinstance(task.train.inputs, Tokens),
        eager=config.attention_weight > 0,
        trained=trained,
    )


def prepare(network: nn.Module, tokenizer: Any, config: RunConfig) -> None:
    """What a network of the transformers library must know before it is trained here."""
    if is_pretrained(network):
        settings: Any = network.config
        if tokenizer is not None and settings.pad_token_id is None:
            settings.pad_token_id = tokenizer.pad_token_id  # GPT-2: the answer is read off the last token that is none
        if config.attention_weight and settings._attn_implementation != "eager":
            network.set_attn_implementation("eager")  # type: ignore[operator]


def check_fit(session: Session) -> None:
    """A forward pass of two examples: data of a wrong shape, or labels that the model does not know, show here."""
    splits = session.task.splits
    _check_alike(splits)
    _check_trainable(session)
    inputs = session.task.train.inputs
    shape = f"examples of shape {tuple(inputs.shape[1:])}" if isinstance(inputs, Tensor) else "these examples"
    rows = torch.arange(min(2, len(inputs)))
    if isinstance(inputs, Tokens):
        _check_vocabulary(session)
        texts: Any = max((split.inputs for split in splits.values()), key=_longest)
        inputs, rows, shape = texts, texts.longest(2), f"texts of {_longest(texts)} tokens"
    try:
        session.model.eval()
        with torch.no_grad():
            logits = features(session.model, inputs[rows], **wanted(session.config)).logits
    except (RuntimeError, TypeError, IndexError, AttributeError) as error:
        if is_of_memory(error):
            raise
        advice = (
            "Lower max_length."
            if isinstance(inputs, Tokens)
            else "Pass data of the shape that its first layer expects."
        )
        raise ValueError(f"the model cannot take {shape} ({error}). {advice}") from error
    if logits.ndim != 2:
        raise ValueError(f"the model gives {tuple(logits.shape)} for 2 examples: must be (2, classes). Adapt its head.")
    if session.task.regression:
        if logits.shape[1] != 1:
            raise ValueError(f"the model has {logits.shape[1]} outputs, a regression needs 1. Adapt its head.")
        return
    for name, split in splits.items():
        low, high = int(split.labels.min()), int(split.labels.max())
        if low < 0 or high >= logits.shape[1]:
            raise ValueError(
                f"labels of {name} run from {low} to {high}, the model has {logits.shape[1]} classes: must lie in "
                f"[0, {logits.shape[1]}). Renumber them, or give the model more outputs."
            )


def _longest(inputs: Any) -> int:
    return int(inputs.lengths.max())


def _check_vocabulary(session: Session) -> None:
    """Every token number is one that the model's embeddings know."""
    model: Any = session.model
    known = model.get_input_embeddings().num_embeddings if is_pretrained(model) else None
    largest = max(int(split.inputs.ids.max()) for split in session.task.splits.values())  # type: ignore[union-attr]
    if known is not None and largest >= known:
        raise ValueError(
            f"the tokenizer gives token number {largest}, the model knows 0 to {known - 1}: they do not belong "
            "together. Pass a folder with the model's own tokenizer."
        )


def _check_alike(splits: dict[str, Split]) -> None:
    """All splits' examples have one shape."""
    shapes = {
        name: split.inputs.shape[1:] if isinstance(split.inputs, Tensor) else type(split.inputs).__name__
        for name, split in splits.items()
    }
    for name, found in shapes.items():
        if found != shapes["train"]:
            raise ValueError(
                f"the splits' examples have shapes {_shape(shapes['train'])} and {_shape(found)}: must be equal. "
                f"Prepare train and {name} alike."
            )
        if splits[name].labels.dtype != splits["train"].labels.dtype:
            raise ValueError(
                f"labels of train have dtype {splits['train'].labels.dtype}, those of {name} "
                f"{splits[name].labels.dtype}: must be equal. Prepare all alike."
            )


def _shape(found: Any) -> Any:
    return found if isinstance(found, str) else tuple(found)


def check_teacher(session: Session, teacher: nn.Module, tokenizer: Any) -> None:
    """A batch of two examples through both networks: a teacher that does not fit shows here, not hours later."""
    name = session.config.teacher
    if tokenizer is not None and load_tokenizer(name).get_vocab() != tokenizer.get_vocab():
        raise ValueError(
            f"teacher = {name!r}: knows other tokens than the model, whose texts it would not understand. Pass a "
            "teacher with the same tokenizer."
        )
    batch, labels = session.task.train.batch(torch.arange(2))
    with torch.no_grad():
        seen, taught = (
            features(network.eval(), batch, **wanted(session.config)) for network in (session.model, teacher)
        )
        loss_terms(seen, taught, batch, labels, session.config)


def _check_trainable(session: Session) -> None:
    """What would only show in the first step of training."""
    if not any(parameter.requires_grad for parameter in session.model.parameters()):
        raise ValueError(
            "every parameter of the model is frozen (requires_grad False): nothing can be trained. Free some."
        )
    train = session.task.train
    if (
        isinstance(train.inputs, Tensor)
        and train.inputs.is_floating_point()
        and not bool(torch.isfinite(train.inputs).all())
    ):
        raise ValueError("the inputs of train hold NaN or infinite numbers: no loss could be finite. Clean the data.")
    normalized = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in session.model.modules())
    if normalized and len(train) % session.config.batch_size == 1:
        raise ValueError(
            f"batch_size = {session.config.batch_size} leaves a last batch of one example out of {len(train)}, which "
            "batch normalization cannot take. Choose another batch_size."
        )


def check_steps(session: Session) -> None:
    """Where judging takes a stated part of an epoch, an epoch must be as long as stated."""
    config, steps = session.config, session.steps_of("fine-tuning")
    if config.emep_steps and config.max_steps_per_epoch != steps:
        raise ValueError(
            f"max_steps_per_epoch = {config.max_steps_per_epoch}: an epoch has only {steps} steps, and with emep_steps "
            f"the matched control must know. Pass {steps} or less."
        )


def check_schedule(config: RunConfig, sizes: dict[str, int]) -> None:
    """No stage may empty a tensor (layer scope) or everything (global scope), or draw more than can be drawn."""
    parts = sizes if config.scope == "layer" else {"the whole model": sum(sizes.values())}
    for name, size in parts.items():
        for sparsity in config.stages:
            samples_of(size, sparsity, config)
        if keep_count(size, config.stages[-1]) == 0:
            raise ValueError(
                f"stages end at {config.stages[-1]}: nothing of {name} ({size} weights) would be kept. "
                f"End at {1 - 1 / size:.4f} or less, or leave it out with exclude."
            )
