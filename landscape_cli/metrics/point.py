"""A stack of minima as metrics see it, with the intermediates that they share; and what a metric returns."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial, wraps
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from landscape_cli.curvature import fisher, fisher_blocks, lanczos, traces
from landscape_cli.curvature import sample_gradients as samples
from landscape_cli.curvature.objective import Objective
from landscape_cli.network import memory, piecewise_linear

DENSE = 2000  # parameters up to which the Hessian is formed
GRAM_SAMPLES = 4096  # up to here the Gram matrix of single-sample gradients is formed, n^2 float64 numbers a minimum
GROUP = 4  # minima of one Lanczos process: fewer make narrow products, more wait for the slowest
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
        table: columns of a table with G rows a minimum, name -> (K, G): a curve rather than a number.
        vectors: (K, k, p), directions in parameter space that are to be kept.
    """

    value: Tensor
    standard_error: Tensor
    samples: int | None = None
    iterations: int | None = None
    residual: Tensor | None = None
    status: list[str] = field(default_factory=list)
    message: list[str] = field(default_factory=list)
    table: dict[str, Tensor] = field(default_factory=dict)
    vectors: Tensor | None = None

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


def nothing(at: Point, why: str) -> Estimate:
    """An undefined value for each of the K minima."""
    K = len(at.theta)
    return exact(torch.zeros(K)).undefined(torch.ones(K), why)


def unit(length: Tensor) -> Tensor:
    """1 / |g|, and 0 for a zero gradient, whose cosine with anything is 0."""
    return torch.where(length > 0, 1 / length.clamp_min(torch.finfo(length.dtype).tiny), 0)


def regret_of(gram: Tensor) -> Tensor:
    """Mean over ordered pairs a != b of |g_b| (1 - cos(g_a, g_b)), for inner products (..., M, M); shape (...)."""
    own = gram.diagonal(dim1=-2, dim2=-1)
    length = own.clamp_min(0).sqrt()
    others = gram.sum(-1) - own  # sum over b != a of <g_a, g_b>
    return length.mean(-1) - (others * unit(length)).mean(-1) / (gram.shape[-1] - 1)


def over_pairs(h: Tensor) -> Estimate:
    """Mean of h (K, M, M) over a != b; standard error by the jackknife, one minibatch left out at a time (M >= 3)."""
    M = h.shape[1]
    h = h - torch.diag_embed(h.diagonal(dim1=1, dim2=2))
    total = h.sum((1, 2))
    left_out = (total[:, None] - h.sum(1) - h.sum(2)) / ((M - 1) * (M - 2))  # (K, M)
    return Estimate(total / (M * (M - 1)), (M - 1) / M**0.5 * left_out.std(1), M)


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
        peers: all minima of the experiment with as many parameters, run id -> (p,); those of this stack too.
        training: how each came about, `steps, epochs, lr, batch_size, history`; None if unknown.
    """

    theta: Tensor
    train: Objective
    test: Objective
    initial: Tensor | None = None
    peers: dict[str, Tensor] = field(default_factory=dict, repr=False)
    training: list[dict[str, Any]] | None = None
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
        """Loss of each sample (K, n), float64."""
        logits, of = self.logits(split), self.train if split == "train" else self.test
        return of.network.loss.values(logits, of.y.expand(len(logits), -1))

    @shared
    def loss(self) -> Tensor:
        """Average training loss (K,), by the same sums as at any perturbed point."""
        return self.train.loss(self.theta)

    @shared
    def gradient(self) -> Tensor:
        """Gradient of the average training loss (K, p)."""
        return self.train.loss_and_gradient(self.theta)[1]

    @cached_property
    def in_double(self) -> Point:
        """The same minima with all numbers in float64, for what float32 cannot resolve."""
        f64 = torch.float64
        if self.theta.dtype == f64:
            return self
        own = Point(self.theta.double(), self.train.to(f64), self.test.to(f64))
        own.seconds, own._nested = self.seconds, self._nested
        return own

    @shared
    def sample_gram(self) -> Tensor:
        """Inner products of all single-sample gradients (K, n, n), float64."""
        return samples.sample_gram(self.train, self.theta)

    @cached_property
    def has_sample_gram(self) -> bool:
        """Whether the training set is small enough for it, and what one run needs on the way."""
        return self.train.n <= GRAM_SAMPLES and samples.gram_bytes(self.train) <= memory.GRAM

    @shared
    def gradient_squares(self) -> Tensor:
        """|g_i|^2 of every training sample (K, n), float64."""
        if self.has_sample_gram:
            return self.sample_gram().diagonal(dim1=1, dim2=2)
        return samples.squared_norms(self.train, self.theta)

    @shared
    def mean_gradient_square(self) -> Tensor:
        """|G|^2 of the average training loss (K,), in float64: near a minimum it is what large numbers leave."""
        return self.in_double.gradient().square().sum(1)

    def gradient_gram(self, minibatch_size: int, minibatches: int, partitions: int, seed: int) -> Tensor:
        """Inner products <g_a, g_b> of minibatch gradients (K, D, M, M), float64, for D independent draws.

        With minibatch_size 1 and the Gram matrix of single samples at hand, that matrix itself is the only draw:
        D = 1, M = n, and means over its pairs are exact. Else as `drawn_gram`.
        """
        if minibatch_size == 1 and self.has_sample_gram:
            return self.sample_gram()[:, None]
        return self.drawn_gram(minibatch_size, minibatches, partitions, seed)

    @shared
    def drawn_gram(self, minibatch_size: int, minibatches: int, partitions: int, seed: int) -> Tensor:
        """Inner products <g_a, g_b> of minibatch gradients (K, D, M, M), float64, for D independent draws.

        Each draw takes M = min(minibatches, n // minibatch_size) disjoint minibatches, the same for all minima. They
        are block means of the Gram matrix of single samples, and products of minibatch gradients where it is too large.
        """
        draws = self.draws(minibatch_size, minibatches, partitions, seed)
        if not self.has_sample_gram:
            return torch.stack([samples.minibatch_gram(self.train, self.theta, draw) for draw in draws], 1)
        return samples.block_means(self.sample_gram(), draws)

    def draws(self, minibatch_size: int, minibatches: int, partitions: int, seed: int) -> Tensor:
        """Numbers of the training samples in each minibatch (D, M, m), disjoint within a draw."""
        n, m, rng = self.train.n, minibatch_size, torch.Generator().manual_seed(seed)
        M = min(minibatches, n // m)
        drawn = [torch.randperm(n, generator=rng)[: M * m].view(M, m) for _ in range(partitions)]
        return torch.stack(drawn).to(self.theta.device)

    def kl_inputs(self, samples: int, over: str, inputs: int, seed: int) -> tuple[Objective, int]:
        """The inputs that define F, and how many training samples S come first: those whose gradients are compared.

        The S samples are drawn at random. `over` minibatches: nothing but them; `train_and_test`: others after them,
        from the rest of training and test inputs together, up to `inputs` in all; their labels are not used.
        """
        n, rng = self.train.n, torch.Generator().manual_seed(seed)
        S, every = min(samples, n), torch.randperm(n, generator=rng).to(self.theta.device)
        train = self.train.subset(every[:S])
        if over == "minibatches":
            return train, S
        rest = [self.train.x[every[S:]], self.test.x]
        y = torch.cat([self.train.y[every[S:]], self.test.y])
        others = torch.randperm(len(y), generator=rng)[: max(0, inputs - S)].to(self.theta.device)
        x = torch.cat([train.x, torch.cat(rest)[others]])
        return replace(train, x=x, y=torch.cat([train.y, y[others]])), S

    @shared
    def kl_metric(self, samples: int, over: str, inputs: int, seed: int) -> fisher.Metric:
        """Inner products of sample gradients in the metric of F^+, by the singular values of U; in float64."""
        at, S = self.in_double.kl_inputs(samples, over, inputs, seed)
        return fisher.metric_gram(at, self.in_double.theta, S)

    @shared
    def fisher_diagonal(self) -> Tensor:
        """Diagonal of the true Fisher information (K, p), float64."""
        return fisher.fisher_diagonal(self.train, self.theta)

    @shared
    def fisher_squares(self, empirical: bool) -> dict[fisher_blocks.Blocks, tuple[Tensor, Tensor]]:
        """mean_i |F_i|_F^2 and |F|_F^2 in each block (K, blocks), of F or of the empirical Fisher; float64."""
        of, found = self.train, []
        ways = (lambda z, y: [of.residuals(z, y)]) if empirical else of.root.rows
        for k in range(len(self.theta)):
            found.append(fisher_blocks.squares(fisher_blocks.rows_of(self.train.alone(k), self.theta[k : k + 1], ways)))
        pairs = {kind: zip(*(own[kind] for own in found), strict=True) for kind in found[0]}
        return {kind: (torch.stack(next(sides)), torch.stack(next(sides))) for kind, sides in pairs.items()}

    @shared
    def krylov(self, seed: int) -> list[lanczos.Krylov]:
        """Lanczos processes of the Hessian of the training loss, from one start for all minima; grown on demand.

        A process ends with the slowest of its minima: a few in each (GROUP) make 0.7 of the products of all in one.
        """
        spaces, group = [], len(self.theta) if self.theta.is_cuda else GROUP
        for k in range(0, len(self.theta), group):
            rng, theta = torch.Generator().manual_seed(seed), self.theta[k : k + group]
            start = torch.randn(theta.shape[1], generator=rng, dtype=theta.dtype).to(theta.device)
            H = self.train.rows(slice(k, k + len(theta))).hessian_product(theta)
            spaces.append(lanczos.Krylov(H, start.expand_as(theta).contiguous(), rng))
        return spaces

    @shared
    def ritz(self, k: int, tolerance: float, max_steps: int, seed: int) -> lanczos.Ritz:
        """The k largest eigenpairs of the Hessian of the training loss."""
        groups = self.krylov(seed)
        return lanczos.joined([lanczos.with_copies(g, k, tolerance=tolerance, max_steps=max_steps) for g in groups])

    @shared
    def bottom(self, tolerance: float, max_steps: int, seed: int) -> lanczos.Ritz:
        """The smallest eigenpair of the Hessian of the training loss, out of the same process."""
        how = partial(lanczos.extreme_eigenpairs, end="bottom", tolerance=tolerance, max_steps=max_steps)
        return lanczos.joined([how(group) for group in self.krylov(seed)])

    @shared
    def hessian(self) -> Tensor:
        """The Hessian of the training loss as a matrix (K, p, p), float64, for small nets; column by column."""
        K, p = self.theta.shape
        H = self.train.hessian_product(self.theta)
        eye = torch.eye(p, dtype=self.theta.dtype, device=self.theta.device)
        dense: Tensor = torch.stack([H(e.expand(K, p).contiguous()) for e in eye], 1).double()
        return (dense + dense.mT) / 2

    @shared
    def spectrum(self) -> Tensor:
        """All eigenvalues of the Hessian (K, p) in rising order, float64, for small nets."""
        values: Tensor = torch.linalg.eigvalsh(self.hessian())
        return values

    @shared
    def rest_trace(self, probes: int, seed: int) -> tuple[Tensor, Tensor] | None:
        """Diagonal terms of tr (H - F) as `traces.hutchpp` has them; None where they are 0, exact for small nets."""
        if self.piecewise_linear and self.affine_in_each(seed):
            return None
        if self.theta.shape[1] <= DENSE:
            rest = self.hessian().diagonal(dim1=1, dim2=2) - self.fisher_diagonal()
            return rest, torch.zeros_like(rest)[:, None].expand(-1, 2, -1)
        rng = torch.Generator().manual_seed(seed)
        return traces.hutchpp(self.train.hessian_product(self.theta, residual_part=True), self.theta, probes, rng)

    def affine_in_each(self, seed: int) -> bool:
        """Whether the logits are seen to be affine in single parameter tensors: v^T (H - F) v = 0 for a few random v.

        On the first samples only: a layer that is not what it seems to be shows there too.
        """
        rng, few = torch.Generator().manual_seed(seed), self.train.subset(torch.arange(min(64, self.train.n)))
        product, columns = few.hessian_product(self.theta, residual_part=True), list(self.train.columns.values())
        for t in torch.randperm(len(columns), generator=rng)[:3].tolist():
            v = torch.zeros_like(self.theta[:1], device="cpu")
            v[:, columns[t]] = torch.randn(v[:, columns[t]].shape, generator=rng)
            v = (v / v.norm()).to(self.theta).expand_as(self.theta)
            if bool(((v * product(v)).double().sum(1).abs() > 1e-3 * self.fisher_traces().sum(1)).any()):
                return False
        return True

    @shared
    def hessian_square(self, probes: int, seed: int) -> tuple[Tensor, Tensor]:
        """|H Q|_F^2 (K,) and |H (I - Q Q^T) v|^2 of each v (K, probes // 3), Hutch++ for tr H^2 by products with H."""
        rng, third, H = torch.Generator().manual_seed(seed), probes // 3, self.train.hessian_product(self.theta)
        S, G = (traces.signs(self.theta, third, rng) for _ in range(2))
        Q = torch.linalg.qr(torch.stack([H(s.contiguous()) for s in S.unbind(1)], 2))[0].mT.contiguous()
        inside = torch.stack([H(q.contiguous()).double().square().sum(1) for q in Q.unbind(1)], 1).sum(1)
        return inside, torch.stack([H(lanczos.reject(g, Q)).double().square().sum(1) for g in G.unbind(1)], 1)

    @shared
    def quadrature(self, probes: int, steps: int, seed: int) -> tuple[Tensor, Tensor]:
        """Gauss nodes and weights (K, probes, steps) of the Hessian's spectrum, as random vectors see it; float64."""
        rng, H = torch.Generator().manual_seed(seed), self.train.hessian_product(self.theta)
        starts = traces.signs(self.theta, probes, rng)
        found = [lanczos.lanczos_quadrature(H, v.contiguous(), steps, rng) for v in starts.unbind(1)]
        nodes, weights = (torch.stack(side, 1) for side in zip(*found, strict=True))
        return nodes, weights

    @shared
    def fisher_traces(self) -> Tensor:
        """Trace of the true Fisher information for each parameter tensor (K, tensors), float64."""
        return fisher.fisher_traces(self.train, self.theta)

    @property
    def piecewise_linear(self) -> bool:
        """Whether the network's layers make the trace of the Hessian that of the Fisher information."""
        return piecewise_linear(self.train.network)
