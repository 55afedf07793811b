"""Curvature of the average training loss: eigenvalues, trace and norm of its Hessian (METRICS section 5)."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from landscape_cli.curvature import lanczos
from landscape_cli.curvature.lanczos import Ritz
from landscape_cli.metrics.point import DENSE, Estimate, Point, exact, nothing
from landscape_cli.registry import FEW, Count, Natural, Tolerance, metric

Probes = Annotated[int, Ge(12), FEW]
LANCZOS = "Lanczos; Golub & Van Loan 2013, section 10.3"


@metric(invariant="permutation", source=LANCZOS, default=True, direction="sharp", cost="10 to 40 Hessian products")
def hessian_top(
    at: Point,
    *,
    k: Count = 1,
    blocks: Literal["none", "layer"] = "none",
    tolerance: Tolerance = 1e-3,
    max_steps: Count = 200,
    vectors: bool = False,
    seed: Natural = 0,
) -> Estimate | dict[str, Estimate]:
    """Largest eigenvalues of the Hessian of the training loss, lambda_max first.

    Args:
        at: K minima.
        k: how many eigenvalues, repeated ones as often as they are; more than one gives a row each (rank=1, 2, ...).
        blocks: none, the whole Hessian; layer, the block of each parameter tensor, a row each (block=NAME), k = 1.
        tolerance: of the residual |H v - lambda v|, relative to the largest eigenvalue; the value's own error is about
            the square of it over the relative gap.
        max_steps: Hessian-vector products at most.
        vectors: whether the eigenvectors are kept in a file beside the value.
        seed: of the start vector, common to all minima.
    Returns: (K,), in nats per squared length; undefined where it is not positive.
    """
    if blocks == "layer":
        if k > 1:
            return nothing(at, f"blocks: layer gives the top eigenvalue of each block: k=1, not {k}")
        found = {n: _top_of_block(at, n, tolerance, max_steps, seed) for n in at.train.columns}
        return {f"block={n}": _top(at, ritz, 0, tolerance, max_steps) for n, ritz in found.items()}
    ritz = at.ritz(k, tolerance, max_steps, seed)
    rows = {f"rank={r + 1}": _top(at, ritz, r, tolerance, max_steps) for r in range(ritz.values.shape[1])}
    if vectors:
        rows["rank=1"].vectors = ritz.vectors
    return rows["rank=1"] if k == 1 else rows


def _top(at: Point, ritz: Ritz, rank: int, tolerance: float, max_steps: int) -> Estimate:
    largest = ritz.values.abs().amax(1)
    estimate = _eigenvalue(at, ritz, rank, largest, tolerance, max_steps)
    return estimate.undefined(estimate.value <= 0, "no positive curvature found")


def _eigenvalue(at: Point, ritz: Ritz, rank: int, scale: Tensor, tolerance: float, max_steps: int) -> Estimate:
    """One of the Ritz values, with its residual relative to `scale`."""
    residual = ritz.residuals[:, rank] / scale.clamp_min(torch.finfo(torch.float64).tiny)
    value = ritz.values[:, rank].clone()
    estimate = Estimate(value, torch.zeros_like(value), at.train.n, ritz.steps, residual)
    why = f"relative residual above tolerance={tolerance:g} after {ritz.steps} steps: raise max_steps ({max_steps})"
    return estimate.not_converged(residual > tolerance, why)


def _top_of_block(at: Point, name: str, tolerance: float, max_steps: int, seed: int) -> Ritz:
    rng, (K, p), own = torch.Generator().manual_seed(seed), at.theta.shape, at.train.columns[name]
    start = torch.randn(p, generator=rng, dtype=at.theta.dtype).to(at.theta.device)[own].expand(K, -1).contiguous()
    H = at.train.hessian_product(at.theta, only=name)
    return lanczos.top_eigenpairs(H, start, tolerance=tolerance, max_steps=max_steps, rng=rng)


@metric(invariant="permutation", source=LANCZOS, direction="none", cost="50 to 200 Hessian products")
def hessian_bottom(at: Point, *, tolerance: Tolerance = 1e-2, max_steps: Count = 400, seed: Natural = 0) -> Estimate:
    """Smallest eigenvalue of the Hessian of the training loss, lambda_min; below 0 at a saddle.

    From the dense Hessian up to 2000 parameters, beyond by Lanczos.

    Args:
        at: K minima.
        tolerance: of the residual |H v - lambda v|, relative to |lambda_min|, or to a thousandth of the largest
            |eigenvalue| where that is more.
        max_steps: Hessian-vector products at most.
        seed: of the start vector, common to all minima.
    Returns: (K,), in nats per squared length.
    """
    return _ends(at, tolerance, max_steps, seed)[0]


def _ends(at: Point, tolerance: float, max_steps: int, seed: int) -> tuple[Estimate, Tensor]:
    """The smallest eigenvalue, and the largest (K,)."""
    if at.theta.shape[1] <= DENSE:
        return exact(at.spectrum()[:, 0], at.train.n), at.spectrum()[:, -1]
    low, top = at.bottom(tolerance, max_steps, seed), at.ritz(1, 1e-3, 200, seed).values[:, 0]
    scale = torch.maximum(low.values[:, 0].abs(), lanczos.FLOOR * top.abs())
    return _eigenvalue(at, low, 0, scale, tolerance, max_steps), top


@metric(
    invariant="permutation,global",
    source="Li et al. 2018, section 6",
    direction="none",
    cost="50 to 200 Hessian products, those of hessian_bottom",
)
def convexity_ratio(at: Point, *, tolerance: Tolerance = 1e-2, max_steps: Count = 400, seed: Natural = 0) -> Estimate:
    """How far from convex the loss is, |lambda_min / lambda_max| of the Hessian of the training loss.

    Args:
        at: K minima.
        tolerance: of the residual of lambda_min, as in hessian_bottom.
        max_steps: Hessian-vector products at most.
        seed: of the start vector, common to all minima.
    Returns: (K,), in units of 1; undefined where lambda_max is not positive.
    """
    estimate, top = _ends(at, tolerance, max_steps, seed)
    estimate.value = (estimate.value / top.where(top > 0, 1)).abs()
    return estimate.undefined(top <= 0, "no positive curvature found")


@metric(
    invariant="permutation",
    source="ours, docs/metrics.md; Hutch++, Meyer et al. 2021, for the rest H - F",
    default=True,
    needs="residuals,root",
    direction="sharp",
    cost="C - 1 backward passes; and `probes` Hessian products for networks that are not piecewise linear",
    version=2,
)
def hessian_trace(
    at: Point, *, blocks: Literal["none", "layer"] = "none", probes: Probes = 64, seed: Natural = 0
) -> Estimate | dict[str, Estimate]:
    """Trace of the Hessian of the training loss: tr F, which is all of it for ReLU networks, and tr (H - F) else.

    In a network whose nonlinearities are piecewise linear each logit is affine in each single parameter, so that H and
    the Fisher information F have the same diagonal. F comes exactly from per-sample gradients; H - F is small near a
    minimum and gets Hutch++ where the network does not qualify.

    Args:
        at: K minima.
        blocks: none, the whole Hessian; layer, the block of each parameter tensor, a row each (block=NAME).
        probes: Hessian products for H - F, with vectors common to all minima; unused where the trace is exact.
        seed: of the probes.
    Returns: (K,), in nats per squared length; standard error 0 for piecewise linear networks, else over probes.
    """
    fisher, rest = at.fisher_traces(), at.rest_trace(probes, seed)
    every = {"": slice(None)} if blocks == "none" else {f"block={n}": own for n, own in at.train.columns.items()}
    rows = {}
    for i, (name, own) in enumerate(every.items()):
        estimate = exact(fisher.sum(1) if blocks == "none" else fisher[:, i], at.train.n)
        if rest is not None:
            inside, drawn = rest[0][:, own].sum(1), rest[1][:, :, own].sum(2)  # (K,), (K, D)
            estimate.value = estimate.value + inside + drawn.mean(1)
            estimate.standard_error = drawn.std(1) / drawn.shape[1] ** 0.5
            estimate.samples = probes
        rows[name] = estimate
    return rows[""] if blocks == "none" else rows


@metric(
    invariant="permutation",
    source="Hutch++ of H^2, Meyer et al. 2021",
    direction="sharp",
    cost="`probes` Hessian products; p of them, exactly, up to 2000 parameters",
)
def hessian_frobenius(at: Point, *, probes: Probes = 60, seed: Natural = 0) -> Estimate:
    """Frobenius norm of the Hessian of the training loss, |H|_F, the root of the sum of squared eigenvalues.

    Exact up to 2000 parameters. Beyond, |H|_F^2 = |H Q|_F^2 + E |H (I - Q Q^T) v|^2, Q a basis of what H does to a
    third of the probes: the few large eigenvalues lie in it, and only the bulk is left to chance.

    Args:
        at: K minima.
        probes: Hessian products, with vectors common to all minima.
        seed: of the probes.
    Returns: (K,), in nats per squared length; standard error over the probes of the bulk.
    """
    if at.theta.shape[1] <= DENSE:
        return exact(torch.linalg.matrix_norm(at.hessian()), at.train.n)
    square, drawn = at.hessian_square(probes, seed)  # (K,), (K, D)
    value = (square + drawn.mean(1)).sqrt()
    error = drawn.std(1) / drawn.shape[1] ** 0.5 / (2 * value).clamp_min(torch.finfo(torch.float64).tiny)
    return Estimate(value, error, probes)


@metric(
    invariant="permutation",
    source="Schraudolph 2002; F = GGN",
    needs="root",
    direction="sharp",
    cost="10 to 40 Fisher products",
)
def ggn_top(at: Point, *, tolerance: Tolerance = 1e-3, max_steps: Count = 200, seed: Natural = 0) -> Estimate:
    """Largest eigenvalue of the generalized Gauss-Newton matrix, which is the true Fisher information F.

    Args:
        at: K minima.
        tolerance: of the residual |F v - lambda v|, relative to the eigenvalue.
        max_steps: products at most.
        seed: of the start vector, common to all minima.
    Returns: (K,), in nats per squared length; undefined where it is not positive.
    """
    rng = torch.Generator().manual_seed(seed)
    start = torch.randn(at.theta.shape[1], generator=rng, dtype=at.theta.dtype).to(at.theta.device)
    start, F = start.expand_as(at.theta).contiguous(), at.train.fisher_product(at.theta)
    ritz = lanczos.top_eigenpairs(F, start, tolerance=tolerance, max_steps=max_steps, rng=rng)
    return _top(at, ritz, 0, tolerance, max_steps)


@metric(
    invariant="permutation",
    source="Schraudolph 2002; F = GGN",
    needs="root",
    direction="sharp",
    cost="C - 1 backward passes, shared with hessian_trace",
)
def ggn_trace(at: Point) -> Estimate:
    """Trace of the generalized Gauss-Newton matrix, tr F with the true Fisher information.

    Args:
        at: K minima.
    Returns: (K,), in nats per squared length; exact.
    """
    return exact(at.fisher_traces().sum(1), at.train.n)
