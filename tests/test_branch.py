"""Branch and bound: parts cover the region, verdicts are true, points replay, small dense networks are always decided."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nonsingular.bounds import parts
from nonsingular.bounds.branch import branch_and_bound, search
from nonsingular.bounds.interval import region
from nonsingular.bounds.linear import crown
from nonsingular.bounds.parts import Search
from nonsingular.bounds.verdicts import STATUSES
from nonsingular.errors import UnsupportedModel
from nonsingular.models.architectures import mlp
from nonsingular.network.calling import logits_at
from nonsingular.network.margins import margins, worst_margin
from nonsingular.network.network import twin
from nonsingular.threat.ball import JointBall
from nonsingular.threat.perturbation import Perturbation
from sampling import first
from soundness import lowest_found, random_case


def tiny(seed: int, hidden: tuple[int, ...] = (6, 5), bias: bool = True) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    model = mlp((3,), 3, hidden=hidden, bias=bias).double().eval()
    x = torch.rand(4, 3).double()
    return model, x, model(x).argmax(1)


@pytest.mark.parametrize("block", range(8))
def test_no_point_of_a_random_region_beats_the_bounds(block):
    """Dense, convolutional, residual, BatchNorm, s-shaped, signed inputs, asymmetric boxes."""
    for seed in range(500 + 6 * block, 500 + 6 * (block + 1)):
        model, where, y = random_case(seed)
        x = (where.x.lo + where.x.hi) / 2
        tree = Search(where, y, twin(model), x)
        root = tree.lower.clone()
        tree.run(40)
        found, reached = tree.verdicts(), lowest_found(model, where, y)
        slack = 1e-9 * (1 + reached.abs() + found.lower.abs())
        assert (found.lower <= reached + slack).all(), seed
        assert (found.lower >= root).all()
        assert all(where.boxes[n].lo.le(w).all() and where.boxes[n].hi.ge(w).all() for n, w in found.perturbation.weights.items())
        assert where.x.contains(found.perturbation.x)
        at_point = worst_margin(margins(logits_at(model, found.perturbation), y), y)
        torch.testing.assert_close(at_point, found.upper)
        worst = worst_margin(reached, y)
        for b, status in enumerate(found.status):
            assert status != "verified" or (worst[b] > 0 and found.upper[b] > 0)
            assert status != "falsified" or found.upper[b] <= 0


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("seed", first(2, range(10)))
def test_small_dense_networks_are_always_decided(seed, bias):
    """Non-negative inputs, ReLU: with all signs fixed the bound is the dual of a linear program, so no gap can remain."""
    model, x, y = tiny(seed, (6, 5)[: 1 + seed % 2], bias)
    for radius in (0.02, 0.06, 0.12):
        ball = JointBall(radius, radius, moves="all" if seed % 3 else "weights")
        found = search(model, x, y, ball)
        assert "timeout" not in found.status
        found.perturbation.check(model, x, ball)
        attained = worst_margin(margins(logits_at(model, found.perturbation), y), y)
        for status, low, high in zip(found.status, worst_margin(found.lower, y), attained, strict=True):
            assert (status == "verified") == bool(low > 0)
            assert (status == "falsified") == bool(high <= 0)


def test_it_verifies_more_than_linear_bounds_alone():
    gained = 0
    for seed in range(12):
        model, x, y = tiny(seed, (8, 8))
        ball = JointBall(0.05, 0.05)
        low, root = branch_and_bound(model, x, y, ball), crown(model, x, y, ball)
        assert (low >= root).all()
        gained += int(((worst_margin(low, y) > 0) & (worst_margin(root, y) <= 0)).sum())
    assert gained > 0


def test_without_a_budget_the_bounds_are_those_of_crown():
    model, x, y = tiny(0, (8, 8))
    ball = JointBall(0.08, 0.08)
    for budget in ({"parts": 0}, {"seconds": 0.0}):
        found = search(model, x, y, ball, **budget)
        torch.testing.assert_close(found.lower, crown(model, x, y, ball))
        assert (found.parts == 0).all()
        verified = worst_margin(found.lower, y) > 0
        assert [s == "verified" for s in found.status] == verified.tolist()
        assert "timeout" in found.status


def test_a_perturbation_that_is_known_decides_at_once():
    model, x, y = tiny(0)
    ball = JointBall(0.5, 0.3)
    first = search(model, x, y, ball)
    assert set(first.status) == {"falsified"}
    again = search(model, x, y, ball, known=first.perturbation, parts=0)
    assert again.status == first.status
    assert torch.equal(again.upper, first.upper)


def test_bounds_that_are_known_are_kept_and_settle_their_pairs():
    model, x, y = tiny(1)
    ball = JointBall(0.05, 0.05)
    exact = search(model, x, y, ball)
    again = search(model, x, y, ball, lower=exact.lower, parts=0)
    assert (again.lower >= exact.lower).all()
    assert [s == "verified" for s in again.status] == [s == "verified" for s in exact.status]


def test_what_is_wrong_at_the_input_is_falsified_by_it():
    model, x, y = tiny(0)
    found = search(model, x, (y + 1) % 3, JointBall(0.0, 0.0))
    assert set(found.status) == {"falsified"}
    assert torch.equal(found.perturbation.x, x)


def test_every_example_is_reported_once_and_the_model_is_left():
    model, x, y = tiny(2)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    told = []
    found = search(model, x, y, JointBall(0.05, 0.05), report=told.append)
    assert sum(told) == len(x)
    assert len(found.status) == len(x)
    assert set(found.status) <= set(STATUSES)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    empty = search(model, x[:0], y[:0], JointBall(0.05, 0.05))
    assert empty.status == ()
    assert empty.lower.shape == (0, 3)


def test_many_examples_are_done_in_pieces():
    model, x, y = tiny(3)
    x, y = x.repeat(20, 1), y.repeat(20)
    found = search(model, x, y, JointBall(0.04, 0.04))
    first = found.status[:4]
    assert found.status == first * 20
    assert isinstance(found.perturbation, Perturbation)
    found.perturbation.check(model, x, JointBall(0.04, 0.04))


def test_networks_without_hinges_have_nothing_to_split():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    x = torch.rand(5, 3).double()
    y = model(x).argmax(1)
    ball = JointBall(0.1, 0.1)
    torch.testing.assert_close(branch_and_bound(model, x, y, ball), crown(model, x, y, ball))


def test_what_has_no_rule_is_refused():
    class Odd(nn.Module):
        def forward(self, x):
            return torch.fft.fft(x).real

    with pytest.raises(UnsupportedModel, match="fft"):
        search(Odd().eval(), torch.rand(2, 3), torch.tensor([0, 1]), JointBall(0.1, 0.1))


def test_what_linear_bounds_verify_takes_no_part():
    model, x, _ = tiny(0)
    with torch.no_grad():
        y = model(x).argmax(1)
    ball = JointBall(1e-4, 1e-4)
    margin = worst_margin(crown(model, x, y, ball), y)
    assert ((margin > 0) & (margin < 1)).any()
    assert (search(model, x, y, ball).parts[margin > 0] == 0).all()


def test_raised_boxes_tighten_the_parts_and_stay_below_what_is_attained(monkeypatch):
    """A network with shared kernels, too large to be decided in so few parts; twice gives the same bits."""
    torch.manual_seed(4)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, 2, 1), nn.ReLU(), nn.Conv2d(3, 4, 3, 1, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8), nn.ReLU(),
        nn.Linear(8, 3),
    ).double().eval()  # fmt: skip
    x = torch.rand(1, 1, 8, 8).double()
    y, ball = model(x).argmax(1), JointBall(0.08, 0.01, moves="all")
    with torch.no_grad():  # its worst margin just above 0, far above what linear bounds see
        reached, low = (worst_margin(t, y) for t in (lowest_found(model, region(model, x, y, ball), y), crown(model, x, y, ball)))
        model[-1].bias[y] -= 0.8 * reached + 0.2 * low
    found, again = search(model, x, y, ball, parts=24), search(model, x, y, ball, parts=24)
    assert found.status == ("timeout",)
    assert torch.equal(found.lower, again.lower)
    assert torch.equal(found.perturbation.x, again.perturbation.x)
    monkeypatch.setattr(parts, "RAISED", 0.0)
    assert worst_margin(found.lower, y) > worst_margin(search(model, x, y, ball, parts=24).lower, y) + 1e-5
    reached = lowest_found(model, region(model, x, y, ball), y)
    assert (found.lower <= reached + 1e-9 * (1 + reached.abs())).all()
