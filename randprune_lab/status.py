"""Which process works on a run, waits to, or why none does any more: ``status.json`` in the run's folder.

The file says what was begun and by which process; that process touches it every two seconds (its heartbeat). Who
reads it asks the system whether the process is still there. A file ``cancel`` beside it asks the process to stop. The
runs that wait are a queue, by the time at which they were put there; who puts one in, takes one out or lets one begin
holds ``.queue.lock`` of the runs folder meanwhile.

Imports no torch: a run that waits for its turn takes little memory.
"""

from __future__ import annotations

import _thread
import contextlib
import dataclasses
import errno
import functools
import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal

import filelock
import psutil
import pydantic

from randprune_lab.files import is_held, reason_of, write_atomically

FILE, CANCEL, RESERVE = "status.json", "cancel", ".reserve"
LIVE = ("queued", "running", "stopping")
GRACE = 10.0  # seconds without a heartbeat after which a process of another machine counts as dead
_BEAT, _LOOK, _ANSWER = 2.0, 0.2, 10.0  # seconds: between heartbeats; between looks at ``cancel``; until it is killed
_ROOM = 64 * 1024  # bytes kept free for the last word on a full disk


@dataclasses.dataclass(frozen=True)
class Status:
    """How a run stands.

    Attributes:
        state: "queued", "running" or "stopping": a process is there; "finished"; "stopped" on request; "failed", and
            ``message`` says why; "interrupted": killed, or the machine went down; "damaged": its files cannot be read.
        message: a sentence, or "" where there is nothing to say.
        position: of a queued run, 1 = next.
        age: seconds since the last heartbeat.
        pid: of its process.
        slot: the place that it works in, from 0.
    """

    state: str
    message: str = ""
    position: int | None = None
    age: float | None = None
    pid: int | None = None
    slot: int | None = None

    @property
    def is_live(self) -> bool:
        """A process works on it or waits to."""
        return self.state in LIVE

    @property
    def can_resume(self) -> bool:
        """It is not finished, and nobody works on it."""
        return self.state in ("stopped", "failed", "interrupted")


class Record(pydantic.BaseModel):
    """What ``status.json`` holds: the last word of the process, or of whoever is about to start it."""

    model_config = pydantic.ConfigDict(frozen=True, strict=True)

    state: Literal["queued", "running", "finished", "stopped", "failed"]
    message: str = ""
    queued_at: Annotated[int, pydantic.Field(ge=0, lt=2**63)]  # nanoseconds since 1970
    pid: Annotated[int, pydantic.Field(ge=1, lt=2**31)] | None = None
    created: float | None = None  # when that process began: numbers of processes are used again
    host: str = ""
    slot: Annotated[int, pydantic.Field(ge=0, lt=2**31)] | None = None

    def of(self, process: psutil.Process, **changes: Any) -> Record:
        """The same, as that of ``process``."""
        created = process.create_time()
        return self.model_copy(update={"pid": process.pid, "created": created, "host": platform.node(), **changes})

    @property
    def is_here(self) -> bool:
        """It is of this machine."""
        return self.host == platform.node()

    def process(self) -> psutil.Process | None:
        """The process on this machine, if it still lives."""
        if self.pid is None or self.created is None or not self.is_here:
            return None
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(self.pid)
            # A clock that is set meanwhile moves what the system says by as much, at most a little while it runs.
            if abs(process.create_time() - self.created) < 1 and process.status() != psutil.STATUS_ZOMBIE:
                return process
        return None


def read(folder: Path) -> Record | None:
    """What status.json says; None where it is not there or is not one."""
    try:
        file = (folder / FILE).stat()
        return _parsed(folder / FILE, file.st_ino, file.st_mtime_ns, file.st_size)
    except (OSError, ValueError):
        return None


@functools.lru_cache(maxsize=4096)
def _parsed(path: Path, *_: int) -> Record:
    """Read anew only when the file is another or has changed."""
    return Record.model_validate_json(path.read_bytes())


def write(folder: Path, record: Record) -> None:
    """Write status.json."""
    write_atomically(folder / FILE, record.model_dump_json(indent=2), inside=folder)


def age_of(folder: Path) -> float | None:
    """Seconds since the last heartbeat."""
    try:
        return time.time() - (folder / FILE).stat().st_mtime
    except OSError:
        return None


def live(folder: Path) -> Record | None:
    """The record of the process that works on a run or waits to, if it still lives."""
    record = read(folder)
    if record is None or record.state not in LIVE:
        return None
    if record.pid is None:  # about to be started
        return record if abs(time.time() - record.queued_at / 1e9) < GRACE else None
    if record.is_here:
        return record if record.process() else None
    age = age_of(folder)
    return record if age is not None and abs(age) < GRACE else None


def is_live(folder: Path) -> bool:
    """A process works on the run or waits to, be it a job or not."""
    return live(folder) is not None or is_held(folder / ".lock")


def all_live(parent: Path) -> dict[Path, Record]:
    """The runs in ``parent`` that a process works on or waits for, in the order in which they were put there."""
    try:
        folders = [Path(entry.path) for entry in os.scandir(parent)]
    except OSError:
        return {}
    found = {folder: record for folder in folders if (record := live(folder)) is not None}
    return dict(sorted(found.items(), key=lambda item: (item[1].queued_at, item[0].name)))


def position(folder: Path) -> int | None:
    """A queued run's place in the queue, 1 = next."""
    queue = [other.name for other, record in all_live(folder.parent).items() if record.state == "queued"]
    return queue.index(folder.name) + 1 if folder.name in queue else None


@contextlib.contextmanager
def queue_lock(parent: Path) -> Iterator[None]:
    """Inside, nobody else puts a run of this folder into the queue, takes one out or resumes one.

    Raises:
        ValueError: the folder is not there or cannot be written, or another process holds the lock for too long.
    """
    if not parent.is_dir():  # the lock would make it anew
        raise ValueError(f"{parent}: is no folder. Pass the folder of runs.")
    lock = filelock.FileLock(parent / ".queue.lock")
    try:
        lock.acquire(timeout=30)
    except filelock.Timeout:
        raise ValueError(f"{parent}: another process has held .queue.lock for 30 seconds. Try again.") from None
    except OSError as error:
        raise ValueError(f"{parent}: cannot be written ({reason_of(error)}). Choose another runs folder.") from error
    try:
        yield
    finally:
        lock.release()


def sentence_of(error: BaseException) -> str | None:
    """What to tell people of an error that ended a run; None of one that nobody foresaw."""
    if isinstance(error, OSError):
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return "The disk is full. What was saved is intact: free some space, then resume."
        return f"A file cannot be read or written ({reason_of(error)}). What was saved is intact: mend it, then resume."
    if isinstance(error, RuntimeError):
        from randprune_lab.training import Diverged, OutOfMemory

        return reason_of(error) if isinstance(error, Diverged | OutOfMemory) else None
    return " ".join(str(error).split()) if isinstance(error, ValueError) else None


class Attended:
    """Inside, this process is the one that works on the run in ``folder``, and status.json says so.

    A ``cancel`` file, SIGTERM or the folder's deletion raise KeyboardInterrupt in the main thread, where this must be
    used; one that does not answer for ten seconds is ended. On the way out the run's last state is written.

    Args:
        folder: of the run.
        queued: it waits for its turn first: ``jobs`` has put it into the queue. Otherwise it begins at once, and
            takes nobody's turn.

    Raises:
        ValueError: another process works on the run already, or waits to.
        OSError: nothing can be written there.
    """

    def __init__(self, folder: Path, *, queued: bool = False) -> None:
        self.folder = folder.resolve()
        self.cancelled = threading.Event()
        self._queued = queued
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._handlers: dict[int, Any] = {}
        self._me = psutil.Process()

    def __enter__(self) -> Attended:
        with queue_lock(self.folder.parent):
            found = read(self.folder)
            # Of a virtual environment on Windows our parent is what was started.
            expected = found is not None and self._queued and found.pid in (None, os.getpid(), os.getppid())
            if not expected and is_live(self.folder):
                raise ValueError(f"{self.folder}: another process works on this run, or waits to. Stop it first.")
            if not self.folder.is_dir() or (self._queued and not expected):
                raise ValueError(f"{self.folder}: was deleted, or is not in the queue. Start or resume it.")
            since = found.queued_at if found is not None and expected else time.time_ns()
            self.record = Record(state="queued" if self._queued else "running", queued_at=since).of(self._me)
            try:
                if not self._queued:
                    (self.folder / CANCEL).unlink(missing_ok=True)  # what a queued run finds is meant for it
                (self.folder / RESERVE).unlink(missing_ok=True)
                write(self.folder, self.record)
                (self.folder / RESERVE).write_bytes(os.urandom(_ROOM))
            except OSError as error:
                self._end("failed", sentence_of(error) or "")
                raise
        for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, self._terminated)):
            self._handlers[number] = signal.signal(number, handler)
        self._watcher.start()
        return self

    def tell(self, **changes: Any) -> None:
        """Change what status.json says: ``state``, ``slot``, ``message``."""
        self.record = self.record.model_copy(update=changes)
        write(self.folder, self.record)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._over.set()
        for number in self._handlers:  # one that is on its way would leave the last word unsaid
            signal.signal(number, lambda *_: None)
        self._watcher.join()
        if error is None:
            self._end("finished", self.record.message)
        elif self.cancelled.is_set() or not isinstance(error, Exception):
            self._end("stopped")
        else:
            unforeseen = f"An error that nobody foresaw: {type(error).__name__}: {reason_of(error)}; see log.txt."
            self._end("failed", sentence_of(error) or unforeseen)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _end(self, state: Literal["finished", "stopped", "failed"], message: str = "") -> None:
        """The last word. Nothing is written where the run was deleted, or is another process's by now."""
        if not self._is_ours():
            return
        with contextlib.suppress(OSError):
            (self.folder / RESERVE).unlink(missing_ok=True)  # room, should the disk be full
            write(self.folder, self.record.model_copy(update={"state": state, "message": message, "slot": None}))
            (self.folder / CANCEL).unlink(missing_ok=True)

    def _is_ours(self) -> bool:
        found = read(self.folder)
        return (self.folder / FILE).is_file() if found is None else found.pid == self.record.pid

    def _terminated(self, *_: object) -> None:
        self.cancelled.set()
        raise KeyboardInterrupt

    def _watch(self) -> None:
        beat = 0.0
        while not self._over.wait(_LOOK):
            if time.monotonic() - beat > _BEAT:
                beat = time.monotonic()
                with contextlib.suppress(OSError):
                    os.utime(self.folder / FILE)
            if (self.folder / CANCEL).exists() or not self._is_ours():
                self.cancelled.set()
                self._interrupt()
            elif read(self.folder) is None:  # somebody has damaged it
                with contextlib.suppress(OSError):
                    write(self.folder, self.record)

    def _interrupt(self) -> None:
        """Interrupt the main thread: again and again, since Python drops an interrupt that falls into a destructor."""
        deadline = time.monotonic() + _ANSWER
        while time.monotonic() < deadline:
            if hasattr(signal, "pthread_kill"):
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)  # wakes it when it sleeps, too
            else:
                _thread.interrupt_main()
            if self._over.wait(1):
                return
        self._end("stopped")
        kill(self._me)


def kill(process: psutil.Process, how: Callable[[psutil.Process], None] = psutil.Process.kill) -> None:
    """End a process and those that it has started."""
    with contextlib.suppress(psutil.Error):
        for one in [*process.children(recursive=True), process]:
            with contextlib.suppress(psutil.Error):
                how(one)
