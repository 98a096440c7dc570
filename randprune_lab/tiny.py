"""Transformers small enough to train from scratch on a laptop: BERT and GPT-2 for ``sentences``, a ViT for digits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from randprune_lab import sentences

if TYPE_CHECKING:
    from transformers import BertForSequenceClassification, GPT2ForSequenceClassification, ViTForImageClassification

INITIALIZER_RANGE = 0.1  # about 1/sqrt(64); transformers' 0.02 suits wide networks and learns slower here


def tiny_bert(labels: int = 2, **changes: Any) -> BertForSequenceClassification:
    """A BERT for what ``sentences.tokenizer()`` gives, freshly initialized from the ambient random state.

    ``changes`` go to ``transformers.BertConfig``, for example ``attn_implementation="eager"``.
    """
    from transformers import BertConfig, BertForSequenceClassification

    words = len(sentences.SPECIAL) + len(sentences.vocabulary())
    sizes: dict[str, Any] = {
        "vocab_size": words,
        "pad_token_id": sentences.SPECIAL.index("[PAD]"),
        "max_position_embeddings": sentences.LONGEST,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "initializer_range": INITIALIZER_RANGE,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "num_labels": labels,
    }
    return BertForSequenceClassification(BertConfig(**(sizes | changes)))


def tiny_gpt2(labels: int = 2, **changes: Any) -> GPT2ForSequenceClassification:
    """A GPT-2 for what ``sentences.tokenizer()`` gives, as large as ``tiny_bert``, initialized in the same way.

    It answers at the last token that is no padding. Without token types: GPT-2 would add the embeddings of the words
    with these numbers. ``changes`` go to ``transformers.GPT2Config``.
    """
    from transformers import GPT2Config, GPT2ForSequenceClassification

    first, last = (sentences.SPECIAL.index(word) for word in ("[CLS]", "[SEP]"))
    sizes: dict[str, Any] = {
        "vocab_size": len(sentences.SPECIAL) + len(sentences.vocabulary()),
        "pad_token_id": sentences.SPECIAL.index("[PAD]"),
        "bos_token_id": first,
        "eos_token_id": last,
        "n_positions": sentences.LONGEST,
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 4,
        "n_inner": 128,
        "initializer_range": INITIALIZER_RANGE,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "use_cache": False,  # of keys and values, for writing texts
        "num_labels": labels,
    }
    return GPT2ForSequenceClassification(GPT2Config(**(sizes | changes)))


def tiny_vit(labels: int = 10, **changes: Any) -> ViTForImageClassification:
    """A ViT for images of shape (1, 8, 8) such as scikit-learn's digits, freshly initialized from the ambient state.

    ``changes`` go to ``transformers.ViTConfig``, for example ``attn_implementation="eager"``.
    """
    from transformers import ViTConfig, ViTForImageClassification

    sizes: dict[str, Any] = {
        "image_size": 8,
        "patch_size": 2,
        "num_channels": 1,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "initializer_range": INITIALIZER_RANGE,
        "num_labels": labels,
    }
    return ViTForImageClassification(ViTConfig(**(sizes | changes)))
