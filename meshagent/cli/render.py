"""Draws tables and lines for people. rich is imported here and only when something is drawn."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

_UNFOLDED = 10_000


def console() -> "Console":
    """A console on stdout: colour only on a terminal, NO_COLOR honoured (rich does both).

    Into a pipe or file lines are as long as they need to be: whoever cuts columns there wants whole rows.
    """
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else _UNFOLDED)


def table(headers: Sequence[str], rows: Sequence[Sequence[object]], empty: str = "none") -> None:
    """A plain table without a frame; ``empty`` is said instead of a table without rows."""
    from rich.table import Table
    from rich.text import Text

    if not rows:
        console().print(empty)
        return
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for header in headers:
        drawn.add_column(header, overflow="fold")
    for row in rows:
        drawn.add_row(*(Text("-" if cell in ("", None) else str(cell)) for cell in row))
    console().print(drawn)


def facts(pairs: Sequence[tuple[str, object]]) -> None:
    """Aligned ``label  value`` lines; values are never read as markup."""
    from rich.text import Text

    width = max((len(label) for label, _ in pairs), default=0) + 2
    out = console()
    for label, value in pairs:
        out.print(Text.assemble((label.ljust(width), "bold"), str(value)))
