"""screen.py - what is shown: progress and messages on stderr, tables on stdout."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from json import dumps
from pathlib import Path
from typing import Any

from nonsingular.plain import legible


@contextmanager
def progress(quiet: bool, totals: Mapping[str, int]) -> Generator[Callable[[str, int], None]]:
    """Bars on stderr, one for each unit; yields report(unit, n)."""
    if quiet:
        yield lambda what, n: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        tasks = {what: progress.add_task(what, total=total) for what, total in totals.items()}

        def report(what: str, n: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=None)
            progress.advance(tasks[what], n)

        yield report


def show(results: Mapping[str, Any], out: Path) -> None:
    from nonsingular.report import doubts
    from nonsingular.report.table import claims_table, masking_lines, model_table

    print_table(model_table(results))
    for line in doubts(results):
        print(line)
    if "claims" in results:
        print_table(claims_table(results))
    for model in results["models"].values():
        for line in masking_lines(model):
            tell(f"{model['title']}: {line}" if len(results["models"]) > 1 else line)
    say(f"figure: {out / 'figure1.png'}\nreport: {out / 'report.html'}")


def show_surface(results: Mapping[str, Any], page: Path, out: Path, *, json: bool) -> None:
    """The surfaces of the one model, as tables or as one JSON object; and where the page is."""
    from nonsingular.report import doubts
    from nonsingular.report.table import fronts_table, masking_lines, surface_table
    from nonsingular.results.surface import Surface

    (found,) = results["models"].values()
    if json:
        print(dumps(found["surfaces"][0] | {k: found[k] for k in ("fronts", "masking") if k in found}))
        return
    surface = Surface.from_dict(found["surfaces"][0])
    for shown in (surface, surface.shared, surface.certified):
        if shown:
            print_table(surface_table(shown))
    if "fronts" in found:
        print_table(fronts_table(found["fronts"]))
    for line in [*doubts(results), *masking_lines(found)]:
        tell(line)
    say(f"report: {page}\nrecords: {out}")


def show_shard(shard: str, out: Path, *, json: bool) -> None:
    """Where a finished shard is, and what joins it with the others."""
    if json:
        print(dumps({"shard": shard, "out": str(out)}))
    else:
        say(f"shard {shard} is done: {out}\nwhen all are: nonsingular merge FOLDER ... --out RUN")


def print_table(table: Any) -> None:
    from rich.console import Console

    console = Console()
    Console(width=None if console.is_terminal else 120).print(table)


def say(text: str) -> None:
    print(legible(text), file=sys.stderr)


def tell(text: str) -> None:
    """Onto stdout."""
    print(legible(text))


class PlainLines(logging.Formatter):
    """What is logged may quote files."""

    def format(self, record: logging.LogRecord) -> str:
        return legible(super().format(record))
