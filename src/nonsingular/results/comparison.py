"""comparison.py - paired tests of two surfaces on the same examples.  Needs no torch.

An area under the surface is the mean over examples of each example's own area, so two areas on the same examples are compared
example by example: what makes an example easy is the same on both sides and cancels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nonsingular.errors import InvalidInput
from nonsingular.results.statistics import Z, holm, mcnemar, permutation, volume_weights
from nonsingular.results.surface import Surface

LEVEL = 0.05


@dataclass(frozen=True)
class Comparison:
    """A second surface compared with a first, on the same n examples and the same grid.

    auc: of both.  difference: the second's less the first's, with its 95 % interval low, high (normal, over examples).
    p: two-sided, of a paired permutation test (random signs of the per-example differences).
    better, worse: cells in which the second differs, by McNemar's exact test with Holm's correction over all cells, at 5 %.
    largest: the largest difference in accuracy of a cell, either way, as (eps_x, eps_w, difference).
    Intervals and p-values cover the choice of examples.  In scopes batch and dataset they take W' as fixed.
    """

    names: tuple[str, str]
    auc: tuple[float, float]
    difference: float
    low: float
    high: float
    p: float
    better: int
    worse: int
    cells: int
    largest: tuple[float, float, float]
    n: int


def compare(first: Surface, second: Surface, *, seed: int = 0) -> Comparison:
    """Compare `second` with `first`.  Cost: FLIPS x n signs.

    Raises InvalidInput unless both have outcomes by example, the same grid, kind and scope, and the same examples by their hash.
    """
    a, b = _outcomes(first), _outcomes(second)
    for what, one, other in (
        ("eps_x", first.eps_x, second.eps_x), ("eps_w", first.eps_w, second.eps_w), ("kind", first.kind, second.kind),
        ("scope", first.scope, second.scope), ("examples", first.n, second.n),
        *((key, first.about.get(key), second.about.get(key)) for key in ("eps_x_per_element", "eps_w_per_tensor", "deployed")),
        ("data_sha256", first.about.get("data_sha256"), second.about.get("data_sha256")),
    ):  # fmt: skip
        if one != other:
            raise InvalidInput(
                f"{first.model} and {second.model} differ in {what}: {_short(one)} and {_short(other)}; "
                "evaluate both with the same data, grid and scope"
            )
    d = per_example(second) - per_example(first)
    half = Z * d.std(ddof=1) / np.sqrt(len(d)) if len(d) > 1 else np.inf
    gain = b.mean(2) - a.mean(2)
    differ = holm(mcnemar((b & ~a).sum(2), (a & ~b).sum(2))) < LEVEL
    i, j = np.unravel_index(np.abs(gain).argmax(), gain.shape)
    return Comparison(
        (first.model, second.model), (first.auc, second.auc), float(d.mean()), float(d.mean() - half), float(d.mean() + half),
        permutation(d, seed), int((differ & (gain > 0)).sum()), int((differ & (gain < 0)).sum()), gain.size,
        (first.eps_x[j], first.eps_w[i], float(gain[i, j])), len(d),
    )  # fmt: skip


def per_example(surface: Surface) -> NDArray[np.float64]:
    """(n,) the area of each example: the fraction of the grid on which it is classified correctly.  Its mean is the AUC."""
    w = volume_weights(surface.eps_w, surface.eps_x)
    return np.einsum("ij,ijn->n", w / w.sum(), _outcomes(surface).astype(float))


def _outcomes(surface: Surface) -> NDArray[np.bool_]:
    if surface.outcomes is None:
        raise InvalidInput(f"{surface.model} holds no outcomes by example; evaluate it again with this version")
    return surface.outcomes


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
