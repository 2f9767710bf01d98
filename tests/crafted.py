"""crafted.py - files that try to run code, and mutations that know the formats: names, sizes, texts and structure.

Every text that is put into a file carries CANARY where it would be run or looked up.  `watched` sees what Python compiles,
imports, opens and starts while a file is read.
"""

from __future__ import annotations

import ast
import io
import json
import pickle
import random
import re
import struct
import sys
import warnings
import zipfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

CANARY = "canary_of_the_tests"
"""A name that no library knows."""
CALL = f"__import__('os').system('touch {CANARY}')"
NAMES = [
    f'" if getattr(__import__("os"), "system")("touch {CANARY}") else "a',
    f"input=__import__('os').system('touch {CANARY}')",
    f"x=({CALL})",
    f"a; {CALL}",
    f"a\n    {CALL}\n    b",
    f"a'+{CALL}+'",
    f"{{{CANARY}}}",
    f"*{CANARY}",
    f"a: {CALL}",
    f"{CANARY}.{CANARY}",
    f"torch.ops.{CANARY}.f.default",
    f"os.system('touch {CANARY}')",
    f"../../{CANARY}",
    f"/tmp/{CANARY}",
    f"{CANARY}:system",
    f"\uff4fs.system('{CANARY}')",
    f"{CANARY}\x00b",
    f"\u202e{CANARY}",
    f"\x1b]0;{CANARY}\x07",
    "__class__",
    "__init__.__globals__",
    "forward",
    "_parameters",
    "lambda",
    "self",
    "torch",
    "builtins.exec",
    "",
    "a" * 5000,
    "0.weight",
    "weight",
    "%s%n",
    "{0.__class__}",
    "=1+2",
]
"""What a name in a file may be."""
TEXTS = [
    *NAMES,
    CALL,
    f"Symbol('{CANARY}')",
    f"S('{CALL}')",
    f"Lambda(x, {CALL})",
    f"().__class__.__mro__[1].__subclasses__() or {CANARY}",
    "9**9**9**9",
    "torch.ops.aten.from_file.default",
    "torch.ops.aten.save.default",
    "torch.os.system",
    "torch.hub.load",
    "_operator.attrgetter",
    "_operator.methodcaller",
    "torch._dynamo.eval_frame.torch.os.system",
    "torch.ops.aten.relu.default",
    "torch.ops.aten.full.default",
    "torch.load",
    f'[1, {{"type": "collections.defaultdict", "context": "{{\\"default_factory_module\\": \\"{CANARY}\\", '
    f'\\"default_factory_name\\": \\"f\\", \\"dict_context\\": []}}", "children_spec": []}}]',
    f'[1, {{"type": "builtins.dict", "context": "{{\\"__enum__\\": true, \\"fqn\\": \\"{CANARY}:A\\", \\"name\\": \\"b\\"}}", '
    '"children_spec": []}]',
    json.dumps([CANARY] * 3),
    "s0",
    "2*s31",
]
"""What any other text may be."""
NUMBERS = [0, 1, -1, 2, 3, 8, 255, 2**31 - 1, 2**31, 2**63 - 1, 2**63, -(2**63), 10**40, 0.5, 1e308, True, False, None]

# --- what is watched ---------------------------------------------------------------------------------------------------------

_SEEN: list[str] = []
_ON = [False]
_STARTS = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "subprocess.Popen", "pty.spawn", "ctypes.dlopen")


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if not _ON[0]:
        return
    if event.startswith(_STARTS):
        _SEEN.append(f"{event} {args!r}"[:300])
    elif event == "compile" and CANARY in _source(args[0]):
        _ON[0] = False
        if not _parsed_only() and _calls(_source(args[0])):
            _SEEN.append(f"compile {_source(args[0])}"[:300])
        _ON[0] = True
    elif event == "import" and CANARY in str(args[0]):
        _SEEN.append(f"import {args[0]}")
    elif (
        event == "open"
        and isinstance(args[0], str)
        and CANARY in args[0]
        and isinstance(args[2], int)
        and args[2] & (1 | 2 | 64)  # for writing
    ):
        _SEEN.append(f"open {args[0]}")


def _source(source: Any) -> str:
    return source.decode("latin1") if isinstance(source, bytes) else source if isinstance(source, str) else ""


def _calls(source: str) -> bool:
    """Whether a source that is compiled calls more than methods and functions of torch; names made legal are no calls."""
    try:
        nodes = list(ast.walk(ast.parse(source)))
    except SyntaxError:
        return True
    called = [ast.unparse(n.func) for n in nodes if isinstance(n, ast.Call)]
    defaults = [
        d for n in nodes if isinstance(n, ast.FunctionDef) for d in (*n.args.defaults, *n.args.kw_defaults) if d is not None
    ]
    return bool(defaults) or any(re.search(r"__import__|system|\b(exec|eval|compile|open|__\w+__)\b", c) for c in called)


def _parsed_only() -> bool:
    """Whether the caller only parses: ast.parse and ast.literal_eval compile into a tree, and run nothing."""
    frame: Any = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_filename.endswith("/ast.py") and frame.f_code.co_name == "parse":
            return True
        frame = frame.f_back
    return False


@contextmanager
def watched() -> Generator[None]:
    """Raises AssertionError if what is done starts a process, compiles or imports a canary, or leaves one on the disk."""
    if _hook not in _HOOKED:
        sys.addaudithook(_hook)
        _HOOKED.append(_hook)
    _SEEN.clear()
    _ON[0] = True
    try:
        yield
    finally:
        _ON[0] = False
        left = [p for p in (Path(CANARY), Path("/tmp") / CANARY) if p.exists()]
        for p in left:
            p.unlink()
        assert not _SEEN, f"code of a file was run: {_SEEN}"
        assert not left, f"code of a file left {left}"


_HOOKED: list[Any] = []

# --- structures --------------------------------------------------------------------------------------------------------------


def places(value: Any, path: tuple[Any, ...] = ()) -> Generator[tuple[Any, ...]]:
    """The paths of all values within a value of JSON, its own first."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, v in inner:
        yield from places(v, (*path, key))


def mutated(rng: random.Random, value: Any, times: int = 0) -> Any:
    """A value of JSON after some changes of names, texts, numbers and structure."""
    value = json.loads(json.dumps(value))
    for _ in range(times or rng.choice([1, 1, 1, 2, 4])):
        *path, last = rng.choice([p for p in places(value) if p] or [(None,)])
        if last is None:
            return rng.choice(TEXTS)
        holder = value
        for step in path:
            holder = holder[step]
        holder_keys = list(holder) if isinstance(holder, dict) else []
        match rng.randrange(8):
            case 0 | 1 if holder_keys:
                name = rng.choice(NAMES)  # of a key, and of every value that was called so: consistent, as a careful attacker is
                value = _renamed(value, str(last), name) if rng.random() < 0.7 else value
                if rng.random() < 0.5 and last in holder:
                    holder[name] = holder.pop(last)
            case 2 | 3 if isinstance(holder[last], str):
                old, new = holder[last], rng.choice(TEXTS)
                value = _renamed(value, old, new) if rng.random() < 0.6 else value
                if isinstance(holder, list) or last in holder:
                    holder[last] = new
            case 4:
                holder[last] = rng.choice(NUMBERS)
            case 5:
                del holder[last]
            case 6:
                holder[last] = rng.choice([[], {}, [holder[last]] * 3, {"a": holder[last]}, {rng.choice(NAMES): holder[last]}])
            case _:
                holder[last] = rng.choice(TEXTS)
    return value


def _renamed(value: Any, old: str, new: str) -> Any:
    """The same with one text in place of another, as keys and as values."""
    if isinstance(value, dict):
        return {new if k == old else k: _renamed(v, old, new) for k, v in value.items()}
    if isinstance(value, list):
        return [_renamed(v, old, new) for v in value]
    return new if value == old else value


# --- zip archives ------------------------------------------------------------------------------------------------------------


def files_of(archive: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(archive)) as z:
        return {n: z.read(n) for n in z.namelist()}


def zipped(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(stream, "w") as z:
        warnings.simplefilter("ignore")
        for name, data in files.items():
            z.writestr(zipfile.ZipInfo(name), data)
    return stream.getvalue()


def zip_mutated(rng: random.Random, archive: bytes, other: bytes) -> bytes:
    """An archive with other names, entries twice, fields of its directory changed, or another archive before or behind it."""
    match rng.randrange(8):
        case 0:
            return other + archive if rng.random() < 0.5 else archive + other
        case 1:
            return rng.choice([b"\x00" * 64, b"PK\x03\x04", CALL.encode()]) + archive
        case 2:  # an entry twice
            files, stream = files_of(archive), io.BytesIO()
            with warnings.catch_warnings(), zipfile.ZipFile(stream, "w") as z:
                warnings.simplefilter("ignore")
                for name, data in [*files.items(), *rng.sample(sorted(files_of(other).items()), 1)]:
                    z.writestr(zipfile.ZipInfo(name), data)
            return stream.getvalue()
        case 3:  # other names
            files = list(files_of(archive).items())
            i = rng.randrange(len(files))
            old = files[i][0]
            near = [f"../{old}", f"/{old}", f"{old}/", f"evil/{old}", old.replace("weight_", "custom_obj_"), old.upper()]
            name = rng.choice([*NAMES, *near, f"a/extra/{CANARY}.so"])
            files[i] = (name.replace("\x00", "") or "a", files[i][1])
            return zipped(dict(files))
        case 4:  # packed
            stream = io.BytesIO()
            with zipfile.ZipFile(stream, "w", rng.choice([zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])) as z:
                for name, data in files_of(archive).items():
                    z.writestr(name, data)
            return stream.getvalue()
        case _:  # fields of the directory and of the local headers
            data = bytearray(archive)
            at = [i for i in range(len(data) - 4) if data[i : i + 4] in (b"PK\x01\x02", b"PK\x05\x06", b"PK\x03\x04")]
            start, field = rng.choice(at), rng.randrange(4, 46)
            value = rng.choice([0, 1, 8, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, rng.randrange(2**16), rng.randrange(len(data))])
            data[start + field : start + field + 4] = struct.pack("<I", value)
            return bytes(data)


# --- whole files -------------------------------------------------------------------------------------------------------------


class Trap:
    """Leaves a canary when it is unpickled."""

    def __reduce__(self) -> Any:
        import os

        return os.mkdir, (CANARY,)


def network(kind: int = 0) -> nn.Module:
    torch.manual_seed(0)
    if kind == 0:
        return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.GELU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 2)).eval()


@cache
def exported(kind: int = 0) -> bytes:
    """A whole .pt2 file."""
    x = torch.zeros(3, 4) if kind == 0 else torch.zeros(3, 1, 6, 6)
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(network(kind), (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        torch.export.save(program, stream)
    return stream.getvalue()


def with_model(archive: bytes, change: Callable[[str, Any], Any]) -> bytes:
    """The archive with each of its records in JSON changed."""
    files = files_of(archive)
    records = {n: json.dumps(change(n, json.loads(data))).encode() for n, data in files.items() if n.endswith(".json")}
    return zipped(files | records)


def everywhere(old: str, new: str) -> Callable[[str, Any], Any]:
    """Another text in place of one, in every record."""
    return lambda name, found: _renamed(found, old, new)


def pt2(rng: random.Random) -> bytes:
    """A .pt2 file that something is wrong with."""
    kind = rng.randrange(2)
    whole = exported(kind)
    match rng.randrange(10):
        case 0 | 1:
            evil = with_model(whole, everywhere("Symbol('s31', positive=True, integer=True)", CALL))
            return zip_mutated(rng, whole, evil)
        case 2:
            files = files_of(whole)
            name = rng.choice([n for n in files if not n.endswith(".json")])
            return zipped(files | {name: rng.choice([pickle.dumps(Trap()), b"", files[name] * 2, files[name][:3]])})
        case 3:
            return with_model(whole, everywhere(rng.choice(_texts(kind)), rng.choice(NAMES)))
        case _:
            part = "models/model.json" if rng.random() < 0.8 else "_config.json"
            return with_model(whole, lambda name, found: mutated(rng, found) if name.endswith(part) else found)


@cache
def _texts(kind: int) -> list[str]:
    """All texts and keys in the records of a whole file."""
    found: set[str] = set()
    for name, data in files_of(exported(kind)).items():
        if name.endswith(".json"):
            value = json.loads(data)
            for path in places(value):
                inner = value
                for step in path:
                    inner = inner[step]
                found |= {inner} if isinstance(inner, str) else set(map(str, inner)) if isinstance(inner, dict) else set()
    return sorted(found)


def state_dict(rng: random.Random) -> bytes:
    """A torch state dict or checkpoint that something is wrong with."""
    weights: Any = network().state_dict()
    held = rng.choice([weights, {"state_dict": weights}, {"model": weights, "epoch": 3}, [weights], {rng.choice(NAMES): weights}])
    if rng.random() < 0.3 and isinstance(held, dict):
        held = {rng.choice(NAMES) if rng.random() < 0.5 else k: v for k, v in held.items()}
    if rng.random() < 0.2:
        held = {"a": Trap(), "state_dict": weights}
    stream = io.BytesIO()
    torch.save(held, stream, _use_new_zipfile_serialization=rng.random() < 0.7)
    whole = stream.getvalue()
    if not whole.startswith(b"PK"):
        return pickled(rng, whole)
    if rng.random() < 0.4:
        return zip_mutated(rng, whole, zipped({"archive/data.pkl": pickle.dumps(Trap(), protocol=2)}))
    files = files_of(whole)
    name = next(n for n in files if n.endswith("data.pkl"))
    return zipped(files | {name: pickled(rng, files[name])})


def pickled(rng: random.Random, data: bytes) -> bytes:
    """A pickle with other globals, texts, numbers or instructions."""
    changed = bytearray(data)
    match rng.randrange(5):
        case 0:
            known = [b"ctorch._utils\n_rebuild_tensor_v2\n", b"ccollections\nOrderedDict\n", b"ctorch\nFloatStorage\n"]
            name = rng.choice([
                b"cos\nsystem\n", b"cbuiltins\nexec\n", b"cbuiltins\nbytearray\n", b"cbuiltins\neval\n", b"ctorch\nFloatTensor\n",
                b"ctorch.storage\nUntypedStorage\n", b"csubprocess\nPopen\n", b"ctorch\nload\n", b"ctorch.hub\nload\n",
                b"cbuiltins\ngetattr\n", CANARY.join("c\n").encode() + b"f\n",
            ])  # fmt: skip
            return data.replace(rng.choice(known), name)
        case 1:
            return pickle.dumps(Trap(), protocol=rng.choice([0, 2, 4])) + data
        case 2 if len(changed) > 40:
            at = rng.randrange(2, len(changed) - 2)
            changed[at : at + 1] = rng.choice(
                [b"R", b"b", b"i", b"o", b"\x81", b"0", b"2", b"(", b"t", b"\x93", b"Q", b"q\x00", b"h\x00"]
            )
        case 3:
            at = rng.randrange(len(changed))
            changed[at:at] = f"cos\nsystem\nX\x10\x00\x00\x00touch {CANARY}"[:40].encode() + b"\x85R."
        case _:
            at = rng.randrange(len(changed))
            changed[at : at + 4] = struct.pack("<I", rng.choice([0, 1, 2**31 - 1, 2**32 - 1, rng.randrange(2**16)]))
    return bytes(changed)


def safetensors(rng: random.Random, metadata: dict[str, str] | None = None, tensors: Any = None) -> bytes:
    """A safetensors file whose header has other names, sizes and kinds of numbers."""
    from safetensors.torch import save

    whole = save(tensors or dict(network().state_dict()), metadata or {"built_for": '{"input_shape": [4], "classes": 2}'})
    n = int.from_bytes(whole[:8], "little")
    header = mutated(rng, json.loads(whole[8 : 8 + n]))
    text = json.dumps(header).encode()
    if rng.random() < 0.1:
        text = text.replace(b'"0.weight"', b'"0.bias"')  # a key twice
    size = len(text) if rng.random() < 0.9 else rng.choice([0, 1, 2**31, 2**63 - 1, len(text) + 5])
    return size.to_bytes(8, "little") + text + whole[8 + n :]


# --- ONNX, results -----------------------------------------------------------------------------------------------------------


@cache
def _whole_onnx() -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    tensors = [numpy_helper.from_array(t.numpy(), n) for n, t in network().state_dict().items()]
    nodes = [
        helper.make_node("Gemm", ["input", "0.weight", "0.bias"], ["a"], "first", transB=1),
        helper.make_node("Identity", ["2.weight"], ["w"], "copy"), helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Gemm", ["b", "w", "2.bias"], ["output"], "last", transB=1, alpha=1.0),
    ]  # fmt: skip
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", k]) for n, k in (("input", 4), ("output", 2))]
    graph = helper.make_graph(nodes, "graph", ends[:1], ends[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def onnx(rng: random.Random) -> bytes:
    """An ONNX file with other names, operators, attributes and sizes."""
    from google.protobuf import json_format
    from onnx import ModelProto

    model = ModelProto.FromString(_whole_onnx())
    value = json_format.MessageToDict(model)
    if rng.random() < 0.4:  # a name wherever it stands
        names = ["0.weight", "0.bias", "2.weight", "a", "b", "w", "input", "output", "first", "graph", "batch", "Gemm", "Relu"]
        value = _renamed(
            value, rng.choice(names), rng.choice([*NAMES, "Loop", "If", "ImageDecoder", "RegexFullMatch", "ConstantOfShape"])
        )
    else:
        value = mutated(rng, value)
    try:
        return json_format.ParseDict(value, ModelProto(), ignore_unknown_fields=True).SerializeToString()
    except (json_format.ParseError, UnicodeError, TypeError, ValueError, AttributeError, OverflowError):
        return _whole_onnx()[: rng.randrange(len(_whole_onnx()))]


@cache
def _results() -> str:
    import numpy as np

    from nonsingular.results.surface import FORMAT, Surface

    outcomes = np.array([[[1, 1], [1, 0]], [[1, 0], [0, 0]]], bool)
    surface = Surface(
        (0.0, 0.1), (0.0, 0.01), outcomes.mean(2), 2, "sample", "strongest", "net", flags={(1, 1): ("one-class",)},
        about={"clean_accuracy": 1.0, "model_sha256": "0", "moved": ["0.weight"]}, outcomes=outcomes,
    )  # fmt: skip
    found = surface.to_dict()
    return json.dumps({
        "format": FORMAT, "kind": "attacked", "scope": "sample", "attack": "strongest", "command": "nonsingular evaluate net",
        "data": {"name": "digits", "split": "test", "n": 2, "classes": ["cat", "dog"]},
        "grid": {"eps_x": [0.0, 0.1], "eps_w": [0.0, 0.01]}, "config": {"model": "net"}, "environment": {"platform": "Linux"},
        "models": {"net": {
            "title": "net", "settings": {"model": "net"}, "seeds": [0], "clean": [1.0], "auc": [found["auc"]],
            "auc_x": [found["auc_x"]], "auc_w": [found["auc_w"]], "surfaces": [found],
            "examples": {
                "by_class": {"n": [1, 1], "undisturbed": [1, 1], "cells": [{"eps_x": 0.1, "eps_w": 0.01, "right": [0, 0]}]},
                "first": [{
                    "example": 0, "label": 0, "predicted": 1, "eps_x": 0.1, "eps_w": 0.0, "margin_undisturbed": 1.0,
                    "margin": -0.1,
                    "input": {"numbers": [{"at": [0], "x": 0.1, "moved": 0.2}]},
                    "weights": [{"tensor": "0.weight", "largest": 1.0, "mean": 0.5}],
                }],
            },
            "masking": {
                "attack": "strongest", "scope": "sample", "examples": 2, "eps_x": 0.1, "eps_w": 0.01, "flags": {"x": "why"}
            },
        }},
    })  # fmt: skip


def results() -> Any:
    """results.json of a small run, as a value that may be changed."""
    return json.loads(_results())


def check_text(text: str) -> None:
    """Raises AssertionError if there are characters in a text that act instead of being seen."""
    import unicodedata

    text = text.replace('<tspan dy="-3">\u200b</tspan>', "")  # ours: it keeps the axis on its line
    odd = {c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") and c not in "\n\t\u200c\u200d"}
    assert not odd, f"control characters in an output: {odd}"
