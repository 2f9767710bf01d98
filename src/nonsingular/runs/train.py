"""train.py - settings -> a trained model in its run directory."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import nn

from nonsingular.data.datasets import Dataset, Split, hash_tensors
from nonsingular.errors import InvalidInput
from nonsingular.models.loading import build
from nonsingular.network.devices import placed
from nonsingular.results.files import write_atomic, write_json
from nonsingular.results.surface import FORMAT, SUMMARY, WEIGHTS
from nonsingular.runs.directory import check_free, claimed, environment
from nonsingular.runs.jobs import dataset
from nonsingular.settings import Recipe, TrainSettings
from nonsingular.training.checkpoint import CHECKPOINT, Checkpoint, Epoch
from nonsingular.training.descent import Descent
from nonsingular.training.loop import Examples, accuracy, fit
from nonsingular.training.objectives import LossOf
from nonsingular.training.train import objective_of


def train_run(settings: TrainSettings, out: Path, on_epoch: Callable[[Epoch], None] = lambda epoch: None) -> dict[str, Any]:
    """Trains one model into `out`; a finished run is left as it is, an interrupted one goes on from its last epoch.

    Returns the summary that is also written to train.json.
    """
    data = dataset(settings.data, settings.data_dir, classes=settings.classes)
    train_sha256 = data.train.sha256()
    check_free(out, settings)
    if (out / SUMMARY).exists() and (out / WEIGHTS).exists():
        summary = json.loads((out / SUMMARY).read_text())
        if summary["train_sha256"] != train_sha256:
            raise InvalidInput(f"{out} holds a model that was trained on other data; choose another folder with --out")
        return summary
    built = build(settings, tuple(data.train.x.shape[1:]), len(data.classes))
    model, train = _placed(built, data.train, settings)
    objective = objective_in(settings.recipe, data)
    objective(model)  # a network that the method has no rule for is an error before anything is written,
    _ = descent_of(settings)  # as are numbers that do not go together
    with claimed(out, settings):
        started, cpu = time.perf_counter(), time.process_time()
        val = _placed(model, data.val, settings)[1]
        tag = train_sha256[:16] + settings.model_dump_json(exclude={"data_dir"})
        fit(
            model, objective, Examples(train, val), descent_of(settings), checkpoint=Checkpoint(out / CHECKPOINT, tag),
            callbacks=(lambda epoch, network: on_epoch(epoch),),
        )  # fmt: skip
        about = {"built_for": json.dumps({"input_shape": tuple(data.train.x.shape[1:]), "classes": len(data.classes)})}
        # one key in the metadata: the same bytes every time
        write_atomic(out / WEIGHTS, save({k: v.cpu().clone() for k, v in model.state_dict().items()}, about))
        summary = {
            "format": FORMAT, "model_sha256": hash_tensors(model.state_dict()), "train_sha256": train_sha256,
            "val_accuracy": accuracy(model, val), "seconds": time.perf_counter() - started,
            "cpu_seconds": time.process_time() - cpu, "environment": environment(),
        }  # fmt: skip
        write_json(out / SUMMARY, summary)
        (out / CHECKPOINT).unlink(missing_ok=True)
        return summary


def _placed(model: nn.Module, split: Split, settings: TrainSettings) -> tuple[nn.Module, Split]:
    """The model and a split on the device and in the numbers of the settings."""
    model, x, y = placed(model, split.x, split.y, settings.device, settings.dtype)
    return model, replace(split, x=x, y=y)


def objective_in(recipe: Recipe, data: Dataset) -> LossOf:
    """What a recipe lowers, in the domain of the data."""
    numbers = {name: getattr(recipe, name) for name in Recipe.NUMBERS}
    return objective_of(recipe.method, numbers, data.domain)


def descent_of(settings: TrainSettings) -> Descent:
    """How training lowers it."""
    recipe = settings.recipe
    return Descent(
        recipe.epochs, settings.seed, recipe.batch_size, recipe.lr, recipe.optimizer, recipe.schedule, recipe.weight_decay,
        recipe.momentum, recipe.average, recipe.clip, recipe.accumulate, recipe.amp,
    )  # fmt: skip
