"""The README's pictures, made by the lab itself (Chromium): ``PYTHONPATH=tests python -m support.draw_pictures``."""

import io
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from randprune_lab import charts, figures, store
from support.browser import (
    CHROMIUM_FLAGS,
    MAIN,
    App,
    chromium_path,
    end,
    free_port,
    open_notebook,
    run_all,
    scroll_to_panel,
)
from support.paths import ROOT

PICTURES = ROOT / ".pictures"
SIZE = {"width": 1280, "height": 860}
SECONDS = 1000  # milliseconds
COLORS = 128  # a screenshot of text and lines needs no more


def save(page: Page, name: str) -> None:
    with Image.open(io.BytesIO(page.screenshot())) as shot:
        few = shot.convert("RGB").quantize(COLORS, dither=Image.Dither.NONE)
        few.save(PICTURES / f"{name}.png", optimize=True)


def draw_run(folder: Path) -> None:
    """Step 1: what ``randprune run`` finds out, with its control."""
    subprocess.run([sys.executable, "-c", MAIN, "run"], cwd=folder, check=True)
    tables = {}
    for run in store.run_folders(folder / "runs"):
        config = store.read_config(run)
        tables[config.control or config.method] = [store.stage_table(run)]
    charts.save_svg(
        charts.accuracy_chart(figures.accuracy_rows(tables)).properties(background="white"), PICTURES / "run.svg"
    )


def draw_app(folder: Path, page: Page) -> None:
    """Step 2: the app's page Explore."""
    app = App(folder / "app")
    try:
        page.goto(app.address("explore", sparsity=0.9375, randomness="fixed", samples=16, candidates=4))
        page.locator(".rp-root[data-candidates-done='4']").wait_for(timeout=120 * SECONDS)
        page.wait_for_timeout(2 * SECONDS)
        save(page, "app")
    finally:
        app.stop()


def draw_lab(folder: Path, page: Page) -> None:
    """Step 3: a tutorial with a live panel in it."""
    log = folder / "lab.log"
    command = [sys.executable, "-c", MAIN, "lab", "mine", "--port", str(free_port()), "--no-browser"]
    with log.open("wb") as written:
        process = subprocess.Popen(command, cwd=folder, stdout=written, stderr=subprocess.STDOUT)
    try:
        while not (found := re.search(r"http://127\.0\.0\.1:\d+/\S*token=\w+", log.read_text())):
            time.sleep(0.2)
        open_notebook(page, found[0], "02-from-cut-to-chance.ipynb")
        run_all(page)
        scroll_to_panel(page)
        page.wait_for_timeout(3 * SECONDS)
        page.locator(".rp-root[data-answers]").first.evaluate(
            "root => { root.closest('.jp-WindowedPanel-outer').scrollTop += root.getBoundingClientRect().top - 260; }"
        )
        page.wait_for_timeout(2 * SECONDS)
        save(page, "lab")
    finally:
        end(process)


def main() -> None:
    """All of them, or those that are named: run, app, lab."""
    wanted = sys.argv[1:] or ["run", "app", "lab"]
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name)
        if "run" in wanted:
            draw_run(folder)
        browser = playwright.chromium.launch(executable_path=chromium_path(), args=CHROMIUM_FLAGS)
        for what, draw in (("app", draw_app), ("lab", draw_lab)):
            if what in wanted:
                draw(folder, browser.new_page(viewport=SIZE))
        browser.close()


if __name__ == "__main__":
    main()
