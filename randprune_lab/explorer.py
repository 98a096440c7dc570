"""What a person looks at, as small tables: panels 1 to 4 of a source of weights, for a state."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import types
from collections.abc import Hashable, Iterator, Mapping

from torch import Tensor

from randprune_lab import panels
from randprune_lab.candidates import Candidates, Place, check_drawable, with_scores
from randprune_lab.keepcurve import KeepCurve
from randprune_lab.masks import EVERYTHING
from randprune_lab.panels import Table, derived
from randprune_lab.sampling import introduced_randomness
from randprune_lab.sources import Judged, Source, TensorInfo
from randprune_lab.state import ExploreState, control_of
from randprune_lab.tensors import TensorRow, row_table, table_sentence, tensor_rows
from randprune_lab.weights import Weights, is_global, together

ROWS_AT_ONCE = 8  # of the table of all tensors
_VIEW = ("model", "pinned", "pair", "sweep", "window", "rerolled")  # what changes no number of the weights


class Explorer:
    """The tables behind panels 1 to 4 for one source.

    May be asked from several threads at once: at worst something is worked out twice.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.weights = Weights(source)
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
        return state if state.tensor else state.but(tensor=self.weights.first())

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
        histogram = self.weights.histogram(state)
        above = int(histogram.counts[histogram.magnitudes >= magnitude].sum())
        if rule == "threshold":
            return state.but(sparsity=1 - max(above, 1) / histogram.size)
        keep = max(histogram.size - round(state.sparsity * histogram.size), 1)
        return state.but(reach=max(above / keep, 1.0))

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
            info = self.weights.info(state)
            draw, curve = self.weights.curve(state)
        except ValueError as error:
            return {**table, **_NO_PANELS, "notices": [_notice("error", str(error))]}
        notices = [_notice("info", text) for text in draw.notices]
        if not info.prunable:
            notices.append(_notice("info", f"{info.name} is not pruned by default; it is explored all the same."))
        notices += [_notice("info", text) for text in self._unlike_a_run(state, curve)]
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

    def _unlike_a_run(self, state: ExploreState, curve: KeepCurve) -> list[str]:
        """Where masks drawn here may be others than those of a run that starts from these weights."""
        if self.source.kind == "run":
            return [self.source.note] if self.source.note else []
        texts = []
        zeros = curve.histogram.size - curve.histogram.alive
        if zeros:
            texts.append(f"{zeros:,} weights are 0 and count as removed; a run takes its dense network's as there.")
        if self.source.kind == "checkpoint" and is_global(state, self.weights.info(state)):
            texts.append("A checkpoint does not tell its parameters' order: in global scope a run may draw others.")
        return texts

    def keys(self, state: ExploreState) -> dict[str, str]:
        """For each slow part, a text that changes when the part is void."""
        settings = state.model_dump(mode="json", exclude=set(_VIEW))
        versions = {
            name: self.weights.version(name) for name, info in self.source.tensors.items() if len(info.shape) > 1
        }
        whole = [versions.get(name) for name in self.weights.prunable()] if state.scope == "global" else None
        own = [settings, self.weights.version(state.tensor or self.weights.first()), whole]
        swept = {name: value for name, value in settings.items() if name not in (state.sweep, "seed", "candidates")}
        looked_at = ("tensor", "seed", "candidates")
        return {
            "sweep": _digest([swept, *own[1:], state.sweep]),
            "candidates": _digest([*own, state.rerolled, state.window, self._judged(state)]),
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
            rows.append(row_table(row))
            if len(rows) % ROWS_AT_ONCE == 0 or len(rows) == len(matrices):
                yield {
                    "rows": list(rows),
                    "done": len(rows),
                    "total": len(matrices),
                    "title": "Every matrix of the model",
                    "badge": "predicted",
                    "sentence": table_sentence(rows, len(matrices)),
                }

    def sweep(self, state: ExploreState) -> Table:
        """The line of panel 4.

        Raises:
            ValueError: the weights cannot be read.
        """
        return panels.sweep(state, self.weights.histogram(state))

    def rows(
        self, state: ExploreState, *, include: str = "", exclude: str | None = None, draws: int = 0
    ) -> Iterator[TensorRow]:
        """A row for every matrix whose name ``include`` finds and ``exclude`` does not (regular expressions).

        With ``draws`` so many masks of each (candidates 1, 2, ...) are drawn, too; in global scope that is not done.

        Raises:
            ValueError: a pattern is none, or nothing matches.
        """
        for row in tensor_rows(self.weights, state, include=include, exclude=exclude):
            drawn: tuple[float, ...] = ()
            if draws and row.problem is None and not is_global(state, self.source.tensors[row.name]):
                masks = self._candidates(state.model_copy(update={"tensor": row.name}))
                plain = masks.mask(0)
                drawn = tuple(introduced_randomness(masks.mask(number), plain) for number in range(1, draws + 1))
            yield dataclasses.replace(row, drawn_ir=drawn)

    def mask(self, state: ExploreState, candidate: int) -> Tensor:
        """The mask of one candidate (0: the plain one) of the state's tensor, or in global scope of all as one vector.

        The one that a run with this seed, stage and tensor uses, bit for bit on the same device. (What may differ is
        said in ``quick``'s notices: zeros in a dense network, and the order of parameters in a checkpoint.)

        Raises:
            ValueError: the weights cannot be read, or masks of them cannot be drawn.
        """
        return self._candidates(state).mask(candidate)

    def candidates(self, state: ExploreState) -> Iterator[Table]:
        """Panel 3: a table after each mask that was drawn, the plain one first. Stop asking to stop the drawing.

        Raises:
            ValueError: the weights cannot be read, or masks of them cannot be drawn.
        """
        _, curve = self.weights.curve(state)
        if not curve.keep:
            raise ValueError(_nothing_kept(state, curve))
        drawn = self._candidates(state)
        window = panels.window_of(state, curve.histogram)
        for done in range(1, state.candidates + 1):
            yield with_scores(drawn.table(state, done, window), self._judged(state))

    def _judged(self, state: ExploreState) -> Judged:
        """What a run has found out about the very masks that the state draws; where it draws others, nothing."""
        settings = self.source.settings(state.stage)
        info = self.source.tensors.get(state.tensor or self.weights.first())
        the_runs = state.moment == "before" and info is not None and info.prunable
        alike = all(getattr(state, name) == value for name, value in settings.items() if name != "candidates")
        return self.source.scores(state.stage) if settings and the_runs and alike else Judged()

    def _candidates(self, state: ExploreState) -> Candidates:
        """Those drawn before, if nothing that they depend on has changed."""
        info = self.weights.info(state)
        whole = is_global(state, info)
        names = self.weights.prunable() if whole else [info.name]
        draw, _ = self.weights.curve(state)
        versions = tuple(self.source.version(name) for name in names)
        settings = (state.sparsity, state.reach, state.sampler, state.seed, state.stage, state.moment)
        key = (whole, info.name, versions, settings, draw)
        kept = self._drawn
        if kept is None or kept[0] != key:
            self._drawn = kept = None  # the old masks go before new ones come
            start = sum(self.source.tensors[name].n for name in names[: names.index(info.name)])
            check_drawable(sum(self.source.tensors[name].n for name in names), draw, state)
            layer = together([self.weights.read(name, state) for name in names])
            parameter = EVERYTHING if whole else info.name
            kept = key, Candidates(layer, parameter, Place(start, info.shape), draw, state)
            self._drawn = kept
        return kept[1]


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


def _digest(parts: list[object]) -> str:
    return hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest()


def _shown(info: TensorInfo) -> Table:
    return {"name": info.name, "shape": list(info.shape), "n": info.n, "prunable": info.prunable}


def _notice(kind: str, text: str) -> Table:
    return {"kind": kind, "text": text}
