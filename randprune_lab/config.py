"""What a run is asked for. A setting that cannot work is refused here, before anything is trained."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import pydantic
from pydantic import AfterValidator, BeforeValidator, Field

from randprune_lab.checks import (
    check_option,
    check_positive,
    check_power,
    check_reach,
    check_samples,
    check_sparsity,
)
from randprune_lab.keepcurve import TIES
from randprune_lab.sampling import SAMPLERS
from randprune_lab.schedules import STAGES, check_stages

METHODS = ("imp", "randomized", "randomized-no-selection")
SCOPES = ("layer", "global")
RANDOMNESS = ("fixed", "decrease", "increase", "target_ir")
SELECT_ON = ("selection", "validation")
PRECISIONS = ("no", "bf16")
DEVICES = ("auto", "cpu", "cuda", "mps")
KEEP_STAGES = ("all", "last")


@dataclasses.dataclass(frozen=True)
class Control:
    """How a setting is moved by hand: a slider, or a choice where there are ``options``.

    ``low`` to ``high`` is what the slider covers; a number box takes whatever the setting's own rule lets through. On a
    log scale a step is a twentieth of a decade. ``none``: what the slider's last position says where the setting may be
    None.
    """

    label: str
    symbol: str = ""
    low: float = 0.0
    high: float = 1.0
    step: float = 1.0
    scale: Literal["linear", "log"] = "linear"
    whole: bool = False
    unit: str = ""
    none: str | None = None
    options: tuple[str, ...] = ()


def _one_of(name: str, options: tuple[str, ...]) -> AfterValidator:
    return AfterValidator(lambda value: check_option(name, value, options))


def _checked(check: Callable[[Any], Any]) -> AfterValidator:
    return AfterValidator(check)


def _positive(name: str) -> Any:
    return Annotated[float, AfterValidator(lambda value: check_positive(name, value))]


def _stage_list(value: Any) -> Any:
    if isinstance(value, str):
        if re.match(r"[\d.\-]", value):
            return value.replace(",", " ").split()
        return STAGES[check_option("stages", value, STAGES)]
    return value


def _words(value: Any) -> Any:
    return tuple(value.split(",")) if isinstance(value, str) and value else value or ()


def _patterns(value: tuple[str, ...]) -> tuple[str, ...]:
    for pattern in value:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r}: no regular expression ({error}). Escape with a backslash.") from error
    return value


def _targets(value: Any) -> Any:
    if isinstance(value, str) and "," in value:
        try:
            return tuple(float(part) for part in value.split(","))
        except ValueError:
            raise ValueError(f"target_ir = {value!r}: must be numbers. Pass one, or one a stage: 0.05,0.01.") from None
    return value


# What RunConfig and ExploreState share: rule, help and control of a setting stand here once.
Sparsity = Annotated[
    float,
    _checked(check_sparsity),
    Field(description="share of the weights removed, in [0, 1)"),
    Control("sparsity", "s", 0.0, 0.9975, 0.0025),
]
Scope = Annotated[
    str,
    _one_of("scope", SCOPES),
    Field(description="layer: each tensor as sparse as the next; global: all as one vector"),
    Control("scope", options=SCOPES),
]
Candidates = Annotated[
    int,
    Field(ge=1, le=1000, description="N, masks compared at a stage, with the plain one"),
    Control("candidates", "N", 1, 16, 1, whole=True, unit="masks"),
]
Randomness = Annotated[
    str,
    _one_of("randomness", RANDOMNESS),
    Field(description="fixed (samples); decrease or increase (by sampling_ratio); target_ir"),
    Control("randomness is set by", options=RANDOMNESS),
]
Samples = Annotated[
    int,
    _checked(check_samples),
    Field(description="M, masks drawn and added up"),
    Control("samples", "M", 1, 1000, 1, "log", whole=True, unit="masks added up"),
]
SamplingRatio = Annotated[
    float,
    _checked(lambda value: check_positive("sampling_ratio", value)),
    Field(description="sr: M = sr * C for decrease and increase"),
    Control("sampling ratio", "sr", 1e-7, 1e-2, 1, "log"),
]
TargetIr = Annotated[
    float,
    _checked(lambda value: check_positive("target_ir", value)),
    Field(description="ir that every tensor gets, through T"),
    Control("target randomness", "ir", 1e-4, 1.0, 1, "log"),
]
Power = Annotated[
    float,
    _checked(check_power),
    Field(description="T, selection weights are |w|**T"),
    Control("power", "T", 0.0, 20.0, 0.25),
]
Reach = Annotated[
    float | None,
    _checked(check_reach),
    Field(description="r, only the round(r * keep) largest weights can be drawn"),
    Control("reach", "r", 1.0, 20.0, 1, "log", none="all"),
]
TieRule = Annotated[
    str,
    _one_of("ties", TIES),
    Field(description="at equal counts: random, magnitude"),
    Control("ties", options=TIES),
]
SamplerName = Annotated[
    str,
    _one_of("sampler", SAMPLERS),
    Field(description="fast (closed form); exact (draw and count)"),
    Control("sampler", options=SAMPLERS),
]
Seed = Annotated[
    int,
    Field(ge=-(2**53), le=2**53, description="of initialization, batch order, dropout and masks"),
    Control("seed", "", 0, 100, 1, whole=True),
]


Patterns = Annotated[tuple[str, ...], BeforeValidator(_words), AfterValidator(_patterns)]
Count = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class RunConfig(pydantic.BaseModel):
    """One pruning run: what, how sparse, how random, how long trained. Frozen; JSON in and out."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    task: str = Field(default="digits", description="data set: digits, or your own as data=")
    model: str = Field(default="mlp", description="network: mlp (64-300-100-10), or package.module:function")
    method: Annotated[str, _one_of("method", METHODS)] = Field(
        default="randomized", description="imp; randomized (MCSS, EMEP); randomized-no-selection"
    )
    stages: Annotated[tuple[float, ...], BeforeValidator(_stage_list), AfterValidator(check_stages)] = Field(
        default=STAGES["digits"], description="sparsity after each stage, or short, long, digits"
    )
    scope: Scope = "layer"
    include: Patterns = Field(default=(), description="prune only parameters that one of these patterns finds")
    exclude: Patterns = Field(default=(), description="prune no parameter that one of these patterns finds")

    candidates: Candidates = 8
    randomness: Randomness = "fixed"
    samples: Samples = 4
    sampling_ratio: SamplingRatio = 5e-5
    target_ir: Annotated[float | tuple[float, ...] | None, BeforeValidator(_targets)] = Field(
        default=None, description="ir of every tensor, one number or one a stage; needs randomness target_ir"
    )
    power: Power = 5.0
    reach: Reach = None
    ties: TieRule = "random"
    sampler: SamplerName = "fast"

    dense_epochs: Count = Field(default=30, description="epochs of the dense network")
    max_epochs: Count = Field(default=15, description="epochs of fine-tuning a stage, at most")
    patience: Count | None = Field(
        default=None, description="stop after so many epochs without a better one; none: never"
    )
    emep_epochs: Count = Field(default=1, description="epochs by which each candidate is judged (EMEP)")
    learning_rate: _positive("learning_rate") = Field(  # type: ignore[valid-type]
        default=1e-3, description="of AdamW, for the dense network and for fine-tuning"
    )
    emep_learning_rate: _positive("emep_learning_rate") | None = Field(  # type: ignore[valid-type]
        default=None, description="of AdamW, for judging candidates; none: 3 x learning_rate"
    )
    weight_decay: Weight = Field(default=0.01, description="of AdamW")
    batch_size: Count = Field(default=64, description="examples a step")
    select_on: Annotated[str, _one_of("select_on", SELECT_ON)] = Field(
        default="selection", description="split that chooses masks: selection; validation (the paper's: optimistic)"
    )
    task_weight: Weight = Field(default=1.0, description="of the task's own loss while fine-tuning")
    logit_weight: Weight = Field(default=1.0, description="of the distillation from the dense network's soft logits")
    temperature: _positive("temperature") = Field(  # type: ignore[valid-type]
        default=2.0, description="of the soft logits"
    )

    seed: Seed = 0
    threads: Annotated[int, Field(ge=1, le=1024)] = Field(default=1, description="CPU threads; small networks: 1")
    device: Annotated[str, _one_of("device", DEVICES)] = Field(default="auto", description="auto, cpu, cuda, mps")
    precision: Annotated[str, _one_of("precision", PRECISIONS)] = Field(default="no", description="no (float32); bf16")
    deterministic: bool = Field(default=False, description="CUDA: only deterministic kernels, slower")
    keep_stages: Annotated[str, _one_of("keep_stages", KEEP_STAGES)] = Field(
        default="all", description="weights kept on disk: of all stages; of the last (and the dense ones)"
    )
    group: str = Field(default="", description="runs that belong together, such as a run and its controls")
    control: str = Field(default="", description="what this run is the control of: imp-matched, ...")

    @pydantic.model_validator(mode="before")
    @classmethod
    def _known_fields(cls, given: Any) -> Any:
        if isinstance(given, dict):
            for name in given:
                check_option("field", name, tuple(cls.model_fields))
        return given

    @pydantic.model_validator(mode="after")
    def _fitting(self) -> RunConfig:
        if (self.target_ir is not None) != (self.randomness == "target_ir"):
            raise ValueError(
                f"randomness = {self.randomness!r}, target_ir = {self.target_ir}: each needs the other. "
                "Pass randomness='target_ir' with a number, or leave target_ir out."
            )
        if self.task_weight == 0 == self.logit_weight:
            raise ValueError(
                "task_weight = logit_weight = 0: nothing is left to learn from. Make one of them positive."
            )
        if self.target_ir is not None and self.ties == "magnitude":
            raise ValueError(
                "ties = 'magnitude' with target_ir: the power for an ir is known for random ties. Pass ties='random'."
            )
        targets = self.target_ir if isinstance(self.target_ir, tuple) else (self.target_ir,) * len(self.stages)
        if len(targets) != len(self.stages):
            raise ValueError(
                f"target_ir has {len(targets)} numbers for {len(self.stages)} stages: pass one number, or one a stage."
            )
        for target in targets:
            if target is not None:
                check_positive("target_ir", target)
        return self

    @property
    def early_learning_rate(self) -> float:
        """The learning rate that judges candidates."""
        return float(self.emep_learning_rate or 3 * self.learning_rate)

    def target_of(self, stage: int) -> float | None:
        """The ir asked for at ``stage`` (from 1)."""
        return self.target_ir[stage - 1] if isinstance(self.target_ir, tuple) else self.target_ir


def controls(config: RunConfig) -> dict[str, RunConfig]:
    """The runs that ``config`` should be compared with, by name.

    imp: plain masks, the same epochs a stage. imp-matched: plain masks, and as many epochs more a stage as judging the
    candidates takes, no patience. randomized-no-selection: the first random mask, unjudged. All with the same seed, so
    from the same dense weights.
    """

    def control(name: str, changes: Mapping[str, Any]) -> RunConfig:
        return config.model_copy(update={"control": name, **changes})

    matched = config.max_epochs + config.candidates * config.emep_epochs
    return {
        "imp": control("imp", {"method": "imp"}),
        "imp-matched": control("imp-matched", {"method": "imp", "max_epochs": matched, "patience": None}),
        "randomized-no-selection": control("randomized-no-selection", {"method": "randomized-no-selection"}),
    }
