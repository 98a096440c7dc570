"""Panels 6, 7 and 8 as plain tables: a run that is being watched, all runs on disk, several side by side.

Whatever a run's folder holds, the views of one and of all runs do not raise: they say what is wrong with it.
"""

from __future__ import annotations

import functools
import io
import os
import re
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from randprune_lab import charts, figures, jobs, store
from randprune_lab.card import shown_name
from randprune_lab.charts import accuracy, sparsity
from randprune_lab.comparing import compare_view as compare_view
from randprune_lab.config import RunConfig
from randprune_lab.events import (
    CandidateScored,
    DenseFinished,
    EpochFinished,
    MaskChosen,
    RunFinished,
    RunStarted,
    StageFinished,
    StageStarted,
    Warned,
)
from randprune_lab.files import open_own
from randprune_lab.journal import Journal, read_journal
from randprune_lab.methods import planned_epochs
from randprune_lab.metrics import METRICS
from randprune_lab.status import Status
from randprune_lab.status import read as read_record

Row = dict[str, Any]
LOG_BYTES, LOG_LINES = 16_384, 60
GONE = "gone"  # the status of a folder that is not there, besides those of jobs


def live_view(folder: str | Path, *, now: float | None = None) -> Row:
    """All that panel 6 shows of a run, wherever the run is.

    Returns:
        name, title, task, model, method, seed, group, metric: what it is; texts, "" where unknown (seed: None).
        status (those of ``jobs.status``, or "gone"), message, position, age, is_live, can_resume.
        damage: what cannot be read, a sentence; "": nothing.
        progress: share (of the planned epochs, in [0, 1]), doing, elapsed and left (seconds; None: unknown), sentence.
        ladder: rows as ``figures.ladder_rows`` gives them.
        lanes: rows: stage, candidate, name, state ("waiting", "judging", "judged", "dropped" (from a race), "failed",
            "winner"), score, loss, ir, swapped, failed, winner.
        epochs: rows: phase, stage, epoch, loss, terms, score.
        near: rows: stage, sparsity, share (of the weights from 2/3 tau to 4/3 tau before the cut), ir, swapped (None:
            not known yet).
        warnings: texts. log: lines, the last ones. heartbeat: how alive it is, a sentence.
        result: None until it is finished, then score, sparsity, compression, whole_model, report (there is one).
        events: how many there are; as long as it stays the same, so do the tables.
        The tables (progress, ladder, lanes, epochs, near, log, result) have a ``sentence``.
    """
    folder, now = Path(folder), time.time() if now is None else now
    if not folder.is_dir():
        return _empty(folder, GONE, "This run's folder is not there (any more): it was deleted or renamed.")
    try:
        return _view(folder, now)
    except Exception as error:  # files may hold anything: the page says so, and stays
        return _empty(folder, "damaged", here(reason(error), folder))


def _view(folder: Path, now: float) -> Row:
    journal, status, config = read_journal(folder), jobs.status(folder), store.read_config(folder)
    record = read_record(folder)  # a run that is resumed says nothing before model and data are loaded
    loads = record is not None and journal.last is not None and journal.last < record.queued_at / 1e9
    started = journal.newest(RunStarted)
    metric = METRICS[started.metric] if started else "accuracy"
    table = store.stage_rows(journal.events)
    ladder, lanes, near = figures.ladder_rows(table), _lanes(journal, config, status), _near(folder, journal, config)
    epochs = [
        {
            "phase": event.phase,
            "stage": event.stage,
            "epoch": event.epoch,
            "loss": event.loss,
            "terms": event.terms,
            "score": event.selection.metric,
        }
        for event in journal.all(EpochFinished)
    ]
    return {
        **_empty(folder, status.state, journal.damage),
        **named(config),
        "metric": metric,
        "message": here(status.message, folder),
        "position": status.position,
        "age": status.age,
        "is_live": status.is_live,
        "can_resume": status.can_resume,
        "progress": _progress(journal, config, status, now, loads=loads),
        "ladder": {"rows": ladder, "sentence": charts.ladder_sentence(ladder, metric)},
        "lanes": {"rows": lanes, "sentence": _lanes_sentence(lanes, config)},
        "epochs": {"rows": epochs, "sentence": _epochs_sentence(epochs, config)},
        "near": {"rows": near, "sentence": near_sentence(near)},
        "warnings": [event.text for event in journal.all(Warned)],
        "heartbeat": heartbeat_sentence(status),
        "result": _result(folder, journal, table, metric),
        "events": len(journal.events),
    }


def _empty(folder: Path, status: str, damage: str) -> Row:
    """The view of a folder of which nothing is known, with what can be read all the same."""
    nothing = {"rows": [], "sentence": ""}
    return {
        "name": folder.name,
        "title": folder.name,
        **dict.fromkeys(("task", "model", "method", "group", "message", "heartbeat"), ""),
        **dict.fromkeys(("seed", "position", "age", "result")),
        "metric": "accuracy",
        "status": status,
        "is_live": False,
        "can_resume": False,
        "damage": damage,
        "progress": {"share": 0.0, "doing": "", "elapsed": None, "left": None, "sentence": ""},
        **{name: dict(nothing) for name in ("ladder", "lanes", "epochs", "near")},
        "warnings": [],
        "log": _log(folder),
        "events": 0,
    }


def named(config: RunConfig) -> Row:
    """What people call a run, and what it is of."""
    method = config.control or config.method
    return {
        "title": f"{config.task}, {shown_name(config.model)}: {method}, seed {config.seed}",
        "task": config.task,
        "model": shown_name(config.model),
        "method": method,
        "seed": config.seed,
        "group": config.group,
    }


def here(text: str, folder: Path) -> str:
    """A message with the names of files inside the run's folder, as the page knows them."""
    for path in (str(folder.absolute()), str(folder)):
        text = text.replace(f"{path}{os.sep}", "").replace(path, folder.name)
    return text


def reason(error: BaseException) -> str:
    """What is wrong with a run's files, in one line."""
    said = isinstance(error, ValueError | OSError) and str(error)
    text = said or f"The files of this run are damaged ({error!r}). Restore them, or run anew."
    return " ".join(str(text).split())[:500]


# How far it is -------------------------------------------------------------------------------------------------------


def _progress(journal: Journal, config: RunConfig, status: Status, now: float, *, loads: bool) -> Row:
    """How far it is. ``loads``: it was resumed and does not train yet, so that no time counts."""
    plan = planned_epochs(config)
    trained, spent = _work(journal, config)
    done = _done(journal, config, plan, trained)
    finished = journal.newest(RunFinished) is not None
    running = status.is_live and status.state != "queued"
    since = max(now - journal.last, 0.0) if running and journal.last is not None and not loads else 0.0
    share = 1.0 if finished else sum(done.values()) / max(sum(plan.values()), 1)
    left = None if finished or journal.damage else _left(plan, done, trained, spent)
    left = None if left is None else max(left - since, 0.0)
    doing = _doing(journal, config, status)
    elapsed = journal.worked + since if journal.started is not None else None
    text = f"{doing}. {100 * share:.0f} % of the planned epochs are done"
    if elapsed is not None:
        text += f"; {duration(elapsed)} of work so far" if not finished else f"; it took {duration(elapsed)}"
    if left is not None:
        text += f", about {duration(left)} to go" + " at most" * (config.patience is not None)
    return {"share": share, "doing": doing, "elapsed": elapsed, "left": left, "sentence": f"{text}."}


def _work(journal: Journal, config: RunConfig) -> tuple[dict[str, float], dict[str, float]]:
    """Epochs trained of each kind, and the seconds that they took; of a race, each candidate ends an equal share."""
    trained: defaultdict[str, float] = defaultdict(float)
    spent: defaultdict[str, float] = defaultdict(float)
    for event, gap in zip(journal.events, journal.gaps, strict=True):
        match event:
            case EpochFinished() | DenseFinished() | StageFinished():
                dense = isinstance(event, DenseFinished) or (isinstance(event, EpochFinished) and not event.stage)
                kind = "dense" if dense else "tuning"
                trained[kind] += isinstance(event, EpochFinished)
            case StageStarted() | CandidateScored() | MaskChosen():
                kind = "judging"
                trained[kind] += config.judging_epochs / config.candidates * isinstance(event, CandidateScored)
            case _:
                continue
        spent[kind] += gap
    return trained, spent


def _done(
    journal: Journal, config: RunConfig, plan: Mapping[str, float], trained: Mapping[str, float]
) -> dict[str, float]:
    """Epochs that need not be trained any more: patience and the end of a phase spare some."""
    stages = len(config.stages)
    chosen, closed = len(journal.all(MaskChosen)), len(journal.all(StageFinished))
    last = journal.newest(StageStarted)
    judged = tuned = 0
    if last is not None and chosen < last.stage:
        judged = sum(event.stage == last.stage for event in journal.all(CandidateScored))
    if last is not None and closed < last.stage:
        tuned = sum(event.stage == last.stage for event in journal.all(EpochFinished))
    return {
        "dense": plan["dense"] if journal.newest(DenseFinished) else trained["dense"],
        "judging": chosen * plan["judging"] / stages + judged * config.judging_epochs / config.candidates,
        "tuning": closed * config.max_epochs + tuned,
    }


def _left(
    plan: Mapping[str, float], done: Mapping[str, float], trained: Mapping[str, float], spent: Mapping[str, float]
) -> float | None:
    """Seconds, at the pace of each kind of work so far; what has not begun is taken at the mean pace."""
    epochs = sum(trained.values())
    if not epochs:
        return None
    mean = sum(spent.values()) / epochs
    return sum((plan[kind] - done[kind]) * (spent[kind] / trained[kind] if trained[kind] else mean) for kind in plan)


def _doing(journal: Journal, config: RunConfig, status: Status) -> str:
    """What is being done, or what was done last; without a full stop."""
    stages, last = len(config.stages), next((e for e in reversed(journal.events) if not isinstance(e, Warned)), None)
    if isinstance(last, RunFinished):
        return "Finished"
    if status.state == "queued":
        return "Waits for its turn" + (f", position {status.position} in the queue" if status.position else "")
    if journal.newest(RunStarted) is None:
        return "Loads model and data" if status.is_live else "Nothing has been trained"
    stage = journal.newest(StageStarted)
    if stage is None:
        epochs = len(journal.all(EpochFinished))
        dense = f"epoch {min(epochs + 1, config.dense_epochs)} of {config.dense_epochs}"
        text = dense if config.dense_epochs and not journal.newest(DenseFinished) else "draws the first masks"
        return _in_time(f"{config.unpruned} network: {text}", status)
    at = f"stage {stage.stage} of {stages}"
    closed, chosen = journal.newest(StageFinished), journal.newest(MaskChosen)
    if closed is not None and closed.stage == stage.stage:
        text = "writes the result" if stage.stage == stages else f"is finished, stage {stage.stage + 1} draws its masks"
    elif chosen is not None and chosen.stage == stage.stage:
        epochs = sum(event.stage == stage.stage for event in journal.all(EpochFinished))
        most = "at most " if config.patience is not None and stage.stage < stages else ""
        text = f"fine-tuning, epoch {min(epochs + 1, config.max_epochs)} of {most}{config.max_epochs}"
    elif len(stage.candidates) == 1:
        text = "takes its mask"
    else:
        judged = sum(event.stage == stage.stage for event in journal.all(CandidateScored))
        text = f"judging mask {min(judged + 1, len(stage.candidates))} of {len(stage.candidates)}"
    return _in_time(f"{at}: {text}", status)


def _in_time(text: str, status: Status) -> str:
    return f"{text[0].upper()}{text[1:]}" if status.is_live else f"Stands at {text}"


def duration(seconds: float) -> str:
    """As people say it: "42 s", "3 min 10 s", "2 h 5 min", "3 d 4 h"."""
    whole = round(seconds)
    for size, unit, smaller, name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {unit}" + (f" {rest} {name}" if rest else "")
    return f"{whole} s"


def heartbeat_sentence(status: Status) -> str:
    """How alive a run is, in words."""
    if status.state == "queued":
        return f"queued, position {status.position}" if status.position else "queued"
    if not status.is_live:
        return f"not running: {status.state}"
    if status.age is None:
        return "starting, no heartbeat yet"
    age = duration(max(status.age, 0.0))  # a clock may be set back
    return f"alive, heartbeat {age} ago" if status.age < 10 else f"no heartbeat for {age}"


# Its tables ----------------------------------------------------------------------------------------------------------


def _lanes(journal: Journal, config: RunConfig, status: Status) -> list[Row]:
    """A lane for each candidate of each stage that has begun."""
    scored = {(event.stage, event.candidate): event for event in journal.all(CandidateScored)}
    chosen = {event.stage: event for event in journal.all(MaskChosen)}
    rows = []
    for started in journal.all(StageStarted):
        mask = chosen.get(started.stage)
        left = [number for number in started.candidates if (started.stage, number) not in scored]
        at_once = 1 if config.executor == "serial" else config.wave or len(left)
        judging = left[:at_once] if status.is_live and mask is None else []
        for number in started.candidates:
            event = scored.get((started.stage, number))
            score = event.selection if event else None
            winner = mask is not None and mask.winner == number
            state = "judging" if number in judging else "waiting"
            if event is not None:
                state = "failed" if score is None else "dropped" if event.steps else "judged"
            known = event or (mask if winner else None)
            rows.append(
                {
                    "stage": started.stage,
                    "candidate": number,
                    "name": f"random mask {number}" if number else "plain mask",
                    "state": "winner" if winner else state,
                    "score": score.metric if score else None,
                    "loss": score.loss if score else None,
                    "ir": known.ir if known else None,
                    "swapped": known.swapped if known else None,
                    "failed": event.failed if event else None,
                    "winner": winner,
                }
            )
    return rows


def _lanes_sentence(rows: Sequence[Mapping[str, Any]], config: RunConfig) -> str:
    if not rows:
        return "No stage has begun: there are no masks to judge yet."
    stage = rows[-1]["stage"]
    own = [row for row in rows if row["stage"] == stage]
    winner = next((row for row in own if row["winner"]), None)
    if len(own) == 1:
        return f"The method {config.method} has one mask a stage: there is nothing to judge."
    judged = [row for row in own if row["score"] is not None]
    failed = sum(row["state"] == "failed" for row in own)
    text = f"Stage {stage} of {len(config.stages)}: {len(judged)} of {len(own)} masks are judged"
    dropped = sum(row["state"] == "dropped" for row in own)
    if dropped:
        text += f", {dropped} of them dropped early"
    if failed:
        text += f", {failed} failed"
    if winner is not None and winner["score"] is not None:
        text += f"; the {winner['name']} won with {accuracy(winner['score'])}, ir = {winner['ir']:.3g}"
    elif to_the_end := [row for row in judged if row["state"] != "dropped"]:
        best = max(to_the_end, key=lambda row: (row["score"], -row["loss"], -row["candidate"]))
        text += f"; the best so far is the {best['name']} with {accuracy(best['score'])}"
    return f"{text}."


def _epochs_sentence(rows: Sequence[Mapping[str, Any]], config: RunConfig) -> str:
    text = charts.loss_sentence(rows)
    if config.distils and any(row["stage"] for row in rows):
        text += " While fine-tuning, it contains the distillation: it does not compare with the dense network's."
    return text


def _near(folder: Path, journal: Journal, config: RunConfig) -> list[Row]:
    """Stage by stage: how many weights lay near its tau, and how random the mask that was chosen is."""
    chosen = {event.stage: event for event in journal.all(MaskChosen)}
    rows = []
    for stage, amount in enumerate(config.stages, start=1):
        mask = chosen.get(stage)
        # Where masks follow from something else, tau of the magnitudes is not where they cut.
        share = None if not config.by_magnitude else _share_near(folder, stage - 1, amount, config.scope)
        if share is not None or mask is not None:
            known = {"ir": mask.ir, "swapped": mask.swapped} if mask else {"ir": None, "swapped": None}
            rows.append({"stage": stage, "sparsity": amount, "share": share, **known})
    return rows


def _share_near(folder: Path, stage: int, amount: float, scope: str) -> float | None:
    try:
        changed = (folder / "histograms" / f"{stage}.json").stat().st_mtime_ns
    except OSError:
        return None  # not reached
    return _share_in(folder, stage, amount, scope, changed)


@functools.lru_cache(maxsize=1024)
def _share_in(folder: Path, stage: int, amount: float, scope: str, _changed: int) -> float | None:
    """Reading the histograms of a large network takes long, and they do not change."""
    try:
        histograms = store.read_histograms(folder, stage)
        return figures.share_near(histograms, amount, whole=scope == "global") if histograms else None
    except ValueError:
        return None  # damaged: what else is known of the stage is shown all the same


def near_sentence(rows: Sequence[Mapping[str, Any]]) -> str:
    """How many weights lay near tau at the first and the last stage, and the ir of its mask, in words."""
    if not rows:
        return "No stage has begun: there is no threshold yet."
    parts = []
    for row in [*rows[:1], *rows[1:][-1:]]:
        parts.append(f"at stage {row['stage']} (sparsity {row['sparsity']:g}) ")
        known = [] if row["share"] is None else [f"{accuracy(row['share'])} of the weights lay from 2/3 to 4/3 of tau"]
        if row["ir"] is not None:
            known.append(f"the mask has ir = {row['ir']:.3g} and {accuracy(row['swapped'])} of its weights swapped")
        parts[-1] += " and ".join(known)
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def _log(folder: Path) -> Row:
    """The last lines of log.txt, of which only the end is read."""
    try:
        with open_own(folder / jobs.LOG) as file:
            size = file.seek(0, io.SEEK_END)
            file.seek(max(size - LOG_BYTES, 0))
            text = file.read(LOG_BYTES).decode(errors="replace")
    except OSError:
        return {"lines": [], "sentence": "There is no log."}
    whole = text.partition("\n")[2] if size > LOG_BYTES else text  # the first line may have lost its beginning
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]", "", whole.replace("\r", "\n"))
    lines = [line.rstrip() for line in plain.split("\n") if line.strip()][-LOG_LINES:]
    return {"lines": lines, "sentence": f"The last {len(lines)} lines of log.txt." if lines else "The log is empty."}


def _result(folder: Path, journal: Journal, table: Sequence[Mapping[str, Any]], metric: str) -> Row | None:
    finished = journal.newest(RunFinished)
    if finished is None or not table:
        return None
    last, dense = table[-1], next((row for row in table if row["stage"] == 0), None)
    before = f" (dense network: {accuracy(dense['score'])})" if dense else ""
    sparse = f"{sparsity(finished.sparsity, last['compression'])} of the prunable weights"
    whole = f"{last['whole_model']:.1f}x for the whole model"
    return {
        "score": finished.test.metric,
        "sparsity": finished.sparsity,
        "compression": last["compression"],
        "whole_model": last["whole_model"],
        "report": (folder / "report.html").is_file(),
        "sentence": f"At sparsity {sparse}, {whole}, the test {metric} is {accuracy(finished.test.metric)}{before}. "
        "One seed: not a result.",
    }
