"""The whole spectrum of the Hessian of the training loss as a density (METRICS section 5)."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from landscape_cli.metrics.point import DENSE, Estimate, Point, exact
from landscape_cli.registry import FEW, Natural, Positive, metric

Several = Annotated[int, Ge(2), FEW]


@metric(
    invariant="permutation",
    source="Golub & Meurant 2010; Ghorbani et al. 2019, algorithm 1",
    direction="none",
    cost="probes * steps Hessian products; p of them, exactly, up to 2000 parameters",
)
def spectral_density(
    at: Point,
    *,
    probes: Several = 16,
    steps: Annotated[int, Ge(2)] = 40,
    points: Annotated[int, Ge(100)] = 500,
    width: Positive = 0.01,
    seed: Natural = 0,
) -> dict[str, Estimate]:
    """Density of the Hessian's eigenvalues, (1/p) sum_j N(lambda_j, s^2), and its mean, variance and negative share.

    Stochastic Lanczos quadrature: each probe gives Gauss nodes and weights of the spectrum as that vector sees it. Up
    to 2000 parameters the eigenvalues themselves are taken.

    Args:
        at: K minima.
        probes: random vectors, common to all minima; below 16 standard errors are too small, for what a vector sees of
            the few large eigenvalues is skewed.
        steps: Lanczos steps for each of them; all moments up to twice that are those of the probe.
        points: of the table, eigenvalue, density and its standard error, kept as tables/spectral_density.csv.
        width: s, as a share of the range of the spectrum: what the table resolves.
        seed: of the probes.
    Returns: (K,), three rows: moment=mean, tr H / p, in nats per squared length; moment=variance, its square;
        negative=mass, the share of eigenvalues below -width of the largest |eigenvalue|, in units of 1: nearer to 0 few
        steps do not tell signs. Standard errors over probes.
    """
    if at.theta.shape[1] <= DENSE:
        nodes = at.spectrum()[:, None]  # (K, 1, p): one probe that sees all
        weights = torch.full_like(nodes, 1 / nodes.shape[2])
    else:
        nodes, weights = at.quadrature(probes, steps, seed)
    first, second = ((weights * nodes**power).sum(2) for power in (1, 2))  # (K, D), of each probe
    scale = nodes.abs().amax((1, 2), keepdim=True)
    mean, negative = _over_probes(first), _over_probes((weights * (nodes < -width * scale)).sum(2))
    mu = mean.value[:, None]
    variance = _over_probes(second - 2 * mu * first + mu**2)  # to first order in the error of the mean
    variance.value = variance.value + mean.standard_error**2  # E mean^2 is too large by that
    mean.table = _table(nodes, weights, points, width)
    for estimate in (mean, variance, negative):
        estimate.samples, estimate.iterations = nodes.shape[1], nodes.shape[2]
    return {"moment=mean": mean, "moment=variance": variance, "negative=mass": negative}


def _over_probes(values: Tensor) -> Estimate:
    """Mean over probes (K, D) with its standard error; exact if there is one."""
    estimate, D = exact(values.mean(1)), values.shape[1]
    if D > 1:
        estimate.standard_error = values.std(1) / D**0.5
    return estimate


def _table(nodes: Tensor, weights: Tensor, points: int, width: float) -> dict[str, Tensor]:
    """The density on a grid over the spectrum, eigenvalue, density and standard_error (K, points)."""
    low, high = nodes.amin((1, 2)), nodes.amax((1, 2))
    s = width * torch.where(high > low, high - low, 1)
    step = torch.linspace(0, 1, points, dtype=torch.float64, device=nodes.device)
    x = (low - 5 * s)[:, None] + (high - low + 10 * s)[:, None] * step  # (K, points)
    density = torch.stack([_smooth(n, w, grid, float(h)) for n, w, grid, h in zip(nodes, weights, x, s, strict=True)])
    D = density.shape[1]
    error = density.std(1) / D**0.5 if D > 1 else torch.zeros_like(x)
    return {"eigenvalue": x, "density": density.mean(1), "standard_error": error}


def _smooth(nodes: Tensor, weights: Tensor, x: Tensor, s: float) -> Tensor:
    """sum_j weight_j N(x; node_j, s^2) for each probe, (D, m) -> (D, points)."""
    bells = torch.exp(-(((x[:, None, None] - nodes) / s) ** 2) / 2) / (s * (2 * torch.pi) ** 0.5)
    density: Tensor = (bells * weights).sum(2).mT
    return density
