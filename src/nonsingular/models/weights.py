"""weights.py - files of weights: what a file is, and its tensors.  No code of a file is run."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from nonsingular.errors import InvalidInput
from nonsingular.untrusted import BROKEN, PICKLE, check_pickle, entries

SHOWN = 3
"""Names that an error lists of a kind."""
DEPTH = 4
"""How deep in a checkpoint a state dict is looked for."""
_NO_NETWORKS = re.compile(r"(^|[^a-z])(optim|sched|lr_|scaler|callback|loops|rng|random|args|config|history)", re.IGNORECASE)
"""Keys of a checkpoint under which no network lies."""
_SAVE = "save its weights with safetensors.torch.save_file or torch.save(model.state_dict(), ...)"
_EXPORT = "export it with torch.export.save and give the .pt2 file as the model, or " + _SAVE

# --- what a file is -------------------------------------------------------------------------------------------------------


def kind_of(path: Path) -> str:
    """What a file is: "safetensors", "torch", "pt2", "onnx", a key of REFUSED; by its first bytes and the names in a zip archive.

    Raises InvalidInput if there is no file, or a web page or a pointer in its place.
    """
    try:
        if path.is_dir():
            raise InvalidInput(f"{path} is a folder; give a file in it")
        with path.open("rb") as f:
            head = f.read(1024)
    except FileNotFoundError:
        raise InvalidInput(f"there is no file {path}") from None
    except OSError as e:
        raise InvalidInput(f"{path} cannot be read: {e.strerror or e}") from e
    if not head:
        raise InvalidInput(f"{path} is empty; copy or download it again")
    if head.startswith(b"version https://git-lfs"):
        raise InvalidInput(f"{path} is a Git LFS pointer, not the file itself; run 'git lfs pull' in its repository")
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise InvalidInput(f"{path} is an HTML page, not a model file; download the raw file again")
    if head.startswith(b"PK"):
        return _kind_of_archive(path)
    for magic, kind in _MAGIC.items():
        if head.startswith(magic):
            return kind
    if len(head) > 8 and int.from_bytes(head[:8], "little") < 2**40 and head[8:9] == b"{":
        return "safetensors"
    if re.match(rb"\x80[\x02-\x05]", head):
        return "torch" if b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." in head[:32] else "pickle"  # the number that torch.save began with
    if re.match(rb"\x08[\x01-\x1f][\x12\x1a\x22\x28\x32\x3a\x42]", head):
        return "onnx"
    if text.startswith((b"{", b"[")):
        return "index" if b"weight_map" in head or b'"metadata"' in head else "json"
    return "text" if not re.search(rb"[^\t\n\r\x20-\x7e\x80-\xff]", head) else "unknown"


_MAGIC = {
    b"\x89HDF": "hdf5", b"\x93NUMPY": "numpy", b"GGUF": "gguf", b"\x1f\x8b": "compressed", b"BZh": "compressed",
    b"\xfd7zXZ": "compressed", b"Rar!": "compressed", b"7z\xbc\xaf": "compressed", b"\x18\x00\x00\x00TFL3": "tflite",
    b"\x1c\x00\x00\x00TFL3": "tflite", b" \x00\x00\x00TFL3": "tflite",
}  # fmt: skip


def _kind_of_archive(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as e:
        raise InvalidInput(f"{path} is a torn or damaged zip archive ({e}); copy or download it again") from e
    if any(n.endswith(("archive_format", "serialized_exported_program.json", "models/model.json")) for n in names):
        return "pt2"
    if any(n.endswith("constants.pkl") or "/code/" in n for n in names):
        return "torchscript"
    if any(n.endswith("data.pkl") for n in names):
        return "torch"
    if names and all(n.endswith(".npy") for n in names):
        return "npz"
    return "keras" if any(n.endswith((".weights.h5", "saved_model.pb")) for n in names) else "zip"


REFUSED = {
    "torchscript": f"is a TorchScript archive, which is a program; in the code that made it, {_EXPORT}",
    "pickle": f"is a pickle, and reading one can run any code; in the code that made it, {_SAVE}",
    "npz": f"is a NumPy archive (.npz): data, or arrays without a network; {_SAVE}",
    "numpy": f"is a NumPy array (.npy), not a set of named weights; {_SAVE}",
    "hdf5": "is an HDF5 file (Keras?); convert the network to ONNX (tf2onnx) and give the .onnx file as the model",
    "keras": "is a Keras or TensorFlow model; convert it to ONNX (tf2onnx) and give the .onnx file as the model",
    "tflite": "is a TensorFlow Lite model; convert it to ONNX (tf2onnx) and give the .onnx file as the model",
    "gguf": "is a GGUF file of a language model; nonsingular takes classifiers",
    "compressed": "is compressed; unpack it and give a file in it",
    "zip": "is a zip archive of other files; unpack it and give a file in it",
    "index": "is the index of weights in several files; merge them into one safetensors file",
    "json": f"is a JSON file, not weights; {_SAVE}",
    "text": f"is a text file, not weights; {_SAVE}",
    "unknown": f"is not a file of weights that nonsingular knows; {_SAVE}",
}
"""Kinds that hold no usable weights -> what they are, and what to do."""

# --- the tensors of a file ------------------------------------------------------------------------------------------------


StateDicts = dict[str, dict[str, Tensor]]
"""Where in a file they lie ("" for the file itself, "state_dict", "model[0]") -> names -> tensors."""


def read_weights(path: Path) -> StateDicts:
    """Every state dict in a safetensors file or in a torch file (.pt, .pth, .ckpt), on the CPU, the outermost first.

    They may lie in mappings and lists ({"state_dict": [...], "epoch": 3}).  Never unpickles anything but tensors.
    Raises InvalidInput for every other kind of file, which it names, and for a damaged one.
    """
    kind = kind_of(path)
    if kind in ("onnx", "pt2"):
        raise InvalidInput(f"{path} holds a whole model; give it as the model, without --weights")
    if kind in REFUSED:
        raise InvalidInput(f"{path} {REFUSED[kind]}")
    return {"": read_tensors(path)[0]} if kind == "safetensors" else _read_torch(path)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.  Raises InvalidInput if it is missing, truncated or something else."""
    try:
        with safe_open(path, framework="pt") as f:
            file: Any = f
            return {k: file.get_tensor(k) for k in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except FileNotFoundError as e:
        raise InvalidInput(f"there is no file {path}") from e
    except (SafetensorError, OSError) as e:
        raise InvalidInput(
            f"{path} is not a whole safetensors file ({e}); delete it and train again, "
            "or save weights with safetensors.torch.save_file"
        ) from e


def _check_torch(path: Path) -> None:
    """Raises InvalidInput for an archive that torch.save does not write, and for a pickle that asks for memory."""
    try:
        if not zipfile.is_zipfile(path):  # torch.save before 1.6: pickles, and then the numbers
            with path.open("rb") as f:
                return check_pickle(path, f.read(PICKLE))
        with zipfile.ZipFile(path) as archive:
            for entry in entries(archive, path, packed=False):
                if entry.filename.endswith("data.pkl"):
                    check_pickle(path, archive.read(entry))
    except InvalidInput:
        raise
    except BROKEN as e:
        raise InvalidInput(f"{path} is a torn or damaged file of weights ({e}); copy or download it again") from e


def _read_torch(path: Path) -> StateDicts:
    _check_torch(path)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:
        named = re.search(r"(?:GLOBAL|Unsupported global:) *(?:GLOBAL)? *([\w.]+)", str(e))
        what = f"objects ({named.group(1)})" if named else "more than tensors"
        whole = "a whole pickled model" if named and not named.group(1).startswith(("numpy", "argparse")) else "a checkpoint"
        raise InvalidInput(
            f"{path} is {whole} with {what}, and reading these can run any code; in the code that made it, {_SAVE}"
        ) from e
    except Exception as e:  # a torn pickle can fail anywhere in its reader
        why = (str(e).strip().splitlines() or [type(e).__name__])[0]
        raise InvalidInput(f"{path} is a torn or damaged file of weights ({why}); copy or download it again") from e
    inside = _state_dicts(found)
    if not inside:
        holds = f"the keys {listed(sorted(map(str, found)))}" if isinstance(found, Mapping) else f"a {type(found).__name__}"
        raise InvalidInput(f"{path} has no state dict: it holds {holds}; save torch.save(model.state_dict(), ...)")
    return inside


def _state_dicts(found: Any, label: str = "", depth: int = DEPTH) -> StateDicts:
    """The mappings of names to tensors in a checkpoint; numbers and text beside the tensors of one are left out."""
    if depth < 0 or not isinstance(found, Mapping | list | tuple):
        return {}
    inside = StateDicts()
    if isinstance(found, Mapping):
        values = cast("Mapping[Any, Any]", found)
        own = {k: v for k, v in values.items() if isinstance(k, str) and isinstance(v, Tensor)}
        if own:
            inside[label] = own
        within = {f"{label}.{k}" if label else str(k): v for k, v in values.items() if not _NO_NETWORKS.search(str(k))}
    else:
        within = {f"{label}[{i}]": v for i, v in enumerate(cast("list[Any]", found)[:16])}
    for name, value in within.items():
        inside |= _state_dicts(value, name, depth - 1)
    return inside


def listed(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
