"""Where a surface lies: directions through a minimum, how far it goes along them, and what is known of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from landscape_cli.network import Params

Ends = list[tuple[float, float]]
Normalization = Literal["filter", "layer", "weight", "none"]
Ignore = Literal["biasbn", "none"]


@dataclass(frozen=True)
class Span:
    """Directions, and what belongs to them.

    Args:
        draws: of each draw axis -> direction, name -> (1, *shape) in float64.
        ends: first and last coordinate along each axis.
        facts: what is known of the directions, as JSON.
        other: buffers of the minimum at x = 1.
        snapshots: points (n, p) that are shown on it.
    """

    draws: list[dict[str, Params]]
    ends: Ends
    facts: dict[str, Any] = field(default_factory=dict)
    other: Params | None = None
    snapshots: Tensor | None = None
