"""Passes are counted where a network is called: by hand, and against a network that counts itself."""

import pytest
import torch
from torch import nn

from nonsingular.evaluation.attacked import evaluate
from nonsingular.evaluation.masking import CORNERS, GLIMPSED, SEARCHED, TRIALS
from nonsingular.network.passes import Passes


class Counting(nn.Sequential):
    rows = 0

    def forward(self, input):
        type(self).rows += input.shape[0]
        return super().forward(input)


def model_and_examples(n=20):
    g = torch.Generator().manual_seed(0)
    model = Counting(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g) / 2)
    x = torch.rand(n, 1, 4, 4, generator=g)
    return model, x, model(x).argmax(1)


def test_the_papers_attack_by_hand():
    model, x, y = model_and_examples()
    surface = evaluate(model, (x, y), eps_x=[0.1], eps_w=[0.01], scope="dataset", attack="paper")
    # 100 steps forward and backward, and once forward for the verdict
    assert surface.about["passes"] == {"forward": 101 * 20, "backward": 100 * 20}


@pytest.mark.parametrize("attack", ["strongest", "square", "alternating"])
def test_what_is_counted_is_what_the_network_sees(attack):
    model, x, y = model_and_examples()
    evaluate(model, (x[:2], y[:2]), eps_x=[0.1], eps_w=[0.01], scope="dataset", attack=attack)
    Counting.rows = 0
    surface = evaluate(model, (x, y), eps_x=[0.0, 0.1], eps_w=[0.0, 0.01], scope="dataset", attack=attack)
    counted = surface.about["passes"]["forward"]
    checks = Counting.rows - counted  # of the inputs before any work, and one example for the number of classes here and there
    glimpses = GLIMPSED * (1 + CORNERS * 6) + SEARCHED * (TRIALS + 3)  # at gradients, and by random search
    assert 0 <= checks <= 40 + 4 * 40 + glimpses
    assert surface.about["passes"]["backward"] <= counted


def test_a_difference_is_of_both():
    assert Passes(5, 3).since(Passes(2, 1)) == Passes(3, 2)
