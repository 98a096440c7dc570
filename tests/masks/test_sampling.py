"""Masks: exact counts in every case, the deterministic rule, the generators, what is refused."""

import itertools
import math
import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import reference

from randprune_lab.sampling import (
    SAMPLERS,
    candidate_generator,
    introduced_randomness,
    magnitude_mask,
    mask_sampler,
    random_mask,
)

FLOATS = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
TIES = ["random", "magnitude"]
BOTH = pytest.mark.parametrize("method", ["fast", "exact"])
TIED = pytest.mark.parametrize("ties", TIES)
steady = settings(derandomize=True, deadline=None, max_examples=60)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=seeded(seed)).to(dtype)


def as_numpy(tensor):
    return tensor.detach().reshape(-1).double().numpy()


def check_masks(weight, sparsity, *, alive=None, samples=3, power=5.0, reach=None):
    """Both samplers and both tie rules: kept exactly, alive, within reach; the weight is left as it was."""
    before = weight.detach().clone()
    flat = as_numpy(weight)
    living = None if alive is None else alive.reshape(-1).numpy()
    keep = reference.keep_of(flat.size, sparsity)
    drawable = reference.mask_of(reference.support_of(flat, sparsity, reach, living), flat.size)
    deterministic = magnitude_mask(weight, sparsity, alive=alive)
    assert deterministic.shape == weight.shape
    np.testing.assert_array_equal(
        deterministic.reshape(-1).numpy(), reference.deterministic_mask(flat, sparsity, living)
    )
    for method, ties in itertools.product(SAMPLERS, TIES):
        options = {"samples": samples, "power": power, "reach": reach, "method": method, "ties": ties, "alive": alive}
        mask = random_mask(weight, sparsity, generator=seeded(1), **options)
        assert mask.shape == weight.shape
        assert mask.dtype == torch.bool
        assert int(mask.sum()) == keep
        assert not (mask.reshape(-1).numpy() & ~drawable).any()
        if reach == 1:
            assert torch.equal(mask, magnitude_mask(weight, sparsity, alive=alive))
    assert torch.equal(weight.detach(), before)
    assert torch.equal(weight.detach().signbit(), before.signbit())


# --- exactly as many as asked for


@steady
@given(
    size=st.integers(1, 60),
    levels=st.integers(1, 6),
    sparsity=st.floats(0, 1, exclude_max=True),
    dead=st.floats(0, 1),
    reach=st.none() | st.floats(1, 5),
    power=st.floats(0, 20),
    samples=st.integers(1, 9),
    dtype=st.sampled_from(FLOATS),
    seed=st.integers(0, 2**32 - 1),
)
def test_small_tensors_with_heavy_ties(size, levels, sparsity, dead, reach, power, samples, dtype, seed):
    """A handful of magnitudes, zeros among the living."""
    rng = np.random.default_rng(seed)
    weight = torch.from_numpy(rng.integers(-levels, levels + 1, size) / 4).to(dtype)
    alive = torch.from_numpy(rng.uniform(size=size) >= dead)
    sparsity = max(sparsity, 1 - int(alive.sum()) / size)  # as many are alive as must be kept
    sparsity = min(sparsity, np.nextafter(1, 0))
    if int(alive.sum()) >= reference.keep_of(size, sparsity):
        check_masks(weight, sparsity, alive=alive, samples=samples, power=power, reach=reach)


@settings(steady, max_examples=25)
@given(
    rounding=st.sampled_from([1, 4, 64, 10**6]),
    sparsity=st.floats(0, 1, exclude_max=True),
    reach=st.none() | st.floats(1, 5),
    power=st.floats(0, 20),
    samples=st.integers(1, 200),
    dtype=st.sampled_from(FLOATS),
    seed=st.integers(0, 2**32 - 1),
)
def test_tensors_of_the_fast_sampler_with_ties(rounding, sparsity, reach, power, samples, dtype, seed):
    """From 1,024 weights on the closed form decides; rounding makes ties, rounding to integers also live zeros."""
    rng = np.random.default_rng(seed)
    weight = torch.from_numpy(np.round(rng.standard_normal(2_000) * rounding) / rounding).to(dtype)
    check_masks(weight, sparsity, alive=torch.ones(2_000, dtype=torch.bool), samples=samples, power=power, reach=reach)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(7_000,), (70, 100), (10, 7, 100), (10, 7, 10, 10), (1, 7_000, 1)])
def test_shapes_and_types(shape, dtype):
    for sparsity, reach in ((0.54, None), (0.9375, 2.0), (0.99, 1.0)):
        check_masks(normal(*shape, dtype=dtype), sparsity, reach=reach)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("sparsity", [0.0, 0.25, 0.5, 0.9375, 0.999])
@pytest.mark.parametrize("size", [1, 2, 7, 3_000])
def test_all_weights_equal(size, sparsity, dtype):
    check_masks(torch.full((size,), -0.5, dtype=dtype), sparsity, reach=3.0)
    check_masks(torch.zeros(size, dtype=dtype), sparsity, alive=torch.ones(size, dtype=torch.bool))


def test_equal_magnitudes_keep_the_lowest_index():
    weight = torch.tensor([1.0, -2.0, 2.0, -1.0, 2.0, 0.0])
    assert magnitude_mask(weight, 2 / 3).tolist() == [False, True, True, False, False, False]
    assert magnitude_mask(weight, 1 / 3).tolist() == [True, True, True, False, True, False]


@pytest.mark.parametrize(
    ("size", "sparsity", "keep"), [(7, 0.9375, 0), (1, 0.4, 1), (1, 0.6, 0), (2, 0.75, 0), (8, 0.9375, 0)]
)
def test_very_small_tensors(size, sparsity, keep):
    weight = normal(size) + 5
    assert reference.keep_of(size, sparsity) == keep
    check_masks(weight, sparsity)
    assert int(magnitude_mask(weight, sparsity).sum()) == keep
    assert int(magnitude_mask(torch.tensor(3.0), 0.4)) == 1  # a tensor without dimensions
    assert random_mask(torch.tensor(3.0), 0.4, samples=2, generator=seeded()).shape == ()


def test_half_of_an_odd_number_rounds_as_python_does():
    """round(2.5) is 2: the rule is n - round(s * n), whatever one thinks of banker's rounding."""
    assert int(magnitude_mask(normal(5), 0.5).sum()) == 3
    assert int(magnitude_mask(normal(7), 0.5).sum()) == 3


def test_no_end_of_draws_has_an_end():
    """Small tensors are drawn from, but not two thousand million times; so many draws come to the largest sums."""
    weight = torch.randn(256, generator=torch.Generator().manual_seed(0))
    mask = random_mask(weight, 0.9, samples=2**31 - 1, generator=torch.Generator().manual_seed(0))
    assert torch.equal(mask, magnitude_mask(weight, 0.9))


def test_no_weights_at_all():
    assert magnitude_mask(torch.empty(0, 3), 0.5).shape == (0, 3)


def test_transposed_weights():
    """Index order is that of the tensor as it is seen, not as it lies in memory."""
    weight = (normal(50, 60) * 4).round() / 4
    strided = normal(3_000, 4)[:, 1]
    for view in (weight.T, strided, weight.T[::2, ::3]):
        assert not view.is_contiguous()
        assert torch.equal(magnitude_mask(view, 0.7), magnitude_mask(view.contiguous(), 0.7))
        check_masks(view, 0.7, alive=torch.ones_like(view, dtype=torch.bool), reach=2.0)
        for method in SAMPLERS:
            one, two = (
                random_mask(tensor, 0.9, samples=2, method=method, generator=seeded(4))
                for tensor in (view, view.contiguous())
            )
            assert torch.equal(one, two)


def test_transposed_alive_mask():
    weight, alive = normal(40, 50), (torch.rand(50, 40, generator=seeded(2)) < 0.5).T
    check_masks(weight, 0.8, alive=alive, reach=1.5)


@BOTH
def test_parameters_that_require_grad(method):
    weight = torch.nn.Parameter(normal(60, 50))
    check_masks(weight, 0.9, reach=2.0)
    mask = random_mask(weight, 0.9, samples=2, method=method, generator=seeded())
    assert not mask.requires_grad
    assert weight.requires_grad
    assert weight.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("power", [0.0, 1.0, 5.0, 20.0])
def test_magnitudes_from_1e_30_to_1e30(power, dtype):
    """|w|**5 would underflow and overflow many times over."""
    weight = 10 ** torch.linspace(-30, 30, 3_000, dtype=torch.float64)[torch.randperm(3_000, generator=seeded())]
    for sparsity in (0.1, 0.5, 0.99):
        check_masks((weight * normal(3_000).sign()).to(dtype), sparsity, power=power, samples=4)


@pytest.mark.parametrize("dtype", FLOATS)
def test_subnormal_weights(dtype):
    smallest = torch.finfo(dtype).smallest_normal / (2**7 if dtype == torch.bfloat16 else 2**10)
    weight = (torch.randint(-900, 900, (3_000,), generator=seeded()).double() * smallest).to(dtype)
    assert int((weight != 0).sum()) > 2_000
    check_masks(weight, 0.6, samples=4)
    check_masks(weight, 0.6, reach=1.3, power=1.0)


def test_float64_beyond_float32():
    """What float32 cannot tell apart, the deterministic mask still ranks."""
    tiny, huge = 10 ** torch.linspace(-300, -50, 800).double(), 10 ** torch.linspace(50, 300, 800).double()
    weight = torch.cat([tiny, huge])[torch.randperm(1_600, generator=seeded())]
    for sparsity in (0.2, 0.5, 0.8):
        check_masks(weight, sparsity)
    near = 1 + 1e-12 * torch.randperm(2_000, generator=seeded()).double()
    check_masks(near, 0.75)


def test_live_zeros_and_dead_large_weights():
    weight = normal(3_000)
    alive = torch.rand(3_000, generator=seeded(1)) < 0.4
    weight[:1_500] = 0.0
    weight[~alive] *= 100
    for sparsity in (0.62, 0.7, 0.85, 0.99):
        check_masks(weight, sparsity, alive=alive)
        check_masks(weight, sparsity, alive=alive, reach=1.4)


@BOTH
def test_live_zeros_are_kept_after_all_others(method):
    weight = torch.cat([torch.zeros(1_500), 1 + normal(1_500).abs()])
    alive = torch.ones(3_000, dtype=torch.bool)
    mask = random_mask(weight, 0.3, samples=3, method=method, alive=alive, generator=seeded())
    assert int(mask[1_500:].sum()) == 1_500
    assert int(mask[:1_500].sum()) == 600


def test_zeros_fill_up_the_deterministic_mask_only():
    weight = torch.tensor([0.0, 3.0, 0.0, -1.0, 0.0, 0.0])
    assert magnitude_mask(weight, 1 / 3).tolist() == [True, True, True, True, False, False]
    with pytest.raises(ValueError, match=r"2 weights exist, 4 are to be kept.*Raise the sparsity"):
        random_mask(weight, 1 / 3, samples=1, generator=seeded())


def test_23_million_weights():
    """BERT's embedding: torch.multinomial refuses more than 2**24 weights."""
    weight = torch.randn(30_522, 768, generator=seeded())
    keep = reference.keep_of(weight.numel(), 0.9375)
    deterministic = magnitude_mask(weight, 0.9375)
    assert int(deterministic.sum()) == keep
    assert weight.abs()[deterministic].min() >= weight.abs()[~deterministic].max()
    mask = random_mask(weight, 0.9375, samples=16, reach=2.0, generator=seeded(1))
    assert int(mask.sum()) == keep
    ir = introduced_randomness(mask, deterministic)
    assert ir == pytest.approx(0.00874, rel=0.02)  # DESIGN 3.4: the prediction for these settings, any size


def test_23_million_weights_in_bfloat16():
    """Thousands of ties at every cut."""
    weight = torch.randn(23_440_896, generator=seeded()).bfloat16()
    keep = reference.keep_of(weight.numel(), 0.9375)
    deterministic = magnitude_mask(weight, 0.9375)
    assert int(deterministic.sum()) == keep
    magnitude = weight.abs()
    tau = magnitude[deterministic].min()
    assert magnitude[~deterministic].max() == tau
    at_tau = deterministic[magnitude == tau]
    assert torch.equal(at_tau.sort(descending=True, stable=True).values, at_tau)  # the lowest indices
    mask = random_mask(weight, 0.9375, samples=16, reach=2.0, ties="magnitude", generator=seeded(1))
    assert int(mask.sum()) == keep


@BOTH
@TIED
@pytest.mark.parametrize(
    ("size", "reach", "drawable"), [(40, 1.37, 14), (40, 1.33, 13), (40, 9.0, 40), (2_000, 1.0013, 501)]
)
def test_everything_within_reach_is_drawn_and_nothing_beyond(size, reach, drawable, ties, method):
    """round(reach * keep), not one more or less: a quarter is kept, evenly drawn (T = 0), until all have been seen."""
    weight = normal(size)
    sampler = mask_sampler(weight, 0.75, samples=1, power=0.0, reach=reach, method=method, ties=ties)
    generator = seeded()
    seen = torch.zeros(size, dtype=torch.bool)
    for _ in range(200):
        seen |= sampler(generator)
    assert torch.equal(seen, magnitude_mask(weight, 1 - drawable / size))


# --- randomness is an argument


@BOTH
@TIED
@pytest.mark.parametrize("size", [400, 4_000])
def test_same_seed_same_mask_other_seed_other_mask(size, ties, method):
    weight = normal(size)
    options = {"samples": 4, "reach": 2.0, "method": method, "ties": ties}
    masks = [random_mask(weight, 0.9, generator=seeded(seed), **options) for seed in (5, 5, 6, 7)]
    assert torch.equal(masks[0], masks[1])
    for one, two in itertools.combinations(masks[1:], 2):
        assert not torch.equal(one, two)


@BOTH
@TIED
@pytest.mark.parametrize("size", [400, 4_000])
def test_mask_sampler_is_random_mask(size, ties, method):
    weight = normal(size)
    options = {"samples": 4, "reach": 2.0, "method": method, "ties": ties}
    sampler = mask_sampler(weight, 0.9, **options)
    one, two = seeded(5), seeded(5)
    for _ in range(4):  # the sampler carries no state of its own: the generator is all there is
        assert torch.equal(sampler(one), random_mask(weight, 0.9, generator=two, **options))
    assert torch.equal(one.get_state(), two.get_state())
    first = sampler(seeded(5))
    kept = first.clone()
    assert torch.equal(sampler(seeded(5)), kept)
    first.fill_(False)  # what a caller does to its mask stays with the caller
    assert torch.equal(sampler(seeded(5)), kept)


@BOTH
@TIED
def test_masks_without_choice_are_the_callers_own(ties, method):
    weight = normal(2_000)
    for sparsity, reach in ((0.9, 1.0), (0.9999, None), (0.0, None)):
        sampler = mask_sampler(weight, sparsity, samples=2, reach=reach, method=method, ties=ties)
        expected = magnitude_mask(weight, sparsity)
        sampler(seeded()).logical_not_()
        assert torch.equal(sampler(seeded()), expected)


@BOTH
@TIED
def test_global_random_state_is_untouched(ties, method):
    torch.manual_seed(1)
    before = torch.get_rng_state(), np.random.get_state(legacy=True), random.getstate()  # noqa: NPY002 - it is the subject
    generator = candidate_generator(1, 2, 3, "weight")
    for size in (400, 4_000):
        random_mask(normal(size), 0.9, samples=4, reach=2.0, method=method, ties=ties, generator=generator)
        magnitude_mask(normal(size), 0.9)
    after = torch.get_rng_state(), np.random.get_state(legacy=True), random.getstate()  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert before[1][2:] == after[1][2:]
    assert np.array_equal(before[1][1], after[1][1])
    assert before[2] == after[2]


@BOTH
@TIED
def test_global_random_state_is_not_read(ties, method):
    masks = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        masks.append(random_mask(normal(3_000), 0.9, samples=4, method=method, ties=ties, generator=seeded()))
    assert torch.equal(*masks)


@BOTH
@TIED
def test_dead_weights_do_not_choose(ties, method):
    """The mask is a function of what is alive: the values of the dead do not matter."""
    weight, alive = normal(3_000), torch.rand(3_000, generator=seeded(3)) < 0.6
    other = torch.where(alive, weight, 50.0)
    options = {"samples": 4, "method": method, "ties": ties, "alive": alive}
    one, two = (random_mask(tensor, 0.9, generator=seeded(), **options) for tensor in (weight, other))
    assert torch.equal(one, two)
    zeroed = torch.where(alive, weight, 0.0)
    options.pop("alive")
    assert torch.equal(random_mask(zeroed, 0.9, generator=seeded(), **options), one)


# --- candidate_generator


def stream(generator):
    return torch.randint(2**31, (4,), generator=generator).tolist()


SEED_OF_OLD = 8354309804275017222
STREAM_OF_OLD = [1352690653, 2057871138, 1901151506, 979015986]
ORDER_OF_OLD = [0, 3, 5, 1, 2, 4]


def test_streams_of_candidates_stay_as_they_were():
    """Literal values: the masks of old runs are redrawn from their seeds."""
    assert candidate_generator(0, 1, 2, "encoder.layer.0.weight").initial_seed() == SEED_OF_OLD
    assert stream(candidate_generator(0, 1, 2, "encoder.layer.0.weight")) == STREAM_OF_OLD
    assert torch.randperm(6, generator=candidate_generator(-1, 0, 0, "")).tolist() == ORDER_OF_OLD


def test_same_candidate_same_stream():
    assert stream(candidate_generator(3, 1, 2, "a")) == stream(candidate_generator(3, 1, 2, "a", "cpu"))
    assert stream(candidate_generator(np.int64(3), 1, 2, "a")) == stream(candidate_generator(3, 1, np.int32(2), "a"))


def test_any_other_candidate_another_stream():
    arguments = [
        *itertools.product((0, 1, 2, 11, -1), (0, 1, 2, 12), (0, 1, 2, 21), ("a", "b", "1", "", "a.b", "ab")),
        (1, 1, 1, "1, '1"),  # whatever joins the four must not be forgeable by a name
        (1, 1, 1, "', 1"),
        (2**40, 0, 0, "a"),
        (0, 2**40, 0, "a"),
    ]
    streams = {tuple(stream(candidate_generator(*argument))) for argument in arguments}
    assert len(streams) == len(arguments)


def test_streams_do_not_hang_on_the_hash_seed():
    script = (
        "import torch; from randprune_lab.sampling import candidate_generator; "
        "print(candidate_generator(0, 1, 2, 'encoder.layer.0.weight').initial_seed())"
    )
    for hash_seed in ("1", "77"):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
        )
        assert int(done.stdout) == SEED_OF_OLD


# --- introduced_randomness


@steady
@given(size=st.integers(1, 60), share=st.floats(0, 1), seed=st.integers(0, 2**32 - 1))
def test_introduced_randomness_is_eq_1(size, share, seed):
    rng = np.random.default_rng(seed)
    mask = np.arange(size) < round(share * size)
    one, two = rng.permutation(mask), rng.permutation(mask)
    found = introduced_randomness(torch.from_numpy(one), torch.from_numpy(two))
    assert found == reference.introduced_randomness(one, two)
    assert found == introduced_randomness(torch.from_numpy(two), torch.from_numpy(one))
    assert introduced_randomness(torch.from_numpy(one), torch.from_numpy(one)) == 0.0
    assert (found == 0) == np.array_equal(one, two)


def test_introduced_randomness_by_hand():
    one = torch.tensor([[True, True, False], [False, False, False]])
    two = torch.tensor([[True, False, False], [False, False, True]])
    assert introduced_randomness(one, two) == pytest.approx(1 / 3)  # 4 pruned, 3 by both
    nothing_shared = torch.tensor([True, True, False, False])
    assert introduced_randomness(nothing_shared, ~nothing_shared) == math.inf
    assert introduced_randomness(torch.ones(3, dtype=torch.bool), torch.ones(3, dtype=torch.bool)) == 0.0
    assert type(introduced_randomness(one, two)) is float


def test_introduced_randomness_bad_input():
    mask = torch.tensor([True, False, False])
    with pytest.raises(ValueError, match=r"mask prunes 1 weights, reference 2: .*Build both with the same sparsity"):
        introduced_randomness(torch.tensor([True, True, False]), mask)
    with pytest.raises(ValueError, match=r"mask has shape \(1, 3\), reference \(3,\): .*of one tensor"):
        introduced_randomness(mask.view(1, 3), mask)
    with pytest.raises(ValueError, match=r"mask has dtype torch.float32: must be bool.*Pass mask != 0"):
        introduced_randomness(mask.float(), mask)
    with pytest.raises(ValueError, match=r"reference has dtype torch.int64: must be bool.*Pass reference != 0"):
        introduced_randomness(mask, mask.long())


# --- what is refused


BAD_SPARSITY = [
    (-0.1, r"sparsity = -0.1: must lie in \[0, 1\).*pass 1 - 1/16"),
    (1.0, r"sparsity = 1.0: must lie in \[0, 1\).*pass 1 - 1/16"),
    (16, r"sparsity = 16: must lie in \[0, 1\).*pass 1 - 1/16"),
    (math.nan, r"sparsity = nan: must lie in \[0, 1\).*pass 1 - 1/16"),
    (math.inf, r"sparsity = inf: must lie in \[0, 1\).*pass 1 - 1/16"),
]


@pytest.mark.parametrize(("sparsity", "text"), BAD_SPARSITY)
def test_bad_sparsity(sparsity, text):
    with pytest.raises(ValueError, match=text):
        magnitude_mask(normal(20), sparsity)
    with pytest.raises(ValueError, match=text):
        random_mask(normal(20), sparsity, samples=1, generator=seeded())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"samples": 0}, r"samples = 0: at least 1 .*Pass samples=1.*magnitude_mask"),
        ({"samples": -3}, r"samples = -3: at least 1 .*Pass samples=1"),
        ({"samples": 2.5}, r"samples = 2.5: must be a whole number. Pass round\(2.5\)"),
        ({"samples": 4.0}, r"samples = 4.0: must be a whole number. Pass round\(4.0\)"),
        ({"samples": math.nan}, r"samples = nan: must be a whole number"),
        ({"samples": "4"}, r"samples = '4': must be a whole number"),
        ({"samples": None}, r"samples = None: must be a whole number"),
        ({"reach": 0.99}, r"reach = 0.99: must be finite and at least 1 .*Pass None"),
        ({"reach": 0}, r"reach = 0: must be finite and at least 1 .*Pass None"),
        ({"reach": math.inf}, r"reach = inf: must be finite and at least 1 .*Pass None"),
        ({"reach": math.nan}, r"reach = nan: must be finite and at least 1 .*Pass None"),
        ({"power": -0.5}, r"power = -0.5: must be finite and at least 0.*The paper uses 5"),
        ({"power": math.inf}, r"power = inf: must be finite and at least 0.*The paper uses 5"),
        ({"power": math.nan}, r"power = nan: must be finite and at least 0.*The paper uses 5"),
        ({"method": "fsat"}, r"method = 'fsat': unknown. Did you mean 'fast'\? Valid: fast, exact"),
        ({"method": "Exact"}, r"method = 'Exact': unknown. Did you mean 'exact'\? Valid: fast, exact"),
        ({"ties": "mag"}, r"ties = 'mag': unknown. Did you mean 'magnitude'\? Valid: random, magnitude"),
        ({"ties": "rand"}, r"ties = 'rand': unknown. Did you mean 'random'\? Valid: random, magnitude"),
        ({"generator": None}, r"generator = None .*must be a torch.Generator .*Pass candidate_generator"),
        ({"generator": 7}, r"generator = 7 .*must be a torch.Generator .*Pass candidate_generator"),
    ],
    ids=str,
)
def test_bad_settings(options, text):
    with pytest.raises(ValueError, match=text):
        random_mask(normal(2_000), 0.9, **({"samples": 4, "generator": seeded()} | options))


def broken(value):
    weight = normal(3_000)
    weight[1_234] = value
    return weight


@pytest.mark.parametrize(
    "weight",
    [
        *(broken(value) for value in (math.nan, math.inf, -math.inf)),
        *(torch.tensor([pattern], dtype=torch.int32).view(torch.float32) for pattern in (0x7FFFFFFF, -1, 0x7F800001)),
        *(broken(math.nan).to(dtype) for dtype in FLOATS),
        *(broken(math.inf).to(dtype) for dtype in FLOATS),
        normal(3_000).double().scatter(0, torch.tensor([5]), 1e308) * 10,  # infinite in float64 itself
    ],
    ids=lambda weight: f"{weight.dtype}, {len(weight)}",
)
def test_weights_that_are_not_finite(weight):
    text = rf"1 of {len(weight)} weights are NaN or infinite: .*ranked. Repair the checkpoint"
    with pytest.raises(ValueError, match=text):
        magnitude_mask(weight, 0.4)
    for method in SAMPLERS:
        with pytest.raises(ValueError, match=text):
            random_mask(weight, 0.4, samples=1, method=method, generator=seeded())


def test_the_largest_finite_weights_are_not_infinite():
    for dtype in FLOATS:
        weight = normal(2_000, dtype=dtype)
        weight[7] = torch.finfo(dtype).max
        assert magnitude_mask(weight, 0.999).nonzero().tolist()[0] == [7]
        check_masks(weight, 0.99)


@BOTH
def test_fewer_alive_than_to_keep(method):
    weight, alive = normal(2_000), torch.arange(2_000) < 199
    text = r"199 weights exist, 200 are to be kept: at least as many must be alive. Raise the sparsity"
    with pytest.raises(ValueError, match=text):
        magnitude_mask(weight, 0.9, alive=alive)
    with pytest.raises(ValueError, match=text):
        random_mask(weight, 0.9, samples=1, method=method, alive=alive, generator=seeded())
    with pytest.raises(ValueError, match=text):  # reach 1 has nothing to draw, and still must not pass
        random_mask(weight * alive, 0.9, samples=1, reach=1.0, method=method, generator=seeded())


@pytest.mark.parametrize(
    ("alive", "text"),
    [
        (torch.ones(5, 4, dtype=torch.bool), r"shape \(5, 4\), the weight has shape \(4, 5\): alive must .*same shape"),
        (torch.ones(20, dtype=torch.bool), r"shape \(20,\), the weight has shape \(4, 5\): alive must .*same shape"),
        (torch.ones(4, 5), r"alive is torch.float32 of shape \(4, 5\).*alive must be a bool tensor"),
    ],
    ids=["transposed", "flat", "float"],
)
def test_alive_that_does_not_fit(alive, text):
    with pytest.raises(ValueError, match=text):
        magnitude_mask(normal(4, 5), 0.5, alive=alive)
    with pytest.raises(ValueError, match=text):
        random_mask(normal(4, 5), 0.5, samples=1, alive=alive, generator=seeded())


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64])
def test_weights_that_are_not_floating_point(dtype):
    weight = torch.ones(20, dtype=dtype)
    text = rf"weight has dtype {dtype}: must be floating point. Convert it with weight.float\(\)"
    with pytest.raises(ValueError, match=text):
        magnitude_mask(weight, 0.5)
    with pytest.raises(ValueError, match=text):
        random_mask(weight, 0.5, samples=1, generator=seeded())


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"weight": [1.0, 2.0]}, "weight is a list: must be a torch tensor"),
        ({"weight": torch.ones(8).to(torch.float8_e4m3fn)}, "float8.*must be floating point"),
        ({"weight": torch.ones(8, device="meta")}, "meta.*must be a dense"),
        ({"weight": torch.ones(2, 4).to_sparse()}, "sparse.*to_dense"),
        ({"sparsity": "0.5"}, "sparsity = '0.5': must be a number"),
        ({"sparsity": None}, "sparsity = None: must be a number"),
        ({"power": "5"}, "power = '5': must be a number"),
        ({"power": 1e308}, "power = 1e.308.*at most"),
        ({"reach": [2]}, r"reach = \[2\]: must be a number"),
        ({"samples": 2**40}, "samples = 1099511627776: at most"),
        ({"samples": "3"}, "samples = '3': must be a whole number"),
        ({"ties": ["random"]}, "ties = .*unknown"),
    ],
)
def test_things_of_a_wrong_kind_are_refused(wrong, why):
    arguments = {"weight": normal(8), "sparsity": 0.5, "samples": 2, "generator": seeded()} | wrong
    with pytest.raises(ValueError, match=why):
        random_mask(arguments.pop("weight"), arguments.pop("sparsity"), **arguments)


def test_a_reach_beyond_everything_is_every_weight():
    weight = normal(2_000)
    near, far = (random_mask(weight, 0.9, samples=3, reach=r, generator=seeded()) for r in (1e308, None))
    assert torch.equal(near, far)
