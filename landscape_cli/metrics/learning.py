"""The local learning coefficient: how fast the volume of almost equal losses grows around a minimum."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor

from landscape_cli.metrics.perturbation import around, resolved, slopes
from landscape_cli.metrics.point import Estimate, Point, nothing, over_draws
from landscape_cli.registry import FEW, Count, Natural, NonNegative, Positive, metric

SHARE = 0.8  # of 1 / (n beta h + gamma), the automatic step: half of it is what a stiff direction loses in a step
LONG = 0.75  # on the digits MLP values were right up to 0.6 of stiffness, and twice as large at 1
Slopes = Callable[[Tensor, int], tuple[Tensor, Tensor]]


@metric(
    invariant="permutation",
    source="Lau et al. 2023, eq. 8 and algorithm 1",
    direction="sharp",
    cost="320 gradients: chains times burn-in and draws",
)
def local_learning_coefficient(
    at: Point,
    *,
    step: Positive | None = None,
    gamma: NonNegative | None = None,
    chains: Annotated[int, Ge(2), FEW] = 8,
    draws: Annotated[int, Ge(8), FEW] = 24,
    burn_in: Annotated[int, Ge(4)] = 16,
    minibatch_size: Count | None = None,
    seed: Natural = 0,
) -> Estimate:
    """Rise of the loss under a posterior around the minimum, n beta (E[L(w)] - L(theta)), beta = 1 / log n.

    The mean is over w ~ exp(-n beta L(w) - gamma/2 |w - theta|^2), by Langevin steps from theta,
    w <- w - step/2 (n beta grad L(w) + gamma (w - theta)) + sqrt(step) xi. Two things differ from Lau et al.: L(theta)
    and, by default, the gradients are those of the full training set; and xi is the mean of this step's noise and the
    last one's (Leimkuhler & Matthews 2013), so that a quadratic loss gets its exact mean at any stable step (with plain
    steps the digits MLP came out 20 % too high). In a quadratic loss the value is sum_j h_j / (2 (h_j + gamma)) for
    eigenvalues h_j of n beta H: it counts, by halves, the directions that are stiffer than the prior.

    Args:
        at: K minima.
        step: of all minima; None sets it for each minimum in the burn-in, 0.8 / (n beta h + gamma), h the curvature
            that its chains meet, |dg|^2 / <dg, dw> from step to step: sharp minima get short steps.
        gamma: of the prior, which keeps the chains at the minimum. None stands for n beta: then the slowest directions
            need the same number of steps, (h + 1) / 0.4, whatever n, and the draws below suffice. The limit that gives
            the coefficient its name has a fixed gamma: n beta / gamma times as many draws.
        chains: each from theta, with noise of its own, common to all minima.
        draws: states of each chain whose mean is taken, one after the other.
        burn_in: states before them, left out.
        minibatch_size: samples of each gradient and loss, new for each state of a chain (every second one in the
            burn-in); their noise adds to xi, and the value is too high by it. None for all samples: no such error.
        seed: of noise and minibatches.
    Returns: (K,), in units of 1 (half a parameter count); standard error over chains. Not converged where both halves
        of the draws differ, by Student's t over chains at 1 % and by 5 % of the value, where the step is too long for
        the curvature met, or where the value is negative.
    """
    n = at.train.y.shape[-1]
    if n < 2:
        return nothing(at, "one sample: beta = 1 / log n is infinite")
    nb = n / math.log(n)
    prior = nb if gamma is None else gamma
    noise = [_generator(seed, chain) for chain in range(chains)]
    gradient = _slopes(at, minibatch_size, seed)
    found = langevin(gradient, at.theta, nb, prior, step, burn_in=burn_in, draws=draws, noise=noise)
    rises = nb * (found.losses - at.loss()[:, None, None])  # (K, chains, draws)
    estimate = over_draws(rises.mean(2), chains * draws)
    estimate.iterations, estimate.residual = burn_in + draws, found.stiffness
    lost = ~torch.isfinite(estimate.value)
    resolved(at, estimate, estimate.value / nb)
    half = draws // 2
    drift = rises[:, :, -half:].mean(2) - rises[:, :, :half].mean(2)  # (K, chains)
    error, bound = drift.std(1) / chains**0.5, _student(chains - 1)
    drifts = (drift.mean(1).abs() > bound * error) & (drift.mean(1).abs() > 0.05 * estimate.value.abs())
    why = f"the loss still drifts over the draws: raise burn_in ({burn_in}) and draws ({draws})"
    estimate.not_converged(drifts, why)
    if minibatch_size is None:  # the gradients' noise would look like curvature
        why = "steps too long for the curvature that the chains met: "
        estimate.not_converged(found.stiffness > LONG, why + ("lower step" if step else "set a lower step"))
    estimate.not_converged(estimate.value < 0, "negative: the chains found lower losses: train on, or raise gamma")
    return estimate.undefined(lost, "the chains left for infinity: lower step, or raise gamma")


def _student(freedom: int) -> float:
    """What |t| exceeds once in a hundred times."""
    from scipy.stats import t

    return float(t.ppf(0.995, freedom))


def _generator(*words: int) -> torch.Generator:
    """Of its own for every tuple of words: torch looks at 32 bits of a seed only."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(words).generate_state(1)[0]))


def _slopes(at: Point, minibatch_size: int | None, seed: int) -> Slopes:
    """(w (K, chains, p), number of the minibatch) -> losses (K, chains) and gradients (K, chains, p)."""
    if minibatch_size is None or minibatch_size >= at.train.n:

        def full(w: Tensor, batch: int) -> tuple[Tensor, Tensor]:
            loss, g = around(at.train, w.unbind(1), slopes)
            return loss, g

        return full
    size = minibatch_size

    def some(w: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        found = []
        for chain, there in enumerate(w.unbind(1)):
            index = torch.randperm(at.train.n, generator=_generator(seed, chain, batch))[:size].to(w.device)
            found.append(at.train.subset(index).loss_and_gradient(there))
        loss, g = (torch.stack(side, 1) for side in zip(*found, strict=True))
        return loss, g

    return some


@dataclass(frozen=True)
class Chains:
    """What Langevin dynamics saw.

    Args:
        losses: at each kept state (K, chains, draws), float64.
        step: of each minimum (K,).
        stiffness: step / 2 times n beta h + gamma for the curvature h that the kept states met (K,), the share that a
            stiff direction loses in a step; from 2 on the chains are unstable.
    """

    losses: Tensor
    step: Tensor
    stiffness: Tensor


def langevin(
    slopes: Slopes,
    theta: Tensor,
    n_beta: float,
    gamma: float,
    step: float | None = None,
    *,
    burn_in: int,
    draws: int,
    noise: list[torch.Generator],
) -> Chains:
    """Sample exp(-n_beta L(w) - gamma/2 |w - theta|^2) around each of K minima, one chain a generator, all from theta.

    Args:
        slopes: (w (K, chains, p), number of the minibatch) -> losses (K, chains), gradients (K, chains, p).
        theta: (K, p).
        n_beta: inverse temperature.
        gamma: precision of the prior.
        step: None finds one for each minimum in the burn-in, and keeps it.
        burn_in: states that are left out.
        draws: states that are kept.
        noise: common to all minima.
    Source: Welling & Teh 2011; Leimkuhler & Matthews 2013 for the noise.
    """
    K, p = theta.shape
    w = theta[:, None].expand(K, len(noise), p)
    start, last = w, _draw(noise, theta)
    eps = theta.new_full((K,), step or 0.01 * SHARE / (n_beta + gamma), dtype=torch.float64)
    kept, before = [], None
    met = torch.zeros(2, K, dtype=torch.float64, device=theta.device)  # |dg|^2 and <dg, dw>, fading
    for t in range(burn_in + draws):
        loss, g = slopes(w, t // 2 if t < burn_in else t)
        if before is not None and (t >= burn_in or t % 2):  # the same minibatch as before, in the burn-in
            dw, dg = (w - before[0]).double(), (g - before[1]).double()
            now = torch.stack([dg.square().sum((1, 2)), (dg * dw).sum((1, 2)).clamp_min(0)])
            met = now + met * (0.8 if t < burn_in else 1)
            if step is None and t < burn_in:
                eps = torch.minimum(2 * eps, SHARE / (n_beta * _ratio(met) + gamma).clamp_min(1e-300))
        if t == burn_in - 1:
            met = torch.zeros_like(met)
        kept += [loss] if t >= burn_in else []
        before = w, g
        xi = _draw(noise, theta)
        rate = eps[:, None, None].to(theta.dtype)
        w = w - rate / 2 * (n_beta * g + gamma * (w - start)) + rate.sqrt() * (xi + last) / 2
        last = xi
    return Chains(torch.stack(kept, 2), eps, eps / 2 * (n_beta * _ratio(met) + gamma))


def _ratio(met: Tensor) -> Tensor:
    """|dg|^2 / <dg, dw>; 0 where nothing has curved."""
    return torch.where(met[1] > 0, met[0] / met[1].clamp_min(1e-300), 0)


def _draw(noise: list[torch.Generator], like: Tensor) -> Tensor:
    """(chains, p), in the type of `like`."""
    xi = [torch.randn(like.shape[1], generator=rng, dtype=torch.float64) for rng in noise]
    return torch.stack(xi).to(like)
