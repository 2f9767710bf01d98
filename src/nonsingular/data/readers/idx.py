"""idx.py - IDX files, the format of MNIST: *-images-idx3-ubyte and *-labels-idx1-ubyte, packed (.gz) or not.

Format: yann.lecun.com/exdb/mnist.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nonsingular.data.readers.raw import Arrays, Part, Raw, part_of
from nonsingular.errors import InvalidInput
from nonsingular.untrusted import check_size, most

IMAGES, LABELS = "-images-idx3-ubyte", "-labels-idx1-ubyte"


def unpacked(path: Path, remedy: str = "get it again") -> bytes:
    """The bytes of a file, unpacked if its name ends in .gz."""
    try:
        if path.suffix != ".gz":
            return path.read_bytes()
        size = path.stat().st_size
        with gzip.open(path) as stream:
            data = stream.read(most(size) + 1)
        check_size(path, len(data), size)
        return data
    except InvalidInput:
        raise
    except (OSError, EOFError, zlib.error) as e:
        raise InvalidInput(f"{path} cannot be read, it is truncated or damaged ({e}); {remedy}") from e


def array_of(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """The array of bytes in an IDX file with this number of dimensions."""
    data = unpacked(path)
    # 0, 0, 8 = unsigned bytes, the number of dimensions, every dimension in 4 bytes, then the bytes themselves
    head = bytes([0, 0, 8, dimensions])
    if data[:4] != head:
        raise InvalidInput(
            f"{path} starts with bytes [{data[:4].hex(' ')}], expected [{head.hex(' ')}]: not an IDX file of unsigned bytes "
            f"in {dimensions} dimensions; get it again, or give an .npz file"
        )
    start = 4 + 4 * dimensions
    shape = tuple(int.from_bytes(data[i : i + 4], "big") for i in range(4, start, 4))
    if len(data) != start + math.prod(shape):
        raise InvalidInput(
            f"{path} is {len(data)} bytes long unpacked; its header states {shape}, which takes {start + math.prod(shape)}; "
            "get it again"
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def is_idx(path: Path) -> bool:
    """Whether a name is that of an IDX file of images or labels."""
    return path.name.removesuffix(".gz").endswith((IMAGES, LABELS))


def folder_of(root: Path) -> Path | None:
    """`root` or its sub-folder raw, whichever holds IDX files."""
    return next((f for f in (root, root / "raw") if f.is_dir() and any(map(is_idx, f.iterdir()))), None)


def found(path: Path) -> bool:
    """Whether a path is such a file, or a folder of them."""
    return folder_of(path) is not None if path.is_dir() else is_idx(path)


def read(path: Path) -> Raw:
    """Reads a folder of pairs of IDX files, or the pair of one of them.  Images (H, W) get a channel: (N, 1, H, W).

    Pairs with train, test (t10k) or val in their names become these splits; a single other pair is the test split.
    Raises InvalidInput for damaged files, half pairs, and folders with several data sets.
    """
    path = folder_of(path) or path
    folder = path if path.is_dir() else path.parent
    files = {p.name.removesuffix(".gz"): p for p in sorted(folder.iterdir(), reverse=True) if is_idx(p)}  # unpacked ones win
    prefixes = sorted({name.removesuffix(IMAGES).removesuffix(LABELS) for name in files})
    if not path.is_dir():
        prefixes = [path.name.removesuffix(".gz").removesuffix(IMAGES).removesuffix(LABELS)]
    parts: dict[Part, Arrays] = {}
    for prefix in prefixes:
        part = (part_of(prefix) if path.is_dir() else None) or "test"
        if part in parts:
            raise InvalidInput(
                f"{folder} holds several data sets of IDX files ({', '.join(prefixes)}); give the path of one file"
            )
        if lacking := [prefix + end for end in (IMAGES, LABELS) if prefix + end not in files]:
            raise InvalidInput(f"{folder} lacks {lacking[0]} (or .gz), the other half of {prefix}{IMAGES} and {prefix}{LABELS}")
        parts[part] = _pair(files[prefix + IMAGES], files[prefix + LABELS])
    return Raw(str(path), parts)


def _pair(images: Path, labels: Path) -> Arrays:
    x, y = array_of(images, 3), array_of(labels, 1)
    if len(x) != len(y) or x.size == 0:
        raise InvalidInput(
            f"{images} holds {x.shape} images and {labels.name} {len(y)} labels; expected one label for each image"
        )
    return x[:, None], y.astype(np.int64)
