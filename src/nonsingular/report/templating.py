"""markup.py - the few shapes of HTML that the sections of the page share.  Every text is escaped here."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

NUMBER = ' class="number"'


def words(text: str) -> str:
    """Escaped, with the indices of ε set low."""
    return re.sub("ε_([xw])", r"ε<sub>\1</sub>", escape(text).replace(" %", "\N{NO-BREAK SPACE}%"))


def section(title: str, *parts: str) -> str:
    return "\n".join([f"<section><h2>{escape(title)}</h2>", *parts, "</section>"])


def note(text: str) -> str:
    return f'<p class="quiet">{words(text)}</p>'


def table(kind: str, header: Sequence[str], rows: Iterable[str], first: int = 1) -> str:
    """A table that scrolls sideways where it is too wide.  rows: the cells of each as HTML.  first: columns without numbers."""
    head = "".join(f"<th{NUMBER if k >= first else ''}>{words(h)}</th>" for k, h in enumerate(header))
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    return (
        f'<div class="scroll" tabindex="0"><table class="{kind}"><thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def row(first: str, cells: Iterable[str], attributes: str = "") -> str:
    return f'<th scope="row">{words(first)}</th>' + columns(cells, attributes)


def columns(cells: Iterable[str], attributes: str = "") -> str:
    return "".join(f"<td{attributes}>{words(c)}</td>" for c in cells)


def items(lines: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{words(line)}</li>' for line in lines)}</ul>"


def terms(pairs: Mapping[str, str]) -> str:
    """Word -> what it means."""
    return "<dl>" + "".join(f"<dt>{words(what)}</dt><dd>{words(text)}</dd>" for what, text in pairs.items()) + "</dl>"


def records(entries: Mapping[str, Any]) -> str:
    """One line of JSON per entry."""
    return escape("\n".join(f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in entries.items()))


def data(value: Any) -> str:
    """A block of JSON for the script of the page; nothing in it can end the block."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return f'<script type="application/json">{text.replace("<", chr(92) + "u003c")}</script>'


def card(svg: str, label: str, prefix: str = "") -> str:
    """A figure of matplotlib on its card.  prefix: keeps the names in it apart from those of other figures on the page."""
    if not svg:
        return ""
    svg = svg[svg.index("<svg") :]
    if prefix:
        svg = re.sub(r'(\bid="|xlink:href="#|url\(#)', rf"\1{prefix}", svg)
    width = re.search(r'viewBox="0 0 ([0-9.]+)', svg)
    kind = "card wide" if width and float(width[1]) > 500 else "card"
    return f'<figure class="{kind}" role="img" aria-label="{escape(label)}" tabindex="0">{svg}</figure>'
