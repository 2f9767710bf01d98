"""What trackers are handed, read back with their own readers; skipped where they are not installed."""

import json
import sys

import pytest

from nonsingular.cli.main import main
from nonsingular.runs.trackers import NEEDS, numbers


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tracked")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", "--data", "digits", "--epochs", "1", "--hidden", "8", "--quiet", "--out", "net"]) == 0
    return folder


def evaluate(out, *more):
    grid = ["--eps-x", "0,0.1", "--eps-w", "0,0.01", "--limit", "40", "--certify", "interval", "--workers", "1"]
    return ["evaluate", "net", *grid, "--quiet", "--out", out, *more]


def expected(home, out):
    found = list(numbers(json.loads((home / out / "results.json").read_text())))
    assert len(found) == 7
    assert dict((name, value) for name, value, _ in found)["net/attacked_auc"] > 0
    return found


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard(home, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.chdir(home)
    assert main(evaluate("board", "--track", "tensorboard")) == 0
    events = EventAccumulator(str(home / "board" / "tensorboard")).Reload()
    for name, value, seed in expected(home, "board"):
        (scalar,) = events.Scalars(name)
        assert (scalar.value, scalar.step) == (pytest.approx(value), seed)
    assert len(events.Images("figure1")) == 1


@pytest.mark.filterwarnings("ignore")  # of MLflow's own
def test_mlflow(home, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.chdir(home)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((home / "mlruns").as_uri())
    assert main(evaluate("flow", "--track", "mlflow")) == 0
    (run,) = mlflow.MlflowClient().search_runs(["0"])
    assert run.info.run_name == "flow"
    assert run.data.params["scope"] == "sample"
    for name, value, _ in expected(home, "flow"):
        assert run.data.metrics[name] == pytest.approx(value)
    assert {f.path for f in mlflow.MlflowClient().list_artifacts(run.info.run_id)} >= {"report.html", "results.json"}


@pytest.mark.parametrize("name", NEEDS)
def test_what_is_not_installed_is_said_before_the_run(name, home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    monkeypatch.setitem(sys.modules, NEEDS[name], None)
    assert main(evaluate("absent", "--track", name)) == 2
    assert f"pip install {name}" in capsys.readouterr().err
    assert not (home / "absent").exists()


def test_another_name_is_refused(home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    assert main(evaluate("absent", "--track", "wandb")) == 2
    assert "tensorboard, mlflow" in capsys.readouterr().err
    assert not (home / "absent").exists()
