"""What commands have in common: options with their help, reading a config, opening a session, leaving."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from landscape_cli import __version__
from landscape_cli.registry.errors import Fault

if TYPE_CHECKING:
    from landscape_cli.config import Experiment, Measurement, Tree
    from landscape_cli.experiment.session import Session

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
Device = Literal["auto", "cpu", "cuda"]
Shelf = Literal["metrics", "models", "datasets", "optimizers", "surfaces", "configs", "transforms"]
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
SIZES = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
SIZES |= {"": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def size_of(text: str) -> int:
    """Bytes in `4GiB`, `500 MB` or `1e9`.

    Raises: Fault if that is no size, or less than a byte.
    """
    number, unit = re.fullmatch(r"\s*(.*?)\s*([A-Za-z]*)\s*", text, re.DOTALL).groups()  # type: ignore[union-attr]
    try:
        size = float(number) * SIZES[unit.upper()]
        if not 1 <= size < 2**63:
            raise ValueError
    except (KeyError, ValueError):
        raise Fault(f"--memory: {text!r} is no size: write a number and a unit, such as 4GiB or 500MB") from None
    return int(size)


def _limit(context: typer.Context, text: str | None) -> str | None:
    """Limit the memory of this command to what `--memory` says."""
    if text is not None:
        size = size_of(text)
        from landscape_cli.network import memory  # loads torch: only where it is asked for

        context.with_resource(memory.limited(size))
    return text


Memory = Annotated[
    str | None,
    typer.Option(
        "--memory", metavar="SIZE", callback=_limit, help="What work may take, e.g. 4GiB; half of what is free."
    ),
]
Metrics = Annotated[
    str | None, typer.Option("--metrics", metavar="A,B|default|all", help="Instead of the config's metrics.")
]
Along = Annotated[bool, typer.Option("--along", help="Measure the snapshots on the way too (training.snapshots).")]


def listed(option: str, text: str | None) -> list[str]:
    """The names in `A,B`; none if the option is not given.

    Raises: Fault if it is given and names nothing.
    """
    names = [name.strip() for name in (text or "").split(",") if name.strip()]
    if text is not None and not names:
        raise Fault(f"{option}: {text!r} names nothing: {option} A,B")
    return names


def read(target: str, sets: list[str] | None, plugins: list[str] | None, seeds: int | None) -> tuple[Tree, Experiment]:
    """A config as it stands, and the experiment that it describes."""
    from landscape_cli import config

    return resolved(config.read(target, sets or []), plugins, seeds)  # syntax first: it needs no torch


def resolved(tree: Tree, plugins: list[str] | None, seeds: int | None) -> tuple[Tree, Experiment]:
    """The same of a config that has been read."""
    from landscape_cli.cli import streams
    from landscape_cli.experiment import session

    with streams.only_results():
        return tree, session.resolve(tree, plugins or [], seeds)


def load(plugins: list[str] | None) -> None:
    """Fill the shelves; what plugins print goes to stderr."""
    from landscape_cli import registry
    from landscape_cli.cli import streams

    with streams.only_results():
        registry.load_plugins(plugins or [])


def with_snapshots(experiment: Experiment, along: bool) -> Experiment:
    """The experiment with `along` set, as `--along` asks for.

    Raises: Fault if none of its runs keeps a snapshot.
    """
    if not along:
        return experiment
    from landscape_cli import config

    if not any(run.settings.training.snapshots for run in config.expand(experiment)):
        remedy = "--set 'training.snapshots=[0, 1, 2, 5, 10]' (its runs are then trained anew)"
        raise Fault(f"--along: {experiment.name} keeps nothing on the way: add the epochs to keep, {remedy}")
    return experiment.model_copy(update={"along": True})


@contextlib.contextmanager
def opened(experiment: Experiment, results: Path, device: Device, quiet: bool) -> Iterator[Session]:
    """An open session with progress on stderr; its warnings are shown at the end."""
    from landscape_cli.cli import progress
    from landscape_cli.experiment.session import open_session

    session = None
    try:
        with progress.shown(quiet) as watch:
            session = open_session(experiment, results, device, watch)
            yield session
    finally:
        if session:
            show_warnings(session)


def show_warnings(session: Session) -> None:
    """What is to be known about the work, each line once."""
    from landscape_cli.cli import terminal

    for line in dict.fromkeys(session.warnings):
        terminal.warn(line)


def leave(statuses: Any) -> None:
    """Exit code 3 where some runs or metrics did not come out well."""
    if set(statuses) & {"failed", "diverged", "not_converged"}:
        raise typer.Exit(3)


def show_plan(plan: dict[str, Any], json: bool) -> None:
    """What `--dry-run` prints."""
    from landscape_cli.cli import print_tables, terminal

    terminal.show_json(plan) if json else print_tables.plan(plan)


def show_report(session: Session) -> None:
    """Where the report is, if it could be drawn."""
    from landscape_cli.cli import terminal

    if session.report:
        terminal.say(f"\nReport: {session.report}")


CHECKPOINTS = (".pt", ".pth", ".safetensors")


def as_setting(metrics: str | None) -> list[str]:
    """What `--metrics` says, as `--set` would.

    Raises: Fault if it names nothing.
    """
    names = listed("--metrics", metrics)
    if not names:
        return []
    return [f"metrics={names[0]}" if names in (["default"], ["all"]) else f"metrics=[{', '.join(names)}]"]


def read_for(
    checkpoints: list[Path], target: str, own: bool, sets: list[str], plugin: list[str] | None, seeds: int | None
) -> tuple[Any, Experiment]:
    """The config of an experiment or of checkpoints; a checkpoint of ours brings its own."""
    if not (checkpoints and own):
        return read(target, sets, plugin, seeds)
    from landscape_cli.store import checkpoints as minima

    about = minima.metadata(checkpoints[0])
    if not isinstance(about.get("settings"), dict):
        raise Fault(f"{checkpoints[0]}: says nothing of its model and dataset: name them with --config CONFIG")
    from landscape_cli import config

    settings = {"name": about.get("run_id", "checkpoint"), **about["settings"]}
    return resolved(config.of_settings(settings, str(checkpoints[0]), sets), plugin, seeds)


def measured(experiment: Experiment) -> list[Measurement]:
    """The metrics of an experiment that is to be measured.

    Raises: Fault if there are none.
    """
    from landscape_cli.config import measurements

    if wanted := measurements(experiment):
        return wanted
    raise Fault("metrics: the list is empty, so there is nothing to measure: name metrics, or take `default`")


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(f"landscape {__version__}")
        raise typer.Exit
