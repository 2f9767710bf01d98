"""csv.py - CSV files of numbers: one example a row, its label in the column `label`, or else in the last."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nonsingular.data.readers.raw import Arrays, Part, Raw, by_part, inputs, labels, numbered
from nonsingular.errors import InvalidInput


def read(path: Path) -> Raw:
    """Reads one CSV file as the test split, or a folder of them with train, val or test in their names.

    x: (N, d) float32.  Labels are whole numbers from 0; or -1 and 1, or text, which are numbered in sorted order (numbers as
    numbers).
    The first row is a header if one of its cells, apart from the label, is not a number.  No domain: columns have their own
    units.
    """
    files: dict[Part, list[Path]] = {"test": [path]} if path.is_file() else by_part(path, sorted(path.glob("*.csv")))
    tables = {part: [_table(file) for file in found] for part, found in files.items()}
    heads = sorted({(head, names) for found in tables.values() for head, names, _, _ in found})
    if len(heads) > 1:
        differ = f"{', '.join(heads[0][0])} and {', '.join(heads[1][0])}"
        raise InvalidInput(f"{path}: its files have different columns, {differ}; give all the same columns")
    x = {part: inputs(f"{path}: x", np.concatenate([x for _, _, x, _ in found])) for part, found in tables.items()}
    y = {part: np.concatenate([y for _, _, _, y in found]) for part, found in tables.items()}
    if all(_whole(column) for column in y.values()) and not _signs(y.values()):
        numbers: dict[Part, NDArray[np.int64]] = {
            part: labels(f"{path}: the labels", column.astype(np.float64).astype(np.int64), len(column))
            for part, column in y.items()
        }
        classes = None
    else:
        numbers, classes = numbered(f"{path}: the column of labels", y)
    parts: dict[Part, Arrays] = {part: (x[part], numbers[part]) for part in x}
    return Raw(str(path), parts, classes, None, heads[0][1])


def _whole(column: NDArray[np.str_]) -> bool:
    try:
        values = column.astype(np.float64)
    except ValueError:
        return False
    return bool((np.abs(values) < 2**53).all() and (values == np.floor(values)).all())


def _signs(columns: Iterable[NDArray[np.str_]]) -> bool:
    """Whether the labels are -1 and 1, another way to write two classes."""
    return {float(label) for column in columns for label in column} == {-1.0, 1.0}


def _table(path: Path) -> tuple[tuple[str, ...], tuple[str, ...], NDArray[np.float64], NDArray[np.str_]]:
    """(names of all columns, or their numbers; names of the input columns as written, empty without a header; x; labels)"""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [[cell.strip() for cell in row] for row in csv.reader(file) if row]
    except (OSError, ValueError, csv.Error) as e:  # not UTF-8, a NUL, a cell of megabytes
        raise InvalidInput(f"{path} cannot be read as CSV ({e}); write it as UTF-8 text, or give an .npz file") from e
    if len(rows) < 2 or len(rows[0]) < 2:
        raise InvalidInput(f"{path} holds {len(rows)} rows; expected two or more, of two or more columns separated by commas")
    head = [cell.lower() for cell in rows[0]]
    label = head.index("label") if "label" in head else len(head) - 1
    first = 1 if "label" in head or not all(map(_is_number, rows[0][:label] + rows[0][label + 1 :])) else 0
    x: list[list[float]] = []
    for i, row in enumerate(rows[first:], first + 1):
        if len(row) != len(head):
            raise InvalidInput(f"{path}: row {i} has {len(row)} cells, the first has {len(head)}; expected the same number")
        cells = row[:label] + row[label + 1 :]
        if odd := next((cell for cell in cells if not _is_number(cell)), None):
            raise InvalidInput(f"{path}: row {i} holds {odd!r}, which is not a number; encode such columns as numbers first")
        if "" in row:
            raise InvalidInput(f"{path}: row {i} has an empty cell; fill it, or remove the row")
        x.append([float(cell) for cell in cells])
    names = tuple(head) if first else tuple(str(i + 1) for i in range(len(head)))
    written = tuple(rows[0][:label] + rows[0][label + 1 :]) if first else ()
    return names, written, np.array(x), np.array([row[label] for row in rows[first:]])


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return cell == ""
    return True
