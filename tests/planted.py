"""Networks with a counterexample that is known and hidden; nothing may verify them.  Idea: SoundnessBench, arXiv:2412.03154.

A case is a network, an example, a joint ball, and a point (x', W') of the ball that changes the prediction, near which alone the
network goes wrong: of inputs alone, or of inputs and weights together, where neither of the two would do.

built: a sum of hinges that is 0 except close to x' (and to some weights of W'), taken from the logit of the label; hidden neurons
    are scaled and put in another order.  The gradient says nothing of it elsewhere.
trained: dense, convolutional and residual networks, trained to be wrong at the point and right at others of the ball.

    python tests/planted.py --cases 500 --minutes 30      # exit code 1 if any bound or verdict is wrong
"""

from __future__ import annotations

import argparse
import random
import time
from collections import Counter
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nonsingular as ns
from nonsingular.catalog import ATTACKS, BOUNDS, MODELS, UNSOUND, lookup
from nonsingular.network.calling import held_at, logits_at
from nonsingular.network.margins import margins, worst_margin

SOUND = sorted(set(BOUNDS) - UNSOUND)
CLASSES = 3


@dataclass(frozen=True)
class Case:
    """x: (1, *input).  y: (1,).  planted: in scope sample, its margin is below 0.  margin: that."""

    name: str
    model: nn.Module
    x: Tensor
    y: Tensor
    ball: ns.JointBall
    planted: ns.Perturbation
    margin: float = 0.0


def checked(case: Case) -> Case:
    """The case, after its point is held against its ball and its module."""
    case.planted.check(case.model, case.x, case.ball)
    weights = {n: w[0] for n, w in case.planted.weights.items()}
    with torch.no_grad():
        y = held_at(case.model, weights)(case.planted.x)
    margin = worst_margin(margins(y, case.y), case.y).item()
    assert margin < 0, "the point that was planted changes nothing"
    return replace(case, margin=margin)


# --- built ------------------------------------------------------------------------------------------------------------------


def built(seed: int, joint: bool, *, inputs: int = 4, radius: float = 0.1) -> Case:
    """Dense, four layers.  Its margin is about 1 in the ball, and -1, -1e-3 or -1e-6 at the point."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    d, h, k = inputs, 3, 2 if joint else 0
    x, y = 0.2 + 0.6 * torch.rand(1, d).double(), torch.tensor([rng.randrange(CLASSES)])
    p = x[0] + radius * (0.9 + 0.09 * torch.rand(d).double()) * torch.randint(0, 2, (d,)).mul(2).sub(1)
    v = 0.02 * (0.9 + 0.09 * torch.rand(k).double())
    width = 0.1 * radius
    # layers: parts of |x - p|, and a 1; their sum D, parts of |w - v|; width - D - |w - v|; logits.  Beside them a small network
    W = [torch.zeros(a, b).double() for a, b in pairwise_of((d, 2 * d + 1 + h, 1 + 2 * k + h, 1 + h, CLASSES))]
    B = [torch.zeros(len(w)).double() for w in W]
    eye = torch.eye(d).double()
    W[0][:d], W[0][d : 2 * d] = eye, -eye
    B[0][:d], B[0][d : 2 * d], B[0][2 * d] = -p, p, 1.0
    W[1][0, : 2 * d] = 1.0
    B[1][1 : 1 + k], B[1][1 + k : 1 + 2 * k] = -v, v
    W[2][0, : 1 + 2 * k], B[2][0] = -1.0, width
    for w in W:
        w[-h:, -h:] = 0.2 * torch.randn(len(w[-h:]), h).double()
    W[0][-h:] = 0.2 * torch.randn(h, d).double()
    B[3][y] = 1.0
    V = [w.clone() for w in W]
    V[1][1 : 1 + k, 2 * d], V[1][1 + k : 1 + 2 * k, 2 * d] = v, -v
    _mix(rng, W, B, V)
    model = nn.Sequential(*(m for a, b in zip(W, B, strict=True) for m in (_linear(a, b), nn.ReLU())))[:-1].double().eval()
    names = [f"{2 * i}.weight" for i in range(4)]
    moved = {n: b[None] for n, a, b in zip(names, W, V, strict=True) if not torch.equal(a, b)}
    radii = {n: 1.001 * (b - a).abs() for n, a, b in zip(names, W, V, strict=True) if n in moved}
    reach = max((r.max().item() for r in radii.values()), default=0.0)
    eps_w = reach if seed % 4 == 1 else radii  # all weights, or those alone that the point moves
    wanted = rng.choice([-1.0, -1e-3, -1e-6])
    point = ns.Perturbation(p[None], moved, "sample")
    with torch.no_grad():
        at = held_at(model, {n: w[0] for n, w in moved.items()})
        model[-1].weight[y, 0] = 0.0
        high = worst_margin(margins(at(p[None]), y), y)
        model[-1].weight[y, 0] = (wanted - high) / at_last(model, moved, p)
    return checked(Case("built", model, x, y, ns.JointBall(radius, eps_w), point))


def pairwise_of(sizes: tuple[int, ...]) -> list[tuple[int, int]]:
    """(out, in) of each layer."""
    return [(b, a) for a, b in pairwise(sizes)]


def _linear(W: Tensor, b: Tensor) -> nn.Linear:
    layer = nn.Linear(W.shape[1], W.shape[0]).double()
    with torch.no_grad():
        layer.weight.copy_(W)
        layer.bias.copy_(b)
    return layer


def at_last(model: nn.Sequential, moved: dict[str, Tensor], p: Tensor) -> Tensor:
    """What the last layer sees of the hinge, at the point."""
    z = p[None]
    for i, layer in enumerate(model[:-1]):
        z = F.linear(z, moved[f"{i}.weight"][0], layer.bias) if f"{i}.weight" in moved else layer(z)
    return z[0, 0]


def _mix(rng: random.Random, W: list[Tensor], B: list[Tensor], V: list[Tensor]) -> None:
    """Scales hidden neurons, which changes nothing.  The first of the last hidden layer stays, as it is looked up."""
    for i in range(3):
        n = len(W[i])
        scale = torch.tensor([2.0 ** rng.choice([-1, 0, 1]) for _ in range(n)]).double()
        order = torch.tensor(rng.sample(range(n), n)) if i < 2 else torch.arange(n)
        for part in (W, V):
            part[i] = (scale[:, None] * part[i])[order]
            part[i + 1] = (part[i + 1] / scale)[:, order]
        B[i] = (scale * B[i])[order]


# --- trained ----------------------------------------------------------------------------------------------------------------


def trained(seed: int, joint: bool, *, steps: int = 150) -> Case:
    """Wrong at the point by about 0.1, and right at random points and at those of a short attack, if the training succeeds."""
    torch.manual_seed(seed)
    kind = ("mlp", "conv", "resnet")[seed // 3 % 3]
    shape = (6,) if kind == "mlp" else (1, 4, 4)
    hidden = {"mlp": (16, 16), "conv": (4, 6), "resnet": (3, 4)}[kind]
    model, radius = lookup(MODELS, kind, "model")(shape, CLASSES, hidden=hidden, bias=True).double().eval(), 0.15
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.1), m.running_var.uniform_(0.5, 1.5)
    eps_w = 0.02 if joint else 0.0
    x, y = 0.2 + 0.6 * torch.rand(1, *shape).double(), torch.tensor([seed % CLASSES])
    p = x + radius * (2 * torch.randint(0, 2, x.shape) - 1) * (0.8 + 0.2 * torch.rand(x.shape)).double()
    moving = {n: w for n, w in model.named_parameters() if w.dim() > 1} if joint else {}
    shift = {n: 0.99 * eps_w * (2 * torch.randint(0, 2, w.shape) - 1).double() for n, w in moving.items()}
    descent = torch.optim.Adam(model.parameters(), lr=0.01)

    def margin(at: Tensor, moved: dict[str, Tensor]) -> Tensor:
        logits = torch.func.functional_call(model, moved, (at,))
        return worst_margin(margins(logits, y.expand(len(at))), y.expand(len(at)))

    for _ in range(steps):
        lo, hi = x - radius, x + radius
        near = lo + (hi - lo) * torch.rand(24, *shape).double()
        at = near
        for _ in range(3):
            (g,) = torch.autograd.grad(margin(at.requires_grad_(), {}).sum(), at)
            at = torch.clamp(at.detach() - radius / 2 * g.sign(), lo, hi)
        worst = torch.cat([near, at, p])  # p itself is right with the weights as they are, if they move, too
        safe = margin(worst if joint else worst[:-1], {})
        loss = F.relu(0.5 - safe).mean() + F.relu(0.1 + margin(p, {n: w + shift[n] for n, w in moving.items()})).sum()
        descent.zero_grad()
        loss.backward()
        descent.step()
    model.requires_grad_(False)
    planted = ns.Perturbation(p, {n: (w + shift[n]).detach()[None] for n, w in moving.items()}, "sample")
    with torch.no_grad():  # what is left to be wrong there
        high = margin(p, {n: w + shift[n] for n, w in moving.items()}).item()
        if high >= -1e-6:
            list(model.parameters())[-1][y] -= high + 1e-3
    ball = ns.JointBall(radius, eps_w, domain=None)
    return checked(Case(f"trained {kind}", model, x, y, ball, planted))


def case(seed: int) -> Case:
    """Every second one joint; two of three built."""
    return (trained if seed % 3 == 2 else built)(seed, joint=seed % 2 == 1)


# --- what is said of them -----------------------------------------------------------------------------------------------------


def wrong(c: Case, bounds: list[str], parts: int) -> list[str]:
    """The bounds that call it verified or lie above the margin of the point, and "decide" if its verdict is verified."""
    return [*false_bounds(c, bounds), *(["decide"] if verdict(c, parts) == "verified" else [])]


def false_bounds(c: Case, bounds: list[str]) -> list[str]:
    found: list[str] = []
    with torch.no_grad():
        at = margins(logits_at(c.model, c.planted), c.y)
    slack = 1e-12 * (1 + at.abs().max())
    for name in bounds:
        try:
            proof = ns.certify(c.model, c.x, c.y, c.ball, bound=name)
        except ns.UnsupportedModel:
            continue
        if proof.verified.any() or (proof.margins > at + slack).any():
            found.append(name)
    return found


def verdict(c: Case, parts: int, ball: ns.JointBall | None = None) -> str:
    return ns.decide(c.model, c.x, c.y, ball or c.ball, parts=parts).status[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--parts", type=int, default=100, help="of branch and bound, in decide")
    parser.add_argument("--bounds", nargs="*", default=["theorem1", "interval", "crown-ibp", "crown", "alpha-crown"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    faults, started = 0, time.monotonic()
    seen: dict[str, Counter[str]] = {}
    done = 0
    for seed in range(options.first, options.first + options.cases):
        if time.monotonic() - started > 60 * options.minutes:
            break
        c = case(seed)
        kind = f"{c.name}, {'inputs and weights' if c.planted.weights else 'inputs'}"
        counts = seen.setdefault(kind, Counter())
        status = verdict(c, options.parts)
        if bad := [*false_bounds(c, options.bounds), *(["decide"] if status == "verified" else [])]:
            faults += 1
            print(f"WRONG: case {seed}, {kind}: {', '.join(bad)}", flush=True)
        counts["cases"] += 1
        counts[f"decide: {status}"] += 1
        for attack in ("paper", "apgd"):
            x = lookup(ATTACKS, attack, "attack")(c.model, c.x, c.y, c.ball, scope="sample")
            counts[f"{attack} finds"] += int((worst_margin(margins(logits_at(c.model, x), c.y), c.y) <= 0).item())
        done += 1
    for kind, counts in sorted(seen.items()):
        print(kind, dict(sorted(counts.items())))
    print(f"{done} cases, {len(options.bounds)} bounds and decide each: {faults} wrong")
    raise SystemExit(1 if faults else 0)


if __name__ == "__main__":
    main()
