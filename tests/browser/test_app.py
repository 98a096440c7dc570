"""The app as a new user meets it, in a real browser: look, launch, watch, reload, stop, resume, compare, download."""

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from playwright.sync_api import TimeoutError as Late
from safetensors.torch import load_file
from support.browser import RUN_TIMEOUT, wait_for_badge, wait_for_status

from randprune_lab import RunConfig, jobs, store

SECONDS = 1000  # milliseconds


@pytest.mark.parametrize(
    ("view", "role", "name"),
    [("", "link", "prune this network for real"), ("explore", "button", "Launch what I see")],
)
def test_a_page_that_is_left_asks_nothing_more(app, page, view, role, name):
    """Else Streamlit empties the next page: an answer that comes late belongs to a page that is not on screen."""
    page.goto(app.address(view))
    slider = page.locator("input[type=range][data-field=sparsity]")
    slider.wait_for(timeout=RUN_TIMEOUT)
    page.evaluate(
        "() => { window.sent = 0; const send = WebSocket.prototype.send;"
        " WebSocket.prototype.send = function (...data) { window.sent += 1; return send.apply(this, data); } }"
    )
    slider.press("ArrowLeft")
    page.wait_for_function("() => window.sent > 0")
    leads_on = page.get_by_role(role, name=re.compile(name))
    # The next page takes its time: it does not even begin.
    leads_on.evaluate(
        "element => { document.addEventListener('click', e => { e.stopPropagation(); e.preventDefault(); }, true);"
        " element.click(); window.sent = 0; }"
    )
    for _ in range(3):
        slider.press("ArrowLeft")
        page.wait_for_timeout(1 * SECONDS)
    assert page.evaluate("window.sent") == 0


def finished_stages(folder: Path) -> list:
    return [event for event in store.story(folder) if event.kind == "stage_finished"]


def test_a_new_user(own_app, page, tmp_path):
    page.goto(own_app.address())
    slider = page.locator("input[type=range][data-field=sparsity]")
    slider.wait_for(timeout=RUN_TIMEOUT)  # the lab trains the demo's network first
    moved, until = {slider.input_value()}, time.monotonic() + 30
    while len(moved) <= 3:
        assert time.monotonic() < until, "the first panel does not move"
        page.wait_for_timeout(100)
        moved.add(slider.input_value())

    page.get_by_role("link", name=re.compile("prune this network for real")).click()
    start = page.get_by_role("button", name=re.compile(r"Start 2 runs"))
    start.wait_for(timeout=RUN_TIMEOUT)
    page.get_by_text(re.compile(r"Each run: about .* measured just now")).wait_for(timeout=RUN_TIMEOUT)
    page.get_by_text("The same from a terminal").click()
    command = page.locator("[data-testid=stCode]").first.inner_text().splitlines()[0]
    start.click()
    page.wait_for_url("**/run?run=*")
    name = re.search(r"run=([\w-]+)", page.url)[1]
    folder = own_app.runs / name
    wait_for_badge(page, "running")

    # Stages arrive. The run takes seconds, a busy machine's browser may take as long for a page: it is held in its
    # middle, so that there is something to stop.
    while not (before := finished_stages(folder)):
        assert jobs.status(folder).is_live, jobs.status(folder)
        time.sleep(0.02)
    process = psutil.Process(jobs.status(folder).pid)
    process.suspend()
    try:
        assert jobs.status(folder).state == "running"
        page.get_by_text(re.compile(r"[Ss]tage 1")).first.wait_for(timeout=RUN_TIMEOUT)
        page.reload()
        wait_for_badge(page, "running")
        assert name in page.url
        page.get_by_role("button", name="Stop").click()
        until = time.monotonic() + 10
        while not (folder / "cancel").exists():  # what the button does
            assert time.monotonic() < until, "the button does nothing"
            time.sleep(0.02)
    finally:
        process.resume()
    wait_for_badge(page, "stopped")
    after = finished_stages(folder)
    assert after[: len(before)] == before
    page.get_by_role("button", name="Resume").click()
    wait_for_badge(page, "finished")

    # ... and the result is that of the same run from the command line
    elsewhere = tmp_path / "elsewhere"
    words = [*shlex.split(command), "--no-controls"]
    assert words[0] == "randprune"
    subprocess.run(
        [Path(sys.executable).with_name("randprune"), *words[1:]],
        env={**os.environ, "RANDPRUNE_RUNS": str(elsewhere)},
        check=True,
        capture_output=True,
        timeout=180,
    )
    (other,) = (path.parent for path in elsewhere.glob("*/config.json"))
    assert store.stage_table(other) == store.stage_table(folder)
    ours, theirs = (load_file(run / "model" / "model.safetensors") for run in (folder, other))
    assert all(ours[key].equal(theirs[key]) for key in theirs)
    final = store.stage_table(folder)[-1]["score"]
    page.get_by_text(f"{100 * final:.1f}").first.wait_for()

    # beside its control
    (control,) = (path.parent for path in own_app.runs.glob("*imp-matched*/config.json"))
    jobs.wait(control, timeout=180)
    assert jobs.status(control).state == "finished"
    page.reload()
    page.get_by_role("link", name=re.compile("Compare the 2 runs")).click()
    page.wait_for_url("**/compare?runs=*")
    page.get_by_text("one seed", exact=False).first.wait_for()
    page.locator("[data-testid=stVegaLiteChart] svg, [data-testid=stVegaLiteChart] canvas").first.wait_for()

    page.goto(own_app.address("run", run=name))
    with page.expect_download() as downloading:
        page.get_by_role("button", name="Report").click()
    report = tmp_path / "downloaded.html"
    downloading.value.save_as(report)
    page.goto(report.as_uri())
    assert "Stage by stage" in page.inner_text("body")
    assert "imp-matched" in page.inner_text("body")  # the control ended later, and the report knows it


@pytest.fixture
def two_jobs(own_app, monkeypatch):
    """A run that works for a long time, and one that waits behind it."""
    monkeypatch.setenv("RANDPRUNE_SLOTS", "1")
    config = RunConfig(dense_epochs=3, max_epochs=100_000, candidates=2, stages=(0.5, 0.9))
    running = jobs.start(config, parent=own_app.runs)
    queued = jobs.start(config.model_copy(update={"seed": 1}), parent=own_app.runs)
    wait_for_status(running, "running")
    until = time.monotonic() + 180
    while not any(event.kind == "mask_chosen" for event in store.story(running)):
        assert jobs.status(running).is_live, jobs.status(running)
        assert time.monotonic() < until
        time.sleep(0.1)
    assert jobs.status(queued).state == "queued"
    return running, queued


def move_a_slider(app, page, running, _):
    page.goto(app.address("explore", model=f"runs/{running.name}"))
    slider = page.locator("input[type=range][data-field=sparsity]")
    page.locator(".rp-root[data-candidates-done]").wait_for()
    slider.focus()
    before = page.locator(".rp-root").get_attribute("data-answers")
    page.keyboard.press("ArrowLeft")
    for _ in range(100):
        if page.locator(".rp-root").get_attribute("data-answers") != before:
            break
        page.wait_for_timeout(100)
    else:
        pytest.fail("the picture does not follow the slider")
    return "running", "queued"


def reload(app, page, running, queued):
    for folder in (running, queued):
        page.goto(app.address("run", run=folder.name))
        wait_for_badge(page, "running", "queued")
        page.reload()
        wait_for_badge(page, "running", "queued", timeout=60 * SECONDS)
    return "running", "queued"


def close_the_tab(app, page, running, _):
    other = page.context.new_page()
    other.goto(app.address("run", run=running.name))
    wait_for_badge(other, "running")
    other.close()
    return "running", "queued"


def stop_in_a_second_tab(app, page, running, queued):
    """The first tab sees what the second does; and the one that waited gets its turn."""
    page.goto(app.address("run", run=running.name))
    other = page.context.new_page()
    other.goto(app.address("run", run=running.name))
    for tab in (page, other):
        wait_for_badge(tab, "running")
    other.get_by_role("button", name="Stop").click()
    for tab in (page, other):
        wait_for_badge(tab, "stopped", timeout=60 * SECONDS)
    wait_for_status(queued, "running", seconds=10)
    page.get_by_role("button", name="Resume").wait_for()
    other.get_by_role("button", name="Resume").click()
    again = page.get_by_role("button", name="Resume")  # both want it back: one queues it, the other is told or sees it
    if again.count():
        with contextlib.suppress(Late):  # it may vanish under the finger, which is the other good end
            again.click(timeout=2 * SECONDS)
    for tab in (page, other):
        wait_for_badge(tab, "queued", timeout=60 * SECONDS)
    return "queued", "running"


def kill_the_server(app, page, running, _):
    page.goto(app.address("run", run=running.name))
    wait_for_badge(page, "running")
    app.process.kill()
    app.stop()
    app.start()
    page.goto(app.address("run", run=running.name))
    wait_for_badge(page, "running")
    return "running", "queued"


def kill_the_jobs(app, page, running, queued):
    for folder in (queued, running):
        os.kill(jobs.status(folder).pid, signal.SIGKILL)
    for folder in (running, queued):
        page.goto(app.address("run", run=folder.name))
        wait_for_badge(page, "interrupted", timeout=60 * SECONDS)
        page.get_by_role("button", name="Resume").click()
        wait_for_badge(page, "running", "queued", timeout=60 * SECONDS)
    return "running", "queued"


@pytest.mark.parametrize(
    "what", [move_a_slider, reload, close_the_tab, stop_in_a_second_tab, kill_the_server, kill_the_jobs]
)
def test_nothing_is_lost(own_app, page, two_jobs, what):
    """The kill matrix: whatever happens, to a run that works and to one that waits."""
    running, queued = two_jobs
    before = store.story(running)
    states = what(own_app, page, running, queued)
    for folder, state in zip(two_jobs, states, strict=True):
        wait_for_status(folder, state, seconds=10)
    until = time.monotonic() + 60
    whole = [event for event in before if event.kind != "epoch_finished"]
    while time.monotonic() < until:  # what was done before still stands, and the one that has its turn gets on
        after = [event for event in store.story(running) if event.kind not in ("epoch_finished", "resumed")]
        works = running if states[0] == "running" else queued
        if after[: len(whole)] == whole and len(store.story(works)) > (len(before) if works == running else 3):
            break
        time.sleep(0.2)
    else:
        pytest.fail("the runs do not go on")
    page.goto(own_app.address("history"))
    page.get_by_text("2 runs").first.wait_for()


PICTURE = "![x](http://127.0.0.1:9/picture.png) $x^2$ [x](http://127.0.0.1:9) :red[x]"


def test_text_of_addresses_and_files_stays_text(own_app, page):
    """Streamlit takes text for markdown: a picture in a name would be fetched from wherever it says."""
    config = RunConfig().model_dump(mode="json") | {"task": PICTURE, "model": PICTURE}
    for name, text in {"odd": json.dumps(config), "newer": json.dumps({PICTURE: 1}), "![x](y)": "{"}.items():
        folder = own_app.runs / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(text)
        (folder / "events.jsonl").write_text("")
        (folder / "note.txt").write_text(PICTURE)
        (folder / "log.txt").write_text(PICTURE)
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    for address in (
        own_app.address("run", run=PICTURE),
        own_app.address("run", run="odd"),
        own_app.address("run", run="newer"),
        own_app.address("run", launch=1, sparsity=PICTURE, **{PICTURE: 1}),
        own_app.address("compare", runs=f"{PICTURE},odd,newer"),
        own_app.address("explore", model=PICTURE, tensor=PICTURE, **{PICTURE: 1}),
        own_app.address("history"),
        own_app.address("learn", lesson=PICTURE),
    ):
        page.goto(address)
        page.locator("h1").wait_for(timeout=60 * SECONDS)
        page.wait_for_timeout(1500)
        assert page.locator("[data-testid=stMain] img").count() == 0
        assert page.locator("[data-testid=stMain] .katex").count() == 0
    assert [url for url in asked if ":9/" in url] == []
    page.goto(own_app.address("run", run="odd"))
    page.get_by_text("![x](http://127.0.0.1:9/picture.png)").first.wait_for()


BAD_NAMES = ["../../etc/passwd", "/etc/passwd", "..", "no-such-run", "a/../../b", "%00", "<script>alert(1)</script>"]


def test_nothing_outside_its_folders_is_shown(app, page):
    """As a run, a model, a config to start from, a comparison: refused in one sentence."""
    for place, name in enumerate(BAD_NAMES):
        asked = [
            app.address("run", run=name),
            app.address("run", launch=1, model=name),
            app.address("explore", model=name),
            app.address("explore", model=f"runs/{name}"),
            app.address("explore", model=f"models/{name}"),
            app.address("compare", runs=name),
        ]
        for address in asked if place == 0 else (asked[0], asked[1 + place % 5]):  # all with all: tests/test_places.py
            page.goto(address)
            page.locator("[data-testid=stAlert], .rp-notice.rp-error").first.wait_for(timeout=60 * SECONDS)
            text = page.inner_text("body")
            assert "root:" not in text
            assert "Traceback" not in text
