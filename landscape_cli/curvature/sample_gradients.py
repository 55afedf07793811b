"""Gradients of single samples: their Gram matrix and their squared norms, without forming them where that is possible.

For a dense layer the gradient of sample i is the outer product of delta_i (the slope of the loss at the layer's output)
and a_i (its input), so that <g_i, g_j> = (a_i . a_j + 1)(delta_i . delta_j): two n x n products a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import torch
import torch.autograd.forward_ad as fwAD
import torch.nn.functional as F
from torch import Tensor, nn

from landscape_cli.curvature.objective import Objective
from landscape_cli.network import Network, Params, Pass, Tap, memory, moving, off_graph
from landscape_cli.network.layers import group_normal

BLOCK = 128  # rows of a Gram matrix at a time


def sample_gram(at: Objective, theta: Tensor) -> Tensor:
    """Inner products <g_i, g_j> of all samples' gradients, (K, n, n) in float64.

    Args:
        at: the objective.
        theta: K minima (K, p).
    """
    if at.network.kind != "stacked":
        return _gram_of_any(at, theta)
    together = memory.pieces(at.bytes_per_sample * at.n / len(theta), memory.TAPS)
    if together < len(theta):
        pieces = torch.arange(len(theta)).split(together)
        return torch.cat([sample_gram(at.rows(k.to(theta.device)), theta[k]) for k in pieces])
    params = at.unflatten(theta)
    parts: list[list[tuple[Tap, Tensor]]] = []
    for x, y in at.chunks(memory.TAPS):
        taps, logits = tapped(at.network, params, at.buffers, x)
        parts.append(list(zip(taps, backward(logits, taps, at.residuals(logits, y)), strict=True)))
    K, n = len(theta), len(at.y)
    gram = torch.zeros(K, n, n, dtype=torch.float64, device=theta.device)
    for pieces in zip(*parts, strict=True):
        tap, x, delta = pieces[0][0], torch.cat([t.x for t, _ in pieces], 1), torch.cat([d for _, d in pieces], 1)
        if is_dense(tap):
            for k in range(K):
                _add_products(gram[k], x[k].double(), delta[k].double(), 1.0 if tap.layer.bias is not None else 0.0)
        else:
            for k in range(K):
                for g in layer_gradients(tap.layer, tap.name, at, theta, x[k : k + 1], delta[k : k + 1], k):
                    gram[k].addmm_(g[0].double(), g[0].double().mT)
    for start in range(0, n, BLOCK):
        rows = slice(start, start + BLOCK)
        gram[:, start + BLOCK :, rows] = gram[:, rows, start + BLOCK :].mT
    return gram


def _add_products(gram: Tensor, a: Tensor, d: Tensor, bias: float) -> None:
    """Add (a_i . a_j + bias)(d_i . d_j) to the blocks on and above the diagonal, a few rows at a time for the cache."""
    for start in range(0, len(a), BLOCK):
        rows = slice(start, start + BLOCK)
        gram[rows, start:] += (a[rows] @ a[start:].mT).add_(bias).mul_(d[rows] @ d[start:].mT)


def gram_bytes(at: Objective) -> float:
    """What `sample_gram` takes for one run besides its result: all taps, and the gradients of the widest layer."""
    widest = max(t[0].numel() for t in at.like.values())
    if at.network.kind != "stacked":
        return 12.0 * at.n * sum(t[0].numel() for t in at.like.values())
    convolves = any(isinstance(m, nn.Conv1d | nn.Conv2d) for m in at.network.module.modules())
    return at.n * (at.bytes_per_sample / len(next(iter(at.like.values()))) + 12.0 * widest * convolves)


def squared_norms(at: Objective, theta: Tensor) -> Tensor:
    """|g_i|^2 of every sample's gradient (K, n) in float64, exact; no gradient of a dense layer is formed.

    Args:
        at: the objective.
        theta: K minima (K, p).
    """
    norms = []
    for x, y in at.chunks(memory.SHARED):
        if at.network.kind != "stacked":
            every = sample_gradients(at, theta, x, lambda z, y=y: [at.residuals(z, y)])  # type: ignore[misc]
            norms += [g.double().square().sum(2) for g in every]
            continue
        taps, logits = tapped(at.network, at.unflatten(theta), at.buffers, x)
        deltas = backward(logits, taps, at.residuals(logits, y))
        parts = zip(taps, deltas, strict=True)
        norms.append(torch.stack([sum(squared_norms_of(t, at, theta, d, True)).double() for t, d in parts]).sum(0))  # type: ignore[union-attr]
    return torch.cat(norms, 1)


def minibatch_gram(at: Objective, theta: Tensor, minibatches: Tensor) -> Tensor:
    """Inner products of the gradients of minibatches (M, m), (K, M, M) in float64.

    Where M gradients do not fit into memory, they are made once for each slice of the parameters.

    Args:
        at: the objective.
        theta: K minima (K, p).
        minibatches: numbers of samples.
    """
    (K, p), M = theta.shape, len(minibatches)
    width = min(p, memory.pieces(M * K * theta.element_size(), memory.STACKED))
    gram = torch.zeros(K, M, M, dtype=torch.float64, device=theta.device)
    slot = theta.new_empty(K, M, width)  # one for all slices, or two would be alive at a time
    for start in range(0, p, width):
        g = slot[:, :, : p - start]
        for b, index in enumerate(minibatches):
            g[:, b] = at.subset(index).loss_and_gradient(theta)[1][:, start : start + width]
        for k in range(K):
            for columns in g[k].split(memory.pieces(8 * M, memory.BLOCK), 1):
                part = columns.double()
                gram[k].addmm_(part, part.mT)
    return gram


def block_means(grams: Tensor, draws: Tensor) -> Tensor:
    """Inner products of minibatch gradients (K, D, M, M), from those of samples (K, n, n): means over blocks.

    Args:
        grams: one Gram matrix a minimum.
        draws: numbers of the samples in each minibatch (D, M, m), disjoint within a draw.
    """
    return torch.stack([torch.stack([_block_means(gram, draw) for draw in draws]) for gram in grams])


def _block_means(gram: Tensor, draw: Tensor) -> Tensor:
    """Rows are added up by minibatch, then columns: on a CPU in a tenth of the time of a product with indicators."""
    M, m = draw.shape
    if m == 1:
        return gram[draw[:, 0]][:, draw[:, 0]]
    label = torch.full((len(gram),), M, device=gram.device)  # the last is for samples in no minibatch
    label[draw.flatten()] = torch.arange(M, device=gram.device).repeat_interleave(m)

    def summed(rows: Tensor) -> Tensor:
        return rows.new_zeros(M + 1, rows.shape[1]).index_add_(0, label, rows)[:M]

    return summed(summed(gram).mT.contiguous()) / m**2


def sample_gradients(
    at: Objective, theta: Tensor, x: Tensor, ways: Callable[[Tensor], Iterable[Tensor]]
) -> Iterator[Tensor]:
    """Gradients of <way_i, logits_i> for every sample of a batch, one (K, B, p) for each of the ways.

    Args:
        at: the objective.
        theta: K minima (K, p).
        x: a batch (B, ...).
        ways: logits (K, B, C) -> cotangents (K, B, C), one after the other.
    """
    if at.network.chart is not None:
        within, there, slope, _ = _through_chart(at, theta)
        yield from (g * slope[:, None] for g in sample_gradients(within, there, x, ways))
        return
    if at.network.kind != "stacked":
        runs = [
            _gradients_of_any(at.alone(k), theta[k : k + 1], x, lambda z: [w[0] for w in ways(z[None])])
            for k in range(len(theta))
        ]
        yield from (torch.stack([torch.cat(part, 1) for part in parts]) for parts in zip(*runs, strict=True))
        return
    taps, logits = tapped(at.network, at.unflatten(theta), at.buffers, x)
    todo, columns = list(ways(logits.detach())), at.columns
    for i, way in enumerate(todo):
        g = theta.new_zeros(len(theta), len(x), theta.shape[1])
        for tap, delta in zip(taps, backward(logits, taps, way, keep=i + 1 < len(todo)), strict=True):
            own = layer_gradients(tap.layer, tap.name, at, theta, tap.x, delta)
            for (short, _), part in zip(tap.layer.named_parameters(), own, strict=True):
                g[:, :, columns[f"{tap.name}.{short}"]] = part
        yield g


def _through_chart(at: Objective, phi: Tensor) -> tuple[Objective, Tensor, Tensor, Tensor]:
    """Of a charted network, theta = h(phi): the objective of theta, theta, h' and h'' (K, p)."""
    assert at.network.chart is not None
    phi = phi.detach().requires_grad_()
    theta = at.network.chart.h(phi)
    (slope,) = torch.autograd.grad(theta.sum(), phi, create_graph=True)
    bend = torch.autograd.grad(slope.sum(), phi)[0] if slope.requires_grad else torch.zeros_like(phi)
    return (
        replace(at, network=replace(at.network.chart.within, dtype=at.network.dtype)),
        theta.detach(),
        slope.detach(),
        bend,
    )


def hessian_squares(at: Objective, theta: Tensor, v: Tensor) -> Tensor:
    """|H_i v|^2 of every sample's own Hessian, by parameter tensor, (K, n, tensors) in float64; no H_i v is formed.

    Forward over reverse: the backward pass carries the tangents of the slopes delta and of the inputs a along v. For a
    dense layer the tangent of delta a^T is delta' a^T + delta a'^T, whose norm needs inner products of vectors alone.

    Args:
        at: the objective.
        theta: K minima (K, p).
        v: directions (K, p).
    """
    through: tuple[Params, Params] | None = None
    if at.network.chart is not None and at.network.chart.within.kind == "stacked":
        at, theta, slope, bend = _through_chart(at, theta)
        through, v = (at.unflatten(slope), at.unflatten(bend * v)), slope * v
    if at.network.kind != "stacked":
        every = sample_hessian_products(at, theta, v)
        return torch.cat([_by_tensor(at, Hv.double().square()) for Hv in every], 1)
    params, along, names, found = at.unflatten(theta), at.unflatten(v), list(at.columns), []
    for x, y in at.chunks(memory.SHARED):
        squares = torch.zeros(len(theta), len(x), len(names), dtype=torch.float64, device=theta.device)
        with fwAD.dual_level():
            taps, logits = tapped(at.network, moving(params, along), at.buffers, x)
            deltas = backward(logits, taps, at.residuals(logits, y))
            for tap, delta in zip(taps, deltas, strict=True):
                own = _tangent_squares(tap, at, theta, delta, through)
                for (short, _), square in zip(tap.layer.named_parameters(), own, strict=True):
                    squares[:, :, names.index(f"{tap.name}.{short}")] = square.double()
        found.append(squares)
    return torch.cat(found, 1)


def _tangent_squares(
    tap: Tap, at: Objective, theta: Tensor, delta: Tensor, through: tuple[Params, Params] | None
) -> list[Tensor]:
    """Squared length (K, B) of the tangent of each parameter's gradient; through a chart of D g' + E g elementwise."""
    names = [f"{tap.name}.{short}" for short, _ in tap.layer.named_parameters()]
    if not is_dense(tap):
        parts = [_tangent(g) for g in layer_gradients(tap.layer, tap.name, at, theta, tap.x, delta)]
        if through is not None:
            DE = [tuple(side[n].flatten(1)[:, None] for side in through) for n in names]
            return [(D * g_ + E * g).square().sum(2) for (D, E), (g, g_) in zip(DE, parts, strict=True)]
        return [g_.square().sum(2) for _, g_ in parts]
    (a, a_), (d, d_) = _tangent(tap.x), _tangent(delta)
    if through is not None:  # sum_st (D_st (d'_s a_t + d_s a'_t) + E_st d_s a_t)^2, multiplied out
        (D, E), aa, cross = (side[names[0]] for side in through), a * a, a * a_
        P, Q, R = ((M * N).mT for M, N in ((D, D), (D, E), (E, E)))
        own = d_ * d_ * (aa @ P) + 2 * d * d_ * (cross @ P + aa @ Q) + d * d * (a_ * a_ @ P + 2 * cross @ Q + aa @ R)
        bias = [side[n][:, None] for n in names[1:] for side in through]
        return [own.sum(2).clamp_min(0), *([(bias[0] * d_ + bias[1] * d).square().sum(2)] if bias else [])]

    def dot(u: Tensor, w: Tensor) -> Tensor:
        return (u * w).sum(2)

    weight = dot(d_, d_) * dot(a, a) + 2 * dot(d, d_) * dot(a, a_) + dot(d, d) * dot(a_, a_)
    return [weight.clamp_min(0), dot(d_, d_)][: len(list(tap.layer.parameters()))]


def _tangent(x: Tensor) -> tuple[Tensor, Tensor]:
    value, tangent = fwAD.unpack_dual(x)
    return value.detach(), torch.zeros_like(value) if tangent is None else tangent.detach()


def _by_tensor(at: Objective, squares: Tensor) -> Tensor:
    """Sums over each parameter tensor: (..., p) -> (..., tensors)."""
    return torch.stack([squares[..., own].sum(-1) for own in at.columns.values()], -1)


def sample_hessian_products(at: Objective, theta: Tensor, v: Tensor) -> Iterator[Tensor]:
    """H_i v of every sample's own Hessian, chunk by chunk (K, B, p): for small nets, or nets of unknown layers.

    Args:
        at: the objective.
        theta: K minima (K, p).
        v: directions (K, p).
    """
    size = memory.pieces(8 * theta.shape[1], memory.PRODUCTS)
    if at.network.chart is not None:  # D H_i D v + g_i h'' v
        within, there, slope, bend = _through_chart(at, theta)
        products = sample_hessian_products(within, there, slope * v)
        for x, y, Hv in zip(at.x.split(size), at.y.split(size), products, strict=True):
            (g,) = sample_gradients(within, there, x, lambda z, y=y: [at.residuals(z, y)])  # type: ignore[misc]
            yield slope[:, None] * Hv + g * (bend * v)[:, None]
        return
    for x, y in zip(at.x.split(size), at.y.split(size), strict=True):
        K, B = len(theta), len(x)
        rows = torch.arange(K, device=theta.device).repeat_interleave(B)
        each = at.rows(rows)
        own = replace(each, x=x[:, None].repeat(K, *[1] * x.dim()), y=y[:, None].repeat(K, 1))
        yield own.hessian_product(theta[rows])(v[rows]).view(K, B, -1)


def is_dense(tap: Tap) -> bool:
    """Whether the product formula holds: a linear layer that sees one vector a sample."""
    return isinstance(tap.layer, nn.Linear) and tap.x.dim() == 3


def tapped(network: Network, params: Params, buffers: Params, x: Tensor) -> tuple[list[Tap], Tensor]:
    """A forward pass that can be differentiated by every layer's output: its taps, and logits (K, B, C)."""
    taps: list[Tap] = []
    logits = network({n: off_graph(p) for n, p in params.items()}, buffers, x, Pass(taps=taps))
    return taps, logits


def backward(logits: Tensor, taps: list[Tap], cotangent: Tensor, *, keep: bool = False) -> tuple[Tensor, ...]:
    """Slopes delta (K, B, ...) at every layer's output; samples do not mix in evaluation mode."""
    return torch.autograd.grad(logits, [t.out for t in taps], off_graph(cotangent.to(logits.dtype)), retain_graph=keep)


def layer_gradients(
    layer: nn.Module, name: str, at: Objective, theta: Tensor, x: Tensor, delta: Tensor, k: int | None = None
) -> Iterator[Tensor]:
    """Per-sample gradients of each parameter of a layer, (K, B, size), in the order of its parameters.

    Args:
        layer: linear, convolution, BatchNorm or GroupNorm.
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
        weight, offset = _conv_gradients(layer, patches(layer, x.flatten(0, 1)), delta)
    elif isinstance(layer, nn.GroupNorm):
        wide = [t.unsqueeze(-1).flatten(3) for t in (delta * group_normal(layer, x), delta)]
        weight, offset = wide[0].sum(3), wide[1].sum(3)
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


def _conv_gradients(layer: nn.Conv1d | nn.Conv2d, a: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
    a = a.unflatten(1, (layer.groups, -1))  # (K B, groups, in k k / groups, positions)
    d = delta.flatten(0, 1).flatten(2).unflatten(1, (layer.groups, -1))  # (K B, groups, out / groups, positions)
    return (d @ a.mT).unflatten(0, delta.shape[:2]), d.sum(3).unflatten(0, delta.shape[:2])


def patches(layer: nn.Conv1d | nn.Conv2d, x: Tensor) -> Tensor:
    """What a convolution multiplies its kernels with: (B, in, ...) -> (B, in k k, positions)."""
    x = F.pad(x, layer._reversed_padding_repeated_twice)
    flat = x.dim() == 3
    x = x.unsqueeze(2) if flat else x
    extra = (1,) if flat else ()
    return F.unfold(x, (*extra, *layer.kernel_size), (*extra, *layer.dilation), 0, (*extra, *layer.stride))


def squared_norms_of(
    tap: Tap, at: Objective, theta: Tensor, delta: Tensor, whole: bool = False, a: Tensor | None = None
) -> list[Tensor]:
    """Squared norms (K, B) of each sample's gradients; a dense weight's lacks its factor |a|^2 if not whole.

    For several slopes at the output of a convolution, a is what `patches` makes of its input, once.
    """
    if is_dense(tap):
        d = torch.linalg.vector_norm(delta, dim=2).square()
        weight = d * torch.linalg.vector_norm(tap.x, dim=2).square() if whole else d
        return [weight, d][: len(list(tap.layer.parameters()))]
    if a is not None:
        both = _conv_gradients(tap.layer, a, delta)  # type: ignore[arg-type]
        return [g.flatten(2).square().sum(2) for g in both][: len(list(tap.layer.parameters()))]
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


def _gram_of_any(at: Objective, theta: Tensor) -> Tensor:
    """The matrix of `sample_gram` for a network without stacked layers."""
    grams = []
    for k in range(len(theta)):
        rows = []
        for x, y in at.chunks(memory.SHARED // theta.shape[1]):
            own = _gradients_of_any(at.alone(k), theta[k : k + 1], x, lambda z, y=y: [at.residuals(z, y)])  # type: ignore[misc]
            rows += [torch.cat(part, 1) for part in own]
        A = torch.cat(rows).double()
        grams.append(A @ A.mT)
    return torch.stack(grams)
