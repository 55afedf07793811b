"""Norms: the baselines that flatness must beat (METRICS section 7)."""

from __future__ import annotations

import torch

from landscape_cli.point import Estimate, Point, exact, nothing
from landscape_cli.registry import metric


@metric(invariant="permutation", source="Jiang et al. 2020, appendix C", default=True)
def weight_norm(at: Point) -> Estimate:
    """Euclidean length of all parameters, |theta|.

    Args:
        at: K minima.
    Returns: (K,), in parameter units; exact.
    """
    return exact(torch.linalg.vector_norm(at.theta.double(), dim=1))


@metric(invariant="permutation", source="Jiang et al. 2020, appendix C", default=True)
def distance_from_init(at: Point) -> Estimate:
    """Euclidean distance from the parameters before training, |theta - theta_0|.

    Args:
        at: K minima.
    Returns: (K,), in parameter units; undefined for a checkpoint that does not hold theta_0.
    """
    if at.initial is None:
        return nothing(at, "the checkpoint does not hold the initial parameters")
    return exact(torch.linalg.vector_norm(at.theta.double() - at.initial.double(), dim=1))
