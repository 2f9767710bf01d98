"""train.py - settings -> a trained model in its run directory."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import nn

from nonsingular.catalog import OBJECTIVES, lookup
from nonsingular.data.datasets import Dataset, hash_tensors
from nonsingular.errors import InvalidInput
from nonsingular.models.loading import build
from nonsingular.results.files import write_atomic, write_json
from nonsingular.results.surface import FORMAT, SUMMARY, WEIGHTS
from nonsingular.runs.directory import check_free, claimed, environment
from nonsingular.runs.jobs import dataset
from nonsingular.settings import (
    Recipe,
    TrainSettings,
)  # fmt: skip
from nonsingular.threat.ball import JointBall
from nonsingular.training.loop import CHECKPOINT, Epoch, accuracy, train
from nonsingular.training.objectives import Objective


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
