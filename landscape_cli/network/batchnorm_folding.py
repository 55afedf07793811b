"""BatchNorm folded into the layer before it: the same function with fewer layers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, fx, nn

from landscape_cli.network import Network, norm_layers
from landscape_cli.network.layers import Params

Fold = Callable[[Params, Params], Params]


def folded(network: Network, params: Params, buffers: Params, x: Tensor) -> tuple[Params, Params]:
    """The same functions with the scale of each BatchNorm moved into the layer before it.

    W' = s W and b' = s b + beta - s mean, with s = gamma / sqrt(var + eps); b' stays in the BatchNorm, which does
    nothing else, since not every layer has a place for it. A BatchNorm that follows no layer, or one with other
    readers, keeps s as its weight.

    Args:
        network: stacked, or without BatchNorm.
        params: name -> (K, *shape).
        buffers: the same.
        x: inputs, of which one is looked at for shapes.
    Returns: parameters, also those of BatchNorms that have none of their own, and buffers; name -> (K, *shape).
    """
    names = [name for name in norm_layers(network.module) if runs(network, name)]
    shapes = input_shapes(network, params, buffers, x) if names else {}
    params, buffers = dict(params), dict(buffers)
    for name in names:
        weight, bias, mean, var = (f"{name}.{part}" for part in ("weight", "bias", "running_mean", "running_var"))
        eps = float(network.module.get_submodule(name).eps)  # type: ignore[arg-type]
        s = (buffers[var] + eps).rsqrt()
        s = s * params[weight] if weight in params else s
        offset = params[bias] - s * buffers[mean] if bias in params else -s * buffers[mean]
        if host := host_of(network, name, shapes[name]):
            W, b = params[f"{host}.weight"], params.get(f"{host}.bias")
            params[f"{host}.weight"] = W * s.view(*s.shape, *[1] * (W.dim() - 2))
            if b is not None:
                offset, params[f"{host}.bias"] = offset + s * b, torch.zeros_like(b)
            s = torch.ones_like(s)
        params |= {weight: s, bias: offset}
        buffers |= {mean: torch.zeros_like(s), var: torch.full_like(s, 1 - eps)}
    return params, buffers


def runs(network: Network, name: str) -> bool:
    """Whether a layer is on the way from inputs to logits; where the network cannot be traced, every one is."""
    graph = network.graph
    return graph is None or any(node.op == "call_module" and node.target == name for node in graph.graph.nodes)


def host_of(network: Network, name: str, shape: tuple[int, ...]) -> str:
    """The layer whose outputs go to this BatchNorm, of that shape, and nowhere else; empty if there is none."""
    graph, module = network.graph, network.module
    assert graph is not None
    uses = [node for node in graph.graph.nodes if node.op == "call_module" and node.target == name]
    before = uses[0].args[0] if len(uses) == 1 else None
    if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) > 1:
        return ""
    layer = module.get_submodule(str(before.target))
    if isinstance(layer, nn.Linear):  # its outputs are channels only where nothing stands between it and the samples
        return str(before.target) if len(shape) == 2 else ""
    return str(before.target) if isinstance(layer, nn.Conv1d | nn.Conv2d) else ""


def input_shapes(network: Network, params: Params, buffers: Params, x: Tensor) -> dict[str, tuple[int, ...]]:
    """Shape of what comes into each layer with parameters or buffers, batch first; by one sample of minimum 0."""
    module, found = network.module, dict[str, tuple[int, ...]]()
    dtype = next(iter(params.values())).dtype

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
            found[name] = tuple(args[0].shape)

        return hook

    state = {n: t[0] for n, t in (params | buffers).items()}
    state = {n: t.to(dtype) if t.is_floating_point() else t for n, t in state.items()}
    x = x if x.dim() == network.input_dim else x[0]
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


def without_norms(network: Network, params: Params, buffers: Params, x: Tensor) -> tuple[Network, Fold]:
    """The network without the BatchNorm layers that follow a layer with weights, and what makes its parameters.

    Args:
        network: stays as it is where it is not stacked, or has no BatchNorm.
        params: name -> (K, *shape), for the shapes of the activations, as are the next two.
        buffers: the same.
        x: inputs.
    Returns: the network, and the function (params, buffers) -> params, W' = s W and b' = beta + s (b - mean), with
        s = gamma / sqrt(var + eps).
    """
    if network.graph is None or not network.normalizes:
        return network, lambda params, buffers: params
    shapes, graph = input_shapes(network, params, buffers, x), copy.deepcopy(network.graph)
    found = [
        (name, host_of(network, name, shapes[name])) for name in norm_layers(network.module) if runs(network, name)
    ]
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
