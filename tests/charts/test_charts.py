"""Charts: each says in words what it shows, draws a mark for each row, and can be saved without a network."""

import html
import json
import math
import re
import shutil
import struct
import subprocess
import sys
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from support.stories import CANDIDATES, LOSSES, symbols, table

from randprune_lab import charts, figures, pictures
from randprune_lab.histogram import MagnitudeHistogram
from randprune_lab.keepcurve import KeepCurve

SPARSITY = 0.9375
OWN_UNITS = "magnitude abs(w), in the weights' own units"


def of(chart, sentence, *titles):
    """A chart, what it is said to show, and the titles of its axes."""
    return SimpleNamespace(chart=chart, sentence=sentence, titles=set(titles))


def rungs(*winners):
    sparsities = (0.0, 0.54, 0.83, 0.91, SPARSITY)
    return [
        {
            "stage": stage,
            "sparsity": sparsities[stage],
            "compression": 1 / (1 - sparsities[stage]),
            "winner": winner,
            "ir": None if winner is None else 0.01 / stage,
            "score": 0.97 - 0.01 * stage,
        }
        for stage, winner in enumerate(winners)
    ]


MEASURED = figures.accuracy_rows(
    {"randomized": [table(0.96, 0.95, 0.94), table(0.97, 0.96, 0.94)], "imp": [table(0.96, 0.94, 0.92)]}
)
LADDER = rungs(None, "random", "plain", "random", "random")
SWEEP = [{"x": 10.0**power, "ir": 10.0 ** (-2 - power / 4)} for power in range(-6, -1)]
POINT = {"x": 5e-5, "ir": 0.011}
DRAWN = [{"x": 5e-5, "ir": 0.01}, {"x": 5e-5, "ir": 0.0125}]
MICROSCOPE = [
    {"low": 0.08, "high": 0.09, "kept": 0, "undecided": 30, "pruned": 70},
    {"low": 0.09, "high": 0.1, "kept": 0, "undecided": 90, "pruned": 0},
    {"low": 0.1, "high": 0.11, "kept": 0, "undecided": 80, "pruned": 0},
    {"low": 0.11, "high": 0.12, "kept": 40, "undecided": 20, "pruned": 0},
]
AGREEMENT = [[1.0, 0.95, 0.93], [0.95, 1.0, 0.91], [0.93, 0.91, 1.0]]
MASKS = ["plain", "mask 1", "mask 2"]


@pytest.fixture(scope="module")
def rows():
    weight = 0.04 * torch.randn(40_000, generator=torch.Generator().manual_seed(3))
    histogram = MagnitudeHistogram.of(weight)
    pruned = MagnitudeHistogram.of(weight, alive=weight.abs() > 0.05)
    return SimpleNamespace(
        bars=figures.magnitude_rows(histogram),
        marks=figures.threshold_rows(histogram),
        tau=figures.threshold(histogram, SPARSITY),
        curves=figures.keep_curve_rows(histogram, SPARSITY, samples=16),
        curve=KeepCurve.of(histogram, SPARSITY, samples=16),
        ir=figures.ir_rows(histogram, SPARSITY),
        stages=figures.stage_histogram_rows({0: histogram, 2: pruned}),
    )


@pytest.fixture(scope="module")
def drawn(rows):
    """Every chart there is, by name."""
    c, p = charts, pictures
    label = "sampling ratio sr (masks per pruned weight)"
    stage = "stage; within it the candidates 0, 1, 2, ... from left to right"
    compressed = "sparsity of the prunable weights, and their compression (log scale)"
    interval = "test accuracy (%), mean and 95 % interval"
    bars = {"weights per 0.001 (%)", *(f"{OWN_UNITS}; sparsity {s}" for s in (0.52, 0.83))}
    log = f"{OWN_UNITS} (log scale; the first bar holds all smaller ones)"
    ir, epoch = "introduced randomness ir, log scale", "epoch since the start (judging candidates is not counted)"
    ratio = "sampling ratio sr (masks drawn per weight counted), log scale"
    loss, left = "mean loss of an epoch (nats)", "stage, in the order of pruning"
    tau, q, decides = "weights per 1 % of tau", "chance q to be kept (%)", "accuracy that decides (%)"
    return {
        "accuracy": of(c.accuracy_chart(MEASURED), c.accuracy_sentence(MEASURED), compressed, interval),
        "candidates": of(c.candidates_chart(CANDIDATES), c.candidates_sentence(CANDIDATES), stage, decides),
        "loss": of(c.loss_chart(LOSSES), c.loss_sentence(LOSSES), epoch, loss),
        "ladder": of(c.ladder_chart(LADDER), c.ladder_sentence(LADDER), left, "weights left (%)"),
        "threshold": of(p.threshold_chart(rows.bars, rows.marks), p.threshold_sentence(rows.marks), *bars),
        "curves": of(
            p.keep_curve_chart(rows.curves, rows.tau), p.keep_curve_sentence(rows.curves, rows.tau), OWN_UNITS, q
        ),
        "ir": of(p.ir_chart(rows.ir), p.ir_sentence(rows.ir), ratio, f"expected {ir}"),
        "sweep": of(
            p.sweep_chart(SWEEP, label, True, POINT, DRAWN),
            p.sweep_sentence(SWEEP, label, POINT, DRAWN),
            f"{label}, log scale",
            ir,
        ),
        "microscope": of(
            p.microscope_chart(MICROSCOPE, 0.1, 0.085), p.microscope_sentence(MICROSCOPE, 0.1), OWN_UNITS, tau
        ),
        "agreement": of(p.agreement_chart(AGREEMENT, MASKS), p.agreement_sentence(AGREEMENT, MASKS), "mask"),
        "stages": of(p.stage_histogram_chart(rows.stages), p.stage_histogram_sentence(rows.stages), log, "weights (%)"),
    }


NAMES = "accuracy candidates loss ladder threshold curves ir sweep microscope agreement stages".split()  # noqa: SIM905


def axis_titles(spec):
    """The titles of all x and y axes in a chart's specification."""
    if isinstance(spec, list):
        return set().union(*map(axis_titles, spec)) if spec else set()
    if not isinstance(spec, dict):
        return set()
    own = {spec["encoding"].get(axis, {}).get("title") for axis in "xy"} if "encoding" in spec else set()
    return {title for title in own if title} | axis_titles(list(spec.values()))


def rows_within(chart, field):
    """The rows that a chart carries, those of them that have a field."""
    return [row for rows in chart.to_dict()["datasets"].values() for row in rows if field in row]


@pytest.mark.parametrize("name", NAMES)
def test_every_chart_says_what_it_shows(drawn, name):
    spec = drawn[name].chart.to_dict()
    assert len(spec["title"]) > 20
    assert spec["description"] == drawn[name].sentence
    assert drawn[name].sentence.endswith(".")
    assert axis_titles(spec) == drawn[name].titles
    assert "NaN" not in json.dumps(spec)
    assert "Infinity" not in json.dumps(spec)
    svg = charts.to_svg(drawn[name].chart)
    ElementTree.fromstring(svg)
    for text in (spec["title"], *drawn[name].titles):
        assert html.escape(text, quote=False) in svg
    assert f'role="img" aria-label="{html.escape(drawn[name].sentence)}"' in svg


def test_every_chart_is_drawn_here(drawn):
    made = {name for module in (charts, pictures) for name in vars(module) if name.endswith("_chart")}
    assert len(made) == len(drawn) == len(NAMES)
    assert {name.replace("_chart", "_sentence") for name in made} <= {*vars(charts), *vars(pictures)}


@pytest.mark.parametrize("name", NAMES)
def test_charts_are_saved_whole(drawn, name, tmp_path):
    charts.save_svg(drawn[name].chart, tmp_path / "new" / "chart.svg")
    svg = (tmp_path / "new" / "chart.svg").read_text()
    ElementTree.fromstring(svg)
    assert not re.search(r"(?:href|src)=\"http|@import|<script|<image", svg)
    for scale in (1, 2):
        charts.save_png(drawn[name].chart, tmp_path / "chart.png", scale=scale)
        png = (tmp_path / "chart.png").read_bytes()
        assert png[:8] == b"\x89PNG\r\n\x1a\n"
        size = re.search(r"width=\"([\d.]+)\" height=\"([\d.]+)\"", svg).groups()
        expected = [scale * float(side) for side in size]
        assert struct.unpack(">II", png[16:24]) == pytest.approx(expected, abs=scale)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["chart.png"]


def test_saving_needs_no_network(tmp_path):
    """In a namespace of its own, without any: vl-convert is no Python, so that patching sockets would prove nothing."""
    alone = ["unshare", "--map-root-user", "--net"]
    if not shutil.which("unshare") or subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody leave the network")
    code = (
        "import sys; from randprune_lab import charts; chart = charts.loss_chart([]); "
        "charts.save_png(chart, sys.argv[1] + '/chart.png'); charts.save_svg(chart, sys.argv[1] + '/chart.svg')"
    )
    subprocess.run([*alone, sys.executable, "-W", "error", "-c", code, str(tmp_path)], check=True)
    assert {path.name for path in tmp_path.iterdir()} == {"chart.png", "chart.svg"}


def marks(drawn, name, role):
    return symbols(charts.to_svg(drawn[name].chart), role)


def test_marks_of_runs(drawn):
    assert sum(marks(drawn, "accuracy", "mark-symbol")) == len(MEASURED) == 6
    assert sum(marks(drawn, "accuracy", "mark-line")) == 2
    assert sum(marks(drawn, "accuracy", "mark-rule")) == 3  # with one seed, none
    assert sum(marks(drawn, "ladder", "mark-symbol")) == 5
    assert sum(marks(drawn, "ladder", "mark-rect")) == 5
    svg = charts.to_svg(drawn["ladder"].chart)
    for row in LADDER:
        assert f">{row['compression']:.1f}x<" in svg
    assert f">{100 * LADDER[-1]['score']:.1f} %<" in svg


def test_marks_of_weights(drawn, rows):
    assert sum(marks(drawn, "threshold", "mark-rect")) == len(rows.bars) + 2  # a band in each panel
    assert sum(marks(drawn, "threshold", "mark-rule")) == 2
    assert sum(marks(drawn, "microscope", "mark-rect")) == 6  # bars of no height are left out
    assert sum(marks(drawn, "microscope", "mark-rule")) == 2
    assert sum(marks(drawn, "stages", "mark-rect")) == len(rows.stages)
    assert sum(marks(drawn, "curves", "mark-line")) == 4 + 1
    svg = charts.to_svg(drawn["microscope"].chart).upper()
    for color in (charts.BLUE, charts.VERMILION, charts.GREEN):
        assert color in svg


def test_marks_of_randomness(drawn, rows):
    assert sum(marks(drawn, "ir", "mark-line")) == 2
    assert sum(marks(drawn, "ir", "mark-symbol")) == sum(row["floored"] for row in rows.ir) > 0
    assert sum(marks(drawn, "sweep", "mark-line")) == 1
    assert sum(marks(drawn, "sweep", "mark-symbol")) == 1 + len(DRAWN)
    assert sum(marks(drawn, "agreement", "mark-rect")) == 9
    assert sum(marks(drawn, "agreement", "mark-text")) == 9
    svg = charts.to_svg(drawn["agreement"].chart)
    assert [svg.count(f">{number}<") for number in ("100.0", "95.0", "93.0", "91.0")] == [3, 2, 2, 2]


def numbers(text):
    """All numbers of a sentence, thousands separators understood."""
    return [float(number.replace(",", "")) for number in re.findall(r"\d[\d,]*(?:\.\d+)?(?:e-?\d+)?", text)]


def test_sentence_of_figure_1(rows):
    text = pictures.threshold_sentence(rows.marks)
    for part, mark in zip(text.split(";"), rows.marks, strict=True):
        sparsity, tau, near, weights, *_ = numbers(part)
        assert (sparsity, weights) == (mark["sparsity"], 40_000)
        assert tau == pytest.approx(mark["tau"], rel=1e-3)
        assert near == pytest.approx(100 * mark["share"], abs=0.06)
        assert round(near) == 29
    assert pictures.threshold_sentence([]) == "No sparsity was asked for."


def test_sentence_of_keep_curves(rows):
    text = pictures.keep_curve_sentence(rows.curves, rows.tau)
    found = re.findall(r"T = (\d+) from ([\d.]+) to ([\d.]+)(?:;|\.$)", text)
    assert [int(power) for power, *_ in found] == [1, 3, 5, 10]
    widths = []
    for power, low, high in found:
        own = [row for row in rows.curves if row["power"] == float(power)]
        inside = [row["magnitude"] for row in own if 0.1 < row["q"] < 0.9]
        assert (float(low), float(high)) == pytest.approx((min(inside), max(inside)), rel=1e-3)
        widths.append(float(high) - float(low))
    assert widths == sorted(widths, reverse=True)  # the larger T, the nearer
    assert f"tau = {rows.tau:.4g}" in text


def test_a_single_keep_curve_with_dots(rows):
    grid = np.linspace(0.7 * rows.tau, 1.3 * rows.tau, 30).tolist()
    line = [{"magnitude": x, "q": rows.curve.keep_probability(x)} for x in grid]
    dots = [{"magnitude": grid[3], "kept": 0.1}, {"magnitude": grid[9], "kept": True}]
    chart = pictures.keep_curve_chart(line, rows.tau, dots)
    assert sum(symbols(charts.to_svg(chart))) == 2
    assert "predicted from" in chart.description
    assert chart.description.endswith("Dots (2): the share that real draws kept.")
    step = [{"magnitude": x, "q": float(x > rows.tau)} for x in grid]
    assert "predicted nowhere" in pictures.keep_curve_sentence(step, rows.tau)


def test_sentence_of_ir(rows):
    decrease, increase = pictures.ir_sentence(rows.ir).split(": ", 1)[1].split("; ")
    for text, schedule in ((decrease, "decrease"), (increase, "increase")):
        own = [row for row in rows.ir if row["schedule"] == schedule]
        fewest, most, high, low, floor, until = numbers(text)
        assert text.startswith(schedule)
        assert (fewest, most, floor) == (1, own[-1]["samples"], 1)
        assert (high, low) == pytest.approx((own[0]["ir"], own[-1]["ir"]), rel=5e-3)
        assert until == pytest.approx(max(row["sampling_ratio"] for row in own if row["floored"]), rel=5e-3)


def test_sentence_of_a_sweep():
    text = pictures.sweep_sentence(SWEEP, "power T", POINT, DRAWN)
    assert text == (
        "At power T = 5e-05 an ir of 0.011 is expected; from 1e-06 to 0.01 it goes from 0.316 to 0.0316; "
        "the masks drawn (2) have 0.01 to 0.0125."
    )


def test_sentence_of_the_microscope():
    text = pictures.microscope_sentence(MICROSCOPE, 0.1)
    assert numbers(text) == [330, 0.08, 0.12, 40, 70, 220, 66.7, 0.1]
    assert text.startswith("Of the 330 weights from 0.08 to 0.12, 40 are kept, 70 pruned and 220 (66.7 %) left")


def test_microscope_heights_are_weights_per_percent_of_tau():
    bars = rows_within(pictures.microscope_chart(MICROSCOPE, 0.1), "fate")
    assert sum((bar["top"] - bar["base"]) * (bar["high"] - bar["low"]) / 0.001 for bar in bars) == pytest.approx(330)
    assert [bar["fate"] for bar in bars[:2]] == ["pruned", "undecided"]
    assert bars[1]["base"] == bars[0]["top"]


def test_sentence_of_agreement():
    assert pictures.agreement_sentence(AGREEMENT, MASKS) == (
        "Pairs of masks: 3. Of the weights kept, mask 2 and mask 1 share the fewest, 91.0 %, "
        "and mask 1 and plain the most, 95.0 %."
    )


def test_sentence_of_a_single_pair():
    pair = [[1.0, 0.955], [0.955, 1.0]]
    assert pictures.agreement_sentence(pair, MASKS[:2]) == "Of the weights kept, mask 1 and plain share 95.5 %."


def test_sentence_of_the_stages(rows):
    text = pictures.stage_histogram_sentence(rows.stages)
    for part, stage in zip(text.removeprefix("Magnitudes of the weights kept. ").split("; "), (0, 2), strict=True):
        own = [row for row in rows.stages if row["stage"] == stage]
        total, low, high = numbers(part.split(": ")[1])
        below = sum(row["weights"] for row in own if row["high"] <= low * 1.01)
        within = sum(row["weights"] for row in own if row["high"] <= high * 1.01)
        assert total == sum(row["weights"] for row in own)
        assert below < total / 2 <= within


def test_sentence_of_the_ladder():
    assert charts.ladder_sentence(LADDER) == (
        "From test accuracy 97.0 % at sparsity 0.0000 (1.0x) to 93.0 % at 0.9375 (16.0x) in 4 stages: "
        "a random mask won 3, the plain one 1."
    )
    assert charts.ladder_sentence(LADDER[:1]) == (
        "Test accuracy 97.0 % at sparsity 0.0000 (1.0x); no stage is finished."
    )


def test_sentence_of_intervals():
    text = charts.accuracy_sentence(MEASURED)
    first, last = MEASURED[0], MEASURED[2]
    assert f"96.5 % (mean of 2 seeds, 95 % interval {100 * first['low']:.1f} % to 100.0 %) at 0.0000" in text
    assert "94.0 % (mean of 2 seeds, 95 % interval 94.0 % to 94.0 %) at sparsity 0.9375 (16.0x)" in text
    assert last["low"] == last["high"] == 0.94
    assert "imp 92.0 % (one seed: no interval) at sparsity 0.9375 (16.0x), 96.0 % (one seed: no interval)" in text


def test_one_seed_has_no_bars():
    rows = figures.accuracy_rows({"imp": [table(0.9, 0.8)]})
    chart = charts.accuracy_chart(rows)
    svg = charts.to_svg(chart)
    assert sum(symbols(svg, "mark-rule")) == 0
    assert axis_titles(chart.to_dict()) == {
        "test accuracy (%)",
        "sparsity of the prunable weights, and their compression (log scale)",
    }
    assert [row["x"] for row in rows_within(chart, "x")] == [1.0, 2.0]


EMPTY = {
    "accuracy": (charts.accuracy_chart, [[]], "no stage is finished"),
    "candidates": (charts.candidates_chart, [[]], "In 0 decided stages"),
    "ladder": (charts.ladder_chart, [[]], "not trained yet"),
    "one rung": (charts.ladder_chart, [LADDER[:1]], "no stage is finished"),
    "loss": (charts.loss_chart, [[]], "no epoch is finished"),
    "threshold": (pictures.threshold_chart, [[], []], "No sparsity"),
    "curves": (pictures.keep_curve_chart, [[], 0.1], "down to tau = 0.1"),
    "ir": (pictures.ir_chart, [[]], "No sampling ratio"),
    "sweep": (pictures.sweep_chart, [[], "power T", False, POINT], "an ir of 0.011"),
    "microscope": (pictures.microscope_chart, [[], 0.1], "No weight lies in the window"),
    "agreement": (pictures.agreement_chart, [[], []], "no two masks"),
    "one mask": (pictures.agreement_chart, [[[1.0]], ["plain"]], "no two masks"),
    "stages": (pictures.stage_histogram_chart, [[]], "No stage is finished"),
}


@pytest.mark.parametrize("name", EMPTY)
def test_nothing_to_show_is_said(name):
    make, arguments, words = EMPTY[name]
    chart = make(*arguments)
    assert words in chart.description
    ElementTree.fromstring(charts.to_svg(chart))


def test_a_single_value_has_its_own_tick():
    svg = charts.to_svg(pictures.sweep_chart([], "power T", False, {"x": 5.0, "ir": 0.01}))
    assert ">0.01<" in svg


@pytest.mark.parametrize("log", [True, False])
def test_what_cannot_be_drawn_is_left_out_and_still_told(log):
    rows = [{"x": 0.0, "ir": math.inf}, {"x": 1.0, "ir": 0.5}, {"x": 2.0, "ir": 0.0}]
    chart = pictures.sweep_chart(rows, "power T", log, {"x": 0.0, "ir": math.inf}, [{"x": 0.0, "ir": 0.25}])
    assert "At power T = 0 an ir of inf is expected; from 0 to 2 it goes from inf to 0" in chart.description
    svg = charts.to_svg(chart)
    assert sum(symbols(svg)) == (0 if log else 1)
    assert sum(symbols(svg, "mark-line")) == 1
    assert "Infinity" not in json.dumps(chart.to_dict())


def test_infinite_ir_of_a_ladder_and_of_a_ratio():
    ladder = charts.ladder_chart([*LADDER[:1], {**LADDER[1], "ir": math.inf}])
    assert ">inf<" in charts.to_svg(ladder)
    rows = [
        {"schedule": "decrease", "sampling_ratio": ratio, "samples": 1, "ir": ir, "floored": True}
        for ratio, ir in ((1e-4, math.inf), (1e-3, 0.0), (1e-2, 0.0))
    ]
    chart = pictures.ir_chart(rows)
    assert sum(symbols(charts.to_svg(chart))) == 2
    assert "ir from inf to 0" in chart.description


def test_all_zero_weights_are_drawn():
    histogram = MagnitudeHistogram.of(torch.zeros(50), alive=torch.ones(50, dtype=torch.bool))
    marks, bars = figures.threshold_rows(histogram, [0.5]), figures.magnitude_rows(histogram, [0.5])
    chart = pictures.threshold_chart(bars, marks)
    assert "tau = 0 and 100.0 % of the 50 weights" in chart.description
    ElementTree.fromstring(charts.to_svg(chart))
    curves = pictures.keep_curve_chart(figures.keep_curve_rows(histogram, 0.5, samples=4), 0.0)
    ElementTree.fromstring(charts.to_svg(curves))
    zero = [{"low": 0.0, "high": 0.1, "kept": 25, "undecided": 0, "pruned": 25}]
    for tau in (0.0, math.inf):
        chart = pictures.microscope_chart(zero, tau, tau)
        assert "weights per unit of magnitude" in charts.to_svg(chart)


def test_many_masks_are_readable():
    names = [f"mask {number}" for number in range(16)]
    chart = pictures.agreement_chart(np.full((16, 16), 1.0).tolist(), names)  # all alike
    svg = charts.to_svg(chart)
    assert svg.count(">100.0<") == 256
    assert svg.count(">mask 15<") == 2
    with pytest.raises(ValueError, match="zip"):
        pictures.agreement_chart(AGREEMENT, names)
