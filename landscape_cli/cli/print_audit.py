"""invariance.csv for a person: metrics down, transforms across, and what of the claims holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.text import Text

from landscape_cli.audit.invariance import heading, worst_first
from landscape_cli.cli import print_tables, terminal

if TYPE_CHECKING:
    from pandas import DataFrame

COLORS = {"holds": "green", "broken": "bold red", "never claimed": "default", "unresolved": "yellow"}
COLORS |= {"failed": "red", "not checked": "yellow"}


def show(table: DataFrame, not_applicable: list[str], unclaimed: list[str]) -> None:
    """The matrix of ratios, worst first, and below it what is to be known.

    Args:
        table: invariance.csv.
        not_applicable: what the transforms left alone, and why.
        unclaimed: invariances that hold and that no metric claims.
    """
    from landscape_cli.audit.transforms import TRANSFORMS

    plain = table[table["transform"].isin(TRANSFORMS)]
    for run_id, own in plain.groupby("run_id", sort=False):
        if plain["run_id"].nunique() > 1:
            terminal.say(f"\n{run_id}")
        _matrix(own)
    for row in table[~table["transform"].isin(TRANSFORMS)].to_dict("records"):
        before, after, ratio = (terminal.number(row[k]) for k in ("before", "after", "ratio"))
        ends = f"{before} -> {after}, {ratio} times"
        terminal.say(f"{row['transform']} {_name(row)}: {ends}, no factor above {row['strength']:g}, outputs unchanged")
    claims = plain[plain["claim"] != ""]
    held, broken = (int((claims["verdict"] == v).sum()) for v in ("holds", "broken"))
    terminal.say(f"\n{held} claims hold, {broken} are broken. Cells: value after the transform / before.")
    for row in claims[claims["verdict"].isin(("not checked", "unresolved"))].to_dict("records"):
        terminal.say(f"{row['verdict']}: {_name(row)} claims {row['claim']}: {row['transform']}")
    for row in table[table["verdict"] == "broken"].to_dict("records"):
        terminal.warn(
            f"{_name(row)} claims {row['claim']}: {row['transform']} changes it to {row['ratio']:.9g} of itself"
        )
    for line in unclaimed:
        terminal.say(f"holds, but is not claimed: {line}")
    for line in not_applicable:
        terminal.say(f"not applicable: {line}")


def _matrix(table: DataFrame) -> None:
    columns = list(dict.fromkeys(zip(table["transform"], table["strength"], strict=True)))
    used = [c for c in columns if (table["verdict"][table["transform"] == c[0]] != "not applicable").any()]
    view = terminal.table("metric", *(heading(*c) for c in used), right=tuple(range(1, len(used) + 1)))
    cells = {(r["metric"], r["setting"], r["transform"], r["strength"]): r for r in table.to_dict("records")}
    if not used:
        terminal.say("no metric has a value at this minimum")
        return
    for metric, setting in worst_first(table):
        rows = [cells[metric, setting, *c] for c in used]
        name = print_tables.label(rows[0], set(), terminal.stdout().width)
        view.add_row(Text(terminal.safe(name)), *(_cell(row) for row in rows))
    terminal.stdout().print(view)


def _name(row: dict[Any, Any]) -> str:
    return f"{row['metric']}({row['setting']})" if row["setting"] else str(row["metric"])


def _cell(row: dict[Any, Any]) -> Text:
    if row["verdict"] == "not applicable" or row["after"] != row["after"]:
        return Text("-", style="dim")
    text = terminal.number(row["ratio"], 2) or "="
    return Text("1" if row["verdict"] == "holds" else text, style=COLORS[row["verdict"]])
