"""Random networks of the operators that a forward may call, held against brute force as in soundness.py.

python tests/operator_nets.py FIRST LAST        # architectures; prints what went wrong, and the number of networks
"""

from __future__ import annotations

import random
import sys

import torch
import torch.nn.functional as F
from torch import nn

import soundness
from nonsingular.network.rounded import fused, integer_product, rounded
from soundness import CLASSES, check_architecture

# (forward of x (N, d), shapes of the parameters, width of the output); d: width of the input, o: any other
STEPS = [
    ("x @ s.W.t() + s.b", {"W": "od", "b": "o"}, "o"),
    ("torch.matmul(x, s.W)", {"W": "do"}, "o"),
    ("torch.addmm(s.b, x, s.W, beta=-0.5, alpha=1.5)", {"W": "do", "b": "o"}, "o"),
    ("torch.einsum('bi,oi->bo', x, s.W)", {"W": "od"}, "o"),
    ("torch.einsum('bi,iop->bop', x, s.W).flatten(1)", {"W": "d22"}, "4"),
    ("torch.matmul(x[:, None, None].expand(-1, 2, 1, -1), s.W).flatten(1)", {"W": "2d3"}, "6"),
    ("(x[:, :, None] @ s.W.t()).flatten(1)[:, :4]", {"W": "21"}, "4"),
    ("torch.matmul(s.W, x[:, :, None])[:, :, 0]", {"W": "od"}, "o"),
    ("F.linear(x, s.W[1:, :], s.b[1:])", {"W": "4d", "b": "4"}, "3"),
    ("F.linear(x, s.w.expand(3, x.shape[1]))", {"w": "1"}, "3"),
    ("x - s.p", {"p": "d"}, "d"),
    ("s.p - x", {"p": "1"}, "d"),
    ("x * s.g - s.g", {"g": ""}, "d"),
    ("x * s.p.flip(0)", {"p": "d"}, "d"),
    ("x[:, :2] * s.p[1:3]", {"p": "4"}, "2"),
    ("x.add(s.p, alpha=-2)", {"p": "d"}, "d"),
    ("F.prelu(x, s.p)", {"p": "d"}, "d"),
    ("F.prelu(x, s.p)", {"p": "1"}, "d"),
    ("F.leaky_relu(x, 1.5)", {}, "d"),
    ("F.leaky_relu(x, -0.3)", {}, "d"),
    ("torch.max(x, x.flip(1))", {}, "d"),
    ("torch.min(x, torch.tensor(0.2, dtype=x.dtype))", {}, "d"),
    ("torch.cat([x.max(1, keepdim=True)[0], x.min(1, keepdim=True).values, x[:, :1]], 1)", {}, "3"),
    ("torch.cat([s.p.expand(len(x), 2), x[:, :2]], 1)", {"p": "2"}, "4"),
    ("F.pad(x, (1, -1), value=0.3)", {}, "d"),
    ("F.pad(x[:, None], (1, -1), mode='constant')[:, 0] + x", {}, "d"),
    ("torch.cat(x.chunk(2, 1)[::-1], 1)", {}, "d"),
    ("x[:, :2].repeat(1, 2)", {}, "4"),
    ("torch.where(torch.arange(x.shape[1]) % 2 == 0, x, -x)", {}, "d"),
    ("x.roll(1, 1).clamp(-0.4, 0.6)", {}, "d"),
    ("x + F.embedding(torch.arange(x.shape[1]), s.p)[:, 0]", {"p": "d1"}, "d"),
    ("x + F.relu(x.clone(), inplace=True)", {}, "d"),
    ("x * x.flip(1)", {}, "d"),
    ("x * torch.sigmoid(x @ s.W)", {"W": "dd"}, "d"),
    ("F.silu(x).mul(x[:, :1]) - x**2 / 4", {}, "d"),
    ("x / (1.5 + torch.tanh(x.roll(1, 1)))", {}, "d"),
    ("(-x / 2).exp().clamp(max=3)", {}, "d"),
    ("(x**2 + 0.3).log() + (x**2 + 0.2).sqrt()", {}, "d"),
    ("(x**3).clamp(-2, 2) - (1 + x.square()).reciprocal()", {}, "d"),
    ("F.glu(torch.cat([x, x @ s.W], 1))", {"W": "dd"}, "d"),
    ("F.layer_norm(x, x.shape[1:], s.g, s.b, 0.1)", {"g": "d", "b": "d"}, "d"),
    ("F.layer_norm(x[:, :, None] * s.g, (3,), eps=0.3).flatten(1)[:, 1:4]", {"g": "3"}, "3"),
    ("F.rms_norm(x, x.shape[1:], s.g, 0.1)", {"g": "d"}, "d"),
    ("F.group_norm(torch.stack([x, x.flip(1)], 2), 1, s.g, s.b, 0.1).mean(2)", {"g": "d", "b": "d"}, "d"),
    ("torch.softmax(x * 2, 1)", {}, "d"),
    ("x.log_softmax(1) / 2 + F.softmin(torch.stack([x, x.flip(1)], 1), 1)[:, 0]", {}, "d"),
    ("F.scaled_dot_product_attention(*(x[:, :, None] * w for w in (s.q, s.k, s.v))).sum(2)", {"q": "2", "k": "2", "v": "2"}, "d"),
    ("((x[:, :, None] * s.q) @ (x[:, None] * s.k).softmax(2)).mean(1)", {"q": "1", "k": "1"}, "d"),
    ("torch.bmm(x[:, None] * s.p, x[:, :, None] + s.q).flatten(1).expand(-1, 2)", {"p": "d", "q": "2"}, "2"),
    ("torch.einsum('bi,bj->bji', x @ s.W, x).mean(2)", {"W": "d2"}, "d"),
    ("x[:, :2] * torch.sigmoid(F.relu(x.mean(1, keepdim=True) * s.a) @ s.W)", {"a": "2", "W": "22"}, "2"),
    ("rounded(torch.clamp(x / 0.3, -4, 3)) * 0.3", {}, "d"),
    ("(rounded(F.hardtanh((x @ s.W) / 0.2 + 8, 0, 15)) - 8) * 0.2", {"W": "dd"}, "d"),
    ("torch.round(2 * x) + x", {}, "d"),
    ("integer_product(x, s.W, torch.ones(s.W.shape), torch.tensor([0.7]), torch.arange(len(s.W)), None)", {"W": "od"}, "o"),
    (
        "integer_product(x[:, None], s.W, torch.ones(2, 1, 2), torch.tensor([0.7, 0.9]), None, ([1], [0], [1], 1))[:, :, 0]",
        {"W": "212"},
        "2",
    ),
    ("fused(x, torch.tensor([0.7], dtype=x.dtype), x.flip(1)) - fused(x, x.new_tensor([2.0]), x.new_tensor([0.1]))", {}, "d"),
    ("write(x)", {}, "d"),
    ("F.relu(x)", {}, "d"),
]


ROUNDED = {"rounded": rounded, "integer_product": integer_product, "fused": fused}


def write(x: torch.Tensor) -> torch.Tensor:
    """Into a view: the first element becomes minus itself and half the last."""
    x = x.clone()
    x[:, :1] += 0.5 * x[:, -1:]
    x[:, 0].mul_(-1)
    return x


class Step(nn.Module):
    def __init__(self, d: int, r: random.Random) -> None:
        super().__init__()
        text, shapes, out = r.choice(STEPS)
        size = {"d": d, "o": r.randint(2, 5)}
        for name, letters in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn([size.get(c) or int(c) for c in letters]) / 2))
        self.run = eval(f"lambda s, x: {text}", {"torch": torch, "F": F, "write": write, **ROUNDED})
        self.out = size.get(out) or int(out)

    def forward(self, x):
        return self.run(self, x)


def network(r: random.Random) -> tuple[nn.Module, tuple[int, ...]]:
    first = d = r.randint(2, 4)
    steps: list[nn.Module] = []
    for _ in range(r.randint(3, 6)):
        steps.append(r.choice([Step, Step, lambda d, r: nn.Linear(d, 4)])(d, r))
        d = getattr(steps[-1], "out", 4)
        if r.random() < 0.4:
            steps.append(nn.ReLU())
    return nn.Sequential(*steps, nn.Linear(d, CLASSES)).double().eval(), (first,)


def check(seed: int) -> dict:
    """As `soundness.check_architecture`, of these networks."""
    before, soundness.network = soundness.network, network
    try:
        return check_architecture(seed)
    finally:
        soundness.network = before


if __name__ == "__main__":
    found = [check(seed) for seed in range(int(sys.argv[1]), int(sys.argv[2]))]
    print(*(v for f in found for v in f["violations"]), sum(f["networks"] for f in found), "networks", sep="\n")
