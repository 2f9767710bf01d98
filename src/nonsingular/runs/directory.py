"""directory.py - the run directory: its settings, its lock, and the versions that made it.  Imports torch only where needed.

It holds config.yaml (the effective settings), model.safetensors, events.jsonl (one line per finished piece of work) and
results.json.  The same settings in the same directory go on where the last run ended.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import platform
import subprocess
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from nonsingular.errors import InvalidInput
from nonsingular.results.files import write_atomic
from nonsingular.results.surface import CONFIG, FORMAT, RESULTS, Surface
from nonsingular.settings import Settings, checked, to_yaml
from nonsingular.untrusted import read_config

LOCK = ".lock"
PATIENCE = 5.0
"""Seconds to wait for another process: the workers of one that was killed need a moment to end."""


@contextmanager
def claimed(out: Path, settings: Settings) -> Generator[None]:
    """Makes or opens `out` as the run directory of these settings, for this process alone inside the context.

    Raises InvalidInput, leaving everything as it was, if it holds something else or another process is at work in it.
    """
    check_free(out, settings)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with FileLock(out / LOCK, timeout=PATIENCE):
            if check_free(out, settings):
                write_atomic(out / CONFIG, to_yaml(settings))
            yield
    except Timeout:
        raise InvalidInput(f"another process is at work in {out}; wait for it, or choose another folder with --out") from None


def check_free(out: Path, settings: Settings) -> bool:
    """Whether `out` can become the run directory of these settings; False if it is already.

    Raises InvalidInput if it holds something else.  Writes nothing.
    """
    if (out / CONFIG).exists():
        held, wanted = read_config(out / CONFIG), yaml.safe_load(to_yaml(settings))
        with contextlib.suppress(InvalidInput):  # a setting that is newer than the run has its default there
            held = yaml.safe_load(to_yaml(checked(type(settings), held)))
        if differ := sorted(k for k in {*held, *wanted} if held.get(k) != wanted.get(k)):
            raise InvalidInput(f"{out} holds a run with other settings ({', '.join(differ)}); choose another folder with --out")
        return False
    if out.exists() and (not out.is_dir() or any(_foreign(p) for p in out.iterdir())):
        raise InvalidInput(f"{out} exists and is not a run directory; choose another folder with --out")
    return True


def _foreign(path: Path) -> bool:
    """Whether a file is neither a trace of a run killed at its very start nor a run within this one."""
    return path.name not in ("models", LOCK) and path.suffix != ".part"


def finished(out: Path, hashes: dict[str, str]) -> dict[str, Any] | None:
    """The results in `out`, of a model and data with these hashes; None if there are none yet.

    Raises InvalidInput if they are of another model, of other data or of another format, or cannot be read: they are never
    overwritten.
    """
    if not (out / RESULTS).exists():
        return None
    results = read_results(out)
    if results["format"] != FORMAT:
        raise InvalidInput(
            f"{out} holds results of another version (format {results['format']}, not {FORMAT}); choose another folder with --out"
        )
    held = {name: s["about"].get(name) for m in results["models"].values() for s in m["surfaces"] for name in hashes}
    if changed := [name.partition("_")[0] for name in hashes if held.get(name) != hashes[name]]:
        raise InvalidInput(
            f"{out} holds the results of another {' and other '.join(changed)}: what the settings name has changed since; "
            "choose another folder with --out"
        )
    return results


def read_results(run: Path) -> dict[str, Any]:
    """results.json of a finished run, checked against its schema (assets/results.schema.json) and its own lengths.

    Raises InvalidInput if it is missing or damaged, or holds something else where a number belongs.
    """
    try:
        results = json.loads((run / RESULTS).read_text(encoding="utf-8"), parse_constant=_no_number)
        if isinstance(results, dict) and results.get("format") == FORMAT:
            _check_schema(results)
        elif not isinstance(results, dict) or not {"format", "models"} <= results.keys():
            raise ValueError("it is not a record of results")
    except FileNotFoundError:
        raise InvalidInput(f"{run} has no {RESULTS}; finish the run first, or give another folder") from None
    except (OSError, ValueError, RecursionError) as e:
        raise InvalidInput(f"{run / RESULTS} cannot be read: {str(e) or type(e).__name__}") from None
    return results


def _no_number(name: str) -> float:
    raise ValueError(f"it holds {name}, which no run writes")


def _check_schema(results: dict[str, Any]) -> None:
    """Raises ValueError, with the place, for what the schema does not allow, and for tables of other lengths than stated."""
    import jsonschema

    schema = json.loads((files("nonsingular") / "assets" / "results.schema.json").read_text(encoding="utf-8"))
    wrong = next(jsonschema.Draft202012Validator(schema).iter_errors(results), None)
    if wrong is not None:
        raise ValueError(f"{wrong.json_path.removeprefix('$.')} {wrong.message[:200]}")
    for name, model in results["models"].items():
        if not len(model["seeds"]) == len(model["surfaces"]) == len(model["auc"]):
            raise ValueError(f"{name} has {len(model['surfaces'])} surfaces for {len(model['seeds'])} seeds")
        for surface in model["surfaces"]:
            for found in (surface, *(surface[kind] for kind in ("shared", "certified") if kind in surface)):
                _check_lengths(name, found)


def _check_lengths(name: str, surface: Mapping[str, Any]) -> None:
    shape = len(surface["eps_w"]), len(surface["eps_x"])
    grids = [surface["accuracy"], surface["interval"]["low"], surface["interval"]["high"]]
    if any(len(rows) != shape[0] or any(len(row) != shape[1] for row in rows) for rows in grids):
        raise ValueError(f"{name} has a table that is not of {shape[0]} rows and {shape[1]} columns")
    if any(not (0 <= f["row"] < shape[0] and 0 <= f["column"] < shape[1]) for f in surface["flags"]):
        raise ValueError(f"{name} has a flag outside its grid")
    if "outcomes" in surface:
        held = len(base64.b64decode(surface["outcomes"], validate=True))
        if held != -(-shape[0] * shape[1] * surface["n"] // 8):
            raise ValueError(f"{name} has {held} bytes of outcomes for {shape[0]} x {shape[1]} cells of {surface['n']} examples")


def read_surface(run: Path) -> Surface:
    """The one surface of a run.  Raises InvalidInput if there are several, or none."""
    surfaces = [surface for model in read_results(run)["models"].values() for surface in model["surfaces"]]
    if len(surfaces) != 1:
        raise InvalidInput(f"{run} holds {len(surfaces)} surfaces; give runs of 'evaluate' or 'certify', which hold one")
    return Surface.from_dict(surfaces[0])


# --- surroundings ---------------------------------------------------------------------------------------------------------


def environment() -> dict[str, Any]:
    """Versions, platform and, in a checkout, the state of git."""
    import torch

    names = ("nonsingular", "torch", "numpy", "safetensors")
    return {
        "versions": {"python": platform.python_version()} | {n: version(n) for n in names},
        "platform": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "git": _git(),
    }


def _git() -> str | None:
    here = ["git", "-C", str(Path(__file__).parents[1])]
    try:
        root = subprocess.run([*here, "rev-parse", "--show-toplevel"], capture_output=True, text=True, check=True).stdout.strip()
        if Path(root).resolve() / "src" / "nonsingular" != Path(__file__).resolve().parents[1]:
            return None  # installed inside somebody else's repository
        commit = subprocess.run([*here, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run(
            [*here, "status", "--porcelain", "--", "."], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + (" with uncommitted changes" if changed else "")
