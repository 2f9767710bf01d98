"""spread.py - one cell on several processes of this machine: x̂ lies in files that all of them map; sums and margins travel.

Each call is a few chunks of examples (attacks/search/crew.py).  It reads some files and writes others, so it may be done again
when the process that did it dies.
"""

from __future__ import annotations

import io
import os
import pickle
import shutil
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import wait
from contextlib import suppress
from functools import lru_cache
from itertools import count
from pathlib import Path
from secrets import token_hex
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from nonsingular.evaluation.execution import Execution, Submit
from nonsingular.evaluation.problem import Case, Method
from nonsingular.evaluation.stored import FOLDER as PERTURBATIONS
from nonsingular.network.calling import logits_at
from nonsingular.network.network import Network
from nonsingular.network.passes import count as count_passes
from nonsingular.threat.ball import JointBall
from nonsingular.threat.grid import Grid
from nonsingular.threat.interval import Interval
from nonsingular.threat.perturbation import Perturbation

T = TypeVar("T")
FOLDER = "x-hat"
"""Where the files lie, in the folder of perturbations.  They are removed at the end, or where the next run begins."""
EACH = 1024
"""A cell is divided where every worker gets so many examples or more; logits are those of so many at a time (calling.py)."""

MANY = 8192
"""With so many examples a worker every cell is divided: whole ones would need memory for as many x̂ as there are workers."""


def divides(examples: int, ready: int, workers: int) -> bool:
    """Whether workers do each of the cells that are ready together, while none is attacked."""
    return ready < workers or examples >= MANY * workers


def crew_of(case: Case, execution: Execution) -> Spread | None:
    """Workers that divide a cell of this case; None where there are none, or for few examples."""
    workers, submit, log = execution.workers, execution.submit, execution.log
    if workers < 2 or submit is None or log is None or len(case) < EACH * workers or case.x.device.type != "cpu":
        return None
    return Spread(case, submit, workers, log.parent / PERTURBATIONS / FOLDER)


class Spread:
    """The crew of a case: calls of `submit`, each of which does `spread_call` with the same case in some process."""

    def __init__(self, case: Case, submit: Submit, workers: int, folder: Path) -> None:
        """folder: emptied now, and by `close`."""
        self._case, self._submit, self._workers, self._folder = case, submit, workers, folder
        self._files = dict[tuple[int, int], str]()  # address and bytes -> file
        self._free = dict[int, list[str]]()  # bytes -> files that nothing refers to any more
        self._box: tuple[JointBall, Interval] | None = None
        self._names = (f"{token_hex(8)}-{k}" for k in count())  # no worker knows an older file of this name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    def close(self) -> None:
        """Removes the files.  What is in memory of them stays there."""
        self._box = None
        shutil.rmtree(self._folder, ignore_errors=True)
        with suppress(OSError):  # there are perturbations
            self._folder.parent.rmdir()

    @property
    def workers(self) -> int:
        return self._workers

    def empty(self) -> Tensor:
        return self._file(self._case.x)

    def seen(self, t: Tensor) -> Tensor:
        return t if _place(t) in self._files and t.is_contiguous() else self._file(t).copy_(t)

    def box(self, ball: JointBall) -> Interval:
        inputs = ball.scaled(1.0, 0.0)
        if self._box is None or self._box[0] != inputs:
            self._box = None  # its files can be used again
            box = Interval(self.empty(), self.empty())
            self.do(_boxed, [(inputs, box, at) for at in self._parts()])
            self._box = inputs, box
        return self._box[1]

    def logits(self, point: Perturbation) -> Tensor:
        """`logits_at` the network, where all share W'."""
        count_passes(forward=len(point.x))
        point = Perturbation(self.seen(point.x), dict(point.weights), point.scope)
        return torch.cat(self.do(_logits, [(point, at) for at in self._parts()]))

    def do(self, work: Callable[..., T], todo: Sequence[tuple[Any, ...]]) -> list[T]:
        running = [self._submit("spread_call", _dumped((work, args), self._files)) for args in todo]
        wait(running)  # also after an error: nobody writes into files that are used again
        return [_loaded(future.result()) for future in running]

    def _parts(self) -> list[slice]:
        """All examples, about two parts a worker."""
        n = len(self._case)
        size = max(1, n // (2 * self._workers * EACH)) * EACH
        return [slice(i, min(i + size, n)) for i in range(0, n, size)]

    def _file(self, like: Tensor) -> Tensor:
        size = like.numel() * like.element_size()
        free = self._free.setdefault(size, [])
        if free:
            name = free.pop()
        else:
            name = str(self._folder / next(self._names))
            _allocate(name, size)
        mapped = np.memmap(name, dtype=np.uint8, mode="r+", shape=(size,))
        t = torch.from_numpy(mapped).view(like.dtype).view(like.shape)  # it holds `mapped` as long as anything uses its memory
        self._files[_place(t)] = name
        weakref.finalize(mapped, _forget, self._files, free, _place(t), name)
        return t


def _place(t: Tensor) -> tuple[int, int]:
    """Address and bytes of a tensor."""
    return t.data_ptr(), t.numel() * t.element_size()


def _allocate(name: str, size: int) -> None:
    """A file of this size.  Raises OSError where there is no room: a write into it would end the process."""
    with open(name, "wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)


def _forget(files: dict[tuple[int, int], str], free: list[str], place: tuple[int, int], name: str) -> None:
    del files[place]
    free.append(name)


# --- in a worker ----------------------------------------------------------------------------------------------------------


def spread_call(case: Case, grid: Grid, method: Method, call: bytes) -> bytes:
    """The result of a call of `Spread.do`."""
    work, args = _loaded(call)
    return _dumped(work(case.network, case.x, case.y, *args), {})


def _boxed(network: Network, x: Tensor, y: Tensor, ball: JointBall, into: Interval, at: slice) -> None:
    box = ball.input_box(x[at])
    into.lo[at], into.hi[at] = box.lo, box.hi


def _logits(network: Network, x: Tensor, y: Tensor, point: Perturbation, at: slice) -> Tensor:
    return logits_at(network, point.part(at), EACH)


class _Pickler(pickle.Pickler):
    """Tensors as names of files where they are one, else as bytes: torch would send them in shared memory, which is scarce."""

    def __init__(self, into: io.BytesIO, files: dict[tuple[int, int], str]) -> None:
        super().__init__(into, protocol=5)
        self._files = files

    def persistent_id(self, obj: Any) -> Any:
        if not isinstance(obj, Tensor):
            return None
        t = obj.detach().contiguous()
        name = self._files.get(_place(t)) if t.numel() else None
        data = t.reshape(-1).view(torch.uint8).numpy() if name is None else None
        return name, data, tuple(t.shape), t.dtype


class _Unpickler(pickle.Unpickler):
    def persistent_load(self, pid: Any) -> Tensor:
        name, data, shape, dtype = pid
        if 0 in shape:
            return torch.empty(shape, dtype=dtype, device="cpu")  # a crew works on the CPU alone (crew_of)
        whole = torch.from_numpy(data.copy()) if name is None else _mapped(name)
        return whole.view(dtype).view(shape)


@lru_cache(maxsize=64)
def _mapped(name: str) -> Tensor:
    return torch.from_numpy(np.memmap(name, dtype=np.uint8, mode="r+"))


def _dumped(value: Any, files: dict[tuple[int, int], str]) -> bytes:
    into = io.BytesIO()
    _Pickler(into, files).dump(value)
    return into.getvalue()


def _loaded(data: bytes) -> Any:
    return _Unpickler(io.BytesIO(data)).load()
