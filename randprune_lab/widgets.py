"""The Jupyter front-end: ``explore`` shows panels 1 to 4. It draws nothing and works out nothing itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

try:
    import anywidget
    import traitlets
except ImportError as error:
    raise ImportError(f"explore needs Jupyter ({error}). Install it: pip install 'randprune-lab[jupyter]'.") from error
from torch import Tensor, nn

from randprune_lab.dialogue import PARTS, Dialogue, Opener
from randprune_lab.explorer import Explorer, empty_quick
from randprune_lab.page import MICROSCOPE, still_picture
from randprune_lab.panels import Table
from randprune_lab.sources import open_source
from randprune_lab.state import ExploreState
from randprune_lab.tensors import TensorRow

ADAPTER = """
export default { render({ model, el }) {
  const root = document.createElement("div");
  el.appendChild(root);
  const panel = mount(root, (question) => { model.set("asked", question); model.save_changes(); });
  const stops = PARTS.map((name) => {
    const show = () => panel.update(model.get(name));
    model.on(`change:${name}`, show);
    show();
    return () => model.off(`change:${name}`, show);
  });
  const gone = () => panel.gone();
  model.on("comm:close", gone);
  return () => { stops.forEach((stop) => stop()); model.off("comm:close", gone); panel.destroy(); };
} };
"""


class _Setting(traitlets.TraitType[Any, Any]):
    """A field of the panel's state as a trait of its own, so that it can be observed and linked."""

    def validate(self, panel: Any, value: Any) -> Any:
        """What the state makes of the value; its error, if it is not allowed."""
        return getattr(panel.state.but(**{str(self.name): value}), str(self.name))


_Settings: Any = type(
    "_Settings",
    (traitlets.HasTraits,),
    {name: _Setting(field.default) for name, field in ExploreState.model_fields.items()},
)


class _Given(Opener):
    """A model in memory: whatever the state calls it."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def key(self, model: str) -> str:  # noqa: ARG002
        return ""

    def open(self, model: str) -> Explorer:  # noqa: ARG002
        return Explorer(open_source(self._model))

    def is_live(self, model: str) -> bool:  # noqa: ARG002
        return False

    def code(self, state: ExploreState) -> str:
        return state.to_code("model")


class ExplorePanel(anywidget.AnyWidget, _Settings):  # type: ignore[misc]
    """Panels 1 to 4, live. Made by ``explore``.

    Traits: ``state`` (an ExploreState), and each of its fields by its own name: readable, settable, observable,
    linkable. ``result``: the numbers that follow (ir, swapped, threshold, samples, power, ...), read-only.
    """

    _esm = f"{MICROSCOPE.read_text(encoding='utf-8')}\nconst PARTS = {[f'part_{name}' for name in PARTS]};\n{ADAPTER}"

    state = traitlets.Instance(ExploreState, args=(), help="what is shown")
    result = traitlets.Dict(read_only=True, help="the numbers that follow from it")
    asked = traitlets.Dict().tag(sync=True)
    part_controls = traitlets.Dict().tag(sync=True)
    part_source = traitlets.Dict().tag(sync=True)
    part_quick = traitlets.Dict().tag(sync=True)
    part_sweep = traitlets.Dict().tag(sync=True)
    part_candidates = traitlets.Dict().tag(sync=True)
    part_table = traitlets.Dict().tag(sync=True)

    def __init__(self, model: nn.Module | Mapping[str, Tensor] | Tensor | str | Path, state: ExploreState) -> None:
        super().__init__()
        self._dialogue = Dialogue(Opener() if isinstance(model, str | Path) else _Given(model), state, self._show_part)
        self._dialogue.start()

    def table(self) -> list[dict[str, Any]]:
        """A row for every matrix of the model, as plain values: what panel 4's table shows.

        Raises:
            ValueError: the model cannot be read.
        """
        rows: list[TensorRow] = list(self._dialogue.source_or_error().rows(self.state))
        return [vars(row) | {"shape": list(row.shape)} for row in rows]

    def mask(self, candidate: int) -> Tensor:
        """The mask of a candidate (0: the plain one), bool, True = kept: what a run with these settings draws.

        Raises:
            ValueError: the weights cannot be read, or masks of them cannot be drawn.
        """
        return self._dialogue.source_or_error().mask(self.state, candidate)

    def still(self, *, masks: bool = True) -> str:
        """What the panel shows as an SVG picture with its sentences; with ``masks`` how far those drawn agree, too."""
        explorer = self._dialogue.explorer
        if explorer is None:
            return still_picture({"quick": empty_quick(self.state, self._dialogue.problem)})
        view = {"quick": explorer.quick(self.state)}
        left_out = ("table",) if masks else ("table", "candidates")
        known = {name: key for name, key in explorer.keys(self.state).items() if name in left_out}
        view.update(explorer.slow_parts(self.state, known))
        return still_picture(view)

    def _repr_mimebundle_(self, **options: Any) -> Any:
        """The live panel; beside it a still picture and its sentence, for where nothing is running."""
        bundle = super()._repr_mimebundle_(**options)
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle or {}, {})
        quick = self.part_quick
        said = [quick[name]["sentence"] for name in ("microscope", "curve", "point") if quick[name]]
        words = " ".join(said or [notice["text"] for notice in quick["notices"]])
        return {**data, "image/svg+xml": self.still(masks=False), "text/plain": words}, metadata

    def refresh(self) -> None:
        """Read the model anew, after its files have changed or have come; then show it again."""
        self._dialogue.refresh()

    def copy_code(self) -> str:
        """Python that shows this panel again; the button of the same name puts it on the clipboard."""
        return self._dialogue.opener.code(self.state)

    def close(self) -> None:
        """Take the panel off the screen and stop its work."""
        self._dialogue.close()
        super().close()

    def _show_part(self, part: Table) -> None:
        quick = part["kind"] == "quick"
        if quick:
            self.set_trait("result", part["derived"] or {})
        setattr(self, f"part_{part['kind']}", part)
        if not quick:
            return
        # Last, because those who observe these traits may set others: then that state is shown, and goes on here.
        self.state = self._dialogue.state
        for name in ExploreState.model_fields:
            value = getattr(self.state, name)
            if getattr(self, name) != value:
                setattr(self, name, value)

    @traitlets.observe("state", *ExploreState.model_fields)
    def _changed_from_python(self, change: Any) -> None:
        with self._dialogue.lock:
            if change.name == "state":
                if change.new != self._dialogue.state:
                    self._dialogue.show(change.new)
            elif change.new != getattr(self.state, change.name):
                self._dialogue.change(**{change.name: change.new})

    @traitlets.observe("asked")
    def _changed_by_hand(self, change: Any) -> None:
        self._dialogue.asked(change.new)


def explore(
    model: nn.Module | Mapping[str, Tensor] | Tensor | str | Path, state: ExploreState | None = None, **settings: Any
) -> ExplorePanel:
    """Panels 1 to 4 for a model: move the sliders, watch the weights near tau, compare candidate masks.

    Args:
        model: a network, a dict of tensors or one tensor, in memory; the path of a run's folder, or of a folder or file
            of safetensors; or a Hub id.
        state: where to begin; None: the defaults, or of a run its own settings.
        settings: fields of ExploreState to begin with, such as sparsity=0.9.

    Raises:
        ValueError: a setting is not allowed. (A model that cannot be read is said in the panel.)
    """
    state = (state or ExploreState()).but(**settings)
    if isinstance(model, str | Path):
        state = state.but(model=str(model))
    return ExplorePanel(model, state)
