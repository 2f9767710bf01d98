"""flip_cases.py - certificates and verdicts over flipped bits against all sets of flips, by brute force, on small networks.

python benchmarks/flip_cases.py --cases 20000 --seed 0

Dense, residual and convolutional networks with ReLU, leaky ReLU and tanh, of 2 to 4 bits, one or two flips anywhere.  A case is
an example: `ns.certify_flips` and `ns.decide_flips` are held against the margins under all sets of flips, at the example itself
and, where inputs move, at random points and corners of its box.  At a fixed input verdicts must be exact.  Words are flipped
here, not by the package.  Exit code 1 for a violation, which is printed with its seed.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from itertools import combinations, pairwise

import torch
from timing import machine, options
from torch import Tensor, nn

import nonsingular as ns

EXAMPLES = 10
"""Examples of a network."""
POINTS = 6
"""Inputs of a box beside its centre."""


class Residual(nn.Module):
    def __init__(self, d: int, act: nn.Module) -> None:
        super().__init__()
        self.a, self.b, self.c, self.act = nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, 3), act

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.a(x))
        return self.c(h + self.act(self.b(h)) + x)


def network(draw) -> tuple[nn.Module, tuple[int, ...]]:
    """A random network with three classes, and the shape of its input."""
    act = (nn.ReLU(), nn.LeakyReLU(0.1), nn.Tanh())[draw(3)]
    kind, d, h = draw(4), 2 + draw(3), 2 + draw(2)
    if kind == 0:
        return Residual(2 + draw(2), act), ()
    if kind == 1:
        kernel = nn.Conv2d(1, 2, 2, padding=draw(2))
        return nn.Sequential(kernel, act, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8, 3)), (1, 3, 3)
    sizes = [d, *[h] * (kind - 1), 3]
    layers = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), act)]
    return nn.Sequential(*layers[:-1]), (d,)


def every_set(model: nn.Module, bits: int, flips: int) -> tuple[dict[str, Tensor], list[tuple]]:
    """The weights (N, *shape) under every set of at most so many flipped bits, and the sets."""
    params = {n: p.detach() for n, p in model.named_parameters() if p.dim() > 1}
    levels, low = 2 ** (bits - 1) - 1, 2 ** (bits - 1)
    tops = {n: p.abs().max() for n, p in params.items()}
    words = {n: (p * levels / tops[n]).round().long() for n, p in params.items()}
    every = [(n, t, k) for n, w in words.items() for t in range(w.numel()) for k in range(bits)]
    sets = [chosen for r in range(flips + 1) for chosen in combinations(every, r)]
    made = {n: (w % 2**bits).expand(len(sets), *w.shape).clone() for n, w in words.items()}
    for row, chosen in enumerate(sets):
        for n, t, k in chosen:
            made[n][row].view(-1)[t] ^= 1 << k
    return {n: ((p ^ low) - low).double() * tops[n] / levels for n, p in made.items()}, sets


def least(model: nn.Module, weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    """(B, K) least margins of all weights at inputs x (B, P, *input)."""
    B, P = x.shape[:2]
    run = torch.vmap(lambda w: torch.func.functional_call(model, w, (x.flatten(0, 1),)), chunk_size=4096)
    logits = run(weights).view(-1, B, P, 3)
    return (logits.gather(3, y.view(1, B, 1, 1).expand(len(logits), B, P, 1)) - logits).amin((0, 2))


def worst(m: Tensor, y: Tensor) -> Tensor:
    return m.scatter(1, y[:, None], torch.inf).amin(1)


def violations(seed: int, count: Counter) -> list[str]:
    """Of one network."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)

    def draw(n: int) -> int:
        return int(torch.randint(n, (), generator=generator))

    model, shape = network(draw)
    model = model.double().eval()
    shape = shape or (model.a.in_features,)
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    with torch.no_grad():
        last.bias[draw(3)] += 2 * draw(3)
    bits, eps = 2 + draw(3), (0.0, 0.0, 0.05, 0.2)[draw(4)]
    words = sum(p.numel() for p in model.parameters() if p.dim() > 1) * bits
    flips = 2 if words <= 90 and draw(2) else 1
    x = torch.rand(EXAMPLES, *shape, generator=generator, dtype=torch.float64)
    weights, sets = every_set(model, bits, flips)
    with torch.no_grad():
        y = torch.func.functional_call(model, {n: w[0] for n, w in weights.items()}, (x,)).argmax(1)
        around = 2 * torch.rand(EXAMPLES, POINTS, *shape, generator=generator, dtype=torch.float64) - 1
        around[:, ::2] = around[:, ::2].sign()
        points = torch.cat([x[:, None], (x[:, None] + eps * around).clamp(0, 1)] if eps else [x[:, None]], 1)
        truth = least(model, weights, points, y)
    known = worst(truth, y)
    told = f"seed {seed}: {type(model).__name__}, {bits} bits, {flips} flips, eps {eps}"
    proven = ns.certify_flips(model, x, y, bits=bits, flips=flips, eps_x=eps)
    found = ns.decide_flips(model, x, y, bits=bits, flips=flips, eps_x=eps, seconds=1)
    bad: list[str] = []
    if not bool((proven.margins <= truth + 1e-9).all() and (found.lower <= truth + 1e-9).all()):
        bad.append(f"{told}: a bound is above a margin")
    tie = known.abs() < 1e-9
    for i, status in enumerate(found.status):
        count[f"{status}, eps {'= 0' if eps == 0 else '> 0'}, {flips} flips"] += 1
        right = known[i] > 0
        if status == "verified" and not right:
            bad.append(f"{told}: example {i} is verified and wrong")
        if eps == 0 and not tie[i] and (status != ("verified" if right else "falsified")):
            bad.append(f"{told}: example {i} is {status}")
        if eps == 0 and flips == 1 and not tie[i] and bool(proven.verified[i]) != bool(right):
            bad.append(f"{told}: example {i} is certified: {bool(proven.verified[i])}")
        if status == "falsified":
            chosen = {(f.name, f.index, f.bit) for f in found.flips[i]}
            row = next((k for k, some in enumerate(sets) if set(some) == chosen), None)
            at = found.perturbation.x[i : i + 1]
            if row is None or bool(((at - x[i]).abs() > eps + 1e-12).any()):
                bad.append(f"{told}: example {i} has flips or an input that are not allowed")
            elif torch.func.functional_call(model, {n: w[row] for n, w in weights.items()}, (at,)).argmax() == y[i]:
                bad.append(f"{told}: example {i} is falsified and right")
    return bad


def main() -> int:
    parser = options(__doc__, cases=20_000, seed=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    started, count, bad = time.process_time(), Counter(), []
    for n in range(-(-given.cases // EXAMPLES)):
        bad += violations(given.seed + n, count)
    for name, number in sorted(count.items()):
        print(f"{number:6} {name}")
    print("\n".join(bad[:20]) or "no violation", f"\n{time.process_time() - started:.0f} CPU seconds")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
