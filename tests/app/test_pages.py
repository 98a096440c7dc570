"""Every page of the app in every state that the runs folder can be in: no exception, the right words, true charts."""

import itertools
import json
import shutil
from pathlib import Path

import pytest
from support.app import charts_of, opened, press, words
from support.grids import thinned
from support.runs import go_on, journal, small, stop_after

from randprune_lab import charts, jobs
from randprune_lab.config import RunConfig, controls
from randprune_lab.status import Status

PAGES = {  # with a word that is there in every state
    "start": "Three things to try",
    "explore": "Explore",
    "run": "Run",
    "history": "History",
    "compare": "Compare",
    "studies": "That come with the lab",
    "learn": "Learn",
    "methods": "Side by side",
    "about": "About",
}
STATES = ("empty", "queued", "running", "failed", "stopped", "finished", "damaged", "damaged config")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Runs of which each test takes what it needs."""
    parent = tmp_path_factory.mktemp("made")
    for seed in (0, 1):
        config = small(seed=seed, group="pair")
        go_on(parent / f"random-{seed}", config)
        go_on(parent / f"matched-{seed}", controls(config)["imp-matched"])
    stop_after(parent / "stopped", small(seed=2), 9)
    return parent


@pytest.fixture
def runs(made, tmp_path, monkeypatch):
    """The runs folder of the app; ``runs.take(name)`` puts a run into it."""
    monkeypatch.setenv("RANDPRUNE_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("RANDPRUNE_MODELS", "")
    return Runs(made, tmp_path / "runs", monkeypatch)


class Runs:
    def __init__(self, made, folder, monkeypatch):
        self.made, self.folder, self.monkeypatch = made, folder, monkeypatch

    def take(self, name, as_name=None):
        return Path(shutil.copytree(self.made / name, self.folder / (as_name or name)))

    def says(self, **states):
        """What the job runner says of a run, until the files of real processes say it in test_jobs."""
        known = jobs.status
        told = lambda folder: states.get(Path(folder).name.replace("-", "_")) or known(folder)
        self.monkeypatch.setattr(jobs, "status", told)

    def be(self, state):
        """A folder in one of STATES; returns the name of its run."""
        if state == "empty":
            return None
        if state == "queued":
            folder = self.folder / "run"
            folder.mkdir(parents=True)
            (folder / "config.json").write_text(small().model_dump_json())
            self.says(run=Status("queued", position=2))
        elif state in ("running", "failed"):
            self.take("stopped", "run")
            message = "the loss became NaN in dense of stage 0." if state == "failed" else ""
            self.says(run=Status(state, message, age=1.0))
        else:
            folder = self.take("stopped" if state == "stopped" else "random-0", "run")
            if state == "damaged":
                (folder / "events.jsonl").write_bytes(b'{"kind": "no such"}\n')
            if state == "damaged config":
                (folder / "config.json").write_text('{"invented_later": 1}')
        return "run"


@pytest.mark.parametrize(("name", "state"), thinned(list(itertools.product(PAGES, STATES)), 1))
def test_every_page_in_every_state(runs, name, state):
    runs.be(state)
    page = opened(name)
    assert not page.exception
    assert PAGES[name] in words(page)


@pytest.mark.parametrize("state", STATES[1:])
@pytest.mark.parametrize("name", ["run", "compare"])
def test_pages_of_one_run_in_every_state(runs, name, state):
    run = runs.be(state)
    page = opened(name, **{"run" if name == "run" else "runs": run})
    assert not page.exception
    text = words(page)
    if name == "run":
        told = {"queued": "position 2", "running": "alive, heartbeat 1 s ago", "failed": "the loss became NaN"}
        told |= {"stopped": "Stands at", "finished": "One seed: not a result"}
        assert told.get(state, "damaged") in text
        assert ("Stop" in text) == (state in ("queued", "running"))
        assert ("Resume" in text.split("\n")) == (state in ("failed", "stopped"))
    if state.startswith("damaged"):
        assert page.error
        assert "Traceback" not in text


def test_a_finished_run_is_shown_whole(runs):
    folder = runs.take("random-0")
    (folder / "report.html").write_text("<p>report")
    runs.take("matched-0")
    page = opened("run", run="random-0")
    assert page.title[0].value == "digits, mlp: randomized, seed 0"
    titles = [" ".join(spec["title"]) for spec in charts_of(page)]
    assert len(titles) == 7
    (end,) = [line for line in journal(folder) if line["kind"] == "run_finished"]
    assert f"the test accuracy is {100 * end['test']['metric']:.1f} %" in page.success[0].value
    assert {part.proto.label for part in page.get("download_button")} == {"Network (zip)", "Report", "Stages (CSV)"}
    links = [(part.proto.label, part.proto.query_string) for part in page.get("page_link")]
    assert ("See its masks in Explore", "model=runs%2Frandom-0&stage=2") in links
    assert ("Compare the 2 runs of its group", "runs=matched-0%2Crandom-0") in links
    (stage,) = page.button_group
    assert stage.options[0] == "newest"
    (lanes,) = [spec for spec in charts_of(page) if "short training" in " ".join(spec["title"])]
    assert lanes["description"].startswith("Stage 2: 3 of 3 masks have a score")
    page = stage.set_value(["stage 1"]).run() if hasattr(stage, "set_value") else page
    assert not page.exception


@pytest.mark.parametrize("name", ["nothing", "../../etc/passwd", "/etc", "a\0b", "x" * 5000])
def test_a_run_that_is_not_there(runs, name):
    runs.take("stopped")
    page = opened("run", run=name)
    assert not page.exception
    assert len(page.error) == 1
    assert "there is none of this name" in page.error[0].value
    assert {"All runs", "Launch a run"} <= {part.proto.label for part in page.get("page_link")}
    page = opened("compare", runs=name)
    assert not page.exception
    assert "there is none of this name" in page.error[0].value


def test_a_run_that_is_deleted_while_on_screen(runs):
    folder = runs.take("stopped")
    page = opened("run", run="stopped")
    assert not page.error
    shutil.rmtree(folder)
    page.run()
    assert not page.exception
    assert "there is none of this name" in page.error[0].value


def test_stop_and_resume_say_what_came_of_it(runs):
    """The second of two tabs is told that the run waits already."""
    runs.take("stopped", "run")
    asked = []
    runs.monkeypatch.setattr(jobs, "resume", lambda folder: asked.append(("resume", Path(folder).name)))
    page = press(opened("run", run="run"), "Resume")
    assert asked == [("resume", "run")]
    assert not page.warning

    def refuse(_):
        raise ValueError("run: is queued already. Wait for it, or stop it first.")

    runs.monkeypatch.setattr(jobs, "resume", refuse)
    page = press(opened("run", run="run"), "Resume")
    assert page.warning[0].value == "run: is queued already. Wait for it, or stop it first."
    runs.says(run=Status("running", age=0.5))
    runs.monkeypatch.setattr(jobs, "stop", lambda _, *, wait: asked.append(("stop", wait)))
    press(opened("run", run="run"), "Stop")
    assert asked[-1] == ("stop", False)
    runs.says(run=Status("stopping", age=0.5))
    (stop,) = [button for button in opened("run", run="run").button if button.label == "Stop"]
    assert stop.disabled


def test_live_runs_stand_above_the_form(runs):
    runs.be("queued")
    labels = [part.proto.label for part in opened("run").get("page_link")]
    assert any(label.startswith("run: queued, position 2") for label in labels)


# History -------------------------------------------------------------------------------------------------------------


def table_of(page):
    return page.dataframe[0].value


def test_history_lists_all_and_filters(runs):
    for name in ("random-0", "matched-0", "stopped"):
        runs.take(name)
    (runs.take("random-1", "broken") / "events.jsonl").write_bytes(b"?\n")
    page = opened("history")
    assert set(table_of(page)["name"]) == {"stopped", "matched-0", "random-0", "broken"}
    assert "4 runs: 2 finished, 1 stopped, 1 damaged." in words(page)
    found = table_of(page.text_input[0].set_value("IMP-matched finished").run())
    assert list(found["name"]) == ["matched-0"]
    page = page.text_input[0].set_value("no run has this word").run()
    assert not page.exception
    assert len(table_of(page)) == 0


@pytest.mark.usefixtures("runs")
def test_nothing_in_history_says_what_to_do():
    page = opened("history")
    assert "Nothing has been run here yet" in page.info[0].value
    assert not page.dataframe


def ticked(*names):
    """History with these rows ticked: AppTest cannot click into a table."""
    page = opened("history")
    listed = list(table_of(page)["name"])
    page.session_state[f"runs {hash(tuple(listed))}"] = {"selection": {"rows": [listed.index(name) for name in names]}}
    return page.run()


def test_one_run_is_opened_and_several_compared(runs):
    for name in ("random-0", "matched-0"):
        runs.take(name)
    page = press(ticked("random-0"), "Open")
    assert page.title[0].value == "digits, mlp: randomized, seed 0"
    page = ticked("random-0", "matched-0")
    (opening,) = [button for button in page.button if button.label == "Open"]
    assert opening.disabled
    page = press(page, "Compare")
    assert page.multiselect[0].value == ["random-0", "matched-0"]
    assert not page.exception


def test_notes_are_kept(runs):
    folder = runs.take("random-0")
    page = ticked("random-0")
    page.text_area[0].set_value("the threads were 2")
    page = press(page, "Keep the note")
    assert jobs.read_note(folder) == "the threads were 2"
    assert list(table_of(page)["note"]) == ["the threads were 2"]


def test_deleting_asks_first_and_says_what_it_could_not(runs):
    gone, stays = runs.take("random-0"), runs.take("matched-0")
    page = ticked("random-0", "matched-0")
    assert gone.exists()
    assert "Delete random-0, matched-0 with all files, for good?" in words(page)
    delete = jobs.delete

    def refuse(folder):
        if folder.name == "matched-0":
            raise ValueError("matched-0: a process works on it, or waits to. Stop it first.")
        delete(folder)

    runs.monkeypatch.setattr(jobs, "delete", refuse)
    page = press(page, "Yes, delete 2 runs")
    assert not gone.exists()
    assert stays.exists()
    assert page.error[0].value == "matched-0: a process works on it, or waits to. Stop it first."
    assert list(table_of(page)["name"]) == ["matched-0"]


# Compare -------------------------------------------------------------------------------------------------------------


def test_runs_side_by_side(runs):
    names = ["random-0", "random-1", "matched-0", "matched-1"]
    for name in names:
        runs.take(name)
    page = opened("compare", runs=",".join(names))
    assert not page.exception
    assert page.multiselect[0].value == names
    titles = [" ".join(spec["title"]) for spec in charts_of(page)]
    assert titles[0] == "Does accuracy survive as weights are removed?"
    assert titles[1] == "Is the difference larger than the seeds' spread?"
    assert titles[2].startswith("Masks agree")
    text = words(page)
    assert "within noise" in text or "beyond noise" in text
    assert "method, max_epochs, seed" in text
    page = page.multiselect[0].set_value(["random-0"]).run()
    assert page.query_params["runs"] in ("random-0", ["random-0"])
    assert "nothing to tell apart" in words(page)
    page = page.multiselect[0].set_value(["random-0", "matched-0"]).run()
    assert "one seed: not a result" in words(page)


def test_runs_of_different_tasks(runs):
    runs.take("random-0")
    other = runs.folder / "other"
    other.mkdir()
    (other / "config.json").write_text(RunConfig(task="sentences", model="tiny-bert").model_dump_json())
    page = opened("compare", runs="random-0,other")
    assert not page.exception
    assert "Their scores do not compare" in page.warning[0].value
    assert not charts_of(page)


def test_a_damaged_run_harms_no_other(runs):
    runs.take("random-0")
    (runs.take("random-1", "broken") / "config.json").write_text("?")
    page = opened("compare", runs="random-0,broken")
    assert not page.exception
    assert page.error[0].value.startswith("broken: ")
    assert len(charts_of(page)) == 1


@pytest.mark.parametrize(("theme", "paper"), [("light", "white"), ("dark", "transparent")])
def test_charts_are_in_the_theme_of_the_page(runs, theme, paper):
    runs.take("random-0")
    specs = charts_of(opened("run", theme=theme, run="random-0"))
    assert {spec["background"] for spec in specs} == {paper}
    assert all((charts.GREY in json.dumps(spec)) <= (theme == "light") for spec in specs)
