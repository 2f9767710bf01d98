"""shared.py - certified accuracy where examples share W', over a grid: between the certified and the attacked surface.

In every cell: certified (a W' for each example) <= shared <= attacked, in the same scope.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from nonsingular.catalog import Bound
from nonsingular.certificates.shared import Known, counted
from nonsingular.errors import SharedSoundnessError
from nonsingular.evaluation.certified import Proven, margins_of
from nonsingular.evaluation.execution import Execution, Span
from nonsingular.evaluation.problem import Case, Method, proof_key
from nonsingular.results.files import Log
from nonsingular.results.surface import Cell, Surface
from nonsingular.threat.grid import Grid

Row = tuple[Span, int]
"""The examples that share W', and a row of the grid."""


@dataclass(frozen=True, eq=False)
class Counts:
    """What is known of some examples that share W' in one row of the grid.

    safe: (columns, n) which hold with a W' each.  attacked: (columns,) how many an attack broke.
    """

    safe: NDArray[np.bool_]
    attacked: NDArray[np.int64]


def shared_row(
    case: Case, grid: Grid, method: Method, bound: str, row: Row, known: Counts
) -> tuple[Row, NDArray[np.int64], float]:  # fmt: skip
    """(row, broken (columns,), seconds): no W' of a cell breaks more of the examples of `row`.

    Counted where that may say more than the certificates alone: not where they meet the attack, or where no weight moves; and
    from small input radii to large ones, until it gains nothing and most of the open examples are beyond it.
    """
    started = time.perf_counter()
    (start, stop), i = row
    case = case.part(slice(start, stop))
    broken = (~known.safe).sum(1)
    for j in range(len(grid.eps_x)):
        if grid.radii(i, j)[1] == 0 or broken[j] <= known.attacked[j]:
            continue
        safe = torch.from_numpy(known.safe[j].copy()).to(case.x.device)
        found = counted(case.network, case.x, case.y, grid.ball(i, j), Known(bound, safe, deployed=case.deployed))
        gain = int(broken[j]) - found.broken
        broken[j] = found.broken
        if not gain and int(found.lost.sum()) > int(found.open.sum()):
            break
    return row, broken, time.perf_counter() - started


@dataclass(frozen=True, eq=False)
class Sharing:
    """The work: a case under a method of scope `batch` or `dataset`, with what is certified of each example and was attacked."""

    case: Case
    grid: Grid
    method: Method
    bound: Bound
    proven: Proven
    cells: Sequence[Cell]

    def surface(self, execution: Execution) -> Surface:
        """The accuracies.  Raises SharedSoundnessError where an attack broke more examples than can break."""
        broken, seconds = self._counts(execution)
        grid, n = self.grid, len(self.case)
        size = {"batch_size": self.method.batch_size} if self.method.scope == "batch" else {}
        return Surface(
            grid.eps_x, grid.eps_w, (n - broken.sum(0)) / n, n, self.method.scope, self.bound.name, self.case.name, seconds,
            kind="shared", about={**self.proven.about, **size, "doubts": list(self.case.doubts)},
        )  # fmt: skip

    def _counts(self, execution: Execution) -> tuple[NDArray[np.int64], float]:
        """(groups, rows, columns) how many of each group can break at most, and the seconds of all workers."""
        groups, rows = self.method.groups(self.case, self.grid.unit), range(self.grid.shape[0])
        broken = np.zeros((len(groups), *self.grid.shape), dtype=np.int64)
        seconds = 0.0
        for (span, i), counts, took in self.rows([(span, i) for span in groups for i in rows], execution):
            broken[groups.index(span), i] = counts
            seconds += took
        for axis in (1, 2):  # balls are nested: what cannot break in a larger one cannot break in a smaller one
            broken = np.flip(np.minimum.accumulate(np.flip(broken, axis), axis), axis)
        return self._under(groups, broken), seconds

    def rows(self, rows: Sequence[Row], execution: Execution) -> Iterator[tuple[Row, NDArray[np.int64], float]]:
        """These rows, (row, broken, seconds) each, from the log or done now, here or elsewhere."""
        key = f"{proof_key(self.case, self.grid, self.bound)}-{self.method.key(self.case, self.grid.unit)}"
        journal = Log(execution.log) if execution.log else None
        done = set[Row]()
        for entry in journal or ():
            if entry.get("key") == key and "broken" in entry:
                row = (int(entry["span"][0]), int(entry["span"][1])), int(entry["row"])
                counts = np.array(entry["broken"], dtype=np.int64)
                if row in rows and row not in done and counts.shape == (len(self.grid.eps_x),):
                    done.add(row)
                    yield row, counts, float(entry["seconds"])
        todo = [(self.bound.name, row, self._known(row)) for row in rows if row not in done]
        if execution.submit is None:
            pieces = (shared_row(self.case, self.grid, self.method, *args) for args in todo)
        else:
            submit = execution.submit
            pieces = (future.result() for future in as_completed([submit("shared_row", *args) for args in todo]))
        for row, counts, took in pieces:
            if journal:
                entry = {"key": key, "span": list(row[0]), "row": row[1], "broken": counts.tolist(), "seconds": took}
                journal.append(entry | {"about": {**self.proven.about, "scope": self.method.scope}})
            yield row, counts, took

    def _known(self, row: Row) -> Counts:
        (start, stop), i = row
        return Counts(self.proven.held[i, :, start:stop], self._attacked(row[0], sure=False)[i])

    def _attacked(self, span: Span, *, sure: bool) -> NDArray[np.int64]:
        """(rows, columns) how many of a group one W' broke, in the cell or a smaller one.  sure: not within rounding of 0."""
        margins = margins_of(self.cells, self.grid)[:, :, slice(*span)]
        if sure:
            lost = margins < -self.proven.tolerance[slice(*span)]
        else:
            at = {(c.eps_x, c.eps_w): ~c.correct for c in self.cells}
            lost = np.array([at[r][slice(*span)] for r in self.grid.points]).reshape(margins.shape)
        return np.maximum.accumulate(np.maximum.accumulate(lost.sum(2), axis=0), axis=1)

    def _under(self, groups: Sequence[Span], broken: NDArray[np.int64]) -> NDArray[np.int64]:
        """The same, never below what an attack broke by a margin within rounding of 0."""
        found = broken.copy()
        for k, span in enumerate(groups):
            for i, j in np.argwhere(self._attacked(span, sure=True) > broken[k]):
                reached = int(self._attacked(span, sure=True)[i, j])
                raise SharedSoundnessError(span, *self.grid.radii(int(i), int(j)), int(broken[k, i, j]), reached)
            found[k] = np.maximum(broken[k], self._attacked(span, sure=False))
        return found
