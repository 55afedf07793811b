"""The results folder: its lock, run records and cells, the manifest."""

import errno
import json
import os
import platform
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from landscape_cli.registry.errors import Fault
from landscape_cli.store.files import TEMPORARY, no_link, sync_folder, write, write_fault
from landscape_cli.store.json_files import to_json, utc

LOCK, OWNER = ".lock", ".lock-owner.json"
SUBFOLDERS = ("runs", "cells", "minima", "plots", "stacks")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,80}")


def check_name(name: str, results: Path | None = None) -> str:
    """An experiment's or run's name, if it is safe as the name of a folder.

    Args:
        name: as the user or a file gave it.
        results: if given, results/name must not be a link either, to anywhere.
    Returns: the name.
    Raises: Fault if it is not safe.
    """
    if not NAME.fullmatch(name):
        remedy = "use 1 to 81 letters, digits, '.', '_', '-', the first a letter or digit"
        raise Fault(f"name {ascii(name)[:100]}: {remedy}")
    if results is not None and (results / name).resolve() != results.resolve() / name:
        raise Fault(f"{results / name}: is a symbolic link, which is not followed: remove it, or use another name")
    return name


def open_folder(results: Path, name: str, subfolders: Iterable[str] = SUBFOLDERS) -> Path:
    """Make the folder of an experiment, and try whether it can be written; the only place that makes folders.

    Args:
        results: holds all experiments; made if missing.
        name: of the experiment.
        subfolders: made in it.
    Returns: results/name.
    Raises: Fault if the name is not safe or the place cannot be written.
    """
    folder = results / check_name(name, results)
    place = folder
    try:
        for place in (folder, *(folder / subfolder for subfolder in subfolders)):
            (place if place == folder else no_link(place)).mkdir(parents=True, exist_ok=True)
            probe = place / f"{TEMPORARY}{os.urandom(8).hex()}"
            os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            probe.unlink()
        for place in (folder, results):
            sync_folder(place)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTDIR):
            wrong = "cannot be made, a file is in its place: remove that, or use --results with another folder"
            raise Fault(f"{place}: {wrong}") from error
        raise write_fault(error, place) from error
    return folder


@contextmanager
def lock(folder: Path, wait: bool = False) -> Iterator[None]:
    """Own an experiment's folder: one process at a time; files that killed processes left unfinished are removed.

    Args:
        folder: from `open_folder`.
        wait: wait for the present owner to finish, however long.
    Raises: Fault with code 4 if another process owns it; the lock of a killed process is free at once.
    """
    from filelock import FileLock, Timeout

    guard = FileLock(folder / LOCK, timeout=-1 if wait else 0)
    try:
        if not folder.is_dir():  # else filelock would make it
            raise FileNotFoundError(errno.ENOENT, "no such folder")
        guard.acquire()
    except Timeout:
        wrong = f"results folder {folder} is in use by {_owner(folder)}: wait for it, or use --results"
        raise Fault(wrong, code=4) from None
    except OSError as error:
        raise write_fault(error, folder / LOCK) from error
    try:
        owner = {"pid": os.getpid(), "host": platform.node(), "since": utc(datetime.now(UTC))}
        write(folder / OWNER, to_json(owner))
        _sweep(folder)
        yield
    finally:
        with suppress(OSError):
            (folder / OWNER).unlink()
        guard.release()


def _owner(folder: Path) -> str:
    """Who holds the lock, as its owner wrote it down; that may be missing for a moment, or garbled."""
    for _ in range(5):
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            owner = json.loads((folder / OWNER).read_bytes())
            who = f"process {int(owner['pid'])} on {owner['host'][:80]} since {owner['since'][:40]}"
            return who if who.isprintable() else "another process"
        time.sleep(0.02)  # it is written right after the lock was taken
    return "another process"


def _sweep(folder: Path) -> None:
    for parent, _, files in os.walk(folder):
        for name in files:
            if name.startswith(TEMPORARY):
                with suppress(OSError):
                    Path(parent, name).unlink()
