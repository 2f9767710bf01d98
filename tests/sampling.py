"""sampling.py - the part of a long list of cases that every run tests; the rest is slow (make test ARGS='-m slow')."""

from collections.abc import Iterable
from typing import Any

import pytest


def first(few: int, cases: Iterable[Any]) -> list[Any]:
    """The cases, of which all but the first `few` are marked slow."""
    return [
        case if i < few else pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow)
        for i, case in enumerate(cases)
    ]
