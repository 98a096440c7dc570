"""Safetensors checkpoints as bytes: where each tensor of each shard lies, which of them are pruned, a shard rewritten.

Nothing is loaded but one tensor at a time. A rewritten shard has the header of the old one, byte for byte: names,
types, shapes, order and metadata stay. (The format: eight bytes, the length of a JSON header; the header; the tensors.)
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from io import BufferedReader
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from randprune_lab.models import weight_files
from randprune_lab.packing import LEFT_OUT, OF_TRAINING, belongs
from randprune_lab.sources import CheckpointSource, prunable_names

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
QUANTIZED = re.compile(r"[IU](4|8|16|32)|F[468](_.*)?")  # small integers, and floating point of 8 bits or less
SAMPLES, SAMPLE_BYTES = 16, 2**16  # of each shard: what the digest reads


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor's place in its file, in bytes. ``dtype``: as safetensors calls it."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def size(self) -> int:
        """The number of its weights."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return self.end - self.start

    def read(self) -> Tensor:
        """Its values, in memory of their own.

        Raises:
            ValueError: the file has grown shorter, or cannot be read.
        """
        content = np.empty(self.nbytes, dtype=np.uint8)
        with _opened(self.file) as file:
            file.seek(self.start)
            found = file.readinto(content.data)
        if found != len(content):
            raise ValueError(f"{self.file}: ends within {self.name}. Copy or download it again.")
        return torch.from_numpy(content).view(DTYPES[self.dtype]).view(self.shape)


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file: its header with the length before it, and its tensors as they lie there."""

    file: Path
    header: bytes
    tensors: tuple[StoredTensor, ...]

    @property
    def length(self) -> int:
        """Its size in bytes."""
        return max([len(self.header), *(tensor.end for tensor in self.tensors)])


@dataclasses.dataclass(frozen=True)
class StoredCheckpoint:
    """A checkpoint on disk, of which only the headers were read.

    Attributes:
        name: as it was asked for, a path or a Hub id.
        files: what lies beside the weights (configuration, tokenizer, index): relative path -> file.
        shards: its files, by name.
        tensors: the floating-point tensors that are not empty, in the order in which people count (layer.2 before
            layer.10). In global scope they are one vector in this order.
        prunable: those that a run would prune by default: the matrices of the blocks, by names and shapes.
        quantized: matrices of the blocks that are left alone, since they are quantized or scale what is.
    """

    name: str
    files: dict[str, Path]
    shards: dict[str, Shard]
    tensors: dict[str, StoredTensor]
    prunable: tuple[str, ...]
    quantized: tuple[str, ...]

    def digest(self) -> str:
        """Changes with names, sizes and headers of the shards, and with their bytes at 16 places of each."""
        found = hashlib.blake2b(digest_size=16)
        for name, shard in sorted(self.shards.items()):
            found.update(json.dumps([name, shard.length]).encode() + shard.header)
            with _opened(shard.file) as file:
                for place in np.linspace(0, max(shard.length - SAMPLE_BYTES, 0), SAMPLES).astype(int):
                    file.seek(int(place))
                    found.update(file.read(SAMPLE_BYTES))
        return found.hexdigest()

    def chosen(self, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> list[StoredTensor]:
        """What is pruned: of ``prunable`` those that a pattern of ``include`` finds (if any), and none of ``exclude``.

        Raises:
            ValueError: nothing is left, or a pattern finds none.
        """
        if self.quantized and not self.prunable:
            raise ValueError(
                f"{self.name}: nothing to prune: its matrices are quantized ({len(self.quantized)} of them), and only "
                "floating-point weights are masked. Pass the checkpoint that it was quantized from."
            )
        known = ", ".join(self.prunable[:8]) + (" ..." if len(self.prunable) > 8 else "")
        for pattern in (*include, *exclude):
            if not any(re.search(pattern, name) for name in self.prunable):
                raise ValueError(f"pattern {pattern!r}: matches no prunable tensor. Choose among: {known or 'none'}.")
        names = [
            name
            for name in self.prunable
            if (not include or any(re.search(pattern, name) for pattern in include))
            and not any(re.search(pattern, name) for pattern in exclude)
        ]
        if not names:
            quantized = f" {len(self.quantized)} of its matrices are quantized." if self.quantized else ""
            raise ValueError(
                f"{self.name}: nothing to prune: a matrix of floating-point weights must be left.{quantized} "
                f"include = {tuple(include)}, exclude = {tuple(exclude)}; prunable: {known or 'none'}."
            )
        return [self.tensors[name] for name in names]


def open_checkpoint(checkpoint: str | Path) -> StoredCheckpoint:
    """A folder with ``model.safetensors`` or an index and its shards, one ``.safetensors`` file, or a Hub id.

    Raises:
        ValueError: nothing readable is there, only a pickle is, a shard is damaged or missing, or the index names what
            is not there.
    """
    paths = weight_files(checkpoint)
    at = Path(checkpoint)
    if not at.exists():
        at = _rest_of(str(checkpoint), paths[0].parent)
    shards: dict[str, Shard] = {}
    owners: dict[str, str] = {}
    source = CheckpointSource(str(at))  # reads the headers with safetensors' own checks
    for path in paths:
        shard = _shard(path)
        for tensor in shard.tensors:
            if tensor.name in owners:
                raise ValueError(
                    f"{path}: holds {tensor.name}, and so does {owners[tensor.name]}. Leave one set of weights there."
                )
            owners[tensor.name] = path.name
        shards[path.name] = shard
    if not at.is_file():  # a shard by itself lacks what lies in the others
        _check_complete(paths, owners)
    stored = {tensor.name: tensor for shard in shards.values() for tensor in shard.tensors}
    modules = {
        tensor.name.rpartition(".")[0]
        for tensor in stored.values()
        if QUANTIZED.fullmatch(tensor.dtype) and len(tensor.shape) >= 2 and not tensor.name.endswith("bias")
    }
    # Quantized ones count for what is a block: without them none might be left, and embeddings would pass for layers.
    weights = [tensor for tensor in stored.values() if tensor.dtype in DTYPES or QUANTIZED.fullmatch(tensor.dtype)]
    in_blocks = prunable_names({tensor.name: tensor.shape for tensor in weights if tensor.size})
    by_default = [name for name in source.tensors if name in in_blocks]
    return StoredCheckpoint(
        name=str(checkpoint),
        files={} if at.is_file() else _beside(at),
        shards=shards,
        tensors={name: stored[name] for name in source.tensors},
        prunable=tuple(name for name in by_default if name.rpartition(".")[0] not in modules),
        quantized=tuple(name for name in stored if name.rpartition(".")[0] in modules and len(stored[name].shape) >= 2),
    )


def _shard(path: Path) -> Shard:
    """The header has been checked already: it is JSON, and its places fill the file without gaps."""
    with path.open("rb") as file:
        length = file.read(8)
        header = length + file.read(int.from_bytes(length, "little"))
    tensors = [
        StoredTensor(
            name, path, entry["dtype"], tuple(entry["shape"]), *(len(header) + at for at in entry["data_offsets"])
        )
        for name, entry in json.loads(header[8:]).items()
        if name != "__metadata__"
    ]
    return Shard(path, header, tuple(sorted(tensors, key=lambda tensor: (tensor.start, tensor.end))))


def _check_complete(paths: Sequence[Path], owners: dict[str, str]) -> None:
    """Each tensor lies where the index says; without an index, of files called 00001-of-00003 each is there."""
    index = paths[0].with_name("model.safetensors.index.json")
    if index.is_file():
        for name, file in json.loads(index.read_text())["weight_map"].items():
            if owners.get(name) != file:
                raise ValueError(f"{index}: {name} should lie in {file}, but does not. Download the checkpoint again.")
        return
    sets: dict[tuple[str, int], set[int]] = {}
    for path in paths:
        if named := re.fullmatch(r"(.*)-(\d+)-of-(\d+)\.safetensors", path.name):
            sets.setdefault((named[1], int(named[3])), set()).add(int(named[2]))
    for (name, number), found in sets.items():
        if len(found) < number:
            raise ValueError(
                f"{paths[0].parent}: {len(found)} of the {number} files {name}-...-of-{number} are there. Download the "
                "others, too."
            )


def _rest_of(model_id: str, weights: Path) -> Path:
    """The folder of a Hub id's ``weights`` in the cache, filled with all that goes along with them.

    Of the same commit, which is that folder's name: somebody may push another one meanwhile.
    """
    from huggingface_hub import snapshot_download

    left_out = [*(f"*{ending}" for ending in LEFT_OUT), OF_TRAINING]
    return Path(snapshot_download(model_id, revision=weights.name, ignore_patterns=left_out))


def _beside(folder: Path) -> dict[str, Path]:
    """What goes along with the weights, by its path in the folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        weights = path.parent == folder and path.suffix == ".safetensors"
        if path.is_file() and belongs(name) and not weights:
            found[name.as_posix()] = path
    return found


def rewrite_shard(shard: Shard, target: Path, changed: Callable[[StoredTensor], Tensor | None]) -> None:
    """Write a shard anew, tensor by tensor; under another name until it is whole.

    ``changed`` gives a tensor's new values, of its own type and shape; None: they stay as they are.
    """
    part = target.with_name(f".{target.name}.part")
    try:
        _write(shard, part, changed)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _write(shard: Shard, part: Path, changed: Callable[[StoredTensor], Tensor | None]) -> None:
    with part.open("wb") as new:
        new.write(shard.header)
        for tensor in shard.tensors:
            values = changed(tensor)
            if values is None:
                new.writelines(_pieces(shard.file, tensor.start, tensor.nbytes))
            else:
                new.write(values.reshape(-1).view(torch.uint8).numpy().data)
        new.flush()
        os.fsync(new.fileno())


def copy_file(source: Path, target: Path) -> None:
    """Whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    with _opened(source) as old:
        length = os.fstat(old.fileno()).st_size
    with part.open("wb") as new:
        new.writelines(_pieces(source, 0, length))
    part.replace(target)


def _pieces(file: Path, start: int, length: int, most: int = 2**24) -> Iterator[bytes]:
    with _opened(file) as opened:
        opened.seek(start)
        while length > 0:
            piece = opened.read(min(length, most))
            if not piece:
                raise OSError("it has grown shorter")
            length -= len(piece)
            yield piece


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[BufferedReader]:
    """To be read. What goes wrong is said of this file: all other errors are of the folder that is written to."""
    try:
        with file.open("rb") as opened:
            yield opened
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error}). Copy or download it again.") from error
