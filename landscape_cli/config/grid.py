"""From an experiment to its runs: combinations of the grid, the group and id of each run; the metrics to measure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

from pydantic import ValidationError

from landscape_cli.config import checks
from landscape_cli.config.checks import canonical
from landscape_cli.config.problems import dotted, explain
from landscape_cli.config.schema import (
    MEASURED,
    Experiment,
    takes_list,
)
from landscape_cli.config.yaml_tree import flow
from landscape_cli.registry import REGISTRY, Entry
from landscape_cli.registry.errors import Fault

HASH, RUN_ID = 8, 60  # hex digits at the end of a run id; its characters in all


@dataclass(frozen=True)
class Run:
    """One network to train: what it is made of, the seed, and the group that it counts for."""

    run_id: str
    group: str
    seed: int
    swept: dict[str, Any]
    settings: dict[str, Any]


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
