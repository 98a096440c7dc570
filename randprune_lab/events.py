"""What a run says while it works: frozen records, in the order in which things happened."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Score:
    """How well a network does on a split. ``loss`` is the mean cross-entropy in nats, ``accuracy`` lies in [0, 1]."""

    accuracy: float
    loss: float


@dataclasses.dataclass(frozen=True)
class DenseTrained:
    """The dense network is ready. ``test`` is the split that decides nothing."""

    test: Score
    prunable: int
    parameters: int


@dataclasses.dataclass(frozen=True)
class CandidateScored:
    """One mask was judged by a short training (EMEP) on the selection split. Candidate 0 is the deterministic mask."""

    stage: int
    candidate: int
    selection: Score
    ir: float


@dataclasses.dataclass(frozen=True)
class StageFinished:
    """A mask was chosen and the network fine-tuned under it.

    Attributes:
        stage: from 1.
        sparsity: the share of the prunable weights that is zero, counted on the masks.
        kept: the number of prunable weights that are kept.
        winner: the candidate chosen; 0 is the deterministic mask.
        ir: introduced randomness of the winner over all prunable weights (arXiv 2310.13183, Eq. 1).
        swapped: the share of the winner's weights that the deterministic mask would not keep.
        test: on the split that decides nothing, after fine-tuning.
    """

    stage: int
    sparsity: float
    kept: int
    winner: int
    ir: float
    swapped: float
    test: Score


Event = DenseTrained | CandidateScored | StageFinished
