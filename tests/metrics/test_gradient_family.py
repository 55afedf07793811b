"""Noise scale, diversity, coherence, disparity, confusion and signs of cosines against enumeration and plain loops."""

from __future__ import annotations

import subprocess
import sys
from itertools import combinations
from typing import Any

import pytest
import torch
from helpers import K, N, documented_draws, of_gradients, oracle, point
from torch import Tensor, nn

from landscape_cli.curvature.objective import Objective, flatten
from landscape_cli.metrics import gradients
from landscape_cli.metrics import point as point_module
from landscape_cli.metrics.point import Estimate, Point
from landscape_cli.network import build, stack

f64 = torch.float64
NETS = ["tanh", "conv1d", "layernorm"]
DRAWN = ["gradient_disparity", "gradient_confusion", "sign"]


def run(name: str, at: Point, **settings: Any) -> Estimate:
    """One metric of this family; `sign` is that of gradient_cosine."""
    if name == "sign":
        return gradients.gradient_cosine(at, sign=True, **settings)
    found = getattr(gradients, name)(at, **settings)
    if isinstance(found, Estimate):
        return found
    (only,) = found.values()
    return only  # type: ignore[no-any-return]


def by_loops(name: str, g: list[Tensor]) -> float:
    """One draw's value from its minibatch gradients, pair by pair."""
    pairs = [(a, b) for a in range(len(g)) for b in range(len(g)) if a != b]
    if name == "gradient_disparity":
        return sum(float((g[a] - g[b]).norm()) for a, b in pairs) / len(pairs)
    products = [float(g[a] @ g[b]) for a, b in pairs]
    if name == "gradient_confusion":
        return max(0.0, -min(products))
    return sum((v > 0) - (v < 0) for v in products) / len(pairs)


def noise(g: Tensor) -> tuple[float, float]:
    """tr(Sigma) and |G|^2 of the population g (n, p)."""
    G = sum(g) / len(g)
    return sum(float((v - G) @ (v - G)) for v in g) / len(g), float(G @ G)  # type: ignore[operator]


@pytest.fixture(params=[True, False], ids=["gram", "no gram"])
def by_gram(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """With and without the Gram matrix of single samples."""
    if not request.param:
        monkeypatch.setattr(point_module, "GRAM_SAMPLES", 0)
    return bool(request.param)


# ---- exact ratios


@pytest.mark.parametrize("net", NETS)
def test_noise_scale_and_diversity_of_the_training_set(net: str, by_gram: bool) -> None:
    at = point(net)
    scale, diversity = gradients.gradient_noise_scale(at), gradients.gradient_diversity(at)
    for k in range(K):
        g = oracle(net, k).g
        spread, whole = noise(g)
        assert float(scale.value[k]) == pytest.approx(spread / whole, rel=1e-10)
        due = sum(float(v @ v) for v in g) / float(g.sum(0) @ g.sum(0))
        assert float(diversity.value[k]) == pytest.approx(due, rel=1e-10)
    for found in (scale, diversity):
        assert found.standard_error.tolist() == [0.0] * K
        assert found.status == ["ok"] * K
    assert ("sample_gram" in at.seconds) == by_gram


@pytest.mark.parametrize("m", [1, 2, 5])
@pytest.mark.parametrize("net", NETS)
def test_coherence_is_the_ratio_over_all_pairs_of_disjoint_minibatches(net: str, m: int, by_gram: bool) -> None:
    n = 10
    found = gradients.coherence(point(net, n=n), minibatch_size=m)
    sets = list(combinations(range(n), m))
    index = torch.tensor(sets)
    apart = torch.tensor([[not set(a) & set(b) for b in sets] for a in sets])
    for k in range(K):
        g = oracle(net, k, n).g[index].mean(1)
        products = g @ g.T
        due = float(products[apart].mean() / products.diagonal().mean())
        assert float(found.value[k]) == pytest.approx(due, rel=1e-9, abs=1e-12)
    assert found.standard_error.tolist() == [0.0] * K


def test_three_names_of_one_number(by_gram: bool) -> None:
    at = point("residual")
    scale = gradients.gradient_noise_scale(at).value
    assert gradients.gradient_diversity(at).value.tolist() == pytest.approx(((1 + scale) / N).tolist(), rel=1e-12)
    due = (N / (1 + scale) - 1) / (N - 1)
    assert gradients.coherence(at, minibatch_size=1).value.tolist() == pytest.approx(due.tolist(), rel=1e-10)


def balanced(rows: int = 8) -> tuple[Objective, Tensor, Tensor]:
    """Softmax regression on every input under every label: G = 0 at theta = 0; its theta (1, p), and the inputs."""
    x = torch.randn(rows, 4, generator=torch.Generator().manual_seed(0), dtype=f64)
    module = nn.Linear(4, 3).double()
    for t in module.parameters():
        nn.init.zeros_(t)
    params, buffers = stack([module])
    y = torch.arange(3).repeat_interleave(rows)
    return Objective(build(module, (4,), f64), params, buffers, x.repeat(3, 1), y), flatten(params), x


def test_without_an_average_gradient_the_noise_diverges_and_coherence_does_not(by_gram: bool) -> None:
    train, theta, _ = balanced()
    at = Point(theta, train, train)
    for found in (gradients.gradient_noise_scale(at), gradients.gradient_diversity(at)):
        assert found.status == ["undefined"]
        assert found.message == ["the average gradient is 0: the ratio diverges"]
        assert found.value.isnan().all()
    n = train.n
    for m in (1, 4, 12):
        found = gradients.coherence(at, minibatch_size=m)
        assert float(found.value) == pytest.approx(-m / (n - m), rel=1e-10)  # the floor that METRICS warns of


def test_near_a_minimum_the_average_gradient_keeps_its_digits(by_gram: bool) -> None:
    """|G| is 1e-6 of a sample's gradient: |G|^2 is no difference of numbers 1e12 times as large."""
    train, theta, x = balanced()
    H = torch.einsum("ni,nj->ij", x, x) / len(x)
    way = 1e-6 * torch.linalg.solve(H, torch.ones(4, dtype=f64))
    theta[0, :4] += way  # logit 0 moves by x . way
    at = Point(theta, train, train)
    p = torch.softmax(torch.cat([(x @ way)[:, None], torch.zeros(len(x), 2, dtype=f64)], 1), 1)
    r = p - 1 / 3  # mean over labels of p - onehot
    G = torch.cat([(r.T @ x / len(x)).flatten(), r.mean(0)])
    norms = sum((p - torch.eye(3, dtype=f64)[c]).square().sum(1) * (x.square().sum(1) + 1) for c in range(3)) / 3
    due = float(norms.mean() / (G @ G)) - 1  # type: ignore[union-attr]
    found = gradients.gradient_noise_scale(at)
    assert found.status == ["ok"]
    assert float(found.value) == pytest.approx(due, rel=1e-4)


# ---- drawn minibatches


@pytest.mark.parametrize("m", [1, 2, 3])
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("name", DRAWN)
def test_drawn_minibatches_against_loops(name: str, net: str, m: int, by_gram: bool) -> None:
    at, M = point(net), min(7, N // m)
    found = run(name, at, minibatch_size=m, minibatches=7, partitions=4, seed=3)
    enumerated = m == 1 and by_gram and name != "gradient_confusion"
    draws = [torch.arange(N)[:, None]] if enumerated else documented_draws(N, m, 7, 4, 3)
    for k in range(K):
        g = oracle(net, k).g
        values = torch.tensor([by_loops(name, [g[b].mean(0) for b in draw]) for draw in draws], dtype=f64)
        error = 0.0 if enumerated else float(values.std()) / 2
        assert float(found.value[k]) == pytest.approx(float(values.mean()), rel=1e-9, abs=1e-12)
        assert float(found.standard_error[k]) == pytest.approx(error, rel=1e-7, abs=1e-12)
    assert found.samples == (N if enumerated else 4 * M)


def test_confusion_grows_with_the_number_of_minibatches_which_the_row_names() -> None:
    g = torch.randn(1, 120, 5, generator=torch.Generator().manual_seed(1), dtype=f64)
    at = of_gradients(g)
    few, many = (gradients.gradient_confusion(at, minibatch_size=3, minibatches=M) for M in (5, 100))
    assert list(few) == ["minibatches=5"]
    assert list(many) == ["minibatches=40"]  # n // m
    assert float(many["minibatches=40"].value) > 1.5 * float(few["minibatches=5"].value)
    agree = of_gradients(g.abs())
    assert float(run("gradient_confusion", agree, minibatch_size=1).value) == 0  # no pair in conflict


@pytest.mark.parametrize("m", [1, 2])
def test_zero_gradients(m: int) -> None:
    nothing = of_gradients(torch.zeros(2, 24, 3, dtype=f64))
    for name in DRAWN:
        assert run(name, nothing, minibatch_size=m).value.tolist() == [0.0, 0.0]
    assert gradients.coherence(nothing, minibatch_size=m).status == ["undefined"] * 2
    assert gradients.gradient_noise_scale(nothing).status == ["undefined"] * 2
    one = torch.zeros(1, 24, 3, dtype=f64)
    one[0, 0, 1] = 2.0  # one gradient of length 2 / m against zeros
    at = of_gradients(one)
    assert run("sign", at, minibatch_size=m).value.tolist() == [0.0]
    M = 24 // m
    assert float(run("gradient_disparity", at, minibatch_size=m).value) == pytest.approx(2 / M * 2 / m)
    assert float(run("gradient_confusion", at, minibatch_size=m).value) == 0
    assert float(gradients.gradient_noise_scale(at).value) == pytest.approx(23, rel=1e-10)


@pytest.mark.parametrize("name", [*DRAWN, "coherence"])
def test_large_minibatches_warn_above_a_tenth_and_are_undefined_above_half(name: str) -> None:
    at = of_gradients(torch.randn(2, 20, 3, generator=torch.Generator().manual_seed(1), dtype=f64))
    below, above, half, over = (run(name, at, minibatch_size=m) for m in (2, 3, 10, 11))
    assert below.message == ["", ""]
    assert above.message == ["minibatch_size=3 is above n/10=2: biased by -m/(n-m), compare at equal m only"] * 2
    assert below.status == above.status == half.status == ["ok", "ok"]
    assert over.status == ["undefined", "undefined"]
    assert over.message == ["minibatch_size=11 is above n/2=10: no two disjoint minibatches"] * 2
    assert over.value.isnan().all()


@pytest.mark.parametrize("name", DRAWN)
def test_standard_errors_are_honest(name: str) -> None:
    """The truth within 2 standard errors in 90 to 99 % of 200 seeds; halved errors would be seen."""
    g = 0.4 + torch.randn(1, 60, 5, generator=torch.Generator().manual_seed(4), dtype=f64) ** 3
    at = of_gradients(g)

    def once(seed: int) -> Estimate:
        at._known.pop(("drawn_gram", (5, 100, 16, seed)), None)
        return run(name, at, minibatch_size=5, seed=seed)

    found = [once(seed) for seed in range(200)]
    values, errors = (torch.cat([getattr(f, what) for f in found]) for what in ("value", "standard_error"))
    truth = float(torch.cat([once(seed).value for seed in range(1000, 1800)]).mean())  # 12,800 draws

    def coverage(factor: float) -> float:
        return float(((values - truth).abs() < 2 * factor * errors).double().mean())

    rough = 0.04 if name == "gradient_confusion" else 0.0  # an extreme: skewed
    assert 0.90 - rough <= coverage(1) <= 0.99
    assert coverage(0.5) < 0.85
    assert coverage(3) > 0.98


# ---- memory

SCRIPT = """
import resource, torch
from torch import nn
from landscape_cli.metrics import gradients
from landscape_cli.network import build, stack
from landscape_cli.curvature.objective import Objective, flatten
from landscape_cli.metrics.point import GRAM_SAMPLES, Point

class Cheap(Objective):
    def loss_and_gradient(self, theta):  # of the right size; 1,000 real ones for each slice would take 20 seconds
        return torch.zeros(1), theta

torch.set_num_threads(2)
n, d = GRAM_SAMPLES + 4, {width}
x, y = torch.randn(n, d), torch.arange(n) % 10
module = nn.Sequential(nn.Linear(d, d), nn.ReLU(), nn.Linear(d, 10))
params, buffers = stack([module])
train = Cheap(build(module, (d,)), params, buffers, x, y)
at = Point(flatten(params), train, train)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
draw = dict(minibatch_size=1, minibatches=1000, partitions=1)
for name in ("regret", "gradient_norm", "gradient_cosine", "jensen_gap", "gradient_disparity", "gradient_confusion"):
    getattr(gradients, name)(at, **draw)
print(at.theta.shape[1], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_pairs_of_a_thousand_minibatches_fit_into_a_gigabyte() -> None:
    """In slices of the parameters: all gradients of this net with p = 198,000 and a float64 piece would take 1.06 GB.

    The slices do not grow with the net: at a million parameters the memory is the same.
    """
    done = subprocess.run([sys.executable, "-c", SCRIPT.format(width=440)], capture_output=True, text=True, check=True)
    p, kilobytes = map(int, done.stdout.split())
    assert p * 1000 * 4 + 2**15 * 1000 * 8 > 1.05e9
    assert kilobytes * 1024 < 1e9
