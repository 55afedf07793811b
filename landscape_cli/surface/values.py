"""The loss on lines and planes through minima (Li et al. 2018): directions, grids, and values at many points at once.

A point is theta + x X + y Y, formed in float64 and rounded once. Small nets are evaluated as a stack of points; where a
network convolves, one point after the other, BatchNorm folded into the convolutions where its statistics are given.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn

from landscape_cli.curvature.objective import Objective
from landscape_cli.network import Network, Params, memory
from landscape_cli.network.batchnorm_folding import Fold, without_norms
from landscape_cli.network.batchnorm_statistics import collect_statistics, widest
from landscape_cli.training import stream

Normalization = Literal["filter", "layer", "weight", "none"]
BatchNorm = Literal["fixed", "interpolate", "recompute"]
ROWS = 16  # points of a stack
WORK = 2**36  # multiplications that are saved together


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
            own, due = (
                v.abs() if not axes else torch.linalg.vector_norm(v, dim=axes, keepdim=True) for v in (d, theta)
            )
            d = d * (due / own)
        found[name] = d
    return found


def random_directions(
    like: Params, normalization: Normalization, ignore: str, seed: int, draw: int, axes: int
) -> list[Params]:
    """X, or X and Y, of one draw; the numbers drawn depend on seed, draw and axis alone."""
    names = ("x", "y")[:axes]
    return [direction(like, normalization, ignore, stream(seed, f"surface {axis}", draw)) for axis in names]


def grid(ends: list[tuple[float, float]], points: int) -> Tensor:
    """(points, 2) on a line, or (points^2, 2) with x running fastest; y is 0 on a line. The middle of -r to r is 0."""
    axes = []
    for low, high in ends:
        steps = torch.arange(points, dtype=torch.float64)
        axes.append((low * (points - 1 - steps) + high * steps) / (points - 1))
    if len(axes) == 1:
        return torch.stack([axes[0], torch.zeros(points, dtype=torch.float64)], 1)
    y, x = torch.meshgrid(axes[1], axes[0], indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], 1)


@dataclass(frozen=True)
class Place:
    """A minimum with its data, and the lines through it.

    Args:
        sides: split -> the objective of this minimum alone.
        theta: (1, p) in float64.
        X: directions (p,) in float64.
        Y: the same; None on a line.
        batchnorm: statistics off the minimum: as they are there; on the straight line to those of `other`; or computed
            anew over the training set.
        other: buffers at the other end of a path.
    """

    sides: dict[str, Objective]
    theta: Tensor
    X: Tensor
    Y: Tensor | None
    batchnorm: BatchNorm = "fixed"
    other: Params | None = None

    @property
    def together(self) -> int:
        """Points that are evaluated, and saved, together: a function of the network and the data alone."""
        return min(64, max(1, WORK // self._work))

    @property
    def _work(self) -> int:
        """About the multiplications of one point."""
        train = self.sides["train"]
        positions = train.x[0, 0].numel() if self.convolves else 1
        return int(self.theta.shape[1]) * sum(side.n for side in self.sides.values()) * max(1, positions // 8)

    @cached_property
    def convolves(self) -> bool:
        """Whether the network has convolutions, whose points are evaluated one by one."""
        module = self.sides["train"].network.module
        return any(isinstance(layer, nn.modules.conv._ConvNd) for layer in module.modules())

    def points(self, xy: Tensor) -> Tensor:
        """theta + x X + y Y (P, p) in the network's type of parameters, for xy (P, 2)."""
        D = self.X[None] if self.Y is None else torch.stack([self.X, self.Y])
        moved = torch.addmm(self.theta, xy[:, : len(D)].to(D), D)
        like = next(iter(self.sides["train"].like.values()))
        return moved.to(like)

    def buffers(self, theta: Tensor, xy: Tensor) -> Params:
        """What BatchNorm uses at these points, name -> (P, *shape)."""
        train = self.sides["train"]
        here = {n: b.expand(len(xy), *b.shape[1:]) for n, b in train.buffers.items()}
        if self.batchnorm == "recompute":
            return collect_statistics(train.network, train.unflatten(theta), here, train.x)
        if self.batchnorm == "interpolate" and self.other is not None:
            share = xy[:, 0].to(theta)
            ends = {n: share.view(-1, *[1] * (b.dim() - 1)) for n, b in here.items() if b.is_floating_point()}
            return here | {n: (1 - s) * here[n] + s * self.other[n] for n, s in ends.items()}
        return here

    def scores(self, xy: Tensor) -> Tensor:
        """Loss and accuracy of each split at points (P, 2): (P, splits, 2) in float64 on the CPU."""
        return torch.cat([self._scores(own) for own in xy.split(1 if self.convolves else ROWS)])

    def _scores(self, xy: Tensor) -> Tensor:
        theta = self.points(xy)
        buffers, (network, fold) = self.buffers(theta, xy), self._light
        light, found = fold(self.sides["train"].unflatten(theta), buffers), []
        for side in self.sides.values():
            own, size = replace(side, network=network, like=light, buffers=buffers), self._samples(side.n, len(xy))
            found.append(torch.stack(own.scores(light, size), 1))
        return torch.stack(found, 1).cpu()

    def _samples(self, n: int, points: int) -> int:
        """How many of n samples are evaluated together: equal pieces, whose activations stay in the cache."""
        most = max(16, memory.pieces(points * self._widest, memory.WIDEST))
        return -(-n // -(-n // most))

    @cached_property
    def _light(self) -> tuple[Network, Fold]:
        """The network to evaluate, and what makes its parameters of (params, buffers); folded if it convolves."""
        train = self.sides["train"]
        if not self.convolves:
            return train.network, lambda params, buffers: params
        return without_norms(train.network, train.like, train.buffers, train.x)

    @cached_property
    def _widest(self) -> int:
        """Bytes of the largest activation of a sample."""
        train = self.sides["train"]
        if train.network.kind != "stacked":
            return 32 * train.x[0].numel()  # a guess
        return widest(train.network, train.like, train.buffers, train.x[:1])
