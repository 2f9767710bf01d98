"""No point of the joint ball lies below a bound: random networks against corners, interior points and ascent."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from nonsingular.attacks.joint_pgd import joint_pgd
from nonsingular.attacks.neuron_pgd import neuron_pgd
from nonsingular.bounds.activations import lines
from nonsingular.bounds.alpha import alpha_crown
from nonsingular.bounds.best import CHEAPEST_FIRST, best
from nonsingular.bounds.interval import Region, image, interval, interval_bounds, propagate, region
from nonsingular.bounds.linear import crown, crown_ibp, hidden_bounds
from nonsingular.bounds.rounding import _terms, rounding
from nonsingular.errors import InvalidInput, UnsupportedModel
from nonsingular.models.architectures import mlp
from nonsingular.network.calling import logits_at
from nonsingular.network.graph import trace_graph
from nonsingular.network.margins import margins, worst_margin
from nonsingular.network.network import twin
from nonsingular.network.operators import RULES
from nonsingular.network.tracing import PROBES
from nonsingular.threat.ball import JointBall
from nonsingular.threat.interval import Interval
from sampling import first
from soundness import Residual, Wrap, check_architecture, check_sound, conv_net, lowest_found, merged, network, run_block

BOUNDS = {"interval": interval, "crown-ibp": crown_ibp, "crown": crown, "alpha-crown": alpha_crown}


# --- random networks: see soundness.py -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [*range(4), *(pytest.param(k, marks=pytest.mark.slow) for k in range(4, 20))])
def test_no_point_of_the_region_beats_a_bound(block):
    """400 networks, 2,000 with -m slow; and at radius zero the forward pass, and interval bounds that fall with the radius."""
    found = merged([check_architecture(seed) for seed in range(20 * block, 20 * (block + 1))])
    assert found["networks"] == 100
    assert not found["violations"]


@pytest.mark.slow
@pytest.mark.parametrize("block", range(200))
def test_no_point_of_the_region_beats_a_bound_at_length(block):
    """200,000 networks: hours; benchmarks/soundness.md has the result of one run."""
    assert not run_block(block)["violations"]


# --- every operator ------------------------------------------------------------------------------------------------------------


def flat(*layers, out: int) -> nn.Module:
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(out, 3))


def shortcut(self, x):
    y = F.relu(self.inside[0](x))
    z = torch.cat([y, x * 0.5 - 1], dim=1)
    return self.inside[1](torch.flatten(2 - z, start_dim=1))


def functional(self, x):
    x = ((x - self.mean) / 0.3).unsqueeze(1)
    x = torch.tanh(F.conv1d(x, self.inside[0].weight, self.inside[0].bias, padding=1))
    x = F.max_pool1d(F.leaky_relu(x, 0.2), 2) + F.avg_pool1d(x, 2)
    x = x.permute(0, 2, 1).reshape(x.shape[0], -1).sigmoid()
    return F.linear(F.dropout(x, 0.5, self.training), self.inside[1].weight)


def in_place(self, x):
    y = self.inside[0](x)
    y += x
    y *= 2
    return self.inside[1](F.relu(y, inplace=True))


def tied(self, x):
    return self.inside[1](F.relu(self.inside[0](F.relu(self.inside[0](x)))))


def positions(self, x):
    return self.inside[1](F.relu(self.inside[0](x.view(x.size(0), 2, 3))).mean(dim=1))


def clamps(self, x):
    x = torch.clamp(self.inside[0](x), max=0.7)
    return self.inside[1](x.clamp(-0.5, 0.6) + x.clamp(min=-0.2) - x.clip(max=0.1))


def slices(self, x):
    y = F.relu(self.inside[0](x))
    y = torch.stack([y[:, :3], y[..., 1:4]], dim=1)[:, 1] + y[:, -1:] + y[:, 0, None]
    return self.inside[1](y)


def reductions(self, x):
    y = F.relu(self.inside[0](x))
    return self.inside[1](torch.cat([y.amax((2, 3)), y.mean((2, 3)), y.sum((-1, -2)) / 9], 1))


def extremes(self, x):
    y, z = self.inside[0](x), self.inside[1](x)
    return self.inside[2](torch.maximum(y, z) + torch.minimum(y, x[:, :1]) - y.abs())


def activated(module: nn.Module):
    return lambda: (nn.Sequential(nn.Linear(3, 4), module, nn.Linear(4, 4), module, nn.Linear(4, 3)), (3,))


class Shift(nn.Module):
    def __init__(self, shape) -> None:
        super().__init__()
        self.shift, self.scale = nn.Parameter(torch.randn(shape)), nn.Parameter(torch.randn(shape))

    def forward(self, x):
        return self.scale * (x + self.shift) - 0.1


SMOOTH = [
    nn.Sigmoid(), nn.Tanh(), nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Hardswish(), nn.Softplus(), nn.Softplus(3.0), nn.ELU(),
    nn.ELU(2.0), nn.Softsign(), nn.LogSigmoid(), nn.SELU(), nn.CELU(0.5), nn.CELU(2.0),
]  # fmt: skip

OPERATORS = {
    "linear": lambda: (nn.Linear(3, 3), (3,)),
    "two linear": lambda: (nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3, bias=False)), (3,)),
    "linear of positions": lambda: (Wrap(positions, nn.Linear(3, 4), nn.Linear(4, 3)), (6,)),
    "conv1d": lambda: (flat(nn.Conv1d(2, 3, 3, padding="same"), nn.ReLU(), out=15), (2, 5)),
    "conv2d same": lambda: (flat(nn.Conv2d(1, 2, (1, 3), padding="same", dilation=(1, 2)), nn.ReLU(), out=50), (1, 5, 5)),
    "conv2d circular": lambda: (flat(nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"), nn.ReLU(), out=32), (1, 4, 4)),
    "conv2d reflect": lambda: (flat(nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect"), nn.ReLU(), out=32), (1, 4, 4)),
    "conv2d groups": lambda: (flat(nn.Conv2d(4, 4, 2, stride=2, groups=2), nn.ReLU(), out=16), (4, 4, 4)),
    "conv2d depthwise": lambda: (flat(nn.Conv2d(2, 4, 3, groups=2, bias=False), nn.ReLU(), out=16), (2, 4, 4)),
    "conv transpose 1d": lambda: (flat(nn.ConvTranspose1d(2, 2, 3, stride=2), nn.ReLU(), out=18), (2, 4)),
    "conv transpose 2d": lambda: (
        flat(nn.ConvTranspose2d(2, 4, 3, stride=2, padding=1, output_padding=1, groups=2), nn.ReLU(), out=64), (2, 2, 2),
    ),
    "batch norm": lambda: (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)), (3,)),
    "batch norm without affine": lambda: (flat(nn.BatchNorm2d(1, affine=False), nn.Conv2d(1, 2, 2), out=18), (1, 4, 4)),
    "batch norm last": lambda: (nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), (3,)),
    "max pool": lambda: (flat(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1), out=8), (1, 4, 4)),
    "max pool first": lambda: (flat(nn.MaxPool2d(2), out=4), (1, 4, 4)),
    "average pool": lambda: (flat(nn.AvgPool2d(2, count_include_pad=False, padding=1), nn.ReLU(), out=9), (1, 4, 4)),
    "adaptive average pool": lambda: (flat(nn.Conv2d(1, 4, 2), nn.ReLU(), nn.AdaptiveAvgPool2d((2, 1)), out=8), (1, 4, 4)),
    "leaky": lambda: (nn.Sequential(nn.Linear(3, 4), nn.LeakyReLU(0.3), nn.Linear(4, 3)), (3,)),
    "sigmoid": lambda: (nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 3)), (3,)),
    "tanh": lambda: (nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)), (3,)),
    "relu6": activated(nn.ReLU6()),
    "hardtanh": activated(nn.Hardtanh(-0.3, 0.8)),
    "hardsigmoid": activated(nn.Hardsigmoid()),
    "clamps": lambda: (Wrap(clamps, nn.Linear(3, 4), nn.Linear(4, 3)), (3,)),
    **{f"smooth: {module}": activated(module) for module in SMOOTH},
    "zero padding": lambda: (flat(nn.ZeroPad2d((1, 0, 2, 1)), nn.Conv2d(1, 2, 3), nn.ReLU(), out=20), (1, 4, 3)),
    "upsampling": lambda: (flat(nn.Upsample(scale_factor=2), nn.Conv2d(1, 2, 3), nn.ReLU(), out=32), (1, 3, 3)),
    "bilinear": lambda: (flat(nn.Conv2d(1, 2, 2), nn.Upsample((3, 4), mode="bilinear"), nn.ReLU(), out=24), (1, 3, 3)),
    "pixel shuffle": lambda: (flat(nn.Conv2d(1, 4, 2), nn.ReLU(), nn.PixelShuffle(2), nn.Conv2d(1, 1, 2), out=9), (1, 3, 3)),
    "channel shuffle": lambda: (flat(nn.Conv2d(1, 4, 2), nn.ChannelShuffle(2), nn.ReLU(), out=16), (1, 3, 3)),
    "adaptive max pool": lambda: (flat(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.AdaptiveMaxPool2d(2), out=8), (1, 4, 4)),
    "conv3d": lambda: (flat(nn.Conv3d(1, 2, 2), nn.ReLU(), nn.AvgPool3d(2), nn.Dropout3d(), out=2), (1, 3, 3, 3)),
    "conv transpose 3d, pool": lambda: (flat(nn.ConvTranspose3d(1, 1, 2), nn.ReLU(), nn.MaxPool3d(2), out=1), (1, 2, 2, 2)),
    "round": activated(Wrap(lambda self, x: torch.round(4 * x) / 4)),
    "slices and stack": lambda: (Wrap(slices, nn.Linear(3, 4), nn.Linear(3, 3)), (3,)),
    "extremes": lambda: (Wrap(extremes, nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 3)), (3,)),
    "movedim": lambda: (flat(nn.Conv1d(2, 3, 2), Wrap(lambda self, x: F.relu(x).movedim(1, -1)), nn.Linear(3, 2), out=6), (2, 4)),
    "reductions": lambda: (Wrap(reductions, nn.Conv2d(1, 2, 2), nn.Linear(6, 3)), (1, 4, 4)),
    "dropout, identity": lambda: (nn.Sequential(nn.Linear(3, 3), nn.Dropout(), nn.Identity(), nn.ReLU(), nn.Linear(3, 3)), (3,)),
    "shift and scale": lambda: (nn.Sequential(nn.Linear(3, 4), Shift((4,)), nn.ReLU(), nn.Linear(4, 3)), (3,)),
    "widened by a shift": lambda: (nn.Sequential(nn.Linear(3, 1), Shift((3,))), (3,)),
    "in place, used again": lambda: (Wrap(reused_in_place, nn.Linear(3, 3), nn.Linear(3, 3)), (3,)),
    "view in place, used again": lambda: (Wrap(reused_view_in_place, nn.Linear(3, 3), nn.Linear(3, 3)), (3,)),
    "shift and scale of channels": lambda: (flat(nn.Conv2d(1, 2, 2), Shift((2, 1, 1)), nn.ReLU(), out=18), (1, 4, 4)),
    "concat and constants": lambda: (Wrap(shortcut, nn.Linear(3, 4), nn.Linear(7, 3)), (3,)),
    "functional": lambda: (Wrap(functional, nn.Conv1d(1, 2, 3), nn.Linear(6, 3)), (6,)),
    "in place": lambda: (Wrap(in_place, nn.Linear(3, 3), nn.Linear(3, 3)), (3,)),
    "tied": lambda: (Wrap(tied, nn.Linear(3, 3), nn.Linear(3, 3)), (3,)),
    "residual": lambda: (nn.Sequential(nn.Linear(3, 3), Residual(nn.Sequential(nn.ReLU(), nn.Linear(3, 3)), True)), (3,)),
}  # fmt: skip


@pytest.mark.parametrize("eps_x, eps_w", first(1, [(0.1, 0.2), (0.0, 0.02), (0.5, 0.02)]))
@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator_is_bounded_and_exact_at_radius_zero(name, eps_x, eps_w):
    torch.manual_seed(int(10 * eps_x))
    model, shape = OPERATORS[name]()
    model = model.double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.3, 2)
    x, y = torch.randn(2, *shape).double(), torch.tensor([0, 2])
    torch.testing.assert_close(trace_graph(model, shape)(x), model(x))
    check_sound(model, region(model, x, y, JointBall(eps_x, eps_w, None, moves="all")), y)
    for bound in BOUNDS.values():
        torch.testing.assert_close(bound(model, x, y, JointBall(0, 0, None)), margins(model(x), y).detach())


@pytest.mark.parametrize("seed", first(2, range(12)))
def test_radius_zero_is_the_forward_pass_and_interval_bounds_fall_with_the_radius(seed):
    torch.manual_seed(seed)
    model, shape = network(random.Random(seed))
    model = model.double().eval()
    x, y = torch.rand(3, *shape).double(), torch.tensor([0, 1, 2])
    exact = margins(model(x), y).detach()
    values = [interval(model, x, y, JointBall(r, s, moves="all")) for r, s in ((0, 0), (0.01, 0), (0.01, 0.02), (0.1, 0.02))]
    torch.testing.assert_close(values[0], exact)
    for larger, smaller in itertools.pairwise(values):
        assert (smaller <= larger + 1e-9).all()
    for bound in (crown_ibp, crown, alpha_crown, best):
        torch.testing.assert_close(bound(model, x, y, JointBall(0, 0)), exact)


@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(k, marks=pytest.mark.slow) for k in range(4, 7))])
def test_no_attack_beats_a_bound(seed):
    torch.manual_seed(seed)
    r = random.Random(seed)
    model, shape = (mlp((4,), 3, hidden=(6, 5)[: 1 + seed % 2], bias=seed % 3 == 0), (4,)) if seed % 2 else conv_net(r)
    model = model.double().eval()
    x = torch.rand(2, *shape).double()
    y = model(x).argmax(1)
    balls = (JointBall(0.05, 0.05), JointBall(0.0, 0.1, moves="all"), JointBall(0.02, 0.1, relative=True))
    for ball in balls if seed % 2 else balls[:2]:
        points = [joint_pgd(model, x, y, ball, scope="sample", steps=12, step_x=0.02, step_w=0.02)]
        points += [neuron_pgd(model, x, y, ball)] if seed % 2 else []
        for name, bound in {**BOUNDS, "best": best}.items():
            low = bound(model, x, y, ball)
            for point in points:
                assert (low <= margins(logits_at(model, point), y) + 1e-9).all(), name


# --- closed forms --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", first(2, range(5)))
@pytest.mark.parametrize("bound", BOUNDS.values(), ids=BOUNDS)
def test_the_last_layer_is_exact(bound, seed):
    """Only W^L moves: the worst margin is (W_y - W_j) h - 2 eps ||h||_1, by the row lemma."""
    torch.manual_seed(seed)
    model = mlp((4,), 3, hidden=(6, 5)).double()
    x, y, eps = torch.rand(3, 4).double(), torch.tensor([0, 1, 2]), 0.05
    h, last = model[:-1](x), model[-1].weight
    exact = torch.einsum("bjk,bk->bj", last[y][:, None] - last, h) - 2 * eps * h.abs().sum(1, keepdim=True)
    exact = exact.scatter(1, y[:, None], 0.0).detach()
    torch.testing.assert_close(bound(model, x, y, JointBall(0.0, {"5.weight": eps})), exact)


@pytest.mark.parametrize("seed", first(2, range(5)))
@pytest.mark.parametrize("bound", BOUNDS.values(), ids=BOUNDS)
def test_one_layer_is_exact_for_signed_inputs(bound, seed):
    """min over x of sum_k D_k x_k - 2 eps |x_k| - 2 eps_b: concave in each x_k, so the better end."""
    torch.manual_seed(seed)
    model = nn.Linear(4, 3).double()
    x, y, eps_x, eps_w = torch.randn(3, 4).double(), torch.tensor([0, 1, 2]), 0.5, 0.1
    D = model.weight[y][:, None] - model.weight
    ends = [(D * z[:, None] - 2 * eps_w * z.abs()[:, None]) for z in (x - eps_x, x + eps_x)]
    exact = torch.minimum(*ends).sum(2) + model.bias[y][:, None] - model.bias - 2 * eps_w
    exact = exact.scatter(1, y[:, None], 0.0).detach()
    torch.testing.assert_close(bound(model, x, y, JointBall(eps_x, eps_w, None, moves="all")), exact)


def test_hidden_neurons_under_their_own_weights_are_exact():
    """{W' z + b'} at a point z is the box W z + b +- (eps ||z||_1 + eps_b); asymmetric boxes shift its ends."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    x, y = torch.randn(2, 4).double(), torch.tensor([0, 1])
    where = region(model, x, y, JointBall(0.0, {}, None))
    W, b = model[0].weight.detach(), model[0].bias.detach()
    down, up = torch.rand_like(W), torch.rand_like(W)
    where = Region(where.graph, where.x, {"0.weight": Interval(W - down, W + up), "0.bias": Interval(b - 0.1, b + 0.3)})
    lo = x @ W.T + b - (torch.where(x[:, None] > 0, down, up) * x.abs()[:, None]).sum(2) - 0.1
    hi = x @ W.T + b + (torch.where(x[:, None] > 0, up, down) * x.abs()[:, None]).sum(2) + 0.3
    for boxes in (interval_bounds(where), hidden_bounds(where)):
        torch.testing.assert_close(boxes[1].lo, lo)
        torch.testing.assert_close(boxes[1].hi, hi)


class Reordered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.scale = nn.Linear(3, 3), nn.Linear(3, 3), nn.Parameter(torch.randn(3))

    def forward(self, x):
        return self.last(self.first(x) * self.scale.flip(0))


@pytest.mark.parametrize("seed", first(3, range(20)))
def test_a_scale_in_another_order_moves_in_its_own_radii(seed):
    torch.manual_seed(seed)
    model, x, y = Reordered().double(), torch.randn(2, 3).double(), torch.tensor([0, 2])
    check_sound(model, region(model, x, y, JointBall(0.5, {"scale": torch.tensor([0.5, 0.01, 2.0])}, None)), y, steps=0)


@pytest.mark.parametrize("constant", [(1, 2, 1, 1), (2, 1, 1), (1, 1, 4, 4), (4,), (1,), ()])
def test_constants_of_any_shape_are_subtracted(constant):
    """A leading dimension of 1 is that of the batch."""
    torch.manual_seed(0)
    c, x, y = torch.randn(constant).double(), torch.rand(2, 2, 4, 4).double(), torch.tensor([0, 1])
    model = nn.Sequential(Wrap(lambda self, x: F.relu(x - c)), nn.Flatten(), nn.Linear(32, 3)).double().eval()
    exact = margins(model(x), y).detach()
    for bound in BOUNDS.values():
        torch.testing.assert_close(bound(model, x, y, JointBall(0.0, 0.0, None)), exact)


def kernel_net(activation: nn.Module) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), activation, nn.Flatten(), nn.Linear(32, 3)).double()
    return model, torch.rand(2, 1, 6, 6).double(), torch.tensor([0, 1])


def test_a_moving_convolution_bias_against_brute_force():
    """The bias alone moves.  Linear net: exactly E |sum over positions of A|.  With ReLU: never above a fine grid."""
    model, x, y = kernel_net(nn.Identity())
    ball = JointBall(0.0, {"0.bias": 0.2})
    last = model[-1].weight.detach().view(3, 2, 16).sum(2)  # what a unit of each channel's bias adds to each logit
    exact = margins(model(x), y) - 0.2 * (last[y][:, None] - last).abs().sum(2)
    for bound in (crown_ibp, crown, alpha_crown):
        torch.testing.assert_close(bound(model, x, y, ball), exact.detach())
    model, x, y = kernel_net(nn.ReLU())
    grid = torch.linspace(-0.2, 0.2, 41, dtype=torch.float64)
    reached = []
    for shift in itertools.product(grid, grid):
        moved = {"0.bias": model[0].bias.detach() + torch.stack(shift)}
        reached.append(margins(functional_call(model, moved, (x,)), y).detach())
    worst = torch.stack(reached).amin(0)
    assert (worst < margins(model(x), y).detach() - 1e-3).any()
    for bound in (*BOUNDS.values(), best):
        assert (bound(model, x, y, ball) <= worst + 1e-12).all()


@pytest.mark.parametrize("eps_x", [0.0, 0.01, 0.1])
def test_a_shared_kernel_is_bounded_as_one_kernel(eps_x):
    """One kernel for all positions, bound -E |S(x)|, lies strictly above a kernel for each position, -E sum_p |A_p x_p|."""
    model, x, y = kernel_net(nn.Identity())
    eps, j = 0.05, 2
    low = crown(model, x, y, JointBall(eps_x, {"0.weight": eps}))[:, j]
    A = (model[-1].weight[y] - model[-1].weight[j]).detach().view(2, 2, 16)
    lo, hi = (x - eps_x).clamp(0, 1), (x + eps_x).clamp(0, 1)
    # a kernel of its own at every position: A W x - eps conv_transpose(|A|, 1) x, linear in x >= 0, at the better end
    reach = F.conv_transpose2d(A.abs().view(2, 2, 4, 4), torch.ones_like(model[0].weight)) * eps
    centre = F.conv_transpose2d(A.view(2, 2, 4, 4), model[0].weight.detach()) - reach
    bias = (A.sum(2) * model[0].bias.detach()).sum(1) + (model[-1].bias[y] - model[-1].bias[j]).detach()
    own = torch.minimum(centre * lo, centre * hi).flatten(1).sum(1) + bias
    assert (low > own + 0.01).all()
    if eps_x == 0:  # exact: S is the gradient of the margin with respect to the kernel
        for b in range(2):
            margin = margins(model(x[b : b + 1]), y[b : b + 1])[0, j]
            S = torch.autograd.grad(margin, model[0].weight)[0]
            torch.testing.assert_close(low[b], (margin - eps * S.abs().sum()).detach())


# --- best of all, and what is refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", first(2, range(6)))
def test_best_certifies_what_any_bound_certifies(seed):
    torch.manual_seed(seed)
    model = mlp((4,), 3, hidden=(6, 5)).double()
    x = torch.rand(12, 4).double()
    y = model(x).argmax(1)
    ball = JointBall(0.01, 0.01)
    low = best(model, x, y, ball)
    for bound in CHEAPEST_FIRST:
        one = bound(model, x, y, ball)
        undecided = (worst_margin(low, y) <= 0) & (worst_margin(margins(model(x), y), y) > 0)
        assert (low[undecided] >= one[undecided] - 1e-12).all()  # products of fewer examples may round otherwise
        assert (worst_margin(low, y) > 0)[worst_margin(one, y) > 0].all()


def test_best_uses_the_bounds_that_know_the_model(monkeypatch):
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU6(), nn.Linear(4, 3, bias=False)).double()
    x, y = torch.rand(2, 3).double(), torch.tensor([0, 1])
    monkeypatch.delitem(RULES, "hardtanh")
    with pytest.raises(UnsupportedModel, match="hardtanh at node"):
        crown(model, x, y, JointBall(0.1, 0.1))
    assert torch.isfinite(best(model, x, y, JointBall(0.1, 0.1))).all()


def test_alpha_crown_is_never_below_crown():
    for seed in range(5):
        torch.manual_seed(seed)
        model = mlp((4,), 3, hidden=(8, 6, 5)).double()
        x, y = torch.rand(4, 4).double(), torch.tensor([0, 1, 2, 0])
        a, c = alpha_crown(model, x, y, JointBall(0.1, 0.02)), crown(model, x, y, JointBall(0.1, 0.02))
        assert (a >= c - 1e-12).all()
        assert a.sum() > c.sum()


@pytest.mark.slow
def test_work_in_pieces_gives_the_same_bounds(monkeypatch):
    from nonsingular.bounds import interval as of_interval

    for seed in range(8):
        torch.manual_seed(seed)
        model, shape = network(random.Random(seed))
        model = model.double().eval()
        x, y, ball = torch.randn(3, *shape).double(), torch.tensor([0, 1, 2]), JointBall(0.1, 0.05, None, moves="all")
        whole = [bound(model, x, y, ball) for bound in (interval, crown_ibp, crown)]
        with monkeypatch.context() as m:
            m.setattr(of_interval, "MEMORY", 320)
            pieces = [bound(model, x, y, ball) for bound in (interval, crown_ibp, crown)]
            shallow = alpha_crown(model, x, y, ball, steps=2)
        for one, other in zip(whole, pieces, strict=True):
            torch.testing.assert_close(one, other)
        assert (shallow >= whole[2] - 1e-9).all()
        for bound, one in zip((interval, crown_ibp, crown), whole, strict=True):
            alone = torch.cat([bound(model, x[i : i + 1], y[i : i + 1], ball) for i in range(3)])
            torch.testing.assert_close(alone, one)
        check = lowest_found(model, region(model, x, y, ball), y)
        assert (shallow <= check + 1e-9 * (1 + check.abs())).all()


def test_bounds_keep_the_dtype_the_model_and_the_callers_gradient_mode():
    model, x, y = mlp((4,), 3, hidden=(5,)), torch.rand(2, 4), torch.tensor([0, 1])
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for bound in (*BOUNDS.values(), best):
        with torch.inference_mode():
            low = bound(model, x, y, JointBall(0.01, 0.01))
        assert low.dtype == torch.float32
        assert not bound(model, x, y, JointBall(0.01, 0.01)).requires_grad
        torch.testing.assert_close(
            low.double(), bound(twin(model).double(), x.double(), y, JointBall(0.01, 0.01)), rtol=1e-4, atol=1e-5
        )
        assert bound(model, x[:0], y[:0], JointBall(0.01, 0.01)).shape == (0, 3)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def reused_in_place(self, x):
    y = self.inside[0](x)
    return self.inside[1](F.relu(y, inplace=True) + y)


def reused_view_in_place(self, x):
    y = self.inside[0](x)
    z = y.reshape(x.shape[0], -1)
    z += 1
    return self.inside[1](F.relu(y) + z)


REFUSED = {
    "softmax at node 'softmax'": lambda: nn.Sequential(nn.Linear(3, 3), nn.Softmax(0), nn.Linear(3, 3)),
    "mish at node": lambda: nn.Sequential(nn.Linear(3, 3), nn.Mish(), nn.Linear(3, 3)),
    "its limits must be numbers": lambda: Wrap(lambda self, x: self.inside[0](x.clamp(max=self.mean)), nn.Linear(3, 3)),
    "the wrong way round": lambda: Wrap(lambda self, x: self.inside[0](x.clamp(1, 0)), nn.Linear(3, 3)),
    "the threshold 1": lambda: nn.Sequential(nn.Linear(3, 3), nn.Softplus(1.0, 1.0)),
    "'bicubic' has negative": lambda: Wrap(
        lambda self, x: self.inside[0](F.interpolate(x.view(-1, 1, 1, 3), size=(1, 3), mode="bicubic").flatten(1)),
        nn.Linear(3, 3),
    ),
    "mean at node": lambda: Wrap(lambda self, x: self.inside[0](x - x.mean(dim=0)), nn.Linear(3, 3)),
    "linear at node": lambda: Wrap(lambda self, x: F.linear(x, self.inside[0].weight * 2), nn.Linear(3, 3)),
    "does not keep the batch": lambda: Wrap(lambda self, x: x[0], nn.Linear(3, 3)),
    "getitem at node '.*': it does not keep the batch": lambda: Wrap(lambda self, x: self.inside[0](x - x[:1]), nn.Linear(3, 3)),
    "amax at node": lambda: Wrap(lambda self, x: self.inside[0](x - x.amax(0)), nn.Linear(3, 3)),
    "flip at node": lambda: Wrap(lambda self, x: self.inside[0](x.flip(0)), nn.Linear(3, 3)),
    "statistics of the batch": lambda: nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False), nn.Linear(3, 3)),
    "pow at node": lambda: Wrap(lambda self, x: self.inside[0](2**x), nn.Linear(3, 3)),
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_bound_refuses_and_names_what_it_cannot_bound(message):
    model = REFUSED[message]().eval()
    for bound in (*BOUNDS.values(), best):
        with pytest.raises(UnsupportedModel, match=message):
            bound(model, torch.rand(2, 3), torch.tensor([0, 1]), JointBall(0.1, 0.1))


@pytest.mark.parametrize("width", [PROBES, PROBES + 1])
def test_operations_across_the_batch_are_refused(width):
    """Also where the batch that the graph is read with has the width of the signal."""
    net = nn.Linear(width, 3)
    for f in (lambda self, x: self.inside[0](x.permute(1, 0)), lambda self, x: self.inside[0](torch.cat([x, x]))[: len(x)]):
        with pytest.raises(UnsupportedModel):
            interval(Wrap(f, net).eval(), torch.rand(width, width), torch.zeros(width).long(), JointBall(0.1, 0.1))
    mixes = Wrap(lambda self, x: self.inside[0](x.permute(1, 0).reshape(-1, width)), net).eval()
    with pytest.raises(UnsupportedModel):
        interval(mixes, torch.rand(width, width), torch.zeros(width).long(), JointBall(0.1, 0.1))


def test_train_mode_is_refused():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    with pytest.raises(InvalidInput, match="in train mode"):
        interval(model, torch.rand(2, 3), torch.tensor([0, 1]), JointBall(0.1, 0.1))


def boxes_of_every_size(n: int = 3000, dtype: torch.dtype = torch.float64) -> Interval:
    generator = torch.Generator().manual_seed(0)
    centre, u, v = torch.randn(3, n, generator=generator, dtype=dtype)
    width = 10 ** (v * 2.5 - 0.5).clamp(-7, 1)
    return Interval(2.5 * centre - width * u.abs(), 2.5 * centre + width)


def node_of(form: nn.Module):
    return trace_graph(nn.Sequential(nn.Flatten(), form), (3,)).nodes[-1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("form", [nn.ReLU(), nn.LeakyReLU(0.2), *SMOOTH], ids=str)
def test_lines_and_range_enclose_the_activation(form, dtype):
    node, box = node_of(form), boxes_of_every_size(dtype=dtype)
    found = lines(node, box, lambda start: start)
    lower, below, upper, above = (t.reshape(-1, 3000)[0] for t in (found.lower, found.below, found.upper, found.above))
    ends = image(node, None, [box])
    slack = 1e-12 if dtype == torch.float64 else 1e-5
    gap = torch.full_like(box.lo, torch.inf)
    for t in torch.linspace(0, 1, 101, dtype=dtype):
        z = torch.lerp(box.lo, box.hi, t)
        assert (lower * z + below <= form(z) + slack).all()
        assert (upper * z + above >= form(z) - slack).all()
        assert ((ends.lo <= form(z) + slack) & (form(z) <= ends.hi + slack)).all()
        gap = torch.minimum(gap, form(z) - lower * z - below)
    assert (gap <= 1e-3 * (box.hi - box.lo) + 1e-5).all()  # the lower line touches


def test_softplus_is_bounded_on_both_sides_of_its_threshold():
    """torch drops by log(1 + e^-20) = 2.06e-9 where it takes z itself; below there is no slack."""
    node, form = node_of(nn.Softplus()), nn.Softplus()
    box = Interval(*torch.tensor([[[19.0, 19.5, 20.5]], [[19.9, 20.5, 21.0]]], dtype=torch.float64))
    found, ends = lines(node, box, lambda start: start), image(node, None, [box])
    for t in torch.linspace(0, 1, 201).double():
        z = torch.lerp(box.lo, box.hi, t)
        assert (found.lower * z + found.below <= form(z) + 1e-14).all()
        assert (ends.lo <= form(z)).all() and (form(z) <= ends.hi).all()
    assert ends.hi[0, 0] == form(box.hi)[0, 0]
    assert found.above[0, 0] + found.upper[0, 0] * box.hi[0, 0] == pytest.approx(form(box.hi)[0, 0].item(), abs=1e-14)


@pytest.mark.parametrize("form", SMOOTH, ids=str)
def test_the_curve_of_an_activation_is_as_told(form):
    """slope_at is the derivative; it is monotone between the turns, as told; the bottom is where it changes sign."""
    node = node_of(form)
    curve, z = node.curve, torch.linspace(-12, 12, 240_001, dtype=torch.float64)
    off = (z[:, None] - torch.tensor([0.0, *curve.turns])).abs().amin(1) > 1e-6  # kinks aside
    slope = torch.autograd.functional.jvp(form, z, torch.ones_like(z))[1]
    torch.testing.assert_close(curve.slope_at(z)[off], slope[off], rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(node.apply(z), form(z), rtol=0, atol=curve.slack + 1e-15)
    ends, convex = [-12.0, *curve.turns, 12.0], curve.convex
    for a, b in itertools.pairwise(ends):
        rise = curve.slope_at(torch.linspace(a, b, 50_001, dtype=torch.float64)).diff()
        assert ((rise if convex else -rise) >= -1e-13).all()
        convex = not convex
    assert (curve.slope_at(z)[z > curve.bottom] >= 0).all()
    assert (curve.slope_at(z)[z < curve.bottom] <= 0).all()


def test_interval_of_a_node_is_exact_for_products_of_both_signs():
    """w in [-1, 3], z in [-2, 1]: the corners are 2, -1, -6, 3."""
    model = nn.Linear(1, 2, bias=False).double()
    with torch.no_grad():
        model.weight.fill_(1.0)
    where = region(model, torch.full((1, 1), -0.5).double(), torch.tensor([0]), JointBall(1.5, 2.0, None))
    box = propagate(where.graph.nodes[1], where, [where.x])
    assert (box.lo[0, 0], box.hi[0, 0]) == (-6.0, 3.0)


# --- balls with a radius per channel, per element, and to one side ----------------------------------------------------------


def seasoned(model: nn.Module) -> nn.Module:
    """In float64 and eval mode, with statistics and affine of BatchNorm drawn at random."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.3, 2)
            for p in module.parameters():
                nn.init.normal_(p)
    return model.double().eval()


def any_radii(model: nn.Module, size: float, r: random.Random) -> dict:
    """A radius for every parameter: a number, one per output, one per element, or a pair of these."""

    def side(p):
        form = r.choice(["zero", "number", "output", "element", "element"])
        shape = {"output": (len(p), *[1] * (p.dim() - 1)), "element": p.shape}.get(form)
        return {"zero": 0.0, "number": size}[form] if shape is None else 2 * size * torch.rand(shape, dtype=torch.float64)

    return {n: side(p) if r.random() < 0.3 else (side(p), side(p)) for n, p in model.named_parameters()}


@pytest.mark.parametrize("name", first(12, OPERATORS))
def test_no_point_of_any_box_beats_a_public_bound(name):
    r = random.Random(name)
    torch.manual_seed(r.randrange(10**6))
    model, shape = OPERATORS[name]()
    model = seasoned(model)
    x, y = torch.rand(2, *shape, dtype=torch.float64), torch.tensor([0, 2])
    for size in (0.01, 0.1):
        ball = JointBall(0.05, any_radii(model, size, r))
        reached = lowest_found(model, region(model, x, y, ball), y)
        point = joint_pgd(model, x, y, ball, steps=20, step_w=size / 5, scope="sample")
        reached = torch.minimum(reached, margins(logits_at(model, point), y))
        for bound in (*BOUNDS.values(), best):
            assert (bound(model, x, y, ball) <= reached + 1e-9 * (1 + reached.abs())).all(), bound.__name__


def per_channel(size: float, *names: str, channels: int = 4) -> dict:
    """A radius for each output channel, growing from size / channels to size."""
    grow = size * torch.arange(1, channels + 1, dtype=torch.float64) / channels
    return {n: grow if n.endswith("bias") or n.startswith("1.") else grow.view(-1, 1, 1, 1) for n in names}


@pytest.mark.parametrize("names", [["0.weight"], ["1.weight", "1.bias"], ["0.weight", "0.bias", "1.weight"]], ids=str)
def test_channels_with_radii_of_their_own(names):
    """Conv and BatchNorm: the box is by hand, and the bound lies between those of the smallest and of the largest radius."""
    torch.manual_seed(3)
    model = seasoned(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)))
    x, y = torch.rand(3, 1, 4, 4, dtype=torch.float64), torch.tensor([0, 1, 2])
    ball = JointBall(0.02, per_channel(0.08, *names))
    where, params = region(model, x, y, ball), dict(model.named_parameters())
    for n in names:
        for c, own in enumerate((0.02, 0.04, 0.06, 0.08)):
            box, w = where.boxes[n], params[n][c].detach()
            torch.testing.assert_close(w - box.lo[c], torch.full_like(w, own))
            torch.testing.assert_close(box.hi[c] - w, torch.full_like(w, own))
    check_sound(model, where, y)
    for name, bound in BOUNDS.items():
        low, high = (bound(model, x, y, JointBall(0.02, dict.fromkeys(names, end))) for end in (0.08, 0.02))
        mid = bound(model, x, y, ball)
        assert (low <= mid + 1e-9).all() and (mid <= high + 1e-9).all() and (low < mid).any(), name


@pytest.mark.parametrize("name", ["dense", "conv"])
def test_a_uniform_tensor_bounds_as_the_number(name):
    torch.manual_seed(0)
    layers = {
        "dense": (nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)),
        "conv": (nn.Conv1d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)),
    }
    model = nn.Sequential(*layers[name]).double().eval()
    x, y = torch.rand(4, *((6,) if name == "dense" else (1, 6))).double(), torch.tensor([0, 1, 2, 0])
    number, shapes = JointBall(0.05, 0.03, moves="all"), {n: p.shape for n, p in model.named_parameters()}
    whole = JointBall(0.05, {n: torch.full(s, 0.03, dtype=x.dtype) for n, s in shapes.items()})
    outputs = JointBall(0.05, {n: torch.full((s[0], *[1] * (len(s) - 1)), 0.03, dtype=x.dtype) for n, s in shapes.items()})
    for bound in (*BOUNDS.values(), best):
        want = bound(model, x, y, number)
        assert bound(model, x, y, whole).equal(want) and bound(model, x, y, outputs).equal(want)


def test_one_sided_box_by_hand():
    """One layer, x = 1 fixed: margin (1 - 0.3) - (-1 + 0.1) = 1.6; W_0 rising and W_1 falling cost nothing."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2, bias=False)).double().eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0], [-1.0]]))
    ball = JointBall(0.0, {"1.weight": (torch.tensor([[0.3], [5.0]]).double(), torch.tensor([[7.0], [0.1]]).double())})
    for bound in (*BOUNDS.values(), best):
        assert bound(model, torch.ones(1, 1).double(), torch.tensor([0]), ball)[0].tolist() == pytest.approx([0.0, 1.6])


def test_a_radius_that_does_not_fit_is_refused_by_every_bound():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3)).eval()
    for bound in (*BOUNDS.values(), best):
        with pytest.raises(InvalidInput, match=r"'0\.weight'\] has shape \(5,\).*shape \(4, 3\)"):
            bound(model, torch.rand(2, 3), torch.tensor([0, 1]), JointBall(0.1, {"0.weight": torch.ones(5)}))


def test_rounding_covers_what_float32_does_to_every_kind_of_node():
    """Curves, maxima, averages and sums of two branches, whose sizes go through by rules of their own."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.out = nn.Conv2d(1, 3, 3, padding=1), nn.Linear(12, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = F.gelu(self.conv(x)) - 0.5 * torch.sigmoid(self.conv(x)) + 0.1
            return self.out(F.max_pool2d(F.leaky_relu(F.avg_pool2d(h, 2)), 1).flatten(1))

    for seed in range(4):
        torch.manual_seed(seed)
        model, ball = Branches().eval(), JointBall(0.02, 0.01, moves="all")
        x, y = torch.rand(5, 1, 4, 4), torch.tensor([0, 1, 2, 0, 1])
        double = twin(model).double()
        off = rounding(region(double, x.double(), y, ball), torch.float32)
        assert (off < 0.1).all()
        for bound in (interval, crown):
            assert ((bound(model, x, y, ball) - bound(double, x.double(), y, ball)).abs().amax(1) <= off).all()


def test_terms_of_sums_by_hand():
    model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(3, 5)).eval()
    where = region(model, torch.rand(1, 2, 3, 3), torch.tensor([0]), JointBall(0.1, 0.1))
    # weights over the smaller of their first two sides: 24 / 2 for the 8 terms of the convolution, 15 / 3 for the 3 of Linear
    assert [_terms(node, where) for node in where.graph.nodes[1:]] == [12, 1, 4, 1, 5]
