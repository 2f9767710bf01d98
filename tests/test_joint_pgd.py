"""Joint PGD against a plain-autograd twin (bit for bit), closed-form optima, and the promise to leave the model alone."""

import contextlib
import itertools
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

import oracle
from nonsingular.attacks.joint_pgd import joint_pgd
from nonsingular.errors import InvalidInput
from nonsingular.threat.ball import JointBall
from sampling import first

# ---------------------------------------------------------------- small models with fixed numbers


def seeded(model, seed=0):
    """The model in eval mode with numbers from its own generator; running variances stay positive."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g) / max(1, p[0].numel()) ** 0.5)
        for name, b in model.named_buffers():
            if b.is_floating_point():
                b.copy_(0.5 + torch.rand(b.shape, generator=g) if name.endswith("var") else torch.randn(b.shape, generator=g))
    return model.eval()


def dense(*dims, bias=True):
    layers = [nn.Flatten()]
    for a, b in itertools.pairwise(dims):
        layers += [nn.Linear(a, b, bias=bias), nn.ReLU()]
    return seeded(nn.Sequential(*layers[:-1]))


def conv():
    return seeded(
        nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(16, 5)
        )
    )


def batch_norm():
    return seeded(nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 5)))


class Tied(nn.Module):
    """One weight under two names."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(36, 36), nn.Linear(36, 36), nn.Linear(36, 5)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.head(F.relu(self.second(F.relu(self.first(x.flatten(1))))))


class Twice(nn.Module):
    """One submodule under two names, used under both."""

    def __init__(self):
        super().__init__()
        self.one, self.head = nn.Linear(36, 36), nn.Linear(36, 5)
        self.other = self.one

    def forward(self, x):
        return self.head(F.relu(self.other(F.relu(self.one(x.flatten(1))))))


class Spare(nn.Module):
    """A weight that the forward pass never touches."""

    def __init__(self):
        super().__init__()
        self.used, self.spare = nn.Linear(36, 5), nn.Linear(36, 5)

    def forward(self, x):
        return self.used(x.flatten(1))


MODELS = {
    "one layer": lambda: dense(36, 5),
    "dense": lambda: dense(36, 16, 8, 5),
    "no bias": lambda: dense(36, 16, 8, 5, bias=False),
    "conv": conv,
    "batch norm": batch_norm,
    "tied": lambda: seeded(Tied()),
    "shared module": lambda: seeded(Twice()),
    "unused weight": lambda: seeded(Spare()),
    "frozen": lambda: dense(36, 8, 5).requires_grad_(False),
}


def batch(n=10, seed=1):
    g = torch.Generator().manual_seed(seed)
    return torch.rand(n, 1, 6, 6, generator=g), torch.randint(5, (n,), generator=g)


def pieces(chunk):
    """The keyword, or nothing for one pass over everything (the batches here are smaller than any sensible default)."""
    return {} if chunk is None else {"chunk": chunk}


def radii(model, eps_w, moves="weights", relative=False):
    """Radius by name, by the test's own reading of the ball."""
    out = {}
    for name, p in model.named_parameters():
        if moves == "all" or p.dim() >= 2:
            r = eps_w * p.abs().max().item() if relative else eps_w
            out |= {name: r} if r > 0 else {}
    return out


def assert_same(result, twin):
    x, weights = twin
    assert torch.equal(result.x, x)
    assert set(result.weights) == set(weights)
    for name, w in weights.items():
        assert torch.equal(result.weights[name], w), name


# ---------------------------------------------------------------- bit for bit


@pytest.mark.parametrize("chunk", first(1, [7, None, 1]))
@pytest.mark.parametrize("eps_x, eps_w", first(2, [(0.1, 0.01), (0.02, 0.002), (0.1, 0.0), (0.0, 0.01)]))
@pytest.mark.parametrize("name", MODELS)
def test_equals_plain_autograd_bit_for_bit(name, eps_x, eps_w, chunk):
    model, (x, y) = MODELS[name](), batch()
    result = joint_pgd(model, x, y, JointBall(eps_x, eps_w), steps=20, **pieces(chunk))
    twin = oracle.joint_pgd(model, x, y, eps_x, radii(model, eps_w), (0.0, 1.0), steps=20, chunk=chunk)
    assert_same(result, twin)
    assert eps_x == 0 or not torch.equal(result.x, x)


@pytest.mark.parametrize("moves", ["weights", "all"])
@pytest.mark.parametrize("relative", [False, True], ids=["absolute", "relative"])
@pytest.mark.parametrize("name", ["dense", "conv", "batch norm"])
def test_equals_plain_autograd_for_every_kind_of_ball(name, relative, moves):
    model, (x, y) = MODELS[name](), batch()
    ball = JointBall(0.05, 0.02, domain=None, moves=moves, relative=relative)
    result = joint_pgd(model, 3 * x - 1, y, ball, steps=25, step_x=0.007, step_w=0.0011)
    moving = radii(model, 0.02, moves, relative)
    assert_same(result, oracle.joint_pgd(model, 3 * x - 1, y, 0.05, moving, None, steps=25, step_x=0.007, step_w=0.0011))


@pytest.mark.parametrize("name", ["dense", "conv"])
def test_equals_plain_autograd_with_the_settings_of_the_paper(name):
    model, (x, y) = MODELS[name](), batch(23)
    result = joint_pgd(model, x, y, JointBall(0.2, 0.01))
    assert_same(result, oracle.joint_pgd(model, x, y, 0.2, radii(model, 0.01), (0.0, 1.0), steps=100))


def test_equals_plain_autograd_in_float64():
    model, (x, y) = dense(36, 16, 5).double(), batch()
    result = joint_pgd(model, x.double(), y, JointBall(0.1, 0.01), steps=20)
    assert result.x.dtype == torch.float64
    assert_same(result, oracle.joint_pgd(model, x.double(), y, 0.1, radii(model, 0.01), (0.0, 1.0), steps=20))


def test_scope_dataset_is_the_batch_attack_under_another_name():
    model, (x, y) = dense(36, 8, 5), batch()
    one, other = (joint_pgd(model, x, y, JointBall(0.1, 0.01), steps=20, scope=s, chunk=4) for s in ("batch", "dataset"))
    assert (one.scope, other.scope) == ("batch", "dataset")
    assert_same(other, (one.x, one.weights))


@pytest.mark.parametrize("chunk", [None, 7])
@pytest.mark.parametrize("name", [n for n in MODELS if n != "conv"] + ["conv"])
def test_scope_sample_attacks_each_example_alone(name, chunk):
    model, (x, y) = MODELS[name](), batch()
    ball = JointBall(0.1, 0.01)
    result = joint_pgd(model, x, y, ball, steps=20, scope="sample", **pieces(chunk))
    assert result.scope == "sample" and set(result.weights) == set(radii(model, 0.01))
    alone = [joint_pgd(model, x[n : n + 1], y[n : n + 1], ball, steps=20) for n in range(len(x))]
    torch.testing.assert_close(result.x, torch.cat([a.x for a in alone]), rtol=0, atol=1e-6)
    for key, w in result.weights.items():
        assert w.shape == (len(x), *dict(model.named_parameters())[key].shape)
        torch.testing.assert_close(w, torch.stack([a.weights[key] for a in alone]), rtol=0, atol=1e-6)


def test_scope_sample_with_inputs_only_is_the_batch_attack():
    model, (x, y) = dense(36, 8, 5), batch()
    sample = joint_pgd(model, x, y, JointBall(0.1, 0.0), steps=20, scope="sample")
    assert torch.equal(sample.x, joint_pgd(model, x, y, JointBall(0.1, 0.0), steps=20).x) and not sample.weights


# ---------------------------------------------------------------- limits


@pytest.mark.parametrize("scope", ["sample", "batch", "dataset"])
@pytest.mark.parametrize("seed", [None, 0])
def test_radius_zero_moves_nothing(scope, seed):
    model, (x, y) = dense(36, 8, 5), batch()
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    result = joint_pgd(model, x, y, JointBall(0.0, 0.0), steps=5, scope=scope, generator=generator)
    assert torch.equal(result.x, x) and not result.weights and result.scope == scope


@pytest.mark.parametrize("scope", ["sample", "batch"])
def test_no_steps_return_the_start(scope):
    model, (x, y) = dense(36, 8, 5), batch()
    result = joint_pgd(model, x, y, JointBall(0.1, 0.1), steps=0, scope=scope)
    assert torch.equal(result.x, x)
    for name, w in result.weights.items():
        assert torch.equal(w, dict(model.named_parameters())[name].expand_as(w))


def test_one_step_is_the_sign_of_the_gradient():
    """A power of two as step: then W + step * sign is exact, and the signs can be read off."""
    model, (x, y) = dense(36, 5), batch(1)
    result = joint_pgd(model, x, y, JointBall(1.0, 1.0, domain=None), steps=1, step_x=2.0**-6, step_w=2.0**-6)
    # d CE / d W = (p - onehot) x^T, d CE / d x = W^T (p - onehot)
    pull = model(x).softmax(1) - F.one_hot(y, 5)
    weight = model[1].weight
    torch.testing.assert_close(result.weights["1.weight"] - weight, 2.0**-6 * (pull.T @ x.flatten(1)).sign(), rtol=0, atol=1e-7)
    torch.testing.assert_close(result.x - x, 2.0**-6 * (pull @ weight).sign().view_as(x), rtol=0, atol=1e-7)


def test_an_empty_domain_edge_is_respected():
    """Pixels at 0 and 1 stay inside, however large the ball."""
    model, y = dense(36, 8, 5), torch.tensor([0, 1])
    x = torch.stack([torch.zeros(1, 6, 6), torch.ones(1, 6, 6)])
    result = joint_pgd(model, x, y, JointBall(0.5, 0.0), steps=60)
    assert result.x.min() >= 0 and result.x.max() <= 1 and not torch.equal(result.x, x)


# ---------------------------------------------------------------- membership


@pytest.mark.parametrize("scope", ["sample", "batch"])
@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("name", ["dense", "conv", "tied", "batch norm"])
def test_every_tensor_stays_in_its_box(name, seed, scope):
    model, (x, y) = MODELS[name](), batch()
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    ball = JointBall(0.03, 0.004, moves="all")
    result = joint_pgd(model, x, y, ball, steps=30, scope=scope, generator=generator)
    a, b = x.double().numpy(), result.x.double().numpy()
    assert np.abs(a - b).max() <= 0.03 + 2**-24 and b.min() >= 0 and b.max() <= 1  # half an ulp below 1 for rounding
    assert np.abs(a - b).max() > 0.0299  # and the ball is used
    assert ((result.x.double() - x.double()).abs() <= 0.03).all()  # exactly
    params = dict(model.named_parameters())
    assert set(result.weights) == set(params)
    for key, w in result.weights.items():
        p = params[key]
        assert w.shape == ((len(x), *p.shape) if scope == "sample" else p.shape) and w.dtype == p.dtype
        assert ((w >= p - 0.004) & (w <= p + 0.004)).all(), key
        room = 2**-24 * max(1.0, p.abs().max().item())
        assert np.abs(w.double().numpy() - p.detach().double().numpy()).max() <= 0.004 + room
    if scope == "batch":
        assert result.check(model, x, ball) is result


def test_named_layers_only():
    model, (x, y) = dense(36, 8, 5), batch()
    eps = {"1.weight": 0.01, "3.bias": 0.002, "3.weight": 0.0}
    result = joint_pgd(model, x, y, JointBall(0.1, eps), steps=20)
    assert set(result.weights) == {"1.weight", "3.bias"}
    assert_same(result, oracle.joint_pgd(model, x, y, 0.1, {"1.weight": 0.01, "3.bias": 0.002}, (0.0, 1.0), steps=20))


@pytest.mark.parametrize("name, first, second", [("tied", "first", "second"), ("shared module", "one", "other")])
@pytest.mark.parametrize("scope", ["sample", "batch"])
def test_a_shared_tensor_moves_once_under_one_name(name, first, second, scope):
    model, (x, y) = MODELS[name](), batch(4)
    result = joint_pgd(model, x, y, JointBall(0.0, 0.01), steps=10, scope=scope)
    assert f"{first}.weight" in result.weights and f"{second}.weight" not in result.weights
    # what the attack reports is what a model with both names moved computes
    w = {key: value[0] if scope == "sample" else value for key, value in result.weights.items()}
    moved = functional_call(model, w, (x[:1],))
    matrix = w[f"{first}.weight"]
    z = F.relu(F.linear(x[:1].flatten(1), matrix, getattr(model, first).bias))
    z = F.relu(F.linear(z, matrix, getattr(model, second).bias))
    assert torch.allclose(moved, F.linear(z, w["head.weight"], model.head.bias), atol=1e-6)


# ---------------------------------------------------------------- the model is left alone


def snapshot(model):
    """Everything that an attack could leave changed, as comparable values."""
    return {
        "bytes": {k: v.detach().cpu().numpy().tobytes() for k, v in model.state_dict(keep_vars=True).items()},
        "tensors": {k: (id(v), v.data_ptr(), v._version, type(v)) for k, v in model.state_dict(keep_vars=True).items()},
        "training": [(n, m.training) for n, m in model.named_modules(remove_duplicate=False)],
        "requires_grad": [(n, p.requires_grad) for n, p in model.named_parameters(remove_duplicate=False)],
        "grad": [None if p.grad is None else (id(p.grad), p.grad.numpy().tobytes()) for p in model.parameters()],
        "attributes": [(n, sorted(vars(m)), len(m._forward_hooks)) for n, m in model.named_modules()],
    }


class Counting(nn.Module):
    """Calls the inner model; raises KeyboardInterrupt at the k-th forward pass, counted over all copies of the module."""

    calls = 0

    def __init__(self, inner, k):
        super().__init__()
        self.inner, self.k = inner, k
        Counting.calls = 0

    def forward(self, x):
        Counting.calls += 1
        if Counting.calls == self.k:
            raise KeyboardInterrupt
        return self.inner(x)


def mixed_flags(model):
    """Some parameters frozen, some with a gradient from an earlier step, one harmless module in train mode."""
    for n, p in enumerate(model.parameters()):
        p.requires_grad_(n % 3 != 1)
        if n % 2 == 0:
            p.grad = torch.full_like(p, 7.0)
    for m in model.modules():
        if isinstance(m, nn.ReLU):
            m.train()
    return model


@pytest.mark.parametrize("scope", ["sample", "batch"])
@pytest.mark.parametrize("name", MODELS)
def test_the_model_and_the_inputs_are_unchanged(name, scope):
    model, (x, y) = mixed_flags(MODELS[name]()), batch()
    x.requires_grad_()
    before, x_before, y_before = snapshot(model), x.detach().clone(), y.clone()
    result = joint_pgd(model, x, y, JointBall(0.1, 0.01, moves="all"), steps=6, scope=scope, chunk=4)
    assert snapshot(model) == before
    assert torch.equal(x, x_before) and torch.equal(y, y_before) and x.grad is None and x.requires_grad
    assert not torch.equal(result.x, x)
    for key, w in result.weights.items():  # the result owns its storage
        assert w.untyped_storage().data_ptr() != dict(model.named_parameters())[key].untyped_storage().data_ptr()


@pytest.mark.parametrize("scope", ["sample", "batch"])
@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("name", ["dense", "batch norm", "tied"])
def test_an_interrupt_leaves_the_model_unchanged(name, k, scope):
    model, (x, y) = Counting(mixed_flags(MODELS[name]()), k).eval(), batch()
    before, rng = snapshot(model), torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        joint_pgd(model, x, y, JointBall(0.1, 0.01, moves="all"), steps=20, scope=scope, chunk=4)
    assert Counting.calls == k
    after = snapshot(model)
    assert after == before and torch.equal(torch.get_rng_state(), rng)
    assert torch.is_grad_enabled()


def test_a_gradient_seen_by_the_caller_is_not_disturbed():
    """The attack between a forward and a backward pass of a training step."""
    model, (x, y) = dense(36, 8, 5), batch()
    loss = F.cross_entropy(model(x), y)
    joint_pgd(model, x, y, JointBall(0.1, 0.01), steps=3)
    loss.backward()
    fresh = dense(36, 8, 5)
    F.cross_entropy(fresh(x), y).backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(model.parameters(), fresh.parameters(), strict=True))


def test_batch_norm_in_train_mode_is_refused():
    model, (x, y) = batch_norm().train(), batch()
    before = snapshot(model)
    with pytest.raises(InvalidInput, match=r"(?i)eval"):
        joint_pgd(model, x, y, JointBall(0.1, 0.01), steps=2)
    assert snapshot(model) == before


def test_an_unknown_layer_is_named():
    model, (x, y) = dense(36, 8, 5), batch()
    with pytest.raises(InvalidInput, match=r"fc9\.weight.*1\.bias.*1\.weight.*3\.bias.*3\.weight"):
        joint_pgd(model, x, y, JointBall(0.1, {"fc9.weight": 0.1}), steps=1)


def test_values_that_cannot_be_used_are_refused():
    model, (x, y) = dense(36, 8, 5), batch()
    for bad in (-0.1, float("nan"), float("inf")):
        with pytest.raises(InvalidInput, match="radius"):
            joint_pgd(model, x, y, JointBall(bad, 0.1), steps=1)
        with pytest.raises(InvalidInput, match="radius"):
            joint_pgd(model, x, y, JointBall(0.1, {"1.weight": bad}), steps=1)
    with pytest.raises(InvalidInput, match="domain"):
        joint_pgd(model, 2 * x, y, JointBall(0.1, 0.1), steps=1)


@pytest.mark.parametrize("scope", ["sample", "batch"])
@pytest.mark.parametrize("label", [5, -1, -100])
def test_labels_that_are_no_class_are_refused(label, scope):
    """-100 above all: cross-entropy ignores it, and the example would count as attacked."""
    model, (x, y) = dense(36, 8, 5), batch()
    y[3] = label
    with pytest.raises(InvalidInput):
        joint_pgd(model, x, y, JointBall(0.1, 0.01), steps=1, scope=scope)


def test_an_unknown_scope_is_refused():
    model, (x, y) = dense(36, 8, 5), batch()
    with pytest.raises(InvalidInput, match=r"sample.*batch.*dataset"):
        joint_pgd(model, x, y, JointBall(0.1, 0.01), steps=1, scope="per-sample")


@pytest.mark.parametrize("scope", ["sample", "batch"])
def test_an_empty_batch_gives_an_empty_batch(scope):
    model, (x, y) = dense(36, 8, 5), batch()
    result = joint_pgd(model, x[:0], y[:0], JointBall(0.1, 0.01), steps=2, scope=scope)
    assert result.x.shape == (0, 1, 6, 6)


# ---------------------------------------------------------------- random numbers, autograd modes


@pytest.mark.parametrize("scope", ["sample", "batch"])
def test_a_generator_gives_a_random_start_inside_the_ball(scope):
    model, (x, y) = dense(36, 8, 5), batch()

    def attack(seed, steps):
        g = torch.Generator().manual_seed(seed)
        return joint_pgd(model, x, y, JointBall(0.1, 0.01), steps=steps, scope=scope, generator=g)

    for steps in (0, 3):
        first, again, other = attack(0, steps), attack(0, steps), attack(1, steps)
        assert_same(again, (first.x, first.weights))
        assert not torch.equal(first.x, other.x) and not torch.equal(first.weights["1.weight"], other.weights["1.weight"])
        assert ((first.x >= (x - 0.1).clamp(0, 1)) & (first.x <= (x + 0.1).clamp(0, 1))).all()
        for name, w in first.weights.items():
            p = dict(model.named_parameters())[name]
            assert ((w.double() - p.double()).abs() <= 0.01).all()
    start = attack(0, 0)
    shift = (start.weights["1.weight"] - model[1].weight).flatten() / 0.01  # uniform on [-1, 1]: spread over it, mean near 0
    assert shift.max() > 0.9 and shift.min() < -0.9 and abs(shift.mean()) < 0.15 and abs(shift.std() - 3**-0.5) < 0.06
    if scope == "sample":
        assert not torch.equal(start.weights["1.weight"][0], start.weights["1.weight"][1])


@pytest.mark.parametrize("seed", [None, 0])
def test_global_random_states_are_untouched(seed):
    model, (x, y) = dense(36, 8, 5), batch()
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    torch_state, python_state, numpy_state = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    for scope in ("sample", "batch"):
        joint_pgd(model, x, y, JointBall(0.1, 0.01), steps=3, scope=scope, generator=generator)
    assert torch.equal(torch.get_rng_state(), torch_state) and random.getstate() == python_state
    assert (np.random.get_state()[1] == numpy_state).all()


@pytest.mark.parametrize("mode", [contextlib.nullcontext, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("scope", ["sample", "batch"])
def test_works_under_any_mode_of_autograd(mode, scope):
    model, (x, y) = dense(36, 8, 5), batch()
    expected = joint_pgd(model, x, y, JointBall(0.1, 0.01), steps=5, scope=scope)
    with mode():
        result = joint_pgd(model, x, y, JointBall(0.1, 0.01), steps=5, scope=scope)
        inside = joint_pgd(model, x.clone(), y.clone(), JointBall(0.1, 0.01), steps=5, scope=scope)
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    for found in (result, inside):
        assert_same(found, (expected.x, expected.weights))
        assert not found.x.requires_grad and not any(w.requires_grad for w in found.weights.values())
    F.cross_entropy(functional_call(model, {}, (result.x,)), y).backward()  # the result can be trained on


# ---------------------------------------------------------------- closed forms of a linear model


def loss(model, x, y, weights=None):
    return F.cross_entropy(functional_call(model, dict(weights or {}), (x,)), y, reduction="sum").item()


@pytest.mark.parametrize("domain", [(0.0, 1.0), None])
def test_two_classes_linear_worst_input_is_a_corner(domain):
    model, (x, _) = dense(36, 2), batch()
    y = torch.arange(10) % 2
    result = joint_pgd(model, x, y, JointBall(0.2, 0.0, domain=domain), steps=60)
    # the loss grows with (w_other - w_y) . x, so every pixel goes to the end given by the sign of that row
    push = (model[1].weight[1 - y] - model[1].weight[y]).sign().view_as(x)
    corner = torch.where(push > 0, x + 0.2, x - 0.2)
    corner = corner if domain is None else corner.clamp(*domain)
    torch.testing.assert_close(result.x, corner.detach(), rtol=0, atol=2e-7)  # the ends of boxes are rounded inward


@pytest.mark.parametrize("classes", [2, 5])
def test_linear_worst_weights_are_a_corner(classes):
    model, (x, _) = dense(36, classes), batch()
    x, y = 2 * x - 1, torch.arange(10) % classes
    result = joint_pgd(model, x, y, JointBall(0.0, 0.01, domain=None), steps=60, scope="sample")
    # row y of W' goes against the sign of x, every other row with it
    for n in range(10):
        side = torch.ones(classes, 1)
        side[y[n]] = -1
        toward = side * x[n].flatten().sign()
        weight = model[1].weight.detach()
        end = torch.where(toward > 0, weight + 0.01, weight - 0.01)
        torch.testing.assert_close(result.weights["1.weight"][n], end, rtol=0, atol=1e-7)


def test_one_label_linear_worst_shared_weights_are_a_corner():
    """All pixels positive and one label: one W' is worst for the whole batch at once."""
    model, (x, _) = dense(36, 5), batch()
    y = torch.full((10,), 3)
    result = joint_pgd(model, x, y, JointBall(0.0, 0.01), steps=60, chunk=4)
    weight, expected = model[1].weight.detach(), model[1].weight.detach() + 0.01
    expected[3] = (weight - 0.01)[3]
    torch.testing.assert_close(result.weights["1.weight"], expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("eps_x, eps_w", [(0.1, 0.0), (0.0, 0.01)])
@pytest.mark.parametrize("classes", [2, 5])
def test_the_loss_of_a_linear_model_never_falls(classes, eps_x, eps_w):
    """Convex in what moves: each projected signed step has f(z + d) >= f(z) + g.d >= f(z)."""
    model, (x, _) = dense(36, classes), batch()
    y, losses = torch.arange(10) % classes, []
    for steps in (0, 1, 2, 5, 10, 30):
        result = joint_pgd(model, x, y, JointBall(eps_x, eps_w), steps=steps)
        losses.append(loss(model, result.x, y, result.weights))
    assert losses[0] == pytest.approx(loss(model, x, y), rel=1e-6)
    assert all(b >= a - 1e-5 for a, b in itertools.pairwise(losses)) and losses[-1] > losses[0] + 0.01


def test_both_together_are_worse_than_either():
    model, (x, y) = dense(36, 16, 5), batch()
    found = {}
    for eps in ((0.0, 0.0), (0.05, 0.0), (0.0, 0.01), (0.05, 0.01)):
        result = joint_pgd(model, x, y, JointBall(*eps), steps=40)
        found[eps] = loss(model, result.x, y, result.weights)
    assert (
        found[0.0, 0.0] < min(found[0.05, 0.0], found[0.0, 0.01]) and max(found[0.05, 0.0], found[0.0, 0.01]) < found[0.05, 0.01]
    )
