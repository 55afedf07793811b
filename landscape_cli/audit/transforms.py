"""Reparametrizations that leave a network's function as it is (METRICS section 9; Dinh et al. 2017).

Each takes a stack of minima and gives another, `Minima` in and out, and proves itself: the outputs before and after
differ by no more than TOLERANCE in float64, or it raises. A rescaling is linear in the parameters for given minima, so
that directions in parameter space go along with it (`Moved.carry`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from landscape_cli.network import Chart as Coordinates
from landscape_cli.network import Network, Params
from landscape_cli.network.channels import LOGITS, Group, channel_groups
from landscape_cli.registry.errors import Fault

TOLERANCE = 1e-9  # of the outputs, float64, relative to the largest where that is above 1
Chart = Literal["cubic", "sinh"]


@dataclass(frozen=True)
class Minima:
    """K minima of one network.

    Args:
        network: how they are run; of the audit, in float64.
        params: name -> (K, *shape).
        buffers: name -> (K, *shape).
        input_shape: of one sample.
    """

    network: Network
    params: Params
    buffers: Params
    input_shape: tuple[int, ...]

    def outputs(self, x: Tensor) -> Tensor:
        """Logits (K, B, C), no gradient."""
        with torch.no_grad():
            return self.network(self.params, self.buffers, x)


@dataclass(frozen=True)
class Moved:
    """Minima after a transform.

    Args:
        minima: the same functions elsewhere in parameter space.
        carry: directions name -> (K, *shape) at the old minima -> the same directions at the new ones.
        place: other points of parameter space -> where they go; of a rescaling that is `carry`.
        moved: groups of channels that it acted on, as writers->readers.
        left: others, with the reason why they are not applicable.
    """

    minima: Minima
    carry: Callable[[Params], Params]
    place: Callable[[Params], Params]
    moved: list[str]
    left: dict[str, str]


def alpha_scale(at: Minima, alpha: float, only: str | None = None) -> Moved:
    """Every weight and bias that writes a group times alpha, the weights that read it divided by alpha.

    Args:
        at: K minima.
        alpha: above 0.
        only: name of the one group that is moved; None takes all: by alpha those that share no layer, in order, by
            alpha^(1/2) those of the rest that share none, then alpha^(1/3), so that every layer moves.
    Source: Dinh et al. 2017, section 3.1; with biases METRICS section 9.
    """
    able, left = _able(at, "scale", normalized=False)
    rounds, rest = [[g for g in able if g.name == only]], [] if only else able
    if only and not rounds[0]:
        raise Fault(f"alpha_scale: {only!r} cannot be moved: {left.get(only) or 'no such channels'}")
    while rest:
        rounds.append(_apart(rest))
        rest = [g for g in rest if g not in rounds[-1]]
    powers = [(g, alpha ** (1 / max(1, i))) for i, chosen in enumerate(rounds) for g in chosen]
    return _scaled(at, [(g, torch.full((g.size,), power, dtype=torch.float64)) for g, power in powers], left)


def filter_scale(at: Minima, strength: float = 1.0, seed: int = 0) -> Moved:
    """As alpha_scale in all groups at once, with a factor exp(strength N(0, 1)) for each channel."""
    able, left = _able(at, "scale", normalized=False)
    return _scaled(at, _factors(able, strength, seed), left)


def batchnorm_scale(at: Minima, strength: float = 1.0, seed: int = 0) -> Moved:
    """What goes into a BatchNorm times a factor exp(strength N(0, 1)) for each channel, its statistics adapted.

    running_mean' = a running_mean and running_var' + eps = a^2 (running_var + eps): exact, where recomputing them would
    leave an error of order eps / var.
    """
    able, left = _able(at, "scale", normalized=True)
    return _scaled(at, _factors(able, strength, seed), left)


def orbit(at: Minima) -> list[Group]:
    """The groups of channels that can be rescaled, those before BatchNorm too."""
    return [group for normalized in (False, True) for group in _able(at, "scale", normalized)[0]]


def alpha_groups(at: Minima) -> list[str]:
    """Names of the groups that alpha_scale can move."""
    return [group.name for group in _able(at, "scale", normalized=False)[0]]


def rescale(at: Minima, factors: list[tuple[Group, Tensor]]) -> Moved:
    """Each of these groups, of `orbit`, by a factor above 0 for each of its channels (size,)."""
    return _scaled(at, factors, {})


def permute(at: Minima, seed: int = 0, back: bool = False) -> Moved:
    """The channels of every group in another order; `back` undoes that of the same seed."""
    able, left = _able(at, "permute", normalized=False)
    rng = torch.Generator().manual_seed(seed)
    drawn = [(g, torch.randperm(g.size, generator=rng)) for g in able]
    orders = [(g, order.argsort() if back else order) for g, order in drawn]

    def carry(params: Params) -> Params:
        own = dict(params)
        for group, order in orders:
            for name in (*group.writers, *group.carriers):
                for short in ("weight", "bias", "running_mean", "running_var"):
                    if f"{name}.{short}" in own:
                        own[f"{name}.{short}"] = own[f"{name}.{short}"].index_select(
                            1, order.to(own[f"{name}.{short}"].device)
                        )
            for name, repeat in group.readers:
                W = own[f"{name}.weight"]
                inputs = (order[:, None] * repeat + torch.arange(repeat)).flatten()
                own[f"{name}.weight"] = W.index_select(2, inputs.to(W.device))
        return own

    both = carry(at.params | at.buffers)
    params, buffers = ({n: both[n] for n in side} for side in (at.params, at.buffers))
    moved = Moved(replace(at, params=params, buffers=buffers), carry, carry, [g.name for g, _ in orders], left)
    return _proven("permute", at, moved)


def logit_scale(at: Minima, c: float) -> Moved:
    """The last layer times c: keeps the classes that are predicted, not their probabilities.

    Raises: Fault if no single layer writes the logits.
    """
    last = _last_layer(at)

    def carry(params: Params) -> Params:
        return {n: t * c if n.rpartition(".")[0] == last else t for n, t in params.items()}

    moved = Moved(replace(at, params=carry(at.params)), carry, carry, [last], {})
    x = _inputs(at)
    _check("logit_scale", c * at.outputs(x), moved.minima.outputs(x))
    return moved


def global_scale(at: Minima, c: float) -> Moved:
    """All parameters in a unit c times smaller, phi = c theta; the network takes phi and divides it by c.

    Without that division it would be another function, at which no measure of gradients could keep its value: what the
    claim `global` says is that the measure does not depend on the unit.
    """

    def carry(params: Params) -> Params:
        return {n: t * c for n, t in params.items()}

    moved = Moved(
        _charted(at, lambda phi: phi / c, carry(at.params), linear=True), carry, carry, ["all parameters"], {}
    )
    return _proven("global_scale", at, moved)


def _charted(at: Minima, h: Callable[[Tensor], Tensor], phi: Params, linear: bool) -> Minima:
    """The minima in coordinates phi, theta = h(phi)."""
    reason = "its parameters are other coordinates of those of its layers"
    network = replace(at.network, kind="charted", graph=None, reason=reason, chart=Coordinates(h, at.network, linear))
    return replace(at, network=network, params=phi)


def smooth(at: Minima, chart: Chart) -> Moved:
    """Other coordinates phi of the same parameters, theta = h(phi) elementwise; the network takes phi.

    cubic: h(phi) = phi + c phi^3 with c = 1 / mean theta^2; sinh: h(phi) = sinh(c phi) / c with c = 1 / rms theta. The
    scale c is that of each minimum, over all its parameters.
    """
    square = torch.cat([t.flatten(1) for t in at.params.values()], 1).square().mean(1)  # (K,)
    if len(square.unique()) > 1:
        raise Fault("smooth: its scale is that of one minimum: take a stack of one")
    c = float(1 / square[0] if chart == "cubic" else square[0] ** -0.5)
    phi = {n: _inverse(t, chart, c) for n, t in at.params.items()}

    def carry(d: Params) -> Params:
        return {n: t / _slope(phi[n], chart, c) for n, t in d.items()}

    def place(params: Params) -> Params:
        return {n: _inverse(t, chart, c) for n, t in params.items()}

    moved = Moved(_charted(at, _chart(chart, c), phi, linear=False), carry, place, ["all parameters"], {})
    return _proven(f"smooth ({chart})", at, moved)


def _chart(chart: Chart, c: float) -> Callable[[Tensor], Tensor]:
    """h, theta = h(phi)."""
    return (lambda phi: phi * (1 + c * phi * phi)) if chart == "cubic" else (lambda phi: torch.sinh(c * phi) / c)


def _inverse(theta: Tensor, chart: Chart, c: float) -> Tensor:
    """phi with h(phi) = theta."""
    if chart == "sinh":
        return torch.asinh(c * theta) / c
    # phi^3 + phi / c = theta / c by Cardano's formula in its hyperbolic form, then two steps of Newton's method
    r = (3 * c) ** -0.5
    phi: Tensor = 2 * r * torch.sinh(torch.asinh(theta / (2 * c * r**3)) / 3)
    for _ in range(2):
        phi -= (phi + c * phi**3 - theta) / (1 + 3 * c * phi**2)
    return phi


def _slope(phi: Tensor, chart: Chart, c: float) -> Tensor:
    """h'(phi)."""
    slope: Tensor = 1 + 3 * c * phi**2 if chart == "cubic" else torch.cosh(c * phi)
    return slope


def _able(at: Minima, purpose: Literal["scale", "permute"], normalized: bool) -> tuple[list[Group], dict[str, str]]:
    """Groups that qualify, and the others with the reason; those that only BatchNorm reads are `normalized`."""
    able, left = [], {}
    for group in channel_groups(at.network, at.input_shape, purpose):
        after = [isinstance(at.network.module.get_submodule(name), _NORM) for name, _ in group.readers]
        if group.reason:
            left[group.name] = group.reason
        elif purpose == "scale" and (bool(after) and all(after)) != normalized:
            left[group.name] = "no BatchNorm alone reads them" if normalized else "BatchNorm undoes it: batchnorm_scale"
        else:
            able.append(group)
    return able, left


_NORM = nn.modules.batchnorm._BatchNorm


def _apart(groups: list[Group]) -> list[Group]:
    """Groups of which no layer both writes one and reads another, greedily from the first."""
    chosen: list[Group] = []
    touched: set[str] = set()
    for group in groups:
        own = {*group.writers, *(name for name, _ in group.readers)}
        if not own & touched:
            chosen.append(group)
            touched |= own
    return chosen


def _factors(groups: list[Group], strength: float, seed: int) -> list[tuple[Group, Tensor]]:
    rng = torch.Generator().manual_seed(seed)
    return [(g, (strength * torch.randn(g.size, generator=rng, dtype=torch.float64)).exp()) for g in groups]


def _scaled(at: Minima, factors: list[tuple[Group, Tensor]], left: dict[str, str]) -> Moved:
    """Writers times their factors, readers divided by them; BatchNorm that reads takes them into its statistics."""
    module = at.network.module

    def carry(params: Params) -> Params:
        own = dict(params)
        for group, factor in factors:
            for name in group.writers:
                for short in ("weight", "bias"):
                    if f"{name}.{short}" in own:
                        t = own[f"{name}.{short}"]
                        own[f"{name}.{short}"] = t * factor.to(t).view(-1, *[1] * (t.dim() - 2))
            for name, repeat in group.readers:
                if not isinstance(module.get_submodule(name), _NORM):
                    W = own[f"{name}.weight"]
                    each = factor.to(W).repeat_interleave(repeat)
                    own[f"{name}.weight"] = W / each.view(-1, *[1] * (W.dim() - 3))
        return own

    buffers = dict(at.buffers)
    for group, factor in factors:
        for name, _ in group.readers:
            layer: Any = module.get_submodule(name)
            if isinstance(layer, _NORM):
                mean, var = buffers[f"{name}.running_mean"], buffers[f"{name}.running_var"]
                a = factor.to(mean)
                buffers[f"{name}.running_mean"] = a * mean
                buffers[f"{name}.running_var"] = a.square() * (var + layer.eps) - layer.eps
    moved = replace(at, params=carry(at.params), buffers=buffers)
    return _proven("a rescaling", at, Moved(moved, carry, carry, [g.name for g, _ in factors], left))


def _last_layer(at: Minima) -> str:
    groups = channel_groups(at.network, at.input_shape, "scale")
    last = [g for g in groups if g.reason == LOGITS]
    if len(last) != 1 or len(last[0].writers) != 1 or last[0].readers:
        raise Fault("logit_scale: no single layer writes the logits")
    return last[0].writers[0]


def _inputs(at: Minima) -> Tensor:
    like = next(iter(at.params.values()))
    rng = torch.Generator().manual_seed(0)
    return torch.randn(16, *at.input_shape, generator=rng, dtype=torch.float64).to(like)


def _proven(what: str, before: Minima, moved: Moved) -> Moved:
    x = _inputs(before)
    _check(what, before.outputs(x), moved.minima.outputs(x))
    return moved


def _check(what: str, due: Tensor, found: Tensor) -> None:
    """Raises: ArithmeticError if the outputs differ."""
    apart, size = float((found - due).abs().max()), max(1.0, float(due.abs().max()))
    tolerance = TOLERANCE if due.dtype == torch.float64 else 1e-4
    if not apart <= tolerance * size:
        raise ArithmeticError(f"{what} changes outputs by {apart:.2g}, of {size:.2g}")


@dataclass(frozen=True)
class Transform:
    """One way to move a minimum.

    Args:
        move: minima and strength -> minima elsewhere.
        strengths: at which the audit takes it; of `permute` the seed.
        survives: the claim that says a metric keeps its value; empty if none does.
        summary: one line.
        keeps: what stays as it is: outputs, classes or nothing.
    """

    move: Callable[[Minima, float], Moved]
    strengths: tuple[float, ...]
    survives: str
    summary: str
    keeps: str = "outputs"


TRANSFORMS = {
    "alpha_scale": Transform(
        alpha_scale,
        (0.1, 10.0),
        "scale",
        "A layer's weights and biases times alpha, the next one's weights divided by it.",
    ),
    "filter_scale": Transform(
        filter_scale, (1.0,), "filter", "As alpha_scale, each channel by a factor exp(strength N(0, 1)) of its own."
    ),
    "batchnorm_scale": Transform(
        batchnorm_scale,
        (1.0,),
        "filter",
        "What goes into BatchNorm times a factor a channel; its statistics follow.",
    ),
    "permute": Transform(
        lambda at, seed: permute(at, int(seed)), (0.0,), "permutation", "Hidden channels in another order."
    ),
    "smooth_cubic": Transform(
        lambda at, _: smooth(at, "cubic"), (1.0,), "smooth", "Other coordinates phi, theta = phi + c phi^3."
    ),
    "smooth_sinh": Transform(
        lambda at, _: smooth(at, "sinh"), (1.0,), "smooth", "Other coordinates phi, theta = sinh(c phi) / c."
    ),
    "logit_scale": Transform(
        logit_scale, (2.0,), "", "The last layer times a factor: the same classes, other probabilities.", "classes"
    ),
    "global_scale": Transform(global_scale, (2.0,), "global", "All parameters in a smaller unit, phi = c theta."),
}
