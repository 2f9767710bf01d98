"""text.py - what the text of flags and files means: radii, names, ranges; and their types, for the schema."""

from __future__ import annotations

import re
from functools import partial
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag

MOST = 1000
"""Points that an axis of the grid may have."""


def parse_grid(value: Any) -> Any:
    """'low:high:points' -> the radii; '0,0.1,0.2' -> these; anything else is left to the schema.

    >>> parse_grid("0:0.2:3")
    (0.0, 0.1, 0.2)
    """
    if not isinstance(value, str):
        return (value,) if isinstance(value, int | float) else value
    try:
        if ":" in value:
            low, high, points = value.split(":")
            n = int(points)
            if n > MOST:
                raise ValueError
            return tuple(round(float(low) + (float(high) - float(low)) * i / (n - 1), 12) for i in range(n))
        return tuple(float(v) for v in value.split(","))
    except (ValueError, ZeroDivisionError):
        raise ValueError(
            f"'{value}' is not a list of radii; write low:high:points (at most {MOST}), e.g. 0:0.2:11, or 0,0.05,0.1"
        ) from None


def _increasing(values: tuple[float, ...]) -> tuple[float, ...]:
    if any(b <= a for a, b in pairwise(values)):
        raise ValueError(f"{list(values)} does not increase; give radii in strictly increasing order")
    return values


def named_radii(value: Any, expected: str) -> Any:
    """'age=2,income=500' -> a mapping of radii by name; otherwise as `parse_grid`."""
    if isinstance(value, str) and "=" in value:
        try:
            return {name.strip(): float(radius) for name, radius in (item.rsplit("=", 1) for item in value.split(","))}
        except ValueError:
            raise ValueError(f"'{value}' is not a list of {expected}") from None
    return parse_grid(value)


def parse_names(value: Any) -> Any:
    """'no,yes' -> ('no', 'yes'), '64,32' -> ('64', '32'); anything else is left to the schema."""
    return tuple(name.strip() for name in value.split(",")) if isinstance(value, str) else value


def parse_domain(value: Any) -> Any:
    """'-1,1' -> (-1.0, 1.0); anything else is left to the schema."""
    return value.split(",") if isinstance(value, str) and "," in value else value


def _ordered(value: tuple[float, float] | str | None) -> tuple[float, float] | str | None:
    if isinstance(value, tuple) and not value[0] < value[1]:
        raise ValueError(f"{list(value)} is not a range; give lowest,highest with lowest < highest, e.g. 0,1, or none")
    return value


MOST_SHARDS = 100_000
"""Parts that a run may have."""


def _part(value: str) -> str:
    index, _, of = value.partition("/")
    if (
        not (index.isascii() and index.isdecimal() and of.isascii() and of.isdecimal())
        or not 1 <= int(index) <= int(of) <= MOST_SHARDS
    ):
        raise ValueError(f"'{value}' is not a part of a run; write 2/4 for the second of four: they count from 1 to 4")
    return f"{int(index)}/{int(of)}"


def _device(value: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", value, re.ASCII):
        raise ValueError(f"'{value}' is no device; give cpu, cuda, cuda:1, mps or auto")
    return value


DeviceText = Annotated[str, AfterValidator(_device)]
ShardText = Annotated[str, AfterValidator(_part)]
Radius = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Grid = Annotated[tuple[Radius, ...], Field(min_length=1), AfterValidator(_increasing), BeforeValidator(parse_grid)]


def _form(value: Any) -> str:
    """Chooses the branch of a union, so that an error is about that one alone."""
    return MANY if isinstance(value, dict | list | tuple) else ONE


def _named(value: Any) -> str:
    return NAMED if isinstance(value, dict) else MANY


ONE, MANY, NAMED = BRANCHES = ("one of", "some of", "named of")
ByColumn = dict[str, Annotated[Annotated[Radius, Tag(ONE)] | Annotated[tuple[Radius, Radius], Tag(MANY)], Discriminator(_form)]]
InputGrid = Annotated[
    Annotated[Annotated[Grid, Tag(MANY)] | Annotated[ByColumn, Tag(NAMED)], Discriminator(_named)],
    BeforeValidator(partial(named_radii, expected="column=radius; write age=2,income=500, or *=0.1,sex=0")),
]
Names = Annotated[tuple[str, ...], Field(min_length=2), BeforeValidator(parse_names)]
WeightGrid = Annotated[
    Annotated[Annotated[Grid, Tag(MANY)] | Annotated[dict[str, Radius], Tag(NAMED)], Discriminator(_named)],
    BeforeValidator(partial(named_radii, expected="tensor=radius; write fc1.weight=0.01,fc2.weight=0.002")),
]
Sizes = Annotated[tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(parse_names)]
Limit = Annotated[
    Annotated[int, Field(ge=1)] | None,
    BeforeValidator(lambda v: None if isinstance(v, str) and v.lower() in ("none", "all") else v),
]
End = Annotated[float, Field(allow_inf_nan=False)]
Domain = Annotated[tuple[End, End] | Literal["none"] | None, AfterValidator(_ordered), BeforeValidator(parse_domain)]
