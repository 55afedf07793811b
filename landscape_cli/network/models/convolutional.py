"""Small convolutional networks for images and signals."""

from __future__ import annotations

from math import prod
from typing import Literal

from torch import nn

from landscape_cli.network.models.residual import initialize
from landscape_cli.registry import Count, model


@model
def cnn(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    channels: list[Count] = [16, 32],  # noqa: B006  # read, never written
    batchnorm: bool = False,
) -> nn.Module:
    """Plain convolutional net: 3 x 3 convolutions, each halving the image by max pooling, and one dense layer.

    Args:
        input_shape: (channels, height, width).
        num_classes: number of logits.
        channels: filters of each convolution.
        batchnorm: normalize before each activation.
    """
    layers: list[nn.Module] = []
    wide, height, width = input_shape
    for filters in channels:
        layers.append(nn.Conv2d(wide, filters, 3, padding=1))
        layers += [nn.BatchNorm2d(filters)] if batchnorm else []
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
        wide, height, width = filters, height // 2, width // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(wide * height * width, num_classes))


@model
def cnn1d(input_shape: tuple[int, ...], num_classes: int, *, channels: Count = 25) -> nn.Module:
    """The convolutional net of the MNIST-1D paper: three strided convolutions and one dense layer.

    Args:
        input_shape: (channels, length), or (length,), taken as one channel.
        num_classes: number of logits.
        channels: filters of each convolution; 25 in the paper (5,210 parameters on 40 points).
    Source: Greydanus & Kobak 2024, appendix; kernels 5, 3, 3, stride 2, padding 1.
    """
    wide, length = input_shape if len(input_shape) == 2 else (1, *input_shape)
    layers: list[nn.Module] = [] if len(input_shape) == 2 else [nn.Unflatten(1, (1, length))]
    for kernel in (5, 3, 3):
        layers += [nn.Conv1d(wide, channels, kernel, stride=2, padding=1), nn.ReLU()]
        wide, length = channels, (length + 2 - kernel) // 2 + 1
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * length, num_classes))


@model
def lenet(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """LeNet-5 with ReLU and max pooling; images below 20 pixels get padding so that both pools fit.

    Args:
        input_shape: (channels, height, width), at least 8 x 8.
        num_classes: number of logits.
    Source: LeCun et al. 1998, section II.B; subsampling by maximum, as is usual today.
    """
    channels, *sides = input_shape
    padding = 0 if min(sides) >= 20 else 2
    after = [((s + 2 * padding - 4) // 2 + 2 * padding - 4) // 2 for s in sides]
    return nn.Sequential(
        nn.Conv2d(channels, 6, 5, padding=padding),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5, padding=padding),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * prod(after), 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, num_classes),
    )


STAGES = {  # 3 x 3 convolutions between two pools, and their channels in units of the width
    9: [(1, 1), (1, 2), (2, 4), (2, 8)],
    11: [(1, 1), (1, 2), (2, 4), (2, 8), (2, 8)],
    16: [(2, 1), (2, 2), (3, 4), (3, 8), (3, 8)],
}


@model
def vgg(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    depth: Literal[9, 11, 16] = 9,
    width: Count = 64,
    norm: Literal["batch", "none"] = "batch",
) -> nn.Module:
    """VGG for small images: stages of 3 x 3 convolutions with pools between, and three dense layers.

    Args:
        input_shape: (channels, height, width); pools that a small image has no room for are left out.
        num_classes: number of logits.
        depth: layers with weights.
        width: channels of the first stage, up to 8 times as many in the last and in the dense layers.
        norm: before each activation, but for the dense layers.
    Source: Simonyan & Zisserman 2015, table 1, configurations A and D; 9: Keskar et al. 2017 and Li et al. 2018.
    """
    layers: list[nn.Module] = []
    wide, *sides = input_shape
    for convolutions, factor in STAGES[depth]:
        for _ in range(convolutions):
            layers.append(nn.Conv2d(wide, factor * width, 3, padding=1, bias=norm == "none"))
            layers += [nn.BatchNorm2d(factor * width)] if norm == "batch" else []
            layers.append(nn.ReLU())
            wide = factor * width
        if min(sides) > 1:
            layers.append(nn.MaxPool2d(2))
            sides = [side // 2 for side in sides]
    layers += [nn.Flatten(), nn.Linear(wide * prod(sides), 8 * width), nn.ReLU()]
    layers += [nn.Linear(8 * width, 8 * width), nn.ReLU(), nn.Linear(8 * width, num_classes)]
    return initialize(nn.Sequential(*layers))
