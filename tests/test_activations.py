"""Quantised activations: against a quantiser of a few lines, and every bound and certificate of flips against brute force."""

import itertools
import random

import numpy as np
import pytest
import torch
from torch import nn

import nonsingular as ns
from nonsingular.bounds.interval import region
from nonsingular.faults.uniform import UniformRounding
from nonsingular.threat.ball import JointBall
from sampling import first
from soundness import check_sound

G = torch.Generator().manual_seed(0)


def net(*sizes, seed=0):
    torch.manual_seed(seed)
    layers = [m for d, o in itertools.pairwise(sizes) for m in (nn.Linear(d, o), nn.ReLU())]
    return nn.Sequential(*layers[:-1]).eval()


def words(x, low, high, bits):
    """An asymmetric quantiser over a range that holds 0: the values of its words, ties to even."""
    low, high = min(low, 0.0), max(high, 0.0)
    step = np.float32((high - low) / (2**bits - 1))
    zero = np.rint(-low / float(step))
    return (np.clip(np.rint(x.astype(np.float32) / step + np.float32(zero)), 0, 2**bits - 1) - zero).astype(np.float32) * step


@pytest.mark.parametrize("bits", [2, 5, 8, 13])
def test_inputs_of_layers_are_the_values_of_their_words(bits):
    model, x = net(4, 6, 3), 2 * torch.rand(50, 4, generator=G) - 0.7
    made = ns.quantize(model, 8, activations=bits, calibration=x)
    plain = ns.quantize(model, 8)
    assert made.words["0.weight"].equal(plain.words["0.weight"]) and type(made) is type(model)
    a, b = (plain[i] for i in (0, 2))
    hidden = torch.relu(a(x)).detach()  # the ranges are those of the network with rounded weights, whose activations are not
    other = 3 * torch.rand(40, 4, generator=G) - 1.2  # beyond the range, too
    first_ = torch.from_numpy(words(other.numpy(), x.min().item(), x.max().item(), bits))
    second = torch.from_numpy(words(torch.relu(a(first_)).detach().numpy(), 0.0, hidden.max().item(), bits))
    assert torch.equal(made(other), b(second))
    lo, hi = made.activations["0"].range
    assert abs(lo - x.min().item()) <= made.activations["0"].step and abs(hi - x.max().item()) <= made.activations["0"].step
    inside = (other >= lo) & (other <= hi)
    assert ((first_ - other).abs()[inside] <= made.activations["0"].step * 0.5001).all()
    assert torch.equal(model[0].weight, net(4, 6, 3)[0].weight), "the model itself changed"


def test_a_convolution_and_several_calls_of_one_layer():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.c, self.l = nn.Conv2d(1, 1, 3, padding=1), nn.Linear(16, 3)

        def forward(self, x):
            return self.l(torch.relu(self.c(2 * torch.relu(self.c(x)))).flatten(1))

    torch.manual_seed(0)
    model, x = Twice().eval(), torch.rand(20, 1, 4, 4, generator=G)
    made = ns.quantize(model, activations=8, calibration=x)
    assert made.activations.keys() == {"c", "l"}
    most = 2 * torch.relu(ns.quantize(model).c(x)).max().item()
    assert made.activations["c"].range[1] == pytest.approx(max(most, x.max().item()), rel=1e-2), "one range for both calls"
    torch.testing.assert_close(made(x), ns.quantize(model)(x), atol=0.05, rtol=0.05)
    y = made(x).argmax(1)
    assert ns.certify(made, x[:4], y[:4], JointBall(0.0, 0.0), bound="interval").accuracy > 0


@pytest.mark.parametrize("seed", first(4, range(60)))
def test_no_bound_lies_above_brute_force(seed):
    r = random.Random(seed)
    sizes = [r.randint(2, 4), *(r.randint(2, 5) for _ in range(r.randint(1, 3))), 3]
    model = net(*sizes, seed=seed)
    x = torch.rand(30, sizes[0], generator=torch.Generator().manual_seed(seed))
    made = ns.quantize(model, r.choice([2, 4, 8]), activations=r.choice([2, 3, 5, 8]), calibration=x).double()
    y = torch.tensor([0, 1, 2])
    for eps_x, eps_w in ((0.0, 0.02), (0.05, 0.0), (0.2, 0.1)):
        check_sound(made, region(made, x[:3].double(), y, JointBall(eps_x, eps_w)), y)


@pytest.mark.parametrize("seed", range(3))
def test_flips_of_a_network_with_rounded_activations_are_decided_by_trying_each(seed):
    model, x = net(3, 4, 3, seed=seed), torch.rand(6, 3, generator=torch.Generator().manual_seed(seed))
    made = ns.quantize(model, 4, activations=4, calibration=x)
    y = made(x).argmax(1)
    proven = ns.certify_flips(made, x, y, bits=4).verified
    stored = UniformRounding(4).words(dict(made.named_parameters()))
    lost = torch.zeros(len(x), dtype=torch.bool)
    for name, w in stored.items():
        for at in range(w.word.numel()):
            for bit in range(4):
                pattern = w.pattern().clone()
                pattern.view(-1)[at] ^= 1 << bit
                moved = {name: w.holding(pattern).values(torch.float32)}
                lost |= torch.func.functional_call(made, moved, (x,)).argmax(1) != y
    assert torch.equal(proven, ~lost), "one flip at a fixed input is decided exactly"


def test_attacks_pass_the_rounding():
    model, x = net(6, 16, 3), torch.rand(60, 6, generator=G)
    made = ns.quantize(model, activations=3, calibration=x)
    y = made(x).argmax(1)
    ball = JointBall(0.15, 0.0)
    lost = made(ns.strongest(made, x, y, ball, scope="sample").x).argmax(1) != y
    random_ = (x + 0.15 * (2 * torch.rand(30, 60, 6, generator=G) - 1)).clamp(0, 1)
    assert lost.sum() >= torch.stack([made(part).argmax(1) != y for part in random_]).any(0).sum() > 0
    assert not (ns.certify(made, x, y, ball, bound="crown").verified & lost).any()


class Bare(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(3, 4))

    def forward(self, x):
        return x @ self.w.T


REFUSED = {
    "bits": (lambda: net(4, 3), {"activations": 1, "calibration": torch.rand(3, 4)}, "from 2 to 16"),
    "no examples": (lambda: net(4, 3), {"activations": 8}, "calibration=x"),
    "no bits": (lambda: net(4, 3), {"calibration": torch.rand(3, 4)}, "activations=8"),
    "not finite": (lambda: net(4, 3), {"activations": 8, "calibration": torch.full((3, 4), torch.inf)}, "not finite"),
    "another shape": (lambda: net(4, 3), {"activations": 8, "calibration": torch.rand(3, 5)}, "inputs of shape"),
    "a matrix outside layers": (Bare, {"activations": 8, "calibration": torch.rand(3, 4)}, "'w'.*fake_quantize"),
    "attention": (
        lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).eval(),
        {"activations": 8, "calibration": torch.rand(3, 2, 4)}, "returns shape|out_proj",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_rounded_is_said(name):
    make, settings, said = REFUSED[name]
    with pytest.raises(ns.InvalidInput, match=said):
        ns.quantize(make(), **settings)
