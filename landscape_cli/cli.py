"""The commands: parse, call one function, print. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import contextlib
import json as json_module
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from landscape_cli import __version__
from landscape_cli.errors import Fault

if TYPE_CHECKING:
    from landscape_cli.config import Experiment, Tree
    from landscape_cli.session import Session

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

Device = Literal["auto", "cpu", "cuda"]
Shelf = Literal["metrics", "models", "datasets", "configs"]
CONFIG = typer.Argument(
    help="A YAML file, or the name of one in ./configs or shipped with the package.", show_default=False
)
RUNNING, LOOKING = "Running", "Output"
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, e.g. training.lr=0.05; repeatable."),
]
Seeds = Annotated[
    int | None, typer.Option("--seeds", min=1, help="Seeds of each combination, instead of the config's.")
]
Results = Annotated[Path, typer.Option("--results", metavar="DIR", help="Where the experiment's folder is made.")]
Where = Annotated[Device, typer.Option("--device", help="auto takes a CUDA device where there is one.")]
Plugins = Annotated[
    list[str] | None,
    typer.Option("--plugin", metavar="FILE|MODULE", help="Python code that registers models, datasets or metrics."),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Forget the finished runs of this config and start over.")]
Wait = Annotated[bool, typer.Option("--wait", help="Wait while another process holds the results folder.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and write nothing.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show a traceback on errors.")]
Metrics = Annotated[
    str | None, typer.Option("--metrics", metavar="A,B|default|all", help="Instead of the config's metrics.")
]
Along = Annotated[bool, typer.Option("--along", help="Measure the snapshots on the way too (training.snapshots).")]
RESULTS = Path("results")


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(f"landscape {__version__}")
        raise typer.Exit


def _read(target: str, sets: list[str] | None, plugins: list[str] | None, seeds: int | None) -> tuple[Tree, Experiment]:
    from landscape_cli import config

    tree = config.read(target, sets or [])  # syntax first: it needs no torch
    from landscape_cli import session

    return tree, session.resolve(tree, plugins or [], seeds)


def _with_snapshots(experiment: Experiment, along: bool) -> Experiment:
    """The experiment with `along` set, as `--along` asks for.

    Raises: Fault if none of its runs keeps a snapshot.
    """
    if not along:
        return experiment
    from landscape_cli import config

    if not any(run.settings["training"]["snapshots"] for run in config.expand(experiment)):
        remedy = "--set 'training.snapshots=[0, 1, 2, 5, 10]' (its runs are then trained anew)"
        raise Fault(f"--along: {experiment.name} keeps nothing on the way: add the epochs to keep, {remedy}")
    return experiment.model_copy(update={"along": True})


@contextlib.contextmanager
def _session(experiment: Experiment, results: Path, device: Device, quiet: bool) -> Iterator[Session]:
    """An open session with progress on stderr; its warnings are said at the end."""
    from landscape_cli import console
    from landscape_cli.session import open_session

    with console.Progress(quiet) as watch:
        session = open_session(experiment, results, device, watch)
        try:
            yield session
        finally:
            watch.stop()
            for line in dict.fromkeys(session.warnings):
                console.warn(line)


def _leave(statuses: Any) -> None:
    """Exit code 3 where some runs or metrics did not come out well."""
    if set(statuses) & {"failed", "diverged", "not_converged"}:
        raise typer.Exit(3)


def _show_plan(session: Session, json: bool) -> None:
    from landscape_cli import console, experiment

    plan = experiment.plan(session)
    console.show_json(plan) if json else console.plan(plan)


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
    _, experiment = _read(config, sets, plugin, seeds)
    with _session(experiment, results, device, quiet) as session:
        from landscape_cli import console
        from landscape_cli import experiment as pipeline

        if dry_run:
            return _show_plan(session, json)
        table = pipeline.train(session, fresh=fresh, wait=wait)
    console.show_json({"runs": pipeline.as_json(table)}) if json else console.runs(table)
    _leave(table["status"])


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
    sets = [*(sets or []), *_as_setting(metrics)]
    _, experiment = _read_for(checkpoints, config or target[0], config is None, sets, plugin, seeds)
    from landscape_cli import experiment as pipeline
    from landscape_cli.config import measurements

    wanted = measurements(experiment)
    if checkpoints:
        with console.Progress(quiet) as watch:
            _, table = pipeline.measure_checkpoints(experiment, checkpoints, results, wanted, device, watch)
    else:
        with _session(_with_snapshots(experiment, along), results, device, quiet) as session:
            table = pipeline.measure(session, wanted, wait=wait)
    if json:
        console.show_json({"metrics": pipeline.as_json(table)})
    else:
        console.metrics(table[table["epoch"].isna()])
        for line in pipeline.trouble_along(table):
            console.warn(line)
    _leave(table["status"])


CHECKPOINTS = (".pt", ".pth", ".safetensors")


def _as_setting(metrics: str | None) -> list[str]:
    """What `--metrics` says, as `--set` would."""
    if metrics is None:
        return []
    names = [name.strip() for name in metrics.split(",") if name.strip()]
    return [f"metrics={names[0]}" if names in (["default"], ["all"]) else f"metrics=[{', '.join(names)}]"]


def _read_for(
    checkpoints: list[Path], target: str, own: bool, sets: list[str], plugin: list[str] | None, seeds: int | None
) -> tuple[Any, Experiment]:
    """The config of an experiment or of checkpoints; a checkpoint of ours brings its own."""
    if not (checkpoints and own):
        return _read(target, sets, plugin, seeds)
    from landscape_cli import minima

    about = minima.metadata(checkpoints[0])
    if "settings" not in about:
        raise Fault(f"{checkpoints[0]}: says nothing of its model and dataset: name them with --config CONFIG")
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{checkpoints[0].stem}.yaml"
        path.write_text(json_module.dumps({"name": about["run_id"], **about["settings"]}))
        return _read(str(path), sets, plugin, seeds)


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
    sets = [*(sets or []), *_as_setting(metrics)]
    _, experiment = _read(config, sets, plugin, seeds)
    with _session(_with_snapshots(experiment, along), results, device, quiet) as session:
        from landscape_cli import console
        from landscape_cli import experiment as pipeline

        if dry_run:
            return _show_plan(session, json)
        table = pipeline.compare(session, fresh=fresh, wait=wait)
    runs, failures = pipeline.outcome(session)
    if json:
        console.show_json({"comparison": pipeline.as_json(table), "report": str(session.folder / "report.html")})
    else:
        console.comparison(table, session.groups, runs, session.folder)
    for line in failures:
        console.warn(line)
    _leave(["failed"] if failures else [])


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
    tree, experiment = _read(config, sets, plugin, seeds)
    from landscape_cli import console
    from landscape_cli import experiment as pipeline
    from landscape_cli.config import origins

    values = origins(tree, experiment)
    with _session(experiment, results, device, quiet=True) as session:
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
    """List metrics, models, datasets or configs, one line each.

    Example: landscape list metrics --verbose
    """
    from landscape_cli import config, console, registry

    if what == "configs":
        rows = [{"name": name, "summary": config.summary(path)} for name, path in config.shipped().items()]
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
    experiment = _read(config, None, plugin, None)[1] if config else None
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
