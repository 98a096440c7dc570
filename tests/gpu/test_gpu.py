"""The same masks on a CUDA device: run by hand with -m gpu."""

import copy

import pytest
import torch
from support.runs import checkpoints, small

from randprune_lab import (
    KeepCurve,
    MagnitudeHistogram,
    candidate_generator,
    introduced_randomness,
    magnitude_mask,
    mask_sampler,
)
from randprune_lab.methods import METHODS

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def weight():
    return torch.randn(300, 1000, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16).cuda()


def test_histogram_and_deterministic_mask_equal_those_of_the_cpu(weight):
    ours, theirs = MagnitudeHistogram.of(weight), MagnitudeHistogram.of(weight.cpu())
    assert (ours.bins == theirs.bins).all()
    assert (ours.counts == theirs.counts).all()
    assert torch.equal(magnitude_mask(weight, 0.9).cpu(), magnitude_mask(weight.cpu(), 0.9))


@pytest.mark.parametrize("method", ["fast", "exact"])
@pytest.mark.parametrize("ties", ["random", "magnitude"])
def test_random_masks_are_exact_seeded_and_of_the_predicted_randomness(weight, method, ties):
    keep = weight.numel() - round(0.9375 * weight.numel())
    sampler = mask_sampler(weight, 0.9375, samples=6, method=method, ties=ties)
    plain = magnitude_mask(weight, 0.9375)
    drawn = [sampler(candidate_generator(0, 1, candidate, "w", "cuda")) for candidate in range(30)]
    assert all(mask.is_cuda and int(mask.sum()) == keep for mask in drawn)
    assert torch.equal(drawn[0], sampler(candidate_generator(0, 1, 0, "w", "cuda")))
    assert not torch.equal(drawn[0], drawn[1])
    randomness = torch.tensor([introduced_randomness(mask, plain) for mask in drawn], dtype=torch.float64)
    predicted = KeepCurve.of(weight, 0.9375, samples=6, ties=ties).expected_ir
    error = 4.5 * float(randomness.std()) / 30**0.5  # false alarms: 7e-6 each
    assert float(randomness.mean()) == pytest.approx(predicted, abs=max(error, 0.01 * predicted))


def test_all_layers_of_bert_base_get_exact_masks():
    from transformers import BertConfig, BertForSequenceClassification

    from randprune_lab.config import RunConfig
    from randprune_lab.masks import kept, stage_masks
    from randprune_lab.models import prunable_weights

    with torch.device("cuda"):
        weights = prunable_weights(BertForSequenceClassification(BertConfig()))
    assert len(weights) == 72
    alive = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    config = RunConfig(stages=(0.9375,), randomness="decrease")
    draw = stage_masks(weights, alive, 1, config).draw
    masks, again, other = draw(1), draw(1), draw(2)
    for name, weight in weights.items():
        assert int(masks[name].sum()) == weight.numel() - round(0.9375 * weight.numel())
        assert torch.equal(masks[name], again[name])
        assert not torch.equal(masks[name], other[name])
    assert kept(masks) == sum(weight.numel() - round(0.9375 * weight.numel()) for weight in weights.values())


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_transformer_run_keeps_its_zeros_and_its_float32_weights(precision):
    config = small(
        task="digits", model="tiny-vit", device="cuda", precision=precision, hidden_weight=1, attention_weight=1
    )
    last = checkpoints(config)[-1].tensors
    pruned = [name.removeprefix("mask.") for name in last if name.startswith("mask.")]
    assert len(pruned) == 12
    for name in pruned:
        weight = last[f"model.{name}"]
        assert weight.dtype == torch.float32
        assert int((weight != 0).sum()) <= weight.numel() - round(0.9 * weight.numel())


def test_lockstep_equals_serial_bit_for_bit_with_deterministic_kernels(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    settings = {"task": "digits", "model": "tiny-vit", "device": "cuda", "deterministic": True, "hidden_weight": 1}
    one, other = (checkpoints(small(executor=executor, **settings))[-1] for executor in ("lockstep", "serial"))
    assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)


@pytest.mark.parametrize("distilled", [False, True])
def test_a_step_in_steady_state_never_waits_for_the_gpu(distilled):
    from randprune_lab.pace import bench_masks, bench_session
    from randprune_lab.training import Phase, train_epoch

    session = bench_session(torch.device("cuda", 0), 5, distilled=distilled)
    masks = bench_masks(session)
    phase = Phase(session, "emep", 1, masks, lambda _: 1e-4, copy.deepcopy(session.model))
    train_epoch(session, "emep", 1, 0, [phase])  # what is made at the first step is there
    torch.cuda.set_sync_debug_mode("error")  # whatever makes the CPU wait for the GPU
    try:
        for step in range(1, 5):
            rows = torch.arange(step * 32, (step + 1) * 32)
            batch, labels = session.task.train.batch(rows)
            with session.accelerator.autocast():
                taught = session.teacher.features(batch, rows) if session.teacher else None
            phase.step(5 + step, batch, labels, taught)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("criterion", ["magnitude", "grasp", "learned-mask"])
def test_every_method_is_exact_and_repeats_itself(method, criterion):
    config = small(method=method, device="cuda", deterministic=True, soft_activations=True, soft_skips=True)
    if not config.at_start:
        config = config.model_copy(update={"criterion": criterion})
    one, two = (checkpoints(config) for _ in range(2))
    masks = [tensor for name, tensor in one[-1].tensors.items() if name.startswith("mask.")]
    assert len(masks) == 3
    for name, tensor in one[-1].tensors.items():
        assert torch.equal(tensor, two[-1].tensors[name]), name
