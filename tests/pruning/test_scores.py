"""From scores to what masks are drawn from: ranks, proportions, pruning in rounds; and nothing else is touched."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.reference import keep_of
from support.runs import events, tiny, tiny_model, tiny_task
from torch import nn

from randprune_lab.criteria import CRITERIA, SYNFLOW_ROUNDS
from randprune_lab.densities import erk
from randprune_lab.events import MaskChosen
from randprune_lab.masks import Masks, kept, stage_masks
from randprune_lab.models import prunable_weights
from randprune_lab.scores import near_one, ranks, stage_scores


def everything(model: nn.Module) -> Masks:
    return {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in prunable_weights(model).items()}


def plain(model: nn.Module, **changes) -> Masks:
    """The deterministic mask of the first stage."""
    config, alive = tiny(**({"method": "imp"} | changes)), everything(model)
    return stage_masks(stage_scores(None, model, alive, tiny_task(), config, 1), alive, 1, config).draw(0)


def layers(seed: int, *, bias: bool = True) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(8, 24, bias=bias), nn.ReLU(), nn.Linear(24, 12, bias=bias), nn.ReLU(), nn.Linear(12, 3, bias=bias)
        )


# ---- ranks and proportions

NUMBERS = st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(NUMBERS, st.booleans()), min_size=2, max_size=20), st.integers(1, 19))
def test_ranks_against_counting(weights, cut):
    """The share of the alive that are not larger; of all tensors together, or of each by itself."""
    cut = min(cut, len(weights) - 1)
    parts = {"a": weights[:cut], "b": weights[cut:]}
    scores = {name: torch.tensor([score for score, _ in part]) for name, part in parts.items()}
    alive = {name: torch.tensor([lives for _, lives in part]) for name, part in parts.items()}
    for together in (True, False):
        found = ranks(scores, alive, together=together)
        for name, part in parts.items():
            among = [score for score, lives in (weights if together else part) if lives]
            expected = [sum(other <= score for other in among) / len(among) if lives else 0.0 for score, lives in part]
            torch.testing.assert_close(found[name], torch.tensor(expected))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 2.0**100, width=32), min_size=2, max_size=10), st.integers(-300, 900))
def test_near_one_changes_no_digit(values, exponent):
    scores = torch.tensor(values, dtype=torch.float64) * 2.0**exponent
    found = near_one({"a": scores[:1], "b": scores[1:]})
    largest = max(float(part.max()) for part in found.values())
    assert 0.5 <= largest < 1 or not scores.any()
    joined = torch.cat([found["a"], found["b"]])
    if scores.any():
        factor = 2.0 ** -int(np.frexp(float(scores.max()))[1])
        assert joined.equal(scores * factor)
    else:
        assert joined.equal(scores)


# ---- what a criterion may leave behind: nothing


@pytest.mark.parametrize("criterion", list(CRITERIA))
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_a_criterion_leaves_everything_as_it_was(criterion, scope):
    """The network, its mode, whether it has gradients, and three random states; and it always says the same."""
    model, task = tiny_model().eval(), tiny_task()
    model[0].weight.requires_grad_(False)
    config, alive = tiny(method="imp", criterion=criterion, scope=scope), everything(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    with torch.no_grad():  # as the engine may have it
        first = stage_scores(None, model, alive, task, config, 1)
    assert torch.get_rng_state().equal(states[0])
    assert random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]  # noqa: NPY002
    torch.manual_seed(99)
    second = stage_scores(None, model, alive, task, config, 1)
    assert all(score.equal(second[name]) for name, score in first.items())
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [parameter.requires_grad for parameter in model.parameters()] == [False] + [True] * 7
    assert not any(score.requires_grad for score in first.values())


@pytest.mark.parametrize("criterion", ["taylor", "movement", "snip", "grasp", "random", "learned-mask"])
def test_another_seed_or_stage_has_another_chance(criterion):
    model, task = tiny_model(), tiny_task()
    alive = everything(model)

    def scores(stage=1, **changes):
        found = stage_scores(None, model, alive, task, tiny(method="imp", criterion=criterion, **changes), stage)
        return torch.cat([score.reshape(-1) for score in found.values()])

    assert not scores().equal(scores(seed=1))
    assert not scores().equal(scores(stage=2))


@pytest.mark.parametrize("criterion", list(CRITERIA))
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_scores_can_be_drawn_from(criterion, scope):
    """Finite, and but for magnitudes not negative; ranks where the criterion has a sign or an order."""
    model = tiny_model()
    alive = {name: torch.rand(mask.shape) < 0.6 for name, mask in everything(model).items()}
    with torch.no_grad():
        for name, mask in alive.items():
            model.get_parameter(name).mul_(mask)
    config = tiny(method="imp", criterion=criterion, scope=scope, stages=(0.5, 0.9))
    scores = stage_scores(None, model, alive, tiny_task(), config, 2)
    for name, score in scores.items():
        assert bool(score.isfinite().all())
        assert criterion == "magnitude" or bool((score >= 0).all())
        if CRITERIA[criterion].signed or CRITERIA[criterion].rounds > 1:
            assert not score[~alive[name]].any()
            assert 0 < score[alive[name]].min() <= score.max() <= 1
    for candidate in (0, 1):
        drawn = stage_masks(scores, alive, 2, config).draw(candidate)
        assert all(not bool((mask & ~alive[name]).any()) for name, mask in drawn.items())
        assert kept(drawn) == (52 if scope == "global" else 19 + 29 + 4)


def test_signed_scores_keep_their_order():
    """The least, most negative ones go first: the plain mask is that of the scores themselves."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 24), nn.Tanh(), nn.Linear(24, 3))  # no unit is closed, no score 0
    config = tiny(method="imp", criterion="grasp", stages=(0.5,), scope="global")
    scores = stage_scores(None, model, everything(model), tiny_task(), config, 1)
    raw = torch.cat([score.reshape(-1) for score in scores.values()])
    assert raw.sort().values.tolist() == pytest.approx([(at + 1) / len(raw) for at in range(len(raw))])
    mask = torch.cat(
        [part.reshape(-1) for part in plain(model, criterion="grasp", stages=(0.5,), scope="global").values()]
    )
    assert raw[mask].min() > raw[~mask].max()


# ---- pruning in rounds


def survivors(weights: list[np.ndarray], sparsity: float, how: str) -> list[np.ndarray]:
    """SynFlow of a plain network by its definition: a hundred times all strengths of paths, and the least go."""
    alive = [np.ones(weight.shape, dtype=bool) for weight in weights]
    total = sum(weight.size for weight in weights)
    for number in range(1, SYNFLOW_ROUNDS + 1):
        overall = sparsity if number == SYNFLOW_ROUNDS else 1 - (1 - sparsity) ** (number / SYNFLOW_ROUNDS)
        positive = [np.abs(weight) * mask for weight, mask in zip(weights, alive, strict=True)]
        ahead = [np.ones(positive[0].shape[1])]
        for weight in positive:
            ahead.append(weight @ ahead[-1])
        behind = np.ones(len(positive[-1]))
        scores = [np.zeros(0)] * len(weights)
        for layer in reversed(range(len(weights))):
            scores[layer] = positive[layer] * np.outer(behind, ahead[layer])
            behind = behind @ positive[layer]
        if how == "global":
            groups, shares = [np.concatenate([score.reshape(-1) for score in scores])], [overall]
            living = [np.concatenate([mask.reshape(-1) for mask in alive])]
        else:
            groups, living = [score.reshape(-1) for score in scores], [mask.reshape(-1) for mask in alive]
            names = {str(at): weight.shape for at, weight in enumerate(weights)}
            shares = [overall] * len(weights) if how == "layer" else list(erk(names, overall).values())
        chosen = []
        for score, lives, share in zip(groups, living, shares, strict=True):
            order = np.argsort(-np.where(lives, score, -1.0), kind="stable")[: keep_of(score.size, share)]
            chosen.append(np.isin(np.arange(score.size), order))
        flat = np.concatenate(chosen)
        ends = np.cumsum([weight.size for weight in weights])
        alive = [part.reshape(w.shape) for part, w in zip(np.split(flat, ends[:-1]), weights, strict=True)]
        assert sum(mask.sum() for mask in alive) <= total
    return alive


@pytest.mark.parametrize("how", ["layer", "global", "erk"])
@pytest.mark.parametrize(("sparsity", "bias"), [(0.3, True), (0.97, True), (0.9, False)])
def test_the_plain_mask_is_what_the_last_round_left(how, sparsity, bias):
    """Against the definition in numpy, where biases have no part."""
    model = layers(4, bias=bias).double()
    settings_of = {"scope": "global"} if how == "global" else {"densities": "erk"} if how == "erk" else {}
    found = plain(model, criterion="synflow", stages=(sparsity,), **settings_of)
    expected = survivors([model[at].weight.detach().numpy() for at in (0, 2, 4)], sparsity, how)
    for mask, ours in zip(found.values(), expected, strict=True):
        np.testing.assert_array_equal(mask.numpy(), ours)


@pytest.mark.parametrize(("seed", "bias"), [(0, True), (1, True), (2, False)])
@pytest.mark.parametrize("scaled", [0, 2, 4])
def test_synflow_never_empties_a_layer_where_magnitude_does(seed, scaled, bias):
    """The layer whose weights are small: 2 % of all are left, and it needs some of them (Tanaka et al. 2020)."""
    model = layers(seed, bias=bias)
    with torch.no_grad():
        model[scaled].weight.mul_(1e-2)
    chosen = {"scope": "global", "stages": (0.98,)}
    by_size, by_flow = plain(model, **chosen), plain(model, criterion="synflow", **chosen)
    assert not by_size[f"{scaled}.weight"].any()
    assert kept(by_size) == kept(by_flow) == 10
    assert all(mask.any() for mask in by_flow.values())
    paths = torch.ones(8)
    for mask in by_flow.values():  # and what is left hangs together
        paths = mask.float() @ paths
    assert float(paths.sum()) > 0


def test_one_round_would_empty_it():
    """Why there are a hundred: at once, the widest layer's many small scores all go."""
    model = nn.Sequential(nn.Linear(8, 200, bias=False), nn.Linear(200, 3, bias=False))
    task = tiny_task()
    chosen = {"scope": "global", "stages": (0.996,)}
    alive = everything(model)
    config = tiny(method="imp", criterion="synflow", **chosen)
    assert all(mask.any() for mask in plain(model, criterion="synflow", **chosen).values())
    model[0].weight.data.fill_(1.0)
    model[1].weight.data.fill_(1.0)
    once = {name: torch.full(mask.shape, 1 / mask.numel()) for name, mask in alive.items()}  # equal totals, by hand
    assert not stage_masks(once, alive, 1, config).draw(0)["0.weight"].any()
    assert all(score.any() for score in stage_scores(None, model, alive, task, config, 1).values())


@pytest.mark.parametrize(
    ("stages", "pattern"), [((0.45, 0.5), "4x4"), ((0.6, 0.62), "4x4"), ((0.55, 0.56), "unstructured")]
)
def test_rounds_begin_at_what_the_stage_before_has_left(stages, pattern):
    """Whole blocks are counted: a tensor may have lost more than its share, and cannot get it back."""
    config = tiny(
        method="imp",
        criterion="synflow",
        stages=stages,
        pattern=pattern,
        exclude=(r"^4\.weight$",),
        dense_epochs=1,
        max_epochs=1,
    )
    chosen = [event for event in events(config, model=layers(0), data=tiny_task()) if isinstance(event, MaskChosen)]
    blocks = {"0.weight": 12, "2.weight": 18}
    size = 16 if pattern == "4x4" else 1
    for event, sparsity in zip(chosen, stages, strict=True):
        count = {name: keep_of(number * 16 // size, sparsity) * size for name, number in blocks.items()}
        assert {name: row["kept"] for name, row in event.tensors.items()} == count
