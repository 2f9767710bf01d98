"""certified.py - certified accuracy over a grid of radii, compared with what attacks reached.

Per example: certified margin <= worst margin <= attacked margin.  A violation is a fault of this library and fails the run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nonsingular.catalog import Bound, sound
from nonsingular.certificates.certify import Prover, verified
from nonsingular.errors import SoundnessError, renamed
from nonsingular.evaluation.execution import ALONE, Execution, Span
from nonsingular.evaluation.problem import Case, asked, described, proof_key
from nonsingular.network.calling import threads as use_threads
from nonsingular.network.graph import precise, trace_graph
from nonsingular.network.margins import worst_margin
from nonsingular.network.precision import precision
from nonsingular.network.preconditions import warn
from nonsingular.results.files import Log
from nonsingular.results.surface import Cell, Surface, arithmetic, pack, unpack
from nonsingular.threat.ball import Moves
from nonsingular.threat.grid import Grid

SLACK = 100
"""How far rounding may move a margin, in units of the last place of the largest logit; attacks run in the model's precision."""
TOGETHER = 50
"""Examples whose certificates are one piece of work."""


def rehearse_proof(case: Case, grid: Grid, bound: Bound) -> None:
    """Bounds one example at radius 0, so that a bound without a rule for the model fails before any work is done."""
    first = case.part(slice(1))
    Prover(case.network, bound.name, deployed=case.deployed)(first.x, first.y, grid.at((0.0, 0.0)))


@renamed(method="bound")
def certified_surface(
    model: nn.Module,
    data: Any,
    *,
    eps_x: float | Sequence[float] | Tensor | Mapping[Any, Any] | None = None,
    eps_w: float | Sequence[float] | Mapping[str, Any] | None = None,
    bound: str = "crown",
    domain: tuple[float, float] | None = (0.0, 1.0),
    moves: Moves = "weights",
    relative: bool = False,
    log: Path | None = None,
    threads: int = 1,
    deployed: str | None = None,
    device: str | torch.device | None = None,
    dtype: str | None = None,
) -> Surface:
    """Certified accuracy of `model` over a grid of input and weight radii: a lower bound of robust accuracy in every scope.

    data: as in `evaluate`, x (N, *input) in `domain` and y (N,) class indices.
    model: (B, *input) -> (B, K) logits, in eval mode; never changed.
    eps_x, eps_w, domain, moves, relative, log, threads, device, dtype: as in `evaluate`.  bound: a sound bound of the catalog.
    deployed: as in `certify`.
    Balls are nested, so what is certified at one cell is certified at all smaller ones: an example is bounded at no more than
    rows + columns cells, along the border of what can be certified.
    Guarantee: that of the bound, cell by cell.  Cost: up to rows + columns bounds of every example.
    """
    proven_by = sound(bound)
    with use_threads(threads):
        case, grid = asked(model, data, eps_x, eps_w, device, dtype, domain=domain, moves=moves, relative=relative)
        warn(case.doubts)
        precision(deployed)
        return prove(replace(case, deployed=deployed), grid, proven_by, Execution(log)).surface(case.doubts)


@dataclass(frozen=True, eq=False)
class Proven:
    """What a bound certifies over a grid.  held: (rows, columns, N).  about: what names the numbers.  seconds: of all workers."""

    grid: Grid
    held: NDArray[np.bool_]
    name: str
    about: Mapping[str, Any]
    seconds: float
    tolerance: NDArray[np.float64]
    """(N,) as the function of this name says."""
    doubts: tuple[str, ...] = ()

    def surface(self, doubts: Sequence[str] = ()) -> Surface:
        """Its accuracies.  doubts: sentences that are shown beside them."""
        rows, columns = self.grid.shape
        cells = [Cell(*self.grid.radii(i, j), self.held[i, j]) for i in range(rows) for j in range(columns)]
        found = Surface.from_cells(
            cells, self.grid.eps_x, self.grid.eps_w, scope="sample", attack=self.about["bound"], model=self.name,
            kind="certified", about={**self.about, "doubts": list(doubts)},
        )  # fmt: skip
        return replace(found, seconds=self.seconds)

    def under(self, attacked: Sequence[Cell]) -> Proven:
        """The same without what an attack broke by a margin within rounding of 0.

        Raises SoundnessError where an attack broke more than that.
        """
        margins = lowest(attacked, self.grid)
        for i, j, k in np.argwhere(self.held & (margins < -self.tolerance)):  # also by certificates of an earlier run
            raise SoundnessError(int(k), *self.grid.radii(i, j), 0.0, float(margins[i, j, k]))
        lost = int((self.held & (margins <= 0)).any((0, 1)).sum())
        doubts = (
            f"{lost} examples are certified {arithmetic(self.about)} and lost by an attack in the model's own precision: "
            "rounding. They are not counted as certified.",
        )  # fmt: skip
        return replace(self, held=self.held & (margins > 0), doubts=doubts if lost else ())


def tolerance(case: Case) -> NDArray[np.float64]:
    """(N,) how far an attacked margin, in the model's own precision, may lie below a certified one.

    From the dtype and the scale of the logits, and from what rounding does to the examples themselves: certificates are of the
    network in exact arithmetic.
    """
    graph = trace_graph(precise(case.network, torch.float64), case.x.shape[1:])
    pieces = zip(case.x.split(256), case.clean.split(256), strict=True)
    with torch.no_grad():
        measured = torch.cat([(graph(part.double()) - z).abs().amax(1) for part, z in pieces])
    size = 1 + case.clean.double().abs().amax(1)
    place = max(torch.finfo(case.clean.dtype).eps, torch.finfo(torch.float32).eps)  # records keep margins in float32
    return (SLACK * place * size + 16 * measured.amax()).cpu().numpy()


def prove(
    case: Case, grid: Grid, bound: Bound, execution: Execution = ALONE, attacked: Sequence[Cell] | None = None,
    spans: Sequence[Span] | None = None,
) -> Proven:  # fmt: skip
    """`certified_surface` on checked inputs.

    attacked: what an attack left at every cell.  Examples that it broke are not tried; if one of its margins is below the bound,
    the run fails with SoundnessError.
    spans: the pieces to do, of `pieces_of`; None for all.  Examples of others count as certified only where the log says so.
    """
    n, key = len(case), proof_key(case, grid, bound)
    names = {**described(bound, grid.unit, case.deployed), **case.hashes}
    about = {**names, "versions": {"nonsingular": version("nonsingular"), "torch": torch.__version__}}
    journal = Log(execution.log) if execution.log else None
    held = np.zeros((*grid.shape, n), dtype=bool)
    done: dict[Span, float] = {}
    margins = None if attacked is None else lowest(attacked, grid)

    def keep(span: Span, bits: NDArray[np.bool_], seconds: float) -> None:
        held[:, :, slice(*span)] = bits
        done[span] = seconds
        execution.on_part(span[1] - span[0])

    pieces = pieces_of(n)
    for entry in journal or ():
        span = tuple(entry["span"]) if entry.get("key") == key and "span" in entry else None
        if span in pieces:
            shape = (*grid.shape, span[1] - span[0])
            keep(span, unpack(entry["certified"], int(np.prod(shape))).reshape(shape), entry["seconds"])

    def known(span: Span) -> NDArray[np.float32] | None:
        return None if margins is None else margins[:, :, slice(*span)]

    def in_this_process(spans: Sequence[Span], known: Callable[[Span], Any]) -> Iterator[Any]:
        for span in spans:
            yield certified_part(case, grid, bound, span, known(span))

    todo = [s for s in (pieces if spans is None else spans) if s not in done]
    for span, bits, seconds in (execution.parts or in_this_process)(todo, known):
        if journal:
            journal.append({"key": key, "span": list(span), "certified": pack(bits), "seconds": seconds, "about": about})
        keep(span, bits, seconds)
    return Proven(
        grid, held, case.name, {**names, "clean_accuracy": case.clean_accuracy}, sum(done.values()), tolerance(case)
    )  # fmt: skip


def pieces_of(n: int) -> list[Span]:
    """Spans of examples whose certificates are pieces of work."""
    return [(i, min(i + TOGETHER, n)) for i in range(0, n, TOGETHER)]


def confront(case: Case, grid: Grid, bound: Bound, held: NDArray[np.bool_], attacked: NDArray[np.float32]) -> None:
    """Bounds every example once where it was attacked, at the first cell that is not certified.

    For attacks that skip certified examples.  held, attacked: (rows, columns, n) of these examples; attacked: margins.
    Raises SoundnessError, with the number of the example among these, where the bound is above what was reached.
    """
    prover, slack = Prover(case.network, bound.name, deployed=case.deployed), tolerance(case)
    beyond = ~held.reshape(-1, len(case))
    first = np.where(beyond.any(0), beyond.argmax(0), -1)
    for at in np.unique(first[first >= 0]):
        i, j = divmod(int(at), len(grid.eps_x))
        here = np.flatnonzero(first == at)
        some = case.part(torch.as_tensor(here, device=case.x.device))
        low = worst_margin(prover(some.x, some.y, grid.ball(i, j)), some.y).cpu().numpy()
        _check(np.where(np.isfinite(low), low, -np.inf), attacked[i, j, here], slack[here], here, grid.radii(i, j))


def lowest(attacked: Sequence[Cell], grid: Grid) -> NDArray[np.float32]:
    """(rows, columns, N) margins reached at each cell or at a smaller one: balls are nested."""
    return np.minimum.accumulate(np.minimum.accumulate(margins_of(attacked, grid), axis=0), axis=1)


def certified_part(
    case: Case, grid: Grid, bound: Bound, span: Span, attacked: NDArray[np.float32] | None = None
) -> tuple[Span, NDArray[np.bool_], float]:  # fmt: skip
    """(span, certified (rows, columns, n), seconds) for the examples of `span`.

    Each example walks along the border of what is certified: to the next row where it is, to the column before where it is not.
    attacked: (rows, columns, n) margins that attacks reached, falling with the radii.  Examples that they broke are not tried,
    except at one cell each, where the border meets it.  Raises SoundnessError where one lies below the bound.
    """
    started = time.perf_counter()
    case, (rows, columns) = case.part(slice(*span)), grid.shape
    held = np.zeros((rows, columns, len(case)), dtype=bool)
    prover, slack = Prover(case.network, bound.name, deployed=case.deployed), tolerance(case)
    column = np.where(case.right.cpu().numpy(), columns - 1, -1)
    met = np.zeros(len(case), dtype=bool)

    def proven(i: int, j: int, here: NDArray[Any]) -> NDArray[np.bool_]:
        """Whether these examples are certified in this cell; compared with the attack."""
        some = case.part(torch.as_tensor(here, device=case.x.device))
        lower = prover(some.x, some.y, grid.ball(i, j))
        if attacked is not None:
            low = worst_margin(lower, some.y).cpu().numpy()
            _check(low, attacked[i, j, here], slack[here], here + span[0], grid.radii(i, j))
        return verified(lower, some.y).cpu().numpy()

    for i in range(rows):
        for j in reversed(range(columns)):
            here = np.flatnonzero(column == j)
            if attacked is not None:
                broken = attacked[i, j, here] <= 0
                column[here[broken]] -= 1
                here = here[~broken]
            if not len(here):
                continue
            good = proven(i, j, here)
            held[i, : j + 1, here[good]] = True
            column[here[~good]] -= 1
            if attacked is not None and j + 1 < columns:
                beside = here[good & (attacked[i, j + 1, here] <= 0) & ~met[here]]
                if len(beside):
                    proven(i, j + 1, beside)
                    met[beside] = True
    return span, held, time.perf_counter() - started


def _check(
    low: NDArray[Any], attacked: NDArray[Any], slack: NDArray[Any], examples: NDArray[Any], radii: tuple[float, float]
) -> None:  # fmt: skip
    """Certified margin <= attacked margin, example by example."""
    for k in np.flatnonzero(low > attacked + slack):
        raise SoundnessError(int(examples[k]), *radii, float(low[k]), float(attacked[k]))


def margins_of(cells: Sequence[Cell], grid: Grid) -> NDArray[np.float32]:
    """(rows, columns, N) margins reached at each cell; without a record of them, infinite where the label survived."""

    def of(cell: Cell) -> NDArray[Any]:
        return np.where(cell.correct, np.inf, -np.inf) if cell.margins is None else cell.margins

    at = {(c.eps_x, c.eps_w): of(c) for c in cells}
    return np.array([at[radii] for radii in grid.points], dtype=np.float32).reshape(*grid.shape, -1)
