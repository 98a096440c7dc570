"""Grids of settings: plain pytest runs a choice of them, the group ``statistics`` all others."""

import itertools

import pytest


def chosen(cells: list, strength: int = 2) -> list[int]:
    """Numbers of cells among which every level (1), or pair of levels (2), of the grid occurs; 0: the first alone.

    A cell is a tuple, or a dict whose missing keys count as a level of their own.
    """
    names = sorted({name for cell in cells if isinstance(cell, dict) for name in cell})
    rows = [tuple(str(cell.get(name)) for name in names) if isinstance(cell, dict) else tuple(cell) for cell in cells]
    width = len(rows[0])
    covers = [
        {(columns, tuple(row[column] for column in columns)) for columns in itertools.combinations(range(width), size)}
        for row in rows
        for size in [min(strength, width)]
    ]
    left, found = set().union(*covers), []
    while left:
        best = max(range(len(cells)), key=lambda number: (len(covers[number] & left), -number))
        found.append(best)
        left -= covers[best]
    return sorted(found)


def thinned(cells: list, strength: int = 2, *, tuples: bool = True, marker=pytest.mark.statistics) -> list:
    """Parameters for ``pytest.mark.parametrize``: those that are not ``chosen`` belong to the group of ``marker``.

    ``tuples``: each cell is one row of several arguments; else it is one argument.
    """
    kept = set(chosen(cells, strength))
    return [
        pytest.param(*(cell if tuples else [cell]), marks=[] if number in kept else [marker])
        for number, cell in enumerate(cells)
    ]
