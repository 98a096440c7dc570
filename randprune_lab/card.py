"""Model cards, ``README.md`` in the Hub's form: of a finished run's network, and of a checkpoint that was masked.

They name nobody's folders: of a local model or data set only the last part of its path is told.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any, TypeVar

from randprune_lab.benefit import Benefit, benefit_sentences
from randprune_lab.config import DYNAMIC, HUB, OBJECT, RunConfig
from randprune_lab.events import DenseFinished, Event, MaskChosen, RunStarted, Score, StageFinished
from randprune_lab.models import MODELS

HUB_ID = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)?")
TAGS = ["pruning", "sparsity", "randprune-lab"]
HUB_METRICS = {"matthews": "matthews_correlation", "spearman": "spearmanr", "pearson": "pearsonr"}
EventT = TypeVar("EventT", bound=Event)
# Settings that are named where somebody changed them.
SELDOM = (
    *("initialization", "pattern", "densities", "label_smoothing", "soft_activations", "soft_skips"),
    *("mask_sparsity_weight", "mask_binary_weight", "mask_learning_rate", "regrow_every", "regrow_share"),
)


def model_card(
    story: Sequence[Event], config: RunConfig, benefit: Benefit | None = None, *, auto_class: str | None = None
) -> str:
    """``README.md`` of a finished network: what it is, how it was pruned, how well it does, how to load it.

    Args:
        story: the run's events (``store.story(folder)``).
        config: its configuration.
        benefit: what sparsity bought; None: not measured.
        auto_class: transformers' class that loads it, such as "AutoModelForSequenceClassification"; None: a plain
            network.

    Raises:
        ValueError: no stage is finished.
    """
    started, dense, done = _last(story, RunStarted), _last(story, DenseFinished), _last(story, StageFinished)
    if started is None or done is None:
        raise ValueError("the run has finished no stage: there is no pruned network to describe. Finish the run first.")
    parts = [
        _front_matter(config, started, auto_class),
        f"# {shown_name(config.model)} on {_data(config)}, pruned to sparsity {done.sparsity:.4g}",
        _summary(config, started, dense, done),
        _warning(config),
        "## Scores",
        _stage_table(story, config, started, dense),
        "## How it was pruned",
        _settings(config, started),
        "## Sparsity of every pruned tensor",
        _tensor_table(started, _last(story, MaskChosen)),
        "## What sparsity bought",
        "\n".join(f"- {sentence}" for sentence in benefit_sentences(benefit)) if benefit else "Not measured.",
        "## How to load it",
        _loading(config, auto_class),
    ]
    return "\n\n".join(parts) + "\n"


def _last(story: Sequence[Event], kind: type[EventT]) -> EventT | None:
    return next((event for event in reversed(story) if isinstance(event, kind)), None)


def _front_matter(config: RunConfig, started: RunStarted, auto_class: str | None) -> str:
    """What the Hub reads: YAML, in which every JSON string is a string."""
    fields: dict[str, str | list[str]] = {"library_name": "transformers" if auto_class else "pytorch"}
    if _is_hub_id(config.model):
        fields["base_model"] = config.model
    if _has_dataset(config) and _is_hub_id(config.dataset):
        fields["datasets"] = [config.dataset]
    fields["metrics"] = [HUB_METRICS.get(started.metric, started.metric)]
    return _yaml(fields | {"tags": TAGS})


def _yaml(fields: Mapping[str, str | list[str]]) -> str:
    return "\n".join(["---", *(f"{name}: {json.dumps(value)}" for name, value in fields.items()), "---"])


def _is_hub_id(name: str) -> bool:
    """Not a network of our own, not an object, not a folder."""
    return bool(HUB_ID.fullmatch(name)) and name not in (*MODELS, OBJECT) and not Path(name).exists()


def _has_dataset(config: RunConfig) -> bool:
    """Digits and generated sentences bring their own."""
    return config.task in ("text", *HUB) or config.task.startswith("glue/")


def shown_name(name: str) -> str:
    """What others read of a model or data set: a Hub id, a function or a network as it is; of a path the last part."""
    if name == OBJECT:
        return "a model of one's own"
    local = re.search(r"[/\\]", name) and not _is_hub_id(name)
    return PureWindowsPath(name).name if local else name  # it knows / and \ alike


def _data(config: RunConfig) -> str:
    if config.task == OBJECT:
        return "data of one's own"
    if not _has_dataset(config):
        return config.task
    return f"{config.task} ({', '.join(shown_name(part) for part in config.dataset.split(','))})"


def _summary(config: RunConfig, started: RunStarted, dense: DenseFinished | None, done: StageFinished) -> str:
    prunable = sum(started.prunable.values())
    whole = started.parameters - prunable + done.kept
    text = (
        f"Pruned with RandPrune Lab by the method `{config.method}` (arXiv 2310.13183). Of {prunable:,} prunable "
        f"weights {done.kept:,} are kept: sparsity {done.sparsity:.4f}, {prunable / done.kept:.1f}x. Of all "
        f"{started.parameters:,} parameters of the model {whole:,} are left: {started.parameters / whole:.1f}x. What "
        "was pruned is stored as zeros, in tensors of their usual names and shapes."
    )
    if config.task == "sentences":
        text += "\n\nThe data is synthetic: beginnings of sentences that RandPrune Lab generates."
    score = f"On the test split its {started.metric} is {_score(done.test)}"
    before = f"; that of the {config.unpruned} network was {_score(dense.test)}" if dense else ""
    return f"{text}\n\n{score}{before}."


def _score(score: Score) -> str:
    others = ", ".join(f"{name} {value:.4f}" for name, value in score.others.items())
    return f"{score.metric:.4f}{f' ({others})' if others else ''}"


def _warning(config: RunConfig) -> str:
    lines = [
        f"> **One seed is no result.** These numbers are of one run with seed {config.seed}. Other seeds give others: "
        "compare methods over several."
    ]
    if config.select_on == "validation":
        lines.append(
            ">\n> **Optimistic.** The test split itself chose the masks (select_on = validation, as in the paper): on "
            "data that chose nothing the score would be lower."
        )
    return "\n".join(lines)


def _stage_table(story: Sequence[Event], config: RunConfig, started: RunStarted, dense: DenseFinished | None) -> str:
    chosen = {event.stage: event for event in story if isinstance(event, MaskChosen)}
    rows = [[config.unpruned, "0", "", "", _score(dense.selection), _score(dense.test)]] if dense else []
    plain = config.scored_by
    for done in (event for event in story if isinstance(event, StageFinished)):
        mask = chosen.get(done.stage)
        plain_words = f"{plain} at first; it moved" if config.method in DYNAMIC else f"plain {plain}"
        winner = (plain_words if mask.winner == 0 else f"random, no. {mask.winner}") if mask else ""
        ir = f"{mask.ir:.4f}" if mask else ""
        rows.append(
            [str(done.stage), f"{done.sparsity:.4f}", winner, ir, _score(done.selection), _score(done.test)],
        )
    head = ["stage", "sparsity", "mask", "ir", f"selection {started.metric}", f"test {started.metric}"]
    note = f"ir: introduced randomness of the mask against plain {plain} (Eq. 1 of the paper)."
    if config.select_on == "selection":
        note += " The selection split, held out of the training data, chose the masks; the test split chose nothing."
    if config.task.startswith("glue/"):
        note += " The test split is GLUE's validation split: the labels of its own are not public."
    return f"{_table(head, rows)}\n\n{note}"


def _settings(config: RunConfig, started: RunStarted) -> str:
    """The settings that the result hangs on, by their names in the configuration; those that are off are left out."""
    names = ["task", "method", "criterion", "stages", "scope", "include", "exclude"]
    usual = RunConfig()
    names += [name for name in SELDOM if getattr(config, name) != getattr(usual, name)]
    if config.method.startswith("randomized"):
        names += ["candidates", "randomness", *_randomness(config), "reach", "ties"]
    if config.method == "randomized":
        names += ["emep_epochs", "emep_steps", "emep_learning_rate", *(["racing"] if config.racing else [])]
    names += ["dense_epochs", "max_epochs", "max_steps_per_epoch", "patience", "learning_rate", "weight_decay"]
    names += ["batch_size"] if config.task in ("digits", *HUB) else ["batch_size", "max_length"]
    names += ["augment", "augment_model", "unlabelled", "teacher", "layer_map", "select_on", "selection_rows"]
    if config.distils:
        names += [name for name in RunConfig.model_fields if name.endswith("_weight") and name not in SELDOM]
        names += ["temperature"]
    names += ["seed", "precision"]
    values = {name: getattr(config, name) for name in names}
    for name in {"teacher", "augment_model"} & values.keys():
        values[name] = shown_name(values[name])
    if "emep_learning_rate" in values:
        values["emep_learning_rate"] = config.early_learning_rate
    lines = [f"- {name}: {_plain(value)}" for name, value in values.items() if value not in ((), "")]
    lines.append(f"- device: {started.device}, torch {started.torch}")
    return "\n".join(lines)


def _randomness(config: RunConfig) -> list[str]:
    """What says how random: samples and power, or what they were found from."""
    if config.target_ir is not None:
        return ["target_ir", "samples"]
    return ["samples" if config.randomness == "fixed" else "sampling_ratio", "power"]


def _plain(value: object) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, tuple | list) else "none" if value is None else str(value)
    return f"`{text}`"


def _tensor_table(started: RunStarted, mask: MaskChosen | None) -> str:
    kept = {name: int(facts["kept"]) for name, facts in mask.tensors.items()} if mask else {}
    rows = [
        [f"`{name}`", f"{size:,}", f"{kept[name]:,}", f"{1 - kept[name] / size:.4f}"]
        for name, size in started.prunable.items()
        if name in kept
    ]
    return _table(["tensor", "weights", "kept", "sparsity"], rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _loading(config: RunConfig, auto_class: str | None) -> str:
    if auto_class:
        reads = auto_class == "AutoModelForSequenceClassification"
        names = f"{auto_class}, AutoTokenizer" if reads else auto_class
        lines = [f"from transformers import {names}", "", 'folder = "model"  # the folder of this card']
        lines.append(f"model = {auto_class}.from_pretrained(folder)")
        if reads:
            lines.append("tokenizer = AutoTokenizer.from_pretrained(folder)")
            lines.append(
                'model(**tokenizer("a text", return_tensors="pt")).logits  # of a pair: tokenizer("one", "other")'
            )
        return "```python\n" + "\n".join(lines) + "\n```"
    code = 'from safetensors.torch import load_file\n\nmodel.load_state_dict(load_file(f"{folder}/model.safetensors"))'
    if config.model != OBJECT:
        build = f"model = build_model({json.dumps(shown_name(config.model))}, seed={config.seed})\n"
        code = code.replace("\n\n", f"\nfrom randprune_lab.models import build_model\n\n{build}")
    text = f"```python\n{code}\n```"
    return f"`model` is the network that was given from Python.\n\n{text}" if config.model == OBJECT else text


def checkpoint_card(record: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Any]], *, transformers: bool) -> str:
    """``README.md`` of a checkpoint that ``randprune mask`` wrote: what was done, to which tensors, and what was not.

    Args:
        record: the content of its ``mask.json``.
        tensors: the facts of each tensor that was pruned, in order.
        transformers: it has a configuration, by which transformers loads it.
    """
    name, totals = record["source"]["name"], record["totals"]
    fields: dict[str, str | list[str]] = {"library_name": "transformers" if transformers else "pytorch"}
    if "/" in name and HUB_ID.fullmatch(name):
        fields["base_model"] = name
    settings = [f"- {key}: {_plain(value)}" for key, value in record["settings"].items()]
    settings.append("- made with: " + ", ".join(f"{key} {value}" for key, value in record["made_with"].items()))
    head, rows = ["tensor", "weights", "kept", "sparsity"], []
    for label, facts in tensors.items():
        size, kept = facts["size"], facts["kept"]
        rows.append([f"`{label}`", f"{size:,}", f"{kept:,}", f"{1 - kept / size:.4f}"])
    swapped = ""
    if record["settings"]["candidate"]:
        head.append("swapped")
        rows = [[*row, f"{facts['swapped']:.2%}"] for row, facts in zip(rows, tensors.values(), strict=True)]
        swapped = "swapped: the share of the kept weights that the plain mask would prune. "
    parts = [
        _yaml(fields | {"tags": TAGS}),
        f"# {name}, masked to sparsity {totals['sparsity']:.4g}",
        _masking(record),
        "> **What this is not.** No fine-tuning happened: the weights that are kept have their old values, and the "
        "model does worse than before, at high sparsity far worse. Nor is it smaller or faster: pruned weights are "
        "stored as zeros, in tensors of their usual names, shapes and types. The licence is that of the model it was "
        "made from.",
        "## Settings",
        "\n".join([*settings, *(f"- note: {note}" for note in notes_told(record["notes"]))]),
        "## Tensors",
        f"{swapped}More in `mask.json`.",
        _table(head, rows),
    ]
    return "\n\n".join(parts) + "\n"


def notes_told(notes: Iterable[str]) -> list[str]:
    """Notes of the form "tensor: sentence", with each sentence once: a large network has hundreds of tensors."""
    tensors: dict[str, list[str]] = {}
    for note in notes:
        tensor, _, sentence = note.partition(": ")
        tensors.setdefault(sentence, []).append(tensor)
    return [
        f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {sentence}"
        for sentence, names in tensors.items()
    ]


def _masking(record: Mapping[str, Any]) -> str:
    totals, candidate = record["totals"], record["settings"]["candidate"]
    left = totals["parameters"] - totals["prunable"] + totals["kept"]
    quantized = f", {totals['quantized']} of them quantized" if totals["quantized"] else ""
    text = (
        f"{f'Random mask no. {candidate}' if candidate else 'A plain magnitude mask'} was applied with RandPrune Lab "
        f"(arXiv 2310.13183). Of {totals['prunable']:,} prunable weights in {totals['tensors']} tensors "
        f"{totals['kept']:,} are kept: sparsity {totals['sparsity']:.4f}, {totals['prunable'] / totals['kept']:.1f}x. "
        f"Of all {totals['parameters']:,} parameters {left:,} are left: sparsity {totals['sparsity_of_all']:.4f}. "
        f"{totals['left_alone']} tensors were left alone{quantized}."
    )
    if not candidate:
        return text
    ir = "is infinite" if totals["ir"] is None else f"{totals['ir']:.4g}"
    return (
        f"{text} Introduced randomness ir {ir}; {totals['swapped']:.2%} of the kept weights are others than the plain "
        "mask keeps."
    )
