"""What a run is asked for. A setting that cannot work is refused here, before anything is trained."""

from __future__ import annotations

import dataclasses
import math
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
from randprune_lab.patterns import UNSTRUCTURED, check_pattern
from randprune_lab.sampling import SAMPLERS
from randprune_lab.schedules import STAGES, check_stages, race_rounds

# Each chooses its one mask before the network is trained: the mask's criterion, by the method's name.
AT_START = {
    "snip": "snip",
    "grasp": "grasp",
    "synflow": "synflow",
    "random": "random",
    "set": "random",
    "rigl": "random",
}
DYNAMIC = ("set", "rigl")  # the mask moves while the network trains
METHOD_NAMES = ("imp", "randomized", "randomized-no-selection", "learned-mask", *AT_START)
INITIALIZATIONS = ("default", "zero")
DENSITIES = ("uniform", "erk")
SCOPES = ("layer", "global")
RANDOMNESS = ("fixed", "decrease", "increase", "target_ir")
RUN_RANDOMNESS = (*RANDOMNESS, "adaptive")  # which goes from stage to stage: only a run has it
SELECT_ON = ("selection", "validation")
PRECISIONS = ("no", "bf16")
DEVICES = ("auto", "cpu", "cuda", "mps")
KEEP_STAGES = ("all", "last")
EXECUTORS = ("lockstep", "serial", "ray")
OBJECT = "object"  # stands for a model, a task or a criterion given from Python
CRITERION_NAMES = (
    *("magnitude", "taylor", "movement", "snip", "grasp", "synflow", "random", "learned-mask"),
    OBJECT,
)
HUB = {"mnist": "ylecun/mnist", "cifar10": "uoft-cs/cifar10"}  # where the pictures come from
GLUE_HUB = "nyu-mll/glue"
# Settings that change no result: a run that was stopped may go on with others.
FREE = ("executor", "wave", "ray_address", "ray_gpus")


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


def _ray_address(value: str) -> str:
    host, colon, port = value.rpartition(":")
    if value in ("", "auto") or (colon and host and "/" not in host and port.isdecimal() and int(port) < 2**16):
        return value
    raise ValueError(f"ray_address = {value!r}: must be HOST:PORT, auto, or empty. Pass one, as 10.0.0.1:6379.")


def _ray_gpus(value: float) -> float:
    if 0 <= value <= 1 or (value > 1 and value.is_integer()):
        return value
    raise ValueError(f"ray_gpus = {value}: must lie in [0, 1], or be a whole number. Pass 0.5 to let two share one.")


def _words(value: Any) -> Any:
    """A comma-separated list."""
    return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) and value else value or ()


def _patterns(value: tuple[str, ...]) -> tuple[str, ...]:
    for pattern in value:
        try:
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            shown = pattern if len(pattern) <= 40 else f"{pattern[:37]}..."
            raise ValueError(f"{shown!r}: no regular expression ({error}). Escape with a backslash.") from error
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


Words = Annotated[tuple[str, ...], BeforeValidator(_words)]
Patterns = Annotated[tuple[str, ...], BeforeValidator(_words), AfterValidator(_patterns)]
Count = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class RunConfig(pydantic.BaseModel):
    """One pruning run: what, how sparse, how random, how long trained. Frozen; JSON in and out."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    task: str = Field(
        default="digits",
        description="digits, mnist, cifar10; sentences (generated); glue/ cola sst2 mrpc stsb qqp mnli qnli rte; text "
        "(your dataset)",
    )
    model: str = Field(
        default="mlp",
        description="mlp, tiny-cnn, tiny-vit (digits); tiny-bert, tiny-gpt2 (sentences); lenet-300-100 (mnist); vgg16, "
        "resnet20 (cifar10); Hub id or folder; package.module:function",
    )
    dataset: str = Field(
        default=GLUE_HUB,
        description="of glue/, text, pictures: Hub id; folder in the Hub's layout; TRAIN[,VALIDATION] as .csv .parquet",
    )
    text_columns: Words = Field(default=(), description="task text: the column of the text, or the two of a pair")
    label_column: str = Field(default="label", description="task text: the column to predict; decimals: a regression")
    max_length: Annotated[int, Field(ge=3)] = Field(
        default=128, description="tokens of an example; what is longer is cut"
    )
    augment: Annotated[int, Field(ge=0, le=1000)] = Field(
        default=0,
        description="copies with replaced words of each training text (TinyBERT); not for the dense network",
    )
    augment_model: str = Field(
        default="", description="masked-language model that replaces words; none: the model itself"
    )
    glove: str = Field(default="", description="file of GloVe vectors, for words of several pieces")
    unlabelled: str = Field(
        default="", description="task whose rows are added for distillation only: glue/mnli to stsb"
    )
    method: Annotated[str, _one_of("method", METHOD_NAMES), Control("method", options=METHOD_NAMES)] = Field(
        default="randomized",
        description="imp; randomized (MCSS, EMEP); randomized-no-selection; learned-mask (trained with the weights); "
        "snip, grasp, synflow, random: one mask before training; set, rigl: it moves in training. Those six spend all "
        "epochs on the last stage",
    )
    initialization: Annotated[
        str, _one_of("initialization", INITIALIZATIONS), Control("initialization", options=INITIALIZATIONS)
    ] = Field(default="default", description="of weights that are not loaded: default; zero (ZerO: identity, Hadamard)")
    stages: Annotated[tuple[float, ...], BeforeValidator(_stage_list), AfterValidator(check_stages)] = Field(
        default=STAGES["digits"], description="sparsity after each stage, or short, long, digits"
    )
    scope: Scope = "layer"
    include: Patterns = Field(default=(), description="prune only parameters that one of these patterns finds")
    exclude: Patterns = Field(default=(), description="prune no parameter that one of these patterns finds")

    pattern: Annotated[str, _checked(check_pattern)] = Field(
        default="unstructured", description="unstructured; 2:4 (of every 4 inputs 2 are kept); 4x4 (blocks)"
    )
    densities: Annotated[str, _one_of("densities", DENSITIES), Control("densities", options=DENSITIES)] = Field(
        default="uniform", description="in scope layer: uniform; erk (small tensors stay denser: Erdos-Renyi kernel)"
    )

    criterion: Annotated[
        str, _one_of("criterion", CRITERION_NAMES), Control("criterion", options=CRITERION_NAMES[:-1])
    ] = Field(
        default="magnitude",
        description="what a weight is worth: magnitude, taylor, movement, snip, grasp, synflow, random, learned-mask",
    )
    candidates: Candidates = 8
    randomness: Annotated[
        str, _one_of("randomness", RUN_RANDOMNESS), Control("randomness is set by", options=RUN_RANDOMNESS)
    ] = Field(
        default="fixed",
        description="fixed (samples); decrease or increase (by sampling_ratio); target_ir; adaptive (candidates spread "
        "around target_ir, then around the last winner's ir)",
    )
    samples: Samples = 4
    sampling_ratio: SamplingRatio = 5e-5
    target_ir: Annotated[
        float | tuple[float, ...] | None, BeforeValidator(_targets), Control("target randomness", "ir")
    ] = Field(
        default=None,
        description="ir of every tensor, one number or one a stage, for randomness target_ir; for adaptive the first "
        "centre",
    )
    power: Power = 5.0
    reach: Reach = None
    ties: TieRule = "random"
    sampler: SamplerName = "fast"

    dense_epochs: Annotated[int, Field(ge=0)] = Field(
        default=30, description="epochs of the dense network; 0: it is fine-tuned already"
    )
    max_epochs: Count = Field(default=15, description="epochs of fine-tuning a stage, at most")
    patience: Count | None = Field(
        default=None, description="stop after so many epochs without a better one; none: never"
    )
    emep_epochs: Count = Field(default=1, description="epochs by which each candidate is judged (EMEP)")
    racing: bool = Field(
        default=False,
        description="judge candidates in rounds: after each, the worse half goes; the plain one stays to the end",
    )
    max_steps_per_epoch: Count | None = Field(default=None, description="steps of an epoch, at most; none: all rows")
    emep_steps: Count | None = Field(default=None, description="the same for judging candidates; none: as the others")
    learning_rate: _positive("learning_rate") = Field(  # type: ignore[valid-type]
        default=1e-3, description="of AdamW, for the dense network and for fine-tuning"
    )
    emep_learning_rate: _positive("emep_learning_rate") | None = Field(  # type: ignore[valid-type]
        default=None, description="of AdamW, for judging candidates; none: 3 x learning_rate"
    )
    weight_decay: Weight = Field(default=0.01, description="of AdamW")
    batch_size: Count = Field(default=64, description="examples a step")
    select_on: Annotated[str, _one_of("select_on", SELECT_ON), Control("select on", options=SELECT_ON)] = Field(
        default="selection", description="split that chooses masks: selection; validation (the paper's: optimistic)"
    )
    selection_rows: Count | None = Field(
        default=None, description="rows of the selection split that are looked at, at most; none: all"
    )
    task_weight: Weight = Field(default=1.0, description="of the task's own loss while fine-tuning")
    logit_weight: Weight = Field(default=1.0, description="of the distillation from the dense network's soft logits")
    hidden_weight: Weight = Field(
        default=0.0, description="of the distillation of hidden states: embeddings and every block (transformers)"
    )
    attention_weight: Weight = Field(
        default=0.0, description="of the distillation of attention scores before softmax, every block (transformers)"
    )
    temperature: _positive("temperature") = Field(  # type: ignore[valid-type]
        default=2.0, description="of the soft logits"
    )

    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0, description="share of each label that is spread over all classes while fine-tuning (ToST)"
    )
    soft_activations: bool = Field(default=False, description="fine-tuning begins with smooth ReLUs (ToST)")
    soft_skips: bool = Field(
        default=False, description="fine-tuning begins with a bypass around every hidden layer (ToST)"
    )
    soft_until: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.5, description="share of a stage's epochs after which both are gone"
    )
    mask_sparsity_weight: Weight = Field(
        default=10.0, description="learned-mask: of the loss term that pulls the mask towards 0"
    )
    mask_binary_weight: Weight = Field(
        default=1.0, description="learned-mask: of the term that pulls each of its chances towards 0 or 1"
    )
    mask_learning_rate: _positive("mask_learning_rate") = Field(  # type: ignore[valid-type]
        default=0.01, description="learned-mask: of Adam, for the mask's logits"
    )
    regrow_every: Count = Field(default=100, description="set, rigl: steps between two moves of the mask")
    regrow_share: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.3, description="set, rigl: share of the kept weights that the first move exchanges"
    )

    teacher: str = Field(
        default="", description="fine-tuned model to learn from instead of the dense self: id or folder"
    )
    layer_map: Annotated[tuple[int, ...], BeforeValidator(_words)] = Field(
        default=(), description="with teacher: its block (from 1) that each block learns from, as 2,4,6"
    )

    executor: Annotated[str, _one_of("executor", EXECUTORS), Control("executor", options=EXECUTORS)] = Field(
        default="lockstep",
        description="candidates: lockstep (same batch, teacher once for all); serial; ray (each by another process)",
    )
    ray_address: Annotated[str, _checked(_ray_address)] = Field(
        default="", description="executor ray: cluster as HOST:PORT; auto (the one of this machine); none: start one"
    )
    ray_gpus: Annotated[float, _checked(_ray_gpus)] = Field(
        default=0.0, description="executor ray: GPUs of each candidate; 0.5: two share one"
    )
    wave: Count | None = Field(default=None, description="candidates trained at once in lockstep; none: as many as fit")
    seed: Seed = 0
    threads: Annotated[int, Field(ge=1, le=1024)] = Field(default=1, description="CPU threads; small networks: 1")
    device: Annotated[str, _one_of("device", DEVICES), Control("device", options=DEVICES)] = Field(
        default="auto", description="auto, cpu, cuda, mps"
    )
    precision: Annotated[str, _one_of("precision", PRECISIONS), Control("precision", options=PRECISIONS)] = Field(
        default="no", description="no (float32); bf16"
    )
    deterministic: bool = Field(default=False, description="CUDA: only deterministic kernels, slower")
    keep_stages: Annotated[str, _one_of("keep_stages", KEEP_STAGES), Control("keep stages", options=KEEP_STAGES)] = (
        Field(default="all", description="weights kept on disk: of all stages; of the last (and the dense ones)")
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
    def _as_the_method_has_it(self) -> RunConfig:
        """What follows from the other settings is written down, so that a run's config says what is done.

        A method that chooses its mask before training has nothing to do before the last stage: its epochs, as many as
        any other method has, are all trained there. Doing this again changes nothing.
        """
        settled: dict[str, Any] = {}
        if self.dataset == GLUE_HUB and self.task in HUB:
            settled["dataset"] = HUB[self.task]
        if self.at_start:
            epochs = self.dense_epochs + len(self.stages) * self.max_epochs
            settled |= {"dense_epochs": 0, "stages": self.stages[-1:], "max_epochs": epochs}
            own = AT_START[self.method]
            if self.criterion not in (own, "magnitude"):
                raise ValueError(
                    f"method = {self.method!r} with criterion = {self.criterion!r}: the method scores by {own!r}. "
                    f"Leave criterion out, or pass method='imp', dense_epochs=0, logit_weight=0, "
                    f"criterion={self.criterion!r}."
                )
            settled |= {"criterion": own, "randomness": "fixed", "target_ir": None, "patience": None}
        self.__dict__.update(settled)  # it is frozen for all others
        return self

    @pydantic.model_validator(mode="after")
    def _methods_fit(self) -> RunConfig:
        if (self.soft_activations or self.soft_skips) and self.patience is not None:
            raise ValueError(
                f"patience = {self.patience} with soft_activations or soft_skips: it could end a stage while they are "
                "still there. Pass patience=None."
            )
        if self.initialization != "default" and not self.dense_epochs and not self.at_start:
            raise ValueError(
                f"initialization = {self.initialization!r} with dense_epochs = 0: what the network has learned "
                "elsewhere would be lost. Pass initialization='default', or dense_epochs."
            )
        if self.at_start and not self.task_weight and not self.teacher:
            raise ValueError(
                f"task_weight = 0 with method = {self.method!r}: there is no trained dense network to learn from "
                "instead. Make task_weight positive, or name a teacher."
            )
        if self.scope == "global" and (self.densities != "uniform" or self.pattern != UNSTRUCTURED):
            raise ValueError(
                f"scope = 'global' with densities = {self.densities!r}, pattern = {self.pattern!r}: both say how dense "
                "each tensor is, which global scope decides itself. Pass scope='layer', or densities='uniform' and no "
                "pattern."
            )
        if self.pattern != UNSTRUCTURED and (self.densities != "uniform" or self.method in DYNAMIC):
            raise ValueError(
                f"pattern = {self.pattern!r} with densities = {self.densities!r}, method = {self.method!r}: a pattern "
                "needs uniform densities and a mask that stays. Pass pattern='unstructured', or another method."
            )
        if self.pattern != UNSTRUCTURED and self.target_ir is not None:
            raise ValueError(
                f"pattern = {self.pattern!r} with randomness = {self.randomness!r}: the power for an ir is known "
                "without patterns only. Pass randomness='fixed' and samples."
            )
        return self

    @pydantic.model_validator(mode="after")
    def _fitting(self) -> RunConfig:
        if (self.target_ir is not None) != (self.randomness in ("target_ir", "adaptive")):
            raise ValueError(
                f"randomness = {self.randomness!r}, target_ir = {self.target_ir}: each needs the other. "
                "Pass randomness='target_ir' or 'adaptive' with a number, or leave target_ir out."
            )
        if self.randomness == "adaptive" and isinstance(self.target_ir, tuple):
            raise ValueError(
                f"randomness = 'adaptive' with target_ir = {self.target_ir}: the ir of later stages follows from who "
                "wins. Pass one number, the centre of the first stage."
            )
        if not any((self.task_weight, self.logit_weight, self.hidden_weight, self.attention_weight)):
            raise ValueError(
                "task_weight = logit_weight = hidden_weight = attention_weight = 0: nothing is left to learn from. "
                "Make one of them positive."
            )
        if self.unlabelled and not self.distils:
            raise ValueError(
                f"unlabelled = {self.unlabelled!r}: rows without labels teach by distillation only, and its weights "
                "are all 0. Make logit_weight, hidden_weight or attention_weight positive."
            )
        if self.emep_steps and not self.max_steps_per_epoch:
            raise ValueError(
                f"emep_steps = {self.emep_steps}: needs max_steps_per_epoch, too, or nobody could tell what part of "
                "an epoch judging takes, which the matched control trains longer. Pass both."
            )
        if self.task in ("digits", *HUB) and (self.augment or self.unlabelled):
            raise ValueError(f"augment and unlabelled are for texts, {self.task} are images. Leave both out.")
        if self.teacher and not self.distils:
            raise ValueError(
                f"teacher = {self.teacher!r}: nothing would be learned from it, every weight of distillation is 0. "
                "Make one positive."
            )
        if self.glove and not self.augment:
            raise ValueError(
                f"glove = {self.glove!r}: is for augmentation, which is off. Pass augment, too, or no glove."
            )
        if self.layer_map and not self.teacher:
            raise ValueError(
                f"layer_map = {self.layer_map}: needs a teacher of another depth. Pass teacher, or leave layer_map out."
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
    def distils(self) -> bool:
        """Something is learned from a teacher. A network that was never trained densely has only one from elsewhere."""
        asked = bool(self.logit_weight or self.hidden_weight or self.attention_weight)
        return asked and (bool(self.teacher) or not self.at_start)

    @property
    def at_start(self) -> bool:
        """The mask is chosen before any training."""
        return self.method in AT_START

    @property
    def unpruned(self) -> str:
        """What the network is before its first mask, in a word."""
        return "untrained" if self.at_start else "dense"

    @property
    def own(self) -> tuple[str, ...]:
        """The settings that stand for things given from Python."""
        return tuple(name for name in ("model", "task", "criterion") if getattr(self, name) == OBJECT)

    @property
    def scored_by(self) -> str:
        """What masks are drawn from, in words."""
        return "scores of one's own" if self.criterion == OBJECT else self.criterion.replace("-", " ")

    @property
    def by_magnitude(self) -> bool:
        """Masks follow from magnitudes alone, with one threshold a tensor, or one for all."""
        return self.criterion == "magnitude" and self.pattern == UNSTRUCTURED and self.densities == "uniform"

    @property
    def early_learning_rate(self) -> float:
        """The learning rate that judges candidates."""
        return float(self.emep_learning_rate or 3 * self.learning_rate)

    def rounds(self, steps: int) -> list[tuple[int, int]]:
        """In what rounds ``steps`` of EMEP judge a stage's candidates: how many train, and at which step it ends."""
        return race_rounds(self.candidates, steps) if self.racing else [(self.candidates, steps)]

    @property
    def compares(self) -> bool:
        """Its stages judge several masks."""
        return self.method == "randomized" and self.candidates > 1

    @property
    def judging_epochs(self) -> float:
        """Epochs that judging the candidates of a stage takes, all together; whole unless they race."""
        if not self.compares:
            return 0
        if not self.racing:
            return self.candidates * self.emep_epochs
        rounds = self.rounds(2**30)  # so finely that only the shares count
        spans = zip(rounds, [0, *(end for _, end in rounds)], strict=False)
        return self.emep_epochs * sum(field * (end - start) for (field, end), start in spans) / 2**30

    def target_of(self, stage: int) -> float | None:
        """The ir asked for at ``stage`` (from 1); with adaptive randomness where the first stage's targets lie."""
        return self.target_ir[stage - 1] if isinstance(self.target_ir, tuple) else self.target_ir


# arXiv 2310.13183, B.2: T, stages, N of 8 to 10, sr from this grid. The paper does not state batch size, learning
# rates, epochs, patience or the weights of the distillation: those are ours, in TinyBERT's range.
PAPER_RATIOS = (3e-6, 5e-6, 8e-6, 1e-5, 3e-5, 5e-5)
_PAPER = {
    "model": "bert-base-uncased",
    "randomness": "decrease",
    "sampling_ratio": 5e-5,
    "power": 5.0,
    "candidates": 8,
    "dense_epochs": 3,
    "max_epochs": 10,
    "learning_rate": 3e-5,
    "batch_size": 32,
    "hidden_weight": 1.0,
    "attention_weight": 1.0,
    "temperature": 1.0,
}
_TINY = {"learning_rate": 1e-3, "hidden_weight": 1.0, "attention_weight": 1.0}
PRESETS: dict[str, dict[str, Any]] = {
    "digits": {},
    # At 33x, uniform densities would leave 9 of the first convolution's 288 weights, and nothing gets through.
    "tiny-cnn": {"task": "digits", "model": "tiny-cnn", "densities": "erk"},
    "tiny-vit": {
        **_TINY,
        "task": "digits",
        "model": "tiny-vit",
        "dense_epochs": 20,
        "max_epochs": 10,
        "batch_size": 32,
    },
    "sentences": {
        **_TINY,
        "task": "sentences",
        "model": "tiny-bert",
        "dense_epochs": 8,
        "max_epochs": 3,
        "candidates": 4,
    },
    # arXiv 2312.01653: the order of its three steps; every number is ours.
    "end-to-end": {
        "method": "learned-mask",
        "stages": (0.97,),
        "max_epochs": 45,
        "logit_weight": 0.0,
        "label_smoothing": 0.1,
        "soft_activations": True,
        "soft_skips": True,
    },
    "mnist": {
        "task": "mnist",
        "model": "lenet-300-100",
        "stages": (0.9, 0.99),
        "scope": "global",
        "dense_epochs": 10,
        "max_epochs": 5,
        "batch_size": 128,
    },
    "cifar10": {
        "task": "cifar10",
        "model": "vgg16",
        "stages": (0.9, 0.99),
        "scope": "global",
        "dense_epochs": 60,
        "max_epochs": 30,
        "batch_size": 128,
    },
    "paper-short": {**_PAPER, "stages": STAGES["short"]},
    "paper-long": {**_PAPER, "stages": STAGES["long"]},
}
PAPER_SHORT = ("glue/mrpc", "glue/rte", "glue/sst2")
AUGMENTED = ("glue/mrpc", "glue/rte", "glue/sst2", "glue/cola")  # A.2


def preset(name: str | None = None, *, task: str | None = None, model: str | None = None) -> dict[str, Any]:
    """Settings that go together. Without a ``name``, those that fit the task: for GLUE, what the paper used for it.

    Raises:
        ValueError: there is no such preset.
    """
    if name is None:
        text = "paper-short" if task in PAPER_SHORT or task == "text" else "paper-long"
        name = text if (task or "").startswith(("glue/", "text")) else task if task in PRESETS else "digits"
        name = model if name == "digits" and model in PRESETS else name
    settings = dict(PRESETS[check_option("preset", name, PRESETS)])
    if name in ("paper-short", "paper-long"):
        settings |= {"augment": 20} if task in AUGMENTED else {}
        settings |= {"unlabelled": "glue/mnli"} if task == "glue/stsb" else {}
    return settings


def controls(config: RunConfig) -> dict[str, RunConfig]:
    """The runs that ``config`` should be compared with, by name.

    imp: plain masks, the same epochs a stage. imp-matched: plain masks, and as many epochs more a stage as judging the
    candidates takes (none where nothing is judged), racing or not, no patience. randomized-no-selection: the first
    random mask, unjudged. All with the same seed, so from the same dense weights (on a GPU where ``deterministic`` is
    on). None for a method that prunes before training.
    """
    if config.at_start:
        return {}

    def control(name: str, changes: Mapping[str, Any]) -> RunConfig:
        return config.model_copy(update={"control": name, **changes})

    steps, whole = config.emep_steps or 1, config.max_steps_per_epoch or 1
    part = steps / whole if config.emep_steps else 1.0
    matched = config.max_epochs + math.ceil(config.judging_epochs * part)
    return {
        "imp": control("imp", {"method": "imp"}),
        "imp-matched": control("imp-matched", {"method": "imp", "max_epochs": matched, "patience": None}),
        "randomized-no-selection": control("randomized-no-selection", {"method": "randomized-no-selection"}),
    }
