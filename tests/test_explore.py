"""``randprune explore``: a row for every weight matrix of a checkpoint."""

import json

import pytest
import torch
from safetensors.torch import save_file

from randprune_lab import (
    KeepCurve,
    candidate_generator,
    introduced_randomness,
    magnitude_mask,
    random_mask,
    samples_for_ratio,
)
from randprune_lab.explorer import ExploreSettings, tensor_table
from randprune_lab.models import weight_matrices


@pytest.fixture
def checkpoint(tmp_path):
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "a.weight": torch.randn(60, 100, generator=generator),
        "a.bias": torch.randn(60, generator=generator),
        "b.weight": torch.randn(40, 5, 3, 3, generator=generator).to(torch.bfloat16),
        "positions": torch.arange(12).reshape(3, 4),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path, tensors


def test_rows_say_what_the_functions_say(checkpoint):
    folder, tensors = checkpoint
    settings = ExploreSettings(sparsity=0.8, sampling_ratio=1e-3, reach=1.5, draw=3, seed=7)
    rows = list(tensor_table(folder, settings))
    assert [(row.name, row.shape) for row in rows] == [("a.weight", (60, 100)), ("b.weight", (40, 5, 3, 3))]
    for row in rows:
        weight = tensors[row.name]
        plain = magnitude_mask(weight, 0.8)
        tau = weight.abs()[plain].min().item()
        near = weight.double().abs()[(weight.double().abs() >= 2 / 3 * tau) & (weight.double().abs() < 4 / 3 * tau)]
        assert row.n == weight.numel()
        assert row.threshold == pytest.approx(tau, abs=0)
        assert row.near_threshold == pytest.approx(len(near) / weight.numel(), abs=0.003)
        assert row.samples == samples_for_ratio(1e-3, weight.numel(), 0.8)
        curve = KeepCurve.of(weight, 0.8, samples=row.samples, reach=1.5)
        assert (row.expected_ir, row.swapped) == (curve.expected_ir, curve.swapped)
        drawn = [
            random_mask(
                weight, 0.8, samples=row.samples, reach=1.5, generator=candidate_generator(7, 1, candidate, row.name)
            )
            for candidate in (1, 2, 3)
        ]
        assert row.drawn_ir == tuple(introduced_randomness(mask, plain) for mask in drawn)
        assert len(set(row.drawn_ir)) > 1


def test_sources_are_a_folder_a_file_and_shards(checkpoint, tmp_path_factory):
    folder, tensors = checkpoint
    whole = [name for name, _ in weight_matrices(folder)]
    assert [name for name, _ in weight_matrices(folder / "model.safetensors")] == whole
    sharded = tmp_path_factory.mktemp("sharded")
    for shard, name in enumerate(tensors):
        save_file({name: tensors[name]}, sharded / f"model-{shard}.safetensors")
    save_file({"stray.weight": torch.ones(2, 2)}, sharded / "adapter.safetensors")
    index = {"weight_map": {name: f"model-{shard}.safetensors" for shard, name in enumerate(tensors)}}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    read = dict(weight_matrices(sharded))
    assert sorted(read) == sorted(whole)
    assert torch.equal(read["a.weight"], tensors["a.weight"])


def test_table_and_json_on_the_command_line(checkpoint, command):
    folder, _ = checkpoint
    code, out, err = command("explore", folder, "--sparsity", 0.8, "--sr", 1e-3, "--draw", 2)
    assert (code, err) == (0, "")
    for expected in ("a.weight", "b.weight", "6,000", "at sparsity 0.8 (5x), T = 5, no reach", "±"):
        assert expected in out
    code, out, _ = command("explore", folder, "--sparsity", 0.8, "-T", 2, "--reach", 2, "--include", "^a", "--json")
    shown = json.loads(out)
    assert shown["settings"]["power"] == 2
    (row,) = shown["tensors"]
    assert row["name"] == "a.weight"
    assert row["drawn_ir"] == []


def test_a_real_encoder(test_data, command):
    code, out, _ = command("explore", test_data / "models" / "minilm-l3", "--draw", 2, "--json")
    rows = json.loads(out)["tensors"]
    assert code == 0
    assert len(rows) == 22  # 18 matrices of 3 blocks, 3 embeddings, the pooler
    for row in rows:
        if row["n"] > 100_000:
            assert row["drawn_ir"][0] == pytest.approx(row["expected_ir"], rel=0.08)  # one draw, 6 samples


def wrong_inputs(folder):
    (folder / "pickled").mkdir()
    torch.save({"a": torch.ones(2, 2)}, folder / "pickled" / "pytorch_model.bin")
    (folder / "empty").mkdir()
    save_file({"a": torch.tensor([[1.0, float("nan")]])}, folder / "nan.safetensors")
    save_file({"a": torch.tensor([[1.0, 0, 0, 0]])}, folder / "pruned.safetensors")
    (folder / "broken.safetensors").write_bytes(b"not at all")
    for name, index in {
        "no map": "{}",
        "no json": "{",
        "outside": '{"weight_map": {"a": "../model.safetensors"}}',
        "missing": '{"weight_map": {"a": "gone.safetensors"}}',
    }.items():
        (folder / name).mkdir()
        (folder / name / "model.safetensors.index.json").write_text(index)
    ok = folder / "model.safetensors"
    return {
        "sparsity": ([ok, "--sparsity", "1"], ["sparsity = 1.0", "[0, 1)", "0.9375"]),
        "samples": ([ok, "--samples", "0"], ["samples = 0", "at least 1"]),
        "reach": ([ok, "--reach", "0.9"], ["reach = 0.9", "at least 1", "None"]),
        "power": ([ok, "-T", "-1"], ["power = -1", "at least 0"]),
        "ratio": ([ok, "--sr", "0"], ["sampling_ratio = 0", "above 0"]),
        "ties": ([ok, "--ties", "magnitud"], ["'magnitud'", "Did you mean 'magnitude'"]),
        "schedule": ([ok, "--schedule", "decrese"], ["'decrese'", "Did you mean 'decrease'"]),
        "pattern": ([ok, "--include", "("], ["include = '('", "regular expression"]),
        "no match": ([ok, "--include", "zzz"], ["zzz", "no floating-point weight matrix"]),
        "nan": ([folder / "nan.safetensors"], ["a: 1 of 2 weights", "NaN"]),
        "too few alive": ([folder / "pruned.safetensors", "--sparsity", "0.5"], ["a: 1 weights exist, 2", "sparsity"]),
        "pickle": ([folder / "pickled"], ["pytorch_model.bin", "pickle", "save_file"]),
        "pickled file": ([folder / "pickled" / "pytorch_model.bin"], ["pickle", "save_file"]),
        "nothing there": ([folder / "empty"], ["no .safetensors", "save_pretrained"]),
        "damaged": ([folder / "broken.safetensors"], ["broken.safetensors", "not a readable"]),
        "no such path": ([folder / "missing"], ["missing", "no such"]),
        "unreachable hub": (["nobody/nothing"], ["nobody/nothing", "no such"]),
        "index without map": ([folder / "no map"], ["index.json", "no valid index"]),
        "index no json": ([folder / "no json"], ["index.json", "no valid index"]),
        "index outside": ([folder / "outside"], ["'../model.safetensors'", "no such file beside it"]),
        "index missing": ([folder / "missing"], ["'gone.safetensors'", "no such file beside it"]),
        "no file at all": (["/dev/null"], ["/dev/null"]),
        "huge samples": ([ok, "--samples", 10**19], ["samples = 1", "at most"]),
        "huge ratio": ([ok, "--sr", "1e308"], ["sampling_ratio = 1e+308"]),
        "huge power": ([ok, "--power", "1e308"], ["power = 1e+308", "at most"]),
        "unknown option": ([ok, "--sparsty", "0.5"], ["--sparsty", "--sparsity"]),
        "no number": ([ok, "--sparsity", "high"], ["--sparsity", "high"]),
    }


WRONG = ["sparsity", "samples", "reach", "power", "ratio", "ties", "schedule", "pattern", "no match", "nan"]
WRONG += ["too few alive", "pickle", "pickled file", "nothing there", "damaged", "no such path", "unreachable hub"]
WRONG += ["index without map", "index no json", "index outside", "index missing", "no file at all"]
WRONG += ["huge samples", "huge ratio", "huge power", "unknown option", "no number"]


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_is_one_line_and_exit_code_2(case, checkpoint, command):
    folder, _ = checkpoint
    arguments, expected = wrong_inputs(folder)[case]
    code, out, err = command("explore", *arguments)
    assert code == 2
    assert out == ""
    assert len(err.splitlines()) == 1, err
    assert "Traceback" not in err
    for words in expected:
        assert words in err


def test_names_of_tensors_cannot_steer_the_terminal(tmp_path, command):
    tensors = {"[/red]b": torch.randn(9, 9), "[red]a": torch.randn(9, 9), "\x1b[31mc\n": torch.randn(9, 9)}
    save_file(tensors, tmp_path / "model.safetensors")
    code, out, err = command("explore", tmp_path)
    assert (code, err) == (0, "")
    assert "[/red]b" in out
    assert "[red]a" in out
    assert "?[31mc?" in out
    assert "\x1b" not in out


def test_infinite_randomness_is_shown(tmp_path, command):
    save_file({"a": torch.arange(1.0, 26).reshape(5, 5)}, tmp_path / "model.safetensors")
    arguments = ["explore", tmp_path, "--sparsity", "0.04", "--draw", "5", "-T", "0"]
    code, out, _ = command(*arguments)
    assert code == 0
    assert "inf" in out
    code, out, _ = command(*arguments, "--json")
    assert None in json.loads(out, parse_constant=lambda _: pytest.fail("no JSON"))["tensors"][0]["drawn_ir"]
