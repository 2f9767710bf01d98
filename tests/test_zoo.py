"""The networks of the package, the recommended recipe, and the leaderboard that is drawn from run directories."""

import csv
import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import nonsingular as ns
from nonsingular.catalog import OBJECTIVES
from nonsingular.cli.main import main
from nonsingular.data.datasets import hash_tensors
from nonsingular.models import zoo
from nonsingular.models.loading import build, is_code, load_run
from nonsingular.runs.directory import read_surface
from nonsingular.runs.presets import REPRODUCTIONS, training_defaults
from nonsingular.runs.train import objective_in
from nonsingular.settings import TrainSettings

BOARD = Path(__file__).parents[1] / "docs" / "leaderboard"


@pytest.mark.parametrize("name", zoo.names())
def test_a_network_of_the_zoo_is_what_its_card_says(name):
    model, settings = load_run(zoo.located(zoo.PREFIX + name))
    card = zoo.card(name)
    assert hash_tensors(model.state_dict()) == card["model_sha256"]
    assert settings.data_dir is None and name.split("/")[0] == settings.data
    assert card["does"].startswith(settings.data) and settings.recipe.method in card["does"]
    assert hash_tensors(ns.load_model(f"zoo:{name}").state_dict()) == card["model_sha256"]


@pytest.mark.parametrize("name", [name for name in zoo.names() if name.startswith("digits/")])
def test_its_accuracy_is_that_of_the_card(name):
    model, data = ns.load_model(f"zoo:{name}"), ns.load("digits")
    with torch.no_grad():
        right = (model(data.val.x).argmax(1) == data.val.y).double().mean().item()
    assert right == pytest.approx(zoo.card(name)["val_accuracy"])


def test_the_zoo_is_small_and_listed(capsys):
    assert {"digits/standard", "digits/joint"} <= set(zoo.names())
    assert sum(path.stat().st_size for path in zoo.FOLDER.rglob("*") if path.is_file()) < 8_000_000
    main(["list", "zoo"])
    assert "zoo:digits/joint" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["digits/jont", "../zoo/digits/joint", "digits/joint/..", "", "/etc"])
def test_no_other_name_reaches_a_path(name):
    with pytest.raises(ns.InvalidInput, match="the zoo has no"):
        ns.load_model(f"zoo:{name}")
    assert not is_code(f"zoo:{name}")


def test_a_command_takes_a_network_of_the_zoo_and_knows_its_data(tmp_path):
    out = tmp_path / "run"
    main(
        [
            "evaluate",
            "zoo:digits/joint",
            "--eps-x",
            "0,0.05",
            "--eps-w",
            "0,0.01",
            "--limit",
            "20",
            "--workers",
            "1",
            "--out",
            str(out),
        ]
    )
    results = json.loads((out / "results.json").read_text())
    assert results["data"]["name"] == "digits" and "joint" in results["models"]
    main(["verify", str(out)])


@pytest.mark.parametrize("name, method", [("recommended", "joint"), ("recommended-certified", "certified")])
@pytest.mark.parametrize("data", [*REPRODUCTIONS, "mine.csv"])
def test_recommended_stands_for_a_method_with_its_numbers(data, name, method, capsys):
    recipe = training_defaults(data, name)["recipe"]
    assert recipe["method"] == method and recipe["average"]
    radii = ["--eps-x", "0.1", "--eps-w", "0.01"] if data == "mine.csv" else []
    main(["train", "--data", data, "--method", name, *radii, "--lr", "0.5", "--print-config"])
    said = capsys.readouterr().out
    assert f"method: {method}" in said and "lr: 0.5" in said and f"average: {recipe['average']}" in said


# ---------------------------------------------------------------- the leaderboard


def script(name):
    found = importlib.util.spec_from_file_location(name, BOARD / f"{name}.py")
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module  # where pydantic looks up the types of a field
    found.loader.exec_module(module)
    return module


def test_the_board_is_read_from_run_directories(tmp_path, monkeypatch):
    runs, out = tmp_path / "runs", tmp_path / "out"
    for model, folder in (("zoo:digits/joint", "joint"), ("<script>alert(1)</script>.py:net", "crafted")):
        (runs / folder).mkdir(parents=True)
        (runs / folder / "model.json").write_text(json.dumps({"model": model}))
    args = [
        "evaluate",
        "zoo:digits/joint",
        "--scope",
        "dataset",
        "--eps-x",
        "0,0.1",
        "--eps-w",
        "0,0.01",
        "--limit",
        "30",
        "--workers",
        "1",
    ]
    main([*args, "--out", str(runs / "joint" / "dataset")])
    chips = ["--fault", "bit-error", "--rates", "0,0.001,0.01", "--chips", "2", "--limit", "30", "--workers", "1"]
    main(["evaluate", "zoo:digits/joint", *chips, "--out", str(runs / "joint" / "int8")])
    (runs / "joint" / "flips.json").write_text(json.dumps({"flips": 7}))
    out.mkdir()
    (out / "README.md").write_text("before\n<!-- table -->\nold\n<!-- end of table -->\nafter\n")
    monkeypatch.setattr(sys, "argv", ["board.py", str(runs), "--out", str(out)])
    script("board").main()
    rows = {row["model"]: row for row in json.loads((out / "board.json").read_text())}
    surface = read_surface(runs / "joint" / "dataset")
    mine = rows["zoo:digits/joint"]
    assert mine["auc"] == surface.auc and mine["flips"] == 7 and mine["sample"] is None
    assert mine["ber2"] <= mine["int8"] <= 100 and mine["seconds"] == zoo.card("digits/joint")["cpu_seconds"]
    text, page = (out / "README.md").read_text(), (out / "board.html").read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert f"{surface.auc:.3f}" in text and f"{surface.auc:.3f}" in page
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page


def test_a_submission_is_one_file_and_is_verified(tmp_path, monkeypatch):
    (tmp_path / "net.py").write_text(
        "import torch\n\ndef net():\n    torch.manual_seed(0)\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"
    )
    mine = tmp_path / "mine.yaml"
    mine.write_text("name: a/net <b>\nmodel: net.py:net\ndata: digits\nby: someone\n")
    measure, out = script("measure"), tmp_path / "out"
    monkeypatch.setitem(measure.PARTS, "dataset", ("--eps-x", "0,0.1", "--eps-w", "0", "--limit", "9", "--workers", "1"))
    argv = ["measure.py", str(mine), "--out", str(out), "--parts", "dataset", "flips", "--verify"]
    monkeypatch.setattr(sys, "argv", argv)
    measure.main()
    row = script("board").row(out / "a-net-b-")
    assert row["model"] == "a/net <b> (someone)" and row["auc"] is not None
    assert row["flips"] == json.loads((out / "a-net-b-" / "flips.json").read_text())["flips"]
    mine.write_text("name: net\nmodle: net.py:net\n")
    with pytest.raises(SystemExit, match=r"mine.yaml: .*modle"):
        measure.main()


def test_the_kept_board_is_of_networks_that_there_are():
    for row in json.loads((BOARD / "board.json").read_text()):
        assert row["model"].removeprefix(zoo.PREFIX) in zoo.names()
        assert (row["certified"] or 0) <= (row["sample"] or 1) <= 1
        assert f"`{row['model']}`" in (BOARD / "README.md").read_text()


# ---------------------------------------------------------------- the search over methods


def test_every_draw_is_a_recipe_of_its_method_within_the_budget():
    optuna = pytest.importorskip("optuna")
    search, data = script("search"), ns.load("digits")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for method, (cost, numbers) in search.METHODS.items():
        for _ in range(3):
            recipe = search.drawn(method, 90, 64, study.ask())
            assert recipe.epochs * cost <= 90 + cost / 2
            assert all(low <= getattr(recipe, name) <= high for name, (low, high) in numbers.items())
            objective_in(recipe, data)(build(TrainSettings(recipe=recipe), (1, 8, 8), 10))
    assert set(search.METHODS) == set(OBJECTIVES) - {"quantised"}  # randbet rounds, too


def test_the_search_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    pytest.importorskip("optuna")
    search = script("search")
    monkeypatch.setitem(search.GRIDS, "digits", ((0.0, 0.1, 0.2), (0.0, 0.01, 0.02)))
    monkeypatch.setattr(search, "RELATIVE", (0.0, 0.02))

    def run(trials):
        budget = ["--passes", "2", "--seeds", "2", "--limit", "30", "--trials", str(trials), "--clips", "0.01"]
        argv = ["search.py", "digits", "--methods", "standard", *budget, "--out", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", argv)
        search.main()
        return [*csv.DictReader((tmp_path / "trials.csv").read_text().splitlines())]

    first, both = run(1), run(2)
    assert both[0] == first[0] and [row["trial"] for row in both] == ["0", "1"]
    kept = max(both, key=lambda row: float(row["auc"]))["trial"]
    tried = [row[1:3] for row in csv.reader((tmp_path / "clips.csv").read_text().splitlines())][-2:]
    assert [float(clip) for clip, _ in tried] == [0.0, 0.01]
    best = 0.01 if float(tried[1][1]) > float(tried[0][1]) else 0.0
    weights = load_file(next((tmp_path / "best").glob(f"standard-{kept}-clip{best:g}-seed1/model.safetensors")))
    assert best == 0 or max(float(w.abs().max()) for w in weights.values()) <= best + 1e-6
    table = (tmp_path / "table.md").read_text().splitlines()
    assert len(table) == 3 and "±" in table[2]


@pytest.fixture(scope="module")
def page():
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as play:
        if not Path(play.chromium.executable_path).exists():
            pytest.skip("no Chromium")
        browser = play.chromium.launch(args=["--no-sandbox"])
        found = browser.new_page()
        found.goto((BOARD / "board.html").as_uri())
        yield found
        browser.close()


def test_the_page_sorts_and_filters(page):
    rows = json.loads((BOARD / "board.json").read_text())
    page.get_by_role("button", name="AUC", exact=True).click()
    best = max(rows, key=lambda row: row["auc"] or -1)["model"]
    assert page.locator("tbody tr td").first.inner_text() == best
    page.get_by_label("Filter").fill("digits joint")
    kept = [row for row in rows if "digits" in row["model"] and "joint" in row["model"]]
    assert page.locator("tbody tr:not([hidden])").count() == len(kept)
