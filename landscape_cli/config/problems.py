"""What pydantic found, in plain words: what is wrong, with the value given, and what would be right."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError

from landscape_cli.config.yaml_tree import Where, printable, shorten, show

Known = dict[Where, list[str]]  # section -> the keys that it takes

DUE: dict[str, Callable[[dict[str, Any]], str]] = {  # type of a pydantic error -> what would be right
    "int_type": lambda c: "a whole number",
    "int_from_float": lambda c: "a whole number",
    "float_type": lambda c: "a number",
    "bool_type": lambda c: "true or false",
    "string_type": lambda c: "text",
    "list_type": lambda c: "a list, [a, b]",
    "dict_type": lambda c: "a section, {key: value}",
    "model_type": lambda c: "a section, {key: value}",
    "finite_number": lambda c: "a finite number",
    "greater_than": lambda c: f"greater than {c['gt']:g}",
    "greater_than_equal": lambda c: f"at least {c['ge']:g}",
    "less_than": lambda c: f"less than {c['lt']:g}",
    "less_than_equal": lambda c: f"at most {c['le']:g}",
    "multiple_of": lambda c: f"a multiple of {c['multiple_of']:g}",
    "literal_error": lambda c: str(c["expected"]),
    "too_short": lambda c: f"a list of at least {c['min_length']}",
    "too_long": lambda c: f"a list of at most {c['max_length']}",
    "string_too_short": lambda c: f"text of at least {c['min_length']} characters",
    "string_too_long": lambda c: f"text of at most {c['max_length']} characters",
    "string_pattern_mismatch": lambda c: f"text that matches {c['pattern']}",
    "plain": lambda c: str(c["due"]),
}


@dataclass(frozen=True)
class Problem:
    """One fault of a config: where, what, and whether the key rather than the value is to be pointed at."""

    where: Where
    text: str
    at_key: bool = False


def explain(error: ValidationError, data: Any, prefix: Where, known: Known) -> list[Problem]:
    """One problem for each place of `error`; branches of a union are joined by `or`.

    Args:
        error: what validating `data` raised.
        data: the values as read.
        prefix: where `data` stands in the config.
        known: the keys of each section, for did-you-mean.
    """
    found: dict[Where, list[Any]] = {}
    for one in error.errors(include_url=False):
        found.setdefault(_where(one, data), []).append(one)
    return [_problem((*prefix, *where), errors, known) for where, errors in found.items()]


def _where(error: Any, data: Any) -> Where:
    """The error's location without the names of union branches, which are no place in the data."""
    where: list[Any] = []
    for part in error["loc"]:
        inside = (isinstance(data, dict) and part in data) or (isinstance(data, list) and part in range(len(data)))
        if inside:
            data = data[part]
        if inside or (error["type"] == "missing" and part is error["loc"][-1]):
            where.append(part)
    return tuple(where)


def _problem(where: Where, errors: list[Any], known: Known) -> Problem:
    first = errors[0]
    if first["type"] == "extra_forbidden":
        return unknown_key(where, known)
    if first["type"] == "missing":
        return Problem(where, "is missing: give it a value", at_key=True)
    phrases = dict.fromkeys(_due(e) for e in errors)
    hint = ""
    for e in errors:
        if e["type"] == "literal_error" and isinstance(e["input"], str):
            hint = did_you_mean(e["input"], e["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", "))
    return Problem(where, f"must be {' or '.join(phrases)}, got {show(first['input'])}{hint}")


def _due(error: Any) -> str:
    if error["type"] in DUE:
        return DUE[error["type"]](error.get("ctx", {}))
    if error["type"] in ("value_error", "assertion_error"):  # a plugin's own validator
        return f"such that: {printable(str(error['ctx']['error']))}"
    return str(error["msg"]).removeprefix("Input should be ").replace("a valid ", "a ")


def unknown_key(where: Where, known: Known) -> Problem:
    """What to say of a key that its section does not take: a near name, the section it belongs under, or all names."""
    section, key = where[:-1], str(where[-1])
    takes = known.get(section, [])
    homes = [".".join(map(str, home)) for home, keys in known.items() if key in keys and home != section]
    near = did_you_mean(key, takes, cutoff=0.85)
    if not near and homes:
        place = f"under `{homes[0]}`" if homes[0] else "at the top level"
        return Problem(where, f"unknown key, `{printable(key)}` belongs {place}", at_key=True)
    hint = near or did_you_mean(key, takes) or f"; known: {', '.join(takes) or 'none, it takes no settings'}"
    return Problem(where, f"unknown key{hint}", at_key=True)


def unknown_name(kind: str, name: Any, names: Iterable[str]) -> str:
    """What to say of a model, dataset or metric that is not registered."""
    if not isinstance(name, str):
        return f"must be the name of a {kind}, got {show(name)}"
    hint = did_you_mean(name, names) or f"; `landscape list {kind}s` shows what there is"
    return f"unknown {kind} {show(name)}{hint}"


def did_you_mean(word: str, choices: Iterable[str], cutoff: float = 0.6) -> str:
    """`, did you mean 'x'?` for the nearest choice, or nothing."""
    near = get_close_matches(word[:100], list(choices), 1, cutoff)
    return f", did you mean '{near[0]}'?" if near else ""


def dotted(where: Where) -> str:
    """`training.stop.max_epochs`; positions in lists as `[0]`."""
    text = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in where).lstrip(".")
    return shorten(printable(text), 120)
