"""shards.py - a run done in parts, on machines that know nothing of each other, and the parts joined to the run.

A shard is a run directory with the log and the perturbations of its pieces, and `shard.json` in the place of results.  The log of
the whole run holds the same lines, so joining is copying: nothing is rounded, and nothing is trusted that the log does not hold.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nonsingular.errors import InvalidInput, Unconfirmed
from nonsingular.evaluation.execution import Shard, from_log
from nonsingular.evaluation.schedule import file_of
from nonsingular.evaluation.stored import FOLDER
from nonsingular.network.calling import threads
from nonsingular.network.preconditions import warn
from nonsingular.report import write
from nonsingular.results.files import Log, write_json
from nonsingular.results.surface import CONFIG, EVENTS, FORMAT, RESULTS, Cell
from nonsingular.runs.directory import check_free, claimed, finished
from nonsingular.runs.engine import Workplace, kind
from nonsingular.runs.evaluate import AGAIN, QUIETLY, Told, announce, job_of, run_whole
from nonsingular.runs.jobs import Attacked, Certified
from nonsingular.runs.manifest import MANIFEST, differences, seal
from nonsingular.runs.whereabouts import AS_SAID, Whereabouts
from nonsingular.settings import CertifySettings, EvaluateSettings, SurfaceSettings, checked
from nonsingular.untrusted import json_of, read_config

SHARD = "shard.json"
"""What a finished shard states: which part it is, of which model and data, and what its bits depend on."""
LARGEST = 2**16
"""Bytes of it that are read."""


def shard_run(
    settings: EvaluateSettings | CertifySettings, out: Path, workplace: Workplace, told: Told = QUIETLY, command: str = AGAIN
) -> dict[str, Any]:  # fmt: skip
    """Does the part of a run that `settings.shard` names, into `out`.  Finished pieces are not done again.

    Returns what shard.json says.
    Raises InvalidInput where a run has no parts: in scope dataset, unless the attack takes no start.
    """
    with threads(1):
        job = job_of(settings)
        announce(job, out, workplace, told)
        check_free(out, job.settings)
        about = {"format": FORMAT, "shard": job.settings.shard, **job.case.hashes, "kind": kind()}
        if (out / MANIFEST).exists():
            stated = _stated(out)
            if changed := sorted(name for name in about if stated[name] != about[name]):
                raise InvalidInput(
                    f"{out} holds a shard made with another {', '.join(changed)}; choose another folder with --out"
                )
            return stated
        started = time.perf_counter()
        warn(job.case.doubts)
        with workplace.open() as pool, claimed(out, job.settings):
            job.fill(job.execution(out / EVENTS, pool, told.report))
            about |= {"command": command, "wall_seconds": round(time.perf_counter() - started, 1)}
            write_json(out / SHARD, about)
            seal(out)
        return about


def merge_run(
    folders: Sequence[Path], out: Path, workplace: Workplace, where: Whereabouts = AS_SAID, told: Told = QUIETLY,
    command: str = AGAIN,
) -> dict[str, Any]:  # fmt: skip
    """The run whose shards these are, with its pages: `out` then holds the numbers of a run done at once, bit for bit.

    workplace: for what no shard could do alone: certificates on the border of two, and the checks of masked gradients.
    where: as in `verify_run`.
    `out` appears whole or not at all.  Raises one InvalidInput that names every shard that is missing, given twice, unfinished,
    changed, or of another run, model, data or kind of machine.
    """
    parts, settings = _parts(folders)
    typed = f"nonsingular merge {' '.join(map(str, folders))} --out {out}"
    with threads(1):
        job = job_of(where.located(settings, folders[0], typed))
        job.case = replace(job.case, name=settings.label)
        _check_made_of(parts, job)
        if not check_free(out, settings):
            if results := finished(out, job.case.hashes):
                return results
            raise InvalidInput(f"{out} holds an unfinished run; choose another folder with --out, or run its command again")
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", suffix=".part", dir=out.parent) as scratch:
            run = Path(scratch) / "run"
            with claimed(run, settings):
                _join(parts, job, run)
            results = run_whole(job, settings, run, workplace, told.report, command)
            results["environment"]["wall_seconds"] = round(
                results["environment"]["wall_seconds"] + sum(p.seconds for p in parts), 1
            )
            write_json(run / RESULTS, results)
            write(results, run)
            seal(run)
            if out.is_dir() and not any(out.iterdir()):
                out.rmdir()
            os.rename(run, out)
    return results


# --- the shards -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Part:
    """A finished shard.  about: what it states."""

    folder: Path
    settings: SurfaceSettings
    shard: Shard
    about: Mapping[str, Any]

    @property
    def seconds(self) -> float:
        return float(self.about["wall_seconds"])

    def __str__(self) -> str:
        return f"{self.folder} (shard {self.shard.index}/{self.shard.of})"


def _parts(folders: Sequence[Path]) -> tuple[list[_Part], EvaluateSettings | CertifySettings]:
    """The shards, in order, and the settings of the run.  Raises InvalidInput unless they are all shards of one run."""
    found, wrong = list[_Part](), list[str]()
    for folder in folders:
        try:
            found.append(_read(folder))
        except InvalidInput as e:
            wrong.append(str(e))
    if found:
        first = found[0]
        whole = first.settings.model_dump()
        at: dict[int, list[_Part]] = {}
        for part in found:
            mine = part.settings.model_dump()
            differ = sorted(k for k in {*whole, *mine} - {"shard"} if whole.get(k) != mine.get(k))
            if type(part.settings) is not type(first.settings):
                wrong.append(f"{part} is of another command than {first.folder}")
            elif differ:
                wrong.append(f"{part} has other settings than {first.folder} ({', '.join(differ)})")
            elif part.shard.of != first.shard.of:
                wrong.append(f"{part} is of another number of shards than {first.folder}")
            else:
                at.setdefault(part.shard.index, []).append(part)
        wrong += [f"{' and '.join(map(str, same))} are the same shard; give one" for same in at.values() if len(same) > 1]
        if not wrong:
            missing = [f"{i}/{first.shard.of}" for i in range(1, first.shard.of + 1) if i not in at]
            if missing:
                wrong.append(f"shard {_few(missing)} of the run is missing")
    if wrong or not found:
        raise InvalidInput("nothing was merged: " + ("; ".join(wrong) or "give the folders of the shards"))
    found.sort(key=lambda part: part.shard.index)
    settings: Any = found[0].settings.model_copy(update={"shard": None})
    return found, settings


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _read(folder: Path) -> _Part:
    """One shard, whose files are those of its manifest.  Raises InvalidInput for anything else."""
    if not (folder / CONFIG).is_file():
        raise InvalidInput(f"{folder} is no shard: it has no {CONFIG}")
    values = read_config(folder / CONFIG)
    if values.get("shard") is None:
        raise InvalidInput(f"{folder} is no shard: its {CONFIG} names no part of a run")
    settings = checked(EvaluateSettings if "scope" in values else CertifySettings, values)
    assert settings.shard is not None
    shard = Shard.of_text(settings.shard)
    if not (folder / MANIFEST).is_file():
        raise InvalidInput(f"{folder} (shard {settings.shard}) is not finished: run its command again")
    if wrong := differences(folder):
        raise InvalidInput(f"{folder} (shard {settings.shard}) is not as it was written: {_few(wrong)}")
    about = _stated(folder)
    if about["shard"] != settings.shard or about["format"] != FORMAT:
        raise InvalidInput(f"{folder} (shard {settings.shard}) has another {SHARD}: {about['shard']}, format {about['format']}")
    return _Part(folder, settings, shard, about)


def _stated(folder: Path) -> dict[str, Any]:
    path = folder / SHARD
    try:
        if path.stat().st_size > LARGEST:
            raise InvalidInput(f"{path} is longer than {LARGEST} bytes; a run did not write it")
        about = json_of(path, path.read_bytes())
        return {
            **{name: str(about[name]) for name in ("shard", "model_sha256", "data_sha256")}, "format": int(about["format"]),
            "kind": {str(k): str(v) for k, v in about["kind"].items()}, "command": str(about["command"]),
            "wall_seconds": max(0.0, float(about["wall_seconds"])),
        }  # fmt: skip
    except (OSError, KeyError, TypeError, ValueError, AttributeError, OverflowError) as e:
        if isinstance(e, InvalidInput):
            raise
        raise InvalidInput(f"{path} is not as a shard writes it ({type(e).__name__}: {e}); run the shard again") from None


def _check_made_of(parts: Sequence[_Part], job: Attacked | Certified) -> None:
    """Raises InvalidInput for shards of another model, other data or another kind of machine, and where a log lacks pieces."""
    wrong = list[str]()
    for part in parts:
        other = [name.partition("_")[0] for name, value in job.case.hashes.items() if part.about[name] != value]
        if other:
            wrong.append(f"{part} was made with another {' and other '.join(other)} than the settings name now")
        elif part.about["kind"] != kind():
            wrong.append(f"{part} was made by {part.about['kind']}, whose last bits may differ from {kind()} here")
        else:
            try:
                job.fill(from_log(part.folder / EVENTS, part.shard))
            except (Unconfirmed, InvalidInput) as e:
                wrong.append(f"{part}: {e}")
    if wrong:
        raise InvalidInput("nothing was merged: " + "; ".join(wrong))


# --- joining --------------------------------------------------------------------------------------------------------------


def _join(parts: Sequence[_Part], job: Attacked | Certified, run: Path) -> None:
    """The log, in the order of one worker, and the perturbations of its pieces."""
    found = dict[tuple[int, ...], tuple[_Part, dict[str, Any]]]()
    for part in parts:
        for place, entry in _placed(part, job):
            found[place] = part, entry
    log = Log(run / EVENTS)
    for _, (part, entry) in sorted(found.items(), key=lambda item: item[0]):
        log.append(entry)
        if "cells" in entry:
            span, cells = (int(entry["span"][0]), int(entry["span"][1])), list(map(Cell.from_dict, entry["cells"]))
            kept = part.folder / FOLDER / file_of(span, cells)
            if kept.is_file() and not kept.is_symlink():
                (run / FOLDER).mkdir(exist_ok=True)
                shutil.copyfile(kept, run / FOLDER / kept.name)


def _placed(part: _Part, job: Attacked | Certified) -> Iterator[tuple[tuple[int, ...], dict[str, Any]]]:
    """The entries of a shard's log that are of this run, each with its place in the log of the whole."""
    order, points = {key: k for k, key in enumerate(job.keys)}, {radii: k for k, radii in enumerate(job.grid.points)}
    for entry in Log(part.folder / EVENTS):
        if entry.get("key") in order:
            cells = [Cell.from_dict(c) for c in entry.get("cells", ())[:1]]
            at = points.get((cells[0].eps_x, cells[0].eps_w), -1) if cells else 0
            span = int(entry["span"][0]), int(entry["span"][1])
            yield (order[entry["key"]], *span, int(entry.get("row", 0)), at), entry
