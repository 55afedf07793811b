"""Networks, and points around their minima, for tests of surfaces."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from conftest import build_module, some_data
from torch import nn

from landscape_cli import network
from landscape_cli.curvature.objective import Objective, flatten
from landscape_cli.surface.directions import random_directions
from landscape_cli.surface.values import Slice

NETS: list[tuple[dict[str, Any], tuple[int, ...]]] = [
    ({"name": "mlp", "hidden": [7]}, (6,)),
    ({"name": "mlp", "hidden": [7], "batchnorm": True}, (6,)),
    ({"name": "cnn", "channels": [4], "batchnorm": True}, (1, 8, 8)),
    ({"name": "resnet", "width": 2}, (1, 8, 8)),
    ({"name": "wide_resnet", "depth": 10, "widen": 1}, (1, 8, 8)),
    ({"name": "resnet", "width": 2, "norm": "group"}, (1, 8, 8)),
]


def place(
    spec: dict[str, Any], shape: tuple[int, ...], dtype: torch.dtype = torch.float64, **more: Any
) -> tuple[Slice, nn.Module]:
    module = build_module(spec, shape, 3, 0).double()
    rng = torch.Generator().manual_seed(1)
    for name, b in module.named_buffers():
        if name.endswith("var"):
            b.copy_(0.5 + torch.rand(b.shape, generator=rng))
        elif name.endswith("mean"):
            b.copy_(torch.randn(b.shape, generator=rng))
    for p in module.parameters():
        if p.dim() == 1:  # offsets, and BatchNorm's, which begin at 0 and 1
            p.data += 0.3 * torch.randn(p.shape, generator=rng)
    module.to(dtype)
    data = some_data(30, shape)
    net = network.build(module, shape, dtype)
    params, buffers = network.stack([module])
    sides = {
        "train": Objective(net, params, buffers, data.x_train.to(dtype), data.y_train),
        "test": Objective(net, params, buffers, data.x_test.to(dtype), data.y_test),
    }
    X, Y = (flatten(d)[0] for d in random_directions(params, "filter", "biasbn", 0, 0, 2))
    return Slice(sides, flatten(params).double(), X, Y, **more), module.eval()


def plain(module: nn.Module, theta: torch.Tensor, at: Objective) -> tuple[float, float]:
    state = {n: t[0] for n, t in at.unflatten(theta).items()}
    module.load_state_dict(state, strict=False)
    with torch.no_grad():
        z = module(at.x)
    return float(F.cross_entropy(z, at.y)), float((z.argmax(1) == at.y).double().mean())


def dense(module: nn.Module, at: Objective, theta: torch.Tensor) -> torch.Tensor:
    """The Hessian of the mean cross-entropy, by PyTorch's own differentiation of the plain module in eval mode."""

    def loss(flat: torch.Tensor) -> torch.Tensor:
        state = {n: t[0] for n, t in at.unflatten(flat[None]).items()} | {n: b[0] for n, b in at.buffers.items()}
        return F.cross_entropy(torch.func.functional_call(module, state, (at.x,)), at.y)

    H: torch.Tensor = torch.autograd.functional.hessian(loss, theta.flatten())
    return H
