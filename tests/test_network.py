"""A Network: what is found out about a model is found once, on one copy, and the copy stays as it was."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nonsingular as ns
from nonsingular.bounds.theorem import theorem1
from nonsingular.errors import InvalidInput, UnsupportedModel
from nonsingular.network import copies, dense, graph, memory, network
from nonsingular.network.calling import held_at, logits_at, logits_of_each
from nonsingular.network.dense import dense_chain
from nonsingular.network.graph import precise, trace_graph
from nonsingular.network.heads import classifier
from nonsingular.network.network import Network, network_of
from nonsingular.threat.perturbation import Perturbation


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 3)).eval()


def plain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


X = torch.rand(7, 6, generator=torch.Generator().manual_seed(1))


def test_it_computes_what_the_model_computes_under_the_models_names_and_shares_nothing_with_it():
    model = net()
    seen = network_of(model)
    assert torch.equal(seen(X), model(X)) and repr(seen) == repr(model)
    assert list(seen.state_dict()) == list(model.state_dict())
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    assert not torch.equal(seen(X), model(X))
    assert network_of(seen) is seen


def test_what_is_lent_comes_back_as_it_was_also_after_an_error():
    seen = network_of(net())
    before, clean = copy.deepcopy(seen.state_dict()), seen(X)

    def use() -> nn.Module:
        with seen.lent() as moving:
            for t in moving.state_dict(keep_vars=True).values():
                t.data.fill_(7)
            moving.requires_grad_()
            assert torch.equal(seen(X), clean)  # who lends is not moved
            raise KeyError(moving)

    with pytest.raises(KeyError) as e:
        use()
    (moving,) = e.value.args
    with seen.lent() as again:
        assert again is moving  # one copy to move, not one each time
        assert torch.equal(again(X), clean) and not any(p.requires_grad for p in again.parameters())
        with seen.lent() as another:  # while it is away, another
            assert another is not again
    assert all(torch.equal(before[k], v) for k, v in seen.state_dict().items())


def test_with_weights_lent_and_held_are_the_same_function():
    seen = network_of(net())
    weights = {"1.weight": torch.rand(8, 6), "4.bias": torch.rand(3)}
    with seen.lent(weights) as moved:
        assert torch.equal(moved(X), held_at(seen, weights)(X))
    assert torch.equal(logits_at(seen, Perturbation(X, weights, "dataset")), held_at(seen, weights)(X))
    each = {n: w.expand(len(X), *w.shape) for n, w in weights.items()}
    torch.testing.assert_close(logits_of_each(seen)(each, X), held_at(seen, weights)(X))


def test_names_of_a_users_modules_do_not_meet_those_of_the_adapter():
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.lent, self.told = nn.Linear(6, 4), nn.Linear(4, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.told(self.lent(self.inner(x)).relu())

    model = Inner().eval()
    weights = {"inner.weight": torch.rand(4, 6), "told.bias": torch.rand(3)}
    want = copy.deepcopy(model)
    want.load_state_dict({**model.state_dict(), **weights})
    assert torch.equal(held_at(network_of(model), weights)(X), want(X))
    assert torch.equal(logits_at(model, Perturbation(X, weights, "dataset")), want(X))


def test_a_refusal_is_found_once_too(monkeypatch: pytest.MonkeyPatch):
    seen, asked = network_of(net()), list[str]()
    read = dense.trace
    monkeypatch.setattr(dense, "trace", lambda model: asked.append("trace") or read(model))
    said = set()
    for _ in range(3):
        with pytest.raises(UnsupportedModel) as e:
            dense_chain(seen)
        said.add(str(e.value))
    assert asked == ["trace"] and len(said) == 1


def test_another_dtype_is_made_once_and_the_own_is_the_network_itself():
    seen = network_of(plain())
    double = precise(seen, torch.float64)
    assert precise(seen, torch.float64) is double and precise(seen, torch.float32) is seen
    assert trace_graph(double, (6,)) is trace_graph(double, (6,))


def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Copies, graphs read and traces of torch.fx from here on."""
    seen: Counter[str] = Counter()

    def count(what: str, *places: tuple[Any, str]) -> None:
        function = getattr(*places[0])

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            seen[what] += 1
            return function(*args, **kwargs)

        for module, name in places:
            monkeypatch.setattr(module, name, wrapped)

    count("copies", (copies, "duplicate"), (network, "duplicate"), (dense, "duplicate"))
    count("graphs", (graph, "record"))
    count("traces", (dense, "trace"))
    return seen


def test_one_evaluation_with_certificates_copies_and_reads_the_model_once_for_each_dtype(monkeypatch: pytest.MonkeyPatch):
    model, seen = plain(), counted(monkeypatch)
    y = model(X).argmax(1)
    found = ns.evaluate(model, (X, y), eps_x=[0.0, 0.1, 0.2], eps_w=[0.0, 0.05, 0.1], certify="crown")
    assert found.certified is not None
    # float32 and float64, each one copy to look at and one to move
    assert seen == {"copies": 4, "graphs": 1, "traces": 1}


def test_a_copy_of_a_network_is_another():
    seen = network_of(net())
    other = copy.deepcopy(seen)
    assert isinstance(other, Network) and other is not seen
    with torch.no_grad():
        next(other.parameters()).zero_()
    assert not torch.equal(other(X), seen(X))


def test_a_buffer_that_is_no_state_and_the_mode_come_back_too():
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = plain()
            self.register_buffer("calls", torch.zeros(()), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.net(x) + (self.net[1].training * self.calls)

    model = Counting().train()
    seen = network_of(model)
    with seen.lent() as moving:
        moving.eval()
        moving(X)
    with seen.lent() as again:
        assert again is moving and again.calls == 0 and all(part.training for part in again.modules())


def test_boxes_of_weights_are_kept_as_long_as_they_fit_into_an_eighth_of_the_budget(monkeypatch: pytest.MonkeyPatch):
    seen, params = network_of(plain()), dict(plain().named_parameters())
    balls = [ns.JointBall(0.1, eps) for eps in (0.01, 0.02, 0.03)]
    one = 2 * 4 * (6 * 8 + 8 * 3)  # bytes: two ends of two float32 matrices
    monkeypatch.setattr(memory, "BUDGET", 8 * 2 * one)
    first, second = (seen.weight_boxes(ball) for ball in balls[:2])
    assert seen.weight_boxes(ns.JointBall(0.7, 0.01)) is first  # whatever moves the inputs
    seen.weight_boxes(balls[2])  # in the place of the one that was not asked for the longest
    assert seen.weight_boxes(balls[0]) is first and seen.weight_boxes(balls[1]) is not second
    monkeypatch.setattr(memory, "BUDGET", 8 * one - 1)
    assert seen.weight_boxes(balls[0]) is not seen.weight_boxes(balls[0])
    for name, box in seen.weight_boxes(balls[1]).items():
        wide = balls[1].weight_boxes(params, outward=True)[name]
        assert torch.equal(box.lo, wide.lo) and torch.equal(box.hi, wide.hi)


class Jumps(nn.Sequential):
    """Does something else where a weight has gone far, which torch.fx does not see."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        far = not isinstance(x, torch.fx.Proxy) and bool((self[0].weight - plain()[0].weight).abs().max() > 0.02)
        return y + torch.arange(3.0) if far else y


def test_a_ball_of_weights_is_checked_again_unless_a_wider_one_was():
    seen, y = network_of(Jumps(*plain()).eval()), torch.zeros(7, dtype=torch.long)
    for eps, differs in ((0.01, False), (0.05, True), (0.05, True), (0.005, False)):
        ball = ns.JointBall(0.1, {"0.weight": eps, "2.weight": 0.01})
        if differs:
            with pytest.raises(UnsupportedModel, match="do not give the model's outputs"):
                theorem1(seen, X, y, ball)
        else:
            assert theorem1(seen, X, y, ball).shape == (7, 3)


@pytest.mark.parametrize(
    "radii, wider, inside",
    [
        ({"w": 0.1}, {"w": 0.1}, True),
        ({"w": 0.1}, {"w": 0.2, "b": 0.1}, True),
        ({"w": 0.1, "b": 0.1}, {"w": 0.2}, False),
        ({"w": 0.3}, {"w": 0.2}, False),
        ({"w": (0.1, 0.3)}, {"w": 0.2}, False),
        ({"w": (0.1, 0.2)}, {"w": 0.2}, True),
        ({"w": torch.tensor([0.1, 0.2])}, {"w": 0.2}, True),
        ({"w": torch.tensor([0.1, 0.3])}, {"w": torch.tensor([0.2, 0.2])}, False),
        ({}, {}, True),
    ],
)
def test_which_boxes_of_weights_lie_in_others(radii: Any, wider: Any, inside: bool):
    assert graph._lies_in(radii, wider) is inside


def test_outputs_of_a_reading_are_compared_where_both_are_finite():
    inf, one = torch.tensor([[torch.inf, 0.0]]), torch.tensor([[1.0, 0.0]])
    graph._compare(inf, one)  # what overflows is no bound
    graph._compare(torch.cat([inf, one]), torch.cat([one, one]))
    with pytest.raises(UnsupportedModel, match=r"differ by 0\.048 of"):
        graph._compare(torch.cat([inf, one]), torch.cat([one, one + torch.tensor([[0.1, 0.0]])]))
    with pytest.raises(UnsupportedModel, match="differ by inf of"):
        graph._compare(one, one[:, :1])


def test_margins_of_a_model_without_a_graph_are_those_of_its_logits():
    lower = torch.tensor([[0.0, -1.0, 2.0]])
    assert graph.lower_outputs(nn.Sequential(plain(), nn.LayerNorm(3)).eval(), X[:1], lower) is lower
    ahead = graph.lower_outputs(nn.Sequential(plain(), nn.Softmax(1)).eval(), X[:1], lower)
    assert ahead[0, 0] == 0 and -1 < ahead[0, 1] < 0 < ahead[0, 2] < 1


def test_a_probability_of_a_model_that_refuses_far_inputs_is_told_by_those_at_hand():
    class Near(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            assert x.abs().max() < 5, "outside of the domain"
            return super().forward(x).sigmoid()

    with pytest.raises(InvalidInput, match="a probability of class 1"):  # its sigmoid is not to be seen: it depends on values
        classifier(Near(nn.Linear(6, 1)).eval(), X)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_scripted_model_is_moved_as_a_copy():
    model = plain()
    weights = {"0.weight": torch.rand(8, 6)}
    want = held_at(model, weights)(X)
    scripted = torch.jit.trace(model, X[:2])
    torch.testing.assert_close(held_at(scripted, weights)(X), want)
    assert torch.equal(scripted(X), model(X))
