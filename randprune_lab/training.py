"""One epoch of training under masks, one evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F  # noqa: N812, its usual name
from torch import Tensor, nn

from randprune_lab.events import Score
from randprune_lab.masks import apply_masks
from randprune_lab.sampling import seed_of
from randprune_lab.tasks import Split


def batches(split: Split, batch_size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The split in an order that ``seed`` decides, in batches of ``batch_size`` (the last may be smaller)."""
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed)).to(split.labels.device)
    for rows in order.split(batch_size):  # type: ignore[no-untyped-call]
        yield split.inputs[rows], split.labels[rows]


def train(
    model: nn.Module,
    split: Split,
    masks: Mapping[str, Tensor],
    *,
    epochs: int,
    learning_rate: float,
    batch_size: int,
    seed: int,
) -> None:
    """Train with a fresh AdamW; after every step, every weight outside the masks is exactly 0 again."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, fused=True)
    model.train()
    for epoch in range(epochs):
        for inputs, labels in batches(split, batch_size, seed_of(seed, epoch)):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            apply_masks(model, masks)


@torch.no_grad()
def evaluate(model: nn.Module, split: Split) -> Score:
    """Accuracy and mean cross-entropy on a split."""
    model.eval()
    logits = model(split.inputs)
    return Score(
        accuracy=float((logits.argmax(dim=1) == split.labels).double().mean()),
        loss=float(F.cross_entropy(logits, split.labels)),
    )
