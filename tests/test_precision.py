"""Precisions other than that of proofs: boxes, verdicts at ties, and attacks held against certificates."""

import copy

import pytest
import torch
from torch import nn

import nonsingular as ns
from nonsingular.evaluation.certified import tolerance
from nonsingular.evaluation.problem import Case
from nonsingular.network.margins import attained, is_correct


@pytest.fixture(scope="module")
def digits() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    data = ns.load("digits")
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(data.train.x), data.train.y).backward()
        optimizer.step()
    return model.eval(), data.test.x[:50], data.test.y[:50]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("scope", ["sample", "dataset"])
def test_models_of_every_precision_are_attacked_within_the_ball_and_certified(digits, dtype, scope):
    model, x, y = copy.deepcopy(digits[0]).to(dtype), digits[1].to(dtype), digits[2]
    found = ns.evaluate(model, (x, y), eps_x=[0, 0.02], eps_w=[0, 0.003], certify="crown", scope=scope)
    assert (found.certified.accuracy <= found.accuracy).all()
    assert found.certified.accuracy[1][1] > 0.4
    point = ns.strongest(model, x, y, ns.JointBall(0.02, 0.003), scope=scope)
    params = dict(model.named_parameters())
    assert (point.x.double() - x.double()).abs().max() <= 0.02
    assert all((w.double() - params[n].detach().double()).abs().max() <= 0.003 for n, w in point.weights.items())


def test_the_tolerance_of_the_comparison_follows_the_dtype_and_the_logits(digits):
    model, x, y = digits
    found = {}
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        net = copy.deepcopy(model).to(dtype)
        found[dtype] = tolerance(Case.of(net, x.to(dtype), y))
    assert (found[torch.float64] <= found[torch.float32]).all()
    assert found[torch.float32].max() < 1e-3
    assert (found[torch.bfloat16] > 100 * found[torch.float32]).all()
    large = copy.deepcopy(model)
    with torch.no_grad():
        large[3].weight.mul_(1e4)
    assert (tolerance(Case.of(large, x, y)) > 1000 * found[torch.float32]).all()


@pytest.mark.parametrize("scale", [1e3, 1e5])
def test_large_logits_raise_no_false_alarm(scale):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).eval()
    with torch.no_grad():
        model[2].weight.mul_(scale)
    x = torch.rand(200, 64)
    y = model(x).argmax(1)
    for scope in ("sample", "dataset"):
        found = ns.evaluate(model, (x, y), eps_x=[0, 1e-4], eps_w=[0.0, 1e-6], certify="interval", scope=scope)
        assert found.certified.accuracy[0][0] > 0.9


# --- ties ---------------------------------------------------------------------------------------------------------------------


def test_attained_margins_are_above_0_exactly_where_the_prediction_is_right():
    inf, nan = float("inf"), float("nan")
    logits = torch.tensor([[1.0, 1, 0], [1, 1, 0], [2, 1, 0], [0, 1, 2], [nan, 0, 0], [inf, 0, 0], [0, -inf, 1]])
    y = torch.tensor([0, 1, 0, 0, 0, 0, 2])
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        found = attained(logits.to(dtype), y)
        assert ((found.float() > 0) == is_correct(logits.to(dtype), y)).all()
        assert found[2:4].tolist() == [1, -2]


@pytest.mark.parametrize("scope", ["sample", "batch", "dataset"])
def test_a_tie_that_counts_as_right_is_attacked(scope):
    """Two equal rows: argmax decides for class 0, and any change of the weights against it."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3).eval()
    with torch.no_grad():
        model.weight[1], model.bias[1] = model.weight[0], model.bias[0]
        model.weight[2], model.bias[2] = 0, -5
    x = torch.rand(20, 4)
    for label, clean in ((0, 1.0), (1, 0.0)):
        y = torch.full((20,), label)
        found = ns.evaluate(model, (x, y), eps_x=[0, 0.1], eps_w=[0.0, 0.05], scope=scope, certify="crown")
        assert found.accuracy[0][0] == clean
        assert found.accuracy[1][0] == found.accuracy[1][1] == 0
        assert (found.certified.accuracy == 0).all()  # a margin of 0 is not proven
    status = ns.decide(model, x[:3], torch.zeros(3, dtype=torch.long), ns.JointBall(0.0, 0.0)).status
    assert set(status) == {"timeout"}  # neither above 0 nor changed


# --- gradients that an attack does not see ------------------------------------------------------------------------------------


class Rounded(nn.Module):
    """Inputs in steps of 1/16: gradients vanish, the function does not stand still."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(torch.round(x * 16) / 16)


def test_every_run_says_where_gradients_vanish(digits, caplog):
    net, x, y = digits
    asked = {"eps_x": [0.0, 0.1], "eps_w": [0.0]}
    hidden = ns.evaluate(Rounded(net).eval(), (x, y), **asked)
    assert any("next to no gradient for inputs" in doubt for doubt in hidden.about["doubts"])
    assert "next to no gradient" in caplog.text
    assert "next to no gradient" in str(hidden)
    honest = ns.evaluate(net, (x, y), **asked)
    assert honest.about["doubts"] == []


def test_every_run_gives_survivors_to_random_search(digits):
    net, x, y = digits

    def idle(model, x, y, ball, *, scope):
        return ns.Perturbation(x.clone(), {}, scope)

    found = ns.evaluate(net, (x, y), eps_x=[0.0, 0.2], eps_w=[0.0], attack=idle)
    assert any("random search breaks" in doubt for doubt in found.about["doubts"])
