"""convolutions.py - CROWN of convolutional and residual networks: against auto_LiRPA 0.7.1, and what one image costs.

`--peers`: networks of the shapes of auto_LiRPA's examples on MNIST, and with average pooling, strides and shortcuts, weights as
initialised or after one epoch on 6,000 images: `crown` against its CROWN, `alpha-crown` against its CROWN-Optimized.
`--cost`: an MLPerf-Tiny ResNet-8, a BatchNorm CNN, a small residual network, all as initialised, one CIFAR-10 image each.
Neither: both.  CPU seconds, one thread, interleaved.
auto_LiRPA: as in auto_lirpa.py.  Exit code 1 if a bar is missed.
"""

from __future__ import annotations

import resource
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from pooling import below, measured, others, ours, theirs
from timing import machine, options, verdict
from torch import Tensor, nn

from nonsingular.bounds.alpha import alpha_crown
from nonsingular.bounds.linear import crown
from nonsingular.data.datasets import load
from nonsingular.models.architectures import resnet
from nonsingular.network.heads import classifier
from nonsingular.network.margins import margins
from nonsingular.threat.ball import JointBall


class Block(nn.Module):
    """relu(body(z) + shortcut(z)), two 3x3 convolutions with BatchNorm."""

    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(width, out, 3, stride, 1), nn.Conv2d(out, out, 3, 1, 1)
        self.norm_one, self.norm_two = nn.BatchNorm2d(out), nn.BatchNorm2d(out)
        self.shortcut = nn.Identity() if stride == 1 else nn.Conv2d(width, out, 1, stride)

    def forward(self, z: Tensor) -> Tensor:
        body = self.norm_two(self.two(F.relu(self.norm_one(self.one(z)))))
        return F.relu(body + self.shortcut(z))


def resnet8() -> nn.Module:
    """The shape of MLPerf Tiny's image classification: 16, 32 and 64 channels, 78,666 parameters."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 1, 1), nn.BatchNorm2d(16), nn.ReLU(), Block(16, 16, 1), Block(16, 32, 2), Block(32, 64, 2),
        nn.AvgPool2d(8), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


def norm_cnn() -> nn.Module:
    """Four convolutions with BatchNorm and one Linear: 47,482 parameters."""
    layers: list[nn.Module] = []
    for width, out, stride in ((3, 16, 1), (16, 32, 2), (32, 48, 2), (48, 64, 2)):
        layers += [nn.Conv2d(width, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def on_mnist() -> dict[str, nn.Module]:
    """The shapes of auto_LiRPA's cnn_4layer and cnn_6layer (narrower), and with pooling, strides and shortcuts."""
    four = [nn.Conv2d(1, 8, 4, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 4, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(784, 256)]
    six = [nn.Conv2d(1, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(),
           nn.Conv2d(16, 16, 3, 1, 1), nn.ReLU(), nn.Flatten(), nn.Linear(3136, 256)]  # fmt: skip
    average = [nn.Conv2d(1, 8, 5), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(8, 16, 5), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(),
               nn.Linear(256, 64)]  # fmt: skip
    shortcuts = [nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), Block(8, 8, 1), Block(8, 16, 2), nn.Flatten(), nn.Linear(784, 64)]
    nets = {"cnn_4layer": four, "cnn_6layer, width 8": six, "average pooling": average, "shortcuts": shortcuts}
    widths = (256, 256, 64, 64)
    return {
        name: nn.Sequential(*layers, nn.ReLU(), nn.Linear(width, 10))
        for (name, layers), width in zip(nets.items(), widths, strict=True)
    }


def trained(model: nn.Module, x: Tensor, y: Tensor) -> nn.Module:
    """One epoch of Adam at 0.001, batches of 64."""
    optimiser = torch.optim.Adam(model.train().parameters(), 1e-3)
    for part, labels in zip(x.split(64), y.split(64), strict=True):
        optimiser.zero_grad()
        F.cross_entropy(model(part), labels).backward()
        optimiser.step()
    return model.eval()


def peers(args: Namespace) -> int:
    data, missed = load("mnist", args.data_dir), 0
    for name, model in on_mnist().items():
        for state in ("as initialised", "one epoch"):
            model = trained(model, data.train.x[:6000], data.train.y[:6000]) if state == "one epoch" else model.eval()
            with torch.no_grad():
                right = (model(data.test.x[:2000]).argmax(1) == data.test.y[:2000]).nonzero().flatten()
            for method in args.methods:
                few = right[: args.examples if method == "CROWN" else max(1, args.examples // 5)]
                for eps in (0.01, 0.03):
                    contenders = {
                        "ours": partial(_ours, method, args.steps, model, JointBall(eps, 0.0)),
                        method: partial(theirs, model, eps, (0.0, 1.0), method=method, steps=args.steps),
                    }
                    low, spent = measured(contenders, data.test.x[few], data.test.y[few])
                    each = ", ".join(f"{who} {s:.3f}" for who, s in spent.items())
                    print(f"\n{name}, {state}, eps_x {eps}, {len(few)} images, CPU seconds an image: {each}", flush=True)
                    missed |= below(method, low["ours"], low[method])
                    missed |= verdict(f"time over {method}'s", spent["ours"] / spent[method], 1.0)
    return missed


def _ours(method: str, steps: int, model: nn.Module, ball: JointBall, x: Tensor, y: Tensor) -> Tensor:
    return ours(model, ball, x, y) if method == "CROWN" else others(alpha_crown(model, x, y, ball, steps=steps), y)


def seconds(call: Callable[[], object]) -> float:
    started = time.process_time()
    call()
    return time.process_time() - started


def cost(args: Namespace) -> int:
    test, missed = load("cifar10", args.data_dir).test, 0
    x, y = test.x[:1], test.y[:1]
    fixed, joint = JointBall(0.25 / 255, 0.0), JointBall(0.25 / 255, 1e-5)
    for name, make, bar in (("ResNet-8", resnet8, 30.0), ("BatchNorm CNN", norm_cnn, 1.0)):
        torch.manual_seed(0)
        network = classifier(make().eval(), x)
        crown(network, x, y, JointBall(0.0, 0.0))  # traced and warm
        alone, moving = seconds(lambda n=network: crown(n, x, y, fixed)), seconds(lambda n=network: crown(n, x, y, joint))
        print(f"{name}, eps_x 0.25/255: {alone:.2f} CPU s, with all kernels moving by 1e-5 {moving:.2f}", flush=True)
        missed |= verdict(f"{name}, seconds", alone, bar)
        missed |= verdict(f"{name}, joint over fixed", moving / alone, 2.0)
    torch.manual_seed(0)
    model = resnet((3, 32, 32), 10, hidden=(8, 8, 16)).eval()
    network, many = classifier(model, x), test.x[:1280]

    def there_and_back() -> None:
        margins(model(many), test.y[:1280]).sum().backward()

    crown(network, x, y, JointBall(0.0, 0.0))
    there_and_back()
    everything = JointBall(0.25 / 255, 1e-5, moves="all")
    rounds = [(seconds(lambda: crown(network, x, y, everything)), seconds(there_and_back)) for _ in range(5)]
    ours, passes = (min(r) for r in zip(*rounds, strict=True))
    print(
        f"residual network, all parameters moving by 1e-5: {ours:.2f} CPU s; 1,280 images forward and backward {passes:.2f}",
        flush=True,
    )
    missed |= verdict("joint CROWN over 1,280 images forward and backward", ours / passes, 1.0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return missed | verdict("peak memory of this process, GiB", peak, 2.0)


def main() -> int:
    parser = options(__doc__, examples=10, steps=20)
    parser.add_argument("--methods", nargs="+", default=["CROWN", "CROWN-Optimized"], choices=["CROWN", "CROWN-Optimized"])
    for name in ("peers", "cost"):
        parser.add_argument(f"--{name}", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    chosen = [part for part in (cost, peers) if getattr(args, part.__name__)] or [cost, peers]
    return max(part(args) for part in chosen)


if __name__ == "__main__":
    sys.exit(main())
