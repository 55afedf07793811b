"""Losses, gradients and products against dense float64 twins."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from helpers import CASES, K, N, objective, oracle
from torch.testing import assert_close

from landscape_cli import network
from landscape_cli.curvature.objective import Objective, flatten
from landscape_cli.network import memory

f64 = torch.float64


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("size", [1, 5, 100])
def test_scores_are_average_losses_and_shares_of_right_answers(name: str, size: int) -> None:
    at, theta = objective(name)
    loss, right = at.scores(at.unflatten(theta), size)
    for k in range(K):
        z = oracle(name, k).logits.detach()
        assert_close(loss[k], F.cross_entropy(z, at.y), rtol=1e-12, atol=0)
        assert float(right[k]) == pytest.approx(float((z.argmax(1) == at.y).double().mean()), abs=1e-15)


SMALL = ["default", "tiny"]


@pytest.fixture(params=SMALL)
def budget(request: pytest.FixtureRequest) -> Iterator[str]:
    """Everything in one pass, or a few samples at a time and graphs that do not fit into memory."""
    with memory.limited(1 if request.param == "tiny" else None):
        yield str(request.param)


@pytest.mark.parametrize("name", CASES)
def test_loss_gradient_and_products_against_dense_twins(name: str, budget: str) -> None:
    at, theta = objective(name)
    assert len(list(at.chunks(memory.PASS))) == (1 if budget == "default" else N)
    v = torch.randn(theta.shape, generator=torch.Generator().manual_seed(5), dtype=f64)
    loss, gradient = at.loss_and_gradient(theta)
    Hv, Rv = at.hessian_product(theta), at.hessian_product(theta, residual_part=True)
    H, R = (Hv(v), Hv(2 * v)), Rv(v)
    for k in range(K):
        own = oracle(name, k)
        assert_close(at.logits(theta)[k], own.logits.detach(), rtol=1e-11, atol=1e-12)
        due = F.cross_entropy(own.logits, at.y).detach()
        for value in (loss[k], at.loss(theta)[k]):
            assert_close(value, due, rtol=1e-12, atol=0)
        assert_close(gradient[k], own.g.mean(0), rtol=1e-9, atol=1e-13)
        assert_close(H[0][k], own.H @ v[k], rtol=1e-9, atol=1e-12)
        assert_close(H[1][k], 2 * own.H @ v[k], rtol=1e-9, atol=1e-12)  # the kept graph is good for many products
        assert_close(R[k], (own.H - own.F) @ v[k], rtol=1e-8, atol=1e-12)
    assert not torch.allclose(H[0], R, atol=1e-3)


@pytest.mark.parametrize("name", ["residual", "batchnorm", "conv1d", "groupnorm"])
def test_products_of_one_minimum_alone(name: str, budget: str) -> None:
    """Convolutions of one run are laid out otherwise; BatchNorm is folded, but products are by its own parameters."""
    at, theta = objective(name)
    for k in range(K):
        v = torch.randn(theta[:1].shape, generator=torch.Generator().manual_seed(k), dtype=f64)
        own = oracle(name, k)
        assert_close(at.alone(k).hessian_product(theta[k : k + 1])(v)[0], own.H @ v[0], rtol=1e-9, atol=1e-12)
        for only, columns in at.columns.items():
            block = at.alone(k).hessian_product(theta[k : k + 1], only=only)(v[:, columns])
            assert_close(block[0], own.H[columns, columns] @ v[0, columns], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", ["tanh", "gated"])
def test_products_with_a_graph_too_large_for_memory(name: str) -> None:
    at, theta = objective(name)
    v = torch.ones_like(theta)
    whole = at.hessian_product(theta)(v)
    with memory.limited(1):
        assert len(list(at.chunks(memory.PASS))) == N
        product = at.hessian_product(theta)
    assert_close(product(v), whole, rtol=1e-12, atol=1e-14)
    assert_close(product(v), whole, rtol=1e-12, atol=1e-14)


def test_residual_part_of_a_linear_net_is_zero() -> None:
    from torch import nn

    from landscape_cli.curvature.objective import Objective, flatten
    from landscape_cli.network import build, stack

    made = [nn.Linear(3, 2).double()]
    params, buffers = stack(made)
    x, y = torch.randn(6, 3, dtype=f64, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 0, 1, 1, 0])
    at = Objective(build(made[0], (3,), f64), params, buffers, x, y)
    theta = flatten(params)
    assert at.hessian_product(theta, residual_part=True)(torch.ones_like(theta)).abs().max() == 0
    assert at.hessian_product(theta)(torch.arange(8.0, dtype=f64)[None]).abs().max() > 0.01


@pytest.mark.parametrize("name", CASES)
def test_subsets_are_minibatches_and_views_follow_the_layout(name: str) -> None:
    at, theta = objective(name)
    b = torch.tensor([3, 0, 11])
    assert_close(at.subset(b).loss_and_gradient(theta)[1][1], oracle(name, 1).g[b].mean(0), rtol=1e-9, atol=1e-13)
    for n, t in at.unflatten(theta).items():
        assert torch.equal(t, at.like[n])


def test_chunks_cover_the_set_in_equal_pieces() -> None:
    at, _ = objective("relu")
    for size in (1, 100, 1000, 3000, 10**9):
        parts = [len(y) for _, y in at.chunks(size)]
        assert sum(parts) == N
        assert max(parts) - parts[-1] < len(parts)
        assert max(parts) * at.bytes_per_sample <= max(size, at.bytes_per_sample)


@pytest.mark.parametrize("name", CASES)
def test_bytes_per_sample_are_the_same_whoever_asks_first(name: str) -> None:
    """The loss is taken without gradients: nothing is saved then, and the set would never be cut into pieces."""
    (first, theta), (second, _) = objective(name), objective(name)
    first.loss(theta)
    second.loss_and_gradient(theta)
    assert first.bytes_per_sample == second.bytes_per_sample > 0


def test_bytes_per_sample_counts_what_autograd_keeps() -> None:
    """Of the MLP 4-6-3: at least the activations of each layer, in both runs, and not a hundred times as much."""
    at, _ = objective("tanh")
    assert K * 8 * (4 + 6 + 3) <= at.bytes_per_sample <= K * 8 * 100


@pytest.mark.parametrize("name", CASES)
def test_fisher_product_is_that_of_the_dense_matrix(name: str) -> None:
    at, theta = objective(name)
    v = torch.randn(theta.shape, generator=torch.Generator().manual_seed(5), dtype=theta.dtype)
    found = at.fisher_product(theta)(v)
    for k in range(K):
        assert_close(found[k], oracle(name, k).F @ v[k], rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", CASES)
def test_each_minibatch_of_each_minimum_is_a_row(name: str) -> None:
    at, theta = objective(name)
    minibatches = torch.arange(12).view(4, 3)
    each = at.each(minibatches)
    loss, gradient = each.loss_and_gradient(theta.repeat_interleave(4, 0))
    for k in range(K):
        for b, index in enumerate(minibatches):
            assert_close(gradient[4 * k + b], oracle(name, k).g[index].mean(0), rtol=1e-10, atol=1e-13)
            assert_close(loss[4 * k + b], at.subset(index).loss(theta)[k], rtol=1e-12, atol=0)
    one = each.rows(torch.tensor([1, 5]))
    assert_close(one.loss_and_gradient(theta)[1], gradient[[1, 5]], rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", CASES)
def test_one_parameter_tensor_alone_has_its_part_of_the_gradient_and_of_the_hessian(name: str) -> None:
    at, theta = objective(name)
    _, gradient = at.loss_and_gradient(theta)
    H = torch.stack([oracle(name, k).H for k in range(K)])
    for only, own in at.columns.items():
        assert_close(at.loss_and_gradient(theta, only)[1], gradient[:, own], rtol=1e-12, atol=1e-15)
        v = torch.randn(theta[:, own].shape, generator=torch.Generator().manual_seed(0), dtype=theta.dtype)
        block = torch.einsum("kij,kj->ki", H[:, own, own], v)
        assert_close(at.hessian_product(theta, only=only)(v), block, rtol=1e-8, atol=1e-12)


def test_a_tensor_that_no_logit_depends_on_has_no_slope_and_no_curvature() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(4, 3)).double()
    module.add_module("idle", torch.nn.Linear(2, 2).double())
    module.forward = lambda x: module[0](x)  # type: ignore[method-assign]
    net = network.build(module, (4,), torch.float64)
    params, buffers = network.stack([module, module])
    at = Objective(net, params, buffers, torch.randn(5, 4, dtype=torch.float64), torch.arange(5) % 3)
    theta = flatten(params)
    idle = torch.zeros(2, 4, dtype=torch.float64)
    assert torch.equal(at.loss_and_gradient(theta, "idle.weight")[1], idle)
    assert torch.equal(at.hessian_product(theta, only="idle.weight")(idle + 1), idle)
    assert float(at.loss_and_gradient(theta)[1][:, -6:].abs().max()) == 0
