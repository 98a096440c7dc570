"""``randprune app`` and ``lab``: the Streamlit app, and JupyterLab on the tutorials, from any folder and a wheel."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import tempfile
import threading
import time
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from randprune_lab.files import shipped, write_atomically
from randprune_lab.terminal import say
from randprune_lab.tutorials import write_tutorials

ADDRESS = "127.0.0.1"
PORT = 8501
LAB_PORT = 8888
START_SECONDS = 60
# Garbage collection after every rerun costs 170 ms once torch is imported; a watcher of files looks into all of torch.
SETTINGS = {
    "server.address": ADDRESS,
    "server.headless": "true",  # the browser is opened here, and nobody is asked for an e-mail address
    "server.fileWatcherType": "none",
    "server.allowedHosts": ADDRESS,  # a page from elsewhere in the same browser gets no connection
    "browser.gatherUsageStats": "false",
    "browser.serverAddress": ADDRESS,
    "runner.postScriptGC": "false",
    "client.toolbarMode": "minimal",
    "client.showErrorDetails": "none",
    "client.showErrorLinks": "false",
    "logger.hideWelcomeMessage": "true",
    "theme.light.primaryColor": "#0072B2",  # of what is kept
    "theme.dark.primaryColor": "#4AA8DC",
}


def app_file() -> Path:
    """streamlit_app.py: beside the package in a checkout, inside it when installed from a wheel."""
    return shipped("app") / "streamlit_app.py"


def serve(port: int = PORT, *, runs: Path, models: Sequence[Path] = (), browser: bool = True) -> None:
    """Serve the app on 127.0.0.1 until it is stopped.

    Raises:
        ValueError: Streamlit is not installed, the port is taken, or a folder is none.
    """
    if importlib.util.find_spec("streamlit") is None:
        raise ValueError("the app needs Streamlit. Install it: pip install 'randprune-lab[app]'.")
    for folder in models:
        if not folder.is_dir():
            raise ValueError(f"--models {folder}: is no folder. Pass one in which models or data lie.")
    if runs.exists() and not runs.is_dir():
        raise ValueError(f"--runs {runs}: is no folder. Pass another, it is made where it is missing.")
    _check_port(port, "app")
    os.environ["RANDPRUNE_RUNS"] = str(runs.absolute())
    os.environ.setdefault("RANDPRUNE_CACHE", str(runs.absolute() / ".cache"))  # nothing is written elsewhere
    os.environ["RANDPRUNE_MODELS"] = os.pathsep.join(str(folder.absolute()) for folder in models)
    if browser:
        threading.Thread(target=_open_browser, args=(port,), daemon=True).start()
    from streamlit.web import cli

    say(f"RandPrune Lab: http://{ADDRESS}:{port} (runs in {runs.absolute()}; Ctrl-C ends it, runs go on)")
    flags = [f"--{name}={value}" for name, value in {**SETTINGS, "server.port": port}.items()]
    cli.main(["run", str(app_file()), *flags], standalone_mode=False)


def serve_lab(folder: Path, port: int = LAB_PORT, *, browser: bool = True) -> None:
    """Open JupyterLab on a copy of the tutorials, on 127.0.0.1, until it is stopped.

    What is in ``folder`` already is not touched. Nothing asks the network for news, updates or extensions.

    Raises:
        ValueError: JupyterLab is not installed, the port is taken, or the folder is none.
        OSError: the folder cannot be written to.
    """
    if missing := [name for name in ("jupyterlab", "anywidget", "ipywidgets") if not importlib.util.find_spec(name)]:
        raise ValueError(f"the tutorials need {missing[0]}. Install it: pip install 'randprune-lab[jupyter]'.")
    _check_port(port, "lab")
    made, kept = write_tutorials(folder)
    start = min(made + kept)
    told = f"; {len(kept)} were there already and stay as they are" if kept else ""
    say(f"{len(made)} notebooks written to {folder.absolute()}{told}.")
    say("JupyterLab opens on them; Ctrl-C ends it.")
    settings = {
        "ServerApp.ip": ADDRESS,
        "ServerApp.port": port,
        "ServerApp.port_retries": 0,
        "ServerApp.root_dir": folder.absolute(),
        "ServerApp.open_browser": browser,
        "ServerApp.allow_root": True,  # in a container there is nobody else
        "ServerApp.log_level": "WARN",  # the address with its token is above that
        "LabApp.log_level": "WARN",
        "ServerApp.answer_yes": True,  # Ctrl-C ends it without a question
        "ServerApp.default_url": f"/lab/workspaces/tutorials/tree/{start.name}",  # not what was open elsewhere
        "LabApp.default_url": f"/lab/workspaces/tutorials/tree/{start.name}",
        "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
        "LabApp.extension_manager": "readonly",
    }
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # for the kernels: two of them share the cores
    from jupyterlab.labapp import main

    with tempfile.TemporaryDirectory() as defaults:  # beside the user's own settings, which go first
        written = Path(defaults) / "labconfig" / "default_setting_overrides.json"
        write_atomically(written, json.dumps({"@jupyterlab/apputils-extension:notification": {"fetchNews": "false"}}))
        searched = [*filter(None, [os.environ.get("JUPYTER_CONFIG_PATH")]), defaults]
        os.environ["JUPYTER_CONFIG_PATH"] = os.pathsep.join(searched)
        main([f"--{name}={value}" for name, value in settings.items()])


def _check_port(port: int, command: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        if os.name == "posix":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server will: not of one that has ended
        try:
            probe.bind((ADDRESS, port))
        except (OSError, OverflowError) as error:
            raise ValueError(
                f"port {port} cannot be had ({error}). If it runs already, open http://{ADDRESS}:{port}; else "
                f"pass another: randprune {command} --port {port + 1 if 0 < port < 65535 else PORT + 1}"
            ) from None


def _open_browser(port: int) -> None:
    """Once the server answers."""
    for _ in range(START_SECONDS * 5):
        with socket.socket() as probe:
            if probe.connect_ex((ADDRESS, port)) == 0:
                webbrowser.open(f"http://{ADDRESS}:{port}")
                return
        time.sleep(0.2)
