"""The loss on lines and planes through minima (Li et al. 2018): values at many points of a grid at once.

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

BatchNorm = Literal["fixed", "interpolate", "recompute"]
ROWS = 16  # points of a stack
WORK = 2**36  # multiplications that are saved at once


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
class Slice:
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
    def part_size(self) -> int:
        """Points that are evaluated, and saved, at once: a function of the network and the data alone."""
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
        return torch.cat([self._scores(some) for some in xy.split(1 if self.convolves else ROWS)])

    def _scores(self, xy: Tensor) -> Tensor:
        theta = self.points(xy)
        buffers, (network, fold) = self.buffers(theta, xy), self._folded
        light, found = fold(self.sides["train"].unflatten(theta), buffers), []
        for side in self.sides.values():
            here, size = replace(side, network=network, like=light, buffers=buffers), self._samples(side.n, len(xy))
            found.append(torch.stack(here.scores(light, size), 1))
        return torch.stack(found, 1).cpu()

    def _samples(self, n: int, points: int) -> int:
        """How many of n samples are evaluated at once: equal pieces, whose activations stay in the cache."""
        most = max(16, memory.pieces(points * self._widest, memory.WIDEST))
        return -(-n // -(-n // most))

    @cached_property
    def _folded(self) -> tuple[Network, Fold]:
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
