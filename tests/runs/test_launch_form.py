"""Panel 5's form as data: every setting once, in words; whatever is typed gives a run or one sentence."""

import re
import shlex

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from support.explore_states import states

from randprune_lab import cli, forms
from randprune_lab.config import METHOD_NAMES, PRESETS, Control, RunConfig, controls
from randprune_lab.estimate import in_bytes, in_time
from randprune_lab.schedules import STAGES
from randprune_lab.state import ExploreState

few = settings(max_examples=60, deadline=None)


def refusal(**given_) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011, the text is looked at by who asks
        forms.parse(given_)
    text = str(caught.value)
    assert "\n" not in text
    assert not re.search("Input should|Value error|validation error|pydantic", text)
    return text


def outcome(given_) -> RunConfig | str:
    """A run, or one sentence; nothing else ever."""
    try:
        return forms.parse(given_)
    except ValueError as error:
        return f"{type(error).__name__}: {error}"


def run_of(line: str, monkeypatch) -> tuple[RunConfig, bool]:
    """What the command line makes of ``line``: the run, and whether the matched control runs beside it."""
    got = []
    monkeypatch.setattr(cli, "_run", lambda config, *, with_controls, **_: got.append((config, with_controls)))
    monkeypatch.setattr("sys.argv", shlex.split(line))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code, line
    return got[0]


# ---- the fields


def test_every_setting_is_asked_for_once():
    asked = [field.name for fields in forms.FIELDS.values() for field in fields]
    assert sorted([*asked, *forms.SET_BY_LAB]) == sorted(RunConfig.model_fields)


def test_words_come_from_the_config():
    for name, field in forms.BY_NAME.items():
        known = next((part for part in RunConfig.model_fields[name].metadata if isinstance(part, Control)), None)
        assert field.help
        usual = Control(name.replace("_", " ").replace("emep", "EMEP"))
        assert (field.label, field.symbol) == ((known or usual).label, (known or usual).symbol)
        if known and known.options:
            assert (field.kind, field.options) == ("choice", known.options)
        assert field.default == RunConfig.model_fields[name].default
        assert field.optional == (field.default is None)
    assert forms.BY_NAME["sampling_ratio"].title == "sampling ratio sr"
    assert forms.BY_NAME["emep_steps"].title == "EMEP steps"
    assert len({field.title for field in forms.BY_NAME.values()}) == len(forms.BY_NAME)


def test_kinds():
    kinds = {name: forms.BY_NAME[name].kind for name in ("task", "power", "reach", "wave", "seed", "deterministic")}
    assert kinds == {
        "task": "choice",
        "power": "number",
        "reach": "number",
        "wave": "whole",
        "seed": "whole",
        "deterministic": "switch",
    }
    assert {forms.BY_NAME[name].kind for name in forms.NUMBERS} == {"text"}


def test_the_first_look_is_short():
    assert 10 <= sum(not field.advanced for field in forms.BY_NAME.values()) <= 20


JUDGED = {"candidates", "racing", "emep_epochs", "emep_steps", "emep_learning_rate"}


def test_only_what_rules_counts():
    for randomness, expected in (
        ("fixed", {"samples"}),
        ("decrease", {"sampling_ratio"}),
        ("increase", {"sampling_ratio"}),
        ("target_ir", {"samples", "target_ir"}),
    ):
        counted = {name for name in forms.ONLY if forms.counts(name, {"randomness": randomness})}
        assert counted == expected | JUDGED | {"criterion"}
    assert forms.counts("samples", {})  # the default is fixed
    assert forms.counts("power", {})
    learned = {"mask_sparsity_weight", "mask_binary_weight", "mask_learning_rate"}
    moved = {"regrow_every", "regrow_share"}
    for method, expected in (
        ("imp", {"criterion"}),
        ("randomized", JUDGED | {"criterion"}),
        ("randomized-no-selection", {"criterion"}),
        ("learned-mask", learned | {"criterion"}),
        ("snip", set()),
    ):
        assert {name for name in forms.ONLY if forms.counts(name, {"method": method})} == expected | {"samples"}
    assert {name for name in forms.ONLY if forms.counts(name, {"method": "rigl"})} == moved | {"samples"}


def test_what_was_given_in_vain_is_named():
    config = RunConfig(method="imp", racing=True, candidates=3, power=2.0)
    assert forms.idle(config, ["racing", "power"]) == ["racing counts only with method randomized, not with imp."]
    assert forms.idle(RunConfig(randomness="decrease"), ["samples", "sampling_ratio"]) == [
        "samples counts only with randomness fixed or target_ir or adaptive, not with decrease."
    ]


# ---- presets


@pytest.mark.parametrize("name", forms.PRESETS)
def test_presets_survive_the_boxes(name):
    about, preset = forms.PRESETS[name]
    boxes = forms.filled(preset)
    assert about
    assert boxes.keys() == forms.BY_NAME.keys()
    assert all(isinstance(value, str | bool) for value in boxes.values())
    assert forms.parse(boxes) == forms.parse(preset) == RunConfig(**preset)


def test_presets_are_those_of_runs():
    assert forms.parse(forms.PRESETS["demo"][1]) == RunConfig()
    assert forms.parse(forms.PRESETS["tutorial"][1]).model == "tiny-bert"
    assert forms.parse(forms.PRESETS["paper-short"][1]).augment == 20
    assert forms.parse(forms.PRESETS["paper-long"][1]).stages == STAGES["long"]


# ---- what is typed


def test_numbers_as_people_write_them():
    config = forms.parse(
        {
            "sampling_ratio": "5e-5",
            "candidates": " 1e1 ",
            "stages": "[0.5, 0.75 .9]",
            "reach": "",
            "patience": "3",
            "deterministic": True,
            "include": r"\.weight$, head",
            "randomness": "target_ir",
            "target_ir": "0.1, .05, 0.02",
            "glove": "",
        }
    )
    assert (config.sampling_ratio, config.candidates, config.reach, config.patience) == (5e-5, 10, None, 3)
    assert config.stages == (0.5, 0.75, 0.9)
    assert config.include == (r"\.weight$", "head")
    assert config.target_ir == (0.1, 0.05, 0.02)
    assert config.deterministic is True


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ({"candidates": "0"}, "candidates N = 0: must be at least 1. Write for example 8."),
        ({"candidates": "3.5"}, "candidates N = 3.5: must be a whole number. Write for example 8."),
        ({"candidates": True}, "candidates N = True: must be a number or a text. Write for example 8."),
        ({"learning_rate": "0,5"}, "learning rate = 0,5: must be a number, with a point for decimals."),
        ({"learning_rate": "nan"}, "learning rate = nan: must be finite and above 0. Write a positive number."),
        ({"weight_decay": "inf"}, "weight decay = inf: must be finite. Write for example 0.01."),
        ({"seed": "1e99"}, "seed = 1e99: must be at most 9007199254740992. Write for example 0."),
        ({"seed": "9" * 5000}, "seed: has 5,000 characters"),
        ({"batch_size": "٣"}, "batch size = ٣: must be a whole number"),
        ({"batch_size": ""}, "batch size: is empty. Write for example 64."),
        ({"stages": ""}, "stages: is empty. Write for example 0.54"),
        ({"stages": "0.9,0.5"}, "stages = [0.9, 0.5]: must be one or more sparsities that rise strictly"),
        ({"stages": "16"}, "stages: sparsity = 16.0: must lie in [0, 1)"),
        ({"stages": "0.5, x"}, "stages = 0.5, x: 'x' must be a number"),
        ({"stages": "shrt"}, "stages = 'shrt': unknown. Did you mean 'short'?"),
        ({"task": ""}, "task: is empty. Choose one of the list."),
        ({"task": "digit"}, "task = 'digit': unknown. Did you mean 'digits'?"),
        ({"model": "a\x00b"}, "model = a?b: has a sign that cannot be printed"),
        ({"include": "("}, "include: '(': no regular expression"),
        ({"samples": "0"}, "samples M = 0: at least 1 mask must be drawn. Write samples M=1"),
        ({"reach": "0.5"}, "Leave it empty to let every surviving weight be drawn."),
        ({"randomness": "target_ir"}, "target randomness ir = None: each needs the other"),
        ({"randomness": "target_ir", "target_ir": "x"}, "target randomness ir = x: must be a number, or one a stage"),
        ({"emep_steps": "5"}, "EMEP steps = 5: needs max steps per epoch, too"),
        ({"layer_map": "2,x"}, "layer map = 2,x: 'x' must be a whole number. Or leave the box empty."),
        ({"deterministic": "maybe"}, "deterministic = maybe: must be on or off"),
        ({"logit_weight": "0", "task_weight": 0}, "task weight = logit weight = hidden weight = attention weight = 0"),
        ({"nothing": 1}, "nothing: the form has no such setting"),
    ],
)
def test_a_wrong_value_in_the_words_of_the_form(typed, said):
    assert said in refusal(**typed)


def test_the_first_of_several_and_how_many_more():
    text = refusal(seed="x", learning_rate="-1", stages="")
    assert text.startswith("stages: is empty.")
    assert text.endswith("(2 more of the settings will not do either.)")


anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.lists(st.floats(), max_size=3),
    st.sampled_from(["nan", "1e400", "-1", "0.9,0.5", "", "∞", "0x10", "fixed", "target_ir", "text", "()", "[]"]),
)


@few
@given(st.dictionaries(st.sampled_from([*RunConfig.model_fields, "other"]), anything, max_size=6))
def test_whatever_is_typed(typed):
    found = outcome(typed)
    if isinstance(found, str):
        assert found.startswith("ValueError: ")
        assert "\n" not in found
        assert len(found) < 1500
    else:
        assert RunConfig.model_validate_json(found.model_dump_json()) == found


# ---- controls and seeds


def test_batch():
    config = forms.parse({"seed": "5", "candidates": "3"})
    runs = forms.batch(config, ["imp", "imp-matched"], seeds=2)
    assert [(run.seed, run.control) for run in runs] == [
        (5, ""),
        (5, "imp"),
        (5, "imp-matched"),
        (6, ""),
        (6, "imp"),
        (6, "imp-matched"),
    ]
    assert runs[0] == config
    assert runs[2] == controls(config)["imp-matched"]
    assert len({run.group for run in runs}) == 1


def test_a_batch_that_says_nothing_is_refused():
    with pytest.raises(ValueError, match="Did you mean 'imp-matched'"):
        forms.batch(RunConfig(), ["imp-match"])
    with pytest.raises(ValueError, match="control imp: says nothing beside a run of method imp"):
        forms.batch(RunConfig(method="imp"), ["imp"])
    with pytest.raises(ValueError, match="seeds = 0: must be from 1 to 100"):
        forms.batch(RunConfig(), seeds=0)
    with pytest.raises(ValueError, match="102 runs at once: at most 100"):
        forms.batch(RunConfig(), ["imp"], seeds=51)
    with pytest.raises(ValueError, match=r"seed = \d+: must be at most"):
        forms.batch(RunConfig(seed=2**53), seeds=2)
    for method in ("imp", "randomized", "randomized-no-selection"):
        config = RunConfig(method=method)
        fitting = forms.fitting_controls(config)
        assert [run.control for run in forms.batch(config, fitting)] == ["", *fitting]
    assert set(forms.CONTROLS) == set(controls(RunConfig()))


# ---- summary and command


def test_changes():
    config = forms.parse({"seed": "3", "reach": "2"})
    assert forms.changes(config) == {"reach r": "2.0", "seed": "3"}
    assert forms.changes(RunConfig()) == {}
    assert forms.changes(forms.parse(forms.PRESETS["tutorial"][1]), "tutorial") == {}


@pytest.mark.parametrize(
    "chosen",
    [
        *(preset for _, preset in forms.PRESETS.values()),
        *PRESETS.values(),
        {"method": "imp", "seed": -7, "patience": 3, "reach": 1.5, "deterministic": True},
        {"stages": (1 / 3, 0.7), "randomness": "target_ir", "target_ir": (0.1, 0.05), "include": ("weight$", "a b")},
        {"task": "sentences", "model": "tiny-bert", "hidden_weight": 0.0, "unlabelled": "", "group": "a group"},
        {"task": "glue/rte", "model": "some folder/it's", "augment": 0, "control": "imp"},
        {"task": "glue/stsb", "model": "bert-base-uncased", "exclude": ("--odd",)},
        {"task": "glue/mrpc", "model": "m", "glove": "", "augment": 20, "augment_model": "x", "layer_map": (2, 4)}
        | {"teacher": "t"},
    ],
)
def test_the_command_starts_the_same_run(chosen, monkeypatch):
    config = RunConfig(**chosen)
    for matched in (False, True):
        found, beside = run_of(forms.as_command(config, matched=matched), monkeypatch)
        assert found == config
        assert beside == (matched or config.method != "randomized")  # there is none beside another method


def test_the_shortest_command():
    assert forms.as_commands(forms.batch(RunConfig(), ["imp-matched"])) == ["randprune run"]
    assert forms.as_commands([RunConfig()]) == ["randprune run --no-controls"]
    tutorial = forms.parse(forms.PRESETS["tutorial"][1])
    assert "--preset" not in forms.as_command(tutorial)
    assert len(forms.as_command(tutorial).split()) < 10


def test_commands_of_a_batch_are_of_one_group(monkeypatch):
    runs = forms.batch(RunConfig(), ["imp-matched", "imp"], seeds=2)
    lines = forms.as_commands(runs)
    found = [run_of(line, monkeypatch) for line in lines]
    assert [(run.seed, run.control, beside) for run, beside in found] == [
        (0, "", True),
        (0, "imp", True),
        (1, "", True),
        (1, "imp", True),
    ]
    assert len({run.group for run, _ in found}) == 1
    assert all(run.group for run, _ in found)


# ---- launch what I see


def test_seen_in_the_demo():
    state = ExploreState(model="demo", sparsity=0.9, randomness="fixed", samples=7, power=3.0, candidates=5, seed=4)
    config = forms.parse(forms.filled(forms.seen(state)))
    assert (config.task, config.model) == ("digits", "mlp")
    assert config.stages == (0.54, 0.83, 0.9)
    assert (config.randomness, config.samples, config.power, config.candidates, config.seed) == ("fixed", 7, 3, 5, 4)


def test_seen_in_a_run():
    run = RunConfig(method="imp", stages=(0.3, 0.6, 0.8), dense_epochs=7, group="g", control="imp", patience=2)
    state = ExploreState(model="runs/x", sparsity=0.6, randomness="target_ir", target_ir=0.02, ties="magnitude")
    config = forms.parse(forms.seen(state, run_config=run))
    assert config.stages == (0.3, 0.6)
    assert (config.method, config.group, config.control) == ("randomized", "", "")
    assert (config.dense_epochs, config.patience) == (7, 2)
    assert (config.target_ir, config.ties) == (0.02, "random")


def test_seen_in_a_checkpoint():
    shown = forms.seen(ExploreState(model="models/some", sparsity=0.95))
    assert shown["model"] == "models/some"
    assert refusal(**shown).startswith("task: is empty")  # nobody else can know it
    assert forms.parse({**shown, "task": "glue/rte"}).stages == (*STAGES["short"], 0.95)


@few
@given(states)
def test_whatever_is_seen(state):
    config = RunConfig(randomness="target_ir", target_ir=0.1)
    for shown in (forms.seen(state), forms.seen(state, run_config=config)):
        found = outcome(forms.filled({**shown, "task": "digits"}))
        assert found.startswith("ValueError: ") if isinstance(found, str) else found.power == state.power


# ---- units


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0013, "1.3 ms"), (1, "1 s"), (40.2, "40 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (1e6, "12 days")],
)
def test_lengths_of_time(seconds, text):
    assert in_time(seconds) == text


def test_sizes():
    assert [in_bytes(count) for count in (10, 2.1e6, 12e6, 1.44e9, 3e15)] == [
        "0.01 kB",
        "2.1 MB",
        "12 MB",
        "1.4 GB",
        "3,000 TB",
    ]


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_a_run_from_explore_begins_with_a_trained_network(method):
    state = ExploreState(model="runs/x", sparsity=0.9)
    config = forms.parse(forms.seen(state, run_config=RunConfig(method=method)))
    assert (config.method, config.criterion) == ("randomized", "magnitude")
    assert config.dense_epochs > 0
    assert config.max_epochs == RunConfig().max_epochs
