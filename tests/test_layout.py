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
    *("cli", "experiment", "engine", "report", "audit", "surface", "metrics", "training"),
    *("curvature", "network", "loss", "data", "store", "config", "registry"),
)
LIBRARY = {"metrics", "curvature", "network", "loss"}  # usable from a notebook: no configs, files or terminals
NOT_FOR_LIBRARY = {"config", "store", "engine", "experiment", "cli", "report"}
TESTED_ELSEWHERE = {  # where, and why there -> modules without a test file of their own name
    "cli/test_app.py: a command is tried as it is met, through its process": (
        *("__main__", "cli/run", "cli/audit", "cli/data", "cli/inspect", "cli/surface", "cli/terminal"),
    ),
    "config/test_reading.py: a config is read, checked and expanded as a whole, its error lines word for word": (
        *("config/checks", "config/grid", "config/json_schema", "config/problems", "config/schema", "config/yaml_tree"),
    ),
    "audit/test_invariance.py: claims, curves and print are parts of the table that is audited": (
        *("audit/claims", "audit/curves", "cli/print_audit"),
    ),
    "curvature/test_lanczos.py: one list of operators with dense twins for all solvers": (
        *("curvature/conjugate_gradients", "curvature/traces"),
    ),
    "metrics/test_kl.py: against dense inverses, through the metrics that use them": ("curvature/kfac",),
    "curvature/test_sample_gradients.py: one list of nets with dense twins": ("curvature/fisher",),
    "metrics/test_sharpness.py: maxima of quadratics in closed form": ("metrics/ball_maximum",),
    "metrics/test_volume.py: what is made of perturbed points has closed forms": ("metrics/perturbation",),
    "metrics/test_norms.py: counts and norms of the same nets": ("metrics/baselines",),
    "metrics/test_regret.py: the scatter is compared with the minima that the regret finds": ("metrics/scatter",),
    "test_every_metric.py: common to all metrics": ("metrics/evaluate", "metrics/point", "registry/descriptions"),
    "network/test_forward.py: the layers of the stacked pass against plain modules": (
        *("network/layers", "network/batchnorm_folding", "network/batchnorm_statistics"),
    ),
    "audit/test_transforms.py: channels are what a transform scales": ("network/channels",),
    "network/models/test_models.py: common to all models": (
        *("network/models/convolutional", "network/models/dense"),
        *("network/models/published", "network/models/residual"),
    ),
    "data/test_datasets.py: common to all data sets": ("data/builtin",),
    "engine/test_watch.py: signals pass what contains faults": ("engine/local",),
    "experiment/test_compare.py: steps of one pipeline, by the files that they leave": (
        *("experiment/user_checkpoints", "experiment/audit", "experiment/planning", "experiment/result_tables"),
        "experiment/train_runs",
    ),
    "experiment/test_measure.py: cells are what measuring writes": ("experiment/cell_records",),
    "registry/test_plugins.py: entries come and go with plugins": ("registry/entries", "registry/errors"),
    "report/test_figures.py: common to all figures": ("report/figures_audit", "report/inputs", "report/plotting"),
    "store/test_records.py: garbled JSON is met by its readers": ("store/json_files",),
    "store/test_folder.py: the manifest is of a folder": ("store/manifest",),
    "surface/test_kinds.py: a span is what a kind returns": ("surface/span",),
    "training/test_loop.py: state and schedule are seen in the steps that they make": (
        *("training/schedule", "training/state"),
    ),
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
    """`audit` beside `auditing`: a reader cannot tell which is which. Modules of one name are a step and its room."""
    stems = [p.stem for p in modules() if not p.stem.startswith("__")] + list(ORDER)
    for a, b in combinations(sorted(stems), 2):
        assert a != b or a in STEPS, a
        for ending in ("s", "ing", "er", "ed", "or"):
            assert b != a + ending, (a, b)


STEPS = {"audit", "surface", "data"}  # a command or a step of the pipeline is called as the room that it leads to


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_every_module_has_a_test_file(path: Path) -> None:
    place = path.relative_to(PACKAGE)
    elsewhere = {name for names in TESTED_ELSEWHERE.values() for name in names}
    own = ROOT / "tests" / place.with_name(f"test_{place.name}")
    if path.stem != "__init__":
        assert own.is_file() != (str(place.with_suffix("")) in elsewhere), (
            f"{place}: {own.relative_to(ROOT)}, or a reason"
        )


def test_reasons_name_what_there_is() -> None:
    for reason, names in TESTED_ELSEWHERE.items():
        assert (ROOT / "tests" / reason.partition(":")[0]).is_file(), reason
        assert [name for name in names if not (PACKAGE / f"{name}.py").is_file()] == []


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
