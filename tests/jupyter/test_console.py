"""The Jupyter panels of runs, without a browser: what they show, what their buttons do, what they take from files."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import ipywidgets
import pytest
from support.runs import go_on, small, stop_after

import randprune_lab
from randprune_lab import (
    ExploreState,
    RunConfig,
    compare,
    console,
    engine,
    forms,
    history,
    jobs,
    launch,
    listing,
    live,
    store,
)
from randprune_lab import estimate as estimates
from randprune_lab.console import HistoryPanel
from randprune_lab.form import LaunchPanel
from randprune_lab.handle import Handle, Result, RunPanel

QUICK = {"stages": (0.5, 0.9), "dense_epochs": 1, "max_epochs": 1, "candidates": 2, "device": "cpu"}
LONG = {**QUICK, "dense_epochs": 10**6}  # begins soon, never ends
EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """Two runs that differ in their seed, and one that was stopped; as they would lie in the folder of runs."""
    parent = tmp_path_factory.mktemp("finished")
    for seed in (0, 1):
        go_on(parent / f"seed{seed}", RunConfig(**QUICK, seed=seed))
    stop_after(parent / "stopped", small(), 8)
    return parent


@pytest.fixture
def runs(finished, tmp_path) -> Path:
    return shutil.copytree(finished, tmp_path / "runs")


@pytest.fixture(autouse=True)
def nothing_left(tmp_path):
    """No panel, no thread and no process outlives a test."""
    yield
    ipywidgets.Widget.close_all()
    for folder in tmp_path.glob("*/*/status.json"):
        if jobs.status(folder.parent).is_live:
            jobs.stop(folder.parent)
    until = time.monotonic() + 180
    while any(thread.name.startswith("randprune-") for thread in threading.enumerate()) and time.monotonic() < until:
        time.sleep(0.1)
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("randprune-")]


def within(widget):
    """A widget and all that are in it."""
    yield widget
    for child in getattr(widget, "children", ()):
        yield from within(child)


def texts(panel) -> str:
    """All that a panel shows as HTML."""
    return "\n".join(part.value for part in within(panel) if isinstance(part, ipywidgets.HTML))


def button(panel, name):
    (found,) = [w for w in within(panel) if isinstance(w, ipywidgets.Button) and w.description == name]
    return found


def press(panel, name):
    assert not button(panel, name).disabled
    button(panel, name).click()


def box(panel, name):
    """A box by the beginning of its label."""
    return next(w for w in within(panel) if getattr(w, "description", "").startswith(name))


def wait_until(what, seconds=180):
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until
        time.sleep(0.1)


# The handle


def test_a_result_is_what_the_run_says(runs):
    handle = Handle(runs / "seed0")
    result = handle.result()
    last = json.loads((runs / "seed0" / "events.jsonl").read_text().splitlines()[-1])
    assert isinstance(result, Result)
    assert result.score == last["test"]["metric"]
    assert (result.metric, result.sparsity, len(result.stages)) == ("accuracy", 0.9, 3)
    assert result.compression == pytest.approx(10, rel=0.01)
    assert result.model == runs / "seed0" / "model"
    assert (result.model / "model.safetensors").is_file()
    assert handle.status.state == "finished"


def test_what_is_not_finished_has_no_result(runs):
    with pytest.raises(ValueError, match=r"^stopped: has no result, it is stopped\. .*\.resume\(\)"):
        Handle(runs / "stopped").result()
    with pytest.raises(ValueError, match="has no result, it is gone"):
        Handle(runs / "nowhere").result()


def test_a_saved_notebook_still_shows_the_run(runs):
    bundle = Handle(runs / "seed0")._repr_mimebundle_()
    assert bundle["text/plain"] == repr(Handle(runs / "seed0"))
    assert f"{100 * Handle(runs / 'seed0').result().score:.1f} %" in bundle["text/plain"]
    assert bundle["image/svg+xml"].startswith("<svg")
    assert "<script" not in bundle["image/svg+xml"]
    assert "image/svg+xml" not in Handle(runs / "nowhere")._repr_mimebundle_()
    assert "not there" in repr(Handle(runs / "nowhere"))


def test_launched_stopped_and_resumed(tmp_path):
    handle = launch(RunConfig(**LONG), parent=tmp_path / "runs")
    with pytest.raises(ValueError, match=r"\.wait\(\) first"):
        handle.result()
    with pytest.raises(ValueError, match=f"the same run waits or works already: {handle.folder.name}"):
        launch(RunConfig(**LONG), parent=tmp_path / "runs")
    assert handle.wait(0).is_live
    handle.stop()
    assert handle.status.state == "stopped"
    handle.resume()
    assert handle.status.is_live
    handle.stop()


@pytest.mark.crash
def test_launched_watched_and_waited_for_it_ends_with_the_numbers_of_the_same_run_here(tmp_path):
    go_on(tmp_path / "here", RunConfig(**QUICK, threads=1))
    handle = launch(**QUICK, parent=tmp_path / "runs")
    panel = handle.panel()
    assert handle.wait(180).state == "finished"
    assert handle.result().score == Handle(tmp_path / "here").result().score
    wait_until(lambda: not watched())
    assert "Result</h4>" in texts(panel)


def test_settings_are_checked_before_anything_starts(tmp_path):
    with pytest.raises(ValueError, match=r"^sparsity|^stages") as error:
        launch(stages=(0.9, 0.5), parent=tmp_path / "runs")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "runs").exists()


def test_saved_panels_still_show_something(runs):
    compared = compare("seed0", "seed1", parent=runs)
    for panel, words in (
        (Handle(runs / "seed0").panel(), Handle(runs / "seed0").__repr__()),
        (launch(parent=runs), "randprune run"),
        (history(runs), "3 runs: 2 finished, 1 stopped."),
        (compared, compared.table()["scores"]["sentence"]),
    ):
        bundle = panel._repr_mimebundle_()
        assert words in bundle["text/plain"]
        assert "application/vnd.jupyter.widget-view+json" in bundle
        if not isinstance(panel, LaunchPanel | HistoryPanel):
            assert bundle["image/svg+xml"].startswith("<svg")


# Panel 6


def test_the_panel_of_a_finished_run(runs):
    panel = Handle(runs / "seed0").panel()
    view = live.live_view(runs / "seed0")
    shown = texts(panel)
    for part in (view["result"], view["ladder"], view["lanes"], view["near"], view["epochs"]):
        assert part["sentence"] in shown.replace("&lt;", "<").replace("&#x27;", "'")
    assert shown.count("<svg") == 2
    assert panel.table()["status"] == "finished"
    assert button(panel, "Stop").disabled
    assert button(panel, "Resume").disabled


def watched():
    return "randprune-watch" in [thread.name for thread in threading.enumerate()]


def test_a_run_is_watched_until_it_ends(tmp_path):
    """One that this process works on; a job's files are the same."""
    working = store.record(tmp_path / "run", engine.prune(RunConfig(**QUICK)))
    next(working)
    panel = Handle(tmp_path / "run").panel()
    assert watched()
    assert not button(panel, "Stop").disabled
    assert "Result</h4>" not in texts(panel)
    list(working)
    wait_until(lambda: not watched())
    assert "Result</h4>" in texts(panel)
    assert "<svg" in texts(panel)
    assert button(panel, "Stop").disabled


def test_stop_and_resume_by_hand(tmp_path):
    handle = launch(RunConfig(**LONG), parent=tmp_path / "runs")
    panel = handle.panel()
    press(panel, "Stop")
    wait_until(lambda: not button(panel, "Resume").disabled)
    assert handle.status.state == "stopped"
    press(panel, "Resume")
    assert handle.status.is_live
    wait_until(lambda: not button(panel, "Stop").disabled)
    panel.close()
    wait_until(lambda: not watched())
    assert handle.status.is_live  # a closed panel stops nothing
    handle.stop()


def test_an_error_is_said_in_the_panel(runs):
    panel = Handle(runs / "stopped").panel()
    shutil.rmtree(runs / "stopped")
    press(panel, "Resume")
    assert 'class="error"' in texts(panel)
    assert "Traceback" not in texts(panel)
    panel.refresh()
    assert "not there" in texts(panel)


def test_what_stands_in_files_stays_text(runs):
    folder = runs / "seed0"
    for name in ("config.json", "events.jsonl"):
        path = folder / name
        path.write_text(path.read_text().replace('"mlp"', json.dumps(EVIL)))
    (folder / "log.txt").write_text(f"{EVIL}\n")
    (folder / "note.txt").write_text(EVIL)
    panels = [Handle(folder).panel(), history(runs), compare("seed0", "seed1", parent=runs)]
    for panel in panels:
        assert "<img" not in texts(panel)
        assert "&lt;img src=x" in texts(panel)
    assert "<img" not in Handle(folder)._repr_mimebundle_().get("image/svg+xml", "")


# Panel 5


def test_the_form_asks_for_every_setting(tmp_path):
    panel = launch(parent=tmp_path / "runs")
    assert isinstance(panel, LaunchPanel)
    assert set(panel._boxes) == set(forms.BY_NAME)
    for field in forms.BY_NAME.values():
        assert field.help.replace("'", "&#x27;").replace('"', "&quot;").replace(">", "&gt;") in texts(panel)
    assert panel.configs == [RunConfig()]


def test_presets_fill_the_form(tmp_path):
    panel = launch(parent=tmp_path / "runs")
    for name, (about, settings) in forms.PRESETS.items():
        panel._preset.value = name
        assert about[1:].replace("'", "&#x27;") in texts(panel)
        assert panel.configs == [forms.parse(settings)]


def test_launch_what_i_see(tmp_path):
    state = ExploreState(model="demo", sparsity=0.9, randomness="fixed", samples=9, power=3.0)
    panel = launch(state, parent=tmp_path / "runs")
    (config,) = panel.configs
    assert (config.stages[-1], config.samples, config.power) == (0.9, 9, 3.0)
    assert config == forms.parse(forms.seen(state))


def test_a_wrong_setting_is_said_and_cannot_start(tmp_path):
    panel = launch(parent=tmp_path / "runs")
    box(panel, "stages").value = "0.9, 0.5"
    assert button(panel, "Start").disabled
    assert "0.9" in re.search(r'<p class="error">(.*?)</p>', texts(panel))[1]
    box(panel, "stages").value = "0.5, 0.9"
    assert not button(panel, "Start").disabled
    assert 'class="error"' not in texts(panel)
    assert panel.configs[0].stages == (0.5, 0.9)


def test_what_does_not_count_is_greyed(tmp_path):
    panel = launch(parent=tmp_path / "runs")
    assert panel._boxes["sampling_ratio"].disabled
    panel._boxes["randomness"].value = "decrease"
    assert not panel._boxes["sampling_ratio"].disabled
    assert panel._boxes["samples"].disabled
    panel._boxes["method"].value = "imp"
    assert all(control.disabled for control in panel._controls.values())


def test_controls_and_seeds(tmp_path):
    panel = launch(parent=tmp_path / "runs")
    panel._controls["imp-matched"].value = True
    panel._seeds.value = 3
    assert [(config.seed, config.control) for config in panel.configs] == [
        (seed, control) for seed in range(3) for control in ("", "imp-matched")
    ]
    assert button(panel, "Start 6 runs")


def test_the_cost_is_told_before_the_start(tmp_path, monkeypatch):
    """Whatever the process that is asked answers."""
    told = estimates.estimate(RunConfig(**QUICK))
    answer = json.dumps({"estimate": dataclasses.asdict(told)})
    monkeypatch.setattr(estimates, "module_command", lambda _: [sys.executable, "-c", f"print({answer!r})"])
    panel = launch(parent=tmp_path / "runs")
    wait_until(lambda: "Working out" not in panel._cost.value)
    assert told.sentence in panel._cost.value
    assert 'class="error"' not in panel._cost.value
    assert not (tmp_path / "runs").exists()


def test_started_by_hand(tmp_path):
    """The run and its control, which differ in what the control is for: their dense networks are the same."""
    panel = launch(parent=tmp_path / "runs")
    panel._fill(LONG)
    panel._controls["imp"].value = True
    press(panel, "Start 2 runs")
    assert [handle.folder.parent for handle in panel.handles] == [tmp_path / "runs"] * 2
    shown = [part for part in within(panel) if isinstance(part, RunPanel)]
    assert [part.folder for part in shown] == [panel.handles[0].folder]
    box(panel, "run").value = panel.handles[1]
    assert [part.folder for part in within(panel) if isinstance(part, RunPanel)] == [panel.handles[1].folder]
    assert all(handle.status.is_live for handle in panel.handles)
    configs = [store.read_config(handle.folder) for handle in panel.handles]
    assert {config.group for config in configs} == {panel.handles[0].folder.name}
    assert [config.control for config in configs] == ["", "imp"]
    dense = []
    for number, config in enumerate(configs):
        short = config.model_copy(update={"dense_epochs": 1})
        dense.append(next(e for e in go_on(tmp_path / f"{number}", short) if e.kind == "dense_finished"))
    assert dense[0] == dense[1]


# Panels 7 and 8


def test_history_lists_filters_and_notes(runs):
    panel = history(runs)
    assert isinstance(panel, HistoryPanel)
    assert panel.table() == listing.history_rows(runs)
    assert sorted(panel._choice.options) == ["seed0", "seed1", "stopped"]
    panel._filter.value = "stopped"
    assert [row["name"] for row in panel.table()] == ["stopped"]
    assert "seed0" not in texts(panel)
    box(panel, "note").value = "too early"
    press(panel, "Save note")
    assert jobs.read_note(runs / "stopped") == "too early"
    assert "too early" in texts(panel)
    panel._filter.value = "no such word"
    press(panel, "Open")
    assert "No run is chosen" in texts(panel)


def test_deleting_asks_first(runs):
    panel = history(runs)
    panel._choice.value = "seed1"
    assert panel._sure.layout.display == "none"
    press(panel, "Delete ...")
    assert panel._sure.layout.display == "flex"
    press(panel, "No, keep it")
    assert panel._sure.layout.display == "none"
    press(panel, "Delete ...")
    panel._choice.value = "seed0"  # whoever chooses another run is asked again
    assert panel._sure.layout.display == "none"
    panel._choice.value = "seed1"
    press(panel, "Delete ...")
    press(panel, "Yes, delete")
    assert not (runs / "seed1").exists()
    assert (runs / "seed0").is_dir()
    assert "seed1" not in texts(panel)


def test_open_shows_the_run(runs):
    panel = history(runs)
    panel._choice.value = "seed0"
    press(panel, "Open")
    assert "Result</h4>" in texts(panel)


def test_history_of_nothing(tmp_path):
    panel = history(tmp_path / "none")
    assert panel.table() == []
    assert "no runs yet" in texts(panel)


def test_compare_by_name_folder_and_handle(runs):
    panel = compare("seed0", runs / "seed1", Handle(runs / "stopped"), parent=runs)
    assert panel.table() == live.compare_view([runs / "seed0", runs / "seed1", runs / "stopped"])
    shown = texts(panel)
    for part in ("scores", "settings", "agreement"):
        assert panel.table()[part]["sentence"] in shown
    assert "<svg" in shown
    panel._choice.value = (runs / "seed0", runs / "seed1")
    assert [row["setting"] for row in panel.table()["settings"]["rows"]] == ["seed"]
    assert "dense_epochs" not in texts(panel)


def test_compare_nothing_and_what_is_not_there(runs):
    panel = compare(parent=runs)
    assert "No run is chosen" in texts(panel)
    with pytest.raises(ValueError, match=r"nowhere: no run is there"):
        compare("nowhere", parent=runs)


def test_a_damaged_run_harms_no_panel(runs):
    (runs / "seed0" / "config.json").write_text("{")
    assert {row["name"]: row["status"] for row in history(runs).table()}["seed0"] == "damaged"
    shown = texts(compare("seed0", "seed1", parent=runs))
    assert "seed0:" in shown
    assert "Traceback" not in shown
    assert "damaged" in texts(Handle(runs / "seed0").panel())


# All of them


def test_notebooks_can_be_checked():
    """nbval fails falsely on Output widgets, clear_output and prints."""
    rooms = [Path(console.__file__).with_name(f"{name}.py") for name in ("cells", "handle", "form", "console")]
    source = "".join(room.read_text() for room in rooms)
    assert not re.search(r"ipywidgets\.Output|clear_output|\bprint\(|update_display", source)


def test_the_package_does_without_jupyter():
    code = (
        "import sys; sys.modules['ipywidgets'] = None; import randprune_lab\n"
        "try:\n    randprune_lab.launch\nexcept ImportError as error:\n    print(error)"
    )
    said = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert "pip install 'randprune-lab[jupyter]'" in said


def test_they_are_public():
    assert {"launch", "history", "compare"} <= set(randprune_lab.__all__)
