"""Tasks of pictures: MNIST and CIFAR-10, from the Hub or a folder in its layout; what cannot be used is refused by row.

What was decoded is kept on disk: a second run reads numbers, not tens of thousands of small files.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from randprune_lab.checks import check_option
from randprune_lab.config import HUB, RunConfig
from randprune_lab.files import reason_of, remembered
from randprune_lab.splits import Split, Task, held_out_rows
from randprune_lab.tables import load_splits

CLASSES = 10
JPEG = b"\xff\xd8"  # how such a file begins
KINDS = {"L": "grey", "RGB": "colour"}  # Pillow's modes


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set of square pictures, as the Hub has it.

    Attributes:
        name: of its configuration there.
        column: of the picture; that of the label is "label", 0 to 9.
        mode: Pillow's word for what a picture is: "L" (grey) or "RGB".
        side: height and width in pixels.
        mean: of the training pixels of each channel, scaled to [0, 1].
        deviation: their standard deviation.
        rows: how many the whole data set has, train and test.
        share: of train that becomes the selection split.
    """

    name: str
    column: str
    mode: str
    side: int
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    rows: tuple[int, int]
    share: float


SOURCES = {
    "mnist": Source("mnist", "image", "L", 28, (0.1307,), (0.3081,), (60_000, 10_000), 1 / 12),
    "cifar10": Source(
        *("plain_text", "img", "RGB", 32),
        *((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), (50_000, 10_000), 0.1),
    ),
}


def load_pictures(config: RunConfig) -> Task:
    """The task of pictures that ``config`` names: float32 (rows, channels, height, width), standardized by channel.

    The selection split is a share of train, always the same one: 5,000 rows of MNIST and of CIFAR-10.

    Raises:
        ValueError: the data set cannot be found or read, or a row is not as MNIST's or CIFAR-10's are.
    """
    source = SOURCES[check_option("task", config.task, SOURCES)]
    # Others call their only configuration what they like.
    found = load_splits(config.dataset, source.name if config.dataset == HUB[config.task] else None)
    _check_columns(found, source, f"{config.dataset}, {config.task}")
    pixels, labels, copies = {}, {}, []
    for name in ("train", "test"):
        where = f"{config.dataset}, split {name!r}"
        pictures = [cell and cell["bytes"] for cell in _column(found[name], source.column)]
        labels[name] = _labels(_column(found[name], "label"), where)
        pixels[name] = _pixels(pictures, source, where)
        copies += [name] if any(picture.startswith(JPEG) for picture in pictures) else []
    notes = [f"{' and '.join(copies)}: JPEG copies of the pictures, which have lost detail."] if copies else []
    train, test = len(labels["train"]), len(labels["test"])
    learn, hold = held_out_rows(train, source.share)
    if train < source.rows[0] or test < source.rows[1]:
        notes.append(
            f"a part of {config.task}: {train:,} of {source.rows[0]:,} training and {test:,} of {source.rows[1]:,} "
            "test pictures."
        )

    def split(name: str, rows: Tensor | slice) -> Split:
        return Split(_standardized(pixels[name][rows], source), labels[name][rows])

    return Task(
        config.task,
        split("train", learn),
        split("train", hold),
        split("test", slice(None)),
        labels=_class_names(found["train"]),
        notes=tuple(notes),
    )


def _check_columns(found: Mapping[str, Any], source: Source, where: str) -> None:
    """Both splits are there, with enough rows, pictures and labels."""
    import datasets

    for split in ("train", "test"):
        if split not in found:
            raise ValueError(
                f"{where}: has no split {split!r}, only {', '.join(found)}. Add it, or name other data with --dataset."
            )
        columns = found[split].features
        for column in (source.column, "label"):
            if column not in columns:
                raise ValueError(
                    f"{where}: split {split!r} has no column {column!r}, only {', '.join(columns)}. Rename its columns "
                    f"to {source.column!r} and 'label'."
                )
        if not isinstance(columns[source.column], datasets.Image):
            raise ValueError(
                f"{where}: column {source.column!r} of split {split!r} holds {columns[source.column]}, must hold "
                "pictures. Cast it: data.cast_column(..., datasets.Image())."
            )
        if len(found[split]) < CLASSES:
            raise ValueError(
                f"{where}: split {split!r} has {len(found[split])} rows; a run needs {CLASSES} or more. Add some."
            )


def _column(split: Any, column: str) -> list[Any]:
    """Its cells as they are stored: of a picture, the file."""
    cells: list[Any] = split.with_format("arrow")[:][column].to_pylist()
    return cells


def _labels(values: Sequence[Any], where: str) -> Tensor:
    """Classes, 0 to 9, as int64."""
    for row, value in enumerate(values):
        if not isinstance(value, int) or not 0 <= value < CLASSES:
            raise ValueError(
                f"{where}, row {row}: the label is {value!r}; must be a whole number from 0 to {CLASSES - 1}. Mend the "
                "row, or remove it."
            )
    return torch.tensor(values)


def _class_names(split: Any) -> tuple[str, ...]:
    """The classes in the order of their numbers; the numbers themselves where the data has no names for all ten."""
    names = tuple(getattr(split.features["label"], "names", ()))
    return names if len(names) == CLASSES else tuple(map(str, range(CLASSES)))


def _pixels(pictures: Sequence[bytes | None], source: Source, where: str) -> Tensor:
    """Decoded files: uint8 (rows, channels, height, width), 0 to 255; kept on disk under a digest of the files."""
    digest = hashlib.blake2b(f"1 {source}".encode(), digest_size=16)
    for picture in pictures:
        size = -1 if picture is None else len(picture)
        digest.update(size.to_bytes(8, "little", signed=True) + (picture or b""))

    def decode() -> dict[str, Tensor]:
        rows = [_decoded(picture, source, f"{where}, row {row}") for row, picture in enumerate(pictures)]
        shape = (len(rows), source.side, source.side, len(source.mean))
        return {"pixels": torch.from_numpy(np.stack(rows).reshape(shape)).permute(0, 3, 1, 2).contiguous()}

    return remembered("pictures", digest.hexdigest(), decode)["pixels"]


def _decoded(picture: bytes | None, source: Source, where: str) -> np.ndarray:
    """One file's pixels: uint8 (height, width), or (height, width, 3)."""
    from PIL import Image

    if picture is None:
        raise ValueError(f"{where}: there is no picture inside the file. Add it, or remove the row.")
    try:
        with Image.open(io.BytesIO(picture)) as image:
            found, wanted = (*image.size, image.mode), (source.side, source.side, source.mode)
            if found == wanted:  # looked at before the pixels are read: a huge picture costs nothing
                return np.asarray(image)
    except Exception as error:  # whatever a damaged file makes of Pillow
        raise ValueError(
            f"{where}: is no picture that can be read ({reason_of(error)}). Mend or remove the row."
        ) from error
    raise ValueError(
        f"{where}: the picture has {found[0]} x {found[1]} pixels, {KINDS.get(found[2], found[2])}; must have "
        f"{source.side} x {source.side}, {KINDS[source.mode]}. Convert it: image.convert({source.mode!r})"
        f".resize(({source.side}, {source.side}))."
    )


def _standardized(pixels: Tensor, source: Source) -> Tensor:
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (source.mean, source.deviation))
    return pixels.float().div_(255).sub_(mean).div_(deviation)
