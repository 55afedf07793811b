"""SGD on a stack: K runs that share a shape are trained together, and each leaves when it has reached its goal.

A run's trajectory depends on its own settings and seed alone, up to rounding: initialization, data order and noise come
from generators that are functions of (seed, purpose, epoch or step).
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from landscape_cli.config import Training
from landscape_cli.curvature.objective import Objective
from landscape_cli.data import augmentation
from landscape_cli.data.datasets import Data
from landscape_cli.network import Network, Params, Pass, memory
from landscape_cli.network.batchnorm_statistics import collect_statistics
from landscape_cli.registry.errors import Fault
from landscape_cli.training import schedule, stopping
from landscape_cli.training.optimizers import update
from landscape_cli.training.sharpness_aware import ascended
from landscape_cli.training.state import Outcome, Stack, State
from landscape_cli.training.traced_step import replayed

Slope = Callable[..., list[Tensor]]  # x, y, parameters -> their gradients


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


def train(
    network: Network,
    data: Data,
    settings: list[Training],
    seeds: list[int],
    state: State,
    buffers: Params,
    tick: Callable[[State], None] = lambda state: None,
) -> Iterator[Outcome]:
    """Train K runs from `state` until each has reached its goal, its limit, or diverged.

    Args:
        network: how the stack is run.
        data: training inputs and labels on the device.
        settings: one a run; equal but for what may differ inside a stack, see `optimizers.common`.
        seeds: one a run.
        state: from `begin`, or a saved one, which is continued to the same bits.
        buffers: (K, *shape), as after initialization.
        tick: called between blocks of steps and at every epoch; may save the state, or raise to stop.
    Yields: runs as they finish, and snapshots at the epochs in `snapshots`.
    """
    stack = Stack(network, data, settings, seeds, buffers)
    _check(stack)
    stop, slope, piece = stack.common.stop, _slope(stack, state), _piece(stack, state) if stack.plain else 0
    clock = time.perf_counter()
    while state.active:
        epoch, first = divmod(state.step, stack.per_epoch)
        due = first == 0 and (epoch % stop.check_every == 0 or epoch >= stop.max_epochs)
        losses, gradient = _full_gradient(stack, state, state.params, piece) if stack.plain else (None, None)
        if first == 0 and epoch in stack.common.snapshots:
            yield from _snapshots(stack, state, epoch)
        if due:
            clock = _book(state, clock)
            losses = stopping.evaluate(stack, state) if losses is None else losses
            leaving = stopping.leaving(stack, state, losses, epoch)
            yield from (_end(stack, state, i, epoch, verdict) for i, verdict in leaving.items())
            stay = [i for i in range(len(state.active)) if i not in leaving]
            if leaving:
                gradient = gradient and [g[stay] for g in gradient]
                state.keep(stay)
            if not stay:
                break
        if stop.max_steps is not None and state.step >= stop.max_steps:
            if not due:
                stopping.look(stack, state, epoch)
            yield from _all_end(stack, state, epoch)
            break
        if gradient is not None:
            if stack.ascents[0]:
                gradient = _full_gradient(stack, state, ascended(state, stack.ascents, gradient), piece)[1]
            _step(stack, state, gradient)
        else:
            _advance(stack, state, slope, tick)
        if state.step % stack.per_epoch == 0:
            clock = _book(state, clock)
            tick(state)


def _check(stack: Stack) -> None:
    """Whether the network and the data take what the settings ask for.

    Raises: Fault.
    """
    common, network, data = stack.common, stack.network, stack.data
    if common.stop.patience and data.x_valid is None:
        raise Fault("training.stop.patience: no samples are held out: set dataset.validation")
    if common.ghost_batch and network.normalizes and network.kind != "stacked":
        raise Fault(f"training.ghost_batch: this network is not run layer by layer: {network.reason}")
    if (common.flip or common.crop) and data.x_train.dim() != 4:
        raise Fault(f"training.flip, training.crop: samples of shape {data.input_shape} are no images")


def _piece(stack: Stack, state: State) -> int:
    """Samples of a full-batch step that fit into memory at once."""
    data = stack.data
    return Objective(stack.network, state.params, stack.buffers, data.x_train, data.y_train).chunk_size(memory.PASS)


def _book(state: State, since: float) -> float:
    """Share the seconds since then among the active runs; the time now."""
    now = time.perf_counter()
    for row in state.active:
        state.seconds[row] += (now - since) / len(state.active)
    return now


def _step(stack: Stack, state: State, gradient: list[Tensor]) -> None:
    factor = schedule.factor(stack.common, state.step, stack.per_epoch, stack.batch)
    update(state, stack.settings, gradient, factor)
    state.step += 1


def _advance(stack: Stack, state: State, slope: Slope, tick: Callable[[State], None]) -> None:
    """Steps up to the end of the epoch, or to the step limit; `slope` gives their gradients."""
    data, common, batch = stack.data, stack.common, stack.batch
    epoch, first = divmod(state.step, stack.per_epoch)
    limit = min(stack.per_epoch, first + (common.stop.max_steps or math.inf) - state.step)
    windows = _windows(stack, state, epoch)
    orders = [torch.randperm(len(data.y_train), generator=g) for g in _streams(stack, state, "shuffle", epoch)]
    order = torch.stack(orders).to(data.x_train.device)
    bytes_per_step = batch * len(order) * data.x_train[0].numel() * data.x_train.element_size()
    block = memory.pieces(bytes_per_step, memory.BLOCK)
    for start in range(first, int(limit), block):
        end = min(start + block, int(limit))
        index = order[:, start * batch : end * batch]
        X, Y = data.x_train[index], data.y_train[index]  # (A, block * batch, ...)
        if windows is not None:
            X = augmentation.augmented(X, windows.gather(1, index[..., None].expand(-1, -1, 3)), common.crop)
        for x, y in zip(X.split(batch, 1), Y.split(batch, 1), strict=True):
            gradient = slope(x, y, *state.params.values())
            if stack.ascents[0]:
                gradient = slope(x, y, *ascended(state, stack.ascents, gradient).values())
            _step(stack, state, gradient)
        if end < stack.per_epoch:
            tick(state)


def _streams(stack: Stack, state: State, purpose: str, counter: int) -> list[torch.Generator]:
    """The generators of the active runs."""
    return [stream(stack.seeds[row], purpose, counter) for row in state.active]


def _windows(stack: Stack, state: State, epoch: int) -> Tensor | None:
    """How each sample is moved and mirrored in this epoch, (A, n, 3), if it is."""
    common, data = stack.common, stack.data
    if not (common.flip or common.crop):
        return None
    draws = _streams(stack, state, "augment", epoch)
    return augmentation.windows(draws, len(data.y_train), common.flip, common.crop).to(data.x_train.device)


def _slope(stack: Stack, state: State) -> Slope:
    """The gradient of each run's mean loss on its own minibatch, x (A, B, ...), y (A, B), at parameters (A, *shape).

    Both gradients of a sharpness-aware step have its batch statistics from their own pass and the same dropout masks.
    """
    network, common = stack.network, stack.common
    names, normed, dropping = list(state.params), network.normalizes, network.drops

    def slope(x: Tensor, y: Tensor, *params: Tensor) -> list[Tensor]:
        leaves = {n: p.requires_grad_() for n, p in zip(names, params, strict=True)}
        generators = _streams(stack, state, "dropout", state.step) if dropping else None
        how = Pass("batch" if normed else "fixed", common.ghost_batch, generators)
        logits = network(leaves, _blank(network, len(x), x) if normed else {}, x, how)
        loss = network.loss.trained(logits, y, common.label_smoothing, "sum")
        return list(torch.autograd.grad(loss / y.shape[1], list(leaves.values()), materialize_grads=True))

    return replayed(slope) if network.kind == "stacked" and not dropping else slope


def _blank(network: Network, K: int, like: Tensor) -> Params:
    """Buffers for a pass that uses batch statistics and reads none of them."""
    return {n: b.detach().to(like.device).expand(K, *b.shape) for n, b in network.module.named_buffers()}


def _full_gradient(stack: Stack, state: State, params: Params, piece: int) -> tuple[Tensor, list[Tensor]]:
    """Training losses (A,) and the gradients of a full-batch step, from one pass, in pieces that fit into memory."""
    data, own = stack.data, {n: b[state.active] for n, b in stack.buffers.items()}
    leaves = {n: p.requires_grad_() for n, p in params.items()}
    losses, gradient = torch.zeros(len(state.active), dtype=torch.float64, device=data.x_train.device), None
    for x, y in zip(data.x_train.split(piece), data.y_train.split(piece), strict=True):
        logits = stack.network(leaves, own, x)
        each = stack.network.loss.trained(logits, y.expand(len(logits), -1), 0.0, "none")
        slopes = torch.autograd.grad(each.sum() / len(data.y_train), list(leaves.values()), materialize_grads=True)
        losses += each.detach().double().sum(1)
        gradient = list(slopes) if gradient is None else [a + b for a, b in zip(gradient, slopes, strict=True)]
    assert gradient is not None
    return losses / len(data.y_train), gradient


def _end(stack: Stack, state: State, i: int, epoch: int, verdict: tuple[str, str]) -> Outcome:
    """Active run i as it leaves: with patience at its best validation score, if diverged at its last finite loss."""
    status, message = verdict
    source = state.finite if status == "diverged" else state.best or state.params
    outcome = _outcome(stack, state, source, i, epoch)
    outcome.status, outcome.message = status, message
    if source is state.best:
        outcome.epochs, outcome.steps = (int(state.looks[outcome.row][key]) for key in ("epoch", "step"))
    return outcome


def _all_end(stack: Stack, state: State, epoch: int) -> Iterator[Outcome]:
    """Every active run, at the limit of steps."""
    for i, loss in enumerate(stopping.evaluate(stack, state).tolist()):
        verdict = stopping.verdict(loss, stack.common.stop, "max_steps", stopping.waited(state, i))
        yield _end(stack, state, i, epoch, verdict)


def _outcome(stack: Stack, state: State, source: Params, i: int, epoch: int) -> Outcome:
    params = {n: p.detach()[i : i + 1].clone() for n, p in source.items()}
    row = state.active[i]
    buffers = {n: b[row : row + 1] for n, b in stack.buffers.items()}
    own = collect_statistics(stack.network, params, buffers, stack.data.x_train)
    return Outcome(row, params, own, state.step, epoch)


def _snapshots(stack: Stack, state: State, epoch: int) -> Iterator[Outcome]:
    for i in range(len(state.active)):
        kept = _outcome(stack, state, state.params, i, epoch)
        kept.epoch = epoch
        yield kept
