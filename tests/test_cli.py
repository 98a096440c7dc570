"""The command line as a user meets it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from randprune_lab.checks import keep_count

SIZES = (64 * 300, 300 * 100, 100 * 10)


def randprune(*arguments, **environment):
    program = Path(sys.executable).with_name("randprune")
    return subprocess.run(
        [program, *map(str, arguments)], capture_output=True, text=True, check=False, env=os.environ | environment
    )


@pytest.fixture(scope="module")
def run():
    return randprune("run", "--json")


def test_run_prunes_real_digits_to_exactly_its_sparsities(run):
    assert run.returncode == 0, run.stderr
    said = json.loads(run.stdout)
    assert said["dense"]["test"]["accuracy"] > 0.9
    for method in ("imp", "randomized"):
        assert [stage["kept"] for stage in said[method]] == [
            sum(keep_count(size, sparsity) for size in SIZES) for sparsity in (0.54, 0.83, 0.91, 0.9375, 0.97)
        ]
    assert all(stage["ir"] == 0 == stage["winner"] for stage in said["imp"])
    assert any(stage["ir"] > 0 for stage in said["randomized"])
    assert all((stage["ir"] > 0) == (stage["winner"] > 0) for stage in said["randomized"])


def test_the_same_seed_prints_the_same_table_and_it_is_what_the_run_said(run):
    one, again = randprune("run", COLUMNS="80"), randprune("run", COLUMNS="80")
    assert one.stdout == again.stdout
    for stage in json.loads(run.stdout)["randomized"]:
        (line,) = [line for line in one.stdout.splitlines() if line.split()[:1] == [str(stage["stage"])]]
        winner = f"mask {stage['winner']}" if stage["winner"] else "plain"
        for cell in (f"{stage['sparsity']:.4f}", winner, f"{stage['ir']:.4f}", f"{stage['test']['accuracy']:.1%}"):
            assert cell in line
    assert "…" not in one.stdout  # nothing is clipped


def test_bench_measures_what_it_names(command):
    code, out, err = command("bench", "--repeats", 1, "--json")
    assert code == 0, err
    rows = {row["name"]: row for row in json.loads(out)["measured"]}
    assert len(rows) == 11
    assert all(row["value"] > 0 for row in rows.values())
    loop = next(row for name, row in rows.items() if "110 torch.multinomial" in name)
    first = rows["random_mask, first of a stage"]
    assert rows["paper's loop / random_mask"]["value"] == pytest.approx(loop["value"] / first["value"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bench", "--device", "gpu"], ["device = 'gpu'", "cpu"]),
        (["bench", "--repeats", "0"], ["--repeats", "0"]),
        (["ran"], ["ran", "run"]),
        (["explore"], ["model", "randprune explore --help"]),
        (["run", "--seed", "one"], ["--seed", "one"]),
    ],
)
def test_a_wrong_command_line_is_one_red_line(arguments, words, command):
    code, out, err = command(*arguments)
    assert code == 2
    assert out == ""
    assert len(err.splitlines()) == 1, err
    for word in words:
        assert word in err


def test_help_needs_no_torch():
    code = "import sys, randprune_lab.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert "explore" in randprune("--help").stdout


def test_threads_wait_passively():
    code = "import os, randprune_lab.cli; print(os.environ['OMP_WAIT_POLICY'])"
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    assert subprocess.check_output([sys.executable, "-c", code], text=True, env=environment).strip() == "PASSIVE"


def test_without_a_command_help_is_shown(command):
    code, out, err = command()
    assert (code, err) == (0, "")
    assert "explore" in out
