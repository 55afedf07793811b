"""What there is to say of an entry: its docstring in parts, its settings with types, bounds and defaults."""

from __future__ import annotations

import inspect
import re
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt

from landscape_cli.registry.entries import PEERS, Entry, Kind, claims, keywords, needs_by_setting

SHELVES: dict[str, Kind] = {
    "models": "model",
    "datasets": "dataset",
    "optimizers": "optimizer",
    "metrics": "metric",
    "surfaces": "surface",
}


def describe(entry: Entry) -> dict[str, Any]:
    """What `landscape list` says of an entry: name, summary, settings with defaults, and what its decorator states."""
    parts = parts_of(entry)
    about: dict[str, Any] = {"name": entry.name, "summary": entry.summary, "settings": entry.defaults}
    required = [k for k, f in entry.settings.model_fields.items() if f.is_required()]
    if required:
        about["required"] = required
    about["options"] = [
        {"name": p.name, "type": type_of(p.annotation), "meaning": parts.get(p.name, "")}
        | ({"default": entry.defaults[p.name]} if p.name in entry.defaults else {})
        for p in keywords(entry.function)
    ]
    if entry.kind == "metric":
        stated = {k: ",".join(v) for k, v in claims(entry).items()}
        about["value"] = parts.get("Returns", "").removeprefix("(K,), ")
        about["invariant"] = stated[""] if "" in stated else "; ".join(f"{k}: {v}" for k, v in stated.items())
        about["needs"] = needed(entry)
        about |= {k: entry.facts[k] for k in ("direction", "cost", "source", "default")}
    elif "Source" in parts:
        about["source"] = parts["Source"]
    about["text"] = parts[""]
    about["docs"] = inspect.getdoc(entry.function) or ""
    return about


def needed(entry: Entry) -> str:
    """What a metric takes of the loss beside its values, as its decorator states it; empty for nothing."""
    every = needs_by_setting(entry.facts.get("needs", ""))
    stated = {key: [one for one in parts if one != PEERS] for key, parts in every.items()}
    return "; ".join(f"{key}: {', '.join(parts)}" if key else ", ".join(parts) for key, parts in stated.items())


def parts_of(entry: Entry) -> dict[str, str]:
    """What the docstring says, each part as flowing text, with line breaks between paragraphs only.

    Returns: each argument under its name, `Returns` and the like under theirs, what comes before them all under "".
    """
    parts: dict[str, list[str]] = {"": []}
    name, within = "", False
    for line in (inspect.getdoc(entry.function) or "").splitlines():
        heading = re.match(r"(Args|Returns|Raises|Source|Example):\s*", line)
        start = heading or (re.match(r" {4}(\w+): ", line) if within else None)
        if start:
            name, line = start[1], line[start.end() :]
            within = name == "Args" if heading else within
            parts[name] = []
        parts[name].append(line.strip())
    return {key: re.sub(r"(?<=\S)\n(?=\S)", " ", "\n".join(lines)).strip() for key, lines in parts.items()}


def type_of(annotation: Any) -> str:
    """A setting's type and bounds as its user writes them: `int >= 1`, `paper | converged`, `list of float > 0`."""
    if get_origin(annotation) is Annotated:
        kind, *bounds = get_args(annotation)
        signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
        limits = [f"{signs[k]} {v:g}" for b in bounds for k, v in _limits(b).items()]
        return f"{type_of(kind)} {' and '.join(limits)}".rstrip()
    if get_origin(annotation) is Literal:
        return " | ".join(map(str, get_args(annotation)))
    if get_origin(annotation) is list:
        return f"list of {type_of(get_args(annotation)[0])}"
    if members := get_args(annotation):
        return " | ".join(map(type_of, members))
    if annotation is NoneType:
        return "null"
    return {bool: "true | false", str: "text"}.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _limits(bound: Any) -> dict[str, float]:
    """What a bound of annotated_types or of a pydantic field says."""
    found = [bound, *getattr(bound, "metadata", ())]
    return {
        k: getattr(b, k) for b in found for t, k in ((Ge, "ge"), (Gt, "gt"), (Le, "le"), (Lt, "lt")) if isinstance(b, t)
    }
