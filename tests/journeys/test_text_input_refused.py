"""What users get wrong with texts, through the command line: one clear red line, exit code 2, nothing left behind."""

import io
import itertools
import json
import logging
import re
from pathlib import Path

import datasets
import pytest
import torch
import yaml
from safetensors.torch import load_file
from support.grids import thinned
from support.runs import same_tensors
from support.texts import frame, gpt2, hub, phrases, saved_bert, write
from tokenizers import processors

from randprune_lab import sentences, store, training
from randprune_lab.tiny import tiny_bert

# What datasets leaves open when a file will not do is closed by the garbage collector, in whichever test that is.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

LITTLE = ["--stages", "0.5", "--dense-epochs", 1, "--max-epochs", 1, "--candidates", 2, "--batch-size", 8]
SMALL = [*LITTLE, "--device", "cpu", "--no-controls"]
TEXT = ["--task", "text", "--text-columns", "text"]
NONE = ["--augment", 0, "--unlabelled", "none"]  # of the paper's presets
LABELS = ["a", "b"] * 15


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    """An empty working folder; caches elsewhere."""
    caches = tmp_path / "caches"
    monkeypatch.setenv("RANDPRUNE_CACHE", str(caches / "randprune"))
    monkeypatch.delenv("RANDPRUNE_RUNS", raising=False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", caches / "datasets")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


@pytest.fixture
def run(command):
    """``randprune run`` on the tiny BERT: exit code, standard output, standard error."""

    def call(*arguments, model="tiny-bert", settings=SMALL):
        return command("run", "--model", model, *settings, *arguments)

    return call


@pytest.fixture
def refused(run, capsys):
    """Runs; it must be refused in one line that says what the patterns say. Returns the line."""
    logged = io.StringIO()
    handler = logging.StreamHandler(logged)
    logging.getLogger("datasets").addHandler(handler)

    def call(*arguments, says, **more):
        files = sorted(Path.cwd().rglob("*"))
        logged.truncate(0)
        logged.seek(0)
        capsys.readouterr()  # what making the files has printed
        code, out, err = run(*arguments, **more)
        lines = [line for line in (logged.getvalue() + err).splitlines() if line.strip()]
        assert code == 2, err
        assert out == ""
        assert len(lines) == 1, lines
        assert "Traceback" not in lines[0]
        assert sorted(Path.cwd().rglob("*")) == files  # nothing is left behind
        for pattern in (says,) if isinstance(says, str) else says:
            assert re.search(pattern, lines[0]), f"{pattern!r} is not in: {lines[0]}"
        return lines[0]

    yield call
    logging.getLogger("datasets").removeHandler(handler)


@pytest.fixture
def finished(run, capsys):
    """Runs to the end; returns the run's folder and standard error."""

    def call(*arguments, **more):
        capsys.readouterr()
        code, _, err = run(*arguments, **more)
        assert code == 0, err
        (found,) = store.runs()
        assert found.status == "finished"
        return found.folder, err

    return call


def table(name: str = "train.jsonl", labels: list | None = None, **columns) -> Path:
    labels = LABELS if labels is None else labels
    return write(Path(name), frame(labels, **({"text": phrases(len(labels))} | columns)))


def both(*files: Path) -> str:
    return ",".join(map(str, files))


def relabelled(task: str, change) -> Path:
    """The Hub's layout with other labels, as plain values."""
    for file in (hub(Path("glue"), task) / task).glob("*.parquet"):
        rows = datasets.Dataset.from_parquet(str(file), cache_dir=str(Path.cwd().parent / "caches" / "other"))
        columns = {name: list(rows[name]) for name in rows.column_names}
        columns["label"] = [change(row, label) for row, label in enumerate(columns["label"])]
        datasets.Dataset.from_dict(columns).to_parquet(file)
    return Path("glue")


# Columns


def test_a_missing_column(refused):
    file = table()
    line = refused("--task", "text", "--text-columns", "nope", "--dataset", file, says=["'nope'", "text, label"])
    assert "--text-columns" in line
    refused(*TEXT, "--label-column", "kind", "--dataset", file, says=["'kind'", "--label-column"])
    other = write(Path("other.jsonl"), [{"text": text} for text in phrases(5)])
    refused(*TEXT, "--dataset", both(file, other), says=["'validation'", "'label'|other.jsonl"])


@pytest.mark.parametrize("columns", [[], ["--text-columns", ""], ["--text-columns", "a,b,c"]])
def test_no_text_column_or_three(columns, refused):
    refused("--task", "text", "--dataset", table(), *columns, says=["text_columns", "one column, or the two"])


def test_the_same_text_column_twice(refused):
    refused("--task", "text", "--text-columns", "text,text", "--dataset", table(), says="text_columns|--text-columns")


def test_the_label_column_is_a_text_column(refused):
    file = table()
    given = [*TEXT, "--label-column", "text", "--dataset"]
    refused(*given, both(file, file), says=["label_column|--label-column"])
    refused(*given, file, says=["label_column|--label-column"])


# Labels


@pytest.mark.parametrize(
    ("train", "other", "says"),
    [
        (LABELS, ["a", "c"], ["'c'", "one of a, b", "row 1"]),
        ([1, 2] * 15, [2, 3], ["is 3", "one of 1, 2"]),
        ([0, 1] * 15, [-1, -1], ["-1", "withheld"]),
        ([True, False] * 15, ["maybe", "no"], ["maybe|cannot be loaded"]),
        ([0.5, 1.0] * 15, [float("nan"), 1.0], ["nan|None", "finite"]),
        ([float("inf"), 1.0] * 15, [0.5, 1.0], ["inf", "finite"]),
    ],
)
def test_labels_that_will_not_do(train, other, says, refused):
    files = table(labels=train), table("other.jsonl", labels=other)
    refused(*TEXT, "--dataset", both(*files), says=says)


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_a_row_without_label(ending, refused):
    labels = [*LABELS[:7], "" if ending == "csv" else None, *LABELS[8:]]
    files = table(f"train.{ending}", labels), table(f"other.{ending}")
    refused(*TEXT, "--dataset", both(*files), says=["row 7", "label"])


def test_a_row_number_is_that_of_the_file(refused):
    """Also where the rows that get reported are taken out of the only file."""
    refused(*TEXT, "--dataset", table(text=["  ", *phrases(29)]), says="row 0")
    refused(*TEXT, "--dataset", table(labels=[*LABELS[:7], None, *LABELS[8:]]), says="row 7")


def test_a_single_class(refused):
    refused(*TEXT, "--dataset", table(labels=["a"] * 30), says=["'?a'?", "class|label"])


def test_withheld_labels_of_glue(refused):
    data = hub(Path("glue"), "sst2")
    file = data / "sst2" / "validation-00000-of-00001.parquet"
    rows = datasets.Dataset.from_parquet(str(file), cache_dir=str(Path.cwd().parent / "caches" / "other"))
    columns = {name: list(rows[name]) for name in rows.column_names} | {"label": [-1] * len(rows)}
    datasets.Dataset.from_dict(columns, features=rows.features).to_parquet(file)  # as the Hub's test splits are
    refused("--task", "glue/sst2", *NONE, "--dataset", data, says=["row 0", "-1", "withheld"])


def test_three_classes_where_the_metric_is_of_two(refused):
    data = relabelled("mrpc", lambda row, _: row % 3)
    refused("--task", "glue/mrpc", *NONE, "--dataset", data, says="mrpc|F1|f1")


def test_decimals_where_classes_are_measured(refused):
    data = relabelled("cola", lambda _, label: float(label))
    refused("--task", "glue/cola", *NONE, "--dataset", data, says="label")


def test_whole_numbers_are_decimals_of_similarity(finished):
    """stsb is a regression, also where a table says 4 instead of 4.0."""
    data = relabelled("stsb", lambda _, label: round(label))
    folder, _ = finished("--task", "glue/stsb", *NONE, "--dataset", data)
    assert len(json.loads((folder / "model" / "config.json").read_text()).get("id2label", "0")) == 1


def test_words_are_no_similarity(refused):
    data = relabelled("stsb", lambda _, label: f"about {round(label)}")
    refused("--task", "glue/stsb", *NONE, "--dataset", data, says="label")


# Texts


@pytest.mark.parametrize("text", ["", "  \t ", None])
def test_an_empty_text(text, refused):
    files = table(text=[*phrases(4), text, *phrases(25, seed=1)]), table("other.jsonl")
    refused(*TEXT, "--dataset", both(*files), says=["row 4", "empty", "train"])
    refused(*TEXT, "--dataset", both(*reversed(files)), says=["row 4", "empty", "validation"])


def test_both_texts_of_a_pair_are_empty(refused):
    one, two = [*phrases(2), "", *phrases(27, seed=1)], [*phrases(2, seed=2), None, *phrases(27, seed=3)]
    files = table(text=one, two=two), table("other.jsonl", two=phrases(30))
    given = ["--task", "text", "--text-columns", "text,two"]
    refused(*given, "--dataset", both(*files), says=["row 2", "text and two", "empty"])


def test_one_text_of_a_pair_is_empty(finished):
    one, two = ["", *phrases(29)], [*phrases(28), None, "  "]
    files = table(text=one, two=two), table("other.jsonl", two=phrases(30))
    folder, err = finished("--task", "text", "--text-columns", "text,two", "--dataset", both(*files))
    said = [event.text for event in store.story(folder) if event.kind == "warned"]
    assert [text for text in said if "empty" in text] == ["train: in 3 pairs one of the two texts is empty."]
    assert err.count("empty") == 1


def test_numbers_are_no_texts(refused):
    refused(*TEXT, "--dataset", both(table(text=list(range(30))), table("o.jsonl")), says="")
    refused(*TEXT, "--dataset", table(text=list(range(30))), says=["no text", "--text-columns"])


# Data sets and files


def test_an_absent_split(refused):
    data = hub(Path("glue"), "sst2")
    header = data / "README.md"
    header.write_text(header.read_text().replace("split: validation\n", "split: dev\n"))
    refused("--task", "glue/sst2", *NONE, "--dataset", data, says=["'validation'", "train, dev", "--dataset"])
    (Path("own")).mkdir()
    table("own/validation.jsonl")
    refused(*TEXT, "--dataset", "own", says=["'train'", "validation"])


@pytest.mark.parametrize("dataset", ["nowhere", "nyu-mll/glue", "some/folder/deep", "./here"])
def test_no_such_data_set(dataset, refused):
    refused("--task", "glue/sst2", *NONE, "--dataset", dataset, says=[re.escape(dataset), "local folder", "sentences"])


def test_a_task_that_the_folder_lacks(refused):
    data = hub(Path("glue"), "sst2")
    refused("--task", "glue/qnli", *NONE, "--dataset", data, says=["qnli", "sst2"])


def test_a_folder_without_configs(refused):
    data = hub(Path("glue"), "sst2")
    (data / "README.md").unlink()
    refused("--task", "glue/sst2", *NONE, "--dataset", data, says=["sst2", "layout"])
    Path("empty").mkdir()
    refused("--task", "glue/sst2", *NONE, "--dataset", "empty", says=["empty", "layout"])
    refused(*TEXT, "--dataset", "empty", says=["empty", r"\.csv"])


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("t.csv", b"", "empty|[Nn]o columns|no data|rows"),
        ("t.csv", b"text,label\n", "no data|rows|empty"),
        ("t.csv", b"text,label\na dog,x\n", "too few|rows"),
        ("t.csv", b"text,label\n" + 8 * b"a dog,x\n", "10 or more"),
        ("t.csv", b"text,label\n" + 20 * b"a dog,x\n" + b"a,b,c,d\n", "line 22|fields"),
        ("t.csv", b"\xff\xfe\x00\x80text,label\n", "decode|utf|UTF"),
        ("t.tsv", b"text,label\n" + 20 * b"a dog,x\n", "column 'text'"),
        ("t.jsonl", b"", "empty|no data|rows"),
        ("t.jsonl", b'{"text": "a", "label": 1}\n{"text": \n', "JSON|row 1|parse"),
        ("t.jsonl", b"[1, 2, 3]\n", "t.jsonl"),
        ("t.parquet", b"no parquet at all", "[Pp]arquet"),
        ("t.txt", b"text,label\na,b\n", r"\.csv, \.jsonl or \.parquet"),
        ("t.xlsx", b"text,label\na,b\n", r"\.csv, \.jsonl or \.parquet"),
    ],
)
def test_odd_files(name, content, says, refused):
    Path(name).write_bytes(content)
    refused(*TEXT, "--dataset", name, says=[name, says])


def test_files_that_are_not_there_or_too_many(refused):
    refused(*TEXT, "--dataset", "missing.csv", says=["missing.csv"])
    refused(*TEXT, "--dataset", both(table(), Path("missing.jsonl")), says=["missing.jsonl"])
    files = [table(f"{name}.jsonl") for name in "abc"]
    refused(*TEXT, "--dataset", both(*files), says=["one file to train on, and one to report"])
    Path("folder.csv").mkdir()
    refused(*TEXT, "--dataset", "folder.csv", says="folder.csv")
    refused(*TEXT, "--dataset", both(table("a.csv"), table("b.tsv")), says="b.tsv")


@pytest.mark.parametrize("name", ["my texts/a b.csv", "a,b.csv", "a.csv,b.csv", "set [1].csv", "été 😀.csv"])
def test_odd_names_of_files(name, finished):
    Path(name).parent.mkdir(exist_ok=True)
    finished(*TEXT, "--dataset", table(name))


# Models


@pytest.mark.parametrize("model", ["bert-base-uncased", "someone/something"])
def test_no_network(model, refused):
    line = refused("--task", "sentences", model=model, says=[re.escape(model), "folder", "tiny-bert"])
    assert "Without a network" in line


def test_defaults_of_the_paper_without_a_network(command):
    code, out, err = command("run", "--task", "glue/mrpc", "--device", "cpu")
    assert (code, out, len(err.strip().splitlines())) == (2, "", 1)
    assert "Without a network" in err
    assert not Path("runs").exists()


def test_a_teacher_that_is_not_there(refused):
    refused("--task", "text", *TEXT[2:], "--dataset", table(), "--teacher", "some/teacher", says="some/teacher")


def test_a_head_that_does_not_fit(refused, finished):
    data, model = hub(Path("glue"), "mnli", "stsb", "sst2"), saved_bert(Path("model"), limit=32)
    given = [*NONE, "--dataset", data]
    refused("--task", "glue/mnli", *given, model=model, says=["2 outputs", "needs 3"])
    refused("--task", "glue/stsb", *given, model=model, says=["2 outputs", "needs 1", "regression"])
    finished("--task", "glue/sst2", *given, model=model)


def test_a_tokenizer_that_cannot_pad(refused):
    model = gpt2(Path("model"))
    file = model / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({name: value for name, value in settings.items() if name != "eos_token"}))
    refused(*TEXT, "--dataset", table(), model=model, says=["padding", "pad_token"])


def test_a_model_without_tokenizer_files(refused):
    """transformers then makes up an empty one, to which every word is unknown."""
    tiny_bert().save_pretrained("model")
    refused(*TEXT, "--dataset", table(), model="model", says=["model", "tokenizer"])


def test_a_tokenizer_of_another_model(refused):
    """Some of its numbers lie beyond the model's vocabulary."""
    model = saved_bert(Path("model"), limit=32, vocab_size=40)
    refused(*TEXT, "--dataset", table(), model=model, says=["tokenizer|vocabulary"])


def test_models_of_another_kind(refused):
    refused("--task", "sentences", model="mlp", says=["tokenizer", "tiny-bert"])
    refused("--task", "sentences", model="tiny-vit", says=["tiny-vit", "image|text|tiny-bert"])
    refused("--task", "digits", model="tiny-bert", says=["tiny-bert|model"])


def test_max_length_too_small_for_special_tokens(refused):
    data = hub(Path("glue"), "mrpc", "sst2")
    refused("--task", "glue/sst2", *NONE, "--dataset", data, "--max-length", 2, says=["max_length"])
    given = ["--task", "glue/mrpc", *NONE, "--dataset", data]  # [CLS] [SEP] [SEP]: nothing of the texts would be left
    refused(*given, "--max-length", 3, says=["max_length"])
    model = saved_bert(Path("model"), limit=32)
    tokenizer = sentences.tokenizer()
    special = [(word, tokenizer.convert_tokens_to_ids(word)) for word in ("[CLS]", "[SEP]")]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] [SEP] $B:1 [SEP]:1", special_tokens=special
    )  # as RoBERTa has it
    tokenizer.save_pretrained(model)
    refused(*given, "--max-length", 3, model=model, says=["max_length"])


# Distillation data


def test_rows_without_labels_for_classes(refused):
    data = hub(Path("glue"), "mrpc", "mnli", "sst2", "stsb")
    given = ["--augment", 0, "--dataset", data, "--unlabelled"]
    refused("--task", "glue/mrpc", *given, "glue/mnli", says=["unlabelled", "regression"])
    refused("--task", "glue/stsb", *given, "glue/sst2", says=["1 texts", "has 2"])
    refused("--task", "glue/stsb", *given, "glue/mnil", says=["glue/mnil", "glue/mnli"])
    refused("--task", "glue/stsb", *given, "glue/rte", says=["rte"])


@pytest.mark.parametrize("task", ["sentences", "digits", "text"])
def test_rows_without_labels_of_tasks_that_have_no_pairs(task, refused):
    data = hub(Path("glue"), "stsb")
    refused(
        "--task", "glue/stsb", "--augment", 0, "--dataset", data, "--unlabelled", task, says="unlabelled|text_columns"
    )


def test_rows_without_labels_need_distillation(refused):
    data = hub(Path("glue"), "stsb", "mnli")
    given = ["--task", "glue/stsb", "--dataset", data, "--unlabelled", "glue/mnli"]
    weights = ["--logit-weight", 0, "--hidden-weight", 0, "--attention-weight", 0]
    refused(*given, *weights, says=["unlabelled", "logit_weight"])


def test_augmentation_without_a_mask_token(refused):
    model = gpt2(Path("model"))
    given = [*TEXT, "--dataset", table(), "--augment", 2]
    refused(*given, model=model, says=["mask token", "augment_model"])
    refused(*given, "--augment-model", model, says=["mask token"])


def test_a_small_model_and_the_papers_augmentation(refused):
    """The preset of sst2 augments; whose model cannot must learn how to leave that out."""
    data = hub(Path("glue"), "sst2")
    refused("--task", "glue/sst2", "--dataset", data, says=["augment_model", r"augment 0|augment=0|augment = 0"])


def test_the_tiny_model_is_no_hub_id(refused, monkeypatch):
    """tiny-bert is ours: nobody's repository of that name may be asked for."""
    from transformers import AutoTokenizer

    asked = []
    load = AutoTokenizer.from_pretrained
    monkeypatch.setattr(
        AutoTokenizer, "from_pretrained", lambda name, **more: (asked.append(str(name)), load(name, **more))[1]
    )
    refused(*TEXT, "--dataset", table(), "--augment", 2, says="augment")
    refused("--task", "sentences", model="tiny-vit", says="")
    assert not {"tiny-bert", "tiny-vit"} & set(asked)


def test_glove_that_is_not_there(refused):
    given = [*TEXT, "--dataset", table(), "--augment", 2, "--glove", "none.txt"]
    refused(*given, model=saved_bert(Path("model"), limit=32), says=["glove = none.txt", "no such file"])


# Names


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--layer-map", "1,2"], ["layer_map", "teacher"]),
        (["--preset", "paper-shrt"], ["paper-shrt", "'paper-short'"]),
        (["--track", "tensorbord"], ["tensorbord", "'tensorboard'"]),
        (["--task", "sentence"], ["sentence", "'sentences'"]),
        (["--task", "glue/mrcp"], ["glue/mrcp", "'glue/mrpc'"]),
        (["--task", "mrpc"], ["mrpc", "'glue/mrpc'"]),
        (["--executor", "lockstp"], ["lockstp", "'lockstep'"]),
        (["--max-length", "long"], ["max_length", "long"]),
        (["--emep-steps", "0"], ["emep_steps"]),
        (["--wave", "0"], ["wave"]),
        (["--max-steps-per-epoch", "-1"], ["max_steps_per_epoch"]),
    ],
)
def test_unknown_names(arguments, says, refused):
    task = [] if "--task" in arguments else ["--task", "sentences"]
    refused(*task, *arguments, says=says)


# What looks odd and is none the less right


def test_odd_texts_and_names_of_labels(finished):
    odd = [
        "😀" * 400,
        "ünï\u202e \x07 café\r\nnext",
        "\u200b.",
        "e\u0301",
        "the cat " * 3000,
        "\"quoted\", 'too'",
        "<b>&amp;",
    ]
    names = ['say "no"', "it's: [a] #b\n\\ <i>", "😀", "yes\u202e"]
    folder, err = finished(*TEXT, "--dataset", table(labels=names * 10, text=[*odd, *phrases(33)]))
    settings = json.loads((folder / "model" / "config.json").read_text())
    assert sorted(settings["id2label"].values()) == sorted(names)
    assert "cut" in err
    assert (folder / "report.html").is_file()
    card = (folder / "model" / "README.md").read_text(encoding="utf-8")
    assert isinstance(yaml.safe_load(card.split("---")[1]), dict)


def test_a_run_on_glue_is_found_again(finished, command):
    """Its task's name holds a slash; the run's folder is none the less one folder among the others."""
    data = hub(Path("glue"), "mrpc")
    folder, _ = finished("--task", "glue/mrpc", *NONE, "--dataset", data)
    assert folder.parent == Path("runs")
    code, out, _ = command("runs", "--json")
    assert code == 0
    (found,) = json.loads(out)["runs"]
    assert found["status"] == "finished"


# Out of memory


REASONS = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore lines follow."),
    "cpu": RuntimeError(
        "[enforce fail at alloc_cpu.cpp] . DefaultCPUAllocator: can't allocate memory: you tried 8 bytes"
    ),
    "python": MemoryError(),
}


@pytest.mark.parametrize(
    ("phase", "at", "reason"),
    thinned(
        [
            (phase, at, reason)
            for (phase, at), reason in itertools.product(
                [("dense", 1), ("dense", 5), ("emep", 5), ("fine-tuning", 5)], ["cuda", "cpu", "python"]
            )
        ],
        1,
        marker=pytest.mark.crash,
    ),
)
def test_out_of_memory_and_on(phase, at, reason, command, monkeypatch):
    """It stops with one line that names what to lower; resumed, it ends as if nothing had been."""
    file = table()
    given = ["--task", "text", "--text-columns", "text", "--dataset", file, "--model", "tiny-bert", *SMALL]
    given = [*given, "--candidates", 3, "--dense-epochs", 2, "--max-epochs", 2]
    step, taken = training.Phase.step, []

    def hungry(self, *arguments):
        taken.extend([self.name] if self.name == phase else [])
        if len(taken) == at and self.name == phase:
            raise REASONS[reason]
        return step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(training.Phase, "step", hungry)
        code, _, err = command("run", *given)
    assert code == 2
    said = err.strip().splitlines()[-1]
    assert "out of memory" in said
    assert "--wave 1" in said
    assert "Traceback" not in err
    (stopped,) = store.runs()
    assert str(stopped.folder) in said
    code, _, err = command("resume", stopped.folder, "--wave", 1)
    assert code == 0, err
    monkeypatch.setenv("RANDPRUNE_RUNS", "whole")
    assert command("run", *given)[0] == 0
    (whole,) = store.runs()
    ends = [run.folder / "model" / "model.safetensors" for run in (stopped, whole)]
    assert same_tensors(*map(load_file, ends))
    scores = [
        [event.to_json() for event in store.story(run.folder) if event.kind in ("candidate_scored", "run_finished")]
        for run in (stopped, whole)
    ]
    assert scores[0] == scores[1]


def test_other_errors_are_not_taken_for_memory(command, monkeypatch):
    def broken(*_):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(training.Phase, "step", broken)
    code, _, err = command("run", "--task", "text", *TEXT[2:], "--dataset", table(), "--model", "tiny-bert", *SMALL)
    assert code == 2
    assert "mat1 and mat2" in err
    assert "memory" not in err
