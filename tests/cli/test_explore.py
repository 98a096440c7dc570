"""``randprune explore``: a row for every weight matrix of a checkpoint or a run, or panels 1 to 4 as a page."""

import json
import re

import pytest
import torch
from safetensors.torch import save_file
from support.runs import go_on, tiny, tiny_parts

from randprune_lab import (
    Explorer,
    ExploreState,
    KeepCurve,
    candidate_generator,
    introduced_randomness,
    magnitude_mask,
    open_source,
    random_mask,
    samples_for_ratio,
)


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


def rows_of(path, **arguments):
    chosen = {name: arguments.pop(name) for name in ("include", "exclude", "draws") if name in arguments}
    explorer = Explorer(open_source(path))
    return list(explorer.rows(explorer.start(ExploreState(**arguments)), **chosen))


def test_rows_say_what_the_functions_say(checkpoint):
    folder, tensors = checkpoint
    rows = rows_of(folder, sparsity=0.8, sampling_ratio=1e-3, reach=1.5, draws=3, seed=7)
    assert [(row.name, row.shape) for row in rows] == [("a.weight", (60, 100)), ("b.weight", (40, 5, 3, 3))]
    for row in rows:
        weight = tensors[row.name]
        plain = magnitude_mask(weight, 0.8)
        tau = weight.abs()[plain].min().item()
        near = weight.double().abs()[(weight.double().abs() >= 2 / 3 * tau) & (weight.double().abs() < 4 / 3 * tau)]
        assert row.n == weight.numel()
        assert tau * (1 - 2.5e-4) <= row.threshold <= tau  # of the histogram: the lower edge of its bin
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


def test_rows_are_chosen_by_name(checkpoint):
    folder, _ = checkpoint
    assert [row.name for row in rows_of(folder, include="^b")] == ["b.weight"]
    assert [row.name for row in rows_of(folder, exclude="^b")] == ["a.weight"]
    assert [row.name for row in rows_of(folder, include="weight", exclude="a|zzz")] == ["b.weight"]


def test_sources_are_a_folder_a_file_and_shards(checkpoint, tmp_path_factory):
    folder, tensors = checkpoint
    whole = rows_of(folder, draws=1)
    assert len(whole) == 2
    assert rows_of(folder / "model.safetensors", draws=1) == whole
    sharded = tmp_path_factory.mktemp("sharded")
    for shard, name in enumerate(tensors):
        save_file({name: tensors[name]}, sharded / f"model-{shard}.safetensors")
    save_file({"stray.weight": torch.ones(2, 2)}, sharded / "adapter.safetensors")
    index = {"weight_map": {name: f"model-{shard}.safetensors" for shard, name in enumerate(tensors)}}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    assert sorted(rows_of(sharded, draws=1), key=lambda row: row.name) == whole
    assert rows_of({name: tensor for name, tensor in tensors.items() if name != "positions"}, draws=1) == whole


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


def shown(command, *arguments):
    code, out, err = command("explore", *arguments, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    return ExploreState.model_validate(found["settings"]), found["tensors"]


def test_a_target_ir_is_what_every_tensor_gets(checkpoint, command):
    folder, _ = checkpoint
    state, rows = shown(command, folder, "--target-ir", 0.03, "--samples", 3, "--sparsity", 0.8)
    assert (state.randomness, state.target_ir, state.samples) == ("target_ir", 0.03, 3)
    assert [row["expected_ir"] for row in rows] == pytest.approx([0.03, 0.03], rel=1e-6)
    assert rows[0]["power"] != rows[1]["power"]
    code, out, _ = command("explore", folder, "--target-ir", 0.03)
    assert code == 0
    assert "0.03" in out


def test_samples_rule_over_the_ratio(checkpoint, command):
    code, out, err = command("explore", checkpoint[0], "--samples", 3, "--sr", 0.5)
    assert (code, out) == (2, "")
    assert "pass one kind of them" in err
    state, rows = shown(command, checkpoint[0], "--samples", 3)
    assert (state.randomness, state.samples) == ("fixed", 3)
    assert {row["samples"] for row in rows} == {3}
    state, rows = shown(command, checkpoint[0], "--sr", 0.01, "--schedule", "increase")
    assert state.randomness == "increase"
    assert [row["samples"] for row in rows] == [3, 1]


def test_global_scope_has_one_threshold(checkpoint, command):
    folder, tensors = checkpoint
    state, rows = shown(command, folder, "--scope", "global", "--sparsity", 0.8, "--samples", 3)
    together = torch.cat([tensors["a.weight"].reshape(-1), tensors["b.weight"].float().reshape(-1)])
    curve = KeepCurve.of(together, 0.8, samples=3)
    assert state.scope == "global"
    assert [row["threshold"] for row in rows] == pytest.approx([curve.threshold] * 2, rel=2.5e-4)
    _, own = shown(command, folder, "--scope", "layer", "--sparsity", 0.8, "--samples", 3)
    assert own[0]["threshold"] != own[1]["threshold"]
    code, _, err = command("explore", folder, "--scope", "global")
    assert (code, err) == (0, "")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    go_on(folder, tiny(samples=2, seed=5), **tiny_parts())
    return folder


def test_stage_and_moment_of_a_run(run, command):
    state, rows = shown(command, run)
    assert (state.stage, state.moment, state.sparsity, state.samples, state.seed) == (1, "before", 0.5, 2, 5)
    assert [row["name"] for row in rows] == ["0.weight", "4.weight", "5.weight"]
    assert [row["alive"] for row in rows] == [192, 288, 36]
    state, rows = shown(command, run, "--stage", 2)
    assert (state.stage, state.moment, state.sparsity) == (2, "before", 0.9)
    assert [row["alive"] for row in rows] == [96, 144, 18]
    state, rows = shown(command, run, "--stage", 2, "--moment", "after", "--sparsity", 0.95)
    assert (state.stage, state.moment, state.sparsity) == (2, "after", 0.95)
    assert [row["alive"] for row in rows] == [19, 29, 4]
    state, _ = shown(command, run, "--stage", 3)
    assert (state.stage, state.moment) == (3, "before")


@pytest.mark.parametrize(
    "arguments", [("--stage", 9), ("--stage", 3, "--moment", "after"), ("--stage", 0), ("--moment", "later")]
)
def test_a_moment_that_a_run_has_not_is_refused(run, command, arguments):
    code, out, err = command("explore", run, *arguments)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert str(arguments[1]) in err


def test_a_page_of_its_own(checkpoint, command, tmp_path):
    folder, _ = checkpoint
    target = tmp_path / "made" / "page.html"
    options = ["--tensor", "b.weight", "--candidates", 3, "--sparsity", 0.8, "--seed", 2]
    code, out, err = command("explore", folder, *options, "--html", target)
    assert (code, err) == (0, "")
    assert str(target) in out
    page = target.read_text()
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])
    assert data["first"] == "b.weight"
    assert set(data["views"]) == {"a.weight", "b.weight"}
    explorer = Explorer(open_source(folder))
    for name, view in data["views"].items():
        state = ExploreState.model_validate(view["quick"]["state"])
        assert (state.tensor, state.candidates, state.sparsity, state.seed) == (name, 3, 0.8, 2)
        quick = explorer.quick(state)
        assert view["quick"]["microscope"] == json.loads(json.dumps(quick["microscope"]))
        assert view["quick"]["microscope"]["sentence"] == quick["microscope"]["sentence"]
        assert len(view["candidates"]["drawn"]) == 3
    assert not re.findall(r'(?:src|href)="(?!data:|https://arxiv)', page)  # opens without a network


def test_a_page_that_cannot_be_made_is_one_line(checkpoint, command):
    folder, _ = checkpoint
    (folder / "file").write_text("")
    for arguments, words in {
        ("--html", folder / "file" / "page.html"): str(folder / "file"),
        ("--html", folder): str(folder),
        ("--tensor", "c.weight", "--html", folder / "page.html"): "Did you mean",
        ("--candidates", 99, "--html", folder / "page.html"): "candidates = 99",
    }.items():
        code, out, err = command("explore", folder / "model.safetensors", *arguments)
        assert (code, out) == (2, ""), arguments
        assert len(err.splitlines()) == 1, err
        assert words in err
    assert not (folder / "page.html").exists()


def test_a_real_encoder(test_data, command):
    code, out, _ = command("explore", test_data / "models" / "minilm-l3", "--draw", 2, "--json")
    rows = json.loads(out)["tensors"]
    assert code == 0
    assert len(rows) == 22  # 18 matrices of 3 blocks, 3 embeddings, the pooler
    assert sum(row["prunable"] for row in rows) == 18
    for row in rows:
        if row["n"] > 100_000:
            assert row["drawn_ir"][0] == pytest.approx(row["expected_ir"], rel=0.08)  # one draw, 6 samples


def wrong_inputs(folder):
    (folder / "pickled").mkdir()
    torch.save({"a": torch.ones(2, 2)}, folder / "pickled" / "pytorch_model.bin")
    (folder / "empty").mkdir()
    save_file({"a": torch.tensor([[1.0, float("nan")]])}, folder / "nan.safetensors")
    save_file({"a": torch.tensor([[1.0, 0, 0, 0]])}, folder / "pruned.safetensors")
    save_file({"a": torch.ones(3)}, folder / "vector.safetensors")
    save_file({"a": torch.ones(3, 3, dtype=torch.int32)}, folder / "integers.safetensors")
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
        "sparsity nan": ([ok, "--sparsity", "nan"], ["sparsity = nan", "[0, 1)"]),
        "samples": ([ok, "--samples", "0"], ["samples = 0", "at least 1"]),
        "reach": ([ok, "--reach", "0.9"], ["reach = 0.9", "at least 1", "None"]),
        "power": ([ok, "-T", "-1"], ["power = -1", "at least 0"]),
        "ratio": ([ok, "--sr", "0"], ["sampling_ratio = 0", "above 0"]),
        "target": ([ok, "--target-ir", "0"], ["target_ir = 0", "above 0"]),
        "target infinite": ([ok, "--target-ir", "inf"], ["target_ir = inf", "finite"]),
        "ties": ([ok, "--ties", "magnitud"], ["'magnitud'", "Did you mean 'magnitude'"]),
        "schedule": ([ok, "--schedule", "decrese"], ["'decrese'", "Did you mean 'decrease'"]),
        "scope": ([ok, "--scope", "globl"], ["'globl'", "Did you mean 'global'"]),
        "moment": ([ok, "--moment", "befor"], ["'befor'", "Did you mean 'before'"]),
        "stage": ([ok, "--stage", "0"], ["stage = 0", "1"]),
        "candidates": ([ok, "--candidates", "0"], ["candidates = 0", "1"]),
        "tensor": (
            [ok, "--tensor", "a.wight", "--html", folder / "page.html"],
            ["'a.wight'", "Did you mean 'a.weight'"],
        ),
        "seed": ([ok, "--seed", str(2**60)], [f"seed = {2**60}"]),
        "pattern": ([ok, "--include", "("], ["include = '('", "regular expression"]),
        "other pattern": ([ok, "--exclude", "["], ["exclude = '['", "regular expression"]),
        "no match": ([ok, "--include", "zzz"], ["zzz", "no floating-point weight matrix"]),
        "no matrix": ([folder / "vector.safetensors"], ["no floating-point weight matrix"]),
        "integers": ([folder / "integers.safetensors"], ["no floating-point"]),
        "nan": ([folder / "nan.safetensors"], ["a: 1 of 2 weights", "NaN"]),
        "too few alive": ([folder / "pruned.safetensors", "--sparsity", "0.5"], ["a: 1 weights exist, 2", "sparsity"]),
        "pickle": ([folder / "pickled"], ["pytorch_model.bin", "pickle", "save_file"]),
        "pickled file": ([folder / "pickled" / "pytorch_model.bin"], ["pickle", "save_file"]),
        "nothing there": ([folder / "empty"], ["no .safetensors", "save_pretrained"]),
        "damaged": ([folder / "broken.safetensors"], ["broken.safetensors", "not a readable"]),
        "no such path": ([folder / "nowhere"], ["nowhere", "no such"]),
        "no name": ([""], ["no model is named"]),
        "unreachable hub": (["nobody/nothing"], ["nobody/nothing", "no such"]),
        "index without map": ([folder / "no map"], ["index.json", "no valid index"]),
        "index no json": ([folder / "no json"], ["index.json", "no valid index"]),
        "index outside": ([folder / "outside"], ["'../model.safetensors'", "no such file beside it"]),
        "index missing": ([folder / "missing"], ["'gone.safetensors'", "no such file beside it"]),
        "no file at all": (["/dev/null"], ["/dev/null"]),
        "huge samples": ([ok, "--samples", 10**19], ["samples = 1", "at most"]),
        "huge ratio": ([ok, "--sr", "1e308"], ["sampling_ratio = 1e+308"]),
        "huge power": ([ok, "--power", "1e308"], ["power = 1e+308", "at most"]),
        "huge draw": ([ok, "--draw", "1001"], ["--draw", "1001"]),
        "unknown option": ([ok, "--sparsty", "0.5"], ["--sparsty", "--sparsity"]),
        "no number": ([ok, "--sparsity", "high"], ["--sparsity", "high"]),
    }


WRONG = ["sparsity", "samples", "reach", "power", "ratio", "ties", "schedule", "pattern", "no match", "nan"]
WRONG += ["too few alive", "pickle", "pickled file", "nothing there", "damaged", "no such path", "unreachable hub"]
WRONG += ["index without map", "index no json", "index outside", "index missing", "no file at all"]
WRONG += ["huge samples", "huge ratio", "huge power", "unknown option", "no number"]
WRONG += ["sparsity nan", "target", "target infinite", "scope", "moment", "stage", "candidates", "tensor", "seed"]
WRONG += ["other pattern", "no matrix", "integers", "no name", "huge draw"]


def test_every_wrong_input_is_tried(checkpoint):
    assert set(wrong_inputs(checkpoint[0])) == set(WRONG)


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


def test_names_of_tensors_cannot_break_out_of_the_page(tmp_path, command):
    evil = "</script><script>alert(1)</script><!--"
    save_file({evil: torch.randn(9, 9), "<img src=x>": torch.randn(9, 9)}, tmp_path / "model.safetensors")
    page = tmp_path / "<b>page</b>.html".replace("/", "")
    assert command("explore", tmp_path, "--sparsity", 0.5, "--html", page)[0] == 0
    text = page.read_text()
    assert "<script>alert" not in text
    assert "<img" not in text
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])
    assert set(data["views"]) == {evil, "<img src=x>"}


def test_infinite_randomness_is_shown(tmp_path, command):
    save_file({"a": torch.arange(1.0, 26).reshape(5, 5)}, tmp_path / "model.safetensors")
    arguments = ["explore", tmp_path, "--sparsity", "0.04", "--draw", "5", "-T", "0"]
    code, out, _ = command(*arguments)
    assert code == 0
    assert "inf" in out
    code, out, _ = command(*arguments, "--json")
    assert None in json.loads(out, parse_constant=lambda _: pytest.fail("no JSON"))["tensors"][0]["drawn_ir"]


@pytest.mark.parametrize("place", [".", "file/page.html"])
def test_a_page_that_cannot_be_written_is_refused_before_the_work(place, checkpoint, command, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    code, out, err = command("explore", checkpoint[0], "--html", place)
    assert (code, out) == (2, "")
    assert "Name a file in a folder" in err
