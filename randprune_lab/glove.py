"""Nearest words by GloVe vectors, from a file that may be larger than memory."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

Matrix = npt.NDArray[np.float32]

WORD = re.compile(r"(\w+(?:['\u2019]\w+)*)")  # letters and digits; "don't" is one word
NUMBER = re.compile(r"[-+]?\d*\.?\d+(?:[eE][-+]?\d+)?")
CHUNK = 4096  # lines in memory at a time


def glove_neighbours(words: Collection[str], glove: Path, choices: int) -> dict[str, list[str]]:
    """The ``choices`` nearest words by cosine of each of ``words`` (lower case) that the file holds, nearest first.

    The file is read twice, so that only the vectors of ``words`` and a chunk of the file are in memory. Neighbours are
    words in lower case.

    Raises:
        ValueError: a line is not a word and as many finite numbers as the first line has.
    """
    vectors: dict[str, Matrix] = {}
    for names, matrix in _chunks(glove):
        for name, vector in zip(names, matrix, strict=True):
            if name.lower() in words:
                vectors.setdefault(name.lower(), vector.copy())  # the first of several spellings: the most frequent
    if not vectors:
        return {}
    asked = torch.from_numpy(np.stack(list(vectors.values())))
    values = torch.full((len(asked), 0), -torch.inf)
    near: list[list[str]] = [[] for _ in asked]
    for names, matrix in _chunks(glove):
        usable = [number for number, name in enumerate(names) if name == name.lower() and WORD.fullmatch(name)]
        joined = torch.cat([values, asked @ torch.from_numpy(matrix[usable]).T], dim=1)
        best = joined.topk(min(choices + 1, joined.shape[1]))  # one more: the word itself is among them
        known = values.shape[1]
        near = [
            [old[n] if n < known else names[usable[n - known]] for n in row]
            for old, row in zip(near, best.indices.tolist(), strict=True)
        ]
        values = best.values
    return {word: [name for name in names if name != word][:choices] for word, names in zip(vectors, near, strict=True)}


def _chunks(glove: Path) -> Iterator[tuple[list[str], Matrix]]:
    """Words and their vectors, (lines, d), each of length 1 (or 0)."""
    with glove.open("rb") as file:
        lines = enumerate(file, start=1)
        columns = 0
        while chunk := list(itertools.islice(lines, CHUNK)):
            columns = columns or len(chunk[0][1].split()) - 1
            names, vectors = [], []
            for number, line in chunk:
                try:
                    name, vector = _line(line, columns)
                except ValueError as error:
                    raise ValueError(
                        f"glove = {glove}, line {number}: must be a word and {max(columns, 1)} finite numbers as in "
                        f"line 1, separated by single spaces ({error}). Pass a text file of GloVe vectors."
                    ) from None
                names.append(name)
                vectors.append(vector)
            matrix = np.stack(vectors)
            norms = np.linalg.norm(matrix, axis=1, keepdims=True)
            norms[norms == 0] = 1
            yield names, (matrix / norms).astype(np.float32, copy=False)


def _line(line: bytes, columns: int) -> tuple[str, Matrix]:
    name, *numbers = line.decode().rstrip().rsplit(" ", max(columns, 1))  # some words of the 840B file hold a space
    vector = np.array(numbers, dtype=np.float32)
    if len(vector) != columns or not columns or not name:
        raise ValueError(f"{len(vector)} numbers after {name!r}")
    if not np.isfinite(vector).all():
        raise ValueError("not finite")
    if " " in name and NUMBER.fullmatch(name.split(" ")[-1]):
        raise ValueError("more numbers")
    return name, vector
