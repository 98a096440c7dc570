"""The app's page Studies: all of them, one in every state, what may be started; names and files are not trusted."""

import json
import shutil
from pathlib import Path
from typing import ClassVar

import filelock
import pytest
from support.app import charts_of, opened, press, words
from support.studies import make, tiny_study, write_state

from randprune_lab import study_jobs, study_report, study_view
from randprune_lab.places import Places
from randprune_lab.studies import built_in_studies, read_study
from randprune_lab.study_cost import Cost
from randprune_lab.study_runs import LOCK, STUDY


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    parent = tmp_path_factory.mktemp("made") / "studies"
    make(tiny_study(), parent)
    return parent


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """The folder of studies of an app in which nothing has been done."""
    monkeypatch.setenv("RANDPRUNE_RUNS", str(tmp_path))
    monkeypatch.setenv("RANDPRUNE_MODELS", "")
    return tmp_path / "studies"


@pytest.fixture
def parent(made, empty):
    """The folder of studies of the app: ``tiny`` is finished."""
    return Path(shutil.copytree(made, empty))


@pytest.fixture
def started(monkeypatch):
    """The studies that were started; none really is."""
    found = []
    monkeypatch.setattr(study_jobs, "start", lambda study, *, parent: found.append((study, parent)))
    return found


def sound(page):
    assert not page.exception
    assert not page.error
    return page


def titles(page):
    """The buttons that open a study."""
    return [button.label for button in page.button if (button.key or "").startswith("open {'study'")]


def buttons(page):
    return [button.label for button in page.button]


def begin(name, parent, **changes):
    """The folder of a built-in small form, in which nothing is done."""
    study = read_study(name, small=True, changes=changes)
    folder = parent / f"{name}-small"
    folder.mkdir(parents=True)
    (folder / STUDY).write_text(study.model_dump_json())
    return folder


# ---- all of them


@pytest.mark.usefixtures("empty")
def test_all_that_come_with_the_lab_are_listed():
    page = sound(opened("studies"))
    assert len(titles(page)) == len(built_in_studies())
    text = words(page)
    for name in built_in_studies():
        form = read_study(name, small=True)
        assert form.title in titles(page)
        assert form.question in text
    assert "On this machine" not in text


def test_the_address_follows(parent):
    page = sound(opened("studies"))
    page = sound(press(page, tiny_study().title))
    assert page.title[0].value == tiny_study().title
    assert page.query_params["study"] in ("tiny", ["tiny"])  # as AppTest has it after a callback, or before
    page = sound(press(page, "All studies"))
    assert page.title[0].value == "Studies"
    assert "study" not in page.query_params
    assert (parent / "tiny").is_dir()


def test_those_on_disk_come_first_with_their_state(parent):
    begin("figure-4", parent)
    write_state(parent / "figure-4-small", done=3, of=88)
    page = sound(opened("studies"))
    text = words(page)
    assert "4 of 4 runs done" in text
    assert "3 of 88 runs done" in text
    assert "finished" in text
    assert "interrupted" in text
    assert sorted(titles(page)[:2]) == sorted([tiny_study().title, read_study("figure-4").title])
    assert len(titles(page)) == len(built_in_studies()) + 1  # figure-4 only once


def test_a_damaged_one_harms_no_other(parent):
    (parent / "broken").mkdir()
    (parent / "broken" / STUDY).write_text("{}")
    page = opened("studies")
    assert not page.exception
    assert "cannot be read" in page.error[0].value
    assert tiny_study().title in titles(page)


# ---- one of them


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_finished_one_says_what_it_came_to(parent, theme):
    page = sound(opened("studies", theme=theme, study="tiny"))
    asked, results = tiny_study(), study_view.results_of(parent / "tiny")
    assert page.title[0].value == asked.title
    text = words(page)
    (claim,) = results.claims
    assert claim["says"] in text
    assert claim["sentence"] in text
    assert "too few seeds to tell" in text
    assert [part.value for part in page.subheader] == ["What is claimed, and what was found", "Figures", "Numbers"]
    figures = study_report.study_figures(asked, results)
    assert [spec["description"] for spec in charts_of(page)] == [sentence for _, sentence in figures.values()]
    papers = {spec["background"] for spec in charts_of(page)}
    assert papers == {"transparent" if theme == "dark" else "white"}
    means, differences = (frame.value for frame in page.dataframe)
    assert (len(means), len(differences)) == (4, 2)
    assert list(means["line"]) == ["judged", "judged", "IMP", "IMP"]
    assert "Differences from IMP" in [tab.label for tab in page.tabs]
    assert [part.proto.label for part in page.get("download_button")] == ["results.csv", "report.html"]
    assert not {"Stop", "Go on", "Start"} & set(buttons(page))
    assert "Again:" not in text  # nobody knows the file that it came from


def test_one_at_work_can_be_stopped(parent, monkeypatch):
    stopped = []
    monkeypatch.setattr(study_jobs, "stop", lambda folder, *, wait: stopped.append((folder.name, wait)))
    write_state(parent / "tiny", done=3, of=4, failed={"run": "the loss became NaN"})
    with filelock.FileLock(parent / "tiny" / LOCK):
        page = sound(opened("studies", study="tiny"))
        text = words(page)
        assert "running" in text
        assert "3 of 4 runs done, 1 of them failed" in text
        assert "Do not stop early" not in text  # the folders are all there
        assert "the loss became NaN" in text
        shutil.rmtree(next((parent / "runs").glob("*seed1")))
        write_state(parent / "tiny", done=2, of=4)
        assert "Do not stop early" in words(sound(opened("studies", study="tiny")))
        press(page, "Stop")
    assert stopped == [("tiny", False)]


def test_stopping_what_has_ended_meanwhile_says_so(parent):
    with filelock.FileLock(parent / "tiny" / LOCK):
        page = sound(opened("studies", study="tiny"))
    page = press(page, "Stop")
    assert not page.exception
    assert "there is nothing to stop" in page.error[0].value


def test_only_a_small_form_of_today_can_go_on(parent, started):
    begin("figure-4", parent)
    page = press(sound(opened("studies", study="figure-4-small")), "Go on")
    assert not page.exception
    assert started == [(read_study("figure-4", small=True), parent)]
    begin("figure-3", parent, seeds=3)
    page = sound(opened("studies", study="figure-3-small"))
    assert "Go on" not in buttons(page)
    assert "with the command that began it" in words(page)


def test_what_failed_can_be_tried_again(parent, started):
    folder = begin("figure-4", parent)
    write_state(folder, done=88, of=88, failed={"one": "no memory"})
    press(sound(opened("studies", study="figure-4-small")), "Try those again that failed")
    assert len(started) == 1


# ---- one that is new


def test_a_new_one_is_started_from_its_page(empty, started):
    page = sound(opened("studies", study="emep-small"))
    form, text = read_study("emep", small=True), words(page)
    assert study_view.size_sentence(form, empty) in text
    assert "randprune study emep" in text
    assert all(claim.says in text for claim in form.claims)
    assert charts_of(page) == []
    press(page, "Start")
    assert started == [(form, empty)]


@pytest.mark.usefixtures("empty")
def test_what_cannot_be_started_says_why(monkeypatch):
    def refuse(*_, **__):
        raise ValueError("The disk is full.")

    monkeypatch.setattr(study_jobs, "start", refuse)
    page = press(sound(opened("studies", study="emep-small")), "Start")
    assert [error.value for error in page.error] == ["The disk is full."]


class Asking:
    """An answer at the third look."""

    made: ClassVar = []
    kinds, timed = 2, 0

    def __init__(self, configs):
        self.looks, self.configs, self.cancelled = 0, configs, False
        Asking.made.append(self)

    def poll(self):
        self.looks += 1
        return None if self.looks < 3 else Cost(600.0, 2)

    def cancel(self):
        self.cancelled = True


@pytest.mark.usefixtures("empty", "started")
def test_its_cost_is_told_when_asked_and_given_up_at_the_start(monkeypatch):
    monkeypatch.setattr(study_view, "AskingCost", Asking)
    monkeypatch.setattr(Asking, "made", [])
    page = sound(opened("studies", study="table-2-small"))
    assert Asking.made == []  # nothing is timed before somebody asks
    page = sound(press(page, "How long will it take?"))
    assert "Timing some steps of kind 1 of 2" in words(page)
    page = sound(page.run())
    assert Cost(600.0, 2).sentence in words(page)
    assert "How long will it take?" not in buttons(page)
    press(page, "Start")
    assert [asking.cancelled for asking in Asking.made] == [True]


# ---- what is not trusted


@pytest.mark.parametrize("name", ["../secret", "/etc", "nothing", "runs", "a" * 5000, "tiny/../tiny", "emep", "\0"])
def test_a_name_that_leads_elsewhere_shows_nothing(parent, name):
    (parent.parent / "secret").mkdir()
    (parent.parent / "secret" / STUDY).write_text(tiny_study(name="secret", title="Secret").model_dump_json())
    (parent / "link").symlink_to(parent.parent / "secret")
    for one in (name, "link"):
        page = opened("studies", study=one)
        assert not page.exception
        assert "there is none of this name" in page.error[0].value
        assert "Secret" not in words(page)
        with pytest.raises(ValueError, match="there is none of this name"):
            Places(parent.parent).study(one)


def test_words_of_a_file_are_shown_as_they_stand(parent):
    picture = "![x](https://example.org/x.png)"
    study = tiny_study(title=picture, question=f"**{picture}**", notes=[picture], claims=[])
    (parent / "tiny" / STUDY).write_text(study.model_dump_json())
    write_state(parent / "tiny", done=4, of=4, failed={picture: picture})
    shutil.copytree(parent / "tiny", parent / "`![x](y)`")
    for query in ({}, {"study": "tiny"}):
        page = sound(opened("studies", **query))
        parts = [*page.markdown, *page.caption, *page.title, *page.warning]
        texts = [str(part.value) for part in parts] + titles(page)
        assert not [text for text in texts if picture in text or "`![x](y)`" in text]


def test_one_that_is_deleted_while_on_screen(parent):
    page = sound(opened("studies", study="tiny"))
    shutil.rmtree(parent / "tiny")
    page = page.run()
    assert not page.exception
    assert "there is none of this name" in page.error[0].value


def test_a_state_that_is_nonsense_harms_nothing(parent):
    (parent / "tiny" / "state.json").write_text(json.dumps({"done": -5, "of": 2, "seconds": {"x": -1}}))
    page = opened("studies", study="tiny")
    assert not page.exception
