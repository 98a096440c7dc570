"""What a mask may cost, as ratios inside one process, medians of interleaved repetitions. No test looks at a clock."""

import pytest

from randprune_lab.bench import speed_table

pytestmark = pytest.mark.speed


def by_name(rows):
    return {row.name: row for row in rows}


def test_a_random_mask_costs_no_more_than_a_plain_one():
    rows = by_name(speed_table(repeats=7))
    for name in (
        "random_mask / plain mask",
        "next candidate / first",
        "extra memory of a 23 M mask / the weight's own",
    ):
        assert rows[name].reached, f"{name}: {rows[name].value:.3g}, should be {rows[name].target}"


@pytest.mark.slow
def test_every_target_is_reached():
    missed = [row for row in speed_table(repeats=21) if row.reached is False]
    assert not missed


@pytest.mark.gpu
def test_every_target_is_reached_on_a_gpu():
    missed = [row for row in speed_table(device="cuda", repeats=21) if row.reached is False]
    assert not missed
