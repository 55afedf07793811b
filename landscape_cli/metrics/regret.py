"""The local regret without linearization, in the ball of parameters and in that of predictions (METRICS 2 and 3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from landscape_cli.curvature import fisher
from landscape_cli.curvature.ball_minimum import least_in_ball
from landscape_cli.curvature.objective import Objective
from landscape_cli.metrics.gradients import Many, sized
from landscape_cli.metrics.kl import Over, Samples, few, partitions_of, too_large
from landscape_cli.metrics.point import Estimate, Point, nothing, over_pairs, unit
from landscape_cli.registry import Count, Natural, Positive, Tolerance, metric

RADII = [1e-5, 1e-4, 1e-3, 1e-2, 1e-1]
KL_RADII = [1e-6, 1e-5, 1e-4]
ROUNDING = 1e-7  # a gap that may be all that rounding lets one see
KINK = 0.1  # a larger gap is no kink but a solver that is lost
LIMIT = 2000  # parameters up to which F's eigenvectors are taken


@metric(
    invariant="permutation",
    source="Huszar 2018; ours, docs/essay.md",
    direction="sharp",
    cost="up to 2000 gradients a minibatch and radius",
    version=2,
)
@sized
def regret_exact(
    at: Point,
    *,
    radius: list[Positive] = RADII,
    minibatch_size: Count = 10,
    minibatches: Many = 8,
    tolerance: Tolerance = 1e-5,
    max_steps: Count = 2000,
    seed: Natural = 0,
) -> dict[str, Estimate]:
    """Local regret per unit radius, E_{a != b} [f_b(argmin f_a) - min f_b] / eps in the ball |d| <= eps.

    Beside `regret`, its limit for eps -> 0, it says how far the linearization holds. In float64 whatever the precision.

    Args:
        at: K minima.
        radius: eps / |theta|, a row each; a row radius=0 has the limit, to first order on the same minibatches.
        minibatch_size: samples m in a minibatch.
        minibatches: how many disjoint ones, M; all M (M - 1) ordered pairs are used.
        tolerance: of the solver's duality gap, relative to eps |g|; the error of R / eps goes with its root. Where the
            ball is so large that f_a comes near 0 in it, its argmin is not one point, and R depends on the tolerance.
        max_steps: gradients at most.
        seed: of the minibatches.
    Returns: (K,), in nats per unit of parameter length, >= 0; standard error by the jackknife over minibatches. The
        residual is the largest gap: it bounds the error of f_b's minimum over eps |g| where f_b is convex in the ball.
    """
    at, draw = at.in_double, at.draws(minibatch_size, minibatches, 1, seed)[0]
    found = []
    for k in range(len(at.theta)):
        one, theta = at.train.alone(k), at.theta[k : k + 1]
        eps = torch.tensor(radius, dtype=torch.float64, device=theta.device) * torch.linalg.vector_norm(theta)
        found.append(_regrets(one, theta, draw, eps, _as_they_are(theta), tolerance, max_steps))
    return _rows(found, radius, tolerance, max_steps, at)


@metric(
    invariant="permutation",
    source="ours, docs/essay.md",
    needs="root",
    direction="none",
    cost="one singular value decomposition of the root of F; up to 200 gradients a minibatch and radius",
    version=2,
)
@sized
def regret_kl_exact(
    at: Point,
    *,
    radius: list[Positive] = KL_RADII,
    minibatch_size: Count = 10,
    samples: Samples = 50,
    over: Over = "minibatches",
    inputs: Count = 64,
    tolerance: Tolerance = 1e-6,
    max_steps: Count = 200,
    seed: Natural = 0,
) -> Estimate | dict[str, Estimate]:
    """Local regret per unit radius in the finite ball of predictions, symmetrized KL <= eps^2; regret_kl is its limit.

    The search stays in the range of F at the minimum, d = F^{+1/2} z: along the other directions the ball is unbounded.
    The ball is not convex, and the solution local: that on the way from theta. Where F has small eigenvalues it reaches
    so far that no solver finds its end, and the row says not_converged.

    Args:
        at: K minima of at most 2000 parameters.
        radius: eps, a row each, and radius=0 for the limit; its square is in nats, both directions, mean over inputs.
        minibatch_size: samples m in a minibatch.
        samples: training samples that are cut into minibatches once.
        over: inputs that define the ball, as in regret_kl.
        inputs: how many in all, for `train_and_test`.
        tolerance: of the solver's duality gap, relative to eps |g|_*; the error of R / eps goes with its root.
        max_steps: gradients at most.
        seed: of the samples.
    Returns: (K,), in sqrt(nats), >= 0; standard error by the jackknife over minibatches; the residual as above.
    """
    at = at.in_double
    F, S = at.kl_inputs(samples, over, inputs, seed)
    p = at.theta.shape[1]
    why = few(S, minibatch_size) or (f"{p} parameters are more than {LIMIT}" if p > LIMIT else "")
    if why := why or too_large(at, samples, over, inputs, seed):
        return nothing(at, why)
    draw = partitions_of(S, minibatch_size, 1, seed)[0].to(at.theta.device)
    eps, found = torch.tensor(radius, dtype=torch.float64, device=at.theta.device), []
    for k in range(len(at.theta)):
        one, theta = F.alone(k), at.theta[k : k + 1]
        found.append(_regrets(one, theta, draw, eps, _by_divergence(one, theta), tolerance, max_steps))
    return _rows(found, radius, tolerance, max_steps, at)


Back = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Way:
    """Coordinates w of steps in which the ball is |w| <= eps.

    Args:
        size: of w, s.
        step: w (r, s) -> theta (r, p), whether it is defined there (r,), and the function from theta's slope to w's.
    """

    size: int
    step: Callable[[Tensor], tuple[Tensor, Tensor, Back]]


# of one radius: R / eps of all pairs (M, M), the largest gap, the same of those that still move, gradients used
Solved = tuple[Tensor, Tensor, float, int]


def _regrets(
    one: Objective, theta: Tensor, draw: Tensor, eps: Tensor, way: Way, tolerance: float, max_steps: int
) -> list[Solved]:
    """R / eps of one minimum for radius 0, the limit, and each radius, as one stack, in the coordinates w of a way."""
    M, E = len(draw), len(eps)
    rows = one.each(draw).rows(torch.arange(M, device=theta.device).repeat(E))  # radii slowest

    def f(w: Tensor, live: Tensor) -> tuple[Tensor, Tensor]:
        there, defined, back = way.step(w)
        loss, slope = rows.rows(live).loss_and_gradient(there)
        return torch.where(defined, loss, torch.inf), back(slope)

    reach = eps.repeat_interleave(M)
    every = torch.arange(M * E, device=theta.device)
    g = f(theta.new_zeros(M * E, way.size), every)[1]
    first = _first_order(g[:M])
    start = -g * reach[:, None] * unit(torch.linalg.vector_norm(g, dim=1))[:, None]
    start = torch.where(f(start, every)[0].isfinite()[:, None], start, 0)
    least = least_in_ball(f, start, reach, tolerance=tolerance, max_steps=max_steps)
    points = one.rows(torch.zeros(M * E, dtype=torch.long, device=theta.device)).subset(draw.flatten())
    losses = one.network.loss.values(points.logits(way.step(least.at)[0]), points.y.expand(M * E, -1))
    cross = losses.view(E, M, *draw.shape).mean(3)  # [radius, a, b] = f_b(argmin f_a)
    best = cross.argmin(1)  # [radius, a]: whose solution is least for f_a, its own or that of another minibatch
    lowest = cross.amin(1, keepdim=True)
    cross = cross.gather(1, best[:, :, None].expand(-1, -1, M))
    rise = torch.where(eps > 0, 1 / eps, torch.nan)[:, None, None] * (cross - lowest)
    gap, stands = least.gap.view(E, M), least.stands.view(E, M)
    open_gap = gap.where(~stands, 0).amax(1).tolist()
    solved = [(h, gap[e].amax(), open_gap[e], least.steps) for e, h in enumerate(rise)]
    return [(first, gap.new_zeros(()), 0.0, 1), *solved]


def _first_order(g: Tensor) -> Tensor:
    """|g_b| (1 - cos(g_a, g_b)) of all pairs (M, M) of the gradients (M, s)."""
    gram = g @ g.mT
    length = gram.diagonal().clamp_min(0).sqrt()
    return length[None] - gram * unit(length)[:, None]


def _as_they_are(theta: Tensor) -> Way:
    """w is the step d itself."""
    return Way(theta.shape[1], lambda w: (theta + w, torch.ones_like(w[:, 0], dtype=torch.bool), lambda slope: slope))


def _by_divergence(one: Objective, theta: Tensor) -> Way:
    """w in the range of F, stretched along its ray so that the symmetrized KL at w is |w|^2 exactly: the ball is round.

    theta + t W w with W = F^{+1/2} and t solved from KL(t W w) = |w|^2 by Newton's method.
    """
    sigma, V = torch.linalg.svd(fisher.root(one, theta).flatten(0, 1), full_matrices=False)[1:]
    kept = sigma > fisher.CUTOFF * sigma[0]
    W, here = V[kept] / sigma[kept, None], one.logits(theta)  # (rank, p)
    row = torch.zeros(1, dtype=torch.long, device=theta.device)

    def step(w: Tensor) -> tuple[Tensor, Tensor, Back]:
        every, square, t = one.rows(row.expand(len(w))), w.square().sum(1), torch.ones_like(w[:, 0])
        for _ in range(8):
            divergence, slope = every.symmetrized_kl(theta + t[:, None] * (w @ W), here)
            slope = slope @ W.mT
            along, excess = (slope * w).sum(1), divergence - square
            if bool((excess.abs() <= 1e-10 * square).all()):
                break
            t = torch.where(along > 0, t - excess / along.where(along > 0, 1), t).clamp(0.1, 10)

        def back(g: Tensor) -> Tensor:
            g = g @ W.mT
            turn = torch.where(along > 0, (g * w).sum(1) / along.where(along > 0, 1), 0)[:, None]
            return t[:, None] * g + turn * (2 * w - t[:, None] * slope)

        return theta + t[:, None] * (w @ W), excess.abs() <= 1e-6 * square, back

    return Way(len(W), step)


def _rows(
    found: list[list[Solved]], radius: list[float], tolerance: float, max_steps: int, at: Point
) -> dict[str, Estimate]:
    """An estimate a radius; a solution that stands has converged only where the loss has kinks to stand on."""
    limit, rows = KINK if at.piecewise_linear else max(tolerance, ROUNDING), {}
    for e, r in enumerate([0.0, *radius]):
        h, gap, moving, steps = zip(*(own[e] for own in found), strict=True)
        estimate = over_pairs(torch.stack(h))
        estimate.residual, estimate.iterations = torch.stack(gap), max(steps)
        kinks = f"gap above tolerance={tolerance:g} where a solution stands on a kink of the loss"
        estimate.message = [kinks if float(g) > tolerance else "" for g in gap]
        why = f"duality gap above tolerance={tolerance:g} after {max(steps)} gradients: raise max_steps ({max_steps})"
        late = torch.tensor([m > tolerance or float(g) > limit for m, g in zip(moving, gap, strict=True)])
        lost = estimate.value.isnan()
        rows[f"radius={r:g}"] = estimate.not_converged(late, why).undefined(lost, "the ball has no extent: theta is 0")
    return rows
