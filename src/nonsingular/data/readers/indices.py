"""indices.py - which rows of a split: a file of indices."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonsingular.data.readers.npz import UNREADABLE
from nonsingular.errors import InvalidInput
from nonsingular.untrusted import check_array

MOST = 2**28
"""Most bytes of a file of indices that are read."""


def read(path: Path, n: int) -> NDArray[np.int64]:
    """Row numbers of a split of `n` examples, from 0, in the order of the file: .npy, .json (a list), or .txt (one a line).

    Raises InvalidInput unless they are whole numbers, each once, in 0..n-1.
    """
    if not path.is_file():
        raise InvalidInput(
            f"indices '{path}' {'is not a file' if path.exists() else 'does not exist'}; give a .npy, .txt or .json file"
        )
    found = _numbers(path)
    if found.ndim != 1 or found.dtype.kind not in "iu" or not found.size:
        raise InvalidInput(f"{path} holds {found.dtype} of shape {found.shape}; expected one or more whole numbers in one row")
    if (wrong := np.flatnonzero((found < 0) | (found >= n))).size:
        raise InvalidInput(f"{path} holds {found[wrong[0]]}; the rows of this split are 0..{n - 1}")
    values, counts = np.unique(found, return_counts=True)
    if (counts > 1).any():
        raise InvalidInput(f"{path} holds {values[counts > 1][0]} more than once; give each row once")
    return found.astype(np.int64)


def sha256(path: Path) -> str:
    """Hash of the bytes of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _numbers(path: Path) -> NDArray[Any]:
    if (size := path.stat().st_size) > MOST:
        raise InvalidInput(f"{path} is {size:,} bytes long; at most {MOST:,} of indices are read")
    expected = "expected .npy from numpy.save, .json with a list, or .txt with one number a line"
    try:
        match path.suffix:
            case ".npy":
                with warnings.catch_warnings(), path.open("rb") as file:
                    warnings.simplefilter("ignore")  # e.g. for a file from Python 2
                    check_array(path, file, path.stat().st_size)
                    file.seek(0)
                    return np.asarray(np.lib.format.read_array(file, allow_pickle=False))
            case ".json":
                found = json.loads(path.read_text(encoding="utf-8"))
                if not isinstance(found, list) or any(type(i) is not int for i in found):
                    raise ValueError("not a list of whole numbers")
                return np.array(found)
            case ".txt":
                return np.array([int(word) for word in path.read_text(encoding="utf-8").replace(",", " ").split()])
            case _:
                raise InvalidInput(f"indices '{path}': {expected}")
    except InvalidInput:
        raise
    except UNREADABLE as e:
        raise InvalidInput(f"{path} cannot be read ({str(e).splitlines()[0] if str(e) else type(e).__name__}); {expected}") from e
