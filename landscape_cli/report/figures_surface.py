"""Figures of surfaces: curves along lines and paths, contours of planes, from surfaces/*.csv."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter
from pandas import DataFrame, Series

from landscape_cli.registry.errors import Fault
from landscape_cli.report import figures_runs
from landscape_cli.report.figures_runs import DASHED, Look
from landscape_cli.store import directions
from landscape_cli.store.files import write_many
from landscape_cli.store.tables import read_table

Tables = Mapping[str, DataFrame]  # run id -> its surface
LEVELS = 14
NEEDED = {"": ["draw", "x", "y", "split", "loss", "accuracy"], "snapshots": ["epoch", "x", "y", "split"]}
NEEDED |= {"curvature": ["draw", "x", "y", "lambda_max", "lambda_min"]}


def surfaces(folder: Path, runs: DataFrame, groups: list[str]) -> list[Path]:
    """All figures of surfaces/*.csv of an experiment's folder; the files written."""
    group_of = {} if not len(runs) else dict(zip(runs["run_id"], runs["group"], strict=True))
    drawn = []
    place, maps, what = folder / "plots", dict[str, DataFrame](), dict[str, tuple[str, str]]()
    order = list(group_of)
    for kind in ("line", "path", "plane", "trajectory", "eigen"):
        tables = _read(folder, kind, order)
        facts = {r: directions.facts(folder / "surfaces" / f"{r}-{kind}.safetensors") for r in tables}
        bends = _read(folder, f"{kind}-curvature", order)
        if kind in ("line", "path"):
            drawn += bending(bends, group_of, groups, place / f"surface_{kind}_curvature")
            ends = {run_id: str(known.get("to", "")) for run_id, known in facts.items()}
            if kind == "path":
                tables = {run_id: table for run_id, table in tables.items() if ends[run_id] in group_of}
                ends = {run_id: ends[run_id] for run_id in tables}
            drawn += curves(tables, group_of, groups, ends if kind == "path" else {}, place / f"surface_{kind}")
            continue
        labels = {run_id: _axes(known) for run_id, known in facts.items()}
        ways = _read(folder, f"{kind}-snapshots", order)
        drawn += contours(tables, group_of, place / f"surface_{kind}", labels, ways)
        maps |= {f"{r} {kind}": t for r, t in bends.items()}
        what |= {f"{r} {kind}": axes for r, axes in labels.items()}
        if kind == "plane":
            drawn += relief(tables, group_of, place / "surface_relief")
            drawn += interactive(tables, group_of, place / "surface_relief.html")
    return drawn + curvature_maps(maps, group_of, what, place / "surface_curvature")


def _read(folder: Path, what: str, order: list[str]) -> dict[str, DataFrame]:
    """Run id -> surfaces/<run_id>-<what>.csv of the runs in `order`, in that order; others are of other settings."""
    paths = {run_id: folder / "surfaces" / f"{run_id}-{what}.csv" for run_id in order}
    tables = {run_id: read_table(path) for run_id, path in paths.items() if path.is_file()}
    due = NEEDED.get(what.partition("-")[2], NEEDED[""])
    for run_id, table in tables.items():
        if lacking := [column for column in due if column not in table]:
            raise Fault(
                f"{paths[run_id]}: has no column {', '.join(lacking)}: make it again with the command that wrote it"
            )
    return tables


def _axes(facts: Mapping[str, Any]) -> tuple[str, str]:
    """What x and y of a plane are."""
    if shares := facts.get("explained_variance"):
        return f"1st component ({shares[0]:.1%} of the variance)", f"2nd component ({shares[1]:.1%})"
    if values := facts.get("eigenvalues"):
        return f"1st eigenvector (eigenvalue {values[0]:.3g})", f"2nd eigenvector ({values[1]:.3g})"
    return "x", "y"


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
    style = figures_runs.looks(names)
    with figures_runs.styled():
        figure, axes = figures_runs.panels(2, 3.1, 2)
        for run_id, table in tables.items():
            look = style.get(group_of.get(run_id, run_id), next(iter(style.values())))
            for ax, quantity in zip(axes, ("loss", "accuracy"), strict=True):
                for split, dash in (("train", "-"), ("test", DASHED)):
                    _band(ax, table[table["split"] == split], quantity, look, dash)
        for ax, title in zip(axes, ("loss (nats)", "accuracy (share)"), strict=True):
            ax.set(title=title, xlabel=_from_to(ends, group_of) if ends else "x, steps along the direction")
        lowest = min(float(t["loss"].min()) for t in tables.values())
        highest = max(float(t["loss"].max()) for t in tables.values())
        if highest > 10 * lowest > 0:
            axes[0].set_yscale("log")
        axes[1].set_ylim(-0.02, 1.02)
        if not ends:
            figures_runs.legend(figure, style, lines=True)
        draws = max(int(t["draw"].max()) + 1 for t in tables.values())
        band = f"; mean and range over {draws} directions" if draws > 1 else ""
        figures_runs.note(figure, f"solid: training set, dashed: test set{band}")
        return figures_runs.save(figure, stem)


def _from_to(ends: Mapping[str, str], group_of: Mapping[str, str]) -> str:
    """What the ends of a path are: groups where those say it, else runs."""
    pairs = [(group_of.get(a, a), group_of.get(b, b)) for a, b in ends.items()]
    pairs = [pair if pair[0] != pair[1] else run for pair, run in zip(pairs, ends.items(), strict=True)]
    return "x, " + "; ".join(f"0: {a}, 1: {b}" for a, b in pairs)


def _band(ax: Axes, table: DataFrame, quantity: str, look: Look, dash: object) -> None:
    wide = table.pivot_table(index="x", columns="draw", values=quantity, dropna=False)
    values = wide.to_numpy(dtype=np.float64)
    ax.plot(wide.index, values.mean(1), color=look.color, ls=dash, lw=1.4)
    if values.shape[1] > 1:
        ax.fill_between(wide.index, values.min(1), values.max(1), color=look.color, alpha=0.15, lw=0)


def contours(
    tables: Tables,
    group_of: Mapping[str, str],
    stem: Path,
    labels: Mapping[str, tuple[str, str]] | None = None,
    ways: Tables | None = None,
) -> list[Path]:
    """Training loss on planes through minima, the first draw of each, on one scale of colours.

    Args:
        tables: surfaces/<run_id>-<kind>.csv.
        group_of: run id -> group.
        stem: path without suffix.
        labels: run id -> what x and y are.
        ways: run id -> its snapshots on the plane.
    Returns: the files written.
    """
    planes = {run_id: _plane(table) for run_id, table in tables.items()}
    finite = [z[np.isfinite(z) & (z > 0)] for _, _, z in planes.values()]
    if not planes or not any(map(len, finite)):
        return []
    every = np.concatenate(finite)
    levels = np.geomspace(every.min(), every.max() * 1.0001, LEVELS)
    with figures_runs.styled():
        figure, axes = figures_runs.panels(len(planes), 3.3, _per_row(planes))
        for ax, (run_id, (x, y, z)) in zip(axes, planes.items(), strict=True):
            z = np.ma.masked_invalid(np.maximum(z, every.min()))  # a loss of 0 has no logarithm
            image = ax.contourf(x, y, z, levels=levels, norm=LogNorm(), cmap="viridis")
            lines = ax.contour(x, y, z, levels=levels[::2], colors="white", linewidths=0.5, norm=LogNorm())
            ax.clabel(lines, fmt=_short, fontsize=6)
            ax.plot(0, 0, marker="+", color="white", ms=7)
            xlabel, ylabel = (labels or {}).get(run_id, ("x", "y"))
            ax.set(xlabel=xlabel, ylabel=ylabel, aspect="auto" if ways else "equal")
            if ways and run_id in ways:
                _way(ax, ways[run_id])
            figures_runs.panel_title(ax, group_of.get(run_id, run_id), run_id)
        bar = figure.colorbar(image, ax=axes, shrink=0.8, pad=0.02, format=FuncFormatter(_short))
        bar.set_label("training loss (nats), log scale")
        return figures_runs.save(figure, stem)


def _way(ax: Axes, table: DataFrame) -> None:
    """A run's snapshots on the plane, their epochs beside them where there is room."""
    own = table[table["split"] == "train"]
    ax.plot(own["x"], own["y"], color="crimson", marker="o", ms=2.5, lw=1)
    extent, last = np.array([np.ptp(ax.get_xlim()), np.ptp(ax.get_ylim())]), np.full(2, np.inf)
    for epoch, x, y in zip(own["epoch"], own["x"], own["y"], strict=True):
        if np.linalg.norm((np.array([x, y]) - last) / extent) > 0.06:
            text = ax.annotate(
                f"{epoch:.0f}", (x, y), color="crimson", fontsize=7, xytext=(3, 3), textcoords="offset points"
            )
            text.set_path_effects([withStroke(linewidth=1.5, foreground="white")])
            last = np.array([x, y])


def curvature_maps(
    tables: Tables, group_of: Mapping[str, str], labels: Mapping[str, tuple[str, str]], stem: Path
) -> list[Path]:
    """|lambda_min / lambda_max| of the Hessian on planes: near 0 the loss looks convex (Li et al. 2018, section 6).

    Args:
        tables: "<run_id> <kind>" -> surfaces/<run_id>-<kind>-curvature.csv.
        group_of: run id -> group.
        labels: "<run_id> <kind>" -> what x and y are.
        stem: path without suffix.
    Returns: the files written, none if there is no such surface.
    """
    planes = {key: _plane(table.assign(split="train", ratio=_ratio(table)), "ratio") for key, table in tables.items()}
    if not any(np.isfinite(z).any() for _, _, z in planes.values()):
        return []
    with figures_runs.styled():
        figure, axes = figures_runs.panels(len(planes), 3.3, _per_row(planes))
        for ax, (key, (x, y, z)) in zip(axes, planes.items(), strict=True):
            image = ax.pcolormesh(x, y, np.ma.masked_invalid(z), vmin=0, vmax=1, cmap="viridis", shading="nearest")
            ax.plot(0, 0, marker="+", color="white", ms=7)
            xlabel, ylabel = labels.get(key, ("x", "y"))
            ax.locator_params(nbins=6)
            ax.set(xlabel=xlabel, ylabel=ylabel, aspect="auto" if key.endswith("trajectory") else "equal")
            run_id, kind = key.split(" ")
            figures_runs.panel_title(ax, f"{group_of.get(run_id, run_id)}, {kind}", run_id)
        bar = figure.colorbar(image, ax=axes, shrink=0.8, pad=0.02, extend="max")
        bar.set_label("|λ_min / λ_max| of the Hessian; 0: convex")
        return figures_runs.save(figure, stem)


def bending(tables: Tables, group_of: Mapping[str, str], groups: list[str], stem: Path) -> list[Path]:
    """Largest and smallest eigenvalue of the Hessian along lines and paths, the mean over the directions.

    Args:
        tables: surfaces/<run_id>-<kind>-curvature.csv.
        group_of: run id -> group.
        groups: their names.
        stem: path without suffix.
    Returns: the files written, none if there is no such surface.
    """
    if not tables:
        return []
    style = figures_runs.looks([g for g in groups if g in {group_of[r] for r in tables}])
    with figures_runs.styled():
        figure, axes = figures_runs.panels(2, 3.1, 2)
        for run_id, table in tables.items():
            for ax, quantity in zip(axes, ("lambda_max", "lambda_min"), strict=True):
                _band(ax, table, quantity, style[group_of[run_id]], "-")
        for ax, title in zip(axes, ("λ_max of the Hessian", "λ_min of the Hessian"), strict=True):
            ax.set(title=title, xlabel="x, steps along the direction")
        figures_runs.legend(figure, style, lines=True)
        return figures_runs.save(figure, stem)


def _ratio(table: DataFrame) -> Series:
    """|lambda_min / lambda_max|, 0 where the smallest eigenvalue is not negative."""
    top = table["lambda_max"].where(table["lambda_max"] > 0)
    ratio: Series = -table["lambda_min"].clip(upper=0) / top
    return ratio


def relief(tables: Tables, group_of: Mapping[str, str], stem: Path) -> list[Path]:
    """The same planes from the side, the logarithm of the loss as height."""
    planes = {run_id: _plane(table) for run_id, table in tables.items()}
    heights = {r: np.log10(np.where(z > 0, z, np.nan)) for r, (_, _, z) in planes.items()}
    if not planes or not any(np.isfinite(h).any() for h in heights.values()):
        return []
    low, high = (f([f(h[np.isfinite(h)]) for h in heights.values()]) for f in (np.min, np.max))
    with figures_runs.styled():
        per_row = min(len(planes), _per_row(planes))
        figure = Figure(figsize=(figures_runs.WIDTH, 3.4 * -(-len(planes) // per_row)), layout="constrained")
        for i, (run_id, (x, y, _)) in enumerate(planes.items()):
            ax = figure.add_subplot(-(-len(planes) // per_row), per_row, i + 1, projection="3d")
            X, Y = np.meshgrid(x, y)
            ax.plot_surface(X, Y, heights[run_id], cmap="viridis", vmin=low, vmax=high, rcount=60, ccount=60, lw=0)
            ax.set(xlabel="x", ylabel="y", zlabel="log10 loss", zlim=(low, high))
            ax.locator_params(nbins=5)
            ax.set_title(group_of.get(run_id, run_id), fontsize=9)
        return figures_runs.save(figure, stem)


def _per_row(planes: Sized) -> int:
    return 2 if len(planes) in (1, 2, 4) else 3


def interactive(tables: Tables, group_of: Mapping[str, str], path: Path) -> list[Path]:
    """The same planes as surfaces to turn and zoom, side by side, in one page; none without plotly (an extra)."""
    if not tables or not find_spec("plotly"):
        return []
    from plotly.graph_objects import Surface
    from plotly.subplots import make_subplots

    titles = [str(group_of.get(run_id, run_id)) for run_id in tables]
    figure = make_subplots(1, len(tables), specs=[[{"type": "surface"}] * len(tables)], subplot_titles=titles)
    for column, table in enumerate(tables.values(), 1):
        x, y, z = _plane(table)
        height = np.log10(np.where(z > 0, z, np.nan))
        say = "x %{x:.3g}<br>y %{y:.3g}<br>training loss %{customdata:.4g}<extra></extra>"
        one = Surface(x=x, y=y, z=height, customdata=z, coloraxis="coloraxis", hovertemplate=say)
        figure.add_trace(one, row=1, col=column)
    axes = {"xaxis": {"title": "x"}, "yaxis": {"title": "y"}, "zaxis": {"title": "log10 training loss"}}
    figure.update_scenes(**axes)
    figure.update_layout(coloraxis={"colorscale": "Viridis", "colorbar": {"title": "log10 loss"}})
    write_many([(path, figure.to_html(include_plotlyjs=True).encode())])
    return [path]


def _short(value: float, _: object = None) -> str:
    return figures_runs.tick(float(f"{value:.2g}"))


def _plane(table: DataFrame, values: str = "loss") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    own = table[(table["split"] == "train") & (table["draw"] == 0)]
    wide = own.pivot_table(index="y", columns="x", values=values, dropna=False)
    return (
        wide.columns.to_numpy(dtype=np.float64),
        wide.index.to_numpy(dtype=np.float64),
        wide.to_numpy(dtype=np.float64),
    )
