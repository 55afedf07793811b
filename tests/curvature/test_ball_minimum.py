"""The least value in a ball against the secular equation, on a kink, at corners; rows do not disturb one another."""

from __future__ import annotations

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from landscape_cli.curvature.ball_minimum import ULP, least_in_ball

f64 = torch.float64


def secular(H: Tensor, b: Tensor, radius: float) -> float:
    """min b.x + x.H x / 2 over |x| <= radius, H positive definite: x = -(H + s I)^-1 b with |x| = radius."""
    values, Q = torch.linalg.eigh(H)
    c = Q.T @ b

    def x(s: float) -> Tensor:
        return -c / (values + s)

    low, high = 0.0, float(b.norm()) / radius
    if float(x(0.0).norm()) > radius:
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if float(x(middle).norm()) > radius else (low, middle)
    else:
        high = 0.0
    return float(c @ x(high) + (values * x(high) ** 2).sum() / 2)


@settings(max_examples=20, deadline=None)
@example(p=1, seed=3208, spread=0.0)  # |b| = 0.002: the value stands at its last digit before the gap is closed
@given(p=st.integers(1, 12), seed=st.integers(0, 2**31), spread=st.floats(0, 3))
def test_quadratics_against_the_secular_equation(p: int, seed: int, spread: float) -> None:
    rng, R = torch.Generator().manual_seed(seed), 6
    Q = torch.linalg.qr(torch.randn(R, p, p, generator=rng, dtype=f64))[0]
    H = Q @ torch.diag_embed(10 ** (spread * (torch.rand(R, p, generator=rng, dtype=f64) - 1))) @ Q.mT
    b, radius = torch.randn(R, p, generator=rng, dtype=f64), torch.logspace(-4, 1, R, dtype=f64)

    def f(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        Hx = torch.einsum("kij,kj->ki", H[rows], x)
        return 3 + (b[rows] * x).sum(1) + (x * Hx).sum(1) / 2, b[rows] + Hx

    start = torch.zeros(R, p, dtype=f64)
    least = least_in_ball(f, start, radius, tolerance=1e-8, max_steps=20000)
    for k in range(R):
        scale = float(radius[k] * b[k].norm())
        due = 3 + secular(H[k], b[k], float(radius[k]))
        assert abs(float(least.value[k]) - due) <= 1e-7 * scale + 1e-14
        assert float(least.value[k]) >= due - 1e-12 * max(1.0, scale)  # nothing below the minimum: it stayed inside
        assert float(least.at[k].norm()) <= float(radius[k]) * (1 + 1e-12)
    rest = (2 * ULP * least.value.abs() * torch.linalg.matrix_norm(H, 2)).sqrt()  # |g| of what rounding hides
    assert (least.gap <= 1e-7 + rest / b.norm(dim=1)).all()
    alone = least_in_ball(lambda x, rows: f(x, rows + 2), start[2:3], radius[2:3], tolerance=1e-8, max_steps=20000)
    assert_close(alone.value[0], least.value[2], rtol=1e-9, atol=1e-13)


def test_a_kink_is_found_and_said() -> None:
    """|x_1 - 1/2| + x_2^2: on the kink no gradient shows the way, and the open gap says how much may be missing."""

    def f(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        side = x[:, 0] - 0.5
        return side.abs() + x[:, 1] ** 2, torch.stack([side.sign(), 2 * x[:, 1]], 1)

    least = least_in_ball(f, torch.tensor([[-0.3, 0.4]], dtype=f64), torch.ones(1, dtype=f64), tolerance=1e-6)
    assert bool(least.stands)
    assert float(least.gap) > 1e-6
    assert 0 <= float(least.value) <= float(least.gap) * 1.28  # |g| at the start: the gap certifies what is left


def test_where_a_function_is_not_defined_is_outside() -> None:
    """x on [-1, 1], infinite below -1/2: the least value is there."""

    def f(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        return torch.where(x[:, 0] < -0.5, torch.inf, x[:, 0]), torch.ones_like(x)

    least = least_in_ball(f, torch.zeros(1, 1, dtype=f64), torch.ones(1, dtype=f64), max_steps=300)
    assert -0.5 <= float(least.value) < -0.499
    assert float(least.gap) > 0.1  # and that it is no stationary point is said


def test_too_few_steps_leave_the_gap_open() -> None:
    b = torch.tensor([[1.0, 1e-3]], dtype=f64)
    H = torch.tensor([1.0, 1e-4], dtype=f64)
    least = least_in_ball(
        lambda x, rows: ((b * x + H * x * x / 2).sum(1), b + H * x), 0 * b, torch.full((1,), 50.0).double(), max_steps=5
    )
    assert float(least.gap) > 1e-6
    assert least.steps <= 6
