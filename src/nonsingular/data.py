"""data.py - data sets as tensors in [0, 1]: digits (bundled), MNIST, Fashion-MNIST, CIFAR-10, and your own .npz file.

Nothing here unpickles.  A validation split is always taken from the training data, never from the test data.
"""

from __future__ import annotations

import contextlib
import difflib
import gzip
import hashlib
import importlib
import io
import logging
import math
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nonsingular.errors import InvalidInput

log = logging.getLogger("nonsingular")

Arrays = tuple[NDArray[Any], NDArray[np.int64]]
"""Images (N, *input), and their labels (N,)."""


# ---- what callers get ------------------------------------------------------------------------------------------------


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes, dtypes and bytes."""
    digest = hashlib.sha256()
    for name, t in sorted(tensors.items()):
        digest.update(f"{name} {tuple(t.shape)} {t.dtype} ".encode())
        digest.update(t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@dataclass(frozen=True)
class Split:
    """Examples of one kind.  x: (N, *input) float32 in the domain.  y: (N,) int64 class indices."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def take(self, limit: int | None, seed: int = 0) -> Split:
        """`limit` examples drawn without replacement, in the order of the data; all of them for None or a limit >= N.

        The same in every version; with one seed, a smaller draw is part of a larger one.
        Raises InvalidInput if `limit` is below 1 or `seed` is not in 0..2**32-1.
        """
        if limit is not None and limit < 1:
            raise InvalidInput(f"limit is {limit}; give 1 or more examples, or None for all {len(self)}")
        if not 0 <= seed < 2**32:
            raise InvalidInput(f"seed is {seed}; give a whole number from 0 to 2**32 - 1")
        if limit is None or limit >= len(self):
            return self
        chosen = torch.tensor(np.sort(_shuffled(len(self), seed)[:limit]))
        return Split(self.x[chosen], self.y[chosen])

    def sha256(self) -> str:
        """Hash over shapes, dtypes and bytes of x and y: equal if and only if the examples are, in this order."""
        return hash_tensors({"x": self.x, "y": self.y})


@dataclass(frozen=True)
class Dataset:
    """Three disjoint splits.  classes: the name of every class index.  domain: the range that inputs live in."""

    name: str
    train: Split
    val: Split
    test: Split
    classes: tuple[str, ...]
    domain: tuple[float, float] = (0.0, 1.0)


def load(name: str, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """A data set by name (one of NAMES), or from the path of an .npz file.

    x: (N, 1, 8, 8) for digits, (N, 1, 28, 28) for MNIST and Fashion-MNIST, (N, 3, 32, 32) for CIFAR-10; as stored for .npz.
    The splits are the same in every run and version.
    data_dir: a folder with the original files (IDX in torchvision's layout, CIFAR-10's binary archive) or Hugging Face parquet.
        Without it: the cache (the environment variable NONSINGULAR_DATA, or the user's cache folder), else a download into it.
        Digits and .npz files need no folder and ignore it.
    An .npz file holds x_train, y_train, x_test, y_test (x_val and y_val, and the names `classes`, if you like);
        x in float within [0, 1] or uint8, which is divided by 255; y in whole numbers from 0.
    Checked: downloads, MNIST's IDX files and CIFAR-10's archive by md5; Fashion-MNIST's IDX files and all parquet files
        by their form only (number and size of images, range of labels).
    Raises InvalidInput for an unknown name, and for files that are missing, damaged or not what they should be.
    """
    if name == "digits":
        return _digits()
    if name in SOURCES:
        train, test = _public(SOURCES[name], None if data_dir is None else Path(data_dir).expanduser())
        train, val = _hold_out(train, SOURCES[name].held_out)
        return Dataset(name, _split(train), _split(val), _split(test), SOURCES[name].classes)
    if name.endswith(".npz"):
        return _npz(Path(name).expanduser())
    close = difflib.get_close_matches(name.lower(), NAMES, n=1)
    guess = f"; did you mean '{close[0]}'?" if close else "."
    raise InvalidInput(f"there is no data set '{name}'{guess} Choose one of {', '.join(NAMES)}, or give the path of an .npz file")


# ---- splits ----------------------------------------------------------------------------------------------------------


def _shuffled(n: int, seed: int) -> NDArray[np.int64]:
    return np.random.RandomState(seed).permutation(n)  # NumPy promises never to change this stream; Generator's may change


def _hold_out(arrays: Arrays, size: int) -> tuple[Arrays, Arrays]:
    """What stays, and `size` examples set aside: every class in proportion, by largest remainder; the same in every run."""
    x, y = arrays
    quota, remainder = np.divmod(np.bincount(y) * size, len(y))
    quota[np.argsort(-remainder, kind="stable")[: size - quota.sum()]] += 1
    order = _shuffled(len(y), seed=0)
    aside = np.zeros(len(y), dtype=bool)
    for label, count in enumerate(quota):
        aside[order[y[order] == label][:count]] = True
    return (x[~aside], y[~aside]), (x[aside], y[aside])


def _split(arrays: Arrays, white: int = 255) -> Split:
    """Tensors of images in 0..`white`, scaled to [0, 1]."""
    x, y = arrays
    return Split(torch.tensor(x, dtype=torch.float32).div_(white), torch.tensor(y))


def _digits() -> Dataset:
    """UCI digits, 1,797 images: 1,097 to train, 200 to validate, 500 to test.  Alpaydin and Kaynak, doi:10.24432/C50P49."""
    with np.load(io.BytesIO(package_files("nonsingular").joinpath("assets", "digits.npz").read_bytes())) as stored:
        everything = stored["x"][:, None], stored["y"].astype(np.int64)
    rest, test = _hold_out(everything, 500)
    train, val = _hold_out(rest, 200)
    splits = [_split(part, white=16) for part in (train, val, test)]
    return Dataset("digits", *splits, classes=tuple("0123456789"))


# ---- public data sets: where their files are -------------------------------------------------------------------------


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


def _public(source: Source, data_dir: Path | None) -> tuple[Arrays, Arrays]:
    """Training and test arrays from `data_dir`, or without it from the cache, which is filled first if need be."""
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
    """Name of every original file that `folder` holds -> its path, unpacked if it is there in both forms."""
    forms = {name: (folder / _unpacked(name), folder / name) for name in source.files}
    return {name: next(p for p in paths if p.is_file()) for name, paths in forms.items() if any(p.is_file() for p in paths)}


def _download(source: Source, cache: Path) -> None:
    """Fetch the original files that `cache` lacks.  A file is there whole and with the right md5, or not at all."""
    import pooch

    folder = cache / source.places[0]
    fetch: Any = pooch.HTTPDownloader(timeout=(5, 30), chunk_size=1 << 20)  # seconds to connect, seconds between bytes
    chatter = pooch.get_logger()
    level = chatter.level
    chatter.setLevel(logging.WARNING)  # it would say the same as we do
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


# ---- public data sets: what their files say --------------------------------------------------------------------------


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
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as e:
        raise InvalidInput(f"{path} cannot be read, it is truncated or damaged ({e}); {remedy}") from e
    # 0, 0, 8 = unsigned bytes, the number of dimensions, every dimension in 4 bytes, then the bytes themselves
    head = bytes([0, 0, 8, len(shape)]) + np.array(shape, dtype=">u4").tobytes()
    if data[:4] != head[:4]:
        raise InvalidInput(
            f"{path} starts with bytes [{data[:4].hex(' ')}], expected [{head[:4].hex(' ')}]: no such IDX file; {remedy}"
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
    arrow, parquet = _extra("pyarrow", path), _extra("pyarrow.parquet", path)
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
            f"{path}: column 'label' is {labels.type}, with {labels.null_count} cells empty; expected whole numbers"
        )
    _check_labels(path, y := y.astype(np.int64), source)
    return _decode(path, table[image].to_pylist(), source.shape), y


def _decode(path: Path, cells: list[Any], shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """(N, *shape) images out of cells {bytes, path}.  One thread: Pillow is slower in four on images this small."""
    pillow = _extra("PIL.Image", path)
    channels, height, width = shape
    expected = f"{height} x {width} {'L' if channels == 1 else 'RGB'}"
    x = np.empty((len(cells), height, width, channels), dtype=np.uint8)
    for row, cell in enumerate(cells):
        try:
            with pillow.open(io.BytesIO(cell["bytes"]), formats=("PNG", "JPEG")) as image:
                found = f"{image.height} x {image.width} {image.mode}"
                if found == expected:
                    x[row] = np.asarray(image).reshape(x.shape[1:])
        except Exception as e:  # Pillow raises a dozen kinds for damaged images
            found = f"missing or damaged ({type(e).__name__})"
        if found != expected:
            raise InvalidInput(f"{path}: the image in row {row} (the first is 0) is {found}; expected {expected}, as PNG or JPEG")
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2))


def _extra(module: str, path: Path) -> Any:
    """A module of the extra `parquet`; Any, because pyarrow has no types."""
    try:
        return importlib.import_module(module)
    except ImportError as e:
        raise InvalidInput(f"reading {path} needs pyarrow and pillow; run: pip install 'nonsingular[parquet]'") from e


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

NAMES: tuple[str, ...] = ("digits", *SOURCES)
"""Every name that `load` knows."""


# ---- your own .npz file ----------------------------------------------------------------------------------------------


def _npz(path: Path) -> Dataset:
    stored = _stored(path)
    parts = tuple(part for part in ("train", "val", "test") if part == "test" or stored.keys() & {f"x_{part}", f"y_{part}"})
    if lacking := [name for part in parts for name in (f"x_{part}", f"y_{part}") if name not in stored]:
        raise InvalidInput(
            f"{path} lacks {', '.join(lacking)}; it holds {sorted(stored)}. Expected x_test (N, ...) and y_test (N,), for "
            "training x_train and y_train too; if you like, x_val with y_val, and the names of the classes in classes"
        )
    arrays = {part: _checked(path, part, stored[f"x_{part}"], stored[f"y_{part}"]) for part in parts}
    like = arrays["test"][0].shape
    for part, (x, _) in arrays.items():
        if x.shape[1:] != like[1:]:
            raise InvalidInput(f"{path}: x_{part} has shape {x.shape} and x_test {like}; expected the same, but for N")
    classes = _classes(path, stored.get("classes"), [y for _, y in arrays.values()])
    nothing = (np.zeros((0, *like[1:]), np.float32), np.zeros(0, np.int64))
    arrays.setdefault("train", nothing)
    examples = len(arrays["train"][0])
    if "val" not in arrays and examples:
        if examples < 2:
            raise InvalidInput(f"{path}: x_train holds one example; give two or more (one is set aside), or x_val and y_val")
        arrays["train"], arrays["val"] = _hold_out(arrays["train"], max(1, min(5_000, examples // 10)))
    arrays.setdefault("val", nothing)
    train, val, test = (Split(torch.tensor(x), torch.tensor(y)) for x, y in (arrays[part] for part in ("train", "val", "test")))
    return Dataset(path.stem, train, val, test, classes)


def _stored(path: Path) -> dict[str, NDArray[Any]]:
    """Every array of an .npz file."""
    if not path.is_file():
        raise InvalidInput(f"'{path}' {'is not a file' if path.exists() else 'does not exist'}; give the path of an .npz file")
    name = ""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays: dict[str, NDArray[Any]] = {}
            for name in stored.files:
                arrays[name] = stored[name]
            return arrays
    except (OSError, EOFError, TypeError, ValueError, zipfile.BadZipFile, zlib.error) as e:
        what = f"{path}: array {name}" if name else f"{path}"
        raise InvalidInput(f"{what} cannot be read ({e}); write the file with numpy.savez, from arrays of numbers") from e


def _checked(path: Path, part: str, x: NDArray[Any], y: NDArray[Any]) -> Arrays:
    """float32 inputs in [0, 1] and int64 labels from 0, or InvalidInput."""
    given = f"{path}: x_{part} is {x.dtype} of shape {x.shape}"
    if x.ndim < 2 or x.size == 0:
        raise InvalidInput(f"{given}; expected (N, ...) with one or more examples, e.g. (N, 1, 28, 28) images")
    if x.dtype != np.uint8 and x.dtype.kind != "f":
        raise InvalidInput(f"{given}; expected float in [0, 1], or uint8, which is divided by 255")
    with np.errstate(over="ignore"):  # a number too large becomes infinite, and is refused
        x = x.astype(np.float32) / np.float32(255 if x.dtype == np.uint8 else 1)
    lo, hi = float(x.min()), float(x.max())  # NaN if one element is
    if not (lo >= 0 and hi <= 1):
        raise InvalidInput(
            f"{given} and spans [{lo:.4g}, {hi:.4g}]; expected finite numbers in [0, 1]. Divide 0-255 pixels by 255 "
            "or store them as uint8, rescale other ranges, and move a normalisation into the model"
        )
    given = f"{path}: y_{part} is {y.dtype} of shape {y.shape}"
    if y.dtype.kind not in "iu" or y.shape != x.shape[:1]:
        raise InvalidInput(
            f"{given}; expected a whole number for each of the {len(x)} examples in x_{part}: shape {x.shape[:1]} "
            "(one-hot rows: y.argmax(1); one column: y.ravel())"
        )
    y = y.astype(np.int64)
    if y.min() < 0:
        raise InvalidInput(f"{given} and holds {y.min()}; class indices start at 0")
    return x, y


def _classes(path: Path, names: NDArray[Any] | None, labels: list[NDArray[np.int64]]) -> tuple[str, ...]:
    """One name for each class index: those given, or else the numbers up to the largest label."""
    k, n = 1 + max(int(y.max()) for y in labels), sum(map(len, labels))
    if names is None:
        if k > n:
            raise InvalidInput(
                f"{path}: the largest label is {k - 1}, of {n} examples; if that is right, name all classes in classes"
            )
        return tuple(map(str, range(k)))
    if names.ndim != 1 or len(names) < k:
        raise InvalidInput(
            f"{path}: classes has shape {names.shape}; expected one name per class, ({k},) or more for labels 0..{k - 1}"
        )
    return tuple(map(str, names))
