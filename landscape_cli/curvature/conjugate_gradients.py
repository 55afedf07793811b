"""Solutions of symmetric positive definite systems that are known by their products only, K systems at once."""

from __future__ import annotations

import torch
from torch import Tensor

from landscape_cli.curvature.lanczos import Product


def conjugate_gradients(
    A: Product, b: Tensor, *, tolerance: float = 1e-6, max_steps: int = 500
) -> tuple[Tensor, Tensor, int]:
    """Solve A x = b for K positive definite operators at once, for one right-hand side or several.

    Args:
        A: takes what b is, to the same shape.
        b: (K, p) or (K, p, v).
        tolerance: of |b - A x| / |b|; a system that has reached it is left alone.
        max_steps: products at most.
    Returns: x like b, relative residuals (K,) or (K, v) in float64, products used.
    Source: Hestenes & Stiefel 1952.
    """
    x, r, d = torch.zeros_like(b), b.clone(), b.clone()
    rr = r.double().square().sum(1)
    size, steps = rr.clamp_min(torch.finfo(torch.float64).tiny), 0
    while steps < max_steps and bool((live := rr > tolerance**2 * size).any()):
        Ad, steps = A(d), steps + 1
        curvature = (d.double() * Ad.double()).sum(1)
        live = live & (curvature > 0)
        alpha = torch.where(live, rr / curvature.where(live, 1), 0)[:, None].to(b.dtype)
        x, r = x + alpha * d, r - alpha * Ad
        new = r.double().square().sum(1)
        d = torch.where(live[:, None], r + (new / rr.where(live, 1))[:, None].to(b.dtype) * d, d)
        rr = torch.where(live, new, rr)
        if not bool(live.any()):
            break
    return x, (rr / size).sqrt(), steps
