"""`landscape doctor`: what could go wrong on this machine, and how to mend it."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path
from typing import Any

import torch

from landscape_cli import engine, store
from landscape_cli.experiment.session import Session
from landscape_cli.registry.errors import Fault

LITTLE = 2**30  # bytes of free disk below which a sweep may not fit
Finding = dict[str, Any]  # check, found, ok, remedy


def examine(results: Path, session: Session | None = None) -> list[Finding]:
    """All findings, in order.

    Args:
        results: where experiments are kept; it may not exist yet.
        session: an open experiment, whose networks are looked at too.
    Returns: one dict a check; `remedy` is empty where `ok`.
    """
    found = [_finding("python", platform.python_version()), _finding("torch", torch.__version__), _device(), _threads()]
    found += [_disk(results), *_locks(results)]
    return found + (_networks(session) if session else [])


def _finding(check: str, found: str, remedy: str = "") -> Finding:
    return {"check": check, "found": found, "ok": not remedy, "remedy": remedy}


def _device() -> Finding:
    where = engine.device("auto")
    return _finding("device", str(engine.facts(where)["device"]))


def _threads() -> Finding:
    threads, cores = torch.get_num_threads(), len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    if cores and threads > cores:
        return _finding("threads", f"{threads} on {cores} cores", f"set OMP_NUM_THREADS={cores}: more only wait")
    return _finding("threads", f"{threads} on {cores or os.cpu_count()} cores")


def _disk(results: Path) -> Finding:
    there = results.resolve()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    said = f"{free / 2**30:.1f} GiB free at {there}"
    if not os.access(there, os.W_OK):
        return _finding("disk", f"{there} is read-only", "choose another folder with --results")
    return _finding("disk", said, "free some, or choose another folder with --results" if free < LITTLE else "")


def _locks(results: Path) -> list[Finding]:
    found = []
    for folder in sorted(path.parent for path in results.glob(f"*/{store.LOCK}")):
        try:
            with store.lock(folder):
                continue
        except Fault as held:
            found.append(_finding("lock", str(held), "wait for that process, or stop it"))
    return found or [_finding("locks", "none held")]


def _networks(session: Session) -> list[Finding]:
    """How each model of the experiment is run, and the layer that stands in the way if not as a stack."""
    found = []
    for settings in {str(run.settings.model): run.settings for run in session.runs}.values():
        network, name = session.network(settings), settings.model.name
        slow = f"{network.reason}: correct but slower; use layers that `landscape_cli/network/layers.py` lists"
        found.append(_finding(f"model {name}", network.kind, "" if network.kind == "stacked" else slow))
    return found
