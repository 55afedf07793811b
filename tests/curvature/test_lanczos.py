"""Lanczos against dense eigenvalues, on spectra that are unkind to it."""

from __future__ import annotations

import pytest
import torch
from helpers import symmetric
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from landscape_cli.curvature.conjugate_gradients import conjugate_gradients
from landscape_cli.curvature.lanczos import (
    Krylov,
    Product,
    Ritz,
    eigenpairs_above,
    extreme_eigenpairs,
    lanczos_quadrature,
    reject,
    top_eigenpairs,
    tridiagonal,
)
from landscape_cli.curvature.traces import hutchpp

f64 = torch.float64


def find(A: Tensor, k: int = 1, seed: int = 0, start: Tensor | None = None, **options: float) -> Ritz:
    rng = torch.Generator().manual_seed(seed)
    start = torch.randn(A.shape[:2], generator=rng, dtype=A.dtype) if start is None else start
    return top_eigenpairs(lambda v: torch.einsum("kij,kj->ki", A, v), start, k, rng=rng, **options)  # type: ignore[arg-type]


@settings(max_examples=40, deadline=None)
@given(p=st.integers(1, 25), k=st.integers(1, 3), seed=st.integers(0, 2**32 - 1))
def test_random_matrices_with_degenerate_ones_among_them(p: int, k: int, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    A = torch.randn(5, p, p, generator=rng, dtype=f64)
    A = A + A.mT
    A[1], A[2] = torch.eye(p), 0  # Krylov spaces that close at the first step
    A[3] = torch.diag((torch.arange(p) % 2).to(f64))  # two eigenvalues, each many times
    found = find(A, k, seed % 1000, tolerance=1e-12)
    due = torch.linalg.eigvalsh(A).flip(1)[:, :k]
    assert found.values.shape == due.shape
    assert_close(found.values, due, rtol=1e-8, atol=1e-8)
    v = found.vectors
    assert_close(v @ v.mT, torch.eye(v.shape[1], dtype=f64).expand(5, -1, -1), rtol=0, atol=1e-10)
    assert_close(v @ A.mT, found.values[..., None] * v, rtol=0, atol=1e-7 * (1 + float(A.abs().max()) * p))
    assert found.steps <= p


@pytest.mark.parametrize("name", ["clustered", "gapped", "negative", "one", "indefinite"])
def test_the_default_tolerance_gives_six_digits(name: str) -> None:
    p = 120
    spectrum = {
        "clustered": torch.cat([torch.tensor([2.0, 1.999, 1.998]), torch.linspace(0, 1.9, p - 3)]),
        "gapped": torch.cat([torch.tensor([100.0, 10.0]), torch.linspace(-1, 1, p - 2)]),
        "negative": -torch.linspace(1, 50, p),
        "one": torch.cat([torch.tensor([5.0]), torch.zeros(p - 1)]),
        "indefinite": torch.linspace(-3, 1, p),
    }[name]
    A = torch.stack([symmetric(spectrum, seed) for seed in range(2)])
    found = find(A, tolerance=1e-3)
    assert_close(found.values[:, 0], spectrum.max().double().expand(2), rtol=1e-5, atol=0)


def test_residuals_are_those_of_the_definition() -> None:
    """|A v - value v| computed afresh, at a stage where they are far from 0."""
    A = torch.stack([symmetric(torch.linspace(-1, 2, 80), s) for s in (1, 2)])
    for steps in (4, 8, 15, 40, 80):
        found = extreme_eigenpairs(space_of(A), 2, tolerance=1e-15, max_steps=steps)
        assert found.steps <= steps and (found.steps == steps or steps == 80)
        wrong = torch.linalg.vector_norm(found.vectors @ A.mT - found.values[..., None] * found.vectors, dim=2)
        assert_close(found.residuals, wrong, rtol=1e-6, atol=1e-12)
    assert float(find(A, max_steps=4).residuals.min()) > 0.05  # too few steps are seen
    assert float(find(A, max_steps=80, tolerance=1e-15).residuals.max()) < 1e-12


def test_no_start_of_200_takes_the_second_eigenvalue_for_the_first() -> None:
    """A gap of 30 % below a top direction that unlucky starts hide; without extra steps some are deceived."""
    p = 60
    A = torch.diag(torch.cat([torch.tensor([1.0, 0.7]), torch.linspace(0, 0.1, p - 2)]).to(f64))
    start = torch.randn(200, p, generator=torch.Generator().manual_seed(0), dtype=f64)
    start[:, 0] *= 1e-3  # unlucky: hardly any of the first eigenvector
    for row in start.split(1):
        assert float(find(A[None], start=row).values) == pytest.approx(1, rel=1e-5)
    deceived = torch.zeros(200, dtype=torch.bool)  # teeth: the residual alone would have certified the second one
    for steps in range(2, 8):
        r = find(A.expand(200, -1, -1), start=start, max_steps=steps, tolerance=1e-9)
        deceived |= ((r.residuals <= 1e-3 * r.values) & (r.values < 0.8))[:, 0]
    assert deceived.sum() > 5


def test_the_k_operators_of_a_stack_do_not_mix() -> None:
    A = torch.stack([symmetric(torch.linspace(-1, top, 30), seed) for seed, top in enumerate((1.0, 50.0, 1e-3))])
    start = torch.randn(1, 30, generator=torch.Generator().manual_seed(5), dtype=f64).expand(3, -1).contiguous()
    together = find(A, 2, start=start, tolerance=1e-10)
    for k in range(3):
        alone = find(A[k : k + 1], 2, start=start[:1], tolerance=1e-10)
        assert_close(together.values[k], alone.values[0], rtol=1e-8, atol=1e-9)


def test_float32_operators_are_served_in_their_own_type() -> None:
    A = torch.stack([symmetric(torch.linspace(0, 3, 200), s) for s in (1, 2)]).float()
    found = find(A)
    assert found.vectors.dtype == torch.float32
    assert found.values.dtype == f64
    assert_close(found.values[:, 0], torch.full((2,), 3.0, dtype=f64), rtol=1e-4, atol=0)


def test_repeated_top_eigenvalue_is_found_twice_when_the_space_closes() -> None:
    A = torch.diag(torch.tensor([3.0, 3.0, 1.0, 1.0, 0.0], dtype=f64))[None]
    assert_close(find(A, 2, tolerance=1e-12).values, torch.tensor([[3.0, 3.0]], dtype=f64))


def test_no_ghosts_of_a_dominant_eigenvalue() -> None:
    """Without full reorthogonalization the first eigenvalue comes back as the second, after some dozens of steps."""
    A = torch.stack([symmetric(torch.cat([torch.tensor([1e3]), torch.linspace(0, 1, 99)]), s) for s in (1, 2)])
    found = find(A, 3, tolerance=1e-15, max_steps=100)
    due = torch.tensor([1e3, 1.0, 98 / 98 - 1 / 98], dtype=f64)
    assert_close(found.values, due.expand(2, -1), rtol=1e-6, atol=0)
    assert_close(found.vectors @ found.vectors.mT, torch.eye(3, dtype=f64).expand(2, -1, -1), rtol=0, atol=1e-10)


def test_helpers() -> None:
    rng = torch.Generator().manual_seed(0)
    Q = torch.linalg.qr(torch.randn(2, 6, 3, generator=rng, dtype=f64))[0].mT.contiguous()
    q = torch.randn(2, 6, generator=rng, dtype=f64)
    left = reject(q, Q)
    assert_close((Q @ left[..., None]).abs().max(), torch.tensor(0.0, dtype=f64), rtol=0, atol=1e-14)
    assert_close(reject(left, Q), left)
    T = tridiagonal(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[4.0, 5.0]]))
    assert T.tolist() == [[[1, 4, 0], [4, 2, 5], [0, 5, 3]]]


@given(p=st.integers(1, 30), seed=st.integers(0, 2**31))
def test_conjugate_gradients_solve_many_systems(p: int, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    Q = torch.linalg.qr(torch.randn(5, p, p, generator=rng, dtype=torch.float64))[0]
    A = Q @ torch.diag_embed(10 ** (-4 * torch.rand(5, p, generator=rng, dtype=torch.float64))) @ Q.mT
    b = torch.randn(5, p, generator=rng, dtype=torch.float64)
    b[1] = 0  # solved before it begins
    x, residual, _steps = conjugate_gradients(
        lambda v: torch.einsum("kij,kj->ki", A, v), b, tolerance=1e-10, max_steps=3000
    )
    assert (residual <= 1e-10).all()
    assert (x[1] == 0).all()
    apart = (torch.einsum("kij,kj->ki", A, x) - b).norm(dim=1)
    assert (apart <= 1e-8 * b.norm(dim=1)).all()
    few = conjugate_gradients(lambda v: torch.einsum("kij,kj->ki", A, v), b, tolerance=1e-14, max_steps=1)
    assert few[2] == 1
    assert p == 1 or float(few[1].max()) > 1e-14  # and says that it did not get there


# ---- both ends, copies, and what was there before


def product_of(A: Tensor) -> Product:
    return lambda v: torch.einsum("kij,kj->ki", A, v)


def space_of(A: Tensor, seed: int = 0) -> Krylov:
    rng = torch.Generator().manual_seed(seed)
    return Krylov(product_of(A), torch.randn(A.shape[:2], generator=rng, dtype=A.dtype), rng)


def test_the_bottom_of_the_spectrum_out_of_the_same_process() -> None:
    spectra = [torch.linspace(-1, 2, 80), torch.cat([torch.tensor([-0.01]), torch.zeros(70), torch.linspace(1, 9, 9)])]
    A = torch.stack([symmetric(s, i) for i, s in enumerate(spectra)])
    space = space_of(A)
    top = extreme_eigenpairs(space)
    low = extreme_eigenpairs(space, 2, end="bottom", tolerance=1e-6)
    due = torch.linalg.eigvalsh(A)
    assert_close(low.values, due[:, :2], rtol=1e-7, atol=1e-9)
    assert_close(low.vectors @ A.mT, low.values[..., None] * low.vectors, rtol=0, atol=1e-5)
    again = extreme_eigenpairs(space_of(A))  # what the space has grown to meanwhile changes nothing
    assert torch.equal(extreme_eigenpairs(space).values, again.values)
    assert torch.equal(top.vectors, again.vectors)


@pytest.mark.parametrize("gap", [0.1, 0.5])
def test_every_eigenvalue_above_a_cutoff(gap: float) -> None:
    """As many as there are, whatever the company; what is cut off lies close below."""
    p = 300
    spectra = [
        torch.cat([torch.linspace(1, 0.1, 40), 0.1 * (1 - gap) * torch.rand(p - 40)]),
        torch.cat([torch.logspace(1, 0, 7), torch.linspace(-3, 0.5, p - 7)]),
        -torch.rand(p),
    ]
    A = torch.stack([symmetric(s, i) for i, s in enumerate(spectra)])
    found = eigenpairs_above(space_of(A), 0.099)
    for k, (values, residuals, V) in enumerate(found):
        due = torch.linalg.eigvalsh(A[k])
        due = due[(due >= 0.099 * due[-1]) & (due > 0)]
        assert_close(values, due, rtol=1e-6, atol=0)
        assert_close(V @ A[k], values[:, None] * V, rtol=0, atol=2e-3 * float(due.amax() if len(due) else 1))
        assert bool((residuals <= 1e-3 * values).all())
        alone = eigenpairs_above(_same_start(A, k), 0.099)[0]
        assert_close(alone[0], values, rtol=1e-9, atol=0)
    assert [len(v) for v, _, _ in found] == [40, int((spectra[1] >= 0.99).sum()), 0]
    short = eigenpairs_above(space_of(A), 0.099, max_steps=20)
    assert float((short[0][1] / short[0][0]).max()) > 1e-3  # too few steps are seen


def _same_start(A: Tensor, k: int) -> Krylov:
    every = space_of(A)
    return Krylov(product_of(A[k : k + 1]), every.start[k : k + 1], torch.Generator().manual_seed(0))


@pytest.mark.parametrize("p", [60, 400])
def test_repeated_eigenvalues_come_as_often_as_they_are(p: int) -> None:
    spectra = [
        torch.cat([torch.tensor([5.0, 5.0, 5.0, 2.0]), torch.linspace(0, 1, p - 4)]),
        torch.cat([torch.tensor([5.0, 4.0, 4.0, 4.0]), torch.linspace(0, 1, p - 4)]),
    ]
    A = torch.stack([symmetric(s, i) for i, s in enumerate(spectra)])
    found = find(A, 4, tolerance=1e-6)
    assert_close(found.values, torch.stack(spectra).double()[:, :4], rtol=1e-8, atol=0)
    assert_close(found.vectors @ found.vectors.mT, torch.eye(4, dtype=f64).expand(2, -1, -1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, f64])
def test_of_a_thousand_starts_none_takes_the_second_of_a_near_tie(dtype: torch.dtype) -> None:
    """0.1 % apart: a residual of 1e-3 does not tell them; values that stood for the last third of the steps let 3 to
    13 of 100 through."""
    spectrum = torch.cat([torch.tensor([1.0, 0.999]), torch.linspace(0, 0.9, 58)]).to(dtype)
    rng = torch.Generator().manual_seed(1)
    start = torch.randn(1000, 60, generator=rng, dtype=dtype)
    found = extreme_eigenpairs(Krylov(lambda v: v * spectrum, start, rng))
    wrong = (found.values[:, 0] < 0.9995) & (found.residuals[:, 0] <= 1e-3)
    assert int(wrong.sum()) == 0


def test_a_positive_eigenvalue_is_not_overlooked_in_the_first_steps() -> None:
    p = 200
    spectra = [torch.cat([torch.tensor([1e-3]), -torch.linspace(0.5, 1, p - 1)]), -torch.linspace(0.1, 1, p)]
    found = eigenpairs_above(space_of(torch.stack([symmetric(s, i) for i, s in enumerate(spectra)])), 0.1)
    assert [len(values) for values, _, _ in found] == [1, 0]


@pytest.mark.parametrize("apart", [1e-3, 1e-4])
def test_two_top_eigenvalues_close_together_are_told_apart_or_doubted(apart: float) -> None:
    """The residual is small long before the two are: the value has to stand still, too."""
    p, wrong = 300, 0
    spectrum = torch.cat([torch.tensor([1.0, 1 - apart], dtype=f64), torch.linspace(0, 0.9, p - 2, dtype=f64)])
    A = torch.diag(spectrum)[None]
    for seed in range(25):
        found = find(A, seed=seed, tolerance=apart)
        wrong += abs(float(found.values) - 1) > 0.02 * apart and float(found.residuals) <= apart
    assert wrong == 0


def test_quadrature_of_a_known_spectrum() -> None:
    """Weights are squares of first entries; with the whole eigenvector matrix each node would weigh 1/m."""
    spectrum = torch.cat([torch.tensor([10.0]), torch.zeros(150), torch.linspace(-1, 1, 49)])
    A = symmetric(spectrum, 0)[None]
    v = torch.randn(1, 200, generator=torch.Generator().manual_seed(1), dtype=f64)
    nodes, weights = lanczos_quadrature(product_of(A), v, 12, torch.Generator())
    u = v / v.norm()
    assert float(weights.sum()) == pytest.approx(1, rel=1e-12)
    for power in range(1, 24):  # exact for degrees below 2 * 12
        due = float(u @ torch.linalg.matrix_power(A[0], power) @ u.T)
        assert float((weights * nodes**power).sum()) == pytest.approx(due, rel=1e-8, abs=1e-9), power
    assert float(weights[0, -1]) == pytest.approx(float((torch.linalg.eigh(A[0])[1][:, -1] @ u[0]) ** 2), rel=1e-6)


def test_hutchpp_is_exact_for_few_eigenvalues_and_honest_for_many() -> None:
    low = symmetric(torch.cat([torch.tensor([3.0, -2.0, 1.0]), torch.zeros(57)]), 0)
    full = symmetric(torch.linspace(-1, 2, 60), 3)
    A, like = torch.stack([low, full]), torch.zeros(2, 60, dtype=f64)
    parts = torch.tensor([float(a[:20, :20].trace()) for a in A], dtype=f64)
    found, blocks = [], []
    for seed in range(200):
        inside, drawn = hutchpp(product_of(A), like, 24, torch.Generator().manual_seed(seed))
        found.append(torch.cat([inside.sum(1)[:, None], drawn.sum(2)], 1))
        blocks.append(inside[:, :20].sum(1) + drawn[:, :, :20].sum(2).mean(1))
    each = torch.stack(found)  # (seeds, 2, 1 + D)
    value, error = each[:, :, 0] + each[:, :, 1:].mean(2), each[:, :, 1:].std(2) / 8**0.5
    assert_close(value[:, 0], torch.full((200,), 2.0, dtype=f64), rtol=1e-10, atol=0)
    truth = float(full.trace())
    assert 0.9 <= ((value[:, 1] - truth).abs() < 2.4 * error[:, 1]).double().mean() <= 0.995
    assert abs(float(value[:, 1].mean()) - truth) < 4 * float(value[:, 1].std()) / 200**0.5
    mean, spread = torch.stack(blocks).mean(0), torch.stack(blocks).std(0) / 200**0.5
    assert ((mean - parts).abs() < 4 * spread + 1e-9).all()
    tiny = hutchpp(product_of(A[:, :4, :4]), like[:, :4], 24, torch.Generator())
    assert_close(tiny[0], A[:, :4, :4].diagonal(dim1=1, dim2=2))
    assert not tiny[1].any()


def test_many_right_hand_sides_are_solved_at_once() -> None:
    A = torch.stack([symmetric(torch.linspace(1, 50, 30), s) for s in (0, 1)])
    B = torch.randn(2, 30, 4, generator=torch.Generator().manual_seed(0), dtype=f64)
    x, residuals, _ = conjugate_gradients(lambda v: A @ v, B, tolerance=1e-10)
    assert residuals.shape == (2, 4)
    assert_close(x, torch.linalg.solve(A, B), rtol=1e-8, atol=1e-9)
