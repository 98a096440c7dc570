"""Panel 9: five short lessons beside the live panels. A step sets a state and asks for a prediction, then reveals.

What is right is worked out from the weights that are looked at: other weights may give other answers.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import statistics
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from randprune_lab.explorer import Explorer
from randprune_lab.keepcurve import KeepCurve
from randprune_lab.sampling import introduced_randomness
from randprune_lab.state import ExploreState
from randprune_lab.tensors import TensorRow

SAME = 0.02  # two numbers that differ by less, as a ratio, count as the same
SPREAD_MASKS = 31  # random masks that the spread of a single draw is measured on


@dataclasses.dataclass(frozen=True)
class Reveal:
    """What really happens.

    Attributes:
        option: the one that was right to predict.
        sentence: what was found, with its numbers.
        why: the explanation, for whoever predicted something else.
    """

    option: str
    sentence: str
    why: str

    def verdict(self, predicted: str) -> str:
        """Whether ``predicted`` was right, and what was."""
        return "Right." if predicted == self.option else f"Not this time. The answer: {self.option}."


@dataclasses.dataclass(frozen=True)
class Step:
    """One question.

    Attributes:
        text: what to look at.
        state: what the live panel shows beside it.
        question: what to predict.
        options: two to four answers.
        after: what the live panel shows once the answer is revealed; where nothing moves it is ``state``.
        find_out: works out what ``reveal`` says.
        panels: what to look at before the answer, where those of the lesson would give it away; None: those.
    """

    text: str
    state: ExploreState
    question: str
    options: tuple[str, ...]
    after: ExploreState
    find_out: Callable[[Explorer, Step], Reveal]
    panels: tuple[str, ...] | None = None

    def reveal(self, explorer: Explorer) -> Reveal:
        """The right option, worked out from the explorer's weights.

        Raises:
            ValueError: the weights cannot be read, or do not fit the state.
        """
        found = self.find_out(explorer, self)
        assert found.option in self.options
        return found


@dataclasses.dataclass(frozen=True)
class Lesson:
    """A few steps about one thing.

    Attributes:
        title: its subject.
        goal: what one knows afterwards.
        panels: what to look at meanwhile, of "microscope", "curve", "candidates", "randomness" and "table".
        steps: in order.
        next_text, next_state: what to try next, alone.
    """

    title: str
    goal: str
    panels: tuple[str, ...]
    steps: tuple[Step, ...]
    next_text: str
    next_state: ExploreState


BASE = ExploreState(model="demo", tensor="0.weight", sparsity=0.9375, randomness="fixed", samples=4)


def _step(
    text: str,
    state: ExploreState,
    question: str,
    options: Sequence[str],
    find_out: Callable[[Explorer, Step], Reveal],
    *,
    after: ExploreState | None = None,
    panels: tuple[str, ...] | None = None,
) -> Step:
    return Step(text, state, question, tuple(options), after or state, find_out, panels)


def _curve(explorer: Explorer, state: ExploreState) -> KeepCurve:
    return explorer.weights.curve(state)[1]


def _curves(explorer: Explorer, step: Step) -> tuple[KeepCurve, KeepCurve]:
    """Before and after the reveal."""
    return _curve(explorer, step.state), _curve(explorer, step.after)


def _trend(before: float, after: float, falls: str, same: str, rises: str) -> str:
    """The option that fits how a number moved."""
    if abs(after - before) <= SAME * max(abs(before), abs(after)):
        return same
    return rises if after > before else falls


def _range(value: float, edges: Sequence[float], options: Sequence[str]) -> str:
    """The option in whose range a number lies: ``edges`` are the limits between them."""
    return options[bisect.bisect_right(edges, value)]


# 1. Where the cut falls

NEAR = ("under 10 %", "10 to 20 %", "20 to 40 %", "over 40 %")
FLIPS = ("under 5 % of those kept", "5 to 15 %", "over 15 %")
SMALLER_NEAR, SAME_NEAR, LARGER_NEAR = "smaller", "about the same", "larger"
PAPER_LAYER = BASE.but(sparsity=0.83)


def _near_share(curve: KeepCurve) -> float:
    return curve.histogram.share_within(curve.threshold * 2 / 3, curve.threshold * 4 / 3)


def _near_tau(explorer: Explorer, step: Step) -> Reveal:
    curve = _curve(explorer, step.state)
    share, tau = _near_share(curve), curve.threshold
    return Reveal(
        _range(share, (0.1, 0.2, 0.4), NEAR),
        f"tau = {tau:.4g}, and {share:.1%} of the {curve.histogram.alive:,} weights lie from {tau * 2 / 3:.4g} to "
        f"{tau * 4 / 3:.4g}. The paper found 29 % in a layer of BERT (Figure 1).",
        "Weights of a trained network are many near 0 and few far out, with no gap between them. Wherever the cut "
        "falls, many of them are almost as large as those on the other side.",
    )


def _flips(explorer: Explorer, step: Step) -> Reveal:
    curve = _curve(explorer, step.state)
    tau = curve.threshold
    flipped = curve.histogram.share_within(0.9 * tau, tau) * curve.histogram.alive
    return Reveal(
        _range(flipped / curve.keep, (0.05, 0.15), FLIPS),
        f"With tau at {0.9 * tau:.4g} instead of {tau:.4g}, about {flipped:,.0f} more weights would be kept: "
        f"{flipped / curve.keep:.1%} of the {curve.keep:,}.",
        "Few weights are kept, so the many just below tau are a large share of them. Nothing says that a weight 5 % "
        "smaller matters less: this is why the paper lets chance decide near tau.",
    )


def _near_when_sparser(explorer: Explorer, step: Step) -> Reveal:
    before, after = (_near_share(curve) for curve in _curves(explorer, step))
    return Reveal(
        _trend(before, after, SMALLER_NEAR, SAME_NEAR, LARGER_NEAR),
        f"{before:.1%} of the weights lie near tau at sparsity {step.state.sparsity:g}, {after:.1%} at "
        f"{step.after.sparsity:g}.",
        "The range grows with tau, but the weights get rarer towards the tail: which of the two wins depends on where "
        "the cut is. Even in the tail the share does not vanish.",
    )


WHERE = Lesson(
    "Where the cut falls",
    "The cut of magnitude pruning goes through a crowd: it parts weights that are nearly equal.",
    ("microscope",),
    (
        _step(
            "Magnitude pruning keeps the largest weights. The smallest that it keeps has the magnitude tau. Think of "
            f"a layer of a trained network, {PAPER_LAYER.sparsity:.0%} of whose weights are to be pruned.",
            PAPER_LAYER,
            "What share of all its weights lies between 2/3 tau and 4/3 tau?",
            NEAR,
            _near_tau,
            panels=(),
        ),
        _step(
            "You see how many weights there are of each magnitude around tau; magnitude pruning keeps those right of "
            "it. Drag tau a little and watch the sparsity.",
            PAPER_LAYER,
            "Were tau 10 % lower: how many more weights would be kept?",
            FLIPS,
            _flips,
        ),
        _step(
            f"Until now the sparsity was {PAPER_LAYER.sparsity:g}. The reveal raises it to {BASE.sparsity:g}, the "
            "paper's 16x.",
            PAPER_LAYER,
            "The share of the weights near tau, from 2/3 to 4/3 of it, will then be ...",
            (SMALLER_NEAR, SAME_NEAR, LARGER_NEAR),
            _near_when_sparser,
            after=BASE,
        ),
    ),
    "Look at the last layer, which has 1,000 weights only. Is its cut in a crowd, too?",
    BASE.but(tensor="4.weight", sparsity=0.83),
)


# 2. What T and r do to the keep curve

LESS, UNCHANGED, MORE = "less is left to chance", "as much as before", "more is left to chance"
LARGEST = ("it is nearly sure", "about one half", "as likely as any other weight")
REACHES = ("under half of tau", "from half of tau to 0.9 tau", "above 0.9 tau")


def _sharper(explorer: Explorer, step: Step) -> Reveal:
    before, after = _curves(explorer, step)
    return Reveal(
        _trend(before.swapped, after.swapped, LESS, UNCHANGED, MORE),
        f"At T = {before.power:g}, {before.swapped:.1%} of the kept weights are swapped (ir = {before.expected_ir:.4g}"
        f"); at T = {after.power:g} it is {after.swapped:.1%} (ir = {after.expected_ir:.4g}).",
        "Weights are drawn in proportion to abs(w)**T. The larger T is, the more a small lead counts, and the nearer "
        "the slope comes to the step of magnitude pruning.",
    )


def _no_power(explorer: Explorer, step: Step) -> Reveal:
    curve = _curve(explorer, step.after)
    largest = curve.keep_probability(float(curve.histogram.magnitudes[-1]))
    even = curve.keep / curve.drawable
    option = LARGEST[2] if abs(largest - even) <= SAME * even else LARGEST[0] if largest > 0.75 else LARGEST[1]
    return Reveal(
        option,
        f"At T = {curve.power:g} the largest weight is kept with a chance of {largest:.2%}; {curve.keep:,} of the "
        f"{curve.drawable:,} weights that can be drawn are kept, which is {even:.2%}.",
        "abs(w)**0 is 1 for every weight: size no longer matters, and the mask is drawn blindly.",
    )


def _reach(explorer: Explorer, step: Step) -> Reveal:
    curve = _curve(explorer, step.after)
    edge = curve.histogram.largest(curve.drawable).magnitude
    return Reveal(
        _range(edge / curve.threshold, (0.5, 0.9), REACHES),
        f"With r = {step.after.reach:g} only the {curve.drawable:,} largest weights can be drawn, {curve.keep:,} of "
        f"them are kept. The smallest has {edge:.4g}, which is {edge / curve.threshold:.2f} tau.",
        "r counts weights, not magnitudes: twice as many weights as are kept reach only a little below tau, because "
        "weights are dense there.",
    )


CURVE = Lesson(
    "What T and r do",
    "T says how sharply chance prefers large weights; r says how far below tau chance may reach.",
    ("curve", "microscope"),
    (
        _step(
            "The step is magnitude pruning: below tau never, above it always. The slope is the chance of a weight to "
            "be kept by a randomized mask, here with T = 5.",
            BASE,
            "T rises from 5 to 15. What happens?",
            (LESS, UNCHANGED, MORE),
            _sharper,
            after=BASE.but(power=15),
        ),
        _step(
            "Now the other way: T falls to 0, with a single draw (M = 1).",
            BASE.but(samples=1),
            "How likely is it then that the largest weight of all is kept?",
            LARGEST,
            _no_power,
            after=BASE.but(samples=1, power=0, window=1.0),
        ),
        _step(
            "Without a limit even tiny weights may be drawn, though rarely. The reach r = 2 lets only the 2k largest "
            "weights be drawn, k being the number that is kept.",
            BASE,
            "How small is the smallest weight that can still be kept?",
            REACHES,
            _reach,
            after=BASE.but(reach=2),
        ),
    ),
    "Bring r down to 1 slowly. What is left of the slope, and what does ir do?",
    BASE.but(reach=1.2, sweep="reach"),
)


# 3. sr and M

FALLS, STAYS, RISES = "it falls", "it stays the same", "it rises"
RATIO = BASE.but(randomness="decrease", sampling_ratio=5e-5)


def _ir_moves(explorer: Explorer, step: Step, why: str) -> Reveal:
    before, after = _curves(explorer, step)
    return Reveal(
        _trend(before.expected_ir, after.expected_ir, FALLS, STAYS, RISES),
        f"ir = {before.expected_ir:.4g} with M = {before.samples:,}, and {after.expected_ir:.4g} with "
        f"M = {after.samples:,}.",
        why,
    )


def _more_samples(explorer: Explorer, step: Step) -> Reveal:
    return _ir_moves(
        explorer,
        step,
        "The masks drawn are added up, and chance averages out: the more of them, the surer the large weights win. "
        "Section 3.2.2 of the paper says that randomness grows with M; that is a slip, its section 4.5.1 is right.",
    )


def _one_or_two(explorer: Explorer, step: Step) -> Reveal:
    return _ir_moves(
        explorer,
        step,
        "With two draws, weights drawn twice go in, and of those drawn once a coin picks the rest: that is the same "
        "law as a single draw. Averaging begins with M = 3.",
    )


def _floor(explorer: Explorer, step: Step) -> Reveal:
    curve = _curve(explorer, step.after)
    pruned, ratio = curve.histogram.size - curve.keep, step.after.sampling_ratio
    found = _ir_moves(
        explorer,
        step,
        "A mask needs at least one draw, so M stops at 1. There, sr does not act any more; in small tensors that "
        "happens early.",
    )
    words = f" sr asks for {ratio:g} x {pruned:,} = {ratio * pruned:.3g} draws."
    return dataclasses.replace(found, sentence=found.sentence + words)


SAMPLES = Lesson(
    "sr and M",
    "More draws mean less randomness, and below one draw sr does nothing.",
    ("randomness", "curve"),
    (
        _step(
            "M masks are drawn and added up; the weights that were drawn most often are kept. ir says how far the "
            "result departs from magnitude pruning.",
            BASE,
            "M rises from 4 to 64. What happens to ir?",
            (FALLS, STAYS, RISES),
            _more_samples,
            after=BASE.but(samples=64),
        ),
        _step(
            "Now the small end of the slider: a single draw.",
            BASE.but(samples=1),
            "M rises from 1 to 2. What happens to ir?",
            (FALLS, STAYS, RISES),
            _one_or_two,
            after=BASE.but(samples=2),
        ),
        _step(
            "The paper sets M by the sampling ratio: M = sr x C, C being the number of pruned weights. Its sr is made "
            "for BERT, whose matrices have millions.",
            RATIO,
            "Here sr is 5e-5. It falls to half of that. What happens to ir?",
            (FALLS, STAYS, RISES),
            _floor,
            after=RATIO.but(sampling_ratio=2.5e-5),
        ),
    ),
    "Find the sr at which this matrix gets M = 18, then look at what the others get.",
    RATIO.but(sampling_ratio=5e-4),
)


# 4. ir against swapped

BOTH_LOW, BOTH_HIGH = "both are larger at 0.54", "both are larger at 0.9375"
IR_LOW, SWAPPED_LOW = "ir at 0.54, swapped at 0.9375", "ir at 0.9375, swapped at 0.54"
LARGEST_MATRIX, SMALLEST_MATRIX, MIDDLE_MATRIX = "the largest matrix", "the smallest matrix", "one in between"
ALL_EQUAL, NOT_EQUAL = "all about the same", "still different"
SHARED_RATIO = BASE.but(randomness="decrease", sampling_ratio=1e-3)
TARGET = BASE.but(randomness="target_ir", target_ir=0.01)
EQUAL = 0.05  # irs of matrices within this of each other, as a ratio, are about the same


def _ir_and_swapped(explorer: Explorer, step: Step) -> Reveal:
    low, high = _curves(explorer, step)
    more_ir, more_swapped = low.expected_ir > high.expected_ir, low.swapped > high.swapped
    option = {
        (True, True): BOTH_LOW,
        (False, False): BOTH_HIGH,
        (True, False): IR_LOW,
        (False, True): SWAPPED_LOW,
    }[more_ir, more_swapped]
    return Reveal(
        option,
        f"At sparsity {low.sparsity:g}: ir = {low.expected_ir:.4g}, {low.swapped:.1%} swapped. At {high.sparsity:g}: "
        f"ir = {high.expected_ir:.4g}, {high.swapped:.1%} swapped.",
        "ir is measured against the pruned weights, which are many at a high sparsity: on average it cannot exceed "
        "(1 - s)/s. Swapped is measured against the kept ones. Between sparsities, compare swapped.",
    )


def _pruned_rows(explorer: Explorer, state: ExploreState) -> list[TensorRow]:
    return [row for row in explorer.rows(state) if row.prunable and row.problem is None]


def _spread(rows: Sequence[TensorRow]) -> float:
    """The largest ir as a multiple of the smallest."""
    irs = [row.expected_ir for row in rows]
    return max(irs) / max(min(irs), 1e-300)


def _said(rows: Sequence[TensorRow]) -> str:
    return "; ".join(f"{row.name} ({row.n:,} weights): M = {row.samples}, ir = {row.expected_ir:.4g}" for row in rows)


def _one_ratio(explorer: Explorer, step: Step) -> Reveal:
    rows = _pruned_rows(explorer, step.state)
    sizes, most = [row.n for row in rows], max(rows, key=lambda row: row.expected_ir).n
    places = {max(sizes): LARGEST_MATRIX, min(sizes): SMALLEST_MATRIX}
    option = ALL_EQUAL if _spread(rows) < 1 + EQUAL else places.get(most, MIDDLE_MATRIX)
    return Reveal(
        option,
        f"{_said(rows)}.",
        "M is sr times the number of pruned weights: a small matrix gets fewer draws, hence more randomness. One sr is "
        "not one strength.",
    )


def _one_target(explorer: Explorer, step: Step) -> Reveal:
    rows = _pruned_rows(explorer, step.after)
    powers = ", ".join(f"{row.power:.3g}" for row in rows)
    return Reveal(
        ALL_EQUAL if _spread(rows) < 1 + EQUAL else NOT_EQUAL,
        f"{_said(rows)}. For that, each matrix got a T of its own: {powers}.",
        "ir falls smoothly as T rises, so for every matrix there is a T that gives the ir asked for, as long as that "
        "is in reach. M could not do it: it is a whole number.",
    )


RANDOMNESS = Lesson(
    "ir and swapped",
    "ir at two sparsities does not compare, swapped does. One sr gives every layer another ir; a target ir does not.",
    ("randomness", "table"),
    (
        _step(
            "Two numbers say how random a mask is: ir, the paper's, and swapped, the share of the kept weights that "
            "magnitude pruning would not keep. The same M and T, at two sparsities.",
            BASE.but(sparsity=0.54),
            "Which is larger where, at 0.54 or at 0.9375?",
            (BOTH_LOW, BOTH_HIGH, IR_LOW, SWAPPED_LOW),
            _ir_and_swapped,
            after=BASE.but(sweep="sparsity"),
        ),
        _step(
            f"One sr for the whole network, {SHARED_RATIO.sampling_ratio:g}. It has three matrices, of 1,000 to 30,000 "
            "weights.",
            SHARED_RATIO,
            "Which matrix gets the largest ir?",
            (LARGEST_MATRIX, MIDDLE_MATRIX, SMALLEST_MATRIX, ALL_EQUAL),
            _one_ratio,
            panels=("randomness",),
        ),
        _step(
            f"Instead of sr one may ask for an ir: here {TARGET.target_ir:g}. The lab then solves for T, matrix by "
            "matrix.",
            SHARED_RATIO,
            "What are the irs of the matrices then?",
            (ALL_EQUAL, NOT_EQUAL),
            _one_target,
            after=TARGET,
        ),
    ),
    "Raise the target until a matrix cannot reach it. What does the lab say?",
    TARGET.but(target_ir=0.03),
)


# 5. Choosing a mask

SHARES = ("under 50 %", "50 to 90 %", "over 90 %")
ZONES = ("among the small weights, below 2/3 tau", "near tau, from 2/3 to 4/3 of it", "among the large, above 4/3 tau")
NONE, SOME, MANY = "none", "a few", "as many as between two candidates"
PLAIN, RANDOM = "the plain one", "a random one"
NO_TELLING, TELLING = "no: masks of one setting differ by more", "yes: the two differ by more than single masks do"
EIGHT = BASE.but(samples=16, candidates=8)


def _masks(explorer: Explorer, state: ExploreState) -> list[Tensor]:
    """All candidates of a state, the plain one first."""
    return [explorer.mask(state, number).reshape(-1) for number in state.numbers]


def _in_common(explorer: Explorer, step: Step) -> Reveal:
    masks = _masks(explorer, step.state)[1:]
    shares = [float((one & other).sum() / one.sum()) for one, other in itertools.combinations(masks, 2)]
    mean = statistics.mean(shares)
    return Reveal(
        _range(mean, (0.5, 0.9), SHARES),
        f"Two of the {len(masks)} random masks share {min(shares):.1%} to {max(shares):.1%} of the kept weights, "
        f"{mean:.1%} on average.",
        "Weights far above tau are in every mask. Only what lies near tau changes from mask to mask.",
    )


def _magnitudes(explorer: Explorer, state: ExploreState) -> Tensor:
    weight = explorer.weights.read(state.tensor, state).weight
    assert weight is not None
    return weight.reshape(-1).abs()


def _where_apart(explorer: Explorer, step: Step) -> Reveal:
    masks = torch.stack(_masks(explorer, step.state))
    apart = masks.any(dim=0) & ~masks.all(dim=0)
    magnitudes, tau = _magnitudes(explorer, step.state), _curve(explorer, step.state).threshold
    zones = (magnitudes[apart] >= 2 / 3 * tau).int() + (magnitudes[apart] > 4 / 3 * tau).int()
    counts = torch.bincount(zones, minlength=3)
    shares = [float(count / apart.sum().clamp(min=1)) for count in counts]
    large = masks[:, magnitudes > 1.5 * tau].all(dim=0).float()
    kept = f" Of the {len(large):,} weights above 1.5 tau all masks keep {large.mean():.1%}." if len(large) else ""
    return Reveal(
        ZONES[shares.index(max(shares))],
        f"The {len(masks)} masks disagree about {int(apart.sum()):,} of {apart.numel():,} weights; {shares[1]:.1%} of "
        f"these lie from 2/3 to 4/3 of tau.{kept}",
        "Far above tau a weight is drawn again and again, far below hardly ever. In between it is a matter of luck.",
    )


def _same_seed(explorer: Explorer, step: Step) -> Reveal:
    state = step.state
    first, second = (Explorer(explorer.source).mask(state, 3) for _ in range(2))  # each begins anew
    changed, apart = int((first != second).sum()), int((first != explorer.mask(state, 4)).sum())
    return Reveal(
        NONE if not changed else SOME if changed < apart / 2 else MANY,
        f"Drawn anew with seed {state.seed}, mask 3 differs from itself in {changed:,} of {first.numel():,} weights; "
        f"from mask 4 in {apart:,}.",
        "The draw of a mask follows from seed, stage, candidate and tensor alone. So a run can be repeated, and what "
        "you see here is the very mask that a run with these settings would try.",
    )


def _largest_sum(explorer: Explorer, step: Step) -> Reveal:
    masks, magnitudes = _masks(explorer, step.state), _magnitudes(explorer, step.state).double()
    sums = [float(magnitudes[mask].sum()) for mask in masks]
    best = max(sums[1:])
    return Reveal(
        PLAIN if sums[0] >= best else RANDOM,
        f"The plain mask keeps a sum of {sums[0]:.5g}; of the {len(masks) - 1} random ones the best keeps {best:.5g}, "
        f"{1 - best / sums[0]:.2%} less.",
        "By magnitude nothing beats the plain mask, by its making. That is why it is always among the candidates: if "
        "chance finds nothing that trains better, the stage ends with plain magnitude pruning.",
    )


def _a_result(explorer: Explorer, step: Step) -> Reveal:
    before, after = _curves(explorer, step)
    plain = explorer.mask(step.state, 0)
    drawn = [introduced_randomness(explorer.mask(step.state, n), plain) for n in range(1, SPREAD_MASKS + 1)]
    spread, apart = statistics.stdev(drawn), abs(after.expected_ir - before.expected_ir)
    return Reveal(
        TELLING if apart > 2 * spread else NO_TELLING,
        f"The two settings expect ir = {before.expected_ir:.4g} and {after.expected_ir:.4g}, {apart:.2g} apart. But "
        f"{len(drawn)} masks of the first setting alone lie from {min(drawn):.4g} to {max(drawn):.4g} (standard "
        f"deviation {spread:.2g}).",
        "One mask of each setting is one throw of the dice each. The same holds for the scores of whole runs: a "
        "difference smaller than the spread over seeds is no result. Run several seeds, then compare.",
    )


CHOOSING = Lesson(
    "Choosing a mask",
    "Candidates differ near tau only, a seed fixes them, and one draw of each is not yet a comparison.",
    ("candidates",),
    (
        _step(
            "At each stage several masks are tried and the best is taken: here the plain one and seven random ones, "
            "each added up from 16 draws. You see where chance decides.",
            EIGHT,
            "What share of the kept weights do two random masks have in common, on average?",
            SHARES,
            _in_common,
            panels=("microscope",),
        ),
        _step(
            "Click a cell of the matrix to see where two masks differ.",
            EIGHT,
            "Of which magnitude are most of the weights that the masks disagree about?",
            ZONES,
            _where_apart,
            after=EIGHT.but(pair=(0, 3)),
        ),
        _step(
            "Mask 3 is drawn once more, with the same seed.",
            EIGHT,
            "How many weights change?",
            (NONE, SOME, MANY),
            _same_seed,
        ),
        _step(
            "Add up the magnitudes of all weights that a mask keeps.",
            EIGHT,
            "Which of the eight candidates has the largest sum?",
            (PLAIN, RANDOM),
            _largest_sum,
        ),
        _step(
            "Somebody draws one mask with T = 5 and one with T = 5.25, and finds a smaller ir with 5.25.",
            BASE,
            "Does this show that T did it?",
            (TELLING, NO_TELLING),
            _a_result,
            after=BASE.but(power=5.25),
        ),
    ),
    "Reroll a few candidates, pin one, and see everything as a difference from it.",
    EIGHT.but(pinned=1, rerolled=(2, 3)),
)

LESSONS = (WHERE, CURVE, SAMPLES, RANDOMNESS, CHOOSING)
