"""Search on the weights without gradients, against the exact program, brute force, and hand cases."""

import itertools

import pytest
import torch
from torch import nn

from nonsingular.attacks.corners import _as_shifts, corners
from nonsingular.attacks.joint_pgd import joint_pgd
from nonsingular.bounds.exact import solve
from nonsingular.errors import InvalidInput
from nonsingular.models.architectures import conv, mlp
from nonsingular.network.calling import logits_at
from nonsingular.network.margins import margins, worst_margin
from nonsingular.network.row_lemma import shifts
from nonsingular.threat.ball import SCOPES, JointBall
from nonsingular.threat.perturbation import Perturbation


def dense(*dims, seed=0, bias=True):
    torch.manual_seed(seed)
    return mlp((dims[0],), dims[-1], hidden=dims[1:-1], bias=bias).double().eval()


def batch(n, *shape, seed=1):
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def worst(model, point, y):
    return worst_margin(margins(logits_at(model, point), y), y)


def right(model, point, y):
    return (logits_at(model, point).argmax(1) == y).sum()


def test_reaches_the_exact_optimum_of_each_example_and_never_beats_it():
    """At ends of s, so within 2 % of the clean margin; examples that it breaks are not minimised further."""
    hits = []
    for seed in range(10):
        model, x = dense(4, 6, 5, 3, seed=seed), batch(4, 4, seed=seed)
        y, ball = model(x).argmax(1), JointBall(0.0, 0.03, moves="all")
        found, exact, clean = worst(model, corners(model, x, y, ball, scope="sample"), y), solve(model, x, y, ball), model(x)
        assert bool((found >= worst_margin(exact.lower, y) - 1e-9).all())
        gap = found.clamp(min=0) - worst_margin(exact.upper, y).clamp(min=0)
        hits += (gap <= 0.02 * worst_margin(margins(clean, y), y).clamp(min=0.05)).tolist()
    assert sum(hits) >= 0.9 * len(hits)


def test_one_layer_is_exact_for_each_example():
    # W z with |dW| <= e: the margin to j falls by 2 e |z|_1
    model, x = dense(5, 3, bias=False), batch(6, 5)
    y = model(x).argmax(1)
    clean = worst_margin(margins(model(x), y), y).detach()
    want = clean - 2 * 0.01 * x.abs().sum(1)
    torch.testing.assert_close(worst(model, corners(model, x, y, JointBall(0.0, 0.01), scope="sample"), y), want)


def test_no_corner_of_a_small_box_leaves_fewer_right():
    for seed in range(4):
        model, x = dense(2, 2, seed=seed, bias=False), batch(40, 2, seed=seed)
        y, ball = model(x).argmax(1), JointBall(0.0, 0.3)
        W = model[1].weight.detach()
        tried = [W + 0.3 * torch.tensor(s, dtype=W.dtype).view(2, 2) for s in itertools.product((-1, 1), repeat=4)]
        least = min(int(right(model, Perturbation(x, {"1.weight": w}), y)) for w in tried)
        assert right(model, corners(model, x, y, ball), y) <= least


def test_equal_accuracies_are_told_apart_by_the_margin():
    model, x = dense(4, 6, 3), batch(30, 4)
    y, ball = model(x).argmax(1), JointBall(0.0, 1e-4)
    found = corners(model, x, y, ball, scope="dataset")
    keep = worst_margin(margins(model(x), y), y).detach() > 0.05  # too far from the boundary for this ball
    x, y = x[keep], y[keep]
    found = corners(model, x, y, ball, scope="dataset")
    assert right(model, found, y) == len(y)
    assert worst(model, found, y).mean() < worst_margin(margins(model(x), y), y).mean()


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_goes_on_from_the_start(scope, kind):
    torch.manual_seed(0)
    model = (dense(16, 8, 6, 4) if kind == "dense" else conv((1, 4, 4), 4, hidden=(3,)).double()).eval()
    x = batch(40, 16) if kind == "dense" else batch(40, 1, 4, 4)
    y, ball = model(x).argmax(1), JointBall(0.05, 0.02)
    start = joint_pgd(model, x, y, JointBall(0.05, 0.01), steps=5, step_x=0.01, step_w=0.005, scope=scope)
    found = corners(model, x, y, ball, scope=scope, start=start)
    assert found.x.equal(start.x)
    assert worst(model, found, y).clamp(min=0).sum() < worst(model, start, y).clamp(min=0).sum()
    assert right(model, found, y) <= min(right(model, start, y), right(model, corners(model, x, y, ball, scope=scope), y))


def test_shifts_stand_for_any_weights():
    model, x = dense(6, 5, 4, 3), batch(9, 6)
    g = torch.Generator().manual_seed(0)
    sides = {n: (torch.rand(p.shape, generator=g) / 9, torch.rand(p.shape, generator=g) / 9) for n, p in model.named_parameters()}
    for ball in (JointBall(0.1, 0.05, moves="all"), JointBall(0.1, 0.05), JointBall(0.1, sides)):
        boxes = ball.weight_boxes(dict(model.named_parameters()))
        moved = {n: b.lo + (b.hi - b.lo) * torch.rand(9, *b.lo.shape, generator=g) for n, b in boxes.items()}
        point, network = Perturbation(x, moved, "sample"), shifts(model, ball)
        torch.testing.assert_close(network(x, _as_shifts(network, point)), logits_at(model, point))


class Odd(nn.Module):
    """One tensor for two layers, a scalar and a parameter that nothing uses."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.W, self.out, self.scale, self.idle = (nn.Parameter(torch.randn(s).double()) for s in ((4, 4), (3, 4), (), (2, 2)))

    def forward(self, x):
        return torch.relu(torch.relu(x @ self.W.T) @ self.W.T) @ self.out.T * self.scale


@pytest.mark.parametrize("scope", SCOPES)
def test_tied_scalar_and_idle_parameters(scope):
    model, x = Odd().eval(), batch(20, 4)
    y, ball = model(x).argmax(1), JointBall(0.0, 0.05, moves="all")
    found = corners(model, x, y, ball, scope=scope)
    assert set(found.weights) == {"W", "out", "scale", "idle"}
    assert worst(model, found, y).sum() < worst(model, Perturbation(x), y).sum()


@pytest.mark.parametrize("scope", SCOPES)
def test_boxes_with_two_ends_and_nothing_to_do(scope):
    model, x = dense(6, 5, 3), batch(8, 6)
    y = model(x).argmax(1)
    one_sided = JointBall(0.0, {"1.weight": (0.0, 0.1), "3.bias": 0.05})
    assert set(corners(model, x, y, one_sided, scope=scope).weights) == {"1.weight", "3.bias"}
    assert corners(model, x, y, JointBall(0.1, 0.0), scope=scope).weights == {}
    assert corners(model, x, y, JointBall(0.1, 0.1), scope=scope, draws=0, steps=0).x.equal(x)
    empty = corners(model, batch(0, 6), y[:0], JointBall(0.0, 0.1), scope=scope)
    assert empty.x.shape == (0, 6) and empty.weights["1.weight"].shape == ((0, 5, 6) if scope == "sample" else (5, 6))


def test_refuses_what_cannot_be():
    model, x, y = dense(6, 5, 3), batch(4, 6), torch.zeros(4, dtype=torch.long)
    for bad in ({"steps": -1}, {"draws": -1}, {"chunk": 0}):
        with pytest.raises(InvalidInput, match=next(iter(bad))):
            corners(model, x, y, JointBall(0.0, 0.1), **bad)
    with pytest.raises(InvalidInput, match="names no parameter"):
        corners(model, x, y, JointBall(0.0, {"nope": 0.1}))
