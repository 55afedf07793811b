"""The least value of a smooth function in a ball around 0, for many functions at once; knows nothing of networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

ULP = 1e-15  # what rounding does to a value
STALL = 1e-4  # of radius |g|, in 20 steps
Function = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Least:
    """Where R functions are least: at (R, p), values, relative duality gaps, if they stand (R,); gradients used."""

    at: Tensor
    value: Tensor
    gap: Tensor
    stands: Tensor
    steps: int


def least_in_ball(
    f: Function, start: Tensor, radius: Tensor, *, tolerance: float = 1e-6, max_steps: int = 1000
) -> Least:
    """Minimize R functions over |x| <= radius, by accelerated projected gradients with line search and restart.

    The duality gap of the linear model, <g, x> + radius |g|, bounds f(x) - min f where f is convex, and is 0 at every
    smooth stationary point; it is reported relative to radius |g| of the first gradient seen. A row leaves when its gap
    is below tolerance, or when it stands: in 20 steps its value fell by less than 10 tolerances of that scale, at most
    1e-4, and its gap not by half, as on a kink, or where rounding is all that is left. Each row has a step and a
    momentum of its own.

    Args:
        f: points (r, p) and the numbers of their functions (r,) -> values (r,), gradients (r, p).
        start: (R, p), inside the balls.
        radius: (R,).
        tolerance: of the relative gap.
        max_steps: gradients at most.
    Returns: the best point seen of each row; a gap above tolerance says that it did not converge.
    Source: Beck & Teboulle 2009 (FISTA); O'Donoghue & Candes 2015 for the restart.
    """
    live = torch.arange(len(start), device=start.device)
    x, y = start.clone(), start.clone()
    value, g = f(x, live)
    out = Least(
        x.clone(), value.clone(), torch.full_like(value, torch.inf), torch.zeros_like(value, dtype=torch.bool), 1
    )
    size = radius * torch.linalg.vector_norm(g, dim=1).clamp_min(torch.finfo(g.dtype).tiny)
    fy, gy = value, g
    L = torch.linalg.vector_norm(g, dim=1) / radius  # so that the first step reaches the boundary
    t, rounds, steps = torch.ones_like(value), 0, 1
    then = then_gap = value + torch.inf
    while len(live):
        gap = ((g * x).sum(1) + radius[live] * torch.linalg.vector_norm(g, dim=1)) / size[live]
        out.at[live], out.value[live], out.gap[live] = x, value, gap
        rounds += 1
        if rounds % 20 == 0:
            out.stands[live] = (then - value < min(10 * tolerance, STALL) * size[live]) & (gap > then_gap / 2)
            then, then_gap = value, gap
        going = (gap > tolerance) & ~out.stands[live]
        if steps >= max_steps or not bool(going.any()):
            break
        if not bool(going.all()):
            live, x, y, value, g, fy, gy, L, t, then, then_gap = (
                s[going] for s in (live, x, y, value, g, fy, gy, L, t, then, then_gap)
            )
        new = _onto(torch.addcmul(y, gy, 1 / L[:, None], value=-1), radius[live])
        fn, gn = f(new, live)
        move = new - y
        bound = fy + (gy * move).sum(1) + L / 2 * move.square().sum(1)
        fits = fn <= bound + ULP * fy.abs()
        down = fits & (fn <= value + ULP * value.abs())  # near the end the gradient still shrinks, the value no more
        L = torch.where(fits, 0.8 * L, 2 * L)
        next_t = (1 + (1 + 4 * t * t).sqrt()) / 2
        push = torch.where(down, (t - 1) / next_t, 0)
        ahead = _onto(torch.lerp(x, new, 1 + push[:, None]), radius[live])
        back = fits & ~down  # the momentum went too far: start again from x
        for rows, stay in ((~fits, y), (back, x)):
            if bool(rows.any()):
                ahead[rows] = stay[rows]
        t = torch.where(down, next_t, torch.where(back, 1, t))
        if bool(down.all()):
            x, value, g = new, fn, gn
        else:
            x, value, g = (torch.where(_as(down, a), a, b) for a, b in ((new, x), (fn, value), (gn, g)))
        moved = down & (push > 0)
        plain = (down & (push == 0)) | back  # y is x: its gradient is known
        y = ahead
        if bool(plain.any()):
            fy, gy = (torch.where(_as(plain, a), a, b) for a, b in ((value, fy), (g, gy)))
        steps += 1
        if bool(moved.any()):
            rows = torch.nonzero(moved)[:, 0]
            fy[rows], gy[rows] = f(y[rows], live[rows])
            steps += 1
    return Least(out.at, out.value, out.gap, out.stands, steps)


def _onto(x: Tensor, radius: Tensor) -> Tensor:
    """The nearest point of the ball."""
    length = torch.linalg.vector_norm(x, dim=1)
    short: Tensor = x * (radius / length.clamp_min(torch.finfo(x.dtype).tiny)).clamp_max(1)[:, None]
    return short


def _as(mask: Tensor, like: Tensor) -> Tensor:
    return mask[:, None] if like.dim() == 2 else mask
