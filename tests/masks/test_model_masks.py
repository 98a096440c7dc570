"""The masks of a model: by tensor and over all of them, plain and random, packed and applied."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.runs import small

from randprune_lab.checks import keep_count
from randprune_lab.histogram import MagnitudeHistogram
from randprune_lab.keepcurve import KeepCurve
from randprune_lab.masks import (
    EVERYTHING,
    MOST_DRAWN,
    apply_masks,
    flatten,
    kept,
    model_randomness,
    model_swapped,
    pack,
    split,
    stage_masks,
    unpack,
)
from randprune_lab.models import build_model, prunable_weights
from randprune_lab.sampling import candidate_generator, introduced_randomness, magnitude_mask, random_mask

SHAPES = {"a": (40, 50), "b.weight": (30, 3, 5, 5), "c": (7, 300)}  # all large enough for the fast sampler


def some_weights(seed: int = 0, shapes: dict = SHAPES) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scales = itertools.cycle([1.0, 0.1, 3.0])  # so that one threshold for all differs from one for each
    return {
        name: next(scales) * torch.randn(shape, generator=generator, dtype=torch.float32)
        for name, shape in shapes.items()
    }


def all_alive(weights):
    return {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}


def sizes_kept(masks):
    return {name: int(mask.sum()) for name, mask in masks.items()}


def test_layer_scope_is_each_tensor_by_itself():
    weights = some_weights()
    masks = stage_masks(weights, all_alive(weights), 1, small()).draw(0)
    for name, weight in weights.items():
        order = np.argsort(-weight.abs().reshape(-1).numpy(), kind="stable")[: keep_count(weight.numel(), 0.5)]
        expected = np.zeros(weight.numel(), dtype=bool)
        expected[order] = True
        assert np.array_equal(masks[name].reshape(-1).numpy(), expected)
        assert (masks[name].dtype, masks[name].shape) == (torch.bool, weight.shape)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("coarse", [False, True], ids=["", "ties"])
def test_global_scope_is_a_top_k_over_the_concatenation(seed, coarse):
    weights = some_weights(seed)
    if coarse:  # thousands of equal magnitudes: the lowest index of the concatenation comes first
        weights = {name: (4 * weight).round() / 4 for name, weight in weights.items()}
    masks = stage_masks(weights, all_alive(weights), 2, small(scope="global")).draw(0)
    everything = np.concatenate([weight.abs().reshape(-1).numpy() for weight in weights.values()])
    expected = np.zeros(everything.size, dtype=bool)
    expected[np.argsort(-everything, kind="stable")[: keep_count(everything.size, 0.9)]] = True
    parts = np.split(expected, np.cumsum([weight.numel() for weight in weights.values()])[:-1])
    assert list(masks) == list(weights)
    for (name, mask), part in zip(masks.items(), parts, strict=True):
        assert mask.shape == weights[name].shape
        assert np.array_equal(mask.reshape(-1).numpy(), part)
    assert sizes_kept(masks) != sizes_kept(stage_masks(weights, all_alive(weights), 2, small()).draw(0))


@pytest.mark.parametrize("sampler", ["fast", "exact"])
def test_global_scope_equals_layer_scope_on_one_tensor(sampler):
    weights = {EVERYTHING: some_weights()["a"]}  # of the name of the whole: the seed is of the name
    alive = all_alive(weights)
    for stage, candidate in itertools.product((1, 2), (0, 1, 2)):
        layer, whole = (
            stage_masks(weights, alive, stage, small(scope=scope, sampler=sampler)).draw(candidate)
            for scope in ("layer", "global")
        )
        assert torch.equal(layer[EVERYTHING], whole[EVERYTHING])
        alive = layer if candidate == 2 else alive


@pytest.mark.parametrize(
    ("randomness", "scope", "sampler", "ties"),
    [
        *itertools.product(["fixed", "decrease", "increase"], ["layer", "global"], ["fast", "exact"], ["random"]),
        ("fixed", "layer", "fast", "magnitude"),
        ("target_ir", "layer", "fast", "random"),
        ("target_ir", "global", "fast", "random"),
    ],
)
def test_every_mask_keeps_exactly_as_many_as_asked_for_among_the_living(randomness, scope, sampler, ties):
    weights = some_weights()
    config = small(
        randomness=randomness,
        scope=scope,
        sampler=sampler,
        ties=ties,
        sampling_ratio=2e-3,
        target_ir=0.03 if randomness == "target_ir" else None,
    )
    alive = all_alive(weights)
    total = sum(weight.numel() for weight in weights.values())
    for stage, sparsity in enumerate(config.stages, start=1):
        drawn = [stage_masks(weights, alive, stage, config).draw(candidate) for candidate in range(3)]
        for masks in drawn:
            if scope == "layer":
                assert sizes_kept(masks) == {n: keep_count(w.numel(), sparsity) for n, w in weights.items()}
            assert kept(masks) == sum(sizes_kept(masks).values())
            if scope == "global":
                assert kept(masks) == keep_count(total, sparsity)
            assert all(not (mask & ~alive[name]).any() for name, mask in masks.items())  # nothing comes back
        assert not torch.equal(flatten(drawn[0]), flatten(drawn[1]))
        assert not torch.equal(flatten(drawn[1]), flatten(drawn[2]))
        alive = drawn[2]


def test_a_candidate_is_a_random_mask_by_its_own_generator():
    weights = some_weights()
    alive = {name: magnitude_mask(weight, 0.3) for name, weight in weights.items()}
    config = small(seed=11, samples=6, power=3.0, reach=2.5)
    settings = {"samples": 6, "power": 3.0, "reach": 2.5}
    masks = stage_masks(weights, alive, 2, config)
    for candidate in (2, 1, 2):  # in any order, and again
        for name, mask in masks.draw(candidate).items():
            generator = candidate_generator(11, 2, candidate, name)
            expected = random_mask(weights[name], 0.9, alive=alive[name], generator=generator, **settings)
            assert torch.equal(mask, expected)
    whole = stage_masks(weights, alive, 2, config.model_copy(update={"scope": "global"})).draw(1)
    vector = torch.cat([weight.reshape(-1) for weight in weights.values()])
    living = torch.cat([mask.reshape(-1) for mask in alive.values()])
    generator = candidate_generator(11, 2, 1, "*")
    assert torch.equal(flatten(whole), random_mask(vector, 0.9, alive=living, generator=generator, **settings))


def test_drawing_leaves_the_weights_and_the_ambient_random_state_alone():
    weights = some_weights()
    before = {name: weight.clone() for name, weight in weights.items()}
    state = torch.get_rng_state()
    for scope in ("layer", "global"):
        masks = stage_masks(weights, all_alive(weights), 1, small(scope=scope))
        masks.draw(0), masks.draw(1)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], weight) for name, weight in weights.items())


def test_samples_of_each_rule():
    weights = some_weights()
    alive = all_alive(weights)
    size = {name: weight.numel() for name, weight in weights.items()}

    def samples(**asked):
        return stage_masks(weights, alive, 2, small(**asked)).samples

    assert samples(samples=7) == dict.fromkeys(weights, 7)
    pruned = {name: round(0.9 * n) for name, n in size.items()}
    assert samples(randomness="decrease", sampling_ratio=0.01) == {n: int(0.01 * c) for n, c in pruned.items()}
    assert samples(randomness="increase", sampling_ratio=0.01) == {
        n: max(1, int(0.01 * (size[n] - c))) for n, c in pruned.items()
    }
    assert samples(randomness="decrease", sampling_ratio=1e-6) == dict.fromkeys(weights, 1)  # never none
    total = sum(size.values())
    assert samples(randomness="decrease", sampling_ratio=0.01, scope="global") == {"*": int(0.01 * round(0.9 * total))}
    powers = stage_masks(weights, alive, 2, small(power=2.5)).power
    assert powers == dict.fromkeys(weights, 2.5)


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_target_ir_is_hit(scope):
    """Predicted within 1e-6; drawn within 5 standard errors of 40 masks (a redraw alone fails once in 1e5)."""
    weights = {
        name: torch.randn(n, generator=torch.Generator().manual_seed(n)) for name, n in (("a", 20_000), ("b", 3_000))
    }
    config = small(randomness="target_ir", target_ir=(0.08, 0.02), scope=scope)
    masks = stage_masks(weights, all_alive(weights), 2, config)
    assert masks.clamped == ()
    vectors = weights if scope == "layer" else {"*": torch.cat(list(weights.values()))}
    assert set(masks.samples) == set(masks.power) == set(vectors)
    for name, vector in vectors.items():
        curve = KeepCurve.of(
            MagnitudeHistogram.of(vector), 0.9, samples=masks.samples[name], power=masks.power[name], reach=None
        )
        assert curve.expected_ir == pytest.approx(0.02, rel=1e-6)
    plain = masks.draw(0)
    drawn = [masks.draw(candidate) for candidate in range(1, 41)]
    if scope == "global":
        drawn, plain = [{"*": flatten(mask)} for mask in drawn], {"*": flatten(plain)}
    for name in vectors:
        found = np.array([introduced_randomness(mask[name], plain[name]) for mask in drawn])
        error = found.std(ddof=1) / len(found) ** 0.5
        assert abs(found.mean() - 0.02) < max(5 * error, 0.01 * 0.02)  # the closed form itself is within 1 %


def test_target_ir_is_hit_with_ties_by_magnitude_or_refused():
    """power_for_ir is for random ties; whoever asks for the other rule must not silently get another ir."""
    weights = {"a": torch.randn(20_000, generator=torch.Generator().manual_seed(0))}
    try:
        config = small(randomness="target_ir", target_ir=0.02, ties="magnitude")
    except ValueError:
        return
    masks = stage_masks(weights, all_alive(weights), 2, config)
    plain = masks.draw(0)["a"]
    found = np.array([introduced_randomness(masks.draw(candidate)["a"], plain) for candidate in range(1, 31)])
    error = found.std(ddof=1) / len(found) ** 0.5
    assert abs(found.mean() - 0.02) < max(5 * error, 0.01 * 0.02)


@pytest.mark.parametrize("target", [50.0, 1e-12])
def test_a_target_out_of_reach_is_clamped_and_said(target):
    weights = some_weights()
    masks = stage_masks(weights, all_alive(weights), 1, small(randomness="target_ir", target_ir=target))
    assert len(masks.clamped) == len(weights)
    for name, sentence in zip(weights, masks.clamped, strict=True):
        assert sentence.startswith(f"stage 1, {name}: an ir of {target:g} is out of reach, it gets ")
        assert sentence.endswith(".")
        nearest = float(sentence.rsplit(" ", 1)[1].rstrip("."))
        curve = KeepCurve.of(MagnitudeHistogram.of(weights[name]), 0.5, samples=4, power=masks.power[name], reach=None)
        assert curve.expected_ir == pytest.approx(nearest, rel=1e-3)
    assert sizes_kept(masks.draw(1)) == sizes_kept(masks.draw(0))


def test_nothing_is_left_to_chance_at_reach_one():
    weights = some_weights()
    masks = stage_masks(weights, all_alive(weights), 1, small(randomness="target_ir", target_ir=0.1, reach=1.0))
    assert len(masks.clamped) == len(weights)
    assert torch.equal(flatten(masks.draw(0)), flatten(masks.draw(1)))


def test_exact_draws_of_everything_have_a_limit():
    weights = {"a": torch.randn(2**17, generator=torch.Generator().manual_seed(0)), "b": torch.ones(2**17)}
    alive, many = all_alive(weights), MOST_DRAWN // 2**18
    assert MOST_DRAWN == 2**26
    stage_masks(weights, alive, 1, small(scope="global", sampler="exact", samples=many))
    with pytest.raises(ValueError, match=rf"262,144 weights {many + 1:,} times: at most 2\*\*26 together. Use sampler"):
        stage_masks(weights, alive, 1, small(scope="global", sampler="exact", samples=many + 1))
    stage_masks(weights, alive, 1, small(scope="layer", sampler="exact", samples=many + 1))
    stage_masks(weights, alive, 1, small(scope="global", sampler="fast", samples=many + 1))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 7), min_size=0, max_size=3), st.data())
def test_pack_and_unpack(shape, data):
    shape = torch.Size(shape)
    bits = data.draw(st.lists(st.booleans(), min_size=shape.numel(), max_size=shape.numel()))
    mask = torch.tensor(bits, dtype=torch.bool).view(shape)
    packed = pack(mask)
    assert (packed.dtype, packed.ndim, len(packed)) == (torch.uint8, 1, -(-shape.numel() // 8))
    again = unpack(packed, shape)
    assert (again.dtype, again.shape) == (torch.bool, shape)
    assert torch.equal(again, mask)


def test_pack_takes_any_memory_layout():
    mask = torch.rand(5, 9, generator=torch.Generator().manual_seed(0)) > 0.5
    assert torch.equal(unpack(pack(mask.T), mask.T.shape), mask.T)


def test_flatten_and_split_are_inverse():
    masks = {name: weight > 0 for name, weight in some_weights().items()}
    shapes = {name: mask.shape for name, mask in masks.items()}
    again = split(flatten(masks), shapes)
    assert list(again) == list(masks)
    assert all(torch.equal(again[name], mask) for name, mask in masks.items())


def test_applied_masks_leave_exact_zeros_and_nothing_else_changed():
    model = build_model("mlp", 0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    masks = {name: magnitude_mask(weight, 0.9) for name, weight in prunable_weights(model).items()}
    apply_masks(model, masks)
    for name, tensor in model.state_dict().items():
        mask = masks.get(name, torch.ones_like(tensor, dtype=torch.bool))
        assert torch.equal(tensor[mask], before[name][mask])
        assert not tensor[~mask].any()


def test_randomness_of_a_model_counts_all_tensors_together():
    weights = some_weights()
    masks = stage_masks(weights, all_alive(weights), 2, small())
    plain, drawn = masks.draw(0), masks.draw(1)
    pruned = sum(int((~mask).sum()) for mask in plain.values())
    shared = sum(int((~plain[name] & ~drawn[name]).sum()) for name in plain)
    assert model_randomness(drawn, plain) == pytest.approx((pruned - shared) / shared)
    assert model_swapped(drawn, plain) == pytest.approx((pruned - shared) / kept(plain))
    assert (model_randomness(plain, plain), model_swapped(plain, plain)) == (0.0, 0.0)
    ir = model_randomness(drawn, plain)
    assert model_swapped(drawn, plain) == pytest.approx(ir / (1 + ir) * pruned / kept(plain))
