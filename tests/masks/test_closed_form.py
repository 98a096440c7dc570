"""The closed form: the histogram, the curve, and the curve against DESIGN 3.4 written out weight by weight."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import scipy
import torch
from support import reference

from randprune_lab.keepcurve import KeepCurve, MagnitudeHistogram
from randprune_lab.sampling import magnitude_mask

SIZE = 40_000


def weights(law="normal", size=SIZE, seed=11):
    rng = np.random.default_rng(seed)
    values = rng.standard_t(3, size) if law == "student" else rng.standard_normal(size)
    if law == "pruned":
        values[rng.permutation(size)[: size // 2]] = 0
    return torch.from_numpy(0.05 * values).to(torch.bfloat16 if law == "bf16" else torch.float32)


def same(one, two):
    return np.array_equal(one.bins, two.bins) and np.array_equal(one.counts, two.counts) and one.size == two.size


# --- the histogram


def test_histogram_is_a_sum_over_pieces_orders_and_tensors():
    weight = weights("pruned")
    whole = MagnitudeHistogram.of(weight)
    assert len(whole.bins) > 1000
    assert whole.counts.sum() == int((weight != 0).sum()) < whole.size == SIZE
    pieces = [MagnitudeHistogram.of(piece) for piece in weight.split([1, 9_999, 20_000, 10_000])]
    assert same(whole, pieces[0] + pieces[1] + pieces[2] + pieces[3])
    assert same(whole, (pieces[3] + pieces[1]) + (pieces[2] + pieces[0]))
    assert same(whole, MagnitudeHistogram.of(weight.flip(0)))
    assert same(whole, MagnitudeHistogram.of(-weight.view(200, 200).T))
    assert not same(whole, pieces[0] + pieces[1] + pieces[2])


def test_histogram_of_several_tensors_is_that_of_the_concatenation():
    tensors = [weights(size=300, seed=1), weights("student", 5_000, 2), weights("pruned", 70, 3).view(7, 10)]
    added = MagnitudeHistogram.of(tensors[0]) + MagnitudeHistogram.of(tensors[1]) + MagnitudeHistogram.of(tensors[2])
    assert same(added, MagnitudeHistogram.of(torch.cat([tensor.reshape(-1) for tensor in tensors])))


def test_histogram_read_in_chunks():
    """More weights than are binned at a time: the seams must not show."""
    weight = weights(size=2**22 + 5)
    assert same(MagnitudeHistogram.of(weight), MagnitudeHistogram.of(weight[:77]) + MagnitudeHistogram.of(weight[77:]))


def test_histogram_counts_the_dead_in_size_only():
    weight = weights("pruned")
    histogram = MagnitudeHistogram.of(weight)
    assert histogram.size == SIZE
    assert histogram.alive == int((weight != 0).sum())


def test_histogram_under_an_alive_mask():
    """Only the mask says what exists: a live zero counts, a dead large weight does not."""
    weight = torch.tensor([0.0, 1.0, 2.0, 0.0, 4.0, 4.0])
    alive = torch.tensor([True, False, True, False, True, True])
    histogram = MagnitudeHistogram.of(weight, alive=alive)
    assert (histogram.size, histogram.alive) == (6, 4)
    assert histogram.magnitudes.tolist() == [0.0, 2.0, 4.0]
    assert histogram.counts.tolist() == [1, 1, 2]
    assert MagnitudeHistogram.of(weight).counts.tolist() == [1, 1, 2]
    assert MagnitudeHistogram.of(weight).magnitudes.tolist() == [1.0, 2.0, 4.0]


def test_magnitudes_are_the_lower_edges_of_narrow_bins():
    weight = weights("student")
    histogram = MagnitudeHistogram.of(weight)
    ordered = weight.abs().double().sort().values.numpy()
    edges = np.repeat(histogram.magnitudes, histogram.counts)
    assert (edges <= ordered).all()
    assert (ordered <= edges * (1 + 2.5e-4)).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_magnitudes_have_bins_of_their_own(dtype):
    weight = weights().to(dtype)
    histogram = MagnitudeHistogram.of(weight)
    values, counts = weight.abs().unique(return_counts=True)
    assert histogram.magnitudes.tolist() == values.double().tolist()
    assert histogram.counts.tolist() == counts.tolist()


def test_share_within():
    weight = torch.tensor([0.0, 0.5, -1.0, 2.0, 4.0])
    assert MagnitudeHistogram.of(weight).share_within(1.0, 4.0) == 0.5  # 2 of the 4 that exist
    assert MagnitudeHistogram.of(weight).share_within(5.0, 6.0) == 0.0
    assert MagnitudeHistogram.of(torch.zeros(3)).share_within(0.0, 1.0) == 0.0


def test_histogram_bad_input():
    weight = torch.ones(4)
    with pytest.raises(ValueError, match=r"torch.int64: must be floating point. Convert it with weight.float"):
        MagnitudeHistogram.of(torch.ones(4, dtype=torch.int64))
    for bad in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match=r"1 of 5 weights are NaN or infinite.*Repair"):
            MagnitudeHistogram.of(torch.cat([weight, torch.tensor([bad])]))
    with pytest.raises(ValueError, match=r"shape \(2, 2\), the weight has shape \(4,\): alive must be a bool"):
        MagnitudeHistogram.of(weight, alive=torch.ones(2, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"alive is torch.uint8 .*must be a bool tensor"):
        MagnitudeHistogram.of(weight, alive=torch.ones(4, dtype=torch.uint8))


# --- the curve against DESIGN 3.4, weight by weight


def closed_form(magnitude, keep, *, samples, power, reach):
    """Per-weight q, ties at random, largest magnitude first: root finding and scipy's binomial, no histogram."""
    magnitude = np.sort(magnitude[magnitude > 0])[::-1]
    support = magnitude if reach is None else magnitude[: round(reach * keep)]
    logs = power * np.log(support / support[0])
    pi_of = lambda theta: -np.expm1(-np.exp(np.minimum(theta + logs, 50.0)))
    theta = scipy.optimize.brentq(lambda theta: pi_of(theta).sum() - keep, -50, 50 - logs.min(), xtol=1e-13)
    pi = pi_of(theta)
    if samples == 1:  # one draw: the counts are the draw
        return pi
    low, high = -1, samples  # E#(c > low) > keep >= E#(c > high)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if scipy.stats.binom.sf(middle, samples, pi).sum() <= keep else (middle, high)
    above, equal = scipy.stats.binom.sf(high, samples, pi), scipy.stats.binom.pmf(high, samples, pi)
    return above + equal * (keep - above.sum()) / equal.sum()


CLOSED_FORM_CELLS = [
    (law, *setting)
    for law in ("normal", "bf16", "student")
    for setting in [
        (0.9375, 5.0, None, 1),
        (0.9375, 5.0, 2.0, 3),
        (0.9375, 5.0, 1.2, 6),
        (0.54, 5.0, None, 4),
        (0.54, 1.0, 2.0, 16),
        (0.83, 8.0, None, 110),
        (0.83, 5.0, 1.2, 1000),
        (0.9375, 1.0, None, 110),
        (0.9375, 20.0, None, 4),
        (0.99, 20.0, 2.0, 2),
        (0.99, 1.0, 4.0, 1000),
        (0.54, 20.0, 2.0, 110),
        (0.91, 3.0, 1.5, 31),
        (0.5, 8.0, None, 1000),
    ]
]
# Fewer than some 20 weights swap: the band is so narrow that most of its bins hold one weight or none.
NARROW_CELLS = [
    ("normal", 0.99, 20.0, 2.0, 1000),
    ("student", 0.99, 20.0, 2.0, 110),
    ("student", 0.91, 8.0, None, 1000),
]


@pytest.mark.parametrize(
    ("law", "sparsity", "power", "reach", "samples", "tolerance"),
    [(*cell, 0.003) for cell in CLOSED_FORM_CELLS] + [(*cell, 0.03) for cell in NARROW_CELLS],
)
def test_expected_ir_is_the_closed_form(law, sparsity, power, reach, samples, tolerance):
    weight = weights(law)
    keep = reference.keep_of(SIZE, sparsity)
    q = closed_form(weight.abs().double().numpy(), keep, samples=samples, power=power, reach=reach)
    assert q.sum() == pytest.approx(keep, rel=1e-6)
    swapped = q[keep:].sum()
    expected = swapped / (SIZE - keep - swapped)
    curve = KeepCurve.of(weight, sparsity, samples=samples, power=power, reach=reach)
    assert curve.expected_ir == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize(("samples", "reach"), [(1, None), (6, 2.0), (40, None)])
def test_the_curve_is_the_closed_form(samples, reach):
    """Not its ir alone: q at every weight, apart from the few that share a bin with the reach."""
    weight = weights().abs().double().sort(descending=True).values.numpy()
    keep = reference.keep_of(SIZE, 0.9)
    q = closed_form(weight, keep, samples=samples, power=5.0, reach=reach)
    curve = KeepCurve.of(torch.from_numpy(weight), 0.9, samples=samples, power=5.0, reach=reach)
    wrong = np.abs(curve.keep_probability(weight[: len(q)]) - q) > 2e-3
    assert wrong.sum() <= (0 if reach is None else 0.003 * keep)


# --- properties of the curve

SETTINGS = [
    (sparsity, power, reach, samples, ties)
    for (sparsity, power), reach, samples, ties in itertools.product(
        [(0.5, 2.0), (0.9375, 5.0), (0.99, 8.0)], (1.2, 2.0, None), (1, 5, 60), ("random", "magnitude")
    )
]


def curve_of(weight, sparsity, power, reach, samples, ties):
    return KeepCurve.of(weight, sparsity, samples=samples, power=power, reach=reach, ties=ties)


@pytest.mark.parametrize("law", ["normal", "bf16"])
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_curve_properties(law, setting):
    sparsity, _, reach, _, _ = setting
    weight = weights(law)
    curve = curve_of(weight, *setting)
    assert curve.keep == reference.keep_of(SIZE, sparsity)
    ordered = weight.abs().double().sort(descending=True).values.numpy()
    q = curve.keep_probability(ordered)
    assert q.sum() == pytest.approx(curve.keep, rel=1e-3)
    assert q.min() >= 0
    assert q.max() <= 1
    assert (np.diff(q) <= 1e-12).all()  # never less likely for being larger
    assert curve.drawable == (SIZE if reach is None else min(SIZE, round(reach * curve.keep)))
    if curve.drawable < SIZE:
        assert (q[ordered < ordered[curve.drawable - 1] * (1 - 2.5e-4)] == 0).all()
        assert q[curve.drawable // 2] > 0
    # What is swapped in, from the curve itself. The bin of the threshold is shared out, hence 1 %.
    assert q[curve.keep :].sum() / curve.keep == pytest.approx(curve.swapped, rel=0.01)
    ir, pruned = curve.expected_ir, SIZE - curve.keep
    assert curve.swapped == pytest.approx(ir / (1 + ir) * pruned / curve.keep, rel=1e-12)
    # At most everything is swapped: keep / (pruned - keep); the even draw of M = 1, T = 0 has (1-s)/s.
    assert 0 < ir < (1 - sparsity) / sparsity


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_band(setting):
    weight = weights()
    curve = curve_of(weight, *setting)
    low, high = curve.band
    magnitude = weight.abs().double().numpy()
    q = curve.keep_probability(magnitude)
    inside = (low <= magnitude) & (magnitude < high)
    assert low <= curve.threshold <= high
    assert inside.any()
    assert ((q[inside] > 0) & (q[inside] < 1)).all()
    assert (q[magnitude < low] <= 1e-10).all()
    assert (q[magnitude >= high] >= 1 - 1e-10).all()


@pytest.mark.parametrize("law", ["normal", "bf16", "student", "pruned"])
def test_curve_from_a_tensor_is_that_of_its_histogram(law):
    weight = weights(law)
    settings = {"samples": 6, "power": 5.0, "reach": 2.0}
    one = KeepCurve.of(weight, 0.9, **settings)
    two = KeepCurve.of(MagnitudeHistogram.of(weight), 0.9, **settings)
    assert one.expected_ir == two.expected_ir
    assert one.swapped == two.swapped
    assert one.band == two.band
    assert np.array_equal(one.probabilities, two.probabilities)
    magnitudes = np.geomspace(1e-4, 1, 300)
    assert np.array_equal(one.keep_probability(magnitudes), two.keep_probability(magnitudes))
    assert one.threshold * (1 - 2.5e-4) <= two.threshold <= one.threshold


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.54, 0.9375, 0.999])
@pytest.mark.parametrize("law", ["normal", "bf16", "student"])
def test_threshold_is_the_smallest_kept_magnitude(law, sparsity):
    weight = weights(law)
    smallest = float(weight.abs()[magnitude_mask(weight, sparsity)].min())
    assert KeepCurve.of(weight, sparsity, samples=2).threshold == smallest
    matrix = weight.view(200, 200).T.detach().requires_grad_()
    assert KeepCurve.of(matrix, sparsity, samples=2).threshold == smallest


@pytest.mark.parametrize("ties", ["random", "magnitude"])
@pytest.mark.parametrize("exponent", [-40, -1, 1, 30])
def test_ir_has_no_scale(exponent, ties):
    """A power of two moves every bin by whole numbers. 1e-9: T log|w| is rounded elsewhere, nothing more."""
    weight = weights("student")
    one = KeepCurve.of(weight, 0.9, samples=7, power=5.0, reach=3.0, ties=ties)
    two = KeepCurve.of(weight * 2.0**exponent, 0.9, samples=7, power=5.0, reach=3.0, ties=ties)
    assert two.expected_ir == pytest.approx(one.expected_ir, rel=1e-9)
    assert two.threshold == one.threshold * 2.0**exponent
    assert two.band == pytest.approx([edge * 2.0**exponent for edge in one.band], rel=1e-15)


@pytest.mark.parametrize(
    ("sparsity", "power", "reach"),
    [(0.9375, 5.0, None), (0.54, 1.0, 2.0), (0.99, 8.0, 1.2), (0.83, 3.0, 4.0), (0.9, 0.0, 1.5)],
)
@pytest.mark.parametrize("law", ["normal", "bf16"])
def test_ir_never_rises_with_samples_when_ties_are_random(law, sparsity, power, reach):
    histogram = MagnitudeHistogram.of(weights(law))
    samples = [*range(1, 70), 100, 128, 300, 1000, 5000]
    irs = np.array(
        [KeepCurve.of(histogram, sparsity, samples=m, power=power, reach=reach).expected_ir for m in samples]
    )
    assert (irs[1:] <= irs[:-1] * (1 + 1e-4)).all()
    if power > 0:
        assert irs[-1] < irs[0] / 3  # and fall it does


@pytest.mark.parametrize(("sparsity", "power", "reach"), [(0.9375, 5.0, None), (0.5, 2.0, 2.0), (0.99, 8.0, 1.2)])
def test_one_and_two_samples_are_one_law(sparsity, power, reach):
    weight = weights()
    one, two = (KeepCurve.of(weight, sparsity, samples=m, power=power, reach=reach) for m in (1, 2))
    assert two.expected_ir == pytest.approx(one.expected_ir, rel=1e-3)
    magnitude = weight.abs().double().numpy()
    np.testing.assert_allclose(two.keep_probability(magnitude), one.keep_probability(magnitude), atol=1e-3)


def test_magnitude_ties_are_a_saw_tooth_in_samples():
    histogram = MagnitudeHistogram.of(weights())
    irs = [KeepCurve.of(histogram, 0.9375, samples=m, ties="magnitude").expected_ir for m in range(1, 30)]
    steps = np.sign(np.diff(irs))
    assert {-1.0, 1.0} <= set(steps)


def test_more_power_and_less_reach_mean_less_randomness():
    histogram = MagnitudeHistogram.of(weights())
    by_power = [KeepCurve.of(histogram, 0.9, samples=4, power=t).expected_ir for t in (0.0, 0.5, 1.0, 3.0, 9.0, 50.0)]
    assert by_power == sorted(by_power, reverse=True)
    by_reach = [KeepCurve.of(histogram, 0.9, samples=4, reach=r).expected_ir for r in (1.0, 1.1, 1.5, 2.0, 3.0)]
    assert by_reach == sorted(by_reach)  # true up to about 4: a little later, ir falls again by 0.1 %
    assert by_reach[0] == 0


@pytest.mark.parametrize("sparsity", [0.3, 0.9, 0.99])
def test_even_draws_are_known_exactly(sparsity):
    """T = 0, no reach, M = 1: every weight is kept with probability 1 - s, so ir = (1-s)/s."""
    curve = KeepCurve.of(weights(), sparsity, samples=1, power=0.0)
    assert curve.expected_ir == pytest.approx((1 - sparsity) / sparsity, rel=1e-3)
    assert curve.keep_probability(0.05) == pytest.approx(1 - sparsity, rel=1e-6)


@pytest.mark.parametrize(
    ("sparsity", "reach", "drawable"),
    [(0.75, 1.37, 14), (0.75, 1.33, 13), (0.75, 1.25, 12), (0.75, 4.5, 40), (0.5, None, 40)],
)
def test_drawable_is_the_rounded_reach(sparsity, reach, drawable):
    curve = KeepCurve.of(weights(size=40), sparsity, samples=2, reach=reach)
    assert curve.drawable == drawable
    assert curve.drawable_counts.sum() == pytest.approx(drawable)


# --- edges


@pytest.mark.parametrize("ties", ["random", "magnitude"])
def test_nothing_kept(ties):
    curve = KeepCurve.of(torch.linspace(1, 2, 7), 0.9375, samples=4, ties=ties)
    assert (curve.keep, curve.threshold, curve.expected_ir, curve.swapped) == (0, math.inf, 0.0, 0.0)
    assert curve.band == (math.inf, math.inf)
    assert curve.undecided_bins is None
    assert curve.keep_probability(1.5) == 0.0
    assert curve.keep_probability(1e30) == 0.0


@pytest.mark.parametrize("ties", ["random", "magnitude"])
@pytest.mark.parametrize("samples", [1, 2, 9])
def test_reach_one_leaves_nothing_to_chance(samples, ties):
    weight = weights()
    curve = KeepCurve.of(weight, 0.9, samples=samples, reach=1.0, ties=ties)
    assert (curve.expected_ir, curve.swapped, curve.drawable) == (0.0, 0.0, curve.keep)
    assert curve.band == (curve.threshold, curve.threshold)
    assert curve.undecided_bins is None
    assert curve.keep_probability(curve.threshold * 1.001) == 1.0
    assert curve.keep_probability(curve.threshold * 0.999) == 0.0


def test_nothing_pruned():
    weight = weights()
    curve = KeepCurve.of(weight, 0.0, samples=3)
    assert (curve.keep, curve.expected_ir, curve.swapped) == (SIZE, 0.0, 0.0)
    assert curve.threshold == float(weight.abs().min())
    assert curve.band == (curve.threshold, curve.threshold)
    assert (curve.keep_probability(weight.abs().double().numpy()) == 1).all()


def test_everything_that_is_left_is_kept():
    """Half is dead and half is kept: no choice, whatever the reach."""
    weight = weights("pruned")
    curve = KeepCurve.of(weight, 0.5, samples=3)
    assert (curve.keep, curve.expected_ir) == (SIZE // 2, 0.0)
    with pytest.raises(ValueError, match=r"20000 weights exist, 20400 are to be kept.*Raise the sparsity"):
        KeepCurve.of(weight, 0.49, samples=3)


def test_live_zeros_are_kept_last():
    weight = torch.cat([torch.zeros(500), 1 + torch.rand(500, generator=torch.Generator().manual_seed(1))])
    histogram = MagnitudeHistogram.of(weight, alive=torch.ones(1000, dtype=torch.bool))
    curve = KeepCurve.of(histogram, 0.6, samples=2)
    assert curve.keep_probability(0.0) < 1e-12
    assert curve.keep_probability(2.0) > 0.5
    full = KeepCurve.of(histogram, 0.3, samples=2)  # 700 of 500: 200 of the zeros must be kept
    assert full.keep_probability(1.5) == pytest.approx(1.0, abs=1e-6)
    assert full.keep_probability(0.0) == pytest.approx(0.4, rel=1e-3)
    assert full.threshold == 0.0


def test_keep_probability_answers_in_kind():
    curve = KeepCurve.of(weights(), 0.9, samples=4)
    single = curve.keep_probability(0.09)
    assert type(single) is float
    assert 0 < single < 1
    assert curve.keep_probability(-0.09) == single
    array = curve.keep_probability(np.array([[0.09, -0.09], [0.0, 100.0]]))
    assert isinstance(array, np.ndarray)
    assert array.shape == (2, 2)
    assert array[0].tolist() == [single, single]
    assert array[1].tolist() == pytest.approx([0.0, 1.0], abs=1e-9)
    tensor = curve.keep_probability(torch.tensor([[0.09]], dtype=torch.float64, requires_grad=True))
    assert isinstance(tensor, torch.Tensor)
    assert tensor.tolist() == [[single]]
    assert tensor.dtype == torch.float64
    assert not tensor.requires_grad
    assert curve.keep_probability(np.array([])).shape == (0,)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        rounded = torch.tensor([0.09], dtype=dtype)
        assert curve.keep_probability(rounded).item() == curve.keep_probability(float(rounded))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_keep_probability_of_no_magnitude(bad):
    curve = KeepCurve.of(weights(), 0.9, samples=4)
    for magnitude in (bad, np.array([0.1, bad]), torch.tensor([0.1, bad])):
        with pytest.raises(ValueError, match=rf"magnitude = .*{bad}.*must be finite. Pass the magnitudes"):
            curve.keep_probability(magnitude)


def test_curve_is_frozen_and_says_what_it_was_asked():
    curve = KeepCurve.of(weights(), 0.9, samples=4, power=3, reach=2, ties="magnitude")
    assert (curve.sparsity, curve.samples, curve.power, curve.reach, curve.ties) == (0.9, 4, 3.0, 2.0, "magnitude")
    with pytest.raises(dataclasses.FrozenInstanceError):
        curve.samples = 5


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"sparsity": 1.0}, r"sparsity = 1.0: must lie in \[0, 1\).*pass 1 - 1/16"),
        ({"sparsity": -0.01}, r"sparsity = -0.01: must lie in"),
        ({"sparsity": math.nan}, r"sparsity = nan: must lie in"),
        ({"samples": 0}, r"samples = 0: at least 1.*Pass samples=1"),
        ({"samples": 2.5}, r"samples = 2.5: must be a whole number. Pass round\(2.5\)"),
        ({"power": -1.0}, r"power = -1.0: must be finite and at least 0.*uses 5"),
        ({"power": math.inf}, r"power = inf: must be finite"),
        ({"power": math.nan}, r"power = nan: must be finite"),
        ({"reach": 0.99}, r"reach = 0.99: must be finite and at least 1.*Pass None"),
        ({"reach": math.nan}, r"reach = nan: must be finite"),
        ({"ties": "magnitud"}, r"ties = 'magnitud': unknown. Did you mean 'magnitude'"),
    ],
)
def test_bad_settings(options, text):
    settings = {"sparsity": 0.9, "samples": 4} | options
    for given in (weights(size=100), MagnitudeHistogram.of(weights(size=100))):
        with pytest.raises(ValueError, match=text):
            KeepCurve.of(given, settings["sparsity"], **{k: v for k, v in settings.items() if k != "sparsity"})


def test_live_zeros_do_not_pull_their_neighbours_down():
    weight = torch.cat([torch.zeros(500), torch.linspace(1, 2, 500)])
    alive = torch.ones(1_000, dtype=torch.bool)
    curve = KeepCurve.of(MagnitudeHistogram.of(weight, alive=alive), 0.3, samples=2)
    assert curve.probabilities[1:] == pytest.approx(1.0, abs=1e-9)
    assert curve.keep_probability(0.0) == pytest.approx(200 / 500, abs=1e-6)
    assert curve.expected_ir == pytest.approx(
        120 / 180, rel=1e-6
    )  # 200 of 500 equals: 120 of them others than the plain
