"""Panel 5's form as data, the same in Streamlit and in Jupyter: what is asked, in which words, and what comes of it.

Labels, help and rules are those of the fields of RunConfig; only their order and their groups stand here.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import pydantic

from randprune_lab.checks import check_option, check_whole, rule_of
from randprune_lab.config import AT_START, DYNAMIC, METHOD_NAMES, Control, RunConfig, controls, preset
from randprune_lab.config import PRESETS as PRESETS_OF_RUNS
from randprune_lab.models import MODELS
from randprune_lab.patterns import UNSTRUCTURED
from randprune_lab.schedules import STAGES
from randprune_lab.state import SHARED, ExploreState
from randprune_lab.tables import GLUE_TASKS
from randprune_lab.tasks import TASKS

Kind = Literal["choice", "number", "whole", "switch", "text"]
Settings = dict[str, Any]

SET_BY_LAB = ("group", "control")  # nobody is asked for these
DEMO = "demo"  # in the explorer: the network that the lab trains itself
MOST_SEEDS = 100
MOST_RUNS = 100  # each is a process from the start, also while it waits
LONGEST = 4000  # characters of a box
SHOWN = 80  # characters of a value that an error shows

NUMBERS = ("stages", "target_ir", "layer_map")  # lists of them

# Group -> the fields of the first look, and those that are seldom needed.
GROUPS: dict[str, tuple[str, str]] = {
    "what is pruned": ("task model method", "criterion scope include exclude"),
    "how sparse": ("stages", "pattern densities"),
    "how random": (
        "candidates randomness samples sampling_ratio target_ir power reach",
        "ties sampler select_on selection_rows",
    ),
    "how long it trains": (
        "dense_epochs max_epochs learning_rate batch_size",
        "patience emep_epochs racing max_steps_per_epoch emep_steps emep_learning_rate weight_decay initialization",
    ),
    "methods of sparse training": (
        "",
        "label_smoothing soft_activations soft_skips soft_until mask_sparsity_weight mask_binary_weight "
        "mask_learning_rate regrow_every regrow_share",
    ),
    "distillation": ("logit_weight hidden_weight attention_weight", "task_weight temperature teacher layer_map"),
    "data": ("", "dataset text_columns label_column max_length augment augment_model glove unlabelled"),
    "machine and seed": (
        "seed",
        "device threads precision deterministic executor ray_address ray_gpus wave keep_stages",
    ),
}
# Where a box offers words, though it takes others, too; "task" takes no other.
SUGGESTED: dict[str, tuple[str, ...]] = {
    "task": TASKS,
    "model": (*MODELS, "bert-base-uncased"),
    "stages": tuple(STAGES),
    "pattern": (UNSTRUCTURED, "2:4", "4x4"),
    "unlabelled": GLUE_TASKS,
}
# A field counts only where another one has one of these values.
ONLY: dict[str, tuple[str, tuple[str, ...]]] = {
    "samples": ("randomness", ("fixed", "target_ir", "adaptive")),
    "sampling_ratio": ("randomness", ("decrease", "increase")),
    "target_ir": ("randomness", ("target_ir", "adaptive")),
    **dict.fromkeys(
        ("mask_sparsity_weight", "mask_binary_weight", "mask_learning_rate"), ("method", ("learned-mask",))
    ),
    **dict.fromkeys(("regrow_every", "regrow_share"), ("method", DYNAMIC)),
    **dict.fromkeys(
        ("candidates", "racing", "emep_epochs", "emep_steps", "emep_learning_rate"), ("method", ("randomized",))
    ),
    **dict.fromkeys(("ray_address", "ray_gpus"), ("executor", ("ray",))),
    "criterion": ("method", tuple(name for name in METHOD_NAMES if name not in AT_START)),
}

# Name -> what it is, and its settings.
PRESETS: dict[str, tuple[str, Settings]] = {
    "demo": (
        "a small network learns real handwritten digits and is pruned to 33x in five stages: some seconds, at most a "
        "minute. What the command line does without options",
        preset("digits"),
    ),
    "tutorial": (
        "a tiny BERT learns generated sentences (singular or plural) and is pruned to 33x: two minutes or so",
        preset("sentences"),
    ),
    "tiny-cnn": (
        "a small convolutional network learns the same digits and is pruned to 33x, small tensors less than large "
        "ones: some seconds, at most a minute",
        preset("tiny-cnn"),
    ),
    "tiny-vit": (
        "a tiny vision transformer learns the same digits and is pruned to 33x: a minute or two",
        preset("tiny-vit"),
    ),
    "end-to-end": (
        "arXiv 2312.01653 on digits: a mask that is learned with the weights, magnitude pruning to 33x, smoothed "
        "training: some seconds",
        preset("end-to-end"),
    ),
    "mnist": (
        "LeNet-300-100 learns MNIST and is pruned to 100x in two stages: a few minutes; needs the data once",
        {"task": "mnist", **preset("mnist")},
    ),
    "cifar10": (
        "VGG-16 learns CIFAR-10 and is pruned to 100x in two stages: an hour on a GPU, a day on a CPU; needs the data "
        "once",
        {"task": "cifar10", **preset("cifar10")},
    ),
    "paper-short": (
        "BERT-base on GLUE's MRPC as in the paper, four stages to 16x: hours on a GPU, days on a CPU; needs the "
        "network once",
        {"task": "glue/mrpc", **preset("paper-short", task="glue/mrpc")},
    ),
    "paper-long": (
        "BERT-base on GLUE's CoLA as in the paper, nine stages to 16x: many hours on a GPU; needs the network once",
        {"task": "glue/cola", **preset("paper-long", task="glue/cola")},
    ),
}
# Name -> why one adds this control.
CONTROLS: dict[str, str] = {
    "imp-matched": "plain masks, and so many epochs more as judging candidates takes: a fair control costs the same",
    "imp": "plain masks, the same epochs a stage: cheaper, so what it lacks may be training rather than chance",
    "randomized-no-selection": "the first random mask, unjudged: is it the choice that helps, or chance alone?",
}


@dataclasses.dataclass(frozen=True)
class FormField:
    """One question of the form.

    ``low``, ``high`` and ``step`` are hints for a slider; the rule is RunConfig's. ``options`` are all that a choice
    takes, and suggestions for a text. ``optional``: an empty box means none. ``advanced``: seldom needed.
    """

    name: str
    label: str
    kind: Kind
    help: str
    symbol: str
    options: tuple[str, ...]
    default: Any
    low: float | None
    high: float | None
    step: float | None
    optional: bool
    advanced: bool

    @property
    def title(self) -> str:
        """The label with the paper's symbol: "samples M"."""
        return f"{self.label} {self.symbol}".strip()


def _field(name: str, *, advanced: bool) -> FormField:
    field = RunConfig.model_fields[name]
    control = next((part for part in field.metadata if isinstance(part, Control)), None)
    number = control is not None and not control.options and name != "target_ir"
    help_ = (field.description or "").replace("_", " ").replace("target ir", "target_ir")
    optional = field.default is None
    help_ = help_.replace("none: ", "empty: ") + (f"; empty: {control.none}" if control and control.none else "")
    return FormField(
        name=name,
        label=control.label if control else name.replace("_", " ").replace("emep", "EMEP"),
        kind=_kind(name, field.annotation, control),
        help=help_ + ".",
        symbol=control.symbol if control else "",
        options=control.options if control and control.options else SUGGESTED.get(name, ()),
        default=field.default,
        low=control.low if control and number else None,
        high=control.high if control and number else None,
        step=control.step if control and number else None,
        optional=optional,
        advanced=advanced,
    )


def _kind(name: str, annotation: Any, control: Control | None) -> Kind:
    types = {annotation, *(part for union in get_args(annotation) for part in (union, *get_args(union)))}
    if (control and control.options) or name == "task":
        return "choice"
    if name in NUMBERS:
        return "text"
    return "switch" if bool in types else "whole" if int in types else "number" if float in types else "text"


FIELDS: dict[str, tuple[FormField, ...]] = {
    group: tuple(_field(name, advanced=advanced) for advanced in (False, True) for name in parts[advanced].split())
    for group, parts in GROUPS.items()
}
BY_NAME: dict[str, FormField] = {field.name: field for fields in FIELDS.values() for field in fields}


def counts(name: str, settings: Mapping[str, Any]) -> bool:
    """The field means something beside these settings. Where not, a front-end greys it out and leaves it out."""
    other, values = ONLY.get(name, ("", ()))
    return not other or settings.get(other, BY_NAME[other].default) in values


def idle(config: RunConfig, given: Iterable[str]) -> list[str]:
    """A sentence on each of the settings that were given and mean nothing beside the others."""
    values = config.model_dump()
    idle_ones = [(name, *ONLY[name]) for name in given if not counts(name, values)]
    return [
        f"{name} counts only with {other} {' or '.join(fitting)}, not with {values[other]}."
        for name, other, fitting in idle_ones
    ]


def filled(settings: Mapping[str, Any]) -> Settings:
    """What every box shows for ``settings``: numbers and lists as text, nothing for none."""
    values = {name: settings.get(name, field.default) for name, field in BY_NAME.items()}
    return {name: value if BY_NAME[name].kind == "switch" else shown(value) for name, value in values.items()}


def shown(value: Any) -> str:
    """A setting as a person writes it."""
    if isinstance(value, tuple | list):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)


# ---- the form's answers


def parse(settings: Mapping[str, Any]) -> RunConfig:
    """The run that the form's settings ask for; what is missing is as by default.

    Raises:
        ValueError: one sentence on the first setting that will not do, and how many more there are.
    """
    given: Settings = {}
    problems: dict[str, str] = {}
    for name, value in settings.items():
        try:
            given |= {name: value} if name in SET_BY_LAB else _given(name, value)
        except ValueError as error:
            problems[name] = str(error)
    try:
        config = RunConfig.model_validate(given)
    except pydantic.ValidationError as error:
        for part in error.errors():
            name = str(part["loc"][0]) if part["loc"] else ""
            if name or not problems:  # rules on several fields may be broken by what is missing
                problems.setdefault(name, _sentence(name, part, settings.get(name)))
    if problems:
        first, *others = sorted(problems, key=lambda name: [*BY_NAME, name].index(name))
        more = f" ({len(others)} more of the settings will not do either.)" if others else ""
        raise ValueError(problems[first] + more)
    return config


def _given(name: str, value: Any) -> Settings:
    """A box's content as RunConfig takes it; nothing where the default holds."""
    if name not in BY_NAME:
        raise ValueError(f"{_short(name)}: the form has no such setting. Leave it out.")
    field = BY_NAME[name]
    if isinstance(value, str) and len(value) > LONGEST:
        raise ValueError(f"{field.title}: has {len(value):,} characters, at most {LONGEST:,} fit. Write less.")
    if isinstance(value, bool) and field.kind != "switch":
        raise ValueError(f"{field.title} = {value}: must be a number or a text. {_fix(field)}")
    if isinstance(value, str):
        value = value.strip().strip("[]()") if name in NUMBERS else value.strip()
        if not value.isprintable():
            raise ValueError(f"{field.title} = {_short(value)}: has a sign that cannot be printed. Write it anew.")
    if value is None or value == "":
        if field.optional:
            return {name: None}
        if field.default not in ("", ()):
            raise ValueError(f"{field.title}: is empty. {_fix(field)}")
        return {}
    if field.kind == "choice":
        check_option(field.title, value, field.options)
    return {name: _whole(value) if field.kind == "whole" and isinstance(value, str) else value}


def _whole(text: str) -> int | str:
    """A whole number may be written as 1e3; what is none is left to the rule, which refuses it."""
    try:
        number = float(text)
    except ValueError:
        return text
    return int(number) if "e" in text.lower() and number.is_integer() else text


# What our own rules say to who writes Python.
_WORDS = (
    ("Pass None", "Leave it empty"),
    ("use magnitude_mask for none", "choose method imp for none"),
    ("use magnitude_mask for no randomness", "choose method imp for none"),
    ("Pass ", "Write "),
    ("pass ", "write "),
)


def _sentence(name: str, part: Any, value: Any) -> str:
    """What pydantic found, in the form's words: label, value, rule, fix."""
    if part["type"] == "value_error":
        text = rule_of(part)
        for python, form in _WORDS:
            text = text.replace(python, form)
        ours = not name or text.startswith(f"{name} = ")
        return _in_words(text) if ours else f"{BY_NAME[name].title}: {_in_words(text)}"
    if name not in BY_NAME:
        return f"{_short(name)}: cannot be used. Leave it out."
    field = BY_NAME[name]
    rule = "must be a number, or one a stage with commas" if name == "target_ir" else rule_of(part)
    culprit = f"{_short(part['input'])!r} " if len(part["loc"]) > 1 and name != "target_ir" else ""
    return f"{field.title} = {_short(value)}: {culprit}{rule}. {_fix(field)}"


def _in_words(text: str) -> str:
    """Names of fields give way to their labels: those before an equals sign, and all that no sentence would hold."""
    names = "|".join(sorted(BY_NAME, key=len, reverse=True))
    compound = "|".join(name for name in sorted(BY_NAME, key=len, reverse=True) if "_" in name)
    label = lambda found: BY_NAME[found[1]].title
    return re.sub(rf"(?<!['\w])({compound})(?!['\w])", label, re.sub(rf"\b({names})(?= ?=)", label, text))


def _fix(field: FormField) -> str:
    if field.kind == "choice":
        return "Choose one of the list."
    if field.optional:
        return "Write another one, or leave the box empty."
    return f"Write for example {shown(field.default)}." if field.default not in ("", ()) else "Or leave the box empty."


def _short(value: Any) -> str:
    text = str(value)
    text = "".join(sign if sign.isprintable() else "?" for sign in text[:SHOWN])
    return f"{text}..." if len(str(value)) > SHOWN else text


def fitting_controls(config: RunConfig) -> tuple[str, ...]:
    """Those of CONTROLS that say something beside this run."""
    if config.method == "randomized":
        return tuple(CONTROLS)
    return ("imp",) if config.method == "randomized-no-selection" else ()


def batch(config: RunConfig, chosen: Sequence[str] = (), seeds: int = 1) -> list[RunConfig]:
    """The run and its chosen controls, for ``seeds`` seeds from its own one on.

    Raises:
        ValueError: there is no such control, it says nothing beside this run, or the seeds are too many.
    """
    for name in chosen:
        if check_option("control", name, CONTROLS) not in fitting_controls(config):
            raise ValueError(f"control {name}: says nothing beside a run of method {config.method}. Leave it out.")
    if not 1 <= check_whole("seeds", seeds) <= MOST_SEEDS:
        raise ValueError(f"seeds = {seeds}: must be from 1 to {MOST_SEEDS}. Write for example 3.")
    if (runs_in_all := seeds * (1 + len(chosen))) > MOST_RUNS:
        raise ValueError(f"{runs_in_all} runs at once: at most {MOST_RUNS}. Take fewer seeds or controls.")
    runs = []
    for seed in range(config.seed, config.seed + seeds):
        one = parse({**config.model_dump(), "seed": seed})
        runs += [one, *(controls(one)[name] for name in chosen)]
    return runs


# ---- what is about to start, in words and as a command


def changes(config: RunConfig, name: str = "demo") -> dict[str, str]:
    """What differs from a preset of the form: title and value, for a summary."""
    usual = parse(PRESETS[name][1])
    return {
        field.title: shown(getattr(config, field.name)) or "none"
        for field in BY_NAME.values()
        if getattr(config, field.name) != getattr(usual, field.name)
    }


def as_command(config: RunConfig, *, matched: bool = False) -> str:
    """The command line that starts the same run; ``matched``: with its control of equal budget, as by default there."""
    task = None if config.task == "digits" else config.task
    model = None if config.model == "mlp" else config.model
    presets: dict[str | None, Settings] = {None: preset(None, task=task, model=model)}
    presets |= {name: preset(name, task=task, model=model) for name in PRESETS_OF_RUNS}
    named = {name: value for name, value in (("task", task), ("model", model)) if value is not None}
    options = {
        name: named | {
            field: getattr(config, field)
            for field, default in RunConfig().model_dump().items()
            if getattr(config, field) != settings.get(field, default)
        }
        for name, settings in presets.items()
    }  # fmt: skip
    best = min(options, key=lambda name: len(options[name]) + (name is not None))
    words = ["randprune", "run", *(["--preset", best] if best else [])]
    for field, value in options[best].items():
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        if isinstance(value, bool):
            words.append(f"--{'' if value else 'no-'}{field.replace('_', '-')}")
            continue
        words += [f"--{field.replace('_', '-')}", "none" if value in (None, "", ()) else text]
    alone = config.method == "randomized" and not matched
    return shlex.join([*words, *(["--no-controls"] if alone else [])])


def as_commands(configs: Sequence[RunConfig]) -> list[str]:
    """The same for what ``batch`` gave: a run and its matched control are one line, and all lines one group."""
    lines: list[tuple[RunConfig, bool]] = []
    for config in configs:
        if lines and config == controls(lines[-1][0]).get("imp-matched"):
            lines[-1] = (lines[-1][0], True)
        else:
            lines.append((config, False))
    if len(lines) == 1:
        return [as_command(config, matched=matched) for config, matched in lines]
    first = configs[0]
    group = f"{re.sub(r'[^a-z0-9]+', '-', first.task)}-seeds-{first.seed}-{configs[-1].seed}"
    return [as_command(config.model_copy(update={"group": group}), matched=matched) for config, matched in lines]


def seen(state: ExploreState, *, run_config: RunConfig | None = None) -> Settings:
    """Settings for a run of what the explorer shows: its randomness, and stages up to its sparsity.

    A run goes on with its own settings (``run_config``), the demo with those of the command line. Of a checkpoint
    nobody knows what it should learn: its task is left empty, to be chosen.
    """
    if run_config is not None:
        settings = run_config.model_dump(exclude=set(SET_BY_LAB))
        ladder = run_config.stages
    elif state.model in ("", DEMO):
        settings, ladder = dict(PRESETS["demo"][1]), STAGES["digits"]
    else:
        settings = {**preset("paper-short"), "task": "", "model": state.model}
        ladder = STAGES["short"]
    if run_config is not None and run_config.at_start:  # it had no use for these
        settings |= {name: RunConfig.model_fields[name].default for name in ("criterion", "dense_epochs", "max_epochs")}
    settings |= {name: getattr(state, name) for name in (*SHARED, "candidates")}
    settings["method"] = "randomized"
    settings["stages"] = (*(stage for stage in ladder if stage < state.sparsity), state.sparsity)
    settings["target_ir"] = state.target_ir if state.randomness == "target_ir" else None
    if state.randomness == "target_ir":
        settings["ties"] = "random"  # the power for an ir is known for them only
    return settings
