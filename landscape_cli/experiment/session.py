"""An experiment in memory: its runs, folder and device, its datasets and networks, checked before any work."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from landscape_cli import config, engine, network, registry, store
from landscape_cli.config import Experiment, Run, Settings
from landscape_cli.data.datasets import Data
from landscape_cli.data.datasets import load as load_data
from landscape_cli.engine import Watch, contained
from landscape_cli.experiment import stacks
from landscape_cli.network import Network
from landscape_cli.network.models import build_module
from landscape_cli.registry.errors import Fault, reason

Record = dict[str, Any]  # as in runs/<run_id>.json


@dataclass
class Session:
    """An experiment with its place on disk and in memory; built by `open_session`."""

    experiment: Experiment
    runs: list[Run]
    folder: Path
    device: torch.device
    watch: Watch = lambda event, facts: None
    warnings: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)  # what could not be made while the rest was
    report: Path | None = None  # of the tables as they are; none where it could not be drawn
    seen: store.Seen = field(default_factory=store.Seen)  # each file is read once
    _data: dict[str, Data] = field(default_factory=dict)
    _hashes: dict[str, str] = field(default_factory=dict)

    def data(self, settings: Settings) -> Data:
        """The dataset of a run on the device, loaded once."""
        key = config.canonical(settings.dataset)
        if key not in self._data:
            self._data[key] = load_data(settings.dataset).to(self.device, dtype(settings))
        return self._data[key]

    def module(self, settings: Settings, seed: int = 0) -> nn.Module:
        """A run's module as initialized by its seed."""
        data = self.data(settings)
        module = build_module(settings.model, data.input_shape, data.num_classes, seed)
        return module.to(self.device, dtype(settings))

    def network(self, settings: Settings) -> Network:
        """How a stack of a run's module is run."""
        compute = torch.bfloat16 if settings.precision == "bfloat16" else dtype(settings)
        return network.build(self.module(settings), self.data(settings).input_shape, compute)

    def data_hash(self, settings: Settings) -> str:
        """Hash of the user's own data file, so that new data are new runs; empty for datasets without a file."""
        path = getattr(settings.dataset, "path", None)
        if path is None:
            return ""
        key = config.canonical(settings.dataset)
        if key not in self._hashes:
            if not Path(path).is_file():
                self.data(settings)  # says what is missing
            self._hashes[key] = self.data(settings).digest() if Path(path).is_dir() else self.seen.hash(Path(path))
        return self._hashes[key]

    @cached_property
    def data_hashes(self) -> dict[str, str]:
        """`data_hash` of each run."""
        return {run.run_id: self.data_hash(run.settings) for run in self.runs}

    def finished(self) -> dict[str, Record]:
        """Records of the runs that are trained, on these very data, and whose minimum is there; not to be changed."""
        if not self.folder.is_dir():
            return {}
        known = store.read_runs(self.folder, self.warnings, self.seen)
        minima = {f"minima/{path.name}" for path in store.files_in(self.folder / "minima", ".safetensors")}
        return {
            run_id: known[run_id]
            for run_id, data in self.data_hashes.items()
            if run_id in known and known[run_id].get("data", "") == data and known[run_id]["minimum"]["file"] in minima
        }

    @cached_property
    def groups(self) -> list[str]:
        """Names of the groups, in the order of the grid."""
        return list(dict.fromkeys(run.group for run in self.runs))


def dtype(settings: Settings) -> torch.dtype:
    """Type of parameters and inputs; bfloat16 is a type of the forward pass only."""
    return torch.float64 if settings.precision == "float64" else torch.float32


def resolve(tree: config.Tree, plugins: Sequence[str] = (), seeds: int | None = None) -> Experiment:
    """The experiment that a config describes; fills the shelves on the way.

    Args:
        tree: from `config.read`.
        plugins: files or modules, as `--plugin` takes them.
        seeds: instead of the config's.
    Raises: Fault.
    """
    registry.load_plugins(list(plugins))
    experiment = config.resolve(tree)
    return experiment if seeds is None else experiment.model_copy(update={"seeds": seeds})


def open_session(experiment: Experiment, results: Path, device: str = "auto", watch: Watch | None = None) -> Session:
    """Everything that can be wrong before the first step is found here: data, shapes, batch sizes, device.

    Raises: Fault, with exit code 5 if data or device are missing; nothing is written.
    """
    folder = results / store.check_name(experiment.name)
    session = Session(experiment, config.expand(experiment), folder, engine.device(device))
    session.watch = contained(watch, session.warnings) if watch else session.watch
    config.measurements(experiment)
    records = session.finished()
    for run in {stacks.shape_key(run): run for run in session.runs if run.run_id not in records}.values():
        n, batch = len(session.data(run.settings).y_train), run.settings.training.batch_size
        if batch != "full" and batch > n:
            raise Fault(f"training.batch_size: {batch} is more than the {n} training samples; `full` takes them all")
        session.module(run.settings)
    return session


@contextmanager
def writing(session: Session, wait: bool = False) -> Iterator[None]:
    """The experiment's folder, made, locked, and with a manifest at the end."""
    started = datetime.now(UTC)
    results, name = session.folder.parent, session.folder.name
    store.open_folder(results, name)
    with store.lock(session.folder, wait), engine.interruptible():
        store.write(session.folder / "experiment.yaml", config.dump(session.experiment).encode())
        try:
            yield
            engine.check()  # a signal that came with the last figures
        finally:
            if session.folder.is_dir():
                _write_manifest(session, started)


def _write_manifest(session: Session, started: datetime) -> None:
    """How the results came to be; that it cannot be said is no reason to lose them."""
    try:
        store.write_manifest(session.folder, sys.argv, started, engine.facts(session.device))
    except Exception as error:
        session.warnings.append(f"{session.folder / 'manifest.json'}: was not written: {reason(error)}")
