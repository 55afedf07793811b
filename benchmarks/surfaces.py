"""Planes through minima against the loss-landscapes package, and against the matrix products that they consist of.

Both sides take our filter-normalized directions, and the points of the package's own loop, in which every other column
lies a step aside. ResNet-20 has BatchNorm's population statistics, which we fold and the package does not. The package
is no dependency of ours: `pip install --no-deps --target SOMEWHERE loss-landscapes`, and SOMEWHERE on PYTHONPATH.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from curvature import minima
from resnet import minimum
from torch import Tensor, nn

from landscape_cli import config, network, registry
from landscape_cli.curvature.objective import Objective, flatten
from landscape_cli.data.datasets import Data, load
from landscape_cli.surface.directions import random_directions
from landscape_cli.surface.values import Slice

LAYOUTS = ((16, 500), (8, 1000), (64, 250))  # points and samples of a product; the fastest is the limit


def place(module: nn.Module, data: Data, dtype: torch.dtype = torch.float32) -> Slice:
    """The plane of a minimum, on its training data alone."""
    params, buffers = network.stack([module])
    net = network.build(module, data.input_shape, dtype)
    X, Y = (flatten(d)[0] for d in random_directions(params, "filter", "biasbn", 0, 0, 2))
    sides = {"train": Objective(net, params, buffers, data.x_train, data.y_train)}
    return Slice(sides, flatten(params).double(), X, Y)


def staggered(steps: int, reach: float) -> Tensor:
    """Where the package's loop evaluates (steps^2, 2), column after column: even ones are a step further along Y."""
    i, j = torch.meshgrid(*[torch.arange(steps, dtype=torch.float64)] * 2, indexing="ij")
    return torch.stack([i, j + 1 - i % 2], 2).flatten(0, 1) * (2 * reach / steps) - reach


def ours(at: Slice, xy: Tensor) -> Tensor:
    """Losses, with accuracies made on the way."""
    return torch.cat([at.scores(some)[:, 0, 0] for some in xy.split(at.together)])


def package(module: nn.Module, at: Slice, data: Data, steps: int, reach: float) -> Tensor:
    """Losses by the package's own loop, from the corner of the plane."""
    import loss_landscapes
    from loss_landscapes.metrics import Loss

    ends = []
    for x, y in ((-reach, -reach), (reach, -reach), (-reach, reach)):
        theta = at.points(torch.tensor([[x, y]], dtype=torch.float64))
        ends.append(copy.deepcopy(module))
        ends[-1].load_state_dict({n: t[0] for n, t in at.sides["train"].unflatten(theta).items()}, strict=False)
    metric = Loss(F.cross_entropy, data.x_train, data.y_train)
    found = loss_landscapes.planar_interpolation(*ends, metric, steps=steps)
    return torch.as_tensor(found, dtype=torch.float64).flatten()


def products(module: nn.Module, n: int, points: int, layout: tuple[int, int]) -> None:
    """Nothing but the matrix products of a plane through an MLP, the first layer's with them, into memory at hand."""
    rows, samples = layout
    jobs = []
    for layer in (m for m in module.modules() if isinstance(m, nn.Linear)):
        x, W = torch.randn(rows, samples, layer.in_features), torch.randn(rows, *layer.weight.shape)
        x = x if jobs else x[:1].expand_as(x)  # all points share the inputs
        narrow = layer.out_features * 4 < layer.in_features  # which is faster the other way round
        a, b = (W, x.mT) if narrow else (x, W.mT)
        jobs.append((a, b, torch.empty(rows, a.shape[1], b.shape[2])))
    for _ in range(round(n / samples * points / rows)):
        for a, b, out in jobs:
            torch.bmm(a, b, out=out)


def clocked(run: Callable[[], Tensor | None]) -> tuple[float, Tensor | None]:
    start = time.perf_counter()
    value = run()
    return time.perf_counter() - start, value


def interleaved(ways: dict[str, Callable[[], Tensor | None]], repetitions: int) -> dict[str, tuple[float, Tensor]]:
    """Best seconds of each, and its first value."""
    found: dict[str, list[tuple[float, Tensor | None]]] = {name: [] for name in ways}
    for _ in range(repetitions):
        for name, run in ways.items():
            found[name].append(clocked(run))
    return {name: (min(t for t, _ in own), own[0][1]) for name, own in found.items()}  # type: ignore[misc]


def compare(name: str, module: nn.Module, data: Data, steps: int, options: argparse.Namespace) -> None:
    """One net: both precisions against the package; an MLP also against its products."""
    at, xy = place(module, data), staggered(steps, options.reach)
    net = at.sides["train"].network
    low = replace(at, sides={"train": replace(at.sides["train"], network=replace(net, dtype=torch.bfloat16))})
    ways: dict[str, Callable[[], Tensor | None]] = {
        "package": lambda: package(module, at, data, steps, options.reach),
        "float32": lambda: ours(at, xy),
        "bfloat16": lambda: ours(low, xy),
    }
    dense = name == "mlp"
    if dense:
        ways |= {str(o): lambda o=o: products(module, len(data.y_train), len(xy), o) for o in LAYOUTS}  # type: ignore[misc]
    with torch.no_grad():
        found = interleaved(ways, options.repetitions)
    theirs, due = found["package"]
    print(f"{name:<10} package    {1e3 * theirs / len(xy):>9.2f} ms a point; losses {due.min():.3g} to {due.max():.3g}")
    targets = {"float32": "" if dense else "1.8", "bfloat16": "2.0" if dense else "3.0"}
    for way, target in targets.items():
        seconds, value = found[way]
        error = float(((value - due).abs() / due).max())
        print(
            f"{name:<10} {way:<10} {1e3 * seconds / len(xy):>9.2f} {theirs / seconds:>6.2f}x {target:>7} {error:>9.1e}"
        )
    if dense:
        limit = min(found[str(layout)][0] for layout in LAYOUTS)
        own = found["float32"][0]
        print(f"{name:<10} products   {1e3 * limit / len(xy):>9.2f} ms a point, {limit:.2f} s in all;", end=" ")
        print(f"float32 takes {own:.2f} s, {own / limit:.2f} times that (target 2)", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--points", type=int, default=51, help="along a side, of the digits MLP")
    parser.add_argument("--steps", type=int, default=2, help="along a side, of ResNet-20")
    parser.add_argument("--images", type=int, default=1024, help="of ResNet-20")
    parser.add_argument("--epochs", type=int, default=2, help="of its training")
    parser.add_argument("--reach", type=float, default=1.0, help="the plane goes from -reach to reach")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch, for both sides")
    parser.add_argument("--only", default="", choices=["", "mlp", "resnet20"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    registry.load_plugins([])
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; best of {options.repetitions} interleaved")
    print(f"{'net':<10} {'way':<10} {'ms/point':>9} {'ratio':>7} {'target':>7} {'error':>9}")
    if options.only != "resnet20":
        data = load(config.section("dataset", name="digits", train_size=1000))
        compare("mlp", minima(data, 1)[0][0].eval(), data, options.points, options)
    if options.only != "mlp":
        compare("resnet20", *minimum(options.images, options.epochs), options.steps, options)


if __name__ == "__main__":
    main()
