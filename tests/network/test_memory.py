"""The budget of memory: what it is, and that values do not depend on it while pieces shrink with it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from conftest import begin, settings_of, some_data
from helpers import K, f64, objective, point
from torch import Tensor
from torch.testing import assert_close

from landscape_cli import training
from landscape_cli.curvature import fisher, fisher_blocks, sample_gradients
from landscape_cli.metrics.perturbation import around, losses
from landscape_cli.network import batchnorm_statistics, memory
from landscape_cli.registry import REGISTRY, load_plugins
from landscape_cli.surface.values import Slice

load_plugins([])
TINY = 4096  # bytes
NETS = ["tanh", "residual", "batchnorm", "gated"]


def test_the_budget_is_what_is_said_else_a_share_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    for free, due in ((2**40, memory.ENOUGH), (2**32, 2**31), (3, 1)):
        monkeypatch.setattr(memory, "_free", lambda free=free: free)
        assert memory.budget() == due
        with memory.limited(12345):
            assert memory.budget() == 12345
            with memory.limited(None):
                assert memory.budget() == due
        assert memory.budget() == due


def test_pieces_are_capped_by_their_size_and_by_half_the_budget() -> None:
    with memory.limited(memory.ENOUGH):
        assert memory.pieces(2**10, memory.CACHE) == 2**13
        assert memory.pieces(2**10, memory.WHOLE) == 2**21  # an ordinary machine takes the sizes as they are
        assert memory.pieces(2**40, memory.CACHE) == 1 and memory.pieces(0, memory.CACHE) == memory.CACHE
    with memory.limited(2**12):
        assert memory.pieces(2**10, memory.CACHE) == 2
    with memory.limited(2**60):  # more is not taken: it would gain no time
        assert memory.pieces(2**10, memory.CACHE) == 2**13


def test_what_is_formed_does_not_depend_on_a_small_budget_and_grows_with_a_large_one() -> None:
    for size in (1, memory.LARGEST, 2 * memory.LARGEST):
        with memory.limited(size):
            assert memory.forms(memory.LARGEST) and not memory.forms(memory.LARGEST + 1)
    with memory.limited(4 * memory.LARGEST):
        assert memory.forms(2 * memory.LARGEST) and not memory.forms(2 * memory.LARGEST + 1)


def test_what_is_free_is_some_memory() -> None:
    assert 2**20 < memory._free() < 2**50


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of every piece that was asked for."""
    found, plain = [], memory.pieces

    def noted(each: float, most: int) -> int:
        count = plain(each, most)
        found.append(int(count * each) if count > 1 else 0)  # one thing at a time is the least
        return count

    monkeypatch.setattr(memory, "pieces", noted)
    return found


def curvature(net: str) -> Iterator[Tensor]:
    """Everything that is summed in pieces."""
    at, theta = objective(net)
    v = torch.randn(theta.shape, generator=torch.Generator().manual_seed(0), dtype=f64)
    yield at.loss(theta)
    yield at.loss_and_gradient(theta)[1]
    yield at.hessian_product(theta)(v)
    yield at.hessian_product(theta, residual_part=True)(v)
    yield at.fisher_product(theta)(v)
    yield sample_gradients.sample_gram(at, theta)
    yield sample_gradients.squared_norms(at, theta)
    yield sample_gradients.minibatch_gram(at, theta, torch.arange(12).view(4, 3))
    yield sample_gradients.hessian_squares(at, theta, v)
    yield fisher.fisher_traces(at, theta)
    yield fisher.fisher_diagonal(at, theta)
    yield fisher.metric_gram(at, theta, 6).gram
    rows = fisher_blocks.rows_of(at.alone(0), theta[:1], at.root.rows)
    yield from (side for pair in fisher_blocks.squares(rows).values() for side in pair)
    yield around(at, [theta + v, theta - v], losses)[0]


@pytest.mark.parametrize("net", NETS)
def test_curvature_is_the_same_in_small_pieces(net: str, sizes: list[int]) -> None:
    whole = list(curvature(net))
    largest, count = max(sizes), len(sizes)
    with memory.limited(TINY):
        pieces = list(curvature(net))
    for a, b in zip(pieces, whole, strict=True):
        assert_close(a, b, rtol=1e-10, atol=1e-13)
    assert max(sizes[count:]) <= TINY // 2 < largest  # and the pieces were small


@pytest.mark.parametrize("net", ["residual", "batchnorm"])
def test_statistics_and_surfaces_are_the_same_in_small_pieces(net: str, sizes: list[int]) -> None:
    at, theta = objective(net)

    def found() -> list[Tensor]:
        buffers = batchnorm_statistics.collect_statistics(at.network, at.like, at.buffers, at.x)
        one = at.alone(0)
        x = torch.randn(theta.shape[1], generator=torch.Generator().manual_seed(0), dtype=f64)
        xy = torch.tensor([[0.0, 0.0], [0.3, 0.0], [-0.2, 0.0]], dtype=f64)
        place = Slice({"train": one, "test": one}, theta[:1], x, None, batchnorm="recompute")
        return [*(b for b in buffers.values() if b.is_floating_point()), place.scores(xy)]

    whole = found()
    largest, count = max(sizes), len(sizes)
    with memory.limited(TINY):
        for a, b in zip(found(), whole, strict=True):
            assert_close(a, b, rtol=1e-10, atol=1e-13)
    assert max(sizes[count:]) <= TINY // 2 < largest


@pytest.mark.parametrize("batch", ["full", 10])
def test_training_is_the_same_in_small_pieces(batch: str | int, sizes: list[int]) -> None:
    data = some_data(60)
    settings = [settings_of(batch_size=batch, stop={"max_epochs": 4})] * 2

    def parameters() -> list[Tensor]:
        net, state, buffers = begin({"name": "mlp", "hidden": [8]}, data, settings, [0, 1])
        return [t for end in training.train(net, data, settings, [0, 1], state, buffers) for t in end.params.values()]

    whole = parameters()
    largest, count = max(sizes), len(sizes)
    with memory.limited(TINY):
        for a, b in zip(parameters(), whole, strict=True):
            assert_close(a, b, rtol=1e-10, atol=1e-13)
    assert max(sizes[count:]) <= TINY // 2 < largest


SUMMED = ["hessian_trace", "relative_flatness", "m_sharpness", "contrast_fisher", "minima_scatter"]


@pytest.mark.parametrize("name", SUMMED)
def test_metrics_are_the_same_in_small_pieces(name: str) -> None:
    function, own = REGISTRY["metric"][name].function, {"minibatch_size": 5} if name == "m_sharpness" else {}
    whole = function(point("tanh"), **own)
    with memory.limited(TINY):
        pieces = function(point("tanh"), **own)
    assert pieces.status == whole.status == ["ok"] * K
    assert_close(pieces.value, whole.value, rtol=1e-9, atol=1e-13)
