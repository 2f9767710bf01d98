"""What may happen to a run: killed at any moment, a full disk, another process, changed files, a clock that jumps."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file

from nonsingular.cli.main import main
from nonsingular.results.files import Log
from nonsingular.runs import directory as runs

GRIDS = {
    "dataset": ("--eps-x", "0:0.1:3", "--eps-w", "0:0.02:3", "--limit", "60", "--scope", "dataset"),
    "sample": ("--eps-x", "0:0.1:3", "--eps-w", "0:0.02:3", "--limit", "120", "--certify", "interval"),
}
TRAIN = ("train", "--data", "digits", "--method", "at", "--eps-x", "0.05", "--epochs", "8", "--hidden", "16", "--quiet")


def evaluate(scope, out, *more):
    return ["evaluate", "net", *GRIDS[scope], "--workers", "1", "--quiet", "--out", str(out), *more]


def told(results):
    """The part of results that does not depend on the clock."""
    if isinstance(results, dict):
        return {k: told(v) for k, v in results.items() if k not in ("seconds", "environment", "command")}
    return [told(v) for v in results] if isinstance(results, list) else results


def results(out):
    return told(json.loads((Path(out) / "results.json").read_text()))


def contents(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file() and p.name != ".lock"
    }


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a trained network `net` and the undisturbed run of each scope."""
    folder = tmp_path_factory.mktemp("home")
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert main([*TRAIN, "--out", "net"]) == 0
        for scope in GRIDS:
            assert main(evaluate(scope, f"whole-{scope}")) == 0
        yield folder
    finally:
        os.chdir(before)


def forked(argv):
    """The command in a process that has torch loaded already; its number."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    try:
        torch.set_num_threads(1)
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        code = main(argv)
    except BaseException:
        code = 99
    os._exit(code)


def kill_at_random(argv, longest, seed):
    """Runs the command again and again, each time killed after a random time, until it ends; how often it was killed."""
    draw, kills = random.Random(seed), 0
    while True:
        child = forked(argv)
        time.sleep(draw.uniform(0, longest))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            assert os.WEXITSTATUS(status) == 0
            return kills
        kills += 1
        assert kills < 500, "it never ends"


def killed(home, scope, kills, monkeypatch):
    """Runs killed so often, each from its start to its end."""
    monkeypatch.chdir(home)
    started = time.perf_counter()
    _, status = os.waitpid(forked(evaluate(scope, f"timed-{scope}-{kills}")), 0)
    alone = time.perf_counter() - started
    assert status == 0
    done = seed = 0
    while done < kills:
        out = home / f"killed-{scope}-{kills}-{seed}"
        done += kill_at_random(evaluate(scope, out), alone, seed)
        assert results(out) == results(f"whole-{scope}")
        assert {k: len(v) for k, v in contents(out / "perturbations").items()} == {
            k: len(v) for k, v in contents(f"whole-{scope}/perturbations").items()
        }
        assert main(["verify", str(out)]) == 0
        seed += 1
    assert not list(home.rglob(".events*.part"))
    return done


# torch.set_num_threads and fork: the children use one thread, and this process never starts others
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
@pytest.mark.parametrize("scope", ["dataset"])
def test_killed_at_random_moments_a_run_ends_as_one_left_alone(home, scope, monkeypatch):
    assert killed(home, scope, 4, monkeypatch) >= 4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
@pytest.mark.parametrize("scope", list(GRIDS))
def test_killed_at_fifty_random_moments_a_run_ends_as_one_left_alone(home, scope, monkeypatch):
    assert killed(home, scope, 50, monkeypatch) >= 50


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_a_training_killed_at_random_moments_ends_with_the_same_weights(home, monkeypatch):
    monkeypatch.chdir(home)
    for seed in range(2):
        assert kill_at_random([*TRAIN, "--out", f"again-{seed}"], 0.8, seed) >= 0
        assert Path(f"again-{seed}/model.safetensors").read_bytes() == Path("net/model.safetensors").read_bytes()


# ---------------------------------------------------------------- the disk


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
@pytest.mark.parametrize("limit", [200, 1500, 6000, 20_000])
def test_a_disk_that_is_full_is_said_in_one_line_and_the_run_goes_on_later(home, limit, monkeypatch, tmp_path):
    """No file may grow beyond `limit` bytes, which is how a write fails on a full disk: in the middle."""
    monkeypatch.chdir(home)
    out = tmp_path / "run"
    argv = evaluate("dataset", out)

    def full():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [sys.executable, "-B", "-m", "nonsingular.cli", *argv]
    ended = subprocess.run(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, preexec_fn=full)
    said = ended.stderr.strip()
    assert ended.returncode == 2, said
    assert said.startswith("error: ")
    assert "Traceback" not in said
    assert len(said.splitlines()) == 1
    assert "File too large" in said
    assert str(out) in said
    assert "run the same command again" in said
    assert not list(out.rglob("*.part"))
    assert main(argv) == 0
    assert results(out) == results("whole-dataset")


def test_a_folder_that_may_not_be_written_is_said(home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    for out in ("/proc/run", "/dev/null/run", "net/model.safetensors/run"):
        assert main(evaluate("dataset", out)) == 2
        err = capsys.readouterr().err
        assert out in err
        assert len(err.strip().splitlines()) == 1


# ---------------------------------------------------------------- another process


def test_two_processes_do_not_write_into_one_folder(home, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(home)
    monkeypatch.setattr(runs, "PATIENCE", 0.1)
    out = tmp_path / "run"
    out.mkdir()
    with FileLock(out / runs.LOCK):
        before = contents(out)
        assert main(evaluate("dataset", out)) == 2
        err = capsys.readouterr().err
        assert "another process is at work" in err
        assert "--out" in err
        assert main([*TRAIN, "--out", str(out)]) == 2
        assert contents(out) == before
    assert main(evaluate("dataset", out)) == 0


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_two_that_start_at_once_end_with_one_run(home, monkeypatch, tmp_path):
    monkeypatch.chdir(home)
    out = tmp_path / "run"
    children = [forked(evaluate("dataset", out)) for _ in range(3)]
    assert [os.WEXITSTATUS(os.waitpid(child, 0)[1]) for child in children] == [0, 0, 0]
    assert results(out) == results("whole-dataset")
    assert sum("cells" in entry for entry in Log(out / "events.jsonl")) == 9


# ---------------------------------------------------------------- what has changed since


def test_results_are_not_overwritten_by_those_of_another_model(home, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("net").mkdir()
    for name in ("config.yaml", "model.safetensors"):
        Path("net", name).write_bytes((home / "net" / name).read_bytes())
    assert main(evaluate("dataset", "run")) == 0
    before = contents("run")
    assert main(evaluate("dataset", "run")) == 0
    assert contents("run") == before
    tensors = load_file("net/model.safetensors")
    with open("net/model.safetensors", "rb") as f:
        length = int.from_bytes(f.read(8), "little")
        about = json.loads(f.read(length))["__metadata__"]
    save_file({k: v + 0.01 for k, v in tensors.items()}, "net/model.safetensors", about)
    assert main(evaluate("dataset", "run")) == 2
    assert "results of another model" in capsys.readouterr().err
    assert contents("run") == before
    assert main(evaluate("dataset", "other")) == 0


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', "\x00\xff"])
def test_damaged_results_are_named_and_kept(home, text, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(home)
    out = tmp_path / "run"
    shutil.copytree("whole-dataset", out)
    (out / "results.json").write_text(text)
    for argv in (evaluate("dataset", out), ["report", str(out)], ["verify", str(out)]):
        capsys.readouterr()
        assert main(argv) == 2
        err = capsys.readouterr().err
        assert "results.json cannot be read" in err
        assert len(err.strip().splitlines()) == 1
    assert (out / "results.json").read_text() == text


def test_a_clock_that_jumps_changes_nothing(home, monkeypatch, tmp_path):
    monkeypatch.chdir(home)
    jumps = iter(range(10**9, -(10**9), -(10**6)))
    monkeypatch.setattr(time, "time", lambda: float(next(jumps)))
    out = tmp_path / "run"
    assert main(evaluate("dataset", out)) == 0
    assert results(out) == results("whole-dataset")
    found = json.loads((out / "results.json").read_text())
    assert found["environment"]["wall_seconds"] >= 0
