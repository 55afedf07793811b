"""`python -m landscape_cli`."""

from landscape_cli.cli import run

run()
