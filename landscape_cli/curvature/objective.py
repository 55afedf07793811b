"""The average loss of a stack of minima: values, gradients and Hessian-vector products, as functions of (K, p)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

import torch
import torch.autograd.forward_ad as fwAD
from torch import Tensor

from landscape_cli.loss import Root
from landscape_cli.network import Network, Params, Pass, memory, moving
from landscape_cli.network.batchnorm_folding import Fold, without_norms

Product = Callable[[Tensor], Tensor]


def flatten(params: Params) -> Tensor:
    """(K, p), parameters in their own order, each in PyTorch's layout."""
    return torch.cat([t.flatten(1) for t in params.values()], 1)


@dataclass(frozen=True)
class Objective:
    """Mean loss of K networks over one set of samples, BatchNorm fixed and dropout off.

    Args:
        network: how the stack is run.
        like: parameters name -> (K, *shape); only their names and shapes matter.
        buffers: name -> (K, *shape).
        x: inputs (n, ...), shared by all K, or (K, n, ...).
        y: labels (n,) or (K, n).
        normalize_logits: each sample's logits are divided by their standard deviation over classes.
    """

    network: Network
    like: Params
    buffers: Params
    x: Tensor
    y: Tensor
    normalize_logits: bool = False

    def unflatten(self, theta: Tensor) -> Params:
        """Views of theta (K, p) under the parameters' names."""
        parts = theta.split([t[0].numel() for t in self.like.values()], 1)
        return {n: part.view(len(theta), *t.shape[1:]) for (n, t), part in zip(self.like.items(), parts, strict=True)}

    @cached_property
    def columns(self) -> dict[str, slice]:
        """Where each parameter tensor lies in theta."""
        ends = list(accumulate(t[0].numel() for t in self.like.values()))
        return {n: slice(start, end) for n, start, end in zip(self.like, [0, *ends], ends, strict=False)}

    @property
    def n(self) -> int:
        """How many samples each loss averages over."""
        return self.y.shape[-1]

    def subset(self, index: Tensor) -> Objective:
        """The same objective on some of the samples."""
        part = replace(self, x=self.x[index], y=self.y[index])
        part.__dict__["bytes_per_sample"] = self.bytes_per_sample  # it costs a forward pass
        return part

    def rows(self, index: Tensor | slice) -> Objective:
        """The objective of some of the minima."""
        like, buffers = ({n: t[index] for n, t in side.items()} for side in (self.like, self.buffers))
        x, y = (self.x[index], self.y[index]) if self.y.dim() == 2 else (self.x, self.y)
        return replace(self, like=like, buffers=buffers, x=x, y=y)

    def alone(self, k: int) -> Objective:
        """The objective of minimum k, a stack of one."""
        return self.rows(slice(k, k + 1))

    def each(self, minibatches: Tensor) -> Objective:
        """Every minimum on every minibatch (M, m) of its own: a stack of K M rows, minibatches running fastest."""
        K, M = len(next(iter(self.like.values()))), len(minibatches)
        like, buffers = ({n: t.repeat_interleave(M, 0) for n, t in side.items()} for side in (self.like, self.buffers))
        x, y = (t[minibatches].expand(K, *minibatches.shape, *t.shape[1:]).flatten(0, 1) for t in (self.x, self.y))
        return replace(self, like=like, buffers=buffers, x=x, y=y)

    def to(self, dtype: torch.dtype) -> Objective:
        """The same objective with all numbers in another type."""
        like, buffers = (
            {n: t.to(dtype) if t.is_floating_point() else t for n, t in side.items()}
            for side in (self.like, self.buffers)
        )
        return replace(self, network=replace(self.network, dtype=dtype), like=like, buffers=buffers, x=self.x.to(dtype))

    def logits(self, theta: Tensor) -> Tensor:
        """(K, n, C), no gradient."""
        params = self.unflatten(theta)
        with torch.no_grad():
            return torch.cat([self._forward(params, self.buffers, x) for x, _ in self.chunks(memory.CACHE)], 1)

    @property
    def root(self) -> Root:
        """The root of the loss's curvature in the logits.

        Raises: Fault if the loss has none.
        """
        self.network.loss.need("root")
        assert self.network.loss.root is not None
        return self.network.loss.root

    def residuals(self, logits: Tensor, y: Tensor) -> Tensor:
        """Slopes of each sample's loss in its logits (K, B, C), labels (B,) or (K, B).

        Raises: Fault if the loss has none.
        """
        self.network.loss.need("residuals")
        assert self.network.loss.residuals is not None
        return self.network.loss.residuals(logits, y.expand(logits.shape[:-1]))

    def hits(self, theta: Tensor) -> Tensor:
        """Whether each sample's class is predicted (K, n), 0 or 1 in float64; NaN where the loss predicts none."""
        return self.network.loss.hits(self.logits(theta), self.y)

    def loss(self, theta: Tensor) -> Tensor:
        """Average loss (K,), summed over samples in float64, no gradient."""
        params = self.unflatten(theta)
        with torch.no_grad():
            parts = [self._sum(params, x, y) for x, y in self.chunks(memory.CACHE)]
        return torch.stack(parts).sum(0) / self.n

    def scores(self, params: Params, size: int) -> tuple[Tensor, Tensor]:
        """Average loss and share of right answers, each (K,) in float64, `size` samples at a time, no gradient.

        Args:
            params: name -> (K, *shape).
            size: samples in one pass.
        """
        found = []
        with torch.no_grad():
            for x, y in zip(self.x.split(size), self.y.split(size), strict=True):
                logits = self._forward(params, self.buffers, x)
                found.append([t.double().sum(1) for t in self.network.loss.scores(logits, y.expand(len(logits), -1))])
        loss, hits = (torch.stack(parts).sum(0) / self.n for parts in zip(*found, strict=True))
        return loss, hits

    def loss_and_gradient(self, theta: Tensor, only: str | None = None) -> tuple[Tensor, Tensor]:
        """Average loss (K,) in float64 and its gradient (K, p) in theta's type, chunks summed in float64.

        Args:
            theta: (K, p).
            only: the parameter tensor by which to differentiate; the gradient is then (K, s).
        """
        params = self._leaves(theta, only)
        gradient, loss = None, torch.zeros(len(theta), dtype=torch.float64, device=theta.device)
        for x, y in self.chunks(memory.CACHE):
            part = self._sum(params, x, y)
            leaves = [p for p in params.values() if p.requires_grad]
            slopes = _grad(part.sum(), leaves)
            whole = torch.cat([g.flatten(1) for g in slopes], 1)
            gradient = whole.double() if gradient is None else gradient.add_(whole)
            loss += part.detach()
        assert gradient is not None
        return loss / self.n, gradient.div_(self.n).to(theta.dtype)

    def symmetrized_kl(self, theta: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
        """KL(p || q) + KL(q || p) averaged over inputs (K,), p the predictions at theta, and its gradient (K, p).

        Args:
            theta: (K, p).
            reference: logits of q (K, n, C) or (1, n, C).
        """
        params = self._leaves(theta)
        change = self._forward(params, self.buffers, self.x) - reference
        value = self.root.divergence(reference.expand_as(change), change).double().mean(1)
        slopes = torch.autograd.grad(value.sum(), list(params.values()), materialize_grads=True)
        return value.detach(), torch.cat([g.flatten(1) for g in slopes], 1)

    def hessian_product(self, theta: Tensor, *, residual_part: bool = False, only: str | None = None) -> Product:
        """The function v -> H v, (K, p) -> (K, p), or (K, p, v) -> (K, p, v).

        The graph of the gradient is kept and only differentiated again: on a CPU this took 0.6 of the time of
        forward over reverse, and in pieces that stay in the cache 0.65 of that. Where it does not fit into memory, it
        is made anew for each product.

        Args:
            theta: the minima (K, p).
            residual_part: H - F instead of H, as the Hessian of <r, logits> with r = dl/dz held fixed;
                no difference of two large numbers is formed.
            only: the parameter tensor of whose own block it is: (K, s) -> (K, s).
        """
        light, fold = self._light
        params = self._leaves(theta, only)
        leaves = [p for p in params.values() if p.requires_grad]
        fits = light.n <= memory.pieces(light.bytes_per_sample, memory.PASS)
        chunks = list(light.chunks(max(memory.CACHE, min(memory.PASS, 32 * light.bytes_per_sample))))

        def slopes_of(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
            return light._slopes(fold(params, self.buffers), leaves, x, y, residual_part)

        kept = [slopes_of(x, y) for x, y in chunks] if fits else None
        wide = torch.float64 if len(chunks) > 8 else theta.dtype  # a few sums round no more than the sums in them

        def product(v: Tensor) -> Tensor:
            along = list(self.unflatten(v).values()) if only is None else [v.view_as(leaves[0])]
            total = torch.zeros(0)
            for slopes in kept or (slopes_of(x, y) for x, y in chunks):
                moving = [(g, a) for g, a in zip(slopes, along, strict=True) if g.requires_grad]
                if moving:  # a slope that no parameter moves has no graph
                    ends, ways = zip(*moving, strict=True)
                    Hv = torch.autograd.grad(ends, leaves, ways, retain_graph=kept is not None, materialize_grads=True)
                    part = torch.cat([h.flatten(1) for h in Hv], 1)
                    total = total.add_(part) if len(total) else part.to(wide)
            return total.div_(self.n).to(theta.dtype) if len(total) else torch.zeros_like(v)

        return lambda v: product(v) if v.dim() == 2 else torch.stack([product(one) for one in v.unbind(2)], 2)

    def tangents(self, theta: Tensor, v: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Logits z (K, B, C), their change J v along v (K, p), and labels (K, B), chunk by chunk; no gradient."""
        params, along = self.unflatten(theta), self.unflatten(v)
        for x, y in self.chunks(memory.CACHE):
            with torch.no_grad(), fwAD.dual_level():
                z, change = fwAD.unpack_dual(self._forward(moving(params, along), self.buffers, x))
                yield z, torch.zeros_like(z) if change is None else change, y.expand(len(z), -1)

    def fisher_product(self, theta: Tensor) -> Product:
        """The function v -> F v, (K, p) -> (K, p), with the true Fisher information F = (1/n) sum_i J_i^T S_i J_i.

        One forward pass carries the tangents J v, one backward pass takes S J v home.

        Args:
            theta: the minima (K, p).
        Raises: Fault, as `root`.
        """
        root = self.root

        def product(v: Tensor) -> Tensor:
            total = torch.zeros(theta.shape, dtype=torch.float64, device=theta.device)
            params = self._leaves(theta)
            for x, _ in self.chunks(memory.CACHE):
                with fwAD.dual_level():
                    z, along = fwAD.unpack_dual(self._forward(moving(params, self.unflatten(v)), self.buffers, x))
                home = root.product(z.detach(), torch.zeros_like(z) if along is None else along.detach())
                slopes = torch.autograd.grad(z, list(params.values()), home, materialize_grads=True)
                total += torch.cat([g.flatten(1) for g in slopes], 1)
            return (total / self.n).to(theta.dtype)

        return product

    def chunks(self, most: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The samples in pieces of `chunk_size(most)`."""
        size, along = self.chunk_size(most), self.y.dim() - 1
        yield from zip(self.x.split(size, along), self.y.split(size, along), strict=True)

    def chunk_size(self, most: int) -> int:
        """How many samples have their saved activations in `most` bytes; at least one; equal pieces of the set."""
        size = memory.pieces(self.bytes_per_sample, most)
        return -(-self.n // -(-self.n // size))

    @cached_property
    def bytes_per_sample(self) -> int:
        """Bytes that autograd keeps for one sample in all K runs; what a chart keeps is not of a sample."""
        if self.network.chart is not None:
            return replace(self, network=self.network.chart.within).bytes_per_sample
        one = {n: t[:1].detach().requires_grad_() for n, t in self.like.items()}
        own = {t.untyped_storage().data_ptr() for t in one.values()}
        kept: dict[int, Tensor] = {}

        def note(t: Tensor) -> None:  # a saved tensor that is handed back would be a cycle that nobody frees
            if t.untyped_storage().data_ptr() not in own:
                kept[t.data_ptr()] = t.detach()

        with (
            torch.enable_grad(),
            torch.autograd.graph.saved_tensors_hooks(note, lambda _: torch.empty(0)),
        ):  # `loss` comes without
            first = self.alone(0) if self.y.dim() == 2 else self
            x, y = next(zip(first.x.split(1, self.y.dim() - 1), first.y.split(1, self.y.dim() - 1), strict=True))
            self._sum(one, x, y, {n: b[:1] for n, b in self.buffers.items()})
        return sum(t.numel() * t.element_size() for t in kept.values()) * len(next(iter(self.like.values())))

    def _forward(self, params: Params, buffers: Params, x: Tensor, twice: bool = False) -> Tensor:
        """Logits (K, B, C); if normalized, z / sqrt(mean_c (z_c - mean z)^2) (Andriushchenko et al. 2023).

        So their text has it; their code divides by the norm of z - mean z, which is sqrt(C) times as large.
        """
        z = self.network(params, buffers, x, Pass(twice=twice))
        if not self.normalize_logits:
            return z
        z = z - z.mean(-1, keepdim=True)  # softmax does not see it
        return z * z.square().mean(-1, keepdim=True).clamp_min(1e-20).rsqrt()  # equal logits stay what they are

    def _sum(self, params: Params, x: Tensor, y: Tensor, buffers: Params | None = None) -> Tensor:
        logits = self._forward(params, self.buffers if buffers is None else buffers, x)
        return self.network.loss.values(logits, y.expand(len(logits), -1)).double().sum(1)

    def _leaves(self, theta: Tensor, only: str | None = None) -> Params:
        """Parameters, to differentiate by all or by one of them."""
        params = self.unflatten(theta.detach())
        return {n: v.contiguous().requires_grad_(only in (None, n)) for n, v in params.items()}

    @cached_property
    def _light(self) -> tuple[Objective, Fold]:
        """The same function with BatchNorm moved into the layers before it, and what makes its parameters of our own.

        Slopes by our own go through that too. There are fewer activations to pass over, and to keep.
        """
        network, fold = without_norms(self.network, self.like, self.buffers, self.x)
        return replace(self, network=network, like=fold(self.like, self.buffers)), fold

    def _slopes(self, params: Params, leaves: list[Tensor], x: Tensor, y: Tensor, rest: bool) -> tuple[Tensor, ...]:
        """Gradient of the summed loss, or its residual part, by `leaves`, of which params are made; with its graph."""
        logits = self._forward(params, self.buffers, x, twice=True)
        labels = y.expand(len(logits), -1)
        if rest:
            total = (logits * self.residuals(logits, labels).detach()).sum()
        else:
            total = self.network.loss.values(logits, labels).double().sum()
        return _grad(total, leaves, create_graph=True)


def _grad(total: Tensor, leaves: list[Tensor], create_graph: bool = False) -> tuple[Tensor, ...]:
    """Slopes of a number; 0 for what it does not depend on."""
    if not total.requires_grad:
        return tuple(torch.zeros_like(leaf) for leaf in leaves)
    return torch.autograd.grad(total, leaves, create_graph=create_graph, materialize_grads=True, allow_unused=True)


@dataclass(frozen=True)
class Block:
    """An objective as a function of a few coordinates of each row, the others held at theta.

    Args:
        of: the objective of R rows.
        theta: where the others stay (R, p).
        columns: which coordinates move (R, s).
        only: name of the parameter tensor that they are, where they are one.
    """

    of: Objective
    theta: Tensor
    columns: Tensor
    only: str | None = None

    @property
    def y(self) -> Tensor:
        """Labels, whose number is that of the samples."""
        return self.of.y

    def rows(self, index: slice) -> Block:
        """That of some of the minima."""
        return replace(self, of=self.of.rows(index), theta=self.theta[index], columns=self.columns[index])

    def _at(self, part: Tensor) -> Tensor:
        return self.theta.scatter(1, self.columns, part)

    def loss(self, part: Tensor) -> Tensor:
        """(R, s) -> (R,)."""
        return self.of.loss(self._at(part))

    def loss_and_gradient(self, part: Tensor) -> tuple[Tensor, Tensor]:
        """(R, s) -> (R,), (R, s)."""
        loss, gradient = self.of.loss_and_gradient(self._at(part), self.only)
        return loss, gradient if self.only else gradient.gather(1, self.columns)

    def hessian_product(self, part: Tensor) -> Product:
        """v -> H_BB v, (R, s) -> (R, s)."""
        H = self.of.hessian_product(self._at(part), only=self.only)
        if self.only:
            return H
        nothing = torch.zeros_like(self.theta)
        return lambda v: H(nothing.scatter(1, self.columns, v)).gather(1, self.columns)
