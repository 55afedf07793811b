"""Nets of a few hundred parameters in float64, and plain oracles that share no code with the package."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from landscape_cli.curvature.objective import Objective, flatten
from landscape_cli.metrics.point import Estimate, Point
from landscape_cli.network import build, stack

f64 = torch.float64


class Residual(nn.Module):
    """Conv, BatchNorm, a shortcut with a convolution of its own, average pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(2, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)
        self.conv2, self.bn2 = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.short, self.bn3 = nn.Conv2d(2, 3, 1, bias=False), nn.BatchNorm2d(3)
        self.pool, self.fc = nn.AvgPool2d(2), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return self.fc(torch.flatten(self.pool(F.relu(inner + self.bn3(self.short(x)))), 1))


class Gated(nn.Module):
    """Control flow that depends on a weight: neither torch.fx nor vmap follows it. Layers registered out of order."""

    def __init__(self) -> None:
        super().__init__()
        self.late = nn.BatchNorm1d(3)
        self.early = nn.BatchNorm1d(2)
        self.conv, self.fc = nn.Conv1d(2, 3, 3, stride=2), nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.late(self.conv(torch.tanh(self.early(x))))
        if float(self.fc.bias.detach().sum()) > 0:
            h = h * 2
        return self.fc(torch.relu(h).flatten(1))


class Twice(nn.Module):
    """One layer that is passed twice, so that the logits are quadratic in its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.last = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.again(torch.relu(self.again(torch.relu(self.first(x)))))))


def _dense(*between: Callable[[], nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 6), *[make() for make in between], nn.Linear(6, 3))


def _narrow() -> nn.Module:
    """Few outputs for its width: the dense layer's other branch."""
    return nn.Sequential(nn.Linear(4, 16, bias=False), nn.ReLU(), nn.Linear(16, 3))


def _bias_free() -> nn.Module:
    norm = nn.BatchNorm1d(6, affine=False)
    return nn.Sequential(nn.Linear(4, 6, bias=False), norm, nn.ReLU(), nn.Linear(6, 3, bias=False))


def _groupnorm() -> nn.Module:
    layers = [
        nn.Conv2d(2, 4, 3, padding=1, bias=False),
        nn.GroupNorm(2, 4),
        nn.ReLU(),
        nn.ZeroPad3d((0, 0, 0, 0, 1, 2)),
    ]
    return nn.Sequential(*layers, nn.MaxPool2d(1, 2), nn.Flatten(), nn.Linear(28, 3))


def _conv1d() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 10)),
        nn.Conv1d(1, 4, 3, stride=2, padding=1),
        nn.LeakyReLU(),
        nn.Conv1d(4, 4, 3, padding=2, dilation=2, groups=2),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


@dataclass(frozen=True)
class Case:
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    kind: str
    piecewise: bool


CASES: dict[str, Case] = {
    "relu": Case(lambda: _dense(nn.ReLU), (4,), "stacked", True),
    "narrow": Case(_narrow, (4,), "stacked", True),
    "tanh": Case(lambda: _dense(nn.Tanh), (2, 2), "stacked", False),
    "batchnorm": Case(lambda: _dense(lambda: nn.BatchNorm1d(6), nn.ReLU), (4,), "stacked", True),
    "bias-free": Case(_bias_free, (4,), "stacked", True),
    "residual": Case(Residual, (2, 4, 4), "stacked", True),
    "groupnorm": Case(_groupnorm, (2, 4, 4), "stacked", False),
    "conv1d": Case(_conv1d, (10,), "stacked", True),
    "layernorm": Case(lambda: _dense(lambda: nn.LayerNorm(6), nn.Tanh), (4,), "vmap", False),
    "prelu": Case(lambda: _dense(lambda: nn.BatchNorm1d(6), nn.PReLU), (4,), "vmap", False),
    "gated": Case(Gated, (2, 8), "loop", False),
    "twice": Case(Twice, (4,), "vmap", False),
}
K, N, C = 2, 17, 3


def modules(name: str, count: int = K) -> list[nn.Module]:
    """Copies with different weights and BatchNorm buffers, in float64, evaluation mode."""
    made = []
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for _ in range(count):
            module = CASES[name].make().double().eval()
            for layer in module.modules():
                if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                    own = [layer.weight.data, layer.bias.data] if layer.affine else []
                    for t in (*own, layer.running_mean):
                        t.add_(0.3 * torch.randn(t.shape, dtype=f64))
                    layer.running_var.copy_(0.5 + torch.rand(layer.running_var.shape, dtype=f64))
            made.append(module)
    if name == "gated":
        for module, sign in zip(made, [1.0, -1.0] * count, strict=False):
            module.fc.bias.data.copy_(sign * module.fc.bias.data.abs())
    return made


def data(name: str, n: int = N, seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(n, *CASES[name].shape, generator=rng, dtype=f64)
    return x, torch.randint(0, C, (n,), generator=rng)


def objective(name: str, count: int = K, n: int = N) -> tuple[Objective, Tensor]:
    """The package's objective of a case, and theta (K, p)."""
    params, buffers = stack(modules(name, count))
    x, y = data(name, n)
    network = build(CASES[name].make().double(), CASES[name].shape, f64)
    return Objective(network, params, buffers, x, y), flatten(params)


def point(name: str, count: int = K, n: int = N) -> Point:
    train, theta = objective(name, count, n)
    x, y = data(name, 2 * n, seed=1)
    return Point(theta, train, Objective(train.network, train.like, train.buffers, x, y), theta * 0.5)


# ---- oracles: a plain module, torch.autograd, loops


def plain_logits(module: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    """theta (p,) -> logits of an ordinary module in evaluation mode."""
    names, shapes = zip(*((n, t.shape) for n, t in module.named_parameters()), strict=True)

    def logits(theta: Tensor) -> Tensor:
        parts = theta.split([s.numel() for s in shapes])
        return torch.func.functional_call(
            module, {n: t.view(s) for n, t, s in zip(names, parts, shapes, strict=True)}, (x,)
        )

    return logits


def vector(module: nn.Module) -> Tensor:
    return torch.cat([t.detach().flatten() for t in module.parameters()])


@dataclass(frozen=True)
class Oracle:
    """Everything about one minimum by brute force."""

    logits: Tensor  # (n, C)
    g: Tensor  # per-sample gradients (n, p)
    H: Tensor
    F: Tensor  # Fisher information (p, p)
    J: Tensor  # (n, C, p)


@cache
def oracle(name: str, k: int = 0, n: int = N, count: int = K) -> Oracle:
    module, (x, y) = modules(name, count)[k], data(name, n)
    theta = vector(module)
    z = plain_logits(module, x)(theta)

    def loss(t: Tensor) -> Tensor:
        return F.cross_entropy(plain_logits(module, x)(t), y)

    one = [plain_logits(module, x[i : i + 1]) for i in range(n)]
    J = torch.stack([torch.autograd.functional.jacobian(f, theta)[0] for f in one])
    g = []
    for i in range(n):
        t = theta.clone().requires_grad_()
        g += torch.autograd.grad(F.cross_entropy(one[i](t), y[i : i + 1]), t)
    fisher = torch.zeros(len(theta), len(theta), dtype=f64)
    for i in range(n):
        p = torch.softmax(z[i], 0)
        fisher += J[i].T @ (torch.diag(p) - torch.outer(p, p)) @ J[i] / n
    H = torch.autograd.functional.hessian(loss, theta)
    return Oracle(z, torch.stack(g), H, fisher, J)


class Quadratic:
    """L(theta) = c + b . (theta - o) + (theta - o)^T H (theta - o) / 2 for K minima, in the clothes of an Objective."""

    def __init__(self, H: Tensor, b: Tensor, o: Tensor | None = None, c: float = 1.0) -> None:
        self.H, self.b, self.o, self.c = H, b, torch.zeros_like(b) if o is None else o, c
        self.y, self.n, self.like = torch.zeros(10, dtype=torch.long), 10, {"theta": b}

    def loss_and_gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        d = theta - self.o
        Hd = torch.einsum("kij,kj->ki", self.H, d)
        return self.c + (self.b * d).sum(1) + (d * Hd).sum(1) / 2, self.b + Hd

    def loss(self, theta: Tensor) -> Tensor:
        return self.loss_and_gradient(theta)[0]

    def hessian_product(self, theta: Tensor, *, residual_part: bool = False) -> Callable[[Tensor], Tensor]:
        return lambda v: torch.einsum("kij,kj->ki", self.H, v)

    def rows(self, index: slice) -> Quadratic:
        return Quadratic(self.H[index], self.b[index], self.o[index], self.c)

    def alone(self, k: int) -> Quadratic:
        return self.rows(slice(k, k + 1))

    def point(self) -> Point:
        """The origin o as the minimum."""
        return Point(self.o.clone(), self, self)  # type: ignore[arg-type]


def symmetric(values: Tensor, seed: int) -> Tensor:
    """A symmetric matrix with these eigenvalues (p,) in a random basis."""
    p, rng = len(values), torch.Generator().manual_seed(seed)
    Q = torch.linalg.qr(torch.randn(p, p, generator=rng, dtype=f64))[0]
    A = Q @ torch.diag(values.to(f64)) @ Q.T
    return (A + A.T) / 2


# ---- the Fisher information by its root


@dataclass(frozen=True)
class Dense:
    """One minimum: Jacobian, root of the Fisher information and its pseudo-inverse as plain matrices."""

    odds: Tensor  # exp(l_i) - 1 of the samples (S,), without cancellation
    g: Tensor  # gradients of the samples (S, p)
    U: Tensor  # F = U^T U, (N C, p)
    rank: int
    rows: int

    @property
    def dual(self) -> Tensor:
        """Rows whose inner products are <g_i, g_j>_* (S, N C): F^+ = U^+ U^+^T."""
        return self.g @ torch.linalg.pinv(self.U, rtol=1e-10)


def dense(module: nn.Module, x: Tensor, y: Tensor, more: Tensor | None = None) -> Dense:
    """F over x and `more`; samples (x, y)."""
    S, inputs = len(y), x if more is None else torch.cat([x, more])
    logits, theta = plain_logits(module, inputs), vector(module)
    z, J = logits(theta), torch.autograd.functional.jacobian(logits, theta)
    p = torch.softmax(z, 1)
    U = p.sqrt()[:, :, None] * (J - (p[:, :, None] * J).sum(1, keepdim=True)) / len(inputs) ** 0.5
    others = z[:S].scatter(1, y[:, None], float("-inf"))
    odds = (torch.logsumexp(others, 1) - z[:S].gather(1, y[:, None])[:, 0]).exp()
    wrong = (odds / (1 + odds))[:, None]
    r = (torch.softmax(others, 1) * wrong).scatter(1, y[:, None], -wrong)
    s = torch.linalg.svdvals(U.flatten(0, 1))
    rank, rows = int((s > 1e-10 * s[0]).sum()), len(inputs) * (z.shape[1] - 1)
    return Dense(odds, torch.einsum("sc,scp->sp", r, J[:S]), U.flatten(0, 1), rank, rows)


@cache
def dense_case(name: str, k: int = 0, n: int = N, over: str = "minibatches") -> Dense:
    """The dense twin of `point(name, n=n)` with all n samples."""
    more = data(name, 2 * n, seed=1)[0] if over == "train_and_test" else None
    return dense(modules(name)[k], *data(name, n), more)


def pairs(gram: Tensor) -> float:
    """E_{a != b} |g_b| (1 - cos(g_a, g_b)), pair by pair."""
    M = len(gram)
    length = [max(float(gram[b, b]), 0.0) ** 0.5 for b in range(M)]
    each = [length[b] - float(gram[a, b]) / length[a] for a in range(M) for b in range(M) if a != b]
    return sum(each) / len(each)


def at_of(made: list[nn.Module], x: Tensor, y: Tensor, test: tuple[Tensor, Tensor] | None = None) -> Point:
    """The package's view of these modules."""
    params, buffers = stack(made)
    network = build(copy.deepcopy(made[0]), tuple(x.shape[1:]), f64)
    train = Objective(network, params, buffers, x, y)
    return Point(flatten(params), train, Objective(network, params, buffers, *(test or (x, y))))


def same(found: Estimate, due: list[float], rel: float = 1e-8) -> None:
    assert found.value.tolist() == pytest.approx(due, rel=rel, abs=1e-13)
    assert found.status == ["ok"] * len(due)


Net = nn.Module


def rescaled(module: Net, factor: Tensor, first: str, after: str, norm: str = "") -> Net:
    """Layer `first` (its BatchNorm `norm`, if it has one) times `factor`, one a unit; weights of `after` over it."""
    module = copy.deepcopy(module)
    one, two = module.get_submodule(norm or first), module.get_submodule(after)
    for p in one.parameters():
        p.data *= factor.view(-1, *[1] * (p.dim() - 1))
    own = factor.repeat_interleave(two.weight.shape[1] // len(factor)) if isinstance(two, nn.Linear) else factor
    own = own.view(getattr(two, "groups", 1), -1).repeat_interleave(len(two.weight) // getattr(two, "groups", 1), 0)
    two.weight.data /= own.view(*own.shape, *[1] * (two.weight.dim() - 2))
    return module


def renormalized(module: Net, factor: Tensor, first: str, norm: str) -> Net:
    """What comes into a BatchNorm times `factor`, and its statistics with it."""
    module = copy.deepcopy(module)
    one, two = module.get_submodule(first), module.get_submodule(norm)
    for p in one.parameters():
        p.data *= factor.view(-1, *[1] * (p.dim() - 1))
    two.running_mean *= factor
    two.running_var.copy_(factor**2 * (two.running_var + two.eps) - two.eps)
    return module


def permuted(module: Net, order: Tensor, rows: list[str], after: str) -> Net:
    """Units of a layer, and of the BatchNorm after it, in another order."""
    module = copy.deepcopy(module)
    for layer in map(module.get_submodule, rows):
        for t in (t for t in (*layer.parameters(), *layer.buffers()) if t.dim()):
            t.data = t.data[order]
    two = module.get_submodule(after)
    two.weight.data = two.weight.data[:, order]
    return module


def twin(net: str, change: str) -> tuple[Point, Point]:
    """A minimum, and the same function with other parameters."""
    first, after, norm = {
        "relu": ("1", "3", ""),
        "conv1d": ("1", "3", ""),
        "batchnorm": ("1", "4", "2"),
        "residual": ("conv1", "conv2", "bn1"),
    }[net]
    module, rng = modules(net)[0], torch.Generator().manual_seed(0)
    units = len(module.get_submodule(first).weight)
    factor = {
        "alpha 10": torch.full((units,), 10.0, dtype=f64),
        "alpha 0.1": torch.full((units,), 0.1, dtype=f64),
    }.get(change, (1.5 * torch.randn(units, generator=rng, dtype=f64)).exp())
    if change == "permutation":
        other = permuted(module, torch.randperm(units, generator=rng), [n for n in (first, norm) if n], after)
    elif change == "batchnorm":
        other = renormalized(module, factor, first, norm)
    else:
        other = rescaled(module, factor, first, after, norm)
    here, there = at_of([module], *data(net)), at_of([other], *data(net))
    assert float((here.logits("train") - there.logits("train")).abs().max()) < 1e-9
    assert float((here.theta - there.theta).abs().max()) > 0.1
    return here, there


def documented_draws(n: int, m: int, minibatches: int, partitions: int, seed: int) -> list[Tensor]:
    rng = torch.Generator().manual_seed(seed)
    M = min(minibatches, n // m)
    return [torch.randperm(n, generator=rng)[: M * m].view(M, m) for _ in range(partitions)]


def of_gradients(g: Tensor) -> Point:
    """K minima whose single-sample gradients are given, (K, n, p)."""

    class Given:
        y = torch.zeros(g.shape[1], dtype=torch.long)
        n = g.shape[1]

        def to(self, dtype: torch.dtype) -> Any:
            return self

        def subset(self, index: Tensor) -> Any:
            return of_gradients(g[:, index]).train

        def loss_and_gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
            return torch.zeros(len(g), dtype=f64), g.mean(1)

    at = Point(torch.zeros(g.shape[0], g.shape[2], dtype=f64), Given(), Given())  # type: ignore[arg-type]
    at._known[("sample_gram", ())] = g @ g.mT
    at.has_sample_gram = True
    return at
