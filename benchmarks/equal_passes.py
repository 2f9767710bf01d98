"""equal_passes.py - attacks with one W' for all images, on single cells, at about as many passes: 100, or 1,000 with --long.

The paper's attack, `shared_apgd`, and attacks of torchattacks that are pointed at inputs and weights together: their "image" is
one vector of all unknowns, 0 to 1 within their boxes, and their "model" returns (-mean cross-entropy of the images, 0), so that
what raises the loss of that one image raises the mean cross-entropy.  One pass: all images forward and backward.  A table; no
target.  torchattacks is left out where it is not installed (pip install --no-deps torchattacks==3.5.1).
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from contour import trained
from paper_cell import plain
from timing import machine, options
from torch import Tensor, nn
from torch.func import functional_call

from nonsingular.attacks.shared_apgd import shared_apgd
from nonsingular.data.datasets import load
from nonsingular.network.calling import logits_at
from nonsingular.network.margins import is_correct
from nonsingular.network.passes import so_far
from nonsingular.threat.ball import JointBall
from nonsingular.threat.perturbation import Perturbation

CELLS = {"joint": ((0.16, 0.006), (0.1, 0.008)), "at": ((0.04, 0.002), (0.14, 0.001)), "standard": ((0.02, 0.002), (0.0, 0.004))}
"""(eps_x, eps_w) where surfaces are steep."""
Attack = Callable[[nn.Module, Tensor, Tensor, JointBall], Perturbation]


class Unknowns(nn.Module):
    """(1, 1, 1, n) unknowns in [0, 1] -> (1, 2) logits, as the first lines say."""

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, ball: JointBall) -> None:
        super().__init__()
        self.network, self.y = [model], y  # in a list: not a part of this module
        self.boxes = {"": ball.input_box(x), **ball.weight_boxes(dict(model.named_parameters()))}
        self.passes = 0

    def point(self, v: Tensor) -> Perturbation:
        sizes = [box.lo.numel() for box in self.boxes.values()]
        parts = zip(self.boxes.items(), v.flatten().split(sizes), strict=True)
        placed = {n: torch.clamp(box.lo + (box.hi - box.lo) * part.view_as(box.lo), box.lo, box.hi) for (n, box), part in parts}
        return Perturbation(placed.pop(""), placed, "dataset")

    def forward(self, v: Tensor) -> Tensor:
        self.passes += 1
        point = self.point(v)
        loss = F.cross_entropy(functional_call(self.network[0], dict(point.weights), (point.x,)), self.y)
        return torch.stack([-loss, torch.zeros_like(loss)])[None]


def peer(name: str, steps: int, model: nn.Module, x: Tensor, y: Tensor, ball: JointBall) -> Perturbation:
    """What an attack of torchattacks finds, from the middle of all boxes."""
    import torchattacks

    unknowns = Unknowns(model, x, y, ball).eval()
    settings: dict[str, Any] = {"eps": 0.5, "steps": steps}
    settings |= {"alpha": 0.05} | ({"random_start": False} if name == "PGD" else {})
    attack = getattr(torchattacks, name)(unknowns, **settings)
    middle = torch.full((1, 1, 1, sum(box.lo.numel() for box in unknowns.boxes.values())), 0.5)
    return unknowns.point(attack(middle, torch.zeros(1, dtype=torch.long)).detach())


def papers(steps: int, model: nn.Module, x: Tensor, y: Tensor, ball: JointBall) -> Perturbation:
    moved, weights, _ = plain(model, x, y, steps=steps, eps_x=float(ball.eps_x), eps_w=float(ball.eps_w))  # pyright: ignore[reportArgumentType]
    boxes, named = ball.weight_boxes(dict(model.named_parameters())), dict(model.named_parameters())
    placed = {n: boxes[n].project_(w.clone()) for n, w in zip(named, weights, strict=True) if n in boxes}
    return Perturbation(ball.input_box(x).project_(moved.detach().clone()), placed, "dataset")


def contenders(passes: int) -> dict[str, Attack]:
    """Attacks by name, with about so many passes over all images."""
    found: dict[str, Attack] = {
        f"paper, {passes} steps": partial(papers, passes),
        f"shared_apgd, {passes // 5} steps": partial(shared_apgd, steps=passes // 5),
    }
    if importlib.util.find_spec("torchattacks") is not None:
        found |= {f"torchattacks {n}, {passes} steps": partial(peer, n, passes) for n in ("PGD", "MIFGSM")}
    return found


def main() -> int:
    parser = options(__doc__, examples=1000)
    parser.add_argument("--networks", nargs="+", choices=CELLS, default=[*CELLS], help="default: %(default)s")
    parser.add_argument("--runs", type=Path, help="folder with models/NAME-seed0; trains what it lacks")
    parser.add_argument("--long", action="store_true", help="also ten times the passes, of the paper's attack and of shared_apgd")
    parser.add_argument("--data", default="mnist", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(machine(), flush=True)
    test = load(args.data, args.data_dir).test.take(args.examples)
    attacks = contenders(100) | ({k: a for k, a in contenders(1000).items() if "torch" not in k} if args.long else {})
    with TemporaryDirectory() as scratch:
        for name in args.networks:
            model = trained(args.data, name, (args.runs or Path(scratch)) / "models" / f"{name}-seed0", args.data_dir)
            for eps_x, eps_w in CELLS[name]:
                ball = JointBall(eps_x, eps_w)
                print(f"\n{name}, ({eps_x:g}, {eps_w:g}), {len(test)} images", flush=True)
                for what, attack in attacks.items():
                    started, before = time.process_time(), so_far()
                    point = attack(model, test.x, test.y, ball)
                    seconds, (forward, backward) = time.process_time() - started, so_far().since(before)
                    right = is_correct(logits_at(model, point.check(model, test.x, ball)), test.y).double().mean().item()
                    counted = f"{(forward + 2 * backward) / 3 / len(test):6.0f} passes" if backward else ""
                    print(f"  {what:30} {100 * right:5.1f} %  {seconds:6.1f} CPU s  {counted}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
