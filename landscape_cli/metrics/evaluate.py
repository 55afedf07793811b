"""One metric on one stack of minima: what it returns is checked, and one that raises has failed for this stack only."""

from __future__ import annotations

import traceback
from typing import Any

import torch

from landscape_cli.metrics.point import Estimate, Point, nothing
from landscape_cli.registry import REGISTRY, needs

RESERVED = {"run_id", "group", "seed", "epoch", "setting"}  # columns that every table of curves has


def evaluate(at: Point, name: str, own: dict[str, Any]) -> dict[str, Estimate]:
    """What the metric returns, as {extra setting: estimate}.

    Undefined under a loss without what the metric needs; a metric that raises has failed for this stack only.
    """
    entry = REGISTRY["metric"][name]
    with at.clock(name):
        try:
            why = at.train.network.loss.lacks(needs(entry, own)) if entry.facts.get("needs") else ""
            found = nothing(at, why) if why else entry.function(at, **own)
            _check_shapes(found if isinstance(found, dict) else {"": found}, at)
        except (Exception, SystemExit) as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            lost = torch.full((len(at.theta),), torch.nan, dtype=torch.float64)
            said = (str(error).splitlines() or [""])[0]
            why = f"{type(error).__name__}: {said} ({where.name}:{where.lineno})"
            K = len(at.theta)
            found = Estimate(lost, lost.clone(), status=["failed"] * K, message=[why] * K)
    return found if isinstance(found, dict) else {"": found}


def _check_shapes(estimates: dict[str, Estimate], at: Point) -> None:
    K, p = at.theta.shape
    for estimate in estimates.values():
        shapes = {name: tuple(t.shape) for name, t in estimate.table.items()}
        if len(set(shapes.values())) > 1 or any(len(s) != 2 or s[0] != K for s in shapes.values()):
            raise ValueError(f"columns of its table have shapes {shapes}, all must be ({K}, points)")
        if taken := shapes.keys() & RESERVED:
            raise ValueError(f"a column of its table must not be called {', '.join(sorted(taken))}")
        V = estimate.vectors
        if V is not None and (V.dim() != 3 or (len(V), V.shape[2]) != (K, p)):
            raise ValueError(f"its vectors have shape {tuple(V.shape)}, must be ({K}, k, {p})")


LOST = ("undefined", "failed")  # no value: neither curve nor directions
