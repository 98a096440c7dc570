"""The pruning loop on real digits, at a size that takes seconds."""

import dataclasses

import pydantic
import pytest
import torch

from randprune_lab import engine, magnitude_mask
from randprune_lab.checks import keep_count
from randprune_lab.config import RunConfig
from randprune_lab.events import CandidateScored, DenseTrained, Score, StageFinished
from randprune_lab.masks import apply_masks, deterministic_masks, model_randomness, model_swapped, randomized_masks
from randprune_lab.models import build_model, prunable_weights
from randprune_lab.tasks import digits
from randprune_lab.training import batches, evaluate, train

SMALL = {"stages": (0.5, 0.9), "candidates": 3, "dense_epochs": 2, "max_epochs": 1}
SIZES = (64 * 300, 300 * 100, 100 * 10)


def events(**settings):
    return list(engine.prune(RunConfig(**(SMALL | settings))))


def test_a_run_says_everything_in_order():
    said = events()
    assert [type(event) for event in said] == [DenseTrained, *[*[CandidateScored] * 3, StageFinished] * 2]
    assert (said[0].prunable, said[0].parameters) == (sum(SIZES), sum(SIZES) + 410)
    assert [event.candidate for event in said if isinstance(event, CandidateScored)] == [0, 1, 2] * 2
    first = [event for event in said if isinstance(event, CandidateScored) and event.candidate == 0]
    assert [event.ir for event in first] == [0.0, 0.0]
    for event, sparsity in zip([e for e in said if isinstance(e, StageFinished)], SMALL["stages"], strict=True):
        assert event.kept == sum(keep_count(size, sparsity) for size in SIZES)
        assert event.sparsity == pytest.approx(1 - event.kept / sum(SIZES), abs=1e-12)


def test_the_same_seed_says_the_same_and_another_does_not():
    assert events() == events()
    assert events() != events(seed=1)


def test_plain_pruning_compares_nothing():
    said = events(method="imp")
    assert [event.candidate for event in said if isinstance(event, CandidateScored)] == [0, 0]
    assert {event.ir for event in said if isinstance(event, StageFinished)} == {0.0}


def test_the_winner_has_the_best_score_and_the_deterministic_mask_wins_ties(monkeypatch):
    monkeypatch.setattr(engine, "_early_score", lambda *_: Score(accuracy=0.5, loss=1.0))
    assert [event.winner for event in events() if isinstance(event, StageFinished)] == [0, 0]
    scores = iter([Score(0.5, 1.0), Score(0.6, 2.0), Score(0.6, 1.5)] * 2)  # equal accuracy: the lower loss
    monkeypatch.setattr(engine, "_early_score", lambda *_: next(scores))
    assert [event.winner for event in events() if isinstance(event, StageFinished)] == [2, 2]


def test_candidates_start_from_the_same_weights_and_leave_none_behind():
    model, task = build_model("mlp", 0), digits()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    alive = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in prunable_weights(model).items()}
    masks = deterministic_masks(prunable_weights(model), 0.9, alive)
    config = RunConfig(**SMALL)
    first = engine._early_score(model, task, masks, 1, config)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    assert engine._early_score(model, task, masks, 1, config) == first


def test_pruned_weights_stay_exactly_zero_after_every_step(monkeypatch):
    model, task = build_model("mlp", 0), digits()
    masks = {name: magnitude_mask(weight, 0.9) for name, weight in prunable_weights(model).items()}
    checked = []
    step = torch.optim.AdamW.step

    def step_after_check(self, *args, **kwargs):  # the weights that this step starts from were left by the one before
        checked.append(all(not weight[~masks[name]].any() for name, weight in prunable_weights(model).items()))
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", step_after_check)
    apply_masks(model, masks)
    train(model, task.train, masks, epochs=2, learning_rate=1e-2, batch_size=64, seed=0)
    assert len(checked) == 2 * 17
    assert all(checked)
    assert all(not weight[~masks[name]].any() for name, weight in prunable_weights(model).items())


def test_training_learns():
    model, task = build_model("mlp", 0), digits()
    train(model, task.train, {}, epochs=15, learning_rate=1e-3, batch_size=64, seed=0)
    assert evaluate(model, task.test).accuracy > 0.9


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


def test_batch_order_is_a_function_of_its_seed():
    split = digits().train
    one, again, other = (torch.cat([labels for _, labels in batches(split, 64, seed)]) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.equal(one.sort().values, split.labels.sort().values)


def test_models_are_seeded_without_touching_the_global_state():
    state = torch.get_rng_state()
    one, again, other = build_model("mlp", 1), build_model("mlp", 1), build_model("mlp", 2)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(one[0].weight, again[0].weight)
    assert not torch.equal(one[0].weight, other[0].weight)
    assert list(prunable_weights(one)) == ["0.weight", "2.weight", "4.weight"]


def test_randomness_of_a_model_counts_all_tensors_together():
    model = build_model("mlp", 0)
    weights = prunable_weights(model)
    alive = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    plain = deterministic_masks(weights, 0.9, alive)
    drawn = randomized_masks(
        weights,
        0.9,
        alive,
        seed=0,
        stage=1,
        candidate=1,
        samples=4,
        power=5.0,
        reach=None,
        method="fast",
        ties="random",
    )
    pruned = sum(int((~mask).sum()) for mask in plain.values())
    shared = sum(int((~plain[name] & ~drawn[name]).sum()) for name in plain)
    assert model_randomness(drawn, plain) == pytest.approx((pruned - shared) / shared)
    assert model_swapped(drawn, plain) == pytest.approx((pruned - shared) / (sum(SIZES) - pruned))


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"method": "randomised"}, "Did you mean 'randomized'"),
        ({"stages": (0.9, 0.5)}, "rise strictly"),
        ({"stages": ()}, "one or more"),
        ({"stages": (0.5, 1.0)}, r"sparsity = 1.0"),
        ({"samples": 0}, "samples = 0"),
        ({"power": -1}, "power = -1"),
        ({"reach": 0.5}, "reach = 0.5"),
        ({"candidates": 0}, "greater than or equal to 1"),
        ({"learning_rate": 0}, "greater than 0"),
        ({"sead": 1}, "sead"),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_is_trained(wrong, why):
    with pytest.raises(pydantic.ValidationError, match=why):
        RunConfig(**wrong)


def test_records_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Score(0.5, 1.0).accuracy = 1.0
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        RunConfig().seed = 1


def test_a_schedule_that_would_empty_a_layer_is_refused_before_training():
    with pytest.raises(ValueError, match=r"0.9996: nothing of 4.weight \(1000 weights\)"):
        next(engine.prune(RunConfig(stages=(0.9996,), dense_epochs=10**6)))
