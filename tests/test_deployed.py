"""Certificates of networks as they are computed in a floating-point type, held against that arithmetic."""

import copy
import itertools
import warnings
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nonsingular as ns
from nonsingular.catalog import sound
from nonsingular.certificates.certify import ROUNDED
from nonsingular.network.graph import precise
from nonsingular.network.margins import margins, worst_margin
from nonsingular.network.precision import PRECISIONS, Floats

BOUNDS = ("interval", "crown-ibp", "crown", "alpha-crown", "branch-and-bound", "best")
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


# --- how a type adds up ------------------------------------------------------------------------------------------------------


def added(terms: torch.Tensor, order: str) -> torch.Tensor:
    """The sum over the last dimension, every addition rounded to the type."""
    n = terms.shape[-1]
    if order == "pairs":
        while terms.shape[-1] > 1:
            odd = terms[..., -1:] if terms.shape[-1] % 2 else terms[..., :0]
            terms = torch.cat([terms[..., 0:-1:2] + terms[..., 1::2], odd], -1)
        return terms[..., 0]
    at = {"forwards": range(n), "backwards": reversed(range(n)), "shuffled": torch.randperm(n).tolist()}[order]
    total = torch.zeros_like(terms[..., 0])
    for i in at:
        total = total + terms[..., i]
    return total


def linear(x: torch.Tensor, W: torch.Tensor, b: torch.Tensor | None, order: str) -> torch.Tensor:
    """x (..., n), W (..., m, n): one rounding for each product and each sum."""
    terms = x[..., None, :] * W
    if b is not None:
        terms = torch.cat([b[..., None].expand(*terms.shape[:-1], 1), terms], -1)
    return added(terms, order)


ORDERS = ("forwards", "backwards", "pairs", "shuffled")


def numbers_between(lo: torch.Tensor, hi: torch.Tensor) -> list[float]:
    """All numbers of the type of these."""
    found, t = [lo.item()], lo
    while t < hi:
        t = torch.nextafter(t, torch.tensor(torch.inf, dtype=t.dtype))
        found.append(t.item())
    return found


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
@pytest.mark.parametrize("bias", [False, True])
def test_every_number_of_a_small_ball_keeps_what_is_certified(name, bias):
    """1-2-2 networks: all x' and W' that are numbers of the type, in four orders; certified margins lie below all of them."""
    dtype, certified, close = TYPES[name], 0, torch.inf
    for seed in range(25):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(1, 2, bias=bias), nn.ReLU(), nn.Linear(2, 2, bias=bias)).to(dtype).eval()
        x = torch.rand(1, 1).to(dtype)
        y = model(x).argmax(1)
        ulp = torch.finfo(dtype).eps
        ball = ns.JointBall(ulp / 4, ulp / 4)
        boxes = ball.weight_boxes(dict(model.named_parameters()))
        box = ball.input_box(x)
        names = [n for n, p in model.named_parameters() if p.dim() == 2]
        values = [
            numbers_between(lo, hi) for n in names for lo, hi in zip(boxes[n].lo.flatten(), boxes[n].hi.flatten(), strict=True)
        ]
        values.append(numbers_between(box.lo[0, 0], box.hi[0, 0]))
        if len(values) and torch.tensor([len(v) for v in values]).prod() > 2e5:
            values = [v if len(v) < 4 else [v[0], v[len(v) // 2], v[-1]] for v in values]
        points = torch.tensor(list(itertools.product(*values))).to(dtype)
        W1, W2, at = points[:, :2].view(-1, 2, 1), points[:, 2:6].view(-1, 2, 2), points[:, 6:]
        for bound in ("interval", "crown"):
            found = ns.certify(model, x, y, ball, bound=bound, deployed=name)
            certified += int(found.verified)
            for order in ORDERS:
                z = linear(linear(at, W1, model[0].bias, order).relu(), W2, model[2].bias, order)
                m = margins(z.double(), y.expand(len(z)))
                assert (m >= found.margins).all(), (seed, bound, order)
                close = min(close, (m - found.margins).masked_fill(F.one_hot(y, 2).bool(), torch.inf).min().item())
                if found.verified:
                    assert (z.argmax(1) == y).all()
    assert certified > 10
    assert close < 64 * torch.finfo(dtype).eps  # and not far below


# --- operators ---------------------------------------------------------------------------------------------------------------


class Forward(nn.Module):
    def __init__(self, f, *modules) -> None:
        super().__init__()
        self.f, self.inside = f, nn.ModuleList(modules)

    def forward(self, x):
        return self.f(self.inside, x)


def _norm(c: int, kind=nn.BatchNorm2d) -> nn.Module:
    norm = kind(c)
    with torch.no_grad():
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.05, 3)
        norm.weight.uniform_(-2, 2)
        norm.bias.uniform_(-1, 1)
    return norm


def _dense(a: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(12, 9), copy.deepcopy(a), nn.Linear(9, 7), copy.deepcopy(a), nn.Linear(7, 3))


SMOOTH = (
    nn.Sigmoid(), nn.Tanh(), nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Hardswish(), nn.ELU(), nn.SELU(), nn.CELU(0.5),
    nn.Softplus(), nn.Softsign(), nn.LogSigmoid(), nn.LeakyReLU(0.1), nn.ReLU6(), nn.Hardtanh(-0.3, 0.7), nn.Hardsigmoid(),
    nn.PReLU(),
)  # fmt: skip
NETWORKS = {
    **{f"dense {a}": partial(_dense, a) for a in SMOOTH},
    "deep": lambda: nn.Sequential(*[m for _ in range(6) for m in (nn.Linear(12, 12), nn.ReLU())], nn.Linear(12, 3)),
    "wide": lambda: nn.Sequential(nn.Linear(12, 300), nn.ReLU(), nn.Linear(300, 3)),
    "conv": lambda: nn.Sequential(
        nn.Unflatten(1, (3, 2, 2)), nn.Conv2d(3, 4, 2, padding=1), _norm(4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1),
        nn.AvgPool2d(2, 1), nn.Flatten(), nn.Linear(16, 3),
    ),
    "pools": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 3, 4)), nn.Conv2d(1, 3, 2, padding=1), nn.MaxPool2d(2, 1), nn.AdaptiveAvgPool2d((2, 3)), nn.Flatten(),
        nn.Linear(18, 3),
    ),
    "norm": lambda: nn.Sequential(nn.Linear(12, 8), _norm(8, nn.BatchNorm1d), nn.Sigmoid(), nn.Linear(8, 3)),
    "residual": lambda: Forward(
        lambda m, x: m[2](((h := m[0](x).relu()) + m[1](h)).abs() * 1.7 - 0.3), nn.Linear(12, 6), nn.Linear(6, 6), nn.Linear(6, 3)
    ),
    "moves": lambda: Forward(
        lambda m, x: m[1](torch.cat([m[0](x / 3).clamp(-0.5, 0.4), x[:, :2].flip(1), torch.maximum(x[:, 3:4], -x[:, 4:5])], 1)),
        nn.Linear(12, 4), nn.Linear(7, 3),
    ),
    "gate": lambda: Forward(
        lambda m, x: m[2](m[0](x) * torch.sigmoid(m[1](x))), nn.Linear(12, 6), nn.Linear(12, 6), nn.Linear(6, 3)
    ),
    "squeeze and excitation": lambda: Forward(
        lambda m, x: m[3](((h := m[0](x.view(-1, 1, 12))) * F.hardsigmoid(m[2](m[1](h.mean(2)).relu()))[:, :, None]).mean(2)),
        nn.Conv1d(1, 8, 3), nn.Linear(8, 4), nn.Linear(4, 8), nn.Linear(8, 3),
    ),
    "powers": lambda: Forward(
        lambda m, x: m[1](torch.cat([(h := m[0](x)) ** 2, h**3 / (1 + h.square()), (h.square() + 0.1).sqrt(), h.expm1()], 1)),
        nn.Linear(12, 4), nn.Linear(16, 3),
    ),
    "logarithms": lambda: Forward(
        lambda m, x: m[1](
            torch.cat([(1 + (h := m[0](x)).exp()).log(), h.exp().log1p(), torch.rsqrt(h**4 + 0.3), 2 / h.exp()], 1)
        ),
        nn.Linear(12, 4), nn.Linear(16, 3),
    ),
    "softmax": lambda: Forward(
        lambda m, x: m[1](torch.cat([(2 * (h := m[0](x))).softmax(1), (x * h).log_softmax(1)], 1)),
        nn.Linear(12, 12), nn.Linear(24, 3),
    ),
    "attention": lambda: Forward(
        lambda m, x: m[1](m[0](*[x.view(-1, 3, 4)] * 3)[0].flatten(1)),
        nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(12, 3),
    ),
    "attention at once": lambda: Forward(
        lambda m, x: m[1](F.scaled_dot_product_attention(*m[0](x.view(-1, 1, 3, 4)).chunk(3, -1), is_causal=True).flatten(1)),
        nn.Linear(4, 12), nn.Linear(12, 3),
    ),
    "layer norm": lambda: nn.Sequential(nn.Linear(12, 6), nn.LayerNorm(6, 1e-3), nn.Linear(6, 3)),
    "group and instance norm": lambda: nn.Sequential(
        nn.Linear(12, 24), nn.Unflatten(1, (4, 6)), nn.GroupNorm(2, 4, 1e-2), nn.InstanceNorm1d(4, 0.1, affine=True),
        nn.Flatten(), nn.Linear(24, 3),
    ),
    "lstm": lambda: Forward(
        lambda m, x: m[1](m[0](x.view(-1, 3, 4))[0][:, -1]), nn.LSTM(4, 3, batch_first=True), nn.Linear(3, 3)
    ),
    "gru and rnn": lambda: Forward(
        lambda m, x: m[2](m[1](m[0](x.view(-1, 3, 4))[0])[0][:, -1]),
        nn.GRU(4, 3, batch_first=True), nn.RNN(3, 2, batch_first=True), nn.Linear(2, 3),
    ),
    "rms norm": lambda: nn.Sequential(nn.Linear(12, 6), nn.RMSNorm(6, 1e-3), nn.Linear(6, 3)),
    "products": lambda: Forward(
        lambda m, x: m[2](torch.bmm((h := m[0](x).view(-1, 3, 2)).mT, m[1](x).view(-1, 3, 2)).flatten(1) * h.flatten(1)[:, :1]),
        nn.Linear(12, 6), nn.Linear(12, 6), nn.Linear(4, 3),
    ),
    "mean": lambda: Forward(
        lambda m, x: m[0](torch.stack([x.view(-1, 3, 4).mean(2), x.view(-1, 4, 3).sum(1)], 1).flatten(1)), nn.Linear(6, 3)
    ),
}  # fmt: skip


def points(model: nn.Module, x: torch.Tensor, y: torch.Tensor, ball: ns.JointBall, count: int):
    """Points of the ball that are numbers of the type of the model: corners by the gradient, random corners, others."""
    generator = torch.Generator().manual_seed(0)
    boxes, box, exact = ball.weight_boxes(dict(model.named_parameters())), ball.input_box(x), copy.deepcopy(model).double()
    at = x.double().requires_grad_()
    worst_margin(margins(exact(at), y), y).sum().backward()
    slopes = {None: at.grad, **{n: p.grad for n, p in exact.named_parameters()}}

    def some(key, lo, hi, k):
        if k < 2 and slopes[key] is not None:
            return torch.where((slopes[key] > 0) == (k == 0), lo, hi)
        u = torch.rand(lo.shape, generator=generator)
        return torch.where(u < 0.5, lo, hi) if k % 2 else (lo.float() + u * (hi.float() - lo.float())).to(lo.dtype).clamp(lo, hi)

    for k in range(count):
        yield some(None, box.lo, box.hi, k), {n: some(n, b.lo, b.hi, k) for n, b in boxes.items()}


def computed(model: nn.Module, x: torch.Tensor, weights: dict[str, torch.Tensor]):
    """Logits in the type of the model, as torch computes them in several ways."""
    moved = copy.deepcopy(model)
    moved.load_state_dict({**model.state_dict(), **weights})
    with torch.no_grad():
        yield moved(x)
        yield torch.cat([moved(one) for one in x.split(1)])
        with torch.backends.mkldnn.flags(enabled=False):
            yield moved(x)
        for layer in moved.modules():
            if isinstance(layer, nn.Linear):
                layer.forward = lambda z, own=layer: linear(z, own.weight, own.bias, "shuffled")
        yield moved(x)


@pytest.mark.filterwarnings("ignore:TF32")
@pytest.mark.parametrize("kind", PRECISIONS)
@pytest.mark.parametrize("name", NETWORKS)
def test_certified_margins_lie_below_those_computed_in_the_type(name, kind):
    torch.manual_seed(len(name))
    dtype = PRECISIONS[kind].dtype
    model = NETWORKS[name]().eval().to(dtype)
    x = torch.rand(4, 12).to(dtype)
    with torch.no_grad():
        y = model(x).argmax(1)
    ball = ns.JointBall(0.004, 0.002, moves="all" if name != "mean" else "weights")
    low = {bound: ns.certify(model, x, y, ball, bound=bound, deployed=kind).margins for bound in BOUNDS[:3]}
    for at, weights in points(model, x, y, ball, 12):
        for i, logits in enumerate(computed(model, at, weights)):
            if i == 3 and "+" in kind:
                continue  # it adds up in the narrow type
            reached = margins(logits.double(), y)
            for bound, lower in low.items():
                assert (lower.nan_to_num(nan=-torch.inf) <= reached).all(), (bound, i)
    if kind == "float32":
        plain = ns.certify(model, x, y, ball, bound="crown").margins
        assert ((plain - low["crown"]) <= (6e-4 if "norm" in name else 2e-4) * (1 + plain.abs())).all()  # little is lost


@pytest.mark.parametrize("kind", ["bfloat16+float32", "float16+float32", "float16"])
def test_a_model_in_float32_is_certified_as_rounded_to_a_narrower_type(kind):
    dtype = PRECISIONS[kind].dtype
    for seed in range(10):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
        x = torch.rand(8, 5)
        y, ball = model(x).argmax(1), ns.JointBall(0.003, 0.001)
        low = ns.certify(model, x, y, ball, bound="crown", deployed=kind).margins
        for at, weights in points(model, x, y, ball, 10):
            moved = copy.deepcopy(model)
            moved.load_state_dict({**model.state_dict(), **weights})
            with torch.no_grad():
                reached = margins(moved.to(dtype)(at.to(dtype)).double(), y)
            assert (low <= reached).all()


def test_what_is_rounded_on_its_way_in_costs_more():
    """The same numbers, in float32 and in bfloat16: in float32 the ball holds others, which round."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3)).bfloat16().eval()
    x, y, ball = torch.rand(5, 3).bfloat16(), torch.arange(5) % 3, ns.JointBall(0.01, 0.01)
    kind = "bfloat16+float32"
    inside = ns.certify(model, x, y, ball, bound="crown", deployed=kind).margins
    rounded = ns.certify(copy.deepcopy(model).float(), x.float(), y, ball, bound="crown", deployed=kind).margins
    assert (rounded < inside - 2**-8 * 0.05)[F.one_hot(y, 3) == 0].all()


def _moments(z: torch.Tensor, how: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance over the last dimension, every operation rounded to the type."""
    n = z.shape[-1]
    if how == "running":
        mean = square = torch.zeros_like(z[..., :1])
        for k in range(n):
            away = z[..., k : k + 1] - mean
            mean = mean + away / (k + 1)
            square = square + away * (z[..., k : k + 1] - mean)
        return mean, square / n
    mean = added(z, "forwards")[..., None] / n
    if how == "squares":
        return mean, (added(z * z, "forwards")[..., None] / n - mean * mean).clamp(min=0)
    return mean, added((z - mean) ** 2, "pairs")[..., None] / n


@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_a_variance_may_be_computed_by_any_formula(offset):
    """Where the mean is far from 0 they differ: margins beyond those of exact arithmetic, and none beyond what is certified."""
    beyond, certified, seen = 0, 0, []
    for seed in range(12):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 3)).eval()
        with torch.no_grad():
            model[0].bias.add_(offset)
        x = torch.rand(6, 4)
        y, ball = model(x).argmax(1), ns.JointBall(0.0, 0.0)
        plain, low = (ns.certify(model, x, y, ball, bound="crown", deployed=d).margins for d in (None, "float32"))
        certified += int((low > 0).sum())
        with torch.no_grad():
            z = model[0](x)
            for how, after in itertools.product(("running", "squares", "two passes"), (False, True)):
                mean, var = _moments(z, how)
                root = torch.rsqrt(var + 1e-5)
                h = z * root - mean * root if after else (z - mean) * root
                reached = margins(linear(h, model[2].weight, model[2].bias, "forwards").double(), y)
                assert (low <= reached).all(), (seed, how, after)
                beyond += int((reached < plain - 1e-9).sum())
                seen.append((plain - reached).max())
    assert certified > 100
    assert beyond > 20
    assert offset == 0 or max(seen) > 1e-5


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_gates_of_recurrent_layers_may_be_added_up_as_one_sum(kind):
    """Terms of inputs, states and both biases in any order, every addition rounded to bfloat16; GRU: (1 - z) n + z h."""
    certified, close = 0, torch.inf
    for seed in range(8):
        torch.manual_seed(seed)
        layer, last = kind(3, 2, batch_first=True).bfloat16(), nn.Linear(2, 2).bfloat16()
        model = Forward(lambda m, x: m[1](m[0](x.view(-1, 2, 3))[0][:, -1]), layer, last).eval()
        x = torch.rand(8, 6).bfloat16()
        with torch.no_grad():
            last.bias[0].add_(4)
            y, ball = model(x).argmax(1), ns.JointBall(0.0, 0.0)
        low = ns.certify(model, x, y, ball, bound="crown", deployed="bfloat16").margins
        certified += int((low > 0).sum())
        W, V, b, c = (p.detach() for p in layer.parameters())
        size = len(W) if kind is not nn.GRU else 4
        for order in ORDERS:
            h = s = torch.zeros(8, 2).bfloat16()
            for part in x.split(3, 1):
                gates = linear(torch.cat([part, h], 1), torch.cat([W, V], 1)[:size], (b + c)[:size], order)
                if kind is nn.RNN:
                    h = gates.tanh()
                elif kind is nn.LSTM:
                    i, f, g, o = gates.chunk(4, 1)
                    s = f.sigmoid() * s + i.sigmoid() * g.tanh()
                    h = o.sigmoid() * s.tanh()
                else:
                    r, z = gates.sigmoid().chunk(2, 1)
                    n = (linear(part, W[4:], b[4:], order) + r * linear(h, V[4:], c[4:], order)).tanh()
                    h = (1 - z) * n + z * h
            reached = margins(linear(h, last.weight.detach(), last.bias.detach(), order).double(), y)
            assert (low <= reached).all(), (seed, order)
            close = min(close, (reached - low).masked_fill(F.one_hot(y, 2).bool(), torch.inf).min().item())
    assert certified > 30
    assert close < 1


def test_a_sum_that_stands_still_is_not_certified():
    """4096 ones, one by one, end at 2048 in float16, below 3000."""
    model = nn.Sequential(nn.Linear(4096, 2)).half().eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.stack([torch.ones(4096), torch.zeros(4096)]))
        model[0].bias.copy_(torch.tensor([0.0, 3000.0]))
    x, y, ball = torch.ones(1, 4096).half(), torch.tensor([0]), ns.JointBall(0.0, 0.0)
    assert linear(x, model[0].weight[:1], None, "forwards").item() == 2048
    for bound in BOUNDS:
        assert ns.certify(model, x, y, ball, bound=bound).verified
        assert not ns.certify(model, x, y, ball, bound=bound, deployed="float16").verified
        assert ns.certify(model, x, y, ball, bound=bound, deployed="float16+float32").verified


@pytest.mark.filterwarnings("ignore:TF32")
@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_no_weights_for_all_break_more_than_counted_as_computed_in_the_type(kind):
    torch.manual_seed(1)
    dtype = PRECISIONS[kind].dtype
    model = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)).eval().to(dtype)
    x = torch.rand(40, 12).to(dtype)
    with torch.no_grad():
        y = model(x).argmax(1)
    ball = ns.JointBall(0.002, 0.006)
    shared, plain = (ns.certify_shared(model, x, y, ball, bound="crown", deployed=d) for d in (kind, None))
    assert plain.broken <= shared.broken < len(x)
    assert shared.deployed == kind
    for at, weights in points(model, x, y, ball, 16):
        for logits in computed(model, at, weights):
            assert int((logits.argmax(1) != y).sum()) <= shared.broken


# --- margins near zero -------------------------------------------------------------------------------------------------------


def mirrored(n: int, lead: float, scale: float = 1.0) -> nn.Module:
    """Two classes that add up the same products in opposite orders; class 0 is ahead by `lead`, a number of float32."""
    model = nn.Sequential(nn.Linear(n, 2 * n), nn.ReLU(), nn.Linear(2 * n, 2)).eval()
    with torch.no_grad():
        W, b = torch.randn(n, n), torch.rand(n)
        model[0].weight.copy_(torch.cat([W, W.flip(0)]))
        model[0].bias.copy_(torch.cat([b, b.flip(0)]))
        w = torch.randn(n) * scale
        model[2].weight.copy_(torch.stack([torch.cat([w, torch.zeros(n)]), torch.cat([torch.zeros(n), w.flip(0)])]))
        model[2].bias.copy_(torch.tensor([lead, 0.0]))
    return model


def broken(model: nn.Module, x: torch.Tensor, name: str) -> torch.Tensor:
    """(B,) whether class 0 loses in the type, in one of many orders."""
    net, lost = copy.deepcopy(model).to(TYPES[name]), torch.zeros(len(x), dtype=torch.bool)
    for order in (*ORDERS, *["shuffled"] * 4):
        h = linear(x.to(TYPES[name]), net[0].weight, net[0].bias, order).relu()
        lost |= linear(h, net[2].weight, net[2].bias, order).argmax(1) != 0
    with torch.no_grad():
        return lost | (net(x.to(TYPES[name])).argmax(1) != 0)


@pytest.mark.parametrize("bound", ["interval", "crown", "branch-and-bound"])
@pytest.mark.parametrize("eps_w", [0.0, 1e-9])
def test_margins_near_zero_have_counterexamples_in_float32_unless_certified_there(bound, eps_w):
    plain, wrong, held = 0, 0, 0
    for seed, lead in itertools.product(range(4), [1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3]):
        torch.manual_seed(seed)
        model, x, y = mirrored(24, lead), torch.rand(16, 24), torch.zeros(16, dtype=torch.long)
        ball = ns.JointBall(0.0, {"2.weight": eps_w})
        found = broken(model, x, "float32")
        exact, deployed = (ns.certify(model, x, y, ball, bound=bound, deployed=d).verified for d in (None, "float32"))
        plain += int((exact & found).sum())
        wrong += int((deployed & found).sum())
        held += int(deployed.sum())
        assert (exact | ~deployed).all()
    assert wrong == 0
    assert held >= 40
    if bound != "interval" or eps_w == 0:
        assert plain >= (20 if bound != "interval" else 1)  # what the exact certificate does not promise


@pytest.mark.parametrize("name", TYPES)
def test_a_search_at_the_border_of_what_is_certified_finds_nothing(name):
    """The lead is bisected to the smallest one that is certified; there the network is computed in many orders."""
    for seed in range(5):
        torch.manual_seed(seed)
        x, y, ball = torch.rand(64, 6).to(TYPES[name]), torch.zeros(64, dtype=torch.long), ns.JointBall(0.0, 0.0)
        low, high = 0.0, 64.0
        for _ in range(12):
            middle = (low + high) / 2
            torch.manual_seed(seed)
            model = mirrored(6, middle).to(TYPES[name])
            good = ns.certify(model, x, y, ball, bound="crown", deployed=name).verified
            assert not (good & broken(model, x, name)).any()
            low, high = (low, middle) if good.all() else (middle, high)


def test_what_is_verified_does_not_rest_on_how_float64_rounds():
    """2^40 + 1.4 e - 2^40 - 1.6 e < 0, but 2^40 + 1.4 e is 2^40 + 2 e in float64, for e = 2^-13."""
    e, plain = 2.0**-13, 0
    for order in itertools.permutations([2.0**40, 1.4 * e, -(2.0**40), -1.6 * e]):
        model = nn.Sequential(nn.Linear(4, 3)).eval().double()  # a third logit so large that check_inputs sees rounding alone
        with torch.no_grad():
            model[0].weight.copy_(torch.tensor([order, (0.0,) * 4, (0.0,) * 4]))
            model[0].bias.copy_(torch.tensor([0.0, 0.0, -(2.0**44)]))
        x, y, ball = torch.ones(1, 4).double(), torch.tensor([0]), ns.JointBall(0.0, 0.0)
        for bound in ROUNDED:
            assert not ns.certify(model, x, y, ball, bound=bound, deployed="float32").verified
            assert bound == "alpha-crown" or not ns.certify(model, x, y, ball, bound=bound, deployed="float64").verified
            plain += int(sound(bound).load()(model, x, y, ball)[0, 1] > 0)
    assert plain > 0  # without an allowance for rounding


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bound", BOUNDS)
def test_rounding_of_the_bound_is_taken_off_and_is_small(bound, dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 3)).eval()
    x = torch.rand(20, 12)
    y, ball = model(x).argmax(1), ns.JointBall(0.01, 0.003)
    plain = sound(bound).load()(precise(model, torch.float64), x.double(), y, ball)
    found = sound(bound).load()(precise(model, dtype).allowing(Floats()), x.to(dtype), y, ball).double()
    off = (plain - found).masked_fill(F.one_hot(y, 3).bool(), 1e-20)
    if bound != "best":  # which stops where an example is decided
        assert (off > 0).all()
        assert (off < (1e-10 if dtype == torch.float64 else 0.1)).all()


# --- what is refused ---------------------------------------------------------------------------------------------------------


def test_overflow_is_never_certified():
    model = nn.Sequential(nn.Linear(2, 4), nn.Sigmoid(), nn.Linear(4, 2)).eval()
    with torch.no_grad():
        model[0].weight.fill_(4e4)
        model[2].weight.copy_(torch.tensor([[9.0] * 4, [-9.0] * 4]))
    x, y, ball = torch.ones(3, 2), torch.zeros(3, dtype=torch.long), ns.JointBall(0.0, 0.0)
    for bound in BOUNDS:
        assert ns.certify(model, x, y, ball, bound=bound, deployed="float32").verified.all()
        assert not ns.certify(model, x, y, ball, bound=bound, deployed="float16").verified.any()
    assert ns.decide(model, x, y, ball, deployed="float16").status == ("timeout",) * 3
    assert ns.decide(model, x, y, ball, deployed="float32").status == ("verified",) * 3


def test_one_example_that_overflows_leaves_the_others_alone():
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    with torch.no_grad():
        model[0].weight.fill_(400.0)
        model[2].weight.copy_(torch.tensor([[1.0] * 4, [-1.0] * 4]))
    x, y, ball = torch.tensor([[0.9, 0.1], [90.0, 90.0]]), torch.zeros(2, dtype=torch.long), ns.JointBall(0.0, 0.0, domain=None)
    for bound in BOUNDS:
        assert ns.certify(model, x, y, ball, bound=bound, deployed="float16").verified.tolist() == [True, False]


class Computed(nn.Module):
    """Its constant cancels when it is computed in a narrow type."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(3, 2)
        self.register_buffer("a", torch.tensor([1000.25, 1000.5, 1000.75]))

    def forward(self, x):
        return self.last(x * (self.a - 1000.0))


REFUSED = {
    "softmax": (lambda: nn.Sequential(nn.Linear(3, 2), nn.Softmax(1)), "crown", "rounding of softmax"),
    "bilinear": (
        lambda: Forward(lambda m, x: m[0](F.interpolate(x[:, None, None], (1, 6), mode="bilinear").flatten(1)), nn.Linear(6, 2)),
        "crown", "interpolate",
    ),
    "mask in the products": (
        lambda: Forward(
            lambda m, x: m[0](F.scaled_dot_product_attention(*[x[:, :, None]] * 3, torch.eye(3)).flatten(1)), nn.Linear(3, 2)
        ),
        "crown", "scaled_dot_product_attention",
    ),
    "computed constant": (Computed, "crown", "constant"),
    "theorem1": (lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), "theorem1", "theorem1 has no term"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_nothing_is_known_of_is_refused_by_name(case):
    make, bound, message = REFUSED[case]
    model, x = make().eval(), torch.rand(2, 3)
    ball = ns.JointBall(0.0, 0.0)
    ns.certify(model, x, torch.tensor([0, 1]), ball, bound=bound)
    with pytest.raises(ns.UnsupportedModel, match=message):
        ns.certify(model, x, torch.tensor([0, 1]), ball, bound=bound, deployed="bfloat16")


def test_an_unknown_type_is_refused_with_those_that_are_known():
    model = nn.Linear(3, 2).eval()
    with pytest.raises(ns.InvalidInput, match="deployed is 'float8'; choose one of float64, float32, bfloat16, float16"):
        ns.certify(model, torch.rand(1, 3), torch.tensor([0]), ns.JointBall(0.0, 0.0), deployed="float8")


def test_radii_and_surfaces_of_a_deployed_network_are_never_above_the_exact_ones():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3)).eval()
    x = torch.rand(12, 8)
    y, ball = model(x).argmax(1), ns.JointBall(0.01, 0.02)
    exact = ns.certified_radius(model, x, y, ball)
    for kind in ("float32", "float16+float32"):
        found = ns.certified_radius(model, x, y, ball, deployed=kind)
        assert (found.nan_to_num(-1) <= exact.nan_to_num(-1)).all()
        front = ns.certified_front(model, x, y, ball, eps_x=[0.0, 0.01], deployed=kind)
        torch.testing.assert_close(front.eps_w[1], found, equal_nan=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            surface = ns.certified_surface(model, (x, y), eps_x=[0, 0.01], eps_w=[0, 0.005], deployed=kind)
            plain = ns.certified_surface(model, (x, y), eps_x=[0, 0.01], eps_w=[0, 0.005])
        assert surface.about["deployed"] == kind and "deployed" not in plain.about
        assert (surface.accuracy <= plain.accuracy).all()


@pytest.mark.parametrize("flat", [False, True])
def test_a_network_of_one_logit_is_certified_as_computed(flat):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1), *([nn.Flatten(0)] if flat else [])).eval()
    with torch.no_grad():
        model[2].bias.add_(0.02 - model(torch.full((1, 6), 0.5)).item())
    x, y, ball = torch.rand(30, 6), torch.ones(30, dtype=torch.long), ns.JointBall(0.001, 0.0005)
    for bound in BOUNDS:
        found = ns.certify(model, x, y, ball, bound=bound, deployed="float16+float32")
        assert 0 < found.verified.sum() < 30
        for at, weights in points(_Two(model), x, y, ball, 6):
            z = torch.func.functional_call(copy.deepcopy(model).half(), {n[2:]: w.half() for n, w in weights.items()}, at.half())
            assert (z.reshape(-1).double() >= found.margins[:, 0]).all()


class _Two(nn.Module):
    def __init__(self, one: nn.Module) -> None:
        super().__init__()
        self.a = one

    def forward(self, x):
        z = self.a(x).reshape(-1, 1)
        return torch.cat([torch.zeros_like(z), z], 1)
