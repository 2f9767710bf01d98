"""checkpoints.py - load tensors into a network: choose the state dict of a checkpoint, and match its names.

All of a network's tensors are written or none is, and what a file holds besides is named.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nonsingular.errors import InvalidInput
from nonsingular.models.weights import StateDicts, listed

log = logging.getLogger("nonsingular")

_AVERAGE = re.compile(r"(^|[^a-z])(ema|swa|averaged?|avg)([^a-z]|$)", re.IGNORECASE)
"""In the name of a state dict: running averages of weights, which training keeps beside the weights."""
_COMPILED = "_orig_mod."
"""What torch.compile puts before the names of a module, and of its parts."""


@dataclass(frozen=True, eq=False)
class Fit:
    """Tensors of a file under the names that a network may have for them.

    source: where in the file they lie.  taken, put: the prefixes taken off their names, and put before them.
    others: names in the file that lie beside the prefix.
    """

    source: str
    taken: str
    put: str
    tensors: dict[str, Tensor]
    others: tuple[str, ...]

    @property
    def name(self) -> str:
        return ".".join(p for p in (self.source, self.taken.rstrip(".")) if p)

    def equals(self, other: Fit) -> bool:
        a, b = self.tensors, other.tensors
        return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


def fit_weights(model: nn.Module, tensors: Mapping[str, Tensor], path: Path | str) -> None:
    """Writes `tensors`, read from `path`, into the model: see `fit_checkpoint`."""
    fit_checkpoint([model], {"": dict(tensors)}, path)


def fit_checkpoint(models: list[nn.Module], inside: StateDicts, path: Path | str) -> None:
    """Writes a state dict of a checkpoint into the first of `models` that one fits: names, shapes and kinds of numbers.

    One common prefix of all names ("model.", "module.", "_orig_mod.model.") is taken off, or put before them, if the rest then
    fits exactly; what lies beside that prefix in the file (the loss's weights, a metric's) is left out.  Where both weights and
    their running average (ema, swa) fit, the weights are taken.  A line in the log says what was done.
    Raises InvalidInput if none fits, which lists and counts what differs, or if several with different numbers do; the model is
    then unchanged.
    """
    for model in models:
        found = [f for source, tensors in inside.items() for f in _fits(model, tensors, source)]
        if found:
            fit = _chosen(found, path)
            try:
                model.load_state_dict(fit.tensors, strict=False)
            except RuntimeError as e:
                raise InvalidInput(f"{path} does not fit the model: {' '.join(str(e).split())}") from e
            return
    own = models[-1].state_dict()
    nearest = min((f for source, tensors in inside.items() for f in _renamed(own, tensors, source)), key=lambda f: _apart(f, own))
    beside = f" (in '{nearest.source}', of {listed([repr(s) for s in inside])})" if len(inside) > 1 else ""
    differs = _differences(own, nearest.tensors)
    raise InvalidInput(f"{path} does not fit the model{beside} ({differs}); give the weights of this very network")


def _apart(fit: Fit, own: Mapping[str, Any]) -> int:
    """How many names are in only one of the two."""
    return len(fit.tensors.keys() ^ own.keys())


# --- which of several -------------------------------------------------------------------------------------------------------


def _chosen(found: list[Fit], path: Path | str) -> Fit:
    """The one fit, or the weights themselves beside their average; a line in the log says what was done."""
    candidates = [f for f in found if not _AVERAGE.search(f.name)] or found
    fit = candidates[0]
    different = [f for f in candidates[1:] if not f.equals(fit)]
    if different:
        names = listed([f"'{f.name}'" for f in (fit, *different)])
        raise InvalidInput(
            f"{path} holds several networks that fit, with different weights: {names}; save the one you mean in a file of its own"
        )
    averages = [repr(f.name) for f in found if f not in candidates and not f.equals(fit)]
    said = [f"taken from '{fit.source}'"] if fit.source else []
    said += [f"the prefix '{fit.taken}' taken off"] if fit.taken else []
    said += [f"the prefix '{fit.put}' put before all names"] if fit.put else []
    said += [f"not the running average {listed(averages)}; for that, save it in a file of its own"] if averages else []
    said += [f"without {len(fit.others)} that the network does not have ({listed(list(fit.others))})"] if fit.others else []
    if said:
        log.log(logging.WARNING if averages or fit.others else logging.INFO, "weights of %s: %s", path, "; ".join(said))
    return fit


# --- under which names ------------------------------------------------------------------------------------------------------


def _fits(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> list[Fit]:
    """The parts of a state dict that fit the network exactly, one for each prefix."""
    own = model.state_dict()
    return [f for f in _renamed(own, tensors, source) if f.tensors.keys() <= own.keys() and not _differences(own, f.tensors)]


def _renamed(own: Mapping[str, Any], tensors: Mapping[str, Tensor], source: str) -> list[Fit]:
    """The state dict under its own names, without a prefix, and with one that all names of the network have."""
    names = {k.replace(_COMPILED, ""): k for k in own}
    plain = {k.replace(_COMPILED, ""): v for k, v in tensors.items()}
    if len(names) < len(own) or len(plain) < len(tensors):
        names, plain = {k: k for k in own}, dict(tensors)
    found = list[Fit]()
    for taken in _prefixes(plain):
        part = {k.removeprefix(taken): v for k, v in plain.items() if k.startswith(taken)}
        others = tuple(k for k in plain if not k.startswith(taken))
        for put in _shared_prefixes(names):
            if not (taken and put and taken.endswith(put)):  # the same names in a roundabout way
                found.append(Fit(source, taken, put, {names.get(put + k, put + k): v for k, v in part.items()}, others))
    return found


def _prefixes(names: Mapping[str, Any]) -> list[str]:
    """ "" and every "a.", "a.b." that some names begin with, up to four parts."""
    found = dict.fromkeys([""])
    for name in names:
        parts = name.split(".")[:-1]
        found |= dict.fromkeys(".".join(parts[:n]) + "." for n in range(1, min(len(parts), 4) + 1))
    return list(found)


def _shared_prefixes(names: Mapping[str, Any]) -> list[str]:
    """ "" and every prefix that all names begin with."""
    return [p for p in _prefixes(dict(list(names.items())[:1])) if all(n.startswith(p) for n in names)]


def _differences(own: Mapping[str, Any], given: Mapping[str, Tensor]) -> str:
    """What is missing, unexpected and of another form; "" where nothing is."""
    held = {_place(own[k]) for k in given if k in own and isinstance(own[k], Tensor)}  # a tied tensor may be stored once
    missing = [
        k for k, v in own.items()
        if k not in given and not (isinstance(v, Tensor) and v.numel() and _place(v) in held)
        and not k.endswith("num_batches_tracked")
    ]  # fmt: skip
    unexpected = [k for k in given if k not in own]
    wrong = [
        f"{k} {_form(given[k])} instead of {_form(own[k])}"
        for k in given
        if k in own and isinstance(own[k], Tensor) and _form(given[k]) != _form(own[k])
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another form", wrong))
    return "; ".join(f"{len(names)} {what}: {listed(names)}" for what, names in kinds if names)


def _place(t: Tensor) -> tuple[int, tuple[int, ...]]:
    return t.data_ptr(), tuple(t.shape)


def _form(t: Tensor) -> str:
    """The shape, and the kind of numbers if it is not floating-point."""
    return f"{tuple(t.shape)}" + ("" if t.is_floating_point() else " of whole numbers" if not t.is_complex() else " complex")


def classes_of(inside: StateDicts) -> int | None:
    """The number of classes that weights are for: the rows of their last matrix; None without one."""
    tensors = next(iter(inside.values()))
    return next((len(t) for t in reversed(list(tensors.values())) if t.dim() == 2), None)
