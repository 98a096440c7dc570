"""What all tests share."""

import contextlib
import os
import sys

# Before torch is imported: two torch processes on few cores would spin against each other.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may need the network

from pathlib import Path

import hypothesis
import pytest
from filelock import FileLock, ReadWriteLock

ANSWERED = 250  # seconds that a cell has, as for nbval
LONGEST = 1800  # seconds that a test waits for the others to leave the machine to it

# A slow moment of the machine is no fault of the code, and what passes once passes always.
hypothesis.settings.register_profile(
    "lab", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("lab")


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
    gate = FileLock(folder / "gate.lock", timeout=LONGEST)  # whoever wants to be alone holds it: no new test slips in
    machine = ReadWriteLock(folder / "machine.db", timeout=LONGEST)
    if alone:
        with gate, machine.write_lock():
            yield
    else:
        with gate:
            pass
        with machine.read_lock():
            yield


# In names of its own, with a copy of each of numpy's generators: what comes after draws what it drew before.
ALONE = """
exec({!r}, {{
    name: __import__("copy").deepcopy(thing) if hasattr(thing, "bit_generator") else thing
    for name, thing in globals().items()
}})
"""


def printed_by(kernel, source: str) -> str:
    """What a cell prints in nbval's kernel, where it leaves nothing behind."""
    asked = kernel.execute_cell_input(ALONE.format(source), allow_stdin=False)
    printed, error = "", ""
    while True:
        message = kernel.get_message("iopub", timeout=ANSWERED)
        if message["parent_header"].get("msg_id") != asked:
            continue
        content = message["content"]
        match message["msg_type"]:
            case "stream":
                printed += content["text"]
            case "error":
                error = "\n".join(content["traceback"])
            case "status" if content["execution_state"] == "idle":
                break
    kernel.await_reply(asked, timeout=ANSWERED)
    assert not error, error
    return printed


class NotebookCells:
    """The cells of the tutorials, which nbval makes tests of: they have no fixtures.

    After a cell that checks answers the teacher's edition of it runs in the same kernel: every answer must be right.
    """

    def __init__(self):
        self.notebook, self.guesses = None, []  # the teacher's, of cells that the next check is of

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item):
        result = yield
        if item.path.suffix != ".ipynb":
            return result
        if item.parent is not self.notebook:
            self.notebook, self.guesses = item.parent, []
        solution = item.cell.metadata.get("randprune", {}).get("solution", "")
        teachers = solution or item.cell.source
        wanted = sum(line.startswith("check(") for line in teachers.splitlines())
        if solution and not wanted:
            self.guesses.append(solution)
        elif wanted:
            source, self.guesses = "\n".join([*self.guesses, teachers]), []
            said = printed_by(item.parent.kernel, source).splitlines()
            assert said.count("right") == wanted, f"{source}\nsays\n{said}"
        return result


class SharedMachine:
    """Of every test with all that it sets up, the cells of the tutorials too; before its time begins to count."""

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item):
        folder = item.config._tmp_path_factory.getbasetemp()
        alone = item.get_closest_marker("alone") is not None
        with pytest.MonkeyPatch.context() as patch, machine_shared(folder, alone=alone):
            if item.path.suffix == ".ipynb":
                patch.setenv("RANDPRUNE_RUNS", str(folder / item.path.stem))  # not beside the notebook
            return (yield)


def pytest_configure(config):
    for plugin in (
        SharedMachine(),
        NotebookCells(),
    ):  # from here alone they would not see notebooks/
        config.pluginmanager.register(plugin)


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
