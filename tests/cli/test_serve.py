"""``randprune app``: from any folder, with the right flags, and one sentence for what its user can mend."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from randprune_lab import serve as room
from randprune_lab.serve import ADDRESS, app_file, serve


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((ADDRESS, 0))
        return probe.getsockname()[1]


@pytest.fixture
def running(tmp_path):
    """The app, started by its command from a folder that knows nothing of it."""
    port = free_port()
    command = [str(Path(sys.executable).with_name("randprune")), "app", "--no-browser", f"--port={port}"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield port, process, tmp_path
    finally:
        process.kill()
        process.wait()


def ask(port: int, path: str) -> int:
    with urllib.request.urlopen(f"http://{ADDRESS}:{port}/{path}", timeout=10) as answer:
        return answer.status


def connect(port: int, headers: dict[str, str]) -> int:
    """The answer to a browser that wants the connection over which everything goes."""
    asked = {
        "Host": f"{ADDRESS}:{port}",
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "x3JJHMbDL1EzLkh9GBhXDw==",
        **headers,
    }
    lines = ["GET /_stcore/stream HTTP/1.1", *(f"{name}: {value}" for name, value in asked.items()), "", ""]
    with socket.create_connection((ADDRESS, port), timeout=10) as raw:
        raw.sendall("\r\n".join(lines).encode())
        return int(raw.recv(1000).split()[1])


def wait_for(port: int, process: subprocess.Popen) -> None:
    for _ in range(900):
        assert process.poll() is None
        with socket.socket() as probe:
            if probe.connect_ex((ADDRESS, port)) == 0:
                return
        time.sleep(0.2)
    pytest.fail("the app does not answer")


def test_the_command_serves_this_machine_alone_until_it_is_stopped(running):
    port, process, folder = running
    wait_for(port, process)
    assert ask(port, "_stcore/health") == 200
    assert connect(port, {}) == 101
    for foreign in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}):  # another page in the same browser
        assert connect(port, foreign) == 403
    for path in (
        "../../etc/passwd",
        "app/static/../../../etc/passwd",
        "media/../../etc/passwd",
        "static/%2e%2e/%2e%2e/x",
    ):
        request = f"GET /{path} HTTP/1.1\r\nHost: {ADDRESS}:{port}\r\nConnection: close\r\n\r\n"
        with socket.create_connection((ADDRESS, port), timeout=10) as raw:
            raw.sendall(request.encode())
            answer = b"".join(iter(lambda: raw.recv(65536), b""))
        assert b"root:" not in answer
    with pytest.raises(OSError, match="refused"):
        socket.create_connection((other_address(), port), timeout=2)
    said = (folder / "log").read_text()
    assert f"http://{ADDRESS}:{port}" in said
    assert str(folder / "runs") in said
    assert "External URL" not in said
    process.send_signal(signal.SIGINT)
    assert process.wait(180) in (0, 130)
    assert "Traceback" not in (folder / "log").read_text()


def other_address() -> str:
    """Another address of this machine: what listens on 127.0.0.1 alone refuses it."""
    return "127.0.0.2" if sys.platform == "linux" else socket.gethostbyname(socket.gethostname())


def test_a_port_that_is_taken_is_said_with_another(tmp_path):
    with socket.socket() as taken:
        taken.bind((ADDRESS, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=rf"port {port} cannot be had .*:{port}; else pass another"):
            serve(port, runs=tmp_path, browser=False)


@pytest.mark.parametrize("port", [-1, 70000])
def test_a_port_that_is_none_is_refused(tmp_path, port):
    with pytest.raises(ValueError, match=rf"port {port} cannot be had .*--port 8502"):
        serve(port, runs=tmp_path, browser=False)


def test_folders_that_are_none_are_refused(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ValueError, match=r"--models .*missing: is no folder"):
        serve(free_port(), runs=tmp_path, models=[tmp_path / "missing"], browser=False)
    with pytest.raises(ValueError, match=r"--runs .*file: is no folder"):
        serve(free_port(), runs=file, browser=False)


def test_without_streamlit_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(room.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"pip install 'randprune-lab\[app\]'"):
        serve(free_port(), runs=tmp_path, browser=False)


def test_the_flags_are_those_of_this_streamlit():
    from streamlit import config

    known = config.get_config_options()
    assert set(room.SETTINGS) <= set(known)
    text = (app_file().parent / ".streamlit" / "config.toml").read_text()
    for name in ("gatherUsageStats = false", "postScriptGC = false", 'address = "127.0.0.1"'):
        assert name in text


def test_the_browser_opens_once_the_server_answers(monkeypatch):
    opened = []
    monkeypatch.setattr(room.webbrowser, "open", opened.append)
    with socket.socket() as server:
        server.bind((ADDRESS, 0))
        server.listen()
        port = server.getsockname()[1]
        room._open_browser(port)
    assert opened == [f"http://{ADDRESS}:{port}"]


@pytest.mark.crash
@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_terminating_it_leaves_nothing_behind(running):
    port, process, _ = running
    wait_for(port, process)
    process.terminate()
    process.wait(180)
    with socket.socket() as probe:
        assert probe.connect_ex((ADDRESS, port)) != 0


def test_the_tutorials_need_jupyter_a_free_port_and_a_folder(command, tmp_path, monkeypatch):
    with socket.socket() as taken:
        taken.bind((ADDRESS, 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, error = command("lab", tmp_path / "mine", "--port", port, "--no-browser")
    assert code == 2
    assert f"port {port} cannot be had" in error
    assert f"randprune lab --port {port + 1}" in error
    assert not (tmp_path / "mine").exists()
    (tmp_path / "file").write_text("")
    code, _, error = command("lab", tmp_path / "file", "--port", free_port(), "--no-browser")
    assert code == 2
    assert "is a file. Pass a folder" in error
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "jupyterlab" else name)
    code, _, error = command("lab", tmp_path / "mine", "--no-browser")
    assert code == 2
    assert "randprune-lab[jupyter]" in error
