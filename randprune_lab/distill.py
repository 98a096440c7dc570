"""The distillation losses: what a pruned network learns from its dense self.

So far soft logits. Hidden states and attention scores join them here, each with its weight in the configuration.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F  # noqa: N812, its usual name
from torch import Tensor

from randprune_lab.config import RunConfig


@dataclasses.dataclass(frozen=True, eq=False)
class Teacher:
    """The frozen dense network's answers: ``logits`` of every row of the training split.

    Computed once for a run: all candidates and all epochs use them, the teacher itself is never run again.
    """

    logits: Tensor

    def loss(self, logits: Tensor, rows: Tensor, config: RunConfig) -> Tensor:
        """KL divergence of the softened answers times temperature squared (Hinton et al. 2015), weighted."""
        heat = config.temperature
        student = F.log_softmax(logits / heat, dim=-1)
        teacher = F.log_softmax(self.logits[rows] / heat, dim=-1)
        divergence = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
        loss: Tensor = config.logit_weight * heat**2 * divergence
        return loss


def task_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy in nats."""
    return F.cross_entropy(logits, labels)


@torch.no_grad()
def all_logits(model: torch.nn.Module, inputs: Tensor, batch_size: int = 1024) -> Tensor:
    """The model's answers to every row, in evaluation mode."""
    model.eval()
    return torch.cat([model(inputs[start : start + batch_size]).float() for start in range(0, len(inputs), batch_size)])
