"""The YAML of an experiment: found, read, checked as a whole with every fault named, and expanded into runs.

`read` needs no registry; `resolve` needs the shelves filled (`registry.load_plugins`).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from landscape_cli import checks, yamlmarks
from landscape_cli.checks import canonical
from landscape_cli.errors import Fault
from landscape_cli.registry import REGISTRY, Entry
from landscape_cli.schema import (
    MEASURED,
    NAMED,
    Audit,
    Compare,
    Experiment,
    Stop,
    Surface,
    Training,
    known_keys,
    schema,
    takes_list,
)
from landscape_cli.wording import Problem, did_you_mean, dotted, explain
from landscape_cli.yamlmarks import Tree, Where, flow, printable, shorten

__all__ = [
    "Audit",
    "Compare",
    "Experiment",
    "Run",
    "Stop",
    "Surface",
    "Training",
    "Tree",
    "canonical",
    "digest",
    "dump",
    "expand",
    "find",
    "measurements",
    "origins",
    "read",
    "resolve",
    "schema",
    "shipped",
    "summary",
]
MAX_PROBLEMS = 50
HASH, RUN_ID = 8, 60  # hex digits at the end of a run id; its characters in all


@dataclass(frozen=True)
class Run:
    """One network to train: what it is made of, the seed, and the group that it counts for."""

    run_id: str
    group: str
    seed: int
    swept: dict[str, Any]
    settings: dict[str, Any]


def shipped() -> dict[str, Path]:
    """The configs that come with the package, by name."""
    here = Path(__file__).parent
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
    tree = yamlmarks.load(yamlmarks.read_text(path), str(path))
    return yamlmarks.override(tree, sets)


def resolve(tree: Tree) -> Experiment:
    """The experiment that a config describes, with all defaults.

    Raises: Fault with every fault of the config, one line each and a copy of the line where it stands.
    """
    data, known = tree.data, known_keys(tree.data)
    problems = checks.top(data, known)
    normal = dict(data)
    for key in NAMED:
        if key in data:
            normal[key], found = checks.section(key, data[key], known)
            problems += found
    normal["grid"], found = checks.grid(data, known)
    problems += found
    normal["compare"], found = checks.compare(data.get("compare"), normal["grid"], data.get("grid"))
    problems += found
    normal["metrics"], found = checks.metrics(data.get("metrics", "default"))
    problems += found
    base = {key: checks.section(key, data.get(key, "float32"), known)[0] for key in MEASURED}
    if None not in base.values():
        problems += checks.clashes(base, normal["grid"], data.get("seeds", 1))
    if problems:
        raise _fault(tree, problems)
    return Experiment.model_validate(normal)


def _fault(tree: Tree, problems: list[Problem]) -> Fault:
    placed = [(tree.place(p.where, p.at_key), f"{dotted(p.where)}: {p.text}") for p in problems]
    placed.sort(key=lambda one: (not one[0].line, one[0].line, one[0].column))
    lines = list(dict.fromkeys(place.say(text) for place, text in placed))
    more = [f"... and {len(lines) - MAX_PROBLEMS} more"] if len(lines) > MAX_PROBLEMS else []
    return Fault("\n".join(lines[:MAX_PROBLEMS] + more))


def _base(experiment: Experiment) -> dict[str, Any]:
    whole = experiment.model_dump()
    return {key: whole[key] for key in MEASURED}


def expand(experiment: Experiment) -> list[Run]:
    """Every run, in order: combinations of the grid with its last key fastest, in each the seeds 0, 1, ...

    Raises: Fault if a combination makes no sense as a whole, such as a batch larger than the training set.
    """
    if clash := checks.clashes(_base(experiment), experiment.grid, experiment.seeds):
        raise Fault("\n".join(f"{dotted(p.where)}: {p.text}" for p in clash))
    runs = []
    for swept, settings in checks.combinations(_base(experiment), experiment.grid):
        group = _group(experiment, swept)
        for seed in range(experiment.seeds):
            runs.append(Run(_run_id(swept, settings, seed), group, seed, swept, settings))
    return runs


def _group(experiment: Experiment, swept: dict[str, Any]) -> str:
    if experiment.compare:
        return checks.group_of(swept[experiment.compare.by], experiment.compare.labels)
    return checks.group_of(next(iter(swept.values())), {}) if swept else "all"


def _run_id(swept: dict[str, Any], settings: dict[str, Any], seed: int) -> str:
    parts = (f"{_short(key)}{_letters(value)}" for key, value in swept.items())
    tail = f"s{seed}-{digest({'settings': settings, 'seed': seed}, HASH)}"
    prefix = "-".join(parts)[: RUN_ID - len(tail) - 1].strip("-._")
    return f"{prefix}-{tail}" if prefix else tail


def _short(key: str) -> str:
    if key == "model":  # its value begins with its name
        return ""
    return "b" if key == "training.batch_size" else key.split(".")[-1].replace("_", "")


def _letters(value: Any) -> str:
    text = (
        "-".join(map(_letters, value)) if isinstance(value, list) else value if isinstance(value, str) else flow(value)
    )
    return re.sub(r"[^A-Za-z0-9._-]", "", text.replace(" ", "-"))


def digest(obj: Any, length: int) -> str:
    """The first `length` hex digits of the sha256 of the canonical JSON."""
    return hashlib.sha256(canonical(obj).encode()).hexdigest()[:length]


def measurements(experiment: Experiment) -> list[tuple[str, dict[str, Any]]]:
    """Each metric to measure with each complete combination of scalar settings, without repetitions.

    Raises: Fault if a default of a metric breaks the metric's own bounds.
    """
    chosen, shelf = experiment.metrics, REGISTRY["metric"]
    if isinstance(chosen, str):
        items: list[Any] = [e.name for e in shelf.values() if chosen == "all" or e.facts.get("default")]
    else:
        items = chosen
    pairs = [next(iter(i.items())) if isinstance(i, dict) else (i, {}) for i in items]
    every = [(name, settings) for name, given in pairs for settings in _rows(shelf[name], given)]
    return list({canonical(one): one for one in every}.values())


def _rows(entry: Entry, given: dict[str, Any]) -> Iterator[dict[str, Any]]:
    fields = entry.settings.model_fields
    values = {k: (entry.defaults | given)[k] for k in fields}
    many = {k: v if isinstance(v, list) and not takes_list(fields[k].annotation) else [v] for k, v in values.items()}
    for row in product(*many.values()):
        settings = dict(zip(many, row, strict=True))
        try:
            yield entry.settings.model_validate(settings).model_dump(mode="json")
        except ValidationError as error:
            found = explain(error, settings, (entry.name,), {})
            raise Fault("\n".join(f"{dotted(p.where)}: {p.text}" for p in found)) from None


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
