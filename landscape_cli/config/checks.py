"""Every check of a config that one pydantic model cannot make: registered names, grid, groups, metrics, clashes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any, Literal

from pydantic import BaseModel, ValidationError, create_model

from landscape_cli.config.identity import Settings, canonical
from landscape_cli.config.problems import Known, Problem, did_you_mean, explain, unknown_key, unknown_name
from landscape_cli.config.schema import (
    NAMED,
    PRECISION,
    SAM,
    WHOLE,
    Dataset,
    Experiment,
    Model,
    Section,
    Training,
    leaves,
    optimizers_with,
    section_model,
    takes_list,
    training_model,
)
from landscape_cli.config.yaml_tree import Where, flow, kind, printable, show
from landscape_cli.registry import REGISTRY, Entry

MAX_RUNS = 100_000
ONLY_WITH = {  # setting -> the setting without which it would do nothing, and the values of that
    "rho": ("optimizer", ["sam"]),
    "adaptive": ("optimizer", ["sam"]),
    "milestones": ("schedule", ["step"]),
    "decay": ("schedule", ["step"]),
    "lr_base_batch": ("lr_scaling", ["linear", "sqrt"]),
}
SNAPSHOTS = "add the epochs to keep, snapshots: [0, 1, 2, 5, 10]"
UNREAD: dict[str, Section] = {  # in the place of sections that are checked on their own
    "dataset": Dataset(name=""),
    "model": Model(name=""),
    "training": Training(lr=1.0, batch_size=1),
}


def top(data: dict[str, Any], sections: dict[str, Any], known: Known) -> list[Problem]:
    """Problems outside of the sections that `section` checks, and of missing and unknown sections.

    Args:
        data: the config as read.
        sections: what `section` made of those that it has; None where there are problems.
        known: the keys of each section.
    """
    outline = data | {key: sections[key] or UNREAD[key] for key in UNREAD if key in data}
    try:
        Experiment.model_validate(outline)
    except ValidationError as error:
        return explain(error, outline, (), known)
    training, swept = sections["training"], data.get("grid", {}).get("training.snapshots", [])
    if data.get("along") and training and not any([training.snapshots, *swept]):
        return [Problem(("along",), f"does nothing without training.snapshots: {SNAPSHOTS}")]
    return []


def section(key: str, given: Any, known: Known) -> tuple[Any, list[Problem]]:
    """One section that makes a run what it is, validated.

    Args:
        key: dataset, model, training or precision.
        given: its value as read.
        known: the keys of each section.
    Returns: the typed section with all defaults (None if there are problems); the problems.
    """
    try:
        if key == "training" or key == "precision":
            return (
                training_model().model_validate(given) if key == "training" else PRECISION.validate_python(given)
            ), []
        return _named("dataset" if key == "dataset" else "model", given)
    except ValidationError as error:
        return None, explain(error, given, (key,), known)


def _named(key: Literal["dataset", "model"], given: Any) -> tuple[Section | None, list[Problem]]:
    if not isinstance(given, dict):
        return None, [Problem((key,), f"must be {{name: a {key}, its settings}}, got {kind(given)}")]
    if "name" not in given:
        return None, [Problem((key, "name"), "is missing: give it a value", at_key=True)]
    model = section_model(key, given["name"])
    if model is None:
        return None, [Problem((key, "name"), unknown_name(key, given["name"], REGISTRY[key]))]
    return model.model_validate(given), []


def put(values: Any, path: Where, value: Any) -> Any:
    """A copy of nested dicts with one leaf changed."""
    if not path:
        return value
    values = values if isinstance(values, dict) else {}
    return {**values, path[0]: put(values.get(path[0]), path[1:], value)}


def grid(data: dict[str, Any], known: Known) -> tuple[dict[str, list[Any]], list[Problem]]:
    """The grid with its values checked like the keys that they replace.

    Returns: dotted key -> values of the key's own type, without the keys that have problems; the problems.
    """
    normal: dict[str, list[Any]] = {}
    problems: list[Problem] = []
    given = data.get("grid")
    given = given if isinstance(given, dict) else {}
    for key, values in given.items():
        found: list[Problem] = []
        root, *rest = key.split(".")
        if root in NAMED and (root,) not in known:  # its name is unknown, which is said elsewhere
            continue
        if key not in leaves(known):
            found = [Problem(("grid", key), _no_leaf(key, known), at_key=True)]
        elif around := [whole for whole in WHOLE if key.startswith(f"{whole}.") and whole in given]:
            found = [Problem(("grid", key), f"{around[0]} is swept as a whole: write it into its values", at_key=True)]
        elif isinstance(values, list) and isinstance(data.get(root), dict if rest else object):
            normal[key], found = _values(key, values, data.get(root), known)
        if found:
            normal.pop(key, None)
            problems += found
    return normal, problems


def _values(key: str, values: list[Any], base: Any, known: Known) -> tuple[list[Any], list[Problem]]:
    root, *rest = target = tuple(key.split("."))
    normal: list[Any] = []
    problems: list[Problem] = []
    seen: set[str] = set()
    for i, value in enumerate(values):
        typed, found = section(root, put(base, tuple(rest), value), known)
        mine = [p for p in found if p.where[: len(target)] == target]
        problems += [Problem(("grid", key, i, *p.where[len(target) :]), p.text, p.at_key) for p in mine]
        if mine:
            continue
        for part in rest if not found else ():
            typed = getattr(typed, part)
        normal.append(value if found else typed)  # its section has faults of its own, which are said elsewhere
        if canonical(normal[-1]) in seen:
            problems.append(Problem(("grid", key, i), f"{show(value)} is in the list twice"))
        seen.add(canonical(normal[-1]))
    return normal, problems


def _no_leaf(key: str, known: Known) -> str:
    where = tuple(key.split("."))
    if where in known or where == ("training",):
        return f"{printable(key)} is a section: sweep one of its keys"
    if key in ("dataset.name", "model.name"):
        return "a grid sweeps settings, not names" + (
            ": sweep model, whose values are whole sections"
            if where[0] == "model"
            else ": write one config for each name"
        )
    choices = leaves(known)
    ends = [c for c in choices if c.split(".")[-1] == where[-1]]
    hint = f", did you mean '{ends[0]}'?" if ends else did_you_mean(key, choices)
    return f"no such setting{hint or '; `landscape show` lists the settings'}"


def compare(given: Any, normal: dict[str, list[Any]], swept: Any) -> tuple[Any, list[Problem]]:
    """The `compare` section with its labels keyed by the grid's own values.

    Args:
        given: the section as read.
        normal: the checked grid.
        swept: the grid as read; keys that have problems of their own are not reported again.
    """
    if not isinstance(given, dict) or not isinstance(given.get("by"), str):
        return given, []
    by, labels = given["by"], given.get("labels", {})
    if by not in normal:
        keys = list(swept) if isinstance(swept, dict) else []
        due = f"must be a key of the grid ({', '.join(map(printable, keys)) or 'which is empty'})"
        return given, [] if by in keys else [Problem(("compare", "by"), f"{due}, got {show(by)}")]
    problems, named, swept = [], {}, titles(normal[by])
    for key, label in labels.items() if isinstance(labels, dict) else ():
        match = [v for v in swept if _same(v, key)]
        if match:
            named[match[0]] = label
        else:
            values = ", ".join(map(flow, swept))
            problems.append(Problem(("compare", "labels", key), f"must be a value of {by} ({values})", at_key=True))
    return {**given, "labels": named}, problems or _twins(swept, labels, by)


def titles(values: list[Any]) -> list[Any]:
    """What swept values are called: themselves, but for sections, which are told by their name and what differs.

    Args:
        values: of one key of the grid, sections with all their settings.
    """
    return [_told(value, values) if isinstance(value, Section) else value for value in values]


def _told(one: Section, values: list[Any]) -> str:
    name = one.name if isinstance(one, Model) else ""
    alike = [v for v in values if type(v) is type(one)]
    differ = [k for k in type(one).model_fields if not name or any(getattr(v, k) != getattr(one, k) for v in alike)]
    return " ".join([*([name] if name else []), *(f"{k}={_title(getattr(one, k))}" for k in differ)])


def _title(value: Any) -> str:
    return value if isinstance(value, str) else flow(value)


def _same(a: Any, b: Any) -> bool:
    return bool(a == b and isinstance(a, bool) == isinstance(b, bool))


def group_of(value: Any, labels: dict[Any, str]) -> str:
    """The name of the group with this value of the compared key."""
    for key, label in labels.items():
        if _same(key, value):
            return label
    return _title(value)


def _twins(values: list[Any], labels: Any, by: str) -> list[Problem]:
    if not (isinstance(labels, dict) and all(isinstance(label, str) for label in labels.values())):
        return []
    names = [group_of(v, labels) for v in values]
    twice = [n for n in dict.fromkeys(names) if names.count(n) > 1]
    text = "two values of {} are called {}: groups need names of their own"
    return [Problem(("compare", "labels"), text.format(by, show(n))) for n in twice]


def metrics(given: Any) -> tuple[Any, list[Problem]]:
    """`default`, `all`, or the list of metrics with their settings checked; each setting in its own type."""
    shelf = REGISTRY["metric"]
    if given in ("default", "all"):
        chosen = [e for e in shelf.values() if given == "all" or e.facts.get("default")]
        return given, [Problem(("metrics",), t) for e in chosen for t in _lacking(e, {})]
    if not isinstance(given, list):
        hint = f"; write [{given}]" if isinstance(given, str) and given in shelf else ""
        due = f"must be default, all or a list of metrics, got {kind(given)}"
        return None, [Problem(("metrics",), due + (hint or did_you_mean(str(given), ["default", "all"])))]
    checked = [_metric(item, ("metrics", i)) for i, item in enumerate(given)]
    return [c for c, _ in checked], [p for _, found in checked for p in found]


def _metric(item: Any, where: Where) -> tuple[Any, list[Problem]]:
    if isinstance(item, dict) and len(item) != 1:
        hint = ": indent its settings deeper" if None in item.values() else ""
        return None, [Problem(where, f"must be a name or one {{name: {{settings}}}}, got {len(item)} keys{hint}")]
    name, given = next(iter(item.items())) if isinstance(item, dict) else (item, None)
    inner = (*where, name) if isinstance(item, dict) else where
    entry = REGISTRY["metric"].get(name) if isinstance(name, str) else None
    if entry is None:
        return None, [Problem(inner, unknown_name("metric", name, REGISTRY["metric"]), at_key=True)]
    if not isinstance(given, dict | None):
        return None, [Problem(inner, f"must be {{setting: value}}, got {kind(given)}")]
    given = given or {}
    checked = {k: _setting(entry, k, v, (*inner, k)) for k, v in given.items()}
    problems = [p for _, found in checked.values() for p in found]
    problems += [Problem(inner, text, at_key=True) for text in _lacking(entry, given)]
    return {name: {k: v for k, (v, _) in checked.items()}} if given else name, problems


def _lacking(entry: Entry, given: dict[str, Any]) -> list[str]:
    lacking = [k for k in entry.settings.model_fields if k not in given and k not in entry.defaults]
    return [f"{entry.name} needs a value for {', '.join(lacking)}"] if lacking else []


def _setting(entry: Entry, key: str, value: Any, where: Where) -> tuple[Any, list[Problem]]:
    """One setting of a metric; where a scalar is due, a list stands for one row a value."""
    if key not in entry.settings.model_fields:
        return None, [unknown_key(where, {where[:-1]: list(entry.settings.model_fields)})]
    if not isinstance(value, list) or takes_list(entry.settings.model_fields[key].annotation):
        return _scalar(entry, key, value, where)
    if not value:
        return None, [Problem(where, "must be a value or a list of at least 1")]
    checked = [_scalar(entry, key, v, (*where, i)) for i, v in enumerate(value)]
    return [v for v, _ in checked], [p for _, found in checked for p in found]


def _scalar(entry: Entry, key: str, value: Any, where: Where) -> tuple[Any, list[Problem]]:
    try:
        return _only(entry.settings, key).model_validate({key: value}).model_dump(mode="json")[key], []
    except ValidationError as error:
        found = explain(error, {key: value}, (), {})
        return value, [Problem((*where, *p.where[1:]), p.text, p.at_key) for p in found]


@cache
def _only(settings: type[BaseModel], key: str) -> type[BaseModel]:
    """A model of one of the fields, so that the others may be missing."""
    field: dict[str, Any] = {key: (settings.model_fields[key].annotation, settings.model_fields[key])}
    model: type[BaseModel] = create_model(settings.__name__, __config__=settings.model_config, **field)
    return model


def combinations(base: Settings, swept: dict[str, list[Any]]) -> Iterator[tuple[dict[str, Any], Settings]]:
    """Every combination of the grid's values as `titles` calls them, the last key fastest, each with its settings."""
    pairs = [list(zip(titles(values), values, strict=True)) for values in swept.values()]
    for some in product(*pairs):
        chosen = dict(zip(swept, (title for title, _ in some), strict=True))
        settings = base
        for key, (_, value) in zip(swept, some, strict=True):
            root, *rest = key.split(".")
            settings = replace(settings, **{root: changed(getattr(settings, root), tuple(rest), value)})
        yield chosen, settings


def changed(part: Any, path: Where, value: Any) -> Any:
    """A section with one leaf changed, validated anew; with no path the value itself."""
    return type(part).model_validate(put(part.model_dump(), path, value)) if path else value


def clashes(base: Settings, swept: dict[str, list[Any]], seeds: Any) -> list[Problem]:
    """Settings that are fine one by one but not together, in any combination of the grid."""
    count = math.prod(map(len, swept.values())) * (seeds if type(seeds) is int else 1)
    if count > MAX_RUNS:
        return [Problem(("grid",), f"makes {count:,} runs with its seeds, at most {MAX_RUNS:,} are allowed")]
    problems: dict[Problem, None] = {}
    for chosen, settings in combinations(base, swept):
        for where, text in [*_clashes(settings), *_idle(settings.training, swept)]:
            key = ".".join(where)
            at = ("grid", key, titles(swept[key]).index(chosen[key])) if key in chosen else where
            problems[Problem(at, text)] = None
    return list(problems)


def _clashes(settings: Settings) -> Iterator[tuple[Where, str]]:
    data, training, stop = settings.dataset, settings.training, settings.training.stop
    batch, size = training.batch_size, data.train_size
    if size is not None and batch != "full" and batch > size:
        yield ("training", "batch_size"), f"{batch} is more than dataset.train_size {size}: lower it, or write full"
    if getattr(training, "nesterov", False) and getattr(training, "momentum", None) == 0:  # settings of optimizers
        yield ("training", "nesterov"), "needs momentum above 0"
    if training.optimizer == SAM and training.sharpness_aware:
        yield ("training", "sharpness_aware"), "is what optimizer sam means: write sgd, or leave it out"
    if stop.patience is not None and not data.validation:
        yield ("training", "stop", "patience"), "needs samples that are held out: dataset.validation, 0.1 for a tenth"
    if stop.patience is not None and stop.train_loss is not None:
        yield ("training", "stop", "patience"), "keeps the best parameters, not those at train_loss: leave out one"
    if stop.score != "loss" and stop.patience is None:
        yield ("training", "stop", "score"), "does nothing without patience"
    if training.schedule == "step" and not training.milestones:
        yield ("training", "schedule"), "step needs milestones, the epochs at which lr falls"


def _idle(training: Training, swept: dict[str, Any]) -> Iterator[tuple[Where, str]]:
    """Settings that are not at their default and do nothing in any combination."""
    fields = type(training).model_fields
    optimizers = {key: ("optimizer", optimizers_with(key)) for key in fields if optimizers_with(key)}
    for key, (other, values) in (ONLY_WITH | optimizers).items():
        given, chosen = getattr(training, key), getattr(training, other)
        if given != fields[key].default and chosen not in values and f"training.{other}" not in swept:
            yield ("training", key), f"does nothing with {other} {chosen}, only with {_any_of(values)}"


def _any_of(names: list[str]) -> str:
    return " or ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)
