"""Methods side by side: when each chooses its mask, by what, at what cost; and where the masks of two of them agree.

What is compared lives on the network of the demo: nothing is trained here but, once, that network. Each mask is the
first one that a run with these settings would draw from it.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import altair as alt
import torch
from torch import nn

from randprune_lab.charts import BLUE, GREY, VERMILION, by_name, layered, of_rows
from randprune_lab.checks import check_option
from randprune_lab.config import AT_START, DYNAMIC, SCOPES, RunConfig
from randprune_lab.criteria import CRITERIA
from randprune_lab.demo import CONFIG, demo_weights
from randprune_lab.fitting import network_for
from randprune_lab.lessons import Reveal
from randprune_lab.masks import Masks, kept, stage_masks
from randprune_lab.methods import METHODS, planned_epochs
from randprune_lab.models import prunable_weights
from randprune_lab.scores import stage_scores
from randprune_lab.splits import Task
from randprune_lab.tasks import digits

Row = dict[str, Any]
BEFORE, AFTER = "before training", "after training"
BOTH = "kept by both"
# A learned mask needs a training of its own, which no page waits for.
COMPARED = tuple(name for name in METHODS if name != "learned-mask")
SPARSITIES = (0.54, 0.8, 0.9, 0.9375, 0.97, 0.98)
_alone = threading.Lock()  # criteria draw from the process's random numbers: one session of the app at a time


def when(method: str) -> str:
    """When a method chooses its mask."""
    if method in DYNAMIC:
        return f"{BEFORE}, then it moves"
    if method == "learned-mask":
        return "while training, cut after it"
    return BEFORE if method in AT_START else f"{AFTER}, stage by stage"


def method_rows() -> list[Row]:
    """A row for each method.

    Returns:
        method, mask (when it is chosen), by (the criterion; "any" where that is a setting of its own), dense, judging
        and tuning (the epochs that a run with default settings trains), says (what it does, with its source).
    """
    return [
        {
            "method": name,
            "mask": when(name),
            "by": AT_START.get(name, "any"),
            **planned_epochs(RunConfig(method=name)),
            "says": method.says,
        }
        for name, method in METHODS.items()
    ]


def criterion_rows() -> list[Row]:
    """A row for each criterion.

    Returns:
        criterion, batches (of training examples whose gradients it works out, for each stage), rounds (in which it
        prunes, scoring anew in each), signed (masks are drawn from the scores' ranks), says (with its source).
    """
    return [
        {
            "criterion": name,
            "batches": criterion.batches,
            "rounds": criterion.rounds,
            "signed": criterion.signed,
            "says": criterion.says,
        }
        for name, criterion in CRITERIA.items()
    ]


@dataclasses.dataclass(frozen=True)
class Pick:
    """Two masks to compare.

    Attributes:
        method: of the first mask; its moment is that of both.
        criterion: of the first mask; where the method has its own, that one, whatever is asked for.
        other: the criterion of the second mask, a plain one.
        sparsity: of both, in (0, 1).

    Raises:
        ValueError: there is no such method or criterion, or the sparsity is out of range.
    """

    method: str = "imp"
    criterion: str = "magnitude"
    other: str = "random"
    sparsity: float = 0.9375

    def __post_init__(self) -> None:
        """Refuse what cannot be compared."""
        check_option("method", self.method, COMPARED)
        for name in ("criterion", "other"):
            check_option(name, getattr(self, name), tuple(CRITERIA))
        object.__setattr__(self, "criterion", AT_START.get(self.method, self.criterion))
        self.config("layer")

    @property
    def moment(self) -> str:
        """Whose weights: those before training, or after it."""
        return BEFORE if self.method in AT_START else AFTER

    @property
    def names(self) -> tuple[str, str]:
        """Of both masks, never the same."""
        own = self.method in AT_START
        return f"1: {self.method}" if own else f"1: {self.method}, {self.criterion}", f"2: plain, {self.other}"

    def config(self, scope: str) -> RunConfig:
        """The run whose first mask is looked at."""
        return RunConfig(
            method=self.method, criterion=self.criterion, stages=(self.sparsity,), scope=scope, device=CONFIG.device
        )


@dataclasses.dataclass(frozen=True)
class Overlap:
    """Where two masks agree that keep equally many weights.

    Attributes:
        rows: for each layer and mask: layer, weights, mask (its name), kept, density (kept / weights), both (how many
            of the layer's weights both masks keep).
        shared: the share of all kept weights that both keep, in [0, 1].
        by_chance: what it would be on average, were each mask's weights drawn blindly within each layer.
        sentence: all that in words.
    """

    rows: list[Row]
    shared: float
    by_chance: float
    sentence: str


def overlaps(pick: Pick) -> dict[str, Overlap]:
    """Where both masks agree, in scope layer and in scope global.

    The first call for a criterion takes up to half a second (SynFlow, anew at each sparsity: 1.3), others milliseconds.
    """
    other = dataclasses.replace(pick, method="imp", criterion=pick.other)
    found = {}
    for scope in SCOPES:
        first = _mask(pick.config(scope), pick.moment)
        second = _mask(other.config(scope), pick.moment)
        found[scope] = overlap(dict(zip(pick.names, (first, second), strict=True)), f"Scope {scope}")
    return found


def overlap(masks: Mapping[str, Masks], what: str = "Of all weights") -> Overlap:
    """Where two masks agree.

    Args:
        masks: the two by name; they keep equally many weights, at least one.
        what: what the sentence begins with.

    Raises:
        ValueError: they keep different numbers of weights, or none, or are not two.
    """
    numbers = [kept(mask) for mask in masks.values()]
    if len(numbers) != 2 or numbers[0] != numbers[1] or not numbers[0]:
        raise ValueError(f"masks that keep {numbers} weights: must be two that keep equally many. Pass such.")
    first, second = masks.values()
    both = {name: int((mask & second[name]).sum()) for name, mask in first.items()}
    rows = [
        {
            "layer": layer,
            "weights": mask[layer].numel(),
            "mask": name,
            "kept": int(mask[layer].sum()),
            "density": int(mask[layer].sum()) / mask[layer].numel(),
            "both": both[layer],
        }
        for layer in first
        for name, mask in masks.items()
    ]
    blindly = sum(int(first[layer].sum()) * int(second[layer].sum()) / first[layer].numel() for layer in first)
    shared, by_chance = sum(both.values()) / numbers[0], blindly / numbers[0]
    empty = [f"{row['mask']} keeps nothing of {row['layer']}" for row in rows if not row["kept"]]
    sentence = f"{what}: the two masks have {shared:.1%} of their kept weights in common, by chance {by_chance:.1%}"
    return Overlap(rows, shared, by_chance, "; ".join([sentence, *empty]) + ".")


def layers_chart(rows: Sequence[Row], title: str, sentence: str) -> alt.LayerChart:
    """Which share of each layer two masks keep, and both of them; ``rows`` and ``sentence`` are an ``Overlap``'s."""
    shared = [{**row, "mask": BOTH, "kept": row["both"]} for row in rows[::2]]
    points = [
        {**row, "layer": f"{row['layer']} ({row['weights']:,})", "share": row["kept"] / row["weights"]}
        for row in (*rows, *shared)
    ]
    names = list(dict.fromkeys(point["mask"] for point in points))
    most = max((point["share"] for point in points), default=1.0)
    base = of_rows(points).encode(
        y=alt.Y("layer:N", sort=None, title=None, axis=alt.Axis(labelLimit=200)),
        yOffset=alt.YOffset("mask:N", scale=alt.Scale(domain=names)),
        x=alt.X(
            "share:Q",
            title="share of the layer's weights",
            scale=alt.Scale(domain=[0, 1.3 * most], nice=False),
            axis=alt.Axis(format="~%", tickCount=5),
        ),
    )
    color = alt.Color("mask:N", scale=by_name(names, (BLUE, VERMILION, GREY)), legend=alt.Legend(title=None, columns=1))
    layers = [
        base.mark_bar().encode(color=color),
        base.mark_text(align="left", dx=4).encode(text=alt.Text("kept:Q", format=",")),
    ]
    return layered(layers, title, sentence)


def _mask(config: RunConfig, moment: str) -> Masks:
    """The plain mask of a run's first stage, or the first random one where the method draws those."""
    network = _network(moment)
    known = CRITERIA[config.criterion]
    scope = config.scope if known.signed or known.rounds > 1 else SCOPES[0]
    sparsity = config.stages[0] if known.rounds > 1 else SPARSITIES[0]
    scores = _scores(moment, config.criterion, scope, sparsity)
    candidate = max(METHODS[config.method].candidates(config)[:2])
    return stage_masks(scores, _alive(network), 1, config).draw(candidate)


@functools.lru_cache(maxsize=128)
def _scores(moment: str, criterion: str, scope: str, sparsity: float) -> dict[str, torch.Tensor]:
    """Only those of signed criteria depend on the scope, only those in rounds on the sparsity, too."""
    network = _network(moment)
    config = Pick("imp", criterion, sparsity=sparsity).config(scope)
    with _alone:
        return stage_scores(None, network, _alive(network), _task(), config, 1)


@functools.lru_cache
def _network(moment: str) -> nn.Module:
    network = network_for(CONFIG.model, _task(), CONFIG, trained=False)
    if moment == AFTER:
        network.load_state_dict(demo_weights())
    return network


@functools.lru_cache(maxsize=1)
def _task() -> Task:
    return digits()


def _alive(network: nn.Module) -> Masks:
    weights = prunable_weights(network)
    return {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}


@dataclasses.dataclass(frozen=True)
class Question:
    """What to predict before looking.

    Attributes:
        title: a few words.
        text: what is compared.
        question: what to predict.
        options: the answers to choose from.
        pick: the masks that it is about, to look at afterwards.
        reveal: works out the answer from them.
    """

    title: str
    text: str
    question: str
    options: tuple[str, ...]
    pick: Pick
    reveal: Callable[[], Reveal]


LAYERS = ("none", "the first, 64 to 300", "the middle, 300 to 100", "the last, 100 to 10")
SHARES = ("under 10 %", "10 to 40 %", "40 to 70 %", "over 70 %")
RANDOM = ("magnitude", "taylor", "movement")
EMPTIED = Pick("synflow", other="magnitude", sparsity=0.9)
AGREED = Pick("imp", "magnitude", "snip")
TRANSPLANTED = Pick("randomized", "movement", "movement")


def _emptied() -> Reveal:
    rows = overlaps(EMPTIED)["global"].rows
    magnitude = [row for row in rows if row["mask"] == EMPTIED.names[1]]
    synflow = [row for row in rows if row["mask"] == EMPTIED.names[0]]
    empty = [place for place, row in enumerate(magnitude, 1) if not row["kept"]]
    left = [", ".join(f"{row['kept']:,}" for row in rows) for rows in (magnitude, synflow)]
    return Reveal(
        LAYERS[max(empty, key=lambda place: magnitude[place - 1]["weights"])] if empty else LAYERS[0],
        f"Of the three layers magnitude keeps {left[0]} weights, synflow {left[1]}.",
        "Initial weights are drawn between -1/sqrt(inputs) and 1/sqrt(inputs): where a layer has many inputs they are "
        "small, whatever they are worth. One threshold for all then takes whole layers, and an empty layer lets "
        "nothing through. SynFlow scores anew in each of its rounds: the fewer weights a layer has left, the more of "
        "the paths lead through each of them.",
    )


def _agreed() -> Reveal:
    found = overlaps(AGREED)["layer"]
    place = sum(found.shared >= edge for edge in (0.1, 0.4, 0.7))
    return Reveal(
        SHARES[place],
        f"{found.shared:.1%}. Two masks drawn blindly would share {found.by_chance:.1%}.",
        "Sensible criteria can disagree about most of the weights: there is no one right mask. A score says what the "
        "loss would miss at once, not what training can make up for. Which mask trains better, only runs can tell.",
    )


def _transplanted() -> Reveal:
    swapped = {
        name: 1 - overlaps(dataclasses.replace(TRANSPLANTED, criterion=name, other=name))["layer"].shared
        for name in RANDOM
    }
    return Reveal(
        max(swapped, key=lambda name: swapped[name]),
        f"Of the kept weights are swapped: {', '.join(f'{share:.1%} by {name}' for name, share in swapped.items())}.",
        "The law is one, chance in proportion to score**T, but scores are not spread alike. Taylor scores span "
        "decades, so few come near the threshold. Movement has signs, so its ranks are taken: they are evenly spread, "
        "and chance reaches far. Whoever compares criteria at one T compares two things; a target ir makes it fair.",
    )


QUESTIONS = (
    Question(
        "Which layer goes?",
        "A network of three layers that was never trained, one threshold for all of them (scope global), sparsity "
        f"{EMPTIED.sparsity:g}.",
        "Of which layer does plain magnitude keep nothing at all?",
        LAYERS,
        EMPTIED,
        _emptied,
    ),
    Question(
        "Do two criteria agree?",
        f"The network after its training, each layer at sparsity {AGREED.sparsity:g} (scope layer). One mask keeps "
        "what magnitude says, the other what SNIP says.",
        "Which share of their kept weights do they have in common?",
        SHARES,
        AGREED,
        _agreed,
    ),
    Question(
        "How random is a transplant?",
        f"Random masks at T = {CONFIG.power:g}, M = {CONFIG.samples}, sparsity {TRANSPLANTED.sparsity:g} (scope "
        "layer), drawn from magnitudes, from Taylor scores, or from the ranks of movement.",
        "By which criterion does the random mask swap the most weights against its own plain mask?",
        RANDOM,
        TRANSPLANTED,
        _transplanted,
    ),
)
