"""A stack of minima as metrics see it, with the intermediates that they share; and what a metric returns."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from landscape_cli import linalg, samples
from landscape_cli.network import piecewise_linear
from landscape_cli.objective import Objective, sample_losses

GRAM_SAMPLES = 4096  # up to here the Gram matrix of single-sample gradients is formed, n^2 float64 numbers a minimum
STATUS = ("ok", "not_converged", "undefined", "unresolved", "failed")
Method = TypeVar("Method", bound=Callable[..., Any])
Split = Literal["train", "test"]


@dataclass
class Estimate:
    """K values with their standard errors, and what a reader needs to judge them.

    Args:
        value: (K,); NaN where undefined.
        standard_error: (K,), 0 where the value is exact up to rounding.
        samples: draws, minibatches or data points behind each value.
        iterations: of the solver.
        residual: (K,), of the solver, relative.
        status: one a minimum, of `STATUS`; `ok` by default.
        message: one a minimum; empty by default.
    """

    value: Tensor
    standard_error: Tensor
    samples: int | None = None
    iterations: int | None = None
    residual: Tensor | None = None
    status: list[str] = field(default_factory=list)
    message: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.status = self.status or ["ok"] * len(self.value)
        self.message = self.message or [""] * len(self.value)

    def undefined(self, where: Tensor, why: str) -> Estimate:
        """The same with status `undefined` and no value in those rows."""
        for k in torch.nonzero(where).flatten().tolist():
            self.value[k], self.standard_error[k] = float("nan"), float("nan")
            self.status[k], self.message[k] = "undefined", why
        return self

    def not_converged(self, where: Tensor, why: str) -> Estimate:
        """The same with status `not_converged` in those rows; the value stays."""
        for k in torch.nonzero(where).flatten().tolist():
            self.status[k], self.message[k] = "not_converged", why
        return self


def exact(value: Tensor, samples: int | None = None) -> Estimate:
    """An estimate without sampling error."""
    return Estimate(value.double(), torch.zeros(len(value), dtype=torch.float64), samples)


def over_draws(values: Tensor, samples: int | None = None) -> Estimate:
    """Mean over independent draws (K, D) and its standard error; a single draw stands for an exact enumeration."""
    D = values.shape[1]
    error = values.std(1) / D**0.5 if D > 1 else torch.zeros_like(values[:, 0])
    return Estimate(values.mean(1), error, samples)


def shared(method: Method) -> Method:
    """Compute once per Point and arguments; the time goes to `seconds` under the method's name."""

    @wraps(method)
    def cached(self: Point, *args: Any) -> Any:
        key = (method.__name__, args)
        if key not in self._known:
            with self.clock(method.__name__):
                self._known[key] = method(self, *args)
        return self._known[key]

    return cached  # type: ignore[return-value]


@dataclass
class Point:
    """K minima with their data.

    Args:
        theta: parameters (K, p).
        train: the average training loss, on which metrics are taken.
        test: the average test loss.
        initial: parameters before training (K, p), if known.
    """

    theta: Tensor
    train: Objective
    test: Objective
    initial: Tensor | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    _known: dict[Any, Any] = field(default_factory=dict, repr=False)
    _nested: list[float] = field(default_factory=list, repr=False)

    @contextmanager
    def clock(self, name: str) -> Iterator[None]:
        """Book the time spent inside, less what other clocks inside booked."""
        self._nested.append(0.0)
        start = time.perf_counter()
        try:
            yield
        finally:
            total = time.perf_counter() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + total - self._nested.pop()
            if self._nested:
                self._nested[-1] += total

    @shared
    def logits(self, split: Split) -> Tensor:
        """(K, n, C) in float64."""
        return (self.train if split == "train" else self.test).logits(self.theta).double()

    @shared
    def losses(self, split: Split) -> Tensor:
        """Cross-entropy of each sample (K, n), float64."""
        logits = self.logits(split)
        y = (self.train if split == "train" else self.test).y
        return sample_losses(logits, y.expand(len(logits), -1))

    @shared
    def loss(self) -> Tensor:
        """Average training loss (K,), by the same sums as at any perturbed point."""
        return self.train.loss(self.theta)

    @shared
    def gradient(self) -> Tensor:
        """Gradient of the average training loss (K, p)."""
        return self.train.loss_and_gradient(self.theta)[1]

    @shared
    def sample_gram(self) -> Tensor:
        """Inner products of all single-sample gradients (K, n, n), float64."""
        return samples.sample_gram(self.train, self.theta)

    @property
    def has_sample_gram(self) -> bool:
        """Whether the training set is small enough for it."""
        return len(self.train.y) <= GRAM_SAMPLES

    @shared
    def gradient_gram(self, minibatch_size: int, minibatches: int, partitions: int, seed: int) -> Tensor:
        """Inner products <g_a, g_b> of minibatch gradients (K, D, M, M), float64, for D independent draws.

        Each draw takes M = min(minibatches, n // minibatch_size) disjoint minibatches, the same for all minima. With
        minibatch_size 1 and the Gram matrix of single samples at hand, that matrix itself is the only draw: D = 1,
        M = n, and means over its pairs are exact. Else its block means serve, and minibatch gradients where it is
        too large.
        """
        n, m = len(self.train.y), minibatch_size
        if m == 1 and self.has_sample_gram:
            return self.sample_gram()[:, None]
        M, rng = min(minibatches, n // m), torch.Generator().manual_seed(seed)
        draws = torch.stack([torch.randperm(n, generator=rng)[: M * m].view(M, m) for _ in range(partitions)])
        draws = draws.to(self.theta.device)
        if not self.has_sample_gram:
            return torch.stack([self._minibatch_gram(draw) for draw in draws], 1)
        B = torch.zeros(partitions, M, n, dtype=torch.float64, device=self.theta.device).scatter(2, draws, 1 / m)
        gram = self.sample_gram()
        return torch.stack([B @ (G @ B.flatten(0, 1).mT).unflatten(1, (partitions, M)).movedim(1, 0) for G in gram])

    def _minibatch_gram(self, draw: Tensor) -> Tensor:
        """(K, M, M) for one draw of minibatches (M, m), by a gradient for each."""
        g = torch.stack([self.train.subset(b).loss_and_gradient(self.theta)[1] for b in draw], 1).double()
        return g @ g.mT

    @shared
    def ritz(self, k: int, tolerance: float, max_steps: int, seed: int) -> linalg.Ritz:
        """The k largest eigenpairs of the Hessian of the training loss, from one start for all minima."""
        rng = torch.Generator().manual_seed(seed)
        start = torch.randn(self.theta.shape[1], generator=rng, dtype=self.theta.dtype).to(self.theta.device)
        H = self.train.hessian_product(self.theta)
        start = start.expand_as(self.theta).contiguous()
        return linalg.top_eigenpairs(H, start, k, tolerance=tolerance, max_steps=max_steps, rng=rng)

    @shared
    def fisher_traces(self) -> Tensor:
        """Trace of the true Fisher information for each parameter tensor (K, tensors), float64."""
        return samples.fisher_traces(self.train, self.theta)

    @property
    def piecewise_linear(self) -> bool:
        """Whether the network's layers make the trace of the Hessian that of the Fisher information."""
        return piecewise_linear(self.train.network)
