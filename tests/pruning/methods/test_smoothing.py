"""Soft activations and skips: what they are, that they end exactly at none, and that nobody scores with them."""

import contextlib
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812, its usual name
from hypothesis import given, settings
from hypothesis import strategies as st
from support.runs import conv_model, conv_parts, events, same_tensors, tiny, tiny_model, tiny_parts, tiny_task
from torch import nn

from randprune_lab import engine
from randprune_lab.events import Checkpoint, DenseFinished, EpochFinished, MaskChosen
from randprune_lab.methods import hooks_of
from randprune_lab.nets import resnet20
from randprune_lab.smoothing import SoftActivations, fitted, hidden_layers, soft_skips, strength
from randprune_lab.training import Phase, Session, start_accelerator

BOTH = {"soft_activations": True, "soft_skips": True}


# ---- how strong


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 500), st.integers(1, 500), st.floats(0.01, 1))
def test_strength_falls_in_a_line_to_exactly_zero(step, steps, until):
    found = strength(step, steps, until)
    assert found == max(0.0, 1 - step / (until * steps))
    assert strength(0, steps, until) == 1
    assert found >= strength(step + 1, steps, until)
    if step >= until * steps:
        assert found == 0.0


def test_strength_by_hand():
    assert [strength(step, 10, 0.5) for step in range(7)] == pytest.approx([1, 0.8, 0.6, 0.4, 0.2, 0, 0])
    assert strength(5, 10, 0.5) == 0.0


# ---- soft activations

POINTS = torch.tensor([-3.0, -0.5, 0.0, 0.5, 2.0])


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
@pytest.mark.parametrize(
    "relu",
    [nn.ReLU(), nn.ReLU(inplace=True), F.relu, torch.relu, torch.Tensor.relu, lambda x: F.relu(input=x)],
    ids=["module", "module in place", "F", "torch", "method", "keyword"],
)
def test_every_way_to_say_relu_is_softened(share, relu):
    with SoftActivations(share) as seen:
        found = relu(POINTS.clone())
    expected = [(1 - share) * max(x, 0.0) + share * x / (1 + math.exp(-x)) for x in POINTS.tolist()]
    assert found.tolist() == pytest.approx(expected)
    assert seen.found == 1


def test_other_functions_are_left_alone():
    with SoftActivations(1.0) as seen:
        found = [F.gelu(POINTS), torch.tanh(POINTS), F.leaky_relu(POINTS), POINTS.clamp(min=0.5)]
    assert seen.found == 0
    for one, other in zip(
        found, [F.gelu(POINTS), torch.tanh(POINTS), F.leaky_relu(POINTS), POINTS.clamp(min=0.5)], strict=True
    ):
        assert one.equal(other)


def test_outside_a_relu_is_a_relu_again_even_after_an_error():
    with contextlib.suppress(KeyError), SoftActivations(1.0):
        raise KeyError
    assert F.relu(POINTS).tolist() == [0, 0, 0, 0.5, 2]


def test_its_slope_is_that_of_the_softened_function():
    values = POINTS.double().requires_grad_()
    with SoftActivations(0.3):
        assert torch.autograd.gradcheck(nn.ReLU(), (values[[0, 1, 3, 4]],))


# ---- soft skips


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 30), st.integers(1, 30))
def test_features_are_averaged_or_repeated_evenly(rows, wide, width):
    inputs = torch.randn(rows, wide, dtype=torch.float64)
    found = fitted(inputs, torch.empty(rows, width))
    edges = [(math.floor(at * wide / width), math.ceil((at + 1) * wide / width)) for at in range(width)]
    expected = np.stack([inputs.numpy()[:, low:high].mean(1) for low, high in edges], axis=1)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12, atol=1e-12)


def test_features_by_hand():
    inputs = torch.tensor([[1.0, 3.0, 5.0, 7.0]])
    assert fitted(inputs, torch.empty(1, 2)).tolist() == [[2, 6]]
    assert fitted(inputs, torch.empty(1, 8)).tolist() == [[1, 1, 3, 3, 5, 5, 7, 7]]
    assert fitted(inputs, torch.empty(1, 4)) is inputs


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((2, 3, 8, 8), (2, 3, 8, 8)),
        ((2, 3, 8, 8), (2, 6, 8, 8)),
        ((2, 3, 8, 8), (2, 16, 4, 4)),
        ((2, 16, 9, 7), (2, 5, 7, 5)),
        ((2, 5, 12), (2, 5, 7)),
        ((4, 6), (4, 9)),
    ],
)
def test_fitted_shapes(before, after):
    found = fitted(torch.randn(before), torch.empty(after))
    assert found.shape == after
    constant = fitted(torch.full(before, 3.0), torch.empty(after))
    torch.testing.assert_close(constant, torch.full(after, 3.0))  # an average of equals, repeated


def test_pictures_are_averaged_to_the_smaller_size():
    picture = torch.arange(16.0).view(1, 1, 4, 4)
    assert fitted(picture, torch.empty(1, 2, 2, 2))[0].tolist() == [[[2.5, 4.5], [10.5, 12.5]]] * 2


def test_a_skip_adds_the_input():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    inputs = torch.randn(3, 4)
    with soft_skips(model, 0.3):
        found = model(inputs)
    expected = model[2](torch.tanh(model[0](inputs) + 0.3 * inputs))
    torch.testing.assert_close(found, expected)
    assert model(inputs).equal(model[2](torch.tanh(model[0](inputs))))  # and is gone


@pytest.mark.parametrize("model", [tiny_model(), conv_model(), resnet20()])
def test_the_last_layer_has_no_skip_and_no_hook_is_left(model):
    layers = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    assert hidden_layers(model) == layers[:-1]
    with contextlib.suppress(KeyError), soft_skips(model, 0.5):
        assert [bool(layer._forward_hooks) for layer in layers] == [True] * (len(layers) - 1) + [False]
        raise KeyError
    assert not any(module._forward_hooks for module in model.modules())


def test_a_residual_network_takes_both():
    """Strides, more channels, batch norm: every answer keeps its shape, and gradients get through."""
    model, pictures = resnet20(), torch.randn(2, 3, 16, 16)
    with SoftActivations(0.5), soft_skips(model, 0.5):
        answers = model(pictures)
    answers.square().sum().backward()
    assert answers.shape == (2, 10)
    assert all(bool(parameter.grad.isfinite().all()) for parameter in model.parameters())


# ---- in training: exactly none at the end


def stepped(model, steps: int, *, name="fine-tuning", task=None, **changes):
    """Steps of a phase, one batch each; 5 steps an epoch, 6 epochs."""
    config = tiny(method="imp", **({"max_epochs": 6, "logit_weight": 0.0} | changes))
    task = tiny_task() if task is None else task
    session = Session(config, task, model, start_accelerator(config), prunable=("0.weight",), hooks=hooks_of(config))
    phase = Phase(session, name, 1, {}, lambda _: 1e-2, model)
    rows = torch.arange(len(task.train))
    model.train()
    for step in range(*steps) if isinstance(steps, tuple) else range(steps):
        phase.step(step, *task.train.batch(rows[step : step + 16]), None)
    return {key: tensor.clone() for key, tensor in model.state_dict().items()}, phase


@pytest.mark.parametrize("smooth", [{"soft_activations": True}, {"soft_skips": True}, BOTH])
@pytest.mark.parametrize("parts", [tiny_parts, conv_parts])
def test_from_soft_until_on_every_step_is_the_plain_one(smooth, parts):
    """Bit for bit: steps 15 to 29 of 30, where until is one half; a step earlier it is another."""

    def after(steps, **changes):
        made = parts()
        return stepped(made["model"], steps, task=made["data"], **changes)[0]

    assert same_tensors(after((15, 30), **smooth), after((15, 30)))
    assert not same_tensors(after((14, 15), **smooth), after((14, 15)))
    assert same_tensors(after((6, 9), soft_until=0.2, **smooth), after((6, 9)))


@pytest.mark.parametrize("name", ["dense", "emep"])
def test_other_phases_are_not_smoothed(name):
    assert same_tensors(
        stepped(tiny_model(), 3, name=name, label_smoothing=0.3, **BOTH)[0], stepped(tiny_model(), 3, name=name)[0]
    )


def test_a_smoothed_step_by_hand():
    """The loss of the first step is that of a network with Swish and whole bypasses."""
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    inputs, labels = tiny_task().train.batch(torch.arange(16))
    first = inputs @ model[0].weight.T + model[0].bias + inputs
    first = first * torch.sigmoid(first)
    second = first @ model[2].weight.T + model[2].bias + first
    second = second * torch.sigmoid(second)
    expected = F.cross_entropy(second @ model[4].weight.T + model[4].bias, labels).item()
    _, phase = stepped(model, 1, **BOTH)
    assert float(phase.losses[0]) == pytest.approx(expected, rel=1e-5)


def test_the_finished_network_is_an_ordinary_one():
    model = tiny_model()
    modules = [type(module) for module in model.modules()]
    names = [(name, parameter.shape) for name, parameter in model.named_parameters()]
    forwards = [vars(module).get("forward") for module in model.modules()]
    events(tiny(method="imp", max_epochs=4, **BOTH), model=model, data=tiny_task())
    assert [type(module) for module in model.modules()] == modules
    assert [(name, parameter.shape) for name, parameter in model.named_parameters()] == names
    assert [vars(module).get("forward") for module in model.modules()] == forwards
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._backward_hooks
    assert not torch.overrides._get_current_function_mode_stack()


@pytest.mark.parametrize("parts", [tiny_parts, conv_parts])
def test_every_score_is_of_the_plain_network(parts):
    """Even after an epoch that was trained very softly: the score is that of the checkpoint's weights."""
    made = parts()
    config = tiny(method="imp", soft_until=1.0, max_epochs=3, **BOTH)
    scored, checked = None, 0
    for item in engine.prune(config, **made):
        if isinstance(item, EpochFinished):
            scored = item
        elif isinstance(item, Checkpoint) and scored is not None and item.progress.phase == "fine-tuning":
            plain = parts()["model"]
            plain.load_state_dict(
                {
                    name.removeprefix("model."): tensor
                    for name, tensor in item.tensors.items()
                    if name.startswith("model.")
                }
            )
            selection = made["data"].selection
            with torch.no_grad():
                loss = F.cross_entropy(plain.eval()(selection.inputs), selection.labels)
            if item.progress.epoch:
                assert scored.selection.loss == pytest.approx(float(loss), rel=1e-6)
                checked += 1
    assert checked == 6


# ---- label smoothing


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_label_smoothing_by_its_formula(share):
    """-(1 - a) log p(label) - a mean(log p), in the loss of fine-tuning, and only there."""
    inputs, labels = tiny_task().train.batch(torch.arange(16))

    def first_loss(name, smoothing):
        model = nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3))
        model.load_state_dict(weights)
        return float(stepped(model, 1, name=name, label_smoothing=smoothing)[1].losses[0])

    source = nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3))
    weights = source.state_dict()
    logs = source(inputs).log_softmax(1).detach().double()
    hard = -float(logs[torch.arange(16), labels].mean())
    soft = (1 - share) * hard - share * float(logs.mean())
    assert first_loss("fine-tuning", share) == pytest.approx(soft, rel=1e-5)
    assert first_loss("dense", share) == first_loss("emep", share) == pytest.approx(hard, rel=1e-5)
    assert soft != pytest.approx(hard, rel=1e-2)


@pytest.mark.parametrize("changes", [{"label_smoothing": 0.3}, BOTH, {"label_smoothing": 0.3} | BOTH])
def test_dense_network_and_first_masks_are_those_of_a_plain_run(changes):
    """Whatever comes after pruning changes nothing before it; and then it does."""

    def parts_of(said):
        dense = next(event for event in said if isinstance(event, DenseFinished))
        chosen = next(event for event in said if isinstance(event, MaskChosen))
        tuned = [event.selection for event in said if isinstance(event, EpochFinished) and event.stage == 1]
        return dense, chosen, tuned

    plain = parts_of(events(tiny(), **tiny_parts()))
    other = parts_of(events(tiny(**changes), **tiny_parts()))
    assert plain[:2] == other[:2]
    assert plain[2] != other[2]
