"""What the tutorials call besides the lab itself: say whether an answer is right, show a chart, print a table."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # most cells draw nothing
    import altair as alt

NOT_YET, RIGHT = "not yet", "right"
WIDTH = 100  # characters of a line of text below a chart


def check(answer: object, is_right: Callable[[Any], object], hint: str = "try again") -> None:
    """Print ``right``, or ``not yet`` with what is missing. It never raises, so that a notebook runs through.

    Args:
        answer: the student's; ``...`` (also inside a tuple or list) where there is none yet.
        is_right: answer -> whether it is right. Where it raises, the answer is of the wrong kind.
        hint: what to think of next.
    """
    given = answer if isinstance(answer, tuple | list) else (answer,)
    if any(part is ... for part in given):
        print(f"{NOT_YET}: put your answer in place of the three dots, and run the cell again.")  # noqa: T201
        return
    try:
        verdict = bool(is_right(answer))
    except Exception as error:
        words = " ".join(str(error).split())
        print(f"{NOT_YET}: your answer cannot be checked ({type(error).__name__}: {words}). {_sentence(hint)}")  # noqa: T201
        return
    print(RIGHT if verdict else f"{NOT_YET}: {_sentence(hint)}")  # noqa: T201


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
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."
