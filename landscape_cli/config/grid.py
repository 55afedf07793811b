"""From an experiment to its runs: combinations of the grid, the group and id of each run; the metrics to measure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

from pydantic import ValidationError

from landscape_cli.config import checks
from landscape_cli.config.identity import Settings, canonical, run_id_of
from landscape_cli.config.problems import dotted, explain
from landscape_cli.config.schema import Experiment, takes_list
from landscape_cli.config.yaml_tree import flow
from landscape_cli.registry import REGISTRY, Entry
from landscape_cli.registry.errors import Fault

Measurement = tuple[str, dict[str, Any]]  # a metric with its complete settings


@dataclass(frozen=True)
class Run:
    """One network to train: what it is made of, the seed, and the group that it counts for."""

    run_id: str
    group: str
    seed: int
    swept: dict[str, Any]
    settings: Settings


def _base(experiment: Experiment) -> Settings:
    return Settings(experiment.dataset, experiment.model, experiment.training, experiment.precision)


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
            runs.append(Run(run_id_of(swept, settings, seed), group, seed, swept, settings))
    return runs


def _group(experiment: Experiment, swept: dict[str, Any]) -> str:
    if experiment.compare:
        return checks.group_of(swept[experiment.compare.by], experiment.compare.labels)
    return checks.group_of(next(iter(swept.values())), {}) if swept else "all"


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


def setting(name: str, own: dict[str, Any], extra: str = "") -> str:
    """What tells the rows of a metric apart: the settings that it lists several values of, and those not at default."""
    entry = REGISTRY["metric"][name]
    grids, plain = entry.facts["grids"], entry.defaults
    told = {k: f"{k}={flow(v)}" for k, v in own.items() if k in grids or v != plain.get(k)}
    if extra:  # a row of several: it says which of a list, or how many there really were
        told[extra.partition("=")[0]] = extra
    return ";".join(sorted(told.values()))
