"""engine.py - where calls run: in this process, in processes of this machine, or on a Ray cluster.  The bits are the same.

What is submitted is a function of a module and arguments that can be pickled.  It may be done twice: when the worker that did it
dies before it has answered, the call is done again by another.  So it must give the same result each time.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout, suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import version
from multiprocessing import active_children, get_context, parent_process
from multiprocessing.process import BaseProcess
from typing import Any, ParamSpec, TypeVar

import torch

from nonsingular.errors import InvalidInput

ENGINES = ("local", "ray")
DEATHS = 3
"""A call that has lost this many workers is given up."""

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Workplace:
    """Where the work of a run is done, as `engine` takes it.  No result depends on it."""

    workers: int = 1
    engine: str = "local"
    address: str | None = None

    def open(self) -> AbstractContextManager[Executor | None]:
        """See `engine`."""
        return engine(self.engine, self.workers, self.address)


@contextmanager
def engine(name: str, workers: int, address: str | None = None) -> Generator[Executor | None]:
    """An executor of `workers` processes with one torch thread each; None for one local worker: then call the function here.

    name: "local", or "ray", which starts a Ray of `workers` CPUs on this machine, or joins the cluster at `address`: then its
    CPUs decide how many calls run at once, and `workers` is not used.
    What a node of a cluster needs: the same versions of nonsingular, torch, Python and Ray, a processor with the same vector
    instructions, and the folders of data, models and runs under the same paths.  What is printed meanwhile goes to stderr.  On an
    error, on Ctrl-C, and on a signal that cli/main.py treats as Ctrl-C, unfinished calls are given up, and every process that was
    started here ends.
    A call that loses DEATHS workers fails with BrokenExecutor.
    Raises InvalidInput for an unknown name, less than one worker, Ray that is not installed, or an address where no cluster
    answers.

    Small matrices run far slower on many threads than on one, and with one the bits do not depend on the number of cores.
    """
    if name not in ENGINES:
        raise InvalidInput(f"there is no engine '{name}'; choose one of {', '.join(ENGINES)}")
    if workers < 1:
        raise InvalidInput(f"workers is {workers}; give 1 or more")
    if name == "local" and address is not None:
        raise InvalidInput(f"address is {address}, and engine local takes none; choose engine ray, or leave the address out")
    torch.set_num_threads(1)
    if name == "local" and workers == 1:
        yield None
        return
    # stdout belongs to the caller: Ray's messages there, such as the death of a node, go to stderr
    with redirect_stdout(sys.stderr) if name == "ray" else nullcontext():
        pool = Cluster(workers, address) if name == "ray" else Processes(workers)
        try:
            yield pool
        except BaseException:
            pool.stop()
            raise
        pool.shutdown()


def _lost() -> BrokenExecutor:
    return BrokenExecutor(
        f"{DEATHS} worker processes died over one call (killed, or out of memory); what is finished is kept: "
        "run again, with fewer workers or more memory"
    )


# --- processes of this machine --------------------------------------------------------------------------------------------


class Processes(ThreadPoolExecutor):
    """Threads with one process each, which does one call at a time: when it dies, the call to repeat is known."""

    def __init__(self, workers: int) -> None:
        super().__init__(workers)
        self.workers = workers
        self._own, self._starting, self._stopped = threading.local(), threading.Lock(), False
        self._pools: list[ProcessPoolExecutor] = []
        self._children: set[BaseProcess] = set()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future = super().submit(self._carry_out, fn, args, kwargs)
        future.add_done_callback(self._tell)
        return future

    def _tell(self, future: Future[Any]) -> None:
        """Wakes who waits for a call that `stop` took out of the queue: no thread will do so."""
        if self._stopped and future.cancelled():
            future.set_running_or_notify_cancel()

    def _carry_out(self, fn: Callable[..., T], args: Any, kwargs: Any) -> T:
        for _ in range(DEATHS):
            try:
                return self._pool().submit(fn, *args, **kwargs).result()
            except BrokenExecutor:
                self._own.pool = None
        raise _lost()

    def _pool(self) -> ProcessPoolExecutor:
        """This thread's process, started where there is none."""
        pool: ProcessPoolExecutor | None = getattr(self._own, "pool", None)
        if pool is None:
            with self._starting:
                if self._stopped:
                    raise _lost()
                before = set(active_children())
                with _interrupts_blocked():  # also while the tracker of multiprocessing starts, which ignores no SIGHUP by itself
                    pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_start_worker)
                    pool.submit(os.getpid)  # this starts it
                self._children |= set(active_children()) - before
                self._pools.append(pool)
            self._own.pool = pool
        return pool

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        super().shutdown(wait=wait, cancel_futures=cancel_futures)
        for pool in self._pools:
            pool.shutdown(wait=wait, cancel_futures=cancel_futures)

    def stop(self) -> None:
        """Gives up unfinished calls."""
        with self._starting:
            self._stopped = True
        self.shutdown(wait=False, cancel_futures=True)
        for child in self._children:
            child.terminate()


@contextmanager
def _interrupts_blocked() -> Generator[None]:
    """Blocks Ctrl-C and hang-ups for processes started inside the context: the parent handles these."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends a worker whose parent was killed: otherwise it would wait for work for ever."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


# --- one process with a deadline ------------------------------------------------------------------------------------------


def watched(fn: Callable[..., None], *args: Any, seconds: float) -> Generator[Any]:
    """Yields what fn(send, *args) sends from a separate process, until it returns, dies, or `seconds` after its first message.

    The process is then ended in any case.  Raises what `fn` raises; BrokenExecutor if it dies before its first message.
    """
    context = get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    child = context.Process(target=_watched, args=(sending, fn, args), daemon=True)
    with _interrupts_blocked():
        child.start()
    sending.close()
    end: float | None = None
    try:
        while receiving.poll(None if end is None else max(0.0, end - time.monotonic())):
            kind, value = receiving.recv()
            if kind == "raised":
                raise value
            if kind == "returned":
                return
            end = time.monotonic() + seconds if end is None else end
            yield value
    except EOFError:  # it was killed: out of memory, say
        if end is None:
            raise BrokenExecutor("the process of the estimate died (killed, or out of memory)") from None
    finally:
        child.kill()
        child.join()
        receiving.close()


def _watched(sending: Any, fn: Callable[..., None], args: tuple[Any, ...]) -> None:
    _start_worker()
    with suppress(ImportError):  # torch.fx makes progress bars, whose lock is a semaphore that an ended process leaves behind
        import_module("tqdm").tqdm.set_lock(threading.RLock())

    def send(value: Any) -> None:
        sending.send(("sent", value))

    try:
        fn(send, *args)
        sending.send(("returned", None))
    except Exception as e:
        sending.send(("raised", e))


# --- Ray ------------------------------------------------------------------------------------------------------------------


class Cluster(Executor):
    """Calls as tasks of Ray, one CPU each, done again where a worker or its node dies."""

    def __init__(self, workers: int, address: str | None) -> None:
        self._ray = _ray(workers, address)
        self._task = self._ray.remote(num_cpus=1, max_retries=DEATHS - 1)(_task)
        self._waiting: dict[Any, Future[Any]] = {}

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        # pickled here: from Ray's own store, arrays would come back read-only
        ref = self._task.remote(os.getcwd(), kind(), self._ray.cloudpickle.dumps((fn, args, kwargs)))
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()
        self._waiting[ref] = future
        ref.future().add_done_callback(partial(self._hand_over, ref))
        return future

    def _hand_over(self, ref: Any, answer: Future[bytes]) -> None:
        future, errors = self._waiting.pop(ref), self._ray.exceptions
        try:
            future.set_result(pickle.loads(answer.result()))
        except errors.RayTaskError as e:  # raised by the function
            future.set_exception(e.cause)
        except errors.RayError as e:  # raised by Ray itself
            lost = _lost()
            lost.__cause__ = e
            future.set_exception(lost)
        except BaseException as e:  # otherwise the caller waits for ever
            future.set_exception(e)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        if cancel_futures:
            for ref in list(self._waiting):
                self._ray.cancel(ref, force=True)
        if wait:
            wait_for(list(self._waiting.values()))
        self._ray.shutdown()  # leaves a cluster that was joined, ends one that was started here

    def stop(self) -> None:
        """Gives up unfinished calls."""
        self.shutdown(wait=False, cancel_futures=True)


def _ray(workers: int, address: str | None) -> Any:
    """The module `ray`, joined to a cluster.  Raises InvalidInput where that cannot be."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # sends nothing anywhere
    try:
        ray = import_module("ray")
    except ImportError:
        raise InvalidInput("engine ray needs the package ray; pip install 'nonsingular[ray]', or choose engine local") from None
    quiet = {"logging_level": "warning", "log_to_driver": False}
    try:  # without an answer in time, Ray raises SystemExit
        if address is None:
            ray.init(address="local", num_cpus=workers, include_dashboard=False, **quiet)
        else:
            _knock(address)
            ray.init(address=address, **quiet)
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError, SystemExit) as e:
        what = "Ray cannot be started here" if address is None else f"no Ray cluster can be joined at {address}"
        why = str(e).strip().partition("\n")[0].rstrip(".")
        ask = "see 'ray start', 'ray status' and 'ray get-auth-token', or choose engine local"
        raise InvalidInput(f"{what} ({why}); {ask}") from e
    return ray


def _knock(address: str) -> None:
    """Raises OSError at an address where nothing listens: Ray would wait for two minutes, and then end the process."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.removeprefix("ray://").strip("[]"), int(port)), timeout=10).close()


def kind() -> dict[str, str]:
    """Versions and hardware on which the bits of a result depend."""
    return {"nonsingular": version("nonsingular"), "torch": torch.__version__, "CPU": torch.backends.cpu.get_cpu_capability()}


def _task(folder: str, asked: dict[str, str], call: bytes) -> bytes:
    """The pickled result of a pickled call, done on a node in the caller's folder."""
    if kind() != asked:
        raise InvalidInput(
            f"{socket.gethostname()} has {kind()} and would compute other bits than {asked}; use nodes of one kind"
        )
    if not os.path.isdir(folder):
        raise InvalidInput(f"{socket.gethostname()} has no folder {folder}; share it among the nodes under the same path")
    os.chdir(folder)
    torch.set_num_threads(1)
    fn, args, kwargs = pickle.loads(call)
    return pickle.dumps(fn(*args, **kwargs))
