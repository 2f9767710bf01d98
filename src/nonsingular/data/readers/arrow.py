"""arrow.py - parquet and Arrow files in the style of Hugging Face: a column of images or numbers, and one of labels.

Format: huggingface.co/docs/datasets/repository_structure; a saved Dataset (save_to_disk) is a folder of Arrow streams.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonsingular.data.readers.images import decode, extra
from nonsingular.data.readers.raw import Arrays, Part, Raw, by_part, inputs, labels, numbered
from nonsingular.errors import InvalidInput
from nonsingular.untrusted import check_size

SUFFIXES = (".parquet", ".arrow")
LABELS = ("label", "labels", "target", "y")
IMAGES = ("image", "img")


def files_below(root: Path) -> list[Path]:
    """Parquet and Arrow files in a folder and two levels of sub-folders, in the order of their names."""
    found = [f for depth in ("*", "*/*", "*/*/*") for f in root.glob(depth) if f.suffix in SUFFIXES and f.is_file()]
    return sorted(f for f in found if not f.name.startswith((".", "cache-")))


def found(path: Path) -> bool:
    """Whether a path is such a file, or a folder of them."""
    return bool(files_below(path)) if path.is_dir() else path.suffix.lower() in SUFFIXES


def read(path: Path, files: Sequence[Path] | None = None) -> Raw:
    """Reads one file as the test split, or a folder whose files or sub-folders have train, validation or test in their names.

    files: those to read in the folder.
    Labels: the column label (or labels, target, y, or the only ClassLabel): whole numbers, named by the schema's ClassLabel if
    there is one, or text, numbered in sorted order.
    Inputs: a column of images {bytes, path}; else the only column of lists, all of one shape; else all columns of numbers, in
    their order, as (N, d).  Images, and lists of uint8, live in [0, 1]; other numbers have no domain.
    """
    found: dict[Part, list[Path]] = {"test": [path]} if path.is_file() else by_part(path, files or files_below(path))
    for shards in found.values():
        _check_shards(shards)
    tables = _alike(path, {part: _table(shards) for part, shards in found.items()})
    first = next(iter(tables.values()))
    label = _label(path, first)
    names = _names(first, label)
    columns = {part: _column(path, t, label) for part, t in tables.items()}
    given = f"{path}: column '{label}'"
    if all(y.dtype.kind in "UO" for y in columns.values()):
        numbers, names = numbered(given, columns)
    else:
        numbers = {part: labels(given, y, len(y)) for part, y in columns.items()}
    parts: dict[Part, Arrays] = {part: (_inputs(path, t, label), numbers[part]) for part, t in tables.items()}
    pixels = all(x.dtype == np.uint8 for x, _ in parts.values())
    return Raw(str(path), parts, names, (0.0, 1.0) if pixels else None)


def _check_shards(shards: Sequence[Path]) -> None:
    """Raises InvalidInput if shards are missing: names state how many there are, as train-00000-of-00003.parquet."""
    for shard in shards:
        stated = re.search(r"-of-(\d{1,6})", shard.name)
        if stated and (n := sum(s.parent == shard.parent for s in shards)) != int(stated[1]):
            raise InvalidInput(
                f"{shard.parent} holds {n} of the {int(stated[1])} files that belong with {shard.name}; get the others"
            )


def _table(shards: Sequence[Path]) -> Any:
    """All rows of all shards, in the order of their names."""
    arrow = extra("pyarrow", shards[0])
    tables = [_rows(arrow, shard) for shard in shards]
    try:
        table = arrow.concat_tables(tables)
        table.validate(full=True)
    except (arrow.ArrowException, ValueError) as e:
        said = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise InvalidInput(
            f"{shards[0].parent}: files of one split do not fit together, or are damaged ({said}); get them again"
        ) from e
    if not table.num_rows:
        raise InvalidInput(f"{shards[0]} holds no rows; give at least one example")
    return table


def _alike(path: Path, tables: Mapping[Part, Any]) -> dict[Part, Any]:
    """The tables with their columns in one order."""
    names: list[str] = next(iter(tables.values())).column_names
    for part, table in tables.items():
        if sorted(table.column_names) != sorted(names):
            differ = ", ".join(sorted(set(table.column_names) ^ set(names))) or "one of them twice"
            raise InvalidInput(f"{path}: its splits have different columns ({differ} in {part} or not); give all the same")
    return {part: table.select(names) if len(set(names)) == len(names) else table for part, table in tables.items()}


def _rows(arrow: Any, path: Path) -> Any:
    """The table of one file."""
    kind = path.suffix.removeprefix(".")
    try:
        if kind == "parquet":
            with extra("pyarrow.parquet", path).ParquetFile(path) as file:
                about, size = file.metadata, path.stat().st_size
                groups = [about.row_group(i).total_byte_size for i in range(about.num_row_groups)]
                check_size(path, max(sum(groups), about.num_rows * about.num_columns), size)
                return file.read()
        data = arrow.py_buffer(path.read_bytes())
        try:
            reader = arrow.ipc.open_file(data)
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
        except arrow.ArrowInvalid:  # a stream has no footer
            reader = batches = arrow.ipc.open_stream(data)
        return arrow.Table.from_batches(list(_no_more(path, batches, data.size)), reader.schema)
    except InvalidInput:
        raise
    except (arrow.ArrowException, OSError, ValueError, KeyError, MemoryError, OverflowError, NotImplementedError) as e:
        raise InvalidInput(f"{path} cannot be read as {kind}, it is truncated or damaged ({e}); get it again") from e


def _no_more(path: Path, batches: Iterable[Any], size: int) -> Iterator[Any]:
    """The batches of a file, up to the limit on its unpacked size.

    Raises InvalidInput beyond the limit, and ArrowInvalid for a batch whose offsets lead out of it: pyarrow follows them
    unchecked, even to count bytes.
    """
    total = 0
    for batch in batches:
        batch.validate(full=True)
        total += max(batch.nbytes, batch.num_rows * max(1, batch.num_columns))
        check_size(path, total, size)
        yield batch


def _features(table: Any) -> Mapping[str, Any]:
    """What `datasets` wrote into the schema about each column; empty if there is nothing, or nothing valid."""
    try:
        found = json.loads((table.schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: f for name, f in found.items() if isinstance(f, dict)}
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return {}


def _label(path: Path, table: Any) -> str:
    """The name of the column of labels."""
    declared = [n for n, f in _features(table).items() if f.get("_type") == "ClassLabel" and n in table.column_names]
    for name in (*LABELS, *(declared if len(declared) == 1 else ())):
        if table.column_names.count(name) == 1:
            return name
    several = f"; {' and '.join(declared)} could be it: rename one to label" if declared else f", one of {', '.join(LABELS)}"
    raise InvalidInput(f"{path} has columns {table.column_names}; expected a column of labels{several}")


def _names(table: Any, label: str) -> tuple[str, ...] | None:
    names = _features(table).get(label, {}).get("names")
    return tuple(map(str, names)) if isinstance(names, list) and names else None


def _column(path: Path, table: Any, name: str) -> NDArray[Any]:
    """(N,) a column of whole numbers or text; without empty cells."""
    arrow, column = extra("pyarrow", path), table[name]
    kind = column.type.value_type if arrow.types.is_dictionary(column.type) else column.type
    if column.null_count or not (
        arrow.types.is_integer(kind) or arrow.types.is_string(kind) or arrow.types.is_large_string(kind)
    ):
        raise InvalidInput(
            f"{path}: column '{name}' is {column.type}, with {column.null_count} empty cells; "
            "expected whole numbers or names, in all rows"
        )
    return np.array(column.to_pylist()) if arrow.types.is_dictionary(column.type) else column.to_numpy()


def _inputs(path: Path, table: Any, label: str) -> NDArray[Any]:
    types = extra("pyarrow", path).types
    features = _features(table)
    others = {n: table.schema.field(n).type for n in table.column_names if n != label and table.column_names.count(n) == 1}
    images = [
        n for n, t in others.items()
        if features.get(n, {}).get("_type") == "Image" or (types.is_struct(t) and t.get_field_index("bytes") >= 0)
        or (n in IMAGES and types.is_binary(t))
    ]  # fmt: skip
    lists = [n for n, t in others.items() if _is_list(types, getattr(t, "storage_type", t))]
    numbers = [
        n for n, t in others.items()
        if (types.is_integer(t) or types.is_floating(t) or types.is_boolean(t)) and not n.startswith("__index_level_")  # pandas'
    ]  # fmt: skip
    if len(images) > 1 or (not images and len(lists) > 1):
        raise InvalidInput(f"{path} has several columns of inputs ({', '.join(images or lists)}); keep one, beside '{label}'")
    if images:
        return _images(path, images[0], table[images[0]].to_pylist())
    if lists:
        return inputs(f"{path}: column '{lists[0]}'", _stacked(path, lists[0], table[lists[0]]))
    if other := [n for n in numbers if n in LABELS or features.get(n, {}).get("_type") == "ClassLabel"]:
        raise InvalidInput(f"{path} has labels in '{label}' and in '{other[0]}', which would be an input; keep one of them")
    if not numbers:
        raise InvalidInput(
            f"{path} has columns {table.column_names}; expected images {{bytes, path}}, lists of numbers, or columns of numbers. "
            "Text has no ℓ∞ radius: give its embeddings"
        )
    if empty := next((n for n in numbers if table[n].null_count), None):
        raise InvalidInput(f"{path}: column '{empty}' has {table[empty].null_count} empty cells; fill them, or remove the rows")
    return inputs(f"{path}: its columns of numbers", np.stack([np.asarray(table[n].to_numpy(), np.float64) for n in numbers], 1))


def _images(path: Path, name: str, cells: list[Any]) -> NDArray[np.uint8]:
    blobs = [cell.get("bytes") if isinstance(cell, dict) else cell for cell in cells]
    return decode([f"{path}: the image in row {i} (the first is 0) of column '{name}'" for i in range(len(cells))], blobs)


def _is_list(types: Any, kind: Any) -> bool:
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _stacked(path: Path, name: str, column: Any) -> NDArray[Any]:
    """(N, ...) lists of one shape, as one array."""
    types = extra("pyarrow", path).types
    array = column.combine_chunks()
    array = extra("pyarrow", path).concat_arrays(array.chunks) if hasattr(array, "chunks") else array
    array = getattr(array, "storage", array)
    shape, n = [len(array)], len(array)
    while _is_list(types, array.type):
        lengths = np.array(extra("pyarrow.compute", path).list_value_length(array).to_pylist(), dtype=object)
        if len(odd := np.flatnonzero(lengths != lengths[0])) or not lengths[0]:
            row = odd[0] * n // len(lengths) if len(odd) else 0
            raise InvalidInput(
                f"{path}: column '{name}' holds empty lists, or lists of different lengths: {lengths[0]} values in the "
                f"first, another number in row {row} (the first is 0); pad or cut them to one length"
            )
        shape.append(int(lengths[0]))
        array = array.flatten()
    if array.null_count or not (types.is_integer(array.type) or types.is_floating(array.type)):
        raise InvalidInput(f"{path}: column '{name}' is of {array.type}, with {array.null_count} empty values; expected numbers")
    return array.to_numpy(zero_copy_only=False).reshape(shape)
