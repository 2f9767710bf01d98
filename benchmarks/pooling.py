"""pooling.py - CROWN through max and average pooling: this package against auto_LiRPA 0.7.1, LeNet on CIFAR-10, weights fixed.

Trained weights: lenet_cifar10.pth of the wheel mrfi 2.1.0 (pip download mrfi==2.1.0 --no-deps, unpacked); --weights names it.
auto_LiRPA: as in auto_lirpa.py.  Exit code 1 if a margin of ours lies below its CROWN by more than 1e-4, or ours takes longer.
Each example alone, one thread, interleaved.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from timing import machine, options, verdict
from torch import Tensor, nn

from nonsingular.bounds.linear import crown
from nonsingular.data.datasets import load
from nonsingular.network.heads import classifier
from nonsingular.threat.ball import JointBall

RADII = (0.1 / 255, 0.25 / 255, 1 / 255)


def lenet(pool: type[nn.Module]) -> nn.Sequential:
    """The LeNet of mrfi, its layers in a row.  Its inputs are (x - 0.5) / 0.5, in [-1, 1]."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 5), nn.ReLU(), pool(2), nn.Conv2d(6, 16, 5), nn.ReLU(), pool(2), nn.Flatten(),
        nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    ).eval()  # fmt: skip


def trained(path: Path, pool: type[nn.Module]) -> nn.Sequential:
    model, state = lenet(pool), torch.load(path, map_location="cpu", weights_only=True)
    values = iter(state.values())
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(next(values))
    return model


def theirs(model: nn.Module, x: Tensor, y: Tensor, eps: float, domain: tuple[float, float] = (-1.0, 1.0)) -> Tensor:
    """(B, K - 1) margins by the CROWN of auto_LiRPA."""
    from auto_LiRPA import BoundedModule, BoundedTensor, PerturbationLpNorm

    K = model(x[:1]).shape[1]
    eye = torch.eye(K)
    C = eye[y][:, None] - eye[None]
    C = torch.stack([C[b][[k for k in range(K) if k != int(y[b])]] for b in range(len(y))])
    bounded = BoundedModule(model, x[:1], device="cpu", verbose=False)
    ball = PerturbationLpNorm(norm=float("inf"), x_L=(x - eps).clamp(*domain), x_U=(x + eps).clamp(*domain))
    lower, _ = bounded.compute_bounds(x=(BoundedTensor(x, ball),), C=C, method="CROWN", bound_upper=False)
    return lower.detach()


def ours(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    lower = crown(model, x, y, JointBall(eps, 0.0, (-1.0, 1.0)))
    return torch.stack([row[[k for k in range(len(row)) if k != int(label)]] for row, label in zip(lower, y, strict=True)])


def main() -> int:
    parser = options(__doc__, examples=10)
    parser.add_argument("--weights", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    test = load("cifar10", args.data_dir).test
    inputs = 2 * test.x - 1
    missed = 0
    for name, pool in (("max", nn.MaxPool2d), ("average", nn.AvgPool2d)):
        model = trained(args.weights, pool)
        with torch.no_grad():
            right = (model(inputs[:2000]).argmax(1) == test.y[:2000]).nonzero().flatten()[: args.examples]
        for eps in RADII:
            seconds, worst, below = {"ours": 0.0, "auto_LiRPA": 0.0}, 0.0, 0
            for k in right.tolist():
                x, y = inputs[k : k + 1], test.y[k : k + 1]
                network = classifier(model, x)
                found: dict[str, Tensor] = {}
                for who, bound in (("ours", ours), ("auto_LiRPA", theirs)):
                    started = time.process_time()
                    found[who] = bound(network if who == "ours" else model, x, y, 2 * eps)
                    seconds[who] += time.process_time() - started
                gap = found["ours"].double() - found["auto_LiRPA"].double()
                below += int((gap < -1e-4).sum())
                worst = min(worst, float(gap.min()))
            n = len(right)
            below_by = f"{below} of {9 * n} margins below, by {-worst:.3g} at most"
            each = f"seconds an image {seconds['ours'] / n:.2f} and {seconds['auto_LiRPA'] / n:.2f}"
            print(f"{name} pooling, eps_x {255 * eps:g}/255, {n} images: {below_by}; {each}", flush=True)
            missed |= verdict("margins below", below, 0)
            missed |= verdict("time over time", seconds["ours"] / seconds["auto_LiRPA"], 1.0)
    return missed


if __name__ == "__main__":
    sys.exit(main())
