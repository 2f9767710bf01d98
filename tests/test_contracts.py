"""What every attack and every bound of the catalog must keep: listing one here tests it."""

import itertools

import pytest
import torch
from torch import nn

from nonsingular.catalog import ATTACKS, BOUNDS, DATASETS, MODELS, OBJECTIVES, UNSOUND, lookup
from nonsingular.errors import UnsupportedModel
from nonsingular.graph import logits_at
from nonsingular.margins import margins, worst_margin
from nonsingular.models import conv, mlp
from nonsingular.threat import SCOPES, JointBall, Perturbation

SOUND = sorted(set(BOUNDS) - UNSOUND)


def tiny(seed: int, bias: bool = True) -> nn.Module:
    torch.manual_seed(seed)
    return mlp((2,), 3, hidden=(3, 2)[: 1 + seed % 2], bias=bias).double().eval()


def examples(n: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(n)
    return torch.rand(n, 2, generator=generator, dtype=torch.float64), torch.arange(n) % 3


@pytest.mark.parametrize("name", SOUND)
@pytest.mark.parametrize("seed", range(6))
def test_a_bound_lies_below_every_corner(name, seed):
    """Weights at random corners of their boxes, inputs at every corner: no margin is below the bound."""
    model, (x, y) = tiny(seed), examples()
    ball = JointBall(0.05, 0.05, moves="all")
    bound = lookup(BOUNDS, name, "bound")(model, x, y, ball)
    generator = torch.Generator().manual_seed(seed)
    box, boxes = ball.input_box(x), ball.weight_boxes(dict(model.named_parameters()))
    for corner, _ in itertools.product(itertools.product([0, 1], repeat=2), range(50)):
        moved = torch.where(torch.tensor(corner, dtype=torch.bool), box.hi, box.lo)
        weights = {k: torch.where(torch.rand(b.lo.shape, generator=generator) < 0.5, b.lo, b.hi) for k, b in boxes.items()}
        reached = margins(logits_at(model, Perturbation(moved, weights)), y)
        assert (bound <= reached + 1e-12).all()


@pytest.mark.parametrize("name", sorted(BOUNDS))
def test_a_bound_at_radius_zero_is_the_margin(name):
    model, (x, y) = tiny(1), examples()
    torch.testing.assert_close(lookup(BOUNDS, name, "bound")(model, x, y, JointBall(0, 0)), margins(model(x), y))


@pytest.mark.parametrize("name", sorted(BOUNDS))
def test_a_bound_falls_with_the_radii(name):
    model, (x, y) = tiny(1), examples()
    bound = lookup(BOUNDS, name, "bound")
    values = [bound(model, x, y, JointBall(r, s)) for r, s in ((0, 0), (0.01, 0), (0.01, 0.01), (0.02, 0.01), (0.02, 0.03))]
    for larger, smaller in itertools.pairwise(values):
        assert (smaller <= larger + 1e-12).all()


@pytest.mark.parametrize("name", SOUND)
def test_a_bound_refuses_what_it_has_no_rule_for(name):
    class Odd(nn.Module):
        def forward(self, x):
            return torch.fft.fft(x).real

    with pytest.raises(UnsupportedModel, match="fft"):
        lookup(BOUNDS, name, "bound")(Odd().eval(), *examples(), JointBall(0.1, 0.1))


def cases():
    for name, scope in itertools.product(sorted(ATTACKS), SCOPES):
        for kind in ("dense", "conv"):
            alone = {"neuron": [("sample", "dense")], "apgd": [("sample", "dense"), ("sample", "conv")]}
            if name not in alone or (scope, kind) in alone[name]:
                yield pytest.param(name, scope, kind, id=f"{name}-{scope}-{kind}")


@pytest.mark.parametrize("name, scope, kind", list(cases()))
@pytest.mark.parametrize("radii", [(0.1, 0.02), (0.0, 0.02), (0.1, 0.0)])
def test_an_attack_stays_in_the_ball_helps_and_leaves_the_model(name, scope, kind, radii):
    torch.manual_seed(0)
    model = (mlp((1, 6, 6), 4, hidden=(8, 6)) if kind == "dense" else conv((1, 6, 6), 4, hidden=(3,))).eval()
    x = torch.rand(5, 1, 6, 6)
    y = model(x).argmax(1).detach()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    ball = JointBall(*radii)
    point = lookup(ATTACKS, name, "attack")(model, x, y, ball, scope=scope)
    assert point.scope == scope
    assert (point.x - x).abs().max() <= radii[0] + 1e-6
    assert point.x.min() >= 0
    assert point.x.max() <= 1
    for key, value in point.weights.items():
        assert (value - before[key]).abs().max() <= radii[1] + 1e-6
        assert value.shape == ((len(x), *before[key].shape) if scope == "sample" else before[key].shape)
    assert bool(point.weights) == (radii[1] > 0)
    worst = worst_margin(margins(logits_at(model, point), y), y)
    assert worst.sum() < worst_margin(margins(model(x), y), y).sum()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_an_attack_repeats_itself_and_leaves_the_global_generator_alone(name):
    model, (x, y), attack = tiny(1), examples(), lookup(ATTACKS, name, "attack")
    torch.manual_seed(7)
    want = torch.rand(3)
    torch.manual_seed(7)
    a, b = (attack(model, x, y, JointBall(0.1, 0.05), scope="sample") for _ in range(2))
    assert a.x.equal(b.x)
    assert all(w.equal(b.weights[n]) for n, w in a.weights.items())
    assert torch.rand(3).equal(want)


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_an_attack_works_under_no_grad_and_inference_mode(name):
    model, (x, y), attack = tiny(1), examples(), lookup(ATTACKS, name, "attack")
    want = attack(model, x, y, JointBall(0.1, 0.05), scope="sample").x
    with torch.no_grad():
        assert attack(model, x, y, JointBall(0.1, 0.05), scope="sample").x.equal(want)
    with torch.inference_mode():
        assert attack(model, x.clone(), y.clone(), JointBall(0.1, 0.05), scope="sample").x.equal(want)


def test_names_that_stand_twice_are_the_same():
    """config.py says the scopes again, and catalog.py the data sets, because neither may import torch."""
    from typing import get_args

    from nonsingular.config import ScopeName
    from nonsingular.data import NAMES

    assert get_args(ScopeName) == SCOPES
    assert tuple(DATASETS) == NAMES


@pytest.mark.parametrize("table", [ATTACKS, BOUNDS, OBJECTIVES, MODELS, DATASETS])
def test_every_name_of_the_catalog_stands_for_a_function(table):
    for name in table:
        assert callable(lookup(table, name, "entry"))
