"""All minibatch-gradient metrics of digits-MLP minima against the loops that a notebook writes; memory on a wider net.

Ours: every metric of METRICS section 2 at m = 1, 10 and 100, nothing known before. Loops: 100 minibatches of size 10,
either their gradients and one Gram matrix, or pair by pair. Both ways take turns in one process; best and median.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from curvature import minima, point
from torch import Tensor, nn

from landscape_cli import config, network, registry
from landscape_cli.curvature.objective import Objective, flatten
from landscape_cli.data.datasets import Data, load
from landscape_cli.metrics import gradients as metrics
from landscape_cli.metrics.point import Point

M, SIZE, ORDERED = 100, 10, 9900  # minibatches of the loops, their size and ordered pairs
SAMPLES, BUDGET = 12_000, 1024  # of the memory run: above GRAM_SAMPLES; MB
DRAWN: list[Callable[..., object]] = [metrics.regret, metrics.gradient_norm, metrics.gradient_cosine]
DRAWN += [metrics.jensen_gap, metrics.gradient_disparity, metrics.gradient_confusion]
DRAWN.append(partial(metrics.gradient_cosine, sign=True))


def every_metric(at: Point, sizes: list[int], **drawn: int) -> None:
    """All of them; `drawn` goes to those that draw minibatches."""
    for m in sizes:
        for metric in DRAWN:
            metric(at, minibatch_size=m, **drawn)
        metrics.fisher_trace(at, minibatch_size=m)
        metrics.coherence(at, minibatch_size=m)
    metrics.gradient_noise_scale(at)
    metrics.gradient_diversity(at)


def minibatch_gradient(module: nn.Module, data: Data, index: Tensor) -> Tensor:
    """Gradient of one minibatch, flat."""
    loss = F.cross_entropy(module(data.x_train[index]), data.y_train[index])
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(module.parameters()))])


def gram_loop(module: nn.Module, data: Data, draw: Tensor) -> Tensor:
    """One gradient after the other, and their Gram matrix in float64."""
    rows = torch.stack([minibatch_gradient(module, data, index) for index in draw]).double()
    return rows @ rows.T


def pair_loop(gradient: Callable[[int], Tensor], pairs: list[tuple[int, int]]) -> float:
    """Regret, one pair after the other."""
    total = 0.0
    for a, b in pairs:
        first, second = gradient(a), gradient(b)
        total += float(second.norm() * (1 - F.cosine_similarity(first, second, dim=0)))
    return total / len(pairs)


def by_definition(gram: Tensor) -> float:
    """Regret of a Gram matrix, from its cosines."""
    length = gram.diagonal().sqrt()
    h = length * (1 - gram / (length[:, None] * length))
    return float((h.sum() - h.trace()) / ORDERED)


def clocked(run: Callable[[], object]) -> float:
    """Milliseconds."""
    start = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - start)


def peak() -> float:
    """Peak resident memory so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def wide(partitions: int) -> None:
    """Memory and time of all metrics of 1000 minibatches of a net with a million parameters, in this process."""
    torch.manual_seed(0)
    x, y = torch.randn(SAMPLES, 784), torch.randint(10, (SAMPLES,))
    module = nn.Sequential(nn.Linear(784, 1000), nn.ReLU(), nn.Linear(1000, 200), nn.ReLU(), nn.Linear(200, 10))
    params, buffers = network.stack([module])
    train = Objective(network.build(module, (784,)), params, buffers, x, y)
    at = Point(flatten(params), train, train.subset(torch.arange(SIZE)))
    at.test.loss_and_gradient(at.theta)  # loads libraries
    before = peak()
    seconds = clocked(lambda: every_metric(at, [SIZE], minibatches=1000, partitions=partitions)) / 1e3
    grew, p = peak() - before, at.theta.shape[1]
    print(
        f"1000 minibatches of {SIZE}, {partitions} draws, {p:,} parameters, n = {SAMPLES:,}: peak memory grew", end=" "
    )
    print(f"from {before:.0f} by {grew:.0f} MB (budget {BUDGET}) in {seconds:.1f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--nets", type=int, default=16)
    parser.add_argument("--rival-nets", type=int, default=4, help="how many of them are measured one by one")
    parser.add_argument("--pairs", type=int, default=2000, help="that are timed, of stored gradients")
    parser.add_argument("--naive-pairs", type=int, default=20, help="that are timed, of gradients made anew")
    parser.add_argument("--partitions", type=int, default=1, help="draws of the memory run, minutes each; 0: no run")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch, for both sides")
    parser.add_argument("--wide", action="store_true", help="the memory run alone")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    registry.load_plugins([])
    if options.wide:
        return wide(options.partitions)
    if options.partitions:  # first: the peak of a child starts at its parent's
        subprocess.run([sys.executable, __file__, "--wide", *sys.argv[1:]], check=True)
    torch.manual_seed(0)
    data = load(config.section("dataset", name="digits", train_size=1000))
    modules, _, _ = minima(data, options.nets)
    singles = modules[: options.rival_nets]

    at = point(modules, data, torch.float32)
    draw = at.draws(SIZE, M, 1, 0)[0]
    found = metrics.regret(at, minibatch_size=SIZE, minibatches=M, partitions=1).value
    truth = torch.tensor([by_definition(gram_loop(module, data, draw)) for module in modules], dtype=torch.float64)
    error = float((found / truth - 1).abs().max())
    print(f"regret of the same {M} minibatches of {SIZE}: largest relative difference {error:.1e}")
    pairs = [(a, b) for a in range(M) for b in range(M) if a != b]
    some = [pairs[i] for i in torch.randperm(ORDERED)[: options.pairs].tolist()]
    few = some[: options.naive_pairs]
    stored = {module: [minibatch_gradient(module, data, index) for index in draw] for module in singles}

    def ours(nets: list[nn.Module]) -> float:
        at = point(nets, data, torch.float32)
        return clocked(lambda: every_metric(at, metrics.SIZES)) / len(nets)

    def loop_over(pairs: list[tuple[int, int]], gradient: Callable[[int], Tensor]) -> float:
        return clocked(lambda: pair_loop(gradient, pairs)) * ORDERED / len(pairs)

    def made_anew(net: nn.Module) -> float:
        return loop_over(few, lambda b: minibatch_gradient(net, data, draw[b]))

    ways: dict[str, Callable[[], list[float]]] = {
        f"ours, stack of {len(modules)}": lambda: [ours(modules)],
        "ours, one net": lambda: [ours([net]) for net in singles],
        "gradients and Gram": lambda: [clocked(partial(gram_loop, net, data, draw)) for net in singles],
        "pairs, stored": lambda: [loop_over(some, stored[net].__getitem__) for net in singles],
        "pairs, made anew": lambda: [made_anew(net) for net in singles],
    }
    turns = [{name: statistics.mean(run()) for name, run in ways.items()} for _ in range(options.repetitions + 1)]
    times = {name: [turn[name] for turn in turns[1:]] for name in ways}  # the first warms up
    best, middle = ({name: f(t) for name, t in times.items()} for f in (min, statistics.median))
    print(f"torch {torch.__version__}, {options.threads} threads; ms a net, {options.repetitions} repetitions in turn;")
    print(f"pairs: {len(some)} stored, {len(few)} made anew, scaled to {ORDERED} of one m; ratio: best (median) to")
    first, second = list(ways)[:2]
    print(f"{'':<20} {'best':>9} {'median':>9} {first:>21} {second:>19}")
    for name in ways:
        a, b = (f"{best[name] / best[own]:.2f}x ({middle[name] / middle[own]:.2f}x)" for own in (first, second))
        print(f"{name:<20} {best[name]:>9.2f} {middle[name]:>9.2f} {a:>21} {b:>19}")
    print("targets: gradients and Gram >= 1x, pairs >= 20x")


if __name__ == "__main__":
    main()
