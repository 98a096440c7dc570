"""What a run will cost: held against what real runs cost."""

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from support.runs import small

from randprune_lab import estimate as estimates
from randprune_lab import store
from randprune_lab.config import RunConfig
from randprune_lab.engine import prune
from randprune_lab.estimate import Asking, Estimate, estimate
from randprune_lab.files import free_disk
from randprune_lab.outcome import conclude

TINY = {"stages": (0.5, 0.9), "dense_epochs": 4, "max_epochs": 3, "candidates": 4, "device": "cpu"}


def run_it(folder: Path, config: RunConfig) -> float:
    """Seconds of CPU time that the real run takes."""
    begun = time.process_time()
    list(store.record(folder, prune(config)))
    return time.process_time() - begun


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def answer_of(asking: Asking, seconds: float = 180) -> Estimate | str | None:
    until = time.monotonic() + seconds
    while asking.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    return asking.poll()


# ---- held against real runs


@pytest.mark.speed
@pytest.mark.parametrize(
    "settings",
    [
        {"stages": (0.54, 0.83), "dense_epochs": 15, "max_epochs": 8},
        {"stages": (0.9,), "dense_epochs": 2, "max_epochs": 2, "candidates": 16, "emep_epochs": 3},
        {"model": "tiny-vit", "stages": (0.5,), "dense_epochs": 2, "max_epochs": 2, "attention_weight": 1.0}
        | {"hidden_weight": 1.0, "max_steps_per_epoch": 8},
        {"method": "imp", "stages": (0.5, 0.7), "dense_epochs": 10, "max_epochs": 10, "logit_weight": 0.0},
    ],
)
def test_seconds_within_a_factor_of_two(tmp_path, settings, record_property):
    config = RunConfig(**{"device": "cpu"} | settings)
    run_it(tmp_path / "warm", config.model_copy(update={"dense_epochs": 1, "max_epochs": 1, "stages": (0.5,)}))
    expected = estimate(config).seconds
    taken = run_it(tmp_path / "run", config)
    record_property("measured", f"estimate / run: {expected / taken:.2f}")
    assert 0.5 < expected / taken < 2


@pytest.mark.parametrize("keep_stages", ["all", "last"])
def test_disk_within_15_percent(tmp_path, keep_stages):
    config = RunConfig(**TINY | {"keep_stages": keep_stages, "stages": (0.3, 0.5, 0.7, 0.9), "max_steps_per_epoch": 2})
    run_it(tmp_path, config)
    conclude(tmp_path)
    assert estimate(config).disk_bytes == pytest.approx(size_of(tmp_path), rel=0.15)


def test_more_candidates_cost_more_seconds_and_more_memory_at_once():
    few, many = (estimate(RunConfig(**TINY | {"candidates": number})) for number in (2, 40))
    assert many.seconds > few.seconds
    assert many.memory_bytes > few.memory_bytes + 20 * 3 * 4 * 50_000  # weights and two moments of 50,000 weights
    assert few.disk_bytes == pytest.approx(many.disk_bytes, rel=0.01)


def test_a_race_is_counted_by_its_rounds():
    """Eight candidates and 100 steps: the teacher once a wave and step, each candidate's steps, and all evaluations."""

    def plan(**settings):
        found = object.__new__(estimates._Plan)
        found.config, found.steps = RunConfig(**{"emep_epochs": 2} | settings), lambda _: 50
        found.wave = lambda: 3
        return found

    cost = 25 * (3 + 8 * 0.1) + 25 * (2 + 4 * 0.1) + 50 * (1 + 2 * 0.1) + (8 + 4 + 2) * 7
    assert plan(racing=True).race(1.0, 0.1, 7.0) == pytest.approx(cost)
    assert plan().race(1.0, 0.1, 7.0) == pytest.approx(100 * (3 + 8 * 0.1) + 8 * 7)


# ---- in words


def test_the_sentence():
    told = estimate(RunConfig(**TINY))
    assert told.sentence.startswith("About ")
    assert told.sentence.endswith(" ms, measured just now.")
    assert " of memory, " in told.sentence
    assert " on disk; one training step takes " in told.sentence
    assert 0 < told.step_seconds < told.seconds
    assert estimate(RunConfig(**TINY | {"patience": 2})).sentence.startswith("At most about ")


def test_it_warns_where_memory_or_disk_will_not_do(monkeypatch):
    assert estimate(RunConfig(**TINY)).warnings == ()
    monkeypatch.setattr(estimates, "free_disk", lambda _: 1000)
    monkeypatch.setattr(estimates, "free_memory", lambda _: -(2**50))
    disk, memory = estimate(RunConfig(**TINY)).warnings
    assert "1 kB free, the run needs up to " in disk
    assert "Close other programs" in memory


def test_the_free_disk_of_a_folder_that_is_not_there_yet(tmp_path):
    assert free_disk(tmp_path / "a" / "b") > 0


# ---- it checks all and changes nothing


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model": "some/model-that-is-nowhere"}, "some/model-that-is-nowhere"),
        ({"model": "mpl"}, "Did you mean 'mlp'"),
        ({"task": "sentences"}, "needs a model with a tokenizer"),
        ({"device": "mps"}, "device = 'mps': not available here"),
        ({"stages": (0.99999999,)}, "would be kept"),
        ({"include": ("nothing",)}, "matches no prunable parameter"),
        ({"hidden_weight": 1.0}, "hidden_weight and attention_weight are for transformers"),
        ({"racing": True, "candidates": 40}, "racing with 40 candidates has 6 rounds"),
    ],
)
def test_what_prune_refuses_is_refused_before(settings, said):
    config = RunConfig(**TINY | settings)
    with pytest.raises(ValueError, match=said) as ours:
        estimate(config)
    with pytest.raises(ValueError, match=said) as theirs:
        prune(config)
    assert str(ours.value) == str(theirs.value)


def test_nothing_is_left_behind(tmp_path, monkeypatch):
    import torch

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RANDPRUNE_RUNS", str(tmp_path / "runs"))
    threads, random = torch.get_num_threads(), torch.get_rng_state()
    estimate(RunConfig(**TINY | {"threads": threads + 1}))
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), random)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "settings",
    [
        {"batch_size": 10**18},
        {"max_epochs": 10**15},
        {"candidates": 1000, "wave": 3},
        {"executor": "serial", "candidates": 2},
        {"max_steps_per_epoch": 5, "emep_steps": 2},
        {"dense_epochs": 0},
        {"method": "randomized-no-selection"},
        {"scope": "global", "candidates": 1},
        {"select_on": "validation", "sampler": "exact"},
    ],
)
def test_odd_settings(settings):
    told = estimate(RunConfig(**TINY | settings))
    assert told.seconds > 0
    assert told.memory_bytes > 0
    assert "inf" not in told.sentence


def test_texts_and_their_copies(monkeypatch):
    config = RunConfig(**TINY | {"task": "sentences", "model": "tiny-bert", "max_steps_per_epoch": 4})
    plain = estimate(config)
    assert plain.seconds > 0
    monkeypatch.setattr(estimates, "augment", lambda rows, **_: rows)  # tiny-bert is no masked language model
    plan = config.model_copy(update={"augment": 3, "max_steps_per_epoch": None})
    assert estimate(plan).seconds > 2 * plain.seconds


# ---- in a process of its own


def test_main_says_problems(monkeypatch, capsys):
    for given, said in (("{}x", "Invalid JSON"), ('{"model": "mpl"}', "Did you mean 'mlp'"), ("", "Invalid JSON")):
        monkeypatch.setattr("sys.stdin", io.StringIO(given))
        monkeypatch.setattr(estimates, "_own_process", lambda: None)  # this one stays as it is
        estimates.main()
        assert said in json.loads(capsys.readouterr().out)["problem"]


def test_asking_says_what_the_function_says(tmp_path, monkeypatch):
    """A file of the working folder that has the name of a module is none to it."""
    (tmp_path / "random.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    asking = Asking(small())
    assert asking.poll() is None
    told = answer_of(asking)
    assert isinstance(told, Estimate)
    assert told.sentence.startswith("About ")
    assert told.disk_bytes == estimate(small()).disk_bytes
    assert asking.poll() is told
    asking.cancel()
    assert asking.poll() is told


def test_what_cannot_be_is_said_by_the_process_and_by_who_asked_it(monkeypatch):
    """The process is asked as the room's first lines have it; whoever asks in Python hears what it printed."""
    command = [sys.executable, "-m", "randprune_lab.estimate"]
    given = small(model="mpl").model_dump_json()
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=True, timeout=180)
    assert "Did you mean 'mlp'" in json.loads(done.stdout)["problem"]
    printing = [sys.executable, "-c", f"print({done.stdout.strip()!r})"]
    monkeypatch.setattr(estimates, "module_command", lambda _: printing)
    assert answer_of(Asking(small(model="mpl"))) == json.loads(done.stdout)["problem"]


def test_cancelled_forgotten_or_late_it_leaves_no_process(monkeypatch):
    cancelled, forgotten, late = Asking(small()), Asking(small()), Asking(small())
    processes = [psutil.Process(asking._process.pid) for asking in (cancelled, forgotten, late)]
    assert all(process.is_running() for process in processes)
    cancelled.cancel()
    assert "cancelled" in str(cancelled.poll())
    del forgotten
    monkeypatch.setattr(estimates, "LONGEST_WAIT", -1.0)
    assert "ten minutes" in str(late.poll())
    assert not psutil.wait_procs(processes, timeout=180)[1]


def test_a_process_that_is_killed_is_said():
    asking = Asking(small())
    asking._process.kill()
    assert str(answer_of(asking)).startswith("No estimate: its process ended with code")


@pytest.mark.crash
@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_it_ends_with_whoever_asked(tmp_path):
    """In the middle of an estimate that would never end."""
    (tmp_path / "endless.py").write_text("import time\nopen('here', 'w').close()\ntime.sleep(3600)\n")
    code = """
import os, time
from randprune_lab.config import RunConfig
from randprune_lab.estimate import Asking
asking = Asking(RunConfig(model="endless:model"))
while not os.path.exists("here"):
    time.sleep(0.02)
print(asking._process.pid, flush=True)
os.kill(os.getpid(), 9)
"""
    command = [sys.executable, "-c", code]
    asker = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False, cwd=tmp_path)
    pid = int(asker.stdout)
    until = time.monotonic() + 180
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE and time.monotonic() < until:
        time.sleep(0.1)
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("field", ["model", "task", "criterion"])
def test_what_is_given_from_python_alone_cannot_be_estimated(field):
    with pytest.raises(ValueError, match=f"{field} = 'object' stands for one that is given from Python"):
        estimate(RunConfig().model_copy(update={field: "object"}))
