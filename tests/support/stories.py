"""What runs say, written by hand: no network is trained."""

from xml.etree import ElementTree

from randprune_lab import store
from randprune_lab.benefit import Benefit
from randprune_lab.config import RunConfig
from randprune_lab.events import (
    CandidateScored,
    DenseFinished,
    EpochFinished,
    MaskChosen,
    RunFinished,
    RunStarted,
    Score,
    StageFinished,
    StageStarted,
    Warned,
)

CONFIG = RunConfig(stages=(0.5, 0.9375), candidates=3, max_epochs=2, dense_epochs=2, group="pair")


EVIL = "<script>alert('\"&')</script>"


def story(config=CONFIG, *, better=0.0, warning="M was clamped"):
    """What a run of 1,000 parameters, 800 of them prunable, says."""
    plain = config.method == "imp"
    yield RunStarted(config.model_dump(mode="json"), {"0.weight": 600, "2.weight": 200}, 1000, "cpu", "2.9.1", True)
    for epoch in (1, 2):
        yield EpochFinished("dense", 0, epoch, 2.0 / epoch, 1e-3, Score(0.9, 0.3))
    yield DenseFinished(Score(0.97, 0.1), Score(0.9612, 0.11))
    for stage, keep in ((1, 400), (2, 50)):
        numbers = (0,) if plain else (0, 1, 2)
        samples = {"0.weight": 4, "2.weight": 12}
        yield StageStarted(stage, config.stages[stage - 1], numbers, samples, dict.fromkeys(samples, 5.0))
        yield Warned(warning)
        if not plain:
            yield CandidateScored(stage, 0, Score(0.8111, 0.5), 0.0, 0.0)
            yield CandidateScored(stage, 1, Score(0.8222 + stage / 100, 0.4321), 0.0123, 0.0789)
            yield CandidateScored(stage, 2, None, 0.0124, 0.0788, "loss is NaN")
        yield MaskChosen(stage, int(not plain), keep, 0.0 if plain else 0.0123, 0.0 if plain else 0.0789, {})
        for epoch in (1, 2):
            yield EpochFinished("fine-tuning", stage, epoch, 3.0 / epoch, 1e-3, Score(0.9, 0.3))
        yield StageFinished(stage, 1 - keep / 800, keep, Score(0.9, 0.3), Score(0.9534 - stage / 100 + better, 0.2))
    yield RunFinished(0.9375, Score(0.9334 + better, 0.2))


def recorded(folder, stream):
    list(store.record(folder, (item for item in stream)))
    return folder


def symbols(svg, role="mark-symbol"):
    """Marks drawn in the plot, by group; those of legends are not counted."""
    groups = [g for g in ElementTree.fromstring(svg).iter() if role in g.get("class", "").split()]
    return [len(list(g)) for g in groups if "role-mark" in g.get("class", "").split()]


CANDIDATES = [
    {
        "stage": stage,
        "candidate": number,
        "score": None if number == 3 else 0.8 + number / 100,
        "winner": number == 2,
    }
    for stage in (1, 2)
    for number in range(4)
]


LOSSES = [{"phase": "dense" if not stage else "fine-tuning", "stage": stage, "loss": 0.5} for stage in (0, 0, 1, 1, 2)]


def table(*accuracies):
    sparsities = (0.0, 0.5, 0.9375)[: len(accuracies)]
    return [
        {"stage": stage, "sparsity": s, "compression": 1 / (1 - s), "score": accuracy}
        for stage, (s, accuracy) in enumerate(zip(sparsities, accuracies, strict=True))
    ]


MEASURED = Benefit(
    dense_bytes=2_000_000,
    saved_bytes=2_000_000,
    packed_bytes=200_000,
    dense_ms=3.4,
    pruned_ms=3.412,
    csr_ms=1.7,
    csr_layers=5,
    layers=6,
    csr_difference=1.2e-7,
    csr_problem="",
    examples=8,
    repeats=20,
    device="cpu",
    threads=1,
)
