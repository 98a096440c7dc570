"""What sparsity saves on disk: a model whose zeros are not stored, as a bit-mask and the values of each tensor.

A model folder holds its zeros like any other number, so that everyone can load it. ``packed.safetensors`` holds instead

    NAME.mask     uint8, eight weights a byte, 1 = not zero
    NAME.values   the weights that are not zero, in order

of each floating-point tensor of which that saves bytes, with shapes and dtypes in its metadata, and all else as it is.
``unpack_model`` gives back the same tensors.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from randprune_lab.files import write_atomically
from randprune_lab.masks import pack, unpack
from randprune_lab.models import PICKLES, weight_files

PACKED = "packed.safetensors"
DENSE = "model.safetensors"
PACKED_NOTE = "> **Packed.** Unpack it first, `randprune unpack THIS_FOLDER MODEL_FOLDER`; then all that follows holds."
DTYPES = {
    str(dtype).removeprefix("torch."): dtype for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
}
# Never copied: pickles, which can run any code, and the same weights in other formats, which would save nothing.
LEFT_OUT = (*PICKLES, ".joblib", ".h5", ".msgpack", ".onnx", ".onnx_data", ".gguf", ".ot", ".tflite", ".npz")
OF_TRAINING = "checkpoint-*/*"  # weights from the middle of a training, where transformers' Trainer puts them


@dataclasses.dataclass(frozen=True)
class PackedSizes:
    """Bytes of the weight files.

    Attributes:
        dense: with every zero stored.
        packed: as bit-masks and values.
        tensors: how many tensors are bit-mask and values.
    """

    dense: int
    packed: int
    tensors: int


def pack_model(source: Path, target: Path) -> PackedSizes:
    """Write a model into ``target`` without its zeros, with all files that belong to it but pickles.

    ``source`` is a folder (its weights may lie in several files) or a ``.safetensors`` file; ``target`` a folder that
    is empty or not yet there. The sign of a zero is lost: -0.0 comes back as 0.0, which is equal.

    Raises:
        ValueError: there is no such model, it is packed already, the target is occupied or cannot be written.
    """
    source, target = Path(source), Path(target)
    if (source / PACKED).is_file():
        raise ValueError(f"{source}: is packed already ({PACKED}). Unpack it with randprune unpack.")
    _check_folders(source, target)
    files = weight_files(source)
    tensors = _read_dense(files)
    content, count = _packed_file(tensors)
    _write(source, target, PACKED, content)
    _tell_in_card(target / "README.md", PACKED_NOTE)
    return PackedSizes(sum(file.stat().st_size for file in files), len(content), count)


def _tell_in_card(card: Path, note: str) -> None:
    """Put a note above a model card's first heading, which is otherwise of the unpacked model."""
    if card.is_file():
        text = card.read_text(encoding="utf-8")
        write_atomically(card, text.replace("\n# ", f"\n{note}\n\n# ", 1))


def unpack_model(source: Path, target: Path) -> PackedSizes:
    """Write the model that ``pack_model`` packed into ``target``, with its zeros: ``from_pretrained`` loads it.

    ``source`` is the folder, or the ``packed.safetensors`` in it; ``target`` a folder that is empty or not yet there.

    Raises:
        ValueError: nothing packed is there, or it is damaged; the target is occupied or cannot be written.
    """
    source, target = Path(source), Path(target)
    _check_folders(source, target)
    file = source / PACKED if source.is_dir() else source
    if not file.is_file():
        raise ValueError(f"{source}: no {PACKED} is there. Pass a folder that randprune pack wrote.")
    tensors, count = _read_packed(file)
    content = save(tensors, {"format": "pt"})
    _write(source, target, DENSE, content)
    card = target / "README.md"
    if card.is_file():
        write_atomically(card, card.read_text(encoding="utf-8").replace(f"{PACKED_NOTE}\n\n", "", 1))
    return PackedSizes(len(content), file.stat().st_size, count)


def packed_bytes(tensors: Mapping[str, Tensor]) -> int:
    """The size of the file that ``pack_model`` would write of these tensors, in bytes."""
    return len(_packed_file(tensors)[0])


def _smaller(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that take fewer bytes as mask and values."""
    return {
        name: tensor
        for name, tensor in tensors.items()
        if tensor.dtype in DTYPES.values()
        and -(-tensor.numel() // 8) < int((tensor == 0).sum()) * tensor.element_size()
    }


def _packed_file(tensors: Mapping[str, Tensor]) -> tuple[bytes, int]:
    """The file's content, and how many tensors are mask and values in it."""
    smaller = _smaller(tensors)
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        mask = tensor != 0  # NaN is not 0: it stays
        parts = {f"{name}.mask": pack(mask), f"{name}.values": tensor[mask]} if name in smaller else {name: tensor}
        for label, part in parts.items():
            if label in found:
                raise ValueError(
                    f"{label}: two tensors would have this name when packed. Rename the one of the model that is so "
                    "called, or keep the model unpacked."
                )
            found[label] = part.contiguous()
    shapes = {
        name: {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}
        for name, tensor in smaller.items()
    }
    return save(found, {"packed": json.dumps(shapes)}), len(smaller)


def _read_packed(file: Path) -> tuple[dict[str, Tensor], int]:
    """All tensors as they were, and how many of them were mask and values."""
    stored, metadata = _read(file)
    if "packed" not in metadata:
        raise ValueError(f"{file}: is not packed. Pass a folder that randprune pack wrote.")
    try:
        tensors = {}
        for name, entry in json.loads(metadata["packed"]).items():
            mask, values = stored.pop(f"{name}.mask"), stored.pop(f"{name}.values")
            tensors[name] = _with_zeros(name, mask, values, torch.Size(entry["shape"]), DTYPES[entry["dtype"]])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{file}: is damaged ({error!r}). Pack the model again.") from error
    both = sorted(tensors.keys() & stored.keys())
    if both:
        raise ValueError(f"{file}: is damaged ({both[0]} is there twice). Pack the model again.")
    return tensors | stored, len(tensors)


def _with_zeros(name: str, packed: Tensor, values: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    size = math.prod(shape)
    if min(shape, default=0) < 0 or packed.dtype != torch.uint8 or packed.shape != (-(-size // 8),):
        raise ValueError(f"the mask of {name} does not fit its shape {tuple(shape)}")
    mask = unpack(packed, shape)
    count = int(mask.sum())
    if values.dtype != dtype or values.shape != (count,):
        raise ValueError(f"{name}: the mask says {count} values of {dtype}, there are {values.numel()}, {values.dtype}")
    tensor = torch.zeros(shape, dtype=dtype)
    tensor[mask] = values
    return tensor


def _read_dense(files: list[Path]) -> dict[str, Tensor]:
    """The tensors of a model's files."""
    tensors: dict[str, Tensor] = {}
    for file in files:
        read, metadata = _read(file)
        if "packed" in metadata:
            raise ValueError(f"{file}: is packed already. Unpack it with randprune unpack.")
        both = sorted(tensors.keys() & read.keys())
        if both:
            raise ValueError(
                f"{file}: holds {both[0]}, and so does another file of {file.parent}. Leave one set of weights there."
            )
        tensors |= read
    return tensors


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118, not a dict
            return tensors, opened.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file}: not a readable safetensors file ({error}). Copy or download it again.") from error


def _check_folders(source: Path, target: Path) -> None:
    if not source.exists():
        raise ValueError(f"{source}: no such file or folder. Check the path.")
    if source.is_dir() and target.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"{target}: lies inside {source}. Pass a folder beside it.")
    try:
        occupied = target.exists() and any(target.iterdir())
    except OSError as error:  # a file, or a folder that may not be read
        raise ValueError(f"{target}: is no folder that can be used ({error}). Pass a new one.") from error
    if occupied:
        raise ValueError(f"{target}: is not empty. Pass a new folder.")


def _write(source: Path, target: Path, name: str, content: bytes) -> None:
    """The model's other files, then its weights: once they are there, everything is. After an error nothing is."""
    existed, begun = target.is_dir(), []
    try:
        for other in _other_files(source):
            begun.append(target / other)
            write_atomically(target / other, (source / other).read_bytes())
        begun.append(target / name)
        write_atomically(target / name, content)
    except OSError as error:
        _remove(target, begun, also_target=not existed)
        raise ValueError(f"{target}: cannot be written ({error}). Free the disk, or pass another folder.") from error


def _remove(target: Path, files: list[Path], *, also_target: bool) -> None:
    """Take back what was begun, as far as that can be done."""
    folders = {folder for file in files for folder in file.parents if folder.is_relative_to(target)}
    with contextlib.suppress(OSError):
        for file in files:
            file.unlink(missing_ok=True)
        for folder in sorted(folders, reverse=True):  # the innermost first
            if folder.is_dir() and (folder != target or also_target):
                folder.rmdir()


def _other_files(source: Path) -> Iterator[Path]:
    """What lies beside the weights in a model's folder and belongs to it; paths relative to it."""
    if source.is_dir():
        for path in sorted(source.rglob("*")):
            relative = path.relative_to(source)
            packed = path.parent == source and path.name.endswith((".safetensors", ".safetensors.index.json"))
            if path.is_file() and belongs(relative) and not packed:
                yield relative


def belongs(path: Path) -> bool:
    """Whether a file goes along, by its path in the model's folder: neither hidden nor of another set of weights."""
    hidden = any(part.startswith(".") for part in path.parts)
    other = path.name.lower().removesuffix(".index.json").endswith(LEFT_OUT)
    return not (hidden or other or fnmatch.fnmatch(path.as_posix(), OF_TRAINING))
