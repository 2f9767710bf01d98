"""stored.py - the worst x' and W' of a run as files, and accuracies from these alone: no attack is needed to check them.

A file holds what was found for groups of examples, each in its own ball.  Where every example of a dense network has its own
W', one number per neuron is kept, from which `Shifts.realise` writes the weights out.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from nonsingular.errors import InvalidInput, UnsupportedModel
from nonsingular.evaluation.packed import Ends, OfRows, pack, unpack
from nonsingular.evaluation.problem import Case
from nonsingular.network.calling import logits_at
from nonsingular.network.devices import DTYPES, device_in
from nonsingular.network.margins import is_correct
from nonsingular.network.row_lemma import shifts
from nonsingular.results.files import write_atomic
from nonsingular.threat.ball import JointBall, Scope, check_scope
from nonsingular.threat.grid import Grid, Radii
from nonsingular.threat.interval import Interval
from nonsingular.threat.perturbation import Perturbation
from nonsingular.untrusted import check_size, json_of

FOLDER = "perturbations"
"""Where a run keeps them, beside its log."""


@dataclass(frozen=True, eq=False)
class Found:
    """What was found for some examples in one ball, in the memory of the machine, on whatever device it was found.

    rows: (k,) their numbers in the data.  tensors: "x" (k, *input), and "weights.NAME" (one for all, or (k, *shape) in scope
    sample) or, in scope sample of a dense network, "shifts.LAYER" (k, neurons).
    """

    radii: Radii
    scope: Scope
    rows: Tensor
    tensors: Mapping[str, Tensor]

    @staticmethod
    def of(model: nn.Module, y: Tensor, unit: JointBall, radii: Radii, rows: Tensor, point: Perturbation) -> Found:
        """A point of the ball with these radii, as it is kept.  y: (k,) labels; an example that breaks also breaks as stored."""
        rows, kept = rows.cpu(), {f"weights.{n}": w.cpu() for n, w in point.weights.items()}
        found = Found(radii, point.scope, rows, {"x": point.x.cpu(), **kept})
        if point.scope != "sample" or not point.weights:
            return found
        try:
            with torch.no_grad():
                s = shifts(model, unit.scaled(*radii)).of(point)
        except UnsupportedModel:
            return found
        small = Found(radii, point.scope, rows, {"x": found.tensors["x"], **{f"shifts.{k}": t.cpu() for k, t in enumerate(s)}})
        wrong = ~is_correct(logits_at(model, point), y)
        return found if (is_correct(logits_at(model, small.point(model, unit)), y) & wrong).any() else small

    def point(self, model: nn.Module, unit: JointBall) -> Perturbation:
        """The perturbation with its weights written out, where the model is."""
        tensors = {n: t.to(device_in(model)) for n, t in self.tensors.items()}
        x, ball = tensors["x"], unit.scaled(*self.radii)
        s = [tensors[f"shifts.{k}"] for k in range(sum(n.startswith("shifts.") for n in tensors))]
        if s:
            with torch.no_grad():
                return Perturbation(x, shifts(model, ball).realise(x, s, ball), self.scope)
        weights = {n.removeprefix("weights."): w for n, w in tensors.items() if n.startswith("weights.")}
        return Perturbation(x, weights, self.scope)

    def part(self, at: Tensor) -> Found:
        """The same for some of its examples."""
        own = {n for n in self.tensors if self.scope == "sample" or n == "x"}
        return Found(self.radii, self.scope, self.rows[at], {n: t[at] if n in own else t for n, t in self.tensors.items()})

    def __reduce__(self) -> tuple[Any, ...]:  # through arrays: tensors would be sent in shared memory, of which there is little
        return _rebuilt, (self.radii, self.scope, self.rows.numpy(), {n: t.numpy() for n, t in self.tensors.items()})


def _rebuilt(radii: Radii, scope: Scope, rows: Any, arrays: Mapping[str, Any]) -> Found:
    return Found(radii, scope, torch.from_numpy(rows), {n: torch.from_numpy(a) for n, a in arrays.items()})


# --- files ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Against:
    """What the numbers of a run's perturbations are packed against: the network, all examples, and the ball of radius 1."""

    network: nn.Module
    x: Tensor
    unit: JointBall

    @classmethod
    def of(cls, case: Case, grid: Grid) -> Against:
        """That of the run that asks this."""
        return cls(case.network, case.x, grid.unit)

    def ends(self, name: str, radii: Radii, rows: Tensor, shape: tuple[int, ...]) -> Ends | OfRows | None:
        """The box of a tensor of `Found.tensors` of this shape; None for one that lies in no box.

        Raises KeyError for the name of no parameter, IndexError for the number of no example, and ValueError for another shape.
        """
        ball = self.unit.scaled(*radii)
        if name == "x":
            if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(self.x):
                raise IndexError(f"examples {int(rows.min())} to {int(rows.max())} of {len(self.x)}")

            def of(at: slice) -> Ends:
                home = self.x[rows[at].to(self.x.device)]
                return _ends(ball.input_box(home), home)

            whole = (len(rows), *self.x.shape[1:])
            found = OfRows(self.x[:1].numel(), self.x.dtype, of)
        elif name.startswith("weights."):
            params, name = dict(self.network.named_parameters()), name.removeprefix("weights.")
            home = params[name].detach()
            box = ball.weight_boxes({name: home} if name in ball.radii(params) else {}).get(name, Interval(home, home))
            whole, found = tuple(home.shape), (ends := _ends(box, home))
            if shape == (len(rows), *whole):  # each example its own
                whole = shape
                found = OfRows(home.numel(), home.dtype, lambda at: ends.repeated(at.stop - at.start))
        else:
            return None
        if shape != whole:
            raise ValueError(f"{name} is stored as {shape}, and is {whole}")
        return found


def _ends(box: Interval, home: Tensor) -> Ends:
    return Ends(*(t.cpu() for t in (box.lo, box.hi, home)))


def write_found(path: Path, found: Iterable[Found], against: Against | None = None) -> None:
    """One safetensors file, whole or not at all.  Tensors are packed where that takes fewer bytes, and gives the same bits.

    against: None to pack nothing.
    """
    tensors: dict[str, Tensor] = {}
    heads: list[dict[str, Any]] = []
    for i, f in enumerate(found):
        packed: dict[str, Any] = {}
        tensors[f"{i}.rows"] = f.rows
        for name, t in f.tensors.items():
            t = t.detach().contiguous()
            about = None if against is None else _packed(name, t, f, against)
            tensors[f"{i}.{name}"] = t if about is None else about.pop("data")
            if about is not None:
                packed[name] = about
        heads.append({"radii": list(f.radii), "scope": f.scope, **({"packed": packed} if packed else {})})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, save(tensors, {"groups": json.dumps(heads)}))


def _packed(name: str, t: Tensor, f: Found, against: Against) -> dict[str, Any] | None:
    """{"data": its bytes, "shape", "dtype", "crc"}; None where it is better kept as it is."""
    if t.dtype not in DTYPES.values():
        return None
    ends = against.ends(name, f.radii, f.rows, tuple(t.shape))
    if ends is not None and ends.dtype != t.dtype:
        return None
    data = pack(t, ends)
    if data is None or len(data) >= t.numel() * t.element_size():
        return None
    kind = next(name for name, dtype in DTYPES.items() if dtype == t.dtype)
    return {"data": torch.frombuffer(bytearray(data), dtype=torch.uint8), "shape": list(t.shape), "dtype": kind, "crc": _crc(t)}


def _crc(t: Tensor) -> int:
    return zlib.crc32(t.reshape(-1).contiguous().view(torch.uint8).numpy().data)


@dataclass(frozen=True, eq=False)
class Kept:
    """One group of a file, of which only the numbers of its examples were read."""

    path: Path
    number: int
    radii: Radii
    scope: Scope
    rows: Tensor
    packed: Mapping[str, Any]

    def load(self, against: Against) -> Found:
        """All of it.  Raises InvalidInput for tensors that were packed for another model or other data, or are damaged."""
        head = f"{self.number}."
        with _opened(self.path) as f:
            tensors: dict[str, Tensor] = {n.removeprefix(head): f.get_tensor(n) for n in f.keys() if n.startswith(head)}  # noqa: SIM118
        tensors.pop("rows")
        try:
            found = {n: self._unpacked(n, t, against) if n in self.packed else t for n, t in tensors.items()}
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError, OverflowError, AttributeError) as e:
            why = f"{type(e).__name__}: {e}".splitlines()[0]
            raise InvalidInput(f"{self.path} holds perturbations that do not fit this model or this data ({why})") from None
        return Found(self.radii, self.scope, self.rows, found)

    def _unpacked(self, name: str, data: Tensor, against: Against) -> Tensor:
        about = self.packed[name]
        shape, dtype = tuple(about["shape"]), DTYPES[about["dtype"]]
        if not all(type(n) is int and n >= 0 for n in shape) or data.dtype != torch.uint8 or data.dim() != 1:
            raise ValueError(f"{name} is not packed as a run packs it")
        check_size(self.path, math.prod(shape) * dtype.itemsize, self.path.stat().st_size)
        ends = against.ends(name, self.radii, self.rows, shape)
        if ends is not None and ends.dtype != dtype:
            raise ValueError(f"{name} is in {dtype}, and what it was packed against in {ends.dtype}")
        t = unpack(data.numpy().tobytes(), shape, dtype, ends)
        if _crc(t) != about["crc"]:
            raise ValueError(f"{name} has another checksum than stated")
        return t


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")  # pyright: ignore[reportUnknownVariableType]
    except (OSError, SafetensorError) as e:
        raise InvalidInput(f"{path} cannot be read as stored perturbations ({e}); run the evaluation again") from None


def stored_in(path: Path) -> list[Kept]:
    """The groups of a file that `write_found` wrote.  Raises InvalidInput if it is missing or damaged."""
    found: list[Kept] = []
    with _opened(path) as f:
        try:
            for k, head in enumerate(json_of(path, f.metadata()["groups"].encode())):
                check_scope(head["scope"])
                radii, rows = (float(head["radii"][0]), float(head["radii"][1])), f.get_tensor(f"{k}.rows")
                if rows.dtype != torch.int64 or rows.dim() != 1 or not all(math.isfinite(r) and r >= 0 for r in radii):
                    raise ValueError("its rows or radii are not as a run writes them")
                found.append(Kept(path, k, radii, head["scope"], rows, dict(head.get("packed", {}))))
        except (SafetensorError, KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError) as e:
            raise InvalidInput(f"{path} holds no stored perturbations as a run writes them ({e!r})") from None
    return found


def read_found(path: Path, against: Against) -> list[Found]:
    """All that `write_found` wrote, of this release or an earlier one.  Raises InvalidInput as `Kept.load`."""
    return [stored.load(against) for stored in stored_in(path)]
