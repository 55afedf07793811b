"""Minibatch gradients: how much minibatches disagree (METRICS section 2).

Each is a function of the inner products <g_a, g_b> of the gradients of disjoint minibatches, which they share.
The training set is the population: a standard error is that of the choice of minibatches, from independent draws.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor

from landscape_cli.metrics.point import Estimate, Point, exact, nothing, over_draws, regret_of, unit
from landscape_cli.registry import Count, Natural, metric

SIZES = [1, 10, 100]
PAIRS = "inner products of all sample gradients, shared; 1600 minibatch gradients where n > 4096"
LENGTHS = "length of every sample gradient, shared, and one gradient"
Many = Annotated[int, Ge(3)]
Found = Estimate | dict[str, Estimate]


def sized(function: Callable[..., Any]) -> Callable[..., Any]:
    """A metric of pairs of minibatches: undefined for m > n/2, where no two are disjoint; with a warning for m > n/10.

    There the rest of the set is no stand-in for fresh data: E cos = -m/(n-m) at a minimum, where G = 0.
    """

    own = dict(function.__kwdefaults__ or {})

    @wraps(function)
    def checked(at: Point, **settings: Any) -> Found:
        n, m = at.train.n, (own | settings)["minibatch_size"]
        if m > n // 2:
            return nothing(at, f"minibatch_size={m} is above n/2={n / 2:g}: no two disjoint minibatches")
        found: Found = function(at, **settings)
        if m > n / 10:
            for estimate in found.values() if isinstance(found, dict) else [found]:
                warned = f"minibatch_size={m} is above n/10={n / 10:g}: biased by -m/(n-m), compare at equal m only"
                estimate.message = ["; ".join(filter(None, (warned, text))) for text in estimate.message]
        return found

    return checked


def _lengths(gram: Tensor) -> Tensor:
    """|g_b|, (K, D, M)."""
    return gram.diagonal(dim1=2, dim2=3).clamp_min(0).sqrt()


def _drawn(gram: Tensor) -> int:
    """How many minibatches are behind (K, D, M, M)."""
    return gram.shape[1] * gram.shape[2]


@metric(
    invariant="permutation",
    source="Huszar 2018, linearized",
    default=True,
    minibatch_size=SIZES,
    needs="residuals",
    direction="sharp",
    cost=PAIRS,
)
@sized
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
    gram = at.gradient_gram(minibatch_size, minibatches, partitions, seed)
    return over_draws(regret_of(gram), _drawn(gram))


@metric(
    invariant="permutation",
    source="ours, docs/essay.md",
    default=True,
    minibatch_size=SIZES,
    needs="residuals",
    direction="sharp",
    cost=PAIRS,
)
@sized
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
    gram = at.gradient_gram(minibatch_size, minibatches, partitions, seed)
    return over_draws(_lengths(gram).mean(2), _drawn(gram))


@metric(
    invariant="permutation,global",
    source="Fort et al. 2019 (stiffness)",
    default=True,
    minibatch_size=SIZES,
    needs="residuals",
    direction="none",
    cost=PAIRS,
)
@sized
def gradient_cosine(
    at: Point,
    *,
    minibatch_size: Count = 10,
    minibatches: Many = 100,
    partitions: Many = 16,
    seed: Natural = 0,
    sign: bool = False,
) -> Estimate:
    """Mean cosine between the gradients of two disjoint minibatches, E_{a != b} cos(g_a, g_b).

    Args:
        at: K minima.
        minibatch_size: samples m in a minibatch.
        minibatches: how many disjoint ones in a draw; all pairs are used.
        partitions: independent draws.
        seed: of the draws.
        sign: the mean sign of the cosine instead, how much more often two minibatches agree than not.
    Returns: (K,), between -1 and 1, 0 for a zero gradient; standard error over draws.
    """
    gram = at.gradient_gram(minibatch_size, minibatches, partitions, seed)
    M, own = gram.shape[2], gram.diagonal(dim1=2, dim2=3)
    if sign:
        total = torch.stack([g.sign().sum((1, 2)) for g in gram]) - own.sign().sum(2)
    else:
        length = unit(_lengths(gram))
        total = ((gram @ length[..., None])[..., 0] * length).sum(2) - (length > 0).sum(2)
    return over_draws(total / (M * (M - 1)), _drawn(gram))


@metric(
    invariant="permutation",
    source="empirical Fisher, ours, docs/essay.md",
    default=True,
    minibatch_size=SIZES,
    needs="residuals",
    direction="sharp",
    cost=LENGTHS,
)
@sized
def fisher_trace(at: Point, *, minibatch_size: Count = 1) -> Estimate:
    """Trace of the empirical Fisher information at minibatch size m, E |g_b|^2; m = 1 is the usual one.

    Args:
        at: K minima.
        minibatch_size: samples m in a minibatch.
    Returns: (K,), in squared nats per squared length; exact, the mean over all minibatches of that size.
    """
    own, cross = _moments(at)
    m = minibatch_size
    return exact(((own + (m - 1) * cross) / m).clamp_min(0), at.train.n)


def _moments(at: Point) -> tuple[Tensor, Tensor]:
    """E |g_i|^2 and E_{i != j} <g_i, g_j> over all samples, each (K,)."""
    n, (own, whole) = at.train.n, (at.gradient_squares().mean(1), at.mean_gradient_square())
    return own, (n * whole - own) / max(1, n - 1)


@metric(
    invariant="permutation",
    source="ours, docs/essay.md",
    default=True,
    minibatch_size=SIZES,
    needs="residuals",
    direction="none",
    cost=PAIRS,
)
@sized
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
    gram = at.gradient_gram(minibatch_size, minibatches, partitions, seed)
    first, second = _lengths(gram).mean(2), gram.diagonal(dim1=2, dim2=3).mean(2)  # (K, D)
    D = first.shape[1]
    value = second.mean(1).clamp_min(0).sqrt() - first.mean(1)
    error = torch.zeros_like(value)
    if D > 1:
        rest = [(t.sum(1, keepdim=True) - t) / (D - 1) for t in (second, first)]  # (K, D), one draw left out
        error = (rest[0].clamp_min(0).sqrt() - rest[1]).std(1) * (D - 1) / D**0.5
    return Estimate(value.clamp_min(0), error, _drawn(gram))


@metric(
    invariant="permutation",
    source="Forouzesh & Thiran 2021",
    default=True,
    minibatch_size=SIZES,
    needs="residuals",
    direction="none",
    cost=PAIRS,
)
@sized
def gradient_disparity(
    at: Point, *, minibatch_size: Count = 10, minibatches: Many = 100, partitions: Many = 16, seed: Natural = 0
) -> Estimate:
    """Mean distance between the gradients of two disjoint minibatches, E_{a != b} |g_a - g_b|.

    Args:
        at: K minima.
        minibatch_size: samples m in a minibatch.
        minibatches: how many disjoint ones in a draw; all pairs are used.
        partitions: independent draws.
        seed: of the draws.
    Returns: (K,), in nats per unit of parameter length; standard error over draws.
    """
    gram = at.gradient_gram(minibatch_size, minibatches, partitions, seed)
    M, own = gram.shape[2], gram.diagonal(dim1=2, dim2=3)
    total = torch.zeros_like(own[:, :, 0])
    for start in range(0, M, 128):  # the half above the diagonal, a few rows at a time for the cache
        rows = slice(start, start + 128)
        apart = own[:, :, rows, None] + own[:, :, None, start:] - 2 * gram[:, :, rows, start:]  # |g_a - g_b|^2
        total += apart.clamp_min_(0).sqrt_().triu_(1).sum((2, 3))
    return over_draws(total / (M * (M - 1) / 2), _drawn(gram))


@metric(
    invariant="permutation",
    source="Sankararaman et al. 2020, def. 2.1",
    default=True,
    minibatch_size=SIZES,
    needs="residuals",
    direction="none",
    cost=PAIRS,
)
@sized
def gradient_confusion(
    at: Point, *, minibatch_size: Count = 10, minibatches: Many = 100, partitions: Many = 16, seed: Natural = 0
) -> dict[str, Estimate]:
    """Worst conflict among M disjoint minibatches, E max(0, -min_{a != b} <g_a, g_b>); it grows with M.

    Args:
        at: K minima.
        minibatch_size: samples m in a minibatch.
        minibatches: how many disjoint ones in a draw, M; fewer where the set holds fewer, and then the row says so.
        partitions: independent draws.
        seed: of the draws.
    Returns: (K,), in squared nats per squared length; standard error over draws, rough: extremes have heavy tails.
    """
    gram = at.drawn_gram(minibatch_size, minibatches, partitions, seed)
    others = gram + torch.diag_embed(torch.full_like(gram[:, :, 0], torch.inf))
    worst = (-others.amin((2, 3))).clamp_min(0)
    return {f"minibatches={gram.shape[2]}": over_draws(worst, _drawn(gram))}


def _has_direction(at: Point, estimate: Estimate) -> Estimate:
    """Undefined where the average gradient is 0 up to the rounding of the gradients that it averages."""
    floor = torch.finfo(torch.float64).eps ** 2 * at.gradient_squares().mean(1) / at.train.n
    return estimate.undefined(at.mean_gradient_square() <= floor, "the average gradient is 0: the ratio diverges")


@metric(
    invariant="permutation,global",
    source="McCandlish et al. 2018, eq. 2.9",
    default=True,
    needs="residuals",
    direction="none",
    cost=LENGTHS,
)
def gradient_noise_scale(at: Point) -> Estimate:
    """Variance of single-sample gradients over the square of the average one, tr(Sigma) / |G|^2.

    The training set is the population: G is the exact full gradient, tr(Sigma) = E |g_i|^2 - |G|^2. It diverges at an
    exact minimum; near one it measures how far training went.

    Args:
        at: K minima.
    Returns: (K,), in units of samples; exact; undefined where G = 0.
    """
    whole = at.mean_gradient_square()
    return _has_direction(at, exact((at.gradient_squares().mean(1) - whole).clamp_min(0) / whole, at.train.n))


@metric(
    invariant="permutation,global",
    source="Yin et al. 2018, def. 1",
    default=True,
    same="gradient_noise_scale",
    needs="residuals",
    direction="none",
    cost=LENGTHS,
)
def gradient_diversity(at: Point) -> Estimate:
    """How much single-sample gradients differ, sum |g_i|^2 / |sum g_i|^2 = (1 + noise scale) / n.

    Args:
        at: K minima.
    Returns: (K,), a ratio in units of 1; exact, over the full training set; undefined where G = 0.
    """
    ratio = at.gradient_squares().mean(1) / at.mean_gradient_square() / at.train.n
    return _has_direction(at, exact(ratio, at.train.n))


@metric(
    invariant="permutation,global",
    source="Chatterjee & Zielinski 2020, without the diagonal pairs",
    default=True,
    same="gradient_noise_scale",
    minibatch_size=SIZES,
    needs="residuals",
    direction="none",
    cost=LENGTHS,
)
@sized
def coherence(at: Point, *, minibatch_size: Count = 10) -> Estimate:
    """Share of a minibatch gradient that another one has too, E_{a != b} <g_a, g_b> / E |g_a|^2.

    Args:
        at: K minima.
        minibatch_size: samples m in a minibatch.
    Returns: (K,), a ratio between -m/(n-m) and 1; exact, over all pairs of disjoint minibatches of that size.
    """
    own, cross = _moments(at)
    size = (own + (minibatch_size - 1) * cross) / minibatch_size
    return exact(cross / size, at.train.n).undefined(size <= 0, "all gradients are 0")
