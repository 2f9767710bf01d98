"""torch_data.py - a pair of arrays, a torch Dataset or a DataLoader -> two tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, SequentialSampler, default_collate

from nonsingular.errors import InvalidInput

EXPECTED = "give (x, y), two tensors or arrays; a torch.utils.data.Dataset of (x, y); or a DataLoader of them"


def tensors(data: Any) -> tuple[Tensor, Tensor]:
    """All inputs and labels, in the order of the data; dtypes are kept.

    A DataLoader that shuffles is read in the order of its dataset, with its last batch: the same in every run.
    Raises InvalidInput for a loader that draws examples at random, a dataset whose x changes from read to read (random
    augmentation), examples that are not (x, y), and different shapes.
    """
    if isinstance(data, DataLoader):
        return _from_loader(data)
    if _is_pair(data):
        return _tensor("x", data[0]), _tensor("y", data[1])
    if isinstance(data, IterableDataset):
        return _gathered(map(_single, enumerate(data)))
    if (
        hasattr(data, "__getitem__")
        and hasattr(data, "__len__")
        and not isinstance(data, str | bytes | dict | Tensor | np.ndarray)
    ):
        return _from_dataset(data)
    hint = f". From a name or path: ns.load({str(data)!r}).test" if isinstance(data, str | PurePath) else ""
    raise InvalidInput(f"data is {_kind(data)}; {EXPECTED}{hint}")


def _is_pair(data: Any) -> bool:
    """Whether the data are (x, y) rather than a list of two examples."""
    return isinstance(data, tuple | list) and len(data) == 2 and not all(isinstance(part, tuple) for part in data)


def _tensor(name: str, values: Any) -> Tensor:
    try:
        if hasattr(values, "__array__") and not isinstance(values, Tensor):  # NumPy, pandas, ...
            array = np.asarray(values)
            wide = array.astype(np.int64) if array.dtype.kind == "u" and array.dtype.itemsize > 1 else array
            native = wide.astype(wide.dtype.newbyteorder("="), copy=False)
            values = np.require(native, requirements=("C", "W"))  # torch refuses negative strides, and warns of read-only memory
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError, OverflowError) as e:
        raise InvalidInput(f"{name} is {_kind(values)}, not an array of numbers ({str(e).splitlines()[0]}); {EXPECTED}") from e


def _from_dataset(data: Any) -> tuple[Tensor, Tensor]:
    if not len(data):
        raise InvalidInput("the data set is empty; give at least one example")
    _check_still(lambda: _single((0, data[0])))
    return _gathered(_single((i, data[i])) for i in range(len(data)))


def _check_still(look: Callable[[], tuple[Tensor, Tensor]]) -> None:
    """Reads the first example twice; raises InvalidInput if the two differ."""
    first, again = look()[0], look()[0]
    if first.shape != again.shape or not torch.equal(first.nan_to_num(), again.nan_to_num()):
        raise InvalidInput(
            "the first example of the data set changes when it is read again: a random transform (augmentation)? "
            "Give the data set with its transforms for testing"
        )


def _from_loader(loader: DataLoader[Any]) -> tuple[Tensor, Tensor]:
    data, batches = loader.dataset, loader.batch_sampler
    if batches is None:  # the data set gives examples, or whole batches, itself
        return _gathered(_batch(b) if _is_batch(b) else _single((i, b)) for i, b in enumerate(_in_order(data)))
    if isinstance(data, IterableDataset):
        return _gathered(map(_batch, loader))
    sampler = batches.sampler if type(batches) is BatchSampler else batches
    whole = isinstance(sampler, RandomSampler) and not sampler.replacement and sampler.num_samples == len(data)  # pyright: ignore[reportArgumentType]
    if not whole and not isinstance(sampler, SequentialSampler):
        raise InvalidInput(
            f"the DataLoader draws its examples by {type(sampler).__name__}: which ones cannot be known beforehand; "
            "give its dataset, or a torch.utils.data.Subset of it"
        )
    _check_still(lambda: _batch(loader.collate_fn([data[0]])))
    in_order: DataLoader[Any] = DataLoader(
        data, batch_size=loader.batch_size or 128, num_workers=loader.num_workers, collate_fn=loader.collate_fn,
        worker_init_fn=loader.worker_init_fn, multiprocessing_context=loader.multiprocessing_context,
    )  # fmt: skip
    try:
        return _gathered(map(_batch, in_order))
    except RuntimeError as e:  # torch's collate, for shapes that differ
        raise InvalidInput(
            f"a batch of the DataLoader cannot be put together: {str(e).splitlines()[0]}; give examples of one shape"
        ) from e


def _in_order(data: Any) -> Iterable[Any]:
    return data if isinstance(data, IterableDataset) else (data[i] for i in range(len(data)))


def _is_batch(item: Any) -> bool:
    """Whether a batch is (x, y) with several labels rather than one."""
    return isinstance(item, tuple | list) and len(item) == 2 and getattr(item[1], "ndim", 0) > 0


def _batch(batch: Any) -> tuple[Tensor, Tensor]:
    if not isinstance(batch, Sequence) or len(batch) != 2:
        raise InvalidInput(f"the DataLoader gives {_kind(batch)}; expected batches (x, y)")
    return _tensor("x of a batch", batch[0]), _tensor("y of a batch", batch[1])


def _single(numbered: tuple[int, Any]) -> tuple[Tensor, Tensor]:
    """One example as a batch of one."""
    i, example = numbered
    if not isinstance(example, tuple | list) or len(example) != 2:
        raise InvalidInput(f"example {i} of the data set is {_kind(example)}; expected (x, y), an input and a class index")
    try:
        x, y = default_collate([example])
    except (TypeError, ValueError, RuntimeError, OverflowError) as e:
        kinds = f"({_kind(example[0])}, {_kind(example[1])})"
        hint = "; an image? Give the data set a transform to tensors" if hasattr(example[0], "getbands") else ""
        raise InvalidInput(f"example {i} of the data set is {kinds}; expected tensors or arrays of numbers{hint}") from e
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        raise InvalidInput(
            f"example {i} of the data set is ({_kind(example[0])}, {_kind(example[1])}); expected an array and a class index"
        )
    return x, y


def _gathered(batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    xs: list[Tensor] = []
    ys: list[Tensor] = []
    n = 0
    for x, y in batches:
        if xs and x.shape[1:] != xs[0].shape[1:]:
            raise InvalidInput(
                f"example {n} has shape {tuple(x.shape[1:])}, the first {tuple(xs[0].shape[1:])}; "
                "give all one shape (resize, pad or cut)"
            )
        if ys and y.shape[1:] != ys[0].shape[1:]:
            raise InvalidInput(f"the label of example {n} has shape {tuple(y.shape[1:])}; expected one class index for each")
        xs.append(x)
        ys.append(y)
        n += len(x)
    if not n:
        raise InvalidInput("the data set is empty; give at least one example")
    return torch.cat(xs), torch.cat(ys)


def _kind(value: Any) -> str:
    """What a value is, for a message."""
    shape = f" of shape {tuple(value.shape)}" if isinstance(value, Tensor | np.ndarray) else ""
    keys = f" with keys {sorted(map(str, value))[:6]}" if isinstance(value, dict) else ""
    length = f" of {len(value)}" if isinstance(value, tuple | list) else ""
    return f"a {type(value).__name__}{shape}{keys}{length}"
