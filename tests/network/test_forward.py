"""A stack of networks is the networks: outputs, gradients, BatchNorm's modes, and the verdict on linearity."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import CASES, K, N, data, f64, modules, objective, oracle, plain_logits, vector
from torch import Tensor, nn
from torch.testing import assert_close

from landscape_cli.curvature.objective import Objective, flatten
from landscape_cli.curvature.sample_gradients import sample_gram
from landscape_cli.network import Pass, build, layers, norm_layers, piecewise_linear, stack
from landscape_cli.network.batchnorm_statistics import collect_statistics

EXACT = {"rtol": 1e-12, "atol": 1e-12}


@pytest.mark.parametrize("name", CASES)
def test_kind_and_linearity_are_as_they_should_be(name: str) -> None:
    network = build(CASES[name].make(), CASES[name].shape)
    assert network.kind == CASES[name].kind
    assert (network.reason == "") == (network.kind == "stacked")
    assert piecewise_linear(network) == CASES[name].piecewise


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("per_run", [False, True])
def test_outputs_are_those_of_each_module_alone(name: str, per_run: bool) -> None:
    at, _ = objective(name)
    x = torch.randn(K, N, *CASES[name].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    x = x if per_run else x[0]
    out = at.network(at.like, at.buffers, x)
    for k, module in enumerate(modules(name)):
        assert_close(out[k], module(x[k] if per_run else x).detach(), **EXACT)
    assert not torch.allclose(out[0], out[1], atol=1e-3)


@pytest.mark.parametrize("name", CASES)
def test_a_stack_of_one_is_the_same_run(name: str) -> None:
    at, theta = objective(name)
    alone = at.alone(1)
    assert_close(alone.logits(theta[1:]), at.logits(theta)[1:], **EXACT)


@pytest.mark.parametrize("name", [n for n, c in CASES.items() if c.kind != "loop"])
@pytest.mark.parametrize("per_run", [False, True])
def test_stacked_vmap_and_loop_agree_in_values_and_gradients(name: str, per_run: bool) -> None:
    at, _ = objective(name)
    x, y = data(name)
    inputs = torch.stack([x, x.flip(0)]) if per_run else x
    found = []
    for kind in ({at.network.kind} | {"vmap", "loop"}) if at.network.kind == "stacked" else ("vmap", "loop"):
        params = {n: t.clone().requires_grad_() for n, t in at.like.items()}
        z = replace(at.network, kind=kind)(params, at.buffers, inputs)
        slopes = torch.autograd.grad(F.cross_entropy(z.flatten(0, 1), y.repeat(K)), list(params.values()))
        found.append([z.detach(), *slopes])
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert_close(a, b, **EXACT)
    z = found[0][0]
    for k, module in enumerate(modules(name)):
        assert_close(z[k], plain_logits(module, inputs[k] if per_run else x)(vector(module)).detach(), **EXACT)


@pytest.mark.parametrize("name", ["batchnorm", "bias-free", "residual", "prelu", "gated"])
@pytest.mark.parametrize("per_run", [False, True])
def test_training_mode_uses_the_batch_statistics_of_each_run(name: str, per_run: bool) -> None:
    at, _ = objective(name)
    x = torch.randn(K, N, *CASES[name].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    x = x if per_run else x[0]
    before = {n: b.clone() for n, b in at.buffers.items()}
    out = at.network(at.like, at.buffers, x, Pass(batchnorm="batch"))
    for k, module in enumerate(modules(name)):
        assert_close(out[k], module.train()(x[k] if per_run else x).detach(), **EXACT)
    assert not torch.allclose(out, at.network(at.like, at.buffers, x), atol=1e-3)  # teeth
    assert all(torch.equal(before[n], b) for n, b in at.buffers.items())
    assert not at.network.module.training


def layer_by_layer(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Mean and biased variance of every BatchNorm's input, each layer normalized before the next one is looked at."""
    found: dict[str, Tensor] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: tuple[Tensor]) -> None:
            columns = inputs[0].transpose(0, 1).flatten(1)
            mean = columns.sum(1) / columns.shape[1]
            layer.running_mean.copy_(mean)
            layer.running_var.copy_(((columns - mean[:, None]) ** 2).sum(1) / columns.shape[1])
            found[f"{name}.running_mean"], found[f"{name}.running_var"] = mean, layer.running_var.clone()

        return hook

    for name, layer in module.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.register_forward_pre_hook(note(name))
    with torch.no_grad():
        module.eval()(x)
    return found


@pytest.mark.parametrize("name", ["batchnorm", "bias-free", "residual", "prelu", "gated"])
def test_collected_statistics_are_the_biased_ones_of_the_full_set(name: str) -> None:
    at, _ = objective(name)
    moved = collect_statistics(at.network, at.like, at.buffers, at.x)
    for k, module in enumerate(modules(name)):
        due = layer_by_layer(module, at.x)
        assert set(due) == {n for n in moved if "num_batches" not in n}
        for n, t in due.items():
            assert_close(moved[n][k], t, rtol=1e-11, atol=1e-12)
            assert not torch.allclose(moved[n][k], at.buffers[n][k], atol=1e-3)
    assert list(moved) == list(at.buffers)


class Spare(nn.Module):
    """Has a BatchNorm that nothing passes, and asks for values on its way, so that it cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.idle, self.norm, self.out = nn.BatchNorm1d(5), nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.norm(x)
        return self.out(z if float(z.detach().sum()) > -1e9 else -z)


def test_a_batchnorm_that_is_not_passed_keeps_its_statistics() -> None:
    module, x = Spare().double(), torch.randn(30, 6, dtype=torch.float64)
    net = build(module, (6,), torch.float64)
    assert net.kind != "stacked"
    params, buffers = stack([module])
    moved = collect_statistics(net, params, buffers, x)
    assert torch.equal(moved["idle.running_var"], buffers["idle.running_var"])
    assert_close(moved["norm.running_var"][0], x.var(0, unbiased=False))


@pytest.mark.parametrize("name", ["relu", "layernorm"])
def test_without_batchnorm_there_is_nothing_to_collect(name: str) -> None:
    at, _ = objective(name)
    assert norm_layers(at.network.module) == []
    assert collect_statistics(at.network, at.like, at.buffers, at.x) is at.buffers


@pytest.mark.parametrize("name", ["relu", "prelu", "gated"])
def test_forward_pass_in_bfloat16_keeps_the_type_of_parameters(name: str) -> None:
    at, theta = objective(name)
    low = replace(at, network=replace(at.network, dtype=torch.bfloat16))
    z = low.logits(theta)
    assert z.dtype == torch.float64
    assert 1e-6 < (z - at.logits(theta)).abs().max() < 0.1


class Multiplied(nn.Module):
    """A product of two activations, given by keyword: quadratic in the first layer's weights."""

    def __init__(self, *, keyword: bool) -> None:
        super().__init__()
        self.first, self.last, self.keyword = nn.Linear(4, 5), nn.Linear(5, 3), keyword

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x))
        return self.last(torch.mul(h, other=h) if self.keyword else h * h)


@pytest.mark.parametrize("keyword", [False, True])
def test_a_product_of_two_activations_is_not_piecewise_linear(keyword: bool) -> None:
    network = build(Multiplied(keyword=keyword), (4,))
    assert network.kind == "stacked"
    assert not piecewise_linear(network)


class Scaled(Multiplied):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(x)) * 0.5 + 1)


def test_a_product_with_a_number_is_piecewise_linear() -> None:
    assert piecewise_linear(build(Scaled(keyword=False), (4,)))


def test_logits_of_piecewise_linear_nets_are_affine_in_each_parameter() -> None:
    """The definition behind the verdict: second differences in one parameter vanish, and do not for the others."""
    for name, case in CASES.items():
        module, (x, _) = modules(name)[0], data(name)
        logits, theta, bend = plain_logits(module, x), vector(module), 0.0
        at = 0.5 if case.piecewise else 0.9  # a few samples may cross a kink
        for j in range(len(theta)):
            d = torch.zeros_like(theta)
            d[j] = 1e-3
            with torch.no_grad():
                second = logits(theta + d) - 2 * logits(theta) + logits(theta - d)
            bend = max(bend, float(second.abs().quantile(at)))
        assert (bend < 1e-14) == case.piecewise or name == "prelu", (name, bend)  # PReLU is, but unknown to us


def test_shared_parameters_run_by_vmap_and_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)
            self.b = nn.Linear(4, 4)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.tanh(self.a(x)))

    made = [Tied().double(), Tied().double()]
    network = build(made[0], (4,), torch.float64)
    params, buffers = stack(made)
    x = torch.randn(5, 4, dtype=torch.float64)
    assert network.kind == "vmap"
    assert "share" in network.reason
    for k, module in enumerate(made):
        assert_close(network(params, buffers, x)[k], module(x).detach(), **EXACT)


def test_objective_gradient_is_that_of_the_plain_module() -> None:
    at, theta = objective("residual")
    assert isinstance(at, Objective)
    assert_close(at.loss_and_gradient(theta)[1][1], oracle("residual", 1).g.mean(0), rtol=1e-10, atol=1e-13)


class Odd(nn.Module):
    """Written in ways that have a stacked form by name, but not by how they are called."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.a, self.b, self.pool, self.way = nn.Linear(4, 5), nn.Linear(3, 3), nn.MaxPool1d(3, 1), way
        self.c = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "keyword":
            return self.c(torch.relu(self.a(input=x)))
        if self.way == "pool":
            return self.b(self.pool(self.a(x)))  # (B, 5) is one signal of B channels here
        return self.c(F.relu(self.a(x), inplace=True))


@pytest.mark.parametrize(("way", "kind"), [("keyword", "vmap"), ("pool", "vmap"), ("inplace", "stacked")])
def test_a_form_that_does_not_run_stacked_runs_by_vmap(way: str, kind: str) -> None:
    made = [Odd(way).double(), Odd(way).double()]
    network = build(made[0], (4,), torch.float64)
    params, buffers = stack(made)
    x = torch.randn(6, 4, dtype=torch.float64)
    assert network.kind == kind
    for k, module in enumerate(made):
        assert_close(network(params, buffers, x)[k], module(x).detach(), **EXACT)
    at = Objective(network, params, buffers, x, torch.tensor([0, 1, 2, 0, 1, 2]))
    g = at.loss_and_gradient(flatten(params))[1]
    gram = sample_gram(at, flatten(params))  # an activation in place would break its backward pass
    assert_close(gram.mean((1, 2)), g.square().sum(1), rtol=1e-10, atol=0)
    names = [n for n, t in at.like.items() if not at.unflatten(g)[n].any()]
    assert names == (["c.weight", "c.bias"] if way == "pool" else ["b.weight", "b.bias"])  # unused: slope 0


def test_a_relu_after_a_narrow_layer_trains() -> None:
    """The output of a layer with few units is a transposed view, which an activation must not overwrite."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    built = build(net, (64,), torch.float64)
    params, buffers = stack([net, net])
    leaves = {n: p.requires_grad_() for n, p in params.items()}
    x = torch.randn(5, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    slopes = torch.autograd.grad(built(leaves, buffers, x).square().sum(), list(leaves.values()))
    alone = torch.autograd.grad(net(x).square().sum(), list(net.parameters()))
    for stacked, own in zip(slopes, alone, strict=True):
        torch.testing.assert_close(stacked[1], own, rtol=1e-12, atol=1e-12)


class Reparametrized(nn.Module):
    """Its forward pass calls a network at other parameters than its own: a trace of it shows the network alone."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))

    def forward(self, x: Tensor) -> Tensor:
        there = {n: torch.sinh(p) for n, p in self.inner.named_parameters()}
        return torch.func.functional_call(self.inner, there, (x,))  # type: ignore[no-any-return]


def test_a_trace_that_gives_other_values_is_not_used() -> None:
    module = Reparametrized().double()
    network = build(module, (4,), torch.float64)
    params, buffers = stack([module, module])
    x = torch.randn(7, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert network.kind == "vmap"
    assert "off by" in network.reason
    assert_close(network(params, buffers, x)[1], module(x), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("K", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("groups", "stride", "padding"), [(1, 1, 1), (1, 2, 0), (2, 2, 1), (1, 1, "same")])
def test_convolutions_that_are_differentiated_twice(
    K: int, bias: bool, groups: int, stride: int, padding: int | str
) -> None:
    """Second derivatives against PyTorch's own, by inputs, weights and biases, where the loss is curved in each."""
    layer = nn.Conv2d(2, 4, 3, stride=stride, padding=padding, groups=groups, bias=bias).double()
    rng = torch.Generator().manual_seed(0)
    own = [torch.randn(K, *p.shape, generator=rng, dtype=torch.float64).requires_grad_() for p in layer.parameters()]
    x = torch.randn(K, 3, 2, 6, 6, generator=rng, dtype=torch.float64).requires_grad_()
    v = [torch.randn(t.shape, generator=rng, dtype=torch.float64) for t in (x, *own)]

    def product(run: Any) -> tuple[torch.Tensor, ...]:
        g = torch.autograd.grad(run().sin().sum(), (x, *own), create_graph=True)
        return torch.autograd.grad(g, (x, *own), v)

    def ours() -> torch.Tensor:
        return layers.LAYERS[nn.Conv2d](
            layer, dict(zip(("weight", "bias"), own, strict=False)), x, Pass(twice=True), ""
        )

    def plain() -> torch.Tensor:
        how = {"stride": stride, "padding": padding, "groups": groups}
        rows = [F.conv2d(x[k], *(t[k] for t in own), **how) for k in range(K)]  # type: ignore[arg-type]
        return torch.stack(rows)

    for got, due in zip(product(ours), product(plain), strict=True):
        assert_close(got, due, rtol=1e-10, atol=1e-12)


class Owner(nn.Module):
    """A user's module with attributes of the names that we would like, some of them not to be set."""

    def __init__(self) -> None:
        super().__init__()
        self.input_dim, self.loss, self.graph, self.reason = 2, "mine", None, 7
        self.one, self.act, self.two = nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 3)
        self.act.inplace = True

    @property
    def inplace(self) -> bool:
        return True

    def forward(self, x: Tensor) -> Tensor:
        assert (self.input_dim, self.loss, self.graph, self.reason) == (2, "mine", None, 7)
        return self.two(self.act(self.one(x.flatten(1)))) * self.input_dim


@pytest.mark.parametrize("shape", [(4,), (2, 2)])
def test_the_users_module_is_left_as_it_was(shape: tuple[int, ...]) -> None:
    module = Owner().double().train()
    before, state = dict(vars(module)), {n: t.clone() for n, t in module.state_dict().items()}
    network, (params, buffers) = build(module, shape, f64), stack([module, module])
    x = torch.randn(6, *shape, generator=torch.Generator().manual_seed(0), dtype=f64)
    found = network(params, buffers, x)
    assert_close(found[0], module(x).detach(), rtol=1e-12, atol=1e-14)
    assert_close(network(params, buffers, torch.stack([x, x])), found)
    assert vars(module) == before and module.training and module.act.inplace
    assert all(torch.equal(t, state[n]) for n, t in module.state_dict().items())
    assert vars(network.module).keys() == before.keys()  # nor has the copy anything of ours
