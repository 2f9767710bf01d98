"""schedule.py - the points of a grid as pieces of work: done here or elsewhere, kept in a log, and reused."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, as_completed, wait
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nonsingular.catalog import Bound
from nonsingular.certificates.certify import Prover
from nonsingular.errors import InvalidInput, SoundnessError
from nonsingular.evaluation.certified import confront, margins_of, tolerance
from nonsingular.evaluation.execution import Aside, Execution, Shard, Span
from nonsingular.evaluation.problem import Case, Method, left_key
from nonsingular.evaluation.shared import shared_row
from nonsingular.evaluation.spread import Spread, crew_of, divides, spread_call
from nonsingular.evaluation.stored import FOLDER, Against, Found, read_found, write_found
from nonsingular.evaluation.walk import Known, Reached, order, reach, walk
from nonsingular.network.calling import logits_at
from nonsingular.network.margins import attained, worst_margin
from nonsingular.results.files import Log
from nonsingular.results.surface import Cell
from nonsingular.threat.grid import Grid, Radii
from nonsingular.threat.perturbation import Perturbation

Piece = tuple[Span, list[Cell], list[Found]]
"""The result of a piece of work: the span of examples, its cells, and what was found there."""
Held = tuple[Bound, NDArray[np.bool_]]
"""A bound, and what it certifies: (rows, columns, n)."""


def cell_alone(case: Case, grid: Grid, method: Method, radii: Radii, keep: bool) -> Piece:
    """One cell by itself.  keep: also the perturbations of lost examples."""
    cells: list[Cell] = []
    found: list[Found] = []
    for start, stop in method.groups(case, grid.unit):
        part = case.part(slice(start, stop))
        reached = reach(part, grid, method, radii)
        cells.append(reached.cell)
        if keep:
            found += _found(part, grid, reached, start)
    return (0, len(case)), [Cell.joined(cells)], found


def span_nested(case: Case, grid: Grid, method: Method, span: Span, held: Held | None, keep: bool) -> Piece:
    """The whole grid for one group of examples.  held: their certificates, which are compared with what is reached."""
    part = case.part(slice(*span))
    cells: list[Cell] = []
    found: list[Found] = []
    for sweep, reached in walk(part, grid, method, None if held is None else held[1]):
        last = sweep == len(method.sweeps) - 1
        if last:
            cells.append(reached.cell)
        if keep and (last or method.alone) and reached.origin == (reached.eps_x, reached.eps_w):
            found += _found(part, grid, reached, span[0])
    if held is not None:
        try:
            _challenge(part, grid, method, held)
            confront(part, grid, *held, margins_of(cells, grid))
        except SoundnessError as e:
            raise SoundnessError(e.example + span[0], e.eps_x, e.eps_w, e.certified, e.attacked) from None
    return span, cells, found


def _challenge(case: Case, grid: Grid, method: Method, held: Held) -> None:
    """Attacks every example once where it is certified: in the largest ball.  Raises SoundnessError where that succeeds."""
    (bound, proven), (rows, columns) = held, grid.shape
    size = np.add.outer(np.arange(rows) / rows, np.arange(columns) / columns).reshape(-1, 1)
    certified = proven.reshape(-1, len(case))
    largest = np.where(certified.any(0), np.where(certified, size, -1.0).argmax(0), -1)
    for at in np.unique(largest[largest >= 0]):
        i, j = divmod(int(at), columns)
        here = torch.from_numpy(np.flatnonzero(largest == at)).to(case.x.device)
        some, ball = case.part(here), grid.ball(i, j)
        clean = Perturbation(some.x, scope="sample")
        point = method.at(some, ball, clean)
        margin = attained(logits_at(case.network, point.check(case.network, some.x, ball)), some.y)
        for k in (margin < -torch.from_numpy(tolerance(some)).to(margin.device)).nonzero().flatten():
            one = some.part(k[None])
            lower = worst_margin(Prover(case.network, bound.name, deployed=case.deployed)(one.x, one.y, ball), one.y)
            raise SoundnessError(int(here[k]), *grid.radii(i, j), float(lower), float(margin[k]))


def _found(case: Case, grid: Grid, reached: Reached, first: int) -> list[Found]:
    """The perturbations of the examples that are lost there; `first` is the number of the group's first example."""
    rows, point = reached.broken()
    if not len(rows):
        return []
    return [Found.of(case.network, case.y[rows], grid.unit, (reached.eps_x, reached.eps_w), rows + first, point)]


TASKS: Mapping[str, Callable[..., Any]] = {
    "cell_alone": cell_alone, "cell_nested": reach, "span_nested": span_nested, "shared_row": shared_row,
    "spread_call": spread_call,
}  # fmt: skip
"""The tasks of workers: (case, grid, method, ...)."""


EACH, MOST = 25, 4
"""One in how many cells is attacked once more, and how many at most."""


@dataclass(frozen=True, eq=False)
class Work:
    """The cells of a grid, done in pieces that are kept in a log as they come."""

    case: Case
    grid: Grid
    method: Method
    execution: Execution
    reached: dict[int, Reached] = field(default_factory=dict[int, Reached], init=False)
    """What this process reached at last where all examples share one W', by the number of the cell."""

    def cells(self, held: Held | None) -> list[Cell]:
        """All cells, in the order of the grid.  held: what is certified of all examples."""
        at: dict[Radii, list[Cell]] = {}
        for _, cells in sorted(self.pieces(held).items()):
            for cell in cells:
                at.setdefault((cell.eps_x, cell.eps_w), []).append(cell)
        return [Cell.joined(at[radii]) for radii in self.grid.points]

    def pieces(self, held: Held | None) -> dict[Span, list[Cell]]:
        """The cells of each piece: those that the log holds, and all others, or those of the shard, done now.

        Raises InvalidInput for a shard of cells that begin from each other and have one W' for all examples.
        """
        done, method = self._done(), self.method
        for cells in done.values():
            for cell in cells:
                self.execution.on_cell(cell)
        points, groups = sum(map(len, done.values())), len(self._spans_of_pieces)
        if points == len(self.grid.points) * groups:
            pieces = iter(())
        elif method.nested and method.scope == "dataset":
            check_parts(method, self.execution.shard)
            pieces = self._wavefront(done)
        elif method.nested:
            pieces = self._spans(done, held)
        else:
            pieces = self._alone(done)
        for piece in pieces:
            self._keeper.do(self._write, piece)
            span, cells, _ = piece
            new = {(cell.eps_x, cell.eps_w) for cell in cells}  # also of a cell that the log holds without its perturbation
            done[span] = [*(c for c in done.get(span, ()) if (c.eps_x, c.eps_w) not in new), *cells]
            for cell in cells:
                self.execution.on_cell(cell)
        self._keeper.wait()
        return done

    def left(self, cells: Sequence[Cell]) -> list[dict[str, float]]:
        """What is still to be had in some cells, in points: how far a longer attack lowers them.  cells: those of the result.

        One of EACH cells, at most MOST, of those that something is left of and in which W' moves, chosen by a seed; none in other
        scopes, for attacks without a budget, and where what was found is not at hand.
        """
        if self.method.scope != "dataset" or not self.method.attack.budget:
            return []
        key = left_key(self._key)
        for entry in Log(self.execution.log) if self.execution.log else ():
            if entry.get("key") == key:
                return [{name: float(one[name]) for name in ("eps_x", "eps_w", "points")} for one in entry["left"]]
        some = [k for k, cell in enumerate(cells) if cell.eps_w > 0 and cell.correct.any()]
        size = min(MOST, len(cells) // EACH, len(some))
        chosen = sorted(np.random.default_rng(0).choice(some, size, replace=False).tolist()) if size else []
        own = [self.reached.get(k) or self._again(cells[k], len(self.method.sweeps) - 1) for k in chosen]
        todo = [(r.eps_x, r.eps_w, r) for r in own if r is not None]
        submit = self.execution.submit or self._now
        if self._crew is not None and divides(len(self.case), len(todo), self.execution.workers):
            submit = partial(self._now, case=self._together)
        running = [submit("cell_nested", (x, w), Known(r, (), len(self.method.sweeps))) for x, w, r in todo]
        found = [
            {
                "eps_x": x,
                "eps_w": w,
                "points": 100 * int((r.correct.sum() - longer.result().correct.sum()).item()) / len(self.case),
            }
            for (x, w, r), longer in zip(todo, running, strict=True)
        ]
        if self.execution.log and found:
            Log(self.execution.log).append({"key": key, "span": [0, len(self.case)], "left": found})
        return found

    @cached_property
    def _key(self) -> str:
        return self.method.key(self.case, self.grid.unit)

    @property
    def _against(self) -> Against:
        return Against.of(self.case, self.grid)

    @property
    def _keep(self) -> bool:
        return self.execution.keep and self.execution.log is not None

    @property
    def _spans_of_pieces(self) -> list[Span]:
        """Examples of the pieces: groups, where these walk over the grid; else all together."""
        return self.method.groups(self.case, self.grid.unit) if self.method.nested else [(0, len(self.case))]

    def _done(self) -> dict[Span, list[Cell]]:
        """What the log holds of this grid."""
        found: dict[Span, dict[Radii, Cell]] = {}
        wanted, spans = set(self.grid.points), set(self._spans_of_pieces)
        key = self._key  # also where the log is empty: it runs the network, which nothing may do aside
        for entry in Log(self.execution.log) if self.execution.log else ():
            if entry.get("key") == key and "cells" in entry and tuple(entry["span"]) in spans:
                cells = map(Cell.from_dict, entry["cells"])
                found.setdefault(tuple(entry["span"]), {}).update({(c.eps_x, c.eps_w): c for c in cells})
        held = {span: [c for r, c in cells.items() if r in wanted] for span, cells in found.items()}
        whole = self.method.nested and self.method.scope != "dataset"  # a group counts with all of its cells
        return {span: cells for span, cells in held.items() if not whole or len(cells) == len(wanted)}

    def _write(self, piece: Piece, sweep: int = -1) -> None:
        if not (log := self.execution.log):
            return
        sweep %= len(self.method.sweeps)
        span, cells, found = piece
        if found:
            write_found(self._folder_of(sweep) / file_of(span, cells), found, self._against)
        entry = {"key": self._key_of(sweep), "span": list(span), "cells": [c.to_dict() for c in cells]}
        Log(log).append(entry | {"about": {**self.method.describe(self.grid.unit), "versions": versions()}})

    def _carried_out(self, task: str, todo: Sequence[tuple[Any, ...]]) -> Iterator[Piece]:
        """A task of TASKS with each of these arguments, here or elsewhere."""
        if (submit := self.execution.submit) is None:
            yield from (TASKS[task](self.case, self.grid, self.method, *args) for args in todo)
        else:
            yield from _completed([submit(task, *args) for args in todo])

    def _alone(self, done: Mapping[Span, list[Cell]]) -> Iterator[Piece]:
        """Cells that are independent of each other."""
        held = {(c.eps_x, c.eps_w) for cells in done.values() for c in cells}
        todo = [(radii, self._keep) for radii in self.execution.mine(self.grid.points) if radii not in held]
        return self._carried_out("cell_alone", todo)

    def _spans(self, done: Mapping[Span, list[Cell]], held: Held | None) -> Iterator[Piece]:
        """Groups that share nothing, each over the whole grid."""

        def of(span: Span) -> Held | None:
            return None if held is None else (held[0], held[1][:, :, slice(*span)])

        todo = [(span, of(span), self._keep) for span in self.execution.mine(self._spans_of_pieces) if span not in done]
        return self._carried_out("span_nested", todo)

    def _wavefront(self, done: Mapping[Span, list[Cell]]) -> Iterator[Piece]:
        """Cells of one group of all examples, sweep by sweep; yields those of the last, and keeps the others until it is done."""
        last = len(self.method.sweeps) - 1
        held = [self._held(self._cells_of(number), number) for number in range(last)]
        held.append(self._held([*chain(*done.values())], last))
        before = dict[int, Reached]()
        for number in range(max((n for n, known in enumerate(held) if len(known) == len(self.grid.points)), default=0), last + 1):
            now = dict(held[number])
            for found in self._sweep(number, before, now):
                # all examples, for a later run to go on from; of the last sweep, what was found in a smaller ball lies there
                keep = self._keep and (number < last or found.origin == (found.eps_x, found.eps_w))
                piece = (0, len(self.case)), [found.cell], [self._whole(found)] if keep else []
                if number == last:
                    yield piece
                else:
                    self._keeper.do(self._write, piece, number)
                    self.execution.on_swept(found.cell)
            before = now
            self._keeper.wait()
            self._forget(number - 1)
        self._forget(last - 1)
        self.reached.update(before)

    def _sweep(self, number: int, before: dict[int, Reached], now: dict[int, Reached]) -> Iterator[Reached]:
        """The cells that `now` lacks, into it, each as soon as its neighbours are there.

        before: those of the sweep before; each is taken out once it is used.
        """
        cells = order(self.grid, self.method.sweeps[number])
        running, submit = dict[Future[Reached], int](), self.execution.submit or self._now
        while len(now) < len(cells):
            started = {*now, *running.values()}
            ready = [(k, beside) for k, beside in cells if k not in started and all(m in now for m in beside)]
            if not running and self._crew is not None and divides(len(self.case), len(ready), self.execution.workers):
                for k, beside in ready:  # one after the other, each by all workers
                    known = Known(before.pop(k, None), [now[m] for m in beside], number)
                    now[k] = reach(self._together, self.grid, self.method, self.grid.points[k], known)
                    yield now[k]
                continue
            for k, beside in ready if self.execution.submit else ready[:1]:
                known = Known(before.pop(k, None), [now[m] for m in beside], number)
                running[submit("cell_nested", self.grid.points[k], known)] = k
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                now[k := running.pop(future)] = future.result()
                yield now[k]

    def _key_of(self, number: int) -> str:
        """The key of a sweep in the log; that of the last is the key of the result."""
        return self.method.keys(self._key)[number]

    def _folder_of(self, number: int) -> Path:
        """Where the perturbations of a sweep are kept."""
        assert self.execution.log is not None
        folder = self.execution.log.parent / FOLDER
        return folder if number == len(self.method.sweeps) - 1 else folder / f"sweep-{number}"

    def _forget(self, number: int) -> None:
        """Removes the perturbations of a sweep that nothing goes on from any more."""
        if number >= 0 and self._keep:
            shutil.rmtree(self._folder_of(number), ignore_errors=True)

    def _cells_of(self, number: int) -> list[Cell]:
        """What the log holds of a sweep before the last."""
        log = self.execution.log
        entries = (e for e in (Log(log) if log else ()) if e.get("key") == self._key_of(number) and "cells" in e)
        return [Cell.from_dict(cell) for entry in entries for cell in entry["cells"]]

    def _held(self, cells: Sequence[Cell], number: int) -> dict[int, Reached]:
        """What an earlier run reached in a sweep, by the number of the cell, where its perturbations are still there."""
        points = {radii: k for k, radii in enumerate(self.grid.points)}
        found = {points[c.eps_x, c.eps_w]: self._again(c, number) for c in cells if (c.eps_x, c.eps_w) in points}
        return {k: again for k, again in found.items() if again is not None}

    def _whole(self, found: Reached) -> Found:
        return Found.of(self.case.network, self.case.y, self.grid.unit, found.origin, found.rows, found.point)

    def _again(self, cell: Cell, number: int) -> Reached | None:
        """What was reached in an earlier run; None if its perturbation is not there any more."""
        here = (cell.eps_x, cell.eps_w)
        if self.execution.log is None or cell.margins is None:
            return None
        origin = cell.origin or here
        where = origin if number == len(self.method.sweeps) - 1 else here
        path = self._folder_of(number) / file_of((0, len(self.case)), [replace(cell, eps_x=where[0], eps_w=where[1])])
        if not path.exists():
            return None
        (found,) = read_found(path, self._against)
        correct, margins = torch.from_numpy(cell.correct.copy()), torch.from_numpy(cell.margins.copy())
        point = found.point(self.case.network, self.grid.unit)
        again = Reached(*here, correct, margins, found.rows, point, origin, cell.flags, cell.seconds, cell.passes)
        return again.to(self.case.x.device)

    @cached_property
    def _crew(self) -> Spread | None:
        """The workers, where they may divide a cell, and its examples are many."""
        return crew_of(self.case, self.execution) if self.method.attack.budget else None

    @cached_property
    def _together(self) -> Case:
        """The case, whose cells are done by all workers together."""
        return replace(self.case, crew=self._crew)

    @cached_property
    def _keeper(self) -> Aside:
        return Aside(self.execution.submit is not None)

    def close(self) -> None:
        """Removes what is kept on disk while cells are attacked."""
        self._keeper.close()
        if (crew := self.__dict__.get("_crew")) is not None:
            crew.close()

    def _now(self, task: str, *args: Any, case: Case | None = None) -> Future[Any]:
        """The same as `submit`, in this process."""
        future: Future[Any] = Future()
        future.set_result(TASKS[task](case or self.case, self.grid, self.method, *args))
        return future


def check_parts(method: Method, shard: Shard | None) -> None:
    """Raises InvalidInput for a shard where a run has no parts that know nothing of each other."""
    if shard is not None and shard.of > 1 and method.nested and method.scope == "dataset":
        raise InvalidInput(
            f"shard is {shard.index}/{shard.of}: in scope dataset one W' is for all examples and, with attack "
            f"'{method.attack.name}', each cell begins from others, so no part can be done by itself; spread the cells "
            "with --workers or --engine ray, or choose scope sample or batch, or an attack without starts, such as paper"
        )


def _completed(futures: Sequence[Future[Any]]) -> Iterator[Any]:
    for future in as_completed(futures):
        yield future.result()


def file_of(span: Span, cells: Sequence[Cell]) -> str:
    """The name under which the perturbations of a piece are kept."""
    return f"{span[0]}-{span[1]}" + (f" x {cells[0].eps_x!r} w {cells[0].eps_w!r}" if len(cells) == 1 else "") + ".safetensors"


def versions() -> dict[str, str]:
    """The versions that the last bits of a number depend on."""
    return {"nonsingular": version("nonsingular"), "torch": torch.__version__}
