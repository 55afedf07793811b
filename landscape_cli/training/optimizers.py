"""Steps of SGD, SAM and Adam on a stack, as torch.optim takes them, with settings of each run's own."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from landscape_cli.network import Params

HISTORY = ("epoch", "step", "train_loss", "test_loss")
Settings = dict[str, Any]  # the `training` section of one run, complete


@dataclass
class State:
    """Everything that the rest of the training depends on; tensors have a row for each active run.

    Args:
        params: name -> (A, *shape).
        active: their places in the stack.
        step: optimizer steps taken.
        moments: the optimizer's buffers, each like params.
        finite: the last parameters seen with a finite loss, for runs that diverge.
        history: for each place of the stack, epochs, steps, training and test losses on the way.
        seconds: for each place of the stack, its share of the time.
        best: with `stop.patience`, the parameters at which each active run had its best validation score.
        looks: with it, for each place of the stack, that score, its epoch and step, and how many looks ago it was.
    """

    params: Params
    active: list[int]
    step: int = 0
    moments: list[Params] = field(default_factory=list)
    finite: Params = field(default_factory=dict)
    history: list[dict[str, list[float]]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    best: Params = field(default_factory=dict)
    looks: list[dict[str, float]] = field(default_factory=list)


def begin(params: Params, settings: Settings) -> State:
    """The state before the first step, for parameters (K, *shape) as they were initialized."""
    K = len(next(iter(params.values())))
    params = {n: p.clone() for n, p in params.items()}
    buffers = {"sgd": 1, "sam": 1, "adam": 2}[settings["optimizer"]]
    moments = [{n: torch.zeros_like(p) for n, p in params.items()} for _ in range(buffers)]
    history: list[dict[str, list[float]]] = [{key: [] for key in HISTORY} for _ in range(K)]
    state = State(params, list(range(K)), 0, moments, dict(params), history, [0.0] * K)
    if settings["stop"].get("patience"):
        state.best, state.looks = {n: p.clone() for n, p in params.items()}, [{} for _ in range(K)]
    return state


def ascended(state: State, settings: list[Settings], gradient: list[Tensor]) -> Params:
    """Where SAM takes its gradient, w + rho T^2 g / |T g| (A, *shape), for the gradient g of the loss without decay.

    T = 1 (Foret et al. 2021, eq. 2), or with `adaptive` T = diag |w| over all parameters (ASAM: Kwon et al. 2021,
    without their eta: a parameter at 0 stays there). A run's norm is its own, over all its parameters.
    """
    own = [settings[row] for row in state.active]
    with torch.no_grad():
        T = [p.abs() if own[0]["adaptive"] else 1.0 for p in state.params.values()]
        Tg = [t * g for t, g in zip(T, gradient, strict=True)]
        length = torch.stack([a.flatten(1).norm(dim=1) for a in Tg]).norm(dim=0)  # (A,)
        rho = torch.tensor([s["rho"] for s in own], dtype=length.dtype, device=length.device)
        step = rho / length.clamp_min(torch.finfo(length.dtype).tiny)  # no gradient: no way up
        moved = zip(state.params.items(), T, Tg, strict=True)
        return {n: p + step.view(-1, *[1] * (p.dim() - 1)) * t * a for (n, p), t, a in moved}


def update(state: State, settings: list[Settings], gradient: list[Tensor], per_epoch: int, batch: int) -> None:
    """One step of SGD (momentum, Nesterov, L2 decay; for SAM too) or Adam, as torch.optim does it, settings per run."""
    own = [settings[row] for row in state.active]
    common, params = own[0], list(state.params.values())
    factor = _schedule(common, state.step, per_epoch, batch)
    lr = _per_run([s["lr"] * factor for s in own], params)
    with torch.no_grad():
        if any(s["weight_decay"] for s in own):
            decay = _per_run([s["weight_decay"] for s in own], params)
            gradient = [g + d * p for g, d, p in zip(gradient, decay, params, strict=True)]
        if common["optimizer"] == "adam":
            first, second = (list(m.values()) for m in state.moments)
            torch._foreach_lerp_(first, gradient, 1 - common["beta1"])
            torch._foreach_mul_(second, common["beta2"])
            torch._foreach_addcmul_(second, gradient, gradient, 1 - common["beta2"])
            t = state.step + 1
            scale = math.sqrt(1 - common["beta2"] ** t)
            gradient = [m / (v.sqrt() / scale + common["epsilon"]) for m, v in zip(first, second, strict=True)]
            lr = [a / (1 - common["beta1"] ** t) for a in lr]
        elif any(s["momentum"] for s in own):
            velocity, mu = list(state.moments[0].values()), _per_run([s["momentum"] for s in own], params)
            torch._foreach_mul_(velocity, mu)
            torch._foreach_add_(velocity, gradient)
            gradient = (
                [g + m * v for g, m, v in zip(gradient, mu, velocity, strict=True)] if common["nesterov"] else velocity
            )
        if isinstance(lr[0], float):
            torch._foreach_add_(params, gradient, alpha=-lr[0])
        else:
            for p, a, g in zip(params, lr, gradient, strict=True):
                p.sub_(a * g)


def _per_run(values: list[float], params: list[Tensor]) -> list[Any]:
    """One factor a parameter tensor: a number where all runs agree, else (A, 1, ...)."""
    if len(set(values)) == 1:
        return [float(values[0])] * len(params)
    column = torch.tensor(values, dtype=params[0].dtype, device=params[0].device)
    return [column.view(-1, *[1] * (p.dim() - 1)) for p in params]


def _schedule(common: Settings, step: int, per_epoch: int, batch: int) -> float:
    """Factor on the learning rate at a step: scaling by batch size, warm-up, and the schedule over epochs."""
    ratio = batch / common["lr_base_batch"]
    factor: float = {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}[common["lr_scaling"]]
    epoch = step / per_epoch
    warmup = float(common["warmup_epochs"])
    if epoch < warmup:
        return factor * (step + 1) / math.ceil(warmup * per_epoch)
    if common["schedule"] == "cosine":
        return factor * (1 + math.cos(math.pi * min(1.0, epoch / float(common["stop"]["max_epochs"])))) / 2
    if common["schedule"] == "step":
        return factor * float(common["decay"]) ** sum(epoch >= float(m) for m in common["milestones"])
    return factor
