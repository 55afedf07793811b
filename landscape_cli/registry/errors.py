"""The one exception that a user is meant to see: a line that says what is wrong, where, and what would be right."""


class Fault(Exception):
    """A user-facing error; the command line prints its lines and leaves with its exit code.

    Args:
        lines: one message, or several joined by newlines (all faults of a config at once).
        code: exit code: 2 usage or config, 3 some runs failed, 4 folder in use, 5 data or device missing.
    """

    def __init__(self, lines: str, code: int = 2) -> None:
        super().__init__(lines)
        self.code = code


def reason(error: BaseException) -> str:
    """An exception of other code in one line: its class, and the first line of what it says."""
    return ": ".join(filter(None, [type(error).__name__, *str(error).strip().splitlines()[:1]]))
