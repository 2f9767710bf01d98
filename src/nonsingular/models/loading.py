"""loading.py - load a model by its specification, as an nn.Module in eval mode.

FILE.py:NAME and package.module:NAME run the user's own code.  No file of weights, no .pt2 and no .onnx file is ever unpickled or
run.  Every process of a run loads the model again, so a specification must give the same weights each time.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import json
import os
import sys
import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn

from nonsingular.catalog import MODELS, lookup
from nonsingular.errors import InvalidInput
from nonsingular.models import hub, zoo
from nonsingular.models.architectures import Normalized
from nonsingular.models.checkpoints import classes_of, fit_checkpoint, fit_weights
from nonsingular.models.onnx_batches import load_onnx
from nonsingular.models.torch_export import load_exported
from nonsingular.models.weights import REFUSED, StateDicts, kind_of, read_tensors, read_weights
from nonsingular.network.copies import duplicate
from nonsingular.network.devices import DTYPES
from nonsingular.results.surface import CONFIG, WEIGHTS
from nonsingular.settings import TrainSettings, checked
from nonsingular.untrusted import read_config

FORMS = (
    "file.py:function, package.module:function, an .onnx or .pt2 file, zoo:name, torchvision:name or timm:name, "
    "or the output folder of 'nonsingular train'"
)
LIBRARIES = ("torchvision", "timm")
_RAW = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")


def load_model(spec: str | os.PathLike[str], weights: str | os.PathLike[str] | None = None) -> nn.Module:
    """The model that `spec` names, in eval mode.

    spec: FILE.py:NAME or package.module:NAME, where NAME is a function or class without required arguments, or an nn.Module;
        zoo:NAME, a network of this package; torchvision:NAME or timm:NAME, which need `weights`; an .onnx or .pt2 file, also
        hf:owner/name/file; or the output folder of `nonsingular train`.  A module that is named itself is copied.
    weights: for it: a safetensors file or a torch state dict (.pt, .pth), which may lie in a checkpoint; or
        hf:owner/name[/file], by default its model.safetensors.
    Raises InvalidInput, which says what was given and what to do instead.
    """
    spec, weights = os.fspath(spec), None if weights is None else os.fspath(weights)
    if not spec:
        raise InvalidInput(f"the name of the model is empty; give {FORMS}")
    library, _, name = spec.partition(":")
    if run := run_of(spec, weights):
        return load_run(run)[0]
    if spec.startswith(hub.PREFIX):
        return _file(hub.fetch(spec), spec, weights)
    if library in LIBRARIES and not _exists(Path(spec)):
        return _of_library(library, name, weights)
    if _exists(Path(spec).expanduser()) or ":" not in spec:
        return _file(Path(spec).expanduser(), spec, weights)
    model = _user_model(spec)
    if weights is not None:
        _fit(model, *_tensors(weights))
    return model.eval()


def run_of(spec: str, weights: str | os.PathLike[str] | None = None) -> Path | None:
    """The run directory of `nonsingular train`, also of the zoo, that this names; None: it names something else.

    Raises InvalidInput for weights beside it, and for a name that the zoo does not have.
    """
    run = zoo.located(spec) if spec.startswith(zoo.PREFIX) else Path(spec)
    if spec.startswith(hub.PREFIX) or not _exists(run / CONFIG):
        return None
    if weights is not None:
        raise InvalidInput(f"{spec} has its own weights; give either it or file.py:function with --weights {os.fspath(weights)}")
    return run


def is_code(spec: str) -> bool:
    """Whether `load_model` would run code that this name chooses: any name that has none of its other forms."""
    named = spec.startswith((hub.PREFIX, zoo.PREFIX)) or spec.partition(":")[0] in LIBRARIES
    return ":" in spec and not named and not _exists(Path(spec).expanduser())


def _alone(spec: str, weights: str | None) -> None:
    if weights is not None:
        raise InvalidInput(f"{spec} has its own weights; give either it or file.py:function with --weights {weights}")


# --- run directories --------------------------------------------------------------------------------------------------------


def build(settings: TrainSettings, input_shape: Sequence[int], classes: int) -> nn.Module:
    """The untrained network, initialised from the seed; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        make = lookup(MODELS, settings.network.name, "model")
        return make(input_shape, classes, hidden=settings.network.hidden, bias=settings.network.bias)


def load_run(run: Path) -> tuple[nn.Module, TrainSettings]:
    """The trained model of a run directory, in eval mode and with its `input_shape`, and its settings.  Needs no data."""
    settings = checked(TrainSettings, read_config(run / CONFIG))
    tensors, about = read_tensors(run / WEIGHTS)
    try:
        built_for = json.loads(about["built_for"])
        sizes = [*built_for["input_shape"], built_for["classes"]]
        if not all(type(size) is int and 0 < size < 2**31 for size in sizes):
            raise ValueError(f"sizes {sizes}")
        with torch.device("meta"):
            wanted = sum(p.numel() for p in build(settings, sizes[:-1], sizes[-1]).parameters())
        if wanted > 2 * sum(t.numel() for t in tensors.values()):
            raise ValueError(f"a network of {wanted} weights")
        model = build(settings, sizes[:-1], sizes[-1]).to(None if settings.dtype is None else DTYPES[settings.dtype])
    except (KeyError, TypeError, ValueError, RuntimeError, OverflowError, RecursionError) as e:
        raise InvalidInput(f"{run / WEIGHTS} was not written by 'nonsingular train'; train again") from e
    fit_weights(model, tensors, run / WEIGHTS)
    cast(Any, model).input_shape = tuple(sizes[:-1])
    return model.eval(), settings


# --- files that hold a whole model ------------------------------------------------------------------------------------------


def _file(path: Path, spec: str, weights: str | None) -> nn.Module:
    """An .onnx or .pt2 file; anything else is called by its name."""
    if not _exists(path):
        if path.suffix in (".onnx", ".pt2", *_RAW):
            raise InvalidInput(f"there is no file {spec}")
        raise InvalidInput(f"'{spec}' does not name a model; give {FORMS}{_instead_of_name(spec)}")
    if path.is_dir():
        raise InvalidInput(f"{spec} is a folder, and not the output folder of 'nonsingular train'; give {FORMS}")
    if path.suffix == ".py":
        raise InvalidInput(f"{spec} is a Python file; name what in it makes the model: {spec}:function")
    kind = kind_of(path)
    if kind == "onnx" or (path.suffix == ".onnx" and kind == "unknown"):
        _alone(spec, weights)
        return load_onnx(path)
    if kind == "pt2":
        _alone(spec, weights)
        return load_exported(path)
    if kind in REFUSED:
        raise InvalidInput(f"{spec} {REFUSED[kind]}")
    raise InvalidInput(f"{spec} holds weights, not the network; give file.py:function as the model, with --weights {spec}")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _instead_of_name(spec: str) -> str:
    near = difflib.get_close_matches(spec, [p.name for p in Path().iterdir()], 1) if len(spec) < 100 else []
    return f"; did you mean '{near[0]}'?" if near else ""


# --- weights ----------------------------------------------------------------------------------------------------------------


def _tensors(weights: str) -> tuple[StateDicts, str]:
    """What lies in a file of weights, and what to call it."""
    path = hub.fetch(weights, WEIGHTS) if weights.startswith(hub.PREFIX) else Path(weights).expanduser()
    return read_weights(path), weights


def _fit(model: nn.Module, inside: StateDicts, name: str) -> None:
    """Weights of a `Normalized` model may also have the names of the model inside it."""
    models = [model]
    while isinstance(models[-1], Normalized):
        models.append(models[-1].model)
    fit_checkpoint(models, inside, name)


# --- the user's code --------------------------------------------------------------------------------------------------------


def _user_model(spec: str) -> nn.Module:
    """What `FILE.py:NAME` or `package.module:NAME` makes."""
    source, _, name = spec.rpartition(":")
    with _errors_of(spec):
        module = _from_file(Path(source).expanduser()) if source.endswith(".py") else _imported(spec, source)
        made: Any = module
        for part in name.split("."):
            if not hasattr(made, part):
                raise InvalidInput(f"{source} has no '{name}'{_nearest(module, name)}")
            made = getattr(made, part)
        if isinstance(made, nn.Module):
            return duplicate(made)
        if not callable(made):
            raise InvalidInput(f"{spec} is {_article(made)}; name a function or class that makes an nn.Module, or an nn.Module")
        _check_arguments(spec, made)
        model = made()
    if not isinstance(model, nn.Module):
        raise InvalidInput(f"{spec} returns {_article(model)}; it must return an nn.Module")
    for parameter_name, p in model.named_parameters():
        if nn.parameter.is_lazy(p):
            raise InvalidInput(f"{parameter_name} of {spec} has no size yet; let it run the model once on an example")
        if p.is_meta:
            raise InvalidInput(f"{parameter_name} of {spec} is on the meta device and has no values; let it build on the CPU")
    return model


def _nearest(module: ModuleType, name: str) -> str:
    own = [n for n, v in vars(module).items() if not n.startswith("_") and (callable(v) or isinstance(v, nn.Module))]
    near = difflib.get_close_matches(name, own, 1)
    makers = [n for n in own if getattr(getattr(module, n), "__module__", None) == module.__name__]
    if near:
        return f"; did you mean '{near[0]}'?"
    return f"; it has {', '.join(makers[:5])}" if makers else "; name a function that returns an nn.Module"


def _article(value: Any) -> str:
    called = type(value).__name__
    if isinstance(value, type):
        return f"the class {value.__name__} (call it)"
    if isinstance(value, Mapping) and value and all(isinstance(v, Tensor) for v in cast("Mapping[Any, Any]", value).values()):
        return f"a state dict ({called}; put it into the module)"
    return called


def _check_arguments(spec: str, made: Callable[..., Any]) -> None:
    try:
        parameters = inspect.signature(made).parameters.values()
    except (TypeError, ValueError):  # written in C
        return
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in variable]
    if needed:
        raise InvalidInput(
            f"{spec} needs arguments ({', '.join(needed)}); give a function that needs none and calls it with them"
        )


@contextmanager
def _errors_of(spec: str) -> Generator[None]:
    """Whatever the user's code raises is one InvalidInput that says where; what it prints goes to stderr."""
    try:
        with redirect_stdout(sys.stderr):
            yield
    except InvalidInput:
        raise
    except (Exception, SystemExit) as e:
        ours = str(Path(__file__).parents[1])
        frames = [f for f in traceback.extract_tb(e.__traceback__) if not f.filename.startswith((ours, "<frozen"))]
        where = f" (line {frames[-1].lineno} of {frames[-1].filename})" if frames else ""
        raise InvalidInput(f"{spec} failed: {type(e).__name__}: {e}{where}") from e


def _from_file(path: Path) -> ModuleType:
    """The module in a file, run anew; its folder is on sys.path, for what it imports."""
    if not path.is_file():
        raise InvalidInput(f"there is no file {path}")
    path = path.resolve()
    name = f"{path.stem}_{sha256(str(path).encode()).hexdigest()[:8]}"  # not `random`, for random.py
    found = importlib.util.spec_from_file_location(name, path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    _on_path(path.parent)
    sys.modules[name] = module  # dataclasses and pickling look there
    try:
        found.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _imported(spec: str, source: str) -> ModuleType:
    """An installed module, or one of the current folder."""
    if not all(part.isidentifier() for part in source.split(".")):
        raise InvalidInput(f"'{spec}' does not name a model; give {FORMS}")
    _on_path(Path.cwd())
    try:
        return importlib.import_module(source)
    except ModuleNotFoundError as e:
        if e.name is None or not (source == e.name or source.startswith(e.name + ".")):
            raise
        raise InvalidInput(
            f"there is no module '{source}' here or among the installed ones; give {source.rpartition('.')[2]}.py:function "
            "with its folder, or run where it can be imported"
        ) from e


def _on_path(folder: Path) -> None:
    """A console script does not have the current folder on sys.path."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


# --- torchvision, timm ------------------------------------------------------------------------------------------------------


def _of_library(library: str, name: str, weights: str | None) -> nn.Module:
    """A network by name, with its number of classes from the weights."""
    module = _library(library)
    known: list[str] = module.models.list_models() if library == "torchvision" else module.list_models()
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        raise InvalidInput(
            f"{library} has no model '{name}'" + (f"; did you mean '{near[0]}'?" if near else "; see its list_models()")
        )
    if weights is None:
        raise InvalidInput(
            f"{library}:{name} is a network without weights; give --weights with a safetensors file or a state dict"
        )
    inside, called = _tensors(weights)
    classes = classes_of(inside)
    settings = {} if classes is None else {"num_classes": classes}
    make = module.models.get_model if library == "torchvision" else module.create_model
    with _errors_of(f"{library}:{name}"):
        model: nn.Module = make(name, **({"weights": None} if library == "torchvision" else {"pretrained": False}), **settings)
    _fit(model, inside, called)
    return model.eval()


def _library(library: str) -> Any:
    try:
        module = importlib.import_module(library)
        if library == "torchvision":
            importlib.import_module("torchvision.models")
        return module
    except ModuleNotFoundError as e:
        raise InvalidInput(
            f"{library} is not installed ({e}); pip install {library}, built for torch {torch.__version__}"
        ) from None
    except Exception as e:  # "operator torchvision::nms does not exist": built for another torch
        why = (str(e).strip().splitlines() or [""])[0]
        raise InvalidInput(
            f"the installed {library} is broken ({type(e).__name__}: {why}); install the one built for torch {torch.__version__}"
        ) from e
