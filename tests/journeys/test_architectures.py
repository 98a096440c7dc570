"""Every supported architecture, tiny and random: what is pruned, how sparse, what is saved, what loads again."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from datasets import load_dataset
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from support import tiny_transformers
from support.runs import read_tensors
from support.tiny_transformers import ARCHITECTURES, CLASSES, POSITIONS, TEXT
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from randprune_lab import engine, outcome, store
from randprune_lab.config import RunConfig
from randprune_lab.events import DenseFinished, EpochFinished, MaskChosen, RunFinished, RunStarted
from randprune_lab.models import build_model, prunable_weights

BERT_BLOCK = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
)
DEBERTA_BLOCK = (
    "attention.self.query_proj",
    "attention.self.key_proj",
    "attention.self.value_proj",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
)
DISTILBERT_BLOCK = (
    "attention.q_lin",
    "attention.k_lin",
    "attention.v_lin",
    "attention.out_lin",
    "ffn.lin1",
    "ffn.lin2",
)
GPT2_BLOCK = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
VIT_BLOCK = (
    "attention.q_proj",
    "attention.k_proj",
    "attention.v_proj",
    "attention.o_proj",
    "mlp.fc1",
    "mlp.fc2",
)
# Where the blocks stand, how many, their matrices; and the weights of one block: width 16, inside 24.
SQUARES = 4 * 16 * 16 + 2 * 16 * 24
EXPECTED = {
    "bert": ("bert.encoder.layer", 2, BERT_BLOCK),
    "bert-deep": ("bert.encoder.layer", 5, BERT_BLOCK),
    "roberta": ("roberta.encoder.layer", 2, BERT_BLOCK),
    "distilbert": ("distilbert.transformer.layer", 2, DISTILBERT_BLOCK),
    "electra": ("electra.encoder.layer", 2, BERT_BLOCK),
    "deberta-v2": ("deberta.encoder.layer", 2, DEBERTA_BLOCK),
    "gpt2": ("transformer.h", 2, GPT2_BLOCK),
    "vit": ("vit.layers", 2, VIT_BLOCK),
}
SPARSITIES = (0.5, 0.83)


def names(architecture: str) -> list[str]:
    place, blocks, matrices = EXPECTED[architecture]
    return [f"{place}.{block}.{matrix}.weight" for block in range(blocks) for matrix in matrices]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("RANDPRUNE_CACHE", str(tmp_path_factory.mktemp("cache")))


def settings(folder: Path, architecture: str, **changes) -> RunConfig:
    """Two stages with everything on; the data and the checkpoint lie in ``folder``."""
    data = {"task": "digits", "batch_size": 360, "max_steps_per_epoch": 2}
    if architecture != "vit":
        data = {
            "task": "text",
            "dataset": tiny_transformers.dataset(folder),
            "text_columns": ("sentence",),
            "batch_size": 16,
        }
    base = {
        "model": str(folder / "checkpoint"),
        "stages": SPARSITIES,
        "candidates": 3,
        "dense_epochs": 1,
        "max_epochs": 1,
        "hidden_weight": 1.0,
        "attention_weight": 1.0,
        "learning_rate": 1e-3,
        "device": "cpu",
    }
    return RunConfig(**(base | data | changes))


def recorded(folder: Path, config: RunConfig) -> list:
    return list(store.record(folder / "run", engine.prune(config)))


class Run:
    """A finished run of an architecture."""

    def __init__(self, folder: Path, architecture: str) -> None:
        self.folder, self.architecture = folder, architecture
        self.checkpoint = Path(tiny_transformers.checkpoint(folder / "checkpoint", architecture))
        self.original = read_tensors(self.checkpoint / "model.safetensors")
        self.events = recorded(folder, settings(folder, architecture))
        self.model = folder / "run" / "model"

    def last(self, kind):
        return [event for event in self.events if isinstance(event, kind)][-1]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def run(request, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RANDPRUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
        return Run(tmp_path_factory.mktemp(request.param), request.param)


@torch.no_grad()
def answers(run: Run) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the saved network, loaded by transformers alone, and the right classes, of the reported split."""
    if run.architecture == "vit":
        images, labels = load_digits(return_X_y=True)
        _, test = train_test_split(range(len(labels)), test_size=360, stratify=labels, random_state=0)
        model = AutoModelForImageClassification.from_pretrained(run.model).eval()
        pixels = torch.from_numpy(images[test] / 16).float().view(-1, 1, 8, 8)
        return model(pixel_values=pixels).logits, torch.from_numpy(labels[test])
    model = AutoModelForSequenceClassification.from_pretrained(run.model).eval()
    tokenizer = AutoTokenizer.from_pretrained(run.model)
    texts, labels = tiny_transformers.sentences(24, 1)
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    return model(**batch).logits, torch.tensor([CLASSES.index(label) for label in labels])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_prunable_are_the_matrices_of_the_blocks(architecture):
    model = tiny_transformers.build(architecture)
    found = prunable_weights(model)
    assert sorted(found) == sorted(names(architecture))
    assert all(weight.ndim == 2 for weight in found.values())
    inside = 16 * 48 + 16 * 16 + 2 * 16 * 24 if architecture == "gpt2" else SQUARES
    assert sum(weight.numel() for weight in found.values()) == EXPECTED[architecture][1] * inside
    memory = {parameter.data_ptr() for parameter in model.parameters()}
    assert all(weight.data_ptr() in memory for weight in found.values())


def test_deberta_with_projections_of_positions_and_a_convolution():
    """As deberta-v2-xlarge has them: the projections are in the blocks, the convolution stands outside."""
    model = tiny_transformers.build("deberta-v2", share_att_key=False, conv_kernel_size=3)
    place = "deberta.encoder.layer"
    more = [f"{place}.{n}.attention.self.pos_{part}_proj.weight" for n in range(2) for part in ("key", "query")]
    assert sorted(prunable_weights(model)) == sorted(names("deberta-v2") + more)
    assert any("encoder.conv" in name for name, _ in model.named_parameters())


def test_the_run_prunes_just_these(run):
    assert sorted(run.last(RunStarted).prunable) == sorted(names(run.architecture))
    assert run.last(RunStarted).prunable == {name: t.numel() for name, t in in_memory(run).items()}


def in_memory(run: Run) -> dict[str, torch.Tensor]:
    """The prunable tensors of the saved network, under the names that the architecture gives them."""
    auto = AutoModelForImageClassification if run.architecture == "vit" else AutoModelForSequenceClassification
    state = auto.from_pretrained(run.model).state_dict()
    return {name: state[name] for name in run.last(RunStarted).prunable}


def test_every_tensor_is_as_sparse_as_asked(run):
    whole, left = 0, 0
    for name, tensor in in_memory(run).items():
        keep = tensor.numel() - round(0.83 * tensor.numel())
        assert run.last(MaskChosen).tensors[name]["kept"] == keep
        assert int(tensor.count_nonzero()) == keep
        whole, left = whole + tensor.numel(), left + keep
    assert run.last(RunFinished).sparsity == pytest.approx(1 - left / whole, abs=1e-12)
    chosen = [event for event in run.events if isinstance(event, MaskChosen)]
    assert chosen[0].tensors.keys() == chosen[1].tensors.keys()
    for name, size in run.last(RunStarted).prunable.items():
        assert chosen[0].tensors[name]["kept"] == size - round(0.5 * size)


def test_nothing_else_is_sparse(run):
    saved = read_tensors(run.model / "model.safetensors")
    prunable = {tensor.numpy().tobytes() for tensor in in_memory(run).values()}
    for name, tensor in saved.items():
        if tensor.ndim >= 2 and tensor.numpy().tobytes() not in prunable:
            before = run.original.get(name, tensor)
            assert int((tensor == 0).sum()) <= int((before == 0).sum()) + 1, name


def test_names_shapes_and_types_are_those_of_the_checkpoint(run):
    saved = read_tensors(run.model / "model.safetensors")
    assert {name: (t.shape, t.dtype) for name, t in saved.items()} == {
        name: (t.shape, t.dtype) for name, t in run.original.items()
    }


def test_the_saved_network_predicts_what_was_reported(run):
    logits, labels = answers(run)
    told = run.last(RunFinished).test
    assert float((logits.argmax(1) == labels).double().mean()) == pytest.approx(told.metric, abs=1e-9)
    assert float(torch.nn.functional.cross_entropy(logits, labels)) == pytest.approx(told.loss, rel=1e-4)
    assert logits.std(0).min() > 0.01, "a network that always says the same shows nothing"


def test_it_loads_without_a_missing_or_superfluous_tensor(run):
    auto = AutoModelForImageClassification if run.architecture == "vit" else AutoModelForSequenceClassification
    model, found = auto.from_pretrained(run.model, output_loading_info=True)
    assert not any(found.values()), found
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert type(model).__name__ == type(tiny_transformers.build(run.architecture)).__name__
    if run.architecture != "vit":
        assert model.config.id2label == {0: "bad", 1: "good"}
        assert model.config.label2id == {"bad": 0, "good": 1}


def test_the_tokenizer_is_that_of_the_checkpoint(run):
    if run.architecture == "vit":
        pytest.skip("pictures have none")
    saved = AutoTokenizer.from_pretrained(run.model)
    theirs = AutoTokenizer.from_pretrained(run.checkpoint)
    texts = tiny_transformers.sentences(5, 7)[0]
    assert saved(texts)["input_ids"] == theirs(texts)["input_ids"]
    assert saved.model_max_length == theirs.model_max_length == POSITIONS
    assert type(saved) is type(theirs)


def test_every_term_was_in_use_and_finite(run):
    tuned = [event for event in run.events if isinstance(event, EpochFinished) and event.phase == "fine-tuning"]
    assert len(tuned) == 2
    for event in tuned:
        assert set(event.terms) == {"task", "logits", "hidden", "attention"}
        assert all(0 < value < 1e4 for value in event.terms.values())
        assert event.loss == pytest.approx(sum(event.terms.values()), rel=1e-5)  # all weights are 1


def test_the_checkpoint_was_left_alone(run):
    now = read_tensors(run.checkpoint / "model.safetensors")
    assert all(torch.equal(now[name], tensor) for name, tensor in run.original.items())


def test_conclude(run):
    """What sparsity bought, the model card and the report, with the numbers that the run had."""
    folder = run.folder / "run"
    report = outcome.conclude(folder)
    benefit = json.loads((folder / "benefit.json").read_text())
    sizes = [len(tensor.numpy().tobytes()) for tensor in read_tensors(folder / "model" / "model.safetensors").values()]
    for name in ("dense_bytes", "saved_bytes"):
        assert sum(sizes) < benefit[name] < sum(sizes) + 20_000
    kept = sum(tensors["kept"] for tensors in run.last(MaskChosen).tensors.values())
    whole = sum(run.last(RunStarted).prunable.values())
    bits = sum(sizes) - 4 * (whole - kept) + whole // 8
    assert benefit["packed_bytes"] == pytest.approx(bits, abs=20_000)
    assert benefit["packed_bytes"] < benefit["saved_bytes"]
    assert benefit["layers"] == len(names(run.architecture))
    assert benefit["csr_layers"] == (0 if run.architecture == "gpt2" else benefit["layers"])  # Conv1D is no nn.Linear
    assert min(benefit["dense_ms"], benefit["pruned_ms"]) > 0
    card = (folder / "model" / "README.md").read_text()
    done = run.last(RunFinished)
    auto = "AutoModelForImageClassification" if run.architecture == "vit" else "AutoModelForSequenceClassification"
    for said in (f"{done.sparsity:.4f}", f"{done.test.metric:.4f}", f"{whole:,}", f"{kept:,}", auto, "`0`"):
        assert said in card, said
    assert all(f"`{name}`" in card for name in names(run.architecture))
    assert str(run.folder) not in card, "a card names nobody's folders"
    assert report == folder / "report.html"
    assert f"{100 * done.test.metric:.1f} %" in report.read_text()
    assert answers(run)[0].isfinite().all(), "model/ still loads"


# Loading.


@pytest.fixture
def bert(tmp_path) -> Path:
    return Path(tiny_transformers.checkpoint(tmp_path / "checkpoint", "bert"))


def test_half_precision_is_trained_in_float32(tmp_path):
    tiny_transformers.checkpoint(tmp_path / "checkpoint", "bert", half=True)
    assert {t.dtype for t in read_tensors(tmp_path / "checkpoint" / "model.safetensors").values()} == {torch.float16}
    run = recorded(tmp_path, settings(tmp_path, "bert", stages=(0.5,)))
    folder = tmp_path / "run" / "model"
    saved = read_tensors(folder / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    rounded = saved["bert.encoder.layer.0.output.dense.weight"]
    assert not torch.equal(rounded, rounded.half().float()), "trained in half precision"
    assert json.loads((folder / "config.json").read_text()).get("dtype", "float32") == "float32"
    assert AutoModelForSequenceClassification.from_pretrained(folder).dtype == torch.float32
    assert run[-1].sparsity == 0.5


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00001.bin"])
def test_a_pickle_is_refused(bert, tmp_path, name):
    tensors = load_file(bert / "model.safetensors")
    (bert / "model.safetensors").unlink()
    torch.save(tensors, bert / name)
    if "-of-" in name:
        index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, name)}
        (bert / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"checkpoint.*cannot be loaded.*safetensors"):
        next(iter(engine.prune(settings(tmp_path, "bert"))))


def test_safetensors_are_read_where_a_pickle_lies_beside(bert, tmp_path):
    (bert / "pytorch_model.bin").write_bytes(b"no pickle at all")
    assert isinstance(next(iter(engine.prune(settings(tmp_path, "bert")))), RunStarted)


@pytest.mark.parametrize("architecture", ["bert", "roberta", "gpt2"])
def test_a_head_of_another_size_is_refused(tmp_path, architecture):
    tiny_transformers.checkpoint(tmp_path / "checkpoint", architecture, num_labels=3)
    with pytest.raises(ValueError, match="head has 3 outputs, the task needs 2"):
        next(iter(engine.prune(settings(tmp_path, architecture))))


def test_a_head_of_another_size_is_refused_of_pictures(tmp_path):
    tiny_transformers.checkpoint(tmp_path / "checkpoint", "vit", num_labels=3)
    with pytest.raises(ValueError, match="head has 3 outputs, the task needs 10"):
        next(iter(engine.prune(settings(tmp_path, "vit"))))


def test_a_pretrained_network_gets_a_head_of_its_seed(bert, tmp_path):
    tiny_transformers.build("bert").bert.save_pretrained(bert)
    head = {"outputs": 3, "labels": ("a", "b", "c"), "images": False, "eager": False}
    before = torch.random.get_rng_state()
    one, same, other = (build_model(str(bert), seed, **head).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert one["classifier.weight"].shape == (3, 16)
    assert torch.equal(one["classifier.weight"], same["classifier.weight"])
    assert not torch.equal(one["classifier.weight"], other["classifier.weight"])
    body = [name for name in one if "encoder" in name]
    assert body
    assert all(torch.equal(one[name], other[name]) for name in body)
    assert isinstance(next(iter(engine.prune(settings(tmp_path, "bert")))), RunStarted)


@pytest.mark.parametrize("missing", ["bert.encoder.layer.1.output.dense.weight", "bert.embeddings.LayerNorm.bias"])
def test_half_a_checkpoint_is_refused(bert, tmp_path, missing):
    tensors = load_file(bert / "model.safetensors")
    save_file({name: t for name, t in tensors.items() if name != missing}, bert / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=f"holds no weights for {missing}"):
        next(iter(engine.prune(settings(tmp_path, "bert"))))


def test_code_of_a_checkpoint_is_not_run(bert, tmp_path):
    """Even where its configuration asks for that."""
    witness = tmp_path / "witness"
    (bert / "evil.py").write_text(f"open({str(witness)!r}, 'w').close()\nclass C: pass\n")
    for file, entries in (
        ("config.json", {"AutoConfig": "evil.C", "AutoModelForSequenceClassification": "evil.C"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["evil.C", "evil.C"]}),
    ):
        settled = json.loads((bert / file).read_text())
        (bert / file).write_text(json.dumps(settled | {"auto_map": entries}))
    assert isinstance(next(iter(engine.prune(settings(tmp_path, "bert")))), RunStarted)  # as the BERT that it is
    settled = json.loads((bert / "config.json").read_text())
    (bert / "config.json").write_text(json.dumps(settled | {"model_type": "unheard-of"}))
    with pytest.raises(ValueError, match=r"checkpoint.*cannot be loaded"):
        next(iter(engine.prune(settings(tmp_path, "bert"))))
    assert not witness.exists()


@pytest.mark.parametrize("architecture", TEXT)
def test_a_folder_without_a_tokenizer_is_refused(tmp_path, architecture):
    tiny_transformers.build(architecture).save_pretrained(tmp_path / "checkpoint")
    with pytest.raises(ValueError, match=r"checkpoint.*tokenizer"):
        next(iter(engine.prune(settings(tmp_path, architecture))))


def test_a_head_with_the_classes_in_another_order_is_not_taken_as_it_is(tmp_path):
    order = {"id2label": {0: "good", 1: "bad"}, "label2id": {"good": 0, "bad": 1}}
    folder = tiny_transformers.checkpoint(tmp_path / "checkpoint", "bert", **order)
    with pytest.raises(ValueError, match="good"):
        build_model(folder, 0, outputs=2, labels=CLASSES, images=False, eager=False)


def test_pictures_with_a_text_model_are_refused(bert):
    with pytest.raises(ValueError, match=r"checkpoint"):
        next(iter(engine.prune(RunConfig(task="digits", model=str(bert), device="cpu"))))


def test_a_vit_of_another_size_and_channels_takes_digits(tmp_path):
    tiny_transformers.checkpoint(tmp_path / "checkpoint", "vit", image_size=16, num_channels=3)
    assert isinstance(next(iter(engine.prune(settings(tmp_path, "vit")))), RunStarted)


# Texts that are too long.


def longer(folder: Path, split: str, words: int) -> None:
    with (folder / f"{split}.csv").open("a") as file:
        file.write(" ".join(["film"] * words) + ",bad\n")


@pytest.mark.parametrize("architecture", [name for name in TEXT if name != "deberta-v2"])  # its positions are relative
@pytest.mark.parametrize("split", ["train", "validation"])
def test_texts_beyond_the_positions_of_the_model_are_refused(tmp_path, architecture, split):
    """Where neither the tokenizer nor max_length cuts them, before anything is trained."""
    folder = Path(tiny_transformers.checkpoint(tmp_path / "checkpoint", architecture))
    tiny_transformers.tokenizer(architecture, 1000).save_pretrained(folder)
    config = settings(tmp_path, architecture)
    for _ in range(8):  # whatever the selection split takes
        longer(tmp_path, split, 60)
    with pytest.raises(ValueError, match=r"Lower max_length"):
        list(engine.prune(config))
    if split == "train":
        lower = config.model_copy(update={"max_length": POSITIONS})
        assert isinstance(next(iter(engine.prune(lower))), RunStarted)


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "roberta"])
def test_the_tokenizer_knows_how_long_texts_may_be(tmp_path, architecture):
    """Default max_length: cut to the model's limit, counted, said once; then the run is concluded, too."""
    tiny_transformers.checkpoint(tmp_path / "checkpoint", architecture)
    config = settings(tmp_path, architecture, method="imp", stages=(0.5,))
    for split in ("train", "validation"):
        longer(tmp_path, split, 60)
    events = recorded(tmp_path, config)
    said = [event.text for event in events if "max_length" in getattr(event, "text", "")]
    assert said == [f"2 texts have more than {POSITIONS} tokens and are cut there (max_length)."]
    outcome.conclude(tmp_path / "run")
    assert (tmp_path / "run" / "benefit.json").is_file()


def test_reading_the_tables_ourselves_gives_the_same_rows(tmp_path):
    """The table that ``answers`` rebuilds is the one that the run reported on."""
    train, validation = tiny_transformers.dataset(tmp_path).split(",")
    rows = load_dataset("csv", data_files={"train": train, "validation": validation}, cache_dir=str(tmp_path / "hf"))
    texts, labels = tiny_transformers.sentences(24, 1)
    assert list(rows["validation"]["sentence"]) == texts
    assert list(rows["validation"]["label"]) == labels


@pytest.mark.parametrize("architecture", TEXT)
def test_without_dense_training_the_dense_network_is_the_checkpoint(tmp_path, architecture):
    """Head included: its score is that of the checkpoint, loaded by transformers alone."""
    folder = tiny_transformers.checkpoint(tmp_path / "checkpoint", architecture)
    run = engine.prune(settings(tmp_path, architecture, dense_epochs=0, method="imp", stages=(0.5,)))
    told = next(event for event in run if isinstance(event, DenseFinished)).test
    run.close()
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts, labels = tiny_transformers.sentences(24, 1)
    truth = torch.tensor([CLASSES.index(label) for label in labels])
    with torch.no_grad():  # one by one: no padding
        logits = torch.cat([model(**tokenizer(text, return_tensors="pt")).logits for text in texts])
    assert float((logits.argmax(1) == truth).double().mean()) == pytest.approx(told.metric, abs=1e-9)
    assert float(torch.nn.functional.cross_entropy(logits, truth)) == pytest.approx(told.loss, rel=1e-4)


def test_a_copied_run_folder_still_concludes(run, tmp_path):
    """``model/`` needs nothing of where it was made, the checkpoint least of all."""
    if run.architecture not in ("bert", "gpt2"):
        pytest.skip("two are enough")
    shutil.copytree(run.folder / "run" / "model", tmp_path / "model")
    auto = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    batch = AutoTokenizer.from_pretrained(tmp_path / "model")(["film fun", "a"], padding=True, return_tensors="pt")
    assert auto(**batch).logits.shape == (2, 2)
