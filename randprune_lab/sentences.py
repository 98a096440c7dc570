"""Synthetic English: which number must the verb have? Generated from a small grammar, the same on every machine.

    text     = [PREP long] HEAD modifier [modifier]      at least three nouns in all, the verb would come next
    modifier = PREP long | that PAST long | that long PAST
    long     = phrase [PREP phrase]
    phrase   = the [ADJ] NOUN, and so is HEAD

A text is the beginning of a sentence. Label 1: its verb must be plural, 0: singular. HEAD alone decides that, whatever
stands before it or between it and the verb: "near the boys the dog that the old kings saw" (sleeps): 0. Relative
clauses are in the past tense, which shows no number. Source of the task: number prediction of Linzen, Dupoux and
Goldberg 2016, "Assessing the ability of LSTMs to learn syntax-sensitive dependencies"; the grammar is ours.

Texts come in pairs: HEAD and a noun of the other number (the rival, never the one nearest to the verb) change places.
So each bag of words, with whatever noun comes last, has both labels equally often: what looks at no more than that, or
at the length, is right in exactly half of the cases.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import TYPE_CHECKING

from randprune_lab.checks import check_whole

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

NOUNS = ("bird", "boy", "cat", "cow", "dog", "farmer", "girl", "horse", "king", "pilot", "singer", "teacher")
PAST = ("admired", "followed", "helped", "knew", "liked", "saw")
PREPOSITIONS = ("behind", "beside", "near", "with")
ADJECTIVES = ("old", "small", "tall", "young")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

SIZES = {"train": 6000, "selection": 1000, "test": 1000}
SEED = 0
LONGEST = 32  # tokens that the tokenizer lets through; the grammar's longest text has 31 with [CLS] and [SEP]

Sentences = tuple[list[str], list[int]]  # texts, labels
Pair = tuple[tuple[str, int], tuple[str, int]]  # (text, label) twice


def generate(rows: int, seed: int) -> Sentences:
    """``rows`` different texts in random order and their labels; the same for the same seed.

    Raises:
        ValueError: ``rows`` is odd or below 2.
    """
    if check_whole("rows", rows) < 2 or rows % 2:
        raise ValueError(
            f"rows = {rows}: must be even and at least 2, since texts come in pairs that balance the labels. "
            f"Pass {max(2, rows + rows % 2)}."
        )
    rng = random.Random(seed)
    return _take(_pairs(rng), rows, rng)


def corpus() -> dict[str, Sentences]:
    """The fixed data set: "train" (6,000 texts), "selection" and "test" (1,000 each); no text comes twice."""
    rng = random.Random(SEED)
    pairs = _pairs(rng)
    return {split: _take(pairs, rows, rng) for split, rows in SIZES.items()}


def tokenizer() -> PreTrainedTokenizerFast:
    """One id a word of the grammar; lower-cases, adds [CLS] and [SEP], pads on the right."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.normalizers import Lowercase
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    ids = {word: number for number, word in enumerate((*SPECIAL, *vocabulary()))}
    words = Tokenizer(WordLevel(ids, unk_token="[UNK]"))
    words.normalizer = Lowercase()
    words.pre_tokenizer = Whitespace()
    words.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(word, ids[word]) for word in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=words,
        model_max_length=LONGEST,
        padding_side="right",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],  # as BERT takes them
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def vocabulary() -> list[str]:
    """Every word of the grammar, in alphabetical order."""
    plurals = [noun + "s" for noun in NOUNS]
    return sorted(("the", "that", *NOUNS, *plurals, *PAST, *PREPOSITIONS, *ADJECTIVES))


def _take(pairs: Iterator[Pair], rows: int, rng: random.Random) -> Sentences:
    labelled = list(itertools.chain.from_iterable(itertools.islice(pairs, rows // 2)))
    rng.shuffle(labelled)
    return [text for text, _ in labelled], [label for _, label in labelled]


def _pairs(rng: random.Random) -> Iterator[Pair]:
    """Pairs without end; no text comes twice."""
    seen: set[str] = set()
    while True:
        pair = _pair(rng)
        texts = {text for text, _ in pair}
        if seen.isdisjoint(texts):
            seen |= texts
            yield pair


def _pair(rng: random.Random) -> Pair:
    """The same words twice, head and rival in either order: one text with a singular head, one with a plural one."""
    frame, head = _frame(rng)
    count = frame.count("{}")
    nouns = rng.sample(NOUNS, count)
    plural = [rng.random() < 0.5 for _ in nouns]
    rival = rng.choice([noun for noun in range(count - 1) if noun != head])  # the last is the nearest to the verb
    plural[rival] = not plural[head]
    words = [noun + "s" * many for noun, many in zip(nouns, plural, strict=True)]
    swapped = list(words)
    swapped[head], swapped[rival] = words[rival], words[head]
    return (frame.format(*words), int(plural[head])), (frame.format(*swapped), int(plural[rival]))


def _frame(rng: random.Random) -> tuple[str, int]:
    """A text with "{}" for each of its nouns, and which of them is the head."""

    def phrase() -> str:
        return f"the {rng.choice(ADJECTIVES)} {{}}" if rng.random() < 0.5 else "the {}"

    def preposition() -> str:
        return rng.choice(PREPOSITIONS)

    def long() -> str:
        return f"{phrase()} {preposition()} {phrase()}" if rng.random() < 0.3 else phrase()

    def modifier() -> str:
        kind, verb = rng.randrange(3), rng.choice(PAST)
        return (f"{preposition()} {long()}", f"that {verb} {long()}", f"that {long()} {verb}")[kind]

    while True:
        front = [f"{preposition()} {long()}"] * (rng.random() < 0.5)
        frame = " ".join((*front, phrase(), *(modifier() for _ in range(rng.randint(1, 2)))))
        if frame.count("{}") >= 3:
            return frame, "".join(front).count("{}")
