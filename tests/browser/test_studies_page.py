"""Studies as a new user meets them, in a real browser: find one, read its verdict, start another, watch it, stop it."""

import contextlib
import re
from pathlib import Path

import psutil
from support.browser import RUN_TIMEOUT, SECONDS, wait_for_badge
from support.studies import make, tiny_study

from randprune_lab import study_jobs
from randprune_lab.study_claims import TOO_FEW
from randprune_lab.study_runs import read_state

NEW = "figure-5a-small"


def test_studies_are_read_started_and_stopped(own_app, page):
    parent = own_app.runs / "studies"
    make(tiny_study(), parent)
    page.goto(own_app.address("studies"))
    page.get_by_role("button", name=tiny_study().title).click(timeout=60 * SECONDS)
    page.wait_for_url("**/studies?study=tiny")
    page.locator("[data-testid=stMarkdownBadge], .stMarkdownBadge").filter(has_text=TOO_FEW).wait_for()
    page.locator("[data-testid=stVegaLiteChart] canvas, [data-testid=stVegaLiteChart] svg").nth(1).wait_for()
    with page.expect_download() as saved:
        page.get_by_role("button", name="report.html").click()
    assert tiny_study().title in Path(saved.value.path()).read_text()
    page.set_viewport_size({"width": 420, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= 420

    page.set_viewport_size({"width": 1280, "height": 1000})
    page.goto(own_app.address("studies", study=NEW))
    page.get_by_role("button", name=re.compile("Start$")).click(timeout=60 * SECONDS)
    try:
        wait_for_badge(page, "running")
        page.get_by_text(re.compile(r"[1-9]\d* of 24 runs done")).wait_for(timeout=RUN_TIMEOUT)
        page.reload()
        wait_for_badge(page, "running")
        page.get_by_role("button", name=re.compile("Stop$")).click()
        wait_for_badge(page, "stopped")
        state = read_state(parent / NEW)
        assert 0 < state.done < state.of == 24
        with contextlib.suppress(psutil.NoSuchProcess):  # it says so a moment before it ends
            psutil.Process(state.pid).wait(timeout=30)
        page.get_by_role("button", name=re.compile("Go on$")).wait_for()
    finally:
        with contextlib.suppress(ValueError):
            study_jobs.stop(parent / NEW)
