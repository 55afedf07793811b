"""Fills the shelves: the package's own modules, installed packages that declare `landscape_cli`, and `--plugin`."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path

from landscape_cli.registry.entries import FILE, withdraw
from landscape_cli.registry.errors import Fault, reason


def load_plugins(names: list[str]) -> None:
    """Import the package's own shelves, every installed package that declares `landscape_cli`, then `names`.

    Args:
        names: files (`./my_nets.py`) or modules (`my_package.nets`), as `--plugin` takes them; each is imported once.
    Raises: Fault if one cannot be imported, or registers what is registered already.
    """
    for own in ("data", "network.models", "training.optimizers", "metrics", "surface"):
        importlib.import_module(f"landscape_cli.{own}")
    for point in entry_points(group="landscape_cli"):
        with _named(f"installed plugin {point.name} ({point.value})"):
            point.load()
    imported: set[Path] = set()
    for name in names:
        with _named(f"--plugin {name}"):
            if not name.endswith(".py"):
                importlib.import_module(name)
            elif (path := Path(name).resolve()) not in imported:
                imported.add(path)
                _import_file(path)


@contextmanager
def _named(plugin: str) -> Iterator[None]:
    """Whatever the code of a plugin raises, as a Fault that names it; only signals pass."""
    try:
        yield
    except Fault as fault:
        raise Fault(f"{plugin}: {fault}", fault.code) from fault
    except SystemExit as left:
        raise Fault(f"{plugin}: calls sys.exit when it is imported ({reason(left)}): a plugin only registers") from left
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) or type(error).__name__ == "Interrupted":
            raise
        raise Fault(f"{plugin}: {reason(error)}") from error


def _import_file(path: Path) -> None:
    """Run a file as a module that is named by its whole path, so that two files of one name are two modules."""
    if not path.is_file():
        raise Fault("no such file")
    name = f"{FILE}{path.stem}_{hashlib.sha256(bytes(path)).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    withdraw(name)  # what it registered when this process imported it before
    exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)  # a cached .pyc may be older than the file
