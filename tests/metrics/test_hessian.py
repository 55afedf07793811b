"""Eigenvalues and trace of the Hessian: against the dense one, and against curvlinops and PyHessian."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from helpers import CASES, K, N, Quadratic, data, modules, objective, oracle, point, symmetric
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn
from torch.testing import assert_close

from landscape_cli.metrics import hessian as curvature
from landscape_cli.metrics import point as point_module
from landscape_cli.metrics import spectrum
from landscape_cli.metrics.hessian import hessian_frobenius, hessian_top, hessian_trace
from landscape_cli.metrics.point import Estimate, Point

f64 = torch.float64


def top(at: Point, **settings: float) -> Estimate:
    found = hessian_top(at, **settings)  # type: ignore[arg-type]
    assert isinstance(found, Estimate)
    return found


@pytest.mark.parametrize("name", CASES)
def test_top_eigenvalue_of_the_dense_hessian(name: str) -> None:
    found = top(point(name), tolerance=1e-4)
    for k in range(K):
        due = float(torch.linalg.eigvalsh(oracle(name, k).H)[-1])
        assert float(found.value[k]) == pytest.approx(due, rel=1e-6)
    assert found.status == ["ok"] * K
    assert found.residual is not None
    assert (found.residual <= 1e-4).all()


@pytest.mark.parametrize("name", ["tanh", "residual", "layernorm"])
def test_k_3_gives_a_row_each_in_falling_order(name: str) -> None:
    rows = hessian_top(point(name), k=3, tolerance=1e-6)
    assert isinstance(rows, dict)
    assert list(rows) == ["rank=1", "rank=2", "rank=3"]
    for k in range(K):
        due = torch.linalg.eigvalsh(oracle(name, k).H).flip(0)[:3]
        assert_close(torch.stack([row.value[k] for row in rows.values()]), due, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", CASES)
def test_trace_of_the_dense_hessian(name: str) -> None:
    at = point(name)
    found, rows = hessian_trace(at), hessian_trace(at, blocks="layer")
    assert isinstance(found, Estimate)
    assert isinstance(rows, dict)
    assert list(rows) == [f"block={n}" for n in at.train.columns]
    for k in range(K):
        H = oracle(name, k).H
        assert float(found.value[k]) == pytest.approx(float(H.trace()), rel=1e-9)
        for row, own in zip(rows.values(), at.train.columns.values(), strict=True):
            assert float(row.value[k]) == pytest.approx(float(H.diagonal()[own].sum()), rel=1e-8, abs=1e-10)
            assert float(row.standard_error[k]) == 0
    assert (found.standard_error == 0).all()
    assert found.samples == (N if CASES[name].piecewise else 64)


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks of any size are too large for the dense Hessian."""
    for module in (point_module, curvature, spectrum):
        monkeypatch.setattr(module, "DENSE", 0)


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("name", ["tanh", "gated", "twice"])
def test_trace_of_other_nets_is_f_plus_hutchpp_of_the_rest(name: str) -> None:
    """Meyer et al. 2021, algorithm 1, from dense matrices and the documented draws."""
    found, third = hessian_trace(point(name), probes=12, seed=5), 4
    assert isinstance(found, Estimate)
    for k in range(K):
        own = oracle(name, k)
        rng, p = torch.Generator().manual_seed(5), len(own.H)
        S, G = (torch.randint(0, 2, (third, p), generator=rng).double() * 2 - 1 for _ in range(2))
        rest = own.H - own.F
        Q = torch.linalg.qr(rest @ S.T)[0]
        G = G.T - Q @ (Q.T @ G.T)
        each = (G * (rest @ G)).sum(0)
        due = float(own.F.trace() + (Q.T @ rest @ Q).trace() + each.mean())
        assert float(found.value[k]) == pytest.approx(due, rel=1e-8)
        assert float(found.standard_error[k]) == pytest.approx(float(each.std()) / third**0.5, rel=1e-6)
        assert float(found.standard_error[k]) > 0


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("what", [hessian_trace, hessian_frobenius])
def test_standard_errors_are_honest(what: Callable[..., Estimate]) -> None:
    at, own = point("tanh"), oracle("tanh", 0)
    truth = float(own.H.trace() if what is hessian_trace else torch.linalg.matrix_norm(own.H))
    at.fisher_traces()
    inside = dict.fromkeys((0.5, 1.0), 0)
    for seed in range(100):
        found = what(at, probes=24, seed=seed)
        for factor in inside:
            error = abs(float(found.value[0]) - truth)
            inside[factor] += error < 2.3 * factor * float(found.standard_error[0])  # Student's t of 7 degrees
    assert 89 <= inside[1.0] <= 100
    assert inside[0.5] < 85  # teeth: half the standard error is not enough


@pytest.mark.usefixtures("large")
def test_the_variance_of_the_spectrum_is_unbiased_with_few_probes() -> None:
    """Eigenvalues +1 and -1 alike: second moments are exactly 1, and all that is left to chance is mean^2."""
    H = symmetric(torch.cat([torch.ones(10), -torch.ones(10)]), 0)[None]
    at = Quadratic(H, torch.zeros(1, 20, dtype=f64)).point()
    found = [spectrum.spectral_density(at, probes=2, steps=4, seed=s)["moment=variance"].value for s in range(300)]
    values = torch.cat(found)
    assert abs(float(values.mean()) - 1) < 3 * float(values.std()) / 300**0.5 < 0.02


def test_negative_definite_hessians_have_no_top() -> None:
    spectra = (-torch.arange(1.0, 7), torch.zeros(6), torch.arange(6.0))
    at = Quadratic(torch.stack([symmetric(v, 0) for v in spectra]), torch.zeros(3, 6, dtype=f64))
    found = top(at.point())
    assert found.status == ["undefined", "undefined", "ok"]
    assert found.message == ["no positive curvature found"] * 2 + [""]
    assert found.value[:2].isnan().all()
    assert float(found.value[2]) == pytest.approx(5, rel=1e-9)


def test_too_few_steps_keep_the_value_and_say_so() -> None:
    at = Quadratic(torch.stack([symmetric(torch.linspace(0, 1, 80), 1)]), torch.zeros(1, 80, dtype=f64))
    found = top(at.point(), max_steps=5)
    assert found.status == ["not_converged"]
    assert found.message == ["relative residual above tolerance=0.001 after 5 steps: raise max_steps (5)"]
    assert found.residual is not None
    assert found.iterations == 5
    assert 0.5 < float(found.value) < 1


def test_all_minima_get_the_same_start() -> None:
    H = symmetric(torch.linspace(0, 1, 60), 1)
    at = Quadratic(torch.stack([H] * 3), torch.zeros(3, 60, dtype=f64))
    same = top(at.point(), max_steps=4, seed=3).value
    assert len(set(same.tolist())) == 1
    assert (top(at.point(), max_steps=4, seed=4).value != same).all()


# ---- peers on the same net and data


@pytest.mark.parametrize("name", ["tanh", "residual"])
def test_curvlinops_agrees(name: str) -> None:
    module, (x, y) = modules(name)[0], data(name)
    params = [p.requires_grad_() for p in module.parameters()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from curvlinops import HessianLinearOperator

        H = HessianLinearOperator(module, nn.CrossEntropyLoss(), params, [(x, y)], check_deterministic=False)
        dense = H @ torch.eye(H.shape[1], dtype=f64)
        largest = eigsh(H.to_scipy(), k=1, which="LA", return_eigenvectors=False, tol=1e-10)
    at = point(name)
    assert float(top(at, tolerance=1e-5).value[0]) == pytest.approx(float(largest[0]), rel=1e-6)
    found = hessian_trace(at, probes=100)
    due = float(dense.detach().trace())
    slack = 4 * float(found.standard_error[0])
    assert float(found.value[0]) == pytest.approx(due, rel=1e-8, abs=slack)
    train, theta = objective(name)
    v = torch.randn(K, theta.shape[1], generator=torch.Generator().manual_seed(1), dtype=f64)
    assert_close(train.hessian_product(theta)(v)[0], dense.detach() @ v[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["tanh", "residual"])
def test_pyhessian_agrees(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Its power iteration stops at a relative change of 1e-7; its trace is a sample of Hutchinson's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pyhessian import hessian

        module, (x, y) = modules(name)[0].float(), data(name)
        torch.manual_seed(0)
        peer = hessian(module, nn.CrossEntropyLoss(), data=(x.float(), y), cuda=False)
        largest = peer.eigenvalues(maxIter=2000, tol=1e-7, top_n=1)[0][0]
        samples = np.array(peer.trace(maxIter=200, tol=0))
    at = point(name)
    assert float(top(at).value[0]) == pytest.approx(largest, rel=1e-3)
    error = samples.std() / len(samples) ** 0.5
    ours = hessian_trace(at)
    assert abs(float(ours.value[0]) - samples.mean()) < 4 * (error + float(ours.standard_error[0]))
    capsys.readouterr()
    hessian_trace(at)
    top(at)
    assert capsys.readouterr() == ("", "")  # ours prints nothing


def test_values_do_not_depend_on_the_company() -> None:
    """Three minima together against each alone: the extra Lanczos steps of one change the others below tolerance."""
    together, each = top(point("relu", count=3), tolerance=1e-6).value, []
    at = point("relu", count=3)
    for k in range(3):
        alone = Point(at.theta[k : k + 1], at.train.alone(k), at.test.alone(k))
        each.append(float(top(alone, tolerance=1e-6).value))
    assert_close(together, torch.tensor(each, dtype=f64), rtol=1e-9, atol=0)
    assert isinstance(together, Tensor)
