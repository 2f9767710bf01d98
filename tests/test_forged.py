"""Runs that were forged with care: settings, log, results, pages and manifest fit each other, and the numbers are not true."""

import base64
import json
import shutil
import zlib

import numpy as np
import pytest
import yaml

from nonsingular.cli.main import main
from nonsingular.evaluation.stored import FOLDER, Found, read_found, write_found
from nonsingular.models.loading import is_code
from nonsingular.report import write
from nonsingular.results.surface import pack
from nonsingular.runs.directory import read_results
from nonsingular.runs.manifest import seal
from nonsingular.runs.verification import Verification
from nonsingular.runs.verify import Effort, Whereabouts, _one
from nonsingular.settings import CertifySettings, EvaluateSettings, to_yaml
from runs_of import against

HERE = {"model": None, "weights": None, "data": None, "data_dir": None}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("forged")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train = ["train", "--data", "digits", "--epochs", "3", "--hidden", "8", "--lr", "0.01", "--out", "net", "--quiet"]
        assert main(train) == 0
        grid = ["net", "--limit", "12", "--eps-x", "0,0.03", "--eps-w", "0,0.01", "--workers", "1", "--quiet"]
        for scope in ("sample", "dataset"):
            assert main(["evaluate", *grid, "--scope", scope, "--out", scope]) == 0
        assert main(["certify", *grid, "--accuracy", "0.1", "--out", "certified"]) == 0
    return folder


@pytest.fixture
def run(runs, tmp_path, monkeypatch):
    """A copy of the runs; `run(name)` is one of them."""
    shutil.copytree(runs, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return lambda name: tmp_path / "here" / name


def rewritten(run, edit):
    """`edit(entry)` on every line of the log, each with its checksum."""
    path = run / "events.jsonl"
    lines = [json.loads(line)["entry"] for line in path.read_text().splitlines()]
    for entry in lines:
        edit(entry)
    texts = [json.dumps(entry, sort_keys=True) for entry in lines]
    path.write_text("".join(
        json.dumps({"crc": zlib.crc32(t.encode()), "entry": e}, sort_keys=True) + "\n" for t, e in zip(texts, lines, strict=True)
    ))  # fmt: skip


def made_to_fit(run):
    """Results, tables, pages and manifest as the settings and the log would have them: by the very code that derives them."""
    settings = EvaluateSettings.model_validate(yaml.safe_load((run / "config.yaml").read_text()))
    again = _one(settings, run, read_results(run), Verification(), Whereabouts(**HERE), Effort(0, 0))
    assert again is not None
    (run / "results.json").write_text(json.dumps(again, indent=1) + "\n")
    write(read_results(run), run)
    seal(run)


def cells(edit):
    return lambda entry: [edit(cell) for cell in entry.get("cells", ())]


def survive(cell):
    cell["correct"] = pack(np.ones(cell["n"], dtype=bool))
    cell["margins"] = base64.b64encode(np.full(cell["n"], 0.5, dtype="<f4").tobytes()).decode()
    cell.pop("origin", None)


def refused(run, capsys):
    assert main(["verify", str(run)]) == 1
    return capsys.readouterr().err


def test_a_run_that_found_nothing_is_attacked_again(run, capsys):
    rewritten(run("sample"), cells(survive))
    shutil.rmtree(run("sample") / FOLDER)
    made_to_fit(run("sample"))
    assert "examples that count as surviving break" in refused(run("sample"), capsys)


def test_radii_that_the_attack_never_had(run, capsys):
    """The settings, the log and the stored perturbations all say ten times the radius: what is stored lies in the larger ball."""

    def wider(cell):
        cell["eps_x"] = round(10 * cell["eps_x"], 12)
        if "origin" in cell:
            cell["origin"][0] = round(10 * cell["origin"][0], 12)

    here = run("sample")
    rewritten(here, cells(wider))
    for path in (here / FOLDER).iterdir():
        found = read_found(path, against(here))
        write_found(path, [Found((round(10 * f.radii[0], 12), f.radii[1]), f.scope, f.rows, f.tensors) for f in found])
    held = yaml.safe_load((here / "config.yaml").read_text())
    (here / "config.yaml").write_text(to_yaml(EvaluateSettings.model_validate({**held, "eps_x": [0.0, 0.3]})))
    made_to_fit(here)
    assert "examples that count as surviving break" in refused(here, capsys)


def test_a_better_perturbation_that_the_log_passes_over(run, capsys):
    """The largest ball is said to hold nothing worse than the smallest one: its own file says otherwise."""
    here, first = run("dataset"), {}

    def smallest(cell):
        if (cell["eps_x"], cell["eps_w"]) == (0.0, 0.0):
            first.update(correct=cell["correct"], margins=cell["margins"], origin=[0.0, 0.0])

    rewritten(here, cells(smallest))
    rewritten(here, cells(lambda cell: cell.update(first) if (cell["eps_x"], cell["eps_w"]) == (0.03, 0.01) else None))
    made_to_fit(here)
    assert "a stored perturbation leaves fewer right" in refused(here, capsys)


def test_what_was_asked_for_and_is_not_there(run, capsys):
    here = run("sample")
    held = yaml.safe_load((here / "config.yaml").read_text())
    (here / "config.yaml").write_text(to_yaml(EvaluateSettings.model_validate({**held, "masking": True})))
    made_to_fit(here)
    assert "masked gradients are missing" in refused(here, capsys)


@pytest.mark.filterwarnings("ignore:constrained_layout")  # the picture of such radii is mostly labels
def test_fronts_that_nothing_certifies(run, capsys):
    here = run("certified")
    results = read_results(here)
    front = results["models"]["net"]["fronts"][0]
    assert any(front["eps_w"])
    assert main(["verify", str(here)]) == 0
    front["eps_w"] = [0.1] * len(front["eps_w"])
    (here / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    write(results, here)
    seal(here)
    assert "fronts say 0.1" in refused(here, capsys)
    assert CertifySettings.model_validate(results["config"]).accuracy == (0.1,)


@pytest.mark.parametrize("spec", ["net.py:make", "net.py:/x", "hf.py:make", "package.module:Net", "a:b:c"])
def test_every_name_of_code_is_known_as_such(spec):
    assert is_code(spec)


def test_a_run_that_names_code_in_an_odd_way_does_not_run_it(run, capsys):
    here = run("sample")
    (here.parent / "net.py").write_text("import pathlib\npathlib.Path('ran').touch()\n")
    held = yaml.safe_load((here / "config.yaml").read_text())
    (here / "config.yaml").write_text(to_yaml(EvaluateSettings.model_validate({**held, "model": "net.py:/x"})))
    assert main(["verify", str(here)]) == 2
    assert "which is code" in capsys.readouterr().err
    assert not (here.parent / "ran").exists()
