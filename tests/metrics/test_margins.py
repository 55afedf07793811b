"""Margins sample by sample, and baselines that are read from what training noted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import K, data, modules, point, same, twin
from torch import nn

from landscape_cli.metrics import baselines, margins, norms
from landscape_cli.metrics.point import Estimate, Point

f64 = torch.float64
FACTS: dict[str, Any] = {"steps": 120, "epochs": 12, "lr": 0.1, "batch_size": 20}
HISTORY: dict[str, list[Any]] = {
    "epoch": [0, 0.5, 3, 7],
    "train_loss": [2.0, 1.5, 0.5, 0.1],
    "test_loss": [2.1, 1.7, 0.9, None],
}


def each_margin(module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> list[float]:
    logits = module(x).detach().tolist()
    return [z[c] - max(v for i, v in enumerate(z) if i != c) for z, c in zip(logits, y.tolist(), strict=True)]


@pytest.mark.parametrize("net", ["relu", "residual", "gated"])
def test_the_margin_is_the_tenth_percentile_over_training_samples(net: str) -> None:
    own = [each_margin(module, *data(net)) for module in modules(net)]
    found = margins.margin(point(net))
    same(found, [float(np.percentile(each, 10)) for each in own])
    assert all(min(each) < float(v) < sorted(each)[2] for each, v in zip(own, found.value, strict=True))
    assert found.samples == len(own[0])


def separated() -> Point:
    """Each net's labels are its own predictions; the second has one in five wrong, and so no positive margin."""
    at, nets, x = point("relu"), modules("relu"), data("relu")[0]
    y = torch.stack([module(x).argmax(1) for module in nets])
    y[1, ::5] = (y[1, ::5] + 1) % 3
    at.train = replace(at.train, x=x.expand(K, *x.shape).contiguous(), y=y)
    return at


def test_spectral_margin_is_the_product_over_the_margin() -> None:
    at = separated()
    found, gap = margins.spectral_margin(at), margins.margin(at).value
    assert gap[0] > 0 > gap[1]
    assert float(found.value[0]) == pytest.approx(float(norms.spectral_norm_product(at).value[0] / gap[0]), rel=1e-12)
    assert (found.status, found.message) == (["ok", "undefined"], ["", "the margin is not positive"])
    assert found.standard_error[0] == 0 and found.value[1].isnan()


def test_spectral_margin_has_the_reason_of_the_product() -> None:
    assert margins.spectral_margin(point("prelu")).message == norms.spectral_norm_product(point("prelu")).message


def test_spectral_margin_passes_its_setting_on() -> None:
    here, there = twin("conv1d", "alpha 10")
    y = here.logits("train").argmax(2)[0]
    here.train.y.copy_(y)
    there.train.y.copy_(y)
    for conv in ("matrix", "fft"):
        due = float(norms.spectral_norm_product(here, conv=conv).value / margins.margin(here).value)
        same(margins.spectral_margin(here, conv=conv), [due])
        same(margins.spectral_margin(there, conv=conv), [due], 1e-9)  # claims to survive the rescaling of layers
    assert margins.spectral_margin(here, conv="matrix").value != margins.spectral_margin(here, conv="fft").value


@pytest.mark.parametrize(
    ("net", "change"),
    [(net, c) for net in ("relu", "conv1d", "batchnorm") for c in ("alpha 10", "filter")] + [("relu", "permutation")],
)
def test_the_margin_sees_outputs_alone(net: str, change: str) -> None:
    here, there = twin(net, change)
    same(margins.margin(there), margins.margin(here).value.tolist(), 1e-9)


# ---- baselines


def trained(*training: dict[str, Any]) -> Point:
    at = point("relu")
    at.training = list(training) if training else None
    return at


def values(found: Estimate) -> list[float]:
    assert not found.standard_error.nan_to_num(0).any()
    return found.value.tolist()


def test_facts_of_the_training() -> None:
    at = trained(FACTS, FACTS | {"steps": 7, "epochs": 0.7, "lr": 0.2, "batch_size": 1000})
    assert values(baselines.steps(at)) == [120, 7]
    assert values(baselines.epochs(at)) == [12, 0.7]
    assert values(baselines.lr_over_batch(at)) == pytest.approx([0.005, 0.0002])


@pytest.mark.parametrize("name", ["steps", "epochs", "lr_over_batch", "early_validation_loss"])
def test_what_is_not_known_is_undefined_with_the_reason(name: str) -> None:
    metric = getattr(baselines, name)
    found = metric(trained())
    assert (found.status, found.message) == (["undefined"] * K, ["the checkpoint does not say how it was trained"] * K)
    one = metric(trained(FACTS | {"history": HISTORY}, {}))
    assert one.status == ["ok", "undefined"]
    assert one.message[1]


@pytest.mark.parametrize(
    ("epoch", "value", "message"),
    [(0, 2.1, "0"), (0.4, 2.1, "0"), (0.5, 1.7, "0.5"), (1, 1.7, "0.5"), (3, 0.9, "3"), (100, 0.9, "3")],
)
def test_early_validation_loss_is_the_last_one_noted_in_time(epoch: float, value: float, message: str) -> None:
    later = FACTS | {"history": {"epoch": [10], "train_loss": [1.0], "test_loss": [1.0]}}
    found = baselines.early_validation_loss(trained(FACTS | {"history": HISTORY}, later), epoch=epoch)
    assert float(found.value[0]) == value
    assert found.message[0] == f"noted at epoch {message}"
    if epoch < 10:
        assert found.message[1] == f"no test loss was noted up to epoch {epoch:g}"
        assert found.status[1] == "undefined"


@pytest.mark.parametrize("history", [None, {}, {"epoch": [0, 1], "train_loss": [1, 2]}, HISTORY | {"epoch": [0, 0.5]}])
def test_a_history_without_test_losses_is_undefined(history: Any) -> None:
    found = baselines.early_validation_loss(trained(FACTS | {"history": history}, FACTS | {"history": HISTORY}))
    assert (found.status, found.message[0]) == (["undefined", "ok"], "no test loss was noted up to epoch 1")
