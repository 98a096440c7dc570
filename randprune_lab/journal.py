"""The journal of a run as those read it who look at it every second: only what is new, and up to the first damage."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import BinaryIO, TypeVar

from randprune_lab.events import Event, Resumed, from_json
from randprune_lab.files import reason_of

EventT = TypeVar("EventT", bound=Event)
_REMEMBERED = 256  # journals
_TAIL = 64  # bytes of what was read before, by which the file is known again


@dataclasses.dataclass(frozen=True)
class Journal:
    """What ``events.jsonl`` says.

    Attributes:
        events: those that stand: without what came again after a resume.
        gaps: seconds of work before each of them.
        worked: seconds of work until the last line, superseded work too, pauses between stop and resume not.
        started, last: when the first and the last line were written (seconds since 1970); None: there is none.
        damage: what is wrong with the first line that cannot be read, a sentence; "": nothing.
    """

    events: tuple[Event, ...] = ()
    gaps: tuple[float, ...] = ()
    worked: float = 0.0
    started: float | None = None
    last: float | None = None
    damage: str = ""

    def all(self, kind: type[EventT]) -> list[EventT]:
        """The events of one kind."""
        return [event for event in self.events if isinstance(event, kind)]

    def newest(self, kind: type[EventT]) -> EventT | None:
        """The last event of one kind."""
        return next((event for event in reversed(self.events) if isinstance(event, kind)), None)


def read_journal(folder: str | Path) -> Journal:
    """The journal of a run's folder; an empty one where there is none. Called again, it reads what has come since."""
    path = (Path(folder) / "events.jsonl").absolute()
    with _LOCK:
        reader = _READERS.setdefault(path, _Reader(path))
        _READERS.move_to_end(path)
        while len(_READERS) > _REMEMBERED:
            _READERS.popitem(last=False)
        return reader.read()


class _Reader:
    """How far a journal has been read, and what was found."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._forget()

    def _forget(self) -> None:
        self.file: tuple[int, int] | None = None
        self.offset = self.lines = 0
        self.tail = b""
        self.told: list[tuple[int, float, Event]] = []
        self.started: float | None = None
        self.last: float | None = None
        self.worked = 0.0
        self.damage = ""
        self.known = Journal()

    def read(self) -> Journal:
        try:
            with self.path.open("rb") as file:
                new = self._new_of(file)
        except FileNotFoundError:
            self._forget()
            return self.known
        except OSError as error:
            return dataclasses.replace(self.known, damage=self._unreadable(error))
        if new:
            for line in new.split(b"\n")[:-1]:
                self._take(line)
            events = tuple(event for _, _, event in self.told)
            gaps = tuple(gap for _, gap, _ in self.told)
            self.known = Journal(events, gaps, self.worked, self.started, self.last, self.damage)
        return self.known

    def _unreadable(self, error: OSError) -> str:
        reason = error.strerror or reason_of(error)  # without the path
        return f"{self.path.name}: cannot be read ({reason}). Restore the file, or run anew."

    def _new_of(self, file: BinaryIO) -> bytes:
        """The whole lines that were not read before; all of them, where this is another file than before."""
        found = os.fstat(file.fileno())
        identity = (found.st_dev, found.st_ino)
        file.seek(max(self.offset - len(self.tail), 0))
        if identity != self.file or found.st_size < self.offset or file.read(len(self.tail)) != self.tail:
            self._forget()
            self.file = identity
            file.seek(0)
        rest = file.read()
        whole = rest[: rest.rfind(b"\n") + 1]  # what follows the last line break is being written
        self.offset += len(whole)
        self.tail = (self.tail + whole[-_TAIL:])[-_TAIL:]
        return whole

    def _take(self, line: bytes) -> None:
        if self.damage:  # what stands after a damaged line may contradict what stands before it
            return
        try:
            record = json.loads(line)
            event, time = from_json(record), float(record.get("time", self.last or 0.0))
            if not math.isfinite(time):
                raise ValueError(f"time = {time}")
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            self.damage = (
                f"{self.path.name}: line {self.lines + 1} is damaged ({reason_of(error)}), what follows is not shown. "
                "Restore the file, or run anew."
            )
            return
        gap = 0.0
        if isinstance(event, Resumed):  # the time since the line before is a pause
            self.told = [said for said in self.told if said[0] < event.supersedes]
        elif self.last is not None:
            gap = max(time - self.last, 0.0)  # clocks are set back, too
        self.worked += gap
        self.started = time if self.started is None else self.started
        self.last = time
        self.told.append((self.lines, gap, event))
        self.lines += 1


_READERS: OrderedDict[Path, _Reader] = OrderedDict()
_LOCK = threading.Lock()
