"""Faults: rounding against a quantiser of ten lines in fractions, and every realisation in the box that stands for all."""

import itertools
import json
import math
from dataclasses import FrozenInstanceError, dataclass
from fractions import Fraction
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

import nonsingular as ns
from nonsingular.catalog import FAULTS
from nonsingular.faults.fault import Fault, InOrder, added
from nonsingular.faults.uniform import UniformRounding
from nonsingular.network.margins import margins, worst_margin
from nonsingular.threat.interval import Interval

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def reference(values, bits):
    """Symmetric rounding of a list of numbers, without a rounding of its own: (words, step), ties to even."""
    levels = 2 ** (bits - 1) - 1
    top = max((abs(Fraction(v)) for v in values), default=Fraction(0))
    if not top:
        return [0] * len(values), Fraction(0)
    step = top / levels
    return [round(Fraction(v) / step) for v in values], step


def tensor(seed, shape, dtype, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype)


def inside(box: Interval, t: torch.Tensor) -> bool:
    assert box.lo.dtype == box.hi.dtype == t.dtype
    return box.contains(t)


# ---------------------------------------------------------------- the reference


@pytest.mark.parametrize("bits", [2, 3, 4, 8, 12])
@pytest.mark.parametrize("seed", range(5))
def test_words_are_those_of_the_reference(bits, seed):
    w = tensor(seed, (7, 9), torch.float32, 10.0 ** (3 * seed - 6))
    want, step = reference(w.flatten().tolist(), bits)
    (got,) = UniformRounding(bits).words({"w": w}).values()
    assert got.word.flatten().tolist() == want
    assert got.step.item() == pytest.approx(float(step), rel=1e-15)
    assert got.word.dtype == (torch.int8 if bits <= 8 else torch.int16)
    for value, word in zip(got.values().flatten().tolist(), want, strict=True):
        assert value == pytest.approx(float(word * step), rel=1e-15)


@pytest.mark.parametrize("seed", range(4))
def test_each_channel_has_a_step_of_its_own(seed):
    w = tensor(seed, (5, 3, 2, 2), torch.float32) * torch.tensor([1.0, 1e-3, 0.0, 50.0, 2.0]).view(5, 1, 1, 1)
    got = UniformRounding(8, per_channel=True).words({"w": w})["w"]
    assert got.largest.shape == (5, 1, 1, 1)
    for channel, words, top in zip(w, got.word, got.largest.flatten(), strict=True):
        want, step = reference(channel.flatten().tolist(), 8)
        assert words.flatten().tolist() == want
        assert top.item() == float(step * 127)
    bias = tensor(seed, (6,), torch.float32)
    both = UniformRounding(8, per_channel=True, moves="all").words({"w": w, "b": bias})
    assert both["b"].word.tolist() == reference(bias.tolist(), 8)[0]  # one dimension: of the whole tensor


def test_by_hand():
    # max |W| = 1.27, step 0.01: 0.126 -> 13 steps, -0.994 -> -99, 1.27 -> 127
    w = torch.tensor([[0.126, -0.994], [1.27, 0.0]], dtype=torch.float64)
    words = UniformRounding(8).words({"w": w})["w"]
    assert words.word.tolist() == [[13, -99], [127, 0]]
    torch.testing.assert_close(UniformRounding(8)({"w": w})["w"], torch.tensor([[0.13, -0.99], [1.27, 0.0]], dtype=torch.float64))
    assert UniformRounding(8).ball({"w": w}).eps_w["w"] == pytest.approx(0.005)
    # two bits: -1, 0, 1 times the largest
    assert UniformRounding(2)({"w": w})["w"].tolist() == [[0.0, -1.27], [1.27, 0.0]]


# ---------------------------------------------------------------- half a step, and the box


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_no_weight_moves_further_than_half_a_step_and_none_leaves_the_box(bits, per_channel, dtype, scale):
    fault = UniformRounding(bits, per_channel)
    for seed in range(4):
        w = tensor(seed, (4, 40), dtype, scale if dtype != torch.float16 else 1.0)
        words, rounded = fault.words({"w": w})["w"], fault({"w": w})["w"]
        assert rounded.dtype == dtype and rounded.shape == w.shape
        assert inside(fault.box({"w": w})["w"], rounded)
        largest = words.largest.expand_as(w).flatten().tolist()
        for value, word, top in zip(w.flatten().tolist(), words.word.flatten().tolist(), largest, strict=True):
            step = Fraction(top) / (2 ** (bits - 1) - 1)
            slack = 0 if bits <= 8 and dtype != torch.float64 else Fraction(top) / 2**51
            assert abs(word * step - Fraction(value)) <= step / 2 + slack
            assert abs(word) <= 2 ** (bits - 1) - 1


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.floats(-(2.0**120), 2.0**120, width=32), min_size=1, max_size=12),
    st.sampled_from([2, 3, 8, 16]), st.sampled_from([torch.float32, torch.float64]), st.booleans(),
)  # fmt: skip
def test_every_realisation_lies_in_the_box(values, bits, dtype, per_channel):
    w = torch.tensor(values, dtype=dtype).view(1, -1) if len(values) % 2 else torch.tensor(values, dtype=dtype).view(2, -1)
    fault = UniformRounding(bits, per_channel)
    assert inside(fault.box({"w": w})["w"], fault({"w": w})["w"])
    assert inside(fault.ball({"w": w}).weight_boxes({"w": w}, outward=True).get("w", Interval(w, w)), fault({"w": w})["w"])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.floats(-1e300, 1e300, allow_subnormal=True), min_size=1, max_size=8), st.sampled_from([2, 8, 16]))
def test_every_realisation_of_doubles_lies_in_the_box(values, bits):
    w = torch.tensor([values], dtype=torch.float64)
    fault = UniformRounding(bits)
    assert inside(fault.box({"w": w})["w"], fault({"w": w})["w"])


@pytest.mark.parametrize("bits", [2, 8, 16])
@pytest.mark.parametrize("top", [1.0, 0.1, 3.7e-300, 5e-324, 4e-322, 2.3e-308, 7e299])
def test_the_radius_covers_the_rounding_of_float64_in_fractions(bits, top):
    """Half-way between two levels, and the neighbours there, where half a step and rounding add up."""
    levels, values = 2 ** (bits - 1) - 1, [top]
    for k in range(min(levels, 60)):
        middle = float((k + Fraction(1, 2)) * Fraction(top) / levels)
        values += [middle, math.nextafter(middle, 0.0), min(top, math.nextafter(middle, top)), -middle]
    w = torch.tensor([values], dtype=torch.float64)
    fault = UniformRounding(bits)
    radius = Fraction(fault.radii({"w": w})["w"])
    away = [abs(Fraction(a) - Fraction(b)) for a, b in zip(fault({"w": w})["w"][0].tolist(), values, strict=True)]
    assert max(away) <= radius
    assert radius <= Fraction(top) / levels / 2 * (1 + Fraction(1, 2**30)) + Fraction(4, 2**1074)  # and is not much larger


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("per_channel", [False, True])
def test_zeros_one_element_none_and_subnormal_numbers(dtype, per_channel):
    kind = torch.finfo(dtype)
    least = kind.smallest_normal * kind.eps
    ramp = torch.arange(-6, 6, dtype=torch.float64).view(3, 4)
    cases = {
        "zeros": torch.zeros(3, 4), "one": torch.tensor([[0.3]]), "minus": torch.tensor([[-0.3]]), "none": torch.zeros(0, 4),
        "least": ramp * least, "small": ramp * kind.smallest_normal,
        "large": ramp / 6 * kind.max * (1 if dtype != torch.float64 else 1e-10),
        "mixed": torch.tensor([[kind.smallest_normal, 1.0], [0.0, 0.0]]),
    }  # fmt: skip
    weights = {name: w.to(dtype) for name, w in cases.items()}
    for bits in (2, 8, 16):
        fault = UniformRounding(bits, per_channel)
        rounded, boxes = fault(weights), fault.box(weights)
        for name, w in weights.items():
            assert torch.isfinite(rounded[name]).all()
            assert inside(boxes[name], rounded[name]), name
            assert rounded[name].shape == w.shape and rounded[name].dtype == dtype
        assert not rounded["zeros"].any() and (boxes["zeros"].hi == 0).all()
        assert rounded["one"].equal(weights["one"]) and rounded["minus"].equal(weights["minus"])
        assert fault.radii(weights).keys() == weights.keys()


def test_only_what_moves_is_rounded_and_nothing_is_written():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    weights = dict(model.named_parameters())
    before = {n: w.clone() for n, w in weights.items()}
    assert UniformRounding(4)(weights).keys() == {"0.weight", "2.weight"}
    assert UniformRounding(4, moves="all")(weights).keys() == weights.keys()
    assert UniformRounding(4).ball(weights).radii(weights).keys() == {"0.weight", "2.weight"}
    assert all(w.equal(before[n]) for n, w in weights.items())
    assert not any(w.requires_grad for w in UniformRounding(4, moves="all")(weights).values())


def test_more_bits_move_less_and_channels_less_than_tensors():
    w = {"w": tensor(0, (8, 20), torch.float32)}
    radii = [UniformRounding(bits).radii(w)["w"] for bits in range(2, 17)]
    assert all(a > b for a, b in itertools.pairwise(radii))
    assert (UniformRounding(4, per_channel=True).radii(w)["w"] <= UniformRounding(4).radii(w)["w"]).all()
    assert UniformRounding(2)({"w": w["w"]})["w"].unique().numel() == 3


# ---------------------------------------------------------------- the box certifies


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("per_channel", [False, True])
def test_what_is_certified_over_the_box_holds_for_the_rounded_network(seed, per_channel):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 4)).double().eval()
    x = torch.rand(60, 6, dtype=torch.float64)
    y, params = model(x).argmax(1), dict(model.named_parameters())
    proven = 0
    for bits in (5, 6, 8):
        fault = UniformRounding(bits, per_channel, moves="all")
        certificate = ns.certify(model, x, y, fault.ball(params, eps_x=0.01), bound="crown")
        rounded = fault(params)
        proven += int(certificate.verified.sum())
        for draw in range(5):
            g = torch.Generator().manual_seed(draw)
            near = (x + 0.01 * (2 * torch.rand(x.shape, generator=g, dtype=x.dtype) - 1)).clamp(0, 1)
            logits = functional_call(model, rounded, (near,))
            assert (logits.argmax(1) == y)[certificate.verified].all()
            assert (worst_margin(margins(logits, y), y) >= worst_margin(certificate.margins, y) - 1e-12).all()
    assert proven > 20


def test_a_rounded_network_is_attacked_and_certified_as_any_other():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    test = ns.load("digits").test.take(20)
    y = model(test.x).argmax(1)
    fault = UniformRounding(8)
    surface = ns.evaluate(model, (test.x, y), eps_x=[0.0], eps_w=fault.radii(dict(model.named_parameters())))
    certificate = ns.certify(model, test.x, y, fault.ball(dict(model.named_parameters())))
    assert certificate.accuracy <= surface.accuracy[-1, 0] <= 1


# ---------------------------------------------------------------- in order


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(5))
def test_faults_one_after_the_other_stay_in_the_box_of_both(dtype, seed):
    w = {"a": tensor(seed, (4, 30), dtype), "b": tensor(seed + 9, (30,), dtype, 1e-3), "zeros": torch.zeros(2, 2, dtype=dtype)}
    first, second = UniformRounding(6, per_channel=True), UniformRounding(3 + seed, moves="all")
    for fault in (InOrder((first, second)), InOrder((second, first)), InOrder((first, InOrder((second, second)), first))):
        found, boxes = fault(w), fault.box(w)
        assert found.keys() == boxes.keys() == w.keys()
        assert all(inside(boxes[n], found[n]) for n in w)
    one = InOrder([first])
    assert one(w)["a"].equal(first(w)["a"]) and torch.equal(one.radii(w)["a"], first.radii(w)["a"])
    by_hand = second({**w, **first(w)})
    assert all(InOrder((first, second))(w)[n].equal(by_hand[n]) for n in w)


@dataclass(frozen=True)
class Moved(Fault):
    """w -> w times `by` plus `offset`, in the dtype of w."""

    by: float = 1.0
    offset: float = 0.0
    name: ClassVar[str] = "moved"

    def __call__(self, weights, generator=None):
        return {n: (w.double() * self.by + self.offset).to(w.dtype) for n, w in weights.items()}

    def radii(self, weights, within=None):
        sizes = {n: w.double().abs().max().item() + (within or {}).get(n, 0.0) for n, w in weights.items()}
        return {n: abs(self.by - 1) * size + self.offset for n, size in sizes.items()}


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_grew_is_rounded_in_larger_steps(dtype):
    """The second fault begins from anywhere that the first may lead, as it is stored."""
    for seed in range(5):
        w = {"w": tensor(seed, (3, 40), dtype)}
        for fault in (InOrder((Moved(3.0), UniformRounding(3))), InOrder((UniformRounding(4), Moved(2.5), UniformRounding(2)))):
            assert inside(fault.box(w)["w"], fault(w)["w"])
    away = InOrder((Moved(3.0), UniformRounding(3))).radii({"w": torch.ones(1, 1)})["w"]
    assert away == pytest.approx(2 + 0.5)  # to 3, and half a step of 3 / 3
    least = torch.finfo(dtype).eps * 0.6
    many, one = InOrder([Moved(offset=least)] * 9), {"w": torch.ones(2, 2, dtype=dtype)}
    assert (many(one)["w"] - 1).max().item() == pytest.approx(9 * torch.finfo(dtype).eps)  # each time to the next number
    assert inside(many.box(one)["w"], many(one)["w"])


def test_the_order_is_stated_and_matters():
    w = {"w": tensor(0, (3, 20), torch.float32)}
    a, b = UniformRounding(3), UniformRounding(4)
    assert not InOrder((a, b))(w)["w"].equal(InOrder((b, a))(w)["w"])
    assert InOrder((a, b)).describe() == {"fault": "in-order", "faults": [a.describe(), b.describe()]}
    assert InOrder((a, b)) != InOrder((b, a))


def test_radii_of_every_form_are_added_upward():
    t, pair = torch.full((2, 1), 0.1, dtype=torch.float64), (0.25, torch.full((2, 1), 0.5, dtype=torch.float64))
    for a, b in ((0.1, 0.2), (0.1, t), (t, 0.2), (pair, 0.1), (t, pair), (0.0, t), (t, 0.0)):
        total = added({"w": a}, {"w": b})["w"]
        for side in (0, 1):
            s, p, q = ((r[side] if isinstance(r, tuple) else r) for r in (total, a, b))
            exact = [Fraction(float(x)) + Fraction(float(y)) for x, y in zip(as_list(p), as_list(q), strict=True)]
            assert all(Fraction(v) >= e and v <= float(e) * (1 + 1e-15) for v, e in zip(as_list(s), exact, strict=True))
    assert added({"a": 0.1}, {"b": 0.2}) == {"a": 0.1, "b": 0.2}


def as_list(side):
    return side.flatten().tolist() if isinstance(side, torch.Tensor) else [side, side]


@dataclass(frozen=True)
class Noise(Fault):
    """Of a user's own: random, and without a box."""

    sigma: float = 0.1
    name: ClassVar[str] = "noise"

    def __call__(self, weights, generator=None):
        if generator is None:
            raise ns.InvalidInput("the fault 'noise' draws; give a torch.Generator")
        return {n: w + self.sigma * torch.randn(w.shape, generator=generator) for n, w in weights.items()}


def test_a_fault_of_a_users_own():
    w, fault = {"w": torch.ones(2, 3)}, Noise(0.2)

    def draw(fault, seed):
        return fault(w, torch.Generator().manual_seed(seed))["w"]

    assert draw(fault, 1).equal(draw(fault, 1)) and not draw(fault, 1).equal(draw(fault, 2))
    both = InOrder((UniformRounding(4), fault))
    assert draw(both, 1).equal(draw(fault, 1))  # ones are levels
    assert fault.box(w) is fault.radii(w) is fault.flips(w) is both.box(w) is None
    assert fault.describe() == {"fault": "noise", "sigma": 0.2}
    for without in (fault, both):
        with pytest.raises(ns.InvalidInput, match="no box holds every realisation"):
            without.ball(w)
    with pytest.raises(ns.InvalidInput, match="draws"):
        both(w)
    with pytest.raises(TypeError, match="abstract"):
        Fault()


# ---------------------------------------------------------------- the catalog, and what is refused


@pytest.mark.parametrize("name", FAULTS)
def test_what_an_entry_declares_is_what_its_fault_does(name):
    entry = FAULTS[name]
    fault = entry()
    assert isinstance(fault, Fault) and fault.name == name and fault == entry()
    weights = {"w": tensor(0, (4, 6), torch.float32), "b": tensor(1, (4,), torch.float32)}
    before = {n: w.clone() for n, w in weights.items()}
    a, b = (fault(weights, torch.Generator().manual_seed(3)) for _ in range(2))
    assert all(a[n].equal(b[n]) for n in a) and a.keys() <= weights.keys()
    assert all(w.equal(before[n]) for n, w in weights.items())
    assert (fault.radii(weights) is not None) == (fault.box(weights) is not None) == entry.box
    assert (fault.flips(weights) is not None) == entry.flips
    if entry.box:
        boxes = fault.box(weights)
        for seed in range(20):
            assert all(inside(boxes[n], w) for n, w in fault(weights, torch.Generator().manual_seed(seed)).items())
    if entry.random:
        with pytest.raises(ns.InvalidInput):
            fault(weights)
    else:
        assert all(a[n].equal(w) for n, w in fault(weights).items())
    described = fault.describe()
    assert described["fault"] == name and json.loads(json.dumps(described)) == described
    assert entry.card.does and entry.card.source
    with pytest.raises(FrozenInstanceError):
        fault.bits = 3


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: UniformRounding(1), "bits is 1; give a whole number from 2 to 16"),
        (lambda: UniformRounding(17), "bits is 17"),
        (lambda: UniformRounding(8.0), "bits is 8.0"),
        (lambda: UniformRounding(True), "bits is True"),
        (lambda: UniformRounding(8, per_channel="yes"), "per_channel is 'yes'"),
        (lambda: UniformRounding(8, moves="biases"), "moves is 'biases'; choose one of weights, all"),
        (lambda: InOrder(()), "give one fault or more"),
        (lambda: InOrder((UniformRounding(), "noise")), "give one fault or more"),
        (lambda: UniformRounding()({"w": torch.full((2, 2), float("nan"))}), "'w' holds NaN"),
        (lambda: UniformRounding().radii({"w": torch.full((2, 2), float("inf"))}), "'w' holds NaN, infinite"),
        (lambda: UniformRounding().words({"w": torch.full((2, 2), 1e305, dtype=torch.float64)}), "immense"),
        (lambda: UniformRounding()({"w": torch.ones(2, 2, dtype=torch.int8)}), "torch.int8"),
        (lambda: UniformRounding()(nn.Linear(2, 2)), "give name -> tensor"),
        (lambda: UniformRounding().ball({"w": torch.ones(2, 2)}, eps_x=-1.0), "eps_x is -1"),
    ],
)
def test_what_cannot_be_is_refused(make, said):
    with pytest.raises(ns.InvalidInput, match=said):
        make()
