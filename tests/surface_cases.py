"""Losses that are a given function of the parameters, in full dress, and exact maxima of quadratics."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import accumulate, product
from typing import Any

import torch
from helpers import Quadratic, at_of, plain_logits, vector
from torch import Tensor, nn

from landscape_cli.metrics.point import Estimate, Point
from landscape_cli.registry import REGISTRY

f64 = torch.float64


class Surface(nn.Module):
    """Logits (0, log(e^q - 1)) and label 0: the cross-entropy of a sample is q(theta, x) > 0, any such function.

    Args:
        q: (theta (p,), x (n, ...)) -> (n,) or a scalar.
        start: parameter tensors in their order.
    """

    def __init__(self, q: Callable[[Tensor, Tensor], Tensor], start: dict[str, Tensor]) -> None:
        super().__init__()
        self.q = q
        for name, t in start.items():
            self.register_parameter(name, nn.Parameter(t.to(f64).clone()))

    def forward(self, x: Tensor) -> Tensor:
        theta = torch.cat([t.flatten() for t in self.parameters()])
        q = self.q(theta, x).expand(len(x))
        return torch.stack([torch.zeros_like(q), q + torch.log(-torch.expm1(-q))], 1)


def surface(q: Callable[[Tensor, Tensor], Tensor], o: Tensor | dict[str, Tensor], x: Tensor | int = 10) -> Point:
    """One minimum at o of the mean of q over x; x a number: so many samples alike."""
    inputs = torch.zeros(x, 1, dtype=f64) if isinstance(x, int) else x
    start = o if isinstance(o, dict) else {"theta": o}
    return at_of([Surface(q, start)], inputs, torch.zeros(len(inputs), dtype=torch.long))


def quadratics(H: Tensor, b: Tensor, o: Tensor | dict[str, Tensor], c: float = 1.0) -> Point:
    """Sample i's loss is c + b_i . d + d^T H_i d / 2 with d = theta - o; H (n, p, p), b (n, p), the minimum at o."""
    p = b.shape[1]
    origin = torch.cat([t.flatten().to(f64) for t in o.values()]) if isinstance(o, dict) else o.to(f64)

    def q(theta: Tensor, x: Tensor) -> Tensor:
        d = theta - origin
        return c + x[:, :p] @ d + ((x[:, p:].reshape(-1, p, p) @ d) @ d) / 2

    return surface(q, o, torch.cat([b.to(f64), H.to(f64).flatten(1)], 1))


def quadratic(H: Tensor, b: Tensor, o: Tensor | dict[str, Tensor], n: int = 10, c: float = 1.0) -> Point:
    """n samples alike, c + b . d + d^T H d / 2."""
    origin = torch.cat([t.flatten() for t in o.values()]) if isinstance(o, dict) else o

    def q(theta: Tensor, x: Tensor) -> Tensor:
        d = theta - origin.to(f64)
        return c + d @ (b + H @ d / 2)

    return surface(q, o, n)


class Shaped(Quadratic):
    """The same without a network, for one minimum: a product of matrices a gradient."""

    def __init__(self, H: Tensor, b: Tensor, o: Tensor | dict[str, Tensor], n: int, c: float) -> None:
        self.start = o if isinstance(o, dict) else {"theta": o}
        super().__init__(H[None], b[None], torch.cat([t.flatten().to(f64) for t in self.start.values()])[None], c)
        self.like, self.n = {name: t.to(f64)[None] for name, t in self.start.items()}, n
        self.y = torch.zeros(n, dtype=torch.long)

    def alone(self, k: int) -> Quadratic:
        assert k == 0
        return self

    def unflatten(self, theta: Tensor) -> dict[str, Tensor]:
        parts = theta.split([t[0].numel() for t in self.like.values()], 1)
        return {n: v.view(len(v), *t.shape[1:]) for (n, t), v in zip(self.like.items(), parts, strict=True)}

    @property
    def columns(self) -> dict[str, slice]:
        ends = list(accumulate(t.numel() for t in self.like.values()))
        return {n: slice(start, end) for n, start, end in zip(self.like, [0, *ends], ends, strict=False)}


def bowl(H: Tensor, b: Tensor, o: Tensor | dict[str, Tensor], n: int = 10, c: float = 1.0) -> Point:
    return Shaped(H, b, o, n, c).point()


class Scores(nn.Module):
    """Logits (0, a_i . theta) of inputs a_i: label 0 is a mistake where a_i . theta > 0."""

    def __init__(self, theta: Tensor) -> None:
        super().__init__()
        self.theta = nn.Parameter(theta.to(f64).clone())

    def forward(self, x: Tensor) -> Tensor:
        t = x @ self.theta
        return torch.stack([torch.zeros_like(t), t], 1)


def scores(theta: Tensor, a: Tensor) -> Point:
    return at_of([Scores(theta)], a.to(f64), torch.zeros(len(a), dtype=torch.long))


def ball_maximum(H: Tensor, b: Tensor, rho: float) -> float:
    """max over |d| <= rho of b . d + d^T H d / 2 by the secular equation |(mu - H)^-1 b| = rho, hard case included."""
    h, V = torch.linalg.eigh(H)
    b = V.T @ b

    def rise(d: Tensor) -> float:
        return float(b @ d + (h * d) @ d / 2)

    if float(h[-1]) < 0 and float((b / h).norm()) <= rho:
        return rise(-b / h)
    floor, rest = max(float(h[-1]), 0.0), h < float(h[-1]) - 1e-12
    inner = torch.where(rest, b / (floor - h).clamp_min(1e-300), 0.0) if floor == float(h[-1]) else b / (floor - h)
    if floor == float(h[-1]) and float(b[~rest].norm()) < 1e-14 and float(inner.norm()) <= rho:  # hard case
        inner[-1] = (rho**2 - float(inner.square().sum())) ** 0.5
        return rise(inner)
    low, high = floor, floor + float(b.norm()) / rho
    for _ in range(200):
        mu = (low + high) / 2
        low, high = (mu, high) if float((b / (mu - h)).norm()) > rho else (low, mu)
    d = b / (high - h)
    return rise(d * rho / d.norm())


def box_maximum(H: Tensor, b: Tensor, w: Tensor) -> float:
    """max over |d_j| <= w_j of b . d + d^T H d / 2: the stationary points of all 3^p faces."""
    best, p = 0.0, len(b)
    for face in product([-1.0, 0.0, 1.0], repeat=p):
        side = torch.tensor(face, dtype=f64)
        free, d = side == 0, side * w
        if free.any():
            if float(torch.linalg.matrix_rank(H[free][:, free])) < int(free.sum()):
                continue
            d[free] = torch.linalg.solve(H[free][:, free], -(b + H @ d)[free])
            if (d.abs() > w * (1 + 1e-12)).any():
                continue
        best = max(best, float(b @ d + d @ H @ d / 2))
    return best


def rescaled(module: nn.Sequential, before: list[int], after: int, factor: Tensor) -> nn.Sequential:
    """The same function: all parameters of the layers `before` times factor, one a unit; the next weight divided."""
    other = copy.deepcopy(module)
    with torch.no_grad():
        for layer in before:
            for t in other[layer].parameters():
                t.mul_(factor.view(-1, *[1] * (t.dim() - 1)))
        weight = other[after].weight
        groups = getattr(other[after], "groups", 1)
        own = factor.view(groups, -1).repeat_interleave(len(weight) // groups, 0)  # (out, in of its group)
        own = own.repeat_interleave(weight.shape[1] // own.shape[1], 1)  # a flattened channel has several inputs
        weight.div_(own.view(*own.shape, *[1] * (weight.dim() - 2)))
    return other


def plain_rise(module: nn.Module, x: Tensor, y: Tensor, normalize: bool = False) -> Callable[[Tensor], Tensor]:
    """d (p,) -> L(theta + d) - L(theta); each sample's logits over their standard deviation, if asked."""
    logits, theta = plain_logits(module, x), vector(module)

    def loss(d: Tensor) -> Tensor:
        z = logits(theta + d)
        if normalize:
            z = z / z.std(1, correction=0, keepdim=True)
        return nn.functional.cross_entropy(z, y)

    start = loss(torch.zeros_like(theta)).detach()
    return lambda d: loss(d) - start


def slope(f: Callable[[Tensor], Tensor], p: int) -> Tensor:
    """Gradient of f at 0."""
    d = torch.zeros(p, dtype=f64, requires_grad=True)
    return torch.autograd.grad(f(d), d)[0]


def shelf(name: str, at: Point, **settings: Any) -> Estimate:
    """The metric of this name."""
    return REGISTRY["metric"][name].function(at, **settings)


def coverage(found: list[Estimate], truth: float, factor: float = 2.0) -> float:
    """In how many cases the truth lies within `factor` standard errors."""
    return sum(abs(float(f.value) - truth) < factor * float(f.standard_error) for f in found) / len(found)


def honest(found: list[Estimate], truth: float) -> None:
    """Within two standard errors in nine of ten cases; not by being boundless."""
    values = torch.cat([f.value for f in found])
    errors = torch.cat([f.standard_error for f in found])
    assert coverage(found, truth) >= 0.9, (coverage(found, truth), truth, values.mean(), values.std(), errors.mean())
    assert 0.7 < float(errors.median() / values.std()) < 1.5
