"""evaluate.py - settings -> run directory (directory.py): evaluation and certification."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from nonsingular.certificates.radii import Front
from nonsingular.data.datasets import Dataset
from nonsingular.data.readers import indices as index_file
from nonsingular.errors import InvalidInput
from nonsingular.evaluation.attacked import rehearse
from nonsingular.evaluation.estimate import Preflight
from nonsingular.evaluation.preflight import preflight, preflights
from nonsingular.network.calling import threads
from nonsingular.network.preconditions import warn
from nonsingular.results.files import write_json
from nonsingular.results.surface import EVENTS, FORMAT, RESULTS, Surface
from nonsingular.runs.directory import check_free, claimed, environment, finished
from nonsingular.runs.engine import Workplace, watched
from nonsingular.runs.jobs import Attacked, Certified, Report
from nonsingular.settings import (
    CertifySettings,
    EvaluateSettings,
    GridSettings,
    Settings,
)  # fmt: skip

log = logging.getLogger("nonsingular")
BRIEF, LIMIT = 5.0, 20.0
"""Seconds for the estimate before a run, and seconds after which an estimate on request ends, finished or not."""


AGAIN = "nonsingular COMMAND --config config.yaml"
"""The default command that repeats a run from its directory."""


@dataclass(frozen=True)
class Told:
    """Callbacks of a run.  report: called with its progress.  announce: called with its estimate before it begins."""

    report: Report = lambda what, n: None
    announce: Callable[[Preflight], None] | None = None


QUIETLY = Told()


@dataclass(frozen=True)
class Circumstances:
    """How results were made, as they state it: machine and versions, and the command line."""

    environment: dict[str, Any]
    command: str = AGAIN


def evaluate_run(
    settings: EvaluateSettings | CertifySettings, out: Path, workplace: Workplace, told: Told = QUIETLY, command: str = AGAIN
) -> dict[str, Any]:  # fmt: skip
    """One surface, as the results that a report is made of, also written to `out`.  Finished pieces are not done again.

    settings: those of certify with `accuracy` ask for the fronts of radii, too.
    workplace: where the work is done.  The results do not depend on it.
    """
    with threads(1):  # as where the work is done
        job = job_of(settings)
        announce(job, out, workplace, told)
        return run_whole(job, job.settings, out, workplace, told.report, command)


def job_of(settings: EvaluateSettings | CertifySettings) -> Attacked | Certified:
    """The job of these settings, whose attack or bound was tried on one example.  Raises InvalidInput if it does not fit."""
    if isinstance(settings, CertifySettings):
        return Certified(settings)
    job = Attacked(settings)
    rehearse(job.case.part(slice(1)), job.method, job.grid.largest)
    return job


def announce(job: Attacked | Certified, out: Path, workplace: Workplace, told: Told) -> None:
    """Announces the estimate, unless the run goes on with an earlier one."""
    new = check_free(out, job.settings)
    if new and job.proposed:
        log.info(job.proposed)
    if new and told.announce:
        found = preflight(job.plan(workplace.workers), job.seen, [], seconds=BRIEF)  # the run itself shows the doubts
        told.announce(replace(found, about=tuple(job.about())))


def preflight_run(
    settings: EvaluateSettings | CertifySettings, workers: int, on_first: Callable[[Preflight], None] = lambda found: None
) -> Preflight:
    """The estimate of `evaluate_run` with these settings.  Writes nothing.

    on_first: given the first estimate of the time, seconds before the last one.
    Takes at most LIMIT seconds once model and data are loaded: the clock runs in a separate process, which is then ended, and the
    estimate names what did not finish.  Raises what the run would raise.
    """
    last: Preflight | None = None
    first = False
    for told in watched(_preflight, settings.model_dump_json(), isinstance(settings, CertifySettings), workers, seconds=LIMIT):
        if isinstance(told, Preflight):
            if not first and told.seconds is not None and not told.unfinished:
                first = True
                on_first(told)
            last = told
    if last is None:
        raise InvalidInput(f"the model has not finished its first examples after {LIMIT:.0f} s; give fewer of them with --limit")
    return last


def _preflight(send: Callable[[Any], None], settings: str, certify: bool, workers: int) -> None:
    """Sends the estimate again whenever it gets better."""
    started = time.perf_counter()
    schema = CertifySettings if certify else EvaluateSettings
    asked = schema.model_validate_json(settings)
    with threads(1):
        loaded = partial(send, "loaded")
        job = (
            Certified(asked, quick=True, on_loaded=loaded)
            if isinstance(asked, CertifySettings)
            else Attacked(asked, quick=True, on_loaded=loaded)
        )
        plan = job.plan(workers, time.perf_counter() - started)
        for told in preflights(plan, job.seen, job.case.doubts, patient=True):
            send(replace(told, proposed=job.proposed, about=tuple(job.about())))


def run_whole(
    job: Attacked | Certified, settings: EvaluateSettings | CertifySettings, out: Path, workplace: Workplace, report: Report,
    command: str,
) -> dict[str, Any]:  # fmt: skip
    """Does what the log in `out` does not hold, and writes the results there.  settings: as the run states them."""
    if settings.shard is not None:
        raise InvalidInput(f"shard is {settings.shard}: a part has no surface; use shard_run, or leave shard out")
    check_free(out, settings)
    if results := finished(out, job.case.hashes):
        return results
    started, surroundings = time.perf_counter(), environment()
    fronts: list[dict[str, Any]] = []
    with workplace.open() as pool, claimed(out, settings):
        warn(job.case.doubts)
        found = job.surface(job.execution(out / EVENTS, pool, report))
        if isinstance(job, Certified) and job.settings.accuracy:
            front = job.front(job.execution(out / EVENTS, pool, report))
            fronts = [front_dict(front, share) for share in job.settings.accuracy]
        surroundings |= {"wall_seconds": round(time.perf_counter() - started, 1)}
        results = record(job, found, settings, out / EVENTS, Circumstances(surroundings, command))
        (model,) = results["models"].values()
        if fronts:
            model["fronts"] = fronts
        if isinstance(job, Attacked) and job.settings.masking:
            model["masking"] = job.masking(found)
        write_json(out / RESULTS, results)
    return results


def record(
    job: Attacked | Certified, found: Surface, settings: GridSettings, events: Path, circumstances: Circumstances
) -> dict[str, Any]:  # fmt: skip
    """The results of a run of one model.  settings: as the run states them; those of the job say where things lie now."""
    label = settings.label
    results = assemble({label: (label, {}, [found])}, [0], job.data, settings, circumstances)
    if job.split.columns:
        results["data"]["columns"] = list(job.split.columns)
    if job.input_radii:
        results["data"]["input_radii"] = job.input_radii
    if job.settings.indices is not None:
        results["data"]["indices"] = {"file": str(settings.indices), "sha256": index_file.sha256(job.settings.indices)}
    if isinstance(job, Attacked) and (known := job.examples(events)):
        results["models"][label]["examples"] = known
    return results


def front_dict(front: Front, accuracy: float) -> dict[str, Any]:
    """The front for a required accuracy as a record; None where no weight radius is certified."""
    return {
        "accuracy": accuracy, "eps_x": list(front.eps_x),
        "eps_w": [None if math.isnan(r) else r for r in front.at(accuracy)],
    }  # fmt: skip


def assemble(
    models: Mapping[str, tuple[str, dict[str, Any], list[Surface]]],
    seeds: list[int],
    data: Dataset,
    settings: Settings,
    circumstances: Circumstances,
) -> dict[str, Any]:
    """The results of a run: name -> (title, settings, one surface a seed), with everything that names the numbers."""
    a_surface = next(iter(models.values()))[2][0]
    return {
        "format": FORMAT,
        "command": circumstances.command,
        "data": {
            "name": data.name, "split": getattr(settings, "split", "test"), "n": a_surface.n, "classes": list(data.classes),
            "sha256": a_surface.about["data_sha256"],
        },
        "grid": {"eps_x": list(a_surface.eps_x), "eps_w": list(a_surface.eps_w)},
        "kind": a_surface.kind, "scope": a_surface.scope, "attack": a_surface.attack,
        "models": {
            name: {
                "title": title, "settings": recipe, "seeds": seeds,
                "auc": [s.auc for s in surfaces], "auc_x": [s.auc_x for s in surfaces], "auc_w": [s.auc_w for s in surfaces],
                "clean": [s.about["clean_accuracy"] for s in surfaces], "surfaces": [s.to_dict() for s in surfaces],
            }
            for name, (title, recipe, surfaces) in models.items()
        },
        "config": json.loads(settings.model_dump_json(exclude={"data_dir"})),
        "environment": circumstances.environment,
    }  # fmt: skip
