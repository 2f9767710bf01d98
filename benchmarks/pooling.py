"""pooling.py - CROWN through max and average pooling: this package against auto_LiRPA 0.7.1, LeNet on CIFAR-10, weights fixed.

Trained weights: lenet_cifar10.pth of the wheel mrfi 2.1.0 (pip download mrfi==2.1.0 --no-deps, unpacked); --weights names it.
auto_LiRPA: as in auto_lirpa.py.  Exit code 1 if a margin of ours lies below its CROWN by more than 1e-4 or below ours of the same
network with its maxima written as a + relu(b - a), if ours takes longer than its, or maxima 2.5 times as long as averages.
Each example alone, from the module to its margins; CPU seconds, one thread, interleaved.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from timing import machine, options, verdict
from torch import Tensor, nn

from nonsingular.bounds.linear import crown
from nonsingular.data.datasets import load
from nonsingular.threat.ball import JointBall

RADII = (0.1 / 255, 0.25 / 255, 1 / 255)
Margins = Callable[[Tensor, Tensor], Tensor]
"""(x, y) of one example -> (1, K - 1) lower bounds."""


class Tournament(nn.Module):
    """Max pooling over 2 x 2 with stride 2, with ReLUs alone."""

    def __init__(self, size: int) -> None:
        super().__init__()
        assert size == 2

    def forward(self, z: Tensor) -> Tensor:
        a, b, c, d = (z[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1))
        first, second = a + F.relu(c - a), b + F.relu(d - b)
        return first + F.relu(second - first)


def trained(path: Path, pool: type[nn.Module]) -> nn.Sequential:
    """The LeNet of mrfi, its layers in a row.  Its inputs are (x - 0.5) / 0.5, in [-1, 1]."""
    model = nn.Sequential(
        nn.Conv2d(3, 6, 5), nn.ReLU(), pool(2), nn.Conv2d(6, 16, 5), nn.ReLU(), pool(2), nn.Flatten(),
        nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    ).eval()  # fmt: skip
    values = iter(torch.load(path, map_location="cpu", weights_only=True).values())
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(next(values))
    return model


def others(lower: Tensor, y: Tensor) -> Tensor:
    """(B, K - 1): without the column of the label."""
    return torch.stack([row[[k for k in range(len(row)) if k != int(label)]] for row, label in zip(lower, y, strict=True)])


def theirs(
    model: nn.Module, eps: float, domain: tuple[float, float], x: Tensor, y: Tensor, method: str = "CROWN", steps: int = 20,
    conv_mode: str = "patches",
) -> Tensor:  # fmt: skip
    """By a method of auto_LiRPA.  conv_mode: how it keeps coefficients of convolutions, "patches" (its default) or "matrix"."""
    from auto_LiRPA import BoundedModule, BoundedTensor, PerturbationLpNorm

    eye = torch.eye(model(x[:1]).shape[1])
    bounded = BoundedModule(
        model, x[:1], {"conv_mode": conv_mode, "optimize_bound_args": {"iteration": steps}}, device="cpu", verbose=False
    )
    ball = PerturbationLpNorm(norm=float("inf"), x_L=(x - eps).clamp(*domain), x_U=(x + eps).clamp(*domain))
    C = others(eye[y][:, None] - eye[None], y)
    return bounded.compute_bounds(x=(BoundedTensor(x, ball),), C=C, method=method, bound_upper=False)[0].detach()


def ours(model: nn.Module, ball: JointBall, x: Tensor, y: Tensor) -> Tensor:
    return others(crown(model, x, y, ball), y)


def measured(contenders: Mapping[str, Margins], x: Tensor, y: Tensor) -> tuple[dict[str, Tensor], dict[str, float]]:
    """(margins (N, K - 1), CPU seconds an image) of each; the first image once before, not timed."""
    found: dict[str, list[Tensor]] = {name: [] for name in contenders}
    spent = dict.fromkeys(contenders, 0.0)
    for k in [0, *range(len(x))]:
        for name, bound in contenders.items():
            started = time.process_time()
            found[name].append(bound(x[k : k + 1], y[k : k + 1]).double())
            spent[name] += time.process_time() - started if len(found[name]) > 1 else 0.0
    return {name: torch.cat(rows[1:]) for name, rows in found.items()}, {name: s / len(x) for name, s in spent.items()}


def below(name: str, low: Tensor, base: Tensor) -> int:
    """Prints how many margins lie below; the exit code."""
    gap = low - base
    count = int((gap < -1e-4).sum())
    print(f"{name}: {count} of {gap.numel()}, by {max(0.0, -float(gap.min())):.3g} at most; mean of ours above: {gap.mean():.3g}")
    return verdict(f"margins below {name}", count, 0)


def main() -> int:
    parser = options(__doc__, examples=10)
    parser.add_argument("--weights", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    test = load("cifar10", args.data_dir).test
    inputs, missed = 2 * test.x - 1, 0
    nets = {name: trained(args.weights, pool) for name, pool in (("max", nn.MaxPool2d), ("average", nn.AvgPool2d))}
    nets["max as relu"] = trained(args.weights, Tournament)
    for eps in RADII:
        ball = JointBall(2 * eps, 0.0, (-1.0, 1.0))
        seconds: dict[str, float] = {}
        for name in ("max", "average"):
            with torch.no_grad():
                right = (nets[name](inputs[:2000]).argmax(1) == test.y[:2000]).nonzero().flatten()[: args.examples]
            contenders: dict[str, Margins] = {name: partial(ours, nets[name], ball)}
            contenders["auto_LiRPA"] = partial(theirs, nets[name], 2 * eps, (-1.0, 1.0))
            if name == "max":
                contenders["max as relu"] = partial(ours, nets["max as relu"], ball)
            low, spent = measured(contenders, inputs[right], test.y[right])
            each = ", ".join(f"{who} {s:.3f}" for who, s in spent.items())
            print(f"\n{name} pooling, eps_x {255 * eps:g}/255, {len(right)} images, CPU seconds an image: {each}", flush=True)
            for other in [who for who in contenders if who != name]:
                missed |= below(other, low[name], low[other])
            missed |= verdict("time over auto_LiRPA's", spent[name] / spent["auto_LiRPA"], 1.0)
            seconds[name] = spent[name]
        missed |= verdict("max over average", seconds["max"] / seconds["average"], 2.5)
    return missed


if __name__ == "__main__":
    sys.exit(main())
