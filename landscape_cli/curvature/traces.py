"""Traces of symmetric operators that are known by their products only, K operators at once."""

from __future__ import annotations

import torch
from torch import Tensor

from landscape_cli.curvature.lanczos import Product, reject


def hutchpp(A: Product, like: Tensor, probes: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Diagonal terms that add up to the trace of each operator: exact in the space that it stretches most, and
    Hutchinson's estimate on its complement.

    Args:
        A: (K, p) -> (K, p).
        like: (K, p), for shape, type and device.
        probes: products; a third of them each find the space, are exact in it, and probe the rest.
        rng: of the vectors, common to all operators.
    Returns: the exact part, its terms by coordinate (K, p), and those of each probe of the rest (K, probes // 3, p),
        both in float64: sums over some coordinates are the traces of those blocks.
    Source: Meyer, Musco, Musco & Woodruff 2021, algorithm 1.
    """
    K, p = like.shape
    third = max(1, probes // 3)
    if third >= p:
        eye = torch.eye(p, dtype=like.dtype, device=like.device)
        diagonal = torch.stack([A(e.expand(K, p).contiguous())[:, i] for i, e in enumerate(eye)], 1)
        return diagonal.double(), like.new_zeros(K, 2, p, dtype=torch.float64)
    S, G = (signs(like, third, rng) for _ in range(2))
    Q = torch.linalg.qr(torch.stack([A(s) for s in S.unbind(1)], 2))[0].mT.contiguous()  # (K, third, p)
    inside = sum((q * A(q)).double() for q in (Q[:, i].contiguous() for i in range(third)))
    rest = []
    for g in G.unbind(1):
        g = reject(g, Q)  # E g g^T = I - Q Q^T
        rest.append((g * A(g)).double())
    return inside, torch.stack(rest, 1)


def signs(like: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """Rademacher vectors (K, count, p), the same for all K."""
    drawn = torch.randint(0, 2, (count, like.shape[1]), generator=rng) * 2 - 1
    return drawn.to(like).expand(len(like), -1, -1)
