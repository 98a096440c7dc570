"""TinyBERT's augmentation, on a tiny random masked language model and a GloVe file of a few lines."""

import itertools
import json
import math
import os
import random
import re
import shutil
import types

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModelForMaskedLM, BertConfig, BertForMaskedLM, BertModel, BertTokenizerFast

from randprune_lab import augment as module
from randprune_lab import glove as vectors
from randprune_lab.augment import Augmented, augment, augmented_from_cache

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SENTENCE = "the a cat dog bird fish sees likes eats big small red green in house tree film was very good bad not"
WORDS = SENTENCE.split()
PIECES = ["un", "##lucky", "##ly", "##s", "play", "##ing", ",", ".", "!", "'", "t", "don"]
GLOVE = {
    "unlucky": (1, 0, 0),
    "hapless": (0.9, 0.1, 0),
    "lucky": (-1, 0, 0),
    "playing": (0.05, 1, 0),
    "play": (0, 0.9, 0.2),
}
ROWS = [("The cat sees the big dog.",), ("a very good film, not bad!",), ("the  unlucky bird likes playing",)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A masked language model with 39 pieces, as ``save_pretrained`` leaves it."""
    path = tmp_path_factory.mktemp("masked")
    save_model(path, BertForMaskedLM)
    return path


def save_model(path, kind):
    vocabulary = SPECIAL + WORDS + PIECES
    path.mkdir(exist_ok=True)
    (path / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizerFast(vocab={piece: i for i, piece in enumerate(vocabulary)}, do_lower_case=True).save_pretrained(path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(vocabulary) + 3,  # padded, as large models are
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=40,
            initializer_range=0.5,  # answers that depend on the text
        )
        kind(config).save_pretrained(path)


@pytest.fixture
def glove(tmp_path):
    path = tmp_path / "glove.txt"
    path.write_text("".join(f"{word} {' '.join(map(str, vector))}\n" for word, vector in GLOVE.items()))
    return path


def slow_candidates(folder, pieces, at, word, choices):
    """The likeliest whole words for the piece ``at`` of one text: no batch, no padding, no hook."""
    network = AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32).eval()
    vocabulary = SPECIAL + WORDS + PIECES
    masked = ["[CLS]", *pieces[:at], "[MASK]", *pieces[at + 1 :], "[SEP]"]
    with torch.no_grad():
        logits = network(torch.tensor([[vocabulary.index(piece) for piece in masked]])).logits[0, at + 1]
    order = sorted(range(len(vocabulary)), key=lambda number: -float(logits[number]))
    usable = [vocabulary[n] for n in order if vocabulary[n].isalpha() and vocabulary[n] != word]
    return usable[:choices]


def used(rows, result):
    """What stands at each (row, word) of the copies, other than the original."""
    found = {}
    for copy, number in zip(result.texts, result.origin, strict=True):
        for text, original in zip(copy, rows[number], strict=True):
            pairs = zip(re.findall(r"\w+", original), re.findall(r"\w+", text), strict=True)
            for place, (old, new) in enumerate(pairs):
                if old != new:
                    found.setdefault((number, place), set()).add(new)
    return found


def test_single_piece_words_get_the_masked_language_models_likeliest_words(folder):
    rows = ROWS[:2]
    result = augment(rows, model=str(folder), copies=400, chance=0.5, choices=3)
    pieces = [["the", "cat", "sees", "the", "big", "dog", "."], ["a", "very", "good", "film", ",", "not", "bad", "!"]]
    found, places = used(rows, result), 0
    for number, row in enumerate(pieces):
        for place, (at, word) in enumerate((at, word) for at, word in enumerate(row) if word.isalpha()):
            assert found[number, place] == set(slow_candidates(folder, row, at, word, 3)), word
            places += 1
    assert places == len(found) == 12
    assert result.notes == ()


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_batches_change_nothing(folder, batch_size):
    assert augment(ROWS, model=str(folder), batch_size=batch_size) == augment(ROWS, model=str(folder))


def test_each_different_text_is_looked_at_once(folder, monkeypatch):
    seen = []
    plain = module._masked_scores
    monkeypatch.setattr(module, "_masked_scores", lambda inputs, *rest: (seen.extend(inputs), plain(inputs, *rest))[1])
    augment([("the cat",), ("the cat", "the cat"), ("a dog", "the cat")], model=str(folder))
    assert len(seen) == 4
    assert len({tuple(row) for row in seen}) == 4


@pytest.mark.parametrize("family", ["DistilBert", "Roberta", "Electra", "DebertaV2", "ModernBert"])
def test_scores_at_the_masked_place_agree_with_the_whole_output(family):
    kind = getattr(transformers, f"{family}Config")
    small = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    small |= {"intermediate_size": 16, "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = getattr(transformers, f"{family}ForMaskedLM")(kind(**small)).eval()
    tokenizer = types.SimpleNamespace(mask_token_id=7, pad_token_id=1)
    rows = [[3, 7, 5, 6], [3, 4, 5, 9, 7, 11]]
    with torch.no_grad():
        expected = torch.stack([network(torch.tensor([row])).logits[0, row.index(7)] for row in rows])
    torch.testing.assert_close(module._masked_scores(rows, tokenizer, network), expected)


def test_words_of_several_pieces_get_their_nearest_neighbours(folder, glove):
    rows = [("unlucky Playing",)]
    result = augment(rows, model=str(folder), glove=glove, copies=300, chance=0.7, choices=2)
    neighbours = {}
    for word in ("unlucky", "playing"):
        vector = np.array(GLOVE[word], dtype=float)
        cosine = {
            other: vector @ np.array(near) / (np.linalg.norm(vector) * np.linalg.norm(near))
            for other, near in GLOVE.items()
            if other != word
        }
        neighbours[word] = set(sorted(cosine, key=lambda other: -cosine[other])[:2])
    assert used(rows, result) == {(0, 0): neighbours["unlucky"], (0, 1): neighbours["playing"]}
    assert result.notes == ()


def test_neighbours_agree_with_a_plain_search_across_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(vectors, "CHUNK", 7)
    draw = random.Random(5)
    names = ["".join(letters) for letters in itertools.product("abcde", repeat=3)]
    table = {name: [draw.gauss(0, 1) for _ in range(6)] for name in names}
    path = tmp_path / "glove.txt"
    lines = [f"{name} {' '.join(f'{value:.6f}' for value in vector)}" for name, vector in table.items()]
    lines.insert(3, "Upper 1 1 1 1 1 1")  # no neighbour: not in lower case
    lines.insert(4, ". . . 1 1 1 1 1 1")  # as in the 840B file
    lines.insert(5, "nought 0 0 0 0 0 0")
    path.write_text("\n".join(lines))

    def cosine(one, other):
        return sum(a * b for a, b in zip(one, other, strict=True)) / math.sqrt(
            sum(a * a for a in one) * sum(b * b for b in other)
        )

    asked = {"abc", "eee", "aaa", "absent"}
    found = vectors.glove_neighbours(asked, path, 4)
    assert found.keys() == asked - {"absent"}
    for word, near in found.items():
        others = [name for name in names if name != word]
        assert near == sorted(others, key=lambda name: -cosine(table[word], table[name]))[:4]


def test_without_glove_words_of_several_pieces_stay_and_it_is_said_once(folder, glove):
    result = augment(ROWS, model=str(folder))
    assert result.notes == ("no GloVe file: words of several pieces are left as they are (2 different words).",)
    copies = [copy[0] for copy, number in zip(result.texts, result.origin, strict=True) if number == 2]
    assert copies
    assert all("unlucky" in copy and "playing" in copy for copy in copies)
    rows = [("the unlucky unluckyly",)]
    assert augment(rows, model=str(folder), glove=glove).notes == (
        "not in glove.txt: words of several pieces are left as they are (1 different words).",
    )


def test_share_of_replaced_words_is_the_chance(folder):
    """40,000 words, four standard deviations: a false alarm once in 16,000 seeds."""
    draw = random.Random(1)
    texts = [(" ".join(draw.choice(WORDS) for _ in range(10)),) for _ in range(20)]
    result = augment(texts, model=str(folder), copies=200, chance=0.4, seed=3)
    # a copy without a replacement is left out: 0.6**10 of them; other losses are rarer than once in 1e6 copies
    changed = sum(
        old != new
        for copy, number in zip(result.texts, result.origin, strict=True)
        for old, new in zip(texts[number][0].split(), copy[0].split(), strict=True)
    )
    words = 20 * 200 * 10
    assert abs(changed - 0.4 * words) < 4 * math.sqrt(words * 0.4 * 0.6)
    assert abs(len(result.texts) - 4000 * (1 - 0.6**10)) < 30


def test_candidates_are_drawn_evenly():
    """Chi-square with 14 degrees of freedom beyond 41: once in 5,000 seeds."""
    draw = random.Random(8)
    counts = dict.fromkeys(WORDS[:15], 0)
    for _ in range(6000):
        counts[module._replaced("house", {("house", 0): WORDS[:15]}, 1.0, draw)] += 1
    assert sum((count - 400) ** 2 / 400 for count in counts.values()) < 41


def test_everything_but_the_words_stays(folder):
    row = ("  The cat,\tsees 'the' dog!\n", "don't")
    result = augment([row], model=str(folder), chance=1.0, copies=5)
    assert result.texts
    for copy in result.texts:
        assert re.sub(r"\w+", "x", copy[0]) == re.sub(r"\w+", "x", row[0])
        assert copy[1] == "don't"  # one word of several pieces


def test_copies_are_new(folder):
    rows = [("the cat",), ("a", "the dog")]
    result = augment(rows, model=str(folder), copies=3000, chance=0.5, choices=2)
    assert result.origin == sorted(result.origin)
    for number, row in enumerate(rows):
        copies = [copy for copy, origin in zip(result.texts, result.origin, strict=True) if origin == number]
        assert len(copies) == len(set(copies)) == 3 ** sum(len(text.split()) for text in row) - 1  # all there are
        assert row not in copies


def test_held_out_rows_are_avoided_whatever_their_case(folder):
    rows = [("the cat",)]
    plain = augment(rows, model=str(folder), copies=300, choices=2)
    avoid = [(plain.texts[0][0].upper().replace(" ", "  "),), plain.texts[3]]
    result = augment(rows, model=str(folder), copies=300, choices=2, avoid=avoid)
    assert result.texts == [copy for copy in plain.texts if copy not in (plain.texts[0], plain.texts[3])]
    assert result.notes == ("2 copies equalled a held-out row and were left out.",)


def test_same_seed_same_copies_and_the_global_state_stays(folder):
    before = torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    one = augment(ROWS, model=str(folder), seed=1)
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert before[1:] == (random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002
    assert one == augment(ROWS, model=str(folder), seed=1)
    assert one != augment(ROWS, model=str(folder), seed=2)


def test_nothing_is_printed_and_transformers_talks_as_before(folder, capfd):
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    augment(ROWS, model=str(folder))
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_texts_beyond_the_models_limit_are_seen_through_a_window(folder):
    row = (" ".join(itertools.islice(itertools.cycle(WORDS), 100)),)
    result = augment([row], model=str(folder), copies=60, chance=0.5)
    assert len(used([row], result)) == 100


def test_empty_rows_and_texts_without_words(folder):
    assert augment([], model=str(folder)) == Augmented([], [], ())
    assert augment([("",), ("...", " ")], model=str(folder)) == Augmented([], [], ())
    assert augment(ROWS[:1], model=str(folder), chance=0) == Augmented([], [], ())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"copies": 0}, "copies = 0: must be at least 1"),
        ({"copies": 2.5}, "copies = 2.5: must be a whole number"),
        ({"choices": 0}, "choices = 0: must be at least 1"),
        ({"batch_size": 0}, "batch_size = 0: must be at least 1"),
        ({"chance": 1.5}, r"chance = 1.5: must lie in \[0, 1\]"),
        ({"chance": math.nan}, r"chance = nan: must lie in \[0, 1\]"),
        ({"rows": ["a text"]}, "rows, row 0: 'a text': must be a tuple of texts"),
        ({"rows": [("a",), (None,)]}, "rows, row 1: .*must be a tuple of texts"),
        ({"avoid": ["a text"]}, "avoid, row 0: 'a text': must be a tuple of texts"),
    ],
)
def test_bad_settings(folder, settings, message):
    with pytest.raises(ValueError, match=message):
        augment(settings.pop("rows", ROWS), model=str(folder), **settings)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("dog 1 2", "line 3: must be a word and 3 finite numbers as in line 1"),
        ("dog 1 2 3 4", "line 3: "),
        ("dog 1 two 3", "line 3: .*two"),
        ("dog 1 nan 3", "line 3: .*not finite"),
        ("", "line 3: "),
        (b"d\xff 1 2 3", "line 3: .*utf-8"),
    ],
)
def test_a_malformed_glove_line_is_named(folder, tmp_path, line, message):
    path = tmp_path / "glove.txt"
    line = line if isinstance(line, bytes) else line.encode()
    path.write_bytes(b"unlucky 1 2 3\ncat 4 5 6\n" + line + b"\nbird 7 8 9\n")
    with pytest.raises(ValueError, match=message):
        augment(ROWS, model=str(folder), glove=path)


def test_a_missing_glove_file(folder, tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        augment(ROWS, model=str(folder), glove=tmp_path / "absent.txt")


def test_a_model_without_the_head_is_refused(tmp_path):
    save_model(tmp_path / "body", BertModel)
    with pytest.raises(ValueError, match=r"no masked-language-model head: cls.predictions.*Pass augment_model="):
        augment(ROWS, model=str(tmp_path / "body"))


def test_a_tokenizer_without_mask_is_refused(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast

    path = tmp_path / "gpt2"
    GPT2LMHeadModel(GPT2Config(vocab_size=9, n_embd=4, n_layer=1, n_head=1)).save_pretrained(path)
    GPT2TokenizerFast(vocab={"a": 0, "Ġa": 1, "<|endoftext|>": 2}, merges=[]).save_pretrained(path)
    with pytest.raises(ValueError, match=r"no mask token, as with GPT-2.*Pass augment_model="):
        augment(ROWS, model=str(path))


def test_a_pickle_or_nothing_is_refused(folder, tmp_path):
    path = tmp_path / "pickle"
    shutil.copytree(folder, path)
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    for model in (path, tmp_path / "absent"):
        with pytest.raises(ValueError, match=r"cannot predict masked words.*Pass augment_model="):
            augment(ROWS, model=str(model))


def test_the_cache_keeps_and_mends(folder, glove, tmp_path, monkeypatch):
    model = tmp_path / "model"
    shutil.copytree(folder, model)
    settings = {"cache": tmp_path / "cache", "model": str(model), "glove": glove, "avoid": [("b",), ("a",)]}
    first = augmented_from_cache(ROWS, **settings)
    plain = {name: value for name, value in settings.items() if name != "cache"}
    assert first == augment(ROWS, **plain)
    (file,) = (tmp_path / "cache" / "augment").iterdir()
    monkeypatch.setattr(module, "_load", lambda _: pytest.fail("not from the cache"))
    assert augmented_from_cache(ROWS, **settings | {"batch_size": 3, "avoid": [("A",), ("b",), ("b",)]}) == first
    monkeypatch.undo()
    for damage in (b"", b'{"texts": [["a"', b"[]", b'{"texts": [["a"]], "origin": [], "notes": []}'):
        file.write_bytes(damage)
        assert augmented_from_cache(ROWS, **settings) == first
        assert json.loads(file.read_text())["origin"] == first.origin
    for change in ({"seed": 1}, {"copies": 3}, {"chance": 0.1}, {"choices": 2}, {"avoid": [("c",)]}, {"glove": None}):
        augmented_from_cache(ROWS, **settings | change)
    augmented_from_cache(ROWS[:2], **settings)
    assert len(list(file.parent.iterdir())) == 8
    os.utime(model / "model.safetensors", ns=(1, 1))
    augmented_from_cache(ROWS, **settings)
    os.utime(glove, ns=(1, 1))
    augmented_from_cache(ROWS, **settings)
    assert len(list(file.parent.iterdir())) == 10
    with pytest.raises(TypeError, match="copy"):
        augmented_from_cache(ROWS, **settings, copy=3)


def test_a_model_without_masked_head_among_the_real_ones(test_data):
    with pytest.raises(ValueError, match="Pass augment_model="):
        augment(ROWS, model=str(test_data / "models" / "minilm-l3"))
