"""Every training loss against an expression put together by hand from cross-entropy and the nested loops of oracle.py."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import oracle
from nonsingular.attacks.joint_pgd import joint_pgd
from nonsingular.catalog import OBJECTIVES
from nonsingular.errors import InvalidInput, UnsupportedModel
from nonsingular.threat.ball import JointBall
from nonsingular.training.objectives import Adversarial, JointlyAdversarial, TheoremRegularised, natural, ramp
from nonsingular.training.train import objective_of

ALPHA, BETA = 0.01, 0.02
NUMBERS = {"eps_x": 0.1, "eps_w": 0.05, "alpha": ALPHA, "beta": BETA, "rho": 0.05, "rate": 0.05, "bits": 4}


def named(name, **others):
    """The objective of this name, with those of these numbers that it needs."""
    return objective_of(name, {n: v for n, v in (NUMBERS | others).items() if n in OBJECTIVES[name].settings}, (0.0, 1.0))


def dense(*dims, bias=False, seed=0):
    g = torch.Generator().manual_seed(seed)
    layers = [nn.Flatten()]
    for a, b in itertools.pairwise(dims):
        layers += [nn.Linear(a, b, bias=bias, dtype=torch.float64), nn.ReLU()]
    model = nn.Sequential(*layers[:-1])
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g, dtype=torch.float64) / p.shape[-1] ** 0.5)
    return model


@pytest.fixture
def model():
    return dense(4, 5, 4, 3)


@pytest.fixture
def data():
    g = torch.Generator().manual_seed(1)
    return torch.rand(6, 1, 2, 2, generator=g, dtype=torch.float64), torch.randint(3, (6,), generator=g)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def lists(model):
    W = [m.weight.tolist() for m in model if isinstance(m, nn.Linear)]
    return W, [None] * len(W)


def mean_worst_zeta(model, x, y, eps_w):
    W, b = lists(model)
    worst = []
    for z, t in zip(x.flatten(1).tolist(), y.tolist(), strict=True):
        table = oracle.zeta_printed(z, W, b, [eps_w] * len(W), [0.0] * len(W))
        worst.append(max(table[j][t] for j in range(3) if j != t))
    return sum(worst) / len(worst)


def worst_tau(model, y, eps_x, eps_w):
    W, _ = lists(model)
    table = oracle.tau(W, eps_x, [eps_w] * len(W))
    return sum(max(table[j][t] for j in range(3) if j != t) for t in y.tolist()) / len(y)


def ce(model, x, y):
    logits = [oracle.logits(z, *lists(model)) for z in x.flatten(1).tolist()]
    return F.cross_entropy(torch.tensor(logits, dtype=torch.float64), y).item()


# ---------------------------------------------------------------- the six methods


def value(name, model, data, progress, seed=0, **others):
    return named(name, **others)(model)(*data, progress, generator(seed)).item()


@pytest.mark.parametrize("progress", [0.0, 0.25, 0.5, 1.0])
def test_standard_is_cross_entropy(model, data, progress):
    assert value("standard", model, data, progress) == pytest.approx(ce(model, *data))


@pytest.mark.parametrize("progress, part", [(0.0, 0.0), (0.1, 0.2), (0.25, 0.5), (0.5, 1.0), (1.0, 1.0)])
def test_weight_perturb_by_the_loops(model, data, progress, part):
    want = ce(model, *data) + part * BETA * mean_worst_zeta(model, *data, 0.05)
    assert value("weight-perturb", model, data, progress) == pytest.approx(want)


@pytest.mark.parametrize("progress, part", [(0.0, 0.0), (0.1, 0.2), (0.5, 1.0), (1.0, 1.0)])
def test_jiwp_by_the_loops(model, data, progress, part):
    terms = ALPHA * worst_tau(model, data[1], 0.1, 0.05) + BETA * mean_worst_zeta(model, *data, 0.05)
    assert value("jiwp", model, data, progress) == pytest.approx(ce(model, *data) + part * terms)


def at_point(model, x, y, radius, seed=0):
    return joint_pgd(model, x, y, JointBall(radius, 0.0), steps=7, step_x=2.5 * radius / 7, generator=generator(seed)).x


@pytest.mark.parametrize("progress, part", [(0.0, 0.0), (0.3, 0.5), (0.6, 1.0), (1.0, 1.0)])
def test_at_is_cross_entropy_at_the_adversarial_inputs(model, data, progress, part):
    x_adv = at_point(model, *data, 0.1 * part)
    assert float((x_adv - data[0]).abs().max()) <= 0.1 * part + 1e-12
    assert value("at", model, data, progress) == pytest.approx(ce(model, x_adv, data[1]))


def test_at_beta_adds_zeta_at_the_natural_inputs(model, data):
    x_adv = at_point(model, *data, 0.1)
    want = ce(model, x_adv, data[1]) + BETA * mean_worst_zeta(model, *data, 0.05)
    assert value("at-beta", model, data, 1.0) == pytest.approx(want)


def test_joint_at_progress_zero_is_plain_cross_entropy(model, data):
    assert value("joint", model, data, 0.0) == pytest.approx(ce(model, *data))


def test_joint_lies_between_plain_and_the_worst_of_the_ball(model, data):
    """One layer, so the worst cross-entropy of a label has a closed form: every other margin at its lowest."""
    model, (x, y) = dense(4, 3), data
    W, z = model[1].weight.detach(), x.flatten(1)
    got = value("joint", model, data, 1.0)
    assert got >= ce(model, x, y)
    # x' z-box by z >= 0: W_j x' + eps ||x'||_1 <= (W_j + eps) x +  0.1 ||W_j + eps||_1; the true logit likewise downwards
    up = z @ (W + 0.05).T + 0.1 * (W + 0.05).abs().sum(1)
    down = z @ (W - 0.05).T - 0.1 * (W - 0.05).abs().sum(1)
    worst = up.scatter(1, y[:, None], down.gather(1, y[:, None]))
    assert got <= F.cross_entropy(worst, y).item() + 1e-9


def test_joint_with_one_pixel_by_hand():
    # logits (x, -x) at x = .5, y = 0, eps_x = .1, eps_w = .1: worst margin 0.72 (test_neuron_pgd.py), loss log(1 + exp(-.72))
    model = dense(1, 2)
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0], [-1.0]]))
    loss = JointlyAdversarial(0.1, 0.1)(model)
    got = loss(torch.tensor([[0.5]]).double(), torch.tensor([0]), 1.0, generator())
    assert got.item() == pytest.approx(torch.tensor(-0.72).exp().log1p().item(), rel=1e-6)


# ---------------------------------------------------------------- limits


def test_the_ramp_by_hand():
    assert [ramp(p, 0.5) for p in (0.0, 0.25, 0.5, 0.75, 1.0)] == [0.0, 0.5, 1.0, 1.0, 1.0]
    assert ramp(0.0, 0.0) == 1.0


def test_without_radii_every_objective_is_standard(model, data):
    for objective in (Adversarial(0.0), JointlyAdversarial(0.0, 0.0), TheoremRegularised(alpha=ALPHA, beta=BETA)):
        assert objective(model)(*data, 1.0, generator()).item() == pytest.approx(ce(model, *data))


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "standard"])
def test_a_method_without_its_radii_is_refused_and_not_trained_as_another(name):
    for needed in OBJECTIVES[name].needs:
        for none in (0.0, None):
            with pytest.raises(InvalidInput, match=f"'{name}' with {needed} = 0 is another method"):
                named(name, **{needed: none})


def test_without_weights_the_regularised_loss_is_its_base(model, data):
    loss = TheoremRegularised(natural, 0.1, 0.05, alpha=0.0, beta=0.0)(model)
    assert loss(*data, 1.0, generator()).item() == pytest.approx(ce(model, *data))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_generator_alone_decides(model, data, name):
    torch.manual_seed(0)
    a = value(name, model, data, 0.8, seed=3)
    torch.manual_seed(1)
    assert value(name, model, data, 0.8, seed=3) == a


# ---------------------------------------------------------------- gradients


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("training", [True, False])
def test_computing_a_loss_touches_nothing(model, data, name, training):
    model.train(training)
    before = {n: p.clone() for n, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.full_like(p, 7.0)
    value(name, model, data, 1.0)
    assert model.training == training
    assert all(m.training == training for m in model.modules())
    for n, p in model.named_parameters():
        assert p.equal(before[n])
        assert p.requires_grad
        assert bool((p.grad == 7).all())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_gradient_is_the_slope_of_the_loss(model, data, name):
    """Along a random direction; the inner maximisation holds its point fixed, so only losses without one must agree."""
    loss = named(name)(model)
    loss(*data, 1.0, generator()).backward()
    grads = [p.grad for p in model.parameters()]
    assert all(g is not None and torch.isfinite(g).all() and g.abs().sum() > 0 for g in grads)
    if name in ("standard", "weight-perturb", "jiwp"):
        g = torch.Generator().manual_seed(5)
        direction = [torch.randn(p.shape, generator=g, dtype=p.dtype) for p in model.parameters()]
        ends = []
        for sign in (1e-6, -1e-6):
            with torch.no_grad():
                for p, d in zip(model.parameters(), direction, strict=True):
                    p.add_(d, alpha=sign)
                ends.append(loss(*data, 1.0, generator()).item())
                for p, d in zip(model.parameters(), direction, strict=True):
                    p.sub_(d, alpha=sign)
        slope = sum((a * b).sum().item() for a, b in zip(grads, direction, strict=True))
        assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(slope, rel=1e-4)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_method_lowers_its_loss(name):
    g = torch.Generator().manual_seed(0)
    y = torch.arange(60) % 3
    x = (0.15 * torch.rand(60, 6, generator=g, dtype=torch.float64) + 0.8 * F.one_hot(y, 6)).clamp(0, 1)
    model = dense(6, 16, 8, 3, seed=2)
    loss = named(name, eps_x=0.05, eps_w=0.01, alpha=1e-3, beta=1e-2)(model)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    first = loss(x, y, 1.0, generator()).item()
    for i in range(60):
        optimiser.zero_grad()
        loss(x, y, 1.0, generator(i)).backward()
        optimiser.step()
    assert loss(x, y, 1.0, generator()).item() < 0.7 * first
    assert (model(x).argmax(1) == y).double().mean() > 0.9


def test_a_loss_follows_the_weights(model, data):
    """Bound once, the objective must read the weights anew at every call."""
    for name in OBJECTIVES:
        loss = named(name)(model)
        a = loss(*data, 1.0, generator()).item()
        with torch.no_grad():
            model[1].weight.mul_(2.0)
        assert loss(*data, 1.0, generator()).item() != a
        assert loss(*data, 1.0, generator()).item() == pytest.approx(value(name, model, data, 1.0))
        with torch.no_grad():
            model[1].weight.div_(2.0)


@pytest.mark.parametrize("name", ["weight-perturb", "at-beta", "jiwp"])
def test_a_convolution_is_refused_where_a_dense_network_is_needed(name):
    conv = nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(2, 3))
    with pytest.raises(UnsupportedModel, match="conv2d"):
        named(name)(conv)


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name not in ("weight-perturb", "at-beta", "jiwp")])
def test_the_others_take_any_network(name, data):
    conv = nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(2, 3)).double()
    named(name)(conv)(*data, 1.0, generator()).backward()
    assert all(p.grad is not None for p in conv.parameters())


def test_the_catalog_declares_what_each_method_uses():
    """Twice a number is another loss where it is declared to be used; what is not declared is refused."""
    g = torch.Generator().manual_seed(1)
    model, data = dense(4, 5, 4, 3), (torch.rand(6, 4, generator=g, dtype=torch.float64), torch.randint(3, (6,), generator=g))
    defaults = {"steps": 7, "warmup": 0.6, "part": 0.4}
    for name, entry in OBJECTIVES.items():
        before = value(name, model, data, 0.3)
        for number in (*NUMBERS, *defaults):
            other = {number: (NUMBERS | defaults)[number] * 2 if number != "warmup" else 0.3}
            if number in entry.settings:
                assert value(name, model, data, 0.3, **other) != before, (name, number)
            else:
                with pytest.raises(InvalidInput, match=f"method '{name}' does not use {number}"):
                    objective_of(name, {n: (NUMBERS | other)[n] for n in (*entry.needs, number)}, (0.0, 1.0))


# ---------------------------------------------------------------- values


@pytest.mark.parametrize("steps", [1, 3, 11])
def test_steps_are_passes(model, data, steps):
    """Counted in the network itself: steps to the worst inputs, and one for the loss."""
    passes = []
    objective = Adversarial(0.1, steps=steps)(Counting(model, passes))
    before = len(passes)
    objective(*data, 1.0, generator())
    want, few = len(passes) - before, []
    Adversarial(0.1, steps=1)(Counting(model, few))(*data, 1.0, generator())
    assert want - len(few) == steps - 1


class Counting(nn.Module):
    def __init__(self, inner, passes):
        super().__init__()
        self.inner, self.note = inner, Note(passes)

    def forward(self, x):
        self.note.passes.append(len(x))
        return self.inner(x)


class Note:
    """A list that copies share."""

    def __init__(self, passes):
        self.passes = passes

    def __deepcopy__(self, memo):
        return self


@pytest.mark.parametrize("progress, part", [(0.1, 0.25), (0.2, 0.5), (0.4, 1.0)])
def test_one_warmup_of_a_method_is_that_of_all_its_terms(model, data, progress, part):
    x_adv = at_point(model, *data, 0.1 * part)
    want = ce(model, x_adv, data[1]) + part * BETA * mean_worst_zeta(model, *data, 0.05)
    assert value("at-beta", model, data, progress, warmup=0.4) == pytest.approx(want)


def test_objectives_are_values():
    assert Adversarial(0.1) == Adversarial(0.1, steps=7, warmup=0.6, domain=(0.0, 1.0))
    assert len({Adversarial(0.1), Adversarial(0.1), Adversarial(0.1, steps=3), JointlyAdversarial(0.1, 0.1)}) == 3
    assert named("at") == Adversarial(0.1)
    assert named("at-beta") == TheoremRegularised(Adversarial(0.1), eps_w=0.05, beta=BETA)
    assert named("jiwp") == TheoremRegularised(natural, 0.1, 0.05, ALPHA, BETA)
    assert named("weight-perturb", warmup=0.0) == TheoremRegularised(eps_w=0.05, beta=BETA, warmup=0.0)
    assert named("joint", steps=2) == JointlyAdversarial(0.1, 0.05, steps=2)
    assert named("standard") is natural


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: Adversarial(-0.1), "eps_x is -0.1"),
        (lambda: Adversarial(float("nan")), "eps_x is nan"),
        (lambda: Adversarial(torch.ones(4)), "training takes one input radius"),
        (lambda: Adversarial(0.1, steps=0), "steps is 0; give a whole number"),
        (lambda: Adversarial(0.1, steps=2.5), "steps is 2.5"),
        (lambda: Adversarial(0.1, warmup=1.5), "warmup is 1.5"),
        (lambda: Adversarial(0.1, domain=(1, 0)), "domain is"),
        (lambda: JointlyAdversarial(0.1, -1.0), "eps_w is -1"),
        (lambda: JointlyAdversarial(0.1, 0.1, steps=True), "steps is True"),
        (lambda: TheoremRegularised(natural, 0.1, 0.1, alpha=-1.0), "alpha is -1"),
        (lambda: TheoremRegularised(natural, 0.1, 0.1, beta=float("inf")), "beta is inf"),
        (lambda: TheoremRegularised("at"), "base is 'at'; give an objective"),
        (lambda: objective_of("at", {"eps_x": torch.ones(4)}, None), "one eps_x for all elements"),
        (lambda: objective_of("att", {"eps_x": 0.1}, None), "did you mean 'at'"),
        (lambda: objective_of(Adversarial, {}, None), "the class Adversarial; give a value of it"),
        (lambda: objective_of(Adversarial(0.1), {"eps_x": 0.2}, None), "eps_x is 0.2, and method is an objective"),
        (lambda: objective_of(3, {}, None), "method is 3; choose one of standard"),
        (lambda: objective_of("standard", {"eps_w": 0.1, "beta": 1.0}, None), "choose weight-perturb or at-beta or jiwp"),
    ],
)
def test_settings_that_are_none_are_refused(make, said):
    with pytest.raises(InvalidInput, match=said):
        make()
