"""What the Jupyter panels 5 to 8 are made of: HTML from plain values, and what all of them share."""

from __future__ import annotations

import html
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import anywidget
import ipywidgets  # type: ignore[import-untyped]
import traitlets

BOX = {"width": "430px", "max_width": "100%"}
SEVERAL = {"flex_flow": "row wrap", "align_items": "center"}
STYLE = """<style>
.rp-console table { border-collapse: collapse; font-size: 13px; }
.rp-console th { text-align: left; font-weight: 600; }
.rp-console th, .rp-console td { padding: 3px 10px 3px 0; border-bottom: 1px solid var(--jp-border-color2, #ccc); }
/* Upside down, so that it stays at the last line. */
.rp-console .log { max-height: 220px; overflow: auto; display: flex; flex-direction: column-reverse; }
.rp-console pre { margin: 0; font-size: 12px; }
.rp-console .chart { background: white; border-radius: 6px; overflow-x: auto; }
.rp-console .chart svg { max-width: 100%; height: auto; }
.rp-console .scroll { overflow-x: auto; }
.rp-console .rp-help { padding-left: 8px; }
.rp-console .rp-help * { color: var(--jp-ui-font-color2, #666); font-size: 12px; line-height: 1.35; }
.rp-console .error { color: var(--jp-error-color1, #b00020); }
</style>"""
# The page asks now and then whether anybody is there: after a restart of the kernel old views look alive.
PULSE = """
export default { render({ model, el }) {
  let asked = 0, since = 0;
  const note = document.createElement("p");
  note.setAttribute("role", "status");
  note.style.cssText = "color: var(--jp-error-color1, #b00020); margin: 0";
  el.appendChild(note);
  const words = "No answer from the kernel: if it was restarted, run this cell again.";
  const say = (gone) => { note.textContent = gone ? words : ""; };
  const answered = () => { if (model.get("answered") === asked) { since = 0; say(false); } };
  const gone = () => say(true);
  model.on("change:answered", answered);
  model.on("comm:close", gone);
  const timer = setInterval(() => {
    if (since && Date.now() - since > 5000) { say(true); }
    if (!since) { asked = Date.now(); since = asked; model.set("asked", asked); model.save_changes(); }
  }, 2500);
  return () => { clearInterval(timer); model.off("change:answered", answered); model.off("comm:close", gone); };
} };
"""


class _Pulse(anywidget.AnyWidget):
    _esm = PULSE
    asked = traitlets.Float(0).tag(sync=True)
    answered = traitlets.Float(0).tag(sync=True)

    @traitlets.observe("asked")
    def _answer(self, change: Any) -> None:
        self.answered = change.new


# Plain values -> HTML. Whatever stands in a run's files is escaped here, in one place.


def escaped(value: object) -> str:
    """Any value as text of a page."""
    return html.escape(str(value))


def paragraph(text: object, *, kind: str = "") -> str:
    """A paragraph of a CSS class, or nothing for nothing."""
    return f'<p class="{kind}">{escaped(text)}</p>' if text else ""


def html_table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Rows of values under their heads; None is an empty cell."""
    head = "".join(f'<th scope="col">{escaped(name)}</th>' for name in heads)
    cells = (["" if cell is None else escaped(cell) for cell in row] for row in rows)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in cells)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def section(title: str, *parts: str) -> str:
    """HTML under a heading; nothing where there is none."""
    body = "".join(parts)
    return f"<h4>{escaped(title)}</h4>{body}" if body else ""


def framed(svg: str) -> str:
    """A chart on white, in a dark theme too."""
    return f'<div class="chart">{svg}</div>'


def points(value: float | None) -> str | None:
    """A share as people read it."""
    return None if value is None else f"{100 * value:.1f} %"


def short(value: float | None) -> str | None:
    """Three digits."""
    return None if value is None else f"{value:.3g}"


class Panel(ipywidgets.VBox):  # type: ignore[misc]
    """What the panels share: one callback after another, and an error is said in the panel."""

    def __init__(self, *children: ipywidgets.Widget) -> None:
        self._lock = threading.RLock()  # callbacks come on a thread of their own, while a cell may call us, too
        self._said = ipywidgets.HTML()
        super().__init__([ipywidgets.HTML(STYLE), *children, self._said, _Pulse()])
        self.add_class("rp-console")

    def close(self) -> None:
        """Take the panel off the screen, with all that is in it."""
        for child in self.children:
            child.close()
        super().close()

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        """The live panel; beside it what a saved notebook still shows."""
        return {**super()._repr_mimebundle_(**options), **self._still()}

    def _still(self) -> dict[str, str]:
        """Sentences as text, and a picture where there is one."""
        raise NotImplementedError

    def _button(self, label: str, do: Callable[[], None], **options: Any) -> ipywidgets.Button:
        button = ipywidgets.Button(description=label, **options)
        button.on_click(lambda _: self._try(do))
        return button

    def _try(self, do: Callable[[], None]) -> None:
        with self._lock:
            show(self._said, "")
            try:
                do()
            except Exception as error:  # a traceback on a callback's thread is seen by nobody
                show(self._said, paragraph(words_of(error), kind="error"))


def show(widget: ipywidgets.HTML, value: str) -> None:
    """Only what has changed is sent to the browser."""
    if widget.value != value:
        widget.value = value


def words_of(error: Exception) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())[:500]
    return text if isinstance(error, ValueError | OSError) and text else f"{type(error).__name__}: {text}."
