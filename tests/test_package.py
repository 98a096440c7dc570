"""The package as a whole: its public names, the direction of its imports, what importing costs, and its wheel."""

import ast
import json
import statistics
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from support.paths import ROOT

import randprune_lab

PACKAGE = ROOT / "randprune_lab"

# Imports point upwards in this list only.
ROOMS = [
    "checks",
    "intervals",
    "histogram",
    "keepcurve",
    "sampling",
    "schedules",
    "patterns",
    "densities",
    "config",
    "state",
    "events",
    "files",
    "processes",
    "masks",
    "sentences",
    "tiny",
    "pretrained",
    "nets",
    "models",
    "zero",
    "metrics",
    "splits",
    "glove",
    "augment",
    "tables",
    "texts",
    "vision",
    "tasks",
    "distill",
    "hooks",
    "smoothing",
    "learned",
    "regrow",
    "ranks",
    "training",
    "executors",
    "methods",
    "cluster",
    "on_ray",
    "criteria",
    "scores",
    "fitting",
    "engine",
    "packing",
    "bridges",
    "benefit",
    "store",
    "card",
    "tracking",
    "status",
    "jobs",
    "bench",
    "contest",
    "pace",
    "sources",
    "panels",
    "pieces",
    "shards",
    "stored_masks",
    "sharded",
    "weights",
    "tensors",
    "candidates",
    "explorer",
    "demo",
    "dialogue",
    "figures",
    "charts",
    "pictures",
    "curves",
    "classroom",
    "document",
    "report",
    "outcome",
    "work",
    "forms",
    "estimate",
    "studies",
    "study_runs",
    "study_cost",
    "study_rows",
    "study_claims",
    "study_results",
    "study_charts",
    "study_report",
    "scaling",
    "scaling_charts",
    "study_jobs",
    "journal",
    "comparing",
    "live",
    "listing",
    "study_view",
    "lessons",
    "contrast",
    "page",
    "places",
    "about",
    "widgets",
    "cells",
    "handle",
    "study_handle",
    "form",
    "console",
    "tutorials",
    "terminal",
    "serve",
    "cli_bench",
    "cli_study",
    "cli_scale",
    "cli",
    "__main__",
]
# Rooms of pure maths and plain data: no files, no networks.
PURE = [
    "checks",
    "intervals",
    "histogram",
    "keepcurve",
    "sampling",
    "schedules",
    "patterns",
    "densities",
    "config",
    "state",
    "events",
]

PUBLIC = """
ExploreState Explorer KeepCurve MagnitudeHistogram RunConfig Split Task candidate_generator compare controls
cubic_stages explore history introduced_randomness last_checkpoint launch magnitude_mask mask_sampler open_source
power_for_ir prune random_mask record samples_for_ir samples_for_ratio story study
""".split()  # noqa: SIM905, a word list


def imported(module: str) -> set[str]:
    tree = ast.parse((PACKAGE / f"{module}.py").read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def rooms_imported(module: str) -> set[str]:
    return {name.split(".")[1] for name in imported(module) if name.startswith("randprune_lab.")}


def test_public_names():
    assert sorted(randprune_lab.__all__) == sorted(PUBLIC)
    for name in PUBLIC:
        assert getattr(randprune_lab, name).__name__ == name
        assert getattr(randprune_lab, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'magnitude_masq'"):
        randprune_lab.magnitude_masq  # noqa: B018


def test_every_module_has_its_room():
    assert {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"} <= set(ROOMS)


@pytest.mark.parametrize("module", [path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__"])
def test_imports_point_upwards(module):
    below = ROOMS[ROOMS.index(module) :]
    assert not rooms_imported(module) & set(below)


@pytest.mark.parametrize("module", PURE)
def test_pure_rooms_know_no_files_and_no_networks(module):
    assert not {name for name in imported(module) if name.split(".")[0] in {"os", "pathlib", "io", "safetensors"}}
    assert "torch.nn" not in (PACKAGE / f"{module}.py").read_text()
    assert "nn" not in {name.rsplit(".", 1)[-1] for name in imported(module)}


def test_explorer_does_not_train():
    assert not rooms_imported("explorer") & {"training", "engine", "tasks"}


def test_top_level_holds_nothing_else():
    known = {"pyproject.toml", "randprune_lab", "notebooks", "app", "tests", "README.md", "LICENSE"}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    tops = {line.split("/")[0] for line in tracked.stdout.splitlines()}
    assert {top for top in tops if not top.startswith(".")} <= known


@pytest.mark.speed
def test_import_costs_little_more_than_torch():
    """In processor time, without the collector: it walks over torch's objects in our half or in torch's, by chance."""
    code = """
import gc, time
gc.disable()
start = time.process_time(); import torch; torch_seconds = time.process_time() - start
import randprune_lab
jupyter = {'explore', 'launch', 'history', 'compare', 'study'}
[getattr(randprune_lab, name) for name in randprune_lab.__all__ if name not in jupyter]
both = time.process_time() - start
import sys
assert not {"altair", "streamlit", "ray", "pandas"} & set(sys.modules), "a heavy optional package was imported"
print(both / torch_seconds)
"""
    ratios = [float(subprocess.check_output([sys.executable, "-c", code], text=True)) for _ in range(5)]
    assert statistics.median(ratios) <= 1.3, ratios


def test_the_package_alone_imports_nothing_heavy():
    code = "import sys, randprune_lab; assert not {'torch', 'numpy', 'scipy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_wheel_works_elsewhere(tmp_path):
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("randprune_lab-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "elsewhere")
        names = archive.namelist()
    assert "randprune_lab/py.typed" in names
    app = {path.relative_to(ROOT / "app").as_posix() for path in (ROOT / "app").rglob("*.py")}
    assert {f"randprune_lab/app/{name}" for name in (*app, ".streamlit/config.toml")} <= set(names)
    notebooks = {f"randprune_lab/notebooks/{path.name}" for path in (ROOT / "notebooks").glob("*.ipynb")}
    results = {f"randprune_lab/{path.relative_to(ROOT)}" for path in (ROOT / "notebooks/results").rglob("*.*")}
    assert notebooks | results == {name for name in names if name.startswith("randprune_lab/notebooks/")}
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if name.startswith("tests")]
    (entry_points,) = (tmp_path / "elsewhere").glob("*.dist-info/entry_points.txt")
    assert "randprune = randprune_lab.cli:main" in entry_points.read_text()
    code = """
import json, sys, randprune_lab
from randprune_lab.cli import main
from pathlib import Path
from randprune_lab.serve import app_file
from randprune_lab.tutorials import write_tutorials
import torch
weight = torch.arange(1.0, 9.0)
files = [randprune_lab.__file__, str(app_file())]
assert len(write_tutorials(Path("student"))[0]) == 10
print(json.dumps([files, randprune_lab.magnitude_mask(weight, 0.5).tolist()]))
"""
    shown = subprocess.check_output(
        [sys.executable, "-P", "-c", code], text=True, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "elsewhere")}
    )
    files, mask = json.loads(shown)
    assert all(Path(file).is_relative_to(tmp_path / "elsewhere") for file in files)
    assert mask == [False] * 4 + [True] * 4
