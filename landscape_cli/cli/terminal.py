"""What a person sees: progress and complaints on stderr, results on stdout. Text from configs is never markup."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from pandas import DataFrame

    from landscape_cli.training import State

EVERY = 60.0  # seconds between two lines of progress where there is no terminal


def _out() -> Console:
    return Console(highlight=False, soft_wrap=False)


def _err() -> Console:
    return Console(stderr=True, highlight=False)


def safe(text: object) -> str:
    """Text of a config or a file, with control characters made visible."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in str(text))


def error(text: str) -> None:
    """One complaint, as it is: place, fault, remedy."""
    console = _err()
    for line in safe(text).splitlines():
        style = "red" if not line.startswith(" ") else "dim"
        console.print(Text(line, style=style), soft_wrap=True)


def warn(text: str) -> None:
    """Something to know that stops nothing."""
    _err().print(Text(f"warning: {safe(text)}", style="yellow"), soft_wrap=True)


def say(text: str) -> None:
    """A plain line of result."""
    _out().print(Text(safe(text)), soft_wrap=True)


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


# ---- progress


class Progress:
    """Receives events of the pipeline; one live line on a terminal, else one line a minute.

    Events: train {runs, done, stacks}, stack {stack}, step {stack, state}, run {record}, measure {cells, unit},
    metric {metric}, cell {metric, runs}, draw {}.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.quiet, self.console = quiet, _err()
        self.live: Live | None = None
        self.start = self.printed = self.drawn = time.monotonic()
        self.runs = self.runs_done = self.cells = self.cells_done = 0
        self.began = self.start
        self.since = (2**62, 0.0)  # step and time at which the present stack was first seen
        self.line, self.unit = "", "cells"

    def __enter__(self) -> Progress:
        if not self.quiet and self.console.is_terminal:
            self.live = Live(Text(""), console=self.console, transient=True, auto_refresh=False)
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def pause(self) -> float:
        """Seconds between two lines."""
        return 0.1 if self.live else EVERY

    def stop(self) -> None:
        """Clear the live line."""
        if self.live:
            self.live.stop()
            self.live = None

    def __call__(self, event: str, facts: dict[str, Any]) -> None:
        """Note an event, and say where things stand."""
        now = time.monotonic()
        if event == "step" and (self.quiet or now - (self.drawn if self.live else self.printed) < self.pause()):
            return  # thousands come each second
        if event == "train":
            self.runs, self.runs_done, self.began = facts["runs"], facts["done"], time.monotonic()
        elif event == "run":
            self.runs_done = min(self.runs, self.runs_done + 1)
        elif event == "stack":
            self.since = (2**62, 0.0)
        elif event == "step":
            self.line = self._training(facts)
        elif event == "measure":
            self.cells, self.cells_done, self.began = facts["cells"], 0, time.monotonic()
            self.unit = facts.get("unit", "cells")
        elif event == "metric":
            self.line = f"measuring {safe(facts['metric'])}  {self.cells_done}/{self.cells} {self.unit}{self._left()}"
        elif event == "cell":
            self.cells_done += facts["runs"]
        elif event == "draw":
            self.line = "drawing figures and report"
        self._say(event)

    def _training(self, facts: dict[str, Any]) -> str:
        state, stack = facts["state"], facts["stack"]
        losses = [h["train_loss"][-1] for h in state.history if h["train_loss"]]
        loss = f"  loss {max(losses):.3g}" if losses else ""
        group = safe(stack[0].group)
        left = self._training_left(stack[0].settings["training"]["stop"]["train_loss"], state)
        return (
            f"training {group}  {self.runs_done}/{self.runs} runs  step {state.step}{loss}{left}  {_clock(self.start)}"
        )

    def _training_left(self, goal: float | None, state: State) -> str:
        """Time until the slowest run of the stack reaches its goal, on the line through its curve in log-log."""
        now = time.monotonic()
        if state.step < self.since[0]:
            self.since = (state.step, now)
        rate = (now - self.since[1]) / max(1, state.step - self.since[0])
        ends = [_forecast(state.history[row], goal) for row in state.active] if goal else []
        if not ends or None in ends:
            return ""
        return f"  about {max(0.0, max(e for e in ends if e) - state.step) * rate:.0f} s left for these"

    def _left(self) -> str:
        if not self.cells_done:
            return ""
        left = (time.monotonic() - self.began) / self.cells_done * (self.cells - self.cells_done)
        return f"  about {left:.0f} s left"

    def _say(self, event: str) -> None:
        now = time.monotonic()
        if self.quiet or not self.line:
            return
        if self.live:
            if now - self.drawn > 0.1 or event in ("metric", "draw"):
                self.drawn = now
                self.live.update(Text(self.line, style="cyan", no_wrap=True, overflow="ellipsis"), refresh=True)
        elif now - self.printed > EVERY:
            self.printed = now
            self.console.print(Text(self.line), soft_wrap=True)


def _forecast(history: dict[str, list[float]], goal: float) -> float | None:
    """Step at which a loss that falls as a power of the step will be at the goal; None while it is too early to say."""
    points = [(s, x) for s, x in zip(history["step"], history["train_loss"], strict=True) if s > 0 and x > 0]
    early = [(s, x) for s, x in points if s * 1.5 <= points[-1][0] and x > points[-1][1]]
    if not early or len(points) < 5:
        return None
    (s0, x0), (s1, x1) = early[-1], points[-1]
    return float(s1 * (x1 / goal) ** (math.log(s1 / s0) / math.log(x0 / x1)))


def _clock(start: float) -> str:
    seconds = int(time.monotonic() - start)
    return f"{seconds // 60}:{seconds % 60:02d}"


# ---- results


def _table(*columns: str, right: tuple[int, ...] = (), tight: tuple[int, ...] = ()) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i in right else "left", no_wrap=i == 0 or i in (*right, *tight))
    return table


def _add(table: Table, cells: list[str], style: str = "") -> None:
    table.add_row(*(Text(safe(cell)) for cell in cells), style=style)


def runs(table: DataFrame) -> None:
    """runs.csv for a person."""
    view = _table(
        "run",
        "status",
        "epochs",
        "steps",
        "train loss",
        "test loss",
        "test acc.",
        "s",
        right=(2, 3, 4, 5, 6, 7),
        tight=(1,),
    )
    for row in table.to_dict("records"):
        numbers = [number(row[k]) for k in ("train_loss", "test_loss", "test_accuracy", "seconds")]
        cells = [row["run_id"], row["status"], number(row["epochs"], 9), number(row["steps"], 9), *numbers]
        _add(view, [str(c) for c in cells], "" if row["status"] == "ok" else "yellow")
    _out().print(view)
    for row in table[table["status"] != "ok"].to_dict("records"):
        warn(f"{row['run_id']}: {row['status']}: {row['message']}")


def metrics(table: DataFrame) -> None:
    """metrics.csv for a person: the rows of each minimum, without the shared intermediates."""
    view = _table("run", "metric", "setting", "value", "std. error", "status", right=(3, 4))
    for row in table[~table["metric"].str.startswith("_shared:")].to_dict("records"):
        value, error_ = number(row["value"], 5), number(row["standard_error"], 2)
        cells = [row["run_id"], row["metric"], row["setting"], value, error_, row["status"]]
        _add(view, cells, "" if row["status"] == "ok" else "yellow")
    _out().print(view)
    for line in complaints(table):
        warn(line)


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


def comparison(table: DataFrame, groups: list[str], runs_table: DataFrame, folder: Path) -> None:
    """comparison.csv for a person: each metric's mean in the first and last group, their ratio, and how sure it is.

    A terminal of 80 columns holds it; from 110 on the means carry the half width of their 95 % interval.
    """
    from landscape_cli import registry
    from landscape_cli.report import page, statistics

    out, same = _out(), registry.same_as()
    ends = list(dict.fromkeys((groups[0], groups[-1])))
    wide = out.width >= 110
    head = [*(safe(g) for g in ends), *([f"{safe(ends[1])} / {safe(ends[0])}"] if len(ends) > 1 else []), "p"]
    view = _table("metric", *head, right=(1, len(ends), len(head)), tight=(len(ends) + 1,))
    parts = {k: statistics.told(str(k)) for k in table["setting"].fillna("").unique()}
    everywhere = {m: _common([parts[k] for k in own.fillna("")]) for m, own in table.groupby("metric")["setting"]}
    for row in table.to_dict("records"):
        means = [_mean(row, g, wide) for g in ends]
        said, sure = _difference(row, ends)
        name = _label(row, everywhere[row["metric"]], out.width)
        cells = [name, *means, *([said] if len(ends) > 1 else []), number(row["p_holm"], 2)]
        _add(view, cells, "" if sure or len(ends) == 1 else "dim")
    out.print(view)
    out.print()
    if len(ends) > 1:
        tests = statistics.hypotheses(table, same)[table["p_value"].notna()].nunique()
        said = f"Ratio of means with its 95 % interval; p: Mann-Whitney, Holm over {tests} tests."
        out.print(Text(said, style="dim"))
    out.print(Text(safe(page.headline(runs_table, table, same))))
    out.print()
    out.print(Text(f"Report: {folder / 'report.html'}", style="bold"), soft_wrap=True)


def _common(parts: list[dict[str, str]]) -> set[str]:
    """Settings that several rows of a metric have in common: they tell none of them apart."""
    return {k for k, v in parts[0].items() if all(p.get(k) == v for p in parts)} if len(parts) > 1 else set()


def _label(row: dict[Any, Any], everywhere: set[str], columns: int) -> str:
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
            else f" ({number(row['ratio_low'])} to {number(row['ratio_high'])})"
        )
        return f"{number(row['ratio'])}x{interval}", sure
    if len(ends) < 2 or row["cliffs_delta"] != row["cliffs_delta"]:
        return "too few values", False
    return ("higher" if row["cliffs_delta"] > 0 else "lower") if sure else "no clear difference", sure


def _mean(row: dict[Any, Any], group: str, wide: bool) -> str:
    mean, low, high = (row[f"{group}_{part}"] for part in ("mean", "ci_low", "ci_high"))
    interval = f" \u00b1 {number((high - low) / 2, 2)}" if wide and low == low else ""
    return f"{number(mean)}{interval}"


def shelf(rows: list[dict[str, Any]], verbose: bool) -> None:
    """Names with one line each, or with all that is known."""
    out = _out()
    if not verbose:
        view = _table("name", "")
        for row in rows:
            _add(view, [row["name"], row["summary"]])
        out.print(view)
        return
    from landscape_cli.config.yaml_tree import flow
    from landscape_cli.registry import DIRECTIONS

    below = (0, 0, 1, 2)  # an empty line, and an indent
    for row in rows:
        out.print(Text(row["name"], style="bold"))
        out.print(Padding(Text(safe(row.get("text") or row["summary"])), below, expand=False))
        if row.get("options"):
            view = _table("setting", "type", "default", "meaning")
            view.padding, view.columns[1].max_width, view.columns[2].max_width = (0, 2, 0, 0), 22, 18
            for o in row["options"]:
                default = flow(o["default"]) if "default" in o else "required"
                several = ", a row each" if default[0] == "[" and not o["type"].startswith("list") else ""
                _add(view, [o["name"], o["type"], default + several, o["meaning"]])
            out.print(Padding(view, below, expand=False))
        told = {k: row.get(k, "") for k in ("value", "direction", "cost", "invariant", "source", "default")}
        told["direction"] = DIRECTIONS.get(told["direction"], "")
        told["invariant"] = told["invariant"].replace(",", ", ")
        told["default"] = {True: "measured by default", False: "by name, or with metrics: all"}.get(told["default"], "")
        facts = Table.grid(padding=(0, 2, 0, 0))
        for key, value in told.items():
            if value:
                facts.add_row(Text(key, style="bold"), Text(safe(value)))
        if facts.rows:
            out.print(Padding(facts, below, expand=False))


def origins(values: list[tuple[str, Any, str]]) -> None:
    """Each setting of a config, its value and where that comes from."""
    view = _table("setting", "value", "from")
    for key, value, origin in values:
        _add(view, [key, json.dumps(value, default=str), Path(origin).name], "dim" if origin == "default" else "")
    _out().print(view)


def findings(found: list[dict[str, Any]]) -> None:
    """What the doctor found, and the remedy below what is wrong."""
    view = _table("check", "found")
    for finding in found:
        told = finding["found"] + ("" if finding["ok"] else f"\n-> {finding['remedy']}")
        _add(view, [finding["check"], told], "" if finding["ok"] else "yellow")
    _out().print(view)


def plan(plan: dict[str, Any]) -> None:
    """What is done and what is left."""
    out = _out()
    out.print()
    out.print(
        Text(f"{plan['trained']} of {plan['runs']} runs trained, {plan['measured']} of {plan['cells']} cells measured")
    )
    for stack in plan["stacks"]:
        names = ", ".join(stack["runs"][:3]) + (", ..." if len(stack["runs"]) > 3 else "")
        out.print(Text(f"to train: {len(stack['runs'])} together ({names}): {stack['why']}"))
    if plan["stacks"]:
        left = plan["seconds_left"]
        said = (
            f"about {left:.0f} s, as long as finished runs took" if left is not None else "unknown: no run is finished"
        )
        out.print(Text(f"time left to train: {said}"))
