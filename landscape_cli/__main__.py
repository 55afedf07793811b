"""The process: run a command; what goes wrong becomes one line and an exit code. Also `python -m landscape_cli`."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from types import FrameType

INTERRUPTED = "interrupted: what was finished is kept; the same command goes on"
SHOW_CURSOR = "\x1b[?25h"  # a live line hides it


def run() -> None:
    """`main` as a process: leaves at once, for tearing torch down takes seconds and all files are on disk."""
    for number in (signal.SIGINT, signal.SIGTERM):  # before the imports, which take a second
        signal.signal(number, _leave)
    _open_standard_streams()
    from landscape_cli.cli import streams

    streams.replace()
    try:
        main()
    except SystemExit as done:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(done.code if isinstance(done.code, int) else 0)


def main() -> None:
    """Run the command line, and turn every fault into its line and exit code."""
    import typer

    from landscape_cli.cli import app
    from landscape_cli.registry.errors import Fault

    debug = "--debug" in sys.argv
    try:
        code = app(prog_name="landscape", standalone_mode=False)
        sys.stdout.flush()
    except Fault as fault:
        code = _complain(str(fault), fault.code, debug)
    except typer.Exit as done:
        code = done.exit_code
    except typer.Abort:
        code = 130
    except SystemExit as left:  # we raise none: code of a plugin did
        code = _complain(f"sys.exit({left.code!r}) was called by code of a plugin: let it raise an error", 2, debug)
    except Exception as error:
        code = _explain(error, debug)
    except BaseException as error:  # a signal; its class is torch's neighbour, and torch may not be loaded yet
        if type(error).__name__ != "Interrupted":
            raise
        code = _complain(INTERRUPTED, error.code, debug)  # type: ignore[attr-defined]
    sys.exit(code if isinstance(code, int) else 0)


def _leave(number: int, _: FrameType | None) -> None:
    """What a signal does where nothing is being written: one line, and the exit code of a shell."""
    with contextlib.suppress(OSError):
        os.write(2, f"{SHOW_CURSOR if os.isatty(2) else ''}{INTERRUPTED}\n".encode())
    os._exit(128 + number)


def _open_standard_streams() -> None:
    """Let streams that come closed go nowhere: else the next file that is opened takes the number of one."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free


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
