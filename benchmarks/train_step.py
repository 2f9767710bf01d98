"""train_step.py - one training step of each method over one of AT, on a dense network, a convolutional one and a ResNet.

A step is the loss, its gradient and Adam's update, after all warm-ups, with 7 inner steps; MNIST, batch 128 (resnet: 32).
Exit code 1 if a step of AT + beta takes more than 1.25 of one of AT, or one of joint training more than 1.3, on any of them.

    train_step.py --networks mlp                 # a minute
    train_step.py --networks conv resnet --steps 20
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import cycle

import torch
from timing import interleaved, machine, options, ratio, table, verdict

from nonsingular.data.datasets import Split, load
from nonsingular.models.loading import build
from nonsingular.settings import Network, TrainSettings
from nonsingular.training.train import objective_of

TARGETS = {"at-beta": 1.25, "joint": 1.3}
X, W = {"eps_x": 0.1}, {"eps_w": 0.004}
METHODS = {
    "standard": {}, "weight-perturb": W | {"beta": 0.01}, "jiwp": X | W | {"alpha": 1e-3, "beta": 0.01}, "sam": {"rho": 0.05},
    "certified": X | W | {"alpha": 0.5}, "at": X, "at-beta": X | W | {"beta": 0.003}, "trades": X | {"beta": 6.0},
    "mart": X | {"beta": 6.0}, "awp": X | {"rho": 0.01}, "rwp": X | {"rho": 0.01}, "randbet": X | {"rate": 0.01},
    "joint-batch": X | W, "joint": X | W,
}  # fmt: skip
"""Method -> its numbers: they hardly change the time."""
DENSE = ("weight-perturb", "jiwp", "at-beta")
"""Methods for dense networks alone."""
NETWORKS = {"mlp": 128, "conv": 128, "resnet": 32}
"""Name -> examples of a step."""
PROGRESS = 0.8
"""Part of the training that is done: radii, alpha and beta are at their full size."""


def step_of(method: str, network: str, data: Split, seed: int) -> Callable[[], None]:
    """The training step of a method, on the next batch of `data`."""
    batch = NETWORKS[network]
    model = build(TrainSettings(network=Network(name=network), seed=seed), (1, 28, 28), 10).train()
    loss_of = objective_of(method, METHODS[method], (0.0, 1.0))(model)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(seed)
    batches = cycle([*zip(data.x.split(batch)[:-1], data.y.split(batch)[:-1], strict=True)])

    def step() -> None:
        part, labels = next(batches)
        loss = loss_of(part, labels, PROGRESS, generator)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return step


def main() -> int:
    parser = options(__doc__, steps=100, seed=0)
    parser.add_argument("--networks", nargs="+", choices=[*NETWORKS], default=[*NETWORKS])
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    data, failed = load("mnist", args.data_dir).train, 0
    for network in args.networks:
        methods = [m for m in METHODS if network == "mlp" or (m not in DENSE and not (network == "resnet" and m == "certified"))]
        seconds = interleaved({m: step_of(m, network, data, args.seed) for m in methods}, args.steps)
        print(f"\n{network}, batch {NETWORKS[network]}, {args.steps} interleaved steps each")
        print(table(seconds, "at"))
        for method in (m for m in TARGETS if m in methods):
            failed |= verdict(f"{network}: {method}/at", ratio(seconds, method, "at"), TARGETS[method])
    return failed


if __name__ == "__main__":
    sys.exit(main())
