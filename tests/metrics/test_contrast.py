"""Contrasts of curvature against dense Hessians and Fisher informations of single samples."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from functools import cache
from itertools import combinations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import CASES, K, N, at_of, data, modules, oracle, plain_logits, point, vector
from scipy.optimize import minimize
from torch import Tensor, nn
from torch.linalg import eigvalsh
from torch.testing import assert_close

from landscape_cli.metrics import contrast
from landscape_cli.metrics.hessian import hessian_trace
from landscape_cli.metrics.point import Point

f64 = torch.float64
BLOCKS = ["none", "layer", "kernel"]
LEFT = {("residual", "none"), ("twice", "kernel")}  # slow; a block at 1e-20 of the largest
NETS = ["relu", "tanh", "conv1d", "residual"]


@cache
def hessians(name: str, k: int = 0, n: int = N) -> Tensor:
    return dense_hessians(modules(name)[k], *data(name, n))


def dense_hessians(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Of every sample by plain autograd (n, p, p)."""
    found = []
    for i in range(len(y)):
        logits = plain_logits(module, x[i : i + 1])

        def loss(t: Tensor, logits: Callable[[Tensor], Tensor] = logits, i: int = i) -> Tensor:
            return F.cross_entropy(logits(t), y[i : i + 1])

        found.append(torch.func.jacrev(torch.func.grad(loss))(vector(module)))
    return torch.stack(found)


@cache
def fishers(name: str, k: int = 0, empirical: bool = False) -> Tensor:
    """J_i^T S_i J_i, or g_i g_i^T (n, p, p)."""
    own = oracle(name, k)
    if empirical:
        return torch.stack([torch.outer(g, g) for g in own.g])
    p = torch.softmax(own.logits, 1)
    return torch.stack([J.T @ (torch.diag(q) - torch.outer(q, q)) @ J for J, q in zip(own.J, p, strict=True)])


def blocks_of(module: nn.Module, blocks: str) -> Iterator[Tensor]:
    """Numbers of the parameters in each block."""
    start = 0
    if blocks == "none":
        yield torch.arange(len(vector(module)))
        return
    for t in module.parameters():
        own = torch.arange(start, start + t.numel())
        start += t.numel()
        if blocks == "layer":
            yield own
        elif blocks == "rows":
            yield from own.view(len(t), -1)
        else:
            yield from own.view(-1, math.prod(t.shape[2:]))  # out x in kernels; single entries of the rest


def frobenius(A: Tensor) -> float:
    return float((A * A).sum())


def ratio(each: Tensor, module: nn.Module, blocks: str, phi: Callable[[Tensor], float], batches: list[Tensor]) -> float:
    """Geometric mean over blocks of sum_b |b| phi(A_b) / sum_b |b| / phi(A); a block of zeros is left out."""
    total = sum(len(b) for b in batches)
    pairs = []
    for own in blocks_of(module, blocks):
        A = each[:, own][:, :, own]
        pairs.append((sum(len(b) * phi(A[b].mean(0)) for b in batches) / total, phi(A.mean(0))))
    return geometric(pairs)


def geometric(pairs: list[tuple[float, float]]) -> float:
    """Mean ratio of blocks, without those where nothing but rounding is left."""
    largest = max(average for _, average in pairs)
    logs = [math.log(part / average) for part, average in pairs if average > 1e-28 * largest]
    return math.exp(sum(logs) / len(logs))


SINGLE = [torch.tensor([i]) for i in range(N)]


@pytest.mark.parametrize(("net", "blocks"), [(n, b) for n in (*NETS, "twice") for b in BLOCKS if (n, b) not in LEFT])
def test_frobenius_against_dense_hessians(net: str, blocks: str) -> None:
    found = contrast.contrast_frobenius(point(net), blocks=blocks)  # type: ignore[arg-type]
    exact = blocks == "kernel" or (blocks == "layer" and CASES[net].piecewise)
    for k in range(K):
        due = ratio(hessians(net, k), modules(net)[k], blocks, frobenius, SINGLE)
        error = abs(float(found.value[k]) - due)
        assert error <= (1e-8 * due if exact or float(found.standard_error[k]) == 0 else 4 * found.standard_error[k])
        assert not exact or float(found.standard_error[k]) == 0


@pytest.mark.parametrize("blocks", ["none", "layer"])
def test_probes_are_honest(blocks: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no dense block is formed: errors over standard errors have mean square 1, or halved ones would pass."""
    monkeypatch.setattr(contrast, "DENSE", 0)
    made = modules("tanh", 1)
    at = at_of(made, *data("tanh", 4))
    due = ratio(hessians("tanh", 0, 4), made[0], blocks, frobenius, SINGLE[:4])
    found = [contrast.contrast_frobenius(at, blocks=blocks, probes=24, seed=s) for s in range(16)]  # type: ignore[arg-type]
    z = torch.tensor([(float(f.value) - due) / float(f.standard_error) for f in found])
    assert 0.65 < float(z.square().mean().sqrt()) < 1.5
    assert abs(float(z.mean())) < 0.8


@pytest.mark.parametrize("m", [1, 2, 5])
@pytest.mark.parametrize("blocks", BLOCKS)
@pytest.mark.parametrize("net", NETS)
def test_fisher_contrasts_against_dense_ones(net: str, blocks: str, m: int) -> None:
    """Both Fisher informations; all minibatches of size 2 one by one, of size 5 by the affine law of each block."""
    at = point(net)
    for empirical in (False, True):
        metric = contrast.contrast_fisher_empirical if empirical else contrast.contrast_fisher
        found = metric(at, blocks=blocks, minibatch_size=m)  # type: ignore[arg-type]
        for k in range(K):
            if m == 2 and blocks == "none" and net == "relu":
                subsets = [torch.tensor(b) for b in combinations(range(N), 2)]
                due = ratio(fishers(net, k, empirical), modules(net)[k], blocks, frobenius, subsets)
            else:
                due = affine(fishers(net, k, empirical), modules(net)[k], blocks, m)
            assert float(found.value[k]) == pytest.approx(due, rel=1e-8)
        assert found.standard_error.tolist() == [0.0] * K


def affine(each: Tensor, module: nn.Module, blocks: str, m: int) -> float:
    """E_b |A_b|^2 = (s + (m - 1) c) / m with s = E|A_i|^2 and c = E_{i != j} <A_i, A_j>, block by block."""
    pairs = []
    for own in blocks_of(module, blocks):
        products = (A := each[:, own][:, :, own].flatten(1)) @ A.T
        s, n = float(products.diagonal().mean()), len(A)
        c = float(products.sum() - products.diagonal().sum()) / (n * (n - 1))
        pairs.append(((s + (m - 1) * c) / m, float(products.mean())))
    return geometric(pairs)


@pytest.mark.parametrize("blocks", ["layer", "kernel"])
def test_the_frobenius_contrast_is_affine_in_1_over_m_in_each_block(blocks: str) -> None:
    """Every subset of two samples; the geometric mean comes after the law, or layers would not match."""
    found = contrast.contrast_frobenius(point("conv1d"), blocks=blocks, minibatch_size=2)  # type: ignore[arg-type]
    subsets = [torch.tensor(b) for b in combinations(range(N), 2)]
    for k in range(K):
        due = ratio(hessians("conv1d", k), modules("conv1d")[k], blocks, frobenius, subsets)
        assert float(found.value[k]) == pytest.approx(due, rel=1e-8)


# ---- one partition: largest eigenvalues and rises


def partition(n: int, m: int, seed: int) -> list[Tensor]:
    return list(torch.randperm(n, generator=torch.Generator().manual_seed(seed)).split(m))


@pytest.mark.parametrize("blocks", BLOCKS)
@pytest.mark.parametrize("net", NETS)
def test_spectral_against_dense_eigenvalues(net: str, blocks: str) -> None:
    """Minibatches of 5, 5, 5 and 2 of 17 samples, weighted by their sizes."""
    found = contrast.contrast_spectral(point(net), blocks=blocks, minibatch_size=5, seed=3, tolerance=1e-6)  # type: ignore[arg-type]
    for k in range(K):
        due = ratio(hessians(net, k), modules(net)[k], blocks, lambda A: float(eigvalsh(A)[-1]), partition(N, 5, 3))
        assert float(found.value[k]) == pytest.approx(due, rel=1e-6)
    assert found.status == ["ok"] * K


def rise(f: Callable[[Tensor], Tensor], theta: Tensor, own: Tensor, eps: float) -> float:
    """max f(theta + d) - f(theta) over d in a block with |d| <= eps: SLSQP from many sides."""
    base = float(f(theta))

    def moved(z: np.ndarray) -> Tensor:
        return theta.index_add(0, own, eps * torch.from_numpy(z))

    def gradient(z: np.ndarray) -> np.ndarray:
        t = moved(z).requires_grad_()
        return -torch.autograd.grad(f(t), t)[0][own].numpy()  # type: ignore[no-any-return]

    if len(own) == 1:
        return max(float(f(moved(np.array([s])))) for s in (-1.0, 1.0)) - base
    inside = {"type": "ineq", "fun": lambda z: 1 - z @ z, "jac": lambda z: -2 * z}
    up = -gradient(np.zeros(len(own)))
    starts = [up, *np.random.default_rng(0).normal(size=(2, len(own)))]
    found = [
        minimize(
            lambda z: (base - float(f(moved(z)))) / eps,
            z / max(np.linalg.norm(z), 1e-300),
            jac=gradient,
            constraints=[inside],
            method="SLSQP",
            options={"ftol": 1e-13, "maxiter": 200},
        )
        for z in starts
    ]
    return max(-float(r.fun) * eps for r in found)


def small(act: type[nn.Module]) -> tuple[list[nn.Module], Tensor, Tensor]:
    """One net of 15 parameters with biases that count, and 12 samples."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        made = nn.Sequential(nn.Linear(2, 3), act(), nn.Linear(3, 2, bias=False)).double()
        x, y = torch.randn(12, 2, dtype=f64), torch.randint(0, 2, (12,))
    return [made], x, y


@pytest.mark.parametrize("blocks", BLOCKS)
@pytest.mark.parametrize("act", [nn.Tanh, nn.ReLU])
def test_sharpness_against_slsqp(act: type[nn.Module], blocks: str) -> None:
    made, x, y = small(act)
    found = contrast.contrast_sharpness(
        at_of(made, x, y),
        radius=0.05,
        blocks=blocks,
        minibatch_size=5,
        seed=1,
        tolerance=1e-5,
        max_steps=2000,  # type: ignore[arg-type]
    )
    theta, logs, batches = vector(made[0]), [], partition(12, 5, 1)

    def loss_on(b: Tensor) -> Callable[[Tensor], Tensor]:
        logits = plain_logits(made[0], x[b])
        return lambda t: F.cross_entropy(logits(t), y[b])

    for own in blocks_of(made[0], blocks):
        eps = 0.05 * float(theta[own].norm())
        each = sum(len(b) / 12 * rise(loss_on(b), theta, own, eps) for b in batches)
        average = rise(loss_on(torch.arange(12)), theta, own, eps)
        if average > 1e-14:
            logs.append(math.log(each / average))
    assert float(found.value) == pytest.approx(math.exp(sum(logs) / len(logs)), rel=1e-4)


# ---- laws


@pytest.mark.parametrize("net", ["relu", "tanh"])
def test_no_contrast_is_below_one(net: str) -> None:
    """100 random nets: the functionals are convex, and the minibatches' average is the average."""
    made = modules(net, 100)
    at = at_of(made, *data(net, 7))
    for blocks in BLOCKS:
        for metric in (contrast.contrast_fisher, contrast.contrast_fisher_empirical, contrast.contrast_frobenius):
            assert (metric(at, blocks=blocks).value >= 1 - 1e-12).all()  # type: ignore[arg-type]
    if net == "relu":
        assert (contrast.contrast_spectral(at, blocks="none", minibatch_size=4, tolerance=1e-2).value >= 1 - 1e-3).all()


def test_the_contrast_of_the_trace_is_one() -> None:
    """Of use to nobody: the trace is linear."""
    at = point("residual")
    parts = partition(N, 5, 0)
    each = torch.stack([hessian_trace(Point(at.theta, at.train.subset(b), at.test)).value for b in parts])
    weights = torch.tensor([len(b) / N for b in parts], dtype=f64)
    assert ((weights @ each) / hessian_trace(at).value).tolist() == pytest.approx([1.0] * K, rel=1e-9)


def rescaled(module: nn.Sequential, factors: Tensor) -> nn.Sequential:
    """Neurons of the hidden layer times factors, their outgoing weights divided: the same function."""
    other = copy.deepcopy(module)
    first, last = other[1], other[3]
    with torch.no_grad():
        first.weight.mul_(factors[:, None])  # type: ignore[operator, union-attr]
        first.bias.mul_(factors)  # type: ignore[operator, union-attr]
        last.weight.div_(factors)  # type: ignore[operator, union-attr]
    return other


@pytest.mark.parametrize("blocks", ["layer", "kernel"])
def test_rescaling_that_keeps_the_function_keeps_the_ratio(blocks: str) -> None:
    (module,), (x, y) = modules("relu", 1), data("relu")
    neurons = torch.randn(6, generator=torch.Generator().manual_seed(0), dtype=f64).exp()
    factors = [torch.full((6,), a, dtype=f64) for a in (0.1, 10.0)] + ([neurons] if blocks == "kernel" else [])
    for own in factors:
        other = rescaled(module, own)  # type: ignore[arg-type]
        assert torch.allclose(module(x), other(x), rtol=0, atol=1e-12)
        for metric in (contrast.contrast_frobenius, contrast.contrast_fisher, contrast.contrast_fisher_empirical):
            before, after = (float(metric(at_of([m], x, y), blocks=blocks).value) for m in (module, other))  # type: ignore[arg-type]
            assert after == pytest.approx(before, rel=1e-9)
    moved = rescaled(module, neurons)  # type: ignore[arg-type]
    each = [dense_hessians(m, x, y) for m in (module, moved)]
    for no_such in ("rows", "layer", "none"):  # teeth, by dense matrices alone: those are not per-neuron invariant
        a, b = (ratio(e, m, no_such, frobenius, SINGLE) for e, m in zip(each, (module, moved), strict=True))
        assert abs(b / a - 1) > 1e-3


def test_a_rise_that_float32_cannot_resolve_is_taken_in_float64() -> None:
    """At a radius of 1e-5 the rise of the average is some roundings of the loss."""
    made, x, y = small(nn.Tanh)
    at = at_of(made, x, y)
    single = Point(at.theta.float(), at.train.to(torch.float32), at.test.to(torch.float32))
    same = Point(single.theta.double(), single.train.to(f64), single.test.to(f64))
    for blocks in ("none", "layer"):
        own, due = (
            contrast.contrast_sharpness(p, radius=1e-5, blocks=blocks, minibatch_size=5) for p in (single, same)
        )
        assert_close(own.value, due.value, rtol=1e-6, atol=0)
