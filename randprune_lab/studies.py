"""A study: one question, asked with many runs. A small TOML file says which; here it becomes their configurations.

    title = "Does selection pay?"
    question = "Is the network better when the best of several random masks is taken, not the first?"
    seeds = 8                        # 0 to 7; or a list
    x = "sparsity"                   # what the figure has on its horizontal axis
    [base]                           # settings that all runs share: any field of RunConfig
    stages = [0.8, 0.9375]
    [grid]                           # each value with each other one
    samples = [1, 4, 16]
    [lines."with selection"]         # a curve of the figure: what it changes
    method = "randomized"
    [lines."IMP, as many epochs"]    # a fair control of another line (config.controls)
    control = "imp-matched"
    of = "with selection"
    [[claims]]                       # what is tested, seed by seed
    says = "Selection helps."
    above = "with selection"
    below = "IMP, as many epochs"
    [small]                          # what its small form changes, for two cores
    seeds = 4

Settings that no one gives are those that fit the task, as for ``randprune run``. A line wins over the grid, the grid
over the base. ``budget = 20`` gives a line that many epochs a stage, judging included: what judging costs is taken off
the fine-tuning.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pydantic
from pydantic import Field

from randprune_lab.checks import check_option, problem_of
from randprune_lab.config import FREE, RunConfig, Seed, controls, preset

BUILT_IN = Path(__file__).parent / "built_in"
MEASURES = ("score", "gap", "plain_won", "ranks", "same_winner", "epochs")
OF_REFERENCE = ("ranks", "same_winner")
COUNTED = ("plain_won", "same_winner")  # measures that are 1 or 0 in each stage, or run
CHANCE = "chance"  # what a claim may be above instead of a line
OWN = ("control", "of", "budget")  # what a line says besides settings
AXES = ("sparsity", "ir", "line")  # besides the fields of the grid
MOST_RUNS = 100_000
# A name for what belongs together on paper or on disk, and what changes no result: two studies share such runs.
UNTOLD = (*FREE, "group", "control", "keep_stages")
# What a run that judges no masks never looks at, nor one without random masks, nor one by how randomness is set.
OF_JUDGING = ("candidates", "emep_epochs", "emep_steps", "emep_learning_rate", "racing")
OF_CANDIDATES = (
    *OF_JUDGING,
    *("randomness", "samples", "sampling_ratio", "target_ir", "power", "reach", "ties", "sampler"),
)
UNREAD: dict[str, tuple[str, ...]] = {
    "fixed": ("sampling_ratio",),
    "decrease": ("samples",),
    "increase": ("samples",),
    "target_ir": ("sampling_ratio", "power"),
    "adaptive": ("sampling_ratio", "power"),
}


class Claim(pydantic.BaseModel):
    """Something that the study tests, seed by seed: is a measure of one line above that of another, or a number?

    Attributes:
        says: the claim, a sentence; ``source``: who makes it.
        above, below: the lines; ``below`` may be a number, or for what is counted (plain_won, same_winner) "chance":
            what it would be if the winner were drawn blindly (``chance_of``).
        measure: score (on the reported split); gap (that less the score on the selection split); plain_won
            (share of the stages that the deterministic mask won); ranks (Spearman's correlation of the candidates'
            scores with those of the line ``reference``, at the first stage); same_winner (of that stage, too: 1 or 0;
            none where a race could not have missed it, since the deterministic mask is never dropped); epochs (that a
            run trained).
        trend: instead of its mean, Spearman's correlation of the measure with x counts.
        where: only these values of the grid, or of sparsity; all others are averaged over.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    says: str
    source: str = ""
    above: str
    below: str | pydantic.FiniteFloat = 0.0
    measure: str = "score"
    trend: bool = False
    where: dict[str, Any] = {}

    @property
    def against_line(self) -> bool:
        """``below`` names a line."""
        return isinstance(self.below, str) and self.below != CHANCE


class Study(pydantic.BaseModel):
    """What is asked, and of which runs. Frozen; see the module for the file that describes it."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,80}$")]
    title: str
    question: str = ""
    source: str = ""
    notes: tuple[str, ...] = ()
    base: dict[str, Any] = {}
    grid: dict[str, list[Any]] = {}
    lines: dict[str, dict[str, Any]] = {}
    seeds: list[Seed] = list(range(8))
    x: str = "line"
    y: str = "score"
    log: bool = False
    reference: str = ""
    versus: str = ""
    kept: Literal["results", "weights"] = "results"
    claims: tuple[Claim, ...] = ()

    @pydantic.field_validator("seeds", mode="before")
    @classmethod
    def _counted(cls, seeds: Any) -> Any:
        if not isinstance(seeds, int) or isinstance(seeds, bool):
            return seeds
        if not 1 <= seeds <= MOST_RUNS:
            raise ValueError(f"seeds = {seeds:,}: must be from 1 to {MOST_RUNS:,}. Pass 8, or a list of seeds.")
        return list(range(seeds))

    @pydantic.model_validator(mode="after")
    def _fits_together(self) -> Self:
        for name in (*self.base, *self.grid):
            check_option("field", name, tuple(RunConfig.model_fields))
        for name in set(self.grid) & set(UNTOLD):
            raise ValueError(f"grid.{name}: changes no result of a run. Leave it out.")
        if "control" in self.base:
            raise ValueError("base.control: a control is of one line. Write control and of into a line of its own.")
        if self.name.lower() == "runs":  # of which some disks make one
            raise ValueError(
                f"name = {self.name!r}: the folder of that name holds the runs of all studies. Pass another name."
            )
        for name, values in self.grid.items():
            if not values:
                raise ValueError(f"grid.{name} is empty: there would be no run. Give it a value, or leave it out.")
            twins = any(value in values[:place] for place, value in enumerate(values))
            if twins or len(set(map(_text, values))) < len(values):  # 1 and "1" are one setting
                raise ValueError(
                    f"grid.{name} = {values}: one is there twice, which is no second result. Leave it out."
                )
        if not self.lines or not self.seeds:
            what = "seeds" if self.lines else "lines"
            raise ValueError(f"{what}: there is none, so there would be no run. Write [lines.NAME], and seeds = 8.")
        if any("seed" in settings for settings in (self.base, self.grid, *self.lines.values())):
            raise ValueError(
                "seed stands in base, grid or a line: a study pairs its runs by seed. Write seeds = [0, 1, 2]."
            )
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds = {self.seeds}: one is there twice, which is no second result. Leave it out.")
        check_option("x", self.x, (*AXES, *self.grid))
        check_option("y", self.y, MEASURES)
        if self.versus:
            check_option("versus", self.versus, tuple(self.lines))
        if CHANCE in self.lines:
            raise ValueError(f"lines.{CHANCE}: means the chance of a blind choice in a claim. Name the line otherwise.")
        for name in self.lines:
            self._check_line(name)
        self._check_claims()
        if self.size > MOST_RUNS:
            raise ValueError(
                f"{self.name} has {self.size:,} runs: at most {MOST_RUNS:,}. Make the grid, the lines or seeds fewer."
            )
        return self

    def _check_line(self, name: str) -> None:
        line = self.lines[name]
        for field in line:
            check_option(f"field of lines.{name}", field, (*OWN, *RunConfig.model_fields))
        budget = line.get("budget", 1)
        if not isinstance(budget, int) or isinstance(budget, bool) or budget < 1:
            raise ValueError(f"lines.{name}.budget = {budget!r}: epochs a stage, a whole number. Pass 20.")
        if ("control" in line) != ("of" in line):
            raise ValueError(f"lines.{name}: control and of belong together. Pass both, or neither.")
        if "of" not in line:
            return
        if "budget" in line:
            raise ValueError(f"lines.{name}.budget: a control has the epochs of its line. Give the budget to that one.")
        earlier = itertools.takewhile(lambda other: other != name, self.lines)
        known = [other for other in earlier if "of" not in self.lines[other]]
        if line["of"] not in known:
            raise ValueError(
                f"lines.{name}.of = {line['of']!r}: must be a line above that is no control itself. "
                + (f"Pass one of {', '.join(known)}." if known else "There is none.")
            )

    def _check_claims(self) -> None:
        known = (*self.grid, "sparsity")
        for claim in self.claims:
            lines = [claim.above, *([str(claim.below)] if claim.against_line else [])]
            if claim.below == CHANCE and (claim.measure not in COUNTED or claim.trend):
                raise ValueError(
                    f"below of the claim {claim.says!r}: chance is for what is counted ({', '.join(COUNTED)}), not for "
                    f"{claim.measure}{' as a trend' * claim.trend}. Pass a line or a number."
                )
            for line in lines:
                check_option(f"line of the claim {claim.says!r}", line, tuple(self.lines))
            check_option("measure of a claim", claim.measure, MEASURES)
            for field, value in claim.where.items():
                check_option(f"where of the claim {claim.says!r}", field, known)
                if not (ones := chosen(value, self.grid.get(field))):
                    raise ValueError(f"where of the claim {claim.says!r}: {field} = [] chooses nothing. Leave it out.")
                for one in ones:
                    if one not in self.grid.get(field, [one]):
                        raise ValueError(
                            f"where of the claim {claim.says!r}: {field} = {one!r} is no value of the grid. "
                            f"Valid: {', '.join(map(str, self.grid[field]))}."
                        )
            numbers = all(isinstance(value, int | float) for value in self.grid.get(self.x, []))
            if claim.trend and (self.x == "line" or not numbers):
                raise ValueError(f"trend of the claim {claim.says!r}: x = {self.x!r} has no order. Leave trend out.")
        if self.reference or {self.y, *(claim.measure for claim in self.claims)} & set(OF_REFERENCE):
            check_option("reference", self.reference, tuple(self.lines))

    @property
    def size(self) -> int:
        """Runs, those that turn out to be the same counted twice."""
        return len(self.lines) * len(self.seeds) * math.prod(len(values) for values in self.grid.values())


def chosen(value: Any, points: Sequence[Any] | None) -> list[Any]:
    """The values that a claim's ``where`` means: one, or a list of them; a point of the grid may be a list itself."""
    return value if isinstance(value, list) and value not in (points or []) else [value]


def cell_of(study: Study, field: str, value: Any) -> Any:
    """A value of the grid as a table holds it: a list, and what stands beside values of another kind, as text."""
    kinds = {type(one) for one in study.grid.get(field, [value])}
    if list not in kinds and (len(kinds) == 1 or kinds == {int, float}):
        return value
    return _text(value)


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


@dataclasses.dataclass(frozen=True)
class Planned:
    """One run of a study. ``point``: its values of the grid; ``id``: the same for the same run in any study."""

    id: str
    line: str
    point: dict[str, Any]
    seed: int
    config: RunConfig


def built_in_studies() -> tuple[str, ...]:
    """The names of the studies that come with the lab."""
    return tuple(sorted(path.stem for path in BUILT_IN.glob("*.toml")))


def read_study(source: str | Path, *, small: bool = False, changes: Mapping[str, Any] | None = None) -> Study:
    """The study of that name, or of that TOML file.

    Args:
        source: a built-in study's name, or a file.
        small: the form for two cores, where the study has one.
        changes: values that replace the file's; those of ``base`` and ``grid`` one by one.

    Raises:
        ValueError: there is no such study, or something in it will not do.
    """
    path = Path(source)
    if path.suffix != ".toml" and str(source) not in built_in_studies() and path.exists():
        raise ValueError(f"{path}: a study's file ends in .toml. Rename it, or pass the name of a built-in study.")
    if path.suffix != ".toml":
        path = BUILT_IN / f"{check_option('study', str(source), built_in_studies())}.toml"
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read as TOML ({error}). README shows one under Studies.") from error
    shrunk = content.pop("small", None)
    name = content.setdefault("name", re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem))
    content.setdefault("title", name)
    if small:
        if shrunk is None:
            raise ValueError(f"{path.name} has no small form. Leave --small out, or add a table [small] to the file.")
        if not isinstance(shrunk, dict):
            raise ValueError(f"{path.name}: small = {shrunk!r}: must be a table of what changes. Write [small].")
        content = merged(content, shrunk) | {"name": f"{name}-small"}
    content = merged(content, changes or {})
    try:
        for field in content:
            check_option("field of a study", field, tuple(Study.model_fields))
        return Study.model_validate(content)
    except pydantic.ValidationError as error:
        problems = [problem_of(problem) for problem in error.errors()]
        raise ValueError(f"{path.name}: {'; '.join(problems)}") from error
    except RecursionError as error:
        raise ValueError(f"{path.name}: is nested too deeply. README shows a study under Studies.") from error
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error


def merged(content: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Tables are merged key by key (``lines`` line by line), everything else is replaced; "-" takes a key away."""
    found = dict(content)
    for name, value in changes.items():
        old = found.get(name)
        found[name] = merged(old, value) if isinstance(old, dict) and isinstance(value, Mapping) else value
        if value == "-":
            if old is None:
                raise ValueError(f"{name} = '-': would take away what is not there. Leave it out.")
            del found[name]
    return found


def expand(study: Study) -> list[Planned]:
    """All runs of a study, in the order of its lines within each seed: the first seed's come first.

    Raises:
        ValueError: a setting of one of them will not do; it is named.
    """
    points = [dict(zip(study.grid, values, strict=True)) for values in itertools.product(*study.grid.values())]
    cells = [(line, point, _configured(study, line, point)) for point in points for line in study.lines]
    _check_sparsities(study, [config for _, _, config in cells])
    _check_trends(study, cells)
    _check_controls(study, cells)
    for claim in study.claims:
        if claim.below == CHANCE:
            chance_for(study, claim, cells)
    return [
        Planned(run_id(own := config.model_copy(update={"seed": seed})), line, point, seed, own)
        for seed in study.seeds
        for line, point, config in cells
    ]


def _check_sparsities(study: Study, configs: Sequence[RunConfig]) -> None:
    """A claim of a stage that no run has would never be told."""
    known = sorted({sparsity for config in configs for sparsity in config.stages})
    for claim in study.claims:
        for one in chosen(claim.where.get("sparsity", []), None):
            if one not in known:
                raise ValueError(
                    f"{study.name}: where of the claim {claim.says!r}: sparsity = {one!r} is no stage of any run. "
                    f"Valid: {', '.join(map(str, known))}."
                )


def _check_trends(study: Study, cells: Sequence[tuple[str, Mapping[str, Any], RunConfig]]) -> None:
    """Two points always lie on a line. Along ir, which is measured, nobody knows before how many there will be."""
    for claim in study.claims:
        if not claim.trend or study.x == "ir":
            continue
        stages = {sparsity for line, _, config in cells if line == claim.above for sparsity in config.stages}
        points = study.grid.get(study.x) or sorted(stages)
        count = len(chosen(claim.where[study.x], points)) if study.x in claim.where else len(points)
        if count < 3:
            raise ValueError(
                f"{study.name}: trend of the claim {claim.says!r}: needs three values of {study.x}, and there are "
                f"{count}. Add some, or leave trend out."
            )


def _check_controls(study: Study, cells: Sequence[tuple[str, Mapping[str, Any], RunConfig]]) -> None:
    """A line's own settings may undo what makes it a control."""
    ids: dict[str, list[str]] = {}
    for line, _, config in cells:
        ids.setdefault(line, []).append(run_id(config))
    for line, own in study.lines.items():
        if "of" in own and ids[line] == ids[own["of"]]:
            raise ValueError(
                f"{study.name}: lines.{line} makes the runs of lines.{own['of']}, whose control it is to be. Leave its "
                "own settings out."
            )


def chance_for(study: Study, claim: Claim, runs: Iterable[tuple[str, Mapping[str, Any], RunConfig]]) -> float:
    """The one chance that the runs of a claim have; ``runs``: line, point of the grid and configuration of each.

    Raises:
        ValueError: they have several, or judge nothing.
    """
    chances = {
        chance_of(config, claim.measure)
        for line, point, config in runs
        if line == claim.above
        and all(name not in point or point[name] in chosen(one, study.grid[name]) for name, one in claim.where.items())
    }
    (chance, *others) = chances or {None}
    if others or chance is None:
        found = ", ".join("none" if one is None else f"{one:.3g}" for one in chances)
        raise ValueError(
            f"{study.name}: below of the claim {claim.says!r}: the runs of {claim.above!r} have more than one chance, "
            f"or judge nothing ({found}). Pass a number, compare lines, or name a point of the grid with where."
        )
    return chance


def chance_of(config: RunConfig, measure: str) -> float | None:
    """What something counted would be if each choice were blind; None where a run judges nothing.

    1 of ``candidates``. In a race the deterministic mask comes to the end, with one other: plain_won is 1 of 2, and of
    same_winner only those stages count in which the reference took a random mask, which comes to the end with a chance
    of 1 in ``candidates`` - 1, and wins there (if the reference judges as the race does, but to the end).
    """
    if not config.compares:
        return None
    if not config.racing or config.candidates <= 2:
        return 1 / config.candidates
    return 1 / 2 if measure == "plain_won" else 1 / (config.candidates - 1)


def _configured(study: Study, line: str, point: Mapping[str, Any]) -> RunConfig:
    """The configuration of a line at a point of the grid, with the first seed."""
    own = study.lines[line]
    run = study.lines[own["of"]] if "of" in own else own
    given = study.base | dict(point) | _settings(run) | {"seed": study.seeds[0]}
    if "budget" in run:
        given |= {"max_epochs": run["budget"]}
    where = ", ".join([f"lines.{line}", *(f"{name} = {value}" for name, value in point.items())])
    fits = {name: given[name] for name in ("task", "model") if isinstance(given.get(name), str)}
    try:
        config = RunConfig(**{**preset(None, **fits), **given})
        if "budget" in run:
            config = _less_judging(config)
        if "of" in own:
            known = controls(config)
            if not known:
                raise ValueError(f"control: there is none for method = {config.method!r}. Compare with another line.")
            control = known[check_option("control", own["control"], tuple(known))]
            config = RunConfig(**{**control.model_dump(), **_settings(own)})
        return settled(config)
    except pydantic.ValidationError as error:
        raise ValueError(f"{study.name}, {where}: {'; '.join(map(problem_of, error.errors()))}") from error
    except ValueError as error:
        raise ValueError(f"{study.name}, {where}: {error}") from error


def _settings(line: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if name not in OWN}


def _less_judging(config: RunConfig) -> RunConfig:
    """The same with the epochs a stage that judging leaves of its ``max_epochs``."""
    if not config.compares:
        return config
    budget = config.max_epochs
    judging = controls(config)["imp-matched"].max_epochs - budget
    if judging >= budget:
        raise ValueError(
            f"budget = {budget}: judging {config.candidates} candidates takes {judging} epochs of it, and one must be "
            f"left. Pass {judging + 1} or more."
        )
    return RunConfig(**{**config.model_dump(), "max_epochs": budget - judging})


def settled(config: RunConfig) -> RunConfig:
    """The same run with everything at its default that it never looks at, so that equal runs are equal."""
    defaults = {name: RunConfig.model_fields[name].default for name in UNTOLD if name not in FREE}
    unread = UNREAD[config.randomness] if "randomized" in config.method else OF_CANDIDATES
    if config.method == "randomized-no-selection":
        unread += OF_JUDGING
    defaults |= {name: RunConfig.model_fields[name].default for name in unread}
    return RunConfig(**{**config.model_dump(), **defaults})


def run_id(config: RunConfig) -> str:
    """A name that follows from what decides a run's results, and from nothing else.

    Settings at their defaults are left out, lest a new setting rename all runs of before.
    """
    told = {
        name: value
        for name, value in config.model_dump(exclude={*UNTOLD, "seed"}).items()
        if value != RunConfig.model_fields[name].default
    }
    digest = hashlib.blake2b(json.dumps(told, sort_keys=True).encode(), digest_size=8).hexdigest()
    task = re.sub(r"\W+", "-", config.task)
    return f"{task}-{config.method}-{digest}-seed{config.seed}"
