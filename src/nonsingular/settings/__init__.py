"""Every setting of a run, checked: one schema for Python, config files and the command line.  No torch here."""

from __future__ import annotations

import json
import reprlib
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from nonsingular.catalog import ATTACKS, BOUNDS, MODELS, OBJECTIVES, UNSOUND, known
from nonsingular.errors import InvalidInput
from nonsingular.plain import legible
from nonsingular.settings.text import (
    BRANCHES,
    DeviceText,
    Domain,
    Grid,
    InputGrid,
    Limit,
    Names,
    Radius,
    ShardText,
    Sizes,
    WeightGrid,
    parse_names,
)

AttackName = Annotated[str, AfterValidator(lambda name: "+".join(known(ATTACKS, n, "attack") for n in name.split("+")))]
Deployed = Literal["float64", "float32", "bfloat16", "float16", "bfloat16+float32", "float16+float32"]
BoundName = Annotated[
    str, AfterValidator(lambda name: known({b: BOUNDS[b] for b in BOUNDS if b not in UNSOUND}, name, "sound bound"))
]
MethodName = Annotated[str, AfterValidator(lambda name: known(OBJECTIVES, name, "method"))]
NetworkName = Annotated[str, AfterValidator(lambda name: known(MODELS, name, "network"))]
ScopeName = Literal["sample", "batch", "dataset"]
EffortName = Literal["quick", "standard", "thorough"]


class Settings(BaseModel):
    """Frozen; an unknown field is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    LATER: ClassVar[tuple[str, ...]] = ()
    """Settings newer than the first runs: left out where they change nothing, so that files and hashes of those stay the same."""

    @model_serializer(mode="wrap")
    def _as_before(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = type(self).model_fields
        return {k: v for k, v in written(self).items() if k not in self.LATER or getattr(self, k) != fields[k].default}


def _said(description: str, default: Any = ..., **limits: Any) -> Any:
    """A setting, with its text in `--help`."""
    return Field(default, description=description, **limits)


PRESET = "Default: that of the method's preset on the data; without one"


class Recipe(Settings):
    """How one model is trained: the method and its numbers.  Radii are training radii, ℓ∞.

    steps: of inner maximisations.  warmup: the first part of the training, over which radii, alpha and beta grow from 0.
    None: as the method has it (7; 0.6 for radii, 0.5 for alpha and beta).  momentum: of sgd.
    """

    method: MethodName = _said("recommended, or standard, at, joint, ... ('nonsingular list objectives'). Default: standard.")
    eps_x: Radius = _said(f"Training radius of the inputs, in the data's units. {PRESET}, 0.", 0.0)
    eps_w: Radius = _said(f"Training radius of the weights. {PRESET}, 0.", 0.0)
    alpha: Radius = _said(f"Weight of tau in the loss (4). {PRESET}, 0.", 0.0)
    beta: Radius = _said(f"Weight of zeta in the loss (4). {PRESET}, 0.", 0.0)
    epochs: int = _said(f"Passes over the training data. {PRESET}, 12.", 12, ge=1)
    lr: float = _said(f"Learning rate at the start. {PRESET}, 0.001.", 1e-3, gt=0, allow_inf_nan=False)
    batch_size: int = _said(f"Examples of a step. {PRESET}, 128.", 128, ge=1)
    steps: int | None = _said("Steps of inner maximisations. Default: 7.", None, ge=1)
    warmup: float | None = _said(
        "First part of the training, 0 to 1, over which radii, alpha and beta grow from 0. Default: 0.6 for radii, 0.5 for alpha "
        "and beta.",
        None, ge=0, le=1,
    )  # fmt: skip
    optimizer: Literal["adam", "adamw", "sgd"] = _said("adam (default), adamw or sgd.", "adam")
    schedule: Literal["cosine", "constant", "linear", "step"] = _said(
        "How the learning rate falls: cosine (default), constant, linear or step.", "cosine"
    )
    weight_decay: Radius = _said("Default: 0.", 0.0)
    momentum: float = _said("Of sgd. Default: 0.", 0.0, ge=0, lt=1)
    rho: float | None = _said(
        "How far weights move: of sam and asam a distance, of awp and rwp a part of their norm. Needed there.", None,
        gt=0, allow_inf_nan=False,
    )  # fmt: skip
    rate: float | None = _said("Part of the stored bits in error, of randbet. Needed there.", None, gt=0, le=1)
    bits: int | None = _said("Of a stored weight, of quantised and randbet. Default of randbet: 8.", None, ge=2, le=16)
    part: float | None = _said(
        "Of the input radius that the box of certified has, around inputs that an attack moved within the rest of it. Default: "
        "1, the whole ball.",
        None, gt=0, le=1,
    )  # fmt: skip
    average: float | None = _said(
        "0 to below 1, e.g. 0.999: keep an exponential moving average of the weights. Default: the last weights.",
        None,
        ge=0,
        lt=1,
    )
    clip: float | None = _said("Keep weights within +-clip. Default: no limit.", None, gt=0, allow_inf_nan=False)

    accumulate: int = _said("Parts of a batch whose gradients are summed before a step. Default: 1.", 1, ge=1)
    amp: Literal["bfloat16"] | None = _said("bfloat16: mixed precision (torch.autocast). Default: the type of the weights.", None)

    NUMBERS: ClassVar = ("eps_x", "eps_w", "alpha", "beta", "steps", "warmup", "rho", "rate", "bits", "part")
    """Those of the method; the others say how it is lowered."""
    LATER: ClassVar = (
        "steps", "warmup", "optimizer", "schedule", "weight_decay", "momentum", "rho", "rate", "bits", "part", "average",
        "clip", "accumulate", "amp",
    )  # fmt: skip


class Network(Settings):
    """Which network is built: a name of the catalog and its widths."""

    name: NetworkName = _said("mlp, conv or resnet. Default: mlp.", "mlp")
    hidden: Sizes = _said(f"Widths, e.g. 64,32. {PRESET}, 128,64,32.", (128, 64, 32))
    bias: bool = _said("Layers with biases. Default: without.", False)


class Computed(Settings):
    """Where and in which numbers a run is computed: its last bits depend on both.

    device: a file that names none means cpu; the command line chooses where no file is given.
    dtype: None is that of the weights, and float32 where they are made.
    """

    device: DeviceText = _said(
        "cpu, cuda, cuda:1 or mps. Default: cuda where there is one, else cpu; with --config what the file says, "
        "and cpu if it says nothing.", "cpu",
    )  # fmt: skip
    dtype: Literal["float32", "float64"] | None = _said(
        "Numbers of weights and inputs: float32 or float64. Default: those of the weights; of a new network float32.", None
    )
    LATER: ClassVar = ("device", "dtype")


DATA_DIR = (
    "Folder with the data: torchvision-layout IDX files or Hugging Face parquet. Default: the cache, else a download into it."
)
CLASSES = (
    "Names of the classes in the order of the model's outputs: no,yes. Default: the order of the data set, which --preflight "
    "shows (text sorted; numbers as numbers)."
)


class TrainSettings(Computed):
    """One training run."""

    data: str = _said("As in 'evaluate'. Default: digits.", "digits")
    data_dir: Path | None = _said(DATA_DIR, None)
    classes: Names | None = _said(CLASSES, None)
    network: Network = Network()
    recipe: Recipe = Recipe(method="standard")
    seed: int = _said("Seed of the weights and of the order of the data. Default: 0.", 0, ge=0, le=2**32 - 1)


class ModelSettings(Settings):
    """A model."""

    model: str = _said(
        "Output folder of 'train'; file.py:function or package.module:function that returns an nn.Module; an .onnx or .pt2 "
        "(torch.export) file, also hf:owner/name/file; zoo:data/name ('nonsingular list zoo'); torchvision:name or timm:name. "
        "Default: that of --config; needed in one of the two."
    )
    weights: Path | None = _said(
        "For the function or name: safetensors, or a torch state dict (.pt, .pth); or hf:owner/name[/file]. "
        "Never unpickled. Default: those that the function or file comes with.",
        None,
    )

    @property
    def label(self) -> str:
        """What records call the model: the name of its folder, file or module, or in a library."""
        source, _, name = self.model.rpartition(":")
        if source in ("torchvision", "timm", "hf", "zoo"):
            return Path(name).stem
        return Path(source or self.model).stem if source.endswith(".py") or not source else source.rpartition(".")[2]


class GridSettings(Computed, ModelSettings):
    """A model, data and a grid of radii.

    domain: the range of the inputs, "none" for no limits; None is the range that the data set states.
    classes: names of the class indices in the order of the model's outputs; None is the order of the data set.
    eps_x: radii of all inputs; or one for each column by name, or a pair [below, above] (other columns are fixed): the axis is
    then their fraction.
    """

    data: str | None = _said(
        "digits, mnist, fashion-mnist, cifar10; an .npz, .parquet, .arrow or .csv file; a folder of images (one sub-folder "
        "a class), IDX or parquet files; or hf:owner/name[:config]. Default: what the model was trained on.",
        None,
    )
    data_dir: Path | None = _said(DATA_DIR, None)
    classes: Names | None = _said(CLASSES, None)
    split: Literal["test", "val"] = _said("test (default) or val.", "test")
    indices: Path | None = _said(
        "File of the rows of the split to use, from 0: .npy, .txt or .json. --limit draws from these. Default: all rows.",
        None,
    )
    limit: Limit = _said("Examples, a seeded subset; 'none' for all (default).", None)
    eps_x: InputGrid | None = _said(
        "Input radii: low:high:points or a,b,c, in units of the data; or column=radius,column=radius of a table (the axis "
        "is then their fraction, other columns are fixed; '*=0.1,sex=0' moves all but sex). Default: the grid of the data set; "
        "for other data, 6 points to a fifth of the spread of the inputs.",
        None,
    )
    eps_w: WeightGrid | None = _said(
        "Weight radii likewise, or tensor=radius,tensor=radius (the axis is then their fraction). Default: the grid of the data "
        "set; for other data, and with --relative, 6 points to 0.02 of the largest |weight| of each tensor.",
        None,
    )
    domain: Domain = _said(
        "Range of the inputs, in their units: e.g. 0,1 or --domain=-1,1, or none. Default: that of the data set (0,1 for "
        "images and .npz files that name no other; none for tables).",
        None,
    )
    moves: Literal["weights", "all"] = _said("weights (default) or all: biases and scales too.", "weights")
    relative: bool = _said(
        "Weight radii are multiples of the largest |weight| of each tensor. Default: no, unless --eps-w is chosen for you.", False
    )
    deployed: Deployed | None = _said(
        "Certify the network as computed in float32, bfloat16, float16, bfloat16+float32, float16+float32 (sums in float32) or "
        "float64, in any order of summation. Default: its exact function.", None,
    )  # fmt: skip
    LATER: ClassVar = ("deployed", *Computed.LATER)


class SurfaceSettings(GridSettings):
    """One surface over the grid.  shard: the part of its work that this run does, "2/4" for the second of four; None for all."""

    shard: ShardText | None = _said(
        "Do one part of the work alone: 2/4 is the second of four. 'nonsingular merge' joins the parts. Default: all of it.", None
    )
    LATER: ClassVar = (*GridSettings.LATER, "shard")


class EvaluateSettings(SurfaceSettings):
    """One attacked surface of one model, and on request the certified one beside it."""

    scope: ScopeName = _said("Who shares W': sample (default), batch or dataset.", "sample")
    attack: AttackName | None = _said(
        "strongest (default), paper, apgd, ... ('nonsingular list attacks'); a+b is the worst of both.", None
    )
    effort: EffortName = _said(
        "quick, standard (default) or thorough: what the default attack spends. Where W' is shared, more leaves no more right.",
        "standard",
    )
    batch_size: int = _said("Examples that share W' in scope batch. Default: 128.", 128, ge=1)
    certify: BoundName | None = _said(
        "Certify the grid too, by this bound: crown, best, ... ('nonsingular list bounds'). Default: none.", None
    )
    masking: bool = _said("Also look for signs of masked gradients, where about half is left. Default: no.", False)
    seed: int | None = _said(
        "Seed of the random points from which attacks begin. Default: none; an attack then draws from 0, or begins at the data.",
        None, ge=0, le=2**32 - 1,
    )  # fmt: skip
    LATER: ClassVar = (*SurfaceSettings.LATER, "seed")
    expectation: int | None = _said(
        "For a random network: average the logits over this many forward passes. Default: a random one is refused.", None, ge=1
    )
    LATER: ClassVar = (*SurfaceSettings.LATER, "effort")


class CertifySettings(SurfaceSettings):
    """One certified surface of one model; with `accuracy`, also the largest certified radii for these shares of the examples."""

    bound: BoundName = _said("A sound bound: crown (default), best, ... ('nonsingular list bounds').", "crown")
    accuracy: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], BeforeValidator(parse_names)] = _said(
        "Shares of the examples, e.g. 0.9,0.5: the largest certified eps_w for each, at every eps_x. Default: none.", ()
    )

    @model_validator(mode="before")
    @classmethod
    def _old_names(cls, values: Any) -> Any:
        return with_new_names(values)


class PropertySettings(ModelSettings):
    """Verdicts on the properties in files: inputs in the box of each, and all weights within their radii.  None: no limit."""

    vnnlib: Annotated[tuple[Path, ...], Field(min_length=1), BeforeValidator(parse_names)] = _said(
        "Decide the property in this .vnnlib file (or .gz), in several (a,b), or in all of a folder, instead of a grid of radii; "
        "--weights, --eps-w (one, or by tensor), --moves and --relative hold for it, too. Default: none."
    )
    shape: Sizes | None = _said(
        "Of one input, e.g. 1,28,28, where --vnnlib is given. Default: that of the ONNX file or run; else flat.", None
    )
    attack: AttackName = _said("What is tried first on the property of --vnnlib. Default: apgd.", "apgd")
    seconds: float | None = _said("Time for a property of --vnnlib. Default: no limit.", None, gt=0, allow_inf_nan=False)
    eps_w: WeightGrid = (0.0,)
    moves: Literal["weights", "all"] = "weights"
    relative: bool = False


def with_new_names(values: Any) -> Any:
    """Settings of `certify` with the bound under its name, which was `method` in the first release."""
    if isinstance(values, dict) and "method" in values and "bound" not in values:
        return {("bound" if key == "method" else key): value for key, value in values.items()}
    return values


class ReproduceSettings(Computed):
    """The whole of the paper on one data set: seven models, their surfaces, Figure 1 and the claims."""

    data: str = _said("mnist (default), fashion-mnist or digits.", "digits")
    data_dir: Path | None = _said(DATA_DIR, None)
    split: Literal["test", "val"] = _said("test (default) or val.", "test")
    seeds: int = _said("Networks of each model. Default: 3.", 3, ge=1, le=1000)
    first_seed: int = _said("The first of their seeds. Default: 0.", 0, ge=0, le=2**31)
    limit: Limit = _said("Test examples, a seeded subset (default 1000); 'none' for all.", 1000)
    network: Network
    recipes: dict[str, Recipe]
    eps_x: Grid = _said("Input radii of the grid: low:high:points or a,b,c. Default: the grid of the data set.")
    eps_w: Grid = _said("Weight radii of the grid. Default: the grid of the data set.")
    scope: ScopeName = _said("Who shares W': sample, batch or dataset (default).", "dataset")
    attack: AttackName = _said("Default: paper ('nonsingular list attacks').", "paper")


S = TypeVar("S", bound=Settings)


def checked(schema: type[S], values: dict[str, Any]) -> S:
    """The settings, or one InvalidInput that names every wrong field, the value given, and the values it takes."""
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
    return (
        (f"{where}: " if where else "")
        + message
        + ("" if error["type"] == "value_error" else f", not {reprlib.repr(error['input'])}")
    )


def to_yaml(settings: Settings) -> str:
    """The settings as YAML that `read_config` reads back."""
    values = json.loads(settings.model_dump_json())
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    return text if legible(text) == text else yaml.safe_dump(values, sort_keys=False)
