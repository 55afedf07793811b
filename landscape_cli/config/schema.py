"""What a config may say: the sections as pydantic models, the settings of registered things, and the JSON Schema."""

from __future__ import annotations

import re
import types
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, MinLen
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializeAsAny,
    SkipValidation,
    TypeAdapter,
    create_model,
)
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from landscape_cli.config.problems import Known
from landscape_cli.config.yaml_tree import CONTROL
from landscape_cli.registry import REGISTRY, Count, Fault, Natural, NonNegative, Positive, Share
from landscape_cli.registry.entries import PER_RUN

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,80}"
NAMED: tuple[Literal["dataset", "model"], ...] = ("dataset", "model")
MEASURED = ("dataset", "model", "training", "precision")  # the sections that make a run what it is, in this order
WHOLE = ("model", "training.sharpness_aware")  # sections that a grid can sweep as a whole
SAM, SAM_OF = "sam", "sgd"  # `optimizer: sam` says sgd with sharpness_aware; rho and adaptive are then beside it


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
PRECISION: TypeAdapter[Precision] = TypeAdapter(Precision)
Metrics = str | list[str | dict[str, dict[str, Any]]]


class Section(BaseModel):
    """Strict, closed and immutable; NaN and Inf are no numbers."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class Model(Section):
    """A network; `section_model` has its settings too."""

    name: str


class Dataset(Section):
    """A dataset with the options that all have; `section_model` has its settings too."""

    name: str
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


class SharpnessAware(Section):
    """Gradients of a step are taken uphill of where it starts (SAM; ASAM if adaptive)."""

    rho: Positive = Field(0.05, description="length of the step up, in units of |w| if adaptive")
    adaptive: bool = Field(False, description="the step up elementwise in proportion to |w| (ASAM)")


class Training(Section):
    """How a run is trained; `training_model` has the settings of all optimizers too."""

    optimizer: str = "sgd"
    lr: Positive = Field(description="learning rate")
    batch_size: Count | Literal["full"] = Field(description="samples of a step, or full")
    sharpness_aware: SharpnessAware | None = Field(None, description="SAM around the optimizer; null: none")
    rho: Positive = Field(0.05, description="of optimizer sam, which is sgd with sharpness_aware: {rho, adaptive}")
    adaptive: bool = Field(False, description="of optimizer sam")
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

    @property
    def rule(self) -> str:
        """The registered optimizer that takes the steps."""
        return SAM_OF if self.optimizer == SAM else self.optimizer

    @property
    def ascent(self) -> SharpnessAware | None:
        """How each step's gradient is taken, by either way of saying so."""
        return SharpnessAware(rho=self.rho, adaptive=self.adaptive) if self.optimizer == SAM else self.sharpness_aware


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
    dataset: SerializeAsAny[Dataset]
    model: SerializeAsAny[Model]
    training: SerializeAsAny[Training]
    grid: dict[str, Annotated[list[Any], MinLen(1)]] = Field({}, description="every combination of these values")
    seeds: Count = Field(1, description="runs of each combination, seeds 0, 1, ...")
    precision: Precision = Field("float32", description="of training and metrics")
    metrics: SkipValidation[Metrics] = "default"
    along: bool = Field(False, description="measure training.snapshots too, not only the minima")
    compare: Compare | None = None
    audit: Audit | None = None
    surface: Surface | None = None


def section_model(kind: Literal["dataset", "model"], name: Any) -> type[Dataset] | type[Model] | None:
    """The section that names this dataset or model, with its own settings; None if it is unknown."""
    entry = REGISTRY[kind].get(name) if isinstance(name, str) else None
    return None if entry is None else _joined(entry.settings, Dataset if kind == "dataset" else Model)


@cache
def _joined(settings: type[BaseModel], base: type[Section]) -> Any:
    return create_model(settings.__name__, __base__=(settings, base))


def training_model() -> type[Training]:
    """The training section, with the settings of every registered optimizer.

    Raises: Fault if two things that a key would say have one name.
    """
    return _training(tuple(entry.settings for entry in REGISTRY["optimizer"].values()))


@cache
def _training(optimizers: tuple[type[BaseModel], ...]) -> type[Training]:
    names = [own.__name__ for own in optimizers]
    fields: dict[str, Any] = {"optimizer": (Literal[tuple(_with_sam(names))], Field("sgd"))}
    for own in optimizers:
        for key, field in own.model_fields.items():
            known = fields.setdefault(key, (field.annotation, field))[1]
            if key in Training.model_fields or field.is_required() or _meaning(known) != _meaning(field):
                due = (
                    "needs a default, and a name of its own or the type and default of that name elsewhere in training"
                )
                raise Fault(f"optimizer {own.__name__}: setting {key}: {due}")
    return create_model("Training", __base__=Training, **fields)


def _meaning(field: FieldInfo) -> tuple[Any, ...]:
    """What a setting is, wherever it is: its type, bounds and default."""
    return field.annotation, field.default, sorted(repr(bound) for bound in field.metadata if bound != PER_RUN)


def _with_sam(optimizers: list[str]) -> list[str]:
    """Names of optimizers and, after the one that it stands for, `sam`."""
    return [name for one in optimizers for name in ([one, SAM] if one == SAM_OF else [one])]


def optimizers_with(setting: str) -> list[str]:
    """What `training.optimizer` may be for this setting to do something."""
    return _with_sam([e.name for e in REGISTRY["optimizer"].values() if setting in e.settings.model_fields])


def known_keys(data: dict[str, Any]) -> Known:
    """The keys that each section takes, given the dataset and model that `data` names."""
    known: Known = {
        (): list(Experiment.model_fields),
        ("training",): list(training_model().model_fields),
        ("training", "sharpness_aware"): list(SharpnessAware.model_fields),
        ("training", "stop"): list(Stop.model_fields),
        ("compare",): list(Compare.model_fields),
        ("audit",): list(Audit.model_fields),
        ("surface",): list(Surface.model_fields),
    }
    for kind in NAMED:
        given = data.get(kind)
        section = section_model(kind, given.get("name")) if isinstance(given, dict) else None
        if section:
            known[kind,] = list(section.model_fields)
    return known


def leaves(known: Known) -> list[str]:
    """The dotted keys that a grid can sweep; those in WHOLE also as a whole."""
    keys = [".".join((*s, k)) for s in known if s and s[0] in MEASURED for k in known[s] if (*s, k) not in known]
    return [k for k in keys if k not in ("dataset.name", "model.name")] + [*WHOLE, "precision"]


def takes_list(annotation: Any) -> bool:
    """Whether a list is a value of this type, rather than one value a row."""
    origin = get_origin(annotation) or annotation
    if origin in (Union, types.UnionType):
        return any(takes_list(a) for a in get_args(annotation))
    if origin is Annotated:
        return takes_list(get_args(annotation)[0])
    return isinstance(origin, type) and issubclass(origin, Sequence | set | frozenset) and not issubclass(origin, str)
