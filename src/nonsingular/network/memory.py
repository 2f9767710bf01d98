"""memory.py - how much memory work may take, and what to do when it runs out: half as many examples at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor

log = logging.getLogger("nonsingular")

T = TypeVar("T")

BUDGET = 2**28
"""About how many bytes work may take beside the model and the examples; larger work is done in pieces.

Set it here (`nonsingular.network.memory.BUDGET = 2**32`); it is read at every call.  Results stay the same, up to rounding.
One function of one example is the smallest piece of a bound: a few times the largest activation, or the largest kernel.
"""


def room(like: Tensor) -> int:
    """Numbers of the dtype of `like` that fit into BUDGET."""
    return BUDGET // like.element_size()


def halving(run: Callable[[int], T], size: int) -> T:
    """run(size), and with half the size as often as memory runs out.  Raises what `run` raises, a lack of memory only at size 1.

    run: repeats its whole work at each call, `size` examples at a time.  Only errors that report a lack of memory are caught;
    where the system ends the process instead, runs/engine.py repeats the work.
    """
    while True:
        try:
            return run(size)
        except (MemoryError, RuntimeError) as e:
            if size <= 1 or not is_out_of_memory(e):
                raise
        size = (size + 1) // 2  # outside of `except`, whose traceback would keep the tensors of the failed run
        _tell(size)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@cache
def _tell(size: int) -> None:
    """Once: it may happen in every cell."""
    log.warning("out of memory: going on with %d examples at a time", size)


def is_out_of_memory(e: BaseException) -> bool:
    """torch has an error class for the memory of accelerators, but none for that of the CPU."""
    return isinstance(e, MemoryError | torch.cuda.OutOfMemoryError) or "can't allocate memory" in str(e)
