"""Erdos-Renyi-kernel densities: exact totals, a slow reference, numbers by hand, what is refused."""

import itertools
import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from randprune_lab.checks import keep_count
from randprune_lab.densities import erk

steady = settings(derandomize=True, deadline=None, max_examples=100)
LENET = {"0.weight": (300, 784), "2.weight": (100, 300), "4.weight": (10, 100)}
shapes_of_networks = st.lists(st.lists(st.integers(1, 9), min_size=2, max_size=4), min_size=1, max_size=6).map(
    lambda shapes: {f"{at}.weight": shape for at, shape in enumerate(shapes)}
)


def kept(shapes, sparsity):
    return {name: keep_count(math.prod(shapes[name]), share) for name, share in erk(shapes, sparsity).items()}


def bought_one_by_one(shapes, keep):
    """Every tensor gets a weight; then the next goes to where share / (2k + 1) is largest, until none is left."""
    counts = dict.fromkeys(shapes, 1)
    for _ in range(keep - len(shapes)):
        open_ = [name for name in shapes if counts[name] < math.prod(shapes[name])]
        counts[max(open_, key=lambda name: Fraction(sum(shapes[name]), 2 * counts[name] + 1))] += 1
    return counts


@steady
@given(shapes_of_networks, st.floats(0, 0.999))
def test_the_total_is_exact_and_shared_in_proportion(shapes, sparsity):
    total = sum(map(math.prod, shapes.values()))
    keep = total - round(sparsity * total)
    if keep < len(shapes):
        return
    counts = kept(shapes, sparsity)
    assert sum(counts.values()) == keep
    assert all(1 <= counts[name] <= math.prod(shape) for name, shape in shapes.items())
    assert counts == bought_one_by_one(shapes, keep)


@steady
@given(shapes_of_networks, st.floats(0, 0.99), st.floats(0, 0.99))
def test_no_tensor_keeps_more_at_a_higher_sparsity(shapes, one, other):
    total = sum(map(math.prod, shapes.values()))
    low, high = sorted((one, other))
    if keep_count(total, high) < len(shapes):
        return
    before, after = kept(shapes, low), kept(shapes, high)
    assert all(after[name] <= before[name] for name in shapes)


def test_the_alabama_paradox_does_not_happen():
    """Shares of 12, 12 and 4: largest remainders would give 4, 4, 2 of 10 weights, and 5, 5, 1 of 11."""
    shapes = {"a": (6, 6), "b": (6, 6), "c": (2, 2)}
    by_total = [kept(shapes, (76 - keep) / 76) for keep in range(3, 77)]
    assert [sum(counts.values()) for counts in by_total] == list(range(3, 77))
    for fewer, more in itertools.pairwise(by_total):
        assert all(more[name] >= fewer[name] for name in shapes)


def test_lenet_by_hand():
    """2,662 of 266,200 weights for shares of 1,084, 400 and 110: 1,810.3, 668.0 and 183.7."""
    assert kept(LENET, 0.99) == {"0.weight": 1810, "2.weight": 668, "4.weight": 184}
    shares = erk(LENET, 0.99)
    assert shares["0.weight"] == pytest.approx(1 - 1810 / 235_200)
    assert (1 - shares["4.weight"]) / (1 - shares["0.weight"]) == pytest.approx(
        (110 / 1000) / (1084 / 235_200), rel=3e-3
    )


def test_kernels_count():
    """A 3 x 3 kernel: (16 + 16 + 3 + 3) / (16 * 16 * 9), and not (16 + 16) / (16 * 16)."""
    shapes = {"conv": (16, 16, 3, 3), "fc": (40, 40)}
    counts = kept(shapes, 0.9)
    assert counts["conv"] / counts["fc"] == pytest.approx(38 / 80, rel=0.02)


def test_what_would_be_more_than_dense_is_dense():
    """390 weights of 1,000 + 10 + 4: the shares 110, 7 and 4 want 354.5, 22.6 and 12.9; dense are the last two."""
    shapes = {"big": (10, 100), "narrow": (2, 5), "tiny": (2, 2)}
    sparsity = 1 - 390 / 1014
    assert kept(shapes, sparsity) == {"big": 376, "narrow": 10, "tiny": 4}
    assert erk(shapes, sparsity)["narrow"] == 0.0


def test_making_one_dense_makes_the_next_dense():
    """80 of 88 weights: 56, 12, 12 are wanted of 72, 8, 8; then 64 are left for the first."""
    shapes = {"big": (8, 9), "b": (2, 4), "c": (4, 2)}
    assert kept(shapes, 1 - 80 / 88) == {"big": 64, "b": 8, "c": 8}
    assert set(erk(shapes, 0.0).values()) == {0.0}


def test_every_tensor_keeps_a_weight():
    shapes = {"big": (1000, 1000), "small": (2, 2), "point": (1, 1)}
    assert kept(shapes, 1 - 4 / 1_000_005) == {"big": 2, "small": 1, "point": 1}


def test_a_large_network():
    """BERT-base's matrices: 73 tensors, 85 M weights, in whole numbers throughout."""
    shapes = (
        {f"{at}": (768, 768) for at in range(48)} | {f"up{at}": (3072, 768) for at in range(24)} | {"p": (768, 768)}
    )
    total = sum(map(math.prod, shapes.values()))
    for sparsity in (0.5, 0.9375, 0.999):
        assert sum(kept(shapes, sparsity).values()) == keep_count(total, sparsity)


@pytest.mark.parametrize(
    ("shapes", "sparsity", "words"),
    [
        ({}, 0.5, "shapes: none: must be tensors with weights"),
        ({"a": (3, 0)}, 0.5, r"shapes: \['a'\]"),
        (LENET, 1.0, r"must lie in \[0, 1\)"),
        (LENET, -0.1, r"must lie in \[0, 1\)"),
        (LENET, "much", "must be a number"),
        (LENET, 1 - 2 / 266_200, "keeps 2 weights, and each of 3 tensors must keep 1"),
    ],
)
def test_bad_input(shapes, sparsity, words):
    with pytest.raises(ValueError, match=words):
        erk(shapes, sparsity)
