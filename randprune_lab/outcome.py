"""When a run is over: what sparsity bought is measured, and model card and report are written into its folder."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from randprune_lab import store
from randprune_lab.benefit import Benefit, measure_benefit, read_benefit
from randprune_lab.card import model_card
from randprune_lab.config import OBJECT, RunConfig
from randprune_lab.events import RunStarted
from randprune_lab.files import write_atomically
from randprune_lab.models import build_model, is_transformer
from randprune_lab.pretrained import load_network, load_tokenizer
from randprune_lab.report import write_report
from randprune_lab.tasks import as_images, is_text, load_task
from randprune_lab.training import using_threads

TEXTS, EXAMPLES, REPEATS = 8, 64, 5


def conclude(folder: str | Path, beside: Sequence[Path] = ()) -> Path:
    """Write ``report.html`` and, of a finished run, ``benefit.json`` and the model card; returns the report's path.

    What sparsity bought is measured once, on the CPU or GPU that is here; for a model given from Python it is not.
    """
    folder = Path(folder)
    config = store.read_config(folder)
    if (folder / "model" / "model.safetensors").is_file():
        benefit = read_benefit(folder)
        if benefit is None and OBJECT not in (config.model, config.task):
            benefit = measure_run(folder, config)
            write_atomically(folder / "benefit.json", json.dumps(benefit.to_json(), indent=2), inside=folder)
        images = "Image" if not is_text(config.task) else "Sequence"
        auto_class = f"AutoModelFor{images}Classification" if (folder / "model" / "config.json").is_file() else None
        card = model_card(store.story(folder), config, benefit, auto_class=auto_class)
        write_atomically(folder / "model" / "README.md", card, inside=folder)
    return write_report(folder, beside)


def group_of(folder: str | Path) -> list[Path]:
    """The other runs of a run's group that lie beside it, oldest first; damaged ones are passed over."""
    folder = Path(folder).resolve()
    group = store.read_config(folder).group
    others = []
    for other in store.run_folders(folder.parent) if group else []:
        with contextlib.suppress(Exception):  # whatever is wrong with its files
            if store.read_config(other).group == group and other != folder and store.summary(other):
                others.append(other)
    return others


def measure_run(folder: Path, config: RunConfig) -> Benefit:
    """What sparsity bought in a finished run, for a batch of random tokens of full length, or of the first images."""
    started = next(event for event in store.story(folder) if isinstance(event, RunStarted))
    device = torch.device("cuda" if torch.cuda.is_available() and config.device in ("auto", "cuda") else "cpu")
    with using_threads(config.threads):
        network, inputs = _network(folder, config)
        dense = store.dense_weights(folder)
        return measure_benefit(network.to(device), inputs, dense, tuple(started.prunable), repeats=REPEATS)


def _network(folder: Path, config: RunConfig) -> tuple[nn.Module, Tensor | Mapping[str, Tensor]]:
    """The network as others would load it, and a batch for it."""
    weights = folder / "model" / "model.safetensors"
    text = is_text(config.task)
    if is_transformer(config.model):
        settings = json.loads((folder / "model" / "config.json").read_text())
        outputs = len(settings.get("id2label") or {0: "", 1: ""})
        network = load_network(str(folder / "model"), outputs=outputs, images=not text, eager=False)
    else:
        network = build_model(config.model, config.seed)
        network.load_state_dict(load_file(weights))
    if text:
        made: Any = network.config if hasattr(network, "config") else None
        length = min(config.max_length, load_tokenizer(str(folder / "model")).model_max_length)
        tokens = torch.randint(made.vocab_size, (TEXTS, length), generator=torch.Generator().manual_seed(0))
        return network, {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    test = as_images(load_task(config), network).test
    return network, test.inputs[torch.arange(min(EXAMPLES, len(test)))]
