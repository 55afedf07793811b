"""The terminal: results on stdout, complaints and notes on stderr. Text of configs and files is never markup."""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text


def stdout() -> Console:
    """Where results go."""
    return _of_some_width(Console(highlight=False, soft_wrap=False))


def stderr() -> Console:
    """Where everything else goes."""
    return _of_some_width(Console(stderr=True, highlight=False))


def _of_some_width(console: Console) -> Console:
    """As it is, unless it claims to have no columns: then nothing would be seen."""
    if console.width < 1:
        console.width = 80
    return console


def safe(text: object) -> str:
    """Text of a config or a file, with control characters made visible."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in str(text))


def error(text: str) -> None:
    """One complaint, as it is: place, fault, remedy."""
    console = stderr()
    for line in safe(text).splitlines():
        style = "red" if not line.startswith(" ") else "dim"
        console.print(Text(line, style=style), soft_wrap=True)


def warn(text: str) -> None:
    """Something to know that stops nothing."""
    stderr().print(Text(f"warning: {safe(text)}", style="yellow"), soft_wrap=True)


def note(text: str) -> None:
    """A plain line that is no result."""
    stderr().print(Text(safe(text)), soft_wrap=True)


def say(text: str) -> None:
    """A plain line of result."""
    stdout().print(Text(safe(text)), soft_wrap=True)


def show_json(value: Any) -> None:
    """One JSON object on stdout."""
    sys.stdout.write(json.dumps(value, indent=1, allow_nan=False, default=str) + "\n")


def number(value: Any, digits: int = 3) -> str:
    """A number to `digits` significant digits, an empty string for a missing one."""
    if value is None or value != value:
        return ""
    if isinstance(value, int):
        return str(value)
    return f"{float(value):.{digits}g}"


def table(*columns: str, right: tuple[int, ...] = (), tight: tuple[int, ...] = ()) -> Table:
    """Columns without lines; the first, `right` and `tight` ones keep to one line, `right` ones to the right."""
    view = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for i, column in enumerate(columns):
        view.add_column(column, justify="right" if i in right else "left", no_wrap=i == 0 or i in (*right, *tight))
    return view


def add_row(view: Table, cells: list[str], style: str = "") -> None:
    """A row of plain text."""
    view.add_row(*(Text(safe(cell)) for cell in cells), style=style)
