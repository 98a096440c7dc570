"""The process of a run, ``python -m randprune_lab.work FOLDER``: it waits for its turn, works, and writes the report.

Started by ``jobs``; what it prints goes to the run's log.txt. Until its turn has come it imports no torch.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import filelock
import psutil

from randprune_lab import status
from randprune_lab.files import reason_of
from randprune_lab.status import Attended

if TYPE_CHECKING:
    from randprune_lab.events import Event, Score

_FREE = {"wave": int, "executor": str, "ray_address": str, "ray_gpus": float}  # config.FREE, which would import torch
_LOOK, _SELDOM = 0.3, 10.0  # seconds between looks at the queue: of the first in it, and of those far behind


def main(arguments: Sequence[str] | None = None) -> int:
    """Work on one run; the exit code is 0 where it is finished."""
    parser = argparse.ArgumentParser(prog="python -m randprune_lab.work", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, help="of the run")
    parser.add_argument("--slots", type=int, default=1, help="runs that may work at a time")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs that there are")
    for name, kind in _FREE.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help="instead of what its configuration says")
    given = parser.parse_args(arguments)

    def take_part(job: Attended) -> None:
        slot = _take_turn(job, given.slots)
        if given.gpus:  # before torch is imported
            os.environ["CUDA_VISIBLE_DEVICES"] = gpu_of(slot, given.gpus, os.environ.get("CUDA_VISIBLE_DEVICES"))
        _work(job, {name: getattr(given, name) for name in _FREE})

    return attend(given.folder, take_part)


def attend(folder: Path, work: Callable[[Attended], None]) -> int:
    """Do the work of a folder that is in the queue; whatever ends it stands in log.txt and in the exit code."""
    try:
        with Attended(folder, queued=True) as job:
            _lower_priority()
            work(job)
    except KeyboardInterrupt:
        log("stopped")
        return 130
    except Exception as error:  # the last that sees it
        sentence = status.sentence_of(error)
        log(f"failed: {sentence}" if sentence else "failed:")
        if sentence is None:
            traceback.print_exc()
        return 1
    return 0


def _lower_priority() -> None:
    """Sliders stay live beside it."""
    process = psutil.Process()
    with contextlib.suppress(psutil.Error, OSError):
        low = getattr(psutil, "BELOW_NORMAL_PRIORITY_CLASS", None)  # Windows
        process.nice(low if low is not None else max(10, process.nice()))
    with contextlib.suppress(OSError, AttributeError):
        if os.getsid(0) == os.getpid():  # Linux shares out time among sessions first: within its own nobody is asked
            Path("/proc/self/autogroup").write_text("10")


def _take_turn(job: Attended, slots: int) -> int:
    """Wait until a slot is free and nobody is before us, and take it; returns its number."""
    log("waits for its turn")
    while True:
        if _free_slot(job.folder, slots) is not None:
            with status.queue_lock(job.folder.parent):
                slot = _free_slot(job.folder, slots)
                if slot is not None:
                    job.tell(state="running", slot=slot)
                    log("begins")
                    return slot
        place = status.position(job.folder) or 1
        if job.cancelled.wait(min(_LOOK * place, _SELDOM)):
            raise KeyboardInterrupt


def _free_slot(folder: Path, slots: int) -> int | None:
    """The lowest free slot, if this run is the next."""
    live = status.all_live(folder.parent)
    queue = [other.name for other, record in live.items() if record.state == "queued"]
    taken = {record.slot for record in live.values() if record.state == "running"}
    free = [slot for slot in range(slots) if slot not in taken]
    return free[0] if free and queue[:1] == [folder.name] else None


def gpu_of(slot: int, gpus: int, visible: str | None) -> str:
    """What CUDA_VISIBLE_DEVICES must say for a slot to have a GPU of its own, where it says ``visible`` now."""
    names = visible.split(",")[:gpus] if visible else [str(number) for number in range(gpus)]
    return names[slot % len(names)].strip()


def _work(job: Attended, free: Mapping[str, object]) -> None:
    """The run itself. Everything heavy is imported only now."""
    from randprune_lab import jobs, store
    from randprune_lab.engine import prune

    config = jobs.going_on(store.read_config(job.folder), free)
    said = store.record(job.folder, prune(config, resume=store.last_checkpoint(job.folder)))
    with contextlib.closing(said) as events:  # type: ignore[type-var]
        for event in events:
            if line := line_of(event):
                log(line)
    job.tell(message="Its last stage is done; the report is being written.")
    try:
        _conclude(job.folder)
    except Exception as error:  # the run is finished, whatever becomes of its report
        traceback.print_exc()
        job.tell(message=f"The report could not be written ({reason_of(error)}): randprune report tries again.")
    else:
        job.tell(message="")


def _conclude(folder: Path) -> None:
    """Its report. The last run of a group to end writes those of the others anew, too: they have more beside them."""
    from randprune_lab import store
    from randprune_lab.outcome import conclude, group_of

    with filelock.FileLock(folder.parent / ".report.lock"):  # of two that end at a time the second one sees both
        conclude(folder, beside=group_of(folder))
        finished = {other: store.summary(other).status == "finished" for other in group_of(folder)}
        if any(status.is_live(other) for other, over in finished.items() if not over):
            return  # that one will do it
        for other in (other for other, over in finished.items() if over):
            conclude(other, beside=group_of(other))


def line_of(event: Event) -> str | None:
    """An event as people read it; None for those that say nothing by themselves."""
    from randprune_lab import events as kinds

    match event:
        case kinds.RunStarted():
            weights = sum(event.prunable.values())
            return f"prunes {weights:,} weights in {len(event.prunable)} tensors, on {event.device}"
        case kinds.Resumed():
            return "goes on from its last finished piece of work"
        case kinds.Warned():
            return f"warning: {event.text}"
        case kinds.EpochFinished():
            where = f"stage {event.stage}" if event.stage else "dense"
            return f"{where}, epoch {event.epoch}: loss {event.loss:.4g}, {_scored(event.selection)}"
        case kinds.DenseFinished():
            return f"dense network: {_scored(event.selection)}, reported {event.test.metric:.1%}"
        case kinds.StageStarted():
            masks = f", {len(event.candidates)} masks to choose from" if len(event.candidates) > 1 else ""
            return f"stage {event.stage}: sparsity {event.sparsity:g}{masks}"
        case kinds.CandidateScored():
            judged = _scored(event.selection) if event.selection else f"failed: {event.failed}"
            judged += f", dropped after {event.steps} steps" * bool(event.steps)
            return f"stage {event.stage}, mask {event.candidate}: {judged}, ir {event.ir:.4f}"
        case kinds.MaskChosen():
            return f"stage {event.stage}: {f'mask {event.winner}' if event.winner else 'the plain mask'} is chosen"
        case kinds.StageFinished():
            return f"stage {event.stage} finished: {_scored(event.selection)}, reported {event.test.metric:.1%}"
        case kinds.RunFinished():
            return f"finished: sparsity {event.sparsity:.4f}, reported {event.test.metric:.1%}"
    return None


def _scored(score: Score) -> str:
    return f"selection {score.metric:.1%}"


def log(text: str) -> None:
    """A line of log.txt. A full disk is noticed, and said, by what must be written."""
    with contextlib.suppress(OSError):
        print(time.strftime("%Y-%m-%d %H:%M:%S"), text, flush=True)  # noqa: T201, this is its log


if __name__ == "__main__":
    sys.exit(main())
