"""SET and RigL: how many weights move, which go, which come, and when it is over."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.runs import checkpoints, events, same_tensors, tiny, tiny_model, tiny_task, unpacked

from randprune_lab import engine
from randprune_lab.densities import erk
from randprune_lab.fitting import check_fit
from randprune_lab.methods import hooks_of
from randprune_lab.regrow import Regrow, regrown, share_at
from randprune_lab.training import Diverged, Phase, Session, start_accelerator

DYNAMIC = ("set", "rigl")
SIZES = {"0.weight": (24, 8), "4.weight": (12, 24), "5.weight": (3, 12)}


# ---- how many


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2000), st.integers(1, 2000), st.floats(0.01, 0.99))
def test_the_share_follows_a_cosine(step, steps, first):
    """Evci et al. 2020, Eq. 1, with T_end three quarters of all steps."""
    end = 0.75 * steps
    expected = first * (math.cos(math.pi * step / end) + 1) / 2 if step < end else 0.0
    assert share_at(step, steps, first) == pytest.approx(expected, abs=1e-12)
    assert 0 <= share_at(step, steps, first) <= first


def test_the_share_by_hand():
    assert [share_at(step, 100, 0.4) for step in (0, 75, 76, 100)] == [0.4, 0, 0, 0]
    assert share_at(37.5, 100, 0.4) == pytest.approx(0.2)


# ---- which


def slow_regrown(weight, mask, worth, share):
    """By sorting lists."""
    kept = [at for at in range(len(mask)) if mask[at]]
    moving = min(int(share * len(kept)), len(mask) - len(kept))
    falling = sorted(kept, key=lambda at: (-abs(weight[at]), at))
    stays = falling[: len(kept) - moving]
    free = [at for at in range(len(mask)) if at not in stays]
    grown = sorted(free, key=lambda at: (-worth[at], at))[:moving]
    return [at in stays or at in grown for at in range(len(mask))]


VALUES = st.sampled_from([-2.0, -1.0, 0.0, 0.25, 1.0, 1.5, 3.0])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(VALUES, st.booleans(), VALUES.map(abs)), min_size=1, max_size=30), st.floats(0, 0.99))
def test_regrown_against_sorting(rows, share):
    weight, mask, worth = (list(column) for column in zip(*rows, strict=True))
    found = regrown(torch.tensor(weight), torch.tensor(mask), torch.tensor(worth), share)
    assert found.tolist() == slow_regrown(weight, mask, worth, share)
    assert int(found.sum()) == sum(mask)


def test_regrown_by_hand():
    """Of four kept the two smallest go; of what is then free the two with most worth come, one of them at once."""
    weight = torch.tensor([[4.0, -3.0, 0.0], [0.1, 0.0, 0.2]])
    mask = torch.tensor([[True, True, False], [True, False, True]])
    worth = torch.tensor([[99.0, 99.0, 1.0], [2.0, 5.0, 0.0]])
    assert regrown(weight, mask, worth, 0.5).tolist() == [[True, True, False], [True, True, False]]


def test_a_mask_that_keeps_everything_stays():
    assert regrown(torch.ones(4), torch.ones(4, dtype=torch.bool), torch.ones(4), 0.9).all()


# ---- in training


def phase_of(method: str, model=None, *, sparsity=0.8, **changes) -> Phase:
    """The fine-tuning of a run, after one drawing of its mask; five steps an epoch."""
    given_ = {"stages": (sparsity,), "regrow_every": 1, "dense_epochs": 0, "max_epochs": 60} | changes
    config = tiny(method=method, **given_)
    model = tiny_model() if model is None else model
    session = Session(
        config, tiny_task(), model, start_accelerator(config), prunable=tuple(SIZES), hooks=hooks_of(config)
    )
    check_fit(session)
    generator = torch.Generator().manual_seed(1)
    masks = {}
    for name, shape in SIZES.items():
        size = math.prod(shape)
        keep = size - round(sparsity * size)
        masks[name] = (torch.randperm(size, generator=generator) < keep).view(shape)
    return Phase(session, "fine-tuning", 1, masks, lambda _: 1e-2, model)


def stepwise(phase: Phase, steps: int):
    """Each step, with the masks before it, and the gradients that the hook saw."""
    (hook,) = phase.hooks
    rows = torch.arange(len(phase.session.task.train))
    for step in range(steps):
        before = dict(phase.masks)
        weights = {name: phase.parameters[name].detach().clone() for name in SIZES}
        seen = {}
        backward = hook.backward

        def watched(at, backward=backward, seen=seen):
            seen.update({name: phase.parameters[name].grad.clone() for name in SIZES})
            backward(at)

        hook.backward = watched
        phase.model.train()
        phase.step(step, *phase.session.task.train.batch(rows[step % 50 : step % 50 + 16]), None)
        hook.backward = backward
        yield step, before, weights, seen


@pytest.mark.parametrize("method", DYNAMIC)
def test_the_density_stays_exactly_through_a_hundred_moves(method):
    """Of each tensor; and outside the mask weights and moments are 0 after every step."""
    phase = phase_of(method)  # of 300 steps the mask moves in each of the first 225
    first, moved = dict(phase.masks), 0
    for _, before, _, _ in stepwise(phase, 112):
        for name, mask in phase.masks.items():
            assert int(mask.sum()) == int(first[name].sum())
            assert mask.dtype == torch.bool
            outside = ~mask
            parameter = phase.parameters[name]
            state = phase.optimizer.state[parameter]
            for tensor in (parameter.detach(), state["exp_avg"], state["exp_avg_sq"]):
                assert not tensor[outside].any()
        moved += any(not mask.equal(before[name]) for name, mask in phase.masks.items())
    assert moved >= 100
    assert all(not mask.equal(first[name]) for name, mask in phase.masks.items())


def test_rigl_grows_where_the_gradient_is_largest():
    """And drops the least magnitudes: against the slow rule, with the gradients of that very step."""
    phase = phase_of("rigl", regrow_share=0.5)
    grown = 0
    for step, before, weights, seen in stepwise(phase, 30):
        share = share_at(step, 300, 0.5) if step else 0.0
        for name, mask in phase.masks.items():
            expected = slow_regrown(
                weights[name].reshape(-1).tolist(),
                before[name].reshape(-1).tolist(),
                seen[name].abs().reshape(-1).tolist(),
                share,
            )
            assert mask.reshape(-1).tolist() == expected
            new = mask & ~before[name]
            grown += int(new.sum())
            if new.any():
                out = ~mask & ~before[name]
                assert seen[name][new].abs().min() >= seen[name][out].abs().max()
    assert grown > 100


def test_gradients_reach_weights_that_are_not_kept():
    """RigL's sight depends on it."""
    for _, before, _, seen in stepwise(phase_of("rigl"), 1):
        assert all(seen[name][~before[name]].any() for name in SIZES)


@pytest.mark.parametrize("method", DYNAMIC)
def test_what_is_new_begins_at_zero(method):
    """With moments of 0: its first step is as long as the learning rate of a first step of AdamW would make it."""
    phase, checked = phase_of(method, regrow_share=0.5, weight_decay=0.0), 0
    for step, before, weights, seen in stepwise(phase, 12):
        for name, mask in phase.masks.items():
            new = mask & ~before[name] & (seen[name] != 0)
            assert not weights[name][new].any()
            state = phase.optimizer.state[phase.parameters[name]]
            torch.testing.assert_close(state["exp_avg"][new], 0.1 * seen[name][new])
            correction = math.sqrt(1 - 0.999 ** (step + 1)) / (1 - 0.9 ** (step + 1))
            expected = -1e-2 * correction * 0.1 * seen[name][new].sign() / math.sqrt(0.001)
            found = phase.parameters[name].detach()[new]
            large = seen[name][new].abs() > 1e-5
            torch.testing.assert_close(found[large], expected[large], rtol=0.02, atol=0)
            checked += int(large.sum())
    assert checked > 50


def test_set_grows_at_random():
    """The same seed the same masks, another seed others; and every free place has its chance."""

    def end(**changes):
        phase = phase_of("set", **changes)
        for _ in stepwise(phase, 5):
            pass
        return {name: mask.clone() for name, mask in phase.masks.items()}

    assert same_tensors(end(), end())
    assert not same_tensors(end(), end(seed=1))
    grown = torch.zeros(SIZES["4.weight"])
    for seed in range(60):
        phase = phase_of("set", seed=seed, regrow_share=0.5, sparsity=0.5)
        (hook,) = phase.hooks
        before = phase.masks["4.weight"].clone()
        hook.backward(1)
        grown += phase.masks["4.weight"] & ~before
    # every free place is grown in about a third of the seeds; never, or always: a chance of (2/3)**60 each
    free = ~phase_of("set", sparsity=0.5).masks["4.weight"]
    assert 0 < grown[free].min() <= grown[free].max() < 60
    assert not grown[~free].any()


@pytest.mark.parametrize("method", DYNAMIC)
@pytest.mark.parametrize("every", [1, 3, 5])
def test_it_moves_every_so_many_steps_and_stops_at_three_quarters(method, every):
    phase = phase_of(method, regrow_every=every, max_epochs=12)  # 60 steps: the last move is before step 45
    when = [
        step
        for step, before, _, _ in stepwise(phase, 60)
        if any(phase.masks[name] is not mask for name, mask in before.items())
    ]
    possible = [step for step in range(1, 45) if step % every == 0]
    # towards the end the share rounds to no weight at all
    assert when == possible[: len(when)]
    assert len(when) >= 0.7 * len(possible)


def test_the_first_step_has_seen_too_little():
    """RigL begins at the first multiple of ``regrow_every``, not at step 0."""
    phase = phase_of("set")
    before = dict(phase.masks)
    phase.hooks[0].backward(0)
    assert all(phase.masks[name] is mask for name, mask in before.items())


# ---- through the engine


def masks_of(checkpoint) -> dict[str, np.ndarray]:
    return {
        name: unpacked(checkpoint.tensors[f"mask.{name}"], checkpoint.tensors[f"model.{name}"].shape) for name in SIZES
    }


@pytest.mark.parametrize("method", DYNAMIC)
@pytest.mark.parametrize("densities", ["uniform", "erk"])
def test_every_checkpoint_of_a_run_is_exactly_as_dense(method, densities):
    config = tiny(method=method, densities=densities, stages=(0.8,), regrow_every=2, max_epochs=4)
    shares = erk(SIZES, 0.8) if densities == "erk" else dict.fromkeys(SIZES, 0.8)
    expected = {name: math.prod(shape) - round(shares[name] * math.prod(shape)) for name, shape in SIZES.items()}
    seen = [item for item in checkpoints(config, model=tiny_model(), data=tiny_task()) if item.progress.stage == 1]
    seen = [item for item in seen if item.progress.phase != "scoring"]
    assert len(seen) == 2 + 2 + 4  # the choice, six epochs (two of them instead of the dense ones), the end
    for item in seen:
        for name, mask in masks_of(item).items():
            assert int(mask.sum()) == expected[name]
            assert not item.tensors[f"model.{name}"].numpy()[~mask].any()
    first, last = masks_of(seen[0]), masks_of(seen[-1])
    assert all((first[name] != last[name]).any() for name in SIZES)


@pytest.mark.parametrize("method", DYNAMIC)
@pytest.mark.parametrize("rate", [1e3, 1e30])
def test_a_run_that_diverges_says_so(method, rate):
    """And not that weights which are NaN cannot be ranked."""
    config = tiny(method=method, regrow_every=1, learning_rate=rate, stages=(0.8,))
    with pytest.raises(Diverged, match="Lower the learning rate"):
        list(engine.prune(config, model=tiny_model(), data=tiny_task()))


@pytest.mark.parametrize("method", DYNAMIC)
def test_a_layer_that_is_frozen_does_not_stop_the_others(method):
    model = tiny_model()
    model[4].weight.requires_grad_(False)
    config = tiny(method=method, stages=(0.8,), regrow_every=1)
    assert events(config, model=model, data=tiny_task())


def test_other_phases_have_no_hook():
    phase = phase_of("rigl")
    assert [type(hook) for hook in phase.hooks] == [Regrow]
    for name in ("dense", "emep"):
        assert not Phase(phase.session, name, 1, phase.masks, lambda _: 1e-2).hooks
