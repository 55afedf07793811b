"""The largest rise of a loss in a ball around each minimum of a stack."""

from __future__ import annotations

import torch
from torch import Tensor

from landscape_cli.point import Point


def climb(at: Point, rho: Tensor, tolerance: float, max_steps: int, seed: int) -> tuple[Tensor, Tensor, Tensor, int]:
    """The largest rise max_{|d| <= rho} L(theta + d) - L(theta), radii rho (K,): what `_climb_in_ball` returns.

    It starts from the best of the step along the gradient and the top eigenvector of the Hessian, both signs.
    """
    g, scale = at.gradient(), rho[:, None].to(at.theta.dtype)
    d = scale * g / torch.linalg.vector_norm(g, dim=1, keepdim=True).clamp_min(torch.finfo(g.dtype).tiny)
    v = scale * at.ritz(1, 1e-3, 200, seed).vectors[:, 0]
    tries = torch.stack([torch.zeros_like(d), d, v, -v])  # the first where the loss falls to all sides of it
    heights = torch.stack([at.train.loss(at.theta + t) for t in tries])
    d = tries[heights.argmax(0), torch.arange(len(v), device=v.device)]
    return _climb_in_ball(at, d, rho, tolerance, max_steps)


def _climb_in_ball(
    at: Point, d: Tensor, rho: Tensor, tolerance: float, max_steps: int
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Ascend L(theta + d) over |d| <= rho (K,) from d (K, p): rise, residual, whether it is done (K,); gradients used.

    The step d <- rho (g + s d) / |g + s d| is the power method for s = 0 and a small gradient step for large s; each
    minimum raises its own s when a step goes down, and halves it when it goes up. Momentum on top (Nesterov's, dropped
    after a step down) replaces the power method's slow rate lambda_2 / lambda_1 by about its root. A minimum whose rise
    has grown by less than tolerance^2 in 20 gradients stands on a kink of the loss, or at the end of its digits: it is
    done whatever its residual.
    """
    loss, g = at.train.loss_and_gradient(at.theta + d)
    best, slope, previous = d, g, d
    s, age, steps = torch.zeros_like(loss), torch.zeros_like(loss), 1
    seen = [(0, at.loss())]
    while True:
        size = torch.linalg.vector_norm(slope, dim=1).double()
        outward = (slope * best).double().sum(1, keepdim=True).clamp_min(0) / rho[:, None] ** 2
        along = torch.linalg.vector_norm(slope.double() - outward * best.double(), dim=1)
        then = next((value for when, value in reversed(seen) if when <= steps - 20), at.loss())
        stands = (loss - then <= tolerance**2 * (loss - at.loss())) & (steps > 20)
        residual = along / size.clamp_min(1e-300)
        done = stands | (residual <= tolerance)
        if steps >= max_steps or bool(done.all()):
            return loss - at.loss(), residual, done, steps
        seen.append((steps, loss))
        new = _onto_ball(g + s[:, None].to(g.dtype) * d, s, rho)
        new_loss, new_slope = at.train.loss_and_gradient(at.theta + new)
        up = new_loss >= loss
        previous, best = torch.where(up[:, None], best, previous), torch.where(up[:, None], new, best)
        loss, slope = torch.where(up, new_loss, loss), torch.where(up[:, None], new_slope, slope)
        s = torch.where(up, s / 2, torch.where(age > 0, s, (2 * s).maximum(size / rho / 4)))
        age = torch.where(up, age + 1, 0)
        push = (age / (age + 3))[:, None].to(g.dtype)
        steps += 1
        if bool((push > 0).any()) and steps < max_steps:
            d = _onto_ball(best + push * (best - previous), torch.ones_like(s), rho)
            g = at.train.loss_and_gradient(at.theta + d)[1]
            steps += 1
        else:
            d, g = best, slope


def _onto_ball(way: Tensor, s: Tensor, rho: Tensor) -> Tensor:
    """way / s if that lies in the ball of radius rho, else the point of the sphere in that direction."""
    reach = torch.linalg.vector_norm(way, dim=1).double()
    scale = torch.where(reach > s * rho, rho / reach.clamp_min(1e-300), 1 / s.clamp_min(1e-300))
    return scale[:, None].to(way.dtype) * way
