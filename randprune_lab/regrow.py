"""Dynamic sparse training: the mask moves while the network trains, its density stays (SET and RigL).

SET: Mocanu et al. 2018 (Nature Communications 9:2383); RigL: Evci et al. 2020 (arXiv 1911.11134). Every
``regrow_every`` steps a share of the kept weights, those of least magnitude, is dropped, and as many are grown: at
random (SET), or where the loss has its largest gradients (RigL). The share follows RigL's cosine and
is 0 after three quarters of training. Where ours differs: SET moves as often as RigL and by the same cosine (there:
once an epoch, a fixed share), the step that moves the mask updates the weights, too (RigL's does not), and what trains
is AdamW. Both are published with densities="erk", of which RigL has a form with a dense first layer, too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from randprune_lab.config import RunConfig
from randprune_lab.hooks import Hook
from randprune_lab.masks import Masks
from randprune_lab.sampling import candidate_generator, magnitude_mask

UNTIL = 0.75  # of all steps; Evci et al. 2020, section 4


def share_at(step: int, steps: int, first: float) -> float:
    """The share of the kept weights to exchange at ``step`` (Evci et al. 2020, Eq. 1); 0 from 3/4 of ``steps`` on."""
    end = UNTIL * steps
    return first / 2 * (1 + math.cos(math.pi * step / end)) if step < end else 0.0


def regrown(weight: Tensor, mask: Tensor, worth: Tensor, share: float) -> Tensor:
    """The mask after the ``share`` of its weights with the least magnitude gave way to those of most ``worth``.

    Args:
        weight: decimals.
        mask: bool, the same shape, True = kept.
        worth: decimals of the same shape, 0 or more: of the weights to grow the largest come first.
        share: in [0, 1); ``int(share * kept)`` weights are dropped. One that is dropped may grow again at once.

    Returns:
        A bool tensor that keeps exactly as many as ``mask``. Among equals the lowest index goes first.
    """
    kept = int(torch.count_nonzero(mask))
    moving = min(int(share * kept), mask.numel() - kept)
    if not moving:
        return mask
    total = mask.numel()
    stays = magnitude_mask(weight, 1 - (kept - moving) / total, alive=mask)
    return stays | magnitude_mask(worth, 1 - moving / total, alive=~stays)


class Regrow(Hook):
    """Moves the masks of a phase; what is new begins at 0.

    ``masks`` is the phase's own dict: the optimizer's step that follows obeys the new ones.
    """

    def __init__(
        self, weights: Mapping[str, Tensor], masks: Masks, config: RunConfig, *, stage: int, steps: int
    ) -> None:
        super().__init__()
        self.weights, self.masks, self.config = dict(weights), masks, config
        self.stage, self.steps = stage, steps

    @torch.no_grad()
    def backward(self, step: int) -> None:
        """Every ``regrow_every`` steps: drop and grow."""
        config = self.config
        share = share_at(step, self.steps, config.regrow_share)
        if step == 0 or step % config.regrow_every or not share:
            return
        for name, weight in self.weights.items():
            if config.method == "rigl":
                if weight.grad is None:  # a layer that is frozen or unused
                    continue
                worth = weight.grad.abs()
            else:
                generator = candidate_generator(config.seed, self.stage, step, f"regrow {name}", weight.device)
                worth = torch.rand(weight.shape, generator=generator, device=generator.device).to(weight.device)
            if not bool((weight.isfinite() & worth.isfinite()).all()):
                return  # the loss is looked at soon, and then training says that it diverged
            self.masks[name] = regrown(weight, self.masks[name], worth, share)
