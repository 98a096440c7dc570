"""Panel 5 in the app: each preset draws, what is wrong is said in one sentence, and the button starts the runs."""

import json
import time

import pytest

pytest.importorskip("streamlit")

from streamlit.testing.v1 import AppTest
from support.paths import APP

from randprune_lab import estimate as estimates
from randprune_lab import forms, jobs, store
from randprune_lab.config import RunConfig
from randprune_lab.state import ExploreState

QUICK = {"dense epochs": "1000000", "max epochs": "1", "stages": "0.5", "candidates N": "2"}  # begins soon, never ends


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A runs folder; what was started there is stopped at the end."""
    monkeypatch.setenv("RANDPRUNE_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("RANDPRUNE_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("RANDPRUNE_SLOTS", "1")
    yield tmp_path / "runs"
    for run in (tmp_path / "runs").glob("*/config.json"):
        if jobs.status(run.parent).is_live:
            jobs.stop(run.parent)


@pytest.fixture
def opened(folder):  # noqa: ARG001, it sets where all is
    """``opened(launch="1")`` shows the page of that address; its estimate is cancelled at the end."""
    tests = []

    def show(**query: str) -> AppTest:
        test = AppTest.from_file(str(APP), default_timeout=120)
        tests.append(test)
        test.run()
        test.switch_page("views/run.py")
        for name, value in query.items():
            test.query_params[name] = value
        return shown(test)

    yield show
    for test in tests:
        if "launch asked" in test.session_state:
            test.session_state["launch asked"][1].cancel()


def shown(test: AppTest) -> AppTest:
    test.run()
    assert not test.exception
    return test


def start_button(test: AppTest):
    return next(button for button in test.button if button.label.startswith("Start"))


def box(test: AppTest, label: str):
    found = [widget for widget in (*test.text_input, *test.selectbox, *test.checkbox) if widget.label == label]
    assert len(found) == 1, label
    return found[0]


def fill(test: AppTest, texts: dict) -> AppTest:
    for label, text in texts.items():
        widget = box(test, label)
        if label == "model" and text not in widget.options:
            widget.options.append(text)  # AppTest cannot type into a list, a person can
        widget.set_value(text)
    return shown(test)


def asked_for(test: AppTest) -> RunConfig:
    """What the form asks for; the command line shown says the same."""
    kept = test.session_state["launch kept"]
    values = {name: kept[name] for name in forms.BY_NAME}
    return forms.parse({name: value for name, value in values.items() if forms.counts(name, values)})


@pytest.mark.parametrize("preset", forms.PRESETS)
def test_each_preset_draws_and_parses(opened, preset):
    test = opened(preset=preset)
    assert box(test, "preset").value == preset
    assert not test.error
    assert asked_for(test) == forms.parse(forms.PRESETS[preset][1])
    beside = [name for name in forms.fitting_controls(asked_for(test)) if name == "imp-matched"]
    assert beside == (["imp-matched"] if asked_for(test).method == "randomized" else [])
    assert test.code[0].value == "\n".join(forms.as_commands(forms.batch(asked_for(test), beside)))
    assert start_button(test).label == ("Start 2 runs" if beside else "Start")


def test_every_setting_has_a_box(opened):
    test = opened()
    labels = [widget.label for widget in (*test.text_input, *test.selectbox, *test.checkbox)]
    for field in forms.BY_NAME.values():
        assert labels.count(field.title) == 1
        assert box(test, field.title).help.startswith(field.help)


def test_what_was_typed_stays_until_another_preset_is_chosen(opened):
    test = opened()
    fill(test, {"power T": "3e0"})
    fill(test, {"randomness is set by": "decrease"})
    assert box(test, "power T").value == "3e0"
    assert asked_for(test).power == 3
    assert box(test, "samples M").disabled
    assert not box(test, "sampling ratio sr").disabled
    assert "Other than preset demo: randomness is set by decrease; power T 3.0" in [c.value for c in test.caption]
    shown(test.switch_page("views/about.py"))
    shown(test.switch_page("views/run.py"))
    assert box(test, "power T").value == "3e0"
    fill(test, {"preset": "tutorial"})
    assert asked_for(test) == forms.parse(forms.PRESETS["tutorial"][1])
    assert test.query_params["preset"] == "tutorial"


@pytest.mark.parametrize(
    ("label", "typed", "said"),
    [
        ("stages", "0.9,0.5", "stages = [0.9, 0.5]: must be one or more sparsities that rise strictly"),
        ("stages", "", "stages: is empty"),
        ("seed", "1e99", "seed = 1e99: must be at most"),
        ("learning rate", "nan", "learning rate = nan: must be finite"),
        ("candidates N", "∞", "candidates N = ∞: must be a whole number"),
        ("teacher", "../../etc/passwd", "teacher = '../../etc/passwd': the app takes built-in names"),
        ("model", "math:sin", "model = 'math:sin': the app takes built-in names"),
        ("model", "/etc", "model = '/etc': the app takes built-in names"),
        ("glove", "/etc/passwd", "glove = '/etc/passwd': the app takes built-in names"),
    ],
)
def test_what_is_wrong_is_one_sentence(opened, label, typed, said):
    test = opened()
    fill(test, {label: typed})
    (error,) = test.error
    assert error.value.replace("\\", "").startswith(said)
    assert start_button(test).disabled
    assert not test.code


def test_no_slots(opened, monkeypatch):
    monkeypatch.setenv("RANDPRUNE_SLOTS", "many")
    assert "SLOTS = 'many'" in opened().error[0].value


def test_the_button_starts_run_and_control_and_shows_the_run(opened, folder):
    test = opened()
    fill(test, QUICK)
    start_button(test).click()
    shown(test)
    configs = {path.parent: RunConfig.model_validate_json(path.read_text()) for path in folder.glob("*/config.json")}
    assert sorted(config.control for config in configs.values()) == ["", "imp-matched"]
    first = next(run for run, config in configs.items() if not config.control)
    assert test.query_params["run"] == first.name
    assert {(config.group, config.dense_epochs) for config in configs.values()} == {(first.name, 10**6)}
    assert all(jobs.status(run).is_live for run in configs)

    again = opened()  # another tab
    fill(again, QUICK)
    start_button(again).click()
    shown(again)
    assert "the same run waits or works already" in again.error[0].value
    assert len(list(folder.glob("*/config.json"))) == 2


def test_several_seeds_and_no_control(opened, folder):
    test = opened()
    fill(test, {**QUICK, "method": "imp", "seed": "3"})
    test.number_input[0].set_value(3)
    shown(test)
    assert start_button(test).label == "Start 3 runs"
    start_button(test).click()
    shown(test)
    configs = [json.loads(path.read_text()) for path in folder.glob("*/config.json")]
    assert sorted((config["seed"], config["method"]) for config in configs) == [(3, "imp"), (4, "imp"), (5, "imp")]


def test_launch_what_i_see(opened, folder):
    state = ExploreState(model="demo", sparsity=0.9, power=3.0)
    test = opened(launch="1", model="demo", sparsity="0.9", power="3.0")
    assert box(test, "preset").value == "what I see"
    assert asked_for(test) == forms.parse(forms.seen(state))
    assert not start_button(test).disabled
    assert not folder.exists()  # nothing was started


def test_launch_what_i_see_of_a_run(opened, folder):
    config = RunConfig(stages=(0.3, 0.6, 0.9), dense_epochs=7, seed=9)
    store.write_config(store.new_folder(config, parent=folder), config.model_dump(mode="json"))
    (name,) = [path.name for path in folder.iterdir() if path.is_dir()]
    test = opened(launch="1", model=f"runs/{name}", sparsity="0.6", stage="2")
    found = asked_for(test)
    assert (found.stages, found.dense_epochs, found.seed) == ((0.3, 0.6), 7, 0)


def test_launch_what_i_see_of_a_checkpoint(opened, tmp_path):
    (tmp_path / "models" / "mine").mkdir(parents=True)
    test = opened(launch="1", model="models/mine")
    assert box(test, "task").value is None
    assert test.error[0].value.startswith("task: is empty. Choose one of the list.")
    assert start_button(test).disabled
    fill(test, {"task": "glue/rte"})
    assert not test.error
    assert f"--model {tmp_path / 'models' / 'mine'}" in test.code[0].value
    assert not [caption for caption in test.caption if str(tmp_path) in caption.value]


@pytest.mark.parametrize(
    "query",
    [
        {"launch": "1", "model": "../../etc/passwd"},
        {"launch": "1", "model": "runs/../../etc"},
        {"launch": "1", "model": "/etc/passwd", "power": "abc", "sparsity": "1e99"},
        {"preset": "../x"},
        {"launch": "1", "model": "a\x00b"},
        {"launch": "1", "model": "demo", "sparsity": "0"},
    ],
)
def test_an_odd_address(opened, query):
    test = opened(**query)
    if "launch" in query:
        assert test.error
        assert start_button(test).disabled
        assert not any("root:" in element.value for element in (*test.error, *test.markdown))
    else:
        assert box(test, "preset").value == "demo"


class AskedHere:
    """In place of ``Asking``: the estimate is made in this process, by the second look."""

    def __init__(self, config: RunConfig) -> None:
        self._config, self._looks = config, 0

    def poll(self) -> estimates.Estimate | str | None:
        self._looks += 1
        try:
            return estimates.estimate(self._config) if self._looks > 1 else None
        except ValueError as error:
            return str(error)

    def cancel(self) -> None:
        pass


def test_the_estimate_comes_and_a_model_that_is_nowhere_is_said(opened, monkeypatch):
    monkeypatch.setattr(estimates, "Asking", AskedHere)
    monkeypatch.setattr("launch_panel.Asking", AskedHere)
    test = opened()
    (text,) = waited(test, lambda: [e.value for e in test.markdown if "measured just now" in e.value])
    assert "All 2, one after another: about " in text
    fill(test, {"task": "glue/rte"})
    fill(test, {"model": "some/model-that-is-nowhere"})
    said = waited(test, lambda: [element.value for element in test.error])[0]
    assert "some/model-that-is-nowhere" in said
    assert "the Hub cannot be reached). Check the spelling. Without a network, pass a folder" in said
    assert start_button(test).disabled


def waited(test: AppTest, found) -> list[str]:
    """Runs the page until ``found`` finds something."""
    until = time.monotonic() + 180
    while not found() and time.monotonic() < until:
        time.sleep(0.05)
        shown(test)
    return found()
