"""dispatch.py - reads a path with the first format that recognises it.  The formats are in the catalog."""

from __future__ import annotations

from pathlib import Path

from nonsingular.catalog import FORMATS
from nonsingular.data.readers.images import SUFFIXES as PICTURES
from nonsingular.data.readers.raw import Raw
from nonsingular.errors import InvalidInput

KINDS = "; ".join(entry.says for entry in FORMATS.values())
"""What `read` takes, in words."""
SUFFIXES = frozenset({".npy", *(suffix for entry in FORMATS.values() for suffix in entry.suffixes)})
"""A name with such an ending means a file, even if the file does not exist."""
PICKLES = frozenset({".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib"})


def read(path: Path) -> Raw:
    """The examples in a file or folder.  Raises InvalidInput if it is missing, unreadable, or of an unknown format."""
    try:
        if not path.is_file() and not path.is_dir():
            raise InvalidInput(f"'{path}' {'is not a file' if path.exists() else 'does not exist'}; give the path of {KINDS}")
        for entry in FORMATS.values():
            if entry.reads(path):
                return entry(path)
        raise InvalidInput(_why_not_a_folder(path) if path.is_dir() else _why_not_a_file(path))
    except (OSError, ValueError) as e:
        if isinstance(e, InvalidInput):
            raise
        raise InvalidInput(f"'{path}' cannot be read ({getattr(e, 'strerror', None) or e}); give the path of {KINDS}") from e


def _why_not_a_file(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return f"{path} holds one array; write inputs and labels into one file: numpy.savez('test.npz', x=x, y=y)"
    why = " may hold a pickle, which is never opened" if suffix in PICKLES else " has no format that is known here"
    return f"{path}{why}; save numpy.savez('test.npz', x=x, y=y), or give the path of {KINDS}"


def _why_not_a_folder(path: Path) -> str:
    if loose := sorted(f.name for f in path.iterdir() if f.suffix.lower() in PICTURES):
        return f"{path} holds images without classes ({loose[0]}); expected one sub-folder a class, {path.name}/CLASS/{loose[0]}"
    if found := sorted(f.name for f in path.iterdir()):
        hint = f"give the path of one file, {path / found[0]}" if found[0].endswith(".npz") else f"expected {KINDS}"
        return f"{path} holds {', '.join(found[:3])}{' ...' if len(found) > 3 else ''}; {hint}"
    return f"{path} is an empty folder; expected {KINDS}"
