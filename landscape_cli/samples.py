"""Gradients of single samples: their Gram matrix and their squared norms, without forming them where that is possible.

For a dense layer the gradient of sample i is the outer product of delta_i (the slope of the loss at the layer's output)
and a_i (its input), so that <g_i, g_j> = (a_i . a_j + 1)(delta_i . delta_j): two n x n products a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from landscape_cli.network import Network, Params, Pass, Tap
from landscape_cli.objective import Objective, residuals


def sample_gram(at: Objective, theta: Tensor) -> Tensor:
    """Inner products <g_i, g_j> of all samples' gradients, (K, n, n) in float64.

    Args:
        at: the objective.
        theta: K minima (K, p).
    """
    if at.network.kind != "stacked":
        return _gram_of_any(at, theta)
    params = at.unflatten(theta)
    parts: list[list[tuple[Tap, Tensor]]] = []
    for x, y in at.chunks(2**28):
        taps, logits = tapped(at.network, params, at.buffers, x)
        parts.append(list(zip(taps, backward(logits, taps, residuals(logits, y.expand(len(logits), -1))), strict=True)))
    K, n = len(theta), len(at.y)
    gram = torch.zeros(K, n, n, dtype=torch.float64, device=theta.device)
    for pieces in zip(*parts, strict=True):
        tap, x, delta = pieces[0][0], torch.cat([t.x for t, _ in pieces], 1), torch.cat([d for _, d in pieces], 1)
        if is_dense(tap):
            for k in range(K):  # one n x n product at a time stays in the cache
                a, d = x[k].double(), delta[k].double()
                gram[k].addcmul_(torch.addmm(_ones(tap.layer, a), a, a.mT), d @ d.mT)
        else:
            for k in range(K):
                for g in layer_gradients(tap.layer, tap.name, at, theta, x[k : k + 1], delta[k : k + 1], k):
                    gram[k].addmm_(g[0].double(), g[0].double().mT)
    return gram


def _ones(layer: nn.Module, a: Tensor) -> Tensor:
    return a.new_full((), 1.0 if layer.bias is not None else 0.0)


def is_dense(tap: Tap) -> bool:
    """Whether the product formula holds: a linear layer that sees one vector a sample."""
    return isinstance(tap.layer, nn.Linear) and tap.x.dim() == 3


def tapped(network: Network, params: Params, buffers: Params, x: Tensor) -> tuple[list[Tap], Tensor]:
    """A forward pass that can be differentiated by every layer's output: its taps, and logits (K, B, C)."""
    taps: list[Tap] = []
    logits = network({n: p.detach() for n, p in params.items()}, buffers, x, Pass(taps=taps))
    return taps, logits


def backward(logits: Tensor, taps: list[Tap], cotangent: Tensor, *, keep: bool = False) -> tuple[Tensor, ...]:
    """Slopes delta (K, B, ...) at every layer's output; samples do not mix in evaluation mode."""
    return torch.autograd.grad(logits, [t.out for t in taps], cotangent.detach().to(logits.dtype), retain_graph=keep)


def layer_gradients(
    layer: nn.Module, name: str, at: Objective, theta: Tensor, x: Tensor, delta: Tensor, k: int | None = None
) -> Iterator[Tensor]:
    """Per-sample gradients of each parameter of a layer, (K, B, size), in the order of its parameters.

    Args:
        layer: linear, convolution or BatchNorm.
        name: of the layer, to find BatchNorm's buffers.
        at: the objective, which holds them.
        theta: unused but for its device.
        x: the layer's input (K, B, ...).
        delta: slopes at its output (K, B, ...).
        k: which run the single row of x belongs to; None if x has all.
    """
    if isinstance(layer, nn.Linear):
        a, d = (t.unflatten(1, (t.shape[1], 1)) if t.dim() == 3 else t.flatten(2, -2) for t in (x, delta))
        weight, offset = d.mT @ a, d.sum(2)
    elif isinstance(layer, nn.Conv1d | nn.Conv2d):
        weight, offset = _conv_gradients(layer, x, delta)
    else:
        own = {
            s: at.buffers[f"{name}.running_{s}"][slice(None) if k is None else slice(k, k + 1)] for s in ("mean", "var")
        }
        as_channels = (slice(None), None, slice(None), None)
        x, delta = x.unsqueeze(-1).flatten(3), delta.unsqueeze(-1).flatten(3)  # (K, B, C, positions)
        normal = (x - own["mean"][as_channels]) * (own["var"] + layer.eps).rsqrt()[as_channels]  # type: ignore[operator]
        weight, offset = (delta * normal).sum(3), delta.sum(3)
    yield weight.flatten(2)
    if layer.bias is not None:
        yield offset.flatten(2)


def _conv_gradients(layer: nn.Conv1d | nn.Conv2d, x: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
    K, B = x.shape[:2]
    x = F.pad(x.flatten(0, 1), layer._reversed_padding_repeated_twice)
    flat = x.dim() == 3
    x = x.unsqueeze(2) if flat else x
    extra = (1,) if flat else ()
    patches = F.unfold(x, (*extra, *layer.kernel_size), (*extra, *layer.dilation), 0, (*extra, *layer.stride))
    a = patches.unflatten(1, (layer.groups, -1))  # (K B, groups, in k k / groups, positions)
    d = delta.flatten(0, 1).flatten(2).unflatten(1, (layer.groups, -1))  # (K B, groups, out / groups, positions)
    return (d @ a.mT).unflatten(0, (K, B)), d.sum(3).unflatten(0, (K, B))


def fisher_traces(at: Objective, theta: Tensor, chunk: int = 2**24) -> Tensor:
    """Trace of the true Fisher information for each parameter tensor, (K, tensors) in float64, exact.

    tr F = (1/n) sum_i |R_i J_i|^2, R_i = diag(sqrt p_i)(I - 1 p_i^T): C backward passes that share one forward pass.

    Args:
        at: the objective.
        theta: K minima (K, p).
        chunk: bytes of activations in one pass; small enough for the cache.
    Source: METRICS section 5; Schraudolph 2002 for R_i.
    """
    params = at.unflatten(theta)
    names = list(params)
    total = torch.zeros(len(theta), len(names), dtype=torch.float64, device=theta.device)
    for x, _ in at.chunks(chunk):
        if at.network.kind != "stacked":
            total += _traces_of_any(at, theta, x)
            continue
        taps, logits = tapped(at.network, params, at.buffers, x)
        p = torch.softmax(logits.detach(), -1)
        sums: list[list[Tensor | float]] = [[0.0] * len(list(tap.layer.parameters())) for tap in taps]
        for c, unit in enumerate(torch.eye(p.shape[2], dtype=p.dtype, device=p.device)):
            deltas = backward(logits, taps, p[:, :, c : c + 1].sqrt() * (unit - p), keep=c + 1 < p.shape[2])
            for tap, delta, own in zip(taps, deltas, sums, strict=True):
                for j, norms in enumerate(_squared_norms(tap, at, theta, delta)):
                    own[j] = own[j] + norms
        for tap, own in zip(taps, sums, strict=True):
            if is_dense(tap):
                own[0] = own[0] * torch.linalg.vector_norm(tap.x, dim=2).square()
            for (short, _), summed in zip(tap.layer.named_parameters(), own, strict=True):
                total[:, names.index(f"{tap.name}.{short}")] += torch.as_tensor(summed).double().sum(1)
    return total / len(at.y)


def _squared_norms(tap: Tap, at: Objective, theta: Tensor, delta: Tensor) -> list[Tensor]:
    """Squared norms (K, B) of each sample's gradients; a dense weight's still lacks its factor |a|^2."""
    if is_dense(tap):
        d = torch.linalg.vector_norm(delta, dim=2).square()
        return [d] * len(list(tap.layer.parameters()))
    return [g.square().sum(2) for g in layer_gradients(tap.layer, tap.name, at, theta, tap.x, delta)]


def _gradients_of_any(
    at: Objective, theta: Tensor, x: Tensor, cotangents: Callable[[Tensor], Iterable[Tensor]]
) -> Iterator[tuple[Tensor, ...]]:
    """Per-sample gradients of one run of any network: its stack axis serves as the axis of samples.

    Args:
        at: the objective of this run alone.
        theta: (1, p).
        x: a batch (B, ...).
        cotangents: logits (B, C) -> the slopes (B, C) to pull back, one after the other.
    Returns: for each of them the gradient of every parameter (B, size).
    """
    B = len(x)
    leaves = {n: t.detach().expand(B, *t.shape[1:]).clone().requires_grad_() for n, t in at.unflatten(theta).items()}
    buffers = {n: b.expand(B, *b.shape[1:]) for n, b in at.buffers.items()}
    z = at.network(leaves, buffers, x[:, None])[:, 0]
    for way in cotangents(z.detach()):
        slopes = torch.autograd.grad(z, list(leaves.values()), way, retain_graph=True, materialize_grads=True)
        yield tuple(g.flatten(1) for g in slopes)


def _traces_of_any(at: Objective, theta: Tensor, x: Tensor) -> Tensor:
    """The sum of `fisher_traces` for a network without stacked layers."""

    def rows(z: Tensor) -> Iterator[Tensor]:
        p = torch.softmax(z, -1)
        for c, unit in enumerate(torch.eye(p.shape[1], dtype=p.dtype, device=p.device)):
            yield p[:, c : c + 1].sqrt() * (unit - p)

    total = []
    for k in range(len(theta)):
        parts = _gradients_of_any(at.alone(k), theta[k : k + 1], x, rows)
        total.append(sum(torch.stack([g.double().square().sum() for g in part]) for part in parts))
    return torch.stack(total)  # type: ignore[arg-type]


def _gram_of_any(at: Objective, theta: Tensor) -> Tensor:
    """The matrix of `sample_gram` for a network without stacked layers."""
    grams = []
    for k in range(len(theta)):
        rows = []
        for x, y in at.chunks(2**24 // theta.shape[1]):
            own = _gradients_of_any(at.alone(k), theta[k : k + 1], x, lambda z, y=y: [residuals(z, y)])  # type: ignore[misc]
            rows += [torch.cat(part, 1) for part in own]
        A = torch.cat(rows).double()
        grams.append(A @ A.mT)
    return torch.stack(grams)
