"""Random networks in random regions, and the lowest margins that brute force finds there: no bound may lie above them.

The points are evaluated by the user's module itself (torch.func.functional_call), never by the graph that bounds are made from.
A *network* is a fresh draw of all weights with a fresh region and fresh examples; DRAWS of them share one architecture.

    python tests/soundness.py --networks 200000 --processes 2 --out soundness.jsonl     # resumes; one line per block
    python tests/soundness.py --summary soundness.jsonl
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from torch.func import functional_call, vmap

from nonsingular.bounds.alpha import ascend
from nonsingular.bounds.interval import Region, interval_bounds, interval_margins
from nonsingular.bounds.linear import hidden_bounds, margin_bounds
from nonsingular.bounds.parts import Search
from nonsingular.network.calling import recording
from nonsingular.network.graph import trace_graph
from nonsingular.network.margins import margins
from nonsingular.network.network import twin
from nonsingular.network.spelled import spelled
from nonsingular.threat.ball import JointBall
from nonsingular.threat.interval import Interval

DRAWS = 5
EXAMPLES = 3
CLASSES = 3

# --- brute force -------------------------------------------------------------------------------------------------------------


def lowest_found(
    model: nn.Module, where: Region, y: torch.Tensor, *, restarts: int = 8, rounds: int = 4, seed: int = 0
) -> torch.Tensor:
    """(B, K) smallest margins found, each example with weights of its own.

    For each example and each other class `restarts` starts, half of them at corners and half anywhere; from each, `rounds` of
    ascent from end to end: all coordinates at once, or (every second start) each with probability 0.7.
    """
    generator = torch.Generator().manual_seed(seed)
    still, B, K = twin(model), len(y), where.graph.nodes[-1].shape[0]
    names = sorted(where.boxes)
    others = max(1, K - 1)
    P = others * restarts
    labels = y.repeat_interleave(P)
    targets = (labels + 1 + torch.arange(P).repeat(B) % others) % K
    corner = (torch.arange(P).repeat(B) // others) % 2 == 0
    part = (torch.arange(P).repeat(B) // (2 * others)) % 2 == 0

    def logits(x, weights):
        return functional_call(still, weights, (x[None],))[0]

    def shaped(mask, t):
        return mask.view(-1, *[1] * (t.dim() - 1))

    boxes = [tuple(e.repeat_interleave(P, 0) for e in (where.x.lo, where.x.hi))]
    boxes += [(where.boxes[n].lo[None], where.boxes[n].hi[None]) for n in names]
    points = []
    for lo, hi in boxes:
        u = torch.rand((B * P, *lo.shape[1:]), generator=generator, dtype=lo.dtype)
        points.append(torch.lerp(lo, hi, torch.where(shaped(corner, u), u.round(), u)))
    found = torch.full((B, K), torch.inf, dtype=where.x.lo.dtype)
    for step in range(rounds + 1):
        with torch.enable_grad():
            points = [t.detach().requires_grad_(step < rounds) for t in points]
            with spelled(still):  # vmap knows no recurrent layer
                f = vmap(logits)(points[0], dict(zip(names, points[1:], strict=True)))
            m = f.gather(1, labels[:, None]) - f
            if step < rounds:
                slopes = torch.autograd.grad(m.gather(1, targets[:, None]).sum(), points, allow_unused=True)
        with torch.no_grad():
            found = torch.minimum(found, m.detach().view(B, P, K).amin(1))
            if step < rounds:
                for i, ((lo, hi), g) in enumerate(zip(boxes, slopes, strict=True)):
                    if g is None:
                        continue
                    if step:
                        g = torch.where(shaped(part, g) & (torch.rand(g.shape, generator=generator) > 0.7), 0.0, g)
                    points[i] = torch.where(g > 0, lo, torch.where(g < 0, hi, points[i]))
    return found


def all_bounds(where: Region, y: torch.Tensor, steps: int = 2) -> dict[str, torch.Tensor]:
    boxes = interval_bounds(where)
    found = {
        "interval": interval_margins(where, y, boxes),
        "crown-ibp": margin_bounds(where, boxes, y),
        "crown": margin_bounds(where, hidden_bounds(where), y),
    }
    if steps:
        found["alpha-crown"] = ascend(where, y, steps, 0.2, hidden=steps)
    return found


def branched(model: nn.Module, where: Region, y: torch.Tensor, parts: int = 10) -> torch.Tensor:
    """Bounds after a few splits."""
    with recording():
        tree = Search(where, y, twin(model), (where.x.lo + where.x.hi) / 2)
        tree.run(parts)
    return tree.verdicts().lower


def violations(reached: torch.Tensor, bounds: dict[str, torch.Tensor]) -> list[str]:
    """What a sound bound never does."""
    said = []
    for name, low in bounds.items():
        slack = 1e-9 * (1 + reached.abs() + low.abs())
        if not torch.isfinite(low).all():
            said.append(f"{name} is not finite: {low.tolist()}")
        elif not (low <= reached + slack).all():
            said.append(f"{name}: bound {low.tolist()} above attained {reached.tolist()}")
    return said


def check_sound(model: nn.Module, where: Region, y: torch.Tensor, *, steps: int = 2, **force) -> dict[str, torch.Tensor]:
    reached, bounds = lowest_found(model, where, y, **force), all_bounds(where, y, steps)
    said = violations(reached, bounds)
    assert not said, said
    return bounds


# --- random networks ---------------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    def __init__(self, inner: nn.Module, scaled: bool) -> None:
        super().__init__()
        self.inner = inner
        self.scale = nn.Parameter(torch.tensor([0.7])) if scaled else None

    def forward(self, x):
        y = self.inner(x)
        if self.scale is not None:
            y = y * self.scale
        return x + y


class Wrap(nn.Module):
    """A function between two modules: operations that have no module form."""

    def __init__(self, f, *modules) -> None:
        super().__init__()
        self.f, self.inside = f, nn.ModuleList(modules)
        self.register_buffer("mean", torch.tensor(0.4))

    def forward(self, x):
        return self.f(self, x)


def activation(r: random.Random) -> nn.Module:
    if r.random() < 0.45:
        return nn.ReLU()
    return r.choice(
        [
            nn.LeakyReLU(0.1), nn.Sigmoid(), nn.Tanh(), nn.GELU(), nn.GELU("tanh"), nn.ReLU6(), nn.Hardtanh(-0.5, 0.8), nn.SiLU(),
            nn.Hardswish(), nn.Hardsigmoid(), nn.ELU(), nn.SELU(), nn.CELU(0.5), nn.Softplus(),
        ]
    )  # fmt: skip


def dense_net(r: random.Random) -> tuple[nn.Module, tuple[int, ...]]:
    widths = [r.randint(1, 4), *(r.randint(2, 5) for _ in range(r.randint(0, 3))), CLASSES]
    bias, layers = r.random() < 0.5, list[nn.Module]()
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b, bias=bias), activation(r)]
        if r.random() < 0.2:
            layers.insert(-1, nn.BatchNorm1d(b))
        if r.random() < 0.2:
            layers.append(Residual(nn.Sequential(nn.Linear(b, b), activation(r)), r.random() < 0.5))
    while not isinstance(layers[-1], nn.Linear | nn.BatchNorm1d):
        layers.pop()
    return nn.Sequential(*layers), (widths[0],)


def conv_net(r: random.Random) -> tuple[nn.Module, tuple[int, ...]]:
    shape = (r.randint(1, 2), r.randint(4, 6), r.randint(4, 7))
    layers: list[nn.Module] = []
    c = shape[0]
    if r.random() < 0.3:
        layers.append(Wrap(lambda self, x: (x - self.mean) / 0.3))
    for _ in range(r.randint(1, 2)):
        groups = r.choice([1, 1, c])
        wide = groups * r.randint(1, 2)
        k = r.choice([1, 2, 3])
        dilation = 2 if k == 2 and r.random() < 0.3 else 1
        layers.append(
            nn.Conv2d(
                c, wide, k, stride=r.choice([1, 2]), padding=r.choice([0, 1]), dilation=dilation,
                groups=groups, bias=r.random() < 0.5,
            )
        )  # fmt: skip
        c = wide
        if r.random() < 0.4:
            layers.append(nn.BatchNorm2d(c))
        layers.append(activation(r))
        if r.random() < 0.3:
            inner = nn.Sequential(nn.Conv2d(c, c, 3, padding=1), *([nn.BatchNorm2d(c)] if r.random() < 0.5 else []))
            layers += [Residual(inner, r.random() < 0.3), activation(r)]
        if r.random() < 0.2:
            layers.append(nn.ConvTranspose2d(c, 2, 2, stride=r.choice([1, 2]), padding=r.choice([0, 1])))
            c = 2
    tail = r.choice(["max", "avg", "none", "none", "pool"])
    if tail == "max":
        layers.append(nn.MaxPool2d(2, stride=1, padding=1))
    elif tail == "avg":
        layers.append(nn.AvgPool2d(2, stride=1, padding=1))
    elif tail == "pool":
        layers.append(nn.AdaptiveAvgPool2d(1))
    layers += [nn.Flatten()]
    out = nn.Sequential(*layers).eval()(torch.zeros(2, *shape)).shape[1]
    if not out:
        raise RuntimeError("nothing is left of the image")
    return nn.Sequential(*layers, nn.Linear(out, CLASSES, bias=r.random() < 0.5)), shape


def network(r: random.Random) -> tuple[nn.Module, tuple[int, ...]]:
    while True:
        try:
            model, shape = (dense_net if r.random() < 0.5 else conv_net)(r)
            model.double().eval()(torch.zeros(2, *shape).double())
            return model, shape
        except RuntimeError:  # the image became smaller than a kernel
            continue


def cases(seed: int, draws: int = DRAWS) -> Iterator[tuple[nn.Module, Region, torch.Tensor]]:
    """`draws` networks of one random architecture: weights, examples and region are new each time."""
    r = random.Random(seed)
    torch.manual_seed(seed)
    model, shape = network(r)
    model = model.double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.3, 2)
    graph = trace_graph(model, shape)  # its parameters are views of the model's: new weights are seen by both
    for _ in range(draws):
        gain = r.choice([0.7, 1.0, 1.5, 2.5])
        for p in model.parameters():
            nn.init.normal_(p, std=gain / p[0].numel() ** 0.5 if p.dim() > 1 else 0.7 * gain)
        yield model, random_region(r, model, graph, shape), torch.tensor([r.randrange(CLASSES) for _ in range(EXAMPLES)])


def random_region(r: random.Random, model: nn.Module, graph, shape: tuple[int, ...]) -> Region:
    """Signed inputs or not, mixed and relative radii, with biases or without, and boxes of any ends around the weights."""
    signed = r.random() < 0.4
    x = torch.randn(EXAMPLES, *shape).double() if signed else torch.rand(EXAMPLES, *shape).double()
    eps_x, eps_w = r.choice([0.0, 0.01, 0.1, 0.5]), r.choice([0.0, 0.001, 0.02, 0.1, 0.3])
    domain = None if signed else (0.0, 1.0)
    kind = r.choice(["weights", "all", "all", "mixed", "relative", "one"])
    if kind == "mixed":
        ball = JointBall(eps_x, {n: r.choice([0, eps_w, 2 * eps_w]) for n in graph.params}, domain)
    elif kind == "one":
        ball = JointBall(eps_x, {r.choice(sorted(graph.params)): 3 * eps_w}, domain)
    else:
        ball = JointBall(eps_x, eps_w, domain, moves="weights" if kind == "weights" else "all", relative=kind == "relative")
    boxes = ball.weight_boxes(graph.params)
    if r.random() < 0.3:  # any box, not only symmetric ones and not all of one radius
        half = {n: (b.hi - b.lo) / 2 for n, b in boxes.items()}
        boxes = {
            n: Interval(graph.params[n] - h * torch.rand_like(h), graph.params[n] + h * torch.rand_like(h))
            for n, h in half.items()
        }
    return Region(graph, ball.input_box(x), boxes)


def random_case(seed: int) -> tuple[nn.Module, Region, torch.Tensor]:
    return next(cases(seed, 1))


def shrunk(where: Region, factor: float) -> Region:
    """The region with every side `factor` times as long, around the same centre (a point for 0)."""

    def inner(box: Interval) -> Interval:
        centre, half = (box.lo + box.hi) / 2, (box.hi - box.lo) / 2
        return Interval(centre - factor * half, centre + factor * half)

    return Region(where.graph, inner(where.x), {n: inner(b) for n, b in where.boxes.items()})


def check_limits(model: nn.Module, where: Region, y: torch.Tensor, interval_low: torch.Tensor) -> list[str]:
    """At radius zero every bound is the forward pass; interval bounds do not fall when the region shrinks."""
    said = []
    point = shrunk(where, 0.0)
    moved = {n: b.lo for n, b in point.boxes.items()}
    exact = margins(functional_call(model, moved, (point.x.lo,)), y).detach()
    for name, low in all_bounds(point, y, 0).items():
        if not torch.allclose(low, exact, rtol=1e-7, atol=1e-7):
            said.append(f"{name} at radius zero is {low.tolist()}, the forward pass {exact.tolist()}")
    half = shrunk(where, 0.5)
    inner = interval_margins(half, y, interval_bounds(half))
    if not (inner >= interval_low - 1e-9 * (1 + interval_low.abs())).all():
        said.append(f"interval bounds fall when the region shrinks: {interval_low.tolist()} to {inner.tolist()}")
    return said


def check_architecture(seed: int) -> dict:
    """DRAWS networks against brute force, the first also at radius zero and at half its size.  Counts, and what went wrong.

    The dear ones take part in few: alpha-CROWN in one network of 20, branch and bound in one of 40.
    """
    found = {"networks": 0, "points": 0, "margins": {}, "largest": {}, "violations": []}
    for k, (model, where, y) in enumerate(cases(seed)):
        reached, bounds = lowest_found(model, where, y, seed=k), all_bounds(where, y, 2 if k == 0 and seed % 4 == 0 else 0)
        if k == 1 and seed % 8 == 0:
            bounds["branch-and-bound"] = branched(model, where, y)
        said = violations(reached, bounds)
        if k == 0:
            said += check_limits(model, where, y, bounds["interval"])
        found["violations"] += [f"seed {seed}, draw {k}: {text}" for text in said]
        found["networks"] += 1
        found["points"] += 5 * len(y) * 8 * (CLASSES - 1)  # rounds + 1 evaluations of restarts for each other class
        other = torch.arange(CLASSES) != y[:, None]
        for name, low in bounds.items():
            excess = ((low - reached) / (1 + reached.abs() + low.abs()))[other]
            found["margins"][name] = found["margins"].get(name, 0) + len(excess)
            found["largest"][name] = max(excess.max().item(), found["largest"].get(name, -1.0))
    return found


def merged(parts: list[dict]) -> dict:
    names = sorted({n for p in parts for n in p["largest"]})
    return {
        **{k: sum(p[k] for p in parts) for k in ("networks", "points")},
        "margins": {n: sum(p["margins"].get(n, 0) for p in parts) for n in names},
        "largest": {n: max(p["largest"].get(n, -1.0) for p in parts) for n in names},
        "violations": [v for p in parts for v in p["violations"]],
    }


# --- the long run ------------------------------------------------------------------------------------------------------------

BLOCK = 200  # architectures; DRAWS times as many networks
FIRST = 1_000_000  # the long run shares no seed with the tests


def run_block(block: int) -> dict:
    torch.set_num_threads(1)
    start, cpu = time.perf_counter(), time.process_time()
    first = FIRST + BLOCK * block
    found = merged([check_architecture(seed) for seed in range(first, first + BLOCK)])
    return {"block": block, **found, "seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}


def summary(lines: list[dict]) -> dict:
    return {**merged(lines), "blocks": len(lines), **{k: sum(p[k] for p in lines) for k in ("seconds", "cpu_seconds")}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, default=200_000)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--summary", type=Path)
    options = parser.parse_args()
    path = options.summary or options.out
    if path is None:
        parser.error("give --out or --summary")
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    if not options.summary:
        done = {p["block"] for p in lines}
        todo = [b for b in range(-(-options.networks // (BLOCK * DRAWS))) if b not in done]
        with multiprocessing.Pool(options.processes) as pool, path.open("a") as out:
            for found in pool.imap_unordered(run_block, todo):
                lines.append(found)
                out.write(json.dumps(found) + "\n")
                out.flush()
    found = summary(lines)
    print(json.dumps(found, indent=1))
    raise SystemExit(1 if found["violations"] else 0)


if __name__ == "__main__":
    main()
