"""images.py - pictures, one by one or in a folder with one sub-folder for each class, as in torchvision's ImageFolder."""

from __future__ import annotations

import importlib
import io
import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonsingular.data.readers.raw import NAMED, Arrays, Part, Raw
from nonsingular.errors import InvalidInput
from nonsingular.untrusted import check_size

log = logging.getLogger("nonsingular")

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"})
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM")
CHANNELS = {"L": 1, "RGB": 3, "RGBA": 4}
"""Modes of Pillow that are read: 8 bits a channel."""
RESIZE = (
    "images of a data set have one size and mode; resizing and converting belong to your preprocessing: do it once and store them"
)


@dataclass(frozen=True)
class Form:
    """Size and mode of an image."""

    height: int
    width: int
    mode: str

    def __str__(self) -> str:
        return f"{self.height} x {self.width} {self.mode}"


def found(path: Path) -> bool:
    """Whether a path is a folder with sub-folders, and no images beside these, which would belong to no class."""
    if not path.is_dir() or any(f.suffix.lower() in SUFFIXES for f in path.iterdir()):
        return False
    return any(f.is_dir() and not f.name.startswith(".") for f in path.iterdir())


def extra(module: str, what: object) -> Any:
    """A module of the extra `parquet`; Any, because pyarrow has no types."""
    try:
        return importlib.import_module(module)
    except ImportError as e:
        raise InvalidInput(f"reading {what} needs pyarrow and pillow; run: pip install 'nonsingular[parquet]'") from e


def decode(
    names: Sequence[str], blobs: Sequence[Any], like: Form | None = None, formats: Sequence[str] = FORMATS, remedy: str = RESIZE
) -> NDArray[np.uint8]:
    """(N, C, H, W) pictures from files or bytes, all of the form `like`, by default that of the first.

    names: what each is called in a message.  blobs: a Path or bytes; everything else counts as missing.
    One thread: on small images, four are slower.
    """
    pillow = extra("PIL.Image", names[0])
    x: NDArray[np.uint8] | None = None
    for i, (name, blob) in enumerate(zip(names, blobs, strict=True)):
        pixels: Any = None
        found: object
        try:
            with warnings.catch_warnings(), pillow.open(
                blob if isinstance(blob, Path) else io.BytesIO(blob), formats=tuple(formats)
            ) as image:  # fmt: skip
                warnings.simplefilter("error")  # e.g. a header that promises a picture of gigabytes
                found = form = Form(image.height, image.width, image.mode)
                if like is None and image.mode in CHANNELS:
                    like = form
                if form == like:
                    pixels = np.asarray(image)
        except Exception as e:  # Pillow raises a dozen kinds for damaged images
            found = f"missing or damaged ({type(e).__name__})"
        if pixels is None or like is None:
            expected = f"expected {like}" if like else f"expected one of the modes {', '.join(CHANNELS)}"
            raise InvalidInput(f"{name} is {found}; {expected}{'' if i == 0 or remedy != RESIZE else ' as before it'}; {remedy}")
        if x is None:
            sizes = (b.stat().st_size if isinstance(b, Path) else len(b) if isinstance(b, bytes) else 0 for b in blobs)
            pixels_each = like.height * like.width * CHANNELS[like.mode]
            check_size(f"{name}, with {len(names) - 1} more images of its size,", len(names) * pixels_each, sum(sizes))
            x = np.empty((len(names), like.height, like.width, CHANNELS[like.mode]), np.uint8)
        x[i] = pixels.reshape(x.shape[1:])
    assert x is not None
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2))


def read(root: Path) -> Raw:
    """A folder of images: class/*.png, or train, val and test above it.  Classes are numbered in the order of their names.

    Images are (C, H, W), uint8.  Hidden files, and files without the suffix of an image, are skipped.
    Raises InvalidInput for no images, an image of another size or mode, and splits with different classes.
    """
    folders = _folders(root)
    splits: dict[Part, Path] = {NAMED[f.name.lower()]: f for f in folders if f.name.lower() in NAMED and _folders(f)}
    if not splits:
        splits = {"test": root}
    elif odd := [f.name for f in folders if f not in splits.values()]:
        raise InvalidInput(
            f"{root} holds the splits {', '.join(sorted(f.name for f in splits.values()))} and {odd[0]}; which is it?"
        )
    parts: dict[Part, Arrays] = {}
    classes: tuple[str, ...] | None = None
    for part, folder in splits.items():
        named = tuple(f.name for f in _folders(folder))
        if classes not in (None, named):
            differ = sorted(set(named) ^ set(classes))
            raise InvalidInput(f"{folder} holds other classes than the other splits: {', '.join(differ[:5])}")
        classes = named
        parts[part] = _labelled(folder, named)
    if len({x.shape[1:] for x, _ in parts.values()}) > 1:
        sizes = ", ".join(f"{part} {x.shape[2]} x {x.shape[3]}, {x.shape[1]} channels" for part, (x, _) in parts.items())
        raise InvalidInput(f"{root} has splits of different images ({sizes}); {RESIZE}")
    if classes and all(name.isdecimal() for name in classes) and sorted(map(int, classes)) != list(map(int, classes)):
        log.warning(
            "%s: classes are numbered in the order of their names: %s ...; 10 comes before 2", root, ", ".join(classes[:4])
        )
    return Raw(str(root), parts, classes)


def _folders(folder: Path) -> list[Path]:
    return sorted((f for f in folder.iterdir() if f.is_dir() and not f.name.startswith(".")), key=lambda f: f.name)


def _labelled(folder: Path, classes: Sequence[str]) -> Arrays:
    files: list[Path] = []
    y: list[int] = []
    for label, name in enumerate(classes):
        of_class = sorted(f for f in (folder / name).rglob("*") if f.suffix.lower() in SUFFIXES and not f.name.startswith("."))
        if not of_class:
            raise InvalidInput(f"{folder / name} holds no images ({', '.join(sorted(SUFFIXES))}); remove the folder, or fill it")
        files += of_class
        y += [label] * len(of_class)
    return decode([str(f) for f in files], files), np.array(y, np.int64)
