"""Maxima as tournaments of ReLUs, and functions of one window of a convolution: each held against the long way round."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nonsingular.bounds.alpha import alpha_crown
from nonsingular.bounds.exact import exact
from nonsingular.bounds.interval import Boxed, interval, region
from nonsingular.bounds.linear import crown, hidden_bounds, lowest_over, pull_back
from nonsingular.bounds.maxima import hinges_first
from nonsingular.network.graph import trace_graph
from nonsingular.network.network import network_of
from nonsingular.network.nodes import Activation
from nonsingular.network.precision import Floats
from nonsingular.threat.ball import JointBall
from sampling import first

POOLS = {
    "2 x 2": lambda x: F.max_pool2d(x, 2),
    "3 x 3, overlapping": lambda x: F.max_pool2d(x, 3, 2),
    "padded": lambda x: F.max_pool2d(x, 3, 2, padding=1),
    "dilated": lambda x: F.max_pool2d(x, 2, 1, dilation=2),
    "ceiling": lambda x: F.max_pool2d(x, 2, 2, ceil_mode=True),
    "2 x 3": lambda x: F.max_pool2d(x, (2, 3), (1, 2)),
    "one": lambda x: F.max_pool2d(x, 1),
    "adaptive": lambda x: F.adaptive_max_pool2d(x, (3, 2)),
    "all places": lambda x: x.amax((2, 3), keepdim=True),
    "channels": lambda x: x.amax(1, keepdim=True),
    "least": lambda x: x.amin((2, 3), keepdim=True),
    "rows": lambda x: F.max_pool1d(x.flatten(1, 2), 3, 2, padding=1)[:, :, :, None],
    "volumes": lambda x: F.max_pool3d(x[:, None], 2)[:, 0],
}


class Pooled(nn.Module):
    def __init__(self, pool, activation=None):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.pool, self.activation = nn.Conv2d(1, 2, 3, padding=1), pool, activation or (lambda x: x)
        self.last = nn.Linear(pool(torch.zeros(1, 2, 7, 6)).numel(), 3)

    def forward(self, x):
        return self.last(self.pool(self.activation(self.first(x))).flatten(1))


def examples(n=3):
    return torch.rand(n, 1, 7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), torch.arange(n) % 3


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("activation", first(1, [torch.relu, torch.sigmoid, None]), ids=["relu", "sigmoid", "none"])
def test_the_graph_is_the_module_and_no_point_lies_below_its_bounds(name, activation):
    model, (x, y) = Pooled(POOLS[name], activation).double().eval(), examples()
    graph = trace_graph(model, x.shape[1:])
    torch.testing.assert_close(graph(x), model(x))
    ball, generator = JointBall(0.1, 0.02), torch.Generator().manual_seed(2)
    low = {bound.__name__: bound(model, x, y, ball) for bound in (interval, crown, alpha_crown)}
    assert (low["crown"] >= low["interval"] - 1e-9).any()
    params, boxes, box = dict(model.named_parameters()), ball.weight_boxes(dict(model.named_parameters())), ball.input_box(x)
    for _ in range(40):
        moved = {n: torch.where(torch.rand(b.lo.shape, generator=generator) < 0.5, b.lo, b.hi) for n, b in boxes.items()}
        at = torch.where(torch.rand(x.shape, generator=generator) < 0.5, box.lo, box.hi)
        logits = torch.func.functional_call(model, {**params, **moved}, (at,))
        reached = logits.gather(1, y[:, None]) - logits
        for found in low.values():
            assert (found <= reached + 1e-9).all()


def test_a_hinge_comes_after_the_maximum():
    """Where it does so as computed, too; a smooth activation that rises need not rise as computed."""
    for activation, after in ((torch.relu, True), (F.leaky_relu, True), (torch.sigmoid, False), (F.gelu, False)):
        graph = trace_graph(Pooled(POOLS["2 x 2"], activation).double().eval(), (1, 7, 6))
        shapes = [n.shape for n in graph.nodes if isinstance(n, Activation)]
        assert ((2, 3, 3) in shapes) == after
        assert ((2, 7, 6) in shapes) == (not after)


class ByReLU(nn.Module):
    """2 x 2 pooling written out as the rounds of pairs that the graph has."""

    def __init__(self, like):
        super().__init__()
        self.first, self.last = like.first, like.last

    def forward(self, x):
        z = self.first(x)
        rows = [z[:, :, i:6:2, j::2] for i in (0, 1) for j in (0, 1)]
        a, b = rows[0] + torch.relu(rows[2] - rows[0]), rows[1] + torch.relu(rows[3] - rows[1])
        return self.last(torch.relu(a + torch.relu(b - a)).flatten(1))


def test_it_is_the_same_as_the_maximum_written_with_relus():
    pooled, (x, y) = Pooled(POOLS["2 x 2"], torch.relu).double().eval(), examples()
    written = ByReLU(pooled).double().eval()
    torch.testing.assert_close(written(x), pooled(x))
    for radii in ((0.05, 0.0), (0.02, 0.01)):
        ours, theirs = (crown(m, x, y, JointBall(*radii)) for m in (pooled, written))
        assert (ours >= theirs - 1e-9).all()


class Twice(nn.Module):
    """Two maxima behind hinges, or the same with ReLUs alone."""

    def __init__(self, seed, hinge=torch.relu, written=False):
        super().__init__()
        torch.manual_seed(seed)
        self.a, self.b, self.last = nn.Conv2d(1, 3, 2), nn.Conv2d(3, 4, 2, padding=1), nn.Linear(16, 3)
        self.hinge, self.pool = hinge, self.written if written else lambda z: F.max_pool2d(z, 2)

    @staticmethod
    def written(z):
        a, b, c, d = (z[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1))
        first, second = a + torch.relu(c - a), b + torch.relu(d - b)
        return first + torch.relu(second - first)

    def forward(self, x):
        return self.last(self.pool(self.hinge(self.b(self.pool(self.hinge(self.a(x)))))).flatten(1))


@pytest.mark.parametrize("hinge", [torch.relu, F.leaky_relu, lambda z: F.leaky_relu(z, 0.4)], ids=["relu", "leaky", "0.4"])
@pytest.mark.parametrize("deployed", [False, True])
def test_with_hinges_first_it_is_the_same_network_within_its_boxes(hinge, deployed):
    """Every value of every node lies in its box, every margin above both bounds, also above those that are optimised."""
    generator = torch.Generator().manual_seed(5)
    model, y = Twice(1, hinge).double().eval(), torch.tensor([1, 2])
    x = torch.rand(2, 1, 7, 7, dtype=torch.float64, generator=generator)
    ball = JointBall(0.1, 0.05, moves="all")
    network = network_of(model)
    where = region(network, x, y, ball)
    where = replace(where, floats=Floats()) if deployed else where
    with torch.no_grad():
        inside = Boxed(where, hidden_bounds(where))
        turned = hinges_first(inside)
        assert turned is not None and len(turned.where.graph.nodes) == len(where.graph.nodes)
        shapes = [n.shape for n in turned.where.graph.nodes if isinstance(n, Activation)]
        assert (3, 6, 6) in shapes and (4, 4, 4) in shapes and (3, 3, 3) not in shapes
        last, A = len(where.graph.nodes) - 1, torch.eye(3, dtype=torch.float64)[:, None]
        low = [lowest_over(where.x, *pull_back(way, last, A)) for way in (inside, turned)]
    assert not torch.equal(*low)
    raised = alpha_crown(model, x, y, ball, steps=6, rate=1.0)
    assert (raised >= crown(model, x, y, ball) - 1e-12).all()
    box, boxes = ball.input_box(x), where.boxes
    for _ in range(60):
        moved = {
            n: torch.lerp(b.lo, b.hi, torch.rand(b.lo.shape, generator=generator).double().round()) for n, b in boxes.items()
        }
        at = torch.lerp(box.lo, box.hi, torch.rand(x.shape, generator=generator).double().round())
        graph = replace(turned.where.graph, params={**where.graph.params, **moved})
        values = graph.values(at)
        torch.testing.assert_close(values[-1], torch.func.functional_call(model, moved, (at,)))
        for t, z in zip(values, turned.boxes, strict=True):
            assert (t >= z.lo - 1e-9).all() and (t <= z.hi + 1e-9).all()
        for bound in low:
            assert (bound <= values[-1].T + 1e-9).all()
        assert (raised <= values[-1].gather(1, y[:, None]) - values[-1] + 1e-9).all()


def test_it_is_no_looser_than_the_same_maxima_written_with_relus():
    """Not a theorem: a tighter box may turn a default slope the other way, and lose a little."""
    gaps = []
    for seed in range(4):
        model, written = (Twice(seed, written=w).double().eval() for w in (False, True))
        x = torch.rand(3, 1, 7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        y = model(x).argmax(1)
        torch.testing.assert_close(written(x), model(x))
        for radii in ((0.02, 0.0), (0.1, 0.0), (0.05, 0.01)):
            ours, theirs = (crown(m, x, y, JointBall(*radii)) for m in (model, written))
            gaps.append((ours - theirs)[~F.one_hot(y, 3).bool()])
    gaps = torch.cat(gaps)
    assert (gaps < -1e-9).sum() <= 0.05 * len(gaps) and gaps.min() > -0.02
    assert gaps.mean() > 1e-3


def test_a_maximum_is_solved_exactly():
    """One pixel moves a window of two: max(z, 1 - z) over [0.2, 0.9] is least at 0.5, by hand."""
    model = (
        nn.Sequential(nn.Linear(1, 2), nn.Unflatten(1, (1, 2)), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(1, 2)).double().eval()
    )
    with torch.no_grad():
        for p, values in zip(model.parameters(), ([[1.0], [-1.0]], [0.0, 1.0], [[1.0], [0.0]], [0.0, 0.25]), strict=True):
            p.copy_(torch.tensor(values))
    x, y = torch.tensor([[0.55]]).double(), torch.tensor([0])
    found = exact(model, x, y, JointBall(0.35, 0.0))
    assert found[0, 1].item() == pytest.approx(0.5 - 0.25, abs=1e-5)


# --- windows of convolutions ----------------------------------------------------------------------------------------------


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)
        self.short = nn.Conv2d(2, 4, 1, stride=2)

    def forward(self, x):
        return torch.relu(self.b(torch.relu(self.norm(self.a(x)))) + self.short(x))


def networks():
    def of(*layers, width):
        return nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), *layers, nn.Flatten(), nn.Linear(width, 3))

    yield "plain", lambda: of(nn.Conv2d(2, 3, 3), nn.ReLU(), width=3 * 6 * 7)
    yield (
        "strides",
        lambda: of(nn.Conv2d(2, 3, 3, stride=2, padding=2), nn.LeakyReLU(0.1), nn.Conv2d(3, 2, 2), nn.ReLU(), width=2 * 4 * 5),
    )
    yield "groups and dilation", lambda: of(nn.Conv2d(2, 4, 3, dilation=2, groups=2), nn.ReLU(), width=4 * 4 * 5)
    yield "residual", lambda: of(Residual(), width=4 * 4 * 5)
    yield (
        "max pooling",
        lambda: of(nn.MaxPool2d(2), nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 1, 1), width=3 * 4 * 4),
    )
    yield "average pooling", lambda: of(nn.AvgPool2d(2), nn.Conv2d(2, 3, 2), nn.Tanh(), width=3 * 3 * 3)
    yield (
        "padding wider than the kernel",
        lambda: of(nn.Conv2d(2, 2, 1, padding=2), nn.Softplus(), nn.Conv2d(2, 2, 2), nn.ReLU(), width=2 * 11 * 12),
    )


@pytest.mark.parametrize("name, make", list(networks()), ids=[name for name, _ in networks()])
@pytest.mark.parametrize("radii", [(0.03, 0.0), (0.02, 0.01), (0.0, 0.02)])
def test_windows_give_the_bounds_of_whole_functions(name, make, radii):
    """alpha-CROWN without a step is CROWN, and its functions are never cut."""
    torch.manual_seed(3)
    model = make().double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(), module.running_var.uniform_(0.5, 2)
    x, y = torch.rand(2, 1, 8, 9, dtype=torch.float64), torch.tensor([0, 2])
    for moves in ("weights", "all"):
        ball = JointBall(*radii, moves=moves)
        torch.testing.assert_close(crown(model, x, y, ball), alpha_crown(model, x, y, ball, steps=0), atol=1e-9, rtol=1e-9)
