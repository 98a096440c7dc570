"""Panels 1 to 4 of a source: masks are those of a run, tables are true, and nothing is worked out that need not be."""

import base64
import itertools
import json
import math
import re
import sys
import threading
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support import reference
from support.runs import (
    boundary_file,
    conv_model,
    go_on,
    read_tensors,
    tiny,
    tiny_model,
    tiny_parts,
    tiny_task,
    unpacked,
)
from torch import nn

from randprune_lab import Explorer, ExploreState, KeepCurve, MagnitudeHistogram, open_source, random_mask, store
from randprune_lab import candidate_generator as generator_of
from randprune_lab.config import RANDOMNESS, SCOPES
from randprune_lab.events import CandidateScored, MaskChosen, StageStarted
from randprune_lab.explorer import empty_quick
from randprune_lab.masks import flatten, stage_masks
from randprune_lab.page import still_picture
from randprune_lab.state import SWEEPS

FIXED = {"randomness": "fixed", "samples": 3}


def normal(*shape, dtype=torch.float32, seed=0):
    return (0.04 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


def opened(model, **settings):
    explorer = Explorer(open_source(model))
    return explorer, explorer.start(ExploreState(**({"sparsity": 0.8} | FIXED | settings)))


def last(explorer, state, name="candidates"):
    return [part for found, part in explorer.slow_parts(state) if found == name][-1]


def many():
    """Blocks, and matrices that are not pruned by default."""
    names = [f"layer.{block}.{part}.weight" for block in range(3) for part in ("q", "k", "v", "o")]
    tensors = {name: normal(20, 15 + place, seed=place) for place, name in enumerate(names)}
    return tensors | {"embed.weight": normal(30, 20, seed=50), "pool.weight": normal(20, 20, seed=51), "b": normal(9)}


# ---- masks are those of a run

CONFIGS = {
    "layer": {"samples": 2},
    "global": {"scope": "global", "samples": 2},
    "no selection": {"method": "randomized-no-selection", "power": 2.0},
    "global, no selection": {"method": "randomized-no-selection", "scope": "global", "power": 2.0},
    "increase, reach, exact": {"randomness": "increase", "sampling_ratio": 0.05, "reach": 1.5, "sampler": "exact"},
    "target, global": {"randomness": "target_ir", "target_ir": (0.1, 0.02), "scope": "global"},
    "target": {"randomness": "target_ir", "target_ir": (0.1, 0.02), "seed": 11},
    "magnitude ties": {"ties": "magnitude", "samples": 5, "method": "randomized-no-selection", "exclude": ("^0",)},
}


def odd_model(hidden=24):
    """Its parameters come in another order than that of their names; the first tensor is drawn by the closed form."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Linear(8, hidden), nn.ReLU(), nn.Linear(hidden, 200), nn.ReLU(), nn.Linear(200, 3)]
    return nn.Sequential(OrderedDict(zip(["zeta", "relu", "0", "more", "alpha"], layers, strict=True)))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """``run(how, network)``: the folder and the configuration of a finished run, made once."""
    made = {}

    def of(how, network=tiny_model):
        if (how, network) not in made:
            settings = CONFIGS[how] if network is tiny_model else {**CONFIGS[how], "exclude": ()}
            config = tiny(**settings, dense_epochs=1, max_epochs=1)
            folder = tmp_path_factory.mktemp("runs")
            go_on(folder, config, model=network(), data=tiny_task())
            made[how, network] = folder, config
        return made[how, network]

    return of


@pytest.mark.parametrize("how", CONFIGS)
@pytest.mark.parametrize("network", [tiny_model, odd_model], ids=["tiny", "odd order"])
def test_the_winner_s_mask_is_that_of_the_run_bit_for_bit(run, how, network):
    folder, config = run(how, network)
    story = store.story(folder)
    sizes = story[0].prunable
    explorer = Explorer(open_source(folder))
    winners = {event.stage: event.winner for event in story if isinstance(event, MaskChosen)}
    assert "no selection" not in how or set(winners.values()) == {1}
    for stage, winner in winners.items():
        tensors = read_tensors(boundary_file(folder, stage))
        masks = {name: unpacked(tensors[f"mask.{name}"], tensors[f"model.{name}"].shape) for name in sizes}
        state = explorer.start(ExploreState(model=str(folder), stage=stage))
        assert state.sparsity == config.stages[stage - 1]
        if config.scope == "global":
            found = explorer.mask(state, winner).numpy()
            assert np.array_equal(found, np.concatenate([mask.ravel() for mask in masks.values()]))
            continue
        for name, mask in masks.items():
            assert np.array_equal(explorer.mask(state.but(tensor=name), winner).numpy(), mask), (stage, name)


@pytest.mark.parametrize("how", CONFIGS)
def test_every_candidate_is_the_engine_s(run, how):
    folder, config = run(how)
    sizes = store.story(folder)[0].prunable
    explorer = Explorer(open_source(folder))
    said = [event for event in store.story(folder) if isinstance(event, StageStarted)]
    for stage in (1, 2):
        tensors = read_tensors(boundary_file(folder, stage - 1))
        weights = {name: tensors[f"model.{name}"] for name in sizes}
        alive = {name: torch.from_numpy(unpacked(tensors[f"mask.{name}"], w.shape)) for name, w in weights.items()}
        engine = stage_masks(weights, alive, stage, config)
        state = explorer.start(ExploreState(model=str(folder), stage=stage))
        for candidate in range(4):
            masks = engine.draw(candidate)
            if config.scope == "global":
                assert torch.equal(explorer.mask(state, candidate), flatten(masks))
            else:
                for name, mask in masks.items():
                    assert torch.equal(explorer.mask(state.but(tensor=name), candidate), mask)
        derived = explorer.quick(state)["derived"]
        key = "*" if config.scope == "global" else state.tensor
        assert derived["samples"] == said[stage - 1].samples[key]
        assert derived["power"] == pytest.approx(said[stage - 1].power[key], rel=1e-6)


def test_what_a_run_said_of_its_candidates_is_what_panel_3_shows(tmp_path):
    """In global scope ir and swapped are of everything at once, here as there."""
    go_on(tmp_path, tiny(scope="global", samples=2, candidates=4), **tiny_parts())
    explorer = Explorer(open_source(tmp_path))
    scored = [event for event in store.story(tmp_path) if isinstance(event, CandidateScored)]
    for stage in (1, 2):
        state = explorer.start(ExploreState(model=str(tmp_path), stage=stage))
        strips = last(explorer, state)["drawn"]
        told = [(event.candidate, event.ir, event.swapped) for event in scored if event.stage == stage]
        assert [(strip["number"], strip["ir"], strip["swapped"]) for strip in strips] == told


@pytest.mark.parametrize("shape", [(1000,), (40, 60), (8, 5, 3, 3), (3000, 2)])
@pytest.mark.parametrize("ties", ["random", "magnitude"])
def test_masks_are_those_of_random_mask(shape, ties):
    weight = normal(*shape)
    explorer, state = opened({"a.b": weight}, ties=ties, reach=1.5, seed=9, stage=4, power=3)
    for candidate in (1, 5):
        expected = random_mask(
            weight, 0.8, samples=3, power=3, reach=1.5, ties=ties, generator=generator_of(9, 4, candidate, "a.b")
        )
        assert torch.equal(explorer.mask(state, candidate), expected)
    plain = reference.deterministic_mask(weight.numpy().ravel(), 0.8)
    assert np.array_equal(explorer.mask(state, 0).numpy().ravel(), plain)


# ---- panel 3


def bits(strip, crop):
    packed = np.frombuffer(base64.b64decode(strip["kept"]), dtype=np.uint8)
    count = crop["rows"] * crop["columns"]
    assert len(packed) == -(-count // 8)
    return np.unpackbits(packed)[:count].astype(bool).reshape(crop["rows"], crop["columns"])


def as_matrix(mask):
    """A tensor by its first dimension against all others; a vector in rows of 64."""
    if mask.ndim > 1:
        return mask.reshape(mask.shape[0], -1)
    width = min(mask.size, 64)
    return mask[: mask.size // width * width].reshape(-1, width)


SHAPES = [
    (90, 100),
    (30, 200),
    (3, 5),
    (1, 300),
    (300, 1),
    (70, 7, 3, 3),
    (4, 2, 5),
    (1000,),
    (64,),
    (65,),
    (10,),
    (1,),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_strips_show_a_corner_of_the_masks(shape):
    explorer, state = opened({"w": normal(*shape)}, sparsity=0.5, candidates=4, rerolled=(2,))
    table = last(explorer, state)
    whole = as_matrix(np.zeros(shape, dtype=bool))
    assert table["crop"]["of"] == list(whole.shape)
    assert (table["crop"]["rows"], table["crop"]["columns"]) == tuple(min(size, 64) for size in whole.shape)
    for strip, number in zip(table["drawn"], state.numbers, strict=True):
        corner = as_matrix(explorer.mask(state, number).numpy())[:64, :64]
        assert np.array_equal(bits(strip, table["crop"]), corner)
        assert strip["number"] == number


def test_strips_in_global_scope_show_the_tensor_that_is_looked_at():
    tensors = many()
    explorer, state = opened(tensors, scope="global", candidates=3)
    names = [name for name in tensors if name.startswith("layer")]
    starts = dict(zip(names, itertools.accumulate([0, *(tensors[name].numel() for name in names)]), strict=False))
    for name in (names[0], names[5], names[-1]):
        at = state.but(tensor=name)
        table = last(explorer, at)
        for strip in table["drawn"]:
            mask = explorer.mask(at, strip["number"]).numpy()
            assert len(mask) == sum(tensors[name].numel() for name in names)
            own = mask[starts[name] :][: tensors[name].numel()].reshape(tensors[name].shape)
            assert np.array_equal(bits(strip, table["crop"]), own[:64, :64])
    # All look at one draw.
    assert torch.equal(explorer.mask(state, 1), explorer.mask(state.but(tensor=names[-1]), 1))
    # What is not pruned is looked at by itself.
    assert explorer.mask(state.but(tensor="embed.weight"), 1).shape == (30, 20)


@pytest.mark.parametrize("settings", [{}, {"candidates": 1}, {"rerolled": (1, 4, 4)}, {"power": 0.0, "sparsity": 0.3}])
def test_agreement_is_the_share_of_the_kept_weights_that_two_masks_share(settings):
    weight = normal(50, 60)
    explorer, state = opened({"w": weight}, **({"candidates": 6} | settings))
    table = last(explorer, state)
    masks = [explorer.mask(state, number).numpy().ravel() for number in state.numbers]
    keep = masks[0].sum()
    by_hand = [[(one & other).sum() / keep for other in masks] for one in masks]
    assert np.allclose(table["agreement"], by_hand, atol=1e-6)
    for strip, mask in zip(table["drawn"], masks, strict=True):
        assert strip["ir"] == pytest.approx(reference.introduced_randomness(mask, masks[0]), rel=1e-12)
        assert strip["swapped"] == pytest.approx((mask & ~masks[0]).sum() / keep, rel=1e-12)
    assert [strip["slot"] for strip in table["drawn"]] == list(range(len(masks)))
    assert (table["done"], table["total"], table["failed"]) == (len(masks), len(masks), None)
    json.dumps(table, allow_nan=False)


def test_dots_are_what_the_masks_did_near_tau():
    weight = normal(300, 200)
    explorer, state = opened({"w": weight}, candidates=5)
    panel, dots = explorer.quick(state)["microscope"], last(explorer, state)["dots"]
    magnitudes = weight.abs().double().numpy().ravel()
    masks = [explorer.mask(state, number).numpy().ravel() for number in state.numbers[1:]]
    half = (panel["high"] - panel["low"]) / 64
    assert len(dots["magnitudes"]) == len(dots["kept"]) == 32
    _, curve = None, KeepCurve.of(weight, 0.8, samples=3)
    for middle, kept in zip(dots["magnitudes"], dots["kept"], strict=True):
        near = (magnitudes >= middle - half) & (magnitudes < middle + half)
        assert kept == pytest.approx(np.mean([mask[near].mean() for mask in masks]), abs=2e-3)
        chance = curve.keep_probability(magnitudes[near]).mean()
        deviation = math.sqrt(max(chance * (1 - chance), 1e-4) / (4 * near.sum()))
        assert abs(kept - chance) < 6 * deviation + 2e-3  # six standard deviations, 32 dots: p < 1e-7


def test_drawn_ir_lies_within_six_standard_deviations_of_the_predicted():
    """The spread is estimated from 31 masks; p < 1e-6."""
    for ties, scope in itertools.product(["random", "magnitude"], SCOPES):
        explorer, state = opened(
            {"a": normal(200, 300), "b": normal(50, 80, seed=2)}, candidates=32, ties=ties, scope=scope
        )
        drawn = [strip["ir"] for strip in last(explorer, state)["drawn"][1:]]
        predicted = explorer.quick(state)["point"]["ir"]
        spread = np.std(drawn, ddof=1)
        assert spread < 0.2 * predicted
        assert all(abs(ir - predicted) < 6 * spread for ir in drawn)
        assert abs(np.mean(drawn) - predicted) < 6 * spread / math.sqrt(31)


def test_a_reroll_changes_one_mask_and_leaves_the_others_alone():
    explorer, state = opened({"w": normal(50, 60)}, candidates=5)
    before, after = (last(explorer, at)["drawn"] for at in (state, state.but(rerolled=(3,))))
    again = last(explorer, state.but(rerolled=(3, 3)))["drawn"]
    for slot in range(5):
        assert (before[slot]["kept"] == after[slot]["kept"]) == (slot != 3)
    assert len({before[3]["kept"], after[3]["kept"], again[3]["kept"]}) == 3
    assert before[0]["number"] == 0


def test_same_seed_same_masks_other_seed_or_stage_others():
    tensors = {"w": normal(50, 60), "v": normal(50, 60)}
    explorer, state = opened(tensors)
    mask = explorer.mask(state, 1)
    assert torch.equal(mask, Explorer(open_source(tensors)).mask(state, 1))
    for other in (state.but(seed=1), state.but(stage=2), state.but(tensor="v")):
        assert not torch.equal(mask, explorer.mask(other, 1))
    assert not torch.equal(mask, explorer.mask(state, 2))


def test_no_global_random_state_is_read_or_moved():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    explorer, state = opened({"w": normal(50, 60)}, candidates=4)
    first = last(explorer, state)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert last(Explorer(explorer.source), state) == first


@pytest.mark.parametrize(
    ("model", "settings", "infinite"),
    [
        (normal(50, 60), {"candidates": 6}, False),
        (normal(50, 60), {"candidates": 2}, False),
        (normal(50, 60), {"candidates": 1}, False),
        (normal(50, 60), {"reach": 1.0}, False),
        (torch.arange(1.0, 26).reshape(5, 5), {"sparsity": 0.04, "power": 0.0, "samples": 1, "candidates": 3}, True),
        (torch.arange(1.0, 26).reshape(5, 5), {"sparsity": 0.04, "power": 0.0, "samples": 1, "candidates": 20}, True),
    ],
)
def test_the_sentence_of_panel_3_is_true_at_every_step(model, settings, infinite):
    explorer, state = opened(model, **settings)
    seen_infinite = False
    for table in explorer.candidates(state):
        sentence, done = table["sentence"], table["done"]
        assert sentence.startswith(f"{done} of {state.candidates} " if done < state.candidates else f"{done} mask")
        if done == 1:
            assert "only the plain one" in sentence
            continue
        assert "only the plain one" not in sentence
        irs = [strip["ir"] for strip in table["drawn"] if strip["number"]]
        seen_infinite |= None in irs
        finite = [ir for ir in irs if ir is not None]
        if finite:
            found = re.search(r"have ir (\S+?)(?: to (\S+?) \(mean (\S+?)\))?[;,]", sentence).groups()
            assert float(found[0]) == pytest.approx(min(finite), rel=1e-3)
            if found[1] and None not in irs:
                assert float(found[1]) == pytest.approx(max(finite), rel=1e-3)
                assert float(found[2]) == pytest.approx(np.mean(finite), rel=1e-3)
        low, high = (float(text) / 100 for text in re.search(r"share (\S+)% to (\S+)% of the kept", sentence).groups())
        apart = [share for place, row in enumerate(table["agreement"]) for at, share in enumerate(row) if at != place]
        assert (low, high) == (pytest.approx(min(apart), abs=6e-5), pytest.approx(max(apart), abs=6e-5))
    assert seen_infinite == infinite


# ---- piece by piece


def test_parts_come_piece_by_piece():
    explorer, state = opened(many(), candidates=5)
    parts = list(explorer.slow_parts(state))
    keys = explorer.keys(state)
    assert parts[0][0] == "sweep"
    assert all(part["key"] == keys[name] for name, part in parts)
    masks = [part for name, part in parts if name == "candidates"]
    assert [part["done"] for part in masks] == [1, 2, 3, 4, 5]
    assert [len(part["drawn"]) for part in masks] == [1, 2, 3, 4, 5]
    for earlier, later in itertools.pairwise(masks):
        assert later["drawn"][: earlier["done"]] == earlier["drawn"]
    tables = [part for name, part in parts if name == "table"]
    assert [part["done"] for part in tables] == [8, 14]
    assert [part["total"] for part in tables] == [14, 14]
    assert [row["name"] for row in tables[-1]["rows"]] == [
        name for name, w in explorer.source._tensors.items() if w.ndim > 1
    ]
    turns = [name for name, _ in parts[1:5]]
    assert set(turns) == {"candidates", "table"}  # neither waits for the other
    json.dumps(parts, allow_nan=False)


@pytest.mark.parametrize("skipped", [(), ("sweep",), ("candidates",), ("table",), ("sweep", "candidates", "table")])
def test_known_parts_are_left_out(skipped):
    explorer, state = opened(many())
    keys = explorer.keys(state)
    known = {name: keys[name] if name in skipped else "old" for name in keys}
    assert {name for name, _ in explorer.slow_parts(state, known)} == set(keys) - set(skipped)


def test_work_that_nobody_asks_for_any_more_is_not_done():
    explorer, state = opened({"w": normal(50, 60)}, candidates=32)
    drawn = []
    source_read = explorer.source.read
    parts = explorer.candidates(state)
    for table in itertools.islice(parts, 3):
        drawn.append(table["done"])
    parts.close()
    assert drawn == [1, 2, 3]
    assert len(explorer._drawn[1]._packed) == 3
    assert source_read is not None


# Which slow parts another value voids: sweep, candidates, table. (None: whether it does, is not said.)
VOIDS = {
    "stage": (3, "sct"),  # weights of a run; and the seed of the masks
    "moment": ("after", "sct"),
    "sparsity": (0.7, "sct"),
    "scope": ("global", "sct"),
    "randomness": ("decrease", "sct"),
    "samples": (9, "sct"),
    "power": (3.0, "sct"),
    "reach": (2.0, "sct"),
    "ties": ("magnitude", "sct"),
    "candidates": (5, "c"),
    "rerolled": ((1,), "c"),
    "seed": (4, "c"),
    "window": (0.5, "c"),
    "sweep": ("power", "s"),
    "tensor": ("layer.1.v.weight", "sc"),
    "pinned": (2, ""),
    "pair": ((1, 2), ""),
    "model": ("elsewhere", ""),
}


@pytest.mark.parametrize("field", VOIDS)
def test_keys_change_when_they_should_and_only_then(field):
    explorer, state = opened(many())
    value, voided = VOIDS[field]
    before, after = explorer.keys(state), explorer.keys(state.but(**{field: value}))
    assert "".join(name[0] for name in before if before[name] != after[name]) == voided
    assert explorer.keys(state) == before


@pytest.mark.parametrize("sweep", SWEEPS)
def test_moving_what_is_swept_does_not_void_the_line(sweep):
    moved = {"sampling_ratio": 1e-3, "samples": 9, "power": 2.0, "reach": 3.0, "sparsity": 0.5}
    explorer, state = opened(many(), sweep=sweep)
    other = state.but(**{sweep: moved[sweep]})
    assert explorer.keys(state)["sweep"] == explorer.keys(other)["sweep"]
    if sweep not in ("reach", "sparsity"):
        assert explorer.sweep(state)["ir"] == explorer.sweep(other)["ir"]
        assert explorer.sweep(state)["x"] == explorer.sweep(other)["x"]
    for field in set(moved) - {sweep, "sampling_ratio", "samples"}:
        assert explorer.keys(state)["sweep"] != explorer.keys(state.but(**{field: moved[field]}))["sweep"]


@pytest.mark.parametrize("scope", SCOPES)
def test_the_table_is_the_same_whichever_tensor_is_looked_at(scope):
    tensors = many()
    explorer, state = opened(tensors, scope=scope)
    assert len({explorer.keys(state.but(tensor=name))["table"] for name in tensors}) == 1


@pytest.mark.parametrize(
    ("changed", "looked_at", "scope", "voided"),
    [
        ("layer.0.q.weight", "layer.0.q.weight", "layer", "sct"),
        ("layer.2.o.weight", "layer.0.q.weight", "layer", "t"),
        ("layer.2.o.weight", "layer.0.q.weight", "global", "sct"),
        ("embed.weight", "layer.0.q.weight", "layer", "t"),
        ("embed.weight", "layer.0.q.weight", "global", "t"),
        ("embed.weight", "embed.weight", "layer", "sct"),
        ("b", "layer.0.q.weight", "layer", ""),
    ],
)
def test_weights_changed_in_place_are_seen(changed, looked_at, scope, voided):
    tensors = many()
    explorer, state = opened(tensors, scope=scope, tensor=looked_at)

    def shown():
        parts = dict(explorer.slow_parts(state))
        return explorer.quick(state), parts["sweep"], parts["candidates"], parts["table"]

    keys, (quick, *parts) = explorer.keys(state), shown()
    tensors[changed].add_(normal(*tensors[changed].shape, seed=99))
    now, (quick_now, *parts_now) = explorer.keys(state), shown()
    assert "".join(name[0] for name in keys if keys[name] != now[name]) == voided
    for name, before, after in zip(("sweep", "candidates", "table"), parts, parts_now, strict=True):
        assert ({**before, "key": ""} != {**after, "key": ""}) == (name[0] in voided), name
    assert (quick["derived"] != quick_now["derived"]) == ("s" in voided)
    fresh = Explorer(open_source(tensors))
    assert quick_now == fresh.quick(state)
    assert dict(explorer.slow_parts(state)) == dict(fresh.slow_parts(state))


def test_a_network_that_is_trained_meanwhile_is_seen():
    model = tiny_model()
    explorer, state = opened(model)
    before = explorer.quick(state)["derived"]["threshold"]
    model(torch.ones(4, 8)).sum().backward()
    torch.optim.AdamW(model.parameters(), lr=0.5).step()
    after = explorer.quick(state)["derived"]["threshold"]
    assert after != before
    assert after == Explorer(open_source(model)).quick(state)["derived"]["threshold"]


# ---- dragged, followed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("reach", [None, 1.5])
def test_a_dragged_threshold_lies_where_it_was_dropped(dtype, reach):
    weight = normal(200, 100, dtype=dtype)
    explorer, state = opened({"w": weight}, reach=reach)
    magnitudes = weight.abs().double().numpy().ravel()
    for share in (0.02, 0.5, 0.9, 0.97):
        at = float(np.quantile(magnitudes, share)) * 1.0001
        moved = explorer.dragged(state, "threshold", at)
        tau = explorer.quick(moved)["microscope"]["tau"]
        nearest = magnitudes[magnitudes >= at].min()
        assert tau == pytest.approx(nearest, rel=5.1e-4)
        kept = explorer.quick(moved)["derived"]["keep"]
        assert kept == pytest.approx((magnitudes >= at).sum(), abs=25)  # what shares a bin with it
        assert moved.but(sparsity=state.sparsity) == state
        assert explorer.dragged(moved, "threshold", tau).sparsity == pytest.approx(moved.sparsity, abs=2e-3)


def test_a_dragged_reach_lies_where_it_was_dropped():
    weight = normal(200, 100)
    explorer, state = opened({"w": weight})
    magnitudes = weight.abs().double().numpy().ravel()
    tau = explorer.quick(state)["microscope"]["tau"]
    for factor in (0.3, 0.6, 0.9):
        moved = explorer.dragged(state, "reach", tau * factor)
        assert moved.reach == pytest.approx((magnitudes >= tau * factor).sum() / 4000, rel=1e-3)
        assert explorer.quick(moved)["microscope"]["reach_at"] == pytest.approx(tau * factor, rel=1e-3)
        assert moved.but(reach=None) == state
    assert explorer.dragged(state, "reach", 2 * tau).reach == 1  # not above tau


@pytest.mark.parametrize("magnitude", [0.0, -1.0, 1e300, 5e-324, 1e9])
@pytest.mark.parametrize("rule", ["threshold", "reach"])
def test_rules_dragged_out_of_the_picture(rule, magnitude):
    explorer, state = opened({"w": normal(20, 10)})
    moved = explorer.dragged(state, rule, magnitude)
    assert explorer.quick(moved)["microscope"] is not None


def test_another_stage_brings_its_sparsity_and_target(tmp_path):
    config = tiny(stages=(0.3, 0.6, 0.9), randomness="target_ir", target_ir=(0.3, 0.2, 0.1), power=2.0)
    go_on(tmp_path, config, **tiny_parts())
    explorer = Explorer(open_source(tmp_path))
    state = explorer.start(ExploreState(model=str(tmp_path)))
    assert (state.sparsity, state.target_ir) == (0.3, 0.3)
    moved = state.but(stage=2, seed=9)
    assert explorer.follow(state, moved) == moved.but(sparsity=0.6, target_ir=0.2)
    assert explorer.follow(state, state.but(stage=4)).sparsity == 0.9
    assert explorer.follow(state, state.but(power=7)) == state.but(power=7)
    assert explorer.follow(moved, moved.but(sparsity=0.7)).sparsity == 0.7


def test_start_chooses_a_tensor_and_a_moment_that_are_there(tmp_path):
    go_on(tmp_path, tiny(), **tiny_parts())
    explorer = Explorer(open_source(tmp_path))
    state = explorer.start(ExploreState(model="m"))
    assert (state.stage, state.moment, state.tensor) == (1, "before", "0.weight")
    gone = explorer.start(ExploreState(stage=77, moment="after"))  # asked for: not passed over in silence
    assert (gone.stage, gone.moment) == (77, "after")
    (notice,) = explorer.quick(gone)["notices"]
    assert "stage = 77, moment = 'after'" in notice["text"]
    assert "stage 2 after" in notice["text"]
    own = explorer.start(ExploreState(sparsity=0.77, stage=2))
    assert (own.sparsity, own.randomness, own.stage) == (0.77, "decrease", 2)  # what somebody has chosen stays
    assert Explorer(open_source(many())).start(ExploreState(tensor="b")).tensor == "b"
    assert Explorer(open_source(many())).start(ExploreState()).tensor == "layer.0.q.weight"


def test_an_empty_tensor_name_is_the_first_one():
    """As ExploreState says."""
    explorer, state = opened(many())
    quick = explorer.quick(state.but(tensor=""))
    assert quick["derived"] == explorer.quick(state)["derived"]
    keys = explorer.keys(state.but(tensor=""))
    explorer.source._tensors["layer.0.q.weight"].mul_(2)
    assert all(key != keys[name] for name, key in explorer.keys(state.but(tensor="")).items())
    assert torch.equal(explorer.mask(state.but(tensor=""), 1), explorer.mask(state, 1))


# ---- the table


@pytest.mark.parametrize("randomness", RANDOMNESS)
def test_rows_are_the_closed_form_of_each_tensor(randomness):
    tensors = many()
    explorer, state = opened(tensors, randomness=randomness, sampling_ratio=0.02, reach=2.0, target_ir=0.05)
    rows = list(explorer.rows(state))
    assert [row.name for row in rows] == [name for name, tensor in tensors.items() if tensor.ndim > 1]
    for row in rows:
        weight = tensors[row.name]
        own = KeepCurve.of(weight, 0.8, samples=row.samples, power=row.power, reach=2.0)
        assert (row.n, row.alive, row.shape) == (weight.numel(), weight.numel(), tuple(weight.shape))
        assert row.threshold == pytest.approx(own.threshold, rel=2.5e-4)
        assert row.expected_ir == pytest.approx(own.expected_ir, rel=1e-9)
        assert row.swapped == pytest.approx(own.swapped, rel=1e-9)
        assert row.prunable == row.name.startswith("layer")
        if randomness == "target_ir":
            assert row.expected_ir == pytest.approx(0.05, rel=1e-6)
    table = last(explorer, state, "table")
    shown = [(row["name"], row["ir"], row["threshold"], row["samples"]) for row in table["rows"]]
    assert shown == [(row.name, row.expected_ir, row.threshold, row.samples) for row in rows]
    pruned = [row.expected_ir for row in rows if row.prunable]
    low, high = (float(text) for text in re.search(r"between (\S+) and (\S+)\.$", table["sentence"]).groups())
    assert table["sentence"].startswith("14 matrices; of those that are pruned")
    assert (low, high) == (pytest.approx(min(pruned), rel=1e-3), pytest.approx(max(pruned), rel=1e-3))


def test_rows_in_global_scope_are_the_tensors_parts_of_one_mask():
    """Against 31 masks; six standard deviations of their mean, 12 rows: p < 1e-7."""
    tensors = {f"w{place}": (place + 1) * normal(40, 30, seed=place) for place in range(4)}
    explorer, state = opened(tensors, scope="global", candidates=32)
    rows = list(explorer.rows(state))
    together = torch.cat([tensor.reshape(-1) for tensor in tensors.values()])
    whole = KeepCurve.of(together, 0.8, samples=3)
    assert all(row.threshold == pytest.approx(whole.threshold, rel=2.5e-4) for row in rows)
    plain = explorer.mask(state, 0).split(1200)
    masks = [explorer.mask(state, number).split(1200) for number in range(1, 32)]
    for place, row in enumerate(rows):
        kept = int(plain[place].sum())
        swapped = np.array([int((mask[place] & ~plain[place]).sum()) for mask in masks])
        assert row.n == 1200
        assert row.swapped * max(kept, 1) == pytest.approx(swapped.mean(), abs=6 * swapped.std(ddof=1) / 31**0.5 + 1)
    assert explorer.quick(state)["point"]["ir"] == pytest.approx(whole.expected_ir, rel=1e-9)


def test_a_row_that_cannot_be_worked_out_says_why_and_the_others_are_there():
    tensors = many()
    tensors["layer.1.k.weight"][3, 3] = float("nan")
    tensors["layer.1.v.weight"][:] = 0
    explorer, state = opened(tensors)
    table = last(explorer, state, "table")
    problems = {row["name"]: row["problem"] for row in table["rows"] if row["problem"]}
    assert set(problems) == {"layer.1.k.weight", "layer.1.v.weight"}
    assert "NaN" in problems["layer.1.k.weight"]
    assert "0 weights exist" in problems["layer.1.v.weight"]
    assert table["sentence"].endswith("2 cannot be pruned so.")
    assert table["done"] == 14
    quick = explorer.quick(state.but(scope="global"))
    assert "layer.1.k.weight" in quick["notices"][0]["text"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"include": "("}, "include = '\\('"),
        ({"exclude": "["}, "exclude = '\\['"),
        ({"include": "zzz"}, "no floating-point"),
    ],
)
def test_patterns_that_find_nothing(arguments, words):
    explorer, state = opened(many())
    with pytest.raises(ValueError, match=words):
        list(explorer.rows(state, **arguments))


# ---- the small, the large and the broken

EDGES = {
    "one weight": torch.tensor([0.5]),
    "scalar": torch.tensor(0.5),
    "two weights": torch.tensor([0.5, -1.0]),
    "five weights": normal(5),
    "one column": normal(300, 1),
    "zeros": torch.zeros(8, 8),
    "one that is not zero": torch.eye(8) * torch.eye(8)[0],
    "constant": torch.full((20, 20), -0.3),
    "nan": torch.tensor([[1.0, float("nan")]]),
    "infinite": torch.tensor([[1.0, float("inf")]]),
    "bfloat16": normal(60, 60, dtype=torch.bfloat16),
    "tiny": normal(30, 30) * 1e-40,
    "huge": normal(30, 30).double() * 1e300,
}


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9375, 0.9999])
@pytest.mark.parametrize("name", EDGES)
def test_whatever_the_weights_something_is_shown_or_said(name, sparsity):
    weight = EDGES[name]
    keep, alive = reference.keep_of(weight.numel(), sparsity), int((weight != 0).sum())
    possible = bool(weight.isfinite().all()) and 0 < keep <= alive
    for randomness, scope in [("fixed", "layer"), ("decrease", "global"), ("target_ir", "layer")]:
        explorer, state = opened(weight, sparsity=sparsity, randomness=randomness, scope=scope, candidates=3)
        quick = explorer.quick(state)
        json.dumps(quick, allow_nan=False)
        errors = [notice["text"] for notice in quick["notices"] if notice["kind"] == "error"]
        assert (quick["microscope"] is not None) == possible == (not errors)
        assert (quick["curve"] is None) == (quick["point"] is None) == (not possible)
        parts = dict(explorer.slow_parts(state))
        json.dumps(parts, allow_nan=False)
        if possible:
            assert parts["candidates"]["failed"] is None
            assert all(explorer.mask(state, number).sum() == keep for number in range(3))
            if sparsity == 0:
                assert quick["point"]["ir"] == 0
        if keep == 0 and bool(weight.isfinite().all()):
            assert f"nothing of {weight.numel():,} weights is kept" in errors[0]
            assert quick["derived"]["keep"] == 0


def test_a_million_weights():
    weight = normal(1024, 1024)
    explorer, state = opened(weight, sparsity=0.9375, randomness="decrease", candidates=2)
    quick = explorer.quick(state)
    assert (quick["derived"]["samples"], quick["derived"]["keep"]) == (49, 65_536)
    table = last(explorer, state)
    assert table["drawn"][1]["ir"] == pytest.approx(quick["point"]["ir"], rel=0.2)
    assert explorer.mask(state, 1).sum() == 65_536
    assert table["crop"]["of"] == [1024, 1024]


def test_settings_that_do_not_fit_are_said_in_words():
    weight = normal(2**12, 2**5)
    explorer, state = opened(weight, sampler="exact", samples=10_000)
    assert explorer.quick(state)["microscope"] is not None  # needs no masks
    assert "sampler = fast" in last(explorer, state)["failed"]
    explorer, state = opened(weight, randomness="decrease", sampling_ratio=1e9)
    (notice,) = explorer.quick(state)["notices"]
    assert "sampling_ratio = 1000000000.0" in notice["text"]
    assert last(explorer, state)["failed"]
    assert explorer.quick(state.but(tensor="wieght"))["notices"][0]["text"].endswith("Did you mean 'weight'?")
    with pytest.raises(ValueError, match="Did you mean"):
        explorer.mask(state.but(tensor="nowhere"), 1)


@pytest.mark.parametrize("name", ["x" * 900, "\0", "%s", "<b>", "é" * 500])
def test_a_tensor_that_is_not_there(name):
    explorer, state = opened(many())
    quick = explorer.quick(state.but(tensor=name))
    assert (quick["microscope"], quick["notices"][0]["kind"]) == (None, "error")
    assert "Did you mean" in quick["notices"][0]["text"]
    assert set(explorer.keys(state.but(tensor=name))) == {"sweep", "candidates", "table"}


def test_a_convolutional_network():
    explorer, state = opened(conv_model(), sparsity=0.5)
    assert state.tensor == "0.weight"
    assert explorer.describe()["tensors"][0] == {"name": "0.weight", "shape": [4, 1, 3, 3], "n": 36, "prunable": True}
    assert explorer.mask(state, 1).shape == (4, 1, 3, 3)


def test_quick_says_everything_a_page_needs():
    explorer, state = opened(many(), pair=(0, 2))
    quick = explorer.quick(state)
    assert ExploreState.model_validate(quick["state"]) == state
    assert quick["code"] == state.to_code()
    assert quick["keys"] == explorer.keys(state)
    assert quick["notices"] == []
    nothing = empty_quick(state, "no model")
    assert set(nothing) == set(quick)
    assert nothing["notices"] == [{"kind": "error", "text": "no model"}]
    json.dumps(explorer.describe(), allow_nan=False)


def test_panels_are_those_of_the_histogram():
    tensors = many()
    explorer, state = opened(tensors, scope="global")
    names = [name for name in tensors if name.startswith("layer")]
    both = MagnitudeHistogram.of(torch.cat([tensors[name].reshape(-1) for name in names]))
    found = explorer.weights.histogram(state)
    assert np.array_equal(found.bins, both.bins)
    assert np.array_equal(found.counts, both.counts)
    assert found.size == both.size
    assert explorer.quick(state)["derived"]["n"] == both.size
    assert explorer.quick(state.but(tensor="embed.weight"))["derived"]["n"] == 600


# ---- what a review and an attack found


def test_masks_asked_for_by_several_threads_are_of_the_right_tensor():
    tensors = {name: normal(48, 48, seed=place) for place, name in enumerate(("a.weight", "b.weight"))}
    explorer, state = opened(tensors)
    expected = {name: explorer.mask(state.but(tensor=name), 1) for name in tensors}
    assert not torch.equal(*expected.values())
    wrong = []

    def ask(name):
        for _ in range(60):
            if not torch.equal(explorer.mask(state.but(tensor=name), 1), expected[name]):
                wrong.append(name)

    threads = [threading.Thread(target=ask, args=(name,)) for name in (*tensors, *tensors)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_tensor_alone_in_global_scope_has_the_numbers_of_layer_scope(dtype):
    """Ties at tau (bfloat16 has thousands) are shared out alike in both."""
    explorer, state = opened({"layer.weight": normal(128, 128, dtype=dtype)}, randomness="fixed", samples=4)
    (layer,), (whole,) = list(explorer.rows(state)), list(explorer.rows(state.but(scope="global")))
    assert whole.expected_ir == pytest.approx(layer.expected_ir, rel=1e-3)
    assert whole.swapped == pytest.approx(layer.swapped, rel=1e-3)


def test_a_tensor_s_share_of_the_global_masks_is_what_draws_give():
    """Twelve masks; the mean lies within 5 % (standard error below 0.5 %)."""
    generator = torch.Generator().manual_seed(0)
    tensors = {"a.weight": torch.randn(256, 256, generator=generator)}
    tensors["b.weight"] = 0.42 * torch.randn(256, 256, generator=generator)
    explorer, state = opened(tensors, scope="global", randomness="fixed", samples=1, power=1.0)
    plain = torch.split(explorer.mask(state, 0), 256 * 256)
    rows = {row.name: row for row in explorer.rows(state)}
    for place, name in enumerate(tensors):
        masks = [torch.split(explorer.mask(state, number), 256 * 256)[place] for number in range(1, 13)]
        drawn = [float((mask & ~plain[place]).sum() / mask.sum()) for mask in masks]
        assert rows[name].swapped == pytest.approx(np.mean(drawn), rel=0.05)


def test_what_may_differ_from_a_run_is_said(tmp_path):
    weight = normal(40, 40)
    weight[:3] = 0
    explorer, state = opened({"layer.weight": weight})
    assert any("120 weights are 0" in notice["text"] for notice in explorer.quick(state)["notices"])
    save_file({"layer.weight": normal(40, 40)}, tmp_path / "model.safetensors")
    explorer, state = opened(tmp_path, scope="global")
    assert any("order" in notice["text"] for notice in explorer.quick(state)["notices"])
    assert not explorer.quick(state.but(scope="layer"))["notices"]


def test_a_ratio_that_follows_gives_the_same_samples_again():
    for samples in (1, 3, 237, 999):
        explorer, state = opened({"layer.weight": normal(100, 10)}, randomness="fixed", samples=samples)
        derived = explorer.quick(state)["derived"]
        again = explorer.quick(state.but(randomness="decrease", sampling_ratio=derived["sampling_ratio"]))["derived"]
        assert again["samples"] == samples


@pytest.mark.parametrize("magnitude", [1e-45, 1e-300])
def test_underflowing_weights_have_a_still_picture(magnitude):
    explorer, state = opened({"layer.weight": torch.full((64, 64), magnitude, dtype=torch.float64)}, sparsity=0.5)
    view = {"quick": explorer.quick(state), **dict(explorer.slow_parts(state))}
    assert still_picture(view).startswith("<svg")
