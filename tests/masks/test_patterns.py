"""Groups and blocks: exact counts, a slow reference, the law of the random masks by enumeration, what is refused."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from randprune_lab import patterns
from randprune_lab.keepcurve import TIES
from randprune_lab.patterns import (
    Pattern,
    check_pattern,
    check_stages_fit,
    check_tensor,
    kept_weights,
    pattern_mask,
    pattern_sampler,
)
from randprune_lab.sampling import SAMPLERS

steady = settings(derandomize=True, deadline=None, max_examples=60)
FALSE_ALARM = 1e-6  # of each statistical test, were its seed not fixed
TWO_FOUR, BLOCKS = Pattern.of("2:4"), Pattern.of("4x2")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed))


# --- the slow reference: places of a weight, group by group and block by block


def group_places(shape, size):
    """The index tuples of each group: neighbours along the inputs, at one output and one place of the kernel."""
    for output, *place in itertools.product(range(shape[0]), *map(range, shape[2:])):
        for start in range(0, shape[1], size):
            yield [(output, start + i, *place) for i in range(size)]


def block_places(shape, rows, width):
    """The index tuples of each block of the matrix outputs x (places of the kernel, then inputs)."""
    columns = [(channel, *place) for *place, channel in itertools.product(*map(range, shape[2:]), range(shape[1]))]
    for top in range(0, shape[0], rows):
        for left in range(0, len(columns), width):
            yield [(top + i, *columns[left + j]) for i in range(rows) for j in range(width)]


def slow_mask(weight, sparsity, pattern, alive):
    """The deterministic mask by its definition, in Python."""
    values, mask = weight.double().abs().numpy(), np.zeros(weight.shape, dtype=bool)
    alive = alive.numpy()
    if pattern.groups:
        size = pattern.groups[1]
        for places in group_places(weight.shape, size):
            living = [place for place in places if alive[place]]
            for place in sorted(living, key=lambda place: -values[place])[: round((1 - sparsity) * size)]:
                mask[place] = True
        return mask
    blocks = list(block_places(weight.shape, *pattern.block))
    score = [sum(values[place] for place in places if alive[place]) for places in blocks]
    living = [at for at, places in enumerate(blocks) if any(alive[place] for place in places)]
    for at in sorted(living, key=lambda at: -score[at])[: len(blocks) - round(sparsity * len(blocks))]:
        for place in blocks[at]:
            mask[place] = alive[place]
    return mask


@st.composite
def groups(draw):
    """A weight with many equal magnitudes, a pattern of groups, how many each keeps, and what is alive."""
    size = draw(st.integers(2, 7))
    left = draw(st.integers(1, size))
    kernel = draw(st.sampled_from([(), (3,), (2, 3)]))
    shape = (draw(st.integers(1, 4)), size * draw(st.integers(1, 3)), *kernel)
    seed = draw(st.integers(0, 99))
    weight = torch.randint(-3, 4, shape, generator=seeded(seed)).float()
    ranks = torch.rand(shape, generator=seeded(seed + 100)).movedim(1, -1).reshape(-1, size).argsort(1).argsort(1)
    alive = (ranks < draw(st.integers(left, size))).view(shape[0], *kernel, shape[1]).movedim(-1, 1)
    return weight, Pattern(groups=(1, size)), left, alive


@steady
@given(
    groups(), st.integers(1, 3), st.none() | st.floats(1, 3), st.sampled_from(TIES), st.sampled_from([0.0, 0.5, 5.0])
)
def test_every_group_keeps_exactly_its_share(case, samples, reach, ties, power):
    weight, pattern, left, alive = case
    size = pattern.groups[1]
    sparsity = 1 - left / size
    plain = pattern_mask(weight, sparsity, pattern, alive=alive)
    np.testing.assert_array_equal(plain.numpy(), slow_mask(weight, sparsity, pattern, alive))
    draw = pattern_sampler(weight, sparsity, pattern, samples=samples, power=power, reach=reach, ties=ties, alive=alive)
    mask = draw(seeded(1))
    assert mask.shape == weight.shape
    assert mask.dtype == torch.bool
    assert mask.is_contiguous()
    assert not (mask & ~alive).any()
    for places in group_places(weight.shape, size):
        assert sum(bool(mask[place]) for place in places) == left
    assert int(mask.sum()) == int(plain.sum()) == kept_weights("w", weight.shape, sparsity, pattern)
    if reach == 1:
        assert torch.equal(mask, plain)


@steady
@given(
    st.sampled_from([(8, 6), (4, 2, 3, 3), (8, 3, 2), (4, 4, 1, 1)]),
    st.sampled_from(["4x2", "2x3", "1x2", "4x1", "2x6"]),
    st.floats(0, 0.9),
    st.integers(0, 99),
    st.sampled_from(SAMPLERS),
)
def test_blocks_are_kept_whole(shape, text, sparsity, seed, method):
    pattern = Pattern.of(text)
    rows, width = pattern.block
    columns = int(np.prod(shape[1:]))
    if shape[0] % rows or columns % width or shape[0] * columns // (rows * width) < 2:
        return
    weight = torch.randint(-3, 4, shape, generator=seeded(seed)).float()
    blocks = list(block_places(shape, rows, width))
    keep = len(blocks) - round(sparsity * len(blocks))
    if keep == 0:
        return
    everything = torch.ones(shape, dtype=torch.bool)
    plain = pattern_mask(weight, sparsity, pattern)
    np.testing.assert_array_equal(plain.numpy(), slow_mask(weight, sparsity, pattern, everything))
    draw = pattern_sampler(weight, sparsity, pattern, samples=2, method=method, alive=everything)
    for mask in (plain, draw(seeded(seed))):
        inside = [sum(bool(mask[place]) for place in places) for places in blocks]
        assert Counter(inside) == {count: n for count, n in ((rows * width, keep), (0, len(blocks) - keep)) if n}
        assert int(mask.sum()) == kept_weights("w", shape, sparsity, pattern)


@pytest.mark.parametrize("method", SAMPLERS)
def test_a_block_lives_as_long_as_one_of_its_weights(method):
    weight = normal(64, 128)
    living = torch.rand(64 * 128 // 8, 1, generator=seeded(2)) < 0.6  # blocks
    alive = patterns._as_weight((living & (torch.rand(64 * 128 // 8, 8, generator=seeded(3)) < 0.7)), (64, 128), BLOCKS)
    masks = [
        pattern_mask(weight, 0.75, BLOCKS, alive=alive),
        pattern_sampler(weight, 0.75, BLOCKS, samples=2, method=method, alive=alive)(seeded()),
    ]
    np.testing.assert_array_equal(masks[0].numpy(), slow_mask(weight, 0.75, BLOCKS, alive))
    assert not torch.equal(*masks)
    for mask in masks:
        inside = [sum(bool(mask[place]) for place in places) for places in block_places((64, 128), 4, 2)]
        exists = [sum(bool(alive[place]) for place in places) for places in block_places((64, 128), 4, 2)]
        assert all(n in (0, living) for n, living in zip(inside, exists, strict=True))
        assert sum(n > 0 for n in inside) == 256


def test_equal_magnitudes_go_by_index():
    ones = torch.ones(2, 8)
    assert pattern_mask(ones, 0.5, TWO_FOUR).tolist() == [[True, True, False, False] * 2] * 2
    zeros = torch.zeros(4, 4)  # all exist for the deterministic mask
    assert pattern_mask(zeros, 0.5, BLOCKS).tolist() == [[True, True, False, False]] * 4
    assert pattern_mask(zeros, 0.5, TWO_FOUR).tolist() == [[True, True, False, False]] * 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("pattern", [TWO_FOUR, BLOCKS], ids=str)
def test_every_dtype(dtype, pattern):
    weight = normal(16, 8).to(dtype)
    everything = torch.ones(16, 8, dtype=torch.bool)
    np.testing.assert_array_equal(
        pattern_mask(weight, 0.5, pattern).numpy(), slow_mask(weight, 0.5, pattern, everything)
    )
    assert int(pattern_sampler(weight, 0.5, pattern, samples=3)(seeded()).sum()) == 64


def test_neighbours_are_input_channels():
    """At one place of the kernel; as the memory has it, the neighbours of a channel are the kernel's own places."""
    weight = normal(5, 8, 3, 3)
    mask = pattern_mask(weight, 0.5, TWO_FOUR)
    for start in (0, 4):
        assert (mask[:, start : start + 4].sum(1) == 2).all()
    assert not (mask.view(5, -1, 4).sum(2) == 2).all()


# --- the law


def subset_chances(p, keep):
    """Chance of each set of ``keep`` to be drawn without replacement, by the definition: one after another."""
    chances = Counter()
    for ordered in itertools.permutations(range(len(p)), keep):
        chance, rest = 1.0, sum(p)
        for place in ordered:
            chance *= p[place] / rest
            rest -= p[place]
        chances[frozenset(ordered)] += chance
    return chances


def ensemble_chances(p, keep, samples, ties):
    """Chance of each ensemble mask: all sequences of ``samples`` draws. Largest p first, so that places are ranks."""
    single = {drawn: chance for drawn, chance in subset_chances(p, keep).items() if chance > 0}
    chances = Counter()
    for draws in itertools.product(single, repeat=samples):
        chance = np.prod([single[drawn] for drawn in draws])
        counts = [sum(place in drawn for drawn in draws) for place in range(len(p))]
        cut = sorted(counts, reverse=True)[keep - 1]
        sure = {place for place, count in enumerate(counts) if count > cut}
        tied = [place for place, count in enumerate(counts) if count == cut and p[place] > 0]
        ways = list(itertools.combinations(tied, keep - len(sure)))
        for way in ways if ties == "random" else ways[:1]:
            chances[frozenset(sure.union(way))] += chance / (len(ways) if ties == "random" else 1)
    return chances


def check_law(weights, *, keep=2, samples=1, power=2.0, ties="random", reach=None, alive=None, many=20_000):
    """Many groups of the same weights: how often each set of them was kept, against enumeration (chi-square)."""
    weights = torch.tensor(weights)
    size = len(weights)
    living = torch.ones(size, dtype=torch.bool) if alive is None else torch.tensor(alive)
    draw = pattern_sampler(
        weights.repeat(many // 5, 5),
        1 - keep / size,
        Pattern(groups=(1, size)),
        samples=samples,
        power=power,
        ties=ties,
        reach=reach,
        alive=living.repeat(many // 5, 5),
    )
    ranks = sorted(range(size), key=lambda place: (not living[place], -abs(float(weights[place]))))
    drawable = int(living.sum()) if reach is None else min(int(living.sum()), round(reach * keep))
    p = [abs(float(weights[place])) ** power if rank < drawable else 0.0 for rank, place in enumerate(ranks)]
    expected = ensemble_chances(p, keep, samples, ties)
    rows = draw(seeded(7)).view(-1, size)[:, ranks].tolist()
    observed = Counter(frozenset(rank for rank in range(size) if row[rank]) for row in rows)
    assert set(observed) <= set(expected)
    assert sum(expected.values()) == pytest.approx(1)
    assert min(expected.values()) * many >= 5  # else chi-square is no good approximation
    found = stats.chisquare([observed[kept] for kept in expected], [many * chance for chance in expected.values()])
    assert found.pvalue > FALSE_ALARM


WEIGHTS = [0.5, -1.5, 1.0, 0.8]


@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("samples", [1, 2, 3, 4])
def test_groups_follow_the_enumerated_law(samples, ties):
    check_law(WEIGHTS, samples=samples, ties=ties)


def test_a_wrong_law_would_be_seen():
    """A T of 2.2 for 2, or 3 samples for 4: chi-square would be above 100, and the test's limit is 36."""
    p, wrong = ([abs(weight) ** power for weight in sorted(WEIGHTS, key=abs)[::-1]] for power in (2.0, 2.2))
    truth = ensemble_chances(p, 2, 4, "random")
    for other in (ensemble_chances(wrong, 2, 4, "random"), ensemble_chances(p, 2, 3, "random")):
        assert 20_000 * sum((truth[kept] - chance) ** 2 / chance for kept, chance in other.items()) > 100
    assert stats.chi2.isf(FALSE_ALARM, len(truth) - 1) < 36


@pytest.mark.parametrize(
    "case",
    [
        {"reach": 1.5},
        {"reach": 1.5, "samples": 3, "ties": "magnitude"},
        {"reach": 9.0, "power": 0.5},
        {"power": 0.0, "samples": 2},
        {"alive": [True, True, False, True]},
        {"keep": 1, "samples": 3},
        {"keep": 3, "samples": 3, "ties": "magnitude"},
    ],
    ids=str,
)
def test_the_law_holds_with_every_setting(case):
    check_law(WEIGHTS, **case)


def test_the_law_holds_in_pieces(monkeypatch):
    monkeypatch.setattr(patterns, "DRAWN_AT_ONCE", 1000)  # 250 groups of 4 at a time, and one draw
    check_law(WEIGHTS, samples=3)
    monkeypatch.setattr(patterns, "DRAWN_AT_ONCE", 2)  # less than a group
    check_law(WEIGHTS, samples=3, many=2000)


def test_live_zeros_come_after_all_others():
    weight = torch.tensor([[0.0, 1e-30, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]).repeat(1, 500)
    alive = torch.tensor([True, True, True, False]).repeat(2, 500)
    mask = pattern_sampler(weight, 0.5, TWO_FOUR, samples=1, power=0.01, alive=alive)(seeded()).view(2, 500, 4)
    assert mask[0, :, 1].all()
    assert not mask[..., 3].any()
    for row, places in ((0, (0, 2)), (1, (0, 1, 2))):  # 4 sigma: a false alarm in 16,000
        kept = 0.5 if row == 0 else 2 / 3
        for place in places:
            assert abs(float(mask[row, :, place].double().mean()) - kept) < 4 * (kept * (1 - kept) / 500) ** 0.5
    free = pattern_sampler(weight, 0.5, TWO_FOUR, samples=1, power=0, alive=alive)(seeded()).view(2, 500, 4)
    assert not free[0, :, 1].all()  # 0**0 is 1


@pytest.mark.parametrize("pattern", [TWO_FOUR, BLOCKS, Pattern.of("1:8")], ids=str)
def test_a_large_power_gives_the_deterministic_mask(pattern):
    weight = normal(8, 16)
    sparsity = 1 - pattern.groups[0] / pattern.groups[1] if pattern.groups else 0.5
    plain = pattern_mask(weight, sparsity, pattern)
    assert torch.equal(pattern_sampler(weight, sparsity, pattern, samples=1, power=1e6)(seeded()), plain)


@pytest.mark.parametrize("pattern", [TWO_FOUR, BLOCKS], ids=str)
def test_a_mask_is_a_function_of_the_generator(pattern):
    weight = normal(32, 64).requires_grad_()
    before, state = weight.detach().clone(), torch.random.get_rng_state()
    draw = pattern_sampler(weight, 0.5, pattern, samples=2)
    first, other = draw(seeded(1)), draw(seeded(2))
    assert torch.equal(first, draw(seeded(1)))
    assert torch.equal(first, pattern_sampler(weight, 0.5, pattern, samples=2)(seeded(1)))
    assert not torch.equal(first, other)
    assert torch.equal(weight.detach(), before)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_stage_follows_stage():
    """Each random mask lies in the one before, down to 1:8."""
    weight, alive, pattern = normal(8, 32, 3, 3), torch.ones(8, 32, 3, 3, dtype=torch.bool), Pattern.of("1:8")
    for stage, sparsity in enumerate((0.25, 0.5, 0.875)):
        mask = pattern_sampler(weight, sparsity, pattern, samples=3, alive=alive)(seeded(stage))
        assert not (mask & ~alive).any()
        assert float(mask.double().mean()) == 1 - sparsity
        alive = mask


# --- what is refused


@pytest.mark.parametrize("text", ["2:4", "1:4", "4x4", "1x16", "2x1", "unstructured"])
def test_a_pattern_is_its_name(text):
    assert check_pattern(text) == text
    pattern = Pattern.of(text)
    assert pattern is None if text == "unstructured" else str(pattern) == text


@pytest.mark.parametrize("text", ["", "4:2", "2:2", "0:4", "1x1", "0x4", "2:4:8", "2 : 4", "-1:4", "2:99999", "axb"])
def test_no_pattern(text):
    with pytest.raises(ValueError, match=r"pattern = .*Pass one of these"):
        Pattern.of(text)


@pytest.mark.parametrize(
    ("stages", "text"),
    [((0.25, 0.5), "2:4"), ((0.5,), "2:4"), ((0.5, 0.75), "1:4"), ((0.31, 0.9), "4x4"), ((1 / 3, 2 / 3), "1:3")],
)
def test_stages_that_fit(stages, text):
    check_stages_fit(stages, Pattern.of(text))


@pytest.mark.parametrize(
    ("stages", "text", "words"),
    [
        ((0.3, 0.5), "2:4", "sparsity = 0.3: groups of 4 .* Pass one of 0.25,0.5,0.75"),
        ((0.25,), "2:4", "stages = 0.25: pattern 2:4 ends at sparsity 0.5. .*stages=0.25,0.5"),
        ((0.5, 0.75), "2:4", "ends at sparsity 0.5"),
        ((), "2:4", "ends at sparsity 0.5"),
        ((0.5,), "1:100", "stages=0.01,0.02,0.03,...,0.99"),
    ],
)
def test_stages_that_do_not_fit(stages, text, words):
    with pytest.raises(ValueError, match=words):
        check_stages_fit(stages, Pattern.of(text))


def test_what_is_proposed_can_be_passed_back():
    for size in range(2, 40):
        for left in range(1, size):
            shown = float(patterns._show(1 - left / size))
            assert patterns._kept_of_group(shown, size) == left


@pytest.mark.parametrize(
    ("shape", "sparsity", "text", "words"),
    [
        ((8, 6), 0.5, "2:4", r"0.weight has 6 inputs: must be a multiple of 4 .*exclude = \^0\\.weight\$"),
        ((16, 3, 3, 3), 0.5, "2:4", "3 inputs"),
        ((8, 2, 2, 2), 0.5, "2:4", "2 inputs"),  # 8 columns, but groups would straddle places of the kernel
        ((8,), 0.5, "2:4", "needs outputs and inputs"),
        ((8, 8), 0.6, "2:4", "sparsity = 0.6: groups of 4 .* 0.25,0.5,0.75"),
        ((8, 8), 0.99, "2:4", "groups of 4"),
        ((8, 8), 1.0, "2:4", r"must lie in \[0, 1\)"),
        ((8, 8), float("nan"), "4x4", r"must lie in \[0, 1\)"),
        ((6, 8), 0.5, "4x4", "matrix of 6 x 8: blocks of 4 x 4 .* must tile it"),
        ((8, 3, 3, 3), 0.5, "4x4", "matrix of 8 x 27"),
        ((8, 8), 0.9, "4x4", "of the 4 blocks of 0.weight at least one must be left. Pass a lower one .up to 0.75"),
    ],
)
def test_a_tensor_that_does_not_fit(shape, sparsity, text, words):
    with pytest.raises(ValueError, match=words):
        check_tensor("0.weight", shape, sparsity, Pattern.of(text))


def test_a_tensor_that_fits():
    assert kept_weights("w", (8, 4, 3, 3), 0.5, TWO_FOUR) == 144
    assert kept_weights("w", (8, 8), 0.6, Pattern.of("4x4")) == 32  # of 4 blocks 2 are left
    check_tensor("w", (8, 3, 3, 3), 0.5, Pattern.of("4x9"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"samples": 0}, "samples = 0"),
        ({"power": -1}, "power = -1"),
        ({"reach": 0.5}, "reach = 0.5"),
        ({"ties": "lucky"}, "ties = 'lucky'"),
        ({"method": "slow"}, "method = 'slow'"),
        ({"alive": torch.ones(4, 8)}, "alive is torch.float32"),
        ({"alive": torch.zeros(4, 8, dtype=torch.bool)}, "are to be kept"),
        ({"sparsity": 0.6, "pattern": TWO_FOUR}, "sparsity = 0.6"),
        ({"weight": torch.full((4, 8), float("nan"))}, "NaN or infinite"),
        ({"weight": torch.ones(4, 8, dtype=torch.int64)}, "must be floating point"),
        ({"weight": torch.zeros(4, 8)}, "are to be kept"),
    ],
    ids=str,
)
@pytest.mark.parametrize("pattern", [TWO_FOUR, BLOCKS], ids=str)
def test_bad_settings(change, words, pattern):
    call = {"weight": normal(4, 8), "sparsity": 0.5, "pattern": pattern, "samples": 2} | change
    with pytest.raises(ValueError, match=words):
        pattern_sampler(**call)


def test_bad_weights_of_the_deterministic_mask():
    few = torch.tensor([[True, False, False, False]]).repeat(4, 2)
    with pytest.raises(ValueError, match=r"a group has 1 weights alive, 2 of every 4"):
        pattern_mask(normal(4, 8), 0.5, TWO_FOUR, alive=few)
    with pytest.raises(ValueError, match="NaN or infinite"):
        pattern_mask(torch.full((4, 4), float("inf")), 0.5, TWO_FOUR)
    with pytest.raises(ValueError, match="alive is"):
        pattern_mask(normal(4, 8), 0.5, BLOCKS, alive=torch.ones(4, 4, dtype=torch.bool))


@pytest.mark.parametrize("pattern", [TWO_FOUR, BLOCKS], ids=str)
def test_no_generator(pattern):
    with pytest.raises(ValueError, match=r"must be a torch.Generator on cpu"):
        pattern_sampler(normal(4, 8), 0.5, pattern, samples=2)(None)
