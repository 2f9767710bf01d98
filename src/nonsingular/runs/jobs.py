"""jobs.py - the model, the examples and the grid that settings name, and pieces of the work for workers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, as_completed
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nonsingular.catalog import sound
from nonsingular.certificates.radii import Front, certified_front
from nonsingular.data.datasets import Dataset, Domain, Split, first_radii, load
from nonsingular.errors import InvalidInput
from nonsingular.evaluation.attacked import fill, surface
from nonsingular.evaluation.breakdown import examples
from nonsingular.evaluation.certified import certified_part, pieces_of, prove, rehearse_proof
from nonsingular.evaluation.estimate import Plan
from nonsingular.evaluation.execution import Execution, Parts, Shard, Span
from nonsingular.evaluation.masking import masking
from nonsingular.evaluation.preflight import looked_at
from nonsingular.evaluation.problem import Case, Method, left_key, proof_key
from nonsingular.evaluation.schedule import TASKS, check_parts
from nonsingular.models import loading
from nonsingular.models.architectures import Averaged
from nonsingular.network.devices import device_of, placed
from nonsingular.network.heads import told_of_weights
from nonsingular.network.one_logit import flat_of
from nonsingular.network.preconditions import check_inputs
from nonsingular.results.files import Log
from nonsingular.results.surface import Cell, Surface
from nonsingular.runs.engine import Processes
from nonsingular.runs.presets import GRIDS
from nonsingular.settings import (
    CertifySettings,
    EvaluateSettings,
    TrainSettings,
)  # fmt: skip
from nonsingular.threat.columns import moving
from nonsingular.threat.grid import Grid

Report = Callable[[str, int], None]
"""Progress: (what was done, how many units)."""


def load_model(spec: str, weights: Path | None) -> tuple[nn.Module, TrainSettings | None]:
    """The model that `spec` names, as in models/loading.py; and of a run directory of `train` the settings that made it."""
    if run := loading.run_of(spec, weights):
        return loading.load_run(run)
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
        model, trained = load_model(settings.model, settings.weights)
        name = settings.data or (trained.data if trained else None)
        if name is None:
            raise InvalidInput("which data? give --data a name or a file")
        own: Domain = "own" if settings.domain is None else None if settings.domain == "none" else settings.domain
        classes = settings.classes or (trained.classes if trained else None)
        self.data = dataset(name, settings.data_dir or (trained.data_dir if trained else None), own, classes)
        chosen = _as_floats_of(model, _chosen(self.data, settings), settings.dtype)
        model, x, y = placed(model, chosen.x, chosen.y, settings.device, settings.dtype)
        self.split = replace(chosen, x=x, y=y)
        columns, rows, relative, self.proposed = _radii(settings, name, self.split)
        domain, moves = self.data.domain, settings.moves
        self.grid = Grid.of(
            columns, rows, input_shape=self.split.x.shape[1:], columns=self.split.columns, domain=domain, moves=moves,
            relative=relative,
        )  # fmt: skip
        unit = self.grid.unit
        self.input_radii = moving(unit.eps_x, self.split.columns)
        """Column -> radius of those that move, where the settings name columns."""
        on_loaded()
        told = told_of_weights(model, unit)
        if (passes := getattr(settings, "expectation", None)) is not None:
            model = Averaged(model, passes)
            told.append(f"the logits are means over {passes} forward passes, whose random numbers are the same for all inputs")
        case = Case.of(model, self.split.x, self.split.y, unit)
        if quick:
            unit.check_domain(case.x)
        self.seen = looked_at(case, unit) if quick else torch.arange(len(case), device=case.x.device)
        some = case.part(self.seen)
        doubts = (*told, *check_inputs(some.network, some.x, some.y, unit, classes=len(self.data.classes)))
        self.case = replace(case, name=settings.label, doubts=doubts, deployed=settings.deployed)
        domain = "none" if domain is None else domain
        self.settings = settings.model_copy(
            update={
                "data": name,
                "classes": classes,
                "eps_x": columns,
                "eps_w": rows,
                "domain": domain,
                "relative": relative,
                "device": str(device_of(settings.device)),
            }
        )
        """The settings with every default filled in."""

    def about(self) -> list[str]:
        """What to check before the run: the order of the classes, one logit, the columns that move."""
        told = [self.data.order]
        if (kind := self.case.deployed) is not None:
            told.append(f"certificates are of the network as computed in {kind}, in any order of summation")
        if self.shard is not None:
            told.append(f"the estimate is of the whole run; shard {self.settings.shard} does about 1/{self.shard.of} of it")
        if flat_of(self.case.network) is not None:
            told.append("the model returns one logit: above 0 is class 1")
        if self.input_radii:
            fixed = self.split.x.shape[1] - len(self.input_radii)
            told.append(f"columns that move, at the largest eps_x: {_radii_of(self.input_radii)}; fixed: {fixed}")
        return told

    def execution(self, log: Path | None, pool: Executor | None, report: Report, keep: bool = True) -> Execution:
        """The work spread over `pool`, and kept in `log`.  keep: also the perturbations that were found."""
        submit, parts = (None, None) if pool is None else (self._submit(pool, _task), _parts(self._submit(pool, _part)))
        workers = pool.workers if isinstance(pool, Processes) else 1

        def on_cell(cell: Cell) -> None:
            report("cells", 1)

        def on_swept(cell: Cell) -> None:
            report("cells in a first sweep", 1)

        return Execution(log, keep, submit, parts, on_cell, partial(report, "examples certified"), on_swept, self.shard, workers)

    @property
    def shard(self) -> Shard | None:
        """The part of the work that is to be done; None for all of it."""
        return None if self.settings.shard is None else Shard.of_text(self.settings.shard)

    def _submit(self, pool: Executor, task: Callable[..., Any]) -> Callable[..., Future[Any]]:
        """Runs tasks of this job in `pool`, where the job is built again from its settings."""
        return partial(pool.submit, task, type(self), self.settings.model_dump_json(), self.case.hashes["model_sha256"])


def _radii_of(radii: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} by {'{:g} down, {:g} up'.format(*r) if isinstance(r, list) else f'{r:g}'}" for name, r in radii.items()
    )


def _radii(settings: EvaluateSettings | CertifySettings, name: str, split: Split) -> tuple[Any, Any, bool, str | None]:
    """(eps_x, eps_w, relative, what was proposed and why) of these settings: given, from the data set, or from the inputs.

    The weight radii of a data set fit its own networks: in multiples of the weights, other ones are proposed.
    """
    default_x, default_w = GRIDS.get(name, (None, None))
    columns, rows, relative = settings.eps_x or default_x, settings.eps_w, settings.relative
    if rows is None and not relative:
        rows = default_w
    if columns is not None and rows is not None:
        return columns, rows, relative, None
    first = first_radii(split.x)
    told: list[str] = []
    if columns is None:
        columns = first.eps_x
        told.append(f"--eps-x {_written(columns)} ({first.why_x})")
    if rows is None:
        rows, relative = first.eps_w, True
        told.append(f"--relative --eps-w {_written(rows)} ({first.why_w})")
    return columns, rows, relative, f"not given, so chosen here: {'; '.join(told)}"


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


def _as_floats_of(model: nn.Module, split: Split, dtype: str | None) -> Split:
    """The examples in the floating-point numbers of the weights, where these are all of one kind and no dtype is asked for.

    Files hold float32, and the command line has no tensors to convert.
    """
    if dtype is not None:
        return split
    kinds = {p.dtype for p in model.parameters() if p.is_floating_point()}
    return replace(split, x=split.x.to(kinds.pop())) if len(kinds) == 1 else split


class Attacked(Job):
    """A job whose cells are attacked, and certified where the settings ask for it."""

    settings: EvaluateSettings

    def __init__(
        self, settings: EvaluateSettings, *, quick: bool = False, on_loaded: Callable[[], None] = lambda: None
    ) -> None:  # fmt: skip
        if settings.deployed is not None and settings.certify is None:
            raise InvalidInput(f"deployed is '{settings.deployed}', which only certificates know; give certify, too")
        super().__init__(settings, quick=quick, on_loaded=on_loaded)
        self.method = Method.of(settings.attack, settings.scope, settings.batch_size, settings.seed, settings.effort)
        check_parts(self.method, self.shard)
        self.settings = self.settings.model_copy(update={"attack": self.method.attack.name})
        self.bound = sound(settings.certify) if settings.certify else None
        self.shared = self.bound is not None and settings.scope != "sample"
        """Whether there are shared certificates."""
        if self.bound and not quick:
            rehearse_proof(self.case, self.grid, self.bound)

    def do(self, task: str, *args: Any) -> Any:
        """A task of schedule.TASKS with these arguments."""
        return TASKS[task](self.case, self.grid, self.method, *args)

    @property
    def keys(self) -> tuple[str, ...]:
        """Under which keys the log of the run holds its pieces, in the order in which one worker comes to them."""
        cells = self.method.key(self.case, self.grid.unit)
        attacked = (*self.method.keys(cells), left_key(cells)) if self.method.scope == "dataset" else (cells,)
        if self.bound is None:
            return attacked
        proofs = proof_key(self.case, self.grid, self.bound)
        return (proofs, cells) if self.method.alone else (*attacked, proofs, f"{proofs}-{cells}")

    def fill(self, execution: Execution) -> None:
        """Does the pieces of the shard, into the log."""
        fill(self.case, self.grid, self.method, self.bound, execution)

    def surface(self, execution: Execution) -> Surface:
        """The attacked surface, and where it is asked for the certified one and that of shared certificates."""
        return surface(self.case, self.grid, self.method, self.bound, execution, shared=self.shared)

    def examples(self, log: Path) -> dict[str, Any]:
        """What became of single examples, from the log of the finished surface and the perturbations beside it."""
        return examples(self.case, self.grid, self.method, log)

    def plan(self, workers: int, loading: float = 0.0) -> Plan:
        """The work of the run that takes time."""
        masks = self.settings.masking
        return Plan(self.case, self.grid, self.method, self.bound, masking=masks, workers=workers, loading=loading)

    def masking(self, found: Surface) -> dict[str, Any]:
        """Signs of masked gradients where about half of what is right undisturbed remains, both radii as large as they can be."""
        away = np.abs(found.accuracy - found.about["clean_accuracy"] / 2)
        size = np.minimum.outer(*(np.linspace(0, 1, points) for points in self.grid.shape))
        i, j = (int(k) for k in np.unravel_index(np.lexsort((-size.ravel(), np.round(away.ravel(), 1)))[0], away.shape))
        case, method, (eps_x, eps_w) = self.case, self.method, self.grid.radii(i, j)
        signs = masking(
            case.network, (case.x, case.y), self.grid.ball(i, j), scope=method.scope, attack=method.attack,
            batch_size=method.batch_size,
        )  # fmt: skip
        return {"eps_x": eps_x, "eps_w": eps_w, **signs.to_dict()}


class Certified(Job):
    """A job whose cells are certified."""

    settings: CertifySettings

    def __init__(
        self, settings: CertifySettings, *, quick: bool = False, on_loaded: Callable[[], None] = lambda: None
    ) -> None:  # fmt: skip
        super().__init__(settings, quick=quick, on_loaded=on_loaded)
        self.bound = sound(settings.bound)
        if not quick:
            rehearse_proof(self.case, self.grid, self.bound)

    def plan(self, workers: int, loading: float = 0.0) -> Plan:
        """The work of the run that takes time."""
        fronts = bool(self.settings.accuracy)
        return Plan(self.case, self.grid, bound=self.bound, fronts=fronts, workers=workers, loading=loading)

    def surface(self, execution: Execution) -> Surface:
        """The certified surface."""
        return prove(self.case, self.grid, self.bound, execution).surface(self.case.doubts)

    def do(self, task: str, *args: Any) -> Any:
        """The radii of a span of examples, as a piece of a front; there is no other task."""
        assert task == "front", task
        some, ball = self.case.part(slice(*args[0])), self.grid.at((1.0, self.grid.eps_w[-1]))
        return certified_front(
            some.network, some.x, some.y, ball, eps_x=self.grid.eps_x, bound=self.bound.name, deployed=self.case.deployed
        )

    @property
    def keys(self) -> tuple[str, ...]:
        """As those of `Attacked`."""
        proofs = proof_key(self.case, self.grid, self.bound)
        return proofs, f"{proofs}-front"

    def fill(self, execution: Execution) -> None:
        """Does the pieces of the shard, into the log."""
        spans = execution.mine(pieces_of(len(self.case)))
        prove(self.case, self.grid, self.bound, execution, spans=spans)
        if self.settings.accuracy:
            self._radii(execution, spans)

    def front(self, execution: Execution) -> Front:
        """The largest certified weight radii of the examples at each input radius of the grid, up to the grid's largest."""
        spans = pieces_of(len(self.case))
        found = self._radii(execution, spans)
        return Front(self.grid.eps_x, torch.cat([found[span] for span in spans], 1))

    def _radii(self, execution: Execution, spans: Sequence[Span]) -> dict[Span, Tensor]:
        """(columns, n) of each span: from the log or done now, here or elsewhere."""
        key, found = self.keys[1], dict[Span, Tensor]()
        log = Log(execution.log) if execution.log else None
        for entry in log or ():
            if entry.get("key") == key and (span := tuple(entry["span"])) in spans:
                found[span] = torch.from_numpy(np.array(entry["front"], dtype=np.float64))  # None is NaN
        todo = [span for span in spans if span not in found]
        if execution.submit is None:
            pieces = (self.do("front", span) for span in todo)
        else:
            submit = execution.submit
            pieces = (future.result() for future in [submit("front", span) for span in todo])
        for span, piece in zip(todo, pieces, strict=True):
            found[span] = piece.eps_w
            if log:
                rows = [[None if math.isnan(r) else r for r in row] for row in piece.eps_w.tolist()]
                log.append({"key": key, "span": list(span), "front": rows})
        return found


@lru_cache(maxsize=4)
def _job(kind: type[Attacked | Certified], settings: str, model_sha256: str) -> Any:
    job = kind((EvaluateSettings if kind is Attacked else CertifySettings).model_validate_json(settings))  # pyright: ignore[reportArgumentType]
    if job.case.hashes["model_sha256"] != model_sha256:
        raise InvalidInput(f"{job.settings.model} returns other weights at each call; give --weights with a safetensors file")
    return job


def _task(kind: type[Attacked | Certified], settings: str, model_sha256: str, task: str, *args: Any) -> Any:
    return _job(kind, settings, model_sha256).do(task, *args)


def _part(kind: type[Attacked | Certified], settings: str, model_sha256: str, span: Span, attacked: Any) -> Any:
    job = _job(kind, settings, model_sha256)
    return certified_part(job.case, job.grid, job.bound, span, attacked)


def _parts(submit: Callable[..., Future[Any]]) -> Parts:
    """Pieces of a certified surface, done elsewhere."""

    def parts(spans: Sequence[Span], known: Callable[[Span], Any]) -> Iterator[Any]:
        for future in as_completed([submit(span, known(span)) for span in spans]):
            yield future.result()

    return parts
