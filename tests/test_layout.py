"""The house: rooms with the field's names, imports that go down only, a test file for every module."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "landscape_cli"
ORDER = (  # a package imports only packages to its right
    *("cli", "experiment", "report", "audit", "surface", "metrics", "training"),
    *("curvature", "network", "loss", "engine", "data", "store", "config", "registry"),
)
LIBRARY = {"metrics", "curvature", "network", "loss"}  # usable from a notebook: no configs, files or terminals
NOT_FOR_LIBRARY = {"config", "store", "engine", "experiment", "cli", "report"}
TESTED_ELSEWHERE = {  # module -> where its tests are, and why not under its own name
    "__main__": "cli/test_run.py: a process is tested through its commands",
}
ENTRIES = 16
LINES = 60  # of a function's body
ARGUMENTS = 9


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    """The package of a module; of a module that stands outside of all, its own name."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """Rooms that a module imports from, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "landscape_cli":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("landscape_cli."):
            yield str(node.module).split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("landscape_cli."))
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path}: relative import"


def functions(path: Path) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{path.relative_to(PACKAGE)}:{node.lineno} {node.name}", node


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a body without its docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0  # type: ignore[operator]


def test_few_entries_and_each_is_a_package_of_the_order() -> None:
    entries = {p.name for p in PACKAGE.iterdir() if not p.name.startswith("__")} - {"configs"}
    assert len(entries) <= ENTRIES
    assert {name.removesuffix(".py") for name in entries} == set(ORDER)


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_to_the_right(path: Path) -> None:
    own, found = room(path), set(imported(path)) & {*ORDER}
    if own in ORDER:
        assert {other for other in found if ORDER.index(other) < ORDER.index(own)} == set()
    if own in LIBRARY:
        assert found & NOT_FOR_LIBRARY == set()


def test_every_package_says_what_lives_there_and_what_it_may_import() -> None:
    for name in ORDER:
        text = ast.get_docstring(ast.parse((PACKAGE / name / "__init__.py").read_text("utf-8"))) or ""
        assert 2 <= len(text.splitlines()) <= 6, name
        assert "mport" in text, f"{name}: says nothing of imports"


def test_no_two_names_differ_by_an_ending() -> None:
    """`audit` beside `auditing`: a reader cannot tell which is which. Also no two modules of one name."""
    stems = [p.stem for p in modules() if not p.stem.startswith("__")] + list(ORDER)
    same_step = {
        "audit",
        "surface",
        "data",
        "network",
        "hessian",
        "loss",
    }  # a step of `cli` and `experiment` is called as its room
    for a, b in combinations(sorted(stems), 2):
        if a == b:
            assert a in same_step, a
        for ending in ("s", "ing", "er", "ed", "or"):
            assert b != a + ending, (a, b)


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_every_module_has_a_test_file(path: Path) -> None:
    place = path.relative_to(PACKAGE)
    name = str(place.with_suffix(""))
    if path.stem == "__init__" or name in TESTED_ELSEWHERE:
        return
    assert (ROOT / "tests" / place.with_name(f"test_{place.name}")).is_file(), (
        f"{name}: no tests/{place.parent}/test_{place.name}"
    )


def test_reasons_are_still_needed() -> None:
    for name, reason in TESTED_ELSEWHERE.items():
        assert (PACKAGE / f"{name}.py").is_file(), name
        assert not (ROOT / "tests" / Path(name).parent / f"test_{Path(name).name}.py").is_file(), name
        assert (ROOT / "tests" / reason.partition(":")[0]).is_file(), reason


def test_functions_are_short() -> None:
    """Bodies: median 6 lines, 9 of 10 below 20, none above 60; at most 9 parameters, but for a command's options."""
    found = [(body_lines(f), where, f) for path in modules() for where, f in functions(path)]
    sizes = sorted(size for size, _, _ in found)
    assert [where for size, where, _ in found if size > LINES] == []
    assert sizes[len(sizes) // 2] <= 6
    assert sizes[len(sizes) * 9 // 10] < 20
    for _, where, f in found:
        command = any(isinstance(d, ast.Call) and ast.unparse(d.func).endswith(".command") for d in f.decorator_list)
        count = len(f.args.posonlyargs + f.args.args + f.args.kwonlyargs) - (
            f.args.args[:1] != [] and f.args.args[0].arg == "self"
        )
        settings = any(
            ast.unparse(d).startswith(("metric(", "model", "dataset", "optimizer")) for d in f.decorator_list
        )
        assert command or settings or count <= ARGUMENTS, f"{where}: {count} parameters"
