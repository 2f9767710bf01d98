"""jobs.py - the model, the examples and the grid that settings name, and pieces of the work for workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, as_completed
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from nonsingular.certificates.radii import Front, certified_front
from nonsingular.data.columns import input_axis, moving
from nonsingular.data.datasets import Dataset, Domain, Split, first_radii, hash_tensors, load
from nonsingular.errors import InvalidInput
from nonsingular.evaluation.attacked import choose, surface
from nonsingular.evaluation.breakdown import examples
from nonsingular.evaluation.certified import TOGETHER, Parts, Span, certified_part, prove, rehearse_proof
from nonsingular.evaluation.estimate import Plan
from nonsingular.evaluation.masking import masking
from nonsingular.evaluation.preflight import looked_at
from nonsingular.evaluation.problem import Proof
from nonsingular.evaluation.schedule import TASKS
from nonsingular.models import loading
from nonsingular.models.architectures import Averaged
from nonsingular.models.loading import load_run
from nonsingular.network.heads import classifier, told_of_weights
from nonsingular.network.one_logit import flat_of
from nonsingular.network.preconditions import check_inputs
from nonsingular.results.surface import CONFIG, Surface
from nonsingular.runs.presets import GRIDS
from nonsingular.settings import (
    CertifySettings,
    EvaluateSettings,
    TrainSettings,
)  # fmt: skip
from nonsingular.threat.ball import JointBall
from nonsingular.threat.grid import axis

Report = Callable[[str, int], None]
"""Progress: (what was done, how many units)."""


def load_model(spec: str, weights: Path | None) -> tuple[nn.Module, TrainSettings | None]:
    """The model that `spec` names, as in models/loading.py; and of a run directory of `train` the settings that made it."""
    if (Path(spec) / CONFIG).exists() and weights is None:
        return load_run(Path(spec))
    return loading.load_model(spec, weights), None


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
        if flat_of(self.model) is not None:
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
            attack=settings.attack, scope=settings.scope, radii=radii, domain=unit.domain, moves=unit.moves,
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
        signs = masking(
            self.model, (self.split.x, self.split.y), ball, scope=self.method.scope, attack=self.method.attack,
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
