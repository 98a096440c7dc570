"""What a run of a transformer leaves for other tools, by the command line, from its first line to packing."""

import dataclasses
import json
import re

import pytest
import torch
from safetensors.torch import load_file
from support.runs import go_on, stop_after, tiny, tiny_model, tiny_task

from randprune_lab import store
from randprune_lab.benefit import read_benefit
from randprune_lab.config import PAPER_RATIOS, PRESETS, RunConfig, controls, preset
from randprune_lab.events import Score, from_json
from randprune_lab.outcome import conclude
from randprune_lab.sentences import corpus
from randprune_lab.splits import Split

SHORT = ["--max-steps-per-epoch", 4, "--emep-steps", 2, "--dense-epochs", 2, "--max-epochs", 1, "--candidates", 2]
SHORT += ["--stages", "0.5,0.95", "--no-controls", "--device", "cpu"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of the offline text task by the command line."""
    from randprune_lab import cli

    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RANDPRUNE_RUNS", str(folder))
        patch.setenv("RANDPRUNE_CACHE", str(folder / "cache"))
        arguments = ["run", "--task", "sentences", *SHORT, "--track", "tensorboard"]
        patch.setattr("sys.argv", ["randprune", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    assert not ended.value.code
    return next(path.parent for path in folder.glob("*/config.json"))


def test_the_model_loads_with_plain_transformers_and_scores_what_was_reported(finished):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(finished / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(finished / "model")
    texts, labels = corpus()["test"]
    with torch.no_grad():
        answers = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits.argmax(dim=1)
    accuracy = float((answers == torch.tensor(labels)).double().mean())
    assert store.story(finished)[-1].test.metric == pytest.approx(accuracy, abs=1e-9)
    assert model.config.id2label == {0: "singular", 1: "plural"}


def test_the_card_tells_what_the_journal_tells(finished):
    card = (finished / "model" / "README.md").read_text()
    last = store.stage_table(finished)[-1]
    assert f"{last['score']:.4f}" in card
    assert "0.9500" in card
    assert "seed" in card
    for name in json.loads((finished / "events.jsonl").read_text().splitlines()[0])["prunable"]:
        assert name in card


def test_the_report_tells_the_terms_and_what_sparsity_bought(finished):
    page = (finished / "report.html").read_text()
    for text in ("hidden", "attention", "What sparsity bought", "every zero is stored", "ms"):
        assert text in page
    assert (finished / "tracking" / "tensorboard").is_dir()


def test_what_was_measured_is_measured_once(finished):
    before = (finished / "benefit.json").read_text()
    conclude(finished)
    assert (finished / "benefit.json").read_text() == before
    benefit = read_benefit(finished)
    assert benefit.packed_bytes < benefit.saved_bytes == benefit.dense_bytes
    assert benefit.layers == 12


def test_packing_there_and_back(finished, command, tmp_path):
    code, out, err = command("pack", finished / "model", tmp_path / "packed")
    assert code == 0, err
    assert re.search(r"12 tensors as bit-mask and values", " ".join(out.split()))
    code, _, err = command("unpack", tmp_path / "packed", tmp_path / "model")
    assert code == 0, err
    first, second = (load_file(path / "model.safetensors") for path in (finished / "model", tmp_path / "model"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    cards = [(path / "README.md").read_text() for path in (finished / "model", tmp_path / "packed", tmp_path / "model")]
    assert cards[0] == cards[2]
    assert "Unpack it first" in cards[1]
    code, _, err = command("unpack", finished / "model", tmp_path / "other")
    assert code == 2
    assert "packed" in err


def test_the_explorer_reads_the_run(finished, command):
    code, out, err = command("explore", finished, "--stage", 2, "--json")
    assert code == 0, err
    assert sum(row["prunable"] for row in json.loads(out)["tensors"]) == 12


def test_terms_are_logged_one_by_one(finished):
    epochs = [event for event in store.story(finished) if event.kind == "epoch_finished"]
    assert [set(event.terms) for event in epochs if event.phase == "dense"] == [{"task"}] * 2
    for event in epochs:
        if event.phase == "fine-tuning":
            assert set(event.terms) == {"task", "logits", "hidden", "attention"}
            assert event.loss == pytest.approx(sum(event.terms.values()), rel=1e-5)  # every weight is 1


# ---- what belongs together


def test_what_is_wrong_leaves_no_folder_behind(command, tmp_path, monkeypatch):
    monkeypatch.setenv("RANDPRUNE_RUNS", str(tmp_path / "runs"))
    code, _, err = command("run", "--task", "text", "--text-columns", "a", "--dataset", tmp_path / "none.csv")
    assert code == 2
    assert "there is no file" in err
    assert not (tmp_path / "runs").exists()
    code, _, err = command("run", "--task", "sentences", "--model", tmp_path / "no" / "such" / "model")
    assert code == 2
    assert "there is no such folder" in err


def test_steps_of_judging_need_to_be_a_known_part_of_an_epoch(command):
    code, _, err = command("run", "--emep-steps", 5)
    assert code == 2
    assert "max_steps_per_epoch" in err
    code, _, err = command("run", "--emep-steps", 5, "--max-steps-per-epoch", 18)
    assert code == 2
    assert "an epoch has only 17 steps" in " ".join(err.split())


def test_a_run_goes_on_with_the_data_that_it_began_with(tmp_path):
    config, task = tiny(), tiny_task()
    stop_after(tmp_path, config, 5, model=tiny_model(), data=task)
    other = dataclasses.replace(task, test=Split(task.test.inputs + 1, task.test.labels))
    with pytest.raises(ValueError, match="data of task 'object' is not what this run began with"):
        go_on(tmp_path, config, model=tiny_model(), data=other)
    assert go_on(tmp_path, config, model=tiny_model(), data=task)[-1].kind == "run_finished"


def test_runs_of_before_there_were_other_metrics_are_read():
    record = {"kind": "run_finished", "sparsity": 0.9, "test": {"accuracy": 0.75, "loss": 0.5}}
    assert from_json(record).test == Score(0.75, 0.5)


# ---- presets


@pytest.mark.parametrize(
    ("task", "stages", "augment", "unlabelled"),
    [
        ("glue/mrpc", 4, 20, ""),
        ("glue/rte", 4, 20, ""),
        ("glue/sst2", 4, 20, ""),
        ("glue/cola", 9, 20, ""),
        ("glue/mnli", 9, 0, ""),
        ("glue/qnli", 9, 0, ""),
        ("glue/qqp", 9, 0, ""),
        ("glue/stsb", 9, 0, "glue/mnli"),
    ],
)
def test_a_glue_task_gets_what_the_paper_used_for_it(task, stages, augment, unlabelled):
    """arXiv 2310.13183, A.2 and B.2."""
    config = RunConfig(**{**preset(task=task), "task": task})
    assert (len(config.stages), config.augment, config.unlabelled) == (stages, augment, unlabelled)
    assert (config.power, config.stages[-1], config.randomness) == (5.0, 0.9375, "decrease")
    assert 8 <= config.candidates <= 10
    assert config.sampling_ratio in PAPER_RATIOS
    assert config.distils
    assert config.hidden_weight
    assert config.attention_weight


def test_presets_by_task_and_by_name():
    assert preset() == preset(task="digits") == preset(task="unheard-of") == {}
    assert preset(task="sentences")["model"] == "tiny-bert"
    assert preset(task="digits", model="tiny-vit")["dense_epochs"] == 20
    assert preset("paper-long", task="glue/mrpc")["stages"] == PRESETS["paper-long"]["stages"]
    with pytest.raises(ValueError, match="paper-short"):
        preset("paper-shrt")
    for name, settings in PRESETS.items():
        assert RunConfig(**settings), name


@pytest.mark.parametrize(
    ("settings", "epochs"),
    [
        ({}, 15 + 8),
        ({"max_steps_per_epoch": 60, "emep_steps": 20, "candidates": 4}, 15 + 2),  # 4 * 20 / 60, rounded up
        ({"max_steps_per_epoch": 60, "emep_steps": 90, "candidates": 4}, 15 + 6),  # judging may take longer, too
        ({"emep_epochs": 2, "candidates": 3}, 15 + 6),
    ],
)
def test_the_matched_control_trains_as_many_steps_as_judging_takes(settings, epochs):
    assert controls(RunConfig(**settings))["imp-matched"].max_epochs == epochs
