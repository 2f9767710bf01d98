"""The stronger attack on one scalar per neuron, against hand cases, the exact program, and the plain one."""

import itertools

import pytest
import torch
from torch import nn

import nonsingular.attacks.search.descent as module
from nonsingular.attacks.apgd import apgd
from nonsingular.attacks.neuron_pgd import neuron_pgd
from nonsingular.attacks.search.neuron_unknowns import shift_space
from nonsingular.bounds.exact import solve
from nonsingular.certificates.certify import certify
from nonsingular.errors import InvalidInput
from nonsingular.network.calling import logits_at
from nonsingular.network.margins import margins, worst_margin
from nonsingular.threat.ball import JointBall
from nonsingular.threat.perturbation import Perturbation
from sampling import first


def dense(*dims, bias=False, seed=0, dtype=torch.float64, activation=nn.ReLU):
    g = torch.Generator().manual_seed(seed)
    layers = []
    for a, b in itertools.pairwise(dims):
        layers += [nn.Linear(a, b, bias=bias, dtype=dtype), activation()]
    model = nn.Sequential(*layers[:-1]).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g, dtype=torch.float64) / p.shape[-1] ** 0.5)
    return model


def with_weights(*matrices):
    layers = []
    for W in matrices:
        W = torch.tensor(W, dtype=torch.float64)
        layers += [nn.Linear(W.shape[1], W.shape[0], bias=False, dtype=torch.float64), nn.ReLU()]
        with torch.no_grad():
            layers[-2].weight.copy_(W)
    return nn.Sequential(*layers[:-1]).eval()


def batch(n, d, seed=0, dtype=torch.float64):
    return torch.rand(n, d, generator=torch.Generator().manual_seed(seed + 1000), dtype=dtype)


def reached(model, x, y, ball, attack=apgd, **options):
    """Worst margins at the tensors that come back."""
    return worst_margin(margins(logits_at(model, attack(model, x, y, ball, **options)), y), y)


def clean(model, x, y):
    return worst_margin(margins(model(x).detach(), y), y)


# ---------------------------------------------------------------- the optimum


def test_the_counterexample_to_theorem_1_by_hand():
    # one input, x = 1, W1 = [[1], [1]], W2 = [[1, -1]], W3 = [[1], [1]], every weight by 0.1, class 0 against class 1:
    # hidden h = (1 + .1, 1 - .1); z = 1.1 * 1.1 - 0.9 * 0.9 = 0.4; margin (0.9 - 1.1) * 0.4 = -0.08
    model = with_weights([[1.0], [1.0]], [[1.0, -1.0]], [[1.0], [1.0]])
    x, y = torch.ones(1, 1, dtype=torch.float64), torch.tensor([0])
    assert reached(model, x, y, JointBall(0.0, 0.1)).item() == pytest.approx(-0.08)
    # ... and by (0.5, 0, 0.1): h = (1.5, 0.5), z = 1, margin -0.2 * 1
    ball = JointBall(0.0, {"0.weight": 0.5, "4.weight": 0.1})
    assert reached(model, x, y, ball).item() == pytest.approx(-0.2)


def test_revives_a_neuron_that_gives_no_gradient():
    # z = relu(w x) at w = -0.1, x = 1 is 0 and flat; with w = -0.1 + 0.3 the logits (0, z) have margin -0.2: attained by the sign
    # behind the activation alone.  The last layer is at rest.
    model = with_weights([[-0.1]], [[0.0], [1.0]])
    x, y = torch.ones(1, 1, dtype=torch.float64), torch.tensor([0])
    assert reached(model, x, y, JointBall(0.0, {"0.weight": 0.3}), restarts=0).item() == pytest.approx(-0.2)


def test_a_single_flip_leaves_a_local_optimum(monkeypatch):
    # one neuron, w = 0.2 +- 0.3, reaches z in [0, 0.5] at x = 1; margin f_0 - f_1 with biases: two neurons of the second layer,
    # relu(z - 0.2) and relu(0.2 - z), both pull the margin down, by 1 and by 2: the ends are 0.3 and 0.4
    model = dense(1, 1, 2, 2, bias=True)
    values = [[[0.2]], [0.0], [[1.0], [-1.0]], [-0.2, 0.2], [[-1.0, -2.0], [0.0, 0.0]], [1.0, 0.0]]
    with torch.no_grad():
        for p, value in zip(model.parameters(), values, strict=True):
            p.copy_(torch.tensor(value))
    x, y, ball = torch.ones(1, 1, dtype=torch.float64), torch.tensor([0]), JointBall(0.0, {"0.weight": 0.3})
    joint = shift_space(model, x, y, ball)
    v = torch.ones(1, 1, 1, dtype=torch.float64)  # z = 0.5: margin 1 - 0.3, and the gradient says to stay
    margin = joint.margins(v).amin(-1)
    assert margin.item() == pytest.approx(0.7)
    stay, same = module._to_the_ends(joint, v, margin)
    assert same.item() == pytest.approx(0.7) and stay[0, 0, 0] == 1
    moved, lower = module._flip(joint, v, margin)
    assert lower.item() == pytest.approx(0.6) and moved[0, 0, 0] == -1


@pytest.mark.parametrize("classes", [pytest.param(2, marks=pytest.mark.slow), 3])
@pytest.mark.parametrize("eps_x", [0.0, 0.1], ids=["weights", "joint"])
@pytest.mark.parametrize("eps_w, share", [(0.05, 0.95), (0.3, 0.85)])
def test_reaches_the_exact_optimum_and_never_beats_it(classes, eps_x, eps_w, share):
    """Within 1 % of the clean margin, on 20 networks with two examples each."""
    hits = []
    for seed in range(20):
        model, x = dense(3, 6, 4, classes, seed=seed, bias=seed % 2 == 0), batch(2, 3, seed)
        y, ball = model(x).argmax(1), JointBall(eps_x, eps_w, moves="all")
        found, before = reached(model, x, y, ball), clean(model, x, y)
        exact = solve(model, x, y, ball)
        assert bool((found >= worst_margin(exact.lower, y) - 1e-9).all())
        hits += ((found - worst_margin(exact.upper, y)) <= 0.01 * before.clamp(min=0.05)).tolist()
    assert sum(hits) >= share * len(hits)


@pytest.mark.parametrize("radii", [(0.0, 0.1), (0.1, 0.1), (0.05, 0.3)])
def test_below_the_plain_attack_on_average(radii):
    gaps = []
    for seed in range(5):
        model, x = dense(6, 16, 12, 8, 5, seed=seed), batch(20, 6, seed)
        y = model(x).argmax(1)
        gaps.append(reached(model, x, y, JointBall(*radii)) - reached(model, x, y, JointBall(*radii), neuron_pgd))
    assert torch.cat(gaps).mean() < 0


@pytest.mark.parametrize("seed", first(1, range(4)))
@pytest.mark.parametrize("bias", [False, True])
def test_no_attack_goes_below_the_certificate(seed, bias):
    model, x = dense(5, 6, 5, 3, seed=seed, bias=bias), batch(12, 5, seed)
    y = torch.randint(3, (12,), generator=torch.Generator().manual_seed(seed))
    for eps_x, eps_w in ((0.1, 0.0), (0.0, 0.05), (0.05, 0.02), (0.3, 0.3)):
        ball = JointBall(eps_x, eps_w, moves="all")
        logits = logits_at(model, apgd(model, x, y, ball))
        assert bool((certify(model, x, y, ball).margins <= margins(logits, y) + 1e-9).all())


# ---------------------------------------------------------------- what comes back


def lopsided(model, size, seed=0):
    """A box with two ends of its own for every element of every parameter; some elements stay."""
    g = torch.Generator().manual_seed(seed)

    def side(p):
        t = torch.rand(p.shape, generator=g, dtype=torch.float64) * size
        return torch.where(t < size / 4, 0.0, t)

    return {n: (side(p), side(p)) for n, p in model.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["number", "two ends", "last layer", "first layer", "inputs", "no domain", "none"])
def test_returns_a_point_of_the_ball(kind, dtype):
    model, x = dense(6, 5, 4, 3, bias=True, dtype=dtype), batch(9, 6, dtype=dtype)
    y = torch.arange(9) % 3
    ball = {
        "number": JointBall(0.1, 0.05, moves="all"), "two ends": JointBall(0.1, lopsided(model, 0.1)),
        "last layer": JointBall(0.0, {"4.weight": 0.1}), "first layer": JointBall(0.1, {"0.bias": 0.1}),
        "inputs": JointBall(0.1, 0.0), "no domain": JointBall(0.5, 0.05, None), "none": JointBall(0.0, 0.0),
    }[kind]  # fmt: skip
    before = {n: p.clone() for n, p in model.named_parameters()}
    point = apgd(model, x, y, ball)
    point.check(model, x, ball)
    assert point.scope == "sample" and point.x.dtype == dtype
    assert set(point.weights) == set(ball.radii(before))
    assert all(p.equal(before[n]) and p.grad is None for n, p in model.named_parameters())
    assert bool((reached(model, x, y, ball) <= clean(model, x, y) + 1e-5).all())
    if kind == "none":
        assert point.x.equal(x) and point.weights == {}


@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6, nn.Sigmoid])
@pytest.mark.parametrize("dims", [(6, 3), (6, 5, 2), (6, 5, 4, 12)], ids=["one layer", "two classes", "twelve classes"])
def test_every_depth_activation_and_number_of_classes(activation, dims):
    model, x = dense(*dims, activation=activation, bias=True), batch(7, 6)
    y = model(x).argmax(1)
    ball = JointBall(0.1, 0.1)
    assert bool((reached(model, x, y, ball) < clean(model, x, y)).all())


def test_one_layer_is_exact():
    # concave in each input, so the ends decide: (W_y - W_j) x' - 2 eps_w |x'|_1 at the better end
    model, x = dense(4, 3), batch(6, 4)
    y, ball = model(x).argmax(1), JointBall(0.1, 0.1)
    torch.testing.assert_close(reached(model, x, y, ball), worst_margin(solve(model, x, y, ball).upper, y), rtol=0, atol=1e-6)


def test_no_examples():
    model, ball = dense(6, 5, 3), JointBall(0.1, 0.05)
    empty = apgd(model, batch(0, 6), torch.zeros(0, dtype=torch.long), ball)
    assert empty.x.shape == (0, 6) and empty.weights["0.weight"].shape == (0, 5, 6)


def test_examples_are_treated_in_parts(monkeypatch):
    model, x = dense(6, 5, 3), batch(9, 6)
    y = model(x).argmax(1)
    monkeypatch.setattr(module, "AT_ONCE", 1)
    assert bool((reached(model, x, y, JointBall(0.1, 0.05)) < clean(model, x, y)).all())


def test_the_verdict_alone_is_the_same_with_less_search():
    """Broken examples are left as they are; the others are searched to the end."""
    model, x = dense(6, 12, 8, 4, seed=2), batch(60, 6)
    y = torch.arange(60) % 4
    before = clean(model, x, y)
    for ball in (JointBall(0.05, 0.02), JointBall(0.1, 0.1)):
        point = apgd(model, x, y, ball, verdict=True)
        quick, full = worst_margin(margins(logits_at(model, point), y), y), reached(model, x, y, ball)
        assert ((quick < 0) == (full < 0)).double().mean() >= 0.95
        assert quick.mean() >= full.mean()
        assert point.x[before < 0].equal(x[before < 0])


@pytest.mark.parametrize("options", [{"steps": 1}, {"restarts": 0}, {"keep": 0}, {"keep": 1000}, {"rounds": 0}])
def test_any_budget_helps(options):
    model, x = dense(6, 8, 8, 3, seed=5), batch(12, 6)
    y = model(x).argmax(1)
    assert bool((reached(model, x, y, JointBall(0.1, 0.05), **options) < clean(model, x, y)).all())


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize("scope", ["example"])
def test_another_scope_is_refused(scope):
    with pytest.raises(InvalidInput, match=f"{scope}"):
        apgd(dense(6, 5, 3), batch(2, 6), torch.tensor([0, 1]), JointBall(0.1, 0.1), scope=scope)


@pytest.mark.parametrize("options", [{"steps": 0}, {"restarts": -1}, {"keep": -1}, {"rounds": -1}])
def test_a_budget_below_the_least_is_refused(options):
    with pytest.raises(InvalidInput, match="steps, restarts, targets, keep, rounds"):
        apgd(dense(6, 5, 3), batch(2, 6), torch.tensor([0, 1]), JointBall(0.1, 0.1), **options)


@pytest.mark.parametrize("y", [torch.tensor([0, 3]), torch.tensor([-1, 0]), torch.tensor([0]), torch.tensor([0.0, 1.0])])
def test_labels_that_do_not_fit_are_refused(y):
    with pytest.raises(InvalidInput):
        apgd(dense(6, 5, 3), batch(2, 6), y, JointBall(0.1, 0.1))


# ---------------------------------------------------------------- a start


def strided(model, seed=0):
    """A convolution as wide as the input in place of a dense layer; or a dense network."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)).double().eval()


LEAST = {"steps": 1, "restarts": 2, "targets": 0, "keep": 1, "rounds": 0}


@pytest.mark.parametrize("build", [lambda: dense(6, 8, 6, 3, bias=True), lambda: strided(None)], ids=["dense", "conv"])
@pytest.mark.parametrize("verdict", [False, True])
def test_never_above_its_start(build, verdict):
    model, x = build(), batch(20, 6)
    y = model(x).argmax(1)
    smaller, ball = JointBall(0.08, 0.04), JointBall(0.1, 0.05)
    full = apgd(model, x, y, smaller, steps=16)
    for start in (
        full,
        Perturbation(full.x, scope="sample"),  # the weights of the model
        Perturbation(full.x, anywhere(model, ball, 20), "sample"),
    ):
        point = apgd(model, x, y, ball, start=start, verdict=verdict, **LEAST)
        before, after = at(model, start, y), at(model, point, y)
        assert bool((after <= before).all())
        assert bool((after <= clean(model, x, y) + 1e-12).all())
        assert point.scope == "sample"
        if not verdict:
            assert after.mean() < before.mean()


def anywhere(model, ball, n):
    """Random weights of the ball for each example."""
    g, boxes = torch.Generator().manual_seed(0), ball.weight_boxes(dict(model.named_parameters()))
    return {k: torch.lerp(b.lo, b.hi, torch.rand(n, *b.lo.shape, generator=g, dtype=torch.float64)) for k, b in boxes.items()}


def at(model, point, y):
    return worst_margin(margins(logits_at(model, point), y), y)


def test_a_start_is_worth_its_steps():
    """The result in a ball 10 % smaller, and few steps: lower than the same steps without it, and close to the full search."""
    model, x = dense(6, 16, 12, 8, 4, seed=3), batch(40, 6)
    y, ball = model(x).argmax(1), JointBall(0.1, 0.05)
    start = apgd(model, x, y, ball.scaled(0.9, 0.9))
    cold, warm, full = (reached(model, x, y, ball, **o) for o in (LEAST, {**LEAST, "start": start}, {}))
    assert warm.mean() < cold.mean()
    assert (warm - full).mean() < 0.5 * (cold - full).mean()


def test_a_start_is_repeated_by_shifts():
    """Any W' of the ball is a shift of each neuron: the margins there are those of W', or lower by the last layer."""
    model, x = dense(6, 8, 6, 3, bias=True), batch(9, 6)
    y, ball = model(x).argmax(1), JointBall(0.1, lopsided(model, 0.1))
    point = Perturbation(ball.input_box(x).sample(torch.Generator().manual_seed(0)), anywhere(model, ball, 9), "sample")
    model.requires_grad_(False)
    space = shift_space(model, x, y, ball)
    assert bool((space.margins(space.at(point)[None])[0].amin(1) <= at(model, point, y) + 1e-12).all())
    assert bool((at(model, space.realise(space.at(point)), y) <= at(model, point, y) + 1e-12).all())


@pytest.mark.parametrize("outside", ["x", "weights", "shape"])
def test_a_start_outside_the_ball_is_refused(outside):
    model, x, y, ball = dense(6, 5, 3), batch(2, 6), torch.tensor([0, 1]), JointBall(0.1, 0.05)
    W = {"0.weight": model[0].weight.detach().expand(2, 5, 6) + (0.1 if outside == "weights" else 0.0)}
    start = Perturbation(x[:1] if outside == "shape" else x + 0.2 * (outside == "x"), W, "sample")
    with pytest.raises(InvalidInput, match="start is not a point of this ball"):
        apgd(model, x, y, ball, start=start)


def test_a_model_without_a_gradient_is_refused():
    class Rounded(nn.Module):
        def forward(self, x):
            return torch.eye(3, dtype=x.dtype)[(3 * x[:, 0]).long().clamp(0, 2)]

    with pytest.raises(InvalidInput, match="carry no gradient"):
        apgd(Rounded().eval(), batch(4, 6), torch.tensor([0, 1, 2, 0]), JointBall(0.1, 0.0))
