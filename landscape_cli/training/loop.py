"""SGD on a stack: K runs that share a shape are trained together, and each leaves when it has reached its goal.

A run's trajectory depends on its own settings and seed alone, up to rounding: initialization, data order and noise come
from generators that are functions of (seed, purpose, epoch or step).
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from landscape_cli.curvature.objective import Objective
from landscape_cli.data import augmentation
from landscape_cli.data.datasets import Data
from landscape_cli.network import Network, Params, Pass, memory
from landscape_cli.network.batchnorm_statistics import collect_statistics
from landscape_cli.registry.errors import Fault
from landscape_cli.training import stopping
from landscape_cli.training.optimizers import Settings, State, ascended, begin, update
from landscape_cli.training.traced_step import replayed

PER_RUN = ("lr", "weight_decay", "momentum", "rho")  # settings that may differ inside a stack
Slope = Callable[..., list[Tensor]]  # x, y, parameters -> their gradients


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


def stream(seed: int, purpose: str, *counters: int) -> torch.Generator:
    """The generator of one run for one purpose, such as ("shuffle", epoch)."""
    text = ":".join(map(str, (seed, purpose, *counters)))
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1)


def stack_size(work: int) -> int:
    """How many runs to train together: the one place where K is chosen.

    A step of a small net is all overhead, so many are worth it; for wide products there is nothing to gain, and a stack
    only loses the cache. 32 runs of the digits MLP at batch 10 take the time of two.

    Args:
        work: of a run, from `work_of`.
    """
    return max(1, min(32, 2**28 // max(1, work)))


def threads(work: int, K: int) -> int | None:
    """How many threads a step takes, None for all: one for a small net alone.

    Two gain it less than a sixth, and cost it half where they wait for a core that another program has. Its values are
    then the same to the bit on any number of cores.
    """
    return 1 if K == 1 and work < 2**23 else None


def work_of(parameters: int, batch: int, positions: int = 0) -> int:
    """Multiply-adds of one run's forward pass in a step, roughly.

    Args:
        parameters: of one run.
        batch: samples in a step.
        positions: pixels of a sample, for convolutional nets: a convolution uses each weight at many places.
    """
    return parameters * batch * max(1, positions // 8)


def batch_of(settings: Settings, n: int) -> int:
    """Samples in a step; `full` is all of them."""
    return n if settings["batch_size"] == "full" else int(settings["batch_size"])


def train(
    network: Network,
    data: Data,
    settings: list[Settings],
    seeds: list[int],
    state: State,
    buffers: Params,
    tick: Callable[[State], None] = lambda state: None,
) -> Iterator[Outcome]:
    """Train K runs from `state` until each has reached its goal, its limit, or diverged.

    Args:
        network: how the stack is run.
        data: training inputs and labels on the device.
        settings: one a run; equal but for `PER_RUN`.
        seeds: one a run.
        state: from `begin`, or a saved one, which is continued to the same bits.
        buffers: (K, *shape), as after initialization.
        tick: called between blocks of steps and at every epoch; may save the state, or raise to stop.
    Yields: runs as they finish, and snapshots at the epochs in `snapshots`.
    """
    common, n = settings[0], len(data.y_train)
    batch = batch_of(common, n)
    per_epoch = -(-n // batch)
    _check(network, common, data)
    drawn = common.get("flip") or common.get("crop") or network.drops
    plain = not (drawn or common["label_smoothing"] or network.normalizes)
    free_check = batch == n and plain  # a full-batch step computes the training loss on its way
    at = Objective(network, state.params, buffers, data.x_train, data.y_train)
    piece = at.chunk_size(memory.PASS) if free_check else n
    slope = _slope(network, state, common, seeds)
    clock = time.perf_counter()

    def book() -> None:
        nonlocal clock
        now = time.perf_counter()
        for row in state.active:
            state.seconds[row] += (now - clock) / len(state.active)
        clock = now

    while state.active:
        epoch, first = divmod(state.step, per_epoch)
        stop, losses, gradient = common["stop"], None, None
        due = first == 0 and (epoch % stop["check_every"] == 0 or epoch >= stop["max_epochs"])
        if free_check:
            losses, gradient = _full_gradient(network, state, state.params, buffers, data, piece)
        elif due:
            losses = stopping.evaluate(network, state, buffers, data)
        if first == 0:
            yield from _snapshots(network, state, buffers, data, epoch, common["snapshots"])
        if losses is not None and due:
            book()
            leaving = stopping.leaving(network, state, buffers, data, losses, epoch, stop)
            for i, verdict in leaving.items():
                yield _end(network, state, buffers, data, i, epoch, verdict)
            if leaving:
                stay = [i for i in range(len(state.active)) if i not in leaving]
                gradient = [g[stay] for g in gradient] if gradient is not None else None
                _keep(state, stay)
                if not stay:
                    break
        if stop["max_steps"] is not None and state.step >= stop["max_steps"]:
            if not due:
                stopping.look(network, state, buffers, data, epoch, stop)
            yield from _all_end(network, state, buffers, data, epoch, stop)
            break
        if gradient is not None:
            if common["optimizer"] == "sam":
                gradient = _full_gradient(network, state, ascended(state, settings, gradient), buffers, data, piece)[1]
            update(state, settings, gradient, per_epoch, batch)
            state.step += 1
        else:
            _advance(state, data, settings, seeds, batch, slope, tick)
        if state.step % per_epoch == 0:
            book()
            tick(state)


def _check(network: Network, common: Settings, data: Data) -> None:
    """Whether the network and the data take what the settings ask for.

    Raises: Fault.
    """
    if common["stop"].get("patience") and data.x_valid is None:
        raise Fault("training.stop.patience: no samples are held out: set dataset.validation")
    if common.get("ghost_batch") and network.normalizes and network.kind != "stacked":
        raise Fault(f"training.ghost_batch: this network is not run layer by layer: {network.reason}")
    if (common.get("flip") or common.get("crop")) and data.x_train.dim() != 4:
        raise Fault(f"training.flip, training.crop: samples of shape {data.input_shape} are no images")


def _advance(
    state: State, data: Data, settings: list[Settings], seeds: list[int], batch: int, slope: Slope, tick: Any
) -> None:
    """Steps up to the end of the epoch, or to the step limit; `slope` gives their gradients."""
    n, common = len(data.y_train), settings[0]
    per_epoch = -(-n // batch)
    epoch, first = divmod(state.step, per_epoch)
    limit = min(per_epoch, first + (common["stop"]["max_steps"] or math.inf) - state.step)
    crop, windows = common.get("crop", 0), None
    if common.get("flip") or crop:
        draws = [stream(seeds[row], "augment", epoch) for row in state.active]
        windows = augmentation.windows(draws, n, bool(common.get("flip")), crop).to(data.x_train.device)
    orders = [torch.randperm(n, generator=stream(seeds[row], "shuffle", epoch)) for row in state.active]
    order = torch.stack(orders).to(data.x_train.device)
    bytes_per_step = batch * len(order) * data.x_train[0].numel() * data.x_train.element_size()
    block = memory.pieces(bytes_per_step, memory.BLOCK)
    for start in range(first, int(limit), block):
        stop = min(start + block, int(limit))
        index = order[:, start * batch : stop * batch]
        X, Y = data.x_train[index], data.y_train[index]  # (A, block * batch, ...)
        if windows is not None:
            X = augmentation.augmented(X, windows.gather(1, index[..., None].expand(-1, -1, 3)), crop)
        for x, y in zip(X.split(batch, 1), Y.split(batch, 1), strict=True):
            gradient = slope(x, y, *state.params.values())
            if common["optimizer"] == "sam":
                gradient = slope(x, y, *ascended(state, settings, gradient).values())
            update(state, settings, gradient, per_epoch, batch)
            state.step += 1
        if stop < per_epoch:
            tick(state)


def _slope(network: Network, state: State, common: Settings, seeds: list[int]) -> Slope:
    """The gradient of each run's mean loss on its own minibatch, x (A, B, ...), y (A, B), at parameters (A, *shape).

    Both gradients of a SAM step have its batch statistics from their own pass and the same dropout masks.
    """
    names, normed, dropping = list(state.params), network.normalizes, network.drops

    def slope(x: Tensor, y: Tensor, *params: Tensor) -> list[Tensor]:
        leaves = {n: p.requires_grad_() for n, p in zip(names, params, strict=True)}
        generators = [stream(seeds[row], "dropout", state.step) for row in state.active] if dropping else None
        how = Pass("batch" if normed else "fixed", common.get("ghost_batch"), generators)
        logits = network(leaves, _blank(network, len(x), x) if normed else {}, x, how)
        loss = network.loss.trained(logits, y, common["label_smoothing"], "sum")
        return list(torch.autograd.grad(loss / y.shape[1], list(leaves.values()), materialize_grads=True))

    return replayed(slope) if network.kind == "stacked" and not dropping else slope


def _blank(network: Network, K: int, like: Tensor) -> Params:
    """Buffers for a pass that uses batch statistics and reads none of them."""
    return {n: b.detach().to(like.device).expand(K, *b.shape) for n, b in network.module.named_buffers()}


def _full_gradient(
    network: Network, state: State, params: Params, buffers: Params, data: Data, piece: int
) -> tuple[Tensor, list[Tensor]]:
    """Training losses (A,) and the gradients of a full-batch step, from one pass, in pieces that fit into memory."""
    own = {n: b[state.active] for n, b in buffers.items()}
    leaves = {n: p.requires_grad_() for n, p in params.items()}
    losses, gradient = torch.zeros(len(state.active), dtype=torch.float64, device=data.x_train.device), None
    for x, y in zip(data.x_train.split(piece), data.y_train.split(piece), strict=True):
        logits = network(leaves, own, x)
        each = network.loss.trained(logits, y.expand(len(logits), -1), 0.0, "none")
        slopes = torch.autograd.grad(each.sum() / len(data.y_train), list(leaves.values()), materialize_grads=True)
        losses += each.detach().double().sum(1)
        gradient = list(slopes) if gradient is None else [a + b for a, b in zip(gradient, slopes, strict=True)]
    assert gradient is not None
    return losses / len(data.y_train), gradient


def _end(
    network: Network, state: State, buffers: Params, data: Data, i: int, epoch: int, verdict: tuple[str, str]
) -> Outcome:
    """Active run i as it leaves: with patience at its best validation score, if diverged at its last finite loss."""
    status, message = verdict
    source = state.finite if status == "diverged" else state.best or state.params
    outcome = _outcome(network, state, source, buffers, data, i, epoch)
    outcome.status, outcome.message = status, message
    if source is state.best:
        outcome.epochs, outcome.steps = (int(state.looks[outcome.row][key]) for key in ("epoch", "step"))
    return outcome


def _all_end(
    network: Network, state: State, buffers: Params, data: Data, epoch: int, stop: Settings
) -> Iterator[Outcome]:
    """Every active run, at the limit of steps."""
    for i, loss in enumerate(stopping.evaluate(network, state, buffers, data).tolist()):
        verdict = stopping.verdict(loss, stop, "max_steps", stopping.waited(state, i))
        yield _end(network, state, buffers, data, i, epoch, verdict)


def _outcome(
    network: Network, state: State, source: Params, buffers: Params, data: Data, i: int, epoch: int
) -> Outcome:
    params = {n: p.detach()[i : i + 1].clone() for n, p in source.items()}
    row = state.active[i]
    own = collect_statistics(network, params, {n: b[row : row + 1] for n, b in buffers.items()}, data.x_train)
    return Outcome(row, params, own, state.step, epoch)


def _snapshots(
    network: Network, state: State, buffers: Params, data: Data, epoch: int, wanted: list[int]
) -> Iterator[Outcome]:
    if epoch in wanted:
        for i in range(len(state.active)):
            kept = _outcome(network, state, state.params, buffers, data, i, epoch)
            kept.epoch = epoch
            yield kept


def _keep(state: State, stay: list[int]) -> None:
    """Drop the runs that left from every tensor."""

    def rows(tensors: Params) -> Params:
        return {n: t.detach()[stay] for n, t in tensors.items()}

    state.params, state.finite, state.moments = rows(state.params), rows(state.finite), [rows(m) for m in state.moments]
    state.best = rows(state.best)
    state.active = [state.active[i] for i in stay]


__all__ = ["Outcome", "Settings", "State", "batch_of", "begin", "stack_size", "stream", "threads", "train", "work_of"]
