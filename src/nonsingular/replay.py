"""replay.py - a surface from the perturbations that a run has kept, and from nothing else: no attack is run, none is imported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nonsingular.errors import InvalidInput
from nonsingular.graph import logits_at
from nonsingular.margins import is_correct
from nonsingular.nested import Method
from nonsingular.perturbations import FOLDER, Radii, read_found
from nonsingular.threat import Perturbation


@dataclass(frozen=True)
class Replayed:
    """Accuracies over the grid (rows eps_w, columns eps_x): what the run says, and what its stored tensors do."""

    columns: tuple[float, ...]
    rows: tuple[float, ...]
    recorded: NDArray[np.float64]
    found: NDArray[np.float64]
    perturbations: int
    """Examples with a stored perturbation, over all points of the grid."""

    @property
    def differ(self) -> list[Radii]:
        """Points of the grid where the tensors leave more accuracy than the run says."""
        return [(self.columns[j], self.rows[i]) for i, j in np.argwhere(self.found > self.recorded + 1e-12)]


def replay(
    model: nn.Module, x: Tensor, y: Tensor, method: Method, recorded: NDArray[np.float64], columns: tuple[float, ...],
    rows: tuple[float, ...], folder: Path,
) -> Replayed:  # fmt: skip
    """Checks every stored perturbation against its ball, and takes the accuracies from the model's logits there.

    x: (N, *input), y: (N,): the data of the run.  method: its scope and ball are used.  recorded: (rows, columns) accuracies.
    folder: of the run.  In scope sample an example that is broken in a ball is broken in every larger one.  In the others one
    perturbation of a ball counts in it and, as it lies there too, in every larger one: the lowest accuracy of a group.
    Raises InvalidInput if nothing is stored, a file is damaged, or a perturbation lies outside its ball.
    """
    files = sorted((folder / FOLDER).glob("*.safetensors"))
    if not files:
        raise InvalidInput(f"{folder} has no stored perturbations; give the folder of a run of 'nonsingular evaluate'")
    with torch.no_grad():
        right = is_correct(logits_at(model, Perturbation(x)), y).cpu().numpy()
    lost = np.broadcast_to(~right, (len(rows), len(columns), len(x))).copy()
    total, groups = 0, method.groups(model, len(x))
    for path in files:
        for found in read_found(path):
            broken = found.broken(model, x, y, method.unit).numpy()
            total += len(found.rows)
            within = np.logical_and.outer(np.array(rows) >= found.radii[1], np.array(columns) >= found.radii[0])
            for i, j in np.argwhere(within):
                if method.scope == "sample":
                    lost[i, j, broken] = True
                    continue
                group = slice(*next(g for g in groups if g[0] <= int(found.rows[0]) < g[1]))
                if len(broken) > lost[i, j, group].sum():
                    lost[i, j, group] = False
                    lost[i, j, broken] = True
    return Replayed(columns, rows, recorded, 1 - lost.mean(2), total)
