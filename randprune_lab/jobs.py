"""Runs as processes of their own: started, watched, stopped and resumed from wherever one sits.

Each run has its process from the start, also while it waits for its turn (``work.py``): there is no scheduler and no
server, and nothing of a run is lost when the program that started it ends. What is known of the processes lies in the
runs' folders (``status.py``), so that every program and every tab sees the same.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

import randprune_lab
from randprune_lab import status as statuses
from randprune_lab import store
from randprune_lab.config import FREE, RunConfig
from randprune_lab.files import is_held, open_own, reason_of, write_atomically
from randprune_lab.status import CANCEL, Record, Status

LOG, NOTE = "log.txt", "note.txt"
NOTE_LENGTH = 10_000
_PATIENCE = 12.0  # seconds until a process that is to stop is asked harder
_APART = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0) | getattr(subprocess, "CREATE_NO_WINDOW", 0)  # Windows


def slots() -> int:
    """How many runs may work at a time: RANDPRUNE_SLOTS, else the number of GPUs, else 1."""
    text = os.environ.get("RANDPRUNE_SLOTS", "")
    if not text:
        return torch.cuda.device_count() or 1
    if not text.isdecimal() or not 1 <= int(text) <= 1024:
        raise ValueError(f"RANDPRUNE_SLOTS = {text!r}: must be a whole number from 1 to 1024. Set it anew.")
    return int(text)


def start(config: RunConfig, *, parent: Path | None = None) -> Path:
    """Start a run as a process of its own; returns its folder, in ``parent`` or the folder of runs.

    Raises:
        ValueError: the same run waits or works already, or nothing can be written there.
    """
    return start_all([config], parent=parent)[0]


def start_all(configs: Sequence[RunConfig], *, parent: Path | None = None) -> list[Path]:
    """Start several runs, which take their turns in this order; all or none. Without a ``group`` they become one.

    Raises:
        ValueError: one of them waits or works already or is there twice, or nothing can be written there.
    """
    parent = (store.runs_folder() if parent is None else Path(parent)).absolute()
    count = slots()
    for config in configs:
        _refuse_objects(config)
    with saying_what_failed(parent):
        parent.mkdir(parents=True, exist_ok=True)
    with statuses.queue_lock(parent):
        _refuse_twice(configs, parent)
        folders: list[Path] = []
        try:
            with saying_what_failed(parent):
                for config in configs:
                    folders.append(store.new_folder(config, parent=parent))
                    grouped = config.model_copy(update={"group": config.group or folders[0].name})
                    store.write_config(folders[-1], grouped.model_dump(mode="json"))
                    statuses.write(folders[-1], Record(state="queued", queued_at=time.time_ns() + len(folders)))
                for folder in folders:
                    _launch(folder, count)
        except BaseException:
            for folder in folders:
                shutil.rmtree(folder, ignore_errors=True)  # a process that was started ends when it finds nothing
            raise
    return folders


def resume(
    folder: str | Path,
    *,
    wave: int | None = None,
    executor: str | None = None,
    ray_address: str | None = None,
    ray_gpus: float | None = None,
) -> None:
    """Let a run go on from its last finished piece of work, when its turn comes.

    Args:
        folder: of the run.
        wave: candidates trained at once from now on; None, here and below: as its configuration says. None of these
            changes a result.
        executor: where candidates are judged from now on, such as "lockstep" where the cluster is gone.
        ray_address: the cluster from now on; "": one is started.
        ray_gpus: GPUs of each candidate from now on.

    Raises:
        ValueError: it waits or works already, is finished or damaged, a setting cannot be, or nothing can be written
            there.
    """
    folder = Path(folder).absolute()
    count = slots()
    free = {"wave": wave, "executor": executor, "ray_address": ray_address, "ray_gpus": ray_gpus}
    _refuse_objects(going_on(store.read_config(folder), free))
    with statuses.queue_lock(folder.parent):
        found = status(folder)
        if found.is_live:
            raise ValueError(f"{folder.name}: is {found.state} already. Wait for it, or stop it first.")
        if not found.can_resume:
            raise ValueError(f"{folder.name}: is {found.state}, there is nothing to resume. {found.message}".strip())
        with saying_what_failed(folder):
            (folder / CANCEL).unlink(missing_ok=True)
            (folder / statuses.RESERVE).unlink(missing_ok=True)
            statuses.write(folder, Record(state="queued", queued_at=time.time_ns()))
            given = [(f"--{name.replace('_', '-')}", str(value)) for name, value in free.items() if value is not None]
            _launch(folder, count, *itertools.chain(*given))


def going_on(config: RunConfig, free: Mapping[str, Any]) -> RunConfig:
    """A run's configuration with other settings out of ``config.FREE`` where they are not None.

    Raises:
        ValueError: one of them cannot be.
    """
    given = {name: value for name, value in free.items() if value is not None}
    return RunConfig.model_validate(config.model_dump() | given)


def _refuse_objects(config: RunConfig) -> None:
    if config.own:
        raise ValueError(
            "'object' as model, task or criterion stands for things given from Python, which no other process has. "
            "Start and resume such a run there, with prune."
        )


def _refuse_twice(configs: Sequence[RunConfig], parent: Path) -> None:
    """No two tabs, and no double click, start the same run twice."""
    known: list[tuple[str, dict[str, Any]]] = []
    for folder in statuses.all_live(parent):
        with contextlib.suppress(ValueError, OSError):
            known.append((folder.name, _work_of(store.read_config(folder))))
    for config in configs:
        same = next((name for name, work in known if work == _work_of(config)), None)
        if same is not None:
            raise ValueError(f"the same run waits or works already: {same}. Wait for it, or change a setting.")
        known.append(("it is given twice", _work_of(config)))


def _work_of(config: RunConfig) -> dict[str, Any]:
    """What a run's result depends on."""
    return config.model_dump(exclude={*FREE, "group"})


@contextlib.contextmanager
def saying_what_failed(folder: Path) -> Iterator[None]:
    """Inside, an error of the disk becomes a ValueError that says what to do."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "the disk is full" if full else error.strerror or reason_of(error)
        fix = "Free some space" if full else "Mend that, or choose another runs folder"
        raise ValueError(f"{folder}: cannot be written or deleted ({reason}). {fix}, then try again.") from error


def _launch(folder: Path, count: int, *arguments: str) -> None:
    begin("work", folder, "--slots", str(count), "--gpus", str(torch.cuda.device_count()), *arguments)


def begin(room: str, folder: Path, *arguments: str) -> None:
    """Start ``python -m randprune_lab.ROOM FOLDER`` for a folder that status.json says is queued; its log is log.txt.

    The caller holds the lock of the queue.
    """
    if (folder / LOG).is_symlink():
        (folder / LOG).unlink()  # nothing is written elsewhere
    with (folder / LOG).open("ab") as log:
        process = subprocess.Popen(
            [*module_command(room), str(folder), *arguments],
            env=module_environment() | {"TQDM_DISABLE": "1", "PYTHONIOENCODING": "utf-8:replace"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # it outlives this program and its terminal
            creationflags=_APART,
        )
    threading.Thread(target=process.wait, daemon=True).start()  # so that no zombie stays
    queued = statuses.read(folder)
    with contextlib.suppress(psutil.Error):  # it is over already
        if queued is not None:
            statuses.write(folder, queued.of(psutil.Process(process.pid)))


def module_command(room: str) -> list[str]:
    """Runs a room of this package in another process; files of the working folder do not pass for modules there."""
    return [sys.executable, "-P", "-m", f"randprune_lab.{room}"]


def module_environment() -> dict[str, str]:
    """The environment of that process: two torch processes do not spin against each other, and it finds the package."""
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
    package = Path(randprune_lab.__file__).parents[1]
    if package.name != "site-packages":  # a checkout, which the other process may not find by itself
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(package)]))
    return environment


def status(folder: str | Path) -> Status:
    """How a run stands, whatever lies in its folder.

    Raises:
        ValueError: there is no such folder.
    """
    folder = Path(folder).absolute()
    if not folder.is_dir():
        raise ValueError(f"{folder}: no run is there. See randprune runs for those that are.")
    age, record = statuses.age_of(folder), statuses.live(folder)
    if record is not None:
        state = "stopping" if (folder / CANCEL).exists() else record.state
        position = statuses.position(folder) if state == "queued" else None
        return Status(state, record.message, position, age, record.pid, record.slot)
    if is_held(folder / ".lock"):
        return Status("running", "Another program works on it (Python, a notebook): only there can it be stopped.")
    finished, damage = _files_say(folder)
    record = statuses.read(folder)
    if damage:
        return Status("damaged", damage, age=age)
    if finished:
        return Status("finished", record.message if record and record.state == "finished" else "", age=age)
    if record is None or record.state in ("stopped", "failed"):
        return Status(record.state if record else "stopped", record.message if record else "", age=age)
    killed = "It was killed, or the machine went down: resume goes on from its last finished piece of work."
    return Status("interrupted", killed, age=age)


def _files_say(folder: Path) -> tuple[bool, str]:
    """Whether a run is finished, and what is wrong with its files."""

    def version(name: str) -> tuple[int, int, int] | None:
        with contextlib.suppress(OSError):
            file = (folder / name).stat()
            return file.st_ino, file.st_mtime_ns, file.st_size
        return None

    return _read_files(folder, version("config.json"), version("events.jsonl"))


@functools.lru_cache(maxsize=4096)
def _read_files(folder: Path, *_: object) -> tuple[bool, str]:
    """Read anew only when they have changed: a page asks every second."""
    try:
        return store.summary(folder).status == "finished", ""
    except (ValueError, OSError) as error:
        return False, " ".join(str(error).split())
    except Exception as error:  # of a file that somebody else wrote, anything may be wrong
        return False, f"{folder}: its files are damaged ({error!r}). Restore them, or delete the run."


def wait(folder: str | Path, timeout: float | None = None) -> Status:
    """Wait until no process works on a run or waits to, at most ``timeout`` seconds; returns how it stands then."""
    until = None if timeout is None else time.monotonic() + timeout
    while (found := status(folder)).is_live and (until is None or time.monotonic() < until):
        time.sleep(0.1)
    return found


def stop(folder: str | Path, *, wait: bool = True) -> None:
    """Stop a run within a step, or take it out of the queue; resume goes on with it.

    ``wait``: until it has stopped; a process that does not answer is terminated, and at last killed.

    Raises:
        ValueError: no process works on it or waits to, it is another program's, or it cannot be stopped from here.
    """
    folder = Path(folder).absolute()
    found = status(folder)
    if not found.is_live:
        raise ValueError(f"{folder.name}: is {found.state}, there is nothing to stop.")
    if statuses.live(folder) is None and is_held(folder / ".lock"):
        raise ValueError(f"{folder.name}: another program works on it (Python, a notebook). Stop it there.")
    with contextlib.suppress(OSError):  # where nothing can be written, it is terminated
        (folder / CANCEL).touch()
        if not wait or _ends(folder):
            return
    for how in (psutil.Process.terminate, psutil.Process.kill):
        record = statuses.live(folder)
        process = record.process() if record else None
        if process:
            statuses.kill(process, how)
        if _ends(folder):
            return
    raise ValueError(f"{folder.name}: its process does not end. End it on the machine that it works on.")


def _ends(folder: Path) -> bool:
    """No process works on it any more, before patience is over."""
    until = time.monotonic() + _PATIENCE
    while statuses.is_live(folder):
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def delete(folder: str | Path) -> None:
    """Delete a run with all its files.

    Raises:
        ValueError: no run is there, a process works on it, or its files cannot be deleted.
    """
    folder = Path(folder).absolute()
    _check_run(folder)
    with statuses.queue_lock(folder.parent):
        if statuses.is_live(folder):
            raise ValueError(f"{folder.name}: a process works on it, or waits to. Stop it first.")
        with saying_what_failed(folder):
            shutil.rmtree(folder)


def read_note(folder: str | Path) -> str:
    """What somebody wrote about a run; "" if nobody did."""
    try:
        with open_own(Path(folder) / NOTE) as file:
            return file.read().decode(errors="replace")[:NOTE_LENGTH]
    except OSError:
        return ""


def write_note(folder: str | Path, text: str) -> None:
    """Write something about a run, in place of what was there.

    Raises:
        ValueError: no run is there, the text is too long, or it cannot be written.
    """
    folder = Path(folder)
    _check_run(folder)
    if len(text) > NOTE_LENGTH:
        raise ValueError(f"a note of {len(text):,} characters: at most {NOTE_LENGTH:,} are kept. Shorten it.")
    with saying_what_failed(folder):
        write_atomically(folder / NOTE, text.encode(errors="replace"))


def _check_run(folder: Path) -> None:
    """Not any folder that somebody names."""
    if folder.is_symlink() or not folder.is_dir() or not store.is_run(folder):
        raise ValueError(f"{folder}: no run is there. See randprune runs for those that are.")
