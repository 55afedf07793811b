"""`landscape compare`: what is missing, then the tables, figures and report."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from landscape_cli import config, registry, store
from landscape_cli.experiment import draw_report
from landscape_cli.experiment.measure import measure_missing
from landscape_cli.experiment.result_tables import metrics_table, runs_table
from landscape_cli.experiment.session import Record, Session, writing
from landscape_cli.experiment.train_runs import forget, train_missing
from landscape_cli.report import statistics

if TYPE_CHECKING:
    from pandas import DataFrame


def compare(
    session: Session,
    *,
    fresh: bool = False,
    wait: bool = False,
    around: Callable[[Session, dict[str, Record]], None] | None = None,
) -> DataFrame:
    """`landscape compare`: what is missing, then all tables, figures and the report; comparison.csv is returned.

    Args:
        session: the experiment's.
        fresh: forget its runs first.
        wait: for the folder.
        around: makes the surfaces of the config.
    """
    with writing(session, wait):
        if fresh:
            forget(session)
        settings_of = {run.run_id: run.settings for run in session.runs}
        try:
            records = train_missing(session)
            wanted = config.measurements(session.experiment)
            measure_missing(session, records, wanted, settings_of, session.experiment.along)
        finally:
            records = session.finished()
            run_table, metric_table = runs_table(session), metrics_table(session, records, settings_of)
        table = statistics.compare(metric_table, run_table, session.groups, registry.same_as())
        store.write(session.folder / "comparison.csv", store.table_bytes(table))
        if around:
            around(session, records)
        draw_report.draw_of(session, list(records.values()))
    return table
