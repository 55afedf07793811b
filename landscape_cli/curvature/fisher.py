"""The true Fisher information F = (1/n) sum_i J_i^T S_i J_i through its root: F = U^T U, and U is never squared.

S_i = R_i^T R_i is the curvature of the loss in the logits. The loss gives the rows w_ic of R_i, and those of U are
J_i^T w_ic.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from landscape_cli.curvature.objective import Objective
from landscape_cli.curvature.sample_gradients import (
    backward,
    is_dense,
    layer_gradients,
    patches,
    sample_gradients,
    squared_norms_of,
    tapped,
)
from landscape_cli.network import memory

MAX_ROWS = 16384  # of U: its singular values cost the cube of rows or columns, whichever are fewer
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
CUTOFF = 1e-10  # of singular values, relative to the largest


def fisher_traces(at: Objective, theta: Tensor) -> Tensor:
    """Trace of the true Fisher information for each parameter tensor, (K, tensors) in float64, exact.

    tr F = (1/n) sum_i sum_c |J_i^T w_ic|^2: a backward pass for each row, which share one forward pass.

    Args:
        at: the objective.
        theta: K minima (K, p).
    Source: METRICS section 5; Schraudolph 2002 for the root.
    """
    names = list(at.columns)
    total = torch.zeros(len(theta), len(names), dtype=torch.float64, device=theta.device)
    for x, _ in at.chunks(memory.SHARED):
        if at.network.kind != "stacked":
            for g in sample_gradients(at, theta, x, at.root.rows):
                parts = [g[:, :, own].double().square().sum((1, 2)) for own in at.columns.values()]
                total += torch.stack(parts, 1)
            continue
        taps, logits = tapped(at.network, at.unflatten(theta), at.buffers, x)
        sums: list[list[Tensor | float]] = [[0.0] * len(list(tap.layer.parameters())) for tap in taps]
        ways = list(at.root.rows(logits.detach()))
        inputs = [patches(t.layer, t.x.flatten(0, 1)) if isinstance(t.layer, CONVOLUTIONS) else None for t in taps]
        for c, way in enumerate(ways):
            deltas = backward(logits, taps, way, keep=c + 1 < len(ways))
            for tap, a, delta, own in zip(taps, inputs, deltas, sums, strict=True):
                for j, norms in enumerate(squared_norms_of(tap, at, theta, delta, a=a)):
                    own[j] = own[j] + norms
        for tap, own in zip(taps, sums, strict=True):
            if is_dense(tap):
                own[0] = own[0] * torch.linalg.vector_norm(tap.x, dim=2).square()
            for (short, _), summed in zip(tap.layer.named_parameters(), own, strict=True):
                total[:, names.index(f"{tap.name}.{short}")] += torch.as_tensor(summed).double().sum(1)
    return total / at.n


def fisher_diagonal(at: Objective, theta: Tensor) -> Tensor:
    """Diagonal of the true Fisher information (K, p) in float64, exact; for a dense layer (delta^2)^T (a^2).

    Args:
        at: the objective.
        theta: K minima (K, p).
    """
    total = torch.zeros(theta.shape, dtype=torch.float64, device=theta.device)
    for x, _ in at.chunks(memory.SHARED):
        if at.network.kind != "stacked":
            for g in sample_gradients(at, theta, x, at.root.rows):
                total += g.double().square().sum(1)
            continue
        taps, logits = tapped(at.network, at.unflatten(theta), at.buffers, x)
        ways = list(at.root.rows(logits.detach()))
        dense = [torch.zeros_like(tap.out) if is_dense(tap) else None for tap in taps]  # sum over c of delta^2
        for c, way in enumerate(ways):
            deltas = backward(logits, taps, way, keep=c + 1 < len(ways))
            for tap, delta, summed in zip(taps, deltas, dense, strict=True):
                if summed is not None:
                    summed += delta.square()
                    continue
                own = layer_gradients(tap.layer, tap.name, at, theta, tap.x, delta)
                for (short, _), g in zip(tap.layer.named_parameters(), own, strict=True):
                    total[:, at.columns[f"{tap.name}.{short}"]] += g.double().square().sum(1)
        for tap, summed in zip(taps, dense, strict=True):
            if summed is None:
                continue
            total[:, at.columns[f"{tap.name}.weight"]] += (summed.mT @ tap.x.square()).flatten(1)
            if tap.layer.bias is not None:
                total[:, at.columns[f"{tap.name}.bias"]] += summed.sum(1)
    return total / at.n


@dataclass(frozen=True)
class Metric:
    """Inner products of sample gradients in the metric of F^+, and what F was.

    Args:
        gram: <g_i, g_j>_* = g_i^T F^+ g_j of S samples (K, S, S).
        rank: of U (K,); rows: of U, N (C - 1) for the softmax; inputs: N.
        smallest: singular value that was kept, relative to the largest (K,).
    """

    gram: Tensor
    rank: Tensor
    rows: int
    inputs: int
    smallest: Tensor


def metric_gram(at: Objective, theta: Tensor, S: int) -> Metric:
    """Inner products g_i^T F^+ g_j of the first S samples' gradients, F over all inputs of `at`, by the SVD of U.

    g_i = U^T a_i with a_i the coordinates of sqrt(N) r_i in the rows of the root, so that <g_i, g_j>_* = a_i^T P a_j
    with P the projector onto the range of U. The singular values of U decide on its rank: squaring them would lose the
    saturated samples.

    Args:
        at: the objective in float64, its inputs those that define F; labels count for the first S alone.
        theta: K minima (K, p), float64.
        S: how many samples.
    Source: METRICS section 3.
    """
    found = [_projected(at.alone(k), theta[k : k + 1], S) for k in range(len(theta))]
    gram, rank, rows, smallest = zip(*found, strict=True)
    return Metric(torch.stack(gram), torch.tensor(rank), rows[0], at.n, torch.tensor(smallest))


def too_large(at: Objective, p: int, C: int) -> str:
    """Why U does not fit; empty if it does."""
    rows = at.n * at.root.number(C)
    if rows <= MAX_ROWS and memory.forms(8 * rows * p):
        return ""
    most = f"at most {MAX_ROWS} rows and {memory.LARGEST >> 30} GB"
    return f"U of {rows} x {p} is too large ({most}): lower inputs or samples, or say --memory"


def root(at: Objective, theta: Tensor, y: Tensor | None = None) -> Tensor:
    """U (N, rows, p) of one minimum, F = sum over its rows of u u^T.

    Args:
        at: the objective of this minimum alone.
        theta: (1, p).
        y: of each input the label by which the basis of its rows is chosen (N,), -1 for none.
    """
    U, start = theta.new_empty(at.n, at.root.number(at.logits(theta).shape[2]), theta.shape[1]), 0
    for x in at.x.split(memory.pieces(8 * theta.shape[1], memory.GRADIENTS)):  # gradients are what takes memory here
        I = slice(start, start + len(x))
        own = None if y is None else y[None, I]
        for c, g in enumerate(sample_gradients(at, theta, x, lambda z, own=own: at.root.rows(z, own))):  # type: ignore[misc]
            torch.mul(g[0], at.n**-0.5, out=U[I, c])
        start += len(x)
    return U


def _projected(at: Objective, theta: Tensor, S: int) -> tuple[Tensor, int, int, float]:
    """Of one minimum: inner products (S, S), rank, rows, the smallest singular value kept."""
    logits, N, y = at.logits(theta)[0], at.n, at.y.clone()
    y[S:] = -1  # the basis matters where there is a residual alone
    U = root(at, theta, y)
    rows = U.shape[1]  # of a sample
    a = at.root.coordinates(logits[:S], at.y[:S], N)
    L, rank, smallest = _range(U.flatten(0, 1))
    if L is None:  # full row rank: P = I, and disjoint samples have nothing in common
        return torch.diag(a.square().sum(1)), rank, N * rows, smallest
    z = torch.einsum("icr,ic->ir", L[: S * rows].view(S, rows, -1), a)
    return z @ z.mT, rank, N * rows, smallest


def _range(U: Tensor) -> tuple[Tensor | None, int, float]:
    """Orthonormal basis of the range of U (rows, rank), None for all of it; its rank; the smallest singular value kept.

    A QR first: the factor's singular values are those of U, and its smaller side alone enters the SVD.
    """
    if len(U) > U.shape[1]:
        Q, R = torch.linalg.qr(U)
        X, sigma, _ = torch.linalg.svd(R)
    else:
        R = torch.linalg.qr(U.mT, mode="r")[1]
        Q, (X, sigma, _) = None, torch.linalg.svd(R.mT)
    kept = sigma > CUTOFF * sigma[0]
    rank = int(kept.sum())
    smallest = float(sigma[rank - 1] / sigma[0]) if rank else float("nan")
    if rank == len(U):
        return None, rank, smallest
    if Q is not None and rank == U.shape[1]:
        return Q, rank, smallest
    return (X[:, :rank] if Q is None else Q @ X[:, :rank]), rank, smallest
