"""What ``scaling`` measured, drawn, and in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from randprune_lab.charts import BLUE, GREY, VERMILION, by_name, framed, of_rows
from randprune_lab.scaling import FIRST, FIT_FROM, LARGER, NEXT, Scale, StudyTime, Throughput, fit

WIDE, HIGH = 300, 210  # pixels of a panel


def scaling_sentence(rows: Sequence[Scale]) -> str:
    """What the panel of times shows, in words."""
    last = rows[-1]
    line = fit([row.weights for row in rows], [row.first for row in rows])
    larger = " and ".join(f"{seconds:,.0f} s for {size:.0e}" for size, seconds in line.extrapolated.items())
    bound = f" ({line.bound} that)" if line.bound else ""
    return (
        f"A first random mask of {last.weights:,} weights takes {last.first:.3g} s, each further candidate "
        f"{last.following:.3g} s. From {FIT_FROM:,} weights on time grows with the power {line.slope:.2f} of their "
        f"number ({line.low:.2f} to {line.high:.2f}). Extrapolated in proportion{bound}: {larger} weights."
    )


def scaling_chart(
    rows: Sequence[Scale], workers: Sequence[Throughput] = (), studies: Sequence[StudyTime] = ()
) -> alt.ConcatChart:
    """A panel each: a mask's time and memory against weights, candidates against workers, a study against its runs."""
    panels = [_times(rows)]
    if memory := [row for row in rows if row.memory]:  # none of a GPU
        panels.append(_memory(memory))
    if workers:
        points = [{"x": row.workers, "y": row.per_second} for row in workers]
        panels.append(_plain(points, "workers (processes of one thread)", "candidates judged a second"))
    if studies:
        points = [{"x": row.runs, "y": row.seconds} for row in studies]
        panels.append(_plain(points, "runs of a study", "seconds, two runs at a time"))
    sized = [panel.properties(width=WIDE, height=HIGH) for panel in panels]
    chart = alt.ConcatChart(concat=sized, columns=2, spacing=40)
    return framed(chart, "What does it cost as models, workers and studies grow?", scaling_sentence(rows))


def _times(rows: Sequence[Scale]) -> alt.LayerChart:
    """Seconds of a mask on log scales, with the line of proportion through the largest size."""
    kinds = [FIRST, NEXT]
    points = [
        {"weights": row.weights, "seconds": seconds, "what": kind}
        for row in rows
        for kind, seconds in zip(kinds, (row.first, row.following), strict=True)
    ]
    last = rows[-1]
    ends = (rows[0].weights, *LARGER[-1:])
    proportion = [{"weights": size, "seconds": last.first * size / last.weights} for size in ends]
    x = alt.X("weights:Q", title="weights", scale=alt.Scale(type="log"), axis=alt.Axis(format="~s"))
    y = alt.Y("seconds:Q", title="seconds", scale=alt.Scale(type="log"), axis=alt.Axis(format="~g", tickCount=6))
    color = alt.Color("what:N", scale=by_name(kinds, (BLUE, VERMILION)), legend=alt.Legend(title=None))
    shape = alt.Shape("what:N", scale=by_name(kinds, ("circle", "square")), title=None)
    guesses = [
        {"weights": size, "seconds": last.first * size / last.weights, "text": f"{size / 1e9:g} billion (extrapolated)"}
        for size in LARGER
    ]
    guess = of_rows(guesses).encode(x=x, y=y)
    return alt.LayerChart(
        layer=[
            of_rows(proportion).mark_line(color=GREY, strokeDash=[4, 4]).encode(x=x, y=y),
            of_rows(points).mark_point(size=80, filled=True, opacity=1).encode(x=x, y=y, color=color, shape=shape),
            guess.mark_point(size=80, color=GREY),
            guess.mark_text(color=GREY, align="right", dx=-8, dy=-4).encode(text="text:N"),
        ]
    )


def _memory(rows: Sequence[Scale]) -> Any:
    points = [{"weights": row.weights // row.tensors, "MB": (row.memory or 0) / 1e6} for row in rows]
    return (
        of_rows(points)
        .mark_point(size=80, filled=True, opacity=1, color=BLUE)
        .encode(
            x=alt.X("weights:Q", title="weights of a tensor", scale=alt.Scale(type="log"), axis=alt.Axis(format="~s")),
            y=alt.Y("MB:Q", title="MB beside the weights, at the peak", scale=alt.Scale(type="log")),
        )
    )


def _plain(points: Sequence[dict[str, float]], x_title: str, y_title: str) -> Any:
    ticks = [point["x"] for point in points]
    return (
        of_rows(points)
        .mark_line(color=BLUE, point=alt.OverlayMarkDef(size=80, filled=True, opacity=1, color=BLUE))
        .encode(
            x=alt.X("x:Q", title=x_title, axis=alt.Axis(values=ticks, labelOverlap=True)),
            y=alt.Y("y:Q", title=y_title, scale=alt.Scale(zero=True)),
        )
    )
