"""Schedules: how many masks at which sparsity."""

import itertools
import math

import pytest
import torch

from randprune_lab import schedules
from randprune_lab.histogram import MagnitudeHistogram
from randprune_lab.keepcurve import KeepCurve


@pytest.fixture(scope="module")
def histogram():
    return MagnitudeHistogram.of(torch.randn(20_000, generator=torch.Generator().manual_seed(3)))


def ir_of(histogram, sparsity, samples, power=5.0, reach=None):
    return KeepCurve.of(histogram, sparsity, samples=samples, power=power, reach=reach).expected_ir


@pytest.mark.parametrize(
    ("ratio", "n", "sparsity", "schedule", "samples"),
    [
        (0.01, 1000, 0.9, "decrease", 9),  # 900 pruned
        (0.01, 1000, 0.9, "increase", 1),  # 100 kept
        (0.025, 1000, 0.9, "increase", 2),  # 2.5 is cut off, not rounded
        (0.0399, 1000, 0.9, "increase", 3),
        (1e-5, 589_824, 0.54, "decrease", 3),  # an attention matrix of BERT-base: 318,505 pruned
        (1e-6, 589_824, 0.54, "decrease", 1),  # 0.3: the paper's grid would give 0
        (1e-6, 589_824, 0.54, "increase", 1),
        (2.0, 7, 0.9375, "decrease", 14),  # all 7 pruned
        (2.0, 7, 0.9375, "increase", 1),  # none kept: the floor
        (3, 100, 0.0, "decrease", 1),
        (3, 100, 0.0, "increase", 300),
    ],
)
def test_samples_for_ratio(ratio, n, sparsity, schedule, samples):
    assert schedules.samples_for_ratio(ratio, n, sparsity, schedule) == samples


@pytest.mark.parametrize("ratio", [1e-6, 3e-5, 0.00123, 0.5])
@pytest.mark.parametrize("stage", schedules.STAGES["long"])
def test_samples_for_ratio_is_the_formula(ratio, stage):
    n = 768 * 3072
    pruned = round(stage * n)
    assert schedules.samples_for_ratio(ratio, n, stage) == max(1, int(ratio * pruned))  # "decrease" is the default
    assert schedules.samples_for_ratio(ratio, n, stage, "increase") == max(1, int(ratio * (n - pruned)))


@pytest.mark.parametrize("schedule", schedules.RATIO_SCHEDULES)
def test_schedules_move_samples_the_way_they_are_named(schedule):
    """ "decrease" means less randomness, hence more masks, from stage to stage; "increase" the other way."""
    samples = [schedules.samples_for_ratio(1e-3, 100_000, stage, schedule) for stage in schedules.STAGES["long"]]
    assert samples == sorted(samples, reverse=schedule == "increase")
    assert samples[0] != samples[-1]


@pytest.mark.parametrize("ratio", [0, -0.1, math.nan, math.inf])
def test_bad_ratio(ratio):
    with pytest.raises(ValueError, match=rf"sampling_ratio = {ratio}: must be .* above 0. Pass a positive"):
        schedules.samples_for_ratio(ratio, 100, 0.5)


@pytest.mark.parametrize(("name", "nearest"), [("decreasing", "decrease"), ("Increase", "increase"), ("", "")])
def test_unknown_schedule(name, nearest):
    with pytest.raises(
        ValueError, match=rf"schedule = '{name}': unknown. Did you mean '{nearest}.*Valid: decrease, in"
    ):
        schedules.samples_for_ratio(0.1, 100, 0.5, name)


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, math.nan])
def test_samples_for_ratio_bad_sparsity(sparsity):
    with pytest.raises(ValueError, match=rf"sparsity = {sparsity}: must lie in \[0, 1\)"):
        schedules.samples_for_ratio(0.1, 100, sparsity)


@pytest.mark.parametrize(
    ("sparsity", "power", "reach"), [(0.9375, 5.0, None), (0.54, 1.0, 2.0), (0.99, 8.0, 1.2), (0.83, 5.0, 2.0)]
)
def test_samples_for_ir_is_the_nearest_in_log_ir(histogram, sparsity, power, reach):
    irs = {samples: ir_of(histogram, sparsity, samples, power, reach) for samples in range(1, 41)}
    most, least = irs[1], irs[40]
    for step in range(1, 30):
        target = most * (least / most) ** (step / 30)
        found = schedules.samples_for_ir(histogram, sparsity, target, power=power, reach=reach)
        distance = {samples: abs(math.log(ir / target)) for samples, ir in irs.items()}
        assert found in distance
        # By distance, not by number: neighbours may be as near as float64 can tell.
        assert distance[found] <= min(distance.values()) + 1e-3
        assert found != 2


@pytest.mark.parametrize("samples", [1, 3, 4, 6, 11, 40, 300])
def test_samples_for_ir_returns_the_samples_that_gave_the_ir(histogram, samples):
    target = ir_of(histogram, 0.9375, samples)
    assert schedules.samples_for_ir(histogram, 0.9375, target) == samples


def test_samples_for_ir_never_returns_two(histogram):
    """One and two samples are one law: the smaller is the answer."""
    target = min(ir_of(histogram, 0.9, samples, 3.0, 2.0) for samples in (1, 2))
    for factor in (0.9, 0.97, 0.999, 0.999999, 1.0):
        assert schedules.samples_for_ir(histogram, 0.9, target * factor, power=3.0, reach=2.0) != 2
    assert schedules.samples_for_ir(histogram, 0.9, target * 0.999, power=3.0, reach=2.0) == 1


def test_samples_for_ir_takes_the_ir_of_two_samples(histogram):
    target = ir_of(histogram, 0.9, 2, 3.0, 2.0)
    assert schedules.samples_for_ir(histogram, 0.9, target, power=3.0, reach=2.0) == 1


@pytest.mark.parametrize("given", ["tensor", "histogram"])
def test_inverses_take_a_tensor_or_a_histogram(given):
    weight = torch.randn(5_000, generator=torch.Generator().manual_seed(4))
    argument = weight if given == "tensor" else MagnitudeHistogram.of(weight)
    target = KeepCurve.of(weight, 0.9, samples=5, power=5.0).expected_ir
    assert schedules.samples_for_ir(argument, 0.9, target) == 5
    assert schedules.power_for_ir(argument, 0.9, target, samples=5) == pytest.approx(5.0, rel=1e-5)


@pytest.mark.parametrize("samples", [1, 4, 16, 100])
@pytest.mark.parametrize(("sparsity", "reach"), [(0.54, None), (0.9375, 2.0), (0.99, None), (0.9, 1.2)])
def test_power_for_ir_round_trips(histogram, sparsity, reach, samples):
    most = ir_of(histogram, sparsity, samples, 0.0, reach)
    for share in (0.9, 0.3, 0.05):
        power = schedules.power_for_ir(histogram, sparsity, share * most, samples=samples, reach=reach)
        assert ir_of(histogram, sparsity, samples, power, reach) == pytest.approx(share * most, rel=1e-6)


def test_power_for_ir_falls_as_the_target_rises(histogram):
    targets = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.04]
    powers = [schedules.power_for_ir(histogram, 0.9375, target, samples=4) for target in targets]
    assert all(later < earlier for earlier, later in itertools.pairwise(powers))


@pytest.mark.parametrize("samples", [1, 4])
def test_power_for_ir_at_the_ends_of_its_range(histogram, samples):
    for power in (0.0, schedules.MAX_POWER):
        target = ir_of(histogram, 0.9, samples, power)
        assert schedules.power_for_ir(histogram, 0.9, target, samples=samples) == power


def test_power_gives_every_layer_the_same_ir():
    """What sr cannot do: a small tensor and a large one at one ir."""
    for size, seed in ((4_000, 1), (400_000, 2)):
        weight = torch.randn(size, generator=torch.Generator().manual_seed(seed))
        power = schedules.power_for_ir(weight, 0.9375, 0.01, samples=4)
        assert KeepCurve.of(weight, 0.9375, samples=4, power=power).expected_ir == pytest.approx(0.01, rel=1e-6)


@pytest.mark.parametrize("factor", [1.01, 100])
def test_target_above_the_range_names_the_range(histogram, factor):
    for most, call in (
        (ir_of(histogram, 0.9, 1), lambda target: schedules.samples_for_ir(histogram, 0.9, target)),
        (ir_of(histogram, 0.9, 4, 0.0), lambda target: schedules.power_for_ir(histogram, 0.9, target, samples=4)),
    ):
        with pytest.raises(ValueError, match=rf"target_ir = .*out of reach.* and {most:.4g} here. Choose a target"):
            call(most * factor)


def test_target_below_the_range_names_the_range(histogram):
    least = ir_of(histogram, 0.9, schedules.MAX_SAMPLES)
    with pytest.raises(
        ValueError, match=rf"target_ir = 1e-12: out of reach; samples from 1 .* between {least:.4g} and"
    ):
        schedules.samples_for_ir(histogram, 0.9, 1e-12)
    least = ir_of(histogram, 0.9, 1, schedules.MAX_POWER)
    with pytest.raises(ValueError, match=rf"target_ir = 1e-12: out of reach; a power .* between {least:.4g} and"):
        schedules.power_for_ir(histogram, 0.9, 1e-12, samples=1)


@pytest.mark.parametrize("target", [0.0, -1.0, math.nan, math.inf])
def test_target_that_is_no_ratio(histogram, target):
    with pytest.raises(ValueError, match=rf"target_ir = {target}: must be .* Pass a positive"):
        schedules.samples_for_ir(histogram, 0.9, target)
    with pytest.raises(ValueError, match=rf"target_ir = {target}: must be .* Pass a positive"):
        schedules.power_for_ir(histogram, 0.9, target, samples=4)


def test_nothing_random_to_aim_at(histogram):
    """At reach 1 every mask is the deterministic one: no power has any other ir than 0."""
    with pytest.raises(ValueError, match=r"target_ir = 0.01: out of reach.*between 0 and 0 here.*another reach"):
        schedules.power_for_ir(histogram, 0.9, 0.01, samples=4, reach=1.0)


def test_presets():
    """The paper's lists, to the letter (DESIGN 3.6); "digits" begins with the short one."""
    assert schedules.STAGES["short"] == (0.54, 0.83, 0.91, 0.9375)
    assert schedules.STAGES["long"] == (0.54, 0.83, 0.875, 0.9, 0.92, 0.9275, 0.93, 0.935, 0.9375)
    for stages in schedules.STAGES.values():
        assert schedules.check_stages(stages) == stages


@pytest.mark.parametrize(("final", "count"), [(0.9375, 1), (0.9375, 5), (0.99, 40), (0.5, 200), (1e-3, 3)])
def test_cubic_stages(final, count):
    stages = schedules.cubic_stages(final, count)
    assert len(stages) == count
    assert stages[-1] == final
    assert all(later > earlier for earlier, later in zip((0.0, *stages), stages, strict=False))
    steps = [later - earlier for earlier, later in zip((0.0, *stages), stages, strict=False)]
    assert steps == sorted(steps, reverse=True)  # fast first, slowly at the end


def test_cubic_stages_values():
    assert schedules.cubic_stages(0.8, 2) == pytest.approx((0.7, 0.8))  # 0.8 * (1 - 1/8)


@pytest.mark.parametrize(
    ("final", "count", "text"),
    [
        (1.0, 3, r"sparsity = 1.0: must lie in .* pass 1 - 1/16"),
        (0.0, 3, r"stages = .*rise strictly.*Pass for example"),
        (0.9, 0, r"= 0: .*at least 1"),
        (0.9, 2.5, r"= 2.5: must be a whole number"),
    ],
)
def test_cubic_stages_bad_input(final, count, text):
    with pytest.raises(ValueError, match=text):
        schedules.cubic_stages(final, count)


@pytest.mark.parametrize("stages", [[], [0.0, 0.5], [0.5, 0.5], [0.9, 0.5], [0.1, 0.5, 0.4], [0]])
def test_stages_that_do_not_rise(stages):
    with pytest.raises(ValueError, match=r"stages = \[.*rise strictly.*Pass for example \[0.54, 0.83") as caught:
        schedules.check_stages(stages)
    assert str(list(stages)) in str(caught.value)


@pytest.mark.parametrize("bad", [1.0, -0.1, math.nan, 1.5])
def test_stages_outside_the_range(bad):
    with pytest.raises(ValueError, match=rf"= {bad}.*must lie in \[0, 1\)"):
        schedules.check_stages([0.5, bad])


def test_stages_are_kept_as_floats():
    assert schedules.check_stages([0.25, 0.5]) == (0.25, 0.5)
    assert isinstance(schedules.check_stages(iter([0.25])), tuple)


def test_samples_for_ir_takes_the_fewest_on_a_plateau():
    """With power 0 everything is drawn alike, whatever M: rounding must not choose among a million equals."""
    for seed in range(3):
        weight = torch.randn(20_000, generator=torch.Generator().manual_seed(seed))
        target = KeepCurve.of(weight, 0.9, samples=1, power=0).expected_ir
        assert schedules.samples_for_ir(weight, 0.9, target, power=0) == 1


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ((1e308, 10**9, 0.9), "sampling_ratio = 1e.308.* samples"),
        ((5e-5, -5, 0.9), "n = -5"),
        ((5e-5, 1.5, 0.9), "n = 1.5"),
        (("much", 100, 0.9), "sampling_ratio = 'much': must be a number"),
    ],
)
def test_samples_for_ratio_refuses(arguments, why):
    with pytest.raises(ValueError, match=why):
        schedules.samples_for_ratio(*arguments)


@pytest.mark.parametrize("stages", [0, -1, 10**6, 2.5, None])
def test_cubic_stages_refuses(stages):
    with pytest.raises(ValueError, match=f"stages = {stages}"):
        schedules.cubic_stages(0.9, stages)
