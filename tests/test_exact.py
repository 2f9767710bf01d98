"""The exact solver, against every pattern of signs solved as a linear program, and against searches, bounds and attacks."""

import importlib
import itertools
import math
import random

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import nn
from torch.func import functional_call

import oracle
from nonsingular.attacks.neuron_pgd import neuron_pgd
from nonsingular.bounds import exact as module
from nonsingular.bounds.linear import crown
from nonsingular.catalog import BOUNDS, UNSOUND, lookup
from nonsingular.certificates.certify import certify
from nonsingular.errors import InvalidInput, UnsupportedModel
from nonsingular.models.architectures import conv, mlp
from nonsingular.network.calling import logits_at
from nonsingular.network.margins import margins, worst_margin
from nonsingular.threat.ball import JointBall
from nonsingular.threat.interval import Interval
from nonsingular.threat.perturbation import Perturbation
from sampling import first

pytest.importorskip("highspy")
CLOSE = 3e-6  # what a bound gives away: the gap of 1e-6, and tolerances


# --- brute force: a linear program for each pattern of signs ----------------------------------------------------------------


class Pattern:
    """A network under one choice of the signs of everything whose sign matters, as a linear program.

    A signal is a matrix (n, 1 + SIZE): the constant, then the coefficients of the variables.
    """

    SIZE = 60

    def __init__(self, bits):
        self.bits, self.asked = bits, 0
        self.bounds, self.rows = [], []

    def new(self, lo, hi):
        z = np.zeros((len(lo), 1 + self.SIZE))
        for k in range(len(lo)):
            z[k, 1 + len(self.bounds)] = 1
            self.bounds.append((lo[k], hi[k]))
        return z

    def atmost(self, row):
        self.rows.append(row)  # row <= 0

    def sign(self, z, known):
        """+1 or -1 for each element: given, or the next bit, which becomes a row."""
        signs = []
        for k in range(len(z)):
            if known is not None:
                signs.append(known[k])
                continue
            s = 1 if self.asked >= len(self.bits) or self.bits[self.asked] else -1
            self.asked += 1
            self.atmost(-s * z[k])
            signs.append(s)
        return signs

    def product(self, z, lo, hi, b_lo, b_hi, known=None):
        """y = W z + b, each w in [lo, hi]: for z >= 0 from lo z to hi z, else from hi z to lo z."""
        signs = self.sign(z, known)
        y = self.new([None] * len(lo), [None] * len(lo))
        for r in range(len(lo)):
            least, most = np.zeros(1 + self.SIZE), np.zeros(1 + self.SIZE)
            least[0], most[0] = b_lo[r], b_hi[r]
            for k in range(len(z)):
                least += (lo[r, k] if signs[k] > 0 else hi[r, k]) * z[k]
                most += (hi[r, k] if signs[k] > 0 else lo[r, k]) * z[k]
            self.atmost(least - y[r])
            self.atmost(y[r] - most)
        return y

    def hinge(self, z, slope=0.0):
        """max(z, slope z), and the signs of the result."""
        signs = self.sign(z, None)
        out = np.stack([z[k] if signs[k] > 0 else slope * z[k] for k in range(len(z))])
        return out, [1] * len(z) if slope == 0 else signs

    def lowest(self, cost):
        size = len(self.bounds)
        A, b = np.array([r[1 : 1 + size] for r in self.rows]), np.array([-r[0] for r in self.rows])
        found = linprog(cost[1 : 1 + size], A, b, bounds=self.bounds, method="highs")
        return found.fun + cost[0] if found.status == 0 else math.inf


def brute_force(network, y):
    """(K,) worst margins of class y: the lowest over all patterns of signs.  network: Pattern -> logits."""
    count = Pattern(())
    K = len(network(count))
    best = np.full(K, np.inf)
    assert count.asked <= 9, "too many patterns"
    for bits in itertools.product((0, 1), repeat=count.asked):
        pattern = Pattern(bits)
        logits = network(pattern)
        for j in set(range(K)) - {y}:
            found = pattern.lowest(logits[y] - logits[j])
            if found == math.inf:  # no point has these signs
                break
            best[j] = min(best[j], found)
    best[y] = 0
    return torch.tensor(best)


class Skewed(JointBall):
    """Boxes that reach twice as far down as up, and a little differently in every element."""

    def weight_boxes(self, params, *, outward=False):
        wide = {n: r * torch.linspace(0.5, 1, params[n].numel(), dtype=params[n].dtype) for n, r in self.radii(params).items()}
        return {
            n: Interval(params[n].detach() - 2 * w.view_as(params[n]), params[n].detach() + w.view_as(params[n]))
            for n, w in wide.items()
        }


class Cases:
    """(model, example shape, network of a Pattern given boxes and the input's box)."""

    @staticmethod
    def chain(*dims, bias=True, slope=0.0):
        def build():
            layers = []
            for a, b in itertools.pairwise(dims):
                layers += [nn.Linear(a, b, bias=bias), nn.LeakyReLU(slope) if slope else nn.ReLU()]
            return nn.Sequential(*layers[:-1])

        def network(p, x, known, box):
            z = x
            for k in range(len(dims) - 1):
                if k:
                    z, known = p.hinge(z, slope)
                z = p.product(z, *box(f"{2 * k}.weight"), *(box(f"{2 * k}.bias") if bias else [np.zeros(dims[k + 1])] * 2), known)
            return z

        return build, (dims[0],), network

    @staticmethod
    def residual():
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b, self.c = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 3)

            def forward(self, x):
                z = torch.relu(self.a(x))
                return self.c(torch.relu(self.b(z) - 0.5 * z) + x)

        def network(p, x, known, box):
            z, signs = p.hinge(p.product(x, *box("a.weight"), *box("a.bias"), known))
            y = p.product(z, *box("b.weight"), *box("b.bias"), signs) - 0.5 * z
            return p.product(p.hinge(y)[0] + x, *box("c.weight"), *box("c.bias"), None)

        return Net, (2,), network

    @staticmethod
    def batch_norm():
        def build():
            norm = nn.BatchNorm1d(2)
            nn.init.normal_(norm.running_mean), nn.init.uniform_(norm.running_var, 0.5, 2), nn.init.normal_(norm.bias)
            return nn.Sequential(nn.Linear(2, 2), norm, nn.ReLU(), nn.Linear(2, 3))

        def network(p, x, known, box, model):
            y = p.product(x, *box("0.weight"), *box("0.bias"), known)
            mean, var = model[1].running_mean.numpy(), model[1].running_var.numpy()
            y[:, 0] -= mean
            y = y / np.sqrt(var + model[1].eps)[:, None]
            y = p.product(y, *(np.diag(t) for t in box("1.weight")), *box("1.bias"), None)
            z, signs = p.hinge(y)
            return p.product(z, *box("3.weight"), *box("3.bias"), signs)

        return build, (2,), network

    @staticmethod
    def convolution(moving):
        """One 2x2 kernel over a 3x3 image: two channels of four positions if it stays, the whole 2x2 image in one if it moves."""
        size = 2 if moving else 3

        def build():
            first = nn.Conv2d(1, 2, 2) if moving else nn.Conv2d(1, 1, 2)
            return nn.Sequential(first, nn.ReLU(), nn.Flatten(), nn.Linear(2 if moving else 4, 3, bias=False))

        def network(p, x, known, box, model):
            if moving:
                y = p.product(x, *(t.reshape(2, 4) for t in box("0.weight")), *box("0.bias"), known)
            else:
                kernel = model[0].weight.detach().numpy()[0, 0]
                at = [(r, c) for r in (0, 1) for c in (0, 1)]
                y = np.stack([sum(kernel[i, k] * x[3 * (r + i) + c + k] for i, k in at) for r, c in at])
                y[:, 0] += model[0].bias.item()
            z, signs = p.hinge(y)
            out = np.zeros(3)
            return p.product(z, *box("3.weight"), out, out, signs)

        return build, (1, size, size), network


NETWORKS = {
    "one hidden layer": (Cases.chain(2, 4, 3), {}),
    "two hidden layers": (Cases.chain(2, 3, 3, 3), {}),
    "three hidden layers": (Cases.chain(2, 2, 2, 2, 3, bias=False), {}),
    "no hidden layer": (Cases.chain(3, 3), {"signed": True}),
    "signed inputs": (Cases.chain(2, 3, 2, 3), {"signed": True}),
    "skewed boxes": (Cases.chain(2, 3, 2, 3), {"signed": True, "ball": Skewed}),
    "biases alone": (Cases.chain(2, 3, 3, 2), {"only": ".bias"}),
    "leaky": (Cases.chain(2, 3, 3, 3, slope=0.2), {}),
    "residual": (Cases.residual(), {"signed": True}),
    "batch norm": (Cases.batch_norm(), {}),
    "fixed convolution": (Cases.convolution(False), {"only": "3.weight"}),
    "convolution of one position": (Cases.convolution(True), {"signed": True}),
}


@pytest.mark.parametrize("seed", first(1, range(2)))
@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_the_lowest_over_all_patterns_of_signs(name, seed):
    (build, shape, network), settings = NETWORKS[name]
    torch.manual_seed(seed)
    model = build().double().eval()
    signed = settings.get("signed", False)
    x = torch.randn(1, *shape).double() * 0.2 if signed else torch.rand(1, *shape).double()
    only = settings.get("only")
    radii = {n: 0.1 + 0.02 * k for k, (n, _) in enumerate(model.named_parameters()) if only is None or n.endswith(only)}
    ball = settings.get("ball", JointBall)(0.3, radii, None if signed else (0.0, 1.0))
    y = torch.tensor([seed])
    boxes = {n: Interval(p.detach(), p.detach()) for n, p in model.named_parameters()} | ball.weight_boxes(
        dict(model.named_parameters())
    )
    inputs = ball.input_box(x)

    def box(name):
        return boxes[name].lo.numpy(), boxes[name].hi.numpy()

    def at(pattern):
        z = pattern.new(*(t.flatten().tolist() for t in (inputs.lo, inputs.hi)))
        extra = {"model": model} if "model" in network.__code__.co_varnames[: network.__code__.co_argcount] else {}
        return network(pattern, z, None if signed else [1] * len(z), box, **extra)

    truth = brute_force(at, seed)
    found = module.solve(model, x, y, ball)
    assert found.status == (("optimal",) * len(truth),)
    torch.testing.assert_close(found.upper[0], truth, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.lower[0], truth, rtol=0, atol=CLOSE)
    assert (found.lower[0] <= truth + 1e-9).all() and (found.upper[0] >= truth - 1e-9).all()
    replays(model, x, y, ball, found)


def replays(model, x, y, ball, found, atol=1e-9):
    """Every point lies in the ball, and the model, run there, has the margin that is said."""
    for j, point in enumerate(found.points):
        assert point.check(model, x, ball) is point and point.scope == "sample"
        reached = margins(logits_at(model, point), y)[:, j]
        torch.testing.assert_close(reached.double(), found.upper[:, j], rtol=0, atol=atol)
    assert (found.lower <= found.upper).all()


# --- numbers, limits ----------------------------------------------------------------------------------------------------------


def test_the_counterexample_to_the_printed_theorem_falls_by_exactly_what_is_attained():
    """W1 = [[1],[1]], W2 = [[1,-1]], W3 = [[1],[1]], x = 1, all radii 0.1: z = 1.1 * 1.1 - 0.9 * 0.9 = 0.4, margin -0.2 * 0.4."""
    model = nn.Sequential(*(nn.Linear(a, b, bias=False) for a, b in ((1, 2), (2, 1), (1, 2))))
    model = nn.Sequential(model[0], nn.ReLU(), model[1], nn.ReLU(), model[2]).double().eval()
    with torch.no_grad():
        for layer, W in ((0, [[1.0], [1.0]]), (2, [[1.0, -1.0]]), (4, [[1.0], [1.0]])):
            model[layer].weight.copy_(torch.tensor(W))
    x, y = torch.ones(1, 1).double(), torch.tensor([0])
    found = module.solve(model, x, y, JointBall(0.0, 0.1))
    assert found.upper[0, 1].item() == pytest.approx(-0.080, abs=1e-12)
    assert found.lower[0, 1].item() == pytest.approx(-0.080, abs=CLOSE)
    radii = {"0.weight": 0.5, "4.weight": 0.1}  # ends 1.5 - 0.5 = 1, and 0.2 * 1
    assert module.solve(model, x, y, JointBall(0.0, radii)).upper[0, 1].item() == pytest.approx(-0.2, abs=1e-12)


def test_at_radius_zero_it_is_the_margin_and_the_perturbation_is_none():
    model, x, y = mlp((3,), 4, hidden=(5, 4), bias=True).double().eval(), torch.rand(3, 3).double(), torch.tensor([0, 1, 3])
    found = module.solve(model, x, y, JointBall(0, 0))
    expected = margins(model(x), y)
    torch.testing.assert_close(found.lower, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.upper, expected, rtol=0, atol=1e-12)
    assert all(torch.equal(p.x, x) and not p.weights for p in found.points)


def test_float32_models_have_points_in_float32():
    torch.manual_seed(0)
    model, x, y = mlp((3,), 3, hidden=(5, 4), bias=True).eval(), torch.rand(2, 3), torch.tensor([0, 2])
    ball = JointBall(0.1, 0.05, moves="all")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = module.solve(model, x, y, ball)
    assert found.points[0].x.dtype == torch.float32 and found.points[1].weights["1.weight"].dtype == torch.float32
    replays(model, x, y, ball, found, atol=1e-6)
    double = module.solve(mlp((3,), 3, hidden=(5, 4), bias=True).double().eval().requires_grad_(False), x.double(), y, ball)
    assert double.lower.shape == found.lower.shape == (2, 3)
    assert (found.upper - found.lower).max() < 1e-5
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


# --- against everything else that the library has -----------------------------------------------------------------------------


def random_net(r):
    """Dense, with biases or not, LeakyReLU, BatchNorm and residual blocks: (model, width of the input)."""
    widths = [r.randint(1, 4), *(r.randint(2, 5) for _ in range(r.randint(0, 3))), 3]
    layers = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b, bias=r.random() < 0.6)]
        if r.random() < 0.2:
            layers.append(nn.BatchNorm1d(b))
            nn.init.normal_(layers[-1].running_mean), nn.init.uniform_(layers[-1].running_var, 0.5, 2)
        layers.append(nn.LeakyReLU(0.1) if r.random() < 0.2 else nn.ReLU())
        if r.random() < 0.2:
            layers.append(Residual(b))
    while isinstance(layers[-1], nn.ReLU | nn.LeakyReLU | Residual):
        layers.pop()
    return nn.Sequential(*layers).double().eval(), widths[0]


class Residual(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.inner = nn.Linear(d, d)

    def forward(self, x):
        return x + torch.relu(self.inner(x))


def random_case(seed):
    r = random.Random(seed)
    torch.manual_seed(seed)
    model, d = random_net(r)
    signed = r.random() < 0.4
    x = torch.randn(1, d).double() if signed else torch.rand(1, d).double()
    ball = JointBall(
        r.choice([0.0, 0.05, 0.3]), r.choice([0.01, 0.05, 0.2]), None if signed else (0.0, 1.0), r.choice(["weights", "all"]),
        relative=r.random() < 0.2,
    )  # fmt: skip
    return model, x, torch.tensor([r.randrange(3)]), ball


def samples(model, x, y, ball, draws=300):
    """(K,) lowest margins at corners and at inner points of the ball."""
    generator = torch.Generator().manual_seed(0)
    params = dict(model.named_parameters())
    box, boxes = ball.input_box(x), ball.weight_boxes(params)

    def draw(b):
        u = torch.rand(draws, *b.lo.shape, generator=generator, dtype=torch.float64)
        u[: draws // 2].round_()
        return torch.lerp(b.lo.expand_as(u), b.hi.expand_as(u), u)

    moved = {n: draw(b) for n, b in boxes.items()}
    with torch.no_grad():
        logits = torch.func.vmap(lambda w, z: functional_call(model, w, (z,)))(moved, draw(box))[:, 0]
    return (logits[:, [y]] - logits).amin(0)


@pytest.mark.parametrize("block", [*range(2), *(pytest.param(k, marks=pytest.mark.slow) for k in range(2, 4))])
def test_no_bound_is_above_it_and_no_point_is_below_it(block):
    """50 random networks, 100 with -m slow; every sound bound of the catalog that has rules for them."""
    for seed in range(25 * block, 25 * (block + 1)):
        model, x, y, ball = random_case(seed)
        found = module.solve(model, x, y, ball)
        assert all(s == "optimal" for s in found.status[0]), seed
        assert (found.upper - found.lower).max() < CLOSE, (seed, found)
        replays(model, x, y, ball, found)
        for name in sorted(set(BOUNDS) - UNSOUND - {"exact", "best"}):
            try:
                settings = {"steps": 3} if name == "alpha-crown" else {}
                bound = lookup(BOUNDS, name, "bound")(model, x, y, ball, **settings)
            except UnsupportedModel:
                assert name == "theorem1"
                continue
            assert (bound <= found.upper + 1e-9).all(), (seed, name, bound, found)
        assert (found.lower >= crown(model, x, y, ball) - 1e-12).all(), seed
        assert (found.lower[0] <= samples(model, x, int(y), ball) + 1e-12).all(), seed


@pytest.mark.parametrize("seed", first(2, range(8)))
def test_no_attack_and_no_search_is_below_it(seed):
    torch.manual_seed(seed)
    dims, bias = (2, 4, 3, 3) if seed % 2 else (3, 4, 3), seed % 4 < 2
    model = mlp(dims[:1], dims[-1], hidden=dims[1:-1], bias=bias).double().eval()
    x, y = torch.rand(1, dims[0]).double(), torch.tensor([seed % 3])
    ball = JointBall(0.1, 0.1, moves="all")
    found = module.solve(model, x, y, ball)
    attacked = worst_margin(margins(logits_at(model, neuron_pgd(model, x, y, ball, restarts=8)), y), y)
    assert (worst_margin(found.lower, y) <= attacked).all()
    assert (worst_margin(found.upper, y) <= attacked + 1e-6).all()
    layers = [m for m in model if isinstance(m, nn.Linear)]
    weights, biases = [m.weight.detach() for m in layers], [m.bias.detach() if bias else None for m in layers]
    radii = [0.1] * len(layers)
    search = oracle.Ball(x[0], weights, biases, 0.1, radii, radii, (0.0, 1.0))
    generator = torch.Generator().manual_seed(seed)
    assert (found.lower[0] <= search.worst_margins(int(y), generator=generator) + 1e-12).all()


# --- time, verdicts, starting points ------------------------------------------------------------------------------------------


def hard():
    """Too many open neurons to be searched in a second."""
    torch.manual_seed(0)
    model = mlp((12,), 3, hidden=(40, 40, 40), bias=True).double().eval()
    x = torch.rand(1, 12).double()
    return model, x, model(x).argmax(1), JointBall(0.3, 0.02, moves="all")


def test_a_time_limit_is_kept_and_its_bound_is_sound():
    import time

    model, x, y, ball = hard()
    began = time.monotonic()
    found = module.solve(model, x, y, ball, time_limit=0.7)
    assert time.monotonic() - began < 10
    others = [j for j in range(3) if j != int(y)]
    assert {found.status[0][j] for j in others} == {"time limit"}
    assert (found.lower >= crown(model, x, y, ball)).all()
    replays(model, x, y, ball, found)
    attacked = margins(logits_at(model, neuron_pgd(model, x, y, ball)), y)
    assert (found.lower <= attacked).all()


def test_a_wide_gap_gives_a_lower_bound_that_is_lower():
    """A search that ends leaves the gap unsearched, so it is subtracted."""
    for seed in range(300, 315):
        model, x, y, ball = random_case(seed)
        wide, narrow = module.solve(model, x, y, ball, gap=0.05), module.solve(model, x, y, ball)
        assert (wide.lower <= narrow.upper + 1e-9).all() and (narrow.lower <= wide.upper + 1e-9).all(), seed
        assert (wide.upper - wide.lower).max() <= 0.1 + CLOSE, seed


def test_a_start_is_never_forgotten():
    model, x, y, ball = hard()
    start = neuron_pgd(model, x, y, ball)
    found = module.solve(model, x, y, ball, time_limit=0.3, start=start)
    assert (found.upper <= margins(logits_at(model, start), y) + 1e-9).all()
    replays(model, x, y, ball, found)
    with pytest.raises(AssertionError, match="left the input ball"):
        module.solve(model, x, y, ball, start=Perturbation(x + 1, {}, "sample"))


def test_a_known_point_does_not_lead_the_solver_astray():
    """HiGHS 1.15.1, given a point with -0.4305 here, calls it optimal (presolve on): -0.4389 is attained."""
    torch.manual_seed(1)
    model = mlp((2,), 3, hidden=(3, 2), bias=True).double().eval()
    x = torch.rand(3, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)[:1]
    y, ball = torch.tensor([0]), JointBall(0.05, 0.05, moves="all")
    found = module.solve(model, x, y, ball, start=Perturbation(x, {}, "sample"))
    assert found.upper[0, 2].item() == pytest.approx(-0.4388613164, abs=1e-6)
    assert found.lower[0, 2].item() == pytest.approx(-0.4388613164, abs=CLOSE)


@pytest.mark.parametrize("seeds", [range(200, 206), range(206, 230)], ids=["few", "many"])
def test_decide_finds_the_signs_that_solve_finds(seeds):
    verified = falsified = 0
    for seed in seeds:
        model, x, _, ball = random_case(seed)
        y = model(x).argmax(1)
        whole, short = module.solve(model, x, y, ball), module.decide(model, x, y, ball)
        truth = worst_margin(whole.upper, y)
        assert (worst_margin(short.lower, y) > 0) == (truth > CLOSE)
        assert (worst_margin(short.upper, y) < 0) == (truth < -CLOSE)
        assert (short.lower <= whole.upper + 1e-9).all() and (short.upper >= whole.lower).all()
        replays(model, x, y, ball, short)
        verified, falsified = verified + int(truth > 0), falsified + int(truth < 0)
    assert min(verified, falsified) >= len(seeds) // 6


def test_certify_takes_it_by_name():
    torch.manual_seed(1)
    model, x = mlp((2,), 3, hidden=(4,), bias=True).eval(), torch.rand(4, 2)
    y, ball = model(x).argmax(1), JointBall(0.01, 0.01)
    with torch.no_grad():
        exactly, best = certify(model, x, y, ball, bound="exact"), certify(model, x, y, ball)
    assert (exactly.verified >= best.verified).all()


# --- what it refuses ----------------------------------------------------------------------------------------------------------


def solve(model, shape, ball):
    return module.solve(model.double().eval(), torch.rand(1, *shape).double(), torch.tensor([0]), ball)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        return self.b(torch.relu(self.a(torch.relu(self.a(x)))))


def test_it_refuses_what_would_be_a_relaxation():
    ball = JointBall(0.1, 0.1, None)
    with pytest.raises(UnsupportedModel, match="'sigmoid': its activation is smooth"):
        solve(nn.Sequential(nn.Linear(3, 3), nn.Sigmoid(), nn.Linear(3, 3)), (3,), ball)
    with pytest.raises(UnsupportedModel, match="'sigmoid': its activation is smooth"):
        solve(nn.Sequential(nn.Sigmoid(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4, 3)), (1, 4, 4), ball)
    with pytest.raises(UnsupportedModel, match=r"'a\.weight': it moves at node 'linear' and at node 'linear_1'"):
        solve(Tied(), (3,), ball)
    with pytest.raises(UnsupportedModel, match=r"'0\.weight': node '.*' uses one moving element at several positions"):
        solve(conv((1, 4, 4), 3, hidden=(2,)), (1, 4, 4), ball)
    with pytest.raises(UnsupportedModel, match=r"'0\.bias': node"):
        solve(nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(18, 3)), (1, 4, 4), JointBall(0.1, {"0.bias": 0.1}))


def test_it_refuses_settings_that_mean_nothing_and_names_the_extra(monkeypatch):
    model, x, y = mlp((2,), 2, hidden=(2,)).double().eval(), torch.rand(1, 2).double(), torch.tensor([0])
    for wrong in ({"gap": 0.0}, {"gap": math.nan}, {"time_limit": -1.0}):
        with pytest.raises(InvalidInput, match=next(iter(wrong))):
            module.solve(model, x, y, JointBall(0.1, 0.1), **wrong)

    def absent(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(InvalidInput, match=r"pip install nonsingular\[exact\]"):
        module.exact(model, x, y, JointBall(0.1, 0.1))


def test_an_empty_batch_has_empty_answers():
    model, x, y = mlp((2,), 3, hidden=(2,)).double().eval(), torch.rand(0, 2).double(), torch.zeros(0, dtype=torch.long)
    found = module.solve(model, x, y, JointBall(0.1, 0.1))
    assert found.lower.shape == found.upper.shape == (0, 3) and found.status == ()
