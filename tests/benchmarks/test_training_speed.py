"""What a training step may cost, as ratios of CPU time inside one process. No test looks at a clock."""

import pytest

from randprune_lab.bench import bench_device
from randprune_lab.pace import lockstep_ratio, trainer_ratio

pytestmark = [pytest.mark.speed, pytest.mark.usefixtures("one_thread")]


def test_a_step_under_masks_is_as_fast_as_the_trainers(record_property):
    step, ratio = trainer_ratio(bench_device("cpu"), steps=10, pairs=7)
    record_property("measured", f"step {1e3 * step:.1f} ms; throughput / Trainer's: {ratio:.3f} (promised 0.97)")
    assert ratio >= 0.97


@pytest.mark.slow  # two minutes in which no other test runs
def test_lockstep_comes_within_three_percent_of_its_floor(record_property):
    found = lockstep_ratio(bench_device("cpu"), steps=20, rounds=3)
    record_property(
        "measured",
        f"lockstep of 8 / serial: {found.ratio:.3f}; floor {found.floor:.3f} "
        f"(s = {1e3 * found.student:.1f} ms, t = {1e3 * found.teacher:.1f} ms)",
    )
    assert found.ratio <= found.floor + 0.03


@pytest.mark.gpu
def test_both_on_a_gpu():
    cuda = bench_device("cuda")
    found = lockstep_ratio(cuda)
    assert found.ratio <= found.floor + 0.03
    assert trainer_ratio(cuda)[1] >= 0.97
