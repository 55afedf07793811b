"""BatchNorm folded into the layer before it: the same function with fewer layers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn

from landscape_cli.layers import Params
from landscape_cli.network import Network, norm_layers

if TYPE_CHECKING:  # which folds by this file
    from landscape_cli.objective import Objective

Fold = Callable[[Params, Params], Params]


def folded(of: Objective, theta: Tensor) -> tuple[Params, Params]:
    """The same functions with the scale of each BatchNorm moved into the layer before it.

    W' = s W and b' = s b + beta - s mean, with s = gamma / sqrt(var + eps); b' stays in the BatchNorm, which does
    nothing else, since not every layer has a place for it. A BatchNorm that follows no layer, or one with other
    readers, keeps s as its weight.

    Args:
        of: with a network that is stacked, or has no BatchNorm.
        theta: (K, p).
    Returns: parameters, also those of BatchNorms that have none of their own, and buffers; name -> (K, *shape).
    """
    params, buffers, module = dict(of.unflatten(theta)), dict(of.buffers), of.network.module
    names = [name for name in norm_layers(module) if runs(of, name)]
    shapes = input_shapes(of, theta) if names else {}
    for name in names:
        weight, bias, mean, var = (f"{name}.{part}" for part in ("weight", "bias", "running_mean", "running_var"))
        eps = float(module.get_submodule(name).eps)  # type: ignore[arg-type]
        s = (buffers[var] + eps).rsqrt()
        s = s * params[weight] if weight in params else s
        offset = params[bias] - s * buffers[mean] if bias in params else -s * buffers[mean]
        if host := host_of(of, name, shapes[name]):
            W, b = params[f"{host}.weight"], params.get(f"{host}.bias")
            params[f"{host}.weight"] = W * s.view(*s.shape, *[1] * (W.dim() - 2))
            if b is not None:
                offset, params[f"{host}.bias"] = offset + s * b, torch.zeros_like(b)
            s = torch.ones_like(s)
        params |= {weight: s, bias: offset}
        buffers |= {mean: torch.zeros_like(s), var: torch.full_like(s, 1 - eps)}
    return params, buffers


def runs(of: Objective, name: str) -> bool:
    """Whether a layer is on the way from inputs to logits; where the network cannot be traced, every one is."""
    graph = of.network.graph
    return graph is None or any(node.op == "call_module" and node.target == name for node in graph.graph.nodes)


def host_of(of: Objective, name: str, shape: tuple[int, ...]) -> str:
    """The layer whose outputs go to this BatchNorm, of that shape, and nowhere else; empty if there is none."""
    graph, module = of.network.graph, of.network.module
    assert graph is not None
    uses = [node for node in graph.graph.nodes if node.op == "call_module" and node.target == name]
    before = uses[0].args[0] if len(uses) == 1 else None
    if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) > 1:
        return ""
    layer = module.get_submodule(str(before.target))
    if isinstance(layer, nn.Linear):  # its outputs are channels only where nothing stands between it and the samples
        return str(before.target) if len(shape) == 2 else ""
    return str(before.target) if isinstance(layer, nn.Conv1d | nn.Conv2d) else ""


def input_shapes(of: Objective, theta: Tensor) -> dict[str, tuple[int, ...]]:
    """Shape of what comes into each layer with parameters or buffers, batch first; by one sample of minimum 0."""
    one, module, found = of.alone(0), of.network.module, dict[str, tuple[int, ...]]()
    dtype = theta.dtype

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
            found[name] = tuple(args[0].shape)

        return hook

    state = {n: t[0] for n, t in one.unflatten(theta[:1]).items()} | {n: t[0] for n, t in one.buffers.items()}
    state = {n: t.to(dtype) if t.is_floating_point() else t for n, t in state.items()}
    x = one.x if one.x.dim() == of.network.input_dim else one.x[0]
    hooks = [
        layer.register_forward_pre_hook(note(name))
        for name, layer in module.named_modules()
        if [*layer.parameters(recurse=False), *layer.buffers(recurse=False)]
    ]
    try:
        with torch.no_grad():
            torch.func.functional_call(module, state, (x[:1].to(dtype),))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def without_norms(of: Objective, theta: Tensor) -> tuple[Network, Fold]:
    """The network without the BatchNorm layers that follow a layer with weights, and what makes its parameters.

    Args:
        of: any objective; networks that are not stacked, or have no BatchNorm, stay as they are.
        theta: one minimum (1, p), for the shapes of the activations.
    Returns: the network, and the function (params, buffers) -> params, W' = s W and b' = beta + s (b - mean), with
        s = gamma / sqrt(var + eps).
    """
    network = of.network
    if network.graph is None or not network.normalizes:
        return network, lambda params, buffers: params
    shapes, graph = input_shapes(of, theta), copy.deepcopy(network.graph)
    found = [(name, host_of(of, name, shapes[name])) for name in norm_layers(network.module) if runs(of, name)]
    hosts = {name: host for name, host in found if host}
    for node in list(graph.graph.nodes):
        if node.op == "call_module" and node.target in hosts:
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)

    def fold(params: Params, buffers: Params) -> Params:
        light = dict(params)
        for name, host in hosts.items():
            eps = float(network.module.get_submodule(name).eps)  # type: ignore[arg-type]
            s = (buffers[f"{name}.running_var"] + eps).rsqrt()
            gamma, beta = (light.pop(f"{name}.{part}", None) for part in ("weight", "bias"))
            s = s if gamma is None else s * gamma
            W, b = light[f"{host}.weight"], light.get(f"{host}.bias", 0.0)
            offset = s * (b - buffers[f"{name}.running_mean"])
            light[f"{host}.weight"] = W * s.view(*s.shape, *[1] * (W.dim() - 2))
            light[f"{host}.bias"] = offset if beta is None else beta + offset
        return light

    return replace(network, graph=graph), fold
