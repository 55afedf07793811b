"""Figures of surfaces: curves along lines and paths, contours of planes, from surfaces/*.csv."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from pandas import DataFrame

from landscape_cli import plots, vectors
from landscape_cli.plots import DASHED, Look
from landscape_cli.tables import read_table

Tables = Mapping[str, DataFrame]  # run id -> its surface
LEVELS = 14


def surfaces(folder: Path, runs: DataFrame, groups: list[str]) -> list[Path]:
    """All figures of surfaces/*.csv of an experiment's folder; the files written."""
    group_of = {} if not len(runs) else dict(zip(runs["run_id"], runs["group"], strict=True))
    drawn = []
    for kind in ("line", "path", "plane"):
        files = sorted((folder / "surfaces").glob(f"*-{kind}.csv"))
        tables = {path.name.removesuffix(f"-{kind}.csv"): read_table(path) for path in files}
        place = folder / "plots"
        if kind == "plane":
            drawn += contours(tables, group_of, place / "surface_plane")
            drawn += relief(tables, group_of, place / "surface_relief")
        else:
            ends = {
                run_id: str(vectors.facts(path.with_suffix(".safetensors")).get("to", ""))
                for run_id, path in zip(tables, files, strict=True)
            }
            drawn += curves(tables, group_of, groups, ends if kind == "path" else {}, place / f"surface_{kind}")
    return drawn


def curves(
    tables: Tables, group_of: Mapping[str, str], groups: list[str], ends: Mapping[str, str], stem: Path
) -> list[Path]:
    """Loss and accuracy along lines through minima, or from one minimum to another.

    Args:
        tables: surfaces/<run_id>-line.csv or -path.csv.
        group_of: run id -> group.
        groups: their names.
        ends: of paths, the run whose minimum is at x = 1; empty for lines.
        stem: path without suffix.
    Returns: the files written, none if there is no such surface.
    """
    if not tables:
        return []
    names = [g for g in groups if g in {group_of.get(r, r) for r in tables}] or list(tables)
    style = plots.looks(names)
    with plots.styled():
        figure, axes = plots.panels(2, 3.1, 2)
        for run_id, table in tables.items():
            look = style.get(group_of.get(run_id, run_id), next(iter(style.values())))
            for ax, quantity in zip(axes, ("loss", "accuracy"), strict=True):
                for split, dash in (("train", "-"), ("test", DASHED)):
                    _band(ax, table[table["split"] == split], quantity, look, dash)
        for ax, title in zip(axes, ("loss (nats)", "accuracy (share)"), strict=True):
            ax.set(title=title, xlabel=_from_to(ends, group_of) if ends else "x, steps along the direction")
        lowest = min(float(t["loss"].min()) for t in tables.values())
        if lowest > 0:
            axes[0].set_yscale("log")
        axes[1].set_ylim(-0.02, 1.02)
        if not ends:
            plots.legend(figure, style, lines=True)
        draws = max(int(t["draw"].max()) + 1 for t in tables.values())
        band = f"; mean and range over {draws} directions" if draws > 1 else ""
        plots.note(figure, f"solid: training set, dashed: test set{band}")
        return plots.save(figure, stem)


def _from_to(ends: Mapping[str, str], group_of: Mapping[str, str]) -> str:
    """What the ends of a path are: groups where those say it, else runs."""
    pairs = [(group_of.get(a, a), group_of.get(b, b)) for a, b in ends.items()]
    pairs = [pair if pair[0] != pair[1] else run for pair, run in zip(pairs, ends.items(), strict=True)]
    return "x, " + "; ".join(f"0: {a}, 1: {b}" for a, b in pairs)


def _band(ax: Axes, table: DataFrame, quantity: str, look: Look, dash: object) -> None:
    wide = table.pivot_table(index="x", columns="draw", values=quantity, aggfunc="mean")
    values = wide.to_numpy(dtype=np.float64)
    ax.plot(wide.index, values.mean(1), color=look.color, ls=dash, lw=1.4)
    if values.shape[1] > 1:
        ax.fill_between(wide.index, values.min(1), values.max(1), color=look.color, alpha=0.15, lw=0)


def contours(tables: Tables, group_of: Mapping[str, str], stem: Path) -> list[Path]:
    """Training loss on planes through minima, the first draw of each, on one scale of colours."""
    planes = {run_id: _plane(table) for run_id, table in tables.items()}
    finite = [z[np.isfinite(z) & (z > 0)] for _, _, z in planes.values()]
    if not planes or not any(map(len, finite)):
        return []
    every = np.concatenate(finite)
    levels = np.geomspace(every.min(), every.max() * 1.0001, LEVELS)
    with plots.styled():
        figure, axes = plots.panels(len(planes), 3.3, min(3, max(2, len(planes))))
        for ax, (run_id, (x, y, z)) in zip(axes, planes.items(), strict=True):
            z = np.ma.masked_invalid(z)
            image = ax.contourf(x, y, z, levels=levels, norm=LogNorm(), cmap="viridis")
            lines = ax.contour(x, y, z, levels=levels[::2], colors="white", linewidths=0.5, norm=LogNorm())
            ax.clabel(lines, fmt=_short, fontsize=6)
            ax.plot(0, 0, marker="+", color="white", ms=7)
            ax.set(xlabel="x", ylabel="y", aspect="equal")
            plots.panel_title(ax, group_of.get(run_id, run_id), run_id)
        bar = figure.colorbar(image, ax=axes, shrink=0.8, pad=0.02, format=FuncFormatter(_short))
        bar.set_label("training loss (nats), log scale")
        return plots.save(figure, stem)


def relief(tables: Tables, group_of: Mapping[str, str], stem: Path) -> list[Path]:
    """The same planes from the side, the logarithm of the loss as height."""
    planes = {run_id: _plane(table) for run_id, table in tables.items()}
    heights = {r: np.log10(np.where(z > 0, z, np.nan)) for r, (_, _, z) in planes.items()}
    if not planes or not any(np.isfinite(h).any() for h in heights.values()):
        return []
    low, high = (f([f(h[np.isfinite(h)]) for h in heights.values()]) for f in (np.min, np.max))
    with plots.styled():
        per_row = min(3, len(planes))
        figure = Figure(figsize=(plots.WIDTH, 3.4 * -(-len(planes) // per_row)), layout="constrained")
        for i, (run_id, (x, y, _)) in enumerate(planes.items()):
            ax = figure.add_subplot(-(-len(planes) // per_row), per_row, i + 1, projection="3d")
            X, Y = np.meshgrid(x, y)
            ax.plot_surface(X, Y, heights[run_id], cmap="viridis", vmin=low, vmax=high, rcount=60, ccount=60, lw=0)
            ax.set(xlabel="x", ylabel="y", zlabel="log10 loss", zlim=(low, high))
            ax.locator_params(nbins=5)
            ax.set_title(group_of.get(run_id, run_id), fontsize=9)
        return plots.save(figure, stem)


def _short(value: float, _: object = None) -> str:
    return plots.tick(float(f"{value:.2g}"))


def _plane(table: DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    own = table[(table["split"] == "train") & (table["draw"] == 0)]
    wide = own.pivot_table(index="y", columns="x", values="loss", dropna=False)
    return (
        wide.columns.to_numpy(dtype=np.float64),
        wide.index.to_numpy(dtype=np.float64),
        wide.to_numpy(dtype=np.float64),
    )
