"""The network that the lab trains itself, in seconds: there is something to look at before anything else is there."""

from __future__ import annotations

import contextlib
import hashlib
import threading

from torch import Tensor

from randprune_lab.config import RunConfig
from randprune_lab.events import Checkpoint, DenseFinished
from randprune_lab.explorer import Explorer
from randprune_lab.files import remembered
from randprune_lab.sources import MemorySource

LABEL = "demo: digits, mlp 64-300-100-10, trained here"
CONFIG = RunConfig(device="cpu")  # the dense network of every run with default settings
_training = threading.Lock()


def demo_weights() -> dict[str, Tensor]:
    """The weights of the digits network by name, trained once and remembered in the cache folder."""
    digest = hashlib.blake2b(CONFIG.model_dump_json().encode(), digest_size=8).hexdigest()
    with _training:  # two processes would both train, which harms nothing
        return remembered("demo", digest, _train)


def demo_explorer() -> Explorer:
    """The tables of that network."""
    source = MemorySource(demo_weights())
    source.label = LABEL
    return Explorer(source)


def _train() -> dict[str, Tensor]:
    """The dense phase of a run: what follows it is not asked for."""
    from randprune_lab.engine import prune

    trained = False
    with contextlib.closing(prune(CONFIG)) as said:  # type: ignore[type-var]
        for item in said:
            trained = trained or isinstance(item, DenseFinished)
            if trained and isinstance(item, Checkpoint):
                named = {name: tensor for name, tensor in item.tensors.items() if name.startswith("model.")}
                return {name.removeprefix("model."): tensor for name, tensor in named.items()}
    raise AssertionError("a run ends its dense phase with a checkpoint")
