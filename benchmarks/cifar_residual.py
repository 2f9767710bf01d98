"""cifar_residual.py - a residual CIFAR-10 network with BatchNorm, trained and certified jointly: inputs and all its parameters.

Trains `resnet` (8, 16, 32: 18,770 parameters) adversarially at 4/255 with two inner steps, then bounds the first test images
that it classifies correctly, weights, scales, shifts and biases moving by a part of each tensor's largest |value|; then asks
`verify` for verdicts.  What is neither verified nor falsified is open.
Exit code 1 if an attack beats a certificate.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from timing import machine, options
from torch import nn

from nonsingular.attacks.joint_pgd import joint_pgd
from nonsingular.catalog import BOUNDS, lookup
from nonsingular.certificates.certify import decide
from nonsingular.data.datasets import load
from nonsingular.models.architectures import resnet
from nonsingular.network.calling import logits_at
from nonsingular.network.margins import is_correct, worst_margin
from nonsingular.threat.ball import JointBall
from nonsingular.training.loop import accuracy
from nonsingular.training.objectives import Adversarial
from nonsingular.training.train import train

TRAINED_AT = 4 / 255


def trained(data, epochs: int, seed: int) -> nn.Module:
    """Two steps of PGD on the inputs; Adam from 0.005 along a cosine."""
    torch.manual_seed(seed)
    model = resnet((3, 32, 32), 10)
    started = time.perf_counter()

    def show(epoch, network) -> None:
        seconds = time.perf_counter() - started
        print(f"epoch {epoch.epoch}: loss {epoch.loss:.3f}, validation {epoch.val_accuracy:.3f}, {seconds:.0f} s", flush=True)

    return train(
        model, data, method=Adversarial(TRAINED_AT, steps=2), epochs=epochs, seed=seed, lr=5e-3, callbacks=[show],
        threads=torch.get_num_threads(),
    ).model  # fmt: skip


def survives(model: nn.Module, x: torch.Tensor, y: torch.Tensor, ball: JointBall) -> torch.Tensor:
    """(B,) whether 20 steps of the paper's attack, each example with its own W', leave the prediction."""
    largest = max(ball.radii(dict(model.named_parameters())).values(), default=0.0)
    point = joint_pgd(model, x, y, ball, scope="sample", steps=20, step_x=ball.eps_x / 4, step_w=largest / 4)
    return is_correct(logits_at(model, point), y)


def certified(name: str, model: nn.Module, x: torch.Tensor, y: torch.Tensor, ball: JointBall) -> torch.Tensor:
    """(B,) whether the bound keeps every margin above 0, eight examples at a time."""
    bound = lookup(BOUNDS, name, "bound")
    found = []
    for part, labels in zip(x.split(8), y.split(8), strict=True):
        found.append(worst_margin(bound(model, part, labels, ball), labels) > 0)
        print(f"\r{name} {sum(map(len, found))}/{len(x)} ", end="", file=sys.stderr, flush=True)
    print("\r", end="", file=sys.stderr)
    return torch.cat(found)


def main() -> int:
    parser = options(__doc__, epochs=12, images=100, seed=0)
    parser.add_argument("--weights", type=Path, help="read the trained network from this file, or write it there")
    parser.add_argument("--eps-x", type=float, nargs="+", default=[0, 0.5, 1, 2], help="in 255ths")
    parser.add_argument("--eps-w", type=float, nargs="+", default=[0, 1e-4, 5e-4], help="parts of each tensor's largest |value|")
    parser.add_argument("--parts", type=int, default=200, help="parts of branch and bound for an image; 0 for none")
    parser.add_argument("--bounds", nargs="+", default=["interval", "crown-ibp", "crown"], choices=BOUNDS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    data = load("cifar10", args.data_dir)
    if args.weights and args.weights.exists():
        model = resnet((3, 32, 32), 10)
        model.load_state_dict(load_file(args.weights))
        model.eval()
    else:
        model = trained(data, args.epochs, args.seed)
        if args.weights:
            save_file(model.state_dict(), args.weights)
    print(f"clean accuracy on all test images: {100 * accuracy(model, data.test):.1f} %")
    test = data.test.take(args.images)
    model, x, y = model.double(), test.x.double(), test.y
    with torch.no_grad():
        right = is_correct(model(x), y)
    print(f"clean accuracy on these {len(x)}: {100 * right.double().mean():.1f} %; every bound is asked about the correct ones")
    x, y = x[right], y[right]
    heads = [f"{name} % | CPU s" for name in args.bounds] + ["verified % | falsified % | CPU s"] * (args.parts > 0)
    print(
        "\n| ε_x | ε_w | attacked % | " + " | ".join(heads) + " |\n|---|---|--:|" + "--:|" * " | ".join(heads).count("|") + "--:|"
    )
    violated = False
    for eps_w in args.eps_w:
        for eps_x in args.eps_x:
            ball = JointBall(eps_x / 255, eps_w, moves="all", relative=True)
            alive = survives(model, x, y, ball)
            cells = [f"{eps_x:g}/255", f"{eps_w:g}", f"{100 * alive.sum() / len(right):.0f}"]
            for name in args.bounds:
                started = time.process_time()
                proved = certified(name, model, x, y, ball)
                cells += [f"{100 * proved.sum() / len(right):.0f}", f"{(time.process_time() - started) / len(x):.2g}"]
                violated |= bool((proved & ~alive).any())
            if args.parts:
                started = time.process_time()
                status = [
                    s
                    for a, b in zip(x.split(8), y.split(8), strict=True)
                    for s in decide(model, a, b, ball, parts=args.parts).status
                ]
                proved = torch.tensor([s == "verified" for s in status])
                broken = len(right) - len(x) + status.count("falsified")
                cells += [f"{100 * share / len(right):.0f}" for share in (int(proved.sum()), broken)]
                cells.append(f"{(time.process_time() - started) / len(x):.2g}")
                violated |= bool((proved & ~alive).any())
            print("| " + " | ".join(cells) + " |", flush=True)
    print("an attack beats a certificate: " + ("YES" if violated else "never"))
    return int(violated)


if __name__ == "__main__":
    sys.exit(main())
