"""Curvature measured against the parameters: Fisher-Rao norms and relative flatness, dense, closed form, rescaled."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import CASES, Case, K, N, at_of, data, modules, oracle, plain_logits, point, same, vector
from spectrum_cases import NETS, honest, matrix_free, one
from torch import Tensor, nn

from landscape_cli.metrics.point import Point
from landscape_cli.network import memory

f64 = torch.float64
LAST = {"residual": "fc", "conv1d": "7", "relu": "3", "tanh": "3"}
LAST |= {"batchnorm": "4", "layernorm": "4", "bias-free": "3"}
HIDDEN = [(net, "1") for net in NETS if net not in ("residual", "bias-free")] + [("conv1d", "3"), ("bias-free", "0")]
HIDDEN += [("residual", name) for name in ("conv1", "conv2", "short")]


@pytest.fixture(params=["whole", "pieces"])
def pieces(request: pytest.FixtureRequest) -> Iterator[None]:
    """All samples in one pass, or a few at a time."""
    with memory.limited(1 if request.param == "pieces" else None):
        yield


# ---- Fisher-Rao


@pytest.mark.parametrize("net", NETS)
@pytest.mark.usefixtures("pieces")
def test_fisher_rao_against_dense_matrices(net: str) -> None:
    at = point(net)
    true, empirical = [], []
    for k in range(K):
        theta, own = at.theta[k], oracle(net, k)
        true.append(float(theta @ own.F @ theta))
        empirical.append(float((own.g @ theta).square().mean()))
    for name, due in [("fisher_rao", true), ("fisher_rao_empirical", empirical)]:
        found = one(name, at)
        same(found, due, 1e-9)
        assert found.standard_error.tolist() == [0.0] * K


def free(depth: int, width: int = 5) -> nn.Module:
    sizes = [4, *[width] * (depth - 1), 3]
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b, bias=False), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def free_convolutions() -> nn.Module:
    first, after = nn.Conv1d(1, 3, 3, padding=1, bias=False), nn.Conv1d(3, 4, 3, stride=2, bias=False)
    rest = [nn.LeakyReLU(0.2), nn.AvgPool1d(2), nn.Flatten(), nn.Linear(8, 3, bias=False)]
    return nn.Sequential(nn.Unflatten(1, (1, 10)), first, nn.ReLU(), nn.MaxPool1d(1), after, *rest)


HOMOGENEOUS = {
    "depth 1": (Case(lambda: free(1), (4,), "stacked", True), 1),
    "depth 2": (Case(lambda: free(2), (4,), "stacked", True), 2),
    "depth 4": (Case(lambda: free(4), (4,), "stacked", True), 4),
    "conv": (Case(free_convolutions, (10,), "stacked", True), 3),
}


@pytest.mark.parametrize("net", HOMOGENEOUS)
def test_without_biases_the_outputs_alone_decide(net: str) -> None:
    """Euler: J theta = D f for a net of D layers, so the norms are D^2 f^T S f and D^2 (<p, f> - f_y)^2."""
    case, D = HOMOGENEOUS[net]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = [case.make().double() for _ in range(3)]
    x = torch.randn(N, *case.shape, generator=torch.Generator().manual_seed(4), dtype=f64)
    y, at = torch.arange(N) % 3, at_of(made, x, torch.arange(N) % 3)
    true, empirical = [], []
    for module in made:
        f = module(x).detach()
        p = torch.softmax(f, 1)
        mean = (p * f).sum(1)
        true.append(D**2 * float(((p * f**2).sum(1) - mean**2).mean()))
        empirical.append(D**2 * float((mean - f[torch.arange(N), y]).square().mean()))
    same(one("fisher_rao", at), true, 1e-9)
    same(one("fisher_rao_empirical", at), empirical, 1e-9)
    assert abs(empirical[0] / true[0] - 1) > 0.02  # teeth: the two are not the same


def test_biases_break_the_closed_form() -> None:
    at = point("relu")
    f = at.logits("train")[0]
    p = torch.softmax(f, 1)
    closed = 4 * float(((p * f**2).sum(1) - (p * f).sum(1) ** 2).mean())
    assert abs(float(one("fisher_rao", at).value[0]) / closed - 1) > 1e-3


def test_a_net_of_twice_the_width_and_the_same_outputs() -> None:
    """Every neuron twice, its outgoing weights halved: other parameters, more of them, the same logits."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        narrow, wide = free(2).double(), free(2, 10).double()
    w = narrow[0].weight.data, narrow[2].weight.data
    wide[0].weight.data = torch.cat([w[0], 3 * w[0]])
    wide[2].weight.data = torch.cat([0.5 * w[1], 0.5 / 3 * w[1]], 1)
    x, y = data("relu")
    for name in ("fisher_rao", "fisher_rao_empirical"):
        here, there = (one(name, at_of([m], x, y)) for m in (narrow, wide))
        same(there, here.value.tolist(), 1e-9)


def test_labels_drawn_from_the_model_give_the_true_norm() -> None:
    """sum_y p_y <g_y, theta>^2 over the labels of one sample is theta^T F theta."""
    module, (x, y) = modules("tanh")[0], data("tanh")
    for i in range(3):
        p = torch.softmax(module(x[i : i + 1]), 1)[0].detach()
        of = [one("fisher_rao_empirical", at_of([module], x[i : i + 1], torch.tensor([c]))).value for c in range(3)]
        due = float(sum(p[c] * of[c] for c in range(3)))
        same(one("fisher_rao", at_of([module], x[i : i + 1], y[i : i + 1])), [due], 1e-9)


# ---- relative flatness


def dense_relative(at: Point, net: str, k: int, layer: str, *, fisher: bool = False) -> float:
    """sum_{s,s'} <w_s, w_s'> sum_t H_{st,s't}, entry by entry."""
    own, name = at.train.columns[f"{layer}.weight"], f"{layer}.weight"
    shape = at.train.like[name].shape[1:]
    W = at.theta[k, own].view(shape[0], -1)
    H = (oracle(net, k).F if fisher else oracle(net, k).H)[own, own].view(*W.shape, *W.shape)
    total = 0.0
    for s in range(len(W)):
        for r in range(len(W)):
            total += float(W[s] @ W[r]) * float(H[s, :, r, :].trace())
    return total


@pytest.mark.parametrize("net", NETS)
def test_the_last_layer_against_the_dense_hessian_and_by_hand(net: str) -> None:
    """f = W a + b is affine in W, so the value is mean |a|^2 tr(W^T S W), without the bias."""
    at = point(net)
    found = one("relative_flatness", at)
    same(one("relative_flatness", at, layer=LAST[net], seed=0), found.value.tolist(), 1e-12)
    x = data(net)[0]
    for k, module in enumerate(modules(net)):
        seen: list[Tensor] = []
        layer = module.get_submodule(LAST[net])
        layer.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0].detach()))
        p = torch.softmax(module(x), 1).detach()
        S = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        W = layer.weight.detach()
        due = float((seen[0].square().sum(1) * torch.einsum("sm,nst,tm->n", W, S, W)).mean())
        assert dense_relative(at, net, k, LAST[net]) == pytest.approx(due, rel=1e-9)
        off = abs(float(found.value[k]) - due)
        assert off <= max(1e-9 * due, 3 * float(found.standard_error[k])), (float(found.value[k]), due)
    assert found.status == ["ok"] * K


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize(("net", "layer"), HIDDEN)
def test_hidden_layers_against_the_dense_hessian(net: str, layer: str) -> None:
    at = point(net)
    found = one("relative_flatness", at, layer=layer, probes=200)
    for k in range(K):
        due = dense_relative(at, net, k, layer)
        if CASES[net].piecewise:  # affine in the whole of one tensor: its block of H is that of F
            assert dense_relative(at, net, k, layer, fisher=True) == pytest.approx(due, rel=1e-9)
        error = float(found.standard_error[k])
        assert abs(float(found.value[k]) - due) <= max(1e-9 * abs(due), 3.5 * error), (float(found.value[k]), due)
        assert error < abs(due)


@pytest.mark.parametrize(("net", "layer"), [("tanh", "1"), ("layernorm", "1"), ("residual", "conv2")])
def test_its_standard_error_is_honest(net: str, layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix_free(monkeypatch)
    at = point(net)
    due = torch.tensor([dense_relative(at, net, k, layer) for k in range(K)], dtype=f64)
    runs = [one("relative_flatness", at, layer=layer, probes=32, seed=s) for s in range(80)]
    value, error = (torch.stack([getattr(r, what) for r in runs]) for what in ("value", "standard_error"))
    if CASES[net].piecewise:
        assert (error == 0).all()
        assert ((value - due).abs() <= 1e-9 * due.abs()).all()
        return
    honest(runs, due)


@pytest.mark.parametrize("layer", ["no_such_layer", "2"])
def test_a_layer_without_a_weight_is_refused_or_undefined(layer: str) -> None:
    at = point("relu")
    try:
        found = one("relative_flatness", at, layer=layer)
    except Exception as error:
        assert layer in str(error)
        return
    assert found.status == ["undefined"] * K
    assert all(layer in message for message in found.message)


# ---- what leaves them unchanged


def rescaled(module: nn.Module, first: int, after: int, factor: Tensor) -> nn.Module:
    """Weight and bias of layer `first` times `factor`, one a unit; the weights of layer `after` divided by it."""
    module = copy.deepcopy(module)
    a, b = module[first], module[after]
    a.weight.data *= factor.view(-1, *[1] * (a.weight.dim() - 1))
    if a.bias is not None:
        a.bias.data *= factor
    groups = getattr(b, "groups", 1)
    own = factor.view(groups, -1).repeat_interleave(len(b.weight) // groups, 0)
    b.weight.data /= own.view(*own.shape, *[1] * (b.weight.dim() - 2))
    return module


PAIRS = [("relu", 1, 3), ("narrow", 0, 2), ("batchnorm", 2, 4), ("conv1d", 1, 3)]


def twins(net: str, first: int, after: int, factor: float | None) -> tuple[Point, Point]:
    """A minimum, and the same function with one layer scaled by alpha, or by a factor a unit."""
    module, (x, y) = modules(net)[0], data(net)
    units, rng = len(module[first].weight), torch.Generator().manual_seed(0)
    own = torch.full((units,), factor, dtype=f64) if factor else torch.randn(units, generator=rng, dtype=f64).exp()
    here, there = at_of([module], x, y), at_of([rescaled(module, first, after, own)], x, y)
    assert float((here.logits("train") - there.logits("train")).abs().max()) < 1e-10
    return here, there


@pytest.mark.parametrize(("net", "first", "after"), PAIRS)
@pytest.mark.parametrize("factor", [0.1, 10.0, None])
def test_fisher_rao_does_not_see_a_rescaling_of_filters(net: str, first: int, after: int, factor: float | None) -> None:
    here, there = twins(net, first, after, factor)
    for name in ("fisher_rao", "fisher_rao_empirical"):
        same(one(name, there), one(name, here).value.tolist(), 1e-9)
    traces = [float(one("ggn_trace", at).value) for at in (here, there)]
    assert abs(traces[1] / traces[0] - 1) > 0.02  # teeth: the trace does


@pytest.mark.parametrize(("net", "first", "after"), PAIRS)
@pytest.mark.parametrize("alpha", [0.1, 10.0])
def test_relative_flatness_does_not_see_alpha(net: str, first: int, after: int, alpha: float) -> None:
    here, there = twins(net, first, after, alpha)
    layers = {str(n) for n in (first, after) if modules(net)[0][n].weight.dim() > 1} | {"last"}
    for layer in sorted(layers):
        before, found = (one("relative_flatness", at, layer=layer, seed=3) for at in (here, there))
        same(found, before.value.tolist(), 1e-8)  # the same probes: exact, even where it is a sample


@pytest.mark.parametrize("first", [("relu", 1, 3), ("narrow", 0, 2)])
def test_relative_flatness_sees_a_factor_a_neuron(first: tuple[str, int, int]) -> None:
    here, there = twins(*first, None)
    before, after = (float(one("relative_flatness", at).value) for at in (here, there))
    assert abs(after / before - 1) > 0.01


def test_permuted_neurons_change_nothing() -> None:
    module, (x, y) = modules("tanh")[0], data("tanh")
    other, order = copy.deepcopy(module), torch.tensor([3, 0, 5, 1, 4, 2])
    other[1].weight.data, other[1].bias.data = module[1].weight.data[order], module[1].bias.data[order]
    other[3].weight.data = module[3].weight.data[:, order].contiguous()
    points = [at_of([m], x, y) for m in (module, other)]
    exact: list[tuple[str, dict[str, Any]]] = [("fisher_rao", {}), ("fisher_rao_empirical", {})]
    exact += [("relative_flatness", {})]
    exact += [(name, {"tolerance": 1e-8}) for name in ("hessian_top", "hessian_bottom", "ggn_top", "convexity_ratio")]
    exact += [("ggn_trace", {}), ("hessian_frobenius", {})]
    for name, settings in exact:
        before, after = (one(name, at, **settings) for at in points)
        assert float(after.value) == pytest.approx(float(before.value), rel=1e-8), name


def test_logits_scaled_up_are_a_mere_scale_to_none_of_them() -> None:
    """The last layer times 30: probabilities saturate, and both norms fall with S although theta has grown."""
    module, (x, y) = modules("relu")[0], data("relu")
    big = copy.deepcopy(module)
    big[3].weight.data *= 30
    big[3].bias.data *= 30
    f = plain_logits(big, x)(vector(big))
    p = torch.softmax(f, 1)
    due = float(F.cross_entropy(f, y))
    at = at_of([big], x, y)
    assert float(at.loss()) == pytest.approx(due, rel=1e-9)
    J = torch.autograd.functional.jacobian(plain_logits(big, x), vector(big)) @ vector(big)  # (N, C)
    true = float(((p * J**2).sum(1) - (p * J).sum(1) ** 2).mean())
    empirical = float(((p * J).sum(1) - J[torch.arange(N), y]).square().mean())
    same(one("fisher_rao", at), [true], 1e-8)
    same(one("fisher_rao_empirical", at), [empirical], 1e-8)
    assert empirical > 5 * true  # the 54-fold difference of the two has this cause
