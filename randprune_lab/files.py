"""Files: written whole or not at all, and results that are kept because they cost time."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import filelock

if TYPE_CHECKING:  # a job that waits for its turn does without torch
    from torch import Tensor


def write_atomically(path: Path, content: bytes | str, *, inside: Path | None = None) -> None:
    """Write a file so that it is either whole or not there: under another name first, then renamed.

    ``inside``: a folder that must be there: a run that was deleted does not come back with the next file.
    Without it, whatever folder is missing is made.
    """
    if inside is None:
        path.parent.mkdir(parents=True, exist_ok=True)
    elif path.parent != inside:
        path.parent.mkdir(exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def shipped(name: str) -> Path:
    """A folder that travels with the package: inside it when installed from a wheel, beside it in a checkout.

    Raises:
        ValueError: it is not there.
    """
    package = Path(__file__).parent
    found = [folder / name for folder in (package, package.parent)]
    for path in found:
        if path.is_dir():
            return path
    raise ValueError(f"{found[0]}: is not there, though it comes with the lab. Install randprune-lab again.")


def is_held(path: Path) -> bool:
    """Somebody holds the lock of this file; one that is not there, or not ours to open, is held by nobody."""
    if not path.is_file():
        return False
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0.2, poll_interval=0.02)  # of two that ask at a time one waits for the other
    except filelock.Timeout:
        return True
    except OSError:
        return False
    lock.release()
    return False


def free_disk(folder: Path) -> int:
    """Bytes that are free where the folder is or would be."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free


def open_own(path: Path) -> BinaryIO:
    """Open a file of a folder that others may have filled: no link, which may lead anywhere, and no pipe.

    Raises:
        OSError: it is none, or cannot be read.
    """
    if path.is_symlink() or not path.is_file():
        raise OSError(f"{path}: is no file of its own")
    return path.open("rb")


def reason_of(error: BaseException) -> str:
    """What another library's error says, on one line, without addresses and cut where it grows long."""
    if isinstance(error, UnicodeDecodeError):  # its own words hold the bytes
        return "it is no UTF-8 text"
    text = re.sub(r"'?https?://\S+", "", " ".join(str(error).split()))
    return (text if len(text) <= 250 else f"{text[:250].rsplit(' ', 1)[0]} ...") or type(error).__name__


def cache_folder() -> Path:
    """Where tokenized and augmented texts are kept: the folder that RANDPRUNE_CACHE names, else ~/.cache/randprune."""
    return Path(os.environ.get("RANDPRUNE_CACHE") or Path.home() / ".cache" / "randprune")


def remembered(kind: str, key: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors that ``make`` makes; from disk if they were made before under this ``kind`` and ``key`` (a digest).

    A damaged file is made again; where nothing can be written, nothing is kept.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save

    path = cache_folder() / kind / f"{key}.safetensors"
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
    except (OSError, SafetensorError):
        tensors = make()
    with contextlib.suppress(OSError):  # a full or read-only disk: it only costs the time again
        write_atomically(path, save(tensors))
    return tensors
