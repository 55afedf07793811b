"""The largest rise of a loss in a ball around each minimum of a stack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from landscape_cli.curvature.objective import Objective, Product
from landscape_cli.metrics.point import Point

Norm = Literal["l2", "linf"]


@dataclass(frozen=True)
class Scaled:
    """An objective as a function of z, the parameters being theta + T z.

    A ball in z is an ellipsoid around theta, a box a box.

    Args:
        of: the objective of K rows.
        theta: where z = 0 lies (K, p).
        T: diagonal of T (K, p); a coordinate whose T is 0 stays.
    """

    of: Objective
    theta: Tensor
    T: Tensor

    @property
    def y(self) -> Tensor:
        """Labels, whose number is that of the samples."""
        return self.of.y

    def point(self) -> Point:
        """The minima at z = 0."""
        return Point(torch.zeros_like(self.theta), self, self)  # type: ignore[arg-type]  # it has what climbing needs

    def rows(self, index: slice) -> Scaled:
        """That of some of the minima."""
        return Scaled(self.of.rows(index), self.theta[index], self.T[index])

    def loss(self, z: Tensor) -> Tensor:
        """(K, p) -> (K,)."""
        return self.of.loss(self.theta + self.T * z)

    def loss_and_gradient(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """(K, p) -> (K,), (K, p)."""
        loss, gradient = self.of.loss_and_gradient(self.theta + self.T * z)
        return loss, self.T * gradient

    def hessian_product(self, z: Tensor) -> Product:
        """v -> T H T v, (K, p) -> (K, p)."""
        H = self.of.hessian_product(self.theta + self.T * z)
        return lambda v: self.T * H(self.T * v)


def climb(
    at: Point, rho: Tensor, tolerance: float, max_steps: int, seed: int, norm: Norm = "l2"
) -> tuple[Tensor, Tensor, Tensor, int]:
    """The largest rise max_{|d| <= rho} L(theta + d) - L(theta), radii rho (K,): what `_climb_in_ball` returns.

    It starts from the best of the step along the gradient and the top eigenvector of the Hessian, both signs; in the
    box of `linf`, from the corners that those point to.
    """
    good = min(0.3, max(1e-3, 10 * tolerance))  # where |lambda_min| > lambda_max a bad start is slow to mend
    v = at.ritz(1, good, 200, seed).vectors[:, 0]
    ways = torch.stack([torch.zeros_like(v), at.gradient(), v, -v])  # the first where the loss falls to all sides of it
    tries = [_onto_ball(way, torch.zeros_like(rho), rho, norm) for way in ways]
    heights = torch.stack([at.train.loss(at.theta + t) for t in tries])
    d = torch.stack(tries)[heights.argmax(0), torch.arange(len(v), device=v.device)]
    return _climb_in_ball(at, d, rho, norm, tolerance, max_steps)


def _climb_in_ball(
    at: Point, d: Tensor, rho: Tensor, norm: Norm, tolerance: float, max_steps: int
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Ascend L(theta + d) over |d| <= rho (K,) from d (K, p): rise, residual, whether it is done (K,); gradients used.

    The step goes to the point of the ball that is nearest to d + g / s: for s = 0 the power method, rho g / |g|, or the
    corner rho sign(g) of the box, and for large s a small gradient step; each minimum raises its own s when a step
    goes down, and halves it when it goes up. Momentum on top (Nesterov's, dropped after a step down) replaces the power
    method's slow rate lambda_2 / lambda_1 by about its root. A minimum whose rise has grown by less than tolerance^2 in
    20 gradients stands on a kink of the loss, or at the end of its digits: it is done whatever its residual.
    """
    loss, g = at.train.loss_and_gradient(at.theta + d)
    best, slope, previous = d, g, d
    s, age, steps = torch.zeros_like(loss), torch.zeros_like(loss), 1
    seen = [(0, at.loss())]
    reach = rho if norm == "l2" else rho * d.shape[1] ** 0.5
    while True:
        size = torch.linalg.vector_norm(slope, dim=1).double()
        residual = _off_the_wall(slope, best, rho, norm) / size.clamp_min(1e-300)
        then = next((value for when, value in reversed(seen) if when <= steps - 20), at.loss())
        stands = (loss - then <= tolerance**2 * (loss - at.loss())) & (steps > 20)
        done = stands | (residual <= tolerance)
        if steps >= max_steps or bool(done.all()):
            return loss - at.loss(), residual, done, steps
        seen.append((steps, loss))
        new = _onto_ball(g + s[:, None].to(g.dtype) * d, s, rho, norm)
        new_loss, new_slope = at.train.loss_and_gradient(at.theta + new)
        up = new_loss >= loss
        previous, best = torch.where(up[:, None], best, previous), torch.where(up[:, None], new, best)
        loss, slope = torch.where(up, new_loss, loss), torch.where(up[:, None], new_slope, slope)
        s = torch.where(up, s / 2, torch.where(age > 0, s, (2 * s).maximum(size / reach / 4)))
        age = torch.where(up, age + 1, 0)
        push = (age / (age + 3))[:, None].to(g.dtype)
        steps += 1
        if bool((push > 0).any()) and steps < max_steps:
            d = _onto_ball(best + push * (best - previous), torch.ones_like(s), rho, norm)
            g = at.train.loss_and_gradient(at.theta + d)[1]
            steps += 1
        else:
            d, g = best, slope


def _off_the_wall(g: Tensor, d: Tensor, rho: Tensor, norm: Norm) -> Tensor:
    """Length (K,) of the gradient that the boundary does not hold: along the sphere, or off the walls of the box."""
    if norm == "linf":
        held = g * d >= (1 - 1e-6) * rho[:, None] * g.abs()
        off: Tensor = torch.linalg.vector_norm(g.double().where(~held, 0), dim=1)
        return off
    outward = (g * d).double().sum(1, keepdim=True).clamp_min(0) / rho[:, None] ** 2
    along: Tensor = torch.linalg.vector_norm(g.double() - outward * d.double(), dim=1)
    return along


def _onto_ball(way: Tensor, s: Tensor, rho: Tensor, norm: Norm) -> Tensor:
    """way / s if that lies in the ball of radius rho, else the nearest point of it; 0 where the way is 0."""
    if norm == "linf":
        far = way.abs().double() > s[:, None] * rho[:, None]  # also where s is 0
        inside = way / s.clamp_min(1e-300)[:, None].to(way.dtype).clamp_min(torch.finfo(way.dtype).tiny)
        corner = way.sign() * rho[:, None].to(way.dtype)
        box: Tensor = torch.where(far, corner, torch.where(way == 0, 0, inside))
        return box
    reach = torch.linalg.vector_norm(way, dim=1).double()
    scale = torch.where(reach > s * rho, rho / reach.clamp_min(1e-300), 1 / s.clamp_min(1e-300))
    ball: Tensor = torch.where(reach[:, None] > 0, scale[:, None].to(way.dtype) * way, 0)
    return ball
