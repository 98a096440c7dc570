"""Networks for pictures: their shapes, weights and start; what they compute, against plain functions of the weights."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d, cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from randprune_lab.config import RunConfig, preset
from randprune_lab.masks import tensor_sparsities
from randprune_lab.models import MODELS, build_model, is_transformer, prunable_weights
from randprune_lab.nets import NETS, lenet_300_100, resnet20, tiny_cnn, vgg16
from randprune_lab.tasks import digits

PICTURE = {"tiny-cnn": (1, 8, 8), "lenet-300-100": (1, 28, 28), "vgg16": (3, 32, 32), "resnet20": (3, 32, 32)}
# Prunable weights and all parameters, added up by hand from the papers' tables.
VGG_CONVS = [(3, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 256)]
VGG_CONVS += [(256, 512), (512, 512), (512, 512), (512, 512), (512, 512), (512, 512)]
RES_CONVS = [(3, 16), *[(16, 16)] * 6, (16, 32), *[(32, 32)] * 5, (32, 64), *[(64, 64)] * 5]
RELUS = {"tiny-cnn": 3, "lenet-300-100": 2, "vgg16": 13, "resnet20": 19}


def pictures(name: str, rows: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn((rows, *PICTURE[name]), generator=torch.Generator().manual_seed(seed))


def shaken(name: str, outputs: int = 10) -> nn.Module:
    """In evaluation mode, with normalizations that do something: as made, their mean is 0, their scale 1."""
    model = build_model(name, 0, outputs=outputs)
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low in ((module.weight, 0.5), (module.bias, -0.5), (module.running_mean, -0.5)):
                tensor.data.copy_(low + torch.rand(tensor.shape, generator=generator))
            module.running_var.copy_(0.5 + torch.rand(module.running_var.shape, generator=generator))
    return model.eval()


@pytest.fixture
def kinds():
    """The sizes of the weights, convolution by convolution."""
    convs = {"vgg16": VGG_CONVS, "resnet20": RES_CONVS}
    last = {"vgg16": 512, "resnet20": 64}
    sizes = {name: [9 * a * b for a, b in pairs] + [10 * last[name]] for name, pairs in convs.items()}
    plain = {
        "tiny-cnn": [9 * 32, 9 * 32 * 64, 4 * 64 * 100, 100 * 10],
        "lenet-300-100": [784 * 300, 300 * 100, 100 * 10],
    }
    return sizes | plain


def test_names_are_models():
    assert set(NETS) == set(PICTURE)
    assert set(NETS) < set(MODELS)
    assert not any(is_transformer(name) for name in NETS)


@pytest.mark.parametrize("name", NETS)
def test_every_weight_is_prunable(name, kinds):
    model = build_model(name, 0)
    weights = prunable_weights(model)
    assert [weight.numel() for weight in weights.values()] == kinds[name]
    layers = [key for key, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert list(weights) == [f"{layer}.weight" for layer in layers]
    norms = [module.num_features for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    biases = {"tiny-cnn": 32 + 64 + 110, "lenet-300-100": 410}.get(name, 10)  # before a normalization there are none
    assert sum(p.numel() for p in model.parameters()) == sum(kinds[name]) + 2 * sum(norms) + biases


def test_sizes_that_papers_state():
    total = {name: sum(weight.numel() for weight in prunable_weights(build_model(name, 0)).values()) for name in NETS}
    assert total["tiny-cnn"] == 45_320  # as its docstring says
    assert total["lenet-300-100"] == 266_200
    assert round(total["vgg16"] / 1e6, 1) == 14.7
    assert round(total["resnet20"] / 1e6, 2) == 0.27  # He et al. 2016, table 6


def test_names_of_the_weights():
    assert list(prunable_weights(tiny_cnn())) == [f"{layer}.weight" for layer in ("conv1", "conv2", "hidden", "output")]
    assert list(prunable_weights(lenet_300_100())) == ["hidden1.weight", "hidden2.weight", "output.weight"]
    assert list(prunable_weights(vgg16())) == [*(f"conv{place}.weight" for place in range(1, 14)), "output.weight"]
    blocks = [f"block{place}.conv{which}.weight" for place in range(1, 10) for which in (1, 2)]
    assert list(prunable_weights(resnet20())) == ["conv.weight", *blocks, "output.weight"]
    assert list(prunable_weights(resnet20(), include=("block3",))) == ["block3.conv1.weight", "block3.conv2.weight"]


class Counted(TorchDispatchMode):
    """How often the machine computes a ReLU, whoever asks for it; or writes one into its own input."""

    def __init__(self):
        super().__init__()
        self.relus, self.in_place = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.relus += name in ("relu", "clamp_min", "clamp", "maximum")
        self.in_place += name in ("relu_", "clamp_min_", "clamp_")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", NETS)
def test_every_activation_is_a_module_of_its_own(name):
    model = build_model(name, 0).eval()
    relus = [module for module in model.modules() if isinstance(module, nn.ReLU)]  # each listed once
    assert len(relus) == RELUS[name]
    assert not any(relu.inplace for relu in relus)
    used = []
    for relu in relus:
        relu.register_forward_hook(lambda module, _, __: used.append(id(module)))
    with torch.no_grad(), Counted() as counted:
        model(pictures(name))
    assert sorted(used) == sorted(map(id, relus))
    assert (counted.relus, counted.in_place) == (len(relus), 0)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("outputs", [1, 10, 17])
def test_outputs(name, outputs):
    model = build_model(name, 0, outputs=outputs, labels=(), regression=False, images=True, eager=False)
    assert model(pictures(name)).shape == (3, outputs)


@pytest.mark.parametrize(("name", "side"), [("vgg16", 33), ("vgg16", 64), ("resnet20", 20), ("resnet20", 47)])
def test_larger_pictures_pass(name, side):
    model = build_model(name, 0).eval()
    assert model(torch.randn((2, 3, side, side), generator=torch.Generator().manual_seed(0))).shape == (2, 10)


@pytest.mark.parametrize("name", NETS)
def test_same_seed_same_network(name):
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    one, same, other = (build_model(name, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not any(torch.equal(one[key], other[key]) for key in one if key.endswith("weight") and one[key].ndim > 1)


@pytest.mark.parametrize("name", ["vgg16", "resnet20"])
def test_convolutions_start_as_he_says(name):
    """He et al. 2015, eq. 10: variance 2 / fan-in. False alarm: 5 standard errors, below 1e-6 each, 32 tensors."""
    for key, weight in prunable_weights(build_model(name, 3)).items():
        if weight.ndim == 4:
            scaled = weight * math.sqrt(weight[0].numel() / 2)
            assert abs(scaled.mean()) < 5 / math.sqrt(weight.numel()), key
            assert abs(scaled.var() - 1) < 5 * math.sqrt(2 / weight.numel()), key  # of normal values


def _norm(x, state, key):
    mean, var, scale, shift = (state[f"{key}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
    columns = [part[None, :, None, None] for part in (mean, var, scale, shift)]
    return (x - columns[0]) / (columns[1] + 1e-5).sqrt() * columns[2] + columns[3]


def _positive(x):
    return torch.where(x > 0, x, 0.0)


def tiny_by_hand(state, x):
    for place in (1, 2):
        x = _positive(conv2d(x, state[f"conv{place}.weight"], state[f"conv{place}.bias"], padding=1))
        x = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).amax((3, 5))
    x = _positive(x.reshape(len(x), -1) @ state["hidden.weight"].T + state["hidden.bias"])
    return x @ state["output.weight"].T + state["output.bias"]


def lenet_by_hand(state, x):
    x = x.reshape(len(x), -1)
    for key in ("hidden1", "hidden2"):
        x = _positive(x @ state[f"{key}.weight"].T + state[f"{key}.bias"])
    return x @ state["output.weight"].T + state["output.bias"]


def vgg_by_hand(state, x):
    for place in range(1, 14):
        x = _positive(_norm(conv2d(x, state[f"conv{place}.weight"], padding=1), state, f"norm{place}"))
        if place in (2, 4, 7, 10, 13):
            even = (x.shape[2] // 2 * 2, x.shape[3] // 2 * 2)
            x = x[:, :, : even[0], : even[1]].unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).amax((3, 5))
    return x.mean((2, 3)) @ state["output.weight"].T + state["output.bias"]


def resnet_by_hand(state, x):
    x = _positive(_norm(conv2d(x, state["conv.weight"], padding=1), state, "norm"))
    for block in range(1, 10):
        key, stride = f"block{block}", 2 if block in (4, 7) else 1
        inner = conv2d(x, state[f"{key}.conv1.weight"], stride=stride, padding=1)
        inner = _positive(_norm(inner, state, f"{key}.norm1"))
        inner = _norm(conv2d(inner, state[f"{key}.conv2.weight"], padding=1), state, f"{key}.norm2")
        around = torch.zeros_like(inner)
        around[:, : x.shape[1]] = x[:, :, ::stride, ::stride]
        x = _positive(inner + around)
    return x.mean((2, 3)) @ state["output.weight"].T + state["output.bias"]


@pytest.mark.parametrize(
    ("name", "by_hand"),
    [
        ("tiny-cnn", tiny_by_hand),
        ("lenet-300-100", lenet_by_hand),
        ("vgg16", vgg_by_hand),
        ("resnet20", resnet_by_hand),
    ],
)
def test_computes_what_its_paper_says(name, by_hand):
    model = shaken(name).double()
    with torch.no_grad():
        torch.testing.assert_close(model(pictures(name).double()), by_hand(model.state_dict(), pictures(name).double()))


@pytest.mark.parametrize("name", NETS)
def test_learns_a_handful_by_heart(name):
    """Gradients reach every weight; a few steps of Adam bring the loss of eight pictures down by half."""
    model, x, labels = build_model(name, 0), pictures(name, 8), torch.arange(8) % 3
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    losses = []
    for _ in range(12):
        loss = cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())
    assert losses[-1] < losses[0] / 2


def test_tiny_cnn_takes_flat_pictures_too():
    model, x = build_model("tiny-cnn", 0), pictures("tiny-cnn")
    assert torch.equal(model(x), model(x.flatten(1)))


def test_tiny_cnn_learns_digits():
    """Twenty epochs of AdamW at 1e-3 in batches of 64: 95.6 to 97 % of the 360 test images over seeds."""
    data, model = digits(), build_model("tiny-cnn", 0)
    optimizer, generator = torch.optim.AdamW(model.parameters(), 1e-3), torch.Generator().manual_seed(0)
    for _ in range(20):
        for rows in torch.randperm(len(data.train), generator=generator).split(64):
            inputs, labels = data.train.batch(rows)
            loss = cross_entropy(model(inputs), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        right = (model(data.test.inputs).argmax(1) == data.test.labels).float().mean()
    assert right > 0.95


def test_tiny_cnn_at_33x_keeps_enough_of_its_first_layer():
    """What its preset is for: uniform densities leave 9 of 288 weights."""
    config = RunConfig(**preset(task="digits", model="tiny-cnn"))
    weights = prunable_weights(build_model("tiny-cnn", 0))
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    kept = {name: 1 - share for name, share in tensor_sparsities(shapes, 0.97, config).items()}
    assert kept["conv1.weight"] > 0.2
    whole = sum(kept[name] * weight.numel() for name, weight in weights.items())
    assert round(whole) == pytest.approx(0.03 * 45_320, abs=len(weights))
