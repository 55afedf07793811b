"""The average loss of a stack of minima: values, gradients and Hessian-vector products, as functions of (K, p)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from landscape_cli.network import Network, Params

MEMORY = 2**30  # bytes that the saved activations of one pass may take
CACHE = 2**23  # bytes of activations at which a pass over small layers still stays in the cache

Product = Callable[[Tensor], Tensor]


def sample_losses(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of each sample, accurate to rounding however small it is.

    l = softplus(t), t = log sum_{c != y} exp(z_c - z_y): neither l nor its gradient is a difference of two numbers
    near 1, so that samples with p_y = 1 - 1e-12 keep their digits.

    Args:
        logits: z, (..., C).
        y: class numbers (...).
    Returns: (...), in nats.
    """
    t, _ = _log_odds(logits, y)
    return F.softplus(t, threshold=50)


def residuals(logits: Tensor, y: Tensor) -> Tensor:
    """Gradient of each sample's cross-entropy in its logits, softmax(z) - onehot(y), without cancellation.

    Args:
        logits: (..., C).
        y: class numbers (...).
    Returns: (..., C).
    """
    t, others = _log_odds(logits, y)
    wrong = torch.sigmoid(t)[..., None]  # 1 - p_y
    r = torch.softmax(others, -1) * wrong
    return r.scatter(-1, y[..., None], -wrong)


def _log_odds(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Log odds against the true class (...), and the logits with that class at -inf (..., C)."""
    index = y[..., None]
    others = logits.scatter(-1, index, float("-inf"))
    return torch.logsumexp(others, -1) - logits.gather(-1, index)[..., 0], others


def flatten(params: Params) -> Tensor:
    """(K, p), parameters in their own order, each in PyTorch's layout."""
    return torch.cat([t.flatten(1) for t in params.values()], 1)


@dataclass(frozen=True)
class Objective:
    """Mean cross-entropy of K networks over one set of samples, BatchNorm fixed and dropout off.

    Args:
        network: how the stack is run.
        like: parameters name -> (K, *shape); only their names and shapes matter.
        buffers: name -> (K, *shape).
        x: inputs (n, ...), shared by all K.
        y: labels (n,).
    """

    network: Network
    like: Params
    buffers: Params
    x: Tensor
    y: Tensor

    def unflatten(self, theta: Tensor) -> Params:
        """Views of theta (K, p) under the parameters' names."""
        parts = theta.split([t[0].numel() for t in self.like.values()], 1)
        return {n: part.view(len(theta), *t.shape[1:]) for (n, t), part in zip(self.like.items(), parts, strict=True)}

    def subset(self, index: Tensor) -> Objective:
        """The same objective on some of the samples."""
        return replace(self, x=self.x[index], y=self.y[index])

    def alone(self, k: int) -> Objective:
        """The objective of minimum k, a stack of one."""
        like, buffers = ({n: t[k : k + 1] for n, t in side.items()} for side in (self.like, self.buffers))
        return replace(self, like=like, buffers=buffers)

    def logits(self, theta: Tensor) -> Tensor:
        """(K, n, C), no gradient."""
        params = self.unflatten(theta)
        with torch.no_grad():
            return torch.cat([self.network(params, self.buffers, x) for x, _ in self.chunks(CACHE)], 1)

    def loss(self, theta: Tensor) -> Tensor:
        """Average loss (K,), summed over samples in float64, no gradient."""
        params = self.unflatten(theta)
        with torch.no_grad():
            parts = [self._sum(params, x, y) for x, y in self.chunks(CACHE)]
        return torch.stack(parts).sum(0) / len(self.y)

    def loss_and_gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Average loss (K,) in float64 and its gradient (K, p) in theta's type, chunks summed in float64."""
        gradient = torch.zeros(theta.shape, dtype=torch.float64, device=theta.device)
        loss = gradient.new_zeros(len(theta))
        params = self._leaves(theta)
        for x, y in self.chunks(CACHE):
            part = self._sum(params, x, y)
            slopes = torch.autograd.grad(part.sum(), list(params.values()), materialize_grads=True)
            gradient += torch.cat([g.flatten(1) for g in slopes], 1)
            loss += part.detach()
        return loss / len(self.y), (gradient / len(self.y)).to(theta.dtype)

    def hessian_product(self, theta: Tensor, *, residual_part: bool = False) -> Product:
        """The function v -> H v, (K, p) -> (K, p).

        The graph of the gradient is kept and only differentiated again: on a CPU this took 0.6 of the time of
        forward over reverse. Where it does not fit into memory, it is made anew for each product.

        Args:
            theta: the minima (K, p).
            residual_part: H - F instead of H, as the Hessian of <r, logits> with r = softmax - onehot held fixed;
                no difference of two large numbers is formed.
        """
        params = self._leaves(theta)
        leaves = list(params.values())
        chunks = list(self.chunks(MEMORY))
        kept = [self._slopes(params, x, y, residual_part) for x, y in chunks] if len(chunks) == 1 else None

        def product(v: Tensor) -> Tensor:
            along = list(self.unflatten(v).values())
            total = torch.zeros(theta.shape, dtype=torch.float64, device=theta.device)
            graphs = kept or (self._slopes(params, x, y, residual_part) for x, y in chunks)
            for slopes in graphs:
                moving = [(g, a) for g, a in zip(slopes, along, strict=True) if g.requires_grad]
                if moving:  # a slope that no parameter moves has no graph
                    ends, ways = zip(*moving, strict=True)
                    Hv = torch.autograd.grad(ends, leaves, ways, retain_graph=kept is not None, materialize_grads=True)
                    total += torch.cat([h.flatten(1) for h in Hv], 1)
            return (total / len(self.y)).to(theta.dtype)

        return product

    def chunks(self, budget: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The samples in pieces of `chunk_size(budget)`."""
        size = self.chunk_size(budget)
        yield from zip(self.x.split(size), self.y.split(size), strict=True)

    def chunk_size(self, budget: int) -> int:
        """How many samples have their saved activations in `budget` bytes; at least one; equal pieces of the set."""
        size = max(1, int(budget // max(1, self.bytes_per_sample)))
        return -(-len(self.y) // -(-len(self.y) // size))

    @cached_property
    def bytes_per_sample(self) -> int:
        """Bytes that autograd keeps for one sample in all K runs."""
        one = {n: t[:1].detach().requires_grad_() for n, t in self.like.items()}
        own = {t.untyped_storage().data_ptr() for t in one.values()}
        kept: dict[int, int] = {}

        def note(t: Tensor) -> Tensor:
            if t.untyped_storage().data_ptr() not in own:
                kept[t.data_ptr()] = t.numel() * t.element_size()
            return t

        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):  # `loss` comes without
            self._sum(one, self.x[:1], self.y[:1], {n: b[:1] for n, b in self.buffers.items()})
        return sum(kept.values()) * len(next(iter(self.like.values())))

    def _sum(self, params: Params, x: Tensor, y: Tensor, buffers: Params | None = None) -> Tensor:
        logits = self.network(params, self.buffers if buffers is None else buffers, x)
        return sample_losses(logits, y.expand(len(logits), -1)).double().sum(1)

    def _leaves(self, theta: Tensor) -> Params:
        """Parameters to differentiate by."""
        return {n: v.contiguous().requires_grad_() for n, v in self.unflatten(theta.detach()).items()}

    def _slopes(self, params: Params, x: Tensor, y: Tensor, residual_part: bool) -> tuple[Tensor, ...]:
        """Gradient of the summed loss, with its graph."""
        if residual_part:
            logits = self.network(params, self.buffers, x)
            total = (logits * residuals(logits, y.expand(len(logits), -1)).detach()).sum()
        else:
            total = self._sum(params, x, y).sum()
        return torch.autograd.grad(total, list(params.values()), create_graph=True, materialize_grads=True)
