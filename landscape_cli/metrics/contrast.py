"""Contrastive flatness: how flat minibatch losses are against how flat their average is (METRICS section 4).

The ratio E_b Phi(H_b) / Phi(H) of a flatness functional Phi over a partition of the training set into minibatches b.
For a linear functional, the trace, it is 1 whatever the minimum; for a convex one it is at least 1. Formed inside
blocks and averaged as a geometric mean, factors that rescale a block as a whole cancel.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle
from math import prod
from typing import Annotated

import torch
from torch import Tensor

from landscape_cli.curvature.fisher_blocks import Blocks
from landscape_cli.curvature.lanczos import top_eigenpairs
from landscape_cli.curvature.objective import Block, Objective
from landscape_cli.curvature.sample_gradients import hessian_squares, sample_hessian_products
from landscape_cli.metrics.ball_maximum import climb
from landscape_cli.metrics.point import Estimate, Point, exact, nothing
from landscape_cli.network import memory
from landscape_cli.registry import FEW, Count, Natural, Positive, Tolerance, metric

DENSE = 512  # parameters up to which Hessians are taken column by column
TINY = 1e-12  # of what its samples have: below, a block of the average is rounding, and is left out
NOTHING = 1e-250  # a block as small is 0; a bound that looks at other blocks would choose otherwise after a rescaling
CLEAR = 1e4  # times the rounding of a loss: a rise that is less is taken in float64
BLOCKS = ["none", "layer", "kernel"]
CLAIMS = {
    "blocks=none": "permutation,global",
    "blocks=layer": "permutation,global,scale",
    "blocks=kernel": "permutation,global,filter",
}
OURS = "ours, docs/essay.md"
ROWS = "C - 1 backward passes, inner products of their n (C - 1) rows"
GRAM = "inner products of all sample gradients, shared for blocks=none"
LANCZOS = "10 to 40 Hessian products a minibatch and block"
CLIMB = "10 to 200 gradients a minibatch and block"
PRODUCTS = "32 Hessian products of every sample, a layer; for piecewise linear nets as contrast_fisher in blocks"
Probes = Annotated[Count, FEW]
Functional = Callable[[Block, Tensor], tuple[Tensor, Tensor]]


def _kept(own: Tensor, mean: Tensor) -> Tensor:
    """Which blocks count, for the functional of minibatches and that of their average, each (K, blocks)."""
    return (mean > TINY * own) & (mean > NOTHING) & own.isfinite()


def _geometric(own: Tensor, mean: Tensor) -> Estimate:
    """Geometric mean over blocks of own / mean, each (K, blocks); blocks of nearly nothing are left out."""
    kept = _kept(own, mean)
    ratio = torch.where(kept, own / mean.where(kept, 1), 1).clamp_min(torch.finfo(torch.float64).tiny)
    count = kept.sum(1)
    estimate = exact((ratio.log().sum(1) / count.clamp_min(1)).exp())
    left, total = (kept.shape[1] - count).tolist(), kept.shape[1]
    if total > 1:
        estimate.message = [f"{own} of {total} blocks without curvature left out" if own else "" for own in left]
    return estimate.undefined(count == 0, "no block has any curvature")


def _at_size(own: Tensor, mean: Tensor, m: int, n: int) -> Tensor:
    """E_b Phi at minibatch size m, Phi a squared norm, from single samples: affine in 1/m, and Phi itself at m = n."""
    return mean + (1 / m - 1 / n) / (1 - 1 / n) * (own - mean)


def _sized(at: Point, m: int) -> Estimate | None:
    """Undefined where a minibatch is more than the set."""
    return nothing(at, f"minibatch_size={m} is above n={at.train.n}") if m > at.train.n else None


def _too_large(at: Point, empirical: bool) -> str:
    """Why the rows of F do not fit into memory; empty if they do."""
    rows = at.train.n * (1 if empirical else at.train.root.number(at.logits("train").shape[2]))
    dense = all(t.dim() <= 3 for t in at.train.like.values()) and at.train.network.kind == "stacked"
    width = sum(t.shape[1] for t in at.train.like.values()) if dense else at.theta.shape[1]
    needed = rows * width * at.theta.element_size()
    most = memory.LARGEST >> 20
    return "" if memory.forms(needed) else f"{rows} rows of {width} numbers take {needed >> 20} MB, above {most}"


def _by_rows(at: Point, blocks: Blocks, minibatch_size: int, empirical: bool) -> Estimate:
    """The contrast of squared Frobenius norms of F, or of the empirical Fisher, in blocks."""
    if why := _too_large(at, empirical):
        return nothing(at, why)
    own, mean = at.fisher_squares(empirical)[blocks]
    estimate = _geometric(_at_size(own, mean, minibatch_size, at.train.n), mean)
    estimate.samples = at.train.n
    return estimate


@metric(invariant=CLAIMS, source=OURS, blocks=BLOCKS, needs="root", direction="none", cost=ROWS)
def contrast_fisher(at: Point, *, blocks: Blocks = "none", minibatch_size: Count = 1) -> Estimate:
    """Mean squared Frobenius norm of minibatch Fisher informations over that of F, E_b |F_b|_F^2 / |F|_F^2 >= 1.

    Args:
        at: K minima.
        blocks: none, the whole matrix; layer, each parameter tensor; kernel, each (output unit, input unit).
        minibatch_size: samples m in a minibatch; every m ranks alike, 1 + (1/m - 1/n)/(1 - 1/n) (contrast(1) - 1).
    Returns: (K,), a ratio in units of 1; exact, over all minibatches of that size; geometric mean over blocks.
    """
    return _sized(at, minibatch_size) or _by_rows(at, blocks, minibatch_size, empirical=False)


@metric(invariant=CLAIMS, source=OURS, blocks=BLOCKS, needs="residuals", direction="none", cost=GRAM)
def contrast_fisher_empirical(at: Point, *, blocks: Blocks = "none", minibatch_size: Count = 1) -> Estimate:
    """The same with the empirical Fisher, mean_i K_ii^2 / mean_ij K_ij^2 for inner products K of sample gradients.

    Args:
        at: K minima.
        blocks: none, the whole matrix; layer, each parameter tensor; kernel, each (output unit, input unit).
        minibatch_size: samples m in a minibatch, as in contrast_fisher.
    Returns: (K,), a ratio in units of 1; exact; geometric mean over blocks.
    """
    if bad := _sized(at, minibatch_size):
        return bad
    if blocks == "none" and at.has_sample_gram:
        K = at.sample_gram()
        own, mean = K.diagonal(dim1=1, dim2=2).square().mean(1), K.square().mean((1, 2))
        return _geometric(_at_size(own, mean, minibatch_size, at.train.n)[:, None], mean[:, None])
    return _by_rows(at, blocks, minibatch_size, empirical=True)


@metric(
    invariant=CLAIMS,
    source=f"{OURS}; Hutchinson 1990",
    blocks=BLOCKS,
    needs={"blocks=none": "residuals", "blocks=layer": "residuals,root", "blocks=kernel": "root"},
    direction="none",
    cost=PRODUCTS,
)
def contrast_frobenius(
    at: Point,
    *,
    blocks: Blocks = "none",
    minibatch_size: Count = 1,
    probes: Probes = 32,
    seed: Natural = 0,
) -> Estimate:
    """Mean squared Frobenius norm of minibatch Hessians over that of the average, E_b |H_b|_F^2 / |H|_F^2 >= 1.

    In the blocks of a piecewise linear network H is F, and the value exact where the rows of F fit into memory. So it
    is where a block has at most 512 parameters. Else Hutchinson's E_v |H_b v|^2, with probes common to all minima.

    Args:
        at: K minima.
        blocks: none, the whole matrix; layer, each parameter tensor; kernel, each (output unit, input unit).
        minibatch_size: samples m in a minibatch, as in contrast_fisher.
        probes: random vectors, where they are needed.
        seed: of the probes.
    Returns: (K,), a ratio in units of 1; standard error over probes; geometric mean over blocks.
    """
    if bad := _sized(at, minibatch_size):
        return bad
    if at.piecewise_linear and (blocks == "kernel" or (blocks == "layer" and not _too_large(at, False))):
        return _by_rows(at, blocks, minibatch_size, empirical=False)
    if blocks == "kernel":
        return _kernels_by_column(at, minibatch_size)
    p, n = at.theta.shape[1], at.train.n
    parts = [slice(0, p)] if blocks == "none" else list(at.train.columns.values())
    found = [_squares_along(at, j if blocks == "layer" else None, part, probes, seed) for j, part in enumerate(parts)]
    sampled = {j: found[j] for j, part in enumerate(parts) if not _one_by_one(at, part, probes)}
    own, mean = (torch.stack([f[i].mean(1) for f in found], 1) for i in (0, 1))  # (K, blocks)
    estimate = _geometric(_at_size(own, mean, minibatch_size, n), mean)
    if sampled:
        estimate.samples = probes
        estimate.standard_error = _error(sampled, own, mean, minibatch_size, n, estimate.value)
    return estimate


def _one_by_one(at: Point, part: slice, probes: int) -> bool:
    """Whether a part is taken column by column; for a network of unknown layers each takes a pass a sample."""
    cheap = at.train.network.kind == "stacked" or at.theta.shape[1] <= DENSE
    return int(part.stop - part.start) <= (DENSE if cheap else probes)


def _squares_along(at: Point, j: int | None, part: slice, probes: int, seed: int) -> tuple[Tensor, Tensor]:
    """mean_i |H_i v|^2 and |H v|^2 for each probe in the part (K, probes), scaled so that their mean is |.|_F^2.

    Args:
        at: the minima.
        j: number of the parameter tensor; None for all of them.
        part: its columns.
        probes: signs at random; a small part is taken column by column instead.
        seed: of the signs.
    """
    (K, p), size = at.theta.shape, part.stop - part.start
    rng = torch.Generator().manual_seed(seed)
    one_by_one = _one_by_one(at, part, probes)
    H, own, mean = at.train.hessian_product(at.theta), [], []
    for i in range(size if one_by_one else probes):
        v = torch.zeros(p, dtype=at.theta.dtype)
        if one_by_one:
            v[part.start + i] = size**0.5
        else:
            v[part] = (torch.randint(0, 2, (p,), generator=rng).to(v) * 2 - 1)[part]
        v = v.to(at.theta.device).expand(K, p).contiguous()
        squares = hessian_squares(at.train, at.theta, v)
        own.append((squares.sum(2) if j is None else squares[:, :, j]).mean(1))
        mean.append(H(v)[:, part].double().square().sum(1))
    return torch.stack(own, 1), torch.stack(mean, 1)


def _error(
    sampled: dict[int, tuple[Tensor, Tensor]], own: Tensor, mean: Tensor, m: int, n: int, value: Tensor
) -> Tensor:
    """Of the geometric mean of ratios of means over the same probes: the spread of their common linear part.

    `sampled` has the two terms of each probe, for the blocks that are sampled, by their numbers.
    """
    total = _at_size(own, mean, m, n)
    kept = _kept(total, mean)
    probes = max(f[0].shape[1] for f in sampled.values())
    linear = torch.zeros(len(value), probes, dtype=torch.float64, device=value.device)
    for j, (of_samples, of_mean) in sampled.items():
        sized = _at_size(of_samples, of_mean, m, n)
        share = sized / total[:, j, None] - of_mean / mean[:, j, None]
        linear += torch.where(kept[:, j, None], share, 0)
    error: Tensor = value * linear.std(1) / probes**0.5 / kept.sum(1).clamp_min(1)
    return error


def _kernel_of(at: Objective) -> Tensor:
    """Number of the block that each parameter belongs to (p,), kernels in order."""
    numbers, start = [], 0
    for t in at.like.values():
        size, kernel = t[0].numel(), prod(t.shape[3:])
        numbers.append(start + torch.arange(size) // kernel)
        start += size // kernel
    return torch.cat(numbers)


def _too_many(at: Point, what: str) -> Estimate:
    why = f"{what} takes one product a parameter: {at.theta.shape[1]} are more than {DENSE}"
    return nothing(at, why)


def _kernels_by_column(at: Point, m: int) -> Estimate:
    """Kernel blocks of the Hessian of a net that is not piecewise linear, column by column."""
    (K, p), n = at.theta.shape, at.train.n
    if p > DENSE:
        return _too_many(at, "kernel blocks of a network that is not piecewise linear")
    number = _kernel_of(at.train).to(at.theta.device)
    own = torch.zeros(K, int(number[-1]) + 1, dtype=torch.float64, device=at.theta.device)
    mean = torch.zeros_like(own)
    for j, e in enumerate(torch.eye(p, dtype=at.theta.dtype, device=at.theta.device)):
        block = number == number[j]
        columns = sample_hessian_products(at.train, at.theta, e.expand(K, p).contiguous())
        column = torch.cat([c[:, :, block] for c in columns], 1).double()
        own[:, number[j]] += column.square().sum((1, 2)) / n
        mean[:, number[j]] += column.mean(1).square().sum(1)
    return _geometric(_at_size(own, mean, m, n), mean)


def _partition(at: Point, m: int, seed: int) -> list[Tensor]:
    """A full partition of the training set into minibatches of m: (M, m), and the smaller rest (1, rest) if any."""
    order = torch.randperm(at.train.n, generator=torch.Generator().manual_seed(seed)).to(at.theta.device)
    whole = len(order) // m * m
    return [d for d in (order[:whole].view(-1, m), order[whole:][None]) if d.numel()]


def _block_columns(at: Objective, blocks: Blocks) -> list[Tensor]:
    """Columns of the blocks (blocks, s), those of equal size together."""
    p = sum(t[0].numel() for t in at.like.values())
    if blocks == "none":
        return [torch.arange(p)[None]]
    every = torch.arange(p)
    if blocks == "layer":
        return [every[own][None] for own in at.columns.values()]
    return [
        every[own].view(-1, prod(t.shape[3:])) for own, t in zip(at.columns.values(), at.like.values(), strict=True)
    ]


def _rows(at: Objective, theta: Tensor, columns: Tensor, only: str | None) -> tuple[Block, Tensor]:
    """All R losses of `at` at one minimum, in each of B blocks (B, s): the objective of B R rows, what moves there."""
    B, R = len(columns), len(next(iter(at.like.values())))
    of = at.rows(torch.arange(R, device=theta.device).repeat(B))
    here, moving = theta.expand(B * R, -1), columns.to(theta.device).repeat_interleave(R, 0)
    return Block(of, here, moving, only), here.gather(1, moving)


@metric(invariant=CLAIMS, source=f"{OURS}; Lanczos", blocks=BLOCKS[:2], direction="none", cost=LANCZOS)
def contrast_spectral(
    at: Point,
    *,
    blocks: Blocks = "none",
    minibatch_size: Count = 100,
    tolerance: Tolerance = 1e-2,
    max_steps: Count = 200,
    seed: Natural = 0,
) -> Estimate:
    """Mean largest eigenvalue of minibatch Hessians over that of the average, E_b lambda_max(H_b) / lambda_max(H) >= 1.

    Args:
        at: K minima.
        blocks: none, the whole matrix; layer, each parameter tensor; kernel, each (output unit, input unit): 1 by
            definition for the single entries of a dense layer, and for at most 512 parameters else.
        minibatch_size: samples m in a minibatch, in one partition of the whole set.
        tolerance: of the eigenpairs' residual, relative to the largest eigenvalue.
        max_steps: Hessian-vector products at most.
        seed: of the partition and the start vectors.
    Returns: (K,), a ratio in units of 1; standard error over minibatches as if drawn with replacement; geometric mean
        over blocks.
    """
    if bad := _sized(at, minibatch_size):
        return bad
    p = at.theta.shape[1]
    if blocks == "kernel" and all(prod(t.shape[3:]) == 1 for t in at.train.like.values()):
        return exact(torch.ones(len(at.theta)), at.train.n)
    if blocks == "kernel" and p > DENSE:
        return _too_many(at, "the spectral contrast of kernels")

    def top(of: Block, theta: Tensor) -> tuple[Tensor, Tensor]:
        rng = torch.Generator().manual_seed(seed)
        start = torch.randn(theta.shape[1], generator=rng, dtype=theta.dtype).to(theta.device)
        start = start.expand_as(theta).contiguous()
        H = of.hessian_product(theta)
        ritz = top_eigenpairs(H, start, tolerance=tolerance, max_steps=max_steps, rng=rng)
        return ritz.values[:, 0], ritz.residuals[:, 0] / ritz.values[:, 0].abs().clamp_min(1e-300)

    why = f"relative residual above tolerance={tolerance:g}: raise max_steps ({max_steps})"
    return _over_partition(at, blocks, minibatch_size, seed, top, tolerance, why)


@metric(
    invariant=CLAIMS, source=f"{OURS}; Keskar et al. 2017", blocks=BLOCKS[:2], direction="none", cost=CLIMB, version=2
)
def contrast_sharpness(
    at: Point,
    *,
    radius: Positive = 0.01,
    blocks: Blocks = "none",
    minibatch_size: Count = 100,
    tolerance: Tolerance = 3e-2,
    max_steps: Count = 200,
    seed: Natural = 0,
) -> Estimate:
    """Mean rise of minibatch losses in a ball over that of their average, E_b S(f_b) / S(L), S = max f(theta+d) - f.

    It depends on the radius, and grows without bound as that goes to 0: the average has no gradient at a minimum.

    Args:
        at: K minima.
        radius: of the ball |d| <= eps, relative: eps over the length of the block's own parameters.
        blocks: none, all parameters; layer, each parameter tensor; kernel, each (output unit, input unit), for at most
            512 parameters.
        minibatch_size: samples m in a minibatch, in one partition of the whole set.
        tolerance: of the gradient along the sphere, relative to the gradient; the rise is right to about its square.
        max_steps: gradients at most.
        seed: of the partition.
    Returns: (K,), a ratio in units of 1; standard error over minibatches as if drawn with replacement; geometric mean
        over blocks.
    """
    if bad := _sized(at, minibatch_size):
        return bad
    if blocks == "kernel" and at.theta.shape[1] > DENSE:
        return _too_many(at, "the sharpness contrast of kernels")

    def rise(of: Block, theta: Tensor) -> tuple[Tensor, Tensor]:
        here = Point(theta, of, of)  # type: ignore[arg-type]  # a Block has what climbing needs
        eps = (radius * torch.linalg.vector_norm(theta, dim=1)).clamp_min(1e-100)
        height, residual, done, _ = climb(here, eps, tolerance, max_steps, seed)
        f64, rounding = torch.float64, torch.finfo(theta.dtype).eps * here.loss()
        if theta.dtype != f64 and bool((height <= CLEAR * rounding).any()):
            return rise(Block(of.of.to(f64), of.theta.to(f64), of.columns, of.only), theta.to(f64))
        return height.clamp_min(0), torch.where(done, 0, residual)

    why = f"gradient along the sphere above tolerance={tolerance:g}: raise max_steps ({max_steps})"
    return _over_partition(at, blocks, minibatch_size, seed, rise, tolerance, why)


def _over_partition(
    at: Point,
    blocks: Blocks,
    m: int,
    seed: int,
    functional: Functional,
    tolerance: float,
    why: str,
) -> Estimate:
    """The contrast of a functional (objective, what moves (R, s)) -> values and residuals (R,), minimum by minimum."""
    draws, n = _partition(at, m, seed), at.train.n
    weight = torch.cat([torch.full((len(d),), d.shape[1] / n, dtype=torch.float64) for d in draws]).to(at.theta.device)
    owns, means, worst = [], [], []
    for k in range(len(at.theta)):
        one, theta, found = at.train.alone(k), at.theta[k : k + 1], []
        names = list(one.columns) if blocks == "layer" else [None]
        for columns, only in zip(_block_columns(one, blocks), cycle(names), strict=False):
            losses = [one, *(one.each(piece) for d in draws for piece in d.split(_together(theta, columns)))]
            each = [functional(*_rows(loss, theta, columns, only)) for loss in losses]
            values = torch.cat([v.double().view(len(columns), -1) for v, _ in each], 1)  # (blocks, 1 + M)
            found.append((values, max(float(r.max()) for _, r in each)))
        values = torch.cat([v for v, _ in found])
        owns.append(values[:, 1:])
        means.append(values[:, 0])
        worst.append(max(r for _, r in found))
    own, mean = torch.stack(owns), torch.stack(means)  # (K, blocks, M), (K, blocks)
    estimate = _geometric((own * weight).sum(2), mean)
    kept, M = _kept((own * weight).sum(2), mean)[..., None], len(weight)
    share = torch.where(kept, own / (own * weight).sum(2, keepdim=True).where(kept, 1), 0).sum(1) / kept.sum(1)
    if M > 1 and m > 1:
        estimate.standard_error = estimate.value * share.std(1) / M**0.5
    estimate.samples, estimate.residual = M, torch.tensor(worst, dtype=torch.float64, device=at.theta.device)
    return estimate.not_converged(estimate.residual > tolerance, why)


def _together(theta: Tensor, columns: Tensor) -> int:
    """How many minibatches make one stack."""
    return memory.pieces(8 * theta.shape[1] * len(columns), memory.PRODUCTS)
