"""dispatch.py - a path -> the reader for what lies there."""

from __future__ import annotations

from pathlib import Path

from nonsingular.data.readers import arrow, idx, images, npz
from nonsingular.data.readers import csv as table
from nonsingular.data.readers.raw import Raw
from nonsingular.errors import InvalidInput

KINDS = (
    "an .npz file; a .parquet, .arrow or .csv file or a folder of them; a folder of IDX files; "
    "a folder of images with one sub-folder a class"
)
"""What `read` takes, in words."""
SUFFIXES = frozenset({".npz", ".parquet", ".arrow", ".csv", ".npy"})
"""A name that ends so is meant to be a file, even if there is none."""
PICKLES = frozenset({".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib"})


def read(path: Path) -> Raw:
    """The examples in a file or folder.  Raises InvalidInput for what is not there, cannot be read, or is of no known kind."""
    try:
        if path.is_dir():
            return _folder(path)
        if not path.is_file():
            raise InvalidInput(f"'{path}' {'is not a file' if path.exists() else 'does not exist'}; give the path of {KINDS}")
        return _file(path)
    except (OSError, ValueError) as e:
        if isinstance(e, InvalidInput):
            raise
        raise InvalidInput(f"'{path}' cannot be read ({getattr(e, 'strerror', None) or e}); give the path of {KINDS}") from e


def _file(path: Path) -> Raw:
    suffix = path.suffix.lower()
    if idx.is_idx(path):
        return idx.read(path)
    match suffix:
        case ".npz":
            return npz.read(path)
        case ".parquet" | ".arrow":
            return arrow.read(path)
        case ".csv":
            return table.read(path)
        case ".npy":
            raise InvalidInput(
                f"{path} holds one array; write inputs and labels into one file: numpy.savez('test.npz', x=x, y=y)"
            )
        case _:
            why = " may hold a pickle, which is never opened" if suffix in PICKLES else " is of no kind that is read here"
            raise InvalidInput(f"{path}{why}; save numpy.savez('test.npz', x=x, y=y), or give the path of {KINDS}")


def _folder(path: Path) -> Raw:
    if folder := idx.folder_of(path):
        return idx.read(folder)
    if arrow.files_below(path):
        return arrow.read(path)
    if any(path.glob("*.csv")):
        return table.read(path)
    if loose := sorted(f.name for f in path.iterdir() if f.suffix.lower() in images.SUFFIXES):
        raise InvalidInput(
            f"{path} holds images without classes ({loose[0]}); expected one sub-folder a class, {path.name}/CLASS/{loose[0]}"
        )
    if any(f.is_dir() and not f.name.startswith(".") for f in path.iterdir()):
        return images.read(path)
    if found := sorted(f.name for f in path.iterdir()):
        hint = f"give the path of one file, {path / found[0]}" if found[0].endswith(".npz") else f"expected {KINDS}"
        raise InvalidInput(f"{path} holds {', '.join(found[:3])}{' ...' if len(found) > 3 else ''}; {hint}")
    raise InvalidInput(f"{path} is an empty folder; expected {KINDS}")
