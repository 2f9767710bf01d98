"""Flip attacks: against a progressive search of twenty lines, every single flip, certificates, and what they return."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nonsingular as ns
from nonsingular.attacks.flips import Flip, _Aims, _Search, _State
from nonsingular.network.network import Network


def net(seed, conv=False):
    """Random weights, large enough that no class wins everywhere."""
    torch.manual_seed(seed)
    if conv:
        model, shape = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3)), (1, 6, 6)
    else:
        model, shape = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)), (5,)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3)
        logits = model.eval()(torch.rand(200, *shape))
        model[-1].bias -= logits.mean(0)
    return model, shape


def examples(model, shape, n=24):
    x = torch.rand(n, *shape)
    return x, ns.quantize(model)(x).argmax(1)


def aims(by_loss, both):
    return _Aims(ns.JointBall(0.0, 0.0), None, 1, 2, False, by_loss, 0.0, 1, frozenset(), both)


def flipped(model, flips, bits=8):
    """The rounded module with these bits flipped in its words, one by one."""
    made = ns.quantize(model, bits)
    steps = {n: p.detach().double().abs().max() / (2 ** (bits - 1) - 1) for n, p in model.named_parameters()}
    params = dict(made.named_parameters())
    for name in {f.name for f in flips}:
        word = made.words[name].long().clone()
        for f in flips:
            if f.name == name:
                old = int(word.view(-1)[f.index]) % 2**bits
                new = old ^ (1 << f.bit)
                word.view(-1)[f.index] = new - 2**bits if new >= 2 ** (bits - 1) else new
        params[name].data = (word * steps[name]).to(params[name].dtype)
    return made


def progressive(model, x, y, count):
    """arXiv:1903.12269 with one bit a step: the largest gain of each tensor, then the largest loss among these."""
    chosen = []
    for _ in range(count):
        now = flipped(model, chosen)
        loss = F.cross_entropy(now(x), y)
        names = [n for n, p in now.named_parameters() if p.dim() > 1]
        grads = torch.autograd.grad(loss, [dict(now.named_parameters())[n] for n in names])
        tried = []
        for name, g in zip(names, grads, strict=True):
            best = None
            for k in range(8):
                for t in range(g.numel()):
                    flip = Flip(name, t, k)
                    if flip in chosen:
                        continue
                    moved = dict(flipped(model, [*chosen, flip]).named_parameters())[name].view(-1)[t]
                    old = dict(now.named_parameters())[name].view(-1)[t]
                    gain = (moved.detach().double() - old.detach().double()).item() * g.view(-1)[t].item()
                    if best is None or gain > best[0] + 1e-12:
                        best = (gain, flip)
            tried.append((F.cross_entropy(flipped(model, [*chosen, best[1]])(x), y).item(), best[1]))
        chosen.append(max(tried, key=lambda pair: pair[0])[1])
    return chosen


def test_the_progressive_search_is_that_of_the_paper():
    model, shape = net(0)
    x, _ = examples(model, shape)
    small = nn.Sequential(model[0], model[1], nn.Linear(8, 3)).eval()
    y = ns.quantize(small)(x).argmax(1)
    found = ns.flip_attack(small, x, y, flips=2, candidates=1, beam=1, exchange=False, by_loss=True)
    assert list(found.flips) == progressive(small, x, y, 2)


@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_what_it_returns_is_so_and_a_wider_search_is_not_weaker(conv, seed):
    model, shape = net(seed, conv)
    x, y = examples(model, shape)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    narrow = ns.flip_attack(model, x, y, flips=3, candidates=1, beam=1, exchange=False, by_loss=True)
    wide = ns.flip_attack(model, x, y, flips=3)
    for found in (narrow, wide):
        assert len(set(found.flips)) == len(found.flips) <= 3 and found.accuracy[0] == 1.0
        there = flipped(model, found.flips)
        right = there(x).argmax(1) == y
        assert right.equal(found.right) and right.double().mean().item() == pytest.approx(found.accuracy[-1])
        for name, w in found.weights.items():
            torch.testing.assert_close(w, dict(there.named_parameters())[name])
    assert wide.accuracy[-1] <= narrow.accuracy[-1] < 1
    assert all(t.equal(before[n]) for n, t in model.state_dict().items())
    again = ns.flip_attack(model, x, y, flips=3)
    assert again.flips == wide.flips


def test_with_every_candidate_the_best_single_flip_is_found():
    model, shape = net(4)
    x, y = examples(model, shape, 12)
    found = ns.flip_attack(model, x, y, flips=1, candidates=10_000, exchange=False)
    scores = []
    for name, p in model.named_parameters():
        for t in range(p.numel() if p.dim() > 1 else 0):
            for k in range(8):
                scores.append((flipped(model, [Flip(name, t, k)])(x).argmax(1) == y).double().mean().item())
    assert found.accuracy[-1] == pytest.approx(min(scores))


def test_no_flips_beat_a_certificate():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    model[2].bias.data[0] += 2
    x, y = examples(model, (5,), 6)
    for flips in (1, 2):
        proven = ns.certify_flips(model, x, y, flips=flips, eps_x=0.02).verified
        assert flips == 2 or proven.any()
        for i in range(len(x)):
            alone = ns.flip_attack(model, x[i : i + 1], y[i : i + 1], flips=flips, eps_x=0.02, candidates=40, steps=3)
            assert not (proven[i] and not alone.right[0])


def test_inputs_help_and_targets_and_goals():
    model, shape = net(2)
    x, y = examples(model, shape, 40)
    still = ns.flip_attack(model, x, y, flips=2)
    moved = ns.flip_attack(model, x, y, flips=2, eps_x=0.1, steps=5)
    assert moved.accuracy[-1] < still.accuracy[-1] and bool(((moved.x - x).abs() <= 0.1 + 1e-6).all())
    assert not moved.x.equal(x) and moved.accuracy[0] < 1
    other = int((torch.bincount(y, minlength=3)).argmin())
    aimed = ns.flip_attack(model, x, y, flips=4, target=other)
    there = flipped(model, aimed.flips)(x).argmax(1)
    assert (there == other).double().mean() > (y == other).double().mean()
    short = ns.flip_attack(model, x, y, flips=20, goal=0.8)
    assert len(short.flips) < 20 and short.accuracy[-1] <= 0.8 < min(short.accuracy[:-1])
    assert ns.flip_attack(model, x, y, flips=0).flips == ()
    floats = ns.flip_attack(model, x, y, flips=1, storage=ns.FloatFormat("bfloat16"))
    assert floats.accuracy[-1] < 1 and floats.flips[0].bit >= 7  # of the exponent, or the sign


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"flips": -1}, "flips is -1"),
        ({"beam": 0}, "beam is 0"),
        ({"exchange": 1}, "exchange is 1"),
        ({"target": 3}, "target is 3; give a class from 0 to 2"),
        ({"domain": (0, 0.1)}, "outside the domain"),
    ],
)
def test_what_cannot_be_is_refused(settings, said):
    model, shape = net(0)
    x, y = examples(model, shape, 4)
    with pytest.raises(ns.InvalidInput, match=said):
        ns.flip_attack(copy.deepcopy(model), x, y, **settings)


@pytest.mark.parametrize("by_loss, both, kept", [(False, False, "ab"), (False, True, "adbc"), (True, False, "dc")])
def test_sets_are_kept_by_accuracy_and_by_loss(by_loss, both, kept):
    model, shape = net(0)
    search = _Search(Network(model), ns.UniformRounding(8), *examples(model, shape), aims(by_loss, both))
    scores = ((0.5, -1.0), (0.6, -2.0), (0.7, -3.0), (0.8, -4.0))  # (right, minus the loss)
    found = [_State((), torch.zeros(1), score) for score in scores]
    assert [found.index(s) for s in search.kept(found)] == ["abcd".index(k) for k in kept]


@pytest.mark.parametrize("seed", range(3))
def test_it_is_not_weaker_than_either_search(seed):
    model, shape = net(seed)
    x, y = examples(model, shape, 60)
    found = ns.flip_attack(model, x, y, flips=3).accuracy[-1]
    search = _Search(Network(ns.quantize(model)), ns.UniformRounding(8), x, y, aims(by_loss=False, both=False))
    for both in (False, True):
        assert found <= search.under(replace(search.aims, both=both, candidates=8, exchange=True)).run(3).score[0]
