"""The one state of the explorer: what is looked at and how its masks would be drawn; URL, JSON and code in and out."""

from __future__ import annotations

import contextlib
import urllib.parse
from collections.abc import Mapping
from typing import Annotated, Any, Self

import pydantic
from pydantic import AfterValidator, BeforeValidator, Field

from randprune_lab.checks import check_option, rule_of
from randprune_lab.config import (
    Candidates,
    Control,
    Power,
    Randomness,
    Reach,
    RunConfig,
    SamplerName,
    Samples,
    SamplingRatio,
    Scope,
    Seed,
    Sparsity,
    TargetIr,
    TieRule,
)
from randprune_lab.schedules import STAGES

MOMENTS = ("before", "after")
SWEEPS = ("sampling_ratio", "samples", "power", "reach", "sparsity")
MOST_CANDIDATES = 32  # drawn, compared and shown at a time
LONGEST_REASON = 300  # characters of a notice
LONGEST_QUERY = 120_000  # characters: room for two long names, percent-encoded

# Fields of the same meaning in RunConfig. (target_ir there may be one a stage, candidates may be more.)
SHARED = ("scope", "randomness", "samples", "sampling_ratio", "power", "reach", "ties", "sampler", "seed")

Text = Annotated[str, Field(max_length=4096)]
Slot = Annotated[int, Field(ge=0, lt=MOST_CANDIDATES)]


def _numbers(value: Any) -> Any:
    """A list as it stands in a URL: "2,5"."""
    return tuple(part for part in value.split(",") if part) if isinstance(value, str) else value


class ExploreState(pydantic.BaseModel):
    """What panels 1 to 4 show. Frozen; change it with ``state.model_copy(update={...})`` or ``state.but(...)``.

    ``randomness`` says which of samples, sampling_ratio and target_ir rules; the others follow from it.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    model: Text = Field(default="", description="where the weights are from: a folder, a file, a Hub id, a run")
    tensor: Text = Field(default="", description="name of the tensor that is looked at; empty: the first one")
    stage: Annotated[int, Field(ge=1, le=1000)] = Field(default=1, description="stage whose masks are drawn")
    moment: Annotated[str, AfterValidator(lambda value: check_option("moment", value, MOMENTS))] = Field(
        default="before", description="of a run: the weights before the stage's mask, or after it"
    )
    sparsity: Sparsity = 0.9375
    scope: Scope = "layer"
    randomness: Randomness = "decrease"
    samples: Samples = 4
    sampling_ratio: SamplingRatio = 5e-5
    target_ir: TargetIr = 0.01
    power: Power = 5.0
    reach: Reach = None
    ties: TieRule = "random"
    sampler: SamplerName = "fast"
    candidates: Annotated[Candidates, Field(le=MOST_CANDIDATES)] = 8
    rerolled: Annotated[tuple[Slot, ...], BeforeValidator(_numbers), Field(max_length=1000)] = Field(
        default=(), description="places of candidates that were drawn anew, in this order"
    )
    seed: Seed = 0
    pinned: Slot | None = Field(default=None, description="candidate that the others are compared with; none: plain")
    pair: Annotated[tuple[Slot, Slot] | None, BeforeValidator(_numbers)] = Field(
        default=None, description="two candidates whose difference is shown"
    )
    window: Annotated[
        float,
        Field(ge=0.01, le=1.0, allow_inf_nan=False, description="half width of panel 1, as a share of tau"),
        Control("window", "", 0.02, 1.0, 0.02, unit="of tau to each side"),
    ] = 0.66
    sweep: Annotated[
        str,
        AfterValidator(lambda value: check_option("sweep", value, SWEEPS)),
        Field(description="what panel 4 varies"),
        Control("sweep this", options=SWEEPS),
    ] = "sampling_ratio"

    @pydantic.model_validator(mode="before")
    @classmethod
    def _no_truth(cls, given: Any) -> Any:
        """JSON's true is no number, though Python takes it for 1."""
        for name, value in given.items() if isinstance(given, dict) else ():
            if isinstance(value, bool):
                raise ValueError(f"{name} = {value}: must be a number or a text. Pass for example 1.")
        return given

    def but(self, **changes: Any) -> Self:
        """This state with some fields changed, checked.

        Raises:
            ValueError: a value is not allowed (pydantic.ValidationError).
        """
        return type(self).model_validate({**self.model_dump(), **changes})

    @classmethod
    def mended(cls, given: Mapping[str, Any]) -> tuple[Self, list[str]]:
        """The state that ``given`` describes, with the default for whatever is not allowed, and a notice for each."""
        if not isinstance(given, Mapping):
            return cls(), [f"a state of type {type(given).__name__}: must be settings by name; the defaults are used."]
        with contextlib.suppress(pydantic.ValidationError, RecursionError):
            return cls.model_validate(dict(given)), []
        good: dict[str, Any] = {}
        notices = []
        for name, value in given.items():
            if name not in cls.model_fields:
                notices.append(f"{_short(name)}: the explorer has no such setting; it is ignored.")
                continue
            try:
                cls.model_validate({name: value})
                good[name] = value
            except (pydantic.ValidationError, RecursionError) as error:
                reason = rule_of(error.errors()[0]) if isinstance(error, pydantic.ValidationError) else "too deep"
                default = cls.model_fields[name].default
                if not reason.startswith(f"{name} = "):  # our own rules name the value themselves
                    reason = f"{name} = {_short(value)}: {reason}"
                notices.append(f"{reason[:LONGEST_REASON].rstrip('.')}; {default!r} is used instead.")
        return cls.model_validate(good), notices

    def to_query(self) -> str:
        """As the query of a URL: what differs from the defaults."""
        return urllib.parse.urlencode(
            {
                name: ",".join(map(str, value)) if isinstance(value, tuple) else value
                for name, value in self._changes().items()
            }
        )

    @classmethod
    def from_query(cls, query: str) -> tuple[Self, list[str]]:
        """The state of a URL's query, and notices of what in it is not allowed; never an error, whatever it holds."""
        if not isinstance(query, str):
            return cls(), [f"a query of type {type(query).__name__}: must be text; it is ignored."]
        if len(query) > LONGEST_QUERY:
            return cls(), [
                f"a query of {len(query):,} characters is too long: at most {LONGEST_QUERY:,}; it is ignored."
            ]
        pairs = urllib.parse.parse_qsl(query.removeprefix("?"), keep_blank_values=True, errors="replace")
        return cls.mended(dict(pairs))

    def to_code(self, model: str | None = None) -> str:
        """Python that shows this state again. ``model``: an expression for it, if not the state's path."""
        changes = ", ".join(f"{name}={value!r}" for name, value in self._changes().items() if name != "model")
        source = repr(self.model) if model is None else model
        return f"from randprune_lab import ExploreState, explore\n\nexplore({source}, ExploreState({changes}))"

    def to_config(self, preset: str = "short", **settings: Any) -> RunConfig:
        """The run that this state leads to: the preset's stages below the state's sparsity, then that sparsity.

        ``settings`` are further fields of RunConfig, such as task and model.

        Raises:
            ValueError: the sparsity is 0, or a setting is not allowed.
        """
        check_option("preset", preset, STAGES)
        before = tuple(stage for stage in STAGES[preset] if stage < self.sparsity)
        shared = {name: getattr(self, name) for name in (*SHARED, "candidates")}
        if self.randomness == "target_ir":
            shared["ties"] = "random"  # the power for an ir is known for them only
        target = self.target_ir if self.randomness == "target_ir" else None
        return RunConfig.model_validate({**shared, "stages": (*before, self.sparsity), "target_ir": target, **settings})

    @property
    def numbers(self) -> tuple[int, ...]:
        """The number of the candidate at each place: 0 is the plain mask; a reroll takes the next that is free."""
        numbers = list(range(self.candidates))
        for following, slot in enumerate(self.rerolled, start=self.candidates):
            if 0 < slot < self.candidates:
                numbers[slot] = following
        return tuple(numbers)

    def _changes(self) -> dict[str, Any]:
        """What differs from the defaults."""
        return {
            name: getattr(self, name)
            for name, field in type(self).model_fields.items()
            if getattr(self, name) != field.default
        }


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except RecursionError:
        text = f"a {type(value).__name__} in which too many others lie"
    return text if len(text) <= 60 else f"{text[:57]}..."


def control_of(field: str) -> Control:
    """The control of a field of ExploreState.

    Raises:
        KeyError: the field has none.
    """
    for part in ExploreState.model_fields[field].metadata:
        if isinstance(part, Control):
            return part
    raise KeyError(field)
