"""TinyBERT's data augmentation: copies of each example in which words give way to likely or similar ones.

Source: Jiao et al. 2020, Algorithm 1, with its p_t = 0.4, N_a = 20 and K = 15; arXiv 2310.13183, A.2, uses it so.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import inspect
import json
import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from randprune_lab.checks import check_number, check_whole
from randprune_lab.files import write_atomically
from randprune_lab.glove import WORD, glove_neighbours
from randprune_lab.pretrained import TINY, quiet
from randprune_lab.sampling import seed_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Row = tuple[str, ...]
Place = tuple[str, int]  # a text, and the number of one of its words
Candidates = dict[Place, list[str]]

FORMAT = 1  # of what is cached; another number makes every file anew
SPEED_ONLY = ("batch_size",)  # changes a result by rounding at most


@dataclasses.dataclass(frozen=True)
class Augmented:
    """The copies, without the rows that they come from.

    Attributes:
        texts: one tuple a copy, as many texts as its row has.
        origin: the number of the row that each copy comes from, from 0; ascending.
        notes: what is not as asked for; sentences.
    """

    texts: list[Row]
    origin: list[int]
    notes: tuple[str, ...] = ()


def augment(
    rows: Sequence[Row],
    *,
    model: str,
    copies: int = 20,
    chance: float = 0.4,
    choices: int = 15,
    glove: Path | None = None,
    seed: int = 0,
    avoid: Collection[Row] = (),
    device: str = "cpu",
    batch_size: int = 64,
) -> Augmented:
    """Up to ``copies`` copies of each row, in which every word is replaced with probability ``chance``.

    A word that is one piece to the tokenizer of ``model`` is masked, and the masked language model's most likely words
    are its candidates; those of a word of several pieces are its nearest GloVe neighbours by cosine. A copy takes one
    of a word's candidates at random. Stop words are replaced like others: neither paper excludes them. Punctuation is
    no word: it is neither replaced nor a candidate. Each text of a pair is looked at by itself. Copies that equal
    their row, an earlier copy of it, or a row to avoid are left out; letter case and spacing make no difference there.
    The same arguments give the same copies; the global random state is left as it was.

    Args:
        rows: the texts of each example: one, or two for a sentence pair.
        model: Hub id or folder of a masked language model.
        copies: N_a, at least 1.
        chance: p_t, in [0, 1].
        choices: K, candidates of a word, at least 1.
        glove: a text file, "word v1 ... vd" a line. None: words of several pieces are left as they are.
        seed: of the copies.
        avoid: rows that no copy may equal: those that are held out.
        device: where the model runs.
        batch_size: masked texts that the model looks at together.

    Raises:
        ValueError: a setting, the model or the GloVe file will not do.
    """
    rows, held_out = _checked_rows("rows", rows), {_folded(row) for row in _checked_rows("avoid", avoid)}
    _check_settings(copies, chance, choices, glove, batch_size)
    tokenizer, network = _load(model)
    network.to(torch.device(device))  # type: ignore[arg-type]
    texts = list(dict.fromkeys(text for row in rows for text in row))
    pieces = {text: [tokenizer.tokenize(_spaced(part)) for part in WORD.split(text)] for text in texts}
    places = [(text, number) for text in texts for number in range(len(pieces[text]) // 2)]
    single = [(text, number) for text, number in places if len(pieces[text][2 * number + 1]) == 1]
    several = [place for place in places if len(pieces[place[0]][2 * place[1] + 1]) > 1]
    candidates = masked_candidates(single, pieces, tokenizer, network, choices, batch_size)
    unknown = {_word(place).lower() for place in several}
    if glove is not None:
        neighbours = glove_neighbours(unknown, glove, choices)
        candidates |= {place: neighbours.get(_word(place).lower(), []) for place in several}
        unknown -= neighbours.keys()
    notes = []
    if unknown:
        why = "no GloVe file" if glove is None else f"not in {glove.name}"
        notes.append(f"{why}: words of several pieces are left as they are ({len(unknown):,} different words).")
    made, origin, avoided = _copies(rows, candidates, copies, chance, seed, held_out)
    if avoided:
        notes.append(f"{avoided:,} copies equalled a held-out row and were left out.")
    return Augmented(made, origin, tuple(notes))


def augmented_from_cache(rows: Sequence[Row], *, cache: Path, model: str, **settings: Any) -> Augmented:
    """``augment(rows, model=model, **settings)``, kept in the folder ``cache`` under a name made of its arguments.

    Not part of the name: ``device`` and ``batch_size``. A file that cannot be read is made again.
    """
    bound = inspect.signature(augment).bind(rows, model=model, **settings)
    bound.apply_defaults()
    file = cache / "augment" / f"{_cache_key(bound.arguments)}.json"
    try:
        kept = json.loads(file.read_bytes())
        texts = [tuple(row) for row in kept["texts"]]
        if len(texts) == len(kept["origin"]) and all(isinstance(text, str) for row in texts for text in row):
            return Augmented(texts, [int(number) for number in kept["origin"]], tuple(kept["notes"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass  # not there, or damaged
    result = augment(*bound.args, **bound.kwargs)
    with contextlib.suppress(OSError):  # a full or read-only disk: it only costs the time again
        write_atomically(file, json.dumps(dataclasses.asdict(result)))
    return result


def masked_candidates(
    places: Sequence[Place],
    pieces: Mapping[str, list[list[str]]],
    tokenizer: PreTrainedTokenizerBase,
    network: PreTrainedModel,
    choices: int,
    batch_size: int,
) -> Candidates:
    """The ``choices`` likeliest other words at each place, likeliest first, when its one piece is masked.

    ``pieces``: of each text, those of its parts; odd parts are words. A text beyond the model's limit is seen through
    a window around the place.
    """
    words = _whole_words(tokenizer)
    spellings: dict[str, list[int]] = {}
    for number, word in words.items():
        spellings.setdefault(word.casefold(), []).append(number)
    allowed = torch.zeros(network.config.vocab_size, dtype=torch.bool)
    allowed[list(words)] = True
    vocabulary, limit = tokenizer.get_vocab(), _limit(tokenizer, network)
    alone = tokenizer(str(tokenizer.mask_token))["input_ids"]  # for BERT [CLS] [MASK] [SEP]
    split = alone.index(tokenizer.mask_token_id)
    inputs = {}
    for place in places:
        within = [vocabulary[piece] for piece in _masked(place, pieces[place[0]], str(tokenizer.mask_token), limit)]
        inputs[place] = [*alone[:split], *within, *alone[split + 1 :]]
    by_length = sorted(places, key=lambda place: len(inputs[place]))  # batches of like length: less padding
    found: Candidates = {}
    for start in range(0, len(by_length), batch_size):
        batch = by_length[start : start + batch_size]
        scores = _masked_scores([inputs[place] for place in batch], tokenizer, network)
        scores[:, ~allowed] = -torch.inf
        for row, place in enumerate(batch):
            own = vocabulary[pieces[place[0]][2 * place[1] + 1][0]]
            scores[row, [own, *spellings.get(_word(place).casefold(), [])]] = -torch.inf
        best = scores.topk(min(choices, scores.shape[1]))
        for place, values, numbers in zip(batch, best.values.tolist(), best.indices.tolist(), strict=True):
            found[place] = [words[n] for n, value in zip(numbers, values, strict=True) if value > -torch.inf]
    return found


def _copies(
    rows: Sequence[Row], candidates: Candidates, copies: int, chance: float, seed: int, held_out: set[Row]
) -> tuple[list[Row], list[int], int]:
    """The copies, the rows that they come from, and how many equalled a held-out row."""
    made: list[Row] = []
    origin: list[int] = []
    avoided = 0
    for number, row in enumerate(rows):
        draw = random.Random(seed_of(seed, "augment", number))
        seen = {_folded(row)}
        for _ in range(copies):
            copy = tuple(_replaced(text, candidates, chance, draw) for text in row)
            if (folded := _folded(copy)) in seen:
                continue
            seen.add(folded)
            if folded in held_out:
                avoided += 1
                continue
            made.append(copy)
            origin.append(number)
    return made, origin, avoided


def _replaced(text: str, candidates: Candidates, chance: float, draw: random.Random) -> str:
    parts = WORD.split(text)
    for number in range(len(parts) // 2):
        options = candidates.get((text, number))
        if draw.random() < chance and options:
            parts[2 * number + 1] = draw.choice(options)
    return "".join(parts)


def _word(place: Place) -> str:
    return str(WORD.split(place[0])[2 * place[1] + 1])


def _spaced(part: str) -> str:
    """A word as it stands within a text: RoBERTa's and GPT's pieces differ after a space."""
    return f" {part}" if WORD.fullmatch(part) else part.strip()


def _folded(row: Row) -> Row:
    return tuple(" ".join(text.casefold().split()) for text in row)


def _whole_words(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """The pieces that are a word by themselves: no special ones, no "##" or other continuations, no punctuation."""
    start = next(iter(tokenizer.tokenize(" a")), "a")
    marker = start[0] if start[0] in "Ġ▁" else ""  # what a piece at a word's start bears: byte-level BPE, SentencePiece
    special = set(tokenizer.all_special_ids)
    whole = {}
    for piece, number in tokenizer.get_vocab().items():
        if number not in special and piece.startswith(marker):
            word = tokenizer.convert_tokens_to_string([piece]).strip() if marker else piece
            if WORD.fullmatch(word):
                whole[number] = word
    return whole


def _limit(tokenizer: PreTrainedTokenizerBase, network: PreTrainedModel) -> int:
    """The longest text in pieces; RoBERTa numbers its positions from 2, and [CLS] and [SEP] are to come."""
    return int(min(tokenizer.model_max_length, getattr(network.config, "max_position_embeddings", None) or 512)) - 4


def _masked(place: Place, parts: list[list[str]], mask: str, limit: int) -> list[str]:
    """The pieces of a text with one word masked; of a long one at most ``limit`` of them, around the mask."""
    at = 2 * place[1] + 1
    before = [piece for part in parts[:at] for piece in part]
    whole = [*before, mask, *(piece for part in parts[at + 1 :] for piece in part)]
    start = max(0, min(len(before) - limit // 2, len(whole) - limit))
    return whole[start : start + limit]


@torch.no_grad()
def _masked_scores(inputs: list[list[int]], tokenizer: PreTrainedTokenizerBase, network: PreTrainedModel) -> Tensor:
    """Logits at the masked place of each row: (rows, vocabulary), float32, on the CPU."""
    rows = [torch.tensor(row) for row in inputs]
    numbers = pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id or 0)
    attention = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    masked = (numbers == tokenizer.mask_token_id).to(network.device)
    head = network.get_output_embeddings()  # type: ignore[no-untyped-call]
    # Only the masked places go through the large last layer: a hundredth of the memory.
    hook = head.register_forward_pre_hook(lambda _, given: (given[0][masked], *given[1:])) if head is not None else None
    try:
        logits: Tensor = network(
            input_ids=numbers.to(network.device), attention_mask=attention.to(network.device)
        ).logits
    finally:
        if hook is not None:
            hook.remove()
    return (logits if hook is not None else logits[masked]).float().cpu()


def _load(model: str) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Tokenizer and masked language model, ready to be asked; nothing is printed."""
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    fix = (
        "Pass augment_model=..., a masked language model such as bert-base-uncased or a folder with one; or augment=0."
    )
    try:
        if model in TINY:
            raise ValueError("it is made here, and knows only sentences of its own")
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
        if tokenizer.mask_token is None:
            raise ValueError("its tokenizer has no mask token, as with GPT-2")
        with quiet(), torch.random.fork_rng():
            network, report = AutoModelForMaskedLM.from_pretrained(
                model,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
        if missing := sorted(report["missing_keys"]):
            raise ValueError(
                f"it has no masked-language-model head: {missing[0]} and {len(missing) - 1} more are missing"
            )
    except Exception as error:  # transformers raises many kinds for a folder that will not do
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"augment_model = {model!r}: cannot predict masked words ({reason}). {fix}") from error
    return tokenizer, network.eval()


def _checked_rows(name: str, rows: Iterable[Row]) -> list[Row]:
    checked = []
    for number, row in enumerate(rows):
        if not isinstance(row, (tuple, list)) or not row or not all(isinstance(text, str) for text in row):
            raise ValueError(f"{name}, row {number}: {row!r}: must be a tuple of texts. Pass (text,), or (text, text).")
        checked.append(tuple(row))
    return checked


def _check_settings(copies: int, chance: float, choices: int, glove: Path | None, batch_size: int) -> None:
    for name, value in (("copies", copies), ("choices", choices), ("batch_size", batch_size)):
        if check_whole(name, value) < 1:
            raise ValueError(f"{name} = {value}: must be at least 1. The paper takes 20 copies and 15 choices.")
    if not 0 <= check_number("chance", chance) <= 1:
        raise ValueError(f"chance = {chance}: must lie in [0, 1], a probability. The paper takes 0.4.")
    if glove is not None and not glove.is_file():
        raise ValueError(f"glove = {glove}: no such file. Pass a text file of GloVe vectors, or None for none.")


def _cache_key(arguments: Mapping[str, Any]) -> str:
    """A name for a call: the same for the same arguments and unchanged files."""
    about = {name: value for name, value in arguments.items() if name not in SPEED_ONLY}
    about["rows"] = [list(row) for row in about["rows"]]
    about["avoid"] = sorted({_folded(row) for row in about["avoid"]})
    folder, glove = Path(about["model"]), about["glove"]
    about["glove"] = [] if glove is None else _stamps([glove])
    files = sorted(file for file in folder.iterdir() if file.is_file()) if folder.is_dir() else []
    about["files"] = _stamps(file for file in files if file.suffix in (".safetensors", ".json", ".txt"))
    text = json.dumps([FORMAT, about], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _stamps(files: Iterable[Path]) -> list[tuple[str, int, int]]:
    """Absolute path, size and time of change of each file that is there."""
    return [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files if f.is_file()]
