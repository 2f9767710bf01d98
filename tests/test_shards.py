"""Runs in parts: joined, they are the run done at once, bit for bit.  What is no whole set of parts is named, writing nothing."""

import json
import os
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from safetensors import safe_open
from safetensors.torch import save_file

from nonsingular.cli.main import main
from nonsingular.errors import InvalidInput
from nonsingular.evaluation import certified, problem
from nonsingular.evaluation.execution import Shard
from nonsingular.results.files import Log
from nonsingular.runs.manifest import seal
from nonsingular.settings import EvaluateSettings, checked

ENGINES = Path(__file__).parents[1] / "docs" / "engines"
SMALL = ("--eps-x", "0,0.05", "--eps-w", "0,0.01", "--limit", "33", "--workers", "1", "--quiet")
RUNS = {
    "sample": ("evaluate",),
    "certified sample": ("evaluate", "--certify", "interval"),
    "batch": ("evaluate", "--scope", "batch", "--batch-size", "6"),
    "certified batch": ("evaluate", "--scope", "batch", "--batch-size", "6", "--certify", "interval"),
    "cells": ("evaluate", "--scope", "dataset", "--attack", "paper"),
    "certify": ("certify", "--accuracy", "0.5", "--bound", "interval"),
}
QUICK = ("certified sample", "cells")
OF = 3


def command(name, *more):
    what, *flags = RUNS[name]
    return [what, "net", *flags, *SMALL, *more]


@pytest.fixture(scope="module", autouse=True)
def small_pieces():
    """Several pieces of few examples.  Those of certificates lie across those of attacks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(problem, "GROUP", 9)
        patch.setattr(certified, "TOGETHER", 4)
        yield


@pytest.fixture(scope="module")
def folder(small_pieces, tmp_path_factory):
    """A network, and the shards of each run in NAME-1, NAME-2, ..."""
    folder = tmp_path_factory.mktemp("shards")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train = ["train", "--data", "digits", "--epochs", "2", "--hidden", "16", "--lr", "0.01", "--out", "net", "--quiet"]
        assert main(train) == 0
        for i in range(1, OF + 1):
            assert main(command("sample", "--shard", f"{i}/{OF}", "--out", f"sample-{i}")) == 0
    return folder


@pytest.fixture
def here(folder, tmp_path, monkeypatch):
    """A copy of it, as the working directory."""
    shutil.copytree(folder, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def numbers(path):
    """A file without its times, and without what says how it was made."""
    if path.name == "results.json":
        return without(json.loads(path.read_text()), {"seconds", "wall_seconds", "command"})
    if path.name == "events.jsonl":
        return [without(entry, {"seconds"}) for entry in Log(path)]
    return path.read_bytes()


def without(value, names):
    if isinstance(value, dict):
        return {k: without(v, names) for k, v in value.items() if k not in names}
    return [without(v, names) for v in value] if isinstance(value, list) else value


def drawn_with_times(path):
    return path.name in {"manifest.json", ".lock"} or path.suffix in {".html", ".md"}


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in RUNS])
def test_shards_make_the_run(name, here, capsys):
    if name != "sample":
        for i in (2, 3, 1):
            assert main(command(name, "--shard", f"{i}/{OF}", "--out", f"{name}-{i}")) == 0
    assert main(command(name, "--out", "whole")) == 0
    folders = [f"{name}-{i}" for i in (3, 1, 2)]
    own = [len(list(Log(Path(f) / "events.jsonl"))) for f in folders]
    assert all(0 < n < len(list(Log(Path("whole/events.jsonl")))) for n in own)
    assert main(["merge", *folders, "--out", "joined", "--workers", "1", "--quiet"]) == 0
    files = {p.relative_to("whole").as_posix() for p in Path("whole").rglob("*") if p.is_file()}
    assert files == {p.relative_to("joined").as_posix() for p in Path("joined").rglob("*") if p.is_file()}
    for file in sorted(files):
        if not drawn_with_times(Path(file)):
            assert numbers(here / "whole" / file) == numbers(here / "joined" / file), file
    capsys.readouterr()
    assert main(["verify", "joined"]) == 0
    assert not [p for p in here.iterdir() if p.suffix == ".part"]
    assert main(["merge", *folders, "--out", "joined", "--workers", "1", "--quiet"]) == 0  # again: as it was


def test_a_shard_goes_on_where_it_ended_and_is_not_done_twice(here):
    log = here / "sample-2/events.jsonl"
    before = log.read_bytes()
    assert main(command("sample", "--shard", f"2/{OF}", "--out", "sample-2")) == 0
    assert log.read_bytes() == before


def test_the_parts_of_any_number_of_pieces_are_all_of_them_once():
    for pieces in range(12):
        for of in range(1, 15):
            blocks = [Shard(i, of).block(list(range(pieces))) for i in range(1, of + 1)]
            assert [k for block in blocks for k in block] == list(range(pieces))
            assert max(map(len, blocks)) - min(map(len, blocks)) <= 1


# --- what cannot be joined ------------------------------------------------------------------------------------------------


def refused(capsys, folders, *more):
    before = sorted(p.name for p in Path().iterdir())
    capsys.readouterr()
    assert main(["merge", *map(str, folders), "--out", "joined", *more]) == 2
    said = capsys.readouterr()
    assert not said.out
    assert said.err.count("\n") == 1
    assert "Traceback" not in said.err
    assert sorted(p.name for p in Path().iterdir()) == before
    return said.err


def edit(run, **changes):
    """Settings of a run, changed and sealed again."""
    path = Path(run) / "config.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))
    seal(Path(run))


def test_missing_doubled_and_unfinished_shards_are_named_together(here, capsys):
    assert "shard 2/3 of the run is missing" in refused(capsys, ["sample-1", "sample-3"])
    shutil.copytree("sample-1", "again")
    assert "sample-1 (shard 1/3) and again (shard 1/3) are the same shard" in refused(capsys, ["sample-1", "again"])
    (here / "sample-2/manifest.json").unlink()
    with (here / "sample-3/events.jsonl").open("ab") as f:
        f.write(b"\n")
    said = refused(capsys, ["sample-1", "sample-2", "sample-3", "net"])
    assert "sample-2 (shard 2/3) is not finished" in said
    assert "sample-3 (shard 3/3) is not as it was written: events.jsonl was changed" in said
    assert "net is no shard" in said


def test_a_shard_without_some_of_its_pieces_is_named(here, capsys):
    """Also where its manifest was made to fit."""
    log = here / "sample-2/events.jsonl"
    log.write_bytes(b"")
    seal(here / "sample-2")
    assert "sample-2 (shard 2/3): events.jsonl lacks cells" in refused(capsys, [f"sample-{i}" for i in (1, 2, 3)])


def test_shards_of_other_runs_are_named(here, capsys):
    folders = [f"sample-{i}" for i in (1, 2, 3)]
    edit("sample-2", eps_x=[0.0, 0.06])
    assert "sample-2 (shard 2/3) has other settings than sample-1 (eps_x)" in refused(capsys, folders)
    edit("sample-2", eps_x=[0.0, 0.05], shard="2/4")
    assert "has another shard.json: 2/3" in refused(capsys, folders)
    shutil.copytree("net", "other")
    with safe_open("net/model.safetensors", "pt") as f:
        save_file({name: f.get_tensor(name) + 0.01 for name in f.keys()}, "other/model.safetensors", f.metadata())  # noqa: SIM118
    edit("sample-2", shard="2/3")
    assert "another model than the settings name now" in refused(capsys, folders, "--model", "other")
    about = json.loads((here / "sample-3/shard.json").read_text())
    (here / "sample-3/shard.json").write_text(json.dumps(about | {"kind": {"torch": "1.0", "CPU": "abacus"}}))
    seal(here / "sample-3")
    assert "sample-3 (shard 3/3) was made by {'torch': '1.0', 'CPU': 'abacus'}" in refused(capsys, folders)
    (here / "sample-3/shard.json").write_text('{"shard": ["3/3"], "wall_seconds": "\\u001b[31m"}')
    seal(here / "sample-3")
    assert "shard.json is not as a shard writes it" in refused(capsys, folders)


def test_code_runs_only_if_the_user_names_it(here, capsys):
    (here / "evil.py").write_text("raise SystemExit('it ran')")
    for i in (1, 2, 3):
        edit(f"sample-{i}", model="evil.py:net")
    assert "which is code and would be run" in refused(capsys, [f"sample-{i}" for i in (1, 2, 3)])


def test_a_folder_is_that_of_one_shard(here, capsys):
    assert main(command("sample", "--shard", "2/3", "--out", "sample-1")) == 2
    assert "other settings (shard)" in capsys.readouterr().err
    assert main(command("sample", "--out", "sample-1")) == 2
    assert main(["merge", "sample-1", "sample-2", "sample-3", "--out", "net"]) == 2
    assert "net holds a run with other settings" in capsys.readouterr().err.replace("\n", " ")


def test_a_run_without_parts_says_what_to_do(here, capsys):
    assert main(["evaluate", "net", *SMALL, "--scope", "dataset", "--shard", "1/2"]) == 2
    assert "--workers or --engine ray" in capsys.readouterr().err
    assert not (here / "runs").exists()


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "1/0", "/", "a/b", "-1/3", "1/3/3", "1/10000000", "١/٣"])
def test_what_is_no_part(text):
    with pytest.raises(InvalidInput, match="write 2/4 for the second of four"):
        checked(EvaluateSettings, {"model": "net", "shard": text})


# --- clusters -------------------------------------------------------------------------------------------------------------

SBATCH = """#!/bin/bash
# A stand-in for Slurm: each task of an array in turn, with the variables that Slurm sets.
set -euo pipefail
echo "$@" >> sbatch.log
while [[ "$1" == --* ]]; do
    case "$1" in --wrap) bash -c "$2"; exit;; --wrap=*) bash -c "${1#--wrap=}"; exit;; *) shift;; esac
done
script=$1; shift
n=$(sed -n 's/^#SBATCH --array=1-\\([0-9]*\\)$/\\1/p' "$script")
cpus=$(sed -n 's/^#SBATCH --cpus-per-task=\\([0-9]*\\)$/\\1/p' "$script")
for i in $(seq "$n"); do
    SLURM_ARRAY_TASK_ID=$i SLURM_ARRAY_TASK_COUNT=$n SLURM_CPUS_PER_TASK=$cpus bash "$script" "$@" >&2
done
echo 4711
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_slurm_scripts_do_the_run(here):
    """The scripts of the documentation through bash.  What they call is written down, and then called."""
    tools = here / "tools"
    tools.mkdir()
    (tools / "sbatch").write_text(SBATCH)
    (tools / "nonsingular").write_text('#!/bin/bash\nprintf "%s\\0" "$@" >> calls\nprintf "\\n" >> calls\nmkdir -p "${@: -1}"\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    array = (ENGINES / "array.sbatch").read_text()
    small = array.replace("--array=1-4", "--array=1-2").replace("--cpus-per-task=8", "--cpus-per-task=1")
    assert len(small) == len(array)
    assert small != array
    (here / "array.sbatch").write_text(small)
    flags = ["--limit", "33", "--eps-x", "0,0.05", "--eps-w", "0,0.01"]
    env = os.environ | {"PATH": f"{tools}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", str(ENGINES / "submit.sh"), "net", "out dir", *flags], env=env, capture_output=True, text=True, check=True
    )
    assert "4711" in done.stdout
    assert "--dependency=afterok:4711" in (here / "sbatch.log").read_text()
    calls = [line.split("\0")[:-1] for line in (here / "calls").read_text().splitlines()]
    assert [call[0] for call in calls] == ["evaluate", "evaluate", "merge"]
    for call in calls:
        assert main([*call, "--quiet", *(["--workers", "1"] if call[0] == "merge" else [])]) == 0
    assert main(["evaluate", "net", *flags, "--workers", "1", "--quiet", "--out", "whole"]) == 0
    assert numbers(here / "whole/results.json") == numbers(here / "out dir/whole/results.json")


@pytest.mark.skipif(find_spec("ray") is None, reason="pip install 'nonsingular[ray]'")
def test_ray_accepts_the_cluster_file():
    from ray.autoscaler._private.util import prepare_config, validate_config

    cluster = yaml.safe_load((ENGINES / "cluster.yaml").read_text())
    validate_config(prepare_config(cluster))
    with pytest.raises(Exception, match="'maximum_workers' was unexpected"):
        validate_config(prepare_config(cluster | {"maximum_workers": 3}))


def test_the_nodes_of_the_cluster_file_are_of_one_kind():
    """Else their last bits may differ."""
    cluster = yaml.safe_load((ENGINES / "cluster.yaml").read_text())
    kinds = {json.dumps(node["node_config"], sort_keys=True) for node in cluster["available_node_types"].values()}
    assert len(kinds) == 1
    assert cluster["head_node_type"] in cluster["available_node_types"]
    assert cluster["max_workers"] > 0
