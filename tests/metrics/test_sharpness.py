"""Sharpness of quadratic losses in closed form."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from helpers import Quadratic, point, symmetric
from scipy.optimize import Bounds, brentq, minimize
from torch import Tensor
from torch.testing import assert_close

from landscape_cli.metrics.sharpness import average_sharpness, keskar_sharpness, sam_sharpness

f64 = torch.float64
P = 20


def secular(H: Tensor, g: Tensor, rho: float) -> float:
    """max_{|d| <= rho} g.d + d.H d / 2: d = (mu - H)^-1 g with mu >= lambda_max, mu >= 0 and |d| = rho."""
    values, V = np.linalg.eigh(H.numpy())
    c = V.T @ g.numpy()

    def excess(mu: float) -> float:
        return float(np.linalg.norm(c / (mu - values))) - rho

    top = values[-1]
    if top < 0 and excess(0.0) <= 0:  # a maximum inside the ball
        d = -c / values
        return float(c @ d + d @ (values * d) / 2)
    floor = max(top, 0.0)
    if np.linalg.norm(g.numpy()) == 0:
        return float(max(top, 0) * rho**2 / 2)
    mu = brentq(excess, floor + 1e-14, floor + np.linalg.norm(c) / rho + 1e-9, xtol=1e-15, rtol=1e-14)
    d = c / (mu - values)
    return float(c @ d + d @ (values * d) / 2)


SPECTRA = {
    "positive": torch.linspace(0.01, 5, P),
    "indefinite": torch.linspace(-6, 4, P),
    "clustered": torch.cat([torch.linspace(0, 1, P - 3), torch.tensor([3.0, 3.001, 3.002])]),
    "gapped": torch.cat([torch.full((P - 1,), 0.1), torch.tensor([50.0])]),
    "negative": torch.linspace(-5, -1, P),
}


def quadratic(name: str, slope: float, seed: int = 0, rows: int = 3) -> Quadratic:
    rng = torch.Generator().manual_seed(seed)
    H = torch.stack([symmetric(SPECTRA[name], seed + k) for k in range(rows)])
    slopes, origin = torch.randn(2, rows, P, generator=rng, dtype=f64)
    return Quadratic(H, slope * slopes, origin)


@pytest.mark.parametrize("slope", [0.0, 1e-3, 0.1, 3.0])
@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("rho", [0.05, 0.5])
def test_sam_converged_is_the_maximum_over_the_ball(name: str, slope: float, rho: float) -> None:
    if name == "negative" and slope == 0:
        slope = 1e-2  # at a strict maximum nothing rises
    at = quadratic(name, slope)
    found = sam_sharpness(at.point(), rho=rho, tolerance=1e-5, max_steps=3000)
    for k in range(3):
        due = secular(at.H[k], at.b[k], rho)
        assert float(found.value[k]) == pytest.approx(due, rel=1e-5), (k, found)
        assert float(found.value[k]) <= due * (1 + 1e-9) + 1e-14
    if name != "indefinite":  # |lambda_min| > lambda_max is slow: the values are right, some residuals still too large
        assert found.status == ["ok"] * 3
    assert found.iterations is not None
    assert found.iterations <= 3000


def test_default_tolerance_is_good_for_a_thousandth() -> None:
    for name in ("positive", "clustered", "indefinite", "gapped"):
        at = quadratic(name, 0.01)
        found = sam_sharpness(at.point())
        for k in range(3):
            assert float(found.value[k]) == pytest.approx(secular(at.H[k], at.b[k], 0.05), rel=1e-3)


@pytest.mark.parametrize("name", SPECTRA)
def test_sam_ascent_is_one_step_along_the_gradient(name: str) -> None:
    at = quadratic(name, 0.3)
    found = sam_sharpness(at.point(), rho=0.2, solver="ascent")
    for k in range(3):
        u = at.b[k] / at.b[k].norm()
        due = 0.2 * at.b[k].norm() + 0.02 * u @ at.H[k] @ u
        assert float(found.value[k]) == pytest.approx(float(due), rel=1e-10)
        assert float(found.value[k]) <= secular(at.H[k], at.b[k], 0.2) + 1e-12


def test_ascent_without_a_gradient_is_undefined_and_the_ball_is_not() -> None:
    at = quadratic("positive", 0.0)
    ascent, converged = (sam_sharpness(at.point(), solver=s) for s in ("ascent", "converged"))  # type: ignore[arg-type]
    assert ascent.status == ["undefined"] * 3
    assert ascent.value.isnan().all()
    assert ascent.message == ["the gradient is 0: no direction of ascent"] * 3
    assert_close(converged.value, torch.full((3,), 5 * 0.05**2 / 2, dtype=f64), rtol=1e-5, atol=0)


def test_too_few_steps_are_reported() -> None:
    at = quadratic("clustered", 0.05)
    found = sam_sharpness(at.point(), rho=1.0, tolerance=1e-6, max_steps=1)
    assert found.status == ["not_converged"] * 3
    assert found.message[0].endswith("after 1 steps: raise max_steps (1)")
    assert found.residual is not None
    assert (found.residual > 1e-6).all()


def test_sam_converged_is_above_ascent_and_random_points_of_the_ball() -> None:
    for name in ("relu", "tanh", "residual"):
        at = point(name)
        best = sam_sharpness(at, rho=0.3, max_steps=500).value
        assert (best >= sam_sharpness(at, rho=0.3, solver="ascent").value - 1e-12).all()
        rng = torch.Generator().manual_seed(0)
        for _ in range(50):
            d = torch.randn(at.theta.shape, generator=rng, dtype=f64)
            d *= 0.3 / d.norm(dim=1, keepdim=True)
            assert (at.train.loss(at.theta + d) - at.loss() <= best).all()


def test_rise_below_rounding_is_unresolved() -> None:
    flat = Quadratic(torch.eye(3, dtype=f64)[None] * 1e-14, torch.zeros(1, 3, dtype=f64))
    for found in (
        sam_sharpness(flat.point()),
        average_sharpness(flat.point()),
        keskar_sharpness(flat.point()),
    ):
        assert found.status == ["unresolved"]
        assert found.message == ["rise below rounding of the loss: precision: float64"]


# ---- average sharpness


def test_average_sharpness_is_half_sigma_squared_times_the_trace() -> None:
    at = quadratic("indefinite", 2.0)
    truth = 0.01**2 / 2 * float(SPECTRA["indefinite"].sum())
    found = average_sharpness(at.point(), draws=200)
    assert ((found.value - truth).abs() < 3 * found.standard_error).all()
    assert (found.standard_error > 0).all()
    assert found.samples == 200


def test_average_sharpness_follows_the_documented_draws() -> None:
    """For a multiple of the identity each pair gives sigma^2 |z|^2 c / 2; the linear part cancels however large."""
    rng = torch.Generator().manual_seed(7)
    z = torch.stack([torch.randn(P, generator=rng, dtype=f64) for _ in range(9)]).square().sum(1)
    at = Quadratic(3 * torch.eye(P, dtype=f64)[None], 1e3 * torch.ones(1, P, dtype=f64))
    found = average_sharpness(at.point(), sigma=0.1, draws=9, seed=7)
    each = 0.01 * z * 3 / 2
    assert float(found.value) == pytest.approx(float(each.mean()), rel=1e-9)
    assert float(found.standard_error) == pytest.approx(float(each.std()) / 3, rel=1e-8)


def test_standard_error_of_average_sharpness_is_honest() -> None:
    at = quadratic("positive", 0.5, rows=1)
    truth = 0.01**2 / 2 * float(SPECTRA["positive"].sum())
    found = [average_sharpness(at.point(), seed=seed) for seed in range(200)]
    error = torch.tensor([abs(float(f.value) - truth) for f in found])
    spread = torch.tensor([float(f.standard_error) for f in found])

    def coverage(factor: float) -> float:
        return float((error < 2 * factor * spread).float().mean())

    assert 0.90 <= coverage(1) <= 0.99
    assert coverage(0.5) < 0.85  # teeth


# ---- Keskar's box


def box(at: Quadratic, k: int, eps: float) -> Tensor:
    return eps * (at.o[k].abs() + 1)


@pytest.mark.parametrize("eps", [1e-3, 5e-4, 0.3])
def test_keskar_on_a_separable_quadratic_is_the_maximum_of_the_box(eps: float) -> None:
    """Coordinate by coordinate max of b z + h z^2 / 2 over |z| <= w: an end, or -b/h inside where h < 0."""
    rng = torch.Generator().manual_seed(3)
    h = torch.linspace(-4, 3, P).to(f64).expand(2, -1)
    b = torch.randn(2, P, generator=rng, dtype=f64)
    at = Quadratic(torch.diag_embed(h), b, torch.randn(2, P, generator=rng, dtype=f64))
    found = keskar_sharpness(at.point(), eps=eps, solver="converged")
    paper = keskar_sharpness(at.point(), eps=eps)
    for k in range(2):
        w = box(at, k, eps)
        ends = b[k].abs() * w + h[k] * w**2 / 2
        inside = torch.where((h[k] < 0) & ((b[k] / h[k]).abs() < w), -(b[k] ** 2) / (2 * h[k]), -torch.inf)
        rise = float(torch.maximum(ends, inside).sum())
        assert float(found.value[k]) <= 100 * rise / (1 + at.c) * (1 + 1e-10)
        # for h > 0 both ends are local maxima: L-BFGS-B goes to the one downhill of b, which is the higher one
        assert float(found.value[k]) == pytest.approx(100 * rise / (1 + at.c), rel=1e-6)
        assert float(paper.value[k]) <= float(found.value[k]) * (1 + 1e-9)
    assert found.status == ["ok", "ok"]


def scipy_reference(at: Quadratic, k: int, eps: float, iterations: int) -> tuple[float, np.ndarray]:
    """The largest rise that `minimize` finds from 0 in the same box, and where."""
    H, b, w = at.H[k].numpy(), at.b[k].numpy(), box(at, k, eps).numpy()
    start = at.c
    found = minimize(
        lambda z: -(start + b @ z + z @ H @ z / 2),
        np.zeros(len(w)),
        jac=lambda z: -(b + H @ z),
        method="L-BFGS-B",
        bounds=Bounds(-w, w),
        options={"maxiter": iterations, "maxfun": 20 * iterations},
    )
    return -found.fun - start, found.x


@pytest.mark.parametrize("name", ["positive", "indefinite", "clustered"])
@pytest.mark.parametrize("eps", [1e-3, 0.05])
def test_keskar_as_in_the_paper_is_ten_iterations_of_l_bfgs_b(name: str, eps: float) -> None:
    at = quadratic(name, 0.02)
    found = keskar_sharpness(at.point(), eps=eps)
    for k in range(3):
        rise, _ = scipy_reference(at, k, eps, 10)
        assert float(found.value[k]) == pytest.approx(100 * rise / (1 + at.c), rel=1e-6)
    assert found.iterations is not None
    assert found.iterations <= 10


def test_keskar_converged_on_a_convex_quadratic_ends_in_a_corner_that_no_neighbour_beats() -> None:
    p = 7
    H = torch.stack([symmetric(torch.linspace(0.5, 4, p), s) for s in range(4)])
    rng = torch.Generator().manual_seed(1)
    at = Quadratic(H, 0.3 * torch.randn(4, p, generator=rng, dtype=f64), torch.randn(4, p, generator=rng, dtype=f64))
    found = keskar_sharpness(at.point(), eps=0.2, solver="converged")
    for k in range(4):
        corners = torch.tensor(list(product([-1.0, 1.0], repeat=p)), dtype=f64) * box(at, k, 0.2)
        rises = corners @ at.b[k] + ((corners @ H[k]) * corners).sum(1) / 2
        values = 100 * rises / (1 + at.c)
        gap = (values - found.value[k]).abs()
        at_corner = int(gap.argmin())
        assert float(gap[at_corner]) < 1e-9  # a corner, and
        z = corners[at_corner]
        slope = at.b[k] + H[k] @ z
        assert (slope * z > 0).all()  # every wall is pushed against: stationary
        assert float(found.value[k]) <= float(values.max()) + 1e-9
        assert float(found.value[k]) >= 0.5 * float(values.max())
    assert found.status == ["ok"] * 4
    assert found.residual is not None
    assert (found.residual < 1e-3).all()


def test_keskar_says_when_it_was_stopped_early() -> None:
    at = quadratic("indefinite", 0.5)
    found = keskar_sharpness(at.point(), eps=2.0, solver="converged", max_steps=1)
    assert found.status == ["not_converged"] * 3
    assert found.message[0] == "projected gradient above 1e-3 of the gradient after 1 iterations: raise max_steps (1)"


def test_keskar_never_reports_a_fall() -> None:
    at = Quadratic(-torch.eye(4, dtype=f64)[None], torch.zeros(1, 4, dtype=f64))
    assert float(keskar_sharpness(at.point()).value) == 0
