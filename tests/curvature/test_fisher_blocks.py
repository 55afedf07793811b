"""Squared norms of blocks of the Fisher information by products of rows, against dense matrices."""

from __future__ import annotations

import pytest
import torch
from helpers import CASES, K, objective, oracle
from torch.testing import assert_close

from landscape_cli.curvature import fisher_blocks
from landscape_cli.loss.softmax import residuals, root_rows
from landscape_cli.network import memory

f64 = torch.float64


def dense(name: str, k: int, empirical: bool) -> torch.Tensor:
    """F_i of every sample (n, p, p)."""
    own = oracle(name, k)
    if empirical:
        return own.g[:, :, None] * own.g[:, None]
    p = torch.softmax(own.logits, 1)
    S = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    return own.J.mT @ S @ own.J


@pytest.mark.parametrize("empirical", [False, True])
@pytest.mark.parametrize("way", ["direct", "rows", "outer products"])
@pytest.mark.parametrize("name", CASES)
def test_squares_of_every_block(name: str, way: str, empirical: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """However they are computed: F itself is formed in small nets only."""
    monkeypatch.setattr(fisher_blocks, "DIRECT", 512 if way == "direct" else 0)
    monkeypatch.setattr(fisher_blocks, "_outer_is_less", lambda rows: way == "outer products")
    monkeypatch.setattr(memory, "PRODUCTS", 8 * 20)  # a few samples at a time
    at, theta = objective(name)
    for k in range(K):
        rows = fisher_blocks.rows_of(
            at.alone(k), theta[k : k + 1], (lambda z, y: [residuals(z, y)]) if empirical else root_rows
        )
        F = dense(name, k, empirical)
        for kind, parts in (("none", [slice(0, theta.shape[1])]), ("layer", list(at.columns.values()))):
            own, mean = fisher_blocks.squares(rows)[kind]  # type: ignore[index]
            for j, part in enumerate(parts):
                B = F[:, part, part]
                assert_close(own[j], B.square().sum((1, 2)).mean(), rtol=1e-9, atol=1e-15)
                assert_close(mean[j], B.mean(0).square().sum(), rtol=1e-9, atol=1e-15)


def test_rows_in_pieces_give_the_same_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    at, theta = objective("relu", n=40)
    rows = fisher_blocks.rows_of(at.alone(0), theta[:1], root_rows)
    whole = fisher_blocks.squares(rows)["none"]
    monkeypatch.setattr(fisher_blocks, "DIRECT", 0)
    monkeypatch.setattr(memory, "PRODUCTS", 8 * 7 * 40 * 4)  # rows of 7 samples at a time; 40 is no multiple
    pieces = fisher_blocks.squares(rows)["none"]
    assert_close(pieces[0], whole[0], rtol=1e-12, atol=0)
    assert_close(pieces[1], whole[1], rtol=1e-12, atol=0)
