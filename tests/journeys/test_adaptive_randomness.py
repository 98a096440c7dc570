"""Adaptive randomness: what each candidate aims at, where the next stage begins, the same after any stop."""

import itertools
import json
import math
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from support.runs import (
    boundary_file,
    events,
    go_on,
    read_tensors,
    same_tensors,
    small,
    stop_after,
    tiny,
    tiny_parts,
    told,
)

from randprune_lab import Explorer, ExploreState, engine, open_source, store
from randprune_lab.card import model_card
from randprune_lab.config import AT_START, RunConfig, controls
from randprune_lab.events import CandidateScored, Checkpoint, MaskChosen, StageStarted, Warned, from_json
from randprune_lab.masks import model_randomness, stage_masks
from randprune_lab.schedules import SPREAD, next_centre, spread_targets

ADAPTIVE = {"randomness": "adaptive", "target_ir": 0.05, "candidates": 4}
positive = st.floats(1e-9, 1e3)


def weights_of(seed=0):
    generator = torch.Generator().manual_seed(seed)
    found = {"a": torch.randn(120, 100, generator=generator), "b": 3 * torch.randn(90, 100, generator=generator)}
    return found, {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in found.items()}


# ---- targets and centres


@pytest.mark.parametrize(
    ("centre", "candidates", "targets"),
    [
        (0.1, (1, 2, 3), {1: 0.025, 2: 0.1, 3: 0.4}),
        (0.08, (1, 2, 3, 4, 5), {1: 0.02, 2: 0.04, 3: 0.08, 4: 0.16, 5: 0.32}),
        (0.1, (1, 2), {1: 0.025, 2: 0.4}),
        (0.1, (1,), {1: 0.1}),
        (0.1, (), {}),
    ],
)
def test_targets_by_hand(centre, candidates, targets):
    assert spread_targets(centre, candidates) == pytest.approx(targets, rel=1e-12)


@given(centre=positive, candidates=st.integers(2, 200))
def test_targets_lie_evenly_in_log_around_their_centre(centre, candidates):
    logs = [math.log(target) for target in spread_targets(centre, range(1, candidates + 1)).values()]
    assert sum(logs) / len(logs) == pytest.approx(math.log(centre), abs=1e-9)
    assert logs[-1] - logs[0] == pytest.approx(2 * math.log(SPREAD))
    gaps = [later - earlier for earlier, later in itertools.pairwise(logs)]
    assert max(gaps) == pytest.approx(min(gaps), abs=1e-9)


@pytest.mark.parametrize(
    ("ir", "centre"), [(0.03, 0.03), (0.0, 0.02), (0.019, 0.02), (0.5, 0.3), (math.inf, 0.3), (0.02, 0.02)]
)
def test_the_next_centre_is_the_winners_ir_within_the_targets(ir, centre):
    assert next_centre(ir, {1: 0.02, 2: 0.1, 3: 0.3}) == centre


# ---- masks


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_each_candidate_is_the_one_that_its_target_alone_would_give(scope):
    """Bit for bit, in whatever order they are drawn."""
    weights, alive = weights_of()
    adaptive = stage_masks(weights, alive, 2, small(**ADAPTIVE, scope=scope))
    assert adaptive.targets == pytest.approx({1: 0.0125, 2: 0.05, 3: 0.2}, rel=1e-12)
    assert adaptive.power == {}
    for number in (3, 1, 2, 1, 3, 0):
        target = adaptive.targets.get(number, 0.05)
        alone = small(randomness="target_ir", target_ir=target, scope=scope)
        assert same_tensors(adaptive.draw(number), stage_masks(weights, alive, 2, alone).draw(number))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), centre=st.floats(0.02, 0.025), scope=st.sampled_from(["layer", "global"]))
def test_the_drawn_ir_rises_with_the_target(seed, centre, scope):
    """Targets double, and the least swaps 94 weights, give or take 10: 5 standard deviations lie between neighbours.

    With 60 pairs fewer than one run in 50,000 fails by chance.
    """
    weights, alive = weights_of(seed)
    targets = spread_targets(centre, (1, 2, 3, 4, 5))
    config = small(randomness="adaptive", target_ir=0.5, scope=scope, candidates=6, seed=seed)
    masks = stage_masks(weights, alive, 2, config, targets=targets)
    assert masks.targets == targets
    plain = masks.draw(0)
    irs = [model_randomness(masks.draw(number), plain) for number in targets]
    assert irs == sorted(irs)
    assert len(set(irs)) == 5


def test_what_is_out_of_reach_is_clamped_and_said_once_a_candidate():
    weights, alive = weights_of()
    config = small(**ADAPTIVE | {"target_ir": 0.1})  # at sparsity 0.9 little more than 1/9 can be had
    masks = stage_masks(weights, alive, 2, config)
    (sentence,) = masks.clamped
    assert sentence.startswith("stage 2, mask 3: an ir of 0.4 is out of reach in a and 1 more, ")
    assert max(model_randomness(masks.draw(number), masks.draw(0)) for number in (1, 2, 3)) < 0.13
    one = {name: part["a"] for name, part in (("weights", weights), ("alive", alive))}
    (sentence,) = stage_masks({"a": one["weights"]}, {"a": one["alive"]}, 2, config).clamped
    assert "out of reach in a, it gets 0." in sentence


# ---- runs


def of(items, kind):
    return [item for item in items if isinstance(item, kind)]


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_each_stage_begins_where_the_winner_of_the_last_one_was(scope):
    config = tiny(**ADAPTIVE, scope=scope, stages=(0.3, 0.5, 0.7, 0.8), max_epochs=1)
    items = list(engine.prune(config, **tiny_parts()))
    centre = 0.05
    for started, chosen in zip(of(items, StageStarted), of(items, MaskChosen), strict=True):
        low, middle, high = (centre / 4, centre, centre * 4)
        assert started.targets == pytest.approx({1: low, 2: middle, 3: high}, rel=1e-9)
        assert set(started.samples) == ({"*"} if scope == "global" else {"0.weight", "4.weight", "5.weight"})
        centre = min(max(chosen.ir, low), high)
    assert [item.progress.centre for item in of(items, Checkpoint)][-1] == pytest.approx(centre, rel=1e-9)
    again = list(engine.prune(config, **tiny_parts()))
    assert of(items, CandidateScored) == of(again, CandidateScored)
    assert same_tensors(of(items, Checkpoint)[-1].tensors, of(again, Checkpoint)[-1].tensors)


def test_numbers_of_candidates_survive_json():
    for event in events(tiny(**ADAPTIVE), **tiny_parts()):
        assert from_json(json.loads(json.dumps(event.to_json()))) == event
    old = StageStarted(1, 0.5, (0, 1), {"a": 4}, {"a": 5.0}).to_json()
    del old["targets"]
    assert from_json(old).targets == {}
    for damaged in ({"one": 0.1}, [0.1], 3):
        with pytest.raises(ValueError, match="not what an event 'stage_started' holds"):
            from_json({**old, "targets": damaged})


@pytest.mark.parametrize(("method", "targets"), [("imp", {}), ("randomized-no-selection", {1: 0.05})])
def test_methods_that_compare_nothing(method, targets):
    said = events(tiny(**ADAPTIVE, method=method), **tiny_parts())
    assert of(said, StageStarted)[0].targets == targets
    if method == "imp":
        plain = events(tiny(candidates=4, method="imp"), **tiny_parts())
        assert said[1:] == plain[1:]
        assert not of(said, Warned)
    else:  # it stays where it is, but for what chance does
        assert of(said, StageStarted)[1].targets == pytest.approx({1: of(said, MaskChosen)[0].ir}, rel=0.5)


def test_controls_draw_alike():
    assert all(control.target_ir == 0.05 for control in controls(RunConfig(**ADAPTIVE)).values())


@pytest.mark.crash
def test_killed_after_any_item_an_adaptive_run_ends_the_same(tmp_path, monkeypatch):
    """And with a race, too; from the end of the first stage on, where the centre is no longer the first one."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    config = tiny(**ADAPTIVE, racing=True, dense_epochs=1, max_epochs=1, stages=(0.3, 0.5))
    go_on(tmp_path / "whole", config, **tiny_parts())
    expected = told(tmp_path / "whole")
    second = [line for line in expected if line["kind"] == "stage_started"][1]
    assert second["targets"][2] != pytest.approx(0.05)
    items = [type(item) for item in engine.prune(config, **tiny_parts())]
    for taken in range(items.index(MaskChosen), len(items)):
        folder = tmp_path / str(taken)
        stop_after(folder, config, taken, **tiny_parts())
        go_on(folder, config, **tiny_parts())
        assert told(folder) == expected
        ends = [read_tensors(boundary_file(where, 2)) for where in (folder, tmp_path / "whole")]
        assert same_tensors(*ends)  # masks and weights


# ---- looked at again


def test_the_explorer_shows_one_ir_in_the_middle_and_claims_nothing_of_the_runs_masks(tmp_path):
    go_on(tmp_path, tiny(**ADAPTIVE), **tiny_parts())
    source = open_source(tmp_path)
    started = of(store.story(tmp_path), StageStarted)
    for stage in (1, 2):
        found = source.settings(stage)
        assert found["randomness"] == "target_ir"
        assert found["target_ir"] == pytest.approx(started[stage - 1].targets[2])
        assert source.scores(stage).asked == 0
    assert "each aimed at an ir of their own" in source.note
    explorer = Explorer(source)
    state = explorer.start(ExploreState(stage=2, moment="before"))
    assert (state.randomness, state.target_ir) == ("target_ir", source.settings(2)["target_ir"])
    *_, table = explorer.candidates(state)
    assert len(table["drawn"]) == 4
    assert not any("emep" in strip for strip in table["drawn"])
    with pytest.raises(ValidationError, match="adaptive"):
        ExploreState(randomness="adaptive")


def test_the_card_says_where_it_began():
    config = tiny(**ADAPTIVE, racing=True)
    card = model_card(events(config, **tiny_parts()), config)
    assert all(line in card for line in ("- randomness: `adaptive`", "- target_ir: `0.05`", "- racing: `True`"))


# ---- refused


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"target_ir": None}, "randomness = 'adaptive', target_ir = None: each needs the other"),
        ({"target_ir": (0.1, 0.05), "stages": (0.5, 0.9)}, r"target_ir = \(0.1, 0.05\): .* Pass one number"),
        ({"target_ir": 0}, "target_ir = 0"),
        ({"ties": "magnitude"}, "ties = 'magnitude' with target_ir"),
        ({"pattern": "2:4", "stages": (0.5,)}, "pattern = '2:4' with randomness = 'adaptive'"),
    ],
)
def test_what_does_not_go_together_is_refused(changes, why):
    with pytest.raises(ValueError, match=why):
        RunConfig(**ADAPTIVE | changes)


@pytest.mark.parametrize("method", AT_START)
def test_methods_that_prune_before_training_have_no_use_for_it(method):
    config = RunConfig(**ADAPTIVE, method=method)
    assert (config.randomness, config.target_ir) == ("fixed", None)
