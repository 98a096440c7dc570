"""Every method and every criterion through the engine: exact sparsity, one budget, resuming, and what is refused."""

import dataclasses
import itertools
import math
import os

import pytest
import torch
from support.grids import thinned
from support.reference import keep_of
from support.runs import (
    boundary_file,
    checkpoints,
    events,
    go_on,
    read_tensors,
    same_tensors,
    small,
    stop_after,
    tiny,
    tiny_task,
    told,
    unpacked,
)
from torch import nn

from randprune_lab import criteria, engine
from randprune_lab.config import AT_START, DYNAMIC, METHOD_NAMES, RunConfig
from randprune_lab.config import CRITERION_NAMES as ALL_CRITERIA
from randprune_lab.densities import erk
from randprune_lab.events import (
    CandidateScored,
    Checkpoint,
    DenseFinished,
    EpochFinished,
    MaskChosen,
    StageFinished,
)
from randprune_lab.methods import METHODS, planned_epochs

CRITERIA = ALL_CRITERIA[:-1]  # but for one's own
SHAPES = {"0.weight": (24, 8), "2.weight": (12, 24), "5.weight": (4, 12)}
TOST = {"soft_activations": True, "soft_skips": True, "label_smoothing": 0.1}
STAGES = (0.5, 0.75)


def net(seed: int = 3) -> nn.Module:
    """Every width is a multiple of four; running statistics and dropout, which a resume could lose."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            *(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 12), nn.BatchNorm1d(12), nn.ReLU()),
            *(nn.Linear(12, 4), nn.Dropout(0.2)),
        )


def parts() -> dict:
    return {"model": net(), "data": tiny_task(classes=4)}


def run_of(**changes) -> RunConfig:
    """A run of a twentieth of a second, in two stages."""
    quick = {"stages": STAGES, "candidates": 2, "batch_size": 24, "regrow_every": 1, "dense_epochs": 2}
    return tiny(**(quick | changes))


def expected_kept(config: RunConfig, sparsity: float) -> dict[str, int] | int:
    """How many weights of each tensor a stage leaves, by other means than the package's; in global scope of all."""
    sizes = {name: math.prod(shape) for name, shape in SHAPES.items()}
    if config.scope == "global":
        return keep_of(sum(sizes.values()), sparsity)
    if config.pattern == "4x4":
        return {name: 16 * keep_of(size // 16, sparsity) for name, size in sizes.items()}
    shares = erk(SHAPES, sparsity) if config.densities == "erk" else dict.fromkeys(SHAPES, sparsity)
    return {name: keep_of(size, shares[name]) for name, size in sizes.items()}


def assert_exactly_sparse(items: list, config: RunConfig) -> None:
    """At every checkpoint from a stage's choice to its end: so many are kept, and all others are exactly 0."""
    stages, seen = iter(config.stages), 0
    sparsity = 0.0
    for item in items:
        if isinstance(item, MaskChosen):
            sparsity = next(stages)
        if not isinstance(item, Checkpoint) or not sparsity:
            continue
        masks = {name: unpacked(item.tensors[f"mask.{name}"], item.tensors[f"model.{name}"].shape) for name in SHAPES}
        counts = {name: int(mask.sum()) for name, mask in masks.items()}
        expected = expected_kept(config, sparsity)
        assert (counts if isinstance(expected, dict) else sum(counts.values())) == expected
        for name, mask in masks.items():
            assert not item.tensors[f"model.{name}"].numpy()[~mask].any()
        seen += 1
    assert seen == len(config.stages) * (config.max_epochs + 2)
    assert not list(stages)
    finished = [item for item in items if isinstance(item, StageFinished)]
    for event, share in zip(finished, config.stages, strict=True):
        expected = expected_kept(config, share)
        assert event.kept == (sum(expected.values()) if isinstance(expected, dict) else expected)


def without_seconds(items: list) -> list:
    return [item.to_json() for item in items if not isinstance(item, Checkpoint)]


def last(items: list) -> dict[str, torch.Tensor]:
    return [item for item in items if isinstance(item, Checkpoint)][-1].tensors


def variants() -> list[dict]:
    """Every method; every criterion under imp and randomized; each alone and with all that it can be joined with."""
    found = []
    chosen = [{"method": method} for method in METHODS]
    chosen += [
        {"method": method, "criterion": criterion}
        for method, criterion in itertools.product(("imp", "randomized"), CRITERIA)
        if criterion != "magnitude"
    ]
    for at, choice in enumerate(chosen):
        if "criterion" not in choice or choice["method"] == "randomized":
            found.append(choice)
        if "criterion" not in choice or choice["method"] == "imp":
            found.append(choice | TOST | {"densities": "erk"})
        more = [{"pattern": "4x4"}, {"initialization": "zero"}, {"scope": "global"}, {"pattern": "2:4"}]
        if choice["method"] in DYNAMIC:
            more = [{"initialization": "zero"}, {"scope": "global"}]
        extra = dict(more[at % len(more)])
        if extra.get("pattern") == "2:4":
            extra["stages"] = (0.25, 0.5)
        found.append(choice | TOST | extra)
    return found


def name_of(changes: dict) -> str:
    shown = {key: value for key, value in changes.items() if key not in ("stages", *TOST)}
    return "-".join(map(str, shown.values())) + ("-tost" if "soft_skips" in changes else "")


VARIANTS = thinned(variants(), 1, tuples=False)


def test_all_methods_are_described():
    assert tuple(METHODS) == METHOD_NAMES
    assert set(AT_START) < set(METHODS)
    assert set(DYNAMIC) < set(AT_START)


# ---- every method: exact, the same again, and the same when resumed


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Do not wait for the disk; and criteria take fewer rounds and steps: what they find is tested elsewhere."""
    monkeypatch.setattr(criteria, "MOVING_STEPS", 10)
    monkeypatch.setattr(criteria, "LEARNING_STEPS", 10)
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setitem(criteria.CRITERIA, "synflow", dataclasses.replace(criteria.CRITERIA["synflow"], rounds=5))


@pytest.mark.parametrize("changes", VARIANTS, ids=name_of)
def test_sparsity_is_exact_and_a_checkpoint_of_any_kind_ends_the_same(changes):
    """Whatever is joined with whatever: resumed in the middle of a phase it ends bit for bit as if it never stopped."""
    config = run_of(**changes)
    items = list(engine.prune(config, **parts()))
    assert_exactly_sparse(items, config)
    story, end = without_seconds(items), last(items)
    for at in places(items, config, middle_only=len(changes) > 1):
        again = list(engine.prune(config, **parts(), resume=checkpoint_of(items, at)))
        assert same_tensors(last(again), end), items[at].progress
        assert without_seconds(again)[1:] == story[-len(without_seconds(again)) + 1 :], items[at].progress


def places(items: list, config: RunConfig, *, middle_only: bool) -> list[int]:
    """Where among ``items`` the last checkpoint of each kind stands: in, or at the end of, each phase of each stage."""
    found = {}
    for at, item in enumerate(items):
        if isinstance(item, Checkpoint) and item.progress.phase != "finished":
            progress = item.progress
            middle = progress.epoch == 1 and (progress.stage in (0, len(config.stages)))
            if middle or not middle_only:
                found[progress.phase, progress.stage, progress.epoch == 1] = at
    return list(found.values())


def checkpoint_of(items: list, at: int) -> Checkpoint:
    """What the store would give for the checkpoint at place ``at``, made by hand."""
    item, before = items[at], items[:at]
    told_before = [each for each in before if not isinstance(each, Checkpoint)]
    trained = [each for each in before if isinstance(each, Checkpoint) and each.progress.phase == "scoring"]
    trained = [item] if item.progress.phase == "scoring" and not trained else trained
    dense = {
        name.removeprefix("model."): tensor.clone()
        for name, tensor in (trained[0].tensors if trained else {}).items()
        if name.startswith("model.")
    }
    return Checkpoint(
        item.progress,
        {name: tensor.clone() for name, tensor in item.tensors.items()},
        dense=dense,
        events=len(told_before),
        scores=tuple(each for each in told_before if isinstance(each, CandidateScored)),
        config=items[0].config,
    )


@pytest.mark.parametrize("changes", [{"method": method} for method in METHODS], ids=METHODS)
def test_same_seed_same_result_whatever_the_ambient_state(changes):
    one = list(engine.prune(run_of(**changes), **parts()))
    torch.manual_seed(77)
    two = list(engine.prune(run_of(**changes), **parts()))
    assert without_seconds(one) == without_seconds(two)
    assert same_tensors(last(one), last(two))
    other = list(engine.prune(run_of(seed=1, **changes), **parts()))
    assert not same_tensors(last(one), last(other))


@pytest.mark.parametrize("method", ["learned-mask", "rigl"])
def test_stopped_after_any_item_it_ends_the_same(tmp_path, method):
    """Through the store, as everyone does it: a learned mask in the dense phase, moving masks, smoothed steps."""
    config = run_of(method=method, stages=(0.75,), dense_epochs=3, max_epochs=3, mask_learning_rate=0.5, **TOST)
    go_on(tmp_path / "whole", config, **parts())
    expected = told(tmp_path / "whole")
    end = read_tensors(boundary_file(tmp_path / "whole", 1))
    items = len(list(engine.prune(config, **parts())))
    for taken in range(3, items, 3):
        folder = tmp_path / str(taken)
        stop_after(folder, config, taken, **parts())
        go_on(folder, config, **parts())
        assert told(folder) == expected
        assert same_tensors(read_tensors(boundary_file(folder, 1)), end)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_lockstep_is_serial(criterion):
    one, two = (
        list(engine.prune(run_of(candidates=4, criterion=criterion, executor=executor), **parts()))
        for executor in ("lockstep", "serial")
    )
    strip = slice(1, None)  # the first says which executor it was
    assert without_seconds(one)[strip] == without_seconds(two)[strip]
    assert same_tensors(last(one), last(two))


@pytest.mark.parametrize("criterion", [name for name in CRITERIA if name != "magnitude"])
def test_a_criterion_decides(criterion):
    """Not the masks that magnitude would choose."""

    def masks(**changes):
        chosen = checkpoints(run_of(method="imp", **changes), **parts())
        item = next(each for each in chosen if each.progress.phase == "fine-tuning")
        return {name: tensor for name, tensor in item.tensors.items() if name.startswith("mask.")}

    assert not same_tensors(masks(criterion=criterion), masks())


def test_digits_above_chance():
    """Real data, each method a second or two: three of ten pictures right, where chance has one."""
    for method in ("learned-mask", "snip", "grasp", "rigl"):
        said = events(small(method=method, stages=(0.8,), dense_epochs=2, max_epochs=3, regrow_every=10))
        assert said[-1].test.metric > 0.3


# ---- ZerO


def first_weights(config: RunConfig, **own) -> dict[str, torch.Tensor]:
    """What the dense network begins with."""
    stream = engine.prune(config, **own)
    next(stream)
    run = stream.gi_frame.f_locals["run"]
    found = {name: tensor.clone() for name, tensor in run.session.model.state_dict().items()}
    stream.close()
    return found


def test_zero_is_the_same_for_every_seed_and_trains():
    zero = [first_weights(small(initialization="zero", seed=seed)) for seed in (0, 1, 99)]
    assert same_tensors(zero[0], zero[1])
    assert same_tensors(zero[0], zero[2])
    default = [first_weights(small(seed=seed)) for seed in (0, 1)]
    assert not same_tensors(*default)
    assert not same_tensors(zero[0], default[0])
    assert zero[0]["2.weight"].equal(torch.eye(100, 300))
    said = events(small(method="imp", initialization="zero", dense_epochs=6, stages=(0.5,)))
    (dense,) = (event for event in said if isinstance(event, DenseFinished))
    assert dense.test.metric > 0.7
    assert said[-1].test.metric > 0.7


def test_zero_replaces_the_weights_of_a_network_given_from_python():
    own = {"model": net(3), "data": tiny_task(classes=4)}
    other = {"model": net(4), "data": tiny_task(classes=4)}
    config = run_of(initialization="zero")
    assert same_tensors(first_weights(config, **own), first_weights(config, **other))


# ---- one budget


@pytest.mark.parametrize("method", AT_START)
@pytest.mark.parametrize("epochs", [(30, 15, 4), (0, 1, 1), (3, 2, 1)])
def test_each_method_trains_as_many_epochs(method, epochs):
    dense, tuning, stages = epochs
    asked = {"dense_epochs": dense, "max_epochs": tuning, "stages": tuple(0.5 + 0.1 * at for at in range(stages))}
    config = RunConfig(method=method, **asked)
    plan = planned_epochs(config)
    assert sum(plan.values()) == sum(planned_epochs(RunConfig(method="imp", **asked)).values())
    assert plan["dense"] == plan["judging"] == 0
    assert (config.dense_epochs, config.stages) == (0, asked["stages"][-1:])
    assert config.criterion == AT_START[method]
    assert not config.distils


@pytest.mark.parametrize("method", METHODS)
def test_what_is_planned_is_what_is_trained(method):
    config = run_of(method=method, dense_epochs=2, max_epochs=3)
    trained = [event for event in events(config, **parts()) if isinstance(event, EpochFinished)]
    plan = planned_epochs(config)
    assert len(trained) == plan["dense"] + plan["tuning"] == 2 + 2 * 3
    assert plan["judging"] == (2 * 2 if method == "randomized" else 0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("extra", [{}, TOST, {"densities": "erk"}, {"scope": "global", "initialization": "zero"}])
def test_a_configuration_that_is_read_again_is_the_same(method, extra):
    config = RunConfig(method=method, **extra)
    for again in (
        RunConfig.model_validate_json(config.model_dump_json()),
        RunConfig(**config.model_dump()),
        RunConfig.model_validate(config.model_dump(mode="json")),
    ):
        assert again == config
        assert again.model_dump_json() == config.model_dump_json()


def test_a_criterion_that_the_method_has_anyway_may_be_named():
    assert RunConfig(method="snip", criterion="snip") == RunConfig(method="snip")


def test_the_criterion_of_a_method_before_training_can_be_had_by_imp():
    """As the refusal says."""
    config = run_of(method="imp", dense_epochs=0, criterion="taylor", logit_weight=0.0)
    assert_exactly_sparse(list(engine.prune(config, **parts())), config)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"method": "snip", "criterion": "taylor"}, ("'snip'", "'taylor'", "method='imp'")),
        ({"method": "rigl", "criterion": "synflow"}, ("'rigl'", "'random'", "Leave criterion out")),
        ({"scope": "global", "densities": "erk"}, ("'global'", "'erk'", "scope='layer'")),
        ({"scope": "global", "pattern": "4x4"}, ("'global'", "'4x4'", "scope='layer'")),
        ({"patience": 2, "soft_skips": True}, ("patience = 2", "patience=None")),
        ({"patience": 2, "soft_activations": True}, ("patience = 2", "patience=None")),
        ({"method": "synflow", "task_weight": 0}, ("task_weight = 0", "'synflow'", "task_weight positive")),
        ({"pattern": "4x4", "randomness": "target_ir", "target_ir": 0.1}, ("'4x4'", "target_ir", "randomness='fixed'")),
        ({"pattern": "4x4", "densities": "erk"}, ("'4x4'", "'erk'", "pattern='unstructured'")),
        ({"pattern": "4x4", "method": "set"}, ("'4x4'", "'set'", "pattern='unstructured'")),
        ({"pattern": "2:4", "method": "rigl", "stages": (0.5,)}, ("'2:4'", "'rigl'", "pattern='unstructured'")),
        ({"method": "snipp"}, ("'snipp'", "snip")),
        ({"criterion": "tailor"}, ("'tailor'", "taylor")),
        ({"initialization": "zer"}, ("'zer'", "zero")),
        ({"densities": "erc"}, ("'erc'", "erk")),
        ({"label_smoothing": 1.0}, ("label_smoothing", "1")),
        ({"label_smoothing": -0.1}, ("label_smoothing", "0")),
        ({"soft_until": 0.0}, ("soft_until", "0")),
        ({"soft_until": 1.5}, ("soft_until", "1")),
        ({"regrow_share": 1.0}, ("regrow_share", "1")),
        ({"regrow_share": 0.0}, ("regrow_share", "0")),
        ({"regrow_every": 0}, ("regrow_every", "1")),
        ({"mask_sparsity_weight": -1.0}, ("mask_sparsity_weight", "0")),
        ({"mask_binary_weight": float("inf")}, ("mask_binary_weight", "finite")),
        ({"mask_learning_rate": 0.0}, ("mask_learning_rate", "0")),
    ],
)
def test_settings_that_contradict_one_another_are_refused(settings, words):
    with pytest.raises(ValueError, match=r".") as refused:
        RunConfig(**settings)
    for word in words:
        assert word in str(refused.value)
