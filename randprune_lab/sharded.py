"""Masks for checkpoints larger than memory: one tensor at a time is read, masked and written; ``randprune mask``.

Nothing is trained: the weights that a mask keeps stay as they are, the others become 0.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import filelock
import pydantic
from pydantic import Field
from torch import Tensor

from randprune_lab.bench import bench_device
from randprune_lab.card import checkpoint_card, shown_name
from randprune_lab.checks import keep_count, problem_of
from randprune_lab.files import free_disk, write_atomically
from randprune_lab.shards import Shard, StoredCheckpoint, StoredTensor, copy_file, open_checkpoint, rewrite_shard
from randprune_lab.stored_masks import Facts, MaskSettings, StoredMasks, overall_ir

RECORD, CARD, DENSE_CARD, LOCK = "mask.json", "README.md", "README-before.md", ".mask.json.lock"
BEFORE = {CARD: DENSE_CARD, RECORD: "mask-before.json"}  # files of the checkpoint that would stand in the way of ours
PARTS = ("randprune-lab", "torch", "numpy", "scipy")  # whose versions decide which random mask a seed gives
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # errors of a disk without room
Tell = Callable[[int, int, str], object]


class _TensorFacts(pydantic.BaseModel):
    """What a record must tell of a tensor that is masked; ir and threshold are null where they are infinite."""

    size: Annotated[int, Field(ge=1)]
    kept: Annotated[int, Field(ge=0)]  # in scope global a tensor of small weights may lose them all
    moved: int
    swapped: float
    threshold: float | None


class _Totals(pydantic.BaseModel):
    """What it must tell of all together, once it is finished."""

    tensors: int
    left_alone: int
    quantized: int
    parameters: int
    prunable: int
    kept: int
    sparsity: float
    sparsity_of_all: float
    ir: float | None
    swapped: float


class _Record(pydantic.BaseModel):
    """What ``mask.json`` must hold for a later call to go on from it."""

    settings: Facts
    source: dict[str, str]
    made_with: dict[str, str]
    notes: list[str]
    shards: dict[str, dict[str, _TensorFacts]]
    finished: bool
    totals: _Totals | None = None


def mask_checkpoint(
    checkpoint: str | Path,
    out: str | Path,
    settings: MaskSettings,
    *,
    device: str = "cpu",
    tell: Tell = lambda *_: None,
) -> Facts:
    """Write a checkpoint with a mask applied into the folder ``out``, shard by shard.

    The mask is that of ``masks.stage_masks`` at stage 1 with the same settings (and of the explorer), bit for bit. Only
    the random one of scope global, and of tensors above 2**24 weights, is another draw of the same law, since there no
    sampler may see all weights at a time (see ``pieces``). It keeps exactly as many. In scope global all tensors are
    one vector in the checkpoint's order; the closed form that rules there is a few percent off below some 1,000
    weights in all. Of each tensor its histogram is kept then: 70 KB at most in bfloat16, 2 MB in float32.

    Killed anywhere and called again with the same arguments, it goes on after the last whole shard, and the files come
    out the same; once finished, it does nothing but replace what has been lost since.

    Args:
        checkpoint: a folder with safetensors, a ``.safetensors`` file, or a Hub id.
        out: a folder that is empty or not yet there, or that an earlier call began.
        settings: which mask.
        device: "cpu" or "cuda", where masks are worked out. A seed gives other random masks on each.
        tell: hears how many of how many bytes are done, and what is being done; nothing where all is done already.

    Returns:
        The content of ``mask.json``: settings, facts of each tensor (size, kept, threshold, samples M, power T, ir,
        swapped) and of all together.

    Raises:
        ValueError: the checkpoint cannot be read, holds weights that are not finite or nothing to prune; ``out`` is
            occupied, lies inside it, was begun otherwise, or cannot be written; more than 10**9 weights that one
            random mask is drawn among have the same magnitude.
    """
    where = bench_device(device)
    stored = open_checkpoint(checkpoint)
    chosen = stored.chosen(settings.include, settings.exclude)
    _check_kept(chosen, settings)
    folder = Path(out)
    _check_out(Path(checkpoint), folder)
    source = os.path.abspath(checkpoint) if Path(checkpoint).exists() else str(checkpoint)  # "." has no name
    identity = {
        "settings": settings.told(),
        "source": {"name": shown_name(source), "digest": stored.digest()},
        "made_with": {"device": where.type} | {name: importlib.metadata.version(name) for name in PARTS},
    }
    with _alone(folder):
        record = _begun(folder, identity)
        _remove_parts(folder, [*stored.shards, *_copies(stored)])
        names = {tensor.name for tensor in chosen}
        waiting = [shard for shard in stored.shards.values() if not _is_done(folder, record, shard, names)]
        complete = all((folder / name).is_file() for name in (*_copies(stored), CARD))
        if complete and not waiting and record["finished"] and record.get("totals"):
            return record
        record = {**record, "finished": False}
        _check_disk(folder, waiting, stored.files)
        try:
            _save(folder, record)
            _write_shards(folder, record, waiting, StoredMasks(chosen, settings, where), tell)
            _finish(folder, record, stored, chosen)
        except OSError as error:
            fix = "Free the disk" if error.errno in FULL else "Mend that"
            raise ValueError(f"{folder}: cannot be written ({error}). {fix} and run it again: it goes on.") from error
    return record


def _check_kept(chosen: Sequence[StoredTensor], settings: MaskSettings) -> None:
    """A run refuses to empty a tensor, too."""
    sizes = {tensor.name: tensor.size for tensor in chosen}
    if settings.scope == "global":
        sizes = {"all of them together": sum(sizes.values())}
    for name, size in sizes.items():
        if size and not keep_count(size, settings.sparsity):
            raise ValueError(
                f"sparsity = {settings.sparsity}: nothing would be left of {name} ({size:,} weights). Pass less, "
                "or exclude it."
            )


def _check_out(source: Path, out: Path) -> None:
    try:
        if out.is_symlink():
            raise ValueError(
                f"{out}: is a link, and whatever it leads to might be overwritten. Pass a folder of its own."
            )
        if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
            raise ValueError(f"{out}: lies inside {source}. Pass a folder beside it.")
        others = [path for path in out.iterdir() if not path.name.startswith(f".{RECORD}")] if out.exists() else []
    except OSError as error:  # a file, a name that is too long, or a folder that may not be read
        raise ValueError(f"{out}: is no folder that can be used ({error}). Pass a new one.") from error
    if others and not (out / RECORD).is_file():
        raise ValueError(f"{out}: holds other things. Pass a new folder, or one that randprune mask began.")


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process in a folder; the folder goes again if nothing came into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / LOCK, timeout=0)
        lock.acquire()
    except filelock.Timeout as error:
        raise ValueError(f"{folder}: another process is writing there. Wait for it, or pass another folder.") from error
    except OSError as error:
        raise ValueError(f"{folder}: cannot be written ({error}). Pass another folder.") from error
    try:
        yield
    finally:
        # While it is held, lest somebody else's goes. Windows refuses that, and removes it when it is released.
        with contextlib.suppress(OSError):
            (folder / LOCK).unlink()
        lock.release()
        with contextlib.suppress(OSError):  # it is not empty
            folder.rmdir()


def _begun(folder: Path, identity: Facts) -> Facts:
    """The record of what is done already; an empty one where nothing is, even if it was tried otherwise before."""
    new = identity | {"notes": [], "shards": {}, "finished": False}
    path = folder / RECORD
    if not path.is_file():
        return new
    try:
        text = path.read_bytes()
        _Record.model_validate_json(text)
    except (pydantic.ValidationError, OSError) as error:
        why = problem_of(error.errors()[0]) if isinstance(error, pydantic.ValidationError) else error
        raise ValueError(f"{path}: is no record of randprune mask ({why}). Pass a new folder.") from error
    record: Facts = json.loads(text)
    differing = _differing(record, identity)
    if differing and (record["shards"] or any(folder.glob("*.safetensors"))):
        what = {"settings": "other settings", "source": "another checkpoint, or it has changed since"}
        told = "; ".join(
            f"{what.get(name, 'other versions or another device')} ({_changed(record[name], identity[name])})"
            for name in differing
        )
        raise ValueError(f"{folder}: was begun with {told}. Pass a new folder.")
    return new if differing else record


def _changed(old: Facts, new: Facts) -> str:
    """In words."""
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return ", ".join(f"{name} = {old.get(name, 'not given')}, now {new.get(name, 'not given')}" for name in names)


def _differing(record: Facts, identity: Facts) -> list[str]:
    """What would let other bytes come out than those of ``record``.

    A checkpoint may be called by another name, and the plain mask is the same whatever it is made with.
    """
    same = {
        "settings": record["settings"] == identity["settings"],
        "source": record["source"].get("digest") == identity["source"]["digest"],
        "made_with": record["made_with"] == identity["made_with"] or not identity["settings"]["candidate"],
    }
    return [name for name in same if not same[name]]


def _remove_parts(folder: Path, names: Iterable[str]) -> None:
    """What a process that was killed had begun to write. Other files stay, whoever they are of."""
    for name in names:
        path = folder / name
        path.with_name(f".{path.name}.part").unlink(missing_ok=True)
    for name in (RECORD, CARD):
        for left in folder.glob(f".{name}.*.tmp"):
            left.unlink()


def _is_done(folder: Path, record: Facts, shard: Shard, chosen: set[str]) -> bool:
    """It lies there, whole, and the facts of all its tensors that are masked are known."""
    path = folder / shard.file.name
    known = record["shards"].get(path.name)
    masked = {tensor.name for tensor in shard.tensors} & chosen
    return known is not None and known.keys() == masked and path.is_file() and path.stat().st_size == shard.length


def _check_disk(folder: Path, waiting: Sequence[Shard], files: Mapping[str, Path]) -> None:
    needed = sum(shard.length for shard in waiting) + sum(path.stat().st_size for path in files.values())
    free = free_disk(folder)
    if needed > free:
        raise ValueError(f"{folder}: {needed:,} bytes are to be written, {free:,} are free. Free the disk first.")


def _write_shards(folder: Path, record: Facts, waiting: Sequence[Shard], masks: StoredMasks, tell: Tell) -> None:
    """One after another, and after each the record."""
    first = sum(masks.bytes_of.values()) if waiting and masks.settings.scope == "global" else 0
    total = first + sum(shard.length for shard in waiting)
    done = 0

    def advance(number: int, doing: str) -> None:
        nonlocal done
        done += number
        tell(done, total, doing)

    if first:
        advance(0, "counting magnitudes")
        masks.first_pass(lambda part: advance(masks.bytes_of[part.name], "counting magnitudes"))
    for shard in waiting:
        facts = _write_shard(folder, shard, masks, lambda tensor: advance(tensor.nbytes, tensor.file.name))
        record["shards"][shard.file.name] = _finite(facts)
        record["notes"] = sorted({*record["notes"], *masks.notes})
        _save(folder, record)
    advance(0, "what lies beside")


def _write_shard(
    folder: Path, shard: Shard, masks: StoredMasks, tell: Callable[[StoredTensor], object]
) -> dict[str, Facts]:
    """The facts of its tensors that are pruned."""
    facts = {}

    def changed(tensor: StoredTensor) -> Tensor | None:
        weight = None
        if tensor.name in masks.parts:
            weight, facts[tensor.name] = masks.apply(tensor)
        tell(tensor)
        return weight

    rewrite_shard(shard, folder / shard.file.name, changed)
    return facts


def _finite(value: Any) -> Any:
    """As JSON will give it back: None for what is infinite."""
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _save(folder: Path, record: Facts) -> None:
    write_atomically(folder / RECORD, json.dumps(record, indent=1, allow_nan=False) + "\n")


def _copies(stored: StoredCheckpoint) -> dict[str, Path]:
    """What lies beside the weights, by its name in the new folder; of a card and the one before it, the newer."""
    older = {before for name, before in BEFORE.items() if name in stored.files}
    return {BEFORE.get(name, name): path for name, path in stored.files.items() if name not in older}


def _finish(folder: Path, record: Facts, stored: StoredCheckpoint, chosen: Sequence[StoredTensor]) -> None:
    """All that is no weight: what lay beside them, the card, the totals."""
    for name, path in _copies(stored).items():
        copy_file(path, folder / name)
    of_all = {name: facts for shard in record["shards"].values() for name, facts in shard.items()}
    of_all = {tensor.name: of_all[tensor.name] for tensor in chosen}
    size, kept, moved = (sum(facts[name] for facts in of_all.values()) for name in ("size", "kept", "moved"))
    parameters = sum(tensor.size for tensor in stored.tensors.values())
    record["shards"] = {name: record["shards"][name] for name in stored.shards}
    record["totals"] = {
        "tensors": len(of_all),
        "left_alone": len(stored.tensors) - len(of_all),
        "quantized": len(stored.quantized),
        "parameters": parameters,
        "prunable": size,
        "kept": kept,
        "sparsity": 1 - kept / size,
        "sparsity_of_all": (size - kept) / parameters,
        "ir": _finite(overall_ir(size - kept, moved)),
        "swapped": moved / max(kept, 1),
    }
    record["finished"] = True
    write_atomically(folder / CARD, checkpoint_card(record, of_all, transformers="config.json" in stored.files))
    _save(folder, record)
