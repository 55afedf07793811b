"""Curvature of digits-MLP minima against PyHessian and curvlinops, which go net by net, at equal error.

The truth is our own value in float64: the trace is exact for ReLU networks, the eigenvalue taken to a residual of 1e-8.
PyHessian's `tol` is a relative change of iterates, so that it is set to what gives the error that is compared at; its
`density` calls torch.eig, which is gone, and gets a stand-in. With `--net resnet20` it is one net, and PyHessian's time
is that of its shortest run with an error of 1e-3, and of as many of its probes as have a standard error of 3 %.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from landscape_cli import config, network, registry, training
from landscape_cli.curvature import traces
from landscape_cli.curvature.objective import Objective, flatten
from landscape_cli.data.datasets import Data, load
from landscape_cli.metrics.hessian import hessian_top, hessian_trace
from landscape_cli.metrics.point import Point
from landscape_cli.network.models import build_module

PROBES = 225  # of PyHessian, for about 3 % accuracy of the trace; its own stopping rule (tol) is off by up to 30 %


def minima(data: Data, seeds: int, activation: str = "relu") -> tuple[list[nn.Module], network.Params, network.Params]:
    """Networks trained with batch 10 to a training loss of 0.01, and the same as a stack."""
    stop = {"train_loss": 0.01, "max_epochs": 200}
    settings = config.section("training", lr=0.1, batch_size=10, stop=stop)
    model = config.section("model", name="mlp", activation=activation)
    modules = [build_module(model, data.input_shape, data.num_classes, seed) for seed in range(seeds)]
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


Found = tuple[float, Tensor]  # seconds for each net, and the values


def ours(metric: Callable[[Point], Tensor], modules: list[nn.Module], data: Data) -> Found:
    """All of them as one stack."""
    at = point(modules, data, torch.float32)
    start = time.perf_counter()
    value = metric(at)
    return (time.perf_counter() - start) / len(modules), value


def pyhessian(what: Callable[[Any], float], modules: list[nn.Module], data: Data) -> Found:
    """One net after the other; the set-up, a gradient with its graph, counts, as it must."""
    from pyhessian import hessian

    values, start = [], time.perf_counter()
    for module in modules:
        module.zero_grad()
        values.append(what(hessian(module, nn.CrossEntropyLoss(), data=(data.x_train, data.y_train), cuda=False)))
    return (time.perf_counter() - start) / len(modules), torch.tensor(values, dtype=torch.float64)


def curvlinops(what: Callable[[Any], float], modules: list[nn.Module], data: Data) -> Found:
    """One net after the other."""
    from curvlinops import HessianLinearOperator

    values, start = [], time.perf_counter()
    for module in modules:
        batches, params = [(data.x_train, data.y_train)], [p for p in module.parameters() if p.requires_grad]
        H = HessianLinearOperator(module, nn.CrossEntropyLoss(), params, batches, check_deterministic=False)
        values.append(what(H))
    return (time.perf_counter() - start) / len(modules), torch.tensor(values, dtype=torch.float64)


def density_mean(of: Any) -> float:
    """Mean of the spectrum out of PyHessian's density: 100 steps from one vector, its defaults."""
    nodes, weights = of.density(iter=100, n_v=1)
    return float((torch.tensor(nodes) * torch.tensor(weights)).sum())


def eig(T: Tensor, eigenvectors: bool = True) -> tuple[Tensor, Tensor]:
    """What torch.eig was, for symmetric T: eigenvalues as pairs (real, imaginary)."""
    values, vectors = torch.linalg.eigh(T)
    return torch.stack([values, torch.zeros_like(values)], 1), vectors


def largest(H: Any, tol: float) -> float:
    """The top eigenvalue by scipy's Lanczos with curvlinops' products."""
    from scipy.sparse.linalg import eigsh

    return float(eigsh(H.to_scipy(), k=1, which="LA", return_eigenvectors=False, tol=tol)[0])


def hutch(H: Any) -> float:
    from curvlinops import hutchinson_trace

    return float(hutchinson_trace(H, num_matvecs=PROBES))


def rest_of_tanh(data: Data, nets: int, draws: int = 20) -> None:
    """Products for the trace of tanh nets: F and Hutch++ on H - F, against Hutchinson on H, at equal error."""
    modules, _, _ = minima(data, nets, "tanh")
    at = point(modules, data, torch.float32)
    H, rest = at.train.hessian_product(at.theta), at.train.hessian_product(at.theta, residual_part=True)
    fisher, products = at.fisher_traces().sum(1), 48
    rng = torch.Generator().manual_seed(0)
    plain, split = [], []
    for _ in range(draws):
        vs = traces.signs(at.theta, products, rng).unbind(1)
        plain.append(torch.stack([(v * H(v.contiguous())).double().sum(1) for v in vs]).mean(0))
        inside, drawn = traces.hutchpp(rest, at.theta, products, rng)
        split.append(fisher + inside.sum(1) + drawn.sum(2).mean(1))
    errors = [torch.stack(values).std(0) / torch.stack(values).mean(0) for values in (plain, split)]
    ratio = (errors[0] / errors[1]).square()  # Hutchinson's error falls with the root of its products
    print(f"tanh, {products} products: Hutchinson on H {float(errors[0].mean()):.1e}, F + Hutch++ on H - F", end=" ")
    print(f"{float(errors[1].mean()):.1e}: {float(ratio.median()):.1f}x fewer products at equal error (target 3x)")


def rows(truth: dict[str, Tensor]) -> list[tuple[Any, ...]]:
    """Name, rival, its function and runner, our function, target."""

    def top(tolerance: float) -> Callable[[Point], Tensor]:
        return lambda at: hessian_top(at, tolerance=tolerance).value  # type: ignore[union-attr]

    def trace(at: Point) -> Tensor:
        return hessian_trace(at).value  # type: ignore[union-attr]

    def mean(at: Point) -> Tensor:
        nodes, weights = at.quadrature(1, 100, 0)
        return (nodes * weights).sum((1, 2))

    def theirs(tol: float, steps: int) -> Callable[[Any], float]:
        return lambda of: float(of.eigenvalues(maxIter=steps, tol=tol)[0][0])

    def probes(of: Any) -> float:
        found = of.trace(maxIter=PROBES, tol=0)
        return float(sum(found) / len(found))

    return [
        ("trace", "pyhessian", pyhessian, probes, trace, 100.0),
        ("trace", "curvlinops", curvlinops, hutch, trace, 100.0),
        ("top", "pyhessian", pyhessian, theirs(1e-3, 100), top(0.2), 1.2),
        ("top", "pyhessian", pyhessian, theirs(1e-6, 1000), top(0.1), 2.5),
        ("top", "curvlinops", curvlinops, lambda H: largest(H, 1e-3), top(1e-2), 1.0),
        ("mean", "pyhessian", pyhessian, density_mean, mean, 2.0),
    ]


def top_of_pyhessian(of: Any, truth: float, tolerance: float) -> tuple[float, float]:
    """Seconds and error of its shortest run that is right to `tolerance`; those that were stopped before are free."""
    for tol in (1e-2, 1e-3, 3e-4, 1e-4, 1e-5, 1e-6):
        start = time.perf_counter()
        value = float(of.eigenvalues(maxIter=200, tol=tol)[0][0])
        seconds, error = time.perf_counter() - start, abs(value / truth - 1)
        if error <= tolerance:
            break
    return seconds, error


def top_of_ours(module: nn.Module, data: Data, seed: int, truth: float, tolerance: float) -> tuple[float, float, int]:
    """The same of ours: seconds, error and products of the loosest setting that is right."""
    for residual in (0.9, 0.5, 0.3, 0.2, 0.1):
        at = point([module], data, torch.float32)
        start = time.perf_counter()
        found: Any = hessian_top(at, tolerance=residual, seed=seed)
        seconds, error = time.perf_counter() - start, abs(float(found.value) / truth - 1)
        if error <= tolerance:
            break
    return seconds, error, found.iterations


def residual_net(options: argparse.Namespace) -> None:
    """Top eigenvalue to 1e-3 and trace to 3 % of ResNet-20; PyHessian's trace takes as many probes as that needs."""
    import resnet
    from pyhessian import hessian

    module, data = resnet.minimum(options.images, options.epochs)
    exact = point([module], data, torch.float64)
    value: Any = hessian_top(exact, tolerance=1e-4).value
    truth, runs = float(value), []
    print(f"ResNet-20, {options.images} images, training loss {float(exact.loss()):.3g}, top eigenvalue {truth:.5g}")
    for seed in range(options.repetitions):
        at = point([module], data, torch.float32)
        first, error, products = top_of_ours(module, data, seed, truth, 1e-3)
        start = time.perf_counter()
        trace: Any = hessian_trace(at, seed=seed)
        own = (first, time.perf_counter() - start)
        torch.manual_seed(seed)
        start = time.perf_counter()
        of = hessian(module, nn.CrossEntropyLoss(), data=(data.x_train, data.y_train), cuda=False)
        setup = time.perf_counter() - start
        top, wrong = top_of_pyhessian(of, truth, 1e-3)
        start = time.perf_counter()
        probes = torch.tensor(of.trace(maxIter=options.probes, tol=0), dtype=torch.float64)
        each = (time.perf_counter() - start) / len(probes)
        del of  # its graph takes gigabytes
        module.zero_grad()
        spread = float(probes.std() / trace.value)  # of one probe
        theirs = (setup + top, each * (spread / 0.03) ** 2)
        need = (spread / 0.03) ** 2
        apart, noise = float(probes.mean() / trace.value) - 1, spread / len(probes) ** 0.5
        print(f"top    PyHessian {theirs[0]:.1f} s (error {wrong:.0e}), landscape {own[0]:.1f} s", end=" ")
        print(f"(error {error:.0e}, {products} products): {theirs[0] / own[0]:.2f}x")
        print(f"trace  PyHessian {theirs[1]:.0f} s ({need:.0f} probes of {each:.2f} s), landscape", end=" ")
        print(f"{own[1]:.1f} s: {theirs[1] / own[1]:.1f}x; {len(probes)} probes are off by {apart:+.1%}", end=" ")
        print(f"with a standard error of {noise:.1%}", flush=True)
        runs.append([*theirs, *own])
    a, b, c, d = torch.tensor(runs).sum(0).tolist()
    print(f"in all: top {a / c:.2f}x (target 1.5), trace {b / d:.1f}x (target 10)", end=", ")
    print(f"together {(a + b) / (c + d):.1f}x (target 6)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--nets", type=int, default=16)
    parser.add_argument("--rival-nets", type=int, default=4, help="how many of them the rivals measure")
    parser.add_argument("--net", default="mlp", choices=["mlp", "resnet20"])
    parser.add_argument("--images", type=int, default=512, help="of ResNet-20")
    parser.add_argument("--epochs", type=int, default=6, help="of its training")
    parser.add_argument("--probes", type=int, default=20, help="of PyHessian, that are timed on ResNet-20")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch, for both sides")
    parser.add_argument("--only", default="", help="rows of this name")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")  # of the rivals
    torch.eig = eig  # type: ignore[attr-defined]
    registry.load_plugins([])
    torch.manual_seed(0)
    if options.net == "resnet20":
        return residual_net(options)
    data = load(config.section("dataset", name="digits", train_size=1000))
    modules, _, _ = minima(data, options.nets)
    exact = point(modules, data, torch.float64)
    truth = {"trace": hessian_trace(exact).value, "top": hessian_top(exact, tolerance=1e-8).value}  # type: ignore[union-attr]
    truth["mean"] = truth["trace"] / exact.theta.shape[1]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; milliseconds a net, best of", end=" ")
    print(f"{options.repetitions} interleaved repetitions; error: median and largest, relative to float64")
    heads = f"{'rival':<10} {'its time':>10} {'error':>17} {'landscape':>10} {'error':>17}"
    print(f"{'':<6} {heads} {'ratio':>8} {'target':>7}")
    for name, rival, run, what, metric, target in rows(truth):
        if options.only not in ("", name):
            continue
        slow, fast = [], []
        few = options.nets if name == "top" else options.rival_nets  # a power iteration's steps vary with the start
        for _ in range(options.repetitions):
            torch.manual_seed(0)  # the same starts, so that the best repetition is not the luckiest one
            slow.append(run(what, modules[:few], data))
            fast.append(ours(metric, modules, data))
        columns, seconds = [], []
        for runs in (slow, fast):
            error = (runs[0][1] / truth[name][: len(runs[0][1])] - 1).abs()
            seconds.append(min(t for t, _ in runs))
            columns.append(f"{1e3 * seconds[-1]:>10.2f} {float(error.median()):>8.1e} {float(error.max()):>8.1e}")
        ratio = seconds[0] / seconds[1]
        print(f"{name:<6} {rival:<10} {columns[0]} {columns[1]} {ratio:>7.1f}x {target:>6.1f}x", flush=True)
    if options.only in ("", "tanh"):
        rest_of_tanh(data, 2)


if __name__ == "__main__":
    main()
