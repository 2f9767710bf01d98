"""columns.py - radii of inputs by column: from names or numbers to one radius for each element of an input."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

from nonsingular.errors import InvalidInput
from nonsingular.threat.radius import Radius, checked_radius, ends

SHOWN = 8
"""Names of columns that an error lists."""


def by_column(radii: Mapping[Any, Any], shape: Sequence[int], columns: Sequence[str] = ()) -> Radius:
    """The radius of each column, (d,), or a pair (below, above); 0 for those that `radii` does not name.

    radii: name or number (from 0) -> a number, or a pair (below, above).  "*" in a name stands for anything; later entries win:
    {"*": 0.1, "country_*": 0} moves all columns but these.
    Raises InvalidInput for an unknown column, and for inputs without columns.
    """
    if len(shape) != 1:
        raise InvalidInput(
            f"eps_x names columns, but one input has shape {tuple(shape)}; give an array of radii that broadcasts to that shape"
        )
    names = [str(name) for name in columns] or [str(k) for k in range(shape[0])]
    if len(names) != shape[0]:
        raise InvalidInput(f"there are {len(names)} names of columns for inputs of {shape[0]} numbers; give one for each")
    below, above = torch.zeros(shape[0], dtype=torch.float64), torch.zeros(shape[0], dtype=torch.float64)
    for key, given in radii.items():
        radius = checked_radius(f"eps_x['{key}']", tuple(given) if isinstance(given, list) else given)
        at = _places(key, names)
        for side, end in zip((below, above), ends(radius), strict=True):
            if isinstance(end, Tensor):
                raise InvalidInput(f"eps_x['{key}'] is an array; give one number for a column, or a pair (below, above)")
            side[at] = end
    return checked_radius("eps_x", (below, above))


def _places(key: Any, names: Sequence[str]) -> list[int]:
    if isinstance(key, int) and not isinstance(key, bool):
        if not -len(names) <= key < len(names):
            raise InvalidInput(f"eps_x names column {key}; there are {len(names)}, from 0")
        return [key]
    name = str(key)
    if found := [k for k, own in enumerate(names) if own == name] or [k for k, own in enumerate(names) if fnmatchcase(own, name)]:
        return found
    near = difflib.get_close_matches(name, names, 1)
    shown = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
    raise InvalidInput(
        f"eps_x names no column '{name}'" + (f"; did you mean '{near[0]}'?" if near else "") + f"; there are {shown}"
    )


def moving(radius: Radius, columns: Sequence[str] = ()) -> dict[str, Any]:
    """Column -> its radius, or [below, above], of those that move: for pages and messages.  Empty for inputs without columns."""
    below, above = (torch.as_tensor(end) for end in ends(radius))
    if isinstance(radius, float) or max(below.dim(), above.dim()) != 1:
        return {}
    pairs = list(zip(*(t.tolist() for t in torch.broadcast_tensors(below, above)), strict=True))
    names = [str(name) for name in columns] if len(columns) == len(pairs) else [str(k) for k in range(len(pairs))]
    return {n: (b if b == a else [b, a]) for n, (b, a) in zip(names, pairs, strict=True) if b or a}
