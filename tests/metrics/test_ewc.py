"""The Fisher information by its diagonal (EWC) and by Kronecker factors, and what leaves all of them unchanged."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from helpers import (
    CASES,
    K,
    N,
    at_of,
    data,
    dense,
    modules,
    objective,
    oracle,
    pairs,
    plain_logits,
    point,
    same,
    vector,
)
from torch import Tensor, nn

from landscape_cli.metrics import ewc, gradients, kl
from landscape_cli.metrics.point import Point

f64 = torch.float64

# ---- what a reparametrization leaves unchanged


class Curved(nn.Module):
    """The same function in other coordinates: theta = sinh(c phi) / c, c = 1 / rms theta; its parameter is phi."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        theta = vector(module)
        self.inner, self.c = (module,), 1 / float(theta.square().mean().sqrt())
        self.phi = nn.Parameter(torch.asinh(self.c * theta) / self.c)

    def forward(self, x: Tensor) -> Tensor:
        return plain_logits(self.inner[0], x)(torch.sinh(self.c * self.phi) / self.c)


def rescaled(module: nn.Module, first: int, after: int, factor: Tensor) -> nn.Module:
    """Weight and bias of layer `first` times `factor`, one a unit; the weights of layer `after` divided by it."""
    module = copy.deepcopy(module)
    one, two = module[first], module[after]
    one.weight.data *= factor.view(-1, *[1] * (one.weight.dim() - 1))
    one.bias.data *= factor
    own = factor.view(getattr(two, "groups", 1), -1).repeat_interleave(len(two.weight) // getattr(two, "groups", 1), 0)
    two.weight.data /= own.view(*own.shape, *[1] * (two.weight.dim() - 2))
    return module


def strided() -> nn.Module:
    """Convolutions with a stride, padding and dilation, joined by positively homogeneous maps."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        first, after = nn.Conv1d(1, 3, 3, stride=2, padding=1), nn.Conv1d(3, 4, 3, padding=2, dilation=2)
        rest = [nn.ReLU(), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(8, 3)]
        return nn.Sequential(nn.Unflatten(1, (1, 10)), first, nn.LeakyReLU(), after, *rest).double().eval()


def twins(net: str, change: str) -> tuple[Point, Point]:
    """A minimum, and the same function with other parameters."""
    shape = "conv1d" if net == "strided" else net
    module, train, test = strided() if net == "strided" else modules(net)[0], data(shape), data(shape, 2 * N, seed=1)
    units, rng = len(module[1].weight), torch.Generator().manual_seed(0)
    factors = {
        "alpha 10": torch.full((units,), 10.0, dtype=f64),
        "alpha 0.1": torch.full((units,), 0.1, dtype=f64),
        "filter": (1.5 * torch.randn(units, generator=rng, dtype=f64)).exp(),
    }
    other = Curved(module) if change == "smooth" else rescaled(module, 1, 3, factors[change])
    here, there = at_of([module], *train, test), at_of([other], *train, test)
    assert float((here.logits("train") - there.logits("train")).abs().max()) < 1e-10
    return here, there


CHANGES = [(net, c) for net in ("relu", "conv1d") for c in ("alpha 10", "alpha 0.1", "filter")]


@pytest.mark.parametrize(("net", "change"), [*CHANGES, ("relu", "smooth"), ("tanh", "smooth")])
def test_the_kl_ball_does_not_see_the_parametrization(net: str, change: str) -> None:
    here, there = twins(net, change)
    for over in ("minibatches", "train_and_test"):
        for m in (1, 3):
            before, after = (kl.regret_kl(at, minibatch_size=m, over=over) for at in (here, there))
            same(after, before.value.tolist(), 1e-6)
        same(kl.tic_fisher(there, over=over), kl.tic_fisher(here, over=over).value.tolist(), 1e-6)
    euclidean = [float(gradients.regret(at, minibatch_size=1).value) for at in (here, there)]
    assert abs(euclidean[1] / euclidean[0] - 1) > 0.1


def test_damping_breaks_the_invariance() -> None:
    damped = [kl.regret_kl_damped(at, minibatch_size=1, damping=0.1).value for at in twins("relu", "alpha 10")]
    assert abs(float(damped[1] / damped[0]) - 1) > 0.01


# ---- EWC


@pytest.mark.parametrize("net", CASES)
def test_fisher_weighted_norm_against_the_dense_diagonal(net: str) -> None:
    at = point(net)
    found = ewc.fisher_weighted_norm(at)
    due = [
        sum(float(f * t**2) for f, t in zip(oracle(net, k).F.diagonal(), at.theta[k], strict=True)) for k in range(K)
    ]
    same(found, due)
    assert found.standard_error.tolist() == [0.0] * K


@pytest.mark.parametrize("net", ["tanh", "residual", "gated"])
def test_ewc_distance_both_orders_against_loops(net: str) -> None:
    train, theta = objective(net)
    ends = {"a": theta[0], "b": theta[1], "c": theta[0] + 0.1}
    between = []
    for k, other in ((0, 1), (1, 0)):
        from_k = Point(theta[k : k + 1], train.alone(k), train.alone(k), peers=ends)
        found = ewc.ewc_distance(from_k)
        diagonal = oracle(net, k).F.diagonal()
        for name, to in ends.items():
            due = 0.0
            for j in range(theta.shape[1]):
                due += float(diagonal[j] * (to[j] - theta[k][j]) ** 2) / 2
            if name != "ab"[k]:  # every other minimum
                same(found[f"to={name}"], [due])
                assert found[f"to={name}"].standard_error.tolist() == [0.0]
        assert set(found) >= {f"to={'ab'[other]}", "to=c"}
        between.append(float(found[f"to={'ba'[k]}"].value))
    there, back = between
    assert abs(there / back - 1) > 1e-3  # the Fisher information is that of the row's own minimum


def test_ewc_without_peers_is_empty_or_undefined() -> None:
    found = ewc.ewc_distance(point("relu"))
    assert not found or all(e.status == ["undefined"] * K for e in found.values())


@pytest.mark.parametrize("net", ["relu", "conv1d"])
@pytest.mark.parametrize("change", ["alpha 10", "alpha 0.1", "filter"])
def test_fisher_weighted_norm_does_not_see_a_rescaling(net: str, change: str) -> None:
    here, there = twins(net, change)
    same(ewc.fisher_weighted_norm(there), ewc.fisher_weighted_norm(here).value.tolist())
    here.peers, there.peers = {"b": here.theta[0] + 0.1}, {"b": there.theta[0] + 0.1}
    moved = [float(ewc.ewc_distance(at)["to=b"].value) for at in (here, there)]
    assert abs(moved[1] / moved[0] - 1) > 0.1  # teeth: without theta^2 it does


# ---- K-FAC


def patches(layer: nn.Module, x: Tensor, groups: int) -> Tensor:
    """What a layer sees at each position, with a last entry of 1 if it has a bias: (groups, N, T, size)."""
    if isinstance(layer, nn.Linear):
        a = x[None, :, None]
    else:
        reach = [d * (k - 1) + 1 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        x = F.pad(x, [side for q in reversed(layer.padding) for side in (q, q)])
        starts = [range(0, n - r + 1, s) for n, r, s in zip(x.shape[2:], reach, layer.stride, strict=True)]
        a = torch.stack([x[(..., *window)].flatten(2) for window in windows(starts, reach, layer.dilation)], 2)
        a = torch.stack([part.movedim(2, 1).flatten(2) for part in a.chunk(groups, 1)])
    return a if layer.bias is None else torch.cat([a, torch.ones_like(a[..., :1])], -1)


def windows(starts: list[range], reach: list[int], step: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    for first in starts[0]:
        here = slice(first, first + reach[0], step[0])
        yield from ((here, *rest) for rest in windows(starts[1:], reach[1:], step[1:])) if starts[1:] else [(here,)]


def kronecker_inverse(module: nn.Module, inputs: Tensor) -> Tensor:
    """Pseudo-inverse (p, p) of the block matrix of B (x) A, A = sum_it a a^T / N, B = sum_itc delta delta^T / (N T)."""
    owners = {n: layer for n, layer in module.named_modules() if list(layer.parameters(recurse=False))}
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}
    hooks = [own.register_forward_hook(lambda o, a, out: seen.update({o: (a[0], out)})) for own in owners.values()]
    z = module(inputs)
    [hook.remove() for hook in hooks]
    p, n = torch.softmax(z, 1).detach(), len(inputs)
    root = p.sqrt()[:, :, None] * (torch.eye(z.shape[1], dtype=f64) - p[:, None])  # R_i
    sizes = {name: t.numel() for name, t in module.named_parameters()}
    total = torch.zeros(sum(sizes.values()), sum(sizes.values()), dtype=f64)
    place = dict(zip(sizes, torch.arange(len(total)).split(list(sizes.values())), strict=True))
    for name, layer in owners.items():
        a, out = seen[layer][0].detach(), seen[layer][1]
        delta = torch.stack([torch.autograd.grad(z, out, row, retain_graph=True)[0] for row in root.unbind(1)], 1)
        delta = delta.flatten(3) if delta.dim() > 3 else delta[..., None]  # (N, C, out, T)
        groups, bias = getattr(layer, "groups", 1), [place[f"{name}.bias"]] if layer.bias is not None else []
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            normal = (a.flatten(2) if a.dim() > 2 else a[..., None]) - layer.running_mean[:, None]
            normal = normal / (layer.running_var + layer.eps).sqrt()[:, None]
            rows = torch.cat([(delta * normal[:, None]).sum(3), delta.sum(3)], 2).flatten(0, 1)
            own = torch.cat([place[f"{name}.weight"], *bias])
            total[own[:, None], own] = torch.linalg.pinv(rows.T @ rows / n, rtol=1e-10, hermitian=True)
            continue
        columns = [t.unflatten(0, (delta.shape[2], -1)) for t in (place[f"{name}.weight"], *bias)]
        index, T = torch.cat(columns, 1).chunk(groups), delta.shape[3]
        for own, seen_by, d in zip(index, patches(layer, a, groups), delta.chunk(groups, 2), strict=True):
            A, B = torch.einsum("ntj,ntk->jk", seen_by, seen_by) / n, torch.einsum("ncot,ncqt->oq", d, d) / (n * T)
            B, A = (torch.linalg.pinv(factor, rtol=1e-10, hermitian=True) for factor in (B, A))
            total[own.flatten()[:, None], own.flatten()] = torch.kron(B, A)
    return total


def kronecker_regret(module: nn.Module, inputs: Tensor, g: Tensor) -> float:
    return pairs(g @ kronecker_inverse(module, inputs) @ g.T)


@pytest.mark.parametrize("net", ["relu", "tanh", "bias-free", "batchnorm", "strided", "residual"])
@pytest.mark.parametrize("over", ["minibatches", "train_and_test"])
def test_kfac_against_dense_kronecker_products(net: str, over: str) -> None:
    shape = "conv1d" if net == "strided" else net
    made, (x, y), test = [strided()] if net == "strided" else modules(net), data(shape), data(shape, 2 * N, seed=1)
    more = test[0] if over == "train_and_test" else None
    exact = [dense(module, x, y, more) for module in made]
    inputs = x if more is None else torch.cat([x, more])
    due = [kronecker_regret(module, inputs, w.g) for module, w in zip(made, exact, strict=True)]
    found = kl.regret_kl_kfac(at_of(made, x, y, test), minibatch_size=1, over=over)
    same(found, due)
    assert found.standard_error.tolist() == [0.0] * len(made)
    teeth = [abs(a / pairs(w.dual @ w.dual.T) - 1) for a, w in zip(due, exact, strict=True)]
    assert max(teeth) > 1e-3  # it is another metric


def test_kfac_of_a_linear_net_and_one_input_is_the_fisher_information() -> None:
    """With one input, the Kronecker product is exact: an oracle of the oracle."""
    module = modules("tanh")[0]
    only, x = nn.Sequential(nn.Flatten(), module[1]), data("tanh")[0][:1]
    w = dense(only, x, torch.tensor([2]))
    assert torch.allclose(kronecker_inverse(only, x), torch.linalg.pinv(w.U.T @ w.U, rtol=1e-10), atol=1e-10)


def test_kfac_uses_the_documented_draws() -> None:
    (x, y), more = data("relu"), data("relu", 2 * N, seed=1)[0]
    order = torch.randperm(N, generator=torch.Generator().manual_seed(3))
    own, module, at = order[:8], modules("relu")[0], point("relu", count=1)
    w = dense(module, x[own], y[own])
    common = {"minibatch_size": 1, "samples": 8, "seed": 3}
    same(kl.regret_kl_kfac(at, over="minibatches", **common), [kronecker_regret(module, x[own], w.g)])
    every = torch.cat([x, more])
    same(kl.regret_kl_kfac(at, over="train_and_test", inputs=3 * N, **common), [kronecker_regret(module, every, w.g)])


@pytest.mark.parametrize("net", ["relu", "strided"])
@pytest.mark.parametrize("change", ["alpha 10", "alpha 0.1", "filter"])
def test_kfac_does_not_see_a_rescaling(net: str, change: str) -> None:
    here, there = twins(net, change)
    for m in (1, 3):
        same(kl.regret_kl_kfac(there, minibatch_size=m), kl.regret_kl_kfac(here, minibatch_size=m).value.tolist(), 1e-6)
    euclidean = [float(gradients.regret(at, minibatch_size=1).value) for at in (here, there)]
    assert abs(euclidean[1] / euclidean[0] - 1) > 0.1
