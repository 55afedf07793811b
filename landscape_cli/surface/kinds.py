"""Kinds of surface: for each where it lies, which options it takes, what it needs, and what its figure is called.

Schema, options, help, docs, figures and tests read them from the registry. `landscape --help` names them, so nothing
heavy is imported before a kind is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape_cli.registry import RANDOM, REGISTRY, Count, Entry, Natural, Positive, surface
from landscape_cli.surface.span import Ignore, Normalization, Span

if TYPE_CHECKING:
    from torch import Tensor

    from landscape_cli.config import Surface
    from landscape_cli.metrics.point import Point

KINDS = REGISTRY["surface"]


def directions_of(at: Point, other: Point | None, snapshots: Tensor | None, request: Surface) -> Span:
    """The directions of one surface.

    Args:
        at: the minimum.
        other: the second minimum, of a kind that needs one.
        snapshots: of the run (n, p) in float64, of a kind that needs them.
        request: what to draw.
    Raises: Fault, if there are none, or a file is not readable.
    """
    kind, present = KINDS[request.kind], {"other": other, "snapshots": snapshots}
    options = {key: getattr(request, key) for key in kind.facts["options"] if getattr(request, key) is not None}
    found: Span = kind.function(at, *(present[name] for name in kind.facts["needs"]), **options)
    if not request.directions:
        return found
    from landscape_cli.store import surface_files

    shapes = {name: tuple(t.shape[1:]) for name, t in at.train.like.items()}
    return replace(found, draws=surface_files.read(Path(request.directions), shapes, kind.facts["axes"]))


def is_random(kind: Entry) -> bool:
    """Whether a kind draws its directions, so that others can be given in their place."""
    return {*RANDOM} <= {*kind.facts["options"]}


@surface(
    title="The loss around minima",
    caption="Loss and accuracy along random lines through a minimum of each group, each filter of the direction as "
    "long as the minimum's own unless other directions were asked for (Li et al. 2018); x in parts of that length.",
    curvature=(
        "Curvature along lines",
        "Largest and smallest eigenvalue of the Hessian of the training loss along random lines through minima.",
    ),
)
def line(
    at: Point,
    *,
    range: Positive = 1.0,
    normalization: Normalization = "filter",
    ignore: Ignore = "biasbn",
    seed: Natural = 0,
    draws: Count = 3,
) -> Span:
    """A random line through a minimum."""
    from landscape_cli.surface.directions import drawn

    return Span(drawn(at, normalization, ignore, seed, draws, "x"), [(-range, range)])


@surface(
    title="From one minimum to another",
    caption="Loss and accuracy on the straight line from the minimum at x = 0 to that at x = 1; statistics of "
    "BatchNorm computed anew at every point unless the config says otherwise.",
    curvature=(
        "Curvature from one minimum to another",
        "Largest and smallest eigenvalue of the Hessian of the training loss on the line from x = 0 to x = 1.",
    ),
    batchnorm="recompute",
)
def path(at: Point, other: Point, *, range: Positive = 0.5) -> Span:
    """The straight line from one minimum to another; `range` beyond each."""
    here, there = (one.train.unflatten(one.theta.double()) for one in (at, other))
    X = {name: there[name] - t for name, t in here.items()}
    return Span([{"x": X}], [(-range, 1 + range)], other=other.train.buffers)


@surface(
    axes=2,
    title="Planes through minima",
    caption="Training loss on a random plane through a minimum (+) of each group, one scale of colours for all.",
)
def plane(
    at: Point,
    *,
    range: Positive = 1.0,
    normalization: Normalization = "filter",
    ignore: Ignore = "biasbn",
    seed: Natural = 0,
    draws: Count = 1,
) -> Span:
    """A random plane through a minimum."""
    from landscape_cli.surface.directions import drawn

    return Span(drawn(at, normalization, ignore, seed, draws, "xy"), [(-range, range)] * 2)


def _components(facts: Mapping[str, Any]) -> tuple[str, str]:
    first, second = facts["explained_variance"]
    return f"1st component ({first:.1%} of the variance)", f"2nd component ({second:.1%})"


@surface(
    axes=2,
    title="The way of a run",
    caption="Training loss on the plane of the two principal components of a run's snapshots (Li et al. 2018, section "
    "7), with the snapshots' shadows on it (by epoch) and the minimum (+). What the plane leaves out is in "
    "surfaces/*-snapshots.csv: each snapshot's own loss beside that of its shadow.",
    batchnorm="recompute",
    labels=_components,
    note=lambda facts: "x and y explain {:.1%} and {:.1%} of the snapshots' variance".format(
        *facts["explained_variance"]
    ),
)
def trajectory(at: Point, snapshots: Tensor, *, range: Positive | None = None) -> Span:
    """The plane of the principal components of a run's snapshots; without `range`, as far as they lie."""
    from landscape_cli.surface.directions import box, named, principal

    moves = snapshots - at.theta.double()
    axes, shares = principal(moves)
    ends = [(-range, range)] * 2 if range else box(moves @ axes.T)
    return Span([named(at, axes)], ends, {"explained_variance": shares.tolist()}, snapshots=snapshots)


def _eigenvectors(facts: Mapping[str, Any]) -> tuple[str, str]:
    first, second = facts["eigenvalues"]
    return f"1st eigenvector (eigenvalue {first:.3g})", f"2nd eigenvector ({second:.3g})"


@surface(
    axes=2,
    title="The sharpest plane",
    caption="Training loss on the plane of the two eigenvectors of the Hessian with the largest eigenvalues, x and y "
    "in units of parameters.",
    labels=_eigenvectors,
    note=lambda facts: "along x and y the Hessian's eigenvalues {:.4g} and {:.4g}".format(*facts["eigenvalues"]),
)
def eigen(at: Point, *, range: Positive = 1.0) -> Span:
    """The plane of the Hessian's top two eigenvectors."""
    from landscape_cli.surface.directions import eigenvectors, named

    axes, facts = eigenvectors(at)
    return Span([named(at, axes)], [(-range, range)] * 2, facts)
