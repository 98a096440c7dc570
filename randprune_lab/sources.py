"""Where the weights that people look at come from: a model in memory, a checkpoint on disk, any stage of a run.

Nothing is read before it is asked for, and of a file one tensor at a time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from randprune_lab import store
from randprune_lab.config import DYNAMIC, OBJECT, RunConfig
from randprune_lab.events import CandidateScored, Event, MaskChosen, RunStarted, StageStarted
from randprune_lab.histogram import MagnitudeHistogram, check_weight
from randprune_lab.masks import unpack
from randprune_lab.models import prunable_weights, weight_files
from randprune_lab.patterns import UNSTRUCTURED
from randprune_lab.state import MOST_CANDIDATES, SHARED

FLOATS = ("F64", "F32", "F16", "BF16")  # what safetensors calls them
LAYERS_ALIKE = 4  # matrices that a block of a transformer has at least


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """What is known of a tensor before it is read. ``prunable``: a run would prune it by default."""

    name: str
    shape: tuple[int, ...]
    prunable: bool

    @property
    def n(self) -> int:
        """The number of its weights."""
        return torch.Size(self.shape).numel()


@dataclasses.dataclass(frozen=True)
class Moment:
    """When in a run: ``before`` or ``after`` the mask of ``stage`` was applied."""

    stage: int
    moment: str
    label: str


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """The weights of one tensor at one moment.

    Attributes:
        weight: the values; None where a run has kept their histogram only.
        alive: bool, the weights that exist; None: those that are not 0.
        recorded: the histogram, where it is known without the weights.
    """

    weight: Tensor | None
    alive: Tensor | None = None
    recorded: MagnitudeHistogram | None = None

    def histogram(self) -> MagnitudeHistogram:
        """The magnitudes of the weights that exist."""
        if self.weight is None:
            assert self.recorded is not None
            return self.recorded
        return MagnitudeHistogram.of(self.weight, alive=self.alive)


@dataclasses.dataclass(frozen=True)
class Judged:
    """The masks of a stage, as far as short trainings have judged them (EMEP).

    Attributes:
        asked: how many are to be judged; 0: no such stage has begun.
        scores: by number of the candidate; None: it failed.
        winner: the number of the one that was chosen; None: not yet.
        targets: the ir that each random mask aims at, where they differ.
    """

    asked: int = 0
    scores: Mapping[int, float | None] = dataclasses.field(default_factory=dict)
    winner: int | None = None
    targets: Mapping[int, float] = dataclasses.field(default_factory=dict)


class Source(Protocol):
    """Weights by name and, where there are several, by moment."""

    label: str
    kind: str
    tensors: dict[str, TensorInfo]
    note: str  # what must be said of masks drawn here; "": nothing

    @property
    def moments(self) -> tuple[Moment, ...]:
        """Of a run; nothing else has several."""
        ...

    def read(self, name: str, stage: int, moment: str) -> Layer:
        """The weights of a tensor.

        Raises:
            ValueError: they cannot be read, or are no weights.
        """
        ...

    def version(self, name: str) -> Hashable:
        """Changes when the weights change: what was worked out before is then void."""
        ...

    def settings(self, stage: int) -> dict[str, Any]:
        """With what settings masks were drawn at ``stage``, by field of ExploreState; empty where nothing was drawn."""
        ...

    def scores(self, stage: int) -> Judged:
        """What a run has found out about the masks of ``stage`` by now; nothing else has judged any."""
        ...


def open_source(model: nn.Module | Mapping[str, Tensor] | Tensor | str | Path) -> Source:
    """Weights to look at.

    Args:
        model: a network, a dict of tensors or one tensor, in memory; or the path of a run's folder, of a folder or file
            of safetensors; or a Hub id.

    Raises:
        ValueError: nothing readable is there; only a pickle is, or nothing that holds floating-point numbers.
    """
    if isinstance(model, nn.Module | Tensor | Mapping):
        return MemorySource(model)
    if not isinstance(model, str | Path):
        raise ValueError(
            f"model is a {type(model).__name__}: holds no weights. Pass a torch.nn.Module, tensors by name, or a path."
        )
    text = str(model)
    if not text.strip():
        raise ValueError("no model is named. Pass a folder of safetensors, a run's folder or a Hub id.")
    if "\0" in text:
        raise ValueError(f"{text!r}: no path. Pass a folder of safetensors, a run's folder or a Hub id.")
    path = Path(model)
    try:
        is_run = any((path / name).is_file() for name in ("events.jsonl", "status.json"))  # a waiting one has no events
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error}). Pass a folder that you may read.") from error
    if not is_run:
        return CheckpointSource(text)
    with _damage_told(path):
        return RunSource(path)


@contextlib.contextmanager
def _damage_told(folder: Path) -> Iterator[None]:
    """Files of a run that hold something else than a run wrote: whatever that leads to is said in one sentence."""
    try:
        yield
    except (TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError, StopIteration) as error:
        raise ValueError(f"{folder}: files of this run are damaged ({error!r}). Restore them, or run anew.") from error


class MemorySource:
    """A model, or tensors, in memory.

    What is trained meanwhile is seen at the next look; what is assigned to ``.data`` is not: torch does not count that.
    """

    kind = "model"
    note = ""
    moments: tuple[Moment, ...] = ()

    def __init__(self, model: nn.Module | Mapping[str, Tensor] | Tensor) -> None:
        if isinstance(model, nn.Module):
            self.label = type(model).__name__
            self._tensors: dict[str, Tensor] = dict(model.named_parameters())
            try:
                prunable = set(prunable_weights(model))
            except ValueError:  # it has none
                prunable = set()
        else:
            self._tensors = {"weight": model} if isinstance(model, Tensor) else dict(model)
            self.label = "a tensor" if isinstance(model, Tensor) else f"{len(self._tensors)} tensors"
            for name, tensor in self._tensors.items():
                if not isinstance(name, str) or not isinstance(tensor, Tensor):
                    raise ValueError(
                        f"{name!r} is a {type(tensor).__name__}: must be a tensor by its name. Pass model.state_dict()."
                    )
            shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}
            prunable = prunable_names(shapes)
        self.tensors = {
            name: TensorInfo(name, tuple(tensor.shape), name in prunable)
            for name, tensor in self._tensors.items()
            if tensor.is_floating_point() and tensor.numel()
        }
        _refuse_nothing(self.label, self.tensors)

    def read(self, name: str, stage: int, moment: str) -> Layer:
        """The tensor itself, not a copy."""
        weight = self._tensors[name].detach()
        check_weight(weight, None)
        return Layer(weight)

    def version(self, name: str) -> Hashable:
        """Torch counts the changes of a tensor in place."""
        tensor = self._tensors[name]
        place = tensor.data_ptr() if tensor.layout == torch.strided and not tensor.is_meta else 0
        return id(tensor), place, -1 if tensor.is_inference() else tensor._version

    def settings(self, stage: int) -> dict[str, Any]:
        """Nothing was drawn."""
        return {}

    def scores(self, stage: int) -> Judged:
        """Nothing was judged."""
        return Judged()


class CheckpointSource:
    """Safetensors: a file, a folder with one or many, or a Hub id (downloaded into the Hub's cache)."""

    kind = "checkpoint"
    note = ""
    moments: tuple[Moment, ...] = ()

    def __init__(self, model: str) -> None:
        self.label = model
        self._files: dict[str, Path] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        for file in weight_files(model):
            for name, shape in _floats_of(file):
                self._files[name], shapes[name] = file, shape
        shapes = {name: shapes[name] for name in sorted(shapes, key=_as_read)}
        prunable = prunable_names(shapes)
        self.tensors = {name: TensorInfo(name, shape, name in prunable) for name, shape in shapes.items()}
        _refuse_nothing(model, self.tensors)

    def read(self, name: str, stage: int, moment: str) -> Layer:
        """Only this tensor is in memory."""
        (weight,) = _read(self._files[name], name)
        return Layer(weight)

    def version(self, name: str) -> Hashable:
        """Of the file."""
        return _stamp(self._files[name])

    def settings(self, stage: int) -> dict[str, Any]:
        """Nothing was drawn."""
        return {}

    def scores(self, stage: int) -> Judged:
        """Nothing was judged."""
        return Judged()


class RunSource:
    """A run's folder: the dense network, and the weights before and after the mask of each stage.

    Where a run has not kept the weights of a stage (keep_stages = last), their histograms are still there.
    """

    kind = "run"

    def __init__(self, folder: Path) -> None:
        self.label = str(folder)
        self._folder = folder
        self.config = store.read_config(folder)
        started = next((event for event in store.story(folder) if isinstance(event, RunStarted)), None)
        ends, _ = store.stage_checkpoints(folder)
        if started is None or not ends:
            raise ValueError(f"{folder}: this run has no weights to look at yet. Wait for its dense network.")
        self.note = _note(self.config)
        # On a GPU the same seed draws other masks; with adaptive randomness each has an ir of its own.
        alike = not started.device.startswith("cuda") and self.config.randomness != "adaptive"
        self._draws_here = self.config.by_magnitude and alike
        self._judged: tuple[Hashable, dict[int, Judged]] = (None, {})
        shapes = dict(_floats_of(next(iter(ends.values())), "model."))
        _refuse_nothing(str(folder), shapes)
        # Parameter order, not the file's: in global scope the tensors are one vector in that order.
        names = dict.fromkeys([*(name for name in started.prunable if name in shapes), *shapes])
        self.tensors = {name: TensorInfo(name, shapes[name], name in started.prunable) for name in names}

    @property
    def moments(self) -> tuple[Moment, ...]:
        """Those that the run has reached by now."""
        (ends, masked), histograms = store.stage_checkpoints(self._folder), self._folder / "histograms"
        last, found = len(self.config.stages), []
        for stage in range(1, last + 1):
            if stage - 1 in ends or (histograms / f"{stage - 1}.json").exists():
                dense = " (the dense network)" if stage == 1 else ""
                found.append(Moment(stage, "before", f"before mask {stage}{dense}"))
            if stage in masked or (histograms / f"{stage}-masked.json").exists():
                found.append(Moment(stage, "after", f"after mask {stage}, before fine-tuning"))
        if last in ends:
            found.append(Moment(last + 1, "before", f"after stage {last}, finished"))
        return tuple(found)

    def read(self, name: str, stage: int, moment: str) -> Layer:
        """Of a tensor that is pruned, with the mask of that moment."""
        with _damage_told(self._folder):
            return self._read(name, stage, moment)

    def _read(self, name: str, stage: int, moment: str) -> Layer:
        if self.moments and (stage, moment) not in {(known.stage, known.moment) for known in self.moments}:
            known = ", ".join(f"stage {m.stage} {m.moment}" for m in self.moments)
            raise ValueError(f"stage = {stage}, moment = {moment!r}: this run has no such moment. Known: {known}.")
        pruned, masked = self.tensors[name].prunable, moment == "after"
        ends, masks = store.stage_checkpoints(self._folder)  # a run that goes on removes some
        start = ends.get(stage - 1)
        if start is None or (masked and stage not in masks):
            if not pruned:
                raise ValueError("this run has not kept the weights of that stage (keep_stages = last).")
            recorded = store.read_histograms(self._folder, stage if masked else stage - 1, masked=masked)
            return Layer(None, recorded=recorded[name])
        (weight,) = _read(start, f"model.{name}")
        if not pruned:
            return Layer(weight)
        (packed,) = _read(masks[stage] if masked else start, f"mask.{name}")
        return Layer(weight, unpack(packed, weight.shape))

    def version(self, name: str) -> Hashable:
        """A stage, once finished, does not change; another run is another thing."""
        return self.label

    def settings(self, stage: int) -> dict[str, Any]:
        """Those of the run's configuration."""
        config = self.config
        stage = min(stage, len(config.stages))
        settings = {name: getattr(config, name) for name in SHARED}
        settings |= {"sparsity": config.stages[stage - 1], "candidates": min(config.candidates, MOST_CANDIDATES)}
        target = config.target_of(stage)
        if config.randomness == "adaptive":  # shown as one ir for all, in the middle of the candidates'
            settings["randomness"] = "target_ir"
            targets = self._judged_at(stage).targets.values()
            target = math.sqrt(min(targets) * max(targets)) if targets else target
        return settings if target is None else {**settings, "target_ir": target}

    def scores(self, stage: int) -> Judged:
        """What the run knows of the masks drawn here: nothing if they are others (of a GPU, or of adaptive ir)."""
        return self._judged_at(stage) if self._draws_here else Judged()

    def _judged_at(self, stage: int) -> Judged:
        """Read from the journal when it has grown."""
        journal = _stamp(self._folder / "events.jsonl")
        if self._judged[0] != journal:
            self._judged = journal, dict(_judged(store.story(self._folder)))
        return self._judged[1].get(stage, Judged())


def _note(config: RunConfig) -> str:
    """How the run's masks differ from those that the explorer draws; empty: they do not."""
    if config.method in DYNAMIC:
        return f"This run's mask moved while it trained ({config.method}); those here are of magnitudes."
    if config.by_magnitude and config.randomness == "adaptive" and config.method.startswith("randomized"):
        return "This run's random masks each aimed at an ir of their own; those here all aim at the one in the middle."
    if config.by_magnitude:
        return ""
    rule = {"criterion": "magnitude", "pattern": UNSTRUCTURED, "densities": "uniform"}
    other = [f"{name} {getattr(config, name)}" for name, usual in rule.items() if getattr(config, name) != usual]
    what = "scores of its own" if config.criterion == OBJECT else ", ".join(other)
    return f"This run drew its masks from {what}; those here are of magnitudes."


def _judged(events: Iterable[Event]) -> Iterator[tuple[int, Judged]]:
    """By stage; the latest of each stage counts."""
    judged = Judged()
    for event in events:
        match event:
            case StageStarted():
                judged = Judged(len(event.candidates), targets=event.targets)
            case CandidateScored():
                score = event.selection.metric if event.selection and event.failed is None else None
                judged = dataclasses.replace(judged, scores={**judged.scores, event.candidate: score})
            case MaskChosen():
                judged = dataclasses.replace(judged, winner=event.winner)
            case _:
                continue
        yield event.stage, judged


def prunable_names(shapes: Mapping[str, tuple[int, ...]]) -> set[str]:
    """Which tensors of a checkpoint a run would prune, by name and shape alone: the matrices of numbered blocks.

    A stack of blocks is a prefix whose every number (``layer.0.``, ``layer.1.``) holds at least four matrices. A stack
    of one that has another inside is only a wrapper. Where there is no stack (a plain network), it is every matrix.
    """
    matrices = {name for name, shape in shapes.items() if len(shape) >= 2 and name.split(".")[-1] != "bias"}
    blocks: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for name in matrices:
        for number in re.finditer(r"(?<![^.])\d+(?=\.)", name):
            blocks[name[: number.start()]][number[0]].add(name)
    stacks = {
        prefix: set().union(*numbered.values())
        for prefix, numbered in blocks.items()
        if all(len(block) >= LAYERS_ALIKE for block in numbered.values())
    }
    wrappers = {
        prefix
        for prefix in stacks
        if len(blocks[prefix]) == 1 and any(other != prefix and other.startswith(prefix) for other in stacks)
    }
    return set().union(*(names for prefix, names in stacks.items() if prefix not in wrappers)) or matrices


def _as_read(name: str) -> list[tuple[int, str]]:
    """A key that sorts names as people do: layer.2 before layer.10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _floats_of(file: Path, prefix: str = "") -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every floating-point tensor of a file that is not empty; only its header is read."""
    with _opened(file) as tensors:
        for label in tensors.keys():  # noqa: SIM118, not a dict
            part = tensors.get_slice(label)
            shape = tuple(part.get_shape())
            if label.startswith(prefix) and part.get_dtype() in FLOATS and torch.Size(shape).numel():
                yield label.removeprefix(prefix), shape


def _read(file: Path, *names: str) -> list[Tensor]:
    with _opened(file) as tensors:
        return [tensors.get_tensor(name) for name in names]


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        if not file.is_file():
            raise OSError("there is no regular file of this name")
        with safe_open(file, framework="pt") as tensors:
            yield tensors
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file}: not a readable safetensors file ({error}). Copy or download it again.") from error


def _stamp(file: Path) -> Hashable:
    try:
        found = file.stat()
    except OSError as error:
        raise ValueError(f"{file}: is not there any more ({error}). Open the model again.") from error
    return file, found.st_mtime_ns, found.st_size


def _refuse_nothing(label: str, tensors: Mapping[str, Any]) -> None:
    if not tensors:
        raise ValueError(f"{label}: holds no floating-point tensor. Pass a model with weights.")
