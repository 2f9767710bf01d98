"""Flags of masked gradients: raised on toy models that mask on purpose, not raised on honest ones."""

import copy
import functools
import json

import pytest
import torch
from torch import nn

from nonsingular.attacks.joint_pgd import joint_pgd
from nonsingular.catalog import Attack
from nonsingular.cli.main import main
from nonsingular.data.datasets import load
from nonsingular.errors import InvalidInput
from nonsingular.evaluation.masking import Masking, _promises, differs, masking
from nonsingular.models.architectures import conv, mlp
from nonsingular.threat.ball import SCOPES, JointBall
from nonsingular.threat.perturbation import Perturbation
from nonsingular.training.train import train

SEEDS = range(3)
BALLS = {"sample": JointBall(0.1, 0.002), "batch": JointBall(0.1, 0.005), "dataset": JointBall(0.1, 0.005)}


# ---------------------------------------------------------------- models


class Round(nn.Module):
    """A quantiser: its derivative is 0 wherever it has one."""

    def __init__(self, levels):
        super().__init__()
        self.levels = levels

    def forward(self, z):
        return torch.round(z * self.levels) / self.levels


class Leaking(Round):
    """The same with a derivative that is not 0, but of no use."""

    def forward(self, z):
        return super().forward(z) + 1e-6 * z


class Times(nn.Module):
    def forward(self, z):
        return 1000 * z


class Noise(nn.Module):
    def __init__(self, std):
        super().__init__()
        self.std = std

    def forward(self, z):
        return z + self.std * torch.randn_like(z)


class Winners(nn.Module):
    """Keeps the largest tenth: discontinuous nearly everywhere."""

    def forward(self, z):
        return z * (z >= z.topk(z.shape[1] // 10, 1).values[:, -1:])


def trained(model, seed, epochs=60):
    return train(model, load("digits"), epochs=epochs, seed=seed).model


@functools.cache
def honest(seed, kind="dense"):
    torch.manual_seed(seed)
    return trained(mlp((1, 8, 8), 10, hidden=(64, 32)) if kind == "dense" else conv((1, 8, 8), 10, hidden=(8, 16)), seed)


@functools.cache
def winners(seed):
    torch.manual_seed(seed)
    layers = [nn.Flatten(), nn.Linear(64, 128), Winners(), nn.Linear(128, 128), Winners(), nn.Linear(128, 10)]
    return trained(nn.Sequential(*layers), seed)


def rounded_inside(seed):
    return nn.Sequential(*[m for layer in honest(seed) for m in ([layer, Round(2)] if isinstance(layer, nn.ReLU) else [layer])])


MASKS = {
    "honest": (honest, set(), set()),
    "rounded inputs": (lambda seed: nn.Sequential(Round(8), *honest(seed)), {"zero-gradient", "gradient-free"}, set()),
    "rounded inside": (rounded_inside, {"zero-gradient", "gradient-free"}, set()),
    "useless derivative": (lambda seed: nn.Sequential(Leaking(8), *honest(seed)), {"zero-gradient"}, {"gradient-free"}),
    "logits x 1000": (lambda seed: nn.Sequential(*honest(seed), Times()), {"saturation", "gradient-free"}, set()),
    "noise on logits": (lambda seed: nn.Sequential(*honest(seed), Noise(1.0)), {"random"}, set()),
    "noise on inputs": (lambda seed: nn.Sequential(Noise(0.1), *honest(seed)), {"random"}, set()),
    "k winners take all": (winners, {"gradient-free"}, set()),
}
"""Name -> (model of a seed, the flags that it must raise, those that it may raise beside them)."""


def data(limit=256):
    test = load("digits").test.take(limit)
    return test.x, test.y


# ---------------------------------------------------------------- each mask, each flag


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["sample", pytest.param("batch", marks=pytest.mark.slow), "dataset"])
@pytest.mark.parametrize("name", sorted(MASKS))
@pytest.mark.parametrize("seed", [SEEDS[0], *(pytest.param(s, marks=pytest.mark.slow) for s in SEEDS[1:])])
def test_each_mask_raises_its_flags_and_no_other(name, scope, seed):
    if name == "k winners take all" and scope == "sample" and seed:
        pytest.skip("seconds each; the other scopes have all seeds")
    make, must, may = MASKS[name]
    limit = 40 if name == "k winners take all" and scope == "sample" else None
    found = masking(make(seed).eval(), data(), BALLS[scope], scope=scope, limit=limit)
    assert must <= set(found.flags) <= must | may, found


@pytest.mark.slow
@pytest.mark.parametrize("ball", [JointBall(0.05, 0.001), JointBall(0.05, 0.0), JointBall(0.0, 0.002), JointBall(0.0, 0.0)])
def test_an_honest_model_raises_none_at_other_radii(ball):
    for scope in SCOPES:
        assert not masking(honest(1), data(), ball, scope=scope).flags


@pytest.mark.parametrize("scope", [pytest.param("sample", marks=pytest.mark.slow), "dataset"])
def test_an_honest_convolutional_model_raises_none(scope):
    assert not masking(honest(0, "conv"), data(96), JointBall(0.08, 0.003), scope=scope).flags


@pytest.mark.slow
@pytest.mark.parametrize("attack", ["neuron", "apgd", "square", "corners"])
def test_other_attacks_can_be_judged(attack):
    found = masking(honest(0), data(128), JointBall(0.05, 0.001), attack=attack)
    assert found.attack == attack
    assert not found.flags.keys() & {"zero-gradient", "saturation", "random", "one-class"}


def test_the_margin_attack_is_not_stopped_by_large_logits():
    """Saturation is a property of the cross-entropy: an attack on the margin breaks what 'paper' cannot."""
    model, ball = copy.deepcopy(honest(0)), JointBall(0.1, 0.0)
    with torch.no_grad():
        model[-1].weight.mul_(1000)
    by_entropy, by_margin = (masking(model, data(), ball, attack=name) for name in ("paper", "neuron"))
    assert set(by_entropy.flags) == {"saturation", "gradient-free"} and set(by_margin.flags) == {"saturation"}
    assert by_margin.numbers["accuracy"] < by_entropy.numbers["accuracy"] - 0.3


@pytest.mark.slow
def test_the_collapse_of_the_shared_weights():
    """At a large eps_w the attack of the paper ends at a W' of one class: accuracy is above that of the inputs alone."""
    balls = [JointBall(0.2, eps_w) for eps_w in (0.01, 0.02, 0.03)]
    raised = [masking(honest(seed), data(), ball, scope="batch") for seed in SEEDS for ball in balls]
    assert sum("budget" in found.flags for found in raised) >= 3
    assert any("one-class" in found.flags for found in raised)
    assert not any(found.flags.keys() & {"zero-gradient", "saturation", "random"} for found in raised)


def one_class(model, x, y, ball, *, scope):
    """The last layer's row of class 3 at its upper ends, the others at their lower ends."""
    name, W = list(model.named_parameters())[-1]
    if not (boxes := ball.weight_boxes({name: W})):
        return Perturbation(x.clone(), {}, scope)
    moved = boxes[name].lo.clone()
    moved[3] = boxes[name].hi[3]
    return Perturbation(x.clone(), {name: moved}, scope)


def test_one_class_is_said_and_which():
    found = masking(honest(0), data(), JointBall(0.0, 1.0), scope="dataset", attack=one_class)
    assert "class 3" in found.flags["one-class"]


@pytest.mark.parametrize("what", ["radii", "steps", "both"])
def test_more_budget_must_not_raise_accuracy(what):
    def stumbling(model, x, y, ball, *, scope, steps=20):
        too_much = {"radii": ball.eps_x > 0.15, "steps": steps > 20, "both": bool(ball.eps_x and ball.eps_w)}[what]
        return joint_pgd(model, x, y, ball, steps=0 if too_much else steps, scope=scope)

    found = masking(honest(0), data(), JointBall(0.1, 0.005), scope="batch", attack=Attack("stumbling", stumbling, steps=20))
    assert ("twice the " + what if what != "both" else "inputs and weights") in found.flags["budget"]
    assert set(found.flags) - {"gradient-free"} == {"budget"}


# ---------------------------------------------------------------- the numbers behind them


def test_differences_beyond_chance_by_hand():
    def outcome(up, down, n):
        higher, lower = torch.zeros(n, dtype=torch.bool), torch.zeros(n, dtype=torch.bool)
        higher[:up], lower[up : up + down] = True, True
        return differs(lower=lower, higher=higher)

    assert outcome(7, 0, 100)  # 2^-7 < 0.01
    assert not outcome(6, 0, 100)  # 2^-6 > 0.01
    assert not outcome(7, 0, 200)  # 3.5 points
    assert not outcome(10, 3, 100)  # sum of C(13, k), k >= 10: 378 / 8192 = 0.046
    assert not outcome(0, 30, 100)
    assert not outcome(0, 0, 10)


def test_the_promise_of_a_gradient_by_hand():
    # margin x1 + x2 at x = (0.5, 0.05) in [0, 1] within 0.1: falls by 0.1 and, cut at 0, by 0.05; the weights of the first row
    # fall by 0.2 (0.5 + 0.05), those of the second rise by as much
    model = nn.Linear(2, 2, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
    x, y = torch.tensor([[0.5, 0.05]], dtype=torch.float64), torch.tensor([0])
    ball = JointBall(0.1, 0.2)
    boxes = {
        "inputs": ball.input_box(x),
        "weight weight": ball.weight_boxes({"weight": model.weight})["weight"],
    }
    promised, silent = _promises(model, x, y, boxes, ["weight"], 0)
    assert promised["inputs"].item() == pytest.approx(0.15)
    assert promised["weight weight"].item() == pytest.approx(2 * 0.2 * 0.55)
    assert not silent["inputs"] and not silent["weight weight"]


def test_a_parameter_that_does_nothing_is_no_mask():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.idle = honest(0), nn.Parameter(torch.ones(3, 3))

        def forward(self, x):
            return self.body(x)

    assert not masking(Idle().eval(), data(), BALLS["batch"], scope="batch").flags


def test_two_classes():
    torch.manual_seed(0)
    x, y = data()
    model = mlp((1, 8, 8), 2, hidden=(16,))
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(100):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), y % 2).backward()
        optimiser.step()
    model.eval()
    for p in model.parameters():
        p.grad = None
    assert not masking(model, (x, y % 2), JointBall(0.03, 0.002)).flags
    scaled = nn.Sequential(*model, Times()).eval()
    assert "saturation" in masking(scaled, (x, y % 2), JointBall(0.03, 0.002)).flags


# ---------------------------------------------------------------- what comes back


def test_the_result_is_data_and_says_what_it_saw():
    model = nn.Sequential(*honest(0), Noise(1.0)).eval()
    found = masking(model, data(64), BALLS["batch"], scope="batch")
    assert json.loads(json.dumps(found.to_dict()))["flags"] == dict(found.flags)
    assert found.examples == 64 and found.attack == "paper" and found.scope == "batch"
    assert str(found).startswith("signs of masked gradients (attack 'paper', scope batch, 64 examples):\n  random: two forward")
    assert all(0 <= v <= 1 for k, v in found.numbers.items() if k != "random")
    with pytest.raises(TypeError):
        found.flags["random"] = ""
    clean = Masking("paper", "batch", 3, {}, {})
    assert str(clean) == "no sign of masked gradients (attack 'paper', scope batch, 3 examples)"


@pytest.mark.slow
def test_it_repeats_itself_and_leaves_model_and_generators_alone():
    model = nn.Sequential(*honest(0), Noise(0.5)).eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    torch.manual_seed(5)
    want = torch.rand(2)
    torch.manual_seed(5)
    a, b = (masking(model, data(64), BALLS["sample"], limit=40) for _ in range(2))
    assert a == b and a.examples == 40
    assert torch.rand(2).equal(want)
    assert all(v.equal(before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    with torch.inference_mode():
        assert masking(model, data(64), BALLS["sample"], limit=40) == a


def test_refuses_what_cannot_be():
    cases = [({"limit": 0}, "limit is 0"), ({"attack": "papre"}, "did you mean 'paper'"), ({"scope": "all"}, "scope")]
    for options, message in cases:
        with pytest.raises(InvalidInput, match=message):
            masking(honest(0), data(8), BALLS["batch"], **options)
    with pytest.raises(InvalidInput, match="domain"):
        masking(honest(0), (data(8)[0] + 1, data(8)[1]), BALLS["batch"])
    with pytest.raises(InvalidInput, match="empty"):
        masking(honest(0), (data(8)[0][:0], data(8)[1][:0]), BALLS["batch"])


# ---------------------------------------------------------------- in a run


@pytest.mark.slow
@pytest.mark.parametrize("factor, sign", [(1, "masked gradients"), (1000, "saturation: ")])
def test_a_run_says_what_it_saw(factor, sign, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--data", "digits", "--epochs", "8", "--hidden", "16", "--quiet", "--out", "net"]) == 0
    (tmp_path / "model.py").write_text(
        "from pathlib import Path\nimport torch\nfrom nonsingular.runs.evaluate import load_run\n\n\n"
        "class Scaled(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.net = load_run(Path('net'))[0]\n\n"
        f"    def forward(self, x):\n        return self.net(x) * {factor}\n"
    )
    run = (
        "evaluate model.py:Scaled --data digits --eps-x 0,0.06 --eps-w 0,0.004 --scope batch --attack paper --limit 200 --masking"
    )
    assert main([*run.split(), "--workers", "1", "--quiet", "--out", "run"]) == 0
    assert sign in capsys.readouterr().out
    (model,) = json.loads((tmp_path / "run" / "results.json").read_text())["models"].values()
    assert ("saturation" in model["masking"]["flags"]) == (factor == 1000)
    assert "Masked gradients" in (tmp_path / "run" / "report.html").read_text()


def test_batches_are_those_that_are_asked_for():
    sizes = []

    def counting(model, x, y, ball, *, scope):
        sizes.append(len(x))
        return Perturbation(x.clone(), {}, scope)

    masking(honest(0), data(40), JointBall(0.05, 0.0), scope="batch", attack=counting, batch_size=16)
    assert sizes[:3] == [16, 16, 8]
    sizes.clear()
    masking(honest(0), data(40), JointBall(0.05, 0.0), scope="dataset", attack=counting, batch_size=16)
    assert set(sizes) == {40}
    with pytest.raises(InvalidInput, match="batch_size is 0"):
        masking(honest(0), data(8), BALLS["batch"], scope="batch", batch_size=0)


def test_a_ball_in_which_everything_is_broken_decides_nothing():
    found = masking(honest(0), data(40), JointBall(1.0, 10.0), scope="dataset")
    assert found.numbers["accuracy"] == 0
    assert found.inconclusive
    assert found.to_dict()["inconclusive"]
    assert "no sign" not in str(found)
    assert not masking(honest(0), data(40), JointBall(0.01, 0.0), scope="dataset").inconclusive
