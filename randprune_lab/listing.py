"""Panel 7, all runs on disk as a table, and what can be taken away of one: its network, its stages."""

from __future__ import annotations

import csv
import datetime
import io
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from randprune_lab import jobs, store
from randprune_lab.events import RunFinished
from randprune_lab.journal import read_journal
from randprune_lab.live import Row, here, named, reason
from randprune_lab.metrics import METRICS


def history_rows(parent: str | Path | None = None) -> list[Row]:
    """Panel 7: a row for every run of a folder, the newest first; damaged ones are rows, too.

    Returns:
        name, status, message, position, task, model, method, group, seed, stages ("2 of 4"), sparsity, compression,
        score, metric, ir (of the last finished stage's mask), seconds (of work), started (ISO), note. None or "": not
        known.
    """
    parent = store.runs_folder() if parent is None else Path(parent)
    try:
        folders = [path for path in parent.iterdir() if path.is_dir()]
    except OSError:
        return []
    rows = [_history_row(path) for path in folders if store.is_run(path)]
    return sorted(rows, key=lambda row: (row["started"] or row["name"], row["name"]), reverse=True)


def _history_row(folder: Path) -> Row:
    unknown: Row = {
        "name": folder.name,
        "status": "damaged",
        **dict.fromkeys(("message", "task", "model", "method", "group", "stages", "metric", "note"), ""),
        **dict.fromkeys(("position", "seed", "sparsity", "compression", "score", "ir", "seconds", "started")),
    }
    if not folder.name.isprintable():  # no page could show it, and no address hold it
        name = "".join(sign if sign.isprintable() else "?" for sign in folder.name)
        return unknown | {"name": name, "message": "Its folder's name has signs that cannot be shown. Rename it."}
    try:
        unknown["note"] = jobs.read_note(folder)
        return unknown | _known_of(folder)
    except Exception as error:  # a damaged run harms no other
        return unknown | {"message": here(reason(error), folder)}


def _known_of(folder: Path) -> Row:
    config, journal, status = store.read_config(folder), read_journal(folder), jobs.status(folder)
    table = store.stage_rows(journal.events)
    last = table[-1] if table else {}
    called = named(config)
    started = journal.started or (folder / "config.json").stat().st_mtime
    return {
        **{name: called[name] for name in ("task", "model", "method", "group", "seed")},
        "status": "damaged" if journal.damage and not status.is_live else status.state,
        "message": journal.damage or here(status.message, folder),
        "position": status.position,
        "stages": f"{sum(row['stage'] > 0 for row in table)} of {len(config.stages)}",
        **{name: last.get(name) for name in ("sparsity", "compression", "score", "ir")},
        "metric": METRICS.get(last.get("metric", ""), ""),
        "seconds": journal.worked if journal.started is not None else None,
        "started": datetime.datetime.fromtimestamp(started).astimezone().isoformat(timespec="seconds"),
    }


def history_sentence(rows: Iterable[Mapping[str, Any]]) -> str:
    """How many runs there are, by status, in words."""
    counted = Counter(str(row["status"]) for row in rows)
    total = sum(counted.values())
    told = ", ".join(f"{count} {status}" for status, count in counted.most_common())
    return f"{total} run{'s' * (total != 1)}: {told}." if total else "There are no runs yet."


def archive(folder: str | Path) -> bytes:
    """The finished network, ``model/``, as a zip.

    Raises:
        ValueError: the run is not finished, or its network is not there.
    """
    folder = Path(folder)
    model = folder / "model"
    if read_journal(folder).newest(RunFinished) is None:
        raise ValueError(
            f"{folder.name}: is not finished, so there is no network to take away. Wait for its end, or resume it."
        )
    files = [path for path in sorted(model.rglob("*")) if path.is_file() and not path.is_symlink()]
    if not files:
        raise ValueError(f"{folder.name}: its model/ is not there (any more). Run anew.")
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as packed:  # mostly zeros: 1 is enough
        for path in files:
            packed.write(path, f"{folder.name}/{path.relative_to(model).as_posix()}")
    return written.getvalue()


def csv_of(folder: str | Path) -> str:
    """The stages of a run as CSV.

    Raises:
        ValueError: its journal is damaged.
    """
    return csv_of_rows(store.stage_table(folder))


def csv_of_rows(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table as CSV with a head; None is an empty cell."""
    written = io.StringIO()
    writer = csv.DictWriter(written, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return written.getvalue()
