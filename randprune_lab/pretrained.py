"""Transformers: networks and tokenizers by Hub id or folder, and the files that let others load them."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

from randprune_lab import sentences, tiny
from randprune_lab.files import reason_of

TINY = {"tiny-bert": tiny.tiny_bert, "tiny-gpt2": tiny.tiny_gpt2, "tiny-vit": tiny.tiny_vit}
TOKENIZER_FILES = ("tokenizer*.json", "tokenizer*.model", "vocab*", "*.model", "*.tiktoken")
UNLIMITED = 1_000_000  # tokens; a tokenizer that says more says nothing
OFFLINE = (
    "Without a network, pass a folder that save_pretrained wrote; tiny-bert, tiny-gpt2 (sentences), mlp, tiny-cnn and "
    "tiny-vit (digits) need none."
)


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model. One without a padding token (GPT-2) pads with its end-of-text token, masked out.

    Raises:
        ValueError: none can be loaded, or it cannot pad.
    """
    if name == "tiny-vit":
        raise ValueError(
            "model = 'tiny-vit': is for images, such as task digits. For texts, pass tiny-bert or tiny-gpt2."
        )
    if name in TINY:
        ours = sentences.tokenizer()
        if name == "tiny-gpt2":
            ours.model_input_names = ["input_ids", "attention_mask"]  # it would take token types for words
        return ours
    folder = Path(name)
    if folder.is_dir() and not any(next(folder.glob(pattern), None) for pattern in TOKENIZER_FILES):
        raise ValueError(  # transformers would make up an empty one
            f"model = {name!r}: no tokenizer is in that folder. Save it there, too: tokenizer.save_pretrained(folder)."
        )
    from transformers import AutoConfig, AutoTokenizer

    if not name:
        raise ValueError(
            "the model given from Python tells no name_or_path to load its tokenizer from. Pass data=, too."
        )
    _check_place(name)
    with quiet():
        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        except Exception as error:  # of many libraries
            raise _refusal(name, error, "its tokenizer ") from error
    if tokenizer.model_max_length > UNLIMITED:
        settings = AutoConfig.from_pretrained(name, trust_remote_code=False)
        tokenizer.model_max_length = getattr(settings, "max_position_embeddings", None) or UNLIMITED
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise ValueError(
                f"model = {name!r}: its tokenizer has neither padding nor end token. Add a pad_token to it."
            )
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    return tokenizer  # type: ignore[no-any-return]


def load_network(
    name: str,
    *,
    outputs: int,
    labels: tuple[str, ...] = (),
    regression: bool = False,
    images: bool,
    eager: bool,
    trained: bool = False,
) -> nn.Module:
    """A classifier for texts or images by Hub id or folder, in float32; only safetensors, no code from elsewhere.

    A new head is initialized from the ambient random state. ``eager``: attention whose scores can be seen. ``trained``:
    it must bring a head of its own, as a teacher does.

    Raises:
        ValueError: it cannot be loaded, is no network for such data, or has a head for another task.
    """
    heads: dict[str, Any] = {"num_labels": outputs}
    if labels:
        heads |= {"id2label": dict(enumerate(labels)), "label2id": {label: at for at, label in enumerate(labels)}}
    if eager:
        heads["attn_implementation"] = "eager"
    if name in TINY:
        if images != (name == "tiny-vit"):
            other = "mlp, tiny-cnn or tiny-vit" if images else "tiny-bert or tiny-gpt2"
            raise ValueError(f"model = {name!r}: does not take {'images' if images else 'texts'}. Pass {other}.")
        heads.pop("num_labels")
        return TINY[name](outputs, **heads)
    from transformers import AutoConfig, AutoModelForImageClassification, AutoModelForSequenceClassification

    _check_place(name)
    auto = AutoModelForImageClassification if images else AutoModelForSequenceClassification
    with quiet():
        try:
            settings = AutoConfig.from_pretrained(name, trust_remote_code=False)
        except Exception as error:  # of many libraries
            raise _refusal(name, error) from error
        _check_head(name, settings, outputs, labels, images=images, trained=trained)
        if regression:
            heads["problem_type"] = "regression"
        try:
            model, found = auto.from_pretrained(
                name,
                dtype=torch.float32,  # transformers would keep a checkpoint's half precision, and train in it
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                **heads,
            )
        except Exception as error:  # of many libraries
            raise _refusal(name, error) from error
    missing = [key for key in found["missing_keys"] if key.startswith(f"{model.base_model_prefix}.")]
    blocks = [key for key in missing if "pooler" not in key]
    if blocks:
        raise ValueError(
            f"model = {name!r}: holds no weights for {blocks[0]} and {len(blocks) - 1} more. Pass a whole checkpoint."
        )
    return model  # type: ignore[no-any-return]


def _check_head(
    name: str, settings: Any, outputs: int, labels: tuple[str, ...], *, images: bool, trained: bool
) -> None:
    """A head that a checkpoint brings must be one for the task; ``trained``: it must bring one."""
    kind = "ImageClassification" if images else "SequenceClassification"
    headed = any(kind in architecture for architecture in settings.architectures or ())
    if trained and not headed:
        raise ValueError(
            f"{name}: has no trained head, as a teacher or a model with dense_epochs = 0 must have. Pass a model "
            "that was fine-tuned on this task."
        )
    if headed and settings.num_labels != outputs:
        task = f"{outputs} classes" if outputs > 1 else "a regression"
        raise ValueError(
            f"model = {name!r}: its head has {settings.num_labels} outputs, the task needs {outputs} ({task}). "
            "Pass a model without a head (the pretrained one), or one that was fine-tuned on this task."
        )
    if headed:
        _check_order(name, settings.id2label, labels)


def _refusal(name: str, error: Exception, part: str = "") -> ValueError:
    """Why a model cannot be had, and what to do."""
    reason = reason_of(error)
    if "couldn't connect to" in reason:  # it goes on about addresses
        reason = "it is neither in a folder nor in the cache here, and the Hub cannot be reached"
    return ValueError(f"model = {name!r}: {part}cannot be loaded ({reason}). Check the spelling. {OFFLINE}")


def _check_place(name: str) -> None:
    """A path to nowhere is no Hub id."""
    if not Path(name).exists() and not re.fullmatch(r"[\w][\w.-]*(/[\w][\w.-]*)?", name, re.ASCII):
        raise ValueError(f"model = {name!r}: there is no such folder, and it is no Hub id. Check the path.")


def _check_order(name: str, theirs: dict[int, str], ours: tuple[str, ...]) -> None:
    """A trained head whose outputs mean the task's classes in another order would answer wrongly without a word."""
    found = [theirs[at].lower() for at in sorted(theirs)]
    if set(found) == {label.lower() for label in ours} and found != [label.lower() for label in ours]:
        raise ValueError(
            f"model = {name!r}: its outputs are {', '.join(found)}, the task's classes {', '.join(ours)}: the same in "
            "another order. Pass a model without a head, or one that was fine-tuned on this data set."
        )


def is_pretrained(model: nn.Module) -> bool:
    """It is a network of the transformers library."""
    return hasattr(model, "save_pretrained") and hasattr(model, "config")


def companions(model: nn.Module, tokenizer: Any) -> dict[str, bytes]:
    """What ``save_pretrained`` writes, by file name: weights under their checkpoint's names, settings, tokenizer."""
    if not is_pretrained(model):
        return {}
    with tempfile.TemporaryDirectory() as folder, quiet():
        parts: list[Any] = [model, tokenizer]
        for part in parts:
            if part is not None:
                part.save_pretrained(folder)
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir()) if path.is_file()}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Transformers reports on standard error what is said here in events and errors."""
    from transformers.utils import logging as theirs

    # A Hub id that holds pickles only would be sent to a converter elsewhere: it is refused instead.
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
    logs: Any = theirs  # untyped
    level, bars = logs.get_verbosity(), logs.is_progress_bar_enabled()
    logs.set_verbosity(logging.CRITICAL)
    logs.disable_progress_bar()
    try:
        yield
    finally:
        logs.set_verbosity(level)
        if bars:
            logs.enable_progress_bar()
