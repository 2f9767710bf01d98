"""make_zoo.py - puts networks that `nonsingular train` made into the package, each with its card.

    python scripts/make_zoo.py mnist/joint=runs/mnist-joint digits/at=runs/digits-at

A card says what the network is and what was measured where it was trained; `docs/leaderboard` measures the rest.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from safetensors import safe_open

from nonsingular.models.loading import load_run
from nonsingular.models.zoo import CARD, FOLDER
from nonsingular.results.files import write_atomic, write_json
from nonsingular.results.surface import CONFIG, SUMMARY, WEIGHTS
from nonsingular.settings import to_yaml


def put(name: str, run: Path) -> None:
    model, settings = load_run(run)
    summary = json.loads((run / SUMMARY).read_text())
    widths = ", ".join(map(str, settings.network.hidden))
    size = sum(p.numel() for p in model.parameters())
    folder = FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    clean = settings.model_copy(update={"data_dir": None})
    write_atomic(folder / CONFIG, to_yaml(clean).encode())
    write_atomic(folder / WEIGHTS, (run / WEIGHTS).read_bytes())
    with safe_open(str(folder / WEIGHTS), "pt") as file:
        assert set(file.keys()) == set(model.state_dict())
    write_json(
        folder / CARD,
        {
            "does": f"{settings.data}, {settings.network.name} ({widths}; {size:,} numbers), method {settings.recipe.method}: "
            f"{100 * summary['val_accuracy']:.1f} % of the validation examples right.",
            "model_sha256": summary["model_sha256"], "train_sha256": summary["train_sha256"],
            "val_accuracy": summary["val_accuracy"], "cpu_seconds": round(summary["cpu_seconds"], 1),
        },
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+", metavar="DATA/NAME=RUN")
    for given in parser.parse_args().networks:
        name, _, run = given.partition("=")
        put(name, Path(run))


if __name__ == "__main__":
    main()
