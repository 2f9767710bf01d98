"""onnx_batches.py - an ONNX file that was exported for one size of batch, as a network for any.

A file often fixes the batch to 1.  It is then read twice, once as it is and once for any batch, and the second is used
where it gives the same outputs; otherwise the first runs on one example after the other.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from nonsingular.errors import InvalidInput, UnsupportedModel
from nonsingular.models.onnx_file import File, Reader, Unfit, checked_proto, log, onnx_package

OPEN = ((64, 96), (224, 288), (32, 48), (28, 28), (16, 24))
"""Values tried for open sizes other than the batch: pairs, to see what depends on them."""


def module_of(file: File) -> nn.Module:
    """The module; its `input_shape` is that of one example, `left_out` the operator at its end that was left out, or None."""
    module: Any
    module, examples = _for_batches(file)
    if file.double:
        _warn_of_rounding(file, module, examples)
    module.input_shape, module.left_out = tuple(examples[1:]), file.left_out
    return module


def _for_batches(file: File) -> tuple[nn.Module, list[int]]:
    """The module, and the shape of three examples that it takes."""
    first, rest = file.shape[0], file.shape[1:]
    if first is None:
        return _of_any_batch(file)
    if None in rest:
        raise InvalidInput(f"the input of {file.path} has the shape {file.shape} with open sizes; export with fixed ones")
    shape = [n for n in file.shape if n is not None]
    exact = Reader(file, [shape], any_batch=False)
    batched = len(shape) > 1 and (first == 1 or exact.shape(exact.output)[:1] == (first,))
    alone = exact.module()
    try:
        wide = _wide(file, shape[1:] if batched else shape, first if batched else None)
    except UnsupportedModel as e:
        wide, why = None, str(e)
    else:
        why = "it gives other outputs in a larger batch"
    examples = shape[1:] if batched else shape
    if wide is not None and _same(alone, wide, examples, batched, first):
        return wide, [3, *examples]
    if batched and first > 1:
        raise InvalidInput(f"{file.path} is for batches of exactly {first} ({why}); export it with a dynamic batch")
    log.info("%s takes one example alone; each of a batch is run by itself, which is slower (%s)", file.path, why)
    return _one_by_one(alone, batched), [3, *examples]


def _of_any_batch(file: File) -> tuple[nn.Module, list[int]]:
    last: UnsupportedModel | None = None
    for shapes in _guesses(file):
        try:
            wide = _finish(Reader(file, shapes, any_batch=True))
        except Unfit as e:
            last = e
            continue
        _check_independent(file, wide, shapes[0][1:])
        return wide, [3, *shapes[0][1:]]
    if None in file.shape[1:]:
        raise InvalidInput(
            f"the input of {file.path} has open sizes, and none that were tried fit; export with fixed ones ({last})"
        )
    try:
        exact = Reader(file, [[1, *(n or 1 for n in file.shape[1:])]], any_batch=False)
    except UnsupportedModel:
        raise last or InvalidInput(f"{file.path} cannot be read") from None
    if exact.shape(exact.output)[:1] != (1,):
        raise last or InvalidInput(f"{file.path} cannot be read")
    log.info("%s works for one example alone; each of a batch is run by itself, which is slower (%s)", file.path, last)
    return _one_by_one(exact.module(), True), [3, *(n or 1 for n in file.shape[1:])]


def _guesses(file: File) -> Iterator[list[list[int]]]:
    """Shapes of two probes: of 2 and of 3 examples, with open sizes as they may be."""
    rest = file.shape[1:]
    widths = [1, 3, *sorted({n for c in file.constants.values() if c.dim() in (2, 4) for n in c.shape[:2]})]
    if None not in rest:
        yield [[b, *(n for n in rest if n is not None)] for b in (2, 3)]
        return
    features = [(w, w) for w in widths[:12]] if rest[0] is None else [(rest[0], rest[0])]
    others = OPEN if None in rest[1:] else OPEN[:1]
    for wide, other in itertools.product(features, others):
        yield [[2 + i, wide[i], *(other[i] if n is None else n for n in rest[1:])] for i in (0, 1)]


def _wide(file: File, example: Sequence[int], fixed: int | None) -> nn.Module:
    """The file for any batch; fixed: the batch that it is for, None if it has none."""
    return _finish(Reader(file, [[b, *example] for b in (2, 3)], any_batch=True, fixed=fixed, added=fixed is None))


def _finish(reader: Reader) -> nn.Module:
    """The module, with logits (B, K)."""
    output = reader.output
    shapes = [tuple(v.shape) for v in reader.seen[output]]
    batches = [v.shape[0] for v in next(iter(reader.seen.values()))]
    if any(len(s) == 0 for s in shapes) or [s[0] for s in shapes] != batches:
        raise Unfit(f"the output of {reader.path} has the shape {shapes[0]} for {batches[0]} examples")
    shape = shapes[0]
    if len(shape) == 1:
        reader.output = reader.call(torch.unsqueeze, output, 1)
    elif len(shape) > 2 and sum(n != 1 for n in shape[1:]) <= 1:
        reader.output = reader.call(torch.flatten, output, 1)
    return reader.module()


def _one_by_one(alone: nn.Module, batched: bool) -> nn.Module:
    """A module that runs another, which takes a single example, on each example of a batch."""
    example: Any = type(alone).forward

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        if isinstance(x, fx.Proxy):
            raise UnsupportedModel("its ONNX file takes one example alone; export it with a dynamic batch")
        return torch.cat([_as_logits(example(self, part if batched else part[0])) for part in x.split(1)])

    alone.__class__ = type("OneByOneFromOnnx", (nn.Module,), {"forward": forward})
    return alone


def _as_logits(y: Tensor) -> Tensor:
    """(1, K) of what a single example gives; images stay images."""
    return y.reshape(1, -1) if sum(n != 1 for n in y.shape) <= 1 else y if y.shape[0] == 1 else y[None]


def _random(shape: Sequence[int]) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def _same(alone: nn.Module, wide: nn.Module, example: Sequence[int], batched: bool, batch: int) -> bool:
    """Whether both give the same outputs, up to rounding."""
    examples = batch if batched and batch > 1 else 3
    x = _random([examples, *example])
    with torch.no_grad():
        if batched and batch > 1:
            want = alone(x).reshape(batch, -1)
        else:
            want = torch.cat([_as_logits(alone(part if batched else part[0])) for part in x.split(1)])
        try:
            found = wide(x)
        except RuntimeError:
            return False
    return found.numel() == want.numel() and _close(found.reshape(want.shape), want)


def _check_independent(file: File, wide: nn.Module, example: Sequence[int]) -> None:
    """Raises InvalidInput if the outputs of an example change with the others in its batch."""
    x = _random([3, *example])
    with torch.no_grad():
        before = wide(x)[:1]
        after = wide(torch.cat([x[:1], 1 - x[1:]]))[:1]
    if not _close(before, after):
        raise InvalidInput(
            f"{file.path} mixes the examples of a batch: the outputs of one depend on the others; export one that does not"
        )


def _warn_of_rounding(file: File, module: nn.Module, shape: Sequence[int]) -> None:
    """A file of float64 is read as float32: says so where that changes its outputs."""
    x = _random(shape)
    with torch.no_grad():
        try:
            found, want = module(x), copy.deepcopy(module).double()(x.double())
        except RuntimeError:  # a constant of the graph stays float32
            return
    if not _close(found.double(), want):
        off = (found - want).abs().amax()
        log.warning("%s is in float64, and float32, in which it runs here, changes its outputs by up to %.2g", file.path, off)


def _close(found: Tensor, want: Tensor) -> bool:
    scale = want.nan_to_num(0, 0, 0).abs().amax() + 1
    return torch.allclose(found / scale, want / scale, rtol=1e-3, atol=1e-4, equal_nan=True)


def load_onnx(path: Path) -> nn.Module:
    """The network of an ONNX file: (B, *input) -> (B, K), differentiable, in eval mode and float32; *input is its `input_shape`.

    A softmax or argmax at the very end is left out, with a line in the log: margins are of logits.
    Raises InvalidInput for a damaged file and for several inputs or outputs, UnsupportedModel for an operator without a rule,
    which it names with its node.  Needs the package onnx (extra `onnx`).  Cost: a few forward passes.
    """
    onnx = onnx_package()
    proto = checked_proto(onnx, path)
    try:
        return module_of(File(onnx, proto, path))
    except InvalidInput:
        raise
    except Exception as e:  # a checked file may still be one that no exporter writes
        raise InvalidInput(f"{path} cannot be read as a network ({type(e).__name__}: {e}); export the model again") from e
