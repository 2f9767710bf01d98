"""schedule.py - the points of a grid as pieces of work: done here or elsewhere, kept in a log as they come, found there again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, as_completed, wait
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nonsingular.certificates.certify import Prover
from nonsingular.errors import SoundnessError
from nonsingular.evaluation.certified import confront, margins_of, tolerance
from nonsingular.evaluation.problem import Method, Proof
from nonsingular.evaluation.stored import FOLDER, Found, Radii, read_found, write_found
from nonsingular.evaluation.walk import Reached, reach, walk
from nonsingular.network.calling import logits_at
from nonsingular.network.margins import attained, worst_margin
from nonsingular.results.files import Log
from nonsingular.results.surface import Cell
from nonsingular.threat.perturbation import Perturbation

Piece = tuple[tuple[int, int], list[Cell], list[Found]]
"""What a piece of the work leaves: the span of examples, points of the grid, and what was found there."""
Submit = Callable[..., Future[Any]]
"""Who does the work elsewhere: (name of a function in TASKS, its arguments after model, x, y, method) -> its result."""


def cell_alone(model: nn.Module, x: Tensor, y: Tensor, method: Method, radii: Radii, keep: bool) -> Piece:
    """One point of the grid by itself.  keep: with what broke the examples that are lost."""
    cells: list[Cell] = []
    found: list[Found] = []
    for start, stop in method.groups(model, len(x)):
        labels = y[start:stop]
        reached = reach(model, x[start:stop], labels, method, radii)
        cells.append(reached.cell)
        if keep:
            found += _found(model, labels, method, reached, start)
    return (0, len(x)), [Cell.joined(cells)], found


def cell_nested(
    model: nn.Module, x: Tensor, y: Tensor, method: Method, radii: Radii, smaller: Sequence[Reached]
) -> Reached:  # fmt: skip
    """One point of the grid for all examples, from its smaller neighbours."""
    return reach(model, x, y, method, radii, smaller)


def span_nested(
    model: nn.Module, x: Tensor, y: Tensor, method: Method, columns: Sequence[float], rows: Sequence[float],
    span: tuple[int, int], proven: NDArray[np.bool_] | None, keep: bool, proof: Proof | None = None,
) -> Piece:  # fmt: skip
    """The whole grid for one group of examples.  proven: (rows, columns, n) what is certified: held against what is reached."""
    x, y = x[slice(*span)], y[slice(*span)]
    cells: list[Cell] = []
    found: list[Found] = []
    for reached in walk(model, x, y, method, columns, rows, proven):
        cells.append(reached.cell)
        if keep and reached.origin == (reached.eps_x, reached.eps_w):
            found += _found(model, y, method, reached, span[0])
    if proven is not None and proof is not None:
        try:
            _challenge(model, x, y, method, proof, columns, rows, proven)
            confront(model, x, y, proof, columns, rows, proven, margins_of(cells, columns, rows))
        except SoundnessError as e:
            raise SoundnessError(e.example + span[0], e.eps_x, e.eps_w, e.certified, e.attacked) from None
    return span, cells, found


def _challenge(
    model: nn.Module, x: Tensor, y: Tensor, method: Method, proof: Proof, columns: Sequence[float], rows: Sequence[float],
    proven: NDArray[np.bool_],
) -> None:  # fmt: skip
    """Attacks every example once where it is certified: at the largest ball.  Raises SoundnessError where that succeeds."""
    size = np.add.outer(np.arange(len(rows)) / len(rows), np.arange(len(columns)) / len(columns)).reshape(-1, 1)
    certified = proven.reshape(-1, len(x))
    largest = np.where(certified.any(0), np.where(certified, size, -1.0).argmax(0), -1)
    for at in np.unique(largest[largest >= 0]):
        i, j = divmod(int(at), len(columns))
        here = torch.from_numpy(np.flatnonzero(largest == at)).to(x.device)
        ball, clean = method.unit.scaled(columns[j], rows[i]), Perturbation(x[here], scope="sample")
        point = method.attack(model, x[here], y[here], ball, scope=method.scope, start=clean).check(model, x[here], ball)
        logits = logits_at(model, point)
        margin = attained(logits, y[here])
        slack = torch.from_numpy(tolerance(model, x[here], logits_at(model, clean))).to(margin.device)
        for k in (margin < -slack).nonzero().flatten():
            bound = worst_margin(Prover(model, proof.method)(x[here[k]][None], y[here[k]][None], ball), y[here[k]][None])
            raise SoundnessError(int(here[k]), columns[j], rows[i], float(bound), float(margin[k]))


def _found(model: nn.Module, y: Tensor, method: Method, reached: Reached, first: int) -> list[Found]:
    """What broke the examples that are lost there; `first` is the number of the group's first example."""
    rows, point = reached.broken()
    radii = (reached.eps_x, reached.eps_w)
    return [Found.of(model, y[rows], method.unit, radii, rows + first, point)] if len(rows) else []


TASKS = {"cell_alone": cell_alone, "cell_nested": cell_nested, "span_nested": span_nested}
"""What workers can be asked to do."""


@dataclass(frozen=True, eq=False)
class Work:
    """The points of a grid, done in pieces that are kept in a log as they come."""

    model: nn.Module
    x: Tensor
    y: Tensor
    method: Method
    columns: tuple[float, ...]
    rows: tuple[float, ...]
    key: str
    log: Path | None
    keep: bool

    @property
    def grid(self) -> list[Radii]:
        return [(eps_x, eps_w) for eps_w in self.rows for eps_x in self.columns]

    def cells(
        self, submit: Submit | None, proof: Proof | None, proven: NDArray[np.bool_] | None, on_cell: Callable[[Cell], None]
    ) -> list[Cell]:  # fmt: skip
        """All points, in the order of the grid."""
        done = self._done()
        for cells in done.values():
            for cell in cells:
                on_cell(cell)
        points, groups = sum(map(len, done.values())), self.method.groups(self.model, len(self.x)) if self.method.nested else [0]
        if points == len(self.grid) * len(groups):
            pieces = iter(())
        elif self.method.nested and self.method.scope == "dataset":
            pieces = self._wavefront(submit, done)
        elif self.method.nested:
            pieces = self._spans(submit, done, proof, proven)
        else:
            pieces = self._alone(submit, done)
        for piece in pieces:
            self._write(piece)
            span, cells, _ = piece
            done.setdefault(span, []).extend(cells)
            for cell in cells:
                on_cell(cell)
        at: dict[Radii, list[Cell]] = {}
        for _, cells in sorted(done.items()):
            for cell in cells:
                at.setdefault((cell.eps_x, cell.eps_w), []).append(cell)
        return [Cell.joined(at[radii]) for radii in self.grid]

    def _done(self) -> dict[tuple[int, int], list[Cell]]:
        """What the log holds of this grid."""
        found: dict[tuple[int, int], dict[Radii, Cell]] = {}
        wanted = set(self.grid)
        spans = set(self.method.groups(self.model, len(self.x))) if self.method.nested else {(0, len(self.x))}
        for entry in Log(self.log) if self.log else ():
            if entry.get("key") == self.key and "cells" in entry and tuple(entry["span"]) in spans:
                cells = map(Cell.from_dict, entry["cells"])
                found.setdefault(tuple(entry["span"]), {}).update({(c.eps_x, c.eps_w): c for c in cells})
        held = {span: [c for r, c in cells.items() if r in wanted] for span, cells in found.items()}
        return held if not self._by_spans else {span: cells for span, cells in held.items() if len(cells) == len(wanted)}

    @property
    def _by_spans(self) -> bool:
        return self.method.nested and self.method.scope != "dataset"

    def _write(self, piece: Piece) -> None:
        if not self.log:
            return
        span, cells, found = piece
        if found:
            write_found(self.log.parent / FOLDER / file_of(span, cells), found)
        entry = {"key": self.key, "span": list(span), "cells": [c.to_dict() for c in cells]}
        Log(self.log).append(entry | {"about": {**self.method.describe(), "versions": versions()}})

    def _alone(self, submit: Submit | None, done: Mapping[tuple[int, int], list[Cell]]) -> Iterator[Piece]:
        """Points that know nothing of each other."""
        held = {(c.eps_x, c.eps_w) for cells in done.values() for c in cells}
        keep = self.keep and self.log is not None
        todo = [(radii, keep) for radii in self.grid if radii not in held]
        if submit is None:
            yield from (cell_alone(self.model, self.x, self.y, self.method, *args) for args in todo)
        else:
            yield from _completed([submit("cell_alone", *args) for args in todo])

    def _spans(
        self, submit: Submit | None, done: Mapping[tuple[int, int], list[Cell]], proof: Proof | None,
        proven: NDArray[np.bool_] | None,
    ) -> Iterator[Piece]:  # fmt: skip
        """Groups that share nothing, each over the whole grid."""
        keep = self.keep and self.log is not None
        todo = [
            (self.columns, self.rows, span, None if proven is None else proven[:, :, slice(*span)], keep, proof)
            for span in self.method.groups(self.model, len(self.x))
            if span not in done
        ]
        if submit is None:
            yield from (span_nested(self.model, self.x, self.y, self.method, *args) for args in todo)
        else:
            yield from _completed([submit("span_nested", *args) for args in todo])

    def _wavefront(self, submit: Submit | None, done: Mapping[tuple[int, int], list[Cell]]) -> Iterator[Piece]:
        """Points of one group of all examples, each as soon as its smaller neighbours are there."""
        width, reached = len(self.columns), dict[int, Reached]()
        for cell in (c for cells in done.values() for c in cells):
            again = self._again(cell)
            if again is not None:
                reached[self.grid.index((cell.eps_x, cell.eps_w))] = again
        held, running = set(reached), dict[Future[Reached], int]()

        def below(k: int) -> list[int]:
            return [m for m, there in ((k - width, k >= width), (k - 1, k % width > 0)) if there]

        while len(reached) < len(self.grid):
            waiting = set(range(len(self.grid))) - set(reached) - set(running.values())
            ready = [k for k in sorted(waiting) if all(m in reached for m in below(k))]
            for k in ready if submit else ready[:1]:
                smaller = [reached[m] for m in below(k)]
                running[_now(self, k, smaller) if submit is None else submit("cell_nested", self.grid[k], smaller)] = k
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                k, found = running.pop(future), future.result()
                reached[k] = found
                if k in held:
                    continue
                keep = self.keep and self.log and found.origin == (found.eps_x, found.eps_w)  # all, for a later run to go on from
                kept = [Found.of(self.model, self.y, self.method.unit, found.origin, found.rows, found.point)] if keep else []
                yield (0, len(self.x)), [found.cell], kept

    def _again(self, cell: Cell) -> Reached | None:
        """What was reached in an earlier run; None if its perturbation is not there any more."""
        here = (cell.eps_x, cell.eps_w)
        if self.log is None or cell.margins is None:
            return None
        origin = cell.origin or here
        path = self.log.parent / FOLDER / file_of((0, len(self.x)), [replace(cell, eps_x=origin[0], eps_w=origin[1])])
        if not path.exists():
            return None
        (found,) = read_found(path)
        correct, margins = torch.from_numpy(cell.correct.copy()), torch.from_numpy(cell.margins.copy())
        return Reached(*here, correct, margins, found.rows, found.point(self.model, self.method.unit), origin, cell.flags)


def _now(work: Work, k: int, smaller: Sequence[Reached]) -> Future[Reached]:
    future: Future[Reached] = Future()
    future.set_result(cell_nested(work.model, work.x, work.y, work.method, work.grid[k], smaller))
    return future


def _completed(futures: Sequence[Future[Any]]) -> Iterator[Any]:
    for future in as_completed(futures):
        yield future.result()


def file_of(span: tuple[int, int], cells: Sequence[Cell]) -> str:
    """The name under which the perturbations of a piece are kept."""
    return f"{span[0]}-{span[1]}" + (f" x {cells[0].eps_x!r} w {cells[0].eps_w!r}" if len(cells) == 1 else "") + ".safetensors"


def versions() -> dict[str, str]:
    """Of what decides the bits."""
    return {"nonsingular": version("nonsingular"), "torch": torch.__version__}
