"""Tables of plain dicts -> altair charts: one function a chart, one sentence in words beside it.

The sentence is always true of the rows, and is the chart's description for those who cannot see it. What a colour
says, a shape or a dash says too.
"""

from __future__ import annotations

import html
import io
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import altair as alt

BLUE, VERMILION, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#595959"
COLORS = (BLUE, VERMILION, GREEN, "#CC79A7", "#8A6D00", "#000000")  # by run; readable on white, colour blind or not
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [4, 4], [12, 3])
WIDTH, HEIGHT = 680, 260
DENSE, FINE_TUNING = "dense network", "fine-tuning under the mask"
RANDOM, PLAIN, WINNER = "random mask", "plain (deterministic) mask", "winner of the stage"

Row = Mapping[str, Any]
Rows = Sequence[Row]


def to_svg(chart: alt.TopLevelMixin) -> str:
    """A picture that needs nothing else: no script, no request; the chart's description is its accessible name."""
    written = io.StringIO()
    chart.save(written, format="svg")
    name = html.escape(str(chart.to_dict(validate=False).get("description", "")), quote=True)
    return written.getvalue().replace("<svg ", f'<svg role="img" aria-label="{name}" ', 1)


def accuracy(value: float) -> str:
    """As people read it: 0.953 -> "95.3 %"."""
    return f"{100 * value:.1f} %"


def sparsity(value: float, compression: float | None = None) -> str:
    """Both ways of saying it: 0.9375 -> "0.9375 (16.0x)"."""
    return f"{value:.4f} ({1 / (1 - value) if compression is None else compression:.1f}x)"


def accuracy_chart(rows: Rows, dense: float | None = None) -> alt.LayerChart:
    """Test accuracy at the end of each stage, a line for each run.

    Args:
        rows: run (a label), sparsity, compression (of the prunable weights), accuracy (in [0, 1]); in order of stages.
        dense: test accuracy of the dense network, a rule across; None: unknown yet.
    """
    runs = list(dict.fromkeys(row["run"] for row in rows))
    steps = sorted({row["compression"] for row in rows})
    x = alt.X(
        "compression:Q",
        title="sparsity of the prunable weights, and their compression (log scale)",
        scale=alt.Scale(type="log", domain=[steps[0] / 1.15, steps[-1] * 1.15], nice=False),
        axis=alt.Axis(
            values=steps,
            labelExpr="[format(1 - 1 / datum.value, '.4f'), format(datum.value, '.1f') + 'x']",
            labelOverlap="greedy",
            grid=False,
        ),
    )
    y = alt.Y("accuracy:Q", title="test accuracy", scale=alt.Scale(zero=False), axis=_percent())
    lines = _chart(rows).encode(
        x=x,
        y=y,
        color=alt.Color("run:N", scale=_scale(runs, COLORS), legend=alt.Legend(title=None, symbolStrokeWidth=0)),
    )
    dash = alt.StrokeDash("run:N", scale=_scale(runs, DASHES), title=None)
    shape = alt.Shape("run:N", scale=_scale(runs, SHAPES), title=None)
    layers = [
        lines.mark_line(strokeWidth=2).encode(strokeDash=dash),
        lines.mark_point(size=80, filled=True, opacity=1).encode(shape=shape),
    ]
    if dense is not None:
        rule = _chart([{"accuracy": dense, "text": ["dense", accuracy(dense)]}]).encode(y="accuracy:Q")
        layers[:0] = [
            rule.mark_rule(color=GREY, strokeDash=[1, 3]),
            rule.mark_text(color=GREY, align="left", dx=5, x=WIDTH).encode(text="text:N"),
        ]
    return _layered(layers, "Does accuracy survive as weights are removed?", accuracy_sentence(rows, dense))


def accuracy_sentence(rows: Rows, dense: float | None = None) -> str:
    """First and last stage of each run, in words."""
    parts = []
    for run in dict.fromkeys(row["run"] for row in rows):
        own = [row for row in rows if row["run"] == run]
        first, last = own[0], own[-1]
        text = f"{run} {accuracy(last['accuracy'])} at sparsity {sparsity(last['sparsity'], last['compression'])}"
        parts.append(text + (f", {accuracy(first['accuracy'])} at {first['sparsity']:.4f}" if len(own) > 1 else ""))
    start = "Test accuracy" if dense is None else f"Test accuracy (dense network: {accuracy(dense)})"
    return f"{start}: {'; '.join(parts)}."


def candidates_chart(rows: Rows) -> alt.LayerChart:
    """Every candidate's score, stage by stage; a failed one has none and is left out.

    Args:
        rows: stage, candidate (0 is the plain mask), accuracy (in [0, 1] or None), winner (bool).
    """
    kinds = [PLAIN, RANDOM, WINNER]
    scored = [row for row in rows if row["accuracy"] is not None]
    marks = [{**row, "kind": RANDOM if row["candidate"] else PLAIN} for row in scored]
    marks += [{**row, "kind": WINNER} for row in scored if row["winner"]]
    within = "stage; within it the candidates 0, 1, 2, ... from left to right"
    points = _chart(marks).encode(
        x=alt.X("stage:O", title=within, axis=alt.Axis(labelAngle=0)),
        xOffset=alt.XOffset("candidate:O"),
        y=alt.Y("accuracy:Q", title="accuracy that decides", scale=alt.Scale(zero=False), axis=_percent()),
        color=alt.Color("kind:N", scale=_scale(kinds, (VERMILION, BLUE, GREEN)), title=None),
        shape=alt.Shape("kind:N", scale=_scale(kinds, ("square", "circle", "diamond")), title=None),
    )
    won = alt.datum.kind == WINNER
    layers = [
        points.transform_filter(~won).mark_point(size=60, opacity=1, strokeWidth=2),
        points.transform_filter(won).mark_point(size=380, opacity=1, strokeWidth=2.5),
    ]
    return _layered(layers, "Which mask won, and by how much?", candidates_sentence(rows))


def candidates_sentence(rows: Rows) -> str:
    """Who won how often, how close it was, and who failed, in words."""
    winners = [row for row in rows if row["winner"]]
    plain = sum(row["candidate"] == 0 for row in winners)
    stages = {row["stage"]: [r["accuracy"] for r in rows if r["stage"] == row["stage"]] for row in rows}
    known = {stage: [value for value in values if value is not None] for stage, values in stages.items()}
    spread = max((max(values) - min(values) for values in known.values() if values), default=0.0)
    failed = sum(row["accuracy"] is None for row in rows)
    text = f"In {len(winners)} decided stages the plain mask won {plain} and a random one {len(winners) - plain} times"
    text += f"; the scores within one stage differ by at most {100 * spread:.1f} percentage points"
    return text + (f"; {failed} candidates failed and have no score." if failed else ".")


def loss_chart(rows: Rows) -> alt.LayerChart:
    """Training loss over all epochs, a line for the dense network and one for each stage.

    Args:
        rows: phase ("dense" or "fine-tuning"), stage (0 for dense), loss; in the order in which they were trained.
    """
    epochs = _epochs(rows)
    kinds = [DENSE, FINE_TUNING]
    lines = _chart(epochs).encode(
        x=alt.X("epoch:Q", title="epoch since the start (judging candidates is not counted)", axis=_whole(epochs)),
        y=_loss_axis([row["loss"] for row in epochs]),
        detail="stage:O",
        color=alt.Color("kind:N", scale=_scale(kinds, (GREEN, BLUE)), title=None),
    )
    shape = alt.Shape("kind:N", scale=_scale(kinds, ("square", "circle")), title=None)
    labels = _stage_labels(epochs)
    names = (
        _chart(labels).mark_text(color=GREY, align="left", baseline="bottom", y=-4).encode(x="epoch:Q", text="text:N")
    )
    bounds = _chart(labels[1:]).mark_rule(color="#c0c0c0").encode(x="epoch:Q")
    points = lines.mark_point(size=24, filled=True, opacity=1).encode(shape=shape)
    layers = [bounds, lines.mark_line(strokeWidth=2), points, names]
    return _layered(layers, "Each cut costs, training repairs: loss on the training data", loss_sentence(rows))


def loss_sentence(rows: Rows) -> str:
    """Where the losses of the dense network and of the last stage begin and end, in words."""
    dense = [row["loss"] for row in rows if row["phase"] == "dense"]
    stage = max((row["stage"] for row in rows), default=0)
    tuned = [row["loss"] for row in rows if row["phase"] != "dense" and row["stage"] == stage]
    parts = (
        [f"of the dense network goes from {dense[0]:.3g} to {dense[-1]:.3g} (epochs: {len(dense)})"] if dense else []
    )
    if tuned:
        parts.append(f"of stage {stage} from {tuned[0]:.3g} to {tuned[-1]:.3g} (epochs: {len(tuned)})")
    return "The training loss " + ", ".join(parts) + "."


def _epochs(rows: Rows) -> list[dict[str, Any]]:
    """Epochs counted through; what is not finite cannot be drawn."""
    kinds = {"dense": DENSE}
    counted = [
        {**row, "epoch": number, "kind": kinds.get(row["phase"], FINE_TUNING)} for number, row in enumerate(rows, 1)
    ]
    return [row for row in counted if math.isfinite(row["loss"])]


def _stage_labels(points: Rows) -> list[dict[str, Any]]:
    """The first epoch of each stage, with a text that fits between it and the next."""
    starts = [row for row, before in zip(points, [{}, *points], strict=False) if row["stage"] != before.get("stage")]
    gaps = [later["epoch"] - row["epoch"] for row, later in pairwise(starts)]
    long = "stage " * (min(gaps, default=len(points)) * WIDTH > 55 * len(points))
    return [{**row, "text": f"{long}{row['stage']}" if row["stage"] else "dense"} for row in starts]


def _loss_axis(losses: Sequence[float]) -> alt.Y:
    """Whole decades on a log scale where the losses span more than one, else a linear scale."""
    low, high = min(losses, default=0.0), max(losses, default=0.0)
    title = "mean loss of an epoch (nats)"
    if low <= 0 or high < 10 * low:
        return alt.Y("loss:Q", title=title, scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=5))
    decades = [10.0**power for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    scale = alt.Scale(type="log", domain=[decades[0], decades[-1]], nice=False)
    return alt.Y("loss:Q", title=f"{title}, log scale", scale=scale, axis=alt.Axis(values=decades, format="~g"))


def _whole(points: Rows) -> alt.Axis:
    return alt.Axis(format="d", grid=False, tickCount=min(len(points), 12), tickMinStep=1)


def _percent() -> alt.Axis:
    return alt.Axis(labelExpr="format(100 * datum.value, '.4~g') + ' %'", tickCount=6)


def _scale(domain: list[str], values: Sequence[Any]) -> alt.Scale:
    """Each name its own value; they come round again where there are more names."""
    return alt.Scale(domain=domain, range=[values[place % len(values)] for place in range(len(domain))])


def _chart(rows: Rows) -> alt.Chart:
    return alt.Chart(alt.InlineData(values=[dict(row) for row in rows]))


def _layered(layers: list[alt.Chart], title: str, description: str) -> alt.LayerChart:
    chart: alt.LayerChart = (
        alt.layer(*layers)
        .properties(title=title, description=description, width=WIDTH, height=HEIGHT, background="white", padding=8)
        .configure_title(fontSize=15, anchor="start", offset=18)
        .configure_axis(labelFontSize=11, titleFontSize=12, titleFontWeight="normal", titlePadding=8)
        .configure_legend(orient="bottom", labelFontSize=12, labelLimit=400, columns=4, symbolLimit=20)
        .configure_view(stroke="#d0d0d0")
    )
    return chart
