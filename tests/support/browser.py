"""A real JupyterLab and a real server of the app for the browser tests, on this machine alone."""

import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path

import psutil

from randprune_lab import jobs

CHROMIUM_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
CHROMIUM_FLAGS += ["--disable-sync"]


TOKEN = "browser-tests"


START_SECONDS = 240


PATIENCE = 120_000  # milliseconds that the browser looks for something: a ceiling, for a crowded machine


MAIN = "from randprune_lab.cli import main; main()"  # the command line, whatever is on the path


def chromium_path() -> str | None:
    found = [
        os.environ.get("RANDPRUNE_CHROMIUM"),
        *map(shutil.which, ("chromium", "chromium-browser", "google-chrome")),
    ]
    return next((path for path in found if path), None)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def end(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def answers(process: subprocess.Popen, ask: Callable[[], object]) -> bool:
    """Wait until a server that has been started answers; False where it has ended, or does not in time."""
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        try:
            ask()
        except (OSError, http.client.HTTPException):
            time.sleep(0.2)
        else:
            return True
    return False


class Lab:
    """JupyterLab in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        arguments = [
            "--no-browser",
            "--allow-root",
            f"--port={self.port}",
            "--ServerApp.ip=127.0.0.1",
            f"--IdentityProvider.token={TOKEN}",
            f"--ServerApp.root_dir={folder}",
            "--LabApp.expose_app_in_browser=True",
            "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        ]
        places = {
            name: str(folder / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")
        }
        env = {**os.environ, **places, "OMP_WAIT_POLICY": "PASSIVE", "IPYTHONDIR": str(folder / "ipython")}
        settings = Path(places["JUPYTER_CONFIG_DIR"]) / "labconfig" / "default_setting_overrides.json"
        settings.parent.mkdir(parents=True)
        settings.write_text(json.dumps({"@jupyterlab/apputils-extension:notification": {"fetchNews": "false"}}))
        self.log = (folder / "lab.log").open("wb")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *arguments], env=env, stdout=self.log, stderr=subprocess.STDOUT
        )
        self._wait()

    def _wait(self) -> None:
        if not answers(self.process, lambda: self.api("GET", "status")):
            self.stop()
            raise TimeoutError((self.folder / "lab.log").read_text()[-2000:])

    def api(self, method: str, path: str, body: object = None):
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/api/{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"token {TOKEN}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            content = answer.read()
        return json.loads(content) if content else None

    def notebook(self, name: str, *cells: str) -> str:
        """Write a notebook and start its kernel; returns its address."""
        blank = {"cell_type": "code", "metadata": {}, "outputs": [], "execution_count": None}
        content = {
            "cells": [{**blank, "id": f"cell{place}", "source": cell} for place, cell in enumerate(cells)],
            "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3"}},
            "nbformat": 4,
            "nbformat_minor": 5,
        }
        (self.folder / name).write_text(json.dumps(content))
        session = {"path": name, "type": "notebook", "name": name, "kernel": {"name": "python3"}}
        self.kernel = self.api("POST", "sessions", session)["kernel"]["id"]
        return self.address(name)

    def address(self, name: str) -> str:
        return f"http://127.0.0.1:{self.port}/lab/tree/{name}?reset&token={TOKEN}"

    def stop(self) -> None:
        end(self.process)
        self.log.close()


SETTLED = """
(root) => {
  const { candidatesDone, candidatesTotal, tableDone, tableTotal, sweepSeq } = root.dataset;
  const isShown = (panel) => root.querySelector(`section[data-panel=${panel}]:not([hidden])`);
  const begun = (panel, part) => !isShown(panel) || part !== undefined;
  return !root.hasAttribute("data-waits") && !root.querySelector(".rp-late")
    && begun("candidates", candidatesDone) && candidatesDone === candidatesTotal
    && begun("table", tableDone) && tableDone === tableTotal && begun("randomness", sweepSeq);
}
"""


def wait_until_settled(page) -> None:
    """Until the panels have been answered, and what is slow is on screen, too, all of it."""
    root, until = page.locator(".rp-root").first, time.monotonic() + 60
    while not root.evaluate(SETTLED):
        assert time.monotonic() < until, root.evaluate("(root) => root.cloneNode().outerHTML")
        page.wait_for_timeout(50)


class App:
    """``randprune app`` in a folder of its own: runs, models and cache lie in it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.runs, self.models = folder / "runs", folder / "models"
        self.models.mkdir(parents=True, exist_ok=True)
        self.env = {**os.environ, "RANDPRUNE_CACHE": str(folder / "cache"), "RANDPRUNE_RUNS": str(self.runs)}
        self.start()

    def start(self) -> None:
        """Also after ``stop``: on the same port."""
        folders = ["--runs", str(self.runs), "--models", str(self.models)]
        self.log = (self.folder / "app.log").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-c", MAIN, "app", "--port", str(self.port), "--no-browser", *folders],
            env=self.env,
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )
        if not answers(self.process, lambda: urllib.request.urlopen(self.address("_stcore/health"), timeout=5).close()):
            self.stop()
            raise TimeoutError(self.said()[-2000:])

    def address(self, page: str = "", **query: object) -> str:
        return f"http://127.0.0.1:{self.port}/{page}{'?' if query else ''}{urllib.parse.urlencode(query)}"

    def said(self) -> str:
        return (self.folder / "app.log").read_text()

    def memory(self) -> int:
        """Bytes of it that are in memory."""
        return psutil.Process(self.process.pid).memory_info().rss

    def stop(self) -> None:
        end(self.process)
        self.log.close()


SECONDS = 1000  # milliseconds


def open_notebook(page, address: str, name: str) -> None:
    """Until its kernel is connected, and has nothing to do: who asks for a run sooner is asked for a kernel."""
    page.goto(re.sub(r"/lab/[^?]*", f"/lab/tree/{name}", address) + "&reset")
    page.wait_for_function("window.jupyterapp?.shell?.currentWidget?.context?.isReady", timeout=60 * SECONDS)
    page.wait_for_function(
        "() => { const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session?.kernel;"
        " return kernel?.connectionStatus === 'connected' && kernel.status === 'idle'; }",
        timeout=180 * SECONDS,
    )


def run_all(page) -> None:
    page.locator(".lm-MenuBar-item", has_text=re.compile("^Run$")).click()
    page.locator(".lm-Menu-item[data-command='runmenu:run-all']").click()


def scroll_to_panel(page) -> None:
    """JupyterLab draws the cells that are in sight, and no others: it gets more time at each look from top to end.

    A widget that was made before JupyterLab knew the kernel's widgets is never drawn; a student runs the cells again.
    """
    pause, until = 300, time.monotonic() + 240
    while not page.locator(".rp-root").count():
        outputs = page.locator(".jp-OutputArea-output:visible").all_inner_texts
        assert time.monotonic() < until, f"there is no panel, but {outputs()}"
        at_end = page.locator(".jp-WindowedPanel-outer:visible").evaluate(
            "(panel) => { const before = panel.scrollTop; panel.scrollBy(0, 500);"
            " const end = panel.scrollTop <= before; if (end) panel.scrollTop = 0; return end; }"
        )
        if at_end:
            pause = min(pause * 2, 3000)
            if pause == 1200:
                run_all(page)
        page.wait_for_timeout(pause)
    page.locator(".rp-root").first.scroll_into_view_if_needed()


RUN_TIMEOUT = 180 * SECONDS  # a ceiling: on a busy machine a server alone may take a minute to start


def wait_for_badge(page, *states: str, timeout: int = RUN_TIMEOUT) -> str:
    """Wait until the run on screen is in one of these states."""
    badge = page.locator("[data-testid=stMarkdownBadge], .stMarkdownBadge").first
    pattern = re.compile("|".join(rf"{state}\s*$" for state in states))
    page.wait_for_function(
        "pattern => [...document.querySelectorAll('.stMarkdownBadge, [data-testid=stMarkdownBadge]')]"
        ".some(badge => new RegExp(pattern).test(badge.innerText))",
        arg=pattern.pattern,
        timeout=timeout,
    )
    return badge.inner_text()


def wait_for_status(folder: Path, *states: str, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while jobs.status(folder).state not in states:
        assert time.monotonic() < until, (jobs.status(folder), states)
        time.sleep(0.1)
