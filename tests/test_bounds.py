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
from nonsingular.bounds.best import CHEAPEST_FIRST, best
from nonsingular.bounds.interval import Region, interval, interval_bounds, interval_margins, propagate, region
from nonsingular.bounds.linear import _ascend, alpha_crown, crown, crown_ibp, hidden_bounds, margin_bounds
from nonsingular.errors import InvalidInput, UnsupportedModel
from nonsingular.graph import logits_at, trace_graph, twin
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
        found["alpha-crown"] = _ascend(where, y, steps, 0.2)
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
        layers.append(
            nn.Conv2d(
                c, wide, k, stride=r.choice([1, 2]), padding=r.choice([0, 1]), dilation=r.choice([1, 1, 2]) if k == 2 and len(layers) < 2 else 1,
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
            return (dense_net if r.random() < 0.5 else conv_net)(r)
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
