"""No point of the joint ball lies below a bound: random networks against corners, interior points and ascent."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, vmap

from nonsingular.attacks.joint_pgd import joint_pgd
from nonsingular.attacks.neuron_pgd import neuron_pgd
from nonsingular.bounds.alpha import alpha_crown, ascend
from nonsingular.bounds.best import CHEAPEST_FIRST, best
from nonsingular.bounds.interval import Region, interval, interval_bounds, interval_margins, propagate, region
from nonsingular.bounds.linear import crown, crown_ibp, hidden_bounds, margin_bounds
from nonsingular.errors import InvalidInput, UnsupportedModel
from nonsingular.graph import PROBES, logits_at, trace_graph, twin
from nonsingular.margins import margins, worst_margin
from nonsingular.models import mlp
from nonsingular.threat import Interval, JointBall

BOUNDS = {"interval": interval, "crown-ibp": crown_ibp, "crown": crown, "alpha-crown": alpha_crown}


# --- brute force -------------------------------------------------------------------------------------------------------------


def lowest_found(model: nn.Module, where: Region, y: torch.Tensor, *, draws: int = 24, restarts: int = 4, rounds: int = 6):
    """(B, K) smallest margins found: corners, interior points, and for each pair of classes ascent from end to end."""
    generator = torch.Generator().manual_seed(0)
    still, B, K = twin(model), len(y), where.graph.nodes[-1].shape[0]
    names = sorted(where.boxes)

    def logits(x, weights):
        return functional_call(still, weights, (x[None],))[0]

    def start(P, whole):
        """P points: at corners, or anywhere."""

        def one(lo, hi, shape):
            u = torch.rand(shape, generator=generator, dtype=lo.dtype)
            return torch.lerp(lo, hi, u.round() if whole else u)

        x = one(*(e.repeat_interleave(P // B, 0) for e in (where.x.lo, where.x.hi)), (P, *where.x.lo.shape[1:]))
        return x, {n: one(where.boxes[n].lo, where.boxes[n].hi, (P, *where.boxes[n].lo.shape)) for n in names}

    def lowest(f, labels):
        m = f.gather(1, labels[:, None]) - f
        return m.view(B, -1, K).amin(1)

    with torch.no_grad():
        found = torch.full((B, K), torch.inf, dtype=where.x.lo.dtype)
        for whole in (True, False):
            x, w = start(B * draws, whole)
            found = torch.minimum(found, lowest(vmap(logits)(x, w), y.repeat_interleave(draws)))
        P = K * restarts
        labels, targets = y.repeat_interleave(P), torch.arange(K).repeat_interleave(restarts).repeat(B)
        x, w = start(B * P, False)

        def margin(x, w, label, target):
            f = logits(x, w)
            return f.gather(0, label[None])[0] - f.gather(0, target[None])[0]

        lo, hi = (e.repeat_interleave(P, 0) for e in (where.x.lo, where.x.hi))
        for _ in range(rounds):
            g_x, g_w = vmap(grad(margin, argnums=(0, 1)))(x, w, labels, targets)
            x = torch.where(g_x > 0, lo, torch.where(g_x < 0, hi, x))
            w = {n: torch.where(g_w[n] > 0, where.boxes[n].lo, torch.where(g_w[n] < 0, where.boxes[n].hi, w[n])) for n in names}
            found = torch.minimum(found, lowest(vmap(logits)(x, w), labels))
    return found


def all_bounds(where: Region, y: torch.Tensor, steps: int = 2) -> dict[str, torch.Tensor]:
    boxes = interval_bounds(where)
    found = {
        "interval": interval_margins(where, y, boxes),
        "crown-ibp": margin_bounds(where, boxes, y),
        "crown": margin_bounds(where, hidden_bounds(where), y),
    }
    if steps:
        found["alpha-crown"] = ascend(where, y, steps, 0.2)
    return found


def check_sound(model: nn.Module, where: Region, y: torch.Tensor, **kwargs) -> dict[str, torch.Tensor]:
    reached, bounds = lowest_found(model, where, y), all_bounds(where, y, **kwargs)
    for name, low in bounds.items():
        slack = 1e-9 * (1 + reached.abs() + low.abs())
        assert torch.isfinite(low).all(), name
        assert (low <= reached + slack).all(), f"{name}: bound {low.tolist()} above attained {reached.tolist()}"
    return bounds


# --- random networks ---------------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    def __init__(self, inner: nn.Module, scaled: bool) -> None:
        super().__init__()
        self.inner = inner
        self.scale = nn.Parameter(torch.tensor([0.7])) if scaled else None

    def forward(self, x):
        y = self.inner(x)
        if self.scale is not None:
            y = y * self.scale
        return x + y


class Wrap(nn.Module):
    """A function between two modules: operations that have no module form."""

    def __init__(self, f, *modules) -> None:
        super().__init__()
        self.f, self.inside = f, nn.ModuleList(modules)
        self.register_buffer("mean", torch.tensor(0.4))

    def forward(self, x):
        return self.f(self, x)


def activation(r: random.Random) -> nn.Module:
    return r.choice([nn.ReLU(), nn.ReLU(), nn.ReLU(), nn.LeakyReLU(0.1), nn.Sigmoid(), nn.Tanh()])


def dense_net(r: random.Random) -> tuple[nn.Module, tuple[int, ...]]:
    widths = [r.randint(1, 4), *(r.randint(2, 5) for _ in range(r.randint(0, 3))), 3]
    bias, layers = r.random() < 0.5, list[nn.Module]()
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b, bias=bias), activation(r)]
        if r.random() < 0.2:
            layers.insert(-1, nn.BatchNorm1d(b))
        if r.random() < 0.2:
            layers.append(Residual(nn.Sequential(nn.Linear(b, b), activation(r)), r.random() < 0.5))
    while not isinstance(layers[-1], nn.Linear | nn.BatchNorm1d):
        layers.pop()
    return nn.Sequential(*layers), (widths[0],)


def conv_net(r: random.Random) -> tuple[nn.Module, tuple[int, ...]]:
    shape = (r.randint(1, 2), 6, 7)
    layers: list[nn.Module] = []
    c = shape[0]
    if r.random() < 0.3:
        layers.append(Wrap(lambda self, x: (x - self.mean) / 0.3))
    for _ in range(r.randint(1, 2)):
        groups = r.choice([1, 1, c])
        wide = groups * r.randint(1, 2)
        k = r.choice([1, 2, 3])
        dilation = 2 if k == 2 and r.random() < 0.3 else 1
        layers.append(
            nn.Conv2d(
                c, wide, k, stride=r.choice([1, 2]), padding=r.choice([0, 1]), dilation=dilation,
                groups=groups, bias=r.random() < 0.5,
            )
        )  # fmt: skip
        c = wide
        if r.random() < 0.4:
            layers.append(nn.BatchNorm2d(c))
        layers.append(activation(r))
        if r.random() < 0.3:
            inner = nn.Sequential(nn.Conv2d(c, c, 3, padding=1), *([nn.BatchNorm2d(c)] if r.random() < 0.5 else []))
            layers += [Residual(inner, r.random() < 0.3), activation(r)]
        if r.random() < 0.2:
            layers.append(nn.ConvTranspose2d(c, 2, 2, stride=r.choice([1, 2]), padding=r.choice([0, 1])))
            c = 2
    tail = r.choice(["max", "avg", "none", "none", "pool"])
    if tail == "max":
        layers.append(nn.MaxPool2d(2, stride=1, padding=1))
    elif tail == "avg":
        layers.append(nn.AvgPool2d(2, stride=1, padding=1))
    elif tail == "pool":
        layers.append(nn.AdaptiveAvgPool2d(1))
    layers += [nn.Flatten()]
    out = nn.Sequential(*layers).eval()(torch.zeros(2, *shape)).shape[1]
    return nn.Sequential(*layers, nn.Linear(out, 3, bias=r.random() < 0.5)), shape


def network(r: random.Random) -> tuple[nn.Module, tuple[int, ...]]:
    while True:
        try:
            model, shape = (dense_net if r.random() < 0.5 else conv_net)(r)
            model.double().eval()(torch.zeros(2, *shape).double())
            return model, shape
        except (RuntimeError, UserWarning):  # the image became smaller than a kernel
            continue


def random_case(seed: int) -> tuple[nn.Module, Region, torch.Tensor]:
    """A random network with random statistics, and a random region: signed or not, mixed radii, biases, asymmetric boxes."""
    r = random.Random(seed)
    torch.manual_seed(seed)
    model, shape = network(r)
    model = model.double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.3, 2)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    signed = r.random() < 0.4
    x = torch.randn(2, *shape).double() if signed else torch.rand(2, *shape).double()
    eps_x, eps_w = r.choice([0.0, 0.01, 0.1, 0.5]), r.choice([0.0, 0.001, 0.02, 0.1, 0.3])
    domain = None if signed else (0.0, 1.0)
    params = dict(model.named_parameters())
    kind = r.choice(["weights", "all", "all", "mixed", "relative", "one"])
    if kind == "mixed":
        ball = JointBall(eps_x, {n: r.choice([0, eps_w, 2 * eps_w]) for n in params}, domain)
    elif kind == "one":
        ball = JointBall(eps_x, {r.choice(sorted(params)): 3 * eps_w}, domain)
    else:
        ball = JointBall(eps_x, eps_w, domain, moves="weights" if kind == "weights" else "all", relative=kind == "relative")
    y = torch.tensor([r.randrange(3), r.randrange(3)])
    where = region(model, x, y, ball)
    if r.random() < 0.3:  # any box around the weights, not only symmetric ones
        boxes = {n: Interval(params[n] - b * torch.rand_like(b), params[n] + b * torch.rand_like(b)) for n, b in radii(where)}
        where = Region(where.graph, where.x, {n: Interval(b.lo.detach(), b.hi.detach()) for n, b in boxes.items()})
    return model, where, y


def radii(where: Region):
    return [(n, (b.hi - b.lo) / 2) for n, b in where.boxes.items()]


@pytest.mark.parametrize("block", range(10))
def test_no_point_of_the_region_beats_a_bound(block):
    for seed in range(30 * block, 30 * (block + 1)):
        model, where, y = random_case(seed)
        try:
            check_sound(model, where, y, steps=2 if seed % 3 == 0 else 0)
        except AssertionError as e:
            raise AssertionError(f"network of seed {seed}: {e}") from e


@pytest.mark.slow
@pytest.mark.parametrize("block", range(50))
def test_no_point_of_the_region_beats_a_bound_at_length(block):
    for seed in range(100_000 + 60 * block, 100_000 + 60 * (block + 1)):
        model, where, y = random_case(seed)
        try:
            check_sound(model, where, y, steps=3)
        except AssertionError as e:
            raise AssertionError(f"network of seed {seed}: {e}") from e


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


class Shift(nn.Module):
    def __init__(self, shape) -> None:
        super().__init__()
        self.shift, self.scale = nn.Parameter(torch.randn(shape)), nn.Parameter(torch.randn(shape))

    def forward(self, x):
        return self.scale * (x + self.shift) - 0.1


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
    "dropout, identity": lambda: (nn.Sequential(nn.Linear(3, 3), nn.Dropout(), nn.Identity(), nn.ReLU(), nn.Linear(3, 3)), (3,)),
    "shift and scale": lambda: (nn.Sequential(nn.Linear(3, 4), Shift((4,)), nn.ReLU(), nn.Linear(4, 3)), (3,)),
    "shift and scale of channels": lambda: (flat(nn.Conv2d(1, 2, 2), Shift((2, 1, 1)), nn.ReLU(), out=18), (1, 4, 4)),
    "concat and constants": lambda: (Wrap(shortcut, nn.Linear(3, 4), nn.Linear(7, 3)), (3,)),
    "functional": lambda: (Wrap(functional, nn.Conv1d(1, 2, 3), nn.Linear(6, 3)), (6,)),
    "in place": lambda: (Wrap(in_place, nn.Linear(3, 3), nn.Linear(3, 3)), (3,)),
    "tied": lambda: (Wrap(tied, nn.Linear(3, 3), nn.Linear(3, 3)), (3,)),
    "residual": lambda: (nn.Sequential(nn.Linear(3, 3), Residual(nn.Sequential(nn.ReLU(), nn.Linear(3, 3)), True)), (3,)),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator_is_bounded_and_exact_at_radius_zero(name):
    for seed in range(6):
        torch.manual_seed(seed)
        model, shape = OPERATORS[name]()
        model = model.double().eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                nn.init.normal_(module.running_mean)
                nn.init.uniform_(module.running_var, 0.3, 2)
        x, y = torch.randn(2, *shape).double(), torch.tensor([0, 2])
        torch.testing.assert_close(trace_graph(model, shape)(x), model(x))
        ball = JointBall((0.0, 0.1, 0.5)[seed % 3], (0.02, 0.2)[seed % 2], None, moves="all")
        check_sound(model, region(model, x, y, ball), y)
        for bound in BOUNDS.values():
            torch.testing.assert_close(bound(model, x, y, JointBall(0, 0, None)), margins(model(x), y).detach())


@pytest.mark.parametrize("seed", range(12))
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


@pytest.mark.parametrize("seed", range(7))
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


@pytest.mark.parametrize("seed", range(5))
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


@pytest.mark.parametrize("seed", range(5))
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


@pytest.mark.parametrize("seed", range(6))
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
        assert (low[undecided] >= one[undecided]).all()
        assert (worst_margin(low, y) > 0)[worst_margin(one, y) > 0].all()


def test_best_uses_the_bounds_that_know_the_model():
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU6(), nn.Linear(4, 3, bias=False)).double()
    x, y = torch.rand(2, 3).double(), torch.tensor([0, 1])
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
            shallow = alpha_crown(model, x, y, ball)
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
    "softmax at node": lambda: Wrap(lambda self, x: torch.softmax(self.inside[0](x), 1), nn.Linear(3, 3)),
    "GELU|gelu at node": lambda: nn.Sequential(nn.Linear(3, 3), nn.GELU(), nn.Linear(3, 3)),
    "mul at node 'mul'": lambda: Wrap(lambda self, x: self.inside[0](x * x), nn.Linear(3, 3)),
    "works in place on": lambda: Wrap(reused_in_place, nn.Linear(3, 3), nn.Linear(3, 3)),
    "do not give the model's outputs|in place": lambda: Wrap(reused_view_in_place, nn.Linear(3, 3), nn.Linear(3, 3)),
    "mean at node": lambda: Wrap(lambda self, x: self.inside[0](x - x.mean(dim=0)), nn.Linear(3, 3)),
    "linear at node": lambda: Wrap(lambda self, x: F.linear(x, self.inside[0].weight * 2), nn.Linear(3, 3)),
    "sub at node": lambda: Wrap(lambda self, x: self.inside[0](x - self.inside[0].bias), nn.Linear(3, 3)),
    "does not return one": lambda: Wrap(lambda self, x: x[0], nn.Linear(3, 3)),
    "__getitem__|getitem at node": lambda: Wrap(lambda self, x: self.inside[0](x[:, :3]), nn.Linear(3, 3)),
    "flip at node": lambda: Wrap(lambda self, x: self.inside[0](x.flip(0)), nn.Linear(3, 3)),
    "statistics of the batch": lambda: nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False), nn.Linear(3, 3)),
    "forward hooks": lambda: hooked(nn.Linear(3, 3)),
    "pow at node": lambda: Wrap(lambda self, x: self.inside[0](x**2), nn.Linear(3, 3)),
}


def hooked(model: nn.Module) -> nn.Module:
    model.register_forward_hook(lambda module, inputs, output: output + 1)
    return model


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


def test_a_parameter_that_widens_the_signal_is_refused():
    model = nn.Sequential(nn.Linear(3, 1), Shift((3,))).eval()
    with pytest.raises(UnsupportedModel, match="changes the shape"):
        crown(model, torch.rand(2, 3), torch.tensor([0, 1]), JointBall(0.1, 0.1, moves="all"))


def test_train_mode_is_refused():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    with pytest.raises(InvalidInput, match="in train mode"):
        interval(model, torch.rand(2, 3), torch.tensor([0, 1]), JointBall(0.1, 0.1))


@pytest.mark.parametrize("kind", ["hinge", "s-shaped"])
def test_lines_enclose_the_activation(kind):
    from nonsingular.bounds.activations import lines

    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 500, generator=generator, dtype=torch.float64) * torch.tensor([[1.0], [3.0]])
    box = Interval(torch.minimum(a, b), torch.maximum(a, b))
    forms = [nn.ReLU(), nn.LeakyReLU(0.2)] if kind == "hinge" else [nn.Sigmoid(), nn.Tanh()]
    for form in forms:
        node = trace_graph(nn.Sequential(nn.Flatten(), form), (3,)).nodes[-1]
        found = lines(node, box, lambda start: start)
        lower, below, upper, above = (t.reshape(-1, 500)[0] for t in (found.lower, found.below, found.upper, found.above))
        for t in torch.linspace(0, 1, 51).double():
            z = torch.lerp(box.lo, box.hi, t)
            assert (lower * z + below <= form(z) + 1e-12).all()
            assert (upper * z + above >= form(z) - 1e-12).all()


def test_interval_of_a_node_is_exact_for_products_of_both_signs():
    """w in [-1, 3], z in [-2, 1]: the corners are 2, -1, -6, 3."""
    model = nn.Linear(1, 2, bias=False).double()
    with torch.no_grad():
        model.weight.fill_(1.0)
    where = region(model, torch.full((1, 1), -0.5).double(), torch.tensor([0]), JointBall(1.5, 2.0, None))
    box = propagate(where.graph.nodes[1], where, [where.x])
    assert (box.lo[0, 0], box.hi[0, 0]) == (-6.0, 3.0)
