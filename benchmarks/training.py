"""Stacked training against the loop that a PyTorch user writes: same nets, data, batch and learning rate, one process.

Times are per step of one model; both ways take turns, and the best of each counts, which is what an idle machine gives.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from landscape_cli import config, network, registry, training
from landscape_cli.data.datasets import Data, load
from landscape_cli.network.models import build_module

BATCH, LR = 10, 0.1
CASES: list[tuple[str, dict[str, Any], int, float]] = [  # name, model, seeds, target ratio
    ("digits MLP", {"name": "mlp"}, 32, 12.0),
    ("digits cnn", {"name": "cnn"}, 16, 2.0),
]


def stacked(model: dict[str, Any], data: Data, seeds: int, epochs: int) -> tuple[float, list[float]]:
    """Seconds for each step of one model, all seeds trained as one stack, and the final training losses."""
    section, settings = (
        config.section("model", **model),
        config.section("training", lr=LR, batch_size=BATCH, stop={"max_epochs": epochs}),
    )
    modules = [build_module(section, data.input_shape, data.num_classes, seed) for seed in range(seeds)]
    params, buffers = network.stack(modules)
    net = network.build(modules[0], data.input_shape)
    state = training.begin(params, settings)
    start = time.perf_counter()
    outcomes = list(training.train(net, data, [settings] * seeds, list(range(seeds)), state, buffers))
    seconds = time.perf_counter() - start
    ends = {o.row: modules[o.row] for o in outcomes}
    for o in outcomes:
        ends[o.row].load_state_dict({n: p[0] for n, p in (o.params | o.buffers).items()})
    return seconds / (seeds * outcomes[0].steps), [loss(ends[row], data) for row in range(seeds)]


def standard(model: dict[str, Any], data: Data, seeds: int, epochs: int) -> tuple[float, list[float]]:
    """The same for a loop over seeds with DataLoader and torch.optim.SGD."""
    total, steps, losses, section = 0.0, 0, [], config.section("model", **model)
    for seed in range(seeds):
        module = build_module(section, data.input_shape, data.num_classes, seed)
        start = time.perf_counter()
        loader = DataLoader(TensorDataset(data.x_train, data.y_train), BATCH, shuffle=True)
        optimizer, criterion = torch.optim.SGD(module.parameters(), lr=LR), nn.CrossEntropyLoss()
        for _ in range(epochs):
            module.train()
            for x, y in loader:
                optimizer.zero_grad()
                criterion(module(x), y).backward()
                optimizer.step()
                steps += 1
            loss(module, data)  # a stack looks at its training loss once an epoch too
        total += time.perf_counter() - start
        losses.append(loss(module, data))
    return total / steps, losses


def loss(module: nn.Module, data: Data) -> float:
    """Average training loss."""
    module.eval()
    with torch.no_grad():
        return float(nn.functional.cross_entropy(module(data.x_train), data.y_train))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=5, help="of 100 steps each")
    parser.add_argument("--loop-seeds", type=int, default=2, help="how many of the seeds the standard loop trains")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch, for both sides")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    registry.load_plugins([])
    data = load(config.section("dataset", name="digits", train_size=1000))
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; microseconds a model-step, best of", end=" ")
    print(f"{options.repetitions} interleaved repetitions (batch {BATCH}, lr {LR})")
    print(f"{'case':<12} {'seeds':>5} {'loop':>8} {'stacked':>8} {'ratio':>7} {'target':>7}   mean loss")
    for name, model, seeds, target in CASES:
        loops, stacks = [], []
        for _ in range(options.repetitions):
            loops.append(standard(model, data, options.loop_seeds, options.epochs))
            stacks.append(stacked(model, data, seeds, options.epochs))
        slow, fast = min(t for t, _ in loops), min(t for t, _ in stacks)
        ends = [sum(each) / len(each) for each in (loops[0][1], stacks[0][1])]
        print(
            f"{name:<12} {seeds:>5} {1e6 * slow:>8.1f} {1e6 * fast:>8.1f} {slow / fast:>6.1f}x {target:>6.0f}x   "
            f"{ends[0]:.4f}, {ends[1]:.4f}"
        )


if __name__ == "__main__":
    main()
