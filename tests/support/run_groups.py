"""Run the groups of tests one after another, each as a command of its own, and print one table.

    python3 tests/support/run_groups.py            all but those by hand, then lint and types
    python3 tests/support/run_groups.py crash ...  only these

The first group is the README's test command, which also makes the virtual environment that the others use. One that
dies takes no other with it: the table says how many of its tests never ran. Needs nothing but Python.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
BIN = ROOT / ".venv" / ("Scripts" if os.name == "nt" else "bin")
RECORD = "RANDPRUNE_TEST_RECORD"  # names the file in which a pytest writes what has run
MARKERS = ("browser", "cluster", "crash", "statistics", "speed", "slow", "gpu")
DEFAULT = f"not ({' or '.join(MARKERS)})"  # what plain pytest runs
GRACE = 60.0  # seconds that a group has to end once it was interrupted


@dataclasses.dataclass(frozen=True)
class Group:
    """Tests that one command runs. ``seconds``: after which it is ended; 0: it is run by hand."""

    arguments: str
    holds: str
    seconds: int


GROUPS = {
    "browser": Group("-m 'browser and not (speed or slow)'", "the app and JupyterLab in a browser: Chromium", 2400),
    "cluster": Group("-m 'cluster and not slow'", "Ray, torchrun and accelerate, all on this machine", 1200),
    "crash": Group("-m 'crash and not slow'", "runs and studies that are killed, and go on", 1200),
    "statistics": Group("-m 'statistics and not slow'", "draws, closed form and reference agree, over a grid", 1200),
    "speed": Group("-m 'speed and not (slow or gpu)' -n 0", "ratios of times, with nothing else beside them", 1200),
    "slow": Group("-m 'slow and not gpu' -n 0", "minutes each: whole grids, a billion weights", 0),
    "gpu": Group("-m gpu -n 0", "a CUDA device", 0),
}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a group ended. ``wanted``: tests that were to run, ``never``: those that did not come to their end."""

    code: int
    seconds: float
    wanted: int = 0
    never: int = 0
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)
    skipped: Mapping[str, int] = dataclasses.field(default_factory=dict)
    problem: str = ""

    @property
    def failures(self) -> int:
        """Tests that failed, or never ran."""
        return self.counts.get("failed", 0) + self.counts.get("error", 0) + self.never

    @property
    def failed(self) -> bool:
        return bool(self.code or self.never or self.problem)


def run_group(command: str, seconds: float, *, tests: bool = True, folder: Path = ROOT) -> Outcome:
    """Run a command, and end it, with all that it has started, when it has not ended after so many seconds."""
    started, problem = time.monotonic(), ""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        record = Path(place) / "record"
        process = subprocess.Popen(
            ["bash", "-c", command], cwd=folder, env={**os.environ, RECORD: str(record)}, start_new_session=True
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            problem = f"ended after {seconds:.0f} s"
            code = _end(process) or 1
        with contextlib.suppress(ProcessLookupError):  # what it has left behind
            os.killpg(process.pid, signal.SIGKILL)
        outcome = _read(record) if tests else Outcome(0, 0.0)
    if code < 0:
        problem = problem or f"killed by {signal.Signals(-code).name}"
    elif code > 128:
        problem = problem or f"killed by {signal.Signals(code - 128).name}"
    if tests and not outcome.wanted and not problem:
        problem = "no test was collected, or none could be written down"
    return dataclasses.replace(outcome, code=code, seconds=time.monotonic() - started, problem=problem)


def _end(process: subprocess.Popen[bytes]) -> int:
    os.killpg(process.pid, signal.SIGINT)
    try:
        return process.wait(GRACE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.wait()


def _read(record: Path) -> Outcome:
    """What a pytest has written down, whole or not."""
    wanted, counts, skipped, ran = 0, dict[str, int](), dict[str, int](), set[str]()
    for line in record.read_text().splitlines() if record.exists() else ():
        with contextlib.suppress(ValueError):  # of the last line half may be missing
            found = json.loads(line)
            wanted = found.get("wanted", wanted)
            counts, skipped = found.get("counts", counts), found.get("skipped", skipped)
            ran |= {found["ran"]} if "ran" in found else set()
    return Outcome(0, 0.0, wanted, max(0, wanted - len(ran)), counts, skipped)


def table(outcomes: Mapping[str, Outcome]) -> str:
    """What all groups came to, a line each, and below them what was skipped and why."""
    rows = [("group", "", "seconds", "passed", "failed", "skipped", "never ran")]
    notes = []
    for name, outcome in outcomes.items():
        counts = outcome.counts
        numbers = [counts.get("passed", 0), counts.get("failed", 0) + counts.get("error", 0), counts.get("skipped", 0)]
        known = [*map(str, numbers)] if counts else ["?"] * 3 if outcome.wanted else [""] * 3
        never = str(outcome.never) if outcome.wanted else ""
        rows.append((name, "FAILED" if outcome.failed else "ok", f"{outcome.seconds:.0f}", *known, never))
        if outcome.problem:
            notes.append(f"{name}: {outcome.problem}")
        if outcome.never:
            notes.append(f"{name}: {outcome.never} of {outcome.wanted} tests never ran, or did not end")
        notes += [f"{name}: skipped {number}: {reason}" for reason, number in outcome.skipped.items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, *notes])


def commands() -> dict[str, tuple[str, float, bool]]:
    """All that is run when nothing is named: command, its limit in seconds, and whether it runs tests."""
    readme = re.search(r"^python3 .*pytest$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert readme is not None, "README.md names no test command"
    found = {"readme": (readme[0], 2400.0, True)}
    for name, group in GROUPS.items():
        found[name] = (f"{BIN}/pytest {group.arguments}", float(group.seconds or 3600), True)
    checks = {"lint": "ruff check", "format": "ruff format --check", "types": "mypy"}
    return found | {name: (f"{BIN}/{check}", 600.0, False) for name, check in checks.items()}


def main(names: Sequence[str]) -> int:
    """Run them; 1 where one has failed, or was not whole."""
    known = commands()
    if unknown := [name for name in names if name not in known]:
        print(f"unknown: {', '.join(unknown)}. There are {', '.join(known)}.")  # noqa: T201
        return 2
    outcomes: dict[str, Outcome] = {}
    for name in names or [name for name in known if name not in GROUPS or GROUPS[name].seconds]:
        command, seconds, tests = known[name]
        print(f"\n+ {name}: {command}", flush=True)  # noqa: T201
        try:
            outcomes[name] = run_group(command, seconds, tests=tests)
        except OSError as error:  # such as a full disk
            outcomes[name] = Outcome(1, 0.0, problem=f"cannot be run ({error})")
    print(f"\n{table(outcomes)}\n", flush=True)  # noqa: T201
    total = [
        sum(outcome.counts.get(kind, 0) for outcome in outcomes.values()) for kind in ("passed", "failed", "error")
    ]
    never = sum(outcome.never for outcome in outcomes.values())
    print(f"{total[0]} passed, {total[1] + total[2] + never} failed")  # noqa: T201
    return int(any(outcome.failed for outcome in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
