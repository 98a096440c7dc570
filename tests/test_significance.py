"""Intervals, paired tests, rank correlations: against slow references that enumerate, and by simulation."""

import itertools
import math

import numpy as np
import pytest
import scipy
from hypothesis import given, settings
from hypothesis import strategies as st

from randprune_lab.intervals import (
    Paired,
    bootstrap_interval,
    holm,
    paired,
    share,
    spearman,
    verdict,
)

COUNTS = st.integers(0, 20)  # of 20 test examples: scores that often tie
VALUES = st.floats(-1e6, 1e6)
timeless = settings(deadline=None)  # the first call loads scipy.stats


def sign_flips(differences: list[int]) -> float:
    """The share of all sign flips that are as far from 0, counted one by one in whole numbers."""
    found = abs(sum(differences))
    sums = [
        abs(sum(sign * value for sign, value in zip(signs, differences, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    return sum(value >= found for value in sums) / len(sums)


# ---- the interval of a mean


@timeless
@given(st.lists(VALUES, min_size=2, max_size=12), st.integers(0, 3))
def test_interval_holds_its_mean_and_stays_within_the_values(values, seed):
    found = bootstrap_interval(values, resamples=199, seed=seed)
    slack = 1e-9 * max(map(abs, values))
    assert found.number == len(values)
    assert found.mean == pytest.approx(math.fsum(values) / len(values), abs=slack)
    assert min(values) - slack <= found.low <= found.high <= max(values) + slack


def test_interval_is_that_of_all_resamples():
    """27 resamples of three values, each as likely: the 9,999 drawn ones come to their percentiles."""
    values = (0.90, 0.92, 0.97)
    means = [sum(chosen) / 3 for chosen in itertools.product(values, repeat=3)]
    expected = np.quantile(means, [0.2, 0.8], method="inverted_cdf")
    found = bootstrap_interval(values, level=0.6)
    assert [found.low, found.high] == pytest.approx(list(expected))


def test_one_value_and_equal_values():
    one, same = bootstrap_interval([0.9]), bootstrap_interval([0.9] * 4)
    assert (one.mean, one.low, one.high, one.number) == (0.9, None, None, 1)
    assert same.low == same.high == same.mean == pytest.approx(0.9)


def test_seeds_and_levels():
    values = np.random.default_rng(0).normal(size=9)
    one, again, other = (bootstrap_interval(values, resamples=99, seed=seed) for seed in (1, 1, 2))
    assert one == again != other
    narrow, wide = (bootstrap_interval(values, level=level) for level in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.mean < narrow.high < wide.high
    before = np.random.get_state()[1].copy()  # noqa: NPY002, the ambient one
    bootstrap_interval(values)
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.parametrize(("number", "coverage"), [(3, 0.75), (5, 0.83), (10, 0.90), (20, 0.93)])
def test_coverage_is_what_the_docstring_says(number, coverage):
    """400 means of normal values. False alarm: 4 standard errors and 1 % for rounding, below 1e-4 each."""
    draws = np.random.default_rng(number).normal(size=(400, number))
    hits = [found.low <= 0 <= found.high for found in (bootstrap_interval(row, resamples=299) for row in draws)]
    assert np.mean(hits) == pytest.approx(coverage, abs=0.01 + 4 * math.sqrt(coverage * (1 - coverage) / 400))


# ---- pairs


@timeless
@given(st.lists(st.tuples(COUNTS, COUNTS), min_size=1, max_size=8))
def test_p_counts_all_sign_flips(pairs):
    a, b = [one / 20 for one, _ in pairs], [other / 20 for _, other in pairs]
    found = paired(a, b)
    assert found.p == pytest.approx(sign_flips([one - other for one, other in pairs]))
    assert found.difference == pytest.approx(sum(a) / len(a) - sum(b) / len(b))
    assert found.least_p == 2 / 2 ** len(pairs) <= max(found.p, 2 / 2 ** len(pairs))


@timeless
@given(st.lists(st.tuples(COUNTS, COUNTS), min_size=2, max_size=8), st.floats(1e-6, 1e6))
def test_other_side_and_other_unit(pairs, unit):
    a, b = (np.array(side) for side in zip(*pairs, strict=True))
    ours, theirs, scaled = paired(a, b), paired(b, a), paired(unit * a, unit * b)
    assert theirs.difference == -ours.difference
    assert theirs.p == pytest.approx(ours.p) == pytest.approx(scaled.p)
    assert scaled.difference == pytest.approx(unit * ours.difference, abs=1e-9 * unit)


def test_many_pairs_are_drawn():
    """Of 9,999 flips, against all 2**16. False alarm: 5 standard errors, below 1e-6."""
    differences = [5, -3, 2, 8, -1, 4, 6, -2, 1, 7, -4, 3, 2, -1, 5, -6]
    exact, found = sign_flips(differences), paired(differences, [0] * 16)
    assert found.p == pytest.approx(exact, abs=5 * 2 * math.sqrt(exact / 2 / 9999))
    assert found.least_p == 2 / 10_000
    clear = paired(np.arange(1, 31), np.zeros(30))
    assert clear.p == clear.least_p
    assert paired(differences, [0] * 16, seed=1).p != found.p == paired(differences, [0] * 16).p


def test_level_under_the_null():
    """No difference: at most 5 % of 600 tests say there is one. False alarm: 4 standard errors, below 1e-4."""
    draws = np.random.default_rng(0).normal(size=(600, 8))
    said = [verdict(paired(row, np.zeros(8))) for row in draws]
    assert set(said) == {"above", "below", "within noise"}
    assert sum(word != "within noise" for word in said) <= 600 * 0.05 + 4 * math.sqrt(600 * 0.05 * 0.95)


def test_pairs_make_up_for_seeds_that_differ():
    """Seeds differ by 0.1, the sides by 0.01: paired it shows."""
    draw = np.random.default_rng(0)
    base = draw.normal(0, 0.1, 10)
    found = paired(base + 0.01 + draw.normal(0, 0.001, 10), base)
    assert verdict(found) == "above"
    assert 0.008 < found.low < found.difference < found.high < 0.012


def test_few_seeds_and_ties():
    assert [verdict(paired(np.arange(1, n + 1), np.zeros(n))) for n in (1, 2, 5)] == ["too few seeds"] * 3
    assert verdict(paired(np.arange(1, 7), np.zeros(6))) == "above"
    assert verdict(paired(np.zeros(6), np.arange(1, 7))) == "below"
    same = paired([0.9] * 7, [0.9] * 7)
    assert (same.difference, same.low, same.high, same.p) == (0, 0, 0, 1)
    assert verdict(same) == "within noise"
    one = paired([0.91], [0.9])
    assert (one.low, one.high, one.p, one.least_p, one.number) == (None, None, 1.0, 1.0, 1)


def test_verdict_by_level():
    found = Paired(0.01, 0.001, 0.02, 0.04, 0.001, 11)
    assert [verdict(found, level=level) for level in (0.05, 0.04, 0.03, 0.0005)] == [
        "above",
        "above",
        "within noise",
        "too few seeds",
    ]
    # Of several claims Holm's p may be smaller than the smallest that was thought possible for one of them.
    assert verdict(Paired(0.01, 0.001, 0.02, 0.047, 0.0625, 7)) == "above"


# ---- ranks


@timeless
@given(st.lists(st.tuples(COUNTS, COUNTS), min_size=3, max_size=12))
def test_spearman(points):
    x, y = (list(side) for side in zip(*points, strict=True))
    if len(set(x)) == 1:
        assert math.isnan(spearman(x, y))
    elif len(set(y)) == 1:
        assert spearman(x, y) == 0
    else:
        assert spearman(x, y) == pytest.approx(scipy.stats.spearmanr(x, y).statistic)
        assert spearman(np.exp(x), y) == pytest.approx(-spearman(x, [-value for value in y]))
    assert math.isnan(spearman(x[:2], y[:2]))


# ---- shares


@timeless
@given(st.integers(0, 30), st.integers(0, 30), st.floats(0.5, 0.99))
def test_share_is_wilsons(hits, misses, level):
    """The bounds solve |share - p| = z sqrt(p (1 - p) / n) for p."""
    number = hits + misses
    if not number:
        return
    found, z = share(hits, number, level=level), scipy.special.ndtri((1 + level) / 2)
    assert (found.mean, found.number) == (hits / number, number)
    assert 0 <= found.low <= found.mean <= found.high <= 1
    for bound in (found.low, found.high):
        assert abs(found.mean - bound) == pytest.approx(z * math.sqrt(bound * (1 - bound) / number), abs=1e-7)


# ---- families


@pytest.mark.parametrize(
    ("given_p", "adjusted"),
    [
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),  # 3 x 0.01; 2 x 0.03; 1 x 0.04, but not below the one before
        ([0.04, 0.01, 0.03, 0.005], [0.06, 0.03, 0.06, 0.02]),
        ([0.5, 0.9], [1.0, 1.0]),
        ([0.02], [0.02]),
        ([], []),
        ([0.01, 0.01], [0.02, 0.02]),
        ([0.0, 1.0], [0.0, 1.0]),
    ],
)
def test_holm_by_hand(given_p, adjusted):
    assert holm(given_p) == pytest.approx(adjusted)


@timeless
@given(st.lists(st.floats(0, 1), max_size=8), st.floats(0.001, 0.5))
def test_holm_rejects_step_by_step(p_values, level):
    """Holm's own words: the k-th smallest of m falls if it and all smaller ones lie within level / (m - k + 1)."""
    rejected = 0
    for place, p in enumerate(sorted(p_values)):
        if p * (len(p_values) - place) > level:
            break
        rejected += 1
    adjusted = holm(p_values)
    assert sum(p <= level for p in adjusted) == rejected
    assert all(ours >= p for ours, p in zip(adjusted, p_values, strict=True))


# ---- what cannot be used


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: bootstrap_interval([]), r"values has shape \(0,\): must be a list"),
        (lambda: bootstrap_interval([[1.0, 2.0]]), "must be a list of one number or more"),
        (lambda: bootstrap_interval([0.9, math.nan]), "values holds nan: must be finite"),
        (lambda: bootstrap_interval([0.9, 0.8], level=1.0), r"level = 1.0: must lie in \(0, 1\)"),
        (lambda: paired([0.9], [0.9, 0.8]), "a has 1 values, b 2: must be as many"),
        (lambda: paired([], []), "a has shape"),
        (lambda: paired([0.9], [math.inf]), "b holds inf"),
        (lambda: verdict(paired([1], [0]), level=0.0), "level = 0.0"),
        (lambda: share(3, 2), "hits = 3, number = 2"),
        (lambda: share(0, 0), "hits = 0, number = 0"),
        (lambda: share(-1, 2), "hits = -1"),
        (lambda: share(1, 2, level=2), "level = 2"),
        (lambda: holm([0.5, 1.5]), r"p = 1.5: must lie in \[0, 1\]"),
        (lambda: holm([math.nan]), "p = nan"),
        (lambda: holm(["much"]), "p = 'much': must be a number"),
    ],
)
def test_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()
