"""Per-sample gradients: the Gram matrix against a loop, and the trace of F against brute force and the Hessian."""

from __future__ import annotations

import pytest
import torch
from helpers import CASES, K, N, data, modules, objective, oracle, plain_logits, vector
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from landscape_cli.curvature import sample_gradients as samples_module
from landscape_cli.curvature.fisher import fisher_diagonal, fisher_traces, root
from landscape_cli.curvature.sample_gradients import (
    hessian_squares,
    minibatch_gram,
    sample_gram,
    sample_hessian_products,
    squared_norms,
)
from landscape_cli.network import memory

f64 = torch.float64


@pytest.mark.parametrize("name", CASES)
def test_gram_matrix_is_that_of_a_loop_over_samples(name: str) -> None:
    at, theta = objective(name)
    gram = sample_gram(at, theta)
    assert gram.shape == (K, N, N)
    assert gram.dtype == f64
    assert not gram.requires_grad  # or it keeps all activations alive
    for k in range(K):
        g = oracle(name, k).g
        assert_close(gram[k], g @ g.T, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_traces_of_the_fisher_information_tensor_by_tensor(name: str) -> None:
    at, theta = objective(name)
    traces = fisher_traces(at, theta)
    with memory.limited(1):
        chunked = fisher_traces(at, theta)
    assert not traces.requires_grad
    sizes = [t[0].numel() for t in at.like.values()]
    for k in range(K):
        diagonal = oracle(name, k).F.diagonal().split(sizes)
        assert_close(traces[k].sum(), oracle(name, k).F.trace(), rtol=1e-10, atol=0)
        assert_close(traces[k], torch.stack([d.sum() for d in diagonal]), rtol=1e-10, atol=1e-14)
        assert_close(chunked[k], traces[k], rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("name", CASES)
def test_trace_of_the_hessian_is_that_of_f_exactly_where_the_net_is_piecewise_linear(name: str) -> None:
    at, theta = objective(name)
    trace = fisher_traces(at, theta).sum(1)
    for k in range(K):
        H = oracle(name, k).H
        if CASES[name].piecewise or name == "prelu":
            assert_close(trace[k], H.trace(), rtol=1e-10, atol=0)
        elif name != "gated":
            assert abs(float(trace[k] / H.trace()) - 1) > 1e-4  # teeth: tanh, LayerNorm and shared layers differ


@pytest.mark.parametrize("name", ["residual", "conv1d", "twice", "gated"])
def test_chunks_do_not_change_the_gram_matrix(name: str) -> None:
    at, theta = objective(name)
    whole = sample_gram(at, theta)
    with memory.limited(5 * 2 * int(at.bytes_per_sample)):
        assert at.chunk_size(memory.TAPS) in (4, 5)
        assert_close(sample_gram(at, theta), whole, rtol=1e-11, atol=1e-14)


def test_true_fisher_is_the_mean_of_the_empirical_one_over_labels_of_the_model() -> None:
    """E over y ~ p of |g_i(y)|^2 summed over samples is n tr F: the two code paths share no formula."""
    at, theta = objective("residual")
    p = torch.softmax(at.logits(theta), -1)
    total = torch.zeros(K, dtype=f64)
    for c in range(p.shape[2]):
        labelled = type(at)(at.network, at.like, at.buffers, at.x, torch.full_like(at.y, c))
        total += (p[:, :, c] * sample_gram(labelled, theta).diagonal(dim1=1, dim2=2)).sum(1)
    assert_close(fisher_traces(at, theta).sum(1), total / N, rtol=1e-10, atol=0)


def test_sequence_inputs_of_a_dense_layer_sum_over_positions() -> None:
    """A linear layer on (B, T, in) has no product formula: positions of one sample mix."""
    from torch import nn

    from landscape_cli.curvature.objective import Objective, flatten
    from landscape_cli.network import build, stack

    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2)).double()
    params, buffers = stack([net])
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(5, 2, 3, generator=rng, dtype=f64), torch.tensor([0, 1, 1, 0, 1])
    at = Objective(build(net, (2, 3), f64), params, buffers, x, y)
    g = []
    for i in range(5):
        net.zero_grad()
        nn.functional.cross_entropy(net(x[i : i + 1]), y[i : i + 1]).backward()
        g.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    G = torch.stack(g)
    assert at.network.kind == "stacked"
    assert_close(sample_gram(at, flatten(params))[0], G @ G.T, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", CASES)
def test_squares_of_every_samples_hessian_product(name: str) -> None:
    """Against the dense Hessian of each sample, tensor by tensor."""
    at, theta = objective(name, n=5)
    v = torch.randn(theta.shape, generator=torch.Generator().manual_seed(6), dtype=f64)
    found = hessian_squares(at, theta, v)
    whole = torch.cat(list(sample_hessian_products(at, theta, v)), 1)
    sizes = [t[0].numel() for t in at.like.values()]
    for k in range(K):
        module, (x, y) = modules(name)[k], data(name, 5)
        for i in range(5):

            def loss(t: torch.Tensor, i: int = i) -> torch.Tensor:
                return cross_entropy(plain_logits(module, x[i : i + 1])(t), y[i : i + 1])  # noqa: B023

            Hv = torch.autograd.functional.hvp(loss, vector(module), v[k])[1]
            assert_close(whole[k, i], Hv, rtol=1e-9, atol=1e-12)
            due = torch.stack([part.square().sum() for part in Hv.split(sizes)])
            assert_close(found[k, i], due, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_norms_and_diagonals_of_every_network(name: str) -> None:
    at, theta = objective(name)
    norms, diagonal = squared_norms(at, theta), fisher_diagonal(at, theta)
    draw = torch.arange(16).view(4, 4)
    gram = minibatch_gram(at, theta, draw)
    for k in range(K):
        g = oracle(name, k).g
        means = g[draw].mean(1)
        assert_close(norms[k], g.square().sum(1), rtol=1e-10, atol=1e-14)
        assert_close(diagonal[k], oracle(name, k).F.diagonal(), rtol=1e-10, atol=1e-14)
        assert_close(gram[k], means @ means.T, rtol=1e-10, atol=1e-14)
        U = root(at.alone(k), theta[k : k + 1]).flatten(0, 1)
        assert_close(U.T @ U, oracle(name, k).F, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("name", ["relu", "conv1d", "residual"])
def test_minima_one_at_a_time_give_the_same_gram_matrix(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    at, theta = objective(name)
    whole = sample_gram(at, theta)
    monkeypatch.setattr(samples_module, "BLOCK", 5)  # 17 is no multiple
    with memory.limited(1):
        assert_close(sample_gram(at, theta), whole, rtol=1e-12, atol=1e-14)
