"""Trace, norm and density of the Hessian against dense twins, known spectra and the packages people compare with."""

from __future__ import annotations

import warnings
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from helpers import CASES, K, Quadratic, at_of, data, modules, oracle, plain_logits, point, same, symmetric, vector
from scipy.sparse.linalg import eigsh
from spectrum_cases import (
    NETS,
    Kronecker,
    P,
    honest,
    like_a_hessian,
    matrix_free,
    one,
    quadratic,
    rows,
)
from torch import Tensor, nn
from torch.testing import assert_close

from landscape_cli.metrics.point import Estimate

f64 = torch.float64


# ---- traces and norms


@pytest.mark.parametrize("net", NETS)
def test_trace_and_norm_of_dense_matrices(net: str) -> None:
    at, own = point(net), [oracle(net, k) for k in range(K)]
    same(one("ggn_trace", at), [float(o.F.trace()) for o in own], 1e-9)
    norm = one("hessian_frobenius", at)
    same(norm, [float(o.H.square().sum().sqrt()) for o in own], 1e-9)
    assert one("ggn_trace", at).standard_error.tolist() == norm.standard_error.tolist() == [0.0] * K
    whole = one("hessian_trace", at)
    for k in range(K):
        due, error = float(own[k].H.trace()), float(whole.standard_error[k])
        assert abs(float(whole.value[k]) - due) <= max(1e-9 * abs(due), 3.5 * error)
        assert error == 0 or not CASES[net].piecewise
        assert error < 0.2 * abs(due)


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("net", NETS)
def test_the_trace_of_each_tensor(net: str) -> None:
    at = point(net)
    found = rows("hessian_trace", at, blocks="layer", probes=100)
    columns = at.train.columns
    assert list(found) == [f"block={name}" for name in columns]
    last = [name for name in columns if name.startswith({"residual": "fc", "conv1d": "7"}.get(net, "?"))]
    for k in range(K):
        for name, own in columns.items():
            row, o = found[f"block={name}"], oracle(net, k)
            due, error = float(o.H[own, own].trace()), float(row.standard_error[k])
            if CASES[net].piecewise or name in last:
                assert float(o.F[own, own].trace()) == pytest.approx(due, rel=1e-9, abs=1e-14)
            assert abs(float(row.value[k]) - due) <= max(1e-9 * abs(due) + 1e-14, 4 * error), name
            assert error == 0 or not CASES[net].piecewise
            assert row.status[k] == "ok"
    total = torch.stack([row.value for row in found.values()]).sum(0)
    if CASES[net].piecewise:
        assert_close(total, one("hessian_trace", at).value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("net", ["tanh", "layernorm"])
def test_standard_errors_of_the_trace_are_honest(net: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole and each tensor; those whose own block of H is that of F have little error or none."""
    matrix_free(monkeypatch)
    at, seeds = point(net), 60
    due = torch.stack([oracle(net, k).H.trace() for k in range(K)])
    runs = [one("hessian_trace", at, probes=60, seed=s) for s in range(seeds)]
    honest(runs, due, "whole")
    blocks = [rows("hessian_trace", at, blocks="layer", probes=60, seed=s) for s in range(seeds)]
    each, truth = [], []
    for name, own in at.train.columns.items():
        due = torch.stack([oracle(net, k).H[own, own].trace() for k in range(K)])
        mine = [b[f"block={name}"] for b in blocks]
        if float(mine[0].standard_error.max()) > 1e-9 * float(due.abs().max()):
            each, truth = [*each, mine], [*truth, due]
        else:
            assert_close(mine[0].value, due, rtol=1e-8, atol=1e-12)
    assert len(each) > 1
    joined = [
        torch.stack([torch.cat([r.value for r in run]), torch.cat([r.standard_error for r in run])])
        for run in zip(*each, strict=True)
    ]
    honest([Estimate(*both) for both in joined], torch.cat(truth), "tensors")


def test_standard_error_of_the_norm_is_honest(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix_free(monkeypatch)
    spectra = torch.stack([like_a_hessian(420, 4.0, 3.0, width=1.0), like_a_hessian(420, width=1.0)])
    at = Kronecker(spectra, seed=2).point()
    runs = [one("hessian_frobenius", at, probes=72, seed=s) for s in range(80)]
    honest(runs, spectra.square().sum(1).sqrt(), "frobenius")
    few, many = (one("hessian_frobenius", at, probes=n).standard_error for n in (24, 384))
    assert (many < few / 2).all()  # a factor of four is due


def test_norm_and_trace_grow_as_the_hessian_does() -> None:
    """No sign is lost: |H|_F of -H is that of H; of c H it is c times as much."""
    H = torch.stack([symmetric(torch.linspace(-1, 2, 40), 1) * c for c in (1.0, -1.0, 100.0)])
    found = one("hessian_frobenius", Quadratic(H, torch.zeros(3, 40, dtype=f64)).point()).value
    size = float(H[0].norm())
    assert found.tolist() == pytest.approx([size, size, 100 * size], rel=1e-9)


def test_softmax_regression_with_many_classes_in_closed_form() -> None:
    """H = F = mean S x (x, 1)(x, 1)^T: tr = mean (|x|^2 + 1)(1 - |p|^2), and theta^T F theta = mean f^T S f."""
    classes, n = 100, 30
    rng = torch.Generator().manual_seed(0)
    module = nn.Sequential(nn.Linear(4, classes)).double()
    for t in module.parameters():
        t.data = torch.randn(t.shape, generator=rng, dtype=f64)
    x, y = torch.randn(n, 4, generator=rng, dtype=f64), torch.randint(0, classes, (n,), generator=rng)
    at, f = at_of([module], x, y), module(x).detach()
    p, length = torch.softmax(f, 1), x.square().sum(1)
    due = float(((length + 1) * (1 - p.square().sum(1))).mean())
    same(one("ggn_trace", at), [due], 1e-10)
    same(one("hessian_trace", at), [due], 1e-10)
    blocks = rows("hessian_trace", at, blocks="layer")
    same(blocks["block=0.weight"], [float((length * (1 - p.square().sum(1))).mean())], 1e-10)
    same(blocks["block=0.bias"], [float((1 - p.square().sum(1)).mean())], 1e-10)
    same(one("fisher_rao", at), [float(((p * f**2).sum(1) - (p * f).sum(1) ** 2).mean())], 1e-10)
    S = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    a = torch.cat([x, torch.ones(n, 1, dtype=f64)], 1)
    H = torch.einsum("nst,na,nb->satb", S, a, a).reshape(500, 500) / n
    e = torch.linalg.eigvalsh(H)
    same(one("hessian_frobenius", at), [float(H.norm())], 1e-9)
    for name in ("hessian_top", "ggn_top"):
        same(one(name, at, tolerance=1e-7), [float(e[-1])], 1e-8)
    W = module[0].weight.detach()
    same(one("relative_flatness", at), [float((length * torch.einsum("sm,nst,tm->n", W, S, W)).mean())], 1e-9)


# ---- a net above the size of dense matrices


@cache
def large() -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A tanh net of 2,165 parameters, its samples, and its Hessian row by row."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        module = nn.Sequential(nn.Linear(20, 80), nn.Tanh(), nn.Linear(80, 6)).double()
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(20, 20, generator=rng, dtype=f64), torch.randint(0, 6, (20,), generator=rng)

    def loss(t: Tensor) -> Tensor:
        return F.cross_entropy(plain_logits(module, x)(t), y)

    H = torch.func.jacrev(torch.func.grad(loss), chunk_size=240)(vector(module))
    return module, x, y, ((H + H.T) / 2).detach()


def test_a_net_above_the_size_of_dense_matrices() -> None:
    module, x, y, H = large()
    assert len(H) > 2000
    at, e = at_of([module], x, y), torch.linalg.eigvalsh(H)
    for name, due in [("hessian_top", e[-1]), ("hessian_bottom", e[0])]:
        found = one(name, at, tolerance=1e-6)
        assert found.status == ["ok"]
        assert float(found.value) == pytest.approx(float(due), rel=1e-6)
    norm, trace = one("hessian_frobenius", at), one("hessian_trace", at)
    for found, truth in [(norm, H.norm()), (trace, H.trace())]:
        assert 0 < float(found.standard_error) < 0.2 * float(truth)
        assert abs(float(found.value) - float(truth)) < 3.5 * float(found.standard_error)
    density = rows("spectral_density", at, steps=40)
    due = {"mean": e.mean(), "variance": e.var(correction=0)}
    for name, truth in due.items():
        row = density[f"moment={name}"]
        assert abs(float(row.value) - float(truth)) < 3.5 * float(row.standard_error), name


# ---- the density


def table(found: dict[str, Estimate]) -> tuple[Tensor, Tensor, Tensor]:
    """The columns of the one table there is, (K, points) each."""
    (own,) = (row.table for row in found.values() if row.table)
    return own["eigenvalue"], own["density"], own["standard_error"]


def integrals(grid: Tensor, density: Tensor) -> Tensor:
    """Mass, mean and variance of each density (K, 3)."""
    mass = torch.trapezoid(density, grid)
    mean = torch.trapezoid(density * grid, grid) / mass
    square = torch.trapezoid(density * (grid - mean[:, None]) ** 2, grid) / mass
    return torch.stack([mass, mean, square], 1)


@pytest.mark.parametrize("net", NETS)
def test_moments_and_density_of_small_nets(net: str) -> None:
    at = point(net)
    found = rows("spectral_density", at)
    e = torch.stack([torch.linalg.eigvalsh(oracle(net, k).H) for k in range(K)])
    floor = 0.01 * e.abs().max(1, keepdim=True).values  # nearer to zero it tells no signs
    due = {
        "moment=mean": e.mean(1),
        "moment=variance": e.var(1, correction=0),
        "negative=mass": (e < -floor).double().mean(1),
    }
    assert list(found) == list(due)
    for name, value in due.items():
        row = found[name]
        assert row.status == ["ok"] * K
        exact = row.standard_error == 0
        off = (row.value - value).abs()
        assert (off <= torch.where(exact, 1e-9 * value.abs() + 1e-12, 4 * row.standard_error)).all(), name
    grid, density, error = table(found)
    assert grid.shape == density.shape == error.shape == (K, 500)
    assert (density >= 0).all()
    assert (error >= 0).all()
    assert (grid.diff(dim=1) > 0).all()
    own = integrals(grid, density)
    assert_close(own[:, 0], torch.ones(K, dtype=f64), rtol=0, atol=0.01)
    assert ((own[:, 1] - due["moment=mean"]).abs() < 0.05 * e.abs().max(1).values).all()


def test_eigenvalues_of_zero_are_not_negative() -> None:
    """Most directions of a net are flat: rounding must not make half of them negative curvature."""
    e = torch.cat([torch.tensor([3.0, 1.0, -0.5, -0.2], dtype=f64), torch.zeros(96, dtype=f64)])
    mass = rows("spectral_density", quadratic(e, e.abs()))["negative=mass"]
    off = (mass.value - torch.tensor([0.02, 0.0], dtype=f64)).abs()
    assert (off <= 4 * mass.standard_error + 1e-9).all(), mass.value


OUTLIERS = torch.stack([like_a_hessian(P, 10.0, width=1.0), like_a_hessian(P, 12.0, 8.0, -2.0, width=0.6)])


def test_a_large_known_spectrum_by_quadrature() -> None:
    found = rows("spectral_density", Kronecker(OUTLIERS).point(), probes=16, steps=60)
    e = OUTLIERS
    due = {
        "moment=mean": e.mean(1),
        "moment=variance": e.var(1, correction=0),
        "negative=mass": (e < -0.01 * e.abs().max(1, keepdim=True).values).double().mean(1),
    }
    for name, value in due.items():
        row = found[name]
        assert (row.standard_error > 0).all(), name
        slack = 0.02 * (name == "negative=mass")  # a node of the rule stands for a stretch of the spectrum
        assert ((row.value - value).abs() < 3.5 * row.standard_error + slack).all(), (name, row.value, value)
    assert (found["moment=mean"].standard_error < 0.1).all()
    grid, density, _ = table(found)
    own = integrals(grid, density)
    assert_close(own[:, 0], torch.ones(2, dtype=f64), rtol=0, atol=0.01)
    assert_close(own[:, 1], found["moment=mean"].value, rtol=0.01, atol=1e-4)
    width = 0.01 * (e.max(1).values - e.min(1).values)  # the kernel's own variance is added to that of the spectrum
    assert_close(own[:, 2], found["moment=variance"].value + width**2, rtol=0.01, atol=0)


def first_row_and_whole(e: Tensor, steps: int, seed: int) -> tuple[Tensor, Tensor]:
    """Mean and second moment by textbook Lanczos, with the first row of the eigenvectors and with all of them."""
    v = torch.randn(len(e), generator=torch.Generator().manual_seed(seed), dtype=f64)
    Q = [v / v.norm()]
    T = torch.zeros(steps, steps, dtype=f64)
    for j in range(steps):
        w = e * Q[j]
        T[j, j] = w @ Q[j]
        for _ in range(2):
            for q in Q:
                w = w - (w @ q) * q
        if j + 1 < steps:
            T[j, j + 1] = T[j + 1, j] = w.norm()
            Q.append(w / w.norm())
    t, U = torch.linalg.eigh(T)
    powers = torch.stack([t, t**2])
    return powers @ U[0] ** 2, powers @ (U**2).mean(0)


def test_weights_are_the_squared_first_row() -> None:
    """An outlier weighs 1/p; were all rows of the eigenvectors squared and averaged, it would weigh 1/steps."""
    e, steps = OUTLIERS[0], 30
    mean, square = float(e.mean()), float((e**2).mean())
    right, wrong = first_row_and_whole(e, steps, 0)
    assert abs(float(right[1]) - square) < 0.3
    assert float(wrong[1]) > 10 * square  # teeth: what the other weights would give
    found = rows("spectral_density", Kronecker(OUTLIERS[:1]).point(), probes=8, steps=steps)
    variance = float(found["moment=variance"].value)
    assert abs(variance - (square - mean**2)) < 0.1
    grid, density, _ = table(found)
    far = grid[0] > 5
    outlier = float(torch.trapezoid(density[0][far], grid[0][far]))
    assert 0.2 / P < outlier < 3 / P < 0.2 / steps


def test_standard_errors_of_the_moments_are_honest(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix_free(monkeypatch)
    e = torch.stack([like_a_hessian(420, 4.0, width=1.0), like_a_hessian(420, 3.0, 2.0, -2.0, width=0.6)])
    due = {"moment=mean": e.mean(1), "moment=variance": e.var(1, correction=0)}
    at, probes = Kronecker(e, seed=1).point(), 48
    runs = [rows("spectral_density", at, probes=probes, steps=3, points=100, seed=s) for s in range(50)]
    for name, truth in due.items():
        honest([r[name] for r in runs], truth, name)
    exact = (2 / (420 + 2) * due["moment=variance"] / probes).sqrt()  # variance of v^T H v for unit v
    error = torch.stack([r["moment=mean"].standard_error for r in runs]).mean(0)
    assert_close(error, exact, rtol=0.15, atol=0)


def test_many_steps_on_few_distinct_eigenvalues() -> None:
    """Three values, two thousand times: the Krylov space closes after three steps."""
    e = torch.tensor([2.0, 1.0, -1.0], dtype=f64).repeat_interleave(P // 3)
    found = rows("spectral_density", Kronecker(e[None]).point(), probes=4, steps=40)
    for name, due in [("moment=mean", 2 / 3), ("moment=variance", 14 / 9), ("negative=mass", 1 / 3)]:
        assert float(found[name].value) == pytest.approx(due, abs=4 * float(found[name].standard_error) + 1e-9), name
    assert all(row.value.isfinite().all() for row in found.values())
    zero = rows("spectral_density", Kronecker(torch.zeros(1, P, dtype=f64)).point(), probes=2, steps=5)
    assert all(not row.value.isinf().any() for row in zero.values())
    assert float(zero["negative=mass"].value.nan_to_num(0)) == 0


def test_a_minimum_alone_has_the_density_that_it_has_in_a_stack() -> None:
    both = rows("spectral_density", Kronecker(OUTLIERS).point(), probes=3, steps=10)
    alone = rows("spectral_density", Kronecker(OUTLIERS[1:]).point(), probes=3, steps=10)
    for name, row in alone.items():
        assert_close(row.value[0], both[name].value[1], rtol=1e-8, atol=1e-12)
    for a, b in zip(table(alone), table(both), strict=True):
        assert_close(a[0], b[1], rtol=1e-6, atol=1e-9)


# ---- peers on the same net and data


@pytest.mark.parametrize("net", ["tanh", "residual"])
def test_curvlinops_and_eigsh_agree(net: str) -> None:
    module, (x, y), at = modules(net)[0], data(net), point(net)
    params = [p.requires_grad_() for p in module.parameters()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from curvlinops import EFLinearOperator, GGNLinearOperator, HessianLinearOperator

        given = module, nn.CrossEntropyLoss(), params, [(x, y)]
        H, G, E = (
            kind(*given, check_deterministic=False)
            for kind in (HessianLinearOperator, GGNLinearOperator, EFLinearOperator)
        )
        eye = torch.eye(H.shape[1], dtype=f64)
        h, g, e = ((A @ eye).detach() for A in (H, G, E))
        ends = eigsh(H.to_scipy(), k=2, which="BE", return_eigenvectors=False, tol=1e-12)
        top = eigsh(G.to_scipy(), k=1, which="LA", return_eigenvectors=False, tol=1e-12)
    theta, tight = vector(module), {"tolerance": 1e-7}
    for name, due, settings in [
        ("hessian_bottom", ends.min(), tight),
        ("hessian_top", ends.max(), tight),
        ("convexity_ratio", abs(ends.min() / ends.max()), tight),
        ("ggn_top", top[0], tight),
        ("ggn_trace", g.trace(), {}),
        ("hessian_frobenius", h.norm(), {}),
        ("fisher_rao", theta @ g @ theta, {}),
        ("fisher_rao_empirical", theta @ e @ theta, {}),
    ]:
        assert float(one(name, at, **settings).value[0]) == pytest.approx(float(due), rel=1e-7), name
    density = rows("spectral_density", at)
    for row, due in [("mean", h.trace() / len(h)), ("variance", (h.norm() ** 2 / len(h) - (h.trace() / len(h)) ** 2))]:
        found = density[f"moment={row}"]
        slack = 3.5 * float(found.standard_error[0])
        assert float(found.value[0]) == pytest.approx(float(due), rel=1e-8, abs=slack), row


def eig_of_old(T: Tensor, eigenvectors: bool) -> tuple[Tensor, Tensor]:
    """What `torch.eig`, which PyHessian calls and PyTorch has dropped, gave for a symmetric matrix."""
    e, V = torch.linalg.eigh(T)
    return e[:, None], V


@pytest.mark.parametrize("net", ["tanh", "residual"])
def test_pyhessian_agrees(net: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its two largest in absolute value by power iteration, and the moments of its density."""
    monkeypatch.setattr(torch, "eig", eig_of_old, raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pyhessian import hessian

        module, (x, y) = modules(net)[0].float(), data(net)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            peer = hessian(module, nn.CrossEntropyLoss(), data=(x.float(), y), cuda=False)
            largest = peer.eigenvalues(maxIter=300, tol=1e-7, top_n=2)[0]
            values, weights = (torch.tensor(t).double() for t in peer.density(iter=8, n_v=16))
    at, e = point(net), torch.linalg.eigvalsh(oracle(net).H)
    ours = [float(row.value[0]) for row in rows("hessian_top", at, k=2).values()]
    assert e[0].abs() < 0.99 * e[-2]  # the two largest in absolute value are the two on top
    assert ours == pytest.approx(largest, rel=2e-3)
    density = rows("spectral_density", at)
    each, squares = (weights * values).sum(1), (weights * values**2).sum(1)
    mean, variance = density["moment=mean"], density["moment=variance"]
    scatter = each.std() / len(each) ** 0.5
    assert abs(float(mean.value[0] - each.mean())) < 4 * float(scatter + mean.standard_error[0])
    theirs = float(squares.mean() - each.mean() ** 2)
    scatter = squares.std() / len(each) ** 0.5
    assert abs(float(variance.value[0]) - theirs) < 4 * float(scatter + variance.standard_error[0])
