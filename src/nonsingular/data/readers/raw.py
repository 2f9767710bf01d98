"""raw.py - what every reader hands over: arrays as the files hold them, checked for form but not scaled."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonsingular.errors import InvalidInput

Arrays = tuple[NDArray[Any], NDArray[np.int64]]
"""Inputs (N, *input), uint8 (0..255) or float32, and their labels (N,)."""
Part = str
"""A split: "train", "val" or "test"."""
NAMED: dict[str, Part] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "t10k", "eval"), "test"),
}
"""Names of a split in files and folders."""


@dataclass(frozen=True)
class Raw:
    """Examples as they were stored.

    where: the file or folder, for messages.  parts: "train", "val", "test": those that exist.
    classes: the name of every class index, if the files name them.  domain: the range of the inputs once uint8 is divided by 255;
    None for inputs without limits.  columns: of a table, the names of its columns, if the file names them.
    """

    where: str
    parts: Mapping[Part, Arrays]
    classes: tuple[str, ...] | None = None
    domain: tuple[float, float] | None = (0.0, 1.0)
    columns: tuple[str, ...] = ()


def part_of(name: str) -> Part | None:
    """The split that the name of a file or folder contains; None without one.

    >>> part_of("train-00000-of-00002.parquet"), part_of("validation"), part_of("latest.csv")
    ('train', 'val', None)
    """
    words = re.split(r"[^a-z0-9]+", name.lower())
    return next((NAMED[word] for word in words if word in NAMED), None)


def by_part(root: Path, files: Iterable[Path]) -> dict[Part, list[Path]]:
    """Files below `root` by the split in their own name, else in their folder's; all are "test" if no name contains one.

    Raises InvalidInput if some names contain a split and some do not.
    """
    found: dict[Part | None, list[Path]] = {}
    for file in files:
        steps = file.relative_to(root).parts
        found.setdefault(next((p for p in map(part_of, reversed(steps)) if p), None), []).append(file)
    silent = found.pop(None, [])
    if silent and found:
        raise InvalidInput(
            f"{root}: {silent[0].name} names no split, but other files do; "
            "put train, val or test into every name, or give the path of one file"
        )
    return {"test": silent} if silent else {part: found[part] for part in ("train", "val", "test") if part in found}


def examples(x_name: str, x: NDArray[Any], y_name: str, y: NDArray[Any]) -> Arrays:
    """uint8 or finite float32 inputs, and int64 labels from 0.  Raises InvalidInput, with a remedy, for anything else."""
    return inputs(x_name, x), labels(y_name, y, len(x))


def inputs(name: str, x: NDArray[Any]) -> NDArray[Any]:
    """(N, ...) inputs as uint8 or finite float32."""
    given = f"{name} is {x.dtype} of shape {x.shape}"
    if x.ndim < 2 or x.size == 0:
        raise InvalidInput(
            f"{given}; expected (N, ...) with one or more examples: images (N, C, H, W), tables (N, d), sequences (N, T, d)"
        )
    if x.dtype == np.uint8:
        return x
    if x.dtype.kind in "iu":
        raise InvalidInput(
            f"{given}; an ℓ∞ radius has no meaning for whole numbers such as token ids: give their embeddings, (N, T, d) floats, "
            "and a model that takes these. Pixels 0-255 belong in uint8, other counts in float"
        )
    if x.dtype.kind != "f":
        raise InvalidInput(f"{given}; expected floats, or uint8 pixels, which are divided by 255")
    with np.errstate(over="ignore", invalid="ignore"):  # overflow to infinity and signalling NaN: refused below
        x = x.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(x.reshape(len(x), -1)).all(1))
    if bad.size:
        raise InvalidInput(
            f"{given}, with NaN, infinite or too large values in {bad.size} rows, first in row {bad[0]} (the first is 0); "
            "remove or repair those rows"
        )
    return x


def labels(name: str, y: NDArray[Any], n: int) -> NDArray[np.int64]:
    """(n,) class indices from 0."""
    given = f"{name} is {y.dtype} of shape {y.shape}"
    if y.dtype.kind not in "iu" or y.shape != (n,):
        raise InvalidInput(f"{given}; expected a whole number for each of the {n} examples: shape ({n},){_label_hint(y, n)}")
    wide = y.astype(np.int64)
    if n and wide.min() < 0:
        raise InvalidInput(
            f"{given} and holds {wide.min()}; class indices start at 0. Does -1 stand for 'no label'? Remove those examples"
        )
    return wide


def _label_hint(y: NDArray[Any], n: int) -> str:
    """A hint at what the user may have meant."""
    if y.ndim == 2 and len(y) == n and y.shape[1] > 1:
        return ". One-hot rows or scores? Give y.argmax(1)"
    if y.ndim == 2 and y.shape == (n, 1):
        return ". Give y.ravel()"
    if y.dtype.kind in "US":
        return ". Names? Give classes, y = numpy.unique(y, return_inverse=True)"
    if y.dtype.kind == "f" and y.shape == (n,) and bool((y == np.floor(y)).all()):
        return ". Give y.astype(int)"
    return ""


def numbered(name: str, columns: Mapping[Part, NDArray[Any]]) -> tuple[dict[Part, NDArray[np.int64]], tuple[str, ...]]:
    """Text labels -> their places in the sorted list of all labels (numbers as numbers), and that list."""
    classes = sorted({str(label) for y in columns.values() for label in y})
    with contextlib.suppress(ValueError):  # not all are numbers
        classes.sort(key=float)
    if len(classes) > 10_000:
        raise InvalidInput(f"{name} holds {len(classes)} different texts; is it the column of labels?")
    place = {label: i for i, label in enumerate(classes)}
    return {part: np.array([place[str(label)] for label in y], np.int64) for part, y in columns.items()}, tuple(classes)
