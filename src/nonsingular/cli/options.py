"""options.py - the flags that several commands take."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from cyclopts import Parameter

from nonsingular.errors import InvalidInput

if TYPE_CHECKING:
    from nonsingular.settings import Settings
from typing import TYPE_CHECKING

Config = Annotated[Path | None, Parameter(help="YAML file of settings; flags win over it. Default: none.")]
Model = Annotated[
    str | None,
    Parameter(
        help="Output folder of 'train'; file.py:function or package.module:function that returns an nn.Module; an .onnx or .pt2 "
        "(torch.export) file, also hf:owner/name/file; torchvision:name or timm:name. Default: that of --config; "
        "needed in one of the two."
    ),
]
Weights = Annotated[
    Path | None,
    Parameter(
        help="For the function or name: safetensors, or a torch state dict (.pt, .pth); or hf:owner/name[/file]. "
        "Never unpickled. Default: those that the function or file comes with."
    ),
]
Data = Annotated[
    str | None,
    Parameter(
        help="digits, mnist, fashion-mnist, cifar10; an .npz, .parquet, .arrow or .csv file; a folder of images (one sub-folder "
        "a class), IDX or parquet files; or hf:owner/name[:config]. Default: what the model was trained on."
    ),
]
Classes = Annotated[
    str | None,
    Parameter(
        help="Names of the classes in the order of the model's outputs: no,yes. Default: the order of the data set, which "
        "--preflight shows (text sorted; numbers as numbers)."
    ),
]
Indices = Annotated[
    Path | None,
    Parameter(
        help="File of the rows of the split that count, from 0: .npy, .txt or .json. --limit draws from these. Default: all rows."
    ),
]
Split = Annotated[str | None, Parameter(help="test (default) or val.")]
Limit = Annotated[str | None, Parameter(help="Examples, a seeded subset; 'none' for all (default).")]
EpsX = Annotated[
    str | None,
    Parameter(
        help="Input radii: low:high:points or a,b,c, in units of the data; or column=radius,column=radius of a table (the axis "
        "is then their fraction, other columns are fixed; '*=0.1,sex=0' moves all but sex). Default: the grid of the data set; "
        "for other data, 6 points to a fifth of the spread of the inputs."
    ),
]
EpsW = Annotated[
    str | None,
    Parameter(
        help="Weight radii likewise, or tensor=radius,tensor=radius (the axis is then their fraction). Default: the "
        "grid of the data "
        "set; for other data, and with --relative, 6 points to 0.02 of the largest |weight| of each tensor."
    ),
]
Domain = Annotated[
    str | None,
    Parameter(
        help="Range of the inputs, in their units: e.g. 0,1 or --domain=-1,1, or none. Default: that of the data set (0,1 for "
        "images and .npz files that name no other; none for tables)."
    ),
]
Moves = Annotated[str | None, Parameter(help="weights (default) or all: biases and scales too.")]
Relative = Annotated[
    bool | None,
    Parameter(
        help="Weight radii are multiples of the largest |weight| of each tensor. Default: no, unless --eps-w is chosen for you."
    ),
]
Preflight = Annotated[
    bool,
    Parameter(negative="", help="Say within 30 s how long it will take, what moves and what can be certified, and stop."),
]
DataDir = Annotated[
    Path | None,
    Parameter(
        help="Folder with the data: torchvision-layout IDX files or Hugging Face parquet. Default: the cache, else a "
        "download into it."
    ),
]
Out = Annotated[
    Path | None,
    Parameter(
        help="Run directory. The same settings go on where they ended; other settings are refused. Default: a folder "
        "in runs/ named after them."
    ),
]
Workers = Annotated[int | None, Parameter(help="Processes, one thread each. Default: the number of cores.")]
Engine = Annotated[str, Parameter(help="Where the work is done: local, or ray (extra 'ray'). The results are the same.")]
Address = Annotated[
    str | None,
    Parameter(help="Ray cluster to join: host:port or auto. Its CPUs then count, not --workers. Default: a Ray of its own."),
]
Track = Annotated[
    str | None, Parameter(help="Also hand the results to tensorboard or mlflow, where it is installed. Default: to none.")
]
PRESET = "Default: that of the method's preset on the data; without one"
Json = Annotated[bool, Parameter(name="--json", negative="", help="One JSON object on stdout, nothing else.")]
Quiet = Annotated[bool, Parameter(negative="", help="No progress on stderr.")]
PrintConfig = Annotated[bool, Parameter(negative="", help="Print the effective settings as YAML and stop.")]


S = TypeVar("S", bound="Settings")


def given_flags(**values: Any) -> dict[str, Any]:
    return {k: v for k, v in values.items() if v is not None}


def laid_over(winner: Mapping[str, Any], loser: Mapping[str, Any]) -> dict[str, Any]:
    """`winner` laid over `loser`, mapping by mapping."""
    merged = dict(loser)
    for key, value in winner.items():
        if isinstance(value, Mapping) and key in merged:
            if not isinstance(merged[key], Mapping):
                raise InvalidInput(f"{key} is {merged[key]!r}; give a mapping of settings to values")
            value = laid_over(value, merged[key])
        merged[key] = value
    return merged


def merged(schema: type[S], loser: Mapping[str, Any], winner: Mapping[str, Any]) -> S:
    from nonsingular.settings import checked

    return checked(schema, laid_over(winner, loser))


def print_settings(settings: Settings) -> None:
    from nonsingular.settings import to_yaml

    print(to_yaml(settings), end="")


def folder_of(command: str, settings: Any) -> Path:
    """The default run directory: a name of its own for each model and each other settings."""
    import hashlib

    return Path("runs") / f"{command}-{settings.label}-{hashlib.sha256(settings.model_dump_json().encode()).hexdigest()[:8]}"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def workplace(workers: int | None, engine: str, address: str | None) -> dict[str, Any]:
    """Where the work is done: no setting of the run, for its results do not depend on it."""
    if workers is not None and address is not None:
        raise InvalidInput(f"--workers {workers} and --address {address}: the CPUs of the cluster count; leave --workers out")
    return {"workers": _cores() if workers is None else workers, "engine": engine, "address": address}
