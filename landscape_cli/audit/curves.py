"""The loss along lines through a minimum, and what moving it does to them (Li et al. 2018; Dinh et al. 2017)."""

from __future__ import annotations

from collections.abc import Callable
from math import exp, log

import torch
from torch import Tensor

from landscape_cli.audit import transforms as rp
from landscape_cli.audit.transforms import Minima, Moved
from landscape_cli.curvature.objective import flatten
from landscape_cli.metrics.point import Point
from landscape_cli.network import Params
from landscape_cli.surface import directions

POINTS = torch.linspace(-1, 1, 81, dtype=torch.float64)
GRID = 17  # factors that are tried at once


def direction(like: Params, filters: bool, seed: int) -> Params:
    """A Gaussian direction for one minimum, nothing along biases and other tensors of one dimension.

    Args:
        like: name -> (1, *shape).
        filters: whether each filter d_j gets the length of the minimum's own, |theta_j|; else the whole direction gets
            the length of all filters together.
        seed: of the draw.
    Source: Li et al. 2018, section 4.
    """
    rng = torch.Generator().manual_seed(seed)
    d = directions.direction(like, "filter" if filters else "none", "biasbn", rng)
    d = {name: part.to(like[name]) for name, part in d.items()}
    if filters:
        return d
    length, due = (torch.cat([v.flatten() for n, v in side.items() if like[n].dim() > 2]).norm() for side in (d, like))
    return {name: part * (due / length) for name, part in d.items()}


def along(point: Point, d: Params) -> Tensor:
    """Training loss at theta + x d for the x in POINTS, float64."""
    step = flatten(d)
    losses = []
    for x in POINTS.split(16):
        theta = point.theta + x[:, None].to(point.theta) * step
        losses.append(point.train.rows(torch.zeros(len(x), dtype=torch.long)).loss(theta))
    return torch.cat(losses).cpu()


def driven(at: Minima, factor: float, top: Callable[[list[Moved]], Tensor]) -> tuple[Moved, float]:
    """The alpha_scale of the first channels that can be moved which raises the largest eigenvalue so many times.

    Args:
        at: one minimum, of a network with channels that can be rescaled.
        factor: above 1.
        top: several moved minima -> the largest eigenvalue of each.
    Returns: the moved minimum, and alpha.
    """
    name = rp.alpha_groups(at)[0]
    due = factor * float(top([rp.alpha_scale(at, 1.0, name)])[0])
    low, high = 0.0, log(factor)  # of log 1/alpha; the block that writes grows as 1/alpha^2
    for _ in range(4):
        tried = torch.linspace(low, high, GRID, dtype=torch.float64).tolist()
        above = torch.nonzero(top([rp.alpha_scale(at, exp(-t), name) for t in tried]) >= due).flatten()
        i = max(1, int(above[0])) if len(above) else GRID - 1
        low, high = tried[i - 1], tried[i]
    return rp.alpha_scale(at, exp(-high), name), exp(-high)
