"""Runs that were killed, interrupted or started twice, in processes of their own: the end is that of a run left alone."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file

from nonsingular.cli.main import main
from nonsingular.errors import InvalidInput
from nonsingular.models.loading import load_run

ENV = os.environ | {"OMP_NUM_THREADS": "1"}
TRAIN = ("train", "--data", "digits", "--method", "joint", "--epochs", 30, "--hidden", "16", "--quiet")
GRID = ("--eps-x", "0:0.1:6", "--eps-w", "0:0.02:6", "--limit", 300, "--scope", "dataset", "--quiet")
PATIENCE = 60


def start(*argv, cwd):
    """In a group of its own, so that SIGINT reaches the workers too, as it does from a terminal."""
    return subprocess.Popen(
        [sys.executable, "-m", "nonsingular.cli", *map(str, argv)],
        cwd=cwd, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def finish(process):
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, err


def here(*argv, cwd):
    """The same in this process, which saves the start of Python and torch."""
    before = Path.cwd()
    os.chdir(cwd)
    try:
        return main([str(a) for a in argv])
    except SystemExit as e:
        return e.code or 0
    finally:
        os.chdir(before)


def run(*argv, cwd):
    assert here(*argv, cwd=cwd) == 0


def wait_for(condition, process):
    """Until it holds; the process must still be at work then."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if condition():
            assert process.poll() is None, f"finished too soon: {process.communicate()[1]}"
            return
        assert process.poll() is None, f"ended before its time: {process.communicate()[1]}"
        time.sleep(0.005)
    raise AssertionError("nothing happened")


def empty(group, patience=10):
    """Whether the last process of a group ends within so many seconds."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def lines(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


def surface(out):
    results = json.loads((out / "results.json").read_text())
    (model,) = results["models"].values()
    return {k: v for k, v in model["surfaces"][0].items() if k != "seconds"}


def contents(folder):
    files = (p for p in folder.rglob("*") if p.is_file() and p.name != ".lock")
    return {p.relative_to(folder).as_posix(): (p.stat().st_mtime_ns, p.read_bytes()) for p in files}


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    """The same training, left alone: folder with `run`."""
    folder = tmp_path_factory.mktemp("whole")
    run(*TRAIN, "--out", "run", cwd=folder)
    return folder


@pytest.fixture(scope="module")
def whole(learnt):
    """And the same evaluation, left alone: folder with `run` and `surface`."""
    run("evaluate", "run", *GRID, "--workers", 1, "--out", "surface", cwd=learnt)
    return learnt


# ---------------------------------------------------------------- kill -9


@pytest.mark.slow
def test_a_killed_training_ends_with_the_same_weights(learnt, tmp_path):
    process = start(*TRAIN, "--out", "run", cwd=tmp_path)
    wait_for((tmp_path / "run/checkpoint.safetensors").exists, process)
    process.kill()
    process.communicate()
    assert not (tmp_path / "run/model.safetensors").exists()
    run(*TRAIN, "--out", "run", cwd=tmp_path)
    assert (tmp_path / "run/model.safetensors").read_bytes() == (learnt / "run/model.safetensors").read_bytes()


def test_a_training_killed_at_its_very_start_can_be_run_again(tmp_path):
    """Also when it died while the first file was written, which leaves only the part of it."""
    out = tmp_path / "run"
    out.mkdir()
    (out / ".config.yaml.12345.part").write_text("data: dig")
    run("train", "--data", "digits", "--epochs", 1, "--quiet", "--out", "run", cwd=tmp_path)
    assert (out / "model.safetensors").exists()


@pytest.mark.parametrize("before", [3, pytest.param(40, marks=pytest.mark.slow)])
def test_a_killed_evaluation_ends_with_the_same_surface(whole, tmp_path, before):
    """With two workers, against one left alone with a single worker; killed in the first sweep over the cells or the second."""
    argv = ("evaluate", whole / "run", *GRID, "--workers", 2, "--out", "surface")
    process = start(*argv, cwd=tmp_path)
    events = tmp_path / "surface/events.jsonl"
    wait_for(lambda: lines(events) >= before, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    held = events.read_bytes()
    kept = held[: held.rfind(b"\n") + 1]
    events.write_bytes(kept + b'{"crc": 12, "ent')  # and the last line torn
    assert before <= lines(events) < 72
    code, _, err = finish(start(*argv, cwd=tmp_path))
    assert code == 0, err
    assert events.read_bytes().startswith(kept)  # what was done is not done again
    assert lines(events) == 73  # 36 cells in each of two sweeps, and what a longer attack still finds
    assert not list((tmp_path / "surface/perturbations").glob("sweep-*"))
    mine, theirs = surface(tmp_path / "surface"), surface(whole / "surface")
    assert mine["accuracy"] == theirs["accuracy"]
    assert mine == theirs


def test_workers_end_with_a_parent_that_is_killed(whole, tmp_path):
    process = start("evaluate", whole / "run", *GRID, "--workers", 2, "--out", "surface", cwd=tmp_path)
    wait_for(lambda: lines(tmp_path / "surface/events.jsonl") >= 2, process)
    process.kill()  # the parent alone
    process.communicate()
    assert empty(process.pid)


# ---------------------------------------------------------------- Ctrl-C


def interrupted(process):
    """Exit code and stderr after a Ctrl-C in the terminal."""
    os.killpg(process.pid, signal.SIGINT)
    code, out, err = finish(process)
    assert out == ""
    return code, err


def test_an_interrupted_training_says_how_to_go_on(tmp_path):
    process = start(*TRAIN, "--out", "run", cwd=tmp_path)
    wait_for((tmp_path / "run/checkpoint.safetensors").exists, process)
    code, err = interrupted(process)
    assert code == 130
    assert "same command again" in err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.slow)],
    ids=lambda number: signal.Signals(number).name,
)
def test_an_interrupted_evaluation_says_how_to_go_on(number, whole, tmp_path):
    """Ctrl-C and a closed terminal reach the whole group; SIGTERM, as `kill` and schedulers send it, this process alone."""
    process = start("evaluate", whole / "run", *GRID, "--workers", 2, "--out", "surface", cwd=tmp_path)
    wait_for(lambda: lines(tmp_path / "surface/events.jsonl") >= 3, process)
    started = time.monotonic()
    if number == signal.SIGTERM:
        process.send_signal(number)
    else:
        os.killpg(process.pid, number)
    code, _, err = finish(process)
    assert code == 128 + number
    assert "same command again: nonsingular evaluate" in err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1
    assert time.monotonic() - started < 20
    assert lines(tmp_path / "surface/events.jsonl") < 36
    assert empty(process.pid), "a worker stayed behind"


def test_an_interrupted_reproduction_stops_at_once(tmp_path, capsys):
    """With pipelines waiting for workers, none of them may go on after the Ctrl-C."""
    run("reproduce", "--data", "digits", "--print-config", cwd=tmp_path)
    settings = yaml.safe_load(capsys.readouterr().out)
    for recipe in settings["recipes"].values():
        recipe["epochs"] = 1000
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings))
    process = start("reproduce", "--config", "c.yaml", "--workers", 2, "--out", "r", "--quiet", cwd=tmp_path)
    try:
        wait_for(lambda: any((tmp_path / "r").glob("models/*/checkpoint.safetensors")), process)
        started = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=20)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert process.returncode == 130
    assert time.monotonic() - started < 20
    assert "same command again" in err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1


# ---------------------------------------------------------------- started twice


def test_a_finished_training_is_left_as_it_is(learnt):
    before = contents(learnt / "run")
    run(*TRAIN, "--out", "run", cwd=learnt)
    assert contents(learnt / "run") == before


def test_a_finished_evaluation_is_not_done_again(whole):
    before, events = surface(whole / "surface"), contents(whole / "surface")["events.jsonl"]
    run("evaluate", "run", *GRID, "--workers", 1, "--out", "surface", cwd=whole)
    assert contents(whole / "surface")["events.jsonl"] == events
    assert surface(whole / "surface") == before


@pytest.mark.parametrize(
    "argv, word",
    [
        ((*TRAIN, "--seed", 5, "--out", "run"), "seed"),
        ((*TRAIN[:-1], "--lr", 0.5, "--quiet", "--out", "run"), "recipe"),
        (("evaluate", "run", *GRID, "--moves", "all", "--out", "surface"), "moves"),
        (("evaluate", "run", *GRID, "--out", "run"), "other settings"),
        ((*TRAIN, "--out", "surface"), "other settings"),
        (("reproduce", "--data", "digits", "--quiet", "--out", "run"), "other settings"),
    ],
)
def test_another_run_into_the_same_folder_is_refused_and_changes_nothing(whole, argv, word, capsys):
    before = {name: contents(whole / name) for name in ("run", "surface")}
    assert here(*argv, cwd=whole) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert len(err.strip().splitlines()) == 1
    assert word in err
    assert "--out" in err
    assert {name: contents(whole / name) for name in ("run", "surface")} == before


def test_a_run_from_before_a_setting_existed_is_the_same_run(whole):
    config = whole / "surface/config.yaml"
    text, before = config.read_text(), (whole / "surface/events.jsonl").read_bytes()
    config.write_text("".join(line for line in text.splitlines(keepends=True) if not line.startswith("masking")))
    assert config.read_text() != text
    try:
        run("evaluate", "run", *GRID, "--workers", 1, "--out", "surface", cwd=whole)
        assert here("evaluate", "run", *GRID, "--masking", "--out", "surface", cwd=whole) == 2
    finally:
        config.write_text(text)
    assert (whole / "surface/events.jsonl").read_bytes() == before


def test_a_default_that_is_named_is_the_same_run(whole):
    before = (whole / "surface/events.jsonl").read_bytes()
    run("evaluate", "run", *GRID, "--attack", "strongest", "--data", "digits", "--workers", 1, "--out", "surface", cwd=whole)
    assert (whole / "surface/events.jsonl").read_bytes() == before


def test_a_damaged_log_is_named_and_kept(whole, tmp_path, capsys):
    argv = ("evaluate", whole / "run", *GRID, "--workers", 1, "--out", "surface")
    (tmp_path / "surface").mkdir()
    settings = (whole / "surface/config.yaml").read_text().replace("model: run\n", f"model: {whole / 'run'}\n")
    (tmp_path / "surface/config.yaml").write_text(settings)
    rows = (whole / "surface/events.jsonl").read_bytes().split(b"\n")
    rows[4] = rows[4][:50]
    (tmp_path / "surface/events.jsonl").write_bytes(b"\n".join(rows))
    before = contents(tmp_path)
    assert here(*argv, cwd=tmp_path) == 2
    assert "events.jsonl: line 5 is damaged" in capsys.readouterr().err
    assert contents(tmp_path) == before


@pytest.mark.parametrize("shape", [["a" * 1000, 10**9], [2**40, 2**40], [0], [True], "8"])
def test_sizes_that_no_training_wrote_are_refused_before_anything_is_built(shape: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert main(["train", "--epochs", "1", "--hidden", "8", "--out", str(folder), "--quiet"]) == 0
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors, folder / "model.safetensors", {"built_for": json.dumps({"input_shape": shape, "classes": 10})})
    with pytest.raises(InvalidInput, match="was not written by 'nonsingular train'"):
        load_run(folder)
