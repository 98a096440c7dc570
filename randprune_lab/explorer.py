"""What a person looks at, as small tables: panels 1 to 4 of a source of weights, for a state."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import hashlib
import re
import types
from collections.abc import Callable, Hashable, Iterator, Mapping

import torch
from torch import Tensor

from randprune_lab import panels
from randprune_lab.candidates import Candidates, Place, check_drawable
from randprune_lab.histogram import MagnitudeHistogram
from randprune_lab.keepcurve import KeepCurve
from randprune_lab.masks import EVERYTHING
from randprune_lab.panels import Draw, Table, curve_of, derived, settle
from randprune_lab.sampling import introduced_randomness
from randprune_lab.sources import Layer, Source, TensorInfo
from randprune_lab.state import ExploreState, control_of

HISTOGRAMS_KEPT = 512  # about 0.7 MB each
ROWS_AT_ONCE = 8  # of the table of all tensors
_VIEW = ("model", "pinned", "pair", "sweep", "window", "rerolled")  # what changes no number of the weights


@dataclasses.dataclass(frozen=True)
class TensorRow:
    """One tensor.

    Attributes:
        name, shape: as in the source.
        n: its weights, those that no longer exist included.
        prunable: a run would prune it by default.
        alive: the weights that exist.
        threshold: tau, the smallest magnitude that the deterministic mask keeps; None when it keeps nothing.
        near_threshold: the share of the existing weights from 2/3 tau to 4/3 tau (arXiv 2310.13183, Figure 1).
        samples, power: M, the masks drawn and added up, and T.
        expected_ir: introduced randomness to expect (Eq. 1).
        swapped: share of the kept weights to expect that the deterministic mask would not keep.
        drawn_ir: introduced randomness of the masks that were really drawn, one each.
        problem: why there are no numbers; None when there are.
    """

    name: str
    shape: tuple[int, ...]
    n: int
    prunable: bool
    alive: int = 0
    threshold: float | None = None
    near_threshold: float = 0.0
    samples: int = 0
    power: float = 0.0
    expected_ir: float = 0.0
    swapped: float = 0.0
    drawn_ir: tuple[float, ...] = ()
    problem: str | None = None


class Explorer:
    """The tables behind panels 1 to 4 for one source. What was worked out is kept until the weights change.

    May be asked from several threads at once: at worst something is worked out twice.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self._histograms: dict[Hashable, MagnitudeHistogram] = {}
        self._layer: tuple[Hashable, Layer] | None = None
        self._drawn: tuple[Hashable, Candidates] | None = None

    def start(self, state: ExploreState) -> ExploreState:
        """``placed``, and with a run's own settings if the state's are the defaults."""
        state = self.placed(state)
        settings = self.source.settings(state.stage)
        untouched = all(getattr(state, name) == ExploreState.model_fields[name].default for name in settings)
        return state.but(**settings) if untouched else state

    def placed(self, state: ExploreState) -> ExploreState:
        """``state`` on a moment that the source has, and on its first tensor if it names none."""
        moments = {(known.stage, known.moment) for known in self.source.moments}
        named_none = (state.stage, state.moment) == (1, "before")  # as in the default; another one is asked for
        if moments and named_none and (1, "before") not in moments:
            first = self.source.moments[0]
            state = state.but(stage=first.stage, moment=first.moment)
        return state if state.tensor else state.but(tensor=self._first())

    def follow(self, before: ExploreState, after: ExploreState) -> ExploreState:
        """Whoever moves on to another stage of a run looks at that stage's sparsity and target."""
        if before.stage == after.stage:
            return after
        settings = self.source.settings(after.stage)
        return after.but(**{name: settings[name] for name in ("sparsity", "target_ir") if name in settings})

    def dragged(self, state: ExploreState, rule: str, magnitude: float) -> ExploreState:
        """The state in which tau, or the reach (``rule`` "threshold" or "reach"), lies at ``magnitude``.

        Raises:
            ValueError: the weights cannot be read.
        """
        histogram = self.histogram(state)
        above = int(histogram.counts[histogram.magnitudes >= magnitude].sum())
        if rule == "threshold":
            return state.but(sparsity=1 - max(above, 1) / histogram.size)
        keep = max(histogram.size - round(state.sparsity * histogram.size), 1)
        return state.but(reach=max(above / keep, 1.0))

    def _first(self) -> str:
        prunable = [name for name, info in self.source.tensors.items() if info.prunable]
        return next(iter(prunable or self.source.tensors))

    def describe(self) -> Table:
        """The source itself: its tensors and moments."""
        return {
            "model": self.source.label,
            "source_kind": self.source.kind,
            "tensors": [_shown(info) for info in self.source.tensors.values()],
            "moments": [dataclasses.asdict(moment) for moment in self.source.moments],
        }

    def quick(self, state: ExploreState) -> Table:
        """Panels 1 and 2 and the current point of 4: milliseconds once a tensor's histogram is known.

        What cannot be shown is said in ``notices``; the tables are None then.
        """
        table: Table = {"state": state.model_dump(mode="json"), "code": state.to_code(), "keys": self.keys(state)}
        try:
            info = self._info(state)
            draw, curve = self._curve(state)
        except ValueError as error:
            return {**table, **_NO_PANELS, "notices": [_notice("error", str(error))]}
        notices = [_notice("info", text) for text in draw.notices]
        if not info.prunable:
            notices.append(_notice("info", f"{info.name} is not pruned by default; it is explored all the same."))
        table |= {"notices": notices, "derived": derived(state, curve)}
        if not curve.keep:
            notices.append(_notice("error", _nothing_kept(state, curve)))
            return {**_NO_PANELS, **table}
        return {
            **table,
            "microscope": panels.microscope(state, curve),
            "curve": panels.keep_curve(state, curve),
            "point": panels.point(state, curve),
        }

    def keys(self, state: ExploreState) -> dict[str, str]:
        """For each slow part, a text that changes when the part is void."""
        settings = state.model_dump(mode="json", exclude=set(_VIEW))
        versions = {name: self._version(name) for name, info in self.source.tensors.items() if len(info.shape) > 1}
        whole = [versions.get(name) for name in self._prunable()] if state.scope == "global" else None
        own = [settings, self._version(state.tensor or self._first()), whole]
        swept = {name: value for name, value in settings.items() if name not in (state.sweep, "seed", "candidates")}
        looked_at = ("tensor", "seed", "candidates")
        return {
            "sweep": _digest([swept, *own[1:], state.sweep]),
            "candidates": _digest([*own, state.rerolled, state.window]),
            "table": _digest([{name: value for name, value in settings.items() if name not in looked_at}, versions]),
        }

    def slow_parts(
        self, state: ExploreState, known: Mapping[str, str] = types.MappingProxyType({})
    ) -> Iterator[tuple[str, Table]]:
        """Everything but ``quick``, piece by piece: the sweep, then masks and rows of the table in turns.

        Parts whose key is ``known`` are left out. Stop asking to stop the work.
        """
        keys = self.keys(state)
        work = {"candidates": self._masks_by_and_by(state), "table": self._rows_by_and_by(state)}
        if known.get("sweep") != keys["sweep"]:
            with contextlib.suppress(ValueError):  # ``quick`` says it
                yield "sweep", {"key": keys["sweep"], **self.sweep(state)}
        turns = [name for name in work if known.get(name) != keys[name]]
        while turns:
            for name in tuple(turns):
                part = next(work[name], None)
                if part is None:
                    turns.remove(name)
                else:
                    yield name, {"key": keys[name], **part}

    def _masks_by_and_by(self, state: ExploreState) -> Iterator[Table]:
        try:
            yield from self.candidates(state)
        except ValueError as error:
            yield {**no_slow_parts()["candidates"], "sentence": str(error), "failed": str(error)}

    def _rows_by_and_by(self, state: ExploreState) -> Iterator[Table]:
        matrices = [info for info in self.source.tensors.values() if len(info.shape) >= 2]
        rows: list[Table] = []
        for row in self.rows(state) if matrices else ():
            rows.append(_row_table(row))
            if len(rows) % ROWS_AT_ONCE == 0 or len(rows) == len(matrices):
                yield {
                    "rows": list(rows),
                    "done": len(rows),
                    "total": len(matrices),
                    "title": "Every matrix of the model",
                    "badge": "predicted",
                    "sentence": _table_sentence(rows, len(matrices)),
                }

    def sweep(self, state: ExploreState) -> Table:
        """The line of panel 4.

        Raises:
            ValueError: the weights cannot be read.
        """
        return panels.sweep(state, self.histogram(state))

    def rows(
        self, state: ExploreState, *, include: str = "", exclude: str | None = None, draws: int = 0
    ) -> Iterator[TensorRow]:
        """A row for every matrix whose name ``include`` finds and ``exclude`` does not (regular expressions).

        With ``draws`` so many masks of each (candidates 1, 2, ...) are drawn, too; in global scope that is not done.

        Raises:
            ValueError: a pattern is none, or nothing matches.
        """
        wanted, unwanted = _pattern("include", include), _pattern("exclude", exclude) if exclude else None
        infos = [
            info
            for info in self.source.tensors.values()
            if len(info.shape) >= 2 and wanted.search(info.name) and not (unwanted and unwanted.search(info.name))
        ]
        if not infos:
            raise ValueError(
                f"{self.source.label}: no floating-point weight matrix matches include = {include!r}, "
                f"exclude = {exclude!r}. Choose patterns that match the names of its tensors."
            )
        whole: KeepCurve | None = None  # the one curve of all prunable tensors
        for info in infos:
            own = state.model_copy(update={"tensor": info.name})
            if _is_global(state, info) and whole is None:
                with contextlib.suppress(ValueError):  # each row says it
                    whole = self._curve(own)[1]
            row = self._row(info, own, whole if _is_global(state, info) else None)
            if draws and row.problem is None and not _is_global(state, info):
                masks = self._candidates(own)
                drawn = (introduced_randomness(masks.mask(number), masks.mask(0)) for number in range(1, draws + 1))
                row = dataclasses.replace(row, drawn_ir=tuple(drawn))
            yield row

    def _row(self, info: TensorInfo, state: ExploreState, whole: KeepCurve | None) -> TensorRow:
        blank = TensorRow(info.name, info.shape, info.n, info.prunable)
        try:
            histogram = self._of_tensor(info.name, state)
            curve = whole or self._curve(state)[1]
        except ValueError as error:
            return dataclasses.replace(blank, problem=str(error))
        tau = curve.threshold
        ir, swapped = _share_of(histogram, curve) if whole else (curve.expected_ir, curve.swapped)
        return dataclasses.replace(
            blank,
            alive=histogram.alive,
            threshold=tau if curve.keep else None,
            near_threshold=histogram.share_within(2 / 3 * tau, 4 / 3 * tau) if curve.keep else 0.0,
            samples=curve.samples,
            power=curve.power,
            expected_ir=ir,
            swapped=swapped,
        )

    def mask(self, state: ExploreState, candidate: int) -> Tensor:
        """The mask of one candidate (0: the plain one) of the state's tensor, or in global scope of all as one vector.

        The one that a run with this seed, stage and tensor uses, bit for bit on the same device.

        Raises:
            ValueError: the weights cannot be read, or masks of them cannot be drawn.
        """
        return self._candidates(state).mask(candidate)

    def candidates(self, state: ExploreState) -> Iterator[Table]:
        """Panel 3: a table after each mask that was drawn, the plain one first. Stop asking to stop the drawing.

        Raises:
            ValueError: the weights cannot be read, or masks of them cannot be drawn.
        """
        _, curve = self._curve(state)
        if not curve.keep:
            raise ValueError(_nothing_kept(state, curve))
        drawn = self._candidates(state)
        window = panels.window_of(state, curve.histogram)
        for done in range(1, state.candidates + 1):
            yield drawn.table(state, done, window)

    def histogram(self, state: ExploreState) -> MagnitudeHistogram:
        """The magnitudes of the state's tensor; in global scope of all prunable ones together.

        Raises:
            ValueError: the weights cannot be read, or are not finite.
        """
        info = self._info(state)
        if not _is_global(state, info):
            return self._of_tensor(info.name, state)
        names = self._prunable()
        key = ("*", state.stage, state.moment, tuple(self.source.version(name) for name in names))
        return self._known(
            key, lambda: functools.reduce(lambda a, b: a + b, (self._of_tensor(name, state) for name in names))
        )

    def _curve(self, state: ExploreState) -> tuple[Draw, KeepCurve]:
        """What the state means for its tensor, and the closed form of its masks."""
        histogram = self.histogram(state)
        try:
            draw = settle(state, histogram)
            return draw, curve_of(state, histogram, draw)
        except ValueError as error:
            raise ValueError(f"{self._info(state).name}: {error}") from error

    def _of_tensor(self, name: str, state: ExploreState) -> MagnitudeHistogram:
        def work_out() -> MagnitudeHistogram:
            try:
                return self._read(name, state).histogram()
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error

        return self._known((name, state.stage, state.moment, self.source.version(name)), work_out)

    def _known(self, key: Hashable, work_out: Callable[[], MagnitudeHistogram]) -> MagnitudeHistogram:
        found = self._histograms.get(key)
        if found is None:
            found = work_out()
            while len(self._histograms) >= HISTOGRAMS_KEPT:
                self._histograms.pop(next(iter(self._histograms)), None)
            self._histograms[key] = found
        return found

    def _read(self, name: str, state: ExploreState) -> Layer:
        """The weights; those of one tensor stay in memory, the last that was read."""
        key = (name, state.stage, state.moment, self.source.version(name))
        kept = self._layer
        if kept is None or kept[0] != key:
            self._layer = None  # two big ones need not be there at a time
            kept = (key, self.source.read(name, state.stage, state.moment))
            self._layer = kept
        return kept[1]

    def _info(self, state: ExploreState) -> TensorInfo:
        info = self.source.tensors.get(state.tensor or self._first())
        if info is None:
            near = difflib.get_close_matches(state.tensor, self.source.tensors, n=1, cutoff=0.0)[0]
            raise ValueError(f"tensor = {state.tensor!r}: the model has none of this name. Did you mean {near!r}?")
        return info

    def _version(self, name: str) -> Hashable:
        with contextlib.suppress(ValueError, KeyError):  # reading it will say so
            return self.source.version(name)
        return None

    def _prunable(self) -> list[str]:
        return [name for name, info in self.source.tensors.items() if info.prunable]

    def _candidates(self, state: ExploreState) -> Candidates:
        """Those drawn before, if nothing that they depend on has changed."""
        info = self._info(state)
        whole = _is_global(state, info)
        names = self._prunable() if whole else [info.name]
        draw, _ = self._curve(state)
        versions = tuple(self.source.version(name) for name in names)
        settings = (state.sparsity, state.reach, state.sampler, state.seed, state.stage, state.moment)
        key = (whole, info.name, versions, settings, draw)
        if self._drawn is None or self._drawn[0] != key:
            self._drawn = None  # the old masks go before new ones come
            start = sum(self.source.tensors[name].n for name in names[: names.index(info.name)])
            check_drawable(sum(self.source.tensors[name].n for name in names), draw, state)
            layer = _together([self._read(name, state) for name in names])
            parameter = EVERYTHING if whole else info.name
            self._drawn = key, Candidates(layer, parameter, Place(start, info.shape), draw, state)
        return self._drawn[1]


def _nothing_kept(state: ExploreState, curve: KeepCurve) -> str:
    return f"At sparsity {state.sparsity:g} nothing of {curve.histogram.size:,} weights is kept. Lower the sparsity."


_NO_PANELS = dict.fromkeys(("derived", "microscope", "curve", "point"))


def empty_quick(state: ExploreState, problem: str) -> Table:
    """What ``Explorer.quick`` gives where there is no source at all."""
    shown = {"state": state.model_dump(mode="json"), "code": state.to_code(), "keys": {}}
    return {**shown, **_NO_PANELS, "notices": [_notice("error", problem)]}


def no_slow_parts() -> dict[str, Table]:
    """The slow parts where there is nothing to show."""
    crop = {"rows": 0, "columns": 0, "top": 0, "left": 0, "of": [0, 0]}
    dots: Table = {"magnitudes": [], "kept": []}
    masks = {"total": 0, "done": 0, "crop": crop, "drawn": [], "agreement": [], "dots": dots, "failed": None}
    sweep = {"field": "sampling_ratio", "label": "", "symbol": "", "unit": "", "scale": "log"}
    line: Table = {**sweep, "x": [], "ir": [], "swapped": []}
    parts = {
        "sweep": (line, "Introduced randomness", "No line: there are no weights to draw it of."),
        "candidates": (masks, "No masks", "No masks are drawn."),
        "table": ({"rows": [], "done": 0, "total": 0}, "Every matrix of the model", "There is no matrix."),
    }
    return {
        name: {"key": "", "title": title, "badge": "", "sentence": sentence, **part}
        for name, (part, title, sentence) in parts.items()
    }


def controls_table() -> list[Table]:
    """The sliders, boxes and choices of the explorer, in order, as plain values."""
    random = ("randomness", "sampling_ratio", "samples", "target_ir", "power", "reach", "ties", "candidates", "seed")
    groups = {"what": ("sparsity", "scope"), "how random": random, "look": ("window", "sweep")}
    table = []
    for group, fields in groups.items():
        for field in fields:
            control = control_of(field)
            kind = "select" if control.options else "number" if field == "seed" else "slider"
            options = [{"value": option, "label": option.replace("_", " ")} for option in control.options]
            words = {"help": ExploreState.model_fields[field].description, "rules": panels.RULES.get(field, ())}
            table.append({"field": field, "kind": kind, "group": group, **vars(control), **words, "options": options})
    return table


def _is_global(state: ExploreState, info: TensorInfo) -> bool:
    """In global scope all that is pruned is one vector; what is not pruned is looked at by itself."""
    return state.scope == "global" and info.prunable


def _together(layers: list[Layer]) -> Layer:
    """Several tensors as one vector; one stays as it is."""
    if len(layers) == 1 or any(layer.weight is None for layer in layers):
        return layers[0] if len(layers) == 1 else Layer(None)
    weights = [layer.weight for layer in layers if layer.weight is not None]
    alive = [
        (weight != 0) if layer.alive is None else layer.alive for layer, weight in zip(layers, weights, strict=True)
    ]
    return Layer(torch.cat([weight.reshape(-1) for weight in weights]), torch.cat([mask.reshape(-1) for mask in alive]))


def _share_of(histogram: MagnitudeHistogram, curve: KeepCurve) -> tuple[float, float]:
    """Ir and swapped to expect of one tensor's part in the masks of all (Eq. 1, restricted to it)."""
    chance, above = curve.keep_probability(histogram.magnitudes), histogram.magnitudes >= curve.threshold
    kept, swapped_in = int(histogram.counts[above].sum()), float((histogram.counts * chance)[~above].sum())
    rest = histogram.size - kept - swapped_in
    return (swapped_in / rest if rest else 0.0), swapped_in / max(kept, 1)


def _row_table(row: TensorRow) -> Table:
    return {
        "name": row.name,
        "shape": list(row.shape),
        "n": row.n,
        "alive": row.alive,
        "threshold": row.threshold,
        "near": row.near_threshold,
        "samples": row.samples,
        "power": row.power,
        "ir": panels.finite(row.expected_ir),
        "swapped": row.swapped,
        "prunable": row.prunable,
        "problem": row.problem,
    }


def _table_sentence(rows: list[Table], total: int) -> str:
    """How far the tensors lie apart, in words."""
    whole = "1 matrix" if total == 1 else f"{total} matrices"
    start = whole if len(rows) == total else f"{len(rows)} of {whole} so far"
    irs = [row["ir"] for row in rows if row["prunable"] and row["problem"] is None and row["ir"] is not None]
    failed = sum(row["problem"] is not None for row in rows)
    text = (
        f"{start}; of those that are pruned the expected ir lies between {min(irs):.4g} and {max(irs):.4g}"
        if irs
        else start
    )
    return f"{text}; {failed} cannot be pruned so." if failed else f"{text}."


def _digest(parts: list[object]) -> str:
    return hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest()


def _shown(info: TensorInfo) -> Table:
    return {"name": info.name, "shape": list(info.shape), "n": info.n, "prunable": info.prunable}


def _notice(kind: str, text: str) -> Table:
    return {"kind": kind, "text": text}


def _pattern(name: str, text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise ValueError(f"{name} = {text!r}: no regular expression ({error}). Escape with a backslash.") from error
