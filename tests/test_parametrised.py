"""Weights that are computed from parameters: what moves is what a device stores, unless the raw ones are named."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import nonsingular as ns


class Symmetric(nn.Module):
    def forward(self, w):
        return w.triu() + w.triu(1).T


def made_by(kind):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    if kind == "weight norm":
        parametrizations.weight_norm(net[0])
    elif kind == "spectral norm":
        parametrizations.spectral_norm(net[2])
    elif kind == "orthogonal":
        parametrizations.orthogonal(net[0])
    elif kind == "one's own":
        parametrize.register_parametrization(net[0], "weight", Symmetric())
    elif kind == "older weight norm":
        nn.utils.weight_norm(net[0])
    elif kind == "older spectral norm":
        nn.utils.spectral_norm(net[2])
    elif kind == "pruning":
        prune.l1_unstructured(net[0], "weight", amount=0.4)
        prune.random_unstructured(net[0], "bias", amount=0.4)
    net = net.eval()
    with torch.no_grad():
        for name, p in net.named_parameters():  # so that what is computed differs from what it is computed from
            if "original0" in name or name.endswith("_g"):
                p.mul_(1.7)
    net(torch.rand(2, 6))  # older hooks keep what they computed, with its history
    return net


KINDS = [
    "weight norm", "spectral norm", "orthogonal", "one's own",
    pytest.param("older weight norm", marks=pytest.mark.filterwarnings("ignore")),
    pytest.param("older spectral norm", marks=pytest.mark.filterwarnings("ignore")), "pruning",
]  # fmt: skip


def plain(model):
    """The same network with its weights written into plain layers."""
    net = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    with torch.no_grad():
        for k in (0, 2):
            net[k].weight.copy_(model[k].weight)
            net[k].bias.copy_(model[k].bias)
    return net


@pytest.mark.parametrize("kind", KINDS)
def test_the_computed_weight_moves_and_is_what_plain_layers_have(kind):
    model = made_by(kind)
    before = copy.deepcopy({n: p.detach().clone() for n, p in model.named_parameters()})
    net, x = plain(model), torch.rand(12, 6)
    y = net(x).argmax(1)
    asked = {"eps_x": [0.1], "eps_w": [0.1], "scope": "dataset", "certify": "crown"}
    ours, theirs = (ns.evaluate(m, (x, y), **asked) for m in (model, net))
    assert (ours.accuracy == theirs.accuracy).all()
    assert (ours.certified.accuracy == theirs.certified.accuracy).all()
    assert "as a device stores them" in " ".join(ours.about["doubts"])
    assert "as a device stores them" not in " ".join(theirs.about["doubts"])
    ball = ns.JointBall(0.05, 0.02, moves="all")
    for one, other in ((ns.certify(m, x, y, ball) for m in (model, net)),):
        torch.testing.assert_close(one.margins, other.margins)
    point = ns.strongest(model, x[:4], y[:4], ball)
    assert set(point.weights) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    point.check(net, x[:4], ball)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name])
    torch.testing.assert_close(model(x), net(x))


def test_raw_parameters_move_where_they_are_named():
    model = made_by("weight norm")
    x = torch.rand(12, 6)
    y = model(x).argmax(1)
    raw = "0.parametrizations.weight.original0"
    found = ns.evaluate(model, (x, y), eps_x=[0.0], eps_w={raw: 2.0}, scope="dataset")
    assert found.accuracy[-1][0] < 1
    assert "raw parameters" in " ".join(found.about["doubts"])
    point = ns.strongest(model, x, y, ns.JointBall(0.0, {raw: 2.0}), scope="dataset")
    assert set(point.weights) == {raw}
    with pytest.raises(ns.InvalidInput, match="names no parameter"):
        ns.evaluate(model, (x, y), eps_x=[0.0], eps_w={"0.parametrizations.weight.original9": 2.0})
