"""What sparsity bought: the bytes exactly, the latency as far as a busy machine can say, the sentences word by word."""

import copy
import dataclasses
import json
import warnings

import pytest
import torch
from safetensors.torch import save
from support.runs import same_tensors, tiny_model
from support.stories import MEASURED
from torch import nn

from randprune_lab import benefit as benefit_module
from randprune_lab.benefit import Benefit, benefit_sentences, measure_benefit
from randprune_lab.masks import apply_masks
from randprune_lab.packing import packed_bytes
from randprune_lab.sampling import magnitude_mask


def pruned(model: nn.Module, names, sparsity: float = 0.9) -> dict:
    """Prune in place; the dense state dict."""
    dense = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    apply_masks(model, {name: magnitude_mask(model.get_parameter(name).detach(), sparsity) for name in names})
    return dense


def gpt2():
    from transformers import GPT2Config, GPT2ForSequenceClassification

    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = GPT2Config(vocab_size=20, n_positions=8, n_embd=8, n_layer=1, n_head=2, pad_token_id=0)
        return GPT2ForSequenceClassification(config)


def bert():
    from transformers import BertConfig, BertForSequenceClassification

    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        return BertForSequenceClassification(BertConfig(vocab_size=20, **sizes))


def test_bytes_and_outputs_of_an_mlp():
    model, names = tiny_model(), ["0.weight", "4.weight"]
    dense = pruned(model, names)
    inputs = torch.ones(5, 8)
    found = measure_benefit(model, inputs, dense, names, repeats=3)
    assert found.dense_bytes == found.saved_bytes == len(save(dense))
    assert found.packed_bytes == packed_bytes(model.state_dict())
    assert (found.csr_layers, found.layers, found.csr_problem) == (2, 2, "")
    assert found.csr_difference < 1e-6
    assert min(found.dense_ms, found.pruned_ms, found.csr_ms) > 0
    assert (found.examples, found.repeats, found.device) == (5, 3, "cpu")
    assert Benefit.of_json(json.loads(json.dumps(found.to_json() | {"later": 1}))) == found


def test_nothing_is_touched():
    model, names = tiny_model(), ["0.weight", "4.weight"]
    dense = pruned(model, names)
    model.train()
    model[1].eval()  # frozen statistics, say
    model(torch.ones(5, 8)).sum().backward()
    before, dense_before = copy.deepcopy(model.state_dict()), copy.deepcopy(dense)
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    training = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    measure_benefit(model, torch.ones(5, 8), dense, names, repeats=1)
    assert same_tensors(model.state_dict(), before)
    assert same_tensors(dense, dense_before)
    assert same_tensors({name: parameter.grad for name, parameter in model.named_parameters()}, gradients)
    assert [module.training for module in model.modules()] == training
    assert torch.equal(torch.get_rng_state(), state)
    assert model[0].weight.layout == torch.strided


def test_the_dense_network_is_the_dense_one(monkeypatch):
    """Each variant answers as it should when it is timed."""
    model, names = tiny_model(), ["0.weight"]
    inputs = torch.ones(5, 8)
    dense = pruned(model, names)
    expected = {"pruned": copy.deepcopy(model).eval()(inputs), "dense": tiny_model().eval()(inputs)}
    latencies = benefit_module._latencies

    def looked_at(networks, *rest):
        for name, output in expected.items():
            assert torch.equal(networks[name](inputs), output)
        assert networks["csr"][0].weight.layout == torch.sparse_csr
        return latencies(networks, *rest)

    monkeypatch.setattr(benefit_module, "_latencies", looked_at)
    measure_benefit(model, inputs, dense, names, repeats=1)


def test_transformers():
    words = {"input_ids": torch.arange(12).view(2, 6), "attention_mask": torch.ones(2, 6, dtype=torch.long)}
    model = bert()
    names = [name for name, _ in model.named_parameters() if ".layer." in name and name.endswith("dense.weight")]
    found = measure_benefit(model, words, pruned(model, names), names, repeats=2)
    assert (found.csr_layers, found.layers, found.examples) == (6, 6, 2)
    assert found.csr_difference < 1e-6


def test_gpt2_has_no_linear_layers_and_its_shared_tensors_count_once():
    from transformers import GPT2Config, GPT2LMHeadModel

    words = {"input_ids": torch.arange(6).view(1, 6)}
    model, names = gpt2(), ["transformer.h.0.attn.c_attn.weight"]
    found = measure_benefit(model, words, pruned(model, names), names, repeats=1)
    assert (found.csr_ms, found.csr_difference, found.csr_layers) == (None, None, 0)
    assert found.csr_problem == "none of the pruned tensors is the weight of an nn.Linear"
    with torch.random.fork_rng():
        tied = GPT2LMHeadModel(GPT2Config(vocab_size=2000, n_positions=8, n_embd=8, n_layer=1, n_head=2))
    found = measure_benefit(tied, words, pruned(tied, names), names, repeats=1)
    assert found.dense_bytes < 1.2 * sum(parameter.nbytes for parameter in tied.parameters())


def test_convolutions_are_not_converted():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(64, 3))
    names = ["0.weight", "2.weight"]
    found = measure_benefit(model, torch.ones(2, 1, 6, 6), pruned(model, names), names, repeats=1)
    assert (found.csr_layers, found.layers) == (1, 2)
    assert found.csr_ms


def test_where_csr_fails_the_reason_is_given():
    model, names = nn.Sequential(nn.Linear(8, 4, dtype=torch.bfloat16)), ["0.weight"]
    found = measure_benefit(model, torch.ones(2, 8, dtype=torch.bfloat16), pruned(model, names), names, repeats=1)
    if found.csr_ms is None:  # torch may learn it
        assert "BFloat16" in found.csr_problem
        assert "was not measured: " in benefit_sentences(found)[2]


def test_only_the_warning_on_csr_is_silenced():
    class Warns(nn.Linear):
        def forward(self, inputs):
            warnings.warn("own", UserWarning, stacklevel=1)
            return super().forward(inputs)

    model = nn.Sequential(nn.Linear(8, 4), Warns(4, 2))
    with pytest.warns(UserWarning, match="own"):
        measure_benefit(model, torch.ones(1, 8), pruned(model, ["0.weight"]), ["0.weight"], repeats=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"repeats": 0}, "repeats = 0: at least 1"),
        ({"names": []}, "nothing was pruned"),
        ({"names": ["0.wieght"]}, "Did you mean '0.weight'"),
        ({"dense": {"0.weight": torch.ones(1)}}, "dense is of another network"),
    ],
)
def test_bad_input(changes, message):
    model = tiny_model()
    given = {"dense": model.state_dict(), "names": ["0.weight"], "repeats": 1} | changes
    with pytest.raises(ValueError, match=message):
        measure_benefit(model, torch.ones(2, 8), given["dense"], given["names"], repeats=given["repeats"])


def test_sentences():
    assert benefit_sentences(MEASURED) == [
        "On disk the pruned network takes 2.00 MB against 2.00 MB dense: every zero is stored like any other number. "
        "As bit-mask and values (randprune pack) it takes 0.20 MB, 10.0 times smaller.",
        "For a batch of 8 the pruned network takes 3.41 ms against 3.4 ms dense (median of 20, cpu, 1 thread): the "
        "zeros are multiplied like any other number.",
        "With 5 of 6 pruned tensors as torch's sparse CSR matrices (only nn.Linear can have them) it takes 1.7 ms, 2.0 "
        "times as fast as dense; the outputs differ by at most 1e-07.",
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"packed_bytes": 2_000_000}, "2.00 MB, no gain at this sparsity."),
        ({"packed_bytes": 9_000}, "9.0 kB, 222.2 times smaller."),
        ({"pruned_ms": 4.0}, "Both do the same work: the difference is noise."),
        ({"csr_ms": 6.8}, "2.0 times as slow as dense"),
        ({"csr_ms": 3.3}, "about as fast as dense"),
        ({"device": "cuda"}, "(median of 20, cuda)"),
        ({"threads": 2}, "cpu, 2 threads"),
        ({"csr_ms": None, "csr_problem": "no MKL"}, "it was not measured: no MKL."),
    ],
)
def test_sentences_say_what_is(changes, words):
    assert words in " ".join(benefit_sentences(dataclasses.replace(MEASURED, **changes)))
