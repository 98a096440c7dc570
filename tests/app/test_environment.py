"""What the About page says is true of this machine, and nothing is fetched to find it out."""

import contextlib
import importlib.metadata

import pytest
import torch
from safetensors.torch import save_file

from randprune_lab import jobs
from randprune_lab.about import can_be_had, facts, offline
from randprune_lab.places import Places


def values(rows, column):
    return {row["what"]: row[column] for row in rows}


def test_versions_folders_and_slots(tmp_path, monkeypatch):
    monkeypatch.setenv("RANDPRUNE_SLOTS", "3")
    said = values(facts(Places(tmp_path / "not" / "yet", (tmp_path,))), "value")
    assert said["version of torch"] == importlib.metadata.version("torch")
    assert said["runs at a time (slots)"].startswith(f"{jobs.slots()} ")
    assert str(tmp_path / "not" / "yet") in said["runs are written to"]
    assert said["models and data are read from"] == str(tmp_path)
    assert "--models" in values(facts(Places(tmp_path)), "value")["models and data are read from"]


def test_a_number_of_slots_that_is_none_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("RANDPRUNE_SLOTS", "many")
    said = values(facts(Places(tmp_path)), "value")["runs at a time (slots)"]
    assert said.startswith("RANDPRUNE_SLOTS = 'many': must be a whole number")


def test_what_is_at_hand(tmp_path, monkeypatch):
    hub = tmp_path / "hub"
    (hub / "models--org--encoder" / "snapshots" / "abc").mkdir(parents=True)
    (hub / "models--org--broken").mkdir()  # a download that never ended
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = values(offline(Places(tmp_path)), "at hand")
    assert before["task digits, models mlp, tiny-cnn and tiny-vit"] == before["model org/encoder"] == "yes"
    assert before["GLUE"] == before["models below the models folders"] == "no"
    assert "model org/broken" not in before
    assert before["other models and data sets"] == "no"
    (tmp_path / "models" / "glue").mkdir(parents=True)
    save_file({"weight": torch.ones(2, 2)}, tmp_path / "models" / "mine.safetensors")
    after = offline(Places(tmp_path, (tmp_path / "models",)))
    assert values(after, "why")["GLUE"] == "as dataset models/glue"
    assert "models/mine.safetensors" in values(after, "why")["models below the models folders"]
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert values(offline(Places(tmp_path)), "at hand")["other models and data sets"] == "from the Hub"


@pytest.mark.parametrize("kind", ["models", "datasets"])
def test_glue_in_the_cache_counts(tmp_path, monkeypatch, kind):
    (tmp_path / f"{kind}--nyu-mll--glue" / "snapshots" / "abc").mkdir(parents=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert values(offline(Places(tmp_path)), "at hand")["GLUE"] == ("yes" if kind == "datasets" else "no")


def test_what_can_be_had(tmp_path, monkeypatch):
    asked = []

    def answer(address, timeout):
        asked.append((address, timeout))
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", answer)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache" / "models--some--model" / "snapshots" / "1").mkdir(parents=True)
    assert not can_be_had(str(tmp_path), "dataset")  # nothing is in it
    (tmp_path / "train.parquet").write_text("")
    assert can_be_had(str(tmp_path), "dataset")
    assert can_be_had("some/model", "model")
    assert asked == []
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert not can_be_had("some/model", "dataset")
    assert asked == []
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert not can_be_had("some/model", "dataset")
    assert len(asked) == 1
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: contextlib.nullcontext())
    assert can_be_had("some/model", "dataset")
