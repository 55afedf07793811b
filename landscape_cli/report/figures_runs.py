"""Figures from the tables: PNG and SVG, the same bytes for the same tables, without pyplot's global state."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from math import ceil, isfinite
from pathlib import Path
from typing import Any, Literal, NamedTuple

import matplotlib as mpl
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from pandas import DataFrame
from scipy import stats

from landscape_cli.report.statistics import Values, at_radii, shorten, t_interval, usable
from landscape_cli.store.columns import OUTCOMES
from landscape_cli.store.files import write_many

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe & Ito 2008: colour-blind safe
MARKERS = "osD^vP"  # a second code beside colour
INK, MUTED, RULE = "#1f2933", "#616e7c", "#e4e7eb"
STYLE = {
    "svg.hashsalt": "landscape",  # else element ids are random
    "font.size": 8.5,
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same text on any machine
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#9aa5b1",
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titley": 1.0,  # not sought anew at each drawing
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
}
DPI = 150
WIDTH = 10.0  # inches, a report's width
MAX_PANELS = 28  # nobody would read more, and each takes a tenth of a second
RADIUS = {
    "regret_exact": "radius relative to the length of all parameters",
    "regret_kl_exact": "radius, square root of symmetrized KL (nats$^{0.5}$)",
}
DASHED = (0, (3, 2))


class Look(NamedTuple):
    """How a group is drawn."""

    color: str
    marker: str


def looks(groups: Sequence[str]) -> dict[str, Look]:
    """Colour and marker of each group; more groups than the palette has are taken as a sweep, dark to light."""
    if len(groups) <= len(PALETTE):
        colors = list(PALETTE[: len(groups)])
    else:
        shades = mpl.colormaps["viridis"](np.linspace(0, 0.92, len(groups)))
        colors = [mpl.colors.to_hex(shade) for shade in shades]
    return {g: Look(c, MARKERS[i % len(MARKERS)]) for i, (g, c) in enumerate(zip(groups, colors, strict=True))}


def tick(value: float, _: object = None) -> str:
    """A tick's label: 0.002, 15, 3e-7."""
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.6g}".replace("-", "\N{MINUS SIGN}")
    mantissa, exponent = f"{value:.3e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def spans_decades(values: Iterable[float] | Values) -> bool:
    """Whether a log axis suits: all values positive, the largest 30 times the smallest."""
    v = np.asarray(list(values), dtype=np.float64)
    return len(v) > 0 and bool(v.min() > 0 and v.max() >= 30 * v.min())


def scale(ax: Axes, which: Literal["x", "y"], values: Iterable[float] | Values, ticks: int = 5) -> None:
    """Set an axis to log or linear by its data, with few and plain tick labels."""
    v = np.asarray(list(values), dtype=np.float64)
    axis = ax.xaxis if which == "x" else ax.yaxis
    if spans_decades(v):
        ax.set(**{f"{which}scale": "log"})
        narrow = v.max() < 300 * v.min()
        axis.set_major_locator(LogLocator(subs=(1.0, 3.0) if narrow else (1.0,), numticks=ticks + 1))
        axis.set_minor_locator(NullLocator())
    else:
        axis.set_major_locator(MaxNLocator(ticks, steps=[1, 2, 2.5, 5, 10], min_n_ticks=3))
    axis.set_major_formatter(FuncFormatter(tick))


def heights(ax: Axes, values: Values, ends: Sequence[float]) -> None:
    """Scale the vertical axis; where it is log, an end of an interval below 0 runs out of the panel."""
    scale(ax, "y", values)
    if spans_decades(values):
        seen = [*values, *(end for end in ends if isfinite(end) and end > 0)]
        ax.set_ylim(min(seen) / 1.4, max(seen) * 1.4)


def jitter(n: int, width: float) -> Values:
    """(n,) offsets in [-width/2, width/2], spread evenly and the same every time (golden-ratio sequence)."""
    return np.asarray(((np.arange(n) * 0.6180339887 + 0.5) % 1 - 0.5) * width, dtype=np.float64)


def legend(figure: Figure, entries: Mapping[str, Look], lines: bool = False, extra: Sequence[Line2D] = ()) -> None:
    """One legend above the panels, each name in its group's colour."""
    names = [shorten(name, 40) for name in entries]
    handles = [
        Line2D([], [], color=c, lw=2) if lines else Line2D([], [], color=c, marker=m, ls="", ms=5)
        for c, m in entries.values()
    ]
    handles += extra
    if not handles:
        return
    widest = max([len(name) for name in names] + [len(str(line.get_label())) for line in extra])
    per_row = max(1, int(figure.get_figwidth() * 11 / (widest + 6)))  # about 11 characters of this size an inch
    labels = ["x"] * len(names) + [str(line.get_label()) for line in extra]
    box = figure.legend(handles, labels, loc="outside upper left", ncols=min(len(handles), per_row), frameon=False)
    for text, name, look in zip(box.get_texts(), names, entries.values(), strict=False):
        text.set(text=name, parse_math=False, color=look.color, fontweight="bold")


def panel_title(ax: Axes, metric: str, detail: str) -> None:
    """Two lines above a panel: the metric, and below it in grey what tells it apart."""
    ax.set_title(shorten(detail, 36) or " ", loc="left", fontsize=7, color=MUTED, pad=4, parse_math=False)
    ax.annotate(
        shorten(metric, 28),
        (0, 1),
        xytext=(0, 14),
        xycoords="axes fraction",
        textcoords="offset points",
        fontweight="bold",
        parse_math=False,
    )


def panels(count: int, height: float = 1.95, per_row: int = 4) -> tuple[Figure, list[Axes]]:
    """A figure of small multiples, and its axes in reading order; unused ones are removed."""
    cols = min(per_row, count)
    rows = ceil(count / cols)
    figure = Figure(figsize=(max(4.0, WIDTH * cols / per_row), rows * height + 0.5), layout="constrained")
    axes = list(figure.subplots(rows, cols, squeeze=False).flat)
    for ax in axes[count:]:
        ax.remove()
    return figure, axes[:count]


def by_setting(table: DataFrame) -> list[tuple[str, str, DataFrame]]:
    """(metric, setting, its rows), in order of appearance."""
    keys = dict.fromkeys(zip(table["metric"], table["setting"], strict=True))
    return [(m, s, table[(table["metric"] == m) & (table["setting"] == s)]) for m, s in keys]


def note(figure: Figure, text: str) -> None:
    """A grey line below all panels."""
    figure.supxlabel(text, fontsize=7.5, color=MUTED, x=0.01, ha="left")


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write stem.png and stem.svg, each whole or not at all, with no date and no version inside.

    Args:
        figure: made and saved under the same style.
        stem: path without suffix; its folder exists.
    Returns: the two paths.
    """
    files: dict[Path, bytes] = {}
    FigureCanvasAgg(figure)
    figure.set_dpi(DPI)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a name the font lacks: boxes
        if engine := figure.get_layout_engine():
            engine.execute(figure)
    figure.set_layout_engine("none")  # laid out once, for both files: half the time
    for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
        data, path = BytesIO(), stem.parent / f"{stem.name}.{kind}"
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a name the font lacks: boxes
            figure.savefig(data, format=kind, dpi=DPI, metadata=metadata)
        files[path] = data.getvalue()
    write_many(files.items())
    return list(files)


def styled() -> Any:
    """Our style on matplotlib's defaults, whatever the user's matplotlibrc says; restored on leaving."""
    return matplotlib.style.context(["default", STYLE])


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
    style, sizes = looks(groups), [str(record["group"]) for record in drawn]
    with styled():
        figure = Figure(figsize=(WIDTH, 4.0), layout="constrained")
        axes = list(figure.subplots(1, 2, sharey=True))
        for ax, x, label in zip(axes, ("step", "epoch"), ("step (minibatch updates)", "epoch (passes)"), strict=True):
            curves = [curve(record, x) for record in drawn]
            for record, (at, loss) in zip(drawn, curves, strict=True):
                dashed = "-" if record.get("status") == "ok" else DASHED
                ax.plot(at, loss, lw=0.9, alpha=0.75, color=style[str(record["group"])].color, ls=dashed)
            scale(ax, "x", np.concatenate([at for at, _ in curves]), 7)
            ax.set_xlabel(label)
        scale(axes[0], "y", np.concatenate([curve(record, "step")[1] for record in drawn]), 7)
        axes[0].set_ylabel("training loss (nats)")
        odd = any(record.get("status") != "ok" for record in drawn)
        extra = [Line2D([], [], color=MUTED, ls=DASHED, label="dashed: did not end ok")] if odd else []
        legend(figure, {f"{g} ({sizes.count(g)})": style[g] for g in groups}, lines=True, extra=extra)
        return save(figure, stem)


def group_panel(ax: Axes, values: Sequence[Values], style: Sequence[Look], names: Sequence[str]) -> None:
    """Each group's values as dots, its mean and 95 % interval beside them."""
    ends: list[float] = []
    for i, (v, (color, marker)) in enumerate(zip(values, style, strict=True)):
        ax.scatter(i - 0.14 + jitter(len(v), 0.3), v, s=13, marker=marker, color=color, alpha=0.55, lw=0)
        mean, low, high = t_interval(v)
        if len(v) > 1:
            ax.vlines(i + 0.22, low, high, color=color, lw=1.8)
            ax.hlines(mean, i + 0.12, i + 0.32, color=color, lw=1.8)
        ends += [low, high]
    heights(ax, np.concatenate(list(values)), ends)
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
    shown = by_setting(table)
    if not shown:
        return []
    style = looks(groups)
    with styled():
        kept = _one_of_each(shown)
        figure, axes = panels(len(kept))
        for ax, (metric, setting, part) in zip(axes, kept, strict=True):
            values = [part.loc[part["group"] == g, "value"].to_numpy(dtype=np.float64) for g in groups]
            group_panel(ax, values, list(style.values()), [shorten(g, 14) for g in groups])
            panel_title(ax, metric, setting)
        legend(figure, style)
        text = "dot: a run; bar: mean and 95 % interval of the group; vertical axis: the metric's value in its own unit"
        note(figure, text if len(shown) <= MAX_PANELS else f"{text}; {MAX_PANELS} of {len(shown)} panels")
        return save(figure, stem)


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
    scale(ax, "x", part["value"], 3)
    scale(ax, "y", part["gap"], 4)


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
    shown = by_setting(table[~table["metric"].isin(OUTCOMES)])
    if not shown:
        return []
    style = looks(list(dict.fromkeys(runs["group"].astype(str))))
    with styled():
        rho = [_spearman(part) for _, _, part in shown]
        best = sorted(range(len(shown)), key=lambda i: -abs(rho[i]) if isfinite(rho[i]) else 1.0)[:MAX_PANELS]
        figure, axes = panels(len(best))
        for ax, i in zip(axes, sorted(best), strict=True):
            metric, setting, part = shown[i]
            gap_panel(ax, part, style)
            said = f"ρ = {rho[i]:.2f}".replace("-", "\N{MINUS SIGN}") if isfinite(rho[i]) else ""
            panel_title(ax, metric, " · ".join(filter(None, [said, setting])))
        legend(figure, style)
        figure.supylabel("loss gap: test - train loss (nats)".replace(" - ", " \N{MINUS SIGN} "), fontsize=8.5)
        text = "dot: a run; horizontal axis: the metric's value in its own unit; ρ: Spearman's rank correlation"
        note(figure, text if len(shown) <= MAX_PANELS else f"{text}; the {MAX_PANELS} largest |ρ| of {len(shown)}")
        return save(figure, stem)


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
    heights(ax, np.concatenate(points), np.concatenate(ends).tolist())
    radii = part.loc[part["radius"] > 0, "radius"]
    scale(ax, "x", radii, 7)
    if not spans_decades(radii):  # too few decades for round ticks
        ax.set(xscale="log", xticks=[radii.min(), radii.max()])
        ax.xaxis.set(minor_locator=NullLocator(), major_formatter=FuncFormatter(tick))


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
    shown = by_setting(at_radii(table[table["group"].isin(groups)], RADIUS))[:MAX_PANELS]
    if not shown:
        return []
    style = looks(groups)
    with styled():
        figure, axes = panels(len(shown), 3.0, per_row=min(2, len(shown)))
        for ax, (metric, setting, part) in zip(axes, shown, strict=True):
            radius_panel(ax, part, style)
            ax.set(xlabel=RADIUS[metric], ylabel="regret per unit radius, R / ε")
            panel_title(ax, metric, setting)
        legend(figure, style, lines=True, extra=[Line2D([], [], color=MUTED, ls=DASHED, label="dashed: first order")])
        note(figure, "line: mean over the runs of a group; band: its 95 % interval; dashed: the limit at radius 0")
        return save(figure, stem)
