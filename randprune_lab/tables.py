"""Rows of text and label, from GLUE or from tables of your own; whatever cannot be learned from is refused by row."""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from randprune_lab.checks import check_option
from randprune_lab.config import RunConfig
from randprune_lab.files import cache_folder, reason_of
from randprune_lab.splits import held_out_rows

TABLES = {".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}


@dataclasses.dataclass(frozen=True)
class Source:
    """A task of a data set: its text columns, what it is measured by (the first decides), and its reported splits.

    ``classes``: how many; 0: decimal numbers, a regression; None: as the data has it.
    """

    columns: tuple[str, ...]
    metrics: tuple[str, ...] = ("accuracy",)
    reported: tuple[str, ...] = ("validation",)
    label: str = "label"
    classes: int | None = 2


# Wang et al. 2018; the first metric is that of the tables of arXiv 2310.13183. The official test splits have no labels.
GLUE = {
    "cola": Source(("sentence",), ("matthews", "accuracy")),
    "sst2": Source(("sentence",)),
    "mrpc": Source(("sentence1", "sentence2"), ("f1", "accuracy")),
    "stsb": Source(("sentence1", "sentence2"), ("spearman", "pearson"), classes=0),
    "qqp": Source(("question1", "question2"), ("f1", "accuracy")),
    "mnli": Source(("premise", "hypothesis"), reported=("validation_matched", "validation_mismatched"), classes=3),
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
        picked = rows.tolist()
        return Rows([self.texts[row] for row in picked], [self.labels[row] for row in picked])


@dataclasses.dataclass(frozen=True)
class Table:
    """What was read: rows by split ("train" and the reported ones), the classes' names (none: a regression)."""

    rows: dict[str, Rows]
    names: tuple[str, ...]
    source: Source
    notes: tuple[str, ...] = ()


def read(config: RunConfig, task: str) -> Table:
    """The rows of a GLUE task, or of your own table (task "text").

    Raises:
        ValueError: something is missing or does not fit: a data set, a split, a column, a label, a text.
    """
    check_option("task", task, (*GLUE_TASKS, "text"))
    if task == "text":
        source, found = _own_source(config), load_splits(config.dataset, None)
        source = dataclasses.replace(source, reported=("validation" if "validation" in found else "test",))
    else:
        source, found = GLUE[task.removeprefix("glue/")], load_splits(config.dataset, task.removeprefix("glue/"))
    alone = task == "text" and set(found) == {"train"}
    rows: dict[str, Rows] = {}
    notes: list[str] = []
    names: tuple[str, ...] = ()
    for split in ("train",) if alone else ("train", *source.reported):
        where = f"{config.dataset}, split {split!r}"
        _check_columns(found, split, source, f"{config.dataset}, {task}")
        texts, blank = _texts(found[split], source.columns, where)
        if blank:
            notes.append(f"{split}: in {blank} pairs one of the two texts is empty.")
        if split == "train":
            names = _class_names(found[split], source)
        labels = _labels(found[split], source.label, names, f"{where}, column {source.label!r}")
        rows[split] = Rows(texts, labels)
    source = _fitting(source, names, rows["train"], f"{config.dataset}, {task}")
    if alone:  # a fifth of the rows, always the same, is what gets reported
        fit, reported = held_out_rows(len(rows["train"]), 0.2)
        rows = {"train": rows["train"].pick(fit), source.reported[0]: rows["train"].pick(reported)}
        notes.append(f"no rows to report on were given: {len(reported)} of the {len(labels)} are taken for that.")
    return Table(rows, names, source, tuple(notes))


def check_files(dataset: str) -> None:
    """The files that ``dataset`` names are there; a Hub id or a folder passes.

    Raises:
        ValueError: one is missing.
    """
    for file in [] if Path(dataset).exists() else dataset.split(","):
        if Path(file).suffix.lower() in TABLES and not Path(file).is_file():
            raise ValueError(f"dataset = {dataset!r}: there is no file {file}. Check its path.")


def _own_source(config: RunConfig) -> Source:
    columns = config.text_columns
    if not 1 <= len(columns) <= 2 or len(set(columns)) < len(columns):
        raise ValueError(
            f"text_columns = {','.join(columns) or 'none'}: task text needs one column, or the two of a pair. "
            "Pass --text-columns sentence, or --text-columns first,second."
        )
    if config.label_column in columns:
        raise ValueError(
            f"label_column = {config.label_column!r}: is one of the text columns, which would tell the answer. Name "
            "another column."
        )
    return Source(columns, label=config.label_column, classes=None)


def _check_columns(found: Mapping[str, Any], split: str, source: Source, where: str) -> None:
    if split not in found:
        raise ValueError(
            f"{where}: has no split {split!r}, only {', '.join(found)}. Add it, or name other data with --dataset."
        )
    for column in (*source.columns, source.label):
        if column not in found[split].column_names:
            raise ValueError(
                f"{where}: split {split!r} has no column {column!r}, only {', '.join(found[split].column_names)}. Name "
                "the columns with --task text, --text-columns and --label-column."
            )


def _fitting(source: Source, names: tuple[str, ...], train: Rows, where: str) -> Source:
    """The source with the metrics that fit its labels; what cannot be learned from is refused."""
    if len(train) < 10:
        raise ValueError(f"{where}: {len(train)} training rows; a run needs 10 or more. Add some.")
    if names and len(set(train.labels)) < 2:
        raise ValueError(f"{where}: every training label is {names[int(train.labels[0])]!r}: nothing to tell apart.")
    if source.classes is None:
        return source if names else dataclasses.replace(source, metrics=("spearman", "pearson"))
    if len(names) != source.classes:
        found = f"{len(names)} classes ({', '.join(names[:5])})" if names else "decimal numbers"
        wanted = f"{source.classes} classes" if source.classes else "decimal numbers"
        raise ValueError(f"{where}: its labels are {found}, must be {wanted}. For labels of your own, use task text.")
    return source


def load_splits(dataset: str, name: str | None) -> Mapping[str, Any]:
    """Splits by name, by Hugging Face's datasets: from the Hub, a folder laid out like there, or files."""
    import datasets

    whole = Path(dataset)
    files = [dataset] if whole.is_file() else dataset.split(",")
    kind = TABLES.get(Path(files[0]).suffix.lower()) if name is None else None
    local = [Path(file) for file in files] if kind else sorted(whole.rglob("*")) if whole.is_dir() else []
    before, level = datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)
    options: dict[str, Any] = {}
    try:
        if local:  # datasets itself would not notice that a file has changed
            kept = cache_folder() / "datasets" / _stamp(local)
            with contextlib.suppress(OSError):  # without a cache of ours, in that of datasets
                kept.mkdir(parents=True, exist_ok=True)
                options["cache_dir"] = str(kept)
        if kind is None:
            loaded: Mapping[str, Any] = datasets.load_dataset(dataset, name, **options)
            return loaded
        if len(files) > 2:
            raise ValueError("one file to train on, and one to report")
        if kind == "csv":  # "NA" is a word
            separator = "\t" if Path(files[0]).suffix.lower() == ".tsv" else ","
            options |= {"sep": separator, "keep_default_na": False}
        parts = {split: glob.escape(file) for split, file in zip(("train", "validation"), files, strict=False)}
        return datasets.load_dataset(kind, data_files=parts, **options)  # type: ignore[no-any-return]
    except Exception as error:  # of many libraries: network, file systems, parsers
        told = ValueError("no rows are in it") if isinstance(error, StopIteration) else error.__cause__ or error
        reason = reason_of(told)
        raise ValueError(
            f"dataset = {dataset!r}{f', task {name!r}' if name else ''}: cannot be loaded ({reason}). Without a "
            "network, pass a local folder in the Hub's layout, or .csv, .jsonl or .parquet files with task text; "
            "the tasks digits and sentences need none."
        ) from error
    finally:
        datasets.logging.set_verbosity(level)
        if not before:
            datasets.enable_progress_bars()


def _stamp(files: Sequence[Path]) -> str:
    """A digest of the files' names, sizes and times."""
    facts = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
    return hashlib.blake2b(repr(facts).encode(errors="surrogatepass"), digest_size=16).hexdigest()


def _texts(split: Any, columns: Sequence[str], where: str) -> tuple[list[tuple[str, ...]], int]:
    """The texts of every row, and the number of pairs of which one is empty."""
    # [:] takes a column at once; without it datasets hands out row after row, which takes ten times as long.
    texts = list(zip(*(split[column][:] for column in columns), strict=True))
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


def _class_names(split: Any, source: Source) -> tuple[str, ...]:
    """The classes in the order of their numbers; none where labels are decimals, or should be."""
    column = source.label
    feature = split.features[column]
    if source.classes == 0 and feature.dtype != "string" and not getattr(feature, "names", None):
        return ()
    if getattr(feature, "names", None):
        return tuple(feature.names)
    values = {value for value in split[column][:] if value not in (None, "")}
    if any(isinstance(value, float) for value in values):
        return ()
    return tuple(map(str, sorted(values, key=lambda value: (isinstance(value, str), value))))


def _labels(split: Any, column: str, names: tuple[str, ...], where: str) -> list[float]:
    """Numbers of classes, or decimals."""
    values = split[column][:]
    numbered = getattr(split.features[column], "names", None)
    known = dict(zip(range(len(names)) if numbered else names, range(len(names)), strict=True)) if names else {}
    labels: list[float] = []
    for row, value in enumerate(values):
        if not names and isinstance(value, int | float) and value == value and abs(value) < float("inf"):
            labels.append(float(value))
        elif names and (value if numbered else str(value)) in known and value not in (None, ""):
            labels.append(known[value if numbered else str(value)])
        else:
            among = f"one of {', '.join(names[:10])}" if names else "a finite decimal number"
            said = "-1, which says that the label is withheld" if value == -1 else repr(value)
            raise ValueError(f"{where}, row {row}: the label is {said}; must be {among}. Mend the row, or remove it.")
    return labels
