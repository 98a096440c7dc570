"""Studies: from a file to configurations with ids that stay."""

import itertools
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.studies import LINES, TINY, study

from randprune_lab.config import FREE, RunConfig, controls, preset
from randprune_lab.events import Event
from randprune_lab.studies import (
    MOST_RUNS,
    OF_CANDIDATES,
    OF_JUDGING,
    UNREAD,
    UNTOLD,
    Study,
    built_in_studies,
    expand,
    read_study,
    run_id,
    settled,
)
from randprune_lab.study_runs import events_of

FILE = """
title = "Tiny"
seeds = 2
x = "samples"
[base]
stages = [0.5, 0.9]
[grid]
samples = [1, 4]
[lines.one]
[lines."IMP"]
control = "imp-matched"
of = "one"
[[claims]]
says = "It helps."
above = "one"
below = "IMP"
[small]
seeds = 1
[small.lines.one]
max_epochs = 3
"""


@pytest.fixture
def file(tmp_path):
    """Write a study file: ``FILE`` with one piece of it replaced."""

    def write(old="", new="", name="mine.toml"):
        assert FILE.count(old) == 1 or not old
        path = tmp_path / name
        path.write_text(FILE.replace(old, new) if old else FILE + new)
        return path

    return write


# ---- expansion

grids = st.fixed_dictionaries(
    {},
    optional={
        "samples": st.lists(st.integers(1, 50), min_size=1, max_size=3, unique=True),
        "power": st.lists(st.sampled_from([0.0, 1.0, 5.0]), min_size=1, max_size=3, unique=True),
        "max_epochs": st.lists(st.integers(1, 9), min_size=1, max_size=2, unique=True),
    },
)
changes = st.fixed_dictionaries({}, optional={"samples": st.integers(51, 60), "max_epochs": st.integers(10, 12)})


@settings(max_examples=60, deadline=None)
@given(
    grid=grids,
    lines=st.dictionaries(st.sampled_from("abc"), changes, min_size=1),
    seeds=st.lists(st.integers(-5, 9**9), min_size=1, max_size=3, unique=True),
    base=changes,
)
def test_each_seed_each_point_each_line(grid, lines, seeds, base):
    """Counts, order, and who wins: the line over the grid, the grid over the base, all over the task's own."""
    asked = Study(name="s", title="", base=base, grid=grid, lines=lines, seeds=seeds)
    planned = expand(asked)
    points = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    assert [(run.seed, run.point, run.line) for run in planned] == list(itertools.product(seeds, points, lines))
    assert asked.size == len(planned)
    for run in planned:
        wanted = RunConfig(**{**preset(None), **base, **run.point, **lines[run.line], "seed": run.seed})
        assert run.config == wanted
        assert run.id == run_id(run.config)
    same = {run.id for run in planned}
    assert len(same) == len({run.config.model_dump_json() for run in planned})  # equal runs, equal ids; no others


def test_settings_that_nobody_gives_are_those_of_the_task():
    lines = {
        "digits": {},
        "sentences": {"task": "sentences"},
        "paper": {"task": "glue/mrpc"},
        "cnn": {"model": "tiny-cnn"},
    }
    found = {run.line: run.config for run in expand(Study(name="s", title="", lines=lines, seeds=1))}
    assert found["digits"] == RunConfig()
    assert found["sentences"].model == "tiny-bert"
    assert found["paper"] == RunConfig(**preset(None, task="glue/mrpc"), task="glue/mrpc")
    assert found["cnn"].densities == "erk"


@pytest.mark.parametrize("name", ["imp", "imp-matched", "randomized-no-selection"])
def test_a_control_follows_its_line_at_each_point(name):
    lines = {"ours": {"power": 2.0}, "control": {"control": name, "of": "ours", "weight_decay": 0.5}}
    planned = expand(study(grid={"candidates": [2, 6], "emep_epochs": [1, 2]}, lines=lines))
    ours = {(run.seed, *run.point.values()): run.config for run in planned if run.line == "ours"}
    theirs = {(run.seed, *run.point.values()): run.config for run in planned if run.line == "control"}
    assert ours.keys() == theirs.keys()
    assert len(ours) == 8
    for key, config in theirs.items():
        wanted = controls(ours[key])[name].model_copy(update={"weight_decay": 0.5})
        assert config == settled(wanted)
        if name == "imp-matched":
            _, candidates, emep = key
            assert config.max_epochs == 1 + candidates * emep


@pytest.mark.parametrize(
    ("line", "epochs"),
    [
        ({}, 20 - 8),
        ({"candidates": 3, "emep_epochs": 2}, 14),
        ({"candidates": 1}, 20),  # one mask is taken unjudged
        ({"method": "imp"}, 20),
        ({"method": "randomized-no-selection"}, 20),
        ({"max_steps_per_epoch": 10, "emep_steps": 5}, 16),
    ],
)
def test_budget_counts_judging(line, epochs):
    (run,) = expand(Study(name="s", title="", seeds=1, lines={"a": {"candidates": 8, "budget": 20} | line}))
    assert run.config.max_epochs == epochs


def test_budget_of_a_method_without_stages():
    (run,) = expand(
        Study(name="s", title="", seeds=1, base={"stages": [0.5, 0.9]}, lines={"a": {"method": "snip", "budget": 20}})
    )
    assert run.config.max_epochs == 30 + 2 * 20  # all at the last stage


# ---- ids: a run's identity


def test_ids_are_those_of_ever():
    """Whoever has finished runs wants to find them again: a change here makes all of them anew."""
    assert run_id(RunConfig()) == "digits-randomized-01e7b720ff566d53-seed0"
    assert run_id(settled(RunConfig(method="imp", max_epochs=23, seed=7))) == "digits-imp-e8720e9442d6fec6-seed7"
    assert (
        run_id(settled(RunConfig(**preset(None, task="glue/mrpc"), task="glue/mrpc", seed=-1)))
        == "glue-mrpc-randomized-67ef6c0a411f57fd-seed-1"
    )


TEXT = {"task": "sentences", "model": "tiny-bert"}
GIVEN = {"teacher": "folder", "task": "text", "dataset": "a.csv"}
OTHER = {  # of each setting: what goes with it, and a value that is not its default
    "task": ({"model": "tiny-bert"}, "sentences"),
    "model": ({}, "tiny-cnn"),
    "dataset": ({"task": "text"}, "folder"),
    "text_columns": ({"task": "text"}, ("a", "b")),
    "label_column": ({"task": "text"}, "y"),
    "max_length": (TEXT, 64),
    "augment": (TEXT, 2),
    "augment_model": (TEXT, "folder"),
    "glove": (TEXT | {"augment": 2}, "file"),
    "unlabelled": (TEXT, "glue/mnli"),
    "method": ({}, "imp"),
    "initialization": ({}, "zero"),
    "stages": ({}, (0.5,)),
    "scope": ({}, "global"),
    "include": ({}, ("0",)),
    "exclude": ({}, ("0",)),
    "pattern": ({"randomness": "fixed"}, "2:4"),
    "densities": ({}, "erk"),
    "criterion": ({}, "taylor"),
    "candidates": ({}, 3),
    "randomness": ({}, "decrease"),
    "samples": ({}, 7),
    "target_ir": ({"randomness": "target_ir"}, 0.125),
    "power": ({}, 2.0),
    "reach": ({}, 1.5),
    "ties": ({}, "magnitude"),
    "sampler": ({}, "exact"),
    "patience": ({}, 2),
    "racing": ({}, True),
    "emep_steps": ({"max_steps_per_epoch": 5}, 2),
    "layer_map": (GIVEN, (2, 4)),
    "teacher": ({}, "folder"),
    "soft_activations": ({}, True),
    "soft_skips": ({}, True),
    "deterministic": ({}, True),
    "precision": ({}, "bf16"),
    "device": ({}, "cpu"),
    "select_on": ({}, "validation"),
    "selection_rows": ({}, 100),
    "executor": ({}, "serial"),
    "ray_address": ({}, "auto"),
    "wave": ({}, 2),
    "keep_stages": ({}, "last"),
    "group": ({}, "g"),
    "control": ({}, "imp"),
    "max_steps_per_epoch": ({}, 9),
    "label_smoothing": ({}, 0.5),
    "emep_learning_rate": ({}, 0.5),
    "sampling_ratio": ({"randomness": "decrease"}, 1e-4),
}


@pytest.mark.parametrize("field", RunConfig.model_fields)
def test_ids_change_with_what_matters_and_with_nothing_else(field):
    default = RunConfig.model_fields[field].default
    beside, value = OTHER.get(field, ({}, None))
    if value is None:  # a number
        value = default / 2 if isinstance(default, float) and default else default + 1
    first = {"target_ir": 0.25}.get(field, default)
    one, other = (settled(RunConfig(**beside, **{field: each})) for each in (first, value))
    assert getattr(RunConfig(**beside, **{field: value}), field) == value != first
    assert (run_id(one) == run_id(other)) is (field in UNTOLD)
    if field in UNTOLD and field not in FREE:
        assert one == other


def test_where_and_how_runs_are_made_is_no_part_of_an_id():
    plain = {run.id for run in expand(study())}
    how = {"executor": "serial", "wave": 1, "group": "x", "keep_stages": "last"}
    assert {run.id for run in expand(study(name="other", base=how))} == plain
    others = {run.id for run in expand(study(base={"power": 4.0}))} - plain
    assert {run.split("-")[1] for run in others} == {"randomized"}  # plain masks know no power: those are shared
    assert len(others) == 2


def said(config):
    """A run's events, but for the configuration that they begin with."""
    events = events_of(config)
    assert isinstance(events, list)
    assert all(isinstance(event, Event) for event in events)
    return [json.dumps(event.to_json()) for event in events[1:]]


@pytest.mark.parametrize("method", ["imp", "random"])
def test_what_is_settled_changes_no_result(method):
    """A run without random masks never looks at how they would be drawn and judged."""
    ours = {
        "candidates": 2,
        "randomness": "target_ir",
        "target_ir": (0.1, 0.2),
        "samples": 9,
        "power": 1.0,
        "reach": 2.0,
    }
    if method == "random":  # that draws, but not candidates
        ours = {"candidates": 2, "emep_epochs": 3, "sampling_ratio": 0.5}
    ours |= {"emep_learning_rate": 0.5, "emep_steps": 1, "racing": True, "sampler": "exact"}
    given = RunConfig(**TINY | ours, method=method)
    same = settled(given)
    assert all(getattr(same, name) == RunConfig.model_fields[name].default for name in OF_CANDIDATES)
    assert same != given
    assert said(same) == said(given)


@pytest.mark.parametrize("method", ["randomized", "randomized-no-selection"])
@pytest.mark.parametrize("candidates", [1, 2])
def test_what_random_masks_depend_on_is_left_as_it_is(method, candidates):
    given = RunConfig(**TINY | {"candidates": candidates}, method=method, samples=3)
    same = settled(given)
    changed = {name for name in RunConfig.model_fields if getattr(same, name) != getattr(given, name)}
    assert changed <= (set(OF_JUDGING) if method == "randomized-no-selection" else set())
    assert said(same) == said(given)


@pytest.mark.parametrize("randomness", UNREAD)
def test_what_does_not_set_the_randomness_is_settled(randomness):
    aimed = {"target_ir": 0.1} if randomness in ("target_ir", "adaptive") else {}
    given = RunConfig(**TINY, randomness=randomness, samples=3, sampling_ratio=0.01, power=4.0, **aimed)
    same = settled(given)
    assert {name for name in RunConfig.model_fields if getattr(same, name) != getattr(given, name)} == set(
        UNREAD[randomness]
    )
    assert said(same) == said(given)


def test_settled_is_settled():
    for run in expand(read_study("criteria")):
        assert settled(run.config) == run.config


# ---- the studies that come with the lab


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("name", built_in_studies())
def test_built_in_studies_expand(name, small):
    asked = read_study(name, small=small)
    assert asked.question.endswith("?")
    assert asked.source
    planned = expand(asked)  # claims name lines, points and sparsities that exist, or this raises
    assert len(planned) == asked.size
    assert len({one.id for one in planned}) <= 150
    assert len(asked.claims) * 2 / 2 ** len(asked.seeds) <= 0.05  # all claims together can be told at 5 %
    assert Study.model_validate_json(asked.model_dump_json()) == asked  # what study.json says is what was asked
    assert asked.claims
    for claim in asked.claims:
        stages = {sparsity for run in planned if run.line == claim.above for sparsity in run.config.stages}
        sparsity = claim.where.get("sparsity", [])
        assert stages.issuperset(sparsity if isinstance(sparsity, list) else [sparsity])
    if small and name != "table-1":
        assert {run.config.task for run in planned} <= {"digits", "sentences"}
        assert {run.config.model for run in planned} <= {"mlp", "tiny-cnn", "tiny-vit", "tiny-bert", "tiny-gpt2"}


def test_every_figure_and_table_has_its_study():
    wanted = (
        "figure-3 figure-4 figure-5a figure-5b table-1 table-2 emep fallback selection-split criteria architectures"
    )
    assert set(built_in_studies()) >= {*wanted.split(), "budget", "racing", "randomness"}


def test_figure_4_shares_the_runs_of_figure_3():
    first, second = ({run.id for run in expand(read_study(name, small=True))} for name in ("figure-3", "figure-4"))
    assert len(first & second) >= len(first) // 2


# ---- files


def test_a_file_is_read(file):
    asked = read_study(file())
    assert (asked.name, asked.seeds, asked.size) == ("mine", [0, 1], 8)
    small = read_study(file(), small=True)
    assert (small.name, small.seeds) == ("mine-small", [0])
    assert small.lines["one"] == {"max_epochs": 3}  # merged, not replaced
    assert small.lines["IMP"] == LINES["IMP"] | {"of": "one"}


def test_changes_replace_and_take_away(file):
    changes = {"name": "other", "base": {"power": 1.0}, "grid": {"samples": "-"}, "seeds": [4], "x": "line"}
    asked = read_study(file(), small=True, changes=changes)
    assert (asked.name, asked.grid, asked.seeds) == ("other", {}, [4])
    assert asked.base == {"stages": [0.5, 0.9], "power": 1.0}


def test_a_name_follows_from_the_file(file):
    asked = read_study(file(name="my first study!.toml"))
    assert asked.name == "my-first-study-"


BAD = [
    # what is replaced, by what, what is said
    ('title = "Tiny"', "titel = 1", "field of a study = 'titel': unknown. Did you mean 'title'?"),
    ("[base]", "[base]\nsampels = 3", "field = 'sampels': unknown. Did you mean 'samples'?"),
    ("[grid]", "[grid]\npowr = [3]", "field = 'powr': unknown. Did you mean 'power'?"),
    ("[lines.one]", "[lines.one]\nmehtod = 3", "field of lines.one = 'mehtod': unknown. Did you mean 'method'?"),
    ('above = "one"', 'above = "one"\nabov = 3', "claims.0.abov = 3: is no setting"),
    ('above = "one"', 'above = "two"', "line of the claim 'It helps.' = 'two': unknown. Did you mean 'one'?"),
    ('below = "IMP"', 'below = "IPM"', "= 'IPM': unknown. Did you mean 'IMP'?"),
    ('below = "IMP"', "below = inf", "must be finite"),
    ('above = "one"', 'above = "one"\nmeasure = "scor"', "measure of a claim = 'scor': unknown. Did you mean 'score'?"),
    ('above = "one"', 'above = "one"\nwhere = { power = 3 }', "where of the claim 'It helps.' = 'power': unknown"),
    ('above = "one"', 'above = "one"\nwhere = { samples = 3 }', "samples = 3 is no value of the grid. Valid: 1, 4."),
    ('above = "one"', 'above = "one"\nwhere = { samples = [1, 3] }', "samples = 3 is no value of the grid"),
    ("samples = [1, 4]", "samples = []", "grid.samples is empty: there would be no run. Give it a value"),
    ("samples = [1, 4]", 'samples = [1, "1"]', "grid.samples = [1, '1']: one is there twice"),
    ("samples = [1, 4]", 'samples = [1, 4]\nstages = [[0.5], ["0.5"]]', "one is there twice"),
    ("samples = [1, 4]", "samples = [1, true]", "grid.samples = [1, True]: one is there twice"),
    ("samples = [1, 4]", "samples = [{ a = 1 }, { a = 1 }]", "one is there twice"),
    ("[grid]", '[grid]\ngroup = ["a", "b"]', "grid.group: changes no result of a run. Leave it out."),
    ("[grid]", "[grid]\nwave = [1, 2]", "grid.wave: changes no result of a run. Leave it out."),
    ("[base]", '[base]\ncontrol = "imp"', "base.control: a control is of one line."),
    ('above = "one"', 'above = "one"\nwhere = { samples = [] }', "samples = [] chooses nothing. Leave it out."),
    ("samples = [1, 4]", "samples = 4", "grid.samples = 4: "),
    ("[grid]", "[grid]\nseed = [1]", "seed stands in base, grid or a line: a study pairs its runs by seed"),
    ("[base]", "[base]\nseed = 1", "Write seeds = [0, 1, 2]."),
    ("[lines.one]", "[lines.one]\nseed = 1", "seed stands in base, grid or a line"),
    ('of = "one"', 'of = "one"\nseed = 1', "seed stands in base, grid or a line"),
    ("seeds = 2", "seeds = 0", "seeds = 0: must be from 1 to 100,000. Pass 8, or a list"),
    ("seeds = 2", "seeds = -3", "seeds = -3: must be"),
    ("seeds = 2", "seeds = 1_000_000_000_000", "seeds = 1,000,000,000,000: must be"),
    ("seeds = 2", "seeds = []", "seeds: there is none"),
    ("seeds = 2", "seeds = [1, 2, 1]", "seeds = [1, 2, 1]: one is there twice"),
    ("seeds = 2", "seeds = true", "seeds = True"),
    ("seeds = 2", "seeds = [0.5]", "seeds.0 = 0.5: must be a whole number"),
    ("seeds = 2", "seeds = [9_999_999_999_999_999_999]", "must be at most 9007199254740992"),
    ('x = "samples"', 'x = "power"', "x = 'power': unknown"),
    ('x = "samples"', 'x = "samples"\ny = "scores"', "y = 'scores': unknown. Did you mean 'score'?"),
    ('x = "samples"', 'x = "samples"\ny = "ranks"', "reference = '': unknown"),
    ('x = "samples"', 'x = "samples"\nversus = "IPM"', "versus = 'IPM': unknown. Did you mean 'IMP'?"),
    ('x = "samples"', 'x = "samples"\nkept = "all"', "kept = 'all': must be 'results' or 'weights'"),
    ('x = "samples"', 'x = "samples"\nname = "runs"', "name = 'runs': the folder of that name holds the runs"),
    ('x = "samples"', 'x = "samples"\nname = "Runs"', "name = 'Runs': the folder of that name"),
    ('x = "samples"', 'x = "samples"\nname = "../up"', "name = '../up'"),
    ('control = "imp-matched"', "", "lines.IMP: control and of belong together"),
    ('of = "one"', 'of = "on"', "lines.IMP.of = 'on': must be a line above that is no control itself. Pass"),
    ('of = "one"', 'of = "IMP"', "lines.IMP.of = 'IMP': must be a line above"),
    ('of = "one"', 'of = "one"\nbudget = 20', "lines.IMP.budget: a control has the epochs of its line"),
    ("[lines.one]", "[lines.one]\nbudget = 0", "lines.one.budget = 0: epochs a stage, a whole number"),
    ("[lines.one]", "[lines.one]\nbudget = true", "lines.one.budget = True"),
    ("[lines.one]", '[lines.no]\ncontrol = "imp"\nof = "one"\n[lines.one]', "lines.no.of = 'one': must be a line"),
    ("seeds = 1", "sedes = 1", "field of a study = 'sedes'"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "words"), BAD)
def test_a_bad_file_is_refused_in_a_sentence(file, old, new, words):
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        read_study(file(old, new), small="sedes" in new)
    assert str(error.value).startswith("mine.toml: ")
    assert "\n" not in str(error.value)


BAD_RUNS = [
    ("[lines.one]", "[lines.one]\nbudget = 8", "lines.one, samples = 1: budget = 8: judging 8 candidates takes 8"),
    ("[lines.one]", "[lines.one]\npower = -1", "mine, lines.one, samples = 1: power = -1.0: must be finite"),
    ("samples = [1, 4]", "samples = [1, 0]", "mine, lines.one, samples = 0: samples = 0: at least 1 mask"),
    ("[lines.one]", "[lines.one]\ntask = 3", "mine, lines.one, samples = 1: task = 3: must be a text"),
    ("[lines.one]", "[lines.one]\nmodel = [3]", "model = [3]: must be a text"),
    ("[lines.one]", "[lines.one]\ncandidates = 1.5", "candidates = 1.5: must be a whole number"),
    ("[lines.one]", '[lines.one]\nmethod = "snip"', "control: there is none for method = 'snip'"),
    ('control = "imp-matched"', 'control = "impp"', "control = 'impp': unknown. Did you mean 'imp'?"),
    ('above = "one"', 'above = "one"\ntrend = true', "needs three values of samples, and there are 2."),
    (
        'control = "imp-matched"',
        'method = "randomized"\ncontrol = "imp"',
        "mine: lines.IMP makes the runs of lines.one, whose control it is to be.",
    ),
    ('of = "one"', 'of = "one"\npower = -1', "mine, lines.IMP, samples = 1: power = -1"),
    ('above = "one"', 'above = "one"\nwhere = { sparsity = 0.91 }', "sparsity = 0.91 is no stage of any run. Valid: 0"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "words"), BAD_RUNS)
def test_a_run_that_cannot_be_is_named(file, old, new, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        expand(read_study(file(old, new)))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("title = ", "cannot be read as TOML"),
        ("title = 1\ntitle = 2", "cannot be read as TOML"),
        (b"\xff\xfe\x00", "cannot be read as TOML"),
        ("a = " + 3000 * "[", "cannot be read as TOML"),
        ("", "lines: there is none, so there would be no run"),
        ("lines = 3", "lines = 3"),
        ("small = 3\n[lines.a]", "small = 3: must be a table of what changes. Write [small]."),
        ("[lines.a]\n[small.lines]\na = '-'", "lines: there is none"),
        ("[[claims]]\nsays = 'x'\n[lines.a]\n[small]", "claims.0.above"),
        ("claims = [{ says = 'x', above = 'a', trend = true }]\n[lines.a]\n[small]", "x = 'line' has no order"),
    ],
)
def test_a_file_that_is_no_study(tmp_path, content, words):
    path = tmp_path / "bad.toml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    small = b"small" in path.read_bytes()
    with pytest.raises(ValueError, match=re.escape(words)):
        read_study(path, small=small)


def test_what_is_not_there(tmp_path, file):
    with pytest.raises(ValueError, match="cannot be read as TOML"):
        read_study(tmp_path / "none.toml")
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(ValueError, match="cannot be read as TOML"):
        read_study(tmp_path / "folder.toml")
    with pytest.raises(ValueError, match=r"study = 'figure-33': unknown\. Did you mean 'figure-3'"):
        read_study("figure-33")
    path = file()
    path.write_text(FILE.split("[small]")[0])
    with pytest.raises(ValueError, match=r"mine.toml has no small form. Leave --small out, or add a table \[small\]"):
        read_study(path, small=True)


def test_no_study_is_larger_than_can_be_planned():
    with pytest.raises(ValueError, match="tiny has 100,002 runs: at most 100,000"):
        study(seeds=MOST_RUNS // 2 + 1)
    assert study(seeds=MOST_RUNS // 2).size == MOST_RUNS
    with pytest.raises(ValueError, match="at most 100,000"):
        study(grid={"samples": list(range(1, 1001)), "power": list(range(1000))})


def test_a_study_in_python_needs_no_file():
    with pytest.raises(ValueError, match="extra"):
        study(unknown=1)
    asked = study()
    with pytest.raises(ValueError, match="frozen"):
        asked.name = "other"
