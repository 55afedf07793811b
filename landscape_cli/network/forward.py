"""One network, K sets of weights: a forward pass for a whole stack of runs.

Activations of a stack have the shape (K, B, ...): run, sample, and what the layer is used to. Networks made of
layers in the tables of layers.py run on batched matrix products and grouped convolutions; any other runs by
`torch.func.vmap`, or one run after the other where vmap fails. `build` is the one place where that is decided.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
import torch.autograd.forward_ad as fwAD
import torch.nn.functional as F
from torch import Tensor, fx, nn

from landscape_cli.loss import SOFTMAX, Loss
from landscape_cli.network.layers import (
    CURVED,
    FRESH,
    FUNCTIONS,
    LAYERS,
    METHODS,
    PRODUCTS,
    RELUS,
    Params,
    Pass,
    Tap,
    relu_twice,
)
from landscape_cli.registry.errors import Fault


@dataclass(frozen=True)
class Chart:
    """Coordinates phi of parameters theta = h(phi), elementwise; `within` is the network that takes theta."""

    h: Callable[[Tensor], Tensor]
    within: Network
    linear: bool


@dataclass(frozen=True)
class Network:
    """A module and how to run a stack of its copies; `reason` says why if not `stacked`.

    One that is `charted` takes other coordinates phi of its parameters, theta = h(phi) elementwise.
    """

    module: nn.Module
    graph: fx.GraphModule | None
    kind: Literal["stacked", "vmap", "loop", "charted"]
    reason: str
    dtype: torch.dtype  # of the forward pass; parameters keep theirs
    input_dim: int  # dimensions of one batch, (B, ...)
    loss: Loss = SOFTMAX  # of what comes out
    chart: Chart | None = None

    def __call__(self, params: Params, buffers: Params, x: Tensor, how: Pass | None = None) -> Tensor:
        """Logits (K, B, C) for x of shape (B, ...), shared by all runs, or (K, B, ...).

        Args:
            params: name -> (K, *shape).
            buffers: name -> (K, *shape).
            x: inputs; shared or one batch a run, told apart by `shared(x)`.
            how: mode; evaluation by default.
        """
        if self.chart is not None:
            within = replace(self.chart.within, dtype=self.dtype)
            return within({n: self.chart.h(p) for n, p in params.items()}, buffers, x, how)
        K, how = len(next(iter(params.values()))), how or Pass()
        result = next(iter(params.values())).dtype
        if self.dtype != result:
            params, buffers, x = _cast(params, self.dtype), _cast(buffers, self.dtype), x.to(self.dtype)
        per_run = x.dim() > self.input_dim
        if self.kind == "stacked":
            out = _interpret(self, params, buffers, x if per_run else x.expand(K, *x.shape), how)
        elif self.kind == "vmap" and how.batchnorm == "fixed" and how.generators is None:
            call = torch.func.vmap(self._single, in_dims=(0, 0, 0 if per_run else None))
            out = call(params, buffers, x)
        else:
            rows = [({n: p[k] for n, p in params.items()}, {n: b[k] for n, b in buffers.items()}) for k in range(K)]
            out = torch.stack([self._alone(k, *row, x[k] if per_run else x, how) for k, row in enumerate(rows)])
        return out.to(result) if out.dtype != result else out

    @cached_property
    def normalizes(self) -> bool:
        """Whether it has BatchNorm layers."""
        return bool(norm_layers(self.module))

    @cached_property
    def drops(self) -> bool:
        """Whether it has dropout that does something."""
        return any(isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0 for m in self.module.modules())

    def _single(self, params: Params, buffers: Params, x: Tensor) -> Tensor:
        out: Tensor = torch.func.functional_call(self.module, (params, buffers), (x,))
        return out

    def _alone(self, k: int, params: Params, buffers: Params, x: Tensor, how: Pass) -> Tensor:
        """One run in PyTorch's own way; batch statistics by training mode, dropout by the run's generator."""
        training = how.batchnorm != "fixed" or how.generators is not None
        if not training:
            return self._single(params, buffers, x)
        moved = {n: b.clone() for n, b in buffers.items()}
        set_modes(self.module, norm=how.batchnorm != "fixed", dropout=how.generators is not None)
        try:
            with torch.random.fork_rng(devices=[]):
                if how.generators is not None:
                    torch.manual_seed(int(torch.randint(2**62, (1,), generator=how.generators[k])))
                return self._single(params, moved, x)
        finally:
            self.module.eval()


def build(
    module: nn.Module, input_shape: tuple[int, ...], dtype: torch.dtype = torch.float32, loss: Loss = SOFTMAX
) -> Network:
    """Decide how a stack of copies of this module is run.

    Args:
        module: any network that maps (B, *input_shape) to logits (B, C).
        input_shape: shape of one sample.
        dtype: of the forward pass; bfloat16 keeps parameters and logits in their own type.
        loss: of its logits.
    Raises: Fault for layers whose evaluation mode is no function of one sample, or whose dropout cannot be switched.
    """
    module = copy.deepcopy(module).eval()
    for name, layer in module.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and not layer.track_running_stats:
            raise Fault(f"model: {name} has track_running_stats=False: its samples mix even in evaluation mode")
    for layer in module.modules():  # of the copy: an activation that is overwritten cannot be differentiated twice
        if getattr(layer, "inplace", None) is True:
            with suppress(AttributeError):  # what a user's class computes cannot be set
                layer.inplace = False  # type: ignore[assignment]
    graph, reason = _trace(module)
    network = Network(module, graph, "stacked", "", dtype, len(input_shape) + 1, loss)
    if graph is not None and not (reason := _fault(network, input_shape)):
        return network
    network = replace(network, graph=None, kind="vmap", reason=reason)
    if fault := _fault(network, input_shape):
        return replace(network, kind="loop", reason=f"{reason}; vmap: {fault}")
    return network


def _fault(network: Network, input_shape: tuple[int, ...]) -> str:
    """Why two copies do not run on two samples; empty if they do."""
    params, buffers = stack([network.module, network.module])
    rng, dtype = torch.Generator().manual_seed(0), next(iter(params.values())).dtype
    params = {n: p + 0.1 * torch.randn(p.shape, generator=rng, dtype=dtype).to(p.device) for n, p in params.items()}
    x = torch.randn(2, *input_shape, generator=rng, dtype=dtype).to(next(iter(params.values())).device)
    plain = replace(network, dtype=dtype)
    try:
        with torch.no_grad():
            out = plain(params, buffers, x)
            runs = [tuple({n: t[k] for n, t in side.items()} for side in (params, buffers)) for k in (0, 1)]
            alone = [network._single(own, state, x) for own, state in runs]
    except Exception as error:
        return (str(error).splitlines() or [type(error).__name__])[0]
    if out.shape[1:] != alone[0].shape:
        return f"shape {tuple(out.shape[1:])} where {tuple(alone[0].shape)} is due"
    apart = float((out - torch.stack(alone)).abs().max())
    size = max(1.0, float(out.abs().max()))
    return (
        "" if apart <= 1e-3 * size else f"logits that are off by {apart:.2g}: its forward pass does what no trace shows"
    )


def stack(modules: list[nn.Module]) -> tuple[Params, Params]:
    """Parameters and floating-point buffers of K modules, each name -> (K, *shape)."""
    states = [dict(m.named_parameters()) for m in modules], [dict(m.named_buffers()) for m in modules]
    params, buffers = ({name: torch.stack([s[name].detach() for s in state]) for name in state[0]} for state in states)
    return params, buffers


def unstack(params: Params, k: int) -> dict[str, Tensor]:
    """The tensors of run k alone."""
    return {n: p[k].contiguous() for n, p in params.items()}


def set_modes(module: nn.Module, *, norm: bool, dropout: bool) -> None:
    """Put normalization and dropout layers in training mode, each on its own."""
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.train(norm)
        elif isinstance(layer, nn.modules.dropout._DropoutNd):
            layer.train(dropout)


def norm_layers(module: nn.Module) -> list[str]:
    """Names of the BatchNorm layers that keep running statistics."""
    kind = nn.modules.batchnorm._BatchNorm
    return [n for n, m in module.named_modules() if isinstance(m, kind) and m.track_running_stats]


def piecewise_linear(network: Network) -> bool:
    """Whether each logit is affine in each single parameter almost everywhere (METRICS section 5)."""
    if network.chart is not None:
        return network.chart.linear and piecewise_linear(network.chart.within)
    if network.graph is None:
        return False
    for node in network.graph.graph.nodes:
        if node.op == "call_module":
            if type(network.module.get_submodule(str(node.target))) in CURVED:
                return False
        elif node.op in ("call_function", "call_method"):
            two_activations = sum(isinstance(a, fx.Node) for a in (*node.args, *node.kwargs.values())) > 1
            if node.target in CURVED or (node.target in PRODUCTS and two_activations):
                return False
    return True  # no parameter is used twice, or `_trace` had given no graph


def _all_parameters(module: nn.Module) -> list[nn.Parameter]:
    return [p for _, p in module.named_parameters(remove_duplicate=False)]


def _cast(params: Params, dtype: torch.dtype) -> Params:
    return {n: p.to(dtype) if p.is_floating_point() else p for n, p in params.items()}


def _trace(module: nn.Module) -> tuple[fx.GraphModule | None, str]:
    """The traced module if every node of it has a stacked form; else None and the first that has not."""
    try:
        graph = fx.symbolic_trace(module)
    except Exception as error:
        return None, f"torch.fx cannot trace {type(module).__name__}: {str(error).splitlines()[0]}"
    if len(list(module.parameters())) < len(_all_parameters(module)):
        return None, "a parameter that two layers share has no stacked form"
    used: set[str] = set()
    for node in graph.graph.nodes:
        if node.target in (F.dropout, F.dropout1d, F.dropout2d):
            raise Fault("model: functional dropout cannot be switched on for training alone: use nn.Dropout")
        if reason := _unknown(module, node):
            return None, reason
        if node.kwargs.get("inplace"):
            node.update_kwarg("inplace", False)
        if node.op == "call_module" and any(True for _ in module.get_submodule(str(node.target)).parameters()):
            if node.target in used:  # its per-sample gradient is a sum, and the logits are not affine in its weights
                return None, f"{node.target}, a layer with parameters that is passed twice, has no stacked form"
            used.add(str(node.target))
    return graph, ""


def _unknown(module: nn.Module, node: fx.Node) -> str:
    if node.op == "call_module":
        layer = module.get_submodule(str(node.target))
        if type(layer) not in LAYERS:
            return f"{node.target} ({type(layer).__name__}) has no stacked form"
        if getattr(layer, "padding_mode", "zeros") != "zeros" or getattr(layer, "return_indices", False):
            return f"{node.target} ({layer}) has no stacked form"
    elif (node.op == "call_function" and node.target not in FUNCTIONS) or (
        node.op == "call_method" and node.target not in METHODS
    ):
        return f"{node.target} has no stacked form"
    elif node.op == "get_attr":
        return f"{node.target}, a parameter outside of a layer, has no stacked form"
    return ""


def _interpret(network: Network, params: Params, buffers: Params, x: Tensor, how: Pass) -> Tensor:
    """Run the traced module node by node on a stack; what is not needed any more is dropped."""
    assert network.graph is not None
    values: dict[fx.Node, Any] = {}
    waiting: dict[fx.Node, int] = {}  # readers still to come
    own = _own(network.module, params, buffers)
    for node in network.graph.graph.nodes:
        waiting[node] = len(node.users)
        if node.op == "placeholder":
            values[node] = x
            continue
        args = fx.map_arg(node.args, values.__getitem__)
        if node.op == "output":
            return args[0]  # type: ignore[no-any-return]
        kwargs = fx.map_arg(node.kwargs, values.__getitem__)
        layer = network.module.get_submodule(node.target) if node.op == "call_module" else None
        if how.twice and args and (node.target if layer is None else type(layer)) in RELUS:
            values[node] = relu_twice(args[0])
        elif layer is not None:
            if type(layer) is nn.ReLU and how.taps is None and _spare(network.module, node.args[0], args[0]):
                values[node] = torch.relu_(args[0])
            else:
                values[node] = _apply(layer, own.get(node.target, {}), args[0], how, node.target)
        else:
            values[node] = (FUNCTIONS if node.op == "call_function" else METHODS)[node.target](*args, **kwargs)
        for read in node.all_input_nodes:
            waiting[read] -= 1
            if not waiting[read]:
                del values[read]
    raise AssertionError("a traced module ends in an output node")


def _spare(module: nn.Module, node: fx.Node, x: Tensor) -> bool:
    """Whether x, the output of a layer with weights, is read once and needed by no slope: it can be overwritten."""
    if len(node.users) > 1 or node.op != "call_module":
        return False
    if torch.is_grad_enabled():
        return type(x.grad_fn).__name__ == "_DenseBackward" and not x._is_view()
    return isinstance(module.get_submodule(str(node.target)), FRESH)


def _apply(layer: nn.Module, own: Params, x: Tensor, how: Pass, name: str) -> Tensor:
    out = LAYERS[type(layer)](layer, own, x, how, name)
    if how.taps is not None and any(True for _ in layer.parameters()):
        out = out if out.requires_grad else out + out.new_zeros((), requires_grad=True)
        how.taps.append(Tap(name, layer, off_graph(x), out))
    return out


def moving(params: Params, along: Params) -> Params:
    """Parameters that carry a tangent each; inside of a `fwAD.dual_level`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PyTorch compiles its own rules by a function it calls outdated
        return {n: fwAD.make_dual(p, along[n]) for n, p in params.items()}


def off_graph(x: Tensor) -> Tensor:
    """x without its graph, with its tangent if it has one."""
    value, tangent = fwAD.unpack_dual(x)
    out: Tensor = value.detach() if tangent is None else fwAD.make_dual(value.detach(), tangent.detach())
    return out


def _own(module: nn.Module, params: Params, buffers: Params) -> dict[str, Params]:
    """Layer name -> its parameters and buffers under their short names."""
    own: dict[str, Params] = {}
    for name, tensor in (params | buffers).items():
        layer, _, short = name.rpartition(".")
        own.setdefault(layer, {})[short] = tensor
    return own


__all__ = [
    "Network",
    "Params",
    "Pass",
    "Tap",
    "build",
    "moving",
    "norm_layers",
    "off_graph",
    "piecewise_linear",
    "set_modes",
    "stack",
    "unstack",
]
