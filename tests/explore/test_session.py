"""The conversation behind panels 1 to 4, without any front-end."""

import json
import shutil
import threading
import time

import pytest
import torch
from safetensors.torch import save_file
from support.runs import stop_after, tiny, tiny_parts

from randprune_lab import Explorer, ExploreState, dialogue, engine, open_source, status, store
from randprune_lab.candidates import with_scores
from randprune_lab.dialogue import PARTS, THREAD, Dialogue, Opener
from randprune_lab.events import CandidateScored, MaskChosen
from randprune_lab.sources import Judged

TOO_LONG = 60  # seconds after which what must come has not come


@pytest.fixture
def weights(tmp_path):
    generator = torch.Generator().manual_seed(0)
    tensors = {name: 0.04 * torch.randn(60, 70, generator=generator) for name in ("a.weight", "b.weight")}
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def begun(model, *, opener=None, slow=dialogue.SLOW, **settings):
    published = []
    talk = Dialogue(opener or Opener(), ExploreState(model=str(model), **settings), published.append, slow=slow)
    talk.start()
    return talk, published


def wait_until(condition):
    end = time.monotonic() + TOO_LONG
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


def rest(talk):
    wait_until(lambda: not talk.pending)
    assert talk.parts["quick"]["notices"] == []


def question(talk, **asked):
    return {"seq": talk.parts["quick"]["seq"] + 1000, **asked}


def moved(talk, **changes):
    return question(talk, state=talk.state.model_dump(mode="json") | changes)


def mine():
    return [thread for thread in threading.enumerate() if thread.name == THREAD]


def test_every_part_comes_numbered_and_survives_json(weights):
    talk, published = begun(weights, sparsity=0.8, candidates=3)
    rest(talk)
    assert set(talk.parts) == set(PARTS)
    numbers = [part["seq"] for part in published if part["kind"] != "controls"]
    assert numbers == sorted(numbers)
    for part in published:
        # Streamlit turns what JSON does not know into text: nothing may change on the way.
        assert json.loads(json.dumps(part, allow_nan=False)) == json.loads(json.dumps(_as_lists(part)))
    own = dict(Explorer(open_source(weights)).slow_parts(talk.state))
    for name, part in own.items():
        assert {key: talk.parts[name][key] for key in part} == part


def _as_lists(value):
    """Fails at what is not plain: only dicts, lists, texts, numbers and None."""
    if isinstance(value, dict):
        return {key: _as_lists(one) for key, one in value.items() if isinstance(key, str)}
    if isinstance(value, list | tuple):
        return [_as_lists(one) for one in value]
    assert value is None or type(value) in (str, int, float, bool), f"{value!r} is a {type(value)}"
    return value


def test_the_thread_lives_as_long_as_there_is_slow_work(weights):
    before = len(mine())
    talk, _ = begun(weights, sparsity=0.8, candidates=8)
    assert talk.pending
    assert len(mine()) == before + 1
    rest(talk)
    wait_until(lambda: len(mine()) == before)
    talk.asked(moved(talk, pinned=1))  # nothing slow depends on it
    assert not talk.pending
    assert len(mine()) == before
    talk.asked(moved(talk, seed=1))
    assert talk.pending
    rest(talk)


def test_back_and_forth_leaves_what_belongs_to_the_state(weights):
    """What was begun for a state in between is given up, though the state before it is on screen already."""
    talk, _ = begun(weights, sparsity=0.8, candidates=6)
    rest(talk)
    for seed in (1, 0) * 5:
        talk.asked(moved(talk, seed=seed))
        time.sleep(0.03)
    rest(talk)
    for name in dialogue.SLOW:
        assert talk.parts[name]["key"] == talk.parts["quick"]["keys"][name]
    assert talk.parts["candidates"]["done"] == 6


def test_hidden_slow_parts_are_not_worked_out(weights):
    talk, published = begun(weights, slow=["sweep"], sparsity=0.8)
    rest(talk)
    assert {part["kind"] for part in published} == {"controls", "source", "quick", "sweep"}
    talk, published = begun(weights, slow=[], sparsity=0.8)
    assert not talk.pending
    assert {part["kind"] for part in published} == {"controls", "source", "quick"}


def test_more_is_not_answered_with_a_new_picture(weights):
    talk, published = begun(weights, sparsity=0.8)
    rest(talk)
    shown = len(published)
    talk.asked(question(talk, more=True))
    assert len(published) == shown
    talk.asked(question(talk, hello=True))
    assert [part["kind"] for part in published[shown:]] == ["quick"]


@pytest.mark.parametrize(
    "asked", [{}, {"state": 5}, {"seq": "x"}, {"drag": []}, {"has": 3}, {"state": {"model": "\0"}}]
)
def test_whatever_is_asked_is_answered(weights, asked):
    talk, _ = begun(weights, sparsity=0.8)
    before = talk.parts["quick"]["seq"]
    talk.asked(asked)
    assert talk.parts["quick"]["seq"] > before
    assert talk.parts["quick"]["answers"] == asked.get("seq")


def test_a_front_end_may_give_names_a_meaning_of_its_own(weights):
    class Named(Opener):
        opened = 0

        def open(self, model):
            if model != "ours":
                raise ValueError(f"model = {model!r}: is not ours. Choose ours.")
            self.opened += 1
            return Explorer(open_source(weights))

        def code(self, state):
            return state.to_code("theirs()")

    opener = Named()
    talk, _ = begun("ours", opener=opener, sparsity=0.8)
    assert "explore(theirs()" in talk.parts["quick"]["code"]
    talk.asked(moved(talk, sparsity=0.7))
    assert opener.opened == 1
    talk.asked(moved(talk, model="/etc/passwd"))
    (notice,) = talk.parts["quick"]["notices"]
    assert "is not ours" in notice["text"]
    talk.asked(moved(talk, model="ours"))
    assert talk.state.sparsity == 0.7
    assert talk.parts["quick"]["notices"] == []


# ---- a run that goes on


@pytest.fixture
def going_on(tmp_path, monkeypatch):
    """A run with three candidates, stopped after the first was judged, that counts as live: its folder and config."""
    config = tiny(randomness="fixed", samples=3, seed=4)
    everything = list(_items(config))
    first = next(i for i, item in enumerate(everything) if isinstance(item, CandidateScored))
    stop_after(tmp_path / "run", config, first + 1, **tiny_parts())
    monkeypatch.setattr(status, "is_live", lambda folder: folder == tmp_path / "run")
    return tmp_path / "run", config, everything


def _items(config):
    return engine.prune(config, **tiny_parts())


def strips(talk):
    return [(strip["emep"], strip["winner"]) for strip in talk.parts["candidates"]["drawn"]]


def text(score):
    return f"EMEP {100 * score:.1f} %"


def test_scores_come_while_one_looks(going_on):
    folder, config, everything = going_on
    talk, published = begun(folder)
    rest(talk)
    scores = [item.selection.metric for item in everything if isinstance(item, CandidateScored) and item.stage == 1]
    winner = next(item.winner for item in everything if isinstance(item, MaskChosen))
    assert strips(talk) == [(text(scores[0]), False), ("", False), ("", False)]
    assert "has judged 1 of its 3 masks" in talk.parts["candidates"]["sentence"]
    assert talk.parts["quick"]["live"]
    shown = len(published)
    talk.asked(question(talk, more=True))
    assert len(published) == shown
    stop_after(folder, config, 3, **tiny_parts())  # Resumed and the other two
    talk.asked(question(talk, more=True))
    rest(talk)
    assert {part["kind"] for part in published[shown:]} == {"quick", "candidates"}
    assert [words for words, _ in strips(talk)] == [text(score) for score in scores]
    list(store.record(folder, _resumed(folder, config)))
    talk.asked(question(talk, more=True))
    rest(talk)
    assert [won for _, won in strips(talk)] == [number == winner for number in range(3)]
    assert "The run chose" in talk.parts["candidates"]["sentence"]
    assert len(talk.parts["source"]["moments"]) == 5


def _resumed(folder, config):
    return engine.prune(config, resume=store.last_checkpoint(folder), **tiny_parts())


@pytest.mark.parametrize(
    "changes", [{"seed": 5}, {"sparsity": 0.6}, {"power": 2.0}, {"stage": 2}, {"scope": "global"}, {"samples": 4}]
)
def test_scores_stand_only_beside_the_very_masks_that_the_run_drew(going_on, changes):
    talk, _ = begun(going_on[0])
    rest(talk)
    talk.show(talk.state.but(**changes))
    wait_until(lambda: not talk.pending)
    assert not any(strip.get("emep") or strip.get("winner") for strip in talk.parts["candidates"]["drawn"])


def test_a_failed_candidate_says_so():
    table = {"drawn": [{"number": number} for number in range(3)], "sentence": "Three."}
    told = with_scores(table, Judged(asked=3, scores={0: 0.9, 1: None}))
    assert [strip["emep"] for strip in told["drawn"]] == ["EMEP 90.0 %", "EMEP failed", ""]
    assert told["sentence"] == "Three. The run has judged 2 of its 3 masks so far."
    assert with_scores(table, Judged()) == table


def test_a_run_that_waits_is_opened_once_it_has_weights(tmp_path, monkeypatch):
    config = tiny()
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text(config.model_dump_json())
    (folder / "status.json").write_text("{}")
    monkeypatch.setattr(status, "is_live", lambda _: True)
    talk, _ = begun(folder)
    assert "no weights to look at yet" in talk.parts["quick"]["notices"][0]["text"]
    assert talk.parts["quick"]["live"]
    (folder / "status.json").unlink()
    (folder / "config.json").unlink()
    list(store.record(folder, _items(config)))
    talk.asked(question(talk, more=True))
    rest(talk)
    assert talk.parts["quick"]["microscope"] is not None


def test_masks_that_were_drawn_on_another_device_are_not_those_on_screen(going_on):
    folder, _, _ = going_on
    assert open_source(folder).scores(1).asked == 3
    journal = folder / "events.jsonl"
    journal.write_text(journal.read_text().replace('"device": "cpu"', '"device": "cuda:0"'))
    assert open_source(folder).scores(1).asked == 0


@pytest.mark.parametrize("damage", ["journal", "folder"])
def test_what_is_damaged_or_deleted_while_one_looks_is_said_once(damage, going_on):
    folder, *_ = going_on
    talk, _ = begun(folder)
    wait_until(lambda: not talk.pending)
    if damage == "journal":
        (folder / "events.jsonl").write_text("{\n")
    else:
        shutil.rmtree(folder)
    talk.asked(question(talk, more=True))
    wait_until(lambda: not talk.pending)
    (notice,) = talk.parts["quick"]["notices"]
    assert "events.jsonl" in notice["text"]


def test_slow_work_outlives_a_model_that_cannot_be_opened(weights, monkeypatch):
    """It closes between the question and the work on it: others are worked on all the same."""
    talk, _ = begun(weights)
    rest(talk)
    real = talk._work_on

    def late(*given):
        talk.explorer = None
        real(*given)

    monkeypatch.setattr(talk, "_work_on", late)
    talk.asked(moved(talk, power=2.0))
    wait_until(lambda: not talk.pending)
    monkeypatch.undo()
    talk.refresh()
    rest(talk)
    assert talk.parts["sweep"]["key"] == talk.parts["quick"]["keys"]["sweep"]
