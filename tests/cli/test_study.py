"""``randprune study`` as a user meets it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from randprune_lab import cli, study_cost, study_runs
from randprune_lab.cli_study import _changes
from randprune_lab.studies import built_in_studies
from randprune_lab.study_cost import Cost
from randprune_lab.study_runs import ASKS_FROM

FILE = """
title = "Does it pay?"
seeds = 1
[base]
stages = [0.5, 0.9]
dense_epochs = 1
max_epochs = 1
max_steps_per_epoch = 2
candidates = 3
[lines.randomized]
[lines.IMP]
control = "imp-matched"
of = "randomized"
[[claims]]
says = "It pays."
above = "randomized"
below = "IMP"
[small]
seeds = 2
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study, made by the real command: the folder of runs, the file, and what was printed as JSON."""
    folder = tmp_path_factory.mktemp("runs")
    file = folder.parent / "pays.toml"
    file.write_text(FILE)
    program = Path(sys.executable).with_name("randprune")
    environment = os.environ | {"RANDPRUNE_RUNS": str(folder)}
    command = [program, "study", file, "--processes", "1", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return folder, file, json.loads(done.stdout)


@pytest.fixture
def randprune(monkeypatch, capsys):
    """The command in this process: its exit code, and what it printed."""

    def call(*arguments, runs):
        monkeypatch.setenv("RANDPRUNE_RUNS", str(runs))
        monkeypatch.setattr(sys, "argv", ["randprune", "study", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr()
        return end.value.code or 0, said.out, said.err

    return call


def refused(said, words):
    """Exit code 2, and one line that holds the words."""
    code, out, err = said
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert words in err


def tree(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def test_json_holds_all_that_was_found(finished):
    folder, _, told = finished
    assert told["study"] == "pays"
    assert (told["runs"], told["of"]) == (2, 2)
    assert told["folder"] == str(folder / "studies" / "pays")
    (claim,) = told["claims"]
    assert (claim["says"], claim["verdict"], claim["number"]) == ("It pays.", "too few seeds to tell", 1)
    assert [row["label"] for row in told["summary"]] == ["randomized", "IMP"]
    assert [row["versus"] for row in told["differences"]] == ["IMP"]
    assert {path.name for path in (folder / "studies" / "pays").iterdir()} >= {
        "report.html",
        "results.csv",
        "study.json",
    }


def test_again_makes_no_run_and_prints_what_is_there(finished, randprune):
    folder, file, told = finished
    runs = tree(folder / "studies" / "runs")
    code, out, _ = randprune(file, runs=folder)
    assert code == 0
    assert tree(folder / "studies" / "runs") == runs
    assert "pays: 2 runs, 0 to make." in out
    assert "Does it pay?" in out
    assert f"It pays: too few seeds to tell. {told['claims'][0]['sentence']}" in out
    assert f"report: {folder / 'studies' / 'pays' / 'report.html'}" in out
    assert "…" not in out


def test_the_list(finished, randprune, command):
    folder, *_ = finished
    code, out, _ = randprune(runs=folder)
    assert code == 0
    for name in built_in_studies():
        assert re.search(rf"^ *{name} ", out, re.MULTILINE)
    assert re.search(r"^ *pays +Does it pay\? +2 of 2", out, re.MULTILINE)
    printed = out
    assert "2 more of studies, which randprune study lists" in command("runs")[1]
    refused(command("resume", folder / "studies" / "pays"), "is a study, not a run")
    code, out, _ = randprune("--json", runs=folder)
    told = json.loads(out)
    for study in told["built_in"]:  # to the last word
        assert re.search(r"\s+".join(map(re.escape, [study["name"], *study["question"].split()])), printed)
    assert [study["name"] for study in told["built_in"]] == list(built_in_studies())
    assert told["studies"] == [{"folder": str(folder / "studies" / "pays"), "done": 2, "of": 2}]
    code, out, _ = randprune("--json", runs=folder / "none")
    assert (code, json.loads(out)["studies"]) == (0, [])


def test_a_damaged_study_does_not_end_the_list(randprune, tmp_path):
    for name, content in {"a": "{", "b": "[]"}.items():
        (tmp_path / "studies" / name).mkdir(parents=True)
        (tmp_path / "studies" / name / "study.json").write_text(content)
    code, out, err = randprune(runs=tmp_path)
    assert (code, err) == (0, "")
    assert re.search(r"^ *a +damaged", out, re.MULTILINE)


def test_a_plan_says_the_cost_and_makes_nothing(finished, randprune, tmp_path):
    _, file, _ = finished
    code, out, _ = randprune(file, "--small", "--plan", "--processes", 3, runs=tmp_path / "none")
    assert code == 0
    assert re.search(r"pays-small: 4 runs, 4 to make\. About .+ with 3 at a time", " ".join(out.split()))
    code, out, _ = randprune(file, "--plan", "--json", runs=tmp_path / "none")
    told = json.loads(out)
    assert (told["study"], told["runs"], told["left"], told["processes"]) == ("pays", 2, 2, 2)
    assert told["seconds"] > 0
    assert not (tmp_path / "none").exists()


@pytest.fixture
def quick(monkeypatch):
    """No step is timed: a second a run."""
    monkeypatch.setattr(study_cost, "cost", lambda configs, processes: Cost(float(len(configs)), processes))


@pytest.fixture
def begun(monkeypatch):
    """The studies that would have been begun; none is."""
    studies = []

    def begin(asked, **_):
        studies.append(asked)
        raise KeyboardInterrupt

    monkeypatch.setattr(study_runs, "run_study", begin)
    return studies


@pytest.mark.usefixtures("quick")
def test_many_runs_are_not_begun_without_a_word(finished, randprune, begun, tmp_path, monkeypatch):
    _, file, _ = finished
    many = (file, "--set", "seeds=5000")
    code, out, err = randprune(*many, runs=tmp_path)
    assert code == 2
    assert "10,000 runs, 10,000 to make. About" in " ".join(out.split())
    assert f"10,000 runs are more than {ASKS_FROM}, and nobody is here to ask. Pass --yes." in err
    code, out, err = randprune(*many, "--json", runs=tmp_path)
    assert (code, out) == (2, "")
    assert "10,000 to make. About" in " ".join(err.split())
    assert not begun
    code, _, err = randprune(*many, "--yes", runs=tmp_path)
    assert (code, len(begun)) == (130, 1)
    assert "What is finished stays: the same command goes on." in err
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    answers = {"yes": lambda *_, **__: True, "no": lambda *_, **__: (_ for _ in ()).throw(typer.Abort)}
    for answer, studies in {"no": 1, "yes": 2}.items():
        monkeypatch.setattr(typer, "confirm", answers[answer])
        code, out, _ = randprune(*many, runs=tmp_path)
        assert (code, len(begun)) == (130, studies)
        assert "About" in out
    code, _, _ = randprune(file, "--set", f"seeds={ASKS_FROM // 2}", runs=tmp_path)  # so many are begun unasked
    assert len(begun) == 3


def test_too_many_are_refused(finished, randprune, tmp_path):
    _, file, _ = finished
    refused(randprune(file, "--yes", "--set", "seeds=50001", runs=tmp_path), "100,002 runs: at most 100,000")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["seeds"], "--set seeds: must be KEY=VALUE. Pass for example --set base.dataset=FOLDER."),
        (["=3"], "--set =3: must be KEY=VALUE"),
        (["base.sampels=3"], "field = 'sampels': unknown. Did you mean 'samples'?"),
        (["bas.samples=3"], "field of a study = 'bas': unknown. Did you mean 'base'?"),
        (["base=3"], "base = 3"),
        (["base.samples=0"], "lines.randomized: samples = 0: at least 1 mask must be drawn"),
        (["base.samples=many"], "samples = 'many': must be a whole number"),
        (["base.task=3"], "task = 3: must be a text"),
        (["base.power=nan"], "power = nan"),
        (["base=1", "base.samples=3"], "--set base.samples=3: base has been set to a value already"),
        (["base.=3"], "field = '': unknown"),
        (["lines.new.of=IMP"], "lines.new: control and of belong together"),
        (["seeds=[]"], "seeds: there is none"),
        (["name=runs"], "name = 'runs': the folder of that name"),
        (["seeds=4", "seeds=5"], "--set seeds=5: seeds has been set to a value already"),
        (["base.nope=-"], "nope = '-': would take away what is not there"),
        (["lines=-"], "lines: there is none"),
        (["base.a=" + 3000 * "["], "field = 'a': unknown"),
        (["base." * 2000 + "a=1"], "field = 'base': unknown"),
        (["small.seeds=3"], "field of a study = 'small': unknown"),
    ],
)
def test_settings_that_will_not_do(finished, randprune, tmp_path, settings, words):
    _, file, _ = finished
    given = [part for setting in settings for part in ("--set", setting)]
    refused(randprune(file, *given, runs=tmp_path), words)
    assert not list(tmp_path.iterdir())


def test_settings_are_values_as_toml_has_them_else_texts():
    assert _changes(
        ["base.dataset=/a/b=c", "seeds=4", "grid.samples=[1, 2]", 'base.task="digits"', "base.power=1e-3"]
    ) == {
        "base": {"dataset": "/a/b=c", "task": "digits", "power": 1e-3},
        "seeds": 4,
        "grid": {"samples": [1, 2]},
    }
    assert _changes(["lines.b=-", "lines.c=-", "seeds=-"]) == {"lines": {"b": "-", "c": "-"}, "seeds": "-"}
    assert _changes(["lines.a b.x=-", "log=true"]) == {"lines": {"a b": {"x": "-"}}, "log": True}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["figure-33"], "study = 'figure-33': unknown. Did you mean 'figure-3'?"),
        (["none.toml"], "none.toml: cannot be read as TOML"),
        (["figure-3", "--executor", "threads"], "executor = 'threads': unknown"),
        (["figure-3", "--ray-address", "auto"], "are for --executor ray. Pass it, too."),
        (["figure-3", "--processes", "0"], "processes"),
        (["figure-3", "--name", "../up"], "name = '../up'"),
        (["figure-3", "--bad"], "--bad"),
    ],
)
def test_bad_calls(randprune, tmp_path, arguments, words):
    refused(randprune(*arguments, runs=tmp_path), words)


def test_a_folder_of_another_study(finished, randprune):
    folder, file, _ = finished
    before = tree(folder)
    _, out, err = said = randprune(file, "--set", "base.max_epochs=2", runs=folder)
    refused((said[0], "", err), "holds another study of this name")
    assert " to make" not in out  # at once, not after its cost was timed
    assert tree(folder) == before
    code, out, _ = randprune(file, "--set", "title=Other", "--name", "other", runs=folder)  # the runs are shared
    assert code == 0
    assert tree(folder / "studies" / "runs").items() <= before.items()
    (folder / "studies" / "other" / "study.json").unlink()


def test_a_disk_that_cannot_be_written(finished, randprune, tmp_path):
    _, file, _ = finished
    (tmp_path / "file").write_text("no folder")
    code, _, err = randprune(file, runs=tmp_path / "file")
    assert code == 2
    assert err.count("\n") == 1
    assert "cannot be written" in err
    assert "the same command goes on" in err
