"""The tutorials: editions for students and teachers, written from one source, the notebooks of the project.

A cell that waits for an answer holds the teacher's source in its metadata (``randprune.solution``).
"""

from __future__ import annotations

import copy
import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

from randprune_lab.files import shipped, write_atomically

RESULTS = "results"  # what long runs have found, which some notebooks show


@dataclasses.dataclass(frozen=True)
class Tutorial:
    """One notebook.

    Attributes:
        file: its name, such as 01-cut-at-a-threshold.ipynb.
        title: its heading, without the number.
        goals: what one can do afterwards, sentences.
    """

    file: str
    title: str
    goals: tuple[str, ...]


def tutorials() -> list[Tutorial]:
    """All of them, in order.

    Raises:
        ValueError: the project's notebooks are not there.
    """
    return [_described(path) for path in _files()]


def write_tutorials(target: Path, *, solutions: bool = False) -> tuple[list[Path], list[Path]]:
    """Write the notebooks into a folder, without outputs, so that nobody reads an answer before the question.

    A file that is there already stays as it is: somebody may have worked in it.

    Args:
        target: the folder; made where it is missing.
        solutions: the teacher's edition, every answer filled in. Else the student's, which holds no solution.

    Returns:
        the notebooks that were written, and those that were there.

    Raises:
        ValueError: ``target`` is a file, or the project's own folder of notebooks.
        OSError: it cannot be written to.
    """
    target = target.absolute()
    if target.exists() and not target.is_dir():
        raise ValueError(f"{target}: is a file. Pass a folder.")
    source = shipped("notebooks")
    if target.resolve() == source.resolve():
        raise ValueError(f"{target}: holds the originals. Pass another folder.")
    written, kept = [], []
    for path in _files():
        copied = target / path.name
        if copied.exists():
            kept.append(copied)
            continue
        notebook = edition(json.loads(path.read_text(encoding="utf-8")), solutions=solutions)
        write_atomically(copied, json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
        written.append(copied)
    shutil.copytree(source / RESULTS, target / RESULTS, dirs_exist_ok=True)
    return written, kept


def edition(notebook: dict[str, Any], *, solutions: bool) -> dict[str, Any]:
    """A notebook as students or teachers get it: without outputs, and with all solutions or none."""
    notebook = copy.deepcopy(notebook)
    for cell in notebook["cells"]:
        solution = cell["metadata"].pop("randprune", {}).get("solution")
        if solutions and solution is not None:
            cell["source"] = solution
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
    return notebook


def _files() -> list[Path]:
    return sorted(shipped("notebooks").glob("*.ipynb"))


def _described(path: Path) -> Tutorial:
    """Title and goals, from its own first texts."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    title = re.search(r"^# \d+\. (.+)$", text, flags=re.MULTILINE)
    goals = re.search(r"^## Goals\n(.*?)(?=^#|\Z)", text, flags=re.MULTILINE | re.DOTALL)
    listed = re.findall(r"^[-*] +(.+(?:\n {2,}.+)*)", goals[1], flags=re.MULTILINE) if goals else []
    return Tutorial(path.name, title[1] if title else path.stem, tuple(" ".join(goal.split()) for goal in listed))
