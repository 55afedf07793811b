"""What a stack in training is: everything that the rest of it depends on, and what comes out."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from landscape_cli.config import SharpnessAware, Training
from landscape_cli.data.datasets import Data
from landscape_cli.network import Network, Params
from landscape_cli.registry import REGISTRY
from landscape_cli.training import schedule

HISTORY = ("epoch", "step", "train_loss", "test_loss")


@dataclass(frozen=True)
class Stack:
    """K runs that are trained together: what does not change on the way.

    Args:
        network: how the stack is run.
        data: training inputs and labels on the device.
        settings: one a run; equal but for what may differ inside a stack.
        seeds: one a run.
        buffers: (K, *shape), as after initialization.
    """

    network: Network
    data: Data
    settings: list[Training]
    seeds: list[int]
    buffers: Params

    @property
    def common(self) -> Training:
        """Where all runs agree, the first says it."""
        return self.settings[0]

    @cached_property
    def ascents(self) -> list[SharpnessAware | None]:
        """Of each run, how its gradients are taken."""
        return [training.ascent for training in self.settings]

    @cached_property
    def batch(self) -> int:
        """Samples in a step."""
        return schedule.batch_of(self.common, len(self.data.y_train))

    @cached_property
    def per_epoch(self) -> int:
        """Steps in an epoch."""
        return -(-len(self.data.y_train) // self.batch)

    @cached_property
    def plain(self) -> bool:
        """Whether a step on all samples computes the training loss on its way."""
        drawn = self.common.flip or self.common.crop or self.network.drops
        whole = self.batch == len(self.data.y_train)
        return whole and not (drawn or self.common.label_smoothing or self.network.normalizes)


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

    def keep(self, stay: list[int]) -> None:
        """Drop the rows of the runs that left from every tensor."""

        def rows(tensors: Params) -> Params:
            return {n: t.detach()[stay] for n, t in tensors.items()}

        self.params, self.finite, self.best = rows(self.params), rows(self.finite), rows(self.best)
        self.moments = [rows(m) for m in self.moments]
        self.active = [self.active[i] for i in stay]


def begin(params: Params, training: Training) -> State:
    """The state before the first step, for parameters (K, *shape) as they were initialized."""
    K = len(next(iter(params.values())))
    params = {n: p.clone() for n, p in params.items()}
    count = REGISTRY["optimizer"][training.rule].moments
    moments = [{n: torch.zeros_like(p) for n, p in params.items()} for _ in range(count)]
    history: list[dict[str, list[float]]] = [{key: [] for key in HISTORY} for _ in range(K)]
    state = State(params, list(range(K)), 0, moments, dict(params), history, [0.0] * K)
    if training.stop.patience:
        state.best, state.looks = {n: p.clone() for n, p in params.items()}, [{} for _ in range(K)]
    return state


@dataclass
class Outcome:
    """A run that left the stack at place `row`, or passed an epoch that is to be kept (`epoch` not None)."""

    row: int
    params: Params  # name -> (1, *shape)
    buffers: Params
    steps: int
    epochs: int
    status: str = "ok"
    message: str = ""
    epoch: int | None = None


def factors(values: list[float], like: Tensor) -> float | Tensor:
    """A setting of the active runs: a number where they agree, else (A,) of the type of `like`."""
    if len(set(values)) == 1:
        return float(values[0])
    return torch.tensor(values, dtype=like.dtype, device=like.device)


def beside(factor: float | Tensor, w: Tensor) -> float | Tensor:
    """`factors` as they multiply w (A, *shape)."""
    return factor if isinstance(factor, float) else factor.view(-1, *[1] * (w.dim() - 1))
