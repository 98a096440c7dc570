"""Run the tutorials from top to bottom and store what they print: ``python tests/support/notebooks.py [01 05 ...]``.

Run it after a change to a notebook, look at what has changed, and commit both.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "notebooks"
WIDGET = "application/vnd.jupyter.widget-view+json"


def run(notebook: nbformat.NotebookNode, folder: Path, runs: Path) -> nbformat.NotebookNode:
    """Execute all cells in a fresh kernel in ``folder``; pruning runs are written to ``runs``."""
    client = NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}, record_timing=False
    )
    client.store_widget_state = False
    settings = {"OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1", "RANDPRUNE_RUNS": str(runs)}
    return client.execute(env={**os.environ, **settings})


def tidy(notebook: nbformat.NotebookNode) -> None:
    """Leave what teaches without a kernel: of a live widget its picture, not the dead reference."""
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", []):
            output.get("data", {}).pop(WIDGET, None)


def main() -> None:
    """Run and store those that are named, or all."""
    for path in sorted(FOLDER.glob("*.ipynb")):
        if len(sys.argv) > 1 and not path.name.startswith(tuple(sys.argv[1:])):
            continue
        started = time.monotonic()
        notebook = nbformat.read(path, as_version=4)
        with tempfile.TemporaryDirectory() as runs:
            run(notebook, path.parent, Path(runs))
        tidy(notebook)
        nbformat.write(notebook, path)
        print(f"{path.name}: {time.monotonic() - started:.1f} s")  # noqa: T201


if __name__ == "__main__":
    main()
