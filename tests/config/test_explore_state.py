"""The explorer's state: out and in by URL, JSON and code; whatever comes in, it is a valid state in the end."""

import dataclasses
import json
import urllib.parse

import hypothesis.strategies as st
import pydantic
import pytest
from hypothesis import example, given, settings
from support.explore_states import states

import randprune_lab
from randprune_lab import ExploreState, RunConfig
from randprune_lab.config import RANDOMNESS, Control
from randprune_lab.explorer import controls_table
from randprune_lab.schedules import STAGES
from randprune_lab.state import LONGEST_QUERY, control_of

DEFAULTS = ExploreState()
FIELDS = tuple(ExploreState.model_fields)

few = settings(max_examples=60, deadline=None)


# ---- out and in


@few
@given(states)
def test_url_and_back(state):
    assert ExploreState.from_query(state.to_query()) == (state, [])
    assert ExploreState.from_query("?" + state.to_query()) == (state, [])


@pytest.mark.parametrize(
    "state",
    [
        ExploreState(model="/runs/" + "é" * 994, tensor="層" * 1000),
        ExploreState(rerolled=(31,) * 1000, candidates=32, model="m" * 1000, tensor="t" * 1000),
        ExploreState(model="😀" * 1000, tensor="%&=+? #\0\n" * 100, rerolled=tuple(range(32)) * 31),
    ],
)
def test_the_longest_states_come_back_from_their_own_url(state):
    assert ExploreState.from_query(state.to_query()) == (state, [])


def test_a_url_holds_what_differs_and_nothing_else():
    assert DEFAULTS.to_query() == ""
    state = ExploreState(sparsity=0.9, pair=(2, 5), tensor="a b&c")
    assert dict(urllib.parse.parse_qsl(state.to_query())) == {"sparsity": "0.9", "pair": "2,5", "tensor": "a b&c"}


@few
@given(states)
def test_json_and_back(state):
    text = json.dumps(state.model_dump(mode="json"), allow_nan=False)
    assert ExploreState.model_validate_json(text) == state
    assert ExploreState.model_validate_json(state.model_dump_json()) == state
    assert ExploreState.mended(json.loads(text)) == (state, [])


def executed(code, monkeypatch, **names):
    """What the code passes to ``explore``."""
    passed = []
    monkeypatch.setattr(randprune_lab, "explore", lambda *arguments: passed.append(arguments), raising=False)
    exec(compile(code, "copied", "exec"), dict(names))
    (arguments,) = passed
    return arguments


@few
@given(states)
def test_code_and_back(state):
    with pytest.MonkeyPatch.context() as patch:
        source, passed = executed(state.to_code(), patch)
        assert passed.but(model=source) == state
        thing = object()
        source, passed = executed(state.to_code("network"), patch, network=thing)
        assert source is thing
        assert passed.but(model=state.model) == state


def test_but_checks_and_leaves_the_old_one():
    assert DEFAULTS.but(sparsity=0.5).sparsity == 0.5
    assert DEFAULTS.sparsity == 0.9375
    with pytest.raises(ValueError, match=r"sparsity = 1.*\[0, 1\)"):
        DEFAULTS.but(sparsity=1)
    with pytest.raises(pydantic.ValidationError):
        DEFAULTS.but(sparsty=0.5)
    with pytest.raises(pydantic.ValidationError):
        DEFAULTS.sparsity = 0.5


# ---- what comes from outside

WRONG = {
    "model": ["x" * 4097, 5, None, ["a"]],
    "tensor": ["x" * 4097, {"a": 1}],
    "stage": [0, -1, 1001, 1.5, "first", None, 10**300],
    "moment": ["", "befor", "BEFORE", 1, None],
    "sparsity": [1, -1e-9, 1.5, "high", "", None, float("nan"), float("inf"), -float("inf"), 10**400, [0.5], {}],
    "scope": ["Layer", "", 0, None],
    "randomness": ["random", None, 3],
    "samples": [0, -4, 2**31, 1.5, "4.5", "nan", None, [], 10**30],
    "sampling_ratio": [0, -1, float("nan"), float("inf"), "1e999", None],
    "target_ir": [0, -1, "inf", None, (0.1, 0.2)],
    "power": [-1, 1e7, float("inf"), "nan", None],
    "reach": [0.99, -1, 0, float("inf"), float("nan"), "none", "", []],
    "ties": ["coin", None],
    "sampler": ["slow", 1],
    "candidates": [0, 33, -1, 1.5, "many", None, 1e9],
    "rerolled": ["1,x", [32], [-1], [1.5], 3, None, [0] * 1001, "1," * 1001],
    "seed": [2**53 + 1, -(2**53) - 1, 0.5, "0x10", None],
    "pinned": [32, -1, "1,2", 1.5, []],
    "pair": ["1", "1,2,3", [1, 32], [1], 7, "", "a,b"],
    "window": [0, 0.009, 1.01, "wide", None, float("nan")],
    "sweep": ["window", "", None],
}


def test_every_field_has_wrong_values_here():
    assert set(WRONG) == set(FIELDS)


@pytest.mark.parametrize("field", FIELDS)
def test_wrong_values_give_the_default_and_a_notice(field):
    other = "seed" if field != "seed" else "stage"
    for value in WRONG[field]:
        state, notices = ExploreState.mended({field: value, other: 7})
        assert state == DEFAULTS.but(**{other: 7}), value
        (notice,) = notices
        assert notice.startswith(f"{field} = "), notice
        assert repr(ExploreState.model_fields[field].default) in notice
        assert len(notice) < 600
        assert not any(word in notice for word in ("Input should", "should have", "valid ", "cannot be used"))
        if not isinstance(value, str):
            continue
        assert ExploreState.from_query(urllib.parse.urlencode({field: value}))[0] == DEFAULTS
        assert len(ExploreState.from_query(urllib.parse.urlencode({field: value}))[1]) == 1


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


def valid(answer):
    """A state that stands every check, and notices in words."""
    state, notices = answer
    assert ExploreState.model_validate(state.model_dump()) == state
    assert all(isinstance(notice, str) and notice for notice in notices)
    json.dumps(notices).encode()  # they travel to the browser
    return True


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=8), json_values, max_size=8))
@example({"sparsity": float("nan"), "samples": 10**300, "\ud800": "\ud800", "": None})
@example({"model": "\ud800", "tensor": "\0", "pair": [[]], "rerolled": {"0": 1}})
def test_any_json_is_mended(given_):
    assert valid(ExploreState.mended(given_))
    state, notices = ExploreState.mended(given_)
    unknown = [name for name in given_ if name not in FIELDS]
    assert sum("no such setting" in notice for notice in notices) == len(unknown)
    for name in FIELDS:
        if name not in given_:
            assert getattr(state, name) == getattr(DEFAULTS, name)


@pytest.mark.parametrize(
    "value",
    [json.loads("[" * 900 + "]" * 900), nested(3000), nested(100_000), 10**4000, -(10**4000), {"a": nested(3000)}],
)
def test_what_is_too_deep_or_too_long_to_be_shown_is_mended_too(value):
    for field in (*FIELDS, "unknown"):
        state, notices = ExploreState.mended({field: value})
        assert state == DEFAULTS
        assert len(notices) == 1


@pytest.mark.parametrize("field", ["sparsity", "samples", "seed", "candidates", "stage", "power", "pinned", "window"])
def test_true_is_no_number(field):
    """JSON knows true and 1 apart."""
    state, notices = ExploreState.mended({field: True})
    assert state == DEFAULTS
    assert len(notices) == 1


HOSTILE = [
    "sparsity=nan&samples=inf&power=-inf&window=1e999",
    "sparsity=%ff%fe%00&model=%00&tensor=%zz%",
    "model=\ud800%41&tensor=\udfff",
    "model=%ED%A0%80",
    "=;&;&&==&%&%%&?",
    "sparsity=0.5;samples=3",
    "&".join(f"sparsity=0.{digit}" for digit in range(10)),
    "candidates=99999999999999999999999999999999",
    "seed=" + "9" * 5000,
    "rerolled=" + "1," * 3000,
    "pair=,,,,&pinned=,&rerolled=,,",
    "sparsity[]=1&sparsity.x=2&__proto__=3&__class__=x&model_config=y&model_fields=z&but=1",
    "a&" * 3990,
    "&".join(f"f{number}=1" for number in range(1000)),
    "x" * LONGEST_QUERY,
    "\r\n\t\x1b[31m=\x1b",
    "model=" + "%F0%9F%98%80" * 600,
]


@pytest.mark.parametrize("query", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_queries(query):
    assert valid(ExploreState.from_query(query))
    state, notices = ExploreState.from_query(query)
    assert notices or state != DEFAULTS or not query.strip("=;&?%,")


def test_of_repeated_keys_one_counts():
    assert ExploreState.from_query("sparsity=0.5&sparsity=0.6")[0].sparsity in (0.5, 0.6)
    state, notices = ExploreState.from_query("sparsity=0.5&sparsity=2")
    assert state.sparsity == 0.5 or (state.sparsity == 0.9375 and notices)


HUGE = ["sparsity=0.5&model=" + "a" * 120_000, "&".join(["samples=3"] * 20_000), "%" * 120_001]


@pytest.mark.parametrize("query", HUGE, ids=range(len(HUGE)))
def test_a_huge_query_is_ignored_in_one_sentence(query):
    state, (notice,) = ExploreState.from_query(query)
    assert state == DEFAULTS
    assert f"{len(query):,}" in notice
    assert "ignored" in notice


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=300))
def test_any_query(query):
    assert valid(ExploreState.from_query(query))


@few
@given(st.lists(st.tuples(st.sampled_from(FIELDS), st.text(max_size=12)), max_size=6))
def test_any_values_of_known_fields(pairs):
    text = urllib.parse.urlencode([(name, value.encode(errors="replace")) for name, value in pairs])
    assert valid(ExploreState.from_query(text))


def test_a_notice_of_something_long_is_short():
    _, (notice,) = ExploreState.from_query("sparsity=" + "9" * 7000)
    assert len(notice) < 300


# ---- the run that it leads to


@pytest.mark.parametrize("preset", sorted(STAGES))
@settings(max_examples=40, deadline=None)
@given(state=states)
def test_the_run_of_a_state(preset, state):
    if state.sparsity == 0:
        return
    config = state.to_config(preset)
    assert config.stages == (*(stage for stage in STAGES[preset] if stage < state.sparsity), state.sparsity)
    for name in ("scope", "randomness", "samples", "sampling_ratio", "power", "reach", "sampler", "candidates", "seed"):
        assert getattr(config, name) == getattr(state, name), name
    if state.randomness == "target_ir":
        assert (config.target_ir, config.ties) == (state.target_ir, "random")
    else:
        assert (config.target_ir, config.ties) == (None, state.ties)
    assert RunConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize("preset", sorted(STAGES))
def test_a_sparsity_that_is_a_stage_of_the_preset_comes_once(preset):
    for place, stage in enumerate(STAGES[preset], start=1):
        assert ExploreState(sparsity=stage).to_config(preset).stages == STAGES[preset][:place]


def test_the_run_of_a_state_takes_further_settings():
    config = ExploreState(sparsity=0.7).to_config("short", task="digits", model="mlp", max_epochs=2)
    assert (config.stages, config.max_epochs) == ((0.54, 0.7), 2)
    assert ExploreState(sparsity=0.001).to_config().stages == (0.001,)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"sparsity": 0.0}, r"stages = .*0.*\(0, 1\)"),
        ({"preset": "shrt"}, "Did you mean 'short'"),
        ({"tsk": "x"}, "tsk"),
    ],
)
def test_what_is_no_run_is_refused_in_words(arguments, words):
    state = ExploreState(sparsity=arguments.pop("sparsity", 0.9))
    with pytest.raises(ValueError, match=words):
        state.to_config(**arguments)


# ---- numbers of candidates


@few
@given(states)
def test_numbers(state):
    numbers = state.numbers
    assert len(numbers) == len(set(numbers)) == state.candidates
    assert numbers[0] == 0  # the plain mask cannot be drawn anew
    touched = {slot for slot in state.rerolled if 0 < slot < state.candidates}
    for slot, number in enumerate(numbers):
        assert (number >= state.candidates) == (slot in touched)
        if slot not in touched:
            assert number == slot


@few
@given(states, st.data())
def test_a_reroll_changes_its_own_place_and_takes_a_number_never_seen(state, data):
    if state.candidates == 1:
        return
    slot = data.draw(st.integers(1, state.candidates - 1))
    seen, before = set(), state.numbers
    for done in range(len(state.rerolled) + 1):
        seen |= set(state.but(rerolled=state.rerolled[:done]).numbers)
    after = state.but(rerolled=(*state.rerolled, slot)).numbers
    assert after[slot] not in seen
    assert after[:slot] + after[slot + 1 :] == before[:slot] + before[slot + 1 :]


def test_numbers_of_an_example():
    assert ExploreState(candidates=4).numbers == (0, 1, 2, 3)
    assert ExploreState(candidates=4, rerolled=(2, 0, 2, 3, 9)).numbers == (0, 1, 6, 7)


# ---- controls

MOVED_BY_HAND = {
    "sparsity", "scope", "randomness", "samples", "sampling_ratio", "target_ir", "power", "reach", "ties", "candidates",
    "seed", "window", "sweep",
}  # fmt: skip


@pytest.mark.parametrize("field", sorted(MOVED_BY_HAND))
def test_controls_cover_their_default_and_nothing_that_is_refused(field):
    control, default = control_of(field), ExploreState.model_fields[field].default
    assert isinstance(control, Control)
    if control.options:
        assert default in control.options
        for option in control.options:
            assert getattr(ExploreState(**{field: option}), field) == option
        return
    assert default is None if control.none else control.low <= default <= control.high
    assert control.step > 0
    assert control.low > 0 or control.scale == "linear"
    for value in (control.low, control.high):
        value = round(value) if control.whole else value
        assert getattr(ExploreState(**{field: value}), field) == value
    assert control.whole == (ExploreState.model_fields[field].annotation is int)


def test_what_is_not_moved_by_hand_has_no_control():
    for field in set(FIELDS) - MOVED_BY_HAND - {"sampler"}:
        with pytest.raises(KeyError):
            control_of(field)


def test_controls_are_those_of_the_run_where_the_two_share_a_setting():
    for field in MOVED_BY_HAND & set(RunConfig.model_fields) - {"target_ir"}:
        parts = [part for part in RunConfig.model_fields[field].metadata if isinstance(part, Control)]
        ours = control_of(field)
        if field == "randomness":  # only a run has stages to adapt from
            ours = dataclasses.replace(ours, options=(*ours.options, "adaptive"))
        assert parts == [ours]


def test_the_table_of_controls():
    table = controls_table()
    json.dumps(table, allow_nan=False)
    fields = [row["field"] for row in table]
    assert len(fields) == len(set(fields))
    assert MOVED_BY_HAND - {"scope", "sweep"} <= set(fields) <= set(FIELDS)
    for row in table:
        assert row["label"]
        assert row["help"]
        assert (row["kind"] == "select") == bool(row["options"])
        assert set(row["rules"]) <= set(RANDOMNESS)
