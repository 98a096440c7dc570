"""What all tests share."""

import os
import sys

# Before torch is imported: two torch processes on few cores would spin against each other.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may need the network

from pathlib import Path

import hypothesis
import pytest
from support import notebook_cells, record
from support.paths import TESTS

FOLDERS = {"browser": pytest.mark.browser, "gpu": pytest.mark.gpu}  # all tests of these belong to one group

# A slow moment of the machine is no fault of the code, and what passes once passes always.
hypothesis.settings.register_profile(
    "lab", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("lab")


def pytest_configure(config):
    for plugin in (notebook_cells, record):
        plugin.pytest_configure(config)


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.is_relative_to(TESTS) and (mark := FOLDERS.get(item.path.relative_to(TESTS).parts[0])):
            item.add_marker(mark)


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
def one_thread():
    """Torch with one thread: times, and many small draws, are steadier."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
