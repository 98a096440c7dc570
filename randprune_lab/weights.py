"""The weights of a source, as far as they were looked at: what was worked out is kept until they change."""

from __future__ import annotations

import contextlib
import difflib
import functools
from collections.abc import Callable, Hashable

import torch

from randprune_lab.histogram import MagnitudeHistogram
from randprune_lab.keepcurve import KeepCurve
from randprune_lab.panels import Draw, curve_of, settle
from randprune_lab.sources import Layer, Source, TensorInfo
from randprune_lab.state import ExploreState

HISTOGRAMS_KEPT = 512  # about 0.7 MB each


class Weights:
    """Histograms and curves of the tensors of a source.

    May be asked from several threads at once: at worst something is worked out twice.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self._histograms: dict[Hashable, tuple[Hashable, MagnitudeHistogram]] = {}
        self._layer: tuple[Hashable, Layer] | None = None

    def histogram(self, state: ExploreState) -> MagnitudeHistogram:
        """The magnitudes of the state's tensor; in global scope of all prunable ones together.

        Raises:
            ValueError: the weights cannot be read, or are not finite.
        """
        info = self.info(state)
        if not is_global(state, info):
            return self.of_tensor(info.name, state)
        names = self.prunable()
        key = ("*", state.stage, state.moment, tuple(self.source.version(name) for name in names))
        return self._known(
            key, lambda: functools.reduce(lambda a, b: a + b, (self.of_tensor(name, state) for name in names))
        )

    def curve(self, state: ExploreState) -> tuple[Draw, KeepCurve]:
        """What the state means for its tensor, and the closed form of its masks."""
        histogram = self.histogram(state)
        try:
            draw = settle(state, histogram)
            return draw, curve_of(state, histogram, draw)
        except ValueError as error:
            raise ValueError(f"{self.info(state).name}: {error}") from error

    def of_tensor(self, name: str, state: ExploreState) -> MagnitudeHistogram:
        """The magnitudes of one tensor, whatever the scope.

        Raises:
            ValueError: the weights cannot be read, or are not finite; the tensor is named.
        """

        def work_out() -> MagnitudeHistogram:
            try:
                return self.read(name, state).histogram()
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error

        return self._known((name, state.stage, state.moment, self.source.version(name)), work_out)

    def _known(self, key: tuple[Hashable, ...], work_out: Callable[[], MagnitudeHistogram]) -> MagnitudeHistogram:
        """``key`` is what it is of, and at last its version: an older version goes."""
        what, version = key[:-1], key[-1]
        found = self._histograms.get(what)
        if found is None or found[0] != version:
            found = version, work_out()
            while len(self._histograms) >= HISTOGRAMS_KEPT:
                self._histograms.pop(next(iter(self._histograms)), None)
            self._histograms[what] = found
        return found[1]

    def read(self, name: str, state: ExploreState) -> Layer:
        """The weights; those of one tensor stay in memory, the last that was read."""
        key = (name, state.stage, state.moment, self.source.version(name))
        kept = self._layer
        if kept is None or kept[0] != key:
            self._layer = None  # two big ones need not be there at a time
            kept = (key, self.source.read(name, state.stage, state.moment))
            self._layer = kept
        return kept[1]

    def info(self, state: ExploreState) -> TensorInfo:
        """What is known of the state's tensor.

        Raises:
            ValueError: the source has none of this name.
        """
        info = self.source.tensors.get(state.tensor or self.first())
        if info is None:
            near = difflib.get_close_matches(state.tensor, self.source.tensors, n=1, cutoff=0.0)[0]
            raise ValueError(f"tensor = {state.tensor!r}: the model has none of this name. Did you mean {near!r}?")
        return info

    def version(self, name: str) -> Hashable:
        """Changes when the weights of a tensor change."""
        with contextlib.suppress(ValueError, KeyError):  # reading it will say so
            return self.source.version(name)
        return None

    def prunable(self) -> list[str]:
        """The tensors that a run would prune, in parameter order."""
        return [name for name, info in self.source.tensors.items() if info.prunable]

    def first(self) -> str:
        """The tensor to begin with."""
        return next(iter(self.prunable() or self.source.tensors))


def is_global(state: ExploreState, info: TensorInfo) -> bool:
    """In global scope all that is pruned is one vector; what is not pruned is looked at by itself."""
    return state.scope == "global" and info.prunable


def together(layers: list[Layer]) -> Layer:
    """Several tensors as one vector; one stays as it is."""
    if len(layers) == 1 or any(layer.weight is None for layer in layers):
        return layers[0] if len(layers) == 1 else Layer(None)
    weights = [layer.weight for layer in layers if layer.weight is not None]
    alive = [
        (weight != 0) if layer.alive is None else layer.alive for layer, weight in zip(layers, weights, strict=True)
    ]
    return Layer(torch.cat([weight.reshape(-1) for weight in weights]), torch.cat([mask.reshape(-1) for mask in alive]))
