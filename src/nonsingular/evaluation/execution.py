"""execution.py - where the work of a surface is done, and where it is kept.  No number depends on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from nonsingular.errors import Unconfirmed
from nonsingular.results.surface import Cell

T = TypeVar("T")
Span = tuple[int, int]
"""Examples start to stop."""
Submit = Callable[..., Future[Any]]
"""Does an attack elsewhere: (name of a function in schedule.TASKS, its arguments after case, grid and method) -> its result."""
Parts = Callable[[Sequence[Span], Callable[[Span], NDArray[np.float32] | None]], Iterable[tuple[Span, NDArray[np.bool_], float]]]
"""Certifies elsewhere: (spans, span -> attacked margins) -> (span, certified (rows, columns, n), seconds), in any order."""


def _nothing(done: Any) -> None:
    """No report."""


@dataclass(frozen=True)
class Shard:
    """Part `index`, from 1, of the `of` parts into which the pieces of a run are divided."""

    index: int
    of: int

    @classmethod
    def of_text(cls, text: str) -> Shard:
        """`2/4` -> the second of four."""
        index, of = text.split("/")
        return cls(int(index), int(of))

    def block(self, pieces: Sequence[T]) -> Sequence[T]:
        """Its pieces: neighbours, and as many as every other part has, or one more.  Empty where there are fewer than parts."""
        return pieces[(self.index - 1) * len(pieces) // self.of : self.index * len(pieces) // self.of]


@dataclass(frozen=True)
class Execution:
    """log: file to which finished pieces are appended, and from which they are taken.  keep: also the perturbations, beside it.

    submit, parts: do the work elsewhere; None for this process.  workers: processes of this machine among which `submit` may
    divide a cell with many examples; 1 where it may not.  on_cell, on_swept, on_part: called with each cell, with each
    cell of a sweep before the last, and with the number of examples certified.  shard: does the pieces of this part alone; None
    for all.
    """

    log: Path | None = None
    keep: bool = True
    submit: Submit | None = None
    parts: Parts | None = None
    on_cell: Callable[[Cell], None] = _nothing
    on_part: Callable[[int], None] = _nothing
    on_swept: Callable[[Cell], None] = _nothing
    shard: Shard | None = None
    workers: int = 1

    def mine(self, pieces: Sequence[T]) -> Sequence[T]:
        """Those that are to be done here."""
        return pieces if self.shard is None else self.shard.block(pieces)


ALONE = Execution()
"""In this process, nothing kept."""


def from_log(log: Path, shard: Shard | None = None) -> Execution:
    """Nothing is done: all comes from `log`.  A piece that it lacks raises Unconfirmed."""

    def refuse(task: str, *args: Any) -> Future[Any]:
        raise Unconfirmed(f"{log.name} lacks {'radii' if task == 'front' else 'cells'} of this run")

    def parts(spans: Sequence[Span], known: Any) -> Iterable[Any]:
        if spans:
            raise Unconfirmed(f"{log.name} lacks certificates of this run")
        return ()

    return Execution(log, keep=False, submit=refuse, parts=parts, shard=shard)


class Aside:
    """Does calls in their order: each while the caller goes on, until the next one, or at once."""

    def __init__(self, aside: bool) -> None:
        self._thread = ThreadPoolExecutor(1) if aside else None
        self._last: Future[None] | None = None

    def do(self, call: Callable[..., None], *args: Any) -> None:
        """Raises what the call before raised."""
        self.wait()
        if self._thread is None:
            call(*args)
        else:
            self._last = self._thread.submit(call, *args)

    def wait(self) -> None:
        """Raises what the last call raised."""
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def close(self) -> None:
        """Waits for the last call, whatever it raises."""
        if self._thread is not None:
            self._thread.shutdown()
