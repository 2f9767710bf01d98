"""Certificates at one ball, verdicts, and the largest radii."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from nonsingular.attacks.joint_pgd import joint_pgd
from nonsingular.attacks.neuron_pgd import neuron_pgd
from nonsingular.bounds.interval import region
from nonsingular.bounds.rounding import rounding
from nonsingular.catalog import BOUNDS
from nonsingular.certificates.certify import certify, decide
from nonsingular.certificates.radii import Front, certified_front, certified_radius
from nonsingular.errors import InvalidInput, UnsupportedModel
from nonsingular.models.architectures import conv, mlp
from nonsingular.network.calling import logits_at
from nonsingular.network.margins import margins, worst_margin
from nonsingular.network.network import twin
from nonsingular.threat.ball import JointBall


def small(seed: int = 0, n: int = 12) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    model = mlp((4,), 3, hidden=(8, 6), bias=True).eval()
    x = torch.rand(n, 4)
    return model, x, model(x).argmax(1)


# --- float32 and float64 ------------------------------------------------------------------------------------------------------


def test_close_calls_are_computed_again_in_float64(put_bound):
    """Three examples: far above 0, far below, and just above in float32 but not in float64."""
    asked = []

    def bound(model, x, y, ball):
        asked.append((x.dtype, len(x)))
        low = torch.tensor([[5.0], [-5.0], [1e-6 if x.dtype == torch.float32 else -1e-6]], dtype=x.dtype)
        return low[-len(x) :].expand(-1, 3).scatter(1, y[:, None], 0.0)

    put_bound("best", bound)
    model, x, y = small(n=3)
    found = certify(model, x, y, JointBall(0.01, 0.01), dtype=torch.float32)
    assert asked == [(torch.float32, 3), (torch.float64, 1)]
    assert found.verified.tolist() == [True, False, False]
    assert found.margins.dtype == torch.float64


def test_float32_is_nan_safe(put_bound):
    def bound(model, x, y, ball):
        return torch.full((len(x), 3), math.nan, dtype=x.dtype)

    put_bound("best", bound)
    model, x, y = small()
    assert certify(model, x, y, JointBall(0.01, 0.01), dtype=torch.float32).accuracy == 0


@pytest.mark.parametrize("method", ["interval", "crown-ibp", "crown"])
def test_float32_errs_by_less_than_is_taken_off(method):
    for seed in range(5):
        torch.manual_seed(seed)
        model = mlp((50,), 10, hidden=(64, 64, 64), bias=True).eval()
        x = torch.rand(8, 50)
        y = model(x).argmax(1)
        for ball in (JointBall(0.0, 0.0), JointBall(0.01, 0.001), JointBall(0.05, 0.01)):
            bound = BOUNDS[method].load()
            one, two = bound(model, x, y, ball), bound(twin(model).double(), x.double(), y, ball)
            off = rounding(region(twin(model).double(), x.double(), y, ball), torch.float32)
            assert ((one - two).abs().amax(1) <= off).all()
            assert (off < 0.1).all()


def test_float32_never_verifies_what_float64_does_not():
    """The box W +- 0.03 rounds to W at 1e6: the bound in float32 was +0.01 where -0.02 is attained."""
    for scale in (1.0, 1e2, 1e4, 1e6):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2)).eval()
        with torch.no_grad():
            model[0].weight[:, 1::2] = -model[0].weight[:, ::2]  # sums that cancel
            model[0].weight.mul_(scale)
        x = torch.full((20, 6), 0.5) + 1e-7 * torch.rand(20, 6)
        y, ball = model(x).argmax(1), JointBall(0.0, {"0.weight": 3e-8 * scale})
        for method in ("interval", "crown", "alpha-crown", "best"):
            single, double = (certify(model, x, y, ball, bound=method, dtype=d) for d in (torch.float32, torch.float64))
            assert not (single.verified & ~double.verified).any()
            assert (single.margins <= double.margins + 1e-9 * scale).all()


def test_float32_and_float64_verify_the_same():
    model, x, y = small(n=40)
    for radius in (0.005, 0.02, 0.05):
        ball = JointBall(radius, radius)
        both = [certify(model, x, y, ball, bound="crown", dtype=d).verified for d in (torch.float32, torch.float64)]
        assert torch.equal(*both)


def test_other_precisions_are_refused():
    with pytest.raises(InvalidInput, match="computed in torch"):
        certify(*small(), JointBall(0.1, 0.1), dtype=torch.float16)


# --- verdicts -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_verified_survives_every_attack_and_falsified_replays(kind):
    """A certified network survives every attack of the library; what is falsified is changed by its perturbation."""
    torch.manual_seed(1)
    model = (mlp((1, 5, 5), 4, hidden=(10, 8), bias=True) if kind == "dense" else conv((1, 6, 6), 4, hidden=(2,))).eval()
    x = torch.rand(8, 1, 5, 5) if kind == "dense" else torch.rand(8, 1, 6, 6)
    y = model(x).argmax(1)
    seen = set()
    for radius in (0.002, 0.01, 0.05, 0.2):
        ball = JointBall(radius, radius, moves="all")
        found = decide(model, x, y, ball, parts=60)
        seen |= set(found.status)
        exact = twin(model).double()
        held = torch.tensor([s == "verified" for s in found.status])
        broken = torch.tensor([s == "falsified" for s in found.status])
        attacks = [
            joint_pgd(model, x, y, ball, scope=s, steps=20, step_x=radius / 4, step_w=radius / 4)
            for s in ("sample", "batch", "dataset")
        ]
        attacks += [neuron_pgd(model, x, y, ball)] if kind == "dense" else []
        for point in attacks:
            assert (logits_at(model, point).argmax(1) == y)[held].all()
        found.perturbation.check(exact, x.double(), ball)
        reached = worst_margin(margins(logits_at(exact, found.perturbation), y), y)
        assert (reached[broken] <= 0).all()
        torch.testing.assert_close(reached, found.upper)
        assert (worst_margin(found.lower, y) <= found.upper + 1e-9).all()
    assert {"verified", "falsified"} <= seen


def test_an_attack_that_does_not_fit_is_refused_only_if_it_was_named():
    torch.manual_seed(0)
    model = conv((1, 6, 6), 3, hidden=(2,)).eval()
    x = torch.rand(2, 1, 6, 6)
    y = model(x).argmax(1)
    assert len(decide(model, x, y, JointBall(0.01, 0.001), parts=4).status) == 2
    with pytest.raises(UnsupportedModel):
        decide(model, x, y, JointBall(0.01, 0.001), attack="neuron")


# --- radii --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("along", ["eps_x", "eps_w"])
def test_the_radius_is_the_largest_of_the_grid_that_is_certified(along):
    model, x, y = small(n=10)
    y = torch.where(torch.arange(10) == 3, (y + 1) % 3, y)  # one that is wrong already
    ball, bits = JointBall(0.1, 0.08), 4
    found = certified_radius(model, x, y, ball, along=along, bits=bits)
    unit = getattr(ball, along)
    held = []
    for i in range(2**bits + 1):
        t = i / 2**bits
        at = ball.scaled(t, 1) if along == "eps_x" else ball.scaled(1, t)
        held.append(certify(model, x, y, at, bound="crown").verified)
    largest = torch.stack(held).cumprod(0).sum(0) - 1  # bounds of these networks fall with the radius
    expected = torch.where(largest >= 0, largest / 2**bits * unit, torch.nan).double()
    torch.testing.assert_close(found, expected, equal_nan=True)
    assert found[3].isnan()


def test_the_radius_of_a_linear_network_in_closed_form():
    """margin - 2 eps_w ||x||_1 - eps_x ||D||_1 = 0 for x far from 0: the radius to the resolution that was asked for."""
    torch.manual_seed(0)
    model = nn.Linear(4, 2, bias=False)
    x = torch.rand(6, 4) + 1
    y = model(x).argmax(1)
    m = worst_margin(margins(model(x), y), y).double()
    D = (model.weight[0] - model.weight[1]).abs().sum().double()
    eps_x, top = 0.01, 0.5
    exact = ((m - eps_x * D) / (2 * (x.double().sum(1) + 4 * eps_x))).detach()  # the corner that is far from 0 costs most
    nearer = ((m - eps_x * D) / (2 * (x.double().sum(1) - 4 * eps_x))).detach()
    found = certified_radius(model, x, y, JointBall(eps_x, top, None), bits=12)
    robust = exact > 0
    assert (found[robust] >= exact.clamp(max=top)[robust] - top / 2**12 - 1e-9).all()
    assert (found[robust] <= nearer.clamp(max=top)[robust] + 1e-9).all()
    assert found[~robust].isnan().all()


def test_the_front_falls_and_meets_the_radii_and_answers_for_a_share():
    model, x, y = small(n=10)
    ball = JointBall(0.06, 0.05)
    front = certified_front(model, x, y, ball, eps_x=[0.0, 0.02, 0.06], bits=5)
    assert front.eps_x == (0.0, 0.02, 0.06)
    filled = front.eps_w.nan_to_num(nan=-1)
    assert (filled[1:] <= filled[:-1]).all()
    alone = certified_radius(model, x, y, JointBall(0.02, 0.05), bits=5)
    torch.testing.assert_close(front.eps_w[1], alone, equal_nan=True)
    for share in (0.1, 0.5, 0.9, 1.0):
        for radius, eps_x in zip(front.at(share), front.eps_x, strict=True):
            if not math.isnan(radius):
                held = certify(model, x, y, JointBall(eps_x, radius), bound="crown").accuracy
                assert held >= share - 1e-9
    assert len(certified_front(model, x, y, ball, bits=2).eps_x) == 11


def test_the_front_for_a_share_by_hand():
    nan = math.nan
    front = Front((0.0, 0.1), torch.tensor([[3.0, 1.0, 2.0, nan], [2.0, nan, nan, nan]], dtype=torch.float64))
    assert front.at(0.25) == (3.0, 2.0)
    assert front.at(0.5)[0] == 2.0
    assert math.isnan(front.at(0.5)[1])
    assert front.at(0.75)[0] == 1.0
    assert math.isnan(front.at(1.0)[0])
    for bad in (0.0, 1.1, -1):
        with pytest.raises(InvalidInput, match="share"):
            front.at(bad)


def test_radii_by_tensor_are_shares():
    model, x, y = small(n=6)
    whole = certified_radius(model, x, y, JointBall(0.01, {"1.weight": 0.04}), bits=5)
    assert ((whole >= 0) & (whole <= 1)).logical_or(whole.isnan()).all()
    held = certify(model, x, y, JointBall(0.01, {"1.weight": 0.04 * float(whole[0])}), bound="crown").verified
    assert held[0]


def test_bisection_asks_each_example_only_a_few_times(bounded):
    asked = bounded("crown")
    model, x, y = small(n=20)
    certified_radius(model, x, y, JointBall(0.01, 0.1), bits=6)
    assert sum(asked) <= 7 * 20
    asked.clear()
    certified_front(model, x, y, JointBall(0.1, 0.1), eps_x=[0, 0.02, 0.04, 0.06, 0.08, 0.1], bits=6)
    assert sum(asked) <= 6 * 7 * 20 / 1.5  # smaller radii leave less to search


def test_what_cannot_be_asked():
    model, x, y = small()
    with pytest.raises(InvalidInput, match="eps_x or eps_w"):
        certified_radius(model, x, y, JointBall(0.1, 0.1), along="eps_z")
    with pytest.raises(InvalidInput, match="increasing"):
        certified_front(model, x, y, JointBall(0.1, 0.1), eps_x=[0.1, 0.0])
    with pytest.raises(InvalidInput, match="may not certify"):
        certified_radius(model, x, y, JointBall(0.1, 0.1), bound="theorem1-printed")
