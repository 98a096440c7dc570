"""How the cost of a mask grows: what is fitted, counted and drawn; the measured seconds themselves are no test."""

import dataclasses
import json
import math
import platform
import time

import numpy as np
import pytest
import scipy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from randprune_lab import scaling
from randprune_lab.bench import extra_memory
from randprune_lab.charts import to_svg
from randprune_lab.scaling import Scale, StudyTime, Throughput, fit, rate
from randprune_lab.scaling_charts import scaling_chart, scaling_sentence
from randprune_lab.terminal import print_scaling

SIZES = [10**5, 10**6, 10**7, 10**8, 10**9]


def rows_of(sizes=SIZES, slope=1.0, fixed=0.0) -> list[Scale]:
    return [Scale(n, max(1, n // 10**8), fixed + 3e-8 * n**slope, 1e-8 * n**slope, 12 * n, 3) for n in sizes]


@given(slope=st.floats(0.5, 2.0), factor=st.floats(1e-10, 1e-3))
@settings(deadline=None)
def test_an_exact_power_is_found(slope, factor):
    line = fit(SIZES, [factor * size**slope for size in SIZES])
    assert line.slope == pytest.approx(slope, rel=1e-6)
    assert line.low <= line.slope <= line.high
    assert line.high - line.low < 1e-4
    assert line.seconds_per_billion == pytest.approx(factor * 1e9**slope)
    assert line.extrapolated[70 * 10**9] == pytest.approx(70 * line.seconds_per_billion)


def test_the_interval_holds_the_slope_as_often_as_it_says():
    numbers, inside, draws = np.random.default_rng(0), 0, 600
    sizes = [10**6, 10**7, 10**8, 10**9]
    for _ in range(draws):
        line = fit(sizes, [1e-8 * size * 10 ** (0.1 * numbers.standard_normal()) for size in sizes])
        inside += line.low <= 1 <= line.high
    low, high = scipy.stats.binom.interval(1 - 1e-6, draws, 0.95)
    assert low <= inside <= high


def test_what_is_fixed_hides_the_slope_only_where_it_is_not_fitted():
    with_fixed = fit(SIZES, [row.first for row in rows_of(fixed=1e-3)])
    assert with_fixed.slope == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("sizes", [[], [10**5] * 5, [10**6, 10**7]])
def test_too_few_sizes_are_refused(sizes):
    with pytest.raises(ValueError, match="a line with an interval takes three"):
        fit(sizes, [1.0] * len(sizes))


def test_extra_memory_is_that_of_the_peak():
    def work():
        torch.ones(25_000_000)  # 100 MB, gone at once

    extra_memory(work)
    assert 0.9e8 < extra_memory(work) < 1.6e8
    with pytest.raises(KeyError):  # what goes wrong inside is not hidden
        extra_memory(lambda: {}["nothing"])


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries cannot be asked to give memory back")
def test_memory_that_earlier_work_left_at_hand_counts():
    """glibc keeps blocks of up to 32 MB for the next who asks; on that, a mask once seemed to take 8 KB."""
    for _ in range(2):
        torch.ones(7_900_000)  # the first time mapped and given back, the second time kept
    assert 16e6 < extra_memory(lambda: (torch.ones(5_000_000), time.sleep(0.05))) < 30e6


def test_the_rate_counts_while_all_are_at_it():
    # The first is there early, the second late: both judge from 10 to 20.
    stamps = {0: [1, 5, 10, 12, 14, 20], 1: [10, 13, 16, 19, 20, 22, 25]}
    assert rate(stamps) == pytest.approx((3 + 4) / 10)
    assert rate({0: [0.0, 1.0, 2.0]}) == pytest.approx(1)
    assert math.isnan(rate({0: [0, 1], 1: [2, 3]}))


def test_every_size_is_measured_or_left_out(monkeypatch):
    monkeypatch.setattr(scaling, "LARGEST", 50_000)
    heard = []
    found, left_out = scaling.scaling_table(
        sizes=(20_000, 120_000), repeats=2, tell=lambda done, of: heard.append((done, of))
    )
    assert [(row.weights, row.tensors, row.repeats) for row in found] == [(20_000, 1, 2), (120_000, 3, 2)]
    assert all(row.first > 0 and row.following > 0 and row.memory is None for row in found)
    assert (left_out, heard) == ([], [(0, 2), (1, 2), (2, 2)])
    asked = []
    monkeypatch.setattr(scaling, "free_memory", lambda device: asked.append(device) or 1_000_000)
    found, left_out = scaling.scaling_table(sizes=(20_000, 120_000), repeats=1)
    assert ([row.weights for row in found], left_out) == ([20_000], [120_000])
    found, left_out = scaling.scaling_table(sizes=(120_000,), repeats=1, device="cuda")  # its memory, not the machine's
    assert (found, left_out, asked[-1].type) == ([], [120_000], "cuda")


def test_memory_is_told_from_a_million_weights_on():
    ((row,), _) = scaling.scaling_table(sizes=(4_000_000,), repeats=1)
    assert 4_000_000 < row.memory < 4_000_000 * 4 * 10  # a mask at least; some times the weights' own


@pytest.mark.speed
def test_workers_are_counted_for_real():
    base = scaling.JUDGING.model_copy(update={"candidates": 12})
    (row,) = scaling.throughput(workers=(1,), base=base)
    assert row.workers == 1
    assert 0 < row.per_second < 10_000


@pytest.mark.speed
def test_studies_are_timed_for_real():
    (row,) = scaling.study_times(counts=(2,), processes=1)
    assert row.runs == 2
    assert row.seconds > 0


def test_the_chart_draws_every_row_and_says_what_is_extrapolated():
    drawn = to_svg(scaling_chart(rows_of()))
    assert drawn.count("extrapolated") >= 2
    assert "What does it cost as models, workers and studies grow?" in drawn
    alone = to_svg(scaling_chart(rows_of(), [Throughput(1, 20.0), Throughput(2, 36.0)], [StudyTime(2, 8.0)]))
    assert "candidates judged a second" in alone
    assert "runs of a study" in alone
    assert "runs of a study" not in drawn
    sentence = scaling_sentence(rows_of())
    assert "1,000,000,000 weights takes 30 s, each further candidate 10 s" in sentence
    assert "power 1.00" in sentence
    assert "Extrapolated in proportion: 210 s for 7e+09 and 2,100 s for 7e+10 weights" in sentence


def test_without_measured_memory_there_is_no_panel_of_it():
    rows = [dataclasses.replace(row, memory=None) for row in rows_of()]  # as on a GPU
    drawn = to_svg(scaling_chart(rows))
    assert "weights of a tensor" in to_svg(scaling_chart(rows_of()))
    assert "weights of a tensor" not in drawn
    assert "NaN" not in drawn


@pytest.mark.parametrize(("slope", "bound"), [(0.7, "at most"), (1.0, ""), (1.3, "at least")])
def test_proportion_is_a_bound_where_the_interval_excludes_it(slope, bound, capsys):
    times = [1e-8 * size**slope * (1.01 if place % 2 else 1) for place, size in enumerate(SIZES)]
    line = fit(SIZES, times)
    assert line.bound == bound
    print_scaling("", rows_of(), [], {"next candidate": line}, [], [])
    said = " ".join(capsys.readouterr().out.split())
    assert (f"in proportion ({bound} that, if this power holds on): " if bound else "in proportion: ") in said
    sentence = scaling_sentence(rows_of(slope=slope))
    assert (f"Extrapolated in proportion ({bound} that): " if bound else "Extrapolated in proportion: ") in sentence


def test_a_machine_for_few_sizes_is_told_before_the_rest_is_measured(command, monkeypatch):
    monkeypatch.setattr(scaling, "scaling_table", lambda **_: (rows_of([10**6, 10**7]), [10**8]))
    for later in ("throughput", "study_times"):
        monkeypatch.setattr(scaling, later, lambda **_: pytest.fail("it took minutes"))
    code, _, err = command("bench", "--scaling")
    assert code == 2
    assert "a line with an interval takes three" in err


@pytest.fixture
def measured(monkeypatch):
    monkeypatch.setattr(scaling, "scaling_table", lambda **_: (rows_of(), [10**10]))
    monkeypatch.setattr(scaling, "throughput", lambda **_: [Throughput(1, 20.0), Throughput(2, 36.0)])
    monkeypatch.setattr(scaling, "study_times", lambda **_: [StudyTime(2, 8.0), StudyTime(4, 10.0)])


@pytest.mark.usefixtures("measured")
def test_the_command_tells_and_draws(command, tmp_path):
    code, out, err = command("bench", "--scaling", "--chart", tmp_path / "scaling.svg")
    assert (code, err) == (0, "")
    for said in (
        "1,000,000,000",
        "left out: 10,000,000,000 weights",
        "An extrapolation",
        "median of `repeats`",
        "2,100 s for 70 billion",
        "1.80x",
        "2.50",
    ):
        assert said in out, said
    assert (tmp_path / "scaling.svg").read_text().startswith("<svg")
    code, out, _ = command("bench", "--scaling", "--json")
    told = json.loads(out)
    assert code == 0
    assert [row["weights"] for row in told["sizes"]] == SIZES
    assert told["fits"]["first mask"]["slope"] == pytest.approx(1)
    assert told["throughput"][1]["per_second"] == 36.0
    assert told["studies"][1] == {"runs": 4, "seconds": 10.0}


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize("options", [["--chart", "a.svg"], ["--scaling", "--chart", "a.png"]])
def test_a_chart_that_cannot_be_is_refused(command, options):
    code, _, err = command("bench", *options)
    assert code == 2
    assert "must be an .svg file, with --scaling" in err


@pytest.mark.usefixtures("measured")
def test_a_device_that_is_not_here_is_refused(command):
    code, _, err = command("bench", "--scaling", "--device", "tpu")
    assert code == 2
    assert "device" in err
