"""paper_cell.py - one cell of the paper's attack on the MNIST test set: the package against a plain autograd loop.

Both run 100 signed steps on x (0.01) and W (0.0005) from the same trained network, one W' for all images, and score the last
iterate.
Exit code 1 if the package takes more than 0.75 of the loop's time, or if the accuracies differ by more than 0.1 point.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable
from statistics import median

import torch
import torch.nn.functional as F
from timing import interleaved, machine, options, ratio, table, verdict
from torch import Tensor, nn

from nonsingular.attacks.joint_pgd import joint_pgd
from nonsingular.data.datasets import load
from nonsingular.evaluation.attacked import attack_cell
from nonsingular.evaluation.problem import Case, Method
from nonsingular.models.architectures import mlp
from nonsingular.threat.ball import JointBall, Scope
from nonsingular.threat.grid import Grid
from nonsingular.threat.perturbation import Perturbation
from nonsingular.training.train import train

TARGET, TOLERANCE = 0.75, 0.1
EPS_X, EPS_W = 0.1, 0.005


def plain(
    model: nn.Module, x: Tensor, y: Tensor, *, steps: int, step_x: float = 0.01, step_w: float = 5e-4,
    eps_x: float = EPS_X, eps_w: float = EPS_W, on_step: Callable[[int, nn.Module, Tensor], object] = lambda step, model, x: None,
) -> tuple[Tensor, list[Tensor], Tensor]:  # fmt: skip
    """x', W' and which examples survive, by the loop of the paper.  on_step: gets a model with W', and x', of each step."""
    model = copy.deepcopy(model)
    params = list(model.parameters())
    start = [p.detach().clone() for p in params]
    x_adv = x.clone()
    for step in range(1, steps + 1):
        x_adv.requires_grad_()
        loss = F.cross_entropy(model(x_adv), y)
        g_x, *g_w = torch.autograd.grad(loss, [x_adv, *params])
        with torch.no_grad():
            x_adv = torch.clamp(x_adv + step_x * g_x.sign(), x - eps_x, x + eps_x)
            x_adv = torch.clamp(x_adv, 0, 1)
            for p, p0, g in zip(params, start, g_w, strict=True):
                p.copy_(torch.clamp(p + step_w * g.sign(), p0 - eps_w, p0 + eps_w))
        on_step(step, model, x_adv)
    with torch.no_grad():
        return x_adv, [p.detach() for p in params], model(x_adv).argmax(1) == y


def equal_share(some: list[Tensor], others: list[Tensor]) -> float:
    """Part of all elements that are equal to the last bit, in %."""
    a, b = (torch.cat([t.flatten() for t in tensors]) for tensors in (some, others))
    return 100 * (a == b).double().mean().item()


def gflops(products: list[tuple[Tensor, Tensor]], seconds: float = 1.0) -> float:
    """Rate of these matrix products, one after the other: the best of all passes within `seconds`."""
    flops = sum(2 * a.shape[0] * a.shape[1] * b.shape[1] for a, b in products)
    best, end = float("inf"), time.perf_counter() + seconds
    while (started := time.perf_counter()) < end:
        for a, b in products:
            a @ b
        best = min(best, time.perf_counter() - started)
    return flops / best / 1e9


def main() -> int:
    parser = options(__doc__, steps=100, repeat=3, examples=10_000, seed=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())

    data = load("mnist", args.data_dir)
    torch.manual_seed(args.seed)
    model = train(mlp((1, 28, 28), 10), data, epochs=2, seed=args.seed).model
    x, y = data.test.x[: args.examples], data.test.y[: args.examples]

    moved: dict[str, tuple[Tensor, list[Tensor]]] = {}
    survivors: dict[str, Tensor] = {}

    def paper(model: nn.Module, x: Tensor, y: Tensor, ball: JointBall, *, scope: Scope) -> Perturbation:
        point = joint_pgd(model, x, y, ball, steps=args.steps, scope=scope)
        moved["package"] = point.x, list(point.weights.values())
        return point

    case = Case.of(model, x, y)
    grid, method = Grid((EPS_X,), (EPS_W,), JointBall(1.0, 1.0)), Method.of(paper, "dataset")

    def package() -> None:
        survivors["package"] = torch.tensor(attack_cell(case, grid, method, (EPS_X, EPS_W)).correct)

    def loop() -> None:
        x_adv, weights, survivors["plain"] = plain(model, x, y, steps=args.steps)
        moved["plain"] = x_adv, weights

    seconds = interleaved({"plain": loop, "package": package}, args.repeat)
    print(f"\none cell: {len(x)} images, {args.steps} steps, eps_x {EPS_X}, eps_w {EPS_W}, {args.repeat} interleaved repetitions")
    print(table(seconds, "plain"))

    with torch.no_grad():
        print(f"\naccuracy in %: clean {100 * (model(x).argmax(1) == y).double().mean():.2f}", end="")
    accuracy = {name: 100 * s.double().mean().item() for name, s in survivors.items()}
    differ = int((survivors["plain"] != survivors["package"]).sum())
    print(f", plain {accuracy['plain']:.2f}, package {accuracy['package']:.2f}; {differ} of {len(x)} examples differ")
    (x_1, W_1), (x_2, W_2) = moved["plain"], moved["package"]
    print(f"elements equal to the last bit: x' {equal_share([x_1], [x_2]):.2f} %, W' {equal_share(W_1, W_2):.2f} %")

    numbers = sum(p.numel() for p in model.parameters())
    flops = 6 * numbers * len(x) * args.steps  # forward, gradient on W, gradient on x: a multiplication and an addition each
    W = torch.randn(128, 784)
    z, pull, square = x.flatten(1), torch.randn(len(x), 128), torch.randn(1024, 1024)
    rates = {"1024^3": gflops([(square, square)]), "the first layer's three products": gflops([(z, W.T), (pull.T, z), (pull, W)])}
    print(f"\n6 x {numbers} x {len(x)} x {args.steps} = {flops / 1e9:.1f} GFLOP")
    for name, s in seconds.items():
        reached = flops / median(s) / 1e9
        shares = ", ".join(f"{reached / rate:.0%} of sgemm on {what} ({rate:.0f})" for what, rate in rates.items())
        print(f"{name:8} {reached:6.1f} GFLOP/s: {shares}")

    print()
    missed = verdict("package/plain", ratio(seconds, "package", "plain"), TARGET)
    return verdict("difference in points", abs(accuracy["plain"] - accuracy["package"]), TOLERANCE) | missed


if __name__ == "__main__":
    sys.exit(main())
