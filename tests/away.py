"""away.py - a device for tests: tensors that say that they are elsewhere, compute on the CPU, and refuse to meet its tensors.

What PyTorch refuses on a GPU is refused here: an operation on tensors of two devices, but for numbers without dimensions, copies
from one to the other, and indices from the CPU.  `.numpy()` needs `.cpu()`.  The values are those of the CPU, so results can be
compared bit for bit.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map


class Backend:
    """What PyTorch asks about the device.  There is none of them, as for a driver without a GPU: nothing else may choose it."""

    @staticmethod
    def is_initialized() -> bool:
        return True

    @staticmethod
    def is_available() -> bool:
        return False

    @staticmethod
    def current_device() -> int:
        return 0

    @staticmethod
    def device_count() -> int:
        return 0

    @staticmethod
    def _is_in_bad_fork() -> bool:
        return False

    @staticmethod
    def manual_seed_all(seed: int) -> None:
        pass


backend_registration._setup_privateuseone_for_python_backend("away", Backend)
AWAY = torch.device("away:0")
"""PyTorch's own name for a device of which it knows nothing: autograd asks the driver of any other."""
MAY_MIX = ("copy_", "_to_copy", "index", "index_put", "index_put_", "_index_put_impl_", "set_")


class Away(torch.Tensor):
    """A tensor elsewhere; `inner` holds its numbers."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Away:
        t = torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype, device=AWAY
        )
        t.inner = inner
        return t

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"Away({self.inner!r})"

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("can't convert a tensor elsewhere to numpy: use .cpu() first")

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        return self.numpy()

    def tolist(self) -> Any:
        return self.inner.tolist()

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        found = memo[id(self)] = Away(self.inner.detach().clone()).requires_grad_(self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            found._is_param = True
        return found

    def untyped_storage(self) -> Any:
        return self.inner.untyped_storage()

    def data_ptr(self) -> int:
        return self.inner.data_ptr()


class Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


class Made(TorchFunctionMode):
    """torch.tensor and torch.as_tensor ask the driver of the device: made here first, and then moved."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or "cpu").type == AWAY.type:
            del kwargs["device"]
            return func(*args, **kwargs).to(AWAY)
        if func is torch.Tensor.new_tensor and isinstance(args[0], Away):
            return torch.tensor(args[1], **{"dtype": args[0].dtype, **kwargs}).to(AWAY)
        return func(*args, **kwargs)


def computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = func.__name__.partition(".")[0]
    tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, torch.Tensor)]
    away = [t for t in tensors if isinstance(t, Away)]
    if away and name not in MAY_MIX:
        met = [t for t in tensors if not isinstance(t, Away) and t.dim() > 0]
        if met:
            raise RuntimeError(f"{func}: expected all tensors on one device, found {AWAY} and cpu of shape {tuple(met[0].shape)}")
    if name in MAY_MIX[2:6] and not isinstance(args[0], Away) and away:
        raise RuntimeError(f"{func}: indices should be on the CPU or where the indexed tensor is, and that is on the CPU")
    asked = kwargs.get("device")
    to = AWAY.type if asked is None and away and (name not in ("copy_",) or isinstance(args[0], Away)) else asked
    there = torch.device(to).type == AWAY.type if to is not None else False
    if name in ("index_put_", "copy_", "set_"):
        there = isinstance(args[0], Away)
    plain = tree_map(lambda t: t.inner if isinstance(t, Away) else t, (args, kwargs))
    if asked is not None:
        plain[1]["device"] = torch.device("cpu")
    known = {id(t.inner): t for t in away}
    out = func(*plain[0], **plain[1])

    def back(t: Any) -> Any:
        if not isinstance(t, torch.Tensor) or not there:
            return t
        return known[id(t)] if id(t) in known else Away(t)  # an operation in place returns its argument

    return tree_map(back, out)


@contextmanager
def elsewhere() -> Generator[torch.device]:
    """Inside, tensors can be made and moved there, and there are generators."""
    real = torch.Generator

    class Drawn(real):
        """A generator that draws on the CPU, wherever it is asked for."""

        def __new__(cls, device: Any = "cpu") -> Any:
            return real.__new__(cls)

    places = [
        (module, name)
        for module in list(sys.modules.values())
        if getattr(module, "__name__", "").startswith("nonsingular")
        for name, value in vars(module).items()
        if value is real
    ]
    patches = [mock.patch.object(module, name, Drawn) for module, name in [*places, (torch, "Generator")]]
    for patch in patches:
        patch.start()
    overwritten = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # `.data = ` would leave the numbers as they were
    try:
        with Mode(), Made():
            yield AWAY
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(overwritten)
        for patch in patches:
            patch.stop()
