"""The learned mask: its gradients against autograd, its draws against their chances, and what it leaves behind."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom
from support.runs import events, go_on, stop_after, tiny, tiny_model, tiny_parts, told
from torch import nn

from randprune_lab.events import EpochFinished, StageFinished, Warned
from randprune_lab.learned import FIRST_CHANCE, NUMBERS, TEMPERATURE, LearnedMask


def mask_of(weights: dict[str, torch.Tensor], **changes) -> LearnedMask:
    return LearnedMask(weights, tiny(**({"method": "learned-mask"} | changes)))


def one_weight(numbers: list[float]) -> dict[str, torch.Tensor]:
    return {"w": nn.Parameter(torch.tensor(numbers, dtype=torch.float64))}


def with_logits(mask: LearnedMask, value: float) -> LearnedMask:
    for logit in mask.logits.values():
        logit.fill_(value)
    return mask


def one_step(mask: LearnedMask, loss) -> None:
    with mask.forward(0):
        loss().backward()
    mask.backward(0)


# ---- the gradients


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.floats(0, 20), st.floats(0, 5))
def test_gradients_against_autograd(seed, sparse, binary):
    """The same loss by the definition: straight through, and with both terms; the noise the same."""
    torch.manual_seed(seed)
    weights = {name: nn.Parameter(torch.randn(size, dtype=torch.float64)) for name, size in {"a": 7, "b": 5}.items()}
    target = {name: torch.randn(len(weight), dtype=torch.float64) for name, weight in weights.items()}
    mask = mask_of(weights, mask_sparsity_weight=sparse, mask_binary_weight=binary)
    for logit in mask.logits.values():
        logit.normal_()
    logits = {name: logit.clone().requires_grad_() for name, logit in mask.logits.items()}

    def loss(found):
        return sum(((found[name] - target[name]) ** 4).sum() for name in found)

    mask.optimizer.zero_grad = lambda: None  # they are looked at below
    torch.manual_seed(seed)
    one_step(mask, lambda: loss(weights))

    torch.manual_seed(seed)
    masked, copies = {}, {name: weight.detach().clone().requires_grad_() for name, weight in weights.items()}
    for name, logit in logits.items():
        noise = torch.rand_like(logit).clamp(1e-6, 1 - 1e-6).logit()
        soft = ((logit + noise) / TEMPERATURE).sigmoid()
        masked[name] = copies[name] * (soft + ((soft > 0.5).double() - soft).detach())
    chances = torch.cat([logit.sigmoid() for logit in logits.values()])
    whole = loss(masked) + sparse * chances.mean() + binary * (4 * chances * (1 - chances)).mean()
    whole.backward()
    chances = chances.detach()
    for name in weights:
        torch.testing.assert_close(weights[name].grad, copies[name].grad)
        torch.testing.assert_close(mask.logits[name].grad, logits[name].grad)
    assert float(mask.terms()["mask density"]) == pytest.approx(float(chances.mean()))
    assert float(mask.terms()["mask undecided"]) == pytest.approx(float((4 * chances * (1 - chances)).mean()))


def test_a_step_moves_the_logits_by_adam():
    """The first step of Adam is the learning rate, against the slope's sign."""
    mask = mask_of(one_weight([1.0, -2.0, 0.0]), mask_sparsity_weight=5.0, mask_learning_rate=0.25)
    before = mask.logits["w"].clone()
    one_step(mask, lambda: mask.weights["w"].sum() * 0)
    torch.testing.assert_close(mask.logits["w"], before - 0.25, rtol=1e-5, atol=0)


def test_a_weight_that_is_not_used_is_only_pulled():
    weights = {"used": nn.Parameter(torch.ones(3)), "idle": nn.Parameter(torch.ones(3))}
    mask = mask_of(weights, mask_sparsity_weight=5.0)
    before = mask.logits["idle"].clone()
    one_step(mask, lambda: (weights["used"] ** 2).sum())
    assert weights["idle"].grad is None
    assert bool((mask.logits["idle"] < before).all())


# ---- the draws


def test_the_first_chance():
    (chance,) = mask_of(one_weight([1.0, 2.0])).chances().values()
    assert chance.tolist() == pytest.approx([FIRST_CHANCE] * 2)


@pytest.mark.parametrize("logit", [-3.0, -0.5, 0.0, 0.7, math.log(9)])
def test_a_mask_is_drawn_with_its_chances(logit):
    """40,000 weights in one draw; false alarm: once in a million for each logit."""
    mask = with_logits(mask_of(one_weight([1.0] * 40_000)), logit)
    torch.manual_seed(11)
    with mask.forward(0):
        drawn = mask.weights["w"].detach().clone()
    assert set(drawn.tolist()) <= {0.0, 1.0}
    low, high = binom.interval(1 - 1e-6, 40_000, 1 / (1 + math.exp(-logit)))
    assert low <= float(drawn.sum()) <= high


def test_every_step_draws_anew_and_the_same_seed_draws_the_same():
    mask = with_logits(mask_of(one_weight([1.0] * 200)), 0.0)

    def drawn(seed):
        torch.manual_seed(seed)
        with mask.forward(0):
            return mask.weights["w"].detach().clone()

    assert drawn(0).equal(drawn(0))
    assert not drawn(0).equal(drawn(1))


# ---- the weights are what they were

ODD = [1.0, -0.0, 1e-310, -1e300, float("nan"), float("inf"), 0.1, -3.0]


@pytest.mark.parametrize("inside", ["forward", "scoring"])
@pytest.mark.parametrize("fails", [False, True])
def test_the_weights_come_back_bit_for_bit(inside, fails):
    mask = with_logits(mask_of(one_weight(ODD)), 0.0)
    torch.manual_seed(2)
    before = mask.weights["w"].detach().numpy().tobytes()
    try:
        with mask.forward(0) if inside == "forward" else mask.scoring():
            assert mask.weights["w"].detach().numpy().tobytes() != before
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    assert mask.weights["w"].detach().numpy().tobytes() == before


def test_scoring_is_of_the_expected_weights_and_finish_leaves_them():
    mask = mask_of(one_weight([2.0, -4.0, 0.0, 1e-3]))
    mask.logits["w"].copy_(torch.tensor([0.0, 1.0, -1.0, 5.0]))
    expected = mask.weights["w"].detach() * mask.logits["w"].sigmoid()
    with mask.scoring():
        assert mask.weights["w"].detach().equal(expected)
    mask.finish()
    assert mask.weights["w"].detach().equal(expected)


# ---- the terms


def trained(steps: int, **changes) -> LearnedMask:
    """A task that does not care: only the terms move the logits, which begin apart from one another."""
    mask = mask_of(one_weight([1.0] * 40), mask_learning_rate=0.05, **changes)
    mask.logits["w"].copy_(torch.linspace(-2, 3, 40))
    for _ in range(steps):
        one_step(mask, lambda: mask.weights["w"].sum() * 0)
    return mask


def test_the_sparsity_term_lowers_every_chance():
    before, after = (trained(steps, mask_sparsity_weight=1.0, mask_binary_weight=0.0) for steps in (0, 40))
    assert bool((after.chances()["w"] < before.chances()["w"]).all())


def test_the_binary_term_pulls_each_chance_to_its_side():
    before, after = (trained(steps, mask_sparsity_weight=0.0, mask_binary_weight=1.0) for steps in (0, 40))
    was, found = before.chances()["w"], after.chances()["w"]
    assert bool((found[was > 0.5] > was[was > 0.5]).all())
    assert bool((found[was < 0.5] < was[was < 0.5]).all())
    assert after.terms()["mask undecided"] < trained(1, mask_sparsity_weight=0.0).terms()["mask undecided"]


def test_without_terms_and_task_nothing_moves():
    assert trained(10, mask_sparsity_weight=0.0, mask_binary_weight=0.0).logits["w"].equal(trained(0).logits["w"])


# ---- what it says


def test_it_says_what_it_needs():
    """Logit, two moments, and a copy: 4 numbers of 4 bytes for each of 250,000 weights."""
    (said,) = mask_of({"w": nn.Parameter(torch.ones(500, 500))}).said
    assert "250,000" in said
    assert ": 6 MB" in said
    assert NUMBERS == 6


def test_what_it_keeps_is_what_it_says():
    weights = {"w": nn.Parameter(torch.ones(500, 500))}
    mask = mask_of(weights)
    one_step(mask, lambda: weights["w"].sum())
    kept = sum(tensor.nbytes for tensor in mask.state().values() if tensor.numel() > 1)
    assert kept == 3 * weights["w"].nbytes
    assert not mask.slopes  # what only a step needs is gone
    assert not mask.drawn
    assert all(logit.grad is None for logit in mask.logits.values())


def test_a_collapse_is_said_once_for_each_tensor():
    mask = mask_of({"a": nn.Parameter(torch.ones(30)), "b": nn.Parameter(torch.ones(4))})
    mask.said.clear()
    mask.epoch_over()
    assert not mask.said
    mask.logits["a"].fill_(-1.0)
    mask.logits["a"][3] = 0.1
    mask.epoch_over()
    assert not mask.said  # one is still more likely kept than not
    mask.logits["a"][3] = -0.1
    mask.epoch_over()
    (said,) = mask.said
    assert "collapsed in a:" in said
    assert "30" in said
    assert "mask_sparsity_weight" in said
    mask.logits["b"].fill_(-1.0)
    mask.epoch_over()
    assert ["collapsed in b:" in sentence for sentence in mask.said] == [False, True]


# ---- through the engine

COLLAPSING = {"method": "learned-mask", "dense_epochs": 4, "mask_learning_rate": 2.0, "mask_sparsity_weight": 1e6}
NAMES = ("0.weight", "4.weight", "5.weight")


def warnings(said) -> list[str]:
    return [event.text for event in said if isinstance(event, Warned)]


def test_a_run_that_collapses_says_so_and_goes_on():
    said = events(tiny(**COLLAPSING), **tiny_parts())
    memory, *collapsed = warnings(said)
    assert "516 weights" in memory
    assert [text.split(":")[0].split()[-1] for text in collapsed] == list(NAMES)
    assert [event.kept for event in said if isinstance(event, StageFinished)] == [96 + 144 + 18, 19 + 29 + 4]


def test_the_advice_of_a_collapse_helps():
    """Lower mask_sparsity_weight: 0 lets no tensor go."""
    assert len(warnings(events(tiny(**(COLLAPSING | {"mask_sparsity_weight": 0.0})), **tiny_parts()))) == 1


def test_what_was_said_is_not_said_again_after_a_resume(tmp_path):
    config = tiny(**COLLAPSING)
    expected = warnings(events(config, **tiny_parts()))
    for taken in range(3, 16, 2):
        folder = tmp_path / str(taken)
        stop_after(folder, config, taken, **tiny_parts())
        go_on(folder, config, **tiny_parts())
        assert [record["text"] for record in told(folder) if record["kind"] == "warned"] == expected


def test_the_dense_epochs_tell_how_the_mask_does():
    """Mean chance and how undecided: with a strong pull the density falls, and no other phase has such terms."""
    said = events(tiny(method="learned-mask", dense_epochs=6, mask_sparsity_weight=1e3), **tiny_parts())
    dense = [event.terms for event in said if isinstance(event, EpochFinished) and event.phase == "dense"]
    other = [event.terms for event in said if isinstance(event, EpochFinished) and event.phase != "dense"]
    density = [terms["mask density"] for terms in dense]
    assert density[0] < FIRST_CHANCE + 1e-6
    assert density == sorted(density, reverse=True)
    assert all(0 <= terms["mask undecided"] <= 1 for terms in dense)
    assert not any("mask density" in terms for terms in other)


# ---- state


def test_state_round_trip():
    """Two that go on from one another's state stay together, moments included."""
    torch.manual_seed(0)
    weights = {"a.b": nn.Parameter(torch.randn(5)), "c": nn.Parameter(torch.randn(3))}

    def go(mask, steps):
        for step in range(steps):
            torch.manual_seed(step)
            with mask.forward(step):
                (weights["a.b"].sum() + (weights["c"] ** 2).sum()).backward()
            mask.backward(step)
            for weight in weights.values():
                weight.grad = None

    one = mask_of(weights)
    go(one, 3)
    state = {name: tensor.clone() for name, tensor in one.state().items()}
    assert len(state) == 2 * 4  # logit, step, two moments
    two = mask_of(weights)
    two.load_state(state)
    assert not two.said  # the memory was said before
    go(one, 4)
    go(two, 4)
    for name, logit in one.logits.items():
        assert logit.equal(two.logits[name])
    assert one.state().keys() == two.state().keys()
    assert all(tensor.equal(two.state()[name]) for name, tensor in one.state().items())


def test_a_layer_that_is_frozen_has_a_mask_but_no_gradient():
    model = tiny_model()
    model[4].weight.requires_grad_(False)
    said = events(tiny(method="learned-mask"), model=model, data=tiny_parts()["data"])
    assert [event.kept for event in said if isinstance(event, StageFinished)] == [258, 52]
