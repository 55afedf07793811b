"""The YAML of an experiment: found, read, checked as a whole with every fault named, and expanded into runs.

`read` needs no registry; `resolve` needs the shelves filled (`registry.load_plugins`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from landscape_cli.config import checks, yaml_tree
from landscape_cli.config.identity import Settings
from landscape_cli.config.problems import Problem, did_you_mean, dotted
from landscape_cli.config.schema import MEASURED, Experiment, Training, known_keys
from landscape_cli.config.yaml_tree import Tree, Where, flow, printable, shorten
from landscape_cli.registry.errors import Fault

MAX_PROBLEMS = 50


def shipped() -> dict[str, Path]:
    """The configs that come with the package, by name."""
    here = Path(__file__).parent.parent
    folder = next((f for f in (here / "configs", here.parent / "configs") if f.is_dir()), here)
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def summary(path: Path) -> str:
    """The first comment line of a config, but for the one that tells editors the schema."""
    for line in path.read_text("utf-8", "replace").splitlines():
        if line.startswith("#") and "yaml-language-server" not in line:
            return printable(line.lstrip("# ").rstrip())
    return ""


def find(target: str) -> Path:
    """The file of a config.

    Args:
        target: a path, the name of a file in ./configs, or the name of one that comes with the package.
    Raises: Fault if there is none, with the nearest name.
    """
    named = shipped()
    places = [Path(target), Path("configs") / f"{target}.yaml", *([named[target]] if target in named else [])]
    for path in places:
        if os.path.isfile(path):
            return path
    if os.path.isdir(target):
        raise Fault(f"config {printable(target)}: is a folder, name a file in it")
    names = sorted({*named, *(p.stem for p in Path("configs").glob("*.yaml"))})
    stem = Path(target).name.removesuffix(".yaml").removesuffix(".yml")
    near = did_you_mean(stem, names) or f"; known: {', '.join(map(printable, names))}"
    raise Fault(f"config {shorten(printable(target), 200)}: no such file or name{near}")


def read(target: str, sets: Sequence[str] = ()) -> Tree:
    """A config as written, with the place of each value; not yet checked against the schema.

    Args:
        target: as `find` takes it.
        sets: `key.path=value` overrides, in order.
    Raises: Fault if it is not one plain YAML mapping.
    """
    path = find(target)
    tree = yaml_tree.load(yaml_tree.read_text(path), str(path))
    return yaml_tree.override(tree, sets)


def of_settings(settings: dict[str, Any], source: str, sets: Sequence[str] = ()) -> Tree:
    """The same of settings that are no YAML, such as those in a checkpoint of ours.

    Args:
        settings: as in a file.
        source: where they stand, for messages.
        sets: as `read` takes them.
    """
    return yaml_tree.override(Tree(printable(source), settings), sets)


def resolve(tree: Tree) -> Experiment:
    """The experiment that a config describes, with all defaults.

    Raises: Fault with every fault of the config, one line each and a copy of the line where it stands.
    """
    data, known = tree.data, known_keys(tree.data)
    read = {key: checks.section(key, data[key], known) for key in MEASURED if key in data}
    sections = {"precision": "float32"} | {key: typed for key, (typed, _) in read.items()}
    problems = [p for _, found in read.values() for p in found] + checks.top(data, sections, known)
    normal = data | sections
    normal["grid"], found = checks.grid(data, known)
    problems += found
    normal["compare"], found = checks.compare(data.get("compare"), normal["grid"], data.get("grid"))
    problems += found
    normal["metrics"], found = checks.metrics(data.get("metrics", "default"))
    problems += found
    if None not in sections.values() and sections.keys() == {*MEASURED}:
        problems += checks.clashes(Settings(**sections), normal["grid"], data.get("seeds", 1))
    if problems:
        raise _fault(tree, problems)
    return Experiment.model_validate(normal)


def section(key: Literal["dataset", "model", "training"], **given: Any) -> Any:
    """One typed section, as a config would give it: `section("dataset", name="digits", train_size=1000)`.

    Raises: Fault with everything that is wrong with it.
    """
    typed, problems = checks.section(key, given, known_keys({key: given}))
    if problems:
        raise Fault("\n".join(f"{dotted(p.where)}: {p.text}" for p in problems))
    return typed


def trainings_of(tree: Tree, runs: Iterable[dict[str, Any]]) -> Iterator[Training | None]:
    """How runs of a config are trained, though it may name a model or dataset that is not registered here.

    Args:
        tree: from `read`.
        runs: of each its values of the grid's keys, as `Run.swept` has them.
    Yields: of each run; None if the section, or a value of the grid, is not valid.
    """
    known = known_keys(tree.data)
    base, _ = checks.section("training", tree.data.get("training"), known)
    grid, _ = checks.grid(tree.data, known)
    for swept in runs:
        training = base
        for key, title in swept.items():
            root, *rest = key.split(".")
            if root == "training" and training:
                values = grid.get(key, [])
                found = [v for t, v in zip(checks.titles(values), values, strict=True) if t == title]
                training = _or_none(training, tuple(rest), found[0] if found else title)  # of a grid that was other
        yield training


def _or_none(training: Training, path: Where, value: Any) -> Training | None:
    try:
        return checks.changed(training, path, value)  # type: ignore[no-any-return]
    except ValidationError:
        return None


def _fault(tree: Tree, problems: list[Problem]) -> Fault:
    placed = [(tree.place(p.where, p.at_key), f"{dotted(p.where)}: {p.text}") for p in problems]
    placed.sort(key=lambda one: (not one[0].line, one[0].line, one[0].column))
    lines = list(dict.fromkeys(place.say(text) for place, text in placed))
    more = [f"... and {len(lines) - MAX_PROBLEMS} more"] if len(lines) > MAX_PROBLEMS else []
    return Fault("\n".join(lines[:MAX_PROBLEMS] + more))


def dump(experiment: Experiment) -> str:
    """YAML that `read` and `resolve` give back equal, every default written out."""
    whole = experiment.model_dump()
    for key in ("compare", "audit", "surface"):
        if not whole[key]:
            del whole[key]
    lines = []
    for key, value in whole.items():
        if key == "training":
            lines += ["training:", *(f"  {k}: {flow(v)}" for k, v in value.items())]
        else:
            lines.append(f"{key}: {flow(value)}")
    return "\n".join(lines) + "\n"


def origins(tree: Tree, experiment: Experiment) -> list[tuple[str, Any, str]]:
    """Each resolved setting: its dotted key, its value, and `cfg.yaml:4`, `--set` or `default`."""
    return [(dotted(where), value, _origin(tree, where)) for where, value in _leaves(experiment.model_dump(), ())]


def _leaves(value: Any, where: Where) -> Iterator[tuple[Where, Any]]:
    if not isinstance(value, dict) or not value:
        yield where, value
        return
    for key, inner in value.items():
        yield from _leaves(inner, (*where, key))


def _origin(tree: Tree, where: Where) -> str:
    place = tree.values.get(where)
    if place is None:
        return "default"
    return f"{tree.source}:{place.line}" if place.line else "--set"
