"""Where weights come from: memory, safetensors, every moment of a run. Nothing is read before it is asked for."""

import json
import os
import shutil
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.runs import (
    boundary_file,
    go_on,
    read_tensors,
    stop_after,
    tiny,
    tiny_model,
    tiny_parts,
    tiny_task,
    unpacked,
)
from torch import nn

from randprune_lab import Explorer, ExploreState, open_source, sources, store
from randprune_lab.checks import keep_count
from randprune_lab.events import MaskChosen
from randprune_lab.histogram import MagnitudeHistogram
from randprune_lab.sources import prunable_names

TINY = {"0.weight": (24, 8), "4.weight": (12, 24), "5.weight": (3, 12)}  # of tiny_model
STAGES3 = {"stages": (0.3, 0.6, 0.9)}


def prunable(source):
    return [name for name, info in source.tensors.items() if info.prunable]


def shapes(source):
    return {name: info.shape for name, info in source.tensors.items()}


# ---- in memory


def test_a_network():
    model = tiny_model()
    source = open_source(model)
    assert shapes(source) == {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    assert prunable(source) == list(TINY)
    assert source.moments == ()
    assert source.settings(1) == {}
    layer = source.read("4.weight", 1, "before")
    assert torch.equal(layer.weight, model[4].weight)
    assert layer.weight.data_ptr() == model[4].weight.data_ptr()  # no copy
    assert not layer.weight.requires_grad
    assert layer.alive is None
    assert layer.histogram().size == source.tensors["4.weight"].n == 288


def test_a_dict_and_a_tensor():
    weight = torch.randn(6, 7)
    source = open_source({"w": weight, "b": torch.randn(6), "steps": torch.tensor(3), "none": torch.zeros(0, 4)})
    assert shapes(source) == {"w": (6, 7), "b": (6,)}  # neither integers nor what is empty
    assert prunable(source) == ["w"]
    source = open_source(weight)
    assert shapes(source) == {"weight": (6, 7)}
    assert torch.equal(source.read("weight", 1, "before").weight, weight)
    source = open_source(torch.randn(5))
    assert (list(source.tensors), prunable(source)) == (["weight"], [])


def test_a_state_dict_is_pruned_like_the_checkpoint_that_holds_it(tmp_path):
    tensors = {name: weight.clone() for name, weight in bert_like(blocks=2).items()}
    save_file(tensors, tmp_path / "model.safetensors")
    assert set(prunable(open_source(tensors))) == set(prunable(open_source(tmp_path)))


def test_tied_weights_stand_there_once():
    model = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5))
    model[1].weight = model[0].weight
    source = open_source(model)
    assert list(source.tensors) == ["0.weight", "0.bias", "1.bias"]
    assert prunable(source) == ["0.weight"]
    embedding = nn.Embedding(9, 4)
    head = nn.Linear(4, 9, bias=False)
    head.weight = embedding.weight
    assert list(open_source(nn.ModuleDict({"embed": embedding, "head": head})).tensors) == ["embed.weight"]


def test_a_network_that_nothing_of_is_pruned_by_default():
    source = open_source(nn.Sequential(nn.Embedding(4, 3), nn.LayerNorm(3)))
    assert prunable(source) == []
    state = Explorer(source).start(ExploreState())
    assert state.tensor == "0.weight"
    quick = Explorer(source).quick(state)
    assert quick["microscope"] is not None
    assert "not pruned by default" in quick["notices"][0]["text"]


@pytest.mark.parametrize("change", ["in place", "step", "load", "replaced data", "half"])
def test_the_version_says_when_weights_have_changed(change):
    model = nn.Linear(6, 5)
    source = open_source(model)
    before, bias = source.version("weight"), source.version("bias")
    assert source.version("weight") == before
    if change == "in place":
        with torch.no_grad():
            model.weight[0, 0] += 1
        assert source.version("bias") == bias
    elif change == "step":
        model(torch.ones(1, 6)).sum().backward()
        torch.optim.SGD(model.parameters(), lr=0.1).step()
    elif change == "load":
        model.load_state_dict({"weight": torch.ones(5, 6), "bias": torch.ones(5)})
    elif change == "replaced data":
        model.weight.data = torch.ones(5, 6)
    else:
        model.half()
    assert source.version("weight") != before


def test_a_look_changes_nothing():
    model = tiny_model()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    version, state = open_source(model).version("0.weight"), torch.get_rng_state()
    source = open_source(model)
    explorer = Explorer(source)
    at = explorer.start(ExploreState(sparsity=0.5))
    explorer.quick(at)
    list(explorer.slow_parts(at))
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert source.version("0.weight") == version
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "no floating-point tensor"),
        ({"a": torch.ones(3, dtype=torch.int64)}, "no floating-point tensor"),
        ({"a": torch.ones(0, 3)}, "no floating-point tensor"),
        ({"a": 1.5}, "'a' is a float"),
        ({"a": [1.0]}, "state_dict"),
        ({1: torch.ones(3)}, "by its name"),
        (torch.ones(0), "no floating-point tensor"),
        (torch.ones(3, dtype=torch.bool), "no floating-point tensor"),
        (nn.ReLU(), "ReLU: holds no floating-point tensor"),
    ],
)
def test_nothing_to_look_at(given, words):
    with pytest.raises(ValueError, match=words):
        open_source(given)


@pytest.mark.parametrize(
    ("weight", "words"),
    [
        (torch.tensor([[1.0, float("nan")]]), "1 of 2 weights are NaN"),
        (torch.full((3, 3), float("inf")), "9 of 9 weights"),
        (torch.eye(3).to_sparse(), "to_dense"),
        (torch.ones(3, 3, device="meta"), "load the weights"),
        (torch.ones(3, 3).to(torch.float8_e4m3fn), "float8"),
    ],
    ids=["nan", "inf", "sparse", "meta", "float8"],
)
def test_weights_that_cannot_be_ranked_are_said_in_words(weight, words):
    for name, source in {
        "w": open_source({"ok": torch.randn(4, 4), "w": weight}),
        "weight": open_source(weight),
    }.items():
        explorer = Explorer(source)
        state = explorer.start(ExploreState(sparsity=0.5, tensor=name))
        quick = explorer.quick(state)
        assert quick["microscope"] is None
        (notice,) = quick["notices"]
        assert notice["kind"] == "error"
        assert notice["text"].startswith(f"{name}: ")
        assert words in notice["text"]
        parts = dict(explorer.slow_parts(state))
        assert words in parts["candidates"]["failed"]
        problems = {row["name"]: row["problem"] for row in parts["table"]["rows"]}
        assert words in problems.pop(name)
        assert set(problems.values()) <= {None}


# ---- names


def bert_like(blocks=3, prefix="", layer="encoder.layer."):
    inner = ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"]
    inner += ["intermediate.dense", "output.dense"]
    tensors = {
        "embeddings.word_embeddings.weight": torch.randn(30, 8),
        "embeddings.position_embeddings.weight": torch.randn(16, 8),
        "embeddings.LayerNorm.weight": torch.randn(8),
        "pooler.dense.weight": torch.randn(8, 8),
        "classifier.weight": torch.randn(2, 8),
    }
    for block in range(blocks):
        for name in inner:
            tensors[f"{layer}{block}.{name}.weight"] = torch.randn(8, 8)
            tensors[f"{layer}{block}.{name}.bias"] = torch.randn(8)
        tensors[f"{layer}{block}.output.LayerNorm.weight"] = torch.randn(8)
    return {prefix + name: tensor for name, tensor in tensors.items()}


def matrices(names, **others):
    return {**dict.fromkeys(names, (8, 8)), **others}


def blocks_of(pattern, numbers, parts):
    return {pattern.format(number, part) for number in numbers for part in parts}


GPT2 = blocks_of("h.{}.{}.weight", range(12), ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"])
VIT = blocks_of("blocks.{}.{}.weight", range(12), ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"])
HF_VIT = blocks_of(
    "vit.encoder.layer.{}.{}.weight",
    range(2),
    [
        "attention.attention.query",
        "attention.attention.key",
        "attention.attention.value",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    ],
)
LLAMA = blocks_of(
    "model.layers.{}.{}.weight",
    range(11),
    [f"self_attn.{x}_proj" for x in "qkvo"] + [f"mlp.{x}_proj" for x in ("gate", "up", "down")],
)
ENCODER = blocks_of("encoder.layers.{}.{}.weight", range(2), ["q", "k", "v", "o"])
DECODER = blocks_of("decoder.layers.{}.{}.weight", range(2), ["q", "k", "v", "o", "x"])
VGG = {f"features.{number}.weight" for number in (0, 3, 6)} | {f"classifier.{number}.weight" for number in (0, 3, 6)}
LAYOUTS = {
    "gpt2": (
        GPT2,
        {"wte.weight": (50, 8), "wpe.weight": (9, 8), "h.0.attn.bias": (1, 1, 9, 9), "h.0.ln_1.weight": (8,)},
    ),
    "gpt2 with a head": (
        {f"transformer.{name}" for name in GPT2},
        {"transformer.wte.weight": (50, 8), "lm_head.weight": (50, 8)},
    ),
    "vit": (
        VIT,
        {
            "pos_embed": (1, 9, 8),
            "cls_token": (1, 1, 8),
            "patch_embed.proj.weight": (8, 3, 4, 4),
            "head.weight": (3, 8),
        },
    ),
    "vit of transformers": (
        HF_VIT,
        {
            "vit.embeddings.cls_token": (1, 1, 8),
            "vit.embeddings.patch_embeddings.projection.weight": (8, 3, 4, 4),
            "classifier.weight": (3, 8),
        },
    ),
    "llama": (LLAMA, {"model.embed_tokens.weight": (50, 8), "lm_head.weight": (50, 8), "model.norm.weight": (8,)}),
    "two stacks": (
        ENCODER | DECODER,
        {"shared.weight": (50, 8), "classifier.0.weight": (8, 8), "classifier.2.weight": (2, 8)},
    ),
    "plain": ({"0.weight", "2.weight", "4.weight"}, {"0.bias": (8,), "2.bias": (8,)}),
    "vgg": (VGG, {"features.0.bias": (8,), "features.1.weight": (8,), "classifier.0.bias": (8,)}),
    "no numbers": ({"a.weight", "b.weight"}, {"a.bias": (8,)}),
    "nothing": (set(), {"a.bias": (8,), "b.bias": (2, 2)}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_prunable_names(layout):
    expected, others = LAYOUTS[layout]
    assert prunable_names(matrices(expected, **others)) == expected


@pytest.mark.parametrize("prefix", ["", "bert.", "model.bert."])
def test_prunable_names_of_an_encoder(prefix):
    tensors = bert_like(prefix=prefix)
    found = prunable_names({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    assert len(found) == 18
    assert all(name.startswith(f"{prefix}encoder.layer.") and name.endswith(".weight") for name in found)
    assert not any("LayerNorm" in name for name in found)


def test_the_matrices_of_a_real_encoder(test_data):
    source = open_source(test_data / "models" / "minilm-l3")
    found = prunable(source)
    parts = ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"]
    parts += ["intermediate.dense", "output.dense"]
    assert {name.split("encoder.layer.")[1] for name in found} == blocks_of("{}.{}.weight", range(3), parts)
    assert len(found) == 18
    assert Explorer(source).start(ExploreState()).tensor in found


# ---- files


@pytest.fixture
def checkpoint(tmp_path):
    tensors = bert_like(blocks=1) | {"positions": torch.arange(12).reshape(3, 4), "empty": torch.zeros(0, 3)}
    tensors["classifier.weight"] = tensors["classifier.weight"].to(torch.bfloat16)
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path, tensors


def test_a_folder_and_a_file(checkpoint):
    folder, tensors = checkpoint
    for path in (folder, str(folder), folder / "model.safetensors"):
        source = open_source(path)
        assert set(source.tensors) == set(tensors) - {"positions", "empty"}
        for name, info in source.tensors.items():
            assert info.shape == tuple(tensors[name].shape)
            assert torch.equal(source.read(name, 1, "before").weight, tensors[name])
        assert source.kind == "checkpoint"
        assert source.label == str(path)
        assert source.moments == ()


def test_shards(tmp_path):
    tensors = bert_like(blocks=2)
    names = sorted(tensors)
    for shard in range(3):
        save_file({name: tensors[name] for name in names[shard::3]}, tmp_path / f"model-{shard}.safetensors")
    save_file({"stray.weight": torch.ones(2, 2)}, tmp_path / "adapter.safetensors")
    index = {"weight_map": {name: f"model-{place % 3}.safetensors" for place, name in enumerate(names)}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    source = open_source(tmp_path)
    assert set(source.tensors) == set(tensors)
    assert len(prunable(source)) == 12
    assert all(torch.equal(source.read(name, 1, "before").weight, tensors[name]) for name in tensors)


def test_opening_reads_no_tensor_and_reading_one_reads_no_other(checkpoint, monkeypatch):
    """The file's bytes after its header are gone: whoever only opens it cannot notice."""
    folder, tensors = checkpoint
    read = []

    class Spy:
        def __init__(self, *arguments, **named):
            self.file = real(*arguments, **named)

        def __enter__(self):
            self.file.__enter__()
            return self

        def __exit__(self, *error):
            return self.file.__exit__(*error)

        def keys(self):
            return self.file.keys()

        def get_slice(self, name):
            part = self.file.get_slice(name)

            class Part:
                get_shape, get_dtype = part.get_shape, part.get_dtype

            return Part()

        def get_tensor(self, name):
            read.append(name)
            return self.file.get_tensor(name)

    real = sources.safe_open
    monkeypatch.setattr(sources, "safe_open", Spy)
    explorer = Explorer(open_source(folder))
    state = explorer.start(ExploreState(sparsity=0.5))
    explorer.describe()
    assert read == []
    explorer.quick(state)
    explorer.quick(state.but(sparsity=0.6, power=3))
    assert read == [state.tensor]
    other = next(name for name in tensors if name != state.tensor and tensors[name].is_floating_point())
    explorer.quick(state.but(tensor=other))
    assert read == [state.tensor, other]


def test_a_changed_file_is_seen_and_a_deleted_one_said(checkpoint):
    folder, tensors = checkpoint
    explorer = Explorer(open_source(folder))
    state = explorer.start(ExploreState(sparsity=0.5))
    before, keys = explorer.quick(state), explorer.keys(state)
    doubled = {name: tensor * 2 if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    save_file(doubled, folder / "next.safetensors")
    (folder / "next.safetensors").replace(folder / "model.safetensors")
    after = explorer.quick(state)
    assert after["derived"]["threshold"] == 2 * before["derived"]["threshold"]
    assert all(explorer.keys(state)[name] != key for name, key in keys.items())
    (folder / "model.safetensors").unlink()
    for again in (explorer, Explorer(explorer.source)):
        quick = again.quick(state)
        assert quick["microscope"] is None
        assert "model.safetensors" in quick["notices"][0]["text"]
        assert "failed" in dict(again.slow_parts(state))["candidates"]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("pickled", "pickle"),
        ("pickled/pytorch_model.bin", "pickle"),
        ("empty", r"no \.safetensors file"),
        ("missing", "no such file or folder"),
        ("missing/model.safetensors", "no such file or folder"),
        ("broken.safetensors", "not a readable safetensors file"),
        ("integers.safetensors", "no floating-point tensor"),
        ("nothing.safetensors", "no floating-point tensor"),
        ("a\0b", "no path"),
        ("\ud800", "no such file or folder"),
        ("x" * 5000, "cannot be read|no such file"),
    ],
)
def test_what_cannot_be_opened_is_said_in_words(tmp_path, path, words):
    (tmp_path / "pickled").mkdir()
    torch.save({"a": torch.ones(2, 2)}, tmp_path / "pickled" / "pytorch_model.bin")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.safetensors").write_bytes(b"not at all")
    save_file({"a": torch.ones(2, 2, dtype=torch.int32)}, tmp_path / "integers.safetensors")
    save_file({"a": torch.ones(0, 2)}, tmp_path / "nothing.safetensors")
    with pytest.raises(ValueError, match=words):
        open_source(f"{tmp_path}/{path}")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", r"^no model is named\. Pass a folder"),
        ("   ", r"^no model is named\. Pass a folder"),
        ("nobody/nothing", r"^nobody/nothing: no such file or folder here, and the Hub .* Check the spelling"),
        ("\0", r"^'\\x00': no path\. Pass a folder"),
        ("a b c", r"^a b c: no such file or folder here, and the Hub .* Check the spelling"),
        ("../..", r"^\.\./\.\.: no \.safetensors file is there\. Pass a folder"),
        ("file:///etc/passwd", r"^file:///etc/passwd: no such file or folder\. Check the path"),
    ],
)
def test_names_that_are_no_model(name, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=words):
        open_source(name)


@pytest.mark.parametrize("thing", [None, 5, 1.5, [torch.ones(2)], b"model"])
def test_things_that_are_no_model(thing):
    with pytest.raises((ValueError, TypeError)):
        open_source(thing)


# ---- runs


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "finished"
    go_on(folder, tiny(**STAGES3), **tiny_parts())
    return folder


def mask_file(folder, stage):
    """A checkpoint that holds the mask of ``stage``."""
    return boundary_file(folder, stage)


def test_the_moments_of_a_finished_run(finished):
    source = open_source(finished)
    moments = [(moment.stage, moment.moment) for moment in source.moments]
    expected = [(stage, when) for stage in (1, 2, 3) for when in ("before", "after")]
    assert moments == [*expected, (4, "before")]
    assert len({moment.label for moment in source.moments}) == 7
    assert "dense" in source.moments[0].label
    assert "finished" in source.moments[-1].label
    assert set(prunable(source)) == set(TINY)
    assert {name: shapes(source)[name] for name in TINY} == TINY


@pytest.mark.parametrize("stage", [1, 2, 3, 4])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_weights_at_every_moment(finished, stage, moment):
    """Against the checkpoints, read without the package's help."""
    source = open_source(finished)
    if (stage, moment) == (4, "after"):
        with pytest.raises(ValueError, match=r"stage = 4, moment = 'after'.*Known"):
            source.read("0.weight", stage, moment)
        return
    start = read_tensors(boundary_file(finished, stage - 1))
    masks = read_tensors(mask_file(finished, stage)) if moment == "after" else start
    for name, shape in TINY.items():
        layer = source.read(name, stage, moment)
        mask = unpacked(masks[f"mask.{name}"], torch.Size(shape))
        kept = keep_count(mask.size, (0.0, 0.3, 0.6, 0.9)[stage - (moment == "before")])
        assert mask.sum() == kept
        assert torch.equal(layer.weight, start[f"model.{name}"])
        assert np.array_equal(layer.alive.numpy(), mask)
        histogram = layer.histogram()
        assert (histogram.size, histogram.alive) == (mask.size, kept)
    bias = source.read("0.bias", stage, moment)
    assert torch.equal(bias.weight, start["model.0.bias"])
    assert bias.alive is None


def test_settings_of_a_run(tmp_path):
    config = tiny(randomness="target_ir", target_ir=(0.1, 0.2), power=3.0, reach=2.0, seed=5, samples=6, candidates=2)
    go_on(tmp_path, config, **tiny_parts())
    source = open_source(tmp_path)
    for stage, (sparsity, target) in enumerate([(0.5, 0.1), (0.9, 0.2), (0.9, 0.2)], start=1):
        settings = source.settings(stage)
        state = ExploreState(**settings)
        assert (state.sparsity, state.target_ir, state.randomness) == (sparsity, target, "target_ir")
        assert (state.power, state.reach, state.seed, state.samples, state.candidates) == (3.0, 2.0, 5, 6, 2)
    assert Explorer(source).start(ExploreState(model="x", stage=2)) == ExploreState(
        model="x", stage=2, tensor=prunable(source)[0], **source.settings(2)
    )


def test_a_run_of_many_candidates_is_shown_with_as_many_as_can_be(tmp_path, finished):
    shutil.copytree(finished, tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text()) | {"candidates": 100}
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    explorer = Explorer(open_source(tmp_path / "run"))
    assert explorer.start(ExploreState()).candidates == 32


@pytest.mark.parametrize("items", [1, 4, 5, 6, 8, 10, 11, 12, 14, 16, 19, 20, 22, 25, 27, 29])
def test_an_unfinished_run_at_every_step(tmp_path, items):
    stop_after(tmp_path, tiny(), items, **tiny_parts())
    dense = list((tmp_path / "checkpoints").glob("*-stage0.safetensors"))
    if not dense:
        with pytest.raises(ValueError, match="no weights to look at yet"):
            open_source(tmp_path)
        return
    source = open_source(tmp_path)
    story = store.story(tmp_path)
    chosen = {event.stage for event in story if isinstance(event, MaskChosen)}
    explorer = Explorer(source)
    assert (source.moments[0].stage, source.moments[0].moment) == (1, "before")
    stages = {moment.stage for moment in source.moments if moment.moment == "after"}
    assert stages <= chosen
    assert len(chosen - stages) <= 1  # the newest may have been chosen without a checkpoint yet
    for moment in source.moments:
        state = explorer.start(ExploreState(model=str(tmp_path), stage=moment.stage, moment=moment.moment))
        assert (state.stage, state.moment) == (moment.stage, moment.moment)
        quick = explorer.quick(state.but(sparsity=0.95))
        assert quick["microscope"] is not None, quick["notices"]


def test_a_run_that_kept_only_its_last_stages_has_the_histograms_of_the_others(tmp_path, finished):
    go_on(tmp_path, tiny(keep_stages="last", **STAGES3), **tiny_parts())
    assert not list((tmp_path / "checkpoints").glob("*-stage1.safetensors"))
    source, whole = open_source(tmp_path), open_source(finished)
    assert source.moments == whole.moments
    gone = [(moment.stage, moment.moment) for moment in source.moments if moment.stage == 2]
    gone += [(1, "after")]
    for stage, moment in [(1, "before"), *gone, (3, "before"), (3, "after"), (4, "before")]:
        for name in TINY:
            layer, other = source.read(name, stage, moment), whole.read(name, stage, moment)
            assert (layer.weight is None) == ((stage, moment) in gone), (stage, moment)
            found, expected = layer.histogram(), other.histogram()
            if layer.weight is None:
                expected = expected.coarse()
            assert np.array_equal(found.bins, expected.bins)
            assert np.array_equal(found.counts, expected.counts)
            assert found.size == expected.size
    explorer = Explorer(source)
    state = explorer.start(ExploreState(model=str(tmp_path), stage=2))
    quick = explorer.quick(state)
    assert quick["microscope"] is not None
    parts = dict(explorer.slow_parts(state))
    assert "keep_stages = last" in parts["candidates"]["failed"]
    assert parts["sweep"]["ir"]
    assert all(row["problem"] is None for row in parts["table"]["rows"] if row["prunable"])
    with pytest.raises(ValueError, match="keep_stages = last"):
        explorer.mask(state, 1)
    (notice,) = explorer.quick(state.but(tensor="0.bias"))["notices"]
    assert notice["text"].count("0.bias") == 1
    assert "keep_stages = last" in notice["text"]
    global_ = explorer.quick(state.but(scope="global"))
    assert global_["derived"]["n"] == sum(np.prod(shape) for shape in TINY.values())


def test_a_run_without_checkpoints(tmp_path, finished):
    for name in ("config.json", "events.jsonl"):
        (tmp_path / name).write_bytes((finished / name).read_bytes())
    with pytest.raises(ValueError, match="no weights to look at yet"):
        open_source(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config\.json: is not there, but what else belongs to a run is"):
        open_source(tmp_path)


def test_a_run_that_goes_on_meanwhile_is_said_or_seen_but_never_an_error_of_another_kind(tmp_path):
    """The checkpoint that a source has found may be removed by the run that goes on."""
    stop_after(tmp_path, tiny(), 12, **tiny_parts())
    source = open_source(tmp_path)
    go_on(tmp_path, tiny(), **tiny_parts())
    for moment in source.moments:
        quick = Explorer(source).quick(
            ExploreState(tensor="0.weight", sparsity=0.95, stage=moment.stage, moment=moment.moment)
        )
        assert quick["microscope"] is not None or "Copy or download" in quick["notices"][0]["text"]


def odd_model():
    """Its parameters come in another order than that of their names."""
    torch.manual_seed(0)
    return nn.Sequential(OrderedDict(zeta=nn.Linear(8, 24), relu=nn.ReLU(), alpha=nn.Linear(24, 3)))


def test_prunable_tensors_come_in_the_order_of_the_model(tmp_path):
    """In global scope they are one vector, in this order."""
    with torch.random.fork_rng():
        model = odd_model()
    assert prunable(open_source(model)) == ["zeta.weight", "alpha.weight"]
    go_on(tmp_path, tiny(), model=model, data=tiny_task())
    assert prunable(open_source(tmp_path)) == ["zeta.weight", "alpha.weight"]


def test_include_and_exclude_of_a_run_say_what_is_prunable(tmp_path):
    go_on(tmp_path, tiny(exclude=("^5",)), **tiny_parts())
    source = open_source(tmp_path)
    assert prunable(source) == ["0.weight", "4.weight"]
    layer = source.read("5.weight", 2, "after")
    assert layer.alive is None
    assert MagnitudeHistogram.of(layer.weight).alive == 36


# ---- what an attack found


@pytest.mark.parametrize(
    ("field", "value"), [("prunable", 5), ("prunable", None), ("prunable", [[1]])], ids=["5", "none", "list"]
)
def test_damaged_events_of_a_run_are_told(tmp_path, field, value):
    go_on(tmp_path, tiny(), **tiny_parts())
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    (tmp_path / "events.jsonl").write_text(
        "\n".join([json.dumps(json.loads(lines[0]) | {field: value}), *lines[1:]]) + "\n"
    )
    with pytest.raises(ValueError, match="damaged"):
        open_source(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "{}",
        "[" * 100_000,
        '{"0.weight": {}}',
        '{"0.weight": {"size": 9, "counts": {"5": 1e300}}}',
        '{"0.weight": {"size": 9, "counts": {"7": 1, "5": 1}}}',
        '{"0.weight": {"size": 9, "counts": {"5": -3}}}',
        '{"0.weight": {"size": 1, "counts": {"5": 3}}}',
        '{"0.weight": {"-20": 3}}',
    ],
)
def test_damaged_or_old_histograms_are_told(tmp_path, content):
    go_on(tmp_path, tiny(keep_stages="last", stages=(0.3, 0.6, 0.9)), **tiny_parts())
    source = open_source(tmp_path)
    (tmp_path / "histograms" / "1.json").write_text(content)
    with pytest.raises(ValueError, match="Restore"):
        source.read("0.weight", 2, "before")


def test_a_run_that_goes_on_while_it_is_looked_at(tmp_path):
    """Checkpoints go and come; what was open stays readable, and new moments appear."""
    config = tiny(keep_stages="last", stages=(0.3, 0.6, 0.9))
    stop_after(tmp_path, config, 12, **tiny_parts())
    source = open_source(tmp_path)
    before = source.moments
    go_on(tmp_path, config, **tiny_parts())
    assert set(before) < set(source.moments)
    for moment in source.moments:
        layer = source.read("0.weight", moment.stage, moment.moment)
        assert layer.histogram().alive > 0


def test_a_pipe_is_no_checkpoint(tmp_path):
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="regular file"):
        open_source(tmp_path)
