"""The joint ball by hand numbers, and its projection against the definition of the nearest point."""

import copy
import math
import pickle
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from nonsingular.errors import InvalidInput
from nonsingular.threat import interval as of_boxes
from nonsingular.threat.ball import SCOPES, JointBall, check_scope
from nonsingular.threat.interval import Interval
from nonsingular.threat.perturbation import Perturbation
from nonsingular.threat.radius import ends, largest

PARAMS = {"a.weight": torch.tensor([[1.0, -2.0], [0.5, 0.0]]), "a.bias": torch.tensor([0.25, -4.0])}


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


# ---------------------------------------------------------------- values that are refused


@pytest.mark.parametrize("bad", [-0.1, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["eps_x", "eps_w", "named"])
def test_a_bad_radius_is_quoted(bad, where):
    settings = {"eps_x": 0.1, "eps_w": 0.1} | ({"eps_w": {"a.weight": bad}} if where == "named" else {where: bad})
    with pytest.raises(InvalidInput) as error:
        JointBall(**settings)
    assert f"{bad}" in str(error.value)
    assert ("a.weight" if where == "named" else where) in str(error.value)


@pytest.mark.parametrize("domain", [(1.0, 0.0), (0.5, 0.5), (math.nan, 1.0), (0.0, math.nan)])
def test_an_empty_domain_is_quoted(domain):
    with pytest.raises(InvalidInput, match="domain") as error:
        JointBall(0.1, 0.1, domain)
    assert str(domain) in str(error.value)


def test_unknown_moves_and_scope_are_quoted():
    with pytest.raises(InvalidInput, match=r"'biases'.*weights, all"):
        JointBall(0.1, 0.1, moves="biases")
    with pytest.raises(InvalidInput, match=r"'example'.*sample, batch, dataset"):
        check_scope("example")
    assert SCOPES == ("sample", "batch", "dataset")


# ---------------------------------------------------------------- which tensors move, and how far


def test_one_radius_moves_matrices_only():
    assert JointBall(0, 0.1).radii(PARAMS) == {"a.weight": 0.1}


def test_moves_all_takes_biases_too():
    assert JointBall(0, 0.1, moves="all").radii(PARAMS) == {"a.weight": 0.1, "a.bias": 0.1}


def test_a_mapping_moves_what_it_names():
    assert JointBall(0, {"a.bias": 0.3}).radii(PARAMS) == {"a.bias": 0.3}


def test_radius_zero_moves_nothing():
    assert JointBall(0, 0.0).radii(PARAMS) == {}
    assert JointBall(0, {"a.bias": 0.0, "a.weight": 1.0}).radii(PARAMS) == {"a.weight": 1.0}
    assert JointBall(0, {}).radii(PARAMS) == {}


def test_relative_radii_multiply_the_largest_entry():
    # max|W| = 2, max|b| = 4
    assert JointBall(0, 0.1, moves="all", relative=True).radii(PARAMS) == pytest.approx({"a.weight": 0.2, "a.bias": 0.4})
    assert JointBall(0, {"a.bias": 0.5}, relative=True).radii(PARAMS) == pytest.approx({"a.bias": 2.0})


def test_an_unknown_name_is_quoted_beside_the_known_ones():
    with pytest.raises(InvalidInput) as error:
        JointBall(0, {"b.weight": 0.1, "a.bias": 0.1}).radii(PARAMS)
    assert "'b.weight'" in str(error.value)
    assert "a.weight" in str(error.value)


def test_scaling_multiplies_every_radius_and_keeps_the_rest():
    ball = JointBall(0.5, {"a": 0.1, "b": 0.2}, (-1.0, 1.0), "all", True).scaled(0.5, 10)
    assert ball.eps_x == 0.25
    assert dict(ball.eps_w) == pytest.approx({"a": 1.0, "b": 2.0})
    assert (ball.domain, ball.moves, ball.relative) == ((-1.0, 1.0), "all", True)
    assert JointBall(0.5, 0.1).scaled(0, 0) == JointBall(0.0, 0.0)


def test_a_ball_is_a_value():
    radii = {"a": 0.1}
    ball = JointBall(0.1, radii)
    radii["a"] = 5.0
    assert ball.eps_w["a"] == 0.1  # the caller's mapping is not the ball's
    with pytest.raises(TypeError):
        ball.eps_w["a"] = 1.0
    assert JointBall(0.1, 0.2) == JointBall(0.1, 0.2)


@pytest.mark.parametrize("eps_w", [0.1, {"a": 0.1}])
def test_a_ball_can_be_sent_to_another_process(eps_w):
    ball = JointBall(0.1, eps_w)
    assert pickle.loads(pickle.dumps(ball)) == ball
    assert copy.deepcopy(ball) == ball


# ---------------------------------------------------------------- boxes


def test_the_input_box_is_cut_to_the_domain():
    box = JointBall(0.25, 0).input_box(tensor(0.0, 0.5, 0.875))
    assert box.lo.tolist() == [0.0, 0.25, 0.625]
    assert box.hi.tolist() == [0.25, 0.75, 1.0]


def test_without_a_domain_nothing_is_cut():
    box = JointBall(0.25, 0, None).input_box(tensor(-3.0, 300.0))
    assert box.lo.tolist() == [-3.25, 299.75]
    assert box.hi.tolist() == [-2.75, 300.25]


def test_building_boxes_changes_nothing_that_was_given():
    x, params = tensor(0.0, 1.0), {n: p.clone() for n, p in PARAMS.items()}
    ball = JointBall(0.5, 0.5, moves="all")
    ball.input_box(x), ball.weight_boxes(params)
    assert x.tolist() == [0.0, 1.0]
    assert all(params[n].equal(p) for n, p in PARAMS.items())


def test_weight_boxes_by_hand():
    box = JointBall(0, 0.5).weight_boxes(PARAMS)["a.weight"]
    assert box.lo.tolist() == [[0.5, -2.5], [0.0, -0.5]]
    assert box.hi.tolist() == [[1.5, -1.5], [1.0, 0.5]]


# ---------------------------------------------------------------- radii per channel, per element, and to one side

W = PARAMS["a.weight"]  # [[1, -2], [.5, 0]]


@pytest.mark.parametrize(
    "radius, lo, hi",
    [
        (tensor([0.5], [0.25]), [[0.5, -2.5], [0.25, -0.25]], [[1.5, -1.5], [0.75, 0.25]]),  # each output its own
        (tensor(0.5, 0.25), [[0.5, -2.25], [0.0, -0.25]], [[1.5, -1.75], [1.0, 0.25]]),  # each input its own
        (tensor([0.5, 0.0], [0.25, 1.0]), [[0.5, -2.0], [0.25, -1.0]], [[1.5, -2.0], [0.75, 1.0]]),
        ((0.5, 0.25), [[0.5, -2.5], [0.0, -0.5]], [[1.25, -1.75], [0.75, 0.25]]),
        ((0.0, tensor([0.5], [0.25])), [[1.0, -2.0], [0.5, 0.0]], [[1.5, -1.5], [0.75, 0.25]]),
        ((tensor(0.5, 0.25), tensor([1.0], [0.0])), [[0.5, -2.25], [0.0, -0.25]], [[2.0, -1.0], [0.5, 0.0]]),
    ],
    ids=["output", "input", "element", "two numbers", "upwards", "two tensors"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_boxes_of_any_radius_by_hand(radius, lo, hi, dtype):
    box = JointBall(0, {"a.weight": radius}).weight_boxes({"a.weight": W.to(dtype)})["a.weight"]
    assert box.lo.dtype == box.hi.dtype == dtype
    assert (box.lo.tolist(), box.hi.tolist()) == (lo, hi)


@given(st.floats(0, 3), st.floats(0, 3), st.booleans(), st.sampled_from([torch.float32, torch.float64]))
def test_a_tensor_of_one_number_is_that_number(r, factor, relative, dtype):
    """Bit for bit, in any shape that broadcasts, also scaled."""
    params = {"a.weight": W.to(dtype)}
    want = JointBall(0, {"a.weight": r}, relative=relative).scaled(1, factor).weight_boxes(params)
    for radius in (torch.full(shape, r, dtype=torch.float64) for shape in [(), (1,), (2, 1), (2,), (2, 2)]):
        for given_as in (radius, (radius, r), (r, radius)):
            box = JointBall(0, {"a.weight": given_as}, relative=relative).scaled(1, factor).weight_boxes(params)
            assert set(box) == set(want)
            for name in box:
                assert box[name].lo.equal(want[name].lo) and box[name].hi.equal(want[name].hi)


radii = st.lists(st.floats(0, 2), min_size=4, max_size=4).map(lambda v: torch.tensor(v, dtype=torch.float64).view(2, 2))


@given(radii, radii, st.floats(0, 1))
def test_boxes_of_any_radius_hold_the_weights_and_are_nested(below, above, part):
    whole = JointBall(0, {"a.weight": (below, above)})
    small, large = whole.scaled(1, part).weight_boxes(PARAMS), whole.weight_boxes(PARAMS)
    for name, box in large.items():
        assert box.contains(W) and box.contains(box.sample(torch.Generator().manual_seed(0)))
        assert all(box.contains(t) for t in ((small[name].lo, small[name].hi) if name in small else (W,)))


def test_relative_and_scaled_radii_multiply_every_number():
    # max|W| = 2, max|b| = 4
    ball = JointBall(0, {"a.weight": tensor([0.5], [0.25]), "a.bias": (tensor(0.0, 0.5), 0.25)}, relative=True)
    found = ball.scaled(1, 0.5).radii(PARAMS)
    assert found["a.weight"].tolist() == [[0.5], [0.25]]
    below, above = ends(found["a.bias"])
    assert (below.tolist(), above) == ([0.0, 1.0], 0.5)
    assert (largest(found["a.weight"]), largest(found["a.bias"]), largest((0.1, 0.2))) == (0.5, 1.0, 0.2)


def test_a_tensor_that_stays_put_is_left_out():
    stay = {"a.weight": torch.zeros(2, 1), "a.bias": (0.0, torch.zeros(2))}
    assert JointBall(0, stay).radii(PARAMS) == {}
    assert JointBall(0, {"a.weight": tensor([1.0], [1.0])}).scaled(1, 0).weight_boxes(PARAMS) == {}
    assert set(JointBall(0, {"a.weight": (0.0, tensor([0.0], [1e-9])), "a.bias": (0.0, 1.0)}).radii(PARAMS)) == set(PARAMS)


def test_a_ball_of_tensors_is_a_value():
    given = {"a.weight": torch.ones(2, 1), "a.bias": (torch.zeros(2), 0.5)}
    ball, same = JointBall(0.1, given), JointBall(0.1, {"a.bias": (torch.zeros(2).double(), 0.5), "a.weight": torch.ones(2, 1)})
    given["a.weight"] += 5
    assert ball == same and hash(ball) == hash(same) and len({ball, same}) == 1
    for other in (
        JointBall(0.1, {"a.weight": torch.ones(1, 2), "a.bias": (torch.zeros(2), 0.5)}),
        JointBall(0.1, {"a.weight": torch.ones(2, 1), "a.bias": (0.5, torch.zeros(2))}),
        JointBall(0.1, {"a.weight": torch.ones(2, 1) / 2, "a.bias": (torch.zeros(2), 0.5)}),
        JointBall(0.1, {"a.weight": torch.ones(2, 1)}),
        JointBall(0.1, 0.5),
        "a ball",
    ):
        assert ball != other
    for copied in (pickle.loads(pickle.dumps(ball)), copy.deepcopy(ball), ball.scaled(1, 1)):
        assert copied == ball and hash(copied) == hash(ball)


def test_what_is_symmetric_is_no_pair():
    assert JointBall(0, {"a": (0.5, 0.5)}) == JointBall(0, {"a": 0.5}) == JointBall(0, {"a": torch.tensor(0.5)})
    assert JointBall(0, {"a": (torch.ones(2), torch.ones(2))}) == JointBall(0, {"a": torch.ones(2)})
    assert JointBall(0, {"a": -torch.zeros(2)}) == JointBall(0, {"a": torch.zeros(2)})  # -0
    assert hash(JointBall(0, {"a": 0.5, "b": 1})) == hash(JointBall(0.0, {"b": 1.0, "a": 0.5}))


def test_a_radius_is_cut_from_its_graph_and_its_mode():
    with torch.inference_mode():
        ball = JointBall(0, {"a.weight": torch.ones(2, 2, dtype=torch.float64)})
    assert not ball.eps_w["a.weight"].is_inference()
    assert not JointBall(0, {"a": torch.ones(2, requires_grad=True) * 2}).eps_w["a"].requires_grad


@pytest.mark.parametrize("bad", [-0.1, math.nan, math.inf])
@pytest.mark.parametrize("form", [lambda t: t, lambda t: (t, 0.5), lambda t: (0.5, t)], ids=["both", "below", "above"])
def test_a_bad_number_in_a_tensor_is_quoted(bad, form):
    with pytest.raises(InvalidInput, match=r"eps_w\['a\.weight'\].*0 or larger") as error:
        JointBall(0, {"a.weight": form(tensor([0.5], [bad]))})
    assert f"{bad}" in str(error.value)


@pytest.mark.parametrize(
    "radius, message",
    [
        ((0.1, 0.2, 0.3), r"\['a'\] is a tuple of 3; a pair is \(below, above\)"),
        ((0.1,), "tuple of 1"),
        ([0.1, 0.2], r"\[0\.1, 0\.2\]; give a number, a tensor, or a pair"),
        (None, "None; give a number"),
        ((0.1, "far"), r"\['a'\]\[1\] is 'far'; give a number"),
        (torch.zeros(0, 2), r"shape \(0, 2\)"),
        (torch.zeros(2, dtype=torch.complex64), "complex64"),
        ((torch.zeros(2), torch.zeros(3)), r"shapes \(2,\) and \(3,\)"),
    ],
)
def test_what_is_no_radius_is_refused(radius, message):
    with pytest.raises(InvalidInput, match=message):
        JointBall(0, {"a": radius})


@pytest.mark.parametrize("radius", [torch.ones(2, 1), (0.1, 0.2)])
def test_a_tensor_or_a_pair_needs_a_name(radius):
    with pytest.raises(InvalidInput, match="of which parameter"):
        JointBall(0, radius)
    assert JointBall(0, torch.tensor(0.5)) == JointBall(0, (0.5, 0.5)) == JointBall(0, 0.5)


@pytest.mark.parametrize("shape", [(3,), (2, 3), (1, 2, 2), (2, 1, 1)])
@pytest.mark.parametrize("pair", [False, True])
def test_a_radius_of_another_shape_names_both_shapes(shape, pair):
    radius = (0.1, torch.ones(shape)) if pair else torch.ones(shape)
    with pytest.raises(InvalidInput) as error:
        JointBall(0, {"a.weight": radius}).weight_boxes(PARAMS)
    assert str(shape) in str(error.value) and "(2, 2)" in str(error.value) and "'a.weight'" in str(error.value)


def test_check_knows_the_two_ends():
    model = nn.Sequential(nn.Linear(2, 2)).eval()
    x, w = torch.full((3, 2), 0.5), model[0].weight.detach()
    ball = JointBall(0, {"0.weight": (0.25, torch.tensor([[0.5], [0.0]]))})
    for moved in (w - 0.25, w + torch.tensor([[0.5], [0.0]])):
        Perturbation(x, {"0.weight": moved}).check(model, x, ball)
    for moved in (w - 0.26, w + torch.tensor([[0.5], [0.01]]), w + 0.5):
        with pytest.raises(AssertionError):
            Perturbation(x, {"0.weight": moved}).check(model, x, ball)


# ---------------------------------------------------------------- the domain


def test_pixels_to_255_are_recognised():
    with pytest.raises(InvalidInput, match=r"\[0, 255\].*0-255 pixels\? divide by 255"):
        JointBall(0.1, 0).check_domain(tensor(0.0, 255.0))


def test_normalised_inputs_are_recognised():
    with pytest.raises(
        InvalidInput, match=r"\[-0\.4242, 2\.821\].*normalised inputs\? normalisation belongs to the model: ns\.Normalized"
    ):
        JointBall(0.1, 0).check_domain(tensor(-0.4242, 2.8215))


def test_other_ranges_get_no_guess():
    with pytest.raises(InvalidInput) as error:
        JointBall(0.1, 0).check_domain(tensor(0.0, 1000.0))
    assert "?" not in str(error.value)
    with pytest.raises(InvalidInput) as error:
        JointBall(0.1, 0, (-1.0, 1.0)).check_domain(tensor(-2.0, 0.0))
    assert "?" not in str(error.value)
    assert "[-1.0, 1.0]" in str(error.value)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("domain", [None, (0.0, 1.0)])
def test_inputs_that_are_no_numbers_are_refused(bad, domain):
    with pytest.raises(InvalidInput, match="NaN or infinite"):
        JointBall(0.1, 0, domain).check_domain(tensor(0.5, bad))


def test_the_ends_of_the_domain_belong_to_it():
    JointBall(0.1, 0).check_domain(tensor(0.0, 1.0))
    JointBall(0.1, 0).check_domain(torch.empty(0, 3))
    JointBall(0.1, 0, None).check_domain(tensor(-1e6, 1e6))


# ---------------------------------------------------------------- Interval

numbers = st.floats(-10, 10, allow_subnormal=False)
boxes = st.lists(st.tuples(numbers, numbers), min_size=1, max_size=6).map(
    lambda ends: Interval(tensor(*map(min, ends)), tensor(*map(max, ends)))
)


@given(boxes, st.data())
def test_projection_is_the_nearest_point_of_the_box(box, data):
    t = tensor(*data.draw(st.lists(numbers, min_size=len(box.lo), max_size=len(box.lo))))
    p = box.project_(t.clone())
    for value, lo, hi, got in zip(t.tolist(), box.lo.tolist(), box.hi.tolist(), p.tolist(), strict=True):
        assert got == (value if lo <= value <= hi else lo if value < lo else hi)
    assert box.contains(p)
    assert box.project_(p.clone()).equal(p)
    assert box.contains(t) == t.equal(p)


@given(boxes, st.integers(0, 2**31))
def test_samples_lie_in_the_box_and_repeat_with_the_seed(box, seed):
    draw = box.sample(torch.Generator().manual_seed(seed))
    assert box.contains(draw)
    assert draw.equal(box.sample(torch.Generator().manual_seed(seed)))


@given(st.floats(0, 2), st.lists(st.floats(0, 1), min_size=1, max_size=5))
def test_the_centre_is_in_every_input_box(eps, values):
    ball = JointBall(eps, 0)
    for x in (tensor(*values), tensor(*values).float()):
        box = ball.input_box(x)
        assert box.contains(x)
        assert bool((box.lo >= 0).all())
        assert bool((box.hi <= 1).all())


@given(st.floats(0, 1), st.floats(0, 1), st.lists(st.floats(0, 1, width=32), min_size=1, max_size=5))
def test_balls_are_nested(a, b, values):
    small, large = (JointBall(e, e).input_box(torch.tensor(values)) for e in sorted((a, b)))
    assert large.contains(small.lo)
    assert large.contains(small.hi)


def test_nan_lies_in_no_box():
    assert not Interval(tensor(0.0), tensor(1.0)).contains(tensor(math.nan))


def test_projection_writes_in_place():
    t = tensor(5.0, -5.0)
    assert Interval(tensor(0.0, 0.0), tensor(1.0, 1.0)).project_(t) is t
    assert t.tolist() == [1.0, 0.0]


# ---------------------------------------------------------------- Perturbation


@pytest.fixture
def model():
    model = nn.Sequential(nn.Linear(2, 2)).eval()
    with torch.no_grad():
        model[0].weight.copy_(PARAMS["a.weight"])
    return model


def test_a_perturbation_unpacks():
    x, w = torch.zeros(1, 2), {"0.weight": torch.ones(2, 2)}
    x_adv, w_adv = Perturbation(x, w)
    assert x_adv is x
    assert w_adv is w
    assert list(Perturbation(x))[1] == {}


def test_check_returns_a_point_of_the_ball(model):
    x, ball = torch.full((3, 2), 0.5), JointBall(0.25, 0.5)
    corner = Perturbation(x + 0.25, {"0.weight": model[0].weight.detach() - 0.5})
    assert corner.check(model, x, ball) is corner
    each = Perturbation(x, {"0.weight": (model[0].weight.detach() + 0.5).expand(3, 2, 2)}, "sample")
    assert each.check(model, x, ball) is each


@pytest.mark.parametrize(
    "tamper",
    [
        lambda x, w: Perturbation(x + 0.2501, {}),
        lambda x, w: Perturbation(x * math.nan, {}),
        lambda x, w: Perturbation(x, {"0.weight": w + 0.5001}),
        lambda x, w: Perturbation(x, {"0.weight": w * math.nan}),
        lambda x, w: Perturbation(x, {"0.bias": torch.zeros(2)}),  # the ball holds biases fixed
        lambda x, w: Perturbation(x, {"nowhere": w}),
    ],
    ids=["x", "x is NaN", "w", "w is NaN", "held fixed", "unknown"],
)
def test_check_finds_what_left_the_ball(model, tamper):
    x = torch.full((3, 2), 0.5)
    with pytest.raises(AssertionError):
        tamper(x, model[0].weight.detach()).check(model, x, JointBall(0.25, 0.5))


@pytest.mark.parametrize(
    "tamper",
    [
        lambda x, w: Perturbation(x[:1], {}),  # one example for three: broadcasts against the box
        lambda x, w: Perturbation(x[:, None], {}),
        lambda x, w: Perturbation(x, {"0.weight": w.expand(3, 2, 2)}, "batch"),  # a W' each, said to be one for all
        lambda x, w: Perturbation(x, {"0.weight": w}, "sample"),  # one W', said to be one each
        lambda x, w: Perturbation(x, {"0.weight": w[:1]}, "batch"),
    ],
    ids=["fewer x", "other x", "more W than the scope has", "fewer W than the scope has", "part of W"],
)
def test_check_finds_wrong_shapes(model, tamper):
    x = torch.full((3, 2), 0.5)
    ball = JointBall(0.25, 10.0)
    with pytest.raises(AssertionError):
        tamper(x, model[0].weight.detach()).check(model, x, ball)


# --- rounding -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("radius", [0.0, 1e-9, 1e-3, 0.1, 0.5, 3.0])
def test_ends_of_boxes_are_the_nearest_numbers_on_their_side(dtype, radius):
    """Against exact rational arithmetic: inward ends lie in the ball and their outer neighbours do not; outward ends cover it."""
    numbers = torch.randn(40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = torch.cat([numbers * 1e-3, numbers, numbers * 100, torch.zeros(1), torch.ones(1)]).to(dtype)
    ball, params = JointBall(0.0, {"p": radius}), {"p": p}
    inner, outer = (ball.weight_boxes(params, outward=flag).get("p", Interval(p, p)) for flag in (False, True))
    far = torch.tensor(torch.inf, dtype=torch.float64)
    for i, at in enumerate(p.tolist()):
        low, high = Fraction(at) - Fraction(radius), Fraction(at) + Fraction(radius)
        ends = [Fraction(t[i].item()) for t in (outer.lo, inner.lo, inner.hi, outer.hi)]
        assert ends[0] <= low <= ends[1] <= ends[2] <= high <= ends[3]
        if dtype is torch.float64 and radius:
            steps = [Fraction(torch.nextafter(t[i], s * far).item()) for t, s in ((inner.lo, -1), (inner.hi, 1))]
            assert steps[0] < low
            assert high < steps[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.0, 1e-40, 1e-12, 1e-3, 1.0, 1e30])
def test_ends_of_boxes_that_are_cut_are_those_that_are_found_step_by_step(dtype, scale):
    """Two ways to round: by cutting bits off, and by looking at the neighbours of the nearest number."""
    generator = torch.Generator().manual_seed(0)
    largest, tiny = torch.finfo(dtype).max, torch.finfo(dtype).tiny
    p = (torch.randn(8, 30, generator=generator, dtype=torch.float64) * scale).to(dtype)
    p[0, :10] = torch.tensor([0.0, -0.0, 1.0, -1.0, 0.5, 2.0**-24, largest, -largest, tiny, -tiny], dtype=torch.float64).to(dtype)
    own = torch.rand(8, 1, generator=generator, dtype=torch.float64) + 1e-9
    onto = p.double().abs().clamp(2.0**-70, 2.0**100)  # sums of 0, and sums that the dtype has
    for radius in (2.0**-70, 1e-12, 5e-4, 2.0**-11, 0.5, 3.0, 2.0**100, own, onto, (onto * (1 + 2.0**-52)).clamp(max=2.0**100)):
        r = torch.as_tensor(radius, dtype=torch.float64)
        assert of_boxes._usual(r)
        for outward in (True, False):
            cut, stepped = (ends(p, r, r, outward) for ends in (of_boxes._cut_ends, of_boxes._ends))
            assert all(map(torch.equal, cut, stepped))


@pytest.mark.parametrize("radius", [0.0, 1e-30, 1e35])
def test_radii_that_would_leave_the_normal_numbers_are_not_cut(radius):
    assert not of_boxes._usual(torch.tensor(radius, dtype=torch.float64))


def test_a_box_smaller_than_the_numbers_leave_room_for_is_a_point_for_attacks_and_covered_by_bounds():
    p = torch.full((3,), 1e6)  # its neighbours are 0.0625 away
    ball = JointBall(0.0, {"p": 0.03})
    inner, outer = ball.weight_boxes({"p": p}), ball.weight_boxes({"p": p}, outward=True)
    assert torch.equal(inner["p"].lo, p)
    assert torch.equal(inner["p"].hi, p)
    assert (outer["p"].lo == 1e6 - 0.0625).all()
    assert (outer["p"].hi == 1e6 + 0.0625).all()


def test_what_is_outside_by_rounding_alone_is_put_onto_the_box():
    model = nn.Linear(2, 2).eval()
    x, ball = torch.tensor([[0.3, 0.7]]), JointBall(0.1, 0.0)
    rounded = Perturbation(x + 0.1)
    assert not ball.input_box(x).contains(rounded.x)  # 0.3 + 0.1 in float32 is above the real sum
    assert ball.input_box(x).contains(rounded.check(model, x, ball).x)
    with pytest.raises(AssertionError, match="left the input ball"):
        Perturbation(x + 0.1001).check(model, x, ball)


def test_who_knows_one_radius_for_all_elements_says_so():
    assert JointBall(0.1, 0.0).eps_x_number("square") == 0.1
    with pytest.raises(InvalidInput, match="square takes one input radius"):
        JointBall(torch.tensor([0.1, 0.2]), 0.0).eps_x_number("square")
    with pytest.raises(InvalidInput, match="an array of <U1"):
        JointBall(np.array(["a", "b"]), 0.0)
    described = JointBall((0.1, torch.tensor([0.2, 0.3], dtype=torch.float64)), 0.0).describe()["eps_x_per_element"]
    assert described["below"] == 0.1 and described["above"]["largest"] == 0.3


@pytest.mark.parametrize("outward", [False, True])
def test_a_scalar_parameter_has_a_box(outward):
    """Also where the ends are numbers of its type: 1.5 +- 0.25 in float32."""
    box = JointBall(0.0, {"s": 0.25}, None).weight_boxes({"s": torch.tensor(1.5)}, outward=outward)["s"]
    assert (box.lo.item(), box.hi.item(), box.lo.shape) == (1.25, 1.75, torch.Size([]))
