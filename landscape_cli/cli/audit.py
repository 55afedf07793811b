"""The command `audit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from landscape_cli.cli.options import (
    CHECKPOINTS,
    RESULTS,
    RUNNING,
    Debug,
    Json,
    Memory,
    Metrics,
    Plugins,
    Quiet,
    Results,
    Seeds,
    Sets,
    Wait,
    Where,
    app,
    as_setting,
    leave,
    listed,
    measured,
    opened,
    read_for,
    show_report,
    show_warnings,
)
from landscape_cli.registry.errors import Fault


@app.command(rich_help_panel=RUNNING)
def audit(
    target: Annotated[str, typer.Argument(metavar="CONFIG|CHECKPOINT", show_default=False)],
    config: Annotated[
        str | None, typer.Option("--config", help="For a checkpoint: the config that names its model and dataset.")
    ] = None,
    metrics: Metrics = None,
    run: Annotated[
        str | None, typer.Option("--runs", metavar="A,B", help="Whose minima are moved; the first run's by default.")
    ] = None,
    sharpen: Annotated[
        str | None, typer.Option("--sharpen", metavar="A,B", help="Metrics to drive up and down by rescalings.")
    ] = None,
    sets: Sets = None,
    seeds: Seeds = None,
    results: Results = RESULTS,
    device: Where = "auto",
    memory: Memory = None,
    plugin: Plugins = None,
    wait: Wait = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Move a minimum by transforms that leave its function as it is, and see which metrics notice: invariance.csv.

    Example: landscape audit small-vs-large --metrics all

    Example: landscape audit dinh

    Example: landscape audit model.pt --config my-experiment.yaml --sharpen hessian_top
    """
    checkpoints = [Path(target)] if config or Path(target).suffix in CHECKPOINTS else []
    driven = listed("--sharpen", sharpen)
    sets = [*(sets or []), *as_setting(metrics), *([f"audit.sharpen=[{','.join(driven)}]"] if driven else [])]
    moved = listed("--runs", run)
    if checkpoints and moved:
        raise Fault("--runs: a checkpoint has none")
    _, experiment = read_for(checkpoints, config or target, config is None, sets, plugin, seeds)
    measured(experiment)
    from landscape_cli.audit import invariance
    from landscape_cli.cli import print_audit, progress, terminal
    from landscape_cli.experiment import audit as auditing
    from landscape_cli.experiment import result_tables

    if checkpoints:
        with progress.shown(quiet) as watch:
            session, table, left_alone = auditing.run_checkpoints(experiment, checkpoints, results, device, watch)
        show_warnings(session)
    else:
        with opened(experiment, results, device, quiet) as session:
            table, left_alone = auditing.run(session, moved, wait=wait)
    free = invariance.unclaimed(table)
    if json:
        rows = {"invariance": result_tables.as_json(table), "unclaimed": free, "not_applicable": left_alone}
        terminal.show_json(rows | {"report": session.report})
    else:
        print_audit.show(table, left_alone, free)
        show_report(session)
    leave(["failed"] if table["verdict"].isin(("broken", "failed")).any() else [])
