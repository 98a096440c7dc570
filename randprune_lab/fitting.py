"""Do settings, model and data fit one another? Whatever would only show after hours of training is looked at first."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from randprune_lab.checks import keep_count
from randprune_lab.config import AT_START, FREE, OBJECT, RunConfig
from randprune_lab.criteria import CRITERIA, Scene
from randprune_lab.distill import features, loss_terms, wanted
from randprune_lab.events import Checkpoint
from randprune_lab.masks import samples_of, tensor_sparsities
from randprune_lab.methods import METHODS
from randprune_lab.models import build_model, is_transformer
from randprune_lab.patterns import Pattern, check_stages_fit, check_tensor
from randprune_lab.pretrained import TINY, is_pretrained, load_tokenizer
from randprune_lab.sampling import seed_of
from randprune_lab.smoothing import SoftActivations, hidden_layers, soft_skips
from randprune_lab.splits import Split, Task, Tokens
from randprune_lab.training import Session, is_of_memory
from randprune_lab.zero import zero_initialize


def check_own(config: RunConfig, own: Mapping[str, Any], resume: Checkpoint | None) -> None:
    """What the configuration says is given from Python is given, and the criterion is one that the method asks.

    Raises:
        ValueError: one is missing, or will not do.
    """
    for name, thing in own.items():
        if getattr(config, name) == OBJECT and thing is None:
            how = f"prune(config, {'data' if name == 'task' else name}=..."
            raise ValueError(
                f"{name} = {OBJECT!r} stands for one that is given from Python: pass it, {how})."
                if resume is None
                else f"this run was started from Python with its own {name}: resume it there, {how}, resume=...)."
            )
    criterion = own.get("criterion")
    if criterion is not None and not callable(criterion):
        raise ValueError(
            f"criterion is a {type(criterion).__name__}: must be a function (weights, model, task) -> scores."
        )
    if criterion is not None and config.at_start:
        raise ValueError(
            f"criterion with method = {config.method!r}: the method scores by {AT_START[config.method]!r}. For "
            "your own before training pass method='imp', dense_epochs=0, logit_weight=0."
        )


def check_same_run(config: RunConfig, resume: Checkpoint | None) -> None:
    """A run goes on with the configuration that it began with; where and how fast is free.

    Raises:
        ValueError: the checkpoint is of another run.
    """
    ours = config.model_dump(mode="json", exclude=set(FREE))
    theirs = resume.config if resume is not None and resume.config is not None else ours
    other = [name for name in ours if name in theirs and theirs[name] != ours[name]]
    if other:
        raise ValueError(
            f"the checkpoint is of a run with another {', '.join(other)}. Resume with that run's own configuration."
        )


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


def initialize(network: nn.Module, config: RunConfig) -> None:
    """Give the weights their first values, where the configuration asks for others than the network was built with.

    Raises:
        ValueError: they would replace what was learned elsewhere.
    """
    if config.initialization == "default":
        return
    if is_transformer(config.model) and config.model not in TINY and config.model != OBJECT:
        raise ValueError(
            f"initialization = {config.initialization!r}: {config.model} comes with trained weights, which would be "
            "lost. Pass initialization='default', or a model that starts anew, such as tiny-bert."
        )
    zero_initialize(network)


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
    """Where judging takes a stated part of an epoch, an epoch must be as long as stated; a race needs some steps."""
    config, steps = session.config, session.steps_of("fine-tuning")
    if len(METHODS[config.method].candidates(config)) > 1:
        config.rounds(session.steps_of("emep") * config.emep_epochs)
    if config.emep_steps and config.max_steps_per_epoch != steps:
        raise ValueError(
            f"max_steps_per_epoch = {config.max_steps_per_epoch}: an epoch has only {steps} steps, and with emep_steps "
            f"the matched control must know. Pass {steps} or less."
        )


def check_schedule(config: RunConfig, model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """No stage may empty a tensor (layer scope) or everything (global scope), or draw more than can be drawn."""
    shapes: dict[str, tuple[int, ...]] = {name: tuple(weight.shape) for name, weight in weights.items()}
    if config.scope == "global":
        shapes = {"the whole model": (sum(math.prod(shape) for shape in shapes.values()),)}
    pattern = Pattern.of(config.pattern)
    if pattern is not None:
        check_stages_fit(config.stages, pattern)
        turned = [name for name, module in model.named_modules() if type(module).__name__ == "Conv1D"]  # GPT-2's
        if turned:
            raise ValueError(
                f"pattern = {config.pattern!r}: {turned[0]} holds its weight as inputs x outputs, and a pattern runs "
                "along the inputs. Pass pattern='unstructured', or a model with linear layers."
            )
    for sparsity in config.stages:
        for name, share in tensor_sparsities(shapes, sparsity, config).items():
            size = math.prod(shapes[name])
            samples_of(size, share, config)
            if pattern is not None:
                check_tensor(name, shapes[name], share, pattern)
            elif keep_count(size, share) == 0:
                raise ValueError(
                    f"stages end at {config.stages[-1]}: nothing of {name} ({size} weights) would be kept. "
                    f"End at {1 - 1 / size:.4f} or less, or leave it out with exclude."
                )


def check_method(session: Session) -> None:
    """The model can take what the method, the criterion and the smoothing do to it: tried on a few examples.

    Raises:
        ValueError: it cannot, and what could be used instead.
    """
    config, model, task = session.config, session.model, session.task
    inputs = task.train.inputs
    if task.regression and config.label_smoothing:
        raise ValueError(
            f"label_smoothing = {config.label_smoothing}: a regression has no classes to spread a label over. Pass 0."
        )
    if config.method == "learned-mask" and not config.dense_epochs:
        raise ValueError(
            "method = 'learned-mask' with dense_epochs = 0: the mask is learned while the dense network trains. Pass "
            "dense_epochs, or method='imp', criterion='learned-mask', which learns it beside a trained network."
        )
    if config.soft_activations:
        _check_relus(session)
    if config.soft_skips:
        _check_skips(session)
    if config.criterion == "synflow" and not (isinstance(inputs, Tensor) and inputs.is_floating_point()):
        raise ValueError(
            f"synflow: {type(model).__name__} takes texts or a transformer's pictures, not one tensor that could be "
            "all ones, and attention is no product of weights. Pass method or criterion 'snip' instead."
        )
    if config.criterion in ("grasp", "snip", "taylor", "synflow"):
        _check_criterion(session)


def _check_relus(session: Session) -> None:
    batch, _ = session.task.train.batch(torch.arange(min(2, len(session.task.train))))
    with torch.no_grad(), SoftActivations(0.0) as seen:
        features(session.model.eval(), batch)
    if not seen.found:
        raise ValueError(
            f"soft_activations: {type(session.model).__name__} uses no ReLU, so there is nothing to soften. Leave it "
            "out; label_smoothing works with every classifier."
        )


def _check_skips(session: Session) -> None:
    """Two examples go through the network with its skips."""
    model, batch = session.model, session.task.train.inputs[torch.arange(min(2, len(session.task.train)))]
    fix = "Leave it out; label_smoothing works with every classifier."
    if is_pretrained(model) or not isinstance(batch, Tensor) or not hidden_layers(model):
        what = "has skips of its own" if is_pretrained(model) else "has no hidden linear or convolutional layer"
        raise ValueError(f"soft_skips: {type(model).__name__} {what}. {fix}")
    try:
        with torch.no_grad(), soft_skips(model.eval(), 1.0):
            model(batch)
    except (RuntimeError, IndexError) as error:
        if is_of_memory(error):
            raise
        why = str(error).splitlines()[0]
        raise ValueError(
            f"soft_skips: a hidden layer of {type(model).__name__} cannot have one ({why}). {fix}"
        ) from error


def _check_criterion(session: Session) -> None:
    """The criterion's derivatives exist: of two examples, on a copy."""
    config, name, device = session.config, session.config.criterion, session.accelerator.device
    few = config.model_copy(update={"batch_size": 2})
    network = copy.deepcopy(session.model).requires_grad_(True)
    weights = {name: network.get_parameter(name) for name in session.prunable}
    alive = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            CRITERIA[name].score(Scene(weights, network, session.task, few, alive))
    except (RuntimeError, NotImplementedError, TypeError) as error:  # the last: no float64 on this device
        if is_of_memory(error):
            raise
        why = (
            "needs second derivatives, which a part of it lacks" if name == "grasp" else "needs gradients of all of it"
        )
        instead = "snip" if name == "grasp" else "magnitude" if config.method not in AT_START else "random"
        eager = "; of a transformer attention_weight > 0 (attn_implementation='eager') helps" if name == "grasp" else ""
        raise ValueError(
            f"{name}: {why} in {type(session.model).__name__} ({str(error).splitlines()[0]}). "
            f"Use {instead} instead{eager}."
        ) from error
