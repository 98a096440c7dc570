"""What the app may open: runs inside the runs folder, models and data inside the models folders, by relative name.

URLs and forms hold such names only; nothing in them leads anywhere else on the machine.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from randprune_lab.models import MODELS as BUILT_IN
from randprune_lab.store import runs_folder

DEMO = "demo"  # the network that the lab trains itself
RUNS, MODELS = "runs/", "models/"
STUDIES = "studies"  # folder of the runs folder
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
PATH_FIELDS = ("model", "dataset", "augment_model", "glove", "teacher")  # of RunConfig
DEPTH = 3  # folders below a models folder that are listed
MOST = 500  # names that are listed


@dataclasses.dataclass(frozen=True)
class Places:
    """The folders of one app: ``runs`` is read and written, ``models`` are only read."""

    runs: Path
    models: tuple[Path, ...] = ()

    @classmethod
    def of_environment(cls) -> Places:
        """Those that RANDPRUNE_RUNS and RANDPRUNE_MODELS name (several models folders as in PATH)."""
        given = os.environ.get("RANDPRUNE_MODELS", "")
        return cls(runs_folder(), tuple(Path(part) for part in given.split(os.pathsep) if part))

    def run(self, name: str) -> Path:
        """The folder of the run of this name.

        Raises:
            ValueError: no such run lies directly in the runs folder.
        """
        folder = _inside(self.runs, name)
        if folder is None or folder.parent != self.runs.resolve() or not folder.is_dir():
            raise ValueError(f"run {_shown(name)}: there is none of this name in the runs folder. See History.")
        return self.runs / name

    def study(self, name: str) -> Path:
        """The folder of the study of this name.

        Raises:
            ValueError: no such study lies directly in the folder of studies.
        """
        root = self.runs / STUDIES
        folder = _inside(root, name)
        if folder is None or folder.parent != root.resolve() or not (folder / "study.json").is_file():
            raise ValueError(f"study {_shown(name)}: there is none of this name in the folder of studies. See Studies.")
        return root / name

    def model(self, name: str) -> Path:
        """What a name of ``names`` stands for ("demo" has no path).

        Raises:
            ValueError: it lies outside the folders that may be read, or is not there.
        """
        if name.startswith(RUNS):
            return self.run(name.removeprefix(RUNS))
        if name.startswith(MODELS):
            for root in self.models:
                if _inside(root, name.removeprefix(MODELS)) is not None:
                    return root / name.removeprefix(MODELS)
        raise ValueError(
            f"model {_shown(name)}: is not among those of this app. Choose one of the list, or start the app with "
            "randprune app --models FOLDER."
        )

    def names(self) -> list[str]:
        """What can be looked at: the demo, then the newest runs, then the models."""
        folders = self.runs.glob("*/events.jsonl")
        runs = sorted((path.parent.name for path in folders if path.parent.name.isprintable()), reverse=True)
        models = sorted({f"{MODELS}{name}" for root in self.models for name in _models_in(root)})
        return [DEMO, *(f"{RUNS}{name}" for name in runs[:MOST]), *models[:MOST]]

    def settings(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Settings of a run as a form or a URL has them, with names of models and data as paths.

        Raises:
            ValueError: a path, or code to import, stands where only a name, a built-in or a Hub id may.
        """
        found = dict(settings)
        for field in PATH_FIELDS:
            value = found.get(field)
            if isinstance(value, str) and value:
                found[field] = ",".join(self._source(field, part.strip()) for part in value.split(","))
        return found

    def _source(self, field: str, name: str) -> str:
        if name.startswith((MODELS, RUNS)):
            return str(self.model(name))
        if name in BUILT_IN:
            return name
        if not HUB_ID.fullmatch(name) or ".." in name or Path(name).exists():
            raise ValueError(
                f"{field} = {_shown(name)}: the app takes built-in names, Hub ids and names below its models folders "
                "(models/NAME), no other paths and no code. Use randprune run for those."
            )
        return name


def _inside(root: Path, name: str) -> Path | None:
    """What lies below ``root`` under ``name``, links followed; None where it leads out, or nothing is there."""
    try:
        root = root.resolve()
        path = (root / name).resolve(strict=True)
    except (OSError, ValueError, RuntimeError):  # not there, too long, a null character, links in a circle
        return None
    plain = ".." not in Path(name).parts and not Path(name).is_absolute() and name.isprintable()
    return path if plain and path != root and path.is_relative_to(root) else None


def _models_in(root: Path) -> Iterator[str]:
    """Folders with safetensors, and such files that lie alone, by their names relative to ``root``."""
    for depth in range(1, DEPTH + 1):
        for file in root.glob("/".join(["*"] * depth) + ".safetensors"):
            alone = file.parent == root or not (file.parent / "config.json").exists()
            path = file if alone else file.parent
            if _inside(root, str(path.relative_to(root))):
                yield path.relative_to(root).as_posix()


def _shown(name: str) -> str:
    return repr(name if len(name) <= 80 else f"{name[:77]}...")
