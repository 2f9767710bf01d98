"""execution.py - where the work of a surface is done, and where it is kept.  No number depends on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonsingular.results.surface import Cell

Span = tuple[int, int]
"""Examples start to stop."""
Submit = Callable[..., Future[Any]]
"""Does an attack elsewhere: (name of a function in schedule.TASKS, its arguments after case, grid and method) -> its result."""
Parts = Callable[[Sequence[Span], Callable[[Span], NDArray[np.float32] | None]], Iterable[tuple[Span, NDArray[np.bool_], float]]]
"""Certifies elsewhere: (spans, span -> attacked margins) -> (span, certified (rows, columns, n), seconds), in any order."""


def _nothing(done: Any) -> None:
    """No report."""


@dataclass(frozen=True)
class Execution:
    """log: file to which finished pieces are appended, and from which they are taken.  keep: also the perturbations, beside it.

    submit, parts: do the work elsewhere; None for this process.  on_cell, on_part: called with each cell, and with the number of
    examples certified.
    """

    log: Path | None = None
    keep: bool = True
    submit: Submit | None = None
    parts: Parts | None = None
    on_cell: Callable[[Cell], None] = _nothing
    on_part: Callable[[int], None] = _nothing


ALONE = Execution()
"""In this process, nothing kept."""
