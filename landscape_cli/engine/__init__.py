"""Where units of work run, this process on all cores or one accelerator; and how a signal stops them between two steps.

Imports `network` (its memory) and `registry`. Begin with local.py.
"""

from landscape_cli.engine.local import Interrupted, check, device, facts, interrupted, interruptible, on_threads
from landscape_cli.engine.watch import Watch, contained

__all__ = [
    "Interrupted",
    "Watch",
    "check",
    "contained",
    "device",
    "facts",
    "interrupted",
    "interruptible",
    "on_threads",
]
