"""What every attack and every bound of the catalog must keep: listing one here tests it."""

import inspect
import itertools

import pytest
import torch
from torch import nn

from nonsingular.attacks.joint_pgd import joint_pgd
from nonsingular.catalog import ATTACKS, BOUNDS, DATASETS, FAULTS, FORMATS, MODELS, OBJECTIVES, SHARED, UNSOUND, lookup
from nonsingular.errors import InvalidInput, UnsupportedModel
from nonsingular.models.architectures import conv, mlp
from nonsingular.network.calling import logits_at
from nonsingular.network.margins import is_correct, margins, worst_margin
from nonsingular.threat.ball import SCOPES, JointBall
from nonsingular.threat.perturbation import Perturbation
from sampling import first

SOUND = sorted(set(BOUNDS) - UNSOUND)


def tiny(seed: int, bias: bool = True) -> nn.Module:
    torch.manual_seed(seed)
    return mlp((2,), 3, hidden=(3, 2)[: 1 + seed % 2], bias=bias).double().eval()


def examples(n: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(n)
    return torch.rand(n, 2, generator=generator, dtype=torch.float64), torch.arange(n) % 3


@pytest.mark.parametrize("name", SOUND)
@pytest.mark.parametrize("seed", first(2, range(6)))
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


WITH_START = sorted(name for name, attack in ATTACKS.items() if attack.starts)


def cases(names):
    for name in names:
        for scope, kind in itertools.product(ATTACKS[name].scopes, ("dense", "conv")):
            if kind == "dense" or not ATTACKS[name].dense:
                yield pytest.param(name, scope, kind, id=f"{name}-{scope}-{kind}")


@pytest.mark.parametrize("attack", [*ATTACKS.values(), SHARED], ids=lambda attack: attack.name)
def test_what_an_entry_declares_is_what_its_function_does(attack):
    parameters = inspect.signature(attack.load()).parameters
    assert attack.starts == ("start" in parameters)
    steps = parameters["steps"].default if "steps" in parameters else None
    assert attack.steps == steps
    model, x, y = model_and_examples("dense")
    if attack.dense:
        with pytest.raises(UnsupportedModel):
            attack(*model_and_examples("conv"), JointBall(0.01, 0.001), scope=attack.scopes[0])
    for scope in SCOPES:
        if scope in attack.scopes:
            attack(model, x, y, JointBall(0.01, 0.001), scope=scope)
        else:
            with pytest.raises(InvalidInput, match="scope"):
                attack(model, x, y, JointBall(0.01, 0.001), scope=scope)


def model_and_examples(kind, n=5):
    torch.manual_seed(0)
    model = (mlp((1, 6, 6), 4, hidden=(8, 6)) if kind == "dense" else conv((1, 6, 6), 4, hidden=(3,))).eval()
    x = torch.rand(n, 1, 6, 6)
    return model, x, model(x).argmax(1).detach()


@pytest.mark.parametrize("name, scope, kind", list(cases(sorted(ATTACKS))))
@pytest.mark.parametrize("radii", [(0.1, 0.02), (0.0, 0.02), (0.1, 0.0)])
def test_an_attack_stays_in_the_ball_helps_and_leaves_the_model(name, scope, kind, radii):
    model, x, y = model_and_examples(kind)
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
    moves_x, moves_w = radii[0] > 0 and "inputs" in ATTACKS[name].moves, radii[1] > 0 and "weights" in ATTACKS[name].moves
    assert bool(point.weights) == moves_w
    worst, clean = worst_margin(margins(logits_at(model, point), y), y), worst_margin(margins(model(x), y), y)
    if moves_x or moves_w:
        assert worst.sum() < clean.sum()
    else:
        assert point.x.equal(x)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def reached(model, point, y):
    """What an attack lowers: the margin of each example in scope `sample`, otherwise the number of right ones."""
    logits = logits_at(model, point)
    return worst_margin(margins(logits, y), y) if point.scope == "sample" else is_correct(logits, y).sum()


@pytest.mark.parametrize("name, scope, kind", list(cases(WITH_START)))
@pytest.mark.parametrize("begin", ["strong", "inputs", "harmful", "nothing"])
def test_an_attack_is_never_worse_than_its_start_or_the_clean_point(name, scope, kind, begin):
    model, x, y = model_and_examples(kind, 12)
    ball = JointBall(0.1, 0.05)
    if begin == "strong":
        start = joint_pgd(model, x, y, ball, steps=20, step_x=0.02, step_w=0.01, scope=scope)
    elif begin == "inputs":
        start = Perturbation(joint_pgd(model, x, y, JointBall(0.1, 0.0), steps=9).x, {}, scope)
    elif begin == "harmful":  # downhill: (x, W) does better
        start = joint_pgd(model, x, y, JointBall(0.0, 0.05), steps=5, step_w=-0.01, scope=scope)
    else:
        start = Perturbation(x, {}, scope)
    kept = start.x.clone(), {n: w.clone() for n, w in start.weights.items()}
    before = {k: v.clone() for k, v in model.state_dict().items()}
    point = lookup(ATTACKS, name, "attack")(model, x, y, ball, scope=scope, start=start)
    point.check(model, x, ball)
    value = reached(model, point, y)
    for other in (start, Perturbation(x, {}, scope)):
        assert (value <= reached(model, other, y) + 1e-5).all()
    assert start.x.equal(kept[0]) and all(w.equal(kept[1][n]) for n, w in start.weights.items())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("name, scope, kind", list(cases(WITH_START)))
def test_a_start_that_does_not_fit_is_refused(name, scope, kind):
    model, x, y = model_and_examples(kind)
    attack = lookup(ATTACKS, name, "attack")
    with pytest.raises(InvalidInput, match="start"):
        attack(model, x, y, JointBall(0.1, 0.02), scope=scope, start=Perturbation((x + 0.2).clamp(0, 1), {}, scope))
    other = "batch" if scope == "sample" else "sample"
    weights = joint_pgd(model, x, y, JointBall(0.1, 0.02), steps=2, scope=other)
    with pytest.raises(InvalidInput, match="scope"):
        attack(model, x, y, JointBall(0.1, 0.02), scope=scope, start=weights)


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
    """The settings say the scopes again, and the catalog the data sets, because neither may import torch."""
    from typing import get_args

    from nonsingular.data.datasets import NAMES
    from nonsingular.settings import ScopeName

    assert get_args(ScopeName) == SCOPES
    assert tuple(DATASETS) == NAMES


@pytest.mark.parametrize("entry", FORMATS.values(), ids=lambda entry: entry.name)
def test_a_format_refuses_what_it_cannot_read_in_one_line(entry, tmp_path):
    from nonsingular.data.readers.dispatch import KINDS, read

    assert entry.says in KINDS
    for suffix in entry.suffixes:
        (tmp_path / f"x{suffix}").write_bytes(bytes(range(256)))
        assert entry.reads(tmp_path / f"x{suffix}")
        with pytest.raises(InvalidInput) as error:
            read(tmp_path / f"x{suffix}")
        assert "\n" not in str(error.value)
    (tmp_path / "empty").mkdir()
    assert not entry.reads(tmp_path / "empty")


@pytest.mark.parametrize("table", [ATTACKS, BOUNDS, OBJECTIVES, FAULTS, FORMATS, MODELS, DATASETS])
def test_every_name_of_the_catalog_stands_for_a_function(table):
    for name in table:
        assert callable(lookup(table, name, "entry"))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_declares_numbers_of_a_recipe_and_is_a_loss_of_a_network(name):
    from nonsingular.settings import Recipe

    entry = OBJECTIVES[name]
    assert set(entry.settings) <= set(Recipe.model_fields)
    assert not set(entry.needs) & set(entry.takes)
    assert entry.card.does and entry.card.source
    model, (x, y) = tiny(1, bias=False), examples()
    objective = entry.of({name: 4 if name == "bits" else 0.01 for name in entry.needs}, (0.0, 1.0))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    loss = objective(model)(x, y, 1.0, torch.Generator().manual_seed(0))
    assert loss.numel() == 1 and torch.isfinite(loss)
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(loss, list(model.parameters())))
    assert all(v.equal(before[k]) for k, v in model.state_dict().items())
