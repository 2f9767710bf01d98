"""codes.py - bits that are stored beside the data so that errors are noticed or put right.

A code gets the bits as written, the bits as read, and which of its own check bits are in error where a check bit may be.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

import torch
from torch import Tensor

Protection = Literal["parity", "secded", "checksum"]
PROTECTIONS: tuple[Protection, ...] = get_args(Protection)
Faulty = Callable[[Tensor], Tensor]
"""Check bits as written, bool -> the same as they are read."""


@dataclass(frozen=True, eq=False)
class Read:
    """pattern: (N,) int64, the words after correction.  noticed: (N,) words that are known to be wrong."""

    pattern: Tensor
    noticed: Tensor


def read(protection: Protection, written: Tensor, stored: Tensor, bits: int, faulty: Faulty) -> Read:
    """What a protected memory returns for the words `stored` (R, C) where `written` (R, C) was written; (N,) = (R C,).

    `parity`: one bit for each word; an odd number of errors is noticed.  `secded`: 64 bits with 8 check bits, extended Hamming:
    one error is corrected, two are noticed, more may be taken for one.  `checksum`: the sum of the words of each row modulo 2^16,
    kept where nothing fails; a row whose sum differs is noticed.
    """
    if protection == "parity":
        bad = _odd(_spread(stored, bits), 1) ^ faulty(_odd(_spread(written, bits), 1))
        return Read(stored.flatten(), bad)
    if protection == "checksum":
        bad = ((written - stored).sum(1, keepdim=True) % 2**16 != 0).expand_as(stored)
        return Read(stored.flatten(), bad.flatten())
    return _secded(written, stored, bits, faulty)


def _spread(pattern: Tensor, bits: int) -> Tensor:
    """(N, bits) bool, bit 0 first."""
    return (pattern.flatten()[:, None] >> torch.arange(bits, device=pattern.device) & 1).bool()


def _odd(t: Tensor, dim: int) -> Tensor:
    return t.sum(dim) % 2 == 1


@cache
def _places() -> Tensor:
    """Places 1 to 71 of the 64 data bits in the code of Hamming: those that are no power of two."""
    return torch.tensor([p for p in range(1, 72) if p & (p - 1)])


def _secded(written: Tensor, stored: Tensor, bits: int, faulty: Faulty) -> Read:
    per, places = 64 // bits, _places().to(stored.device)  # words in a line; a line that is not full is filled with zeros
    count = stored.numel()
    lines = -(-count // per)

    def data(pattern: Tensor) -> Tensor:
        found = torch.zeros(lines * per, bits, dtype=torch.bool, device=pattern.device)
        found[:count] = _spread(pattern, bits)
        return torch.nn.functional.pad(found.view(lines, per * bits), (0, 64 - per * bits))

    powers = torch.arange(7, device=stored.device)
    member = (places[:, None] >> powers & 1).float()  # (64, 7): which data bits a check bit counts
    old, new = data(written), data(stored)

    def checks(d: Tensor) -> Tensor:
        return d.float() @ member % 2 == 1

    check = checks(old)
    overall = _odd(old, 1) ^ _odd(check, 1)
    held = faulty(torch.cat([check, overall[:, None]], 1))  # (lines, 8)
    syndrome = ((checks(new) ^ held[:, :7]).long() << powers).sum(1)
    odd = _odd(new, 1) ^ _odd(held, 1)
    wrong = odd & (syndrome > 0)  # taken for one error, at the place that the syndrome names
    found = new ^ (wrong[:, None] & (places == syndrome[:, None]))
    noticed = (~odd & (syndrome > 0)) | (wrong & (syndrome > 71))
    words = found[:, : per * bits].reshape(lines * per, bits)[:count]
    pattern = (words.long() << torch.arange(bits, device=stored.device)).sum(1)
    return Read(pattern, noticed[:, None].expand(lines, per).reshape(-1)[:count])
