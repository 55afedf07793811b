"""Regret in the ball of predictive distributions, which is invariant (METRICS section 3, the essay's homework).

Symmetrized KL between the predictions at theta and theta + d is d^T F d to second order, so that in the ball
d^T F d <= eps^2 the regret is that of gradients measured by <u, v>_* = u^T F^+ v. The draws are common to all metrics
here: S training samples at random, cut into disjoint minibatches; F is over their inputs, or over more.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from landscape_cli.curvature import fisher, kfac
from landscape_cli.curvature.conjugate_gradients import conjugate_gradients
from landscape_cli.curvature.sample_gradients import block_means
from landscape_cli.metrics.gradients import Many, sized
from landscape_cli.metrics.point import Estimate, Point, exact, nothing, over_pairs, regret_of, unit
from landscape_cli.registry import Count, Natural, Positive, Tolerance, metric

Over = Literal["minibatches", "train_and_test"]
Samples = Annotated[int, Ge(6)]
OVER = ["minibatches", "train_and_test"]
ROOT = "C - 1 gradients a sample and one singular value decomposition, shared"


def few(S: int, m: int) -> str:
    """Why S samples do not do for minibatches of m; empty if they do."""
    return "" if S // m >= 3 else f"{S} samples hold fewer than 3 minibatches of {m}: raise samples"


def partitions_of(S: int, m: int, partitions: int, seed: int) -> Tensor:
    """Numbers among the S samples of each minibatch (D, M, m); single samples need one partition."""
    rng, M = torch.Generator().manual_seed(seed), S // m
    first = torch.arange(S)[: M * m].view(1, M, m)
    if m == 1:
        return first
    return torch.cat([first, *(torch.randperm(S, generator=rng)[: M * m].view(1, M, m) for _ in range(partitions - 1))])


def _regret(gram: Tensor, n: int, S: int) -> Estimate:
    """Regret of (K, D, M, M); error: the choice of S among n samples by the jackknife, and that of the partitions.

    A single partition of several is no complete set, even where S = n.
    """
    K, D, M = gram.shape[:3]
    complete = D > 1 or M == S
    length, values = gram.diagonal(dim1=2, dim2=3).clamp_min(0).sqrt(), regret_of(gram)
    share, jackknife = (1 - S / n if complete else 1), torch.zeros_like(values[:, 0])
    if share > 0:
        h = length[:, :, None] - gram * unit(length)[..., None]
        jackknife = over_pairs(h.flatten(0, 1)).standard_error.view(K, D).square().mean(1) * share
    spread = values.var(1) / D if D > 1 else torch.zeros_like(jackknife)
    estimate = Estimate(values.mean(1), (jackknife + spread).sqrt(), D * M)
    return estimate.undefined(~values.mean(1).isfinite(), "exp(loss) of a sample overflows")


def _ranked(estimate: Estimate, found: fisher.Metric) -> Estimate:
    """The same with the rank said, and undefined where it is 0."""
    said = [f"rank {int(r)} of {found.rows} rows, " for r in found.rank]
    kept = [f"smallest singular value kept {float(s):.2g}, cut-off {fisher.CUTOFF:g}" for s in found.smallest]
    told = [a + b for a, b in zip(said, kept, strict=True)]
    estimate.message = ["; ".join(filter(None, pair)) for pair in zip(estimate.message, told, strict=True)]
    return estimate.undefined(found.rank == 0, f"rank 0 of {found.rows} rows: no prediction depends on a parameter")


def too_large(at: Point, samples: int, over: str, inputs: int, seed: int) -> str:
    """Why the root of F does not fit; empty if it does."""
    F = at.kl_inputs(samples, over, inputs, seed)[0]
    return fisher.too_large(F, at.theta.shape[1], at.logits("train").shape[2])


@metric(
    invariant="permutation,smooth",
    source="Huszar 2018 (left to the reader); ours, docs/essay.md",
    minibatch_size=[1, 10],
    over=OVER,
    needs="root",
    direction="none",
    cost=ROOT,
)
@sized
def regret_kl(
    at: Point,
    *,
    minibatch_size: Count = 10,
    samples: Samples = 50,
    over: Over = "minibatches",
    inputs: Count = 64,
    partitions: Many = 16,
    seed: Natural = 0,
) -> Estimate:
    """Local regret in the KL ball per unit radius, E_{a != b} |g_b|_* (1 - cos_*(g_a, g_b)), <u, v>_* = u^T F^+ v.

    F is the true Fisher information. Its root U alone is decomposed, in float64; its rank is said in the message. Where
    that equals the number of rows the value is `regret_kl_closed_form`, a function of the training losses alone.

    Args:
        at: K minima.
        minibatch_size: samples m in a minibatch.
        samples: training samples S that are cut into S // m disjoint minibatches.
        over: inputs that define F: those samples' own, or others from training and test set too.
        inputs: how many in all, for `train_and_test`.
        partitions: ways to cut the samples, averaged.
        seed: of the samples.
    Returns: (K,), in sqrt(nats); standard error over samples and partitions, 0 where both are complete.
    """
    S = min(samples, at.train.n)
    if why := few(S, minibatch_size) or too_large(at, samples, over, inputs, seed):
        return nothing(at, f"{why}; or use regret_kl_damped or regret_kl_kfac" if "large" in why else why)
    found = at.kl_metric(samples, over, inputs, seed)
    draws = partitions_of(S, minibatch_size, partitions, seed).to(at.theta.device)
    return _ranked(_regret(block_means(found.gram, draws), at.train.n, S), found)


@metric(
    invariant="permutation,smooth,output",
    source="ours, docs/essay.md",
    minibatch_size=[1, 10],
    over=OVER,
    needs="root",
    direction="none",
    cost="one forward pass of the samples",
)
@sized
def regret_kl_closed_form(
    at: Point,
    *,
    minibatch_size: Count = 10,
    samples: Samples = 50,
    over: Over = "minibatches",
    inputs: Count = 64,
    partitions: Many = 16,
    seed: Natural = 0,
) -> Estimate:
    """What regret_kl is where U has full row rank: E_b sqrt(N mean_{i in b}(exp(l_i) - 1) / m).

    The square root is |g_b|_* there, and a bound of it elsewhere.

    Args:
        at: K minima.
        minibatch_size: samples m in a minibatch.
        samples: training samples, as in regret_kl.
        over: inputs that define F, N of them.
        inputs: how many in all, for `train_and_test`.
        partitions: ways to cut the samples, averaged.
        seed: of the samples.
    Returns: (K,), in sqrt(nats); standard error over samples and partitions.
    """
    F, S = at.in_double.kl_inputs(samples, over, inputs, seed)
    if why := few(S, minibatch_size):
        return nothing(at, why)
    logits, y = F.subset(torch.arange(S, device=F.y.device)).logits(at.in_double.theta), F.y[:S]
    odds = F.root.length(logits, y.expand(len(logits), -1))  # exp(l) - 1 for the softmax
    draws = partitions_of(S, minibatch_size, partitions, seed).to(odds.device)
    length = (F.n * odds[:, draws].mean(3) / minibatch_size).sqrt()  # (K, D, M)
    return _regret(torch.diag_embed(length.square()), at.train.n, S)


@metric(
    invariant="permutation,smooth", source="ours, docs/essay.md", over=OVER, needs="root", direction="none", cost=ROOT
)
def fisher_rank_deficit(
    at: Point, *, samples: Samples = 50, over: Over = "minibatches", inputs: Count = 64, seed: Natural = 0
) -> Estimate:
    """Share of the rows of U that depend on others, (rows - rank) / rows; 0 says that regret_kl is a closed form.

    Args:
        at: K minima.
        samples: training samples, as in regret_kl.
        over: inputs that define F.
        inputs: how many in all, for `train_and_test`.
        seed: of the samples.
    Returns: (K,), between 0 and 1; exact for these inputs.
    """
    if why := too_large(at, samples, over, inputs, seed):
        return nothing(at, why)
    found = at.kl_metric(samples, over, inputs, seed)
    estimate = exact(1 - found.rank.double().to(at.theta.device) / found.rows, found.inputs)
    return _ranked(estimate, found)


@metric(
    invariant="permutation,smooth",
    source="Takeuchi 1976; Thomas et al. 2020; ours, docs/essay.md",
    needs="root",
    direction="none",
    cost=ROOT,
)
def tic_fisher(
    at: Point, *, samples: Samples = 50, over: Over = "minibatches", inputs: Count = 64, seed: Natural = 0
) -> Estimate:
    """Takeuchi's criterion with the Fisher information, tr(F^+ Cov(g_i)): the spread of gradients in its metric.

    Args:
        at: K minima.
        samples: training samples S over which the covariance is taken; it grows with S where the rank is full.
        over: inputs that define F, as in regret_kl.
        inputs: how many in all, for `train_and_test`.
        seed: of the samples.
    Returns: (K,), in units of parameters (their effective number); standard error by the jackknife over samples.
    """
    S = min(samples, at.train.n)
    if why := too_large(at, samples, over, inputs, seed):
        return nothing(at, why)
    found = at.kl_metric(samples, over, inputs, seed)
    own, row = found.gram.diagonal(dim1=1, dim2=2), found.gram.sum(2)  # (K, S)
    trace, total = own.sum(1, keepdim=True), row.sum(1, keepdim=True)
    left_out = (trace - own) / (S - 1) - (total - 2 * row + own) / (S - 1) ** 2
    error = left_out.std(1) * (S - 1) / S**0.5 * (1 - S / at.train.n) ** 0.5
    estimate = Estimate((trace / S - total / S**2)[:, 0], error, S)
    return _ranked(estimate, found)


@metric(
    invariant="permutation,global",
    source="ours, docs/essay.md; Hestenes & Stiefel 1952",
    needs="root",
    direction="none",
    cost="one gradient and up to 1000 Fisher products a minibatch",
)
@sized
def regret_kl_damped(
    at: Point,
    *,
    minibatch_size: Count = 10,
    samples: Samples = 50,
    over: Over = "minibatches",
    inputs: Count = 64,
    damping: Positive = 1e-2,
    tolerance: Tolerance = 1e-3,
    max_steps: Count = 1000,
    seed: Natural = 0,
) -> Estimate:
    """Local regret in the damped KL ball: regret_kl with F + lambda I in place of F, matrix-free; not invariant.

    Args:
        at: K minima.
        minibatch_size: samples m in a minibatch.
        samples: training samples that are cut into minibatches.
        over: inputs that define F, as in regret_kl.
        inputs: how many in all, for `train_and_test`.
        damping: lambda over the mean eigenvalue of F, tr F / p.
        tolerance: of the conjugate gradients' relative residual; on the digits MLP the value was 0.05 % low at 1e-3,
            and 1 % at 1e-2.
        max_steps: products with F at most.
        seed: of the samples.
    Returns: (K,), in sqrt(nats); standard error by the jackknife over minibatches.
    """
    F, S = at.kl_inputs(samples, over, inputs, seed)
    if why := few(S, minibatch_size):
        return nothing(at, why)
    draw, (K, p) = partitions_of(S, minibatch_size, 1, seed)[0].to(at.theta.device), at.theta.shape
    M = len(draw)
    rows = torch.arange(K, device=at.theta.device).repeat_interleave(M)
    theta = at.theta[rows]
    g = F.each(draw).loss_and_gradient(theta)[1]
    level = damping * fisher.fisher_traces(F, at.theta).sum(1) / p  # lambda (K,)
    product, each = F.rows(rows).fisher_product(theta), level[rows][:, None].to(theta.dtype)
    x, residual, steps = conjugate_gradients(
        lambda v: product(v) + each * v, g, tolerance=tolerance, max_steps=max_steps
    )
    gram = g.view(K, M, p).double() @ x.view(K, M, p).double().mT
    estimate = _regret((gram + gram.mT)[:, None] / 2, at.train.n, S)
    estimate.iterations, estimate.residual = steps, residual.view(K, M).amax(1)
    estimate.message = [f"damping lambda={float(own):.3g}" for own in level]
    why = f"relative residual above tolerance={tolerance:g} after {steps} products: raise max_steps ({max_steps})"
    return estimate.not_converged(estimate.residual > tolerance, why)


@metric(
    invariant="permutation,filter",
    source="Martens & Grosse 2015, without damping; ours, docs/essay.md",
    needs="root",
    direction="none",
    cost="one gradient a minibatch, C - 1 backward passes, two decompositions a layer",
)
@sized
def regret_kl_kfac(
    at: Point,
    *,
    minibatch_size: Count = 10,
    samples: Samples = 50,
    over: Over = "minibatches",
    inputs: Count = 64,
    seed: Natural = 0,
) -> Estimate:
    """Local regret in the KL ball with F replaced by K-FAC, one Kronecker product a layer; an approximation.

    Args:
        at: K minima.
        minibatch_size: samples m in a minibatch.
        samples: training samples that are cut into minibatches.
        over: inputs that define F, as in regret_kl.
        inputs: how many in all, for `train_and_test`.
        seed: of the samples.
    Returns: (K,), in sqrt(nats); standard error by the jackknife over minibatches; undefined for layers without it.
    """
    F, S = at.in_double.kl_inputs(samples, over, inputs, seed)
    if why := few(S, minibatch_size) or kfac.unsupported(F):
        return nothing(at, why)
    draw, theta = partitions_of(S, minibatch_size, 1, seed)[0].to(at.theta.device), at.in_double.theta
    grams = []
    for k in range(len(theta)):
        own, here = F.alone(k), theta[k : k + 1]
        g = torch.cat([own.subset(b).loss_and_gradient(here)[1] for b in draw])
        grams.append(kfac.kfac_gram(own, here, g))
    return _regret(torch.stack(grams)[:, None], at.train.n, S)
