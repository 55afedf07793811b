"""The commands that look at what there is: report, show, list, doctor, schema."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from landscape_cli.cli.options import (
    CONFIG,
    LOOKING,
    RESULTS,
    Debug,
    Json,
    Plugins,
    Quiet,
    Results,
    Seeds,
    Sets,
    Shelf,
    Where,
    app,
    load,
    opened,
    read,
)


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
    load(None)
    from landscape_cli.cli import terminal
    from landscape_cli.experiment import draw_report

    page = draw_report.rewrite_report(folder.resolve())
    terminal.show_json({"report": str(page)}) if json else terminal.say(str(page))


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
    from landscape_cli.cli import print_tables, terminal
    from landscape_cli.config import origins
    from landscape_cli.experiment import planning

    values = origins(tree, experiment)
    with opened(experiment, results, device, quiet=True) as session:
        plan = planning.plan(session)
    if json:
        terminal.show_json({"config": experiment.model_dump(), "plan": plan})
    else:
        print_tables.origins(values)
        print_tables.plan(plan)


@app.command(name="list", rich_help_panel=LOOKING)
def list_(
    what: Annotated[Shelf, typer.Argument(help="Which shelf.")],
    plugin: Plugins = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Settings, sources and invariances too.")] = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """List metrics, models, datasets, kinds of surface, configs or transforms, one line each.

    Example: landscape list metrics --verbose
    """
    from landscape_cli import config, registry
    from landscape_cli.cli import print_tables, terminal

    if what == "configs":
        rows = [{"name": name, "summary": config.summary(path)} for name, path in config.shipped().items()]
    elif what == "transforms":
        from landscape_cli.audit.transforms import TRANSFORMS

        rows = [{"name": name, "summary": t.summary, "keeps": t.keeps} for name, t in TRANSFORMS.items()]
    else:
        load(plugin)
        rows = [registry.describe(entry) for entry in registry.REGISTRY[registry.SHELVES[what]].values()]
    terminal.show_json({what: rows}) if json else print_tables.shelf(rows, verbose)


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
    from landscape_cli.cli import print_tables, streams, terminal
    from landscape_cli.experiment import doctor
    from landscape_cli.experiment.session import open_session

    with streams.only_results():
        session = open_session(experiment, results) if experiment else None
        found = doctor.examine(results, session)
    terminal.show_json({"findings": found}) if json else print_tables.findings(found)


@app.command(rich_help_panel=LOOKING)
def schema(plugin: Plugins = None, debug: Debug = False) -> None:
    """Print the JSON Schema of the YAML, for editors.

    Example: landscape schema > landscape.schema.json
    """
    from landscape_cli import config
    from landscape_cli.cli import terminal

    load(plugin)
    terminal.show_json(config.json_schema())
