"""at_beta_step.py - one training step of AT + beta against one of AT: MNIST, batch 128, default network, 7 inner steps.

A step is the loss, its gradient and Adam's update, after all warm-ups.  The joint and the weight-perturb method are information.
Exit code 1 if a step of AT + beta takes more than 1.25 of one of AT.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import cycle

import torch
from timing import interleaved, machine, options, ratio, table, verdict

from nonsingular.data.datasets import load
from nonsingular.models.architectures import mlp
from nonsingular.runs.presets import reproduction
from nonsingular.training.train import objective_of

TARGET = 1.25
RECIPES = ("standard", "weight-perturb", "at", "at-beta-1", "joint")
PROGRESS = 0.8
"""Part of the training that is done: the radii and beta are at their full size."""


def step_of(name: str, x: torch.Tensor, y: torch.Tensor, seed: int) -> Callable[[], None]:
    """The training step of one recipe of the reproduction, on the next of the batches in `x` and `y`."""
    recipe = reproduction("mnist").recipes[name]
    torch.manual_seed(seed)
    model = mlp((1, 28, 28), 10).train()
    numbers = {name: getattr(recipe, name) for name in ("eps_x", "eps_w", "alpha", "beta")}
    loss_of = objective_of(recipe.method, numbers, (0.0, 1.0))(model)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(seed)
    batches = cycle(zip(x, y, strict=True))

    def step() -> None:
        part, labels = next(batches)
        loss = loss_of(part, labels, PROGRESS, generator)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return step


def main() -> int:
    args = options(__doc__, steps=300, batch=128, seed=0).parse_args()
    torch.set_num_threads(1)
    print(machine())
    data = load("mnist", args.data_dir).train
    whole = len(data) // args.batch * args.batch
    x, y = data.x[:whole].view(-1, args.batch, 1, 28, 28), data.y[:whole].view(-1, args.batch)
    seconds = interleaved({name: step_of(name, x, y, args.seed) for name in RECIPES}, args.steps)
    print(f"\none training step, batch {args.batch}, {args.steps} interleaved steps each")
    print(table(seconds, "at"))
    print(f"\nweight-perturb/standard = {ratio(seconds, 'weight-perturb', 'standard'):.3f}")
    print(f"joint/at = {ratio(seconds, 'joint', 'at'):.3f}")
    return verdict("at-beta/at", ratio(seconds, "at-beta-1", "at"), TARGET)


if __name__ == "__main__":
    sys.exit(main())
