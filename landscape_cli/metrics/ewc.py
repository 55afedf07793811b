"""The Fisher information as a distance: elastic weight consolidation (Kirkpatrick et al. 2017; METRICS section 3)."""

from __future__ import annotations

from landscape_cli.metrics.point import Estimate, Point, exact
from landscape_cli.registry import metric


@metric(
    invariant="none",
    source="Kirkpatrick et al. 2017, eq. 3",
    needs="root, peers",
    direction="none",
    cost="C - 1 backward passes, shared, whatever the number of others",
)
def ewc_distance(at: Point) -> dict[str, Estimate]:
    """EWC's penalty for moving from this minimum to another one B, 1/2 sum_j F_jj (B_j - theta_j)^2.

    F_jj is the diagonal of the true Fisher information at this minimum; the other order is in the rows of B.

    Args:
        at: K minima; the others are those of the experiment with as many parameters, a row each (to=...).
    Returns: (K,), in nats; exact.
    """
    F, theta, rows = at.fisher_diagonal(), at.theta.double(), {}
    for name, other in at.peers.items():
        estimate = exact((F * (other.to(theta) - theta).square()).sum(1) / 2, at.train.n)
        rows[f"to={name}"] = estimate
    return rows


@metric(
    invariant="permutation,global,filter",
    source="ours, docs/essay.md",
    default=True,
    needs="root",
    direction="sharp",
    cost="C - 1 backward passes, shared",
)
def fisher_weighted_norm(at: Point) -> Estimate:
    """Parameters weighed by what the predictions owe them, sum_j F_jj theta_j^2, F the true Fisher information.

    Args:
        at: K minima.
    Returns: (K,), in nats; exact.
    """
    return exact((at.fisher_diagonal() * at.theta.double().square()).sum(1), at.train.n)
