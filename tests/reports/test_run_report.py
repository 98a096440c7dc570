"""report.html and its charts: self-contained, escaped, true to the events, whole at any point of a run."""

import dataclasses
import html
import re
import subprocess
import sys
from xml.etree import ElementTree

import pytest
from support.stories import CANDIDATES, CONFIG, EVIL, LOSSES, recorded, story, symbols

from randprune_lab import charts, store
from randprune_lab.config import RunConfig, controls
from randprune_lab.events import (
    CandidateScored,
    StageFinished,
)
from randprune_lab.report import write_report


@pytest.fixture
def pair(tmp_path):
    """A run and its control imp, whose scores are a point lower."""
    control = controls(CONFIG)["imp"]
    return recorded(tmp_path / "run", story()), recorded(tmp_path / "imp", story(control, better=-0.01))


def words(page):
    """The page as one reads it, without the charts."""
    text = re.sub(r"<style.*?</style>|<svg.*?</svg>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", text)).split())


def cells(page, first):
    """The cells of the table row that begins with these cells."""
    rows = [re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr.*?</tr>", page, flags=re.DOTALL)]
    (row,) = [row for row in rows if row[: len(first)] == first]
    return row[len(first) :]


def test_is_one_file_that_asks_for_nothing(pair):
    path = write_report(pair[0], pair[1:])
    page = path.read_text()
    assert path == pair[0] / "report.html"
    assert "<script" not in page.lower()
    assert "javascript:" not in page.lower()
    assert not re.search(r"@import|url\((?!#)|<(link (?!rel=\"icon\" href=\"data:,\")|img|iframe|object|embed)", page)
    assert set(re.findall(r"(?:src|href)=\"(.*?)\"", page)) == {"data:,", "https://arxiv.org/abs/2310.13183"}
    assert page.count("<svg") == 3
    identifiers = re.findall(r"\bid=\"(.*?)\"", page)
    assert len(identifiers) == len(set(identifiers))
    assert "prefers-color-scheme: dark" in page


def test_numbers_are_those_of_the_events(pair):
    page = write_report(pair[0], pair[1:]).read_text()
    stage = ["2", "0.9375 (16.0x)"]
    whole = "4.0x"  # 1000 parameters, of which 1000 - 800 + 50 are left
    rest = ["mask 1", "0.0123", "7.9 %", "4 to 12", "90.0 %", "93.3 %", "92.3 %"]
    assert cells(page, stage) == [whole, *rest]
    assert cells(page, ["dense"])[-3:] == ["97.0 %", "96.1 %", "96.1 %"]
    assert cells(page, ["1", "plain mask"]) == ["81.1 %", "0.5000", "0.0000", "0.0 %", ""]
    assert cells(page, ["2", "mask 1"]) == ["84.2 %", "0.4321", "0.0123", "7.9 %", "winner"]
    assert cells(page, ["2", "mask 2"]) == ["-", "-", "0.0124", "7.9 %", "failed: loss is NaN"]
    text = words(page)
    assert "On digits, mlp pruned by randomized (seed 0) ends at sparsity 0.9375 (16.0x) of its prunable" in text
    assert "weights, 4.0x for the whole model, with 93.3 % test accuracy; the dense network had 96.1 %" in text
    assert "imp has 92.3 % at sparsity 0.9375 (16.0x) (one seed: not a result)." in text
    assert "Unfinished" not in text


def test_says_what_the_numbers_depend_on(pair):
    text = words(write_report(pair[0], pair[1:]).read_text())
    for part in (
        "Device: cpu; torch 2.9.1; threads: 1.",
        "Deterministic: yes.",
        "The run said: M was clamped",
        "the test split decided nothing",
        "section 3.2.2 of the paper says randomness grows with M; it falls",
        "neither smaller nor faster",
        "imp (finished): method = imp (this run: randomized).",
    ):
        assert part in text
    assert "optimistic" not in text.split("Configuration")[0]
    for name, field in RunConfig.model_fields.items():
        assert f"{name} " in text
        assert field.description in text


def test_selection_on_validation_is_called_optimistic(tmp_path):
    folder = recorded(tmp_path / "run", story(CONFIG.model_copy(update={"select_on": "validation"})))
    text = words(write_report(folder).read_text())
    assert "the reported score is optimistic" in text
    assert "decided nothing" not in text


def test_plain_masks_have_no_candidates_and_no_samples(pair):
    page = write_report(pair[1]).read_text()
    assert "No candidates were compared" in page
    assert "none was judged by a short training" in page
    assert cells(page, ["2", "0.9375 (16.0x)"])[1:5] == ["plain mask", "0.0000", "0.0 %", "-"]
    assert page.count("<svg") == 2


def test_names_are_escaped_everywhere(tmp_path):
    evil = CONFIG.model_copy(update=dict.fromkeys(("task", "model", "control", "group"), EVIL))
    run = recorded(tmp_path / "<b>run", story(evil, warning=EVIL))
    page = write_report(run, [recorded(tmp_path / "other", story(evil))]).read_text()
    assert "<script" not in page
    assert "<b>" not in page
    assert page.count(html.escape(EVIL)) > 6
    for picture in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL):
        ElementTree.fromstring(picture)


@pytest.mark.parametrize("length", [*range(12), len(list(story())) - 1])
def test_a_run_stopped_after_any_event_has_a_report(tmp_path, length):
    said = list(story())[:length]
    folder = recorded(tmp_path / "run", said)
    store.write_atomically(folder / "config.json", CONFIG.model_dump_json())
    text = words(write_report(folder).read_text())
    stages = sum(isinstance(event, StageFinished) for event in said)
    assert f"was stopped before its end, and can be resumed: {stages} of 2 stages are finished." in text
    assert ("has finished no stage yet" in text) == (stages == 0)
    assert "ends at" not in text


def test_says_that_a_run_is_still_running(tmp_path):
    stream = store.record(tmp_path, (item for item in story()))
    for event in stream:
        if isinstance(event, StageFinished):
            break
    assert "still running: 1 of 2 stages are finished" in words(write_report(tmp_path).read_text())
    stream.close()


def test_runs_beside_keep_names_of_their_own_and_their_own_stages(tmp_path, pair):
    seeded = controls(CONFIG)["imp"].model_copy(update={"seed": 7})
    other_stages = controls(CONFIG)["imp"].model_copy(update={"stages": (0.4, 0.9375)})
    more = [recorded(tmp_path / str(n), story(config)) for n, config in enumerate((seeded, other_stages))]
    page = write_report(pair[0], [pair[1], *more]).read_text()
    for label in ("test: imp<", "test: imp, seed 7<", "test: imp (2)<"):
        assert label in page
    assert cells(page, ["1", "0.5000 (2.0x)"])[-3:] == ["93.3 %", "94.3 %", "-"]


def test_refuses_a_folder_without_a_run(tmp_path, pair):
    with pytest.raises(ValueError, match="no run is there"):
        write_report(tmp_path / "nothing")
    with pytest.raises(ValueError, match="no run is there"):
        write_report(pair[0], [tmp_path / "nothing"])
    assert not (pair[0] / "report.html").exists()


def test_writing_again_changes_nothing(pair):
    first = write_report(pair[0], pair[1:]).read_bytes()
    assert write_report(pair[0], pair[1:]).read_bytes() == first


def test_neither_engine_nor_training_is_imported():
    code = (
        "import sys, randprune_lab.report; "
        "bad = {f'randprune_lab.{name}' for name in ('engine', 'training', 'executors', 'tasks', 'distill')}; "
        "assert not bad & set(sys.modules), bad & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


ACCURACIES = [
    {"run": run, "sparsity": s, "compression": 1 / (1 - s), "score": 0.9}
    for run in ("this run", "imp", "imp-matched")
    for s in (0.5, 0.9)
]


def test_accuracy_chart_draws_a_line_and_points_for_each_run():
    svg = charts.to_svg(charts.accuracy_chart(ACCURACIES, 0.95))
    assert sum(symbols(svg)) == 6
    assert sum(symbols(svg, "mark-line")) == 3
    for color in charts.COLORS[:3]:
        assert color.lower() in svg.lower()
    assert "stroke-dasharray" in svg
    sentence = charts.accuracy_sentence(ACCURACIES, 0.95)
    assert "dense network: 95.0 %" in sentence
    assert "imp-matched 90.0 % at sparsity 0.9000 (10.0x), 90.0 % at 0.5000" in sentence
    assert f'role="img" aria-label="{html.escape(sentence)}"' in svg


def test_candidates_chart_marks_every_score_and_the_winners_again():
    svg = charts.to_svg(charts.candidates_chart(CANDIDATES))
    assert symbols(svg) == [6, 2]
    sentence = charts.candidates_sentence(CANDIDATES)
    assert "In 2 decided stages the plain mask won 0, a random one 2" in sentence
    assert "at most 2.0 percentage points" in sentence
    assert "2 candidates failed" in sentence


@pytest.mark.parametrize("loss", [0.0, 1e-6, 0.4])
def test_loss_chart_breaks_between_stages(loss):
    rows = [*LOSSES, {"phase": "fine-tuning", "stage": 2, "loss": loss}]
    svg = charts.to_svg(charts.loss_chart(rows))
    assert symbols(svg) == [6]
    assert sum(symbols(svg, "mark-line")) == 3
    assert ("log scale" in svg) == (loss == 1e-6)
    assert charts.loss_sentence(rows).endswith(f"of stage 2 from 0.5 to {loss:.3g} (epochs: 2).")


def test_a_loss_that_is_not_finite_is_left_out():
    rows = [*LOSSES, dict(LOSSES[-1], loss=float("nan"))]
    assert symbols(charts.to_svg(charts.loss_chart(rows))) == [5]


def test_every_candidate_may_have_failed(tmp_path):
    failing = [
        dataclasses.replace(event, selection=None, failed="NaN") if isinstance(event, CandidateScored) else event
        for event in list(story())[:8]
    ]
    assert write_report(recorded(tmp_path, failing)).read_text().count("failed: NaN") == 2


@pytest.mark.parametrize(
    ("value", "shown"), [(charts.accuracy(0.9531), "95.3 %"), (charts.sparsity(0.9375), "0.9375 (16.0x)")]
)
def test_numbers_are_written_one_way(value, shown):
    assert value == shown
