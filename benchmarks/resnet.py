"""A ResNet-20 minimum on images in the shape of CIFAR-10's, for the benchmarks; nothing is downloaded."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from landscape_cli import config, network
from landscape_cli.data.datasets import Data
from landscape_cli.network.batchnorm_statistics import collect_statistics
from landscape_cli.network.models import build_module


def images(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Real digits blown up to 3 x 32 x 32 pixels in three tints, mean 0 and variance 1, and their numbers."""
    found = load_digits()
    rng = torch.Generator().manual_seed(seed)
    index = torch.randperm(len(found.target), generator=rng)[:n]
    x = F.interpolate(torch.tensor(found.images[index], dtype=torch.float32)[:, None], size=32, mode="bilinear")
    x = (x - x.mean()) / x.std()
    return torch.cat([x, 0.9 * x, 0.8 * x], 1), torch.tensor(found.target[index], dtype=torch.int64)


def minimum(n: int, epochs: int) -> tuple[nn.Module, Data]:
    """Trained on n images by SGD of batch 64; BatchNorm's statistics are those of all of them."""
    x, y = images(n)
    module = build_module(config.section("model", name="resnet"), (3, 32, 32), 10, 0)
    module = module.to(memory_format=torch.channels_last)
    optimizer, rng = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9), torch.Generator().manual_seed(0)
    module.train()
    for _ in range(epochs):
        for index in torch.randperm(n, generator=rng).split(64):
            optimizer.zero_grad()
            F.cross_entropy(module(x[index]), y[index]).backward()
            optimizer.step()
    module = module.to(memory_format=torch.contiguous_format).eval()
    module.zero_grad()
    params, buffers = network.stack([module])
    own = collect_statistics(network.build(module, (3, 32, 32)), params, buffers, x)
    module.load_state_dict({name: b[0] for name, b in own.items()}, strict=False)
    return module, Data(x, y, x[:64], y[:64], 10)
