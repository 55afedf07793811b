"""Figures and report.html of an experiment, from its tables."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from landscape_cli import config, registry, store
from landscape_cli.experiment.session import Record, Session
from landscape_cli.registry import REGISTRY
from landscape_cli.registry.errors import Fault, reason
from landscape_cli.report import page as report
from landscape_cli.report import statistics

if TYPE_CHECKING:
    pass


PICTURES = (
    "training_curves",
    "metric_by_group",
    "metric_vs_gap",
    "regret_by_radius",
    "spectral_density",
    "along_training",
    "lines",
    "invariance",
    "surface_line",
    "surface_path",
    "surface_plane",
    "surface_relief",
    "surface_trajectory",
    "surface_eigen",
    "surface_curvature",
    "surface_line_curvature",
    "surface_path_curvature",
)


def draw_of(session: Session, records: Sequence[Record]) -> None:
    """Figures and report of a session; that they cannot be drawn is a warning, for the tables are written."""
    try:
        draw(session.folder, records, session.groups, session)
        session.report = session.folder / "report.html"
    except (Exception, SystemExit) as error:
        remedy = f"run `landscape report {session.folder}`"
        session.warnings.append(f"figures were not drawn: {reason(error)}: {remedy}")


def draw(folder: Path, records: Sequence[Record], groups: list[str], session: Session | None = None) -> None:
    """Figures and report.html from the tables; left alone where they were drawn from these very tables."""
    tables = ["runs.csv", "metrics.csv", "comparison.csv", "experiment.yaml", "tables/spectral_density.csv"]
    tables += ["invariance.csv", "tables/lines.csv"]
    around = [str(path.relative_to(folder)) for path in sorted((folder / "surfaces").glob("*.csv"))]
    page, stamp = folder / "report.html", folder / "plots" / ".drawn"
    sources = [(folder / t).read_bytes() for t in (*tables, *around) if (folder / t).is_file()] + [
        path.read_bytes() for path in sorted(Path(report.__file__).parent.iterdir()) if path.suffix in (".py", ".j2")
    ]
    key = hashlib.sha256(b"".join(hashlib.sha256(s).digest() for s in sources)).hexdigest()
    if page.is_file() and stamp.is_file() and stamp.read_text() == key:
        return
    from landscape_cli.report import figures_curves as curves
    from landscape_cli.report import (
        figures_runs,  # loads matplotlib
        figures_surface,
    )

    if session:
        session.watch("draw", {})
    run_table, metric_table, spectra, moved, curve = (report.table(folder / t) for t in (*tables[:2], *tables[4:]))
    stems = [folder / "plots" / name for name in PICTURES]
    drawn = [
        *figures_runs.training_curves(records, stems[0]),
        *curves.spectral_density(spectra, run_table, groups, stems[4]),
        *curves.lines(curve, stems[6]),
        *curves.invariance(moved, stems[7]),
        *figures_surface.surfaces(folder, run_table, groups),
    ]
    if len(metric_table):
        drawn += [
            *figures_runs.metric_by_group(metric_table, run_table, groups, stems[1]),
            *figures_runs.metric_vs_gap(metric_table, run_table, stems[2]),
            *figures_runs.regret_by_radius(metric_table, run_table, groups, stems[3]),
            *curves.along_training(metric_table, run_table, groups, edges(folder, records), stems[5]),
        ]
    possible = {stem.with_suffix(kind) for stem in stems for kind in (".png", ".svg", ".html")}
    store.remove(folder, possible.difference(drawn))  # of tables that had more to show
    about = {name: entry.summary for name, entry in REGISTRY["metric"].items()}
    store.write(page, report.render(folder, about, registry.same_as()))
    store.write(stamp, key.encode())


def edges(folder: Path, records: Sequence[Record]) -> dict[str, dict[float, str]]:
    """Group -> the largest curvature at which its gradient descent is stable on a quadratic -> how it is computed.

    2 / lr; with momentum mu 2 (1 + mu) / lr, and 2 (1 + mu) / ((1 + 2 mu) lr) for Nesterov's (Cohen et al. 2021,
    section 2 and appendix B). One a learning rate; none for other optimizers or rates that change.
    """
    try:
        base = config.read(str(folder / "experiment.yaml")).data.get("training") or {}
    except Fault:  # a report does without
        base = {}
    found: dict[str, dict[float, str]] = {}
    for record in records:
        swept = {k.partition(".")[2]: v for k, v in record["swept"].items() if k.startswith("training.")}
        own = PLAIN | base | swept
        if {k: own[k] for k in STEADY} == STEADY and isinstance(own.get("lr"), int | float):
            mu, nesterov = own["momentum"], own["nesterov"]
            factor = (1 + mu) / (1 + 2 * mu) if nesterov else 1 + mu
            formula = "2(1+μ)/((1+2μ)lr)" if nesterov else "2(1+μ)/lr" if mu else "2/lr"
            found.setdefault(str(record["group"]), {})[2 * factor / own["lr"]] = formula
    return found


STEADY = {"optimizer": "sgd", "schedule": "constant", "lr_scaling": "none", "warmup_epochs": 0}


PLAIN = STEADY | {"momentum": 0, "nesterov": False}


def rewrite_report(folder: Path) -> Path:
    """`landscape report DIR`: figures and report.html again, from the tables alone."""
    needed = [folder / t for t in ("runs.csv", "metrics.csv", "comparison.csv")]
    missing = [path.name for path in needed if not path.is_file()]
    if missing:
        raise Fault(f"{folder}: lacks {', '.join(missing)}: run `landscape compare` first", code=5)
    with store.lock(folder):
        records = store.read_runs(folder)
        table = store.read_table(folder / "runs.csv")
        ordered = [records[i] for i in table["run_id"] if i in records]
        store.remove(folder, [folder / "plots" / ".drawn"])
        draw(folder, ordered, statistics.group_names(store.read_table(folder / "comparison.csv")))
    return folder / "report.html"
