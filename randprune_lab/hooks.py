"""Where a method may do something of its own while a network trains."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from contextlib import AbstractContextManager

from torch import Tensor


class Hook:
    """What a method does in one phase of training; here: nothing. A method overrides what it needs.

    Attributes:
        said: sentences for the user; the engine takes them away and says them.
    """

    def __init__(self) -> None:
        self.said: list[str] = []

    def forward(self, step: int) -> AbstractContextManager[object]:  # noqa: ARG002, others need it
        """Around the forward and the backward pass of step ``step`` of the phase."""
        return contextlib.nullcontext()

    def backward(self, step: int) -> None:
        """The gradients are there, the optimizer has not moved the weights yet."""

    def terms(self) -> Mapping[str, Tensor]:
        """Parts of this step's loss that the hook has added by itself, by name, before their weights."""
        return {}

    def scoring(self) -> AbstractContextManager[object]:
        """Around every look at how good the network is."""
        return contextlib.nullcontext()

    def epoch_over(self) -> None:
        """An epoch was trained."""

    def finish(self) -> None:
        """The phase is over: leave an ordinary network behind."""

    def state(self) -> dict[str, Tensor]:
        """What a resumed phase needs, by name."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on with what ``state`` gave."""
