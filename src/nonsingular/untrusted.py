"""untrusted.py - what a file may contain: names, unpacked size, JSON and zip archives.  The limits are the same for all readers.

Limits are checked on what a file declares before anything is read, so that a refused file costs little time and memory.
"""

from __future__ import annotations

import io
import json
import keyword
import math
import pickletools
import re
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from nonsingular.errors import InvalidInput

_IDENTIFIER = re.compile(r"[A-Za-z_]\w{0,254}", re.ASCII)
_PATH = re.compile(r"\w{1,255}(\.\w{1,255}){0,63}", re.ASCII)
SHADOWS = frozenset({"self", "torch", "getattr"})
"""What generated code itself calls by name."""
FLOOR, RATIO = 2**28, 100
"""What a file may unpack to: 256 MiB, or a hundred times its size where that is more."""
JSON = 2**25
"""Bytes of one JSON document, 32 MiB."""
ENTRIES = 2**16
"""Entries of one archive."""

# --- names ----------------------------------------------------------------------------------------------------------------


def is_identifier(name: object) -> bool:
    """Whether a name may stand in generated code: an ASCII identifier, no keyword, and none that Python uses itself.

    >>> is_identifier("p_0_weight"), is_identifier("input=f()"), is_identifier("lambda"), is_identifier("__class__")
    (True, False, False, False)
    """
    if not isinstance(name, str) or not _IDENTIFIER.fullmatch(name):
        return False
    return not keyword.iskeyword(name) and name not in SHADOWS and name[:2] != "__"


def is_path(name: object) -> bool:
    """Whether a name may be that of a parameter or module: words of ASCII letters, digits and _, joined by dots.

    Words may begin with a digit, as those in nn.Sequential do: in generated code they are quoted.

    >>> is_path("0.weight"), is_path('a"); f("'), is_path("a..b"), is_path("x.__dict__"), is_path("if.weight")
    (True, False, False, False, False)
    """
    return (
        isinstance(name, str)
        and bool(_PATH.fullmatch(name))
        and not any(word[:2] == "__" or keyword.iskeyword(word) for word in name.split("."))
    )


# --- sizes ----------------------------------------------------------------------------------------------------------------


def most(size: int) -> int:
    """Bytes that a file of `size` bytes may unpack to.

    >>> most(1000) == 2**28, most(10**9) == 10**11
    (True, True)
    """
    return max(FLOOR, RATIO * size)


def check_size(what: object, unpacked: int, size: int) -> None:
    """Raises InvalidInput if a file of `size` bytes claims to unpack to `unpacked` bytes, and that is more than is read."""
    if unpacked > most(size):
        raise InvalidInput(
            f"{what} declares {_bytes(unpacked)} in a file of {_bytes(size)}; at most {_bytes(most(size))} are read from it "
            f"({RATIO} times its size, and never less than {_bytes(FLOOR)}): write it uncompressed"
        )


def _bytes(n: int) -> str:
    return f"{n / 2**20:,.1f} MiB" if n >= 2**20 else f"{n:,} bytes"


def check_array(what: object, stream: Any, available: int) -> None:
    """Raises InvalidInput unless the .npy at the start of `stream`, of `available` bytes, has as many numbers as it declares.

    Raises the errors of NumPy for an invalid header.  Leaves the stream behind the header.
    """
    from numpy.lib import format as npy  # here: --help reads no array

    version = npy.read_magic(stream)
    read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    header: Any = getattr(npy, "_read_array_header", None)
    shape, _, dtype = read[version](stream) if version in read else header(stream, version)
    if dtype.hasobject:
        raise ValueError("Object arrays cannot be loaded: they are pickles")
    if any(n < 0 for n in shape):
        raise ValueError(f"its shape is {shape}")
    held = available - stream.tell()
    if math.prod(shape) * dtype.itemsize != held:
        wanted = math.prod(shape) * dtype.itemsize
        raise InvalidInput(f"{what} declares {shape} of {dtype}, {_bytes(wanted)}, and holds {_bytes(held)}; write it again")


# --- pickles --------------------------------------------------------------------------------------------------------------

PICKLE = 2**24
"""Bytes of a pickle of tensors, 16 MiB: the numbers of the tensors lie beside it."""
_MAKES_ROOM = re.compile(r"builtins bytearray|__builtin__ bytearray|torch(\.\w+)* \w*Tensor|torch\.storage \w*Storage")
"""Functions that torch.load allows and calls with a size from the file."""


def check_pickle(what: object, data: bytes) -> None:
    """Raises InvalidInput for a pickle that asks for memory beside its tensors.  torch decides whether it may be read at all."""
    if len(data) > PICKLE:
        raise InvalidInput(f"{what} has a pickle of {_bytes(len(data))} beside its tensors; at most {_bytes(PICKLE)} are read")
    try:
        for op, argument, _ in pickletools.genops(data):
            if op.name == "GLOBAL" and _MAKES_ROOM.fullmatch(str(argument)):
                called = str(argument).replace(" ", ".")
                raise InvalidInput(f"{what} makes a {called} beside its tensors; save torch.save(model.state_dict(), ...)")
    except InvalidInput:
        raise
    except Exception as e:  # torch reports the damage better
        del e


# --- JSON -----------------------------------------------------------------------------------------------------------------


def json_of(what: object, data: bytes, limit: int = JSON) -> Any:
    """The value of a JSON document.  Raises InvalidInput if it is invalid, too large, or nested too deeply."""
    if len(data) > limit:
        raise InvalidInput(f"{what} is {_bytes(len(data))} of JSON; at most {_bytes(limit)} are read")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as e:
        raise InvalidInput(f"{what} is damaged ({str(e) or type(e).__name__}); copy or download the file again") from e


# --- zip archives ---------------------------------------------------------------------------------------------------------


def entries(archive: zipfile.ZipFile, path: Path, *, packed: bool) -> list[zipfile.ZipInfo]:
    """The entries of an archive, if every reader of zip sees the same ones, and they unpack to no more than the limit.

    packed: whether they may be compressed.
    Raises InvalidInput for names that occur twice, that lead out of the archive or are invalid, for anything before the archive,
    for entries that are encrypted or folders, and for those that unpack to too much.
    """
    found, size = archive.infolist(), path.stat().st_size
    again = "copy or download it again, or write it again"
    if len(found) > ENTRIES:
        raise InvalidInput(f"{path} holds {len(found)} files; at most {ENTRIES} are read")
    if len({e.filename for e in found}) < len(found):
        raise InvalidInput(f"{path} holds a file twice, and readers would not agree on which counts; {again}")
    if min((e.header_offset for e in found), default=0) or archive.comment:
        raise InvalidInput(f"{path} holds more than its zip archive (two archives in one file?); {again}")
    for e in found:
        if e.filename != e.orig_filename or not _is_plain_name(e.filename):
            raise InvalidInput(f"{path} holds a file called '{e.filename[:80]}', which is not a plain name; {again}")
        if e.flag_bits & 1:
            raise InvalidInput(f"{path} holds '{e.filename}' encrypted; write it without a password")
        if e.compress_type not in (zipfile.ZIP_STORED, *((zipfile.ZIP_DEFLATED,) if packed else ())):
            raise InvalidInput(f"{path} holds '{e.filename}' compressed, but such files are never compressed; {again}")
    total = sum(e.file_size for e in found)
    if packed:
        check_size(path, total, size)
    elif total > size:
        raise InvalidInput(f"{path} declares {_bytes(total)} in a file of {_bytes(size)}; {again}")
    return found


def _is_plain_name(name: str) -> bool:
    """A relative path of visible ASCII that stays where it is."""
    steps = name.split("/")
    return name.isascii() and name.isprintable() and "\\" not in name and not {"", ".", ".."} & set(steps) and ":" not in name


BROKEN = (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, NotImplementedError, RuntimeError)
"""What zipfile raises for a damaged archive."""


def archived(files: Iterable[tuple[str, bytes]]) -> io.BytesIO:
    """A fresh archive of these files, nothing compressed, to be read from its start."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, data in files:
            archive.writestr(zipfile.ZipInfo(name), data)
    stream.seek(0)
    return stream


# --- settings ---------------------------------------------------------------------------------------------------------------

LARGEST_CONFIG = 2**18
"""Bytes of a config file."""
DEEPEST = 20
"""Values within values of a config file."""


class _Loader(yaml.SafeLoader):
    """Refuses aliases, nine lines of which can expand to a billion values, and deep nesting."""

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
    """A YAML or JSON mapping.  Raises InvalidInput if the file is missing or is not a mapping."""
    try:
        if (size := path.stat().st_size) > LARGEST_CONFIG:
            raise InvalidInput(f"{path} is {size:,} bytes long; a config file of at most {LARGEST_CONFIG:,} is read")
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
