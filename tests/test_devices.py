"""Devices and types of numbers: what a name means, and that nothing of the library stays on the CPU by mistake.

No GPU is needed: `away.py` is a device that refuses to meet tensors of the CPU and computes their bits.
"""

import ast
import json
from pathlib import Path

import pytest
import torch
from torch import nn

import nonsingular as ns
from away import elsewhere
from nonsingular.catalog import ATTACKS, BOUNDS
from nonsingular.cli.main import main
from nonsingular.errors import InvalidInput, UnsupportedModel
from nonsingular.evaluation.problem import Case, Method
from nonsingular.network import devices
from nonsingular.network.devices import device_of, placed

PACKAGE = Path(ns.__file__).parent


def network(kind="dense"):
    torch.manual_seed(0)
    if kind == "dense":
        return nn.Sequential(nn.Flatten(), nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    return nn.Sequential(nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)).eval()


def examples():
    g = torch.Generator().manual_seed(1)
    return torch.rand(6, 1, 3, 3, generator=g), torch.randint(3, (6,), generator=g)


# --- a device that is not the CPU -----------------------------------------------------------------------------------------


def test_the_device_of_these_tests_refuses_what_a_gpu_refuses():
    x = torch.rand(3)
    with elsewhere() as there:
        moved = x.to(there)
        assert (moved + 1).device == there
        assert torch.equal((moved * torch.tensor(2.0)).cpu(), 2 * x)  # numbers without dimensions may meet
        assert torch.equal(moved[torch.tensor([2, 0])].cpu(), x[[2, 0]])  # so may indices
        for mixed in (
            lambda: moved + x,
            lambda: torch.cat([moved, x]),
            lambda: x[moved.argsort()],
            lambda: network()(examples()[0].to(there)),
        ):
            with pytest.raises(RuntimeError):
                mixed()
        with pytest.raises(TypeError, match="numpy"):
            moved.numpy()


def everywhere(compute):
    """What a function of a device returns on the CPU and elsewhere."""
    here = compute(torch.device("cpu"))
    with elsewhere() as there:
        return here, compute(there)


QUICK = {("strongest", "sample", "dense"), ("strongest", "dataset", "dense"), ("paper", "batch", "conv")}


@pytest.mark.parametrize(
    "attack, scope, kind",
    [
        pytest.param(name, scope, kind, marks=[] if (name, scope, kind) in QUICK else pytest.mark.slow)
        for name, entry in ATTACKS.items()
        for scope in entry.scopes
        for kind in (("dense",) if entry.dense else ("dense", "conv"))
    ],
)
def test_attacks_stay_where_the_model_is(attack, scope, kind):

    def compute(device):
        found = ns.evaluate(
            network(kind), examples(), eps_x=[0, 0.1], eps_w=[0, 0.05], scope=scope, attack=attack, device=device, seed=3
            if ATTACKS[attack].seeded else None,
        )  # fmt: skip
        return found.accuracy.tolist(), found.outcomes.tolist()

    here, there = everywhere(compute)
    assert here == there


@pytest.mark.parametrize("kind", ["dense", pytest.param("conv", marks=pytest.mark.slow)])
@pytest.mark.parametrize("bound", BOUNDS)
def test_bounds_stay_where_the_model_is(bound, kind):
    x, y = examples()

    def compute(device):
        return BOUNDS[bound](network(kind).to(device), x.to(device), y.to(device), ns.JointBall(0.02, 0.01)).cpu()

    try:
        here, there = everywhere(compute)
    except UnsupportedModel as e:
        pytest.skip(str(e))
    assert torch.allclose(here, there, atol=1e-6)  # gradients are summed in another order there


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["sample", "batch", "dataset"])
def test_certified_surfaces_stay_where_the_model_is(scope):
    def compute(device):
        found = ns.evaluate(network(), examples(), eps_x=[0, 0.02], eps_w=[0, 0.005], scope=scope, certify="crown", device=device)
        shared = None if found.shared is None else found.shared.accuracy.tolist()
        return found.accuracy.tolist(), found.certified.accuracy.tolist(), shared

    here, there = everywhere(compute)
    assert here == there


@pytest.mark.slow
@pytest.mark.parametrize(
    "ask",
    [
        lambda model, x, y: ns.decide(model, x, y, ns.JointBall(0.02, 0.01)).status,
        lambda model, x, y: ns.certified_radius(model, x, y, ns.JointBall(0.02, 0.01)).nan_to_num(-1.0).tolist(),
        lambda model, x, y: ns.certified_front(model, x, y, ns.JointBall(0.02, 0.01)).eps_w.nan_to_num(-1.0).tolist(),
        lambda model, x, y: ns.certify_shared(model, x, y, ns.JointBall(0.02, 0.005)).broken,
        lambda model, x, y: ns.certify(model, x, y, ns.JointBall(0.02, 0.005), deployed="float32").verified.tolist(),
        lambda model, x, y: ns.masking(model, (x, y), ns.JointBall(0.05, 0.02)).to_dict(),
        lambda model, x, y: ns.campaign(model, (x, y), rates=[0, 0.01], eps_x=[0, 0.05], chips=2).to_dict(),
        lambda model, x, y: ns.flip_attack(model, x, y, flips=2).accuracy,
        lambda model, x, y: ns.certify_flips(model, x, y, flips=1).verified.tolist(),
    ],
)
def test_other_questions_stay_where_the_model_is(ask):
    x, y = examples()
    here, there = everywhere(lambda device: ask(network().to(device), x.to(device), y.to(device)))
    assert str(here) == str(there)


@pytest.mark.parametrize("method", ["joint", *(pytest.param(m, marks=pytest.mark.slow) for m in ("standard", "at"))])
def test_training_stays_where_the_model_is(method):
    x, y = examples()
    radii = {"joint": {"eps_x": 0.05, "eps_w": 0.01}, "at": {"eps_x": 0.05}}.get(method, {})

    def compute(device):
        model = network().to(device)
        trained = ns.train(model, (x.to(device), y.to(device)), method=method, epochs=2, batch_size=3, **radii)
        return [p.detach().cpu().tolist() for p in trained.model.parameters()]

    here, there = everywhere(compute)
    assert here == there


# --- what makes tensors ---------------------------------------------------------------------------------------------------

MAKERS = {"zeros", "ones", "empty", "full", "arange", "eye", "linspace", "rand", "randn", "randint", "randperm", "Generator"}
ON_THE_CPU = {
    "attacks/search/graph_unknowns.py": "moved as a whole",
    "attacks/search/neuron_unknowns.py": "moved as a whole",
    "attacks/search/weight_unknowns.py": "numbers of groups, which index tensors",
    "bounds/highs.py": "the solver reads NumPy arrays",
    "bounds/parts.py": "numbers of parts, which index tensors",
    "bounds/theorem.py": "numbers of examples, which index tensors",
    "bounds/program.py": "numbers of columns, which index tensors",
    "bounds/points.py": "of a dtype alone, moved by what it meets",
    "certificates/radii.py": "numbers of steps, one for each example, are kept on the CPU",
    "certificates/vulnerability.py": "counts of items, which are kept on the CPU",
    "data/vnnlib.py": "what a file states",
    "evaluation/campaign.py": "chips draw their faults on the CPU, so that they are the same everywhere",
    "evaluation/clock.py": "which examples are timed",
    "evaluation/masking.py": "which examples are looked at",
    "evaluation/preflight.py": "which examples are looked at",
    "faults/": "words are made on the CPU, so that they are the same everywhere",
    "network/calling.py": "multiplied after `.to`",
    "network/calls.py": "places in a tensor, which index it",
    "network/constants.py": "the dtype and device of a model without weights",
    "network/derivatives.py": "places in a tensor, which index it",
    "network/graph.py": "the dtype and device of a model without weights",
    "network/heads.py": "drawn on the CPU and moved, so that it is the same everywhere",
    "network/rules/": "constants of a graph, moved when it is bound",
    "threat/columns.py": "radii of columns as they were given, moved by the ball",
    "training/train.py": "which examples are set aside",
    "training/moved.py": "a sum that is moved to its first part",
}
"""Files that make tensors on the CPU, and why that is right.  A new call elsewhere needs `device=`, or a line here."""


def made_on_the_cpu():
    """(path, line) of every call of the numeric folders that makes a tensor without saying where."""
    for folder in ("attacks", "bounds", "certificates", "evaluation", "faults", "network", "threat", "training"):
        for path in sorted((PACKAGE / folder).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            followed = {node.value for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == "to"}
            for node in ast.walk(tree):
                named = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
                if not named or ast.unparse(node.func.value) != "torch" or node.func.attr not in MAKERS:
                    continue
                placed = any(k.arg == "device" for k in node.keywords) or node in followed
                if not placed and not (node.func.attr == "Generator" and node.args):
                    yield path.relative_to(PACKAGE).as_posix(), node.lineno


def test_tensors_are_made_where_they_are_used():
    odd = [f"{path}:{line}" for path, line in made_on_the_cpu() if not any(path.startswith(known) for known in ON_THE_CPU)]
    assert not odd, f"these make tensors on the CPU: {odd}"


# --- names ----------------------------------------------------------------------------------------------------------------


def test_auto_is_the_best_device_that_is_there(monkeypatch):
    assert device_of("auto") == device_of("cpu") or torch.cuda.is_available()
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of("auto").type == "cpu"  # not what has no float64
    assert device_of("mps").type == "mps"
    with pytest.raises(InvalidInput, match="mps, which has no float64"):
        device_of("mps", doubles=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_of("auto", doubles=True).type == "cuda"


@pytest.mark.parametrize("name", ["cuda", "cuda:1", "cuda:77", "mps"])
def test_a_device_that_is_not_there_is_one_error(name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(InvalidInput, match=f"device is {name}, and .* choose cpu or auto"):
        device_of(name)


def test_other_names_are_refused():
    with pytest.raises(InvalidInput, match="give cpu, cuda"):
        device_of("gpu")
    with pytest.raises(InvalidInput, match="choose one of float32, float64"):
        placed(network(), *examples(), None, "int8")


def test_a_model_is_copied_only_where_it_has_to_change():
    model, (x, y) = network(), examples()
    assert placed(model, x, y, "cpu", None)[0] is model
    assert placed(model, x, y, None, "float32")[0] is model
    moved, x64, y64 = placed(model, x, y, None, "float64")
    assert x64.dtype == torch.float64
    assert y64.dtype == torch.int64
    assert {p.dtype for p in moved.parameters()} == {torch.float64}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert ns.evaluate(model, (x, y), eps_x=[0.1], eps_w=[0], dtype="float64").about["dtype"] == "torch.float64"


def test_a_seed_moves_random_starts_and_none_is_as_before():
    model, (x, y) = network(), examples()
    case, ball = Case.of(model, x, y), ns.JointBall(0.05, 0.02)

    def found(attack, seed, scope="sample"):
        return Method.of(attack, scope, seed=seed).at(case, ball)

    for attack in ("paper", "square", "strongest+apgd"):
        assert torch.equal(found(attack, 1).x, found(attack, 1).x)
    assert not torch.equal(found("paper", 1, "dataset").x, found("paper", 2, "dataset").x)
    assert torch.equal(found("apgd", None).x, ns.apgd(model, x, y, ball).x)
    assert torch.equal(found("apgd", 0).x, ns.apgd(model, x, y, ball).x)  # its own seed
    cell = {"eps_x": [0.05], "eps_w": [0.02]}
    assert ns.evaluate(model, (x, y), seed=7, **cell).about["seed"] == 7
    assert "seed" not in ns.evaluate(model, (x, y), **cell).about
    with pytest.raises(InvalidInput, match="takes none"):
        ns.evaluate(model, (x, y), seed=1, attack="alternating", **cell)


# --- on the command line --------------------------------------------------------------------------------------------------

SMALL = ["--eps-x", "0,0.05", "--eps-w", "0,0.01", "--limit", "12", "--workers", "1", "--quiet"]


def test_the_command_line_computes_where_and_in_what_it_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    train = ["train", "--data", "digits", "--epochs", "1", "--hidden", "8", "--quiet"]
    assert main([*train, "--dtype", "float64", "--out", "net"]) == 0
    assert main(["evaluate", "net", *SMALL, "--dtype", "float32", "--seed", "5", "--out", "run"]) == 0
    about = json.loads(Path("run/results.json").read_text())["models"]["net"]["surfaces"][0]["about"]
    assert (about["dtype"], about["device"], about["seed"]) == ("torch.float32", "cpu", 5)
    assert main(["verify", "run"]) == 0
    for name in ("mps", "cuda"):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
        capsys.readouterr()
        for command in (["evaluate", "net", *SMALL], ["certify", "net", *SMALL], train):
            assert main([*command, "--device", name, "--out", name]) == 2
            assert f"device is {name}, " in capsys.readouterr().err
        assert not Path(name).exists()


def test_the_device_is_chosen_once_and_a_file_that_names_none_means_the_cpu(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(devices.torch.cuda, "is_available", lambda: True)
    (tmp_path / "old.yaml").write_text("model: net\ndata: digits\n")

    def printed(*argv):
        assert main(["evaluate", *argv, "--print-config"]) == 0
        return capsys.readouterr().out

    assert "device: cuda\n" in printed("net", "--data", "digits")
    assert "device" not in printed("--config", str(tmp_path / "old.yaml"))
    assert "device: cuda\n" in printed("--config", str(tmp_path / "old.yaml"), "--device", "auto")
    assert "device" not in printed("net", "--device", "cpu")
    assert main(["evaluate", "net", "--device", "gpu"]) == 2
    assert "'gpu' is no device" in capsys.readouterr().err
