"""Norms against plain loops over modules, and the rescalings that they claim to survive."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import product
from math import prod

import pytest
import torch
import torch.nn.functional as F
from helpers import CASES, K, Net, at_of, data, modules, point, same, twin
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from landscape_cli.metrics import norms
from landscape_cli.metrics.point import Estimate, Point

f64 = torch.float64


class Odd(nn.Module):
    """BatchNorms that are no part of the layer before them: on inputs, sums, positions, outputs with two readers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.on_sum, self.fork = nn.BatchNorm1d(2), nn.BatchNorm1d(3), nn.BatchNorm1d(3)
        self.plain, self.on_positions = nn.BatchNorm1d(3, affine=False), nn.BatchNorm1d(3)
        self.conv, self.mid, self.along, self.unused = (
            nn.Conv1d(2, 3, 1),
            nn.Conv1d(3, 3, 1),
            nn.Linear(3, 3),
            nn.Linear(7, 7),
        )
        self.fc = nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(self.first(x))
        h = self.on_sum(torch.relu(self.fork(h)) + h)
        h = self.plain(torch.relu(self.plain(self.mid(h))))
        return self.fc(torch.relu(self.on_positions(self.along(h))).flatten(1))


def odd() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        module = Odd().double().eval()
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm1d):
                layer.running_mean.normal_()
                layer.running_var.uniform_(0.5, 2)
                if layer.affine:
                    nn.init.normal_(layer.weight)
                    nn.init.normal_(layer.bias)
    return module


def fused(name: str, k: int = 0) -> Net:
    """The module in which PyTorch's own fusion has taken the place of each BatchNorm."""
    module = copy.deepcopy(modules(name)[k])
    if name == "residual":
        for conv, norm in (("conv1", "bn1"), ("conv2", "bn2"), ("short", "bn3")):
            setattr(module, conv, fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm)))
            setattr(module, norm, nn.Identity())
    if name in ("batchnorm", "bias-free"):
        at = next(i for i, layer in enumerate(module) if isinstance(layer, nn.BatchNorm1d))
        norm = module[at] if module[at].affine else nn.BatchNorm1d(6).double().eval()  # it fuses only with parameters
        norm.running_mean, norm.running_var = module[at].running_mean, module[at].running_var
        module[at - 1], module[at] = fuse_linear_bn_eval(module[at - 1], norm), nn.Identity()
    return module


def weights(module: Net) -> list[Tensor]:
    """Blocks of each weight as plain matrices, those of one layer stacked (groups, out, in)."""
    layers = [m for m in module.modules() if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d)]
    return [m.weight.detach().reshape(getattr(m, "groups", 1), -1, m.weight[0].numel()) for m in layers]


def sigma(A: Tensor) -> float:
    return float(torch.linalg.svdvals(A).max())


FOLDED = [name for name, case in CASES.items() if case.kind == "stacked"]
PLAIN = [*FOLDED, "layernorm", "twice"]


@pytest.mark.parametrize("name", PLAIN)
def test_spectral_norms_and_stable_rank_against_plain_modules(name: str) -> None:
    at, own = point(name), [weights(fused(name, k)) for k in range(K)]
    same(norms.spectral_norm_product(at), [prod(sigma(W) for W in each) for each in own])
    ranks = [[float(W.square().sum()) / sigma(W) ** 2 for W in each] for each in own]
    same(norms.stable_rank(at), [sum(each) / len(each) for each in ranks])


@pytest.mark.parametrize("name", FOLDED)
def test_folding_leaves_the_network_as_it_was(name: str) -> None:
    at = point(name)
    params, buffers = norms.folded(at.train.network, at.train.unflatten(at.theta), at.train.buffers, at.train.x)
    logits = at.train.network(params, buffers, at.train.x)
    assert torch.allclose(logits, at.logits("train"), rtol=1e-12, atol=1e-12)
    if any(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in modules(name)[0].modules()):
        assert not torch.allclose(torch.cat([t.flatten(1) for t in params.values()], 1)[:, :5], at.theta[:, :5])


def test_a_batchnorm_that_follows_no_layer_is_one_of_its_own() -> None:
    module, x = odd(), torch.randn(9, 2, 3, generator=torch.Generator().manual_seed(0), dtype=f64)
    at = at_of([module], x, torch.zeros(9, dtype=torch.long))
    params, buffers = norms.folded(at.train.network, at.train.unflatten(at.theta), at.train.buffers, at.train.x)
    assert torch.allclose(at.train.network(params, buffers, x), at.logits("train"), rtol=1e-12, atol=1e-12)
    assert at.train.network.kind == "stacked"
    own = [module.first, module.on_sum, module.fork, module.plain, module.on_positions]
    scales = [(n.weight if n.affine else 1) / (n.running_var + n.eps).sqrt() for n in own]
    layers = [
        m.weight.detach().flatten(1) for m in (module.conv, module.mid, module.along, module.fc)
    ]  # `unused` does not count
    due = prod(float(s.detach().abs().max()) for s in scales) * prod(sigma(W) for W in layers)
    same(norms.spectral_norm_product(at), [due])


def circulant(conv: nn.Conv1d | nn.Conv2d, size: tuple[int, ...]) -> Tensor:
    """The dense matrix of a convolution whose input is a torus, entry by entry."""
    W, (s, d) = conv.weight.detach(), (conv.stride, conv.dilation)
    out, into, groups = len(W), conv.in_channels, conv.groups
    small = [n // step for n, step in zip(size, s, strict=True)]
    A = torch.zeros(out, *small, into, *size, dtype=f64)
    for o, c in product(range(out), range(W.shape[1])):
        channel = o // (out // groups) * W.shape[1] + c
        for at in product(*map(range, small)):
            for tap in product(*map(range, W.shape[2:])):
                where = [(s[i] * at[i] + d[i] * tap[i]) % n for i, n in enumerate(size)]
                A[(o, *at, channel, *where)] += W[(o, c, *tap)]
    return A.view(out * prod(small), -1)


CONVS: dict[str, tuple[Callable[[], nn.Conv1d | nn.Conv2d], tuple[int, ...]]] = {
    "plain": (lambda: nn.Conv2d(2, 3, 3, padding=1), (5, 4)),
    "oblong": (lambda: nn.Conv2d(2, 2, (1, 3)), (3, 5)),
    "one dimension": (lambda: nn.Conv1d(2, 3, 3), (6,)),
    "wider than its input": (lambda: nn.Conv1d(1, 2, 5, padding=4), (3,)),
    "groups": (lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2), (4, 4)),
    "stride": (lambda: nn.Conv2d(2, 3, 3, stride=2, padding=1), (6, 4)),
    "stride, dilation": (lambda: nn.Conv1d(2, 3, 3, stride=2, dilation=2, padding=3), (8,)),
    "stride, phases": (lambda: nn.Conv1d(2, 2, 5, stride=3, padding=2), (9,)),
}


@pytest.mark.parametrize("name", CONVS)
def test_the_norm_by_fft_is_that_of_the_circular_map(name: str) -> None:
    make, size = CONVS[name]
    with torch.random.fork_rng():
        torch.manual_seed(2)
        convs = [make().double() for _ in range(K)]
        there = convs[0](torch.zeros(1, convs[0].in_channels, *size, dtype=f64)).numel()
        last = nn.Linear(there, 3).double()
    nets = [nn.Sequential(conv, nn.Flatten(), last).eval() for conv in convs]
    at = at_of(nets, torch.zeros(1, convs[0].in_channels, *size, dtype=f64), torch.zeros(1, dtype=torch.long))
    due = [sigma(circulant(conv, size)) * sigma(last.weight.detach()) for conv in convs]
    same(norms.spectral_norm_product(at, conv="fft"), due)
    matrix = norms.spectral_norm_product(at).value
    assert float((matrix / torch.tensor(due) - 1).abs().max()) > 0.01


def test_fft_takes_the_size_of_each_layers_own_input() -> None:
    at, net = point("conv1d"), [modules("conv1d")[k] for k in range(K)]
    due = [sigma(circulant(m[1], (10,))) * sigma(circulant(m[3], (5,))) * sigma(m[7].weight.detach()) for m in net]
    same(norms.spectral_norm_product(at, conv="fft"), due)
    at = point("residual")
    for k, m in enumerate(map(fused, ["residual"] * K, range(K))):
        maps = [circulant(conv, (4, 4)) for conv in (m.conv1, m.conv2, m.short)]
        value = float(norms.spectral_norm_product(at, conv="fft").value[k])
        assert value == pytest.approx(prod(map(sigma, [*maps, m.fc.weight.detach()])), rel=1e-8)


# ---- paths


def test_path_norm_is_the_sum_over_paths() -> None:
    """Each from an input or a bias to a logit, by the squared product of what it passes."""
    at = point("relu")
    for k in range(K):
        (W, b), (V, c) = ([p.detach() for p in modules("relu")[k][i].parameters()] for i in (1, 3))
        total = 0.0
        for o in range(len(V)):
            total += float(c[o]) ** 2
            for h in range(len(W)):
                total += float(b[h] * V[o, h]) ** 2
                total += sum(float(W[h, i] * V[o, h]) ** 2 for i in range(W.shape[1]))
        assert float(norms.path_norm(at).value[k]) == pytest.approx(total**0.5, rel=1e-12)


@pytest.mark.parametrize("name", [name for name in FOLDED if CASES[name].piecewise])
def test_path_norm_against_a_fused_module_with_squared_parameters(name: str) -> None:
    due = []
    for k in range(K):
        module = fused(name, k)
        for p in module.parameters():
            p.data.square_()
        due.append(float(module(torch.ones(1, *CASES[name].shape, dtype=f64)).sum().sqrt().detach()))
    same(norms.path_norm(point(name)), due)


def test_path_norm_squares_a_batchnorm_of_its_own() -> None:
    module = odd()
    at = at_of([module], torch.zeros(1, 2, 3, dtype=f64), torch.zeros(1, dtype=torch.long))
    for norm in (m for m in module.modules() if isinstance(m, nn.BatchNorm1d)):
        scale = (norm.weight if norm.affine else 1) / (norm.running_var + norm.eps).sqrt()
        shift = (norm.bias if norm.affine else 0) - scale * norm.running_mean
        norm.forward = lambda x, a=scale, b=shift: x * a[:, None] ** 2 + b[:, None] ** 2
    for layer in (module.conv, module.mid, module.along, module.fc):
        for p in layer.parameters():
            p.data.square_()
    same(norms.path_norm(at), [float(module(torch.ones(1, 2, 3, dtype=f64)).sum().sqrt().detach())])


class Apart(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.a, self.b, self.clip = how, nn.Linear(4, 3), nn.Linear(4, 3), nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        a, b = F.relu(self.a(x)), F.relu(self.b(x))
        return {"minus": lambda: a - b, "times": lambda: a + b * -0.5, "clip": lambda: self.clip(a) + b}[self.how]()


@pytest.mark.parametrize(
    ("net", "why"),
    [
        ("tanh", "the network is not piecewise linear"),
        ("prelu", "whether the network is piecewise linear is not known: 3 (PReLU) has no stacked form"),
        ("minus", "sub takes a difference: paths do not add up"),
        ("times", "mul takes a difference: paths do not add up"),
        ("clip", "clip saturates: paths do not add up"),
    ],
)
def test_path_norm_says_where_it_is_no_sum_over_paths(net: str, why: str) -> None:
    at = point(net) if net in CASES else at_of([Apart(net).double()], *data("relu"))
    found = norms.path_norm(at)
    assert (set(found.status), set(found.message)) == ({"undefined"}, {why})


def test_batchnorm_of_a_network_that_cannot_be_traced_is_not_folded() -> None:
    for found in (norms.spectral_norm_product(point("prelu")), norms.stable_rank(point("prelu"))):
        assert found.message[0] == "which layer a BatchNorm follows is not known: 3 (PReLU) has no stacked form"
        assert found.status == ["undefined"] * K


def test_large_weights_do_not_overflow_in_float32() -> None:
    at = point("relu")
    at.theta *= 1e12
    single = Point(at.theta.float(), at.train.to(torch.float32), at.test.to(torch.float32))
    same(norms.path_norm(single), norms.path_norm(at).value.tolist(), 1e-5)
    same(norms.spectral_norm_product(single), norms.spectral_norm_product(at).value.tolist(), 1e-5)
    at.theta *= 1e200
    assert set(norms.path_norm(at).status + norms.spectral_norm_product(at).status) == {"undefined"}


def test_stable_rank_lies_between_one_and_the_rank() -> None:
    nets = [nn.Linear(4, 3, bias=False).double() for _ in range(3)]
    nets[0].weight.data = torch.eye(3, 4, dtype=f64)
    nets[1].weight.data = torch.outer(torch.arange(3), torch.arange(4)).double()
    nets[2].weight.data.zero_()
    found = norms.stable_rank(at_of(nets, *data("relu")))
    assert found.value[:2].tolist() == pytest.approx([3, 1])
    assert (found.status[2], found.message[2]) == ("undefined", "the weight of a layer is 0")


def test_parameter_count() -> None:
    same(norms.parameter_count(point("relu")), [4 * 6 + 6 + 6 * 3 + 3.0] * K)


# ---- claims


Metric = Callable[[Point], Estimate]
PER_LAYER: dict[str, Metric] = {
    "matrix": norms.spectral_norm_product,
    "fft": lambda at: norms.spectral_norm_product(at, conv="fft"),
    "stable_rank": norms.stable_rank,
}
NETS = ["relu", "conv1d", "batchnorm", "residual"]


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("change", ["alpha 10", "alpha 0.1"])
def test_what_survives_the_rescaling_of_layers(net: str, change: str) -> None:
    here, there = twin(net, change)
    for metric in (*PER_LAYER.values(), norms.path_norm):
        same(metric(there), metric(here).value.tolist(), 1e-9)
    assert abs(float(norms.weight_norm(there).value / norms.weight_norm(here).value) - 1) > 0.1


@pytest.mark.parametrize("net", NETS)
def test_what_survives_the_rescaling_of_filters(net: str) -> None:
    here, there = twin(net, "filter")
    same(norms.path_norm(there), norms.path_norm(here).value.tolist(), 1e-9)
    for metric in PER_LAYER.values():
        assert abs(float(metric(there).value / metric(here).value) - 1) > 0.01  # never claimed


@pytest.mark.parametrize("net", ["batchnorm", "residual"])
def test_the_scale_before_a_batchnorm_is_not_seen(net: str) -> None:
    here, there = twin(net, "batchnorm")
    for metric in (*PER_LAYER.values(), norms.path_norm):
        same(metric(there), metric(here).value.tolist(), 1e-9)


@pytest.mark.parametrize("net", ["relu", "batchnorm", "residual"])
def test_the_order_of_units_is_not_seen(net: str) -> None:
    here, there = twin(net, "permutation")
    for metric in (*PER_LAYER.values(), norms.path_norm, norms.weight_norm, norms.parameter_count):
        same(metric(there), metric(here).value.tolist(), 1e-12)
