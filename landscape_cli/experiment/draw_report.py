"""Figures and report.html of an experiment: what is no longer that of the tables, the code and the libraries."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from landscape_cli import registry, store
from landscape_cli.engine import Watch
from landscape_cli.experiment.session import Record, Session
from landscape_cli.registry import REGISTRY
from landscape_cli.registry.errors import Fault, reason
from landscape_cli.report import page, statistics
from landscape_cli.report.inputs import Figure, Inputs

PAGE = ("runs.csv", "metrics.csv", "comparison.csv", "experiment.yaml")  # what the page reads beside the figures
SUFFIXES = (".png", ".svg", ".html")
Drawn = dict[str, Any]  # as in plots/.drawn: code, page, and figures: name -> its sources with their digests, its files


def draw_of(session: Session, records: Sequence[Record]) -> None:
    """Figures and report of a session; that some cannot be drawn is a warning, for the tables are written."""
    failures = draw(session.folder, records, session.groups, session.watch)
    if failures:
        session.warnings += [*failures, f"once that is mended, draw them with `landscape report {session.folder}`"]
    if (session.folder / "report.html").is_file():
        session.report = session.folder / "report.html"


def draw(folder: Path, records: Sequence[Record], groups: list[str], watch: Watch | None = None) -> list[str]:
    """Figures and report.html from the tables; each is left alone where it was drawn from these very inputs.

    Returns: a line for each that could not be drawn.
    """
    try:
        return _draw(Inputs(folder, records, groups), watch)
    except (Exception, SystemExit) as error:
        return [f"report.html: not written: {_words(error)}"]


def _draw(inputs: Inputs, watch: Watch | None) -> list[str]:
    report, stamp, code = inputs.folder / "report.html", inputs.folder / "plots" / ".drawn", _code(inputs.groups)
    known = _read(stamp, code)
    if report.is_file() and known["page"] == _of_page(inputs) and _fresh(inputs, known):
        return []
    from landscape_cli.report.figures import figures  # loads matplotlib

    if watch:
        watch("draw", {})
    store.remove(inputs.folder, [stamp])  # it does not vouch for what is drawn in part
    drawn, failures, rows = dict[str, Any](), list[str](), figures()
    for name, figure in rows.items():
        try:
            drawn[name] = _drawn(inputs, figure, known["figures"].get(name))
        except (Exception, SystemExit) as error:
            failures.append(f"figure {name}: not drawn: {_words(error)}")
    files = {file for one in drawn.values() for file in one["files"]}
    possible = {f"{name}{suffix}" for name in {*rows, *known["figures"]} for suffix in SUFFIXES}
    store.remove(inputs.folder, [stamp.parent / file for file in possible - files])  # of tables that had more to show
    about = {name: entry.summary for name, entry in REGISTRY["metric"].items()}
    store.write(report, page.render(inputs.folder, about, registry.same_as()))
    content = {"code": code, "page": "" if failures else _of_page(inputs), "figures": drawn}  # "": to be tried again
    store.write(stamp, json.dumps(content, sort_keys=True).encode())
    return failures


def _words(error: BaseException) -> str:
    return str(error) if isinstance(error, Fault) else reason(error)


def _drawn(inputs: Inputs, figure: Figure, known: Drawn | None) -> Drawn:
    """A figure's sources and files, drawn if that is due."""
    sources = figure.digests(inputs)
    if known and known["sources"] == sources and _present(inputs.folder, known):
        return known
    due = all(map(inputs.present, figure.sources))
    paths = figure.draw(inputs, inputs.folder / "plots" / figure.name) if due else []
    return {"sources": sources, "files": [path.name for path in paths]}


def _read(stamp: Path, code: str) -> Drawn:
    """What was drawn: of other code the files alone, which may be stale; nothing if there is no readable stamp."""
    try:
        known = json.loads(stamp.read_text())
        same = known["code"] == code
        figures = {
            str(name): {"sources": dict(one["sources"]) if same else {}, "files": [*map(str, one["files"])]}
            for name, one in known["figures"].items()
        }
        return {"page": known["page"] if same else "", "figures": figures}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {"page": "", "figures": {}}


def _fresh(inputs: Inputs, known: Drawn) -> bool:
    """Whether all figures are those of their sources; asked without loading what draws them."""
    return all(
        _present(inputs.folder, one) and all(inputs.digest(s) == digest for s, digest in one["sources"].items())
        for one in known["figures"].values()
    )


def _present(folder: Path, known: Drawn) -> bool:
    return all((folder / "plots" / file).is_file() for file in known["files"])


def _code(groups: list[str]) -> str:
    """Of all that every figure depends on: the report package, kinds of surface, groups, libraries that draw."""
    files = [path for path in sorted(Path(page.__file__).parent.iterdir()) if path.suffix in (".py", ".j2")]
    kinds = [(k.name, k.facts["title"], k.facts["caption"], k.facts["curvature"]) for k in REGISTRY["surface"].values()]
    about = [groups, kinds, _version("matplotlib"), _version("plotly")]
    total = hashlib.sha256(json.dumps(about).encode())
    for path in files:
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _of_page(inputs: Inputs) -> str:
    """Of what the page shows beside the figures."""
    metrics = {name: entry.summary for name, entry in REGISTRY["metric"].items()}
    shown = [*map(inputs.digest, PAGE), page.provenance(inputs.folder), metrics, registry.same_as()]
    return hashlib.sha256(json.dumps(shown, sort_keys=True).encode()).hexdigest()


def rewrite_report(folder: Path) -> Path:
    """`landscape report DIR`: figures and report.html again, from the tables alone."""
    needed = [folder / t for t in ("runs.csv", "metrics.csv", "comparison.csv")]
    missing = [path.name for path in needed if not path.is_file()]
    if missing:
        raise Fault(f"{folder}: lacks {', '.join(missing)}: run `landscape compare` first", code=5)
    with store.lock(folder):
        records = store.read_runs(folder)
        table = store.read_table(folder / "runs.csv")
        ordered = [records[i] for i in table["run_id"] if i in records]
        store.remove(folder, [folder / "plots" / ".drawn"])
        failures = draw(folder, ordered, statistics.group_names(store.read_table(folder / "comparison.csv")))
    if failures:
        raise Fault("\n".join(failures), code=3)
    return folder / "report.html"
