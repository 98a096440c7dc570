"""The command line as a user meets it."""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from randprune_lab import bench, cli, jobs, status, store, terminal
from randprune_lab.checks import keep_count
from randprune_lab.config import RunConfig, controls
from randprune_lab.masks import unpack
from randprune_lab.models import build_model, prunable_weights
from randprune_lab.tasks import digits

SIZES = (64 * 300, 300 * 100, 100 * 10)
SMALL = ["--stages", "0.5,0.9", "--candidates", "3", "--dense-epochs", "2", "--max-epochs", "2"]
SHORT = ["--max-steps-per-epoch", "2"]  # the stages and epochs of ``randprune run``, but each epoch has two steps
PATIENCE = 180.0  # seconds after which something will never come

# A model whose runs wait after a candidate was judged, in processes that are told so by their environment.
HELD = """
import os
import time
from pathlib import Path

import torch

class Held(torch.nn.Linear):
    def forward(self, inputs):
        while "HELD" in os.environ and "candidate_scored" in "".join(p.read_text() for p in Path().glob("*/*.jsonl")):
            time.sleep(0.02)
        return super().forward(inputs)

def model():
    return torch.nn.Sequential(Held(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
"""


@pytest.fixture(scope="module")
def main_job(tmp_path_factory):
    """``randprune run`` with short epochs: its folder of runs and what it printed."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        for name, value in {"RANDPRUNE_RUNS": str(folder), "COLUMNS": "100"}.items():
            patch.setenv(name, value)
        patch.setattr("sys.argv", ["randprune", "run", *SHORT])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    assert not ended.value.code
    return folder, out.getvalue()


def until(condition):
    """Wait for something; its first true value."""
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)
    return found


def accuracy_on_disk(path):
    """Test accuracy, kept weights and the weights outside the masks of a stage's checkpoint, counted anew."""
    tensors = load_file(path)
    model = build_model("mlp", 0)
    model.load_state_dict({name[6:]: tensor for name, tensor in tensors.items() if name.startswith("model.")})
    masks = {name: unpack(tensors[f"mask.{name}"], weight.shape) for name, weight in prunable_weights(model).items()}
    outside = sum(int((weight[~masks[name]] != 0).sum()) for name, weight in prunable_weights(model).items())
    test = digits().test
    correct = (model(test.inputs).argmax(dim=1) == test.labels).double().mean()
    return float(correct), [int(mask.sum()) for mask in masks.values()], outside


def test_the_main_job_prints_what_lies_on_disk(main_job):
    folder, printed = main_job
    assert "…" not in printed  # nothing is clipped
    found = {run.config.control or run.config.method: run for run in store.runs(folder)}
    assert {name: run.status for name, run in found.items()} == {"randomized": "finished", "imp-matched": "finished"}
    assert found["randomized"].config == RunConfig(max_steps_per_epoch=2, group=found["randomized"].config.group)
    assert found["imp-matched"].config.max_epochs == 15 + 8
    assert len({run.config.group for run in found.values()}) == 1
    stages = (0.54, 0.83, 0.91, 0.9375, 0.97)
    for stage, sparsity in enumerate(stages, start=1):
        (line,) = [line for line in printed.splitlines() if line.split()[:1] == [str(stage)]]
        for name, run in found.items():
            (path,) = (run.folder / "checkpoints").glob(f"*-stage{stage}.safetensors")
            accuracy, kept, outside = accuracy_on_disk(path)
            assert outside == 0
            assert kept == [keep_count(size, sparsity) for size in SIZES]
            assert line.split()[-2 if name == "randomized" else -1] == f"{accuracy:.1%}"
            assert f"{1 - sum(kept) / sum(SIZES):.4f}" in line
            assert f"{sum(SIZES) / sum(kept):.1f}x" in line
            assert f"{(sum(SIZES) + 410) / (sum(kept) + 410):.1f}x" in line
        chosen = [e for e in store.story(found["randomized"].folder) if e.kind == "mask_chosen" and e.stage == stage]
        assert f"{chosen[0].ir:.4f}" in line
        assert (f"mask {chosen[0].winner}" if chosen[0].winner else "plain") in line
    for run in found.values():
        assert str(run.folder) in printed
        assert (run.folder / "report.html").stat().st_size > 10_000
        last = load_file(run.folder / "model" / "model.safetensors")
        assert int((last["0.weight"] != 0).sum()) <= keep_count(SIZES[0], 0.97)
    assert "randprune bench --claims" in printed


def test_the_same_seed_prints_the_same_table(command, monkeypatch, tmp_path):
    tables = []
    for name in ("first", "again"):
        monkeypatch.setenv("RANDPRUNE_RUNS", str(tmp_path / name))
        code, out, _ = command("run", *SMALL, *SHORT, "--stages", "0.9")
        assert code == 0
        tables.append([line for line in out.splitlines() if "%" in line])
    assert tables[0] == tables[1]
    assert len(tables[0]) == 2


def test_every_field_is_an_option(command, monkeypatch, tmp_path):
    monkeypatch.setenv("RANDPRUNE_RUNS", str(tmp_path))
    code, out, _ = command("run", "--help")
    assert code == 0
    for name in RunConfig.model_fields:
        assert f"--{name.replace('_', '-')}"[:20] in out


def test_options_and_files_make_the_config(command, monkeypatch, tmp_path):
    monkeypatch.setenv("RANDPRUNE_RUNS", str(tmp_path / "runs"))
    (tmp_path / "mine.toml").write_text('stages = [0.5, 0.9]\nmax_epochs = 1\ndense_epochs = 1\nsampler = "exact"\n')
    options = ["--seed", "3", "--reach", "none", "--randomness", "target_ir", "--target-ir", "0.05,0.01"]
    code, out, err = command("run", "--config", tmp_path / "mine.toml", *options, "--no-controls", "--json")
    assert code == 0, err
    (run,) = store.runs(tmp_path / "runs")
    config = run.config
    assert (config.stages, config.max_epochs, config.sampler, config.seed) == ((0.5, 0.9), 1, "exact", 3)
    assert (config.target_ir, config.reach) == ((0.05, 0.01), None)
    rows = json.loads(out)["runs"]["randomized"]["stages"]
    assert [row["stage"] for row in rows] == [0, 1, 2]
    assert rows[2]["score"] == run.score


@pytest.mark.parametrize("how", ["Ctrl-C", pytest.param("elsewhere", marks=pytest.mark.crash)])
def test_stopped_and_resumed_it_ends_as_if_nothing_had_been(how, tmp_path, command, monkeypatch):
    """Ctrl-C in the middle, or a stop from elsewhere: it says how to go on, and so does the command it names."""
    (tmp_path / "held.py").write_text(HELD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("RANDPRUNE_RUNS", str(tmp_path))
    arguments = ["run", *SMALL, *SHORT, "--no-controls", "--model", "held:model"]
    _, whole, _ = command(*arguments)
    shutil.rmtree(store.run_folders(tmp_path)[0])
    program = [Path(sys.executable).with_name("randprune"), *arguments]
    environment = os.environ | {"HELD": "yes"}
    process = subprocess.Popen(program, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    until(lambda: "candidate_scored" in "".join(path.read_text() for path in tmp_path.glob("*/events.jsonl")))
    ((name, run),) = listed(command).items()
    assert run["status"] == "running"
    code, _, err = command("resume", tmp_path / name)
    assert code == 2
    assert "another process works on this run" in err
    if how == "Ctrl-C":
        process.send_signal(signal.SIGINT)
    else:
        code, out, err = command("stop", name)
        assert (code, err) == (0, "")
        assert f"{name}: stopped. Go on with: randprune resume" in out
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    folder = re.search(r"Go on with: randprune resume (\S+)", err).group(1)
    assert folder == str(tmp_path / name)
    assert listed(command)[name]["status"] == "stopped"
    code, resumed, err = command("resume", folder)
    assert code == 0, err
    rows = [[line for line in text.splitlines() if "%" in line] for text in (whole, resumed)]
    assert rows[0] == rows[1] != []
    code, out, err = command("resume", folder)
    assert (code, out) == (2, "")
    assert "is finished" in err


def test_report_is_written_again(main_job, command):
    folder, _ = main_job
    for run in store.runs(folder):
        path = run.folder / "report.html"
        path.unlink()
        code, out, _ = command("report", run.folder)
        assert code == 0
        assert "report.html" in out
        assert path.exists()


def test_bench_measures_what_it_names(command):
    code, out, err = command("bench", "--repeats", 1, "--json")
    assert code == 0, err
    rows = {row["name"]: row for row in json.loads(out)["measured"]}
    assert len(rows) == 14
    assert all(row["value"] > 0 for row in rows.values())
    loop = next(row for name, row in rows.items() if "110 torch.multinomial" in name)
    first = rows["random_mask, first of a stage"]
    assert rows["paper's loop / random_mask"]["value"] == pytest.approx(loop["value"] / first["value"])


def test_claims_pair_the_methods_by_seed():
    base = RunConfig(stages=(0.5, 0.98), dense_epochs=1, candidates=2, max_steps_per_epoch=4)
    heard = []
    rows = bench.claims_table(
        seeds=2, processes=1, epochs=(1, 2), base=base, tell=lambda done, of: heard.append((done, of))
    )
    assert [(row.epochs, row.sparsity) for row in rows] == [(1, 0.5), (1, 0.98), (2, 0.5), (2, 0.98)]
    assert heard[-1] == (16, 16)
    first = bench._accuracies(base.model_copy(update={"max_epochs": 1, "seed": 0}))
    second = bench._accuracies(base.model_copy(update={"max_epochs": 1, "seed": 1}))
    for row, one, two in zip(rows[:2], first, second, strict=True):
        assert row.means["randomized"] == pytest.approx((one + two) / 2)
        for other, (mean, half) in row.differences.items():
            assert mean == pytest.approx(row.means["randomized"] - row.means[other])
            assert half >= 0
    # two values d1, d2: the half width is t(0.975, 1) * |d1 - d2| / 2
    assert bench.mean_and_half_width(torch.tensor([0.1, 0.3]).numpy())[1] == pytest.approx(12.706 * 0.1, rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bench", "--device", "gpu"], ["device = 'gpu'", "cpu"]),
        (["bench", "--repeats", "0"], ["--repeats", "0"]),
        (["ran"], ["ran", "run"]),
        (["explore"], ["model", "randprune explore --help"]),
        (["run", "--seed", "one"], ["seed = 'one'", "whole number"]),
        (["run", "--methd", "imp"], ["--methd", "--method"]),
        (["run", "--method", "imq"], ["method = 'imq'", "Did you mean 'imp'"]),
        (["run", "--task", "mnits"], ["task = 'mnits'", "digits"]),
        (["run", "--model", "mlq"], ["model = 'mlq'", "Did you mean 'mlp'"]),
        (["run", "--model", "no.such:thing"], ["'no.such:thing'", "package.module:function"]),
        (["run", "--stages", "0.9,0.5"], ["[0.9, 0.5]", "rise strictly"]),
        (["run", "--stages", "0.5,0.9999"], ["0.9999", "4.weight"]),
        (["run", "--exclude", "zzz"], ["'zzz'", "0.weight"]),
        (["run", "--config", "nowhere.toml"], ["nowhere.toml", "TOML"]),
        (["resume", "nowhere"], ["nowhere", "no such run"]),
        (["report", "nowhere"], ["nowhere", "no run is there"]),
    ],
)
def test_a_wrong_command_line_is_one_red_line(arguments, words, command, monkeypatch, tmp_path):
    monkeypatch.setenv("RANDPRUNE_RUNS", str(tmp_path / "runs"))
    code, out, err = command(*arguments)
    assert code == 2
    assert out == ""
    assert len(err.splitlines()) == 1, err
    for word in words:
        assert word in err
    assert not (tmp_path / "runs").exists()  # refused before anything was made


def test_help_needs_no_torch():
    code = "import sys, randprune_lab.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_a_command_help_is_shown():
    """By the program itself."""
    done = subprocess.run([Path(sys.executable).with_name("randprune")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    for name in ("run", "resume", "stop", "runs", "report", "explore", "bench"):
        assert name in done.stdout


def test_threads_wait_passively():
    code = "import os, randprune_lab.cli; print(os.environ['OMP_WAIT_POLICY'])"
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    assert subprocess.check_output([sys.executable, "-c", code], text=True, env=environment).strip() == "PASSIVE"


# ---- in the background


def listed(command):
    code, out, err = command("runs", "--json")
    assert code == 0, err
    return {Path(run["folder"]).name: run for run in json.loads(out)["runs"]}


@pytest.fixture
def waiting(monkeypatch, tmp_path):
    """The folder of runs; its only slot is taken by this process, so that runs wait."""
    monkeypatch.setenv("RANDPRUNE_RUNS", str(tmp_path))
    monkeypatch.setenv("RANDPRUNE_SLOTS", "1")
    (tmp_path / "taken").mkdir()
    status.write(tmp_path / "taken", status.Record(state="running", queued_at=1, slot=0).of(psutil.Process()))
    yield tmp_path
    for record in status.all_live(tmp_path).values():
        if record.pid != os.getpid():
            status.kill(record.process())


def test_runs_in_the_background_are_listed_stopped_and_resumed(waiting, command):
    """Without options: the run of the README."""
    code, out, err = command("run", "--detach")
    assert (code, err) == (0, "")
    first, second = (Path(line.split(":")[0]) for line in out.splitlines()[:2])
    base = RunConfig(group=first.name)
    assert [store.read_config(folder) for folder in (first, second)] == [base, controls(base)["imp-matched"]]
    assert ("queued, next" in out, "queued, 2nd" in out) == (True, True)
    assert f"randprune stop {first.name} {second.name}" in out
    code, _, err = command("run", "--detach")
    assert code == 2
    assert "the same run waits or works already" in err
    assert first.name in err
    assert [listed(command)[folder.name]["position"] for folder in (first, second)] == [1, 2]
    code, out, _ = command("runs")
    assert "queued, 2nd" in out
    assert "imp-matched" in out
    code, out, err = command("stop", first.name, second, "--json")
    assert (code, err) == (0, "")
    assert [run["status"] for run in json.loads(out)["runs"]] == ["stopped", "stopped"]
    code, out, _ = command("stop", first.name)
    assert code == 2
    assert "stopped" in out
    shutil.rmtree(waiting / "taken")
    code, out, err = command("resume", second.name, "--detach", "--json")
    assert code == 0, err
    assert json.loads(out)["runs"][0]["folder"] == str(second)
    until(lambda: jobs.status(second).state == "running")
    code, out, err = command("stop", second.name)
    assert (code, err) == (0, "")


def test_a_finished_run_is_listed_and_not_resumed_in_the_background(main_job, command, monkeypatch):
    folder, _ = main_job
    monkeypatch.setenv("RANDPRUNE_RUNS", str(folder))
    run = store.runs(folder)[0].folder
    assert listed(command)[run.name]["status"] == "finished"
    assert listed(command)[run.name]["stages_done"] == 5
    code, _, err = command("resume", run, "--detach")
    assert code == 2
    assert "is finished, there is nothing to resume" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "--detach", "--track", "tensorboard"], ["--track", "foreground"]),
        (["run", "--detach", "--task", "mnits"], ["task = 'mnits'", "digits"]),
        (["run", "--detach", "--stages", "0.9,0.5"], ["rise strictly"]),
        (["run", "--detach", "--model", "object"], ["Python"]),
        (["resume", "nowhere", "--detach"], ["nowhere", "no such run"]),
        (["stop", "nowhere"], ["nowhere", "randprune runs"]),
    ],
)
def test_what_cannot_run_in_the_background_is_one_red_line(arguments, words, command, monkeypatch, tmp_path):
    monkeypatch.setenv("RANDPRUNE_RUNS", str(tmp_path / "runs"))
    code, out, err = command(*arguments)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1, err
    for word in words:
        assert word in err
    assert not (tmp_path / "runs").exists()


def test_failed_and_damaged_runs_are_listed_with_their_reasons(command, monkeypatch, tmp_path):
    monkeypatch.setenv("RANDPRUNE_RUNS", str(tmp_path))
    code, _, err = command("run", *SMALL, "--learning-rate", "1e30", "--no-controls")
    assert code == 2
    (name,) = listed(command)
    assert listed(command)[name]["status"] == "failed"
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "config.json").write_text("{")
    (tmp_path / "bad" / "events.jsonl").touch()
    code, out, _ = command("runs")
    assert code == 0
    assert [line for line in out.splitlines() if line.startswith(f"{name}: ") and "learning" in line], (out, err)
    assert [line for line in out.splitlines() if line.split()[:2] == ["bad", "damaged"]]
    assert [line for line in out.splitlines() if line.startswith("bad: ") and "config.json" in line]


@pytest.mark.parametrize(
    ("place", "word"), [(1, "next"), (2, "2nd"), (3, "3rd"), (4, "4th"), (11, "11th"), (21, "21st"), (112, "112th")]
)
def test_places_in_the_queue(place, word):
    assert terminal.shown_state(status.Status("queued", position=place)) == f"queued, {word}"


def test_in_a_narrow_window_words_wrap_and_numbers_do_not(monkeypatch, capsys):
    monkeypatch.setattr(terminal, "_console", lambda: Console(width=50, force_terminal=True, color_system=None))
    rows = [["a", "word " * 30, "1,234,567"]]
    terminal.print_table("title", ("name", "what", "number"), rows, words=("what",))
    out = capsys.readouterr().out
    assert out.count("word") == 30
    assert "1,234,567" in out
    assert max(map(len, out.splitlines())) <= 50
    numbers = [["encoder.layer.0", *10 * ["1,234,567"]]]
    terminal.print_table("title", ("name", *map(str, range(10))), numbers)  # wider than the window: whole all the same
    assert capsys.readouterr().out.count("1,234,567") == 10
