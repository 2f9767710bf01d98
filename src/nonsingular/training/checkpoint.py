"""checkpoint.py - the state of a training in a file, from which it goes on to the same bits."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor, nn
from torch.optim import Optimizer

from nonsingular.errors import InvalidInput
from nonsingular.models.checkpoints import fit_weights
from nonsingular.models.weights import read_tensors
from nonsingular.results.files import write_atomic

CHECKPOINT = "checkpoint.safetensors"
OPTIMISER = ("optimiser.", "adam.")
"""Prefixes of the names of its tensors: the current one, and that of version 0.1.0."""
AVERAGE = "average."


@dataclass(frozen=True)
class Epoch:
    """The result of one epoch: mean loss, and accuracy on the validation examples, in [0, 1]; None without such examples."""

    epoch: int
    loss: float
    val_accuracy: float | None


@dataclass(frozen=True)
class Checkpoint:
    """A safetensors file: weights, optimiser, history, and `tag`.

    tag: names everything that the run depends on; the file of another run is refused.
    """

    path: Path
    tag: str = ""

    def save(
        self, model: nn.Module, optimiser: Optimizer, history: Sequence[Epoch], averaged: nn.Module | None = None
    ) -> None:  # fmt: skip
        """Writes the whole file, or nothing.  averaged: what keeps the average of the weights.

        Raises InvalidInput for an optimiser whose state is not of tensors and numbers.
        """
        tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
        tensors |= {f"{AVERAGE}{k}": v for k, v in averaged.state_dict().items()} if averaged is not None else {}
        numbers: dict[str, float] = {}
        for i, state in optimiser.state_dict()["state"].items():
            for key, value in state.items():
                if isinstance(value, Tensor):
                    tensors[f"{OPTIMISER[0]}{i}.{key}"] = value
                elif isinstance(value, int | float):
                    numbers[f"{i}.{key}"] = value
                elif value is not None:
                    raise InvalidInput(
                        f"{type(optimiser).__name__} keeps {key}, a {type(value).__name__}, which no checkpoint holds; train "
                        "without a directory, or with another optimizer"
                    )
        about = {
            "epoch": str(history[-1].epoch), "tag": self.tag, "history": json.dumps([asdict(epoch) for epoch in history]),
        } | ({"numbers": json.dumps(numbers)} if numbers else {})  # fmt: skip
        write_atomic(self.path, save({k: v.clone() for k, v in tensors.items()}, about))

    def restore(
        self, model: nn.Module, optimiser: Optimizer, averaged: nn.Module | None = None
    ) -> tuple[int, list[Epoch]]:  # fmt: skip
        """How many epochs are done, and their results; restores model, optimiser and average.  (0, []) without a file.

        Raises InvalidInput, before anything is changed, for the file of another run and for a damaged one.
        """
        if not self.path.exists():
            return 0, []
        tensors, about = read_tensors(self.path)
        if about.get("tag") != self.tag:
            raise InvalidInput(
                f"{self.path} is the checkpoint of another run ({about.get('tag')}, not {self.tag}); choose another output folder"
            )
        try:
            done, history = int(about["epoch"]), [Epoch(**epoch) for epoch in json.loads(about.get("history", "[]"))]
            state = _state(tensors, json.loads(about.get("numbers", "{}")))
        except (ValueError, TypeError, KeyError) as e:
            raise InvalidInput(f"{self.path} is damaged ({e}); delete it and train again") from None
        for module, prefix in ((model, "model."), (averaged, AVERAGE)):
            if module is not None:
                fit_weights(module, {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}, self.path)
        optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
        return done, history


def _state(tensors: dict[str, Tensor], numbers: dict[str, float]) -> dict[int, dict[str, Any]]:
    """The state of an optimiser: number of a parameter -> name -> value."""
    named: dict[str, Any] = dict(numbers)
    for key, value in tensors.items():
        for prefix in OPTIMISER:
            if key.startswith(prefix):
                named[key.removeprefix(prefix)] = value
    state: dict[int, dict[str, Any]] = {}
    for key, value in named.items():
        i, name = key.split(".", 1)
        state.setdefault(int(i), {})[name] = value
    return state
