"""SGD on a stack of runs: the loop over epochs and steps, optimizers, schedules, and when a run leaves.

Imports `curvature`, `network`, `loss`, `data`, `registry`. Begin with loop.py; a step is in optimizers.py.
"""

from landscape_cli.training.loop import (
    PER_RUN,
    Outcome,
    Settings,
    State,
    batch_of,
    begin,
    stack_size,
    stream,
    threads,
    train,
    work_of,
)

__all__ = [
    "PER_RUN",
    "Outcome",
    "Settings",
    "State",
    "batch_of",
    "begin",
    "stack_size",
    "stream",
    "threads",
    "train",
    "work_of",
]
