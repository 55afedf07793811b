"""Models of other people's, as they are."""

from __future__ import annotations

from difflib import get_close_matches

from torch import nn

from landscape_cli.registry import model
from landscape_cli.registry.errors import Fault


@model
def torchvision(input_shape: tuple[int, ...], num_classes: int, *, arch: str) -> nn.Module:
    """Any classification model of torchvision, untrained.

    Args:
        input_shape: (3, height, width); most need at least 32 x 32, some 224 x 224 pixels.
        num_classes: number of logits.
        arch: its name there, such as resnet18, mobilenet_v2 or vit_b_16.
    Raises: Fault if there is none of that name.
    Source: torchvision.models; auxiliary classifiers are left out.
    """
    from torchvision import models

    known = models.list_models(module=models)
    if arch not in known:
        near = get_close_matches(arch, known, 1)
        raise Fault(f"model.arch: torchvision has no {arch!r}" + (f", did you mean {near[0]!r}?" if near else ""))
    alone = {"aux_logits": False, "init_weights": True} if arch in ("googlenet", "inception_v3") else {}
    made: nn.Module = models.get_model(arch, weights=None, num_classes=num_classes, **alone)
    return made
