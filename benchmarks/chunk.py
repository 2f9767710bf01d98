"""chunk.py - joint_pgd at several sizes of `chunk`, 10,000 MNIST test images: how its default was chosen.  Information only."""

from __future__ import annotations

from functools import partial

import torch
from timing import interleaved, machine, options, table

from nonsingular.attacks.joint_pgd import joint_pgd
from nonsingular.data.datasets import load
from nonsingular.models.architectures import mlp
from nonsingular.threat.ball import JointBall

CHUNKS = (64, 128, 256, 512, 1024, 2048)


def main() -> None:
    args = options(__doc__, steps=10, repeat=5, seed=0).parse_args()
    torch.set_num_threads(1)
    print(machine())
    data = load("mnist", args.data_dir).test
    torch.manual_seed(args.seed)
    attack = partial(joint_pgd, mlp((1, 28, 28), 10), data.x, data.y, JointBall(0.1, 0.005), steps=args.steps)
    seconds = interleaved({str(chunk): partial(attack, chunk=chunk) for chunk in CHUNKS}, args.repeat)
    print(f"\nper step, {len(data)} images, {args.repeat} interleaved repetitions of {args.steps} steps")
    print(table({name: [t / args.steps for t in s] for name, s in seconds.items()}, "512"))


if __name__ == "__main__":
    main()
