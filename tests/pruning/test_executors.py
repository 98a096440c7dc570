"""Candidates in lockstep: the same scores and weights as one after another, whatever the wave; memory is bounded."""

import dataclasses
import gc
import math
import weakref

import pytest
import torch
from support.runs import checkpoints, events, same_tensors, small, tiny, tiny_parts

from randprune_lab import engine, executors, training
from randprune_lab.distill import Teacher
from randprune_lab.engine import prune
from randprune_lab.events import CandidateScored, Checkpoint, RunStarted

WAVES = [{"executor": "serial"}, {"wave": 1}, {"wave": 2}, {"wave": 3}, {}]


def transformer(**settings):
    """A tiny ViT on real digits with every term of distillation: three steps an epoch."""
    every = {"hidden_weight": 1.0, "attention_weight": 0.5, "max_steps_per_epoch": 3, "stages": (0.5, 0.9)}
    short = {"dense_epochs": 1, "max_epochs": 1, "selection_rows": 60}
    return small(task="digits", model="tiny-vit", candidates=4, **(every | short | settings))


def plain(**settings):
    """Batch normalization and dropout: running statistics and a random state that candidates must not share."""
    return tiny(candidates=4, **settings)


@pytest.mark.parametrize(("config", "parts"), [(transformer, dict), (plain, tiny_parts)], ids=["vit", "mlp"])
def test_scores_and_weights_are_the_same_bit_for_bit_whatever_the_wave(config, parts):
    runs = [list(prune(config(emep_epochs=2, **wave), **parts())) for wave in WAVES]
    for other in runs[1:]:
        for first, second in zip(runs[0], other, strict=True):
            if isinstance(first, Checkpoint):
                assert same_tensors(first.tensors, second.tensors)
            elif not isinstance(first, RunStarted):  # which tells the configuration
                assert first == second
    assert len({event.selection.loss for event in runs[0] if isinstance(event, CandidateScored)}) > 4


@pytest.mark.parametrize(("wave", "times"), [({"executor": "serial"}, 4), ({"wave": 2}, 2), ({"wave": 3}, 2), ({}, 1)])
def test_the_teacher_sees_each_batch_once_for_a_whole_wave(monkeypatch, wave, times):
    seen = []
    ask = Teacher.features
    monkeypatch.setattr(Teacher, "features", lambda self, *batch: seen.append(1) or ask(self, *batch))
    events(transformer(stages=(0.5,), max_epochs=1, **wave))
    assert len(seen) == 3 * times + 3  # EMEP, and one epoch of fine-tuning


def test_where_only_logits_count_the_teacher_is_run_once_for_a_whole_run(monkeypatch):
    asked = []
    ask = engine.all_logits
    monkeypatch.setattr(engine, "all_logits", lambda *given: asked.append(1) or ask(*given))
    events(plain(), **tiny_parts())
    assert asked == [1]


class Memory:
    """So much is free, and each candidate takes so much."""

    def __init__(self, free, takes):
        self.free, self.takes, self.asked = free, takes, 0

    def __call__(self, _):
        self.asked += 1
        return self.free - self.takes * (self.asked - 1)


@pytest.mark.parametrize(
    ("free", "takes", "together"),
    [
        (1000, 1, 4),  # all
        (1000, 200, 4),
        (1000, 300, 2),  # 400 are left, and 150 stay free
        (1000, 280, 3),
        (1000, 500, 1),
        (1000, 2000, 1),  # the first one is tried in any case
    ],
)
def test_a_wave_is_as_large_as_what_was_measured_allows(monkeypatch, free, takes, together):
    waves = []
    train = executors.train_steps

    def watched(*args):
        monkeypatch.setattr(executors, "free_memory", Memory(free, takes))
        monkeypatch.setattr(executors, "in_passing", lambda _: 0)
        joined = train(*args)
        waves.append(len(joined))
        return joined

    monkeypatch.setattr(executors, "train_steps", watched)
    # the meter is made when the first candidate is: its memory is that of ``watched``
    said = events(plain(stages=(0.5,)), **tiny_parts())
    assert waves[0] == together
    assert sum(waves) == 4
    assert [event.candidate for event in said if isinstance(event, CandidateScored)] == [0, 1, 2, 3]


def test_what_a_step_needs_in_passing_counts(monkeypatch):
    waves = []
    train = executors.train_steps

    def watched(*args):
        monkeypatch.setattr(executors, "free_memory", Memory(1000, 100))
        monkeypatch.setattr(executors, "in_passing", lambda _: 500)
        joined = train(*args)
        waves.append(len(joined))
        return joined

    monkeypatch.setattr(executors, "train_steps", watched)
    events(plain(stages=(0.5,)), **tiny_parts())
    assert waves[0] == 3  # 700 are left: 100 for the next, 500 for its step, but not 150 to spare


@pytest.mark.parametrize(("wave", "most"), [({"executor": "serial"}, 1), ({"wave": 2}, 2), ({}, 4)])
@pytest.mark.parametrize("fails", [False, True])
def test_no_more_candidates_are_in_memory_than_the_wave_holds(monkeypatch, wave, most, fails):
    """Not even those that failed: an error that is kept would keep all that it saw."""
    alive, seen = weakref.WeakSet(), []
    begin, check = training.Phase.__init__, training.Phase.check

    def counted(self, session, name, *args):
        begin(self, session, name, *args)
        if name == "emep":
            alive.add(self)
            seen.append(len(alive))

    def failing(self, step):
        check(self, step)
        if fails and self.name == "emep" and len(seen) % 2:
            raise training.Diverged("made to fail")

    monkeypatch.setattr(training.Phase, "__init__", counted)
    monkeypatch.setattr(training.Phase, "check", failing)
    gc.collect()
    gc.disable()
    try:
        events(plain(**wave), **tiny_parts())
    finally:
        gc.enable()
    assert max(seen) == most
    assert not alive


def test_a_peak_of_memory_is_seen_and_forgotten():
    cpu = torch.device("cpu")
    executors.forget_peak(cpu)
    if executors.in_passing(cpu) > 2**24:
        pytest.skip("this system does not tell its peak of memory")
    torch.ones(2**26).sum()  # 256 MiB, gone at once
    assert executors.in_passing(cpu) > 2**27
    executors.forget_peak(cpu)
    assert executors.in_passing(cpu) < 2**26


def test_free_memory_is_that_of_the_machine_or_less():
    import psutil

    assert 0 < executors.free_memory(torch.device("cpu")) <= psutil.virtual_memory().total


@pytest.mark.parametrize("wave", [1, 2, None])
def test_a_candidate_that_fails_leaves_the_others_as_they_would_be(monkeypatch, wave):
    whole = [event for event in events(plain(wave=wave), **tiny_parts()) if isinstance(event, CandidateScored)]
    begun = []
    begin, step = training.Phase.__init__, training.Phase.step

    def counted(self, session, name, *args):
        begin(self, session, name, *args)
        if name == "emep":
            begun.append(self)

    def spoiled(self, *args):
        step(self, *args)
        if begun[1:2] == [self] and len(self.losses) == 3:  # candidate 1 of stage 1, in the middle
            self.losses[-1] = torch.tensor(math.nan)

    monkeypatch.setattr(training.Phase, "__init__", counted)
    monkeypatch.setattr(training.Phase, "step", spoiled)
    broken = [event for event in events(plain(wave=wave), **tiny_parts()) if isinstance(event, CandidateScored)]
    assert "at step 2, " in broken[1].failed
    assert broken[1].selection is None
    assert [broken[place] for place in (0, 2, 3)] == [whole[place] for place in (0, 2, 3)]


def test_a_resumed_run_may_have_another_wave():
    first = checkpoints(plain(), **tiny_parts())
    known = plain(model="object", task="object").model_dump(mode="json")
    middle = dataclasses.replace(first[3], config=known, dense=_dense(first))
    again = [item for item in prune(plain(wave=1), resume=middle, **tiny_parts()) if isinstance(item, Checkpoint)]
    assert same_tensors(first[-1].tensors, again[-1].tensors)
    with pytest.raises(ValueError, match="another candidates"):
        prune(plain().model_copy(update={"candidates": 2}), resume=middle, **tiny_parts())


def _dense(checkpoints_of_a_run):
    boundary = next(c for c in checkpoints_of_a_run if c.progress.phase == "scoring")
    return {name.removeprefix("model."): t for name, t in boundary.tensors.items() if name.startswith("model.")}
