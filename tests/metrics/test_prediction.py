"""Losses, accuracies, their gaps, and norms: against plain modules."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers import CASES, K, N, data, modules, point
from torch import Tensor, nn

from landscape_cli.metrics import norms, prediction
from landscape_cli.metrics.point import Estimate

f64 = torch.float64
NETS = ["relu", "residual", "prelu", "gated"]


def samples(name: str, k: int, split: str) -> tuple[Tensor, Tensor]:
    """Loss and correctness of each sample, by an ordinary module."""
    x, y = data(name) if split == "train" else data(name, 2 * N, seed=1)
    with torch.no_grad():
        z = modules(name)[k](x)
    return F.cross_entropy(z, y, reduction="none"), (z.argmax(1) == y).double()


def check(found: Estimate, values: list[float], errors: list[float], count: int) -> None:
    for k in range(K):
        assert float(found.value[k]) == pytest.approx(values[k], rel=1e-12, abs=1e-14)
        assert float(found.standard_error[k]) == pytest.approx(errors[k], rel=1e-10, abs=1e-14)
    assert found.samples == count


@pytest.mark.parametrize("name", NETS)
def test_training_values_are_means_without_error(name: str) -> None:
    at = point(name)
    for found, column in ((prediction.train_loss(at), 0), (prediction.train_accuracy(at), 1)):
        check(found, [float(samples(name, k, "train")[column].mean()) for k in range(K)], [0.0] * K, N)


@pytest.mark.parametrize("name", NETS)
def test_test_values_have_the_error_of_the_choice_of_samples(name: str) -> None:
    at = point(name)
    for found, column in ((prediction.test_loss(at), 0), (prediction.test_accuracy(at), 1)):
        each = [samples(name, k, "test")[column] for k in range(K)]
        errors = [float(((v - v.mean()) ** 2).sum() / (2 * N - 1) / (2 * N)) ** 0.5 for v in each]
        check(found, [float(v.mean()) for v in each], errors, 2 * N)


@pytest.mark.parametrize("name", NETS)
def test_gaps_are_positive_when_the_test_set_is_worse(name: str) -> None:
    at = point(name)
    (train, test) = ([samples(name, k, s) for k in range(K)] for s in ("train", "test"))
    loss, accuracy = prediction.loss_gap(at), prediction.accuracy_gap(at)
    check(
        loss,
        [float(b[0].mean() - a[0].mean()) for a, b in zip(train, test, strict=True)],
        prediction.test_loss(at).standard_error.tolist(),
        2 * N,
    )
    check(
        accuracy,
        [float(a[1].mean() - b[1].mean()) for a, b in zip(train, test, strict=True)],
        prediction.test_accuracy(at).standard_error.tolist(),
        2 * N,
    )


def test_standard_error_of_the_test_loss_is_honest() -> None:
    """Test sets of 50 drawn from a population of 20,000: its mean within 2 errors in 90 to 99 % of 200 of them."""
    at, (x, _) = point("relu"), data("relu", 20000, seed=9)
    y = (x.flatten(1)[:, :3] + torch.randn(20000, 3, generator=torch.Generator().manual_seed(0), dtype=f64)).argmax(1)
    truth = replace(at.test, x=x, y=y).loss(at.theta)
    inside = {0.5: 0, 1.0: 0}
    for i in range(200):
        own = slice(50 * i, 50 * i + 50)
        found = prediction.test_loss(replace(at, test=replace(at.test, x=x[own], y=y[own]), _known={}))
        for factor in inside:
            inside[factor] += int(abs(found.value[0] - truth[0]) < 2 * factor * found.standard_error[0])
    assert 180 <= inside[1.0] <= 198
    assert inside[0.5] < 170


def test_a_test_set_of_one_has_no_standard_error() -> None:
    at = point("relu")
    at = replace(at, test=at.test.subset(torch.tensor([0])), _known={})
    assert prediction.test_loss(at).standard_error.isnan().all()
    assert prediction.test_loss(at).value.isfinite().all()


def test_saturated_losses_keep_their_digits() -> None:
    """All logits 40 apart: p_y = 1 - 1e-17 and the loss is 2 exp(-40), not 0."""
    at = point("relu")
    bias = [n for n in at.train.like if n.endswith("bias")][-1]
    like = {n: torch.zeros_like(t) for n, t in at.train.like.items()}
    like[bias][:, 1] = 40.0
    theta = torch.cat([t.flatten(1) for t in like.values()], 1)
    train = replace(at.train, y=torch.ones_like(at.train.y))
    found = prediction.train_loss(replace(at, theta=theta, train=train, _known={}))
    due = 2 * float(torch.tensor(-40.0, dtype=f64).exp())
    assert found.value.tolist() == pytest.approx([due, due], rel=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_norms_are_those_of_all_parameters(name: str) -> None:
    at, made = point(name), modules(name)
    length, distance = norms.weight_norm(at), norms.distance_from_init(at)
    for k in range(K):
        due = nn.utils.parameters_to_vector(made[k].parameters()).norm()
        assert float(length.value[k]) == pytest.approx(float(due.detach()), rel=1e-12)
        assert float(distance.value[k]) == pytest.approx(float(due.detach()) / 2, rel=1e-12)  # begun at theta / 2
    assert length.standard_error.tolist() == distance.standard_error.tolist() == [0.0] * K


def test_distance_from_an_unknown_start_is_undefined() -> None:
    found = norms.distance_from_init(replace(point("relu"), initial=None))
    assert found.value.isnan().all()
    assert found.status == ["undefined"] * K
    assert found.message == ["the checkpoint does not hold the initial parameters"] * K
