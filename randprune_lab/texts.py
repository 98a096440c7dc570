"""Text tasks: GLUE, your own tables, generated sentences. Rows are read, held out, enlarged and tokenized."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from randprune_lab import augment, sentences
from randprune_lab.checks import check_option
from randprune_lab.config import RunConfig
from randprune_lab.files import cache_folder, remembered
from randprune_lab.metrics import NO_LABEL
from randprune_lab.sampling import seed_of
from randprune_lab.splits import Split, Task, Tokens, held_out_rows
from randprune_lab.tables import GLUE_TASKS, Rows, Source, Table, read

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOST_HELD_OUT = 2000  # rows of the selection split; a fifth of train where that is less


def load_texts(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> Task:
    """The text task that ``config`` names, tokenized.

    The selection split is taken out of train before anything is added; no copy of a row held out is trained on.

    Raises:
        ValueError: the data set cannot be found or read, or does not fit the task.
    """
    if config.task == "sentences":
        rows = {name: Rows([(text,) for text in texts], labels) for name, (texts, labels) in sentences.corpus().items()}
        table = Table(rows, ("singular", "plural"), Source(("sentence",), reported=("test",)))
        fit, held_out = rows["train"], rows["selection"]
    else:
        table = read(config, config.task)
        every = table.rows["train"]
        learn, hold = held_out_rows(len(every), min(0.2, MOST_HELD_OUT / len(every)))
        fit, held_out = every.pick(learn), every.pick(hold)
    more, notes = _enlarged(config, fit, held_out, regression=not table.names)
    limit = min(config.max_length, tokenizer.model_max_length)
    parts = {"train": [fit, *more], "selection": [held_out]}
    parts |= {name: [table.rows[name]] for name in table.source.reported}
    splits, cut = {}, 0
    for name, rows_of_part in parts.items():
        encoded = [encode(part.texts, tokenizer, limit) for part in rows_of_part]
        cut += sum(number for _, number in encoded)
        labels = [label for part in rows_of_part for label in part.labels]
        kind = torch.int64 if table.names else torch.float32
        splits[name] = Split(Tokens.joined([tokens for tokens, _ in encoded]), torch.tensor(labels, dtype=kind))
    if len(fit.texts[0]) == 2 and tokenizer.num_special_tokens_to_add(pair=True) == 0:
        notes.append(
            "the tokenizer puts nothing between the two texts of a pair (GPT-2's does so): the model sees one."
        )
    if cut:
        notes.append(f"{cut} texts have more than {limit} tokens and are cut there (max_length).")
    first, *others = table.source.reported
    return Task(
        config.task,
        splits["train"],
        splits["selection"],
        splits[first],
        metric=table.source.metrics[0],
        others=table.source.metrics[1:],
        also={name.removeprefix("validation_"): splits[name] for name in others},
        labels=table.names,
        original=len(fit) if more else None,
        notes=(*table.notes, *notes),
    )


def _enlarged(config: RunConfig, fit: Rows, held_out: Rows, *, regression: bool) -> tuple[list[Rows], list[str]]:
    """What distillation learns from besides the data set's own rows, and what there is to say of it."""
    more: list[Rows] = []
    notes: list[str] = []
    extra = _unlabelled(config, fit, regression=regression) if config.unlabelled else []
    if config.augment:
        made = augment.augmented_from_cache(
            fit.texts,
            model=config.augment_model or config.model,
            copies=config.augment,
            glove=Path(config.glove) if config.glove else None,
            seed=seed_of(config.seed, "augment"),
            avoid=held_out.texts,
            device="cuda" if torch.cuda.is_available() and config.device in ("auto", "cuda") else "cpu",
            cache=cache_folder(),
        )
        more.append(Rows(made.texts, [fit.labels[row] for row in made.origin]))
        notes += [*made.notes, f"augmentation: {len(made.texts):,} rows with replaced words beside {len(fit):,}."]
    if extra:
        more.append(Rows(extra, [NO_LABEL] * len(extra)))
        notes.append(f"{len(extra):,} rows of {config.unlabelled} are added without labels: distillation terms only.")
    return more, notes


def _unlabelled(config: RunConfig, fit: Rows, *, regression: bool) -> list[tuple[str, ...]]:
    """The texts of another task."""
    if not regression:
        raise ValueError(
            f"unlabelled = {config.unlabelled!r} with task {config.task!r}: rows without labels are for a regression "
            "(glue/stsb, as the paper has it). Leave unlabelled out."
        )
    check_option("unlabelled", config.unlabelled, GLUE_TASKS)
    own = {} if config.task.startswith("glue/") else {"dataset": RunConfig.model_fields["dataset"].default}
    texts = read(config.model_copy(update=own), config.unlabelled).rows["train"].texts
    if len(texts[0]) != len(fit.texts[0]):
        raise ValueError(
            f"unlabelled = {config.unlabelled!r}: has {len(texts[0])} texts an example, {config.task} has "
            f"{len(fit.texts[0])}. Name a task of the same form."
        )
    return texts


def _check_limit(tokenizer: PreTrainedTokenizerBase, limit: int, *, pair: bool) -> None:
    special = tokenizer.num_special_tokens_to_add(pair=pair)
    if limit <= special + pair:
        raise ValueError(
            f"max_length = {limit}: the tokenizer adds {special} tokens of its own, which leaves no room for "
            f"{'two texts' if pair else 'a text'}. Pass at least {special + 1 + pair}."
        )


def encode(texts: Sequence[tuple[str, ...]], tokenizer: PreTrainedTokenizerBase, limit: int) -> tuple[Tokens, int]:
    """Texts (one or two an example) as tokens, and how many were cut to ``limit``; kept on disk for the next time."""
    _check_limit(tokenizer, limit, pair=len(texts[0]) == 2)
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    what = json.loads(backend.to_str()) if backend is not None else {"tokenizer": repr(tokenizer)}
    what = {name: value for name, value in what.items() if name not in ("padding", "truncation")}  # a call changes them
    said = [3, limit, tokenizer.truncation_side, tokenizer.model_input_names, what]
    digest = hashlib.blake2b(json.dumps(said, sort_keys=True).encode(), digest_size=16)
    for row in texts:
        digest.update(json.dumps(row).encode())

    def tokenize() -> dict[str, Tensor]:
        columns = [list(column) for column in zip(*texts, strict=True)]
        whole = tokenizer(*columns, verbose=False)
        long = [row for row, ids in enumerate(whole["input_ids"]) if len(ids) > limit]
        if long:
            shorter = tokenizer(
                *[[column[row] for row in long] for column in columns], truncation=True, max_length=limit
            )
            for name, values in shorter.items():
                for row, value in zip(long, values, strict=True):
                    whole[name][row] = value
        lengths = torch.tensor([len(ids) for ids in whole["input_ids"]])
        tensors = {
            "ids": torch.tensor([number for ids in whole["input_ids"] for number in ids], dtype=torch.int32),
            "starts": torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]),
            "cut": torch.tensor(len(long)),
        }
        if "token_type_ids" in whole:
            kinds = [kind for row in whole["token_type_ids"] for kind in row]
            tensors["kinds"] = torch.tensor(kinds, dtype=torch.uint8)
        return tensors

    found = remembered("tokens", digest.hexdigest(), tokenize)
    pad = int(tokenizer.pad_token_id or 0)
    return Tokens(found["ids"], found["starts"], pad, found.get("kinds")), int(found["cut"])
