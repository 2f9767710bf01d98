"""products.py - a pass forward and backward with products as attacks seek ("medium") and as verdicts are taken ("highest").

512 MNIST-sized inputs through 784-128-64-32-10, gradients of inputs and weights.  Information only: what "medium" does depends on
the processor.
"""

from __future__ import annotations

import sys

import torch
from timing import interleaved, machine, table

from nonsingular.models.architectures import mlp
from nonsingular.network.calling import products


def main() -> int:
    torch.set_num_threads(1)
    print(machine(), flush=True)
    torch.manual_seed(0)
    model, x = mlp((784,), 10), torch.rand(512, 784, requires_grad=True)

    def run(precision: str) -> list[torch.Tensor]:
        with products(precision):  # pyright: ignore[reportArgumentType]
            for _ in range(50):
                found = torch.autograd.grad(model(x).logsumexp(1).sum(), [x, *model.parameters()])
        return list(found)

    seconds = interleaved({p: (lambda p=p: run(p)) for p in ("highest", "medium")}, 7)
    print(table(seconds, "highest"))
    pairs = zip(run("highest"), run("medium"), strict=True)
    apart = max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)
    print(f"largest difference of a gradient, relative to its largest element: {apart:.1e}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
