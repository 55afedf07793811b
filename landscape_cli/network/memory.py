"""How much memory a piece of work may take: one budget, and the sizes of the pieces that work is cut into.

Values do not depend on it but for rounding: what is measured, and how, is decided by the constants LARGEST and GRAM.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache
from pathlib import Path

ENOUGH = 2**32  # bytes of budget with which pieces have the sizes below: no machine takes more unasked

# Bytes of a piece. A larger piece than these gains no time; a smaller one is taken where the budget is smaller.
WIDEST = 2**22  # the widest activation of a pass without slopes
CACHE = 2**23  # activations of a pass over small layers, which then stay in the cache
SHARED = 2**24  # activations of a pass that several backward passes share
PRODUCTS = 2**25  # a block of inner products, or of products with sample Hessians
BLOCK = 2**26  # inputs, columns or frequencies gathered at once
GRADIENTS = 2**27  # gradients of single samples
TAPS = 2**28  # inputs and slopes of all layers
STACKED = 2**29  # parameters, gradients and activations of many minibatches at once
PASS = 2**30  # activations that are kept for the way back
WHOLE = 2**31  # one layer's activations over all samples; a basis of Lanczos vectors

LARGEST = 2**30  # bytes of a matrix that is formed as a whole: what needs more is undefined, on every machine alike
GRAM = 2**29  # bytes on the way to the inner products of all samples: beyond, minibatches are drawn instead

_given: ContextVar[int | None] = ContextVar("memory", default=None)


def budget() -> int:
    """Bytes that work may take: what `limited` says, else half of what was free at first, at most ENOUGH."""
    return _given.get() or min(ENOUGH, _free() // 2)


def pieces(each: float, most: int) -> int:
    """How many things of `each` bytes make a piece: at least one, at most `most` bytes of them and half the budget.

    The other half is for what is made of the piece. This is the one place where a budget becomes a size.
    """
    return max(1, int(min(most, budget() // 2) // max(1, each)))


def forms(size: float) -> bool:
    """Whether a matrix of so many bytes is formed: up to LARGEST on every machine, beyond where `limited` says so."""
    return size <= max(LARGEST, (_given.get() or 0) // 2)


@contextmanager
def limited(size: int | None) -> Iterator[None]:
    """Work inside takes about so many bytes; None leaves it to what is free."""
    before = _given.set(size)
    try:
        yield
    finally:
        _given.reset(before)


@cache
def _free() -> int:
    """Bytes that this process can still have, by the system and by the limit of its container; read once."""
    found = [ENOUGH * 2]
    with suppress(OSError, ValueError, AttributeError):
        found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found.append(int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) * 1024)
    with suppress(OSError, ValueError):
        limit, used = (int(Path("/sys/fs/cgroup", f"memory.{name}").read_text()) for name in ("max", "current"))
        found.append(limit - used)
    return max(1, min(found))
