"""Where the work stands, on stderr: a live line on a terminal, else one line a minute. Nothing here may end a job."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from rich import progress as bars
from rich.table import Column

from landscape_cli.cli import streams, terminal
from landscape_cli.cli.terminal import safe

if TYPE_CHECKING:
    from landscape_cli.training import State

LIVE, EVERY = 0.1, 60.0  # seconds between two looks of a live line, and between two lines without a terminal
FARTHEST = 100  # times as many steps as were seen: a power law says nothing beyond


@contextmanager
def shown(quiet: bool) -> Iterator[Callable[[str, dict[str, Any]], None]]:
    """A watch for the pipeline; while it is open, what others print to stdout goes to stderr."""
    with streams.only_results():
        display = None if quiet else _started()
        try:
            yield display or (lambda event, facts: None)
        finally:
            with suppress(Exception):
                if display:
                    display.bars.stop()


def _started() -> Display | None:
    """A display; a terminal that can show none is no reason not to work."""
    with suppress(Exception):
        display = Display()
        display.bars.start()
        return display
    return None


@contextmanager
def download(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A watch for downloads: file, bytes present, bytes in all; speed and time left on a terminal."""
    columns = (bars.DownloadColumn(), bars.TransferSpeedColumn(), bars.TimeRemainingColumn())
    console = terminal.stderr()
    view = bars.Progress(_text(), *columns, console=console, disable=quiet or not console.is_terminal)
    tasks: dict[str, bars.TaskID] = {}

    def watch(file: str, present: int, total: int) -> None:
        if file not in tasks:
            tasks[file] = view.add_task(safe(file))
        view.update(tasks[file], completed=present, total=total or None)

    with view:
        yield watch


class Display:
    """Receives the events of the pipeline.

    Events: train {runs, done, stacks}, stack {stack}, step {stack, state}, run {record}, measure {cells, unit},
    metric {metric}, cell {metric, runs}, draw {}.
    """

    def __init__(self) -> None:
        self.console = terminal.stderr()
        self.live = self.console.is_terminal and not self.console.is_dumb_terminal
        self.bars = bars.Progress(
            _text("cyan"),
            bars.TimeElapsedColumn(Column(min_width=len("0:00:00"))),
            console=self.console,
            transient=True,
            auto_refresh=False,
            disable=not self.live,
            speed_estimate_period=math.inf,  # of one stack or one list of cells, whose pace is even
        )
        self.line = self.bars.add_task("", total=None)
        self.work = self.bars.add_task("", total=None, visible=False)  # its pace: steps, or cells
        self.runs = self.runs_done = 0
        self.unit = "cells"
        self.drawn = time.monotonic()

    def __call__(self, event: str, facts: dict[str, Any]) -> None:
        """Note an event, and show where things stand."""
        due = time.monotonic() - self.drawn > (LIVE if self.live else EVERY)
        if event == "step" and not due:
            return  # thousands come each second
        text = self._note(event, facts)
        if text and (due or (self.live and event in ("metric", "draw"))):
            self.drawn = time.monotonic()
            self._show(text)

    def _note(self, event: str, facts: dict[str, Any]) -> str:
        """What there is to say after an event; nothing after most."""
        if event == "train":
            self.runs, self.runs_done = facts["runs"], facts["done"]
        elif event == "run":
            self.runs_done = min(self.runs, self.runs_done + 1)
        elif event == "stack":
            self.bars.reset(self.work, total=None)
        elif event == "step":
            return self._training(facts["stack"], facts["state"])
        elif event == "measure":
            self.bars.reset(self.work, total=facts["cells"])
            self.unit = facts.get("unit", "cells")
        elif event == "metric":
            task = self._task
            done = f"{int(task.completed)}/{int(task.total or 0)} {self.unit}"
            return f"measuring {safe(facts['metric'])}  {done}{_left(task.time_remaining)}"
        elif event == "cell":
            self.bars.advance(self.work, facts["runs"])
        return "drawing figures and report" if event == "draw" else ""

    @property
    def _task(self) -> bars.Task:
        return self.bars.tasks[1]

    def _training(self, stack: list[Any], state: State) -> str:
        losses = [h["train_loss"][-1] for h in state.history if h["train_loss"]]
        loss = f"  loss {max(losses):.3g}" if losses else ""
        self.bars.update(self.work, completed=state.step)
        stops = [stack[row].settings.training.stop for row in state.active]
        ends = [
            forecast(state.history[row], stop.train_loss, stop.max_epochs, stop.max_steps)
            for row, stop in zip(state.active, stops, strict=True)
        ]
        known, pace = [end for end in ends if end is not None], self._task.speed
        ready = bool(known) and len(known) == len(ends) and pace  # the slowest one decides
        left = _left((max(known) - state.step) / pace, " for these") if ready and pace else ""
        return f"training {safe(stack[0].group)}  {self.runs_done}/{self.runs} runs  step {state.step}{loss}{left}"

    def _show(self, text: str) -> None:
        if self.live:
            self.bars.update(self.line, description=text, refresh=True)
        else:
            elapsed = bars.TimeElapsedColumn().render(self.bars.tasks[0])
            terminal.note(f"{text}  {elapsed}")


def _text(style: str = "") -> bars.TextColumn:
    """Text that is no markup, cut at the edge of the terminal."""
    fits = Column(no_wrap=True, overflow="ellipsis", ratio=1)
    return bars.TextColumn("{task.description}", style=style or "none", markup=False, table_column=fits)


def _left(seconds: float | None, whose: str = "") -> str:
    """A time that is left, where it is known and means something."""
    if seconds is None or not math.isfinite(seconds):
        return ""
    return f"  about {max(0.0, seconds):.0f} s left{whose}"


def forecast(
    history: dict[str, list[float]], goal: float | None, max_epochs: float | None = None, max_steps: float | None = None
) -> float | None:
    """The step at which a loss that falls as a power of the step, x = c s^-a, will be at its goal.

    Args:
        history: epoch, step and train_loss of a run, look by look.
        goal: the loss at which training ends.
        max_epochs: when it ends at the latest.
        max_steps: the same, in steps.
    Returns: finite and positive; None where there is no goal, too little is known, the loss does not fall, or the goal
        is out of reach.
    """
    looks = list(zip(history["step"], history["train_loss"], strict=False))
    points = [(s, x) for s, x in looks if 0 < s < math.inf and 0 < x < math.inf]
    if not goal or len(points) < 5 or points[-1] != looks[-1]:
        return None
    last, loss = points[-1]
    earlier = [(s, x) for s, x in points if s * 1.5 <= last]
    recent = [x for s, x in points if s * 1.5 > last]
    higher = [(s, x) for s, x in earlier if x > loss]
    if not higher or min(recent) >= min(x for _, x in earlier):
        return None  # flat or rising
    s, x = higher[-1]
    falls = math.log(x) - math.log(loss)
    if falls <= 0:  # by less than rounding
        return None
    log_end = math.log(last) + max(0.0, math.log(loss) - math.log(goal)) * math.log(last / s) / falls
    limit = min(FARTHEST * last, 2.0**63, max_steps or math.inf, _last_step(history, max_epochs))
    return math.exp(log_end) if log_end < 700 and math.exp(log_end) <= limit else None


def _last_step(history: dict[str, list[float]], epochs: float | None) -> float:
    """The step of the last epoch, by the pace of the steps seen."""
    looks = zip(history.get("epoch", []), history["step"], strict=False)
    paces = [s / e for e, s in looks if 0 < e < math.inf and 0 < s < math.inf]
    return paces[-1] * epochs if epochs and paces else math.inf
