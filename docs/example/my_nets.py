"""A model, a dataset and a metric of one's own: `landscape ... --plugin my_nets.py` puts them on the shelves."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from landscape_cli.metrics import Estimate, Point, exact
from landscape_cli.registry import Count, Natural, Positive, dataset, metric, model


class Block(nn.Module):
    """Two dense layers with BatchNorm, and a shortcut around them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.path = nn.Sequential(
            nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, width), nn.BatchNorm1d(width)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.path(x))


@model
def my_resnet(input_shape: tuple[int, ...], num_classes: int, *, width: Count = 16, blocks: Count = 2) -> nn.Module:
    """Dense residual network with BatchNorm.

    Args:
        input_shape: of one sample.
        num_classes: number of logits.
        width: of every hidden layer.
        blocks: how many residual blocks.
    """
    first = [nn.Flatten(), nn.Linear(int(np.prod(input_shape)), width), nn.ReLU()]
    return nn.Sequential(*first, *(Block(width) for _ in range(blocks)), nn.Linear(width, num_classes))


@dataset
def rings(*, samples: Count = 300, noise: Positive = 0.2, seed: Natural = 0) -> tuple[np.ndarray, ...]:
    """Three noisy rings in the plane, one class each.

    Args:
        samples: of each split.
        noise: standard deviation, in units of the distance between rings.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, 2 * samples)
    radius, angle = y + 1 + noise * rng.standard_normal(2 * samples), rng.uniform(0, 2 * np.pi, 2 * samples)
    x = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)
    return x[:samples], y[:samples], x[samples:], y[samples:]


@metric(invariant="permutation", source="an example")
def near_zero(at: Point, *, below: Positive = 0.01) -> Estimate:
    """Share of the parameters that are closer to zero than `below`.

    Args:
        at: K minima.
        below: the bound.
    Returns: (K,), a share; exact.
    """
    return exact((at.theta.abs() < below).double().mean(1))
