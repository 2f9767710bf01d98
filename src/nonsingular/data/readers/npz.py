"""npz.py - NumPy's .npz files, which are never unpickled."""

from __future__ import annotations

import struct
import tokenize
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonsingular.data.readers.raw import Arrays, Part, Raw, examples
from nonsingular.errors import InvalidInput
from nonsingular.untrusted import check_array, entries

UNREADABLE = (
    OSError, EOFError, TypeError, ValueError, KeyError, IndexError, MemoryError, OverflowError, NotImplementedError, RuntimeError,
    SyntaxError, tokenize.TokenError, AttributeError, RecursionError, struct.error, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""Errors of NumPy and zipfile for damaged files: they parse a header that may hold anything."""


def read(path: Path) -> Raw:
    """Reads x_test and y_test, or x and y as the test split; also x_train, y_train, x_val and y_val, if they exist.

    x: uint8, or floats.  y: whole numbers from 0.  classes: names of the class indices.
    domain: the two ends of the range that x lives in, or an empty array for no limits; by default [0, 1].
    """
    stored = arrays(path)
    if not stored.keys() & {"x_test", "y_test"} and stored.keys() & {"x", "y"}:
        stored |= {f"{name}_test": stored.pop(name) for name in ("x", "y") if name in stored}
    parts = [part for part in ("train", "val", "test") if part == "test" or stored.keys() & {f"x_{part}", f"y_{part}"}]
    if lacking := [name for part in parts for name in (f"x_{part}", f"y_{part}") if name not in stored]:
        raise InvalidInput(
            f"{path} lacks {', '.join(lacking)}; it holds {sorted(stored)}. Expected x_test (N, ...) and y_test (N,), or x and "
            "y; for training x_train and y_train too; if you like, x_val with y_val, the names of the classes in classes, "
            "and the range of x in domain"
        )
    found: dict[Part, Arrays] = {
        part: examples(f"{path}: x_{part}", stored[f"x_{part}"], f"{path}: y_{part}", stored[f"y_{part}"]) for part in parts
    }
    return Raw(str(path), found, _classes(path, stored.get("classes")), _domain(path, stored.get("domain")))


def arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Every array of an .npz file."""
    name = ""
    try:
        with warnings.catch_warnings(), zipfile.ZipFile(path) as archive:
            warnings.simplefilter("ignore")  # e.g. for a file from Python 2
            found: dict[str, NDArray[Any]] = {}
            for entry in entries(archive, path, packed=True):
                name = entry.filename.removesuffix(".npy")
                if name == entry.filename:
                    raise TypeError("it is not an array")
                with archive.open(entry) as stream:
                    check_array(f"{path}: array {name}", stream, entry.file_size)
                with archive.open(entry) as stream:
                    found[name] = np.lib.format.read_array(stream, allow_pickle=False)
            return found
    except InvalidInput:
        raise
    except UNREADABLE as e:
        what = f"{path}: array {name}" if name else f"{path}"
        raise InvalidInput(f"{what} cannot be read ({e}); write the file with numpy.savez, from arrays of numbers") from e


def _classes(path: Path, names: NDArray[Any] | None) -> tuple[str, ...] | None:
    if names is not None and names.ndim != 1:
        raise InvalidInput(f"{path}: classes has shape {names.shape}; expected one name per class, (K,)")
    try:
        return None if names is None else tuple(map(str, names))
    except SystemError as e:  # text that is not Unicode
        raise InvalidInput(f"{path}: classes holds damaged text; write the file again") from e


def _domain(path: Path, ends: NDArray[Any] | None) -> tuple[float, float] | None:
    if ends is None:
        return 0.0, 1.0
    if ends.size == 0:
        return None
    if ends.shape != (2,) or ends.dtype.kind not in "fiu" or not np.isfinite(ends).all() or not ends[0] < ends[1]:
        raise InvalidInput(
            f"{path}: domain is {ends.tolist()}; expected the lowest and the highest number of x, or an empty array"
        )
    return float(ends[0]), float(ends[1])
