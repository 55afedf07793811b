"""Squared Frobenius norms of the Fisher information in blocks: of each sample's F_i, and of their mean; one minimum.

F_i = sum_c u_ic u_ic^T with rows u_ic; for a dense weight u_ic = delta_ic a_i^T, which is never formed. With the root
of the true Fisher as rows these are also the diagonal blocks of the Hessian of a piecewise linear network: its logits
are affine in each parameter tensor, so that only F is left there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import combinations_with_replacement
from math import prod
from typing import Literal

import torch
from torch import Tensor

from landscape_cli.curvature.objective import Objective
from landscape_cli.curvature.sample_gradients import backward, is_dense, layer_gradients, sample_gradients, tapped
from landscape_cli.network import memory

Blocks = Literal["none", "layer", "kernel"]
Ways = Callable[[Tensor, Tensor], Iterable[Tensor]]
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
    for x, y in at.chunks(memory.SHARED):
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
    found: list[Rows] = []
    last: Tensor | None = None
    for name, t in at.like.items():
        kernel = prod(t.shape[3:])
        if not parts[name]:  # a parameter that no logit depends on
            found.append(Rows(theta.new_zeros(at.n, C, t[0].numel()), None, kernel))
            continue
        pieces, a = zip(*parts[name], strict=True)
        d = found[-1].d if pieces[0] is last else torch.cat(pieces)  # a bias after its weight shares it
        found.append(Rows(d, None if a[0] is None else torch.cat(a), kernel))
        last = pieces[0]
    return found


Pair = tuple[Tensor, Tensor]


def squares(rows: list[Rows]) -> dict[Blocks, Pair]:
    """mean_i |F_i|_F^2 and |F|_F^2 in every block, F = mean_i F_i; each (blocks,) in float64."""
    own, mean = _by_outer_products(rows) if _outer_is_less(rows) else _by_rows(rows)
    kernels = [_of_kernels(r) for r in rows]
    return {
        "none": (own[:1], mean[:1]),
        "layer": (own[1:], mean[1:]),
        "kernel": (torch.cat([o for o, _ in kernels]), torch.cat([m for _, m in kernels])),
    }


def _by_rows(rows: list[Rows]) -> Pair:
    """First all parameters, then each tensor: by the inner products of rows, or F itself where that is small."""
    n, c = rows[0].d.shape[:2]
    each = [_gram(r, slice(None), pairs=False) for r in rows]
    own = torch.stack([g.double().square().sum() for g in [sum(each), *each]]) / n  # type: ignore[union-attr]
    if sum(r.size for r in rows) <= DIRECT:
        u = [r.u.flatten(0, 1).double() for r in rows]
        return own, torch.stack([(v.mT @ v / n).square().sum() for v in [torch.cat(u, 1), *u]])
    total, step = torch.zeros_like(own), memory.pieces(8 * n * c * c, memory.PRODUCTS)
    for i in range(0, n, step):
        grams = [_gram(r, slice(i, i + step)) for r in rows]
        total += torch.stack([torch.linalg.vector_norm(g).double().square() for g in [sum(grams), *grams]])
    return own, total / n**2


def _outer_is_less(rows: list[Rows]) -> bool:
    """Whether outer products take less work than rows do: passes over n^2 c^2 numbers cost as 30 products each."""
    c, widths = rows[0].d.shape[1], [layer[0].d.shape[2] for layer in _layers(rows)]
    if any(own.a is None and own.kernel > 1 for own in rows) or not memory.forms(max(widths) ** 2 * len(rows[0].d) * 4):
        return False
    outer = sum(v * w // (2 if i == j else 1) for i, v in enumerate(widths) for j, w in enumerate(widths[: i + 1]))
    return outer < c * c * sum(w + 30 for w in widths)


def _layers(rows: list[Rows]) -> list[list[Rows]]:
    """A weight and the bias beside it, which have the same d, together."""
    found: list[list[Rows]] = []
    for own in rows:
        if own.a is None and found and found[-1][0].d is own.d:
            found[-1].append(own)
        else:
            found.append([own])
    return found


def _by_outer_products(rows: list[Rows]) -> Pair:
    """As `_by_rows`: sum_cc' <d_ic, d_jc'> <e_ic, e_jc'> = <sum_c d_ic e_ic^T, sum_c d_jc e_jc^T> for layers d and e.

    So n x n inner products of matrices (out, out') take the place of n c x n c ones of vectors.
    """
    n, layers, number = len(rows[0].d), _layers(rows), {id(r): i for i, r in enumerate(rows)}
    own, mean = rows[0].d.new_zeros(2, 1 + len(rows), dtype=torch.float64)
    for i, j in combinations_with_replacement(range(len(layers)), 2):
        d, e = layers[i][0].d, layers[j][0].d
        outer = d.mT @ e
        if i == j:  # symmetric: half of it is enough
            over = torch.triu_indices(*outer.shape[1:], device=d.device)
            outer = outer[:, *over] * (1 + (over[0] != over[1])).to(d).sqrt()
        else:
            outer = outer.flatten(1)
        step = min(memory.pieces(8 * n, memory.PRODUCTS), -(-n // 4))
        for start in range(0, n, step):  # symmetric again: rows I against those from I on
            I, on = slice(start, start + step), slice(start, n)
            inner = outer[I] @ outer[on].mT
            inputs = [[1 if r.a is None else r.a[I] @ r.a[on].mT for r in layer] for layer in (layers[i], layers[j])]
            parts = [(0, (1 if i == j else 2) * inner * sum(inputs[0]) * sum(inputs[1]))]
            if i == j:
                parts += [(1 + number[id(r)], inner * x * x) for r, x in zip(layers[i], inputs[0], strict=True)]
            for k, part in parts:
                part = part.double()
                mean[k] += 2 * part.sum() - part[:, : len(part)].sum()
                own[k] += part.diagonal().sum()
    return own / n, mean / n**2


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
    for part in d.split(memory.pieces(8 * rows.size * rows.d.shape[1], memory.GRADIENTS)):
        u = part.unflatten(2, (-1, rows.kernel)).movedim(2, 1)  # (B, blocks, c, k k)
        own += (u @ u.mT).square().sum((0, 2, 3))
        F += (u.mT @ u).sum(0)
    return own / n, (F / n).square().sum((1, 2))
