"""The generated sentences: labels that only the head noun decides, and a tokenizer that survives saving."""

import json
import random
import subprocess
import sys
from collections import Counter

import pytest
from transformers import AutoTokenizer

from randprune_lab import sentences

PLURALS = {noun + "s" for noun in sentences.NOUNS}


@pytest.fixture(scope="module")
def corpus():
    return sentences.corpus()


def nouns(text: str) -> list[str]:
    return [word for word in text.split() if word in PLURALS or word in sentences.NOUNS]


def head(text: str) -> str:
    """The subject, found by parsing: skip a fronted PREP long, then take the noun of the next phrase."""
    words = [word for word in text.split() if word not in sentences.ADJECTIVES]
    at = 0
    while words[at] in sentences.PREPOSITIONS:  # PREP the NOUN
        at += 3
    assert words[at] == "the"
    return words[at + 1]


def accuracy(guesses: list[float], labels: list[int]) -> float:
    return sum(guess == label for guess, label in zip(guesses, labels, strict=True)) / len(labels)


def test_sizes_and_balance(corpus):
    assert {split: len(texts) for split, (texts, _) in corpus.items()} == {
        "train": 6000,
        "selection": 1000,
        "test": 1000,
    }
    for texts, labels in corpus.values():
        assert Counter(labels) == {0: len(texts) // 2, 1: len(texts) // 2}


def test_no_text_comes_twice(corpus):
    everything = [text for texts, _ in corpus.values() for text in texts]
    assert len(set(everything)) == len(everything) == 8000


def test_the_head_noun_decides(corpus):
    for texts, labels in corpus.values():
        assert labels == [int(head(text) in PLURALS) for text in texts]


def test_length_bag_of_words_and_nearest_noun_say_nothing(corpus):
    """Every such feature has both labels equally often, so that no rule of any kind beats one half on it."""
    features = (
        lambda text: len(text.split()),
        lambda text: len(text),
        lambda text: nouns(text)[-1],
        lambda text: (tuple(sorted(text.split())), nouns(text)[-1]),
    )
    for texts, labels in corpus.values():
        for feature in features:
            seen = Counter((feature(text), label) for text, label in zip(texts, labels, strict=True))
            assert all(seen[value, 0] == seen[value, 1] for value, _ in seen)


def test_simple_rules_fail(corpus):
    texts, labels = corpus["test"]
    for position in (0, 1, 2, -1):
        assert 0.4 < accuracy([nouns(text)[position] in PLURALS for text in texts], labels) < 0.6, position


def test_bag_of_words_classifier_fails(corpus):
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    (train, fit), (test, labels) = corpus["train"], corpus["test"]
    words = CountVectorizer().fit(train)
    model = LogisticRegression(max_iter=500).fit(words.transform(train), fit)
    assert accuracy(model.predict(words.transform(test)).tolist(), labels) == 0.5  # exactly: pairs share their words


def test_every_kind_of_text_and_word_occurs(corpus):
    texts = corpus["train"][0]
    assert {word for text in texts for word in text.split()} == set(sentences.vocabulary())
    fronted = sum(text.split()[0] in sentences.PREPOSITIONS for text in texts) / len(texts)
    assert 0.4 < fronted < 0.7
    assert {len(nouns(text)) for text in texts} == {3, 4, 5, 6, 7}
    assert all(len(set(nouns(text))) == len(nouns(text)) for text in texts)


def test_same_seed_same_texts():
    assert sentences.generate(50, 3) == sentences.generate(50, 3)
    assert sentences.generate(50, 3) != sentences.generate(50, 4)
    texts, labels = sentences.generate(50, 3)
    assert len(set(texts)) == 50
    assert sum(labels) == 25


def test_same_texts_in_every_process():
    """Python's hash differs between processes; nothing may depend on it."""
    code = "import json; from randprune_lab import sentences; print(json.dumps(sentences.corpus()['test'][0][:20]))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(printed) == sentences.corpus()["test"][0][:20]


def test_global_random_state_is_left_alone():
    before = random.getstate()
    sentences.corpus()
    assert random.getstate() == before


@pytest.mark.parametrize(("rows", "fix"), [(0, 2), (-4, 2), (7, 8)])
def test_impossible_number_of_rows(rows, fix):
    with pytest.raises(ValueError, match=rf"rows = {rows}: must be even and at least 2.* Pass {fix}\."):
        sentences.generate(rows, 0)
    with pytest.raises(ValueError, match="must be a whole number"):
        sentences.generate(2.5, 0)


def test_one_id_a_word(corpus):
    tokenizer = sentences.tokenizer()
    for texts, _ in corpus.values():
        ids = tokenizer(texts)["input_ids"]
        assert [len(row) for row in ids] == [len(text.split()) + 2 for text in texts]
        assert max(map(len, ids)) <= tokenizer.model_max_length == sentences.LONGEST
        assert not any(tokenizer.unk_token_id in row for row in ids)
    assert len(tokenizer) == len(sentences.SPECIAL) + len(sentences.vocabulary())


def test_special_tokens_case_and_padding():
    tokenizer = sentences.tokenizer()
    assert tokenizer.convert_ids_to_tokens(tokenizer("The DOG xylophones")["input_ids"]) == (
        ["[CLS]", "the", "dog", "[UNK]", "[SEP]"]
    )
    batch = tokenizer(["the dog", "the old dogs"], padding=True)
    assert batch["input_ids"][0][-1] == tokenizer.pad_token_id == 0
    assert batch["attention_mask"] == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert tokenizer("the dog", "the cat")["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1]
    assert tokenizer.mask_token_id == tokenizer("[MASK]")["input_ids"][1]
    assert len(tokenizer("the " * 100, truncation=True)["input_ids"]) == sentences.LONGEST


def test_tokenizer_survives_saving(tmp_path, corpus):
    tokenizer = sentences.tokenizer()
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    texts = [*corpus["test"][0][:100], "The Zebra", ""]  # an empty one too
    assert dict(again(texts, padding=True)) == dict(tokenizer(texts, padding=True))
    assert again.model_max_length == tokenizer.model_max_length
    assert again.padding_side == "right"
