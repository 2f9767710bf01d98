"""One W' for all examples: planes below true margins, counts above brute force, and the certificate against attacks."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.func import functional_call

import nonsingular as ns
from nonsingular.bounds import counting
from nonsingular.bounds.alpha import ascent
from nonsingular.bounds.counting import Multipliers, joined, most_broken, multipliers, proven
from nonsingular.bounds.interval import region
from nonsingular.bounds.linear import default_slopes, hidden_bounds
from nonsingular.bounds.planes import Outer, Planes, _majorant, margins_heard, planes
from nonsingular.certificates.shared import certify_shared
from nonsingular.network.calling import logits_at, recording
from nonsingular.network.margins import margins
from soundness import random_case

SLACK = 1e-9


def all_planes(where, y, choose=default_slopes):
    """The planes of all margins over another class."""
    K = where.graph.nodes[-1].shape[0]
    example, other = (torch.arange(K) != y[:, None]).nonzero().unbind(1)
    heard = margins_heard(where, hidden_bounds(where), y, choose)
    return heard, planes(heard, example, other), example, other


def moved(where, d):
    """(weights, d of the blocks) for moves d in [-1, 1], shares of the radius, of each moving tensor at its node, in their order.

    The block of a Linear layer is in shares of the majorant of its radii, the others in shares of the radii.
    """
    weights, of_blocks, rest = {}, [], list(d)
    for node in where.graph.nodes:
        for name in (getattr(node, "weight", None), getattr(node, "bias", None)):
            if not where.moves(name):
                continue
            box, share = where.boxes[name], rest.pop(0)[..., 0]
            E = (box.hi - box.lo) / 2
            weights[name] = (box.lo + box.hi) / 2 + share.reshape(E.shape) * E
            if node.dense and name == node.weight:
                rows, columns = _majorant(E)
                widest = rows[:, None] * columns
                share = torch.where(widest > 0, share * E / widest, 0.0)
            of_blocks.append(share[..., None])
    assert not rest
    return weights, of_blocks


def box_of(block):
    return block.left.shape[1], block.right.shape[1]


# --- planes: never above a true margin ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
def test_no_plane_lies_above_a_true_margin(seed):
    """Random networks (dense, convolutions, scales, signed inputs, boxes of any ends), random and extreme points, in float64."""
    model, where, y = random_case(seed)
    if not where.boxes:
        return
    _, found, example, other = all_planes(where, y)
    generator = torch.Generator().manual_seed(seed)
    for k in range(60):
        d = [torch.rand(*box_of(o), 1, generator=generator).double() * 2 - 1 for o in found.blocks]
        if k % 3:
            d = [part.sign() for part in d]
        if k % 6 == 1:  # where this plane is lowest
            p = int(torch.randint(len(found), (), generator=generator))
            d = [(o.left[p][:, None] * o.right[p]).sign()[..., None].double() for o in found.blocks]
        u = torch.rand(where.x.lo.shape, generator=generator).double()
        x = torch.lerp(where.x.lo, where.x.hi, u.round() if k % 2 else u)
        weights, d = moved(where, d)
        true = margins(functional_call(model, weights, (x,)), y)[example, other]
        low = found.at_zero - found.falls(d)[:, 0]
        assert (low <= true + SLACK * (1 + true.abs() + low.abs())).all()


@pytest.mark.parametrize("seed", range(40))
def test_nothing_is_lost(seed):
    """The lowest value of a plane is CROWN's bound, or above it: with radii that differ along rows and columns, below."""
    _, where, y = random_case(seed)
    heard, found, example, other = all_planes(where, y)
    least = found.at_zero - sum(o.left.abs().sum(1) * o.right.abs().sum(1) for o in found.blocks)
    flat = [where.boxes[n].hi - where.boxes[n].lo for n in where.boxes]
    crown = heard.low[other, example]
    if all(bool((w == w.flatten()[0]).all()) for w in flat):
        torch.testing.assert_close(least, crown, rtol=1e-6, atol=1e-9)
    else:
        assert (least <= crown + 1e-6 * (1 + crown.abs())).all()


def test_a_plane_by_hand():
    """One layer, x = (1, 2) fixed, margin (w_0 - w_1) x: L(D) is the margin itself; x_0 in [0.5, 1.5] leaves E |A| 1 to pay."""
    net = nn.Sequential(nn.Linear(2, 2, bias=False)).double()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[3.0, 1.0], [0.0, 1.0]]))
    y = torch.tensor([0])
    x = torch.tensor([[1.0, 2.0]]).double()
    _, found, _, _ = all_planes(region(net, x, y, ns.JointBall(0.0, 0.1, None)), y)
    torch.testing.assert_close(found.at_zero, torch.tensor([3.0]).double())  # 3 x_0 + 0 x_1
    ball = ns.JointBall(torch.tensor([0.5, 0.0]), 0.1, None)
    _, found, _, _ = all_planes(region(net, x, y, ball), y)
    # x_0 from 0.5: 3 * 0.5, less nothing at x_0 = 0.5, where the cut is: the slope 3 - 0.2 is above 0
    torch.testing.assert_close(found.at_zero, torch.tensor([1.5]).double())
    (block,) = found.blocks
    d = -torch.tensor([[1.0, 1.0], [-1.0, -1.0]]).double()[..., None]  # w_0 down, w_1 up
    torch.testing.assert_close(block.times(d)[:, 0], torch.tensor([0.1 * 2 * (0.5 + 2)]).double())


@pytest.mark.parametrize("seed", range(4))
def test_slopes_on_their_way_keep_planes_sound(seed):
    model, where, y = random_case(1000 + seed)
    generator = torch.Generator().manual_seed(seed)
    with recording():

        def evaluate(choose):
            heard, found, example, other = all_planes(where, y, choose)
            return heard.low.sum(), (found, example, other)

        for found, example, other in ascent(where, where.graph.nodes[-1].shape[0], evaluate, 3, 0.5):
            for _ in range(10):
                d = [(torch.rand(*box_of(o), 1, generator=generator).double() * 2 - 1).sign() for o in found.blocks]
                x = torch.lerp(where.x.lo, where.x.hi, torch.rand(where.x.lo.shape, generator=generator).double())
                weights, d = moved(where, d)
                true = margins(functional_call(model, weights, (x,)), y)[example, other]
                assert (found.at_zero - found.falls(d)[:, 0] <= true + SLACK * (1 + true.abs())).all()


# --- the count: never below brute force ----------------------------------------------------------------------------------------


def random_planes(seed, examples=6, each=2, shapes=((2, 3), (3, 1))):
    """Planes with at_zero > 0 whose least value may be of either sign."""
    g = torch.Generator().manual_seed(seed)
    P = examples * each
    common = [(torch.randn(1, n, generator=g), torch.rand(1, m, generator=g)) for n, m in shapes]  # what examples share
    blocks = tuple(
        Outer((a + 0.5 * torch.randn(P, n, generator=g)).double(), (b + 0.3 * torch.rand(P, m, generator=g)).double())
        for (n, m), (a, b) in zip(shapes, common, strict=True)
    )
    l1 = sum(o.left.abs().sum(1) * o.right.abs().sum(1) for o in blocks)
    return Planes(
        torch.arange(examples).repeat_interleave(each),
        torch.zeros(P, dtype=torch.long),
        l1 * (0.2 + torch.rand(P, generator=g).double()),
        blocks,
    )


def corners(shapes):
    sizes = [n * m for n, m in shapes]
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=sum(sizes)))).double()  # (R, n)
    return [part.T.reshape(n, m, -1) for part, (n, m) in zip(signs.split(sizes, 1), shapes, strict=True)]


def most_at_corners(found, d):
    """t_p is linear in d, so the t of the box are the hull of those at corners; a count is not, but these are lower bounds."""
    broken = found.at_zero[:, None] - found.falls(d) <= 0
    return int(torch.stack([broken[found.example == i].any(0) for i in found.example.unique()]).sum(0).max())


@pytest.mark.parametrize("seed", range(60))
def test_no_corner_breaks_more_than_is_counted(seed):
    shapes = ((2, 3), (3, 1))
    found = random_planes(seed, shapes=shapes)
    assert most_at_corners(found, corners(shapes)) <= most_broken(found) <= len(found.example.unique()) + 1e-9


def test_the_count_is_less_than_all_where_examples_want_opposite_moves():
    """40 examples, each broken by one corner of d of its own alone: no d breaks many."""
    g = torch.Generator().manual_seed(0)
    left = torch.randn(40, 200, generator=g).double()
    found = Planes(torch.arange(40), torch.arange(40), 0.8 * left.abs().sum(1), (Outer(left, torch.ones(40, 1).double()),))
    assert 1 <= most_broken(found) < 10


def test_examples_are_joined_only_if_no_move_breaks_two_of_them():
    """A linear program finds the largest share s of their b to which one d takes two planes: both break if s >= 1."""
    optimize = pytest.importorskip("scipy.optimize")
    apart = together = 0
    for seed in range(6):
        g = torch.Generator().manual_seed(seed)
        example = torch.tensor([0, 0, 1, 2, 3, 3, 4, 5])  # two of them have two planes
        found = Planes(
            example,
            example,
            torch.zeros(8).double(),
            (Outer(torch.randn(8, 6, generator=g).double(), torch.ones(8, 1).double()),),
        )
        found = replace(found, at_zero=found.steepest() * (0.6 + 0.35 * torch.rand(8, generator=g)))
        owner, count = joined(found, example, 6)
        assert sorted(owner.unique().tolist()) == list(range(count))
        H = (found.blocks[0].laid_out() / found.at_zero[:, None]).numpy()
        for p, q in itertools.combinations(range(8), 2):
            if example[p] == example[q]:
                assert owner[p] == owner[q]
                continue
            rows = [[*-H[p], 1.0], [*-H[q], 1.0]]  # s <= t_p / b_p, s <= t_q / b_q
            best = optimize.linprog([0.0] * 6 + [-1.0], A_ub=rows, b_ub=[0.0, 0.0], bounds=[(-1, 1)] * 6 + [(None, None)])
            apart += int(owner[p] == owner[q])
            together += int(-best.fun >= 1)
            assert owner[p] != owner[q] or -best.fun < 1
    assert apart >= 5 and together >= 5


def test_three_examples_that_want_moves_at_right_angles_count_once():
    """b = 0.9 |H|_1 and H from rows of a Hadamard matrix: |(H_p + H_q) / 2|_1 is half of |H|_1, so no two break at once."""
    H = torch.tensor([[1.0, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1]]).double()
    found = Planes(torch.arange(3), torch.arange(3), torch.full((3,), 0.9 * 4).double(), (Outer(H, torch.ones(3, 1).double()),))
    assert joined(found, torch.arange(3), 3)[1] == 1
    assert most_broken(found) <= 1
    easy = replace(found, at_zero=torch.full((3,), 0.45 * 4).double())  # any two break at once
    assert joined(easy, torch.arange(3), 3)[1] == 3


def test_a_count_by_hand():
    """t = d and t = -d, both b = 0.5: with c = 0.25 each square is ((d + c) / 0.75)^2; any multipliers count at least 1."""
    found = Planes(
        torch.tensor([0, 1]),
        torch.tensor([1, 0]),
        torch.tensor([0.5, 0.5]).double(),
        (Outer(torch.tensor([[1.0], [-1.0]]).double(), torch.ones(2, 1).double()),),
    )
    by = Multipliers(torch.ones(2), torch.tensor([0.25, 0.25]), (torch.ones(1, 1),))
    # |s (H d + c)|^2 = (2 d^2 + 2 c^2) / 0.5625 <= (2 + 0.125) / 0.5625
    assert proven(found, torch.tensor([0, 1]), by) == pytest.approx(2.125 / 0.5625, rel=1e-3)


@pytest.mark.parametrize("seed", range(40))
def test_any_multipliers_count_enough(seed):
    """Wild theta, c and D, outside of what is allowed too: the proof moves them to where it holds."""
    shapes = ((2, 2), (2, 1))
    found, g = random_planes(seed, 5, 1, shapes), torch.Generator().manual_seed(seed)
    by = Multipliers(
        torch.rand(5, generator=g) * 1.4 - 0.2,
        torch.randn(5, generator=g).double() * 3 * found.at_zero,
        tuple(torch.rand(n, m, generator=g) ** 4 for n, m in shapes),
    )
    assert proven(found, found.example, by) >= most_at_corners(found, corners(shapes))


def test_groups_count_no_less(monkeypatch):
    found = random_planes(3, 12, 2)
    whole = most_broken(found)
    monkeypatch.setattr(counting, "TOGETHER", 6)
    parts = most_broken(found)
    assert parts >= most_at_corners(found, corners(((2, 3), (3, 1)))) and whole <= 12


def test_a_bound_just_above_0_at_zero_does_not_spoil_the_count():
    """Its square would be of 1e12 times the size; its theta and c must give it up."""
    g = torch.Generator().manual_seed(0)
    left = torch.randn(41, 200, generator=g).double()
    at_zero = 0.8 * left.abs().sum(1)
    at_zero[0] = 1e-9
    none = torch.zeros(41, dtype=torch.long)
    assert most_broken(Planes(torch.arange(41), none, at_zero, (Outer(left, torch.ones(41, 1).double()),))) < 11


def test_lost_examples_count_in_full():
    found = random_planes(1, 3, 2)
    lost = replace(found, at_zero=found.at_zero * torch.tensor([1, 1, 0, 1, 1, 1]).double())
    assert most_broken(lost) >= 1
    assert most_broken(found[torch.tensor([], dtype=torch.long)]) == 0


def test_the_ascent_finds_multipliers_as_good_as_its_relaxation():
    """No more than a tenth above the tails at its end, which are below the optimum of the relaxation."""
    g = torch.Generator().manual_seed(0)
    left = torch.randn(60, 80, generator=g).double() + 0.3
    found = Planes(torch.arange(60), torch.arange(60), 0.4 * left.abs().sum(1), (Outer(left, torch.ones(60, 1).double()),))
    by = multipliers(found.to(torch.float32), found.example, 60)
    assert proven(found, found.example, by) < 60


# --- the certificate -----------------------------------------------------------------------------------------------------------


def tiny(seed, bias=False):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 2, bias=bias), nn.ReLU(), nn.Linear(2, 2, bias=bias)).eval()


@pytest.mark.parametrize("seed", range(25))
def test_brute_force_over_corners_of_one_move(seed):
    """All 2^8 corners of one D for 10 images, and each image at the corners of its input: never more broken than is said."""
    model, g = tiny(seed).double(), torch.Generator().manual_seed(seed)
    x = torch.rand(10, 2, generator=g).double()
    y = model(x).argmax(1)
    eps_x, eps_w = [(0.0, 0.2), (0.1, 0.1), (0.05, 0.4)][seed % 3]
    found = certify_shared(model, x, y, ball := ns.JointBall(eps_x, eps_w), bound="crown")
    boxes, box = ball.weight_boxes(dict(model.named_parameters())), ball.input_box(x)
    inputs = [torch.where(torch.tensor(up), box.hi, box.lo) for up in itertools.product((True, False), repeat=2)]
    worst = 0
    for signs in itertools.product((0.0, 1.0), repeat=8):
        parts = torch.tensor(signs).double().view(2, 2, 2)
        moved = {n: torch.lerp(b.lo, b.hi, part) for (n, b), part in zip(sorted(boxes.items()), parts, strict=True)}
        with torch.no_grad():
            broken = torch.stack([functional_call(model, moved, (at,)).argmax(1) != y for at in inputs]).any(0)
        worst = max(worst, int(broken.sum()))
    assert worst <= found.broken
    assert bool((found.certified.int() + found.open.int() + found.lost.int() == 1).all())


@pytest.fixture(scope="module")
def trained():
    digits = ns.load("digits")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32, bias=False), nn.ReLU(), nn.Linear(32, 10, bias=False))
    model = ns.train(net, digits, epochs=40, batch_size=64, lr=5e-3).model
    return model, digits.test.x[:150], digits.test.y[:150]


BALLS = [ns.JointBall(0.0, 0.01), ns.JointBall(0.01, 0.006), ns.JointBall(0.0, 0.01, moves="all"), ns.JointBall(0.0, 0.03)]


@pytest.mark.parametrize("ball", BALLS, ids=str)
def test_no_attack_goes_below_the_certificate(trained, ball):
    model, x, y = trained
    alone, found = ns.certify(model, x, y, ball, bound="crown"), certify_shared(model, x, y, ball, bound="crown", steps=3)
    right = logits_at(model, ns.strongest(model, x, y, ball, scope="dataset")).argmax(1) == y
    assert alone.accuracy <= found.accuracy <= right.double().mean().item()
    assert bool(right[found.certified].all())


def test_one_device_breaks_fewer_than_one_device_each(trained):
    model, x, y = trained
    ball = ns.JointBall(0.0, 0.01)
    alone, found = ns.certify(model, x, y, ball, bound="alpha-crown"), certify_shared(model, x, y, ball, bound="alpha-crown")
    assert found.accuracy > alone.accuracy
    assert found.scope == "dataset" and found.bound == "alpha-crown"


def test_radius_0_is_clean_accuracy(trained):
    model, x, y = trained
    found = certify_shared(model, x, y, ns.JointBall(0.0, 0.0), bound="crown")
    assert found.broken == int((model(x).argmax(1) != y).sum()) == int(found.lost.sum())


def test_what_is_wrong_undisturbed_is_lost(trained):
    model, x, y = trained
    found = certify_shared(model, x, (y + 1) % 10, ns.JointBall(0.0, 0.01), bound="crown", steps=0)
    assert found.broken >= int((model(x).argmax(1) != (y + 1) % 10).sum())


def test_only_inputs_move(trained):
    """Without a move of the weights there is nothing to share: the certificate of each."""
    model, x, y = trained
    ball = ns.JointBall(0.02, 0.0)
    assert certify_shared(model, x, y, ball, bound="crown").accuracy >= ns.certify(model, x, y, ball, bound="crown").accuracy


def test_kernels_and_tensors_with_radii_of_their_own(trained):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(1, 3, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(27, 10)).eval()
    _, x, _ = trained
    x, y = x[:40], model(x[:40]).argmax(1)
    ball = ns.JointBall(0.0, {"0.weight": 0.004, "3.weight": (0.001, 0.003 * torch.rand(10, 27)), "3.bias": 0.002})
    found = certify_shared(model, x, y, ball, bound="crown", steps=2)
    right = logits_at(model, ns.strongest(model, x, y, ball, scope="dataset")).argmax(1) == y
    assert ns.certify(model, x, y, ball, bound="crown").accuracy <= found.accuracy <= right.double().mean().item()


def test_bad_input(trained):
    model, x, y = trained
    with pytest.raises(ns.InvalidInput, match="steps is -1"):
        certify_shared(model, x, y, ns.JointBall(0.0, 0.01), steps=-1)
    with pytest.raises(ns.InvalidInput):
        certify_shared(model, x, y, ns.JointBall(0.0, 0.01), bound="theorem1-printed")
    with pytest.raises(ns.InvalidInput):
        certify_shared(model, x + 2, y, ns.JointBall(0.0, 0.01))
    with pytest.raises(ns.UnsupportedModel):
        certify_shared(nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Mish()).eval(), x, y, ns.JointBall(0.0, 0.01))
