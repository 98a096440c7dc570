"""Text tasks for the tests: GLUE in the Hub's layout, tables, small models with a tokenizer."""

import json
import random
from pathlib import Path

import datasets
import torch

from randprune_lab import sentences
from randprune_lab.tiny import tiny_bert

# What the Hub's nyu-mll/glue says of each: columns, classes, primary metric (of the paper's tables) and the others.
GLUE = {
    "cola": (("sentence",), ["unacceptable", "acceptable"], ("matthews", "accuracy")),
    "sst2": (("sentence",), ["negative", "positive"], ("accuracy",)),
    "mrpc": (("sentence1", "sentence2"), ["not_equivalent", "equivalent"], ("f1", "accuracy")),
    "stsb": (("sentence1", "sentence2"), None, ("spearman", "pearson")),
    "qqp": (("question1", "question2"), ["not_duplicate", "duplicate"], ("f1", "accuracy")),
    "mnli": (("premise", "hypothesis"), ["entailment", "neutral", "contradiction"], ("accuracy",)),
    "qnli": (("question", "sentence"), ["entailment", "not_entailment"], ("accuracy",)),
    "rte": (("sentence1", "sentence2"), ["entailment", "not_entailment"], ("accuracy",)),
}


def phrases(rows: int, seed: int = 0) -> list[str]:
    """Different texts of the tiny BERT's own words, 2 to 8 of them."""
    draw, words = random.Random(seed), sentences.vocabulary()
    found: dict[str, None] = {}
    while len(found) < rows:
        found[" ".join(draw.choices(words, k=draw.randint(2, 8)))] = None
    return list(found)


def table(task: str, rows: int, seed: int) -> datasets.Dataset:
    columns, names, _ = GLUE[task]
    made = {column: phrases(rows, 10 * seed + place) for place, column in enumerate(columns)}
    kind = datasets.ClassLabel(names=names) if names else datasets.Value("float32")
    draw = random.Random(seed)
    labels = [row % len(names) if names else round(5 * draw.random(), 2) for row in range(rows)]
    draw.shuffle(labels)
    made |= {"label": labels, "idx": list(range(rows))}
    kinds = {column: datasets.Value("string") for column in columns} | {"label": kind, "idx": datasets.Value("int32")}
    return datasets.Dataset.from_dict(made, features=datasets.Features(kinds))


def hub(folder: Path, *tasks: str, train: int = 60, reported: int = 23) -> Path:
    """A folder laid out as nyu-mll/glue is: parquet files, and a README whose header lists them."""
    lines = ["---", "configs:"]
    for task in tasks:
        more = ("validation_matched", "validation_mismatched") if task == "mnli" else ("validation",)
        lines += [f"- config_name: {task}", "  data_files:"]
        for number, split in enumerate(("train", *more)):
            file = f"{task}/{split}-00000-of-00001.parquet"
            (folder / task).mkdir(parents=True, exist_ok=True)
            table(task, reported if number else train, number).to_parquet(folder / file)
            lines += [f"  - split: {split}", f"    path: {file}"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))
    return folder


def frame(labels: list, **columns: list[str]) -> list[dict]:
    return [
        dict(zip(columns, row, strict=True)) | {"label": label}
        for *row, label in zip(*columns.values(), labels, strict=True)
    ]


def write(path: Path, rows: list[dict]) -> Path:
    if path.suffix in (".jsonl", ".json"):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
    else:
        mark = "\t" if path.suffix == ".tsv" else ","
        lines = [mark.join(rows[0])] + [mark.join(str(value) for value in row.values()) for row in rows]
        path.write_text("\n".join(lines) + "\n")
    return path


def saved_bert(folder: Path, *, limit: int | None, **changes) -> Path:
    """A tiny BERT and its tokenizer in a folder, as one would download it; ``limit``: what the tokenizer says."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tiny_bert(**changes).save_pretrained(folder)
    tokenizer = sentences.tokenizer()
    tokenizer.model_max_length = limit or int(1e30)
    tokenizer.save_pretrained(folder)
    return folder


def gpt2(folder: Path) -> Path:
    """GPT-2, tiny, with a tokenizer that has an end but no padding token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2ForSequenceClassification, PreTrainedTokenizerFast

    words = {word: number for number, word in enumerate(["<|endoftext|>", "[UNK]", *sentences.vocabulary()])}
    backend = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|endoftext|>", unk_token="[UNK]", model_max_length=32
    )
    assert tokenizer.pad_token_id is None
    sizes = {"vocab_size": len(words), "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = GPT2ForSequenceClassification(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))
    network.config.architectures = ["GPT2LMHeadModel"]  # a head of its own is to come
    network.transformer.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
