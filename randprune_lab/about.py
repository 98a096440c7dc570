"""What this lab runs on: versions, device, folders, slots, and what is at hand without a network."""

from __future__ import annotations

import http.client
import importlib.metadata
import os
import platform
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch

from randprune_lab import jobs
from randprune_lab.files import cache_folder, free_disk
from randprune_lab.places import HUB_ID, Places

PACKAGES = ("randprune-lab", "torch", "transformers", "datasets", "streamlit", "ipywidgets", "anywidget", "altair")
GLUE = "nyu-mll/glue"
_PATIENCE = 5.0  # seconds that the Hub has to answer


def facts(places: Places) -> list[dict[str, str]]:
    """Versions, device, folders and slots, a row each: what, value."""
    rows = {f"version of {name}": _version(name) for name in PACKAGES}
    rows["Python"] = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    rows["device"] = _device()
    rows["runs at a time (slots)"] = _slots()
    rows["runs are written to"] = f"{places.runs.absolute()} ({free_disk(places.runs) / 1e9:.1f} GB free)"
    folders = ", ".join(str(folder.absolute()) for folder in places.models)
    rows["models and data are read from"] = folders or "no folder: start with randprune app --models FOLDER"
    rows["kept results (cache)"] = str(cache_folder())
    return [{"what": what, "value": value} for what, value in rows.items()]


def offline(places: Places) -> list[dict[str, str]]:
    """What can be run without a network, a row each: what, at hand ("yes", "no"), why. Nothing is fetched."""
    rows = [
        ("task digits, models mlp, tiny-cnn and tiny-vit", True, "come with scikit-learn, and are made here"),
        ("task sentences, models tiny-bert and tiny-gpt2", True, "generated and made here"),
        ("GLUE", *_glue(places)),
    ]
    rows += [(f"model {name}", True, "in the Hub's cache") for name in sorted(_cached("model"))]
    models = [name for name in places.names() if name.startswith("models/")]
    rows.append(("models below the models folders", bool(models), ", ".join(models[:12]) or "none"))
    shown = [{"what": what, "at hand": "yes" if there else "no", "why": why} for what, there, why in rows]
    asked = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
    why = "HF_HUB_OFFLINE forbids to fetch them" if asked else "a run fetches them; HF_HUB_OFFLINE=1 forbids it"
    return [*shown, {"what": "other models and data sets", "at hand": "no" if asked else "from the Hub", "why": why}]


def can_be_had(name: str, kind: Literal["model", "dataset"]) -> bool:
    """A folder with files, an id in the Hub's cache, or one that the Hub knows, asked for some seconds."""
    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE

    if Path(name).is_dir():
        return any(path.is_file() for path in Path(name).rglob("*"))
    if name in _cached(kind):
        return True
    if HF_HUB_OFFLINE or not HUB_ID.fullmatch(name):
        return False
    try:
        with urllib.request.urlopen(f"{ENDPOINT}/api/{kind}s/{name}", timeout=_PATIENCE):
            return True
    except (OSError, ValueError, http.client.HTTPException):
        return False


def _glue(places: Places) -> tuple[bool, str]:
    folders = [f"models/{path.name}" for root in places.models for path in root.glob("*glue*") if path.is_dir()]
    if folders:
        return True, f"as dataset {folders[0]}"
    there = GLUE in _cached("dataset")
    return there, f"{GLUE}, in the Hub's cache" if there else f"{GLUE} would be fetched from the Hub"


def _cached(kind: str) -> Iterator[str]:
    """Ids in the Hub's cache, by the names of its folders: a scan of all its files takes long."""
    from huggingface_hub.constants import HF_HUB_CACHE

    for path in Path(HF_HUB_CACHE).glob(f"{kind}s--*"):
        if any(path.glob("snapshots/*")):
            yield path.name.removeprefix(f"{kind}s--").replace("--", "/")


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _device() -> str:
    names: list[Any] = [torch.cuda.get_device_name(place) for place in range(torch.cuda.device_count())]
    return ", ".join(names) or f"CPU, {os.cpu_count()} cores"


def _slots() -> str:
    try:
        return f"{jobs.slots()} (GPUs, or 1; RANDPRUNE_SLOTS sets it)"
    except ValueError as error:  # the environment says nonsense
        return str(error)
