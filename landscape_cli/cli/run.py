"""The commands that do the work: train, measure, compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from landscape_cli.cli.options import (
    CHECKPOINTS,
    CONFIG,
    RESULTS,
    RUNNING,
    Along,
    Debug,
    DryRun,
    Fresh,
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
    measured,
    opened,
    read,
    read_for,
    show_plan,
    show_report,
    show_warnings,
    with_snapshots,
)
from landscape_cli.registry.errors import Fault


@app.command(rich_help_panel=RUNNING)
def train(
    config: Annotated[str, CONFIG],
    sets: Sets = None,
    seeds: Seeds = None,
    results: Results = RESULTS,
    device: Where = "auto",
    memory: Memory = None,
    plugin: Plugins = None,
    fresh: Fresh = False,
    wait: Wait = False,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train every run that is missing and keep its minimum.

    Example: landscape train batch-size-sweep --seeds 8
    """
    _, experiment = read(config, sets, plugin, seeds)
    with opened(experiment, results, device, quiet) as session:
        from landscape_cli.cli import print_tables, terminal
        from landscape_cli.experiment import planning, result_tables
        from landscape_cli.experiment.train_runs import train as train_all

        if dry_run:
            plan = planning.plan(session)
        else:
            table = train_all(session, fresh=fresh, wait=wait)
    if dry_run:
        return show_plan(plan, json)
    terminal.show_json({"runs": result_tables.as_json(table)}) if json else print_tables.runs(table)
    leave(table["status"])


@app.command(rich_help_panel=RUNNING)
def measure(
    target: Annotated[list[str], typer.Argument(metavar="CONFIG|CHECKPOINT...", show_default=False)],
    config: Annotated[
        str | None, typer.Option("--config", help="For a checkpoint: the config that names its model and dataset.")
    ] = None,
    metrics: Metrics = None,
    along: Along = False,
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
    """Run metrics on the minima of an experiment, or on a checkpoint of yours (.pt of a state dict, .safetensors).

    Example: landscape measure small-vs-large --metrics regret,hessian_top

    Example: landscape measure my-experiment.yaml --along --metrics hessian_top

    Example: landscape measure model.pt --config my-experiment.yaml
    """
    from landscape_cli.cli import print_tables, progress, terminal

    checkpoints = [Path(t) for t in target] if config or Path(target[0]).suffix in CHECKPOINTS else []
    if checkpoints and along:
        raise Fault("--along: a checkpoint has no snapshots: name the config of its experiment instead")
    if not checkpoints and len(target) > 1:
        raise Fault(f"one config at a time, or checkpoints with --config: got {', '.join(target)}")
    sets = [*(sets or []), *as_setting(metrics)]
    _, experiment = read_for(checkpoints, config or target[0], config is None, sets, plugin, seeds)
    from landscape_cli.experiment import result_tables, user_checkpoints
    from landscape_cli.experiment.measure import measure as measure_runs

    wanted = measured(experiment)
    if checkpoints:
        with progress.shown(quiet) as watch:
            session, table = user_checkpoints.measure_checkpoints(
                experiment, checkpoints, results, wanted, device, watch
            )
        show_warnings(session)
    else:
        with opened(with_snapshots(experiment, along), results, device, quiet) as session:
            table = measure_runs(session, wanted, wait=wait)
    if json:
        terminal.show_json({"metrics": result_tables.as_json(table)})
    else:
        print_tables.metrics(table[table["epoch"].isna()])
        for line in result_tables.trouble_along(table):
            terminal.warn(line)
    leave(table["status"])


@app.command(rich_help_panel=RUNNING)
def compare(
    config: Annotated[str, CONFIG] = "small-vs-large",
    metrics: Metrics = None,
    sets: Sets = None,
    seeds: Seeds = None,
    results: Results = RESULTS,
    device: Where = "auto",
    memory: Memory = None,
    plugin: Plugins = None,
    along: Along = False,
    fresh: Fresh = False,
    wait: Wait = False,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train and measure what is missing, then compare the groups: tables, figures, report.

    Example: landscape compare small-vs-large

    Example: landscape compare small-vs-large --metrics all --set training.lr=0.05 --results try2
    """
    sets = [*(sets or []), *as_setting(metrics)]
    _, experiment = read(config, sets, plugin, seeds)
    measured(experiment)
    with opened(with_snapshots(experiment, along), results, device, quiet) as session:
        from landscape_cli.cli import print_tables, terminal
        from landscape_cli.experiment import planning, result_tables
        from landscape_cli.experiment import surface as surfaces
        from landscape_cli.experiment.compare import compare as compare_groups

        if experiment.surface:
            surfaces.check(session, experiment.surface)
        if dry_run:
            plan = planning.plan(session)
        else:
            table = compare_groups(session, fresh=fresh, wait=wait, around=surfaces.around)
    if dry_run:
        return show_plan(plan, json)
    runs, failures = result_tables.outcome(session)
    if json:
        terminal.show_json({"comparison": result_tables.as_json(table), "report": session.report})
    else:
        print_tables.comparison(table, session.groups, runs)
        show_report(session)
    for line in failures:
        terminal.warn(line)
    leave(["failed"] if failures else [])
