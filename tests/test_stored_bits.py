"""Stored words and their bits: formats against references in fractions, error rates, nested errors, codes, counts."""

import json
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import nonsingular as ns
from nonsingular.faults.bit_errors import BitErrors
from nonsingular.faults.codes import read
from nonsingular.faults.formats import FLOATS, FixedPoint, FloatFormat
from nonsingular.faults.uniform import UniformRounding

STORAGES = [
    UniformRounding(8), UniformRounding(4, per_channel=True), UniformRounding(5, symmetric=False),
    UniformRounding(8, per_channel=True, symmetric=False, w_max=0.7), UniformRounding(3, w_max=0.5),
    UniformRounding(6, stochastic=True), UniformRounding(7, symmetric=False, stochastic=True, w_max=1.0),
    FixedPoint(16, 13), FixedPoint(8, 7), FixedPoint(4, 0), *(FloatFormat(kind) for kind in FLOATS),
]  # fmt: skip


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def tensor(seed, shape, scale=1.0, dtype=torch.float32):
    return (torch.randn(shape, generator=seeded(seed), dtype=torch.float64) * scale).to(dtype)


# ---------------------------------------------------------------- formats


def affine(values, bits):
    """Words of an asymmetric quantiser in fractions: the range holds 0, ties to even."""
    lo, hi = min(0, *map(Fraction, values)), max(0, *map(Fraction, values))
    if lo == hi:
        return [0] * len(values), 0, Fraction(0)
    step = (hi - lo) / (2**bits - 1)
    zero = round(-lo / step)
    return [min(max(round(Fraction(v) / step) + zero, 0), 2**bits - 1) for v in values], zero, step


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
@pytest.mark.parametrize("shift", [-3.0, 0.0, 0.4, 5.0])
def test_words_without_symmetry_are_those_of_the_reference(bits, shift):
    w = tensor(bits, (6, 7)) + shift
    want, zero, step = affine(w.flatten().tolist(), bits)
    got = UniformRounding(bits, symmetric=False).words({"w": w})["w"]
    assert got.word.flatten().tolist() == want and int(got.zero) == zero
    assert float(got.step) == pytest.approx(float(step), rel=1e-14)
    for value, word, back in zip(w.flatten().tolist(), want, got.values().flatten().tolist(), strict=True):
        assert abs(Fraction(back) - (word - zero) * step) <= Fraction(1, 10**12)
        assert abs(Fraction(back) - Fraction(value)) <= step / 2 * (1 + Fraction(1, 10**9))


def test_formats_by_hand():
    w = torch.tensor([[0.30, -0.76], [9.0, 0.0]])
    # 4 bits, 2 of them behind the point: steps of 1/4 in [-2, 1.75]
    assert FixedPoint(4, 2)({"w": w})["w"].tolist() == [[0.25, -0.75], [1.75, 0.0]]
    assert FixedPoint(4, 2).words({"w": w})["w"].pattern().tolist() == [[1, 13], [7, 0]]
    # w_max = 0.7, 3 bits: steps of 0.7 / 3
    clipped = UniformRounding(3, w_max=0.7).words({"w": w})["w"]
    assert clipped.word.tolist() == [[1, -3], [3, 0]] and clipped.largest.item() == 0.7
    assert FloatFormat("float8_e4m3fn")({"w": w})["w"].tolist() == [[0.3125, -0.75], [9.0, 0.0]]  # steps 1/32, 1/16, 1
    assert FloatFormat("float16")({"w": torch.tensor([[1e9, -1e9]])})["w"].tolist() == [[65504.0, -65504.0]]
    assert FloatFormat("bfloat16").words({"w": torch.tensor([[1.0]])})["w"].pattern().item() == 0x3F80


@pytest.mark.parametrize("storage", STORAGES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_realisation_lies_in_the_box_and_every_pattern_comes_back(storage, dtype):
    for seed, scale in enumerate((1.0, 1e-3, 30.0)):
        w = tensor(seed, (5, 40), scale, dtype)
        stored, got = storage.words({"w": w}, seeded())["w"], storage({"w": w}, seeded())["w"]
        assert storage.box({"w": w})["w"].contains(got) and got.dtype == dtype
        pattern = stored.pattern()
        assert int(pattern.min()) >= 0 and int(pattern.max()) < 2**stored.bits
        assert stored.holding(pattern).values().equal(stored.values())
        flipped = stored.holding(pattern ^ 1)
        assert flipped.pattern().equal(pattern ^ 1) and not flipped.values().equal(stored.values())
        within = {"w": 0.1 * scale}  # and around weights that other faults have moved
        moved = w + (0.1 * scale * (2 * torch.rand(w.shape, generator=seeded(seed)) - 1)).to(dtype) * 0.99
        radius = storage.radii({"w": w}, within)["w"]
        away = (storage({"w": moved}, seeded())["w"] - moved).abs()
        assert bool((away.double() <= torch.as_tensor(radius) + 1e-6 * scale).all())


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(-(2.0**60), 2.0**60, width=32), min_size=1, max_size=8), st.sampled_from(STORAGES))
def test_no_weights_leave_their_box(values, storage):
    w = torch.tensor(values).view(1, -1)
    assert storage.box({"w": w})["w"].contains(storage({"w": w}, seeded())["w"])


def test_stochastic_rounding_has_the_mean_of_the_weight():
    w = torch.tensor([[0.3, 1.0]]).repeat(20_000, 1)
    got = UniformRounding(2, stochastic=True)({"w": w}, seeded(1))["w"][:, 0]  # 0 or 1
    assert set(got.tolist()) == {0.0, 1.0}
    assert got.mean().item() == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / 20_000))


def test_quantize_gives_a_module_and_its_whole_numbers():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
    before = {n: p.clone() for n, p in model.state_dict().items()}
    for bits, per_channel, symmetric in ((8, False, True), (4, True, True), (5, False, False)):
        made = ns.quantize(model, bits, per_channel, symmetric)
        want = UniformRounding(bits, per_channel, symmetric=symmetric).words(dict(model.named_parameters()))
        assert type(made) is type(model) and made.words.keys() == {"0.weight", "4.weight"}
        for name, p in made.named_parameters():
            assert p.equal(want[name].values(p.dtype)) if name in want else p.equal(before[name])
            assert name not in want or made.words[name].equal(want[name].word)
        assert made(torch.rand(2, 1, 8, 8)).shape == (2, 3)
    assert ns.quantize(model, moves="all").words.keys() == dict(model.named_parameters()).keys()
    assert all(p.equal(before[n]) for n, p in model.state_dict().items())
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
    assert ns.quantize(nn.Sequential(normed)).words["0.weight"].dtype == torch.int8
    model.words = 3
    with pytest.raises(ns.InvalidInput, match="attribute 'words'"):
        ns.quantize(model)


# ---------------------------------------------------------------- bit errors


def distance(a, b):
    """Bits in which two patterns differ."""
    return sum(int(((a ^ b) >> k & 1).sum()) for k in range(32))


@pytest.mark.parametrize("storage", STORAGES[:3] + STORAGES[7:8] + STORAGES[10:], ids=str)
@pytest.mark.parametrize("rate", [0.0, 0.001, 0.05, 1.0])
def test_as_many_bits_flip_as_the_rate_says(storage, rate):
    w = {"w": tensor(0, (60, 50)), "v": tensor(1, (20, 5, 2, 2)), "b": tensor(2, (7,))}
    chip = BitErrors(rate, storage).chip(w, seeded(3))
    clean = storage.words(w, seeded(3))
    assert chip.words.keys() == {"w", "v"} and chip.bits == 3400 * clean["w"].bits
    found = sum(distance(chip.words[n].pattern(), clean[n].pattern()) for n in clean)
    assert found == chip.errors
    assert abs(found - rate * chip.bits) <= 4.5 * math.sqrt(chip.bits * rate * (1 - rate))  # 1 in 100,000 outside
    wrong = sum(int((chip.words[n].pattern() != clean[n].pattern()).sum()) for n in clean)
    assert (chip.silent, chip.detected, chip.corrected) == (wrong, 0, 0)
    assert chip.not_finite == sum(int((~torch.isfinite(v)).sum()) for v in chip.weights.values())
    assert chip.not_finite > 0 or rate in (0.0, 0.001) or not isinstance(storage, FloatFormat) or rate == 1.0
    if rate == 0:
        assert all(chip.weights[n].equal(storage(w)[n]) for n in clean)


@pytest.mark.parametrize("along", ["cell", "row", "column"])
@pytest.mark.parametrize("becomes", ["flipped", "zero", "one"])
def test_errors_at_a_lower_rate_are_among_those_at_a_higher_one(along, becomes):
    w, storage = {"w": tensor(0, (30, 40))}, UniformRounding(8)
    clean = storage.words(w)["w"].pattern()
    last = torch.zeros_like(clean)
    for rate in (0.01, 0.1, 0.3, 1.0):
        moved = BitErrors(rate, storage, becomes, along=along).chip(w, seeded(5)).words["w"].pattern() ^ clean
        assert bool(((moved & last) == last).all())
        if along == "row":
            assert all(len(set(row)) == 1 for row in moved.tolist()) or becomes != "flipped"
        if along == "column" and becomes == "flipped":
            assert bool((moved == moved[0]).all())
        last = moved
    assert bool((last == {"flipped": 255, "zero": clean, "one": clean ^ 255}[becomes]).all())


def test_seeds_positions_and_records():
    w = {"w": tensor(0, (40, 50))}
    fault = BitErrors(0.2, positions=(0, 3))
    clean = fault.storage.words(w)["w"].pattern()
    a, b, c = (fault.chip(w, seeded(s)).words["w"].pattern() for s in (1, 1, 2))
    assert a.equal(b) and not a.equal(c)
    assert int(((a ^ clean) & ~0b1001).sum()) == 0 and int(((a ^ clean) & 1).sum()) and int(((a ^ clean) & 8).sum())
    told = json.loads(json.dumps(fault.describe()))
    assert told["fault"] == "bit-error" and told["storage"]["fault"] == "uniform" and told["positions"] == [0, 3]
    in_order = ns.InOrder((UniformRounding(8), BitErrors(0.0)))(w, seeded())
    assert in_order["w"].equal(UniformRounding(8)(w)["w"])  # a rounded weight is a level


def test_nan_and_infinite_values_are_counted_apart():
    w = {"w": torch.tensor([[1.0, 1.5, 0.0]])}
    every_exponent = BitErrors(1.0, FloatFormat("float16"), becomes="one", positions=(10, 11, 12, 13, 14))
    chip = every_exponent.chip(w, seeded())
    assert chip.not_finite == 3 and chip.silent == 3  # inf, NaN, inf
    assert torch.isnan(chip.weights["w"][0, 1]) and torch.isinf(chip.weights["w"][0, [0, 2]]).all()


# ---------------------------------------------------------------- codes


@pytest.mark.parametrize("bits", [3, 8, 16, 32])
def test_secded_corrects_every_error_of_one_bit_and_notices_every_two(bits):
    per = 64 // bits
    written = torch.randint(0, 2**bits, (2, per), generator=seeded(0))

    def kept(check):
        return check

    for at in range(per * bits):
        stored = written.clone()
        stored[0, at // bits] ^= 1 << at % bits
        found = read("secded", written, stored, bits, kept)
        assert found.pattern.equal(written.flatten()) and not found.noticed.any()
        other = (at * 7 + 1) % (per * bits)
        if other != at:
            stored[0, other // bits] ^= 1 << other % bits
            found = read("secded", written, stored, bits, kept)
            assert found.noticed.tolist() == [True] * per + [False] * per
    for k in range(8):  # an error in a check bit moves no data
        found = read("secded", written, written, bits, lambda check, k=k: check ^ (torch.arange(8) == k))
        assert found.pattern.equal(written.flatten()) and not found.noticed.any()


def test_parity_and_checksum_by_hand():
    written = torch.tensor([[5, 6], [7, 8]])
    stored = torch.tensor([[4, 6], [7 ^ 3, 8]])  # one bit, and two bits of one word
    assert read("parity", written, stored, 4, lambda c: c).noticed.tolist() == [True, False, False, False]
    assert read("parity", written, written, 4, lambda c: ~c).noticed.all()  # parity bits fail, too
    assert read("checksum", written, stored, 4, lambda c: c).noticed.tolist() == [True, True, True, True]
    swapped = torch.tensor([[6, 5], [7, 8]])  # the same sum
    assert not read("checksum", written, swapped, 4, lambda c: c).noticed.any()


@pytest.mark.parametrize("detected", ["zero", "restored"])
def test_protection_leaves_fewer_silent_errors(detected):
    w = {"w": tensor(0, (64, 64))}
    plain = BitErrors(2e-3).chip(w, seeded(0))
    for protection in ("parity", "secded", "checksum"):
        for storage in (UniformRounding(8), UniformRounding(8, symmetric=False)):
            chip = BitErrors(2e-3, storage, protection=protection, detected=detected).chip(w, seeded(0))
            assert chip.errors == plain.errors > 40 and chip.silent < plain.silent / 8
            clean, got = storage.words(w)["w"], chip.words["w"]
            wrong = got.pattern() != clean.pattern()
            if detected == "restored":
                assert int(wrong.sum()) == chip.silent
            else:
                assert int((wrong & (got.values() != 0)).sum()) <= chip.silent
            assert (chip.corrected > 20) == (protection == "secded")
            assert protection == "secded" or chip.detected > 20


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: UniformRounding(8, symmetric=1), "symmetric is 1"),
        (lambda: UniformRounding(8, w_max=0.0), "w_max is 0.0"),
        (lambda: UniformRounding(8, stochastic=True)({"w": torch.ones(2, 2)}), "stochastic rounding draws"),
        (lambda: FixedPoint(8, 8), "fraction is 8; give a whole number from 0 to 7"),
        (lambda: FloatFormat("float4"), "kind is 'float4'; choose one of float32"),
        (lambda: BitErrors(1.5), "rate is 1.5"),
        (lambda: BitErrors(float("nan")), "rate is nan"),
        (lambda: BitErrors(0.1, "int8"), "give a format of words"),
        (lambda: BitErrors(0.1, becomes="noise"), "becomes is 'noise'; choose one of flipped, zero, one"),
        (lambda: BitErrors(0.1, protection="hamming"), "choose one of None, parity"),
        (lambda: BitErrors(0.1, positions=(-1,)), "positions is"),
        (lambda: BitErrors(0.1)({"w": torch.ones(2, 2)}), "draws; give a torch.Generator"),
        (lambda: BitErrors(0.1).ball({"w": torch.ones(2, 2)}), "no box holds"),
        (lambda: ns.quantize(nn.Linear(2, 2), bits=1), "bits is 1"),
    ],
)
def test_what_cannot_be_is_refused(make, said):
    with pytest.raises(ns.InvalidInput, match=said):
        make()
