"""Small runs for the tests of the engine, the store and resuming: seconds, not minutes."""

import itertools
import json
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import nn

from randprune_lab import engine, store
from randprune_lab.config import RunConfig
from randprune_lab.events import Checkpoint, Event, Resumed
from randprune_lab.tasks import Split, Task

SMALL = {"stages": (0.5, 0.9), "dense_epochs": 2, "max_epochs": 2, "candidates": 3, "device": "cpu"}
SIZES = {"0.weight": 64 * 300, "2.weight": 300 * 100, "4.weight": 100 * 10}  # of the mlp


def small(**settings) -> RunConfig:
    return RunConfig(**(SMALL | settings))


def tiny(**settings) -> RunConfig:
    """Fits ``tiny_model`` and ``tiny_task``: six steps an epoch."""
    return small(**({"batch_size": 16, "learning_rate": 1e-2} | settings))


def tiny_task(classes: int = 3, rows: int = 120, shape: tuple[int, ...] = (8,)) -> Task:
    """Clouds around one centre a class; no input is 0."""
    generator = torch.Generator().manual_seed(5)
    labels = torch.arange(rows) % classes
    centres = torch.randn((classes, *shape), generator=generator)
    inputs = centres[labels] + 0.7 * torch.randn((rows, *shape), generator=generator)
    return Task.of((inputs[:90], labels[:90]), (inputs[90:], labels[90:]))


def tiny_model(seed: int = 3) -> nn.Module:
    """Linear, BatchNorm, Dropout: running statistics and a random state, both of which a resume could lose."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(8, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Dropout(0.3), nn.Linear(24, 12), nn.Linear(12, 3)
        )


def tiny_parts() -> dict:
    return {"model": tiny_model(), "data": tiny_task()}


def conv_model(seed: int = 3) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(4 * 16, 3)
        )


def conv_parts() -> dict:
    return {"model": conv_model(), "data": tiny_task(shape=(1, 6, 6))}


def events(config: RunConfig, **parts) -> list[Event]:
    return [item for item in engine.prune(config, **parts) if not isinstance(item, Checkpoint)]


def checkpoints(config: RunConfig, **parts) -> list[Checkpoint]:
    return [item for item in engine.prune(config, **parts) if isinstance(item, Checkpoint)]


def go_on(folder: Path, config: RunConfig, **parts) -> list[Event]:
    """Start or resume the run of ``folder``, as everyone does."""
    return list(store.record(folder, engine.prune(config, resume=store.last_checkpoint(folder), **parts)))


def stop_after(folder: Path, config: RunConfig, items: int, **parts) -> None:
    """The same, but stop when ``items`` events and checkpoints were taken from the engine."""
    stream = engine.prune(config, resume=store.last_checkpoint(folder), **parts)

    def first():
        try:
            yield from itertools.islice(stream, items)
        finally:
            stream.close()

    list(store.record(folder, first()))


def same_tensors(one: dict, other: dict) -> bool:
    """Bit for bit, -0.0 and NaN included."""
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype
        and one[name].shape == other[name].shape
        and one[name].numpy().tobytes() == other[name].numpy().tobytes()
        for name in one
    )


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """A safetensors file, read without the package's help."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict


def checkpoint_files(folder: Path) -> list[Path]:
    return sorted((folder / "checkpoints").glob("*.safetensors"))


def boundary_file(folder: Path, stage: int) -> Path:
    """The newest checkpoint that closes ``stage``; 0 is the dense network."""
    return [path for path in checkpoint_files(folder) if path.stem.endswith(f"-stage{stage}")][-1]


def unpacked(packed: torch.Tensor, shape: torch.Size) -> np.ndarray:
    """A packed mask, unpacked without the package's help."""
    return np.unpackbits(packed.numpy())[: shape.numel()].astype(bool).reshape(shape)


def told(folder: Path) -> list[dict]:
    """The story, without what a resume may add."""
    return [event.to_json() for event in store.story(folder) if not isinstance(event, Resumed)]


def journal(folder: Path) -> list[dict]:
    """Every line, superseded ones too."""
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def split_of(rows: int, classes: int = 3) -> Split:
    return Split(torch.randn(rows, 8, generator=torch.Generator().manual_seed(0)), torch.arange(rows) % classes)
