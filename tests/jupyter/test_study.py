"""A study in a notebook: by name, file, folder or as it is; what it shows before, meanwhile and after."""

import shutil
from pathlib import Path

import filelock
import pytest
from support.studies import make, tiny_study, write_state

pytest.importorskip("ipywidgets")

from randprune_lab import study, study_jobs
from randprune_lab.charts import to_svg
from randprune_lab.studies import read_study
from randprune_lab.study_handle import NOT_BEGUN, TABLES, StudyHandle
from randprune_lab.study_jobs import Standing
from randprune_lab.study_runs import LOCK


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    parent = tmp_path_factory.mktemp("made")
    make(tiny_study(), parent)
    return parent


@pytest.fixture
def parent(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "studies"))


@pytest.fixture
def handle(parent):
    return study(tiny_study(), parent=parent)


def test_it_is_found_by_name_file_folder_and_as_it_is(parent, tmp_path, monkeypatch):
    monkeypatch.setenv("RANDPRUNE_RUNS", str(tmp_path))
    asked = tiny_study()
    for found in (study("tiny"), study(parent / "tiny"), study(asked), study("tiny", parent=parent)):
        assert (found.asked, found.folder.resolve()) == (asked, (parent / "tiny").resolve())
    found = study("figure-4", small=True, seeds=3, name="mine")
    assert found.asked == read_study("figure-4", small=True, changes={"seeds": 3, "name": "mine"})
    assert found.folder == parent / "mine"
    file = tmp_path / "own.toml"
    file.write_text('title = "Own"\n[lines.a]\nmethod = "imp"\n')
    assert study(file).asked.title == "Own"


def test_what_is_not_a_study_is_refused(parent):
    with pytest.raises(ValueError, match="study"):
        study("figure-99", parent=parent)
    with pytest.raises(ValueError, match="small, seeds: the study tiny is given as it is"):
        study(tiny_study(), small=True, seeds=3, parent=parent)
    with pytest.raises(ValueError, match="seeds: the study tiny is given as it is"):
        study("tiny", seeds=3, parent=parent)


def test_before_it_is_begun(tmp_path):
    found = study(tiny_study(), parent=tmp_path)
    assert found.state == Standing(NOT_BEGUN)
    assert "4 runs; " in repr(found)
    assert list(found._repr_mimebundle_()) == ["text/plain"]
    for read in (found.table, found.claims, found.figures, found.results):
        with pytest.raises(ValueError, match=r"no run is finished yet, it is not begun\. Call \.start\(\)\.wait\(\)"):
            read()
    assert not list(tmp_path.iterdir())


def test_what_it_came_to(handle):
    assert handle.wait(0).state == "finished"
    results = handle.results()
    for name, frame in zip(
        TABLES, (results.summary, results.differences, results.stages, results.candidates), strict=True
    ):
        assert handle.table(name) is frame
        assert len(frame)
    with pytest.raises(ValueError, match="table"):
        handle.table("nonsense")
    (claim,) = handle.claims()
    assert claim["sentence"] in repr(handle)
    figures = handle.figures()
    assert list(figures) == ["means", "differences"]
    bundle = handle._repr_mimebundle_()
    assert bundle["text/plain"] == repr(handle)
    assert bundle["image/svg+xml"] == to_svg(figures["means"])


def test_start_and_stop_reach_the_process(handle, monkeypatch):
    calls = []
    monkeypatch.setattr(study_jobs, "start", lambda *given, **more: calls.append(("start", *given, more)))
    monkeypatch.setattr(study_jobs, "stop", lambda *given, **more: calls.append(("stop", *given, more)))
    assert handle.start(processes=1) is handle
    handle.stop()
    asked, folder = handle.asked, handle.folder
    assert calls == [
        ("start", asked, {"parent": folder.parent, "processes": 1, "many": False}),
        ("stop", folder, {"wait": True}),
    ]


def test_the_panel_shows_it_and_its_buttons_work(handle, monkeypatch):
    stopped = []
    monkeypatch.setattr(study_jobs, "stop", lambda folder, **_: stopped.append(folder))
    panel = handle.panel()
    assert "finished" in panel._parts["head"].value
    assert handle.claims()[0]["sentence"] in panel._parts["claims"].value
    assert "<svg" in panel._parts["figure"].value
    assert (panel._start.disabled, panel._stop.disabled, panel._bar.value) == (True, True, 1.0)
    assert panel._still() == handle._repr_mimebundle_()
    write_state(handle.folder, done=3, of=4)
    assert not panel.refresh()
    assert (panel._start.disabled, panel._stop.disabled, panel._bar.value) == (False, True, 0.75)
    with filelock.FileLock(handle.folder / LOCK):
        assert panel.refresh()
        assert (panel._start.disabled, panel._stop.disabled) == (True, False)
        assert "3 of 4 runs done" in panel._parts["head"].value
        panel._stop.click()
    assert stopped == [handle.folder]
    panel.close()


def test_an_error_is_said_in_the_panel(handle, monkeypatch):
    def refuse(*_, **__):
        raise ValueError("<b>The disk is full.</b>")

    monkeypatch.setattr(study_jobs, "start", refuse)
    write_state(handle.folder, done=3, of=4)
    panel = handle.panel()
    panel._start.click()
    assert "&lt;b&gt;The disk is full." in panel._said.value
    panel.close()


def test_words_of_a_file_are_text(parent):
    asked = tiny_study(name="odd", title="<script>x</script>", question="<img src=x>")
    panel = StudyHandle(asked, parent).panel()
    make(asked, parent)
    panel.refresh()
    html = "".join(part.value for part in panel._parts.values())
    assert "<script>" not in html
    assert "<img" not in html
    panel.close()
