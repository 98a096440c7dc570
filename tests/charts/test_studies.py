"""Charts of studies: a mark for each row, the words they are given, light and dark, and what cannot be drawn."""

import html
import re
from xml.etree import ElementTree

import altair as alt
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.stories import symbols

from randprune_lab import charts, intervals, study_charts

IMP = "IMP, as many epochs"
SENTENCE = 'Means: "a" is 0.5 points above b & c.'
WORDS = {"x_title": "the x", "y_title": "the y (%)", "title": "What is to be seen?", "sentence": SENTENCE}
VERDICTS = ("above", "below", "within noise", "too few seeds")


def mean(label, x, value=90.0, half=0.5):
    low, high = (None, None) if half is None else (value - half, value + half)
    return {"label": label, "x": x, "mean": value, "low": low, "high": high, "number": 5}


def difference(label, x, verdict, half=0.5):
    row = mean(label, x, {"above": 1.0, "below": -1.0}.get(verdict, 0.1), half)
    return {**row, "difference": row.pop("mean"), "verdict": verdict}


def dots(setting, count=8):
    draw = np.random.default_rng(0).normal(size=(count, 2))
    return [{"setting": setting, "candidate": at, "x": x, "y": y} for at, (x, y) in enumerate(draw.tolist())]


def won(label, plain, number=24):
    return [
        {"label": label, "kind": kind, "won": hits, "number": number}
        for kind, hits in (("plain", plain), ("random", number - plain))
    ]


BY_IR = [mean(line, ir, 90 - place) for place, line in enumerate(("decrease", "increase")) for ir in (3e-4, 0.002, 0.1)]
BY_SPARSITY = [mean(line, s, 95 - 3 * s) for line in ("randomized", IMP) for s in (0.54, 0.83, 0.9375)]
BY_NAME = [mean(name, name, 90 + place) for place, name in enumerate(("taylor", "a magnitude", "snip"))]
GROUPS = [mean(line, task) for line in ("randomized", IMP) for task in ("cola", "mrpc")]
APART = [
    difference(line, ir, word) for line in ("one", "two") for ir, word in zip((0.1, 1, 10, 100), VERDICTS, strict=True)
]
SCATTER = [*dots("1 epoch"), *dots("2 epochs"), *dots("3 epochs"), *dots("4 epochs", 5)]
SHARES = [*won("blind", 24), *won("the paper's", 3)]


def lines(rows, **changes):
    return study_charts.lines_chart(pd.DataFrame(rows), **WORDS | changes)


def differences(rows, **changes):
    return study_charts.differences_chart(pd.DataFrame(rows), **WORDS | changes)


def scatter(rows, **changes):
    return study_charts.scatter_chart(pd.DataFrame(rows), **WORDS | changes)


def shares(rows, **changes):
    words = {name: WORDS[name] for name in ("x_title", "title", "sentence")}
    return study_charts.share_chart(pd.DataFrame(rows), **words | changes)


DRAWN = {
    "by ir": lambda: lines([*BY_IR, mean(IMP, None, 88.04)], reference=IMP, log=True),
    "by sparsity": lambda: lines(BY_SPARSITY, reference=IMP, compression=True),
    "by name": lambda: lines(BY_NAME),
    "by name, with a reference": lambda: lines([*BY_NAME, mean(IMP, None)], reference=IMP),
    "in groups": lambda: lines(GROUPS, reference=IMP),
    "differences": lambda: differences(APART, log=True),
    "differences of one": lambda: differences(APART[:4]),
    "differences by name": lambda: differences([difference(word, word, word) for word in VERDICTS]),
    "scatter": lambda: scatter(SCATTER, notes={"1 epoch": "rho = 0.31, 8 masks"}),
    "shares": lambda: shares(SHARES, chance=1 / 8),
}


@pytest.fixture(scope="module")
def svgs():
    return {name: charts.to_svg(make()) for name, make in DRAWN.items()}


def shown(svg):
    """All that is written in a picture."""
    return [html.unescape(text) for text in re.findall(r"<(?:text|tspan)[^>]*>([^<]+)<", svg)]


def count(svg, role):
    return sum(symbols(svg, role))


def data(chart):
    """The rows of the layer on top."""
    return chart.layer[-1].data.values


# ---- what all share


def test_every_chart_is_drawn_here():
    made = {name for name in vars(study_charts) if name.endswith("_chart")}
    assert made == {"lines_chart", "differences_chart", "scatter_chart", "share_chart"}


@pytest.mark.parametrize("name", DRAWN)
def test_each_says_what_it_shows(svgs, name):
    svg = svgs[name]
    ElementTree.fromstring(svg)
    assert f'role="img" aria-label="{html.escape(SENTENCE, quote=True)}"' in svg
    assert not re.search(r"(?:href|src)=\"http|@import|<script|<image", svg)
    written = shown(svg)
    assert {"What is to be seen?"} <= set(written)
    assert sum("the x" in text for text in written) + sum("the y (%)" in text for text in written) >= 1


@pytest.mark.parametrize("name", DRAWN)
def test_dark(name):
    """No colour is left that would vanish on dark paper; the same marks in the same places."""
    chart = DRAWN[name]()
    light, dark = charts.to_svg(chart), charts.to_svg(charts.in_theme(chart, dark=True))
    paint = set(re.findall(r"#[0-9a-fA-F]{6}", dark))
    assert not paint & {charts.BLUE, charts.VERMILION, charts.GREEN, charts.GREY, "#8A6D00", "#000000"}
    shapes = [re.findall(r'<path[^>]* d="([^"]*)"', svg) for svg in (light, dark)]
    assert shapes[0] == shapes[1]


# ---- means


def test_marks_of_lines(svgs):
    assert count(svgs["by ir"], "mark-symbol") == 6
    assert count(svgs["by ir"], "mark-line") == 2
    assert count(svgs["by ir"], "mark-rule") == 6 + 1  # an interval each, and the reference across
    assert count(svgs["by ir"], "mark-rect") == 2 * 6 + 1  # the intervals' ends, and the reference's band
    assert {"decrease", "increase", "IMP,", "as many epochs", "88.0"} <= set(shown(svgs["by ir"]))
    assert "the x (log scale)" in shown(svgs["by ir"])


def test_compressions_are_written_beside_sparsities(svgs):
    assert {"0.54", "0.83", "0.9375", "2.17x", "5.88x", "16x"} <= set(shown(svgs["by sparsity"]))
    assert "the x, and the compression (log scale)" in shown(svgs["by sparsity"])
    rows = data(lines(BY_SPARSITY[:3], compression=True))
    assert [row["x"] for row in rows] == pytest.approx([1 / 0.46, 1 / 0.17, 16])


def test_the_reference_is_dashed_and_grey_the_others_are_not(svgs):
    drawn = re.findall(r"<path[^>]*line mark[^>]*>", svgs["by sparsity"])
    dashed = [path for path in drawn if 'stroke-dasharray="6,3"' in path]
    assert [charts.GREY in path for path in drawn] == [path in dashed for path in drawn]
    assert (len(drawn), len(dashed)) == (2, 1)


def test_names_stand_in_the_order_of_the_rows(svgs):
    written = shown(svgs["by name"])
    places = [written.index(row["label"]) for row in BY_NAME]
    assert places == sorted(places)
    assert count(svgs["by name"], "mark-symbol") == 3
    assert count(svgs["by name"], "mark-line") == 0
    assert written.count("taylor") == 1  # on the axis, not in a legend as well
    assert shown(svgs["in groups"]).count(IMP) == 1  # there in the legend
    assert count(svgs["in groups"], "mark-symbol") == 4


def test_without_intervals_there_are_no_bars():
    for missing in (None, float("nan")):
        rows = [{**row, "low": missing, "high": missing} for row in BY_SPARSITY]
        svg = charts.to_svg(lines(rows, compression=True))
        assert count(svg, "mark-rule") == 0
        assert count(svg, "mark-symbol") == len(rows)
        across = charts.to_svg(lines([*rows, mean(IMP, missing, half=None)], reference=IMP))
        assert count(across, "mark-rect") == 0


def test_a_single_point_and_none():
    one = charts.to_svg(lines([mean("only", 0.9375)], compression=True))
    assert count(one, "mark-symbol") == 1
    assert "0.9375" in shown(one)
    empty = pd.DataFrame(columns=["label", "x", "mean", "low", "high", "number"])
    assert count(charts.to_svg(study_charts.lines_chart(empty, **WORDS)), "mark-symbol") == 0


def test_what_has_no_logarithm_is_drawn_on_a_linear_scale():
    chart = lines([mean("a", 0.0), mean("a", 5.0)], log=True)
    assert "log scale" not in " ".join(shown(charts.to_svg(chart)))
    assert [row["x"] for row in data(chart)] == [0, 5]


def test_switches_are_names():
    chart = lines([mean("a", False), mean("a", True)])
    assert {"False", "True"} <= set(shown(charts.to_svg(chart)))


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=8, unique=True), st.integers(1, 20), st.booleans())
def test_lines_stand_beside_one_another(xs, count, log):
    """Moved by no more than 5 % of the axis, all within it, those of one x in the lines' order."""
    labels = [f"line {at}" for at in range(count)]
    asked = [mean(label, x) for label in labels for x in xs]
    place = study_charts._Place(asked, "x", log=log)
    rows = place.of(asked, labels)
    low, high = place.place()["x"]["scale"]["domain"]
    scale = np.log if log else float
    for row, before in zip(rows, asked, strict=True):
        assert abs(scale(row["x"]) - scale(before["x"])) <= 0.05 * (scale(high) - scale(low))
        assert low <= row["x"] <= high
    for at in range(len(xs)):
        beside = [row["x"] for row in rows[at :: len(xs)]]
        assert beside == sorted(beside)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.3, 6, [0.5, 1, 2, 5]),
        (1e-4, 2e-3, [1e-4, 2e-4, 5e-4, 1e-3, 2e-3]),
        (1e-6, 0.5, [10.0**p for p in range(-6, 0)]),
    ],
)
def test_ticks_of_a_log_scale(low, high, ticks):
    assert study_charts._rungs(low, high) == pytest.approx(ticks)


# ---- differences


@pytest.mark.parametrize(("name", "lines"), [("differences", 2), ("differences of one", 1), ("differences by name", 0)])
def test_marks_of_differences(svgs, name, lines):
    svg = svgs[name]
    assert count(svg, "mark-symbol") == (8 if lines == 2 else 4)
    assert count(svg, "mark-line") == lines
    assert set(VERDICTS) <= set(shown(svg))
    assert ("one" in shown(svg)) == (lines == 2)


def test_each_verdict_has_a_colour_and_a_shape_of_its_own():
    assert set(study_charts.VERDICTS) == set(intervals.Verdict.__args__) == set(VERDICTS)
    colors, shapes = zip(*study_charts.VERDICTS.values(), strict=True)
    assert len(set(colors)) == len(set(shapes)) == 4
    legend = differences(APART[:2]).to_dict()["layer"][-1]["encoding"]["color"]["scale"]
    assert legend["domain"] == ["above", "below"]  # only what is there
    assert legend["range"] == list(colors[:2])


def test_a_difference_without_an_interval():
    rows = [difference("a", "a", "too few seeds", half=None), difference("b", "b", "above")]
    svg = charts.to_svg(differences(rows))
    assert count(svg, "mark-symbol") == 2
    with_both = charts.to_svg(differences([{**rows[0], "low": -1.0, "high": 1.0}, rows[1]]))
    assert count(svg, "mark-rule") < count(with_both, "mark-rule")


# ---- rankings and shares


def test_marks_of_candidates(svgs):
    svg = svgs["scatter"]
    assert count(svg, "mark-symbol") == 29
    assert {"1 epoch", "4 epochs", "rho = 0.31, 8 masks", charts.PLAIN, charts.RANDOM} <= set(shown(svg))
    assert svg.upper().count(charts.VERMILION) == 4 + 1  # a plain mask in each small chart, and the legend
    assert isinstance(scatter(SCATTER), alt.ConcatChart)


def test_bars_are_shares_with_wilsons_interval(svgs):
    svg = svgs["shares"]
    assert count(svg, "mark-symbol") == 4
    assert {"24 of 24", "0 of 24", "3 of 24", "21 of 24", "0 %", "100 %", "blind"} <= set(shown(svg))
    rows = data(shares(SHARES))
    for row, asked in zip(rows, SHARES, strict=True):
        expected = intervals.share(asked["won"], asked["number"])
        assert (row["mean"], row["low"], row["high"]) == (expected.mean, expected.low, expected.high)
    assert "plain mask, if drawn blindly" in shown(svg)
    assert "plain mask, if drawn blindly" not in shown(charts.to_svg(shares(SHARES)))


# ---- what cannot be drawn


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: differences([difference("a", 1, "better")]), "verdict = 'better': unknown"),
        (lambda: shares([{"label": "a", "kind": "best", "won": 1, "number": 2}]), "kind = 'best': unknown"),
        (lambda: shares([{"label": "a", "kind": "plain", "won": 3, "number": 2}]), "hits = 3, number = 2"),
        (lambda: lines([mean("a", 16.0)], compression=True), r"sparsity = 16.0: must lie in \[0, 1\)"),
    ],
)
def test_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()
