"""Square attack on the inputs: hand numbers, closed-form optima, and what it must leave alone."""

import pytest
import torch
from torch import nn

from nonsingular.attacks.joint_pgd import joint_pgd
from nonsingular.attacks.square import SHARE, share, square, window
from nonsingular.errors import InvalidInput
from nonsingular.network.calling import logits_at
from nonsingular.network.margins import margins, worst_margin
from nonsingular.threat.ball import SCOPES, JointBall
from nonsingular.threat.perturbation import Perturbation


def linear(*shape, classes=3, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(shape).numel(), classes)).double().eval()


def batch(n, *shape, seed=1):
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def worst(model, point, y):
    return worst_margin(margins(logits_at(model, point), y), y)


def test_the_schedule_by_hand():
    # of 10,000 trials: 0.8 of the positions up to the 10th, half of that up to the 50th, ...; eight halvings in the end
    assert [share(i, 10_000) for i in (0, 10, 11, 51, 201)] == [SHARE, SHARE, SHARE / 2, SHARE / 4, SHARE / 8]
    assert share(9_999, 10_000) == SHARE / 256
    assert share(11, 500) == share(220, 10_000)


def test_windows_by_hand():
    assert window(8, 8, 0.8) == (7, 7)  # sqrt(0.8 * 64) = 7.2
    assert window(8, 8, 0.001) == (1, 1)
    assert window(2, 32, 0.8) == (2, 7)  # sqrt(51.2) = 7.2 is higher than the image
    assert window(1, 10, 0.8) == (1, 8)
    assert window(1, 10, 0.001) == (1, 1)


@pytest.mark.parametrize("shape", [(6,), (2, 3), (2, 1, 3), (1, 2, 3), (2, 1, 3, 1)])
def test_reaches_the_optimum_of_a_linear_network(shape):
    # margin (w_y - w_j) x + b_y - b_j: lowest at the end of each coordinate that the sign of w_y - w_j says.  Large labels'
    # margins keep examples right, so that nothing stops early
    model, x, ball = linear(*shape, classes=2), batch(5, *shape), JointBall(0.1, 0.0)
    with torch.no_grad():
        model[1].bias.copy_(torch.tensor([9.0, 0.0]))
    y = torch.zeros(5, dtype=torch.long)
    found = square(model, x, y, ball, steps=400)
    w, box = (model[1].weight[0] - model[1].weight[1]).detach(), ball.input_box(x)
    best = torch.where(w > 0, box.lo.flatten(1), box.hi.flatten(1))
    torch.testing.assert_close(found.x.flatten(1), best)


def test_every_value_lies_at_an_end_or_at_the_start_and_in_the_domain():
    model, x = linear(3, 5, 5), batch(8, 3, 5, 5)
    ball = JointBall(0.3, 0.0)
    y = model(x).argmax(1)
    box, found = ball.input_box(x), square(model, x, y, ball, steps=5).x
    assert found.min() >= 0 and found.max() <= 1
    assert bool(((found == box.lo) | (found == box.hi) | (found == x)).all())
    assert not found.equal(x)
    wide = JointBall(0.3, 0.0, domain=None)
    assert square(model, x, y, wide, steps=50).x.min() < 0


def test_wrong_examples_are_left_alone():
    model, x = linear(6), batch(12, 6)
    y = torch.arange(12) % 3
    wrong = model(x).argmax(1) != y
    assert 0 < wrong.sum() < 12
    found = square(model, x, y, JointBall(0.2, 0.0))
    assert found.x[wrong].equal(x[wrong])
    assert not found.x[~wrong].equal(x[~wrong])


def test_breaks_what_gives_no_gradient():
    class Round(nn.Module):
        def forward(self, z):
            return torch.round(z * 8) / 8

    model, x, ball = linear(16, classes=4), batch(60, 16), JointBall(0.2, 0.0)
    masked, y = nn.Sequential(Round(), *model).eval(), model(x).argmax(1)
    kept = (logits_at(masked, joint_pgd(masked, x, y, ball)).argmax(1) == y).sum()
    assert (logits_at(masked, square(masked, x, y, ball)).argmax(1) == y).sum() < kept / 2


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("tries, chunk", [(1, 1024), (3, 2)])
def test_the_weights_of_the_start_are_those_that_it_attacks(scope, tries, chunk):
    torch.manual_seed(0)
    model, x, ball = linear(8, classes=4), batch(30, 8), JointBall(0.05, 0.03)
    y = model(x).argmax(1)
    start = joint_pgd(model, x, y, JointBall(0.0, 0.03), steps=3, step_w=0.01, scope=scope)
    found = square(model, x, y, ball, steps=60, start=start, scope=scope, tries=tries, chunk=chunk)
    assert all(w.equal(start.weights[n]) for n, w in found.weights.items()) and len(found.weights) == 1
    assert worst(model, found, y).sum() < worst(model, start, y).sum()
    assert worst(model, found, y).sum() < worst(model, square(model, x, y, ball, steps=60, scope=scope), y).sum()


def test_more_proposals_find_more():
    model, x, ball = linear(1, 8, 8, classes=4), batch(60, 1, 8, 8), JointBall(0.1, 0.0)
    y = model(x).argmax(1)
    one, four = (worst(model, square(model, x, y, ball, steps=20, tries=t), y).mean() for t in (1, 4))
    assert four < one


def test_nothing_to_do():
    model, x = linear(6), batch(4, 6)
    y = model(x).argmax(1)
    assert square(model, x, y, JointBall(0.1, 0.0), steps=0).x.equal(x)
    assert square(model, x, y, JointBall(0.0, 0.1)).x.equal(x)
    assert square(model, batch(0, 6), y[:0], JointBall(0.1, 0.0)).x.shape == (0, 6)


def test_refuses_what_cannot_be():
    model, x, y = linear(6), batch(4, 6), torch.zeros(4, dtype=torch.long)
    for bad in ({"steps": -1}, {"tries": 0}, {"chunk": 0}):
        with pytest.raises(InvalidInput, match=next(iter(bad))):
            square(model, x, y, JointBall(0.1, 0.0), **bad)
    with pytest.raises(InvalidInput, match="domain"):
        square(model, x + 1, y, JointBall(0.1, 0.0))
    with pytest.raises(InvalidInput, match="labels"):
        square(model, x, y + 3, JointBall(0.1, 0.0))
    with pytest.raises(InvalidInput, match="dataste"):
        square(model, x, y, JointBall(0.1, 0.0), scope="dataste")
    with pytest.raises(InvalidInput, match="start is not a point"):
        square(model, x, y, JointBall(0.1, 0.0), start=Perturbation(x[:2]))
