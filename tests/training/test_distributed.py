"""One run over several processes: as one process would do it, but for rounding; masks and metrics exactly."""

import contextlib
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from support import two_processes
from support.paths import TESTS
from support.runs import small, stop_after, tiny

from randprune_lab import ranks, store
from randprune_lab.config import RunConfig
from randprune_lab.distill import Features, Shares, counts, loss_terms
from randprune_lab.engine import prune
from randprune_lab.training import start_accelerator

CASES = ("mlp", "learned-mask", "rigl", "taylor", "bert", "gpt2")
# Attention does not feel a bias of the keys: its gradient is nothing but rounding, which Adam makes as large as any.
FLAT = r"\.key\.bias|c_attn\.bias"


@contextlib.contextmanager
def pretending(number: int, rank: int):
    """Inside, this process is one of several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranks, "number", lambda: number)
        patch.setattr(ranks, "rank", lambda: rank)
        yield


@given(st.integers(1, 40), st.integers(1, 9))
def test_every_row_of_a_batch_is_one_ranks(rows, number):
    batch = torch.randperm(rows)
    found, sizes = [], []
    for rank in range(number):
        with pretending(number, rank):
            mine = ranks.share(batch)
            assert len(mine)
            if rank < rows:
                found += mine.tolist()
                sizes.append(len(mine))
    assert sorted(found) == list(range(rows))
    assert max(sizes) - min(sizes) <= 1


@given(st.integers(1, 40), st.integers(2, 9))
def test_what_was_dealt_is_gathered_in_order(rows, number):
    hands = []
    for rank in range(number):
        with pretending(number, rank):
            hands.append(ranks.dealt(rows))
    assert {len(hand) for hand in hands} == {-(-rows // number)}
    with pytest.MonkeyPatch.context() as patch, pretending(number, 0):
        patch.setattr(torch.distributed, "all_gather", lambda parts, _: parts.__setitem__(slice(None), hands))
        assert ranks.gathered(hands[0], rows).tolist() == list(range(rows))


def batch_of(seed: int, *, kind: str, rows: int) -> tuple:
    """A student's and a teacher's features of padded texts; in a causal model the future has the lowest score."""
    draw = torch.Generator().manual_seed(seed)
    tokens = 5
    lengths = torch.randint(1, tokens + 1, (rows, 1), generator=draw)
    mask = (torch.arange(tokens) < lengths).long()

    def random(*shape):
        return torch.randn(shape, generator=draw)

    hidden = [hide for _ in range(2) for hide in [tuple(random(rows, tokens, 4) for _ in range(3))]]
    scores = [tuple(random(rows, 2, tokens, tokens) for _ in range(2)) for _ in range(2)]
    lowest = torch.finfo(torch.float32).min
    if kind != "pictures":
        hides = mask[:, None, None, :] == 0
        for block in (0, 1):
            ahead = torch.ones(tokens, tokens).triu(1).bool() if kind == "causal" and block else torch.zeros(())
            for each in scores:
                each[block].masked_fill_(hides | ahead.bool(), lowest)
    labels = torch.randint(3, (rows,), generator=draw)
    if kind == "regression":
        labels = torch.where(torch.rand(rows, generator=draw) < 0.3, torch.nan, random(rows))
    student, teacher = (Features(random(rows, 3), hidden[at], scores[at]) for at in (0, 1))
    return {} if kind == "pictures" else {"attention_mask": mask}, labels, student, teacher


@pytest.mark.parametrize("kind", ["both ways", "causal", "pictures", "regression"])
@pytest.mark.parametrize("layer_map", [(), (2, 2)])
@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 5))
def test_the_parts_of_each_term_add_up_to_the_term_of_the_whole_batch(kind, layer_map, seed, rows, number):
    inputs, labels, student, teacher = batch_of(seed, kind=kind, rows=rows)
    config = RunConfig(hidden_weight=1, attention_weight=1, teacher="another" if layer_map else "", layer_map=layer_map)
    whole = loss_terms(student, teacher, inputs, labels, config)
    total = counts(inputs, labels, teacher, config)
    added = dict.fromkeys(whole, torch.zeros(()))

    def part(features, mine):
        return Features(*(tuple(x[mine] for x in f) if isinstance(f, tuple) else f[mine] for f in features))

    for rank in range(number):
        with pretending(number, rank), pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.distributed, "all_reduce", lambda vector: vector.copy_(total))
            mine = ranks.share(torch.arange(rows))
            given_here = {name: tensor[mine] for name, tensor in inputs.items()}
            here = part(teacher, mine)
            shares = Shares.of(ranks.weights(counts(given_here, labels[mine], here, config), rows))
            terms = loss_terms(part(student, mine), here, given_here, labels[mine], config, shares=shares)
            dense = loss_terms(part(student, mine), None, given_here, labels[mine], config, shares=shares)
        assert torch.equal(dense["task"], terms["task"])
        added = {name: added[name] + term for name, term in terms.items()}
    for name, term in whole.items():
        assert torch.allclose(added[name], term, rtol=1e-5, atol=1e-6), name


@pytest.fixture(scope="module")
def launched(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    """Two processes that accelerate starts; what they found lies in the folder."""
    folder = tmp_path_factory.mktemp("together")
    two_processes.prepare(folder)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    environment = {**os.environ, "RANDPRUNE_RUNS": str(folder / "runs"), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(TESTS)  # whose parts it imports
    command += [two_processes.__file__, str(folder)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            out, err = process.communicate(timeout=400)
        except subprocess.TimeoutExpired:
            for each in (*psutil.Process(process.pid).children(recursive=True), process):
                each.kill()
            out, err = process.communicate()
    return folder, subprocess.CompletedProcess(command, process.returncode, out, err)


def found(launched) -> list[dict]:
    folder, process = launched
    assert process.returncode == 0, process.stderr[-3000:]
    return [json.loads((folder / f"found.{rank}.json").read_text()) for rank in (0, 1)]


def close(one: object, other: object) -> bool:
    """Equal, or for numbers nearly so."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(close(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(close, one, other))
    return one == pytest.approx(other, rel=1e-3, abs=1e-5) if isinstance(one, float) else one == other


@pytest.mark.cluster
@pytest.mark.parametrize("name", CASES)
def test_two_processes_come_to_what_one_comes_to(launched, name):
    folder, _ = launched
    assert [each["number"] for each in found(launched)] == [2, 2]
    said, tensors = two_processes.done(*two_processes.cases(folder)[name])
    ours = [json.loads((folder / f"{name}.{rank}.json").read_text()) for rank in (0, 1)]
    theirs = [load_file(folder / f"{name}.{rank}.safetensors") for rank in (0, 1)]
    assert ours[0] == ours[1]
    assert theirs[0].keys() == tensors.keys()
    for label, tensor in tensors.items():
        assert torch.equal(theirs[0][label], theirs[1][label])
        if label.startswith("mask."):
            assert torch.equal(theirs[0][label], tensor), label
        elif not re.search(FLAT, label):
            far = ~torch.isclose(theirs[0][label].float(), tensor.float(), rtol=1e-3, atol=1e-4)
            assert far.double().mean() <= 1 / 16, label  # of other weights, too, a few may feel nothing in a step
    assert [events[0].pop("processes") for events in (ours[0], said)] == [2, 1]
    for one, other in zip(ours[0], json.loads(json.dumps(said)), strict=True):
        assert close(one, other), (one, other)


@pytest.mark.cluster
def test_metrics_over_uneven_shares_are_exact(launched):
    whole = two_processes.measured(tiny())
    for each in found(launched):
        assert each["measured"] == whole


@pytest.mark.cluster
def test_a_disagreement_is_found_by_all_and_named(launched):
    for each in found(launched):
        assert re.match("RuntimeError: rank 1 does not agree with rank 0 on the run's settings", each["other seed"])
        assert re.match("RuntimeError: rank 1 .* on the weights 2.weight", each["other weight"])


@pytest.mark.cluster
def test_batch_normalization_is_refused(launched):
    for each in found(launched):
        assert each["batch norm"].startswith("ValueError: 1 is a BatchNorm1d: in 2 processes")


@pytest.mark.cluster
def test_only_the_first_process_writes_and_speaks(launched):
    folder, process = launched
    found(launched)
    assert process.stdout.count('"stages"') == 2  # of what was resumed, and of the run that was started
    (run,) = store.run_folders(folder / "runs")
    assert store.summary(run).status == "finished"
    resumed = store.story(folder / "stopped")
    assert [event.kind for event in resumed].count("run_finished") == 1
    assert [event.processes for event in resumed if event.kind == "run_started"] == [1]
    assert "the run was begun with processes = 1 and goes on with 2" in process.stderr
    journal = (folder / "stopped" / "events.jsonl").read_text()
    assert journal.count('"kind": "resumed"') == 1
    alone = [event for event in prune(two_processes.STOPPED) if getattr(event, "kind", "") == "stage_finished"]
    ours = [event for event in resumed if event.kind == "stage_finished"]
    for one, other in zip(ours, alone, strict=True):
        assert close(one.to_json(), other.to_json())


@pytest.mark.cluster
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="the system does not tell the names of threads")
def test_the_command_leaves_no_thread_of_the_connection_behind(launched):
    """One that still works while the interpreter ends may abort it."""
    folder, _ = launched
    for rank, each in enumerate(found(launched)):
        left = json.loads((folder / f"threads.{rank}.json").read_text())
        assert any("gloo" in name for name in each["threads"])
        assert not [name for name in left if "gloo" in name]


def test_with_one_process_nothing_is_done():
    values = [torch.tensor(1.0)]
    assert ranks.add_up([], values) == values
    assert ranks.dealt(5) is None
    assert ranks.gathered(values[0], 1) is values[0]
    assert ranks.all_agree(True, torch.device("cpu"))
    assert not ranks.all_agree(False, torch.device("cpu"))
    ranks.check_same("weights", {"a": torch.zeros(1)})
    ranks.end()


def test_candidates_are_not_given_away_by_several():
    with pretending(2, 0), pytest.raises(ValueError, match=r"executor = 'ray' in 2 processes"):
        ranks.check(RunConfig(executor="ray"), two_processes.plain_model())
    with pretending(2, 0):
        ranks.check(RunConfig(executor="ray", method="imp"), two_processes.plain_model())  # has none


def test_another_number_of_processes_is_told_when_a_run_goes_on(tmp_path):
    stop_after(tmp_path, small(), 4)
    journal = tmp_path / "events.jsonl"
    text = journal.read_text()
    assert text.count('"processes": 1, ') == 1
    journal.write_text(text.replace('"processes": 1, ', ""))  # of before it was written down
    stream = prune(small(), resume=store.last_checkpoint(tmp_path))
    assert [next(stream).kind for _ in range(2)] == ["resumed", "epoch_finished"]
    journal.write_text(text.replace('"processes": 1', '"processes": 2'))
    stream = prune(small(), resume=store.last_checkpoint(tmp_path))
    resumed, warned = next(stream), next(stream)
    assert resumed.kind == "resumed"
    assert warned.text.startswith("the run was begun with processes = 2 and goes on with 1: ")


def test_accelerate_that_starts_one_process_instead_of_several_is_noticed(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_PORT", "29500")
    with pytest.raises(ValueError, match="and has started one"):
        start_accelerator(tiny())
    monkeypatch.delenv("MASTER_PORT")
    assert start_accelerator(tiny()).num_processes == 1


def test_no_background_for_several_processes(command, monkeypatch, tmp_path):
    monkeypatch.setenv("RANDPRUNE_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("LOCAL_RANK", "0")
    code, _, err = command("run", "--detach")
    assert code == 2
    assert "several processes were launched" in " ".join(err.split())
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("rank", "said"), [("0", "randprune study is not for several processes"), ("1", "")])
def test_only_runs_are_shared_out(command, monkeypatch, rank, said):
    for name, value in {"LOCAL_RANK": rank, "RANK": rank, "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    code, out, err = command("study")
    assert (code, out) == (2, "")
    assert said in err
    assert bool(err) == bool(said)


def test_the_package_is_a_command(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["randprune_lab", "--help"])
    with pytest.raises(SystemExit):
        runpy.run_module("randprune_lab", run_name="__main__")
    assert "resume" in capsys.readouterr().out
