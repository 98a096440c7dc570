"""A run that tests kill: in a process of its own."""

from pathlib import Path

from support.runs import (
    go_on,
    tiny,
    tiny_parts,
)

KILLED = tiny(stages=(0.4, 0.7, 0.9), candidates=4, max_epochs=3, patience=2, batch_size=4)


def go_on_slowly(folder: Path) -> None:
    go_on(folder, KILLED, **tiny_parts())
