"""Figures of curves: what was measured along training, and the density of the Hessian's eigenvalues."""

from collections.abc import Iterable, Mapping
from math import log10
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator
from pandas import DataFrame

from landscape_cli.report import figures_runs
from landscape_cli.report.figures_runs import DASHED, MUTED, Look
from landscape_cli.report.statistics import along, told

MOST = 6  # panels: as many metrics as one can follow at once
Panel = tuple[str, str, DataFrame]  # metric, setting, rows
FLOOR = 1e-7  # of the largest density: a single eigenvalue among millions does not show


def epochs(ax: Axes, values: Iterable[float]) -> None:
    """Scale the horizontal axis: log, with 0 at its own place, where most snapshots lie in the first fifth."""
    at = np.unique(np.asarray(list(values), dtype=np.float64))
    later = at[at > 0]
    ax.set_xlabel("epoch (passes)")
    if len(later) == 0 or later.max() < 30 * later.min() or np.median(later) > later.max() / 5:
        figures_runs.scale(ax, "x", [0, *at], 6)
        return
    first = 10.0 ** np.floor(log10(later.min()))
    if at[0] > 0:
        ax.set_xscale("log")
    else:
        ax.set_xscale("symlog", linthresh=first, linscale=0.5)
        ax.set_xlim(-0.2 * first, 1.3 * later.max())
    ticks = [first * 10**k for k in range(12) if first * 10**k <= later.max() * 1.2]
    ax.xaxis.set(major_locator=FixedLocator([0.0] * bool(at[0] == 0) + ticks), minor_locator=NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(figures_runs.tick))


def along_training(
    metrics: DataFrame, runs: DataFrame, groups: list[str], edges: Mapping[str, Mapping[float, str]], stem: Path
) -> list[Path]:
    """One panel a (metric, setting) that was measured at snapshots: its value against the epoch, a line a run.

    Args:
        metrics: metrics.csv.
        runs: runs.csv.
        groups: their names.
        edges: group -> curvature at which its gradient descent becomes unstable, and how that is computed; dashed
            beside hessian_top.
        stem: path without suffix.
    Returns: the files written, none if nothing was measured at snapshots.
    """
    table = along(metrics, runs)
    shown = ordered(figures_runs.by_setting(table[table["group"].isin(groups)]))
    if not shown:
        return []
    style, drawn = figures_runs.looks(groups), min(len(shown), MOST)
    with figures_runs.styled():
        per_row = 3 if drawn > 4 else min(drawn, 2)
        figure, axes = figures_runs.panels(drawn, 3.2 if drawn < 3 else 2.6, per_row)
        formulas: list[str] = []
        for ax, (metric, setting, part) in zip(axes, shown, strict=False):
            for _, run in part.groupby("run_id", sort=False):
                line(ax, run, style[run["group"].iloc[0]])
            tops = top_edges(metric, setting, part, edges)
            figures_runs.heights(ax, np.array([*part["value"], *(edge for edge, _ in tops)]), [])
            epochs(ax, part["epoch"])
            dashes(ax, tops, style)
            formulas += [formula for _, formula in tops]
            figures_runs.panel_title(ax, metric, setting)
        dashed = [Line2D([], [], color=MUTED, ls=DASHED, label=f"dashed: {f}") for f in dict.fromkeys(formulas)]
        figures_runs.legend(figure, style, lines=True, extra=dashed)
        text = "line: a run; dot: its minimum; vertical axis: the metric's value in its own unit"
        figures_runs.note(figure, text if len(shown) <= MOST else f"{text}; first {MOST} of {len(shown)} panels")
        return figures_runs.save(figure, stem)


def ordered(panels: list[Panel]) -> list[Panel]:
    """hessian_top first; a metric's second setting after the first one of every metric; else as they come."""
    names = [metric for metric, _, _ in panels]
    place = [(names[:i].count(name), name != "hessian_top", i) for i, name in enumerate(names)]
    return [panels[i] for *_, i in sorted(place)]


def line(ax: Axes, run: DataFrame, look: Look) -> None:
    """A run's values against the epoch, the last one, where it ended, as a dot."""
    few = len(run) <= 12
    ax.plot(run["epoch"], run["value"], color=look.color, lw=0.9, alpha=0.8, marker="." if few else "", ms=3)
    ax.plot(run["epoch"].iloc[-1:], run["value"].iloc[-1:], color=look.color, marker=look.marker, ms=4, ls="")


def top_edges(
    metric: str, setting: str, part: DataFrame, edges: Mapping[str, Mapping[float, str]]
) -> dict[tuple[float, str], list[str]]:
    """(edge, formula) -> its groups, beside the largest eigenvalue; none of groups that are not there or far above."""
    parts, found = told(setting), dict[tuple[float, str], list[str]]()
    if metric != "hessian_top" or parts.get("rank", "1") != "1" or "block" in parts:
        return found
    limit = part["value"].max() * (30 if figures_runs.spans_decades(part["value"]) else 3)
    for group in dict.fromkeys(part["group"]):
        for edge, formula in edges.get(group, {}).items():
            if edge <= limit:
                found.setdefault((edge, formula), []).append(group)
    return found


def dashes(ax: Axes, edges: Mapping[tuple[float, str], list[str]], style: Mapping[str, Look]) -> None:
    """A dashed line an edge, grey if several groups share it; its value beside it where there is room."""
    place = ax.yaxis.get_transform().transform
    low, high = place(ax.get_ylim())
    taken: list[float] = []
    for (edge, formula), groups in edges.items():
        color = style[groups[0]].color if len(groups) == 1 else MUTED
        ax.axhline(edge, color=color, lw=1.1, ls=DASHED)
        (height,) = (place([edge]) - low) / (high - low)
        if all(abs(height - other) > 0.06 for other in taken):  # a line of text
            text, at = f"{formula} = {figures_runs.tick(float(f'{edge:.3g}'))}", ("axes fraction", "data")
            beside = ax.annotate(text, (1, edge), xytext=(3, 0), xycoords=at, textcoords="offset points", va="center")
            beside.set(color=color, fontsize=7)
            taken.append(height)


def spectral_density(curves: DataFrame, runs: DataFrame, groups: list[str], stem: Path) -> list[Path]:
    """Density of the Hessian's eigenvalues at the minima: a thin line a run, a thick one the mean of a group.

    Args:
        curves: tables/spectral_density.csv, or an empty table.
        runs: runs.csv.
        groups: their names.
        stem: path without suffix.
    Returns: the files written, none if it was not measured.
    """
    if not len(curves):
        return []
    ok = runs.loc[(runs["status"] == "ok") & runs["group"].astype(str).isin(groups), "run_id"]
    table = curves[curves["epoch"].isna() & curves["run_id"].isin(ok)].dropna(subset=["eigenvalue", "density"])
    shown = [(setting, part) for setting, part in table.groupby("setting", sort=False)][:MOST]
    if not shown:
        return []
    style = figures_runs.looks(groups)
    with figures_runs.styled():
        figure, axes = figures_runs.panels(len(shown), 3.4, per_row=min(2, len(shown)))
        for ax, (setting, part) in zip(axes, shown, strict=True):
            density_panel(ax, part, style)
            figures_runs.panel_title(ax, "spectral_density", str(setting))
        figures_runs.legend(figure, style, lines=True)
        figures_runs.note(
            figure, "thin line: a run; thick line: mean over the runs of a group; the area under each is 1"
        )
        return figures_runs.save(figure, stem)


def density_panel(ax: Axes, part: DataFrame, style: Mapping[str, Look]) -> None:
    """Density against eigenvalue, both groups on one grid; where a run has no eigenvalues its density is 0."""
    grid = np.linspace(part["eigenvalue"].min(), part["eigenvalue"].max(), 2000)
    highest = 0.0
    for group, look in style.items():
        each = [run for _, run in part[part["group"].astype(str) == group].groupby("run_id", sort=False)]
        on_grid = []
        for run in each:
            x, y = (run[name].to_numpy(dtype=np.float64) for name in ("eigenvalue", "density"))
            ax.plot(x, y, color=look.color, lw=0.6, alpha=0.35)
            on_grid.append(np.interp(grid, x, y, left=0.0, right=0.0))
            highest = max(highest, float(y.max()))
        if on_grid:
            ax.plot(grid, np.mean(on_grid, 0), color=look.color, lw=1.7)
    ax.set(yscale="log", ylim=(highest * FLOOR, highest * 2), xlabel="eigenvalue", ylabel="density")
    figures_runs.scale(ax, "x", [*grid[[0, -1]], 0.0], 7)  # never log: some are negative
    ax.yaxis.set(major_locator=LogLocator(numticks=9), minor_locator=NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(figures_runs.tick))


VERDICTS = {"holds": "#2f855a", "broken": "#c53030", "unresolved": "#b7791f"}


def lines(table: DataFrame, stem: Path) -> list[Path]:
    """The loss along a line through a minimum and its images of equal outputs, without and with filter normalization.

    Args:
        table: tables/lines.csv, or an empty table.
        stem: path without suffix.
    Returns: the files written.
    """
    if not len(table):
        return []
    table = table[table["run_id"] == table["run_id"].iloc[0]]
    style = figures_runs.looks(list(dict.fromkeys(table["image"])))
    with figures_runs.styled():
        figure = Figure(figsize=(figures_runs.WIDTH, 3.4), layout="constrained")
        axes = figure.subplots(1, 2, sharey=True)
        for ax, (kind, title) in zip(axes, LINES.items(), strict=True):
            for name, own in table[table["normalization"] == kind].groupby("image", sort=False):
                top = own["hessian_top"].iloc[0]
                label = f"{name}, hessian_top {top:.3g}"
                wide, dash = (3.0, "-") if name == "minimum" else (1.3, DASHED if name != "smooth_sinh" else "-")
                ax.plot(own["x"], own["train_loss"], color=style[str(name)].color, lw=wide, ls=dash, label=label)
            ax.set(xlabel="x, steps along the direction", title=title, yscale="log")
        axes[0].set_ylabel("training loss (nats)")
        axes[1].legend(frameon=False, fontsize=7.5, loc="upper center")
        return figures_runs.save(figure, stem)


LINES = {"none": "one direction, as it is drawn", "filter": "each filter of it as long as the minimum's own"}


def invariance(table: DataFrame, stem: Path) -> list[Path]:
    """Heatmap of invariance.csv: metrics down, worst first, transforms across; the colour is the ratio's size.

    Args:
        table: invariance.csv, or an empty table.
        stem: path without suffix.
    Returns: the files written.
    """
    from landscape_cli.audit.table import TRANSFORMS, heading, worst_first

    table = table[table["transform"].isin(TRANSFORMS)] if len(table) else table
    if not len(table):
        return []
    table = table[table["run_id"] == table["run_id"].iloc[0]]
    table = table[table["verdict"] != "not applicable"]
    if not len(table):
        return []
    columns = list(dict.fromkeys(zip(table["transform"], table["strength"], strict=True)))
    names = worst_first(table)
    cells = {(r["metric"], r["setting"], r["transform"], r["strength"]): r for r in table.to_dict("records")}
    sizes = np.full((len(names), len(columns)), np.nan)
    with figures_runs.styled():
        figure = Figure(figsize=(figures_runs.WIDTH, 1.2 + 0.19 * len(names)), layout="constrained")
        ax = figure.subplots()
        for i, name in enumerate(names):
            for j, column in enumerate(columns):
                row = cells.get((*name, *column))
                if row is None or row["ratio"] != row["ratio"]:
                    continue
                sizes[i, j] = min(4.0, abs(log10(abs(row["ratio"])))) if row["ratio"] else 4.0
                word = "holds" if row["verdict"] == "holds" else f"{row['ratio']:.3g}"
                dark = sizes[i, j] > 2.4
                color = "white" if dark else VERDICTS.get(row["verdict"], figures_runs.INK)
                ax.text(j, i, word, ha="center", va="center", fontsize=6.5, color=color)
        ax.grid(False)
        image = ax.imshow(sizes, cmap="Oranges", vmin=0, vmax=4, aspect="auto")
        ax.set_xticks(range(len(columns)), [heading(*c) for c in columns])
        ax.set_yticks(range(len(names)), [f"{m} ({s})" if s else m for m, s in names], fontsize=6.5)
        ax.xaxis.tick_top()
        bar = figure.colorbar(image, ax=ax, shrink=0.5, aspect=40, pad=0.01)
        bar.set_label("|log10 (after / before)|")
        return figures_runs.save(figure, stem)
