"""The table of all methods: what each row is, one budget, pairs by seed, what diverged or collapsed, and its print."""

import json
import math

import pytest

from randprune_lab import contest as contest_module
from randprune_lab import terminal
from randprune_lab.checks import keep_count
from randprune_lab.contest import CHOSEN, DENSE, MAGNITUDE, ROWS, TASKS, Entry, contest, contest_base, row_config
from randprune_lab.methods import METHODS, planned_epochs

SMALL = {"dense_epochs": 2, "max_epochs": 5, "max_steps_per_epoch": 4}


@pytest.fixture
def here(monkeypatch):
    """Runs are made in this process: others take seconds to start, and one test has them."""
    made_here = lambda work, jobs, *_: {key: work(job) for key, job in jobs.items()}
    monkeypatch.setattr(contest_module, "in_processes", made_here)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("row", ROWS)
def test_every_row_trains_as_many_epochs(task, row):
    base = contest_base(task)
    config = row_config(base, row, 0.03, 1)
    planned = planned_epochs(config)
    assert sum(planned.values()) == base.dense_epochs + base.max_epochs
    assert (config.seed, config.distils) == (1, False)
    if row == DENSE:  # by the same plan as magnitude, and nothing is removed
        assert config == row_config(base, MAGNITUDE, 0.03, 1).model_copy(update={"stages": config.stages})
        assert keep_count(10**8, config.stages[0]) == 10**8
    else:
        assert config.stages == (0.97,)


def test_every_method_has_a_row():
    assert {"imp", *METHODS} - {"randomized-no-selection"} == {
        "imp",
        *(row.get("method", "imp") for row in ROWS.values()),
    }


def test_a_budget_without_room_for_candidates_is_refused():
    with pytest.raises(ValueError, match=r"max_epochs = 4.*Pass 5 or more"):
        row_config(contest_base("digits", max_epochs=4), CHOSEN, 0.1, 0)


@pytest.mark.parametrize(("arguments", "words"), [({"rows": ["magnitud"]}, "magnitude"), ({"rows": ["SNIPE"]}, "SNIP")])
def test_an_unknown_row_is_refused(arguments, words):
    with pytest.raises(ValueError, match=f"Did you mean '{words}'"):
        contest(contest_base("digits"), **arguments)


def test_an_unknown_task_is_refused():
    with pytest.raises(ValueError, match="Did you mean 'mnist'"):
        contest_base("mnits")


def test_rows_are_paired_by_seed_with_magnitude():
    heard = []
    entries = contest(
        contest_base("digits", **SMALL),
        rows=(DENSE, MAGNITUDE, "SNIP"),
        densities=(0.5, 0.2),
        seeds=2,
        processes=2,
        tell=lambda done, of: heard.append((done, of)),
    )
    assert heard[-1] == (10, 10)
    assert [(entry.row, entry.density) for entry in entries] == [
        (DENSE, 1.0), (MAGNITUDE, 0.5), (MAGNITUDE, 0.2), ("SNIP", 0.5), ("SNIP", 0.2),
    ]  # fmt: skip
    by_place = {(entry.row, entry.density): entry for entry in entries}
    for density in (0.5, 0.2):
        ours, theirs = by_place["SNIP", density], by_place[MAGNITUDE, density]
        gaps = [mine - other for mine, other in zip(ours.values, theirs.values, strict=True)]
        assert ours.ahead[0] == pytest.approx(sum(gaps) / 2)
        # two values: the half width is t(0.975, 1) * |d1 - d2| / 2
        assert ours.ahead[1] == pytest.approx(12.706 * abs(gaps[0] - gaps[1]) / 2, rel=1e-3)
        assert theirs.ahead is None
        assert ours.mean == pytest.approx(sum(ours.values) / 2)
    assert all(entry.seconds > 0 and not entry.diverged for entry in entries)
    assert by_place[DENSE, 1.0].mean > 0.5


@pytest.mark.usefixtures("here")
def test_what_diverged_and_what_collapsed_is_counted():
    (diverged,) = contest(
        contest_base("digits", **SMALL, learning_rate=1e30), rows=[MAGNITUDE], densities=[0.5], seeds=1, processes=1
    )
    assert (diverged.diverged, diverged.values, diverged.mean) == (1, (), None)
    (collapsed,) = contest(
        contest_base("digits", **SMALL, mask_sparsity_weight=1e6, mask_learning_rate=1.0),
        rows=["learned mask"],
        densities=[0.5],
        seeds=1,
        processes=1,
    )
    assert collapsed.collapsed == 1
    assert 0 < collapsed.mean < 1
    assert math.isfinite(collapsed.seconds)


@pytest.mark.usefixtures("here")
def test_what_a_model_cannot_take_is_left_out_and_the_reason_said(capsys, monkeypatch):
    base = contest_base("digits", model="tiny-vit", **SMALL)
    rows = [MAGNITUDE, "SynFlow"]
    entries = contest(base, rows=rows, densities=[0.5], seeds=1, processes=1)
    assert [bool(entry.refused) for entry in entries] == [False, True]
    assert entries[0].mean is not None
    assert (entries[1].diverged, entries[1].mean) == (0, None)
    monkeypatch.setenv("COLUMNS", "200")
    terminal.print_contest(base, 1, entries)
    assert "SynFlow, refused: synflow: ViTForImageClassification" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"synflow: ViT.*'snip' instead"):
        contest(base, rows=["SynFlow"], densities=[0.5], seeds=1, processes=1)


def test_the_table_tells_all_of_it(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    entries = [
        Entry(DENSE, 1.0, (0.98, 0.97), 0.975, 0.01, None, 0, 0, 7.0),
        Entry(MAGNITUDE, 0.1, (0.9, 0.8), 0.85, 0.05, None, 0, 0, 5.0),
        Entry("learned mask", 0.1, (0.95,), 0.95, None, None, 1, 1, 6.0),
        Entry("SNIP", 0.1, (), None, None, None, 2, 0, 6.0),
        Entry("RigL", 0.1, (0.9, 0.9), 0.9, 0.0, (0.05, 0.02), 0, 0, 6.0),
    ]
    terminal.print_contest(contest_base("digits"), 2, entries)
    out = capsys.readouterr().out
    for words in ("97.5 ± 1.0", "85.0 ± 5.0", "95.0!*", "diverged", "+5.0 ± 2.0", "75 epochs each", "seeds 0 to 1"):
        assert words in out


@pytest.mark.usefixtures("here")
def test_the_command(command):
    arguments = ["methods", "--rows", "magnitude, RigL", "--densities", "0.2", "--seeds", "2", "--processes", "1"]
    budget = ["--dense-epochs", "1", "--max-epochs", "1", "--max-steps-per-epoch", "3"]
    code, out, _ = command(*arguments, *budget, "--json")
    assert code == 0
    found = json.loads(out)
    assert [entry["row"] for entry in found["entries"]] == [MAGNITUDE, "RigL"]
    assert found["config"]["max_steps_per_epoch"] == 3
    code, out, _ = command(*arguments, *budget)
    assert code == 0
    assert "- magn. 0.2" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--densities", "0.1,1.5"], ["densities = '0.1,1.5'", "0.1,0.03,0.01"]),
        (["--densities", "a"], ["densities = 'a'"]),
        (["--rows", "imp"], ["row = 'imp'", "magnitude"]),
        (["--task", "glue/mrpc"], ["task = 'glue/mrpc'", "digits, mnist, cifar10"]),
        (["--seeds", "0"], ["--seeds"]),
    ],
)
def test_bad_arguments_are_one_sentence(command, arguments, words):
    code, _, error = command("methods", *arguments)
    assert code == 2
    assert all(word in error for word in words)
