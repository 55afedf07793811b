"""manifest.json: how results came to be, and a hash of every file."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from landscape_cli.store.files import TEMPORARY, file_hash, write
from landscape_cli.store.folder import LOCK, OWNER
from landscape_cli.store.json_files import FORMAT, to_json, utc

MANIFEST = "manifest.json"


PACKAGES = ["torch", "torchvision", "numpy", "scipy", "pandas", "scikit-learn", "safetensors", "distributed"]


def write_manifest(folder: Path, argv: Sequence[str], started: datetime, extra: dict[str, Any]) -> None:
    """Write manifest.json: how the results came to be, and a hash of every file. Never environment variables.

    Args:
        folder: of the experiment.
        argv: the command.
        started: when it began, with its time zone.
        extra: what else belongs there, JSON-able: device, threads, ...
    Raises: Fault, as `write`.
    """
    content = extra | {
        "format": FORMAT,
        "command": list(argv),
        "versions": _versions(),
        "platform": platform.platform(),
        "git": _git(),
        "started": utc(started),
        "ended": utc(datetime.now(UTC)),
        "files": {path.relative_to(folder).as_posix(): file_hash(path) for path in _lasting(folder)},
    }
    write(folder / MANIFEST, to_json(content))


def _lasting(folder: Path) -> list[Path]:
    """Files that make up the results: not the lock, unfinished files, snapshots of stacks, nor the manifest."""
    found = []
    for parent, folders, names in os.walk(folder):
        if Path(parent) == folder:
            folders[:] = [name for name in folders if name != "stacks"]
            names = [name for name in names if name not in (LOCK, OWNER, MANIFEST)]
        paths = [Path(parent, name) for name in names if not name.startswith(TEMPORARY)]
        found += [path for path in paths if path.is_file() and not path.is_symlink()]
    return sorted(found)


def _versions() -> dict[str, str]:
    """Versions of ourselves and of what the numbers depend on, from package metadata: nothing is imported."""
    versions = {"python": platform.python_version()}
    for name in ("landscape-cli", *PACKAGES):
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def _git() -> dict[str, Any] | None:
    """Commit of the current directory, and whether tracked files differ from it; None outside a checkout."""

    def ask(*words: str) -> str:
        command = ("git", "-c", "core.fsmonitor=false", "--no-optional-locks", *words)
        return subprocess.run(command, capture_output=True, check=True, timeout=2).stdout.decode().strip()

    try:
        return {"commit": ask("rev-parse", "HEAD"), "dirty": ask("status", "--porcelain", "-uno") != ""}
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
