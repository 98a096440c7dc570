"""Tables of plain dicts -> altair charts, like ``charts``. Here: of a run that is being watched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from randprune_lab.charts import (
    BLUE,
    GREEN,
    GREY,
    PLAIN,
    RANDOM,
    VERMILION,
    WINNER,
    Rows,
    accuracy,
    by_epoch,
    by_name,
    counted_epochs,
    framed,
    layered,
    of_rows,
    percent_axis,
)

LANE = 26  # pixels
_SAID = {"waiting": "not judged yet", "judging": "is being judged ...", "failed": "failed", "winner": "the only mask"}


def lanes_chart(rows: Rows, metric: str = "accuracy") -> alt.LayerChart:
    """A lane for each candidate of a stage: where its score lies, or what it waits for.

    Args:
        rows: of one stage, as ``live.live_view`` has them: candidate, name, state, score, ir, failed, winner.
        metric: the name of what is scored.
    """
    drawn = [{**row, "kind": _kind(row), "told": _told(row)} for row in rows]
    scored = [row for row in drawn if row["score"] is not None]
    kinds = [kind for kind in _LOOKS if any(row["kind"] == kind for row in drawn)]
    y = alt.Y("name:N", sort=[row["name"] for row in drawn], title=None, axis=alt.Axis(domain=False, ticks=False))
    x = alt.X(
        "score:Q",
        title=f"{metric} that decides (%)" if scored else None,
        scale=alt.Scale(zero=False, nice=True, padding=12),
        axis=percent_axis() if scored else None,
    )
    color = alt.Color("kind:N", scale=by_name(kinds, [_LOOKS[kind][0] for kind in kinds]), title=None)
    shape = alt.Shape("kind:N", scale=by_name(kinds, [_LOOKS[kind][1] for kind in kinds]), title=None)
    lanes = of_rows(drawn).encode(y=y)
    layers = [
        lanes.mark_rule(color="#d0d0d0"),
        of_rows(scored).mark_point(size=110, filled=True, opacity=1).encode(x=x, y=y, color=color, shape=shape),
        lanes.mark_text(align="left", x="width", dx=8).encode(text="told:N"),
    ]
    if not scored:
        del layers[1]
    chart = alt.LayerChart(layer=layers, width=480, height=alt.Step(LANE))
    return framed(chart, "Which mask keeps most of the score after a short training?", lanes_sentence(rows, metric))


_LOOKS = {PLAIN: (VERMILION, "square"), RANDOM: (BLUE, "circle"), WINNER: (GREEN, "diamond")}


def _kind(row: Mapping[str, Any]) -> str:
    return WINNER if row["winner"] else RANDOM if row["candidate"] else PLAIN


def _told(row: Mapping[str, Any]) -> str:
    if row["score"] is None:
        return _SAID.get(row["state"], str(row["state"]))
    end = {"winner": ", won", "dropped": ", dropped early"}.get(row["state"], "")
    return f"{accuracy(row['score'])}, ir {row['ir']:.3g}{end}"


def lanes_sentence(rows: Rows, metric: str = "accuracy") -> str:
    """How many masks of the stage are judged, and how far apart they are, in words."""
    if not rows:
        return "No stage has begun: there are no masks to judge yet."
    scores = [row["score"] for row in rows if row["score"] is not None]
    text = f"Stage {rows[0]['stage']}: {len(scores)} of {len(rows)} masks have a score"
    if scores:
        text += f", {metric} from {accuracy(min(scores))} to {accuracy(max(scores))}"
    winner = next((row for row in rows if row["winner"]), None)
    return f"{text}; the {winner['name']} won." if winner else f"{text}; none is chosen yet."


def score_chart(rows: Rows, metric: str = "accuracy") -> alt.LayerChart:
    """Score on the split that decides, after every epoch, a line for the dense network and one for each stage.

    Args:
        rows: phase, stage, score, as for ``loss_chart``.
        metric: the name of what is scored.
    """
    epochs = counted_epochs(rows, "score")
    y = alt.Y("score:Q", title=f"{metric} that decides (%)", scale=alt.Scale(zero=False), axis=percent_axis())
    title = "Does training bring back what the cut took? Score after every epoch"
    return layered(by_epoch(epochs, y), title, score_sentence(rows, metric))


def score_sentence(rows: Rows, metric: str = "accuracy") -> str:
    """The best score of the dense network and of the last stage, in words."""
    parts = []
    for stage in sorted({row["stage"] for row in rows}):
        own = [row["score"] for row in rows if row["stage"] == stage]
        name = f"stage {stage}" if stage else "the dense network"
        parts.append(f"{name} {accuracy(max(own))} (epochs: {len(own)})")
    if not parts:
        return f"The {metric} is unknown: no epoch is finished."
    return f"Best {metric} on the split that decides: {'; '.join(parts[:1] + parts[1:][-1:])}."


def near_chart(rows: Rows) -> alt.LayerChart:
    """Stage by stage, the share of the weights that lay near tau before the cut.

    Args:
        rows: stage, sparsity, share (or None), as ``live.live_view`` has them.
    """
    known = [{**_staged(row), "text": accuracy(row["share"])} for row in rows if row["share"] is not None]
    bars = of_rows(known).encode(
        x=_stages(),
        y=_from_zero("share", "weights from 2/3 to 4/3 of tau (%)", [row["share"] for row in known]),
    )
    layers = [bars.mark_bar(color=BLUE, opacity=0.75, size=34), bars.mark_text(dy=-8).encode(text="text:N")]
    return layered(layers, "How many weights lie near the cut?", near_tau_sentence(rows))


def near_tau_sentence(rows: Rows) -> str:
    """Where most weights lay near tau, in words."""
    known = [row for row in rows if row["share"] is not None]
    if not known:
        return "No stage has begun: there is no threshold yet."
    most = max(known, key=lambda row: float(row["share"]))
    return (
        f"Stages known: {len(known)}. Most weights lay from 2/3 to 4/3 of tau at stage {most['stage']} (sparsity "
        f"{most['sparsity']:g}): {accuracy(most['share'])}."
    )


def randomness_chart(rows: Rows) -> alt.LayerChart:
    """Stage by stage, how far the mask that was chosen departs from the plain one.

    Args:
        rows: stage, sparsity, ir and swapped (or None), as ``live.live_view`` has them.
    """
    known = [row for row in rows if row["ir"] is not None]
    marks = [{**_staged(row), "value": row["swapped"], "text": f"ir {row['ir']:.3g}"} for row in known]
    base = of_rows(marks).encode(
        x=_stages(), y=_from_zero("value", "swapped, of the weights kept (%)", [row["swapped"] for row in known])
    )
    layers = [
        base.mark_line(color=GREEN, strokeWidth=2),
        base.mark_point(color=GREEN, size=80, filled=True, opacity=1),
        base.mark_text(dy=-14).encode(text="text:N"),
    ]
    return layered(layers, "How random is each chosen mask?", randomness_sentence(rows))


def randomness_sentence(rows: Rows) -> str:
    """Share swapped and ir of the first and the last chosen mask, in words."""
    known = [row for row in rows if row["ir"] is not None]
    if not known:
        return "No mask is chosen yet."
    parts = [
        f"stage {row['stage']}: ir = {row['ir']:.3g}, {accuracy(row['swapped'])} of the weights kept are swapped"
        for row in [*known[:1], *known[1:][-1:]]
    ]
    return f"Chosen masks: {len(known)}. {'; '.join(parts)[:1].upper()}{'; '.join(parts)[1:]}."


def _from_zero(field: str, title: str, values: Sequence[float]) -> alt.Y:
    """An axis from 0, with room for a text above the highest value."""
    top = 1.15 * max(values, default=0.0) or 0.1
    return alt.Y(f"{field}:Q", title=title, scale=alt.Scale(domain=[0, top], nice=False), axis=percent_axis(4))


def _staged(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**row, "at": f"{row['stage']}: {row['sparsity']:g}"}


def _stages() -> alt.X:
    return alt.X("at:N", sort=None, title="stage: sparsity", axis=alt.Axis(labelAngle=0))


def differences_chart(rows: Rows, metric: str = "accuracy") -> alt.LayerChart:
    """Paired differences in score with their intervals, stage by stage: does the interval hold 0?

    Args:
        rows: as ``figures.difference_rows`` gives them.
        metric: the name of what is scored.
    """
    drawn = [{**row, "pair": f"{row['a']} minus {row['b']}", "at": f"{row['sparsity']:.4f}"} for row in rows]
    pairs = list(dict.fromkeys(row["pair"] for row in drawn))
    colors, shapes = (BLUE, VERMILION, GREEN, GREY), ("circle", "square", "triangle-up", "diamond")
    what = f"difference in test {metric} (points)"
    y = alt.Y("difference:Q", title=what, axis=alt.Axis(labelExpr="format(100 * datum.value, '+~g')", tickCount=6))
    base = of_rows(drawn).encode(
        x=alt.X("at:N", sort=None, title="sparsity of the prunable weights", axis=alt.Axis(labelAngle=0)),
        xOffset=alt.XOffset("pair:N", sort=pairs),
        y=y,
        color=alt.Color("pair:N", scale=by_name(pairs, colors), legend=alt.Legend(title=None, columns=1)),
    )
    bars = [row for row in drawn if row["low"] is not None]
    layers = [
        of_rows([{"zero": 0}]).mark_rule(strokeDash=[2, 2]).encode(y="zero:Q"),
        base.mark_point(size=80, filled=True, opacity=1).encode(
            shape=alt.Shape("pair:N", scale=by_name(pairs, shapes), title=None)
        ),
    ]
    if bars:
        bar = base.mark_errorbar(ticks={"size": 9}, thickness=1.5)
        layers.append(bar.encode(y=alt.Y("low:Q", title=what), y2="high:Q").properties(data=of_rows(bars).data))
    title = "Is the difference larger than the seeds' spread?"
    return layered(layers, title, differences_sentence(rows))


def differences_sentence(rows: Rows) -> str:
    """How many differences are beyond noise, in words."""
    verdicts = [row["verdict"] for row in rows]
    if not verdicts:
        return "There are no differences to show: no two kinds of runs have a seed and a finished stage in common."
    parts = [f"{verdicts.count(name)} {name}" for name in dict.fromkeys(verdicts)]
    return f"Differences between kinds of runs, seed by seed: {', '.join(parts)}."
