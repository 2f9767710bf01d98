"""Normalized: the same network as one whose first layer takes the normalisation in, for attacks, bounds and the theorem."""

import copy
import math

import pytest
import torch
from torch import nn

import nonsingular as ns
from nonsingular.bounds.theorem import tau, theorem1, zeta
from nonsingular.catalog import BOUNDS, UNSOUND
from nonsingular.models.architectures import Normalized, conv, mlp
from nonsingular.network.calling import logits_at
from nonsingular.network.dense import dense_chain
from nonsingular.network.graph import trace_graph
from nonsingular.network.margins import margins
from nonsingular.network.row_lemma import shifts

SHAPE, CLASSES = (3, 4, 4), 4
FORMS = {
    "numbers": (0.4, 0.3), "channels": ([0.4, 0.5, 0.6], [0.2, 0.3, 0.45]),
    "elements": (torch.full(SHAPE, 0.3), torch.rand(SHAPE) + 0.2),
    "shapes": (torch.tensor([0.4, 0.5, 0.6])[:, None, None], torch.tensor(0.25)),
}  # fmt: skip


def data(n=12, seed=0):
    return torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(seed))


def flat(t):
    """A mean or a std, one number for each input."""
    t = torch.as_tensor(t)
    return (t[:, None, None] if t.dim() == 1 else t).expand(SHAPE).flatten()


def make(form="channels", net=mlp, bias=True, hidden=(8, 6)):
    torch.manual_seed(0)
    inner = net(SHAPE, CLASSES, hidden=hidden, bias=bias).eval()
    return Normalized(inner, *FORMS[form]).eval()


def folded(model):
    """The dense network without normalisation that computes the same: W / std, b - W (mean / std)."""
    plain = copy.deepcopy(model.model)
    mean, std = flat(model.mean), flat(model.std)
    with torch.no_grad():
        first = plain[1]
        first.bias -= first.weight @ (mean / std)
        first.weight /= std
    return plain


@pytest.mark.parametrize("form", FORMS)
def test_it_is_x_less_mean_by_std(form):
    model, x = make(form), data()
    torch.testing.assert_close(model(x), model.model(((x.flatten(1) - flat(model.mean)) / flat(model.std)).view_as(x)))
    torch.testing.assert_close(model(x), folded(model)(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(trace_graph(model, SHAPE)(x), model(x), rtol=1e-4, atol=1e-5)


def test_channels_are_dimension_one_whatever_the_rank():
    for shape in ((5, 3), (5, 3, 7), (5, 3, 2, 2), (5, 3, 2, 2, 2)):
        x = torch.rand(shape)
        z = Normalized(nn.Identity(), [1.0, 2.0, 3.0], [1.0, 2.0, 4.0])(x)
        for c, (m, s) in enumerate(((1, 1), (2, 2), (3, 4))):
            torch.testing.assert_close(z[:, c], (x[:, c] - m) / s)


def test_mean_and_std_are_buffers_and_the_model_is_the_users():
    inner = mlp(SHAPE, CLASSES).train()
    model = Normalized(inner, 0.5, 0.25)
    assert model.model is inner
    assert inner.training
    assert model.training
    assert not Normalized(inner.eval(), 0.5, 0.25).training
    assert {n for n, _ in model.named_parameters()} == {f"model.{n}" for n, _ in inner.named_parameters()}
    assert {n for n, _ in model.named_buffers()} == {"mean", "std"}
    assert Normalized(mlp(SHAPE, CLASSES).double(), 0.5, [0.1, 0.2, 0.3])(data().double()).dtype == torch.float64


@pytest.mark.parametrize(
    "mean, std, said",
    [(0.5, 0.0, "above 0"), (0.5, -1.0, "above 0"), (math.nan, 1.0, "finite"), (0.5, math.inf, "finite"),
     ("a", 1.0, "mean is 'a'"),
     ([0.1, 0.2], [0.1, 0.2, 0.3], "2 numbers and std has 3"), ([], 1.0, "finite"),
     (torch.zeros(3, 1, 1), [1.0, 2.0, 3.0], "one form")],
)  # fmt: skip
def test_numbers_that_are_none_are_refused(mean, std, said):
    with pytest.raises(ns.InvalidInput, match=said):
        Normalized(mlp(SHAPE, CLASSES), mean, std)


def test_a_wrong_number_of_channels_is_said_with_the_shape():
    model = Normalized(mlp(SHAPE, CLASSES), [0.1, 0.2], 1.0).eval()
    with pytest.raises(ns.InvalidInput, match=r"does not accept inputs of shape \(12, 3, 4, 4\)"):
        ns.certify(model, data(), torch.zeros(12, dtype=torch.long), ns.JointBall(0.1, 0.1))


# --- the dense network is seen through it -------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_the_chain_is_read_with_the_normalisation(form):
    model, x = make(form), data()
    chain = dense_chain(model)
    assert torch.equal(chain(x), model(x))
    assert chain.weight_names == tuple(n for n, p in model.named_parameters() if p.dim() == 2)
    assert chain.stretch == pytest.approx(1 / float(model.std.min()))


def test_other_ways_of_writing_it_are_read_too():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp(SHAPE, CLASSES, hidden=(8,))
            self.register_buffer("m", torch.rand(48))

        def forward(self, x):
            return self.net(x.flatten(1) / 0.5 * 0.25 + 1 - self.m)

    model, x = Own().eval(), data()
    chain = dense_chain(model)
    assert torch.equal(chain(x), model(x))
    assert chain.stretch == pytest.approx(0.5)


@pytest.mark.parametrize("change", ["a parameter", "of itself", "in between"])
def test_what_is_no_fixed_scaling_is_not_read(change):
    class Moving(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.scale = mlp(SHAPE, CLASSES, hidden=(8,)), nn.Parameter(torch.ones(3, 1, 1))

        def forward(self, x):
            if change == "a parameter":
                return self.net(x * self.scale)
            return self.net(x * x) if change == "of itself" else self.net(x) / 2

    with pytest.raises(ns.UnsupportedModel):
        dense_chain(Moving())


def radii_of(model, eps, eps_b):
    """The boxes of `folded` that hold the folded weights of `model` in theirs."""
    std = flat(model.std)
    names = [n for n, p in model.model.named_parameters()]
    return {n: (eps / std).expand(8, -1) if n == "1.weight" else eps if n.endswith("weight") else eps_b for n in names}


@pytest.mark.parametrize("method", [n for n in BOUNDS if n not in UNSOUND and n not in ("exact", "theorem1")])
def test_a_bound_is_that_of_the_folded_network(method):
    """With mean 0 the boxes of the folded weights, W / std +- eps / std, are the images of the boxes of W."""
    torch.manual_seed(0)
    model = Normalized(mlp(SHAPE, CLASSES, hidden=(8, 6), bias=True).eval(), 0.0, [0.5, 0.8, 1.25]).eval()
    plain, x = folded(model), data(4)
    y = model(x).argmax(1)
    eps, eps_x = 0.004, 0.01
    found = ns.certify(model, x, y, ns.JointBall(eps_x, eps), bound=method).margins
    want = ns.certify(plain, x, y, ns.JointBall(eps_x, radii_of(model, eps, 0.0)), bound=method).margins
    searched = method in ("alpha-crown", "branch-and-bound", "best")
    torch.testing.assert_close(found, want, rtol=1e-3, atol=2e-4 if searched else 1e-6)


def test_tau_by_hand():
    # ||W1||_inf = 3, eps_x = .1, std .5 and .25, so that inputs move by up to .4; last-layer rows differ by 2:  tau = .4 * 2 * 3
    net = nn.Sequential(nn.Linear(2, 1, bias=False), nn.ReLU(), nn.Linear(1, 2, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, -2.0]]))
        net[2].weight.copy_(torch.tensor([[1.0], [-1.0]]))
    model = Normalized(net, 0.0, [0.5, 0.25]).eval()
    ball = ns.JointBall(0.1, 0.0, domain=None)
    assert tau(model, ball)[0, 1].item() == pytest.approx(2.4)
    x = torch.tensor([[0.5, 0.1]])
    # zeta: eps_w = .1 on z = (1, .4):  ||W2_0 - W2_1|| .1 ||z||_1 + 2 * .1 * upper(relu(.2 +- .14)) = 2 * .14 + .2 * .34
    assert zeta(model, x, ns.JointBall(0.1, 0.1))[0, 0, 1].item() == pytest.approx(2 * 0.14 + 0.2 * 0.34)


@pytest.mark.parametrize("net", [mlp, conv])
@pytest.mark.parametrize("form", ["channels", "elements"])
def test_no_point_of_the_ball_is_below_a_bound(net, form):
    """Random points, random corners and attacks, in each scope."""
    model, x = make(form, net), data()
    y, ball = model(x).argmax(1), ns.JointBall(0.02, 0.01, moves="all")
    methods = [m for m in ("interval", "crown-ibp", "crown", "best", "theorem1") if m != "theorem1" or net is mlp]
    lower = {m: ns.certify(model, x, y, ball, bound=m).margins for m in methods}
    generator = torch.Generator().manual_seed(1)
    boxes = ball.weight_boxes(dict(model.named_parameters()))
    assert set(boxes) == {n for n, _ in model.named_parameters()}
    points = [ns.apgd(model, x, y, ball), ns.strongest(model, x, y, ball, scope="batch"), ns.joint_pgd(model, x, y, ball)]
    for draw in range(40):
        pick = (
            (lambda b: b.sample(generator))
            if draw % 2
            else (lambda b: torch.where(torch.rand(b.lo.shape, generator=generator) < 0.5, b.lo, b.hi))
        )
        points.append(ns.Perturbation(pick(ball.input_box(x)), {n: pick(b) for n, b in boxes.items()}, "batch"))
    others = torch.arange(CLASSES) != y[:, None]
    for point in points:
        reached = margins(logits_at(model, point), y)[others]
        for method, found in lower.items():
            assert (reached >= found[others].float() - 1e-5).all(), method


@pytest.mark.parametrize("net", [mlp, conv])
def test_attacks_stay_in_the_units_of_the_data(net):
    model, x = make(net=net), data()
    y, ball = model(x).argmax(1), ns.JointBall(0.05, 0.01)
    for point in (ns.apgd(model, x, y, ball), ns.strongest(model, x, y, ball, scope="dataset")):
        assert (point.x - x).abs().max() <= 0.05 + 1e-6
        assert point.x.min() >= 0
        assert point.x.max() <= 1
        assert (point.x - x).abs().max() > 0.049  # not 0.05 * std
        assert set(point.weights) == {n for n, p in model.named_parameters() if p.dim() > 1}
    before = {k: v.clone() for k, v in model.state_dict().items()}
    ns.evaluate(model, (x, y), eps_x=[0, 0.1], eps_w=[0, 0.01])
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("scope", ["sample", "batch", "dataset"])
def test_a_surface_is_that_of_the_plain_network_on_normalised_data(scope):
    """With one mean and one std the whole problem may be moved to z = (x - mean) / std."""
    torch.manual_seed(0)
    inner, x = mlp(SHAPE, CLASSES, hidden=(8,)).eval(), data(40)
    mean, std = 0.5, 0.25  # exact in binary, so that the two runs round alike but for the input box
    z = (x - mean) / std
    y = inner(z).argmax(1)
    here = ns.evaluate(Normalized(inner, mean, std), (x, y), eps_x=[0, 0.05], eps_w=[0, 0.02], scope=scope)
    there = ns.evaluate(inner, (z, y), eps_x=[0, 0.2], eps_w=[0, 0.02], scope=scope, domain=(-2.0, 2.0))
    assert here.accuracy == pytest.approx(there.accuracy, abs=1 / 40)
    assert here.accuracy[-1, -1] < 0.9


@pytest.mark.parametrize("form", FORMS)
def test_shifts_stand_for_the_weights_that_they_are_written_out_as(form):
    model, x = make(form), data()
    network = shifts(model, ns.JointBall(0.1, 0.05, moves="all"))
    s = [torch.rand(len(x), len(W), generator=torch.Generator().manual_seed(2)) * 2 - 1 for W in network.net.weights]
    weights = network.realise(x, s, ns.JointBall(0.1, 0.05, moves="all"))
    found = logits_at(model, ns.Perturbation(x, weights, "sample"))
    torch.testing.assert_close(found, network(x, s), rtol=1e-4, atol=1e-4)
    back = network.of(ns.Perturbation(x, weights, "sample"))
    for a, b in zip(back, s, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_the_repaired_theorem_is_that_of_the_folded_network_for_one_std():
    """Inputs alone: the smallest std is the only one."""
    model = make("numbers", bias=True)
    x = data()
    y = model(x).argmax(1)
    ball = ns.JointBall(0.01, 0.0)
    torch.testing.assert_close(theorem1(model, x, y, ball), theorem1(folded(model), x, y, ball), rtol=1e-4, atol=1e-4)


def test_an_objective_of_the_paper_trains_it():
    from nonsingular.training.objectives import JointlyAdversarial

    torch.manual_seed(0)
    model, x = Normalized(mlp(SHAPE, CLASSES, hidden=(8,)), [0.4, 0.5, 0.6], 0.25), data(32)
    y = torch.arange(32) % CLASSES
    loss_of = JointlyAdversarial(0.02, 0.005)(model)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for step in range(30):
        loss = loss_of(x, y, 0.5, torch.Generator().manual_seed(step))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] * 0.8
