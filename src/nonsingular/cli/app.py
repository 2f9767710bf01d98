"""app.py - the command line, to which commands.py adds its commands."""

from __future__ import annotations

from contextvars import ContextVar

from cyclopts import App

from nonsingular import __version__

app = App(
    name="nonsingular", version=__version__, suppress_keyboard_interrupt=False, result_action="return_value",
    help="Robustness of neural networks to their inputs and their weights, together.\n\n"
    "Exit codes: 0 done; 1 a gate was missed, a worker process died, an attack beat a certificate, or a run is not confirmed; "
    "2 something you gave cannot be used; "
    "130 interrupted by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP (what is finished is kept: run the same command again).",
)  # fmt: skip


typed: ContextVar[str] = ContextVar("command", default="nonsingular")
"""The command line as it was typed: for the record."""
