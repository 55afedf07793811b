"""The standard streams of the process: readers that have gone, encodings that lack a character, output of others."""

from __future__ import annotations

import codecs
import errno
import io
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

from landscape_cli.registry.errors import Fault

GONE = (errno.EPIPE, errno.EIO, errno.EBADF, errno.ENXIO, errno.ECONNRESET)  # nobody reads any more
PLAIN = {"…": "~", "–": "-", "—": "-", "±": "+-", "×": "x", "≥": ">=", "≤": "<=", "λ": "lambda"}


class Output(io.FileIO):
    """A stream that cannot end a job: what nobody reads any more is dropped; so is all that stderr does not take."""

    def write(self, data: Any) -> int:
        """All of it, or the Fault that names what stands in the way of stdout, such as a full disk."""
        try:
            while (written := super().write(data)) is None:  # a stream that does not block is full
                select.select([], [self.fileno()], [])
            return written
        except OSError as error:
            if error.errno in GONE or self.fileno() == 2:
                return len(data)
            raise Fault(f"standard output: cannot be written: {error.strerror}", code=1) from error


def replace() -> None:
    """Put streams of this kind in the place of stdout and stderr."""
    codecs.register_error("plain", plain)
    sys.stdout, sys.stderr = _stream(1, sys.stdout), _stream(2, sys.stderr)


def _stream(number: int, before: Any) -> io.TextIOWrapper:
    raw = Output(number, "w", closefd=False)
    encoding = getattr(before, "encoding", None) or "utf-8"
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, "plain", line_buffering=number == 2 or raw.isatty())


def plain(error: UnicodeError) -> tuple[str, int]:
    """Characters that the encoding of a stream lacks, as near to them as ASCII comes: an error handler of codecs."""
    assert isinstance(error, UnicodeEncodeError)
    lost = error.object[error.start : error.end]
    return "".join(PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in lost), error.end


@contextmanager
def only_results() -> Iterator[None]:
    """Keep stdout for results: what is printed meanwhile, also by C code and programs, goes to stderr."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
