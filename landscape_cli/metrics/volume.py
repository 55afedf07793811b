"""How far one can go until the loss has risen by a stated amount: PAC-Bayes noise, and the volume of the basin."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from landscape_cli.metrics.perturbation import (
    Target,
    around,
    filter_norms,
    gaussians,
    losses,
    measure_of,
    resolved,
    seen,
)
from landscape_cli.metrics.point import Estimate, Point, Split, exact
from landscape_cli.registry import FEW, Natural, NonNegative, Positive, Tolerance, metric

LOWEST, HIGHEST = 1e-6, 1e3  # of sigma
NEAR, DOUBLINGS = 2.0**-4, 14  # where rays begin, and how often their length is doubled at most
SCAN = 4  # draws that look for the place where all draws are then asked
Draws = Annotated[int, Ge(8), FEW]
Rise = Callable[[Tensor], Tensor]


@metric(
    invariant="permutation",
    source="Jiang et al. 2020, appendix C (1 / sigma^2 of PAC-Bayes)",
    needs={"target=error": "classes"},
    direction="sharp",
    cost="8 to 12 forward passes a draw",
)
def pac_bayes_sharpness(
    at: Point,
    *,
    target: Target = "error",
    rise: Positive = 0.1,
    split: Split = "train",
    normalize_logits: bool = False,
    draws: Draws = 32,
    tolerance: Tolerance = 1e-3,
    seed: Natural = 0,
) -> Estimate:
    """Inverse square 1 / sigma^2 of the noise at which the expected error has risen by 0.1.

    sigma is the smallest in [1e-6, 1e3] with E_{d ~ N(0, sigma^2 I)} err(theta + d) - err(theta) = rise: found
    from below on a grid of factor 4 by 4 of the draws, and refined by all. The code of Dziugaite et al. 2020 passes a
    variance where a standard deviation is due: its sigma is not this one.

    Args:
        at: K minima.
        target: what rises, the error as in the paper or the loss (ours).
        rise: by how much, as a share of the samples, or in nats.
        split: on which samples.
        normalize_logits: divide each sample's logits by their standard deviation over classes first.
        draws: noise vectors, common to all minima and all sigma.
        tolerance: of sigma, relative.
        seed: of the noise.
    Returns: (K,), in inverse squared parameter units; standard error over draws by the delta method: that of the rise
        at sigma, over its slope in log sigma there (between sigma / 1.1 and 1.1 sigma). Undefined where the rise is not
        reached, or already at 1e-6.
    """
    return _tolerated(seen(at, split, normalize_logits), None, target, rise, draws, tolerance, seed)


@metric(
    invariant={"eps=0": "permutation,global,filter"},
    source="Jiang et al. 2020, appendix C (magnitude-aware, eps = 1e-3 there)",
    needs={"target=error": "classes"},
    direction="sharp",
    cost="8 to 12 forward passes a draw",
)
def pac_bayes_magnitude(
    at: Point,
    *,
    target: Target = "error",
    rise: Positive = 0.1,
    eps: NonNegative = 0.0,
    split: Split = "train",
    normalize_logits: bool = False,
    draws: Draws = 32,
    tolerance: Tolerance = 1e-3,
    seed: Natural = 0,
) -> Estimate:
    """The same with noise in proportion to the parameters, of standard deviation sqrt(sigma^2 theta_j^2 + eps^2).

    Args:
        at: K minima.
        target: what rises, the error as in the paper or the loss (ours).
        rise: by how much, as a share of the samples, or in nats.
        eps: least noise on each parameter; with 0, sigma |theta_j|, it survives rescaling, and with any other nothing.
        split: on which samples.
        normalize_logits: divide each sample's logits by their standard deviation over classes first.
        draws: noise vectors, common to all minima and all sigma.
        tolerance: of sigma, relative.
        seed: of the noise.
    Returns: (K,), 1 / sigma^2 in units of 1; standard error and limits as for pac_bayes_sharpness.
    """
    return _tolerated(seen(at, split, normalize_logits), eps, target, rise, draws, tolerance, seed)


def _tolerated(
    at: Point, eps: float | None, target: Target, rise: float, draws: int, tolerance: float, seed: int
) -> Estimate:
    """1 / sigma^2 for noise of standard deviation sigma (eps None), or sqrt(sigma^2 theta^2 + eps^2)."""
    measure = measure_of(target)
    here = measure(at.train, at.theta)[0]

    def rises(sigma: Tensor, count: int = draws) -> Tensor:
        """Of each draw (K, count), for sigma (K,)."""
        s = sigma[:, None].to(at.theta.dtype)
        sd = s if eps is None else (s * at.theta.abs() if eps == 0 else torch.hypot(s * at.theta, s.new_tensor(eps)))
        (found,) = around(at.train, (at.theta + sd * xi for xi in gaussians(at, count, seed)), measure)
        return (found - here[:, None]).nan_to_num(torch.inf)

    some = bracket(lambda s: rises(s, SCAN).mean(1), torch.full_like(here, LOWEST), HIGHEST, 4.0, rise)
    guess = crossing(lambda s: rises(s, SCAN).mean(1), some, rise, 0.05)
    every = _shifted(lambda s: rises(s).mean(1), some, guess, 1.5, rise)
    sigma = crossing(lambda s: rises(s).mean(1), every, rise, tolerance)
    estimate = exact(sigma**-2, draws)
    above, below = rises(1.1 * sigma.nan_to_num(1)), rises(sigma.nan_to_num(1) / 1.1)
    slope = ((above - below).mean(1) / (2 * math.log(1.1))).clamp_min(1e-12)  # in log sigma
    spread = ((above + below) / 2).std(1) / draws**0.5
    estimate.standard_error = (2 * estimate.value * spread / slope).nan_to_num(torch.inf)
    estimate.undefined(every.high.isinf(), f"the {target} does not rise by {rise:g} up to sigma = {HIGHEST:g}")
    estimate.undefined(every.low == 0, f"the {target} has risen by {rise:g} already at sigma = {LOWEST:g}")
    return estimate if target == "error" else resolved(at, estimate, torch.full_like(here, rise))


@dataclass(frozen=True)
class Bracket:
    """Two points, and the values there, one below the rise and one not; low is 0, high is inf where there is none."""

    low: Tensor
    high: Tensor
    f_low: Tensor
    f_high: Tensor

    @property
    def found(self) -> Tensor:
        """Whether there are both."""
        return (self.low > 0) & self.high.isfinite()


def bracket(f: Rise, start: Tensor, limit: float, factor: float, rise: float) -> Bracket:
    """Where f first reaches the rise, element by element, going up from `start` by the factor, up to the limit.

    Returns: low is 0 where f has reached it at the start; high is inf where it does not up to the limit.
    """
    low, high = torch.zeros_like(start), torch.full_like(start, torch.inf)
    f_low, f_high, t = low, high, start
    while bool((high.isinf() & (t <= limit)).any()):
        value, open_ = f(t.clamp_max(limit)), high.isinf() & (t <= limit)
        reached, short = open_ & (value >= rise), open_ & (value < rise)
        high, f_high = t.where(reached, high), value.where(reached, f_high)
        low, f_low = t.where(short, low), value.where(short, f_low)
        t = t * factor
    return Bracket(low, high, f_low, f_high)


def _shifted(f: Rise, similar: Bracket, guess: Tensor, factor: float, rise: float) -> Bracket:
    """The bracket of f, a factor wide, found by steps from the crossing that another, similar function has."""
    low = guess.where(similar.found, 1) / factor**0.5
    high = low * factor
    f_low, f_high = f(low), f(high)
    while True:
        down = similar.found & (f_low >= rise) & (low >= LOWEST)
        up = similar.found & (f_high < rise) & (high <= HIGHEST) & ~down
        if not bool((down | up).any()):
            break
        value = f(torch.where(down, low / factor, high * factor))
        high, f_high, low, f_low = (
            torch.where(down, low, torch.where(up, high * factor, high)),
            torch.where(down, f_low, torch.where(up, value, f_high)),
            torch.where(down, low / factor, torch.where(up, high, low)),
            torch.where(down, value, torch.where(up, f_high, f_low)),
        )
    low = similar.low.where(~similar.found, low.where(f_low < rise, 0))
    return Bracket(low, similar.high.where(~similar.found, high.where(f_high >= rise, torch.inf)), f_low, f_high)


def crossing(f: Rise, ends: Bracket, rise: float, tolerance: float) -> Tensor:
    """Where f = rise in a bracket, element by element, in the logarithms of both: f is nearly a power there.

    Interpolation kept inside of bisection (ITP), then once more in the last bracket; NaN where there is no bracket.

    Args:
        f: all points -> values, of the same shape.
        ends: where to look.
        rise: the level.
        tolerance: width of the last bracket, relative.
    Source: Oliveira & Takahashi 2020.
    """
    a, b = ends.low.where(ends.found, 1).log(), ends.high.where(ends.found, 2).log()
    ya, yb = (_height(value, rise) for value in (ends.f_low, ends.f_high))
    width = b - a
    halvings, j = (width / tolerance).clamp_min(1).log2().ceil(), 0
    while bool((open_ := ends.found & (b - a > tolerance)).any()):
        middle, line = (a + b) / 2, (yb * a - ya * b) / (yb - ya).clamp_min(1e-300)
        side = (middle - line).sign()
        delta = 0.2 * (b - a) ** 2 / width  # a little beyond the line, so that the other end moves too
        x = torch.where(delta <= (middle - line).abs(), line + side * delta, middle)
        room = (tolerance * 2 ** (halvings - j) - (b - a) / 2).clamp_min(0)  # what bisection has in hand
        x = torch.where((x - middle).abs() <= room, x, middle - side * room)
        y = _height(f(x.where(open_, middle).exp()), rise)
        up, down = open_ & (y >= 0), open_ & (y < 0)
        b, yb, a, ya = x.where(up, b), y.where(up, yb), x.where(down, a), y.where(down, ya)
        j += 1
    line = (yb * a - ya * b) / (yb - ya).clamp_min(1e-300)
    return line.clamp(a, b).exp().where(ends.found, torch.nan)


def _height(value: Tensor, rise: float) -> Tensor:
    """log(value / rise), bounded where the value is not positive or huge."""
    return (value / rise).clamp(1e-3, 1e3).log()


@metric(
    invariant="permutation",
    source="Hochreiter & Schmidhuber 1997, in today's words; ours",
    direction="flat",
    cost="8 to 12 forward passes a direction",
)
def flat_volume(
    at: Point,
    *,
    rise: Positive = 0.1,
    split: Split = "train",
    normalize_logits: bool = False,
    directions: Draws = 32,
    seed: Natural = 0,
) -> Estimate:
    """Mean logarithm of the distance at which the loss has risen by 0.1 nats, over random directions.

    The volume of the basin {L <= L(theta) + rise}, as seen from theta, is E r(u)^p times that of the unit ball; its
    logarithm is dominated by the few widest directions, so that E log r is taken. r is the smallest distance in
    |theta| [2^-4, 2^10], by doubling, or below by halving, down to 2^-18; refined by interpolation to 1e-3 or better.

    Args:
        at: K minima.
        rise: by how much, in nats.
        split: whose average loss.
        normalize_logits: divide each sample's logits by their standard deviation over classes first.
        directions: uniform on the unit sphere, common to all minima.
        seed: of the directions.
    Returns: (K,), logarithm of a distance in parameter units; standard error over directions. Directions that do not
        rise in the range are left out and counted in the message; undefined where none does, or where one has risen
        before it.
    """
    at = seen(at, split, normalize_logits)
    length = torch.linalg.vector_norm(at.theta, dim=1, keepdim=True)
    length = length.where(length > 0, 1)

    def ways() -> Iterator[Tensor]:
        for xi in gaussians(at, directions, seed):
            yield length * xi / torch.linalg.vector_norm(xi)

    return _mean_log_reach(at, ways, rise, directions, length[:, 0].double().log())


@metric(
    invariant="permutation,global,scale",
    source="ours; directions of Li et al. 2018, section 4",
    direction="flat",
    cost="8 to 12 forward passes a direction",
)
def flat_volume_filter(
    at: Point,
    *,
    rise: Positive = 0.1,
    split: Split = "train",
    normalize_logits: bool = False,
    directions: Draws = 32,
    seed: Natural = 0,
) -> Estimate:
    """The same in filter-normalized directions: each filter of a direction has the length of the network's own.

    Filters are rows of a weight tensor; biases, BatchNorm and all other parameters of one dimension stay unperturbed.

    Args:
        at: K minima.
        rise: by how much, in nats.
        split: whose average loss.
        normalize_logits: divide each sample's logits by their standard deviation over classes first.
        directions: Gaussian before they are normalized, common to all minima.
        seed: of the directions.
    Returns: (K,), logarithm of the distance in units of such a direction, within [2^-18, 2^10]; the rest as for
        flat_volume.
    """
    at = seen(at, split, normalize_logits)
    own = filter_norms(at, at.theta)

    def ways() -> Iterator[Tensor]:
        for xi in gaussians(at, directions, seed):
            size = filter_norms(at, xi[None])
            yield own * xi / size.where(size > 0, 1)

    return _mean_log_reach(at, ways, rise, directions, torch.zeros_like(own[:, 0]).double())


def _mean_log_reach(
    at: Point, ways: Callable[[], Iterator[Tensor]], rise: float, directions: int, unit: Tensor
) -> Estimate:
    """Mean over D directions, made by `ways` as (K, p), of log t + unit (K,), t the smallest with the rise."""
    here = at.loss()[:, None]

    def rises(t: Tensor) -> Tensor:
        """At distances t (K, D)."""
        along = t.to(at.theta.dtype)
        points = (at.theta + along[:, d, None] * way for d, way in enumerate(ways()))
        return (around(at.train, points, losses)[0] - here).nan_to_num(torch.inf)

    start = torch.full_like(here, NEAR).expand(-1, directions)
    ends = bracket(rises, start, NEAR * 2**DOUBLINGS, 2.0, rise)
    for _ in range(DOUBLINGS):
        if not bool((early := ends.low == 0).any()):
            break
        half = ends.high / 2
        value = rises(half.where(early, start))
        again, short = early & (value >= rise), early & (value < rise)
        ends = Bracket(
            half.where(short, ends.low),
            half.where(again, ends.high),
            value.where(short, ends.f_low),
            value.where(again, ends.f_high),
        )
    t = crossing(rises, ends, rise, 0.01)
    found = t.isfinite()
    count = found.sum(1)
    logs = torch.where(found, t.log(), 0) + unit[:, None] * found
    mean = logs.sum(1) / count.clamp_min(1)
    spread = torch.where(found, logs - mean[:, None], 0).square().sum(1) / (count - 1).clamp_min(1)
    estimate = Estimate(mean, (spread / count.clamp_min(1)).sqrt(), directions)
    for k, c in enumerate(count.tolist()):
        if c < directions:
            estimate.message[k] = f"{directions - c} of {directions} directions do not rise by {rise:g} in the range"
    estimate.undefined(count == 0, f"no direction rises by {rise:g} in the range")
    early = ((ends.low == 0) & ends.high.isfinite()).any(1)
    estimate.undefined(early, f"along some directions the loss has risen by {rise:g} already at the least distance")
    return resolved(at, estimate, torch.full_like(at.loss(), rise))
