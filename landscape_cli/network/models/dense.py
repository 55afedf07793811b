"""Dense networks."""

from __future__ import annotations

from math import prod
from typing import Literal

from torch import nn

from landscape_cli.registry import Count, model

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "leaky_relu": nn.LeakyReLU,
}
Activation = Literal["relu", "tanh", "gelu", "leaky_relu"]


@model
def linear(input_shape: tuple[int, ...], num_classes: int, *, bias: bool = True) -> nn.Module:
    """Softmax regression.

    Args:
        input_shape: of one sample; it is flattened.
        num_classes: number of logits.
        bias: whether the logits have an offset.
    """
    return nn.Sequential(nn.Flatten(), nn.Linear(prod(input_shape), num_classes, bias=bias))


@model
def mlp(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    hidden: list[Count] = [100, 100],  # noqa: B006  # read, never written
    activation: Activation = "relu",
    bias: bool = True,
    batchnorm: bool = False,
) -> nn.Module:
    """Multilayer perceptron on flattened inputs.

    Args:
        input_shape: of one sample; it is flattened.
        num_classes: number of logits.
        hidden: width of each hidden layer.
        activation: after each hidden layer.
        bias: whether the layers have offsets.
        batchnorm: normalize before each activation.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    width = prod(input_shape)
    for wide in hidden:
        layers.append(nn.Linear(width, wide, bias=bias))
        layers += [nn.BatchNorm1d(wide)] if batchnorm else []
        layers.append(ACTIVATIONS[activation]())
        width = wide
    return nn.Sequential(*layers, nn.Linear(width, num_classes, bias=bias))
