"""certified.py - certified accuracy over a grid of radii, held against what attacks reached.

Per example: certified margin <= worst margin <= attacked margin.  A violation is a fault of this library and fails the run.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nonsingular.certificates.certify import Prover
from nonsingular.data.columns import input_axis
from nonsingular.data.datasets import as_tensors, columns_of, hash_tensors, missing_radii
from nonsingular.errors import InvalidInput, SoundnessError
from nonsingular.evaluation.problem import Proof
from nonsingular.network.calling import logits_at
from nonsingular.network.calling import threads as use_threads
from nonsingular.network.graph import precise, trace_graph
from nonsingular.network.heads import classifier
from nonsingular.network.margins import is_correct, worst_margin
from nonsingular.network.preconditions import check_inputs, warn
from nonsingular.results.files import Log
from nonsingular.results.surface import FORMAT, Cell, Surface, pack, unpack
from nonsingular.threat.ball import JointBall, Moves
from nonsingular.threat.grid import axis
from nonsingular.threat.perturbation import Perturbation

SLACK = 100
"""How far rounding may move a margin, in units of the last place of the largest logit; attacks run in the model's precision."""
TOGETHER = 50
"""Examples whose certificates are one piece of work."""


def rehearse_proof(model: nn.Module, x: Tensor, y: Tensor, proof: Proof) -> None:
    """Bounds one example at radius 0, so that a bound without a rule for the model says so before any work is done."""
    Prover(model, proof.method)(x[:1], y[:1].long(), proof.unit.scaled(0.0, 0.0))


Span = tuple[int, int]
"""Examples start to stop."""
Parts = Callable[[Sequence[Span], Callable[[Span], NDArray[np.float32] | None]], Iterable[tuple[Span, NDArray[np.bool_], float]]]
"""Who does the work: (spans, span -> attacked margins) -> (span, certified (rows, columns, n), seconds), in any order."""


def certified_surface(
    model: nn.Module,
    data: Any,
    *,
    eps_x: float | Sequence[float] | Tensor | Mapping[Any, Any] | None = None,
    eps_w: float | Sequence[float] | Mapping[str, Any] | None = None,
    method: str = "crown",
    domain: tuple[float, float] | None = (0.0, 1.0),
    moves: Moves = "weights",
    relative: bool = False,
    log: Path | None = None,
    threads: int = 1,
) -> Surface:
    """Certified accuracy of `model` over a grid of input and weight radii: a lower bound of robust accuracy in every scope.

    data: as in `evaluate`, x (N, *input) in `domain` and y (N,) class indices.
    model: (B, *input) -> (B, K) logits, in eval mode; never changed.
    eps_x, eps_w, domain, moves, relative, log, threads: as in `evaluate`.  method: a sound bound of the catalog.
    Balls are nested, so what is certified at one point is certified at all smaller ones: an example is bounded at no more than
    rows + columns points, along the border of what can be certified.
    Guarantee: that of the bound, cell by cell.  Cost: up to rows + columns bounds of every example.
    """
    x, y = as_tensors(data)
    if eps_x is None or eps_w is None:
        raise InvalidInput(missing_radii(x, eps_x, eps_w))
    radii = eps_w if isinstance(eps_w, Mapping) else None
    unit_x, columns = input_axis(eps_x, x.shape[1:], columns_of(data))
    proof = Proof(method, JointBall(unit_x, 1.0 if radii is None else radii, domain, moves, relative))
    with use_threads(threads):
        model = classifier(model, x, proof.unit)
        warn(doubts := [*model.told, *check_inputs(model, x, y, proof.unit)])
        rows = axis(1.0 if isinstance(eps_w, Mapping) else eps_w, "eps_w")
        return prove(model, x, y.long(), proof, columns, rows, log=log).surface(doubts=doubts)


@dataclass(frozen=True, eq=False)
class Proven:
    """What a bound certifies over a grid.  held: (rows, columns, N).  about: what names the numbers.  seconds: of all workers."""

    held: NDArray[np.bool_]
    columns: tuple[float, ...]
    rows: tuple[float, ...]
    about: Mapping[str, Any]
    seconds: float
    tolerance: NDArray[np.float64]
    """(N,) as the function of this name says."""
    doubts: tuple[str, ...] = ()

    def surface(self, name: str = "model", doubts: Sequence[str] = ()) -> Surface:
        """Its accuracies.  doubts: sentences that stand beside them."""
        cells = [Cell(c, r, self.held[i, j]) for i, r in enumerate(self.rows) for j, c in enumerate(self.columns)]
        found = Surface.from_cells(
            cells, self.columns, self.rows, scope="sample", attack=self.about["bound"], model=name, kind="certified",
            about={**self.about, "doubts": list(doubts)},
        )  # fmt: skip
        return replace(found, seconds=self.seconds)

    def under(self, attacked: Sequence[Cell]) -> Proven:
        """The same without what an attack broke by a margin within rounding of 0.

        Raises SoundnessError where an attack broke more than that.
        """
        margins = _lowest(attacked, self.columns, self.rows)
        _check_held(self.held, margins, self.columns, self.rows, self.tolerance)
        lost = int((self.held & (margins <= 0)).any((0, 1)).sum())
        doubts = (
            f"{lost} examples are certified in exact arithmetic and lost by an attack in the model's own precision: rounding. "
            "They are not counted as certified.",
        )  # fmt: skip
        return replace(self, held=self.held & (margins > 0), doubts=doubts if lost else ())


def identity(model: nn.Module, x: Tensor, y: Tensor, clean: Tensor) -> tuple[dict[str, str], list[str]]:
    """Hashes of model and data, and of what the model does: weights alone do not tell ReLU from tanh.  clean: its logits at x."""
    hashes = {"model_sha256": hash_tensors(model.state_dict()), "data_sha256": hash_tensors({"x": x, "y": y})}
    return hashes, [str(model), hash_tensors({"predictions": clean.argmax(1)})]


def tolerance(model: nn.Module, x: Tensor, clean: Tensor) -> NDArray[np.float64]:
    """(N,) how far an attacked margin, in the model's own precision, may lie below a certified one.  clean: its logits at x.

    From the dtype and the scale of the logits, and from what rounding does to the examples themselves: certificates are of the
    network in exact arithmetic.
    """
    graph = trace_graph(precise(model, torch.float64), x.shape[1:])
    with torch.no_grad():
        measured = torch.cat(
            [(graph(part.double()) - z).abs().amax(1) for part, z in zip(x.split(256), clean.split(256), strict=True)]
        )
    size = 1 + clean.double().abs().amax(1)
    place = max(torch.finfo(clean.dtype).eps, torch.finfo(torch.float32).eps)  # records keep margins in float32
    return (SLACK * place * size + 16 * measured.amax()).cpu().numpy()


def prove(
    model: nn.Module, x: Tensor, y: Tensor, proof: Proof, columns: Sequence[float], rows: Sequence[float], *,
    attacked: Sequence[Cell] | None = None, log: Path | None = None, parts: Parts | None = None,
    on_part: Callable[[int], None] = lambda examples: None,
) -> Proven:  # fmt: skip
    """`certified_surface` on checked inputs, with the work done by `parts`.

    attacked: what an attack left at every point of the grid: what it broke is not tried, and where its margin is below the bound,
    the run fails with SoundnessError.
    """
    n = len(x)
    with torch.no_grad():
        clean = logits_at(model, Perturbation(x))
    hashes, function = identity(model, x, y, clean)
    about = {**proof.describe(), **hashes, "versions": {"nonsingular": version("nonsingular"), "torch": torch.__version__}}
    asked = [FORMAT, proof.describe(), hashes, function, list(columns), list(rows)]
    key = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    journal = Log(log) if log else None
    held = np.zeros((len(rows), len(columns), n), dtype=bool)
    done: dict[Span, float] = {}
    margins = None if attacked is None else _lowest(attacked, columns, rows)

    def keep(span: Span, bits: NDArray[np.bool_], seconds: float) -> None:
        held[:, :, slice(*span)] = bits
        done[span] = seconds
        on_part(span[1] - span[0])

    spans = [(i, min(i + TOGETHER, n)) for i in range(0, n, TOGETHER)]
    for entry in journal or ():
        span = tuple(entry["span"]) if entry.get("key") == key and "span" in entry else None
        if span in spans:
            shape = (len(rows), len(columns), span[1] - span[0])
            bits = unpack(entry["certified"], int(np.prod(shape))).reshape(shape)
            keep(span, bits, entry["seconds"])

    def in_this_process(spans: Sequence[Span], known: Callable[[Span], NDArray[np.float32] | None]) -> Iterator[Any]:
        for span in spans:
            yield certified_part(model, x, y, proof, columns, rows, span, known(span))

    work = (parts or in_this_process)(
        [s for s in spans if s not in done], lambda s: None if margins is None else margins[:, :, slice(*s)]
    )
    for span, bits, seconds in work:
        if journal:
            journal.append({"key": key, "span": list(span), "certified": pack(bits), "seconds": seconds, "about": about})
        keep(span, bits, seconds)
    accuracy = is_correct(clean, y).double().mean().item()
    names = {**proof.describe(), **hashes, "clean_accuracy": accuracy}
    return Proven(held, tuple(columns), tuple(rows), names, sum(done.values()), tolerance(model, x, clean))


def confront(
    model: nn.Module, x: Tensor, y: Tensor, proof: Proof, columns: Sequence[float], rows: Sequence[float],
    held: NDArray[np.bool_], attacked: NDArray[np.float32],
) -> None:  # fmt: skip
    """Bounds every example once where it was attacked, at the first point of the grid that is not certified.

    For attacks that left alone what is certified.  held, attacked: (rows, columns, n) of these examples; attacked: margins.
    Raises SoundnessError, with the number of the example among these, where the bound is above what was reached.
    """
    prove, slack = Prover(model, proof.method), tolerance(model, x, logits_at(model, Perturbation(x)))
    beyond = ~held.reshape(-1, len(x))
    first = np.where(beyond.any(0), beyond.argmax(0), -1)
    for at in np.unique(first[first >= 0]):
        i, j = divmod(int(at), len(columns))
        here = np.flatnonzero(first == at)
        rows_here = torch.as_tensor(here, device=x.device)
        lower = prove(x[rows_here], y[rows_here], proof.unit.scaled(columns[j], rows[i]))
        low = worst_margin(lower, y[rows_here]).cpu().numpy()
        _check(np.where(np.isfinite(low), low, -np.inf), attacked[i, j, here], slack[here], here, columns[j], rows[i])


def _lowest(attacked: Sequence[Cell], columns: Sequence[float], rows: Sequence[float]) -> NDArray[np.float32]:
    """Margins reached at each point or at a smaller one: balls are nested."""
    return np.minimum.accumulate(np.minimum.accumulate(margins_of(attacked, columns, rows), axis=0), axis=1)


def certified_part(
    model: nn.Module, x: Tensor, y: Tensor, proof: Proof, columns: Sequence[float], rows: Sequence[float], span: Span,
    attacked: NDArray[np.float32] | None = None,
) -> tuple[Span, NDArray[np.bool_], float]:  # fmt: skip
    """(span, certified (rows, columns, n), seconds) for the examples of `span`.

    Each example walks along the border of what is certified: to the next row where it is, to the column before where it is not.
    attacked: (rows, columns, n) margins that attacks reached, falling with the radii.  What they broke is not tried, but for one
    point of each example, where the border meets it.  Raises SoundnessError where one lies below the bound.
    """
    started = time.perf_counter()
    x, y = x[slice(*span)], y[slice(*span)].long()
    held = np.zeros((len(rows), len(columns), len(x)), dtype=bool)
    prove = Prover(model, proof.method)
    with torch.no_grad():
        clean = logits_at(model, Perturbation(x))
    right, slack = is_correct(clean, y).cpu().numpy(), tolerance(model, x, clean)
    column = np.where(right, len(columns) - 1, -1)
    met = np.zeros(len(x), dtype=bool)

    def lowest(i: int, j: int, here: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Smallest margins and whether they are bounds at all, held against the attack."""
        at = torch.as_tensor(here, device=x.device)
        lower = prove(x[at], y[at], proof.unit.scaled(columns[j], rows[i]))
        low = worst_margin(lower, y[at]).cpu().numpy()
        if attacked is not None:
            _check(low, attacked[i, j, here], slack[here], here + span[0], columns[j], rows[i])
        return low, torch.isfinite(lower).all(1).cpu().numpy()

    for i in range(len(rows)):
        for j in reversed(range(len(columns))):
            here = np.flatnonzero(column == j)
            if attacked is not None:
                broken = attacked[i, j, here] <= 0
                column[here[broken]] -= 1
                here = here[~broken]
            if not len(here):
                continue
            low, finite = lowest(i, j, here)
            good = (low > 0) & finite
            held[i, : j + 1, here[good]] = True
            column[here[~good]] -= 1
            if attacked is not None and j + 1 < len(columns):
                beside = here[good & (attacked[i, j + 1, here] <= 0) & ~met[here]]
                if len(beside):
                    lowest(i, j + 1, beside)
                    met[beside] = True
    return span, held, time.perf_counter() - started


def _check(
    low: NDArray[Any], attacked: NDArray[Any], slack: NDArray[Any], examples: NDArray[Any], eps_x: float, eps_w: float
) -> None:  # fmt: skip
    """Certified margin <= attacked margin, example by example."""
    for k in np.flatnonzero(low > attacked + slack):
        raise SoundnessError(int(examples[k]), eps_x, eps_w, float(low[k]), float(attacked[k]))


def _check_held(
    held: NDArray[np.bool_], margins: NDArray[Any], columns: Sequence[float], rows: Sequence[float], slack: NDArray[Any]
) -> None:  # fmt: skip
    """Nothing that an attack broke is certified, also by certificates of an earlier run."""
    for i, j, k in np.argwhere(held & (margins < -slack)):
        raise SoundnessError(int(k), columns[j], rows[i], 0.0, float(margins[i, j, k]))


def margins_of(cells: Sequence[Cell], columns: Sequence[float], rows: Sequence[float]) -> NDArray[np.float32]:
    """(rows, columns, N) margins reached at each point; without a record of them, infinite where the label survived."""

    def of(cell: Cell) -> NDArray[Any]:
        return np.where(cell.correct, np.inf, -np.inf) if cell.margins is None else cell.margins

    at = {(c.eps_w, c.eps_x): c for c in cells}
    return np.array([[of(at[w, x]) for x in columns] for w in rows], dtype=np.float32)
