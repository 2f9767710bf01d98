"""packed.py - tensors of a ball in few bytes, bit for bit: ends of their box as two bits, and the steps of an attack as levels.

Most elements that an attack moves lie at an end of their box, or have not moved; most others are a whole number of its steps
away from an end, but for rounding.  So an element is kept as a code: 0 and 1 for the ends, 2 for where it was, 3 for any other.
Of those, an element near a frequent place in its box is kept as the number of that place, a level, and its distance from there
in units of the last place; all others are kept as they are.  zlib then takes what regularity is left.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Bytes of an element -> whole numbers as wide."""
LEVELS, NEAR, FINE = 255, 127, 2.0**-14
"""Most levels of a piece; the largest distance from one, in units of the last place; the width of what counts as one place."""
PIECE = 2**20
"""Elements that are packed at once, which bounds the memory for it."""
EFFORT = 6
"""The level of zlib: a higher one is slower, and saves hardly anything."""


@dataclass(frozen=True, eq=False)
class Ends:
    """What a tensor is packed against, each of its shape and dtype: the ends of its box, and where it was.  On the CPU."""

    lo: Tensor
    hi: Tensor
    home: Tensor

    def part(self, at: slice) -> Ends:
        """Those of some elements, by their place in the flattened tensor."""
        return Ends(*(t.reshape(-1)[at] for t in (self.lo, self.hi, self.home)))

    def repeated(self, times: int) -> Ends:
        """Those of so many equal tensors."""
        return Ends(*(t.expand(times, *t.shape) for t in (self.lo, self.hi, self.home)))

    @property
    def dtype(self) -> torch.dtype:
        return self.home.dtype

    def inside(self, other: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Lower ends and widths of some elements."""
        lo, hi = (end.double().numpy()[other] for end in (self.lo, self.hi))
        return lo, hi - lo


@dataclass(frozen=True)
class OfRows:
    """Those of a tensor that are made where they are needed: all at once they would take three times its room.

    each: elements of a row.  of: the ends of some rows.
    """

    each: int
    dtype: torch.dtype
    of: Callable[[slice], Ends]

    def part(self, at: slice) -> Ends:
        """As that of `Ends`."""
        first, last = at.start // max(1, self.each), -(-at.stop // max(1, self.each))
        return self.of(slice(first, last)).part(slice(at.start - first * self.each, at.stop - first * self.each))


def pack(t: Tensor, ends: Ends | OfRows | None) -> bytes | None:
    """The numbers of a tensor on the CPU, of which `unpack` makes the same bits.  ends: None for one that lies in no box.

    None if the bits were others; every piece is unpacked and compared.
    """
    flat, size, stream, packed = t.detach().reshape(-1), t.element_size(), zlib.compressobj(EFFORT), list[bytes]()
    for at in _pieces(len(flat)):
        some = flat[at]
        if ends is None:
            coded = _planes(_words(some), size)
        else:
            here = ends.part(at)
            coded = _coded(some, here)
            if not np.array_equal(_decoded(_Bytes(coded), len(some), t.dtype, here), _words(some)):
                return None
        packed.append(stream.compress(coded))
    return b"".join(packed) + stream.flush()


def unpack(data: bytes, shape: tuple[int, ...], dtype: torch.dtype, ends: Ends | OfRows | None) -> Tensor:
    """The tensor of which `pack` made these bytes.  Raises ValueError for others; no more is unpacked than a tensor can need."""
    n, size = math.prod(shape), dtype.itemsize
    pieces = _pieces(n)
    most = n * size if ends is None else n * (size + 2) + len(pieces) * (8 * LEVELS + 16)
    stream = zlib.decompressobj()
    try:
        took = _Bytes(stream.decompress(data, most + 1))
    except zlib.error as e:
        raise ValueError(str(e)) from None
    if not stream.eof or stream.unused_data:
        raise ValueError("packed numbers end too early or too late")
    kind = np.dtype(f"<i{size}")
    words = np.empty(n, dtype=kind)
    for at in pieces:
        many = at.stop - at.start
        words[at] = _unplaned(took(many * size), kind) if ends is None else _decoded(took, many, dtype, ends.part(at))
    took.end()
    return torch.from_numpy(words).view(dtype).reshape(shape)


def _pieces(n: int) -> list[slice]:
    return [slice(i, min(i + PIECE, n)) for i in range(0, n, PIECE)]


# --- one piece of a tensor ------------------------------------------------------------------------------------------------


def _coded(t: Tensor, ends: Ends) -> bytes:
    words = _words(t)
    code = np.full(words.shape, 3, dtype=np.uint8)
    for k, end in ((2, ends.home), (1, ends.hi), (0, ends.lo)):
        code[words == _words(end)] = k
    other = code == 3
    lo, width = ends.inside(other)
    with np.errstate(all="ignore"):  # a box without a width, and numbers that are none, are near no level
        place = (t.double().numpy()[other] - lo) / width
        levels = _levels(place)
        level = np.searchsorted((levels[1:] + levels[:-1]) / 2, place) if len(levels) else np.zeros(len(place), dtype=int)
        away = words[other] - _at(levels, level, lo, width, t.dtype)
    near = np.isfinite(place) & (away >= -NEAR) & (away <= NEAR) & bool(len(levels))
    return b"".join((
        _crumbs(code), bytes([len(levels)]), levels.tobytes(), np.packbits(near).tobytes(),
        level[near].astype(np.uint8).tobytes(), away[near].astype(np.int8).tobytes(),
        _planes(words[other][~near], t.element_size()),
    ))  # fmt: skip


def _decoded(took: _Bytes, n: int, dtype: torch.dtype, ends: Ends) -> NDArray[Any]:
    kind = np.dtype(f"<i{dtype.itemsize}")
    words, code = np.empty(n, dtype=kind), _uncrumbed(took(-(-n // 4)), n)
    for k, end in ((0, ends.lo), (1, ends.hi), (2, ends.home)):
        words[code == k] = _words(end)[code == k]
    other = code == 3
    rest = np.empty(int(other.sum()), dtype=kind)
    levels = np.frombuffer(took(8 * took(1)[0]), dtype="<f8")
    near = np.unpackbits(np.frombuffer(took(-(-len(rest) // 8)), dtype=np.uint8), count=len(rest)).astype(bool)
    level = np.frombuffer(took(int(near.sum())), dtype=np.uint8).astype(int)
    away = np.frombuffer(took(int(near.sum())), dtype=np.int8)
    if len(level) and level.max() >= len(levels):
        raise ValueError("packed numbers name a level that is not there")
    lo, width = (v[near] for v in ends.inside(other))
    with np.errstate(all="ignore"):
        rest[near] = (_at(levels, level, lo, width, dtype) + away).astype(kind)
    rest[~near] = _unplaned(took(int((~near).sum()) * dtype.itemsize), kind)
    words[other] = rest
    return words


def _words(t: Tensor) -> NDArray[np.int64]:
    """(n,) its bits as whole numbers, wide enough for differences."""
    return t.detach().contiguous().view(WORDS[t.element_size()]).numpy().astype(np.int64)


def _levels(place: NDArray[np.float64]) -> NDArray[np.float64]:
    """The most frequent places in a box, in rising order: of each, the middle one of those that count as the same."""
    place = np.sort(place[np.abs(place) <= 2])
    bins = np.round(place / FINE).astype(np.int64)
    _, first, count = np.unique(bins, return_index=True, return_counts=True)
    often = np.sort(np.argsort(-count, kind="stable")[:LEVELS])
    return place[(first + count // 2)[often]]


def _at(
    levels: NDArray[np.float64], level: NDArray[np.int64], lo: NDArray[np.float64], width: NDArray[np.float64], dtype: torch.dtype
) -> NDArray[np.int64]:  # fmt: skip
    """The bits of the numbers at these levels."""
    if not len(levels):
        return np.zeros(len(lo), dtype=np.int64)
    return _words(torch.from_numpy(lo + levels[level] * width).to(dtype))


def _crumbs(code: NDArray[np.uint8]) -> bytes:
    """Four codes of two bits in a byte."""
    four = np.concatenate([code, np.zeros(-len(code) % 4, dtype=np.uint8)]).reshape(-1, 4)
    return (four << np.array([0, 2, 4, 6], dtype=np.uint8)).sum(1, dtype=np.uint8).tobytes()


def _uncrumbed(data: bytes, n: int) -> NDArray[Any]:
    four = np.frombuffer(data, dtype=np.uint8)[:, None] >> np.array([0, 2, 4, 6], dtype=np.uint8)
    return (four & 3).reshape(-1)[:n]


def _planes(words: NDArray[np.int64], size: int) -> bytes:
    """All lowest bytes, then all second ones, and so on: those of numbers of one size are alike."""
    return np.ascontiguousarray(words.astype(f"<i{size}").view(np.uint8).reshape(-1, size).T).tobytes()


def _unplaned(data: bytes, kind: np.dtype[np.signedinteger]) -> NDArray[np.signedinteger]:
    planes = np.frombuffer(data, dtype=np.uint8).reshape(kind.itemsize, -1)
    return np.array(planes.T, order="C").view(kind).reshape(-1)


class _Bytes:
    """Bytes that are taken from the front."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def __call__(self, n: int) -> bytes:
        found = self._data[self._at : self._at + n]
        if len(found) < n:
            raise ValueError("packed numbers end too early")
        self._at += n
        return found

    def end(self) -> None:
        if self._at != len(self._data):
            raise ValueError("packed numbers end too late")
