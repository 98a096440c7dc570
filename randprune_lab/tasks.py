"""Data sets by name: three splits, of which each has one job."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Split:
    """``inputs`` (float32, one row an example) and ``labels`` (int64)."""

    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclasses.dataclass(frozen=True)
class Task:
    """A classification task: ``train`` teaches, ``selection`` decides which mask wins, ``test`` is only reported."""

    name: str
    train: Split
    selection: Split
    test: Split
    classes: int


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

    return Task("digits", split(train), split(selection), split(test), classes=10)
