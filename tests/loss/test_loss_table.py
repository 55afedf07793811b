"""What every loss of the table promises: values, slopes and curvature, against formulas and derivatives of others."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from landscape_cli.loss import LOSSES, SOFTMAX, Loss, Root
from landscape_cli.registry import NEEDS
from landscape_cli.registry.errors import Fault

f64 = torch.float64


def cross_entropy(z: Tensor, y: int) -> Tensor:
    return -torch.log(z.exp()[y] / z.exp().sum())


TWINS: dict[str, Callable[[Tensor, int], Tensor]] = {"softmax": cross_entropy}  # of one sample, straight from a book
SAMPLES = [
    ([0.3, -1.2, 2.0, 0.1], 2),
    ([0.3, -1.2, 2.0, 0.1], 1),
    ([0.0, 0.0, 0.0, 0.0], 0),
    ([4.0, -5.0, 1.0, 2.0], 1),
]


def batch() -> tuple[Tensor, Tensor]:
    z, y = zip(*SAMPLES, strict=True)
    return torch.tensor(z, dtype=f64), torch.tensor(y)


def root_of(name: str) -> Root:
    root = LOSSES[name].root
    if root is None:
        pytest.skip(f"{name} states no root")
    return root


def curvature(name: str) -> Tensor:
    """S of each sample, by autograd from the twin's formula."""
    z, y = batch()
    each = [torch.autograd.functional.hessian(lambda v, k=k: TWINS[name](v, int(y[k])), z[k]) for k in range(len(y))]  # type: ignore[misc]
    return torch.stack(each)


def test_every_loss_has_a_twin() -> None:
    assert TWINS.keys() == LOSSES.keys()
    assert all(loss.name == name for name, loss in LOSSES.items())


@pytest.mark.parametrize("name", LOSSES)
def test_values_and_residuals(name: str) -> None:
    loss, (z, y) = LOSSES[name], batch()
    z.requires_grad_()
    due = torch.stack([TWINS[name](v, int(label)) for v, label in zip(z, y, strict=True)])
    found = loss.values(z, y)
    assert_close(found, due, rtol=1e-12, atol=1e-14)
    assert_close(loss.values(z.expand(3, -1, -1), y.expand(3, -1)), due.expand(3, -1), rtol=1e-12, atol=1e-14)
    slopes = torch.autograd.grad(due.sum(), z)[0]
    assert_close(torch.autograd.grad(found.sum(), z)[0], slopes, rtol=1e-12, atol=1e-14)
    if loss.residuals is not None:
        assert_close(loss.residuals(z.detach(), y), slopes, rtol=1e-12, atol=1e-14)
    assert_close(loss.trained(z.detach()[None], y[None], 0.0, "none")[0], due.detach())
    assert_close(loss.trained(z.detach()[None], y[None], 0.0, "sum"), due.detach().sum())


@pytest.mark.parametrize("name", LOSSES)
def test_the_root_and_what_follows_from_it(name: str) -> None:
    root, S, (z, y) = root_of(name), curvature(name), batch()
    for R in (torch.stack(list(root.rows(z)), 1), torch.stack(list(root.rows(z, y)), 1)):
        assert R.shape[1] == root.number(z.shape[1])
        assert_close(R.mT @ R, S, rtol=1e-10, atol=1e-14)
    a = torch.randn(z.shape, generator=torch.Generator().manual_seed(0), dtype=f64)
    Sa = (S @ a[:, :, None])[:, :, 0]
    assert_close(root.product(z, a), Sa, rtol=1e-10, atol=1e-14)
    assert_close(root.square(z, a), (a * Sa).sum(1), rtol=1e-10, atol=1e-14)
    r = torch.stack(
        [torch.autograd.functional.jacobian(lambda v, k=k: TWINS[name](v, int(y[k])), z[k]) for k in range(len(y))]
    )  # type: ignore[misc]
    coordinates = root.coordinates(z, y, 4.0)
    assert_close((coordinates[:, :, None] * R).sum(1), 2 * r, rtol=1e-10, atol=1e-14)
    length = (r[:, None] @ torch.linalg.pinv(S, rtol=1e-12) @ r[:, :, None])[:, 0, 0]
    assert_close(root.length(z, y), length, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_the_root_does_not_depend_on_the_label_and_divergence_is_that_of_its_model(name: str) -> None:
    """S of one label is that of another; KL + KL = <grad A(z + d) - grad A(z), d>, grad A = r + T(y)."""
    root, (z, y) = root_of(name), batch()
    residuals = LOSSES[name].residuals
    assert residuals is not None
    d = torch.randn(z.shape, generator=torch.Generator().manual_seed(1), dtype=f64)
    due = ((residuals(z + d, y) - residuals(z, y)) * d).sum(1)
    assert_close(root.divergence(z, d), due, rtol=1e-10, atol=1e-14)
    for label in range(z.shape[1]):
        each = [torch.autograd.functional.hessian(lambda v, label=label: TWINS[name](v, label), row) for row in z]  # type: ignore[misc]
        assert_close(torch.stack(each), curvature(name), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", LOSSES)
def test_scores_are_values_and_hits(name: str) -> None:
    loss, (z, y) = LOSSES[name], batch()
    values, hits = loss.scores(z, y)
    assert_close(values, loss.values(z, y), rtol=0, atol=0)
    assert_close(hits.double(), loss.hits(z, y), equal_nan=True)
    if loss.outputs.margins is not None:  # ahead is right
        margins = loss.outputs.margins(z, y)
        assert hits[margins > 0].all() and not hits[margins < 0].any()


def test_what_a_loss_lacks_is_named() -> None:
    z, y = batch()
    bare = Loss("bare", SOFTMAX.values)
    assert SOFTMAX.lacks(NEEDS) == ""
    assert bare.lacks(["root"]) == "the loss 'bare' has no root"
    assert bare.lacks(NEEDS) == "the loss 'bare' has no residuals and no root and no classes and no margins"
    with pytest.raises(Fault, match=r"^the loss 'bare' has no residuals$"):
        bare.need("residuals")
    assert bare.hits(z, y).isnan().all() and bare.scores(z, y)[1].isnan().all()
    assert_close(bare.trained(z, y, 0.0, "sum"), SOFTMAX.values(z, y).sum())
