"""Adaptive sharpness by hand, in closed form, by plain loops, and under rescalings that keep the function."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from helpers import N, at_of, data, modules, symmetric
from scipy.optimize import minimize
from surface_cases import ball_maximum, bowl, box_maximum, honest, plain_rise, quadratic, rescaled, shelf, slope
from torch import Tensor, nn

from landscape_cli.registry import REGISTRY, claims

f64 = torch.float64
NAME = "adaptive_sharpness"
TIGHT = {"solver": "converged", "tolerance": 1e-8, "max_steps": 2000}


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=f64)


def reach(module: nn.Module, scope: str) -> Tensor:
    """The diagonal of T."""
    parts = []
    for t in module.parameters():
        own = t.detach()
        if scope == "filterwise" and own.dim() > 1:
            parts += [torch.full((row.numel(),), float(row.norm()), dtype=f64) for row in own]
        else:
            parts.append(own.abs().flatten())
    return torch.cat(parts)


# ---- by hand

HAND_A = [  # theta (2, -1), gradient (1, 3), Hessian diag(1, 2), rho 0.1: T = diag(2, 1)
    ({"norm": "l2", "solver": "ascent"}, 0.3736320506),  # |Tg| = sqrt 13: sqrt 13 / 10 + 0.34 / 26
    ({"norm": "linf", "solver": "ascent"}, 0.53),  # d = (0.2, 0.1): 0.2 + 0.3 + (0.04 + 0.02) / 2
    ({"norm": "linf", **TIGHT}, 0.53),  # convex and separable: that corner is the highest
]
HAND_B = [  # one filter (3, 4) and its bias -2, gradient (1, 0, 2), Hessian 1, rho 0.1
    (
        {"scope": "filterwise", "norm": "l2", "solver": "ascent"},
        0.7243368140,
    ),  # T = (5, 5, 2): 41^.5 / 10 + 6.89 / 82
    ({"scope": "elementwise", "norm": "l2", "solver": "ascent"}, 0.529),  # T = (3, 4, 2): 0.5 + 0.01 * 145 / 50
    ({"scope": "filterwise", "norm": "linf", "solver": "ascent"}, 1.045),  # d = (0.5, 0, 0.2): 0.9 + 0.145
    ({"scope": "elementwise", "norm": "linf", "solver": "ascent"}, 0.765),  # d = (0.3, 0, 0.2): 0.7 + 0.065
]


@pytest.mark.parametrize(("settings", "due"), HAND_A)
def test_two_parameters_by_hand(settings: dict[str, object], due: float) -> None:
    at = quadratic(torch.diag(tensor(1, 2)), tensor(1, 3), tensor(2, -1))
    found = shelf(NAME, at, rho=0.1, case="worst", scope="elementwise", **settings)
    assert float(found.value) == pytest.approx(due, rel=1e-9)
    assert float(found.standard_error) == 0
    assert found.status == ["ok"]


@pytest.mark.parametrize(("settings", "due"), HAND_B)
def test_a_filter_and_its_bias_by_hand(settings: dict[str, object], due: float) -> None:
    at = quadratic(torch.eye(3, dtype=f64), tensor(1, 0, 2), {"weight": tensor(3, 4)[None], "bias": tensor(-2)})
    found = shelf(NAME, at, rho=0.1, case="worst", **settings)
    assert float(found.value) == pytest.approx(due, rel=1e-9)


@pytest.mark.parametrize(("norm", "share"), [("l2", 1.0), ("linf", 1 / 3)])
@pytest.mark.parametrize(("scope", "due"), [("elementwise", 0.145), ("filterwise", 0.27)])
def test_averages_by_hand(norm: str, share: float, scope: str, due: float) -> None:
    """rho^2/2 sum_j T_j^2 H_jj: 0.005 (9 + 16 + 4) and 0.005 (25 + 25 + 4); U[-1, 1] has variance 1/3."""
    at = quadratic(torch.eye(3, dtype=f64), tensor(0, 0, 0), {"weight": tensor(3, 4)[None], "bias": tensor(-2)})
    found = shelf(NAME, at, rho=0.1, case="average", norm=norm, scope=scope, draws=400)
    assert abs(float(found.value) - share * due) < 3.5 * float(found.standard_error) < 0.2 * share * due


# ---- quadratics in closed form

SPECTRA = {"positive": (0.1, 0.5, 1, 2, 4), "indefinite": (-3, -1, 0.5, 1, 2), "negative": (-3, -2, -1, -0.5, -0.2)}
START = {"weight": torch.tensor([[0.5, -1.5], [2.0, 0.3]], dtype=f64), "bias": torch.tensor([-0.8], dtype=f64)}


def scaled(scope: str) -> Tensor:
    w = START["weight"]
    rows = w.norm(dim=1).repeat_interleave(2) if scope == "filterwise" else w.abs().flatten()
    return torch.cat([rows, START["bias"].abs()])


@pytest.mark.parametrize("scope", ["elementwise", "filterwise"])
@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("rho", [0.05, 0.6])
def test_worst_case_of_quadratics(name: str, scope: str, rho: float) -> None:
    for seed in range(3):
        H, T = symmetric(torch.tensor(SPECTRA[name]), seed), scaled(scope)
        b = 0.2 * torch.randn(5, generator=torch.Generator().manual_seed(seed), dtype=f64)
        at = bowl(H, b, START, c=4.0)
        Hz, bz = T[:, None] * H * T, T * b
        common = {"rho": rho, "scope": scope, "case": "worst"}
        round_, square = (shelf(NAME, at, norm=norm, **common, **TIGHT) for norm in ("l2", "linf"))
        assert float(round_.value) == pytest.approx(ball_maximum(Hz, bz, rho), rel=1e-5)
        due = box_maximum(Hz, bz, torch.full((5,), rho, dtype=f64))
        assert float(square.value) <= due * (1 + 1e-9)
        assert float(square.value) >= 0.4 * due
        if (bz.abs() > rho * Hz.abs().sum(1)).all():  # a single way up
            assert float(square.value) == pytest.approx(due, rel=1e-9)
        step2, step8 = (shelf(NAME, at, norm=norm, solver="ascent", **common) for norm in ("l2", "linf"))
        for found, z in ((step2, rho * bz / bz.norm()), (step8, rho * bz.sign())):
            assert float(found.value) == pytest.approx(float(bz @ z + z @ Hz @ z / 2), rel=1e-9)
        assert float(step2.value) <= float(round_.value) * (1 + 1e-9) + 1e-15
        assert float(step8.value) <= float(square.value) * (1 + 1e-9) + 1e-15


def test_a_separable_box_is_climbed_to_its_top() -> None:
    h, b = tensor(-4, -0.5, 1, 2, 3), tensor(0.2, -1, 0.7, -0.1, 0.4)
    for scope, rho in itertools.product(("elementwise", "filterwise"), (0.05, 0.7)):
        T = scaled(scope)
        found = shelf(NAME, bowl(torch.diag(h), b, START), rho=rho, norm="linf", case="worst", scope=scope, **TIGHT)
        due = box_maximum(torch.diag(T * T * h), T * b, torch.full((5,), rho, dtype=f64))
        assert float(found.value) == pytest.approx(due, rel=1e-8)


def test_at_a_stationary_point_the_top_of_the_scaled_hessian_decides() -> None:
    H, T = symmetric(torch.tensor(SPECTRA["indefinite"]), 1), scaled("elementwise")
    at = bowl(H, torch.zeros(5, dtype=f64), START)
    found = shelf(NAME, at, rho=0.3, norm="l2", case="worst", scope="elementwise", **TIGHT)
    top = float(torch.linalg.eigvalsh(T[:, None] * H * T)[-1])
    assert float(found.value) == pytest.approx(top * 0.09 / 2, rel=1e-6)
    for norm in ("l2", "linf"):
        step = shelf(NAME, at, rho=0.3, norm=norm, case="worst", scope="elementwise", solver="ascent")
        assert step.status == ["undefined"]
        assert step.value.isnan().all()


def test_a_parameter_that_is_zero_stays_zero() -> None:
    """Elementwise, where all the slope is in that coordinate nothing rises; filterwise its filter carries it."""
    H, b = torch.diag(tensor(1, 2, 3)), tensor(0, 5, 0)
    at = bowl(H, b, {"weight": tensor(2, 0)[None], "bias": tensor(1)})
    for norm in ("l2", "linf"):
        common = {"rho": 0.1, "norm": norm, "case": "worst"}
        assert shelf(NAME, at, scope="elementwise", solver="ascent", **common).status == ["undefined"]
        own = shelf(NAME, at, scope="filterwise", solver="ascent", **common)
        assert float(own.value) == pytest.approx(5 * 0.2 + 0.04, rel=1e-9)  # d = (0, 0.1 * 2, 0)
    free = shelf(NAME, at, rho=0.1, norm="l2", case="worst", scope="elementwise", **TIGHT)
    assert float(free.value) == pytest.approx(4 * 0.01 / 2, rel=1e-6)  # T H T = diag(4, 0, 3)
    origin = shelf(NAME, bowl(H, b, torch.zeros(3)), rho=0.1, case="worst", scope="elementwise", **TIGHT)
    assert origin.status != ["ok"]
    assert not origin.value.isinf().any()


def test_a_rise_below_rounding_is_unresolved() -> None:
    at = bowl(1e-14 * torch.eye(3, dtype=f64), torch.zeros(3, dtype=f64), tensor(1, 2, 3))
    for case, norm in itertools.product(("worst", "average"), ("l2", "linf")):
        extra = {"solver": "converged"} if case == "worst" else {}
        found = shelf(NAME, at, rho=0.1, case=case, norm=norm, scope="elementwise", **extra)
        assert found.status == ["unresolved"], (case, norm, found)
    slope = bowl(torch.zeros(3, 3, dtype=f64), tensor(1e-15, 0, 0), tensor(1, 2, 3))
    assert shelf(NAME, slope, rho=0.1, case="worst", solver="ascent").status == ["unresolved"]


# ---- nets by plain loops

NETS = ["relu", "tanh", "conv1d", "residual", "batchnorm"]


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("scope", ["elementwise", "filterwise"])
def test_one_step_on_nets(net: str, scope: str) -> None:
    (x, y), (x2, y2) = data(net), data(net, 2 * N, seed=1)
    both = modules(net)
    at = at_of(both, x, y, (x2, y2))
    for split, own, normalize in (("train", (x, y), False), ("test", (x2, y2), False), ("train", (x, y), True)):
        common = {"rho": 0.2, "case": "worst", "scope": scope, "solver": "ascent"}
        found = {
            norm: shelf(NAME, at, norm=norm, split=split, normalize_logits=normalize, **common)
            for norm in ("l2", "linf")
        }
        for k, module in enumerate(both):
            T, rise = reach(module, scope), plain_rise(module, *own, normalize)
            g = slope(rise, len(T))
            assert float(found["l2"].value[k]) == pytest.approx(float(rise(0.2 * T * T * g / (T * g).norm())), rel=1e-8)
            assert float(found["linf"].value[k]) == pytest.approx(float(rise(0.2 * T * g.sign())), rel=1e-8)


@pytest.mark.parametrize("net", ["relu", "tanh"])
@pytest.mark.parametrize("scope", ["elementwise", "filterwise"])
def test_the_highest_point_on_nets_against_scipy(net: str, scope: str) -> None:
    """L-BFGS-B in the box and SLSQP in the ball from several starts, all within a small reach."""
    x, y = data(net)
    module = modules(net)[0]
    T, f, rho = reach(module, scope), plain_rise(module, x, y), 0.1

    def fall(z: np.ndarray) -> tuple[float, np.ndarray]:
        t = torch.tensor(z, dtype=f64, requires_grad=True)
        value = f(T * t)
        return -float(value.detach()), -torch.autograd.grad(value, t)[0].numpy()

    g = (T * slope(f, len(T))).numpy()
    rng = np.random.default_rng(0)
    best = {"l2": 0.0, "linf": 0.0}
    for start in (g, g + np.linalg.norm(g) / len(g) ** 0.5 * rng.standard_normal(len(g))):
        box = minimize(fall, 0.5 * rho * np.sign(start), jac=True, method="L-BFGS-B", bounds=[(-rho, rho)] * len(g))
        sphere = {"type": "ineq", "fun": lambda z: rho**2 - z @ z, "jac": lambda z: -2 * z}
        z0 = 0.9 * rho * start / np.linalg.norm(start)
        ball = minimize(fall, z0, jac=True, method="SLSQP", constraints=[sphere], options={"ftol": 1e-13})
        best = {"l2": max(best["l2"], -ball.fun), "linf": max(best["linf"], -box.fun)}
    for norm, due in best.items():
        found = shelf(NAME, at_of([module], x, y), rho=rho, norm=norm, case="worst", scope=scope, **TIGHT)
        # in the box many corners are local maxima, on a kink of a relu too: neither search is the better one
        assert float(found.value) == pytest.approx(due, rel=1e-4 if norm == "l2" else 2e-2), norm


@pytest.mark.parametrize("net", ["relu", "batchnorm"])
@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("scope", ["elementwise", "filterwise"])
def test_averages_on_nets_against_many_plain_draws(net: str, norm: str, scope: str) -> None:
    x, y = data(net)
    module = modules(net)[0]
    T, f = reach(module, scope), torch.func.vmap(plain_rise(module, x, y))
    rng = torch.Generator().manual_seed(9)
    draw = torch.randn if norm == "l2" else torch.rand
    many = draw(20000, len(T), generator=rng, dtype=f64)
    each = f(0.3 * T * (many if norm == "l2" else 2 * many - 1)).detach()
    found = shelf(NAME, at_of([module], x, y), rho=0.3, case="average", norm=norm, scope=scope, draws=500)
    error = float((found.standard_error**2 + each.var() / len(each)) ** 0.5)
    assert abs(float(found.value) - float(each.mean())) < 3.5 * error
    assert error < 0.4 * float(each.mean())


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_standard_errors_of_averages_are_honest(norm: str) -> None:
    H = symmetric(torch.tensor(SPECTRA["positive"]), 0)
    b, T = tensor(0.3, -0.5, 0.1, 0.2, 0.4), scaled("elementwise")
    at = bowl(H, b, START, c=5.0)
    found = [shelf(NAME, at, rho=0.2, case="average", norm=norm, scope="elementwise", seed=s) for s in range(100)]
    honest(found, 0.02 * float((T * T * H.diagonal()).sum()) * (1 if norm == "l2" else 1 / 3))


# ---- rescalings that keep the function

PAIRS = {"relu": ([1], 3), "conv1d": ([1], 3), "batchnorm": ([2], 4)}  # layers that are scaled, layer that undoes it
CLIMB = {"solver": "converged", "tolerance": 1e-5, "max_steps": 150}
CASE = [{"case": "worst", "solver": "ascent"}, {"case": "worst", **CLIMB}, {"case": "average"}]


def twins(net: str, change: str) -> tuple[object, object]:
    module, rng = modules(net)[0], torch.Generator().manual_seed(3)
    before, after = PAIRS[net]
    units = len(module[before[0]].weight)
    noise = torch.randn(units, generator=rng, dtype=f64).exp()
    factor = {"filter": noise, "layer": torch.full((units,), 7.0, dtype=f64)}[change]
    other = rescaled(module, before, after, factor)
    x, y = data(net)
    assert torch.allclose(module(x), other(x), rtol=0, atol=1e-12)
    return at_of([module], x, y), at_of([other], x, y)


@pytest.mark.parametrize("net", PAIRS)
@pytest.mark.parametrize("settings", CASE, ids=["ascent", "converged", "average"])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_rescalings(net: str, settings: dict[str, object], norm: str) -> None:
    for change in ("filter", "layer"):
        here, there = twins(net, change)
        for scope in ("elementwise", "filterwise"):
            one, two = (shelf(NAME, at, rho=0.1, norm=norm, scope=scope, **settings) for at in (here, there))
            apart = abs(float(two.value) / float(one.value) - 1)
            if scope == "elementwise" or change == "layer":
                assert apart < 1e-6, (change, scope)
                assert float(two.standard_error) == pytest.approx(float(one.standard_error), rel=1e-6)
            else:
                assert apart > 1e-3, (change, scope)  # per-neuron factors are not undone by the norms of rows


@pytest.mark.parametrize("settings", CASE, ids=["ascent", "converged", "average"])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_with_normalized_logits_the_scale_of_the_last_layer_is_free(settings: dict[str, object], norm: str) -> None:
    (x, y), module = data("relu"), modules("relu")[0]
    for scope in ("elementwise", "filterwise"):
        values = []
        for factor in (1.0, 30.0):
            other = copy.deepcopy(module)
            other[3].weight.data *= factor
            other[3].bias.data *= factor
            common = {"rho": 0.1, "norm": norm, "scope": scope, **settings}
            values.append(
                [float(shelf(NAME, at_of([other], x, y), normalize_logits=n, **common).value) for n in (True, False)]
            )
        (one, plain), (two, moved) = values
        assert two == pytest.approx(one, rel=1e-4 if norm == "linf" and "tolerance" in settings else 1e-8)
        assert abs(moved / plain - 1) > 0.1  # teeth


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_neurons_may_be_shuffled(norm: str) -> None:
    (x, y), module = data("relu"), modules("relu")[0]
    other = copy.deepcopy(module)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    other[1].weight.data, other[1].bias.data = module[1].weight.data[order], module[1].bias.data[order]
    other[3].weight.data = module[3].weight.data[:, order]
    for scope, settings in itertools.product(("elementwise", "filterwise"), CASE[:2]):
        one, two = (shelf(NAME, at_of([m], x, y), rho=0.1, norm=norm, scope=scope, **settings) for m in (module, other))
        assert float(two.value) == pytest.approx(float(one.value), rel=1e-6)


def test_claims_are_what_was_measured() -> None:
    stated = {k: set(v) for k, v in claims(REGISTRY["metric"][NAME]).items()}
    assert stated == {
        k: {"permutation", "global", v} for k, v in (("scope=elementwise", "filter"), ("scope=filterwise", "scale"))
    }


def test_few_steps_are_reported_and_more_draws_count() -> None:
    at = bowl(symmetric(torch.tensor(SPECTRA["positive"]), 0), 0.05 * torch.ones(5, dtype=f64), START)
    early = shelf(NAME, at, rho=1.0, norm="l2", case="worst", solver="converged", tolerance=1e-10, max_steps=1)
    assert early.status == ["not_converged"]
    assert "max_steps" in early.message[0]
    few, many = (shelf(NAME, at, rho=0.1, case="average", draws=d) for d in (8, 800))
    assert many.samples == 800
    assert float(many.standard_error) < 0.3 * float(few.standard_error)
