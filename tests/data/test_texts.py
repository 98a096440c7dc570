"""Text tasks: the eight of GLUE in the Hub's layout, tables of one's own, batches, tokens kept on disk, caps."""

import itertools
import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from support.texts import GLUE, frame, gpt2, hub, phrases, saved_bert, table, write
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertForMaskedLM

from randprune_lab import engine, sentences, store, tables, texts, training
from randprune_lab.config import RunConfig
from randprune_lab.events import DenseFinished, RunFinished, Warned
from randprune_lab.metrics import measure
from randprune_lab.splits import Tokens, held_out_rows
from randprune_lab.tasks import load_task
from randprune_lab.texts import encode
from randprune_lab.tiny import tiny_bert

REFERENCE = {
    "accuracy": lambda truth, logits: accuracy_score(truth, logits.argmax(1)),
    "f1": lambda truth, logits: f1_score(truth, logits.argmax(1)),
    "matthews": lambda truth, logits: matthews_corrcoef(truth, logits.argmax(1)),
    "spearman": lambda truth, logits: spearmanr(truth, logits[:, 0]).statistic,
    "pearson": lambda truth, logits: pearsonr(truth, logits[:, 0]).statistic,
}
QUICK = {
    "model": "tiny-bert",
    "stages": (0.5,),
    "dense_epochs": 1,
    "max_epochs": 1,
    "candidates": 2,
    "batch_size": 8,
    "learning_rate": 3e-3,
    "device": "cpu",
}


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    """Nothing of a test outlives it."""
    monkeypatch.setenv("RANDPRUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


def glue(task: str, folder: Path, **changes) -> RunConfig:
    return RunConfig(**(QUICK | {"task": f"glue/{task}", "dataset": str(folder)} | changes))


def own(*files: Path, columns: tuple[str, ...] = ("text",), **changes) -> RunConfig:
    given = {"task": "text", "dataset": ",".join(map(str, files)), "text_columns": columns}
    return RunConfig(**(QUICK | given | changes))


def load(config: RunConfig):
    return load_task(config, sentences.tokenizer())


def texts_of(tokens: Tokens) -> list[str]:
    """What was tokenized, read back."""
    tokenizer = sentences.tokenizer()
    rows = [tokens[torch.tensor([row])]["input_ids"][0] for row in range(len(tokens))]
    return [tokenizer.decode(ids, skip_special_tokens=True) for ids in rows]


def logits_of(folder: Path, columns: list[list[str]]) -> np.ndarray:
    """Answers of a finished run's model, as plain transformers loads it; one text at a time, no padding."""
    model = AutoModelForSequenceClassification.from_pretrained(folder / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    with torch.no_grad():
        found = [model(**tokenizer(*row, return_tensors="pt")).logits[0] for row in zip(*columns, strict=True)]
    return torch.stack(found).double().numpy()


def run(folder: Path, config: RunConfig) -> list:
    return list(store.record(folder, engine.prune(config)))


def warnings_of(events: list) -> list[str]:
    return [event.text for event in events if isinstance(event, Warned)]


# The eight tasks


@pytest.mark.parametrize("task", GLUE)
def test_reported_scores_are_those_of_the_saved_model(task, tmp_path):
    data = hub(tmp_path / "glue", task)
    events = run(tmp_path / "run", glue(task, data))
    columns, names, metrics = GLUE[task]
    splits = (
        {"validation_matched": "", "validation_mismatched": "mismatched "} if task == "mnli" else {"validation": ""}
    )
    expected = {}
    for split, prefix in splits.items():
        rows = datasets.load_dataset(str(data), task, split=split)
        logits = logits_of(tmp_path / "run", [rows[column] for column in columns])
        expected |= {prefix + metric: REFERENCE[metric](np.array(rows["label"]), logits) for metric in metrics}
    (finished,) = [event for event in events if isinstance(event, RunFinished)]
    assert {metrics[0]: finished.test.metric} | finished.test.others == pytest.approx(
        expected, abs=1e-4
    )  # float32 answers
    assert events[0].metric == metrics[0]
    settings = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "model")
    assert model.config.num_labels == (len(names) if names else 1)
    if names:
        assert settings["id2label"] == {str(at): name for at, name in enumerate(names)}
        assert settings["label2id"] == {name: at for at, name in enumerate(names)}


def test_the_list_of_tasks_is_glue_of_the_paper():
    assert set(tables.GLUE_TASKS) == {f"glue/{task}" for task in GLUE}
    for task, (columns, _, metrics) in GLUE.items():
        assert (tables.GLUE[task].columns, tables.GLUE[task].metrics) == (columns, metrics)


def test_labels_of_similarity_are_decimals(tmp_path):
    data = hub(tmp_path, "stsb")
    task = load(glue("stsb", data))
    assert task.regression
    assert task.classes == 1
    assert task.test.labels.dtype == torch.float32
    rows = datasets.load_dataset(str(data), "stsb", split="validation")
    assert task.test.labels.tolist() == pytest.approx(rows["label"])


def test_metrics_against_scikit_learn_and_scipy():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        logits, labels = torch.randn(31, 2, generator=generator), torch.randint(2, (31,), generator=generator)
        for name in ("accuracy", "f1", "matthews"):
            assert measure(name, logits, labels) == pytest.approx(REFERENCE[name](labels.numpy(), logits.numpy()))
        decimals = torch.randint(6, (31,), generator=generator).float()  # with ties
        for name in ("spearman", "pearson"):
            assert measure(name, logits[:, :1], decimals) == pytest.approx(REFERENCE[name](decimals, logits.numpy()))
    same = torch.ones(5, 1)
    assert [measure(name, same, torch.arange(5.0)) for name in ("spearman", "pearson")] == [0, 0]
    assert measure("f1", torch.tensor([[1.0, 0.0]]), torch.tensor([0])) == 0


ROWS = {  # DESIGN 8: official row counts, mnli and qqp are subsets
    "cola": {"train": 8551, "validation": 1043},
    "sst2": {"train": 67349, "validation": 872},
    "mrpc": {"train": 3668, "validation": 408},
    "rte": {"train": 2490, "validation": 277},
    "stsb": {"train": 5749, "validation": 1500},
    "qqp": {"train": 8999, "validation": 1000},
    "mnli": {"train": 8999, "validation_matched": 1000, "validation_mismatched": 1000},
}


@pytest.mark.parametrize("task", ROWS)
def test_the_mirror_has_the_promised_rows(task, test_data):
    read = texts.read(glue(task, test_data / "data" / "glue"), f"glue/{task}")
    assert {split: len(rows) for split, rows in read.rows.items()} == ROWS[task]
    assert (list(read.names) or None) == GLUE[task][1]


def test_mrpc_of_the_mirror_tokenizes(test_data):
    tokenizer = AutoTokenizer.from_pretrained(test_data / "models" / "minilm-l3")
    task = load_task(glue("mrpc", test_data / "data" / "glue"), tokenizer)
    held = round(0.2 * 3668)
    assert [len(split) for split in (task.train, task.selection, task.test)] == [3668 - held, held, 408]
    rows = datasets.load_dataset(str(test_data / "data" / "glue"), "mrpc", split="validation")
    for row in (0, 7, 407):
        alone = tokenizer(rows[row]["sentence1"], rows[row]["sentence2"], truncation=True, max_length=128)
        batch = task.test.inputs[torch.tensor([row])]
        assert batch["input_ids"][0].tolist() == alone["input_ids"]
        assert batch["token_type_ids"][0].tolist() == alone["token_type_ids"]


# The selection split, and what is added for distillation


def test_the_selection_split_is_part_of_train_and_always_the_same(tmp_path):
    data = hub(tmp_path / "a", "sst2", train=100)
    first, again = load(glue("sst2", data)), load(glue("sst2", data, seed=7))
    chosen, learned = texts_of(first.selection.inputs), texts_of(first.train.inputs)
    assert chosen == texts_of(again.selection.inputs)
    assert len(chosen) == 20
    assert not set(chosen) & set(learned)
    assert sorted(chosen + learned) == sorted(datasets.load_dataset(str(data), "sst2", split="train")["sentence"])
    rows = datasets.load_dataset(str(data), "sst2", split="validation")
    assert texts_of(first.test.inputs) == rows["sentence"]
    assert first.test.labels.tolist() == rows["label"]


def test_at_most_2000_rows_are_held_out():
    texts_, labels = zip(*[(f"text {row}", row % 2) for row in range(12_000)], strict=True)
    rows = {"train": tables.Rows([(text,) for text in texts_], labels)}
    rows["validation"] = rows["train"]
    made = tables.Table(rows, ("no", "yes"), tables.GLUE["sst2"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(texts, "read", lambda *_: made)
        task = load(glue("sst2", Path("nowhere")))
    assert [len(task.train), len(task.selection)] == [10_000, 2000]


def test_held_out_rows_are_a_share():
    for rows in (2, 3, 10, 99):
        fit, held = held_out_rows(rows, 0.2)
        assert sorted([*fit.tolist(), *held.tolist()]) == list(range(rows))
        assert 0 < len(held) < rows


def test_rows_without_labels_are_added_after_the_selection_split(tmp_path, monkeypatch):
    data = hub(tmp_path / "glue", "stsb", "mnli", train=40)
    plain, more = load(glue("stsb", data)), load(glue("stsb", data, unlabelled="glue/mnli"))
    assert texts_of(plain.selection.inputs) == texts_of(more.selection.inputs)
    assert (more.original, len(plain.train), len(more.train)) == (32, 32, 72)
    assert torch.equal(more.train.labels[:32], plain.train.labels)
    assert more.train.labels[32:].isnan().all()
    assert texts_of(more.train.inputs)[:32] == texts_of(plain.train.inputs)
    seen: dict[str, set[int]] = {}
    batches = training._batches

    def watched(session, name, stage, epoch):
        for rows in batches(session, name, stage, epoch):
            seen.setdefault(name, set()).update(rows.tolist())
            yield rows

    monkeypatch.setattr(training, "_batches", watched)
    events = run(tmp_path / "run", glue("stsb", data, unlabelled="glue/mnli", temperature=1.0))
    assert seen == {"dense": set(range(32)), "emep": set(range(72)), "fine-tuning": set(range(72))}
    (said,) = [text for text in warnings_of(events) if "glue/mnli" in text]
    assert "40 rows" in said
    assert "distillation" in said
    losses = [event.loss for event in events if event.kind == "epoch_finished"]
    assert all(np.isfinite(losses))


def test_copies_are_made_after_the_selection_split(tmp_path, monkeypatch):
    """Of rows that are learned from, with their labels; none equals a row held out, and the dense network sees none."""
    data, model = hub(tmp_path / "glue", "sst2"), tmp_path / "masked"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertForMaskedLM(tiny_bert().config).save_pretrained(model)
    sentences.tokenizer().save_pretrained(model)
    changes = {"augment": 3, "augment_model": str(model)}
    plain, more = load(glue("sst2", data)), load(glue("sst2", data, **changes))
    assert texts_of(plain.selection.inputs) == texts_of(more.selection.inputs)
    assert more.original == len(plain.train) == 48
    assert 48 < len(more.train) <= 4 * 48
    assert texts_of(more.train.inputs)[:48] == texts_of(plain.train.inputs)
    copies = texts_of(more.train.inputs)[48:]
    assert not set(copies) & set(texts_of(plain.selection.inputs))
    labels = dict(zip(texts_of(plain.train.inputs), plain.train.labels.tolist(), strict=True))
    lengths = {(len(text.split()), label) for text, label in labels.items()}
    found = zip(copies, more.train.labels[48:].tolist(), strict=True)
    assert all((len(text.split()), label) in lengths for text, label in found)  # words give way one for one
    seen: dict[str, int] = {}
    batches = training._batches

    def watched(session, name, stage, epoch):
        for rows in batches(session, name, stage, epoch):
            seen[name] = max(seen.get(name, 0), int(rows.max()))
            yield rows

    monkeypatch.setattr(training, "_batches", watched)
    events = run(tmp_path / "run", glue("sst2", data, **changes))
    assert seen == {"dense": 47, "emep": len(more.train) - 1, "fine-tuning": len(more.train) - 1}
    assert sum("replaced words" in text for text in warnings_of(events)) == 1


def test_a_batch_without_labels_teaches_by_distillation_only(tmp_path):
    """Rows of mnli only, in the loss's eyes: the task term is 0 and the logit term is not."""
    data = hub(tmp_path / "glue", "stsb", "mnli", train=10)
    config = glue("stsb", data, unlabelled="glue/mnli", batch_size=4)
    task = load(config)
    batch, labels = task.train.batch(torch.arange(8, 12))
    logits = torch.ones(4, 1, requires_grad=True)
    from randprune_lab.distill import Features, loss_terms

    terms = loss_terms(Features(logits), Features(torch.zeros(4, 1)), batch, labels, config)
    assert float(terms["task"].detach()) == 0
    assert float(terms["logits"].detach()) == 1
    (slope,) = torch.autograd.grad(terms["task"], logits, retain_graph=True)
    assert (slope == 0).all()


# Tables of one's own


KINDS = {
    "strings": (["no", "yes", "perhaps"], ("no", "perhaps", "yes"), [0, 2, 1]),
    "from one": ([1, 2, 3], ("1", "2", "3"), [0, 1, 2]),
    "numbers of two digits": ([2, 10, 9], ("2", "9", "10"), [0, 2, 1]),
    "bool": ([True, False, True], ("False", "True"), [1, 0, 1]),
}


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("kind", KINDS)
def test_own_tables(kind, ending, tmp_path):
    values, names, numbers = KINDS[kind]
    file = write(tmp_path / f"train{ending}", frame(values * 10, text=phrases(30)))
    other = write(tmp_path / f"other{ending}", frame(values * 2, text=phrases(6, seed=1)))
    task = load(own(file, other))
    assert task.labels == names
    assert task.classes == len(names)
    assert task.metric == "accuracy"
    assert texts_of(task.test.inputs) == phrases(6, seed=1)
    assert task.test.labels.tolist() == numbers * 2
    assert [len(task.train), len(task.selection)] == [24, 6]


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_one_file_gives_a_fifth_to_the_report(ending, tmp_path):
    file = write(tmp_path / f"all{ending}", frame(["a", "b"] * 25, text=phrases(50)))
    task = load(own(file))
    parts = [texts_of(split.inputs) for split in (task.train, task.selection, task.test)]
    assert [len(part) for part in parts] == [32, 8, 10]
    assert sorted(itertools.chain(*parts)) == sorted(phrases(50))
    assert parts == [texts_of(split.inputs) for split in (load(own(file)).splits.values())]


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_decimal_labels_are_a_regression(ending, tmp_path):
    values = [row / 8 for row in range(40)]
    file = write(tmp_path / f"all{ending}", frame(values, text=phrases(40)))
    task = load(own(file))
    assert task.regression
    assert (task.metric, task.others) == ("spearman", ("pearson",))
    assert sorted(label for split in task.splits.values() for label in split.labels.tolist()) == values


def test_an_own_pair_of_texts_end_to_end(tmp_path):
    rows = frame(["a", "b"] * 20, one=phrases(40), two=phrases(40, seed=1))
    files = write(tmp_path / "train.jsonl", rows), write(tmp_path / "other.jsonl", rows[:11])
    events = run(tmp_path / "run", own(*files, columns=("one", "two")))
    logits = logits_of(tmp_path / "run", [[row["one"] for row in rows[:11]], [row["two"] for row in rows[:11]]])
    truth = [row["label"] == "b" for row in rows[:11]]
    assert events[-1].test.metric == pytest.approx(accuracy_score(truth, logits.argmax(1)))
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "model")
    assert model.config.id2label == {0: "a", 1: "b"}


def test_label_column_of_another_name_and_a_folder(tmp_path):
    rows = [{"text": text, "kind": row % 2} for row, text in enumerate(phrases(30))]
    (tmp_path / "d").mkdir()
    write(tmp_path / "d" / "train.jsonl", rows)
    write(tmp_path / "d" / "test.jsonl", rows[:5])
    task = load(own(tmp_path / "d", label_column="kind"))
    assert len(task.test) == 5
    assert task.labels == ("0", "1")


def test_a_table_that_changed_is_read_anew(tmp_path):
    file = write(tmp_path / "t.csv", frame(["a", "b"] * 10, text=phrases(20)))
    before = load(own(file)).test
    write(file, frame(["b", "a"] * 10, text=phrases(20)))
    assert torch.equal(load(own(file)).test.labels, 1 - before.labels)


def test_a_folder_that_changed_is_read_anew(tmp_path):
    data = hub(tmp_path / "glue", "sst2")
    before = load(glue("sst2", data)).test.labels
    file = data / "sst2" / "validation-00000-of-00001.parquet"
    rows = table("sst2", len(before), 1)
    flipped = [1 - label for label in rows["label"]]
    columns = {"sentence": list(rows["sentence"]), "label": flipped, "idx": list(rows["idx"])}
    datasets.Dataset.from_dict(columns, features=rows.features).to_parquet(file)
    assert torch.equal(load(glue("sst2", data)).test.labels, 1 - before)


# Batches


def ragged(lengths: list[int], *, kinds: bool) -> tuple[Tokens, list[list[int]]]:
    rows = [[7 + 100 * row + at for at in range(length)] for row, length in enumerate(lengths)]
    flat = torch.tensor([number for row in rows for number in row], dtype=torch.int32)
    starts = torch.tensor([sum(lengths[:row]) for row in range(len(lengths) + 1)])
    return Tokens(flat, starts, 3, (flat % 2).to(torch.uint8) if kinds else None), rows


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=20), st.booleans(), st.data())
def test_padded_batches_against_a_slow_reference(lengths, kinds, data):
    tokens, rows = ragged(lengths, kinds=kinds)
    picked = data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=8))
    longest = max(lengths[row] for row in picked)
    batch = tokens[torch.tensor(picked)]
    assert batch["input_ids"].tolist() == [rows[row] + [3] * (longest - lengths[row]) for row in picked]
    assert batch["attention_mask"].tolist() == [[int(at < lengths[row]) for at in range(longest)] for row in picked]
    assert ("token_type_ids" in batch) == kinds
    if kinds:
        expected = [[n % 2 for n in rows[row]] + [0] * (longest - lengths[row]) for row in picked]
        assert batch["token_type_ids"].tolist() == expected
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())
    assert tokens.lengths.tolist() == lengths
    assert sorted(lengths, reverse=True)[:3] == [lengths[row] for row in tokens.longest(3)]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=5), min_size=1, max_size=4))
def test_joined_rows_are_the_parts_rows(parts):
    made = [ragged(lengths, kinds=True) for lengths in parts]
    joined = Tokens.joined([tokens for tokens, _ in made])
    every = [row for _, rows in made for row in rows]
    assert len(joined) == len(every)
    for number, row in enumerate(every):
        assert joined[torch.tensor([number])]["input_ids"].tolist() == [row]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=300), st.integers(1, 9), st.integers(0, 5))
def test_grouped_batches_hold_every_row_once(lengths, batch_size, seed):
    order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(seed))

    def batches():
        return training.grouped(order, torch.tensor(lengths), batch_size, torch.Generator().manual_seed(seed))

    found = batches()
    assert sorted(torch.cat(found).tolist()) == list(range(len(lengths)))
    assert all(len(batch) <= batch_size for batch in found)
    assert len(found) == -(-len(lengths) // batch_size)
    assert all(torch.equal(one, other) for one, other in zip(found, batches(), strict=True))


def test_grouping_pads_less():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(5, 100, (4000,), generator=generator)
    order = torch.randperm(4000, generator=generator)

    def padded(batches):
        return sum(len(batch) * int(lengths[batch].max()) for batch in batches)

    grouped = training.grouped(order, lengths, 32, generator)
    assert padded(grouped) < 1.1 * int(lengths.sum()) < 0.7 * padded(torch.split(order, 32))
    sizes = [float(lengths[batch].float().mean()) for batch in grouped]
    assert abs(np.corrcoef(range(len(sizes)), sizes)[0, 1]) < 0.3  # not all the short ones first


def session_of(folder: Path, **changes) -> training.Session:
    config = glue("sst2", folder, **changes)
    return training.Session(config, load(config), tiny_bert(), training.start_accelerator(config))


def test_order_depends_on_seed_stage_phase_and_epoch(tmp_path):
    data = hub(tmp_path / "glue", "sst2")

    def order(seed=0, name="fine-tuning", stage=1, epoch=0):
        return torch.cat(list(training._batches(session_of(data, seed=seed), name, stage, epoch))).tolist()

    plain = order()
    assert sorted(plain) == list(range(48))
    assert plain == order()
    others = [order(seed=1), order(name="emep"), order(stage=2), order(epoch=1)]
    assert len({tuple(found) for found in [plain, *others]}) == 5


def test_caps_of_an_epoch(tmp_path):
    data = hub(tmp_path / "glue", "sst2")  # 48 rows to learn from: 6 steps

    def steps(**changes):
        session = session_of(data, **changes)
        phases = ("dense", "emep", "fine-tuning")
        counted = {name: len(list(training._batches(session, name, 1, 0))) for name in phases}
        assert counted == {name: session.steps_of(name) for name in phases}
        return tuple(counted.values())

    assert steps() == (6, 6, 6)
    assert steps(max_steps_per_epoch=4) == (4, 4, 4)
    assert steps(max_steps_per_epoch=4, emep_steps=2) == (4, 2, 4)
    assert steps(max_steps_per_epoch=6, emep_steps=2) == (6, 2, 6)
    assert steps(max_steps_per_epoch=99, emep_steps=99) == (6, 6, 6)


def test_different_epochs_of_a_capped_phase_see_different_rows(tmp_path):
    session = session_of(hub(tmp_path / "glue", "sst2"), max_steps_per_epoch=1)
    seen = [next(training._batches(session, "fine-tuning", 1, epoch)).tolist() for epoch in range(5)]
    assert len({tuple(rows) for rows in seen}) == 5


def test_capped_runs_count_their_steps(tmp_path, monkeypatch):
    taken: dict[str, int] = {}
    step = training.Phase.step

    def counted(self, *arguments):
        taken[self.name] = taken.get(self.name, 0) + 1
        return step(self, *arguments)

    monkeypatch.setattr(training.Phase, "step", counted)
    data = hub(tmp_path / "glue", "sst2")
    config = glue("sst2", data, max_steps_per_epoch=3, emep_steps=2, dense_epochs=2, max_epochs=2, candidates=3)
    run(tmp_path / "run", config)
    assert taken == {"dense": 6, "emep": 3 * 2, "fine-tuning": 6}


# Tokens kept on disk


class Counting:
    """A tokenizer that counts how often it is called."""

    def __init__(self, tokenizer):
        self.tokenizer, self.calls = tokenizer, 0

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)

    def __call__(self, *given, **more):
        self.calls += 1
        return self.tokenizer(*given, **more)


ROWS_OF_TEXT = [[("the old dog saw the cats near the tall king",), ("the cat",)], [("the cow",)], [("the dogs",)]]


def encoded(tokenizer, limit: int = 6, parts=ROWS_OF_TEXT) -> tuple[list, int]:
    """All parts, as a run encodes its splits, and how often that took the tokenizer."""
    counting = Counting(tokenizer)
    found = [encode(rows, counting, limit) for rows in parts]
    return found, counting.calls


def same(one: list, other: list) -> bool:
    return all(
        cut == again and torch.equal(a.ids, b.ids) and torch.equal(a.starts, b.starts) and torch.equal(a.kinds, b.kinds)
        for (a, cut), (b, again) in zip(one, other, strict=True)
    )


def test_tokens_are_made_once(tmp_path):
    first, calls = encoded(sentences.tokenizer())
    assert calls
    again, calls = encoded(sentences.tokenizer())
    assert same(first, again)
    assert calls == 0
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 3


def test_tokens_of_a_saved_tokenizer_are_made_once(tmp_path):
    """Files of the Hub often say how to pad and cut; that the tokenizer forgets at its first call."""
    tokenizer = sentences.tokenizer()
    tokenizer.backend_tokenizer.enable_padding(length=20)
    tokenizer.backend_tokenizer.enable_truncation(20)
    tokenizer.save_pretrained(tmp_path / "model")
    first, _ = encoded(AutoTokenizer.from_pretrained(tmp_path / "model"))
    again, calls = encoded(AutoTokenizer.from_pretrained(tmp_path / "model"))
    assert same(first, again)
    assert calls == 0
    assert same(first, encoded(sentences.tokenizer())[0])


@pytest.mark.parametrize("damage", [b"", b"no safetensors at all", None])
def test_damaged_tokens_are_made_again(damage, tmp_path):
    first, _ = encoded(sentences.tokenizer(), parts=ROWS_OF_TEXT[:1])
    (file,) = (tmp_path / "cache").rglob("*.safetensors")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    again, calls = encoded(sentences.tokenizer(), parts=ROWS_OF_TEXT[:1])
    assert same(first, again)
    assert calls
    assert file.read_bytes() == whole


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("RANDPRUNE_CACHE", str(tmp_path / "file"))
    first, _ = encoded(sentences.tokenizer())
    again, calls = encoded(sentences.tokenizer())
    assert same(first, again)
    assert calls


def test_another_tokenizer_limit_or_text_is_tokenized_anew(tmp_path):
    def files() -> int:
        return len(list((tmp_path / "cache").rglob("*.safetensors")))

    part = ROWS_OF_TEXT[:1]
    encoded(sentences.tokenizer(), parts=part)
    encoded(sentences.tokenizer(), limit=7, parts=part)
    assert files() == 2
    other = sentences.tokenizer()
    other.add_tokens(["dog sa"])
    encoded(other, parts=part)
    assert files() == 3
    encoded(sentences.tokenizer(), parts=[[("the cat",), ("the cat",)]])
    assert files() == 4


def test_two_texts_are_no_pair_of_texts():
    """One row of a pair, or two rows of one text: other tokens, so another name on disk."""
    tokenizer = sentences.tokenizer()
    alone, _ = encode([("the cat",), ("the dog",)], tokenizer, 20)
    pair, _ = encode([("the cat", "the dog")], tokenizer, 20)
    assert (len(alone), len(pair)) == (2, 1)


# Texts that are too long; GPT-2


def test_what_is_cut_is_counted_and_said_once(tmp_path):
    long = "the old dog saw the cats near the tall king"
    train = write(tmp_path / "a.jsonl", frame(["a", "b"] * 10, text=[long, *phrases(30)[:19]]))
    other = write(tmp_path / "b.jsonl", frame(["a", "b"], text=[long, "the cat"]))
    config = own(train, other, max_length=6)
    tokenizer = sentences.tokenizer()
    expected = sum(len(tokenizer(text)["input_ids"]) > 6 for text in [long, *phrases(30)[:19], long])
    task = load(config)
    assert all(int(split.inputs.lengths.max()) <= 6 for split in task.splits.values())
    assert texts_of(task.test.inputs) == ["the old dog saw", "the cat"]
    said = [text for text in warnings_of(run(tmp_path / "run", config)) if "cut" in text]
    assert len(said) == 1
    assert said[0].startswith(f"{expected} texts")
    assert "6 tokens" in said[0]
    assert not any("cut" in text for text in warnings_of(run(tmp_path / "whole", own(train, other))))


def test_of_a_pair_the_longer_text_is_cut():
    tokens, cut = encode([("the old dog saw the cats near the tall king", "the cat")], sentences.tokenizer(), 9)
    assert cut == 1
    assert texts_of(tokens) == ["the old dog saw the cat"]


def test_room_for_special_tokens_only():
    """RoBERTa puts four of them around a pair: whatever is done about it, no row may be longer than the limit."""
    from tokenizers import processors

    tokenizer = sentences.tokenizer()
    special = [(word, tokenizer.convert_tokens_to_ids(word)) for word in ("[CLS]", "[SEP]")]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] [SEP] $B:1 [SEP]:1", special_tokens=special
    )
    for limit in (3, 4, 5):
        try:
            tokens, cut = encode([("the cat", "the dog")], tokenizer, limit)
        except ValueError as error:
            assert "max_length" in str(error)  # noqa: PT017, refused or cut, both will do
            continue
        assert int(tokens.lengths.max()) <= limit
        assert cut == 1


def test_a_tokenizer_that_does_not_know_the_models_limit(tmp_path):
    """Many tokenizers of the Hub say no limit: then the model's own counts, lest the run dies of a long text."""
    model = saved_bert(tmp_path / "model", limit=None, max_position_embeddings=12)
    long = "the old dog saw the cats near the tall king with the small cow that knew the pilot"
    train = write(tmp_path / "a.jsonl", frame(["a", "b"] * 10, text=phrases(20)))
    other = write(tmp_path / "b.jsonl", frame(["a", "b"], text=[long, "the cat"]))
    events = run(tmp_path / "run", own(train, other, model=str(model)))
    assert events[-1].kind == "run_finished"
    assert any(text.startswith("1 texts have more than 12 tokens") for text in warnings_of(events))


def test_gpt2_has_no_padding_token(tmp_path):
    data, model = hub(tmp_path / "glue", "mrpc"), gpt2(tmp_path / "model")
    events = run(tmp_path / "run", glue("mrpc", data, model=str(model), hidden_weight=1, attention_weight=1))
    rows = datasets.load_dataset(str(data), "mrpc", split="validation")
    logits = logits_of(tmp_path / "run", [rows["sentence1"], rows["sentence2"]])  # one by one: no padding at all
    truth = np.array(rows["label"])
    found = {"f1": events[-1].test.metric} | events[-1].test.others
    assert found == pytest.approx({name: REFERENCE[name](truth, logits) for name in ("f1", "accuracy")})
    settings = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert settings["pad_token_id"] == 0
    (dense,) = [event for event in events if isinstance(event, DenseFinished)]
    assert np.isfinite(dense.test.loss)
