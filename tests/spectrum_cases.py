"""Operators whose spectrum is known, and what a test of an estimate asks."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from helpers import Quadratic, symmetric
from torch import Tensor

from landscape_cli.metrics.point import Estimate, Point
from landscape_cli.registry import REGISTRY

f64 = torch.float64
NETS = ["relu", "tanh", "batchnorm", "residual", "conv1d", "layernorm", "bias-free"]


def one(name: str, at: Point, **settings: Any) -> Estimate:
    found = REGISTRY["metric"][name].function(at, **settings)
    assert isinstance(found, Estimate), list(found)
    return found


def matrix_free(patch: pytest.MonkeyPatch) -> None:
    """Matrices of any size are too large to be formed."""
    own = [m for n, m in sys.modules.items() if n.startswith("landscape_cli") and hasattr(m, "DENSE")]
    assert own
    for module in own:
        patch.setattr(module, "DENSE", 0)


def honest(runs: list[Estimate], truth: Tensor, name: str = "", *, bias: bool = True) -> None:
    """The truth within two standard errors in 90 % of the runs, within three in 97 %, and no error out of bounds."""
    value, error = (torch.stack([getattr(r, what) for r in runs]) for what in ("value", "standard_error"))
    off = (value - truth).abs() / error
    assert float((off < 2).double().mean()) >= 0.9, (name, (off < 2).double().mean(0))
    assert float((off < 3).double().mean()) >= 0.97, (name, (off < 3).double().mean(0))
    assert (error.median(0).values < 1.5 * value.std(0)).all(), (name, error.median(0).values, value.std(0))
    apart = (value.mean(0) - truth) / value.std(0) * len(runs) ** 0.5
    assert not bias or bool((apart.abs() < 4).all()), (name, apart)


P = 2100  # above the size of dense matrices


class Kronecker(Quadratic):
    """H = Q diag(e) Q^T with Q = A x B, random orthogonal: thousands of known eigenvalues, cheap to apply."""

    def __init__(self, spectra: Tensor, seed: int = 0) -> None:
        rng = torch.Generator().manual_seed(seed)
        super().__init__(spectra, torch.zeros_like(spectra))
        a = next(a for a in range(int(spectra.shape[1] ** 0.5), 0, -1) if spectra.shape[1] % a == 0)
        sizes = (a, spectra.shape[1] // a)
        self.A, self.B = (torch.linalg.qr(torch.randn(n, n, generator=rng, dtype=f64))[0] for n in sizes)

    def hessian_product(self, theta: Tensor, *, residual_part: bool = False) -> Any:
        def product(v: Tensor) -> Tensor:
            own = v if v.dim() == 3 else v[..., None]  # (K, p, vectors)
            turned = self.A.T @ own.movedim(2, 1).unflatten(2, (len(self.A), len(self.B))) @ self.B
            scaled = self.H.view(-1, 1, *turned.shape[2:]) * turned
            return (self.A @ scaled @ self.B.T).flatten(2).movedim(1, 2).reshape(v.shape)

        return product

    def loss_and_gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        g = self.hessian_product(theta)(theta)
        return self.c + (theta * g).sum(1) / 2, g


def bulk(n: int, width: float) -> Tensor:
    """Eigenvalues spread as a semicircle of this radius about 0."""
    t = (torch.arange(n, dtype=f64) + 0.5) / n * 2 - 1
    return width * t.sign() * (1 - (1 - t.abs()) ** (2 / 3))


def like_a_hessian(p: int, *outliers: float, width: float = 0.05) -> Tensor:
    return torch.cat([torch.tensor(outliers, dtype=f64), bulk(p - len(outliers), width)])


def quadratic(*spectra: Tensor, seed: int = 0) -> Point:
    """Minima whose Hessians have these eigenvalues, each in a random basis of its own."""
    H = torch.stack([symmetric(e, seed + k) for k, e in enumerate(spectra)])
    return Quadratic(H, torch.zeros(H.shape[:2], dtype=f64)).point()


def rows(name: str, at: Point, **settings: Any) -> dict[str, Estimate]:
    found = REGISTRY["metric"][name].function(at, **settings)
    assert isinstance(found, dict)
    return found
