"""launch, history and compare in a real JupyterLab: a run is started, watched, stopped and resumed by hand."""

import os
import re

import pytest
from playwright.sync_api import expect
from support.browser import PATIENCE

from randprune_lab import jobs

SETTINGS = {
    "how sparse": {"stages": "0.5, 0.9"},
    "how random": {"candidates N": "2"},
    "how long it trains": {"dense epochs": "60", "max epochs": "60"},
}
CELLS = (
    "from randprune_lab import compare, history, launch\npanel = launch(parent={parent!r})\npanel",
    "print(f'score {{panel.handles[0].result().score:.4f}}')",
    "history({parent!r})",
    "compare(panel.handles[0], parent={parent!r})",
)


class Notebook:
    """A notebook with the panels on a page."""

    def __init__(self, browser, lab, parent) -> None:
        self.lab = lab
        self.page = browser.new_page(viewport={"width": 1280, "height": 1200})
        self.page.set_default_timeout(PATIENCE)
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        address = lab.notebook("console.ipynb", *(cell.format(parent=str(parent)) for cell in CELLS))
        self.kernel = lab.kernel
        self.page.goto(address)
        self.page.wait_for_function("window.jupyterapp?.shell?.currentWidget?.context?.isReady", timeout=60_000)
        self.page.wait_for_function(
            "window.jupyterapp.shell.currentWidget.sessionContext.session?.kernel?.connectionStatus == 'connected'",
            timeout=60_000,
        )
        self.page.evaluate("window.jupyterapp.shell.collapseLeft()")
        for button in self.page.query_selector_all(".jp-Dialog .jp-mod-accept"):
            button.click()

    def run_cell(self, number: int) -> None:
        """The cell of this number, and wait until its output is there."""
        self.page.evaluate(
            "(number) => { const notebook = window.jupyterapp.shell.currentWidget.content;"
            " notebook.activeCellIndex = number; notebook.deselectAll();"
            " window.jupyterapp.commands.execute('notebook:run-cell'); }",
            number,
        )
        self.output(number).wait_for(timeout=60_000)

    def output(self, number: int):
        return self.page.locator(".jp-Notebook .jp-CodeCell").nth(number).locator(".jp-OutputArea-output").first

    def fill(self, label: str, text: str) -> None:
        box = self.page.locator(".rp-console .widget-text", has_text=label).locator("input").first
        box.fill(text)
        box.press("Tab")

    def press(self, label: str) -> None:
        """A button, once it can be pressed."""
        self.page.locator(f".rp-console button:not([disabled]):has-text('{label}')").first.click(timeout=60_000)

    def sees(self, text: str) -> None:
        self.page.locator(".rp-console", has_text=re.compile(text)).first.wait_for(timeout=90_000)

    def shows(self, state: str) -> None:
        """How the run stands, by its panel's first line: elsewhere "no stage is finished" may stand."""
        self.page.locator(".rp-console b", has_text=re.compile(f"^{state}$")).first.wait_for(timeout=90_000)

    def theme(self, name: str) -> None:
        self.page.evaluate(
            "(theme) => { window.jupyterapp.commands.execute('apputils:change-theme', {theme}); }", f"JupyterLab {name}"
        )
        self.page.wait_for_timeout(1500)

    def picture(self, name: str, number: int) -> None:
        """Screenshots of a cell's output for people to look at, where RANDPRUNE_PICTURES names a folder for them."""
        folder = os.environ.get("RANDPRUNE_PICTURES")
        if not folder:
            return
        for theme in ("Light", "Dark"):
            self.theme(theme)
            for width in (1280, 800):
                self.page.set_viewport_size({"width": width, "height": 3600})
                self.page.wait_for_timeout(500)
                self.output(number).screenshot(path=f"{folder}/{name}-{theme.lower()}-{width}.png")
        self.page.set_viewport_size({"width": 1280, "height": 1200})
        self.theme("Light")


@pytest.fixture
def notebook(browser, lab, tmp_path):
    opened = Notebook(browser, lab, tmp_path / "runs")
    yield opened
    for folder in tmp_path.glob("runs/*/status.json"):
        if jobs.status(folder.parent).is_live:
            jobs.stop(folder.parent)
    opened.page.close()
    lab.api("DELETE", f"kernels/{opened.kernel}")


def test_launch_watch_stop_resume_and_compare(notebook, tmp_path):
    page = notebook.page
    notebook.run_cell(0)
    notebook.sees("Launch a run")
    notebook.picture("form", 0)
    for group, settings in SETTINGS.items():
        page.locator(".rp-console").get_by_text(group, exact=True).click()
        for label, text in settings.items():
            notebook.fill(label, text)
    notebook.press("Start")
    notebook.sees(r"Folder: ")
    (folder,) = (tmp_path / "runs").glob("*-digits-*")
    notebook.sees(r"running \(alive")
    notebook.sees(r"[Dd]ense network")
    notebook.press("Stop")
    notebook.shows("stopped")
    assert jobs.status(folder).state == "stopped"
    notebook.press("Resume")
    notebook.sees(r"Stage 1 of 2|stage 1 of 2")
    notebook.sees("Result")
    notebook.shows("finished")
    assert jobs.status(folder).state == "finished"
    expect(page.locator(".rp-console .chart svg")).to_have_count(2)
    notebook.picture("run", 0)

    notebook.run_cell(1)
    score = re.search(r"score (\d\.\d+)", notebook.output(1).inner_text())[1]
    assert f"{100 * float(score):.1f} %" in notebook.output(0).inner_text()
    notebook.run_cell(2)
    notebook.output(2).get_by_text("1 run: 1 finished.").wait_for()
    assert folder.name in notebook.output(2).inner_text()
    notebook.picture("history", 2)
    notebook.run_cell(3)
    notebook.output(3).get_by_text("One run alone differs from nothing.").wait_for()
    assert notebook.output(3).locator(".chart svg").count() == 1
    notebook.picture("compare", 3)

    assert page.get_by_text("run this cell again").count() == 0
    notebook.lab.api("POST", f"kernels/{notebook.kernel}/restart")
    page.get_by_text("run this cell again").first.wait_for(timeout=20_000)

    assert notebook.errors == []
    places = {re.match(r"(\w+):(//[^:/]*)?", url)[0] for url in notebook.requests}
    assert places <= {"http://127.0.0.1", "data:", "blob:"}
