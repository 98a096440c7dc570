"""The runner of the groups: whatever dies, its table says so, and how many tests never ran."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import run_groups
from support.paths import ROOT, TESTS
from support.run_groups import DEFAULT, GROUPS, MARKERS, Outcome, run_group, table

QUICK = "def test_{}(): pass\n"
KILLS = """
import os, signal, time
def test_kills():
    os.kill({whom}, signal.SIGKILL)
    time.sleep(60)
"""


@pytest.fixture
def tests(tmp_path, monkeypatch):
    """A folder of three files with three tests each, and the command that runs them in two workers."""
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # they take longer than the tests
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    for name in "abc":
        (tmp_path / f"test_{name}.py").write_text("".join(QUICK.format(number) for number in range(3)))
    return tmp_path


def command(arguments: str) -> str:
    return f"{sys.executable} -m pytest -q -p no:cacheprovider -p support.record {arguments}"


def in_two(arguments: str = "") -> str:
    return command(f"-p xdist -n 2 --dist loadfile --max-worker-restart=0 {arguments}")


@pytest.mark.parametrize("run", [command, in_two], ids=["alone", "workers"])
def test_all_that_ran_is_counted(tests, run):
    (tests / "test_d.py").write_text(
        "import pytest\ndef test_0(): assert 0\ndef test_1(): pytest.skip('no such thing')\n"
        "@pytest.fixture\ndef broken(): raise OSError('made to fail')\ndef test_2(broken): pass\n"
    )
    found = run_group(run(""), 60, folder=tests)
    assert (found.code, found.wanted, found.never, found.problem) == (1, 12, 0, "")
    assert {name: number for name, number in found.counts.items() if number} == {
        "passed": 9,
        "failed": 1,
        "error": 1,
        "skipped": 1,
    }
    assert found.skipped == {"no such thing": 1}
    assert found.failed
    assert found.failures == 2


def test_one_that_is_whole_is_ok(tests):
    found = run_group(in_two(), 60, folder=tests)
    assert (found.code, found.wanted, found.never, found.failures, found.failed) == (0, 9, 0, 0, False)
    assert "FAILED" not in table({"whole": found})


@pytest.mark.parametrize(
    ("whom", "run"),
    [("os.getpid()", in_two), ("os.getppid()", in_two), ("os.getpid()", command)],
    ids=["a worker", "pytest itself", "pytest without workers"],
)
def test_what_is_killed_in_the_middle_is_named_with_what_never_ran(tests, monkeypatch, capfd, whom, run):
    """By the command as a whole: its last lines and its exit code."""
    (tests / "test_b.py").write_text(KILLS.format(whom=whom) + QUICK.format(1) + QUICK.format(2))
    orders = {
        "doomed": (run(""), 60.0, True),
        "after": (run("test_a.py"), 60.0, True),
    }
    monkeypatch.setattr(run_groups, "commands", lambda: orders)
    monkeypatch.setattr(run_groups, "ROOT", tests)
    monkeypatch.setitem(run_group.__kwdefaults__, "folder", tests)
    assert run_groups.main([]) == 1
    out = capfd.readouterr().out
    summary = out[out.rindex("group ") :]
    (never,) = re.findall(r"^doomed: (\d+) of 9 tests never ran, or did not end$", summary, re.MULTILINE)
    assert 3 <= int(never) <= 9
    assert re.search(r"^doomed  FAILED ", summary, re.MULTILINE)
    assert re.search(r"^ *after +ok +\d+ +3 +0 +0 +0$", summary, re.MULTILINE)  # the next one ran all the same
    assert (
        int(re.search(r"^3 passed, (\d+) failed$|^\d+ passed, (\d+) failed$", summary, re.MULTILINE)[0].split()[2]) >= 3
    )


@pytest.mark.crash
def test_one_that_hangs_is_ended_with_what_it_has_started(tests):
    (tests / "test_b.py").write_text(
        "import pathlib, subprocess, sys, time\n"
        "def test_hangs():\n"
        "    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "    pathlib.Path('child').write_text(str(child.pid))\n"
        "    time.sleep(600)\n"
    )
    found = run_group(command("test_a.py test_b.py test_c.py"), 15, folder=tests)
    assert found.problem == "ended after 15 s"
    assert (found.wanted, found.failed) == (7, True)
    assert found.never >= 3
    child = Path(f"/proc/{(tests / 'child').read_text()}/stat")
    assert not child.exists() or child.read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_worker_that_dies_fails_plain_pytest_loudly(tests):
    (tests / "test_b.py").write_text(KILLS.format(whom="os.getpid()"))
    done = subprocess.run(["bash", "-c", in_two()], cwd=tests, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert re.search(r"^\d+ of 7 tests never ran, or did not end\.$", done.stdout, re.MULTILINE)


def test_nothing_collected_is_a_failure(tests):
    found = run_group(command("-k nothing"), 60, folder=tests)
    assert found.failed
    assert table({"none": found}).endswith("none: no test was collected, or none could be written down")


def test_where_nothing_can_be_written_it_is_said_in_a_line(monkeypatch, capfd):
    monkeypatch.setattr(run_groups, "commands", lambda: {"any": (command(""), 60.0, True)})
    monkeypatch.setattr(run_groups.tempfile, "TemporaryDirectory", _full)
    assert run_groups.main([]) == 1
    assert "any: cannot be run ([Errno 28] No space left on device)" in capfd.readouterr().out


def _full(**_):
    raise OSError(28, "No space left on device")


def test_a_name_that_is_none_is_refused(capsys):
    assert run_groups.main(["crahs"]) == 2
    assert "unknown: crahs. There are readme, browser, cluster, crash," in capsys.readouterr().out


def test_every_marker_is_a_group_that_plain_pytest_leaves_out():
    settings = (ROOT / "pyproject.toml").read_text()
    assert (
        set(GROUPS)
        == set(MARKERS)
        == set(re.findall(r'^    "(\w+): ', settings[settings.index("markers = [") :], re.M))
    )
    assert f"-m '{DEFAULT}'" in settings


def test_the_table_says_what_was_skipped_and_why():
    outcome = Outcome(0, 61.4, 12, 0, {"passed": 3, "skipped": 9}, {"no Chromium: install it": 9})
    assert table({"browser": outcome, "lint": Outcome(0, 2.0)}).splitlines() == [
        "  group      seconds  passed  failed  skipped  never ran",
        "browser  ok       61       3       0        9          0",
        "   lint  ok        2",
        "browser: skipped 9: no Chromium: install it",
    ]


def test_the_readme_names_each_group():
    text = (ROOT / "README.md").read_text()
    for name, group in GROUPS.items():
        assert f"pytest {group.arguments}" in text, name
    assert os.fspath(Path("tests/support/run_groups.py")) in text
