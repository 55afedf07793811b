"""The commands and their options, and what a terminal shows: parse, call one function, print.

The top floor: imports everything, and nothing heavy before a command needs it. An option that several commands share is
in options.py, the others stand beside their command.
"""

from landscape_cli.cli import run, audit, data, surface, inspect  # noqa: I001  # in the order of --help
from landscape_cli.cli.options import app

__all__ = ["app", "audit", "data", "inspect", "run", "surface"]
