"""Fills the shelves: the package's own modules, installed packages that declare `landscape_cli`, and `--plugin`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.metadata import entry_points
from pathlib import Path

from landscape_cli.registry.errors import Fault


def load_plugins(names: list[str]) -> None:
    """Import the package's own shelves, every installed package that declares `landscape_cli`, then `names`.

    Args:
        names: files (`./my_nets.py`) or modules (`my_package.nets`), as `--plugin` takes them.
    Raises: Fault if one cannot be imported.
    """
    for own in ("data", "network.models", "metrics"):
        importlib.import_module(f"landscape_cli.{own}")
    for point in entry_points(group="landscape_cli"):
        point.load()
    for name in names:
        try:
            _import_file(Path(name)) if name.endswith(".py") else importlib.import_module(name)
        except Fault:
            raise
        except Exception as error:
            raise Fault(f"--plugin {name}: {type(error).__name__}: {error}") from error


def _import_file(path: Path) -> None:
    if not path.is_file():
        raise Fault(f"--plugin {path}: no such file")
    spec = importlib.util.spec_from_file_location(f"landscape_plugin_{path.stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
