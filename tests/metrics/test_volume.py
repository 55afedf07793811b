"""PAC-Bayes sharpness and flat volumes in closed form, by many plain draws, and under rescalings."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from helpers import N, Quadratic, at_of, data, modules, symmetric
from scipy.stats import norm
from surface_cases import bowl, honest, plain_rise, rescaled, scores, shelf, surface
from torch import Tensor, nn

from landscape_cli.metrics.point import Point
from landscape_cli.registry import REGISTRY, claims

f64 = torch.float64
TIGHT = {"tolerance": 1e-7}
PAC = ["pac_bayes_sharpness", "pac_bayes_magnitude"]
VOLUMES = ["flat_volume", "flat_volume_filter"]
o = torch.tensor([0.5, -1.5, 2.0, 0.3, -0.8], dtype=f64)
START = {"weight": o[:4].view(2, 2), "bias": o[4:]}


def near(found: float, due: float, error: float, part: float) -> None:
    """Within 3.5 standard errors, and those are no more than a part of it."""
    assert abs(found - due) < 3.5 * error, (found, due, error)
    assert error < part * abs(due)


# ---- PAC-Bayes: the loss


@pytest.mark.parametrize("rise", [0.1, 0.02])
def test_loss_of_a_quadratic(rise: float) -> None:
    """E rise = sigma^2 tr H / 2, so 1/sigma^2 = tr H / (2 rise); its error from D draws: sqrt(2/D) |H|_F / (2 rise)."""
    H = symmetric(torch.tensor([0.5, 1, 2, 4, 8]), 0)
    at = bowl(H, torch.zeros(5, dtype=f64), o)
    found = shelf("pac_bayes_sharpness", at, target="loss", rise=rise, draws=200, tolerance=1e-4)
    near(float(found.value), 15.5 / (2 * rise), float(found.standard_error), 0.1)
    due = (2 / 200) ** 0.5 * float(H.norm()) / (2 * rise)
    assert float(found.standard_error) == pytest.approx(due, rel=0.3)
    own = shelf("pac_bayes_magnitude", at, target="loss", rise=rise, draws=200, eps=0.0)
    near(float(own.value), float(o.square() @ H.diagonal()) / (2 * rise), float(own.standard_error), 0.1)


def test_a_floor_of_the_noise_leaves_less_to_the_magnitudes() -> None:
    """sigma^2 sum o^2 H_jj + eps^2 tr H = 2 rise."""
    H = torch.diag(torch.tensor([0.5, 1, 2, 4, 8], dtype=f64))
    at, eps = bowl(H, torch.zeros(5, dtype=f64), o), 0.05
    found = shelf("pac_bayes_magnitude", at, target="loss", draws=400, eps=eps, **TIGHT)
    due = float(o.square() @ H.diagonal()) / (0.2 - eps**2 * 15.5)
    near(float(found.value), due, float(found.standard_error), 0.1)
    assert due > 1.2 * float(o.square() @ H.diagonal()) / 0.2  # teeth
    whole = shelf("pac_bayes_magnitude", at, target="loss", eps=1.0, **TIGHT)  # the floor alone has raised the loss
    assert whole.status == ["undefined"]


def test_the_slope_cancels_on_average() -> None:
    """The linear part adds noise and no mean; the standard error knows."""
    H, b = symmetric(torch.tensor([0.5, 1, 2, 4, 8]), 1), torch.tensor([0.1, -0.05, 0.15, 0.05, -0.1], dtype=f64)
    at = bowl(H, b, o, c=3.0)
    found = [shelf("pac_bayes_sharpness", at, target="loss", draws=32, tolerance=0.03, seed=seed) for seed in range(60)]
    honest(found, 15.5 / 0.2)


def test_rows_of_a_stack_are_their_own() -> None:
    H = torch.stack([h * torch.eye(40, dtype=f64) for h in (0.1, 1.0, 1e4)])
    at = Quadratic(H, torch.zeros(3, 40, dtype=f64), torch.ones(3, 40, dtype=f64)).point()
    for name in PAC:  # theta = 1: the same noise
        found = shelf(name, at, target="loss", draws=100, **TIGHT)
        each = found.value / torch.tensor([0.1, 1.0, 1e4], dtype=f64)
        assert float(each.max() / each.min()) == pytest.approx(1, rel=1e-6)  # common draws
        near(float(found.value[1]), 200, float(found.standard_error[1]), 0.05)


def test_the_smallest_of_several_crossings() -> None:
    """A ring of high loss around radius 0.3, a plain behind it, and a rise for good at 3000."""
    p = 100

    def q(theta: Tensor, x: Tensor) -> Tensor:
        r = ((theta - 1).square().sum() + 1e-300).sqrt()
        ring = 0.5 * torch.exp(-((r.log() - math.log(0.3)) ** 2) / (2 * 0.8**2))
        return 1 + ring + (r / 3000).square().clamp(max=10) + 0 * x[:, 0]

    at, due = surface(q, torch.ones(p, dtype=f64)), 0.3 * math.exp(-0.8 * (2 * math.log(5)) ** 0.5) / p**0.5
    for name in PAC:
        found = shelf(name, at, target="loss", draws=50, **TIGHT)
        assert float(found.value) == pytest.approx(1 / due**2, rel=0.05)  # |xi| is nearly sqrt p
    tall = shelf("pac_bayes_sharpness", at, target="loss", rise=0.6, draws=50, **TIGHT)
    assert float(tall.value) == pytest.approx(p / (0.6**0.5 * 3000) ** 2, rel=0.05)


@pytest.mark.parametrize("name", PAC)
def test_no_crossing_is_undefined(name: str) -> None:
    def low(theta: Tensor, x: Tensor) -> Tensor:
        r2 = (theta - 1).square().sum()
        return 1 + 0.05 * r2 / (1 + r2)

    found = shelf(name, surface(low, torch.ones(4)), target="loss")
    assert found.status == ["undefined"]
    assert found.value.isnan().all()
    assert found.message[0]
    down = Quadratic(-torch.eye(3, dtype=f64)[None], torch.zeros(1, 3, dtype=f64), torch.ones(1, 3, dtype=f64))
    assert shelf(name, down.point(), target="loss").status == ["undefined"]
    a = torch.cat([torch.ones(10, 2), -torch.ones(10, 2)])  # half of the samples are wrong whatever theta is
    assert shelf(name, scores(torch.ones(2), a), target="error").status == ["undefined"]


# ---- PAC-Bayes: the error


def cone(s: float, n: int = 150, p: int = 6) -> tuple[Tensor, Tensor]:
    """theta and unit inputs with a_i . theta = -s: expected error Phi(-s/sigma)."""
    rng = torch.Generator().manual_seed(0)
    side = torch.randn(n, p - 1, generator=rng, dtype=f64)
    side = side / side.norm(dim=1, keepdim=True)
    theta, c = torch.cat([torch.tensor([2.0]), torch.zeros(p - 1)]).double(), s / 2
    return theta, torch.cat([torch.full((n, 1), -c, dtype=f64), (1 - c**2) ** 0.5 * side], 1)


@pytest.mark.parametrize(("s", "rise"), [(0.5, 0.1), (0.05, 0.2)])
def test_error_of_linear_scores(s: float, rise: float) -> None:
    due = (float(norm.ppf(rise)) / s) ** 2
    assert rise != 0.1 or due == pytest.approx(1.6423744151 / s**2, rel=1e-9)
    found = shelf("pac_bayes_sharpness", scores(*cone(s)), target="error", rise=rise, draws=1000, **TIGHT)
    near(float(found.value), due, float(found.standard_error), 0.1)


def test_standard_errors_of_error_crossings_are_honest() -> None:
    at = scores(*cone(0.5))
    found = [shelf("pac_bayes_sharpness", at, target="error", draws=64, tolerance=0.01, seed=s) for s in range(60)]
    honest(found, 1.6423744151 / 0.25)


def sure(net: str) -> tuple[nn.Module, Tensor, Tensor]:
    """A net and the labels that it gives: no training error."""
    module, (x, _) = modules(net)[0], data(net, 2 * N)
    return module, x, module(x).argmax(1)


@pytest.mark.parametrize("net", ["relu", "tanh", "batchnorm"])
@pytest.mark.parametrize("name", PAC)
@pytest.mark.parametrize("target", ["error", "loss"])
def test_nets_against_many_plain_draws(net: str, name: str, target: str) -> None:
    module, x, y = sure(net)
    theta = torch.cat([t.detach().flatten() for t in module.parameters()])
    T = theta.abs() if name == "pac_bayes_magnitude" else torch.ones_like(theta)
    xi = torch.randn(1000, len(theta), generator=torch.Generator().manual_seed(5), dtype=f64)
    logits = torch.func.vmap(lambda d: torch.func.functional_call(module, unflat(module, theta + d), (x,)))
    loss = torch.func.vmap(plain_rise(module, x, y))

    def risen(log_sigma: float) -> float:
        d = math.exp(log_sigma) * T * xi
        if target == "loss":
            return float(loss(d).detach().mean())
        return float((logits(d).argmax(2) != y).double().mean())

    low, high = math.log(1e-3), math.log(1e-3)
    while risen(high) < 0.1:  # coarse steps upwards: the smallest crossing
        low, high = high, high + 0.3
    for _ in range(12):
        low, high = ((low + high) / 2, high) if risen((low + high) / 2) < 0.1 else (low, (low + high) / 2)
    found = shelf(name, at_of([module], x, y), target=target, draws=300)
    near(float(found.value), math.exp(-2 * high), 1.14 * float(found.standard_error), 0.25)


def unflat(module: nn.Module, theta: Tensor) -> dict[str, Tensor]:
    parts = theta.split([t.numel() for t in module.parameters()])
    return {n: part.view(t.shape) for (n, t), part in zip(module.named_parameters(), parts, strict=True)}


# ---- flat volume


def test_a_round_bowl_has_one_distance() -> None:
    """sqrt(2 rise / h) in every direction."""
    h = torch.tensor([0.04, 1.0, 2500.0], dtype=f64)
    H = h[:, None, None] * torch.eye(7, dtype=f64)
    at = Quadratic(H, torch.zeros(3, 7, dtype=f64), torch.ones(3, 7, dtype=f64)).point()
    found = shelf("flat_volume", at, rise=0.1)
    assert found.value.tolist() == pytest.approx((0.5 * (0.2 / h).log()).tolist(), abs=2e-3)
    assert (found.standard_error < 1e-3).all()
    assert found.status == ["ok"] * 3
    wide = shelf("flat_volume", at, rise=0.4)
    assert (wide.value - found.value).tolist() == pytest.approx([math.log(2)] * 3, abs=4e-3)


def units(count: int, p: int) -> Tensor:
    u = torch.randn(count, p, generator=torch.Generator().manual_seed(11), dtype=f64)
    return u / u.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("slope", [0.0, 0.5])
def test_standard_errors_of_the_volume_are_honest(slope: float) -> None:
    """b . u t + u^T H u t^2 / 2 = rise, its positive root."""
    H = torch.diag(torch.tensor([0.1, 0.5, 2, 10], dtype=f64))
    b = slope * torch.tensor([1.0, -1, 1, 0.5], dtype=f64)
    u = units(200000, 4)
    A, B = ((u @ H) * u).sum(1), u @ b
    truth = float((((B * B + 0.2 * A).sqrt() - B) / A).log().mean())
    at = bowl(H, b, o[:4], c=3.0)
    found = [shelf("flat_volume", at, directions=16, seed=s) for s in range(60)]
    honest(found, truth)


def test_the_first_of_several_distances() -> None:
    """A ring of high loss from 1 to 3, nothing behind it."""

    def q(theta: Tensor, x: Tensor) -> Tensor:
        r = ((theta - 1).square().sum() + 1e-300).sqrt()
        return 1 + torch.sigmoid(40 * (r - 1)) * torch.sigmoid(40 * (3 - r)) + 0 * x[:, 0]

    found = shelf("flat_volume", surface(q, torch.ones(5, dtype=f64)), rise=0.5)
    assert float(found.value) == pytest.approx(0, abs=2e-3)


def test_directions_that_never_rise_are_left_out_and_counted() -> None:
    """c exp(b . d / c): up on one side only, at distance c log(1 + rise/c) / (b . u)."""
    b, c = torch.tensor([3.0, 4.0], dtype=f64), 2.0

    def q(theta: Tensor, x: Tensor) -> Tensor:
        return (c * torch.exp(((theta - 1) @ b / c).clamp(max=30))).expand(len(x)) + 1e-6

    at, u = surface(q, torch.ones(2, dtype=f64)), units(200000, 2)
    up = u @ b > 0
    truth = float((c * math.log1p(0.1 / c) / (u @ b)[up]).log().mean())
    found = shelf("flat_volume", at, directions=250)
    near(float(found.value), truth, float(found.standard_error), 0.05)
    assert found.message[0]
    assert any(ch.isdigit() for ch in found.message[0])
    one = shelf("flat_volume", at, directions=250, seed=1)
    assert one.message != found.message  # another number of them

    def low(theta: Tensor, x: Tensor) -> Tensor:
        return 1 + 0.05 * torch.tanh((theta - 1).square().sum())

    for name in VOLUMES:
        none = shelf(name, surface(low, {"weight": torch.ones(2, 2)}))
        assert none.status == ["undefined"], name
        assert none.value.isnan().all()


def test_filters_are_measured_in_their_own_length() -> None:
    """H = h_i on filter i: d^T H d = sum_i h_i |filter_i|^2 whatever the draw; the bias does not move."""
    H = torch.diag(torch.tensor([2.0, 2, 5, 5, 1e8], dtype=f64))
    squares = START["weight"].square().sum(1)
    due = 0.5 * math.log(0.2 / float(2 * squares[0] + 5 * squares[1]))
    found = shelf("flat_volume_filter", bowl(H, torch.zeros(5, dtype=f64), START))
    assert float(found.value) == pytest.approx(due, abs=2e-3)
    assert float(found.standard_error) < 1e-3
    flat = shelf("flat_volume_filter", bowl(H, torch.zeros(5, dtype=f64), o))  # a vector has no filter
    assert flat.status == ["undefined"]


def test_filter_directions_are_gaussian() -> None:
    H = symmetric(torch.tensor([0.2, 1, 3, 9, 2]), 4)
    at = bowl(H, torch.zeros(5, dtype=f64), START)
    rng = torch.Generator().manual_seed(2)
    d = torch.randn(100000, 2, 2, generator=rng, dtype=f64)
    d = (d / d.norm(dim=2, keepdim=True) * START["weight"].norm(dim=1)[:, None]).flatten(1)
    truth = float((0.5 * (0.2 / ((d @ H[:4, :4]) * d).sum(1)).log()).mean())
    honest([shelf("flat_volume_filter", at, directions=16, seed=s) for s in range(60)], truth)


@pytest.mark.parametrize("net", ["relu", "batchnorm"])
@pytest.mark.parametrize("name", VOLUMES)
def test_volumes_of_nets_against_many_plain_directions(net: str, name: str) -> None:
    module, x, y = sure(net)
    f = torch.func.vmap(plain_rise(module, x, y))
    rng, parts = torch.Generator().manual_seed(8), []
    for t in module.parameters():
        d = torch.randn(500, *t.shape, generator=rng, dtype=f64)
        if name == "flat_volume_filter":
            own = d.flatten(2) if t.dim() > 1 else torch.zeros(500, len(t), 1, dtype=f64)
            length = t.detach().flatten(1).norm(dim=1)[:, None] if t.dim() > 1 else 1.0
            d = own / own.norm(dim=2, keepdim=True).clamp_min(1e-300) * length
        parts.append(d.flatten(1))
    u = torch.cat(parts, 1)
    u = u / u.norm(dim=1, keepdim=True) if name == "flat_volume" else u
    t = first_rise(f, u)
    due, own = float(t.log().mean()), float(t.log().std()) / len(t) ** 0.5
    found = shelf(name, at_of([module], x, y), directions=120)
    assert found.status == ["ok"]
    error = (own**2 + float(found.standard_error) ** 2) ** 0.5
    assert abs(float(found.value) - due) < 3.5 * error + 2e-3
    assert error < 0.15


def first_rise(f: Callable[[Tensor], Tensor], u: Tensor) -> Tensor:
    """Distance at which each direction has risen by 0.1 first, on a grid of 3 %, then by bisection."""
    low, high = torch.full((len(u), 1), 1e-3, dtype=f64), torch.full((len(u), 1), 1e-3, dtype=f64)
    todo = torch.ones(len(u), dtype=torch.bool)
    while todo.any() and float(high.max()) < 100:
        low[todo], high[todo] = high[todo], high[todo] * 1.1
        todo = todo & (f(high * u).detach() < 0.1)
    assert not todo.any()
    for _ in range(10):
        middle = (low * high).sqrt()
        over = (f(middle * u).detach() >= 0.1)[:, None]
        low, high = torch.where(over, low, middle), torch.where(over, middle, high)
    return high[:, 0]


# ---- rescalings that keep the function

PAIRS = {"relu": ([1], 3), "conv1d": ([1], 3), "batchnorm": ([2], 4)}


def twins(net: str, change: str) -> tuple[Point, Point]:
    module, x, y = sure(net)
    before, after = PAIRS[net]
    count = len(module[before[0]].weight)  # type: ignore[index]
    noise = torch.randn(count, generator=torch.Generator().manual_seed(3), dtype=f64).exp()
    factor = {"filter": noise, "layer": torch.full((count,), 7.0, dtype=f64)}[change]
    other = rescaled(module, before, after, factor)  # type: ignore[arg-type]
    assert torch.allclose(module(x), other(x), rtol=0, atol=1e-12)
    return at_of([module], x, y), at_of([other], x, y)


@pytest.mark.parametrize("net", PAIRS)
@pytest.mark.parametrize("change", ["filter", "layer"])
def test_rescalings(net: str, change: str) -> None:
    here, there = twins(net, change)

    def both(name: str, **settings: object) -> tuple[float, float]:
        size = {"directions" if name in VOLUMES else "draws": 12}
        one, two = (float(shelf(name, at, **size, **settings).value) for at in (here, there))
        return one, two

    for target in ("error", "loss"):
        one, two = both("pac_bayes_magnitude", target=target, eps=0.0)
        assert two == pytest.approx(one, rel=1e-6)
        if target == "loss":
            one, two = both("pac_bayes_magnitude", target=target, eps=2e-3)
            assert abs(two / one - 1) > 1e-5  # teeth: eps claims nothing
        one, two = both("pac_bayes_sharpness", target=target)
        assert abs(two / one - 1) > 1e-4
    one, two = both("flat_volume_filter")
    if change == "layer":
        assert two == pytest.approx(one, rel=1e-6)
    elif net != "batchnorm":
        assert abs(two - one) > 0.01
    one, two = both("flat_volume")
    assert abs(two - one) > 1e-4


def test_behind_batchnorm_the_scale_of_each_filter_is_free() -> None:
    """Incoming weights and bias times a, running statistics with them: the rows' own directions follow."""
    module, x, y = sure("batchnorm")
    other, a = copy.deepcopy(module), torch.linspace(0.1, 5, 6, dtype=f64)  # type: ignore[arg-type]
    linear, bn = other[1], other[2]
    with torch.no_grad():
        linear.weight.mul_(a[:, None])
        linear.bias.mul_(a)
        bn.running_mean.mul_(a)
        bn.running_var.copy_(a**2 * (bn.running_var + bn.eps) - bn.eps)
    assert torch.allclose(module(x), other(x), rtol=0, atol=1e-12)
    for name in ("flat_volume_filter", "pac_bayes_magnitude"):
        one, two = (float(shelf(name, at_of([m], x, y)).value) for m in (module, other))
        assert two == pytest.approx(one, rel=1e-6), name


def test_claims_are_what_was_measured() -> None:
    stated = {name: {k: set(v) for k, v in claims(REGISTRY["metric"][name]).items()} for name in PAC + VOLUMES}
    assert stated["pac_bayes_sharpness"] == stated["flat_volume"] == {"": {"permutation"}}
    assert stated["flat_volume_filter"] == {"": {"permutation", "global", "scale"}}
    for key, names in stated["pac_bayes_magnitude"].items():
        assert "filter" in names or key not in ("", "eps=0", "eps=0.0")
    assert {"sharp"} == {REGISTRY["metric"][name].facts["direction"] for name in PAC}
    assert {"flat"} == {REGISTRY["metric"][name].facts["direction"] for name in VOLUMES}


@pytest.mark.parametrize("h", [1e10, 1e13])
def test_what_has_risen_before_the_range_is_not_called_flat(h: float) -> None:
    """Distance sqrt(0.2 / h): found, or said to lie below the range."""
    found = shelf("flat_volume", bowl(h * torch.eye(5, dtype=f64), torch.zeros(5, dtype=f64), o))
    if found.status == ["ok"]:
        assert float(found.value) == pytest.approx(0.5 * math.log(0.2 / h), abs=2e-3)
    else:
        assert "already" in found.message[0] or "below" in found.message[0]


@pytest.mark.parametrize("name", ["flat_volume", *PAC])
def test_a_rise_below_rounding_is_unresolved(name: str) -> None:
    target = {"target": "loss"} if name in PAC else {}
    at = bowl(torch.eye(5, dtype=f64), torch.zeros(5, dtype=f64), o, c=1e16)  # its neighbours are 2 apart
    assert shelf(name, at, rise=0.1, **target).status == ["unresolved"]
