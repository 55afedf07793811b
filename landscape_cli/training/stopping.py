"""Which runs of a stack leave, and why: goal, limit, patience or divergence; and what is noted on the way."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from landscape_cli.config import Stop
from landscape_cli.curvature.objective import Objective, flatten
from landscape_cli.network.batchnorm_statistics import collect_statistics
from landscape_cli.training.state import HISTORY, Stack, State


def leaving(stack: Stack, state: State, losses: Tensor, epoch: int) -> dict[int, tuple[str, str]]:
    """Which active runs end here, given their training losses (A,), with status and message; notes losses too."""
    stop, ends = stack.common.stop, {}
    look(stack, state, epoch)
    note = epoch in _NOTED or epoch < 10
    if bool(torch.isfinite(losses).all()) and (note or not state.finite):
        state.finite = {n: p.detach().clone() for n, p in state.params.items()}
    for i, loss in enumerate(losses.tolist()):
        reached = stop.train_loss is not None and loss <= stop.train_loss
        patient = waited(state, i) < stop.patience if stop.patience else True
        if reached or not patient or epoch >= stop.max_epochs or not math.isfinite(loss):
            ends[i] = verdict(loss, stop, "max_epochs", waited(state, i))
    others = evaluate(stack, state, "test").tolist() if note or ends else []
    for i, (row, loss, other) in enumerate(zip(state.active, losses.tolist(), others, strict=False)):
        if (note or i in ends) and math.isfinite(loss) and math.isfinite(other):
            for key, value in zip(HISTORY, (epoch, state.step, loss, other), strict=True):
                if key in state.history[row]:  # a state that an older version saved goes on without test losses
                    state.history[row][key].append(value)
    return ends


_NOTED = {round(10 * 1.05**k) for k in range(200)}  # epochs whose loss is kept for the training curve


def look(stack: Stack, state: State, epoch: int) -> None:
    """With patience, notes validation scores and keeps the parameters of the runs that never had a lower one."""
    if not stack.common.stop.patience:
        return
    scores, better = _score(stack, state), []
    for i, (row, score) in enumerate(zip(state.active, scores.tolist(), strict=True)):
        least = state.looks[row]
        if score < least.get("score", math.inf):
            state.looks[row] = {"score": score, "epoch": epoch, "step": state.step, "waited": 0}
            better.append(i)
        else:
            least["waited"] = least.get("waited", 0) + 1
    for n, p in state.params.items():
        state.best[n][better] = p.detach()[better]


def waited(state: State, i: int) -> int:
    """Looks since an active run had its best validation score; 0 without patience."""
    return int(state.looks[state.active[i]].get("waited", 0)) if state.looks else 0


def verdict(loss: float, stop: Stop, limit: Literal["max_epochs", "max_steps"], looks: int) -> tuple[str, str]:
    """Status and message of a run that leaves with this loss, `looks` looks after its best validation score."""
    end = f"{limit}={getattr(stop, limit)}: raise it"
    if not math.isfinite(loss):
        return "diverged", f"training loss {loss}: lower training.lr"
    if stop.patience is not None and looks < stop.patience:
        text = f"the best validation {stop.score} was {looks} looks ago, not yet stop.patience={stop.patience}"
        return "not_converged", f"{text}, at {end}"
    if stop.train_loss is None or loss <= stop.train_loss:
        return "ok", ""
    return "not_converged", f"train_loss {loss:.3g} is above stop.train_loss={stop.train_loss:g} at {end}"


def evaluate(stack: Stack, state: State, split: str = "train") -> Tensor:
    """Average loss (A,) on train, valid or test."""
    at, theta = _at(stack, state, split)
    return at.loss(theta)


def _at(stack: Stack, state: State, split: str) -> tuple[Objective, Tensor]:
    """The stack in evaluation mode, BatchNorm on the whole training set's statistics, and where it is (A, p).

    Test samples are taken evenly spaced, at most as many as there are to train on.
    """
    network, data = stack.network, stack.data
    every = -(-len(data.y_test) // len(data.y_train)) if split == "test" else 1
    x, y = (getattr(data, f"{side}_{split}")[::every] for side in "xy")
    params = {n: p.detach() for n, p in state.params.items()}
    own = collect_statistics(network, params, {n: b[state.active] for n, b in stack.buffers.items()}, data.x_train)
    return Objective(network, params, own, x, y), flatten(params)


def _score(stack: Stack, state: State) -> Tensor:
    """Loss or share of errors (A,) on the validation set: the less, the better."""
    if stack.common.stop.score == "loss":
        return evaluate(stack, state, "valid")
    at, theta = _at(stack, state, "valid")
    return (1 - at.hits(theta)).mean(1)
