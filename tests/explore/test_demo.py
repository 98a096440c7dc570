"""The network that the lab trains itself."""

import threading

import pytest
import torch
from support.runs import same_tensors

from randprune_lab import demo, engine
from randprune_lab.events import Checkpoint, DenseFinished


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RANDPRUNE_CACHE", str(tmp_path))
    return tmp_path


def test_it_is_the_dense_network_of_a_run_with_default_settings():
    before = torch.random.get_rng_state(), torch.get_num_threads()
    weights = demo.demo_weights()
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert before[1] == torch.get_num_threads()
    assert {name: tuple(tensor.shape) for name, tensor in weights.items() if name.endswith("weight")} == {
        "0.weight": (300, 64),
        "2.weight": (100, 300),
        "4.weight": (10, 100),
    }
    finished = None
    for item in engine.prune(demo.CONFIG):
        if isinstance(item, DenseFinished):
            finished = item
        elif finished and isinstance(item, Checkpoint):
            own = {name[6:]: tensor for name, tensor in item.tensors.items() if name.startswith("model.")}
            break
    assert same_tensors(weights, own)
    assert finished.test.metric > 0.9
    assert demo.demo_explorer().source.label == demo.LABEL


def test_it_is_trained_once_for_all_who_ask(monkeypatch, cache):
    trained = []
    real = demo._train
    monkeypatch.setattr(demo, "_train", lambda: trained.append(1) or real())
    found = []
    askers = [threading.Thread(target=lambda: found.append(demo.demo_weights())) for _ in range(3)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    assert len(trained) == 1
    assert same_tensors(found[0], found[1])
    assert same_tensors(found[0], found[2])
    (file,) = (cache / "demo").iterdir()
    file.write_bytes(b"damaged")
    assert same_tensors(demo.demo_weights(), found[0])
