"""Eigenvalues and their density: dense twins, known spectra, and spectra that are unkind."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers import CASES, K, Quadratic, at_of, oracle, point, symmetric
from spectrum_cases import NETS, like_a_hessian, matrix_free, one, quadratic, rows
from torch import nn
from torch.testing import assert_close

from landscape_cli.metrics.point import Point
from landscape_cli.registry import load_plugins

load_plugins([])
f64 = torch.float64


# ---- dense twins


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("net", NETS)
def test_the_ends_of_the_spectrum_of_the_dense_hessian(net: str) -> None:
    at, tight = point(net), {"tolerance": 1e-7, "max_steps": 300}
    e = torch.stack([torch.linalg.eigvalsh(oracle(net, k).H) for k in range(K)])
    f = torch.stack([torch.linalg.eigvalsh(oracle(net, k).F) for k in range(K)])
    largest = e.abs().max(1).values
    for name, due, scale in [
        ("hessian_top", e[:, -1], largest),
        ("hessian_bottom", e[:, 0], largest),
        ("ggn_top", f[:, -1], f[:, -1]),
        ("convexity_ratio", (e[:, 0] / e[:, -1]).abs(), largest / e[:, -1]),
    ]:
        for seed in (0, 1) if net in ("tanh", "conv1d") else (2,):
            found = one(name, at, seed=seed, **tight)
            assert found.status == ["ok"] * K, (name, found.message)
            assert (found.standard_error == 0).all()
            assert ((found.value - due).abs() <= 1e-8 * scale).all(), (name, found.value, due)
            loose = one(name, at, seed=seed)
            assert ((loose.value - due).abs() <= 1e-3 * scale).all(), name
            assert loose.status == ["ok"] * K


@pytest.mark.parametrize("net", NETS)
def test_each_tensors_own_block(net: str) -> None:
    at = point(net)
    found = rows("hessian_top", at, blocks="layer", tolerance=1e-7)
    columns = at.train.columns
    assert list(found) == [f"block={name}" for name in columns]
    for k in range(K):
        H = oracle(net, k).H
        whole = float(torch.linalg.eigvalsh(H)[-1])
        for name, own in columns.items():
            due = float(torch.linalg.eigvalsh(H[own, own])[-1])
            row = found[f"block={name}"]
            assert due <= whole * (1 + 1e-12)  # interlacing
            if due <= 1e-12 * whole:  # a tensor that nothing reads
                assert row.status[k] == "undefined"
                continue
            assert float(row.value[k]) == pytest.approx(due, rel=1e-7), name
            assert row.status[k] == "ok"
    if CASES[net].piecewise:  # the logits are affine in each single tensor: its block of H is that of F
        own = next(iter(columns.values()))
        fisher = float(torch.linalg.eigvalsh(oracle(net).F[own, own])[-1])
        assert float(next(iter(found.values())).value[0]) == pytest.approx(fisher, rel=1e-7)


@pytest.mark.parametrize("net", ["tanh", "residual"])
def test_eigenvectors_are_those_of_the_dense_hessian(net: str) -> None:
    at = point(net)
    found = rows("hessian_top", at, k=3, tolerance=1e-7, vectors=True)
    first = found["rank=1"].vectors
    stacked = torch.cat([row.vectors for row in found.values() if row.vectors is not None], 1)
    assert first is not None
    v = first if first.shape[1] == 3 else stacked
    assert v.shape == (K, 3, at.theta.shape[1])
    assert_close(v @ v.mT, torch.eye(3, dtype=f64).expand(K, -1, -1), rtol=0, atol=1e-9)
    for k in range(K):
        own, e = oracle(net, k).H, [float(row.value[k]) for row in found.values()]
        for j in range(3):
            assert float((own @ v[k, j] - e[j] * v[k, j]).norm()) < 1e-6 * e[0]
    single = one("hessian_top", at, tolerance=1e-7, vectors=True)
    assert single.vectors is not None
    assert single.vectors.shape == (K, 1, at.theta.shape[1])
    assert_close((single.vectors[:, 0] * v[:, 0]).sum(1).abs(), torch.ones(K, dtype=f64))
    assert one("hessian_top", at).vectors is None


# ---- spectra that are unkind


def test_two_top_eigenvalues_a_thousandth_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Right to six digits, or not converged; with k = 2 both, each once."""
    matrix_free(monkeypatch)
    at = quadratic(like_a_hessian(200, 1.001, 1.0, 0.5), like_a_hessian(200, 1.001, 1.0, 0.999, 0.998))
    truth = torch.tensor([[1.001, 1.0], [1.001, 1.0]], dtype=f64)
    for seed in range(8):
        found = one("hessian_top", at, tolerance=1e-6, seed=seed)
        for k in range(2):
            right = abs(float(found.value[k]) - 1.001) < 1.001e-6
            assert right or found.status[k] == "not_converged"
        two = rows("hessian_top", at, k=2, tolerance=1e-6, seed=seed)
        for j, row in enumerate(two.values()):
            for k in range(2):
                right = abs(float(row.value[k]) - float(truth[k, j])) < 1.001e-6
                assert right or row.status[k] == "not_converged", (seed, j, k, row.value)
        early = one("hessian_top", at, tolerance=1e-6, max_steps=4, seed=seed)  # too soon to tell them apart
        assert early.status == ["not_converged"] * 2


@pytest.mark.parametrize(
    "outliers", [(5.0, 5.0, 1.0), (5.0, 5.0, 5.0), (5.0,) * 5, (5.0, 2.0, 2.0), (5.0, 5.0, 5.0, 4.9, 4.9)]
)
def test_a_repeated_eigenvalue_gives_its_copies(outliers: tuple[float, ...]) -> None:
    at = quadratic(like_a_hessian(150, *outliers), like_a_hessian(150, 3.0, 2.0, 1.0))
    for seed in range(4):
        found = rows("hessian_top", at, k=3, tolerance=1e-6, seed=seed)
        value = torch.stack([row.value for row in found.values()], 1)
        due = torch.tensor([outliers[:3], (3.0, 2.0, 1.0)], dtype=f64)
        assert_close(value, due, rtol=1e-6, atol=0)
        assert all(row.status == ["ok"] * 2 for row in found.values())


SPECTRA = {
    "a Hessian's": like_a_hessian(300, 10.0, 7.0, 5.0, 2.0, 1.5),
    "one below the other": like_a_hessian(300, 1.0, 0.97, 0.3),
    "rank 2": torch.cat([torch.tensor([1.0, 0.7], dtype=f64), torch.zeros(298, dtype=f64)]),
    "negative outliers": like_a_hessian(300, 1.0, 0.7, -3.0, -2.0, width=0.01),
}
STARTS = {"a Hessian's": 200, "one below the other": 200, "rank 2": 60, "negative outliers": 60}


@pytest.mark.parametrize("name", SPECTRA)
def test_no_start_gives_the_second_eigenvalue(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix_free(monkeypatch)
    e = SPECTRA[name]
    at = quadratic(e)
    first = float(e.max())
    for seed in range(STARTS[name]):
        found = one("hessian_top", at, seed=seed)
        assert abs(float(found.value) / first - 1) < 1e-3, seed
        assert found.status == ["ok"]


def test_the_bottom_is_found_from_all_starts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix_free(monkeypatch)
    e = torch.cat([-like_a_hessian(150, 1.0, 0.7, width=0.02), torch.tensor([20.0, 5.0], dtype=f64)])
    at = quadratic(e)
    for seed in range(60):
        found = one("hessian_bottom", at, seed=seed)
        assert abs(float(found.value) + 1) < 1e-3 * 20  # relative to the largest eigenvalue: to 2 %
        ratio = one("convexity_ratio", at, seed=seed)
        assert abs(float(ratio.value) - 1 / 20) < 1e-3
        tight = one("hessian_bottom", at, seed=seed, tolerance=1e-6)
        assert float(tight.value) == pytest.approx(-1, rel=1e-6)


@pytest.mark.usefixtures("both_ways")
def test_definite_hessians_and_none_at_all() -> None:
    up, zero = torch.arange(1.0, 31), torch.zeros(30)
    at = quadratic(up, -up, zero, -torch.ones(30))
    top, bottom = one("hessian_top", at, tolerance=1e-6), one("hessian_bottom", at, tolerance=1e-6)
    assert top.status == ["ok", "undefined", "undefined", "undefined"]
    assert float(top.value[0]) == pytest.approx(30, rel=1e-8)
    assert bottom.status[:2] == ["ok", "ok"]
    assert bottom.value[:2].tolist() == pytest.approx([1, -30], abs=3e-5)
    assert float(bottom.value[3]) == pytest.approx(-1, rel=1e-9)
    assert bottom.status[2] == "undefined" or float(bottom.value[2]) == 0
    ratio = one("convexity_ratio", at, tolerance=1e-6)
    assert ratio.status == top.status
    assert float(ratio.value[0]) == pytest.approx(1 / 30, abs=1e-6)
    assert all(ratio.message[1:])
    for k, row in enumerate(rows("hessian_top", at, k=2).values()):
        assert row.status[1:] == ["undefined"] * 3
        assert float(row.value[0]) == pytest.approx(30 - k, rel=1e-3)


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("p", [1, 2, 5])
def test_fewer_parameters_than_steps(p: int) -> None:
    at = quadratic(torch.linspace(1, p, p) - 1.5)
    e = torch.linspace(1, p, p, dtype=f64) - 1.5
    if p == 1:
        assert one("hessian_top", at).status == ["undefined"]
    else:
        assert float(one("hessian_top", at).value) == pytest.approx(float(e[-1]), rel=1e-9)
        assert float(one("convexity_ratio", at).value) == pytest.approx(0.5 / (p - 1.5), rel=1e-9)
    bottom = one("hessian_bottom", at)
    assert float(bottom.value) == pytest.approx(-0.5, rel=1e-9)
    assert bottom.status == ["ok"]
    three = rows("hessian_top", at, k=3)
    for k, row in enumerate(three.values()):
        left = float(e[-1 - k]) if k < p else -1.0
        if left > 0:
            assert float(row.value) == pytest.approx(left, rel=1e-9)
        else:  # no such eigenvalue, or none that is positive
            assert row.status == ["undefined"] or float(row.value) == pytest.approx(left, rel=1e-9)


def test_more_eigenvalues_than_parameters_and_no_nonsense() -> None:
    found = list(rows("hessian_top", quadratic(torch.tensor([3.0, 2.0])), k=4).values())
    assert [float(row.value) for row in found[:2]] == pytest.approx([3, 2], rel=1e-9)
    assert [row.status for row in found] == [["ok"]] * 2 + [["undefined"]] * (len(found) - 2)


def test_too_few_steps_are_said_and_the_value_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix_free(monkeypatch)
    at = quadratic(torch.linspace(-1, 1, 200))
    for name in ("hessian_bottom", "convexity_ratio"):
        found = one(name, at, max_steps=5)
        assert found.status == ["not_converged"], name
        assert "max_steps" in found.message[0]
        assert found.value.isfinite()


@pytest.mark.usefixtures("both_ways")
def test_float32() -> None:
    for net in ("tanh", "conv1d"):
        at = point(net)
        single = Point(at.theta.float(), at.train.to(torch.float32), at.test.to(torch.float32))
        for name in ("hessian_top", "hessian_bottom", "convexity_ratio", "ggn_top"):
            a, b = one(name, single), one(name, at, tolerance=1e-6)
            assert a.value.dtype == f64
            assert a.status == ["ok"] * K, (name, a.message)
            scale = 1.0 if name == "convexity_ratio" else oracle(net).H.norm()
            assert ((a.value - b.value).abs() < 2e-3 * scale).all(), name
        a, b = (rows("spectral_density", own, steps=10) for own in (single, at))
        for row in ("moment=mean", "moment=variance"):
            assert_close(a[row].value, b[row].value, rtol=1e-3, atol=1e-6)


def test_global_scaling_keeps_the_convexity_ratio() -> None:
    """L(theta / c) has the Hessian H / c^2."""
    H = symmetric(like_a_hessian(60, 4.0, 1.0, -0.5), 3)
    at = Quadratic(torch.stack([H / c**2 for c in (1.0, 10.0, 0.01)]), torch.zeros(3, 60, dtype=f64)).point()
    found = one("convexity_ratio", at, tolerance=1e-9)
    assert found.value.tolist() == pytest.approx([0.125] * 3, rel=1e-8)
    top = one("hessian_top", at).value
    assert float(top[2] / top[1]) == pytest.approx(1e6, rel=1e-3)


# ---- memory


def left_behind(step: Callable[[], object], times: int) -> int:
    """Bytes of tensors that `times` calls took and did not give back, by PyTorch's own account."""
    step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as account:
        for _ in range(times):
            step()
    return sum(event.self_cpu_memory_usage for event in account.key_averages())


def resident() -> int:
    """Bytes of this process that are in memory; 0 where Linux does not tell."""
    account = Path("/proc/self/statm")
    return int(account.read_text().split()[1]) * 4096 if account.exists() else 0


def test_memory_is_flat_over_500_products() -> None:
    """Nothing stays of a product; what it needs, 0.3 MB of activations at the least, would add up to 150 MB."""
    module = nn.Sequential(nn.Linear(8, 128), nn.Tanh(), nn.Linear(128, 4)).double()
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(300, 8, generator=rng, dtype=f64), torch.randint(0, 4, (300,), generator=rng)
    at = at_of([module], x, y)
    v = torch.randn(at.theta.shape, generator=rng, dtype=f64)
    for kind in ("hessian_product", "fisher_product"):
        product = getattr(at.train, kind)(at.theta)
        assert left_behind(lambda product=product: product(v), 10) == 0, kind
        before = resident()
        for _ in range(500):
            product(v)
        assert resident() - before < 30e6, kind
    with warnings.catch_warnings():  # teeth: the way that leaves a cycle of graph and gradient with each call
        warnings.simplefilter("ignore")
        grown = left_behind(lambda: F.cross_entropy(module(x), y).backward(create_graph=True), 10)
    for p in module.parameters():
        p.grad = None
    assert grown > 10 * 300 * 128 * 8
