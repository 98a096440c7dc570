"""Smoothed training of a sparse network (ToST): soft activations and soft skips that are gone before a stage ends.

Source: arXiv 2312.01653 (post-pruning training), after Jaiswal et al. 2022, "Training your sparse neural network better
with any mask". The shapes below, and that their strength falls linearly, are our choice: neither is given there. The
network is always scored as it will be when the stage is over, without them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812, its usual name
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from randprune_lab.hooks import Hook

RELUS = (F.relu, torch.relu, Tensor.relu)


def strength(step: int, steps: int, until: float) -> float:
    """1 at the first step, falling linearly, exactly 0 from step ``until * steps`` on."""
    return max(0.0, 1 - step / (until * steps))


class SoftActivations(TorchFunctionMode):
    """Inside, every ReLU is ``(1 - strength) * relu(x) + strength * x * sigmoid(x)``: at 0 exactly ReLU.

    The soft part is Swish (Ramachandran et al. 2017), the one that Jaiswal et al. use in a form with a parameter.
    What is written as ``x.relu_()`` is not seen.

    Attributes:
        found: how many ReLUs came by.
    """

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.strength, self.found = strength, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Every torch function that is called inside the ``with`` block comes by here."""
        if func not in RELUS:
            return func(*args, **(kwargs or {}))
        self.found += 1
        values = args[0] if args else (kwargs or {})["input"]
        return torch.lerp(F.relu(values), F.silu(values), self.strength)


@contextlib.contextmanager
def soft_skips(model: nn.Module, strength: float) -> Iterator[None]:
    """Inside, every hidden layer's answer is ``layer(x) + strength * x``, with x brought to the answer's shape.

    Features (or channels) are averaged or repeated evenly, pictures averaged to the smaller size: no parameter is
    added, so nothing is left behind when the strength is 0.
    """

    def add(_: nn.Module, inputs: tuple[Tensor, ...], answer: Tensor) -> Tensor:
        return answer + strength * fitted(inputs[0], answer)

    handles = [layer.register_forward_hook(add) for layer in hidden_layers(model)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def fitted(inputs: Tensor, answer: Tensor) -> Tensor:
    """``inputs`` (B x features, or B x channels x height x width) brought to the shape of ``answer``."""
    if inputs.ndim == 4:
        if inputs.shape[2:] != answer.shape[2:]:
            inputs = F.adaptive_avg_pool2d(inputs, answer.shape[2:])  # type: ignore[arg-type]
        inputs, width = inputs.movedim(1, -1), answer.shape[1]
    else:
        width = answer.shape[-1]
    if inputs.shape[-1] != width:
        rows = inputs.reshape(-1, 1, inputs.shape[-1])
        inputs = F.adaptive_avg_pool1d(rows, width).view(*inputs.shape[:-1], width)
    return inputs.movedim(-1, 1) if answer.ndim == 4 else inputs


def hidden_layers(model: nn.Module) -> list[nn.Module]:
    """The linear and two-dimensional convolutional layers, but for the last, which gives the answers."""
    layers: list[nn.Module] = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    return layers[:-1]


class Smoothing(Hook):
    """Soft activations, soft skips, or both, in ``steps`` planned steps of a stage."""

    def __init__(self, model: nn.Module, *, activations: bool, skips: bool, steps: int, until: float) -> None:
        super().__init__()
        self.model, self.activations, self.skips = model, activations, skips
        self.steps, self.until = steps, until

    def forward(self, step: int) -> AbstractContextManager[object]:
        """As soft as this step has it."""
        stack = contextlib.ExitStack()
        left = strength(step, self.steps, self.until)
        if left and self.activations:
            stack.enter_context(SoftActivations(left))
        if left and self.skips:
            stack.enter_context(soft_skips(self.model, left))
        return stack
