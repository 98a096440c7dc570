"""Panels 6 to 8 as tables, against the files of real runs read without the package's help; damage is said."""

import csv
import io
import itertools
import json
import math
import os
import shutil
import statistics
import sys
import time
import zipfile
from xml.etree import ElementTree

import numpy as np
import pytest
import scipy
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.runs import boundary_file, checkpoint_files, go_on, journal, read_tensors, small, stop_after, unpacked

from randprune_lab import charts, comparing, curves, figures, jobs, listing, live, pictures, store
from randprune_lab import journal as journals
from randprune_lab.config import RunConfig, controls
from randprune_lab.histogram import MagnitudeHistogram
from randprune_lab.places import Places
from randprune_lab.status import Record, Status, write

PARTS = {"progress", "ladder", "lanes", "epochs", "near", "log"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two seeds of a run and of its control, and a run that was stopped while it judged."""
    parent = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        config = small(seed=seed, group="pair", stages=(0.5, 0.8, 0.9))
        go_on(parent / f"random-{seed}", config)
        go_on(parent / f"matched-{seed}", controls(config)["imp-matched"])
    stop_after(parent / "stopped", small(seed=2), 9)
    return parent


def copied(source, target, *, lines=None):
    """A copy of a run's folder, its journal cut after some ``lines``."""
    shutil.copytree(source, target)
    if lines is not None:
        path = target / "events.jsonl"
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:lines]))
    return target


def of_kind(folder, kind):
    return [line for line in journal(folder) if line["kind"] == kind]


def test_a_finished_run(runs):
    folder = runs / "random-0"
    view = live.live_view(folder)
    (end,) = of_kind(folder, "run_finished")
    assert (view["status"], view["is_live"], view["can_resume"], view["damage"]) == ("finished", False, False, "")
    assert view["title"] == "digits, mlp: randomized, seed 0"
    assert view["result"]["score"] == end["test"]["metric"]
    assert f"{100 * end['test']['metric']:.1f} %" in view["result"]["sentence"]
    assert "0.9000 (10.0x)" in view["result"]["sentence"]
    assert view["result"]["sentence"].endswith("One seed: not a result.")
    assert view["progress"]["share"] == 1
    assert view["progress"]["left"] is None
    times = [line["time"] for line in journal(folder)]
    assert view["progress"]["elapsed"] == pytest.approx(times[-1] - times[0], abs=1e-6)
    assert all(view[part]["sentence"].endswith(".") for part in PARTS)
    assert view["events"] == len(journal(folder))


def test_lanes_and_epochs_are_those_of_the_journal(runs):
    folder = runs / "random-1"
    view = live.live_view(folder)
    judged = {(line["stage"], line["candidate"]): line for line in of_kind(folder, "candidate_scored")}
    winners = {line["stage"]: line["winner"] for line in of_kind(folder, "mask_chosen")}
    assert {(row["stage"], row["candidate"]) for row in view["lanes"]["rows"]} == judged.keys()
    for row in view["lanes"]["rows"]:
        line = judged[row["stage"], row["candidate"]]
        assert (row["score"], row["loss"]) == (line["selection"]["metric"], line["selection"]["loss"])
        assert (row["ir"], row["swapped"]) == (line["ir"], line["swapped"])
        assert row["winner"] == (winners[row["stage"]] == row["candidate"])
        assert row["state"] == ("winner" if row["winner"] else "judged")
        assert row["name"] == (f"random mask {row['candidate']}" if row["candidate"] else "plain mask")
    trained = of_kind(folder, "epoch_finished")
    assert [row["loss"] for row in view["epochs"]["rows"]] == [line["loss"] for line in trained]
    assert [row["score"] for row in view["epochs"]["rows"]] == [line["selection"]["metric"] for line in trained]
    assert "it contains the distillation" in view["epochs"]["sentence"]


def test_shares_near_tau_are_those_of_the_weights(runs):
    """From the weights at each stage's beginning, each tensor with its own tau; bins are 0.8 % wide."""
    folder = runs / "random-0"
    chosen = of_kind(folder, "mask_chosen")
    rows = live.live_view(folder)["near"]["rows"]
    assert [row["ir"] for row in rows] == [line["ir"] for line in chosen]
    for row in rows:
        tensors = read_tensors(boundary_file(folder, row["stage"] - 1))
        near = total = 0
        for label in [label for label in tensors if label.startswith("mask.")]:
            weight = tensors[f"model.{label[5:]}"]
            alive = unpacked(tensors[label], weight.shape)
            magnitudes = np.abs(weight.numpy())[alive]
            keep = weight.numel() - round(row["sparsity"] * weight.numel())
            tau = np.sort(magnitudes)[-keep]
            near += int(((magnitudes >= 2 / 3 * tau) & (magnitudes < 4 / 3 * tau)).sum())
            total += len(magnitudes)
        assert row["share"] == pytest.approx(near / total, abs=0.02)


def test_share_near_one_tau_of_everything():
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(5_000, generator=generator), 3 * torch.randn(3_000, generator=generator)
    histograms = {"one": MagnitudeHistogram.of(one), "other": MagnitudeHistogram.of(other)}
    together = MagnitudeHistogram.of(torch.cat([one, other]))
    expected = figures.threshold_rows(together, [0.8])[0]["share"]
    assert figures.share_near(histograms, 0.8, whole=True) == pytest.approx(expected)
    shares = [figures.threshold_rows(histogram, [0.8])[0]["share"] for histogram in histograms.values()]
    apart = figures.share_near(histograms, 0.8)
    assert apart == pytest.approx((5 * shares[0] + 3 * shares[1]) / 8)
    assert apart != pytest.approx(expected, abs=1e-3)


def test_a_run_is_followed_line_by_line(runs, tmp_path, monkeypatch):
    """While the journal grows, what was read before is not read again, and the views are those of a fresh reader."""
    source = (runs / "random-0" / "events.jsonl").read_bytes().splitlines(keepends=True)
    folder = copied(runs / "random-0", tmp_path / "growing", lines=0)
    monkeypatch.setattr(jobs, "status", lambda _: Status("running", age=1.0))
    read: list[object] = []
    parse = journals.from_json
    monkeypatch.setattr(journals, "from_json", lambda record: (read.append(record), parse(record))[1])
    doing, shares = [], []
    for line in source:
        with (folder / "events.jsonl").open("ab") as file:
            file.write(line[:-5])
            file.flush()
            before = live.live_view(folder)  # half a line is no damage
            file.write(line[-5:])
        view = live.live_view(folder)
        assert before["damage"] == view["damage"] == ""
        assert view["events"] == before["events"] + 1
        doing.append(view["progress"]["doing"])
        shares.append(view["progress"]["share"])
        assert doing[-1] in view["progress"]["sentence"]
        assert f"{100 * shares[-1]:.0f} % of the planned epochs" in view["progress"]["sentence"]
    assert len(read) == len(source)
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0, 1)
    expected = [
        "Dense network: epoch 1 of 2",
        "Dense network: epoch 2 of 2",
        "Dense network: draws the first masks",
        "Stage 1 of 3: judging mask 1 of 3",
        "Stage 1 of 3: judging mask 2 of 3",
        "Stage 1 of 3: fine-tuning, epoch 1 of 2",
        "Stage 1 of 3: is finished, stage 2 draws its masks",
        "Stage 3 of 3: judging mask 3 of 3",
        "Stage 3 of 3: writes the result",
        "Finished",
    ]
    places = [doing.index(text) for text in expected]
    assert places == sorted(places)
    fresh = journals._Reader(folder / "events.jsonl").read()
    assert journals.read_journal(folder) == fresh


def test_what_came_again_after_a_resume_is_told_once(runs, tmp_path):
    folder = copied(runs / "stopped", tmp_path / "resumed")
    live.live_view(folder)
    go_on(folder, small(seed=2))
    found = journals.read_journal(folder)
    assert list(found.events) == store.story(folder)
    assert live.live_view(folder)["status"] == "finished"


def test_pauses_are_no_work(runs, tmp_path):
    folder = copied(runs / "stopped", tmp_path / "paused")
    lines = journal(folder)
    for place, line in enumerate(lines):
        line["time"] = 1000.0 + 10 * place
    worked = 10 * (len(lines) - 1)
    last = {"kind": "resumed", "supersedes": len(lines) - 1, "recorded": len(lines), "time": 90_000.0}
    again = {**lines[-1], "time": 90_007.0}
    (folder / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*lines, last, again]))
    assert live.live_view(folder)["progress"]["elapsed"] == worked + 7
    assert journals.read_journal(folder).started == 1000.0


def test_time_left_is_told_from_the_pace(runs, tmp_path, monkeypatch):
    """Every epoch took 10 s, also those of judging; while it runs, the time since the last line counts."""
    folder = copied(runs / "random-0", tmp_path / "timed")
    clock, lines = 0.0, []
    for line in journal(folder):
        clock += 10 * (line["kind"] in ("epoch_finished", "candidate_scored"))
        lines.append({**line, "time": clock})
    cut = next(place for place, line in enumerate(lines) if line["kind"] == "mask_chosen" and line["stage"] == 2)
    done = lines[: cut + 2]  # and one epoch of fine-tuning
    (folder / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in done))
    planned = 2 + 3 * (3 + 2)
    left = planned - (2 + 3 + 2 + 3 + 1)
    view = live.live_view(folder)
    assert view["progress"]["share"] == pytest.approx(1 - left / planned)
    assert view["progress"]["left"] == pytest.approx(10 * left)
    assert view["progress"]["elapsed"] == done[-1]["time"]
    monkeypatch.setattr(jobs, "status", lambda _: Status("running", age=0.5))
    later = live.live_view(folder, now=done[-1]["time"] + 4)
    assert later["progress"]["left"] == pytest.approx(10 * left - 4)
    assert later["progress"]["elapsed"] == done[-1]["time"] + 4
    assert later["heartbeat"] == "alive, heartbeat 0 s ago"
    write(folder, Record(state="running", queued_at=int(1e9 * (done[-1]["time"] + 1))))  # resumed, and still loading
    assert live.live_view(folder, now=done[-1]["time"] + 99)["progress"]["elapsed"] == done[-1]["time"]


def test_who_is_judged_now(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "status", lambda _: Status("running", age=30.0))
    folder = copied(runs / "random-0", tmp_path / "judging")
    cut = next(place for place, line in enumerate(journal(folder)) if line["kind"] == "candidate_scored")
    lines = journal(folder)[: cut + 1]
    lines[-1] |= {"selection": None, "failed": "the loss became NaN"}
    (folder / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = store.read_config(folder)

    def states(**changes):
        (folder / "config.json").write_text(config.model_copy(update=changes).model_dump_json())
        return [row["state"] for row in live.live_view(folder)["lanes"]["rows"]]

    assert states() == ["failed", "judging", "judging"]
    assert states(wave=1) == states(executor="serial") == ["failed", "judging", "waiting"]
    view = live.live_view(folder)
    assert view["lanes"]["rows"][0]["failed"] == "the loss became NaN"
    assert view["lanes"]["sentence"] == "Stage 1 of 3: 0 of 3 masks are judged, 1 failed."
    assert view["heartbeat"] == "no heartbeat for 30 s"
    monkeypatch.setattr(jobs, "status", lambda _: Status("stopped"))
    assert states() == ["failed", "waiting", "waiting"]
    assert live.live_view(folder)["progress"]["doing"].startswith("Stands at stage 1 of 3")


def test_a_run_that_waits_and_one_that_has_nothing(tmp_path, monkeypatch):
    folder = tmp_path / "queued"
    folder.mkdir()
    (folder / "config.json").write_text(small().model_dump_json())
    monkeypatch.setattr(jobs, "status", lambda _: Status("queued", position=2))
    view = live.live_view(folder)
    assert view["progress"]["doing"] == "Waits for its turn, position 2 in the queue"
    assert view["heartbeat"] == "queued, position 2"
    assert (view["ladder"]["sentence"], view["events"]) == ("The dense network is not trained yet.", 0)
    monkeypatch.setattr(jobs, "status", lambda _: Status("running"))
    assert live.live_view(folder)["progress"]["doing"] == "Loads model and data"
    monkeypatch.undo()
    gone = live.live_view(tmp_path / "nothing")
    assert (gone["status"], gone["can_resume"]) == ("gone", False)
    assert "deleted or renamed" in gone["damage"]
    assert set(gone) == set(view)


def test_the_control_judges_nothing(runs):
    view = live.live_view(runs / "matched-0")
    assert view["lanes"]["sentence"] == "The method imp has one mask a stage: there is nothing to judge."
    assert {row["state"] for row in view["lanes"]["rows"]} == {"winner"}
    assert view["progress"]["share"] == 1


def test_the_log_is_shown_from_its_end(runs, tmp_path):
    folder = copied(runs / "stopped", tmp_path / "logged")
    (folder / "log.txt").write_bytes(
        b"".join(b"line %d \x1b[31mred\x1b[0m\r\n" % place for place in range(5_000)) + b"\xff"
    )
    lines = live.live_view(folder)["log"]["lines"]
    assert lines[-2:] == ["line 4999 red", "�"]
    assert len(lines) == live.LOG_LINES
    assert live.live_view(runs / "stopped")["log"] == {"lines": [], "sentence": "There is no log."}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.4, "59 s"), (60, "1 min"), (190, "3 min 10 s"), (7500, "2 h 5 min"), (273_600, "3 d 4 h")],
)
def test_durations(seconds, text):
    assert live.duration(seconds) == text


# Damage --------------------------------------------------------------------------------------------------------------

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def check_views(folder, others):
    """Every view of a folder holds together, and its neighbours are as they were."""
    view = live.live_view(folder)
    assert all(isinstance(view[part]["sentence"], str) for part in PARTS)
    assert isinstance(view["status"], str)
    rows = listing.history_rows(folder.parent)
    assert all({"name", "status", "message", "note", "score", "started"} <= row.keys() for row in rows)
    together = live.compare_view([folder, *others])
    assert {run["name"] for run in together["runs"]} >= {other.name for other in others}
    return view, {row["name"]: row for row in rows}, together


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_field_of_a_journal_that_holds_anything(runs, tmp_path_factory, data):
    folder = copied(runs / "random-0", tmp_path_factory.mktemp("damaged") / "run")
    lines = journal(folder)
    line = data.draw(st.sampled_from(lines))
    name = data.draw(st.sampled_from(sorted(line)))
    line[name] = data.draw(ANYTHING)
    (folder / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    check_views(folder, [runs / "random-1"])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(["events.jsonl", "config.json", "status.json", "histograms/0.json"]), content=st.binary())
def test_a_file_that_holds_anything(runs, tmp_path_factory, name, content):
    folder = copied(runs / "random-0", tmp_path_factory.mktemp("damaged") / "run")
    (folder / name).write_bytes(content)
    check_views(folder, [runs / "random-1"])


def test_a_damaged_line_is_told_and_what_stands_before_it_is_shown(runs, tmp_path):
    folder = copied(runs / "random-0", tmp_path / "runs" / "broken")
    shutil.copytree(runs / "random-1", folder.parent / "whole")
    lines = (folder / "events.jsonl").read_bytes().splitlines(keepends=True)
    lines[8] = b'{"kind": "epoch_fin\n'
    (folder / "events.jsonl").write_bytes(b"".join(lines))
    view, rows, together = check_views(folder, [folder.parent / "whole"])
    assert "line 9 is damaged" in view["damage"]
    assert view["status"] == rows["broken"]["status"] == "damaged"
    assert "line 9 is damaged" in rows["broken"]["message"]
    assert view["events"] == 8
    assert view["ladder"]["rows"]
    assert str(tmp_path) not in view["message"] + view["damage"] + rows["broken"]["message"]
    assert rows["whole"]["status"] == "finished"
    assert [run["name"] for run in together["damaged"]] == ["broken"]
    (folder / "events.jsonl").write_bytes((runs / "random-0" / "events.jsonl").read_bytes())  # restored
    assert live.live_view(folder)["damage"] == ""


def test_a_configuration_of_another_version(runs, tmp_path):
    folder = copied(runs / "random-0", tmp_path / "runs" / "newer")
    config = json.loads((folder / "config.json").read_text()) | {"invented_later": 3}
    (folder / "config.json").write_text(json.dumps(config))
    view, rows, _ = check_views(folder, [runs / "random-1"])
    assert view["status"] == rows["newer"]["status"] == "damaged"
    assert "a newer version wrote it, this one knows no setting 'invented_later'. Update" in view["damage"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.json", b'{"candidates": "many"}', "(candidates = 'many': must be a whole number)"),
        ("config.json", b"[1]", "(must be an object, settings by name)"),
        ("config.json", b"\xff\xfe", "(it is no UTF-8 text)"),
        ("events.jsonl", b"\xff\xfe\x00\n", "line 1 is damaged (it is no UTF-8 text)"),
        ("events.jsonl", b"null\n", "line 1 is damaged (it is no event)"),
        ("events.jsonl", b'{"kind": "leap"}\n', "this version knows no event 'leap': if a newer one wrote it, update"),
        ("events.jsonl", b'{"kind": "stage_started"}\n', "(it is not what an event 'stage_started' holds)"),
        ("events.jsonl", b"", "has checkpoints, but no events"),
    ],
)
def test_damage_is_told_in_words(runs, tmp_path, name, content, said):
    folder = copied(runs / "random-0", tmp_path / "runs" / "run")
    (folder / name).write_bytes(content)
    view, rows, _ = check_views(folder, [runs / "random-1"])
    assert view["status"] == rows["run"]["status"] == "damaged"
    for text in (view["damage"] or view["message"], rows["run"]["message"]):
        assert said in text
        assert "Restore" in text
        assert not any(word in text for word in ("Input should", "validation error", "Error("))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems allow no such names")
@pytest.mark.parametrize("name", [b"new\nline", b"bad-\xff"])
def test_a_name_that_cannot_be_shown_harms_no_other(runs, tmp_path, name):
    copied(runs / "random-0", tmp_path / "runs" / os.fsdecode(name))
    copied(runs / "random-0", tmp_path / "runs" / "whole")
    rows = {row["name"]: row for row in listing.history_rows(tmp_path / "runs")}
    assert json.dumps(list(rows), ensure_ascii=False).encode()
    assert rows.pop("whole")["status"] == "finished"
    ((shown, row),) = rows.items()
    assert "?" in shown
    assert row["status"] == "damaged"
    assert "Rename it" in row["message"]
    assert Places(tmp_path / "runs").names() == ["demo", "runs/whole"]


# History -------------------------------------------------------------------------------------------------------------


def test_all_runs_are_rows(runs, tmp_path):
    rows = {row["name"]: row for row in listing.history_rows(runs)}
    assert set(rows) == {"random-0", "random-1", "matched-0", "matched-1", "stopped"}
    last = of_kind(runs / "random-1", "stage_finished")[-1]
    row = rows["random-1"]
    assert (row["status"], row["stages"], row["method"], row["seed"]) == ("finished", "3 of 3", "randomized", 1)
    assert (row["sparsity"], row["score"]) == (last["sparsity"], last["test"]["metric"])
    assert row["compression"] == pytest.approx(1 / (1 - last["sparsity"]), rel=1e-3)
    assert row["ir"] == of_kind(runs / "random-1", "mask_chosen")[-1]["ir"]
    assert rows["matched-0"]["method"] == "imp-matched"
    assert (rows["stopped"]["status"], rows["stopped"]["group"]) == ("stopped", "")
    assert [row["started"] for row in listing.history_rows(runs)] == sorted(
        (row["started"] for row in rows.values()), reverse=True
    )
    assert listing.history_sentence(rows.values()) == "5 runs: 4 finished, 1 stopped."
    assert listing.history_rows(tmp_path / "nowhere") == []
    assert listing.history_sentence([]) == "There are no runs yet."
    table = list(csv.DictReader(io.StringIO(listing.csv_of_rows(list(rows.values())))))
    assert [float(line["score"]) for line in table] == [row["score"] for row in rows.values()]


# Compare -------------------------------------------------------------------------------------------------------------


def compared(runs, *names):
    return live.compare_view([runs / name for name in names])


def test_runs_that_differ_only_in_their_seed_are_one_line(runs):
    view = compared(runs, "matched-0", "random-0", "random-1", "matched-1")
    assert [(run["label"], run["seed"]) for run in view["runs"]] == [
        ("randomized", 0), ("randomized", 1), ("imp-matched", 0), ("imp-matched", 1)
    ]  # fmt: skip
    ends = {name: of_kind(runs / name, "stage_finished") for name in ("random-0", "random-1", "matched-0", "matched-1")}
    for row in (row for row in view["scores"]["rows"] if row["sparsity"]):
        prefix = "random" if row["run"] == "randomized" else "matched"
        values = [line["test"]["metric"] for seed in (0, 1) for line in ends[f"{prefix}-{seed}"]
                  if line["sparsity"] == row["sparsity"]]  # fmt: skip
        assert row["score"] == pytest.approx(statistics.fmean(values))
        assert row["seeds"] == 2
    assert [row["setting"] for row in view["settings"]["rows"]] == ["method", "max_epochs", "seed"]
    assert view["settings"]["rows"][0]["matched-0"] == "imp"
    assert view["settings"]["sentence"].endswith("settings: method, max_epochs, seed.")


def test_differences_are_paired_by_seed(runs):
    view = compared(runs, "random-0", "random-1", "matched-0", "matched-1")
    for row in view["differences"]["rows"]:
        values = []
        for seed in (0, 1):
            scores = [
                next(line["test"]["metric"] for line in of_kind(runs / name, "stage_finished")
                     if line["sparsity"] == row["sparsity"])
                for name in (f"random-{seed}", f"matched-{seed}")
            ]  # fmt: skip
            values.append(scores[0] - scores[1])
        assert row["difference"] == pytest.approx(statistics.fmean(values))
        half = scipy.stats.t.ppf(0.975, 1) * statistics.stdev(values) / math.sqrt(2)
        assert (row["low"], row["high"]) == pytest.approx(
            (max(row["difference"] - half, -2), min(row["difference"] + half, 2))
        )
        assert row["verdict"] == ("within noise" if row["low"] <= 0 <= row["high"] else "beyond noise")
    last = view["differences"]["rows"][-1]
    assert last["verdict"] in view["differences"]["sentence"]
    one = compared(runs, "random-0", "matched-0")
    assert {row["verdict"] for row in one["differences"]["rows"]} == {"one seed: not a result"}
    assert "one seed: not a result" in one["differences"]["sentence"]
    crossed = compared(runs, "random-0", "matched-1")
    assert crossed["differences"]["rows"] == []
    assert "have a seed and a finished stage in common" in crossed["differences"]["sentence"]
    assert "nothing to tell apart" in compared(runs, "random-0", "random-1")["differences"]["sentence"]


def test_verdicts():
    def table(*scores):
        return [{"stage": stage, "sparsity": stage / 10, "score": score} for stage, score in enumerate(scores)]

    ours, theirs = {0: table(0.9, 0.8), 1: table(0.9, 0.81)}, {0: table(0.9, 0.7), 1: table(0.9, 0.7)}
    (row,) = figures.difference_rows({"a": ours, "b": theirs})  # of the dense network none is told
    half = 12.7062 * 0.005  # Student's t with one degree of freedom, and the standard error of 0.10 and 0.11
    assert (row["low"], row["high"]) == pytest.approx((0.105 - half, 0.105 + half), abs=1e-5)
    assert (row["difference"], row["verdict"]) == (pytest.approx(0.105), "beyond noise")
    (unclear,) = figures.difference_rows({"a": {**ours, 1: table(0.9, 0.9)}, "b": theirs})
    assert unclear["verdict"] == "within noise"
    (chance,) = figures.difference_rows({"a": ours, "b": {0: table(0.9, 0.7), 1: table(0.9, 0.71)}})
    assert (chance["difference"], chance["verdict"]) == (pytest.approx(0.1), "too few seeds: not a result")
    (equal,) = figures.difference_rows({"a": ours, "b": ours})
    assert (equal["difference"], equal["verdict"]) == (0, "within noise")
    assert comparing.difference_sentence(equal) == (
        "At sparsity 0.1000, a is equal to b (2 seeds, 95 % interval +0.00 to +0.00): within noise."
    )


def test_agreement_is_that_of_the_masks(runs):
    names = ["random-0", "random-1", "matched-0"]
    view = compared(runs, *names)
    assert [stage["sparsity"] for stage in view["agreement"]["stages"]] == [0.5, 0.8, 0.9]
    for number, stage in enumerate(view["agreement"]["stages"], start=1):
        masks = []
        for name in names:
            tensors = read_tensors(boundary_file(runs / name, number))
            labels = sorted(label for label in tensors if label.startswith("mask."))
            masks.append(
                np.concatenate([unpacked(tensors[x], tensors[f"model.{x[5:]}"].shape).ravel() for x in labels])
            )
        for (row, one), (column, other) in itertools.product(enumerate(masks), repeat=2):
            assert stage["matrix"][row][column] == pytest.approx((one & other).sum() / one.sum())
        assert stage["labels"] == ["randomized, seed 0", "randomized, seed 1", "imp-matched, seed 0"]
        assert f"would share {100 * (1 - stage['sparsity']):.1f} %" in stage["sentence"]
    assert view["agreement"]["stages"][0]["matrix"][0][0] == 1


def test_masks_that_are_not_there_are_told(runs, tmp_path):
    folder = copied(runs / "random-0", tmp_path / "random-0")
    for path in checkpoint_files(folder):
        if not path.stem.endswith("-stage3"):
            path.unlink()
    view = live.compare_view([folder, runs / "random-1", runs / "matched-1"])
    assert view["agreement"]["stages"][0]["missing"] == ["random-0"]
    assert "Not kept on disk, or not reached: the masks of random-0." in view["agreement"]["stages"][0]["sentence"]
    assert view["agreement"]["stages"][-1]["missing"] == []
    assert "no two runs" in compared(runs, "random-0")["agreement"]["sentence"]


def test_runs_of_different_tasks_do_not_compare(runs, tmp_path):
    folder = tmp_path / "sentences"
    folder.mkdir()
    (folder / "config.json").write_text(RunConfig(task="sentences", model="tiny-bert").model_dump_json())
    view = live.compare_view([runs / "random-0", folder])
    assert "different tasks: digits (accuracy), sentences (accuracy)" in view["problem"]
    assert view["scores"] == {"rows": [], "sentence": view["problem"]}
    assert {"task", "model"} <= {row["setting"] for row in view["settings"]["rows"]}
    assert live.compare_view([])["problem"] == "No run is chosen."


def test_lines_of_one_method_are_told_apart(runs, tmp_path):
    other = copied(runs / "random-0", tmp_path / "sharper")
    config = store.read_config(other).model_copy(update={"power": 9.0})
    (other / "config.json").write_text(config.model_dump_json())
    view = live.compare_view([runs / "random-0", other])
    assert [run["label"] for run in view["runs"]] == ["randomized (power 5.0)", "randomized (power 9.0)"]


# To take away --------------------------------------------------------------------------------------------------------


def test_the_network_is_packed_whole(runs):
    folder = runs / "random-0"
    with zipfile.ZipFile(io.BytesIO(listing.archive(folder))) as packed:
        found = {name: packed.read(name) for name in packed.namelist()}
    assert found == {
        f"random-0/{path.relative_to(folder / 'model').as_posix()}": path.read_bytes()
        for path in (folder / "model").rglob("*")
        if path.is_file()
    }
    with pytest.raises(ValueError, match="stopped: is not finished"):
        listing.archive(runs / "stopped")


def test_links_are_not_packed(runs, tmp_path):
    folder = copied(runs / "random-0", tmp_path / "linked")
    (tmp_path / "secret").write_text("secret")
    (folder / "model" / "link").symlink_to(tmp_path / "secret")
    assert b"secret" not in listing.archive(folder)
    shutil.rmtree(folder / "model")
    with pytest.raises(ValueError, match="its model/ is not there"):
        listing.archive(folder)


def test_stages_as_csv(runs):
    rows = list(csv.DictReader(io.StringIO(listing.csv_of(runs / "random-0"))))
    ends = of_kind(runs / "random-0", "stage_finished")
    assert [float(row["score"]) for row in rows[1:]] == [line["test"]["metric"] for line in ends]
    assert rows[0]["ir"] == ""


def test_a_long_journal_is_read_once(tmp_path, runs, monkeypatch):
    folder = copied(runs / "random-0", tmp_path / "long")
    lines = journal(folder)
    epoch = next(line for line in lines if line["kind"] == "epoch_finished")
    many = [lines[0], *({**epoch, "epoch": place} for place in range(1, 10_000))]
    (folder / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in many))
    monkeypatch.setattr(jobs, "status", lambda _: Status("running", age=0.1))
    assert live.live_view(folder)["events"] == 10_000
    start = time.process_time()
    view = live.live_view(folder)
    assert time.process_time() - start < 1  # 0.03 s where nothing else runs
    spec = charts.loss_chart(view["epochs"]["rows"]).to_dict()
    assert max(len(rows) for rows in spec["datasets"].values()) <= charts.MOST_EPOCHS + 1


# Charts --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn(runs):
    view = live.live_view(runs / "random-0")
    together = compared(runs, "random-0", "random-1", "matched-0", "matched-1")
    lanes = [row for row in view["lanes"]["rows"] if row["stage"] == 2]
    return {
        "lanes_chart": curves.lanes_chart(lanes),
        "score_chart": curves.score_chart(view["epochs"]["rows"]),
        "near_chart": curves.near_chart(view["near"]["rows"]),
        "randomness_chart": curves.randomness_chart(view["near"]["rows"]),
        "differences_chart": curves.differences_chart(together["differences"]["rows"]),
    }


def test_every_chart_of_this_room_is_drawn_here(drawn):
    assert set(drawn) == {name for name in vars(curves) if name.endswith("_chart")}


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("name", ["lanes_chart", "score_chart", "near_chart", "randomness_chart", "differences_chart"])
def test_charts_of_a_live_run(drawn, name, dark):
    chart = charts.in_theme(drawn[name], dark=dark)
    spec = chart.to_dict()
    assert len(spec["title"]) > 20
    assert spec["description"].endswith(".")
    assert "NaN" not in json.dumps(spec)
    svg = charts.to_svg(chart)
    ElementTree.fromstring(svg)
    assert "mark-symbol" in svg or name == "near_chart"
    inks = {charts.GREY, charts.BLUE, '"black"', '"#000000"'}
    if dark:
        assert not [ink for ink in inks if ink in json.dumps({**spec, "datasets": {}})]
        assert spec["config"]["axis"]["labelColor"] == "#fafafa"
        assert spec["background"] == "transparent"


def test_ink_upon_coloured_cells_stays_in_the_dark():
    chart = pictures.agreement_chart([[1.0, 0.5], [0.5, 1.0]], ["one", "other"])
    inks = [layer["encoding"]["color"] for layer in charts.in_theme(chart, dark=True).to_dict()["layer"]]
    (ink,) = [ink for ink in inks if "condition" in ink]
    assert (ink["condition"]["value"], ink["value"]) == ("white", "black")
    assert charts.in_theme(chart, dark=False) is chart


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("lanes_chart", "No stage has begun"),
        ("score_chart", "no epoch is finished"),
        ("near_chart", "there is no threshold yet"),
        ("randomness_chart", "No mask is chosen yet"),
        ("differences_chart", "no differences to show"),
    ],
)
def test_nothing_to_show_is_said(name, words):
    chart = getattr(curves, name)([])
    assert words in chart.description
    ElementTree.fromstring(charts.to_svg(chart))


def test_lanes_that_wait_are_told():
    lanes = [("plain mask", "judged", 0.9), ("random mask 1", "failed", None), ("random mask 2", "judging", None)]
    rows = [
        {"stage": 1, "candidate": place, "name": name, "state": state, "score": score, "ir": 0.0, "winner": False}
        for place, (name, state, score) in enumerate(lanes)
    ]
    svg = charts.to_svg(curves.lanes_chart(rows))
    assert all(f">{text}<" in svg for text in ("90.0 %, ir 0", "failed", "is being judged ..."))
    assert curves.lanes_sentence(rows) == (
        "Stage 1: 1 of 3 masks have a score, accuracy from 90.0 % to 90.0 %; none is chosen yet."
    )
    waiting = charts.to_svg(curves.lanes_chart(rows[2:]))
    assert ">is being judged ...<" in waiting
