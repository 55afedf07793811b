"""Tables and findings printed for a person, from the tables of an experiment."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from landscape_cli.cli import long_tables, terminal
from landscape_cli.store import RUN_COLUMNS

if TYPE_CHECKING:
    from pandas import DataFrame


def runs(table: DataFrame) -> None:
    """runs.csv for a person."""
    shown = [column for column in RUN_COLUMNS if column.heading]
    numeric = tuple(i for i, column in enumerate(shown) if column.type != "str")
    tight = tuple(i for i, column in enumerate(shown) if column.name == "status")
    view = terminal.table(*(column.heading for column in shown), right=numeric, tight=tight)
    for row in table.to_dict("records"):
        cells = [_cell_of(row[column.name], column.type) for column in shown]
        terminal.add_row(view, cells, "" if row["status"] == "ok" else "yellow")
    terminal.stdout().print(view)
    for row in table[table["status"] != "ok"].to_dict("records"):
        terminal.warn(f"{row['run_id']}: {row['status']}: {row['message']}")


def _cell_of(value: Any, kind: str) -> str:
    return str(value) if kind == "str" else terminal.number(value, 9 if kind == "Int64" else 3)


METRICS = ("run", "metric", "setting", "value", "std. error", "status")


def metrics(table: DataFrame) -> None:
    """metrics.csv for a person: the rows of each minimum, without the shared intermediates."""
    shown = table[~table["metric"].str.startswith("_shared:")]
    columns = [shown[name].tolist() for name in ("run_id", "metric", "setting", "value", "standard_error", "status")]
    rows = [
        [
            terminal.safe(run_id),
            metric,
            terminal.safe(setting),
            terminal.number(value, 5),
            terminal.number(error_, 2),
            status,
        ]
        for run_id, metric, setting, value, error_, status in zip(*columns, strict=True)
    ]
    out, view = terminal.stdout(), partial(terminal.table, *METRICS, right=(3, 4))
    text = long_tables.printed(view, rows, out)
    if text is not None:
        out.file.write(text)
    else:
        whole = view()
        for row in rows:
            terminal.add_row(whole, row, "" if row[-1] == "ok" else "yellow")
        out.print(whole)
    for line in complaints(table):
        terminal.warn(line)


def complaints(table: DataFrame) -> list[str]:
    """A line for each metric whose value is missing or not to be trusted, runs with the same trouble together."""
    from landscape_cli.report import statistics

    found: dict[tuple[str, ...], list[str]] = {}
    lost = table[(table["status"] != "ok") & (table["status"] != "undefined")]
    for row in statistics.collapsed(lost, table).to_dict("records"):
        key = (row["metric"], row["setting"], row["status"], row["message"])
        found.setdefault(key, []).append(row["run_id"])
    return [
        f"{metric}({setting}): {status}: {why} ({len(set(ids))} runs, first {ids[0]})"
        for (metric, setting, status, why), ids in found.items()
    ]


def comparison(table: DataFrame, groups: list[str], runs_table: DataFrame) -> None:
    """comparison.csv for a person: each metric's mean in the first and last group, their ratio, and how sure it is.

    A terminal of 80 columns holds it; from 110 on the means carry the half width of their 95 % interval.
    """
    from landscape_cli import registry
    from landscape_cli.report import page, statistics

    out, same = terminal.stdout(), registry.same_as()
    ends = list(dict.fromkeys((groups[0], groups[-1])))
    wide = out.width >= 110
    names = [terminal.safe(g) for g in ends]
    head = [*names, *([f"{names[1]} / {names[0]}"] if len(ends) > 1 else []), "p"]
    view = terminal.table("metric", *head, right=(1, len(ends), len(head)), tight=(len(ends) + 1,))
    parts = {k: statistics.told(str(k)) for k in table["setting"].fillna("").unique()}
    everywhere = {m: common([parts[k] for k in own.fillna("")]) for m, own in table.groupby("metric")["setting"]}
    for row in table.to_dict("records"):
        means = [_mean(row, g, wide) for g in ends]
        difference, sure = _difference(row, ends)
        name = label(row, everywhere[row["metric"]], out.width)
        cells = [name, *means, *([difference] if len(ends) > 1 else []), terminal.number(row["p_holm"], 2)]
        terminal.add_row(view, cells, "" if sure or len(ends) == 1 else "dim")
    out.print(view)
    out.print()
    if len(ends) > 1:
        tests = statistics.hypotheses(table, same)[table["p_value"].notna()].nunique()
        note = f"Ratio of means with its 95 % interval; p: Mann-Whitney, Holm over {tests} tests."
        out.print(Text(note, style="dim"))
    out.print(Text(terminal.safe(page.headline(runs_table, table, same))))


def common(parts: list[dict[str, str]]) -> set[str]:
    """Settings that several rows of a metric have in common: they tell none of them apart."""
    return {k for k, v in parts[0].items() if all(p.get(k) == v for p in parts)} if len(parts) > 1 else set()


def label(row: dict[Any, Any], everywhere: set[str], columns: int) -> str:
    """Metric and what tells its rows apart, short: `regret m=10`, `sam_sharpness converged`."""
    from landscape_cli.report import statistics

    parts = [(k, v) for k, v in statistics.told(str(row["setting"])).items() if k not in everywhere]
    plain = [key != "to" and v.isalpha() and v not in ("true", "false") for key, v in parts]
    words = [v if short else f"{SYMBOLS.get(key, key)}={v}" for short, (key, v) in zip(plain, parts, strict=True)]
    name, setting, limit = row["metric"], " ".join(words), LABEL if columns < 110 else 2 * LABEL
    text = f"{name} {setting}".strip()
    if len(text) <= limit:
        return text
    room = limit - len(setting) - 2  # for the name: what tells rows apart comes first, if it is short
    return f"{name[:room]}… {setting}" if room >= 10 else text[: limit - 1] + "…"


LABEL = 25  # characters of a row's name that leave room for its numbers in 80 columns
SYMBOLS = {"minibatch_size": "m", "samples": "S", "inputs": "N"}  # as the formulas write them


def _difference(row: dict[Any, Any], ends: list[str]) -> tuple[str, bool]:
    """What the ratio column says, and whether the groups differ for sure."""
    from landscape_cli.report import statistics

    sure = row["p_holm"] == row["p_holm"] and row["p_holm"] < statistics.ALPHA
    if row["ratio"] == row["ratio"]:
        interval = (
            ""
            if row["ratio_low"] != row["ratio_low"]
            else f" ({terminal.number(row['ratio_low'])} to {terminal.number(row['ratio_high'])})"
        )
        return f"{terminal.number(row['ratio'])}x{interval}", sure
    if len(ends) < 2 or row["cliffs_delta"] != row["cliffs_delta"]:
        return "too few values", False
    return ("higher" if row["cliffs_delta"] > 0 else "lower") if sure else "no clear difference", sure


def _mean(row: dict[Any, Any], group: str, wide: bool) -> str:
    mean, low, high = (row[f"{group}_{part}"] for part in ("mean", "ci_low", "ci_high"))
    interval = f" \u00b1 {terminal.number((high - low) / 2, 2)}" if wide and low == low else ""
    return f"{terminal.number(mean)}{interval}"


def shelf(rows: list[dict[str, Any]], verbose: bool) -> None:
    """Names with one line each, or with all that is known."""
    out = terminal.stdout()
    if not verbose:
        view = terminal.table("name", "")
        for row in rows:
            terminal.add_row(view, [row["name"], row["summary"]])
        out.print(view)
        return
    from landscape_cli.config.yaml_tree import flow
    from landscape_cli.registry import DIRECTIONS

    below = (0, 0, 1, 2)  # an empty line, and an indent
    for row in rows:
        out.print(Text(row["name"], style="bold"))
        out.print(Padding(Text(terminal.safe(row.get("text") or row["summary"])), below, expand=False))
        if row.get("options"):
            view = terminal.table("setting", "type", "default", "meaning")
            view.padding, view.columns[1].max_width, view.columns[2].max_width = (0, 2, 0, 0), 22, 18
            for o in row["options"]:
                default = flow(o["default"]) if "default" in o else "required"
                several = ", a row each" if default[0] == "[" and not o["type"].startswith("list") else ""
                terminal.add_row(view, [o["name"], o["type"], default + several, o["meaning"]])
            out.print(Padding(view, below, expand=False))
        stated = {k: row.get(k, "") for k in ("value", "direction", "cost", "invariant", "needs", "source", "default")}
        stated["direction"] = DIRECTIONS.get(stated["direction"], "")
        stated["invariant"] = stated["invariant"].replace(",", ", ")
        when = {True: "measured by default", False: "by name, or with metrics: all"}
        stated["default"] = when.get(stated["default"], "")
        facts = Table.grid(padding=(0, 2, 0, 0))
        for key, value in stated.items():
            if value:
                facts.add_row(Text(key, style="bold"), Text(terminal.safe(value)))
        if facts.rows:
            out.print(Padding(facts, below, expand=False))


def origins(values: list[tuple[str, Any, str]]) -> None:
    """Each setting of a config, its value and where that comes from."""
    view = terminal.table("setting", "value", "from")
    for key, value, origin in values:
        cells = [key, json.dumps(value, default=str), Path(origin).name]
        terminal.add_row(view, cells, "dim" if origin == "default" else "")
    terminal.stdout().print(view)


def findings(found: list[dict[str, Any]]) -> None:
    """What the doctor found, and the remedy below what is wrong."""
    view = terminal.table("check", "found")
    for finding in found:
        text = finding["found"] + ("" if finding["ok"] else f"\n-> {finding['remedy']}")
        terminal.add_row(view, [finding["check"], text], "" if finding["ok"] else "yellow")
    terminal.stdout().print(view)


def plan(plan: dict[str, Any]) -> None:
    """What is done and what is left."""
    out = terminal.stdout()
    out.print()
    out.print(
        Text(f"{plan['trained']} of {plan['runs']} runs trained, {plan['measured']} of {plan['cells']} cells measured")
    )
    for stack in plan["stacks"]:
        names = ", ".join(stack["runs"][:3]) + (", ..." if len(stack["runs"]) > 3 else "")
        out.print(Text(f"to train: {len(stack['runs'])} together ({names}): {stack['why']}"))
    if plan["stacks"]:
        left = plan["seconds_left"]
        estimate = (
            f"about {left:.0f} s, as long as finished runs took" if left is not None else "unknown: no run is finished"
        )
        out.print(Text(f"time left to train: {estimate}"))
