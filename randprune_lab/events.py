"""What a run says while it works: frozen records in the order in which things happened, each one JSON object."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Score:
    """How well a network does on a split.

    Attributes:
        metric: what the task is measured by, the larger the better: accuracy, F1, Matthews', Spearman's or Pearson's
            correlation; ``RunStarted.metric`` says which.
        loss: mean cross-entropy in nats, or mean squared error of a regression.
        others: further metrics of the task by name, which decide nothing.
    """

    metric: float
    loss: float
    others: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Event:
    """The common part: ``kind`` names the record in JSON."""

    kind: ClassVar[str] = ""

    def to_json(self) -> dict[str, Any]:
        """A dict of plain values, ``kind`` first."""
        return {"kind": self.kind, **dataclasses.asdict(self)}

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Self:
        """The record that ``to_json`` gave."""
        values = {field.name: record[field.name] for field in dataclasses.fields(cls) if field.name in record}
        for name in ("selection", "test"):
            if isinstance(values.get(name), dict):
                known = {"metric" if key == "accuracy" else key: value for key, value in values[name].items()}
                values[name] = Score(**known)  # "accuracy" in runs of before there were other metrics
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


@dataclasses.dataclass(frozen=True)
class RunStarted(Event):
    """Everything has been checked, nothing trained yet.

    Attributes:
        config: the whole configuration.
        prunable: the number of weights of each prunable parameter.
        parameters: the number of parameters of the whole model.
        device, torch, deterministic: what the numbers depend on besides the configuration.
        metric: the name of what ``Score.metric`` holds.
        data: a digest of the examples and labels.
        processes: that do the run together; None in journals of before this was told.
        lab: the version of this package; "" where it is not installed, and in runs of before it was told.
    """

    kind = "run_started"
    config: dict[str, Any]
    prunable: dict[str, int]
    parameters: int
    device: str
    torch: str
    deterministic: bool
    metric: str = "accuracy"
    data: str = ""
    processes: int | None = None
    lab: str = ""


@dataclasses.dataclass(frozen=True)
class Resumed(Event):
    """The run goes on from a checkpoint. Events from number ``supersedes`` on (from 0) are void: they come again.

    ``recorded`` is the number of events there were when the checkpoint was read: if others have come since, another
    process has gone on meanwhile.
    """

    kind = "resumed"
    supersedes: int
    recorded: int | None = None


@dataclasses.dataclass(frozen=True)
class Warned(Event):
    """Something is not as asked for, and how the run deals with it."""

    kind = "warned"
    text: str


@dataclasses.dataclass(frozen=True)
class EpochFinished(Event):
    """An epoch of ``phase`` "dense" or "fine-tuning"; ``epoch`` counts from 1, ``loss`` is the mean of its batches.

    ``terms``: the mean of each part of the loss before its weight: "task", "logits", "hidden", "attention".
    """

    kind = "epoch_finished"
    phase: str
    stage: int
    epoch: int
    loss: float
    learning_rate: float
    selection: Score
    terms: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class DenseFinished(Event):
    """The dense network, which is the teacher from here on."""

    kind = "dense_finished"
    selection: Score
    test: Score


@dataclasses.dataclass(frozen=True)
class StageStarted(Event):
    """Masks are about to be judged.

    Attributes:
        candidates: the numbers of the masks; 0 is the deterministic one.
        samples, power: M and T by parameter; "*" in global scope. No power where it differs among candidates.
        targets: with adaptive randomness the ir that each random candidate aims at.
    """

    kind = "stage_started"
    stage: int
    sparsity: float
    candidates: tuple[int, ...]
    samples: dict[str, int]
    power: dict[str, float]
    targets: dict[int, float] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Self:
        """The record that ``to_json`` gave; JSON has made the numbers of the candidates strings."""
        targets = {int(number): ir for number, ir in record.get("targets", {}).items()}
        return super().of({**record, "targets": targets})


@dataclasses.dataclass(frozen=True)
class CandidateScored(Event):
    """One mask was judged by a short training (EMEP). Candidate 0 is the deterministic mask.

    Attributes:
        selection: on the split that decides; None when the candidate failed.
        ir, swapped: against the deterministic mask of the same weights (arXiv 2310.13183, Eq. 1).
        failed: why it has no score.
        steps: after how many it was dropped from a race, and scored; 0: it was trained to the end, or failed.
    """

    kind = "candidate_scored"
    stage: int
    candidate: int
    selection: Score | None
    ir: float
    swapped: float
    failed: str | None = None
    steps: int = 0


@dataclasses.dataclass(frozen=True)
class MaskChosen(Event):
    """The best candidate's mask is now that of the network. ``tensors``: kept, swapped and ir of each parameter."""

    kind = "mask_chosen"
    stage: int
    winner: int
    kept: int
    ir: float
    swapped: float
    tensors: dict[str, dict[str, float]]


@dataclasses.dataclass(frozen=True)
class StageFinished(Event):
    """The network was fine-tuned under its mask.

    Attributes:
        sparsity: the share of the prunable weights outside the masks.
        kept: the number inside.
        test: on the split that is reported and decides nothing.
    """

    kind = "stage_finished"
    stage: int
    sparsity: float
    kept: int
    selection: Score
    test: Score


@dataclasses.dataclass(frozen=True)
class RunFinished(Event):
    """The last stage's score is the run's result."""

    kind = "run_finished"
    sparsity: float
    test: Score


KINDS: dict[str, type[Event]] = {
    event.kind: event
    for event in (
        RunStarted,
        Resumed,
        Warned,
        EpochFinished,
        DenseFinished,
        StageStarted,
        CandidateScored,
        MaskChosen,
        StageFinished,
        RunFinished,
    )
}


def from_json(record: Mapping[str, Any]) -> Event:
    """The event of a JSON object; fields that later versions may add are ignored.

    Raises:
        ValueError: it is none.
    """
    kind = record.get("kind") if isinstance(record, Mapping) else None
    if not isinstance(kind, str):
        raise ValueError("it is no event")
    if kind not in KINDS:
        raise ValueError(f"this version knows no event {kind!r}: if a newer one wrote it, update randprune-lab")
    try:
        return KINDS[kind].of(record)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"it is not what an event {kind!r} holds") from error


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a run is, as JSON: what was finished last.

    Attributes:
        phase: "dense"; "scoring" (the candidates of ``stage`` come next: a stage boundary); "fine-tuning"; "finished".
        stage: 0 in the dense phase, then from 1.
        epoch: finished epochs of the phase.
        best_epoch, best_metric, best_loss: of the phase so far, when patience asks for them.
        centre: with adaptive randomness the ir that the next stage's targets are spread around; 0 before a mask was
            chosen.
    """

    phase: str = "dense"
    stage: int = 0
    epoch: int = 0
    best_epoch: int = 0
    best_metric: float = -1.0
    best_loss: float = 0.0
    centre: float = 0.0


@dataclasses.dataclass(frozen=True, eq=False)
class Checkpoint:
    """All that is needed to go on: progress and tensors on the CPU, and what a store knows besides.

    Attributes:
        tensors: "model.NAME", "mask.NAME" (bit-packed), "optimizer.NAME.KEY", "best.NAME".
        dense: the dense network's tensors by name (the teacher); empty before there is one.
        scores: candidates of ``progress.stage`` that were judged after this checkpoint; they are not judged again.
        announced: the stage's StageStarted event was already said.
        events: the number of events that stand.
        recorded: the number of all events when this was read; None if unknown.
        damaged: checkpoints that could not be read and were passed over.
        config: what the run was started with; None if unknown.
        data: the digest of what the run was trained on; "" if unknown.
        processes: by how many the run was begun; None if unknown.
        files: the finished network as its own library saves it, by file name; empty: weights alone.
    """

    progress: Progress
    tensors: dict[str, Tensor]
    dense: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    scores: tuple[CandidateScored, ...] = ()
    announced: bool = False
    events: int = 0
    recorded: int | None = None
    damaged: tuple[str, ...] = ()
    config: dict[str, Any] | None = None
    data: str = ""
    processes: int | None = None
    files: dict[str, bytes] = dataclasses.field(default_factory=dict)
