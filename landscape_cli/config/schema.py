"""What a config may say: the sections as pydantic models, the settings of registered things, and the JSON Schema."""

from __future__ import annotations

import re
import types
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, MinLen
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SkipValidation, TypeAdapter, create_model
from pydantic_core import PydanticCustomError

from landscape_cli.config.problems import Known
from landscape_cli.config.yaml_tree import CONTROL
from landscape_cli.registry import REGISTRY, Count, Kind, Natural, NonNegative, Positive, Share

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,80}"
NAMED: tuple[Literal["dataset", "model"], ...] = ("dataset", "model")
MEASURED = ("dataset", "model", "training", "precision")  # the sections that make a run what it is, in this order


def _due(text: str) -> PydanticCustomError:
    return PydanticCustomError("plain", "{due}", {"due": text})


def _name(text: str) -> str:
    if not re.fullmatch(NAME, text):
        raise _due("1 to 81 letters, digits, '.', '_' or '-', the first a letter or digit")
    return text


def _label(text: str) -> str:
    if not 0 < len(text) <= 80 or CONTROL.search(text) or "\n" in text:
        raise _due("text of 1 to 80 characters on one line")
    return text


def _increasing(epochs: list[int]) -> list[int]:
    if any(b <= a for a, b in pairwise(epochs)):
        raise _due("a list of epochs in increasing order")
    return epochs


def _kind_of_surface(name: str) -> str:
    if name not in REGISTRY["surface"]:
        raise _due(f"a kind of surface ({', '.join(REGISTRY['surface'])})")
    return name


Precision = Literal["float32", "float64", "bfloat16"]
Metrics = str | list[str | dict[str, dict[str, Any]]]


class Section(BaseModel):
    """Strict, closed and immutable; NaN and Inf are no numbers."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class DatasetOptions(Section):
    """Options that every dataset has."""

    train_size: Count | None = Field(None, description="keep so many training samples; null: all")
    label_noise: Annotated[float, Ge(0), Le(1)] = Field(0.0, description="share of training labels drawn anew")
    standardize: bool = Field(False, description="inputs to mean 0 and variance 1")
    validation: Share = Field(0.0, description="share of the training samples that is held out, for stop.patience")
    seed: Natural = Field(0, description="of the subset, the label noise and what is held out")


class Stop(Section):
    """When training ends."""

    train_loss: Positive | None = Field(None, description="at this loss over the full training set")
    max_epochs: Count = 1000
    max_steps: Count | None = None
    check_every: Count = Field(1, description="epochs between two looks at the losses")
    patience: Count | None = Field(
        None, description="after so many looks without a better validation score; the best parameters are kept"
    )
    score: Literal["loss", "accuracy"] = Field("loss", description="of patience: what is taken of the validation set")


class Training(Section):
    """How a run is trained."""

    optimizer: Literal["sgd", "adam", "sam"] = "sgd"
    lr: Positive = Field(description="learning rate")
    batch_size: Count | Literal["full"] = Field(description="samples of a step, or full")
    momentum: Share = Field(0.0, description="of sgd and sam")
    nesterov: bool = Field(False, description="of sgd and sam, with momentum")
    weight_decay: NonNegative = 0.0
    beta1: Share = Field(0.9, description="of adam")
    beta2: Share = Field(0.999, description="of adam")
    epsilon: Positive = Field(1e-8, description="of adam")
    rho: Positive = Field(0.05, description="of sam: length of the step up, in units of |w| if adaptive")
    adaptive: bool = Field(False, description="of sam: the step up elementwise in proportion to |w| (ASAM)")
    lr_scaling: Literal["none", "linear", "sqrt"] = Field("none", description="lr times batch_size / lr_base_batch")
    lr_base_batch: Count = Field(128, description="of lr_scaling")
    schedule: Literal["constant", "cosine", "step"] = Field("constant", description="cosine runs over max_epochs")
    milestones: Annotated[list[Count], AfterValidator(_increasing)] = Field([], description="epochs, of step")
    decay: Positive = Field(0.1, description="of step: factor at each milestone")
    warmup_epochs: NonNegative = 0.0
    label_smoothing: Share = 0.0
    ghost_batch: Annotated[int, Ge(2)] | None = Field(None, description="samples that BatchNorm sees together")
    flip: bool = Field(False, description="mirror every other image, by a draw for each and every epoch")
    crop: Natural = Field(0, description="pad images by so many pixels and cut a window out, likewise")
    stop: Stop = Stop()
    snapshots: Annotated[list[Natural], AfterValidator(_increasing)] = Field([], description="epochs to keep")


class Compare(Section):
    """Which key of the grid makes the groups, and what they are called."""

    by: str
    labels: dict[Any, Annotated[str, AfterValidator(_label)]] = {}


class Audit(Section):
    """What `landscape audit` does beside its table."""

    sharpen: list[str] = Field([], description="metrics that it drives up and down by rescalings")
    bound: Annotated[float, Gt(1)] = Field(100.0, description="largest factor of a channel, there")
    drive: Annotated[float, Gt(1)] | None = Field(
        None, description="raise hessian_top so many times, and draw the loss"
    )


class Surface(Section):
    """What `landscape surface` draws."""

    kind: Annotated[str, AfterValidator(_kind_of_surface)] = Field(
        "line", description="what to draw: `landscape list surfaces`"
    )
    points: Annotated[int, Ge(2)] = Field(51, description="along each axis")
    range: Positive | None = Field(None, description="from -range to range; each kind has its own")
    normalization: Literal["filter", "layer", "weight", "none"] = Field("filter", description="of random directions")
    ignore: Literal["biasbn", "none"] = Field("biasbn", description="biasbn leaves biases and BatchNorm where they are")
    batchnorm: Literal["fixed", "interpolate", "recompute"] | None = Field(
        None, description="statistics off the minimum; each kind has its own"
    )
    seed: Natural = Field(0, description="of the directions")
    draws: Count | None = Field(None, description="of random directions; each kind has its own")
    curvature: bool = Field(False, description="the Hessian's largest and smallest eigenvalue at each point too")
    directions: str | None = Field(None, description="a .safetensors file of an earlier surface to take them from")
    runs: list[str] = Field([], description="run ids; the first run of each group")


class Experiment(Section):
    """A resolved config: every default filled in, every number of its proper type."""

    name: Annotated[str, AfterValidator(_name)]
    dataset: dict[str, Any]
    model: dict[str, Any]
    training: Training
    grid: dict[str, Annotated[list[Any], MinLen(1)]] = Field({}, description="every combination of these values")
    seeds: Count = Field(1, description="runs of each combination, seeds 0, 1, ...")
    precision: Precision = Field("float32", description="of training and metrics")
    metrics: SkipValidation[Metrics] = "default"
    along: bool = Field(False, description="measure training.snapshots too, not only the minima")
    compare: Compare | None = None
    audit: Audit | None = None
    surface: Surface | None = None


def settings_of(kind: Kind, name: Any) -> type[BaseModel] | None:
    """The settings of a registered thing, those of a dataset with the options that all have; None if unknown."""
    entry = REGISTRY[kind].get(name) if isinstance(name, str) else None
    if entry is None:
        return None
    return _with_options(entry.settings) if kind == "dataset" else entry.settings


@cache
def _with_options(settings: type[BaseModel]) -> type[BaseModel]:
    return create_model(settings.__name__, __base__=(settings, DatasetOptions))


@cache
def adapter(section: Literal["training", "precision"]) -> TypeAdapter[Any]:
    """Validates one of the sections that name nothing registered."""
    return TypeAdapter(Training if section == "training" else Precision)


def known_keys(data: dict[str, Any]) -> Known:
    """The keys that each section takes, given the dataset and model that `data` names."""
    known: Known = {
        (): list(Experiment.model_fields),
        ("training",): list(Training.model_fields),
        ("training", "stop"): list(Stop.model_fields),
        ("compare",): list(Compare.model_fields),
        ("audit",): list(Audit.model_fields),
        ("surface",): list(Surface.model_fields),
    }
    for kind in NAMED:
        given = data.get(kind)
        settings = settings_of(kind, given.get("name")) if isinstance(given, dict) else None
        if settings:
            known[kind,] = ["name", *settings.model_fields]
    return known


def leaves(known: Known) -> list[str]:
    """The dotted keys that a grid can sweep; a model also as a whole."""
    keys = [".".join((*s, k)) for s in known if s and s[0] in MEASURED for k in known[s] if (*s, k) not in known]
    return [k for k in keys if k not in ("dataset.name", "model.name")] + ["model", "precision"]


def takes_list(annotation: Any) -> bool:
    """Whether a list is a value of this type, rather than one value a row."""
    origin = get_origin(annotation) or annotation
    if origin in (Union, types.UnionType):
        return any(takes_list(a) for a in get_args(annotation))
    if origin is Annotated:
        return takes_list(get_args(annotation)[0])
    return isinstance(origin, type) and issubclass(origin, Sequence | set | frozenset) and not issubclass(origin, str)
