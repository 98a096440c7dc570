"""What a run may be asked for, and how a wrong wish is refused."""

import json

import pydantic
import pytest

from randprune_lab.config import METHOD_NAMES, RunConfig, controls
from randprune_lab.engine import prune
from randprune_lab.schedules import STAGES


def refusal(**settings) -> str:
    with pytest.raises(pydantic.ValidationError) as caught:
        RunConfig(**settings)
    return str(caught.value)


def test_the_default_is_literally_this():
    """A run's identity: whoever changes a default must change this line too, and knows that old runs differ."""
    assert json.loads(RunConfig().model_dump_json()) == {
        "task": "digits",
        "model": "mlp",
        "dataset": "nyu-mll/glue",
        "text_columns": [],
        "label_column": "label",
        "max_length": 128,
        "augment": 0,
        "augment_model": "",
        "glove": "",
        "unlabelled": "",
        "method": "randomized",
        "initialization": "default",
        "stages": [0.54, 0.83, 0.91, 0.9375, 0.97],
        "scope": "layer",
        "include": [],
        "exclude": [],
        "pattern": "unstructured",
        "densities": "uniform",
        "criterion": "magnitude",
        "candidates": 8,
        "randomness": "fixed",
        "samples": 4,
        "sampling_ratio": 5e-05,
        "target_ir": None,
        "power": 5.0,
        "reach": None,
        "ties": "random",
        "sampler": "fast",
        "dense_epochs": 30,
        "max_epochs": 15,
        "patience": None,
        "emep_epochs": 1,
        "racing": False,
        "max_steps_per_epoch": None,
        "emep_steps": None,
        "learning_rate": 0.001,
        "emep_learning_rate": None,
        "weight_decay": 0.01,
        "batch_size": 64,
        "select_on": "selection",
        "selection_rows": None,
        "task_weight": 1.0,
        "logit_weight": 1.0,
        "hidden_weight": 0.0,
        "attention_weight": 0.0,
        "temperature": 2.0,
        "label_smoothing": 0.0,
        "soft_activations": False,
        "soft_skips": False,
        "soft_until": 0.5,
        "mask_sparsity_weight": 10.0,
        "mask_binary_weight": 1.0,
        "mask_learning_rate": 0.01,
        "regrow_every": 100,
        "regrow_share": 0.3,
        "teacher": "",
        "layer_map": [],
        "executor": "lockstep",
        "ray_address": "",
        "ray_gpus": 0.0,
        "wave": None,
        "seed": 0,
        "threads": 1,
        "device": "auto",
        "precision": "no",
        "deterministic": False,
        "keep_stages": "all",
        "group": "",
        "control": "",
    }
    assert RunConfig().early_learning_rate == pytest.approx(3e-3)
    assert RunConfig(emep_learning_rate=0.5).early_learning_rate == 0.5


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"stages": "long", "include": (r"\.weight$",), "exclude": ("head", "embed")},
        {"randomness": "target_ir", "target_ir": (0.1, 0.05), "stages": (0.5, 0.9), "reach": 2.0},
        {"randomness": "target_ir", "target_ir": 0.1, "patience": 3, "emep_learning_rate": 0.1, "seed": -7},
        {"learning_rate": 0.1 + 0.2, "stages": (1 / 3, 0.7)},  # no decimal of few digits
    ],
)
def test_json_round_trip(settings):
    config = RunConfig(**settings)
    assert RunConfig.model_validate_json(config.model_dump_json()) == config
    assert RunConfig(**config.model_dump(mode="json")) == config
    assert RunConfig.model_validate_json(config.model_dump_json()).model_dump(mode="json") == config.model_dump(
        mode="json"
    )


def test_every_field_says_what_it_is():
    assert all(field.description for field in RunConfig.model_fields.values())


def test_it_is_frozen():
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        RunConfig().seed = 1


def test_stages_by_name_and_as_text():
    assert RunConfig(stages="short").stages == (0.54, 0.83, 0.91, 0.9375)
    assert {name: RunConfig(stages=name).stages for name in STAGES} == STAGES
    assert RunConfig(stages="0.5, 0.75 .9").stages == (0.5, 0.75, 0.9)
    assert RunConfig(include="a.*,b").include == ("a.*", "b")
    assert RunConfig(randomness="target_ir", stages="0.5,0.9", target_ir="0.1,0.2").target_ir == (0.1, 0.2)


def test_the_target_of_each_stage():
    one = RunConfig(randomness="target_ir", target_ir=0.1, stages=(0.5, 0.9))
    two = RunConfig(randomness="target_ir", target_ir=(0.1, 0.05), stages=(0.5, 0.9))
    assert [one.target_of(1), one.target_of(2)] == [0.1, 0.1]
    assert [two.target_of(1), two.target_of(2)] == [0.1, 0.05]
    assert RunConfig().target_of(1) is None


@pytest.mark.parametrize(
    ("name", "wrong", "nearest"),
    [
        ("method", "randomised", "randomized"),
        ("method", "imp-matched", "imp"),
        ("scope", "globl", "global"),
        ("randomness", "target-ir", "target_ir"),
        ("ties", "magnitudes", "magnitude"),
        ("sampler", "fsat", "fast"),
        ("select_on", "validate", "validation"),
        ("precision", "bf-16", "bf16"),
        ("device", "gpu", "cpu"),
        ("keep_stages", "lst", "last"),
        ("stages", "shrt", "short"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(name, wrong, nearest):
    text = refusal(**{name: wrong})
    assert f"{name} = {wrong!r}" in text
    assert f"Did you mean {nearest!r}" in text


@pytest.mark.parametrize(("name", "wrong", "nearest"), [("task", "digit", "digits"), ("model", "mpl", "mlp")])
def test_an_unknown_task_or_model_is_refused_before_training(name, wrong, nearest):
    with pytest.raises(ValueError, match=rf"{name} = '{wrong}'.*Did you mean '{nearest}'"):
        next(prune(RunConfig(**{name: wrong}, dense_epochs=10**6)))


@pytest.mark.parametrize("wrong", ["nowhere:build", "math:nothing", ":", "math:", ":build", "math:pi", "math:sin"])
def test_a_model_that_cannot_be_imported_is_refused(wrong):
    with pytest.raises(ValueError, match=f"model = '{wrong}'"):
        next(prune(RunConfig(model=wrong, dense_epochs=10**6)))


@pytest.mark.parametrize(("wrong", "nearest"), [("sead", "seed"), ("max_epoch", "max_epochs"), ("stage", "stages")])
def test_an_unknown_field_is_refused_with_the_nearest(wrong, nearest):
    text = refusal(**{wrong: 1})
    assert f"'{wrong}'" in text
    assert f"Did you mean '{nearest}'" in text


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"stages": (0.9, 0.5)}, ["[0.9, 0.5]", "rise strictly", "Pass for example"]),
        ({"stages": (0.5, 0.5)}, ["rise strictly"]),
        ({"stages": ()}, ["one or more"]),
        ({"stages": (0.0, 0.5)}, ["each in (0, 1)"]),
        ({"stages": (0.5, 1.0)}, ["sparsity = 1.0", "[0, 1)"]),
        ({"stages": (-0.5,)}, ["sparsity = -0.5"]),
        ({"stages": (float("nan"),)}, ["nan"]),
        ({"stages": (16,)}, ["sparsity = 16", "For a compression of 16x"]),
        ({"stages": "0.5,abc"}, ["abc"]),
        ({"samples": 0}, ["samples = 0", "at least 1", "Pass samples=1"]),
        ({"samples": 2**31}, [f"samples = {2**31}", "at most"]),
        ({"power": -1}, ["power = -1", "at least 0"]),
        ({"power": float("inf")}, ["power = inf"]),
        ({"power": float("nan")}, ["power = nan"]),
        ({"reach": 0.5}, ["reach = 0.5", "at least 1", "Pass None"]),
        ({"reach": float("nan")}, ["reach = nan"]),
        ({"sampling_ratio": 0}, ["sampling_ratio = 0", "above 0"]),
        ({"learning_rate": 0}, ["learning_rate = 0", "above 0", "Pass a positive number"]),
        ({"learning_rate": float("nan")}, ["learning_rate = nan"]),
        ({"emep_learning_rate": -1}, ["emep_learning_rate = -1"]),
        ({"temperature": 0}, ["temperature = 0"]),
        ({"candidates": 0}, ["candidates", "greater than or equal to 1"]),
        ({"batch_size": 0}, ["batch_size", "greater than or equal to 1"]),
        ({"dense_epochs": -1}, ["dense_epochs", "greater than or equal to 0"]),
        ({"max_epochs": 0}, ["max_epochs", "greater than or equal to 1"]),
        ({"emep_epochs": 0}, ["emep_epochs", "greater than or equal to 1"]),
        ({"patience": 0}, ["patience", "greater than or equal to 1"]),
        ({"threads": 0}, ["threads", "greater than or equal to 1"]),
        ({"weight_decay": -0.1}, ["weight_decay", "greater than or equal to 0"]),
        ({"weight_decay": float("inf")}, ["weight_decay", "finite"]),
        ({"logit_weight": -1}, ["logit_weight", "greater than or equal to 0"]),
        ({"task_weight": float("nan")}, ["task_weight"]),
        ({"seed": 1.5}, ["seed"]),
        ({"include": ("(",)}, ["'('", "no regular expression", "Escape"]),
        ({"exclude": "*.weight"}, ["'*.weight'", "no regular expression"]),
        ({"include": (3000 * "(",)}, ["...'", "no regular expression"]),
        ({"randomness": "target_ir"}, ["randomness = 'target_ir'", "each needs the other"]),
        ({"target_ir": 0.1}, ["randomness = 'fixed', target_ir = 0.1", "each needs the other"]),
        ({"randomness": "target_ir", "target_ir": (0.1, 0.2)}, ["2 numbers for 5 stages"]),
        ({"randomness": "target_ir", "target_ir": 0}, ["target_ir = 0", "above 0"]),
        ({"randomness": "target_ir", "target_ir": float("nan")}, ["target_ir = nan"]),
        ({"randomness": "target_ir", "target_ir": (0.1, -0.2), "stages": (0.5, 0.9)}, ["target_ir = -0.2"]),
        ({"randomness": "target_ir", "target_ir": "0.1,abc"}, ["target_ir", "abc"]),
    ],
)
def test_a_wrong_value_is_refused_with_value_rule_and_fix(settings, said):
    text = refusal(**settings)
    assert not [part for part in said if part not in text], text


def test_controls():
    config = RunConfig(candidates=6, emep_epochs=2, max_epochs=10, patience=3, seed=9, stages=(0.5, 0.9), group="g")
    found = controls(config)
    assert set(found) == {"imp", "imp-matched", "randomized-no-selection"}
    for name, control in found.items():
        assert control.method in METHOD_NAMES
        assert control.control == name
        # what decides the dense weights, the data and the schedule is shared
        shared = {"task", "model", "stages", "seed", "dense_epochs", "learning_rate", "batch_size", "group", "scope"}
        assert control.model_dump(include=shared) == config.model_dump(include=shared)
        assert RunConfig(**control.model_dump(mode="json")) == control  # valid, though it was not checked again
    changed = {
        name: {key for key, value in control.model_dump().items() if value != config.model_dump()[key]}
        for name, control in found.items()
    }
    assert changed["imp"] == {"method", "control"}
    assert changed["imp-matched"] == {"method", "control", "max_epochs", "patience"}
    assert changed["randomized-no-selection"] == {"method", "control"}
    assert (found["imp-matched"].max_epochs, found["imp-matched"].patience) == (10 + 6 * 2, None)
    assert found["imp-matched"].method == "imp"
