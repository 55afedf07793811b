"""Directions through a minimum: drawn at random, principal components of snapshots, eigenvectors of the Hessian."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from landscape_cli.metrics.point import Point
from landscape_cli.network import Params
from landscape_cli.registry.errors import Fault
from landscape_cli.surface.span import Ends, Ignore, Normalization
from landscape_cli.training import stream

MARGIN = 0.15  # of a trajectory's extent, on each side


def direction(like: Params, normalization: Normalization, ignore: str, rng: torch.Generator) -> Params:
    """A Gaussian direction with the lengths of the minimum's own parts.

    Args:
        like: one minimum, name -> (1, *shape).
        normalization: filter, |d_j| = |theta_j| for each filter (row of a weight tensor, or entry of a vector);
            layer, |d| = |theta| for each tensor; weight, d_i times theta_i for each entry; none, as drawn.
        ignore: biasbn: tensors of one dimension, biases and BatchNorm's, get 0; none: they move too.
        rng: of the draw.
    Returns: name -> (1, *shape) in float64.
    Source: Li et al. 2018, section 4.
    """
    found = {}
    for name, t in like.items():
        theta = t.double().cpu()
        d = torch.randn(t.shape, generator=rng, dtype=torch.float64)
        if t.dim() <= 2 and ignore == "biasbn":
            d = torch.zeros_like(d)
        elif normalization == "weight":
            d = d * theta
        elif normalization != "none":
            axes = list(range(2 if normalization == "filter" else 1, t.dim()))
            length, due = (
                v.abs() if not axes else torch.linalg.vector_norm(v, dim=axes, keepdim=True) for v in (d, theta)
            )
            d = d * (due / length)
        found[name] = d
    return found


def random_directions(
    like: Params, normalization: Normalization, ignore: str, seed: int, draw: int, axes: int
) -> list[Params]:
    """X, or X and Y, of one draw; the numbers drawn depend on seed, draw and axis alone."""
    names = ("x", "y")[:axes]
    return [direction(like, normalization, ignore, stream(seed, f"surface {axis}", draw)) for axis in names]


def drawn(
    at: Point, normalization: Normalization, ignore: Ignore, seed: int, draws: int, axes: str
) -> list[dict[str, Params]]:
    """Of each draw axis -> direction; `axes` are x, or x and y."""
    like = at.train.unflatten(at.theta.double())
    made = [random_directions(like, normalization, ignore, seed, i, len(axes)) for i in range(draws)]
    return [dict(zip(axes, one, strict=True)) for one in made]


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


def named(at: Point, axes: Tensor) -> dict[str, Params]:
    """X and Y, the rows of `axes` (2, p), by the names of the parameters."""
    return {axis: at.train.unflatten(d[None].cpu()) for axis, d in zip("xy", axes, strict=True)}


def box(xy: Tensor) -> Ends:
    """A box about points (n, 2) and the origin."""
    low, high = xy.amin(0).clamp(max=0.0), xy.amax(0).clamp(min=0.0)
    return [(float(a - MARGIN * (b - a)), float(b + MARGIN * (b - a))) for a, b in zip(low, high, strict=True)]
