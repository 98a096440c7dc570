"""The same masks on a CUDA device: run by hand with -m gpu."""

import pytest
import torch

from randprune_lab import (
    KeepCurve,
    MagnitudeHistogram,
    candidate_generator,
    introduced_randomness,
    magnitude_mask,
    mask_sampler,
)

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
