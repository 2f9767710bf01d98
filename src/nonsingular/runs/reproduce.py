"""reproduce.py - the whole of the paper: every model with every seed, attacked on the grid, its claims judged."""

from __future__ import annotations

import time
from concurrent.futures import Executor, ThreadPoolExecutor, as_completed
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from nonsingular.data.datasets import Dataset
from nonsingular.evaluation.attacked import rehearse
from nonsingular.evaluation.problem import Case, Method, attack_of
from nonsingular.models.loading import build
from nonsingular.network.devices import device_of
from nonsingular.results.claims import judge
from nonsingular.results.files import write_json
from nonsingular.results.surface import EVENTS, RESULTS, Surface
from nonsingular.runs.directory import check_free, claimed, environment, finished
from nonsingular.runs.engine import Workplace
from nonsingular.runs.evaluate import AGAIN, Circumstances, assemble
from nonsingular.runs.jobs import Attacked, Report, dataset
from nonsingular.runs.presets import NAMES, TITLES
from nonsingular.runs.train import objective_in, train_run
from nonsingular.settings import (
    EvaluateSettings,
    Recipe,
    ReproduceSettings,
    TrainSettings,
)  # fmt: skip
from nonsingular.threat.ball import JointBall


def reproduce(
    settings: ReproduceSettings, out: Path, workplace: Workplace, report: Report = lambda what, n: None, command: str = AGAIN
) -> dict[str, Any]:  # fmt: skip
    """Trains every model with every seed, attacks each on the grid, judges the claims.  Models and cells run in parallel.

    workplace: as in `evaluate_run`.
    Returns the results that are also written to results.json.  Progress units: "models" trained, "cells" attacked.
    """
    device_of(settings.device, doubles=settings.dtype == "float64")  # before anything is written
    data = dataset(settings.data, settings.data_dir)
    seeds = list(range(settings.first_seed, settings.first_seed + settings.seeds))
    _rehearse_all(settings, data)
    check_free(out, settings)
    if results := finished(out, {"data_sha256": getattr(data, settings.split).take(settings.limit).sha256()}):
        return results
    started, surroundings = time.perf_counter(), environment()
    # the costly ones first, so that no worker is left alone with one at the end
    todo = sorted(((name, seed) for name in settings.recipes for seed in seeds), key=lambda job: -_cost(settings.recipes[job[0]]))
    with ThreadPoolExecutor(len(todo)) as pipelines, workplace.open() as pool, claimed(out, settings):
        each = partial(_train_and_attack, settings, out, pool, report)
        if pool is None:
            found = {job: each(*job) for job in todo}
        else:
            futures = {pipelines.submit(each, *job): job for job in todo}
            found = {futures[done]: done.result() for done in as_completed(futures)}
        surroundings |= {"wall_seconds": round(time.perf_counter() - started, 1)}
        models = {
            name: (NAMES.get(name, name), recipe.model_dump(), [found[name, seed] for seed in seeds])
            for name, recipe in settings.recipes.items()
        }
        results = assemble(models, seeds, data, settings, Circumstances(surroundings, command))
        if judged(settings):
            results["claims"] = judge(results["models"])
        write_json(out / RESULTS, results)
    return results


def judged(settings: ReproduceSettings) -> bool:
    """Whether the claims of the paper are about such a run: all of its models, its attack, and a grid from 0."""
    whole = set(TITLES) <= set(settings.recipes) and settings.scope == "dataset" and attack_of(settings.attack).raw
    return whole and settings.eps_x[0] == settings.eps_w[0] == 0


def _train_and_attack(
    settings: ReproduceSettings, out: Path, pool: Executor | None, report: Report, name: str, seed: int
) -> Surface:  # fmt: skip
    run = out / "models" / f"{name}-seed{seed}"
    training = TrainSettings(
        data=settings.data,
        data_dir=settings.data_dir,
        network=settings.network,
        recipe=settings.recipes[name],
        seed=seed,
        device=settings.device,
        dtype=settings.dtype,
    )
    if pool:
        pool.submit(train_run, training, run).result()
    else:
        train_run(training, run)
    report("models", 1)
    evaluation = EvaluateSettings(
        model=str(run), split=settings.split, limit=settings.limit, eps_x=settings.eps_x, eps_w=settings.eps_w,
        scope=settings.scope, attack=settings.attack, device=settings.device,
    )  # fmt: skip
    job = Attacked(evaluation)
    return replace(job.surface(job.execution(run / EVENTS, pool, report, keep=False)), model=name)


def _rehearse_all(settings: ReproduceSettings, data: Dataset) -> None:
    """Binds every objective and attacks one example of an untrained network: what does not fit fails before any work is done."""
    network = TrainSettings(data=settings.data, network=settings.network)
    model = build(network, tuple(data.train.x.shape[1:]), len(data.classes)).eval()
    for recipe in settings.recipes.values():
        objective_in(recipe, data)(model)
    first, ball = data.test.take(1), JointBall(settings.eps_x[-1], settings.eps_w[-1], data.domain)
    rehearse(Case.of(model, first.x, first.y), Method.of(settings.attack, settings.scope), ball)


def _cost(recipe: Recipe) -> int:
    return recipe.epochs * {"standard": 1, "weight-perturb": 2, "jiwp": 2}.get(recipe.method, 10)
