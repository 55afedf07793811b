"""Residual networks for images."""

from __future__ import annotations

from math import gcd
from typing import Literal

import torch
from torch import Tensor, nn

from landscape_cli.registry import Count, Share, model

Norm = Literal["batch", "group", "none"]


def normalization(norm: Norm, channels: int) -> list[nn.Module]:
    """The layer that normalizes so many channels: none, per channel over the batch, or in 8 groups per sample."""
    if norm == "none":
        return []
    return [nn.BatchNorm2d(channels) if norm == "batch" else nn.GroupNorm(gcd(8, channels), channels)]


def initialize(module: nn.Module) -> nn.Module:
    """Convolutions from N(0, 2 / fan_in), with offsets 0 (He et al. 2015, eq. 10); other layers stay as they are."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return module


class Residual(nn.Module):
    """f(x) + x, with every other pixel of x and channels of zeros put to it where f changes the shape; or f(x)."""

    def __init__(self, f: nn.Module, shortcut: nn.Module | None) -> None:
        super().__init__()
        self.f, self.shortcut = f, shortcut

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, height, width), before the activation."""
        out: Tensor = self.f(x)
        return out if self.shortcut is None else out + self.shortcut(x)


@model
def resnet(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    depth: Literal[20, 32, 56, 110] = 20,
    width: Count = 16,
    shortcuts: bool = True,
    norm: Norm = "batch",
) -> nn.Module:
    """ResNet for small images: three stages of blocks of two 3 x 3 convolutions; shortcuts without parameters.

    Args:
        input_shape: (channels, height, width).
        num_classes: number of logits.
        depth: layers with weights on the way; 0.27, 0.46, 0.85 and 1.7 million parameters at width 16.
        width: channels of the first stage; twice and four times as many in the others, at half and a quarter of the
            side.
        shortcuts: whether each block adds its input to its output; without, the same layers in a row.
        norm: after each convolution, which has an offset only where there is none.
    Source: He et al. 2016, section 4.2, shortcuts of type A; without shortcuts: Li et al. 2018, section 5.
    """

    def block(wide: int, channels: int, stride: int) -> nn.Module:
        f = nn.Sequential(
            nn.Conv2d(wide, channels, 3, stride, 1, bias=norm == "none"),
            *normalization(norm, channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, 1, 1, bias=norm == "none"),
            *normalization(norm, channels),
        )
        if not shortcuts:
            return Residual(f, None)
        more = channels - wide
        short: list[nn.Module] = [nn.MaxPool2d(1, stride)] if stride > 1 else []  # a pool of one pixel: every other one
        short += [nn.ZeroPad3d((0, 0, 0, 0, more // 2, more - more // 2))] if more else []
        return Residual(f, nn.Sequential(*short) if short else nn.Identity())

    layers: list[nn.Module] = [nn.Conv2d(input_shape[0], width, 3, 1, 1, bias=norm == "none")]
    layers += [*normalization(norm, width), nn.ReLU()]
    wide = width
    for stage in range(3):
        for i in range((depth - 2) // 6):
            layers += [block(wide, width << stage, 2 if stage and i == 0 else 1), nn.ReLU()]
            wide = width << stage
    return initialize(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(wide, num_classes)))


class PreActivated(nn.Module):
    """x + f(a(x)), or s(a(x)) + f(a(x)) where f changes the shape, with a = ReLU of a normalized x."""

    def __init__(self, a: nn.Module, f: nn.Module, s: nn.Module | None) -> None:
        super().__init__()
        self.a, self.f, self.s = a, f, s

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, height, width)."""
        active = self.a(x)
        return torch.add(self.f(active), x if self.s is None else self.s(active))


@model
def wide_resnet(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    depth: Literal[10, 16, 22, 28, 40] = 16,
    widen: Count = 4,
    dropout: Share = 0.0,
) -> nn.Module:
    """Wide ResNet: few blocks of many channels, normalized before each convolution.

    Args:
        input_shape: (channels, height, width).
        num_classes: number of logits.
        depth: layers with weights on the way.
        widen: channels of the stages are 16, 32 and 64 times so many; 28-10 has 36.5 million parameters.
        dropout: share of activations dropped between the two convolutions of a block.
    Source: Zagoruyko & Komodakis 2016, section 2.
    """

    def block(wide: int, channels: int, stride: int) -> nn.Module:
        a = nn.Sequential(nn.BatchNorm2d(wide), nn.ReLU())
        f = nn.Sequential(
            nn.Conv2d(wide, channels, 3, stride, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            *([nn.Dropout(dropout)] if dropout else []),
            nn.Conv2d(channels, channels, 3, 1, 1, bias=False),
        )
        same = wide == channels and stride == 1
        return PreActivated(a, f, None if same else nn.Conv2d(wide, channels, 1, stride, bias=False))

    layers: list[nn.Module] = [nn.Conv2d(input_shape[0], 16, 3, 1, 1, bias=False)]
    wide = 16
    for stage in range(3):
        for i in range((depth - 4) // 6):
            layers.append(block(wide, widen * 16 << stage, 2 if stage and i == 0 else 1))
            wide = widen * 16 << stage
    layers += [nn.BatchNorm2d(wide), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return initialize(nn.Sequential(*layers, nn.Linear(wide, num_classes)))
