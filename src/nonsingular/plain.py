"""plain.py - text from files, made harmless: no control, escape or direction characters, and no formulas.

Names of classes, models and files come from strangers.  Every output passes them through one of these.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Any, cast

_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Categories of Unicode that are invisible but act: controls, formats (among them those of direction), lone halves of pairs, and
the separators of lines and paragraphs."""
_JOINERS = "\u200c\u200d"
"""Format characters that belong to the spelling of some scripts."""
_FORMULA = tuple("=+-@|%＝＋－＠")
"""What a spreadsheet takes for the start of a formula."""


def legible(text: str, keep: str = "\n") -> str:
    r"""The text with every invisible character that acts written out as in Python, except those in `keep`.

    >>> legible("a\x1b[31m \u202eb\n")
    'a\\x1b[31m \\u202eb\n'
    >>> legible("one\r\ntwo", keep="")
    'one\\r\\ntwo'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c in keep or c in _JOINERS or unicodedata.category(c) not in _UNSEEN else _written(c) for c in text)


def _written(c: str) -> str:
    return c.encode("unicode_escape").decode("ascii")


def legible_all(value: Any) -> Any:
    """Numbers, lists and mappings as they are, with every text in them, keys too, made plain."""
    if isinstance(value, str):
        return legible(value)
    if isinstance(value, Mapping):
        return {legible_all(k): legible_all(v) for k, v in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [legible_all(v) for v in cast("list[Any]", value)]
    return value


def cell(text: str) -> str:
    r"""A text as a cell of a table of comma-separated values: plain, and never a formula of a spreadsheet.

    >>> cell("=1+2"), cell("mlp"), cell(" @x"), cell("\t-1")
    ("'=1+2", 'mlp', "' @x", "'\\t-1")
    """
    starts = text.lstrip()[:1] in _FORMULA if text.strip() else False
    shown = legible(text, keep="")
    return f"'{shown}" if starts or text[:1] in ("\t", "\r", "\n", "'") else shown
