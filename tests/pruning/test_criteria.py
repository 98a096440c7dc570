"""Each criterion against numbers worked out by hand, a slow loop, or differences of the loss."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.runs import tiny, tiny_model, tiny_task
from torch import nn

from randprune_lab.config import CRITERION_NAMES as NAMES
from randprune_lab.config import OBJECT
from randprune_lab.criteria import (
    BATCHES,
    CRITERIA,
    GRASP_TEMPERATURE,
    MOVING_STEPS,
    Scene,
    grasp,
    learned_mask,
    movement,
    snip,
    synflow,
    taylor,
)
from randprune_lab.scores import near_one, stage_scores
from randprune_lab.splits import Split, Task

ONE_ROW = (torch.tensor([[1.0, 2.0]]), torch.tensor([5.0]))


def scene(model: nn.Module, task: Task, **changes) -> Scene:
    weights = {name: weight for name, weight in model.named_parameters() if weight.ndim > 1}
    alive = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    return Scene(weights, model, task, tiny(**({"method": "imp"} | changes)), alive)


def task_of(inputs: torch.Tensor, labels: torch.Tensor) -> Task:
    """All of it for training: hand-worked numbers need no other split."""
    split = Split(inputs, labels)
    return Task("by hand", split, split, split, metric="pearson" if labels.is_floating_point() else "accuracy")


def regressor() -> nn.Module:
    """Answers 6 to (1, 2): the hidden units are 3 and 0, the second one closed."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    model[0].weight.data = torch.tensor([[1.0, 1.0], [2.0, -3.0]])
    model[2].weight.data = torch.tensor([[2.0, 5.0]])
    return model


def numbers(scores: dict[str, torch.Tensor]) -> list:
    return [score.tolist() for score in scores.values()]


# ---- by hand


def test_the_built_in_criteria_are_those_of_the_configuration():
    assert [*CRITERIA, OBJECT] == list(NAMES)


def test_snip_by_hand():
    """The loss is (6 - 5)**2, its slope 2; at the output 2 * (3, 0), at the open hidden unit 2 * 2 * (1, 2)."""
    assert numbers(snip(scene(regressor(), task_of(*ONE_ROW)))) == [
        [[BATCHES * 4, BATCHES * 8], [0, 0]],
        [[BATCHES * 12, 0]],
    ]


def test_taylor_by_hand():
    assert numbers(taylor(scene(regressor(), task_of(*ONE_ROW)))) == [[[4, 8], [0, 0]], [[12, 0]]]


def test_taylor_of_gradients_that_cancel_out():
    """Two rows that pull in opposite directions: the mean gradient, and with it SNIP, is 0; Taylor's is not."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False))
    model[0].weight.data = torch.tensor([[3.0]])
    task = task_of(torch.ones(2, 1), torch.tensor([2.0, 4.0]))
    assert numbers(taylor(scene(model, task, batch_size=1))) == [[[6.0]]]  # |3 * 2 * (3 - 2)| in each batch
    assert numbers(snip(scene(model, task, batch_size=1))) == [[[0.0]]]


def test_synflow_by_hand():
    """|W1| gives (3, 3.5) for ones, |W2| takes (2, 5) of them: the strength of all paths is 23.5, in both layers."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False))
    model[0].weight.data = torch.tensor([[1.0, -2.0], [3.0, 0.5]])
    model[2].weight.data = torch.tensor([[2.0, -1.0], [0.0, 4.0]])
    found = synflow(scene(model, task_of(torch.zeros(1, 2), torch.zeros(1, dtype=torch.long))))
    assert numbers(found) == [[[2, 4], [15, 2.5]], [[6, 3.5], [0, 14]]]
    assert [float(score.sum()) for score in found.values()] == [23.5, 23.5]


def test_grasp_by_hand():
    """One weight: the loss (w x / 200 - t)**2 has slope 2 (w x / 200 - t) x / 200 and curvature 2 (x / 200)**2."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False))
    model[0].weight.data = torch.tensor([[3.0]])
    (score,) = grasp(scene(model, task_of(torch.tensor([[100.0]]), torch.tensor([1.0])))).values()
    slope, curvature = 2 * (3 * 0.5 - 1) * 0.5, 2 * 0.5**2
    assert float(score) == pytest.approx(3 * (BATCHES * curvature) * (BATCHES * slope))


# ---- SynFlow: only the products along paths count


@pytest.mark.parametrize("model", [tiny_model(), nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3))])
def test_synflow_gives_every_layer_the_same_total(model):
    """Tanaka et al. 2020, theorem 1: what flows into a unit flows out of it. A bias would add to it on the way."""
    norms = [module for module in model if isinstance(module, nn.BatchNorm1d)]
    for norm in norms:
        norm.running_mean.fill_(3.0)
        norm.running_var.fill_(4.0)
    totals = [float(score.sum()) for score in synflow(scene(model, tiny_task())).values()]
    assert totals[0] > 0
    assert totals == pytest.approx([totals[0]] * len(totals))


def test_synflow_of_a_network_whose_batch_norm_has_seen_large_numbers():
    """Its mean, subtracted from what is positive, would close every path."""
    model = tiny_model()
    model[1].running_mean.fill_(1e3)
    assert all(bool((score > 0).all()) for score in synflow(scene(model, tiny_task())).values())


def test_synflow_outlives_numbers_that_float32_does_not_hold():
    model = nn.Sequential(*[nn.Linear(4, 4, bias=False) for _ in range(30)])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1e-4)
    task = task_of(torch.zeros(1, 4), torch.zeros(1, dtype=torch.long))
    scores = synflow(scene(model, task))
    for score in scores.values():
        assert float(score.min()) == pytest.approx(float(score.max())) == pytest.approx(1e-120 * 4.0**29)
    for score in near_one(scores).values():  # as masks are drawn from it
        assert bool((score.float() > 0.4).all())


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31))
def test_synflow_does_not_look_at_the_data_or_at_signs(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3))
    expected = numbers(synflow(scene(model, tiny_task())))
    other = nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3))
    with torch.no_grad():
        for ours, theirs in zip(other.parameters(), model.parameters(), strict=True):
            ours.copy_(theirs * (torch.randint(0, 2, theirs.shape) * 2 - 1))
    assert numbers(synflow(scene(other, task_of(torch.randn(9, 8), torch.randint(0, 3, (9,)))))) == expected


# ---- against slow references in float64


def smooth_model(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def smooth_task() -> Task:
    generator = torch.Generator().manual_seed(1)
    return task_of(
        torch.randn(30, 4, generator=generator, dtype=torch.float64), torch.randint(0, 3, (30,), generator=generator)
    )


def loss_at(weights: list[np.ndarray], biases: list[np.ndarray], batch, temperature: float) -> float:
    """The cross-entropy of a tanh network of two layers, in numpy."""
    inputs, labels = (tensor.numpy() for tensor in batch)
    hidden = np.tanh(inputs @ weights[0].T + biases[0])
    logits = (hidden @ weights[1].T + biases[1]) / temperature
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return float(-np.log(chances[np.arange(len(labels)), labels]).mean())


def slopes(weights, biases, batch, temperature, step=1e-5) -> list[np.ndarray]:
    """Of the loss, weight by weight, by central differences."""
    found = [np.zeros_like(weight) for weight in weights]
    for layer, weight in enumerate(weights):
        for at in np.ndindex(weight.shape):
            sides = []
            for sign in (1, -1):
                moved = [each.copy() for each in weights]
                moved[layer][at] += sign * step
                sides.append(loss_at(moved, biases, batch, temperature))
            found[layer][at] = (sides[0] - sides[1]) / (2 * step)
    return found


@pytest.mark.parametrize("seed", [0, 1])
def test_gradients_against_differences_of_the_loss(seed):
    """SNIP, Taylor, and GraSP's Hessian-vector product: the difference of the gradient along the gradient."""
    model, task = smooth_model(seed), smooth_task()
    looked = scene(model, task, batch_size=30)  # one batch is all of it: ten times the same
    weights = [weight.detach().numpy().copy() for weight in looked.weights.values()]
    biases = [model[0].bias.detach().numpy().copy(), model[2].bias.detach().numpy().copy()]
    batch = (task.train.inputs, task.train.labels)

    slope = slopes(weights, biases, batch, 1.0)
    for score, weight, part in zip(snip(looked).values(), weights, slope, strict=True):
        np.testing.assert_allclose(score.numpy(), BATCHES * np.abs(weight * part), rtol=1e-6, atol=1e-9)
    for score, weight, part in zip(taylor(looked).values(), weights, slope, strict=True):
        np.testing.assert_allclose(score.numpy(), np.abs(weight * part), rtol=1e-6, atol=1e-9)

    cool = slopes(weights, biases, batch, GRASP_TEMPERATURE, 1e-3)
    length = 1e-2 / np.sqrt(sum((part**2).sum() for part in cool))
    ahead, behind = (
        slopes(
            [w + sign * length * part for w, part in zip(weights, cool, strict=True)],
            biases,
            batch,
            GRASP_TEMPERATURE,
            1e-3,
        )
        for sign in (1, -1)
    )
    expected = [
        w * BATCHES**2 * (more - less) / (2 * length) for w, more, less in zip(weights, ahead, behind, strict=True)
    ]
    scale = max(np.abs(part).max() for part in expected)
    for score, part in zip(grasp(looked).values(), expected, strict=True):
        np.testing.assert_allclose(score.numpy(), part, rtol=1e-3, atol=1e-3 * scale)
    assert any(bool((score < 0).any()) for score in grasp(looked).values())  # it has a sign


def test_grasp_adds_up_batches_as_one():
    """(sum of the batches' H) times (sum of their g), not the sum of each one's H times its own g."""
    model, task = smooth_model(3), smooth_task()
    torch.manual_seed(7)
    found = grasp(scene(model, task, batch_size=10))
    torch.manual_seed(7)
    looked = scene(model, task, batch_size=10)
    batches = list(looked.batches(BATCHES))
    assert len({tuple(rows.tolist()) for rows in batches}) == BATCHES
    names = list(looked.weights)

    def loss(*weights):
        given = dict(zip(names, weights, strict=True))
        parts = [torch.func.functional_call(model, given, (task.train.inputs[rows],)) for rows in batches]
        return sum(
            nn.functional.cross_entropy(part / GRASP_TEMPERATURE, task.train.labels[rows])
            for part, rows in zip(parts, batches, strict=True)
        )

    weights = tuple(weight.detach().requires_grad_() for weight in looked.weights.values())
    gradient = torch.autograd.grad(loss(*weights), weights)
    hessian = torch.autograd.functional.hessian(loss, weights)
    for row, (name, weight) in enumerate(zip(names, weights, strict=True)):
        product = sum(torch.tensordot(hessian[row][column], gradient[column], dims=2) for column in (0, 1))
        torch.testing.assert_close(found[name], weight.detach() * product)


# ---- movement


def slow_movement(weight, inputs, labels, *, rate, decay, steps):
    """-sum of w * dL/dw of a linear regression on one batch, trained with AdamW written out."""
    weight, first, second = weight.copy(), np.zeros_like(weight), np.zeros_like(weight)
    total = np.zeros_like(weight)
    for step in range(1, steps + 1):
        slope = 2 * (inputs @ weight - labels) @ inputs / len(labels)
        total -= weight * slope
        weight = weight * (1 - rate * decay)
        first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
        weight = weight - rate * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
    return total


def line(weight: list[float]) -> nn.Module:
    model = nn.Sequential(nn.Linear(len(weight), 1, bias=False)).double()
    model[0].weight.data = torch.tensor([weight], dtype=torch.float64)
    return model


def test_movement_against_a_training_written_out():
    generator = np.random.default_rng(0)
    inputs, labels = (generator.normal(size=size).astype(np.float32).astype(np.float64) for size in ((6, 3), 6))
    weight = [0.7, -1.1, 0.4]
    task = task_of(torch.from_numpy(inputs), torch.from_numpy(labels).float())
    (found,) = movement(scene(line(weight), task, batch_size=6, learning_rate=0.02, weight_decay=0.1)).values()
    expected = slow_movement(np.array(weight), inputs, labels, rate=0.02, decay=0.1, steps=MOVING_STEPS)
    np.testing.assert_allclose(found.numpy()[0], expected, rtol=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.floats(0.3, 2), st.floats(0.3, 2), st.floats(1, 3), st.sampled_from([(1, 1), (1, -1), (-1, 1), (-1, -1)]))
def test_a_weight_that_moves_away_from_zero_is_worth_more(first, second, further, signs):
    """One input each, and targets beyond the first weight, and at 0 for the second: whatever their sizes and signs."""
    weight = [signs[0] * first, signs[1] * second]
    task = task_of(torch.eye(2, dtype=torch.float64), torch.tensor([weight[0] * (1 + further), 0.0]))
    (found,) = movement(scene(line(weight), task, batch_size=2, learning_rate=1e-3, weight_decay=0.0)).values()
    away, towards = found[0].tolist()
    assert away > 0 > towards


def test_what_is_pruned_stays_so_while_movement_is_watched():
    model, task = tiny_model(), tiny_task()
    looked = scene(model, task, criterion="movement")
    alive = {name: torch.rand(weight.shape) < 0.5 for name, weight in looked.weights.items()}
    model_of_alive = dataclasses.replace(looked, alive=alive)
    with torch.no_grad():
        for name, weight in looked.weights.items():
            weight.mul_(alive[name])
    for name, score in movement(model_of_alive).items():
        assert not score[~alive[name]].any()
        assert not looked.weights[name][~alive[name]].any()


# ---- learned mask, chance, and what all have in common


def test_the_learned_mask_keeps_what_the_task_needs():
    """Of eight inputs only the first two tell the classes apart; the others are always 0."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 2
    inputs = torch.zeros(60, 8)
    inputs[:, 0], inputs[:, 1] = labels * 2.0 - 1, 1 - labels * 2.0
    inputs[:, :2] += 0.1 * torch.randn(60, 2, generator=generator)
    model = nn.Sequential(nn.Linear(8, 2, bias=False))
    model[0].weight.data = torch.tensor([[-3.0, 3.0] + [1.0] * 6, [3.0, -3.0] + [1.0] * 6])
    before = model[0].weight.detach().clone()
    torch.manual_seed(0)
    (chance,) = learned_mask(scene(model, task_of(inputs, labels))).values()
    assert chance[:, :2].min() > chance[:, 2:].max()
    assert 0 < chance.min() <= chance.max() < 1
    assert model[0].weight.equal(before)


@pytest.mark.parametrize("criterion", list(CRITERIA))
def test_only_train_is_looked_at(criterion):
    """What decides, and what is reported, may hold anything."""
    task = tiny_task()
    poison = Split(torch.full_like(task.test.inputs, torch.nan), torch.zeros_like(task.test.labels))
    other = dataclasses.replace(task, selection=poison, test=poison)
    config, model = tiny(method="imp", criterion=criterion), tiny_model()
    alive = scene(model, task).alive
    one, two = (stage_scores(None, model, alive, data, config, 1) for data in (task, other))
    assert one.keys() == two.keys() == alive.keys()
    for name, score in one.items():
        assert score.equal(two[name])
        assert score.shape == alive[name].shape
        assert bool(score.isfinite().all())
        assert len(score.unique()) > 1


def test_rows_that_are_for_distillation_only_are_not_looked_at():
    """They may have no label: the dense network has not learned from them either."""
    task = dataclasses.replace(tiny_task(), original=20)
    rows = torch.cat(list(scene(tiny_model(), task, batch_size=5).batches(40)))
    assert rows.unique().tolist() == list(range(20))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 15))
def test_batches(rows, size, number):
    """So many as asked for, none larger than a batch, and no row twice before each batch of a round was seen."""
    task = task_of(torch.zeros(rows, 2), torch.zeros(rows, dtype=torch.long))
    batches = list(scene(nn.Sequential(nn.Linear(2, 2)), task, batch_size=size).batches(number))
    assert len(batches) == number
    a_round = max(1, rows // size)
    for at in range(0, number, a_round):
        seen = torch.cat(batches[at : at + 1 if rows < size else at + a_round])
        if rows % size == 0 or rows < size:
            assert len(seen.unique()) == len(seen)
    assert all(1 <= len(batch) <= size for batch in batches)


def test_a_gradient_that_does_not_exist_is_zero():
    """A layer that the network does not use, and one that is used."""

    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(8, 3), nn.Linear(8, 3)

        def forward(self, inputs):
            return self.used(inputs)

    for criterion in ("taylor", "movement", "snip", "grasp", "synflow"):
        scores = CRITERIA[criterion].score(scene(Idle(), tiny_task()))
        assert not scores["idle.weight"].any()
        assert scores["used.weight"].any()
