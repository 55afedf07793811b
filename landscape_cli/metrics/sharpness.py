"""Sharpness: how far the training loss can rise, or rises on average, near a minimum (METRICS section 6)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor

from landscape_cli.climb import climb
from landscape_cli.point import Estimate, Point, exact, over_draws
from landscape_cli.registry import Count, Natural, Positive, metric


def _resolved(at: Point, estimate: Estimate, rise: Tensor) -> Estimate:
    """Status `unresolved` where the rise of the loss is lost in the rounding of its own evaluation."""
    floor = 4 * torch.finfo(at.theta.dtype).eps * at.loss()
    for k in torch.nonzero((rise.abs() <= floor) & torch.isfinite(rise)).flatten().tolist():
        estimate.status[k], estimate.message[k] = "unresolved", "rise below rounding of the loss: precision: float64"
    return estimate


@metric(invariant="permutation", source="Keskar et al. 2017, eq. 3 to 5, A = I", default=True, eps=[1e-3, 5e-4])
def keskar_sharpness(
    at: Point, *, eps: Positive = 1e-3, solver: Literal["paper", "converged"] = "paper", max_steps: Count = 1000
) -> Estimate:
    """Largest rise of the loss in a box, 100 (max_{z in C} L(theta + z) - L(theta)) / (1 + L(theta)).

    C = {z: |z_j| <= eps (|theta_j| + 1)}, searched by L-BFGS-B from z = 0.

    Args:
        at: K minima.
        eps: size of the box.
        solver: `paper` stops after 10 iterations, as the paper does; `converged` goes on to a stationary point.
        max_steps: iterations at most for `converged`.
    Returns: (K,), in per cent; no sampling error. A local search: a lower bound of the maximum.
    """
    limit = 10 if solver == "paper" else max_steps
    with _one_thread_if_small(at):
        found = [_climb_in_box(at, k, eps, limit, solver == "converged") for k in range(len(at.theta))]
    top, steps, residual = (torch.tensor(column, dtype=torch.float64) for column in zip(*found, strict=True))
    loss = at.loss().cpu()
    rise = (top - loss).clamp_min(0)
    estimate = exact(100 * rise / (1 + loss), len(at.train.y))
    estimate.iterations, estimate.residual = int(steps.max()), residual
    if solver == "converged":
        why = f"projected gradient above 1e-3 of the gradient after {limit} iterations: raise max_steps ({max_steps})"
        estimate.not_converged(residual > 1e-3, why)
    return _resolved(at, estimate, rise.to(at.theta.device))


@contextmanager
def _one_thread_if_small(at: Point) -> Iterator[None]:
    """One thread for small nets: between two gradients the others fall asleep, and waking them takes longer."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if at.theta.shape[1] * len(at.train.y) < 2**26 else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _climb_in_box(at: Point, k: int, eps: float, limit: int, converge: bool) -> tuple[float, int, float]:
    """Largest loss found in the box around minimum k, iterations, and the projected gradient over the gradient."""
    from scipy.optimize import fmin_l_bfgs_b  # `minimize` converts the bounds twice, in Python

    alone, theta = at.train.alone(k), at.theta[k : k + 1]

    def minus_loss(z: np.ndarray[Any, Any]) -> tuple[float, np.ndarray[Any, Any]]:
        there = (theta.double() + torch.from_numpy(z).to(theta.device)).to(theta.dtype)
        loss, gradient = alone.loss_and_gradient(there)
        return -float(loss), -gradient[0].double().cpu().numpy()

    width = (eps * (theta[0].double().abs() + 1)).cpu().numpy()
    exact = {"factr": 1.0, "pgtol": 0.0} if converge else {}
    bounds = list(zip((-width).tolist(), width.tolist(), strict=True))  # scipy loops over them, faster so
    z, lowest, info = fmin_l_bfgs_b(
        minus_loss, np.zeros_like(width), bounds=bounds, maxiter=limit, maxfun=20 * limit, **exact
    )
    slope = info["grad"]
    free = np.where(slope > 0, z > -width, z < width)  # not held by the wall that it pushes against
    residual = (np.abs(slope) * width)[free].sum() / max((np.abs(slope) * width).sum(), 1e-300)
    return -float(lowest), int(info["nit"]), float(residual)


@metric(invariant="permutation", source="Foret et al. 2021, eq. 1", default=True, solver=["ascent", "converged"])
def sam_sharpness(
    at: Point,
    *,
    rho: Positive = 0.05,
    solver: Literal["ascent", "converged"] = "converged",
    tolerance: Positive = 1e-3,
    max_steps: Count = 200,
    seed: Natural = 0,
) -> Estimate:
    """Largest rise of the loss in a ball, max_{|d| <= rho} L(theta + d) - L(theta).

    Args:
        at: K minima.
        rho: radius of the ball.
        solver: `ascent` takes the one step rho G / |G| of the SAM optimizer; `converged` goes on from the best of that
            step and the top eigenvector of the Hessian, both signs.
        tolerance: of the gradient along the sphere, relative to the gradient; the value's error is about its square
            over the relative gap between the largest eigenvalues.
        max_steps: gradients at most for `converged`.
        seed: of the eigenvector's Lanczos start.
    Returns: (K,), in nats; no sampling error.
    """
    g = at.gradient()
    length = torch.linalg.vector_norm(g, dim=1, keepdim=True)
    d = rho * g / length.clamp_min(torch.finfo(g.dtype).tiny)
    if solver == "ascent":
        rise = at.train.loss(at.theta + d) - at.loss()
        estimate = exact(rise, len(at.train.y)).undefined(
            length[:, 0] == 0, "the gradient is 0: no direction of ascent"
        )
        return _resolved(at, estimate, rise)
    rise, residual, done, steps = climb(at, torch.full_like(length[:, 0], rho).double(), tolerance, max_steps, seed)
    estimate = exact(rise, len(at.train.y))
    estimate.iterations, estimate.residual = steps, residual
    why = f"gradient along the sphere above tolerance={tolerance:g} after {steps} steps: raise max_steps ({max_steps})"
    return _resolved(at, estimate.not_converged(~done, why), rise)


@metric(invariant="permutation", source="Foret et al. 2021; Andriushchenko et al. 2023, eq. 2", default=True)
def average_sharpness(
    at: Point, *, sigma: Positive = 0.01, draws: Annotated[int, Ge(8)] = 32, seed: Natural = 0
) -> Estimate:
    """Mean rise of the loss under Gaussian noise, E_{d ~ N(0, sigma^2 I)} L(theta + d) - L(theta).

    Args:
        at: K minima.
        sigma: standard deviation of the noise on each parameter.
        draws: antithetic pairs +d, -d, common to all minima: the odd part of the loss cancels.
        seed: of the noise.
    Returns: (K,), in nats; standard error over pairs.
    """
    rng = torch.Generator().manual_seed(seed)
    pairs = []
    for _ in range(draws):
        d = sigma * torch.randn(at.theta.shape[1], generator=rng, dtype=torch.float64)
        d = d.to(at.theta)
        pairs.append((at.train.loss(at.theta + d) + at.train.loss(at.theta - d)) / 2 - at.loss())
    estimate = over_draws(torch.stack(pairs, 1), draws)
    return _resolved(at, estimate, estimate.value)
