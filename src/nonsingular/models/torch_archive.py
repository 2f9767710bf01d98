"""torch_archive.py - the archive that torch.export writes (.pt2), looked through entry by entry and written anew.

torch reads such a file with pickle, sympify, importlib, getattr and generated code.  It is given neither the file nor its bytes,
but an archive of our own: what is needed of what was found to be harmless.  What is not allowed by name or form does not pass.
Left out, because nothing here needs it: stack traces and other metadata, guards, sample inputs, extra files.
"""

from __future__ import annotations

import ast
import importlib
import io
import json
import math
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch

from nonsingular.errors import InvalidInput
from nonsingular.models.fx_writer import is_taken
from nonsingular.untrusted import BROKEN, archived, entries, is_identifier, is_path, json_of

AGAIN = "export it again with torch.export.export(model.eval(), (x,), dynamic_shapes=({0: torch.export.Dim('batch')},))"
_RECORDS = re.compile(
    r"([^/]+/)?(archive_format|archive_version|byteorder|\.data/version|version|serialized_exported_program\.json"
    r"|models/model\.json|data/weights/(model_weights_config\.json|weight_\d+)|data/constants/(model_constants_config\.json|tensor_\d+)"
    r"|data/(weights|constants|sample_inputs)/model\.pt|serialized_(state_dict|constants|example_inputs)\.pt)",
    re.ASCII,
)
"""The entries that are handed on."""
_CODE = re.compile(r"(custom|opaque)_obj_|aotinductor|executorch|\.(so|pkl|py|pyd|dll|dylib|cubin|cpp)$")
_SMALL = 100
"""Bytes of an entry that holds one word."""


def checked_archive(path: Path) -> io.BytesIO:
    """What torch.export.load may read in place of the file.  Raises InvalidInput for what no export of a network writes."""
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {e.filename: e.file_size for e in entries(archive, path, packed=False)}
            for name in sizes:
                if _CODE.search(name):
                    raise InvalidInput(f"{path} holds '{name}', which is code or a pickled object; {AGAIN}")
            kept = {name: _record(path, archive, name, sizes) for name in sizes if _RECORDS.fullmatch(name)}
    except InvalidInput:
        raise
    except BROKEN as e:
        raise InvalidInput(f"{path} is a torn or damaged archive ({e}); copy or download it again") from e
    if len({name.partition("/")[0] for name in kept if "/" in name}) > 1:
        raise InvalidInput(f"{path} holds files of several models; {AGAIN}")
    return archived(kept.items())


def _record(path: Path, archive: zipfile.ZipFile, name: str, sizes: Mapping[str, int]) -> bytes:
    """What stands in the new archive under the name of an entry of the old one."""
    if re.search(r"sample_inputs|example_inputs", name):
        return b""
    if name.endswith(".json"):
        found = json_of(f"'{name}' in {path}", archive.read(name)) if sizes[name] <= _MOST_JSON else _too_large(path, name)
        found = _Checked(path).value("", found)
        if name.endswith("_config.json"):
            _check_sizes(path, found, sizes, name.rpartition("/")[0])
        return json.dumps(found).encode()
    if name.endswith(".pt"):
        return _tensors_alone(path, name, archive.read(name))
    if not re.search(r"(weight|tensor)_\d+$", name) and sizes[name] > _SMALL:
        raise InvalidInput(f"'{name}' in {path} holds {sizes[name]} bytes, where an export has a word; {AGAIN}")
    return archive.read(name)


_MOST_JSON = 2**25


def _too_large(path: Path, name: str) -> Any:
    raise InvalidInput(f"'{name}' in {path} is larger than the {_MOST_JSON // 2**20} MiB of JSON that are read; {AGAIN}")


def _tensors_alone(path: Path, name: str, data: bytes) -> bytes:
    """The mapping of names to tensors in an entry of older versions of torch, written again."""
    try:
        found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as e:  # a crafted pickle can fail anywhere in its reader
        raise InvalidInput(f"'{name}' in {path} holds more than tensors, or is damaged; {AGAIN}") from e
    if not isinstance(found, Mapping) or not all(
        is_path(k) and isinstance(v, torch.Tensor) for k, v in cast("Mapping[Any, Any]", found).items()
    ):
        raise InvalidInput(f"'{name}' in {path} is not a mapping of names to tensors; {AGAIN}")
    stream = io.BytesIO()
    torch.save(dict(cast("Mapping[str, torch.Tensor]", found)), stream)
    return stream.getvalue()


def _check_sizes(path: Path, found: Any, sizes: Mapping[str, int], folder: str) -> None:
    """Raises InvalidInput if a tensor claims more numbers than its entry holds."""
    config = found.get("config") if isinstance(found, dict) else None
    for name, meta in (cast("dict[str, Any]", config) if isinstance(config, dict) else {}).items():
        try:
            held = sizes[f"{folder}/{meta['path_name']}"]
            shape = [int(s["as_int"]) for s in meta["tensor_meta"]["sizes"]]
        except (KeyError, TypeError, ValueError) as e:
            raise InvalidInput(f"'{name}' in {path} has no shape or no numbers; {AGAIN}") from e
        if min(shape, default=0) < 0 or math.prod(shape) > held:
            raise InvalidInput(f"'{name}' in {path} declares the shape {tuple(shape)} in {held} bytes; {AGAIN}")


# --- the records in JSON --------------------------------------------------------------------------------------------------

_DROPPED: dict[str, Any] = {"metadata": {}, "guards_code": [], "treespec_namedtuple_fields": {}}
_REFUSED = frozenset({"as_operator", "as_graph", "as_custom_obj", "custom_obj", "as_string_to_argument"})
_NAMES = frozenset({"name", "as_name", "forward_arg_names"})
_PARAMETERS = frozenset({"parameter_name", "buffer_name", "tensor_constant_name"})
_WORDS = re.compile(r"[\w ,.>-]{0,200}", re.ASCII)
"""Texts that operations take: "tanh", "floor", "bij,bjk->bik"."""
_VERSION = re.compile(r"[\w.+<=]{0,60}", re.ASCII)


class _Checked:
    """Walks through a record; every text in it must have the form that belongs to its place."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def value(self, key: str, found: Any, depth: int = 0) -> Any:
        """The value under a key, without what is left out.  Raises InvalidInput for any other form than an export has."""
        if depth > 40:
            raise InvalidInput(f"{self.path} nests its records too deeply; {AGAIN}")
        if key in _DROPPED:
            return _DROPPED[key]
        if isinstance(found, dict):
            return self.mapping(key, cast("dict[str, Any]", found), depth)
        if isinstance(found, list):
            return [self.value(key, v, depth + 1) for v in cast("list[Any]", found)]
        if isinstance(found, str):
            self.text(key, found)
        elif isinstance(found, int) and abs(found) >= 2**63:
            raise InvalidInput(f"{self.path} holds a number of more than 64 bits at '{key}'; {AGAIN}")
        return found

    def mapping(self, key: str, found: dict[str, Any], depth: int) -> dict[str, Any]:
        if found.get("use_pickle") or (key == "custom_obj_values" and found):
            raise InvalidInput(f"{self.path} holds a pickled object; {AGAIN}")
        if refused := _REFUSED & found.keys():
            raise InvalidInput(f"{self.path} holds '{min(refused)}', which is more than tensors and numbers; {AGAIN}")
        new: dict[str, Any] = {}
        for name, v in found.items():
            if not (is_path(name) or name == "") or (key == "range_constraints" and not re.fullmatch(r"[a-z]{1,4}\d{1,4}", name)):
                raise self.illegal(key, name)
            if key == "config" and is_taken(name):
                raise self.illegal(key, name)
            if name == "name" and "arg" in found:  # that of an argument of an operation, found in its schema
                if v is not None and v != "" and not (isinstance(v, str) and re.fullmatch(r"[A-Za-z_]\w*", v, re.ASCII)):
                    raise self.illegal(name, v)
                new[name] = v
                continue
            new[name] = self.value(name, v, depth + 1)
        return new

    def text(self, key: str, text: str) -> None:
        if key == "target":
            if not is_operation(text):
                raise InvalidInput(
                    f"{self.path} calls '{text[:80]}', which is not a tensor operation of torch; export a plain nn.Module"
                )
        elif key == "expr_str":
            if not is_expression(text):
                raise InvalidInput(f"{self.path} has the size {text[:60]!r}, which is not an expression of sizes; {AGAIN}")
        elif key in ("in_spec", "out_spec"):
            if not _is_spec(text):
                raise InvalidInput(f"{self.path} has inputs or outputs of another form than tuples, lists and dicts; {AGAIN}")
        elif not self.fits(key, text):
            raise self.illegal(key, text)

    def fits(self, key: str, text: str) -> bool:
        if text == "":
            return True
        if key in _NAMES:
            return is_identifier(text)
        if key in ("as_string", "as_strings"):
            return bool(_WORDS.fullmatch(text))
        if key == "torch_version":
            return bool(_VERSION.fullmatch(text))
        return is_path(text) and not (key in _PARAMETERS and is_taken(text))

    def illegal(self, key: str, name: Any) -> InvalidInput:
        where = f" at '{key}'" if key else ""
        return InvalidInput(
            f"{self.path} holds the name {str(name)[:80]!r}{where}; names are ASCII letters, digits and _, joined by dots, "
            f"and none that Python or nn.Module uses itself: rename it and {AGAIN}"
        )


_TARGET = re.compile(
    r"torch\.(?:ops|_ops)\.(aten|prims|torchvision)\.(\w+)\.(\w+)"
    r"|torch\.sym_(?:int|float|max|min|not|ite|sum|sqrt)|math\.(?:ceil|floor|trunc|sqrt)"
    r"|_operator\.(?:add|sub|mul|truediv|floordiv|mod|neg|getitem|eq|ne|lt|le|gt|ge|and_|or_|not_)",
    re.ASCII,
)
_MAKERS = frozenset({
    "arange", "empty", "eye", "full", "linspace", "ones", "rand", "randn", "randint", "randperm", "scalar_tensor", "tril_indices",
    "triu_indices", "zeros", "iota", "_assert_scalar", "sym_constrain_range", "sym_constrain_range_for_size",
})  # fmt: skip
"""Operations without a tensor among their arguments that a network may have."""
_FORBIDDEN = frozenset(
    {"from_file", "save", "set_", "set", "resize", "resize_", "_resize_output", "_resize_output_", "record_stream"}
)
"""Those that touch files, or memory that was never written."""


def is_operation(target: str) -> bool:
    """Whether a target is an operation of torch on tensors or sizes, without files and without code.

    >>> is_operation("torch.ops.aten.relu.default"), is_operation("torch.ops.aten.from_file.default")
    (True, False)
    >>> is_operation("torch.os.system"), is_operation("torch.ops.aten.__class__.__init__")
    (False, False)
    """
    match = _TARGET.fullmatch(target)
    if not match:
        return _on_words(target)
    space, name, overload = match.groups()
    if space is None:
        return True
    if name in _FORBIDDEN or (space == "torchvision" and not re.fullmatch(r"nms|(ps_)?roi_(align|pool)|deform_conv2d", name)):
        return False
    found: Any = getattr(getattr(getattr(torch.ops, space), name, None), overload, None)
    if not isinstance(found, torch._ops.OpOverload):  # pyright: ignore[reportPrivateUsage]
        return False
    arguments = [str(a.type) for a in found._schema.arguments]  # pyright: ignore[reportPrivateUsage]
    return name in _MAKERS or any("Tensor" in kind for kind in arguments)


def _on_words(target: str) -> bool:
    """Whether it is an operation of quantised layers.  torch knows these once a module of its own is imported."""
    if not re.fullmatch(r"torch\.ops\.quantized_decomposed\.(de)?quantize_per_(tensor|channel)\.default", target, re.ASCII):
        return False
    importlib.import_module("torch.ao.quantization.fx._decomposed")
    return True


_CALLS = frozenset({
    "Symbol", "Integer", "Rational", "Float", "Add", "Mul", "Pow", "Mod", "Max", "Min", "Eq", "Ne", "Lt", "Le", "Gt", "Ge", "And",
    "Or", "Not", "Equality", "Unequality", "StrictLessThan", "LessThan", "StrictGreaterThan", "GreaterThan", "FloorDiv",
    "ModularIndexing", "Where", "PythonMod", "CleanDiv", "CeilToInt", "FloorToInt", "CeilDiv", "LShift", "RShift", "PowByNatural",
    "FloatPow", "FloatTrueDiv", "IntTrueDiv", "IsNonOverlappingAndDenseIndicator", "TruncToFloat", "TruncToInt", "RoundToInt",
    "RoundDecimal", "ToFloat", "Identity",
})  # fmt: skip
_SIZE = re.compile(r"[a-z]{1,4}\d{1,4}|int_oo|oo|True|False", re.ASCII)
_KEYWORDS = frozenset({"positive", "integer", "negative", "nonnegative", "real", "evaluate", "finite", "zero"})
_PLAIN = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.Load, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv,
    ast.Mod, ast.USub, ast.UAdd, ast.And, ast.Or, ast.Not, ast.cmpop,
)  # fmt: skip
_POWERS = frozenset({"Pow", "PowByNatural", "FloatPow", "LShift"})


def is_expression(text: Any) -> bool:
    """Sums and products of numbers and named sizes, and calls of the functions that torch writes sizes with.

    No attribute, index, underscore or large power: sympify evaluates what stands here.

    >>> is_expression("2*s0 + Max(1, s1)"), is_expression("open('x')"), is_expression("9**9**9**9")
    (True, False, False)
    """
    if not isinstance(text, str) or not text.isascii() or len(text) > 4096:
        return False
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return len(nodes) <= 1000 and all(map(_is_plain, nodes))


def _is_plain(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        if not isinstance(node.func, ast.Name) or node.func.id not in _CALLS or len(node.args) > 16:
            return False
        return node.func.id not in _POWERS or (len(node.args) == 2 and _is_small(node.args[1]))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        return _is_small(node.right)
    if isinstance(node, ast.Name):
        return node.id in _CALLS or bool(_SIZE.fullmatch(node.id))
    if isinstance(node, ast.keyword):
        return node.arg in _KEYWORDS and isinstance(node.value, ast.Constant)
    if isinstance(node, ast.Constant):
        if isinstance(node.value, str):
            return bool(_SIZE.fullmatch(node.value))
        return isinstance(node.value, bool | float) or (isinstance(node.value, int) and abs(node.value) < 2**63)
    return isinstance(node, (*_PLAIN, ast.Pow))


def _is_small(node: ast.AST) -> bool:
    """A power that stays a number of a few digits."""
    if isinstance(node, ast.UnaryOp):
        node = node.operand
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Integer" and len(node.args) == 1:
        node = node.args[0]
        node = node.operand if isinstance(node, ast.UnaryOp) else node
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float) and abs(node.value) <= 8


def _is_spec(text: str) -> bool:
    """A tree of tuples, lists and dicts with plain keys; torch imports whatever module another kind of node names."""
    try:
        found = json.loads(text)
        version, tree = found
    except (ValueError, TypeError, RecursionError):
        return False
    return version == 1 and _is_tree(tree)


def _is_tree(node: Any, depth: int = 0) -> bool:
    if depth > 20 or not isinstance(node, dict) or node.keys() != {"type", "context", "children_spec"}:
        return False
    kind, context, children = node["type"], node["context"], node["children_spec"]
    if not isinstance(children, list) or len(cast("list[Any]", children)) > 1000:
        return False
    if kind is None:
        return context is None and not children
    if kind in ("builtins.tuple", "builtins.list"):
        legal = context in ("null", None)
    else:
        legal = (
            kind == "builtins.dict"
            and isinstance(context, str)
            and bool(re.fullmatch(r'\[("\w{1,99}"(, "\w{1,99}")*)?\]', context, re.ASCII))
        )
    return legal and all(_is_tree(child, depth + 1) for child in cast("list[Any]", children))
