"""zoo.py - networks to start from, in the package: zoo:DATA/NAME is the run directory of the training that made it."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nonsingular.errors import InvalidInput
from nonsingular.results.surface import CONFIG

PREFIX = "zoo:"
CARD = "card.json"
FOLDER = Path(__file__).parents[1] / "assets" / "zoo"


def names() -> list[str]:
    """Those that there are, as DATA/NAME."""
    return sorted(path.parent.relative_to(FOLDER).as_posix() for path in FOLDER.glob(f"*/*/{CONFIG}"))


def located(spec: str) -> Path:
    """The folder of "zoo:DATA/NAME".  Raises InvalidInput, with the nearest name, if there is none."""
    name = spec.removeprefix(PREFIX)
    if name not in names():  # so no part of it is used as a path
        near = difflib.get_close_matches(name, names(), 1)
        raise InvalidInput(
            f"the zoo has no '{name}'" + (f"; did you mean '{PREFIX}{near[0]}'?" if near else "; see 'nonsingular list zoo'")
        )
    return FOLDER / name


def card(name: str) -> Mapping[str, Any]:
    """What was measured of "DATA/NAME", and by which command."""
    return json.loads((located(name) / CARD).read_text(encoding="utf-8"))
