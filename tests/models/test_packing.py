"""Models on disk without their zeros: what comes back is equal, and bad input is said."""

import errno
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from support.runs import read_tensors

from randprune_lab import packing
from randprune_lab.packing import pack_model, packed_bytes, unpack_model

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype
        and one[name].shape == other[name].shape
        and torch.equal(one[name].nan_to_num(123.0), other[name].nan_to_num(123.0))
        for name in one
    )


def tensor_of(shape, dtype, sparsity: float, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    tensor = torch.randn(shape, generator=generator)
    return (tensor * (torch.rand(shape, generator=generator) >= sparsity)).to(dtype)


def sparse_model() -> dict:
    weight = tensor_of((30, 7), torch.float32, 0.9, 0)
    return {"layer.weight": weight, "layer.bias": torch.ones(7), "steps": torch.tensor(0), "empty": torch.zeros(0, 3)}


@pytest.fixture
def folder(tmp_path):
    """A model's folder, with all sorts of files."""
    folder = tmp_path / "model"
    for name in ("extra", "onnx", "checkpoint-500"):
        (folder / name).mkdir(parents=True)
    save_file(sparse_model(), folder / "model.safetensors", {"format": "pt"})
    for name in ("config.json", "tokenizer.json", "README.md", "extra/template.jinja", "extra/head.safetensors"):
        (folder / name).write_text(name)
    other = ("onnx/model.onnx", "onnx/model.onnx_data", "q4.GGUF", "rust_model.ot", "m.tflite", "weights.npz")
    trained = ("checkpoint-500/model.safetensors", "checkpoint-500/config.json")
    for name in ("pytorch_model.bin", "optimizer.PT", "tf_model.h5", ".hidden", "extra/training_args.bin"):
        (folder / name).write_text("not this")
    for name in (*other, *trained):
        (folder / name).write_text("not this either")
    return folder


@given(
    tensors=st.lists(
        st.builds(
            tensor_of,
            st.lists(st.integers(0, 9), max_size=3).map(tuple),
            st.sampled_from([*FLOATS, torch.int64, torch.uint8]),
            st.sampled_from([0.0, 0.02, 0.5, 1.0]),
            st.integers(0, 99),
        ),
        max_size=4,
    )
)
def test_there_and_back(tensors, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pack")
    model = {f"layer.{number}": tensor for number, tensor in enumerate(tensors)}
    save_file(model, folder / "own.safetensors")
    sizes = pack_model(folder / "own.safetensors", folder / "packed")
    assert sizes.packed == packed_bytes(model) == (folder / "packed" / "packed.safetensors").stat().st_size
    assert sizes.dense == (folder / "own.safetensors").stat().st_size
    assert sum(tensor.nbytes for tensor in read_tensors(folder / "packed" / "packed.safetensors").values()) <= sum(
        tensor.nbytes for tensor in tensors
    )
    assert unpack_model(folder / "packed", folder / "back").tensors == sizes.tensors
    assert same(load_file(folder / "back" / "model.safetensors"), model)


@pytest.mark.parametrize("dtype", FLOATS)
def test_what_is_stored(dtype, tmp_path):
    """Bits and values, read without the package's help."""
    weight = torch.tensor([[0, -0.0, 2, torch.nan, 0], [0, 0, 0, torch.inf, -3]], dtype=dtype)
    save_file({"w": weight, "b": torch.ones(9, dtype=dtype)}, tmp_path / "m.safetensors")
    assert pack_model(tmp_path / "m.safetensors", tmp_path / "p").tensors == 1
    stored = read_tensors(tmp_path / "p" / "packed.safetensors")
    assert sorted(stored) == ["b", "w.mask", "w.values"]
    assert stored["w.mask"].tolist() == [0b00110000, 0b11000000]
    assert str(stored["w.values"].tolist()) == "[2.0, nan, inf, -3.0]"
    unpack_model(tmp_path / "p", tmp_path / "u")
    assert same(read_tensors(tmp_path / "u" / "model.safetensors"), {"w": weight, "b": torch.ones(9, dtype=dtype)})


def test_a_tensor_of_few_zeros_stays_as_it_is(tmp_path):
    weight = torch.ones(64)
    weight[:2] = 0  # 8 bytes of mask for 8 bytes of zeros
    save_file({"w": weight}, tmp_path / "m.safetensors")
    assert pack_model(tmp_path / "m.safetensors", tmp_path / "p").tensors == 0


def test_size_at_16x(record_property):
    weight = tensor_of((1000, 1000), torch.float32, 0.9375, 0)
    ratio = weight.nbytes / packed_bytes({"w": weight})
    assert ratio == pytest.approx(1 / (1 / 16 + 1 / 32), rel=0.01)
    record_property("measured", f"bit-mask and values at 16x, float32: {ratio:.2f}x smaller")


def test_the_folder_comes_along(folder, tmp_path):
    pack_model(folder, tmp_path / "packed")
    unpack_model(tmp_path / "packed", tmp_path / "back")
    along = ["README.md", "config.json", "extra/head.safetensors", "extra/template.jinja", "tokenizer.json"]
    for name, weights in (("packed", "packed.safetensors"), ("back", "model.safetensors")):
        place = tmp_path / name
        files = sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.is_file())
        assert files == sorted([*along, weights])
        assert all((place / file).read_text() == file for file in along)


def test_from_pretrained_loads_what_was_unpacked(tmp_path):
    from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=3
    )
    with torch.random.fork_rng():
        model = BertForSequenceClassification(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter[parameter.abs() < 0.02] = 0
    model.save_pretrained(tmp_path / "model", max_shard_size="3KB")  # in several files
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 1
    pack_model(tmp_path / "model", tmp_path / "packed")
    unpack_model(tmp_path / "packed", tmp_path / "back")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "back")
    assert same(again.state_dict(), model.state_dict())


def test_an_empty_target_will_do(folder, tmp_path):
    (tmp_path / "packed").mkdir()
    pack_model(folder, tmp_path / "packed")
    unpack_model(tmp_path / "packed" / "packed.safetensors", tmp_path / "back")
    assert same(load_file(tmp_path / "back" / "model.safetensors"), sparse_model())


def test_no_model(folder, tmp_path):
    (tmp_path / "nothing").mkdir()
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "pytorch_model.bin").write_text("x")
    (tmp_path / "broken.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-5])
    for source, message in (
        ("missing", "no such file or folder"),
        ("nothing", "no .safetensors file is there"),
        ("pickled", "a pickle"),
        ("broken.safetensors", "not a readable safetensors file"),
    ):
        with pytest.raises(ValueError, match=message):
            pack_model(tmp_path / source, tmp_path / "target")
    for source, message in (
        ("missing", "no such file or folder"),
        ("nothing", "no packed.safetensors is there"),
        ("model/model.safetensors", "is not packed"),
        ("broken.safetensors", "not a readable safetensors file"),
    ):
        with pytest.raises(ValueError, match=message):
            unpack_model(tmp_path / source, tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_packed_twice(folder, tmp_path):
    pack_model(folder, tmp_path / "packed")
    for source in ("packed", "packed/packed.safetensors"):
        with pytest.raises(ValueError, match="is packed already"):
            pack_model(tmp_path / source, tmp_path / "again")


def test_targets_that_will_not_do(folder, tmp_path):
    (tmp_path / "file").write_text("x")
    for target, message in (
        (tmp_path / "file", "is no folder that can be used"),
        (folder, "lies inside"),
        (folder / "packed", "lies inside"),
        (tmp_path, "is not empty"),
        (tmp_path / "file" / "deeper", "no folder that can be used|cannot be written"),
    ):
        with pytest.raises(ValueError, match=message):
            pack_model(folder, target)


def test_names_that_clash(tmp_path):
    zeros = torch.zeros(9)
    save_file({"w": zeros, "w.mask": torch.ones(1)}, tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match=r"w.mask: two tensors would have this name"):
        pack_model(tmp_path / "m.safetensors", tmp_path / "p")
    (tmp_path / "two").mkdir()
    for name in ("model", "consolidated"):
        save_file({"w": zeros}, tmp_path / "two" / f"{name}.safetensors")
    with pytest.raises(ValueError, match="holds w, and so does another file"):
        pack_model(tmp_path / "two", tmp_path / "p")


def described(**entry) -> dict:
    return {"packed": json.dumps({"w": {"shape": [9], "dtype": "float32"} | entry})}


@pytest.mark.parametrize(
    ("changes", "metadata"),
    [
        ({"w.values": torch.ones(3)}, described()),
        ({"w.values": torch.ones(1)}, described()),
        ({"w.values": torch.ones(2, 1)}, described()),
        ({"w.values": torch.ones(2).half()}, described()),
        ({"w.values": None}, described()),
        ({"w.mask": None}, described()),
        ({"w.mask": torch.ones(2)}, described()),
        ({"w.mask": torch.ones(3, dtype=torch.uint8)}, described()),
        ({"w": torch.ones(9)}, described()),
        ({}, described(shape=[10**13])),
        ({}, described(shape=[-3, -3])),
        ({}, described(shape="nine")),
        ({}, described(shape=9)),
        ({}, described(dtype="int8")),
        ({}, {"packed": json.dumps({"w": {}})}),
        ({}, {"packed": "[1]"}),
        ({}, {"packed": "{"}),
    ],
)
def test_damaged(changes, metadata, tmp_path):
    tensors = {"w.mask": torch.tensor([0b00010000, 0b10000000], dtype=torch.uint8), "w.values": torch.ones(2)} | changes
    whole = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(whole, tmp_path / "packed.safetensors", metadata)
    with pytest.raises(ValueError, match="is damaged"):
        unpack_model(tmp_path, tmp_path.parent / f"{tmp_path.name}-target")
    assert not (tmp_path.parent / f"{tmp_path.name}-target").exists()


@pytest.mark.parametrize("existed", [True, False])
def test_a_full_disk_leaves_nothing_behind(existed, folder, tmp_path, monkeypatch):
    target = tmp_path / "packed"
    if existed:
        target.mkdir()
    write = packing.write_atomically

    def full(path, content):
        if path.name == "packed.safetensors":
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, content)

    monkeypatch.setattr(packing, "write_atomically", full)
    with pytest.raises(ValueError, match="No space left"):
        pack_model(folder, target)
    assert list(target.glob("*")) == []
    assert target.exists() == existed
