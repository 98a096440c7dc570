"""What all tests share."""

import contextlib
import os
import sys

# Before torch is imported: two torch processes on few cores would spin against each other.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may need the network

from pathlib import Path

import pytest
from filelock import FileLock, ReadWriteLock


def pytest_terminal_summary(terminalreporter):
    """What tests measured (``record_property("measured", text)``), whichever worker they ran in."""
    for report in [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]:
        for name, text in report.user_properties if report.when == "call" else ():
            if name == "measured":
                terminalreporter.write_line(text)


@contextlib.contextmanager
def machine_shared(folder: Path, *, alone: bool):
    """A test marked ``alone`` measures how fast something is: those of the other workers wait meanwhile."""
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    gate = FileLock(folder / "gate.lock")  # whoever wants to be alone holds it, so that no new test slips in
    machine = ReadWriteLock(folder / "machine.db")
    if alone:
        with gate, machine.write_lock():
            yield
    else:
        with gate:
            pass
        with machine.read_lock():
            yield


@pytest.fixture(autouse=True)
def share_the_machine(request, tmp_path_factory):
    alone = request.node.get_closest_marker("alone") is not None
    with machine_shared(tmp_path_factory.getbasetemp(), alone=alone):
        yield


class NotebookCells:
    """The cells of the tutorials, which nbval makes tests of: they have no fixtures."""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        if item.path.suffix != ".ipynb":
            return (yield)
        folder = item.config._tmp_path_factory.getbasetemp()
        with pytest.MonkeyPatch.context() as patch, machine_shared(folder, alone=False):
            patch.setenv("RANDPRUNE_RUNS", str(folder / item.path.stem))  # not beside the notebook
            return (yield)


def pytest_configure(config):
    config.pluginmanager.register(NotebookCells())  # from here alone it would not see what lies outside this folder


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real data and models that never enters the project."""
    folder = os.environ.get("RANDPRUNE_TEST_DATA")
    if not folder:
        pytest.skip("RANDPRUNE_TEST_DATA is not set: it names the folder with the real data and models")
    return Path(folder)


@pytest.fixture(autouse=True)
def _main_module():
    """Streamlit's AppTest leaves its page behind as the main module, which every process of a pool would import."""
    before = sys.modules["__main__"]
    yield
    sys.modules["__main__"] = before


@pytest.fixture
def command(monkeypatch, capsys):
    """``command("explore", path)`` runs ``randprune`` in this process: exit code, standard output, standard error."""
    from randprune_lab import cli

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["randprune", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return ended.value.code or 0, out, err

    return run
