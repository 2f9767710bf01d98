"""png.py - arrays as PNG files, by the standard library alone.  PNG specification, ISO/IEC 15948."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray


def png(pixels: NDArray[np.uint8]) -> bytes:
    """(H, W, 1) grey or (H, W, 3) colour -> the bytes of a PNG file."""
    height, width, channels = pixels.shape
    lines = b"".join(b"\0" + row.tobytes() for row in pixels)  # filter 0: as they are
    header = struct.pack(">IIBBBBB", width, height, 8, {1: 0, 3: 2}[channels], 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(lines, 9)) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def address(pixels: NDArray[np.uint8]) -> str:
    """The picture as a data: address."""
    return "data:image/png;base64," + base64.b64encode(png(pixels)).decode("ascii")


def signed(change: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W, C), 128 for no change, -> (H, W, 3): blue for less, white for none, orange for more; of several colours the largest.

    Both ends are as dark as each other, and stay apart for every kind of colour sight.
    """
    share = (change.astype(float) - 128.0) / 127.0
    pick = np.abs(share).argmax(axis=2, keepdims=True)
    s = np.clip(np.take_along_axis(share, pick, axis=2), -1.0, 1.0)
    less, more = np.array([5.0, 90.0, 180.0]), np.array([190.0, 85.0, 0.0])
    mixed: Any = 255.0 + np.abs(s) * (np.where(s < 0, less, more) - 255.0)
    return np.rint(mixed).astype(np.uint8)
