"""The shelves: models, datasets, optimizers, metrics, kinds of surface, with settings read from their signatures.

This module imports neither torch nor pydantic when loaded, so that `landscape --help` stays instant.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, TypeVar, get_args

from annotated_types import Ge, Gt, Lt

from landscape_cli.registry.errors import Fault

if TYPE_CHECKING:
    from pydantic import BaseModel

Count = Annotated[int, Ge(1)]
Natural = Annotated[int, Ge(0)]
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Ge(0), Lt(1)]


@dataclass(frozen=True)
class InAudit:
    """Part of a setting's annotation: the value that the audit takes in the place of a larger one.

    Few draws will do there, below what an honest standard error needs, for they go along with each transform; and a
    solver is to stop late, so that what it leaves undone does not look like a broken claim.
    """

    most: float


FEW = InAudit(6)  # draws
Tolerance = Annotated[float, Gt(0), InAudit(1e-7)]

PER_RUN = "may differ inside a stack"
Value = TypeVar("Value")
PerRun = Annotated[Value, PER_RUN]  # a number; where the runs of a stack differ, a tensor (A, 1, ...) of theirs

Kind = Literal["model", "dataset", "optimizer", "metric", "surface"]
Invariance = Literal["none", "permutation", "global", "scale", "filter", "smooth", "output"]
Direction = Literal["sharp", "flat", "none"]
FILE = "landscape_plugin_"  # what the names of modules begin with that `--plugin FILE` makes
Function = TypeVar("Function", bound=Callable[..., Any])

NEEDS = ("residuals", "root", "classes", "margins")  # what a loss may have beside values
PEERS = "peers"  # the other minima of the experiment
DIRECTIONS: dict[str, str] = {
    "sharp": "large means sharp",
    "flat": "large means flat",
    "none": "large means neither sharp nor flat",
}


class Named(Protocol):
    """A section of a config that names a registered thing; the settings of that are its attributes."""

    @property
    def name(self) -> str:
        """Under which the thing is registered."""


@dataclass(frozen=True)
class Entry:
    """One registered function: its name, its kind, and the facts that its decorator states."""

    name: str
    kind: Kind
    function: Callable[..., Any]
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """First line of the docstring."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]

    @cached_property
    def settings(self) -> type[BaseModel]:
        """A pydantic model of the keyword-only arguments, with their types, bounds and defaults."""
        from pydantic import ConfigDict, create_model

        fields: dict[str, Any] = {
            p.name: (p.annotation, ... if p.default is p.empty else p.default) for p in keywords(self.function)
        }
        strict = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, validate_default=True)
        return create_model(self.name, __config__=strict, **fields)

    @cached_property
    def defaults(self) -> dict[str, Any]:
        """Every setting that has a default; a list where a scalar is due stands for one row a value."""
        own = {k: f.default for k, f in self.settings.model_fields.items() if not f.is_required()}
        grids: dict[str, Any] = self.facts.get("grids", {})
        return own | grids

    @property
    def built_in(self) -> bool:
        """Whether it comes with the package rather than from a plugin."""
        return self.function.__module__.startswith("landscape_cli.")

    @cached_property
    def per_run(self) -> list[str]:
        """The settings that may differ inside a stack, `PerRun`."""
        return [key for key, field in self.settings.model_fields.items() if PER_RUN in field.metadata]

    @cached_property
    def moments(self) -> int:
        """How many buffers like the parameters an optimizer keeps: its positional arguments after the step."""
        kinds = [p.kind for p in inspect.signature(self.function).parameters.values()]
        return sum(kind is not inspect.Parameter.KEYWORD_ONLY for kind in kinds) - 1

    def given(self, section: object) -> dict[str, Any]:
        """The keyword arguments of the function, from a section that has them as attributes."""
        return {key: getattr(section, key) for key in self.settings.model_fields}


def keywords(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """The keyword-only parameters of a function, with their annotations evaluated; those of others may need torch."""
    scope = getattr(inspect.unwrap(function), "__globals__", {})
    return [
        p.replace(annotation=eval(p.annotation, scope) if isinstance(p.annotation, str) else p.annotation)
        for p in inspect.signature(function).parameters.values()
        if p.kind is p.KEYWORD_ONLY
    ]


REGISTRY: dict[Kind, dict[str, Entry]] = {"model": {}, "dataset": {}, "optimizer": {}, "metric": {}, "surface": {}}


def _register(kind: Kind, **facts: Any) -> Callable[[Function], Function]:
    def put(function: Function) -> Function:
        known = REGISTRY[kind].get(function.__name__)
        module = function.__module__
        if known and (known.function.__module__ != module or module.startswith(FILE)):  # a notebook may do so again
            raise Fault(f"{kind} {function.__name__!r} is already registered by {_origin(known)}")
        REGISTRY[kind][function.__name__] = Entry(function.__name__, kind, function, facts)
        return function

    return put


def _origin(entry: Entry) -> str:
    """The module of an entry; of one from a file, the file."""
    module = entry.function.__module__
    return str(getattr(sys.modules.get(module), "__file__", module)) if module.startswith(FILE) else module


def withdraw(module: str) -> None:
    """Take what a module has registered off the shelves."""
    for shelf in REGISTRY.values():
        for name in [name for name, entry in shelf.items() if entry.function.__module__ == module]:
            del shelf[name]


def model(function: Function) -> Function:
    """Put `def my_net(input_shape, num_classes, *, ...) -> nn.Module` on the shelf of models."""
    return _register("model")(function)


def dataset(function: Function) -> Function:
    """Put `def my_data(*, ...) -> (x_train, y_train, x_test, y_test)` on the shelf of datasets."""
    return _register("dataset")(function)


def optimizer(function: Function) -> Function:
    """Put `def my_rule(at: Step, m: Tensor, ..., *, ...) -> None` on the shelf of optimizers.

    What stands between the step and the settings are its moments: buffers like the parameters, zero at the start.
    Settings of one name are one key of the YAML: they have the same type and default in all optimizers.
    """
    return _register("optimizer")(function)


def metric(
    *,
    invariant: str | Mapping[str, str],
    source: str,
    default: bool = False,
    version: int = 1,
    same: str = "",
    needs: str | Mapping[str, str] = "",
    search: bool = False,
    direction: str = "",
    cost: str = "",
    **grids: list[Any],
) -> Callable[[Function], Function]:
    """Put `def my_metric(at: Point, *, ...) -> Estimate` on the shelf of metrics.

    Args:
        invariant: what it claims to survive, names of `Invariance` joined by commas (see docs/metrics.md); or that for
            each value of a setting, {"blocks=layer": "scale"}.
        source: paper, section or equation.
        default: whether `metrics: default` runs it.
        version: raise it when values change, so that old cells are measured again.
        same: the metric of which this one is a monotone function; tests count the two once. It names none itself.
        needs: what of the loss it takes beside values, names of `NEEDS` joined by commas, or that for each value of a
            setting as in `invariant`, under "" always; with a loss that has it not the metric is undefined. And
            `peers`, if it looks at the other minima of the experiment too, `Point.peers`.
        search: whether it follows the path of a search, which rounding can turn: the audit holds it to 1e-4.
        direction: what a large value means: `sharp`, `flat` or `none`.
        cost: in words, per minimum.
        grids: for a setting, the list of values that are measured by default, one row each.
    """
    for stated in [invariant] if isinstance(invariant, str) else invariant.values():
        if unknown := {one.strip() for one in stated.split(",")} - {*get_args(Invariance)}:
            names = ", ".join(get_args(Invariance))
            raise Fault(f"@metric(invariant=...): {', '.join(sorted(unknown))}: no such claim; there are {names}")
    facts = {"invariant": invariant, "source": source, "default": default, "version": version, "same": same}
    wanted = {one for parts in needs_by_setting(needs).values() for one in parts}
    if unknown := wanted - {*NEEDS, PEERS}:
        known = ", ".join((*NEEDS, PEERS))
        raise Fault(f"@metric(needs=...): {', '.join(sorted(unknown))}: no such part; there are {known}")
    facts |= {"needs": needs, "pairs": PEERS in wanted}
    return _register("metric", **facts, search=search, direction=direction, cost=cost, grids=grids)


def needs_by_setting(stated: str | Mapping[str, str]) -> dict[str, list[str]]:
    """What a metric takes of the loss, under "" always, under "target=error" with that setting."""
    every = {"": stated} if isinstance(stated, str) else stated
    return {key: [one.strip() for one in text.split(",") if one.strip()] for key, text in every.items()}


def needs(entry: Entry, settings: Mapping[str, Any]) -> list[str]:
    """What a metric takes of the loss with these settings."""
    here = {"", *(f"{key}={value}" for key, value in (entry.defaults | dict(settings)).items())}
    every = needs_by_setting(entry.facts.get("needs", ""))
    return [one for key, stated in every.items() if key in here for one in stated if one != PEERS]


def claims(entry: Entry) -> dict[str, list[str]]:
    """What a metric claims to survive, for each value of the setting that decides it; {"": [...]} if none does."""
    stated = entry.facts["invariant"]
    return {
        k: [one.strip() for one in v.split(",")]
        for k, v in ({"": stated} if isinstance(stated, str) else stated).items()
    }


def same_as() -> dict[str, str]:
    """Metric -> the metric of which it is a monotone function, for those that say so."""
    return {name: entry.facts["same"] for name, entry in REGISTRY["metric"].items() if entry.facts.get("same")}


def surface(
    *,
    title: str,
    caption: str,
    axes: Literal[1, 2] = 1,
    batchnorm: Literal["fixed", "recompute"] = "fixed",
    curvature: tuple[str, str] | None = None,
    labels: Callable[[Mapping[str, Any]], tuple[str, str]] = lambda facts: ("x", "y"),
    note: Callable[[Mapping[str, Any]], str] = lambda facts: "",
) -> Callable[[Function], Function]:
    """Put `def my_kind(at: Point, *, ...) -> Span` on the shelf of kinds of surface (`landscape_cli.surface.Span`).

    After `at`, the minimum, it names what else it needs: `other`, a second minimum, or `snapshots` (n, p) of the run.
    Its keywords are the options of the section `surface` that mean something to it, with defaults of its own.

    Args:
        title: of its figure.
        caption: of its figure.
        axes: 1 for a line, 2 for a plane.
        batchnorm: statistics off the minimum, unless the config says otherwise.
        curvature: title and caption of the figure of the Hessian's eigenvalues, of a kind with one axis.
        labels: the facts of its directions -> what x and y are.
        note: the facts of its directions -> what the command says of them.
    """

    def put(function: Function) -> Function:
        name, takes = function.__name__, inspect.signature(function).parameters.values()
        first, *given = (p.name for p in takes if p.kind is not p.KEYWORD_ONLY)
        options = {p.name: p.default for p in keywords(function)}
        if first != "at" or {*given} - {*GIVEN} or {*options} - {*OPTIONS}:
            due = f"def {name}(at, {', '.join(GIVEN)}, *, {', '.join(OPTIONS)}), or some of these"
            raise Fault(f"@surface: {name}: takes {', '.join([first, *given, *options])}; due is {due}")
        shown = {"title": title, "caption": caption, "labels": labels, "note": note}
        bends = curvature or (f"{title}: curvature", "Largest and smallest eigenvalue of the training loss's Hessian.")
        facts = {"axes": axes, "batchnorm": batchnorm, "needs": given, "options": options, "curvature": bends}
        return _register("surface", **shown, **facts)(function)

    return put


GIVEN = ("other", "snapshots")  # to a kind of surface beside the minimum
RANDOM = ("normalization", "ignore", "seed", "draws")  # options of directions that are drawn
OPTIONS = ("range", *RANDOM)
