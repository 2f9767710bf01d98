"""conf.py - the documentation site: `make docs` builds it into docs/_build/html, with warnings as errors."""

import re
from importlib.metadata import version as version_of
from typing import Any

project = "nonsingular"
author = "The nonsingular contributors"
version = release = version_of("nonsingular")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "nonsingular"
html_copy_source = False
myst_heading_anchors = 3
myst_enable_extensions = ["dollarmath"]
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True

CODE = re.compile(r"`+([^`]+)`+")
SPECIAL = re.compile(r"([\\*|_])")


def as_written(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are plain text, whose lines and indents mean something: a line block of reStructuredText keeps both."""
    shown, doctest = list[str](), False
    for line in lines:
        doctest = line.lstrip().startswith(">>>") or (doctest and bool(line.strip()))
        if doctest:
            shown += ["", line] if not shown or not shown[-1].strip() or shown[-1].startswith("|") else [line]
        else:
            indent = line[: len(line) - len(line.lstrip())]
            pieces = CODE.split(line.lstrip())
            told = "".join(f"``{p}``" if i % 2 else SPECIAL.sub(r"\\\1", p) for i, p in enumerate(pieces))
            shown.append(f"| {indent}{told}" if told else "")
    lines[:] = shown


def method_cards(app: Any, docname: str, source: list[str]) -> None:
    """The page `methods`, from the cards that reports show."""
    if docname != "methods":
        return
    from nonsingular.catalog import ATTACKS, BOUNDS, FAULTS, OBJECTIVES

    for title, table in (("Attacks", ATTACKS), ("Bounds", BOUNDS), ("Training", OBJECTIVES), ("Faults", FAULTS)):
        source[0] += f"## {title}\n\n"
        for name, entry in table.items():
            card = entry.card
            source[0] += (
                f"### {name}\n\n{card.does}\n\n- W' is shared by: {card.shares}\n- {card.means}\n- Source: {card.source}\n\n"
            )


def setup(app: Any) -> None:
    app.connect("source-read", method_cards)
    app.connect("autodoc-process-docstring", as_written)
