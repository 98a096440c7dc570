"""A run's numbers for other tools: what accelerate's trackers (TensorBoard, MLflow, Trackio, W&B) are told."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import os
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from randprune_lab.checks import check_option
from randprune_lab.config import RunConfig
from randprune_lab.events import (
    CandidateScored,
    DenseFinished,
    EpochFinished,
    Event,
    Resumed,
    Score,
    StageFinished,
    Warned,
)
from randprune_lab.store import story

TRACKERS = ("tensorboard", "mlflow", "trackio", "wandb")
PROJECT = "randprune"
Flat = dict[str, str | int | float | bool]
GROUPS = {EpochFinished: "epoch", CandidateScored: "candidate", DenseFinished: "dense", StageFinished: "stage"}


def parse_trackers(text: str) -> tuple[str, ...]:
    """The trackers of a list such as "tensorboard,mlflow", each once; () of an empty one.

    Raises:
        ValueError: one is unknown (the nearest is named).
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    return tuple(dict.fromkeys(check_option("tracker", name, TRACKERS) for name in names))


def track(events: Iterator[Event], config: RunConfig, folder: Path, trackers: Sequence[str]) -> Iterator[Event]:
    """Pass the events on, and log their numbers; everything that is written lies under ``folder / "tracking"``.

    Logged are the configuration and, each at the running number of its kind from 0: "epoch/..." (loss, terms, learning
    rate, selection scores), "candidate/..." (scores, ir), "dense/..." and "stage/..." (sparsity, scores). "..._metric"
    is what ``RunStarted.metric`` names. A resumed run counts on from the events that ``folder`` holds. The trackers
    start with the first event, and are finished when the run ends, stops or fails. One that fails is left out from
    there on, which a ``Warned`` event says: the run goes on. Nothing is printed.

    MLFLOW_TRACKING_URI, TRACKIO_DIR and WANDB_MODE (else "offline") are respected where they are set. Trackio keeps to
    the folder of the first run that a process tracks.

    Raises:
        ValueError: at once, a tracker is unknown or its package is missing; at the first event, it does not start.
    """
    for name in trackers:
        check_option("tracker", name, TRACKERS)
        if not _installed(name):
            raise ValueError(f"tracker = {name!r}: its package is not installed. Run: pip install {name}")
    return _tracked(events, flatten(config.model_dump(mode="json")), folder, tuple(dict.fromkeys(trackers)))


def _tracked(events: Iterator[Event], settings: Flat, folder: Path, names: tuple[str, ...]) -> Iterator[Event]:
    running: dict[str, Any] = {}
    counts: Counter[str] = Counter()
    try:
        for place, event in enumerate(events):
            if place == 0:  # not earlier: a new run wants its folder empty
                for name in names:
                    running[name] = _start(name, settings, folder)
            yield event
            if isinstance(event, Resumed):
                counts = Counter(said.kind for said in story(folder))
            group, values = GROUPS.get(type(event), ""), numbers(event)
            for name in list(running) if values else ():
                try:
                    _log(name, running[name], group, values, counts[event.kind])
                except Exception as error:  # another program's trouble is no reason to lose a run
                    _finish(running.pop(name))
                    yield Warned(f"tracker {name} failed ({error!r}) and is left out from here on.")
            counts[event.kind] += 1
    finally:
        if isinstance(events, Generator):
            events.close()
        for tracker in running.values():
            _finish(tracker)


def numbers(event: Event) -> dict[str, float]:
    """What of an event is logged, by name; nothing of most kinds."""
    values: dict[str, float] = {}
    if isinstance(event, EpochFinished):
        terms = {
            name.replace(" ", "_") if name.startswith("mask") else f"loss_{name}": value
            for name, value in event.terms.items()
        }
        values = {"loss": event.loss, "learning_rate": event.learning_rate, "stage": event.stage, **terms}
    elif isinstance(event, CandidateScored):
        values = {"ir": event.ir, "swapped": event.swapped, "stage": event.stage, "candidate": event.candidate}
    elif isinstance(event, StageFinished):
        values = {"sparsity": event.sparsity, "kept": event.kept}
    for split in ("selection", "test"):
        score = getattr(event, split, None)
        if isinstance(score, Score) and type(event) in GROUPS:
            values |= {f"{split}_metric": score.metric, f"{split}_loss": score.loss}
            values |= {f"{split}_{name}": value for name, value in score.others.items()}
    return values


def flatten(settings: Mapping[str, Any], prefix: str = "") -> Flat:
    """A configuration as one level of plain values: "a.b" for what is nested, lists as text, "none" for None."""
    flat: Flat = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        elif isinstance(value, (str, int, float, bool)):
            flat[prefix + name] = value
        elif value is None:
            flat[prefix + name] = "none"
        else:
            flat[prefix + name] = ", ".join(map(str, value))
    return flat


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _start(name: str, settings: Flat, folder: Path) -> Any:
    """A tracker that runs and knows the configuration."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    home = (folder / "tracking").absolute()
    home.mkdir(parents=True, exist_ok=True)
    arguments: dict[str, dict[str, Any]] = {
        "tensorboard": {"run_name": "tensorboard", "logging_dir": home},
        "mlflow": {
            "experiment_name": PROJECT,
            "run_name": home.parent.name,
            "logging_dir": (home / "mlflow").as_uri(),
        },
        "trackio": {"run_name": PROJECT, "name": home.parent.name, "embed": False},
        "wandb": {
            "run_name": PROJECT,
            "name": home.parent.name,
            "dir": str(home),
            "mode": os.environ.get("WANDB_MODE", "offline"),  # asks for no account
        },
    }
    try:
        with _undisturbed(), _silent():
            _point(name, home)
            tracker = LOGGER_TYPE_TO_CLASS[name](**arguments[name])
            tracker.main_process_only = False  # a run is one process: accelerate need not be asked
            tracker.start()
            if name == "wandb":  # its own steps may only rise, over all kinds together
                for group in GROUPS.values():
                    tracker.tracker.define_metric(f"{group}/*", step_metric=f"{group}/number")
            tracker.store_init_configuration(settings)
    except Exception as error:
        raise ValueError(
            f"tracker = {name!r}: does not start ({error!r}). Leave it out, or mend its settings."
        ) from error
    return tracker


def _point(name: str, home: Path) -> None:
    """Tell a tracker where to write that takes no such argument."""
    if name == "trackio":
        os.environ.setdefault("TRACKIO_DIR", str(home / "trackio"))  # read when trackio is imported
    if name == "mlflow" and "MLFLOW_TRACKING_URI" not in os.environ:
        importlib.import_module("mlflow").set_tracking_uri(f"sqlite:///{home / 'mlflow.db'}")


def _log(name: str, tracker: Any, group: str, values: Mapping[str, float], step: int) -> None:
    named = {f"{group}/{label}": value for label, value in values.items()} | {f"{group}/number": step}
    with _undisturbed():
        tracker.log(named, step=None if name == "wandb" else step)


def _finish(tracker: Any) -> None:
    with contextlib.suppress(Exception), _undisturbed(), _silent():  # a failing run's own error is to be seen
        tracker.finish()


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Trackers want accelerate's global state: the engine's is used; where there is none, one is made and dropped."""
    from accelerate.state import PartialState

    present = bool(PartialState._shared_state)
    if not present:
        PartialState(cpu=True)
    try:
        yield
    finally:
        if not present:
            PartialState._reset_state()


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
