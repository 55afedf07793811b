"""Eigenvalues, spectra, traces and solutions of symmetric operators known by their products only, K operators at once.

Nothing here knows of networks: an operator is a function (K, p) -> (K, p), operator k acting on row k; where many
vectors are asked for, it is called once for each, or may take (K, p, v) whole (`conjugate_gradients`). Every operator
stops on its own: its result does not depend on the company.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]
NOTHING = 50  # steps after which an operator that has shown no positive eigenvalue is taken to have none
FLOOR = 1e-3  # of the largest |eigenvalue|: residuals of smaller ones are measured against this


@dataclass(frozen=True)
class Ritz:
    """Extreme eigenpairs of K operators: values and residuals |A v - value v| (K, k), vectors (K, k, p), steps."""

    values: Tensor
    residuals: Tensor
    vectors: Tensor
    steps: int


def joined(groups: list[Ritz]) -> Ritz:
    """The operators of all groups; the steps are the most that one took."""
    values, residuals, vectors, steps = zip(*((g.values, g.residuals, g.vectors, g.steps) for g in groups), strict=True)
    return Ritz(torch.cat(values), torch.cat(residuals), torch.cat(vectors), max(steps))


@dataclass
class Krylov:
    """The Lanczos process of K operators, grown on demand: T = Q A Q^T is tridiagonal, the rows of Q orthonormal.

    Args:
        A: (K, p) -> (K, p).
        start: (K, p), rows not zero.
        rng: draws a fresh direction where a Krylov space closes early.
    """

    A: Product
    start: Tensor
    rng: torch.Generator
    alpha: list[Tensor] = field(default_factory=list)  # diagonal of T, each (K,) in float64
    beta: list[Tensor] = field(default_factory=list)  # beside it; the last one leads out of the space
    _basis: Tensor | None = None
    _next: Tensor | None = None

    @property
    def size(self) -> int:
        """Steps taken."""
        return len(self.alpha)

    def basis(self, steps: int) -> Tensor:
        """Q (K, steps, p)."""
        assert self._basis is not None
        return self._basis[:, :steps]

    def grow(self) -> None:
        """One product, and its image made orthogonal to all rows: without that, eigenvalues come back as ghosts."""
        j, (K, p) = self.size, self.start.shape
        if self._basis is None:
            self._basis = self.start.new_empty(K, min(p, 32), p)
        elif j == self._basis.shape[1]:
            self._basis = torch.cat([self._basis, torch.empty_like(self._basis)], 1)
        q = self.start if self._next is None else self._next
        self._basis[:, j] = q / torch.linalg.vector_norm(q, dim=1, keepdim=True)
        Q = self._basis[:, : j + 1]
        Aq = self.A(Q[:, j])
        self.alpha.append((Q[:, j] * Aq).double().sum(1))
        near = Q[:, max(0, j - 1) :]  # in exact arithmetic the only rows that Aq is not orthogonal to
        rest = reject(Aq, near)
        q = reject(rest, Q)
        size, before = (torch.linalg.vector_norm(t, dim=1) for t in (q, rest))
        if bool((size < 0.7 * before).any()):  # much was taken away, and its rounding is left: twice is enough
            q = reject(q, Q)
            size = torch.linalg.vector_norm(q, dim=1)
        closed = size <= 10 * torch.finfo(q.dtype).eps * torch.linalg.vector_norm(Aq, dim=1)
        self.beta.append(torch.where(closed, 0, size).double())
        if closed.any() and j + 1 < p:
            fresh = torch.randn(p, generator=self.rng, dtype=q.dtype).to(q.device).expand(K, p)
            q = torch.where(closed[:, None], reject(reject(fresh, Q), Q), q)
        self._next = q

    def eigh(self, steps: int) -> tuple[Tensor, Tensor, Tensor]:
        """Ritz values (K, steps) in rising order, eigenvectors of T in columns (K, steps, steps), and residuals."""
        T = tridiagonal(torch.stack(self.alpha[:steps], 1), torch.stack(self.beta[:steps], 1)[:, :-1])
        values, S = torch.linalg.eigh(T)
        return values, S, self.beta[steps - 1][:, None] * S[:, -1].abs()


def tridiagonal(alpha: Tensor, beta: Tensor) -> Tensor:
    """T (K, m, m) with diagonal alpha (K, m) and off-diagonals beta (K, m - 1)."""
    return torch.diag_embed(alpha) + torch.diag_embed(beta, 1) + torch.diag_embed(beta, -1)


def reject(q: Tensor, Q: Tensor) -> Tensor:
    """q (K, p) without its components along the orthonormal rows of Q (K, m, p)."""
    row = q[:, None]  # of a row times a matrix the CPU makes 5 times as many a second as of a matrix times a column
    return torch.baddbmm(row, row @ Q.mT, Q, alpha=-1)[:, 0]


def extreme_eigenpairs(
    space: Krylov, k: int = 1, *, end: str = "top", tolerance: float = 1e-3, max_steps: int = 200
) -> Ritz:
    """The k largest eigenvalues in falling order (`end` top), or the k smallest in rising order (bottom).

    A small residual certifies that *an* eigenvalue was found, not that it is the extreme one: an unlucky start hides
    the first for some steps; and a residual that is small against the spectrum may be large against a narrow gap. The
    values must therefore have stayed what they are over the last half of the steps too.

    Args:
        space: is grown as far as needed; what was there before does not change the result.
        k: how many.
        end: of the spectrum.
        tolerance: of the residual, relative to the largest |value| among the k, or to FLOOR of the largest of all; the
            value's error is about its square over the relative gap.
        max_steps: products at most; fewer where p is smaller.
    Source: Golub & Van Loan 2013, section 10.3; Parlett 1980, sections 6.9 and 13.2.
    """
    K, p = space.start.shape
    limit = min(max_steps, p)
    done = torch.full((K,), limit)  # the step at which each operator's result is read
    sure, still = torch.zeros(K, dtype=torch.bool), max(tolerance**2, 10 * torch.finfo(space.start.dtype).eps)
    seen: list[tuple[int, Tensor]] = []  # steps and values
    j = 0
    while j < limit and not bool(sure.all()):
        j += 1
        if j > space.size:
            space.grow()
        if j < k or (j - k) % max(1, k // 10) != 0:  # eigh is of cubic cost
            continue
        values, _, residuals = (t.cpu() for t in space.eigh(j))
        own, wrong = _end(values, k, end), _end(residuals, k, end)
        seen.append((j, own))
        scale = torch.maximum(own.abs().amax(1), FLOOR * values.abs().amax(1))[:, None]
        before = [values for step, values in seen if step <= j - max(4, j // 2)]
        if before:
            stays = ((own - before[-1]).abs() <= still * scale) & (wrong <= tolerance * scale)
            now = stays.all(1) & ~sure
            done[now], sure = j, sure | now
    parts, found = [], dict[int, tuple[Tensor, Tensor, Tensor]]()
    for row, at in enumerate(done.clamp_max(space.size).tolist()):
        if at not in found:
            found[at] = space.eigh(at)
        values, S, residuals = found[at]
        vectors = _end(S[row].mT[None], min(k, at), end, 1)[0].to(space.start.dtype) @ space.basis(at)[row]
        parts.append((_end(values[row : row + 1], k, end)[0], _end(residuals[row : row + 1], k, end)[0], vectors))
    values, residuals, vectors = (torch.stack(side) for side in zip(*parts, strict=True))
    return Ritz(values, residuals, vectors, int(done.clamp_max(space.size).max()))


def _end(t: Tensor, k: int, end: str, dim: int = 1) -> Tensor:
    """The last k entries in falling order, or the first k."""
    k = min(k, t.shape[dim])
    return t.narrow(dim, t.shape[dim] - k, k).flip(dim) if end == "top" else t.narrow(dim, 0, k)


def top_eigenpairs(
    A: Product, start: Tensor, k: int = 1, *, tolerance: float = 1e-3, max_steps: int = 200, rng: torch.Generator
) -> Ritz:
    """The k largest eigenvalues of each operator, with their multiplicity.

    One start finds one vector of each eigenspace. For k > 1 another process therefore searches the complement of what
    was found, until it finds nothing larger there.

    Args:
        A: (K, p) -> (K, p).
        start: (K, p), rows not zero.
        k: how many.
        tolerance: see `extreme_eigenpairs`.
        max_steps: products at most of each process.
        rng: draws the other starts.
    Returns: eigenvalues in falling order; a residual above tolerance says that it did not converge.
    """
    return with_copies(Krylov(A, start, rng), k, tolerance=tolerance, max_steps=max_steps)


def with_copies(space: Krylov, k: int, *, tolerance: float, max_steps: int) -> Ritz:
    """`top_eigenpairs` from a process that has begun."""
    found = extreme_eigenpairs(space, k, tolerance=tolerance, max_steps=max_steps)
    (K, p), steps = space.start.shape, found.steps
    converged = (found.residuals <= tolerance * found.values.abs().amax(1, keepdim=True)).all(1)
    if k == 1 or found.steps == p or not bool(converged.any()):  # if it is p, all is searched already
        return found
    rng = torch.Generator().manual_seed(int(torch.randint(2**31, (1,), generator=space.rng)))
    for _ in range(k):
        V = found.vectors
        fresh = torch.randn(p, generator=rng, dtype=V.dtype).to(V.device).expand(K, p)
        inside = Krylov(lambda v, V=V: reject(space.A(v), V), reject(reject(fresh, V), V), rng)  # type: ignore[misc]
        more = extreme_eigenpairs(inside, k, tolerance=tolerance, max_steps=min(max_steps, p - k))
        steps += more.steps
        values = torch.cat([found.values, more.values], 1)
        best = values.topk(k, 1).indices
        missed = (best >= k) & (values.gather(1, best) > found.values[:, -1:] + tolerance * found.values[:, :1].abs())
        if not bool(missed.any()):
            break
        residuals, vectors = torch.cat([found.residuals, more.residuals], 1), torch.cat([V, more.vectors], 1)
        found = Ritz(values.gather(1, best), residuals.gather(1, best), _rows(vectors, best), steps)
    return Ritz(found.values, found.residuals, found.vectors, steps)


def _rows(t: Tensor, index: Tensor) -> Tensor:
    return t.gather(1, index[:, :, None].expand(-1, -1, t.shape[2]))


def eigenpairs_above(
    space: Krylov, cutoff: float, *, tolerance: float = 1e-3, max_steps: int = 2000
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Of each operator the eigenpairs of at least `cutoff` times its largest eigenvalue, in rising order.

    While some are missing a new one comes up every few steps, with a large residual: an operator is done when all
    residuals are small, and there were as many a tenth of the steps before. Of a repeated eigenvalue one vector is
    found.

    Args:
        space: is grown as far as needed.
        cutoff: above 0.
        tolerance: of each residual, relative to its own eigenvalue.
        max_steps: products at most; fewer where p is smaller.
    Returns: values (k,), residuals (k,) and vectors (k, p) of each; residuals above tolerance say that steps are
        lacking, no pairs that no eigenvalue is positive.
    """
    K, p = space.start.shape
    limit, before = min(max_steps, p), torch.zeros(K, device=space.start.device)
    found: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
    j = 0
    while j < limit and len(found) < K:
        j = min(limit, j + max(5, j // 10))  # eigh is of cubic cost
        while space.size < j:
            space.grow()
        values, S, residuals = space.eigh(j)
        kept = (values >= cutoff * values[:, -1:]) & (values > 0)
        count = kept.sum(1)
        good = ((residuals <= tolerance * values) | ~kept).all(1) & ((count > 0) | (j >= NOTHING))
        good, before = good & (count == before), count
        for k in torch.nonzero(good | (j == limit))[:, 0].tolist():
            if k not in found:
                S_k = S[k, :, kept[k]].mT.to(space.start.dtype)
                found[k] = values[k, kept[k]], residuals[k, kept[k]], S_k @ space.basis(j)[k]
    return [found[k] for k in range(K)]


def lanczos_quadrature(A: Product, start: Tensor, steps: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Nodes and weights (K, steps) of Gauss quadrature for the spectrum as seen from `start`.

    sum_j weight_j f(node_j) = v^T f(A) v for polynomials f of degree < 2 steps, v = start / |start|: the weights are
    squares of the *first* entries of T's eigenvectors. The mean over random v is (1/p) tr f(A).

    Args:
        A: (K, p) -> (K, p).
        start: (K, p).
        steps: products; fewer where p is smaller.
        rng: for spaces that close early: what comes after has no weight.
    Source: Golub & Meurant 2010, section 6; Ubaru, Chen & Saad 2017.
    """
    space = Krylov(A, start, rng)
    for _ in range(min(steps, start.shape[1])):
        space.grow()
    nodes, S, _ = space.eigh(space.size)
    return nodes, S[:, 0].square()
