"""A mask that is learned with the weights: each weight is kept with a chance that is trained, too (arXiv 2312.01653).

Every weight has a logit; its chance is ``p = sigmoid(logit)``. A step draws a mask, 1 with chance p (Bernoulli), by the
concrete relaxation (Maddison et al. 2017, Jang et al. 2017): forward the hard 0 or 1, backward the slope of
``sigmoid((logit + noise) / temperature)`` (straight through). Two terms are added to the loss:
``mean(p)`` pulls towards sparsity, ``mean(4 p (1 - p))`` towards 0 or 1. The paper's constants are not known to us:
first chance, temperature, weights and learning rate are ours. So is what comes after: the network goes on with its
expected weights ``w * p``, of which magnitude pruning then keeps the largest.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from randprune_lab.config import RunConfig
from randprune_lab.hooks import Hook

FIRST_CHANCE = 0.9  # of every weight, before anything is learned
TEMPERATURE = 0.5  # of the relaxation; smaller: closer to the hard mask, and a noisier gradient
NUMBERS = 6  # for each weight besides itself: logit and its two moments; in a step copy, slope and gradient, too
COLLAPSED = "the learned mask has collapsed in"  # how the sentence begins that says so


class LearnedMask(Hook):
    """Trains the logits of ``weights`` (parameters by name, changed in place) with whatever trains the weights.

    The gradients are worked out by hand, since they are short: with the drawn mask h, ``dL/dw = h * dL/d(w h)`` and
    ``dL/dlogit = w * dL/d(w h) * slope``. So the weights stay parameters of their own name and shape.
    """

    def __init__(self, weights: Mapping[str, Tensor], config: RunConfig) -> None:
        super().__init__()
        self.weights, self.config = dict(weights), config
        first = math.log(FIRST_CHANCE / (1 - FIRST_CHANCE))
        self.logits = {name: torch.full_like(weight, first) for name, weight in self.weights.items()}
        self.optimizer = torch.optim.Adam(self.logits.values(), lr=config.mask_learning_rate)
        self.size = sum(weight.numel() for weight in self.weights.values())
        self.slopes: dict[str, Tensor] = {}
        self.drawn: dict[str, Tensor] = {}
        self.collapsed: set[str] = set()
        self.density = self.undecided = torch.zeros(())
        self.said.append(
            f"the learned mask needs {NUMBERS} numbers more for each of {self.size:,} weights: "
            f"{NUMBERS * sum(weight.nbytes for weight in self.weights.values()) / 1e6:.3g} MB."
        )

    def chances(self) -> dict[str, Tensor]:
        """The chance p of each weight."""
        return {name: logit.sigmoid() for name, logit in self.logits.items()}

    @contextlib.contextmanager
    def forward(self, step: int) -> Iterator[None]:  # noqa: ARG002
        """The weights are those of a mask drawn from the ambient random numbers, and afterwards what they were."""
        with torch.no_grad():
            for name, logit in self.logits.items():
                noise = torch.rand_like(logit).clamp_(1e-6, 1 - 1e-6).logit_()
                soft = ((logit + noise) / TEMPERATURE).sigmoid_()
                self.drawn[name] = soft > 0.5
                self.slopes[name] = soft * (1 - soft) / TEMPERATURE
        with self._instead(self.drawn):
            yield

    @torch.no_grad()
    def backward(self, step: int) -> None:  # noqa: ARG002
        """Share the gradient of the masked weights between weights and logits, and move the logits."""
        sparse, binary = self.config.mask_sparsity_weight, self.config.mask_binary_weight
        self.density = self.undecided = torch.zeros((), device=next(iter(self.logits.values())).device)
        for name, weight in self.weights.items():
            logit = self.logits[name]
            chance = logit.sigmoid()
            slope = chance * (1 - chance)
            self.density = self.density + chance.sum() / self.size
            self.undecided = self.undecided + 4 * slope.sum() / self.size
            pull = slope * (sparse + 4 * binary * (1 - 2 * chance)) / self.size
            gradient = weight.grad
            if gradient is None:  # a layer that is frozen or unused
                logit.grad = pull
                continue
            logit.grad = pull + gradient * weight * self.slopes[name]
            gradient.mul_(self.drawn[name])
        self.optimizer.step()
        self.optimizer.zero_grad()  # nothing but logits and moments outlives a step
        self.slopes.clear()
        self.drawn.clear()

    def terms(self) -> dict[str, Tensor]:
        """Mean chance, which is the expected density, and how undecided the chances are (1: all one half)."""
        return {"mask density": self.density, "mask undecided": self.undecided}

    @contextlib.contextmanager
    def scoring(self) -> Iterator[None]:
        """The weights are the expected ones, and afterwards what they were."""
        with self._instead(self.chances()):
            yield

    def epoch_over(self) -> None:
        """Say which tensors the mask has given up: no weight there is more likely kept than not."""
        for name, chance in self.chances().items():
            if name not in self.collapsed and float(chance.max()) < 0.5:
                self.collapsed.add(name)
                self.said.append(
                    f"{COLLAPSED} {name}: none of its {chance.numel():,} weights is more likely "
                    "kept than not. Lower mask_sparsity_weight, or train fewer epochs."
                )

    @torch.no_grad()
    def finish(self) -> None:
        """The network goes on with its expected weights."""
        for name, chance in self.chances().items():
            self.weights[name].mul_(chance)

    def state(self) -> dict[str, Tensor]:
        """Logits and their moments, and which tensors were said to have collapsed."""
        found = {f"logit.{name}": logit for name, logit in self.logits.items()}
        found |= {f"collapsed.{name}": torch.tensor(True) for name in sorted(self.collapsed)}
        for name, logit in self.logits.items():
            found |= {f"{key}.{name}": value for key, value in self.optimizer.state[logit].items()}
        return found

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on with what ``state`` gave."""
        self.said = []
        for label, value in state.items():
            key, name = label.split(".", 1)
            logit = self.logits[name]
            if key == "collapsed":
                self.collapsed.add(name)
            elif key == "logit":
                logit.copy_(value)
            else:
                place = "cpu" if key == "step" else logit.device
                self.optimizer.state[logit][key] = value.clone().to(place)

    @contextlib.contextmanager
    def _instead(self, factors: Mapping[str, Tensor]) -> Iterator[None]:
        """The weights times ``factors`` inside, and afterwards bit for bit what they were."""
        before = {name: weight.detach().clone() for name, weight in self.weights.items()}
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.mul_(factors[name])
        try:
            yield
        finally:
            with torch.no_grad():
                for name, weight in self.weights.items():
                    weight.copy_(before[name])
