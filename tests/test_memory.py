"""Where memory runs out, half as many examples go at a time, to the same answers; other errors stay errors."""

import logging

import pytest
import torch
from torch import nn

from nonsingular.attacks.joint_pgd import joint_pgd
from nonsingular.attacks.shared_apgd import shared_apgd
from nonsingular.catalog import Attack
from nonsingular.certificates.certify import certify
from nonsingular.evaluation.attacked import evaluate
from nonsingular.evaluation.problem import Method
from nonsingular.network import memory
from nonsingular.network.calling import logits_at
from nonsingular.network.memory import halving, is_out_of_memory
from nonsingular.threat.ball import JointBall
from nonsingular.threat.perturbation import Perturbation


class Small(nn.Sequential):
    """Holds at most `room` examples."""

    room, refused = 10**9, 0

    def forward(self, input):
        if len(input) > self.room:
            Small.refused += 1
            raise torch.cuda.OutOfMemoryError(f"{len(input)} examples")
        return super().forward(input)


def model_and_examples(n=70):
    g = torch.Generator().manual_seed(0)
    model = Small(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g) / 2)
        x = torch.rand(n, 6, generator=g)
        model[2].bias -= model(x).mean(0)  # all three classes occur
    return model, x, model(x).argmax(1)


def test_halves_until_it_fits():
    tried = []

    def run(size):
        tried.append(size)
        if size > 5:
            raise MemoryError
        return size

    assert halving(run, 37) == 5
    assert tried == [37, 19, 10, 5]


def test_one_example_that_does_not_fit_is_an_error():
    def run(size):
        raise torch.cuda.OutOfMemoryError("no room")

    with pytest.raises(torch.cuda.OutOfMemoryError):
        halving(run, 8)


def test_other_errors_are_not_taken_for_it():
    tried = []

    def run(size):
        tried.append(size)
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        halving(run, 8)
    assert tried == [8]


def test_the_cpu_says_it_in_words_that_are_known():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


def test_it_is_said(caplog):
    memory._tell.cache_clear()
    with caplog.at_level(logging.WARNING, "nonsingular"):
        for _ in range(3):
            halving(lambda size: size if size < 5 else (_ for _ in ()).throw(MemoryError()), 8)
    assert caplog.text.count("4 examples at a time") == 1


@pytest.mark.parametrize("weights", [{}, {"0.weight": 0.1}])
def test_logits_are_those_with_room_enough(weights, monkeypatch):
    model, x, _ = model_and_examples()
    shared = Perturbation(x, {n: model.state_dict()[n] + d for n, d in weights.items()}, "dataset")
    whole = logits_at(model, shared)
    monkeypatch.setattr(Small, "room", 9)
    torch.testing.assert_close(logits_at(model, shared), whole)


@pytest.mark.parametrize("attack", [joint_pgd, shared_apgd])
def test_attacks_on_one_set_of_weights_are_those_of_smaller_chunks(attack, monkeypatch):
    model, x, y = model_and_examples()
    monkeypatch.setattr(Small, "room", 9)
    ball = JointBall(0.05, 0.05)
    found = attack(model, x, y, ball, scope="dataset", chunk=70)
    again = attack(model, x, y, ball, scope="dataset", chunk=9)
    torch.testing.assert_close(found.x, again.x, atol=1e-5, rtol=1e-4)
    for name, w in found.weights.items():
        torch.testing.assert_close(w, again.weights[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("scope", ["sample", pytest.param("batch", marks=pytest.mark.slow), "dataset"])
@pytest.mark.parametrize("attack", ["paper", "strongest", "square", "corners"])
def test_a_surface_does_not_need_room_for_all(scope, attack, monkeypatch):
    """Examples attacked by themselves have the same outcomes.  The sums over those that share W' round differently in parts, and
    a search that keeps the best W' may then take another path."""
    model, x, y = model_and_examples(40)
    whole = evaluate(model, (x, y), eps_x=[0.0, 0.1], eps_w=[0.0, 0.1], scope=scope, attack=attack, batch_size=20)
    monkeypatch.setattr(Small, "refused", 0)
    monkeypatch.setattr(Small, "room", 30 if scope == "sample" else 9)  # there one example has many starts at once
    less = evaluate(model, (x, y), eps_x=[0.0, 0.1], eps_w=[0.0, 0.1], scope=scope, attack=attack, batch_size=20)
    assert Small.refused
    assert whole.accuracy.min() < 0.4 < whole.accuracy.max() == 1
    if scope == "sample" or attack == "square":
        assert (less.outcomes == whole.outcomes).all()
    else:
        assert (less.outcomes == whole.outcomes)[0].all()  # one example after the other where weights do not move
        assert abs(less.auc - whole.auc) < 0.04


def test_an_attack_of_each_example_is_given_fewer():
    model, x, y = model_and_examples(40)
    sizes = []

    def attack(model, x, y, ball, *, scope, start=None):
        sizes.append(len(x))
        if len(x) > 12:
            raise MemoryError
        assert start is None or len(start.x) == len(x)
        return Perturbation(x.clone(), {}, scope)

    small = Attack("small", attack, starts=True)
    method = Method.of(small)
    surface = evaluate(model, (x, y), eps_x=[0.0, 0.1], eps_w=[0.0, 0.1], attack=small)
    assert surface.accuracy.min() == 1
    assert method.nested
    assert sizes[:3] == [40, 20, 10]
    assert sizes.count(10) >= 4


def test_certificates_are_those_with_room_enough(put_bound):
    model, x, y = model_and_examples()
    model = nn.Sequential(*model)
    whole = certify(model, x, y, JointBall(0.01, 0.01), bound="interval").margins
    sizes = []

    def tight(model, x, y, ball):
        sizes.append(len(x))
        if len(x) > 20:
            raise torch.cuda.OutOfMemoryError("no room")
        return bound(model, x, y, ball)

    bound = put_bound("interval", tight)
    torch.testing.assert_close(certify(model, x, y, JointBall(0.01, 0.01), bound="interval").margins, whole)
    assert max(s for s in sizes if s <= 20) == 16
