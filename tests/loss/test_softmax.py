"""Softmax cross-entropy to the last digit, however small the loss."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from landscape_cli.loss.softmax import (
    coordinates,
    divergence,
    product,
    residuals,
    root_rows,
    smoothed,
    square,
    values,
    values_and_hits,
)

f64 = torch.float64


def exact_exp(x: Fraction) -> Fraction:
    """e^x by its series in rational numbers, to 60 digits."""
    halvings = max(0, math.ceil(math.log2(max(1.0, abs(float(x))))) + 3)
    y, term, total = x / 2**halvings, Fraction(1), Fraction(1)
    for i in range(1, 60):
        term = term * y / i
        total += term
        term = term.limit_denominator(10**90)
    for _ in range(halvings):
        total = (total * total).limit_denominator(10**70 * max(1, math.ceil(1 / total) ** 2))
    return total


def exact_odds(z: list[float], y: int) -> Fraction:
    """sum_{c != y} exp(z_c - z_y), without rounding in the differences."""
    return sum((exact_exp(Fraction(v) - Fraction(z[y])) for c, v in enumerate(z) if c != y), Fraction(0))


@pytest.mark.parametrize(
    "z", [[30.0, 1.0, 2.0], [1.0, 2.0, 28.5], [0.0, 40.0, -3.0], [0.1, 0.2, 0.3], [25.0, -2.6, -2.7]]
)
@pytest.mark.parametrize("y", [0, 1, 2])
def test_losses_and_residuals_keep_12_digits_however_small(z: list[float], y: int) -> None:
    logits, label = torch.tensor([z], dtype=f64), torch.tensor([y])
    odds = exact_odds(z, y)
    wrong = float(odds / (1 + odds))  # 1 - p_y
    loss = math.log1p(float(odds)) if odds < 1 else math.log(float(1 + odds))
    assert float(values(logits, label)) == pytest.approx(loss, rel=1e-12)
    r = residuals(logits, label)[0]
    others = [c for c in range(3) if c != y]
    assert float(r[y]) == pytest.approx(-wrong, rel=1e-12)
    for c in others:
        due = float(exact_exp(Fraction(z[c]) - Fraction(z[y])) / (1 + odds))
        assert float(r[c]) == pytest.approx(due, rel=1e-12)


def test_a_loss_of_1e_12_has_12_digits_where_the_usual_formula_has_4() -> None:
    gap = 27.631  # about -log(1e-12)
    logits, y = torch.tensor([[gap, 0.0]], dtype=f64), torch.tensor([0])
    due = math.log1p(math.exp(-gap))
    assert float(values(logits, y)) == pytest.approx(due, rel=1e-12)
    assert abs(float(F.cross_entropy(logits, y)) / due - 1) > 1e-6  # teeth


@pytest.mark.parametrize("size", [1e2, 1e3, 1e5, 1e15])
def test_huge_logits_give_neither_inf_nor_nan(size: float) -> None:
    z = torch.tensor([[size, -size, 0.0], [-size, size, size], [size, size, size]], dtype=f64).requires_grad_()
    y = torch.tensor([0, 0, 2])
    losses = values(z, y)
    due = torch.tensor([0.0, 2 * size + math.log(2), math.log(3)], dtype=f64)
    lost = 2e-16 * size  # logsumexp rounds the log odds at the size of the logits
    assert_close(losses, due, rtol=1e-14, atol=lost + 1e-14)
    assert losses[0] <= math.exp(-size)  # and this one, nearly 0, to its own last digit
    slopes = torch.autograd.grad(losses.sum(), z, create_graph=True)[0]
    assert_close(slopes.detach(), residuals(z.detach(), y), rtol=1e-12 + 4 * lost, atol=1e-30)
    again = torch.autograd.grad((slopes * torch.arange(9.0, dtype=f64).view(3, 3)).sum(), z)[0]
    assert bool(torch.isfinite(again).all())


@settings(max_examples=50, deadline=None)
@given(
    z=st.lists(st.floats(-60, 60), min_size=2, max_size=6),
    shift=st.floats(-5, 5),
    data=st.data(),
)
def test_losses_are_cross_entropies_and_residuals_their_slopes(
    z: list[float], shift: float, data: st.DataObject
) -> None:
    y = torch.tensor([data.draw(st.integers(0, len(z) - 1))])
    logits = torch.tensor([z], dtype=f64).requires_grad_()
    losses = values(logits, y)
    assert_close(losses, F.cross_entropy(logits, y)[None], rtol=1e-9, atol=1e-12)
    (slope,) = torch.autograd.grad(losses.sum(), logits)
    assert_close(slope, torch.softmax(logits.detach(), 1) - F.one_hot(y, len(z)), rtol=1e-9, atol=1e-14)
    assert_close(residuals(logits.detach(), y), slope, rtol=1e-12, atol=1e-300)
    assert abs(float(residuals(logits.detach(), y).sum())) <= 1e-15
    assert_close(values(logits + shift, y), losses, rtol=1e-9, atol=1e-20)


@pytest.mark.parametrize("classes_apart", [False, True])
@pytest.mark.parametrize("ties", [False, True])
def test_hits_are_those_of_argmax(classes_apart: bool, ties: bool) -> None:
    rng = torch.Generator().manual_seed(0)
    z, y = torch.randn(4, 500, 3, generator=rng, dtype=f64), torch.randint(3, (4, 500), generator=rng)
    z = z.round() if ties else z  # small whole numbers: a third of the samples have two best classes
    z = z.mT.contiguous().mT if classes_apart else z
    before = z.clone()
    losses, right = values_and_hits(z, y)
    assert torch.equal(losses, values(z, y)) and torch.equal(z, before)
    rows = zip(z.flatten(0, 1).tolist(), y.flatten().tolist(), strict=True)
    assert right.flatten().tolist() == [max(range(3), key=row.__getitem__) == label for row, label in rows]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_what_training_minimizes_is_smoothed_cross_entropy(smoothing: float) -> None:
    rng = torch.Generator().manual_seed(0)
    z, y = torch.randn(2, 7, 4, generator=rng, dtype=f64), torch.randint(4, (2, 7), generator=rng)
    q = (1 - smoothing) * F.one_hot(y, 4) + smoothing / 4
    due = -(q * torch.log_softmax(z, -1)).sum(-1)
    assert_close(smoothed(z, y, smoothing, "none"), due)
    assert_close(smoothed(z, y, smoothing, "sum"), due.sum())


# ---- curvature in the logits at losses down to 1e-14, against sums of 60 digits

LOSSES = [1e-2, 1e-4, 1e-6, 1e-8, 1e-10, 1e-14]


def confident(loss: float, dtype: torch.dtype) -> Tensor:
    """Logits of 30 samples with 10 classes whose losses are about so small, the true class anywhere."""
    rng = torch.Generator().manual_seed(1)
    z = torch.randn(30, 10, generator=rng, dtype=f64)
    own = torch.randint(10, (30, 1), generator=rng)
    others = z.scatter(1, own, -torch.inf).logsumexp(1, keepdim=True)
    return z.scatter(1, own, others - math.log(loss)).to(dtype)


def decimals(rows: Tensor) -> list[list[Decimal]]:
    return [[Decimal(v) for v in row] for row in rows.double().tolist()]


def exact(z: list[Decimal], a: list[Decimal]) -> tuple[list[Decimal], Decimal, Decimal]:
    """S a, a^T S a, and the symmetrized KL of z and z + a, by their definitions."""
    p, q = ([v.exp() for v in row] for row in (z, [s + t for s, t in zip(z, a, strict=True)]))
    p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
    mean = sum(s * t for s, t in zip(p, a, strict=True))
    Sa = [s * (t - mean) for s, t in zip(p, a, strict=True)]
    apart = sum((t - s) * (t.ln() - s.ln()) for s, t in zip(p, q, strict=True))
    return Sa, sum(s * t for s, t in zip(a, Sa, strict=True)), Decimal(apart)


def wrong(found: Tensor, due: list[list[float]]) -> float:
    """The largest error of a row's entries relative to its largest entry."""
    twin = torch.tensor(due, dtype=f64)
    return float(((found.double() - twin).abs().amax(1) / twin.abs().amax(1)).max())


@pytest.mark.parametrize("dtype", [torch.float32, f64])
@pytest.mark.parametrize("loss", LOSSES)
def test_curvature_keeps_its_digits_at_tiny_losses(loss: float, dtype: torch.dtype) -> None:
    z, eps = confident(loss, dtype), torch.finfo(dtype).eps
    a = torch.randn(z.shape, generator=torch.Generator().manual_seed(2), dtype=f64).to(dtype) + 100
    with localcontext() as digits:
        digits.prec = 80
        due = [exact(s, t) for s, t in zip(decimals(z), decimals(a), strict=True)]
        Sa, aSa, apart = ([[float(v) for v in (d[i] if i == 0 else [d[i]])] for d in due] for i in range(3))  # type: ignore[union-attr, list-item]
    p = torch.softmax(z, 1)
    assert wrong(product(z, a), Sa) < 1000 * eps  # the shift of 100 leaves a itself that few digits
    assert wrong(square(z, a)[:, None], aSa) < 1000 * eps
    assert wrong(divergence(z, a)[:, None], apart) < 1000 * eps
    if loss <= 1e-4:  # teeth: the form that cancels
        assert wrong(p * (a - (p * a).sum(1, keepdim=True)), Sa) > 1000 * eps


@pytest.mark.parametrize("size", [1.0, 1e-3, 1e-6])
@pytest.mark.parametrize("dtype", [torch.float32, f64])
def test_divergence_of_small_and_large_changes(size: float, dtype: torch.dtype) -> None:
    for loss in (1e-1, 1e-10):
        z = confident(loss, dtype)
        d = (size * torch.randn(z.shape, generator=torch.Generator().manual_seed(3), dtype=f64)).to(dtype)
        with localcontext() as digits:
            digits.prec = 80
            due = [[float(exact(s, t)[2])] for s, t in zip(decimals(z), decimals(d), strict=True)]
        assert wrong(divergence(z, d)[:, None], due) < 100 * torch.finfo(dtype).eps


@pytest.mark.parametrize("size", [40.0, 1e3, 1e5])
def test_divergence_of_huge_changes_is_finite_and_so_is_its_slope(size: float) -> None:
    z = torch.zeros(2, 3, dtype=f64)
    d = torch.tensor([[size, 0.0, -size], [-size, 1.0, 2.0]], dtype=f64).requires_grad_()
    found = divergence(z, d)
    p, q = torch.softmax(z + d, 1), torch.softmax(z, 1)
    assert_close(found, ((p - q) * (torch.log_softmax(z + d, 1) - torch.log_softmax(z, 1))).sum(1), rtol=1e-12, atol=0)
    assert bool(torch.isfinite(torch.autograd.grad(found.sum(), d)[0]).all())


@pytest.mark.parametrize("label", [None, -1, 0, 2])
def test_rows_are_a_root_in_every_basis(label: int | None) -> None:
    z = torch.tensor([[3.0, 0.0, -1.0], [0.0, 0.0, 20.0]], dtype=f64)
    y = None if label is None else torch.full((2,), label)
    R, p = torch.stack(list(root_rows(z, y)), 1), torch.softmax(z, 1)
    assert_close(R.mT @ R, torch.diag_embed(p) - p[:, :, None] * p[:, None], rtol=1e-9, atol=1e-16)
    if y is not None and label != -1:
        a = coordinates(z, y, 4.0)
        assert bool((a > 0).all())
        assert_close((a[:, :, None] * R).sum(1), 2 * residuals(z, y), rtol=1e-9, atol=1e-12)
