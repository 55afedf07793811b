"""Plugins: files are told apart by their whole path; what they raise or print is contained."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Call

from landscape_cli.registry import REGISTRY, load_plugins
from landscape_cli.registry.errors import Fault

NET = """
from torch import nn
from landscape_cli import model
loads = globals().get("loads", 0) + 1
@model
def {name}(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    "{summary}."
    {body}
"""


@pytest.fixture(autouse=True)
def shelves() -> Iterator[None]:
    """Leaves the shelves as they were."""
    before = {kind: dict(shelf) for kind, shelf in REGISTRY.items()}
    yield
    for kind, shelf in REGISTRY.items():
        shelf.clear()
        shelf.update(before[kind])


def plugin(path: Path, name: str, summary: str = "Nothing", body: str = "return nn.Flatten()", top: str = "") -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text(top + NET.format(name=name, summary=summary, body=body))
    return str(path)


def test_files_of_one_name_are_two_modules(tmp_path: Path) -> None:
    a, b = (plugin(tmp_path / x / "mine.py", f"net_{x}", f"Of {x}") for x in "ab")
    load_plugins([a, b])
    assert [REGISTRY["model"][f"net_{x}"].summary for x in "ab"] == ["Of a.", "Of b."]
    modules = {REGISTRY["model"][f"net_{x}"].function.__module__ for x in "ab"}
    assert len(modules) == 2


def test_what_is_registered_twice_is_refused_by_name(tmp_path: Path) -> None:
    a, b = (plugin(tmp_path / x / "mine.py", "twice") for x in "ab")
    with pytest.raises(Fault) as refused:
        load_plugins([a, b])
    assert str(refused.value) == f"--plugin {b}: model 'twice' is already registered by {a}"
    own = plugin(tmp_path / "own.py", "mlp")
    with pytest.raises(Fault, match="is already registered by landscape_cli"):
        load_plugins([own])
    both = tmp_path / "both.py"
    both.write_text(NET.format(name="same", summary="1", body="pass") * 2)
    with pytest.raises(Fault, match=f"--plugin {both}: model 'same' is already registered by {both}"):
        load_plugins([str(both)])


def test_a_file_given_twice_is_loaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    top = "with open('loads', 'a') as file: file.write('x')\n"
    plugin(tmp_path / "mine.py", "once", top=top)
    (tmp_path / "link.py").symlink_to("mine.py")
    load_plugins(["mine.py", "./mine.py", str(tmp_path / "mine.py"), "link.py"])
    assert (tmp_path / "loads").read_text() == "x"
    plugin(tmp_path / "mine.py", "once", "Changed", top=top)
    load_plugins(["mine.py"])  # in one process again: a notebook's next cell
    assert REGISTRY["model"]["once"].summary == "Changed."


@pytest.mark.parametrize(
    ("top", "said"),
    [
        ("import sys; sys.exit('no argument given')\n", "calls sys.exit when it is imported (SystemExit: no argument"),
        ("import sys; sys.exit(0)\n", "calls sys.exit when it is imported (SystemExit: 0)"),
        ("raise SystemExit\n", "calls sys.exit when it is imported (SystemExit)"),
        ("raise GeneratorExit('a\\nb')\n", "GeneratorExit: a"),
        ("1 / 0\n", "ZeroDivisionError: division by zero"),
        ("(\n", "SyntaxError: "),
        ("import no_such_package\n", "ModuleNotFoundError: No module named 'no_such_package'"),
    ],
)
def test_a_plugin_that_ends_itself_is_one_line(top: str, said: str, call: Call, tmp_path: Path) -> None:
    name = plugin(tmp_path / "bad.py", "bad", top=top)
    code, out, err = call("list", "models", "--plugin", name)
    assert (code, out) == (2, "") and err.startswith(f"--plugin {name}: {said}") and err.count("\n") == 1
    assert "bad" not in REGISTRY["model"]


def test_a_model_that_ends_the_program(call: Call, tmp_path: Path) -> None:
    name = plugin(tmp_path / "later.py", "leaves", body="import sys; sys.exit(0)")
    code, out, err = call("train", "tiny.yaml", "--plugin", name, "--set", "model={name: leaves}")
    assert (code, out) == (2, "") and err.startswith("model.name: 'leaves'") and err.count("\n") == 1
    assert not (tmp_path / "results").exists()


def test_what_a_plugin_prints_is_no_result(call: Call, tmp_path: Path) -> None:
    """At import, in its model, by print and by programs: stdout stays one JSON object."""
    loud = "import os; print('loud'); os.system('echo louder')"
    body = f"{loud}; return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))"
    name = plugin(tmp_path / "loud.py", "loud", body=body, top=f"{loud}\n")
    words = ("--plugin", name, "--set", "model={name: loud}", "--json", "--quiet")
    code, out, err = call("train", "tiny.yaml", "--set", "training.stop={max_epochs: 1}", *words)
    assert code == 0 and len(json.loads(out)["runs"]) == 2 and "loud" in err
    code, out, _ = call("list", "models", "--plugin", name, "--json")
    assert code == 0 and "loud" in {row["name"] for row in json.loads(out)["models"]}
