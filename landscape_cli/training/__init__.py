"""SGD on a stack of runs: the loop over epochs and steps, optimizers, schedules, and when a run leaves.

Imports `curvature`, `network`, `loss`, `data`, `config`, `registry`. Begin with loop.py; a step is in optimizers.py.
"""

from landscape_cli.training.loop import stack_size, stream, threads, train, work_of
from landscape_cli.training.optimizers import common
from landscape_cli.training.schedule import batch_of, constant_rate, scaling
from landscape_cli.training.state import Outcome, State, begin

__all__ = [
    "Outcome",
    "State",
    "batch_of",
    "begin",
    "common",
    "constant_rate",
    "scaling",
    "stack_size",
    "stream",
    "threads",
    "train",
    "work_of",
]
