"""Data sets by name: three splits, of which each has one job."""

from __future__ import annotations

import dataclasses
from typing import Self

import torch
from torch import Tensor

from randprune_lab.checks import check_option

TASKS = ("digits",)


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """``inputs`` (one row an example, as the model takes them) and ``labels`` (int64, from 0)."""

    inputs: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        """Refuse what cannot be a split."""
        if len(self.inputs) != len(self.labels) or self.labels.ndim != 1 or not len(self.labels):
            raise ValueError(
                f"a split has inputs of shape {tuple(self.inputs.shape)} and labels of shape "
                f"{tuple(self.labels.shape)}: one label a row, at least one row. Pass labels of shape "
                f"({len(self.inputs)},)."
            )
        if self.labels.dtype != torch.int64:
            raise ValueError(f"labels have dtype {self.labels.dtype}: must be int64, from 0. Pass labels.long().")

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> Split:
        """The split on another device."""
        return Split(self.inputs.to(device), self.labels.to(device))


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """A classification task: ``train`` teaches, ``selection`` decides which mask wins, ``test`` is only reported."""

    name: str
    train: Split
    selection: Split
    test: Split

    @classmethod
    def of(
        cls, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], *, name: str = "own", share: float = 0.2
    ) -> Self:
        """Your own (inputs, labels): the share ``share`` of train, always the same one, is the selection split."""
        for part, (inputs, labels) in (("train", train), ("test", test)):
            if not isinstance(inputs, Tensor) or not isinstance(labels, Tensor) or len(inputs) != len(labels):
                raise ValueError(
                    f"{part} is ({type(inputs).__name__} of {len(inputs)}, {type(labels).__name__} of {len(labels)}): "
                    "must be two tensors of equal length, inputs and labels. Pass torch.as_tensor of both."
                )
        if not 0 < share < 1 or len(train[1]) < 2:
            raise ValueError(
                f"share = {share} of {len(train[1])} examples: must lie in (0, 1), of 2 examples or more, so that both "
                "splits have some. Pass 0.2."
            )
        order = torch.randperm(len(train[1]), generator=torch.Generator().manual_seed(0))
        held_out = min(max(1, round(share * len(order))), len(order) - 1)
        parts = (order[held_out:], order[:held_out])
        fit, selection = (Split(train[0][rows], train[1][rows]) for rows in parts)
        return cls(name, fit, selection, Split(*test))

    @property
    def classes(self) -> int:
        """One more than the largest label."""
        return 1 + max(int(split.labels.max()) for split in (self.train, self.selection, self.test))

    def to(self, device: torch.device) -> Task:
        """The task on another device."""
        return Task(self.name, self.train.to(device), self.selection.to(device), self.test.to(device))


def load_task(name: str) -> Task:
    """A data set by name.

    Raises:
        ValueError: there is no such task (the nearest is named).
    """
    check_option("task", name, TASKS)
    return digits()


def digits() -> Task:
    """scikit-learn's digits: 1,797 real 8 x 8 grey images of handwritten numbers, pixels scaled to [0, 1].

    Stratified and always the same: 1,077 train, 360 selection, 360 test.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    rest, test = train_test_split(range(len(labels)), test_size=360, stratify=labels, random_state=0)
    train, selection = train_test_split(rest, test_size=360, stratify=labels[rest], random_state=0)

    def split(rows: list[int]) -> Split:
        return Split(torch.from_numpy(images[rows] / 16).float(), torch.from_numpy(labels[rows]).long())

    return Task("digits", split(train), split(selection), split(test))
