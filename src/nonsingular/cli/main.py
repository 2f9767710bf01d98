"""main.py - the entry point: exit codes, one line for a user's mistake, signals."""

from __future__ import annotations

import errno
import logging
import os
import shlex
import signal
import sys
import threading
from collections.abc import Generator
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from typing import Any

import cyclopts

from nonsingular.cli import commands, finished, listing  # noqa: F401  # pyright: ignore[reportUnusedImport]  # they add the commands
from nonsingular.cli.app import app, typed
from nonsingular.cli.screen import PlainLines, say
from nonsingular.errors import GateMissed, InvalidInput, SoundnessError, Unconfirmed


def main(argv: list[str] | None = None) -> int:
    """Entry point.  Returns the exit code; a user's mistake is one line on stderr, without a traceback."""
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
    for handler in logging.getLogger().handlers:
        if type(handler) is logging.StreamHandler:
            handler.setFormatter(PlainLines("%(message)s"))
    argv = sys.argv[1:] if argv is None else argv
    typed.set(shlex.join(["nonsingular", *argv]))
    try:
        with _signals_end_like_ctrl_c():
            app(argv, exit_on_error=False, print_error=False)
            sys.stdout.flush()
        return 0
    except cyclopts.CycloptsError as e:
        return _fail(f"{e}\nsee: nonsingular --help")
    except (SoundnessError, Unconfirmed, GateMissed) as e:
        say(f"error: {e}")
        return 1
    except InvalidInput as e:
        return _fail(" ".join(str(e).split()))
    except BrokenPipeError:  # the reader of the output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as e:
        full = e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        then = "; what is finished is kept: make room and run the same command again" if full else ""
        return _fail(f"{e.filename or 'a file'}: {e.strerror or e}{then}")
    except BrokenExecutor:
        say("error: a worker process died (killed, or out of memory); what is finished is kept: run again, with fewer --workers")
        return 1
    except KeyboardInterrupt as e:
        say(f"interrupted; what is finished is kept; resume with the same command again: {typed.get()}")
        return 128 + (e.number if isinstance(e, Interrupted) else signal.SIGINT)


class Interrupted(KeyboardInterrupt):
    """A signal that asks this process to end.  number: of the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def _signals_end_like_ctrl_c() -> Generator[None]:
    """SIGTERM and SIGHUP raise Interrupted, so that they clean up as Ctrl-C does; an ignored signal (nohup) stays ignored."""

    def end(number: int, frame: object) -> None:
        raise Interrupted(number)

    before: dict[int, Any] = {}
    for name in ("SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
        number = getattr(signal, name, None)
        if number and threading.current_thread() is threading.main_thread() and signal.getsignal(number) is signal.SIG_DFL:
            before[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _fail(message: str) -> int:
    say(f"error: {message}")
    return 2
