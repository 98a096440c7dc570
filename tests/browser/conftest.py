"""A real JupyterLab and a real Chromium, both on this machine alone."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

CHROMIUM_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
CHROMIUM_FLAGS += ["--disable-sync"]
TOKEN = "browser-tests"
START_SECONDS = 60


def chromium_path() -> str | None:
    found = [
        os.environ.get("RANDPRUNE_CHROMIUM"),
        *map(shutil.which, ("chromium", "chromium-browser", "google-chrome")),
    ]
    return next((path for path in found if path), None)


@pytest.fixture(scope="session")
def browser():
    """Chromium of the system, driven by Playwright."""
    path = chromium_path()
    if path is None:
        pytest.skip("no Chromium: install it (Debian: chromium), or name it in RANDPRUNE_CHROMIUM")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=CHROMIUM_FLAGS)
        yield started
        started.close()


class Lab:
    """JupyterLab in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        arguments = [
            "--no-browser",
            "--allow-root",
            f"--port={self.port}",
            "--ServerApp.ip=127.0.0.1",
            f"--IdentityProvider.token={TOKEN}",
            f"--ServerApp.root_dir={folder}",
            "--LabApp.expose_app_in_browser=True",
            "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
            "--LabApp.news_url=None",
        ]
        places = {
            name: str(folder / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")
        }
        env = {**os.environ, **places, "OMP_WAIT_POLICY": "PASSIVE", "IPYTHONDIR": str(folder / "ipython")}
        self.log = (folder / "lab.log").open("wb")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *arguments], env=env, stdout=self.log, stderr=subprocess.STDOUT
        )
        self._wait()

    def _wait(self) -> None:
        for _ in range(START_SECONDS * 5):
            try:
                return self.api("GET", "status") and None
            except OSError:
                time.sleep(0.2)
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
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    if chromium_path() is None:
        pytest.skip("no Chromium: install it (Debian: chromium), or name it in RANDPRUNE_CHROMIUM")
    started = Lab(tmp_path_factory.mktemp("lab"))
    yield started
    started.stop()
