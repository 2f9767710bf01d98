"""What a run keeps of single examples, held against the model, the data and the surface; and results against their schema."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nonsingular.cli.main import main
from nonsingular.data.datasets import load
from nonsingular.evaluation.breakdown import MOST, SIDE, told_input
from nonsingular.models.loading import load_run
from nonsingular.report import results_schema

GRID = ["--eps-x", "0:0.1:3", "--eps-w", "0:0.01:3", "--limit", "120", "--workers", "1", "--quiet"]
SCHEMA = json.loads(results_schema())


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("examples") / "net"
    assert main(["train", "--data", "digits", "--epochs", "10", "--hidden", "16", "--quiet", "--out", str(out)]) == 0
    return out


def evaluated(net: Path, out: Path, *more: str) -> dict[str, Any]:
    assert main(["evaluate", str(net), *GRID, *more, "--out", str(out)]) == 0
    return json.loads((out / "results.json").read_text())


@pytest.mark.parametrize(
    "more",
    [(), ("--scope", "dataset", "--attack", "apgd"), ("--scope", "batch", "--attack", "paper", "--batch-size", "50")],
    ids=["sample", "dataset", "batch"],
)
def test_examples_of_a_run(more: tuple[str, ...], net: Path, tmp_path: Path) -> None:
    results = evaluated(net, tmp_path / "run", *more)
    (entry,) = results["models"].values()
    model, split = load_run(net)[0], load("digits").test.take(120)
    with torch.no_grad():
        right = (model(split.x).argmax(1) == split.y).numpy()
    counts = entry["examples"]["by_class"]
    assert counts["n"] == [int((split.y == k).sum()) for k in range(10)]
    assert counts["undisturbed"] == [int(right[(split.y == k).numpy()].sum()) for k in range(10)]
    s = entry["surfaces"][0]
    shown = [(c["eps_x"], c["eps_w"]) for c in counts["cells"]]
    assert shown == [(0.05, 0.0), (0.0, 0.005), (0.05, 0.005), (0.1, 0.01)]
    for cell in counts["cells"]:  # the classes together are the surface
        i, j = s["eps_w"].index(cell["eps_w"]), s["eps_x"].index(cell["eps_x"])
        assert sum(cell["right"]) == round(120 * s["accuracy"][i][j])
    first = entry["examples"]["first"]
    assert 1 <= len(first) <= MOST
    assert len({f["example"] for f in first}) == len(first)
    assert [f["eps_x"] / 0.1 + f["eps_w"] / 0.01 for f in first] == sorted(f["eps_x"] / 0.1 + f["eps_w"] / 0.01 for f in first)
    for f in first:
        x = split.x[f["example"]].numpy()
        assert right[f["example"]]
        assert f["label"] == split.y[f["example"]] != f["predicted"]
        assert f["margin_undisturbed"] > 0 >= f["margin"]
        given = f["input"]
        before, after, change = (
            np.frombuffer(base64.b64decode(given[k]), dtype=np.uint8).reshape(given["shape"]).astype(float)
            for k in ("x", "moved", "change")
        )
        np.testing.assert_allclose(before[..., 0], 255 * x.reshape(8, 8), atol=0.5001)
        assert np.abs(after - before).max() <= 255 * f["eps_x"] + 1.001
        np.testing.assert_allclose((change - 128) / 127 * f["eps_x"], (after - before) / 255, atol=1.01 / 255 + f["eps_x"] / 127)
        assert [w["tensor"] for w in f["weights"]] == list(s["about"]["moved_at_largest_eps_w"])
        assert all(0 <= w["mean"] <= w["largest"] <= 1 for w in f["weights"])
        assert max(w["largest"] for w in f["weights"]) > 0.5  # both moved, in the smallest balls
    assert (tmp_path / "run" / "results.json").stat().st_size < 300_000


def test_the_change_of_the_weights_is_that_of_the_stored_ones(net: Path, tmp_path: Path) -> None:
    """One W' for all: read with safetensors alone."""
    from safetensors.torch import load_file

    results = evaluated(net, tmp_path / "run", "--scope", "dataset", "--attack", "apgd")
    (entry,) = results["models"].values()
    f = entry["examples"]["first"][0]
    stored = load_file(next((tmp_path / "run" / "perturbations").glob(f"* x {f['eps_x']!r} w {f['eps_w']!r}.safetensors")))
    params = dict(load_run(net)[0].named_parameters())
    for told in f["weights"]:
        share = (stored[f"0.weights.{told['tensor']}"] - params[told["tensor"]].detach()).abs() / f["eps_w"]
        assert told["mean"] == pytest.approx(share.mean().item(), abs=1e-3)
        assert told["largest"] == pytest.approx(share.max().item(), abs=1e-3)


def test_a_second_run_keeps_the_same(net: Path, tmp_path: Path) -> None:
    first = evaluated(net, tmp_path / "run")["models"]
    (tmp_path / "run" / "results.json").unlink()
    assert evaluated(net, tmp_path / "run")["models"] == first  # from the log alone


def test_a_large_picture_is_averaged_and_numbers_are_told_where_there_is_none() -> None:
    x = torch.linspace(0, 1, 3 * 100 * 60).reshape(3, 100, 60)
    told = told_input(x, (x + 0.1).clamp(max=1), 0.1, (0.0, 1.0))
    assert told["factor"] == 3 and told["shape"] == [34, 20, 3] and max(told["shape"]) <= SIDE
    small = np.frombuffer(base64.b64decode(told["x"]), dtype=np.uint8).reshape(told["shape"])
    assert small[0, 0, 1] == round(255 * x[1, :3, :3].mean().item())
    row = torch.tensor([0.0, 1.0, 2.0])
    assert told_input(row, torch.tensor([0.0, 1.5, 1.9]), 0.5, None) == {
        "numbers": [
            {"at": [1], "x": 1.0, "moved": 1.5}, {"at": [2], "x": 2.0, "moved": 1.9}, {"at": [0], "x": 0.0, "moved": 0.0},
        ]
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------ the schema


def strict(node: Any) -> Any:
    """The schema with every field that it does not name refused."""
    if isinstance(node, list):
        return [strict(n) for n in node]
    if not isinstance(node, dict):
        return node
    made = {k: strict(v) for k, v in node.items()}
    return made | ({"additionalProperties": False} if isinstance(made.get("properties"), dict) and "oneOf" not in made else {})


def faults(schema: Any, results: Any) -> list[str]:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(schema)
    return [f"{e.json_path}: {e.message}"[:200] for e in jsonschema.Draft202012Validator(schema).iter_errors(results)]


ABOUT = {  # fields of `about` that depend on the kind, named in its description
    "attack", "scope", "batch_size", "dtype", "device", "bound", "code", "versions",
}  # fmt: skip


def test_results_fit_their_schema_and_hold_nothing_that_it_does_not_name(net: Path, tmp_path: Path) -> None:
    exact = strict(SCHEMA)
    about = exact["$defs"]["surface"]["properties"]["about"]
    about["properties"] |= {name: True for name in ABOUT}
    results = evaluated(net, tmp_path / "run", "--certify", "crown", "--masking")
    assert faults(exact, results) == []
    assert main(["certify", str(net), *GRID, "--accuracy", "0.9,0.1", "--out", str(tmp_path / "c")]) == 0
    assert faults(exact, json.loads((tmp_path / "c" / "results.json").read_text())) == []
    for spoil in (
        lambda r: r.pop("data"),
        lambda r: r.update(format=2),
        lambda r: r["models"][net.name]["surfaces"][0]["accuracy"][0].__setitem__(0, 1.5),
        lambda r: r["models"][net.name]["examples"]["first"][0].pop("margin"),
        lambda r: r.update(more=1),
    ):
        spoiled = json.loads(json.dumps(results))
        spoil(spoiled)
        assert faults(exact, spoiled)


def test_the_committed_results_fit_the_schema() -> None:
    root = Path(__file__).parents[1]
    assert faults(SCHEMA, json.loads((root / "docs" / "reproduction" / "results.json").read_text())) == []


def fields(node: Any) -> set[str]:
    if isinstance(node, list):
        return set().union(*map(fields, node))
    if not isinstance(node, dict):
        return set()
    return set(node.get("properties", {})) | set().union(*map(fields, node.values()))


def test_the_page_on_results_names_every_field_and_the_command_prints_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[1] / "docs" / "results" / "README.md").read_text()
    missing = {name for name in fields(SCHEMA) if f"{name}`" not in page}
    assert not missing
    assert main(["report", "--schema"]) == 0
    assert json.loads(capsys.readouterr().out) == SCHEMA


# -------------------------------------------------------------------------------------------- several runs


@pytest.mark.slow
def test_report_of_several_runs(
    net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    evaluated(net, Path("a"), "--masking")
    evaluated(net, Path("b"), "--attack", "paper")
    evaluated(net, Path("c"), "--scope", "dataset", "--attack", "apgd")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    capsys.readouterr()
    assert main(["report", "a", "b", "--out", "both"]) == 0
    said = capsys.readouterr()
    assert "net (a)" in said.out
    assert "net (b)" in said.out
    assert "masked gradients" in said.out
    assert "do not compare" not in said.err
    assert main(["report", "a", "b", "c"]) == 0
    said = capsys.readouterr()
    assert "The numbers of c do not compare with those of a, b. They differ in scope" in said.err
    assert "do not compare" in Path("runs/report-a-b-c/report.html").read_text()
    assert {p: p.read_bytes() for p in before} == before  # the runs are as they were
    for wrong, says in (
        (["a", "./a"], "given twice"),
        ([], "which run?"),
        (["a", "nowhere"], "nowhere has no results.json"),
    ):
        assert main(["report", *wrong, "--out", "none"]) == 2
        assert says in capsys.readouterr().err
    assert not Path("none").exists()
    results = json.loads(Path("b/results.json").read_text())
    Path("b/results.json").write_text(json.dumps(results | {"format": 2}))
    assert main(["report", "a", "b", "--out", "none"]) == 2
    assert "format 2" in capsys.readouterr().err
