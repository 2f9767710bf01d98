"""devices.py - where and in which numbers a network is computed: devices by name, and a model and its examples moved there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nonsingular.errors import InvalidInput
from nonsingular.network.copies import duplicate
from nonsingular.network.network import Network

DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "float64": torch.float64}


def device_of(name: str | torch.device, *, doubles: bool = False) -> torch.device:
    """The device of this name: "cpu", "cuda", "cuda:1", "mps"; "auto" is cuda where there is one, else cpu.

    mps is never chosen by itself: it has no float64, in which sums are taken, and no run on it was tried.
    doubles: float64 is needed, which mps has not.
    Raises InvalidInput for a name that torch does not know, and for a device that is not there or cannot do this.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise InvalidInput(f"device is {name!r}; give cpu, cuda, cuda:1, mps or auto") from None
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        held = f"torch sees {count} of them" if count else "torch sees none here"
        raise InvalidInput(f"device is {name}, and {held}; choose cpu or auto, or install a torch built for your GPU")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise InvalidInput(f"device is {name}, and this machine has none; choose cpu or auto")
    if device.type == "mps" and doubles:
        raise InvalidInput(f"device is {name}, which has no float64; it is needed here (certificates, dtype float64): choose cpu")
    return device


def device_in(model: nn.Module) -> torch.device:
    """Where its first weight lies; cpu for a model without any."""
    return next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))


def placed(
    model: nn.Module, x: Tensor, y: Tensor, device: str | torch.device | None, dtype: str | None
) -> tuple[nn.Module, Tensor, Tensor]:
    """The model and its examples on a device and in a type of numbers: a copy where the model has to change.

    device: as `device_of`; None: where the weights are.  dtype: "float32" or "float64"; None: the weights stay as they are.
    Inputs that are no floating-point numbers stay what they are.  Raises InvalidInput for other names.
    """
    if not isinstance(model, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]  # what a user gives: refused with it
        return model, x, y
    if dtype is not None and dtype not in DTYPES:
        raise InvalidInput(f"dtype is {dtype!r}; choose one of {', '.join(DTYPES)}")
    held: list[Tensor] = [*model.parameters(), *model.buffers()]
    kind, first = None if dtype is None else DTYPES[dtype], next(iter(held), x)
    doubles = kind == torch.float64 or (kind is None and any(t.dtype == torch.float64 for t in held))
    where = first.device if device is None else device_of(device, doubles=doubles)
    if any(t.device != where or (kind is not None and t.is_floating_point() and t.dtype != kind) for t in held):
        moved: Any = duplicate(model.inner if isinstance(model, Network) else model)
        model = moved.to(device=where, dtype=kind)
    return model, x.to(where, kind if x.is_floating_point() else None), y.to(where)
