"""Hidden counterexamples (planted.py): no bound proves such an example, and no verdict on it is "verified"."""

import pytest
import torch

import nonsingular as ns
from planted import SOUND, case, verdict, wrong
from sampling import first


@pytest.mark.parametrize("seed", first(4, range(90)))
def test_nothing_calls_a_planted_example_verified(seed):
    c = case(seed)
    dear = {"best", "branch-and-bound", "exact"} if seed < 4 else set() if c.name == "built" else {"exact"}
    assert wrong(c, [b for b in SOUND if b not in dear], 60) == []


def test_without_its_point_the_same_example_is_verified():
    """So the point alone is what stands against a proof: one that missed it would be seen."""
    smaller = [(c, c.ball.scaled(0.7, 0.7)) for c in map(case, (0, 3, 4, 6, 10))]
    assert [verdict(c, 60, ball) for c, ball in smaller] == ["verified"] * 5
    assert all(ns.certify(c.model, c.x, c.y, ball).verified.all() for c, ball in smaller)


def test_neither_the_inputs_nor_the_weights_of_a_joint_point_do_it_alone():
    c = case(3)
    alone = ns.Perturbation(c.planted.x), ns.Perturbation(c.x, c.planted.weights, "sample")
    for point in alone:
        weights = {n: w[0] for n, w in point.weights.items()}
        with torch.no_grad():
            assert torch.func.functional_call(c.model, weights, (point.x,)).argmax(1) == c.y
