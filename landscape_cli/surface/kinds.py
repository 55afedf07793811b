"""Where a surface lies: along which directions through a minimum, how far, and what is known of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from landscape_cli.config import Surface
from landscape_cli.metrics.point import Point
from landscape_cli.network import Params
from landscape_cli.registry.errors import Fault
from landscape_cli.store import directions
from landscape_cli.surface.values import random_directions

Ends = list[tuple[float, float]]
PLANES = ("plane", "trajectory", "eigen")
OWN = ("path", "trajectory", "eigen")  # kinds whose directions follow from the minima
MARGIN = 0.15  # of a trajectory's extent, on each side


@dataclass(frozen=True)
class Span:
    """Directions, and what belongs to them.

    Args:
        draws: of each draw axis -> direction, name -> (1, *shape) in float64.
        ends: first and last coordinate along each axis.
        facts: what is known of the directions.
        other: buffers at the other end of a path.
        way: of a trajectory the points (n, p) that it goes through.
    """

    draws: list[dict[str, Params]]
    ends: Ends
    facts: dict[str, Any] = field(default_factory=dict)
    other: Params | None = None
    way: Tensor | None = None


def span(at: Point, end: Point | None, way: Tensor | None, asked: Surface) -> Span:
    """The directions of one surface.

    Args:
        at: the minimum.
        end: the other minimum, of a path.
        way: of a trajectory its snapshots (n, p) in float64.
        asked: what to draw.
    Raises: Fault, if there are none, or a file is not readable.
    """
    like = at.train.unflatten(at.theta.double())
    if asked.kind == "path":
        assert end is not None
        far = end.train.unflatten(end.theta.double())
        margin = asked.range or 0.5
        return Span([{"x": {n: far[n] - t for n, t in like.items()}}], [(-margin, 1 + margin)], other=end.train.buffers)
    reach = asked.range or 1.0
    ends = [(-reach, reach)] * (2 if asked.kind in PLANES else 1)
    if asked.kind == "eigen":
        axes, facts = eigenvectors(at)
        return Span([_pair(at, axes)], ends, facts)
    if asked.kind == "trajectory":
        assert way is not None
        axes, shares = principal(way - at.theta.double())
        if not asked.range:
            ends = _around((way - at.theta.double()) @ axes.T)
        return Span([_pair(at, axes)], ends, {"explained_variance": shares.tolist()}, way=way)
    if asked.directions:
        shapes = {n: tuple(t.shape[1:]) for n, t in like.items()}
        return Span(directions.read(Path(asked.directions), shapes, len(ends)), ends)
    draws = asked.draws or (1 if asked.kind == "plane" else 3)
    rule = asked.normalization, asked.ignore, asked.seed
    made = [random_directions(like, *rule, i, len(ends)) for i in range(draws)]
    return Span([dict(zip("xy", one, strict=False)) for one in made], ends)


def _pair(at: Point, axes: Tensor) -> dict[str, Params]:
    return {axis: at.train.unflatten(d[None].cpu()) for axis, d in zip("xy", axes, strict=True)}


def eigenvectors(at: Point) -> tuple[Tensor, dict[str, Any]]:
    """The two eigenvectors of the Hessian of the training loss with the largest eigenvalues.

    Args:
        at: one minimum.
    Returns: (2, p) of length 1, in float64, the largest entry of each positive; their eigenvalues and relative
        residuals.
    """
    ritz = at.ritz(2, 1e-3, 200, 0)
    axes = ritz.vectors[0].double()
    axes = axes / axes.norm(dim=1, keepdim=True)
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
    residuals = ritz.residuals[0] / ritz.values[0, 0].abs()
    facts = {"eigenvalues": ritz.values[0].tolist(), "residuals": residuals.tolist()}
    return axes * largest.sign(), facts


def principal(moves: Tensor) -> tuple[Tensor, Tensor]:
    """The two principal components of a trajectory, the first snapshot on the positive side of each.

    Args:
        moves: snapshots minus the minimum (n, p) in float64.
    Returns: (2, p) of length 1; the share of the snapshots' variance that each explains (2,).
    Raises: Fault if the snapshots span no plane.
    Source: Li et al. 2018, section 7.
    """
    _, lengths, axes = torch.linalg.svd(moves - moves.mean(0), full_matrices=False)
    if len(lengths) < 2 or lengths[1] <= 1e-9 * lengths[0]:
        raise Fault("--kind trajectory: the snapshots lie on one line: there is no plane to draw")
    signs = (axes[:2] @ moves[0]).sign()
    return axes[:2] * signs.where(signs != 0, 1.0)[:, None], (lengths**2 / (lengths**2).sum())[:2]


def _around(xy: Tensor) -> Ends:
    """A box about points (n, 2) and the origin."""
    low, high = xy.amin(0).clamp(max=0.0), xy.amax(0).clamp(min=0.0)
    return [(float(a - MARGIN * (b - a)), float(b + MARGIN * (b - a))) for a, b in zip(low, high, strict=True)]
