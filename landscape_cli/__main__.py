"""The process: run a command; what goes wrong becomes one line and an exit code. Also `python -m landscape_cli`."""

from __future__ import annotations

import contextlib
import os
import sys

import typer

from landscape_cli.cli import app
from landscape_cli.registry.errors import Fault


def main() -> None:
    """Run the command line, and turn every fault into its line and exit code."""
    debug = "--debug" in sys.argv
    try:
        code = app(prog_name="landscape", standalone_mode=False)
    except Fault as fault:
        code = _complain(str(fault), fault.code, debug)
    except typer.Exit as done:
        code = done.exit_code
    except typer.Abort:
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has gone: nothing to say to it
        code = 0
    except Exception as error:
        code = _explain(error, debug)
    except BaseException as error:  # a signal; its class is torch's neighbour, and torch may not be loaded yet
        if type(error).__name__ != "Interrupted":
            raise
        code = _complain("interrupted: what was finished is kept; the same command goes on", error.code, debug)  # type: ignore[attr-defined]
    sys.exit(code if isinstance(code, int) else 0)


def run() -> None:
    """`main` as a process: leaves at once, for tearing torch down takes seconds and all files are on disk."""
    try:
        main()
    except SystemExit as done:
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.flush()
        os._exit(done.code if isinstance(done.code, int) else 0)


def _complain(text: str, code: int, debug: bool) -> int:
    if debug:
        import traceback

        traceback.print_exc()
    from landscape_cli.cli import terminal

    terminal.error(text)
    return code


def _explain(error: Exception, debug: bool) -> int:
    """Exit code of an exception that is no Fault: usage (2) or an internal error (1)."""
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # click's usage errors
        if not error.format_message():  # `landscape` alone: its help has been printed
            return 2
        hint = getattr(getattr(error, "ctx", None), "command_path", "landscape")
        return _complain(f"{error.format_message()}; see `{hint} --help`", 2, debug)
    text = f"internal error: {type(error).__name__}: {error}; --debug shows where, please report it"
    return _complain(text, 1, debug)


if __name__ == "__main__":
    run()
