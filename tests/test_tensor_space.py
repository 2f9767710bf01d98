"""The attack of scope `sample` on networks that are not dense: against brute force, the exact program, verdicts."""

import itertools

import pytest
import torch
from torch import nn
from torch.func import functional_call

from nonsingular.attacks.apgd import apgd
from nonsingular.attacks.joint_pgd import joint_pgd
from nonsingular.attacks.search import descent as search
from nonsingular.attacks.search.weight_unknowns import tensor_space
from nonsingular.bounds.exact import solve
from nonsingular.certificates.certify import certify, decide
from nonsingular.models.architectures import conv, mlp, resnet
from nonsingular.network.calling import logits_at
from nonsingular.network.margins import margins, worst_margin
from nonsingular.threat.ball import JointBall
from sampling import first


class Unknown(nn.Module):
    """An operation that the graph has no rule for, and one tensor used twice."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(9, 9, bias=False)
        self.last = nn.Linear(9, 3)

    def forward(self, x):
        z = torch.relu(self.first(x.flatten(1)))
        return self.last(torch.cumsum(torch.relu(self.first(z)), 1))


def network(kind, seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    model = {
        "conv": lambda: conv((1, 6, 6), 3, hidden=(3, 4)),
        "two classes": lambda: conv((1, 6, 6), 2, hidden=(3,)),
        "residual": lambda: resnet((1, 6, 6), 4, hidden=(3, 4)),
        "batch norm": lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3)),
        "groups": lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4, 5)
        ),
        "unknown": Unknown,
    }[kind]()
    model = model.to(dtype).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 1.5)
    return model


KINDS = ["conv", "two classes", "residual", "batch norm", "groups", "unknown"]


def batch(n, seed=0, dtype=torch.float64, side=6):
    return torch.rand(n, 1, side, side, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def examples(kind, n, seed=0, dtype=torch.float64):
    model, x = network(kind, seed, dtype), batch(n, seed, dtype, 3 if kind == "unknown" else 6)
    with torch.no_grad():
        return model, x, model(x).argmax(1)


def reached(model, x, y, point):
    return worst_margin(margins(logits_at(model, point), y), y)


def clean(model, x, y):
    return worst_margin(margins(model(x).detach(), y), y)


# ---------------------------------------------------------------- the optimum


def test_a_kernel_by_hand():
    # one kernel w on two positions with inputs 1 and 2, logits (0, 4 - y_1 - y_2): margin y_1 + y_2 - 4 = 3 w - 4 < 0;
    # at w in 1.5 +- 0.1 it is at least 3 * 1.4 - 4 = 0.2
    model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(2, 2)).double().eval()
    with torch.no_grad():
        for p, value in zip(model.parameters(), ([[[[1.5]]]], [[0.0, 0.0], [-1.0, -1.0]], [0.0, 4.0]), strict=True):
            p.copy_(torch.tensor(value))
    x, y = torch.tensor([[[[1.0, 2.0]]]], dtype=torch.float64), torch.tensor([0])
    point = apgd(model, x, y, JointBall(0.0, {"0.weight": 0.1}, None))
    assert reached(model, x, y, point).item() == pytest.approx(0.2)
    assert point.weights["0.weight"].item() == pytest.approx(1.4)


def test_reaches_the_lowest_corner():
    """Two kernels, 2^10 corners of their boxes, eight networks: within 1 % of the clean margin, above the certificate."""
    hits = []
    for seed in range(8):
        g = torch.Generator().manual_seed(seed)
        layers = [nn.Conv2d(1, 2, (1, 2)), nn.ReLU(), nn.Conv2d(2, 1, (2, 1), bias=False), nn.ReLU(), nn.Flatten()]
        model = nn.Sequential(*layers, nn.Linear(4, 3)).double().eval()
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.randn(p.shape, generator=g, dtype=torch.float64) * 0.7)
        x, params = torch.rand(4, 1, 3, 3, generator=g, dtype=torch.float64), dict(model.named_parameters())
        y, ball = model(x).argmax(1), JointBall(0.0, dict.fromkeys(("0.weight", "0.bias", "2.weight"), 0.1))
        found, before = reached(model, x, y, apgd(model, x, y, ball)), clean(model, x, y)
        lowest = before
        for signs in itertools.product((-0.1, 0.1), repeat=10):
            parts = zip(ball.radii(params), torch.tensor(signs, dtype=torch.float64).split([4, 2, 4]), strict=True)
            moved = {name: (params[name] + part.view_as(params[name])).detach() for name, part in parts}
            lowest = torch.minimum(lowest, worst_margin(margins(functional_call(model, moved, (x,)).detach(), y), y))
        hits += (found <= lowest + 0.01 * before).tolist()
        assert bool((worst_margin(certify(model, x, y, ball).margins, y) <= found + 1e-9).all())
    assert sum(hits) >= 0.95 * len(hits)


@pytest.mark.parametrize("eps_x", [0.0, 0.1], ids=["weights", "joint"])
@pytest.mark.parametrize("eps_w", first(1, [0.05, 0.3]))
def test_kernels_with_one_output_position_reach_the_exact_optimum(eps_x, eps_w):
    """These are a dense network, which the exact program solves; the attack moves every element of the kernels."""
    hits = []
    for seed in range(16):
        g = torch.Generator().manual_seed(seed)
        layers = [nn.Conv2d(1, 4, (1, 3), bias=False), nn.ReLU(), nn.Conv2d(4, 3, 1, bias=False), nn.ReLU(), nn.Flatten()]
        model = nn.Sequential(*layers, nn.Linear(3, 3, bias=False)).double().eval()
        dense = mlp((1, 1, 3), 3, hidden=(4, 3)).double().eval()
        with torch.no_grad():
            for p, q in zip(model.parameters(), dense.parameters(), strict=True):
                p.copy_(torch.randn(p.shape, generator=g, dtype=torch.float64) / q.shape[1] ** 0.5)
                q.copy_(p.view_as(q))
        x = torch.rand(2, 1, 1, 3, generator=g, dtype=torch.float64)
        y, ball = model(x).argmax(1), JointBall(eps_x, eps_w)
        exact = solve(dense, x, y, ball)
        found, before = reached(model, x, y, apgd(model, x, y, ball)), clean(model, x, y)
        assert bool((found >= worst_margin(exact.lower, y) - 1e-9).all())
        hits += ((found - worst_margin(exact.upper, y)) <= 0.01 * before.clamp(min=0.05)).tolist()
    assert sum(hits) >= 0.85 * len(hits)


def test_breaks_what_branch_and_bound_falsifies():
    falsified = broken = 0
    for seed, radius in itertools.product(range(4), (0.01, 0.03)):
        model, x, y = examples("conv", 8, seed)
        ball = JointBall(radius, radius)
        status = decide(model, x, y, ball, attack="paper", parts=300).status
        lost = (reached(model, x, y, apgd(model, x, y, ball, verdict=True)) < 0).tolist()
        assert not any(hit for hit, s in zip(lost, status, strict=True) if s == "verified")
        falsified += sum(s == "falsified" for s in status)
        broken += sum(hit for hit, s in zip(lost, status, strict=True) if s == "falsified")
    assert falsified >= 10
    assert broken >= 0.95 * falsified


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("radii", [(0.0, 0.02), (0.05, 0.0), (0.03, 0.01)], ids=["weights", "inputs", "joint"])
def test_never_above_the_plain_attack(kind, radii):
    model, x, y = examples(kind, 24, 1)
    ball = JointBall(*radii, moves="all")
    before = clean(model, x, y)
    ours = reached(model, x, y, apgd(model, x, y, ball, restarts=4))
    plain = joint_pgd(model, x, y, ball, scope="sample", steps=30, step_x=radii[0] / 5, step_w=radii[1] / 5)
    theirs = reached(model, x, y, plain)
    assert (ours < 0).sum() >= (theirs < 0).sum()
    assert (ours < 1e-9 + theirs).double().mean() >= 0.9
    assert bool((ours <= before).all())


# ---------------------------------------------------------------- what comes back


@pytest.mark.parametrize("dtype", first(1, [torch.float32, torch.float64]))
@pytest.mark.parametrize("kind", KINDS)
def test_returns_a_point_of_the_ball(kind, dtype):
    model, x, y = examples(kind, 5, dtype=dtype)
    radii = {n: (0.01, 0.03) if i % 2 else 0.02 for i, (n, _) in enumerate(model.named_parameters())}
    before = {n: p.clone() for n, p in model.state_dict().items()}
    for ball in (JointBall(0.05, radii), JointBall(0.05, 0.02, None, moves="all", relative=True), JointBall(0.0, 0.0)):
        point = apgd(model, x, y, ball, restarts=2)
        point.check(model, x, ball)
        assert point.scope == "sample" and point.x.dtype == dtype
        assert set(point.weights) == set(ball.radii(dict(model.named_parameters())))
        assert all(w.dtype == dtype and len(w) == len(x) for w in point.weights.values())
    assert all(t.equal(before[n]) for n, t in model.state_dict().items())


def test_no_examples():
    model, _, _ = examples("conv", 1)
    empty = apgd(model, batch(0), torch.zeros(0, dtype=torch.long), JointBall(0.1, 0.05))
    assert empty.x.shape == (0, 1, 6, 6) and empty.weights["0.weight"].shape == (0, 3, 1, 3, 3)


def test_the_elements_of_an_output_channel_move_together_where_their_inputs_are_0():
    # y = relu(w_1 z_1 + w_2 z_2) at z = (1, 0): w_2 has no derivative, and goes where w_1 goes
    model = nn.Sequential(nn.Conv2d(2, 1, 1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(1, 2, bias=False)).double().eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.ones(1, 2, 1, 1))
        model[3].weight.copy_(torch.tensor([[1.0], [0.0]]))
    x = torch.tensor([[[[1.0]], [[0.0]]]], dtype=torch.float64)
    space = tensor_space(model, x, torch.tensor([0]), JointBall(0.0, {"0.weight": 0.1}))
    _, g = space.slope(space.origin[None], lambda m: m.amin(-1))
    torch.testing.assert_close(g, torch.tensor([[[0.1, 0.1e-3]]], dtype=torch.float64), rtol=2e-3, atol=0)  # times the radius
    assert space.groups.tolist() == [0, 0]


@pytest.mark.slow
def test_a_network_of_more_unknowns_than_are_moved_at_once(monkeypatch):
    """Then runs are made one by one, and all that they reach is compared."""
    model, x, y = examples("conv", 6, 2)
    ball = JointBall(0.02, 0.02)
    together = reached(model, x, y, apgd(model, x, y, ball))
    monkeypatch.setattr(search, "AT_ONCE", 1)
    apart = reached(model, x, y, apgd(model, x, y, ball))
    torch.testing.assert_close(apart, together, rtol=0.01, atol=0.01)
