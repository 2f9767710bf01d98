"""Convolutions, scales and residual networks with moving weights: direct derivatives, work saved, memory, a CIFAR network."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from nonsingular.attacks.joint_pgd import joint_pgd
from nonsingular.bounds import linear as of_linear
from nonsingular.bounds import products
from nonsingular.bounds.alpha import alpha_crown
from nonsingular.bounds.interval import interval, interval_bounds, region
from nonsingular.bounds.linear import crown, crown_ibp, hidden_bounds
from nonsingular.errors import InvalidInput
from nonsingular.models.architectures import conv, mlp, resnet
from nonsingular.network import memory
from nonsingular.network.calling import logits_at
from nonsingular.network.derivatives import by_differentiation
from nonsingular.network.graph import trace_graph
from nonsingular.network.margins import margins
from nonsingular.network.nodes import Product
from nonsingular.threat.ball import JointBall
from sampling import first
from soundness import check_sound, random_case
from test_bounds import OPERATORS


def small(seed: int = 0, hidden: tuple[int, ...] = (2, 3)) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A residual network with random statistics, float64, with three examples."""
    torch.manual_seed(seed)
    model = resnet((2, 7, 6), 3, hidden=hidden).double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.1, 0.5)
            nn.init.uniform_(module.weight, -1, 2)
            nn.init.normal_(module.bias, std=0.3)
    return model, torch.rand(3, 2, 7, 6).double(), torch.tensor([0, 1, 2])


# --- derivatives -------------------------------------------------------------------------------------------------------------

MORE = {
    "conv2d unequal": lambda: (nn.Sequential(nn.Conv2d(2, 4, (3, 2), (2, 1), (1, 0), (1, 2), 2), nn.Flatten()), (2, 6, 7)),
    "conv2d that leaves pixels out": lambda: (nn.Sequential(nn.Conv2d(1, 2, 2, stride=3), nn.Flatten()), (1, 6, 7)),
    "conv2d valid": lambda: (nn.Sequential(nn.Conv2d(1, 2, 2, padding="valid"), nn.Flatten()), (1, 4, 4)),
    "residual": lambda: (small()[0].float(), (2, 7, 6)),
}  # fmt: skip


@pytest.mark.parametrize("name", [*OPERATORS, *MORE])
def test_derivatives_written_out_are_those_of_differentiation(name):
    model, shape = {**OPERATORS, **MORE}[name]()
    graph = trace_graph(model.double().eval(), shape)
    generator = torch.Generator().manual_seed(0)

    def random(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    for node in graph.nodes:
        if not isinstance(node, Product) or node.weight is None or node.dense:
            continue
        w, z_shape = graph.value(node.weight), graph.nodes[node.inputs[0]].shape
        found = node.derivatives(tuple(w.shape))
        if found is None:
            continue
        slow = by_differentiation(node.apply, z_shape, w)
        A, z = random(4, 3, *node.shape), random(3, *z_shape)
        N = A.flatten(0, 1)
        torch.testing.assert_close(found.z(N, w), slow.z(N, w))
        torch.testing.assert_close(found.w(A, z), slow.w(A, z))
        torch.testing.assert_close(found.z_ones(N).expand(12, *z_shape), slow.z_ones(N))
        each = random(12, *w.shape)
        torch.testing.assert_close(found.z_each(N, each), slow.z_each(N, each))


def test_which_products_have_derivatives_written_out():
    known = {"linear of positions", "conv2d groups", "conv2d depthwise", "shift and scale", "shift and scale of channels"}
    for name in OPERATORS:
        model, shape = OPERATORS[name]()
        nodes = [n for n in trace_graph(model.eval(), shape).nodes if isinstance(n, Product) and n.weight is not None]
        first = nodes[0]
        if name in known:
            graph = trace_graph(model.eval(), shape)
            assert first.derivatives(tuple(graph.value(first.weight).shape)) is not None, name
        elif name.startswith(("conv1d", "conv transpose", "conv2d same")):
            assert first.derivatives((2, 1, 1)) is None, name


# --- work that is saved ------------------------------------------------------------------------------------------------------


def hidden_with_and_without_shortcuts(where, monkeypatch):
    monkeypatch.setattr(of_linear, "APART", -1)
    short = hidden_bounds(where)
    with monkeypatch.context() as m:
        m.setattr(products, "_of_one_output", lambda A: False)
        m.setattr(of_linear, "_tightness", lambda *_: of_linear.Tight.NO)
        m.setattr(of_linear, "APART", float("inf"))
        return short, hidden_bounds(where)


@pytest.mark.parametrize("seed", first(2, range(12)))
def test_shortcuts_change_no_bound(seed, monkeypatch):
    """One output: its own kernel is the shared one.  Exact intervals: nothing to refine.  Examples apart: the same."""
    _, where, _ = random_case(seed + 1000)
    for a, b in zip(*hidden_with_and_without_shortcuts(where, monkeypatch), strict=True):
        torch.testing.assert_close(a.lo, b.lo, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(a.hi, b.hi, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", OPERATORS)
def test_shortcuts_change_no_bound_of_an_operator(name, monkeypatch):
    torch.manual_seed(0)
    model, shape = OPERATORS[name]()
    x, y = torch.randn(2, *shape).double(), torch.tensor([0, 1])
    for moves in ("weights", "all"):
        where = region(model.double().eval(), x, y, JointBall(0.1, 0.1, None, moves=moves))
        for a, b in zip(*hidden_with_and_without_shortcuts(where, monkeypatch), strict=True):
            torch.testing.assert_close(a.lo, b.lo, rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(a.hi, b.hi, rtol=1e-9, atol=1e-12)


class Branches(nn.Module):
    """Two paths that see windows of other sizes, joined."""

    def __init__(self, other: nn.Module) -> None:
        super().__init__()
        self.one, self.other = nn.Conv2d(3, 3, 3, padding=1), other

    def forward(self, z):
        return F.relu(self.one(z)) + self.other(z)


IN_WINDOWS: dict[str, list[nn.Module]] = {
    "strides and padding": [nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 3, (3, 2), (2, 1), (1, 0))],
    "groups and dilation": [nn.Conv2d(3, 6, 2, groups=3), nn.Tanh(), nn.Conv2d(6, 4, 2, dilation=2, groups=2)],
    "branches": [Branches(nn.Identity()), nn.BatchNorm2d(3), Branches(nn.Conv2d(3, 3, 1)), nn.LeakyReLU(0.1), nn.Conv2d(3, 2, 3)],
    "average pooling": [nn.Conv2d(3, 4, 2), nn.ReLU(), nn.AvgPool2d(3, 2, 1), nn.Conv2d(4, 3, 2)],
    "maximum pooling": [nn.Conv2d(3, 2, 2), nn.ReLU(), nn.MaxPool2d(2, 2), nn.Conv2d(2, 3, 2, padding=1)],
    "overlapping maxima": [nn.Conv2d(3, 2, 2), nn.MaxPool2d(3, 2), nn.ReLU(), nn.Conv2d(2, 3, 2, padding=1)],
    "maxima beyond": [nn.Conv2d(3, 2, 3, padding=1), nn.MaxPool2d(3, 3, 1), nn.Conv2d(2, 3, 2, padding=1)],
}


def in_windows(name: str, x: torch.Tensor) -> nn.Module:
    torch.manual_seed(0)
    layers = [*copy.deepcopy(IN_WINDOWS[name]), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3)]
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU(), *layers)
    model(torch.rand_like(x).float())
    return model.double().eval()


@pytest.mark.parametrize("moves", ["nothing", "hardly", "all"])
@pytest.mark.parametrize("name", IN_WINDOWS)
def test_windows_change_no_bound(name, moves, monkeypatch):
    x = torch.rand(2, 2, 9, 8, generator=torch.Generator().manual_seed(0)).double()
    model = in_windows(name, x)
    monkeypatch.setattr(products, "HARDLY", 1.0 if moves == "hardly" else 0.0)
    where = region(model, x, torch.tensor([0, 1]), JointBall(0.03, 0.02 * (moves != "nothing"), moves="all"))
    found = hidden_bounds(where)
    used = [of_linear.numbers_in_windows(where, i) for i in of_linear.refined(where)]
    monkeypatch.setattr(of_linear, "numbers_in_windows", lambda *_: 0)
    monkeypatch.setattr(of_linear, "round_before", lambda *_: None)
    for a, b in zip(found, hidden_bounds(where), strict=True):
        torch.testing.assert_close(a.lo, b.lo, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(a.hi, b.hi, rtol=1e-9, atol=1e-12)
    assert any(used)


@pytest.mark.parametrize("radius", ["one", "own"])
@pytest.mark.parametrize("name", ["groups and dilation", "branches", "overlapping maxima"])
def test_kernels_that_hardly_move_are_bounded(name, radius, monkeypatch):
    """Their rule at radii at which an error would show, one number or one for each element, on inputs of both signs."""
    monkeypatch.setattr(products, "HARDLY", torch.inf)
    x = torch.randn(2, 2, 9, 8, generator=torch.Generator().manual_seed(0)).double()
    model = in_windows(name, x)
    eps = {n: 0.1 if radius == "one" else 0.2 * torch.rand(p.shape).double() for n, p in model.named_parameters() if p.dim() > 3}
    y = model(x).argmax(1)
    where = region(model, x, y, JointBall(0.05, eps, None))
    assert any(isinstance(node, Product) and products.hardly_moves(node, where) for node in where.graph.nodes)
    check_sound(model, where, y, steps=1)


def test_what_is_known_exactly_is_not_refined(monkeypatch):
    """The stem's BatchNorm outputs have their exact range by intervals, so no linear function is pulled back for them."""
    model, x, y = small()
    refined = []
    wanted = of_linear.met
    monkeypatch.setattr(of_linear, "met", lambda *a: (refined.append(a[1]), wanted(*a))[1])
    where = region(model, x, y, JointBall(0.1, 0.05, moves="all"))
    hidden_bounds(where)
    relus = [node.inputs[0] for node in where.graph.nodes if "relu" in node.name]
    assert len(relus) == 3
    assert list(dict.fromkeys(refined)) == relus[1:]  # each once for every example


def test_exact_ranges_are_attained():
    """Conv, scale and shift move: each output of the first BatchNorm reaches both ends of its interval."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)).double().eval()
    nn.init.uniform_(model[1].weight, 0.5, 1)
    x, y = torch.rand(1, 1, 3, 3).double(), torch.tensor([0])
    where = region(model, x, y, JointBall(0.1, 0.1, moves="all"))
    box = interval_bounds(where)[3]
    w, s, b = (where.boxes[n] for n in ("0.weight", "1.weight", "1.bias"))
    for sign, ends in ((1, box.hi), (-1, box.lo)):
        for c in range(2):
            for i in range(2):
                for j in range(2):
                    patch = where.x.hi[0, 0, i : i + 2, j : j + 2], where.x.lo[0, 0, i : i + 2, j : j + 2]
                    kernel = (w.hi if sign > 0 else w.lo)[c, 0]
                    conv_bias = (where.boxes["0.bias"].hi if sign > 0 else where.boxes["0.bias"].lo)[c]
                    up = kernel > 0 if sign > 0 else kernel < 0
                    reach = (kernel * torch.where(up, *patch)).sum() + conv_bias
                    norm = (reach - model[1].running_mean[c]) * (model[1].running_var[c] + 1e-5).rsqrt()
                    scale = (s.hi if (norm > 0) == (sign > 0) else s.lo)[c]
                    torch.testing.assert_close(ends[0, c, i, j], norm * scale + (b.hi if sign > 0 else b.lo)[c])


# --- memory ------------------------------------------------------------------------------------------------------------------


class Largest(TorchDispatchMode):
    """Records the largest number of bytes that one new tensor takes."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, tuple | list) else [out]:
            if isinstance(t, torch.Tensor):
                self.bytes = max(self.bytes, t.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize("kind", ["dense", "conv", "resnet"])
@pytest.mark.parametrize("bound", [interval, crown_ibp, crown])
def test_no_temporary_outgrows_the_budget(kind, bound, monkeypatch):
    torch.manual_seed(0)
    make = {"dense": mlp, "conv": conv, "resnet": resnet}[kind]
    model = make((2, 8, 8), 10, hidden=(24, 20) if kind == "dense" else (4, 6)).double().eval()
    x = torch.rand(64, 2, 8, 8).double()
    y = model(x).argmax(1)
    ball = JointBall(0.02, 0.02, moves="all")
    whole = bound(model, x, y, ball)
    with monkeypatch.context() as m, Largest() as seen:
        m.setattr(memory, "BUDGET", 2**20)
        pieces = bound(model, x, y, ball)
    torch.testing.assert_close(pieces, whole)
    if bound is interval:  # one pass over all examples: its boxes are not cut into pieces
        return
    assert seen.bytes <= 2**20
    with Largest() as free:
        bound(model, x, y, ball)
    assert free.bytes > seen.bytes


@pytest.mark.parametrize("bound", [interval, crown_ibp, partial(alpha_crown, steps=0)], ids=["interval", "crown-ibp", "alpha"])
def test_a_detector_with_thousands_of_outputs_is_bounded_in_pieces(bound, monkeypatch):
    """1,176 outputs of one image: no matrix of outputs by outputs (5.5 MB) is ever made."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 6, 1), nn.Flatten()).eval()
    x = torch.rand(1, 3, 28, 28)
    y = model(x).argmax(1)
    monkeypatch.setattr(memory, "BUDGET", 2**20)
    with Largest() as seen:
        low = bound(model, x, y, JointBall(0.001, 0.0))
    assert low.shape == (1, 6 * 14 * 14)
    assert (low <= margins(model(x), y) + 1e-6).all()
    assert seen.bytes <= 2**20


def test_memory_of_a_dense_layer_does_not_hold_weights_for_each_function():
    """specs x batch x activations, never x parameters: 1,000 inputs and 200 neurons, 16 examples."""
    torch.manual_seed(0)
    model = mlp((1000,), 10, hidden=(200, 100)).eval()
    x = torch.rand(16, 1000)
    y = model(x).argmax(1)
    with Largest() as seen:
        crown(model, x, y, JointBall(0.001, 0.001))
    assert seen.bytes <= 4 * 100 * 16 * 1000  # functions x examples x inputs


# --- networks ----------------------------------------------------------------------------------------------------------------


class Widen(nn.Module):
    """(B, 1, 4) times and plus constants of shape (3, 1): a sum whose input is smaller than its output."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("c", torch.tensor([[0.5], [-2.0], [1.0]]))

    def forward(self, x):
        return (x.unsqueeze(1) * self.c - self.c).flatten(1)


def test_a_sum_that_widens_the_signal_is_bounded():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), Widen(), nn.ReLU(), nn.Linear(12, 3)).double().eval()
    x, y = torch.randn(2, 3).double(), torch.tensor([0, 1])
    check_sound(model, region(model, x, y, JointBall(0.1, 0.1, None, moves="all")), y)


@pytest.mark.parametrize("seed", first(2, range(4)))
def test_residual_networks_with_batch_norm_are_bounded(seed):
    model, x, y = small(seed, hidden=(2, 3, 2) if seed % 2 else (2, 3))
    ball = JointBall(0.02 * (seed % 2), 0.03, moves="all", relative=seed > 1)
    check_sound(model, region(model, x, y, ball), y, steps=1)
    y = model(x).argmax(1)
    point = joint_pgd(model, x, y, ball, scope="sample", steps=10, step_x=0.01, step_w=0.02)
    for bound in (crown_ibp, crown, alpha_crown):
        assert (bound(model, x, y, ball) <= margins(logits_at(model, point), y) + 1e-9).all()
        torch.testing.assert_close(bound(model, x, y, JointBall(0, 0)), margins(model(x), y).detach())


def test_alpha_crown_moves_slopes_through_shared_kernels():
    model, x, y = small(1)
    ball = JointBall(0.02, 0.02, moves="all")
    a, c = alpha_crown(model, x, y, ball), crown(model, x, y, ball)
    assert torch.isfinite(a).all()
    assert (a >= c - 1e-12).all()
    assert a.sum() > c.sum()


def test_a_radius_of_zero_on_the_input_leaves_gradients_finite():
    """S(z) is then a point, and the chord's width 0."""
    model, x, y = small(2)
    assert torch.isfinite(alpha_crown(model, x, y, JointBall(0.0, 0.02, moves="all"))).all()


def test_the_residual_network_by_hand():
    """Its blocks are relu(BN(conv(relu(BN(conv x)))) + BN(conv x)), of stride 2 each, then the mean over positions."""
    model = resnet((3, 32, 32), 10, hidden=(8, 16, 32)).eval()
    assert sum(p.numel() for p in model.parameters()) == 18770
    assert not any("Conv" in type(m).__name__ and m.bias is not None for m in model.modules())
    x = torch.rand(2, 3, 32, 32)
    z = F.relu(model[1](model[0](x)))
    assert z.shape == (2, 8, 16, 16)
    for block, shape in ((model[3], (2, 16, 8, 8)), (model[4], (2, 32, 4, 4))):
        a, n, _, b, m = block.body
        z = F.relu(m(b(F.relu(n(a(z))))) + block.shortcut(z))
        assert z.shape == shape
    torch.testing.assert_close(model(x), model[-1](z.mean((2, 3))))
    assert resnet((1, 8, 8), 3, hidden=(4,), bias=False)(torch.rand(2, 1, 8, 8)).shape == (2, 3)
    with pytest.raises(InvalidInput, match="'resnet' takes images"):
        resnet((784,), 10)
