"""Sharpness in balls, boxes and minibatches against enumeration, plain loops and rescaled twins."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import pytest
import torch
from helpers import N, Quadratic, at_of, data, modules, symmetric
from scipy.stats import norm
from surface_cases import (
    ball_maximum,
    box_maximum,
    honest,
    plain_rise,
    quadratic,
    quadratics,
    rescaled,
    scores,
    shelf,
    slope,
)
from torch import Tensor

from landscape_cli.metrics.point import Point

f64 = torch.float64
TIGHT = {"solver": "converged", "tolerance": 1e-8, "max_steps": 2000}
o = torch.tensor([0.5, -1.5, 2.0, 0.3], dtype=f64)

# ---- Keskar's box


@pytest.mark.parametrize("eps", [1e-3, 5e-4, 0.1])
def test_keskar_where_the_gradient_keeps_its_signs_is_a_corner(eps: float) -> None:
    """100 max/(1 + f): nothing local about it, both solvers end in that corner."""
    H, b = symmetric(torch.tensor([-1.0, 0.5, 1, 2]), 0), torch.tensor([1.0, -1.2, 0.9, 1.1], dtype=f64)
    w = eps * (o.abs() + 1)
    assert (b.abs() > H.abs() @ w).all()
    due = 100 * box_maximum(H, b, w) / 3.5
    for solver in ("paper", "converged"):
        found = shelf("keskar_sharpness", quadratic(H, b, o, c=2.5), eps=eps, solver=solver)
        assert float(found.value) == pytest.approx(due, rel=1e-8)


def drawn(p: int, s: int, seed: int) -> Tensor:
    """Orthonormal columns from the QR decomposition of a Gaussian matrix; signs do not matter to the box."""
    return torch.linalg.qr(torch.randn(p, s, generator=torch.Generator().manual_seed(seed), dtype=f64))[0]


@pytest.mark.parametrize("h", [-2.0, 0.0, 3.0])
def test_keskar_in_a_subspace(h: float) -> None:
    """For H = h the problem in the subspace is separable: b_z = A^T b, H_z = h, half-widths eps (|A^T theta| + 1)."""
    p, s, eps, rng = 12, 4, 0.05, torch.Generator().manual_seed(1)
    theta, b = torch.randn(2, p, generator=rng, dtype=f64)
    at = quadratic(h * torch.eye(p, dtype=f64), b, theta)
    for seed in range(3):
        A = drawn(p, s, seed)
        w, slopes = eps * ((A.T @ theta).abs() + 1), A.T @ b
        due = 100 * box_maximum(h * torch.eye(s, dtype=f64), slopes, w) / 2
        for solver in ("paper", "converged"):
            found = shelf("keskar_sharpness", at, eps=eps, subspace=s, solver=solver, seed=seed)
            assert float(found.value) == pytest.approx(due, rel=1e-6)
        whole = shelf("keskar_sharpness", at, eps=eps, solver="converged")
        assert float(whole.value) > 1.2 * due  # teeth: fewer dimensions hold less


def test_keskar_of_a_whole_basis_at_the_origin() -> None:
    """theta = 0: a cube of half-width eps turned by A holds the ball eps and lies in the ball eps sqrt(p)."""
    p, eps, b = 6, 0.1, torch.linspace(1, 2, 6, dtype=f64)
    at = quadratic(torch.zeros(p, p, dtype=f64), b, torch.zeros(p, dtype=f64))
    found = [float(shelf("keskar_sharpness", at, eps=eps, subspace=p, seed=s).value) for s in range(5)]
    for value in found:
        assert 100 * eps * float(b.norm()) / 2 <= value * (1 + 1e-9)
        assert value <= 100 * eps * float(b.norm()) * p**0.5 / 2 * (1 + 1e-9)
    assert len({round(v, 9) for v in found}) == 5


def test_keskar_gives_one_row_an_eps() -> None:
    at = quadratic(torch.eye(4, dtype=f64), torch.ones(4, dtype=f64), o)
    for eps in (1e-3, 5e-4):
        w = eps * (o.abs() + 1)
        found = shelf("keskar_sharpness", at, eps=eps)
        assert float(found.value) == pytest.approx(100 * float(w.sum() + w.square().sum() / 2) / 2, rel=1e-8)


# ---- minibatches


def samples(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    H = torch.stack([symmetric(3 * torch.rand(4, generator=rng) - 0.5, s) for s in range(n)])
    return H, 0.3 * torch.randn(n, 4, generator=rng, dtype=f64)


def test_m_sharpness_of_single_samples_and_of_all() -> None:
    n, rho = 12, 0.2
    H, b = samples(n)
    at, common = quadratics(H, b, o), {"rho": rho, "minibatches": 100, **TIGHT}
    each = [ball_maximum(H[i], b[i], rho) for i in range(n)]
    single = shelf("m_sharpness", at, minibatch_size=1, **common)
    assert float(single.value) == pytest.approx(sum(each) / n, rel=1e-5)
    assert float(single.standard_error) == 0
    whole = shelf("m_sharpness", at, minibatch_size=n, **common)
    assert float(whole.value) == pytest.approx(ball_maximum(H.mean(0), b.mean(0), rho), rel=1e-5)
    assert float(whole.value) == pytest.approx(float(shelf("sam_sharpness", at, rho=rho, **TIGHT).value), rel=1e-6)
    step = shelf("m_sharpness", at, rho=rho, minibatch_size=1, solver="ascent")
    taken = [rho * float(g.norm()) + rho**2 / 2 * float(g @ h @ g / (g @ g)) for h, g in zip(H, b, strict=True)]
    assert float(step.value) == pytest.approx(sum(taken) / n, rel=1e-8)
    assert float(single.value) > 1.05 * float(whole.value)  # teeth: small minibatches are sharper


def partitions_of(items: list[int], m: int) -> Iterator[list[list[int]]]:
    if not items:
        yield []
        return
    for rest in combinations(items[1:], m - 1):
        left = [i for i in items[1:] if i not in rest]
        yield from ([[items[0], *rest], *tail] for tail in partitions_of(left, m))


def test_m_sharpness_cuts_the_set_into_disjoint_minibatches() -> None:
    n, m, rho = 6, 2, 0.2
    H, b = samples(n, 3)
    at = quadratics(H, b, o)
    cuts = list(partitions_of(list(range(n)), m))
    due = torch.tensor([sum(ball_maximum(H[c].mean(0), b[c].mean(0), rho) for c in cut) / 3 for cut in cuts])
    found = [float(shelf("m_sharpness", at, rho=rho, minibatch_size=m, seed=s, **TIGHT).value) for s in range(5)]
    assert all(float((due / value - 1).abs().min()) < 1e-5 for value in found)
    assert len({round(v, 6) for v in found}) > 1


@pytest.mark.parametrize(("m", "minibatches"), [(1, 20), (3, 12), (3, 20)])
def test_standard_errors_of_m_sharpness_are_honest(m: int, minibatches: int) -> None:
    """The truth is the mean over minibatches of m random samples, whether a seed uses all samples or not."""
    (H, b), rho, seeds = samples(60, 1), 0.3, 80
    rng, steps = torch.Generator().manual_seed(7), []
    for i in range(60 if m == 1 else 5000):
        own = torch.tensor([i]) if m == 1 else torch.randperm(60, generator=rng)[:m]
        g, h = b[own].mean(0), H[own].mean(0)
        steps.append(rho * float(g.norm()) + rho**2 / 2 * float(g @ h @ g / (g @ g)))
    at, truth, errors, values = quadratics(H, b, o), sum(steps) / len(steps), [], []
    for seed in range(seeds):
        found = shelf("m_sharpness", at, seed=seed, minibatches=minibatches, rho=rho, minibatch_size=m, solver="ascent")
        assert found.samples == minibatches
        errors.append(float(found.standard_error))
        values.append(float(found.value))
    assert sum(abs(v - truth) < 2 * e for v, e in zip(values, errors, strict=True)) >= 0.9 * seeds
    assert 0 < sum(errors) / seeds < 2 * float(torch.tensor(values).std())  # honest is not boundless


@pytest.mark.parametrize("net", ["relu", "tanh", "conv1d", "residual", "batchnorm"])
def test_one_step_for_every_sample_of_a_net(net: str) -> None:
    (x, y), both = data(net), modules(net)
    at = at_of(both, x, y, data(net, 2 * N, seed=1))
    found = shelf("m_sharpness", at, rho=0.3, minibatch_size=1, solver="ascent")
    for k, module in enumerate(both):
        each = []
        for i in range(N):
            f = plain_rise(module, x[i : i + 1], y[i : i + 1])
            g = slope(f, at.theta.shape[1])
            each.append(float(f(0.3 * g / g.norm())))
        assert float(found.value[k]) == pytest.approx(sum(each) / N, rel=1e-8)
    assert found.standard_error.tolist() == [0.0, 0.0]


# ---- common settings


@pytest.mark.parametrize("net", ["relu", "residual"])
def test_split_and_normalized_logits(net: str) -> None:
    (x, y), more, both = data(net), data(net, 2 * N, seed=1), modules(net)
    at = at_of(both, x, y, more)
    for split, own, normalize in (("test", more, False), ("train", (x, y), True), ("test", more, True)):
        common = {"rho": 0.2, "solver": "ascent", "normalize_logits": normalize}
        sam = shelf("sam_sharpness", at, split=split, **common)
        there = at if split == "train" else at_of(both, *more)
        one = shelf("m_sharpness", there, minibatch_size=len(own[1]), **common)
        for k, module in enumerate(both):
            f = plain_rise(module, *own, normalize)
            g = slope(f, at.theta.shape[1])
            due = float(f(0.2 * g / g.norm()))
            assert float(sam.value[k]) == pytest.approx(due, rel=1e-8)
            assert float(one.value[k]) == pytest.approx(due, rel=1e-8)


def test_average_rise_of_the_error() -> None:
    """Logits (0, a . theta): E error = mean Phi(a_i . theta / (sigma |a_i|)), a step function of theta before it."""
    rng = torch.Generator().manual_seed(2)
    a, theta, sigma = torch.randn(40, 5, generator=rng, dtype=f64), 0.5 * torch.ones(5, dtype=f64), 0.4
    t = a @ theta
    due = float(torch.tensor(norm.cdf((t / (sigma * a.norm(dim=1))).numpy())).mean() - (t > 0).double().mean())
    found = [shelf("average_sharpness", scores(theta, a), sigma=sigma, target="error", seed=s) for s in range(80)]
    honest(found, due)
    right = scores(theta, -a.abs())
    gain = shelf("average_sharpness", right, sigma=1.0, target="error", draws=300)
    truth = float(torch.tensor(norm.cdf((-a.abs() @ theta / a.norm(dim=1)).numpy())).mean())
    assert abs(float(gain.value) - truth) < 3.5 * float(gain.standard_error) < 0.3 * truth


def test_rises_below_rounding_are_unresolved() -> None:
    at = quadratic(1e-14 * torch.eye(4, dtype=f64), torch.zeros(4, dtype=f64), o)
    for name, settings in (
        ("sam_sharpness", {}),
        ("average_sharpness", {}),
        ("keskar_sharpness", {"eps": 1e-3}),
        ("keskar_sharpness", {"eps": 1e-3, "subspace": 2}),
        ("m_sharpness", {"minibatch_size": 1, "solver": "converged"}),
    ):
        found = shelf(name, at, **settings)
        assert found.status == ["unresolved"], (name, found)
    flat = Quadratic(torch.eye(4, dtype=f64)[None] * 1e-14, torch.zeros(1, 4, dtype=f64), o[None])
    assert shelf("adaptive_sharpness", flat.point(), rho=0.1, case="worst", solver="converged").status == ["unresolved"]


# ---- what is not invariant


def twins(factor: float) -> tuple[Point, Point]:
    module, (x, y) = modules("relu")[0], data("relu")
    y = module(x).argmax(1)
    other = rescaled(module, [1], 3, torch.full((6,), factor, dtype=f64))  # type: ignore[arg-type]
    assert torch.allclose(module(x), other(x), rtol=0, atol=1e-12)
    return at_of([module], x, y), at_of([other], x, y)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("sam_sharpness", {}),
        ("sam_sharpness", {"solver": "ascent"}),
        ("m_sharpness", {"minibatch_size": 1}),
        ("average_sharpness", {"draws": 100}),
        ("keskar_sharpness", {"eps": 1e-3}),
        ("keskar_sharpness", {"eps": 1e-3, "solver": "converged"}),
        ("pac_bayes_sharpness", {"target": "loss"}),
        ("pac_bayes_sharpness", {"target": "error"}),
    ],
)
def test_dinh_s_rescaling_moves_them(name: str, settings: dict[str, object]) -> None:
    for factor in (0.1, 10.0):
        one, two = (float(shelf(name, at, **settings).value) for at in twins(factor))
        assert abs(two / one - 1) > 0.1
