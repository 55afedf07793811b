"""The command `surface` and its options, those of the `surface` section of a config."""

from __future__ import annotations

import re
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
    Plugins,
    Quiet,
    Results,
    Seeds,
    Sets,
    Wait,
    Where,
    app,
    leave,
    listed,
    opened,
    read_for,
    show_report,
    show_warnings,
)
from landscape_cli.registry.errors import Fault
from landscape_cli.surface.kinds import KINDS


def _defaults(option: str) -> str:
    """Of each kind that has one."""
    values = {name: kind.facts["options"].get(option) for name, kind in KINDS.items()}
    return ", ".join(f"{value:g} ({name})" for name, value in values.items() if isinstance(value, int | float))


Kind = Annotated[
    str | None,
    typer.Option(
        "--kind",
        metavar="|".join(KINDS),
        help="What to draw. " + " ".join(f"{kind.name}: {kind.summary}" for kind in KINDS.values()) + " Default: line.",
    ),
]
Points = Annotated[int | None, typer.Option("--points", help="Along each axis; 51.")]
Range = Annotated[
    float | None, typer.Option("--range", help=f"How far, from -range to range. Default: {_defaults('range')}.")
]
Normalization = Annotated[
    str | None, typer.Option("--normalization", metavar="filter|layer|weight|none", help="Of random directions.")
]
Ignore = Annotated[
    str | None, typer.Option("--ignore", metavar="biasbn|none", help="Biases and BatchNorm stay, or move too.")
]
BatchNorm = Annotated[
    str | None, typer.Option("--batchnorm", metavar="fixed|interpolate|recompute", help="Statistics off a minimum.")
]
Seed = Annotated[int | None, typer.Option("--seed", help="Of the directions; 0.")]
Draws = Annotated[int | None, typer.Option("--draws", help=f"Of the directions. Default: {_defaults('draws')}.")]
Curvature = Annotated[
    bool, typer.Option("--curvature", help="The Hessian's largest and smallest eigenvalue at each point too.")
]
Directions = Annotated[
    str | None, typer.Option("--directions", metavar="FILE", help="Take those of an earlier surface.")
]
Runs = Annotated[str | None, typer.Option("--runs", metavar="A,B", help="Whose minima; the first run of each group.")]


@app.command(rich_help_panel=RUNNING)
def surface(
    target: Annotated[list[str], typer.Argument(metavar="CONFIG|CHECKPOINT...", show_default=False)],
    config: Annotated[
        str | None, typer.Option("--config", help="For a checkpoint: the config that names its model and dataset.")
    ] = None,
    kind: Kind = None,
    points: Points = None,
    range_: Range = None,
    normalization: Normalization = None,
    ignore: Ignore = None,
    batchnorm: BatchNorm = None,
    seed: Seed = None,
    draws: Draws = None,
    curvature: Curvature = False,
    directions: Directions = None,
    run: Runs = None,
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
    sets = [*(sets or []), *(f"surface.{key}={value}" for key, value in given.items() if value is not None)]
    try:
        _, experiment = read_for(checkpoints, config or target[0], config is None, sets, plugin, seeds)
    except Fault as fault:  # of options, in the words in which they were given
        raise Fault(re.sub(r"--set surface\.(\w+)=", r"--\1 ", str(fault)), fault.code) from None
    from landscape_cli.cli import progress, terminal
    from landscape_cli.experiment import result_tables
    from landscape_cli.experiment import surface as surfaces
    from landscape_cli.store import surface_files

    runs = listed("--runs", run) if run is not None else None
    request = surfaces.request_of(experiment.surface, given, directions, runs)
    if checkpoints:
        with progress.shown(quiet) as watch:
            session, tables = surfaces.run_checkpoints(experiment, checkpoints, request, results, device, watch)
        show_warnings(session)
    else:
        with opened(experiment, results, device, quiet) as session:
            tables = surfaces.run(session, request, wait=wait)
    for line in session.failures:
        terminal.warn(line)
    if json:
        rows = {run_id: result_tables.as_json(table) for run_id, table in tables.items()}
        terminal.show_json({"surfaces": rows, "report": session.report})
        leave(["failed"] if session.failures else [])
        return
    for run_id, table in tables.items():
        path = session.folder / "surfaces" / f"{run_id}-{request.kind}.csv"
        facts = surface_files.facts(path.with_suffix(".safetensors"))
        terminal.say(f"{run_id}: {surfaces.summary(request.kind, table, facts)}")
        terminal.say(f"  {path}")
    show_report(session)
    leave(["failed"] if session.failures else [])
