"""The tables of one surface: values, curvature and snapshots; each part is on the disk once it is finished."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from landscape_cli import engine, store
from landscape_cli.config import Settings
from landscape_cli.curvature.objective import flatten
from landscape_cli.experiment import measure
from landscape_cli.experiment.session import Record, Session
from landscape_cli.experiment.snapshots import before_the_end
from landscape_cli.metrics.hessian import hessian_bottom
from landscape_cli.metrics.point import Point
from landscape_cli.surface.span import Span
from landscape_cli.surface.values import BatchNorm, Slice

if TYPE_CHECKING:
    from pandas import DataFrame

Rows = list[Any]
COLUMNS = ("draw", "x", "y", "split", "loss", "accuracy", "status")
CURVATURE = ("draw", "x", "y", "lambda_max", "lambda_min", "status", "message")
SNAPSHOTS = (
    *("epoch", "x", "y", "off_plane", "split"),
    *("loss", "accuracy", "projected_loss", "projected_accuracy", "status"),
)


@dataclass(frozen=True)
class Survey:
    """What the tables of one surface are made from.

    Args:
        session: hears of each step.
        at: the minimum.
        span: its directions.
        batchnorm: statistics off the minimum.
        xy: the grid.
        parts: folder of what is finished.
        key: of all that the values depend on.
        name: of the surface.
    """

    session: Session
    at: Point
    span: Span
    batchnorm: BatchNorm
    xy: Tensor
    parts: Path
    key: str
    name: str

    def slices(self) -> list[Slice]:
        """One for each draw of the directions."""
        theta = self.at.theta.double()
        sides = {"train": self.at.train, "test": self.at.test}
        flat = [{axis: flatten(d)[0].to(theta) for axis, d in draw.items()} for draw in self.span.draws]
        return [Slice(sides, theta, d["x"], d.get("y"), self.batchnorm, self.span.other) for d in flat]

    def losses(self) -> DataFrame:
        """draw, x, y, split, loss, accuracy, status."""
        rows = [
            (draw, *point, split, *_row(*scores))
            for draw, cut in enumerate(self.slices())
            for point, both in zip(self.xy.tolist(), self._finished(draw, "", cut, _scores), strict=True)
            for split, scores in zip(cut.sides, both, strict=True)
        ]
        return _frame(COLUMNS, rows)

    def curvature(self) -> DataFrame:
        """draw, x, y, lambda_max, lambda_min, status, message."""
        rows = [
            (draw, *point, *found)
            for draw, cut in enumerate(self.slices())
            for point, found in zip(self.xy.tolist(), self._finished(draw, "-curvature", cut, curvatures), strict=True)
        ]
        return _frame(CURVATURE, rows)

    def _finished(self, draw: int, what: str, cut: Slice, how: Callable[[Slice, Tensor], Rows]) -> Rows:
        """One row a point; each part is on the disk before the next begins, and is not made twice."""
        found: Rows = []
        if draw == 0:
            self.session.watch("measure", {"cells": len(self.xy) * len(self.span.draws), "unit": "points"})
        for i, some in enumerate(self.xy.split(cut.part_size)):
            engine.check()
            self.session.watch("metric", {"metric": self.name + what})
            path = self.parts / f"{self.key}-{draw}{what}-{i:05d}.json"
            rows = _kept(path)
            if rows is None:
                rows = how(cut, some)
                store.write(path, json.dumps({"rows": rows, "sha256": _hash(rows)}).encode())
            found += rows
            self.session.watch("cell", {"metric": self.name, "runs": len(some)})
        return found


def _kept(path: Path) -> Rows | None:
    """The rows of a part, None if it is missing or damaged."""
    try:
        part = json.loads(path.read_text())
        rows: Rows = part["rows"]
        return rows if part["sha256"] == _hash(rows) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _hash(rows: Rows) -> str:
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _scores(cut: Slice, xy: Tensor) -> Rows:
    rows: Rows = cut.scores(xy).tolist()
    return rows


def curvatures(cut: Slice, xy: Tensor) -> Rows:
    """Largest and smallest eigenvalue of the Hessian of the training loss at points (P, 2), status and message."""
    finite = cut.scores(xy)[:, 0, 0].isfinite().tolist()
    rows: Rows = [(None, None, "undefined", "the loss is not finite") for _ in finite]
    inside = [i for i, ok in enumerate(finite) if ok]
    size = 1 if cut.convolves else max(1, len(inside))
    for some in (inside[i : i + size] for i in range(0, len(inside), size)):
        theta = cut.points(xy[some])
        train = cut.sides["train"]
        moved = replace(train, like=train.unflatten(theta), buffers=cut.buffers(theta, xy[some]))
        at = Point(theta, moved, moved)
        low, top = hessian_bottom(at), at.ritz(1, 1e-3, 200, 0)  # which that one needed too
        late = (top.residuals[:, 0] > 1e-3 * top.values[:, 0].abs()).tolist()
        for row, i in enumerate(some):
            outcome = (low.status[row], low.message[row])
            if late[row]:
                outcome = ("not_converged", "lambda_max: relative residual above 1e-3 after 200 steps")
            rows[i] = (float(top.values[row, 0]), float(low.value[row]), *outcome)
    return rows


def snapshots(work: Survey, record: Record, settings: Settings) -> DataFrame:
    """epoch, x, y, off_plane, split, loss, accuracy, projected_loss, projected_accuracy, status.

    The loss at each snapshot with its own BatchNorm statistics, and that at its shadow on the plane; both are in
    off_plane, the distance between the two.
    """
    (cut,), points = work.slices(), work.span.snapshots
    assert points is not None and cut.Y is not None
    moves = torch.cat([points - cut.theta, torch.zeros_like(cut.theta)])
    xy = moves @ torch.stack([cut.X, cut.Y], 1)
    off = (moves - xy @ torch.stack([cut.X, cut.Y])).norm(dim=1)
    kept = [*before_the_end(work.session, record, settings), record]
    rows, shadows = [], cut.scores(xy.cpu()).tolist()
    for one, point, far, shadow in zip(kept, xy.tolist(), off.tolist(), shadows, strict=True):
        at = measure.point(work.session, [one], settings)
        itself = replace(cut, sides={"train": at.train, "test": at.test}, theta=at.theta.double(), batchnorm="fixed")
        for split, true, seen in zip(itself.sides, itself.scores(torch.zeros(1, 2))[0].tolist(), shadow, strict=True):
            (*scores, status), (*projected, other) = _row(*true), _row(*seen)
            worst = status if status != "ok" else other
            rows.append((one.get("epoch", record["epochs"]), *point, far, split, *scores, *projected, worst))
    return _frame(SNAPSHOTS, rows)


def _row(loss: float, accuracy: float) -> tuple[float | None, float | None, str]:
    """A value that is not finite is left out."""
    return (loss, accuracy, "ok") if isfinite(loss) else (None, None, "undefined")


def _frame(columns: Sequence[str], rows: list[Any]) -> DataFrame:
    return store.lines_table(dict(zip(columns, map(list, zip(*rows, strict=True)), strict=True)))
