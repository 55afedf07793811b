"""Sharpness-aware training, around any optimizer: where the gradients of its steps are taken (SAM, ASAM)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from landscape_cli.config import SharpnessAware
from landscape_cli.network import Params
from landscape_cli.training.state import State, beside


def ascended(state: State, ascents: Sequence[SharpnessAware | None], gradient: list[Tensor]) -> Params:
    """Where a gradient is taken, w + rho T^2 g / |T g| (A, *shape), for the gradient g of the loss without decay.

    T = 1 (Foret et al. 2021, eq. 2), or with `adaptive` T = diag |w| over all parameters (ASAM: Kwon et al. 2021,
    without their eta: a parameter at 0 stays there). A run's norm is its own, over all its parameters.
    """
    own = [ascent for row in state.active if (ascent := ascents[row])]
    with torch.no_grad():
        T = [p.abs() if own[0].adaptive else 1.0 for p in state.params.values()]
        Tg = [t * g for t, g in zip(T, gradient, strict=True)]
        length = torch.stack([a[:, None].flatten(1).norm(dim=1) for a in Tg]).norm(dim=0)  # (A,)
        rho = torch.tensor([s.rho for s in own], dtype=length.dtype, device=length.device)
        step = rho / length.clamp_min(torch.finfo(length.dtype).tiny)  # no gradient: no way up
        moved = zip(state.params.items(), T, Tg, strict=True)
        return {n: p + beside(step, p) * t * a for (n, p), t, a in moved}
