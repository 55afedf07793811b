"""Optimizers: each one function that takes one step of one parameter tensor of a stack, as torch.optim takes it.

A function gets the step, then its moments, then its settings. What is `PerRun` may be a tensor (A, 1, ...).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from landscape_cli.config import Training
from landscape_cli.registry import REGISTRY, NonNegative, PerRun, Positive, Share, optimizer
from landscape_cli.training.state import State, beside, factors


@dataclass(slots=True)
class Step:
    """One step of one parameter tensor.

    Args:
        w: the parameters (A, *shape), which the step changes.
        g: gradient of the loss there, like w.
        lr: learning rate: a number, or (A, 1, ...) where the runs differ.
        t: number of the step, from 1.
    """

    w: Tensor
    g: Tensor
    lr: float | Tensor
    t: int

    def decayed(self, weight_decay: float | Tensor) -> Tensor:
        """The gradient with that of L2 decay, g + lambda w."""
        return self.g + weight_decay * self.w if used(weight_decay) else self.g

    def descend(self, direction: Tensor, lr: float | Tensor) -> None:
        """w <- w - lr direction."""
        if isinstance(lr, float):
            self.w.add_(direction, alpha=-lr)
        else:
            self.w.sub_(lr * direction)


def used(setting: float | Tensor) -> bool:
    """Whether a setting is not 0 in any run; where it is a tensor, the runs differ."""
    return isinstance(setting, Tensor) or setting != 0


@optimizer
def sgd(
    at: Step,
    v: Tensor,
    *,
    momentum: PerRun[Share] = 0.0,
    nesterov: bool = False,
    weight_decay: PerRun[NonNegative] = 0.0,
) -> None:
    """Gradient descent, w <- w - lr g; with momentum v <- mu v + g and w <- w - lr v.

    Args:
        at: the step.
        v: velocity.
        momentum: mu.
        nesterov: w <- w - lr (g + mu v) instead.
        weight_decay: lambda of L2 decay, g + lambda w in the place of g.
    Source: Sutskever et al. 2013, as torch.optim.SGD has it.
    """
    g = at.decayed(weight_decay)
    if used(momentum):
        v.mul_(momentum).add_(g)
        g = g + momentum * v if nesterov else v
    at.descend(g, at.lr)


@optimizer
def adam(
    at: Step,
    m: Tensor,
    v: Tensor,
    *,
    beta1: Share = 0.9,
    beta2: Share = 0.999,
    epsilon: Positive = 1e-8,
    weight_decay: PerRun[NonNegative] = 0.0,
) -> None:
    """Adam: the mean of the gradients by the root of the mean of their squares, both exponential.

    Args:
        at: the step.
        m: first moment.
        v: second moment.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        epsilon: added to the root.
        weight_decay: lambda of L2 decay, g + lambda w in the place of g.
    Source: Kingma & Ba 2015, algorithm 1, as torch.optim.Adam has it.
    """
    _adapt(at, at.decayed(weight_decay), (m, v), (beta1, beta2), epsilon)


@optimizer
def adamw(
    at: Step,
    m: Tensor,
    v: Tensor,
    *,
    beta1: Share = 0.9,
    beta2: Share = 0.999,
    epsilon: Positive = 1e-8,
    weight_decay: PerRun[NonNegative] = 0.0,
) -> None:
    """Adam with decay apart from the gradient: w <- (1 - lr lambda) w first.

    Args:
        at: the step.
        m: first moment.
        v: second moment.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        epsilon: added to the root.
        weight_decay: lambda.
    Source: Loshchilov & Hutter 2019, algorithm 2, as torch.optim.AdamW has it.
    """
    if used(weight_decay):
        at.w.mul_(1 - at.lr * weight_decay)
    _adapt(at, at.g, (m, v), (beta1, beta2), epsilon)


def _adapt(at: Step, g: Tensor, moments: tuple[Tensor, Tensor], betas: tuple[float, float], epsilon: float) -> None:
    (m, v), (beta1, beta2) = moments, betas
    m.lerp_(g, 1 - beta1)
    v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
    root = v.sqrt() / math.sqrt(1 - beta2**at.t) + epsilon
    at.descend(m / root, at.lr / (1 - beta1**at.t))


@optimizer
def rmsprop(
    at: Step,
    v: Tensor,
    mean: Tensor,
    velocity: Tensor,
    *,
    alpha: Share = 0.99,
    centered: bool = False,
    epsilon: Positive = 1e-8,
    momentum: PerRun[Share] = 0.0,
    weight_decay: PerRun[NonNegative] = 0.0,
) -> None:
    """RMSprop: the gradient by the root of the exponential mean of its squares.

    Args:
        at: the step.
        v: mean of the squares.
        mean: mean of the gradients.
        velocity: of momentum.
        alpha: decay of both means.
        centered: by the root of the variance instead.
        epsilon: added to the root.
        momentum: mu of velocity <- mu velocity + that.
        weight_decay: lambda of L2 decay, g + lambda w in the place of g.
    Source: Hinton 2012, lecture 6e; Graves 2013, eq. 38 to 45; as torch.optim.RMSprop has it.
    """
    g = at.decayed(weight_decay)
    v.mul_(alpha).addcmul_(g, g, value=1 - alpha)
    if centered:
        mean.lerp_(g, 1 - alpha)
    direction = g / (((v - mean**2).clamp_min(0) if centered else v).sqrt() + epsilon)
    if used(momentum):
        direction = velocity.mul_(momentum).add_(direction)
    at.descend(direction, at.lr)


def update(state: State, settings: list[Training], gradient: list[Tensor], factor: float) -> None:
    """One step of every active run.

    Args:
        state: its parameters and moments are changed.
        settings: one for each place of the stack.
        gradient: of each parameter tensor, (A, *shape).
        factor: the schedule's, on the learning rate.
    """
    own = [settings[row] for row in state.active]
    rule = REGISTRY["optimizer"][own[0].rule]
    free = {key: factors([getattr(s, key) for s in own], gradient[0]) for key in rule.per_run}
    given, differ = rule.given(own[0]) | free, any(isinstance(value, Tensor) for value in free.values())
    lr, t = factors([s.lr * factor for s in own], gradient[0]), state.step + 1
    with torch.no_grad():
        for (name, w), g in zip(state.params.items(), gradient, strict=True):
            shaped = given | {key: beside(value, w) for key, value in free.items()} if differ else given
            rule.function(Step(w, g, beside(lr, w), t), *[moment[name] for moment in state.moments], **shaped)


def common(training: Training) -> Training:
    """A run's settings with all that may differ inside a stack, or does nothing, at one value."""
    rule, fields = REGISTRY["optimizer"][training.rule], type(training).model_fields
    own = {*rule.settings.model_fields}.difference(rule.per_run)
    free = {key for one in REGISTRY["optimizer"].values() for key in one.settings.model_fields} - own
    ascent = training.sharpness_aware and training.sharpness_aware.model_copy(update={"rho": fields["rho"].default})
    same: dict[str, Any] = {key: fields[key].default for key in (*free, "rho")} | {"lr": 1.0, "sharpness_aware": ascent}
    return training.model_copy(update=same)
