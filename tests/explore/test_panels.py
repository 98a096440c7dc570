"""Panels 1, 2 and 4: every number against numpy, draws, or the closed form itself; every sentence against its table."""

import itertools
import json
import math
import re

import numpy as np
import pytest
import scipy.stats
import torch
from support import reference
from support.grids import thinned

from randprune_lab import ExploreState, KeepCurve, MagnitudeHistogram, panels
from randprune_lab.config import RANDOMNESS
from randprune_lab.schedules import samples_for_ratio
from randprune_lab.state import SWEEPS, control_of

FIXED = {"randomness": "fixed"}
KINDS = ("kept", "undecided", "pruned")


def normal(*shape, dtype=torch.float32, seed=0, pruned=0.0):
    weight = 0.04 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    weight[weight.abs() < 0.04 * scipy.stats.norm.ppf(0.5 + pruned / 2)] = 0
    return weight.to(dtype)


def of(weight, state, alive=None):
    histogram = MagnitudeHistogram.of(weight, alive=alive)
    draw = panels.settle(state, histogram)
    return histogram, draw, panels.curve_of(state, histogram, draw)


WEIGHTS = {
    "float32": normal(200, 100),
    "float16": normal(200, 100, dtype=torch.float16),
    "bfloat16": normal(200, 100, dtype=torch.bfloat16),
    "float64": normal(200, 100).double() * 1e-3,
    "few": normal(37, seed=4),
    "one": torch.tensor([-0.25]),
    "two": torch.tensor([-0.25, 3.0]),
    "partly pruned": normal(200, 100, pruned=0.5),
    "constant": torch.full((30, 30), -0.5),
    "two values": torch.tensor([0.5] * 300 + [-1.0] * 100),
    "tiny": normal(50, 50) * 1e-38,  # float32 itself is coarse here
    "heavy tails": torch.from_numpy(np.random.default_rng(3).standard_t(1, 20_000)).float(),
    "huge": normal(50, 50) * 1e38,
}
STATES = {
    "many": ExploreState(sparsity=0.52, samples=6, **FIXED),
    "deterministic": ExploreState(sparsity=0.52, samples=6, reach=1.0, **FIXED),
    "reach": ExploreState(sparsity=0.8, samples=4, reach=1.3, **FIXED),
    "magnitude ties": ExploreState(sparsity=0.9, samples=5, ties="magnitude", **FIXED),
    "sharp": ExploreState(sparsity=0.9375, samples=1000, power=20, **FIXED),
    "flat": ExploreState(sparsity=0.52, samples=1, power=0, **FIXED),
    "whole window": ExploreState(sparsity=0.7, window=1.0, **FIXED),
    "narrow window": ExploreState(sparsity=0.7, window=0.01, **FIXED),
}


def fits(weight, state):
    keep = reference.keep_of(weight.numel(), state.sparsity)
    return 0 < keep <= int((weight != 0).sum())


CASES = [(name, how) for name, weight in WEIGHTS.items() for how, state in STATES.items() if fits(weight, state)]
cases = pytest.mark.parametrize(("name", "how"), thinned(CASES, 1))


# ---- panel 1


@cases
def test_bars_hold_the_weights_between_their_edges(name, how):
    weight, state = WEIGHTS[name], STATES[how]
    histogram, _, curve = of(weight, state)
    panel = panels.microscope(state, curve)
    # What no float32 tells apart shares a bin: so the magnitudes, too, as float32 numbers.
    magnitudes = weight[weight != 0].abs().double().numpy()
    magnitudes = histogram.magnitudes.repeat(histogram.counts) if name == "float64" else magnitudes
    edges = panel["edges"]
    assert edges == sorted(edges)
    expected, _ = np.histogram(magnitudes, edges)
    expected[-1] -= (magnitudes == edges[-1]).sum()  # numpy's last bin is closed, all others are open above
    total = sum(np.array(panel[kind]) for kind in KINDS)
    assert total.tolist() == expected.tolist()
    assert all(min(panel[kind]) >= 0 for kind in KINDS)
    assert 1 <= len(total) <= 2 * panels.MOST_BARS + 40
    assert edges[0] <= panel["low"] or panel["low"] < panel["high"] / 32
    assert edges[-1] >= panel["high"] * (1 - 1e-6) or name == "huge"
    json.dumps(panel, allow_nan=False)


@cases
def test_colours_are_those_of_the_chance_to_be_kept(name, how):
    """In bars that lie wholly above, or below, of what can be undecided."""
    weight, state = WEIGHTS[name], STATES[how]
    _, _, curve = of(weight, state)
    panel = panels.microscope(state, curve)
    low, high = curve.band
    for place, (start, end) in enumerate(zip(panel["edges"], panel["edges"][1:], strict=False)):
        kept, undecided, pruned = (panel[kind][place] for kind in KINDS)
        if start > max(high, panel["tau"]):
            assert undecided == pruned == 0
        if end < min(low, panel["tau"]):
            assert undecided == kept == 0
    if curve.swapped == 0:
        assert sum(panel["undecided"]) == 0


def test_colours_of_a_normal_tensor_sum_to_the_counts_by_chance():
    weight = normal(400, 500)
    state = ExploreState(sparsity=0.8, samples=20, window=1.0, **FIXED)
    _, _, curve = of(weight, state)
    magnitudes = weight.abs().double().numpy().ravel()
    panel = panels.microscope(state, curve)
    chance = curve.keep_probability(magnitudes)
    shown = magnitudes < panel["edges"][-1]
    for kind, chosen in zip(KINDS, [chance > 0.99, (chance >= 0.01) & (chance <= 0.99), chance < 0.01], strict=True):
        # A bin is 0.025 % wide: what lies at the border of two kinds may fall to either.
        assert sum(panel[kind]) == pytest.approx((chosen & shown).sum(), abs=0.001 * len(magnitudes))
        assert sum(panel[kind]) > 1000


def test_near_share_of_a_normal_tensor_is_the_paper_s():
    """29 % at sparsity .52 (arXiv 2310.13183, Figure 1). Five standard deviations: p < 1e-6."""
    weight = normal(1000, 1000, seed=8)
    state = ExploreState(sparsity=0.52)
    _, _, curve = of(weight, state)
    panel = panels.microscope(state, curve)
    tau = scipy.stats.halfnorm.ppf(0.52)
    law = scipy.stats.halfnorm.cdf(4 / 3 * tau) - scipy.stats.halfnorm.cdf(2 / 3 * tau)
    assert law == pytest.approx(0.29, abs=0.005)
    assert panel["near_share"] == pytest.approx(law, abs=5 * math.sqrt(law * (1 - law) / 1e6) + 5e-4)
    assert panel["near"] == [panel["tau"] * 2 / 3, panel["tau"] * 4 / 3]


@cases
def test_rules_stand_at_tau_and_at_the_reach(name, how):
    weight, state = WEIGHTS[name], STATES[how]
    panel = panels.microscope(state, of(weight, state)[2])
    magnitudes = np.sort(weight[weight != 0].abs().double().numpy())[::-1]
    keep = reference.keep_of(weight.numel(), state.sparsity)
    assert panel["tau"] == pytest.approx(magnitudes[keep - 1], rel=2.5e-4)
    assert panel["tau"] <= magnitudes[keep - 1]
    assert panel["low"] == pytest.approx(max(0, panel["tau"] * (1 - state.window)), rel=1e-9)
    assert panel["high"] == pytest.approx(panel["tau"] * (1 + state.window), rel=1e-9)
    drawable = len(magnitudes) if state.reach is None else min(round(state.reach * keep), len(magnitudes))
    if drawable == len(magnitudes):
        assert panel["reach_at"] is None
    else:
        assert panel["reach_at"] == pytest.approx(magnitudes[drawable - 1], rel=2.5e-4)
        assert panel["reach_at"] <= panel["tau"]


@cases
def test_the_inset_holds_the_whole_distribution(name, how):
    weight, state = WEIGHTS[name], STATES[how]
    histogram, _, curve = of(weight, state)
    inset = panels.microscope(state, curve)["inset"]
    edges, counts = np.array(inset["edges"]), inset["counts"]
    magnitudes = weight[weight != 0].abs().double().numpy()
    magnitudes = histogram.magnitudes.repeat(histogram.counts) if name == "float64" else magnitudes
    assert edges[-1] > magnitudes.max() or name == "huge"
    magnitudes = magnitudes[magnitudes >= 2.0**-138]  # what is smaller shares a bin with 0
    assert sum(counts) == (magnitudes >= edges[0]).sum() > 0
    if name != "huge":
        assert counts == np.histogram(magnitudes, edges)[0].tolist()
    assert len(counts) <= 97
    if name != "tiny":
        assert np.allclose(np.diff(np.log2(edges)), 0.25, atol=0.08)


def numbers_in(sentence):
    """The numbers of a sentence, percentages as shares."""
    found = re.findall(r"(?<![\w.])(\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?)( %|%)?", sentence)
    return [float(text.replace(",", "")) / (100 if percent else 1) for text, percent in found]


@cases
def test_sentence_of_panel_1(name, how):
    weight, state = WEIGHTS[name], STATES[how]
    histogram, _, curve = of(weight, state)
    panel = panels.microscope(state, curve)
    sparsity, tau, *_, near, undecided = re.match(
        r"At sparsity (\S+), tau = (\S+): (\S+)% of the weights lie from 2/3 to 4/3 of it, (\S+)% within 10 % of it; "
        r"(\S+)% are undecided \(kept with a chance from 1% to 99%\)\.$",
        panel["sentence"],
    ).group(1, 2, 3, 4, 5)
    share = float(re.search(r": (\S+)% of the weights", panel["sentence"])[1]) / 100
    assert float(sparsity) == pytest.approx(state.sparsity, rel=1e-5)
    assert float(tau) == pytest.approx(panel["tau"], rel=1e-3)
    assert share == pytest.approx(panel["near_share"], abs=6e-4)
    magnitudes = histogram.magnitudes.repeat(histogram.counts)
    exact = ((magnitudes >= 0.9 * panel["tau"]) & (magnitudes < 1.1 * panel["tau"])).mean()
    assert float(near) / 100 == pytest.approx(exact, abs=6e-4)
    alive = max(histogram.alive, 1)
    inside = sum(panel["undecided"]) / alive
    outside = 1 - (sum(panel["kept"]) + sum(panel["pruned"])) / alive
    assert inside - 6e-4 <= float(undecided) / 100 <= outside + 6e-4
    assert panel["title"] == (
        "The cut falls where weights are dense" if panel["near_share"] > 0.1 else "Few weights lie near the cut"
    )
    assert panel["badge"] == "exact"


# ---- panel 2


@cases
def test_the_keep_curve_is_that_of_the_closed_form(name, how):
    weight, state = WEIGHTS[name], STATES[how]
    _, draw, curve = of(weight, state)
    panel = panels.keep_curve(state, curve)
    assert (draw.samples, draw.power, draw.ties) == (state.samples, state.power, state.ties)
    own = KeepCurve.of(
        weight, state.sparsity, samples=state.samples, power=state.power, reach=state.reach, ties=state.ties
    )
    magnitudes = np.array(panel["magnitudes"])
    assert np.allclose(panel["q"], own.keep_probability(magnitudes), atol=1e-6)
    assert (np.diff(magnitudes) > 0).all()
    assert magnitudes[0] == pytest.approx(panel["low"])
    assert magnitudes[-1] == pytest.approx(panel["high"])
    assert panel["tau"] in magnitudes
    assert all(0 <= q <= 1 for q in panel["q"])
    assert panel["badge"] == "predicted"
    json.dumps(panel, allow_nan=False)
    if state.ties == "random":
        assert (np.diff(panel["q"]) >= -1e-6).all()  # a larger weight is never less likely kept


@cases
def test_sentence_of_panel_2(name, how):
    weight, state = WEIGHTS[name], STATES[how]
    _, _, curve = of(weight, state)
    sentence, title = (panels.keep_curve(state, curve)[part] for part in ("sentence", "title"))
    assert sentence.startswith(f"With M = {curve.samples:,} masks added up, T = {curve.power:.4g}")
    if curve.swapped == 0:
        kept = f"the {curve.keep:,} largest of {weight.numel():,} weights are kept"
        assert sentence.endswith(f"{kept}, down to tau = {curve.threshold:.4g}; ir = 0.")
        assert "Nothing is left to chance" in title
    else:
        at_tau, swapped, ir = re.search(r"chance of (\d+)%, and (\S+)% of .*; ir = (\S+)\.$", sentence).groups()
        assert float(at_tau) / 100 == pytest.approx(curve.keep_probability(curve.threshold), abs=0.0051)
        assert float(swapped) / 100 == pytest.approx(curve.swapped, abs=6e-5)
        assert float(ir) == pytest.approx(curve.expected_ir, rel=1e-3)


def banners(weight, **settings):
    state = ExploreState(**settings)
    return panels.keep_curve(state, of(weight, state)[2])["banners"]


LARGE = normal(400, 500)


@pytest.mark.parametrize(
    ("settings", "floor"),
    [
        ({"randomness": "decrease", "sampling_ratio": 0.99 / 187_500}, True),
        ({"randomness": "decrease", "sampling_ratio": 1.01 / 187_500}, False),
        ({"randomness": "increase", "sampling_ratio": 0.99 / 12_500}, True),
        ({"randomness": "increase", "sampling_ratio": 1.01 / 12_500}, False),
        ({"randomness": "fixed", "samples": 1, "sampling_ratio": 1e-7}, False),
        ({"randomness": "target_ir", "samples": 1, "sampling_ratio": 1e-7}, False),
    ],
)
def test_banner_of_the_floor(settings, floor):
    found = [banner for banner in banners(LARGE, **settings) if "floor" in banner]
    assert len(found) == floor
    if floor:
        assert "M = 0.99" in found[0]


@pytest.mark.parametrize("samples", [1, 2, 3, 4])
@pytest.mark.parametrize("ties", ["random", "magnitude"])
def test_banner_of_the_same_law(samples, ties):
    found = [banner for banner in banners(LARGE, ties=ties, samples=samples, **FIXED) if "same law" in banner]
    assert len(found) == (samples <= 2 and ties == "random")


def at_the_cut(weight, state, rng):
    """The share of the kept weights that were drawn as often as some that are not kept, of one ensemble."""
    keep = reference.keep_of(len(weight), state.sparsity)
    logs = reference.selection_logs(weight[reference.support_of(weight, state.sparsity, state.reach)], state.power)
    counts = np.zeros(len(logs), dtype=int)
    for _ in range(state.samples):
        counts[reference.draw_once(logs, keep, rng)] += 1
    cut = np.sort(counts)[-keep]
    return 0.0 if (counts >= cut).sum() == keep else (keep - (counts > cut).sum()) / keep


@pytest.mark.parametrize("ties", ["random", "magnitude"])
@pytest.mark.parametrize(
    ("sparsity", "samples", "reach"),
    [
        (0.9375, 1, None),
        (0.54, 2, None),
        (0.9375, 2, None),
        (0.83, 3, 1.5),
        (0.9375, 6, None),
        (0.99, 6, None),
        (0.9, 9, 2.0),
    ],
)
def test_decided_by_ties_against_draws(sparsity, samples, reach, ties):
    """Of 200,000 weights: a share varies by less than 0.004 from ensemble to ensemble. DESIGN 3.3: 15 %, 65 %."""
    weight = LARGE.double().numpy().ravel()
    state = ExploreState(sparsity=sparsity, samples=samples, reach=reach, ties=ties, **FIXED)
    rng = np.random.default_rng(1)
    drawn = np.mean([at_the_cut(weight, state, rng) for _ in range(3)])
    _, _, curve = of(LARGE, state)
    assert curve.decided_by_ties == pytest.approx(drawn, abs=0.02)
    found = [banner for banner in panels.keep_curve(state, curve)["banners"] if "decided" in banner]
    assert len(found) == (drawn > 0.1)
    if found:
        assert float(re.match(r"(\d+)% of the kept", found[0])[1]) / 100 == pytest.approx(drawn, abs=0.025)
        assert ("coin" in found[0]) == (ties == "random")
        assert ("larger magnitude" in found[0]) == (ties == "magnitude")


@pytest.mark.parametrize("settings", [{"reach": 1.0}, {"samples": 10_000, "power": 20}, {"sparsity": 0.0}])
def test_no_banner_of_ties_where_nothing_is_tied(settings):
    assert not [banner for banner in banners(LARGE, **FIXED, **settings) if "decided" in banner]


# ---- settings that follow


@pytest.mark.parametrize("randomness", RANDOMNESS)
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9375])
def test_what_rules_stays_and_the_rest_follows(randomness, sparsity):
    state = ExploreState(randomness=randomness, sparsity=sparsity, samples=7, sampling_ratio=3.3e-4, target_ir=0.005)
    _, draw, curve = of(LARGE, state)
    keep = reference.keep_of(200_000, sparsity)
    values = panels.derived(state, curve)
    assert (values["n"], values["keep"], values["alive"]) == (200_000, keep, 200_000)
    assert values["compression"] == pytest.approx(1 / (1 - sparsity))
    counted = keep if randomness == "increase" else 200_000 - keep
    if randomness in ("decrease", "increase"):
        assert values["sampling_ratio"] == state.sampling_ratio
        assert values["samples"] == samples_for_ratio(3.3e-4, 200_000, sparsity, randomness)
    else:
        assert values["samples"] == 7
        assert values["sampling_ratio"] == (pytest.approx(7 / counted) if counted else state.sampling_ratio)
    if randomness == "target_ir" and sparsity:
        assert values["target_ir"] == pytest.approx(0.005, rel=1e-4)
        assert values["power"] == draw.power != state.power
    elif randomness != "target_ir":
        assert values["power"] == state.power
        assert values["target_ir"] == values["ir"]
    assert values["ir"] == curve.expected_ir
    assert values["swapped"] == curve.swapped


def test_a_target_out_of_reach_is_said_with_what_it_gets():
    state = ExploreState(randomness="target_ir", target_ir=0.5, sparsity=0.9375, samples=4, ties="magnitude")
    _, draw, curve = of(LARGE, state)
    clamped, rule = draw.notices
    assert draw.ties == "random"
    assert "random ties" in rule
    asked, gets = numbers_in(clamped)
    assert asked == 0.5
    assert gets == pytest.approx(curve.expected_ir, rel=1e-3)
    assert draw.power == 0
    reached = ExploreState(randomness="target_ir", target_ir=0.01, samples=4)
    assert panels.settle(reached, MagnitudeHistogram.of(LARGE)).notices == ()


# ---- panel 4


@cases
def test_the_point_is_the_closed_form_exactly(name, how):
    weight, state = WEIGHTS[name], STATES[how]
    histogram, _, curve = of(weight, state)
    point = panels.point(state, curve)
    own = KeepCurve.of(
        histogram, state.sparsity, samples=state.samples, power=state.power, reach=state.reach, ties=state.ties
    )
    assert point["ir"] == (own.expected_ir if math.isfinite(own.expected_ir) else None)
    assert point["swapped"] == own.swapped
    assert point["values"]["power"] == state.power
    assert point["values"]["samples"] == state.samples
    assert point["values"]["sparsity"] == state.sparsity
    assert point["values"]["reach"] == state.reach
    ir, swapped, samples, power = re.match(
        r"Here ir = (\S+), and (\S+)% of the kept weights are swapped \(M = (\S+), T = (\S+)\)\.$", point["sentence"]
    ).groups()
    assert float(ir) == pytest.approx(own.expected_ir, rel=1e-3)
    assert float(swapped) / 100 == pytest.approx(own.swapped, abs=6e-5)
    assert int(samples.replace(",", "")) == state.samples
    assert float(power) == pytest.approx(state.power, rel=1e-3)


def ruled(sweep, randomness):
    """What rules while one setting is moved by its slider."""
    if sweep in ("sparsity", "reach"):
        return randomness
    allowed = {
        "sampling_ratio": ("decrease", "increase"),
        "samples": ("fixed", "target_ir"),
        "power": ("fixed", "decrease", "increase"),
    }[sweep]
    return randomness if randomness in allowed else allowed[0]


@pytest.mark.parametrize(
    ("weights", "randomness", "sweep"),
    thinned(
        list(itertools.product(["float32", "bfloat16", "partly pruned"], ["fixed", "decrease", "increase"], SWEEPS))
    ),
)
def test_the_line_is_the_closed_form_within_a_percent(weights, randomness, sweep):
    weight = WEIGHTS[weights]
    state = ExploreState(
        randomness=randomness, sweep=sweep, sparsity=0.8, samples=5, sampling_ratio=5e-4, power=4, reach=1.8
    )
    histogram = MagnitudeHistogram.of(weight)
    line = panels.sweep(state, histogram)
    assert (line["field"], line["scale"]) == (sweep, control_of(sweep).scale)
    assert len(line["x"]) == len(line["ir"]) == len(line["swapped"]) >= 20
    assert line["x"] == sorted(set(line["x"]))
    control = control_of(sweep)
    assert control.low <= line["x"][0] < line["x"][-1] <= control.high * (1 + 1e-9)
    compared = 0
    for x, ir, swapped in list(zip(line["x"], line["ir"], line["swapped"], strict=True))[::4]:
        moved = state.but(**{sweep: x}, randomness=ruled(sweep, randomness))
        _, draw, curve = of(weight, moved)
        if draw.samples > 5000:  # there chance acts within a bin, and the coarse histogram is rough
            continue
        compared += 1
        assert ir == pytest.approx(curve.expected_ir, rel=0.01, abs=1e-9), x
        assert swapped == pytest.approx(curve.swapped, rel=0.01, abs=1e-9), x
    assert compared >= 4


@pytest.mark.parametrize("sweep", ["samples", "sparsity", "reach"])
def test_the_line_of_a_target_is_flat_where_it_can_be_had(sweep):
    state = ExploreState(randomness="target_ir", target_ir=0.02, sweep=sweep, sparsity=0.8, samples=5)
    line = panels.sweep(state, MagnitudeHistogram.of(WEIGHTS["float32"]))
    on_target = [x for x, ir in zip(line["x"], line["ir"], strict=True) if ir == pytest.approx(0.02, rel=1e-9)]
    assert len(on_target) >= 3
    for x, ir, swapped in list(zip(line["x"], line["ir"], line["swapped"], strict=True))[::5]:
        _, _, curve = of(WEIGHTS["float32"], state.but(**{sweep: x}))
        assert ir == pytest.approx(curve.expected_ir, rel=0.02, abs=1e-5), x
        assert swapped == pytest.approx(curve.swapped, rel=0.02, abs=1e-5), x


@pytest.mark.parametrize(
    ("name", "sweep", "randomness"),
    thinned(list(itertools.product(["few", "one", "two", "partly pruned", "constant", "huge"], SWEEPS, RANDOMNESS))),
)
def test_the_sentence_of_the_line_is_true(name, sweep, randomness):
    weight, state = WEIGHTS[name], ExploreState(randomness=randomness, sweep=sweep, sparsity=0.5)
    line = panels.sweep(state, MagnitudeHistogram.of(weight))
    json.dumps(line, allow_nan=False)
    if not line["x"]:
        assert line["sentence"].startswith("No value of")
        return
    first, last, *span = numbers_in(line["sentence"])
    assert (first, last) == (pytest.approx(line["x"][0], rel=1e-3), pytest.approx(line["x"][-1], rel=1e-3))
    known = [ir for ir in line["ir"] if ir is not None]
    if known:
        assert sorted(span) == [pytest.approx(min(known), rel=1e-3), pytest.approx(max(known), rel=1e-3)]
    else:
        assert "not defined" in line["sentence"]


def test_ir_falls_with_samples_and_power_along_the_line():
    histogram = MagnitudeHistogram.of(WEIGHTS["float32"])
    for sweep in ("samples", "power"):
        line = panels.sweep(ExploreState(sweep=sweep, sparsity=0.8, **FIXED), histogram)
        assert line["ir"] == sorted(line["ir"], reverse=True)
        assert line["ir"][0] > 1.5 * line["ir"][-1]


def test_no_weight_alive_is_said_and_nothing_breaks():
    nothing = MagnitudeHistogram.of(torch.zeros(40))
    state = ExploreState(sparsity=0.5)
    with pytest.raises(ValueError, match="0 weights exist, 20 are to be kept"):
        panels.curve_of(state, nothing, panels.settle(state, nothing))
    for sweep in SWEEPS:
        for randomness in RANDOMNESS:
            line = panels.sweep(state.but(sweep=sweep, randomness=randomness), nothing)
            assert line["ir"] == [] or set(line["ir"]) == {0.0}


def test_live_zeros_and_dead_weights():
    """Only the mask says what exists: tau is 0 where zeros are kept."""
    weight = torch.cat([torch.zeros(60), normal(40, seed=2)])
    alive = torch.ones(100, dtype=torch.bool)
    state = ExploreState(sparsity=0.5, samples=3, **FIXED)
    _, _, curve = of(weight, state, alive)
    panel = panels.microscope(state, curve)
    json.dumps([panel, panels.keep_curve(state, curve), panels.point(state, curve)], allow_nan=False)
    assert panel["tau"] == 0
    assert panels.sweep(state, MagnitudeHistogram.of(weight, alive=alive))["ir"]
