"""Minibatch gradients: how much minibatches disagree (METRICS section 2).

Each is a function of the Gram matrix <g_a, g_b> of the gradients of disjoint minibatches, which they share.
The training set is the population: a standard error is that of the choice of minibatches, from independent draws.
"""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from landscape_cli.point import Estimate, Point, exact, over_draws
from landscape_cli.registry import Count, Natural, metric

SIZES = [1, 10, 100]
Many = Annotated[int, Ge(3)]


def _gram(at: Point, m: int, minibatches: int, partitions: int, seed: int) -> tuple[Tensor, int]:
    """(K, D, M, M) and the number of minibatches behind it."""
    gram = at.gradient_gram(m, minibatches, partitions, seed)
    return gram, gram.shape[1] * gram.shape[2]


def _size_checked(at: Point, m: int, estimate: Estimate) -> Estimate:
    """A warning where the rest of the set is no stand-in for fresh data, m > n / 10: E cos = -m / (n - m) at G = 0."""
    n = len(at.train.y)
    if m > n / 10:
        estimate.message = [
            f"minibatch_size={m} is above n/10={n / 10:g}: biased by -m/(n-m), compare at equal m only"
        ] * len(estimate.value)
    return estimate


def _too_large(at: Point, m: int) -> Estimate | None:
    """The undefined estimate for m > n / 2, where no two minibatches are disjoint."""
    n, K = len(at.train.y), len(at.theta)
    if m <= n // 2:
        return None
    empty = exact(torch.zeros(K))
    return empty.undefined(torch.ones(K), f"minibatch_size={m} is above n/2={n / 2:g}: no two disjoint minibatches")


def _lengths(gram: Tensor) -> Tensor:
    """|g_b|, (K, D, M)."""
    return gram.diagonal(dim1=2, dim2=3).clamp_min(0).sqrt()


def _inverse(length: Tensor) -> Tensor:
    """1 / |g|, and 0 for a zero gradient, whose cosine with anything is 0."""
    return torch.where(length > 0, 1 / length.clamp_min(torch.finfo(length.dtype).tiny), 0)


@metric(invariant="permutation", source="Huszar 2018, linearized", default=True, minibatch_size=SIZES)
def regret(
    at: Point, *, minibatch_size: Count = 10, minibatches: Many = 100, partitions: Many = 16, seed: Natural = 0
) -> Estimate:
    """First-order local regret per unit radius, E_{a != b} |g_b| (1 - cos(g_a, g_b)).

    How much worse the step that is best for minibatch a is on minibatch b than b's own best step.

    Args:
        at: K minima.
        minibatch_size: samples m in a minibatch; above n/10 with a warning, above n/2 undefined.
        minibatches: how many disjoint ones, M, in a draw; all M (M - 1) ordered pairs are used.
        partitions: independent draws D; with m = 1 and n <= 4096 all pairs of samples are enumerated instead.
        seed: of the draws.
    Returns: (K,), in nats per unit of parameter length; standard error over draws.
    """
    if bad := _too_large(at, minibatch_size):
        return bad
    gram, count = _gram(at, minibatch_size, minibatches, partitions, seed)
    length, M = _lengths(gram), gram.shape[2]
    others = gram.sum(3) - gram.diagonal(dim1=2, dim2=3)  # sum over b != a of <g_a, g_b>
    projected = (others * _inverse(length)).mean(2) / (M - 1)  # E |g_b| cos(g_a, g_b)
    return _size_checked(at, minibatch_size, over_draws(length.mean(2) - projected, count))


@metric(invariant="permutation", source="METRICS section 2", default=True, minibatch_size=SIZES)
def gradient_norm(
    at: Point, *, minibatch_size: Count = 10, minibatches: Many = 100, partitions: Many = 16, seed: Natural = 0
) -> Estimate:
    """Mean length of a minibatch gradient, E |g_b|: the regret if gradients were orthogonal.

    Args:
        at: K minima.
        minibatch_size: samples m in a minibatch.
        minibatches: how many disjoint ones in a draw.
        partitions: independent draws.
        seed: of the draws.
    Returns: (K,), in nats per unit of parameter length; standard error over draws.
    """
    if bad := _too_large(at, minibatch_size):
        return bad
    gram, count = _gram(at, minibatch_size, minibatches, partitions, seed)
    return _size_checked(at, minibatch_size, over_draws(_lengths(gram).mean(2), count))


@metric(invariant="permutation,global", source="Fort et al. 2019 (stiffness)", default=True, minibatch_size=SIZES)
def gradient_cosine(
    at: Point, *, minibatch_size: Count = 10, minibatches: Many = 100, partitions: Many = 16, seed: Natural = 0
) -> Estimate:
    """Mean cosine between the gradients of two disjoint minibatches, E_{a != b} cos(g_a, g_b).

    Args:
        at: K minima.
        minibatch_size: samples m in a minibatch.
        minibatches: how many disjoint ones in a draw; all pairs are used.
        partitions: independent draws.
        seed: of the draws.
    Returns: (K,), between -1 and 1, 0 for a zero gradient; standard error over draws.
    """
    if bad := _too_large(at, minibatch_size):
        return bad
    gram, count = _gram(at, minibatch_size, minibatches, partitions, seed)
    length, M = _lengths(gram), gram.shape[2]
    unit = _inverse(length)
    total = ((gram @ unit[..., None])[..., 0] * unit).sum(2) - (unit > 0).sum(2)
    return _size_checked(at, minibatch_size, over_draws(total / (M * (M - 1)), count))


@metric(invariant="permutation", source="empirical Fisher, METRICS section 2", default=True, minibatch_size=SIZES)
def fisher_trace(
    at: Point, *, minibatch_size: Count = 1, minibatches: Many = 100, partitions: Many = 16, seed: Natural = 0
) -> Estimate:
    """Trace of the empirical Fisher information at minibatch size m, E |g_b|^2; m = 1 is the usual one.

    Args:
        at: K minima.
        minibatch_size: samples m in a minibatch.
        minibatches: how many in a draw, where n is too large for the closed form.
        partitions: independent draws.
        seed: of the draws.
    Returns: (K,), in squared nats per squared length; exact up to n = 4096, else with standard error over draws.
    """
    if bad := _too_large(at, minibatch_size):
        return bad
    n, m = len(at.train.y), minibatch_size
    if at.has_sample_gram:  # a minibatch without replacement holds m diagonal and m (m - 1) other entries
        gram = at.sample_gram()
        diagonal = gram.diagonal(dim1=1, dim2=2).sum(1)
        value = (diagonal / n + (m - 1) * (gram.sum((1, 2)) - diagonal) / (n * (n - 1))) / m
        return _size_checked(at, m, exact(value.clamp_min(0), n))
    gram, count = _gram(at, m, minibatches, partitions, seed)
    return _size_checked(at, m, over_draws(gram.diagonal(dim1=2, dim2=3).mean(2), count))


@metric(invariant="permutation", source="METRICS section 2", default=True, minibatch_size=SIZES)
def jensen_gap(
    at: Point, *, minibatch_size: Count = 10, minibatches: Many = 100, partitions: Many = 16, seed: Natural = 0
) -> Estimate:
    """How far the mean gradient length lies below its root mean square, sqrt(E |g_b|^2) - E |g_b| >= 0.

    Args:
        at: K minima.
        minibatch_size: samples m in a minibatch.
        minibatches: how many disjoint ones in a draw.
        partitions: independent draws.
        seed: of the draws.
    Returns: (K,), in nats per unit of parameter length; standard error by the jackknife over draws.
    """
    if bad := _too_large(at, minibatch_size):
        return bad
    gram, count = _gram(at, minibatch_size, minibatches, partitions, seed)
    first, second = _lengths(gram).mean(2), gram.diagonal(dim1=2, dim2=3).mean(2)  # (K, D)
    D = first.shape[1]
    value = second.mean(1).clamp_min(0).sqrt() - first.mean(1)
    error = torch.zeros_like(value)
    if D > 1:
        rest = [(t.sum(1, keepdim=True) - t) / (D - 1) for t in (second, first)]  # (K, D), one draw left out
        error = (rest[0].clamp_min(0).sqrt() - rest[1]).std(1) * (D - 1) / D**0.5
    return _size_checked(at, minibatch_size, Estimate(value.clamp_min(0), error, count))
