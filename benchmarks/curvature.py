"""Trace and top eigenvalue of the Hessian of digits-MLP minima against PyHessian, net by net, with each one's error.

The truth is our own value in float64: the trace is exact for ReLU networks, the eigenvalue taken to a residual of 1e-8.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from landscape_cli import network, registry, training
from landscape_cli.datasets import Data, load
from landscape_cli.metrics.curvature import hessian_top, hessian_trace
from landscape_cli.models import build_module
from landscape_cli.objective import Objective, flatten
from landscape_cli.point import Point
from landscape_cli.schema import DatasetOptions, Training

PROBES = 225  # of PyHessian, for about 3 % accuracy of the trace; its own stopping rule (tol) is off by up to 30 %


def minima(data: Data, seeds: int) -> tuple[list[nn.Module], network.Params, network.Params]:
    """Networks trained with batch 10 to a training loss of 0.01, and the same as a stack."""
    stop = {"train_loss": 0.01, "max_epochs": 200}
    settings = Training.model_validate({"lr": 0.1, "batch_size": 10, "stop": stop}).model_dump()
    modules = [build_module({"name": "mlp"}, data.input_shape, data.num_classes, seed) for seed in range(seeds)]
    params, buffers = network.stack(modules)
    net, state = network.build(modules[0], data.input_shape), training.begin(params, settings)
    for o in training.train(net, data, [settings] * seeds, list(range(seeds)), state, buffers):
        modules[o.row].load_state_dict({n: p[0] for n, p in (o.params | o.buffers).items()})
    return modules, *network.stack(modules)


def point(modules: list[nn.Module], data: Data, dtype: torch.dtype) -> Point:
    """A fresh stack of minima, nothing known of it yet."""
    params, buffers = network.stack(modules)
    params = {n: p.to(dtype) for n, p in params.items()}
    data = data.to("cpu", dtype)
    net = network.build(modules[0].to(dtype), data.input_shape, dtype)
    train = Objective(net, params, buffers, data.x_train, data.y_train)
    test = Objective(net, params, buffers, data.x_test, data.y_test)
    modules[0].to(torch.float32)
    return Point(flatten(params), train, test)


def ours(metric: Callable[..., Any], modules: list[nn.Module], data: Data) -> tuple[float, Tensor]:
    """Seconds for each net, and the values."""
    at = point(modules, data, torch.float32)
    start = time.perf_counter()
    value = metric(at).value
    return (time.perf_counter() - start) / len(modules), value


def theirs(what: str, modules: list[nn.Module], data: Data) -> tuple[float, Tensor]:
    """The same by PyHessian, one net after the other; its set-up (a gradient with its graph) counts, as it must."""
    from pyhessian import hessian

    values, start = [], time.perf_counter()
    for module in modules:
        module.zero_grad()
        of = hessian(module, nn.CrossEntropyLoss(), data=(data.x_train, data.y_train), cuda=False)
        if what == "trace":
            found = of.trace(maxIter=PROBES, tol=0)
            values.append(sum(found) / len(found))
        else:
            values.append(of.eigenvalues()[0][0])  # maxIter=100, tol=1e-3, its defaults
    return (time.perf_counter() - start) / len(modules), torch.tensor(values, dtype=torch.float64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--nets", type=int, default=16)
    parser.add_argument("--rival-nets", type=int, default=4, help="how many of them PyHessian measures")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch, for both sides")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", "Using backward\\(\\) with create_graph")  # of PyHessian
    registry.load_plugins([])
    torch.manual_seed(0)
    data = load({"name": "digits", **DatasetOptions().model_dump(), "train_size": 1000})
    modules, _, _ = minima(data, options.nets)
    exact = point(modules, data, torch.float64)
    truth = {"trace": hessian_trace(exact).value, "top": hessian_top(exact, tolerance=1e-8).value}
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; milliseconds a net, best of", end=" ")
    print(f"{options.repetitions} interleaved repetitions; error: median and largest, relative to float64")
    print(f"{'':<6} {'pyhessian':>10} {'error':>17} {'landscape':>10} {'error':>17} {'ratio':>8} {'target':>7}")
    for name, metric, target in (("trace", hessian_trace, 100.0), ("top", hessian_top, 1.2)):
        slow, fast = [], []
        for _ in range(options.repetitions):
            slow.append(theirs(name, modules[: options.rival_nets], data))
            fast.append(ours(metric, modules, data))
        columns, seconds = [], []
        for runs in (slow, fast):
            error = (runs[0][1] / truth[name][: len(runs[0][1])] - 1).abs()
            seconds.append(min(t for t, _ in runs))
            columns.append(f"{1e3 * seconds[-1]:>10.2f} {float(error.median()):>8.1e} {float(error.max()):>8.1e}")
        print(f"{name:<6} {columns[0]} {columns[1]} {seconds[0] / seconds[1]:>7.1f}x {target:>6.1f}x")


if __name__ == "__main__":
    main()
