"""One network, K sets of weights: a forward pass for a whole stack of runs.

Activations of a stack have the shape (K, B, ...): run, sample, and what the layer is used to. Networks made of
layers in the tables below run on batched matrix products and grouped convolutions; any other runs by
`torch.func.vmap`, or one run after the other where vmap fails. `build` is the one place where that is decided.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

Params = dict[str, Tensor]  # name as in state_dict -> (K, *shape)


@dataclass
class Tap:
    """What a layer with parameters saw in one pass: enough for per-sample gradients."""

    name: str
    layer: nn.Module
    x: Tensor  # its input (K, B, ...)
    out: Tensor  # its output, in the graph


@dataclass
class Pass:
    """How one forward pass is to treat what depends on the mode.

    Args:
        batchnorm: `fixed` uses the buffers; `batch` the statistics of this batch; `collect` does so too, and
            stores them (mean and biased variance) in `statistics`, which makes a full-set pass exact.
        generators: one per run, for dropout; None switches dropout off.
        taps: filled with one Tap a layer with parameters, in order, if not None.
        statistics: see `collect`.
    """

    batchnorm: Literal["fixed", "batch", "collect"] = "fixed"
    generators: list[torch.Generator] | None = None
    taps: list[Tap] | None = None
    statistics: Params = field(default_factory=dict)


@dataclass(frozen=True)
class Network:
    """A module and how to run a stack of its copies; `reason` says why if not `stacked`."""

    module: nn.Module
    graph: fx.GraphModule | None
    kind: Literal["stacked", "vmap", "loop"]
    reason: str
    dtype: torch.dtype  # of the forward pass; parameters keep theirs

    def __call__(self, params: Params, buffers: Params, x: Tensor, how: Pass | None = None) -> Tensor:
        """Logits (K, B, C) for x of shape (B, ...), shared by all runs, or (K, B, ...).

        Args:
            params: name -> (K, *shape).
            buffers: name -> (K, *shape).
            x: inputs; shared or one batch a run, told apart by `shared(x)`.
            how: mode; evaluation by default.
        """
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

    @property
    def input_dim(self) -> int:
        """Dimensions of one batch, (B, ...)."""
        return int(self.module.input_dim)  # type: ignore[arg-type]  # set by `build`

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


def build(module: nn.Module, input_shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Network:
    """Decide how a stack of copies of this module is run.

    Args:
        module: any network that maps (B, *input_shape) to logits (B, C).
        input_shape: shape of one sample.
        dtype: of the forward pass; bfloat16 keeps parameters and logits in their own type.
    """
    module = copy.deepcopy(module).eval()
    module.input_dim = len(input_shape) + 1
    for layer in module.modules():
        if hasattr(layer, "inplace"):
            layer.inplace = False  # an activation that is overwritten cannot be differentiated twice
    graph, reason = _trace(module)
    if graph is not None:
        return Network(module, graph, "stacked", "", dtype)
    params, buffers = stack([module, module])
    network = Network(module, None, "vmap", reason, dtype)
    try:
        network(params, buffers, torch.zeros(2, *input_shape, dtype=next(iter(params.values())).dtype))
    except Exception as error:
        return Network(module, None, "loop", f"{reason}; vmap: {str(error).splitlines()[0]}", dtype)
    return network


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


def collect_statistics(network: Network, params: Params, buffers: Params, x: Tensor) -> Params:
    """Buffers with BatchNorm's mean and biased variance over all of x, layer after layer (METRICS, notation).

    Args:
        x: the whole training set (n, ...), evaluated in one pass.
    """
    if not norm_layers(network.module):
        return buffers
    how = Pass(batchnorm="collect")
    with torch.no_grad():
        if network.kind == "stacked":
            network(params, buffers, x, how)
            return buffers | how.statistics
        rows = [_statistics_alone(network, unstack(params, k), unstack(buffers, k), x) for k in range(_count(params))]
    return {n: torch.stack([row[n] for row in rows]) for n in buffers}


def norm_layers(module: nn.Module) -> list[str]:
    """Names of the BatchNorm layers that keep running statistics."""
    kind = nn.modules.batchnorm._BatchNorm
    return [n for n, m in module.named_modules() if isinstance(m, kind) and m.track_running_stats]


def piecewise_linear(network: Network) -> bool:
    """Whether each logit is affine in each single parameter almost everywhere (METRICS section 5)."""
    if network.graph is None:
        return False
    used: list[str] = []
    for node in network.graph.graph.nodes:
        if node.op == "call_module":
            layer = network.module.get_submodule(str(node.target))
            used += [str(node.target)] if any(True for _ in layer.parameters()) else []
            if type(layer) in SMOOTH:
                return False
        elif node.op in ("call_function", "call_method"):
            two_activations = sum(isinstance(a, fx.Node) for a in node.args) > 1
            if node.target in SMOOTH or (node.target in PRODUCTS and two_activations):
                return False
    return len(used) == len(set(used))  # a layer that is passed twice makes the logits quadratic in its weights


def _all_parameters(module: nn.Module) -> list[nn.Parameter]:
    return [p for _, p in module.named_parameters(remove_duplicate=False)]


def _count(params: Params) -> int:
    return len(next(iter(params.values())))


def _cast(params: Params, dtype: torch.dtype) -> Params:
    return {n: p.to(dtype) if p.is_floating_point() else p for n, p in params.items()}


def _statistics_alone(network: Network, params: Params, buffers: Params, x: Tensor) -> Params:
    """As `collect_statistics` for one run of a network that is not stacked, by PyTorch's own momentum of 1."""
    module, moved = network.module, {n: b.clone() for n, b in buffers.items()}
    layers = [module.get_submodule(n) for n in norm_layers(module)]
    momenta = [layer.momentum for layer in layers]
    inputs: list[int] = []
    hooks = [
        layer.register_forward_pre_hook(lambda _, a: inputs.append(a[0].numel() // a[0].shape[1])) for layer in layers
    ]
    set_modes(module, norm=True, dropout=False)
    try:
        for layer in layers:
            layer.momentum = 1.0
        network._single(params, moved, x)
    finally:
        module.eval()
        for layer, momentum, hook in zip(layers, momenta, hooks, strict=True):
            layer.momentum = momentum
            hook.remove()
    for name, n in zip(norm_layers(module), inputs, strict=True):
        moved[f"{name}.running_var"] = moved[f"{name}.running_var"] * ((n - 1) / n)  # torch keeps the unbiased one
        moved[f"{name}.num_batches_tracked"] = buffers[f"{name}.num_batches_tracked"]
    return moved


# ---- stacked layers: (layer, its parameters and buffers, x of shape (K, B, ...), how, name) -> (K, B, ...)


class _Dense(torch.autograd.Function):
    """x W^T + b for a stack. Its slopes are ordered so that no product has a narrow last axis, which costs 4 times."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, W)
        return torch.bmm(x, W.mT) if b is None else torch.baddbmm(b[:, None], x, W.mT)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        (g,), (x, W), need = slopes, ctx.saved_tensors, ctx.needs_input_grad
        return (
            torch.bmm(g, W) if need[0] else None,
            torch.bmm(g.mT, x) if need[1] else None,
            g.sum(1) if need[2] else None,
        )


def _linear(layer: nn.Module, own: Params, x: Tensor, how: Pass, name: str) -> Tensor:
    shape = x.shape
    x = x if x.dim() == 3 else x.flatten(1, -2)
    out: Tensor = _Dense.apply(x, own["weight"], own.get("bias"))  # type: ignore[no-untyped-call]
    return out if len(shape) == 3 else out.unflatten(1, shape[1:-1])


def _conv(layer: nn.Module, own: Params, x: Tensor, how: Pass, name: str) -> Tensor:
    W, K = own["weight"], len(own["weight"])
    convolve = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[W.dim() - 1]
    bias = own["bias"].flatten() if "bias" in own else None
    at = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
    if x.stride(0) == 0 and layer.groups == 1:
        out = convolve(x[0], W.flatten(0, 1), bias, **at)
    else:
        out = convolve(_join(x), W.flatten(0, 1), bias, groups=K * layer.groups, **at)  # type: ignore[operator]
    return _split(out, K)


def _batchnorm(layer: nn.Module, own: Params, x: Tensor, how: Pass, name: str) -> Tensor:
    over = [1, *range(3, x.dim())]
    as_channels = (slice(None), None, slice(None), *[None] * (x.dim() - 3))
    if how.batchnorm == "fixed" and layer.track_running_stats:
        mean, var = own["running_mean"], own["running_var"]
    else:
        mean, var = x.mean(over), x.var(over, unbiased=False)
    if how.batchnorm == "collect" and layer.track_running_stats:
        how.statistics |= {f"{name}.running_mean": mean, f"{name}.running_var": var}
    scale = (var + layer.eps).rsqrt()
    if "weight" in own:
        scale = scale * own["weight"]
    shift = own["bias"] - mean * scale if "bias" in own else -mean * scale
    return x * scale[as_channels] + shift[as_channels]


def _dropout(layer: nn.Module, own: Params, x: Tensor, how: Pass, name: str) -> Tensor:
    if how.generators is None or layer.p == 0:
        return x
    draws = [torch.rand(x.shape[1:], generator=g, dtype=x.dtype) for g in how.generators]
    keep = torch.stack(draws).to(x.device) >= layer.p
    return x * keep / (1 - layer.p)  # type: ignore[operator]


def _flatten(layer: nn.Module, own: Params, x: Tensor, how: Pass, name: str) -> Tensor:
    return _flatten_call(x, layer.start_dim, layer.end_dim)


def _unflatten(layer: nn.Module, own: Params, x: Tensor, how: Pass, name: str) -> Tensor:
    return x.unflatten(_shift(layer.dim), layer.unflattened_size)


def _elementwise(layer: nn.Module, own: Params, x: Tensor, how: Pass, name: str) -> Tensor:
    out: Tensor = layer(x)
    return out


def _pool(layer: nn.Module, own: Params, x: Tensor, how: Pass, name: str) -> Tensor:
    return _split(layer(_join(x)), len(x))


def _join(x: Tensor) -> Tensor:
    """(K, B, C, ...) -> (B, K C, ...): runs become groups of channels."""
    return x.transpose(0, 1).flatten(1, 2)


def _split(x: Tensor, K: int) -> Tensor:
    """(B, K C, ...) -> (K, B, C, ...), a view."""
    return x.unflatten(1, (K, -1)).transpose(0, 1)


def _flatten_call(x: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    return x.flatten(_shift(start_dim), _shift(end_dim))


def _shift(dim: int) -> int:
    """A dimension of one run's activation, as one of the stack's."""
    return dim + 1 if dim >= 0 else dim


def _cat(tensors: list[Tensor], dim: int = 0) -> Tensor:
    return torch.cat(tensors, _shift(dim))


def _mean(x: Tensor, dim: Any, keepdim: bool = False) -> Tensor:
    return x.mean([_shift(d) for d in (dim if isinstance(dim, list | tuple) else [dim])], keepdim)


def _pooled(pool: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda x, *a, **k: _split(pool(_join(x), *a, **k), len(x))


Layer = Callable[[nn.Module, Params, Tensor, Pass, str], Tensor]
POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)
PIECEWISE = (nn.ReLU, nn.LeakyReLU, nn.ReLU6, nn.Hardtanh, nn.Identity)
SMOOTH_LAYERS = (nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.ELU, nn.SELU, nn.CELU, nn.Softplus, nn.Softsign, nn.Mish)
LAYERS: dict[type[nn.Module], Layer] = {
    nn.Linear: _linear,
    **dict.fromkeys((nn.Conv1d, nn.Conv2d), _conv),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d), _batchnorm),
    nn.Dropout: _dropout,
    **dict.fromkeys(POOLS, _pool),
    **dict.fromkeys((*PIECEWISE, *SMOOTH_LAYERS), _elementwise),
    nn.Flatten: _flatten,
    nn.Unflatten: _unflatten,
}
SMOOTH_FUNCTIONS = (torch.tanh, torch.sigmoid, F.gelu, F.silu, F.elu, F.softplus, F.tanh, F.sigmoid)
PRODUCTS = (operator.mul, torch.mul)
FUNCTIONS: dict[Any, Callable[..., Any]] = {
    **{f: f for f in (operator.add, operator.sub, torch.add, torch.sub, *PRODUCTS, operator.neg)},
    **{f: f for f in (F.relu, torch.relu, F.leaky_relu, *SMOOTH_FUNCTIONS)},
    operator.iadd: operator.add,
    torch.flatten: _flatten_call,
    torch.cat: _cat,
    torch.mean: _mean,
    **{f: _pooled(f) for f in (F.max_pool1d, F.max_pool2d, F.avg_pool1d, F.avg_pool2d)},
    **{f: _pooled(f) for f in (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d)},
}
METHODS: dict[str, Callable[..., Any]] = {
    "flatten": _flatten_call,
    "mean": _mean,
    "add": torch.add,
    "add_": torch.add,
    "relu": torch.relu,
    "relu_": torch.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "contiguous": lambda x: x,
}
SMOOTH = {*SMOOTH_LAYERS, *SMOOTH_FUNCTIONS, "tanh", "sigmoid"}


def _trace(module: nn.Module) -> tuple[fx.GraphModule | None, str]:
    """The traced module if every node of it has a stacked form; else None and the first that has not."""
    try:
        graph = fx.symbolic_trace(module)
    except Exception as error:
        return None, f"torch.fx cannot trace {type(module).__name__}: {str(error).splitlines()[0]}"
    if len(list(module.parameters())) < len(_all_parameters(module)):
        return None, "a parameter that two layers share has no stacked form"
    for node in graph.graph.nodes:
        if reason := _unknown(module, node):
            return None, reason
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
    own = _own(network.module, params, buffers)
    for node in network.graph.graph.nodes:
        if node.op == "placeholder":
            values[node] = x
            continue
        args = fx.map_arg(node.args, values.__getitem__)
        if node.op == "output":
            return args[0]  # type: ignore[no-any-return]
        kwargs = fx.map_arg(node.kwargs, values.__getitem__)
        if node.op == "call_module":
            values[node] = _apply(
                network.module.get_submodule(node.target), own.get(node.target, {}), args[0], how, node.target
            )
        else:
            values[node] = (FUNCTIONS if node.op == "call_function" else METHODS)[node.target](*args, **kwargs)
    raise AssertionError("a traced module ends in an output node")


def _apply(layer: nn.Module, own: Params, x: Tensor, how: Pass, name: str) -> Tensor:
    out = LAYERS[type(layer)](layer, own, x, how, name)
    if how.taps is not None and any(True for _ in layer.parameters()):
        out = out if out.requires_grad else out.detach().requires_grad_()
        how.taps.append(Tap(name, layer, x, out))
    return out


def _own(module: nn.Module, params: Params, buffers: Params) -> dict[str, Params]:
    """Layer name -> its parameters and buffers under their short names."""
    own: dict[str, Params] = {}
    for name, tensor in (params | buffers).items():
        layer, _, short = name.rpartition(".")
        own.setdefault(layer, {})[short] = tensor
    return own
