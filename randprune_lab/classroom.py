"""What the tutorials call besides the lab itself: say whether an answer is right, show a chart, print a table."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # most cells draw nothing
    import altair as alt

NOT_YET, RIGHT = "not yet", "right"
WIDTH = 88  # characters of a line of text below a chart


def check(answer: object, is_right: Callable[[Any], object], hint: str = "try again") -> None:
    """Print ``right``, or ``not yet`` with what is missing. It never raises, so that a notebook runs through.

    Args:
        answer: the student's; ``...`` (also inside a tuple, list or dict) where there is none yet.
        is_right: answer -> whether it is right. Where it raises, the answer is of the wrong kind.
        hint: what to think of next.
    """
    try:
        text = _verdict(answer, is_right, hint)
    except (Exception, SystemExit) as error:  # also where comparing answers or wording the error fails
        text = f"{NOT_YET}: your answer cannot be checked ({type(error).__name__}). {_sentence(hint)}"
    print(text)  # noqa: T201


def _verdict(answer: Any, is_right: Callable[[Any], object], hint: str) -> str:
    if _is_open(answer):
        return f"{NOT_YET}: put your answer in place of the three dots, and run the cell again."
    try:
        return RIGHT if bool(is_right(answer)) else f"{NOT_YET}: {_sentence(hint)}"
    except Exception as error:
        words = textwrap.shorten(str(error), 200)
        return f"{NOT_YET}: your answer cannot be checked ({type(error).__name__}: {words}). {_sentence(hint)}"


def _is_open(answer: Any) -> bool:
    """Three dots, also inside of tuples, lists and dicts."""
    if isinstance(answer, dict):
        answer = list(answer.values())
    return answer is ... or (isinstance(answer, tuple | list) and any(map(_is_open, answer)))


def show(chart: alt.TopLevelMixin) -> None:
    """Show a chart of ``charts``, ``pictures`` or ``curves`` as a picture that stays in a saved notebook, offline.

    Its sentence is printed below: what can be compared, searched and read aloud.
    """
    from IPython.display import display

    from randprune_lab.charts import to_svg

    sentence = str(chart.to_dict(validate=False).get("description", ""))
    display({"image/svg+xml": to_svg(chart), "text/plain": sentence}, raw=True)  # type: ignore[no-untyped-call]
    print(textwrap.fill(sentence, WIDTH))  # noqa: T201


def table(rows: Sequence[Mapping[str, Any]], *columns: str) -> None:
    """Print rows one below the other: the columns that are named (none: all), numbers to four digits."""
    names = columns or tuple(dict.fromkeys(name for row in rows for name in row))
    cells = [names, *(tuple(_cell(row.get(name)) for name in names) for row in rows)]
    widths = [max(len(line[place]) for line in cells) for place in range(len(names))]
    for line in cells:
        print("  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)))  # noqa: T201


def _cell(value: object) -> str:
    if getattr(value, "ndim", None) == 0:  # a number of torch or numpy
        value = value.item()  # type: ignore[attr-defined]
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."
