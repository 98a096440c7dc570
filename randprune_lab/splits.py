"""The parts of a data set, each with one job, and inputs that are not one plain tensor: texts and images."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor

Batch = Tensor | dict[str, Tensor]  # what a model takes; a dict by name


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of main memory on ``device``, without making the device wait."""
    waits = device.type != "cuda" or tensor.device.type == "cuda"
    return tensor.to(device) if waits else tensor.pin_memory().to(device, non_blocking=True)


@dataclasses.dataclass(frozen=True, eq=False)
class Tokens:
    """Tokenized texts of unequal length, in main memory; ``tokens[rows]`` is a padded batch on ``device``.

    Attributes:
        ids: all token numbers, one text after another (int32).
        starts: where each text begins in ``ids``, and at last the length of all (int64, rows + 1).
        kinds: token types, where the tokenizer tells them (BERT's first and second text).
        pad: the padding token's number.
    """

    ids: Tensor
    starts: Tensor
    pad: int
    kinds: Tensor | None = None
    device: torch.device = torch.device("cpu")  # noqa: RUF009, it is immutable

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> Tensor:
        """Tokens of each row."""
        return self.starts.diff()

    def __getitem__(self, rows: Tensor) -> dict[str, Tensor]:
        first = self.starts[rows]
        lengths = self.starts[rows + 1] - first
        offsets = torch.arange(int(lengths.max()))
        valid = offsets < lengths[:, None]
        places = (first[:, None] + offsets).clamp(max=len(self.ids) - 1)
        batch = {"input_ids": self.ids[places].long().where(valid, self.pad), "attention_mask": valid.long()}
        if self.kinds is not None:
            batch["token_type_ids"] = self.kinds[places].long().where(valid, 0)
        return {name: send(tensor, self.device) for name, tensor in batch.items()}

    def to(self, device: torch.device) -> Tokens:
        """Batches come on another device from now on."""
        return dataclasses.replace(self, device=device)

    def longest(self, number: int) -> Tensor:
        """The rows of the longest texts."""
        return self.lengths.argsort(descending=True, stable=True)[:number]

    def first(self, rows: int) -> Tokens:
        """The first rows."""
        return dataclasses.replace(self, starts=self.starts[: rows + 1])

    @classmethod
    def joined(cls, parts: list[Tokens]) -> Tokens:
        """The rows of all parts, one part after another."""
        lengths = torch.cat([part.lengths for part in parts])
        starts = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        kinds = [part.kinds for part in parts if part.kinds is not None]
        ids = torch.cat([part.ids for part in parts])
        return cls(ids, starts, parts[0].pad, torch.cat(kinds) if kinds else None)


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
    """Pictures (rows x channels x height x width); ``images[rows]`` is a batch of the model's size and channels.

    Grey ones go into every channel; of colour, a model with one channel gets the mean.
    """

    pixels: Tensor
    size: int
    channels: int

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, rows: Tensor | slice) -> dict[str, Tensor]:
        pixels = self.pixels[rows]
        if pixels.shape[-1] != self.size:
            size, smaller = (self.size, self.size), self.size < pixels.shape[-1]
            pixels = torch.nn.functional.interpolate(pixels, size, mode="bilinear", antialias=smaller)
        if pixels.shape[1] > self.channels == 1:
            pixels = pixels.mean(1, keepdim=True)
        return {"pixel_values": pixels.expand(-1, self.channels, -1, -1)}

    @property
    def device(self) -> torch.device:
        """Where the pictures are."""
        return self.pixels.device

    def to(self, device: torch.device) -> Images:
        """The pictures on another device."""
        return dataclasses.replace(self, pixels=self.pixels.to(device))

    def first(self, rows: int) -> Images:
        """The first rows."""
        return dataclasses.replace(self, pixels=self.pixels[:rows])


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """``inputs`` (one row an example) and ``labels``: int64, from 0; or float32 for a regression, NaN where unknown."""

    inputs: Tensor | Tokens | Images
    labels: Tensor

    def __post_init__(self) -> None:
        """Refuse what cannot be a split."""
        shape = tuple(self.inputs.shape) if isinstance(self.inputs, Tensor) else (len(self.inputs),)
        if len(self.inputs) != len(self.labels) or self.labels.ndim != 1 or not len(self.labels):
            raise ValueError(
                f"a split has inputs of shape {shape} and labels of shape "
                f"{tuple(self.labels.shape)}: one label a row, at least one row. Pass labels of shape "
                f"({len(self.inputs)},)."
            )
        if self.labels.dtype not in (torch.int64, torch.float32):
            raise ValueError(
                f"labels have dtype {self.labels.dtype}: must be int64, from 0 (or float32 for a regression). "
                "Pass labels.long()."
            )

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, rows: Tensor) -> tuple[Batch, Tensor]:
        """Inputs and labels of some rows, where the model is."""
        return self.inputs[rows], send(self.labels[rows], self.inputs.device)

    def to(self, device: torch.device) -> Split:
        """The split on another device; texts stay in main memory, only their batches go there."""
        labels = self.labels if isinstance(self.inputs, Tokens) else self.labels.to(device)
        return Split(self.inputs.to(device), labels)

    def first(self, rows: int) -> Split:
        """Its first rows."""
        inputs = self.inputs[:rows] if isinstance(self.inputs, Tensor) else self.inputs.first(rows)
        return Split(inputs, self.labels[:rows])


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """A task to learn: ``train`` teaches, ``selection`` decides which mask wins, ``test`` is only reported.

    Attributes:
        metric: what decides and is reported first, one of ``metrics.METRICS``.
        others: further metrics that are reported.
        also: further splits that are reported, by name.
        labels: the classes' names, if they have any.
        original: the dense network learns from so many first rows of train; the rest is for distillation. None: all.
        notes: what was found while loading, sentences.
    """

    name: str
    train: Split
    selection: Split
    test: Split
    metric: str = "accuracy"
    others: tuple[str, ...] = ()
    also: Mapping[str, Split] = dataclasses.field(default_factory=dict)
    labels: tuple[str, ...] = ()
    original: int | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], *, name: str = "own", share: float = 0.2
    ) -> Self:
        """Your own (inputs, labels): the share ``share`` of train, always the same one, is the selection split.

        Decimal labels make it a regression, measured by Spearman's correlation.
        """
        for part, (inputs, labels) in (("train", train), ("test", test)):
            if not isinstance(inputs, Tensor) or not isinstance(labels, Tensor) or len(inputs) != len(labels):
                raise ValueError(
                    f"{part} is ({type(inputs).__name__} of {len(inputs)}, {type(labels).__name__} of {len(labels)}): "
                    "must be two tensors of equal length, inputs and labels. Pass torch.as_tensor of both."
                )
        fit, held_out = held_out_rows(len(train[1]), share)
        decimal = train[1].is_floating_point()
        return cls(
            name,
            Split(train[0][fit], train[1][fit]),
            Split(train[0][held_out], train[1][held_out]),
            Split(*test),
            metric="spearman" if decimal else "accuracy",
            others=("pearson",) if decimal else (),
        )

    @property
    def regression(self) -> bool:
        """Labels are decimal numbers."""
        return self.train.labels.is_floating_point()

    @property
    def classes(self) -> int:
        """One more than the largest label; 1 for a regression."""
        if self.regression:
            return 1
        return max(len(self.labels), 1 + max(int(split.labels.max()) for split in self.splits.values()))

    @property
    def splits(self) -> dict[str, Split]:
        """All of them by name."""
        return {"train": self.train, "selection": self.selection, "test": self.test, **self.also}

    def digest(self) -> str:
        """The same for the same examples and labels: a run that goes on must find the data that it began with."""
        made = hashlib.blake2b(digest_size=16)
        for split in self.splits.values():
            inputs = split.inputs
            parts = [inputs.ids, inputs.starts] if isinstance(inputs, Tokens) else []
            parts += [inputs.pixels] if isinstance(inputs, Images) else []
            parts += [inputs] if isinstance(inputs, Tensor) else []
            for part in (*parts, split.labels):
                made.update(part.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        return made.hexdigest()

    def changed(self, change: object) -> Task:
        """The task with every split as ``change`` makes it."""
        made = {name: change(split) for name, split in self.splits.items()}  # type: ignore[operator]
        also = {name: made[name] for name in self.also}
        return dataclasses.replace(self, train=made["train"], selection=made["selection"], test=made["test"], also=also)

    def to(self, device: torch.device) -> Task:
        """The task on another device."""
        return self.changed(lambda split: split.to(device))


def held_out_rows(rows: int, share: float) -> tuple[Tensor, Tensor]:
    """Row numbers to learn from, and those of the selection split: the same for the same number of rows.

    Raises:
        ValueError: one of the two would be empty.
    """
    if not 0 < share < 1 or rows < 2:
        raise ValueError(
            f"share = {share} of {rows} examples: must lie in (0, 1), of 2 examples or more, so that both "
            "splits have some. Pass 0.2."
        )
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(0))
    held_out = min(max(1, round(share * rows)), rows - 1)
    return order[held_out:], order[:held_out]
