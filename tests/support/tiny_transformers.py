"""Random transformers of every supported kind, as small as they can be, and checkpoints of them with a tokenizer."""

import csv
import json
import random
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from tokenizers import models, pre_tokenizers, trainers
from torch import nn

TEXT = ("bert", "bert-deep", "roberta", "distilbert", "electra", "deberta-v2", "gpt2")
ARCHITECTURES = (*TEXT, "vit")
CLASSES = ("bad", "good")
BAD, GOOD, OTHER = ("sad", "dull"), ("fun", "warm"), ("a", "the", "plot", "film", "cast", "end")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
POSITIONS = 24
COMMON = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "initializer_range": 0.3,  # so that a random network has opinions
}


def sentences(rows: int, seed: int) -> tuple[list[str], list[str]]:
    """Texts of 2 to 6 words, one of which decides the class; class names."""
    draw = random.Random(seed)
    texts, labels = [], []
    for row in range(rows):
        words = draw.choices(OTHER, k=draw.randint(1, 5))
        words.insert(draw.randint(0, len(words)), draw.choice(GOOD if row % 2 else BAD))
        texts.append(" ".join(words))
        labels.append(CLASSES[row % 2])
    return texts, labels


def table(path: Path, rows: int, seed: int) -> Path:
    """The sentences as a .csv file with the columns sentence and label."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sentence", "label"])
        writer.writerows(zip(*sentences(rows, seed), strict=True))
    return path


def dataset(folder: Path, *, train: int = 40, validation: int = 24) -> str:
    """Two tables, as ``--dataset`` takes them."""
    return f"{table(folder / 'train.csv', train, 0)},{table(folder / 'validation.csv', validation, 1)}"


def tokenizer(name: str, longest: int = POSITIONS) -> Any:
    """The tokenizer that goes with an architecture: WordPiece, byte-level BPE, or Unigram."""
    words = (*BAD, *GOOD, *OTHER)
    if name in ("bert", "bert-deep", "electra", "distilbert"):
        kind = transformers.DistilBertTokenizer if name == "distilbert" else transformers.BertTokenizer
        return kind(vocab={word: at for at, word in enumerate((*SPECIAL, *words))}, model_max_length=longest)
    if name == "deberta-v2":
        pieces = [(word, 0.0) for word in SPECIAL] + [(f"▁{word}", -1.0) for word in words]
        return transformers.DebertaV2Tokenizer(vocab=pieces, model_max_length=longest)
    special = ["<|endoftext|>"] if name == "gpt2" else ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.train_from_iterator(
        sentences(40, 0)[0], trainers.BpeTrainer(vocab_size=60, special_tokens=special, show_progress=False)
    )
    found = json.loads(bpe.to_str())["model"]
    kind = transformers.GPT2Tokenizer if name == "gpt2" else transformers.RobertaTokenizer
    merges = [tuple(pair) for pair in found["merges"]]
    return kind(vocab=found["vocab"], merges=merges, model_max_length=longest)


def build(name: str, *, seed: int = 0, **changes: Any) -> nn.Module:
    """A classifier with random weights, in evaluation mode; ``changes`` go to its configuration."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        kind, settings = _settings(name)
        attention = {key: changes.pop(key) for key in ("attn_implementation",) if key in changes}
        config = getattr(transformers, f"{kind}Config")(**(settings | changes), **attention)
        head = "ForImageClassification" if name == "vit" else "ForSequenceClassification"
        return getattr(transformers, kind + head)(config).eval()


def _settings(name: str) -> tuple[str, dict[str, Any]]:
    if name == "vit":
        return "ViT", COMMON | {"image_size": 8, "patch_size": 4, "num_channels": 1, "num_labels": 10}
    words = len(tokenizer(name))
    text = COMMON | {"vocab_size": words, "max_position_embeddings": POSITIONS}
    if name == "gpt2":
        sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_inner": 24, "n_positions": POSITIONS}
        return "GPT2", sizes | {"vocab_size": words, "initializer_range": 0.3, "bos_token_id": 0, "eos_token_id": 0}
    if name == "distilbert":
        sizes = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "initializer_range": 0.3}
        return "DistilBert", sizes | {"vocab_size": words, "max_position_embeddings": POSITIONS}
    if name == "roberta":  # positions are counted from the padding token's number plus 1
        return "Roberta", text | {"max_position_embeddings": POSITIONS + 2, "type_vocab_size": 1, "pad_token_id": 1}
    if name == "electra":
        return "Electra", text | {"embedding_size": 8}
    if name == "deberta-v2":  # as microsoft/deberta-v3-base has it
        return "DebertaV2", text | {
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_biased_input": False,
            "share_att_key": True,
            "norm_rel_ebd": "layer_norm",
            "position_buckets": 4,
            "max_relative_positions": -1,
            "type_vocab_size": 0,
        }
    return "Bert", text | ({"num_hidden_layers": 5} if name == "bert-deep" else {})


def checkpoint(folder: Path, name: str, *, half: bool = False, seed: int = 0, **changes: Any) -> str:
    """Weights, configuration and tokenizer in ``folder``, as ``save_pretrained`` writes them; returns its name."""
    model = build(name, seed=seed, **changes)
    (model.half() if half else model).save_pretrained(folder)
    if name != "vit":
        tokenizer(name).save_pretrained(folder)
    return str(folder)


def batch(name: str, rows: int = 4, extra: int = 0, seed: int = 0) -> dict[str, torch.Tensor]:
    """What the model takes, padded to the longest and ``extra`` columns more."""
    if name == "vit":
        return {"pixel_values": torch.rand(rows, 1, 8, 8, generator=torch.Generator().manual_seed(seed))}
    made = tokenizer(name)
    made.pad_token = made.pad_token or made.eos_token
    longest = max(len(ids) for ids in made(sentences(rows, seed)[0])["input_ids"])
    return dict(made(sentences(rows, seed)[0], padding="max_length", max_length=longest + extra, return_tensors="pt"))


def quiet() -> None:
    """Transformers says on standard error what no test reads."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


quiet()
