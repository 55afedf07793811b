"""Figures of curves: what was measured along training, and the density of the Hessian's eigenvalues."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from math import log10
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator
from pandas import DataFrame

from landscape_cli import config
from landscape_cli.registry import REGISTRY
from landscape_cli.registry.errors import Fault
from landscape_cli.report import plotting
from landscape_cli.report.inputs import Inputs
from landscape_cli.report.plotting import DASHED, MUTED, Look
from landscape_cli.report.statistics import along, told
from landscape_cli.training import constant_rate

MOST = 6  # panels: as many metrics as one can follow at once
Panel = tuple[str, str, DataFrame]  # metric, setting, rows
FLOOR = 1e-7  # of the largest density: a single eigenvalue among millions does not show


def epochs(ax: Axes, values: Iterable[float]) -> None:
    """Scale the horizontal axis: log, with 0 at its own place, where most snapshots lie in the first fifth."""
    at = np.unique(np.asarray(list(values), dtype=np.float64))
    later = at[at > 0]
    ax.set_xlabel("epoch (passes)")
    if len(later) == 0 or later.max() < 30 * later.min() or np.median(later) > later.max() / 5:
        plotting.scale(ax, "x", [0, *at], 6)
        return
    first = 10.0 ** np.floor(log10(later.min()))
    if at[0] > 0:
        ax.set_xscale("log")
    else:
        ax.set_xscale("symlog", linthresh=first, linscale=0.5)
        ax.set_xlim(-0.2 * first, 1.3 * later.max())
    ticks = [first * 10**k for k in range(12) if first * 10**k <= later.max() * 1.2]
    ax.xaxis.set(major_locator=FixedLocator([0.0] * bool(at[0] == 0) + ticks), minor_locator=NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(plotting.tick))


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
    shown = ordered(plotting.by_setting(table[table["group"].isin(groups)]))
    if not shown:
        return []
    style, drawn = plotting.looks(groups), min(len(shown), MOST)
    with plotting.styled():
        per_row = 3 if drawn > 4 else min(drawn, 2)
        figure, axes = plotting.panels(drawn, 3.2 if drawn < 3 else 2.6, per_row)
        formulas: list[str] = []
        for ax, (metric, setting, part) in zip(axes, shown, strict=False):
            for _, run in part.groupby("run_id", sort=False):
                line(ax, run, style[run["group"].iloc[0]])
            tops = top_edges(metric, setting, part, edges)
            plotting.heights(ax, np.array([*part["value"], *(edge for edge, _ in tops)]), [])
            epochs(ax, part["epoch"])
            dashes(ax, tops, style)
            formulas += [formula for _, formula in tops]
            plotting.panel_title(ax, metric, setting)
        dashed = [Line2D([], [], color=MUTED, ls=DASHED, label=f"dashed: {f}") for f in dict.fromkeys(formulas)]
        plotting.legend(figure, style, lines=True, extra=dashed)
        text = "line: a run; dot: its minimum; vertical axis: the metric's value in its own unit"
        plotting.note(figure, text if len(shown) <= MOST else f"{text}; first {MOST} of {len(shown)} panels")
        return plotting.save(figure, stem)


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
    limit = part["value"].max() * (30 if plotting.spans_decades(part["value"]) else 3)
    for group in dict.fromkeys(part["group"]):
        for edge, formula in edges.get(group, {}).items():
            if edge <= limit:
                found.setdefault((edge, formula), []).append(group)
    return found


def edges(inputs: Inputs) -> dict[str, dict[float, str]]:
    """Group -> the largest curvature at which its gradient descent is stable on a quadratic -> how it is computed.

    2 / lr; with momentum mu 2 (1 + mu) / lr, and 2 (1 + mu) / ((1 + 2 mu) lr) for Nesterov's (Cohen et al. 2021,
    section 2 and appendix B). One a learning rate; none for other optimizers or rates that change.
    """
    found: dict[str, dict[float, str]] = {}
    with suppress(Fault):  # a report does without
        tree = config.read(str(inputs.folder / "experiment.yaml"))
        trainings = config.trainings_of(tree, [record["swept"] for record in inputs.records])
        for record, training in zip(inputs.records, trainings, strict=True):
            lr = constant_rate(training) if training else None
            if training and lr and training.rule == "sgd" and not training.ascent:
                edge, formula = _edge(lr, **REGISTRY["optimizer"]["sgd"].given(training))
                found.setdefault(str(record["group"]), {})[edge] = formula
    return found


def _edge(lr: float, *, momentum: float, nesterov: bool, **_: float) -> tuple[float, str]:
    factor = (1 + momentum) / (1 + 2 * momentum) if nesterov else 1 + momentum
    formula = "2(1+μ)/((1+2μ)lr)" if nesterov else "2(1+μ)/lr" if momentum else "2/lr"
    return 2 * factor / lr, formula


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
            text, at = f"{formula} = {plotting.tick(float(f'{edge:.3g}'))}", ("axes fraction", "data")
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
    style = plotting.looks(groups)
    with plotting.styled():
        figure, axes = plotting.panels(len(shown), 3.4, per_row=min(2, len(shown)))
        for ax, (setting, part) in zip(axes, shown, strict=True):
            density_panel(ax, part, style)
            plotting.panel_title(ax, "spectral_density", str(setting))
        plotting.legend(figure, style, lines=True)
        plotting.note(figure, "thin line: a run; thick line: mean over the runs of a group; the area under each is 1")
        return plotting.save(figure, stem)


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
    plotting.scale(ax, "x", [*grid[[0, -1]], 0.0], 7)  # never log: some are negative
    ax.yaxis.set(major_locator=LogLocator(numticks=9), minor_locator=NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(plotting.tick))
