"""What a weight is worth. Each criterion is a small function of the weights, the network and the data.

Any mask, plain or random, can be drawn from any of them: arXiv 2310.13183 says that its masks are "easily transplanted"
to gradients, and did not try it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from randprune_lab.config import RunConfig
from randprune_lab.distill import features
from randprune_lab.learned import LearnedMask
from randprune_lab.masks import Masks, apply_masks
from randprune_lab.metrics import task_loss
from randprune_lab.splits import Task

BATCHES = 10  # of the run's batch size, from which gradients are taken
MOVING_STEPS = 100  # of the training in which movement is watched
LEARNING_STEPS, LEARNING_RATE = 200, 0.1  # of the mask's logits, where the weights stand still
GRASP_TEMPERATURE = 200.0  # of the logits; Wang et al. 2020, in their code
SYNFLOW_ROUNDS = 100  # Tanaka et al. 2020


@dataclasses.dataclass(frozen=True, eq=False)
class Scene:
    """What a criterion looks at.

    Attributes:
        weights: the prunable parameters of ``model`` by name; they can have gradients.
        model: a copy of the network: whatever is done to it is forgotten.
        task: of which only ``train`` may be looked at.
        alive: the weights that still exist; all others are 0.
    """

    weights: Mapping[str, Tensor]
    model: nn.Module
    task: Task
    config: RunConfig
    alive: Masks

    def batches(self, number: int) -> Iterator[Tensor]:
        """Row numbers of ``number`` random batches of train; over and over again where it has fewer."""
        rows = self.task.original or len(self.task.train)
        while number > 0:
            order = torch.randperm(rows).to(self.task.train.labels.device)
            size = min(self.config.batch_size, rows)
            batches = order[: rows - rows % size].view(-1, size)[:number]  # what is left over is no full batch
            yield from batches
            number -= len(batches)

    def loss(self, rows: Tensor, temperature: float = 1.0) -> Tensor:
        """The task's loss on some rows, the network in training mode: before training, batch norm knows no averages."""
        self.model.train()
        batch, labels = self.task.train.batch(rows)
        return task_loss(features(self.model, batch).logits / temperature, labels)

    def gradients(self, value: Tensor, *, differentiable: bool = False) -> list[Tensor]:
        """Of ``value`` for each prunable tensor; 0 where it does not depend on it."""
        found = torch.autograd.grad(value, list(self.weights.values()), create_graph=differentiable, allow_unused=True)
        return [
            torch.zeros_like(weight) if gradient is None else gradient
            for gradient, weight in zip(found, self.weights.values(), strict=True)
        ]

    def named(self, scores: list[Tensor]) -> dict[str, Tensor]:
        """Scores by name."""
        return dict(zip(self.weights, scores, strict=True))


Score = Callable[[Scene], dict[str, Tensor]]


@dataclasses.dataclass(frozen=True)
class BuiltIn:
    """A criterion that comes with the lab.

    Attributes:
        says: what it is, with its source.
        score: the scores by name; larger = worth keeping.
        signed: scores may be negative: masks are drawn from their ranks.
        rounds: pruned bit by bit in so many rounds, scored anew before each: masks are drawn from the resulting order.
        batches: of train, whose loss and gradient are worked out for a stage; 0: it needs no data.
    """

    says: str
    score: Score
    signed: bool = False
    rounds: int = 1
    batches: int = 0


def magnitude(scene: Scene) -> dict[str, Tensor]:
    """Score |w|."""
    return {name: weight.detach().abs() for name, weight in scene.weights.items()}


def taylor(scene: Scene) -> dict[str, Tensor]:
    """Gradient x weight: the root mean square of w * dL/dw over batches (Molchanov et al. 2019, arXiv 1906.10771).

    What the loss would change by to first order if the weight were 0. Squared before the mean, since the mean gradient
    of a trained network is nearly 0. There it is a neuron's; ours is a weight's.
    """
    totals = [torch.zeros_like(weight) for weight in scene.weights.values()]
    for rows in scene.batches(BATCHES):
        gradients = scene.gradients(scene.loss(rows))
        for total, weight, gradient in zip(totals, scene.weights.values(), gradients, strict=True):
            total += (weight.detach() * gradient).square()
    return scene.named([(total / BATCHES).sqrt() for total in totals])


def movement(scene: Scene) -> dict[str, Tensor]:
    """-sum of w * dL/dw over a training: weights that move away from 0 (Sanh et al. 2020, arXiv 2005.07683, Eq. 2).

    There it is collected in all of fine-tuning; ours in ``MOVING_STEPS`` steps of AdamW on a copy, at the run's rate.
    """
    totals = [torch.zeros_like(weight) for weight in scene.weights.values()]
    config = scene.config
    optimizer = torch.optim.AdamW(
        scene.model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    for rows in scene.batches(MOVING_STEPS):
        optimizer.zero_grad()
        torch.autograd.backward(scene.loss(rows))
        for total, weight in zip(totals, scene.weights.values(), strict=True):
            if weight.grad is not None:
                total -= weight.detach() * weight.grad
        optimizer.step()
        apply_masks(scene.model, scene.alive)
    return scene.named(totals)


def snip(scene: Scene) -> dict[str, Tensor]:
    """Score |w * dL/dw|, the loss's sensitivity to the connection (Lee et al. 2019, arXiv 1810.02340, Eq. 5).

    There before training, from one batch, over all layers at once; ours from ``BATCHES`` batches, at any stage, in the
    run's scope.
    """
    totals = _summed_gradients(scene)
    return {
        name: (weight.detach() * total).abs()
        for (name, weight), total in zip(scene.weights.items(), totals, strict=True)
    }


def grasp(scene: Scene) -> dict[str, Tensor]:
    """Score w * Hg: what keeps the gradient's norm (Wang et al. 2020, arXiv 2002.07376, Eq. 8, with the opposite sign).

    H is the loss's second derivative, g its gradient, both of the same ``BATCHES`` batches. Needs second derivatives of
    all that the network does.
    """
    batches = list(scene.batches(BATCHES))
    whole = _summed_gradients(scene, batches, GRASP_TEMPERATURE)
    scene.model.zero_grad()
    for rows in batches:
        gradients = scene.gradients(scene.loss(rows, GRASP_TEMPERATURE), differentiable=True)
        along = sum((gradient * total).sum() for gradient, total in zip(gradients, whole, strict=True))
        # Not autograd.grad: it passes over an operation without second derivatives and says nothing.
        torch.autograd.backward(along)  # type: ignore[arg-type]
    return scene.named(
        [
            torch.zeros_like(weight) if weight.grad is None else weight.detach() * weight.grad
            for weight in scene.weights.values()
        ]
    )


def synflow(scene: Scene) -> dict[str, Tensor]:
    """Score |w * dR/dw|, R the answers' sum for ones as input, all parameters positive (Tanaka et al. 2020, Eq. 2, 4).

    The strength of all paths through a weight. In float64: a product over all layers leaves float32. Evaluation mode,
    so that batch norm does not undo what was done to the weights. What is added, biases and the means of batch norm, is
    0, as in Eq. 2: it would make up for a layer that is gone, and the theorem that none goes would not hold.
    """
    model = scene.model.double().eval()
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if name.rpartition(".")[2] in ("bias", "running_mean"):
                tensor.zero_()
            elif tensor.is_floating_point():
                tensor.abs_()
    inputs = scene.task.train.inputs
    assert isinstance(inputs, Tensor)
    answers = features(model, torch.ones_like(inputs[:1], dtype=torch.float64)).logits
    gradients = scene.gradients(answers.sum())
    if any(bool((gradient < 0).any()) for gradient in gradients):
        raise ValueError(
            f"synflow: in {type(scene.model).__name__} the answer falls where a weight grows, so it is no sum of "
            "paths (a layer norm does that). Pass method or criterion 'snip' instead."
        )
    return {
        name: (weight.detach() * gradient).abs()
        for (name, weight), gradient in zip(scene.weights.items(), gradients, strict=True)
    }


def by_chance(scene: Scene) -> dict[str, Tensor]:
    """Random numbers: what every other criterion must beat."""
    return {name: torch.rand(weight.shape).to(weight) for name, weight in scene.weights.items()}


def learned_mask(scene: Scene) -> dict[str, Tensor]:
    """The chances of a mask that was learned while the weights stood still (``learned.py``; arXiv 2312.01653).

    There, as in the method learned-mask, weights and mask are trained together.
    """
    mask = LearnedMask(scene.weights, scene.config.model_copy(update={"mask_learning_rate": LEARNING_RATE}))
    for step, rows in enumerate(scene.batches(LEARNING_STEPS)):
        with mask.forward(step):
            scene.model.zero_grad()
            torch.autograd.backward(scene.loss(rows))
        mask.backward(step)
    return mask.chances()


def _summed_gradients(scene: Scene, batches: list[Tensor] | None = None, temperature: float = 1.0) -> list[Tensor]:
    totals = [torch.zeros_like(weight) for weight in scene.weights.values()]
    for rows in scene.batches(BATCHES) if batches is None else batches:
        for total, gradient in zip(totals, scene.gradients(scene.loss(rows, temperature)), strict=True):
            total += gradient
    return totals


CRITERIA: dict[str, BuiltIn] = {
    "magnitude": BuiltIn("the largest |w| stay", magnitude),
    "taylor": BuiltIn(
        "what the loss would miss, to first order: |w dL/dw| (Molchanov et al. 2019)", taylor, batches=BATCHES
    ),
    "movement": BuiltIn(
        "weights that training moves away from 0 (Sanh et al. 2020)", movement, signed=True, batches=MOVING_STEPS
    ),
    "snip": BuiltIn("what the loss feels, |w dL/dw| of the mean gradient (Lee et al. 2019)", snip, batches=BATCHES),
    "grasp": BuiltIn(
        "what keeps the gradient large, w * Hg (Wang et al. 2020)", grasp, signed=True, batches=2 * BATCHES
    ),
    "synflow": BuiltIn(
        "the strength of paths through all layers, without data (Tanaka et al. 2020)", synflow, rounds=SYNFLOW_ROUNDS
    ),
    "random": BuiltIn("chance: what any other must beat", by_chance),
    "learned-mask": BuiltIn(
        "the chances of a mask that is trained (arXiv 2312.01653)", learned_mask, batches=LEARNING_STEPS
    ),
}
