"""``randprune lab`` as a student meets it: the tutorials in a real browser, run, moved by hand, and answered."""

import os
import re
import subprocess
import sys
import time

import nbformat
import pytest
from playwright.sync_api import expect
from support.browser import (
    MAIN,
    PATIENCE,
    SECONDS,
    START_SECONDS,
    chromium_path,
    end,
    free_port,
    open_notebook,
    run_all,
    scroll_to_panel,
)

from randprune_lab.files import shipped
from randprune_lab.tutorials import tutorials

# The panel that a tutorial asks to move, and by what.
PANELS = {
    "01-cut-at-a-threshold.ipynb": ("microscope", "sparsity"),
    "02-from-cut-to-chance.ipynb": ("curve", "power"),
    "03-measuring-randomness.ipynb": ("randomness", "target_ir"),
}
ERROR = "[data-mime-type='application/vnd.jupyter.stderr']"  # how JupyterLab shows a traceback


@pytest.fixture(scope="module")
def lab_address(tmp_path_factory):
    """JupyterLab as the command opens it, from a folder that knows nothing of it; its address with the token."""
    if chromium_path() is None:
        pytest.skip("no Chromium: install it (Debian: chromium), or name it in RANDPRUNE_CHROMIUM")
    folder = tmp_path_factory.mktemp("student")
    log = folder / "log"
    settings = folder / "settings" / "jupyter_lab_config.json"  # so that a test can ask whether the kernel is there
    settings.parent.mkdir()
    settings.write_text('{"LabApp": {"expose_app_in_browser": true}}')
    env = os.environ | {"JUPYTER_CONFIG_PATH": str(settings.parent)}
    command = [sys.executable, "-c", MAIN, "lab", "mine", "--port", str(free_port()), "--no-browser"]
    with log.open("wb") as written:
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=written, stderr=subprocess.STDOUT)
    until = time.monotonic() + START_SECONDS
    while not (found := re.search(r"http://127\.0\.0\.1:\d+/\S*token=\w+", log.read_text())):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.2)
    yield found[0]
    end(process)


@pytest.fixture
def page(browser):
    page = browser.new_page(viewport={"width": 1400, "height": 1100})
    page.set_default_timeout(PATIENCE)
    requests, errors = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    page.close()
    assert errors == []
    assert {re.match(r"(\w+):(//[^:/]*)?", url)[0] for url in requests} <= {"http://127.0.0.1", "data:", "blob:"}


def printed(cell: nbformat.NotebookNode) -> str:
    return "".join(output.get("text", "") for output in cell.get("outputs", ()))


def test_it_opens_the_first_tutorial_and_asks_nothing(page, lab_address):
    assert "01-cut-at-a-threshold.ipynb" in lab_address
    page.goto(lab_address)
    page.get_by_role("heading", name="Cut at a threshold").wait_for(timeout=60 * SECONDS)
    page.wait_for_timeout(2000)
    assert page.locator(".jp-Dialog:visible, .Toastify__toast:visible").count() == 0  # no news, no update
    expect(page.locator(".jp-OutputArea-output")).to_have_count(0)  # answers do not stand below the questions


@pytest.mark.parametrize("name", PANELS)
def test_its_panels_live_and_its_exercises_answer(page, lab_address, name):
    open_notebook(page, lab_address, name)
    run_all(page)
    scroll_to_panel(page)
    root = page.locator(".rp-root[data-answers]").first
    root.wait_for(timeout=120 * SECONDS)

    # the panel follows the hand
    panel, field = PANELS[name]
    slider, box = (root.locator(f"{kind}[data-field={field}]") for kind in ("input[type=range]", ".rp-box"))
    sentence = root.locator(f"[data-panel={panel}] .sentence").first
    page.locator(".rp-root[data-table-seq][data-sweep-seq]").first.wait_for(timeout=60 * SECONDS)
    before, value, asked = sentence.inner_text(), float(box.input_value()), root.get_attribute("data-answers")
    slider.focus()
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
        page.wait_for_timeout(300)
    expect(sentence).not_to_have_text(before, timeout=20 * SECONDS)
    assert float(box.input_value()) < value
    assert root.get_attribute("data-answers") != asked  # it was asked, and has answered

    # all cells have run, none has failed, every exercise is open
    cells = nbformat.read(shipped("notebooks") / name, as_version=4).cells
    still_open = sum(line.startswith("not yet: ") for cell in cells for line in printed(cell).splitlines())
    assert still_open > 0
    page.wait_for_function(
        "(wanted) => [...document.querySelectorAll('.jp-OutputArea-output')].map((output) => output.textContent)"
        ".join('\\n').split('\\n').filter((line) => line.startsWith('not yet: ')).length === wanted",
        arg=still_open,
        timeout=120 * SECONDS,
    )
    expect(page.locator(ERROR)).to_have_count(0)


def test_a_right_answer_is_right(page, lab_address):
    """The first question of the first tutorial, answered by hand.

    From the top, cell by cell: "run all" goes to the end, and JupyterLab may draw what is out of sight later.
    """
    open_notebook(page, lab_address, "01-cut-at-a-threshold.ipynb")
    imports, guess = (page.locator(".jp-CodeCell", has_text=text) for text in ("import torch", "# a magnitude"))
    imports.locator(".cm-content").click()
    page.keyboard.press("Shift+Enter")
    guess.locator(".cm-content").click()
    page.keyboard.press("Control+a")
    page.keyboard.type("guess = 0.4")
    page.keyboard.press("Shift+Enter")  # and the next cells: a text, and the check
    page.keyboard.press("Shift+Enter")
    page.keyboard.press("Shift+Enter")
    page.locator(".jp-OutputArea-output", has_text=re.compile(r"^right$", re.MULTILINE)).first.wait_for(
        timeout=120 * SECONDS
    )


def test_every_tutorial_is_there(lab_address, page):
    open_notebook(page, lab_address, "08-make-it-yours.ipynb")
    for tutorial in tutorials():
        page.locator(".jp-DirListing-itemText", has_text=tutorial.file).first.wait_for(timeout=20 * SECONDS)
