"""png.py - arrays as pictures on the page."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def png(pixels: NDArray[np.uint8]) -> bytes:
    """(H, W, 1) grey or (H, W, 3) colour -> the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(buffer, "png")
    return buffer.getvalue()


def address(pixels: NDArray[np.uint8]) -> str:
    """The picture as a data: address."""
    return "data:image/png;base64," + base64.b64encode(png(pixels)).decode("ascii")


def signed(change: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W, C), 128 for no change, -> (H, W, 3): blue for less, white for none, orange for more; of several colours the largest.

    Both ends are equally dark, and distinct with colour blindness.
    """
    share = (change.astype(float) - 128.0) / 127.0
    pick = np.abs(share).argmax(axis=2, keepdims=True)
    s = np.clip(np.take_along_axis(share, pick, axis=2), -1.0, 1.0)
    less, more = np.array([5.0, 90.0, 180.0]), np.array([190.0, 85.0, 0.0])
    mixed: Any = 255.0 + np.abs(s) * (np.where(s < 0, less, more) - 255.0)
    return np.rint(mixed).astype(np.uint8)
