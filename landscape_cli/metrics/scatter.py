"""How far the minima of single samples lie apart, in the metric of the average loss (METRICS section 4)."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Gt, Lt
from torch import Tensor

from landscape_cli.linalg import top_eigenpairs
from landscape_cli.objective import residuals
from landscape_cli.point import DENSE, Estimate, Point
from landscape_cli.registry import Count, Natural, Positive, metric
from landscape_cli.samples import sample_gradients

MEMORY = 2**24  # numbers of sample gradients at once


@metric(
    invariant="permutation",
    source="Takeuchi 1976; Thomas et al. 2020; ours, docs/essay.md",
    direction="none",
    cost="p Hessian products up to 2000 parameters, else up to 2000; every sample gradient",
)
def minima_scatter(
    at: Point,
    *,
    cutoff: Annotated[float, Gt(0), Lt(1)] = 1e-3,
    k: Count = 600,
    tolerance: Positive = 1e-3,
    max_steps: Count = 2000,
    seed: Natural = 0,
) -> Estimate:
    """Spread of the single-sample minima in the metric of the average loss, tr(H^+ Cov(g_i)).

    To second order the minimum of l_i lies at -H^+ g_i. At minibatch size m it is (n - m) / (m (n - 1)) times this.

    Args:
        at: K minima.
        cutoff: eigenvalues of H below this share of the largest are dropped, negative ones too.
        k: eigenvalues at most, by Lanczos, for nets of more than 2000 parameters.
        tolerance: of the eigenpairs' residual, relative to the smallest eigenvalue that counts.
        max_steps: Hessian-vector products at most.
        seed: of the Lanczos start.
    Returns: (K,), in nats; exact up to the solver; not_converged where more than k eigenvalues count.
    """
    K, p = at.theta.shape
    hessians = at.hessian() if p <= DENSE else [None] * K
    found = [_of_one(at, i, H, cutoff, k, tolerance, max_steps, seed) for i, H in enumerate(hessians)]
    numbers = torch.tensor(found, dtype=torch.float64, device=at.theta.device)
    value, residual, count, short = numbers.unbind(1)
    estimate = Estimate(value, torch.zeros_like(value), at.train.n, residual=residual)
    estimate.message = [f"{own:.0f} eigenvalues above {cutoff:g} of the largest" for own in count.tolist()]
    why = f"more than k={k} eigenvalues count, or a residual is above tolerance={tolerance:g}: raise k and max_steps"
    bad = (count > 0) & ((short > 0) | (residual > tolerance))
    return estimate.not_converged(bad, why).undefined(count == 0, "no positive curvature found")


def _of_one(
    at: Point, i: int, H: Tensor | None, cutoff: float, k: int, tolerance: float, max_steps: int, seed: int
) -> tuple[float, float, int, bool]:
    """Of minimum i: the spread, the largest residual, how many eigenvalues count, whether there may be more."""
    one, theta = at.train.alone(i), at.theta[i : i + 1]
    p, short = theta.shape[1], False
    if H is not None:
        value, V = torch.linalg.eigh(H)
        value, V, residual = value.flip(0), V.flip(1), torch.zeros_like(value)
    else:
        rng = torch.Generator().manual_seed(seed)
        start = torch.randn(1, p, generator=rng, dtype=theta.dtype).to(theta.device)
        product = one.hessian_product(theta)
        ritz = top_eigenpairs(product, start, k, tolerance=tolerance * cutoff, max_steps=max_steps, rng=rng)
        value, V, residual = ritz.values[0], ritz.vectors[0].mT.double(), ritz.residuals[0]
        short = len(value) < p and bool(value[-1] >= cutoff * value[0])
    kept = (value >= cutoff * value[0]) & (value > 0)
    if not bool(kept.any()):
        return float("nan"), 0.0, 0, False
    total, along = torch.zeros((), dtype=torch.float64, device=theta.device), value.new_zeros(int(kept.sum()))
    size = max(1, MEMORY // p)
    for x, y in zip(one.x.split(size), one.y.split(size), strict=True):
        for g in sample_gradients(one, theta, x, lambda z, y=y: [residuals(z, y.expand(len(z), -1))]):  # type: ignore[misc]
            part = g[0].double() @ V[:, kept]  # <g_i, v_j>
            total += (part.square() / value[kept]).sum()
            along += part.sum(0)
    n = one.n
    spread = total / n - ((along / n).square() / value[kept]).sum()
    return float(spread), float((residual[kept] / value[kept]).max()), int(kept.sum()), short
