"""The Jupyter panel, without a browser: settings as traits, questions and answers, a thread that comes and goes."""

import json
import threading
import time
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
import torch
from support.runs import go_on, tiny, tiny_parts

pytest.importorskip("anywidget")

import traitlets

import randprune_lab
from randprune_lab import Explorer, ExploreState, explore, explorer, open_source
from randprune_lab.explorer import controls_table

THREAD = "randprune-explore"
TOO_LONG = 60  # seconds after which what must come has not come


def normal(*shape, seed=0):
    return 0.04 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tensors():
    return {"a.weight": normal(60, 70), "b.weight": normal(30, 40, seed=1), "b.bias": normal(30, seed=2)}


@pytest.fixture
def panels():
    """``panels(model, ...)`` is ``explore``; the panels are closed in the end."""
    made = []

    def make(*arguments, **settings):
        made.append(explore(*arguments, **settings))
        return made[-1]

    yield make
    for panel in made:
        panel.close()


@pytest.fixture
def panel(panels):
    return panels(tensors(), sparsity=0.8, randomness="fixed", samples=3, candidates=4)


def wait_until(condition):
    end = time.monotonic() + TOO_LONG
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


def parts(panel):
    return {name: getattr(panel, f"part_{name}") for name in ("sweep", "candidates", "table")}


def rests(panel):
    """All slow parts are those of the state."""
    keys = panel.part_quick["keys"]
    return bool(keys) and all(
        part and part["key"] == keys[name] and part.get("done") == part.get("total")
        for name, part in parts(panel).items()
    )


def ask(panel, seq=None, **question):
    seq = max(panel.part_quick["seq"], panel.asked.get("seq", 0)) + 1000 if seq is None else seq
    panel.asked = {"seq": seq, **question}
    return seq


def state_of(panel, **changes):
    return panel.state.model_dump(mode="json") | changes


def consistent(panel):
    """Every trait says what the state says, and the panels show it."""
    for name in ExploreState.model_fields:
        assert getattr(panel, name) == getattr(panel.state, name), name
    assert ExploreState.model_validate(panel.part_quick["state"]) == panel.state
    assert panel.result == (panel.part_quick["derived"] or {})
    return True


# ---- settings as traits


def test_explore_begins_with_what_is_asked_for(panels):
    panel = panels(tensors(), ExploreState(sparsity=0.7, power=2), power=3, seed=4)
    assert (panel.state.sparsity, panel.state.power, panel.seed, panel.tensor) == (0.7, 3, 4, "a.weight")
    assert consistent(panel)
    assert panels(torch.randn(20, 20)).state == ExploreState(tensor="weight")
    with pytest.raises(ValueError, match=r"sparsity = 2"):
        explore(tensors(), sparsity=2)
    with pytest.raises(ValueError, match="sparsty"):
        explore(tensors(), sparsty=0.5)


def test_every_field_is_a_trait_that_can_be_set(panel):
    values = {
        "tensor": "b.weight",
        "stage": 2,
        "moment": "after",
        "sparsity": 0.6,
        "scope": "global",
        "randomness": "decrease",
        "samples": 5,
        "sampling_ratio": 1e-3,
        "target_ir": 0.02,
        "power": 2.0,
        "reach": 1.5,
        "ties": "magnitude",
        "sampler": "exact",
        "candidates": 3,
        "rerolled": (1,),
        "seed": 8,
        "pinned": 1,
        "pair": (0, 2),
        "window": 0.4,
        "sweep": "power",
        "model": "",
    }
    assert set(values) == set(ExploreState.model_fields)
    for name, value in values.items():
        setattr(panel, name, value)
        assert getattr(panel.state, name) == value
        assert consistent(panel)
        assert panel.part_quick["answers"] is None
    quick = Explorer(open_source(tensors())).quick(panel.state)
    assert panel.result == quick["derived"]
    assert panel.part_quick["microscope"] == quick["microscope"]
    assert panel.part_quick["curve"] == quick["curve"]


def test_result_follows_and_cannot_be_set(panel):
    before = panel.result["ir"]
    panel.samples = 30
    assert panel.result["samples"] == 30
    assert panel.result["ir"] < before
    with pytest.raises(traitlets.TraitError):
        panel.result = {"ir": 0}


def test_settings_are_observed_once_each(panel):
    seen = []
    panel.observe(lambda change: seen.append((change.name, change.old, change.new)), list(ExploreState.model_fields))
    panel.sparsity = 0.5
    assert seen == [("sparsity", 0.8, 0.5)]
    panel.sparsity = 0.5
    panel.state = panel.state.but(power=1, seed=3)
    ask(panel, state=state_of(panel, window=0.5))
    assert seen[1:] == [("power", 5.0, 1.0), ("seed", 0, 3), ("window", 0.66, 0.5)]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sparsity", 1.0),
        ("sparsity", "high"),
        ("samples", 0),
        ("reach", 0.5),
        ("ties", "coin"),
        ("scope", None),
        ("pair", (0, 99)),
        ("candidates", 33),
        ("window", float("nan")),
        ("tensor", 5),
        ("state", {"sparsity": 0.5}),
        ("state", None),
    ],
)
def test_an_invalid_setting_is_refused_and_nothing_has_changed(panel, name, value):
    before, shown = panel.state, panel.part_quick
    with pytest.raises((ValueError, traitlets.TraitError)):
        setattr(panel, name, value)
    assert panel.state == before
    assert panel.part_quick == shown
    assert consistent(panel)
    panel.sparsity = 0.55
    assert panel.state == before.but(sparsity=0.55)


@pytest.mark.parametrize("how", ["link", "dlink"])
def test_settings_of_two_panels_are_linked(panels, how):
    one, other = panels(tensors(), sparsity=0.5), panels(tensors(), sparsity=0.7, power=2)
    link = getattr(traitlets, how)((one, "sparsity"), (other, "sparsity"))
    assert other.state.sparsity == 0.5
    one.sparsity = 0.6
    assert (other.sparsity, other.power) == (0.6, 2)
    ask(one, state=state_of(one, sparsity=0.65))
    assert other.state.sparsity == 0.65
    assert consistent(one)
    assert consistent(other)
    assert other.result["keep"] == one.result["keep"]
    other.sparsity = 0.9
    assert one.sparsity == (0.9 if how == "link" else 0.65)
    link.unlink()
    one.sparsity = 0.1
    assert other.sparsity == 0.9
    assert consistent(one)


@pytest.mark.parametrize("by_hand", [False, True])
def test_an_observer_may_set_another_setting(panel, by_hand):
    """Such as: who moves the sparsity gets T = 2."""
    panel.observe(lambda _: setattr(panel, "power", 2.0), "sparsity")
    if by_hand:
        ask(panel, state=state_of(panel, sparsity=0.5))
    else:
        panel.sparsity = 0.5
    assert (panel.state.sparsity, panel.state.power) == (0.5, 2.0)
    assert consistent(panel)
    assert panel.result["power"] == 2.0


@pytest.mark.parametrize("by_hand", [False, True])
def test_an_observer_sees_the_result_of_what_it_was_told(panel, by_hand):
    seen = []
    panel.observe(lambda change: seen.append((change.new, panel.result["keep"])), "sparsity")
    if by_hand:
        ask(panel, state=state_of(panel, sparsity=0.5))
    else:
        panel.sparsity = 0.5
    assert seen == [(0.5, 2100)]


def test_a_setting_made_while_a_question_is_answered_is_not_lost(panel):
    """Questions come on a thread of their own: a cell may set the state meanwhile."""
    inside, go_on_ = threading.Event(), threading.Event()

    def hold(change):
        if change.new.sparsity == 0.5 and not inside.is_set():
            inside.set()
            go_on_.wait(TOO_LONG)

    panel.observe(hold, "state")
    asking = threading.Thread(target=lambda: ask(panel, seq=10**15, state=state_of(panel, sparsity=0.5)))
    asking.start()
    assert inside.wait(TOO_LONG)
    setting = threading.Thread(target=lambda: setattr(panel, "power", 3.0))
    setting.start()
    setting.join(0.3)  # it may have to wait for its turn, or not
    go_on_.set()
    for thread in (asking, setting):
        thread.join(TOO_LONG)
    assert (panel.state.sparsity, panel.state.power) == (0.5, 3.0)
    assert consistent(panel)


def test_a_state_without_a_tensor_looks_at_the_first_one(panel):
    panel.state = ExploreState(sparsity=0.5)
    assert panel.part_quick["microscope"] is not None
    assert panel.result["n"] == 4200


# ---- models


def test_a_model_that_cannot_be_read_is_said_and_the_panel_lives_on(panels, tmp_path):
    from safetensors.torch import save_file

    save_file(tensors(), tmp_path / "good.safetensors")
    panel = panels(tmp_path / "bad.safetensors", sparsity=0.7)
    (notice,) = panel.part_quick["notices"]
    assert notice["kind"] == "error"
    assert "no such file" in notice["text"]
    assert panel.part_quick["microscope"] is None
    assert panel.part_source["tensors"] == []
    assert panel.result == {}
    for ask_for in (panel.table, lambda: panel.mask(0)):
        with pytest.raises(ValueError, match="no such file"):
            ask_for()
    ask(panel, hello=True)
    panel.sparsity = 0.6
    assert panel.part_quick["notices"]
    panel.model = str(tmp_path / "good.safetensors")
    assert panel.part_quick["notices"] == []
    assert (panel.sparsity, panel.tensor) == (0.6, "a.weight")
    assert [tensor["name"] for tensor in panel.part_source["tensors"]] == sorted(tensors())
    wait_until(lambda: rests(panel))
    assert len(panel.table()) == 2
    panel.model = "\0"
    assert "no path" in panel.part_quick["notices"][0]["text"]
    ask(panel, state=state_of(panel, model=str(tmp_path / "good.safetensors")))
    assert panel.part_quick["microscope"] is not None
    assert consistent(panel)


def test_a_model_that_comes_to_be_is_found_at_the_next_question(panels, tmp_path):
    from safetensors.torch import save_file

    panel = panels(tmp_path / "later.safetensors")
    assert panel.part_quick["microscope"] is None
    save_file(tensors(), tmp_path / "later.safetensors")
    ask(panel, state=state_of(panel, sparsity=0.5))
    assert panel.part_quick["microscope"] is not None


def test_another_model_starts_with_its_own_first_tensor(panels, tmp_path):
    from safetensors.torch import save_file

    save_file({"one": normal(20, 20)}, tmp_path / "one.safetensors")
    save_file({"two": normal(30, 20)}, tmp_path / "two.safetensors")
    panel = panels(tmp_path / "one.safetensors", sparsity=0.5)
    wait_until(lambda: rests(panel))
    panel.state = ExploreState(model=str(tmp_path / "two.safetensors"), sparsity=0.6)
    assert (panel.tensor, panel.result["n"]) == ("two", 600)
    wait_until(lambda: rests(panel))
    assert [row["name"] for row in panel.part_table["rows"]] == ["two"]
    assert consistent(panel)


@pytest.mark.parametrize("by_hand", [False, True])
def test_another_model_by_its_name_alone(panels, tmp_path, by_hand):
    """The tensor that was looked at is of the old one."""
    from safetensors.torch import save_file

    save_file({"one": normal(20, 20)}, tmp_path / "one.safetensors")
    save_file({"two": normal(30, 20)}, tmp_path / "two.safetensors")
    panel = panels(tmp_path / "one.safetensors", sparsity=0.5)
    if by_hand:
        ask(panel, state=state_of(panel, model=str(tmp_path / "two.safetensors")))
    else:
        panel.model = str(tmp_path / "two.safetensors")
    assert panel.part_quick["microscope"] is not None
    assert (panel.tensor, panel.sparsity) == ("two", 0.5)
    assert consistent(panel)


def test_a_model_without_matrices_shows_no_table_of_another(panels, tmp_path):
    from safetensors.torch import save_file

    save_file({"one": normal(20, 20)}, tmp_path / "one.safetensors")
    save_file({"vector": normal(300)}, tmp_path / "vector.safetensors")
    panel = panels(tmp_path / "one.safetensors", sparsity=0.5)
    wait_until(lambda: rests(panel))
    panel.state = ExploreState(model=str(tmp_path / "vector.safetensors"), sparsity=0.5)
    keys = panel.part_quick["keys"]
    wait_until(lambda: panel.part_candidates.get("key") == keys["candidates"] and panel.part_candidates["done"] == 8)
    assert not panel.part_table.get("rows")


def test_a_run_begins_with_its_own_settings_and_stages_bring_theirs(panels, tmp_path):
    go_on(tmp_path, tiny(samples=6, seed=3), **tiny_parts())
    panel = panels(tmp_path)
    assert (panel.samples, panel.seed, panel.sparsity, panel.randomness) == (6, 3, 0.5, "fixed")
    panel.stage = 2
    assert panel.sparsity == 0.9
    ask(panel, state=state_of(panel, stage=1))
    assert panel.sparsity == 0.5
    assert len(panel.part_source["moments"]) == 5
    assert consistent(panel)


def test_weights_that_change_are_seen_at_the_next_question(panels):
    weights = tensors()
    panel = panels(weights)
    wait_until(lambda: rests(panel))
    before, keys = panel.result["threshold"], panel.part_quick["keys"]
    weights["a.weight"].mul_(2)
    ask(panel, hello=True)
    assert panel.result["threshold"] == pytest.approx(2 * before, rel=1e-9)
    assert panel.part_quick["keys"]["candidates"] != keys["candidates"]
    wait_until(lambda: rests(panel))


# ---- questions and answers


def test_an_answer_names_its_question_and_what_comes_later_counts_on(panel):
    last = panel.part_quick["seq"]
    for sparsity in (0.5, 0.6, 0.6):
        seq = ask(panel, state=state_of(panel, sparsity=sparsity))
        assert panel.part_quick["answers"] == seq
        assert panel.part_quick["seq"] > max(seq, last)
        last = panel.part_quick["seq"]
        assert panel.state.sparsity == sparsity
    panel.power = 1
    assert (panel.part_quick["answers"], panel.part_quick["seq"] > last) == (None, True)
    wait_until(lambda: rests(panel))
    assert all(part["seq"] > last for part in parts(panel).values())
    assert consistent(panel)


def test_hello_shows_the_state_as_it_is(panel):
    before = panel.state
    seq = ask(panel, hello=True)
    assert panel.state == before
    assert panel.part_quick["answers"] == seq


@pytest.mark.parametrize("rule", ["threshold", "reach"])
def test_a_dragged_rule(panel, rule):
    tau = panel.part_quick["microscope"]["tau"]
    own = Explorer(open_source(tensors()))
    for factor in (0.9, 0.5):
        state = panel.state
        ask(panel, state=state_of(panel), drag={"rule": rule, "magnitude": tau * factor})
        assert panel.state == own.dragged(state, rule, tau * factor) != state
    at = panel.part_quick["microscope"]["tau" if rule == "threshold" else "reach_at"]
    assert at == pytest.approx(tau * factor, rel=0.01)
    assert consistent(panel)


def test_an_invalid_state_is_mended_and_said(panel):
    seq = ask(panel, state=state_of(panel, sparsity=7, ties="coin", nothing=1, power=3))
    assert (panel.sparsity, panel.ties, panel.power) == (0.9375, "random", 3)
    texts = [notice["text"] for notice in panel.part_quick["notices"] if notice["kind"] == "warning"]
    assert len(texts) == 3
    assert panel.part_quick["answers"] == seq
    assert consistent(panel)


@pytest.mark.parametrize(
    "question",
    [
        {"state": None},
        {"state": []},
        {"state": "sparsity"},
        {},
        {"drag": {"rule": "threshold", "magnitude": None}},
        {"drag": {"rule": "threshold", "magnitude": "far"}},
        {"drag": {"rule": "elsewhere", "magnitude": 0.05}},
        {"drag": {}},
        {"drag": 5},
        {"state": {"tensor": "nowhere"}},
        {"state": {"tensor": ""}},
        {"state": {"sparsity": 0.99999}},
        {"state": {"pair": [30, 31], "pinned": 31}},
        {"state": {"rerolled": [31] * 500}},
    ],
    ids=str,
)
def test_whatever_is_asked_is_answered(panel, question):
    seq = ask(panel, **({"state": state_of(panel)} | question if "drag" in question else question))
    assert panel.part_quick["answers"] == seq
    assert consistent(panel)
    json.dumps(panel.part_quick, allow_nan=False)
    seq = ask(panel, state={"tensor": "b.weight", "sparsity": 0.5})
    assert (panel.part_quick["answers"], panel.part_quick["notices"]) == (seq, [])


def test_settings_that_cannot_be_drawn_are_said_and_the_panel_lives_on(panel):
    ask(panel, state=state_of(panel, sampling_ratio=1e300, randomness="decrease"))
    assert panel.part_quick["notices"][0]["kind"] == "error"
    assert panel.result == {}
    ask(panel, state=state_of(panel, sampling_ratio=1e-3))
    assert panel.part_quick["notices"] == []
    wait_until(lambda: rests(panel))


# ---- the slow parts


def test_slow_parts_are_those_of_the_explorer(panel):
    wait_until(lambda: rests(panel))
    expected = dict(Explorer(open_source(tensors())).slow_parts(panel.state))
    for name, part in parts(panel).items():
        assert part["kind"] == name
        assert {key: value for key, value in part.items() if key not in ("kind", "seq", "key")} == {
            key: value for key, value in expected[name].items() if key != "key"
        }
        json.dumps(part, allow_nan=False)


def test_what_is_on_screen_already_is_not_sent_again(panel):
    wait_until(lambda: rests(panel))
    sent = []
    panel.observe(lambda change: sent.append(change.name), [f"part_{name}" for name in parts(panel)])
    panel.pinned = 1
    panel.seed = 5
    wait_until(lambda: rests(panel))
    assert set(sent) == {"part_candidates"}
    panel.sweep = "power"
    wait_until(lambda: rests(panel))
    assert set(sent) == {"part_candidates", "part_sweep"}


def test_a_newer_question_ends_the_slow_work_of_an_older_one(panels, monkeypatch):
    """The second mask of the first state is held back until another state is asked for."""
    reached, free = threading.Event(), threading.Event()
    drawn = []
    real = explorer.Candidates.table

    def table(self, state, done, window):
        drawn.append((state.seed, done))
        if state.seed == 1 and done == 2:
            reached.set()
            free.wait(TOO_LONG)
        return real(self, state, done, window)

    monkeypatch.setattr(explorer.Candidates, "table", table)
    panel = panels(tensors(), sparsity=0.8, candidates=16, seed=1)
    assert reached.wait(TOO_LONG)
    assert panel.part_candidates["done"] == 1
    ask(panel, state=state_of(panel, seed=2))
    assert panel.part_quick["state"]["seed"] == 2  # at once, though the worker is busy
    free.set()
    wait_until(lambda: rests(panel))
    assert [done for seed, done in drawn if seed == 1] == [1, 2]
    assert [done for seed, done in drawn if seed == 2] == list(range(1, 17))


def test_an_error_of_the_work_ends_neither_thread_nor_panel(panels, monkeypatch):
    real = explorer.Explorer.slow_parts

    def broken(self, state, known):
        if state.seed == 1:
            raise RuntimeError("out of memory")
        return real(self, state, known)

    monkeypatch.setattr(explorer.Explorer, "slow_parts", broken)
    panel = panels(tensors(), seed=1)
    wait_until(lambda: any("out of memory" in notice["text"] for notice in panel.part_quick["notices"]))
    panel.seed = 2
    wait_until(lambda: rests(panel))
    assert not panel.part_quick["notices"]


def threads():
    return [thread for thread in threading.enumerate() if thread.name == THREAD]


@pytest.mark.parametrize("busy", [False, True])
def test_close_ends_the_thread(busy):
    before = set(threads())
    panel = explore(tensors(), candidates=32)
    (mine,) = set(threads()) - before
    assert mine.daemon
    if not busy:
        wait_until(lambda: rests(panel))
    panel.close()
    mine.join(TOO_LONG)
    assert not mine.is_alive()
    panel.close()  # once more does no harm


def test_seq_counts_on_after_a_restart(panels):
    first = panels(tensors())
    ask(first, hello=True)
    seq = first.part_quick["seq"]
    time.sleep(0.002)
    assert panels(tensors()).part_quick["seq"] >= seq - 1100  # a clock, not a count from 1


# ---- plain data


def test_table(panel):
    rows = panel.table()
    own = list(Explorer(open_source(tensors())).rows(panel.state))
    assert [row["name"] for row in rows] == ["a.weight", "b.weight"]
    assert [row["expected_ir"] for row in rows] == [row.expected_ir for row in own]
    assert rows[0]["shape"] == [60, 70]
    json.dumps(rows, allow_nan=False)


def test_mask(panel):
    own = Explorer(open_source(tensors()))
    for number in (0, 1, 7):
        mask = panel.mask(number)
        assert torch.equal(mask, own.mask(panel.state, number))
        assert (mask.dtype, mask.sum()) == (torch.bool, 840)
    panel.tensor = "b.weight"
    assert panel.mask(1).shape == (30, 40)


def executed(code, monkeypatch, **names):
    passed = []
    monkeypatch.setattr(randprune_lab, "explore", lambda *arguments: passed.append(arguments))
    exec(compile(code, "copied", "exec"), names)
    return passed[0]


def test_copied_code_shows_the_same(panels, panel, monkeypatch, tmp_path):
    from safetensors.torch import save_file

    save_file(tensors(), tmp_path / 'it\'s "here".safetensors')
    ask(panel, state=state_of(panel, pair=[0, 2], rerolled=[1, 1], reach=2))
    for shown in (panel, panels(tmp_path / 'it\'s "here".safetensors', seed=4)):
        assert shown.copy_code() == shown.part_quick["code"]
        thing = SimpleNamespace()
        source, state = executed(shown.copy_code(), monkeypatch, model=thing)
        assert state.but(model=shown.model) == shown.state
        assert source == shown.model if shown is not panel else source is thing


def test_what_the_browser_gets_first(panel):
    assert panel.part_controls == {"kind": "controls", "controls": controls_table()}
    assert panel.part_source["kind"] == "source"
    assert [tensor["name"] for tensor in panel.part_source["tensors"]] == list(tensors())
    assert panel.part_quick["kind"] == "quick"
    sent = {name for name in panel.trait_names(sync=True) if name.startswith("part_")}
    assert sent == {f"part_{name}" for name in ("controls", "source", "quick", "sweep", "candidates", "table")}
    assert not {"state", "result", *ExploreState.model_fields} & set(panel.trait_names(sync=True))
    assert "export default" in panel._esm
    assert all(name in panel._esm for name in sent)


def svg_and_words(panel):
    data, _ = panel._repr_mimebundle_()
    picture = ElementTree.fromstring(data["image/svg+xml"])
    assert picture.tag.endswith("svg")
    return data, picture


def test_a_saved_notebook_holds_a_picture_and_its_sentences(panel):
    data, picture = svg_and_words(panel)
    assert "application/vnd.jupyter.widget-view+json" in data
    for name in ("microscope", "curve", "point"):
        assert panel.part_quick[name]["sentence"] in data["text/plain"]
    assert panel.part_quick["microscope"]["sentence"] in picture.attrib["aria-label"]
    assert len(list(picture.iter("{http://www.w3.org/2000/svg}path"))) > 10
    assert "http" not in data["image/svg+xml"].replace("http://www.w3.org/", "")


def test_the_picture_of_a_panel_that_shows_nothing_says_why(panels):
    panel = panels("/nowhere/at/all.safetensors")
    data, picture = svg_and_words(panel)
    assert "no such file" in data["text/plain"]
    assert "no such file" in picture.attrib["aria-label"]


def test_the_picture_with_the_masks_says_how_far_they_agree(panel):
    ElementTree.fromstring(panel.still())
    assert "masks share" in panel.still()
    assert "masks share" not in panel.still(masks=False)
