"""Curvature of the average training loss (METRICS section 5)."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from landscape_cli.point import Estimate, Point, exact, over_draws
from landscape_cli.registry import Count, Natural, Positive, metric


@metric(invariant="permutation", source="Lanczos; Golub & Van Loan 2013, section 10.3", default=True)
def hessian_top(
    at: Point, *, k: Count = 1, tolerance: Positive = 1e-3, max_steps: Count = 200, seed: Natural = 0
) -> Estimate | dict[str, Estimate]:
    """Largest eigenvalues of the Hessian of the training loss, lambda_max first.

    Args:
        at: K minima.
        k: how many eigenvalues; more than one gives a row each (rank=1, 2, ...).
        tolerance: of the residual |H v - lambda v|, relative to the largest eigenvalue; the value's own error is about
            the square of it over the relative gap.
        max_steps: Hessian-vector products at most.
        seed: of the start vector, common to all minima.
    Returns: (K,), in nats per squared length; undefined where it is not positive.
    """
    ritz = at.ritz(k, tolerance, max_steps, seed)
    scale = ritz.values.abs().amax(1).clamp_min(torch.finfo(torch.float64).tiny)
    rows = {}
    for rank in range(ritz.values.shape[1]):
        residual, value = ritz.residuals[:, rank] / scale, ritz.values[:, rank].clone()
        estimate = Estimate(value, torch.zeros_like(value), len(at.train.y), ritz.steps, residual)
        why = f"relative residual above tolerance={tolerance:g} after {ritz.steps} steps: raise max_steps ({max_steps})"
        estimate = estimate.not_converged(residual > tolerance, why)
        rows[f"rank={rank + 1}"] = estimate.undefined(value <= 0, "no positive curvature found")
    return rows["rank=1"] if k == 1 else rows


@metric(invariant="permutation", source="ours, docs/metrics.md; Hutchinson 1990 for the rest H - F", default=True)
def hessian_trace(at: Point, *, probes: Annotated[int, Ge(8)] = 64, seed: Natural = 0) -> Estimate:
    """Trace of the Hessian of the training loss: tr F, which is all of it for ReLU networks, and v^T (H - F) v else.

    In a network whose nonlinearities are piecewise linear each logit is affine in each single parameter, so that H and
    the Fisher information F have the same diagonal. F comes exactly from per-sample gradients; H - F is small near a
    minimum and gets Rademacher probes where the network does not qualify.

    Args:
        at: K minima.
        probes: vectors v for H - F, common to all minima; unused where the trace is exact.
        seed: of the probes.
    Returns: (K,), in nats per squared length; standard error 0 for piecewise linear networks, else over probes.
    """
    trace = at.fisher_traces().sum(1)
    rng = torch.Generator().manual_seed(seed)
    if at.piecewise_linear and bool((_curvature_in_one_tensor(at, rng) <= 1e-3 * trace.abs()).all()):
        return exact(trace, len(at.train.y))
    product = at.train.hessian_product(at.theta, residual_part=True)
    quadratic = []
    for _ in range(probes):
        v = torch.randint(0, 2, at.theta.shape[1:], generator=rng).to(at.theta).mul_(2).sub_(1).expand_as(at.theta)
        quadratic.append((v * product(v)).double().sum(1))
    rest = over_draws(torch.stack(quadratic, 1), probes)
    rest.value = rest.value + trace
    return rest


def _curvature_in_one_tensor(at: Point, rng: torch.Generator) -> Tensor:
    """max |v^T (H - F) v| / |v|^2 over a few random v, each in one parameter tensor: 0 if logits are affine in it.

    On the first samples only: a layer that is not what it seems to be shows there too.
    """
    few = at.train.subset(torch.arange(min(64, len(at.train.y)), device=at.theta.device))
    product = few.hessian_product(at.theta, residual_part=True)
    sizes = [t[0].numel() for t in at.train.like.values()]
    ends = torch.tensor(sizes).cumsum(0).tolist()
    found = torch.zeros(len(at.theta), dtype=torch.float64)
    for t in torch.randperm(len(sizes), generator=rng)[:3].tolist():
        v = torch.zeros(at.theta.shape[1])
        v[ends[t] - sizes[t] : ends[t]] = torch.randn(sizes[t], generator=rng)
        v = (v / v.norm()).to(at.theta).expand_as(at.theta)
        found = torch.maximum(found, (v * product(v)).double().sum(1).abs().cpu())
    return found.to(at.theta.device)
