"""A criterion of one's own: masks are drawn from its scores, a run with it resumes, and bad scores are refused."""

import random

import numpy as np
import pytest
import torch
from support.runs import small

from randprune_lab import (
    Explorer,
    ExploreState,
    RunConfig,
    Task,
    last_checkpoint,
    magnitude_mask,
    open_source,
    prune,
    record,
    store,
)
from randprune_lab.events import CandidateScored, Checkpoint, MaskChosen
from randprune_lab.live import compare_view, live_view
from randprune_lab.masks import unpack
from randprune_lab.outcome import conclude
from randprune_lab.scores import scores_of


def inverse(weights, *_):
    """The smallest are worth most: no mask of magnitudes is like it."""
    return {name: 1 / (1 + weight.abs()) for name, weight in weights.items()}


def gradients(weights, model, task):
    """First-order Taylor on some rows of train; leaves gradients and random numbers behind."""
    rows = torch.randperm(len(task.train))[:64]
    inputs, labels = task.train.batch(rows)
    torch.nn.functional.cross_entropy(model(inputs), labels).backward()
    return {name: (weight * weight.grad).abs() for name, weight in weights.items()}


def end(said):
    *_, last = (item for item in said if isinstance(item, Checkpoint))
    return last


def test_plain_masks_keep_the_largest_scores():
    config = small(method="imp", stages=(0.5,))
    items = list(prune(config, criterion=inverse))
    dense = next(item for item in items if isinstance(item, Checkpoint) and item.progress.phase == "scoring")
    masked = next(item for item in items if isinstance(item, Checkpoint) and item.progress.phase == "fine-tuning")
    for label, packed in masked.tensors.items():
        if label.startswith("mask."):
            weight = dense.tensors["model." + label.removeprefix("mask.")]
            expected = magnitude_mask(1 / (1 + weight.abs()), 0.5)
            assert unpack(packed, weight.shape).equal(expected)
            assert weight.abs()[expected].mean() < weight.abs()[~expected].mean()


@pytest.mark.parametrize("criterion", [inverse, gradients])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_a_run_with_it_resumes_to_the_same_weights(tmp_path, criterion, scope):
    config = small(scope=scope)
    whole = end(prune(config, criterion=criterion))
    folder = tmp_path / "run"
    before = torch.random.get_rng_state()
    for event in record(folder, prune(config, criterion=criterion)):
        if isinstance(event, MaskChosen) and event.stage == 2:
            break
    resumed = end(prune(store.read_config(folder), criterion=criterion, resume=last_checkpoint(folder)))
    assert torch.random.get_rng_state().equal(before)
    assert whole.tensors.keys() == resumed.tensors.keys()
    assert all(whole.tensors[name].equal(resumed.tensors[name]) for name in whole.tensors)
    for label, packed in whole.tensors.items():  # exactly as sparse as asked for
        if label.startswith("mask.") and scope == "layer":
            weight = whole.tensors["model." + label.removeprefix("mask.")]
            assert int(unpack(packed, weight.shape).sum()) == weight.numel() - round(config.stages[-1] * weight.numel())
    with pytest.raises(ValueError, match=r"its own criterion: resume it there.*criterion=\.\.\."):
        prune(store.read_config(folder), resume=last_checkpoint(folder))


def test_the_explorer_says_that_its_masks_are_others(tmp_path):
    config = small(stages=(0.5,))
    list(record(tmp_path / "own", prune(config, criterion=inverse)))
    list(record(tmp_path / "plain", prune(config)))
    for name, noted in (("own", True), ("plain", False)):
        explorer = Explorer(open_source(tmp_path / name))
        state = explorer.start(ExploreState(stage=1, sparsity=0.5))
        texts = [notice["text"] for notice in explorer.quick(state)["notices"]]
        assert any("scores of its own" in text for text in texts) == noted
        assert bool(explorer.source.scores(1).scores) != noted


TASK = Task.of(train=(torch.rand(8, 5), torch.arange(8)), test=(torch.rand(2, 5), torch.arange(2)))
BAD = {
    "name of every prunable parameter": lambda *_: {},
    "by the name of": lambda *_: None,
    "a number for each weight": lambda weights, *_: {name: w.sum() for name, w in weights.items()},
    "is int: must be": lambda weights, *_: dict.fromkeys(weights, 1),
    "tensor of decimals": lambda weights, *_: {name: w != 0 for name, w in weights.items()},
    "negative, infinite or NaN": lambda weights, *_: dict(weights),
    "dense tensor": lambda weights, *_: {name: w.abs().to_sparse() for name, w in weights.items()},
    "prunable parameter": lambda *_: {1: 2},
    "changed the task's data": lambda *given: {"weight": given[2].train.inputs.zero_()},
    "infinite": lambda weights, *_: {name: w.abs() / 0 for name, w in weights.items()},
}


@pytest.mark.parametrize("words", BAD)
def test_bad_scores_are_refused(words):
    network = torch.nn.Linear(5, 4)
    with pytest.raises(ValueError, match=words):
        scores_of(BAD[words], network, {"weight": 20}, TASK, seed=0, stage=1)


def test_what_it_does_to_the_model_is_forgotten():
    network = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Dropout())

    def rude(weights, model, _):
        assert not model.training
        with torch.no_grad():
            weights["0.weight"].fill_(1)
        torch.set_grad_enabled(False)
        return {"0.weight": torch.rand(4, 5) * random.random() * np.random.rand()}  # noqa: NPY002

    before = network[0].weight.clone()
    states = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    first, second = (scores_of(rude, network, {"0.weight": 20}, TASK, seed=0, stage=1) for _ in range(2))
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states  # noqa: NPY002
    assert torch.is_grad_enabled()
    assert network[0].weight.equal(before)
    assert network.training
    assert first["0.weight"].equal(second["0.weight"])
    assert not first["0.weight"].equal(scores_of(rude, network, {"0.weight": 20}, TASK, seed=0, stage=2)["0.weight"])


@pytest.mark.parametrize("scale", [1e300, 1e-300])
def test_only_proportions_count(scale):
    """Also where float32 does not hold the scores."""
    config = small(randomness="fixed", samples=2, stages=(0.9,))
    plain, scaled = (
        [event.ir for event in prune(config, criterion=criterion) if isinstance(event, CandidateScored)]
        for criterion in (
            lambda weights, *_: {name: w.abs() for name, w in weights.items()},
            lambda weights, *_: {name: w.abs().double() * scale for name, w in weights.items()},
        )
    )
    assert scaled == pytest.approx(plain, rel=0.05)


def test_what_is_no_criterion_is_refused_before_anything_is_trained(command):
    with pytest.raises(ValueError, match="criterion is a int: must be a function"):
        prune(small(), criterion=3)
    with pytest.raises(ValueError, match=r"stands for one that is given from Python.*criterion=\.\.\."):
        prune(small().model_copy(update={"criterion": "object"}))
    code, _, error = command("run", "--criterion", "object", "--no-controls")
    assert code == 2
    assert "given from Python" in error


def test_what_is_written_about_the_run_says_whose_scores_they_were(tmp_path):
    config = small(stages=(0.5,), method="imp")
    folders = [tmp_path / "one", tmp_path / "other", tmp_path / "plain"]
    for folder, criterion in zip(folders, (inverse, gradients, None), strict=True):
        list(record(folder, prune(config, criterion=criterion)))
        conclude(folder)
    for folder, own in zip(folders, (True, True, False), strict=True):
        card = (folder / "model" / "README.md").read_text()
        assert ("plain scores of one's own" in card) == own
        assert ("plain magnitude" in card) != own
        assert (
            "given from Python: the configuration alone does not repeat" in (folder / "report.html").read_text()
        ) == own
        assert all((row["share"] is None) == own for row in live_view(folder)["near"]["rows"])
    view = compare_view(folders)
    assert len({run["label"] for run in view["runs"]}) == 3  # two criteria of one's own are two lines
    assert {row["run"] for row in view["scores"]["rows"]} == {run["label"] for run in view["runs"]}


def test_with_a_method_that_has_its_own_it_is_refused():
    with pytest.raises(ValueError, match=r"method = 'rigl'.*method='imp', dense_epochs=0, logit_weight=0"):
        next(prune(RunConfig(method="rigl"), criterion=inverse))
