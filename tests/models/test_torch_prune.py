"""Masks to torch.nn.utils.prune and back."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune

from randprune_lab.bridges import from_torch_prune, to_torch_prune
from randprune_lab.masks import apply_masks


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv1d(1, 3, 3), nn.Sequential(nn.Conv2d(3, 2, 1), nn.Linear(6, 5)), nn.Linear(5, 2))


def masks_of(model: nn.Module, names, seed: int = 0) -> dict:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(model.get_parameter(name).shape, generator=generator) < 0.5 for name in names}


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@given(
    names=st.sets(
        st.sampled_from(["0.weight", "0.bias", "1.0.weight", "1.1.weight", "2.weight", "2.bias"]), min_size=1
    ),
    seed=st.integers(0, 1000),
)
def test_there_and_back(names, seed):
    model = network()
    masks = masks_of(model, names, seed)
    expected = copy.deepcopy(model)
    apply_masks(expected, masks)
    to_torch_prune(model, masks)
    assert {name for name, _ in model.named_parameters() if name.endswith("_orig")} == {
        f"{name}_orig" for name in names
    }
    assert same(from_torch_prune(model), masks)
    assert same(model.state_dict(), expected.state_dict())
    assert not prune.is_pruned(model)
    for name, parameter in model.named_parameters():
        assert not torch.signbit(parameter[parameter == 0]).any(), name


def test_the_forms_agree_with_torchs_own():
    ours, theirs = network(), network()
    mask = masks_of(ours, ["2.weight"])["2.weight"]
    weight = ours[2].weight
    to_torch_prune(ours, {"2.weight": mask})
    prune.custom_from_mask(theirs[2], "weight", mask)
    assert same(ours.state_dict(), theirs.state_dict())
    assert ours[2].weight_orig is weight  # an optimizer that has it goes on
    assert torch.equal(ours[2].weight_orig[~mask], network()[2].weight[~mask])  # not lost


def test_reads_any_pruning_of_torch():
    model = network()
    prune.l1_unstructured(model[2], "weight", amount=0.5)
    prune.ln_structured(model[2], "weight", amount=1, n=2, dim=1)  # on top: a PruningContainer
    prune.random_unstructured(model[0], "bias", amount=1)
    expected = {"0.bias": model[0].bias_mask.bool(), "2.weight": model[2].weight_mask.bool()}
    masks = from_torch_prune(model)
    assert same(masks, expected)
    assert all(torch.equal(model.get_parameter(name) != 0, mask) for name, mask in masks.items())


def test_transformers_conv1d():
    from transformers import GPT2Config, GPT2Model

    with torch.random.fork_rng():
        model = GPT2Model(GPT2Config(vocab_size=20, n_positions=8, n_embd=8, n_layer=1, n_head=2)).eval()
    masks = masks_of(model, ["h.0.attn.c_attn.weight", "h.0.mlp.c_fc.weight"])
    words = torch.arange(6).view(1, 6)
    to_torch_prune(model, masks)
    with torch.no_grad():
        pruned = model(words).last_hidden_state
        assert same(from_torch_prune(model), masks)
        assert torch.equal(model(words).last_hidden_state, pruned)


def test_parameters_of_other_names():
    with torch.random.fork_rng():
        model = nn.MultiheadAttention(4, 2)
    masks = masks_of(model, ["in_proj_weight", "out_proj.bias"])
    to_torch_prune(model, masks)
    words = torch.ones(3, 1, 4)
    before = model(words, words, words)[0]
    assert same(from_torch_prune(model), masks)
    assert torch.equal(model(words, words, words)[0], before)


def test_a_layer_used_twice_is_one_layer():
    layer = nn.Linear(3, 3)
    model = nn.Sequential(layer, layer)
    masks = masks_of(model, ["0.weight"])
    to_torch_prune(model, masks)
    assert same(from_torch_prune(model), masks)


def test_half_precision_frozen_and_infinite():
    model = nn.Sequential(nn.Linear(3, 2, dtype=torch.bfloat16)).requires_grad_(False)
    model[0].weight[0, 0] = torch.inf
    masks = {"0.weight": torch.ones(2, 3, dtype=torch.bool)}
    masks["0.weight"][0, 0] = False
    to_torch_prune(model, masks)
    assert same(from_torch_prune(model), masks)
    assert model[0].weight[0, 0] == 0
    assert model[0].weight.dtype == torch.bfloat16
    assert not model[0].weight.requires_grad


@pytest.mark.parametrize(
    ("name", "mask", "message"),
    [
        ("2.weigth", torch.ones(2, 5, dtype=torch.bool), "Did you mean '2.weight'"),
        ("2.weight", torch.ones(5, 2, dtype=torch.bool), r"torch.bool of shape \(5, 2\): must be .* shape \(2, 5\)"),
        ("2.weight", torch.ones(2, 5), "torch.float32 of shape"),
        ("2.weight", [True], "is list: must be torch.bool"),
    ],
)
def test_bad_masks_change_nothing(name, mask, message):
    model = network()
    with pytest.raises(ValueError, match=message):
        to_torch_prune(model, {**masks_of(model, ["0.weight"]), name: mask})
    assert same(model.state_dict(), network().state_dict())


def test_pruned_twice_and_not_at_all():
    model = network()
    masks = masks_of(model, ["0.weight"])
    with pytest.raises(ValueError, match="is not pruned by"):
        from_torch_prune(model)
    to_torch_prune(model, masks)
    with pytest.raises(ValueError, match=r"0.weight: is pruned .* already. Call from_torch_prune"):
        to_torch_prune(model, masks)


def test_shared_parameters_are_refused():
    model = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 4))
    model[1].weight = model[0].weight
    with pytest.raises(ValueError, match=r"1.weight: layers share it \(0.weight, 1.weight\)"):
        to_torch_prune(model, masks_of(model, ["1.weight"]))
