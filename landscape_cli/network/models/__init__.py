"""Models: each one function `(input_shape, num_classes, *, settings) -> nn.Module`, one file a family."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from landscape_cli.network.models import convolutional, dense, published, residual
from landscape_cli.registry import REGISTRY
from landscape_cli.registry.errors import Fault, reason

__all__ = ["build_module", "convolutional", "dense", "published", "residual"]


def build_module(spec: dict[str, Any], input_shape: tuple[int, ...], num_classes: int, seed: int) -> nn.Module:
    """The module that a config names, initialized by PyTorch's own rules from a seed.

    Args:
        spec: {"name": ..., settings}.
        input_shape: shape of one sample.
        num_classes: number of logits.
        seed: of the initialization; the process's generators are left as they were.
    Raises: Fault if the model does not take such inputs.
    """
    entry = REGISTRY["model"][spec["name"]]
    settings = {k: v for k, v in spec.items() if k != "name"}
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # layers of size 0, which then fail
            torch.manual_seed(seed)
            module: nn.Module = entry.function(input_shape, num_classes, **settings)
            logits = module.eval()(torch.zeros(2, *input_shape, dtype=next(module.parameters()).dtype))
    except Fault:
        raise
    except (Exception, SystemExit) as error:
        wrong = f"does not take inputs of shape {tuple(input_shape)} ({reason(error)})"
        raise Fault(f"model.name: {spec['name']!r} {wrong}") from error
    if logits.shape != (2, num_classes):
        raise Fault(
            f"model.name: {spec['name']!r} gives {tuple(logits.shape[1:])} values a sample, {num_classes} are due"
        )
    return module
