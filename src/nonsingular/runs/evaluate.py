"""evaluate.py - settings -> run directory (runs/directory.py): training, evaluation, certification, the whole of the paper."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import nn

from nonsingular.catalog import ATTACKS, OBJECTIVES, lookup
from nonsingular.certificates.certify import Front, certified_front
from nonsingular.data.columns import input_axis, moving
from nonsingular.data.datasets import Dataset, Domain, Split, first_radii, hash_tensors, load
from nonsingular.data.readers import indices as index_file
from nonsingular.errors import InvalidInput
from nonsingular.evaluation.attacked import choose, rehearse, surface
from nonsingular.evaluation.breakdown import examples
from nonsingular.evaluation.certified import TOGETHER, Parts, Proof, Span, certified_part, prove, rehearse_proof
from nonsingular.evaluation.masking import masking
from nonsingular.evaluation.preflight import Plan, Preflight, looked_at, preflight, preflights
from nonsingular.evaluation.schedule import TASKS
from nonsingular.models import loading
from nonsingular.models.architectures import Averaged
from nonsingular.models.loading import build, load_run
from nonsingular.network.graph import threads
from nonsingular.network.heads import classifier, told_of_weights
from nonsingular.network.one_logit import OneLogit
from nonsingular.network.preconditions import check_inputs, warn
from nonsingular.results.claims import judge
from nonsingular.results.surface import (
    CONFIG,
    EVENTS,
    FORMAT,
    RESULTS,
    SUMMARY,
    WEIGHTS,
    Surface,
    axis,
    write_atomic,
    write_json,
)
from nonsingular.runs.directory import check_free, claimed, environment, finished
from nonsingular.runs.engine import engine as start
from nonsingular.runs.engine import watched
from nonsingular.runs.presets import GRIDS, TITLES
from nonsingular.settings import (
    CertifySettings,
    EvaluateSettings,
    Recipe,
    ReproduceSettings,
    Settings,
    TrainSettings,
)  # fmt: skip
from nonsingular.threat.ball import JointBall
from nonsingular.training.loop import CHECKPOINT, Epoch, accuracy, train
from nonsingular.training.objectives import Objective

log = logging.getLogger("nonsingular")

Report = Callable[[str, int], None]
"""Progress: (what was done, how many units)."""
BRIEF, LIMIT = 5.0, 20.0
"""Seconds for the estimate before a run, and seconds after which an estimate that was asked for is ended as far as it is."""


# --- training -------------------------------------------------------------------------------------------------------------


def train_run(settings: TrainSettings, out: Path, on_epoch: Callable[[Epoch], None] = lambda epoch: None) -> dict[str, Any]:
    """Trains one model into `out`; a finished run is left as it is, an interrupted one goes on from its last epoch.

    Returns the summary that is also written to train.json.
    """
    data = dataset(settings.data, settings.data_dir, classes=settings.classes)
    model = build(settings, tuple(data.train.x.shape[1:]), len(data.classes))
    objective = objective_of(settings.recipe, data)
    objective(model)  # a network that the method has no rule for is an error before anything is written
    train_sha256 = data.train.sha256()
    check_free(out, settings)
    if (out / SUMMARY).exists() and (out / WEIGHTS).exists():
        summary = json.loads((out / SUMMARY).read_text())
        if summary["train_sha256"] != train_sha256:
            raise InvalidInput(f"{out} holds a model that was trained on other data; choose another folder with --out")
        return summary
    with claimed(out, settings):
        return _train(settings, model, data, objective, out, train_sha256, on_epoch)


def _train(
    settings: TrainSettings, model: nn.Module, data: Dataset, objective: Objective, out: Path, train_sha256: str,
    on_epoch: Callable[[Epoch], None],
) -> dict[str, Any]:  # fmt: skip
    recipe, started = settings.recipe, time.perf_counter()
    train(
        model, data.train, data.val, objective, epochs=recipe.epochs, seed=settings.seed, lr=recipe.lr,
        batch_size=recipe.batch_size, directory=out, on_epoch=on_epoch,
        tag=train_sha256[:16] + settings.model_dump_json(exclude={"data_dir"}),
    )  # fmt: skip
    built_for = {"input_shape": tuple(data.train.x.shape[1:]), "classes": len(data.classes)}
    about = {"built_for": json.dumps(built_for)}  # one key: the same bytes every time
    write_atomic(out / WEIGHTS, save({k: v.clone() for k, v in model.state_dict().items()}, about))
    summary = {
        "format": FORMAT, "model_sha256": hash_tensors(model.state_dict()), "train_sha256": train_sha256,
        "val_accuracy": accuracy(model, data.val), "seconds": time.perf_counter() - started, "environment": environment(),
    }  # fmt: skip
    write_json(out / SUMMARY, summary)
    (out / CHECKPOINT).unlink(missing_ok=True)
    return summary


def objective_of(recipe: Recipe, data: Dataset) -> Objective:
    """What a recipe minimises, in the domain of the data."""
    ball = JointBall(recipe.eps_x, recipe.eps_w, data.domain)
    return lookup(OBJECTIVES, recipe.method, "method")(ball, recipe.alpha, recipe.beta)


def load_model(spec: str, weights: Path | None) -> tuple[nn.Module, TrainSettings | None]:
    """The model that `spec` names, as in models/loading.py; and of a run directory of `train` the settings that made it."""
    if (Path(spec) / CONFIG).exists() and weights is None:
        return load_run(Path(spec))
    return loading.load_model(spec, weights), None


# --- evaluation -----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=2)
def dataset(name: str, data_dir: Path | None, domain: Domain = "own", classes: tuple[str, ...] | None = None) -> Dataset:
    """Each process reads a data set once."""
    return load(name, data_dir, domain=domain, classes=classes)


class Job:
    """One model, the examples and the grid that settings name: what a worker needs to do a piece of the work."""

    def __init__(
        self, settings: EvaluateSettings | CertifySettings, *, quick: bool = False, on_loaded: Callable[[], None] = lambda: None
    ) -> None:
        """quick: checks no more examples than can be seen in a few seconds, rehearses nothing.  on_loaded: called before that."""
        self.model, trained = load_model(settings.model, settings.weights)
        name = settings.data or (trained.data if trained else None)
        if name is None:
            raise InvalidInput("which data? give --data a name or a file")
        own: Domain = "own" if settings.domain is None else None if settings.domain == "none" else settings.domain
        classes = settings.classes or (trained.classes if trained else None)
        self.data = dataset(name, settings.data_dir or (trained.data_dir if trained else None), own, classes)
        self.split = _as_floats_of(self.model, _chosen(self.data, settings))
        columns, rows, relative, self.proposed = _grid(settings, name, self.split)
        radii = rows if isinstance(rows, dict) else None
        unit_x, self.columns = input_axis(columns, self.split.x.shape[1:], self.split.columns)
        self.rows = axis(1.0, "eps_w") if isinstance(rows, dict) else rows
        self.input_radii = moving(unit_x, self.split.columns)
        """Column -> radius of those that move, where the settings name columns."""
        self.unit = JointBall(unit_x, 1.0 if radii is None else radii, self.data.domain, settings.moves, relative)
        x, y = self.split.x, self.split.y
        on_loaded()
        told = told_of_weights(self.model, self.unit)
        if (passes := getattr(settings, "expectation", None)) is not None:
            self.model = Averaged(self.model, passes)
            told.append(f"the logits are means over {passes} forward passes, whose random numbers are the same for all inputs")
        self.model = classifier(self.model, x, self.unit)
        if quick:
            self.unit.check_domain(x)
        self.seen = looked_at(self.model, x, y, self.unit) if quick else torch.arange(len(x), device=x.device)
        self.doubts = [*told, *check_inputs(self.model, x[self.seen], y[self.seen], self.unit, classes=len(self.data.classes))]
        self.model_sha256 = hash_tensors(self.model.state_dict())
        self.data_sha256 = self.split.sha256()
        domain = "none" if self.data.domain is None else self.data.domain
        self.settings = settings.model_copy(
            update={
                "data": name,
                "classes": classes,
                "eps_x": columns,
                "eps_w": rows,
                "domain": domain,
                "relative": relative,
            }
        )
        """The settings with every default filled in."""

    def about(self) -> list[str]:
        """What is worth a look before the run: the order of the classes, one logit, the columns that move."""
        told = [self.data.order]
        if isinstance(self.model, OneLogit):
            told.append("the model returns one logit: above 0 is class 1")
        if self.input_radii:
            fixed = self.split.x.shape[1] - len(self.input_radii)
            told.append(f"columns that move, at the largest eps_x: {_radii_of(self.input_radii)}; fixed: {fixed}")
        return told

    @property
    def hashes(self) -> dict[str, str]:
        """Of the model and of the examples, as surfaces record them."""
        return {"model_sha256": self.model_sha256, "data_sha256": self.data_sha256}


def _radii_of(radii: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} by {'{:g} down, {:g} up'.format(*r) if isinstance(r, list) else f'{r:g}'}" for name, r in radii.items()
    )


def _grid(settings: EvaluateSettings | CertifySettings, name: str, split: Split) -> tuple[Any, Any, bool, str | None]:
    """(eps_x, eps_w, relative, what was proposed and why) of these settings: given, of the data set, or from the inputs.

    The weight radii of a data set are of its own networks: asked for in multiples of the weights, they are proposed.
    """
    default_x, default_w = GRIDS.get(name, (None, None))
    columns, rows, relative = settings.eps_x or default_x, settings.eps_w, settings.relative
    if rows is None and not relative:
        rows = default_w
    first = first_radii(split.x)
    told: list[str] = []
    if columns is None:
        columns = first.eps_x
        told.append(f"--eps-x {_written(columns)} ({first.why_x})")
    if rows is None:
        rows, relative = first.eps_w, True
        told.append(f"--relative --eps-w {_written(rows)} ({first.why_w})")
    return columns, rows, relative, f"not given, so chosen here: {'; '.join(told)}" if told else None


def _written(radii: Sequence[float]) -> str:
    return ",".join(f"{r:g}" for r in radii)


def _chosen(data: Dataset, settings: EvaluateSettings | CertifySettings) -> Split:
    """The rows of the split that settings name."""
    split: Split = getattr(data, settings.split)
    if not len(split):
        held = ", ".join(
            f"{name} ({len(s)})" for name, s in (("test", data.test), ("val", data.val), ("train", data.train)) if len(s)
        )
        raise InvalidInput(
            f"{data.name} has no {settings.split} split; it holds {held}. Give --split, or put test into the names"
        )
    return (split if settings.indices is None else split.pick(settings.indices)).take(settings.limit)


def _as_floats_of(model: nn.Module, split: Split) -> Split:
    """The examples in the floating-point numbers of the weights, where these are all of one kind.

    Files hold float32, and the command line has no tensors to convert.
    """
    kinds = {p.dtype for p in model.parameters() if p.is_floating_point()}
    return replace(split, x=split.x.to(kinds.pop())) if len(kinds) == 1 else split


class Attacked(Job):
    """A job whose cells are attacked, and certified where the settings ask for it."""

    settings: EvaluateSettings

    def __init__(
        self, settings: EvaluateSettings, *, quick: bool = False, on_loaded: Callable[[], None] = lambda: None
    ) -> None:  # fmt: skip
        super().__init__(settings, quick=quick, on_loaded=on_loaded)
        unit = self.unit
        radii = unit.eps_w if isinstance(unit.eps_w, Mapping) else None
        self.method = choose(
            self.model, attack=settings.attack, scope=settings.scope, radii=radii, domain=unit.domain, moves=unit.moves,
            relative=unit.relative, batch_size=settings.batch_size, unit_x=unit.eps_x,
        )  # fmt: skip
        self.settings = self.settings.model_copy(update={"attack": self.method.name})
        self.proof = Proof(settings.certify, unit) if settings.certify else None
        if self.proof and not quick:
            rehearse_proof(self.model, self.split.x, self.split.y, self.proof)

    def surface(self, name: str, log: Path | None, pool: Executor | None, report: Report, keep: bool = True) -> Surface:
        """The surface of this job, its work spread over `pool`.  keep: also the perturbations that were found."""
        settings = self.settings.model_dump_json()

        def submit(task: str, *args: Any) -> Future[Any]:
            assert pool is not None
            return pool.submit(_task, settings, self.model_sha256, task, *args)

        return surface(
            self.model, self.split.x, self.split.y, self.method, self.columns, self.rows, certify=self.settings.certify,
            name=name, log=log, keep=keep, submit=submit if pool else None, on_cell=lambda cell: report("cells", 1),
            parts=_parts(Attacked, self, pool), on_part=lambda n: report("examples certified", n), doubts=self.doubts,
        )  # fmt: skip

    def examples(self, log: Path) -> dict[str, Any]:
        """What became of single examples, from the log of the finished surface and what lies beside it."""
        y = self.split.y.long()
        return examples(self.model, self.split.x, y, self.method, self.columns, self.rows, log)

    def plan(self, workers: int, loading: float = 0.0) -> Plan:
        """What takes time."""
        return Plan(
            self.model, self.split.x, self.split.y, self.columns, self.rows, self.unit, self.method, self.proof,
            masking=self.settings.masking, workers=workers, loading=loading,
        )  # fmt: skip

    def masking(self, found: Surface) -> dict[str, Any]:
        """Signs of masked gradients where about half of what is right undisturbed is left, both radii as large as they can be."""
        away = np.abs(found.accuracy - found.about["clean_accuracy"] / 2)
        size = np.minimum.outer(np.linspace(0, 1, len(self.rows)), np.linspace(0, 1, len(self.columns)))
        i, j = np.unravel_index(np.lexsort((-size.ravel(), np.round(away.ravel(), 1)))[0], away.shape)
        eps_x, eps_w = self.columns[j], self.rows[i]
        ball = self.unit.scaled(eps_x, eps_w)
        attack = self.method.name if self.method.name in ATTACKS else self.method.attack
        signs = masking(
            self.model, (self.split.x, self.split.y), ball, scope=self.method.scope, attack=attack,
            batch_size=self.method.batch_size,
        )  # fmt: skip
        return {"eps_x": eps_x, "eps_w": eps_w, **signs.to_dict()}


class Certified(Job):
    """A job whose cells are certified."""

    settings: CertifySettings

    def __init__(
        self, settings: CertifySettings, *, quick: bool = False, on_loaded: Callable[[], None] = lambda: None
    ) -> None:  # fmt: skip
        super().__init__(settings, quick=quick, on_loaded=on_loaded)
        self.proof = Proof(settings.method, self.unit)
        if not quick:
            rehearse_proof(self.model, self.split.x, self.split.y, self.proof)

    def plan(self, workers: int, loading: float = 0.0) -> Plan:
        """What takes time."""
        return Plan(
            self.model, self.split.x, self.split.y, self.columns, self.rows, self.unit, None, self.proof,
            fronts=bool(self.settings.accuracy), workers=workers, loading=loading,
        )  # fmt: skip

    def surface(self, name: str, log: Path | None, pool: Executor | None, report: Report) -> Surface:
        """The certified surface of this job, its work spread over `pool`."""
        return prove(
            self.model, self.split.x, self.split.y, self.proof, self.columns, self.rows, log=log,
            parts=_parts(Certified, self, pool), on_part=lambda n: report("examples certified", n),
        ).surface(name, self.doubts)  # fmt: skip

    def front(self, pool: Executor | None, report: Report) -> Front:
        """The largest certified weight radii of the examples at each input radius of the grid, up to the grid's largest."""
        n, settings = len(self.split.x), self.settings.model_dump_json()
        spans = [(i, min(i + TOGETHER, n)) for i in range(0, n, TOGETHER)]
        if pool:
            futures = [pool.submit(_front, settings, self.model_sha256, span) for span in spans]
            found = [future.result() for future in futures]
        else:
            found = [_front_of(self, span) for span in spans]
        report("radii", n)
        return Front(tuple(self.columns), torch.cat([f.eps_w for f in found], 1))


@lru_cache(maxsize=4)
def _job(kind: type[Attacked | Certified], settings: str, model_sha256: str) -> Any:
    job = kind((EvaluateSettings if kind is Attacked else CertifySettings).model_validate_json(settings))  # pyright: ignore[reportArgumentType]
    if job.model_sha256 != model_sha256:
        raise InvalidInput(f"{job.settings.model} returns other weights at each call; give --weights with a safetensors file")
    return job


def _task(settings: str, model_sha256: str, task: str, *args: Any) -> Any:
    job = _job(Attacked, settings, model_sha256)
    return TASKS[task](job.model, job.split.x, job.split.y, job.method, *args)


def _part(kind: type[Attacked | Certified], settings: str, model_sha256: str, span: Span, attacked: Any) -> Any:
    job = _job(kind, settings, model_sha256)
    return certified_part(job.model, job.split.x, job.split.y, job.proof, job.columns, job.rows, span, attacked)


def _front(settings: str, model_sha256: str, span: Span) -> Front:
    return _front_of(_job(Certified, settings, model_sha256), span)


def _front_of(job: Certified, span: Span) -> Front:
    at, ball = slice(*span), job.unit.scaled(1.0, job.rows[-1])
    return certified_front(job.model, job.split.x[at], job.split.y[at], ball, eps_x=job.columns, method=job.settings.method)


def _parts(kind: type[Attacked | Certified], job: Attacked | Certified, pool: Executor | None) -> Parts | None:
    """Pieces of a certified surface, done by `pool`."""
    if pool is None:
        return None

    def parts(spans: Sequence[Span], known: Callable[[Span], Any]) -> Iterator[Any]:
        settings = job.settings.model_dump_json()
        futures = [pool.submit(_part, kind, settings, job.model_sha256, span, known(span)) for span in spans]
        for future in as_completed(futures):
            yield future.result()

    return parts


AGAIN = "nonsingular COMMAND --config config.yaml"
"""How a run is done again from its directory, where the caller does not say it better."""


def evaluate_run(
    settings: EvaluateSettings, out: Path, workers: int, report: Report = lambda what, n: None, command: str = AGAIN,
    *, engine: str = "local", address: str | None = None, announce: Callable[[Preflight], None] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """One surface, as the results that a report is made of, also written to `out`.  Finished cells are not run again.

    workers, engine, address: where the work is done, as in runs/engine.py.  The results do not depend on them.
    announce: given what the run is going to be, before it begins.
    """
    with threads(1):  # as where the work is done
        job = _rehearsed(settings)
        return _announced(job, out, workers, engine, address, report, command, announce)


def _announced(
    job: Attacked | Certified, out: Path, workers: int, engine: str, address: str | None, report: Report, command: str,
    announce: Callable[[Preflight], None] | None,
) -> dict[str, Any]:  # fmt: skip
    """Says what the run is going to be, unless it goes on with an earlier one, and runs it."""
    new = check_free(out, job.settings)
    if new and job.proposed:
        log.info(job.proposed)
    if new and announce:
        found = preflight(job.plan(workers), job.seen, [], seconds=BRIEF)  # the run itself shows the doubts
        announce(replace(found, about=tuple(job.about())))
    return _run(job, out, start(engine, workers, address), report, command)


def preflight_run(
    settings: EvaluateSettings | CertifySettings, workers: int, on_first: Callable[[Preflight], None] = lambda found: None
) -> Preflight:
    """What `evaluate_run` or `certify_run` of these settings is going to be.  Writes nothing.

    on_first: given the first estimate of the time, seconds before the last one.
    Takes LIMIT seconds at most once model and data are loaded, whatever is asked: the clock runs in a process of its own, which
    is ended then; what it had not finished is named.  Raises what the run would raise.
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
        raise InvalidInput(
            f"the model is not through with its first examples after {LIMIT:.0f} s; give fewer of them with --limit"
        )
    return last


def _preflight(send: Callable[[Any], None], settings: str, certify: bool, workers: int) -> None:
    """Sends what is known, again and again as it gets better."""
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
        for told in preflights(plan, job.seen, job.doubts, patient=True):
            send(replace(told, proposed=job.proposed, about=tuple(job.about())))


def _rehearsed(settings: EvaluateSettings) -> Attacked:
    """The job, after one example was attacked in the largest ball."""
    job = Attacked(settings)
    rehearse(job.model, job.split.x, job.split.y, job.method, job.columns[-1], job.rows[-1])
    return job


def certify_run(
    settings: CertifySettings, out: Path, workers: int, report: Report = lambda what, n: None, command: str = AGAIN,
    *, engine: str = "local", address: str | None = None, announce: Callable[[Preflight], None] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """One certified surface, and with `accuracy` the fronts of radii, as `evaluate_run`."""
    with threads(1):
        return _announced(Certified(settings), out, workers, engine, address, report, command, announce)


def _run(
    job: Attacked | Certified, out: Path, workplace: AbstractContextManager[Executor | None], report: Report, command: str
) -> dict[str, Any]:
    check_free(out, job.settings)
    if results := finished(out, job.hashes):
        return results
    label, started, surroundings = job.settings.label, time.perf_counter(), environment()
    fronts: list[dict[str, Any]] = []
    with workplace as pool, claimed(out, job.settings):
        warn(job.doubts)
        found = job.surface(label, out / EVENTS, pool, report)
        if isinstance(job, Certified) and job.settings.accuracy:
            front = job.front(pool, report)
            fronts = [front_dict(front, share) for share in job.settings.accuracy]
        surroundings |= {"wall_seconds": round(time.perf_counter() - started, 1)}
        results = assemble({label: (label, {}, [found])}, [0], job.data, job.settings, surroundings, command)
        if job.split.columns:
            results["data"]["columns"] = list(job.split.columns)
        if job.input_radii:
            results["data"]["input_radii"] = job.input_radii
        if job.settings.indices is not None:
            results["data"]["indices"] = {"file": str(job.settings.indices), "sha256": index_file.sha256(job.settings.indices)}
        if fronts:
            results["models"][label]["fronts"] = fronts
        if isinstance(job, Attacked):
            if known := job.examples(out / EVENTS):
                results["models"][label]["examples"] = known
            if job.settings.masking:
                results["models"][label]["masking"] = job.masking(found)
        write_json(out / RESULTS, results)
    return results


def front_dict(front: Front, accuracy: float) -> dict[str, Any]:
    """The front for a required accuracy as a record; None where no weight radius is certified."""
    return {
        "accuracy": accuracy, "eps_x": list(front.eps_x),
        "eps_w": [None if math.isnan(r) else r for r in front.at(accuracy)],
    }  # fmt: skip


# --- the whole paper ------------------------------------------------------------------------------------------------------


def reproduce(
    settings: ReproduceSettings, out: Path, workers: int, report: Report = lambda what, n: None, command: str = AGAIN,
    *, engine: str = "local", address: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Trains every model with every seed, attacks each on the grid, judges the claims.  Models and cells run in parallel.

    workers, engine, address: as in `evaluate_run`.
    Returns the results that are also written to results.json.  Progress units: "models" trained, "cells" attacked.
    """
    data = dataset(settings.data, settings.data_dir)
    seeds = list(range(settings.first_seed, settings.first_seed + settings.seeds))
    _rehearse_all(settings, data)
    check_free(out, settings)
    if results := finished(out, {"data_sha256": getattr(data, settings.split).take(settings.limit).sha256()}):
        return results
    started, surroundings = time.perf_counter(), environment()
    # the costly ones first, so that no worker is left alone with one at the end
    todo = sorted(((name, seed) for name in settings.recipes for seed in seeds), key=lambda job: -_cost(settings.recipes[job[0]]))
    with ThreadPoolExecutor(len(todo)) as pipelines, start(engine, workers, address) as pool, claimed(out, settings):
        each = partial(_train_and_attack, settings, out, pool, report)
        if pool is None:
            found = {job: each(*job) for job in todo}
        else:
            futures = {pipelines.submit(each, *job): job for job in todo}
            found = {futures[done]: done.result() for done in as_completed(futures)}
        surroundings |= {"wall_seconds": round(time.perf_counter() - started, 1)}
        models = {
            name: (TITLES.get(name, name), recipe.model_dump(), [found[name, seed] for seed in seeds])
            for name, recipe in settings.recipes.items()
        }
        results = assemble(models, seeds, data, settings, surroundings, command)
        if judged(settings):
            results["claims"] = judge(results["models"])
        write_json(out / RESULTS, results)
    return results


def judged(settings: ReproduceSettings) -> bool:
    """Whether the claims of the paper are about such a run: all of its models, its attack, and a grid from 0."""
    whole = set(TITLES) <= set(settings.recipes) and (settings.scope, settings.attack) == ("dataset", "paper")
    return whole and settings.eps_x[0] == settings.eps_w[0] == 0


def _train_and_attack(
    settings: ReproduceSettings, out: Path, pool: Executor | None, report: Report, name: str, seed: int
) -> Surface:  # fmt: skip
    run = out / "models" / f"{name}-seed{seed}"
    training = TrainSettings(
        data=settings.data, data_dir=settings.data_dir, network=settings.network, recipe=settings.recipes[name], seed=seed
    )
    if pool:
        pool.submit(train_run, training, run).result()
    else:
        train_run(training, run)
    report("models", 1)
    evaluation = EvaluateSettings(
        model=str(run), split=settings.split, limit=settings.limit, eps_x=settings.eps_x, eps_w=settings.eps_w,
        scope=settings.scope, attack=settings.attack,
    )  # fmt: skip
    return Attacked(evaluation).surface(name, run / EVENTS, pool, report, keep=False)


def _rehearse_all(settings: ReproduceSettings, data: Dataset) -> None:
    """Binds every objective and attacks one example of an untrained network: what does not fit says so before work is done."""
    network = TrainSettings(data=settings.data, network=settings.network)
    model = build(network, tuple(data.train.x.shape[1:]), len(data.classes)).eval()
    for recipe in settings.recipes.values():
        objective_of(recipe, data)(model)
    method = choose(model, attack=settings.attack, scope=settings.scope, domain=data.domain)
    rehearse(model, data.test.x, data.test.y, method, settings.eps_x[-1], settings.eps_w[-1])


def _cost(recipe: Recipe) -> int:
    return recipe.epochs * {"standard": 1, "weight-perturb": 2, "jiwp": 2}.get(recipe.method, 10)


def assemble(
    models: Mapping[str, tuple[str, dict[str, Any], list[Surface]]],
    seeds: list[int],
    data: Dataset,
    settings: Settings,
    surroundings: dict[str, Any],
    command: str,
) -> dict[str, Any]:
    """The results of a run: name -> (title, settings, one surface a seed), with everything that names the numbers."""
    a_surface = next(iter(models.values()))[2][0]
    return {
        "format": FORMAT,
        "command": command,
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
        "environment": surroundings,
    }  # fmt: skip
