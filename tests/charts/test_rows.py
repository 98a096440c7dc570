"""Rows for the charts, against the same numbers computed from the weights themselves."""

import itertools
import math

import numpy as np
import pytest
import scipy
import torch
from support.stories import recorded, story, table

from randprune_lab import figures, store
from randprune_lab.histogram import MagnitudeHistogram
from randprune_lab.models import weight_matrices

SIZE = 40_000
SPARSITY = 0.9375


def normal(size=SIZE, seed=3, scale=0.04):
    return scale * torch.randn(size, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def weight():
    return normal()


@pytest.fixture(scope="module")
def histogram(weight):
    return MagnitudeHistogram.of(weight)


def share_near(weight, sparsity):
    """From the sorted weights: tau, and the share from 2/3 tau to 4/3 tau."""
    magnitudes = np.sort(np.abs(weight.double().numpy().reshape(-1)))
    tau = magnitudes[round(sparsity * len(magnitudes))]
    return tau, float(np.mean((magnitudes >= 2 / 3 * tau) & (magnitudes < 4 / 3 * tau)))


@pytest.mark.parametrize("sparsity", [0.52, 0.83, 0.9375, 0.99])
def test_share_near_tau_of_a_normal_tensor_is_the_closed_form(sparsity):
    """Of n = 1,000,000 with standard error at most 0.0005; 5 of them plus a bin: a false alarm in 10**6 seeds."""
    (row,) = figures.threshold_rows(MagnitudeHistogram.of(normal(1_000_000)), [sparsity])
    z = scipy.stats.norm.ppf((1 + sparsity) / 2)
    expected = 2 * (scipy.stats.norm.cdf(4 / 3 * z) - scipy.stats.norm.cdf(2 / 3 * z))
    assert row["share"] == pytest.approx(expected, abs=0.003)
    assert row["tau"] == pytest.approx(0.04 * z, rel=0.01)
    if sparsity in figures.PAPER_SPARSITIES:
        assert round(expected, 2) == round(row["share"], 2) == 0.29  # arXiv 2310.13183, Figure 1


def test_share_near_tau_of_real_layers(test_data):
    layers = dict(weight_matrices(test_data / "models" / "minilm-l3"))
    for name in ("encoder.layer.0.output.dense.weight", "encoder.layer.2.intermediate.dense.weight"):
        for row in figures.threshold_rows(MagnitudeHistogram.of(layers[name])):
            tau, share = share_near(layers[name], row["sparsity"])
            assert row["tau"] == pytest.approx(tau, rel=3e-4)
            assert row["share"] == pytest.approx(share, abs=1e-3)
            assert 0.25 < row["share"] < 0.30
    assert round(row["share"], 2) == 0.29  # the feedforward layer that is nearly normal


def test_bars_of_figure_1_are_cut_at_tau_and_add_up(weight, histogram):
    bars = figures.magnitude_rows(histogram)
    magnitudes = weight.abs().double().numpy()
    for mark in figures.threshold_rows(histogram):
        own = [bar for bar in bars if bar["sparsity"] == mark["sparsity"]]
        kept = sum(bar["weights"] for bar in own if bar["fate"] == "kept")
        outside = int((magnitudes > own[-1]["high"]).sum())
        assert sum(bar["weights"] for bar in own) + outside == pytest.approx(SIZE, abs=2)
        assert outside <= SIZE / 1000
        assert kept + outside == pytest.approx(SIZE * (1 - mark["sparsity"]), abs=10)  # tau's bin
        assert sum(bar["weights"] for bar in own if bar["near"]) == round(mark["share"] * SIZE)
        assert {bar["fate"] for bar in own if bar["high"] <= mark["tau"]} == {"pruned"}
        assert [bar["high"] for bar in own[:-1]] == [bar["low"] for bar in own[1:]]
    assert len(bars) < 200


def test_zeros_that_exist_lie_at_a_tau_of_zero():
    weight = torch.zeros(100)
    histogram = MagnitudeHistogram.of(weight, alive=torch.ones(100, dtype=torch.bool))
    (row,) = figures.threshold_rows(histogram, [0.5])
    assert row == {"sparsity": 0.5, "tau": 0.0, "low": 0.0, "high": 0.0, "share": 1.0, "weights": 100}
    bars = figures.magnitude_rows(histogram, [0.5])
    assert sum(bar["weights"] for bar in bars) == 100
    assert figures.keep_curve_rows(histogram, 0.5, samples=4)


def test_without_a_threshold_there_is_no_figure():
    with pytest.raises(ValueError, match="0 weights exist, 50 are to be kept"):
        figures.threshold_rows(MagnitudeHistogram.of(torch.zeros(100)), [0.5])
    with pytest.raises(ValueError, match="keeps none of 7 weights"):
        figures.magnitude_rows(MagnitudeHistogram.of(torch.ones(7)), [SPARSITY])
    assert figures.threshold_rows(MagnitudeHistogram.of(torch.ones(7)), []) == []
    assert figures.magnitude_rows(MagnitudeHistogram.of(torch.ones(7)), []) == []


def one_draw(weight, power, keep):
    """Pi of one draw by the definition: 1 - exp(-lambda |w|**T), lambda from sum(pi) = keep; and D of the pruned."""
    p = (weight.abs().double().numpy() / 0.04) ** power
    log = scipy.optimize.brentq(lambda log: -np.expm1(-np.exp(log) * p).sum() - keep, -40, 40, xtol=1e-12)
    pi = -np.expm1(-np.exp(log) * p)
    return math.exp(log), pi[np.argsort(weight.abs().numpy())][: len(pi) - keep].sum()


@pytest.mark.parametrize("power", figures.POWERS)
def test_keep_curve_of_one_draw_is_its_definition(weight, histogram, power):
    rows = figures.keep_curve_rows(histogram, SPARSITY, samples=1)
    own = [row for row in rows if row["power"] == power]
    scale, _ = one_draw(weight, power, keep=2_500)
    for row in own:
        assert row["q"] == pytest.approx(-math.expm1(-scale * (row["magnitude"] / 0.04) ** power), abs=1e-3)
    assert len(rows) <= 4 * 80
    tau = figures.threshold(histogram, SPARSITY)
    assert own[0]["magnitude"] < tau < own[-1]["magnitude"]


def test_keep_curves_end_at_the_reach(histogram):
    rows = figures.keep_curve_rows(histogram, SPARSITY, samples=4, reach=1.2)
    edge = histogram.largest(3_000).magnitude
    below = [row["q"] for row in rows if row["magnitude"] < edge * (1 - 3e-4)]
    above = [row["q"] for row in rows if row["magnitude"] > edge * (1 + 3e-4)]
    assert set(below) == {0.0}
    assert min(above) > 0.1


def test_nothing_left_to_chance_is_a_step(histogram):
    rows = figures.keep_curve_rows(histogram, SPARSITY, samples=4, reach=1.0)
    tau = figures.threshold(histogram, SPARSITY)
    assert {row["q"] for row in rows if abs(row["magnitude"] / tau - 1) > 1e-3} == {0.0, 1.0}
    assert figures.keep_curve_rows(histogram, SPARSITY, samples=4, powers=[]) == []


def test_ir_falls_with_the_sampling_ratio_under_both_schedules(weight, histogram):
    rows = figures.ir_rows(histogram, SPARSITY)
    counted = {"decrease": 37_500, "increase": 2_500}
    assert len(rows) == 2 * len(figures.RATIOS) < 300
    for schedule, weights in counted.items():
        own = [row for row in rows if row["schedule"] == schedule]
        assert [row["samples"] for row in own] == [max(1, int(row["sampling_ratio"] * weights)) for row in own]
        assert [row["floored"] for row in own] == [row["sampling_ratio"] * weights < 1 for row in own]
        assert all(later["ir"] <= row["ir"] * (1 + 1e-9) for row, later in itertools.pairwise(own))
        assert own[0]["floored"]
        assert not own[-1]["floored"]
    _, swapped = one_draw(weight, 5.0, keep=2_500)
    assert rows[0]["ir"] == pytest.approx(swapped / (37_500 - swapped), rel=2e-3)


def test_ir_of_nothing_pruned_is_zero(histogram):
    assert {row["ir"] for row in figures.ir_rows(histogram, 0.0, [1e-4, 1e-2])} == {0.0}
    assert figures.ir_rows(histogram, 0.5, []) == []


def test_ladder_tells_a_run_from_its_folder(tmp_path):
    rows = figures.ladder_rows(store.stage_table(recorded(tmp_path, story())))
    assert rows == [
        {"stage": 0, "sparsity": 0.0, "compression": 1.0, "winner": None, "ir": None, "score": 0.9612},
        {"stage": 1, "sparsity": 0.5, "compression": 2.0, "winner": "random", "ir": 0.0123, "score": 0.9434},
        {"stage": 2, "sparsity": 0.9375, "compression": 16.0, "winner": "random", "ir": 0.0123, "score": 0.9334},
    ]
    plain = {**store.stage_table(tmp_path)[1], "winner": 0, "ir": 0.0}
    assert figures.ladder_rows([plain])[0]["winner"] == "plain"
    assert figures.ladder_rows([]) == []


def test_accuracy_has_the_t_interval_over_seeds():
    runs = [table(0.95, 0.94, 0.90), table(0.96, 0.93, 0.88), table(0.955, 0.95)]  # the last one was stopped
    rows = figures.accuracy_rows({"randomized": runs, "imp": [table(0.9)]})
    assert [(row["run"], row["sparsity"], row["seeds"]) for row in rows] == [
        ("randomized", 0.0, 3),
        ("randomized", 0.5, 3),
        ("randomized", 0.9375, 2),
        ("imp", 0.0, 1),
    ]
    for row, values in zip(rows[:2], [(0.95, 0.96, 0.955), (0.94, 0.93, 0.95)], strict=True):
        low, high = scipy.stats.t.interval(0.95, 2, np.mean(values), scipy.stats.sem(values))
        assert (row["score"], row["low"], row["high"]) == pytest.approx((np.mean(values), low, high))
        assert row["compression"] == 1 / (1 - row["sparsity"])
    assert (rows[2]["high"], rows[3]["low"], rows[3]["high"]) == (1.0, None, None)  # 2 seeds: cut at 100 %
    assert rows[2]["low"] == pytest.approx(0.89 - 12.706 * 0.01, abs=1e-4)


def test_equal_seeds_have_an_interval_of_no_width_and_no_runs_no_rows():
    (row,) = figures.accuracy_rows({"imp": [table(0.5), table(0.5)]})
    assert (row["low"], row["score"], row["high"]) == (0.5, 0.5, 0.5)
    assert figures.accuracy_rows({}) == figures.accuracy_rows({"imp": []}) == figures.accuracy_rows({"imp": [[]]}) == []


def test_histogram_over_stages_counts_every_weight(weight):
    alive = weight.abs() > weight.abs().median()
    stages = {1: MagnitudeHistogram.of(weight, alive=alive), 0: MagnitudeHistogram.of(weight)}
    rows = figures.stage_histogram_rows(stages)
    assert list(dict.fromkeys(row["stage"] for row in rows)) == [0, 1]
    for stage, some in ((0, weight), (1, weight[alive])):
        own = [row for row in rows if row["stage"] == stage]
        edges = [row["low"] for row in own] + [own[-1]["high"]]
        assert np.diff(np.log2(edges)) == pytest.approx(np.full(len(own), 0.25))
        expected, _ = np.histogram(some.abs().double().numpy().clip(edges[0], edges[-1]), edges)
        assert np.abs(np.array([row["weights"] for row in own]) - expected).max() <= 20  # one bin of 0.025 %
        assert sum(row["weights"] for row in own) == len(some)
        assert sum(row["share"] for row in own) == pytest.approx(1)
    assert len(rows) == 64


def test_histogram_over_stages_of_little():
    assert figures.stage_histogram_rows({}) == []
    gone = figures.stage_histogram_rows({0: MagnitudeHistogram.of(torch.zeros(9))})
    assert {row["weights"] for row in gone} == {row["share"] for row in gone} == {0}
    alive = torch.ones(9, dtype=torch.bool)
    zeros = figures.stage_histogram_rows({3: MagnitudeHistogram.of(torch.zeros(9), alive=alive)})
    assert [row["weights"] for row in zeros if row["weights"]] == [9]
    (one,) = [row for row in figures.stage_histogram_rows({0: MagnitudeHistogram.of(torch.ones(5))}) if row["weights"]]
    assert (one["high"], one["share"]) == (1.0, 1.0)
