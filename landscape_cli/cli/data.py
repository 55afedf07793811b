"""The commands `data fetch`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from landscape_cli.cli.options import (
    RUNNING,
    Debug,
    Json,
    Quiet,
    app,
)

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
    from landscape_cli.cli import progress, terminal
    from landscape_cli.data import download
    from landscape_cli.engine import contained

    files = download.sources(name)
    with progress.download(quiet) as watch:
        placed = [str(path) for path in download.fetch(files, root, contained(watch, []))]
    terminal.show_json({"files": placed}) if json else terminal.say("\n".join(placed))
