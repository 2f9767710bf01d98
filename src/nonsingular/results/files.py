"""files.py - files that are written whole or not at all, and an append-only log of JSON lines."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nonsingular.errors import InvalidInput


class Log:
    """Append-only file of JSON lines, each with a checksum; a last line torn by an interruption is dropped when it is read.

    Each key is written once, so that a later run finds what is finished.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if not self.path.exists():
            return
        lines = self.path.read_bytes().split(b"\n")
        for number, line in enumerate(lines, 1):
            if not line:
                continue
            entry = _parse(line)
            if entry is not None:
                yield entry
            elif number < len(lines):  # only the last line can be torn by an interruption
                raise InvalidInput(f"{self.path}: line {number} is damaged; delete that line and run again to redo it")

    def append(self, entry: Mapping[str, Any]) -> None:
        """Write one entry and flush it to disk.  An OSError names the file."""
        body = json.dumps(entry, sort_keys=True)
        line = json.dumps({"crc": zlib.crc32(body.encode()), "entry": entry}, sort_keys=True)
        with _named(self.path), self.path.open("a+b") as f:
            f.seek(max(0, f.tell() - 1))
            if f.read(1) not in (b"", b"\n"):  # torn by an interruption
                f.seek(0)
                whole, newline, tail = f.read().rpartition(b"\n")
                if _parse(tail) is None:
                    f.truncate(len(whole) + len(newline))
                else:  # only its newline is missing
                    f.write(b"\n")
            f.write(line.encode() + b"\n")
            f.flush()
            os.fsync(f.fileno())


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        whole = json.loads(line)
        if zlib.crc32(json.dumps(whole["entry"], sort_keys=True).encode()) == whole["crc"]:
            return whole["entry"]
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    return None


def write_atomic(path: Path, data: str | bytes) -> None:
    """Write a whole file or nothing: an interruption leaves the old file as it was.  An OSError names the file."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with _named(path):
        try:
            part.write_bytes(data.encode() if isinstance(data, str) else data)
            os.replace(part, path)
        except OSError:
            part.unlink(missing_ok=True)
            raise


@contextmanager
def _named(path: Path) -> Generator[None]:
    """Add the name of the file to an OSError: the system leaves it out where a write fails."""
    try:
        yield
    except OSError as e:
        e.filename = str(path)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; NaN and infinities are refused rather than written as invalid JSON."""
    write_atomic(path, json.dumps(value, indent=1, allow_nan=False) + "\n")
