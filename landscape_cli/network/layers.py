"""Layers on a stack: what each does with K sets of weights at once, and how a pass is told what to do.

A layer's function takes the module (for its settings), its own parameters and buffers, x of shape (K, B, ...), the
pass, and its name; it returns (K, B, ...).
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Params = dict[str, Tensor]  # name as in state_dict -> (K, *shape)


@dataclass
class Tap:
    """What a layer with parameters saw in one pass: enough for per-sample gradients."""

    name: str
    layer: nn.Module
    x: Tensor  # its input (K, B, ...), out of the graph: what is made of it must not keep the activations
    out: Tensor  # its output, in the graph


@dataclass
class Pass:
    """How one forward pass is to treat what depends on the mode.

    Args:
        batchnorm: `fixed` uses the buffers; `batch` the statistics of this batch; `collect` does so too, and
            stores them (mean and biased variance) in `statistics`, which makes a full-set pass exact.
        ghost: with `batch`, the statistics are those of so many samples each (Hoffer et al. 2017, section 4).
        generators: one per run, for dropout; None switches dropout off.
        taps: filled with one Tap a layer with parameters, in order, if not None.
        statistics: see `collect`.
        only: with `fixed`, the one layer whose statistics are stored, too.
        twice: whether the gradient is to be differentiated again, by reverse mode.
    """

    batchnorm: Literal["fixed", "batch", "collect"] = "fixed"
    ghost: int | None = None
    generators: list[torch.Generator] | None = None
    taps: list[Tap] | None = None
    statistics: Params = field(default_factory=dict)
    only: str = ""
    twice: bool = False


def _affine(x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
    if 4 * W.shape[1] < W.shape[2]:  # few outputs, the logits
        return torch.bmm(W, x.mT).mT if b is None else torch.baddbmm(b[:, :, None], W, x.mT).mT
    return torch.bmm(x, W.mT) if b is None else torch.baddbmm(b[:, None], x, W.mT)


class _Dense(torch.autograd.Function):
    """x W^T + b for a stack, ordered so that no product has a narrow last axis, which takes 2 to 4 times as long."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, W)
        ctx.save_for_forward(x, W)
        return _affine(x, W, b)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        (g,), (x, W), need = slopes, ctx.saved_tensors, ctx.needs_input_grad
        if need[1] and torch.is_grad_enabled():  # the graph of the gradient is kept, to differentiate it again
            slopes = _DenseSlopes.apply(g, x, W, need[0], need[2])
            return slopes
        return (
            torch.bmm(g, W) if need[0] else None,
            torch.bmm(g.mT, x) if need[1] else None,
            g.sum(1) if need[2] else None,
        )

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        (dx, dW, db), (x, W) = tangents, ctx.saved_tensors
        out = x.new_zeros(*x.shape[:2], W.shape[1]) if dx is None else torch.bmm(dx, W.mT)
        out = out if dW is None else torch.baddbmm(out, x, dW.mT)
        out = out if db is None else out + db[:, None]
        return out.mT.contiguous().mT if 4 * W.shape[1] < W.shape[2] else out  # laid out as the output


class _DenseSlopes(torch.autograd.Function):
    """The slopes of a dense layer; differentiated by hand, since autograd's own way mixes memory layouts.

    An elementwise function of two tensors that are laid out differently takes 20 times as long.
    """

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, W: Tensor, by_x: bool, by_b: bool) -> tuple[Tensor | None, ...]:
        ctx.save_for_backward(g, x, W)
        return torch.bmm(g, W) if by_x else None, torch.bmm(g.mT, x), g.sum(1) if by_b else None

    @staticmethod
    def backward(ctx: Any, *along: Tensor | None) -> tuple[Tensor | None, ...]:
        (home, own, offset), (g, x, W) = along, ctx.saved_tensors
        assert own is not None
        slope = _affine(x, own, offset)
        if home is not None and 4 * W.shape[1] < W.shape[2]:
            slope.mT.baddbmm_(W, home.mT)
        elif home is not None:
            slope.baddbmm_(home, W.mT)
        by_x = torch.bmm(g, own) if ctx.needs_input_grad[1] else None
        return slope, by_x, None if home is None else torch.bmm(g.mT, home), None, None


class _ReLU(torch.autograd.Function):
    """max(x, 0); its slope is 0 or 1 and has no slope itself, for which autograd's own makes zeros and adds them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out = torch.relu(x)
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Tensor:
        gated: Tensor = _Gate.apply(*slopes, *ctx.saved_tensors)
        return gated


class _Gate(torch.autograd.Function):
    """g where x > 0."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        gated: Tensor = torch.ops.aten.threshold_backward(g, x, 0)
        return gated

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None]:
        return _Gate.apply(*slopes, *ctx.saved_tensors), None


def relu_twice(x: Tensor) -> Tensor:
    """max(x, 0) for a gradient that is to be differentiated again, by reverse mode."""
    out: Tensor = _ReLU.apply(x)
    return out


def _linear(layer: Any, own: Params, x: Tensor, how: Pass, name: str) -> Tensor:
    shape = x.shape
    x = x if x.dim() == 3 else x.flatten(1, -2)
    out: Tensor = _Dense.apply(x, own["weight"], own.get("bias"))
    wide: Tensor = out if len(shape) == 3 else out.unflatten(1, shape[1:-1])
    return wide


class _Convolution(torch.autograd.Function):
    """A convolution for a gradient that is to be differentiated again, by reverse mode: `_DenseSlopes` says how.

    PyTorch's own way takes one of the slopes as a convolution with kernels as large as images, which is slow.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, b: Tensor | None, how: Any) -> Tensor:
        ctx.save_for_backward(x, W)
        ctx.how = how
        return torch.convolution(x, W, b, *how)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        (g,), (x, W), need = slopes, ctx.saved_tensors, ctx.needs_input_grad
        if need[1] and torch.is_grad_enabled():
            return (*_ConvolutionSlopes.apply(g, x, W, need[0], need[2], ctx.how), None)
        return (*_convolution_slopes(g, x, W, need[:3], ctx.how), None)


class _ConvolutionSlopes(torch.autograd.Function):
    """The slopes of a convolution; differentiated by hand."""

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, W: Tensor, by_x: bool, by_b: bool, how: Any
    ) -> tuple[Tensor | None, ...]:
        ctx.save_for_backward(g, x, W)
        ctx.how = how
        return _convolution_slopes(g, x, W, (by_x, True, by_b), how)

    @staticmethod
    def backward(ctx: Any, *along: Tensor | None) -> tuple[Tensor | None, ...]:
        (home, own, offset), (g, x, W) = along, ctx.saved_tensors
        assert own is not None
        slope, by_x, by_W = torch.convolution(x, own, offset, *ctx.how), None, None
        if home is not None:
            slope.add_(torch.convolution(home, W, None, *ctx.how))
            by_W = _convolution_slopes(g, home, W, (False, True, False), ctx.how)[1]
        if ctx.needs_input_grad[1]:
            by_x = _convolution_slopes(g, x, own, (True, False, False), ctx.how)[0]
        return slope, by_x, by_W, None, None, None


def _convolution_slopes(g: Tensor, x: Tensor, W: Tensor, need: tuple[bool, ...], how: Any) -> tuple[Tensor | None, ...]:
    """Those of <g, x * W + b> by x, W and b, as far as needed."""
    slopes = torch.ops.aten.convolution_backward(g, x, W, [g.shape[1]], *how, list(need))
    return tuple(s if wanted else None for s, wanted in zip(slopes, need, strict=True))


def _convolve(layer: Any, x: Tensor, W: Tensor, b: Tensor | None, groups: int, twice: bool) -> Tensor:
    """The convolution of one run, or of several as groups of channels."""
    if twice and not isinstance(layer.padding, str):
        how = (layer.stride, layer.padding, layer.dilation, False, (0,) * (W.dim() - 2), groups)
        out: Tensor = _Convolution.apply(x, W, b, how)
        return out
    convolve = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[W.dim()]
    return convolve(x, W, b, layer.stride, layer.padding, layer.dilation, groups)


def _conv(layer: Any, own: Params, x: Tensor, how: Pass, name: str) -> Tensor:
    W, K = own["weight"], len(own["weight"])
    bias = own["bias"].flatten() if "bias" in own else None
    if K == 1 and x.dim() == 5:  # alone, channels last is faster; what comes out stays so
        one, kernel = (t.squeeze(0).contiguous(memory_format=torch.channels_last) for t in (x, W))
        return _convolve(layer, one, kernel, bias, layer.groups, how.twice).unsqueeze(0)
    if x.stride(0) == 0 and layer.groups == 1:
        out = _convolve(layer, x[0], W.flatten(0, 1), bias, 1, how.twice)
    else:
        out = _convolve(layer, _join(x), W.flatten(0, 1), bias, K * layer.groups, how.twice)
    return _split(out, K)


def _batchnorm(layer: Any, own: Params, x: Tensor, how: Pass, name: str) -> Tensor:
    if how.batchnorm == "batch":
        scale, shift = (own[n].flatten() if n in own else None for n in ("weight", "bias"))
        together = _join(x)
        parts = together.tensor_split(max(1, len(together) // (how.ghost or len(together))))
        normal = [  # not F.batch_norm, which refuses a single sample
            torch.batch_norm(part, scale, shift, None, None, True, 0.0, layer.eps, True) for part in parts
        ]
        return _split(torch.cat(normal) if len(normal) > 1 else normal[0], len(x))
    over = [1, *range(3, x.dim())]
    as_channels = (slice(None), None, slice(None), *[None] * (x.dim() - 3))
    fixed = how.batchnorm == "fixed" and layer.track_running_stats
    if not fixed or how.only == name:
        mean, var = x.mean(over), x.var(over, unbiased=False)
        how.statistics |= {f"{name}.running_mean": mean, f"{name}.running_var": var}
    if fixed:
        mean, var = own["running_mean"], own["running_var"]
    scale = (var + layer.eps).rsqrt()
    scale = scale * own["weight"] if "weight" in own else scale
    shift = own["bias"] - mean * scale if "bias" in own else -mean * scale
    out: Tensor = x * scale[as_channels] + shift[as_channels]
    return out


def _groupnorm(layer: Any, own: Params, x: Tensor, how: Pass, name: str) -> Tensor:
    out = group_normal(layer, x)
    if not layer.affine:
        return out
    as_channels = (slice(None), None, slice(None), *[None] * (x.dim() - 3))
    scaled: Tensor = out * own["weight"][as_channels] + own["bias"][as_channels]
    return scaled


def group_normal(layer: nn.GroupNorm, x: Tensor) -> Tensor:
    """What a GroupNorm layer scales and shifts: each sample's groups with mean 0 and variance 1; x (K, B, C, ...)."""
    groups = x.unflatten(2, (layer.num_groups, -1)).flatten(3)  # by hand: PyTorch's own has no forward over reverse
    var, mean = torch.var_mean(groups, 3, correction=0, keepdim=True)
    normal: Tensor = ((groups - mean) * (var + layer.eps).rsqrt()).view(x.shape)
    return normal


def _dropout(layer: Any, own: Params, x: Tensor, how: Pass, name: str) -> Tensor:
    if how.generators is None or layer.p == 0:
        return x
    draws = [torch.rand(x.shape[1:], generator=g, dtype=x.dtype) for g in how.generators]
    share = float(layer.p)
    return x * (torch.stack(draws).to(x.device) >= share) / (1 - share)


def _flatten(layer: Any, own: Params, x: Tensor, how: Pass, name: str) -> Tensor:
    return _flatten_call(x, layer.start_dim, layer.end_dim)


def _unflatten(layer: Any, own: Params, x: Tensor, how: Pass, name: str) -> Tensor:
    out: Tensor = x.unflatten(_shift(layer.dim), layer.unflattened_size)
    return out


def _elementwise(layer: Any, own: Params, x: Tensor, how: Pass, name: str) -> Tensor:
    out: Tensor = layer(x)
    return out


def _pool(layer: Any, own: Params, x: Tensor, how: Pass, name: str) -> Tensor:
    return _split(layer(_join(x)), len(x))


def _join(x: Tensor) -> Tensor:
    """(K, B, C, ...) -> (B, K C, ...): runs become groups of channels."""
    return x.transpose(0, 1).flatten(1, 2)


def _split(x: Tensor, K: int) -> Tensor:
    """(B, K C, ...) -> (K, B, C, ...), a view."""
    out: Tensor = x.unflatten(1, (K, -1))
    return out.transpose(0, 1)


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


Layer = Callable[[Any, Params, Tensor, Pass, str], Tensor]
POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)
PIECEWISE = (nn.ReLU, nn.LeakyReLU, nn.ReLU6, nn.Hardtanh, nn.Identity)
SMOOTH_LAYERS = (nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.ELU, nn.SELU, nn.CELU, nn.Softplus, nn.Softsign, nn.Mish)
LAYERS: dict[type[nn.Module], Layer] = {
    nn.Linear: _linear,
    **dict.fromkeys((nn.Conv1d, nn.Conv2d), _conv),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d), _batchnorm),
    nn.GroupNorm: _groupnorm,
    nn.Dropout: _dropout,
    **dict.fromkeys(POOLS, _pool),
    **dict.fromkeys((*PIECEWISE, *SMOOTH_LAYERS), _elementwise),
    nn.ZeroPad3d: _elementwise,  # the last three dimensions
    nn.Flatten: _flatten,
    nn.Unflatten: _unflatten,
}
FRESH = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d)  # never hand on what they are given
RELUS = (nn.ReLU, F.relu, torch.relu, "relu", "relu_")
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
CURVED = SMOOTH | {nn.GroupNorm}  # not piecewise linear in what comes in
