"""The pruning loop: what happens in which order, who wins, and what is refused before anything is trained."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from support.runs import (
    SIZES,
    SMALL,
    checkpoints,
    events,
    same_tensors,
    small,
    tiny,
    tiny_model,
    tiny_parts,
    tiny_task,
    unpacked,
)
from torch import nn

from randprune_lab import engine, training
from randprune_lab.checks import keep_count
from randprune_lab.config import controls
from randprune_lab.events import (
    KINDS,
    CandidateScored,
    Checkpoint,
    DenseFinished,
    EpochFinished,
    MaskChosen,
    Progress,
    RunFinished,
    RunStarted,
    Score,
    StageFinished,
    StageStarted,
    Warned,
    from_json,
)
from randprune_lab.masks import kept, model_randomness, model_swapped, stage_masks, unpack
from randprune_lab.models import build_model, prunable_weights
from randprune_lab.tasks import Split, Task, digits
from randprune_lab.training import Diverged, Phase, Session


def of(said, kind, **values):
    return [e for e in said if isinstance(e, kind) and all(getattr(e, key) == value for key, value in values.items())]


# ---- what is said


def test_a_run_says_everything_in_order():
    items = list(engine.prune(small()))
    stage = [StageStarted, *[CandidateScored] * 3, MaskChosen, Checkpoint]
    epoch = [EpochFinished, Checkpoint]
    expected = [RunStarted, *epoch * 2, DenseFinished, Checkpoint]
    expected += [*stage, *epoch * 2, StageFinished, Checkpoint] * 2 + [RunFinished]
    assert [type(item) for item in items] == expected
    started = items[0]
    assert started.prunable == SIZES
    assert started.parameters == sum(SIZES.values()) + 410
    assert started.config == small().model_dump(mode="json")
    assert (started.device, started.torch, started.deterministic) == ("cpu", torch.__version__, True)
    assert [(e.stage, e.candidate) for e in of(items, CandidateScored)] == [(s, c) for s in (1, 2) for c in (0, 1, 2)]
    assert [(e.ir, e.swapped) for e in of(items, CandidateScored, candidate=0)] == [(0.0, 0.0)] * 2
    assert all(e.ir > 0 < e.swapped for e in of(items, CandidateScored) if e.candidate)
    assert [(e.phase, e.stage, e.epoch) for e in of(items, EpochFinished)] == [
        *[("dense", 0, epoch) for epoch in (1, 2)],
        *[("fine-tuning", stage, epoch) for stage in (1, 2) for epoch in (1, 2)],
    ]
    assert [(c.progress.phase, c.progress.stage, c.progress.epoch) for c in of(items, Checkpoint)] == [
        *[("dense", 0, 1), ("dense", 0, 2), ("scoring", 1, 0)],
        *[("fine-tuning", 1, 0), ("fine-tuning", 1, 1), ("fine-tuning", 1, 2), ("scoring", 2, 0)],
        *[("fine-tuning", 2, 0), ("fine-tuning", 2, 1), ("fine-tuning", 2, 2), ("finished", 2, 0)],
    ]
    assert items[-1].test == of(items, StageFinished)[-1].test


def test_every_event_survives_json():
    said = events(tiny(randomness="target_ir", target_ir=99.0), **tiny_parts())
    assert {e.kind for e in said} == set(KINDS) - {"resumed"}  # out of reach: warned, too
    for event in said:
        record = json.loads(json.dumps(event.to_json(), allow_nan=False))
        assert from_json(record).to_json() == event.to_json()
        assert from_json({**record, "added_later": 1}) == from_json(record)
        assert from_json(record) == event


def test_records_are_frozen():
    for record in (Score(0.5, 1.0), Warned("x"), Progress(), Checkpoint(Progress(), {})):
        with pytest.raises(dataclasses.FrozenInstanceError):
            record.anything = 1


def test_reported_numbers_are_those_of_masks_and_weights():
    items = list(engine.prune(small(randomness="fixed", samples=2)))
    closing = {c.progress.stage - (c.progress.phase == "scoring"): c for c in of(items, Checkpoint)}
    for number, sparsity in enumerate(SMALL["stages"], start=1):
        (finished,), (chosen,) = of(items, StageFinished, stage=number), of(items, MaskChosen, stage=number)
        tensors = closing[number].tensors
        masks = {name: unpacked(tensors[f"mask.{name}"], tensors[f"model.{name}"].shape) for name in SIZES}
        counted = {name: int(mask.sum()) for name, mask in masks.items()}
        assert counted == {name: keep_count(size, sparsity) for name, size in SIZES.items()}
        assert finished.kept == chosen.kept == sum(counted.values())
        assert {name: row["kept"] for name, row in chosen.tensors.items()} == counted
        assert finished.sparsity == pytest.approx(1 - sum(counted.values()) / sum(SIZES.values()), abs=1e-12)
        for name, mask in masks.items():
            assert np.count_nonzero(tensors[f"model.{name}"].numpy()[~mask]) == 0
            assert np.count_nonzero(tensors[f"model.{name}"].numpy()) == counted[name]
    assert items[-1].sparsity == of(items, StageFinished)[-1].sparsity


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_ir_and_swapped_are_those_of_the_masks(scope):
    """The plain mask of the weights at the stage's boundary against the mask that was chosen there."""
    config = small(scope=scope, method="randomized-no-selection")
    items = list(engine.prune(config))
    for number in (1, 2):
        before = next(c for c in of(items, Checkpoint) if c.progress == Progress("scoring", number))
        after = next(c for c in of(items, Checkpoint) if c.progress == Progress("fine-tuning", number))
        weights = {name: before.tensors[f"model.{name}"] for name in SIZES}
        shapes = {name: weight.shape for name, weight in weights.items()}
        alive = {name: unpack(before.tensors[f"mask.{name}"], shapes[name]) for name in SIZES}
        masks = {name: unpack(after.tensors[f"mask.{name}"], shapes[name]) for name in SIZES}
        plain = stage_masks(weights, alive, number, config).draw(0)
        (chosen,) = of(items, MaskChosen, stage=number)
        assert (chosen.ir, chosen.swapped) == (model_randomness(masks, plain), model_swapped(masks, plain))
        assert chosen.ir > 0
        assert chosen.kept == kept(masks) == keep_count(sum(SIZES.values()), config.stages[number - 1])
        for name, row in chosen.tensors.items():
            assert row["kept"] == int(masks[name].sum())
            if scope == "layer":
                assert row["ir"] == model_randomness({name: masks[name]}, {name: plain[name]})


# ---- methods


def test_plain_pruning_compares_nothing():
    said = events(tiny(method="imp"), **tiny_parts())
    assert not of(said, CandidateScored)
    assert {e.candidates for e in of(said, StageStarted)} == {(0,)}
    assert {(e.winner, e.ir, e.swapped) for e in of(said, MaskChosen)} == {(0, 0.0, 0.0)}


def test_random_pruning_without_selection_takes_the_first_random_mask():
    said = events(tiny(method="randomized-no-selection"), **tiny_parts())
    assert not of(said, CandidateScored)
    assert {e.winner for e in of(said, MaskChosen)} == {1}
    assert all(e.ir > 0 for e in of(said, MaskChosen))
    first = next(e for e in events(tiny(), **tiny_parts()) if isinstance(e, CandidateScored) and e.candidate == 1)
    assert of(said, MaskChosen)[0].ir == first.ir  # the very mask that the randomized method judges


def test_one_candidate_is_the_plain_mask():
    assert (
        events(tiny(candidates=1), **tiny_parts())[1:] == events(tiny(method="imp", candidates=1), **tiny_parts())[1:]
    )


def test_controls_start_from_the_same_dense_network():
    runs = [tiny(), *controls(tiny()).values()]
    dense = [
        next(c.tensors for c in checkpoints(config, **tiny_parts()) if c.progress == Progress("scoring", 1))
        for config in runs
    ]
    assert all(same_tensors(dense[0], other) for other in dense[1:])


def test_what_a_schedule_of_samples_says():
    said = events(small(randomness="decrease", sampling_ratio=1e-3, method="randomized-no-selection"))
    assert [e.samples["2.weight"] for e in of(said, StageStarted)] == [15, 27]
    said = events(small(scope="global", method="randomized-no-selection"))
    assert [(e.samples, e.power) for e in of(said, StageStarted)] == [({"*": 4}, {"*": 5.0})] * 2


def test_a_target_out_of_reach_is_clamped_with_a_warning():
    said = events(tiny(randomness="target_ir", target_ir=99.0), **tiny_parts())
    texts = [e.text for e in of(said, Warned)]
    assert len(texts) == 2 * 3
    assert all("an ir of 99 is out of reach, it gets" in text for text in texts)
    assert "stage 2, 4.weight" in texts[4]
    places = [type(e) for e in said]
    assert places.index(Warned) == places.index(StageStarted) + 1


# ---- who wins


def scored(*scores):
    return [
        CandidateScored(1, number, None if score is None else Score(*score), 0.1, 0.1, None if score else "it broke")
        for number, score in enumerate(scores)
    ]


@pytest.mark.parametrize(
    ("scores", "winner"),
    [
        ([(0.5, 1.0), (0.6, 2.0), (0.4, 0.1)], 1),  # accuracy decides
        ([(0.5, 1.0), (0.6, 2.0), (0.6, 1.5)], 2),  # equal: the lower loss
        ([(0.5, 1.0), (0.6, 1.5), (0.6, 1.5)], 1),  # still equal: the earlier
        ([(0.6, 1.5), (0.6, 1.5), (0.6, 1.5)], 0),  # so the deterministic one wins all ties
        ([(0.6, 1.5), (0.6, 1.4999)], 1),
        ([None, (0.1, 9.0), (0.1, 9.0)], 1),  # who failed loses
        ([(0.1, 9.0), None], 0),
        ([(0.0, 9.0)], 0),
    ],
)
def test_the_best_candidate(scores, winner):
    assert engine.best(scored(*scores)) == winner
    assert engine.best(scored(*scores)[::-1]) == winner  # after a resume they need not come in order


def test_a_score_that_is_no_number_never_wins():
    for other in ((0.1, 9.0), (0.1, 0.0)):
        assert engine.best(scored((0.1, math.nan), other)) == 1
        assert engine.best(scored(other, (0.1, math.nan))) == 0


def test_when_all_failed_the_run_ends():
    with pytest.raises(Diverged, match="every candidate failed; the first: it broke"):
        engine.best(scored(None, None))


def test_selection_follows_the_scores(monkeypatch):
    evaluate = Session.evaluate
    judged = []

    def invented(self, split, model=None):
        if split is not self.task.selection or current[-1] != "emep":
            return evaluate(self, split, model)
        judged.append(len(judged) % 3)
        return (Score(0.5, 1.0), Score(0.6, 2.0), Score(0.6, 1.5))[judged[-1]]

    current = watch_phases(monkeypatch)
    monkeypatch.setattr(Session, "evaluate", invented)
    said = events(tiny(), **tiny_parts())
    assert [e.winner for e in of(said, MaskChosen)] == [2, 2]
    assert judged == [0, 1, 2] * 2


def watch_phases(monkeypatch):
    """The names of the phases begun so far."""
    begun = []
    begin = Phase.__init__

    def watched(self, session, name, *args):
        begun.append(name)
        begin(self, session, name, *args)

    monkeypatch.setattr(Phase, "__init__", watched)
    return begun


def test_candidates_start_from_the_same_weights_and_leave_none_behind(monkeypatch):
    starts = {}
    begin = Phase.__init__

    def watched(self, session, name, stage, masks, rate, *model):
        trained = model[0] if model else session.model
        state = {key: tensor.clone() for key, tensor in trained.state_dict().items()}
        starts.setdefault((name, stage), []).append(state)
        begin(self, session, name, stage, masks, rate, *model)

    monkeypatch.setattr(Phase, "__init__", watched)
    parts = tiny_parts()
    before = None
    for item in engine.prune(tiny(emep_epochs=2), **parts):
        if isinstance(item, Checkpoint):
            before = {n.removeprefix("model."): t for n, t in item.tensors.items() if n.startswith("model.")}
        if isinstance(item, StageStarted | CandidateScored):
            now = {name: tensor.clone() for name, tensor in parts["model"].state_dict().items()}
            assert same_tensors(now, before)
    for stage in (1, 2):
        assert len(starts["emep", stage]) == 3
        assert all(same_tensors(state, starts["emep", stage][0]) for state in starts["emep", stage])


def test_a_candidate_that_turns_nan_loses_with_a_reason_and_the_run_goes_on(monkeypatch):
    phases, loss = watch_phases(monkeypatch), training.total

    def spoiled(terms, config, *, dense=False):
        bad = phases[-1] == "emep" and phases.count("emep") in (1, 5)  # candidate 0 of stage 1, 1 of stage 2
        return loss(terms, config, dense=dense) + (math.nan if bad else 0.0)

    monkeypatch.setattr(training, "total", spoiled)
    parts = tiny_parts()
    items = list(engine.prune(tiny(), **parts))
    failed = {(e.stage, e.candidate): e.failed for e in of(items, CandidateScored) if e.selection is None}
    assert set(failed) == {(1, 0), (2, 1)}
    assert "in emep of stage 1 at step 0, learning rate 0.03" in failed[1, 0]
    assert of(items, MaskChosen)[0].winner != 0
    assert of(items, MaskChosen)[1].winner != 1
    assert isinstance(items[-1], RunFinished)
    assert all(torch.isfinite(tensor).all() for tensor in parts["model"].state_dict().values())


def test_nan_in_fine_tuning_ends_the_run(monkeypatch):
    phases, loss = watch_phases(monkeypatch), training.total

    def spoiled(terms, config, *, dense=False):
        bad = phases[-1] == "fine-tuning" and phases.count("fine-tuning") == 2
        return loss(terms, config, dense=dense) + (math.nan if bad else 0.0)

    monkeypatch.setattr(training, "total", spoiled)
    said = []
    with pytest.raises(Diverged, match=r"in fine-tuning of stage 2 at step 0, learning rate 0\.01\."):
        said.extend(engine.prune(tiny(), **tiny_parts()))
    assert len(of(said, StageFinished)) == 1


# ---- same seed, same run


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_same_seed_gives_the_same_bits_and_another_does_not(precision):
    config = tiny(precision=precision)
    one, again = (list(engine.prune(config, **tiny_parts())) for _ in range(2))
    other = events(config.model_copy(update={"seed": 1}), **tiny_parts())
    assert of(one, KINDS["run_started"]) != []
    for first, second in zip(one, again, strict=True):
        if isinstance(first, Checkpoint):
            assert first.progress == second.progress
            assert same_tensors(first.tensors, second.tensors)
        else:
            assert first == second
    mine = [e for e in one if not isinstance(e, Checkpoint)]
    for kind in (EpochFinished, CandidateScored, StageFinished):
        assert of(mine, kind) != of(other, kind)


def test_the_seed_initializes_the_named_model():
    first = [next(c for c in checkpoints(small(seed=seed, stages=(0.5,)))).tensors for seed in (0, 0, 1)]
    assert same_tensors(first[0], first[1])
    assert not torch.equal(first[0]["model.0.weight"], first[2]["model.0.weight"])


def test_models_are_seeded_without_touching_the_global_state():
    state = torch.get_rng_state()
    one, again, other = build_model("mlp", 1), build_model("mlp", 1), build_model("mlp", 2)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(one[0].weight, again[0].weight)
    assert not torch.equal(one[0].weight, other[0].weight)
    assert list(prunable_weights(one)) == ["0.weight", "2.weight", "4.weight"]


def test_threads_are_those_asked_for_and_put_back():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        seen = {torch.get_num_threads() for _ in engine.prune(tiny(threads=1), **tiny_parts())}
        assert seen == {1}
        assert torch.get_num_threads() == 2
        stream = engine.prune(tiny(threads=1), **tiny_parts())
        next(stream)
        stream.close()  # stopped early
        assert torch.get_num_threads() == 2
        with pytest.raises(Diverged):
            events(tiny(threads=1, learning_rate=1e30), **tiny_parts())
        assert torch.get_num_threads() == 2
        with pytest.raises(ValueError, match="pattern"):
            engine.prune(tiny(threads=1, include=("nothing",)), **tiny_parts())
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_the_process_wide_choice_of_kernels_is_put_back():
    try:
        torch.use_deterministic_algorithms(True)
        events(tiny(), **tiny_parts())
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


# ---- your own network and data


def test_your_own_network_and_data():
    model = tiny_model()
    said = events(tiny(max_epochs=8, dense_epochs=8), model=model, data=tiny_task())
    assert said[0].prunable == {"0.weight": 8 * 24, "4.weight": 24 * 12, "5.weight": 12 * 3}
    assert (said[0].config["model"], said[0].config["task"]) == ("object", "object")
    assert of(said, DenseFinished)[0].test.metric > 0.8
    for name, weight in prunable_weights(model).items():  # pruned in place
        assert int((weight != 0).sum()) == keep_count(weight.numel(), 0.9), name


def test_include_and_exclude():
    model = tiny_model()
    before = model[5].weight.detach().clone()
    said = events(tiny(exclude=("^5",)), model=model, data=tiny_task())
    assert list(said[0].prunable) == ["0.weight", "4.weight"]
    assert int((model[5].weight == 0).sum()) == 0
    assert not torch.equal(model[5].weight, before)  # it trains all the same
    said = events(tiny(include=("0", "5"), exclude=("5",)), **tiny_parts())
    assert list(said[0].prunable) == ["0.weight"]


def test_digits_splits_are_fixed_stratified_and_disjoint():
    task = digits()
    assert [len(task.train), len(task.selection), len(task.test)] == [1077, 360, 360]
    for split in (task.train, task.selection, task.test):
        shares = torch.bincount(split.labels, minlength=task.classes) / len(split)
        assert float((shares - 0.1).abs().max()) < 0.01
        assert (float(split.inputs.min()), float(split.inputs.max())) == (0.0, 1.0)
    rows = [tuple(row.tolist()) for split in (task.train, task.selection, task.test) for row in split.inputs]
    assert len(rows) == 1797
    assert len(set(rows)) == 1797  # no image stands in two splits
    assert torch.equal(task.train.labels, digits().train.labels)


# ---- which split decides


def other_labels(split):
    return Split(split.inputs, split.labels.roll(1))


@pytest.mark.parametrize(("select_on", "mute"), [("selection", "test"), ("validation", "selection")])
def test_the_other_split_decides_nothing(select_on, mute):
    """Spoil the labels of the split that has no say: masks and weights stay the same, only its scores change."""
    task = tiny_task()
    spoiled = dataclasses.replace(task, **{mute: other_labels(getattr(task, mute))})
    config = tiny(select_on=select_on, patience=1, max_epochs=4)
    one, other = (list(engine.prune(config, model=tiny_model(), data=data)) for data in (task, spoiled))
    assert of(one, CandidateScored) == of(other, CandidateScored)
    assert of(one, EpochFinished) == of(other, EpochFinished)
    assert of(one, MaskChosen) == of(other, MaskChosen)
    assert same_tensors(of(one, Checkpoint)[-1].tensors, of(other, Checkpoint)[-1].tensors)
    shown = [[getattr(e, mute) for e in of(items, StageFinished)] for items in (one, other)]
    assert shown[0] != shown[1]
    spoiled = dataclasses.replace(
        task, **{name: other_labels(getattr(task, name)) for name in ("selection", "test") if name != mute}
    )
    third = events(config, model=tiny_model(), data=spoiled)
    assert of(third, CandidateScored) != of(one, CandidateScored)  # and the other one does decide


def test_of_the_selection_split_only_the_rows_asked_for_decide():
    """Spoil the labels of its later rows: nothing changes. Of its first rows: the choice does."""
    task = tiny_task()
    rows, labels = len(task.selection) // 3, task.selection.labels

    def spoiled(part):
        other = labels.clone()
        other[part] = labels[part].roll(1)
        return dataclasses.replace(task, selection=Split(task.selection.inputs, other))

    config = tiny(selection_rows=rows)
    said = [events(config, model=tiny_model(), data=data) for data in (task, spoiled(slice(rows, None)))]
    assert [e.to_json() for e in said[0][1:]] == [e.to_json() for e in said[1][1:]]
    assert of(events(config, model=tiny_model(), data=spoiled(slice(rows))), CandidateScored) != of(
        said[0], CandidateScored
    )
    seen = [e.selection.metric * rows for e in of(said[0], CandidateScored)]
    assert seen == pytest.approx([round(number) for number in seen])
    more = events(tiny(selection_rows=10 * len(labels)), model=tiny_model(), data=task)  # more than there are: all
    assert [e.to_json() for e in more[1:]] == [e.to_json() for e in events(tiny(), model=tiny_model(), data=task)[1:]]


@pytest.mark.parametrize("changes", [{}, {"patience": 1, "max_epochs": 4}, {"method": "imp"}])
def test_no_network_is_scored_twice(changes, monkeypatch):
    """What the last epoch, or the best one, has told is not asked again."""
    asked = []
    score = Session.evaluate

    def counting(self, split, model=None):
        weights = (model or self.model).state_dict().values()
        asked.append((len(split), float(sum(weight.double().abs().sum() for weight in weights))))
        return score(self, split, model)

    monkeypatch.setattr(Session, "evaluate", counting)
    events(tiny(**changes), model=tiny_model(), data=tiny_task())
    assert len(asked) == len(set(asked)) > 6


# ---- patience


def scripted(monkeypatch, accuracies):
    """Fine-tuning of the first stage scores these accuracies, epoch by epoch."""
    phases, evaluate, left = watch_phases(monkeypatch), Session.evaluate, list(accuracies)

    def invented(self, split, model=None):
        mine = phases and phases[-1] == "fine-tuning" and phases.count("fine-tuning") == 1
        if mine and split is self.deciding_split and left:
            return Score(left.pop(0), 1.0)
        return evaluate(self, split, model)

    monkeypatch.setattr(Session, "evaluate", invented)


@pytest.mark.parametrize(
    ("accuracies", "epochs", "best"),
    [
        ([0.5, 0.6, 0.4, 0.3], 4, 2),  # two without a better one
        ([0.5, 0.6, 0.6, 0.6], 4, 2),  # equal is not better
        ([0.5, 0.4, 0.6, 0.5, 0.7, 0.8], 6, 6),  # to the end
        ([0.9, 0.1, 0.1], 3, 1),
        ([0.0, 0.0, 0.0], 3, 1),  # the worst score is better than none
    ],
)
def test_patience_ends_a_stage_and_restores_its_best_epoch(monkeypatch, accuracies, epochs, best):
    scripted(monkeypatch, accuracies)
    items = list(engine.prune(tiny(method="imp", max_epochs=6, patience=2), **tiny_parts()))
    assert len(of(items, EpochFinished, phase="fine-tuning", stage=1)) == epochs
    assert len(of(items, EpochFinished, phase="fine-tuning", stage=2)) == 6  # the last stage has no patience
    after = {(c.progress.phase, c.progress.stage, c.progress.epoch): c.tensors for c in of(items, Checkpoint)}

    def model(tensors):
        return {name: tensor for name, tensor in tensors.items() if name.startswith("model.")}

    assert same_tensors(model(after["scoring", 2, 0]), model(after["fine-tuning", 1, best]))
    assert not any(name.startswith(("best.", "optimizer.")) for name in after["scoring", 2, 0])


def test_without_patience_the_last_epoch_stands(monkeypatch):
    scripted(monkeypatch, [0.9, 0.1, 0.1])
    items = list(engine.prune(tiny(method="imp", max_epochs=3), **tiny_parts()))
    after = {(c.progress.phase, c.progress.stage, c.progress.epoch): c.tensors for c in of(items, Checkpoint)}
    for name, tensor in after["scoring", 2, 0].items():
        assert torch.equal(tensor, after["fine-tuning", 1, 3][name])


# ---- refused before any work


def refused(match, config, **parts):
    with pytest.raises(ValueError, match=match):
        next(iter(engine.prune(config, **parts)))


def test_labels_that_the_model_does_not_know_are_refused():
    task = tiny_task()
    for name in ("train", "selection", "test"):
        split = getattr(task, name)
        for wrong in (3, -1):
            labels = split.labels.clone()
            labels[-1] = wrong
            broken = dataclasses.replace(task, **{name: Split(split.inputs, labels)})
            refused(
                rf"labels of {name} run from .* the model has 3 classes.*Renumber",
                tiny(),
                model=tiny_model(),
                data=broken,
            )


@pytest.mark.parametrize("shape", [(7,), (9,), (8, 8), (1, 6, 6)])
def test_data_of_the_wrong_shape_is_refused(shape):
    refused(
        "cannot take examples of shape|must be \\(2, classes\\)",
        tiny(),
        model=tiny_model(),
        data=tiny_task(shape=shape),
    )


def test_data_of_the_wrong_dtype_is_refused():
    task = tiny_task()
    whole = Task(*["whole"], *[Split(s.inputs.long(), s.labels) for s in (task.train, task.selection, task.test)])
    refused("cannot take examples of shape", tiny(), model=tiny_model(), data=whole)


def test_splits_that_differ_in_shape_are_refused():
    task = tiny_task()
    for name in ("selection", "test"):
        other = dataclasses.replace(task, **{name: Split(torch.ones(4, 7), torch.zeros(4, dtype=torch.int64))})
        refused(r"shapes \(8,\) and \(7,\): must be equal", tiny(), model=tiny_model(), data=other)


@pytest.mark.parametrize(
    ("inputs", "labels", "match"),
    [
        (torch.ones(4, 8), torch.zeros(3, dtype=torch.int64), "one label a row"),
        (torch.ones(4, 8), torch.zeros(4, 1, dtype=torch.int64), "one label a row"),
        (torch.ones(0, 8), torch.zeros(0, dtype=torch.int64), "at least one row"),
        (torch.ones(4, 8), torch.zeros(4).double(), r"dtype torch.float64: must be int64.*Pass labels.long\(\)"),
    ],
)
def test_what_is_no_split_is_refused(inputs, labels, match):
    with pytest.raises(ValueError, match=match):
        Split(inputs, labels)


@pytest.mark.parametrize("share", [1.0, 1.5])
def test_a_share_that_leaves_nothing_to_train_on_is_refused(share):
    with pytest.raises(ValueError, match="must lie in"):
        Task.of((torch.ones(4, 8), torch.zeros(4, dtype=torch.int64)), (torch.ones(4, 8), torch.arange(4)), share=share)


def test_a_model_that_is_no_classifier_is_refused():
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 3)

        def forward(self, inputs):
            return self.layer(inputs).unsqueeze(1).expand(-1, 5, -1)

    refused(r"must be \(2, classes\)", tiny(), model=Wide(), data=tiny_task())


def test_a_schedule_that_would_empty_a_tensor_is_refused():
    refused(r"0.9996: nothing of 4.weight \(1000 weights\) would be kept. End at 0.9990", small(stages=(0.9996,)))
    refused(r"0.99: nothing of 5.weight \(36 weights\)", tiny(stages=(0.5, 0.99)), **tiny_parts())
    next(engine.prune(tiny(stages=(0.5, 0.99), exclude=("5",)), **tiny_parts()))
    next(engine.prune(tiny(stages=(0.5, 0.99), scope="global"), **tiny_parts()))
    refused(r"nothing of the whole model \(516 weights\)", tiny(stages=(0.9995,), scope="global"), **tiny_parts())


def test_the_last_schedule_that_fits_runs():
    """One weight of a tensor left: End at ... or less means what it says."""
    last = events(tiny(stages=(0.5, round(1 - 1 / 36, 4))), **tiny_parts())[-1]
    assert isinstance(last, RunFinished)


def test_patterns_that_find_nothing_are_refused():
    for field in ("include", "exclude"):
        refused(
            r"pattern 'encoder': matches no prunable.*0.weight, 4.weight, 5.weight",
            tiny(**{field: ("encoder",)}),
            **tiny_parts(),
        )
    refused("has nothing to prune", tiny(exclude=(".",)), **tiny_parts())


def test_a_model_without_prunable_layers_is_refused():
    class Bias(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(3))

        def forward(self, inputs):
            return inputs[:, :3] + self.bias

    refused("has nothing to prune: a linear or convolutional layer", tiny(), model=Bias(), data=tiny_task())


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"scope": "global", "sampler": "exact", "samples": 2000}, r"2\*\*26"),
        ({"randomness": "decrease", "sampling_ratio": 1e9}, "samples"),
    ],
)
def test_draws_beyond_measure_are_refused_before_the_dense_training(settings, match):
    refused(match, small(**settings))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_device_that_is_not_there_is_refused():
    refused("device = 'cuda': not available here. Pass cpu or auto", small(device="cuda"))


def test_checkpoints_that_do_not_fit_are_refused():
    config = small()
    other = Checkpoint(Progress(), {}, config=small(seed=1, samples=5).model_dump(mode="json"))
    refused("another samples, seed. Resume with that run's own", config, resume=other)
    own = tiny().model_dump(mode="json") | {"model": "object", "task": "object"}
    refused("from Python with its own model", tiny(model="object"), resume=Checkpoint(Progress(), {}, config=own))


def frozen():
    model = tiny_parts()["model"]
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return {"model": model}


def with_nan():
    task = tiny_parts()["data"]
    task.train.inputs[3, 0] = math.nan
    return {"data": task}


@pytest.mark.parametrize(
    ("parts", "settings", "why"),
    [
        (frozen, {}, "every parameter.* is frozen"),
        (with_nan, {}, "inputs of train hold NaN"),
        (dict, {"batch_size": 71}, "batch_size = 71 leaves a last batch of one example out of 72"),
    ],
)
def test_what_would_only_show_in_training_is_refused_before(parts, settings, why):
    with pytest.raises(ValueError, match=why):
        engine.prune(tiny(**settings), **(tiny_parts() | parts()))


def test_the_weight_of_the_task_counts_with_and_without_distillation():
    def weights(**settings):
        parts = tiny_parts()
        list(engine.prune(tiny(method="imp", **settings), **parts))
        return parts["model"][0].weight

    for logits in (0.0, 1.0):
        assert not torch.equal(
            weights(task_weight=1.0, logit_weight=logits, weight_decay=0.0),
            weights(task_weight=0.01, logit_weight=logits, weight_decay=0.0),
        )


@pytest.mark.parametrize(
    ("train", "share", "why"),
    [
        ((torch.ones(16, 2), torch.zeros(10, dtype=torch.long)), 0.2, "equal length"),
        ((torch.ones(10, 2), torch.zeros(16, dtype=torch.long)), 0.2, "equal length"),
        (([1.0], [0]), 0.2, "must be two tensors"),
        ((torch.ones(16, 2), torch.zeros(16, dtype=torch.long)), -1, "share = -1"),
        ((torch.ones(1, 2), torch.zeros(1, dtype=torch.long)), 0.2, "of 1 examples"),
    ],
)
def test_own_data_that_do_not_fit_are_refused(train, share, why):
    with pytest.raises(ValueError, match=why):
        Task.of(train, (torch.ones(4, 2), torch.zeros(4, dtype=torch.long)), share=share)


@pytest.mark.parametrize(("method", "warned"), [("randomized", True), ("imp", False)])
def test_a_target_out_of_reach_is_warned_of_only_where_something_is_drawn(method, warned):
    said = list(engine.prune(tiny(method=method, randomness="target_ir", target_ir=5.0), **tiny_parts()))
    assert bool(of(said, Warned)) == warned
