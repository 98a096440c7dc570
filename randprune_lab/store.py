"""What a run leaves behind: a folder of plain files, no pickle, from which it can go on after being killed anywhere.

    config.json               the configuration
    events.jsonl              what happened, one JSON object a line, only ever appended to
    checkpoints/N-WHAT.safetensors   model, masks (bit-packed), optimizer; progress and a checksum in its metadata
    histograms/N.json         magnitudes of the weights kept, by stage (0: dense): counts in bins at most 0.8 % wide
    histograms/N-masked.json  the same, as stage N's mask left them, before the fine-tuning
    model/                    the finished network; for transformers with all that from_pretrained needs
    benefit.json              what sparsity bought, measured when the run was over
    status.json, cancel, log.txt, note.txt   of the process that works on it, and of people: see status.py and jobs.py

Nothing here knows the engine: old runs open without it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pydantic
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from randprune_lab.checks import problem_of
from randprune_lab.config import FREE, RunConfig
from randprune_lab.events import (
    CandidateScored,
    Checkpoint,
    DenseFinished,
    Event,
    MaskChosen,
    Progress,
    Resumed,
    RunFinished,
    RunStarted,
    StageFinished,
    StageStarted,
    Warned,
    from_json,
)
from randprune_lab.files import is_held, reason_of, write_atomically
from randprune_lab.histogram import INFINITY_BIN, MagnitudeHistogram
from randprune_lab.masks import unpack

BOUNDARIES = ("scoring", "finished")  # phases whose checkpoints lie between two stages
_KEPT = 2  # checkpoints inside a stage: the newest may be damaged
_BESIDE = (".lock", ".reserve", "status.json", "cancel", "log.txt", "note.txt")  # what a run finds in its new folder


def runs_folder() -> Path:
    """Where runs live: the folder that RANDPRUNE_RUNS names, else ./runs."""
    return Path(os.environ.get("RANDPRUNE_RUNS", "runs"))


def new_folder(config: RunConfig, *, parent: Path | None = None) -> Path:
    """A new run's folder, empty and ours alone: named by time, task, method and seed."""
    task = re.sub(r"\W+", "-", config.task)  # glue/mrpc
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{task}-{config.control or config.method}-seed{config.seed}"
    parent = runs_folder() if parent is None else parent
    parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        folder = parent / (stem if number == 1 else f"{stem}-{number}")
        with contextlib.suppress(FileExistsError):  # another run that was started in this second
            folder.mkdir()
            break
    return folder


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Write a run's config.json, from its configuration as plain values."""
    write_atomically(folder / "config.json", json.dumps(config, indent=2))


def record(folder: str | Path, stream: Iterator[Event | Checkpoint]) -> Iterator[Event]:
    """Write what ``prune`` yields into ``folder`` and pass the events on.

    Raises:
        ValueError: the folder holds another run already, or another process is writing it.
        OSError: it cannot be written (a full disk, say); what was saved before is intact.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=1)  # who only asks whether it is running holds it for a moment
    except filelock.Timeout:
        raise ValueError(f"{folder}: another process is writing this run. Wait for it, or stop it first.") from None
    try:
        yield from _record(folder, stream)
    finally:
        lock.release()


def _record(folder: Path, stream: Iterator[Event | Checkpoint]) -> Iterator[Event]:
    journal = folder / "events.jsonl"
    for orphan in folder.rglob(".*.tmp"):  # of a process that was killed while it wrote
        orphan.unlink(missing_ok=True)
    lines, resumed = _mend(journal), False
    with contextlib.closing(stream), journal.open("a", encoding="utf-8") as file:  # type: ignore[type-var]
        for item in stream:
            if not journal.is_file():
                raise ValueError(f"{folder}: was deleted or moved while the run was going on. It ends here.")
            if isinstance(item, Checkpoint):
                os.fsync(file.fileno())  # a checkpoint must not outlive the events that it stands on
                _save(folder, item, lines)
                continue
            if isinstance(item, Resumed):
                if not lines:
                    raise ValueError(
                        f"{folder}: no run is there to go on with. Pass the folder of the checkpoint's run."
                    )
                if item.recorded not in (None, lines):
                    raise ValueError(
                        f"{folder}: another process has gone on meanwhile. Read its last checkpoint again."
                    )
                resumed = True
            elif isinstance(item, RunStarted) and not resumed:
                _refuse_occupied(folder, item)
                write_config(folder, item.config)
            file.write(json.dumps({"time": round(time.time(), 3), **item.to_json()}) + "\n")
            file.flush()
            lines += 1
            yield item


def _mend(journal: Path) -> int:
    """Cut off a line that was being written when its process was killed; the number of whole lines."""
    if not journal.exists():
        return 0
    content = journal.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        with journal.open("r+b") as file:
            file.truncate(len(whole))
    return whole.count(b"\n")


def _refuse_occupied(folder: Path, start: RunStarted) -> None:
    """A new run wants a folder of its own; one that was killed before it had said a word may begin again."""
    found = {path.name for path in folder.iterdir()}.difference(_BESIDE, {"events.jsonl", "config.json"})
    started = (folder / "events.jsonl").stat().st_size > 0
    if started or found or not _is_its_config(folder / "config.json", start.config):
        raise ValueError(f"{folder}: is not empty. Pass a new folder, or resume the run that is in it.")


def _is_its_config(path: Path, config: Mapping[str, Any]) -> bool:
    """The file is not there, or holds ``config`` but for what changes no result."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return True
    except (ValueError, OSError, RecursionError):
        return False
    return isinstance(found, dict) and {**found, **dict.fromkeys(FREE)} == {**config, **dict.fromkeys(FREE)}


def _lines(folder: Path) -> list[Event]:
    """All whole lines of the journal, superseded ones too."""
    journal = folder / "events.jsonl"
    if not journal.exists():
        return []
    lines = journal.read_bytes().split(b"\n")[:-1]  # what follows the last line break is unfinished
    events = []
    for number, line in enumerate(lines, start=1):
        try:
            events.append(from_json(json.loads(line)))
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{journal}: line {number} is damaged ({reason_of(error)}). Restore the file, or run anew."
            ) from error
    return events


def story(folder: str | Path) -> list[Event]:
    """The events of a run as one consistent story: without those that came again after a resume."""
    return [event for _, event in _told(_lines(Path(folder)))]


def _told(events: list[Event]) -> list[tuple[int, Event]]:
    """The events that stand, with their numbers."""
    told: list[tuple[int, Event]] = []
    for number, event in enumerate(events):
        if isinstance(event, Resumed):
            told = [(earlier, said) for earlier, said in told if earlier < event.supersedes]
        told.append((number, event))
    return told


def read_config(folder: str | Path) -> RunConfig:
    """The configuration of a run.

    Raises:
        ValueError: there is no run in this folder.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        if any((Path(folder) / name).exists() for name in ("events.jsonl", "status.json")):
            raise ValueError(f"{path}: is not there, but what else belongs to a run is. Restore it, or run anew.")
        raise ValueError(f"{folder}: no run is there (no config.json). See randprune runs for those that are.")
    try:
        return RunConfig.model_validate_json(path.read_text(encoding="utf-8"))
    except pydantic.ValidationError as error:
        raise ValueError(f"{path}: {_unlike_ours(error.errors())}") from error
    except ValueError as error:
        raise ValueError(
            f"{path}: is no configuration of a run ({reason_of(error)}). Restore it, or run anew."
        ) from error


def _unlike_ours(problems: Sequence[Mapping[str, Any]]) -> str:
    """What pydantic found wrong with a configuration, and what to do."""
    given = problems[0]["input"]
    unknown = [name for name in given if name not in RunConfig.model_fields] if isinstance(given, dict) else []
    if unknown:
        return (
            f"a newer version wrote it, this one knows no setting {unknown[0]!r:.60}. Update: "
            "pip install -U randprune-lab."
        )
    reason = problem_of(problems[0]).rstrip(".")[:300]
    return (
        f"is no configuration of a run as this version knows them ({reason}). Restore it, run anew, or, if a newer "
        "version wrote it, update: pip install -U randprune-lab."
    )


def last_checkpoint(folder: str | Path) -> Checkpoint | None:
    """Where a run can go on: its newest readable checkpoint, and the candidates that were judged after it.

    None where no run has started. A run that was killed before its first checkpoint starts over.

    Raises:
        ValueError: the run is finished.
    """
    folder = Path(folder)
    events = _lines(folder)
    _check_whole(folder, events)
    if not events:
        return None
    told = _told(events)
    if any(isinstance(event, RunFinished) for _, event in told):
        raise ValueError(f"{folder}: the run is finished, there is nothing to resume. Start another one.")
    read_config(folder)
    started = next(event for event in events if isinstance(event, RunStarted))
    # Whatever became of config.json.
    begun: dict[str, Any] = {"config": started.config, "data": started.data, "processes": started.processes}
    damaged: list[str] = []
    for path in reversed(_checkpoints(folder)):
        try:
            progress, stands, tensors = _load(path)
            if stands > len(events):
                raise ValueError(f"{path}: stands on events that are not there")
            dense = tensors if progress == Progress("scoring", 1) else _dense(folder, progress)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError):
            damaged.append(path.name)
            continue
        after = _judged(told, stands, progress)
        return Checkpoint(
            progress=progress,
            tensors=tensors,
            dense={name[6:]: tensor for name, tensor in dense.items() if name.startswith("model.")},
            scores=tuple(event for _, event in after if isinstance(event, CandidateScored)),
            announced=any(isinstance(event, StageStarted) for _, event in after),
            events=after[-1][0] + 1 if after else stands,
            recorded=len(events),
            damaged=tuple(damaged),
            **begun,
        )
    return Checkpoint(Progress(), {}, recorded=len(events), damaged=tuple(damaged), **begun)


def _check_whole(folder: Path, events: Sequence[Event]) -> None:
    """Checkpoints stand on events."""
    if not events and _checkpoints(folder):
        raise ValueError(f"{folder}: has checkpoints, but no events (events.jsonl). Restore that file, or run anew.")


def _judged(told: list[tuple[int, Event]], stands: int, progress: Progress) -> list[tuple[int, Event]]:
    """The events after a stage boundary that stand: candidates, once judged, are not judged again.

    Before one was judged nothing stands: not all that is said at a stage's start may have been said.
    """
    after: list[tuple[int, Event]] = []
    for number, event in told:
        if progress.phase != "scoring" or number < stands or isinstance(event, Resumed):
            continue
        if not isinstance(event, StageStarted | Warned | CandidateScored):
            break
        after.append((number, event))
    return after if any(isinstance(event, CandidateScored) for _, event in after) else []


def _dense(folder: Path, progress: Progress) -> dict[str, Tensor]:
    """The dense network, which every later stage learns from."""
    if progress.phase == "dense":
        return {}
    for path in reversed(_checkpoints(folder)):
        if path.stem.endswith("-stage0"):
            with contextlib.suppress(SafetensorError, OSError, ValueError, KeyError, TypeError):
                return _load(path)[2]
    raise ValueError("no checkpoint of the dense network can be read")


def _checkpoints(folder: Path) -> list[Path]:
    """Oldest first."""
    return sorted((folder / "checkpoints").glob("[0-9]*.safetensors"))


def _save(folder: Path, checkpoint: Checkpoint, lines: int) -> None:
    progress = checkpoint.progress
    boundary = progress.phase in BOUNDARIES
    stage = progress.stage - (progress.phase == "scoring")
    what = f"stage{stage}" if boundary else f"{progress.phase}{stage}-epoch{progress.epoch}"
    metadata = {"progress": json.dumps(dataclasses.asdict(progress)), "events": str(lines)}
    metadata["checksum"] = _checksum(checkpoint.tensors, metadata)
    existing = _checkpoints(folder)
    number = int(existing[-1].name.split("-")[0]) + 1 if existing else 0
    # What belongs to a stage comes first: once its checkpoint is there, the stage is over and nothing is written again.
    masked = progress.phase == "fine-tuning" and progress.epoch == 0  # the mask was just chosen
    if boundary or masked:
        path = folder / "histograms" / f"{stage}{'-masked' * masked}.json"
        write_atomically(path, json.dumps(_histograms(checkpoint.tensors)), inside=folder)
    if progress.phase == "finished":
        model = {name[6:]: tensor for name, tensor in checkpoint.tensors.items() if name.startswith("model.")}
        files = checkpoint.files or {"model.safetensors": save(model, {"format": "pt"})}
        for name, content in files.items():
            write_atomically(folder / "model" / name, content, inside=folder)
    path = folder / "checkpoints" / f"{number:06d}-{what}.safetensors"
    write_atomically(path, save(checkpoint.tensors, metadata), inside=folder)
    _clear(folder, keep_all=read_config(folder).keep_stages == "all")


def _clear(folder: Path, *, keep_all: bool) -> None:
    """Remove what no resume needs: inside a stage all but the newest two; with keep_stages = last, old stages too."""
    paths = _checkpoints(folder)
    stages = [path for path in paths if re.search(r"-stage\d+$", path.stem)]
    needed = {*paths[-_KEPT:], *(stages if keep_all else [*stages[:1], *stages[-_KEPT:]])}
    for path in paths:
        if path not in needed:
            path.unlink()


def _load(path: Path) -> tuple[Progress, int, dict[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
    if _checksum(tensors, metadata) != metadata["checksum"]:
        raise ValueError(f"{path}: its checksum does not fit")
    progress = json.loads(metadata["progress"].replace("best_accuracy", "best_metric"))  # its name of before
    return Progress(**progress), int(metadata["events"]), tensors


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    digest = hashlib.blake2b(f"{metadata['progress']} {metadata['events']}".encode(), digest_size=16)
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _histograms(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """Of each pruned parameter: its size, and the bins of a coarse MagnitudeHistogram with the weights kept there."""
    found = {}
    for label, packed in tensors.items():
        if label.startswith("mask."):
            name = label.removeprefix("mask.")
            weight = tensors[f"model.{name}"]
            histogram = MagnitudeHistogram.of(weight, alive=unpack(packed, weight.shape)).coarse()
            counts = zip(histogram.bins.tolist(), histogram.counts.tolist(), strict=True)
            found[name] = {"size": histogram.size, "counts": {str(place): count for place, count in counts}}
    return found


def read_histograms(folder: str | Path, stage: int, *, masked: bool = False) -> dict[str, MagnitudeHistogram]:
    """Magnitudes of the weights kept, by parameter, at the end of ``stage`` (0: dense), or ``masked``: at its start.

    Their bins are at most 0.8 % wide. They stay when the weights themselves do not (keep_stages = last).

    Raises:
        ValueError: the stage was not reached, or the file is damaged.
    """
    path = Path(folder) / "histograms" / f"{stage}{'-masked' * masked}.json"
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        if not Path(folder).is_dir():
            raise ValueError(f"{Path(folder).name}: this run is not there any more. Choose another model.") from error
        raise ValueError(f"{path}: cannot be read ({error}). Choose a stage that the run has reached.") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is damaged ({error!r}). Restore it, or run anew.") from error
    try:
        return {name: _recorded(record) for name, record in records.items()}
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(
            f"{path}: holds no histograms as this version records them ({error!r}). Restore it, or run anew."
        ) from error


def _recorded(record: Mapping[str, Any]) -> MagnitudeHistogram:
    bins = np.array([int(place) for place in record["counts"]], dtype=np.int64)
    counts = np.array(list(record["counts"].values()), dtype=np.int64)
    size = int(record["size"])
    rising = bool((np.diff(bins) > 0).all() and (bins > 0).all() and (bins < INFINITY_BIN).all())
    if not rising or (counts < 1).any() or not 0 < counts.sum() <= size <= 2**40:
        raise ValueError("bins must rise, counts be positive and not more than the size")
    return MagnitudeHistogram(bins, counts, size)


def stage_checkpoints(folder: str | Path) -> tuple[dict[int, Path], dict[int, Path]]:
    """Checkpoints by stage: those at its end, with the weights (0: dense), and those that hold its mask."""
    ends: dict[int, Path] = {}
    masked: dict[int, Path] = {}
    for path in _checkpoints(Path(folder)):
        end, tuning = re.search(r"-stage(\d+)$", path.stem), re.search(r"-fine-tuning(\d+)-", path.stem)
        if end:
            ends[int(end[1])] = path
        found = end or tuning
        if found and int(found[1]):
            masked[int(found[1])] = path
    return ends, masked


def dense_weights(folder: str | Path) -> dict[str, Tensor]:
    """The dense network's tensors by name.

    Raises:
        ValueError: no checkpoint of it can be read.
    """
    tensors = _dense(Path(folder), Progress("finished"))
    return {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name.startswith("model.")}


def stage_table(folder: str | Path) -> list[dict[str, Any]]:
    """A row for the dense network (stage 0) and for each finished stage, of plain values.

    ``compression`` counts the prunable weights, ``whole_model`` all parameters; ``winner``, ``ir`` and ``swapped`` are
    None for the dense network; ``samples`` is M, or its range over the tensors, as text; ``score`` is that of the
    reported split by ``metric``, the name of the task's own measure.
    """
    return stage_rows(story(folder))


def stage_rows(events: Iterable[Event]) -> list[dict[str, Any]]:
    """The same from a run's ``story``, of which there may be a beginning only."""
    rows: list[dict[str, Any]] = []
    prunable = parameters = 0
    metric = "accuracy"
    chosen: dict[str, Any] = {}
    for event in events:
        match event:
            case RunStarted():
                prunable, parameters = sum(event.prunable.values()), event.parameters
                metric = event.metric
            case StageStarted():
                fewest, most = min(event.samples.values(), default=0), max(event.samples.values(), default=0)
                chosen = {"samples": "" if not most else f"{fewest:,}" if fewest == most else f"{fewest:,} - {most:,}"}
            case MaskChosen():
                chosen |= {"winner": event.winner, "ir": event.ir, "swapped": event.swapped}
            case DenseFinished() | StageFinished():
                dense = isinstance(event, DenseFinished)
                kept = prunable if isinstance(event, DenseFinished) else event.kept
                nothing = {"samples": "", "winner": None, "ir": None, "swapped": None}
                rows.append(
                    {
                        "stage": 0 if isinstance(event, DenseFinished) else event.stage,
                        "sparsity": 0.0 if isinstance(event, DenseFinished) else event.sparsity,
                        "kept": kept,
                        "compression": prunable / kept,
                        "whole_model": parameters / (parameters - prunable + kept),
                        **(nothing if dense else chosen),
                        "metric": metric,
                        "selection_score": event.selection.metric,
                        "score": event.test.metric,
                    }
                )
    return rows


@dataclasses.dataclass(frozen=True)
class RunSummary:
    """A run's files in one line. ``status``: running, finished, stopped (it can be resumed) or damaged.

    Whether a process waits, stops or has failed, ``jobs.status`` knows. ``config`` is None where it cannot be read.
    """

    folder: Path
    config: RunConfig | None
    status: str
    stages_done: int
    sparsity: float | None
    score: float | None


def runs(parent: Path | None = None) -> list[RunSummary]:
    """All runs of a folder, oldest first, damaged ones too; what is no run is passed over."""
    return [_summary_of(folder) for folder in run_folders(parent)]


def run_folders(parent: Path | None = None) -> list[Path]:
    """The folders of all runs, oldest first; what is no run is passed over."""
    try:
        return sorted(path for path in (parent or runs_folder()).iterdir() if is_run(path))
    except OSError:  # there is no such folder, or it is not ours to read
        return []


def is_run(folder: Path) -> bool:
    """A run is here: its journal or its process's status, or at least its configuration."""
    if any(os.path.lexists(folder / name) for name in ("events.jsonl", "status.json")):
        return True
    with contextlib.suppress(ValueError, OSError):
        read_config(folder)
        return True
    return False


def _summary_of(folder: Path) -> RunSummary:
    """The same as ``summary``, whatever lies in the folder."""
    try:
        return summary(folder)
    except Exception:  # of a file that somebody else wrote, anything may be wrong
        config = None
        with contextlib.suppress(ValueError, OSError):
            config = read_config(folder)
        return RunSummary(folder, config, "damaged", 0, None, None)


def summary(folder: Path) -> RunSummary:
    """How far a run is, from its files alone."""
    told = story(folder)
    _check_whole(folder, told)
    done = [event for event in told if event.kind == "stage_finished"]
    finished = any(event.kind == "run_finished" for event in told)
    last: Any = done[-1] if done else None
    status = "finished" if finished else "running" if is_held(folder / ".lock") else "stopped"
    return RunSummary(
        folder,
        read_config(folder),
        status,
        len(done),
        last.sparsity if last else None,
        last.test.metric if last else None,
    )
