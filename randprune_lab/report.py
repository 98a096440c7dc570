"""``report.html`` of a run: one file that opens anywhere, offline, without a script, made from the run's files alone.

It tells what stands in the journal, nothing else; a run that is unfinished, or was stopped anywhere, gets one too.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from randprune_lab import charts, store
from randprune_lab.benefit import benefit_sentences, read_benefit
from randprune_lab.card import shown_name
from randprune_lab.charts import accuracy, sparsity
from randprune_lab.config import DYNAMIC, OBJECT, RunConfig
from randprune_lab.document import document, figure_of, items, section, table_of, text_of
from randprune_lab.events import (
    CandidateScored,
    DenseFinished,
    EpochFinished,
    Event,
    MaskChosen,
    Resumed,
    RunStarted,
    StageFinished,
    StageStarted,
    Warned,
)
from randprune_lab.files import write_atomically
from randprune_lab.metrics import METRICS

NOTHING = "-"
_WEIGHTS = {name: f"{name.removesuffix('s')}_weight" for name in ("task", "logits", "hidden", "attention")}
EventT = TypeVar("EventT", bound=Event)
Staged = TypeVar("Staged", StageStarted, MaskChosen, StageFinished)


def write_report(folder: Path, beside: Sequence[Path] = ()) -> Path:
    """Write ``report.html`` into a run's folder, beside its controls' numbers; returns its path.

    Args:
        folder: of the run; finished, running or stopped.
        beside: folders of the runs to compare it with, its controls as a rule.

    Raises:
        ValueError: in one of the folders is no run.
    """
    run, others = _Run.read(Path(folder)), [_Run.read(Path(other)) for other in beside]
    path = Path(folder) / "report.html"
    write_atomically(path, _page(run, _named(run, others)).encode(errors="replace"), inside=Path(folder))
    return path


@dataclasses.dataclass(frozen=True)
class _Run:
    """What the files of a run say."""

    folder: Path
    config: RunConfig
    status: str
    events: list[Event]
    label: str

    @classmethod
    def read(cls, folder: Path) -> _Run:
        summary = store.summary(folder)
        return cls(folder, store.read_config(folder), summary.status, store.story(folder), "this run")

    def all(self, kind: type[EventT]) -> list[EventT]:
        return [event for event in self.events if isinstance(event, kind)]

    def last(self, kind: type[EventT]) -> EventT | None:
        return next(iter(reversed(self.all(kind))), None)

    def by_stage(self, kind: type[Staged]) -> dict[int, Staged]:
        return {event.stage: event for event in self.all(kind)}

    @property
    def metric(self) -> str:
        """What the task is measured by, as people read it."""
        started = self.last(RunStarted)
        return METRICS[started.metric if started else "accuracy"]

    @property
    def what(self) -> str:
        return self.config.control or self.config.method

    def whole(self, kept: int) -> str:
        """Compression of the whole model."""
        started = self.last(RunStarted)
        if started is None:
            return NOTHING
        rest = started.parameters - sum(started.prunable.values()) + kept
        return f"{started.parameters / rest:.1f}x" if rest else NOTHING

    def sparse(self, done: StageFinished) -> str:
        return sparsity(done.sparsity, self.compression(done))

    def compression(self, done: StageFinished) -> float:
        """Of the prunable weights."""
        started = self.last(RunStarted)
        return sum(started.prunable.values()) / done.kept if started else 1 / (1 - done.sparsity)


def _named(run: _Run, others: Iterable[_Run]) -> list[_Run]:
    """The other runs under names of their own: the control's, if need be with the seed or the folder."""
    named: list[_Run] = []
    for other in others:
        seed = f", seed {other.config.seed}" if other.config.seed != run.config.seed else ""
        label = f"{other.what}{seed}"
        taken = {"this run", *(known.label for known in named)}
        numbered = (label, *(f"{label} ({number})" for number in range(2, len(named) + 3)))
        named.append(dataclasses.replace(other, label=next(name for name in numbered if name not in taken)))
    return named


def _page(run: _Run, others: list[_Run]) -> str:
    config = run.config
    title = f"{config.task}, {shown_name(config.model)}: {run.what}, seed {config.seed}"
    body = [
        f"<h1>{text_of(title)}</h1>",
        f'<p class="summary">{text_of(_summary(run, others))}</p>',
        _unfinished(run),
        section("Stage by stage", _stage_table(run, others), _accuracy_chart(run, others), _differences(run, others)),
        section("Candidates", _candidates(run)),
        section("Training", _loss_chart(run), _terms(run)),
        section("What sparsity bought", _benefit(run)),
        section("How to read this", items(_statements(run)), _ERRATUM),
        section("Configuration", _config_table(config)),
        f"<footer>Made by RandPrune Lab from the files in {text_of(run.folder.name)}.</footer>",
    ]
    return document(title, body)


def _summary(run: _Run, others: list[_Run]) -> str:
    """One sentence that is true at whatever point the run is."""
    config, dense, done = run.config, run.last(DenseFinished), run.last(StageFinished)
    start = f"On {config.task}, {shown_name(config.model)} pruned by {config.method} (seed {config.seed})"
    before = f"; the {config.unpruned} network had {accuracy(dense.test.metric)}" if dense else ""
    if done is None:
        return f"{start} has finished no stage yet{before} (one seed: not a result)."
    verb = "ends" if run.status == "finished" else f"stands after {done.stage} of {len(config.stages)} stages"
    text = (
        f"{start} {verb} at sparsity {run.sparse(done)} of its prunable weights, {run.whole(done.kept)} for the whole"
    )
    text += f" model, with {accuracy(done.test.metric)} test {run.metric}{before}"
    for other in others:
        last = other.last(StageFinished)
        text += f"; {other.label} {_reached(other, last)}"
    return f"{text} (one seed: not a result)."


def _reached(other: _Run, last: StageFinished | None) -> str:
    if last is None:
        return "has finished no stage"
    text = f"has {accuracy(last.test.metric)} at sparsity {other.sparse(last)}"
    return text if other.status == "finished" else f"{text} and is unfinished"


def _unfinished(run: _Run) -> str:
    if run.status == "finished":
        return ""
    done = len(run.all(StageFinished))
    what = "is still running" if run.status == "running" else "was stopped before its end, and can be resumed"
    last = run.last(EpochFinished)
    where = f" Its last finished epoch is number {last.epoch} of " if last else " It has finished no epoch."
    where += ("the dense network." if last.stage == 0 else f"stage {last.stage}.") if last else ""
    text = f"This run {what}: {done} of {len(run.config.stages)} stages are finished.{where}"
    return f'<p class="notice"><strong>Unfinished.</strong> {text_of(text)}</p>'


def _stage_table(run: _Run, others: list[_Run]) -> str:
    chosen, finished = run.by_stage(MaskChosen), run.by_stage(StageFinished)
    theirs = [
        {other.config.stages[stage - 1]: done.test.metric for stage, done in other.by_stage(StageFinished).items()}
        for other in others
    ]
    head = ["stage", "sparsity", "whole model", "winner", "ir", "swapped", "samples M", "selection", "test: this run"]
    head += [f"test: {other.label}" for other in others]
    rows = []
    for stage, started in run.by_stage(StageStarted).items():
        mask, done = chosen.get(stage), finished.get(stage)
        rows.append(
            [
                str(stage),
                run.sparse(done) if done else sparsity(started.sparsity),
                run.whole(done.kept) if done else NOTHING,
                *([_mask(mask.winner), f"{mask.ir:.4f}", _share(mask.swapped)] if mask else [NOTHING] * 3),
                _range(started.samples.values()) if any(started.candidates) else NOTHING,
                *([accuracy(done.selection.metric), accuracy(done.test.metric)] if done else ["unfinished"] * 2),
                *(_maybe(known.get(run.config.stages[stage - 1])) for known in theirs),
            ]
        )
    if not rows:
        return "<p>No stage has begun.</p>"
    dense = [run.last(DenseFinished), *(other.last(DenseFinished) for other in others)]
    selection = _maybe(dense[0].selection.metric if dense[0] else None)
    scores = [_maybe(score.test.metric if score else None) for score in dense]
    rows.insert(0, [run.config.unpruned, sparsity(0.0, 1.0), "1.0x", *[NOTHING] * 4, selection, *scores])
    note = (
        "Sparsity: share of the prunable weights removed, and their compression; whole model: compression of all "
        "parameters. ir and swapped: the winner against the plain mask of the same weights. Selection and test: "
        f"{run.metric} after fine-tuning on the two splits."
    )
    return table_of(head, rows) + f'<p class="note">{note}</p>'


def _accuracy_chart(run: _Run, others: list[_Run]) -> str:
    rows = [
        {
            "run": one.label,
            "sparsity": done.sparsity,
            "compression": one.compression(done),
            "score": done.test.metric,
        }
        for one in (run, *others)
        for done in one.all(StageFinished)
    ]
    dense = run.last(DenseFinished)
    if not rows:
        return ""
    score = dense.test.metric if dense else None
    return figure_of(charts.accuracy_chart(rows, score, run.metric), charts.accuracy_sentence(rows, score, run.metric))


def _differences(run: _Run, others: list[_Run]) -> str:
    """Of each run beside this one, the settings that it does not share."""
    lines = []
    ours = run.config.model_dump()
    for other in others:
        differing = [
            f"{name} = {_value(value)} (this run: {_value(ours[name])})"
            for name, value in other.config.model_dump().items()
            if value != ours[name] and name not in ("group", "control")
        ]
        lines.append(f"{other.label} ({other.status}): {'; '.join(differing) or 'the same settings'}.")
    return "<p>What the runs beside this one do otherwise:</p>" + items(lines) if lines else ""


def _candidates(run: _Run) -> str:
    scored, chosen = run.all(CandidateScored), run.by_stage(MaskChosen)
    if not scored:
        return "<p>No candidates were compared: with one mask a stage there is nothing to judge.</p>"
    wins = {(stage, mask.winner) for stage, mask in chosen.items()}
    rows, winners = [], set()
    for place, event in enumerate(scored):
        won = (event.stage, event.candidate) in wins
        winners |= {place} if won else set()
        score = event.selection
        judged = [accuracy(score.metric), f"{score.loss:.4f}"] if score else [NOTHING, NOTHING]
        verdict = "winner" if won else f"failed: {event.failed}" if event.failed else ""
        verdict = verdict or f"dropped after {event.steps} steps" * bool(event.steps)
        rows.append(
            [str(event.stage), _mask(event.candidate), *judged, f"{event.ir:.4f}", _share(event.swapped), verdict]
        )
    points = [
        {
            "stage": event.stage,
            "candidate": event.candidate,
            "score": event.selection.metric if event.selection else None,
            "winner": (event.stage, event.candidate) in wins,
        }
        for event in scored
        if not event.steps  # scores after fewer steps do not compare
    ]
    head = ["stage", "mask", f"{run.metric} that decides", "loss", "ir", "swapped", "verdict"]
    known = any(point["score"] is not None for point in points)
    picture = (
        figure_of(charts.candidates_chart(points, run.metric), charts.candidates_sentence(points)) if known else ""
    )
    table = table_of(head, rows, marked=winners, kind="numbers candidates")
    return f"{picture}<details open><summary>All candidates</summary>{table}</details>"


def _loss_chart(run: _Run) -> str:
    epochs = [event for event in run.all(EpochFinished) if math.isfinite(event.loss)]
    rows = [{"phase": event.phase, "stage": event.stage, "loss": event.loss} for event in epochs]
    if not rows:
        return "<p>No epoch is finished.</p>"
    distilled = run.config.distils and any(row["stage"] for row in rows)
    note = " While fine-tuning, the loss contains the distillation, so it does not compare with the dense network's."
    return figure_of(charts.loss_chart(rows), charts.loss_sentence(rows) + note * distilled)


def _terms(run: _Run) -> str:
    """The parts of the loss, one by one, at the end of each stage."""
    last = {event.stage: event for event in run.all(EpochFinished) if event.stage and len(event.terms) > 1}
    if not last:
        return ""
    names = list(dict.fromkeys(name for event in last.values() for name in event.terms))
    weights = ", ".join(f"{name} {getattr(run.config, _WEIGHTS[name]):g}" for name in names)
    rows = [
        [str(stage), *(f"{event.terms.get(name, math.nan):.4g}" for name in names)] for stage, event in last.items()
    ]
    note = f"Parts of the loss in the last epoch of each stage, before their weights ({weights})."
    return table_of(["stage", *names], rows) + f'<p class="note">{text_of(note)}</p>'


def _benefit(run: _Run) -> str:
    benefit = read_benefit(run.folder)
    if benefit is None:
        return "<p>Not measured: that is done when a run of a named network is finished.</p>"
    return items(benefit_sentences(benefit))


def _statements(run: _Run) -> list[str]:
    """What the numbers depend on, and what they do not say."""
    config, started = run.config, run.last(RunStarted)
    lines = [f"The run said: {event.text}" for event in run.all(Warned)]
    if config.method in DYNAMIC:
        lines.append(f"The mask moved while the network trained ({config.method}); the table says how much it kept.")
    elif config.method != "randomized":
        lines.append("Each stage had one mask: none was judged by a short training.")
    if config.select_on == "validation":
        lines.append(
            "Whatever was chosen (masks, best epochs) was chosen on the very split that is reported here as test "
            "(select_on = validation, the paper's way): the reported score is optimistic."
        )
    else:
        lines.append(
            "Whatever was chosen (masks, best epochs) was chosen on the selection split, a held-out part of the "
            "training data; the test split decided nothing."
        )
    if started:
        same = "bit for bit the same numbers" if started.deterministic else "numbers that may differ in the last digits"
        lines.append(
            f"Deterministic: {'yes' if started.deterministic else 'no'}. The same configuration on the same device "
            f"model, torch version and number of threads gives {same}."
        )
        if config.criterion == OBJECT:
            lines.append(
                f"Masks were drawn from {config.scored_by}, given from Python: the configuration alone does not repeat "
                "this run, and what the scores looked at is not recorded."
            )
        lines.append(f"Device: {started.device}; torch {started.torch}; threads: {config.threads}.")
        total = sum(started.prunable.values())
        lines.append(f"Prunable: {total:,} of {started.parameters:,} parameters ({', '.join(started.prunable)}).")
    if run.all(Resumed):
        lines.append("The run was interrupted and resumed; what came twice is told once.")
    lines.append("One seed: not a result. Only a difference larger than the spread between seeds is one.")
    lines.append("Sparsity alone makes a network neither smaller nor faster: the zeros are stored and computed with.")
    return lines


def _config_table(config: RunConfig) -> str:
    rows, changed = [], set()
    for place, (name, field) in enumerate(RunConfig.model_fields.items()):
        value = getattr(config, name)
        changed |= {place} if value != field.default else set()
        rows.append([name, _value(value), _value(field.default), field.description or ""])
    table = table_of(["setting", "value", "default", "meaning"], rows, marked=changed, kind="words")
    return table + '<p class="note">Marked: what differs from the default.</p>'


def _mask(number: int) -> str:
    return f"mask {number}" if number else "plain mask"


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def _maybe(value: float | None) -> str:
    return NOTHING if value is None else accuracy(value)


def _range(values: Iterable[int]) -> str:
    known = sorted(values)
    low, high = known[0], known[-1]
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _value(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or NOTHING
    return "none" if value is None else str(value) or NOTHING


_ERRATUM = (
    '<p>Method: <a href="https://arxiv.org/abs/2310.13183">arXiv 2310.13183</a>. Erratum: section 3.2.2 of the paper '
    "says randomness grows with M; it falls.</p>"
)
