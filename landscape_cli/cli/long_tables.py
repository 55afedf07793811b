"""Tables of thousands of rows where there is no terminal: the text that rich would print, in a moment.

rich lays out each cell of a table anew, 0.4 ms a row and more; here each long text is laid out once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

Rows = Sequence[Sequence[str]]
SHORT = 200  # rows that rich prints soon enough


def printed(view: Callable[[], Table], rows: Rows, console: Console) -> str | None:
    """What `console.print` would write of a table.

    Args:
        view: makes it, without rows.
        rows: texts of the cells, safe, one a column.
        console: where to.
    Returns: the text; None if that is for rich to do: colours, few rows, no room, or another version of it.
    """
    if console.is_terminal or console.color_system or len(rows) < SHORT:
        return None
    try:
        widths = _widths(view(), rows, console)
    except AttributeError:  # of another version
        return None
    if min(widths) < 1:  # there is no room for a column
        return None
    laid: list[Callable[[str], list[str]]] = [_layout(view(), i, w, console) for i, w in enumerate(widths)]
    head = [lay(str(column.header)) for lay, column in zip(laid, view().columns, strict=True)]
    text = _joined([cell[::-1] for cell in head], widths)[::-1]  # a heading stands at the foot of its row
    for row in rows:
        text += _joined([lay(cell) for lay, cell in zip(laid, row, strict=True)], widths)
    return "\n".join(text) + "\n"


def _joined(cells: list[list[str]], widths: list[int]) -> list[str]:
    """The lines of a row, from those of its cells."""
    if all(len(cell) == 1 for cell in cells):
        return [" ".join([cell[0] for cell in cells])]
    lines = zip_longest(*cells)
    return [" ".join(part or " " * width for part, width in zip(line, widths, strict=True)) for line in lines]


def _widths(view: Table, rows: Rows, console: Console) -> list[int]:
    """Widths of the columns, which follow from the longest cell and the longest word of each."""
    for column in zip(*rows, strict=True):
        told = dict.fromkeys(column)
        for cell in (max(told, key=lambda c: _longest(c.splitlines())), max(told, key=lambda c: _longest(c.split()))):
            view.add_row(*(Text(cell) if i == view.row_count // 2 else Text("") for i in range(len(view.columns))))
    widths: list[int] = view._calculate_column_widths(console, console.options)
    return [width - (i < len(widths) - 1) for i, width in enumerate(widths)]  # without the space after each


def _longest(parts: list[str]) -> int:
    return max(map(cell_len, parts), default=0)


def _layout(view: Table, i: int, width: int, console: Console) -> Callable[[str], list[str]]:
    """A function of a cell's text: its lines, filled up to the width of column i."""
    column, known = view.columns[i], dict[str, list[str]]()
    options = console.options.update(width=width, no_wrap=column.no_wrap, overflow=column.overflow)
    options = options.update(justify=column.justify, height=None)

    def lines(cell: str) -> list[str]:
        if cell.isascii() and cell.isprintable() and len(cell) <= width:
            return [cell.rjust(width) if column.justify == "right" else cell.ljust(width)]
        if cell not in known:
            known[cell] = ["".join(s.text for s in line) for line in console.render_lines(Text(cell), options)]
        return known[cell]

    return lines
