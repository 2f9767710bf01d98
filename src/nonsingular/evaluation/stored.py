"""stored.py - the worst x' and W' of a run as files, and accuracies from these alone: no attack is needed to check them.

A file holds what was found for groups of examples, each in its own ball.  Where every example of a dense network has its own
W', one number per neuron is kept, from which `Shifts.realise` writes the weights out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from nonsingular.errors import InvalidInput, UnsupportedModel
from nonsingular.network.calling import logits_at
from nonsingular.network.devices import device_in
from nonsingular.network.margins import is_correct
from nonsingular.network.row_lemma import shifts
from nonsingular.results.files import write_atomic
from nonsingular.threat.ball import JointBall, Scope, check_scope
from nonsingular.threat.grid import Radii
from nonsingular.threat.perturbation import Perturbation

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


def write_found(path: Path, found: Iterable[Found]) -> None:
    """One safetensors file, whole or not at all."""
    tensors: dict[str, Tensor] = {}
    heads: list[dict[str, Any]] = []
    for i, f in enumerate(found):
        heads.append({"radii": list(f.radii), "scope": f.scope})
        tensors |= {f"{i}.{n}": t.detach().contiguous() for n, t in {"rows": f.rows, **f.tensors}.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, save(tensors, {"groups": json.dumps(heads)}))


def read_found(path: Path) -> list[Found]:
    """What `write_found` wrote.  Raises InvalidInput if the file is missing or damaged."""
    try:
        with safe_open(path, framework="pt") as f:  # pyright: ignore[reportUnknownVariableType, reportPrivateImportUsage]
            heads = json.loads(f.metadata()["groups"])
            tensors: dict[str, Tensor] = {n: f.get_tensor(n) for n in f.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as e:
        raise InvalidInput(f"{path} cannot be read as stored perturbations ({e}); run the evaluation again") from None
    try:
        found: list[Found] = []
        for i, head in enumerate(heads):
            own = {n.removeprefix(f"{i}."): t for n, t in tensors.items() if n.startswith(f"{i}.")}
            check_scope(head["scope"])
            found.append(Found((float(head["radii"][0]), float(head["radii"][1])), head["scope"], own.pop("rows"), own))
    except (KeyError, IndexError, TypeError, ValueError) as e:
        raise InvalidInput(f"{path} holds no stored perturbations as a run writes them ({e!r})") from None
    return found
