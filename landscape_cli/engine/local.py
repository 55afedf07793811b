"""Where work runs: this process, on all cores or one accelerator; and how a signal stops it between two steps."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch

from landscape_cli.network import memory
from landscape_cli.registry.errors import Fault

_pending: list[int] = []


class Interrupted(BaseException):
    """A signal asked to stop; what was finished is kept. `code` is the exit code, 128 + signal.

    Like KeyboardInterrupt it is no Exception, so that nothing which contains the faults of others can swallow it.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.code = 128 + number


@contextmanager
def interruptible() -> Iterator[None]:
    """First SIGINT or SIGTERM: noted, and raised by `check` at the next safe place. A second one ends at once."""

    def note(number: int, frame: FrameType | None) -> None:
        if not _pending:
            _pending.append(number)
        elif callable(at_once := before[number]):
            at_once(number, frame)
        else:
            os._exit(128 + number)

    before: dict[int, Any] = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        _pending.clear()
        for number, handler in before.items():
            signal.signal(number, handler)


def interrupted() -> bool:
    """Whether a signal waits for a safe place to stop."""
    return bool(_pending)


def check() -> None:
    """A safe place to stop.

    Raises: Interrupted if a signal has come.
    """
    if _pending:
        raise Interrupted(_pending[0])


def device(wanted: str) -> torch.device:
    """The device for `auto`, `cpu` or `cuda`, set up so that float32 means float32.

    `auto` is cuda where there is one, else cpu; never mps, where Hessians were silently zero (pytorch issue 88308).
    Raises: Fault, exit code 5, if there is no such device.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise Fault("--device cuda: this machine has no CUDA device that torch can use: take --device cpu", code=5)
    _keep_memory()
    torch.set_num_threads(torch.get_num_threads())  # else MKL may take fewer until their number is first set
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    return torch.device("cuda" if wanted == "cuda" or (wanted == "auto" and torch.cuda.is_available()) else "cpu")


def _keep_memory() -> None:
    """Let glibc reuse large blocks instead of returning each to the kernel: full-batch steps take a tenth less time."""
    mmap_threshold, trim_threshold = -3, -1
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(mmap_threshold, 2**25)  # the largest that it takes
        libc.mallopt(trim_threshold, 2**28)
    except (OSError, AttributeError):
        return  # another C library: only the speed is lost


@contextmanager
def on_threads(count: int | None) -> Iterator[None]:
    """Torch on so many threads; None leaves their number alone."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def facts(where: torch.device) -> dict[str, object]:
    """What the manifest says about the machine's part in the result."""
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else "cpu"
    return {"device": name, "threads": torch.get_num_threads(), "engine": "local", "memory": memory.budget()}
