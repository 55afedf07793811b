"""Directions: lengths of filters, draws, principal components and eigenvectors against dense mathematics."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import build_module
from sklearn.decomposition import PCA
from surface_points import NETS, dense, place

from landscape_cli import network
from landscape_cli.curvature.objective import flatten
from landscape_cli.metrics.point import Point
from landscape_cli.registry.errors import Fault
from landscape_cli.surface.directions import direction, eigenvectors, principal, random_directions
from landscape_cli.surface.values import Slice
from landscape_cli.training import stream


@pytest.mark.parametrize(("spec", "shape"), NETS)
def test_each_filter_of_a_direction_is_as_long_as_the_minimums(spec: dict[str, Any], shape: tuple[int, ...]) -> None:
    params, _ = network.stack([build_module(spec, shape, 3, 0)])
    d = direction(params, "filter", "biasbn", stream(0, "surface x", 0))
    for name, t in params.items():
        theta, own = t[0].double(), d[name][0]
        if theta.dim() == 1:
            assert not own.any()
            continue
        for i in range(len(theta)):
            assert float(own[i].norm()) == pytest.approx(float(theta[i].norm()), rel=1e-12)
    whole = direction(params, "filter", "none", stream(0, "surface x", 0))
    for name, t in params.items():
        if t.dim() == 2:
            assert torch.allclose(whole[name].abs(), t.double().abs(), rtol=1e-12)
    layer = direction(params, "layer", "biasbn", stream(0, "surface x", 0))
    none = direction(params, "none", "biasbn", stream(0, "surface x", 0))
    weight = direction(params, "weight", "biasbn", stream(0, "surface x", 0))
    for name, t in params.items():
        if t.dim() > 2:
            assert float(layer[name].norm()) == pytest.approx(float(t.double().norm()), rel=1e-12)
            assert torch.allclose(weight[name], none[name] * t.double())


def test_a_filter_of_zeros_stays_where_it_is() -> None:
    params = {"a.weight": torch.randn(1, 3, 4)}
    params["a.weight"][0, 1] = 0
    d = direction(params, "filter", "biasbn", stream(0, "surface x", 0))["a.weight"][0]
    assert not d[1].any() and d[0].any() and d.isfinite().all()


def test_draws_and_axes_differ_and_a_seed_repeats_them() -> None:
    params, _ = network.stack([build_module({"name": "mlp", "hidden": [50]}, (6,), 3, 0)])

    def drawn(seed: int) -> list[torch.Tensor]:
        rule = ("filter", "biasbn", seed)
        return [flatten(d)[0] for draw in range(2) for d in random_directions(params, *rule, draw, 2)]  # type: ignore[arg-type]

    some = drawn(0)
    for i, a in enumerate(some):
        for b in [*some[:i], *drawn(1)]:
            assert abs(float(F.cosine_similarity(a, b, 0))) < 0.3
    assert all(map(torch.equal, some, drawn(0)))
    (alone,) = random_directions(params, "filter", "biasbn", 0, 1, 1)
    assert torch.equal(flatten(alone)[0], some[2])  # a line's are a plane's first


def test_principal_components_are_those_of_a_library() -> None:
    rng = torch.Generator().manual_seed(0)
    moves = torch.randn(7, 40, generator=rng, dtype=torch.float64) * torch.linspace(1, 3, 40) + 2.0
    axes, shares = principal(moves)
    due = PCA(2).fit(moves.numpy())
    assert np.allclose(shares.numpy(), due.explained_variance_ratio_, rtol=1e-10)
    assert np.allclose((axes.numpy() * due.components_).sum(1).__abs__(), 1.0, rtol=1e-10)
    assert ((axes @ moves[0]) > 0).all()
    with pytest.raises(Fault, match="lie on one line"):
        principal(torch.outer(torch.arange(5.0), torch.ones(9)).double())


@pytest.mark.parametrize("spec", NETS[:3])
def test_eigenvectors_are_those_of_the_dense_hessian(spec: Any) -> None:
    there, module = place(*spec)
    train = there.sides["train"]
    axes, facts = eigenvectors(Point(there.theta, train, train))
    values, vectors = torch.linalg.eigh(dense(module, train, there.theta))
    assert facts["eigenvalues"] == pytest.approx(values.flip(0)[:2].tolist(), rel=1e-5)
    assert max(facts["residuals"]) <= 1e-3
    for axis, due in zip(axes, vectors.T.flip(0), strict=False):
        assert float((axis @ due).abs()) == pytest.approx(1.0, abs=1e-4)
        assert float(axis.norm()) == pytest.approx(1.0, abs=1e-12)
        assert axis[axis.abs().argmax()] > 0
    again, h = Slice(there.sides, there.theta, axes[0], axes[1]), 1e-3
    low, mid, high = again.scores(torch.tensor([[-h, 0.0], [0.0, 0.0], [h, 0.0]], dtype=torch.float64))[:, 0, 0]
    slope = float(low + high - 2 * mid) / h**2
    assert slope == pytest.approx(facts["eigenvalues"][0], rel=0.05)
