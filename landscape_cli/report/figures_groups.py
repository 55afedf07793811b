"""Figures of runs and their groups: training, metrics by group and against the gap, regret by radius."""

from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullLocator
from pandas import DataFrame
from scipy import stats

from landscape_cli.report import plotting
from landscape_cli.report.plotting import DASHED, MUTED, WIDTH, Look
from landscape_cli.report.statistics import Values, at_radii, shorten, t_interval, usable
from landscape_cli.store.columns import OUTCOMES

MAX_PANELS = 28  # nobody would read more, and each takes a tenth of a second
RADIUS = {
    "regret_exact": "radius relative to the length of all parameters",
    "regret_kl_exact": "radius, square root of symmetrized KL (nats$^{0.5}$)",
}


def curve(record: Mapping[str, Any], x: str) -> tuple[Values, Values]:
    """Finite points (x, training loss) of a run's history; log axes cannot show the start at x = 0."""
    history = record.get("history") or {}
    pairs = zip(history.get(x) or [], history.get("train_loss") or [], strict=False)
    points = [(a, b) for a, b in pairs if a is not None and b is not None and a > 0 and isfinite(b)]
    data = np.array(points, dtype=np.float64).reshape(-1, 2)
    return data[:, 0], data[:, 1]


def training_curves(records: Sequence[Mapping[str, Any]], stem: Path) -> list[Path]:
    """Training loss against step and against epoch, a thin line a run.

    Args:
        records: run records (results/<experiment>/runs/*.json), in the order of the groups.
        stem: path without suffix.
    Returns: the files written, none if no run has a history.
    """
    drawn = [record for record in records if len(curve(record, "step")[0])]
    if not drawn:
        return []
    groups = list(dict.fromkeys(str(record["group"]) for record in drawn))
    style, sizes = plotting.looks(groups), [str(record["group"]) for record in drawn]
    with plotting.styled():
        figure = Figure(figsize=(WIDTH, 4.0), layout="constrained")
        axes = list(figure.subplots(1, 2, sharey=True))
        for ax, x, label in zip(axes, ("step", "epoch"), ("step (minibatch updates)", "epoch (passes)"), strict=True):
            curves = [curve(record, x) for record in drawn]
            for record, (at, loss) in zip(drawn, curves, strict=True):
                dashed = "-" if record.get("status") == "ok" else DASHED
                ax.plot(at, loss, lw=0.9, alpha=0.75, color=style[str(record["group"])].color, ls=dashed)
            plotting.scale(ax, "x", np.concatenate([at for at, _ in curves]), 7)
            ax.set_xlabel(label)
        plotting.scale(axes[0], "y", np.concatenate([curve(record, "step")[1] for record in drawn]), 7)
        axes[0].set_ylabel("training loss (nats)")
        odd = any(record.get("status") != "ok" for record in drawn)
        extra = [Line2D([], [], color=MUTED, ls=DASHED, label="dashed: did not end ok")] if odd else []
        plotting.legend(figure, {f"{g} ({sizes.count(g)})": style[g] for g in groups}, lines=True, extra=extra)
        return plotting.save(figure, stem)


def group_panel(ax: Axes, values: Sequence[Values], style: Sequence[Look], names: Sequence[str]) -> None:
    """Each group's values as dots, its mean and 95 % interval beside them."""
    ends: list[float] = []
    for i, (v, (color, marker)) in enumerate(zip(values, style, strict=True)):
        ax.scatter(i - 0.14 + plotting.jitter(len(v), 0.3), v, s=13, marker=marker, color=color, alpha=0.55, lw=0)
        mean, low, high = t_interval(v)
        if len(v) > 1:
            ax.vlines(i + 0.22, low, high, color=color, lw=1.8)
            ax.hlines(mean, i + 0.12, i + 0.32, color=color, lw=1.8)
        ends += [low, high]
    plotting.heights(ax, np.concatenate(list(values)), ends)
    fits = sum(len(name) + 2 for name in names) <= 30  # else the legend alone names them
    ax.set_xticks(range(len(names)), list(names) if fits else [""] * len(names), parse_math=False)
    ax.set_xlim(-0.6, len(names) - 0.4)
    ax.grid(axis="x", visible=False)


def metric_by_group(metrics: DataFrame, runs: DataFrame, groups: list[str], stem: Path) -> list[Path]:
    """One panel a (metric, setting): every run's value, and each group's mean with its 95 % interval.

    Args:
        metrics: metrics.csv.
        runs: runs.csv.
        groups: their names, left to right.
        stem: path without suffix.
    Returns: the files written, none if nothing was measured.
    """
    table = usable(metrics, runs)
    table = table[table["group"].isin(groups)]
    shown = plotting.by_setting(table)
    if not shown:
        return []
    style = plotting.looks(groups)
    with plotting.styled():
        kept = _one_of_each(shown)
        figure, axes = plotting.panels(len(kept))
        for ax, (metric, setting, part) in zip(axes, kept, strict=True):
            values = [part.loc[part["group"] == g, "value"].to_numpy(dtype=np.float64) for g in groups]
            group_panel(ax, values, list(style.values()), [shorten(g, 14) for g in groups])
            plotting.panel_title(ax, metric, setting)
        plotting.legend(figure, style)
        text = "dot: a run; bar: mean and 95 % interval of the group; vertical axis: the metric's value in its own unit"
        plotting.note(figure, text if len(shown) <= MAX_PANELS else f"{text}; {MAX_PANELS} of {len(shown)} panels")
        return plotting.save(figure, stem)


def _one_of_each(shown: list[tuple[str, str, DataFrame]]) -> list[tuple[str, str, DataFrame]]:
    """As many panels as fit, in order: the first setting of every metric before the second of any."""
    metrics = [metric for metric, _, _ in shown]
    nth = [metrics[:i].count(metric) for i, metric in enumerate(metrics)]
    kept = sorted(range(len(shown)), key=lambda i: nth[i])[:MAX_PANELS]
    return [shown[i] for i in sorted(kept)]


def _spearman(part: DataFrame) -> float:
    """Rank correlation of the columns `value` and `gap`; nan for fewer than 3 runs or a constant."""
    if len(part) < 3 or part["value"].nunique() == 1 or part["gap"].nunique() == 1:
        return float("nan")
    return float(stats.spearmanr(part["value"], part["gap"]).statistic)


def gap_panel(ax: Axes, part: DataFrame, style: Mapping[str, Look]) -> None:
    """A metric (horizontal) against the loss gap, a dot a run."""
    for group, (color, marker) in style.items():
        mine = part[part["group"] == group]
        ax.scatter(mine["value"], mine["gap"], s=16, marker=marker, color=color, alpha=0.7, lw=0)
    plotting.scale(ax, "x", part["value"], 3)
    plotting.scale(ax, "y", part["gap"], 4)


def metric_vs_gap(metrics: DataFrame, runs: DataFrame, stem: Path) -> list[Path]:
    """One panel a (metric, setting): its value against the loss gap, with Spearman's rank correlation over the runs.

    Args:
        metrics: metrics.csv; losses and accuracies, which are what is to be predicted, are left out.
        runs: runs.csv, for the gap.
        stem: path without suffix.
    Returns: the files written, none if nothing was measured or no run has a gap.
    """
    gap = dict(zip(runs["run_id"], runs["loss_gap"].astype(float), strict=True))
    table = usable(metrics, runs)
    table = table.assign(gap=table["run_id"].map(gap)).dropna(subset="gap")
    shown = plotting.by_setting(table[~table["metric"].isin(OUTCOMES)])
    if not shown:
        return []
    style = plotting.looks(list(dict.fromkeys(runs["group"].astype(str))))
    with plotting.styled():
        rho = [_spearman(part) for _, _, part in shown]
        best = sorted(range(len(shown)), key=lambda i: -abs(rho[i]) if isfinite(rho[i]) else 1.0)[:MAX_PANELS]
        figure, axes = plotting.panels(len(best))
        for ax, i in zip(axes, sorted(best), strict=True):
            metric, setting, part = shown[i]
            gap_panel(ax, part, style)
            said = f"ρ = {rho[i]:.2f}".replace("-", "\N{MINUS SIGN}") if isfinite(rho[i]) else ""
            plotting.panel_title(ax, metric, " · ".join(filter(None, [said, setting])))
        plotting.legend(figure, style)
        figure.supylabel("loss gap: test - train loss (nats)".replace(" - ", " \N{MINUS SIGN} "), fontsize=8.5)
        text = "dot: a run; horizontal axis: the metric's value in its own unit; ρ: Spearman's rank correlation"
        plotting.note(
            figure, text if len(shown) <= MAX_PANELS else f"{text}; the {MAX_PANELS} largest |ρ| of {len(shown)}"
        )
        return plotting.save(figure, stem)


def radius_panel(ax: Axes, part: DataFrame, style: Mapping[str, Look]) -> None:
    """Each group's mean against the radius, with its 95 % band; its mean at radius 0, the limit, as a dashed line."""
    points: list[Values] = []
    ends: list[Values] = []
    for group, (color, marker) in style.items():
        found = [(r, *t_interval(v.to_numpy())) for r, v in part[part["group"] == group].groupby("radius")["value"]]
        radius, mean, low, high = np.array(found, dtype=np.float64).reshape(-1, 4).T
        for limit in mean[radius == 0]:
            ax.axhline(limit, color=color, lw=1.1, ls=DASHED)
        on = radius > 0
        ax.fill_between(radius[on], low[on], high[on], color=color, alpha=0.16, lw=0)
        ax.plot(radius[on], mean[on], color=color, marker=marker, ms=3.5, lw=1.4)
        points, ends = [*points, mean], [*ends, low, high]
    plotting.heights(ax, np.concatenate(points), np.concatenate(ends).tolist())
    radii = part.loc[part["radius"] > 0, "radius"]
    plotting.scale(ax, "x", radii, 7)
    if not plotting.spans_decades(radii):  # too few decades for round ticks
        ax.set(xscale="log", xticks=[radii.min(), radii.max()])
        ax.xaxis.set(minor_locator=NullLocator(), major_formatter=FuncFormatter(plotting.tick))


def regret_by_radius(metrics: DataFrame, runs: DataFrame, groups: list[str], stem: Path) -> list[Path]:
    """One panel a regret at finite radius: how far one may walk before the linear formula misjudges it.

    Args:
        metrics: metrics.csv.
        runs: runs.csv.
        groups: their names.
        stem: path without suffix.
    Returns: the files written, none if no such metric was measured at two radii or more.
    """
    table = usable(metrics, runs)
    shown = plotting.by_setting(at_radii(table[table["group"].isin(groups)], RADIUS))[:MAX_PANELS]
    if not shown:
        return []
    style = plotting.looks(groups)
    with plotting.styled():
        figure, axes = plotting.panels(len(shown), 3.0, per_row=min(2, len(shown)))
        for ax, (metric, setting, part) in zip(axes, shown, strict=True):
            radius_panel(ax, part, style)
            ax.set(xlabel=RADIUS[metric], ylabel="regret per unit radius, R / ε")
            plotting.panel_title(ax, metric, setting)
        plotting.legend(
            figure, style, lines=True, extra=[Line2D([], [], color=MUTED, ls=DASHED, label="dashed: first order")]
        )
        plotting.note(
            figure, "line: mean over the runs of a group; band: its 95 % interval; dashed: the limit at radius 0"
        )
        return plotting.save(figure, stem)
