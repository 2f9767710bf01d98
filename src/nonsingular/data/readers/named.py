"""named.py - the public data sets by name: MNIST, Fashion-MNIST, CIFAR-10; where their files are, and what they must hold.

Nothing here unpickles.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import math
import os
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonsingular.data.readers.idx import unpacked
from nonsingular.data.readers.images import Form, decode, extra
from nonsingular.data.readers.raw import Arrays
from nonsingular.errors import InvalidInput

log = logging.getLogger("nonsingular")


@dataclass(frozen=True)
class Source:
    """A public data set of images: what its files must hold, what they are called, and where to get them."""

    title: str
    classes: tuple[str, ...]
    shape: tuple[int, int, int]  # (channels, height, width) of every image
    sizes: tuple[int, int]  # number of images to train and to test
    url: str  # of the folder that holds `files`
    files: Mapping[str, tuple[str, str | None]]  # name -> md5 as it is served, md5 unpacked (None: not known)
    read: Callable[[Source, Mapping[str, Path]], tuple[Arrays, Arrays]]  # paths of `files` -> arrays to train and to test
    places: tuple[str, ...]  # sub-folders that may hold `files`; downloads go to the first
    parquet: tuple[str, ...]  # sub-folders that may hold train-*.parquet and test-*.parquet
    held_out: int = 5_000  # of the training images, for validation
    note: str = ""

    def wanted(self) -> str:
        """The files that are looked for in a folder, in words."""

        def within(subs: tuple[str, ...]) -> str:
            named = ", ".join(filter(None, subs))
            return "the folder itself" + (f" or its {named}" if named else "")

        originals = ", ".join(_unpacked(name) for name in self.files) + (" (or .gz)" if self.read is _read_idx else "")
        parquet = f"train-*.parquet with test-*.parquet in {within(self.parquet)}"
        return f"{originals} in {within(self.places)}, or {parquet}{self.note}"


def _unpacked(name: str) -> str:
    return name if name.endswith(".tar.gz") else name.removesuffix(".gz")


class _Absent(InvalidInput):
    """A folder does not hold the data set."""


def read(name: str, data_dir: Path | None) -> tuple[Arrays, Arrays]:
    """Training and test arrays of a name in SOURCES, from `data_dir`, or from the cache, downloaded if needed."""
    source = SOURCES[name]
    if data_dir is not None:
        if not data_dir.is_dir():
            what = "is a file, not a folder" if data_dir.exists() else "does not exist"
            raise InvalidInput(f"data_dir '{data_dir}' {what}; give a folder with {source.wanted()}")
        return _read(source, data_dir)
    import pooch  # here, because it takes as long to import as digits take to load

    cache = Path(os.environ.get("NONSINGULAR_DATA") or pooch.os_cache("nonsingular")).expanduser()
    with contextlib.suppress(_Absent):
        return _read(source, cache)
    _download(source, cache)
    return _read(source, cache)


def _read(source: Source, root: Path) -> tuple[Arrays, Arrays]:
    """Training and test arrays from the original files below `root`, or else from parquet files."""
    found = max((_originals(source, root / place) for place in source.places), key=len)
    if len(found) == len(source.files):
        return source.read(source, found)
    for folder in (root / sub for sub in source.parquet):
        train, test = sorted(folder.glob("train-*.parquet")), sorted(folder.glob("test-*.parquet"))
        if train and test:
            return _read_parquet(train, source, source.sizes[0]), _read_parquet(test, source, source.sizes[1])
    only = f" (found only {', '.join(map(str, found.values()))})" if found else ""
    raise _Absent(f"'{root}' does not hold {source.title}{only}; looked for {source.wanted()}")


def _originals(source: Source, folder: Path) -> dict[str, Path]:
    """Name of every original file that `folder` holds -> its path; the unpacked one where both forms exist."""
    forms = {name: (folder / _unpacked(name), folder / name) for name in source.files}
    return {name: next(p for p in paths if p.is_file()) for name, paths in forms.items() if any(p.is_file() for p in paths)}


def _download(source: Source, cache: Path) -> None:
    """Fetch the original files that `cache` lacks.  Each is stored whole and with the right md5, or not at all."""
    import pooch

    folder = cache / source.places[0]
    fetch: Any = pooch.HTTPDownloader(timeout=(5, 30), chunk_size=1 << 20)  # seconds to connect, seconds between bytes
    chatter = pooch.get_logger()
    level = chatter.level
    chatter.setLevel(logging.WARNING)  # it would repeat our messages
    try:
        for name in (name for name in source.files if name not in _originals(source, folder)):
            log.info("downloading %s to %s", source.url + name, folder)
            try:
                pooch.retrieve(source.url + name, f"md5:{source.files[name][0]}", fname=name, path=folder, downloader=fetch)
            except (OSError, ValueError) as e:  # network, disk; a wrong md5
                why = getattr(e.args[0] if e.args else None, "reason", e)  # `Connection refused`, not the wrapper around it
                raise InvalidInput(
                    f"{source.url + name} could not be downloaded to {folder} ({why}); get {source.title} another way and "
                    f"give its folder as --data-dir (data_dir), with {source.wanted()}. The data set 'digits' needs no files"
                ) from e
    finally:
        chatter.setLevel(level)


# ---- public data sets: their files -----------------------------------------------------------------------------------


def _read_idx(source: Source, files: Mapping[str, Path]) -> tuple[Arrays, Arrays]:
    def half(prefix: str, n: int) -> Arrays:
        images, labels = files[f"{prefix}-images-idx3-ubyte.gz"], files[f"{prefix}-labels-idx1-ubyte.gz"]
        y = _idx(labels, source, (n,)).astype(np.int64)
        _check_labels(labels, y, source)
        return _idx(images, source, (n, *source.shape[1:]))[:, None], y

    return half("train", source.sizes[0]), half("t10k", source.sizes[1])


def _idx(path: Path, source: Source, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """The array of bytes in an IDX file, packed or not.  Format: yann.lecun.com/exdb/mnist."""
    served = f"{_unpacked(path.name)}.gz"
    remedy = f"delete it and get it again from {source.url}{served}"
    data = unpacked(path, remedy)
    # 0, 0, 8 = unsigned bytes, the number of dimensions, every dimension in 4 bytes, then the bytes themselves
    head = bytes([0, 0, 8, len(shape)]) + np.array(shape, dtype=">u4").tobytes()
    if data[:4] != head[:4]:
        raise InvalidInput(
            f"{path} starts with bytes [{data[:4].hex(' ')}], expected [{head[:4].hex(' ')}]: not this IDX file; {remedy}"
        )
    if len(data) >= len(head) and data[: len(head)] != head:
        stated = tuple(int.from_bytes(data[i : i + 4], "big") for i in range(4, len(head), 4))
        raise InvalidInput(f"{path} says that it holds {stated}, but this file of {source.title} holds {shape}; {remedy}")
    if len(data) != len(head) + math.prod(shape):
        raise InvalidInput(f"{path} is {len(data)} bytes long unpacked, expected {len(head) + math.prod(shape)}; {remedy}")
    md5 = _md5(data)
    for other in SOURCES.values():
        if other.title != source.title and md5 in (unpacked for _, unpacked in other.files.values()):
            raise InvalidInput(f"{path} is a file of {other.title}, not of {source.title}; give the folder of {source.title}")
    if (expected := source.files[served][1]) not in (None, md5):
        raise InvalidInput(
            f"{path} is corrupt, or not {source.title}: md5 of its content is {md5}, expected {expected}; {remedy}"
        )
    return np.frombuffer(data, np.uint8, offset=len(head)).reshape(shape)


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _check_labels(path: Path, y: NDArray[np.int64], source: Source) -> None:
    k = len(source.classes)
    if (wrong := np.flatnonzero((y < 0) | (y >= k))).size:
        raise InvalidInput(
            f"{path}: row {wrong[0]} (the first is 0) has label {y[wrong[0]]}; the labels of {source.title} are 0..{k - 1}"
        )


def _read_archive(source: Source, files: Mapping[str, Path]) -> tuple[Arrays, Arrays]:
    """CIFAR-10's binary archive: records of one byte of label and 3,072 of image.  cs.toronto.edu/~kriz/cifar.html."""
    ((name, path),) = files.items()
    data = path.read_bytes()
    if (md5 := _md5(data)) != (expected := source.files[name][0]):
        remedy = f"delete it and get it again from {source.url}{name}"
        raise InvalidInput(f"{path} is corrupt, or not {source.title}: its md5 is {md5}, expected {expected}; {remedy}")
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:

        def batches(*names: str) -> Arrays:
            members = [archive.extractfile(f"cifar-10-batches-bin/{name}.bin") for name in names]
            records = np.frombuffer(b"".join(m.read() for m in members if m), np.uint8).reshape(-1, 1 + math.prod(source.shape))
            return records[:, 1:].reshape(-1, *source.shape), records[:, 0].astype(np.int64)

        return batches(*(f"data_batch_{i}" for i in range(1, 6))), batches("test_batch")


def _read_parquet(paths: list[Path], source: Source, n: int) -> Arrays:
    """Images and labels out of all shards of one split, in the order of their names."""
    shards = [_shard(path, source) for path in paths]
    x, y = (np.concatenate(parts) for parts in zip(*shards, strict=True))
    if len(y) != n:
        names = ", ".join(path.name for path in paths)
        raise InvalidInput(f"{paths[0].parent}: {names} hold {len(y)} images, expected {n}; is a shard missing or there twice?")
    return x, y


def _shard(path: Path, source: Source) -> Arrays:
    """Images and labels out of one parquet file with columns `img` or `image` {bytes, path} and `label`."""
    arrow, parquet = extra("pyarrow", path), extra("pyarrow.parquet", path)
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            image = next((name for name in ("img", "image") if name in names), None)
            if image is None or "label" not in names:
                raise InvalidInput(f"{path} has columns {names}; expected 'img' or 'image' {{bytes, path}}, and 'label'")
            table = file.read(columns=[image, "label"])
    except (arrow.ArrowException, OSError) as e:
        raise InvalidInput(f"{path} cannot be read as parquet, it is truncated or damaged ({e}); get it again") from e
    labels = table["label"]
    y: NDArray[Any] = labels.to_numpy()
    if y.dtype.kind not in "iu":
        raise InvalidInput(
            f"{path}: column 'label' is {labels.type}, with {labels.null_count} empty cells; expected whole numbers"
        )
    _check_labels(path, y := y.astype(np.int64), source)
    return _pictures(path, table[image].to_pylist(), source.shape), y


def _pictures(path: Path, cells: list[Any], shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """(N, *shape) images out of cells {bytes, path}."""
    names = [f"{path}: the image in row {row} (the first is 0)" for row in range(len(cells))]
    blobs = [cell.get("bytes") if isinstance(cell, dict) else None for cell in cells]
    like = Form(shape[1], shape[2], "L" if shape[0] == 1 else "RGB")
    return decode(names, blobs, like, ("PNG", "JPEG"), "get the file again; images are PNG or JPEG")


SOURCES: dict[str, Source] = {
    "mnist": Source(
        title="MNIST",
        classes=tuple("0123456789"),
        shape=(1, 28, 28),
        sizes=(60_000, 10_000),
        url="https://ossci-datasets.s3.amazonaws.com/mnist/",
        files={
            "train-images-idx3-ubyte.gz": ("f68b3c2dcbeaaa9fbdd348bbdeb94873", "6bbc9ace898e44ae57da46a324031adb"),
            "train-labels-idx1-ubyte.gz": ("d53e105ee54ea40749a09fcbcd1e9432", "a25bea736e30d166cdddb491f175f624"),
            "t10k-images-idx3-ubyte.gz": ("9fb629c4189551a2d022fa330f9573f3", "2646ac647ad5339dbf082846283269ea"),
            "t10k-labels-idx1-ubyte.gz": ("ec29112dd5afa0611ce80d1b7f02629c", "27ae3e4e09519cfbb04c329615203637"),
        },
        read=_read_idx,
        places=("MNIST/raw", "MNIST", "raw", ""),
        parquet=("", "mnist"),
    ),
    "fashion-mnist": Source(
        title="Fashion-MNIST",
        classes=("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        shape=(1, 28, 28),
        sizes=(60_000, 10_000),
        url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        files={
            "train-images-idx3-ubyte.gz": ("8d4fb7e6c68d591d4c3dfef9ec88bf0d", None),
            "train-labels-idx1-ubyte.gz": ("25c81989df183df01b3e8a0aad5dffbe", None),
            "t10k-images-idx3-ubyte.gz": ("bef4ecab320f06d8554ea6380940ec79", None),
            "t10k-labels-idx1-ubyte.gz": ("bb300cfdad3c16e7a12a480ee83cd310", None),
        },
        read=_read_idx,
        places=("FashionMNIST/raw", "FashionMNIST", "raw", ""),
        parquet=("", "fashion_mnist", "fashion-mnist"),
    ),
    "cifar10": Source(
        title="CIFAR-10",
        classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        shape=(3, 32, 32),
        sizes=(50_000, 10_000),
        url="https://www.cs.toronto.edu/~kriz/",
        files={"cifar-10-binary.tar.gz": ("c32a1d4ab5d03f1284b67883e8d87530", None)},
        read=_read_archive,
        places=("",),
        parquet=("", "plain_text", "cifar10", "cifar10/plain_text", "cifar10-jpeg"),
        note=" (torchvision's cifar-10-batches-py holds pickles, which are never opened)",
    ),
}
"""The public data sets by name."""
