"""``randprune app``: the Streamlit front-end with the settings that it needs, from any folder and from a wheel."""

from __future__ import annotations

import importlib.util
import os
import socket
import threading
import time
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from randprune_lab.terminal import say

ADDRESS = "127.0.0.1"
PORT = 8501
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
    package = Path(__file__).parent
    found = [folder / "streamlit_app.py" for folder in (package / "app", package.parent / "app")]
    for path in found:
        if path.is_file():
            return path
    raise ValueError(f"{found[0]}: the app's files are not there. Install randprune-lab[app] again.")


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
    _check_port(port)
    os.environ["RANDPRUNE_RUNS"] = str(runs.absolute())
    os.environ.setdefault("RANDPRUNE_CACHE", str(runs.absolute() / ".cache"))  # nothing is written elsewhere
    os.environ["RANDPRUNE_MODELS"] = os.pathsep.join(str(folder.absolute()) for folder in models)
    if browser:
        threading.Thread(target=_open_browser, args=(port,), daemon=True).start()
    from streamlit.web import cli

    say(f"RandPrune Lab: http://{ADDRESS}:{port} (runs in {runs.absolute()}; Ctrl-C ends it, runs go on)")
    flags = [f"--{name}={value}" for name, value in {**SETTINGS, "server.port": port}.items()]
    cli.main(["run", str(app_file()), *flags], standalone_mode=False)


def _check_port(port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        if os.name == "posix":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server will: not of one that has ended
        try:
            probe.bind((ADDRESS, port))
        except (OSError, OverflowError) as error:
            raise ValueError(
                f"port {port} cannot be had ({error}). If the app runs already, open http://{ADDRESS}:{port}; else "
                f"pass another: randprune app --port {port + 1 if 0 < port < 65535 else PORT + 1}"
            ) from None


def _open_browser(port: int) -> None:
    """Once the server answers."""
    for _ in range(START_SECONDS * 5):
        with socket.socket() as probe:
            if probe.connect_ex((ADDRESS, port)) == 0:
                webbrowser.open(f"http://{ADDRESS}:{port}")
                return
        time.sleep(0.2)
