"""What test_ranks lets two processes do together, each of which writes down what it came to: together.py FOLDER."""

import json
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from torch import nn

from randprune_lab import cli, ranks
from randprune_lab.config import RunConfig
from randprune_lab.engine import prune
from randprune_lab.events import Checkpoint, MaskChosen
from randprune_lab.splits import Split, Task
from randprune_lab.training import Session, start_accelerator
from support.runs import small, stop_after, tiny
from support.tiny_transformers import checkpoint, dataset

METRICS = ("accuracy", "f1", "matthews", "spearman", "pearson")
ROWS = (1, 2, 3, 7, 64, 1025, 2049)
SEVERAL = {"candidates": 3, "dense_epochs": 2, "max_epochs": 2}
STOPPED = small(batch_size=400, **SEVERAL)
WITHOUT_DROPOUT = {
    "bert": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
}


def plain_model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 12), nn.ReLU(), nn.Linear(12, 3))


def odd_task() -> Task:
    """73 rows to learn from: in batches of 24 the last has one, so that one of two ranks has none; 19 are reported."""
    generator = torch.Generator().manual_seed(5)
    labels = torch.arange(110) % 3
    inputs = torch.randn((3, 8), generator=generator)[labels] + 0.7 * torch.randn((110, 8), generator=generator)
    return Task.of((inputs[:91], labels[:91]), (inputs[91:], labels[91:]))


def own(**changes):
    parts = {"model": plain_model(), "data": odd_task()}
    return tiny(**({"batch_size": 24} | SEVERAL | changes)), parts


def prepare(folder: Path) -> None:
    """Random transformers without dropout, texts of unequal length, and a run that was stopped."""
    for name, dropout in WITHOUT_DROPOUT.items():
        checkpoint(folder / name, name, **dropout)
    dataset(folder)
    stop_after(folder / "stopped", STOPPED, 4)


def language(folder: Path, name: str):
    """Every term of distillation."""
    settings = {
        **SEVERAL,
        "task": "text",
        "model": str(folder / name),
        "dataset": f"{folder / 'train.csv'},{folder / 'validation.csv'}",
        "text_columns": ("sentence",),
        "batch_size": 7,
        "stages": (0.5, 0.8),
        "hidden_weight": 1.0,
        "attention_weight": 0.5,
        "learning_rate": 1e-3,
        "device": "cpu",
    }
    return RunConfig(**settings), {}


def cases(folder: Path):
    """Name -> a configuration, and what is given from Python."""
    return {
        "mlp": (small(batch_size=400, label_smoothing=0.1, **SEVERAL), {}),
        "learned-mask": own(method="learned-mask", patience=1),
        "rigl": own(method="rigl", regrow_every=3, stages=(0.8,)),
        "taylor": own(criterion="taylor", scope="global", executor="serial"),
        **{name: language(folder, name) for name in WITHOUT_DROPOUT},
    }


def done(config: RunConfig, parts: dict) -> tuple[list[dict], dict[str, torch.Tensor]]:
    """A run's events, and the tensors of its last checkpoint."""
    said, tensors = [], {}
    for item in prune(config, **parts):
        if isinstance(item, Checkpoint):
            tensors = item.tensors
        else:
            said.append(item.to_json())
    return said, tensors


def measured(config: RunConfig) -> list[dict]:
    """Every metric, and the loss, of splits of many sizes; the answers are looked up, so they have no rounding."""
    table = nn.Embedding.from_pretrained(torch.randn((max(ROWS), 2), generator=torch.Generator().manual_seed(1)))
    model = nn.Sequential(table, nn.Flatten())
    found = []
    for metric in METRICS:
        for rows in ROWS[metric in METRICS[3:] :]:  # one row has no correlation
            labels = torch.arange(rows) % 3 % 2
            split = Split(torch.arange(rows)[:, None], labels.float() if metric in METRICS[3:] else labels)
            task = Task("own", split, split, split, metric=metric)
            found.append(vars(Session(config, task, model, start_accelerator(config)).evaluate(split)))
    return found


def refusal(config: RunConfig, parts: dict, *, spoil: bool = False) -> str:
    """Why a run ends; with ``spoil`` the second rank changes a bit of a weight once the first mask is chosen."""
    try:
        for item in prune(config, **parts):
            if spoil and isinstance(item, MaskChosen) and ranks.rank() == 1:
                weight = parts["model"][2].weight.data
                weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))
    except (ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def threads() -> list[str]:
    """Names of this process's threads, those of libraries, too; none where the system does not tell."""
    return [file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")]


def main(folder: Path) -> None:
    config = tiny()
    start_accelerator(config)
    rank = ranks.rank()
    for name, case in cases(folder).items():
        said, tensors = done(*case)
        save_file(tensors, folder / f"{name}.{rank}.safetensors")
        (folder / f"{name}.{rank}.json").write_text(json.dumps(said))
    own_seed, parts = own(seed=rank)
    found = {
        "number": ranks.number(),
        "threads": threads(),
        "measured": measured(config),
        "other seed": refusal(own_seed, parts),
        "other weight": refusal(*own(), spoil=True),
        "batch norm": refusal(tiny(), {"model": nn.Sequential(nn.Linear(8, 3), nn.BatchNorm1d(3)), "data": odd_task()}),
    }
    (folder / f"found.{rank}.json").write_text(json.dumps(found))
    cli.resume(str(folder / "stopped"), as_json=True)
    short = "--stages 0.5 --dense-epochs 1 --max-epochs 1 --candidates 2 --batch-size 400"
    sys.argv = ["randprune", "run", "--device", "cpu", "--no-controls", "--json", *short.split()]
    try:
        cli.main()
    finally:
        (folder / f"threads.{rank}.json").write_text(json.dumps(threads()))


if __name__ == "__main__":
    transformers.utils.logging.disable_progress_bar()
    main(Path(sys.argv[1]))
