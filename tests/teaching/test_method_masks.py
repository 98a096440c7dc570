"""Methods side by side: the masks are those of real runs, what they share is counted right, questions have answers."""

import contextlib
import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from randprune_lab import contrast, prune
from randprune_lab.charts import specification
from randprune_lab.config import AT_START, METHOD_NAMES, SCOPES, RunConfig
from randprune_lab.contrast import AFTER, BEFORE, COMPARED, QUESTIONS, Pick, layers_chart, overlap, overlaps
from randprune_lab.criteria import CRITERIA, Scene
from randprune_lab.demo import demo_weights
from randprune_lab.events import Checkpoint
from randprune_lab.masks import unpack
from randprune_lab.models import build_model, prunable_weights
from randprune_lab.scores import stage_scores
from randprune_lab.tasks import digits

SHAPES = {name: weight.shape for name, weight in prunable_weights(build_model("mlp", 0)).items()}


def first_mask_of(config: RunConfig) -> dict[str, torch.Tensor]:
    """The mask that a run takes at its first stage."""
    with contextlib.closing(prune(config)) as said:
        for item in said:
            if isinstance(item, Checkpoint) and item.progress.phase == "fine-tuning":
                return {name: unpack(item.tensors[f"mask.{name}"], shape) for name, shape in SHAPES.items()}
    raise AssertionError("a run chooses a mask")


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("method", ["snip", "synflow", "random", "rigl"])
def test_before_training_it_is_the_mask_of_a_run(method, scope):
    pick = Pick(method, sparsity=0.9)
    assert pick.moment == BEFORE
    ours = contrast._mask(pick.config(scope), BEFORE)
    theirs = first_mask_of(RunConfig(method=method, stages=(0.9,), scope=scope, device="cpu"))
    assert all(torch.equal(ours[name], theirs[name]) for name in SHAPES)


@pytest.mark.parametrize(
    ("method", "criterion", "scope"), [("imp", "taylor", "global"), ("randomized-no-selection", "movement", "layer")]
)
def test_after_training_it_is_the_mask_of_a_run(method, criterion, scope):
    pick = Pick(method, criterion, sparsity=0.9)
    assert pick.moment == AFTER
    ours = contrast._mask(pick.config(scope), AFTER)
    theirs = first_mask_of(RunConfig(method=method, criterion=criterion, stages=(0.9,), scope=scope, device="cpu"))
    assert all(torch.equal(ours[name], theirs[name]) for name in SHAPES)


def test_scores_are_kept_only_where_they_would_be_the_same():
    """What the scores depend on is told by the criteria's own marks: scored anew, they are what was remembered."""
    network = build_model("mlp", 0)
    network.load_state_dict(demo_weights())
    alive = {name: torch.ones(shape, dtype=torch.bool) for name, shape in SHAPES.items()}
    for name, known in CRITERIA.items():
        for scope in SCOPES:
            config = RunConfig(method="imp", criterion=name, stages=(0.97,), scope=scope, device="cpu")
            if known.rounds > 1 and scope == "layer":
                continue  # the slow one: global scope is enough
            anew = contrast.stage_masks(stage_scores(None, network, alive, digits(), config, 1), alive, 1, config)
            ours, theirs = contrast._mask(config, AFTER), anew.draw(0)
            assert all(torch.equal(ours[layer], theirs[layer]) for layer in SHAPES), (name, scope)


def test_batches_are_counted_as_criteria_ask_for_them(monkeypatch):
    asked = []
    loss = Scene.loss
    monkeypatch.setattr(Scene, "loss", lambda self, *given: asked.append(1) or loss(self, *given))
    network = build_model("mlp", 0)
    alive = {name: torch.ones(shape, dtype=torch.bool) for name, shape in SHAPES.items()}
    for name in CRITERIA:
        asked.clear()
        stage_scores(None, network, alive, digits(), RunConfig(criterion=name, stages=(0.5,), device="cpu"), 1)
        assert len(asked) == CRITERIA[name].batches, name


masks = st.integers(1, 6).flatmap(
    lambda rows: st.tuples(*[st.lists(st.booleans(), min_size=rows, max_size=rows) for _ in range(4)])
)


@given(masks)
def test_shares_are_those_of_a_count_weight_by_weight(drawn):
    a, b, c, d = (torch.tensor(bits) for bits in drawn)
    first, second = {"one": a, "two": b}, {"one": c, "two": d}
    number = int(a.sum() + b.sum())
    if number != int(c.sum() + d.sum()) or not number:
        with pytest.raises(ValueError, match="must be two that keep equally many"):
            overlap({"first": first, "second": second})
        return
    found = overlap({"first": first, "second": second})
    common = sum(x and y for x, y in zip(drawn[0] + drawn[1], drawn[2] + drawn[3], strict=True))
    assert found.shared == pytest.approx(common / number)
    assert 0 <= found.by_chance <= 1
    for row in found.rows:
        mask = (first if row["mask"] == "first" else second)[row["layer"]]
        assert (row["kept"], row["weights"]) == (int(mask.sum()), len(mask))
        assert row["density"] == row["kept"] / row["weights"]
        assert (f"{row['mask']} keeps nothing of {row['layer']}" in found.sentence) == (row["kept"] == 0)
    assert sum(row["both"] for row in found.rows) == 2 * common
    assert f"{found.shared:.1%}" in found.sentence


def test_by_chance_is_what_blind_masks_share():
    """Mean of 2,000 blind pairs; the bound is 5 standard errors, a false alarm in a million."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda: {
        layer: torch.rand(size, generator=generator).argsort() < keep
        for layer, (size, keep) in {"one": (20, 8), "two": (50, 5)}.items()
    }
    found = [overlap({"first": draw(), "second": draw()}) for _ in range(2000)]
    shared = torch.tensor([pair.shared for pair in found])
    assert {pair.by_chance for pair in found} == {(8 * 8 / 20 + 5 * 5 / 50) / 13}
    assert abs(float(shared.mean()) - found[0].by_chance) < 5 * float(shared.std()) / 2000**0.5


def test_masks_that_do_not_compare_are_refused():
    one = {"a": torch.tensor([True, False])}
    with pytest.raises(ValueError, match="Pass such"):
        overlap({"one": one})
    with pytest.raises(ValueError, match=r"\[1, 1, 1\]"):
        overlap({"one": one, "two": one, "three": one})


def test_alike_masks_share_everything():
    for method, criterion in (("imp", "magnitude"), ("snip", "snip")):
        found = overlaps(Pick(method, other=criterion))
        assert list(found) == list(SCOPES)
        assert all(scope.shared == 1.0 for scope in found.values())


def test_magnitude_empties_a_layer_before_training_and_synflow_does_not():
    for sparsity in (0.8, 0.9, 0.98):
        rows = overlaps(Pick("synflow", other="magnitude", sparsity=sparsity))["global"].rows
        emptied = {row["mask"] for row in rows if not row["kept"]}
        assert emptied == {"2: plain, magnitude"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "impp"}, "imp"),
        ({"method": "learned-mask"}, "learned-mask"),
        ({"criterion": "object"}, "object"),
        ({"other": "magnitud"}, "magnitude"),
        ({"sparsity": 1.0}, "sparsit"),
        ({"sparsity": 0.0}, "sparsit"),
        ({"sparsity": float("nan")}, "sparsit|stages"),
    ],
)
def test_what_cannot_be_compared_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Pick(**changes)


def test_a_method_has_its_own_criterion():
    assert Pick("snip", "taylor").criterion == "snip"
    assert Pick("imp", "taylor").criterion == "taylor"
    assert Pick("snip").names[0] == "1: snip"
    assert Pick("imp").names[0] == "1: imp, magnitude"


def test_every_method_and_criterion_has_its_row():
    rows = contrast.method_rows()
    assert [row["method"] for row in rows] == list(METHOD_NAMES)
    assert {row["method"] for row in rows} - set(COMPARED) == {"learned-mask"}
    for row in rows:
        assert row["mask"].startswith(BEFORE) == (row["method"] in AT_START)
        assert row["by"] == AT_START.get(row["method"], "any")
        assert (row["dense"] == 0) == (row["method"] in AT_START)
        assert row["says"]
    assert len({row["dense"] + row["tuning"] for row in rows}) == 1
    assert [row["criterion"] for row in contrast.criterion_rows()] == list(CRITERIA)


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.title)
def test_questions_are_answered_from_the_weights(question):
    found = question.reveal()
    assert found.option in question.options
    assert len(set(question.options)) == len(question.options) >= 3
    assert question.question.endswith("?")
    assert question.pick.sparsity in contrast.SPARSITIES
    assert dataclasses.replace(question.pick) == question.pick
    if question.pick == contrast.EMPTIED:
        assert found.option == contrast.LAYERS[2]
    if question.pick == contrast.TRANSPLANTED:
        assert found.option == "movement"


def test_the_chart_shows_every_count():
    found = overlaps(Pick("synflow", other="magnitude", sparsity=0.9))["global"]
    for dark in (False, True):
        spec = specification(layers_chart(found.rows, "Title", found.sentence), dark=dark)
        assert (spec["title"], spec["description"]) == ("Title", found.sentence)
        (bars,) = spec["datasets"].values()
        assert sorted(bar["kept"] for bar in bars) == sorted(
            [row["kept"] for row in found.rows] + [row["both"] for row in found.rows[::2]]
        )
        assert {bar["mask"] for bar in bars} == {*Pick("synflow", other="magnitude").names, contrast.BOTH}
        assert all(0 <= bar["share"] <= 1 for bar in bars)
