"""The lessons: their states, and what they reveal against numpy's own counting and drawing."""

import re

import numpy as np
import pytest
import torch

from randprune_lab import Explorer, ExploreState, candidate_generator, magnitude_mask, mask_sampler, open_source
from randprune_lab.lessons import LESSONS, SPREAD_MASKS

STEPS = [(lesson, number) for lesson in range(5) for number in range(len(LESSONS[lesson].steps))]
PANELS = {"microscope", "curve", "candidates", "randomness", "table"}


def normal_weights():
    generator = torch.Generator().manual_seed(0)
    shapes = {"0.weight": (300, 64), "2.weight": (100, 300), "4.weight": (10, 100)}
    return {name: 0.1 * torch.randn(*shape, generator=generator) for name, shape in shapes.items()}


@pytest.fixture(scope="module", params=["demo", "normal"])
def weights(request):
    if request.param == "normal":
        return normal_weights()
    from randprune_lab.demo import demo_weights

    return demo_weights()


@pytest.fixture(scope="module")
def explorer(weights):
    return Explorer(open_source(weights))


def magnitudes(weights, name="0.weight"):
    return weights[name].double().abs().flatten().numpy()


def numbers(text: str) -> list[float]:
    return [float(found.replace(",", "")) for found in re.findall(r"\d[\d,]*(?:\.\d+)?(?:e-?\d+)?", text)]


def revealed(explorer, lesson, step):
    asked = LESSONS[lesson].steps[step]
    found = asked.reveal(explorer)
    assert found.option in asked.options
    assert found.why
    return found, numbers(found.sentence)


def simulated(size, *, sparsity, power=5.0, samples=4, reach=None, masks=12):
    """ir and swapped of masks that numpy draws: Gumbel keys, counts, ties by chance. ``size``: the magnitudes."""
    rng = np.random.default_rng(0)
    keep = len(size) - round(sparsity * len(size))
    order = np.argsort(-size, kind="stable")
    drawable = order if reach is None else order[: round(reach * keep)]
    swapped = []
    for _ in range(masks):
        counts = rng.random(len(drawable))  # decides among equals
        for _ in range(samples):
            keys = power * np.log(size[drawable]) + rng.gumbel(size=len(drawable))
            counts[np.argpartition(-keys, keep - 1)[:keep]] += 1
        kept = drawable[np.argpartition(-counts, keep - 1)[:keep]]
        swapped.append(keep - len(np.intersect1d(kept, order[:keep])))
    mean = np.mean(swapped)
    return mean / (len(size) - keep - mean), mean / keep


def masks_of(weights, count, *, samples):
    """The plain mask and random ones, drawn without the explorer."""
    weight = weights["0.weight"]
    draw = mask_sampler(weight, 0.9375, samples=samples, power=5.0)
    random = [draw(candidate_generator(0, 1, n, parameter="0.weight", device=weight.device)) for n in range(1, count)]
    return np.stack([mask.flatten().numpy() for mask in (magnitude_mask(weight, 0.9375), *random)])


def test_there_are_five_short_lessons():
    assert len(LESSONS) == 5
    for lesson in LESSONS:
        assert 3 <= len(lesson.steps) <= 5
        assert lesson.title
        assert lesson.goal
        assert lesson.next_text
        assert set(lesson.panels) <= PANELS
        for step in lesson.steps:
            assert 2 <= len(set(step.options)) == len(step.options) <= 4
            assert len(step.text) < 300
            assert step.question[-1] in "?."


@pytest.mark.parametrize(("lesson", "step"), STEPS)
def test_every_state_can_be_shown(explorer, lesson, step):
    asked = LESSONS[lesson].steps[step]
    for state in (asked.state, asked.after, LESSONS[lesson].next_state):
        assert state.model == "demo"
        assert ExploreState.from_query(state.to_query()) == (state, [])
        assert explorer.quick(state)["curve"] is not None


@pytest.mark.parametrize(("lesson", "step"), STEPS)
def test_a_prediction_is_judged(explorer, lesson, step):
    asked = LESSONS[lesson].steps[step]
    found = asked.reveal(explorer)
    for option in asked.options:
        verdict = found.verdict(option)
        assert (verdict == "Right.") == (option == found.option)
        assert option == found.option or found.option in verdict
    assert asked.reveal(explorer) == found


def test_near_tau(explorer, weights):
    size = np.sort(magnitudes(weights))[::-1]
    tau = size[len(size) - round(0.83 * len(size)) - 1]
    share = np.mean((size >= tau * 2 / 3) & (size <= tau * 4 / 3))
    found, said = revealed(explorer, 0, 0)
    assert said[:2] == [pytest.approx(tau, rel=1e-3), pytest.approx(100 * share, abs=0.15)]
    limits = [0, *numbers("10 20 40"), 100]
    place = LESSONS[0].steps[0].options.index(found.option)
    assert limits[place] <= 100 * share < limits[place + 1]

    more = np.sum((size >= 0.9 * tau) & (size < tau))
    found, said = revealed(explorer, 0, 1)
    assert said[2] == pytest.approx(more, abs=5)
    assert said[3] == pytest.approx(100 * more / 3264, abs=0.2)
    assert found.option == "over 15 %"
    assert more / 3264 > 0.15

    later = size[len(size) - round(0.9375 * len(size)) - 1]
    sparser = np.mean((size >= later * 2 / 3) & (size <= later * 4 / 3))
    found, said = revealed(explorer, 0, 2)
    assert [said[0], said[2]] == [pytest.approx(100 * share, abs=0.15), pytest.approx(100 * sparser, abs=0.15)]
    assert found.option == ("smaller" if sparser < 0.98 * share else "larger" if sparser > share / 0.98 else "")


def test_power_and_reach(explorer, weights):
    size = magnitudes(weights)
    found, said = revealed(explorer, 1, 0)
    assert found.option == "less is left to chance"
    for power, swapped, ir in (said[:3], said[3:]):
        drawn_ir, drawn = simulated(size, sparsity=0.9375, power=power)
        assert swapped / 100 == pytest.approx(drawn, rel=0.05)
        assert ir == pytest.approx(drawn_ir, rel=0.05)
    assert said[1] > said[4]

    found, said = revealed(explorer, 1, 1)
    assert found.option == "as likely as any other weight"
    assert said[1] == said[-1] == 6.25
    assert simulated(size, sparsity=0.9375, power=0, samples=1)[1] == pytest.approx(1 - 0.0625, abs=0.01)

    found, said = revealed(explorer, 1, 2)
    falling = np.sort(size)[::-1]
    assert said[1:3] == [2400, 1200]
    assert said[4] == pytest.approx(falling[2399] / falling[1199], abs=0.006)
    assert found.option == "from half of tau to 0.9 tau"
    assert 0.5 < falling[2399] / falling[1199] < 0.9


def test_samples(explorer, weights):
    size = magnitudes(weights)
    found, said = revealed(explorer, 2, 0)
    assert found.option == "it falls"
    assert said[1::2] == [4, 64]
    for ir, samples in (said[:2], said[2:]):
        assert ir == pytest.approx(simulated(size, sparsity=0.9375, samples=int(samples))[0], rel=0.05)

    found, said = revealed(explorer, 2, 1)
    assert found.option == "it stays the same"
    assert said[1::2] == [1, 2]
    for ir, samples in (said[:2], said[2:]):
        assert ir == pytest.approx(simulated(size, sparsity=0.9375, samples=int(samples))[0], rel=0.05)

    found, said = revealed(explorer, 2, 2)
    assert found.option == "it stays the same"
    assert said[4:] == [2.5e-5, 18000, 0.45]
    assert said[1] == said[3] == max(1, int(2.5e-5 * 18000)) == 1


def test_ir_and_swapped(explorer, weights):
    size = magnitudes(weights)
    found, said = revealed(explorer, 3, 0)
    for sparsity, ir, swapped in (said[:3], said[3:]):
        drawn_ir, drawn = simulated(size, sparsity=sparsity)
        assert [ir, swapped / 100] == [pytest.approx(drawn_ir, rel=0.05), pytest.approx(drawn, rel=0.05)]
    assert found.option == "ir at 0.54, swapped at 0.9375"
    assert said[1] > said[4]
    assert said[2] < said[5]


def test_one_ratio_and_one_target(explorer, weights):
    pattern = r"(\d)\.weight \(([\d,]+) weights\): M = (\d+), ir = ([\d.]+\d)"
    found, _ = revealed(explorer, 3, 1)
    rows = re.findall(pattern, found.sentence)
    irs = []
    for layer, count, samples, ir in rows:
        size = magnitudes(weights, f"{layer}.weight")
        assert int(count.replace(",", "")) == len(size)
        assert int(samples) == max(1, int(1e-3 * round(0.9375 * len(size))))
        drawn, _ = simulated(size, sparsity=0.9375, samples=int(samples), masks=12 if len(size) > 2000 else 200)
        assert float(ir) == pytest.approx(drawn, rel=0.06)
        irs.append(drawn)
    assert len(rows) == 3
    assert np.argmax(irs) == 2
    assert found.option == "the smallest matrix"

    found, _ = revealed(explorer, 3, 2)
    rows = re.findall(pattern, found.sentence)
    powers = numbers(found.sentence.split("own:")[1])
    assert len(rows) == len(powers) == 3
    for (layer, _, samples, ir), power in zip(rows, powers, strict=True):
        size = magnitudes(weights, f"{layer}.weight")
        masks = 12 if len(size) > 2000 else 200
        drawn, _ = simulated(size, sparsity=0.9375, samples=int(samples), power=power, masks=masks)
        assert float(ir) == pytest.approx(0.01, rel=0.01)
        assert drawn == pytest.approx(0.01, rel=0.08)
    assert found.option == "all about the same"


def test_candidates(explorer, weights):
    masks, size = masks_of(weights, 8, samples=16), magnitudes(weights)
    found, said = revealed(explorer, 4, 0)
    pairs = [(masks[i] & masks[j]).sum() / 1200 for i in range(1, 8) for j in range(i + 1, 8)]
    assert said[1:] == [pytest.approx(100 * value, abs=0.06) for value in (min(pairs), max(pairs), np.mean(pairs))]
    assert found.option == "50 to 90 %"
    assert 0.5 < np.mean(pairs) < 0.9

    found, said = revealed(explorer, 4, 1)
    apart = masks.any(axis=0) & ~masks.all(axis=0)
    tau = np.sort(size)[-1200]
    near = (size[apart] >= 2 / 3 * tau) & (size[apart] <= 4 / 3 * tau)
    assert said[:3] == [8, apart.sum(), 19200]
    assert said[3] == pytest.approx(100 * near.mean(), abs=0.2)
    assert found.option.startswith("near tau")
    assert near.mean() > 0.5
    large = size > 1.5 * tau
    if large.any():
        assert said[-3:] == [large.sum(), 1.5, pytest.approx(100 * masks[:, large].all(axis=0).mean(), abs=0.06)]

    found, said = revealed(explorer, 4, 2)
    assert said == [0, 3, 0, 19200, 4, (masks[3] != masks[4]).sum()]
    assert found.option == "none"

    found, said = revealed(explorer, 4, 3)
    sums = (masks * size).sum(axis=1)
    assert [said[0], said[2]] == [pytest.approx(sums[0], rel=1e-4), pytest.approx(sums[1:].max(), rel=1e-4)]
    assert found.option == "the plain one"
    assert sums.argmax() == 0


def test_a_difference_within_the_spread_is_no_result(explorer, weights):
    masks = masks_of(weights, SPREAD_MASKS + 1, samples=4)
    swapped = np.array([(mask & ~masks[0]).sum() for mask in masks[1:]])
    irs = swapped / (18000 - swapped)
    found, said = revealed(explorer, 4, 4)
    before, after, apart, count, low, high, spread = said
    assert count == SPREAD_MASKS
    assert [low, high] == [pytest.approx(irs.min(), rel=1e-3), pytest.approx(irs.max(), rel=1e-3)]
    assert spread == pytest.approx(irs.std(ddof=1), rel=0.05)
    assert apart == pytest.approx(before - after, rel=0.06)
    assert before == pytest.approx(irs.mean(), rel=0.05)
    assert found.option.startswith("no:") == (before - after < 2 * irs.std(ddof=1))


def test_what_is_right_depends_on_the_weights():
    """All weights of one magnitude but a few: nothing of the usual answers holds near tau."""
    sizes = torch.cat([torch.full((3264,), 10.0), torch.linspace(0.0, 1.0, 15936)]).reshape(300, 64)
    explorer = Explorer(open_source({"0.weight": sizes}))
    assert LESSONS[0].steps[0].reveal(explorer).option == "10 to 20 %"
    assert LESSONS[0].steps[1].reveal(explorer).option == "under 5 % of those kept"
