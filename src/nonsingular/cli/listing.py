"""listing.py - the command that lists names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from cyclopts import Parameter

from nonsingular.cli.app import app
from nonsingular.errors import InvalidInput


@app.command(name="list")
def list_(kind: Annotated[str, Parameter(help="attacks, bounds, objectives, faults, models, data or zoo.")], /) -> None:
    """List the names that settings take, one a line: what each is, who shares W' or what it bounds, and its source."""
    from nonsingular import catalog

    tables: dict[str, Callable[[], dict[str, str]]] = {
        "attacks": lambda: {name: _card(catalog.ATTACKS[name].card) for name in catalog.ATTACKS},
        "bounds": lambda: {name: _card(catalog.BOUNDS[name].card) for name in catalog.BOUNDS},
        "objectives": lambda: {name: catalog.described(catalog.OBJECTIVES, name) for name in catalog.OBJECTIVES},
        "faults": lambda: {name: catalog.described(catalog.FAULTS, name) for name in catalog.FAULTS},
        "models": lambda: {name: catalog.described(catalog.MODELS, name) for name in catalog.MODELS},
        "data": _data_sets,
        "zoo": _zoo,
    }
    kind = {"methods": "objectives", "datasets": "data"}.get(kind, kind)
    if kind not in tables:
        raise InvalidInput(f"there is no list of '{kind}'; choose one of {', '.join(tables)}")
    found = tables[kind]()
    width = max(map(len, found))
    print("\n".join(f"{name:{width}}  {line}" for name, line in found.items()))


def _card(card: Any) -> str:
    """An attack or a bound in one line: a bound says on which side it lies, an attack who shares the weights that it moves."""
    bound = (
        card.means.split(":")[0] if not card.means.startswith("Upper") else f"W': {card.shares[:1].lower()}{card.shares[1:-1]}"
    )
    return f"{card.does} {bound}. Source: {card.source.rstrip('.')}."


def _zoo() -> dict[str, str]:
    """The networks of the package, with what was measured of them."""
    from nonsingular.models import zoo

    return {f"{zoo.PREFIX}{name}": zoo.card(name)["does"] for name in zoo.names()}


def _data_sets() -> dict[str, str]:
    """What is known by name."""
    from nonsingular import catalog
    from nonsingular.data.readers.named import SOURCES

    def line(name: str) -> str:
        if name not in SOURCES:
            return "8 x 8 handwritten digits, 10 classes, in the package."
        source = SOURCES[name]
        size = " x ".join(map(str, source.shape))
        sizes = f"{source.sizes[0]:,} to train and {source.sizes[1]:,} to test"
        return f"{source.title}: {size} images, {len(source.classes)} classes, {sizes}. Source: {source.url}"

    return {name: line(name) for name in catalog.DATASETS}
