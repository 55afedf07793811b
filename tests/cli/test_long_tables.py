"""A long table without a terminal is the text that rich prints, at every width."""

from __future__ import annotations

import io
import random
from functools import partial
from typing import Any

import pytest
from rich.console import Console

from landscape_cli.cli import long_tables, terminal

WORDS = [
    "ok",
    "a b",
    "minibatch_size=10;seed=3",
    "",
    "a longer message of words",
    "größe ñ",
    "宽字",
    "x" * 90,
    "1e-05",
    "two\nlines",
]


LEAST = 120  # up to there the widest of these words may leave no room for others


@pytest.mark.parametrize("width", [20, 60, 80, 81, 120, 200, 300])
@pytest.mark.parametrize("words", [WORDS[:5], [*WORDS[:7], *WORDS[8:]], WORDS])
def test_it_is_the_text_of_rich(width: int, words: list[str]) -> None:
    rng = random.Random(width)
    rows = [[rng.choice(words) for _ in range(4)] for _ in range(long_tables.SHORT)]
    view: Any = partial(terminal.table, "run", "a setting", "value", "status", right=(2,))
    slow = view()
    for row in rows:
        terminal.add_row(slow, row)
    out = io.StringIO()
    console = Console(file=out, width=width, highlight=False, soft_wrap=False)
    console.print(slow)
    text = long_tables.printed(view, rows, console)
    assert text == out.getvalue() or (text is None and width <= LEAST)


def test_colours_and_short_tables_are_left_to_rich() -> None:
    view: Any = partial(terminal.table, "run")
    rows = [["a"]] * long_tables.SHORT
    assert long_tables.printed(view, rows, Console(file=io.StringIO(), force_terminal=True)) is None
    assert long_tables.printed(view, rows[1:], Console(file=io.StringIO())) is None
