"""Files that are there wholly or not at all, whatever is killed, full or broken in between."""

import errno
import hashlib
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from landscape_cli.registry.errors import Fault

T = TypeVar("T")
TEMPORARY = ".landscape-tmp-"  # how the names of our unfinished files begin


def write(path: Path, data: bytes) -> bool:
    """Put `data` into a file, wholly or not at all, and durably.

    Args:
        path: in a folder that exists.
        data: the whole content.
    Returns: False if the file held exactly this already; it was then not touched.
    Raises: Fault, as `write_many`.
    """
    return write_many([(path, data)]) > 0


def write_many(items: Iterable[tuple[Path, bytes]]) -> int:
    """Put several files in place, each wholly or not at all; none appears before all of them are on the disk.

    Args:
        items: path and whole content of each; folders must exist and are never made.
    Returns: how many files changed.
    Raises: Fault if the disk is full or fails, the folder is gone or read-only, or a symbolic link is in the way.
    """
    changed = [(path, data) for path, data in items if not _holds(no_link(path), data)]
    staged: list[tuple[Path, Path]] = []
    path = Path()
    try:
        for path, data in changed:
            staged.append((_stage(path.parent, data), path))
        while staged:
            temporary, path = staged[0]
            os.replace(temporary, path)
            del staged[0]
        for path in dict.fromkeys(path.parent for path, _ in changed):
            sync_folder(path)
    except OSError as error:
        raise write_fault(error, path, sum(len(data) for _, data in changed)) from error
    finally:
        for temporary, _ in staged:
            with suppress(OSError):
                temporary.unlink()
    return len(changed)


def no_link(path: Path) -> Path:
    """The path itself, if neither it nor its folder is a symbolic link.

    Args:
        path: to be written.
    Returns: path.
    Raises: Fault if there is one.
    """
    for place in (path, path.parent):
        if place.is_symlink():
            raise Fault(f"{place}: is a symbolic link, which is not followed for writing: put a real one in its place")
    return path


def remove(folder: Path, paths: Iterable[Path]) -> None:
    """Remove files of a results folder, durably; what is not there is no fault.

    Args:
        folder: the experiment's, or one in it.
        paths: in it, at any depth; all are looked at before any goes.
    Raises: Fault if one is not in the folder, lies behind a symbolic link or is one, or cannot be removed.
    """
    present = [path for path in paths if os.path.lexists(path)]
    for path in present:
        if ".." in path.parts or folder not in path.parents:
            raise Fault(f"{path}: is not in {folder}: nothing was removed")
        for place in (path, *(parent for parent in path.parents if folder in parent.parents)):
            no_link(place)
    path = folder
    try:
        for path in present:
            path.unlink(missing_ok=True)
        for path in dict.fromkeys(path.parent for path in present):
            sync_folder(path)
    except OSError as error:
        raise write_fault(error, path) from error


def remove_if_empty(folder: Path) -> None:
    """Remove a folder that holds nothing any more; one that is gone, or still holds something, is let be."""
    with suppress(OSError):
        folder.rmdir()


def _holds(path: Path, data: bytes) -> bool:
    try:
        return path.stat().st_size == len(data) and path.read_bytes() == data
    except OSError:  # what cannot be read is written; that fails with a better message
        return False


def _stage(folder: Path, data: bytes) -> Path:
    """Write `data` to a temporary file in `folder`, down to the disk; return its path."""
    temporary = folder / f"{TEMPORARY}{os.urandom(8).hex()}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        try:
            rest = memoryview(data)
            while rest:  # a nearly full disk takes a part, and fails at the next call
                rest = rest[os.write(descriptor, rest) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except BaseException:  # a signal too: whatever stops it, no half file stays
        with suppress(OSError):
            temporary.unlink()
        raise
    return temporary


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable.

    Args:
        folder: it exists.
    Raises: OSError if the disk fails.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems sync files only
            raise
    finally:
        os.close(descriptor)


def write_fault(error: OSError, path: Path, needed: int = 0) -> Fault:
    """What a failed system call means to the user.

    Args:
        error: from the system.
        path: what was to be written.
        needed: bytes.
    Returns: the Fault to raise: code 2 for a read-only place, else 1.
    """
    reason = error.strerror or str(error)
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return Fault(f"{path}: cannot be written ({reason}): make it writable, or use --results with another folder", 2)
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):
        wrong = "its folder is gone, deleted while in use? Nothing was made again: run the same command afresh"
        return Fault(f"{path}: {wrong}", 1)
    free: int | str = "unknown"
    with suppress(OSError):
        disk = os.statvfs(path if path.is_dir() else path.parent)
        free = disk.f_bavail * disk.f_frsize
    return Fault(
        f"{path}: cannot be written ({reason}): {needed} bytes needed, {free} free; what was there is intact: "
        "free some space or use --results with another disk, then run the same command to go on",
        1,
    )


def file_hash(path: Path) -> str:
    """sha256 of a file's content, hexadecimal.

    Args:
        path: of the file.
    Returns: 64 hexadecimal digits.
    Raises: OSError if it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Seen:
    """What files were found to hold in this command: one is read again only if it was replaced or changed meanwhile."""

    def __init__(self) -> None:
        self._known: dict[tuple[Path, Any], tuple[tuple[int, ...], Any]] = {}

    def read(self, path: Path, read: Callable[[Path], T]) -> T:
        """What `read` makes of a file.

        Args:
            path: of the file.
            read: a function of the path alone.
        Returns: its value, perhaps that of an earlier call: not to be changed.
        Raises: what `read` raises.
        """
        stamp = _stamp(path)  # before it is read: a change in between is then seen at the next call
        found = self._known.get((path, read))
        if not found or found[0] != stamp or not stamp:
            found = self._known[path, read] = (stamp, read(path))
        value: T = found[1]
        return value

    def hash(self, path: Path) -> str:
        """`file_hash` of a file."""
        return self.read(path, file_hash)


def _stamp(path: Path) -> tuple[int, ...]:
    """What changes when a file is replaced or written; empty if it cannot be told."""
    try:
        known = os.stat(path)
    except OSError:
        return ()
    return known.st_ino, known.st_size, known.st_mtime_ns, known.st_ctime_ns
