"""Text tasks: GLUE, your own tables, generated sentences. Rows are read, held out, enlarged and tokenized."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
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

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOST_HELD_OUT = 2000  # rows of the selection split; a fifth of train where that is less
TABLES = {".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}


@dataclasses.dataclass(frozen=True)
class Source:
    """A task of a data set: its text columns, what it is measured by (the first decides), and its reported splits."""

    columns: tuple[str, ...]
    metrics: tuple[str, ...] = ("accuracy",)
    reported: tuple[str, ...] = ("validation",)
    label: str = "label"


# Wang et al. 2018; the first metric is that of the tables of arXiv 2310.13183. The official test splits have no labels.
GLUE = {
    "cola": Source(("sentence",), ("matthews", "accuracy")),
    "sst2": Source(("sentence",)),
    "mrpc": Source(("sentence1", "sentence2"), ("f1", "accuracy")),
    "stsb": Source(("sentence1", "sentence2"), ("spearman", "pearson")),
    "qqp": Source(("question1", "question2"), ("f1", "accuracy")),
    "mnli": Source(("premise", "hypothesis"), reported=("validation_matched", "validation_mismatched")),
    "qnli": Source(("question", "sentence")),
    "rte": Source(("sentence1", "sentence2")),
}
GLUE_TASKS = tuple(f"glue/{name}" for name in GLUE)


@dataclasses.dataclass(frozen=True)
class Rows:
    """Texts (one or two an example) and their labels: whole numbers from 0, or decimals of a regression."""

    texts: list[tuple[str, ...]]
    labels: Sequence[float]

    def __len__(self) -> int:
        return len(self.texts)

    def pick(self, rows: Tensor) -> Rows:
        """Some of them."""
        return Rows([self.texts[row] for row in rows], [self.labels[row] for row in rows])


@dataclasses.dataclass(frozen=True)
class Table:
    """What was read: rows by split ("train" and the reported ones), the classes' names (none: a regression)."""

    rows: dict[str, Rows]
    names: tuple[str, ...]
    source: Source
    notes: tuple[str, ...] = ()


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
    if config.unlabelled:
        if not regression:
            raise ValueError(
                f"unlabelled = {config.unlabelled!r} with task {config.task!r}: rows without labels are for a "
                "regression (glue/stsb, as the paper has it). Leave unlabelled out."
            )
        extra = read(config, config.unlabelled).rows["train"].texts
        if len(extra[0]) != len(fit.texts[0]):
            raise ValueError(
                f"unlabelled = {config.unlabelled!r}: has {len(extra[0])} texts an example, {config.task} has "
                f"{len(fit.texts[0])}. Name a task of the same form."
            )
        more.append(Rows(extra, [NO_LABEL] * len(extra)))
        notes.append(f"{len(extra):,} rows of {config.unlabelled} are added without labels: distillation terms only.")
    return more, notes


def read(config: RunConfig, task: str) -> Table:
    """The rows of a GLUE task, or of your own table (task "text").

    Raises:
        ValueError: something is missing or does not fit: a data set, a split, a column, a label, a text.
    """
    if task == "text":
        if not config.text_columns or len(config.text_columns) > 2:
            raise ValueError(
                f"text_columns = {','.join(config.text_columns) or 'none'}: task text needs one column, or the two of "
                "a pair. Pass --text-columns sentence, or --text-columns first,second."
            )
        found = _load(config.dataset, None)
        found = _with_validation(found, config.dataset)
        reported = "validation" if "validation" in found else "test"
        source = Source(config.text_columns, reported=(reported,), label=config.label_column)
    else:
        check_option("task", task, (*GLUE_TASKS, "text", "sentences", "digits"))
        name = task.removeprefix("glue/")
        source, found = GLUE[name], _load(config.dataset, name)
    rows: dict[str, Rows] = {}
    notes: list[str] = []
    names: tuple[str, ...] = ()
    for split in ("train", *source.reported):
        if split not in found:
            raise ValueError(
                f"{config.dataset}: has no split {split!r} for {task}, only {', '.join(found)}. Add it, or name "
                "another data set with --dataset."
            )
        for column in (*source.columns, source.label):
            if column not in found[split].column_names:
                raise ValueError(
                    f"{config.dataset}: split {split!r} has no column {column!r}, only "
                    f"{', '.join(found[split].column_names)}. Name the columns with --text-columns and --label-column."
                )
        texts, blank = _texts(found[split], source.columns, f"{config.dataset}, split {split!r}")
        if blank:
            notes.append(f"{split}: in {blank} pairs one of the two texts is empty.")
        if split == "train":
            names = _class_names(found[split], source.label)
            if not names and source.metrics == ("accuracy",):
                source = dataclasses.replace(source, metrics=("spearman", "pearson"))
        where = f"{config.dataset}, split {split!r}, column {source.label!r}"
        rows[split] = Rows(texts, _labels(found[split], source.label, names, where))
    if len(rows["train"]) < 10:
        raise ValueError(f"{config.dataset}: {len(rows['train'])} training rows; a run needs 10 or more. Add some.")
    return Table(rows, names, source, tuple(notes))


def _load(dataset: str, name: str | None) -> Mapping[str, Any]:
    """Splits by name, by Hugging Face's datasets: from the Hub, a folder laid out like there, or files."""
    import datasets

    files = dataset.split(",")
    kind = TABLES.get(Path(files[0]).suffix.lower()) if name is None else None
    before = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        if kind is None:
            loaded: Mapping[str, Any] = datasets.load_dataset(dataset, name)
            return loaded
        if len(files) > 2:
            raise ValueError("one file to train on, and one to report")
        options: dict[str, Any] = {"sep": "\t"} if Path(files[0]).suffix.lower() == ".tsv" else {}
        parts = dict(zip(("train", "validation"), files, strict=False))
        return datasets.load_dataset(kind, data_files=parts, **options)  # type: ignore[no-any-return]
    except Exception as error:  # of many libraries: network, file systems, parsers
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"dataset = {dataset!r}{f', task {name!r}' if name else ''}: cannot be loaded ({reason}). Without a "
            "network, pass a local folder in the Hub's layout, or .csv, .jsonl or .parquet files with task text; "
            "the tasks digits and sentences need none."
        ) from error
    finally:
        if not before:
            datasets.enable_progress_bars()


def _with_validation(found: Mapping[str, Any], dataset: str) -> Mapping[str, Any]:
    """Where only training rows are given, a fifth of them, always the same, is what gets reported."""
    if "train" not in found or "validation" in found or "test" in found:
        return found
    fit, reported = held_out_rows(len(found["train"]), 0.2) if len(found["train"]) > 1 else (None, None)
    if fit is None or reported is None:
        raise ValueError(f"{dataset}: {len(found['train'])} rows are too few to learn from. Add some.")
    return {"train": found["train"].select(fit.tolist()), "validation": found["train"].select(reported.tolist())}


def _texts(split: Any, columns: Sequence[str], where: str) -> tuple[list[tuple[str, ...]], int]:
    """The texts of every row, and the number of pairs of which one is empty."""
    texts = list(zip(*(split[column] for column in columns), strict=True))
    blank = 0
    for row, parts in enumerate(texts):
        wrong = next((part for part in parts if part is not None and not isinstance(part, str)), None)
        if wrong is not None:
            raise ValueError(f"{where}, row {row}: {wrong!r} is no text. Choose other --text-columns.")
        empty = [not (part or "").strip() for part in parts]
        if all(empty):
            raise ValueError(f"{where}, row {row}: {' and '.join(columns)} empty. Remove the row, or fill it in.")
        blank += any(empty)
    return [tuple(part or "" for part in parts) for parts in texts], blank


def _class_names(split: Any, column: str) -> tuple[str, ...]:
    """The classes in the order of their numbers; none where labels are decimals."""
    feature = split.features[column]
    if getattr(feature, "names", None):
        return tuple(feature.names)
    values = {value for value in split[column] if value is not None}
    if any(isinstance(value, float) for value in values):
        return ()
    return tuple(map(str, sorted(values, key=lambda value: (isinstance(value, str), value))))


def _labels(split: Any, column: str, names: tuple[str, ...], where: str) -> list[float]:
    """Numbers of classes, or decimals."""
    values = list(split[column])
    numbered = getattr(split.features[column], "names", None)
    known = dict(zip(range(len(names)) if numbered else names, range(len(names)), strict=True)) if names else {}
    labels: list[float] = []
    for row, value in enumerate(values):
        if not names and isinstance(value, int | float) and value == value and abs(value) < float("inf"):
            labels.append(float(value))
        elif names and (value if numbered else str(value)) in known and value is not None:
            labels.append(known[value if numbered else str(value)])
        else:
            among = f"one of {', '.join(names[:10])}" if names else "a finite decimal number"
            said = "-1, which says that the label is withheld" if value == -1 else repr(value)
            raise ValueError(f"{where}, row {row}: the label is {said}; must be {among}. Mend the row, or remove it.")
    return labels


def encode(texts: Sequence[tuple[str, ...]], tokenizer: PreTrainedTokenizerBase, limit: int) -> tuple[Tokens, int]:
    """Texts (one or two an example) as tokens, and how many were cut to ``limit``; kept on disk for the next time."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    what = backend.to_str() if backend is not None else repr(tokenizer)
    digest = hashlib.blake2b(f"1 {limit} {tokenizer.model_input_names} {what}".encode(), digest_size=16)
    for row in texts:
        digest.update("\0".join(("", *row)).encode(errors="surrogatepass"))

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
