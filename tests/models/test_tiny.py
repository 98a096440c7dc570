"""The tiny transformers: shapes, what they return, what is pruned, and that those of texts learn from scratch."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification

from randprune_lab import sentences, tiny
from randprune_lab.config import RunConfig
from randprune_lab.distill import features, loss_terms
from randprune_lab.models import MODELS, build_model, is_transformer, prunable_weights
from randprune_lab.pretrained import TINY, load_tokenizer

BUILDERS = {"bert": tiny.tiny_bert, "gpt2": tiny.tiny_gpt2, "vit": tiny.tiny_vit}
TEXTS = ("bert", "gpt2")


def fresh(name: str, seed: int = 0, **changes) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return BUILDERS[name](**changes).eval()


def inputs(name: str) -> dict:
    if name == "vit":
        return {"pixel_values": torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))}
    return tokens(name, sentences.generate(4, 0)[0][:3])


def tokens(name: str, texts: list[str], padding="longest") -> dict:
    return dict(load_tokenizer(f"tiny-{name}")(texts, padding=padding, return_tensors="pt"))


@pytest.mark.parametrize(("name", "labels"), [("bert", 2), ("gpt2", 2), ("vit", 10)])
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
    assert fresh("gpt2", n_layer=3).config.num_hidden_layers == 3
    assert fresh("vit", patch_size=4).vit.embeddings.position_embeddings.shape[1] == 5  # 2 x 2 patches and [CLS]


@pytest.mark.parametrize("name", TEXTS)
def test_padding_changes_nothing(name):
    model, tokenizer = fresh(name, attn_implementation="eager"), load_tokenizer(f"tiny-{name}")
    text = sentences.generate(2, 0)[0][:1]
    with torch.no_grad():
        plain = model(**tokens(name, text)).logits
        padded = model(**tokens(name, text, padding="max_length")).logits
    torch.testing.assert_close(plain, padded, atol=1e-6, rtol=1e-5)
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert model.config.vocab_size == len(tokenizer)


@pytest.mark.parametrize("name", TEXTS)
def test_what_a_student_learns_is_the_same_with_padding(name):
    """Every term of the distillation, padded to the longest text and to the longest there can be."""
    config = RunConfig(task="sentences", model=f"tiny-{name}", hidden_weight=1, attention_weight=1)
    texts, labels = sentences.generate(6, 1)
    networks = [fresh(name, seed, attn_implementation="eager") for seed in (0, 1)]

    def terms(padding: str) -> dict:
        batch = tokens(name, texts, padding)
        student, teacher = (features(network, batch, hidden=True, scores=True) for network in networks)
        return loss_terms(student, teacher, batch, torch.tensor(labels), config)

    with torch.no_grad():
        short, long = terms("longest"), terms("max_length")
    assert set(short) == {"task", "logits", "hidden", "attention"}
    for term, value in short.items():
        assert value > 0.01, term
        torch.testing.assert_close(value, long[term], msg=term)


def test_gpt2_sees_no_token_types():
    """They would be looked up among the words, and change every hidden state."""
    assert "token_type_ids" in tokens("bert", ["the dog"])
    assert set(tokens("gpt2", ["the dog"])) == {"input_ids", "attention_mask"}


def test_gpt2_answers_at_the_last_token_and_looks_back_only():
    model, batch = fresh("gpt2"), inputs("gpt2")
    last = batch["attention_mask"].sum(1) - 1
    with torch.no_grad():
        hidden = model.transformer(**batch).last_hidden_state
        by_hand = hidden[torch.arange(3), last] @ model.score.weight.T
        other = batch | {"input_ids": batch["input_ids"].clone()}
        other["input_ids"][0, last[0]] = 7  # another word at the end
        changed = model.transformer(**other).last_hidden_state
        torch.testing.assert_close(model(**batch).logits, by_hand)
    torch.testing.assert_close(hidden[0, : last[0]], changed[0, : last[0]])
    assert not torch.allclose(hidden[0, last[0]], changed[0, last[0]])


def test_names_are_models():
    assert set(TINY) == {f"tiny-{name}" for name in BUILDERS} < set(MODELS)
    assert all(is_transformer(name) for name in TINY)


@pytest.mark.parametrize("name", BUILDERS)
def test_built_by_name(name):
    images = name == "vit"
    heads = {"outputs": 3, "labels": ("a", "b", "c"), "regression": False, "images": images, "eager": True}
    model = build_model(f"tiny-{name}", 0, **heads)
    assert (model.config.num_labels, model.config.id2label[2]) == (3, "c")
    assert model.config._attn_implementation == "eager"
    with pytest.raises(ValueError, match="does not take"):
        build_model(f"tiny-{name}", 0, **heads | {"images": not images})


def test_what_is_pruned_of_gpt2():
    """Four matrices a block: queries, keys and values in one; as large as BERT's six."""
    weights = prunable_weights(fresh("gpt2"))
    block = {"attn.c_attn": (64, 192), "attn.c_proj": (64, 64), "mlp.c_fc": (64, 128), "mlp.c_proj": (128, 64)}
    expected = {f"transformer.h.{at}.{key}.weight": shape for at in range(2) for key, shape in block.items()}
    assert {key: tuple(weight.shape) for key, weight in weights.items()} == expected
    sizes = [sum(weight.numel() for weight in prunable_weights(fresh(name)).values()) for name in TEXTS]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize(
    ("name", "auto"),
    [
        ("bert", AutoModelForSequenceClassification),
        ("gpt2", AutoModelForSequenceClassification),
        ("vit", AutoModelForImageClassification),
    ],
)
def test_survives_saving(name, auto, tmp_path):
    model = fresh(name)
    model.save_pretrained(tmp_path)
    again = auto.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(again(**inputs(name)).logits, model(**inputs(name)).logits)


@pytest.mark.parametrize("name", [TEXTS[0], *(pytest.param(name, marks=pytest.mark.statistics) for name in TEXTS[1:])])
def test_learns_sentences_from_scratch(name):
    """Batches of 64, AdamW at a constant 1e-3: a few epochs, and sentences that it never saw are nearly all right."""
    corpus, model = sentences.corpus(), fresh(name).train()
    data = {split: (tokens(name, texts), torch.tensor(labels)) for split, (texts, labels) in corpus.items()}

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
