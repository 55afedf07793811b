"""How far the minima of single samples lie apart, in the metric of the average loss (METRICS section 4)."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Gt, Lt
from torch import Tensor

from landscape_cli.curvature.lanczos import Krylov, eigenpairs_above
from landscape_cli.curvature.sample_gradients import sample_gradients
from landscape_cli.metrics.point import DENSE, Estimate, Point
from landscape_cli.network import memory
from landscape_cli.registry import Count, Natural, Tolerance, metric


@metric(
    invariant="permutation,global",
    source="Takeuchi 1976; Thomas et al. 2020; ours, docs/essay.md",
    needs="residuals",
    direction="none",
    cost="p Hessian products up to 2000 parameters, else 100 to 400; every sample gradient",
    version=2,
)
def minima_scatter(
    at: Point,
    *,
    cutoff: Annotated[float, Gt(0), Lt(1)] | None = None,
    tolerance: Tolerance = 1e-3,
    max_steps: Count = 2000,
    seed: Natural = 0,
) -> Estimate:
    """Spread of the single-sample minima in the metric of the average loss, tr(H^+ Cov(g_i)).

    To second order the minimum of l_i lies at -H^+ g_i. At minibatch size m it is (n - m) / (m (n - 1)) times this.

    Args:
        at: K minima.
        cutoff: eigenvalues of H below this share of the largest are dropped, negative ones too; 1e-3 up to 2000
            parameters, and 2e-2 beyond: above 1e-3 lie several hundred, which take 1000 products and more.
        tolerance: of each eigenpair's residual, relative to its eigenvalue; the dense Hessian up to 2000 parameters.
        max_steps: Hessian-vector products at most.
        seed: of the Lanczos start, common to all minima.
    Returns: (K,), in nats; exact up to the solver.
    """
    cutoff = cutoff or (1e-3 if at.theta.shape[1] <= DENSE else 2e-2)
    pairs = _eigenpairs(at, cutoff, tolerance, max_steps, seed)
    value = torch.tensor([_spread(at, k, own[0], own[2]) for k, own in enumerate(pairs)], dtype=torch.float64)
    residual = torch.stack([(r / v).amax() if len(v) else r.new_zeros(()) for v, r, _ in pairs]).cpu()
    estimate = Estimate(value, torch.zeros_like(value), at.train.n, residual=residual)
    estimate.message = [f"{len(v)} eigenvalues above {cutoff:g} of the largest" for v, _, _ in pairs]
    none = torch.tensor([not len(v) for v, _, _ in pairs])
    why = f"relative residual above tolerance={tolerance:g} after max_steps={max_steps} products: raise max_steps"
    return estimate.not_converged(residual > tolerance, why).undefined(none, "no positive curvature found")


def _eigenpairs(
    at: Point, cutoff: float, tolerance: float, max_steps: int, seed: int
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Eigenvalues that count (k,), their residuals (k,) and vectors (k, p), of each minimum."""
    K, p = at.theta.shape
    if p <= DENSE:
        values, V = torch.linalg.eigh(at.hessian())
        kept = (values >= cutoff * values[:, -1:]) & (values > 0)
        return [(v[on], torch.zeros_like(v[on]), W.mT[on]) for v, W, on in zip(values, V, kept, strict=True)]
    rng, found = torch.Generator().manual_seed(seed), []
    start = torch.randn(p, generator=rng, dtype=at.theta.dtype).to(at.theta.device)
    for rows in torch.arange(K).split(memory.pieces(8 * p * min(p, max_steps), memory.WHOLE)):
        H = at.train.rows(rows).hessian_product(at.theta[rows])
        space = Krylov(H, start.expand(len(rows), p).contiguous(), rng)
        found += eigenpairs_above(space, cutoff, tolerance=tolerance, max_steps=max_steps)
    return found


def _spread(at: Point, k: int, values: Tensor, V: Tensor) -> float:
    """sum_j Var_i <g_i, v_j> / lambda_j of minimum k."""
    one, theta = at.train.alone(k), at.theta[k : k + 1]
    if not len(values):
        return float("nan")
    parts, V = [], V.double()
    size = memory.pieces(8 * theta.shape[1], memory.GRADIENTS)
    for x, y in zip(one.x.split(size), one.y.split(size), strict=True):
        for g in sample_gradients(one, theta, x, lambda z, y=y: [one.residuals(z, y)]):  # type: ignore[misc]
            parts.append(g[0].double() @ V.mT)
    return float((torch.cat(parts).var(0, unbiased=False) / values).sum())
