"""Racing EMEP: who is dropped when, against a slow reference; what stays bit for bit the same; resumed anywhere."""

import dataclasses
import itertools
import os
import types
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.runs import go_on, same_tensors, small, stop_after, tiny, tiny_parts, told

from randprune_lab import curves, engine, executors, live, store
from randprune_lab.config import RunConfig, controls
from randprune_lab.events import CandidateScored, Checkpoint, MaskChosen, RunStarted, Score, StageFinished, from_json
from randprune_lab.executors import Trained, judge_candidates, train_candidates
from randprune_lab.methods import METHODS, planned_epochs
from randprune_lab.report import write_report
from randprune_lab.schedules import race_rounds
from randprune_lab.terminal import epochs_of
from randprune_lab.training import Diverged

RACE = {"racing": True, "candidates": 6, "emep_epochs": 2, "stages": (0.5, 0.9)}  # 10 steps: rounds to 2, 5, 10


def transformer(**changes):
    """All terms of distillation; three steps an epoch."""
    every = {"hidden_weight": 1.0, "attention_weight": 0.5, "max_steps_per_epoch": 3}
    return small(task="digits", model="tiny-vit", **(every | changes | {"stages": (0.9,)}))


def scored(items):
    return [item for item in items if isinstance(item, CandidateScored)]


# ---- the rounds


@pytest.mark.parametrize(
    ("candidates", "steps", "rounds"),
    [
        (8, 8, [(8, 2), (4, 4), (2, 8)]),
        (8, 103, [(8, 25), (4, 51), (2, 103)]),
        (6, 12, [(6, 3), (3, 6), (2, 12)]),
        (5, 4, [(5, 1), (3, 2), (2, 4)]),
        (3, 2, [(3, 1), (2, 2)]),
        (2, 1, [(2, 1)]),
        (1, 7, [(1, 7)]),
    ],
)
def test_rounds_by_hand(candidates, steps, rounds):
    assert race_rounds(candidates, steps) == rounds
    assert RunConfig(racing=True, candidates=candidates).rounds(steps) == rounds
    assert RunConfig(candidates=candidates).rounds(steps) == [(candidates, steps)]


@given(candidates=st.integers(2, 1000), steps=st.integers(512, 10**6), epochs=st.integers(1, 3))
def test_rounds_halve_the_field_double_in_length_and_cost_what_is_planned(candidates, steps, epochs):
    rounds = race_rounds(candidates, steps)
    assert rounds[0][0] == candidates
    assert rounds[-1] == (min(candidates, 2), steps)
    for (field, end), (later, after) in itertools.pairwise(rounds):
        assert 2 * later - field in (0, 1)
        assert after - 2 * end in (0, 1)
    starts = [0, *(end for _, end in rounds)]
    cost = sum(field * (end - start) for (field, end), start in zip(rounds, starts, strict=False))
    config = RunConfig(racing=True, candidates=candidates, emep_epochs=epochs)
    planned = config.judging_epochs / epochs * steps
    assert planned - candidates * len(rounds) <= cost <= planned  # a round may end up to a step early, never late


@pytest.mark.parametrize(
    ("candidates", "epochs", "cost", "matched"), [(8, 1, 4, 19), (8, 3, 12, 27), (2, 1, 2, 17), (6, 1, 3.25, 19)]
)
def test_what_a_race_costs(candidates, epochs, cost, matched):
    config = RunConfig(racing=True, candidates=candidates, emep_epochs=epochs)
    assert config.judging_epochs == cost
    assert planned_epochs(config)["judging"] == 5 * cost
    assert controls(config)["imp-matched"].max_epochs == matched
    shorter = config.model_copy(update={"max_steps_per_epoch": 20, "emep_steps": 5})
    assert controls(shorter)["imp-matched"].max_epochs == 15 + -(-cost // 4)
    plain = config.model_copy(update={"racing": False})
    assert planned_epochs(plain)["judging"] == 5 * candidates * epochs
    assert planned_epochs(config.model_copy(update={"method": "imp"}))["judging"] == 0


def test_too_few_steps_for_the_rounds_are_refused_before_anything_is_trained():
    few = tiny(racing=True, candidates=17, batch_size=16)  # 5 rounds: 16 steps, an epoch has 5
    with pytest.raises(ValueError, match=r"racing with 17 candidates has 5 rounds, which need 16 steps .* there are 5"):
        engine.prune(few, **tiny_parts())
    next(engine.prune(few.model_copy(update={"emep_epochs": 4}), **tiny_parts()))
    next(engine.prune(few.model_copy(update={"method": "imp"}), **tiny_parts()))  # compares nothing


# ---- a candidate's training may be cut anywhere


def ready(config, **parts):
    """A run whose dense network is trained: its session and the masks of its first stage."""
    run = engine._Run(config, {"model": None, "task": None, "criterion": None} | parts, None)
    for _ in run.train_dense():
        pass
    run.take_teacher()
    return run.session, run.candidates(1)


@pytest.fixture(scope="module", params=["mlp", "vit"])
def prepared(request):
    if request.param == "vit":
        return ready(transformer(candidates=4, emep_epochs=2))
    parts = tiny_parts()
    return ready(tiny(candidates=4, emep_epochs=2), model=parts["model"], task=parts["data"])


def all_of(session, masks, steps, states=types.MappingProxyType({})):
    found = train_candidates(session, masks.draw, range(4), 1, steps, states=states, keep=True)
    return {each.number: each for each in found}


@pytest.mark.parametrize("how", [{"executor": "serial"}, {"wave": 3}, {}], ids=["serial", "waves", "lockstep"])
def test_in_two_rounds_candidates_come_to_the_same_bits_as_in_one(prepared, how):
    session, masks = prepared
    session = dataclasses.replace(session, config=session.config.model_copy(update=how))
    steps = 2 * session.steps_of("emep")
    before = {name: tensor.clone() for name, tensor in session.model.state_dict().items()}
    whole = all_of(*prepared, range(steps))
    for cut in range(1, steps, 1 if not how else 4):
        states = {number: each.state for number, each in all_of(session, masks, range(cut)).items()}
        kept = {number: {name: t.clone() for name, t in state.items()} for number, state in states.items()}
        again = all_of(session, masks, range(cut, steps), states)
        for number, each in whole.items():
            assert (again[number].score, again[number].failed) == (each.score, None)
            assert same_tensors(again[number].state, each.state)
            assert same_tensors(states[number], kept[number])  # a state can be gone on with twice
    assert same_tensors(before, dict(session.model.state_dict()))
    assert len({each.score.loss for each in whole.values()}) == 4


def test_states_are_given_only_when_asked_for(prepared):
    session, masks = prepared
    assert [each.state for each in train_candidates(session, masks.draw, (2, 0), 1, range(1))] == [{}, {}]
    assert [each.number for each in train_candidates(session, masks.draw, (2, 0), 1, range(1))] == [2, 0]
    assert list(train_candidates(session, masks.draw, (), 1, range(1))) == []


def test_what_a_state_lacks_would_show(prepared):
    """The test above could fail: without the optimizer's moments another score comes out."""
    session, masks = prepared
    states = {number: each.state for number, each in all_of(session, masks, range(2)).items()}
    bare = {
        number: {name: tensor for name, tensor in state.items() if name.startswith("model.")}
        for number, state in states.items()
    }
    one, other = (all_of(session, masks, range(2, 5), given) for given in (states, bare))
    assert all(one[number].score != other[number].score for number in one)


# ---- who is dropped


class Invented:
    """Trains nothing: the score of a candidate after so many steps is looked up; None: it fails."""

    def __init__(self, table):
        self.table, self.asked = table, []

    def __call__(self, _session, _draw, numbers, _stage, steps, *, states, keep):
        self.asked.append((list(numbers), steps, keep))
        assert set(states) == (set(numbers) if steps.start else set())
        assert all(float(state["steps"]) == steps.start for state in states.values())
        for number in numbers:
            score = self.table[number, steps.stop]
            state = {"steps": torch.tensor(float(steps.stop))} if keep and score else {}
            yield Trained(number, score and Score(*score), None if score else "it broke", state)


def session_of(candidates, steps):
    config = RunConfig(racing=True, candidates=candidates)
    return types.SimpleNamespace(config=config, steps_of=lambda _: steps)


def reference(table, candidates, steps):
    """(number, steps after which it was dropped) in the order in which fates are known, written down naively."""
    said, field, end = [], list(range(candidates)), steps
    ends = [steps]
    size = candidates
    while size > 2:
        size, end = size // 2 + size % 2, end // 2
        ends.insert(0, end)
    for end in ends[:-1]:
        better = [number for number in field if table[number, end] is not None]
        better.sort(key=lambda number: (-table[number, end][0], table[number, end][1], number))
        if 0 in better:
            better.remove(0)
            better.insert(0, 0)
        candidates = candidates // 2 + candidates % 2
        stay = better[:candidates]
        said += [(number, 0 if table[number, end] is None else end) for number in field if number not in stay]
        field = [number for number in field if number in stay]
    return said + [(number, 0) for number in field]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_race_drops_whom_the_reference_drops_and_can_be_taken_up_anywhere(data):
    candidates = data.draw(st.integers(1, 12))
    steps = data.draw(st.integers(16, 40))
    ends = [end for _, end in race_rounds(candidates, steps)]
    score = st.one_of(st.none(), st.tuples(st.sampled_from([0.5, 0.6, 0.7]), st.sampled_from([0.1, 0.2])))
    table = {(number, end): data.draw(score) for number in range(candidates) for end in ends}

    def race(numbers):
        train = Invented(table)
        said = list(judge_candidates(session_of(candidates, steps), None, numbers, 1, train))
        assert [asked[2] for asked in train.asked] == [True] * (len(ends) - 1) + [False]
        assert [asked[1].stop for asked in train.asked] == ends
        return said

    whole = race(range(candidates))
    assert [(number, dropped) for number, _, _, dropped in whole] == reference(table, candidates, steps)
    for number, score, failed, dropped in whole:
        assert (score is None) == (failed is not None)
        assert dropped == 0 or table[number, dropped] == (score.metric, score.loss)
        assert number or not dropped  # the deterministic one is never dropped
    for done in range(len(whole)):  # killed after so many were said
        known = {number for number, *_ in whole[:done]}
        assert race([number for number in range(candidates) if number not in known]) == whole[done:]


@pytest.mark.parametrize("order", [range(9), range(8, -1, -1)])
def test_no_more_states_are_held_than_there_is_room_for(order):
    alive = weakref.WeakSet()

    def trained():
        for number in order:
            state = {"model": torch.zeros(1)}
            alive.add(state["model"])
            assert len(alive) <= 4 + 2  # and the one that came last, and the one that is coming
            yield Trained(number, Score(number / 10, 1.0), None, state)

    states, gone = executors._halved(trained(), 4)
    assert sorted(states) == [0, 6, 7, 8]  # the plain one stays, the worst as it is
    assert [each.number for each in gone] == [number for number in order if number not in states]


def test_only_who_went_to_the_end_can_win():
    def event(number, metric, steps, failed=None):
        return CandidateScored(1, number, None if failed else Score(metric, 1.0), 0.1, 0.1, failed, steps)

    assert engine.best([event(2, 0.9, 5), event(0, 0.5, 0), event(1, 0.6, 0)]) == 1
    with pytest.raises(Diverged, match=r"^every candidate that the race did not drop failed; the first: it broke$"):
        engine.best([event(2, 0.9, 5), event(0, 0.5, 0, "it broke"), event(1, 0.6, 0, "it, too")])
    with pytest.raises(Diverged, match=r"^every candidate failed; the first: it broke$"):
        engine.best([event(0, 0.5, 0, "it broke"), event(1, 0.6, 0, "it, too")])


# ---- whole runs


@pytest.mark.parametrize(
    ("config", "parts"),
    [(lambda **more: tiny(**RACE, **more), tiny_parts), (lambda **more: transformer(**RACE, **more), dict)],
    ids=["mlp", "vit"],
)
def test_a_race_is_the_same_bit_for_bit_whatever_the_wave(config, parts):
    runs = [list(engine.prune(config(**how), **parts())) for how in ({"executor": "serial"}, {"wave": 4}, {})]
    for other in runs[1:]:
        for first, second in zip(runs[0], other, strict=True):
            if isinstance(first, Checkpoint):
                assert same_tensors(first.tensors, second.tensors)
            elif not isinstance(first, RunStarted):
                assert first == second
    stages = len(config().stages)
    assert [event.steps > 0 for event in scored(runs[0])] == [True, True, True, True, False, False] * stages


def test_a_race_against_candidates_trained_one_by_one():
    """Each alone, to each round's end, by a judging of just as many steps; and to the end as without a race."""
    plain = {"candidates": 6, "stages": (0.9,), "max_epochs": 1, "max_steps_per_epoch": 5}
    steps = {2: {"emep_steps": 2}, 5: {}, 10: {"emep_epochs": 2}}
    table = {}
    for end, how in steps.items():
        for event in scored(engine.prune(tiny(**plain, **how, wave=1), **tiny_parts())):
            table[event.candidate, end] = (event.selection.metric, event.selection.loss)
    said = scored(engine.prune(tiny(**plain, emep_epochs=2, racing=True), **tiny_parts()))
    assert [(event.candidate, event.steps) for event in said] == reference(table, 6, 10)
    for event in said:
        assert (event.selection.metric, event.selection.loss) == table[event.candidate, event.steps or 10]


@pytest.mark.parametrize("score", [(0.0, 99.0), None])
def test_the_worst_deterministic_mask_reaches_the_end_unless_it_fails(monkeypatch, score):
    finish = executors._trained

    def worst(number, phase, steps, *, keep):
        found = finish(number, phase, steps, keep=keep)
        if number:
            return found
        return dataclasses.replace(found, score=score and Score(*score), failed=None if score else "it broke")

    monkeypatch.setattr(executors, "_trained", worst)
    items = list(engine.prune(tiny(**RACE), **tiny_parts()))
    plain = [event for event in scored(items) if event.candidate == 0]
    assert [(event.steps, event.failed) for event in plain] == [(0, None if score else "it broke")] * 2
    at_the_end = [event for event in scored(items) if not event.steps and not event.failed]
    assert len(at_the_end) == 4  # another takes the place of one that failed
    winners = {event.stage: event.winner for event in items if isinstance(event, MaskChosen)}
    assert {(event.stage, event.candidate) for event in at_the_end if event.candidate} >= set(winners.items())


@pytest.mark.crash
def test_killed_after_any_item_a_race_ends_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)
    config = tiny(**RACE, dense_epochs=1, max_epochs=1)
    go_on(tmp_path / "whole", config, **tiny_parts())
    expected = told(tmp_path / "whole")
    items = [type(item) for item in engine.prune(config, **tiny_parts())]
    for taken in range(items.index(StageFinished), len(items)):  # from the end of the first stage on
        folder = tmp_path / str(taken)
        stop_after(folder, config, taken, **tiny_parts())
        begun = told(folder)
        assert begun == expected[: len(begun)]
        again = go_on(folder, config, **tiny_parts())
        assert told(folder) == expected
        known = {(event["stage"], event["candidate"]) for event in begun if event["kind"] == "candidate_scored"}
        assert not known & {(event.stage, event.candidate) for event in scored(again)}


# ---- told


def test_events_of_before_there_were_races():
    record = CandidateScored(1, 0, Score(0.5, 1.0), 0.0, 0.0).to_json()
    del record["steps"]
    assert from_json(record).steps == 0


def test_a_race_is_shown_as_what_it_is(tmp_path):
    config = tiny(**RACE, dense_epochs=1, max_epochs=1)
    go_on(tmp_path, config, **tiny_parts())
    own = store.read_config(tmp_path)
    said = list(store.story(tmp_path))
    assert sum(epochs_of(event, own) for event in said) == pytest.approx(sum(planned_epochs(own).values()))
    view = live.live_view(tmp_path)
    rows = [row for row in view["lanes"]["rows"] if row["stage"] == 2]
    dropped = {event.candidate for event in scored(said) if event.stage == 2 and event.steps}
    assert {row["candidate"] for row in rows if row["state"] == "dropped"} == dropped
    assert "6 of 6 masks are judged, 4 of them dropped early" in view["lanes"]["sentence"]
    assert all(curves._told(row).endswith(", dropped early") == (row["state"] == "dropped") for row in rows)
    assert "dropped after 2 steps" in write_report(tmp_path).read_text()


def test_every_method_takes_the_setting():
    assert all(RunConfig(method=method, racing=True).racing for method in METHODS)
