"""Local learning coefficients in closed form, by quadrature of the sampled density, and when not to trust them."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from helpers import symmetric
from surface_cases import bowl, coverage, quadratic, quadratics, scores, shelf, surface
from torch import Tensor

from landscape_cli.metrics.learning import langevin
from landscape_cli.metrics.point import Point
from landscape_cli.registry import REGISTRY, claims

f64 = torch.float64
NAME = "local_learning_coefficient"
n = 100
N_BETA = n / math.log(n)
SPECTRUM = torch.tensor([0.02, 0.3, 1, 2], dtype=f64)


def gaussian(h: Tensor, gamma: float, n_beta: float = N_BETA) -> float:
    """n beta (E[L] - L*) of a quadratic: a Gaussian of precision n beta h + gamma in each direction."""
    return float((n_beta * h / (2 * (n_beta * h + gamma))).sum())


def at_bowl(slope: float = 0.0, spectrum: Tensor = SPECTRUM) -> Point:
    b = slope * torch.tensor([1.0, -1, 1, 1], dtype=f64)
    return bowl(symmetric(spectrum, 0), b, torch.tensor([1.0, 2, -1, 0.5], dtype=f64), n=n)


def near(found: float, due: float, error: float, part: float) -> None:
    assert abs(found - due) < 3 * error, (found, due, error)
    assert error < part * due


# ---- quadratics


@pytest.mark.parametrize("gamma", [None, 3.0, 30.0])
def test_quadratic_at_the_metric_s_own_step(gamma: float | None) -> None:
    found = shelf(NAME, at_bowl(), gamma=gamma, chains=12, draws=300, burn_in=100)
    near(float(found.value), gaussian(SPECTRUM, N_BETA if gamma is None else gamma), float(found.standard_error), 0.05)
    assert found.status == ["ok"]


@pytest.mark.parametrize("stiffness", [0.1, 0.5, 1.5])
def test_a_quadratic_has_no_error_of_the_step(stiffness: float) -> None:
    """Noise averaged over two steps leaves the variance 1/l; plain steps leave 1/(l (1 - stiffness/2))."""
    gamma, h = 10.0, torch.ones(4, dtype=f64)
    step = 2 * stiffness / (N_BETA + gamma)
    found = [float(langevin_value(square, 4, N_BETA, gamma, step, 1000, chains=16, seed=s)[0]) for s in range(3)]
    due, each = gaussian(h, gamma), torch.tensor(found, dtype=f64)
    assert float((each - due).abs().max()) < 0.04 * due
    if stiffness > 1:
        assert gaussian(h, gamma) / (1 - stiffness / 2) > 1.5 * due  # teeth


def square(w: Tensor, _: int) -> tuple[Tensor, Tensor]:
    return w.square().sum(-1) / 2, w


def test_without_a_prior_it_is_half_the_parameters() -> None:
    h = torch.tensor([0.5, 1, 1, 2], dtype=f64)
    found = shelf(NAME, at_bowl(spectrum=h), gamma=0.0, chains=12, draws=400, burn_in=60)
    near(float(found.value), 2.0, float(found.standard_error), 0.05)
    flat = torch.cat([h[:2], torch.zeros(2, dtype=f64)])  # two directions that the loss does not see
    assert gaussian(flat, 1e-9) == pytest.approx(1.0, rel=1e-6)
    seen = shelf(NAME, at_bowl(spectrum=flat), gamma=0.5, chains=12, draws=400, burn_in=60)
    near(float(seen.value), gaussian(flat, 0.5), float(seen.standard_error), 0.06)


def langevin_value(
    slopes: Callable[[Tensor, int], tuple[Tensor, Tensor]],
    p: int,
    n_beta: float,
    gamma: float,
    step: float | None,
    draws: int,
    *,
    chains: int = 8,
    seed: int = 0,
    burn_in: int = 200,
) -> tuple[Tensor, float]:
    """n beta times the mean loss, and its standard error over chains."""
    noise = [torch.Generator().manual_seed(1000 * seed + c) for c in range(chains)]
    start = torch.zeros(1, p, dtype=f64)
    seen = langevin(slopes, start, n_beta, gamma, step, burn_in=burn_in, draws=draws, noise=noise)
    assert seen.losses.shape == (1, chains, draws)
    each = n_beta * seen.losses.mean(2)[0]
    return each.mean(), float(each.std()) / chains**0.5


def test_standard_errors_are_honest_over_seeds() -> None:
    """Sixteen chains: Student's t lies within two standard errors in 94 of 100 cases."""
    gamma, inside = 20.0, 0
    due, seeds = gaussian(torch.ones(4, dtype=f64), gamma), 60
    values, errors = [], []
    for seed in range(seeds):
        value, error = langevin_value(square, 4, N_BETA, gamma, None, 60, chains=16, seed=seed, burn_in=40)
        inside += abs(float(value) - due) < 2 * error
        values.append(float(value))
        errors.append(error)
    assert inside >= 0.9 * seeds
    assert 0.8 < float(np.median(errors) / np.std(values)) < 1.25


def test_the_metric_s_standard_error_is_honest() -> None:
    """Eight chains: Student's t in 91 of 100 cases."""
    due = gaussian(SPECTRUM, N_BETA)
    found = [shelf(NAME, at_bowl(), draws=24, burn_in=12, seed=s) for s in range(60)]
    assert coverage(found, due) >= 0.88
    assert sum(f.status == ["ok"] for f in found) >= 54
    assert abs(float(torch.cat([f.value for f in found]).mean()) - due) < 0.05 * due


# ---- normal crossings


def crossing(a: int, b: int) -> Callable[[Tensor, int], tuple[Tensor, Tensor]]:
    """w1^2a w2^2b: rlct min(1/2a, 1/2b), of multiplicity 2 where a = b."""

    def slopes(w: Tensor, _: int) -> tuple[Tensor, Tensor]:
        x, y = w[..., 0], w[..., 1]
        g = [2 * a * x ** (2 * a - 1) * y ** (2 * b), 2 * b * x ** (2 * a) * y ** (2 * b - 1)]
        return x ** (2 * a) * y ** (2 * b), torch.stack(g, -1)

    return slopes


def quadrature(a: int, b: int, n_beta: float, gamma: float) -> float:
    """E[n beta K] under exp(-n beta K - gamma/2 |w|^2): Gauss-Legendre on pieces that shrink towards the axes."""
    nodes, weights = np.polynomial.legendre.leggauss(12)
    edges = np.concatenate([[0], np.logspace(-7, 0, 60)]) * 9 / gamma**0.5
    half, middle = np.diff(edges)[:, None] / 2, (edges[1:] + edges[:-1])[:, None] / 2
    x, w = (half * nodes + middle).ravel(), (half * weights).ravel()
    K = x[:, None] ** (2 * a) * x[None] ** (2 * b)
    density = w[:, None] * w * np.exp(-n_beta * K - gamma / 2 * (x[:, None] ** 2 + x**2))
    return float((density * n_beta * K).sum() / density.sum())


def test_the_quadrature_itself() -> None:
    """Against the Gaussian inner integral of w1^2 w2^2, and the asymptotic lambda - (multiplicity - 1)/log(n beta)."""
    x = np.linspace(0, 12, 200001)
    for n_beta in (10.0, 145.0):
        weight = np.exp(-(x**2) / 2) / (2 * n_beta * x**2 + 1) ** 0.5
        weight[0] /= 2  # trapezoids
        inner = (weight * n_beta * x**2 / (2 * n_beta * x**2 + 1)).sum() / weight.sum()
        assert quadrature(1, 1, n_beta, 1.0) == pytest.approx(inner, rel=1e-4)
    for n_beta in (1e6, 1e9):
        assert quadrature(1, 1, n_beta, 1.0) == pytest.approx(0.5 - 1 / math.log(n_beta), abs=0.02)
        assert quadrature(1, 2, n_beta, 1.0) == pytest.approx(0.25, abs=0.02)
    assert quadrature(2, 2, 1e9, 1.0) == pytest.approx(0.25 - 1 / math.log(1e9), abs=0.02)


@pytest.mark.parametrize(("a", "b"), [(1, 1), (1, 2)])
@pytest.mark.parametrize(("gamma", "step"), [(10.0, None), (10.0, 0.004), (3.0, 0.002)])
def test_normal_crossings_against_the_quadrature(a: int, b: int, gamma: float, step: float | None) -> None:
    value, error = langevin_value(crossing(a, b), 2, 1000 / math.log(1000), gamma, step, 2000, burn_in=300)
    near(float(value), quadrature(a, b, 1000 / math.log(1000), gamma), error, 0.15)


def test_normal_crossings_are_honest_over_seeds() -> None:
    """Steps short enough that what they add to a loss of fourth order is below the standard error."""
    n_beta, gamma, seeds = 1000 / math.log(1000), 10.0, 20
    due = quadrature(1, 1, n_beta, gamma)
    found = [langevin_value(crossing(1, 1), 2, n_beta, gamma, 0.006, 400, seed=s) for s in range(seeds)]
    assert sum(abs(float(v) - due) < 3 * e for v, e in found) >= 0.9 * seeds
    assert sum(abs(float(v) - due) < 2 * e for v, e in found) >= 0.8 * seeds


def test_a_crossing_through_the_metric() -> None:
    at = surface(lambda theta, x: 1 + theta[0] ** 2 * theta[1] ** 2 + 0 * x[:, 0], torch.zeros(2, dtype=f64), x=1000)
    found = shelf(NAME, at, gamma=10.0, draws=500, burn_in=100, step=0.008)
    near(float(found.value), quadrature(1, 1, 1000 / math.log(1000), 10.0), float(found.standard_error), 0.2)


# ---- a real loss


def test_logistic_regression_against_quadrature() -> None:
    rng = torch.Generator().manual_seed(0)
    a = torch.randn(60, 2, generator=rng, dtype=f64) + torch.tensor([-0.7, 0.3], dtype=f64)
    theta = torch.zeros(2, dtype=f64)

    def loss(w: Tensor) -> Tensor:
        return torch.nn.functional.softplus(w @ a.T).mean(-1)

    for _ in range(30):
        H, g = torch.autograd.functional.hessian(loss, theta), torch.autograd.functional.jacobian(loss, theta)
        theta = theta - torch.linalg.solve(H, g)
    n_beta, gamma = 60 / math.log(60), 2.0
    d = torch.linspace(-6, 6, 601, dtype=f64)
    grid = torch.stack(torch.meshgrid(d, d, indexing="ij"), -1)
    rise = n_beta * (loss(theta + grid) - loss(theta))
    weight = torch.exp(-rise - gamma / 2 * grid.square().sum(-1))
    due = float((weight * rise).sum() / weight.sum())
    at = scores(theta, a)
    found = shelf(NAME, at, gamma=gamma, chains=12, draws=400, burn_in=60)
    near(float(found.value), due, float(found.standard_error), 0.05)
    assert found.status == ["ok"]


def test_minibatches_of_equal_samples_change_nothing_and_others_add_noise() -> None:
    common = {"gamma": 10.0, "chains": 6, "draws": 60, "burn_in": 20, "step": 0.01}
    zero = torch.zeros(4, dtype=f64)
    alike = quadratic(torch.diag(SPECTRUM), zero, zero, n=n, c=5.0)
    full, part = (shelf(NAME, alike, minibatch_size=m, **common) for m in (None, 10))
    assert float(part.value) == pytest.approx(float(full.value), rel=1e-9)
    b = 3 * torch.randn(n, 4, generator=torch.Generator().manual_seed(1), dtype=f64)
    at = quadratics(torch.diag(SPECTRUM).expand(n, 4, 4), b - b.mean(0), zero, c=60.0)
    exact, noisy = (shelf(NAME, at, minibatch_size=m, **common) for m in (None, 5))
    assert float(exact.value) == pytest.approx(float(full.value), rel=1e-9)  # the same mean
    assert float(noisy.standard_error) > 2 * float(exact.standard_error)


# ---- when not to trust it


@pytest.mark.parametrize("slope", [0.5, 5.0])
def test_a_point_that_is_no_minimum_says_so(slope: float) -> None:
    """E[L] - L = -|b|^2-ish < 0: the chains slide down the slope."""
    found = shelf(NAME, at_bowl(slope), gamma=1.0, draws=200, burn_in=100)
    assert float(found.value) < 0
    assert found.status == ["not_converged"]
    assert found.message[0]
    assert "\n" not in found.message[0]


def test_a_saddle_that_is_lower_nearby_says_so() -> None:
    found = shelf(NAME, at_bowl(spectrum=-SPECTRUM / 10), gamma=20.0, draws=200, burn_in=50)
    assert float(found.value) < 0
    assert found.status == ["not_converged"]


def test_chains_that_still_drift_say_so() -> None:
    """Precision 5 in steps of 1e-4: they need thousands of steps to arrive, and have sixty."""
    found = shelf(NAME, at_bowl(), gamma=5.0, chains=8, draws=60, burn_in=4, step=1e-4)
    assert float(found.value) < 0.5 * gaussian(SPECTRUM, 5.0)
    assert found.status == ["not_converged"]


@pytest.mark.parametrize("factor", [1.5, 3.0, 1000.0])
def test_a_step_that_is_too_long_says_so(factor: float) -> None:
    """Stiffness step/2 (n beta h + gamma) above 1 is coarse, above 2 unstable."""
    step = 2 * factor / (N_BETA * 2 + 5)
    found = shelf(NAME, at_bowl(), gamma=5.0, chains=8, draws=60, burn_in=30, step=step)
    assert found.status[0] in ("not_converged", "undefined")
    assert found.message[0]
    assert not found.value.isinf().any()
    assert found.status == ["undefined"] or found.value.isfinite().all()


def test_facts() -> None:
    entry = REGISTRY["metric"][NAME]
    assert claims(entry) == {"": ["permutation"]}
    assert entry.facts["direction"] == "sharp"
    once, again, other = (shelf(NAME, at_bowl(), draws=20, seed=s) for s in (3, 3, 4))
    assert torch.equal(once.value, again.value)
    assert not torch.equal(once.value, other.value)


def test_a_rise_below_rounding_is_unresolved() -> None:
    assert shelf(NAME, at_bowl(spectrum=1e-16 * SPECTRUM)).status == ["unresolved"]
