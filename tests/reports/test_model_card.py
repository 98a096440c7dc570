"""The model card of a run: filled in from its events, valid for the Hub, and silent about anyone's folders."""

import dataclasses
import re

import pytest
import torch
from support.runs import go_on, read_tensors, small, tiny, tiny_parts
from support.stories import MEASURED

from randprune_lab import store
from randprune_lab.benefit import benefit_sentences
from randprune_lab.card import model_card
from randprune_lab.events import DenseFinished, MaskChosen, RunStarted, Score, StageFinished


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of digits."""
    folder = tmp_path_factory.mktemp("runs") / "one"
    go_on(folder, small(exclude="^4"))
    return folder


@pytest.fixture
def story(run):
    return store.story(run)


def front_matter(card: str) -> dict:
    """As the Hub reads it."""
    from huggingface_hub import ModelCard

    return ModelCard(card).data.to_dict()


def table(card: str, heading: str) -> list[list[str]]:
    section = card.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


def code(card: str) -> str:
    return card.split("```python\n")[1].split("```")[0]


def of(story: list, kind: type) -> list:
    return [event for event in story if isinstance(event, kind)]


def said(story: list, **changes) -> list:
    """The story, as if the model or the metric had been another one."""
    return [dataclasses.replace(event, **changes) if isinstance(event, RunStarted) else event for event in story]


def test_a_card_says_what_the_run_said(run, story):
    config = store.read_config(run)
    card = model_card(story, config, MEASURED)
    data = front_matter(card)
    assert data["library_name"] == "pytorch"
    assert data["tags"] == ["pruning", "sparsity", "randprune-lab"]
    assert data["metrics"] == ["accuracy"]
    assert not {"license", "base_model", "datasets"} & data.keys()
    stages, dense, done = of(story, StageFinished), of(story, DenseFinished)[0], of(story, StageFinished)[-1]
    rows = table(card, "Scores")
    assert [row[0] for row in rows] == ["dense", "1", "2"]
    assert [float(row[-1]) for row in rows] == pytest.approx(
        [dense.test.metric, *(stage.test.metric for stage in stages)], abs=1e-4
    )
    assert [float(row[-2]) for row in rows][1:] == pytest.approx([s.selection.metric for s in stages], abs=1e-4)
    kept = of(story, MaskChosen)[-1].tensors
    assert table(card, "Sparsity of every pruned tensor") == [
        ["`0.weight`", "19,200", f"{kept['0.weight']['kept']:,.0f}", "0.9000"],
        ["`2.weight`", "30,000", f"{kept['2.weight']['kept']:,.0f}", "0.9000"],
    ]
    assert f"accuracy is {done.test.metric:.4f}; that of the dense network was {dense.test.metric:.4f}" in card
    assert "4,920 are kept: sparsity 0.9000, 10.0x. Of all 50,610 parameters of the model 6,330 are left: 8.0x" in card
    assert "One seed is no result.** These numbers are of one run with seed 0" in card
    for line in ("method: `randomized`", "stages: `0.5, 0.9`", "exclude: `^4`", "candidates: `3`", "power: `5.0`"):
        assert f"- {line}\n" in card
    for line in ("reach: `none`", "seed: `0`", "logit_weight: `1.0`", "emep_learning_rate: `0.003`", "samples: `4`"):
        assert f"- {line}\n" in card
    assert all(f"- {sentence}" in card for sentence in benefit_sentences(MEASURED))
    assert "Optimistic" not in card
    assert card.endswith("```\n")


def test_the_code_loads_the_network(run, story):
    scope = {"folder": run / "model"}
    exec(code(model_card(story, store.read_config(run))), scope)  # what people will paste
    saved = read_tensors(run / "model" / "model.safetensors")
    assert all(torch.equal(value, saved[name]) for name, value in scope["model"].state_dict().items())


def test_a_model_given_from_python(tmp_path):
    go_on(tmp_path / "own", tiny(), **tiny_parts())
    card = model_card(store.story(tmp_path / "own"), store.read_config(tmp_path / "own"))
    assert "# a model of one's own on data of one's own, pruned to" in card
    assert "the network that was given from Python" in card
    assert "Not measured." in card
    assert not {"base_model", "datasets"} & front_matter(card).keys()


def transformer(config, **changes):
    settings = {"task": "glue/mrpc", "model": "bert-base-uncased", "dataset": "nyu-mll/glue"}
    return config.model_copy(update=settings | changes)


def test_a_transformer_from_the_hub(run, story):
    config = transformer(store.read_config(run), select_on="validation", hidden_weight=0.5)
    others = {"others": {"accuracy": 0.75}}
    story = [
        dataclasses.replace(event, test=Score(0.5, 1.0, **others)) if isinstance(event, StageFinished) else event
        for event in said(story, metric="matthews")
    ]
    card = model_card(story, config, auto_class="AutoModelForSequenceClassification")
    data = front_matter(card)
    assert data["library_name"] == "transformers"
    assert data["base_model"] == "bert-base-uncased"
    assert data["datasets"] == ["nyu-mll/glue"]
    assert data["metrics"] == ["matthews_correlation"]
    assert "# bert-base-uncased on glue/mrpc (nyu-mll/glue), pruned to sparsity 0.9" in card
    assert "matthews is 0.5000 (accuracy 0.7500)" in card
    assert table(card, "Scores")[-1][-1] == "0.5000 (accuracy 0.7500)"
    assert "Optimistic" in card
    assert "the test split chose nothing" not in card
    assert "GLUE's validation split" in card
    assert "- hidden_weight: `0.5`" in card
    assert "AutoModelForSequenceClassification.from_pretrained(folder)" in code(card)


@pytest.mark.parametrize(
    ("changes", "title"),
    [
        ({"model": "/home/ada/secret/minilm"}, "# minilm on glue/mrpc (nyu-mll/glue)"),
        ({"model": "/home/ada/secret:2/minilm/"}, "# minilm on"),
        ({"model": "../secret/minilm"}, "# minilm on"),
        ({"model": "C:\\Users\\ada\\secret\\minilm"}, "# minilm on"),
        ({"model": "my.module:build"}, "# my.module:build on"),
        ({"dataset": "/home/ada/secret/glue"}, "on glue/mrpc (glue), pruned"),
        ({"task": "text", "dataset": "/home/ada/secret/a.csv,/home/ada/secret/b.csv"}, "on text (a.csv, b.csv)"),
        ({"teacher": "/home/ada/secret/teacher", "augment_model": "/home/ada/secret/bert"}, "- teacher: `teacher`"),
    ],
)
def test_no_folders_of_anyone(run, story, changes, title):
    config = transformer(store.read_config(run), **changes)
    for auto_class in ("AutoModelForSequenceClassification", None):
        card = model_card(story, config, MEASURED, auto_class=auto_class)
        assert title in card
        assert "secret" not in card
        assert ("base_model" in front_matter(card)) == (config.model == "bert-base-uncased")
        assert ("datasets" in front_matter(card)) == (config.dataset == "nyu-mll/glue")


def test_a_folder_named_like_a_hub_id(run, story, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = transformer(store.read_config(run), model="models/minilm")
    assert front_matter(model_card(story, config))["base_model"] == "models/minilm"
    (tmp_path / "models" / "minilm").mkdir(parents=True)
    card = model_card(story, config)
    assert "base_model" not in front_matter(card)
    assert "# minilm on" in card


def test_names_that_markdown_would_misread(run, story):
    names = {"a|b.weight": 10, "2.weight": 30_000}
    story = [
        dataclasses.replace(event, tensors={name: {"kept": 5} for name in names})
        if isinstance(event, MaskChosen)
        else event
        for event in said(story, prunable=names, metric="a: b")
    ]
    card = model_card(story, store.read_config(run))
    assert table(card, "Sparsity of every pruned tensor")[0] == ["`a\\|b.weight`", "10", "5", "0.5000"]
    assert front_matter(card)["metrics"] == ["a: b"]


def test_plain_pruning_tells_of_no_candidates(run, story):
    card = model_card(story, store.read_config(run).model_copy(update={"method": "imp"}))
    assert not [name for name in ("candidates", "samples", "emep_epochs") if f"- {name}:" in card]


def test_target_ir_tells_the_target(tmp_path):
    config = tiny(randomness="target_ir", target_ir=0.05)
    go_on(tmp_path / "run", config, **tiny_parts())
    card = model_card(store.story(tmp_path / "run"), store.read_config(tmp_path / "run"))
    assert "- target_ir: `0.05`" in card
    assert "- power:" not in card  # it was found for each tensor


def test_an_unfinished_run_has_no_card(run, story):
    with pytest.raises(ValueError, match="has finished no stage"):
        model_card(story[:2], store.read_config(run))
