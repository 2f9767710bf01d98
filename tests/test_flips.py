"""Certificates over flipped bits: every flip and every pair by brute force, with the words flipped one by one."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nonsingular as ns
from nonsingular.faults.uniform import UniformRounding
from nonsingular.network.margins import margins, worst_margin


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        h = self.a(x).relu()
        return self.c(h + self.b(h).relu() + x)


class Parts(nn.Module):
    """A kernel with groups, a Linear at several positions, a scale, a shift, a product of parameters' views."""

    def __init__(self):
        super().__init__()
        self.conv, self.mix, self.last = nn.Conv2d(2, 4, 2, groups=2, padding=1), nn.Linear(3, 2), nn.Linear(24, 3)
        self.scale, self.shift, self.W = (nn.Parameter(torch.randn(s)) for s in ((4, 1, 1), (1,), (3, 3)))

    def forward(self, x):
        h = (self.conv(x.view(-1, 2, 2, 2)) * self.scale + self.shift).relu()
        return self.last(self.mix(h).tanh().flatten(1)) @ self.W[:, :3]


NETS = {
    "dense": (lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)), (4,)),
    "smooth": (lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)), (3,)),
    "conv": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 2, 2, padding=1), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 2, 2, stride=2), nn.ReLU(), nn.Flatten(),
            nn.Linear(8, 3),
        ), (1, 4, 4),
    ),
    "pool": (lambda: nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2, 3)), (1, 4, 4)),
    "residual": (Residual, (4,)),
    "parts": (Parts, (8,)),
}  # fmt: skip


def net(name, seed, apart=0.0):
    torch.manual_seed(seed)
    make, shape = NETS[name]
    model = make().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(), module.running_var.uniform_(0.5, 2)
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    with torch.no_grad():
        last.bias[0] += apart  # some nets are sure of their class
    return model, shape


def least(model, x, y, bits, flips, moves):
    """(B, K) least margins over all sets of at most `flips` flipped bits: words are changed, and the module is run."""
    exact = net_in_double(model)
    words = UniformRounding(bits, moves=moves).words(dict(exact.named_parameters()))
    base = {n: w.values() for n, w in words.items()}
    every = [(n, t, k) for n, w in words.items() for t in range(w.word.numel()) for k in range(bits)]
    found = torch.full((len(x), 3), torch.inf, dtype=torch.float64)
    for chosen in itertools.chain.from_iterable(itertools.combinations(every, r) for r in range(flips + 1)):
        weights = dict(base)
        for name, t, k in chosen:
            lowest = 2 ** (bits - 1)
            word = torch.round(weights[name] / words[name].step) if words[name].step else torch.zeros_like(weights[name])
            old = int(word.view(-1)[t]) % 2**bits
            new = old ^ (1 << k)
            word.view(-1)[t] = new - 2**bits if new >= lowest else new
            weights[name] = word * words[name].step
        found = torch.minimum(found, margins(torch.func.functional_call(exact, weights, (x.double(),)), y))
    return found


def net_in_double(model):
    return copy.deepcopy(model).double()


@pytest.mark.parametrize("moves", ["weights", "all"])
@pytest.mark.parametrize("name", NETS)
def test_single_flips_are_decided_exactly(name, moves):
    for seed, (bits, apart) in enumerate([(2, 0.0), (3, 8.0)]):
        model, shape = net(name, seed, apart)
        x = torch.rand(2, *shape)
        x[1, ..., 0] = 0.0
        y = ns.quantize(model, bits, moves=moves)(x).argmax(1)
        truth = least(model, x, y, bits, 1, moves)
        found = ns.certify_flips(model, x, y, bits=bits, moves=moves)
        assert bool((found.margins <= truth + 1e-9).all())
        assert found.verified.equal(worst_margin(truth, y) > 0)
        assert bool(found.verified.all()) or not apart or moves == "all" or name == "parts"


def test_no_pair_of_flips_beats_a_certificate():
    model, shape = net("dense", 3, apart=8.0)
    x = torch.rand(2, *shape)
    y = ns.quantize(model, 2)(x).argmax(1)
    truth = least(model, x, y, 2, 2, "weights")
    found = {flips: ns.certify_flips(model, x, y, bits=2, flips=flips) for flips in (1, 2, 3)}
    assert bool((found[2].margins <= truth + 1e-9).all())
    assert found[2].verified.all()
    assert all(bool((found[k + 1].margins <= found[k].margins + 1e-9).all()) for k in (1, 2))


def sampled(model, x, y, bits, flips, moves, count, eps_x=0.0):
    """(B, K) least margins over random sets of flips, mostly of high bits, and random inputs of the box."""
    exact, generator = net_in_double(model), torch.Generator().manual_seed(0)
    words = UniformRounding(bits, moves=moves).words(dict(exact.named_parameters()))
    found = torch.full((len(x), 3), torch.inf, dtype=torch.float64)
    for _ in range(count):
        weights = {n: w.values() for n, w in words.items()}
        patterns = {n: w.pattern() for n, w in words.items()}
        for _ in range(flips):
            n = list(words)[int(torch.randint(len(words), (), generator=generator))]
            t = int(torch.randint(patterns[n].numel(), (), generator=generator))
            k = bits - 1 - int(torch.randint(2, (), generator=generator))
            patterns[n] = patterns[n].clone()
            patterns[n].view(-1)[t] ^= 1 << k
            weights[n] = words[n].holding(patterns[n]).values()
        at = (x.double() + eps_x * (2 * torch.rand(x.shape, generator=generator, dtype=torch.float64) - 1).sign()).clamp(0, 1)
        found = torch.minimum(found, margins(torch.func.functional_call(exact, weights, (at,)), y))
    return found


@pytest.mark.parametrize("name, flips", [*((name, 1) for name in NETS), ("dense", 2), ("conv", 2), ("residual", 2)])
def test_flips_and_inputs_together(name, flips):
    model, shape = net(name, 5, apart=5.0)
    x = torch.rand(2, *shape)
    y = ns.quantize(model, 4)(x).argmax(1)
    found = ns.certify_flips(model, x, y, bits=4, flips=flips, eps_x=0.05)
    truth = sampled(model, x, y, 4, flips, "weights", 60, 0.05)
    assert bool((found.margins <= truth + 1e-9).all())
    still = ns.certify_flips(model, x, y, bits=4, flips=flips)
    assert bool((worst_margin(found.margins, y) <= worst_margin(still.margins, y) + 1e-6).all()) or flips > 1


def test_one_flip_by_hand():
    # 3 bits: step max |W| / 3.  W = [[3, 1], [-3, 0]] is stored as it is; logits at x = (1, 1) are 4 and -3, margin 7.
    # Row 0: 3 = 011 -> 111 = -1 (-4), 1 = 001 -> 101 = -3 (-4).  Row 1: -3 = 101 -> 001 = 1 (+4), 0 -> 010 = 2 (+2).
    # The word of 0 also becomes 100 = -4, which only lowers the other logit.  So the least margin is 3.
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    model[0].weight.data = torch.tensor([[3.0, 1.0], [-3.0, 0.0]])
    x, y = torch.ones(1, 2), torch.tensor([0])
    assert ns.certify_flips(model, x, y, bits=3).margins.tolist() == [[0.0, 3.0]]
    two = ns.certify_flips(model, x, y, bits=3, flips=2)  # any two of the changes by 4
    assert two.margins.tolist() == [[0.0, -1.0]] and not two.verified.any() and two.accuracy == 0.0
    # with both x in [0.5, 1]: 6 x_1 + x_2 - 4 x_2 is least, 0, at (0.5, 1); the bound takes 6 / 2 + 1 / 2 and 4 apart: -0.5
    assert -0.5 - 1e-9 <= ns.certify_flips(model, x, y, bits=3, eps_x=0.5).margins[0, 1].item() <= 0.0


def test_the_lowest_word_is_reached_and_zeros_stay():
    # 2 bits: words -1, 0, 1; 0 = 00 -> 10 = -2, which rounding never stores
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False))
    model[0].weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    model[2].weight.data = torch.zeros(2, 2)
    x, y = torch.tensor([[1.0, 0.5]]), torch.tensor([0])
    assert not ns.certify_flips(model, x, y, bits=2).verified.any()  # equal logits: a tie is not proven
    model[2].weight.data = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    # margin 1.  Flips of the last layer: 0 -> -2 at (0, 1) takes 2 * 0.5; (1, 0): 00 -> 01 = +1; 1 = 01 -> 11 = -1 takes 2
    assert ns.certify_flips(model, x, y, bits=2).margins[0, 1].item() == -1.0
    model[0].weight.data = torch.zeros(2, 2)  # no scale: nothing that is stored there counts
    model.append(nn.Linear(2, 2, bias=True))
    model[3].weight.data, model[3].bias.data = torch.zeros(2, 2), torch.tensor([1.0, 0.0])
    assert ns.certify_flips(model, x, y, bits=2).margins[0, 1].item() == 1.0


def test_radii_of_elements_and_domains():
    model, _ = net("dense", 1, apart=3.0)
    x = torch.rand(3, 4)
    y = ns.quantize(model)(x).argmax(1)
    mask = torch.tensor([0.0, 0.0, 0.0, 0.1])
    one = ns.certify_flips(model, x, y, eps_x=mask)
    assert bool((ns.certify_flips(model, x, y, eps_x=0.1).margins <= one.margins + 1e-9).all())
    assert bool((one.margins <= ns.certify_flips(model, x, y).margins + 1e-9).all())
    free = ns.certify_flips(model, 3 * x, model(3 * x).argmax(1), eps_x=0.1, domain=None)
    assert free.margins.shape == (3, 3) and free.scope == "sample"


def test_what_cannot_be_is_refused():
    model, _ = net("dense", 0)
    x, y = torch.rand(1, 4), torch.tensor([0])
    for settings, said in (
        ({"flips": 0}, "flips is 0"), ({"flips": 17}, "flips is 17"), ({"bits": 17}, "bits is 17"),
        ({"moves": "biases"}, "moves is 'biases'"), ({"eps_x": -1.0}, "eps_x is -1"), ({"domain": (0, 0.1)}, "outside"),
    ):  # fmt: skip
        with pytest.raises(ns.InvalidInput, match=said):
            ns.certify_flips(model, x + 0.1, y, **settings)

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.W = nn.Parameter(torch.eye(3))

        def forward(self, x):
            return F.linear(F.linear(x, self.W).relu(), self.W)

    with pytest.raises(ns.UnsupportedModel, match="'W' is used at"):
        ns.certify_flips(Tied(), torch.rand(1, 3), y)


@pytest.mark.slow
def test_every_flip_of_the_default_network():
    """20 images and all 150,016 flips of a trained network of the default shape on digits, layer by layer with matrices."""
    data = ns.load("digits")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), *(m for a, b in ((64, 128), (128, 64), (64, 32)) for m in (nn.Linear(a, b), nn.ReLU())))
    model.append(nn.Linear(32, 10))
    model = ns.train(model, data, epochs=15).model.eval().requires_grad_(False)
    x, y = data.test.x[:20], data.test.y[:20]
    found = ns.certify_flips(model, x, y)
    layers = [m for m in net_in_double(model) if isinstance(m, nn.Linear)]
    words = [UniformRounding(8).words({"w": m.weight})["w"] for m in layers]
    for example in range(len(x)):
        z, worst = x[example].double().flatten(), torch.inf
        for at, (m, w) in enumerate(zip(layers, words, strict=True)):
            y_here = w.values() @ z + m.bias
            for k in range(8):
                changed = w.holding(w.pattern() ^ (1 << k)).values() - w.values()
                moves = changed * z  # one for each weight
                for row in range(len(moves)):
                    h = y_here.expand(len(z), -1).clone()
                    h[:, row] += moves[row]
                    for later, v in zip(layers[at + 1 :], words[at + 1 :], strict=True):
                        h = F.linear(h.relu(), v.values(), later.bias)
                    worst = min(
                        worst, float(worst_margin(margins(h, y[example].expand(len(h))), y[example].expand(len(h))).min())
                    )
            z = y_here.relu()
        assert bool(found.verified[example]) == (worst > 0)
        assert float(worst_margin(found.margins[example : example + 1], y[example : example + 1])) <= worst + 1e-9
    assert 0 < found.accuracy < 1
