"""experiment.py - settings -> run directory.

A run directory holds config.yaml (the effective settings), model.safetensors, events.jsonl (one line per finished cell) and
results.json.  Whoever runs the same settings into the same directory again goes on where the last run ended.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save
from torch import nn

from nonsingular.catalog import ATTACKS, MODELS, OBJECTIVES, lookup
from nonsingular.certification import Front, certified_front
from nonsingular.checks import check_inputs
from nonsingular.claims import judge
from nonsingular.config import (
    CertifySettings,
    EvaluateSettings,
    Recipe,
    ReproduceSettings,
    Settings,
    TrainSettings,
    checked,
    read_config,
    to_yaml,
)  # fmt: skip
from nonsingular.data import Dataset, Split, hash_tensors, load
from nonsingular.engine import engine as start
from nonsingular.errors import InvalidInput
from nonsingular.evaluation import choose, rehearse, surface
from nonsingular.examples import examples
from nonsingular.masks import masking
from nonsingular.objectives import Objective
from nonsingular.presets import GRIDS, TITLES
from nonsingular.records import FORMAT, Surface, axis, write_atomic, write_json
from nonsingular.replay import Replayed, replay
from nonsingular.sandwich import TOGETHER, Parts, Proof, Span, certified_part, prove, rehearse_proof
from nonsingular.threat import JointBall
from nonsingular.train import CHECKPOINT, Epoch, accuracy, fit_weights, read_tensors, train
from nonsingular.work import TASKS

CONFIG, WEIGHTS, SUMMARY, EVENTS, RESULTS = "config.yaml", "model.safetensors", "train.json", "events.jsonl", "results.json"

Report = Callable[[str, int], None]
"""Progress: (what was done, how many units)."""


# --- training -------------------------------------------------------------------------------------------------------------


def train_run(settings: TrainSettings, out: Path, on_epoch: Callable[[Epoch], None] = lambda epoch: None) -> dict[str, Any]:
    """Trains one model into `out`; a finished run is left as it is, an interrupted one goes on from its last epoch.

    Returns the summary that is also written to train.json.
    """
    data = dataset(settings.data, settings.data_dir)
    shape, recipe = tuple(data.train.x.shape[1:]), settings.recipe
    model = build(settings, shape, len(data.classes))
    objective = objective_of(recipe, data)
    objective(model)  # a network that the method has no rule for is an error before anything is written
    claim(out, settings)
    train_sha256 = data.train.sha256()
    if (out / SUMMARY).exists() and (out / WEIGHTS).exists():
        summary = json.loads((out / SUMMARY).read_text())
        if summary["train_sha256"] != train_sha256:
            raise InvalidInput(f"{out} holds a model that was trained on other data; choose another folder with --out")
        return summary
    started = time.time()
    train(
        model, data.train, data.val, objective, epochs=recipe.epochs, seed=settings.seed, lr=recipe.lr,
        batch_size=recipe.batch_size, directory=out, on_epoch=on_epoch,
        tag=train_sha256[:16] + settings.model_dump_json(exclude={"data_dir"}),
    )  # fmt: skip
    about = {"built_for": json.dumps({"input_shape": shape, "classes": len(data.classes)})}  # one key: the same bytes every time
    write_atomic(out / WEIGHTS, save({k: v.clone() for k, v in model.state_dict().items()}, about))
    summary = {
        "format": FORMAT, "model_sha256": hash_tensors(model.state_dict()), "train_sha256": train_sha256,
        "val_accuracy": accuracy(model, data.val), "seconds": time.time() - started, "environment": environment(),
    }  # fmt: skip
    write_json(out / SUMMARY, summary)
    (out / CHECKPOINT).unlink(missing_ok=True)
    return summary


def objective_of(recipe: Recipe, data: Dataset) -> Objective:
    """What a recipe minimises, in the domain of the data."""
    ball = JointBall(recipe.eps_x, recipe.eps_w, data.domain)
    return lookup(OBJECTIVES, recipe.method, "method")(ball, recipe.alpha, recipe.beta)


def build(settings: TrainSettings, input_shape: Sequence[int], classes: int) -> nn.Module:
    """The untrained network, initialised from the seed; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        make = lookup(MODELS, settings.network.name, "model")
        return make(input_shape, classes, hidden=settings.network.hidden, bias=settings.network.bias)


def load_run(run: Path) -> tuple[nn.Module, TrainSettings]:
    """The trained model of a run directory, in eval mode, and the settings that made it.  Needs no data."""
    settings = checked(TrainSettings, read_config(run / CONFIG))
    tensors, about = read_tensors(run / WEIGHTS)
    try:
        built_for = json.loads(about["built_for"])
        model = build(settings, built_for["input_shape"], built_for["classes"])
    except (KeyError, TypeError, ValueError) as e:
        raise InvalidInput(f"{run / WEIGHTS} was not written by 'nonsingular train'; train again") from e
    fit_weights(model, tensors, run / WEIGHTS)
    return model.eval(), settings


def load_model(spec: str, weights: Path | None) -> tuple[nn.Module, TrainSettings | None]:
    """A run directory of `train`, or FILE.py:FUNCTION that returns an nn.Module, with `weights` for it."""
    if (Path(spec) / CONFIG).exists():
        if weights:
            raise InvalidInput(f"{spec} has its own weights; give either it or file.py:function with --weights {weights}")
        return load_run(Path(spec))
    path, _, function = spec.rpartition(":")
    if not path.endswith(".py"):
        raise InvalidInput(
            f"'{spec}' is no model; give the output folder of 'nonsingular train', or file.py:function that returns an nn.Module"
        )
    if not Path(path).is_file():
        raise InvalidInput(f"there is no file {path}")
    found = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.path.insert(0, str(Path(path).parent.resolve()))
    try:
        found.loader.exec_module(module)
        model = getattr(module, function)()
    except (Exception, SystemExit) as e:
        raise InvalidInput(f"{spec} failed: {type(e).__name__}: {e}") from e
    if not isinstance(model, nn.Module):
        raise InvalidInput(f"{spec} returns {type(model).__name__}; it must return an nn.Module")
    if weights:
        fit_weights(model, read_tensors(weights)[0], weights)
    return model.eval(), None


# --- evaluation -----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=2)
def dataset(name: str, data_dir: Path | None) -> Dataset:
    """Each process reads a data set once."""
    return load(name, data_dir)


class Job:
    """One model, the examples and the grid that settings name: what a worker needs to do a piece of the work."""

    def __init__(self, settings: EvaluateSettings | CertifySettings) -> None:
        self.model, trained = load_model(settings.model, settings.weights)
        name = settings.data or (trained.data if trained else None)
        if name is None:
            raise InvalidInput("which data? give --data a name or a file")
        self.data = dataset(name, settings.data_dir or (trained.data_dir if trained else None))
        split: Split = getattr(self.data, settings.split)
        self.split = split.take(settings.limit)
        default_x, default_w = GRIDS.get(name, (None, None))
        columns, rows = settings.eps_x or default_x, settings.eps_w or default_w
        if columns is None or rows is None:
            raise InvalidInput(f"there is no default grid for '{name}'; give eps_x and eps_w, e.g. 0:0.1:11")
        radii = rows if isinstance(rows, dict) else None
        self.columns, self.rows = columns, axis(1.0, "eps_w") if isinstance(rows, dict) else rows
        domain = None if settings.domain == "none" else settings.domain
        self.unit = JointBall(1.0, 1.0 if radii is None else radii, domain, settings.moves, settings.relative)
        check_inputs(self.model, self.split.x, self.split.y, self.unit)
        self.model_sha256 = hash_tensors(self.model.state_dict())
        self.settings = settings.model_copy(update={"data": name, "eps_x": columns, "eps_w": rows})
        """The settings with every default filled in."""


class Attacked(Job):
    """A job whose cells are attacked, and certified where the settings ask for it."""

    settings: EvaluateSettings

    def __init__(self, settings: EvaluateSettings) -> None:
        super().__init__(settings)
        unit = self.unit
        radii = unit.eps_w if isinstance(unit.eps_w, Mapping) else None
        self.method = choose(
            self.model, attack=settings.attack, scope=settings.scope, radii=radii, domain=unit.domain, moves=unit.moves,
            relative=unit.relative, batch_size=settings.batch_size,
        )  # fmt: skip
        self.settings = self.settings.model_copy(update={"attack": self.method.name})
        if settings.certify:
            self.proof = Proof(settings.certify, unit)
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
            parts=_parts(Attacked, self, pool), on_part=lambda n: report("examples certified", n),
        )  # fmt: skip

    def examples(self, log: Path) -> dict[str, Any]:
        """What became of single examples, from the log of the finished surface and what lies beside it."""
        y = self.split.y.long()
        return examples(self.model, self.split.x, y, self.method, self.columns, self.rows, log)

    def masking(self) -> dict[str, Any]:
        """Signs of masked gradients at half the largest radii."""
        ball = self.unit.scaled(self.columns[-1] / 2, self.rows[-1] / 2)
        attack = self.method.name if self.method.name in ATTACKS else self.method.attack
        return masking(self.model, (self.split.x, self.split.y), ball, scope=self.method.scope, attack=attack).to_dict()


class Certified(Job):
    """A job whose cells are certified."""

    settings: CertifySettings

    def __init__(self, settings: CertifySettings) -> None:
        super().__init__(settings)
        self.proof = Proof(settings.method, self.unit)
        rehearse_proof(self.model, self.split.x, self.split.y, self.proof)

    def surface(self, name: str, log: Path | None, pool: Executor | None, report: Report) -> Surface:
        """The certified surface of this job, its work spread over `pool`."""
        return prove(
            self.model, self.split.x, self.split.y, self.proof, self.columns, self.rows, log=log,
            parts=_parts(Certified, self, pool), on_part=lambda n: report("examples certified", n),
        ).surface(name)  # fmt: skip

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
    at, ball = slice(*span), job.unit.scaled(job.columns[-1], job.rows[-1])
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
    *, engine: str = "local", address: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """One surface, as the results that a report is made of, also written to `out`.  Finished cells are not run again.

    workers, engine, address: where the work is done, as in engine.py.  The results do not depend on them.
    """
    job = Attacked(settings)
    rehearse(job.model, job.split.x, job.split.y, job.method, job.columns[-1], job.rows[-1])
    return _run(job, out, start(engine, workers, address), report, command)


def replay_run(run: Path) -> Replayed:
    """What the stored perturbations of a run of `evaluate` do to its model and data, beside what the run says.

    Raises InvalidInput if the run is not finished, or if its model or its data have changed.
    """
    settings = checked(EvaluateSettings, read_config(run / CONFIG))
    if not (run / RESULTS).exists():
        raise InvalidInput(f"{run} has no {RESULTS}; finish the run first, or give another folder")
    job = Attacked(settings)
    (found,) = json.loads((run / RESULTS).read_text())["models"].values()
    surface = Surface.from_dict(found["surfaces"][0])
    held = {"model": surface.about["model_sha256"], "data": surface.about["data_sha256"]}
    here = {"model": job.model_sha256, "data": hash_tensors({"x": job.split.x, "y": job.split.y})}
    if changed := [name for name in held if held[name] != here[name]]:
        raise InvalidInput(f"the {' and the '.join(changed)} of {run} have changed since it was run; evaluate again")
    x, y = job.split.x, job.split.y.long()
    return replay(job.model, x, y, job.method, surface.accuracy, surface.eps_x, surface.eps_w, run)


def certify_run(
    settings: CertifySettings, out: Path, workers: int, report: Report = lambda what, n: None, command: str = AGAIN,
    *, engine: str = "local", address: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """One certified surface, and with `accuracy` the fronts of radii, as `evaluate_run`."""
    return _run(Certified(settings), out, start(engine, workers, address), report, command)


def _run(
    job: Attacked | Certified, out: Path, workplace: AbstractContextManager[Executor | None], report: Report, command: str
) -> dict[str, Any]:
    label, started, surroundings = job.settings.label, time.time(), environment()
    fronts: list[dict[str, Any]] = []
    with workplace as pool:
        claim(out, job.settings)
        found = job.surface(label, out / EVENTS, pool, report)
        if isinstance(job, Certified) and job.settings.accuracy:
            front = job.front(pool, report)
            fronts = [front_dict(front, share) for share in job.settings.accuracy]
    surroundings |= {"wall_seconds": round(time.time() - started, 1)}
    results = assemble({label: (label, {}, [found])}, [0], job.data, job.settings, surroundings, command)
    if fronts:
        results["models"][label]["fronts"] = fronts
    if isinstance(job, Attacked):
        if known := job.examples(out / EVENTS):
            results["models"][label]["examples"] = known
        if job.settings.masking:
            results["models"][label]["masking"] = job.masking()
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
    started, surroundings = time.time(), environment()
    surfaces: dict[tuple[str, int], Surface] = {}
    pipelines = ThreadPoolExecutor(len(settings.recipes) * len(seeds))
    with pipelines, start(engine, workers, address) as pool:
        claim(out, settings)

        def pipeline(name: str, seed: int) -> None:
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
            surfaces[name, seed] = Attacked(evaluation).surface(name, run / EVENTS, pool, report, keep=False)

        # the costly ones first, so that no worker is left alone with one at the end
        todo = sorted(
            ((name, seed) for name in settings.recipes for seed in seeds), key=lambda job: -_cost(settings.recipes[job[0]])
        )
        if pool is None:
            for name, seed in todo:
                pipeline(name, seed)
        else:
            for future in as_completed([pipelines.submit(pipeline, *job) for job in todo]):
                future.result()
    models = {
        name: (TITLES.get(name, name), recipe.model_dump(), [surfaces[name, seed] for seed in seeds])
        for name, recipe in settings.recipes.items()
    }
    results = assemble(models, seeds, data, settings, surroundings | {"wall_seconds": round(time.time() - started, 1)}, command)
    whole = set(TITLES) <= set(models) and (settings.scope, settings.attack) == ("dataset", "paper")
    if whole and settings.eps_x[0] == settings.eps_w[0] == 0:
        results["claims"] = judge(results["models"])
    write_json(out / RESULTS, results)
    return results


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


# --- threads, directories, surroundings -----------------------------------------------------------------------------------


def set_threads(n: int) -> None:
    """Threads of torch in this process.  Raises InvalidInput below 1."""
    if n < 1:
        raise InvalidInput(f"threads is {n}; give 1 or more")
    torch.set_num_threads(n)


def claim(out: Path, settings: Settings) -> None:
    """Makes `out` the run directory of these settings, or finds that it already is.

    Raises InvalidInput, leaving everything as it was, if it holds something else.
    """
    text = to_yaml(settings)
    if (out / CONFIG).exists():
        held = read_config(out / CONFIG)
        if held != yaml.safe_load(text):
            wanted = yaml.safe_load(text)
            differ = sorted(k for k in {*held, *wanted} if held.get(k) != wanted.get(k))
            raise InvalidInput(f"{out} holds a run with other settings ({', '.join(differ)}); choose another folder with --out")
        return
    if out.exists() and (not out.is_dir() or any(p.name != "models" and p.suffix != ".part" for p in out.iterdir())):
        raise InvalidInput(f"{out} exists and is no run directory; choose another folder with --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_atomic(out / CONFIG, text)
    except OSError as e:
        raise InvalidInput(f"cannot write to {out}: {e.strerror}; choose another folder with --out") from e


def environment() -> dict[str, Any]:
    """Versions, platform and, in a checkout, the state of git."""
    names = ("nonsingular", "torch", "numpy", "safetensors")
    return {
        "versions": {"python": platform.python_version()} | {n: version(n) for n in names},
        "platform": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "git": _git(),
    }


def _git() -> str | None:
    here = ["git", "-C", str(Path(__file__).parent)]
    try:
        root = subprocess.run([*here, "rev-parse", "--show-toplevel"], capture_output=True, text=True, check=True).stdout.strip()
        if Path(root).resolve() / "src" / "nonsingular" != Path(__file__).resolve().parent:
            return None  # installed inside somebody else's repository
        commit = subprocess.run([*here, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run(
            [*here, "status", "--porcelain", "--", "."], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + (" with uncommitted changes" if changed else "")
