"""templating.py - the templates of the page and of the Markdown.  They escape all that they are given but `Markup` made here.

Our own SVG, style and script are the only `Markup`; every text in that SVG went through `escape`.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from nonsingular.plain import legible


def words(text: str) -> Markup:
    """Escaped, with the indices of ε set low."""
    text = str(escape(text.replace(" %", "\N{NO-BREAK SPACE}%")))
    return Markup(re.sub("ε_([xw])", r"ε<sub>\1</sub>", text))


def as_cell(text: Any) -> Markup:
    r"""One line of Markdown in which nothing is markup: no emphasis, no HTML, no link, no end of a cell of a table.

    >>> print(as_cell("*a* | <b>"))
    \*a\* \| &lt;b&gt;
    """
    if isinstance(text, Markup):
        return text
    flat = html.escape(" ".join(legible(str(text)).split()), quote=False)
    flat = re.sub(r"([\\`*\[\]|~]|(?<!\w)_|_(?!\w))", r"\\\1", flat)
    return Markup(re.sub(r"(?i)(https?|ftp|mailto|www)([:.])", r"\1\\\2", flat))  # else some readers make links of bare addresses


def code(text: str) -> Markup:
    """One line of an indented block of Markdown, where nothing is markup."""
    return Markup(" ".join(text.split()))


def records(entries: Mapping[str, Any]) -> str:
    """One line of JSON per entry."""
    return "\n".join(f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in entries.items())


def card(svg: str, prefix: str) -> tuple[Markup, bool]:
    """A figure of matplotlib, and whether it is wide.  prefix: keeps its names apart from those of other figures on the page."""
    svg = re.sub(r'(\bid="|xlink:href="#|url\(#)', rf"\1{prefix}", svg[svg.index("<svg") :])
    width = re.search(r'viewBox="0 0 ([0-9.]+)', svg)
    return Markup(svg), bool(width and float(width[1]) > 500)


def style() -> Markup:
    """The style of all pages."""
    return Markup((files("nonsingular.report") / "templates/page.css").read_text(encoding="utf-8"))


def _environment(**options: Any) -> Environment:
    made = Environment(
        loader=PackageLoader("nonsingular.report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, **options,
    )  # fmt: skip
    made.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":")}  # tojson: nothing can end the block
    made.filters |= {"words": words, "records": records, "code": code}
    return made


_HTML, _MARKDOWN = _environment(), _environment(finalize=as_cell)


def render(template: str, **values: Any) -> Markup:
    """A template with these values.  Raises UndefinedError for a value that is missing."""
    made = _MARKDOWN if template.endswith(".md") else _HTML
    return Markup(made.get_template(template).render(values))
