"""Results are written, renamed and removed by the package `store` alone."""

from __future__ import annotations

import ast
from pathlib import Path

import landscape_cli

ROOT = Path(landscape_cli.__file__).parent
OF_PATHS = {"unlink", "rmdir", "rename", "write_text", "write_bytes"}  # and replace, with one argument
OF_MODULES = {"os": {"unlink", "rmdir", "rename", "replace", "remove", "removedirs"}, "shutil": {"rmtree", "move"}}
EXCEPTIONS = {
    "data/download.py": "datasets lie in a cache of their own, beside no results",
    "cli/options.py": "a config in a temporary folder, read at once",
}


def calls(path: Path) -> set[str]:
    """Names of the calls in a file that could write, rename or remove a file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner, name = node.func.value, node.func.attr
            module = OF_MODULES.get(owner.id, set()) if isinstance(owner, ast.Name) else set()
            of_path = name == "replace" and len(node.args) == 1 and not node.keywords  # not text.replace(old, new)
            if name in module or name in OF_PATHS or of_path:
                found.add(name)
    return found


def test_only_store_writes() -> None:
    found = {path.relative_to(ROOT).as_posix(): calls(path) for path in ROOT.rglob("*.py")}
    writers = {name for name, called in found.items() if called and not name.startswith("store/")}
    assert writers <= EXCEPTIONS.keys(), {name: found[name] for name in writers - EXCEPTIONS.keys()}
    assert found["store/files.py"] >= {"unlink", "rmdir", "replace"}  # else the search finds nothing
