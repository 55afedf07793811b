"""What a loss is to the rest of the program, and the table of those that there are: a row each.

Another loss is a function and a row here, and its cases in tests/loss/test_loss_table.py. What a row leaves out the
loss has not: metrics that state their need of it are then undefined, and say so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from landscape_cli.loss import softmax
from landscape_cli.registry.errors import Fault

OfSamples = Callable[[Tensor, Tensor], Tensor]  # outputs z (..., C), labels y (...) -> a number each, or (..., C)


Rows = Callable[..., Iterator[Tensor]]  # z, and labels or nothing -> rows of R, each (..., C)
Reduction = Literal["none", "sum"]


@dataclass(frozen=True)
class Root:
    """S = d2l/dz2 = R^T R of a loss whose S does not depend on y: it is the Fisher information of z, and F the GGN.

    Args:
        rows: z -> w_c, the rows of R; z, y -> those of another basis, chosen by the labels where they are not -1.
        number: C -> how many rows.
        product: z, a -> S a (..., C).
        square: z, a -> a^T S a (...).
        coordinates: z, y, weight -> a (..., rows) with sqrt(weight) r = sum_c a_c w_c in the basis of these labels.
        length: z, y -> r^T S^+ r (...), the squared length of the coordinates.
        divergence: z, d -> symmetrized KL (...) between the models at z and z + d.
    Source: METRICS section 14.1: l = A(z) - <T(y), z> + const(y).
    """

    rows: Rows
    number: Callable[[int], int]
    product: OfSamples
    square: OfSamples
    coordinates: Callable[[Tensor, Tensor, float], Tensor]
    length: OfSamples
    divergence: OfSamples


@dataclass(frozen=True)
class Outputs:
    """How predictions are read off outputs.

    Args:
        classes: z -> the class that is predicted (...); None where none is.
        margins: z, y -> how far the true class lies ahead (...).
    """

    classes: Callable[[Tensor], Tensor] | None = None
    margins: OfSamples | None = None


@dataclass(frozen=True)
class Loss:
    """The loss of one sample, as functions of stacks of them.

    Args:
        name: as messages have it.
        values: l (...), accurate to rounding.
        residuals: r = dl/dz (..., C).
        root: of S = d2l/dz2.
        outputs: how predictions are read.
        smoothed: z, y, share of label smoothing, reduction -> what training minimizes, where that is not `values`.
        scored: values and whether the prediction is right, where both at once are faster.
    """

    name: str
    values: OfSamples
    residuals: OfSamples | None = None
    root: Root | None = None
    outputs: Outputs = Outputs()
    smoothed: Callable[[Tensor, Tensor, float, Reduction], Tensor] | None = None
    scored: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None

    def lacks(self, needs: Sequence[str]) -> str:
        """Which of `residuals, root, classes, margins` the loss has not, in a sentence; empty if it has all."""
        own = {"residuals": self.residuals, "root": self.root, **vars(self.outputs)}
        missing = [name for name in needs if own[name] is None]
        return f"the loss {self.name!r} has no {' and no '.join(missing)}" if missing else ""

    def trained(self, z: Tensor, y: Tensor, smoothing: float, reduction: Reduction) -> Tensor:
        """What training minimizes."""
        if self.smoothed is not None:
            return self.smoothed(z, y, smoothing, reduction)
        values = self.values(z, y)
        return values.sum() if reduction == "sum" else values

    def hits(self, z: Tensor, y: Tensor) -> Tensor:
        """Whether the predicted class is the true one (...), 0 or 1 in float64; NaN where no class is predicted."""
        classes = self.outputs.classes
        return z.double()[..., 0] * torch.nan if classes is None else (classes(z) == y).double()

    def scores(self, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """`values` and `hits`, at once where that is faster."""
        return self.scored(z, y) if self.scored is not None else (self.values(z, y), self.hits(z, y))

    def need(self, *needs: str) -> None:
        """Refuse to go on without these.

        Raises: Fault that names what the loss has not.
        """
        if why := self.lacks(needs):
            raise Fault(why)


SOFTMAX = Loss(
    "softmax",
    values=softmax.values,
    residuals=softmax.residuals,
    root=Root(
        rows=softmax.root_rows,
        number=lambda C: C - 1,
        product=softmax.product,
        square=softmax.square,
        coordinates=softmax.coordinates,
        length=softmax.odds,
        divergence=softmax.divergence,
    ),
    outputs=Outputs(classes=softmax.largest, margins=softmax.margins),
    smoothed=softmax.smoothed,
    scored=softmax.values_and_hits,
)
LOSSES = {loss.name: loss for loss in (SOFTMAX,)}
