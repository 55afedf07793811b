"""Values on lines and planes through minima against a plain loop; BatchNorm off the minimum; the grid."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from surface_points import NETS, place, plain

from landscape_cli.network.batchnorm_statistics import collect_statistics
from landscape_cli.surface.values import Slice, grid


@pytest.mark.parametrize(("spec", "shape"), NETS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_values_are_those_of_a_plain_loop(spec: dict[str, Any], shape: tuple[int, ...], dtype: torch.dtype) -> None:
    at, module = place(spec, shape, dtype)
    xy = torch.rand(20, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 2 - 1
    assert at.Y is not None
    got = at.scores(xy)
    for point, values in zip(xy, got, strict=True):
        theta = (at.theta + point[0] * at.X + point[1] * at.Y).to(dtype)
        for side, (loss, accuracy) in zip(at.sides.values(), values.tolist(), strict=True):
            due, right = plain(module, theta, side)
            assert loss == pytest.approx(due, rel=1e-6 if dtype == torch.float64 else 1e-4)
            assert accuracy == pytest.approx(right, abs=1e-12 if dtype == torch.float64 else 0.04)


@pytest.mark.parametrize("rule", ["recompute", "interpolate", "fixed"])
def test_batchnorm_off_the_minimum(rule: Any) -> None:
    at, module = place({"name": "resnet", "width": 2}, (1, 8, 8))
    other = {n: b + 1 if b.is_floating_point() else b for n, b in at.sides["train"].buffers.items()}
    at = Slice(at.sides, at.theta, at.X, None, rule, other)
    train, xs = at.sides["train"], [0.3, -0.4, 1.3]
    for x, values in zip(xs, at.scores(torch.tensor([[x, 0.0] for x in xs], dtype=torch.float64)), strict=True):
        theta = at.theta + x * at.X
        if rule == "recompute":
            own = collect_statistics(train.network, train.unflatten(theta), train.buffers, train.x)
        else:
            share = x if rule == "interpolate" else 0.0
            ends = {n: (b, other[n]) for n, b in train.buffers.items() if b.is_floating_point()}
            own = {n: (1 - share) * here + share * there for n, (here, there) in ends.items()}
        module.load_state_dict({n: b[0] for n, b in own.items()}, strict=False)
        for side, (loss, _) in zip(at.sides.values(), values.tolist(), strict=True):
            assert loss == pytest.approx(plain(module, theta, side)[0], rel=1e-9)


def test_grid() -> None:
    line = grid([(-1.0, 1.0)], 51)
    assert line.shape == (51, 2) and line[25].tolist() == [0.0, 0.0] and line[0, 0] == -1 and line[-1, 0] == 1
    assert torch.equal(line[:, 0], -line.flip(0)[:, 0])
    plane = grid([(-1.0, 1.0), (-2.0, 2.0)], 3)
    assert plane.tolist() == [[x, y] for y in (-2, 0, 2) for x in (-1, 0, 1)]
