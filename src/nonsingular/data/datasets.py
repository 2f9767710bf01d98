"""datasets.py - data sets as tensors: by name, from files and folders, from the Hugging Face Hub, or from torch's own data sets.

A data set is three splits and the range that its inputs live in.  Nothing here unpickles.  A validation split that files do not
have is taken from the training data, never from the test data.  Radii of attacks are in the units of these tensors.
"""

from __future__ import annotations

import difflib
import hashlib
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nonsingular.data.readers import dispatch as anything
from nonsingular.data.readers import hub
from nonsingular.data.readers import indices as rows
from nonsingular.data.readers import named as public
from nonsingular.data.readers import torch_data as gather
from nonsingular.data.readers.named import SOURCES
from nonsingular.data.readers.raw import Arrays, Part, Raw
from nonsingular.errors import InvalidInput
from nonsingular.threat.ball import JointBall

NAMES: tuple[str, ...] = ("digits", *SOURCES)
"""Every name that `load` knows."""
SHOWN = 20
"""Names of classes that a line or an error lists."""
Domain = tuple[float, float] | Literal["own"] | None
"""The range that inputs live in, None for no limits, or "own": the range that the data set states."""


# ---- what `load` returns ---------------------------------------------------------------------------------------------


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes, dtypes and bytes."""
    digest = hashlib.sha256()
    for name, t in sorted(tensors.items()):
        digest.update(f"{name} {tuple(t.shape)} {t.dtype} ".encode())
        digest.update(t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@dataclass(frozen=True)
class Split:
    """Examples of one kind.  x: (N, *input) float32 in the domain of their data set.  y: (N,) int64 class indices."""

    x: Tensor
    y: Tensor
    columns: tuple[str, ...] = ()
    """For a table: the names of its d columns; empty if it has none."""

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
        return self._at(torch.tensor(np.sort(_shuffled(len(self), seed)[:limit])))

    def pick(self, file: Path) -> Split:
        """The rows whose numbers are in `file` (.npy, .json or .txt), in its order.

        Raises InvalidInput unless they are whole numbers, each once, in 0..N-1.
        """
        return self._at(torch.tensor(rows.read(file, len(self))))

    def _at(self, chosen: Tensor) -> Split:
        return replace(self, x=self.x[chosen], y=self.y[chosen])

    def sha256(self) -> str:
        """Hash over shapes, dtypes and bytes of x and y: equal if and only if the examples and their order are."""
        return hash_tensors({"x": self.x, "y": self.y})


@dataclass(frozen=True)
class Dataset:
    """Three disjoint splits.  classes: the name of every class index.  domain: the range that inputs live in; None: no limits."""

    name: str
    train: Split
    val: Split
    test: Split
    classes: tuple[str, ...]
    domain: tuple[float, float] | None = (0.0, 1.0)

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns of a table."""
        return self.test.columns

    def describe(self) -> str:
        """Sizes, inputs and domain, and the order of the classes, as lines of text."""
        x = next((s.x for s in (self.test, self.val, self.train) if len(s)), self.test.x)
        sizes = ", ".join(f"{len(s):,} {part}" for part, s in (("train", self.train), ("val", self.val), ("test", self.test)))
        limits = "no limits" if self.domain is None else f"in [{self.domain[0]:g}, {self.domain[1]:g}]"
        named = f"; columns: {', '.join(self.columns)}" if self.columns else ""
        return f"{self.name}: {sizes}\ninputs: {tuple(x.shape[1:])}, {limits}{named}\n{self.order}"

    @property
    def order(self) -> str:
        """Which name belongs to which class index, in words: "classes: 0 = no, 1 = yes"."""
        shown = [f"{k} = {name}" for k, name in enumerate(self.classes[:SHOWN])]
        return f"classes: {', '.join(shown)}" + (f", ... ({len(self.classes)})" if len(self.classes) > SHOWN else "")


def load(
    name: str | os.PathLike[str], data_dir: str | os.PathLike[str] | None = None, *, domain: Domain = "own",
    classes: Sequence[str] | None = None,
) -> Dataset:  # fmt: skip
    """A data set by name (one of NAMES), from a file or folder, or from the Hugging Face Hub.

    x: (N, 1, 8, 8) for digits, (N, 1, 28, 28) for MNIST and Fashion-MNIST, (N, 3, 32, 32) for CIFAR-10; as stored for others.
    The splits are the same in every run and version.
    data_dir: a folder with the original files (IDX in torchvision's layout, CIFAR-10's binary archive) or Hugging Face parquet.
        Without it: the cache (the environment variable NONSINGULAR_DATA, or the user's cache folder), else a download into it.
        Digits, paths and the Hub need no folder and ignore it.
    A path: an .npz file (x_test, y_test, or x, y); a folder of images with one sub-folder a class, optionally below train, val
        and test; a folder of IDX files; parquet or Arrow files in the style of Hugging Face, or a folder of them; CSV.
        Each module in `readers` describes its format.  "hf:owner/name" or "hf:owner/name:config": a data set on the Hub.
    domain: the range that inputs live in, for data that are not in [0, 1]; None for no limits.  Pixels (uint8) are always divided
        by 255.  By default the range that the source states: `domain` in an .npz file, no limits for tables, [0, 1] for others.
    classes: the names of the class indices, in the order of the model's outputs.  By default text is in sorted order (numbers as
        numbers), and whole numbers from 0 are the class indices themselves; `Dataset.order` lists them.
    Checked: downloads, MNIST's IDX files and CIFAR-10's archive by md5; Fashion-MNIST's IDX files and all parquet files
        by their form only (number and size of images, range of labels).
    Raises InvalidInput for an unknown name, for files that are missing, damaged or not what they should be, for inputs
        outside the domain, and for labels that are not in `classes`.
    """
    found = _load(os.fspath(name), data_dir, domain)
    return found if classes is None else _renamed(found, tuple(map(str, classes)))


def _load(name: str, data_dir: str | os.PathLike[str] | None, domain: Domain) -> Dataset:
    if name == "digits":
        return _in_domain(name, _digits(), domain)
    if name in SOURCES:
        train, test = public.read(name, None if data_dir is None else Path(data_dir).expanduser())
        train, val = _hold_out(train, SOURCES[name].held_out)
        return _in_domain(name, Dataset(name, _split(train), _split(val), _split(test), SOURCES[name].classes), domain)
    if name.startswith(hub.PREFIX):
        return _in_domain(name, _dataset(name, hub.read(name)), domain)
    path = Path(name).expanduser()
    if path.suffix.lower() in anything.SUFFIXES or os.sep in name or "/" in name or _exists(path):
        return _in_domain(name, _dataset(path.stem if path.suffix else path.resolve().name, anything.read(path)), domain)
    close = difflib.get_close_matches(name.lower(), NAMES, n=1)
    guess = f"; did you mean '{close[0]}'?" if close else "."
    raise InvalidInput(
        f"there is no data set '{name}'{guess} Choose one of {', '.join(NAMES)}, hf:owner/name, or give the path of "
        f"{anything.KINDS}"
    )


def as_tensors(data: Any) -> tuple[Tensor, Tensor]:
    """x and y out of two tensors or arrays, a Split, a torch Dataset of (x, y), or a DataLoader of them.

    A DataLoader that shuffles is read in the order of its dataset, with its last batch: two runs see the same examples in the
    same order.
    Everything is held in memory at once.
    Raises InvalidInput for anything else, for random transforms, random samplers, and examples of different shapes.
    """
    if isinstance(data, Split):
        return data.x, data.y
    if isinstance(data, Dataset):
        raise InvalidInput(f"data is a Dataset of three splits ({data.name}); give one of them, e.g. data.test")
    return gather.tensors(data)


def columns_of(data: Any) -> tuple[str, ...]:
    """The names of the columns of a Split, or of the table x in (x, y), such as a pandas DataFrame; empty without names."""
    if isinstance(data, Split):
        return data.columns
    x: Any = data[0] if isinstance(data, tuple | list) and data else None
    names = getattr(x, "columns", None)
    return () if names is None or isinstance(x, Split) else tuple(map(str, names))


def _renamed(data: Dataset, classes: tuple[str, ...]) -> Dataset:
    """The same data set with its classes in this order; classes without names get these names."""
    if len(set(classes)) < len(classes) or len(classes) < 2:
        raise InvalidInput(f"classes is {list(classes)}; give two or more different names")
    splits = (data.train, data.val, data.test)
    used = sorted({int(k) for s in splits for k in s.y.unique()})
    unnamed = data.classes == tuple(map(str, range(len(data.classes))))
    if unnamed and not any(name.lstrip("+-").isdecimal() for name in classes) and used[-1] < len(classes):
        return replace(data, classes=classes)
    if lacking := [data.classes[k] for k in used if data.classes[k] not in classes]:
        shown = ", ".join(lacking[:SHOWN]) + (", ..." if len(lacking) > SHOWN else "")
        raise InvalidInput(f"{data.name} has labels that classes lacks: {shown}; classes is {', '.join(classes)}")
    place = torch.zeros(len(data.classes), dtype=torch.long)
    place[used] = torch.tensor([classes.index(data.classes[k]) for k in used])
    train, val, test = (replace(s, y=place[s.y]) for s in splits)
    return replace(data, train=train, val=val, test=test, classes=classes)


@dataclass(frozen=True)
class FirstRadii:
    """A first grid where none is given, and the reasons for its numbers.  eps_w: multiples of the largest |weight|."""

    eps_x: tuple[float, ...]
    eps_w: tuple[float, ...]
    why_x: str
    why_w: str


def first_radii(x: Tensor) -> FirstRadii:
    """Six points for each axis: inputs up to a fifth of their spread, weights in steps of the change by rounding to int8.

    x: (N, *input).  The spread is the root of the mean variance of those inputs that vary between examples.

    >>> first_radii(torch.tensor([[0.0, 5.0], [1.0, 5.0]])).eps_x
    (0.0, 0.02, 0.04, 0.06, 0.08, 0.1)
    """
    values = x.detach().double().nan_to_num().flatten(1)
    variance = values.var(0, correction=0)
    varies = variance[variance > 0]
    spread = varies.mean().sqrt().item() if len(varies) else max(values.abs().max().item(), 1.0)
    top = float(f"{spread / 5:.1g}")
    return FirstRadii(
        tuple(float(f"{top * i / 5:.4g}") for i in range(6)), tuple(round(0.004 * i, 3) for i in range(6)),
        f"to a fifth of the spread of the inputs, {spread:.2g}",
        "multiples of the largest |weight| of each tensor, a step is what rounding to int8 moves it by",
    )  # fmt: skip


def missing_radii(x: Tensor, eps_x: Any, eps_w: Any) -> str:
    """The text of the error for a radius that is None."""
    first = first_radii(x)
    ask = [f"eps_x={list(first.eps_x)} ({first.why_x})"] if eps_x is None else []
    ask += [f"eps_w={list(first.eps_w)} with relative=True ({first.why_w})"] if eps_w is None else []
    return f"{' and '.join(n for n, r in (('eps_x', eps_x), ('eps_w', eps_w)) if r is None)} not given; e.g. {', '.join(ask)}"


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name too long, or with a NUL
        return False


def _in_domain(where: str, data: Dataset, domain: Domain) -> Dataset:
    """The same data set with the domain asked for.  Raises InvalidInput for inputs outside it."""
    chosen = data.domain if isinstance(domain, str) else domain
    ball = JointBall(0.0, 0.0, chosen)
    for part, split in (("train", data.train), ("val", data.val), ("test", data.test)):
        try:
            ball.check_domain(split.x)
        except InvalidInput as e:
            own = "; an array domain in the file can state it, too" if where.endswith(".npz") else ""
            raise InvalidInput(f"{where}, {part} split: {e}{own}") from None
    return replace(data, domain=chosen)


def _dataset(name: str, raw: Raw) -> Dataset:
    """Three splits out of what a reader found.  Raises InvalidInput if they do not fit together."""
    parts = dict(raw.parts)
    first, (like, _) = next(iter(parts.items()))
    for part, (x, _) in parts.items():
        if x.shape[1:] != like.shape[1:]:
            given = f"{raw.where}: inputs of {first} have shape {like.shape} and of {part} {x.shape}"
            raise InvalidInput(f"{given}; expected the same, except for N")
    classes = _classes(raw)
    nothing: Arrays = (np.zeros((0, *like.shape[1:]), np.float32), np.zeros(0, np.int64))
    train = parts.get("train", nothing)
    if "val" not in parts and len(train[0]):
        if len(train[0]) < 2:
            raise InvalidInput(
                f"{raw.where}: there is one example to train on; give two or more (one is set aside), or a val split"
            )
        train, parts["val"] = _hold_out(train, max(1, min(5_000, len(train[0]) // 10)))
    val, test = parts.get("val", nothing), parts.get("test", nothing)
    splits = [replace(_split(p, white=255 if p[0].dtype == np.uint8 else 1), columns=raw.columns) for p in (train, val, test)]
    return Dataset(name, *splits, classes=classes, domain=raw.domain)


def _classes(raw: Raw) -> tuple[str, ...]:
    """One name for each class index: those given, or else the numbers up to the largest label."""
    labels: list[tuple[Part, NDArray[np.int64]]] = [(part, y) for part, (_, y) in raw.parts.items()]
    k, n = 1 + max(int(y.max()) for _, y in labels), sum(len(y) for _, y in labels)
    if raw.classes is not None:
        if len(raw.classes) < k:
            raise InvalidInput(
                f"{raw.where}: there are {len(raw.classes)} classes, and labels up to {k - 1}; name one class for each label"
            )
        return raw.classes
    if k > max(n, 10_000):
        raise InvalidInput(
            f"{raw.where}: the largest label is {k - 1}, of {n} examples; if that is right, name all classes in classes"
        )
    return tuple(map(str, range(k)))


# ---- splits ----------------------------------------------------------------------------------------------------------


def _shuffled(n: int, seed: int) -> NDArray[np.int64]:
    return np.random.RandomState(seed).permutation(n)  # NumPy promises never to change this stream; Generator's may change


def _hold_out(arrays: Arrays, size: int) -> tuple[Arrays, Arrays]:
    """The rest, and `size` examples set aside: each class in proportion, by largest remainder; the same in every run."""
    x, y = arrays
    quota, remainder = np.divmod(np.bincount(y) * size, len(y))
    quota[np.argsort(-remainder, kind="stable")[: size - quota.sum()]] += 1
    order = _shuffled(len(y), seed=0)
    aside = np.zeros(len(y), dtype=bool)
    for label, count in enumerate(quota):
        aside[order[y[order] == label][:count]] = True
    return (x[~aside], y[~aside]), (x[aside], y[aside])


def _split(arrays: Arrays, white: int = 255) -> Split:
    """Tensors, the inputs divided by `white`."""
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
