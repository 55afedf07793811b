"""Regret in a ball of finite radius against SLSQP, a search over angles, and its first order; the scatter of minima."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import K, at_of, data, modules, objective, oracle, plain_logits, point, vector
from scipy.optimize import brentq, minimize
from torch import Tensor, nn
from torch.testing import assert_close

from landscape_cli.metrics import regret as regret_module
from landscape_cli.metrics import scatter
from landscape_cli.metrics.gradients import regret
from landscape_cli.metrics.point import Estimate, Point
from landscape_cli.metrics.regret import regret_exact
from landscape_cli.metrics.scatter import minima_scatter

f64 = torch.float64
Loss = Callable[[Tensor], Tensor]  # theta (p,) -> scalar
Solver = Callable[[Loss, Tensor, float], Tensor]  # loss, theta, eps -> the best d of the ball
TIGHT = {"tolerance": 1e-13, "max_steps": 20_000}


class Two(nn.Module):
    """Two parameters, two classes, no part of it linear."""

    def __init__(self, a: float, b: float) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor([a])), nn.Parameter(torch.tensor([b]))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a * x[:, :1] + 0.5 * x[:, 1:])
        return torch.cat([self.b * h, 0.3 * self.a * self.b - h], 1)


class Logistic(nn.Module):
    """Convex in its two parameters."""

    def __init__(self, a: float, b: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([a, b]))

    def forward(self, x: Tensor) -> Tensor:
        z = x @ self.w
        return torch.stack([0 * z, z], 1)


def learnable(n: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(n, 2, generator=rng, dtype=f64)
    return x, (x[:, 0] + 0.8 * torch.randn(n, generator=rng, dtype=f64) > 0).long()


def tiny(kind: str) -> list[nn.Module]:
    """Two nets of 2 or of 20 parameters."""
    if kind == "two":
        return [Two(0.7, -0.4).double(), Two(-1.1, 0.8).double()]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        made = [nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2, bias=False)).double() for _ in range(2)]
    return list(made)


def documented_draw(n: int, m: int, minibatches: int, seed: int) -> Tensor:
    M = min(minibatches, n // m)
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))[: M * m].view(M, m)


def slope(f: Loss, theta: Tensor) -> Tensor:
    theta = theta.clone().requires_grad_()
    return torch.autograd.grad(f(theta), theta)[0]


# ---- solvers


def by_angles(f: Loss, theta: Tensor, eps: float) -> Tensor:
    """Two parameters: the whole disc on a grid, then the zero of the slope along the circle, or Newton inside."""
    step = 2 * math.pi / 180

    def on_circle(phi: float) -> Tensor:
        return eps * torch.tensor([math.cos(phi), math.sin(phi)], dtype=f64)

    def along(phi: float) -> float:
        return float(slope(f, theta + on_circle(phi)) @ on_circle(phi + math.pi / 2)) / eps

    grid = [(float(f(theta + r * on_circle(i * step))), r, i * step) for r in (0.5, 0.8, 1.0) for i in range(180)]
    _, r, phi = min(grid)
    if r < 1:
        d = r * on_circle(phi)
        for _ in range(30):
            H = torch.autograd.functional.hessian(f, theta + d)
            d = d - torch.linalg.solve(H, slope(f, theta + d))
        assert float(d.norm()) < eps
        return d
    return on_circle(brentq(along, phi - step, phi + step, xtol=1e-15, rtol=1e-14))


def by_slsqp(f: Loss, theta: Tensor, eps: float) -> Tensor:
    """A local minimizer, in units of eps, from the direction of descent."""

    def value(z: np.ndarray) -> float:
        return float(f(theta + eps * torch.from_numpy(z))) / eps

    def gradient(z: np.ndarray) -> np.ndarray:
        return slope(f, theta + eps * torch.from_numpy(z)).numpy()  # type: ignore[no-any-return]

    inside = {"type": "ineq", "fun": lambda z: 1 - z @ z, "jac": lambda z: -2 * z}
    starts = [-gradient(np.zeros(len(theta)))]
    options = {"ftol": 1e-15, "maxiter": 200}
    found = [
        minimize(
            value, 0.9 * z / np.linalg.norm(z), jac=gradient, constraints=[inside], method="SLSQP", options=options
        )
        for z in starts
    ]
    z = torch.from_numpy(min(found, key=lambda r: r.fun).x)
    return eps * z / max(1.0, float(z.norm()))


def by_oracle(module: nn.Module, draw: Tensor, radius: float, solve: Solver) -> tuple[float, float]:
    """R / eps over ordered pairs, and its jackknife over minibatches written out."""
    theta, (x, y) = vector(module), learnable(30)

    def loss_of(b: Tensor) -> Loss:
        logits = plain_logits(module, x[b])
        return lambda t: F.cross_entropy(logits(t), y[b])

    f, eps = [loss_of(b) for b in draw], radius * float(theta.norm())
    d = [solve(own, theta, eps) for own in f]
    M = len(f)
    R = [[float(f[b](theta + d[a]) - f[b](theta + d[b])) / eps for b in range(M)] for a in range(M)]

    def mean(kept: list[int]) -> float:
        own = [R[a][b] for a in kept for b in kept if a != b]
        return sum(own) / len(own)

    left_out = [mean([a for a in range(M) if a != gone]) for gone in range(M)]
    centre = sum(left_out) / M
    return mean(list(range(M))), math.sqrt((M - 1) / M * sum((v - centre) ** 2 for v in left_out))


# ---- tests


@pytest.mark.parametrize(("kind", "solve", "rel"), [("two", by_angles, 1e-6), ("tanh", by_slsqp, 1e-4)])
@pytest.mark.parametrize("radius", [1e-2, 1e-1])
def test_against_other_solvers(kind: str, solve: Solver, rel: float, radius: float) -> None:
    made = tiny(kind)
    draw = documented_draw(30, 5, 20, 4)
    found = regret_exact(at_of(made, *learnable(30)), radius=[radius], minibatch_size=5, seed=4, **TIGHT)
    assert list(found) == ["radius=0", f"radius={radius:g}"]
    row = found[f"radius={radius:g}"]
    for k, module in enumerate(made):
        value, error = by_oracle(module, draw, radius, solve)
        assert float(row.value[k]) == pytest.approx(value, rel=rel)
        assert float(row.standard_error[k]) == pytest.approx(error, rel=10 * rel)
    assert row.status == ["ok"] * 2
    assert row.residual is not None
    assert (row.residual <= 1e-13).all()


def test_minima_inside_the_ball() -> None:
    """Logistic regression, where the ball is wide enough for some minibatches: no step out to the sphere."""
    made: list[nn.Module] = [Logistic(0.9, 0.2).double(), Logistic(-0.5, 1.0).double()]
    draw, inside = documented_draw(30, 10, 20, 0), 0

    def solve(f: Loss, theta: Tensor, eps: float) -> Tensor:
        nonlocal inside
        d = by_angles(f, theta, eps)
        inside += float(d.norm()) < 0.99 * eps
        return d

    row = regret_exact(at_of(made, *learnable(30)), radius=[2.0], minibatch_size=10, **TIGHT)["radius=2"]
    for k, module in enumerate(made):
        value, _ = by_oracle(module, draw, 2.0, solve)
        assert float(row.value[k]) == pytest.approx(value, rel=1e-5)
    assert 0 < inside < 6


@cache
def trained(net: str) -> Point:
    """Two nets after 200 steps of gradient descent on labels that can be learned in part."""
    start, theta = objective(net, n=80)
    x = start.x.flatten(1)
    y = (x[:, :3] + torch.randn(80, 3, generator=torch.Generator().manual_seed(2), dtype=f64)).argmax(1)
    train = replace(start, y=y)
    for _ in range(200):
        theta = theta - 0.3 * train.loss_and_gradient(theta)[1]
    return Point(theta, train, train)


@pytest.mark.parametrize("net", ["tanh", "relu"])
def test_its_limit_is_the_first_order(net: str) -> None:
    at = trained(net)
    first = regret(at, minibatch_size=5, minibatches=10, partitions=1, seed=2).value
    found = regret_exact(at, radius=[1e-6, 1e-5, 1e-3, 0.1], minibatch_size=5, minibatches=10, seed=2)
    assert list(found) == ["radius=0", "radius=1e-06", "radius=1e-05", "radius=0.001", "radius=0.1"]
    ratios = torch.stack([row.value for row in found.values()]) / first
    assert ((ratios[0] - 1).abs() < 1e-10).all()
    assert ((ratios[1] - 1).abs() < 1e-3).all()
    assert ((ratios[2] - 1).abs() < 1e-2).all()
    errors = torch.stack([row.standard_error for row in found.values()])
    assert ((errors[1] / errors[0] - 1).abs() < 1e-2).all()
    assert (ratios[4] < 0.95).all()  # curvature: the ball holds less than the slope at its centre promises


@pytest.mark.parametrize("net", ["tanh", "relu", "conv1d"])
def test_no_regret_is_negative(net: str) -> None:
    """Where the solver converges, and where it gives up after three gradients; the mean over pairs holds each."""
    at = trained(net)
    few, rough = {"max_steps": 100}, {"tolerance": 0.3, "max_steps": 3}
    for radius, seed, settings in [(1e-4, 0, few), (0.1, 1, few), (1e-5, 2, rough), (0.3, 3, rough), (3.0, 4, rough)]:
        found = regret_exact(at, radius=[radius], minibatch_size=20, minibatches=3, seed=seed, **settings)
        assert all((row.value >= 0).all() for row in found.values())


@pytest.mark.parametrize("net", ["tanh", "relu"])
def test_default_tolerance_is_good_for_a_thousandth(net: str) -> None:
    at = trained(net)
    settings = {"radius": [1e-2], "minibatch_size": 10, "minibatches": 3}
    loose, tight = regret_exact(at, **settings), regret_exact(at, **settings, tolerance=1e-12)
    for key, row in loose.items():
        assert row.value.tolist() == pytest.approx(tight[key].value.tolist(), rel=1e-3)


def test_too_few_steps_are_reported_and_float32_changes_little() -> None:
    at = trained("tanh")
    row = regret_exact(at, radius=[0.1], max_steps=2)["radius=0.1"]
    assert row.status == ["not_converged"] * 2
    assert row.residual is not None
    assert (row.residual > 1e-8).all()
    single = Point(at.theta.float(), at.train.to(torch.float32), at.test.to(torch.float32))
    double = Point(single.theta.double(), at.train, at.test)
    a, b = (regret_exact(p, radius=[1e-5], minibatch_size=5)["radius=1e-05"] for p in (single, double))
    assert a.value.tolist() == pytest.approx(b.value.tolist(), rel=1e-6)  # 1e-5 of theta is lost in float32


def test_regret_is_undefined_without_two_minibatches() -> None:
    at = trained("relu")
    found = regret_exact(at, radius=[1e-2], minibatch_size=41)
    row = found if isinstance(found, Estimate) else found["radius=0.01"]
    assert row.status == ["undefined"] * 2
    assert row.value.isnan().all()


# ---- the other half of the picture: the scatter of minima


@pytest.mark.parametrize("net", ["relu", "tanh", "conv1d", "residual"])
@pytest.mark.parametrize("cutoff", [1e-3, 0.1])
def test_minima_scatter_against_dense_eigenvalues(net: str, cutoff: float) -> None:
    found = minima_scatter(point(net), cutoff=cutoff)
    for k in range(K):
        own = oracle(net, k)
        values, V = torch.linalg.eigh(own.H)
        c = (own.g - own.g.mean(0)) @ V
        kept = values >= cutoff * values[-1]
        due = float((c.square().mean(0)[kept] / values[kept]).sum())
        assert float(found.value[k]) == pytest.approx(due, rel=1e-6)
    assert found.status == ["ok"] * K


@pytest.mark.parametrize("net", ["relu", "tanh"])
def test_lanczos_finds_the_scatter_that_the_dense_hessian_has(net: str, monkeypatch: pytest.MonkeyPatch) -> None:
    due = scatter.minima_scatter(point(net), cutoff=1e-3).value
    monkeypatch.setattr(scatter, "DENSE", 0)
    found = scatter.minima_scatter(point(net), cutoff=1e-3)
    assert found.status == ["ok"] * K
    assert_close(found.value, due, rtol=1e-6, atol=0)
    few = scatter.minima_scatter(point(net), cutoff=1e-3, max_steps=5)
    assert few.status == ["not_converged"] * K
    assert (few.value < due).all()
    at = point(net)
    for k in range(K):
        alone = Point(at.theta[k : k + 1], at.train.alone(k), at.test.alone(k))
        assert_close(scatter.minima_scatter(alone, cutoff=1e-3).value, found.value[k : k + 1], rtol=1e-10, atol=0)


@pytest.mark.parametrize("net", ["tanh", "layernorm"])
def test_the_ball_of_predictions_is_round_in_its_coordinates(net: str) -> None:
    """KL(step(w)) = |w|^2, and the slope that is handed back is that of differences."""
    at, x = point(net), data(net)[0]
    one, theta = at.train.alone(0), at.theta[:1]
    way, module = regret_module._by_divergence(one, theta), modules(net)[0]
    w = torch.randn(2, way.size, generator=torch.Generator().manual_seed(3), dtype=f64)
    w = w * 5e-4 * torch.tensor([[1.0], [0.1]]) / w.norm(dim=1, keepdim=True)
    there, defined, back = way.step(w)
    assert defined.all()
    log_p, log_q = (torch.log_softmax(plain_logits(module, x)(t), 1) for t in (there[0], theta[0]))
    divergence = ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(1).mean()
    assert float(divergence) == pytest.approx(float(w[0].square().sum()), rel=1e-6)

    def loss(v: Tensor) -> Tensor:
        return one.rows(torch.zeros(2, dtype=torch.long)).loss(way.step(v)[0])

    slope = back(one.rows(torch.zeros(2, dtype=torch.long)).loss_and_gradient(there)[1])
    for seed in range(3):
        e = torch.randn(2, way.size, generator=torch.Generator().manual_seed(seed), dtype=f64)
        e = 1e-3 * w.norm(dim=1, keepdim=True) * e / e.norm(dim=1, keepdim=True)
        assert_close((loss(w + e) - loss(w - e)) / 2, (slope * e).sum(1), rtol=1e-4, atol=1e-13)
    along = 1e-3 * w  # along the ray the stretch matters most
    assert_close((loss(w + along) - loss(w - along)) / 2, (slope * along).sum(1), rtol=1e-4, atol=1e-13)
