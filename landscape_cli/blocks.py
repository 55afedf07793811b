"""Squared Frobenius norms of the Fisher information in blocks: of each sample's F_i, and of their mean; one minimum.

F_i = sum_c u_ic u_ic^T with rows u_ic; for a dense weight u_ic = delta_ic a_i^T, which is never formed. With the root
of the true Fisher as rows these are also the diagonal blocks of the Hessian of a piecewise linear network: its logits
are affine in each parameter tensor, so that only F is left there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
from torch import Tensor

from landscape_cli.objective import Objective
from landscape_cli.samples import backward, is_dense, layer_gradients, sample_gradients, tapped

Blocks = Literal["none", "layer", "kernel"]
Ways = Callable[[Tensor, Tensor], Iterable[Tensor]]
MEMORY = 2**30  # bytes of rows
PIECE = 2**22  # inner products of rows at a time
DIRECT = 512  # parameters up to which a block of F is formed


@dataclass(frozen=True)
class Rows:
    """Rows of one parameter tensor: u_ic = d_ic (n, c, out), or d_ic a_i^T with a (n, in); size of a kernel."""

    d: Tensor
    a: Tensor | None
    kernel: int

    @property
    def u(self) -> Tensor:
        """(n, c, size)."""
        return self.d if self.a is None else (self.d[..., None] * self.a[:, None, None]).flatten(2)

    @property
    def size(self) -> int:
        """Parameters."""
        return self.d.shape[2] * (1 if self.a is None else self.a.shape[1])


def rows_of(at: Objective, theta: Tensor, ways: Ways) -> list[Rows]:
    """The rows of each parameter tensor, in order.

    Args:
        at: the objective of one minimum.
        theta: (1, p).
        ways: logits (1, B, C) and labels (1, B) -> the cotangents of its rows.
    """
    parts: dict[str, list[tuple[Tensor, Tensor | None]]] = {n: [] for n in at.columns}
    for x, y in at.chunks(2**24):
        if at.network.kind != "stacked":
            g = torch.cat(list(sample_gradients(at, theta, x, lambda z, y=y: ways(z, y[None]))))  # type: ignore[misc]
            for name, columns in at.columns.items():
                parts[name].append((g[:, :, columns].movedim(0, 1), None))
            continue
        taps, logits = tapped(at.network, at.unflatten(theta), at.buffers, x)
        todo = list(ways(logits.detach(), y[None]))
        deltas = [backward(logits, taps, way, keep=c + 1 < len(todo)) for c, way in enumerate(todo)]
        for tap, own in zip(taps, zip(*deltas, strict=True), strict=True):
            shorts = [short for short, _ in tap.layer.named_parameters()]
            if is_dense(tap):
                d = torch.cat(own).movedim(0, 1)  # (B, c, out)
                rows: list[tuple[Tensor, Tensor | None]] = [(d, tap.x[0]), (d, None)]
            else:
                each = [list(layer_gradients(tap.layer, tap.name, at, theta, tap.x, delta)) for delta in own]
                rows = [(torch.cat(g).movedim(0, 1), None) for g in zip(*each, strict=True)]
            for short, row in zip(shorts, rows, strict=False):
                parts[f"{tap.name}.{short}"].append(row)
    C = len(todo) if at.network.kind == "stacked" else g.shape[0]
    return [_joined(parts[n], t[0].shape, at.n, C, theta) for n, t in at.like.items()]


def _joined(parts: list[tuple[Tensor, Tensor | None]], shape: torch.Size, n: int, C: int, like: Tensor) -> Rows:
    kernel = prod(shape[2:])
    if not parts:  # a parameter that no logit depends on
        return Rows(like.new_zeros(n, C, shape.numel()), None, kernel)
    d, a = zip(*parts, strict=True)
    return Rows(torch.cat(d), None if a[0] is None else torch.cat(a), kernel)


def squares(rows: list[Rows], blocks: Blocks) -> tuple[Tensor, Tensor]:
    """mean_i |F_i|_F^2 and |F|_F^2 in every block, F = mean_i F_i; each (blocks,) in float64."""
    if blocks == "kernel":
        pairs = [_of_kernels(own) for own in rows]
        return torch.cat([own for own, _ in pairs]), torch.cat([mean for _, mean in pairs])
    groups = [rows] if blocks == "none" else [[own] for own in rows]
    found = [_of_block(group) for group in groups]
    return torch.stack([own for own, _ in found]), torch.stack([mean for _, mean in found])


def _of_block(rows: list[Rows]) -> tuple[Tensor, Tensor]:
    n, c = rows[0].d.shape[:2]
    own = sum(_gram(r, slice(None), pairs=False) for r in rows)
    of_samples = own.double().square().sum() / n  # type: ignore[union-attr]
    if sum(r.size for r in rows) <= DIRECT:
        u = torch.cat([r.u for r in rows], 2).flatten(0, 1).double()
        return of_samples, (u.mT @ u / n).square().sum()
    total, step = of_samples.new_zeros(()), max(1, PIECE // (n * c * c))
    for i in range(0, n, step):
        gram = sum(_gram(r, slice(i, i + step)) for r in rows)
        total += torch.linalg.vector_norm(gram).double().square()
    return of_samples, total / n**2


def _gram(rows: Rows, I: slice, pairs: bool = True) -> Tensor:
    """<u_ic, u_jc'> for i in I and all j (i, c, j, c'), or j = i alone (i, c, c')."""
    d, a = rows.d, rows.a
    if not pairs:
        own = d @ d.mT
        return own if a is None else own * a.square().sum(1)[:, None, None]
    gram = (d[I].flatten(0, 1) @ d.flatten(0, 1).mT).view(*d[I].shape[:2], *d.shape[:2])
    return gram if a is None else gram * (a[I] @ a.mT)[:, None, :, None]


def _of_kernels(rows: Rows) -> tuple[Tensor, Tensor]:
    n, d, a = len(rows.d), rows.d.double(), None if rows.a is None else rows.a.double()
    if rows.kernel == 1:  # diagonal entries: q_i = sum_c u_ic^2
        q = d.square().sum(1)  # (n, out)
        if a is None:
            return q.square().mean(0), q.mean(0).square()
        own, mean = q.square().mT @ a**4 / n, (q.mT @ a.square() / n).square()
        return own.flatten(), mean.flatten()
    own, F = d.new_zeros(rows.size // rows.kernel), d.new_zeros(rows.size // rows.kernel, rows.kernel, rows.kernel)
    for part in d.split(max(1, 2**24 // (rows.size * rows.d.shape[1]))):
        u = part.unflatten(2, (-1, rows.kernel)).movedim(2, 1)  # (B, blocks, c, k k)
        own += (u @ u.mT).square().sum((0, 2, 3))
        F += (u.mT @ u).sum(0)
    return own / n, (F / n).square().sum((1, 2))
