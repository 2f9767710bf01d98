"""copies.py - a user's module: checked, copied, its computed weights made parameters.  Nothing here writes into it."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from nonsingular.errors import InvalidInput, UnsupportedModel
from nonsingular.threat.ball import check_dense, check_parameter


def check_module(model: nn.Module) -> None:
    """Raises InvalidInput for anything but a module, and for parameters without values; UnsupportedModel for integer networks."""
    if not isinstance(model, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]  # what a user gives
        raise InvalidInput(f"the model is of type {type(model).__name__}; give an nn.Module, (B, *input) -> (B, K) logits")
    held = [*model.named_parameters(), *model.named_buffers()]
    packed = [(n, m) for n, m in model.named_modules() if type(m).__module__.startswith(_QUANTISED) and not _is_fake(m)]
    packed += [(n, p) for n, p in held if type(p).__module__.startswith("torchao.")]
    for name, part in packed:
        raise UnsupportedModel(
            f"the model is quantised: {type(part).__name__} at '{name}' holds whole numbers, which have neither an ℓ∞ ball nor a "
            "gradient; give the network in floating point that it was made from, or its export (docs/inputs.md, Quantised files)"
        )
    for name, p in held:
        check_parameter(name, p)


def _is_fake(module: nn.Module) -> bool:
    return "fake" in type(module).__name__.lower()


_QUANTISED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.nn.quantized", "torch.nn.intrinsic.quantized")


class _Wrapped(nn.Module):
    """The module inside a wrapper, under the wrapper's name for it, so that parameters keep their names in the user's model."""

    def __init__(self, name: str, inner: nn.Module) -> None:
        super().__init__()
        self.add_module(name, inner)
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self, self.name)(x)


_WRAPPERS = {
    "torch.nn.parallel.data_parallel.DataParallel": "module",
    "torch.nn.parallel.distributed.DistributedDataParallel": "module",
    "torch.optim.swa_utils.AveragedModel": "module",
    "torch._dynamo.eval_frame.OptimizedModule": "_orig_mod",  # of torch.compile
}
"""Wrappers that run another module elsewhere or faster -> their name for it.  As text, because importing them is slow."""


def _wrapped(module: nn.Module) -> str | None:
    """The name under which a wrapper holds its module; None for a module that is not a wrapper."""
    hooked = module._forward_hooks or module._forward_pre_hooks  # pyright: ignore[reportPrivateUsage]
    return None if hooked else _name_of_inner(type(module))


@cache
def _name_of_inner(kind: type[nn.Module]) -> str | None:
    names = (f"{k.__module__}.{k.__qualname__}" for k in kind.__mro__)
    return next((_WRAPPERS[name] for name in names if name in _WRAPPERS), None)


def duplicate(model: nn.Module) -> nn.Module:
    """A copy of `model`, without the wrappers of DataParallel, torch.compile and their like but with the same names.

    Raises InvalidInput as `check_module`, UnsupportedModel if copy.deepcopy refuses it.
    """
    check_module(model)
    known: dict[int, Any] = {}
    try:
        with torch.no_grad():  # otherwise the parameters of a copied script are not leaves
            for module in model.modules():
                for name, _ in _computed(module):
                    if isinstance(value := vars(module).get(name), Tensor):  # of the last pass, with its history
                        known[id(value)] = value.detach().clone()
            for module in reversed(list(model.modules())):
                if (name := _wrapped(module)) is not None:
                    inner = copy.deepcopy(cast(nn.Module, getattr(module, name)), known)
                    known[id(module)] = _Wrapped(name, inner).train(module.training)
            return copy.deepcopy(model, known)
    except Exception as e:  # anything that a user's module may hold
        for name, p in model.named_parameters():
            check_dense(name, p)
        kept = [
            f"{path}.{key}".lstrip(".")
            for path, module in model.named_modules()
            for key, value in vars(module).items()
            if isinstance(value, Tensor) and not value.is_leaf
        ]
        which = f", because it keeps {', '.join(kept[:3])}, computed with gradients" if kept else ""
        raise UnsupportedModel(
            f"the model cannot be copied{which} ({first_line(e)}); make computed weights permanent (e.g. prune.remove), detach "
            "what forward stores, and keep nothing else that copy.deepcopy refuses"
        ) from e


def parametrised(model: nn.Module) -> dict[str, str]:
    """Name of a weight that is computed from parameters at each pass -> how: weight norm, spectral norm, pruning, ..."""
    return {f"{path}.{name}".lstrip("."): kind for path, module in model.named_modules() for name, kind in _computed(module)}


def _computed(module: nn.Module) -> list[tuple[str, str]]:
    """The same for one module: torch.nn.utils.parametrize, or a hook of the older weight_norm, spectral_norm and prune."""
    found: list[tuple[str, str]] = []
    if parametrize.is_parametrized(module):
        each: Any = module.parametrizations
        found += [(name, type(each[name][0]).__name__.strip("_")) for name in each]
    hooks: list[Any] = [*module._forward_pre_hooks.values()]  # pyright: ignore[reportPrivateUsage]
    for hook in hooks:
        if (kind := _HOOKS.get(f"{type(hook).__module__}.{type(hook).__qualname__}")) is not None:
            found.append((hook.name, kind))
        elif type(hook).__module__ == "torch.nn.utils.prune":
            found.append((hook._tensor_name, "pruning"))
    return found


_HOOKS = {"torch.nn.utils.weight_norm.WeightNorm": "WeightNorm", "torch.nn.utils.spectral_norm.SpectralNorm": "SpectralNorm"}


def effective(model: nn.Module) -> nn.Module:
    """`model` itself, or a copy in which computed weights are parameters: what a device stores, and what a radius should move."""
    if not isinstance(model, nn.Module) or not parametrised(model):  # pyright: ignore[reportUnnecessaryIsInstance]
        return model
    made = duplicate(model)
    for module in list(made.modules()):
        if parametrize.is_parametrized(module):
            _settle(module)
        for name, kind in _computed(module):
            if kind == "pruning":
                prune.remove(module, name)
            else:
                _settle_hooked(module, name, kind)
    return made.train(model.training)


def _settle(module: nn.Module) -> None:
    """Not by remove_parametrizations: that changes the class, which the user's module shares."""
    each: Any = module.parametrizations
    weights = {name: getattr(module, name).detach().clone() for name in each}
    del module._modules["parametrizations"]  # pyright: ignore[reportPrivateUsage]
    module.__class__ = type(module).__mro__[1]
    for name, weight in weights.items():
        module.register_parameter(name, nn.Parameter(weight))


def _settle_hooked(module: nn.Module, name: str, kind: str) -> None:
    with torch.no_grad():
        for hook in module._forward_pre_hooks.values():  # pyright: ignore[reportPrivateUsage]
            if getattr(hook, "name", None) == name:
                hook(module, ())  # as in the forward pass
    weight = getattr(module, name).detach().clone()
    (nn.utils.remove_weight_norm if kind == "WeightNorm" else nn.utils.remove_spectral_norm)(module, name)
    getattr(module, name).data = weight


def aliases(model: nn.Module) -> dict[str, str]:
    """Every place of a parameter -> its name in `named_parameters()`.  Tied weights have several places and one name."""
    names = {id(p): name for name, p in model.named_parameters()}
    return {
        f"{path}.{key}" if path else key: names[id(p)]
        for path, module in model.named_modules()
        for key, p in module._parameters.items()  # pyright: ignore[reportPrivateUsage]
        if p is not None
    }


def first_line(e: BaseException) -> str:
    return next(iter(str(e).strip().splitlines()), "") or type(e).__name__
