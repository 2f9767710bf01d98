"""verification.py - what a verification finds, and how closely it looks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

PAIRS = 8
"""Certified pairs (example, cell) that are proven again by default.  Drawn at random: no run can foresee them."""
SURVIVORS = 8
"""Examples recorded as surviving that are attacked again by default."""
TOLERANCE = 1e-3
"""How far a margin may lie from the recorded one, relative to 1 + its size: last bits differ from machine to machine."""
SHOWN = 3
"""Most differences of one kind that are named."""


@dataclass
class Verification:
    """What was found, as sentences.  confirmed: derived again, and equal.  wrong: different.  open: cannot be checked."""

    confirmed: list[str] = field(default_factory=list[str])
    wrong: list[str] = field(default_factory=list[str])
    open: list[str] = field(default_factory=list[str])

    def judge(self, wrong: Sequence[str], right: str) -> None:
        """`right` is confirmed if nothing is wrong."""
        if wrong:
            more = len(wrong) - SHOWN
            self.wrong += [*wrong[:SHOWN], *([f"and {more} more of this kind"] if more > 0 else [])]
        else:
            self.confirmed.append(right)


def short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= 40 else text[:37] + "..."
