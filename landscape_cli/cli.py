"""The commands: parse, call one function, print. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from landscape_cli import __version__
from landscape_cli.errors import Fault
from landscape_cli.options import (
    CHECKPOINTS,
    CONFIG,
    LOOKING,
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
    Shelf,
    Wait,
    Where,
    as_setting,
    leave,
    listed,
    opened,
    read,
    read_for,
    show_plan,
    with_snapshots,
)

if TYPE_CHECKING:
    pass

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Which measurable property of a minimum predicts how well it generalizes?\n\n"
    "Train networks with small or large batches, keep their minima, measure them, compare.\n\n"
    "Start with: [bold]landscape compare small-vs-large[/bold]",
)

RESULTS = Path("results")


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
        from landscape_cli import console
        from landscape_cli import experiment as pipeline

        if dry_run:
            return show_plan(session, json)
        table = pipeline.compare(session, fresh=fresh, wait=wait)
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


@app.command(rich_help_panel=LOOKING)
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="An experiment's folder, results/NAME.")],
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Draw the figures and write report.html again, from the tables.

    Example: landscape report results/small-vs-large
    """
    from landscape_cli import console, registry
    from landscape_cli import experiment as pipeline

    registry.load_plugins([])
    page = pipeline.rewrite_report(folder.resolve())
    console.show_json({"report": str(page)}) if json else console.say(str(page))


@app.command(rich_help_panel=LOOKING)
def show(
    config: Annotated[str, CONFIG],
    sets: Sets = None,
    seeds: Seeds = None,
    results: Results = RESULTS,
    device: Where = "auto",
    plugin: Plugins = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Show the resolved config, where each value comes from, and what is left to do. Writes nothing.

    Example: landscape show small-vs-large --set training.lr=0.05
    """
    tree, experiment = read(config, sets, plugin, seeds)
    from landscape_cli import console
    from landscape_cli import experiment as pipeline
    from landscape_cli.config import origins

    values = origins(tree, experiment)
    with opened(experiment, results, device, quiet=True) as session:
        plan = pipeline.plan(session)
    if json:
        console.show_json({"config": experiment.model_dump(), "plan": plan})
    else:
        console.origins(values)
        console.plan(plan)


@app.command(name="list", rich_help_panel=LOOKING)
def list_(
    what: Annotated[Shelf, typer.Argument(help="Which shelf.")],
    plugin: Plugins = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Settings, sources and invariances too.")] = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """List metrics, models, datasets, configs or transforms, one line each.

    Example: landscape list metrics --verbose
    """
    from landscape_cli import config, console, registry

    if what == "configs":
        rows = [{"name": name, "summary": config.summary(path)} for name, path in config.shipped().items()]
    elif what == "transforms":
        from landscape_cli.audit import TRANSFORMS

        rows = [{"name": name, "summary": t.summary, "keeps": t.keeps} for name, t in TRANSFORMS.items()]
    else:
        registry.load_plugins(plugin or [])
        rows = [registry.describe(entry) for entry in registry.REGISTRY[registry.KINDS[what]].values()]
    console.show_json({what: rows}) if json else console.shelf(rows, verbose)


@app.command(rich_help_panel=LOOKING)
def doctor(
    config: Annotated[
        str | None, typer.Argument(help="Also say how the models of this config are run.", show_default=False)
    ] = None,
    results: Results = RESULTS,
    plugin: Plugins = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Check torch, device, threads, disk and locks, and say how to mend what is wrong.

    Example: landscape doctor small-vs-large
    """
    experiment = read(config, None, plugin, None)[1] if config else None
    from landscape_cli import console, doctor
    from landscape_cli.session import open_session

    session = open_session(experiment, results) if experiment else None
    found = doctor.examine(results, session)
    console.show_json({"findings": found}) if json else console.findings(found)


@app.command(rich_help_panel=LOOKING)
def schema(plugin: Plugins = None, debug: Debug = False) -> None:
    """Print the JSON Schema of the YAML, for editors.

    Example: landscape schema > landscape.schema.json
    """
    from landscape_cli import config, console, registry

    registry.load_plugins(plugin or [])
    console.show_json(config.schema())
