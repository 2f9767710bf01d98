"""Analog memory: means and standard deviations of many devices against the stated formulas, by hand and by quadrature."""

import math

import pytest
import torch

import nonsingular as ns
from nonsingular.faults.analog import RERAM, PhaseChange, ReRAM

N = 40_000


def draws(fault, value, seed=0):
    """(N,) what becomes of the weight `value` of a tensor whose largest weight is 1; that one is in the first row."""
    w = torch.full((N + 1, 1), float(value), dtype=torch.float64)
    w[0] = 1.0
    return fault({"w": w}, torch.Generator().manual_seed(seed))["w"][1:, 0]


def test_programming_noise_of_pcm_by_hand():
    # r = 1: 0.26348 + 1.9650 - 1.1731 = 1.05538 uS of 25.  The other device of the pair is at 0: max(0.26348 n, 0)
    fault = PhaseChange(compensated=False, reads=False)
    got = draws(fault, 1.0)
    other_mean, other_second = 0.26348 / math.sqrt(2 * math.pi), 0.26348**2 / 2
    assert got.mean().item() == pytest.approx(1 - other_mean / 25, abs=5 * 0.043 / math.sqrt(N))
    sigma = math.sqrt(1.05538**2 + other_second - other_mean**2) / 25
    assert got.std().item() == pytest.approx(sigma, rel=0.02)
    assert draws(fault, -1.0).mean().item() == pytest.approx(-(1 - other_mean / 25), abs=5 * 0.043 / math.sqrt(N))
    # r = 0.5: 0.26348 + 0.9825 - 0.293275 = 0.952705 uS
    assert draws(fault, 0.5).std().item() == pytest.approx(math.sqrt(0.952705**2 + other_second - other_mean**2) / 25, rel=0.02)
    assert draws(PhaseChange(g_max=50.0, compensated=False, reads=False), 1.0).std().item() == pytest.approx(sigma, rel=0.02)


def test_drift_and_read_noise_of_pcm():
    day = 86_400.0
    got = draws(PhaseChange(day, compensated=False, reads=False), 1.0)
    # r = 1: nu = 0.049 +- 0.008; ln((day + 20) / 20) = 8.371
    span = math.log((day + 20) / 20)
    want = math.exp(-0.049 * span + (0.008 * span) ** 2 / 2)
    assert got.mean().item() == pytest.approx(want, abs=0.004)  # the device at 0 takes up to 0.0042 * 0.64
    assert (
        abs(draws(PhaseChange(day, reads=False), 0.8).mean().item() - 0.8)
        < 0.03
        < 0.8 - draws(PhaseChange(day, compensated=False, reads=False), 0.8).mean().item()
    )
    quiet, loud = draws(PhaseChange(day, compensated=False, reads=False), 1.0), draws(PhaseChange(day, compensated=False), 1.0)
    q = 0.0088 * math.sqrt(math.log((day + 20 + 250e-9) / 500e-9))  # r near 1
    assert math.sqrt(loud.var().item() - quiet.var().item()) == pytest.approx(q * want, rel=0.15)
    assert loud.mean().item() == pytest.approx(quiet.mean().item(), abs=0.003)


@pytest.mark.parametrize("seconds", RERAM)
def test_noise_of_reram(seconds):
    at_one = sum(RERAM[seconds])  # r = 1
    other = RERAM[seconds][0]
    want = math.sqrt(max(at_one, 0) ** 2 + other**2 * (0.5 - 1 / (2 * math.pi))) / 40
    assert draws(ReRAM(seconds), 1.0).std().item() == pytest.approx(want, rel=0.03)


@pytest.mark.parametrize("fault", [PhaseChange(), PhaseChange(3600.0), ReRAM()])
def test_seeds_zeros_and_order(fault):
    w = {"w": torch.randn(6, 5), "z": torch.zeros(2, 2), "b": torch.ones(3)}
    a, b, c = (fault(w, torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert a["w"].equal(b["w"]) and not a["w"].equal(c["w"]) and a.keys() == {"w", "z"} and not a["z"].any()
    assert a["w"].dtype == torch.float32 and fault.radii(w) is None
    both = ns.InOrder((ns.UniformRounding(4), fault))
    assert both(w, torch.Generator().manual_seed(0))["w"].shape == (6, 5)
    assert both.describe()["faults"][1]["seconds"] == fault.seconds
    found = ns.campaign(torch.nn.Linear(5, 6), (torch.rand(10, 5), torch.zeros(10).long()), fault=both, chips=3)
    assert found.after.shape == (1, 1, 3)


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: PhaseChange(-1.0), "seconds is -1.0"),
        (lambda: PhaseChange(g_max=0.0), "g_max 0.0"),
        (lambda: PhaseChange(compensated=1), "compensated is 1"),
        (lambda: ReRAM(5.0), "give 1, 86400, 172800"),
        (lambda: PhaseChange()({"w": torch.ones(2, 2)}), "draws; give a torch.Generator"),
        (lambda: ReRAM().ball({"w": torch.ones(2, 2)}), "no box holds"),
    ],
)
def test_what_cannot_be_is_refused(make, said):
    with pytest.raises(ns.InvalidInput, match=said):
        make()
