"""train.py - training for users: a network, examples and a method -> a trained copy.  The user's module is never changed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nonsingular.catalog import OBJECTIVES, Objective, known
from nonsingular.data.datasets import Dataset, Domain, Split, as_tensors, hash_tensors
from nonsingular.errors import InvalidInput
from nonsingular.network.calling import threads as use_threads
from nonsingular.network.copies import duplicate
from nonsingular.network.heads import two_classes
from nonsingular.network.network import Network
from nonsingular.network.preconditions import check_inputs
from nonsingular.threat.ball import JointBall
from nonsingular.threat.radius import told
from nonsingular.training.checkpoint import CHECKPOINT, Checkpoint, Epoch
from nonsingular.training.descent import Descent, Parameters
from nonsingular.training.loop import Callback, Examples, fit
from nonsingular.training.objectives import LossOf


@dataclass(frozen=True)
class Trained:
    """What `train` gives.  model: a trained copy, in eval mode.  history: the result of each epoch, in order."""

    model: nn.Module
    history: tuple[Epoch, ...]


def train(
    model: nn.Module, data: Any, *, method: str | Objective | LossOf = "standard",
    eps_x: float | None = None, eps_w: float | None = None, alpha: float | None = None, beta: float | None = None,
    steps: int | None = None, warmup: float | None = None,
    rho: float | None = None, rate: float | None = None, bits: int | None = None, part: float | None = None,
    epochs: int = 12, lr: float | None = None, batch_size: int = 128,
    optimizer: str | Callable[[Parameters], Optimizer] = "adam", schedule: str | Callable[[float], float] = "cosine",
    weight_decay: float | None = None, momentum: float | None = None, average: float | None = None,
    clip: float | None = None, accumulate: int = 1, amp: str | None = None, seed: int = 0,
    val: Any = None, domain: Domain = "own", directory: str | PathLike[str] | None = None,
    callbacks: Sequence[Callback] = (), threads: int = 1,
) -> Trained:  # fmt: skip
    """A copy of `model`, trained by a method.

    data: as in `evaluate`, (x, y), a torch Dataset or a DataLoader, gathered in its order; or a data set of three splits from
        `load`, of which the first is used to learn.  Each epoch draws its own order.
    method: a name of the catalog, with the numbers it uses from eps_x to part (radii in the units of data and weights); or an
        objective, any function model -> ((x, y, progress, generator) -> loss), which has its own settings, e.g. Adversarial(0.1).
    lr: of the optimizer, 1e-3 unless said.  optimizer: "adam", "adamw", "sgd", or a function (parameters) -> torch optimiser.
    schedule: the factor of lr: "cosine" (to 0), "constant", "linear" (to 0), "step" (0.1 from the half, 0.01 from three
        quarters), or a function (part of the training that is done) -> factor.
    average: 0 to below 1: the trained copy is an exponential moving average of the weights.  clip: keeps weights in +-clip.
    accumulate: parts of a batch whose gradients are summed before a step.  amp: "bfloat16" for mixed precision (see `Descent`).
    seed: of the orders and the attacks, not of the first weights: these are the model's.
    val: examples that are measured after every epoch and never learnt from, as data or as the part of data set aside for it; by
        default those of a data set of three splits, or none.
    domain: the range of the inputs; by default that of the data set or the objective, else (0, 1).  None: no limits.
    directory: where a checkpoint is kept; the same call goes on from there after an interruption, and ends with the same bits.  A
        function is known there by its name alone.
    callbacks: each called as (epoch, network) after every epoch.  threads: as in `evaluate`.
    Raises InvalidInput for what cannot be trained on, and for a number that the method does not use or needs; UnsupportedModel
    for a network that the method has no rule for.  Cost: epochs times that of the objective, and a pass over the data.
    """
    numbers = {"eps_x": eps_x, "eps_w": eps_w, "alpha": alpha, "beta": beta, "steps": steps, "warmup": warmup}
    numbers |= {"rho": rho, "rate": rate, "bits": bits, "part": part}
    rate = 1e-3 if lr is None and isinstance(optimizer, str) else lr
    descent = Descent(epochs, seed, batch_size, rate, optimizer, schedule, weight_decay, momentum, average, clip, accumulate, amp)
    limits = _domain(domain, data, method)
    objective, examples = objective_of(method, numbers, limits), _examples(data, val, seed)
    with use_threads(threads):
        copy = duplicate(model.inner if isinstance(model, Network) else model)
        seen, examples = _checked(copy, examples, JointBall(0.0, 0.0, limits))
        checkpoint = None if directory is None else _checkpoint(Path(directory), copy, objective, examples.train, descent)
        return Trained(copy, fit(seen, objective, examples, descent, checkpoint=checkpoint, callbacks=callbacks))


def objective_of(
    method: str | Objective | LossOf, numbers: Mapping[str, Any], domain: tuple[float, float] | None
) -> LossOf:  # fmt: skip
    """The objective of a method, with the numbers of a recipe (None: not given) in the domain of the data.

    Raises InvalidInput for an unknown name, a number that it needs or does not use, and numbers beside an objective.
    """
    if isinstance(method, str):
        method = OBJECTIVES[known(OBJECTIVES, method, "method")]
    if isinstance(method, Objective):
        return method.of(numbers, domain, OBJECTIVES.values())
    if isinstance(method, type):
        raise InvalidInput(f"method is the class {method.__name__}; give a value of it, e.g. {method.__name__}(...)")
    if not callable(method):  # pyright: ignore[reportUnnecessaryComparison]  # what a user gives
        raise InvalidInput(f"method is {method!r}; choose one of {', '.join(OBJECTIVES)}, or give a function model -> loss")
    if given := [name for name, value in numbers.items() if value is not None]:
        raise InvalidInput(
            f"{given[0]} is {numbers[given[0]]}, and method is an objective with its own settings; set {given[0]} there"
        )
    return method


# --- the arguments, as training needs them --------------------------------------------------------------------------------


def _domain(given: Domain, data: Any, method: Any) -> tuple[float, float] | None:
    """The range of the inputs.  Raises InvalidInput if the objective has another domain than the one given."""
    own: Any = "own"
    while own == "own" and not isinstance(method, str | Objective | type | None):
        own, method = getattr(method, "domain", "own"), getattr(method, "base", None)  # or that of what it is composed of
    if isinstance(given, str):
        of_data = data.domain if isinstance(data, Dataset) else (0.0, 1.0)
        return of_data if isinstance(own, str) else own
    if not isinstance(own, str) and own != given:
        raise InvalidInput(f"domain is {given}, and that of the objective is {own}; give one of them alone, or both the same")
    return given


def _examples(data: Any, val: Any, seed: int) -> Examples:
    if isinstance(data, Dataset):
        own = data.val if len(data.val) else None
        data, val = data.train, own if val is None else val
    learnt = _split("data", data)
    if val is None:
        return Examples(learnt)
    if isinstance(val, int | float):
        return _held_out(learnt, val, seed)
    if isinstance(val, Dataset):
        val = val.val
    return Examples(learnt, _split("val", val))


def _split(name: str, data: Any) -> Split:
    try:
        x, y = as_tensors(data)
    except InvalidInput as e:
        raise InvalidInput(str(e) if name == "data" else f"{name}: {e}") from e
    return Split(x.detach(), y.detach())


def _held_out(data: Split, part: float, seed: int) -> Examples:
    """A part drawn by a separate generator, so that the orders of training do not depend on it."""
    if isinstance(part, bool) or not 0 < part < 1:
        raise InvalidInput(f"val is {part}; give the part of the data to set aside, between 0 and 1, or examples")
    n = len(data)
    if n < 2:
        raise InvalidInput(f"val is {part} of {n} examples; give two or more examples, or examples as val")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).to(data.x.device)
    aside = min(n - 1, max(1, round(part * n)))
    cut = (order[aside:].sort().values, order[:aside].sort().values)
    learnt, held = (Split(data.x[at], data.y[at.to(data.y.device)]) for at in cut)
    return Examples(learnt, held)


def _checked(copy: nn.Module, examples: Examples, ball: JointBall) -> tuple[nn.Module, Examples]:
    """The copy as a classifier, itself or an adapter around it, and all examples after a look at them.  Raises InvalidInput."""
    parts = [("", examples.train)] + ([] if examples.val is None else [("val: ", examples.val)])
    with torch.random.fork_rng():  # a forward may be random
        copy.eval()
        seen = two_classes(copy, examples.train.x)
        for name, split in parts:
            try:
                check_inputs(seen, split.x, split.y, ball, random=True)
            except InvalidInput as e:
                raise type(e)(f"{name}{e}") from e
    if {id(p) for p in seen.parameters()} != {id(p) for p in copy.parameters()}:
        raise InvalidInput("the model ends with a sigmoid; train the network without it, whose output is the logit")
    learnt, val = examples.train, examples.val
    return seen, Examples(Split(learnt.x, learnt.y.long()), None if val is None else Split(val.x, val.y.long()))


def _checkpoint(folder: Path, model: nn.Module, objective: LossOf, data: Split, descent: Descent) -> Checkpoint:
    """The checkpoint of a directory, under a tag that names everything that the weights depend on."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise InvalidInput(f"directory is {folder}, which cannot be made: {e.strerror or e}") from None
    made_of = {"data": data.sha256()[:16], "model": hash_tensors(model.state_dict())[:16]}
    return Checkpoint(folder / CHECKPOINT, json.dumps(made_of | {"objective": _said(objective), "descent": _said(descent)}))


def _said(value: Any) -> Any:
    """An objective, a descent and what they hold, as JSON: values by their fields, functions by their names."""
    if is_dataclass(value) and not isinstance(value, type):
        return {"is": type(value).__name__} | {f.name: _said(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(name): _said(each) for name, each in value.items()}
    if isinstance(value, tuple | list):
        return [_said(each) for each in value]
    if isinstance(value, Tensor):
        return told(value)
    if isinstance(value, partial):
        return [_said(value.func), *map(_said, value.args), _said(value.keywords)]
    if callable(value):
        return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}"
    return value
