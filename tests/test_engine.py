"""Where the work is done: this process, others of this machine, Ray.  The bits are the same, also when workers or nodes die."""

import json
import os
import pickle
import secrets
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import BrokenExecutor, ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from multiprocessing import active_children
from pathlib import Path
from threading import Thread

import pytest

from nonsingular.cli.main import main
from nonsingular.errors import InvalidInput
from nonsingular.results.files import Log
from nonsingular.runs.engine import DEATHS, Workplace, _task, engine, kind
from nonsingular.runs.evaluate import Told, evaluate_run
from nonsingular.settings import EvaluateSettings, checked

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="pip install 'nonsingular[ray]'")
CELLS = 25
TOKEN = secrets.token_hex(32)  # Ray reads it once in each process


@pytest.fixture(autouse=True)
def _nobody_stays_behind():
    yield
    end = time.monotonic() + 10
    while active_children():
        assert time.monotonic() < end
        time.sleep(0.01)
    assert "ray" not in sys.modules or not sys.modules["ray"].is_initialized()


@pytest.fixture
def quiet_ray(monkeypatch):
    """Ray with a token of the tests' own, in place of one in the home folder."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")


GATED = f"""
import os, time
from pathlib import Path
from nonsingular.models.loading import load_run
HERE = Path(__file__).parent

def net():
    if os.getpid() != {os.getpid()}:
        (HERE / f"{{os.getpid()}}.at-work").touch()
        while (HERE / "gate").exists():
            time.sleep(0.01)
    return load_run(HERE / "net")[0]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small network, and model.py that loads it: where there is a file `gate`, workers say that they are there and wait."""
    folder = tmp_path_factory.mktemp("engine")
    assert main(f"train --data digits --epochs 1 --hidden 16 --quiet --out {folder}/net".split()) == 0
    (folder / "model.py").write_text(GATED)
    return folder


@pytest.fixture(scope="module")
def settings(folder):
    given = {"model": f"{folder}/model.py:net", "data": "digits", "limit": 200, "scope": "sample", "certify": "crown"}
    return checked(EvaluateSettings, {**given, "eps_x": "0:0.1:5", "eps_w": "0:0.02:5"})


@contextmanager
def struck(folder, strike):
    """Calls strike(ids of the workers) once two of them are in the middle of a call, and lets the others go on."""
    for mark in folder.glob("*.at-work"):
        mark.unlink()

    def wait():
        end = time.monotonic() + 60
        while len(marks := list(folder.glob("*.at-work"))) < 2:
            assert time.monotonic() < end
            time.sleep(0.01)
        strike([int(mark.stem) for mark in marks])

    (folder / "gate").touch()
    with ThreadPoolExecutor(1) as thread:
        struck = thread.submit(wait)
        struck.add_done_callback(lambda _: (folder / "gate").unlink())
        yield
        struck.result()


@pytest.fixture(scope="module")
def alone(settings, tmp_path_factory):
    """What this process finds."""
    out = tmp_path_factory.mktemp("alone") / "run"
    return bits(evaluate_run(settings, out, Workplace()), out)


def bits(results, out):
    """Everything but times: the surfaces, and every cell and piece on disk, in a fixed order."""

    def timeless(value):
        if isinstance(value, dict):
            return {k: timeless(v) for k, v in value.items() if k != "seconds"}
        return [timeless(v) for v in value] if isinstance(value, list) else value

    (model,) = results["models"].values()
    entries = [json.dumps(timeless(entry), sort_keys=True) for entry in Log(out / "events.jsonl")]
    return timeless(model["surfaces"]), sorted(entries)


# ---------------------------------------------------------------- death


@pytest.mark.slow
def test_two_processes_find_the_same_bits_when_one_is_killed_in_the_middle(folder, settings, alone, tmp_path):
    with struck(folder, lambda workers: os.kill(workers[0], signal.SIGKILL)):
        found = evaluate_run(settings, tmp_path / "run", Workplace(2))
    assert bits(found, tmp_path / "run") == alone
    assert len(list(folder.glob("*.at-work"))) == 3  # one took its place


def test_a_call_that_kills_its_workers_is_given_up_and_the_others_are_done():
    with engine("local", 2) as pool:
        deadly = pool.submit(os._exit, 1)
        others = [pool.submit(pow, i, 2) for i in range(20)]
        assert sorted(f.result() for f in as_completed(others)) == [i**2 for i in range(20)]
        with pytest.raises(BrokenExecutor, match=rf"{DEATHS} worker processes died .* fewer workers"):
            deadly.result()
        with pytest.raises(ValueError, match="invalid literal"):  # the engine goes on
            pool.submit(int, "x").result()


def test_a_model_that_kills_its_workers_ends_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("m.py").write_text(
        "import multiprocessing, os, torch\n"
        "def deadly():\n"
        "    if multiprocessing.parent_process():\n"
        "        os._exit(1)\n"
        "    torch.manual_seed(0)\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"
    )
    argv = "evaluate m.py:deadly --data digits --eps-x 0 --eps-w 0 --limit 5 --workers 2 --quiet --out run"
    assert main(argv.split()) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: a worker process died")
    assert "--workers" in err


def test_an_error_ends_the_workers_and_what_waits():
    waiting = []

    def fail():
        with engine("local", 2) as pool:
            waiting.extend(pool.submit(signal.pause) for _ in range(4))
            raise ValueError("an error here")

    with pytest.raises(ValueError, match="an error here"):
        fail()
    assert all(f.exception(5) for f in waiting[:2])
    assert all(f.cancelled() for f in waiting[2:])


def test_threads_that_wait_for_calls_in_the_queue_end_with_it():
    def interrupted():
        with engine("local", 2) as pool:
            calls = [[pool.submit(signal.pause) for _ in range(3)] for _ in range(4)]
            threads.extend(Thread(target=wait_for_one, args=(mine,), daemon=True) for mine in calls)
            for thread in threads:
                thread.start()
            raise KeyboardInterrupt

    def wait_for_one(mine):
        next(as_completed(mine))

    threads = []
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads)


# ---------------------------------------------------------------- what cannot be


@pytest.mark.parametrize(
    "argv, words",
    [
        ("--engine dask", "no engine 'dask'; choose one of local, ray"),
        ("--workers 0", "workers is 0; give 1 or more"),
        ("--engine ray --workers 0", "workers is 0; give 1 or more"),
        ("--address localhost:6379", "engine local takes none; choose engine ray"),
        ("--engine ray --address localhost:6379 --workers 2", "leave --workers out"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(argv, words, settings, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    grid = "--eps-x 0 --eps-w 0 --limit 5 --quiet --out run"
    assert main(["evaluate", settings.model, "--data", "digits", *grid.split(), *argv.split()]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    assert words in err
    assert not list(tmp_path.iterdir())


def test_without_ray_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InvalidInput, match=r"pip install 'nonsingular\[ray\]'"), engine("ray", 1):
        pass


@needs_ray
@pytest.mark.parametrize("address", ["nonsense", "nobody.invalid:6379", "closed"])
def test_a_bad_address_is_said_at_once(address, quiet_ray):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}" if address == "closed" else address
        with pytest.raises(InvalidInput, match=f"no Ray cluster can be joined at {address}"), engine("ray", 1, address):
            pass


@pytest.mark.parametrize(
    "kind, folder, words",
    [
        ({}, ".", "would compute other bits"),
        (kind() | {"torch": "1.0"}, ".", "would compute other bits"),
        (kind(), "/nowhere/at/all", "has no folder /nowhere/at/all"),
    ],
)
def test_a_node_that_would_compute_something_else_says_so(kind, folder, words):
    with pytest.raises(InvalidInput, match=words):
        _task(folder, kind, pickle.dumps((pow, (2, 3), {})))


# ---------------------------------------------------------------- Ray


@pytest.mark.slow
@needs_ray
def test_ray_finds_the_same_bits(settings, alone, tmp_path, quiet_ray):
    assert bits(evaluate_run(settings, tmp_path / "run", Workplace(2, "ray")), tmp_path / "run") == alone


@pytest.fixture
def cluster(quiet_ray):
    """A head with one CPU, and a second node with one, on this machine."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        yield cluster
    finally:
        cluster.shutdown()


@pytest.mark.slow
@needs_ray
def test_a_node_killed_in_the_middle_changes_nothing(folder, settings, alone, tmp_path, cluster, capfd):
    (second,) = cluster.worker_nodes
    said = []
    with struck(folder, lambda workers: cluster.remove_node(second, allow_graceful=False)):
        found = evaluate_run(
            settings, tmp_path / "run", Workplace(1, "ray", cluster.address), Told(lambda what, n: said.append(what))
        )
    assert bits(found, tmp_path / "run") == alone
    assert said.count("cells") == 2 * CELLS  # two groups of 100 examples
    assert not capfd.readouterr().out  # it is the command's

    with engine("ray", 1, cluster.address) as pool:  # and what is left goes on
        with pytest.raises(ValueError, match="invalid literal") as error:
            pool.submit(int, "x").result()
        assert type(error.value) is ValueError  # none of Ray's
        with pytest.raises(BrokenExecutor, match="fewer workers"):
            pool.submit(os._exit, 1).result()


def ended(group, patience=20):
    """Whether the last process of a group ends within so many seconds."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


@needs_ray
@pytest.mark.slow
def test_an_interrupted_run_on_ray_leaves_no_process(folder, tmp_path, quiet_ray):
    grid = "--eps-x 0:0.1:11 --eps-w 0:0.02:11 --scope dataset --engine ray --workers 2 --out run --json"
    command = [sys.executable, "-m", "nonsingular.cli", "evaluate", f"{folder}/net", *grid.split()]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        events = tmp_path / "run/events.jsonl"
        while not (events.exists() and events.stat().st_size):
            assert process.poll() is None
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        out, err = process.communicate(timeout=30)
        assert process.returncode == 130
        assert out == ""
        assert len(err.splitlines()) == 1
        assert ended(process.pid)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
