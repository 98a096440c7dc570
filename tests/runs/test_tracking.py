"""Trackers are told the numbers of the events, and disturb neither the run nor the screen."""

from typing import ClassVar

import accelerate.tracking
import pytest
from accelerate.state import AcceleratorState, PartialState
from support.runs import small, tiny, tiny_parts
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from randprune_lab import engine, store, tracking
from randprune_lab.events import (
    CandidateScored,
    DenseFinished,
    EpochFinished,
    Resumed,
    RunFinished,
    Score,
    StageFinished,
    Warned,
)

SCORE = Score(0.75, 0.5, {"f1": 0.625})
TOLD = [
    EpochFinished("dense", 0, 1, 1.5, 0.25, SCORE, {"task": 1.25, "hidden": 0.125}),
    EpochFinished("fine-tuning", 1, 1, 1.0, 0.5, SCORE),
    DenseFinished(SCORE, Score(0.5, 2.0)),
    CandidateScored(1, 0, SCORE, 0.0, 0.0),
    CandidateScored(1, 1, None, 0.125, 0.0625, "diverged"),
    StageFinished(1, 0.5, 100, SCORE, Score(0.875, 0.25)),
    RunFinished(0.5, SCORE),
]
GROUP = {
    "epoch_finished": "epoch",
    "candidate_scored": "candidate",
    "dense_finished": "dense",
    "stage_finished": "stage",
}


class Fake:
    """A tracker that remembers what it was told."""

    made: ClassVar[list] = []

    def __init__(self, run_name=None, **settings):
        self.settings = {"run_name": run_name, **settings}
        self.told, self.finished, self.defined = [], 0, []
        type(self).made.append(self)

    def start(self):
        print("a banner")  # noqa: T201, as trackio does

    @property
    def tracker(self):
        return self

    def define_metric(self, name, step_metric):
        self.defined.append((name, step_metric))

    def store_init_configuration(self, values):
        self.configuration = values

    def log(self, values, step=None):
        assert PartialState._shared_state
        self.told.append((values, step))

    def finish(self):
        self.finished += 1


class Broken(Fake):
    def log(self, *_, **__):
        raise OSError("disk full")


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(tracking, "_installed", lambda _: True)
    monkeypatch.setattr(tracking, "_point", lambda *_: None)
    monkeypatch.setattr(Fake, "made", [])
    for name in tracking.TRACKERS:
        monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, name, Fake)
    return Fake.made


@pytest.fixture
def no_state():
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    assert not PartialState._shared_state


def scalars(folder):
    """What TensorBoard reads: name -> [(step, value)]."""
    reader = EventAccumulator(str(folder / "tracking" / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {name: [(point.step, point.value) for point in reader.Scalars(name)] for name in reader.Tags()["scalars"]}


def test_parse_trackers():
    assert tracking.parse_trackers("tensorboard, mlflow,tensorboard") == ("tensorboard", "mlflow")
    assert tracking.parse_trackers("") == ()
    with pytest.raises(ValueError, match=r"tracker = 'tensorbord': unknown. Did you mean 'tensorboard'\?"):
        tracking.parse_trackers("tensorbord")


@pytest.mark.usefixtures("no_state")
def test_tensorboard_reads_the_numbers(tmp_path, capfd):
    assert list(tracking.track(iter(TOLD), small(), tmp_path, ["tensorboard"])) == TOLD
    assert scalars(tmp_path) == {
        "epoch/number": [(0, 0), (1, 1)],
        "epoch/loss": [(0, 1.5), (1, 1.0)],
        "epoch/loss_task": [(0, 1.25)],
        "epoch/loss_hidden": [(0, 0.125)],
        "epoch/learning_rate": [(0, 0.25), (1, 0.5)],
        "epoch/stage": [(0, 0), (1, 1)],
        "epoch/selection_metric": [(0, 0.75), (1, 0.75)],
        "epoch/selection_loss": [(0, 0.5), (1, 0.5)],
        "epoch/selection_f1": [(0, 0.625), (1, 0.625)],
        "dense/number": [(0, 0)],
        "dense/selection_metric": [(0, 0.75)],
        "dense/selection_loss": [(0, 0.5)],
        "dense/selection_f1": [(0, 0.625)],
        "dense/test_metric": [(0, 0.5)],
        "dense/test_loss": [(0, 2.0)],
        "candidate/number": [(0, 0), (1, 1)],
        "candidate/stage": [(0, 1), (1, 1)],
        "candidate/candidate": [(0, 0), (1, 1)],
        "candidate/ir": [(0, 0.0), (1, 0.125)],
        "candidate/swapped": [(0, 0.0), (1, 0.0625)],
        "candidate/selection_metric": [(0, 0.75)],
        "candidate/selection_loss": [(0, 0.5)],
        "candidate/selection_f1": [(0, 0.625)],
        "stage/number": [(0, 0)],
        "stage/sparsity": [(0, 0.5)],
        "stage/kept": [(0, 100)],
        "stage/selection_metric": [(0, 0.75)],
        "stage/selection_loss": [(0, 0.5)],
        "stage/selection_f1": [(0, 0.625)],
        "stage/test_metric": [(0, 0.875)],
        "stage/test_loss": [(0, 0.25)],
    }
    (settings,) = tmp_path.rglob("hparams.yml")
    assert "candidates: 3\n" in settings.read_text()
    assert "stages: 0.5, 0.9\n" in settings.read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["tracking"]
    assert capfd.readouterr() == ("", "")


def test_a_tracked_run_is_the_run_itself(tmp_path):
    def stream(folder):
        return store.record(folder, engine.prune(tiny(), **tiny_parts()))

    plain = list(stream(tmp_path / "plain"))
    told = tracking.track(stream(tmp_path / "tracked"), tiny(), tmp_path / "tracked", ["tensorboard"])
    assert [event.to_json() for event in told] == [event.to_json() for event in plain]
    losses = [event.loss for event in plain if isinstance(event, EpochFinished)]
    assert [value for _, value in scalars(tmp_path / "tracked")["epoch/loss"]] == pytest.approx(losses, rel=1e-6)


def test_a_resumed_run_counts_on(tmp_path, fake):
    config = tiny()

    def stream():
        return store.record(tmp_path, engine.prune(config, resume=store.last_checkpoint(tmp_path), **tiny_parts()))

    first = tracking.track(stream(), config, tmp_path, ["mlflow"])
    for event in first:
        if isinstance(event, StageFinished):
            break
    first.close()
    assert [tracker.finished for tracker in fake] == [1]
    again = list(tracking.track(stream(), config, tmp_path, ["mlflow"]))
    assert any(isinstance(event, Resumed) for event in again)
    together = {(*values, step): values for tracker in fake for values, step in tracker.told}
    whole = store.record(tmp_path.parent / "whole", engine.prune(config, **tiny_parts()))
    expected = {}
    counts = dict.fromkeys(GROUP, 0)
    for event in whole:
        if event.kind in counts:
            number, counts[event.kind] = counts[event.kind], counts[event.kind] + 1
            named = {f"{GROUP[event.kind]}/{name}": value for name, value in tracking.numbers(event).items()}
            named[f"{GROUP[event.kind]}/number"] = number
            expected[(*named, number)] = named
    assert together == expected


@pytest.mark.usefixtures("no_state")
def test_each_tracker_is_told_and_finished(tmp_path, fake, capfd):
    list(tracking.track(iter(TOLD), small(), tmp_path, tracking.TRACKERS))
    assert len(fake) == 4
    for name, tracker in zip(tracking.TRACKERS, fake, strict=True):
        assert tracker.finished == 1
        assert len(tracker.told) == 6
        assert tracker.configuration["stages"] == "0.5, 0.9"
        assert tracker.configuration["reach"] == "none"
        assert all(isinstance(value, (str, int, float, bool)) for value in tracker.configuration.values())
        assert [step for _, step in tracker.told] == ([None] * 6 if name == "wandb" else [0, 1, 0, 0, 1, 0])
    board, flow, trackio, wandb = (tracker.settings for tracker in fake)
    assert board["logging_dir"] == tmp_path / "tracking"
    assert flow["logging_dir"].endswith(f"{tmp_path.name}/tracking/mlflow")
    assert trackio["embed"] is False
    assert (wandb["dir"], wandb["mode"]) == (str(tmp_path / "tracking"), "offline")
    assert ("epoch/*", "epoch/number") in fake[3].defined
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("no_state")
def test_a_failing_run_finishes_its_tracker(tmp_path, fake):
    def failing():
        yield TOLD[0]
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        list(tracking.track(failing(), small(), tmp_path, ["trackio"]))
    assert [tracker.finished for tracker in fake] == [1]


def test_stopping_closes_the_run_too(tmp_path, fake):
    closed = []

    def run():
        try:
            yield from TOLD
        finally:
            closed.append(True)

    told = tracking.track(run(), small(), tmp_path, ["wandb"])
    next(told)
    told.close()
    assert closed == [True]
    assert [tracker.finished for tracker in fake] == [1]


def test_a_failing_tracker_does_not_end_the_run(tmp_path, fake, monkeypatch):
    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "mlflow", Broken)
    told = list(tracking.track(iter(TOLD), small(), tmp_path, ["mlflow", "trackio"]))
    warned = [event for event in told if isinstance(event, Warned)]
    assert [event for event in told if event not in warned] == TOLD
    assert len(warned) == 1
    assert "mlflow failed" in warned[0].text
    assert "disk full" in warned[0].text
    assert [tracker.finished for tracker in fake] == [1, 1]
    assert len(fake[1].told) == 6


@pytest.mark.usefixtures("fake")
def test_a_tracker_that_does_not_start_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Fake, "start", lambda _: 1 / 0)
    with pytest.raises(ValueError, match=r"tracker = 'wandb': does not start .*ZeroDivisionError"):
        next(tracking.track(iter(TOLD), small(), tmp_path, ["wandb"]))


def test_unknown_or_missing_is_refused_at_once(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="Did you mean 'wandb'"):
        tracking.track(iter(TOLD), small(), tmp_path, ["wandd"])
    monkeypatch.setattr(tracking, "_installed", lambda name: name != "mlflow")
    with pytest.raises(ValueError, match=r"tracker = 'mlflow': its package is not installed. Run: pip install mlflow"):
        tracking.track(iter(TOLD), small(), tmp_path, ["tensorboard", "mlflow"])
    assert not list(tmp_path.iterdir())


def test_flatten():
    flat = tracking.flatten({"a": {"b": 1, "c": {"d": None}}, "e": [1, "x"], "f": True, "g": 0.5})
    assert flat == {"a.b": 1, "a.c.d": "none", "e": "1, x", "f": True, "g": 0.5}
