"""BatchNorm's population statistics: mean and variance of what comes into each layer, over a whole training set."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from landscape_cli.network import Network, memory, norm_layers, set_modes, unstack
from landscape_cli.network.layers import Params, Pass, Tap


def collect_statistics(network: Network, params: Params, buffers: Params, x: Tensor) -> Params:
    """Buffers with BatchNorm's mean and biased variance over all of x, layer after layer (METRICS, notation).

    Args:
        x: the whole training set (n, ...), evaluated in one pass; where that does not fit into memory, in one pass a
            layer and in pieces.
    """
    if not network.normalizes:
        return buffers
    with torch.no_grad():
        if network.kind == "stacked":
            pieces = x.split(max(2, memory.pieces(widest(network, params, buffers, x[:1]), memory.WHOLE)))
            how = Pass(batchnorm="collect")
            if len(pieces) == 1:
                network(params, buffers, x, how)
                return buffers | how.statistics
            for name in _in_order(network):
                buffers = buffers | _layer_statistics(network, params, buffers, pieces, name)
            return buffers
        K = len(next(iter(params.values())))
        rows = [_statistics_alone(network, unstack(params, k), unstack(buffers, k), x) for k in range(K)]
    return {n: torch.stack([row[n] for row in rows]) for n in buffers}


def widest(network: Network, params: Params, buffers: Params, one: Tensor) -> int:
    """Bytes of the largest activation of one sample in all runs, for a network that runs on the stack."""
    taps: list[Tap] = []
    with torch.no_grad():
        network(params, buffers, one, Pass(taps=taps))
    return max(t.numel() * t.element_size() for tap in taps for t in (tap.x, tap.out))


def _in_order(network: Network) -> list[str]:
    """BatchNorm layers that keep statistics, as they are passed."""
    assert network.graph is not None
    known = norm_layers(network.module)
    return [str(n.target) for n in network.graph.graph.nodes if n.op == "call_module" and n.target in known]


def _layer_statistics(network: Network, params: Params, buffers: Params, pieces: Sequence[Tensor], name: str) -> Params:
    """Mean and biased variance of what comes into one layer, from those of the pieces, in float64."""
    found, weights = [], torch.tensor([len(x) for x in pieces], dtype=torch.float64)
    for x in pieces:
        how = Pass(only=name)
        network(params, buffers, x, how)
        found.append([how.statistics[f"{name}.running_{part}"] for part in ("mean", "var")])
    share = (weights / weights.sum())[:, None, None].to(pieces[0].device)
    means, variances = (torch.stack(side).double() for side in zip(*found, strict=True))
    mean = (share * means).sum(0)
    var = (share * (variances + (means - mean).square())).sum(0)
    like = found[0][0]
    return {f"{name}.running_mean": mean.to(like), f"{name}.running_var": var.to(like)}


def _statistics_alone(network: Network, params: Params, buffers: Params, x: Tensor) -> Params:
    """As `collect_statistics` for one run of a network that is not stacked, by PyTorch's own momentum of 1."""
    module, moved = network.module, {n: b.clone() for n, b in buffers.items()}
    layers = [module.get_submodule(n) for n in norm_layers(module)]
    momenta = [layer.momentum for layer in layers]
    inputs: dict[nn.Module, int] = {}  # values a channel; layers may run in another order than they are registered
    hooks = [
        layer.register_forward_pre_hook(lambda own, a: inputs.update({own: a[0].numel() // a[0].shape[1]}))
        for layer in layers
    ]
    set_modes(module, norm=True, dropout=False)
    try:
        for layer in layers:
            layer.momentum = 1.0  # type: ignore[assignment]
        network._single(params, moved, x)
    finally:
        module.eval()
        for layer, momentum, hook in zip(layers, momenta, hooks, strict=True):
            layer.momentum = momentum
            hook.remove()
    passed = {name: inputs.get(module.get_submodule(name)) for name in norm_layers(module)}
    for name, n in ((name, n) for name, n in passed.items() if n):  # what is not passed keeps its statistics
        moved[f"{name}.running_var"] = moved[f"{name}.running_var"] * ((n - 1) / n)  # torch keeps the unbiased one
        moved[f"{name}.num_batches_tracked"] = buffers[f"{name}.num_batches_tracked"]
    return moved
