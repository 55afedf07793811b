"""Reparametrizations leave outputs to 1e-9, are undone by their inverses, and are refused where they would be wrong."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import torch
from conftest import build_module
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from landscape_cli import network, registry
from landscape_cli.audit import transforms as rp
from landscape_cli.curvature.objective import Objective, flatten
from landscape_cli.network.channels import LOGITS, channel_groups
from landscape_cli.registry.errors import Fault

f64 = torch.float64


class Residual(nn.Module):
    """Two blocks, the second with a projection: the trunk's channels are tied by the sums."""

    def __init__(self, norm: bool = True) -> None:
        super().__init__()
        sizes = {"stem": (2, 6, 3, 1), "c1": (6, 6, 3, 1), "c2": (6, 6, 3, 1), "c3": (6, 8, 3, 2), "c4": (8, 8, 3, 1)}
        for name, (a, b, k, stride) in (sizes | {"short": (6, 8, 1, 2)}).items():
            self.add_module(name, nn.Conv2d(a, b, k, stride, padding=k // 2))
            self.add_module(f"n_{name}", nn.BatchNorm2d(b) if norm and name != "short" else nn.Identity())
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        def layer(name: str, x: Tensor) -> Tensor:
            out: Tensor = self.get_submodule(f"n_{name}")(self.get_submodule(name)(x))
            return out

        x = torch.relu(layer("stem", x))
        x = torch.relu(x + layer("c2", torch.relu(layer("c1", x))))
        x = torch.relu(layer("short", x) + layer("c4", torch.relu(layer("c3", x))))
        out: Tensor = self.last(x.mean((2, 3)))
        return out


def named(**spec: object) -> Callable[[], nn.Module]:
    return lambda: build_module(spec, SHAPES[str(spec["name"])], 3, 0)


SHAPES = {"mlp": (5,), "cnn": (2, 8, 8), "cnn1d": (40,), "lenet": (1, 8, 8)}
NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (named(name="mlp", hidden=[6, 5]), (5,)),
    "mlp, batchnorm": (named(name="mlp", hidden=[6, 5], batchnorm=True), (5,)),
    "tanh": (named(name="mlp", hidden=[6, 5], activation="tanh"), (5,)),
    "cnn": (named(name="cnn", channels=[3, 4]), (2, 8, 8)),
    "cnn, batchnorm": (named(name="cnn", channels=[3, 4], batchnorm=True), (2, 8, 8)),
    "cnn1d": (named(name="cnn1d", channels=4), (40,)),
    "lenet": (named(name="lenet"), (1, 8, 8)),
    "residual": (Residual, (2, 8, 8)),
    "residual, no norm": (lambda: Residual(norm=False), (2, 8, 8)),
}


@cache
def minima(name: str, count: int = 2) -> rp.Minima:
    """Networks with parameters and statistics at random, far from those at the start."""
    registry.load_plugins([])
    made, shape = NETS[name][0]().double().eval(), NETS[name][1]
    copies = []
    for k in range(count):
        one, rng = copy.deepcopy(made), torch.Generator().manual_seed(k)
        for p in one.parameters():
            p.data += 0.2 * torch.randn(p.shape, generator=rng, dtype=f64)
        for n, b in one.named_buffers():
            if "mean" in n:
                b.copy_(torch.randn(b.shape, generator=rng, dtype=f64))
            if "var" in n:
                b.copy_(0.1 + torch.rand(b.shape, generator=rng, dtype=f64))
        copies.append(one)
    return rp.Minima(network.build(made, shape, f64), *network.stack(copies), shape)


def plain_outputs(at: rp.Minima, k: int, x: Tensor) -> Tensor:
    """Of PyTorch's own module, whose function no code of ours runs."""
    module = copy.deepcopy(at.network.module)
    module.load_state_dict({n: t[k] for n, t in (at.params | at.buffers).items()})
    with torch.no_grad():
        out: Tensor = module.eval()(x)
    return out


def same_function(before: rp.Minima, after: rp.Minima, c: float = 1.0) -> None:
    x = torch.randn(7, *before.input_shape, generator=torch.Generator().manual_seed(9), dtype=f64)
    for k in range(2):
        due = c * plain_outputs(before, k, x)
        assert_close(plain_outputs(after, k, x), due, rtol=1e-9, atol=1e-9 * max(1.0, float(due.abs().max())))


def equal(a: rp.Minima, b: rp.Minima) -> None:
    for left, right in ((a.params, b.params), (a.buffers, b.buffers)):
        for n, t in left.items():
            assert_close(right[n], t, rtol=1e-10, atol=1e-12)


TRANSFORMS: dict[str, Callable[[rp.Minima, float, int, bool], rp.Moved]] = {
    "alpha_scale": lambda at, s, seed, back: rp.alpha_scale(at, 10 ** (-s if back else s)),
    "filter_scale": lambda at, s, seed, back: rp.filter_scale(at, -s if back else s, seed),
    "batchnorm_scale": lambda at, s, seed, back: rp.batchnorm_scale(at, -s if back else s, seed),
    "permute": lambda at, s, seed, back: rp.permute(at, seed, back),
}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("transform", TRANSFORMS)
@settings(max_examples=6, deadline=None)
@given(strength=st.floats(-1.5, 1.5), seed=st.integers(0, 2**31))
def test_outputs_stay_and_the_inverse_leads_back(transform: str, name: str, strength: float, seed: int) -> None:
    at, move = minima(name), TRANSFORMS[transform]
    moved = move(at, strength, seed, False)
    same_function(at, moved.minima)
    equal(move(moved.minima, strength, seed, True).minima, at)
    for n, t in moved.carry(at.params).items():
        assert torch.equal(t, moved.minima.params[n])


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_what_qualifies_is_moved(transform: str) -> None:
    """Not the identity where it is applicable, and the very same minima where it is not."""
    for name in NETS:
        at = minima(name)
        moved = TRANSFORMS[transform](at, 1.0, 3, False)
        both = ((at.params | at.buffers)[n] - t for n, t in (moved.minima.params | moved.minima.buffers).items())
        apart = max(float(d.abs().max()) for d in both if d.is_floating_point())
        normed, tanh = "batchnorm" in name or name == "residual", name == "tanh"
        due = {"batchnorm_scale": normed, "permute": True}.get(transform, not tanh)
        assert (apart > 0.1) == bool(moved.moved) == due, name


def test_a_weight_and_its_bias_times_alpha_and_the_next_weight_alone_divided() -> None:
    at = minima("mlp")
    moved = rp.alpha_scale(at, 4.0, only="3->5").minima.params
    for n, factor in {"1.weight": 1, "1.bias": 1, "3.weight": 4, "3.bias": 4, "5.weight": 0.25, "5.bias": 1}.items():
        assert torch.equal(moved[n], at.params[n] * factor)
    normed = rp.alpha_scale(minima("mlp, batchnorm"), 4.0, only="2->4").minima.params
    assert torch.equal(normed["2.bias"], 4 * minima("mlp, batchnorm").params["2.bias"])
    with pytest.raises(Fault, match=r"5->.*the logits"):
        rp.alpha_scale(at, 4.0, only="5->")
    with pytest.raises(Fault, match="no such channels"):
        rp.alpha_scale(at, 4.0, only="1->5")


def test_a_trunk_is_one_group_that_its_sums_tie() -> None:
    plain = minima("residual, no norm")
    groups = {g.name: g.reason for g in channel_groups(plain.network, plain.input_shape, "scale")}
    assert groups == {"stem+c2->c1+short+c3": "", "c1->c2": "", "short+c4->last": "", "c3->c4": "", "last->": LOGITS}
    at = minima("residual")
    groups = {g.name: g.reason for g in channel_groups(at.network, at.input_shape, "scale")}
    assert {"n_stem+n_c2->c1+short+c3", "stem->n_stem", "c4->n_c4", "short+n_c4->last"} <= groups.keys()
    assert set(groups.values()) == {"", LOGITS}
    hurt = dict(at.params)  # what scaling one writer of the trunk alone would do
    hurt["n_c2.weight"], hurt["n_c2.bias"] = 2 * hurt["n_c2.weight"], 2 * hurt["n_c2.bias"]
    hurt["c3.weight"], hurt["short.weight"] = hurt["c3.weight"] / 2, hurt["short.weight"] / 2
    x = torch.randn(5, 2, 8, 8, dtype=f64, generator=torch.Generator().manual_seed(0))
    assert float((at.network(hurt, at.buffers, x) - at.outputs(x)).abs().max()) > 1e-3


class Odd(nn.Module):
    """Ways in which channels are read or mixed that no scaling survives, and one that it does."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(12 if way == "cat" else 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x))
        g = torch.relu(self.b(h))
        out = {
            "cat": lambda: torch.cat([h, g], 1),
            "product": lambda: h * g,
            "shift": lambda: g + 1.0,
            "square": lambda: g * g,
            "double": lambda: g + g,
            "half": lambda: 0.5 * g,
            "tanh": lambda: torch.tanh(g),
        }[self.way]()
        last: Tensor = self.c(out)
        return last


ODD = {
    "cat": {"a->b": "cat", "b->": "cat", "c->": LOGITS},
    "product": {"a->b": "mul", "b->": "mul", "c->": LOGITS},
    "shift": {"a->b": "", "b->": "add", "c->": LOGITS},
    "square": {"a->b": "", "b->": "mul", "c->": LOGITS},
    "double": {"a->b": "", "b->c": "", "c->": LOGITS},
    "half": {"a->b": "", "b->c": "", "c->": LOGITS},
    "tanh": {"a->b": "", "b->": "tanh", "c->": LOGITS},
}


@pytest.mark.parametrize("way", ODD)
def test_what_does_not_pass_a_factor_on_is_left_with_the_reason(way: str) -> None:
    net = network.build(Odd(way).double(), (4,), f64)
    groups = {g.name: g.reason for g in channel_groups(net, (4,), "scale")}
    assert groups.keys() == ODD[way].keys()
    for name, reason in groups.items():
        assert ODD[way][name] in reason if ODD[way][name] else reason == "", (name, reason)
    at = rp.Minima(net, *network.stack([Odd(way).double(), Odd(way).double()]), (4,))
    for moved in (rp.filter_scale(at, 1.0, 2), rp.permute(at, 4)):
        same_function(at, moved.minima)


def test_a_network_without_a_graph_is_refused() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.a(x) if x.sum() > 0 else self.a(2 * x)
            return out

    module = Branching().double()
    at = rp.Minima(network.build(module, (4,), f64), *network.stack([module, module]), (4,))
    for move in TRANSFORMS.values():
        with pytest.raises(Fault, match="cannot be worked out"):
            move(at, 1.0, 0, False)


def test_a_transform_that_changes_the_function_raises() -> None:
    at = minima("mlp")
    with pytest.raises(ArithmeticError, match="changes outputs by"):
        longer = {n: 1.1 * t for n, t in at.params.items()}
        rp._proven("toy", at, replace(rp.permute(at), minima=replace(at, params=longer)))


@pytest.mark.parametrize("name", NETS)
def test_logits_times_c(name: str) -> None:
    at = minima(name)
    same_function(at, rp.logit_scale(at, 3.0).minima, 3.0)
    equal(rp.logit_scale(rp.logit_scale(at, 3.0).minima, 1 / 3).minima, at)


@pytest.mark.parametrize("chart", ["cubic", "sinh"])
@pytest.mark.parametrize("name", ["mlp", "cnn, batchnorm", "residual"])
def test_other_coordinates_of_the_same_parameters(name: str, chart: rp.Chart) -> None:
    """theta = h(phi); directions, the gradient and the Hessian follow the chain rule (METRICS section 9)."""
    at = minima(name, 1)
    moved = rp.smooth(at, chart)
    x = torch.randn(7, *at.input_shape, generator=torch.Generator().manual_seed(9), dtype=f64)
    assert_close(moved.minima.outputs(x), at.outputs(x), rtol=1e-9, atol=1e-9)
    theta, phi = flatten(at.params), flatten(moved.minima.params)
    c = float(1 / theta.square().mean()) if chart == "cubic" else float(theta.square().mean() ** -0.5)
    assert_close(phi + c * phi**3 if chart == "cubic" else torch.sinh(c * phi) / c, theta, rtol=1e-12, atol=1e-14)
    D = 1 + 3 * c * phi**2 if chart == "cubic" else torch.cosh(c * phi)
    second = 6 * c * phi if chart == "cubic" else c * torch.sinh(c * phi)
    y = torch.arange(7) % 3
    one, other = (Objective(m.network, m.params, m.buffers, x, y) for m in (at, moved.minima))
    g = one.loss_and_gradient(theta)[1]
    assert_close(other.loss_and_gradient(phi)[1], D * g, rtol=1e-8, atol=1e-12)
    v = torch.randn(theta.shape, generator=torch.Generator().manual_seed(1), dtype=f64)
    carried = flatten(moved.carry(one.unflatten(v)))
    assert_close(carried, v / D, rtol=1e-12, atol=0)
    due = D * one.hessian_product(theta)(D * carried) + second * g * carried
    assert_close(other.hessian_product(phi)(carried), due, rtol=1e-7, atol=1e-11)


def test_coordinates_are_those_of_one_minimum() -> None:
    with pytest.raises(Fault, match="a stack of one"):
        rp.smooth(minima("mlp"), "cubic")
