"""ZerO: matrices by hand, every kind of layer, residual blocks that are the identity, networks that train."""

import numpy as np
import pytest
import torch
from scipy.linalg import hadamard
from support import tiny_transformers
from torch import nn

from randprune_lab.models import build_model
from randprune_lab.nets import Block as Block20
from randprune_lab.tasks import digits
from randprune_lab.zero import zero_initialize, zero_matrix


def seeded_normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    """A residual block as torchvision has it; ``order`` says what stands in its branch."""

    def __init__(self, width, order="conv norm relu conv norm"):
        super().__init__()
        kinds = {"conv": lambda: nn.Conv2d(width, width, 3, padding=1), "norm": lambda: nn.BatchNorm2d(width)}
        self.branch = nn.Sequential(*(kinds.get(word, nn.ReLU)() for word in order.split()))
        self.shortcut = nn.Sequential()

    def forward(self, x):
        return self.branch(x) + self.shortcut(x)


def conv_net():
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        Block(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


# --- the matrix


def test_matrices_by_hand():
    assert zero_matrix(2, 2).tolist() == [[1, 0], [0, 1]]
    assert zero_matrix(2, 3).tolist() == [[1, 0, 0], [0, 1, 0]]
    assert zero_matrix(2, 1).tolist() == [[1], [1]]  # m = 1: a factor of 1
    signs = torch.tensor([[1.0, 1, 1], [1, -1, 1], [1, 1, -1], [1, -1, -1]])  # m = 2
    torch.testing.assert_close(zero_matrix(3, 2), signs[:3, :2] * 2**-0.5)
    torch.testing.assert_close(zero_matrix(4, 3), signs * 2**-0.5)
    assert float(zero_matrix(5, 1).max()) == 0.5  # m = 3
    assert float(zero_matrix(300, 64).max()) == 2**-4.0  # m = 9


@pytest.mark.parametrize(("outputs", "inputs"), [(3, 2), (4, 1), (64, 63), (65, 64), (300, 64), (784, 300)])
def test_more_outputs_are_the_corner_of_a_hadamard_matrix(outputs, inputs):
    m = int(np.ceil(np.log2(outputs)))
    wanted = hadamard(2**m)[:outputs, :inputs] * 2.0 ** (-(m - 1) / 2)
    np.testing.assert_allclose(zero_matrix(outputs, inputs).numpy(), wanted, rtol=1e-6)


@pytest.mark.parametrize("outputs", [2, 8, 64, 256])
def test_columns_are_orthogonal(outputs):
    """Of a power of two: H'H is 2**m times the identity, times c squared = 2**(1 - m)."""
    matrix = zero_matrix(outputs, outputs - 1)
    torch.testing.assert_close(matrix.T @ matrix, 2 * torch.eye(outputs - 1))


@pytest.mark.parametrize(("outputs", "inputs"), [(10, 100), (100, 300), (300, 64), (33, 32), (16, 16)])
def test_the_rank_is_full_at_the_start(outputs, inputs):
    """It is what is added in training that has a low rank, not the matrices that training starts from."""
    assert int(torch.linalg.matrix_rank(zero_matrix(outputs, inputs))) == min(outputs, inputs)


# --- layers


def test_layers():
    model = nn.Sequential(
        nn.Linear(3, 3), nn.BatchNorm1d(3), nn.LayerNorm(3), nn.GroupNorm(1, 3), nn.RMSNorm(3), nn.Linear(3, 4)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7)
    zero_initialize(model)
    assert torch.equal(model[0].weight, torch.eye(3))
    assert torch.equal(model[5].weight, zero_matrix(4, 3))
    for layer in model:
        assert layer.weight is model.get_parameter(f"{list(model).index(layer)}.weight")  # in place
        assert getattr(layer, "bias", None) is None or not layer.bias.any()
    for norm in model[1:5]:
        assert (norm.weight == 1).all()


@pytest.mark.parametrize(
    ("layer", "centre"),
    [
        (nn.Conv1d(2, 4, 3), (1,)),
        (nn.Conv2d(3, 2, (3, 5), bias=False), (1, 2)),
        (nn.Conv2d(4, 4, 1), (0, 0)),
        (nn.Conv2d(2, 4, 4), (2, 2)),
        (nn.Conv3d(2, 2, (2, 3, 1)), (1, 1, 0)),
    ],
)
def test_convolutions_have_it_at_the_centre(layer, centre):
    outputs, inputs = layer.weight.shape[:2]
    zero_initialize(layer)
    here = (slice(None), slice(None), *centre)
    assert torch.equal(layer.weight[here], zero_matrix(outputs, inputs))
    assert torch.count_nonzero(layer.weight) == torch.count_nonzero(zero_matrix(outputs, inputs))
    assert layer.bias is None or not layer.bias.any()


def test_a_square_convolution_is_the_identity():
    layer, pictures = nn.Conv2d(3, 3, 3, padding=1), seeded_normal(2, 3, 5, 5)
    zero_initialize(layer)
    assert torch.equal(layer(pictures), pictures)


def test_each_group_of_a_convolution_has_its_own():
    depthwise, grouped = nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 6, 1, groups=2)
    zero_initialize(nn.Sequential(depthwise, grouped))
    assert torch.equal(depthwise.weight[:, 0, 1, 1], torch.ones(4))
    assert int(torch.count_nonzero(depthwise.weight)) == 4
    assert torch.equal(grouped.weight[:3, :, 0, 0], zero_matrix(3, 2))
    assert torch.equal(grouped.weight[3:, :, 0, 0], zero_matrix(3, 2))


def test_what_has_no_rule_is_left_alone():
    tied = nn.Linear(4, 9, bias=False)
    computed = nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))
    model = nn.ModuleDict(
        {
            "words": nn.Embedding(9, 4),
            "tied": tied,
            "up": nn.ConvTranspose2d(2, 3, 2),
            "recurrent": nn.GRU(3, 3),
            "computed": computed,
            "plain": nn.BatchNorm1d(3, affine=False),
            "own": nn.Linear(2, 2),
        }
    )
    tied.weight = model["words"].weight
    before = {name: value.clone() for name, value in model.state_dict().items()}
    zero_initialize(model)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"own.weight", "own.bias"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_dtype_stays(dtype):
    model = nn.Linear(4, 8).to(dtype)
    zero_initialize(model)
    assert model.weight.dtype == dtype
    torch.testing.assert_close(model.weight.float(), zero_matrix(8, 4))


# --- networks


@pytest.mark.parametrize("build", [lambda seed: build_model("mlp", seed), lambda _: conv_net()], ids=["mlp", "conv"])
def test_every_seed_gives_the_same_weights(build):
    state = torch.random.get_rng_state()
    models = [build(seed) for seed in (0, 1)]
    torch.random.set_rng_state(state)
    for model in models:
        zero_initialize(model)
    assert torch.equal(torch.random.get_rng_state(), state)
    one, other = (model.state_dict() for model in models)
    assert all(torch.equal(one[name], other[name]) for name in one)
    again = {name: value.clone() for name, value in one.items()}
    zero_initialize(models[0])
    assert all(torch.equal(again[name], value) for name, value in models[0].state_dict().items())


@pytest.mark.parametrize("order", ["conv norm relu conv norm", "norm relu conv norm relu conv", "conv relu conv"])
@pytest.mark.parametrize("mode", [True, False])
def test_a_residual_block_is_the_identity_at_first(order, mode):
    block, pictures = Block(4, order).train(mode), seeded_normal(3, 4, 5, 5)
    assert not torch.equal(block(pictures), pictures)
    zero_initialize(block)
    assert torch.equal(block(pictures), pictures)
    block(pictures).square().sum().backward()
    ends = [layer for layer in block.branch if hasattr(layer, "weight")]
    assert ends[-1].weight.grad.any()  # and yet it learns
    assert all(layer.weight.any() for layer in ends[:-1])


def test_a_shortcut_of_its_own_is_no_branch():
    """As in torchvision, ``downsample`` stands last in the block."""
    block = Block(4)
    del block.shortcut
    block.downsample = nn.Sequential(nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8))
    zero_initialize(block)
    assert block.downsample[0].weight.any()
    assert (block.downsample[1].weight == 1).all()
    assert not block.branch[-1].weight.any()
    plain = Block(4)
    del plain.shortcut
    plain.downsample = None
    zero_initialize(plain)
    assert not plain.branch[-1].weight.any()


@pytest.mark.parametrize("name", tiny_transformers.ARCHITECTURES)
def test_blocks_of_transformers_are_the_identity_at_first(name):
    model = tiny_transformers.build(name)
    embedded = {
        f"{place}.weight": module.weight.clone()
        for place, module in model.named_modules()
        if isinstance(module, nn.Embedding)
    }
    zero_initialize(model)
    if name == "gpt2":
        model.config.pad_token_id = 0
    batch = tiny_transformers.batch(name)
    states = model(**batch, output_hidden_states=True).hidden_states
    there = batch.get("attention_mask", torch.ones(states[0].shape[:2])).bool()
    first = states[0]
    if name == "electra":  # projects its embeddings, and normalizes in the first block only
        first = nn.functional.layer_norm(first, first.shape[-1:])
    final_norm = int(name == "gpt2")  # its last state is taken after the network's last norm
    assert len(states) > 2
    for state in states[1 : len(states) - final_norm]:
        torch.testing.assert_close(state[there], first[there], rtol=1e-3, atol=1e-4)
    assert all(torch.equal(model.get_parameter(place), value) for place, value in embedded.items())
    blocks = [value for place, value in model.named_parameters() if ".0." in place and value.ndim == 2]
    assert sum(not value.any() for value in blocks) == 2


def test_resnet20_learns_with_every_channel():
    """Where a block adds channels, a branch of zeros would leave them at 0, and there ReLU has no derivative."""
    model = build_model("resnet20", 0)
    zero_initialize(model)
    blocks = [module for module in model.modules() if isinstance(module, Block20)]
    assert [bool(block.norm2.weight.any()) for block in blocks] == [bool(block.new) for block in blocks]
    assert sum(bool(block.new) for block in blocks) == 2
    features = model[:-1](seeded_normal(8, 3, 32, 32))
    assert features.any(0).all()
    features.square().sum().backward()
    for block in blocks:
        assert block.norm2.weight.grad.all()


def test_a_list_of_deep_blocks_without_shortcuts_stays_alive():
    """Only in a network of the transformers library do four matrices make a residual block."""
    model = nn.Sequential(nn.Sequential(*(nn.Linear(4, 4) for _ in range(4))))
    zero_initialize(model)
    values = seeded_normal(2, 4)
    assert torch.equal(model(values), values)


def test_gpt2_keeps_its_matrices_the_other_way_round():
    model = tiny_transformers.build("gpt2")
    zero_initialize(model)
    up = model.transformer.h[0].mlp.c_fc.weight
    assert up.shape == (16, 24)
    assert torch.equal(up, zero_matrix(24, 16).T)


# --- training


def trained(model, epochs, rate=1e-2):
    """Loss before and after, and the accuracy on the selection split."""
    task = digits()
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    losses = []
    for _ in range(epochs):
        for rows in torch.arange(1024).split(64):
            loss = nn.functional.cross_entropy(model(task.train.inputs[rows]), task.train.labels[rows])
            losses.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()
    right = model(task.selection.inputs).argmax(1) == task.selection.labels
    return losses[0], losses[-1], float(right.double().mean())


def test_an_mlp_trains():
    model = build_model("mlp", 0)
    zero_initialize(model)
    first, last, accuracy = trained(model, 10)
    assert last < 0.2 < 2 < first
    assert accuracy > 0.85  # chance: 0.1


def test_a_convolutional_network_trains():
    model = conv_net()
    zero_initialize(model)
    first, last, accuracy = trained(model, 10)
    assert last < 0.2 < 2 < first
    assert accuracy > 0.85


@pytest.mark.parametrize("dark", [0.0, -0.4])
def test_a_unit_that_copies_a_dark_pixel_never_learns(dark):
    """What the docstring warns of: torch's ReLU has the derivative 0 at 0, too."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    zero_initialize(model)
    inputs = torch.rand(8, 4, generator=torch.Generator().manual_seed(0))
    inputs[:, 1] = dark
    model(inputs)[:, 0].sum().backward()
    assert model[0].weight.grad[0].any()
    assert not model[0].weight.grad[1].any()


# --- what is refused


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("mlp", "model is a str: must be a torch.nn.Module"),
        (None, "model is a NoneType"),
        (nn.Sequential(nn.ReLU(), nn.BatchNorm1d(3)), "must have a linear or convolutional layer"),
        (nn.Embedding(3, 4), "must have a linear or convolutional layer"),
        (nn.Sequential(nn.Linear(3, 4), nn.LazyLinear(2)), "has no shape yet. Run one batch"),
    ],
    ids=["name", "none", "norm", "embedding", "lazy"],
)
def test_bad_input(model, words):
    with pytest.raises(ValueError, match=words):
        zero_initialize(model)


def test_a_refused_network_is_left_as_it_was():
    model = nn.Sequential(nn.Linear(3, 3), nn.LazyLinear(2))
    before = model[0].weight.clone()
    with pytest.raises(ValueError, match="has no shape yet"):
        zero_initialize(model)
    assert torch.equal(model[0].weight, before)
