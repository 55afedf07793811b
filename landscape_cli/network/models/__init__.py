"""Models: each one function `(input_shape, num_classes, *, settings) -> nn.Module`, one file a family."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from landscape_cli.network.models import convolutional, dense, published, residual
from landscape_cli.registry import REGISTRY, Named
from landscape_cli.registry.errors import Fault, reason

__all__ = ["build_module", "convolutional", "dense", "published", "residual"]


def build_module(spec: Named, input_shape: tuple[int, ...], num_classes: int, seed: int) -> nn.Module:
    """The module that a config names, initialized by PyTorch's own rules from a seed.

    Args:
        spec: the section of the config: a name, and the settings of that model.
        input_shape: shape of one sample.
        num_classes: number of logits.
        seed: of the initialization; the process's generators are left as they were.
    Raises: Fault if the model does not take such inputs.
    """
    entry = REGISTRY["model"][spec.name]
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # layers of size 0, which then fail
            torch.manual_seed(seed)
            module: nn.Module = entry.function(input_shape, num_classes, **entry.given(spec))
            if not any(True for _ in module.parameters()):
                raise Fault(f"model.name: {spec.name!r} has no parameters: there is nothing to train")
            outputs = module.eval()(torch.zeros(2, *input_shape, dtype=next(module.parameters()).dtype))
    except Fault:
        raise
    except (Exception, SystemExit) as error:
        wrong = f"does not take inputs of shape {tuple(input_shape)} ({reason(error)})"
        raise Fault(f"model.name: {spec.name!r} {wrong}") from error
    if why := _no_logits(outputs, 2, num_classes):
        raise Fault(f"model.name: {spec.name!r} gives {why}")
    return module


def _no_logits(outputs: Any, samples: int, classes: int) -> str:
    """What a model gives where it gives no logits (samples, classes), and the remedy; empty if it does."""
    remedy = f"return the logits alone, a tensor (samples, {classes})"
    if not isinstance(outputs, Tensor):
        return f"{_kind(outputs)} for a batch: {remedy}"
    shape = tuple(outputs.shape)
    if len(shape) != 2:
        return f"a tensor {shape} for {samples} samples: {remedy}"
    if shape[0] != samples:
        return f"{shape[0]} rows for {samples} samples: each sample needs its own"
    if shape[1] != classes:
        return f"{shape[1:]} values a sample, {classes} are due"
    if not outputs.is_floating_point():
        return f"numbers of type {str(outputs.dtype).removeprefix('torch.')}: return the logits, which are real"
    return ""


def _kind(outputs: Any) -> str:
    """A value that is no tensor, in a few words."""
    kind = type(outputs).__name__
    if outputs is None:
        return "nothing (None)"
    if isinstance(outputs, Mapping):
        return f"a {kind} with keys {', '.join(map(str, outputs))}"
    if isinstance(outputs, tuple | list):
        return f"a {kind} of {len(outputs)}"
    return f"a {kind}"
