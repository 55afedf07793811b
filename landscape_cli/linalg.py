"""Eigenvalues of symmetric operators that are known by their products only, K operators at once.

Nothing here knows of networks: an operator is a function (K, p) -> (K, p), operator k acting on row k.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Ritz:
    """Extreme eigenpairs of K operators: values and residuals |A v - value v| (K, k), vectors (K, k, p), steps."""

    values: Tensor
    residuals: Tensor
    vectors: Tensor
    steps: int


def top_eigenpairs(
    A: Product, start: Tensor, k: int = 1, *, tolerance: float = 1e-3, max_steps: int = 200, rng: torch.Generator
) -> Ritz:
    """The k largest eigenvalues of each operator, by Lanczos with full reorthogonalization.

    A small residual certifies that *an* eigenvalue was found, not that it is the top one: an unlucky start hides the
    first for some steps. Therefore half as many steps again are taken after all K operators have converged.

    Args:
        A: (K, p) -> (K, p).
        start: (K, p), rows not zero.
        k: how many.
        tolerance: of the residual, relative to the largest |Ritz value|; the value's error is about its square.
        max_steps: products at most; fewer where p is smaller.
        rng: draws a fresh direction where a Krylov space closes early.
    Returns: eigenvalues in falling order; a residual above tolerance says that it did not converge.
    Source: Golub & Van Loan 2013, section 10.3; Parlett 1980, sections 6.9 and 13.2.
    """
    K, p = start.shape
    steps, done = min(max_steps, p), min(max_steps, p)
    basis = start.new_empty(K, min(steps, 32), p)
    alpha, beta = start.new_empty(K, 0, dtype=torch.float64), start.new_empty(K, 0, dtype=torch.float64)
    q, converged = start, False
    for j in range(steps):
        if j == basis.shape[1]:
            basis = torch.cat([basis, torch.empty_like(basis)], 1)
        basis[:, j] = q / torch.linalg.vector_norm(q, dim=1, keepdim=True)
        Q = basis[:, : j + 1]
        Aq = A(Q[:, j])
        alpha = torch.cat([alpha, (Q[:, j] * Aq).double().sum(1, keepdim=True)], 1)
        q = reject(reject(Aq, Q), Q)  # one pass leaves too much
        size = torch.linalg.vector_norm(q, dim=1)
        closed = size <= 10 * torch.finfo(q.dtype).eps * torch.linalg.vector_norm(Aq, dim=1)
        beta = torch.cat([beta, torch.where(closed, 0, size).double()[:, None]], 1)
        if j + 1 >= done:
            break
        if closed.any() and j + 1 < p:
            fresh = torch.randn(p, generator=rng, dtype=q.dtype).to(q.device).expand(K, p)
            q = torch.where(closed[:, None], reject(reject(fresh, Q), Q), q)
        if not converged and j + 1 >= k and (j + 1 - k) % max(1, k // 10) == 0:  # the check is of cubic cost
            values, _, residuals = _ritz(alpha, beta, k)
            scale = values.abs().amax(1, keepdim=True)
            converged = bool((residuals <= tolerance * scale).all()) and j + 1 > k
            done = min(steps, j + 1 + max(4, (j + 1) // 2)) if converged else done
    values, S, residuals = _ritz(alpha, beta, min(k, alpha.shape[1]))
    return Ritz(values, residuals, (S.mT.to(Q.dtype) @ Q), alpha.shape[1])


def reject(q: Tensor, Q: Tensor) -> Tensor:
    """q (K, p) without its components along the orthonormal rows of Q (K, m, p)."""
    return torch.baddbmm(q[:, None], (Q @ q[:, :, None]).mT, Q, alpha=-1)[:, 0]


def tridiagonal(alpha: Tensor, beta: Tensor) -> Tensor:
    """T (K, m, m) with diagonal alpha (K, m) and off-diagonals beta (K, m - 1)."""
    return torch.diag_embed(alpha) + torch.diag_embed(beta, 1) + torch.diag_embed(beta, -1)


def _ritz(alpha: Tensor, beta: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The k largest eigenvalues of T, their eigenvectors (K, m, k), and the residuals beta_m |s_m| (K, k)."""
    values, S = torch.linalg.eigh(tridiagonal(alpha, beta[:, :-1]))
    values, S = values[:, -k:].flip(1), S[:, :, -k:].flip(2)
    return values, S, beta[:, -1:] * S[:, -1].abs()


def conjugate_gradients(
    A: Product, b: Tensor, *, tolerance: float = 1e-6, max_steps: int = 500
) -> tuple[Tensor, Tensor, int]:
    """Solve A x = b for K positive definite operators at once.

    Args:
        A: (K, p) -> (K, p).
        b: (K, p).
        tolerance: of |b - A x| / |b|; a row that has reached it is left alone.
        max_steps: products at most.
    Returns: x (K, p), relative residuals (K,) in float64, products used.
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
