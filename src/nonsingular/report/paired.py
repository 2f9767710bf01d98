"""paired.py - paired comparisons of runs as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from nonsingular.plain import legible


def comparison_table(found: Sequence[Mapping[str, Any]]) -> Table:
    """One row for each run that is compared with the first.  found: comparison.Comparison as mappings."""
    base, n, cells = found[0]["names"][0], found[0]["n"], found[0]["cells"]
    caption = (
        f"compared with {base}, AUC {found[0]['auc'][0]:.4f}, on the same {n:,} examples; 95 % intervals; p: paired permutation "
        f"test; cells better or worse: of {cells}, at 5 % by McNemar's test with Holm's correction"
    )
    table = Table(caption=Text(legible(caption)), caption_justify="left")
    table.add_column("run")
    for name in ("AUC", "difference", "interval", "p", "cells better", "cells worse", "largest difference"):
        table.add_column(name, justify="right")
    for c in found:
        eps_x, eps_w, gain = c["largest"]
        table.add_row(
            Text(legible(c["names"][1])), f"{c['auc'][1]:.4f}", f"{c['difference']:+.4f}", f"{c['low']:+.4f} to {c['high']:+.4f}",
            f"{c['p']:.4f}", str(c["better"]), str(c["worse"]), f"{100 * gain:+.1f} points at ({eps_x:g}, {eps_w:g})",
        )  # fmt: skip
    return table
