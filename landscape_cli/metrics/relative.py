"""Curvature relative to the size of the parameters, so that rescaling a layer cannot change it (METRICS section 5)."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from landscape_cli.curvature.objective import Objective
from landscape_cli.curvature.sample_gradients import backward, is_dense, layer_gradients, sample_gradients, tapped
from landscape_cli.metrics.point import DENSE, Estimate, Point, exact, nothing, over_draws
from landscape_cli.network import memory
from landscape_cli.registry import FEW, Natural, metric


@metric(
    invariant="permutation,global,filter",
    source="Liang et al. 2019, eq. 3.1",
    needs="root",
    direction="sharp",
    cost="one tangent pass",
)
def fisher_rao(at: Point) -> Estimate:
    """Squared length of the parameters in the metric of the true Fisher information, theta^T F theta.

    (1/n) sum_i (J_i theta)^T S_i (J_i theta), the variance over classes of the change of the logits along theta.

    Args:
        at: K minima.
    Returns: (K,), in nats; exact. Liang et al. take the root, and the empirical Fisher: fisher_rao_empirical.
    """
    total = torch.zeros(len(at.theta), dtype=torch.float64, device=at.theta.device)
    for z, along, _ in at.train.tangents(at.theta, at.theta):
        total += at.train.root.square(z.double(), along.double()).sum(1)
    return exact(total / at.train.n, at.train.n)


@metric(
    invariant="permutation,global,filter",
    source="Liang et al. 2019, eq. 3.1",
    needs="residuals",
    direction="sharp",
    cost="one tangent pass",
)
def fisher_rao_empirical(at: Point) -> Estimate:
    """Squared length of the parameters in the metric of the empirical Fisher information, mean_i <g_i, theta>^2.

    Args:
        at: K minima.
    Returns: (K,), in squared nats; exact. Near a minimum it has little to do with fisher_rao.
    """
    total = torch.zeros(len(at.theta), dtype=torch.float64, device=at.theta.device)
    for z, along, y in at.train.tangents(at.theta, at.theta):
        total += (at.train.residuals(z.double(), y) * along.double()).sum(2).square().sum(1)
    return exact(total / at.train.n, at.train.n)


@metric(
    invariant="permutation,global,scale",
    source="Petzka et al. 2021, definition 3",
    needs="residuals,root",
    direction="sharp",
    cost="C - 1 backward passes; and `probes` Hessian products for networks that are not piecewise linear",
)
def relative_flatness(
    at: Point, *, layer: str = "last", probes: Annotated[int, Ge(8), FEW] = 64, seed: Natural = 0
) -> Estimate:
    """Curvature of one layer relative to its weights, sum_{s,s'} <w_s, w_s'> tr(H_{s,s'}) over its neurons s.

    tr(H_{s,s'}) = sum_t d2L / dw_st dw_s't. With F in the place of H it is (1/n) sum_i sum_c |W^T G_ic|_F^2 for the
    gradients G_ic of the root of F in this weight: all of it in piecewise linear networks, and in a last layer.

    Args:
        at: K minima.
        layer: name of a layer with a weight of two dimensions or more, without its bias; `last` is the last one.
        probes: vectors W z for H - F, where it is not 0 and the net has more than 2000 parameters.
        seed: of the probes.
    Returns: (K,), in nats; a large value is a sharp minimum. Standard error over probes, 0 where it is exact.
    """
    names = [n for n, t in at.train.like.items() if n.endswith("weight") and t.dim() > 2]
    name = names[-1] if layer == "last" and names else f"{layer}.weight"
    if name not in names:
        known = ", ".join(n.removesuffix(".weight") for n in names)
        return nothing(at, f"layer={layer}: no layer of that name has a weight matrix; there are {known}")
    W = at.train.unflatten(at.theta)[name].flatten(2).double()  # (K, out, in)
    if not at.piecewise_linear and at.theta.shape[1] <= DENSE:
        own = at.train.columns[name]
        H = at.hessian()[:, own, own].unflatten(2, W.shape[1:]).unflatten(1, W.shape[1:])
        return exact(torch.einsum("ksd,ktd,ksiti->k", W, W, H), at.train.n)
    fisher = _fisher_part(at.train, at.theta, name, W)
    if at.piecewise_linear:
        return exact(fisher, at.train.n)
    rest = over_draws(_rest(at, name, W, probes, seed), probes)
    if bool((rest.value.abs() + rest.standard_error <= 1e-5 * fisher).all()):  # rounding: logits are affine in it
        return exact(fisher, at.train.n)
    rest.value = rest.value + fisher
    return rest


def _fisher_part(at: Objective, theta: Tensor, name: str, W: Tensor) -> Tensor:
    """(1/n) sum_i sum_c |W^T G_ic|_F^2 (K,)."""
    total, own = torch.zeros(len(theta), dtype=torch.float64, device=theta.device), at.columns[name]
    for x, _ in at.chunks(memory.SHARED):
        if at.network.kind != "stacked":
            for g in sample_gradients(at, theta, x, at.root.rows):
                total += _squares(g[:, :, own], W)
            continue
        taps, logits = tapped(at.network, at.unflatten(theta), at.buffers, x)
        tap = next(t for t in taps if f"{t.name}.weight" == name)
        ways = list(at.root.rows(logits.detach()))
        for c, way in enumerate(ways):
            (delta,) = backward(logits, [tap], way, keep=c + 1 < len(ways))
            if is_dense(tap):  # G = delta a^T
                a = torch.linalg.vector_norm(tap.x.double(), dim=2)
                total += ((delta.double() @ W) * a[..., None]).square().sum((1, 2))
            else:
                total += _squares(next(layer_gradients(tap.layer, tap.name, at, theta, tap.x, delta)), W)
    return total / at.n


def _squares(g: Tensor, W: Tensor) -> Tensor:
    """Sum over samples of |W^T G|_F^2 for gradients of the weight (K, B, out in)."""
    G = g.double().unflatten(2, W.shape[1:])  # (K, B, out, in)
    total: Tensor = (W[:, None].mT @ G).square().sum((1, 2, 3))
    return total


def _rest(at: Point, name: str, W: Tensor, probes: int, seed: int) -> Tensor:
    """<V, (H - F) V> (K, probes) for V = W Z, Z (in, in) of random signs: E V_st V_s't' = <w_s, w_s'> if t = t'."""
    rng, size = torch.Generator().manual_seed(seed), W.shape[2]
    H, found = at.train.hessian_product(at.theta, residual_part=True), []
    for _ in range(probes):
        Z = (torch.randint(0, 2, (size, size), generator=rng) * 2 - 1).to(W)
        v = torch.zeros_like(at.theta)
        v[:, at.train.columns[name]] = (W @ Z).flatten(1).to(v)
        found.append((v * H(v)).double().sum(1))
    return torch.stack(found, 1)
