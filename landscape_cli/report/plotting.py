"""How all figures look: colours, axes, panels, legends; PNG and SVG, the same bytes for the same tables, no pyplot."""

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

from landscape_cli.report.statistics import Values, shorten
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
