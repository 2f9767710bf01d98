"""vocabulary.py - torch's operations by name, as far as a recording has to tell them apart."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


METADATA = _words(
    "size dim shape ndim ndimension dtype device layout is_cuda is_cpu is_floating_point is_complex numel nelement element_size "
    "itemsize nbytes stride is_contiguous requires_grad requires_grad_ is_sparse is_quantized is_nested is_meta len get_device "
    "is_tensor names has_names is_leaf grad_fn repr format str dim_order hash set_grad_enabled is_inference is_same_size "
    "is_conj is_neg is_mkldnn is_xla is_mps is_ipu is_xpu is_vulkan is_storage is_signed"
)
"""Operations that read no value.  (Printed text is taken not to come back into the network.)"""
CONSTANT = _words(
    "zeros_like ones_like full_like empty_like new_zeros new_ones new_full new_empty new_tensor rand_like randn_like"
)
"""Operations that take a tensor for its shape and kind alone."""
SHAPED = _words("to type_as expand_as view_as reshape_as")
"""Operations that take their second tensor for its shape and kind alone."""
CASTS = _words("to type type_as float double half bfloat16 cpu cuda")
SAME = _words("contiguous clone detach data alias positive")
"""Operations that give their argument."""
SELECTIONS = _words(
    "chunk split split_with_sizes hsplit vsplit dsplit unbind getitem narrow select index_select gather take_along_dim "
    "flip fliplr flipud roll expand expand_as repeat tile repeat_interleave broadcast_to t T mT adjoint H mH swapaxes swapdims "
    "moveaxis movedim transpose permute diagonal unfold rot90 view view_as reshape reshape_as flatten unflatten ravel squeeze "
    "unsqueeze pixel_shuffle pixel_unshuffle channel_shuffle as_strided atleast_1d atleast_2d atleast_3d broadcast_tensors "
    "native_channel_shuffle tensor_split movedim"
)
"""Operations whose every output element is one of the elements of their first argument."""
NATIVE = _words("permute transpose swapaxes swapdims movedim moveaxis pixel_shuffle pixel_unshuffle channel_shuffle flip mT")
"""The operations above whose arguments do not depend on the size of the batch: quicker to run than an index."""
CAREFUL = _words(
    "relu relu6 clamp clip clamp_min clamp_max add sub subtract mul multiply div divide true_divide sigmoid tanh abs "
    "neg negative leaky_relu elu celu selu silu hardtanh hardswish hardsigmoid threshold rrelu dropout dropout1d dropout2d "
    "dropout3d alpha_dropout masked_fill"
)
"""Operations whose rule also holds when they write their result into an argument."""


def name_of(func: Any) -> str:
    """The name of a function, of a method, or of the attribute that it reads: `add`, `setitem`, `relu_`, `shape`."""
    return _labels.get(func) or _labels.setdefault(func, _labelled(func))


_labels: dict[Any, str] = {}


def _labelled(func: Any) -> str:
    name: str = getattr(func, "__name__", str(func))
    if not _of_torch(func, name):
        return f"{getattr(func, '__module__', None) or type(func).__name__}.{name}"
    if name in ("__get__", "__set__", "__delete__"):
        attribute: str = getattr(func.__self__, "__name__", "attribute")
        return attribute if name == "__get__" else f"{attribute} ="
    return name.strip("_") if name.startswith("__") else name


def _of_torch(func: Any, name: str) -> bool:
    """Whether a function is torch's own of that name, not a custom operator of the same name."""
    places = (torch.Tensor, torch, nn.functional)
    if name in ("__get__", "__set__", "__delete__") or getattr(func, "__module__", None) == "torch._C._nn":
        return True
    if getattr(torch.Tensor, f"__{name}__", None) is func:  # **
        return True
    return any(getattr(place, name, None) is func or getattr(place, name, None) == func for place in places)
