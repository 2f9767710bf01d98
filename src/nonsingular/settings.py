"""settings.py - every setting of a run, checked: one schema for Python, config files and the command line.  No torch here."""

from __future__ import annotations

import json
import reprlib
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    ValidationError,
    model_serializer,
)

from nonsingular.catalog import ATTACKS, BOUNDS, MODELS, OBJECTIVES, UNSOUND, known
from nonsingular.errors import InvalidInput
from nonsingular.plain import legible

AttackName = Annotated[str, AfterValidator(lambda name: "+".join(known(ATTACKS, n, "attack") for n in name.split("+")))]
BoundName = Annotated[
    str, AfterValidator(lambda name: known({b: BOUNDS[b] for b in BOUNDS if b not in UNSOUND}, name, "sound bound"))
]
MethodName = Annotated[str, AfterValidator(lambda name: known(OBJECTIVES, name, "method"))]
NetworkName = Annotated[str, AfterValidator(lambda name: known(MODELS, name, "network"))]
MOST = 1000
"""Points that an axis of the grid may have."""
ScopeName = Literal["sample", "batch", "dataset"]


def parse_grid(value: Any) -> Any:
    """'low:high:points' -> the radii; '0,0.1,0.2' -> these; everything else is left to the schema.

    >>> parse_grid("0:0.2:3")
    (0.0, 0.1, 0.2)
    """
    if not isinstance(value, str):
        return (value,) if isinstance(value, int | float) else value
    try:
        if ":" in value:
            low, high, points = value.split(":")
            n = int(points)
            if n > MOST:
                raise ValueError
            return tuple(round(float(low) + (float(high) - float(low)) * i / (n - 1), 12) for i in range(n))
        return tuple(float(v) for v in value.split(","))
    except (ValueError, ZeroDivisionError):
        raise ValueError(
            f"'{value}' is no list of radii; write low:high:points (at most {MOST}), e.g. 0:0.2:11, or 0,0.05,0.1"
        ) from None


def _increasing(values: tuple[float, ...]) -> tuple[float, ...]:
    if any(b <= a for a, b in pairwise(values)):
        raise ValueError(f"{list(values)} does not increase; give radii in strictly increasing order")
    return values


def parse_weight_radii(value: Any) -> Any:
    """'fc1.weight=0.01,fc2.weight=0.002' -> a mapping of radii by tensor; otherwise as `parse_grid`."""
    return _named_radii(value, "tensor=radius; write fc1.weight=0.01,fc2.weight=0.002")


def parse_input_radii(value: Any) -> Any:
    """'age=2,income=500' -> a mapping of radii by column; otherwise as `parse_grid`."""
    return _named_radii(value, "column=radius; write age=2,income=500, or *=0.1,sex=0")


def _named_radii(value: Any, expected: str) -> Any:
    if isinstance(value, str) and "=" in value:
        try:
            return {name.strip(): float(radius) for name, radius in (item.rsplit("=", 1) for item in value.split(","))}
        except ValueError:
            raise ValueError(f"'{value}' is no list of {expected}") from None
    return parse_grid(value)


def parse_names(value: Any) -> Any:
    """'no,yes' -> ('no', 'yes'); everything else is left to the schema."""
    return tuple(name.strip() for name in value.split(",")) if isinstance(value, str) else value


def parse_domain(value: Any) -> Any:
    """'-1,1' -> (-1.0, 1.0); everything else is left to the schema."""
    return value.split(",") if isinstance(value, str) and "," in value else value


def _ordered(value: tuple[float, float] | str | None) -> tuple[float, float] | str | None:
    if isinstance(value, tuple) and not value[0] < value[1]:
        raise ValueError(f"{list(value)} is no range; give lowest,highest with lowest < highest, e.g. 0,1, or none")
    return value


Radius = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Grid = Annotated[tuple[Radius, ...], Field(min_length=1), AfterValidator(_increasing), BeforeValidator(parse_grid)]


def _form(value: Any) -> str:
    """Which branch of a union is meant, so that an error speaks of that one alone."""
    return MANY if isinstance(value, dict | list | tuple) else ONE


def _named(value: Any) -> str:
    return NAMED if isinstance(value, dict) else MANY


ONE, MANY, NAMED = BRANCHES = ("one of", "some of", "named of")
ByColumn = dict[str, Annotated[Annotated[Radius, Tag(ONE)] | Annotated[tuple[Radius, Radius], Tag(MANY)], Discriminator(_form)]]
InputGrid = Annotated[
    Annotated[Annotated[Grid, Tag(MANY)] | Annotated[ByColumn, Tag(NAMED)], Discriminator(_named)],
    BeforeValidator(parse_input_radii),
]
Names = Annotated[tuple[str, ...], Field(min_length=2), BeforeValidator(parse_names)]
WeightGrid = Annotated[
    Annotated[Annotated[Grid, Tag(MANY)] | Annotated[dict[str, Radius], Tag(NAMED)], Discriminator(_named)],
    BeforeValidator(parse_weight_radii),
]
Limit = Annotated[
    Annotated[int, Field(ge=1)] | None,
    BeforeValidator(lambda v: None if isinstance(v, str) and v.lower() in ("none", "all") else v),
]


End = Annotated[float, Field(allow_inf_nan=False)]
Domain = Annotated[tuple[End, End] | Literal["none"] | None, AfterValidator(_ordered), BeforeValidator(parse_domain)]


class Settings(BaseModel):
    """Frozen; an unknown field is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Recipe(Settings):
    """How one model is trained: the method and its numbers.  Radii are training radii, ℓ∞.

    steps: of inner maximisations.  warmup: the first part of the training, over which radii, alpha and beta grow from 0.
    None: as the method has it (7; 0.6 for radii, 0.5 for alpha and beta).  momentum: of sgd.
    """

    method: MethodName
    eps_x: Radius = 0.0
    eps_w: Radius = 0.0
    alpha: Radius = 0.0
    beta: Radius = 0.0
    epochs: int = Field(default=12, ge=1)
    lr: float = Field(default=1e-3, gt=0, allow_inf_nan=False)
    batch_size: int = Field(default=128, ge=1)
    steps: int | None = Field(default=None, ge=1)
    warmup: float | None = Field(default=None, ge=0, le=1)
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    schedule: Literal["cosine", "constant", "linear", "step"] = "cosine"
    weight_decay: Radius = 0.0
    momentum: float = Field(default=0.0, ge=0, lt=1)

    LATER: ClassVar = ("steps", "warmup", "optimizer", "schedule", "weight_decay", "momentum")
    """Younger than the first runs: left out where they say what those did, so that files and hashes of those are as they were."""

    @model_serializer(mode="wrap")
    def _as_before(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = type(self).model_fields
        return {k: v for k, v in written(self).items() if k not in self.LATER or getattr(self, k) != fields[k].default}


class Network(Settings):
    """Which network is built: a name of the catalog and its widths."""

    name: NetworkName = "mlp"
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = (128, 64, 32)
    bias: bool = False


class TrainSettings(Settings):
    """One training run."""

    data: str = "digits"
    data_dir: Path | None = None
    classes: Names | None = None
    network: Network = Network()
    recipe: Recipe = Recipe(method="standard")
    seed: int = Field(default=0, ge=0, le=2**32 - 1)


class GridSettings(Settings):
    """A model, data and a grid of radii.

    domain: the range of the inputs, "none" for no limits; None is what the data set says of itself.
    indices: file of the rows of the split that count (.npy, .txt, .json); limit is drawn from these.
    classes: names of the class indices in the order of the model's outputs; None is the order of the data set.
    eps_x: radii of all inputs; or one for each column by name, or a pair [below, above] (other columns are fixed): the axis is
    then their fraction.
    """

    model: str
    weights: Path | None = None
    data: str | None = None
    data_dir: Path | None = None
    classes: Names | None = None
    split: Literal["test", "val"] = "test"
    indices: Path | None = None
    limit: Limit = None
    eps_x: InputGrid | None = None
    eps_w: WeightGrid | None = None
    domain: Domain = None
    moves: Literal["weights", "all"] = "weights"
    relative: bool = False

    @property
    def label(self) -> str:
        """What records call the model: the name of its folder, file or module, or in a library."""
        source, _, name = self.model.rpartition(":")
        if source in ("torchvision", "timm", "hf"):
            return Path(name).stem
        return Path(source or self.model).stem if source.endswith(".py") or not source else source.rpartition(".")[2]


class EvaluateSettings(GridSettings):
    """One attacked surface of one model, and on request the certified one beside it."""

    scope: ScopeName = "sample"
    attack: AttackName | None = None
    batch_size: int = Field(default=128, ge=1)
    certify: BoundName | None = None
    masking: bool = False
    expectation: int | None = Field(default=None, ge=1)
    """Forward passes of a random network that are averaged."""


class CertifySettings(GridSettings):
    """One certified surface of one model; with `accuracy`, also the largest certified radii for these shares of the examples."""

    method: BoundName = "crown"
    accuracy: tuple[Annotated[float, Field(gt=0, le=1)], ...] = ()


class ReproduceSettings(Settings):
    """The whole of the paper on one data set: seven models, their surfaces, Figure 1 and the claims."""

    data: str = "digits"
    data_dir: Path | None = None
    split: Literal["test", "val"] = "test"
    seeds: int = Field(default=3, ge=1, le=1000)
    first_seed: int = Field(default=0, ge=0, le=2**31)
    limit: Limit = 1000
    network: Network
    recipes: dict[str, Recipe]
    eps_x: Grid
    eps_w: Grid
    scope: ScopeName = "dataset"
    attack: AttackName = "paper"


S = TypeVar("S", bound=Settings)


def checked(schema: type[S], values: dict[str, Any]) -> S:
    """The settings, or one InvalidInput that names every field that is wrong, what it was given, and what it takes."""
    try:
        return schema.model_validate(values)
    except ValidationError as e:
        raise InvalidInput("; ".join(_say(schema, error) for error in e.errors())) from None


def _say(schema: type[Settings], error: Any) -> str:
    import difflib

    # a union adds the names of its branches to the path: keep what the user wrote
    end = len(error["loc"]) - (error["type"] == "extra_forbidden")  # a key that the user wrote, whatever it is
    branches = ("constrained-int", "float", "int", *BRANCHES)
    path = [str(p) for i, p in enumerate(error["loc"]) if i >= end or not (isinstance(p, str) and ("[" in p or p in branches))]
    where = ".".join(path)
    if error["type"] == "extra_forbidden":
        inner = Recipe if {"recipe", "recipes"} & set(path[:-1]) else Network if "network" in path[:-1] else schema
        near = difflib.get_close_matches(path[-1], inner.model_fields, 1)
        return f"there is no setting '{where}'" + (
            f"; did you mean '{near[0]}'?" if near else f"; it takes {', '.join(inner.model_fields)}"
        )
    if error["type"] == "missing":
        return f"'{where}' is missing"
    message = error["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" + ("" if error["type"] == "value_error" else f", not {reprlib.repr(error['input'])}")


LARGEST = 2**18
"""Bytes of a config file."""
DEEPEST = 20
"""Values within values of a config file."""


class _Loader(yaml.SafeLoader):
    """Without aliases, nine lines of which can stand for a billion values, and without deep nesting."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"it refers to another place with *{self.peek_event().anchor}; write the value out")
        if self.depth == DEEPEST:
            raise yaml.YAMLError(f"it nests values {DEEPEST} deep; settings are flat")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def read_config(path: Path) -> dict[str, Any]:
    """A YAML or JSON mapping.  Raises InvalidInput if the file is missing or is no mapping."""
    try:
        if (size := path.stat().st_size) > LARGEST:
            raise InvalidInput(f"{path} is {size:,} bytes long; a config file of at most {LARGEST:,} is read")
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # a SafeLoader
    except InvalidInput:
        raise
    except FileNotFoundError:
        raise InvalidInput(f"there is no config file {path}") from None
    except (OSError, ValueError, OverflowError, LookupError, TypeError, AttributeError, RecursionError, yaml.YAMLError) as e:
        # yaml raises the plain ones for scalars such as 2001-99-99, and for deep nesting
        raise InvalidInput(f"{path} cannot be read as YAML: {(str(e) or type(e).__name__).splitlines()[0]}") from None
    if not isinstance(values, dict):
        raise InvalidInput(f"{path} holds {type(values).__name__}; a config file is a mapping of settings to values")
    return values


def to_yaml(settings: Settings) -> str:
    """The settings as YAML that `read_config` reads back."""
    values = json.loads(settings.model_dump_json())
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    return text if legible(text) == text else yaml.safe_dump(values, sort_keys=False)
