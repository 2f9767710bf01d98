"""surface.py - the records of an evaluation: one per cell, and the surface that the cells form.

Needs no torch, so that tables, pictures and pages do not either.
"""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

import nonsingular
from nonsingular.errors import InvalidInput
from nonsingular.results.statistics import volume, wilson

CONFIG, WEIGHTS, SUMMARY, EVENTS, RESULTS = "config.yaml", "model.safetensors", "train.json", "events.jsonl", "results.json"
"""The files of a run directory."""
FORMAT = 1
"""Version of every file that this module writes, and of what the catalog's attacks do: a new one makes old cells run again."""
SHARERS = {"batch": "each batch", "dataset": "all examples"}
"""Scope -> who shares W'."""


def arithmetic(about: Mapping[str, Any]) -> str:
    """In which arithmetic a certified surface holds, as its record says.

    >>> arithmetic({}), arithmetic({"deployed": "float32"})
    ('in exact arithmetic', 'as computed in float32')
    """
    kind = about.get("deployed")
    return "in exact arithmetic" if kind is None else f"as computed in {kind}"


def spent(about: Mapping[str, Any]) -> str:
    """The effort of an attacked surface, as its record says; nothing for attacks without one.

    >>> spent({"effort": "quick"}), spent({})
    (', effort quick', '')
    """
    return f", effort {about['effort']}" if "effort" in about else ""


@dataclass(frozen=True)
class Cell:
    """Outcome of one method on one model at one point of the grid."""

    eps_x: float
    eps_w: float
    correct: NDArray[np.bool_]
    """(N,) which examples survived."""
    seconds: float = 0.0
    flags: tuple[str, ...] = ()
    """Things that a reader should know, e.g. "one-class": every prediction fell into one class."""
    margins: NDArray[np.float32] | None = None
    """(N,) smallest margin over the other classes that was attained."""
    origin: tuple[float, float] | None = None
    """(eps_x, eps_w) of the smaller ball in which its perturbation was found, if it was not in this one (one W' for all)."""
    passes: tuple[int, int] = (0, 0)
    """Examples that went through the network for it, forward and backward."""

    def to_dict(self) -> dict[str, Any]:
        return {
            "eps_x": self.eps_x, "eps_w": self.eps_w, "n": int(self.correct.size), "correct": pack(self.correct),
            "seconds": self.seconds, "flags": list(self.flags), "passes": list(self.passes),
            **({} if self.margins is None else {"margins": _text(self.margins.astype("<f4").tobytes())}),
            **({} if self.origin is None else {"origin": list(self.origin)}),
        }  # fmt: skip

    @staticmethod
    def from_dict(d: Mapping[str, Any]) -> Cell:
        """Raises InvalidInput for anything that `to_dict` does not write."""
        try:
            margins = np.frombuffer(base64.b64decode(d["margins"]), dtype="<f4").astype(np.float32) if "margins" in d else None
            origin = (float(d["origin"][0]), float(d["origin"][1])) if "origin" in d else None
            correct, (forward, backward) = unpack(d["correct"], int(d["n"])), d.get("passes", (0, 0))
            if margins is not None and len(margins) != len(correct):
                raise ValueError(f"{len(margins)} margins for {len(correct)} examples")
            return Cell(
                float(d["eps_x"]), float(d["eps_w"]), correct, float(d["seconds"]), tuple(map(str, d["flags"])), margins, origin,
                (int(forward), int(backward)),
            )  # fmt: skip
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError, MemoryError) as e:
            raise InvalidInput(f"a cell of a log is not as a run writes it ({e!r}); delete the log, and run again") from None

    @staticmethod
    def joined(parts: Sequence[Cell]) -> Cell:
        """Join the groups of examples of one cell.  It has the flags that all of them have, and "moving" if any has."""
        first, flags = parts[0], [set(p.flags) for p in parts]
        margins = [p.margins for p in parts if p.margins is not None]
        return Cell(
            first.eps_x, first.eps_w, np.concatenate([p.correct for p in parts]), sum(p.seconds for p in parts),
            tuple(sorted(set.intersection(*flags) | ({"moving"} & set.union(*flags)))),
            np.concatenate(margins) if len(margins) == len(parts) else None, first.origin if len(parts) == 1 else None,
            (sum(p.passes[0] for p in parts), sum(p.passes[1] for p in parts)),
        )  # fmt: skip


def pack(bits: NDArray[np.bool_]) -> str:
    """Bits as base64."""
    return _text(np.packbits(bits).tobytes())


def unpack(text: str, n: int) -> NDArray[np.bool_]:
    """(n,) the bits that `pack` wrote.  Raises InvalidInput if there are fewer."""
    held = np.frombuffer(base64.b64decode(text), dtype=np.uint8)
    if not 0 <= n <= 8 * len(held):
        raise InvalidInput(f"{n} outcomes are declared, and {8 * len(held)} recorded; evaluate again")
    return np.unpackbits(held, count=n).astype(bool)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


@dataclass(frozen=True)
class Surface:
    """Accuracy over a grid of radii.  Rows are eps_w, columns eps_x.

    accuracy: (len(eps_w), len(eps_x)) in [0, 1] over `n` examples.  scope: who shares W'.  attack: the method's name.
    flags: (row, column) -> what a reader should know about that cell.
    """

    eps_x: tuple[float, ...]
    eps_w: tuple[float, ...]
    accuracy: NDArray[np.float64]
    n: int
    scope: str
    attack: str
    model: str = "model"
    seconds: float = 0.0
    flags: Mapping[tuple[int, int], tuple[str, ...]] = field(default_factory=dict[tuple[int, int], tuple[str, ...]])
    kind: str = "attacked"
    """"attacked": an upper bound of robust accuracy.  "certified": a lower bound, in every scope; `attack` is then the bound.
    "shared": a lower bound in its own scope, of how many examples hold, not of which."""
    certified: Surface | None = None
    """The certified surface on the same grid and examples, if there is one: nowhere above this one."""
    about: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Everything else that names the numbers: method, hashes of model and data, clean accuracy, moved tensors, domain."""
    outcomes: NDArray[np.bool_] | None = None
    """(len(eps_w), len(eps_x), n) which examples survive, in the order of the data; accuracy is its mean."""
    shared: Surface | None = None
    """That of shared certificates, in scopes batch and dataset: nowhere above this one, nor below the certified one."""

    @property
    def auc(self) -> float:
        """Normalised volume under the surface, in [0, 1].  The grid is part of the number."""
        return volume(self.accuracy, self.eps_w, self.eps_x)

    @property
    def auc_x(self) -> float:
        """Area under the first row (smallest eps_w), normalised: robustness to inputs alone."""
        return volume(self.accuracy[:1], self.eps_w[:1], self.eps_x)

    @property
    def auc_w(self) -> float:
        """Area under the first column (smallest eps_x), normalised: robustness to weights alone."""
        return volume(self.accuracy[:, :1], self.eps_w, self.eps_x[:1])

    @property
    def broken(self) -> NDArray[np.int64]:
        """(len(eps_w), len(eps_x)) how many of the n examples are not right, or not proven to be."""
        return np.rint((1 - self.accuracy) * self.n).astype(np.int64)

    @property
    def interval(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Lower and upper end of the 95 % Wilson interval of every cell."""
        return wilson(np.rint(self.accuracy * self.n), self.n)

    @property
    def rises(self) -> list[dict[str, Any]]:
        """Every step of the grid to a larger ball at which accuracy *rises*: there the attack missed something.

        The true surface never rises, because the balls are nested.
        """
        found: list[dict[str, Any]] = []
        for axis, name in ((0, "eps_w"), (1, "eps_x")):
            for i, j in np.argwhere(np.diff(self.accuracy, axis=axis) > 0):
                k, m = (i + 1, j) if axis == 0 else (i, j + 1)
                found.append({
                    "along": name, "eps_x": self.eps_x[m], "eps_w": self.eps_w[k],
                    "from": float(self.accuracy[i, j]), "to": float(self.accuracy[k, m]),
                })  # fmt: skip
        return sorted(found, key=lambda r: r["from"] - r["to"])

    def to_dict(self) -> dict[str, Any]:
        lo, hi = self.interval
        return {
            "format": FORMAT, "model": self.model, "kind": self.kind, "attack": self.attack, "scope": self.scope, "n": self.n,
            "eps_x": list(self.eps_x), "eps_w": list(self.eps_w), "accuracy": self.accuracy.tolist(),
            "interval": {"level": 0.95, "low": lo.tolist(), "high": hi.tolist()},
            "auc": self.auc, "auc_x": self.auc_x, "auc_w": self.auc_w, "rises": self.rises, "seconds": self.seconds,
            "flags": [{"row": i, "column": j, "flags": list(f)} for (i, j), f in sorted(self.flags.items())],
            "about": dict(self.about),
            **({} if self.outcomes is None else {"outcomes": pack(self.outcomes.reshape(-1))}),
        } | {k: s.to_dict() for k, s in (("certified", self.certified), ("shared", self.shared)) if s is not None}  # fmt: skip

    @staticmethod
    def from_dict(d: Mapping[str, Any]) -> Surface:
        shape = (len(d["eps_w"]), len(d["eps_x"]), d["n"])
        outcomes = unpack(d["outcomes"], math.prod(shape)).reshape(shape) if "outcomes" in d else None
        return Surface(
            tuple(d["eps_x"]), tuple(d["eps_w"]), np.asarray(d["accuracy"], dtype=np.float64), d["n"], d["scope"], d["attack"],
            d["model"], d["seconds"], {(f["row"], f["column"]): tuple(f["flags"]) for f in d["flags"]},
            d.get("kind", "attacked"), Surface.from_dict(d["certified"]) if "certified" in d else None, d["about"], outcomes,
            Surface.from_dict(d["shared"]) if "shared" in d else None,
        )  # fmt: skip

    @staticmethod
    def from_cells(cells: Iterable[Cell], eps_x: Sequence[float], eps_w: Sequence[float], **names: Any) -> Surface:
        """The surface whose cells these are; every point of the grid must be there once."""
        at = {(c.eps_w, c.eps_x): c for c in cells}
        grid = [[at[w, x] for x in eps_x] for w in eps_w]
        outcomes = np.array([[c.correct for c in row] for row in grid])
        return Surface(
            tuple(eps_x), tuple(eps_w), outcomes.mean(2), outcomes.shape[2], outcomes=outcomes,
            seconds=sum(c.seconds for c in at.values()),
            flags={(i, j): c.flags for i, row in enumerate(grid) for j, c in enumerate(row) if c.flags}, **names,
        )  # fmt: skip

    def __str__(self) -> str:
        """Accuracy in percent over the grid, as plain text."""
        head = "eps_w \\ eps_x " + "".join(f"{x:>9.4g}" for x in self.eps_x)
        rows = [
            f"{w:>13.4g} " + "".join(f"{100 * a:>9.1f}" for a in row) for w, row in zip(self.eps_w, self.accuracy, strict=True)
        ]
        how = (
            f"scope {self.scope}, attack {self.attack}{spent(self.about)}"
            if self.kind == "attacked"
            else f"certified by {self.attack}"
        )
        how += f", one W' for {SHARERS[self.scope]}" if self.kind == "shared" else ""
        how += f", {arithmetic(self.about)}" if self.about.get("deployed") else ""
        tail = (
            f"AUC {self.auc:.3f} (eps_w = {self.eps_w[0]:g}: {self.auc_x:.3f}, eps_x = {self.eps_x[0]:g}: {self.auc_w:.3f}); "
            f"accuracy in % of {self.n} examples, {how}"
        )
        doubts = [f"warning: {doubt}" for doubt in self.about.get("doubts", ())]
        below = [line for s in (self.shared, self.certified) if s is not None for line in ("", str(s))]
        return "\n".join([head, *rows, tail, *doubts, *below])

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """The contour of this surface as a matplotlib figure; written to `path` (png, svg, pdf) if given."""
        return nonsingular.contours({self.model: [self]}, path=path)
