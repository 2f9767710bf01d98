"""The unknowns of networks whose operations are known stand for what the module computes with the weights written out."""

import itertools
import sys

import pytest
import torch
from torch import nn

from nonsingular.attacks.apgd import apgd
from nonsingular.attacks.search import descent
from nonsingular.attacks.search.apart import product
from nonsingular.attacks.search.graph_unknowns import graph_space
from nonsingular.attacks.search.weight_unknowns import tensor_space
from nonsingular.errors import UnsupportedModel
from nonsingular.network import memory
from nonsingular.network.calling import logits_at
from nonsingular.network.graph import trace_graph
from nonsingular.network.margins import margins, worst_margin
from nonsingular.network.nodes import Product
from nonsingular.threat.ball import JointBall
from nonsingular.threat.perturbation import Perturbation


class Tokens(nn.Module):
    """Linear layers at several positions, LayerNorm, GELU, and two dense layers at the end."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm, self.mlp = nn.Linear(6, 4), nn.LayerNorm(4), nn.Linear(4, 5)
        self.dense, self.head = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x):
        z = nn.functional.gelu(self.mlp(self.norm(self.embed(x[:, 0]))))
        return self.head(torch.relu(self.dense(z.mean(1))))


def network(kind, seed=0):
    torch.manual_seed(seed)
    layers = {
        "conv": lambda: [
            nn.Conv2d(1, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Flatten(),
            nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 3),
        ],
        "groups": lambda: [
            nn.Conv2d(1, 4, 3, 1, 1, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 8, 3, 1, 2, 2, groups=4), nn.ReLU(),
            nn.AvgPool2d(3), nn.Flatten(), nn.Linear(32, 3),
        ],
        "wide": lambda: [nn.Conv2d(1, 6, 2), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(54, 2)],
        "named padding": lambda: [
            nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Conv2d(2, 4, 3, 1, "same"), nn.ReLU(), nn.Flatten(), nn.Linear(100, 3),
        ],
        "norms": lambda: [
            nn.Conv2d(1, 3, 3, 2, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3, affine=False), nn.ReLU(), nn.Conv2d(3, 4, 2, groups=1),
            nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3),
        ],
        "tokens": lambda: [Tokens()],
    }[kind]()  # fmt: skip
    model = nn.Sequential(*layers).double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 2)
            if module.affine:
                module.weight.data.uniform_(-1, 1)
                module.bias.data.normal_(std=0.2)
    return model.requires_grad_(False)


KINDS = ["conv", "groups", "wide", "named padding", "norms", "tokens"]


def examples(kind, n=5, seed=0):
    model, x = network(kind, seed), torch.rand(n, 1, 6, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return model, x, model(x).argmax(1)


def anywhere(space, runs, seed=0):
    like = space.origin
    return 2 * torch.rand(runs, *like.shape, generator=torch.Generator().manual_seed(seed), dtype=like.dtype) - 1


BALLS = {
    "weights": JointBall(0.0, 0.05),
    "all": JointBall(0.1, 0.05, moves="all"),
    "relative": JointBall(0.1, 0.1, None, relative=True),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ball", BALLS)
def test_the_margins_are_those_of_the_tensors(kind, ball):
    """In the fine space, in the coarse one, and of coarse points in the fine one."""
    (model, x, y), ball = examples(kind), BALLS[ball]
    space = graph_space(model, x, y, ball)
    few = space.coarse()
    assert few.origin.shape[1] < space.origin.shape[1]
    for s in (space, few):
        v = anywhere(s, 3)
        for run, found in zip(v, s.margins(v), strict=True):
            point = s.realise(run).check(model, x, ball)
            want = margins(logits_at(model, point), y).scatter(1, y[:, None], torch.inf)
            torch.testing.assert_close(found, want, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(space.margins(few.refined(v)), few.margins(v), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_kernels_at_rest_beside_moving_ones(kind):
    """Each tensor of two or more dimensions moves alone."""
    model, x, y = examples(kind)
    for name in [n for n, p in model.named_parameters() if p.dim() > 1]:
        ball = JointBall(0.1, {name: 0.05})
        for space in ((fine := graph_space(model, x, y, ball)), fine.coarse()):
            (v,) = anywhere(space, 1)
            want = margins(logits_at(model, space.realise(v).check(model, x, ball)), y).scatter(1, y[:, None], torch.inf)
            torch.testing.assert_close(space.margins(v[None])[0], want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_the_origin_is_the_network_but_for_the_last_layer(kind):
    """At lopsided radii, too; the last layer alone has no unknowns, and is at its best end."""
    model, x, y = examples(kind)
    *others, last = [n for n, p in model.named_parameters() if p.dim() > 1]
    ball = JointBall(0.1, {n: (0.02, 0.05) if i % 2 else 0.03 for i, n in enumerate(others)})
    space = graph_space(model, x, y, ball)
    for s in (space, space.coarse()):
        torch.testing.assert_close(s.margins(s.origin[None])[0].amin(1), worst_margin(margins(model(x), y), y))
    moving = graph_space(model, x, y, JointBall(0.1, {last: 0.05}))
    assert moving.origin.shape[1] == 36
    assert bool((moving.margins(moving.origin[None])[0].amin(1) < worst_margin(margins(model(x), y), y)).all())


@pytest.mark.parametrize("kind", KINDS)
def test_a_point_is_found_again(kind):
    """Weights anywhere in their boxes: their margins, or lower ones by the last layer."""
    (model, x, y), ball = examples(kind), JointBall(0.1, 0.04, moves="all")
    boxes, g = ball.weight_boxes(dict(model.named_parameters())), torch.Generator().manual_seed(1)
    weights = {n: torch.lerp(b.lo, b.hi, torch.rand(len(x), *b.lo.shape, generator=g, dtype=x.dtype)) for n, b in boxes.items()}
    point = Perturbation(ball.input_box(x).sample(g), weights, "sample")
    space, there = graph_space(model, x, y, ball), worst_margin(margins(logits_at(model, point), y), y)
    assert bool((space.margins(space.at(point)[None])[0].amin(1) <= there + 1e-9).all())


def test_a_dense_layer_behind_kernels_is_one_scalar_per_neuron():
    model, x, y = examples("conv")
    space = graph_space(model, x, y, JointBall(0.0, 0.01))
    assert space.origin.shape[1] == 6 * 9 + 8 * 6 * 9 + 7  # the kernels' elements, the hidden neurons; the last layer has none
    assert space.coarse().origin.shape[1] == 6 + 8 + 7
    assert space.groups.max() + 1 == 6 + 8 + 7


def test_a_tensor_of_two_layers_is_moved_as_one():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.dense, self.head = nn.Conv2d(1, 1, 3, 1, 1), nn.Linear(36, 36), nn.Linear(36, 3)

        def forward(self, x):
            z = torch.relu(self.conv(torch.relu(self.conv(x)))).flatten(1)
            return self.head(torch.relu(self.dense(torch.relu(self.dense(z)))))

    torch.manual_seed(0)
    model = Twice().double().eval().requires_grad_(False)
    _, x, _ = examples("conv")
    y, ball = model(x).argmax(1), JointBall(0.02, 0.02)
    space = graph_space(model, x, y, ball)
    assert space.coarse() is space and space.origin.shape[1] == 36 + 9 + 36 * 36
    point = apgd(model, x, y, ball, steps=2, restarts=2, targets=1, keep=1, rounds=1).check(model, x, ball)
    assert bool((worst_margin(margins(logits_at(model, point), y), y) < worst_margin(margins(model(x), y), y)).all())


SETTINGS = [{}, {"stride": 2, "padding": 1}, {"dilation": 2, "padding": (2, 1)}, {"stride": (1, 3), "padding": (0, 2)}]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("channels, groups", [(2, 1), (5, 1), (6, 3)])
def test_a_kernel_for_each_example(settings, channels, groups):
    """As one convolution after the other, with the same derivatives."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(channels, 6, 3, groups=groups, bias=False, **settings), nn.Flatten()).double().eval()
    graph = trace_graph(model.requires_grad_(False), (channels, 7, 8))
    (node,) = (n for n in graph.nodes if isinstance(n, Product))
    z, w = torch.randn(3, channels, 7, 8, dtype=torch.float64), torch.randn(3, *model[0].weight.shape, dtype=torch.float64)
    points = [z.requires_grad_(), w.requires_grad_()]
    ours, theirs = product(node, z, w, True), torch.cat([node.apply(z[i : i + 1], w[i]) for i in range(3)])
    torch.testing.assert_close(ours, theirs)
    g = torch.randn_like(ours)
    for a, b in zip(*(torch.autograd.grad((t * g).sum(), points) for t in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b)
    assert product(node, z[:0], w[:0], True).shape == (0, *ours.shape[1:])


def test_the_scalars_of_channels_are_exact_at_one_position():
    """One output position: a kernel is a row, and the coarse space attains what the best corner of its box does."""
    torch.manual_seed(3)
    layers = [nn.Conv2d(2, 2, 2, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(2, 2, bias=False)]
    model = nn.Sequential(*layers).double().eval().requires_grad_(False)
    x = torch.rand(3, 2, 2, 2, dtype=torch.float64)
    y, name = model(x).argmax(1), "0.weight"
    space = graph_space(model, x, y, JointBall(0.0, {name: 0.1}))
    few, W = space.coarse(), model[0].weight.clone()
    ends = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=2)), dtype=torch.float64)
    ours = few.margins(ends[:, None].expand(-1, 3, -1)).amin(-1).amin(0)
    lowest = torch.full_like(ours, torch.inf)
    for signs in itertools.product((-0.1, 0.1), repeat=8):  # the corners of one channel; those of the other move alike
        model[0].weight.copy_(W)
        for other in ends[:, 0].unique():
            model[0].weight[0] = W[0] + torch.tensor(signs).view(2, 2, 2)
            model[0].weight[1] = W[1] + 0.1 * other
            lowest = torch.minimum(lowest, worst_margin(margins(model(x), y), y))
    model[0].weight.copy_(W)
    torch.testing.assert_close(ours, lowest)


# ---------------------------------------------------------------- the attack


SHORT = {"steps": 4, "restarts": 4, "targets": 2, "keep": 2, "rounds": 1}


def reached(model, x, y, ball, **options):
    return worst_margin(margins(logits_at(model, apgd(model, x, y, ball, **options)), y), y)


@pytest.mark.parametrize("kind", ["conv", "groups", "norms", "tokens"])
def test_few_unknowns_first_reach_what_all_elements_do(kind, monkeypatch):
    """Against the search over every element of every tensor, with the same budget: not above it, and the same are broken."""
    model, x, y = examples(kind, 16, 4)
    ball = JointBall(0.03, 0.03, relative=True)
    ours = reached(model, x, y, ball, **SHORT)
    monkeypatch.setattr(sys.modules[apgd.__module__], "graph_space", tensor_space)
    theirs, clean = reached(model, x, y, ball, **SHORT), worst_margin(margins(model(x), y), y)
    assert (ours - theirs).mean() <= 0.01 * clean.mean()
    assert (ours < 0).sum() >= (theirs < 0).sum()


def test_runs_of_a_large_network_go_one_at_a_time(monkeypatch):
    model, x, y = examples("conv", 2)
    ball = JointBall(0.05, 0.05)
    together = reached(model, x, y, ball, **SHORT)
    monkeypatch.setattr(descent, "AT_ONCE", 1)
    apart = reached(model, x, y, ball, **SHORT)
    torch.testing.assert_close(apart, together, rtol=0.05, atol=0.02)


def test_examples_that_are_broken_are_searched_no_further():
    model, x, y = examples("conv", 12, 1)
    for ball in (JointBall(0.1, 0.05), JointBall(0.3, 0.2)):
        quick, full = reached(model, x, y, ball, verdict=True, **SHORT), reached(model, x, y, ball, **SHORT)
        assert ((quick < 0) == (full < 0)).all() and quick.mean() >= full.mean()


def test_operations_that_rules_write_too_large_for_memory_are_left_to_the_module(monkeypatch):
    model, x, y = examples("tokens", 3)
    ball = JointBall(0.02, 0.05)
    monkeypatch.setattr(memory, "BUDGET", 500)
    with pytest.raises(UnsupportedModel, match="numbers for one example"):
        graph_space(model, x, y, ball)
    assert bool((reached(model, x, y, ball, **SHORT) < worst_margin(margins(model(x), y), y)).all())


def test_a_scalar_moves_too():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.factor, self.last = nn.Parameter(torch.tensor(0.7)), nn.Linear(36, 3)

        def forward(self, x):
            return self.last((x.flatten(1) * self.factor - 0.2).relu())

    model, (_, x, _) = Scaled().double().eval().requires_grad_(False), examples("conv", 3)
    y, ball = model(x).argmax(1), JointBall(0.02, {"factor": 0.3, "last.weight": 0.02})
    space = graph_space(model, x, y, ball)
    assert space.origin.shape[1] == 36 + 1
    (v,) = anywhere(space, 1)
    want = margins(logits_at(model, space.realise(v).check(model, x, ball)), y).scatter(1, y[:, None], torch.inf)
    torch.testing.assert_close(space.margins(v[None])[0], want, rtol=1e-9, atol=1e-9)
