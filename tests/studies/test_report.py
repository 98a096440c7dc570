"""The report of a study: one page that opens anywhere, of whatever is finished."""

import dataclasses
import html.parser
import json
import re

import pytest
from support.studies import GOOD, LINES, pretend, study

from randprune_lab import study_report, study_runs
from randprune_lab.studies import MEASURES, built_in_studies, expand, read_study
from randprune_lab.study_report import asked as told_of
from randprune_lab.study_report import conclude, differences_sentence, means_rows, means_sentence, study_figures
from randprune_lab.study_results import gather

VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(html.parser.HTMLParser):
    """A page's text and links; refuses one whose tags do not close in order."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.text, self.links, self.tags = [], "", set(), []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names)
        self.links |= {value for name, value in attrs if name in ("src", "href", "xlink:href", "action", "data")}
        self.tags.append(tag)
        self.open += [] if tag in VOID else [tag]

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.open = self.open[: len(self.open) - (tag not in VOID)]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def page_of(folder):
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    assert not re.search(r"url\((?!#|data:)|@import|<script|<iframe", text)  # nothing comes from elsewhere
    page = Page(text)
    assert all(link.startswith(("data:", "#", "https://arxiv.org/")) for link in page.links)
    assert page.tags.count("h1") == 1
    return page


@pytest.fixture(autouse=True)
def _nothing_is_built(monkeypatch):
    """Runs are invented here: no model or data is needed."""
    monkeypatch.setattr(study_runs, "check_kinds", lambda _: None)


CLAIMS = [
    {"says": "Good is <above> & beyond.", "source": "Table 1", "above": GOOD, "below": "IMP"},
    {"says": "Good is below.", "above": "IMP", "below": GOOD},
    {"says": "Chance.", "above": "other", "below": "IMP"},
]
MANY = {GOOD: {}, "other": {"power": 2.0}, "IMP": {"control": "imp-matched", "of": GOOD}}


def asked_of(**changes):
    given = {"seeds": 8, "lines": MANY, "claims": CLAIMS, "title": "Is <it> so?", "question": "Is it & why?"}
    return study(**given | changes)


def test_the_page_says_what_was_found(tmp_path):
    asked = asked_of(notes=["A note."], source="arXiv 2310.13183")
    results = conclude(pretend(asked, tmp_path))
    page = page_of(tmp_path / "tiny")
    for said in ("Is <it> so?", "Is it & why?", "A note.", "arXiv 2310.13183", "Seeds 0 to 7", "24 runs, 8 seeds"):
        assert said in page.text
    assert {claim["verdict"] for claim in results.claims} >= {"reproduced", "not reproduced"}
    for claim in results.claims:
        assert f"{claim['says']}{claim['source'] or '-'}{claim['verdict']}{claim['sentence']}" in page.text
    for row in means_rows(asked, results)[1]:
        assert "".join(row) in page.text
    figures = study_figures(asked, results)
    assert set(figures) == {"means", "differences"}
    assert page.tags.count("svg") >= 2
    for _, sentence in figures.values():
        assert sentence in page.text
    assert "not finished" not in page.text
    assert "Runs that failed" not in page.text


def test_the_same_twice_and_files_beside_it(tmp_path):
    folder = pretend(asked_of(), tmp_path)
    conclude(folder)
    wanted = {"report.html", "results.csv", "results.parquet", "candidates.csv", "candidates.parquet", "claims.json"}
    assert {path.name for path in folder.iterdir()} >= {*wanted, "means.svg", "differences.svg"}
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".parquet"}
    conclude(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".parquet"} == before
    assert len(json.loads(before["claims.json"])) == 3


def test_what_is_not_finished_is_said(tmp_path):
    results = conclude(pretend(asked_of(), tmp_path, but=("IMP",)))
    page = page_of(tmp_path / "tiny")
    assert "8 of 24 runs are not finished: what follows is of the others." in page.text
    assert page.text.count("not made") == 8  # each that failed, with its reason
    assert "Runs that failed" in page.text
    assert [claim["verdict"] for claim in results.claims] == ["no data yet"] * 3
    assert "no data yet" in page.text


def test_runs_that_should_be_alike_and_are_not_are_told(tmp_path):
    asked = asked_of(grid={"selection_rows": [50, 100]}, seeds=2)
    pretend(asked, tmp_path)
    results = gather(asked, tmp_path)
    by_rows = results.stages.assign(data=results.stages["selection_rows"].map({50: "a", 100: "b"}))
    assert study_report.mixed(asked, dataclasses.replace(results, stages=by_rows)) == []  # a setting made them so
    by_seed = results.stages.assign(data=results.stages["seed"].map(str), device=results.stages["line"])
    device, data = study_report.mixed(asked, dataclasses.replace(results, stages=by_seed))
    assert "several kinds of device (IMP, good, other)" in device
    assert "differ by their seed only had different data" in data


def test_several_metrics_have_no_name_together(tmp_path):
    asked = asked_of(seeds=2)
    results = gather(asked, pretend(asked, tmp_path).parent)
    (chart, _) = study_figures(asked, results)["means"]
    assert "Matthews correlation on the reported split" in chart.to_json()
    two = results.stages.assign(metric=["f1", "accuracy"] * (len(results.stages) // 2))
    (chart, _) = study_figures(asked, dataclasses.replace(results, stages=two))["means"]
    assert "score on the reported split" in chart.to_json()
    assert "F1" not in chart.to_json()


def test_chance_is_drawn_where_there_is_one(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(study_report.charts, "share_chart", lambda *_, chance, **__: drawn.append(chance))
    for name, grid in {"one": {}, "two": {"candidates": [4, 5]}}.items():
        asked = study(name, y="plain_won", grid=grid, base={"candidates": 4}, seeds=2)
        study_report._winners(asked, gather(asked, pretend(asked, tmp_path).parent))
    assert drawn == [0.25, None]


def test_of_a_study_without_a_finished_run(tmp_path):
    asked = asked_of(reference=GOOD, y="ranks", lines=MANY)
    folder = tmp_path / asked.name
    folder.mkdir()
    (folder / "study.json").write_text(asked.model_dump_json())
    conclude(folder)
    page = page_of(folder)
    assert "24 of 24 runs are not finished" in page.text
    assert "svg" not in page.tags


def test_where_no_stage_compared_masks_no_winner_is_drawn(tmp_path):
    asked = asked_of(claims=[{"says": "x", "above": GOOD, "measure": "plain_won"}])
    conclude(pretend(asked, tmp_path, but=(GOOD, "other")))
    assert not (tmp_path / "tiny" / "winners.svg").exists()
    conclude(pretend(asked, tmp_path))
    assert (tmp_path / "tiny" / "winners.svg").exists()


def test_the_figures_sentences_are_true(tmp_path):
    asked = asked_of(x="sparsity")
    pretend(asked, tmp_path)
    results = gather(asked, tmp_path)
    summary = results.summary
    (row,) = summary[(summary["label"] == GOOD) & (summary["x"] == 0.9)].to_dict("records")
    said = f"{GOOD} {100 * row['mean']:.1f} % ({100 * row['low']:.1f} % to {100 * row['high']:.1f} %, 8 seeds)"
    assert said in means_sentence(asked, results)
    counts = results.differences["verdict"].value_counts()
    sentence = differences_sentence(results)
    assert "against IMP" in sentence
    assert "of 4 points." in sentence
    for verdict, count in counts.items():
        assert f"{verdict} at {count}" in sentence


@pytest.mark.parametrize("but", [(), "first"])
@pytest.mark.parametrize("name", ["figure-3", "figure-5a", "emep", "fallback", "racing", "architectures"])
def test_built_in_studies_have_reports(tmp_path, name, but):
    """Whichever axis, whatever is measured; with all lines, and without the first one."""
    asked = read_study(name, small=True, changes={"seeds": 2})
    folder = pretend(asked, tmp_path, but=tuple(asked.lines)[:1] if but else ())
    results = conclude(folder)
    page = page_of(folder)
    assert len(results.summary) or (name, but) == ("emep", "first")  # of which the reference alone is left
    assert ("svg" in page.tags) == bool(len(results.summary))
    assert asked.title in page.text
    for claim in asked.claims:
        assert claim.says in page.text
    svgs = {path.stem for path in folder.glob("*.svg")}
    assert svgs == set(study_figures(asked, results))


def test_every_measure_has_an_axis():
    assert study_report._Y.keys() == set(MEASURES)


def test_the_command_is_told_where_it_asks_the_same():
    for name in built_in_studies():
        for small in (False, True):
            said = told_of(read_study(name, small=small))
            assert said[-1] == f"Again: randprune study {name}{' --small' * small}"
    changed = read_study("figure-3", small=True, changes={"seeds": 3})
    assert not any("Again" in line for line in told_of(changed))
    assert not any("Again" in line for line in told_of(study()))


@pytest.mark.parametrize(
    ("seeds", "said"),
    [([0, 1, 2], "Seeds 0 to 2;"), ([4], "Seed 4;"), ([5, 1, 7], "Seeds 5, 1, 7;"), ([3, 5], "Seeds 3, 5;")],
)
def test_seeds_are_told_as_they_are(seeds, said):
    assert told_of(study(seeds=seeds))[0].startswith(said)


def test_nothing_in_a_study_is_taken_for_html(tmp_path):
    bad = '<script>alert("x")</script>'
    lines = {bad: {}, "IMP": {"control": "imp", "of": bad}}
    claims = [{"says": bad, "source": bad, "above": bad, "below": "IMP"}]
    asked = study(title=bad, question=bad, notes=[bad], source=bad, lines=lines, claims=claims)
    conclude(pretend(asked, tmp_path))
    page = page_of(tmp_path / "tiny")
    assert page.text.count(bad) > 6
    assert len(expand(asked)) == 2 * len(LINES)
