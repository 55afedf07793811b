"""Sharpness: how far the training loss can rise, or rises on average, near a minimum (METRICS section 6)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor

from landscape_cli.metrics.ball_maximum import climb
from landscape_cli.metrics.perturbation import Target, around, gaussians, measure_of, resolved, seen
from landscape_cli.metrics.point import Estimate, Point, Split, exact, nothing, over_draws
from landscape_cli.network import memory
from landscape_cli.registry import FEW, Count, Natural, Positive, Tolerance, metric

Solver = Literal["ascent", "converged"]
Draws = Annotated[int, Ge(8), FEW]
Vector = np.ndarray[Any, Any]
Slope = Callable[[Tensor], tuple[Tensor, Tensor]]
STILL = "the gradient is 0: no direction of ascent"


@metric(
    invariant="permutation",
    source="Keskar et al. 2017, eq. 3 to 5",
    default=True,
    eps=[1e-3, 5e-4],
    search=True,
    direction="sharp",
    cost="about 15 gradients",
)
def keskar_sharpness(
    at: Point,
    *,
    eps: Positive = 1e-3,
    solver: Literal["paper", "converged"] = "paper",
    subspace: Count | None = None,
    split: Split = "train",
    normalize_logits: bool = False,
    max_steps: Count = 1000,
    seed: Natural = 0,
) -> Estimate:
    """Largest rise of the loss in a box, 100 (max_{z in C} L(theta + A z) - L(theta)) / (1 + L(theta)).

    C = {z: |z_j| <= eps (|(A^+ theta)_j| + 1)}, searched by L-BFGS-B from z = 0.

    Args:
        at: K minima.
        eps: size of the box.
        solver: `paper` stops after 10 iterations, as the paper does; `converged` goes on to a stationary point.
        subspace: columns of A, orthonormal at random (the paper's 100; at most p); None for the whole space, A = I.
        split: whose average loss.
        normalize_logits: divide each sample's logits by their standard deviation over classes first.
        max_steps: iterations at most for `converged`.
        seed: of the subspace, common to all minima.
    Returns: (K,), in per cent; no sampling error. A local search: a lower bound of the maximum.
    """
    at = seen(at, split, normalize_logits)
    limit = 10 if solver == "paper" else max_steps
    A = None if subspace is None else _orthonormal(at.theta.shape[1], subspace, seed)
    theta = at.theta.double().cpu()
    width = eps * ((theta if A is None else theta @ A).abs() + 1)  # A^+ = A^T
    with _one_thread_if_small(at):
        found = [_climb_in_box(_along(at, k, A), w, limit, solver == "converged") for k, w in enumerate(width)]
    top, steps, residual = (torch.tensor(column, dtype=torch.float64) for column in zip(*found, strict=True))
    loss = at.loss().cpu()
    rise = (top - loss).clamp_min(0)
    estimate = exact(100 * rise / (1 + loss), len(at.train.y))
    estimate.iterations, estimate.residual = int(steps.max()), residual
    if solver == "converged":
        why = f"projected gradient above 1e-3 of the gradient after {limit} iterations: raise max_steps ({max_steps})"
        estimate.not_converged(residual > 1e-3, why)
        why = "stands on a kink of the loss, or at the end of its digits: try precision: float64"
        estimate.not_converged((residual > 1e-3) & (steps < limit), why)
    return resolved(at, estimate, rise.to(at.theta.device))


def _orthonormal(p: int, columns: int, seed: int) -> Tensor:
    """Columns of a random subspace (p, min(columns, p)), float64."""
    rng = torch.Generator().manual_seed(seed)
    Q: Tensor = torch.linalg.qr(torch.randn(p, min(columns, p), generator=rng, dtype=torch.float64))[0]
    return Q


def _along(at: Point, k: int, A: Tensor | None) -> Slope:
    """z (r,) -> L(theta + A z), its gradient in z, for minimum k; z in float64 on the CPU."""
    alone, theta = at.train.alone(k), at.theta[k : k + 1].double()

    def slope(z: Tensor) -> tuple[Tensor, Tensor]:
        there = theta + (z if A is None else A @ z).to(theta.device)
        loss, g = alone.loss_and_gradient(there.to(at.theta.dtype))
        home = g[0].double().cpu()
        return loss, home if A is None else A.T @ home

    return slope


@contextmanager
def _one_thread_if_small(at: Point) -> Iterator[None]:
    """One thread for small nets: between two gradients the others fall asleep, and waking them takes longer."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if at.theta.shape[1] * len(at.train.y) < 2**26 else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _climb_in_box(slope: Slope, width: Tensor, limit: int, converge: bool) -> tuple[float, int, float]:
    """Ascend from 0 in the box |z_j| <= width_j, by L-BFGS-B.

    Args:
        slope: z (r,) -> loss (1,), gradient (r,).
        width: (r,), float64 on the CPU.
        limit: iterations at most.
        converge: go on to a stationary point.
    Returns: largest loss found, iterations, and the projected gradient over the gradient.
    """
    from scipy.optimize import fmin_l_bfgs_b  # `minimize` converts the bounds twice, in Python

    def minus(z: Vector) -> tuple[float, Vector]:
        loss, gradient = slope(torch.from_numpy(z))
        return -float(loss), -gradient.numpy()

    wall = width.numpy()
    exact = {"factr": 1.0, "pgtol": 0.0} if converge else {}
    bounds = list(zip((-wall).tolist(), wall.tolist(), strict=True))  # scipy loops over them, faster so
    z, lowest, info = fmin_l_bfgs_b(
        minus, np.zeros_like(wall), bounds=bounds, maxiter=limit, maxfun=20 * limit, **exact
    )
    downhill = info["grad"]
    free = np.where(downhill > 0, z > -wall, z < wall)  # not held by the wall that it pushes against
    residual = (np.abs(downhill) * wall)[free].sum() / max((np.abs(downhill) * wall).sum(), 1e-300)
    return -float(lowest), int(info["nit"]), float(residual)


@metric(
    invariant="permutation",
    source="Foret et al. 2021, eq. 1",
    default=True,
    solver=["ascent", "converged"],
    direction="sharp",
    cost="2 gradients; converged: 40 to 100, and the top eigenvector, shared",
)
def sam_sharpness(
    at: Point,
    *,
    rho: Positive = 0.05,
    solver: Solver = "converged",
    split: Split = "train",
    normalize_logits: bool = False,
    tolerance: Tolerance = 1e-3,
    max_steps: Count = 200,
    seed: Natural = 0,
) -> Estimate:
    """Largest rise of the loss in a ball, max_{|d| <= rho} L(theta + d) - L(theta).

    Args:
        at: K minima.
        rho: radius of the ball.
        solver: `ascent` takes the one step rho G / |G| of the SAM optimizer; `converged` goes on from the best of that
            step and the top eigenvector of the Hessian, both signs.
        split: whose average loss.
        normalize_logits: divide each sample's logits by their standard deviation over classes first.
        tolerance: of the gradient along the sphere, relative to the gradient; the value's error is about its square
            over the relative gap between the largest eigenvalues.
        max_steps: gradients at most for `converged`.
        seed: of the eigenvector's Lanczos start.
    Returns: (K,), in nats; no sampling error.
    """
    at = seen(at, split, normalize_logits)
    if solver == "ascent":
        rise, still = ascend(at, rho)
        return resolved(at, exact(rise, len(at.train.y)).undefined(still, STILL), rise)
    radius = at.loss().new_full((len(at.theta),), rho)
    rise, residual, done, steps = climb(at, radius, tolerance, max_steps, seed)
    estimate = exact(rise, len(at.train.y))
    estimate.iterations, estimate.residual = steps, residual
    return resolved(at, estimate.not_converged(~done, too_few(tolerance, steps, max_steps)), rise)


def ascend(at: Point, rho: float) -> tuple[Tensor, Tensor]:
    """The rise at the end of the step rho G / |G| (K,), and where the gradient is 0."""
    g = at.gradient()
    length = torch.linalg.vector_norm(g, dim=1, keepdim=True)
    d = rho * g / length.clamp_min(torch.finfo(g.dtype).tiny)
    return at.train.loss(at.theta + d) - at.loss(), length[:, 0] == 0


def too_few(tolerance: float, steps: int, max_steps: int) -> str:
    """What to say of a climb that was stopped."""
    return f"gradient along the sphere above tolerance={tolerance:g} after {steps} steps: raise max_steps ({max_steps})"


@metric(
    invariant="permutation",
    source="Foret et al. 2021, section 4.1",
    minibatch_size=[10, 100],
    direction="sharp",
    cost="2 gradients, minibatch by minibatch; converged: about 100, and their top eigenvectors",
)
def m_sharpness(
    at: Point,
    *,
    rho: Positive = 0.05,
    minibatch_size: Count = 100,
    minibatches: Count = 100,
    solver: Solver = "ascent",
    normalize_logits: bool = False,
    tolerance: Tolerance = 1e-3,
    max_steps: Count = 200,
    seed: Natural = 0,
) -> Estimate:
    """Mean over minibatches b of their own largest rise in a ball, max_{|d| <= rho} f_b(theta + d) - f_b(theta).

    Args:
        at: K minima.
        rho: radius of the ball.
        minibatch_size: samples m in a minibatch.
        minibatches: how many, M, disjoint; fewer where n < M m.
        solver: as for sam_sharpness, in each minibatch; a step along a zero gradient rises by 0.
        normalize_logits: divide each sample's logits by their standard deviation over classes first.
        tolerance: of the gradient along the sphere, relative to the gradient.
        max_steps: gradients at most for `converged`.
        seed: of the minibatches, common to all minima, and of the Lanczos starts.
    Returns: (K,), in nats; standard error over minibatches, as of independent ones: another seed cuts the set into
        others. Single samples are the same for every seed: times sqrt(1 - M / n), 0 where all are used.
    """
    at = seen(at, "train", normalize_logits)
    if minibatch_size > at.train.n:
        return nothing(at, f"fewer than {minibatch_size} samples")
    batches = at.draws(minibatch_size, minibatches, 1, seed)[0]  # (M, m)
    M, left = len(batches), 1 - batches.numel() / at.train.n  # left: share of the samples that is not used
    if M == 1 and left > 0:
        return nothing(at, "fewer than 2 minibatches: no standard error")
    K, parts, steps = len(at.theta), [], 1
    for piece in batches.split(_together(at, minibatch_size)):
        theta = at.theta.repeat_interleave(len(piece), 0)
        of = at.train.each(piece)
        here = Point(theta, of, of)
        if solver == "ascent":
            rise, done = ascend(here, rho)[0], torch.ones(len(theta), dtype=torch.bool, device=theta.device)
        else:
            rise, _, done, used = climb(here, here.loss().new_full((len(theta),), rho), tolerance, max_steps, seed)
            steps = max(steps, used)
        parts.append((rise.view(K, -1), done.view(K, -1)))
    rises, done = (torch.cat(column, 1) for column in zip(*parts, strict=True))  # (K, M)
    estimate = over_draws(rises, M)
    if minibatch_size == 1:
        estimate.standard_error = estimate.standard_error * left**0.5
    if solver == "converged":
        estimate.iterations = steps
        estimate.not_converged(~done.all(1), "in some minibatch: " + too_few(tolerance, steps, max_steps))
    return resolved(at, estimate, estimate.value)


def _together(at: Point, m: int) -> int:
    """How many minibatches at once have their parameters, gradients and activations in memory."""
    K, p = at.theta.shape
    need = at.train.bytes_per_sample * m + 8 * K * p * 8
    return memory.pieces(need, memory.STACKED)


@metric(
    invariant="permutation",
    source="Foret et al. 2021; Andriushchenko et al. 2023, eq. 2",
    default=True,
    needs={"target=error": "classes"},
    direction="sharp",
    cost="2 forward passes a draw",
)
def average_sharpness(
    at: Point,
    *,
    sigma: Positive = 0.01,
    target: Target = "loss",
    split: Split = "train",
    normalize_logits: bool = False,
    draws: Draws = 32,
    seed: Natural = 0,
) -> Estimate:
    """Mean rise of the loss under Gaussian noise, E_{d ~ N(0, sigma^2 I)} L(theta + d) - L(theta).

    Args:
        at: K minima.
        sigma: standard deviation of the noise on each parameter.
        target: what rises, the loss or the error, 1 - accuracy.
        split: on which samples.
        normalize_logits: divide each sample's logits by their standard deviation over classes first.
        draws: antithetic pairs +d, -d, common to all minima: the odd part of the loss cancels.
        seed: of the noise.
    Returns: (K,), in nats, or the error's rise between -1 and 1; standard error over pairs.
    """
    at = seen(at, split, normalize_logits)
    return mean_rise(at, (sigma * xi for xi in gaussians(at, draws, seed)), target)


def mean_rise(at: Point, shifts: Iterator[Tensor], target: Target = "loss") -> Estimate:
    """Mean over antithetic pairs of the rise at theta + d and theta - d, for shifts d (p,) or (K, p)."""
    measure = measure_of(target)
    (found,) = around(at.train, (at.theta + way for d in shifts for way in (d, -d)), measure)
    here = at.loss() if target == "loss" else measure(at.train, at.theta)[0]
    pairs = found.unflatten(1, (-1, 2)).mean(2) - here[:, None]
    estimate = over_draws(pairs, pairs.shape[1])
    return resolved(at, estimate, estimate.value) if target == "loss" else estimate
