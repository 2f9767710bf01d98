"""casts.py - changes of type within a forward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nonsingular.network.rounded import FAKED
from nonsingular.network.vocabulary import CASTS, name_of


def at_least(new: torch.dtype, old: torch.dtype) -> bool:
    """Whether a cast keeps every value."""
    if not (new.is_floating_point and old.is_floating_point):
        return False
    return torch.finfo(new).eps <= torch.finfo(old).eps and torch.finfo(new).max >= torch.finfo(old).max


class Casts(TorchFunctionMode):
    """Until `leave_casts`, casts to a floating-point type at least as precise as `own` become casts to `dtype`.

    What torch quantises in float32 alone is quantised in `dtype`.
    """

    def __init__(self, own: torch.dtype, dtype: torch.dtype) -> None:
        super().__init__()
        self.own, self.dtype = own, dtype

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        z, kwargs = args[0] if args else None, kwargs or {}
        if (faked := FAKED.get(name_of(func))) is not None:
            return faked(*args, **kwargs)
        if name_of(func) not in CASTS or not isinstance(z, Tensor) or z.dtype != self.dtype:
            return func(*args, **kwargs)
        with torch._C.DisableTorchFunction():  # pyright: ignore[reportPrivateUsage]  # a cast of nothing shows to what
            cast_to = func(torch.empty(0, dtype=z.dtype, device=z.device), *args[1:], **kwargs)
        if not isinstance(cast_to, Tensor) or not at_least(cast_to.dtype, self.own):
            return func(*args, **kwargs)
        return z.to(cast_to.device)


_ACTIVE: list[Casts] = []


def enter_casts(own: torch.dtype, dtype: torch.dtype, module: nn.Module, args: Any) -> None:
    _ACTIVE.append(Casts(own, dtype))
    _ACTIVE[-1].__enter__()


def leave_casts(module: nn.Module, args: Any, result: Any) -> None:
    _ACTIVE.pop().__exit__(None, None, None)
