"""loop.py - the one training loop.  A run that was killed goes on from its last epoch and ends with the same weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from nonsingular.data.datasets import Split
from nonsingular.errors import InvalidInput
from nonsingular.models.checkpoints import fit_weights
from nonsingular.models.weights import read_tensors
from nonsingular.network.margins import is_correct
from nonsingular.results.files import write_atomic
from nonsingular.training.objectives import Objective

CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True)
class Epoch:
    """What one epoch left: mean loss, and accuracy on the validation split."""

    epoch: int
    loss: float
    val_accuracy: float


def train(
    model: nn.Module,
    data: Split,
    val: Split,
    objective: Objective,
    *,
    epochs: int,
    seed: int,
    lr: float = 1e-3,
    batch_size: int = 128,
    directory: Path | None = None,
    tag: str = "",
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> nn.Module:
    """Minimise `objective` over `data` with Adam, lr falling to 0 along a cosine.  Returns `model`, trained, in eval mode.

    data, val: training and validation examples; `val` is only measured, never used to choose.
    directory: where the checkpoint is kept after every epoch (safetensors: weights, optimiser, epoch number, `tag`).
    tag: names everything that the run depends on; a checkpoint with another tag is refused.
    Each epoch draws its order and its attacks from a generator seeded by (seed, epoch), so a resumed run gives the same bits.
    Raises InvalidInput for an empty split, a damaged or foreign checkpoint, and a loss that is not finite.
    """
    if not len(data) or not len(val):
        raise InvalidInput(f"training needs examples: the training split has {len(data)}, the validation split {len(val)}")
    loss_of = objective(model)
    params = list(model.parameters())
    optimiser = torch.optim.Adam(params, lr=lr)
    path = directory / CHECKPOINT if directory else None
    first = _restore(path, model, optimiser, tag) if path and path.exists() else 0
    batches = math.ceil(len(data) / batch_size)
    for epoch in range(first, epochs):
        generator = torch.Generator(data.x.device).manual_seed(seed * 1_000_003 + epoch)
        order = torch.randperm(len(data), generator=generator, device=data.x.device)
        model.train()
        total = 0.0
        with torch.random.fork_rng():  # what the model itself draws, e.g. for dropout
            torch.manual_seed(seed * 1_000_003 + epoch)
            for i, rows in enumerate(order.split(batch_size)):
                progress = (epoch * batches + i) / (epochs * batches)
                optimiser.param_groups[0]["lr"] = lr * 0.5 * (1 + math.cos(math.pi * progress))
                loss = loss_of(data.x[rows], data.y[rows], progress, generator)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                total += loss.item() * len(rows)
        if not math.isfinite(total):
            raise InvalidInput(f"the loss is not finite in epoch {epoch + 1}; lower lr, alpha, beta or the radii")
        model.eval()
        if path:
            write_atomic(path, _checkpoint(model, optimiser, epoch + 1, tag))
        on_epoch(Epoch(epoch + 1, total / len(data), accuracy(model, val)))
    return model.eval()


def accuracy(model: nn.Module, data: Split, chunk: int = 4096) -> float:
    """Part of `data` that the model classifies correctly, in [0, 1]."""
    with torch.no_grad():
        pieces = zip(data.x.split(chunk), data.y.split(chunk), strict=True)
        return sum(is_correct(model(x.clone()), y).sum().item() for x, y in pieces) / len(data)


def _checkpoint(model: nn.Module, optimiser: torch.optim.Adam, epoch: int, tag: str) -> bytes:
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    for i, state in optimiser.state_dict()["state"].items():
        tensors |= {f"adam.{i}.{k}": v for k, v in state.items()}
    return save({k: v.clone() for k, v in tensors.items()}, {"epoch": str(epoch), "tag": tag})


def _restore(path: Path, model: nn.Module, optimiser: torch.optim.Adam, tag: str) -> int:
    tensors, about = read_tensors(path)
    if about.get("tag") != tag:
        raise InvalidInput(
            f"{path} is the checkpoint of another run ({about.get('tag')}, not {tag}); choose another output folder"
        )
    fit_weights(model, {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}, path)
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("adam."):
            _, i, name = key.split(".")
            state.setdefault(int(i), {})[name] = value
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
    return int(about["epoch"])
