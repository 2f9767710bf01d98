"""The command line from outside: help, settings in and out, one JSON object, and one line for every mistake."""

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from nonsingular.cli import commands
from nonsingular.cli.main import main
from nonsingular.settings import ReproduceSettings

COMMANDS = ("certify", "demo", "train", "evaluate", "reproduce", "report", "list")
TINY = ["--eps-x", "0,0.1", "--eps-w", "0,0.01", "--limit", "20", "--workers", "1", "--quiet"]


def run(*argv):
    """Exit code of `nonsingular ...` in this process."""
    try:
        return main([str(a) for a in argv])
    except SystemExit as e:
        return e.code or 0


def process(*argv, cwd=None, **more):
    return subprocess.run(
        [sys.executable, "-m", "nonsingular.cli", *map(str, argv)],
        capture_output=True, text=True, check=False, cwd=cwd, env=os.environ | {"OMP_NUM_THREADS": "1"}, **more,
    )  # fmt: skip


def files(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() if p.is_file() else None for p in Path(folder).rglob("*")}


MODELS = """
import os
import torch
from torch import nn

def good():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

def fails():
    raise RuntimeError("first line\\nsecond line")

def number():
    return 3

def nan():
    model = good()
    model[1].weight.data[0, 0] = float("nan")
    return model

def other_inputs():
    return nn.Sequential(nn.Flatten(), nn.Linear(65, 10))

def conv():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 10))

def norm():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10))

def odd():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Mish())

def of_this_process():
    torch.manual_seed(os.getpid())
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

flat = lambda: nn.Linear(4, 3)
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run directory of two epochs."""
    out = tmp_path_factory.mktemp("trained") / "run"
    assert run("train", "--method", "standard", "--epochs", 2, "--out", out, "--quiet") == 0
    return out


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder with the files that commands are given."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    good = {
        "x_train": rng.random((20, 4)),
        "y_train": np.arange(20) % 3,
        "x_test": rng.random((6, 4)),
        "y_test": np.arange(6) % 3,
    }
    texts = {
        "m.py": MODELS, "broken.py": "def f(:\n", "typo.yaml": "epohs: 3\n",
        "nested.yaml": "recipe: {epohs: 3}\n", "list.yaml": "- 1\n",
        "torn.yaml": "{a: [\n", "data.yaml": "data: [1]\n", "empty.yaml": "",
        "negative.yaml": "recipe: {eps_x: -1}\n", "grid.yaml": "eps_x: [0.2, 0.1]\n",
        "recipe.yaml": "recipe: 5\n", "nothing.yaml": "recipe: null\n", "network.yaml": "network: 3\n", "keys.yaml": "1: 2\n",
        "html.safetensors": "<!DOCTYPE html><html>404</html>", "a-file": "x", "corrupt.npz": "PK nonsense",
    }  # fmt: skip
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    np.savez("flat.npz", **good)
    np.savez("labels.npz", **(good | {"y_test": np.full(6, -1)}))
    np.savez("four.npz", **{k: rng.random((len(v), 64)) if k.startswith("x") else v + 10 for k, v in good.items()})
    np.savez("empty.npz", **(good | {"x_test": np.zeros((0, 4)), "y_test": np.zeros(0, dtype=int)}))
    np.savez("wide.npz", **(good | {"x_test": rng.random((6, 4)) + 1}))
    np.savez("other.npz", a=np.zeros(3))
    save_file({"1.weight": torch.zeros(10, 64), "1.bias": torch.zeros(10)}, "fits.safetensors")
    save_file({"1.weight": torch.zeros(9, 64), "1.bias": torch.zeros(9)}, "another.safetensors")
    Path("cut.safetensors").write_bytes(Path("fits.safetensors").read_bytes()[:-100])
    Path("foreign").mkdir()
    Path("foreign/keep.txt").write_text("mine")
    Path("no-mnist/MNIST/raw").mkdir(parents=True)
    Path("bad-mnist").mkdir()
    for name in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
        Path("bad-mnist", name).write_bytes(b"not an image")
    return tmp_path


# ---------------------------------------------------------------- help


def test_the_demonstration_computes_where_and_in_what_is_asked(monkeypatch, tmp_path):
    asked = list[ReproduceSettings]()
    monkeypatch.setattr(commands, "_reproduce", lambda settings, *rest: asked.append(settings))
    monkeypatch.setattr(commands, "show", lambda results, out: None)
    for flags in ((), ("--dtype", "float64", "--device", "cpu", "--seeds", 1)):
        assert run("demo", "--out", tmp_path, *flags) == 0
    assert [(s.dtype, s.seeds) for s in asked] == [(None, 3), ("float64", 1)]
    assert asked[1].device == "cpu" and asked[0].eps_x == asked[1].eps_x


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    assert run(command, "--help") == 0
    out = capsys.readouterr().out
    assert f"nonsingular {command}" in out
    assert "Usage" in out


def test_help_names_every_command_and_the_exit_codes(capsys):
    assert run("--help") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert all(command in out for command in COMMANDS)
    assert all(code in out for code in ("0 done", "2 something", "130 interrupted", "143 by SIGTERM", "129 by SIGHUP"))


def test_main_returns_the_exit_code():
    assert main(["list", "attacks"]) == 0
    assert main(["list", "nothing"]) == 2


def test_version(capsys):
    import nonsingular

    assert run("--version") == 0
    assert capsys.readouterr().out.strip() == nonsingular.__version__


@pytest.mark.parametrize("argv", [["--help"], ["train", "--help"], ["evaluate", "--help"], ["list", "attacks"], ["nothing"]])
def test_help_is_quick_and_imports_no_torch(argv):
    code = (
        "import sys\nfrom nonsingular.cli.main import main\ntry: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "heavy = [m for m in ('torch', 'numpy', 'matplotlib') if m in sys.modules]\n"
        "print(*heavy, file=sys.stderr)\nsys.exit(len(heavy))"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    took = sum(getattr(after, t) - getattr(before, t) for t in ("ru_utime", "ru_stime"))  # others may be using the machine
    assert took < 1.5


@pytest.mark.parametrize("kind", ["attacks", "bounds", "objectives", "models", "data"])
def test_lists_say_what_each_name_is(kind, capsys):
    from nonsingular import catalog

    tables = {
        "attacks": catalog.ATTACKS, "bounds": catalog.BOUNDS, "objectives": catalog.OBJECTIVES, "models": catalog.MODELS,
        "data": catalog.DATASETS,
    }  # fmt: skip
    assert run("list", kind) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(tables[kind])
    assert all(len(line.split()) > 2 for line in lines)
    if kind in ("attacks", "bounds"):
        assert all("Source: " in line for line in lines)


def test_a_list_says_what_is_no_bound_and_what_moves_no_weights(capsys):
    assert run("list", "bounds") == run("list", "attacks") == 0
    said = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "No bound" in said["theorem1-printed"] and "false for three layers" in said["theorem1-printed"]
    assert "Lower bound" in said["crown"] and "small networks only" in said["exact"]
    assert "does not move weights" in said["square"] and "each example has its own weights" in said["neuron"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_states_its_default(command):
    """In what cyclopts shows, or in the text; the text says the default of the schema where there is one."""
    from nonsingular.cli.app import app
    from nonsingular.settings import CertifySettings, EvaluateSettings, Network, Recipe, ReproduceSettings, TrainSettings

    schemas = {
        "evaluate": [EvaluateSettings], "certify": [CertifySettings], "train": [TrainSettings, Recipe, Network],
        "reproduce": [ReproduceSettings],
    }.get(command, [])  # fmt: skip
    defaults = {name: f.default for schema in schemas for name, f in schema.model_fields.items()}
    for argument in app[command].assemble_argument_collection():
        text, name = argument.parameter.help or "", argument.name.removeprefix("--").replace("-", "_")
        if argument.name == "*" or not argument.parameter.show:
            continue  # what holds flags, and old names
        positional = not argument.name.startswith("--")
        if argument.required or argument.show_default or (positional and argument.field_info.default is not None):
            continue  # nothing to be left out, or shown as [default: ...]
        assert re.search(r"\bdefault\b", text, re.IGNORECASE), f"{command} {argument.name}: {text!r} states no default"
        known = defaults.get(name)
        if isinstance(known, str | int | float) and not isinstance(known, bool):
            assert f"{known:g}" in text if isinstance(known, float) else str(known) in text


# ---------------------------------------------------------------- one JSON object


def test_train_prints_one_json_object(here, capsys):
    assert run("train", "--data", "flat.npz", "--epochs", 1, "--out", "r", "--json") == 0
    captured = capsys.readouterr()
    summary = json.loads(captured.out)
    assert summary["out"] == "r"
    assert 0 <= summary["val_accuracy"] <= 1
    assert json.loads(Path("r/train.json").read_text()).items() <= summary.items()


def test_evaluate_prints_one_json_object(here, trained, capsys):
    assert run("evaluate", trained, *TINY, "--json", "--out", "e") == 0
    surface = json.loads(capsys.readouterr().out)
    assert np.shape(surface["accuracy"]) == (2, 2)
    results = json.loads(Path("e/results.json").read_text())
    assert next(iter(results["models"].values()))["surfaces"][0] == surface
    assert {"figure1.png", "figure1.svg", "report.html", "report.md", "config.yaml", "events.jsonl"} <= set(files("e"))
    effective = yaml.safe_load(Path("e/config.yaml").read_text())  # every default filled in
    assert not [k for k in ("data", "eps_x", "eps_w", "attack", "scope", "domain") if effective[k] is None]


def test_a_table_without_json(here, trained, capsys):
    assert run("evaluate", trained, *TINY, "--out", "e") == 0
    out = capsys.readouterr().out
    surface = next(iter(json.loads(Path("e/results.json").read_text())["models"].values()))["surfaces"][0]
    assert f"{100 * surface['accuracy'][0][0]:.1f}" in out


def test_certify_prints_one_json_object(here, trained, capsys):
    argv = ("certify", trained, "--eps-x", "0,0.02", "--eps-w", "0,0.002", "--limit", 20, "--workers", 1, "--out", "c")
    assert run(*argv, "--accuracy", "0.9,0.5", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kind"] == "certified"
    assert found["attack"] == "crown"
    assert [f["accuracy"] for f in found["fronts"]] == [0.9, 0.5]
    assert all(f["eps_x"] == [0.0, 0.02] and len(f["eps_w"]) == 2 for f in found["fronts"])
    for tight, loose in zip(*(f["eps_w"] for f in found["fronts"]), strict=True):
        assert (tight or 0) <= (loose or 0)
    assert Path("c/results.json").exists()
    assert Path("c/report.html").exists()
    assert run(*argv, "--accuracy", "0.9,0.5") == 0
    out = capsys.readouterr().out
    assert "certified" in out
    assert "for 90 %" in out


@pytest.mark.slow
def test_certificates_do_not_depend_on_the_workers(here, trained, capsys):
    found = []
    for workers in (1, 2):
        argv = ("certify", trained, "--eps-x", "0,0.02", "--eps-w", "0,0.002", "--limit", 60, "--accuracy", 0.5)
        assert run(*argv, "--workers", workers, "--out", f"w{workers}", "--json") == 0
        one = json.loads(capsys.readouterr().out)
        found.append((one["accuracy"], one["fronts"]))
    assert found[0] == found[1]


def test_evaluate_and_certify_in_one_run(here, trained, capsys):
    argv = ("evaluate", trained, "--eps-x", "0,0.02", "--eps-w", "0,0.002", "--limit", 20, "--out", "e", "--certify", "crown")
    assert run(*argv, "--workers", 2, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["certified"]["kind"] == "certified"
    assert found["certified"]["auc"] <= found["auc"]
    assert (np.array(found["certified"]["accuracy"]) <= np.array(found["accuracy"])).all()
    before = Path("e/events.jsonl").read_bytes()
    assert run(*argv, "--workers", 1, "--quiet") == 0
    assert Path("e/events.jsonl").read_bytes() == before  # nothing was done again
    assert run("report", "e") == 0


def test_an_attack_that_beats_a_certificate_ends_with_1(here, trained, capsys, put_bound):
    def wrong(model, x, y, ball):
        return torch.full((len(x), 10), 99.0, dtype=x.dtype).scatter(1, y[:, None], 0.0)

    put_bound("crown", wrong)
    argv = ("evaluate", trained, "--eps-x", "0,0.1", "--eps-w", "0,0.01", "--limit", 20, "--certify", "crown", "--workers", 1)
    assert run(*argv, "--out", "e", "--quiet") == 1
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert "please report it with e/violation-" in err
    assert list(Path("e").glob("violation-*.npz"))
    assert not Path("e/results.json").exists()


def tiny_reproduction():
    recipes = {n: {"epochs": 1} for n in ("standard", "weight-perturb", "at", "at-beta-1", "at-beta-2", "jiwp", "joint")}
    settings = yaml.safe_load(process("reproduce", "--data", "digits", "--print-config").stdout)
    for name, changes in recipes.items():
        settings["recipes"][name].update(changes)
    return settings | {
        "seeds": 1, "limit": 20, "eps_x": [0.0, 0.1], "eps_w": [0.0, 0.01],
        "network": {"name": "mlp", "hidden": [8], "bias": False},
    }  # fmt: skip


def test_reproduce_prints_one_json_object_and_can_be_drawn_again(here, capsys):
    Path("c.yaml").write_text(yaml.safe_dump(tiny_reproduction()))
    assert run("reproduce", "--config", "c.yaml", "--out", "r", "--workers", 1, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert set(printed["models"]) == {"standard", "weight-perturb", "at", "at-beta-1", "at-beta-2", "jiwp", "joint"}
    assert {"C1", "C2", "C3", "C4", "C5", "C6"} <= set(printed["claims"])
    assert {claim["verdict"] for claim in printed["claims"].values()} == {"undecided"}  # one seed
    before = files("r")
    for name in ("figure1.png", "figure1.svg", "report.html", "report.md"):
        Path("r", name).unlink()
    assert run("report", "r") == 0
    after = files("r")
    assert {n for n in before if before[n] != after.get(n)} == set()


def test_reproduce_when_every_attack_wins_still_gives_a_page(here, capsys):
    """All AUCs 0 at radii that break everything: nothing may be divided by them."""
    settings = tiny_reproduction() | {"eps_x": [1.0], "eps_w": [5.0]}
    Path("c.yaml").write_text(yaml.safe_dump(settings))
    assert run("reproduce", "--config", "c.yaml", "--out", "r", "--workers", 1, "--json") == 0
    assert all(auc == [0.0] for auc in json.loads(capsys.readouterr().out)["models"].values())


# ---------------------------------------------------------------- settings in and out


@pytest.mark.parametrize(
    "argv",
    [
        ["train", "--method", "joint", "--epochs", "3", "--hidden", "5,4", "--bias", "--seed", "7"],
        ["train", "--data", "some.npz", "--network", "conv", "--lr", "0.5"],
        ["evaluate", "some-run", "--eps-x", "0:0.2:3", "--eps-w", "0,0.01", "--scope", "batch", "--limit", "7", "--relative"],
        ["evaluate", "m.py:good", "--eps-w", "1.weight=0.1,1.bias=0.2", "--domain", "none", "--moves", "all", "--limit", "none"],
        ["evaluate", "m.py:good", "--domain=-1,1", "--attack", "paper", "--split", "val", "--weights", "w.safetensors"],
        ["reproduce", "--data", "digits", "--seeds", "2", "--limit", "none"],
        ["reproduce"],
    ],
)
def test_printed_settings_give_the_same_settings(here, argv, capsys):
    assert run(*argv, "--print-config") == 0
    printed = capsys.readouterr().out
    Path("again.yaml").write_text(printed)
    before = files(here)
    assert run(argv[0], "--config", "again.yaml", "--print-config") == 0
    assert capsys.readouterr().out == printed
    assert files(here) == before  # nothing ran


def printed(capsys, *argv):
    assert run(*argv, "--print-config") == 0
    return yaml.safe_load(capsys.readouterr().out)


def test_flags_win_over_the_file_and_the_file_over_the_preset(here, capsys):
    Path("c.yaml").write_text("data: digits\nrecipe: {method: at, epochs: 5, lr: 0.25}\n")
    got = printed(capsys, "train", "--config", "c.yaml", "--epochs", "9")
    assert (got["recipe"]["method"], got["recipe"]["epochs"], got["recipe"]["lr"]) == ("at", 9, 0.25)
    assert got["recipe"]["eps_x"] == 0.1  # of the preset for `at`
    Path("c.yaml").write_text("model: a\neps_x: [0, 0.5]\nlimit: 3\n")
    got = printed(capsys, "evaluate", "b", "--config", "c.yaml", "--eps-x", "0:1:3")
    assert (got["model"], got["eps_x"], got["limit"]) == ("b", [0, 0.5, 1], 3)
    Path("c.yaml").write_text("data: mnist\n")
    assert printed(capsys, "reproduce", "--config", "c.yaml", "--data", "digits")["data"] == "digits"
    Path("c.yaml").write_text("seeds: 7\n")
    assert printed(capsys, "reproduce", "--config", "c.yaml", "--seeds", "2")["seeds"] == 2


def test_a_flag_replaces_the_radii_of_the_file_by_tensor(here, capsys):
    Path("c.yaml").write_text("model: a\neps_w: {1.weight: 0.1, 3.weight: 0.2}\n")
    assert printed(capsys, "evaluate", "--config", "c.yaml", "--eps-w", "1.weight=0.5")["eps_w"] == {"1.weight": 0.5}
    assert printed(capsys, "evaluate", "--config", "c.yaml", "--eps-w", "0,0.5")["eps_w"] == [0, 0.5]


def test_a_recipe_named_at_is_not_trained_as_standard(here, capsys):
    """A file that changes one number of a recipe keeps the others of the preset, above all its method; or it is refused."""
    Path("c.yaml").write_text("data: digits\nrecipes: {at: {epochs: 2}}\nnetwork: {bias: true}\n")
    if run("reproduce", "--config", "c.yaml", "--print-config") == 0:
        got = yaml.safe_load(capsys.readouterr().out)
        assert (got["recipes"]["at"]["method"], got["recipes"]["at"]["eps_x"], got["recipes"]["at"]["epochs"]) == ("at", 0.1, 2)
        assert got["network"] == {"name": "mlp", "hidden": [64, 32], "bias": True}


def test_a_run_whose_data_moved_takes_the_new_folder(here, shared_data):
    """Trained with --data-dir on another machine; --data-dir of evaluate must be enough."""
    from nonsingular.models.architectures import mlp

    if not (shared_data / "MNIST").is_dir():
        pytest.skip("no MNIST here")
    Path("moved").mkdir()
    Path("moved/config.yaml").write_text("{data: mnist, data_dir: /gone, network: {hidden: [8]}, recipe: {method: standard}}")
    save_file(
        mlp((1, 28, 28), 10, hidden=(8,)).state_dict(),
        "moved/model.safetensors",
        {"built_for": '{"input_shape": [1, 28, 28], "classes": 10}'},
    )
    assert run("evaluate", "moved", "--data-dir", shared_data, *TINY, "--out", "e") == 0


def test_hidden_none_is_a_single_layer_or_refused(here, capsys):
    """`--hidden ''` must not silently build the default network."""
    code = run("train", "--data", "flat.npz", "--hidden", "", "--print-config")
    assert code == 2 or yaml.safe_load(capsys.readouterr().out)["network"]["hidden"] == []


# ---------------------------------------------------------------- mistakes

EVALUATE = ("evaluate", "m.py:good", "--data", "digits", "--out", "out", "--workers", 1, "--quiet")
GRID = ("--eps-x", "0,0.1", "--eps-w", "0,0.01", "--limit", 5)
FLAT = ("--eps-x", 0, "--eps-w", 0, "--out", "out", "--workers", 1, "--quiet")
CERTIFY = ("certify", "m.py:good", "--data", "digits", "--out", "out", "--workers", 1, "--quiet")
TRAIN = ("train", "--epochs", 1, "--out", "out", "--quiet")

MISTAKES = {
    "unknown command": (("evalute",), "evaluate"),
    "unknown flag": (("train", "--epchs", 3), "--epochs"),
    "bad number": (("train", "--epochs", "x", "--out", "out"), "recipe.epochs"),
    "no value": (("train", "--epochs"), "--epochs"),
    "flag twice": ((*EVALUATE, "--eps-x", 0, "--eps-x", 1), "--eps-x"),
    "no model": (("evaluate",), "model"),
    "two models": (("evaluate", "a", "b"), "b"),
    "unknown list": (("list", "atacks"), "attacks"),
    "negative radius": ((*TRAIN, "--eps-x", -0.1), "-0.1"),
    "radius that is no number": ((*TRAIN, "--eps-w", "nan"), "nan"),
    "zero epochs": (("train", "--epochs", 0, "--out", "out"), "epochs"),
    "negative seed": ((*TRAIN, "--seed", -1), "seed"),
    "seed too large": ((*TRAIN, "--seed", 10**20), "seed"),
    "zero lr": ((*TRAIN, "--lr", 0), "lr"),
    "widths": ((*TRAIN, "--hidden", "8,x"), "hidden"),
    "width zero": ((*TRAIN, "--hidden", "0"), "hidden"),
    "unknown method": ((*TRAIN, "--method", "att"), "'att'"),
    "unknown network": ((*TRAIN, "--network", "mpl"), "mlp"),
    "unknown data": ((*TRAIN, "--data", "digit"), "digits"),
    "convolution of flat data": ((*TRAIN, "--data", "flat.npz", "--network", "conv"), "conv"),
    "method that needs a dense network": ((*TRAIN, "--network", "conv", "--method", "jiwp"), "conv2d"),
    "adversarial training without a radius": ((*TRAIN, "--data", "flat.npz", "--method", "at"), "eps_x"),
    "weight perturbation without a radius": ((*TRAIN, "--data", "flat.npz", "--method", "weight-perturb"), "eps_w"),
    "unsorted grid": ((*EVALUATE, "--eps-x", "0.2,0.1", "--eps-w", 0), "increasing"),
    "negative grid": ((*EVALUATE, "--eps-x=-0.1", "--eps-w", 0), "-0.1"),
    "grid of words": ((*EVALUATE, "--eps-x", "a", "--eps-w", 0), "low:high:points"),
    "grid of one point": ((*EVALUATE, "--eps-x", "0:1:1", "--eps-w", 0), "0:1:1"),
    "grid without points": ((*EVALUATE, "--eps-x", "0:1", "--eps-w", 0), "0:1"),
    "empty grid": ((*EVALUATE, "--eps-x", "", "--eps-w", 0), "eps_x"),
    "grid with nan": ((*EVALUATE, "--eps-x", "0,nan", "--eps-w", 0), "nan"),
    "grid with infinity": ((*EVALUATE, "--eps-x", "0,inf", "--eps-w", 0), "inf"),
    "unknown layer": ((*EVALUATE, "--eps-x", 0, "--eps-w", "2.weight=0.1"), "2.weight"),
    "negative radius of a layer": ((*EVALUATE, "--eps-x", 0, "--eps-w", "1.weight=-1"), "-1"),
    "radius of a layer that is no number": ((*EVALUATE, "--eps-x", 0, "--eps-w", "1.weight=x"), "1.weight=x"),
    "limit 0": ((*EVALUATE, *GRID[:4], "--limit", 0), "limit"),
    "limit of words": ((*EVALUATE, *GRID[:4], "--limit", "few"), "few"),
    "unknown attack": ((*EVALUATE, *GRID, "--attack", "papper"), "paper"),
    "unknown scope": ((*EVALUATE, *GRID, "--scope", "al"), "sample"),
    "unknown split": ((*EVALUATE, *GRID, "--split", "train"), "train"),
    "unknown moves": ((*EVALUATE, *GRID, "--moves", "bias"), "bias"),
    "domain of one number": ((*EVALUATE, *GRID, "--domain", 1), "domain"),
    "domain upside down": ((*EVALUATE, *GRID, "--domain", "1,0"), "domain"),
    "domain of words": ((*EVALUATE, *GRID, "--domain", "a,b"), "domain"),
    "batch size 0": ((*EVALUATE, *GRID, "--batch-size", 0), "batch_size"),
    "workers 0": ((*EVALUATE[:-3], "--quiet", *GRID, "--workers", 0), "workers"),
    "negative workers": ((*EVALUATE[:-3], "--quiet", *GRID, "--workers", -2), "workers"),
    "attack in another scope": ((*EVALUATE, *GRID, "--attack", "neuron", "--scope", "batch"), "scope"),
    "attack on another network": (("evaluate", "m.py:conv", *EVALUATE[2:], *GRID, "--attack", "neuron"), "conv2d"),
    "no data": (("evaluate", "m.py:good", *GRID, "--out", "out"), "--data"),
    "x outside the domain": ((*EVALUATE, *GRID, "--domain", "0.2,0.4"), "outside"),
    "no such model": (("evaluate", "nowhere", "--out", "out"), "nowhere"),
    "model name too long": (("evaluate", "x" * 300, "--out", "out"), "xxx"),
    "folder that is no run": (("evaluate", "foreign", "--out", "out"), "foreign"),
    "no such python file": (("evaluate", "nowhere.py:f", "--data", "digits", "--out", "out"), "nowhere.py"),
    "no such function": (("evaluate", "m.py:nope", "--data", "digits", "--out", "out"), "nope"),
    "no function": (("evaluate", "m.py", "--data", "digits", "--out", "out"), "function"),
    "function that fails": (("evaluate", "m.py:fails", "--data", "digits", "--out", "out"), "first line"),
    "file that does not parse": (("evaluate", "broken.py:f", "--data", "digits", "--out", "out"), "SyntaxError"),
    "function that returns no module": (("evaluate", "m.py:number", "--data", "digits", "--out", "out"), "int"),
    "another network for the data": (("evaluate", "m.py:other_inputs", *EVALUATE[2:], *GRID), "shape"),
    "NaN model": (("evaluate", "m.py:nan", *EVALUATE[2:], *GRID), "NaN"),
    "weights missing": ((*EVALUATE, *GRID, "--weights", "nowhere.safetensors"), "nowhere.safetensors"),
    "weights truncated": ((*EVALUATE, *GRID, "--weights", "cut.safetensors"), "cut.safetensors"),
    "weights html": ((*EVALUATE, *GRID, "--weights", "html.safetensors"), "html.safetensors"),
    "weights of another network": ((*EVALUATE, *GRID, "--weights", "another.safetensors"), "another.safetensors"),
    "weights a folder": ((*EVALUATE, *GRID, "--weights", "foreign"), "foreign"),
    "labels out of range": (("evaluate", "m.py:good", "--data", "four.npz", *FLAT), "labels"),
    "labels negative": (("evaluate", "m.py:flat", "--data", "labels.npz", *FLAT), "labels.npz"),
    "no examples": (("evaluate", "m.py:flat", "--data", "empty.npz", *FLAT), "empty.npz"),
    "npz outside the domain": (("evaluate", "m.py:flat", "--data", "wide.npz", *FLAT), "wide.npz"),
    "npz of other arrays": (("evaluate", "m.py:flat", "--data", "other.npz", *FLAT), "x_train"),
    "npz corrupt": (("evaluate", "m.py:flat", "--data", "corrupt.npz", *FLAT), "corrupt.npz"),
    "npz missing": ((*TRAIN, "--data", "nowhere.npz"), "nowhere.npz"),
    "data of another shape": (("evaluate", "m.py:good", "--data", "flat.npz", *FLAT), "shape"),
    "data folder missing": ((*TRAIN, "--data", "mnist", "--data-dir", "nowhere"), "nowhere"),
    "data folder empty": ((*TRAIN, "--data", "mnist", "--data-dir", "no-mnist"), "no-mnist"),
    "data folder corrupt": ((*TRAIN, "--data", "mnist", "--data-dir", "bad-mnist"), "bad-mnist"),
    "config missing": ((*TRAIN, "--config", "nowhere.yaml"), "nowhere.yaml"),
    "config a folder": ((*TRAIN, "--config", "foreign"), "foreign"),
    "config a list": ((*TRAIN, "--config", "list.yaml"), "list"),
    "config empty": ((*TRAIN, "--config", "empty.yaml"), "empty.yaml"),
    "config torn": ((*TRAIN, "--config", "torn.yaml"), "torn.yaml"),
    "config with a typo": ((*TRAIN, "--config", "typo.yaml"), "epohs"),
    "config with a nested typo": ((*TRAIN, "--config", "nested.yaml"), "epochs"),
    "config with a bad value": (("train", "--out", "out", "--config", "negative.yaml"), "recipe.eps_x"),
    "config with a list for data": ((*TRAIN, "--config", "data.yaml"), "data"),
    "config with a number for recipe": ((*TRAIN, "--config", "recipe.yaml"), "recipe"),
    "config with nothing for recipe": ((*TRAIN, "--config", "nothing.yaml"), "recipe"),
    "config with a number for network": ((*TRAIN, "--config", "network.yaml"), "network"),
    "config with a number for a key": ((*TRAIN, "--config", "keys.yaml"), "1"),
    "config with a bad grid": (("reproduce", "--data", "digits", "--out", "out", "--config", "grid.yaml"), "increas"),
    "reproduce config with a list for data": (("reproduce", "--out", "out", "--config", "data.yaml"), "data"),
    "out a file": ((*TRAIN[:3], "--quiet", "--out", "a-file"), "a-file"),
    "out below a file": ((*TRAIN[:3], "--quiet", "--out", "a-file/run"), "a-file"),
    "out a foreign folder": ((*TRAIN[:3], "--quiet", "--out", "foreign"), "foreign"),
    "out that cannot be made": ((*TRAIN[:3], "--quiet", "--out", "/proc/nonsingular/run"), "/proc/nonsingular"),
    "out too long": ((*TRAIN[:3], "--quiet", "--out", "x" * 300), "xxx"),
    "evaluate into a file": ((*EVALUATE[:4], *GRID, "--out", "a-file"), "a-file"),
    "evaluate into a foreign folder": ((*EVALUATE[:4], *GRID, "--out", "foreign"), "foreign"),
    "seeds 0": (("reproduce", "--data", "digits", "--seeds", 0, "--out", "out"), "seeds"),
    "demo with seeds 0": (("demo", "--seeds", 0, "--out", "out"), "seeds"),
    "demo on a device that is not there": (("demo", "--device", "cuda:99", "--out", "out", "--quiet"), "cuda:99"),
    "demo in unknown numbers": (("demo", "--dtype", "float16", "--out", "out"), "float16"),
    "reproduce limit 0": (("reproduce", "--data", "digits", "--limit", 0, "--out", "out"), "limit"),
    "reproduce of other data": (("reproduce", "--data", "cifar10", "--out", "out"), "cifar10"),
    "reproduce without data": (("reproduce", "--data", "mnist", "--data-dir", "nowhere", "--out", "out", "--quiet"), "nowhere"),
    "report of nothing": (("report", "nowhere"), "nowhere"),
    "unknown bound": ((*CERTIFY, *GRID, "--bound", "crwn"), "crown"),
    "a bound that is none": ((*CERTIFY, *GRID, "--bound", "theorem1-printed"), "sound bound"),
    "a share above one": ((*CERTIFY, *GRID, "--accuracy", "0.9,1.5"), "1.5"),
    "a share that is no number": ((*CERTIFY, *GRID, "--accuracy", "most"), "most"),
    "certify without a rule": ((*CERTIFY[:1], "m.py:odd", *CERTIFY[2:], *GRID), "mish"),
    "theorem on a convolution": ((*CERTIFY[:1], "m.py:conv", *CERTIFY[2:], *GRID, "--bound", "theorem1"), "conv2d"),
    "evaluate with an unknown bound": ((*EVALUATE, *GRID, "--certify", "ibp"), "interval"),
    "evaluate and certify without a rule": (
        ("evaluate", "m.py:odd", *EVALUATE[2:], *GRID, "--attack", "paper", "--certify", "crown"), "mish",
    ),
    "report of a training run": (("report", "foreign"), "results.json"),
}  # fmt: skip
USAGE = {"unknown command", "unknown flag", "no value", "flag twice", "two models"}


def complaint(code, err, name, quoted):
    """One line for what is wrong, nothing else."""
    assert code == 2
    assert "Traceback" not in err
    lines = err.strip().splitlines()
    assert sum(line.startswith("error: ") for line in lines) == 1
    first = next(i for i, line in enumerate(lines) if line.startswith("error: "))
    assert lines[first + 1 :] == (["see: nonsingular --help"] if name in USAGE else [])
    assert quoted in lines[first]
    assert lines[:first] == []


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(name, here, capsys):
    argv, quoted = MISTAKES[name]
    before = files(here)
    code = run(*argv)
    captured = capsys.readouterr()
    complaint(code, captured.err, name, quoted)
    assert captured.out == ""
    assert {n for n in files(here) if n not in before and "__pycache__" not in n} == set()
    assert {n for n in before if before[n] != files(here).get(n)} == set()


@pytest.mark.parametrize("name", ["unknown flag", "npz corrupt"])
def test_a_mistake_in_a_process_of_its_own(name, here):
    argv, quoted = MISTAKES[name]
    done = process(*argv, cwd=here)
    complaint(done.returncode, done.stderr, name, quoted)
    assert done.stdout == ""


@pytest.mark.parametrize("argv", [("train", "--data", "nowhere.npz", "--out", "out"), ("evaluate", "nowhere", "--out", "out")])
def test_a_mistake_shows_no_progress_bar(argv, here, capsys):
    assert run(*argv) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.mark.parametrize("flag, nearest", [("--epchs", "--epochs"), ("--metod", "--method"), ("--sed", "--seed")])
def test_flags_are_guessed(flag, nearest, capsys):
    assert run("train", flag, 1) == 2
    assert f"Did you mean {nearest}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command, text, nearest",
    [("train", "dat: digits", "data"), ("train", "recipe: {mehod: at}", "method"), ("train", "network: {hiden: [3]}", "hidden"),
     ("evaluate", "model: a\nscop: batch", "scope"), ("reproduce", "data: digits\nseed: 1", "seeds"),
     ("reproduce", "data: digits\nrecipes: {standard: {epoch: 1}}", "epochs")],
)  # fmt: skip
def test_keys_of_a_file_are_guessed(command, text, nearest, here, capsys):
    Path("c.yaml").write_text(text + "\n")
    assert run(command, "--config", "c.yaml", "--print-config") == 2
    assert f"did you mean '{nearest}'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["[]", "3", "null", '{"format": 1}', "not json", '{"format": 99}'])
def test_results_that_are_none_are_refused(name, here, capsys):
    Path("r").mkdir()
    Path("r/results.json").write_text(name)
    assert run("report", "r") == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert len(err.strip().splitlines()) == 1
    assert set(files("r")) == {"results.json"}


def test_report_draws_an_evaluation_again(here, trained):
    assert run("evaluate", trained, *TINY, "--out", "e") == 0
    before = files("e")
    for name in ("figure1.png", "figure1.svg", "report.html", "report.md"):
        Path("e", name).unlink()
    assert run("report", "e") == 0
    assert files("e") == before


def test_weights_beside_a_run_directory_are_refused_or_used(here, trained, capsys):
    """A run directory has its own weights: --weights must not be silently dropped."""
    assert run("evaluate", trained, *TINY, "--weights", "nowhere.safetensors", "--out", "e") == 2
    assert "weights" in capsys.readouterr().err


def test_the_weights_are_those_of_the_file(here, trained, capsys):
    zero = {k: torch.zeros_like(v) for k, v in load_file("fits.safetensors").items()}
    zero["1.bias"][3] = 1.0
    save_file(zero, "three.safetensors")
    assert run("evaluate", "m.py:good", "--weights", "three.safetensors", "--data", "digits", "--limit", "none",
               "--eps-x", 0, "--eps-w", 0,
               "--workers", 1, "--out", "e", "--json") == 0  # fmt: skip
    import nonsingular

    y = nonsingular.load("digits").test.y
    surface = json.loads(capsys.readouterr().out)
    assert surface["accuracy"][0][0] == pytest.approx((y == 3).double().mean().item())
    assert surface["flags"] == [{"row": 0, "column": 0, "flags": ["one-class"]}]


def test_a_model_that_each_process_builds_otherwise_is_refused(here):
    """file.py:function without a seed gives every worker its own weights: that is no surface of one model."""
    done = process(
        "evaluate",
        "m.py:of_this_process",
        "--data",
        "digits",
        *TINY[:-3],
        "--workers",
        2,
        "--quiet",
        "--out",
        "e",
        cwd=here,
        timeout=60,
    )
    assert done.returncode == 2, done.stdout
    assert done.stderr.splitlines()[-1].startswith("error: ")  # a random model may be warned of before


def test_a_run_directory_that_was_damaged_is_refused(here, trained, capsys):
    import shutil

    for name, text in (("config.yaml", "- 1"), ("config.yaml", "data: digitz"), ("model.safetensors", "cut")):
        shutil.rmtree("copy", ignore_errors=True)
        shutil.copytree(trained, "copy")
        Path("copy", name).write_text(text)
        assert run("evaluate", "copy", *TINY, "--out", "e") == 2
        assert capsys.readouterr().err.startswith("error: ")
        assert not Path("e").exists()
    Path("copy/model.safetensors").unlink()
    assert run("evaluate", "copy", *TINY, "--out", "e") == 2


def test_standard_output_may_be_closed_early():
    """`nonsingular list attacks | head -0` must not print a traceback."""
    command = f"{sys.executable} -m nonsingular.cli list attacks | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
