"""Losses, errors and gradients at many points around each minimum of a stack, as many in one pass as pay."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Literal

import torch
from torch import Tensor

from landscape_cli.curvature.objective import Objective
from landscape_cli.metrics.point import Estimate, Point, Split
from landscape_cli.network import memory

Target = Literal["loss", "error"]
Measure = Callable[[Objective, Tensor], tuple[Tensor, ...]]


def seen(at: Point, split: Split, normalize_logits: bool) -> Point:
    """The same minima with the loss of one split, of plain or of normalized logits, as the loss to look at."""
    of = at.train if split == "train" else at.test
    if split == "train" and not normalize_logits:
        return at
    of = replace(of, normalize_logits=True) if normalize_logits else of
    own = Point(at.theta, of, of)
    own.seconds, own._nested = at.seconds, at._nested
    return own


def resolved(at: Point, estimate: Estimate, rise: Tensor) -> Estimate:
    """Status `unresolved` where the rise of the loss is lost in the rounding of its own evaluation."""
    floor = 4 * torch.finfo(at.theta.dtype).eps * at.loss()
    for k in torch.nonzero((rise.abs() <= floor) & torch.isfinite(estimate.value)).flatten().tolist():
        estimate.status[k], estimate.message[k] = "unresolved", "rise below rounding of the loss: precision: float64"
    return estimate


def losses(of: Objective, theta: Tensor) -> tuple[Tensor]:
    """Average loss of each row, (R, p) -> (R,)."""
    return (of.loss(theta),)


def errors(of: Objective, theta: Tensor) -> tuple[Tensor]:
    """Share of wrong classes in each row, (R, p) -> (R,)."""
    return ((1 - of.hits(theta)).mean(1),)


def slopes(of: Objective, theta: Tensor) -> tuple[Tensor, Tensor]:
    """Average loss and gradient of each row, (R, p) -> (R,), (R, p)."""
    return of.loss_and_gradient(theta)


def measure_of(target: Target) -> Measure:
    """What rises: the loss, or the error."""
    return losses if target == "loss" else errors


def around(of: Objective, points: Iterable[Tensor], measure: Measure) -> list[Tensor]:
    """A measure of rows at D points around each of K minima, in groups of rows that share a pass.

    Args:
        of: the objective of K minima.
        points: D tensors (K, p), made one after the other.
        measure: (objective of R rows, (R, p)) -> tensors (R, ...).
    Returns: what `measure` returns, each (K, D, ...).
    """
    stream, found = iter(points), []
    while first := list(islice(stream, 1)):
        (theta,) = first
        group = [theta, *islice(stream, _together(of, theta) - 1)]
        K, D = len(theta), len(group)
        rows = of if D == 1 else _repeated(of, K, D)
        values = measure(rows, torch.stack(group, 1).flatten(0, 1))
        found.append([v.unflatten(0, (K, D)) for v in values])
    return [torch.cat(parts, 1) for parts in zip(*found, strict=True)]


def _together(of: Objective, theta: Tensor) -> int:
    """How many points around each minimum are taken in one pass.

    On a CPU as many as leave the activations of all samples in the cache: on the digits MLP one, where more took the
    same time a point. On other devices as many as fit into memory.
    """
    if not isinstance(of, Objective):  # a block of one, or a test's function: rows cannot be repeated
        return 1
    most = memory.CACHE if theta.device.type == "cpu" else memory.PASS
    need = of.bytes_per_sample * of.n + 4 * theta.numel() * theta.element_size()
    return memory.pieces(need, most)


def _repeated(of: Objective, K: int, D: int) -> Objective:
    index = torch.arange(K, device=of.x.device).repeat_interleave(D)
    rows = of.rows(index)
    rows.__dict__["bytes_per_sample"] = of.bytes_per_sample * D  # it costs a forward pass
    return rows


def gaussians(at: Point, draws: int, seed: int) -> Iterator[Tensor]:
    """xi ~ N(0, I), each (p,), common to all minima; the same for the same seed."""
    rng = torch.Generator().manual_seed(seed)
    for _ in range(draws):
        yield torch.randn(at.theta.shape[1], generator=rng, dtype=torch.float64).to(at.theta)


def uniforms(at: Point, draws: int, seed: int) -> Iterator[Tensor]:
    """u ~ U[-1, 1]^p, each (p,), common to all minima; the same for the same seed."""
    rng = torch.Generator().manual_seed(seed)
    for _ in range(draws):
        yield (2 * torch.rand(at.theta.shape[1], generator=rng, dtype=torch.float64) - 1).to(at.theta)


def filters(at: Point) -> Iterator[tuple[slice, int]]:
    """For each parameter tensor, where it lies in theta, and how many filters it has.

    Filters are its rows, one an output unit; a tensor of one dimension (a bias, a normalization's scale) has none.
    """
    start = 0
    for t in at.train.like.values():
        size = t[0].numel()
        yield slice(start, start + size), t.shape[1] if t.dim() >= 3 else 0
        start += size


def filter_norms(at: Point, v: Tensor) -> Tensor:
    """|v| over the filter that each parameter belongs to (R, p); 0 where it belongs to none.

    Args:
        at: gives the shapes.
        v: (R, p).
    """
    norms = torch.zeros_like(v)
    for part, rows in filters(at):
        if rows:
            by_filter = v[:, part].unflatten(1, (rows, -1))
            size = torch.linalg.vector_norm(by_filter, dim=2, keepdim=True)
            norms[:, part] = size.expand_as(by_filter).flatten(1)
    return norms
