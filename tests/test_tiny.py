"""The tiny transformers: shapes, what they return, and that BERT learns from scratch."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification

from randprune_lab import sentences, tiny

BUILDERS = {"bert": tiny.tiny_bert, "vit": tiny.tiny_vit}


def fresh(name: str, seed: int = 0, **changes) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return BUILDERS[name](**changes).eval()


def inputs(name: str) -> dict:
    if name == "vit":
        return {"pixel_values": torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))}
    return dict(sentences.tokenizer()(sentences.generate(4, 0)[0][:3], padding=True, return_tensors="pt"))


@pytest.mark.parametrize(("name", "labels"), [("bert", 2), ("vit", 10)])
def test_shapes(name, labels):
    with torch.no_grad():
        assert fresh(name)(**inputs(name)).logits.shape == (3, labels)
        assert fresh(name, labels=5)(**inputs(name)).logits.shape == (3, 5)


@pytest.mark.parametrize("name", BUILDERS)
def test_hidden_states_and_attention(name):
    model = fresh(name, attn_implementation="eager")
    with torch.no_grad():
        out = model(**inputs(name), output_hidden_states=True, output_attentions=True)
        fast = fresh(name)(**inputs(name)).logits
    blocks, heads = model.config.num_hidden_layers, model.config.num_attention_heads
    length = out.hidden_states[0].shape[1]
    assert [state.shape for state in out.hidden_states] == [(3, length, model.config.hidden_size)] * (blocks + 1)
    assert [attention.shape for attention in out.attentions] == [(3, heads, length, length)] * blocks
    torch.testing.assert_close(out.logits, fast)


@pytest.mark.parametrize("name", BUILDERS)
def test_ambient_random_state_decides(name):
    one, same, other = (fresh(name, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not all(torch.equal(one[key], other[key]) for key in one)


def test_changes_win():
    assert fresh("bert", num_hidden_layers=1, hidden_size=32).config.hidden_size == 32
    assert fresh("vit", patch_size=4).vit.embeddings.position_embeddings.shape[1] == 5  # 2 x 2 patches and [CLS]


def test_padding_changes_nothing():
    model, tokenizer = fresh("bert"), sentences.tokenizer()
    text = sentences.generate(2, 0)[0][0]
    with torch.no_grad():
        plain = model(**tokenizer(text, return_tensors="pt")).logits
        padded = model(**tokenizer(text, padding="max_length", return_tensors="pt")).logits
    torch.testing.assert_close(plain, padded, atol=1e-6, rtol=1e-5)
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert model.config.vocab_size == len(tokenizer)


@pytest.mark.parametrize(
    ("name", "auto"), [("bert", AutoModelForSequenceClassification), ("vit", AutoModelForImageClassification)]
)
def test_survives_saving(name, auto, tmp_path):
    model = fresh(name)
    model.save_pretrained(tmp_path)
    again = auto.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(again(**inputs(name)).logits, model(**inputs(name)).logits)


def test_bert_learns_sentences_from_scratch():
    """Batches of 64, AdamW at a constant 1e-3: a few epochs, and sentences that it never saw are nearly all right."""
    corpus, tokenizer, model = sentences.corpus(), sentences.tokenizer(), fresh("bert").train()
    data = {
        split: (tokenizer(texts, padding=True, return_tensors="pt"), torch.tensor(labels))
        for split, (texts, labels) in corpus.items()
    }

    def logits(split: str, rows: torch.Tensor) -> torch.Tensor:
        return model(**{key: value[rows] for key, value in data[split][0].items()}).logits

    def accuracy(split: str) -> float:
        labels = data[split][1]
        with torch.no_grad():
            return float((logits(split, torch.arange(len(labels))).argmax(1) == labels).float().mean())

    generator, step = torch.Generator().manual_seed(0), 0
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    for _ in range(8):
        for rows in torch.randperm(6000, generator=generator).split(64):
            step += 1
            optimizer.param_groups[0]["lr"] = 1e-3 * min(1.0, step / 75)
            loss = nn.functional.cross_entropy(logits("train", rows), data["train"][1][rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if accuracy("selection") > 0.97:
            break
    assert accuracy("test") > 0.95
