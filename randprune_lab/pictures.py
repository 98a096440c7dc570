"""Tables of plain dicts -> altair charts, like ``charts``. Here: of weights, masks and introduced randomness.

They are the form for paper and report of what the live panels show.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import altair as alt

from randprune_lab.charts import (
    BLUE,
    COLORS,
    DASHES,
    GREEN,
    GREY,
    HEIGHT,
    NUMBER,
    VERMILION,
    WIDTH,
    Row,
    Rows,
    by_name,
    framed,
    layered,
    number_axis,
    of_rows,
    percent_axis,
)
from randprune_lab.charts import accuracy as share  # one way to write 0.291: "29.1 %"

FATES = ("pruned", "undecided", "kept")
_FATE_COLORS = (VERMILION, GREEN, BLUE)
MAGNITUDE = "magnitude abs(w), in the weights' own units"
_LEADING = "round(datum.value / pow(10, floor(log(datum.value) / LN10 + 1e-9)))"
_FEW = f"indexof([1, 2, 5], {_LEADING}) < 0 ? '' : {NUMBER}"  # labels of a log axis: 0.01, 0.02, 0.05, 0.1, ...


def threshold_chart(bars: Rows, marks: Rows) -> alt.VConcatChart:
    """Figure 1 of arXiv 2310.13183: where magnitude pruning cuts, and how many weights lie there; a panel a sparsity.

    Args:
        bars: as ``figures.magnitude_rows`` gives them.
        marks: as ``figures.threshold_rows`` gives them, of the same sparsities.
    """
    panels = [_threshold_panel([bar for bar in bars if bar["sparsity"] == mark["sparsity"]], mark) for mark in marks]
    title = "Magnitude pruning cuts where weights are dense: nearly equal ones on both sides of tau"
    return framed(alt.vconcat(*panels), title, threshold_sentence(marks))


def threshold_sentence(marks: Rows) -> str:
    """Threshold and share of weights near it, for each sparsity, in words."""
    parts = [
        f"at sparsity {mark['sparsity']:g}, tau = {mark['tau']:.4g} and {share(mark['share'])} of the "
        f"{mark['weights']:,} weights lie between 2/3 tau and 4/3 tau"
        for mark in marks
    ]
    text = "; ".join(parts) or "no sparsity was asked for"
    return f"{text[0].upper()}{text[1:]}."


def _threshold_panel(bars: Rows, mark: Row) -> alt.LayerChart:
    unit = 10.0 ** math.floor(math.log10(bars[-1]["high"] / 100)) if bars else 1.0
    total = max(mark["weights"], 1)
    drawn = [{**bar, "top": bar["weights"] / total / (bar["high"] - bar["low"]) * unit} for bar in bars]
    room = 1.25 * max((bar["top"] for bar in drawn), default=1.0) or 1.0
    x = alt.X("low:Q", title=f"{MAGNITUDE}; sparsity {mark['sparsity']:g}", scale=_exactly(bars), axis=_ticks())
    y = alt.Y(
        "top:Q",
        title=f"weights per {unit:g} (%)",
        scale=alt.Scale(domain=[0, room], nice=False),
        axis=alt.Axis(labelExpr="format(100 * datum.value, '.3~g') + ' %'", tickCount=4),
    )
    text = [f"tau = {mark['tau']:.3g}", f"{share(mark['share'])} between 2/3 tau and 4/3 tau"]
    one = of_rows([{**mark, "text": text}])
    layers = [
        one.mark_rect(color="#eeeeee").encode(x=x, x2="high:Q"),
        _bars(drawn, x, y).encode(
            color=alt.Color("fate:N", scale=_fates("pruned", "kept"), title=None),
            opacity=alt.Opacity("near:N", scale=alt.Scale(domain=[True, False], range=[1, 0.45]), legend=None),
        ),
        one.mark_rule(strokeDash=[6, 3], strokeWidth=2).encode(x="tau:Q"),
        one.mark_text(align="right", x=WIDTH - 8, y=8, baseline="top", lineHeight=15).encode(text="text:N"),
    ]
    return alt.LayerChart(layer=layers, width=WIDTH, height=0.7 * HEIGHT)


def keep_curve_chart(rows: Rows, tau: float, dots: Rows = ()) -> alt.LayerChart:
    """The chance to be kept by magnitude, beside the hard step of magnitude pruning.

    Args:
        rows: magnitude (rising), q (in [0, 1]); also power where there are curves for several T.
        tau: where magnitude pruning steps from 0 to 1.
        dots: what real draws did: magnitude, kept (a share in [0, 1], or a bool).
    """
    curves = _curves(rows)
    names = [*curves, _STEP]
    colors, dashes = _cycled(COLORS, len(curves)), _cycled(DASHES, len(curves))
    lines = [{**row, "curve": name, "order": place} for name, own in curves.items() for place, row in enumerate(own)]
    ends = [row["magnitude"] for row in rows] or [0.5 * tau, 1.5 * tau]
    corners = [(min(*ends, tau), 0), (tau, 0), (tau, 1), (max(*ends, tau), 1)]
    lines += [{"magnitude": x, "q": y, "curve": _STEP, "order": order} for order, (x, y) in enumerate(corners)]
    x = alt.X("magnitude:Q", title=MAGNITUDE, scale=alt.Scale(zero=False, nice=False), axis=_ticks())
    y = alt.Y("q:Q", title="chance q to be kept (%)", scale=alt.Scale(domain=[0, 1]), axis=percent_axis())
    layers = [
        of_rows(lines)
        .mark_line(strokeWidth=2)
        .encode(
            x=x,
            y=y,
            order="order:Q",
            color=alt.Color("curve:N", scale=by_name(names, [*colors, GREY]), legend=alt.Legend(title=None, columns=7)),
            strokeDash=alt.StrokeDash("curve:N", scale=by_name(names, [*dashes, [1, 3]]), title=None),
        )
    ]
    if dots:
        shares = [{"magnitude": dot["magnitude"], "q": float(dot["kept"])} for dot in dots]
        layers.append(of_rows(shares).mark_point(size=45, color="black", opacity=0.8).encode(x=x, y=y))
    title = f"Chance decides around tau{': the larger T, the nearer to it' if len(curves) > 1 else ', not a hard step'}"
    return layered(layers, title, keep_curve_sentence(rows, tau, dots))


def keep_curve_sentence(rows: Rows, tau: float, dots: Rows = ()) -> str:
    """Where chance rules, in words: the magnitudes of the rows with a q between 10 % and 90 %."""
    parts = []
    for name, own in _curves(rows).items():
        open_ = [row["magnitude"] for row in own if 0.1 < row["q"] < 0.9]
        where = f"from {min(open_):.4g} to {max(open_):.4g}" if open_ else "nowhere"
        parts.append(f"{name} {where}")
    text = f"Magnitude pruning keeps the largest weights, down to tau = {tau:.4g}."
    if parts:
        window = (
            f" In the window to {max(row['magnitude'] for row in rows):.4g}, a randomized mask keeps weights with a"
        )
        text += f"{window} chance between 10 % and 90 % for magnitudes: {'; '.join(parts)}."
    if dots:
        text += f" Dots ({len(dots)}): the share that real draws kept."
    return text


_STEP = "magnitude pruning"


def _curves(rows: Rows) -> dict[str, list[Row]]:
    curves: dict[str, list[Row]] = {}
    for row in rows:
        curves.setdefault(f"T = {row['power']:g}" if "power" in row else "predicted", []).append(row)
    return curves


def ir_chart(rows: Rows) -> alt.LayerChart:
    """Introduced randomness against the sampling ratio, under both schedules.

    Args:
        rows: as ``figures.ir_rows`` gives them.
    """
    drawn = _finite(rows, "sampling_ratio", "ir")
    floored = [{**row, "M": _FLOOR} for row in drawn if row["floored"]]
    schedules = list(dict.fromkeys(row["schedule"] for row in rows))
    x = _number("sampling_ratio", "sampling ratio sr (masks drawn per weight counted)", log=True)
    y = number_axis("ir:Q", "expected introduced randomness ir", [row["ir"] for row in drawn])
    color = alt.Color("schedule:N", scale=by_name(schedules, (BLUE, VERMILION)), title=None)
    dash = alt.StrokeDash("schedule:N", scale=by_name(schedules, DASHES), title=None)
    shape = alt.Shape("M:N", scale=by_name([_FLOOR] if floored else [], ["square"]), title=None)
    layers = [
        of_rows(drawn).mark_line(strokeWidth=2).encode(x=x, y=y, color=color, strokeDash=dash),
        of_rows(floored).mark_point(size=45, color=GREY, opacity=1).encode(x=x, y=y, shape=shape),
    ]
    return layered(layers, "The larger the sampling ratio, the more masks, the less randomness", ir_sentence(rows))


def ir_sentence(rows: Rows) -> str:
    """How far M and ir go under each schedule, and where M stands at its floor, in words."""
    parts = []
    for schedule in dict.fromkeys(row["schedule"] for row in rows):
        own = sorted((row for row in rows if row["schedule"] == schedule), key=lambda row: float(row["sampling_ratio"]))
        first, last = own[0], own[-1]
        text = f"{schedule}: M goes from {first['samples']:,} to {last['samples']:,}, ir from {first['ir']:.3g} to "
        floored = [row["sampling_ratio"] for row in own if row["floored"]]
        floor = f" (M is at its floor of 1 up to sr = {floored[-1]:.3g})" if floored else ""
        parts.append(f"{text}{last['ir']:.3g}{floor}")
    if not parts:
        return "No sampling ratio was asked for."
    ratios = [row["sampling_ratio"] for row in rows]
    return f"As sr goes from {min(ratios):.3g} to {max(ratios):.3g}: {'; '.join(parts)}."


_FLOOR = "M at its floor of 1"


def sweep_chart(rows: Rows, field_label: str, log: bool, point: Row, dots: Rows = ()) -> alt.LayerChart:
    """Expected introduced randomness while one setting moves; the current setting, and masks really drawn there.

    Args:
        rows: x (the setting, rising), ir. Infinite values, and x <= 0 on a log scale, are not drawn.
        field_label: what x is, with its symbol and unit.
        log: x on a log scale.
        point: the current x and ir.
        dots: x and ir of each mask that was drawn.
    """
    seen = {kind: _finite(given, "x", "ir") for kind, given in ((_LINE, rows), (_NOW, [point]), (_DRAWN, dots))}
    marks = [
        {"x": row["x"], "ir": row["ir"], "kind": kind}
        for kind, own in seen.items()
        for row in own
        if row["x"] > 0 or not log
    ]
    kinds = [kind for kind in seen if any(mark["kind"] == kind for mark in marks)]
    looks = [_SWEEP[kind] for kind in kinds]
    base = of_rows(marks).encode(
        x=_number("x", field_label, log=log),
        y=number_axis("ir:Q", "introduced randomness ir", [mark["ir"] for mark in marks]),
        color=alt.Color("kind:N", scale=by_name(kinds, [look[0] for look in looks]), title=None),
    )
    shape = alt.Shape("kind:N", scale=by_name(kinds, [look[1] for look in looks]), title=None)
    layers = [
        base.transform_filter(alt.datum.kind == _LINE).mark_line(strokeWidth=2),
        base.transform_filter(alt.datum.kind == _NOW)
        .mark_point(size=260, opacity=1, strokeWidth=2.5)
        .encode(shape=shape),
        base.transform_filter(alt.datum.kind == _DRAWN).mark_point(size=40, opacity=1).encode(shape=shape),
    ]
    title = f"Introduced randomness over the {field_label.split(' (')[0]}"
    return layered(layers, title, sweep_sentence(rows, field_label, point, dots))


def sweep_sentence(rows: Rows, field_label: str, point: Row, dots: Rows = ()) -> str:
    """Both ends of the line, the current point, and what was drawn, in words."""
    text = f"At {field_label} = {point['x']:.4g} an ir of {point['ir']:.3g} is expected"
    if rows:
        first, last = rows[0], rows[-1]
        text += f"; from {first['x']:.4g} to {last['x']:.4g} it goes from {first['ir']:.3g} to {last['ir']:.3g}"
    if dots:
        drawn = [dot["ir"] for dot in dots]
        text += f"; the masks drawn ({len(drawn)}) have {min(drawn):.3g} to {max(drawn):.3g}"
    return f"{text}."


_LINE, _NOW, _DRAWN = "predicted", "now", "drawn masks"
_SWEEP = {_LINE: (BLUE, "stroke"), _NOW: (GREEN, "diamond"), _DRAWN: (VERMILION, "circle")}


def microscope_chart(rows: Rows, tau: float, reach_at: float | None = None) -> alt.LayerChart:
    """How many weights of each magnitude are kept, pruned or left to chance.

    Args:
        rows: low, high (of the bin), and the number of weights in it that are kept, undecided and pruned.
        tau: the threshold.
        reach_at: the smallest magnitude that can be drawn; None: every one can.
    """
    relative = 0 < tau < math.inf
    unit = tau / 100 if relative else 1.0
    y = alt.Y(
        "top:Q", title=f"weights per {'1 % of tau' if relative else 'unit of magnitude'}", axis=alt.Axis(tickCount=6)
    )
    layers = [
        _bars(_stacked(rows, unit), alt.X("low:Q", title=MAGNITUDE, scale=_exactly(rows), axis=_ticks()), y).encode(
            color=alt.Color("fate:N", scale=_fates(*FATES), title=None),
            stroke=alt.Stroke("fate:N", scale=by_name(FATES, ("white", "black", "white")), title=None),
        )
    ]
    layers += _edge("tau", tau, [6, 3], "left")
    layers += _edge("reach r", math.inf if reach_at is None else reach_at, [2, 2], "right")
    return layered(
        layers, "A hair's breadth of tau decides over many nearly equal weights", microscope_sentence(rows, tau)
    )


def _edge(name: str, place: float, dash: list[int], align: Literal["left", "right"]) -> list[alt.Chart]:
    """A rule with its name above it; nothing where ``place`` is infinite."""
    if not math.isfinite(place):
        return []
    one = of_rows([{"at": place, "text": f"{name}: {place:.3g}"}]).encode(x="at:Q")
    text = one.mark_text(align=align, baseline="bottom", y=-3).encode(text="text:N")
    return [one.mark_rule(strokeDash=dash, strokeWidth=2), text]


def _stacked(rows: Rows, unit: float) -> list[dict[str, Any]]:
    """Of each bin a bar for every fate that occurs, one upon the other; heights in weights per ``unit``."""
    bars = []
    for row in rows:
        if row["high"] <= row["low"]:  # where float32 itself loses precision
            continue
        base = 0.0
        for fate in FATES:
            height = row[fate] / (row["high"] - row["low"]) * unit
            if height > 0:
                bars.append({"low": row["low"], "high": row["high"], "fate": fate, "base": base, "top": base + height})
            base += height
    return bars


def microscope_sentence(rows: Rows, tau: float) -> str:
    """How many weights of the window are kept, left to chance and pruned, in words."""
    kept, undecided, pruned = (sum(row[fate] for row in rows) for fate in ("kept", "undecided", "pruned"))
    total = kept + undecided + pruned
    if not total:
        return f"No weight lies in the window; tau = {tau:.4g}."
    return (
        f"Of the {total:,.0f} weights from {rows[0]['low']:.4g} to {rows[-1]['high']:.4g}, {kept:,.0f} are kept, "
        f"{pruned:,.0f} pruned and {undecided:,.0f} ({share(undecided / total)}) left to chance; tau = {tau:.4g}."
    )


def agreement_chart(matrix: Sequence[Sequence[float]], labels: Sequence[str]) -> alt.LayerChart:
    """The share of the kept weights that each two masks have in common.

    Args:
        matrix: a row and a column for each mask, in [0, 1]; symmetric, with 1 on the diagonal.
        labels: the masks' names, the plain one first as a rule.
    """
    low = min((value for line in matrix for value in line), default=0.0)
    cells = [
        {"row": row, "column": column, "shared": value, "dark": value < (1 + low) / 2}
        for row, line in zip(labels, matrix, strict=True)
        for column, value in zip(labels, line, strict=True)
    ]
    fits = len(labels) <= 10 and max(map(len, labels), default=0) <= 8
    base = of_rows(cells).encode(
        x=alt.X("column:N", sort=None, title="mask", axis=alt.Axis(labelAngle=0 if fits else -45, labelLimit=260)),
        y=alt.Y("row:N", sort=None, title="mask", axis=alt.Axis(labelLimit=260)),
    )
    legend = alt.Legend(orient="right", labelExpr=_SHARE_LABEL, title="kept by both (%)", gradientLength=200)
    scale = alt.Scale(scheme="cividis", domain=[min(low, 0.999), 1])
    ink = alt.condition(alt.datum.dark, alt.value("white"), alt.value("black"))
    size = 14 if len(labels) <= 8 else 10
    layers = [
        base.mark_rect(stroke="white").encode(color=alt.Color("shared:Q", scale=scale, legend=legend)),
        base.mark_text(fontSize=size)
        .encode(
            text="label:N",
            color=ink,
        )
        .transform_calculate(label="format(100 * datum.shared, '.1f')"),
    ]
    return layered(
        layers, "Masks agree on the large weights; how far do they differ near tau?", agreement_sentence(matrix, labels)
    )


def agreement_sentence(matrix: Sequence[Sequence[float]], labels: Sequence[str]) -> str:
    """The closest and the farthest pair, in words."""
    pairs = [
        (value, labels[row], labels[column])
        for row, line in enumerate(matrix)
        for column, value in enumerate(line[:row])
    ]
    if not pairs:
        return "There are no two masks to compare."
    least, most = min(pairs), max(pairs)
    if len(pairs) == 1:
        return f"Of the weights kept, {least[1]} and {least[2]} share {share(least[0])}."
    return (
        f"Pairs of masks: {len(pairs)}. Of the weights kept, {least[1]} and {least[2]} share the fewest, "
        f"{share(least[0])}, and {most[1]} and {most[2]} the most, {share(most[0])}."
    )


_SHARE_LABEL = "format(100 * datum.value, '.4~g') + ' %'"


def stage_histogram_chart(rows: Rows) -> alt.VConcatChart:
    """The magnitudes of the weights kept, a panel for each stage.

    Args:
        rows: as ``figures.stage_histogram_rows`` gives them.
    """
    top = 1.1 * max((row["share"] for row in rows), default=1.0) or 1.0
    stages = list(dict.fromkeys(row["stage"] for row in rows))
    panels = []
    for stage in stages:
        own = [row for row in rows if row["stage"] == stage]
        last = stage == stages[-1]
        x = alt.X(
            "low:Q",
            title=f"{MAGNITUDE} (log scale; the first bar holds all smaller ones)" if last else None,
            scale=alt.Scale(type="log", domain=[own[0]["low"], own[-1]["high"]], nice=False),
            axis=alt.Axis(labels=last, labelExpr=_FEW, tickCount=8, grid=False),
        )
        y = alt.Y("top:Q", title="weights (%)", scale=alt.Scale(domain=[0, top]), axis=percent_axis(ticks=3))
        bars = _bars([{**row, "top": row["share"]} for row in own], x, y).encode(color=alt.value(BLUE))
        text = of_rows([{"text": f"{_stage(stage)}: {sum(row['weights'] for row in own):,} weights"}])
        name = text.mark_text(x=8, y=12, align="left").encode(text="text:N")
        panels.append(alt.layer(bars, name, width=WIDTH, height=70))
    chart = alt.vconcat(*panels, spacing=6)
    return framed(
        chart, "Each cut takes the small weights; those kept move on in training", stage_histogram_sentence(rows)
    )


def stage_histogram_sentence(rows: Rows) -> str:
    """How many weights the first and the last stage have, and the bin of their median, in words."""
    stages = sorted({row["stage"] for row in rows})
    parts = []
    for stage in stages[:1] + stages[1:][-1:]:
        own = [row for row in rows if row["stage"] == stage]
        total, below = sum(row["weights"] for row in own), 0
        text = f"{_stage(stage)}: {total:,} weights"
        for row in own:
            below += row["weights"]
            if total and 2 * below >= total:
                text += f", their median between {row['low']:.3g} and {row['high']:.3g}"
                break
        parts.append(text)
    return f"Magnitudes of the weights kept. {'; '.join(parts) or 'No stage is finished'}."


def _stage(stage: int) -> str:
    return f"Stage {stage}" if stage else "Dense network"


def _finite(rows: Rows, *fields: str) -> list[Row]:
    """Those that can be drawn."""
    return [row for row in rows if all(row[field] is not None and math.isfinite(row[field]) for field in fields)]


def _number(field: str, title: str, *, log: bool) -> alt.X:
    if not log:
        return alt.X(f"{field}:Q", title=title, scale=alt.Scale(zero=False), axis=_ticks())
    axis = alt.Axis(labelExpr=_FEW, tickCount=6, grid=False)
    return alt.X(f"{field}:Q", title=f"{title}, log scale", scale=alt.Scale(type="log", nice=False), axis=axis)


def _exactly(bins: Rows) -> alt.Scale:
    """From the first bin's lower edge to the last one's upper edge."""
    return alt.Scale(domain=[bins[0]["low"], bins[-1]["high"]] if bins else [0, 1], nice=False, zero=False)


def _ticks() -> alt.Axis:
    return alt.Axis(labelExpr=NUMBER, tickCount=8, grid=False)


def _fates(*names: str) -> alt.Scale:
    return by_name(names, [_FATE_COLORS[FATES.index(name)] for name in names])


def _cycled(values: Sequence[Any], count: int) -> list[Any]:
    return [values[place % len(values)] for place in range(count)]


def _bars(rows: Rows, x: alt.X, y: alt.Y) -> alt.Chart:
    """A bar for each row from low to high, and from base (0 if there is none) to top."""
    bars = of_rows([{"base": 0, **row} for row in rows]).mark_rect(stroke="white", strokeWidth=0.5)
    placed: alt.Chart = bars.encode(x=x, x2="high:Q", y=y, y2="base:Q")
    return placed
