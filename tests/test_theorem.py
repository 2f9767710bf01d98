"""Theorem 1 against numbers worked on paper, nested loops, and brute force over the joint ball."""

import contextlib
import itertools

import pytest
import torch
import torch.nn.utils.prune
from torch import nn
from torch.nn import functional as F

import oracle
from nonsingular.bounds.theorem import tau, theorem1, theorem1_printed, zeta, zeta_printed
from nonsingular.errors import InvalidInput, UnsupportedModel
from nonsingular.network.dense import dense_chain
from nonsingular.threat.ball import JointBall

EXACT = {"rtol": 1e-12, "atol": 1e-13}


def dense(weights, biases=None, rho=nn.ReLU):
    """nn.Sequential of Linear layers with these numbers, in float64; parameter names are 0.weight, 0.bias, 2.weight, ..."""
    layers = []
    for k, weight in enumerate(weights):
        weight = torch.as_tensor(weight, dtype=torch.float64)
        bias = None if biases is None else biases[k]
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=torch.float64)
        layer.weight.data = weight.clone()
        if bias is not None:
            layer.bias.data = torch.as_tensor(bias, dtype=torch.float64).clone()
        layers += [layer, rho()]
    return nn.Sequential(*layers[:-1]).eval()


def random_net(generator, depth, biased=False, widest=3):
    """Matrices and biases (None, or a list that may hold None) of a random net of 2 or 3 classes."""
    dims = [int(torch.randint(1, widest + 1, (), generator=generator)) for _ in range(depth)]
    dims.append(int(torch.randint(2, 4, (), generator=generator)))
    weights = [torch.randn(dims[k + 1], dims[k], generator=generator, dtype=torch.float64) for k in range(depth)]
    biases = [0.3 * torch.randn(n, generator=generator, dtype=torch.float64) for n in dims[1:]] if biased else None
    return weights, biases


def uniform(generator, *shape, scale=1.0):
    return scale * torch.rand(*shape, generator=generator, dtype=torch.float64)


def radii_by_name(eps_w, eps_b=None):
    named = {f"{2 * k}.weight": r for k, r in enumerate(eps_w)}
    return named if eps_b is None else named | {f"{2 * k}.bias": r for k, r in enumerate(eps_b)}


def lists(weights, biases):
    return [w.tolist() for w in weights], [None] * len(weights) if biases is None else [b.tolist() for b in biases]


def vector(values):
    return torch.tensor(values, dtype=torch.float64)


def off_diagonal(table):
    """Entries i != j; whether tau[i, i] is 0 or eq. (2) read literally is nobody's business."""
    k = table.shape[-1]
    return table[..., ~torch.eye(k, dtype=torch.bool)]


def assert_tables(actual, expected):
    torch.testing.assert_close(off_diagonal(actual.detach()), off_diagonal(vector(expected)), **EXACT)


# ---------------------------------------------------------------- worked on paper


def test_one_layer_by_hand():
    model, ball = dense([[[1.0, 2.0], [3.0, -1.0]]]), JointBall(0.1, 0.1)
    x = vector([[1.0, 0.5]])
    # rows differ by (-2, 3), so 5;  tau = .1 (5 + 2*2*.1) = .54;  zeta = 2 * .1 * (1 + .5) = .3
    assert_tables(tau(model, ball), [[0, 0.54], [0.54, 0]])
    assert_tables(zeta(model, x, ball), [[[0, 0.3], [0.3, 0]]])
    assert_tables(zeta_printed(model, x, ball), [[[0, 0.3], [0.3, 0]]])
    # logits (1 + 1, 3 - .5) = (2, 2.5): margin of 0 over 1 is -.5 - .54 - .3 = -1.34, of 1 over 0 it is .5 - .84 = -.34
    both = theorem1(model, x.repeat(2, 1), torch.tensor([0, 1]), ball)
    torch.testing.assert_close(both.detach(), vector([[0, -1.34], [-0.34, 0]]), **EXACT)


def test_two_layers_by_hand():
    model, ball = dense([[[1.0, -2.0], [0.5, 0.5]], [[1.0, 1.0], [0.0, -1.0]]]), JointBall(0.1, 0.1)
    x = vector([[1.0, 0.5]])
    # ||W1|| = 3, rows of W2 differ by (1, 2), so 3:  tau = .1 (3 + 2*2*.1) (3 + 2*.1) = .1 * 3.4 * 3.2 = 1.088
    # u1 = relu(0 + .15), relu(.75 + .15) = (.15, .9), sum 1.05
    # zeta = 3 * .1 * 1.5  +  2 * .1 * 1.05 = .45 + .21 = .66   (layer 1 is counted once)
    assert_tables(tau(model, ball), [[0, 1.088], [1.088, 0]])
    assert_tables(zeta(model, x, ball), [[[0, 0.66], [0.66, 0]]])
    assert_tables(zeta_printed(model, x, ball), [[[0, 0.66], [0.66, 0]]])
    # logits: h1 = (0, .75) -> (.75, -.75); 1.5 - 1.088 - .66 = -.248
    torch.testing.assert_close(theorem1(model, x, torch.tensor([0]), ball).detach(), vector([[0, -0.248]]), **EXACT)


def test_two_layers_with_moving_biases_by_hand():
    biases = [vector([0.1, -0.1]), vector([1.0, 0.0])]
    model = dense([[[1.0, -2.0], [0.5, 0.5]], [[1.0, 1.0], [0.0, -1.0]]], biases)
    x, y = vector([[1.0, 0.5]]), torch.tensor([0])
    # biases fixed: u1 = (0 + .1 + .15, .75 - .1 + .15) = (.25, .8), sum 1.05: zeta = .45 + .2 * 1.05 = .66
    fixed, moving = JointBall(0.1, 0.1), JointBall(0.1, 0.1, moves="all")
    assert_tables(zeta(model, x, fixed), [[[0, 0.66], [0.66, 0]]])
    # biases moving too: u1 = (.35, .9), sum 1.25: zeta = 3 (.15 + .1) + 2 (.125 + .1) = .75 + .45 = 1.2
    assert_tables(zeta(model, x, moving), [[[0, 1.2], [1.2, 0]]])
    # only the last bias: 2 * .1;  only the first: 3 * .1
    assert_tables(zeta(model, x, JointBall(0.1, {"2.bias": 0.1})), [[[0, 0.2], [0.2, 0]]])
    assert_tables(zeta(model, x, JointBall(0.1, {"0.bias": 0.1})), [[[0, 0.3], [0.3, 0]]])
    # tau knows no bias
    assert_tables(tau(model, moving), [[0, 1.088], [1.088, 0]])
    # h1 = relu(.1, .65): logits (.1 + .65 + 1, -.65): margin 2.4 - 1.088 - 1.2 = .112
    torch.testing.assert_close(theorem1(model, x, y, moving).detach(), vector([[0, 0.112]]), **EXACT)


def test_three_layers_by_hand():
    model = dense([[[1.0, -1.0], [2.0, 0.0]], [[4.0, -1.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]])
    x, ball = vector([[1.0, 0.5]]), JointBall(0.1, 0.1)
    # norms 2 and 5, last difference 2:  tau = .1 (2 + .4) (5 + .2) (2 + .2) = 2.7456
    # y1 = (.5, 2) +- .15, so h1 in [.35, .65] x [1.85, 2.15], sum of u1 = 2.8
    # u2 = (4.1*.65 - .9*1.85, .1*.65 + 1.1*2.15) = (1.0, 2.43), sum 3.43
    # zeta = 2 (.1*1.5*5 + .1*2.8) + 2*.1*3.43 = 2.06 + .686 = 2.746
    assert_tables(tau(model, ball), [[0, 2.7456], [2.7456, 0]])
    assert_tables(zeta(model, x, ball), [[[0, 2.746], [2.746, 0]]])
    # printed: h2 = (4.1*.65 - .9*2.15, 2.43) = (.73, 2.43), sum 3.16: zeta = 2.06 + .632 = 2.692
    assert_tables(zeta_printed(model, x, ball), [[[0, 2.692], [2.692, 0]]])


COUNTEREXAMPLE = [[[1.0], [1.0]], [[1.0, -1.0]], [[1.0], [1.0]]]


@pytest.mark.parametrize(
    "eps_w, printed, attained",
    [
        # all weights move by .1: first layer (1.1, .9), second (1.1, -.9): 1.21 - .81 = .4; the last rows part by .2: .08
        # printed: h1 = (1.1, 1.1), h2 = 1.1*1.1 - .9*1.1 = .22: 2 * .1 * .22 = .044
        ((0.1, 0.1, 0.1), 0.044, 0.080),
        # first layer (1.5, .5): 1.5 - .5 = 1; parted by .2: .2.  printed: h1 = (1.5, 1.5), h2 = 0
        ((0.5, 0.0, 0.1), 0.0, 0.2),
    ],
)
def test_the_printed_theorem_is_violated_and_the_repair_is_not(eps_w, printed, attained):
    model, ball = dense(COUNTEREXAMPLE), JointBall(0.0, radii_by_name(eps_w))
    x, y = vector([[1.0]]), torch.tensor([0])
    weights = [vector(w) for w in COUNTEREXAMPLE]
    worst = oracle.Ball(x[0], weights, [None] * 3, 0.0, eps_w, (0.0,) * 3).worst_margins(0)[1].item()
    claimed, proved = theorem1_printed(model, x, y, ball)[0, 1].item(), theorem1(model, x, y, ball)[0, 1].item()
    assert worst == pytest.approx(-attained, rel=1e-12)
    assert claimed == pytest.approx(-printed, rel=1e-12, abs=1e-15)
    assert claimed > worst + 0.03  # refused nowhere, and false
    assert proved <= worst + 1e-12
    assert proved == pytest.approx(-attained, rel=1e-12)  # and here the repair is tight


# ---------------------------------------------------------------- against nested loops


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("biased", [False, True], ids=["plain", "biased"])
@pytest.mark.parametrize("rho", ["relu", "sigmoid"])
def test_equals_the_nested_loops(depth, biased, rho):
    loop, layer = {"relu": (oracle.relu, nn.ReLU), "sigmoid": (oracle.sigmoid, nn.Sigmoid)}[rho]
    g = torch.Generator().manual_seed(100 * depth + biased)
    for _ in range(4):
        weights, biases = random_net(g, depth, biased, widest=5)
        eps_x, *eps_w = uniform(g, depth + 1, scale=0.3).tolist()
        eps_b = uniform(g, depth, scale=0.3).tolist()
        x = 2 * uniform(g, 3, weights[0].shape[1]) - 1
        model = dense(weights, biases, layer)
        ball = JointBall(eps_x, radii_by_name(eps_w, eps_b if biased else None), domain=None)
        w, b = lists(weights, biases)
        assert_tables(tau(model, ball), oracle.tau(w, eps_x, eps_w))
        y = torch.tensor([0, 1, len(w[-1]) - 1])
        for term, bound, twin in ((zeta, theorem1, oracle.zeta), (zeta_printed, theorem1_printed, oracle.zeta_printed)):
            zetas = [twin(row, w, b, eps_w, eps_b, loop) for row in x.tolist()]
            assert_tables(term(model, x, ball), zetas)
            expected = bounds_by_loop(x, y, w, b, oracle.tau(w, eps_x, eps_w), zetas, loop)
            torch.testing.assert_close(bound(model, x, y, ball).detach(), expected, **EXACT)


def bounds_by_loop(x, y, weights, biases, taus, zetas, rho):
    rows = []
    for n in range(len(x)):
        f, i = oracle.logits(x[n].tolist(), weights, biases, rho), int(y[n])
        rows.append([0.0 if j == i else f[i] - f[j] - taus[i][j] - zetas[n][i][j] for j in range(len(f))])
    return vector(rows)


@pytest.mark.parametrize("moves", ["weights", "all"])
@pytest.mark.parametrize("relative", [False, True], ids=["absolute", "relative"])
@pytest.mark.parametrize("depth", [1, 3, 4])
def test_a_single_radius_equals_the_nested_loops(depth, relative, moves):
    g = torch.Generator().manual_seed(depth)
    weights, biases = random_net(g, depth, biased=True, widest=4)
    x, ball = uniform(g, 2, weights[0].shape[1]), JointBall(0.05, 0.07, moves=moves, relative=relative)
    eps_w = [0.07 * (w.abs().max().item() if relative else 1.0) for w in weights]
    eps_b = [0.07 * (b.abs().max().item() if relative else 1.0) if moves == "all" else 0.0 for b in biases]
    model, (w, b) = dense(weights, biases), lists(weights, biases)
    assert_tables(tau(model, ball), oracle.tau(w, 0.05, eps_w))
    assert_tables(zeta(model, x, ball), [oracle.zeta(row, w, b, eps_w, eps_b) for row in x.tolist()])
    assert_tables(zeta_printed(model, x, ball), [oracle.zeta_printed(row, w, b, eps_w, eps_b) for row in x.tolist()])


def test_named_layers_only():
    g = torch.Generator().manual_seed(5)
    weights, biases = random_net(g, 4, biased=True, widest=4)
    w, b = lists(weights, biases)
    x, model = uniform(g, 2, weights[0].shape[1]), dense(weights, biases)
    for moved in itertools.chain.from_iterable(itertools.combinations(range(4), n) for n in (1, 2)):
        eps_w = [0.1 * (k + 1) if k in moved else 0.0 for k in range(4)]
        ball = JointBall(0.2, {f"{2 * k}.weight": eps_w[k] for k in moved})
        assert_tables(tau(model, ball), oracle.tau(w, 0.2, eps_w))
        assert_tables(zeta(model, x, ball), [oracle.zeta(row, w, b, eps_w, [0.0] * 4) for row in x.tolist()])


def test_some_layers_have_a_bias():
    model = nn.Sequential(
        nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3, bias=False)
    ).double()
    model, x = model.eval(), uniform(torch.Generator().manual_seed(1), 2, 3)
    weights, biases = [model[k].weight.tolist() for k in (0, 2, 4)], [None, model[2].bias.tolist(), None]
    ball = JointBall(0.1, 0.2, moves="all")
    assert_tables(zeta(model, x, ball), [oracle.zeta(row, weights, biases, [0.2] * 3, [0.2] * 3) for row in x.tolist()])
    chain = dense_chain(model)
    assert [b is None for b in chain.biases] == [True, False, True]
    assert tuple(chain.weight_names) == ("0.weight", "2.weight", "4.weight")


# ---------------------------------------------------------------- soundness


@pytest.mark.parametrize("signed", [False, True], ids=["pixels", "signed"])
@pytest.mark.parametrize("biased", [False, True], ids=["plain", "biased"])
@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
def test_no_point_of_the_ball_beats_the_bound(depth, biased, signed):
    g = torch.Generator().manual_seed(1000 * depth + 10 * biased + signed)
    enumerated, case = 0, -1
    while case < 11 or enumerated < 11:  # 12 nets or more, 11 of them small enough to try every corner: 220 in all
        case += 1
        weights, biases = random_net(g, depth, biased, widest=3 if case < 12 else 1)
        if case % 4 == 0:
            weights[-1] = weights[-1][:1].repeat(len(weights[-1]), 1)  # equal last rows: everything rests on ||u^{L-1}||_1
        eps_x, eps_w, eps_b = uniform(g, (), scale=0.3).item() * (case % 3 > 0), uniform(g, depth, scale=0.4), uniform(g, depth)
        x, y = uniform(g, weights[0].shape[1]) * (1 + signed) - int(signed), case % 2
        domain = None if signed else (0.0, 1.0)
        ball = JointBall(eps_x, radii_by_name(eps_w.tolist(), (0.3 * eps_b).tolist() if biased else None), domain=domain)
        bound = theorem1(dense(weights, biases), x[None], torch.tensor([y]), ball)[0].detach()
        points = oracle.Ball(x, weights, biases or [None] * depth, eps_x, eps_w.tolist(), (0.3 * eps_b).tolist(), domain)
        enumerated += len(points.free) <= 14
        worst = points.worst_margins(y, limit=2**14, generator=g)
        assert (bound <= worst + 1e-9 * (1 + worst.abs())).all(), f"case {case}: bound {bound} above the attained {worst}"


@pytest.mark.parametrize("depth", [2, 3])
def test_no_point_of_the_ball_beats_the_bound_with_sigmoid(depth):
    g = torch.Generator().manual_seed(depth)
    for case in range(10):
        weights, biases = random_net(g, depth, biased=True)
        eps_w, eps_b = uniform(g, depth, scale=0.5).tolist(), uniform(g, depth, scale=0.2).tolist()
        x, y = 2 * uniform(g, weights[0].shape[1]) - 1, case % 2
        ball = JointBall(0.2, radii_by_name(eps_w, eps_b), domain=None)
        bound = theorem1(dense(weights, biases, nn.Sigmoid), x[None], torch.tensor([y]), ball)[0].detach()
        points = oracle.Ball(x, weights, biases, 0.2, eps_w, eps_b, rho=torch.sigmoid)
        assert (bound <= points.worst_margins(y, limit=2**12, generator=g) + 1e-9).all()


def test_the_brute_force_would_notice_the_printed_theorem():
    g, caught = torch.Generator().manual_seed(0), 0
    for _ in range(30):
        weights = [w.sign() * (0.5 + w.abs()) for w in (uniform(g, 2, 1), 2 * uniform(g, 1, 2) - 1)] + [torch.ones(2, 1).double()]
        eps_w, x = uniform(g, 3, scale=0.5).tolist(), vector([1.0])
        claimed = theorem1_printed(dense(weights), x[None], torch.tensor([0]), JointBall(0.0, radii_by_name(eps_w)))[0, 1]
        worst = oracle.Ball(x, weights, [None] * 3, 0.0, eps_w, (0.0,) * 3).worst_margins(0)[1]
        caught += bool(claimed > worst + 1e-6)
    assert caught >= 5


def test_one_layer_is_exact_when_one_radius_is_zero():
    g = torch.Generator().manual_seed(3)
    for eps_x, eps_w in ((0.2, 0.0), (0.0, 0.2)):
        for _ in range(10):
            weights, _ = random_net(g, 1)
            x = 2 * uniform(g, weights[0].shape[1]) - 1
            bound = theorem1(dense(weights), x[None], torch.tensor([1]), JointBall(eps_x, eps_w, domain=None))[0].detach()
            worst = oracle.Ball(x, weights, [None], eps_x, [eps_w], [0.0]).corner_margins(1)
            torch.testing.assert_close(bound, worst, **EXACT)


def test_the_row_search_stays_inside_the_ball():
    g = torch.Generator().manual_seed(4)
    for depth in (1, 2, 3):
        weights = [torch.randn(2, 1 if k == 0 else 2, generator=g, dtype=torch.float64) for k in range(depth)]
        points = oracle.Ball(uniform(g, 1), weights, [None] * depth, 0.1, [0.2] * depth, [0.0] * depth)
        assert (points.row_margins(0) >= points.corner_margins(0) - 1e-12).all()


# ---------------------------------------------------------------- limits and shape of the bound


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("bound", [theorem1, theorem1_printed])
def test_radius_zero_gives_the_clean_margins(bound, depth):
    g = torch.Generator().manual_seed(depth)
    weights, biases = random_net(g, depth, biased=True, widest=6)
    x, model, ball = uniform(g, 4, weights[0].shape[1]), dense(weights, biases), JointBall(0.0, 0.0)
    y = torch.tensor([0, 1, 0, 1])
    assert not off_diagonal(tau(model, ball)).any() and not off_diagonal(zeta(model, x, ball)).any()
    with torch.no_grad():
        out = model(x)
        margins = out.gather(1, y[:, None]) - out
        torch.testing.assert_close(bound(model, x, y, ball), margins, rtol=1e-14, atol=1e-15)


def test_the_bound_falls_as_any_radius_grows():
    g = torch.Generator().manual_seed(8)
    weights, biases = random_net(g, 4, biased=True, widest=4)
    model, x, y = dense(weights, biases), uniform(g, 3, weights[0].shape[1]), torch.tensor([0, 1, 0])
    names = [name for name, _ in model.named_parameters()]
    for which in ["x", *names]:
        bounds = []
        for scale in (0.0, 0.01, 0.02, 0.1, 0.5, 2.0):
            eps = dict.fromkeys(names, 0.1) | ({} if which == "x" else {which: scale})
            bounds.append(theorem1(model, x, y, JointBall(scale if which == "x" else 0.1, eps)).detach())
        falls = torch.stack(bounds).diff(dim=0)
        others = ~F.one_hot(y, falls.shape[-1]).bool()
        assert (falls[:, others] <= 1e-12).all(), which
        assert (falls[-1][others] < 0).all(), f"{which} does not move the bound"


@pytest.mark.parametrize("relative", [False, True], ids=["absolute", "relative"])
def test_a_box_counts_with_its_largest_end(relative):
    """tau, zeta and the bounds at any box are those of the ball of its largest end; a uniform tensor is its number."""
    generator = torch.Generator().manual_seed(5)
    weights, biases = random_net(generator, 3, biased=True)
    model, x = dense(weights, biases), uniform(generator, 4, weights[0].shape[1])
    y = torch.tensor([0, 1, 0, 1])
    boxes = {
        "0.weight": torch.full_like(weights[0], 0.2).index_fill_(0, torch.tensor(0), 0.3),
        "2.weight": (0.1, torch.full((len(weights[1]), 1), 0.25)),
        "4.weight": (torch.full_like(weights[2], 0.15), 0.05),
        "2.bias": (0.0, torch.full_like(biases[1], 0.4)),
        "4.bias": torch.full_like(biases[2], 0.1),
    }
    ends = {"0.weight": 0.3, "2.weight": 0.25, "4.weight": 0.15, "2.bias": 0.4, "4.bias": 0.1}
    box, ball = (JointBall(0.1, eps_w, relative=relative) for eps_w in (boxes, ends))
    assert tau(model, box).equal(tau(model, ball))
    for term in (zeta, zeta_printed):
        assert term(model, x, box).equal(term(model, x, ball))
    assert theorem1(model, x, y, box).equal(theorem1(model, x, y, ball))


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_no_corner_of_a_box_with_two_ends_beats_the_bound(depth):
    generator = torch.Generator().manual_seed(70 + depth)
    for _ in range(20):
        weights, biases = random_net(generator, depth, biased=True, widest=2)
        x = uniform(generator, weights[0].shape[1])
        tensors = {n: t for k in range(depth) for n, t in ((f"{2 * k}.weight", weights[k]), (f"{2 * k}.bias", biases[k]))}
        radii = {
            n: (uniform(generator, *t.shape, scale=0.2), uniform(generator, *t.shape, scale=0.2)) for n, t in tensors.items()
        }
        labels = torch.arange(len(weights[-1]))
        bound = theorem1(dense(weights, biases), x.expand(len(labels), -1), labels, JointBall(0.05, radii))
        brute = oracle.Ball(x, weights, biases, 0.05, [1.0] * depth, [1.0] * depth, (0.0, 1.0))
        n = len(x)
        brute.lo[n:] = torch.cat([(t - radii[k][0]).flatten() for k, t in tensors.items()])
        brute.hi[n:] = torch.cat([(t + radii[k][1]).flatten() for k, t in tensors.items()])
        for label in labels.tolist():
            reached = brute.corner_margins(label, limit=2**10, draws=2**8, generator=generator)
            assert bool((bound[label] <= reached + 1e-9).all())


def test_column_of_the_label_is_zero_and_batches_are_independent():
    g = torch.Generator().manual_seed(9)
    weights, biases = random_net(g, 3, biased=True, widest=4)
    model, x, ball = dense(weights, biases), uniform(g, 6, weights[0].shape[1]), JointBall(0.1, 0.1)
    y = torch.tensor([0, 1, 0, 1, 1, 0])
    whole = theorem1(model, x, y, ball)
    assert whole.shape == (6, len(weights[-1])) and not whole.gather(1, y[:, None]).any()
    alone = torch.cat([theorem1(model, x[n : n + 1], y[n : n + 1], ball) for n in range(6)])
    torch.testing.assert_close(whole, alone, **EXACT)


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("term", [tau, zeta, zeta_printed])
def test_differentiable_in_the_weights(term, depth):
    g = torch.Generator().manual_seed(20 + depth)
    dims = [3, 4, 3, 4, 3][: depth + 1]
    weights = [torch.randn(dims[k + 1], dims[k], generator=g, dtype=torch.float64) for k in range(depth)]
    biases = [0.5 * torch.randn(n, generator=g, dtype=torch.float64) for n in dims[1:]]
    model, ball = dense(weights, biases), JointBall(0.1, 0.05, moves="all")
    x, mix = 0.1 + uniform(g, 2, 3, scale=0.8), off_diagonal(torch.randn(dims[-1], dims[-1], generator=g).double())

    def scalar(*_):
        table = term(model, ball) if term is tau else term(model, x, ball)
        return (off_diagonal(table) * mix).sum()

    assert torch.autograd.gradcheck(scalar, [p for p in model.parameters() if p.dim() == 2], eps=1e-7)
    scalar().backward()
    for name, p in model.named_parameters():
        moves = p.dim() == 2 or (term is not tau and name != f"{2 * depth - 2}.bias")
        assert p.grad is None or p.grad.isfinite().all()
        assert not moves or p.grad is not None, f"no gradient at {name}"


def test_the_largest_tau_and_zeta_train_the_weights():
    """The loss of eq. (4): the gradient of max over classes reaches every layer, in float32 as well."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False))
    x, ball = uniform(torch.Generator().manual_seed(1), 5, 1, 4, 4).float(), JointBall(0.1, 0.01)
    assert tau(model, ball).dtype == zeta(model, x, ball).dtype == torch.float32
    (tau(model, ball).max() + zeta(model, x, ball).amax((1, 2)).mean()).backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_the_model_is_left_alone():
    weights, biases = random_net(torch.Generator().manual_seed(2), 3, biased=True)
    model, x, y = dense(weights, biases), torch.full((2, weights[0].shape[1]), 0.5).double(), torch.tensor([0, 1])
    before = {name: t.clone() for name, t in model.state_dict().items()}
    flags = [m.training for m in model.modules()]
    theorem1(model, x, y, JointBall(0.1, 0.1, moves="all"))
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert flags == [m.training for m in model.modules()] and all(p.grad is None for p in model.parameters())


# ---------------------------------------------------------------- what is accepted


class Written(nn.Module):
    """A dense chain written by hand: flatten, functional relu, linear layers as attributes."""

    def __init__(self, flatten=lambda x: x.flatten(1), rho=F.relu):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 5), nn.Linear(5, 4), nn.Linear(4, 3)
        self.flatten, self.rho = flatten, rho

    def forward(self, x):
        return self.head(self.rho(self.second(self.rho(self.first(self.flatten(x))))))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        z = F.relu(self.a(x))
        return self.head(z + F.relu(self.b(z)))


class Thrice(nn.Module):
    """Dense, but logits, inputs or activations are scaled on the way."""

    def __init__(self, where):
        super().__init__()
        self.first, self.head, self.where = nn.Linear(4, 4), nn.Linear(4, 3), where

    def forward(self, x):
        if self.where == "input":
            x = 3 * x
        z = F.relu(self.first(x))
        if self.where == "hidden":
            z = 3 * z
        out = self.head(z)
        return 3 * out if self.where == "logits" else out


def mlp(*between, head=()):
    return nn.Sequential(nn.Linear(4, 5), *between, nn.Linear(5, 3), *head)


ACCEPTED = {
    "flatten first": nn.Sequential(nn.Flatten(), *mlp(nn.ReLU())),
    "functional relu": Written(),
    "torch.relu": Written(rho=torch.relu),
    "tensor method relu": Written(rho=lambda t: t.relu()),
    "torch.flatten": Written(lambda x: torch.flatten(x, 1)),
    "relu module": mlp(nn.ReLU()),
    "relu in place": mlp(nn.ReLU(inplace=True)),
    "sigmoid": mlp(nn.Sigmoid()),
    "torch.sigmoid": Written(rho=torch.sigmoid),
    "dropout in eval mode": mlp(nn.ReLU(), nn.Dropout(0.5)),
    "one layer": nn.Sequential(nn.Linear(4, 3)),
    "a bare Linear": nn.Linear(4, 3),
    "nested": nn.Sequential(nn.Sequential(nn.Flatten(), nn.Linear(4, 5)), nn.Sequential(nn.ReLU(), nn.Linear(5, 3, bias=False))),
    "frozen": mlp(nn.ReLU()).requires_grad_(False),
}


def chain_of(model):
    """The same net for the oracle, from the Linear modules in order, and its parameter names."""
    linear = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    weights = [m.weight.detach() for _, m in linear]
    biases = [None if m.bias is None else m.bias.detach() for _, m in linear]
    return weights, biases, [f"{name}.weight" if name else "weight" for name, _ in linear]


@pytest.mark.parametrize("form", ACCEPTED)
def test_accepted(form):
    model, g = ACCEPTED[form].double().eval(), torch.Generator().manual_seed(1)
    weights, biases, names = chain_of(model)
    chain = dense_chain(model)
    assert tuple(chain.weight_names) == tuple(names)
    assert all(torch.equal(a, b) for a, b in zip(chain.weights, weights, strict=True))
    with torch.no_grad():
        sigmoid, point = "sigmoid" in form, torch.linspace(-2, 2, 5).double()
        assert len(weights) == 1 or torch.equal(chain.activation(point), torch.sigmoid(point) if sigmoid else torch.relu(point))
    flattens = isinstance(model, Written) or any(isinstance(m, nn.Flatten) for m in model.modules())
    x, y, depth = uniform(g, 3, *((1, 2, 2) if flattens else (4,))), torch.tensor([0, 1, 2]), len(weights)
    w = [t.tolist() for t in weights]
    b = [None if t is None else t.tolist() for t in biases]
    rho = oracle.sigmoid if sigmoid else oracle.relu
    zetas = [oracle.zeta(row, w, b, [0.1] * depth, [0.1] * depth, rho) for row in x.flatten(1).tolist()]
    expected = bounds_by_loop(x.flatten(1), y, w, b, oracle.tau(w, 0.05, [0.1] * depth), zetas, rho)
    bound = theorem1(model, x, y, JointBall(0.05, 0.1, moves="all"))
    torch.testing.assert_close(bound.detach(), expected, **EXACT)


# ---------------------------------------------------------------- what is refused


REFUSED = {
    "tanh": (mlp(nn.Tanh()), "(?i)tanh"),
    "torch.tanh": (Written(rho=torch.tanh), "(?i)tanh"),
    "leaky relu": (mlp(nn.LeakyReLU()), "(?i)leaky"),
    "gelu": (mlp(nn.GELU()), "(?i)gelu"),
    "elu": (mlp(nn.ELU()), "(?i)elu"),
    "conv": (nn.Sequential(nn.Conv2d(1, 1, 2), nn.ReLU(), nn.Flatten(), nn.Linear(1, 3)), "(?i)conv"),
    "batch norm": (mlp(nn.BatchNorm1d(5), nn.ReLU()), "(?i)batch_?norm"),
    "residual add": (Residual(), "(?i)add"),
    "softmax at the end": (mlp(nn.ReLU(), head=[nn.Softmax(1)]), "(?i)softmax"),
    "log softmax at the end": (mlp(nn.ReLU(), head=[nn.LogSoftmax(1)]), "(?i)softmax"),
    "relu at the end": (mlp(nn.ReLU(), head=[nn.ReLU()]), "(?i)relu"),
    "no Linear": (nn.Sequential(nn.Flatten(), nn.ReLU()), "(?i)linear|relu"),
    "identity": (nn.Sequential(nn.Flatten()), "(?i)linear"),
    "dropout in train mode": (mlp(nn.ReLU(), nn.Dropout(0.5)).train(), "(?i)dropout"),
    "relu first": (nn.Sequential(nn.ReLU(), *mlp(nn.ReLU())), "(?i)relu"),
    "linear after linear": (nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3)), "(?i)linear"),
    "scaled input": (Thrice("input"), "(?i)mul"),
    "scaled activations": (Thrice("hidden"), "(?i)mul"),
    "scaled logits": (Thrice("logits"), "(?i)mul"),
    "max pool": (nn.Sequential(nn.MaxPool1d(2), nn.Linear(4, 3)), "(?i)max_?pool"),
    "flatten of the batch": (Written(lambda x: x.flatten(0)), "(?i)flatten"),
}


@pytest.mark.parametrize("form", REFUSED)
@pytest.mark.parametrize("call", ["dense_chain", "tau", "zeta", "theorem1", "theorem1_printed"])
def test_refused(form, call):
    model, message = REFUSED[form]
    model = model if "train mode" in form else model.eval()
    shape = (2, 1, 2, 2) if form == "conv" else (2, 8) if form == "max pool" else (2, 4)
    x, y, ball = torch.full(shape, 0.5), torch.tensor([0, 1]), JointBall(0.1, 0.1)
    calls = {
        "dense_chain": lambda: dense_chain(model),
        "tau": lambda: tau(model, ball),
        "zeta": lambda: zeta(model, x, ball),
        "theorem1": lambda: theorem1(model, x, y, ball),
        "theorem1_printed": lambda: theorem1_printed(model, x, y, ball),
    }
    with pytest.raises(InvalidInput if "train mode" in form else UnsupportedModel, match=message):
        calls[call]()


def test_a_weight_that_is_computed_moves_as_what_it_comes_to():
    """Reading .weight while original0 and original1 move would certify a net in which nothing moves."""
    model = mlp(nn.ReLU()).eval()
    x, y, ball = torch.full((1, 4), 0.5), torch.tensor([0]), JointBall(0.0, 0.1)
    plain = theorem1(model, x, y, ball)
    nn.utils.parametrizations.weight_norm(model[0])
    torch.testing.assert_close(theorem1(model, x, y, ball), plain)
    with pytest.raises(UnsupportedModel):
        theorem1(model, x, y, JointBall(0.0, {"0.parametrizations.weight.original0": 0.1}))


def test_two_different_activations_are_refused_or_bounded():
    model = nn.Sequential(nn.Linear(2, 2), nn.Sigmoid(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)).double().eval()
    x, y, ball = vector([[0.3, 0.7]]), torch.tensor([0]), JointBall(0.0, 0.0)
    try:
        bound = theorem1(model, x, y, ball)
    except UnsupportedModel:
        return
    out = model(x)
    torch.testing.assert_close(bound, out[:, :1] - out, **EXACT)


# ---------------------------------------------------------------- the domain


@pytest.mark.parametrize("bound", [theorem1, theorem1_printed])
def test_the_domain_is_checked_but_not_used(bound):
    weights, _ = random_net(torch.Generator().manual_seed(6), 3)
    model, x, y = dense(weights), torch.full((1, weights[0].shape[1]), 0.95).double(), torch.tensor([0])
    with_pixels, without = bound(model, x, y, JointBall(0.3, 0.1)), bound(model, x, y, JointBall(0.3, 0.1, domain=None))
    assert torch.equal(with_pixels, without)
    with pytest.raises(InvalidInput, match="outside the domain"):
        bound(model, x + 0.1, y, JointBall(0.3, 0.1))
    with pytest.raises(InvalidInput, match="NaN"):
        bound(model, x * float("nan"), y, JointBall(0.3, 0.1, domain=None))


@pytest.mark.parametrize("term", ["tau", "zeta", "theorem1"])
def test_an_unknown_layer_is_named(term):
    model, x, y = dense([[[1.0], [2.0]]]), vector([[0.5]]), torch.tensor([0])
    ball = JointBall(0.1, {"fc9.weight": 0.1})
    calls = {
        "tau": lambda: tau(model, ball),
        "zeta": lambda: zeta(model, x, ball),
        "theorem1": lambda: theorem1(model, x, y, ball),
    }
    with pytest.raises(InvalidInput, match=r"fc9\.weight.*0\.weight"):
        calls[term]()


# ---------------------------------------------------------------- found while testing


class Counter(nn.Module):
    """Counts its calls in a buffer, also in eval mode."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.head(x)


def test_reading_a_model_runs_nothing_that_writes_into_it():
    model = Counter().eval()
    with contextlib.suppress(UnsupportedModel):
        theorem1(model, torch.full((1, 4), 0.5), torch.tensor([0]), JointBall(0.1, 0.1))
    assert model.calls == 0


def test_a_refused_model_keeps_its_weights():
    """Pruning computes .weight in a hook at every call; a trace must not leave its own value there."""
    model = mlp(nn.ReLU()).eval()
    nn.utils.prune.l1_unstructured(model[0], "weight", 0.5)
    with pytest.raises(UnsupportedModel):
        tau(model, JointBall(0.1, 0.1))
    assert type(model[0].weight) is torch.Tensor


@pytest.mark.parametrize("labels", [[1], [0, 1, 0], [0, 3], [0, -1]])
def test_labels_that_do_not_fit_are_refused(labels):
    """One label for two inputs must not be spread over both: the second bound would be built from the first one's zeta."""
    with pytest.raises(InvalidInput):
        theorem1(mlp(nn.ReLU()).eval(), torch.full((2, 4), 0.5), torch.tensor(labels), JointBall(0.1, 0.1))


def test_tau_of_one_layer_with_a_radius_for_each_element_by_hand():
    # rows (1, -2) and (0, 3), radii (.1, .2), eps_W .01:  |1| .1 + |-5| .2 + 2 * .01 (.1 + .2) = 1.106
    model = nn.Linear(2, 2, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -2.0], [0.0, 3.0]]))
    found = tau(model, JointBall(torch.tensor([0.1, 0.2]), 0.01, None), (2,))
    torch.testing.assert_close(found, torch.tensor([[0.0, 1.106], [1.106, 0.0]]).double())
    with pytest.raises(InvalidInput, match="give the shape of one input"):
        tau(model, JointBall(torch.tensor([0.1, 0.2]), 0.01, None))
