"""The commands: parse, call one function, print. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from landscape_cli import __version__, around
from landscape_cli.errors import Fault
from landscape_cli.options import (
    CHECKPOINTS,
    CONFIG,
    RESULTS,
    RUNNING,
    Along,
    Debug,
    DryRun,
    Fresh,
    Json,
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
    opened,
    read,
    read_for,
    show_plan,
    with_snapshots,
)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(f"landscape {__version__}")
        raise typer.Exit


@app.command(rich_help_panel=RUNNING)
def train(
    config: Annotated[str, CONFIG],
    sets: Sets = None,
    seeds: Seeds = None,
    results: Results = RESULTS,
    device: Where = "auto",
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
        from landscape_cli import console
        from landscape_cli import experiment as pipeline

        if dry_run:
            return show_plan(session, json)
        table = pipeline.train(session, fresh=fresh, wait=wait)
    console.show_json({"runs": pipeline.as_json(table)}) if json else console.runs(table)
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
    from landscape_cli import console

    checkpoints = [Path(t) for t in target] if config or Path(target[0]).suffix in CHECKPOINTS else []
    if checkpoints and along:
        raise Fault("--along: a checkpoint has no snapshots: name the config of its experiment instead")
    if not checkpoints and len(target) > 1:
        raise Fault(f"one config at a time, or checkpoints with --config: got {', '.join(target)}")
    sets = [*(sets or []), *as_setting(metrics)]
    _, experiment = read_for(checkpoints, config or target[0], config is None, sets, plugin, seeds)
    from landscape_cli import experiment as pipeline
    from landscape_cli.config import measurements

    wanted = measurements(experiment)
    if checkpoints:
        with console.Progress(quiet) as watch:
            _, table = pipeline.measure_checkpoints(experiment, checkpoints, results, wanted, device, watch)
    else:
        with opened(with_snapshots(experiment, along), results, device, quiet) as session:
            table = pipeline.measure(session, wanted, wait=wait)
    if json:
        console.show_json({"metrics": pipeline.as_json(table)})
    else:
        console.metrics(table[table["epoch"].isna()])
        for line in pipeline.trouble_along(table):
            console.warn(line)
    leave(table["status"])


@app.command(rich_help_panel=RUNNING)
def compare(
    config: Annotated[str, CONFIG] = "small-vs-large",
    metrics: Metrics = None,
    sets: Sets = None,
    seeds: Seeds = None,
    results: Results = RESULTS,
    device: Where = "auto",
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
    with opened(with_snapshots(experiment, along), results, device, quiet) as session:
        from landscape_cli import console, surfacing
        from landscape_cli import experiment as pipeline

        if experiment.surface:
            surfacing.check(session, experiment.surface)
        if dry_run:
            return show_plan(session, json)
        table = pipeline.compare(session, fresh=fresh, wait=wait, around=surfacing.around)
    runs, failures = pipeline.outcome(session)
    if json:
        console.show_json({"comparison": pipeline.as_json(table), "report": str(session.folder / "report.html")})
    else:
        console.comparison(table, session.groups, runs, session.folder)
    for line in failures:
        console.warn(line)
    leave(["failed"] if failures else [])


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
    if checkpoints and run:
        raise Fault("--runs: a checkpoint has none")
    _, experiment = read_for(checkpoints, config or target, config is None, sets, plugin, seeds)
    from landscape_cli import audit as audits
    from landscape_cli import auditing, console, matrix
    from landscape_cli import experiment as pipeline

    if checkpoints:
        with console.Progress(quiet) as watch:
            session, table, said = auditing.run_checkpoints(experiment, checkpoints, results, device, watch)
        for line in dict.fromkeys(session.warnings):
            console.warn(line)
    else:
        with opened(experiment, results, device, quiet) as session:
            table, said = auditing.run(session, listed("--runs", run), wait=wait)
    free = audits.unclaimed(table)
    if json:
        told = {"invariance": pipeline.as_json(table), "unclaimed": free, "not_applicable": said}
        console.show_json(told | {"report": str(session.folder / "report.html")})
    else:
        matrix.show(table, said, free)
        console.say(f"\nReport: {session.folder / 'report.html'}")
    leave(["failed"] if table["verdict"].isin(("broken", "failed")).any() else [])


data = typer.Typer(no_args_is_help=True, help="Image sets: download one.\n\nExample: landscape data fetch cifar10")
app.add_typer(data, name="data", rich_help_panel=RUNNING)


@data.callback()
def _data() -> None:
    pass


@data.command()
def fetch(
    name: Annotated[str, typer.Argument(help="cifar10, cifar100, mnist, fashion_mnist, kmnist or svhn.")],
    root: Annotated[Path, typer.Option("--root", help="Where it goes; dataset.root of a config.")] = Path("data"),
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Download an image set, with its checksum; what broke off goes on where it ended. Nothing else downloads.

    Example: landscape data fetch cifar10
    """
    from landscape_cli import console, download

    files = download.sources(name)
    with download.Bars(quiet) as watch:
        placed = [str(path) for path in download.fetch(files, root, watch)]
    console.show_json({"files": placed}) if json else console.say("\n".join(placed))


@app.command(rich_help_panel=RUNNING)
def surface(
    target: Annotated[list[str], typer.Argument(metavar="CONFIG|CHECKPOINT...", show_default=False)],
    config: Annotated[
        str | None, typer.Option("--config", help="For a checkpoint: the config that names its model and dataset.")
    ] = None,
    kind: around.Kind = None,
    points: around.Points = None,
    range_: around.Range = None,
    normalization: around.Normalization = None,
    ignore: around.Ignore = None,
    batchnorm: around.BatchNorm = None,
    seed: around.Seed = None,
    draws: around.Draws = None,
    curvature: around.Curvature = False,
    directions: around.Directions = None,
    run: around.Runs = None,
    sets: Sets = None,
    seeds: Seeds = None,
    results: Results = RESULTS,
    device: Where = "auto",
    plugin: Plugins = None,
    wait: Wait = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Loss and accuracy around minima: filter-normalized lines and planes, the path from one to another, and the planes
    of a run's trajectory and of the Hessian's top two eigenvectors.

    Example: landscape surface small-vs-large

    Example: landscape surface small-vs-large --kind path --points 101

    Example: landscape surface small-vs-large --kind eigen --points 11 --curvature

    Example: landscape surface model.pt --config my-experiment.yaml --kind plane --points 31
    """
    checkpoints = [Path(t) for t in target] if config or Path(target[0]).suffix in CHECKPOINTS else []
    if not checkpoints and len(target) > 1:
        raise Fault(f"one config at a time, or checkpoints with --config: got {', '.join(target)}")
    given = {"kind": kind, "points": points, "range": range_, "normalization": normalization, "ignore": ignore}
    given |= {"batchnorm": batchnorm, "seed": seed, "draws": draws, "curvature": "true" if curvature else None}
    own = [f"surface.{key}={value}" for key, value in given.items() if value is not None]
    try:
        _, experiment = read_for(checkpoints, config or target[0], config is None, [*(sets or []), *own], plugin, seeds)
    except Fault as fault:  # of options, in the words in which they were given
        raise Fault(re.sub(r"--set surface\.(\w+)=", r"--\1 ", str(fault)), fault.code) from None
    from landscape_cli import console, surfacing, vectors
    from landscape_cli import experiment as pipeline

    runs = listed("--runs", run) if run is not None else None
    asked = surfacing.asked_for(experiment.surface, given, directions, runs)
    if checkpoints:
        with console.Progress(quiet) as watch:
            session, tables = surfacing.run_checkpoints(experiment, checkpoints, asked, results, device, watch)
    else:
        with opened(experiment, results, device, quiet) as session:
            tables = surfacing.run(session, asked, wait=wait)
    for line in session.failures:
        console.warn(line)
    if json:
        told = {run_id: pipeline.as_json(table) for run_id, table in tables.items()}
        console.show_json({"surfaces": told, "report": str(session.folder / "report.html")})
        leave(["failed"] if session.failures else [])
        return
    for run_id, table in tables.items():
        path = session.folder / "surfaces" / f"{run_id}-{asked.kind}.csv"
        console.say(f"{run_id}: {surfacing.summary(table, vectors.facts(path.with_suffix('.safetensors')))}")
        console.say(f"  {path}")
    console.say(f"\nReport: {session.folder / 'report.html'}")
    leave(["failed"] if session.failures else [])


from landscape_cli import looking  # noqa: E402, F401  # the commands that look

__all__ = ["app"]
