"""Attacks of other packages: what is asked of any of them, with one written here, and the real ones where installed."""

import random
import sys
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from nonsingular.attacks import adapters as plugged
from nonsingular.attacks.adapters import foolbox_attack, torchattacks_attack
from nonsingular.attacks.joint_pgd import joint_pgd
from nonsingular.attacks.square import square
from nonsingular.errors import InvalidInput
from nonsingular.evaluation.attacked import evaluate
from nonsingular.models.architectures import conv, mlp
from nonsingular.network.calling import logits_at
from nonsingular.network.margins import margins, worst_margin
from nonsingular.threat.ball import SCOPES, JointBall
from nonsingular.threat.perturbation import Perturbation


def model_and_examples(n=12, kind="dense"):
    torch.manual_seed(0)
    model = (mlp((1, 6, 6), 4, hidden=(16,)) if kind == "dense" else conv((1, 6, 6), 4, hidden=(4,))).eval()
    x = torch.rand(n, 1, 6, 6, generator=torch.Generator().manual_seed(2))
    return model, x, model(x).argmax(1).detach()


def worst(model, point, y):
    return worst_margin(margins(logits_at(model, point), y), y)


def stepping(network, x, y, eps):
    """One signed step, too long by far, with a draw from every global generator."""
    x = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(nn.functional.cross_entropy(network(x), y, reduction="sum"), x)
    draw = torch.rand(()).item() + np.random.rand() + random.random()
    return x + (5 + draw / 99) * eps * g.sign()


def installed(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what importing them warns of is theirs
        return pytest.importorskip(name)


def others():
    yield pytest.param(lambda: plugged._plugged(stepping, "stepping"), id="own")
    yield pytest.param(lambda: foolbox_attack(installed("foolbox").attacks.LinfPGD(steps=10)), id="foolbox")
    yield pytest.param(lambda: installed("torchattacks") and torchattacks_attack("APGD", steps=10), id="torchattacks")


@pytest.mark.parametrize("make", list(others()))
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("begin", ["clean", "weights"])
def test_an_attack_from_elsewhere(make, scope, begin):
    model, x, y = model_and_examples()
    attack, ball = make(), JointBall(0.1, 0.02)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    start = None if begin == "clean" else joint_pgd(model, x, y, ball, steps=2, step_x=0.001, step_w=0.001, scope=scope)
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    want = torch.rand(2), np.random.rand(), random.random()
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    a, b = (attack(model, x, y, ball, scope=scope, start=start) for _ in range(2))
    a.check(model, x, ball)
    assert a.x.equal(b.x) and a.scope == scope
    assert torch.rand(2).equal(want[0]) and (np.random.rand(), random.random()) == want[1:]
    other = start or Perturbation(x, {}, scope)
    assert set(a.weights) == set(other.weights) and all(w.equal(other.weights[n]) for n, w in a.weights.items())
    assert bool((worst(model, a, y) <= worst(model, other, y) + 1e-6).all())
    assert worst(model, a, y).sum() < worst(model, other, y).sum()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters()) and not model.training


@pytest.mark.parametrize("make", list(others()))
def test_any_domain_precision_and_mode(make):
    model, x, y = model_and_examples()
    shifted = nn.Sequential(_Affine(), *model).eval()
    want = logits_at(model, make()(model, x, y, JointBall(0.1, 0.0)))
    got = logits_at(shifted, make()(shifted, 4 * x - 2, y, JointBall(0.4, 0.0, domain=(-2, 2))))
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)
    free = make()(model, x, y, JointBall(0.5, 0.0, domain=None))
    assert free.x.min() < 0 and (free.x - x).abs().max() <= 0.5 + 1e-6
    double = make()(model.double(), x.double(), y, JointBall(0.1, 0.0))
    assert double.x.dtype == torch.float64
    with torch.inference_mode():
        assert make()(model, x.double(), y, JointBall(0.1, 0.0)).x.equal(double.x)
    assert make()(model, x.double(), y, JointBall(0.0, 0.1)).x.equal(x.double())
    assert make()(model, x[:0].double(), y[:0], JointBall(0.1, 0.1)).x.shape == (0, 1, 6, 6)


class _Affine(nn.Module):
    def forward(self, x):
        return (x + 2) / 4


@pytest.mark.parametrize("make", list(others()))
def test_it_evaluates_a_grid(make):
    model, x, y = model_and_examples(kind="conv")
    surface = evaluate(model, (x, y), eps_x=[0.0, 0.1, 0.3], eps_w=[0.0], scope="batch", attack=make())
    assert surface.accuracy[0, 0] == 1 and surface.accuracy.min() < 1


def test_what_is_not_a_number_is_not_taken():
    model, x, y = model_and_examples()
    found = plugged._plugged(lambda network, x, y, eps: torch.full_like(x, torch.nan), "none")(model, x, y, JointBall(0.1, 0.0))
    assert found.x.equal(x)


@pytest.mark.parametrize("name", ["foolbox", "torchattacks"])
def test_a_missing_package_says_how_to_get_it(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InvalidInput, match=f"pip install {name}"):
        foolbox_attack(None) if name == "foolbox" else torchattacks_attack("PGD")


def test_names_tell_settings_apart():
    """Records know a function by its name and code, and the code of all of these is the same."""
    foolbox = installed("foolbox")
    names = {foolbox_attack(foolbox.attacks.LinfPGD(steps=n)).name for n in (5, 10)}
    assert len(names) == 2 and all("LinfProjectedGradientDescentAttack" in name and "foolbox" in name for name in names)


def test_names_and_options_of_torchattacks():
    installed("torchattacks")
    assert torchattacks_attack("PGD", steps=3, alpha=0.1).name == "torchattacks PGD(alpha=0.1, steps=3)"
    with pytest.raises(InvalidInput, match="did you mean 'PGD'"):
        torchattacks_attack("PDG")
    with pytest.raises(InvalidInput, match=r"\['eps', 'stepps'\].*alpha, steps, random_start"):
        torchattacks_attack("PGD", eps=0.1, stepps=3)


@pytest.mark.parametrize("name", ["FGSM", "PGD", "MIFGSM", "APGDT", "Square", "DeepFool"])
def test_more_of_torchattacks(name):
    installed("torchattacks")
    model, x, y = model_and_examples(kind="conv")
    options = {"APGDT": {"n_classes": 4, "steps": 5}, "Square": {"n_queries": 100}}.get(name, {})
    found = torchattacks_attack(name, **options)(model, x, y, JointBall(0.1, 0.0))
    assert worst(model, found, y).sum() < worst(model, Perturbation(x), y).sum()


def test_ours_is_no_weaker_than_the_square_of_torchattacks():
    installed("torchattacks")
    model, x, y = model_and_examples(200, "conv")
    ball = JointBall(0.06, 0.0)
    theirs = torchattacks_attack("Square", n_queries=300)(model, x, y, ball)
    ours = square(model, x, y, ball, steps=300)
    kept = [(logits_at(model, p).argmax(1) == y).double().mean() for p in (ours, theirs)]
    assert 0.1 < kept[1] < 0.9
    assert kept[0] <= kept[1] + 0.03
