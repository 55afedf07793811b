"""YAML in and out: plain values with the place of each, YAML 1.2 scalars, and one clear Fault for anything odd.

PyYAML only splits the text into events. From those we build values ourselves, since its own constructor reads `no` as
False and `1e-1` as text, drops duplicate keys, expands aliases without bound, and recurses as deep as the file says.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from landscape_cli.registry.errors import Fault

Where = tuple[Any, ...]  # keys and list positions from the top down

MAX_BYTES, MAX_DEPTH, MAX_VALUES = 200_000, 50, 10_000  # PyYAML reads 200 kB in half a second
INT = re.compile(r"[-+]?(0|[1-9][0-9]*)|0o[0-7]+|0x[0-9a-fA-F]+")
FLOAT = re.compile(r"[-+]?(?=.*[.eE])(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
SPECIAL = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
NAMED = {"null": None, "true": True, "false": False}
WORDS = {"": None, "~": None} | {w: v for n, v in NAMED.items() for w in (n, n.title(), n.upper())}
BREAK = re.compile(r"\r\n|[\r\n\x85\u2028\u2029]")  # what PyYAML counts as the end of a line
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
UNREADABLE = re.compile(r"[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
UTF_16_OR_32 = (b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")
NOT_WORDS = {"y", "n", "yes", "no", "on", "off"}  # YAML 1.1 readers take these for booleans: dumped in quotes
LABELS = ("compare", "labels")  # the one mapping whose keys are values, not names


@dataclass(frozen=True)
class Place:
    """Where something was written: `label` for messages, the line itself (empty for --set)."""

    label: str
    line: int = 0
    column: int = 0
    text: str = ""

    def fault(self, message: str) -> Fault:
        """A Fault that starts with the place and ends with a copy of the line."""
        return Fault(self.say(message))

    def say(self, message: str) -> str:
        """The message between its place and a copy of the line."""
        start = max(0, self.column - 80)  # in a long line, the part around the column
        copy = shorten(printable(self.text[start : start + 161]).strip(), 160)
        return f"{self.label}: {message}" + (f"\n    {copy}" if copy else "")


@dataclass(frozen=True)
class Tree:
    """A config as written: plain values, and for each the place of its key and of itself."""

    source: str
    data: dict[str, Any]
    keys: dict[Where, Place] = field(default_factory=dict)
    values: dict[Where, Place] = field(default_factory=dict)

    def place(self, where: Where, key: bool = False) -> Place:
        """Place of the value (or key) at `where`, or of the nearest section around it that was written."""
        found = (self.keys if key else self.values).get(where) or self.values.get(where)
        return found or (self.place(where[:-1], key=True) if where else Place(self.source))


def printable(text: str) -> str:
    """The text with control and other invisible characters written as escapes, so that a terminal obeys none."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def shorten(text: str, length: int = 60) -> str:
    """At most `length` characters."""
    return text if len(text) <= length else text[: length - 3] + "..."


def read_text(path: Path) -> str:
    """The text of a config file.

    Raises: Fault if it cannot be read, is over 200 kB, not UTF-8, or holds control characters.
    """
    source = printable(str(path))
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise Fault(f"{source}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(raw) > MAX_BYTES:
        raise Place(f"{source}:1:1").fault("over 200 kB: this is no config")
    if raw.startswith(UTF_16_OR_32) or b"\0" in raw[:2]:
        raise Place(f"{source}:1:1").fault("must be UTF-8, it looks like UTF-16 or UTF-32: save it as UTF-8")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        place = _at(raw.decode("utf-8-sig", "replace"), source, len(raw[: error.start].decode("utf-8-sig")))
        raise place.fault(f"byte 0x{raw[error.start]:02x} is not UTF-8: save the file as UTF-8") from None


def _at(text: str, source: str, index: int) -> Place:
    before, lines = BREAK.split(text[:index]), BREAK.split(text)
    line, column = len(before), len(before[-1]) + 1
    return Place(f"{source}:{line}:{column}", line, column, lines[line - 1])


def load(text: str, source: str) -> Tree:
    """One YAML document whose top is a mapping.

    Args:
        text: the file's content.
        source: its name for messages.
    Raises: Fault, with place and line, for whatever is not plain YAML 1.2 data.
    """
    tree = Tree(printable(source), {})
    top = _document(text, tree)
    if not isinstance(top, dict):
        raise tree.values[()].fault(f"must be `key: value` lines at the top, got {kind(top)}")
    tree.data.update(top)
    return tree


def load_value(text: str, place: Place) -> Any:
    """The value of a `--set key=value`, by the same rules as in a file; Fault if it breaks them."""
    try:
        return _document(text, Tree("", {})) if text.strip() else None
    except Fault as fault:
        message = str(fault).partition("\n")[0].split(": ", 1)[1]
        raise place.fault(message) from None


def _document(text: str, tree: Tree) -> Any:
    if bad := UNREADABLE.search(text):
        raise _at(text, tree.source, bad.start()).fault(f"control character U+{ord(bad[0]):04X}: remove it")
    lines = BREAK.split(text)
    events = _events(text, tree.source, lines)
    first = next(events, None)
    if first is None:
        raise Place(f"{tree.source}:1:1").fault("is empty")
    value = _Build(tree, lines, events).value(first, ())
    next(events, None)  # reads to the end: a second document is an error
    return value


def _place(source: str, lines: list[str], mark: Any) -> Place:
    text = lines[mark.line] if mark.line < len(lines) else ""
    return Place(f"{source}:{mark.line + 1}:{mark.column + 1}", mark.line + 1, mark.column + 1, text)


def _events(text: str, source: str, lines: list[str]) -> Iterator[Any]:
    """Events of one document, none of them an alias, anchor or tag, none too deep."""
    loader = yaml.SafeLoader(text)
    depth = count = documents = 0
    while True:
        try:
            event = loader.get_event()  # type: ignore[no-untyped-call]
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark or loader.get_mark()
            raise _place(source, lines, mark).fault(_syntax(error)) from None
        except (yaml.YAMLError, ValueError, OverflowError):  # such as "\UFFFFFFFF", %YAML 1.<5,000 digits>
            mark = loader.get_mark()
            raise _place(source, lines, mark).fault("not valid YAML: an escape or a number out of range") from None
        if event is None:
            return
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        documents += isinstance(event, yaml.DocumentStartEvent)
        count += 1
        if fault := _refused(event, depth, documents, count):
            raise _place(source, lines, event.start_mark).fault(fault)
        if isinstance(event, yaml.NodeEvent | yaml.CollectionEndEvent):
            yield event


def _refused(event: Any, depth: int, documents: int, count: int) -> str | None:
    if isinstance(event, yaml.AliasEvent):
        return f"alias *{shorten(printable(str(event.anchor)))}: aliases are not supported, write the value out"
    if getattr(event, "anchor", None):
        return f"anchor &{shorten(printable(event.anchor))}: anchors are not supported, write the value out"
    if tag := getattr(event, "tag", None):
        short = shorten(printable(tag.replace("tag:yaml.org,2002:", "!!")))
        return f"tag {short}: tags are not supported, a config holds plain values only"
    if depth > MAX_DEPTH:
        return f"nested more than {MAX_DEPTH} levels deep"
    if documents > 1:
        return "a second document starts here: one config a file"
    return f"more than {MAX_VALUES} values: this is no config" if count > MAX_VALUES else None


def _syntax(error: yaml.MarkedYAMLError) -> str:
    if "'\\t'" in str(error.problem):
        return "not valid YAML: a tab; indent with spaces"
    said = [printable(p) for p in (error.context, error.problem) if p]
    return f"not valid YAML: {shorten(': '.join(said), 160)}"


@dataclass(frozen=True)
class _Build:
    """Turns events into values and notes the place of each in `tree`."""

    tree: Tree
    lines: list[str]
    events: Iterator[Any]

    def place(self, event: Any) -> Place:
        return _place(self.tree.source, self.lines, event.start_mark)

    def value(self, event: Any, where: Where) -> Any:
        self.tree.values[where] = self.place(event)
        if isinstance(event, yaml.ScalarEvent):
            return self.scalar(event)
        return self.mapping(where) if isinstance(event, yaml.MappingStartEvent) else self.sequence(where)

    def scalar(self, event: Any) -> Any:
        if bad := CONTROL.search(event.value):
            raise self.place(event).fault(f"control character U+{ord(bad[0]):04X} in a value: remove it")
        try:
            return parse_scalar(event.value) if event.implicit[0] else event.value
        except ValueError as error:
            raise self.place(event).fault(str(error)) from None

    def sequence(self, where: Where) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            items.append(self.value(event, (*where, len(items))))
        return items

    def mapping(self, where: Where) -> dict[Any, Any]:
        items: dict[Any, Any] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            key = self.key(event, where)
            if key in items:
                first = self.tree.keys[(*where, key)].line
                raise self.place(event).fault(f"duplicate key {show(key)}, first given in line {first}")
            self.tree.keys[(*where, key)] = self.place(event)
            items[key] = self.value(next(self.events), (*where, key))
        return items

    def key(self, event: Any, where: Where) -> Any:
        if not isinstance(event, yaml.ScalarEvent):
            raise self.place(event).fault("a key must be a name, got a list or a mapping")
        if event.value == "<<" and event.implicit[0]:
            raise self.place(event).fault("merge keys (<<) are not supported, write the keys out")
        key = self.scalar(event)
        if where != LABELS and not isinstance(key, str):
            raise self.place(event).fault(f"a key must be a name, got {show(key)}")
        return key


def parse_scalar(text: str) -> Any:
    """A plain scalar by the core schema of YAML 1.2, but for 0777, which stays text as nobody can tell what it means.

    Raises: ValueError for a whole number beyond 64 bits.
    """
    if text in WORDS:
        return WORDS[text]
    if INT.fullmatch(text):
        if len(text) > 70 or abs(number := int(text, 0)) >= 2**63:
            raise ValueError(f"whole number of {len(text)} digits: at most 18 are supported")
        return number
    if FLOAT.fullmatch(text):
        return float(text)
    return float(text.replace(".", "")) if SPECIAL.fullmatch(text) else text


def override(tree: Tree, sets: Sequence[str]) -> Tree:
    """The tree with `key.path=value` settings put in, each marked by its own text.

    Raises: Fault if one is not of that form, its value is not YAML, or it goes through something that is no section.
    """
    for text in sets:
        place = Place(f"--set {shorten(printable(text), 80)}")
        dotted, equals, value = text.partition("=")
        try:
            where = _path(dotted.strip())
        except ValueError as error:
            raise place.fault(str(error)) from None
        if not equals or not all(part != "" for part in where):
            raise place.fault("write --set key.path=value, such as --set training.lr=0.05")
        _put(tree, where, load_value(value, place), place)
    return tree


def _path(dotted: str) -> Where:
    if dotted.startswith("grid."):  # a key of the grid is itself dotted
        return "grid", dotted.removeprefix("grid.")
    prefix = ".".join(LABELS) + "."
    if dotted.startswith(prefix):
        return *LABELS, parse_scalar(dotted.removeprefix(prefix))
    return tuple(dotted.split("."))


def _put(tree: Tree, where: Where, value: Any, place: Place) -> None:
    section: dict[Any, Any] = tree.data
    for depth, part in enumerate(where[:-1], 1):
        if section.get(part) is None:
            section[part] = {}
            tree.keys[where[:depth]] = tree.values[where[:depth]] = place
        if not isinstance(section[part], dict):
            raise place.fault(f"{printable('.'.join(map(str, where[:depth])))} is {kind(section[part])}, not a section")
        section = section[part]
    section[where[-1]] = value
    for places in (tree.keys, tree.values):
        for old in [w for w in places if w[: len(where)] == where]:
            del places[old]
        places[where] = place
        places |= {(*where, *inner): place for inner in _inside(value)}


def _inside(value: Any) -> Iterator[Where]:
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield (key,)
        yield from ((key, *rest) for rest in _inside(inner))


def kind(value: Any) -> str:
    """What sort of thing a value is, in words."""
    return "a section" if isinstance(value, dict) else "a list" if isinstance(value, list) else show(value)


def show(value: Any) -> str:
    """A value as messages quote it: short, on one line, without control characters."""
    if isinstance(value, str):
        return f"'{shorten(printable(value))}'"
    return shorten(printable(flow(value)))


def flow(value: Any) -> str:
    """A value as flow YAML that reads back equal.

    Args:
        value: None, bool, int, float, str, or lists and dicts of them.
    """
    if isinstance(value, dict):
        return "{" + ", ".join(f"{flow(k)}: {flow(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(flow, value)) + "]"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, float):
        return _float(value)
    return str(value) if type(value) is int else {None: "null", True: "true", False: "false"}[value]


def _float(value: float) -> str:
    if not math.isfinite(value):
        return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
    mantissa, e, exponent = repr(value).partition("e")  # 1.0e-08: YAML 1.1 readers need the dot
    return mantissa + ("" if "." in mantissa else ".0") + e + exponent


def _text(value: str) -> str:
    if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_./-]*", value) and value.lower() not in WORDS.keys() | NOT_WORDS:
        return value
    quoted = (c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08x}" for c in value)
    return '"' + "".join(quoted) + '"'
