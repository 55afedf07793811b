"""What figures are drawn from: tables of an experiment's folder, and a digest of each, so that none is drawn twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape_cli.store import surface_files
from landscape_cli.store.tables import read_table

if TYPE_CHECKING:
    from pandas import DataFrame

RECORDS = "runs"  # a source that is no file: the records of the runs, with their histories


@dataclass(frozen=True)
class Inputs:
    """An experiment's folder as the figures see it.

    Args:
        folder: with its tables.
        records: of the runs, in the order of the groups.
        groups: their names.
    """

    folder: Path
    records: Sequence[Mapping[str, Any]]
    groups: list[str]
    _digests: dict[str, str] = field(default_factory=dict)

    @cached_property
    def runs(self) -> DataFrame:
        """runs.csv."""
        return self.table("runs.csv")

    @cached_property
    def metrics(self) -> DataFrame:
        """metrics.csv."""
        return self.table("metrics.csv")

    def table(self, name: str) -> DataFrame:
        """A CSV table, or an empty one if there is no such file."""
        return table(self.folder / name)

    def files(self, source: str) -> list[Path]:
        """The files of a source, a name or a pattern with * in the folder."""
        return [path for path in sorted(self.folder.glob(source)) if path.is_file()]

    def present(self, source: str) -> bool:
        """Whether there is something in a source: records, or a file that is more than a heading."""
        return bool(self.records) if source == RECORDS else any(map(_filled, self.files(source)))

    def digest(self, source: str) -> str:
        """Of names and contents; of directions that of their facts alone, among them the hashes of their tables."""
        if source not in self._digests:
            total = hashlib.sha256()
            if source == RECORDS:
                total.update(json.dumps([*self.records], sort_keys=True, default=str).encode())
            for path in self.files(source) if source != RECORDS else ():
                facts = path.suffix == ".safetensors"
                data = json.dumps(surface_files.facts(path)).encode() if facts else path.read_bytes()
                total.update(hashlib.sha256(path.name.encode()).digest() + hashlib.sha256(data).digest())
            self._digests[source] = total.hexdigest()
        return self._digests[source]


@dataclass(frozen=True)
class Figure:
    """One figure of the report.

    Args:
        name: of its files in plots/, without suffix.
        sources: what it is drawn from: names or patterns in the folder, or RECORDS; without any of them it is left out.
        draw: inputs and path without suffix -> the files written, none if there is nothing to show.
        title: above its caption.
        caption: what it shows.
        optional: more sources, which may be missing.
    """

    name: str
    sources: tuple[str, ...]
    draw: Callable[[Inputs, Path], list[Path]]
    title: str
    caption: str
    optional: tuple[str, ...] = ()

    def digests(self, inputs: Inputs) -> dict[str, str]:
        """Source -> digest: while they stay, so does the figure."""
        return {source: inputs.digest(source) for source in (*self.sources, *self.optional)}


def table(path: Path) -> DataFrame:
    """A CSV table, or an empty one if there is no such file."""
    from pandas import DataFrame

    return read_table(path) if path.exists() else DataFrame()


def _filled(path: Path) -> bool:
    with path.open("rb") as file:
        return bool(file.readline()) and (path.suffix != ".csv" or bool(file.readline()))
