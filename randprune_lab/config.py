"""What a run is asked for. A setting that cannot work is refused here, before anything is trained."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic
from pydantic import Field

from randprune_lab.checks import check_option, check_power, check_reach, check_samples
from randprune_lab.keepcurve import Ties
from randprune_lab.sampling import Sampler
from randprune_lab.schedules import STAGES, check_stages

METHODS = ("imp", "randomized")

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class RunConfig(pydantic.BaseModel):
    """One pruning run: what, how sparse, how random, how long trained."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    task: Literal["digits"] = Field(default="digits", description="data set: scikit-learn's 1,797 real images")
    model: Literal["mlp"] = Field(default="mlp", description="network: 64-300-100-10, ReLU")
    method: str = Field(default="randomized", description="imp: the plain mask; randomized: the best of several")
    stages: tuple[float, ...] = Field(default=STAGES["digits"], description="sparsity after each stage")
    candidates: Count = Field(default=8, description="N, masks compared at a stage, the plain one among them")
    samples: int = Field(default=4, description="M, masks drawn and added up for one candidate")
    power: float = Field(default=5.0, description="T, selection weights are |w|**T")
    reach: float | None = Field(default=None, description="r, only the round(r * keep) largest weights can be drawn")
    ties: Ties = Field(default="random", description="who goes first among equal counts: random or magnitude")
    sampler: Sampler = Field(default="fast", description="fast: closed form; exact: draw and count")
    dense_epochs: Count = Field(default=30, description="epochs of the dense network before the first stage")
    max_epochs: Count = Field(default=15, description="epochs of fine-tuning after each choice of a mask")
    emep_epochs: Count = Field(default=1, description="epochs by which each candidate is judged (EMEP)")
    learning_rate: Positive = Field(default=1e-3, description="of AdamW, for the dense network and for fine-tuning")
    emep_learning_rate: Positive = Field(default=3e-3, description="of AdamW, for judging candidates")
    batch_size: Count = Field(default=64, description="images a step")
    seed: int = Field(default=0, description="of initialization, batch order and masks")
    threads: Count = Field(default=1, description="CPU threads; a small network is fastest with 1")

    @pydantic.field_validator("method")
    @classmethod
    def _known_method(cls, value: str) -> str:
        return check_option("method", value, METHODS)

    @pydantic.field_validator("stages")
    @classmethod
    def _rising(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        return check_stages(value)

    @pydantic.field_validator("samples")
    @classmethod
    def _some(cls, value: int) -> int:
        return check_samples(value)

    @pydantic.field_validator("power")
    @classmethod
    def _finite_power(cls, value: float) -> float:
        return check_power(value)

    @pydantic.field_validator("reach")
    @classmethod
    def _far_enough(cls, value: float | None) -> float | None:
        return check_reach(value)
