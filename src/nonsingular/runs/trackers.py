"""trackers.py - results handed to an experiment tracker: one function a tracker, of the results and of the files of the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from nonsingular.errors import InvalidInput
from nonsingular.plain import legible, legible_all

Tracker = Callable[[Mapping[str, Any], Path], None]
"""(results, run directory with its pictures) -> None."""

NEEDS = {"tensorboard": "torch.utils.tensorboard", "mlflow": "mlflow"}


def tracker(name: str) -> Tracker:
    """The tracker of that name.  Raises InvalidInput for another name, and where its package is not installed."""
    if name not in NEEDS:
        raise InvalidInput(f"there is no tracker '{name}'; choose one of {', '.join(NEEDS)}")
    try:
        import_module(NEEDS[name])
    except ImportError as e:
        raise InvalidInput(f"tracker {name} needs its package ({e}); run: pip install {name}") from e
    return {"tensorboard": _tensorboard, "mlflow": _mlflow}[name]


def numbers(results: Mapping[str, Any]) -> Iterator[tuple[str, float, int]]:
    """(name, value, seed) of every headline number: areas and clean accuracy of each model, attacked and certified."""
    for name, model in legible_all(results["models"]).items():
        for seed, surface in zip(model["seeds"], model["surfaces"], strict=True):
            yield f"{name}/clean_accuracy", surface["about"]["clean_accuracy"], seed
            for shown in filter(None, (surface, surface.get("certified"))):
                for area in ("auc", "auc_x", "auc_w"):
                    yield f"{name}/{shown['kind']}_{area}", shown[area], seed


def _tensorboard(results: Mapping[str, Any], run: Path) -> None:
    """Scalars, by seed, and Figure 1, into the folder `tensorboard` of the run."""
    import matplotlib.image

    writer = import_module(NEEDS["tensorboard"]).SummaryWriter(str(run / "tensorboard"))
    for name, value, seed in numbers(results):
        writer.add_scalar(name, value, seed)
    writer.add_image("figure1", matplotlib.image.imread(run / "figure1.png")[..., :3], dataformats="HWC")
    writer.close()


def _mlflow(results: Mapping[str, Any], run: Path) -> None:
    """A run of its name: settings as parameters, numbers as metrics, the report as artifacts; MLflow decides where."""
    mlflow = import_module(NEEDS["mlflow"])
    with mlflow.start_run(run_name=run.name):
        mlflow.log_params({legible(name): legible(str(value))[:500] for name, value in results["config"].items()})
        for name, value, seed in numbers(results):
            mlflow.log_metric(name, value, step=seed)
        for file in ("figure1.png", "report.html", "report.md", "results.json"):
            mlflow.log_artifact(str(run / file))
