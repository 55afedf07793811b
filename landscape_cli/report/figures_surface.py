"""Figures of surfaces: curves along lines and paths, contours of planes, from surfaces/*.csv."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from functools import partial
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure as Canvas
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter
from pandas import DataFrame, Series

from landscape_cli.registry import REGISTRY, Entry
from landscape_cli.registry.errors import Fault
from landscape_cli.report import plotting
from landscape_cli.report.inputs import Figure, Inputs
from landscape_cli.report.plotting import DASHED, Look
from landscape_cli.store import surface_files
from landscape_cli.store.files import write_many
from landscape_cli.store.tables import read_table

Tables = Mapping[str, DataFrame]  # run id -> its surface
LEVELS = 14
RELIEF = "plane"  # the kind that is shown from the side too
NEEDED = {"": ["draw", "x", "y", "split", "loss", "accuracy"], "snapshots": ["epoch", "x", "y", "split"]}
NEEDED |= {"curvature": ["draw", "x", "y", "lambda_max", "lambda_min"]}


def figures() -> list[Figure]:
    """A figure for each kind of surface, and those of the Hessian's eigenvalues on them, in the order of the page."""
    maps = Figure(
        "surface_curvature",
        ("runs.csv", "surfaces/*-curvature.csv"),
        _maps,
        "How convex the loss is about minima",
        "|λ_min / λ_max| of the Hessian of the training loss over a plane (Li et al. 2018, section 6): dark where "
        "negative curvature is small beside the positive one.",
        ("surfaces/*.safetensors",),
    )
    one, two = ([kind for kind in REGISTRY["surface"].values() if kind.facts["axes"] == n] for n in (1, 2))
    return [*map(_losses, one), *chain(*map(_plane_figures, two)), maps, *map(_bends, one)]


def _losses(kind: Entry) -> Figure:
    """The loss on a kind of surface."""
    draw = _draw_curves if kind.facts["axes"] == 1 else _draw_contours
    table, files = f"surfaces/*-{kind.name}.csv", f"surfaces/*-{kind.name}"
    more = f"{files}.safetensors", f"{files}-snapshots.csv"
    shown = kind.facts["title"], kind.facts["caption"]
    return Figure(f"surface_{kind.name}", ("runs.csv", table), partial(draw, kind), *shown, more)


def _plane_figures(kind: Entry) -> list[Figure]:
    """From above; random planes also from the side."""
    if kind.name != RELIEF:
        return [_losses(kind)]
    sources, title = ("runs.csv", f"surfaces/*-{kind.name}.csv"), "The same planes from the side"
    side = Figure("surface_relief", sources, _draw_relief, title, "The logarithm of the training loss as height.")
    return [_losses(kind), side]


def _bends(kind: Entry) -> Figure:
    """The Hessian's eigenvalues on a kind of line."""
    sources = ("runs.csv", f"surfaces/*-{kind.name}-curvature.csv")
    return Figure(f"surface_{kind.name}_curvature", sources, partial(_draw_bends, kind), *kind.facts["curvature"])


def _group_of(inputs: Inputs) -> dict[str, str]:
    """Run id -> its group."""
    return dict(zip(inputs.runs["run_id"], inputs.runs["group"].astype(str), strict=True))


def _facts(inputs: Inputs, run_id: str, kind: Entry) -> dict[str, Any]:
    return surface_files.facts(inputs.folder / "surfaces" / f"{run_id}-{kind.name}.safetensors")


def _labels(inputs: Inputs, tables: Tables, kind: Entry) -> dict[str, tuple[str, str]]:
    """Run id -> what x and y are; plain where the directions are not known."""
    known = {run_id: _facts(inputs, run_id, kind) for run_id in tables}
    return {run_id: kind.facts["labels"](facts) if facts else ("x", "y") for run_id, facts in known.items()}


def _draw_curves(kind: Entry, inputs: Inputs, stem: Path) -> list[Path]:
    group_of = _group_of(inputs)
    tables, ends = _read(inputs.folder, kind.name, list(group_of)), dict[str, str]()
    if "other" in kind.facts["needs"]:
        ends = {run_id: str(_facts(inputs, run_id, kind).get("to", "")) for run_id in tables}
        ends = {run_id: end for run_id, end in ends.items() if end in group_of}
        tables = {run_id: tables[run_id] for run_id in ends}
    return curves(tables, group_of, inputs.groups, ends, stem)


def _draw_contours(kind: Entry, inputs: Inputs, stem: Path) -> list[Path]:
    group_of = _group_of(inputs)
    tables = _read(inputs.folder, kind.name, list(group_of))
    ways = _read(inputs.folder, f"{kind.name}-snapshots", list(group_of))
    return contours(tables, group_of, stem, _labels(inputs, tables, kind), ways)


def _draw_relief(inputs: Inputs, stem: Path) -> list[Path]:
    group_of = _group_of(inputs)
    tables = _read(inputs.folder, RELIEF, list(group_of))
    return relief(tables, group_of, stem) + interactive(tables, group_of, stem.with_suffix(".html"))


def _maps(inputs: Inputs, stem: Path) -> list[Path]:
    group_of, tables, labels = _group_of(inputs), dict[str, DataFrame](), dict[str, tuple[str, str]]()
    for kind in (kind for kind in REGISTRY["surface"].values() if kind.facts["axes"] == 2):
        found = _read(inputs.folder, f"{kind.name}-curvature", list(group_of))
        tables |= {f"{run_id} {kind.name}": table for run_id, table in found.items()}
        labels |= {f"{run_id} {kind.name}": names for run_id, names in _labels(inputs, found, kind).items()}
    return curvature_maps(tables, group_of, labels, stem)


def _draw_bends(kind: Entry, inputs: Inputs, stem: Path) -> list[Path]:
    group_of = _group_of(inputs)
    return bending(_read(inputs.folder, f"{kind.name}-curvature", list(group_of)), group_of, inputs.groups, stem)


def _looks(tables: Tables, group_of: Mapping[str, str], groups: list[str]) -> tuple[dict[str, Look], dict[str, Look]]:
    """Name -> how it is drawn, for the legend; run id -> how it is drawn: as its group, or alone if that is none."""
    name_of = {run_id: group_of[run_id] if group_of.get(run_id) in groups else run_id for run_id in tables}
    named = plotting.looks([*(g for g in groups if g in name_of.values()), *(r for r in tables if name_of[r] == r)])
    return named, {run_id: named[name] for run_id, name in name_of.items()}


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
    style, looks = _looks(tables, group_of, groups)
    with plotting.styled():
        figure, axes = plotting.panels(2, 3.1, 2)
        for run_id, table in tables.items():
            for ax, quantity in zip(axes, ("loss", "accuracy"), strict=True):
                for split, dash in (("train", "-"), ("test", DASHED)):
                    _band(ax, table[table["split"] == split], quantity, looks[run_id], dash)
        for ax, title in zip(axes, ("loss (nats)", "accuracy (share)"), strict=True):
            ax.set(title=title, xlabel=_from_to(ends, group_of) if ends else "x, steps along the direction")
        lowest = min(float(t["loss"].min()) for t in tables.values())
        highest = max(float(t["loss"].max()) for t in tables.values())
        if highest > 10 * lowest > 0:
            axes[0].set_yscale("log")
        axes[1].set_ylim(-0.02, 1.02)
        if not ends:
            plotting.legend(figure, style, lines=True)
        draws = max(int(t["draw"].max()) + 1 for t in tables.values())
        band = f"; mean and range over {draws} directions" if draws > 1 else ""
        plotting.note(figure, f"solid: training set, dashed: test set{band}")
        return plotting.save(figure, stem)


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
    with plotting.styled():
        figure, axes = plotting.panels(len(planes), 3.3, _per_row(planes))
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
            plotting.panel_title(ax, group_of.get(run_id, run_id), run_id)
        bar = figure.colorbar(image, ax=axes, shrink=0.8, pad=0.02, format=FuncFormatter(_short))
        bar.set_label("training loss (nats), log scale")
        return plotting.save(figure, stem)


def _way(ax: Axes, table: DataFrame) -> None:
    """A run's snapshots on the plane, their epochs beside them where there is room."""
    train = table[table["split"] == "train"]
    ax.plot(train["x"], train["y"], color="crimson", marker="o", ms=2.5, lw=1)
    extent, last = np.array([np.ptp(ax.get_xlim()), np.ptp(ax.get_ylim())]), np.full(2, np.inf)
    for epoch, x, y in zip(train["epoch"], train["x"], train["y"], strict=True):
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
    with plotting.styled():
        figure, axes = plotting.panels(len(planes), 3.3, _per_row(planes))
        for ax, (key, (x, y, z)) in zip(axes, planes.items(), strict=True):
            image = ax.pcolormesh(x, y, np.ma.masked_invalid(z), vmin=0, vmax=1, cmap="viridis", shading="nearest")
            ax.plot(0, 0, marker="+", color="white", ms=7)
            run_id, kind = key.split(" ")
            xlabel, ylabel = labels.get(key, ("x", "y"))
            ax.locator_params(nbins=6)
            ax.set(xlabel=xlabel, ylabel=ylabel, aspect=_aspect(kind))
            plotting.panel_title(ax, f"{group_of.get(run_id, run_id)}, {kind}", run_id)
        bar = figure.colorbar(image, ax=axes, shrink=0.8, pad=0.02, extend="max")
        bar.set_label("|λ_min / λ_max| of the Hessian; 0: convex")
        return plotting.save(figure, stem)


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
    style, looks = _looks(tables, group_of, groups)
    with plotting.styled():
        figure, axes = plotting.panels(2, 3.1, 2)
        for run_id, table in tables.items():
            for ax, quantity in zip(axes, ("lambda_max", "lambda_min"), strict=True):
                _band(ax, table, quantity, looks[run_id], "-")
        for ax, title in zip(axes, ("λ_max of the Hessian", "λ_min of the Hessian"), strict=True):
            ax.set(title=title, xlabel="x, steps along the direction")
        plotting.legend(figure, style, lines=True)
        return plotting.save(figure, stem)


def _aspect(kind: str) -> Literal["auto", "equal"]:
    """A plane that is fitted to snapshots may be long and narrow."""
    return "auto" if "snapshots" in REGISTRY["surface"][kind].facts["needs"] else "equal"


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
    with plotting.styled():
        per_row = min(len(planes), _per_row(planes))
        figure = Canvas(figsize=(plotting.WIDTH, 3.4 * -(-len(planes) // per_row)), layout="constrained")
        for i, (run_id, (x, y, _)) in enumerate(planes.items()):
            ax = figure.add_subplot(-(-len(planes) // per_row), per_row, i + 1, projection="3d")
            X, Y = np.meshgrid(x, y)
            ax.plot_surface(X, Y, heights[run_id], cmap="viridis", vmin=low, vmax=high, rcount=60, ccount=60, lw=0)
            ax.set(xlabel="x", ylabel="y", zlabel="log10 loss", zlim=(low, high))
            ax.locator_params(nbins=5)
            ax.set_title(group_of.get(run_id, run_id), fontsize=9)
        return plotting.save(figure, stem)


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
    return plotting.tick(float(f"{value:.2g}"))


def _plane(table: DataFrame, values: str = "loss") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    own = table[(table["split"] == "train") & (table["draw"] == 0)]
    wide = own.pivot_table(index="y", columns="x", values=values, dropna=False)
    return (
        wide.columns.to_numpy(dtype=np.float64),
        wide.index.to_numpy(dtype=np.float64),
        wide.to_numpy(dtype=np.float64),
    )
