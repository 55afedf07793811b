"""Norms: the baselines that flatness must beat (METRICS section 7)."""

from __future__ import annotations

import operator
from typing import Literal

import torch
from torch import Tensor, nn

from landscape_cli.curvature.objective import Objective
from landscape_cli.metrics.point import Estimate, Point, exact, nothing
from landscape_cli.network import memory, norm_layers
from landscape_cli.network.batchnorm_folding import folded, input_shapes, runs
from landscape_cli.network.layers import PRODUCTS
from landscape_cli.registry import metric

Conv = Literal["matrix", "fft"]
DIFFERENCES = (operator.sub, torch.sub, operator.neg)
SIGNED = (operator.add, operator.iadd, torch.add, "add", "add_", *PRODUCTS)  # with a negative constant they subtract
SATURATING = (nn.ReLU6, nn.Hardtanh)


@metric(
    invariant="permutation", source="Jiang et al. 2020, appendix C", default=True, direction="none", cost="a sum over p"
)
def weight_norm(at: Point) -> Estimate:
    """Euclidean length of all parameters, |theta|.

    Args:
        at: K minima.
    Returns: (K,), in parameter units; exact.
    """
    return exact(torch.linalg.vector_norm(at.theta.double(), dim=1))


@metric(
    invariant="permutation", source="Jiang et al. 2020, appendix C", default=True, direction="none", cost="a sum over p"
)
def distance_from_init(at: Point) -> Estimate:
    """Euclidean distance from the parameters before training, |theta - theta_0|.

    Args:
        at: K minima.
    Returns: (K,), in parameter units; undefined for a checkpoint that does not hold theta_0.
    """
    if at.initial is None:
        return nothing(at, "the checkpoint does not hold the initial parameters")
    return exact(torch.linalg.vector_norm(at.theta.double() - at.initial.double(), dim=1))


@metric(invariant="permutation,global,smooth", source="definition", direction="none", cost="nothing, a count")
def parameter_count(at: Point) -> Estimate:
    """Number of trained parameters, p.

    Args:
        at: K minima.
    Returns: (K,), in units of parameters; exact.
    """
    return exact(torch.full((len(at.theta),), at.theta.shape[1], dtype=torch.float64, device=at.theta.device))


@metric(
    invariant="permutation,scale",
    source="Bartlett et al. 2017, eq. 1.2; Sedghi et al. 2019, theorem 6 (fft)",
    direction="none",
    cost="the largest singular value of each weight; with fft, of one matrix a frequency",
)
def spectral_norm_product(at: Point, *, conv: Conv = "matrix") -> Estimate:
    """Product over layers of the spectral norm of the weight, prod_k |W_k|_2, BatchNorm folded.

    The scale of a BatchNorm belongs to the weight of the layer before it; where that is no layer (a sum, say), it is
    one of its own, with the norm max_c |s_c|. Biases and the parameters of other normalizations do not count. Groups
    of a convolution are blocks on a diagonal: the largest counts. In float64.

    Args:
        at: K minima.
        conv: what a convolution's norm is. `matrix`: that of its kernels as an out x (in kh kw) matrix; `fft`: that of
            the map itself, on a circle of the layer's input size; with a stride, of the next multiple of it.
    Returns: (K,), in units of logits over units of input; exact.
    """
    if why := _unfoldable(at.train):
        return nothing(at, why)
    norms = _spectral_norms(at, conv)
    if not norms:
        return nothing(at, "no layer has a weight of two or more dimensions")
    product = torch.stack([spectral for _, spectral in norms], 1).prod(1)
    return exact(product).undefined(~product.isfinite(), "the product overflows")


@metric(
    invariant="permutation,global,scale",
    source="Rudelson & Vershynin 2007; Sanyal et al. 2020, def. 3.1",
    direction="none",
    cost="the largest singular value of each weight",
)
def stable_rank(at: Point) -> Estimate:
    """Mean over layers of the stable rank of the weight, |W|_F^2 / |W|_2^2 <= rank W, BatchNorm folded.

    Convolutions count as out x (in kh kw) matrices, as in spectral_norm_product.

    Args:
        at: K minima.
    Returns: (K,), in units of dimensions, at least 1; exact; undefined where a weight is 0.
    """
    if why := _unfoldable(at.train):
        return nothing(at, why)
    norms = [(W, spectral) for W, spectral in _spectral_norms(at, "matrix") if W.dim() > 2]
    if not norms:
        return nothing(at, "no layer has a weight of two or more dimensions")
    frobenius = torch.stack([torch.linalg.vector_norm(W.flatten(1), dim=1) for W, _ in norms], 1)
    spectral = torch.stack([own for _, own in norms], 1)
    ratio = (frobenius / spectral.where(spectral > 0, 1)).square().mean(1)
    return exact(ratio).undefined((spectral == 0).any(1), "the weight of a layer is 0")


@metric(
    invariant="permutation,filter",
    source="Neyshabur et al. 2015; Jiang et al. 2020, appendix C",
    direction="none",
    cost="one forward pass of one input",
)
def path_norm(at: Point) -> Estimate:
    """Root of the sum over paths of the squared products of their weights, sqrt(sum_c f_{theta^2}(1)_c).

    f_{theta^2}(1) is the network with each weight and bias squared, BatchNorm folded first, on an input of ones: paths
    start at inputs and biases, and end at logits. Pooling stays as it is. For ReLU and its leaky kin. In float64.

    Args:
        at: K minima.
    Returns: (K,), in units of logits; exact; undefined for other networks.
    """
    if why := _without_paths(at):
        return nothing(at, why)
    of, theta = at.in_double.train, at.in_double.theta
    params, buffers = folded(of.network, of.unflatten(theta), of.buffers, of.x)
    ones = theta.new_ones(1, *of.x.shape[of.x.dim() - of.network.input_dim + 1 :])
    with torch.no_grad():
        total = of.network({name: t.square() for name, t in params.items()}, buffers, ones)[:, 0].sum(1)
    return exact(total.sqrt()).undefined(~total.isfinite(), "the product of squared weights overflows")


def _without_paths(at: Point) -> str:
    """Why the sum over paths is not f_{theta^2}(1); empty if it is."""
    network = at.train.network
    if network.graph is None:
        return f"whether the network is piecewise linear is not known: {network.reason.partition(';')[0]}"
    if not at.piecewise_linear:
        return "the network is not piecewise linear"
    for node in network.graph.graph.nodes:
        if node.op == "call_module" and isinstance(network.module.get_submodule(node.target), SATURATING):
            return f"{node.target} saturates: paths do not add up"
        numbers = [a for a in (*node.args, *node.kwargs.values()) if isinstance(a, int | float)]
        if node.target in DIFFERENCES or (node.target in SIGNED and min(numbers, default=0) < 0):
            return f"{node.name} takes a difference: paths do not add up"
    return ""


# ---- BatchNorm


def _unfoldable(of: Objective) -> str:
    """Why BatchNorm cannot be folded; empty if it can, or if there is none."""
    network = of.network
    if network.graph is None and network.normalizes:
        return f"which layer a BatchNorm follows is not known: {network.reason.partition(';')[0]}"
    return ""


# ---- singular values


def _spectral_norms(at: Point, conv: Conv) -> list[tuple[Tensor, Tensor]]:
    """The weight (K, *shape) of each layer, or the scale (K, channels) of a BatchNorm, folded; and its norm (K,)."""
    of, theta = at.in_double.train, at.in_double.theta
    module = of.network.module
    scales = {f"{name}.weight" for name in norm_layers(module)}
    shapes = input_shapes(of.network, of.unflatten(theta), of.buffers, of.x) if conv == "fft" else {}
    found = []
    for name, W in folded(of.network, of.unflatten(theta), of.buffers, of.x)[0].items():
        place = name.rpartition(".")[0]
        layer = module.get_submodule(place)
        if not runs(of.network, place):
            continue
        if name in scales:
            found.append((W, W.abs().amax(1)))
        elif W.dim() > 2:
            blocks = W.unflatten(1, (getattr(layer, "groups", 1), -1))  # (K, groups, out, in, *kernel)
            if place in shapes and isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
                found.append((W, _circular_norm(blocks, layer, shapes[place][2:])))
            else:
                found.append((W, _top_singular_value(blocks.flatten(3)).amax(1)))
    return found


def _top_singular_value(A: Tensor) -> Tensor:
    """Of each matrix (..., a, b): the root of the largest eigenvalue of its smaller Gram matrix, good to rounding."""
    size = A.abs().amax((-2, -1)).clamp_min(torch.finfo(torch.float64).tiny)  # squares neither overflow nor vanish
    A = A / size[..., None, None]
    gram = A @ A.mH if A.shape[-2] <= A.shape[-1] else A.mH @ A
    top: Tensor = size * torch.linalg.eigvalsh(gram)[..., -1].clamp_min(0).sqrt()
    return top


def _circular_norm(W: Tensor, layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, size: tuple[int, ...]) -> Tensor:
    """Spectral norm (K,) of a convolution with periodic borders, max over frequencies w of |P(w)|_2.

    P(w)_oc = sum_t W_oct exp(-2 pi i <w, t>) over the taps t (Sedghi et al. 2019). With a stride s, t = s q + r: the
    input falls apart into its s^d phases r, each a channel of its own on a grid s times as coarse, with taps q.

    Args:
        W: (K, groups, out, in, *kernel).
        layer: for its stride and dilation.
        size: of the input, n in each of the d dimensions.
    """
    d, device = len(size), W.device
    stride, n = torch.tensor(layer.stride), torch.tensor(size)
    n = (n + stride - 1) // stride
    taps = _grid([torch.arange(k) * step for k, step in zip(W.shape[4:], layer.dilation, strict=True)])  # (T, d)
    phases = _grid([torch.arange(s) for s in layer.stride])  # (s^d, d)
    of_phase = ((taps % stride)[:, None] == phases).all(2).double()  # (T, s^d)
    half = [torch.arange(m // 2 + 1 if axis == d - 1 else m) for axis, m in enumerate(n.tolist())]
    w = _grid(half) / n.double()  # (F, d): W is real, P(-w) the conjugate of P(w)
    angle = -2 * torch.pi * w @ (taps // stride).double().mT
    wave = torch.polar(torch.ones_like(angle), angle)[..., None] * of_phase  # (F, T, s^d)
    taken, top = W.flatten(4).to(torch.complex128), W.new_zeros(len(W))
    numbers = taken[..., 0].numel() * len(phases)  # at one frequency
    for part in wave.to(device).split(memory.pieces(16 * numbers, memory.BLOCK)):
        P = torch.einsum("kgoct,ftr->kfgocr", taken, part).flatten(4)
        top = torch.maximum(top, _top_singular_value(P).amax((1, 2)))
    return top


def _grid(axes: list[Tensor]) -> Tensor:
    """All points of a grid (points, dimensions)."""
    return torch.stack(torch.meshgrid(axes, indexing="ij"), -1).flatten(0, -2)
