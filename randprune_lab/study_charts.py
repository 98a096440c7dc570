"""Tidy tables of a study -> altair charts, like ``charts``: means, paired differences, rankings, shares.

Every chart takes the sentence that says it in words, and is described by it. What a colour says, a shape or a dash says
too. Values are drawn as they are: shares that are to be read in percent come times 100.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import altair as alt
import pandas as pd

from randprune_lab.charts import (
    BLUE,
    COLORS,
    GREEN,
    GREY,
    HEIGHT,
    NUMBER,
    PLAIN,
    RANDOM,
    SHAPES,
    VERMILION,
    WIDTH,
    Row,
    by_name,
    framed,
    of_rows,
    percent_axis,
)
from randprune_lab.checks import check_option, check_sparsity
from randprune_lab.intervals import share

VERDICTS = {  # verdict: color, shape
    "above": (GREEN, "triangle-up"),
    "below": (VERMILION, "triangle-down"),
    "within noise": (GREY, "circle"),
    "too few seeds": ("#8A6D00", "cross"),
}
DASHED = [6, 3]
NAMED = 340  # pixels that a name beside the axis may take
MOST_TICKS = 9
PANEL, PANELS = 190, 3  # pixels of a small chart, and how many stand side by side


def lines_chart(
    frame: pd.DataFrame,
    *,
    x_title: str,
    y_title: str,
    title: str,
    sentence: str,
    reference: str = "",
    log: bool = False,
    compression: bool = False,
) -> alt.LayerChart:
    """A mean with its interval for each line and x. Where x holds names, they stand below one another.

    Args:
        frame: label (the line's), x, mean, low and high (of the interval; missing: none). Rows without x are left out,
            but for the reference's.
        x_title: what x is, with its unit; likewise ``y_title``.
        y_title: of the means.
        title: says what to look for.
        sentence: the same in words; the chart's description.
        reference: label of the line that the others are held against: dashed and grey; without x, a rule across.
        log: a log scale for x, where every x is positive.
        compression: x are sparsities, drawn by their compression on a log scale.
    """
    rows = _records(frame)
    across = [row for row in rows if row["x"] is None and row["label"] == reference]
    points = [row for row in rows if row["x"] is not None]
    labels = list(dict.fromkeys(row["label"] for row in points))
    plain = [label for label in labels if label != reference]
    looks = dict(zip(plain, zip(_cycled(COLORS, plain), _cycled(SHAPES, plain), strict=True), strict=True))
    looks |= {reference: (GREY, "cross")} if reference in labels else {}
    place = _Place(points, x_title, log=log, compression=compression)
    named = len(labels) > 1
    if place.names and all(row["label"] == row["x"] for row in points):  # the axis names them already
        named, looks = False, {label: (GREY, "cross") if label == reference else (BLUE, "circle") for label in labels}
    legend = alt.Legend(title=None, symbolStrokeWidth=0, symbolOpacity=1) if named else None
    color = alt.Color("label:N", scale=by_name(labels, [looks[label][0] for label in labels]), legend=legend)
    shape = alt.Shape("label:N", scale=by_name(labels, [looks[label][1] for label in labels]), legend=legend)
    drawn = place.of(points, labels)
    marks = of_rows(drawn).encode(color=color, **place.channels("mean", y_title))
    layers = _across(across, place)
    if not place.names:
        dash = alt.StrokeDash(
            "label:N", scale=by_name(labels, [_dash(label, reference) for label in labels]), legend=None
        )
        layers.append(marks.mark_line(strokeWidth=2).encode(strokeDash=dash))
    layers += _bars(drawn, place, y_title, color)
    layers.append(marks.mark_point(size=80, filled=True, opacity=1).encode(shape=shape))
    return place.framed(layers, title, sentence)


def differences_chart(
    frame: pd.DataFrame,
    *,
    x_title: str,
    y_title: str,
    title: str,
    sentence: str,
    log: bool = False,
    compression: bool = False,
) -> alt.LayerChart:
    """How far each line lies from what it is compared with, pair by pair: beyond noise by colour and shape.

    Args:
        frame: label, x, difference, low, high (missing: none), verdict (one of ``intervals.Verdict``).
        x_title: what x is, with its unit; likewise ``y_title``.
        y_title: of the differences.
        title: says what to look for.
        sentence: the same in words; the chart's description.
        log: a log scale for x, where every x is positive.
        compression: x are sparsities, drawn by their compression on a log scale.
    """
    rows = [row for row in _records(frame) if row["x"] is not None]
    labels = list(dict.fromkeys(row["label"] for row in rows))
    said = {check_option("verdict", row["verdict"], VERDICTS) for row in rows}
    shown = [name for name in VERDICTS if name in said]
    place = _Place(rows, x_title, log=log, compression=compression)
    legend = alt.Legend(title=None, symbolOpacity=1)
    color = alt.Color("verdict:N", scale=by_name(shown, [VERDICTS[name][0] for name in shown]), legend=legend)
    shape = alt.Shape("verdict:N", scale=by_name(shown, [VERDICTS[name][1] for name in shown]), legend=legend)
    drawn = place.of(rows, labels)
    marks = of_rows(drawn).encode(**place.channels("difference", y_title))
    zero = of_rows([{"difference": 0}]).mark_rule(color=GREY).encode(**place.value("difference", y_title))
    layers = [zero]
    if not place.names:
        named = alt.Legend(title=None, symbolType="stroke") if len(labels) > 1 else None
        dash = alt.StrokeDash("label:N", scale=by_name(labels, ([1, 0], DASHED, [2, 2], [10, 3, 2, 3])), legend=named)
        layers.append(marks.mark_line(strokeWidth=1.2, color=GREY, opacity=0.7).encode(strokeDash=dash))
    layers += _bars(drawn, place, y_title, color)
    layers.append(marks.mark_point(size=95, filled=True, opacity=1).encode(color=color, shape=shape))
    return place.framed(layers, title, sentence)


def scatter_chart(
    frame: pd.DataFrame,
    *,
    x_title: str,
    y_title: str,
    title: str,
    sentence: str,
    notes: Mapping[str, str] | None = None,
) -> alt.ConcatChart:
    """Did a short training rank the masks as a whole one? A small chart for each setting, a dot for each candidate.

    Args:
        frame: setting, x (score after the short training), y (after the whole one), candidate (0 is the plain mask).
            Scores of several seeds should come as differences from their seed's mean: seeds differ by more than masks.
        x_title: what x is, with its unit; likewise ``y_title``.
        y_title: of the score after the whole training.
        title: says what to look for.
        sentence: the same in words; the chart's description.
        notes: by setting, what stands below its name, as its rank correlation.
    """
    kinds = [RANDOM, PLAIN]
    panels = []
    for place, (setting, same) in enumerate(frame.groupby("setting", sort=False)):
        rows = [{**row, "kind": RANDOM if row["candidate"] else PLAIN} for row in _records(same)]
        marks = of_rows(sorted(rows, key=lambda row: row["kind"] == PLAIN))  # the plain one on top
        axis, scale = alt.Axis(tickCount=4, labelExpr=NUMBER), alt.Scale(zero=False, padding=8)
        legend = alt.Legend(title=None, symbolOpacity=1)
        points = marks.mark_point(size=55, filled=True, opacity=0.85).encode(
            x=alt.X("x:Q", title=x_title, scale=scale, axis=axis),
            y=alt.Y("y:Q", title=None if place % PANELS else y_title, scale=scale, axis=axis),
            color=alt.Color("kind:N", scale=by_name(kinds, (BLUE, VERMILION)), legend=legend),
            shape=alt.Shape("kind:N", scale=by_name(kinds, ("circle", "square")), legend=legend),
        )
        # Text marks, not titles: those would stand the higher, the wider an axis happens to be.
        texts: list[tuple[str, int, Any, str]] = [
            (str(setting), -26, "bold", "black"),
            ((notes or {}).get(str(setting), ""), -10, "normal", GREY),
        ]
        above = [
            of_rows([{"text": text}])
            .mark_text(x=0, y=y, align="left", limit=PANEL + 45, fontSize=12, fontWeight=weight, color=color)
            .encode(text="text:N")
            for text, y, weight, color in texts
        ]
        panels.append(alt.LayerChart(layer=[points, *above], width=PANEL, height=PANEL))
    chart = alt.ConcatChart(concat=panels, columns=PANELS, bounds="flush", spacing={"row": 100, "column": 55})
    return framed(chart, title, sentence)


def share_chart(
    frame: pd.DataFrame, *, x_title: str, title: str, sentence: str, chance: float | None = None
) -> alt.LayerChart:
    """How often which kind of mask won: a bar with Wilson's 95 % interval for each line and kind.

    Args:
        frame: label, kind ("plain" or "random"), won, number (of decided stages).
        x_title: what the share is of.
        title: says what to look for.
        sentence: the same in words; the chart's description.
        chance: share of wins, in [0, 1], that the plain mask would have if the winner were drawn blindly; dashed.
    """
    names = {"plain": PLAIN, "random": RANDOM}
    rows = []
    for row in _records(frame):
        found = share(int(row["won"]), int(row["number"]))
        shares = {"mean": found.mean, "low": found.low, "high": found.high}
        told = f"{row['won']:.0f} of {row['number']:.0f}"
        rows.append(
            {"x": row["label"], "label": names[check_option("kind", row["kind"], names)], "told": told, **shares}
        )
    kinds = [name for name in names.values() if any(row["label"] == name for row in rows)]
    place = _Place(rows, "", share=True)
    color = alt.Color("label:N", scale=by_name(list(names.values()), (VERMILION, BLUE)), title=None)
    shape = alt.Shape("label:N", scale=by_name(list(names.values()), ("square", "circle")), title=None)
    drawn = place.of(rows, kinds)
    marks = of_rows(drawn).encode(color=color, **place.channels("mean", x_title))
    layers = [
        marks.mark_bar(opacity=0.35),
        *_bars(drawn, place, x_title, color),
        marks.mark_point(size=70, filled=True, opacity=1).encode(shape=shape),
        of_rows(drawn).mark_text(align="left", x="width", dx=6).encode(text="told:N", **place.place()),
    ]
    if chance is not None:
        rule = of_rows([{"mean": chance, "text": "plain mask, if drawn blindly"}])
        rule = rule.encode(**place.value("mean", x_title))
        layers.append(rule.mark_rule(color=GREY, strokeDash=DASHED))
        layers.append(rule.mark_text(color=GREY, align="left", dx=4, y=-6).encode(text="text:N"))
    return place.framed(layers, title, sentence)


# ---- where points stand


class _Place:
    """Where a row's x is drawn: to the right as a number, or, where there are names, downwards, one below the other."""

    def __init__(
        self, rows: Sequence[Row], title: str, *, log: bool = False, compression: bool = False, share: bool = False
    ) -> None:
        values = [row["x"] for row in rows]
        self.names = any(not isinstance(value, Real) or isinstance(value, bool) for value in values)
        self.title, self.share, self.compression = title, share, compression and not self.names
        self.order = [str(value) for value in dict.fromkeys(values)]
        self.at = {value: self._position(value) for value in values if not self.names}
        self.log = not self.names and (log or self.compression) and all(at > 0 for at in self.at.values())
        self.slots = 1

    def _position(self, value: float) -> float:
        return 1 / (1 - check_sparsity(value)) if self.compression else float(value)

    def of(self, rows: Sequence[Row], labels: Sequence[str]) -> list[dict[str, Any]]:
        """Where each row is drawn, those of several lines beside one another."""
        if self.names:
            used = {name: [row["label"] for row in rows if str(row["x"]) == name] for name in self.order}
            self.slots = max(map(len, used.values()), default=1)
            return [{**row, "x": str(row["x"])} for row in rows]
        low, high = min(self.at.values(), default=1.0), max(self.at.values(), default=1.0)
        step = min(0.01, 0.08 / len(labels)) if len(self.at) < len(rows) else 0.0  # else no two lines share an x
        shift = {label: step * (at - (len(labels) - 1) / 2) for at, label in enumerate(labels)}
        if self.log:
            width = math.log(high / low) or 1.0
            return [{**row, "x": self.at[row["x"]] * math.exp(width * shift[row["label"]])} for row in rows]
        width = high - low or 1.0
        return [{**row, "x": self.at[row["x"]] + width * shift[row["label"]]} for row in rows]

    def channels(self, field: str, title: str) -> dict[str, Any]:
        """Where a mark stands, and what it says."""
        return self.place() | self.value(field, title)

    def place(self) -> dict[str, Any]:
        """The channel of x."""
        if not self.names:
            return {"x": self._axis()}
        axis = alt.Axis(labelLimit=NAMED, domain=False, ticks=False, labelPadding=8, grid=True)
        found: dict[str, Any] = {"y": alt.Y("x:N", sort=self.order, title=self.title or None, axis=axis)}
        return found | ({"yOffset": alt.YOffset("label:N", sort=None)} if self.slots > 1 else {})

    def value(self, field: str, title: str) -> dict[str, Any]:
        """The channel of what is measured."""
        kind: Any = alt.X if self.names else alt.Y
        scale = alt.Scale(domain=[0, 1], nice=False) if self.share else alt.Scale(zero=False)
        axis = percent_axis() if self.share else alt.Axis(labelExpr=NUMBER, tickCount=6)
        return {"x" if self.names else "y": kind(f"{field}:Q", title=title, scale=scale, axis=axis)}

    def _axis(self) -> alt.X:
        steps = sorted(set(self.at.values())) or [1.0]
        margin = 0.05 * (math.log(steps[-1] / steps[0]) if self.log else steps[-1] - steps[0]) or 0.5
        ends = (
            [steps[0] * math.exp(-margin), steps[-1] * math.exp(margin)]
            if self.log
            else [steps[0] - margin, steps[-1] + margin]
        )
        scale = alt.Scale(type="log" if self.log else "linear", domain=ends, nice=False)
        few = len(steps) <= MOST_TICKS and all(len(f"{step:g}") <= 6 for step in steps)
        ticks: dict[str, Any] = {"tickCount": 6}
        if few or self.compression or self.log:
            ticks = {"values": steps if few or self.compression else _rungs(*ends)}
        said = (
            "[format(1 - 1 / datum.value, '.4~f'), format(datum.value, '.3~g') + 'x']" if self.compression else NUMBER
        )
        title = f"{self.title}{', and the compression' * self.compression}{' (log scale)' * self.log}"
        axis = alt.Axis(labelExpr=said, labelOverlap="greedy", grid=False, **ticks)
        return alt.X("x:Q", title=title, scale=scale, axis=axis)

    def framed(self, layers: Sequence[alt.Chart], title: str, sentence: str) -> alt.LayerChart:
        """The chart of these layers, the first at the bottom."""
        height = max(len(self.order) * max(26, 17 * self.slots), 60) if self.names else HEIGHT
        width = WIDTH - 180 if self.names else WIDTH
        return framed(alt.LayerChart(layer=list(layers), width=width, height=height), title, sentence)


def _bars(rows: Sequence[Row], place: _Place, title: str, color: alt.Color) -> list[alt.Chart]:
    """The intervals; none where none is known."""
    known = [row for row in rows if row["low"] is not None and row["high"] is not None]
    if not known:
        return []
    bars = of_rows(known).mark_errorbar(ticks={"size": 9}, thickness=1.5)
    end = "x2" if place.names else "y2"
    return [bars.encode(color=color, **place.channels("low", title), **{end: "high:Q"})]


def _across(rows: Sequence[Row], place: _Place) -> list[alt.Chart]:
    """A reference that no x changes: a dashed rule across, its interval a band, its name at the end."""
    if not rows:
        return []
    mean = rows[0]["mean"]
    said = f"{mean:.1f}" if abs(mean) >= 10 else f"{mean:.2f}"
    row = {**rows[0], "text": f"{rows[0]['label']}\n{said}".replace(", ", ",\n")}
    one = of_rows([row])
    value, end = ("x", "x2") if place.names else ("y", "y2")
    layers = [one.mark_rule(color=GREY, strokeDash=DASHED, strokeWidth=1.5).encode(**{value: "mean:Q"})]
    if row["low"] is not None:
        layers.insert(0, one.mark_rect(color=GREY, opacity=0.15).encode(**{value: "low:Q", end: "high:Q"}))
    where: dict[str, Any] = {"y": -4, "baseline": "bottom"} if place.names else {"x": "width", "dx": 6, "align": "left"}
    text = one.mark_text(color=GREY, lineBreak="\n", **where).encode(**{value: "mean:Q", "text": "text:N"})
    return [*layers, text]


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as plain dicts; what is missing is None."""
    return [
        {name: None if value is None or value != value else value for name, value in row.items()}
        for row in frame.to_dict("records")
    ]


def _rungs(low: float, high: float) -> list[float]:
    """1, 2 and 5 of each decade from low to high; of more than three decades, the 1."""
    leading = (1, 2, 5) if high < 1000 * low else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [float(f"{digit}e{power}") for power in powers for digit in leading]
    return [value for value in found if low <= value <= high]


def _cycled(values: Sequence[Any], names: Sequence[str]) -> list[Any]:
    return [values[at % len(values)] for at in range(len(names))]


def _dash(label: str, reference: str) -> list[int]:
    return DASHED if label == reference else [1, 0]
