"""Figures of the audit: what transforms do to metrics, and the loss along lines before and after."""

from math import log10
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from pandas import DataFrame

from landscape_cli.audit.invariance import heading, worst_first
from landscape_cli.audit.transforms import TRANSFORMS
from landscape_cli.report import plotting
from landscape_cli.report.plotting import DASHED

VERDICTS = {"holds": "#2f855a", "broken": "#c53030", "unresolved": "#b7791f"}
LINES = {"none": "one direction, as it is drawn", "filter": "each filter of it as long as the minimum's own"}


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
    style = plotting.looks(list(dict.fromkeys(table["image"])))
    with plotting.styled():
        figure = Figure(figsize=(plotting.WIDTH, 3.4), layout="constrained")
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
        return plotting.save(figure, stem)


def invariance(table: DataFrame, stem: Path) -> list[Path]:
    """Heatmap of invariance.csv: metrics down, worst first, transforms across; the colour is the ratio's size.

    Args:
        table: invariance.csv, or an empty table.
        stem: path without suffix.
    Returns: the files written.
    """
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
    with plotting.styled():
        figure = Figure(figsize=(plotting.WIDTH, 1.2 + 0.19 * len(names)), layout="constrained")
        ax = figure.subplots()
        for i, name in enumerate(names):
            for j, column in enumerate(columns):
                row = cells.get((*name, *column))
                if row is None or row["ratio"] != row["ratio"]:
                    continue
                sizes[i, j] = min(4.0, abs(log10(abs(row["ratio"])))) if row["ratio"] else 4.0
                word = "holds" if row["verdict"] == "holds" else f"{row['ratio']:.3g}"
                dark = sizes[i, j] > 2.4
                color = "white" if dark else VERDICTS.get(row["verdict"], plotting.INK)
                ax.text(j, i, word, ha="center", va="center", fontsize=6.5, color=color)
        ax.grid(False)
        image = ax.imshow(sizes, cmap="Oranges", vmin=0, vmax=4, aspect="auto")
        ax.set_xticks(range(len(columns)), [heading(*c) for c in columns])
        ax.set_yticks(range(len(names)), [f"{m} ({s})" if s else m for m, s in names], fontsize=6.5)
        ax.xaxis.tick_top()
        bar = figure.colorbar(image, ax=ax, shrink=0.5, aspect=40, pad=0.01)
        bar.set_label("|log10 (after / before)|")
        return plotting.save(figure, stem)
