"""Many examples that share one W', done by several workers: the bits do not depend on how many there are."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from nonsingular.attacks.search.crew import folded, nodes
from nonsingular.attacks.shared_apgd import shared_apgd
from nonsingular.attacks.strongest import strongest
from nonsingular.network.network import Network, network_of
from nonsingular.threat.ball import JointBall
from nonsingular.threat.interval import Interval
from nonsingular.threat.perturbation import Perturbation

EXAMPLES = 2100  # four chunks of 512, and one of 52


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 4)).eval()


def some(n: int = EXAMPLES) -> tuple[Tensor, Tensor]:
    x = torch.rand(n, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return x, net()(x).argmax(1)


@dataclass
class Here:
    """A crew whose calls are done in this process, the last one first."""

    network: Network
    x: Tensor
    y: Tensor
    workers: int
    calls: int = 0

    def empty(self) -> Tensor:
        return torch.empty_like(self.x)

    def seen(self, t: Tensor) -> Tensor:
        return t.clone()

    def box(self, ball: JointBall) -> Interval:
        return ball.input_box(self.x)

    def do(self, work, todo):
        self.calls += len(todo)
        done = [work(self.network, self.x, self.y, *args) for args in reversed(todo)]
        return done[::-1]


def same(a: Perturbation, b: Perturbation) -> bool:
    return (
        torch.equal(a.x, b.x)
        and a.weights.keys() == b.weights.keys()
        and all(torch.equal(w, b.weights[n]) for n, w in a.weights.items())
    )


@pytest.mark.parametrize("attack", [shared_apgd, strongest])
def test_any_number_of_workers_finds_the_same_bits(attack):
    model, (x, y), ball = network_of(net()), some(), JointBall(0.05, 0.02)
    alone = attack(model, x, y, ball, scope="dataset")
    for workers in (1, 2, 3, 7):
        crew = Here(model, x, y, workers)
        assert same(alone, attack(model, x, y, ball, scope="dataset", crew=crew))
        assert crew.calls > 10
    at, weights = (
        attack(model, x, y, ball.scaled(*part), scope="dataset", crew=Here(model, x, y, 2)) for part in ((1, 0), (0, 1))
    )
    assert same(at, attack(model, x, y, ball.scaled(1, 0), scope="dataset"))
    assert same(weights, attack(model, x, y, ball.scaled(0, 1), scope="dataset"))
    assert not torch.equal(alone.x, x) and (model(alone.x).argmax(1) != y).any()


def test_sums_are_taken_as_a_tree_of_the_span_alone():
    floats = torch.rand(37, generator=torch.Generator().manual_seed(0))

    def add(a, b):
        return a + b

    whole = folded((0, 37), 1, lambda node: floats[node[0]], add)
    for parts in range(1, 40):
        todo, most = nodes((0, 37), parts)
        assert [k for first, last in todo for k in range(first, last)] == list(range(37))
        assert len(todo) >= min(parts, 37) and max(last - first for first, last in todo) <= most
        done = {node: folded(node, 1, lambda node: floats[node[0]], add) for node in todo}
        assert torch.equal(folded((0, 37), most, done.__getitem__, add), whole)
    assert torch.allclose(whole, floats.sum())
    in_turn = torch.zeros(())
    for v in floats:
        in_turn = in_turn + v
    assert not torch.equal(whole, in_turn)  # the order matters: these sums would tell


def test_a_check_in_pieces_finds_one_number_outside_and_moves_what_rounding_left_outside(monkeypatch):
    monkeypatch.setattr("nonsingular.threat.perturbation.KEPT", 64)  # pieces of 9 examples
    model, (x, _), ball = net(), some(50), JointBall(0.05, 0.0)
    box, wide = ball.input_box(x), ball.input_box(x, outward=True)
    inside = Perturbation(box.hi.clone())
    assert inside.check(model, x, ball) is inside
    out = wide.hi.clone()
    assert not torch.equal(out, box.hi)
    assert torch.equal(Perturbation(out).check(model, x, ball).x, box.hi)
    out[37, 3] += 1e-3
    with pytest.raises(AssertionError, match="left the input ball"):
        Perturbation(out).check(model, x, ball)
