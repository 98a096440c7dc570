"""The tutorials: editions for students and teachers, written from one source, the notebooks of the project.

A cell that waits for an answer holds the teacher's source in its metadata (``randprune.solution``).
"""

from __future__ import annotations

import copy
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from randprune_lab.files import shipped, write_atomically

RESULTS = "results"  # what long runs have found, which some notebooks show
TEACHER = "*Teacher's edition: every answer is filled in.*"
CHECK = re.compile(r"^check\(", re.MULTILINE)  # a cell that says whether an answer is right


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

    A file that is there already stays as it is: somebody may have worked in it. (A teacher's edition therefore needs a
    folder of its own.)

    Args:
        target: the folder; made where it is missing.
        solutions: the teacher's edition, every answer filled in. Else the student's, which holds no solution.

    Returns:
        the notebooks that were written, and those that were there.

    Raises:
        ValueError: ``target`` or something in it is a file where a folder is needed or the other way round, or it lies
            in the project's own folder of notebooks.
        OSError: it cannot be written to.
    """
    target = target.absolute()
    if target.exists() and not target.is_dir():
        raise ValueError(f"{target}: is a file. Pass a folder.")
    source = shipped("notebooks")
    if target.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"{target}: holds the originals. Pass another folder.")
    files = [*_files(), *sorted(path for path in (source / RESULTS).rglob("*") if path.is_file())]
    copies = {path: target / path.relative_to(source) for path in files}
    for copied in copies.values():
        if copied.is_dir() or any(folder.is_file() for folder in copied.parents):
            raise ValueError(f"{copied}: is no place for a file. Rename what is there, or pass another folder.")
    written, kept = [], []
    for path, copied in copies.items():
        if copied.exists() or copied.is_symlink():
            kept.append(copied)
            continue
        content = path.read_text(encoding="utf-8")
        if path.suffix == ".ipynb":
            content = json.dumps(edition(json.loads(content), solutions=solutions), indent=1, ensure_ascii=False) + "\n"
        write_atomically(copied, content)
        written.append(copied)
    notebooks = [[path for path in paths if path.suffix == ".ipynb"] for paths in (written, kept)]
    return notebooks[0], notebooks[1]


def edition(notebook: dict[str, Any], *, solutions: bool) -> dict[str, Any]:
    """A notebook as students or teachers get it: without outputs, and with all solutions or none.

    In the student's the code that checks a guess is folded: it stands below the guess, and would tell.
    """
    notebook = copy.deepcopy(notebook)
    if solutions:
        first = notebook["cells"][0]
        first["source"] = f"{''.join(first['source'])}\n\n{TEACHER}"
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if not solutions and CHECK.search(source) and "..." not in source:
            cell["metadata"]["jupyter"] = {"source_hidden": True}
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
