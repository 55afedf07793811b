"""How work says where it stands: events for a watch, whose failures never reach the work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec

from landscape_cli.registry.errors import reason

P = ParamSpec("P")
Watch = Callable[[str, dict[str, Any]], None]  # event, facts; see cli/progress.py


def contained(watch: Callable[P, None], warnings: list[str]) -> Callable[P, None]:
    """The watch, but for its failures: the first one becomes a warning, and from then on it is left alone.

    Args:
        watch: is called with an event.
        warnings: gets the line.
    """
    failed = False

    def call(*args: P.args, **kwargs: P.kwargs) -> None:
        nonlocal failed
        if failed:
            return
        try:
            watch(*args, **kwargs)
        except (Exception, SystemExit) as error:  # not signals: they are neither
            failed = True
            warnings.append(f"progress is no longer shown: {reason(error)}")

    return call
