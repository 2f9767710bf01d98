"""Surfaces and certificates: limits at radius 0, hand-made attacks, resumed logs, and everything that must be refused."""

import functools
import hashlib
import itertools
import json

import numpy as np
import pytest
import torch
from torch import nn

from nonsingular.attacks.joint_pgd import joint_pgd
from nonsingular.attacks.neuron_pgd import neuron_pgd
from nonsingular.bounds.theorem import theorem1
from nonsingular.certificates.certify import certify
from nonsingular.errors import InvalidInput, UnsupportedModel
from nonsingular.evaluation.attacked import evaluate
from nonsingular.results.files import Log
from nonsingular.threat.ball import JointBall
from nonsingular.threat.grid import axis
from nonsingular.threat.perturbation import Perturbation


def seeded(model, seed=0):
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g) / max(1, p[0].numel()) ** 0.5)
    return model.eval()


def dense(*dims, bias=False, seed=0):
    layers = []
    for a, b in itertools.pairwise(dims):
        layers += [nn.Linear(a, b, bias=bias), nn.ReLU()]
    return seeded(nn.Sequential(nn.Flatten(), *layers[:-1]), seed)


def conv():
    return seeded(nn.Sequential(nn.Conv2d(1, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)))


MODELS = {"dense": lambda: dense(9, 8, 3), "conv": conv}
G = torch.Generator().manual_seed(0)
X = torch.rand(30, 1, 3, 3, generator=G)
Y = torch.randint(3, (30,), generator=G)
GRID = {"eps_x": [0.0, 0.1], "eps_w": [0.0, 0.02]}


def snapshot(model):
    return {k: v.clone() for k, v in model.state_dict().items()}, [m.training for m in model.modules()], [
        (p.requires_grad, p.grad) for p in model.parameters()
    ]  # fmt: skip


def unchanged(model, before):
    after = snapshot(model)
    return all(v.equal(after[0][k]) for k, v in before[0].items()) and before[1:] == after[1:]


def nothing(model, x, y, ball, *, scope):
    """An attack that does not attack."""
    return Perturbation(x, {}, scope)


# ---------------------------------------------------------------- limits


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("scope", ["sample", "batch", "dataset"])
def test_radius_zero_is_clean_accuracy(name, scope):
    model = MODELS[name]()
    clean = sum(int(model(x[None]).argmax()) == int(y) for x, y in zip(X, Y, strict=True)) / len(Y)
    s = evaluate(model, (X, Y), eps_x=0.0, eps_w=0.0, scope=scope)
    assert s.accuracy.tolist() == [[clean]]
    assert s.auc == pytest.approx(clean)
    assert (s.n, s.scope, s.eps_x, s.eps_w) == (30, scope, (0.0,), (0.0,))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("scope", ["sample", "batch", "dataset"])
def test_the_corner_of_a_grid_is_clean_and_attacks_only_lower_it(name, scope):
    model = MODELS[name]()
    y = model(X).argmax(1)  # what the model says is right: clean accuracy 1
    before = snapshot(model)
    s = evaluate(model, (X, y), **GRID, scope=scope)
    assert s.accuracy[0, 0] == 1.0
    assert s.accuracy.shape == (2, 2)
    assert s.accuracy[1, 1] < 1.0
    assert unchanged(model, before)


def test_a_ball_that_holds_everything_leaves_nothing():
    # one layer, one input in [0, 1] and weights +-10 around the model: every example can be moved to the other class
    model = dense(9, 3)
    y = model(X).argmax(1)
    assert evaluate(model, (X, y), eps_x=[1.0], eps_w=[10.0]).accuracy.item() == 0.0


def test_one_linear_layer_equals_the_closed_form():
    # worst margin over W and x >= 0: min_x' sum_k (D_k - 2 eps_w) x'_k, each x'_k at an end of its interval
    model = dense(9, 2, seed=4)
    y = model(X).argmax(1)
    D = (model[1].weight[0] - model[1].weight[1]).detach()
    for eps_x, eps_w in itertools.product((0.0, 0.05, 0.2), (0.0, 0.02, 0.1)):
        worst = []
        for x, label in zip(X.flatten(1), y, strict=True):
            c = (D if label == 0 else -D) - 2 * eps_w
            lo, hi = (x - eps_x).clamp(0, 1), (x + eps_x).clamp(0, 1)
            worst.append(float(torch.minimum(c * lo, c * hi).sum()))
        want = sum(m > 0 for m in worst) / len(worst)
        assert min(abs(m) for m in worst) > 1e-5  # no tie that rounding could turn
        assert evaluate(model, (X, y), eps_x=[eps_x], eps_w=[eps_w]).accuracy.item() == pytest.approx(want), (eps_x, eps_w)


# ---------------------------------------------------------------- which attack, which tensors


def test_default_attack_and_scope():
    assert (evaluate(dense(9, 3), (X, Y), eps_x=0.0, eps_w=0.0).attack) == "strongest"
    assert (evaluate(dense(9, 3), (X, Y), eps_x=0.0, eps_w=0.0).scope) == "sample"
    assert (evaluate(dense(9, 3), (X, Y), eps_x=0.0, eps_w=0.0, scope="batch").attack) == "strongest"
    assert (evaluate(conv(), (X, Y), eps_x=0.0, eps_w=0.0).attack) == "strongest"


def test_the_default_works_where_layers_share_a_weight():
    """A tied dense network has no scalar per neuron: the default must move its elements."""
    shared = nn.Linear(9, 9, bias=False)
    model = seeded(nn.Sequential(nn.Flatten(), shared, nn.ReLU(), shared, nn.ReLU(), nn.Linear(9, 3, bias=False)))
    assert evaluate(model, (X, Y), **GRID).attack == "strongest"


def test_a_function_is_an_attack():
    seen = []

    def half_way(model, x, y, ball, *, scope):
        seen.append((len(x), ball.eps_x, ball.eps_w, scope))
        return Perturbation(
            (x + ball.eps_x).clamp(0, 1), {n: b.hi for n, b in ball.weight_boxes(dict(model.named_parameters())).items()}, scope
        )

    model = dense(9, 8, 3)
    s = evaluate(model, (X, Y), **GRID, scope="dataset", attack=half_way)
    assert s.attack == "half_way"
    assert seen == [(30, 0.0, 0.0, "dataset"), (30, 0.1, 0.0, "dataset"), (30, 0.0, 0.02, "dataset"), (30, 0.1, 0.02, "dataset")]
    moved = nn.Sequential(*(m for m in dense(9, 8, 3)))
    with torch.no_grad():
        for p in moved.parameters():
            p.add_(0.02)
        by_hand = (moved((X + 0.1).clamp(0, 1)).argmax(1) == Y).double().mean().item()
    assert s.accuracy[1, 1] == pytest.approx(by_hand)


def test_an_attack_that_leaves_the_ball_fails_the_run():
    def cheat(model, x, y, ball, *, scope):
        return Perturbation(1 - x, {}, scope)

    with pytest.raises(AssertionError, match="left the input ball"):
        evaluate(dense(9, 3), (X, Y), eps_x=[0.1], eps_w=[0.0], attack=cheat)


def test_an_attack_that_answers_for_another_scope_fails_the_run():
    """A surface of scope `dataset` must not be made of weights that each example has for itself."""

    def own_weights(model, x, y, ball, *, scope):
        return neuron_pgd(model, x, y, ball)

    with pytest.raises((AssertionError, InvalidInput)):
        evaluate(dense(9, 3), (X, Y), eps_x=[0.1], eps_w=[0.1], attack=own_weights, scope="dataset")


def test_an_attack_that_returns_fewer_examples_fails_the_run():
    def lazy(model, x, y, ball, *, scope):
        return Perturbation(x[:1], {}, scope)

    with pytest.raises((AssertionError, InvalidInput)):
        evaluate(dense(9, 3), (X, Y), eps_x=[1.0], eps_w=[0.0], attack=lazy)


def batches(scope, n, size):
    sizes = []

    def count(model, x, y, ball, *, scope):
        sizes.append(len(x))
        return Perturbation(x, {}, scope)

    evaluate(dense(9, 3), (X[:n], Y[:n]), eps_x=[0.1], eps_w=[0.1], scope=scope, attack=count, batch_size=size)
    return sizes


def test_who_shares_the_weights():
    assert batches("batch", 30, 8) == [8, 8, 8, 6]
    assert batches("dataset", 30, 8) == [30]
    assert sum(batches("sample", 30, 8)) == 30


def radii_seen(**settings):
    seen = []

    def spy(model, x, y, ball, *, scope):
        seen.append(ball.radii(dict(model.named_parameters())))
        return Perturbation(x, {}, scope)

    s = evaluate(dense(9, 8, 3, bias=True), (X, Y), eps_x=[0.0], attack=spy, **settings)
    return s, seen


def test_a_mapping_makes_an_axis_of_fractions():
    s, seen = radii_seen(eps_w={"1.weight": 0.5, "3.bias": 0.1})
    assert s.eps_w == pytest.approx([i / 10 for i in range(11)])
    assert seen[0] == {}
    assert seen[5] == pytest.approx({"1.weight": 0.25, "3.bias": 0.05})
    assert seen[10] == pytest.approx({"1.weight": 0.5, "3.bias": 0.1})
    assert {n: m["radius"] for n, m in s.about["moved_at_largest_eps_w"].items()} == pytest.approx(
        {"1.weight": 0.5, "3.bias": 0.1}
    )


CHANNELS = torch.tensor([0.02, 0.0, 0.05]).double()
PER_CHANNEL = {"0.weight": CHANNELS.view(3, 1, 1, 1), "0.bias": (0.0, CHANNELS), "3.weight": torch.full((3, 12), 0.01).double()}


def test_radii_per_channel_make_an_axis_of_fractions():
    model, seen = conv(), []

    def spy(model, x, y, ball, *, scope):
        boxes = ball.weight_boxes(dict(model.named_parameters()))
        seen.append({n: ((b.hi + b.lo) / 2, (b.hi - b.lo) / 2) for n, b in boxes.items()})
        return Perturbation(x, {n: b.hi for n, b in boxes.items()}, "batch")

    s = evaluate(model, (X, Y), eps_x=[0.0], eps_w=PER_CHANNEL, scope="batch", attack=spy, batch_size=30)
    assert s.eps_w == pytest.approx([i / 10 for i in range(11)])
    assert seen[0] == {}
    centre, half = seen[5]["0.weight"]
    torch.testing.assert_close(centre, model[0].weight.detach(), rtol=0, atol=1e-7)
    torch.testing.assert_close(half.amax((1, 2, 3)), CHANNELS.float() / 2, rtol=0, atol=1e-7)
    centre, half = seen[10]["0.bias"]  # [b, b + CHANNELS]
    torch.testing.assert_close(centre, model[0].bias.detach() + CHANNELS.float() / 2, rtol=0, atol=1e-7)
    torch.testing.assert_close(half, CHANNELS.float() / 2, rtol=0, atol=1e-7)


def test_records_tell_tensors_by_shape_largest_value_and_hash():
    s = evaluate(conv(), (X, Y), eps_x=[0.0], eps_w=PER_CHANNEL, scope="dataset")
    told = json.loads(json.dumps(s.about))["eps_w_per_tensor"]
    assert set(told) == set(PER_CHANNEL)
    assert (told["0.weight"]["shape"], told["0.weight"]["largest"]) == ([3, 1, 1, 1], pytest.approx(0.05))
    assert told["0.bias"]["below"] == 0.0
    assert told["0.bias"]["above"]["shape"] == [3]
    assert told["3.weight"]["sha256"] == hashlib.sha256(torch.full((3, 12), 0.01).double().numpy().tobytes()).hexdigest()
    moved = s.about["moved_at_largest_eps_w"]
    assert (moved["0.weight"]["shape"], moved["0.weight"]["radius"]) == ([3, 1, 2, 2], told["0.weight"])
    with_numbers = evaluate(dense(9, 3), (X, Y), eps_x=[0.0], eps_w={"1.weight": 0.5})
    assert with_numbers.about["eps_w_per_tensor"] == {"1.weight": 0.5}


def test_cells_of_other_radii_are_not_taken_from_the_log(tmp_path):
    calls = []

    def count(model, x, y, ball, *, scope):
        calls.append(ball)
        return Perturbation(x, {}, scope)

    def run(eps_w):
        calls.clear()
        evaluate(conv(), (X, Y), eps_x=[0.0], eps_w=eps_w, scope="dataset", attack=count, log=tmp_path / "log.jsonl")
        return len(calls)

    assert run(PER_CHANNEL) == 11
    assert run({n: (r if isinstance(r, tuple) else r.clone()) for n, r in PER_CHANNEL.items()}) == 0
    assert run(PER_CHANNEL | {"0.weight": PER_CHANNEL["0.weight"].flip(0)}) == 11
    assert run(PER_CHANNEL | {"0.bias": (CHANNELS, 0.0)}) == 11


@pytest.mark.parametrize("kind, scope", [("dense", "sample"), ("conv", "sample"), ("conv", "batch"), ("conv", "dataset")])
def test_attacked_accuracy_of_any_box_is_above_the_certified(kind, scope):
    """Over the whole axis, by the default attack; without weights that move it is the clean accuracy."""
    model = MODELS[kind]()
    named = list(model.named_parameters())
    radii = {n: (torch.full((len(p), *[1] * (p.dim() - 1)), 0.05), torch.rand(p.shape) / 20) for n, p in named}
    s = evaluate(model, (X, Y), eps_x=[0.0, 0.05], eps_w=radii, scope=scope)
    with torch.no_grad():
        assert s.accuracy[0, 0] == (model(X).argmax(1) == Y).double().mean().item()
    unit = JointBall(1.0, radii)
    for j in range(2):
        for i in (0, 3, 10):
            assert certify(model, X, Y, unit.scaled(s.eps_x[j], s.eps_w[i])).accuracy <= s.accuracy[i, j]
    assert s.accuracy[-1, -1] < s.accuracy[0, 0]


def test_a_radius_that_fits_no_tensor_is_refused_before_any_work():
    for radius, message in ((torch.ones(4), r"shape \(4,\).*\(3, 1, 2, 2\)"), (-torch.ones(3, 1, 1, 1), "-1.0")):
        with pytest.raises(InvalidInput, match=message):
            evaluate(conv(), (X, Y), eps_x=[0.0], eps_w={"0.weight": radius}, attack=nothing)


def test_an_empty_mapping_moves_nothing():
    """JointBall(eps_w={}) holds every weight; so must evaluate."""
    _, seen = radii_seen(eps_w={})
    assert all(r == {} for r in seen)


def test_moves_and_relative():
    model = dense(9, 8, 3, bias=True)
    assert set(radii_seen(eps_w=[0.1])[1][0]) == {"1.weight", "3.weight"}
    assert set(radii_seen(eps_w=[0.1], moves="all")[1][0]) == {"1.weight", "3.weight", "1.bias", "3.bias"}
    want = {n: 0.1 * float(p.detach().abs().max()) for n, p in model.named_parameters() if p.dim() == 2}
    assert radii_seen(eps_w=[0.1], relative=True)[1][0] == pytest.approx(want)
    named = radii_seen(eps_w={"1.bias": 0.5}, relative=True)[1][-1]
    assert named == pytest.approx({"1.bias": 0.5 * float(model[1].bias.detach().abs().max())})


def test_without_a_domain_any_input_will_do():
    x = 10 * X - 5
    assert evaluate(dense(9, 3), (x, Y), eps_x=[0.1], eps_w=[0.1], domain=None).n == 30
    assert evaluate(dense(9, 3), (x, Y), eps_x=[0.1], eps_w=[0.1], domain=(-5.0, 5.0)).about["domain"] == (-5.0, 5.0)


def test_float64_models_work():
    model, x = dense(9, 8, 3).double(), X.double()
    y = model(x).argmax(1)
    a, b = evaluate(model, (x, y), **GRID), evaluate(model.float(), (x.float(), y), **GRID)
    assert a.about["dtype"] == "torch.float64"
    assert np.abs(a.accuracy - b.accuracy).max() <= 1 / 30


def test_bfloat16_models_work():
    model, x = dense(9, 8, 3).bfloat16(), X.bfloat16()
    assert evaluate(model, (x, Y), eps_x=[0.0], eps_w=[0.0], attack=nothing).n == 30


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.int16])
def test_labels_of_any_whole_number_type_work_or_are_refused(dtype):
    want = evaluate(dense(9, 8, 3), (X, Y), **GRID).accuracy
    try:
        got = evaluate(dense(9, 8, 3), (X, Y.to(dtype)), **GRID).accuracy
    except InvalidInput:
        return
    assert np.array_equal(got, want)


def test_one_class_is_flagged():
    model = dense(9, 3)
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].weight[2] = 1.0
    s = evaluate(model, (X, Y), eps_x=[0.0], eps_w=[0.0])
    assert dict(s.flags) == {(0, 0): ("one-class",)}
    assert dict(evaluate(model, (X[:1], Y[:1]), eps_x=[0.0], eps_w=[0.0]).flags) == {}
    spread = dense(9, 8, 3, seed=1)
    assert len(spread(X).argmax(1).unique()) > 1
    assert dict(evaluate(spread, (X, Y), eps_x=[0.0], eps_w=[0.0]).flags) == {}


# ---------------------------------------------------------------- logs


class Counting:
    def __init__(self, name="counting"):
        self.calls, self.__name__ = [], name

    def __call__(self, model, x, y, ball, *, scope):
        self.calls.append((ball.eps_x, ball.eps_w))
        return Perturbation(x, {}, scope)


def test_finished_cells_are_not_run_again(tmp_path):
    log, attack, model = tmp_path / "events.jsonl", Counting(), dense(9, 8, 3)
    first = evaluate(model, (X, Y), **GRID, attack=attack, log=log)
    assert len(attack.calls) == 4
    again = evaluate(model, (X, Y), **GRID, attack=attack, log=log)
    assert len(attack.calls) == 4
    assert np.array_equal(first.accuracy, again.accuracy)
    assert again.to_dict() == first.to_dict()
    finer = evaluate(model, (X, Y), eps_x=[0.0, 0.05, 0.1], eps_w=[0.0, 0.02], attack=attack, log=log)
    assert attack.calls[4:] == [(0.05, 0.0), (0.05, 0.02)]
    assert finer.accuracy.shape == (2, 3)


@pytest.mark.parametrize("kept", [0, 1, 3])
def test_an_interrupted_run_does_the_rest(tmp_path, kept):
    log, attack, model = tmp_path / "events.jsonl", Counting(), dense(9, 8, 3)
    evaluate(model, (X, Y), **GRID, attack=attack, log=log)
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:kept]) + lines[kept][:20])  # and one line torn
    evaluate(model, (X, Y), **GRID, attack=attack, log=log)
    assert len(attack.calls) == 4 + 4 - kept
    assert len(list(Log(log))) == 4


def test_the_log_of_other_numbers_is_ignored(tmp_path):
    log, model = tmp_path / "events.jsonl", dense(9, 8, 3)
    attack = Counting()

    def calls(model=model, x=X, y=Y, attack=attack, **more):
        before = len(attack.calls)
        evaluate(model, (x, y), eps_x=[0.1], eps_w=[0.02], attack=attack, log=log, **more)
        return len(attack.calls) - before

    assert calls() == 1
    assert calls() == 0
    assert calls(model=dense(9, 8, 3, seed=1)) == 1
    assert calls(x=X.flip(0)) == 1
    assert calls(y=(Y + 1) % 3) == 1
    assert calls(scope="dataset") == 1
    assert calls(moves="all") == 1
    assert calls(relative=True) == 1
    assert calls(domain=(-1.0, 1.0)) == 1
    assert calls(scope="batch", batch_size=30) == 1
    assert calls(scope="batch", batch_size=31) == 1
    assert calls(attack=Counting("another")) == 1
    assert calls() == 0


def test_two_attacks_of_one_name_do_not_share_a_log(tmp_path):
    """partial(joint_pgd, steps=0) and partial(joint_pgd, steps=50) have no name of their own."""
    log, model = tmp_path / "events.jsonl", dense(9, 8, 3)
    y = model(X).argmax(1)
    weak, strong = (functools.partial(joint_pgd, steps=n, step_x=0.1) for n in (0, 50))
    grid = {"eps_x": [0.5], "eps_w": [0.0], "scope": "dataset"}
    want = evaluate(model, (X, y), attack=strong, **grid).accuracy.item()
    assert evaluate(model, (X, y), attack=weak, **grid, log=log).accuracy.item() == 1.0
    assert evaluate(model, (X, y), attack=strong, **grid, log=log).accuracy.item() == want < 1.0


def test_two_networks_of_the_same_weights_do_not_share_a_log(tmp_path):
    log, model = tmp_path / "events.jsonl", dense(9, 8, 3)
    other = nn.Sequential(model[0], model[1], nn.Tanh(), model[3]).eval()
    other.load_state_dict(model.state_dict())
    y = model(X).argmax(1)
    want = evaluate(other, (X, y), eps_x=[0.0], eps_w=[0.0], attack=nothing).accuracy.item()
    assert want < 1.0
    assert evaluate(model, (X, y), eps_x=[0.0], eps_w=[0.0], attack=nothing, log=log).accuracy.item() == 1.0
    assert evaluate(other, (X, y), eps_x=[0.0], eps_w=[0.0], attack=nothing, log=log).accuracy.item() == want


def test_a_log_line_of_something_else_is_refused_or_ignored(tmp_path):
    log = tmp_path / "events.jsonl"
    Log(log).append({"event": "made by another program"})
    try:
        evaluate(dense(9, 3), (X, Y), eps_x=[0.0], eps_w=[0.0], log=log)
    except InvalidInput as e:
        assert "events.jsonl" in str(e)  # noqa: PT017


# ---------------------------------------------------------------- the grid


def test_one_number_makes_eleven_steps():
    assert axis(1.0, "eps_x") == pytest.approx([i / 10 for i in range(11)])
    assert axis(0, "eps_x") == (0.0,)
    assert axis([0.3], "eps_x") == (0.3,)
    assert axis(np.linspace(0, 1, 3), "eps_x") == (0.0, 0.5, 1.0)
    assert axis(1 / 3, "eps_x")[-1] == pytest.approx(1 / 3, abs=1e-11)


@pytest.mark.parametrize("radius", [1e-9, 1e-12, 1e-15])
def test_a_very_small_radius_is_a_radius(radius):
    values = axis(radius, "eps_w")
    assert len(values) == 11
    assert values[-1] == pytest.approx(radius, rel=1e-9)


@pytest.mark.parametrize("value", [np.float32(0.5), np.float64(0.5), torch.tensor(0.5)])
def test_numbers_of_numpy_and_torch_are_numbers(value):
    assert axis(value, "eps_x")[-1] == pytest.approx(0.5)


@pytest.mark.parametrize("name", ["eps_x", "eps_w"])
@pytest.mark.parametrize(
    "bad",
    [-0.1, float("nan"), float("inf"), [], [0.0, -0.1], [0.1, 0.0], [0.0, 0.1, 0.1], [0.0, float("nan")], [0.0, float("inf")]],
)
def test_a_bad_grid_is_quoted(name, bad):
    with pytest.raises(InvalidInput) as error:
        evaluate(dense(9, 3), (X, Y), **(GRID | {name: bad}))
    assert name in str(error.value)
    assert str(bad) in str(error.value)


# ---------------------------------------------------------------- everything that no number can be computed for


def poisoned():
    model = dense(9, 3)
    with torch.no_grad():
        model[1].weight[0, 0] = float("nan")
    return model


def batch_norm():
    return nn.Sequential(nn.Flatten(), nn.Linear(9, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)).train()


BAD = {
    "NaN weights": (poisoned, X, Y, {}, "NaN or infinite logits for 30 examples"),
    "label too large": (lambda: dense(9, 3), X, torch.full((30,), 3), {}, r"labels span 3\.\.3.*3 classes"),
    "label negative": (lambda: dense(9, 3), X, torch.full((30,), -1), {}, r"labels span -1"),
    "labels of another number": (lambda: dense(9, 3), X, Y[:7], {}, r"\(7,\).*30 inputs"),
    "labels one-hot": (lambda: dense(9, 3), X, torch.eye(3)[Y], {}, r"y has shape"),
    "labels in float": (lambda: dense(9, 3), X, Y.float(), {}, "float32"),
    "no data": (lambda: dense(9, 3), X[:0], Y[:0], {}, "empty"),
    "pixels to 255": (lambda: dense(9, 3), X * 255, Y, {}, "divide by 255"),
    "normalised": (lambda: dense(9, 3), X * 4 - 2, Y, {}, "normalised inputs"),
    "NaN input": (lambda: dense(9, 3), X / 0 * 0, Y, {}, "NaN"),
    "bytes": (lambda: dense(9, 3), (X * 255).byte(), Y, {}, "uint8"),
    "unknown layer": (lambda: dense(9, 3), X, Y, {"eps_w": {"nope.weight": 0.1}}, r"nope\.weight.*1\.weight"),
    "bad radius of a layer": (lambda: dense(9, 3), X, Y, {"eps_w": {"1.weight": -0.1}}, r"1\.weight.*-0\.1"),
    "train mode": (batch_norm, X, Y, {}, r"train mode.*BatchNorm1d.*model\.eval\(\)"),
    "dropout": (lambda: nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(9, 3)), X, Y, {}, r"train mode.*Dropout"),
    "another input shape": (lambda: dense(10, 3), X, Y, {}, r"does not accept inputs of shape \(30, 1, 3, 3\)"),
    "one output": (lambda: dense(9, 1), X, Y, {}, r"\(30, 1\)"),
    "no logits": (lambda: nn.Conv2d(1, 1, 1), X, Y, {}, r"\(30, 1, 3, 3\)"),
    "scope": (lambda: dense(9, 3), X, Y, {"scope": "all"}, "'all'"),
    "attack": (lambda: dense(9, 3), X, Y, {"attack": "papper"}, "did you mean 'paper'"),
    "attack that cannot": (conv, X, Y, {"attack": "neuron"}, "conv2d"),
    "attack of another scope": (lambda: dense(9, 3), X, Y, {"attack": "neuron", "scope": "batch"}, "scope batch"),
    "moves": (lambda: dense(9, 3), X, Y, {"moves": "none"}, "'none'"),
    "batch size": (lambda: dense(9, 3), X, Y, {"batch_size": 0}, "batch_size is 0"),
    "domain": (lambda: dense(9, 3), X, Y, {"domain": (1.0, 0.0)}, "domain"),
    "float64 data, float32 model": (lambda: dense(9, 3), X.double(), Y, {}, "float64"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_evaluated_is_refused_in_one_sentence(case, tmp_path):
    make, x, y, settings, message = BAD[case]
    model = make()
    before = snapshot(model)
    with pytest.raises(InvalidInput, match=message) as error:
        evaluate(model, (x, y), **(GRID | settings), log=tmp_path / "events.jsonl")
    assert len(str(error.value).splitlines()) == 1
    assert case == "NaN weights" or unchanged(model, before)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ["x", "y"])
def test_arrays_of_numpy_are_refused_or_work(what):
    x, y = (X.numpy(), Y) if what == "x" else (X, Y.numpy())
    try:
        assert evaluate(dense(9, 3), (x, y), eps_x=[0.0], eps_w=[0.0]).n == 30
    except InvalidInput as e:
        assert what in str(e)  # noqa: PT017


# ---------------------------------------------------------------- certificates


@pytest.mark.parametrize("bias", [False, True])
def test_a_certificate_is_the_bound_in_float64(bias):
    model, ball = dense(9, 8, 3, bias=bias), JointBall(0.08, 0.02) if bias else JointBall(0.01, 0.001)
    y = model(X).argmax(1)
    before = snapshot(model)
    c = certify(model, X, y, ball, bound="theorem1")
    assert unchanged(model, before)
    assert c.margins.shape == (30, 3)
    assert c.margins.dtype == torch.float64
    assert c.verified.shape == (30,)
    assert (c.bound, c.scope) == ("theorem1", "sample")
    rows = c.margins.tolist()
    by_hand = [min(v for j, v in enumerate(row) if j != t) > 0 for row, t in zip(rows, y.tolist(), strict=True)]
    assert c.verified.tolist() == by_hand
    assert all(row[t] == 0 for row, t in zip(rows, y.tolist(), strict=True))
    assert c.accuracy == pytest.approx(sum(by_hand) / 30)
    assert 0 < c.accuracy < 1
    double = dense(9, 8, 3, bias=bias).double()
    assert torch.allclose(c.margins, theorem1(double, X.double(), y, ball))


def test_the_default_certificate_is_the_best_bound_and_knows_convolutions():
    for model in (dense(9, 8, 3), conv()):
        y, ball = model(X).argmax(1), JointBall(0.002, 0.0005)
        c = certify(model, X, y, ball)
        assert c.bound == "best"
        for method in ("interval", "crown-ibp", "crown"):
            assert (c.verified | ~certify(model, X, y, ball, bound=method).verified).all()
        assert 0 < c.accuracy <= 1


def test_a_bound_that_is_not_finite_verifies_nothing(put_bound):
    for value in (float("nan"), float("inf")):

        def bound(model, x, y, ball, value=value):
            return torch.full((len(x), 3), value)

        put_bound("best", bound)
        assert certify(dense(9, 3), X, Y, JointBall(0.1, 0.1)).accuracy == 0


def test_a_certificate_at_radius_zero_is_the_margin():
    model = dense(9, 8, 3)
    c = certify(model, X, Y, JointBall(0.0, 0.0))
    logits = model(X)
    assert torch.allclose(c.margins, (logits.gather(1, Y[:, None]) - logits).double(), atol=1e-5)
    assert c.accuracy == evaluate(model, (X, Y), eps_x=0.0, eps_w=0.0).accuracy.item()


def test_certified_is_never_above_attacked():
    for seed in range(3):
        model = dense(9, 8, 6, 3, seed=seed)
        y = model(X).argmax(1)
        s = evaluate(model, (X, y), eps_x=[0.0, 0.01, 0.05], eps_w=[0.0, 0.002, 0.01])
        for (i, w), (j, e) in itertools.product(enumerate(s.eps_w), enumerate(s.eps_x)):
            assert certify(model, X, y, JointBall(e, w)).accuracy <= s.accuracy[i, j]


def test_a_wrong_prediction_is_never_verified():
    model = dense(9, 8, 3)
    wrong = (model(X).argmax(1) + 1) % 3
    assert certify(model, X, wrong, JointBall(0.0, 0.0)).accuracy == 0.0


def test_the_printed_theorem_may_not_certify():
    with pytest.raises(InvalidInput, match="'theorem1-printed' is not a bound"):
        certify(dense(9, 3), X, Y, JointBall(0.1, 0.1), bound="theorem1-printed")
    with pytest.raises(InvalidInput, match="did you mean 'theorem1'"):
        certify(dense(9, 3), X, Y, JointBall(0.1, 0.1), bound="theorem")


def test_a_network_without_rules_is_not_certified():
    with pytest.raises(UnsupportedModel, match="mish at node"):
        certify(nn.Sequential(nn.Flatten(), nn.Linear(9, 3), nn.Mish()), X, Y, JointBall(0.1, 0.1))
    with pytest.raises(UnsupportedModel, match="conv2d"):
        certify(conv(), X, Y, JointBall(0.1, 0.1), bound="theorem1")


@pytest.mark.parametrize("case", [name for name, row in BAD.items() if not row[3] and name != "float64 data, float32 model"])
def test_what_cannot_be_certified_is_refused(case):
    make, x, y, _, message = BAD[case]
    with pytest.raises(InvalidInput, match=message):
        certify(make(), x, y, JointBall(0.1, 0.1))


def test_float64_data_and_models_are_certified_alike():
    model, ball = dense(9, 8, 3), JointBall(0.01, 0.001)
    a = certify(model, X, Y, ball).margins
    assert torch.allclose(certify(dense(9, 8, 3).double(), X.double(), Y, ball).margins, a)


def test_huge_radii_certify_nothing():
    c = certify(dense(9, 8, 8, 3), X, Y, JointBall(1e200, 1e200, None))
    assert c.accuracy == 0.0


def test_surfaces_of_evaluate_are_json():
    s = evaluate(dense(9, 8, 3), (X, Y), eps_x=[0.0, 0.1], eps_w={"1.weight": 0.1})
    json.dumps(s.to_dict(), allow_nan=False)
