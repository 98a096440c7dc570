"""Four ways to the same randomized mask must agree: fast draws, exact draws, the closed form, and the slow reference.

False alarms: seeds are fixed, so a run that passes passes always; the rate below is that of a change which merely
redraws. A difference of two means beyond 4.5 standard errors has a probability of 7e-6 if normal, and up to 1e-4 with
the t tails of a cell at 30 draws. CELLS x 6 pairs are some 400 comparisons: at most one redraw in 25 to 350 would fail,
fewer in truth, because the tolerance is never below 1 %.
"""

import functools
import itertools

import numpy as np
import pytest
import scipy
import torch
from support import reference
from support.grids import thinned

from randprune_lab import introduced_randomness, magnitude_mask, mask_sampler, sampling
from randprune_lab.keepcurve import TIES, KeepCurve

pytestmark = pytest.mark.usefixtures("one_thread")
SIZE = 30_000
STANDARD_ERRORS = 4.5
LAWS = ("normal", "laplace", "student", "uniform", "lognormal", "pruned", "bf16")

# (law, sparsity, power, reach, samples, ties): every pair of two levels of two different columns occurs at least once.
CELLS = [
    ("normal", 0.5, 2.0, None, 32, "random"),
    ("normal", 0.75, 5.0, None, 2, "random"),
    ("normal", 0.9, 2.0, 1.2, 4, "magnitude"),
    ("normal", 0.9375, 8.0, 1.2, 6, "random"),
    ("normal", 0.99, 1.0, 1.2, 1, "magnitude"),
    ("normal", 0.99, 1.0, 2.0, 128, "random"),
    ("normal", 0.99, 2.0, 1.2, 64, "magnitude"),
    ("normal", 0.99, 8.0, 4.0, 16, "magnitude"),
    ("laplace", 0.5, 2.0, 2.0, 2, "magnitude"),
    ("laplace", 0.5, 2.0, None, 64, "random"),
    ("laplace", 0.75, 2.0, 2.0, 1, "magnitude"),
    ("laplace", 0.9, 8.0, 1.2, 6, "magnitude"),
    ("laplace", 0.9375, 1.0, 1.2, 16, "random"),
    ("laplace", 0.9375, 8.0, None, 4, "magnitude"),
    ("laplace", 0.99, 1.0, 1.2, 128, "magnitude"),
    ("laplace", 0.99, 5.0, 4.0, 32, "magnitude"),
    ("student", 0.5, 8.0, None, 16, "random"),
    ("student", 0.75, 8.0, None, 4, "random"),
    ("student", 0.9, 5.0, 2.0, 6, "random"),
    ("student", 0.9375, 2.0, None, 2, "random"),
    ("student", 0.99, 1.0, 1.2, 1, "random"),
    ("student", 0.99, 2.0, 4.0, 64, "magnitude"),
    ("student", 0.99, 5.0, 1.2, 32, "magnitude"),
    ("student", 0.99, 8.0, 2.0, 128, "random"),
    ("uniform", 0.5, 1.0, None, 1, "magnitude"),
    ("uniform", 0.75, 8.0, 1.2, 32, "magnitude"),
    ("uniform", 0.9, 5.0, 2.0, 16, "magnitude"),
    ("uniform", 0.9375, 8.0, 2.0, 4, "random"),
    ("uniform", 0.99, 2.0, 4.0, 128, "magnitude"),
    ("uniform", 0.99, 5.0, 1.2, 64, "magnitude"),
    ("uniform", 0.99, 8.0, 1.2, 2, "random"),
    ("uniform", 0.99, 8.0, 2.0, 6, "magnitude"),
    ("lognormal", 0.5, 8.0, 1.2, 1, "magnitude"),
    ("lognormal", 0.75, 2.0, 1.2, 16, "random"),
    ("lognormal", 0.9, 1.0, 4.0, 2, "random"),
    ("lognormal", 0.9, 2.0, 1.2, 32, "random"),
    ("lognormal", 0.9375, 5.0, 2.0, 128, "magnitude"),
    ("lognormal", 0.9375, 8.0, 2.0, 64, "random"),
    ("lognormal", 0.99, 5.0, 1.2, 4, "magnitude"),
    ("lognormal", 0.99, 5.0, None, 6, "magnitude"),
    ("pruned", 0.5, 2.0, None, 6, "random"),
    ("pruned", 0.5, 2.0, None, 128, "random"),
    ("pruned", 0.5, 8.0, 1.2, 2, "random"),
    ("pruned", 0.75, 1.0, None, 4, "magnitude"),
    ("pruned", 0.75, 5.0, None, 128, "magnitude"),
    ("pruned", 0.9, 1.0, 1.2, 64, "random"),
    ("pruned", 0.9, 8.0, 1.2, 128, "random"),
    ("pruned", 0.9375, 5.0, 4.0, 1, "magnitude"),
    ("pruned", 0.99, 1.0, 2.0, 32, "magnitude"),
    ("pruned", 0.99, 8.0, 1.2, 16, "random"),
    ("bf16", 0.5, 5.0, 4.0, 4, "magnitude"),
    ("bf16", 0.75, 1.0, 4.0, 6, "random"),
    ("bf16", 0.75, 2.0, 1.2, 64, "random"),
    ("bf16", 0.9, 8.0, None, 1, "random"),
    ("bf16", 0.9375, 2.0, 1.2, 32, "random"),
    ("bf16", 0.99, 2.0, 2.0, 2, "magnitude"),
    ("bf16", 0.99, 5.0, 1.2, 16, "magnitude"),
    ("bf16", 0.99, 5.0, 1.2, 128, "random"),
]
FEW_CELLS = thinned(CELLS, 1, tuples=False)
FULL_GRID = [
    cell
    for cell in itertools.product(
        LAWS, (0.5, 0.9, 0.99), (1.0, 5.0, 8.0), (1.2, None), (1, 4, 16), ("random", "magnitude")
    )
    if cell not in CELLS
]


# Few weights swap here: more draws, lest the tolerance be wide.
FEW_SWAPS = [
    ("laplace", 0.99, 1.0, 1.2, 128, "magnitude"),
    ("laplace", 0.99, 5.0, 4.0, 32, "magnitude"),
    ("uniform", 0.99, 8.0, 2.0, 6, "magnitude"),
    ("bf16", 0.99, 2.0, 2.0, 2, "magnitude"),
]


def weights(law, size=SIZE, seed=7):
    rng = np.random.default_rng(seed)
    match law:
        case "normal" | "pruned" | "bf16":
            values = rng.standard_normal(size)
        case "laplace":
            values = rng.laplace(size=size)
        case "student":
            values = rng.standard_t(3, size)
        case "uniform":
            values = rng.uniform(-1, 1, size)
        case "lognormal":
            values = rng.lognormal(size=size) * rng.choice([-1.0, 1.0], size)
    if law == "pruned":  # the stage before removed 45 % of them: the small ones, or nearly
        values[np.argsort(np.abs(values) * rng.uniform(0.8, 1.25, size))[: int(0.45 * size)]] = 0.0
    return torch.from_numpy(values).to(torch.bfloat16 if law == "bf16" else torch.float32)


def draws_for(sparsity, reach, samples, size=SIZE):
    """At least 30 draws, more where they are cheap: about a second a cell."""
    support = size if reach is None else min(size, reach * (1 - sparsity) * size)
    return int(np.clip(0.6 / (5e-3 * samples * support / 60_000 + 4e-3), 30, 150))


def random_masks(weight, sparsity, power, reach, samples, ties, draws):
    """Draws by the two samplers and by the reference: name -> bool array of shape (draws, size)."""
    masks = {}
    for number, method in enumerate(sampling.SAMPLERS):
        generator = torch.Generator().manual_seed(1000 + number)
        draw = sampling.mask_sampler(
            weight, sparsity, samples=samples, power=power, reach=reach, method=method, ties=ties
        )
        masks[method] = np.stack([draw(generator).numpy() for _ in range(draws)])
    rng = np.random.default_rng(3000)
    flat = weight.double().numpy()
    masks["reference"] = np.stack(
        [
            reference.ensemble_mask(flat, sparsity, samples=samples, power=power, reach=reach, ties=ties, rng=rng)
            for _ in range(draws)
        ]
    )
    return masks


def mean_and_error(values):
    return values.mean(axis=0), values.std(axis=0, ddof=1) / np.sqrt(len(values))


@functools.cache
def mean_irs(cell):
    """Name -> (mean, standard error); cached, because two tests look at each cell."""
    law, sparsity, power, reach, samples, ties = cell
    weight = weights(law)
    draws = 400 if cell in FEW_SWAPS else draws_for(sparsity, reach, samples)
    magnitude = reference.deterministic_mask(weight.double().numpy(), sparsity)
    return {
        name: mean_and_error(np.array([reference.introduced_randomness(mask, magnitude) for mask in masks]))
        for name, masks in random_masks(weight, sparsity, power, reach, samples, ties, draws).items()
    }


def check_draws(cell):
    found = mean_irs(cell)
    for one, two in itertools.combinations(found, 2):
        (mean, error), (other, other_error) = found[one], found[two]
        allowed = max(STANDARD_ERRORS * np.hypot(error, other_error), 0.01 * max(mean, other))
        assert abs(mean - other) <= allowed, f"{one} {mean:.6g}, {two} {other:.6g}, allowed {allowed:.2g}"


def check_closed_form(cell):
    law, sparsity, power, reach, samples, ties = cell
    expected = KeepCurve.of(weights(law), sparsity, samples=samples, power=power, reach=reach, ties=ties).expected_ir
    for name, (mean, error) in mean_irs(cell).items():
        allowed = max(STANDARD_ERRORS * error, 0.01 * expected)
        assert abs(mean - expected) <= allowed, f"{name} {mean:.6g}, closed form {expected:.6g}, allowed {allowed:.2g}"


@pytest.mark.parametrize("cell", FEW_CELLS, ids=str)
def test_mean_ir_of_draws(cell):
    check_draws(cell)


@pytest.mark.parametrize("cell", FEW_CELLS, ids=str)
def test_mean_ir_of_the_closed_form(cell):
    check_closed_form(cell)


@pytest.mark.slow
@pytest.mark.parametrize("cell", FULL_GRID, ids=str)
def test_mean_ir_of_draws_full_grid(cell):
    check_draws(cell)


@pytest.mark.slow
@pytest.mark.parametrize("cell", FULL_GRID, ids=str)
def test_mean_ir_of_the_closed_form_full_grid(cell):
    check_closed_form(cell)


def test_the_cells_pair_every_two_levels():
    levels = [set(column) for column in zip(*CELLS, strict=True)]
    for one, two in itertools.combinations(range(6), 2):
        assert {(cell[one], cell[two]) for cell in CELLS} == set(itertools.product(levels[one], levels[two]))


def groups_around_threshold(flat, sparsity, reach):
    """Some 20 groups of indices by magnitude: ever wider with their distance in rank from the threshold.

    Equal magnitudes are never parted: the curve gives one chance to all of them, also where the reach ends among them.
    """
    living = reference.support_of(flat, sparsity, None)
    keep = reference.keep_of(flat.size, sparsity)
    end = len(living) if reach is None else round(reach * keep)
    steps = keep * np.array([0.01, 0.03, 0.06, 0.1, 0.15, 0.2, 0.3, 0.45, 0.7])
    edges = np.concatenate([[0], keep - steps, [keep], keep + steps, [2 * keep, 2.5 * keep, end]]).astype(int)
    falling = -np.abs(flat[living])
    edges = np.unique(np.searchsorted(falling, falling[np.unique(edges[edges <= end]).clip(1) - 1], side="right"))
    return [living[low:high] for low, high in itertools.pairwise([0, *edges])]


FREQUENCY_CELLS = [
    ("normal", 0.9375, 5.0, 2.0, 6, "random"),
    ("normal", 0.9375, 5.0, 2.0, 6, "magnitude"),
    ("student", 0.9, 2.0, None, 4, "random"),
    ("lognormal", 0.9, 1.0, 2.0, 8, "magnitude"),
    ("lognormal", 0.99, 1.0, 4.0, 16, "random"),
    ("lognormal", 0.99, 1.0, 4.0, 16, "magnitude"),
    ("bf16", 0.83, 5.0, 2.0, 4, "magnitude"),
    ("bf16", 0.83, 5.0, 1.2, 8, "random"),
    ("uniform", 0.75, 8.0, None, 1, "random"),
    ("pruned", 0.75, 3.0, None, 3, "magnitude"),
]


@functools.cache
def frequencies(cell):
    """Of each group: its share kept, name -> (mean, standard error), and the same from the curve."""
    law, sparsity, power, reach, samples, ties = cell
    weight = weights(law, 20_000)
    flat = weight.double().numpy()
    groups = groups_around_threshold(flat, sparsity, reach)
    # The group's share in one draw is one observation: weights within a draw are not independent.
    found = {
        name: mean_and_error(np.stack([masks[:, group].mean(axis=1) for group in groups], axis=1))
        for name, masks in random_masks(weight, sparsity, power, reach, samples, ties, 100).items()
    }
    curve = KeepCurve.of(weight, sparsity, samples=samples, power=power, reach=reach, ties=ties)
    chance = curve.keep_probability(flat)
    return found, np.array([chance[group].mean() for group in groups])


@pytest.mark.parametrize("cell", thinned(FREQUENCY_CELLS, 0, tuples=False), ids=str)
def test_keep_frequencies_of_draws(cell):
    """False alarms: 10 cells x 20 groups x 3 pairs at 1e-5 (the t tails of 100 draws): one redraw in 160."""
    found, _ = frequencies(cell)
    for one, two in itertools.combinations(found, 2):
        (mean, error), (other, other_error) = found[one], found[two]
        allowed = np.maximum(STANDARD_ERRORS * np.hypot(error, other_error), 0.01)
        np.testing.assert_array_less(np.abs(mean - other), allowed, err_msg=f"{one} against {two}")


@pytest.mark.parametrize("cell", thinned(FREQUENCY_CELLS, 0, tuples=False), ids=str)
def test_keep_frequencies_of_the_closed_form(cell):
    """False alarms as above: 10 cells x 20 groups x 3 comparisons."""
    found, expected = frequencies(cell)
    assert len(expected) >= 10
    assert expected.max() - expected.min() > 0.3  # the groups do see the curve
    for name, (mean, error) in found.items():
        allowed = np.maximum(STANDARD_ERRORS * error, 0.01)
        np.testing.assert_array_less(np.abs(mean - expected), allowed, err_msg=f"{name} against the closed form")


SPREAD_CELLS = [
    ("normal", 0.9375, 5.0, 2.0, 6, "random"),
    ("normal", 0.9375, 5.0, 2.0, 6, "magnitude"),
    ("normal", 0.9375, 5.0, 2.0, 5, "magnitude"),
    ("student", 0.9, 2.0, 4.0, 1, "random"),
    ("laplace", 0.99, 3.0, 2.0, 32, "random"),
    ("laplace", 0.99, 3.0, 2.0, 32, "magnitude"),
    ("uniform", 0.9375, 8.0, 1.2, 16, "random"),
    ("bf16", 0.9375, 5.0, 1.2, 16, "magnitude"),
    ("lognormal", 0.9, 1.0, 1.2, 4, "magnitude"),
]


@pytest.mark.parametrize("cell", thinned(SPREAD_CELLS, 0, tuples=False), ids=str)
def test_variance_of_the_number_swapped(cell):
    """A sampler may have the right mean and the wrong spread. The log of a variance of N draws has a standard error of
    sqrt(2 / (N - 1)); 9 cells x 3 pairs at 7e-6: one redraw in 5,000 fails."""
    law, sparsity, power, reach, samples, ties = cell
    draws = 400
    weight = weights(law, 20_000)
    magnitude = reference.deterministic_mask(weight.double().numpy(), sparsity)
    swapped = {
        name: (masks & ~magnitude).sum(axis=1)
        for name, masks in random_masks(weight, sparsity, power, reach, samples, ties, draws).items()
    }
    error = np.sqrt(2 * 2 / (draws - 1))
    for one, two in itertools.combinations(swapped, 2):
        ratio = swapped[one].var(ddof=1) / swapped[two].var(ddof=1)
        assert abs(np.log(ratio)) <= STANDARD_ERRORS * error, f"variance of {one} is {ratio:.3f} times that of {two}"


@pytest.mark.parametrize("ties", ["random", "magnitude"])
@pytest.mark.parametrize(("samples", "reach"), [(1, None), (3, 1.5), (2, None)])
def test_reference_agrees_with_one_by_one_draws(ties, samples, reach):
    """The smallest E / p are drawn like one after another: all masks of a tiny tensor, counted (chi-square, p > 1e-6;
    6 cases: one redraw in 170,000 fails). The exact sampler is held to the same counts."""
    flat = np.array([0.9, -1.4, 0.3, 0.0, 1.0, -1.0, 2.0, 0.5])
    generator, size = torch.Generator().manual_seed(5), 2_500
    draw = sampling.mask_sampler(torch.from_numpy(flat), 0.5, samples=samples, power=2.0, reach=reach, ties=ties)
    tables = [[tuple(draw(generator).tolist()) for _ in range(size)]]
    for seed, one_draw in ((1, reference.draw_once), (2, reference.draw_one_by_one)):
        options = {"samples": samples, "power": 2.0, "reach": reach, "ties": ties, "draw": one_draw}
        rng = np.random.default_rng(seed)
        tables.append([tuple(reference.ensemble_mask(flat, 0.5, rng=rng, **options).tolist()) for _ in range(size)])
    masks = sorted(set(itertools.chain(*tables)))
    counts = np.array([[table.count(mask) for mask in masks] for table in tables])
    rare = counts.sum(axis=0) < 30
    counts = np.column_stack([counts[:, ~rare], counts[:, rare].sum(axis=1)])
    counts = counts[:, counts.sum(axis=0) > 0]
    assert counts.shape[1] >= 5
    for one, two in itertools.combinations(range(3), 2):
        pair = counts[[one, two]]
        assert scipy.stats.chi2_contingency(pair[:, pair.sum(axis=0) > 0]).pvalue > 1e-6


@pytest.mark.parametrize(
    ("values", "samples", "ties"),
    thinned(list(itertools.product([(0.1, 0.2, 0.3, 0.4, 0.5), (0.1, 0.11, 0.12, 0.14)], [1, 4, 16], TIES)), 1),
    ids=str,
)
def test_few_distinct_magnitudes(values, samples, ties):
    """Most of a tensor tied at the threshold: there the index decides which of the equals are kept, and q with it.

    False alarms: 12 cells x 3 pairs at 7e-6.
    """
    sparsity = 0.7 if len(values) == 5 else 0.9375
    weight = torch.tensor(values).repeat(20_000 // len(values))
    plain = magnitude_mask(weight, sparsity)
    seed = torch.Generator().manual_seed(0)
    found = {}
    for method, draws in (("fast", 120), ("exact", 60)):
        draw = mask_sampler(weight, sparsity, samples=samples, method=method, ties=ties)
        found[method] = mean_and_error(np.array([introduced_randomness(draw(seed), plain) for _ in range(draws)]))
    expected = KeepCurve.of(weight, sparsity, samples=samples, ties=ties).expected_ir
    (fast, fast_error), (exact, exact_error) = found.values()
    assert abs(fast - exact) <= max(STANDARD_ERRORS * np.hypot(fast_error, exact_error), 0.01 * exact)
    assert abs(expected - exact) <= max(STANDARD_ERRORS * exact_error, 0.01 * exact)
    assert abs(expected - fast) <= max(STANDARD_ERRORS * fast_error, 0.01 * fast)
