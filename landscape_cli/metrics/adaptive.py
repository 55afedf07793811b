"""Adaptive sharpness: the rise of the loss under perturbations that are measured by the parameters' own sizes."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from landscape_cli.metrics.ball_maximum import Norm, Scaled, climb
from landscape_cli.metrics.perturbation import filter_norms, filters, gaussians, resolved, seen, uniforms
from landscape_cli.metrics.point import Estimate, Point, Split, exact
from landscape_cli.metrics.sharpness import STILL, Draws, Solver, ascend, mean_rise, too_few
from landscape_cli.registry import Count, Natural, Positive, Tolerance, metric

Case = Literal["worst", "average"]
Scope = Literal["elementwise", "filterwise"]
RHO = {("worst", "l2"): 0.5, ("worst", "linf"): 0.01, ("average", "l2"): 0.2, ("average", "linf"): 0.35}


@metric(
    invariant={"scope=elementwise": "permutation,global,filter", "scope=filterwise": "permutation,global,scale"},
    source="Kwon et al. 2021, eq. 3; Andriushchenko et al. 2023, eq. 1 and 2",
    case=["worst", "average"],
    direction="sharp",
    cost="40 to 100 gradients and a top eigenvector; ascent: 2 gradients; average: 2 forward passes a draw",
)
def adaptive_sharpness(
    at: Point,
    *,
    rho: Positive | None = None,
    norm: Norm = "l2",
    case: Case = "worst",
    scope: Scope = "elementwise",
    solver: Solver = "converged",
    split: Split = "train",
    normalize_logits: bool = False,
    draws: Draws = 32,
    tolerance: Tolerance = 1e-3,
    max_steps: Count = 200,
    seed: Natural = 0,
) -> Estimate:
    """Rise of the loss at theta + T z for z of size rho, T = diag |theta_j|: the largest, or the mean over random z.

    worst: max_{|z|_p <= rho} L(theta + T z) - L(theta), p = 2 or infinity, searched in z; the first step is
    z = rho T g / |T g| (l2) or rho sign(T g) (linf). average: E L(theta + rho T xi) - L(theta), xi ~ N(0, I) (l2) or
    uniform on [-1, 1]^p (linf). All parameters take part, and nothing is added to |theta_j| (eta = 0; Kwon's 0.01
    breaks the invariance): a parameter that is exactly 0 stays 0. The code of Andriushchenko et al. takes steps along
    |theta| g from a random start on minibatches of its own choice, and projects by Euclidean distance in theta: it
    searches the same set, with another result where it stops early.

    Args:
        at: K minima.
        rho: size of z. None, the default, takes one at which the loss of a digits MLP, 0.01, rises by 0.01 to 0.05,
            beyond its linear part and within its basin: worst 0.5 (l2, as Kwon et al.) and 0.01 (linf), average 0.2
            (l2) and 0.35 (linf), which is smaller than it looks: rho is the length of the worst z, and the standard
            deviation (the bound) of each coordinate of a random one. Filterwise a tenth of it, for T is larger.
        norm: the ball of the worst case, and the law of the average.
        case: worst or average.
        scope: elementwise, or filterwise: T_j is the norm of the filter (row of a weight tensor) that j belongs to, and
            |theta_j| where there are none (biases, normalization).
        solver: of the worst case: `ascent` takes one step, `converged` climbs on; in the linf box by L-BFGS-B.
        split: whose average loss.
        normalize_logits: divide each sample's logits by their standard deviation over classes first.
        draws: antithetic pairs of the average case, common to all minima.
        tolerance: of the gradient in z along the sphere, or off the walls of the box, relative to the gradient.
        max_steps: gradients at most for `converged`; iterations in the box.
        seed: of the draws, or of the eigenvector's Lanczos start.
    Returns: (K,), in nats; the worst case has no sampling error and is a lower bound, the average a standard error over
        pairs.
    """
    at = seen(at, split, normalize_logits)
    rho = RHO[case, norm] / (1 if scope == "elementwise" else 10) if rho is None else rho
    T = _scale(at, scope)
    if case == "average":
        draw = gaussians if norm == "l2" else uniforms
        return mean_rise(at, (rho * T * z for z in draw(at, draws, seed)))
    inside = Scaled(at.train, at.theta, T).point()
    g = inside.gradient()
    if solver == "ascent":
        rise = ascend(inside, rho)[0] if norm == "l2" else inside.train.loss(rho * g.sign()) - at.loss()
        return resolved(at, exact(rise, len(at.train.y)).undefined((g == 0).all(1), STILL), rise)
    radius = at.loss().new_full((len(at.theta),), rho)
    rise, residual, done, steps = climb(inside, radius, tolerance, max_steps, seed, norm)
    estimate = exact(rise, len(at.train.y))
    estimate.iterations, estimate.residual = steps, residual
    return resolved(at, estimate.not_converged(~done, too_few(tolerance, steps, max_steps)), rise)


def _scale(at: Point, scope: Scope) -> Tensor:
    """The diagonal of T (K, p)."""
    T = at.theta.abs()
    if scope == "filterwise":
        norms = filter_norms(at, at.theta)
        for part, rows in filters(at):
            if rows:
                T[:, part] = norms[:, part]
    return T
