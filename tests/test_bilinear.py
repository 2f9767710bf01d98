"""Products of two signals and what is made of them: hand numbers, fine grids, radius zero, and brute force on every operator."""

from __future__ import annotations

import copy
import itertools
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nonsingular as ns
from nonsingular.bounds.activations import lines
from nonsingular.bounds.alpha import alpha_crown
from nonsingular.bounds.bilinear import bilinear_range, through_bilinear
from nonsingular.bounds.interval import curve_range, interval, interval_bounds, region
from nonsingular.bounds.linear import crown, crown_ibp, hidden_bounds
from nonsingular.bounds.rounding import rounding
from nonsingular.errors import UnsupportedModel
from nonsingular.network import curves, memory
from nonsingular.network.calling import logits_at
from nonsingular.network.graph import trace_graph
from nonsingular.network.margins import attained, margins
from nonsingular.network.nodes import Activation, Bilinear
from nonsingular.threat.ball import JointBall
from nonsingular.threat.interval import Interval
from sampling import first
from soundness import Wrap, check_sound

BOUNDS = {"interval": interval, "crown-ibp": crown_ibp, "crown": crown, "alpha-crown": partial(alpha_crown, steps=2)}
INF = math.inf


def box(*ends: tuple[float, float]) -> Interval:
    """One example of as many elements as there are pairs of ends."""
    lo, hi = torch.tensor(ends, dtype=torch.float64).T
    return Interval(lo[None], hi[None])


def node_of(f, *shapes: tuple[int, ...]) -> Bilinear:
    """The node of a product of parts of an input, of these shapes."""
    sizes = [math.prod(shape) for shape in shapes]

    def forward(self, x):
        return f(*(t.reshape(len(x), *shape) for t, shape in zip(x.split(sizes, 1), shapes, strict=True))).flatten(1)

    return next(n for n in trace_graph(Wrap(forward).double().eval(), (sum(sizes),)).nodes if isinstance(n, Bilinear))


# --- curves ------------------------------------------------------------------------------------------------------------------

CURVES = {
    "exp": (torch.exp, curves.EXP, -4.0, 3.0), "log": (torch.log, curves.LOG, 1e-3, 5.0),
    "sqrt": (torch.sqrt, curves.SQRT, 0.0, 5.0), "rsqrt": (torch.rsqrt, curves.RSQRT, 1e-3, 5.0),
    "reciprocal": (torch.reciprocal, curves.RECIPROCAL, 1e-2, 5.0), "below 0": (torch.reciprocal, curves.RECIPROCAL, -5.0, -1e-2),
    **{f"power {n}": (lambda z, n=n: z**n, curves.power(n), -2.0, 2.0) for n in range(2, 9)},
}  # fmt: skip


@pytest.mark.parametrize("name", CURVES)
def test_lines_enclose_a_curve_on_a_fine_grid(name):
    rho, curve, least, most = CURVES[name]
    generator = torch.Generator().manual_seed(0)
    ends = torch.rand(2, 400, generator=generator, dtype=torch.float64) ** 3
    ends[1, :100] = (ends[0, :100] + 10 ** -(14 * ends[1, :100])).clamp(max=1)  # narrow ones too
    lo, hi = (least + (most - least) * ends).sort(0).values
    lo[:3], hi[:3] = torch.tensor([least, most, least]), torch.tensor([least, most, most])
    z = Interval(lo[None], hi[None])
    found = lines(Activation("", (), (400,), rho, "smooth", curve=curve), z, lambda s: s)
    reached = curve_range(rho, curve, z)
    for t in torch.linspace(0, 1, 501, dtype=torch.float64):
        at = torch.lerp(lo, hi, t).clamp(lo, hi)[None]
        y = rho(at)
        slack = 1e-12 * (1 + y.abs() + found.lower.abs() * at.abs() + found.upper.abs() * at.abs())
        assert (found.lower * at + found.below <= y + slack).all()
        assert (found.upper * at + found.above >= y - slack).all()
        assert ((reached.lo <= y + slack) & (y <= reached.hi + slack)).all()
    ends = torch.minimum(rho(lo), rho(hi)), torch.maximum(rho(lo), rho(hi))
    inside = torch.where((lo < 0) & (hi > 0) & (curve.bottom == 0), 0.0, ends[0])
    torch.testing.assert_close(reached.lo[0], inside)
    torch.testing.assert_close(reached.hi[0], ends[1])


@pytest.mark.parametrize("name", ["log", "sqrt", "rsqrt", "reciprocal", "below 0"])
def test_boxes_at_the_edge_of_a_domain_and_beyond(name):
    """Level lines at the ends of the range where slopes are too large for the arithmetic; nothing is known outside."""
    rho, curve, least, _ = CURVES[name]
    sign = -1 if least < 0 else 1
    lo = torch.tensor([1e-30, 1e-20, 1e-14, 1e-10, 1e-6, -1e-9, -1.0, -INF]).double()
    hi = torch.tensor([1e-25, 2e-20, 1e-13, 1.0, 1e-5, 1e-9, 1.0, 0.5]).double()
    lo, hi = torch.minimum(sign * lo, sign * hi), torch.maximum(sign * lo, sign * hi)
    z = Interval(lo[None], hi[None])
    found, reached = lines(Activation("", (), (8,), rho, "smooth", curve=curve), z, lambda s: s), curve_range(rho, curve, z)
    assert (reached.lo[0, 5:] == -INF).all() and (reached.hi[0, 5:] == INF).all()
    assert (found.below[0, 5:] == -INF).all() and (found.above[0, 5:] == INF).all()
    assert (found.lower[0, 5:] == 0).all() and (found.upper[0, 5:] == 0).all()
    for t in torch.linspace(0, 1, 101, dtype=torch.float64):
        at = torch.lerp(lo, hi, t).clamp(lo, hi)[None, :5]
        y, line = rho(at), found.lower[:, :5] * at + found.below[:, :5]
        slack = 1e-12 * (y.abs() + line.abs())
        assert (line <= y + slack).all()
        assert (found.upper[:, :5] * at + found.above[:, :5] >= y - slack).all()


def test_lines_of_curves_by_hand():
    z = box((1.0, 4.0))
    root = lines(Activation("", (), (1,), torch.sqrt, "smooth", curve=curves.SQRT), z, lambda s: s)
    # chord through (1, 1) and (4, 2); tangent at 5/2: slope 1 / (2 sqrt 2.5)
    torch.testing.assert_close(torch.cat([root.lower, root.below]).T[0].tolist(), [1 / 3, 2 / 3])
    torch.testing.assert_close(root.upper.item(), 0.5 / 2.5**0.5)
    torch.testing.assert_close(root.above.item(), 2.5**0.5 / 2)
    inverse = lines(Activation("", (), (1,), torch.reciprocal, "smooth", curve=curves.RECIPROCAL), z, lambda s: s)
    # chord from 1 to 1/4: slope -1/4, at 0: 5/4; tangent at 5/2: slope -4/25, at 0: 4/5
    found = torch.cat([inverse.upper, inverse.above, inverse.lower, inverse.below]).T[0].tolist()
    torch.testing.assert_close(found, [-1 / 4, 5 / 4, -4 / 25, 4 / 5])


@pytest.mark.parametrize("text", ["z.log()", "z.sqrt()", "z.rsqrt()", "z.reciprocal()", "1 / z", "z**-0.5", "torch.log1p(z - 1)"])
def test_a_box_outside_of_the_domain_certifies_nothing(text):
    """Its margins are minus infinity, those of other examples in the batch what they are alone; nothing is NaN."""
    torch.manual_seed(0)
    f, last = eval(f"lambda z: {text}", {"torch": torch}), nn.Linear(3, 3)
    model = Wrap(lambda self, x: self.inside[0](f(x)), last).double().eval()
    x, y = torch.tensor([[0.5, 1.0, 2.0], [0.05, 1.0, 2.0], [1.0, 1.5, 2.5]]).double(), torch.tensor([0, 1, 2])
    ball = JointBall(0.1, 0.01, None, moves="all")
    other = torch.arange(3) != y[:, None]
    for name, bound in BOUNDS.items():
        low = bound(model, x, y, ball)
        assert (low[1][other[1]] == -INF).all(), name
        assert torch.isfinite(low[[0, 2]]).all(), name
        torch.testing.assert_close(low[[0, 2]], bound(model, x[[0, 2]], y[[0, 2]], ball))
    for name in ("best", "branch-and-bound"):
        assert not ns.certify(model, x, y, ball, bound=name).verified[1]
    assert ns.decide(model, x, y, ball, parts=5).status[1] != "verified"


@pytest.mark.parametrize("deep", [False, True])
def test_what_overflows_certifies_nothing(deep):
    layers = [nn.Linear(2, 2), Wrap(lambda self, x: torch.exp(300 * x))] * (1 + deep)
    model = nn.Sequential(*layers, Wrap(lambda self, x: x - x.flip(1)), nn.Linear(2, 3)).double().eval()
    x, y = torch.rand(2, 2).double(), torch.tensor([0, 1])
    for bound in BOUNDS.values():
        low = bound(model, x, y, JointBall(5.0, 0.5, None))
        assert not torch.isnan(low).any() and not (low == INF).any()
        assert not (low[torch.arange(3) != y[:, None]] > 0).any()


# --- products ----------------------------------------------------------------------------------------------------------------


def test_a_product_of_two_intervals_by_hand():
    """a in [-1, 2], b in [-3, 5]: corners 3, -5, -6, 10.  In the middle m = 1/2, m' = 1, r = 3/2, r' = 4: -m m' -+ r r'."""
    node, a, b = node_of(torch.mul, (1,), (1,)), box((-1, 2)), box((-3, 5))
    found = bilinear_range(node, a, b)
    assert (found.lo.item(), found.hi.item()) == (-6.0, 10.0)
    (of_a, of_b), offset = through_bilinear(node, a, b, torch.ones(1, 1, 1).double())
    assert (of_a.item(), of_b.item(), offset.item()) == (1.0, 0.5, -0.5 - 6.0)
    (of_a, of_b), offset = through_bilinear(node, a, b, -torch.ones(1, 1, 1).double())
    assert (of_a.item(), of_b.item(), offset.item()) == (-1.0, -0.5, 0.5 - 6.0)


NODES = {
    "product": (torch.mul, (2,), (2,)),
    "spread": (torch.mul, (2, 1), (1, 2)),
    "matmul": (torch.matmul, (2, 3), (3, 2)),
    "matmul, spread": (torch.matmul, (1, 2, 3), (2, 3, 1)),
    "bmm": (torch.bmm, (1, 4), (4, 2)),
    "einsum": (lambda a, b: torch.einsum("nijk,nkhi->nhj", a, b), (2, 3, 2), (2, 2, 2)),
    "einsum, outer": (lambda a, b: torch.einsum("ni,nj->nji", a, b), (2,), (3,)),
    "einsum, one summed alone": (lambda a, b: torch.einsum("nij,nk->nk", a, b), (2, 2), (3,)),
}


@pytest.mark.parametrize("name", NODES)
@pytest.mark.parametrize("shares", [None, 1, 3], ids=["half", "shared", "own"])
def test_products_lie_between_their_planes_and_reach_the_ends_of_their_box(name, shares):
    f, *shapes = NODES[name]
    node, generator = node_of(f, *shapes), torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    for _ in range(20):
        a, b = (Interval(c - r, c + r) for s in shapes for c, r in [(random(2, *s), random(2, *s).abs())])
        found, A = bilinear_range(node, a, b), random(3, 2, *node.shape)
        share = shares and random(shares, 2, 2, *node.shape).mul(2).clamp(0, 1)
        (of_a, of_b), offset = through_bilinear(node, a, b, A, share)
        if share is not None:
            half = through_bilinear(node, a, b, A, torch.full_like(share, 0.5))
            for t, u in zip((*half[0], half[1]), (*(o := through_bilinear(node, a, b, A))[0], o[1]), strict=True):
                torch.testing.assert_close(t, u)
        reached = found.hi.new_full((2, *node.shape), INF), found.hi.new_full((2, *node.shape), -INF)
        for k in range(150):
            p, q = (torch.rand(t.lo.shape, generator=generator, dtype=torch.float64) for t in (a, b))
            p, q = (p.round(), q.round()) if k % 2 else (p, q)
            z, w = torch.lerp(a.lo, a.hi, p), torch.lerp(b.lo, b.hi, q)
            y = f(z, w)
            assert ((found.lo <= y + 1e-12) & (y <= found.hi + 1e-12)).all()
            line = (of_a * z).flatten(2).sum(2) + (of_b * w).flatten(2).sum(2) + offset
            assert (line <= (A * y).flatten(2).sum(2) + 1e-12).all()
            reached = torch.minimum(reached[0], y), torch.maximum(reached[1], y)
        if all(math.prod(s) <= 2 for s in shapes):
            torch.testing.assert_close(reached[0], found.lo)
            torch.testing.assert_close(reached[1], found.hi)


def test_a_product_of_two_signals_is_not_one_linear_function():
    """a b over a in [0, 2], b in [-1.5, 0.5]: its upper bound is not minus the lower bound of the same function."""

    class Products(nn.Module):
        def forward(self, x):
            return x[:, :1] * x[:, 1:]

    model = nn.Sequential(Products(), nn.ReLU(), nn.Linear(1, 2)).double().eval()
    x = torch.tensor([[1.0, -0.5]]).double()
    where = region(model, x, torch.tensor([0]), JointBall(1.0, 0.0, None))
    number = next(i for i, node in enumerate(where.graph.nodes) if isinstance(node, Bilinear))
    found = hidden_bounds(where)[number]
    assert (found.lo.item(), found.hi.item()) == (-3, 1)


def test_a_square_knows_that_its_factors_are_one_signal():
    """x x on [-1, 2] is in [0, 4], where two signals would be in [-2, 4]."""
    model = Wrap(lambda self, x: torch.cat([x * x, x * 0], 1)).double().eval()
    low = interval(model, torch.full((1, 1), 0.5).double(), torch.tensor([0]), JointBall(1.5, 0.0, None))
    assert low[0, 1] == 0
    assert crown(model, torch.full((1, 1), 0.5).double(), torch.tensor([1]), JointBall(1.5, 0.0, None))[0, 0] == -4


# --- every operator ----------------------------------------------------------------------------------------------------------

FORWARDS = {
    "exp": lambda a, b: torch.exp(a),
    "expm1": lambda a, b: torch.expm1(a),
    "square": lambda a, b: a**2,
    "cube": lambda a, b: a**3,
    "fourth power": lambda a, b: a.pow(4),
    "one over a square": lambda a, b: 1 / (0.5 + a.square()),
    "over a negative signal": lambda a, b: b / (-0.5 - a.square()),
    "root of a square": lambda a, b: (a * a).sqrt(),
    "rsqrt": lambda a, b: torch.rsqrt(a**2 + 0.1),
    "root by power": lambda a, b: (a**2 + 0.1) ** -0.5 + (a**2 + 0.1) ** 0.5,
    "log": lambda a, b: (a**2 + 0.1).log() + torch.log1p(b.exp()),
    "product": lambda a, b: a * b,
    "product, spread": lambda a, b: a * b[:, :1] + a[:, 1:2].mul(b),
    "silu": lambda a, b: b * torch.sigmoid(b),
    "in place": lambda a, b: a.mul_(b),
    "quotient": lambda a, b: b / (1 + a.sigmoid()),
    "outer": lambda a, b: torch.einsum("bi,bj->bij", a, b).sum(2),
    "einsum": lambda a, b: torch.einsum("nik,njk->nji", a[:, :, None] * b[:, None], b[:, None].expand(-1, 2, -1)).sum(1),
    "matmul": lambda a, b: (a[:, :, None] @ b[:, None]).mean(1),
    "bmm": lambda a, b: torch.bmm(a[:, None].expand(-1, 2, -1), b[:, :, None].expand(-1, -1, 3)).sum(1),
    "scalars": lambda a, b: (a.sum(1).exp() * b.sum(1) / (2 + a[:, 0].tanh()))[:, None].expand(-1, 3),
    "glu": lambda a, b: F.glu(torch.cat([a, b], 1)),
    "softmax": lambda a, b: torch.softmax(a, 1),
    "softmax of channels": lambda a, b: torch.stack([a, b, a * b], 1).softmax(1).flatten(1)[:, 2:5],
    "softmax of the classes, reused": lambda a, b: a.softmax(1) * b + a.softmax(1)[:, :1].log(),
    "log softmax": lambda a, b: F.log_softmax(a, 1) + F.softmin(b, -1),
    "softmax of one": lambda a, b: b * a[:, :1].softmax(1),
    "layer norm": lambda a, b: F.layer_norm(a, (3,)),
    "layer norm, wide eps": lambda a, b: F.layer_norm(torch.stack([a, b], 1), (2, 3), eps=0.5)[:, 1],
    "rms norm": lambda a, b: F.rms_norm(a, (3,), eps=1e-3),
    "group norm": lambda a, b: F.group_norm(torch.stack([a, b, a + b, b - 1], 1), 2, eps=0.1)[:, 1],
    "instance norm": lambda a, b: F.instance_norm(torch.stack([a, b], 1), eps=0.1)[:, 0],
    "attention": lambda a, b: F.scaled_dot_product_attention(*(t[:, :, None] * b[:, None] for t in (a, b, a))).mean(1),
    "attention, causal": lambda a, b: F.scaled_dot_product_attention(
        *(t[:, :, None] * b[:, None] for t in (a, b, a)), is_causal=True
    )[:, 1],
    "attention, masked": lambda a, b: F.scaled_dot_product_attention(
        *(t[:, None, :, None] * b[:, None, None] for t in (a, b, a)), attn_mask=torch.tensor([[0.3, -INF, 1.0]] * 3), scale=0.5
    )[:, 0, 1],
    "glu of channels": lambda a, b: F.glu(torch.stack([a, b], 1), 1)[:, 0],
}


def of(name: str) -> nn.Module:
    f = FORWARDS[name]
    return Wrap(lambda self, x: self.inside[1](f(self.inside[0](x), x)), nn.Linear(3, 3), nn.Linear(3, 3)).double().eval()


class Layers(nn.Module):
    """Layers by name, and a forward of (self, x (N, 2, 3)) to (N, any)."""

    def __init__(self, forward, **layers: nn.Module) -> None:
        super().__init__()
        self.inside, self.run = nn.ModuleDict(layers), forward
        width = forward(self.inside, torch.zeros(2, 2, 3)).flatten(1).shape[1]
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.run(self.inside, x).flatten(1))


def squeezed(m, x: Tensor) -> Tensor:
    """Squeeze-and-excitation: channels times a gate computed from their means."""
    h = m["enter"](x)
    return h * torch.sigmoid(m["up"](F.relu(m["down"](h.mean(2)))))[:, :, None]


def vision(m, x: Tensor) -> Tensor:
    """A block of a vision transformer as timm writes it: queries, keys and values cut from one linear map."""
    h = m["enter"](x)
    q, k, v = m["qkv"](m["norm"](h)).reshape(len(h), 2, 3, 2, 2).permute(2, 0, 3, 1, 4).unbind(0)
    scores = (q * 0.7) @ k.transpose(-2, -1)
    h = h + m["out"]((scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(len(h), 2, 4))
    return h + m["last"](F.gelu(m["mlp"](m["norm 2"](h))))


def recurrent(kind: type, **options):
    return lambda: Layers(lambda m, x: m["cell"](x)[0], cell=kind(3, 2, batch_first=True, **options))


LAYERS = {
    "layer norm": lambda: Layers(lambda m, x: m["norm"](m["enter"](x)), enter=nn.Linear(3, 4), norm=nn.LayerNorm(4, 0.1)),
    "layer norm of all": lambda: Layers(lambda m, x: F.relu(m["norm"](x)), norm=nn.LayerNorm((2, 3), 0.1)),
    "rms norm": lambda: Layers(lambda m, x: m["norm"](m["enter"](x)), enter=nn.Linear(3, 4), norm=nn.RMSNorm(4, 0.1)),
    "group norm": lambda: Layers(lambda m, x: m["norm"](m["conv"](x)), conv=nn.Conv1d(2, 4, 2), norm=nn.GroupNorm(2, 4, 0.1)),
    "instance norm": lambda: Layers(
        lambda m, x: m["norm"](m["conv"](x)), conv=nn.Conv1d(2, 2, 1), norm=nn.InstanceNorm1d(2, 0.1, affine=True)
    ),
    "squeeze and excitation": lambda: Layers(squeezed, enter=nn.Conv1d(2, 4, 2), down=nn.Linear(4, 2), up=nn.Linear(2, 4)),
    "attention": lambda: Layers(
        lambda m, x: m["a"](*[m["e"](x)] * 3)[0], e=nn.Linear(3, 4), a=nn.MultiheadAttention(4, 2, batch_first=True)
    ),
    "attention across": lambda: Layers(
        lambda m, x: m["a"](x[:, :1], x, x[:, 1:].expand(-1, 2, -1), need_weights=False)[0],
        a=nn.MultiheadAttention(3, 1, batch_first=True, bias=False),
    ),
    "attention, its weights": lambda: Layers(lambda m, x: m["a"](x, x, x)[1], a=nn.MultiheadAttention(3, 3, batch_first=True)),
    "attention, batch second": lambda: Layers(
        lambda m, x: m["a"](*[x.transpose(0, 1)] * 3, need_weights=False)[0].transpose(0, 1), a=nn.MultiheadAttention(3, 1)
    ),
    "attention, sizes of their own": lambda: Layers(
        lambda m, x: m["a"](x, x[..., :2], x[..., 1:])[0], a=nn.MultiheadAttention(3, 1, kdim=2, vdim=2, batch_first=True)
    ),
    "attention, masked": lambda: Layers(
        lambda m, x: m["a"](x, x, x, attn_mask=torch.tensor([[False, True], [False, False]]))[0],
        a=nn.MultiheadAttention(3, 1, batch_first=True),
    ),
    "vision transformer": lambda: Layers(
        vision, enter=nn.Linear(3, 4), qkv=nn.Linear(4, 12), out=nn.Linear(4, 4), mlp=nn.Linear(4, 3), last=nn.Linear(3, 4),
        norm=nn.LayerNorm(4, 0.1), **{"norm 2": nn.LayerNorm(4, 0.1)},
    ),
    "encoder": lambda: Layers(
        lambda m, x: m["e"](x), e=nn.TransformerEncoderLayer(3, 1, 4, 0.0, batch_first=True, norm_first=True)
    ),
    "lstm": recurrent(nn.LSTM),
    "lstm, two layers, both ways": recurrent(nn.LSTM, num_layers=2, bidirectional=True),
    "lstm, projected, without biases": recurrent(nn.LSTM, proj_size=1, bias=False),
    "gru": recurrent(nn.GRU),
    "gru, without biases": recurrent(nn.GRU, bias=False, bidirectional=True),
    "rnn": recurrent(nn.RNN, nonlinearity="relu"),
    "lstm, its last state": lambda: Layers(lambda m, x: m["cell"](x)[1][1][-1], cell=nn.LSTM(3, 2, batch_first=True)),
    "gru, its last state, time first": lambda: Layers(lambda m, x: m["cell"](x.transpose(0, 1))[1][0], cell=nn.GRU(3, 2)),
    "lstm cell": lambda: Layers(lambda m, x: m["c"](x[:, 1], m["c"](x[:, 0]))[0], c=nn.LSTMCell(3, 2)),
    "gru cell": lambda: Layers(lambda m, x: m["c"](x[:, 1], m["c"](x[:, 0])), c=nn.GRUCell(3, 2)),
    "rnn cell": lambda: Layers(lambda m, x: m["c"](x[:, 1], m["c"](x[:, 0])), c=nn.RNNCell(3, 2)),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("seed", first(1, [1, 0, 2]))
@pytest.mark.parametrize("name", LAYERS)
def test_no_point_of_a_region_beats_a_bound_of_a_layer(name, seed):
    """Every parameter moves, also scales, shifts and what projects queries, keys and values."""
    torch.manual_seed(seed)
    model = LAYERS[name]().double().eval()
    x, y = torch.randn(2, 2, 3).double(), torch.tensor([0, 2])
    check_operator(model, x, y, seed)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("seed", first(1, [1, 0, 2]))
@pytest.mark.parametrize("name", FORWARDS)
def test_no_point_of_a_region_beats_a_bound(name, seed):
    torch.manual_seed(seed)
    model = of(name)
    x, y = torch.randn(2, 3).double(), torch.tensor([0, 2])
    check_operator(model, x, y, seed)


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn", "lstm cell"])
def test_layers_that_vmap_does_not_know_are_decided(name):
    torch.manual_seed(0)
    model = LAYERS[name]().double().eval()
    x = torch.randn(1, 2, 3).double()
    y = model(x).argmax(1)
    small, large = JointBall(1e-3, 1e-3, None), JointBall(2.0, 2.0, None)
    at_x = ns.decide(model, x, y, small)
    assert at_x.status == ("verified",)
    assert ns.certify_shared(model, x, y, small).broken == 0
    found = ns.decide(model, x, y, large)
    assert found.upper < at_x.upper - 0.1  # the gradient of each example has led somewhere
    torch.testing.assert_close(attained(logits_at(model, found.perturbation), y), found.upper)


def from_zeros(m, x):
    h, c = x.new_zeros(len(x), 2), torch.zeros(len(x), 2, dtype=x.dtype)
    for t in range(2):
        h, c = m["c"](x[:, t], (h, c))
    return h


STARTS = {
    "lstm cell": lambda: Layers(from_zeros, c=nn.LSTMCell(3, 2)),
    "gru cell": lambda: Layers(lambda m, x: m["c"](x[:, 0], x.new_zeros(len(x), 2)), c=nn.GRUCell(3, 2)),
}


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", STARTS)
def test_a_first_state_of_zeros_is_none(name):
    torch.manual_seed(0)
    model = STARTS[name]().double().eval()
    x, y = torch.randn(2, 2, 3).double(), torch.tensor([0, 2])
    for seed in (1, 2):
        check_operator(model, x, y, seed)


def test_zeros_that_are_given_to_a_layer_are_none_and_other_first_states_are_refused():
    torch.manual_seed(0)
    x, y = torch.randn(2, 2, 3).double(), torch.tensor([0, 2])
    for value, known in ((0.0, True), (0.1, False)):
        layer = nn.LSTM(3, 2, batch_first=True)
        model = Layers(lambda m, x, v=value: m["c"](x, (x.new_full((1, len(x), 2), v),) * 2)[0][:, -1], c=layer).double().eval()
        if known:
            torch.testing.assert_close(trace_graph(model, (2, 3))(x), model(x))
            plain = copy.deepcopy(model)
            plain.run = lambda m, x: m["c"](x)[0][:, -1]
            assert torch.equal(*(crown(net, x, y, JointBall(0.05, 0.01, None, moves="all")) for net in (model, plain)))
        else:
            with pytest.raises(UnsupportedModel, match="lstm"):
                trace_graph(model, (2, 3))
    dead = Layers(lambda m, x: m["c"](x[:, 1], F.relu(x[:, 0, :2] - 50)), c=nn.GRUCell(3, 2)).double().eval()  # not always 0
    wide = JointBall(100.0, 0.0, None)
    assert (interval(dead, x, y, wide) < interval(dead, x, y, JointBall(1.0, 0.0, None)) - 1e-3).any()
    check_sound(dead, region(dead, x, y, wide), y)


def check_operator(model: nn.Module, x: Tensor, y: Tensor, seed: int) -> None:
    torch.testing.assert_close(trace_graph(model, x.shape[1:])(x), model(x))
    check_sound(model, region(model, x, y, JointBall((0.0, 0.1, 0.3)[seed % 3], (0.02, 0.1)[seed % 2], None, moves="all")), y)
    exact = margins(model(x), y).detach()
    for bound in BOUNDS.values():
        torch.testing.assert_close(bound(model, x, y, JointBall(0, 0, None)), exact, rtol=1e-9, atol=1e-9)
    # for small radii a relaxation is exact to first order: half the radius leaves about half the loss
    small, half = (exact - crown(model, x, y, JointBall(r, r, None)) for r in (2e-5, 1e-5))
    assert (half <= 0.75 * small + 1e-9).all()


@pytest.mark.parametrize("name", ["product", "matmul", "softmax", "layer norm", "log"])
def test_no_examples_have_no_bounds(name):
    for bound in BOUNDS.values():
        assert bound(of(name), torch.rand(0, 3).double(), torch.zeros(0).long(), JointBall(0.1, 0.1)).shape == (0, 3)


def test_a_sum_of_too_many_products_is_bounded_around_its_middle(monkeypatch):
    node, generator = node_of(*NODES["matmul"]), torch.Generator().manual_seed(0)
    ends = torch.randn(2, 2, 1, 6, generator=generator).double().sort(0).values
    a, b = (Interval(*t.view(2, 1, *s)) for t, s in zip(ends.unbind(1), NODES["matmul"][1:], strict=True))
    exact = bilinear_range(node, a, b)
    monkeypatch.setattr(memory, "BUDGET", 8)
    wide = bilinear_range(node, a, b)
    assert ((wide.lo <= exact.lo) & (exact.hi <= wide.hi)).all()
    assert (wide.lo < exact.lo).any()
    point = Interval(a.lo, a.lo)
    torch.testing.assert_close(bilinear_range(node, point, b).lo, torch.minimum(*_two(a.lo, b)))


def _two(a: Tensor, b: Interval) -> tuple[Tensor, Tensor]:
    """The least sums of products with a point, written out."""
    least = torch.minimum(a[..., None] * b.lo[:, None], a[..., None] * b.hi[:, None]).sum(2)
    return least, least


@pytest.mark.parametrize("name", ["product", "matmul", "square", "rsqrt"])
def test_bounds_lie_below_a_fine_grid(name):
    """Three inputs."""
    torch.manual_seed(1)
    model, x, y = of(name), torch.randn(1, 3).double(), torch.tensor([0])
    at = torch.cartesian_prod(*[torch.linspace(-0.3, 0.3, 25, dtype=torch.float64)] * 3)
    worst = margins(model(x + at), y.expand(len(at))).detach().amin(0)
    for bound in BOUNDS.values():
        low = bound(model, x, y, JointBall(0.3, 0.0, None))[0]
        assert (low <= worst + 1e-12).all()


# --- compositions by hand ------------------------------------------------------------------------------------------------------


def boxes_of(f, x: Tensor, eps: float) -> Interval:
    """Of the last signal, by intervals."""
    model = Wrap(lambda self, x: f(x)).double().eval()
    return interval_bounds(region(model, x, torch.zeros(len(x)).long(), JointBall(eps, 0.0, None)))[-1]


def test_softmax_of_two_logits_by_hand():
    """p_1 = 1 / (1 + e^(x_2 - x_1)) with x_2 - x_1 in [1 - 0.4, 1 + 0.4]: both ends are reached, and p_1 + p_2 = 1."""
    found = boxes_of(lambda x: x.softmax(1) * 1, torch.tensor([[0.0, 1.0]]).double(), 0.2)
    low, high = 1 / (1 + math.exp(1.4)), 1 / (1 + math.exp(0.6))
    torch.testing.assert_close(found.lo, torch.tensor([[low, 1 - high]]).double())
    torch.testing.assert_close(found.hi, torch.tensor([[high, 1 - low]]).double())


def test_layer_norm_of_two_numbers_by_hand():
    """c = ((a - b) / 2, (b - a) / 2), so y_1 = d / sqrt(d^2 + eps) with d = (a - b) / 2 in [0.4, 0.6], which rises with d.

    Intervals take d and d^2 apart: 0.4 / sqrt(0.36 + eps) and 0.6 / sqrt(0.16 + eps), cut to sqrt(2 - 1).
    """
    f, x, eps = (lambda x: F.layer_norm(x, (2,), eps=0.09)), torch.tensor([[1.0, 0.0]]).double(), 0.1
    found = boxes_of(f, x, eps)
    torch.testing.assert_close(found.lo, torch.tensor([[0.4 / 0.45**0.5, -1.0]]).double())
    torch.testing.assert_close(found.hi, torch.tensor([[1.0, -0.4 / 0.45**0.5]]).double())
    model, y = Wrap(lambda self, x: f(x)).double().eval(), torch.tensor([0])
    worst = 2 * 0.4 / (0.16 + 0.09) ** 0.5  # of y_1 - y_2
    low = crown(model, x, y, JointBall(eps, 0.0, None))[0, 1].item()
    assert worst - 0.1 < low <= worst


@pytest.mark.parametrize("name", ["softmax", "layer norm", "rms norm", "glu"])
def test_a_composition_lies_in_its_boxes_on_a_fine_grid(name):
    f = {"glu": lambda x: F.glu(F.pad(x, (0, 1)), 1), "softmax": lambda x: x.softmax(1) * 1}.get(name)
    f = f or (lambda x: FORWARDS[name](x, x))
    at = torch.tensor(list(itertools.product(torch.linspace(-0.5, 0.5, 21).tolist(), repeat=3))).double()
    for seed in range(3):
        x = torch.randn(1, 3, generator=torch.Generator().manual_seed(seed)).double()
        found, y = boxes_of(f, x, 0.5), f(x + at)
        assert ((found.lo <= y + 1e-12) & (y <= found.hi + 1e-12)).all()
        if name == "softmax":  # exact
            torch.testing.assert_close(found.lo[0], y.amin(0))
            torch.testing.assert_close(found.hi[0], y.amax(0))


def test_normalised_signals_have_a_largest_value_whatever_the_inputs():
    """|y| <= sqrt(n - 1), where the variance may be 0 somewhere in the box."""
    found = boxes_of(lambda x: F.layer_norm(x, (4,)), torch.zeros(1, 4).double(), 1.0)
    torch.testing.assert_close(found.hi, torch.full((1, 4), 3**0.5).double())
    unknown = boxes_of(lambda x: F.layer_norm(x, (4,), eps=0.0), torch.zeros(1, 4).double(), 1.0)  # 0 / 0
    assert (unknown.hi == INF).all()


def test_scores_too_large_for_an_exponential_keep_their_bounds():
    """Differences of 2000: p is 0 or 1."""
    model = Wrap(lambda self, x: (1000 * x).softmax(1) * 2).double().eval()
    x, y = torch.tensor([[1.0, -1.0]]).double(), torch.tensor([0])
    for bound in BOUNDS.values():
        assert abs(bound(model, x, y, JointBall(0.1, 0.0, None))[0, 1] - 2) < 1e-9


# --- a vision transformer ------------------------------------------------------------------------------------------------------


class VisionTransformer(nn.Module):
    """Four patches of a digit, one block, the mean of the tokens."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.patches, self.place = nn.Conv2d(1, width, 4, stride=4), nn.Parameter(torch.zeros(1, 4, width))
        self.first, self.attend = nn.LayerNorm(width), nn.MultiheadAttention(width, 2, batch_first=True)
        self.second, self.last = nn.LayerNorm(width), nn.Sequential(nn.Linear(width, 16), nn.ReLU(), nn.Linear(16, width))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        z = self.patches(x).flatten(2).transpose(1, 2) + self.place
        h = self.first(z)
        z = z + self.attend(h, h, h, need_weights=False)[0]
        return self.head((z + self.last(self.second(z))).mean(1))


def test_a_vision_transformer_is_certified_over_inputs_and_weights():
    """Trained for seconds; every parameter moves: patches, places, scales, shifts, projections."""
    torch.manual_seed(0)
    digits, model = ns.load("digits"), VisionTransformer()
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(150):
        optimiser.zero_grad()
        F.cross_entropy(model(digits.train.x), digits.train.y).backward()
        optimiser.step()
    model.eval()
    x, y, ball = digits.test.x[:10], digits.test.y[:10], JointBall(1 / 255, 1e-4, moves="all")
    found = ns.certify(model, x, y, ball, bound="crown")
    assert found.accuracy >= 0.4
    point = ns.apgd(model, x, y, ball, scope="sample", steps=10)
    assert (found.margins <= margins(logits_at(model, point), y).double() + 1e-5).all()


REFUSED = {
    "no rule for matmul at node 'matmul': signals of different numbers": lambda x: torch.matmul(x[:, None, None], x[:, :, None]),
    "no rule for pow at node .*exponent is 3.5": lambda x: x**3.5,
    "no rule for pow at node .*exponent is 9": lambda x: x**9,
    "no rule for pow at node .*exponent is not a number": lambda x: x**x,
    "no rule for div at node .*only two plain": lambda x: torch.div(x, 1 + x.exp(), rounding_mode="floor"),
    "no rule for einsum at node .*batch": lambda x: torch.einsum("ij,kj->ik", x, x),
    "no rule for einsum at node .*only letters": lambda x: torch.einsum("bii,bi->bi", x[:, None] * x[:, :, None], x),
    "no rule for mul at node .*different numbers": lambda x: x[:, None] * x,
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_not_known_is_refused_by_name(message):
    model = Wrap(lambda self, x: self.inside[0](REFUSED[message](x).reshape(len(x), -1)[:, :3]), nn.Linear(3, 3)).eval()
    for bound in BOUNDS.values():
        with pytest.raises(UnsupportedModel, match=message):
            bound(model, torch.rand(2, 3), torch.tensor([0, 1]), JointBall(0.1, 0.1))


def test_an_exact_bound_refuses_a_product_of_two_signals():
    pytest.importorskip("highspy")
    with pytest.raises(UnsupportedModel, match="no exact rule for node 'mul': it is a product of two signals"):
        ns.certify(of("product").float(), torch.rand(1, 3), torch.tensor([0]), JointBall(0.1, 0.1), bound="exact")


def test_float32_certificates_of_curves_without_a_largest_slope_are_computed_in_float64():
    torch.manual_seed(0)
    model, x, y = of("rsqrt").float(), torch.rand(2, 3), torch.tensor([0, 2])
    narrow, wide = (
        ns.certify(model, x, y, JointBall(0.01, 0.01), bound="crown", dtype=d) for d in (torch.float32, torch.float64)
    )
    assert narrow.margins.equal(wide.margins)


@pytest.mark.parametrize("name", ["product", "matmul", "square", "cube", "einsum", "silu", "glu"])
def test_rounding_covers_what_float32_does_to_products(name):
    """The same bound in both types, as far apart as rounding allows."""
    torch.manual_seed(0)
    model, x, y, ball = of(name), torch.randn(4, 3), torch.tensor([0, 1, 2, 0]), JointBall(0.1, 0.05, None)
    off = rounding(region(model, x.double(), y, ball), torch.float32)
    assert torch.isfinite(off).all()
    assert (off < 1e-2 * (1 + model(x.double()).abs().amax(1))).all()
    for bound in (interval, crown_ibp):
        narrow, wide = bound(of_type(model), x, y, ball.rounded(torch.float32)), bound(model, x.double(), y, ball)
        assert ((narrow - wide).abs() <= off[:, None]).all()


def of_type(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).float()
