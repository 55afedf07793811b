"""The audit: which metrics survive a change of parameters that changes nothing (METRICS section 9; Dinh et al. 2017).

Every metric is taken in float64 at a minimum and at its images under the transforms of transforms.py, all in as few
stacks as there are networks. A claim that does not hold to `tolerance` is broken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from math import isnan, log, nan
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from landscape_cli.audit import curves
from landscape_cli.audit import transforms as rp
from landscape_cli.audit.claims import SEARCHED, claimed, same, tolerance, verdict
from landscape_cli.audit.transforms import TRANSFORMS, Minima, Moved
from landscape_cli.config import Measurement, grid
from landscape_cli.curvature.objective import flatten
from landscape_cli.metrics.evaluate import LOST, evaluate
from landscape_cli.metrics.point import Estimate, Point
from landscape_cli.network import Params
from landscape_cli.registry import REGISTRY, InAudit
from landscape_cli.registry.errors import Fault

if TYPE_CHECKING:
    from pandas import DataFrame

CHARTED = ("smooth_cubic", "smooth_sinh", "global_scale")


@dataclass(frozen=True)
class Case:
    """A transform at one strength, of one minimum; `moved` is None where it does not apply, and `left` says why."""

    transform: str
    strength: float
    moved: Moved | None
    left: dict[str, str]


def cases(at: Minima) -> list[Case]:
    """Every transform of one minimum."""
    found = []
    for name, transform in TRANSFORMS.items():
        for strength in transform.strengths:
            try:
                moved = transform.move(at, strength)
                found.append(Case(name, strength, moved if moved.moved else None, moved.left))
            except Fault as fault:
                found.append(Case(name, strength, None, {"the network": str(fault)}))
    return found


def audit(
    point: Point, at: Minima, wanted: list[Measurement], watch: Callable[[str], None] = lambda name: None
) -> tuple[list[dict[str, Any]], list[Case]]:
    """Rows of invariance.csv for one minimum, less its run_id, and what each transform did.

    Args:
        point: the minimum in float64, with its data, peers and history.
        at: the same, as the transforms take it.
        wanted: metrics with complete settings.
        watch: told the name of each metric when it begins.
    Returns: a row for each metric, setting, transform and strength, in the order of `wanted`.
    """
    every = cases(at)
    groups = list(_groups(point, at, every))
    rows = []
    for name, settings in wanted:
        watch(name)
        seen: dict[int, dict[str, tuple[Estimate, int]]] = {}
        for moved, members, order in groups:
            with _Followed(order) if order is not None else nullcontext():
                estimates = evaluate(moved, name, adapted(name, settings))
            for k, i in enumerate(members):
                seen[i] = {extra: (e, k) for extra, e in estimates.items()}
        for extra in seen[-1]:
            rows += [_row(name, settings, extra, seen, i, case) for i, case in enumerate(every)]
    return rows, every


def drive(point: Point, at: Minima, factor: float) -> dict[str, list[Any]]:
    """The loss along lines, at a minimum and at its images, one of them with hessian_top so many times as large.

    Args:
        point: the minimum in float64, with its data.
        at: the same, as the transforms take it.
        factor: above 1.
    Returns: columns of tables/lines.csv.
    """

    def top(moves: list[Moved]) -> Tensor:
        found = REGISTRY["metric"]["hessian_top"].function(_joined(point, at, list(moves)), tolerance=1e-6)
        values: Tensor = found.value.cpu()
        return values

    moved, alpha = curves.driven(at, factor, top)
    images = {"minimum": None, f"alpha_scale {alpha:.3g}": moved, "smooth_sinh": rp.smooth(at, "sinh")}
    eigenvalues = [*top([rp.alpha_scale(at, 1.0), moved]).tolist(), *top([images["smooth_sinh"]]).tolist()]  # type: ignore[list-item]
    columns: dict[str, list[Any]] = {k: [] for k in ("image", "normalization", "hessian_top", "x", "train_loss")}
    for filters in (False, True):
        for (name, image), eigenvalue in zip(images.items(), eigenvalues, strict=True):
            one = _joined(point, at, [image])
            losses = curves.along(one, curves.direction(one.train.like, filters, seed=0)).tolist()
            size = len(losses)
            added = [[name] * size, ["filter" if filters else "none"] * size, [eigenvalue] * size]
            for column, values in zip(columns.values(), [*added, curves.POINTS.tolist(), losses], strict=True):
                column += values
    return columns


def adapted(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """A metric's settings as the audit takes them, reduced where their annotations say so (`InAudit`)."""
    fields = REGISTRY["metric"][name].settings.model_fields
    most = {key: mark.most for key, f in fields.items() for mark in f.metadata if isinstance(mark, InAudit)}
    return settings | {k: min(settings[k], v) for k, v in most.items() if isinstance(settings[k], int | float)}


def _groups(point: Point, at: Minima, every: list[Case]) -> Iterator[tuple[Point, list[int], Tensor | None]]:
    """Points to measure, which cases their rows are (-1: the minimum itself), and the order that directions follow."""
    plain = [
        i for i, c in enumerate(every) if c.moved and c.transform != "permute" and c.moved.minima.network is at.network
    ]
    yield _joined(point, at, [None, *(every[i].moved for i in plain)]), [-1, *plain], None
    for i, case in enumerate(every):
        if case.moved and case.transform == "permute":
            places = torch.arange(point.theta.shape[1], device=point.theta.device)[None]
            order = flatten(case.moved.carry(point.train.unflatten(places)))[0]
            yield _joined(point, at, [case.moved]), [i], order
        elif case.moved and i not in plain:
            yield _joined(point, at, [case.moved]), [i], None


def _joined(point: Point, at: Minima, moves: list[Moved | None]) -> Point:
    """One stack of a minimum's images under several transforms; None stands for itself."""
    all_minima = [move.minima if move else at for move in moves]
    params, buffers = (
        {n: torch.cat([getattr(m, side)[n] for m in all_minima]) for n in getattr(all_minima[0], side)}
        for side in ("params", "buffers")
    )
    network = all_minima[0].network
    train, test = (replace(o, network=network, like=params, buffers=buffers) for o in (point.train, point.test))
    initial = None
    if point.initial is not None:
        start: Params = point.train.unflatten(point.initial)
        initial = torch.cat([flatten(move.place(start) if move else start) for move in moves])
    alike = network is at.network  # other coordinates: other minima of the experiment are not given in them
    peers = point.peers if alike else {}
    history = point.training and point.training * len(moves)
    return Point(flatten(params), train, test, initial, peers, history)


class _Followed(TorchFunctionMode):
    """Lets random directions in parameter space go along with a permutation, whatever code draws them.

    The estimates before and after it are then equal but for rounding: without that, a mere permutation moves them by
    their sampling error. White noise is white in every scaling: under other transforms the draws stay as they are.
    """

    def __init__(self, order: Tensor) -> None:
        super().__init__()
        self.order = order

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func not in DRAWS:
            return out
        moved = out
        for dim, size in enumerate(out.shape):
            if size == len(self.order):
                moved = moved.index_select(dim, self.order.to(out.device))
        return moved if func in MADE or moved is out else out.copy_(moved)


MADE = (torch.randn, torch.rand, torch.randint, torch.bernoulli, torch.randn_like, torch.rand_like)
DRAWS = (*MADE, Tensor.normal_, Tensor.uniform_, Tensor.bernoulli_, Tensor.random_)


def sharpen(
    point: Point, at: Minima, what: Measurement, bound: float, tick: Callable[[], None] = lambda: None
) -> list[dict[str, Any]]:
    """How far rescalings can drive a metric up and down without changing the function: rows `sharpen` and `flatten`.

    Coordinates of the search are a factor for each group of channels, and RANDOM directions in which each channel has
    its own; no channel's factor leaves [1 / bound, bound]. One after the other takes the best of six values.

    Args:
        point: the minimum in float64, with its data.
        at: the same, as the transforms take it.
        what: the metric with complete settings.
        bound: above 1.
    Returns: none if no channels of the network can be rescaled.
    """
    name, settings = what
    groups, rng = rp.orbit(at), torch.Generator().manual_seed(0)
    if not groups:
        return []
    draws = [[torch.randn(g.size, generator=rng, dtype=torch.float64) for g in groups] for _ in range(RANDOM)]

    def moved(t: list[float]) -> Moved:
        along = list(zip(t[len(groups) :], draws, strict=True))
        logs = [t[i] + sum(s * draw[i] for s, draw in along) for i in range(len(groups))]
        ends = [torch.as_tensor(one).clamp(-log(bound), log(bound)).exp() for one in logs]
        return rp.rescale(at, [(g, e.expand(g.size)) for g, e in zip(groups, ends, strict=True)])

    def values(tried: list[list[float]]) -> dict[str, list[float]]:
        found = evaluate(_joined(point, at, [moved(t) for t in tried]), name, adapted(name, settings))
        return {extra: [_value((e, k))[0] for k in range(len(tried))] for extra, e in found.items()}

    rows = []
    start = [0.0] * (len(groups) + RANDOM)
    for extra, (before,) in values([start]).items():
        for transform, sign in (("sharpen", 1), ("flatten", -1)):
            best, t = before, start
            for i in range(len(start)):
                tick()
                tried = [[*t[:i], share * log(bound), *t[i + 1 :]] for share in (-1.0, -0.5, -0.1, 0.1, 0.5, 1.0)]
                for one, value in zip(tried, values(tried)[extra], strict=True):
                    if sign * (value - best) > 0:
                        best, t = value, one
            claim = claimed(REGISTRY["metric"][name], settings, "filter")
            row = _columns(name, settings, extra, before, best, nan, claim)
            # the search climbs rounding as well as curvature: factors up to `bound` cost as many digits
            row |= {"tolerance": SEARCHED, "verdict": verdict(before, best, nan, claim, tolerance=SEARCHED)}
            rows.append(row | {"transform": transform, "strength": bound})
    return rows


RANDOM = 2


def _row(
    name: str,
    settings: dict[str, Any],
    extra: str,
    seen: dict[int, dict[str, tuple[Estimate, int]]],
    i: int,
    case: Case,
) -> dict[str, Any]:
    before, _ = _value(seen[-1].get(extra))
    after, error = _value(seen.get(i, {}).get(extra))
    claim = claimed(REGISTRY["metric"][name], settings, TRANSFORMS[case.transform].survives)
    row = _columns(name, settings, extra, before, after, error, claim, case.moved is not None)
    if row["verdict"] == "broken" and isnan(after) and case.transform in CHARTED:
        row["verdict"] = "not checked"  # a metric of layers' weights has no value in other coordinates
    if why := _failure(seen[-1].get(extra)) or _failure(seen.get(i, {}).get(extra)):
        row |= {"verdict": "failed", "message": why}
    return row | {"transform": case.transform, "strength": case.strength}


def _failure(found: tuple[Estimate, int] | None) -> str:
    """What a metric that raised said; empty if it did not."""
    return found[0].message[found[1]] or "failed" if found and found[0].status[found[1]] == "failed" else ""


def _columns(
    name: str,
    settings: dict[str, Any],
    extra: str,
    before: float,
    after: float,
    error: float,
    claim: str,
    applies: bool = True,
) -> dict[str, Any]:
    return {
        "metric": name,
        "setting": grid.setting(name, settings, extra),
        "before": before,
        "after": after,
        "ratio": after / before if before else nan,
        "standard_error": error,
        "tolerance": tolerance(name),
        "claim": claim,
        "verdict": verdict(before, after, error, claim, applies, tolerance(name)),
    }


def _value(found: tuple[Estimate, int] | None) -> tuple[float, float]:
    """Value and standard error; NaN if there is none."""
    if found is None or found[0].status[found[1]] in LOST:
        return nan, nan
    return tuple(float(t[found[1]]) for t in (found[0].value, found[0].standard_error))  # type: ignore[return-value]


CLASSES = ("permutation", "scale", "filter", "global", "smooth")


def unclaimed(table: DataFrame) -> list[str]:
    """Invariances that hold wherever they were tried, but that the metric does not claim: `metric(setting): claim`."""
    found: dict[str, list[str]] = {}
    moved = table[table["transform"].isin(TRANSFORMS) & (table["before"].fillna(0) != 0) & table["after"].notna()]
    for (metric, setting), rows in moved.groupby(["metric", "setting"], sort=False):
        for claim in CLASSES:
            of_claim = [n for n, t in TRANSFORMS.items() if t.survives == claim]
            tried = rows[rows["transform"].isin(of_claim)]
            free = tried["verdict"] == "never claimed"
            if len(tried) and bool(free.all()) and all(map(same, tried["before"], tried["after"], tried["tolerance"])):
                found.setdefault(f"{metric}({setting})" if setting else str(metric), []).append(claim)
    return [f"{name}: {', '.join(claims)}" for name, claims in found.items()]


SHORT = {"alpha_scale": "alpha", "filter_scale": "filter", "batchnorm_scale": "bn", "permute": "perm"}


SHORT |= {"smooth_cubic": "cubic", "smooth_sinh": "sinh", "logit_scale": "logits", "global_scale": "global"}


def worst_first(table: DataFrame) -> list[tuple[str, str]]:
    """(metric, setting), those that a transform moves furthest first; outputs and predicted classes are kept by all."""
    from numpy import log10

    kept = table[~table["transform"].isin(("logit_scale",))]
    ratio = kept["ratio"].abs()
    size = log10(ratio.where(ratio > 0)).abs()
    far = size.groupby([kept["metric"], kept["setting"]], sort=False).max().fillna(-1)
    return list(far.sort_values(ascending=False, kind="stable").index)


def heading(transform: str, strength: float) -> str:
    """A column's short name: alpha 0.1."""
    name = SHORT.get(transform, transform)
    return f"a={strength:g}" if transform == "alpha_scale" else name
