"""Metrics of minibatch gradients against plain loops over pairs, and standard errors that are honest."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations

import pytest
import torch
from helpers import K, N, documented_draws, of_gradients, oracle, point
from torch import Tensor

from landscape_cli.metrics import gradients
from landscape_cli.metrics import point as point_module
from landscape_cli.metrics.point import Estimate

f64 = torch.float64
NAMES = ["regret", "gradient_norm", "gradient_cosine", "fisher_trace", "jensen_gap"]


def cosine(a: Tensor, b: Tensor) -> float:
    size = float(a.norm()) * float(b.norm())
    return float(a @ b) / size if size > 0 else 0.0


def by_loops(name: str, g: list[Tensor]) -> float:
    """One draw's value from its minibatch gradients, pair by pair."""
    M = len(g)
    pairs = [(a, b) for a in range(M) for b in range(M) if a != b]
    lengths = [float(v.norm()) for v in g]
    if name == "regret":
        return sum(lengths[b] * (1 - cosine(g[a], g[b])) for a, b in pairs) / len(pairs)
    if name == "gradient_cosine":
        return sum(cosine(g[a], g[b]) for a, b in pairs) / len(pairs)
    if name == "gradient_norm":
        return sum(lengths) / M
    if name == "fisher_trace":
        return sum(float(v @ v) for v in g) / M
    return math.sqrt(sum(v * v for v in lengths) / M) - sum(lengths) / M


def metric(name: str) -> Callable[..., Estimate]:
    return getattr(gradients, name)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("net", ["relu", "residual", "gated"])
def test_m_1_enumerates_all_pairs_of_samples(name: str, net: str) -> None:
    found = metric(name)(point(net), minibatch_size=1)
    for k in range(K):
        assert float(found.value[k]) == pytest.approx(by_loops(name, list(oracle(net, k).g)), rel=1e-10, abs=1e-12)
    assert found.standard_error.tolist() == [0.0] * K
    assert found.samples == N


@pytest.mark.parametrize("name", [n for n in NAMES if n != "fisher_trace"])
@pytest.mark.parametrize("m", [2, 3, 5])
@pytest.mark.parametrize("by_gram", [True, False])
def test_minibatches_are_the_documented_draws(
    name: str, m: int, by_gram: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not by_gram:
        monkeypatch.setattr(point_module, "GRAM_SAMPLES", 0)
    at = point("tanh")
    found = metric(name)(at, minibatch_size=m, minibatches=4, partitions=5, seed=3)
    draws = documented_draws(N, m, 4, 5, 3)
    for k in range(K):
        g = oracle("tanh", k).g
        each = [[g[b].mean(0) for b in draw] for draw in draws]
        values = torch.tensor([by_loops(name, own) for own in each], dtype=f64)
        if name == "jensen_gap":  # a function of two means over draws; its error by the jackknife, written out
            value, error = jensen(each)
        else:
            value, error = float(values.mean()), float(values.std()) / 5**0.5
        assert float(found.value[k]) == pytest.approx(value, rel=1e-10, abs=1e-12)
        assert float(found.standard_error[k]) == pytest.approx(error, rel=1e-8, abs=1e-12)
    assert found.samples == 5 * min(4, N // m)


def jensen(each: list[list[Tensor]]) -> tuple[float, float]:
    """Pooled sqrt(E |g|^2) - E |g| and its delete-one-draw jackknife."""

    def gap(groups: list[list[Tensor]]) -> float:
        return by_loops("jensen_gap", [g for group in groups for g in group])

    left_out = [gap(each[:i] + each[i + 1 :]) for i in range(len(each))]
    D, mean = len(each), sum(left_out) / len(each)
    return gap(each), math.sqrt((D - 1) / D * sum((v - mean) ** 2 for v in left_out))


@pytest.mark.parametrize("m", [2, 4, 8])
def test_fisher_trace_is_the_mean_over_every_minibatch(m: int) -> None:
    """The closed form against the enumeration of all subsets of 16 samples."""
    g = torch.randn(2, 16, 3, generator=torch.Generator().manual_seed(0), dtype=f64)
    found = gradients.fisher_trace(of_gradients(g), minibatch_size=m)
    index = torch.tensor(list(combinations(range(16), m)))
    for k in range(2):
        due = g[k][index].mean(1).square().sum(1).mean()
        assert float(found.value[k]) == pytest.approx(float(due), rel=1e-10)
    assert found.standard_error.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("m", [1, 3, 8])
@pytest.mark.parametrize("net", ["tanh", "conv1d"])
def test_fisher_trace_needs_no_gram_matrix(net: str, m: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(point_module, "GRAM_SAMPLES", 0)
    at = point(net)
    found = gradients.fisher_trace(at, minibatch_size=m)
    index = torch.tensor(list(combinations(range(N), m)))
    for k in range(K):
        due = oracle(net, k).g[index].mean(1).square().sum(1).mean()
        assert float(found.value[k]) == pytest.approx(float(due), rel=1e-10)
    assert found.standard_error.tolist() == [0.0] * K
    assert found.samples == N
    assert not {"sample_gram", "drawn_gram"} & set(at.seconds)


def test_m_1_without_gram_matrix_is_a_sample_of_the_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = gradients.regret(point("tanh"), minibatch_size=1).value
    monkeypatch.setattr(point_module, "GRAM_SAMPLES", 0)
    found = gradients.regret(point("tanh"), minibatch_size=1, minibatches=6, partitions=40)
    assert found.samples == 240
    assert (found.standard_error > 0).all()
    assert ((found.value - exact).abs() < 3.5 * found.standard_error).all()


def test_a_zero_gradient_has_cosine_0_and_its_pairs_cost_the_other_length() -> None:
    g = torch.tensor([[[3.0, 0.0], [0.0, 0.0], [0.0, 4.0]]], dtype=f64)
    at = of_gradients(g)
    assert float(gradients.gradient_cosine(at, minibatch_size=1).value) == 0
    assert float(gradients.regret(at, minibatch_size=1).value) == pytest.approx(7 / 3)  # every cosine is 0
    assert float(gradients.gradient_norm(at, minibatch_size=1).value) == pytest.approx(7 / 3)
    nothing = of_gradients(torch.zeros(1, 6, 2, dtype=f64))
    for name in NAMES:
        assert metric(name)(nothing, minibatch_size=1).value.tolist() == [0.0]
        assert metric(name)(nothing, minibatch_size=2).value.tolist() == [0.0]


def test_regret_weighs_by_the_length_of_the_loss_that_is_evaluated() -> None:
    """Asymmetric: a = short along e1, b = long at 60 degrees. (|a| + |b|) (1 - 1/2) / 2, not |a| or |b| alone."""
    g = torch.tensor([[[1.0, 0.0], [3.0, 3.0 * 3**0.5]]], dtype=f64)
    assert float(gradients.regret(of_gradients(g), minibatch_size=1).value) == pytest.approx(1.75)


@pytest.mark.parametrize("name", NAMES)
def test_large_minibatches_warn_above_a_tenth_and_are_undefined_above_half(name: str) -> None:
    at = of_gradients(torch.randn(2, 20, 3, generator=torch.Generator().manual_seed(1), dtype=f64))
    below, above, half, over = (metric(name)(at, minibatch_size=m) for m in (2, 3, 10, 11))
    assert below.message == ["", ""]
    assert above.message == ["minibatch_size=3 is above n/10=2: biased by -m/(n-m), compare at equal m only"] * 2
    assert above.status == half.status == ["ok", "ok"]
    assert over.status == ["undefined", "undefined"]
    assert over.message == ["minibatch_size=11 is above n/2=10: no two disjoint minibatches"] * 2
    assert over.value.isnan().all()
    assert over.value.shape == (2,)


def test_at_a_minimum_the_rest_of_the_set_is_opposite() -> None:
    """At G = 0 the inner product of two disjoint minibatches has mean -m/(n-m) of the squared length: the artefact."""
    n, m, p = 40, 10, 2000
    g = torch.randn(1, n, p, generator=torch.Generator().manual_seed(2), dtype=f64)
    g -= g.mean(1, keepdim=True)
    found = gradients.gradient_cosine(of_gradients(g), minibatch_size=m, partitions=50)
    assert float(found.value) == pytest.approx(-m / (n - m), abs=0.01)
    one = gradients.gradient_cosine(of_gradients(g), minibatch_size=1)
    assert float(one.value) == pytest.approx(-1 / (n - 1), abs=0.003)


def test_laws_of_the_pair_metrics() -> None:
    at = point("relu")
    values = {n: metric(n)(at, minibatch_size=2, partitions=6) for n in NAMES if n != "fisher_trace"}
    assert (values["regret"].value >= 0).all()
    assert (values["jensen_gap"].value >= 0).all()
    assert (values["gradient_cosine"].value.abs() <= 1).all()
    assert (values["regret"].value <= 2 * values["gradient_norm"].value).all()


def test_draws_are_common_to_all_minima_and_follow_the_seed() -> None:
    g = torch.randn(1, 40, 3, generator=torch.Generator().manual_seed(1), dtype=f64)
    twins = of_gradients(g.expand(3, -1, -1))
    a, b, c = (gradients.regret(twins, minibatch_size=3, seed=s).value for s in (0, 0, 1))
    assert a.tolist() == b.tolist()
    assert len(set(a.tolist())) == 1
    assert (a != c).all()


@pytest.mark.parametrize("name", ["regret", "gradient_norm", "gradient_cosine", "jensen_gap"])
def test_standard_errors_are_honest(name: str) -> None:
    """The truth within 2 standard errors in 90 to 99 % of 200 seeds; halved errors would be seen."""
    g = 0.4 + torch.randn(1, 60, 5, generator=torch.Generator().manual_seed(4), dtype=f64) ** 3
    at = of_gradients(g)

    def run(seed: int) -> Estimate:
        at._known.pop(("drawn_gram", (5, 100, 16, seed)), None)
        return metric(name)(at, minibatch_size=5, seed=seed)

    found = [run(seed) for seed in range(200)]
    values, errors = (torch.cat([getattr(f, what) for f in found]) for what in ("value", "standard_error"))
    many = [run(seed).value for seed in range(1000, 1800)]
    truth = float(torch.cat(many).mean())  # 12,800 draws, and jensen_gap's bias of order 1/D is far below its error

    def coverage(factor: float) -> float:
        return float(((values - truth).abs() < 2 * factor * errors).double().mean())

    assert 0.90 <= coverage(1) <= 0.99
    assert coverage(0.5) < 0.85
    assert coverage(3) > 0.99


def test_a_point_computes_the_gram_matrix_once() -> None:
    at = point("relu")
    for name in NAMES:
        metric(name)(at, minibatch_size=2)
        metric(name)(at, minibatch_size=1)
    assert {"sample_gram", "drawn_gram"} <= set(at.seconds)
    assert at.sample_gram() is at.sample_gram()
