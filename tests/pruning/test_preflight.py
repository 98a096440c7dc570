"""What a model cannot take is refused before the run, with the reason; and what the refusal proposes works."""

import itertools
import re

import pytest
import torch
from support.runs import events, same_tensors, small, tiny, tiny_model, tiny_task
from torch import nn

from randprune_lab import engine
from randprune_lab.config import METHOD_NAMES, RunConfig
from randprune_lab.events import RunFinished, StageFinished
from randprune_lab.models import build_model
from randprune_lab.splits import Task


def widths_of_four() -> dict:
    return {"model": plain_net(nn.ReLU(), 8, 12, 4), "data": tiny_task(classes=4)}


def refusal(config: RunConfig, **own) -> str:
    """The refusal; nothing was trained before it, and nothing was said."""
    before = own["model"].state_dict() if "model" in own else {}
    before = {name: tensor.clone() for name, tensor in before.items()}
    with pytest.raises(ValueError, match=r".") as refused:
        next(engine.prune(config, **own))
    if "model" in own:
        assert same_tensors(before, own["model"].state_dict())
    return str(refused.value)


def starts(config: RunConfig, **own) -> bool:
    stream = engine.prune(config, **own)
    try:
        return next(stream).kind == "run_started"
    finally:
        stream.close()


def plain_net(activation: nn.Module, *widths: int) -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), activation]
    return nn.Sequential(*layers[:-1])


class _Once(torch.autograd.Function):
    """A ReLU as many an own kernel is written: its backward pass cannot be differentiated."""

    @staticmethod
    def forward(ctx, values):
        ctx.save_for_backward(values)
        return values.clamp(min=0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, slope):
        (values,) = ctx.saved_tensors
        return slope * (values > 0)


class Once(nn.Module):
    def forward(self, values):
        return _Once.apply(values)


@pytest.mark.parametrize("choice", [{"method": "grasp"}, {"method": "imp", "criterion": "grasp"}])
@pytest.mark.parametrize("depth", [(8, 6, 3), (8, 6, 5, 3)])
def test_grasp_without_second_derivatives(choice, depth):
    own = {"model": plain_net(Once(), *depth), "data": tiny_task()}
    said = refusal(tiny(**choice), **own)
    for word in ("grasp", "second derivatives", "Sequential", "once_differentiable", "snip"):
        assert word in said
    assert starts(tiny(method="snip"), **own)
    assert starts(tiny(method="imp", criterion="snip"), **own)
    assert starts(tiny(method="grasp"), model=plain_net(nn.ReLU(), *depth), data=tiny_task())


@pytest.mark.parametrize(("task", "model"), [("sentences", "tiny-bert"), ("digits", "tiny-vit")])
def test_grasp_of_a_transformer(task, model):
    """PyTorch's fused attention has no second derivatives; written out it has."""
    said = refusal(small(method="grasp", task=task, model=model))
    for word in ("grasp", "second derivatives", "eager", "snip"):
        assert word in said
    assert starts(small(method="snip", task=task, model=model))
    assert starts(small(method="grasp", task=task, model=model, attention_weight=1.0))
    if model == "tiny-vit":  # or, from Python, as the refusal says
        own = build_model(
            "tiny-vit", 0, outputs=10, labels=(), regression=False, images=True, eager=True, trained=False
        )
        assert starts(small(method="grasp"), model=own, data=None)


@pytest.mark.parametrize(("task", "model"), [("sentences", "tiny-bert"), ("digits", "tiny-vit")])
def test_what_a_transformer_cannot_take(task, model):
    asked = {"method": "imp", "task": task, "model": model}
    for changes, words in (
        ({"soft_activations": True}, ("soft_activations", "no ReLU", "label_smoothing")),
        ({"soft_skips": True}, ("soft_skips", "skips of its own", "label_smoothing")),
        ({"criterion": "synflow"}, ("synflow", "ones", "snip")),
        ({"method": "synflow"}, ("synflow", "ones", "snip")),
    ):
        said = refusal(small(**(asked | changes)))
        for word in words:
            assert word in said
    assert starts(small(**asked, label_smoothing=0.1))
    assert starts(small(**(asked | {"method": "snip"})))
    assert starts(small(**asked, criterion="taylor"))


def test_soft_activations_where_there_is_no_relu():
    own = {"model": plain_net(nn.Tanh(), 8, 6, 3), "data": tiny_task()}
    said = refusal(tiny(soft_activations=True), **own)
    assert all(word in said for word in ("soft_activations", "Sequential", "no ReLU", "label_smoothing"))
    assert starts(tiny(label_smoothing=0.1, soft_skips=True), **own)
    assert starts(tiny(soft_activations=True), model=plain_net(nn.ReLU(inplace=True), 8, 6, 3), data=tiny_task())


def test_soft_skips_where_no_layer_is_hidden():
    own = {"model": nn.Sequential(nn.Linear(8, 3)), "data": tiny_task()}
    said = refusal(tiny(soft_skips=True), **own)
    assert all(word in said for word in ("soft_skips", "Sequential", "no hidden", "label_smoothing"))
    assert starts(tiny(label_smoothing=0.1), **own)


def test_a_width_that_two_of_four_do_not_fit():
    """The tensor is named, and to leave it out as the refusal says helps."""
    own = {"model": plain_net(nn.ReLU(), 8, 6, 3), "data": tiny_task()}
    asked = {"method": "imp", "pattern": "2:4", "stages": (0.25, 0.5)}
    said = refusal(tiny(**asked), **own)
    assert all(word in said for word in ("2.weight", "6 inputs", "multiple of 4", "2:4"))
    pattern = re.search(r"exclude = (\S+),", said)[1]
    assert starts(tiny(**asked, exclude=(pattern,)), **own)
    config = tiny(**asked, exclude=(pattern,))
    assert [event.kept for event in events(config, **own) if isinstance(event, StageFinished)] == [36, 24]


def test_blocks_that_do_not_tile_a_tensor():
    own = {"model": plain_net(nn.ReLU(), 8, 8, 3), "data": tiny_task()}
    said = refusal(tiny(method="imp", pattern="4x4"), **own)
    assert all(word in said for word in ("2.weight", "3 x 8", "4 x 4"))
    pattern = re.search(r"exclude = (\S+),", said)[1]
    assert starts(tiny(method="imp", pattern="4x4", stages=(0.5,), exclude=(pattern,)), **own)


@pytest.mark.parametrize("stages", [(0.5, 0.9), (0.3, 0.5), (0.25,), (0.25, 0.5, 0.75), (0.54, 0.83)])
def test_stages_that_do_not_fit_two_of_four(stages):
    """Whoever follows the refusals gets there."""
    for _ in range(3):
        said = refusal(tiny(method="imp", pattern="2:4", stages=stages), **widths_of_four())
        proposed = re.search(r"Pass one of ([\d.,]+)\.$|stages=([\d.,]+)\.$", said)
        if proposed[2]:
            stages = tuple(float(stage) for stage in proposed[2].split(","))
            break
        stages = (float(proposed[1].split(",")[0]),)
    assert starts(tiny(method="imp", pattern="2:4", stages=stages), **widths_of_four())


def regression() -> Task:
    task = tiny_task()
    return Task.of(*((split.inputs, split.inputs[:, 0].clone()) for split in (task.train, task.test)))


def test_label_smoothing_of_a_regression():
    own = {"model": plain_net(nn.ReLU(), 8, 6, 1), "data": regression()}
    said = refusal(tiny(label_smoothing=0.1), **own)
    assert all(word in said for word in ("label_smoothing = 0.1", "regression", "Pass 0"))
    assert starts(tiny(label_smoothing=0.0, soft_activations=True, soft_skips=True), **own)


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_a_regression_by_every_method(method):
    own = {"model": plain_net(nn.ReLU(), 8, 6, 1), "data": regression()}
    assert isinstance(events(tiny(method=method, stages=(0.5,)), **own)[-1], RunFinished)


def test_a_learned_mask_without_dense_epochs():
    said = refusal(tiny(method="learned-mask", dense_epochs=0), **widths_of_four())
    assert all(
        word in said for word in ("learned-mask", "dense_epochs = 0", "method='imp'", "criterion='learned-mask'")
    )
    assert starts(tiny(method="learned-mask", dense_epochs=1), **widths_of_four())
    assert starts(tiny(method="imp", criterion="learned-mask", dense_epochs=0), **widths_of_four())


def test_zero_of_a_pretrained_network(test_data):
    model = str(test_data / "models" / "minilm-l3")
    said = refusal(small(task="sentences", model=model, initialization="zero"))
    assert all(word in said for word in ("initialization = 'zero'", model, "trained weights", "'default'", "tiny-bert"))
    assert starts(small(task="sentences", model="tiny-bert", initialization="zero"))


@pytest.mark.parametrize("method", ["snip", "grasp", "synflow"])
@pytest.mark.parametrize("rows", [11, 13, 15])
def test_few_rows_and_batch_norm(method, rows):
    """What looks at a few examples before the run must not stumble over a last batch of one."""
    task = tiny_task()
    few = Task.of((task.train.inputs[:rows], task.train.labels[:rows]), (task.test.inputs, task.test.labels))
    size = next(size for size in (4, 5, 3) if len(few.train) % size != 1)
    assert starts(tiny(method=method, batch_size=size), model=tiny_model(), data=few)


def test_what_is_tried_before_the_run_changes_nothing():
    """The check of a criterion works on a copy, and moves no random state."""
    own = widths_of_four()
    before = {name: tensor.clone() for name, tensor in own["model"].state_dict().items()}
    state = torch.get_rng_state()
    for method in ("grasp", "synflow", "snip"):
        assert starts(tiny(method=method, soft_activations=True, soft_skips=True), **own)
    assert torch.get_rng_state().equal(state)
    assert same_tensors(before, own["model"].state_dict())
    assert all(parameter.grad is None for parameter in own["model"].parameters())
