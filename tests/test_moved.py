"""Objectives at other weights, at other inputs, and on certificates: each against its formula, written out."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nonsingular as ns
from nonsingular.attacks.neuron_pgd import neuron_ascent
from nonsingular.errors import InvalidInput, UnsupportedModel
from nonsingular.network.channels import channels
from nonsingular.network.margins import cross_entropy
from nonsingular.training.certified import Certified
from nonsingular.training.moved import AsStored, AtMovedWeights, Easy, Mean, Relative, Sharpness, Signed
from nonsingular.training.objectives import Adversarial, JointlyAdversarial, TheoremRegularised, natural, worst_inputs
from nonsingular.training.trades import Mart, Trades
from nonsingular.training.train import objective_of


def network(*, conv=False, norm=False):
    torch.manual_seed(0)
    first = [nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 3, stride=2, groups=2)] if conv else []
    norms = [nn.BatchNorm2d(6)] if norm else []
    size = 6 if conv else 25
    return nn.Sequential(
        *first, *norms, nn.ReLU(), nn.Flatten(), nn.Linear(size * (4 if conv else 1), 5), nn.ReLU(), nn.Linear(5, 3)
    ).double()


def data(n=8):
    g = torch.Generator().manual_seed(1)
    return torch.rand(n, 1, 5, 5, generator=g, dtype=torch.float64), torch.randint(3, (n,), generator=g)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def slopes(model, x, y):
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(F.cross_entropy(model(x), y), parameters), strict=True))


def at(model, values, x, y):
    """Loss and gradient of cross-entropy at other weights."""
    own = dict(model.named_parameters())
    values = {n: values.get(n, p).detach().requires_grad_() for n, p in own.items()}
    loss = F.cross_entropy(torch.func.functional_call(model, values, (x,)), y)
    return loss.item(), torch.autograd.grad(loss, list(values.values()))


def agree(objective, model, values, x, y):
    """Its loss and gradient are those at these weights."""
    loss = objective(model)(x, y, 1.0, generator())
    want, g = at(model, values, x, y)
    assert loss.item() == pytest.approx(want, rel=1e-12)
    for a, b in zip(torch.autograd.grad(loss, list(model.parameters())), g, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("adaptive", [False, True])
def test_sam_and_asam_by_their_formulas(adaptive):
    model, (x, y) = network(), data()
    g = slopes(model, x, y)
    T = {n: p.detach().abs() + 0.01 if adaptive else torch.ones_like(p) for n, p in model.named_parameters()}
    length = math.sqrt(sum(float((T[n] * d).square().sum()) for n, d in g.items()))
    moved = {n: p.detach() + 0.3 * T[n] ** 2 * g[n] / length for n, p in model.named_parameters()}
    agree(AtMovedWeights(natural, Sharpness(0.3, adaptive)), model, moved, x, y)


def test_awp_moves_each_matrix_by_a_part_of_its_norm():
    model, (x, y) = network(conv=True), data()
    g = slopes(model, x, y)
    moved = {n: p.detach() + 0.05 * p.detach().norm() * g[n] / g[n].norm() for n, p in model.named_parameters() if p.dim() > 1}
    agree(AtMovedWeights(natural, Relative(0.05)), model, moved, x, y)
    by = Relative(0.05, steps=4)({n: p.detach() for n, p in model.named_parameters()}, lambda v: g, 1.0, generator())
    for n, w in by.items():
        assert (w - dict(model.named_parameters())[n]).norm() <= 0.05 * dict(model.named_parameters())[n].norm() * (1 + 1e-12)


def test_the_weights_move_at_the_worst_inputs():
    """AWP: x' once, at W; then W' given x'."""
    model, (x, y) = network(), data()
    seen = []

    def spy(model):
        def loss(x, y, progress, generator):
            seen.append(x.clone())
            return natural(model)(x, y, progress, generator)

        return loss

    Adversarial(0.1, base=AtMovedWeights(spy, Relative(0.05)))(model)(x, y, 1.0, generator())
    assert len(seen) == 2 and torch.equal(*seen)
    assert (seen[0] - x).abs().max() <= 0.1 + 1e-12 and not torch.equal(seen[0], x)


def test_one_signed_step_is_the_corner_and_more_stay_in_the_box():
    model, (x, y) = network(), data()
    g = slopes(model, x, y)
    corner = {n: p.detach() + 0.02 * g[n].sign() for n, p in model.named_parameters() if p.dim() > 1}
    agree(AtMovedWeights(natural, Signed(0.02)), model, corner, x, y)
    weights = {n: p.detach() for n, p in model.named_parameters()}
    for n, w in Signed(0.02, steps=5)(weights, lambda v: g, 1.0, generator()).items():
        assert (w - weights[n]).abs().max() <= 0.02 * (1 + 1e-12)
    half = Signed(0.02, warmup=1.0)(weights, lambda v: g, 0.5, generator())
    assert max((w - weights[n]).abs().max() for n, w in half.items()) == pytest.approx(0.01)


def test_rounding_is_passed_straight_through_and_bit_errors_are_a_mean():
    model, (x, y) = network(), data()
    weights = {n: p.detach() for n, p in model.named_parameters()}
    rounded = ns.UniformRounding(3)(weights)
    agree(AtMovedWeights(natural, AsStored(ns.UniformRounding(3))), model, rounded, x, y)
    struck = ns.BitErrors(0.05, ns.UniformRounding(3))(weights, generator())
    faults = (ns.UniformRounding(3), ns.BitErrors(0.05, ns.UniformRounding(3)))
    loss = Mean(tuple(AtMovedWeights(natural, AsStored(fault)) for fault in faults))(model)(x, y, 1.0, generator())
    (a, g), (b, h) = at(model, rounded, x, y), at(model, struck, x, y)
    assert loss.item() == pytest.approx((a + b) / 2)
    for d, one, two in zip(torch.autograd.grad(loss, list(model.parameters())), g, h, strict=True):
        torch.testing.assert_close(d, (one + two) / 2)


def test_the_move_follows_easy_examples_alone():
    model, (x, y) = network(), data(40)
    each = F.cross_entropy(model(x), y, reduction="none")
    limit = each.median().item()
    assert Easy(limit)(model)(x, y, 1.0, generator()).item() == pytest.approx(each[each < limit].sum().item() / 40)
    kept = {n: p.detach() for n, p in model.named_parameters()}
    agree(AtMovedWeights(natural, Relative(0.1), climbs=Easy(1e-9)), model, kept, x, y)  # none is that easy


def test_an_interrupted_move_leaves_the_network_and_its_statistics_as_they_were():
    model, (x, y) = network(conv=True, norm=True), data()
    before = {k: v.clone() for k, v in model.state_dict().items()}

    def stopped(weights, slopes, progress, generator):
        slopes(weights)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        AtMovedWeights(natural, stopped)(model)(x, y, 1.0, generator())
    assert all(v.equal(before[k]) for k, v in model.state_dict().items())
    AtMovedWeights(natural, Sharpness(0.1))(model)(x, y, 1.0, generator())
    assert int(model.state_dict()["3.num_batches_tracked"]) == 1  # once, not for each gradient


def test_moves_compose_with_the_terms_of_theorem_1():
    model = nn.Sequential(nn.Flatten(), nn.Linear(25, 5, bias=False), nn.ReLU(), nn.Linear(5, 3, bias=False)).double()
    x, y = data()
    moved = AtMovedWeights(natural, Sharpness(0.1))
    both = TheoremRegularised(moved, eps_w=0.01, beta=0.5)(model)(x, y, 1.0, generator())
    both.backward()
    alone = TheoremRegularised(natural, eps_w=0.01, beta=0.5)(model)(x, y, 1.0, generator())
    want = alone.item() - natural(model)(x, y, 1.0, generator()).item() + moved(model)(x, y, 1.0, generator()).item()
    assert both.item() == pytest.approx(want)


# ---------------------------------------------------------------- inputs


def test_trades_and_mart_by_their_formulas():
    model, (x, y) = network(), data()
    box = ns.JointBall(0.1, 0.0).input_box(x)
    for objective, inner in (
        (Trades(0.1, 3.0, steps=2), lambda z: F.kl_div(z.log_softmax(1), model(x).softmax(1).detach(), reduction="sum")),
        (Mart(0.1, 3.0, steps=2), lambda z: F.cross_entropy(z, y, reduction="sum")),
    ):
        moved = box.sample(generator())
        for _ in range(2):
            moved.requires_grad_()
            (d,) = torch.autograd.grad(inner(model(moved)), moved)
            moved = box.project_(moved.detach() + 0.125 * d.sign())
        p, q = model(x).softmax(1), model(moved).softmax(1)
        apart = (p * (p / q).log()).sum(1)
        if isinstance(objective, Trades):
            want = F.cross_entropy(model(x), y) + 3 * apart.mean()
        else:
            others = torch.stack([max(v for j, v in enumerate(row) if j != t) for row, t in zip(q, y.tolist(), strict=True)])
            want = F.cross_entropy(model(moved), y) - (1 - others).log().mean() + 3 * (apart * (1 - p[range(8), y])).mean()
        assert objective(model)(x, y, 1.0, generator()).item() == pytest.approx(want.item())


# ---------------------------------------------------------------- channels


@pytest.mark.parametrize("each", [False, True])
def test_a_channel_stands_for_a_kernel(each):
    """After pixels and ReLUs the shifted network is the network with W + s E, for one example with its own s."""
    model, (x, _) = network(conv=True), data(1)
    names = [n for n, p in model.named_parameters() if p.dim() > 1]
    E = {n: torch.rand_like(p) * 0.1 if each else 0.05 for n, p in model.named_parameters() if n in names}
    moving = channels(model, ns.JointBall(0.1, E))
    s = [2 * torch.rand_like(t) - 1 for t in moving.zeros(x)]
    weights = dict(model.named_parameters())
    own = {n: weights[n] + t[0].reshape(-1, *[1] * (weights[n].dim() - 1)) * E[n] for n, t in zip(moving.layers, s, strict=True)}
    torch.testing.assert_close(moving(x, s), torch.func.functional_call(model, own, (x,)))
    torch.testing.assert_close(moving(x, moving.start(x)), model(x))
    assert not model[0]._forward_hooks


def test_joint_training_of_a_convolution_is_at_its_worst_channels():
    model, (x, y) = network(conv=True), data()
    ball = ns.JointBall(0.1, 0.02)
    moving = channels(model.eval(), ball)
    x_adv, s = neuron_ascent(moving, x, y, ball, steps=3, step=2.5 / 3, loss=cross_entropy, generator=generator())
    loss = JointlyAdversarial(0.1, 0.02, steps=3)(model)(x, y, 1.0, generator())
    assert loss.item() == pytest.approx(F.cross_entropy(moving(x_adv, s), y).item())
    assert loss.item() > F.cross_entropy(model(x), y).item()


def test_what_has_no_channels_is_refused():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.ones(3, 25))

        def forward(self, x):
            return torch.einsum("bd,kd->bk", x.flatten(1), self.table)

    with pytest.raises(UnsupportedModel, match="'table' is no weight of an nn"):
        JointlyAdversarial(0.1, 0.02)(Scaled())
    with pytest.raises(InvalidInput, match="differs below and above"):
        JointlyAdversarial(0.1, {"0.weight": (0.01, 0.02)})(network(conv=True))


# ---------------------------------------------------------------- certificates


@pytest.mark.parametrize("conv", [False, True])
def test_certified_training_is_on_the_margins_that_are_proven(conv):
    model, (x, y) = network(conv=conv), data()
    low = ns.certify(model.eval(), x, y, ns.JointBall(0.05, 0.01), bound="interval").margins
    model.train()
    loss = Certified(0.05, 0.01, alpha=0.7)(model)(x, y, 1.0, generator())
    want = 0.3 * F.cross_entropy(model(x), y) + 0.7 * F.cross_entropy(-low.scatter(1, y[:, None], 0.0), y)
    assert loss.item() == pytest.approx(want.item(), rel=1e-6)
    step = 1e-6
    g = torch.autograd.grad(loss, list(model.parameters()))
    with torch.no_grad():
        for p, d in zip(model.parameters(), g, strict=True):
            p.sub_(step * d)
    after = Certified(0.05, 0.01, alpha=0.7)(model)(x, y, 1.0, generator())
    assert (loss - after).item() == pytest.approx(step * sum(float(d.square().sum()) for d in g), rel=1e-2)


def test_certified_training_mixes_what_is_proven_with_any_objective():
    """(1 - w) base + w cross-entropy at certified margins, both at radii and w of the same part of the training."""
    model, (x, y) = network(), data()
    base = JointlyAdversarial(0.05, 0.01, steps=2, warmup=0.8)
    mixed = Certified(0.05, 0.01, alpha=0.7, warmup=0.8, base=base)(model)
    assert mixed(x, y, 0.0, generator()).item() == base(model)(x, y, 0.0, generator()).item()
    low = ns.certify(model.eval(), x, y, ns.JointBall(0.025, 0.005), bound="interval").margins
    proven = F.cross_entropy(-low.scatter(1, y[:, None], 0.0), y).item()
    found = base(model)(x, y, 0.4, generator()).item()
    assert mixed(x, y, 0.4, generator()).item() == pytest.approx(0.65 * found + 0.35 * proven, rel=1e-6)
    assert F.cross_entropy(model(x), y).item() < found < proven
    moved = AtMovedWeights(natural, Sharpness(0.3))  # it moves the weights in place, and the boxes are about those as they are
    whole, alone = (Certified(0.05, 0.01, alpha=0.7, base=b)(model)(x, y, 1.0, generator()) for b in (moved, natural))
    want = alone.item() + 0.3 * (moved(model)(x, y, 1.0, generator()).item() - F.cross_entropy(model(x), y).item())
    assert whole.item() == pytest.approx(want)
    whole.backward()


def test_crown_ibp_begins_tight_and_ends_with_intervals_and_a_small_box_lies_in_the_ball():
    model, (x, y) = network(), data()
    ibp = Certified(0.05, 0.01, warmup=1.0)(model)
    mixed = Certified(0.05, 0.01, warmup=1.0, bound="crown-ibp")(model)
    assert mixed(x, y, 0.5, generator()).item() < ibp(x, y, 0.5, generator()).item()
    assert mixed(x, y, 1.0, generator()).item() == pytest.approx(ibp(x, y, 1.0, generator()).item())
    small = Certified(0.05, 0.01, part=0.3)
    box, whole = small._around_worst(model, x, y, small.ball, generator()), small.ball.input_box(x)
    assert bool((box.lo >= whole.lo - 1e-9).all() and (box.hi <= whole.hi + 1e-9).all())
    assert (box.hi - box.lo).max() <= 0.03 + 1e-9
    around = worst_inputs(model, x, partial(cross_entropy, y=y), ns.JointBall(0.035, 0.0), 7, generator())
    low = ns.certify(model.eval(), around, y, ns.JointBall(0.015, 0.01), bound="interval").margins
    want = 0.5 * F.cross_entropy(model(x), y) + 0.5 * F.cross_entropy(-low.scatter(1, y[:, None], 0.0), y)
    assert small(model)(x, y, 1.0, generator()).item() == pytest.approx(want.item(), rel=1e-6)
    numbers = {"eps_x": 0.05, "eps_w": 0.01, "alpha": 0.5, "part": 0.3}
    assert objective_of("certified", numbers, (0.0, 1.0)) == small
    with pytest.raises(UnsupportedModel, match="'3' is a BatchNorm"):
        Certified(0.05, 0.01)(network(conv=True, norm=True))


# ---------------------------------------------------------------- averages and clipping


def test_an_average_is_the_geometric_sum_of_the_steps_and_clipping_follows_each(tmp_path):
    x, y = data(12)
    seen = []

    def spy(model):
        def loss(x, y, progress, generator):
            seen.append(model[2].weight.detach().clone())
            return natural(model)(x, y, progress, generator)

        return loss

    found = ns.train(network(), (x, y), method=spy, epochs=3, batch_size=6, lr=0.05, average=0.8, clip=0.1).model
    last = ns.train(network(), (x, y), method=natural, epochs=3, batch_size=6, lr=0.05, clip=0.1).model
    want = seen[1]  # after the first step
    for w in [*seen[2:], last[2].weight.detach()]:
        want = 0.8 * want + 0.2 * w
    torch.testing.assert_close(found[2].weight.detach(), want)
    assert all(w.abs().max() <= 0.1 for w in seen[1:]) and found[4].weight.abs().max() <= 0.1


def test_a_resumed_average_ends_with_the_same_bits(tmp_path):
    x, y = data(12)
    whole = ns.train(network(conv=True, norm=True), (x, y), epochs=4, batch_size=6, average=0.9)

    def stop(epoch, network):
        if epoch.epoch == 2:
            raise KeyboardInterrupt

    settings = {"epochs": 4, "batch_size": 6, "average": 0.9, "directory": tmp_path / "run"}
    with pytest.raises(KeyboardInterrupt):
        ns.train(network(conv=True, norm=True), (x, y), callbacks=[stop], **settings)
    again = ns.train(network(conv=True, norm=True), (x, y), **settings)
    assert all(v.equal(again.model.state_dict()[k]) for k, v in whole.model.state_dict().items())


@pytest.mark.parametrize("wrong", [{"average": 1.0}, {"average": -0.1}, {"clip": 0.0}, {"clip": math.inf}])
def test_impossible_numbers_are_refused(wrong):
    with pytest.raises(InvalidInput, match=f"{next(iter(wrong))} is"):
        ns.train(network(), data(), epochs=1, **wrong)
