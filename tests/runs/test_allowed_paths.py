"""What the app may open: nothing outside its folders, whatever a form or a URL says."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from randprune_lab import RunConfig, jobs
from randprune_lab.live import live_view
from randprune_lab.places import DEMO, Places

OUTSIDE = [
    "../../etc/passwd",
    "/etc/passwd",
    "a/../../outside",
    "..",
    ".",
    "",
    "~",
    "~/x",
    "run\0",
    "..\\..\\etc\\passwd",
    "%2e%2e%2fetc%2fpasswd",
    "link",
    "link/secret",
    "file:///etc/passwd",
    "a" * 5000,
    "\n",
]


@pytest.fixture
def places(tmp_path):
    runs, models, outside = tmp_path / "runs", tmp_path / "models", tmp_path / "outside"
    for folder in (runs / "first", runs / "second", models / "org" / "encoder", outside / "secret"):
        folder.mkdir(parents=True)
    (runs / "first" / "events.jsonl").write_text("")
    (runs / "second" / "events.jsonl").write_text("")
    for folder in (models / "org" / "encoder", outside, outside / "secret"):
        save_file({"weight": torch.ones(2, 2)}, folder / "model.safetensors")
        (folder / "config.json").write_text("{}")
    save_file({"weight": torch.ones(2, 2)}, models / "alone.safetensors")
    (runs / "link").symlink_to(outside)
    (models / "link").symlink_to(outside)
    return Places(runs, (tmp_path / "missing", models))


def test_runs_and_models_are_found_by_name(places):
    assert places.run("first") == places.runs / "first"
    assert places.model("runs/first") == places.runs / "first"
    assert places.model("models/org/encoder") == places.models[1] / "org" / "encoder"
    assert places.model("models/alone.safetensors").is_file()
    assert places.names() == [DEMO, "runs/second", "runs/first", "models/alone.safetensors", "models/org/encoder"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_nothing_outside_is_opened(places, name):
    no_run, no_model = "there is none of this name in the runs folder", "is not among those of this app"
    for ask, words in (
        (places.run, no_run),
        (places.model, no_model),
        (lambda name: places.model(f"runs/{name}"), no_run),
        (lambda name: places.model(f"models/{name}"), no_model),
    ):
        with pytest.raises(ValueError, match=words) as refused:
            ask(name)
        assert "\n" not in str(refused.value)
        assert len(str(refused.value)) < 400


@given(name=st.text(max_size=40))
def test_whatever_is_asked_for_stays_inside(tmp_path_factory, name):
    root = tmp_path_factory.getbasetemp() / "inside"
    (root / "runs" / "one").mkdir(parents=True, exist_ok=True)
    places = Places(root / "runs", (root / "runs",))
    for ask in (places.run, places.model):
        try:
            found = ask(name)
        except ValueError:
            continue
        assert found.resolve().is_relative_to((root / "runs").resolve())


def test_settings_of_a_form_become_paths(places, monkeypatch):
    monkeypatch.chdir(places.runs.parent)
    given = {"model": "models/org/encoder", "task": "digits", "dataset": "nyu-mll/glue", "glove": "", "seed": 3}
    found = places.settings(given)
    assert Path(found["model"]) == places.models[1] / "org" / "encoder"
    assert {**found, "model": ""} == {**given, "model": ""}
    for name in ("mlp", "tiny-bert", "bert-base-uncased", "org/model-1.5"):
        assert places.settings({"model": name})["model"] == name


@pytest.mark.parametrize("field", ["model", "dataset", "augment_model", "glove", "teacher"])
@pytest.mark.parametrize("value", [*filter(None, OUTSIDE), "package.module:function", "outside", "models/../outside"])
def test_settings_of_a_form_lead_nowhere_else(places, monkeypatch, field, value):
    monkeypatch.chdir(places.runs.parent)  # where a folder "outside" lies, which a run would take for a model
    if value in ("link", "link/secret", "a" * 5000, "%2e%2e%2fetc%2fpasswd"):  # might be ids of the Hub
        value = f"models/{value}"
    with pytest.raises(ValueError, match="app"):
        places.settings({field: value})


def test_folders_come_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("RANDPRUNE_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("RANDPRUNE_MODELS", os.pathsep.join(["a", "b"]))
    assert Places.of_environment() == Places(tmp_path / "runs", (Path("a"), Path("b")))
    monkeypatch.delenv("RANDPRUNE_MODELS")
    assert Places.of_environment().models == ()


def test_links_inside_a_run_lead_nowhere(tmp_path):
    """A run that somebody else packed may hold links: what they point to is not shown, and nothing is written there."""
    folder, secret = tmp_path / "run", tmp_path / "secret"
    folder.mkdir()
    secret.write_text("root:x:0:0")
    (folder / "config.json").write_text(RunConfig().model_dump_json())
    for name in (jobs.NOTE, jobs.LOG):
        (folder / name).symlink_to(secret)
    assert jobs.read_note(folder) == ""
    assert live_view(folder)["log"]["lines"] == []
    jobs.write_note(folder, "mine")
    assert jobs.read_note(folder) == "mine"
    assert secret.read_text() == "root:x:0:0"
