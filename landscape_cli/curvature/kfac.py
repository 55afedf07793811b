"""K-FAC: the Fisher information as one Kronecker product a layer, F ~ A x B, and inner products in its inverse.

A = (1/N) sum over inputs and positions of a a^T with a = (input, 1), B = (1/(N T)) sum of delta delta^T over inputs,
their T positions and the rows of the root of S. Both factors are kept as roots (triangles of a QR), never squared, and
inverted on their ranges without damping. BatchNorm's scale and shift have no such form: their exact block is taken.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from landscape_cli.curvature.fisher import CUTOFF
from landscape_cli.curvature.objective import Objective
from landscape_cli.curvature.sample_gradients import backward, layer_gradients, patches, tapped
from landscape_cli.network import memory

Root = Tensor  # (rows, d), R^T R the factor


def unsupported(at: Objective) -> str:
    """Why K-FAC does not apply; empty if it does."""
    if at.network.kind == "stacked":
        return ""
    return f"K-FAC needs layers that it knows: {at.network.reason.partition('; vmap')[0]}"


def kfac_gram(at: Objective, theta: Tensor, g: Tensor) -> Tensor:
    """Inner products g_a^T F^+ g_b of M gradients, F replaced by its Kronecker factors; (M, M) in float64.

    Args:
        at: the objective of one minimum in float64; its inputs define F.
        theta: (1, p).
        g: gradients (M, p).
    Source: Martens & Grosse 2015; Grosse & Martens 2016 for convolutions, each group of channels a block of its own.
    """
    gram = g.new_zeros(len(g), len(g))
    for layer, name, factors in _factors(at, theta):
        own = [
            g[:, at.columns[f"{name}.{short}"]].unflatten(1, (len(factors), -1))
            for short, _ in layer.named_parameters()
        ]
        for i, (A, B) in enumerate(factors):
            block = [part[:, i] for part in own]
            if A is None:
                white = torch.cat(block, 1) @ _inverse_root(B)
            else:
                weight = block[0].unflatten(1, (B.shape[1], -1))  # (M, out, in), with the bias as a last column
                whole = torch.cat([weight, *[b[:, :, None] for b in block[1:]]], 2)
                white = (_inverse_root(B).mT @ (whole @ _inverse_root(A))).flatten(1)
            gram += white @ white.mT
    return gram


def _inverse_root(root: Root) -> Tensor:
    """W (d, rank) with W W^T the pseudo-inverse of R^T R."""
    sigma, V = torch.linalg.svd(root, full_matrices=False)[1:]
    kept = sigma > CUTOFF * sigma[:1]
    W: Tensor = V[kept].mT / sigma[kept]
    return W


def _factors(at: Objective, theta: Tensor) -> Iterator[tuple[nn.Module, str, list[tuple[Root | None, Root]]]]:
    """Each layer, its name, and roots of A and B of each group; for BatchNorm no A, and the root of its whole block."""
    found: dict[str, list[tuple[Root | None, Root | None]]] = {}
    layers: dict[str, nn.Module] = {}
    for x, _ in at.chunks(memory.SHARED):
        taps, logits = tapped(at.network, at.unflatten(theta), at.buffers, x)
        ways = list(at.root.rows(logits.detach()))
        for c, way in enumerate(ways):
            for tap, delta in zip(taps, backward(logits, taps, way, keep=c + 1 < len(ways)), strict=True):
                layers[tap.name], groups = tap.layer, getattr(tap.layer, "groups", 1)
                roots = found.setdefault(tap.name, [(None, None)] * groups)
                if not isinstance(tap.layer, nn.Linear | nn.Conv1d | nn.Conv2d):
                    whole = torch.cat(list(layer_gradients(tap.layer, tap.name, at, theta, tap.x, delta)), 2)[0]
                    roots[0] = (None, _grown(roots[0][1], whole / at.n**0.5))
                    continue
                a, d = _positions(tap.layer, tap.x[0], delta[0])
                for i, (A, B) in enumerate(roots):
                    A = _grown(A, a[i] / at.n**0.5) if c == 0 else A
                    roots[i] = (A, _grown(B, d[i] / (d.shape[1] / len(x) * at.n) ** 0.5))
    for name, roots in found.items():
        yield layers[name], name, [(A, B) for A, B in roots if B is not None]


def _positions(layer: nn.Module, x: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs (with a 1 for the bias) and slopes at all positions of all samples: (groups, rows, in + 1 or out)."""
    if isinstance(layer, nn.Linear):
        a, d = x.flatten(0, -2)[None], delta.flatten(0, -2)[None]
    else:
        groups: int = layer.groups  # type: ignore[assignment]
        a, d = (
            t.unflatten(1, (groups, -1)).movedim(1, 0).mT.flatten(1, 2)
            for t in (patches(layer, x), delta.flatten(2))  # type: ignore[arg-type]
        )
    return (F.pad(a, (0, 1), value=1.0) if layer.bias is not None else a), d


def _grown(root: Root | None, rows: Tensor) -> Root:
    """The triangle of all rows so far."""
    rows = rows if root is None else torch.cat([root, rows])
    return torch.linalg.qr(rows, mode="r")[1] if len(rows) > rows.shape[1] else rows
