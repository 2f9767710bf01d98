"""networks.py - three small networks of kinds that people deploy, on CIFAR-10, certified jointly: inputs and all parameters.

resnet8: the shape of MLPerf Tiny (BatchNorm, three residual blocks).  mobile: depthwise convolutions with squeeze-and-excitation.
vit: patches of 8 x 8, two blocks of attention and LayerNorm.  Each is trained with one adversarial step at 1/255.

Weights are kept in --folder; a training that was interrupted goes on there.  Certified by CROWN, attacked by the paper's attack
with 20 steps, each example with its own W'.  --peer: margins at eps_w = 0 beside the CROWN of auto_LiRPA (see auto_lirpa.py).
Exit code 1 if an attack beats a certificate, or a margin of ours lies below theirs by more than 1e-4.
"""

from __future__ import annotations

import argparse
import copy
import resource
import sys
import time
from pathlib import Path

import torch
from cifar_residual import survives
from pooling import others, theirs
from safetensors.torch import load_file, save_file
from timing import machine, options
from torch import Tensor, nn

from nonsingular.bounds.linear import crown
from nonsingular.data.datasets import Dataset, load
from nonsingular.network.heads import classifier
from nonsingular.network.margins import is_correct, worst_margin
from nonsingular.threat.ball import JointBall
from nonsingular.training.loop import accuracy
from nonsingular.training.objectives import Adversarial
from nonsingular.training.train import train


def conv(i: int, o: int, size: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(i, o, size, stride, size // 2, groups=groups, bias=False), nn.BatchNorm2d(o))


class Residual(nn.Module):
    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(conv(i, o, 3, stride), nn.ReLU(), conv(o, o))
        self.around = nn.Identity() if i == o else nn.Conv2d(i, o, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.inner(x) + self.around(x))


def resnet8() -> nn.Sequential:
    blocks = (Residual(16, 16, 1), Residual(16, 32, 2), Residual(32, 64, 2))
    return nn.Sequential(conv(3, 16), nn.ReLU(), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


class Excited(nn.Module):
    """Squeeze-and-excitation (arXiv 1709.01507) with the gate of MobileNetV3 (arXiv 1905.02244)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, width // 4, 1), nn.ReLU(), nn.Conv2d(width // 4, width, 1), nn.Hardsigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


def mobile() -> nn.Sequential:
    def block(i: int, o: int, stride: int) -> nn.Sequential:
        return nn.Sequential(conv(i, i, 3, stride, groups=i), nn.ReLU(), Excited(i), conv(i, o, 1), nn.ReLU())

    return nn.Sequential(
        conv(3, 16, 3, 2), nn.ReLU(), block(16, 24, 1), block(24, 32, 2), block(32, 48, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10),
    )  # fmt: skip


class Attention(nn.MultiheadAttention):
    """Written out in steps that auto_LiRPA knows, too."""

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        size = self.embed_dim // self.num_heads
        parts = torch.nn.functional.linear(x, self.in_proj_weight, self.in_proj_bias).split(self.embed_dim, 2)
        q, k, v = (t.reshape(-1, x.shape[1], self.num_heads, size).transpose(1, 2) for t in parts)
        weights = torch.softmax(q @ k.transpose(2, 3) * size**-0.5, 3)
        return self.out_proj((weights @ v).transpose(1, 2).reshape(-1, x.shape[1], self.embed_dim))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.first(x))
        return x + self.mlp(self.second(x))


class ViT(nn.Module):
    def __init__(self, width: int = 32, heads: int = 2, depth: int = 2, patch: int = 8) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.position = nn.Parameter(0.02 * torch.randn(1, (32 // patch) ** 2, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.position
        return self.head(self.norm(self.blocks(x)).mean(1))


NETWORKS = {"resnet8": resnet8, "mobile": mobile, "vit": ViT}


def trained(name: str, data: Dataset, folder: Path, epochs: int) -> nn.Module:
    """From `folder`, or trained there."""
    file = folder / f"{name}.safetensors"
    torch.manual_seed(0)
    model = NETWORKS[name]()
    if file.exists():
        model.load_state_dict(load_file(file))
        return model.eval()

    def show(epoch, network) -> None:
        print(f"{name}: epoch {epoch.epoch}, validation {100 * epoch.val_accuracy:.1f} %", file=sys.stderr, flush=True)

    method = Adversarial(1 / 255, steps=1)
    model = train(model, data, method=method, epochs=epochs, lr=3e-3, directory=folder / name, callbacks=[show]).model
    save_file(model.state_dict(), file)
    return model


class Gate(nn.Module):
    """Hardsigmoid as two ReLUs: auto_LiRPA has no rule for it."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x / 6 + 0.5) - torch.relu(x / 6 - 0.5)


def below(model: nn.Module, x: Tensor, y: Tensor, lower: Tensor, eps: float) -> Tensor:
    """(B,) by how much a margin of `lower` lies below that of auto_LiRPA, at most; negative: all lie above."""
    model = copy.deepcopy(model).float()
    for module in model.modules():
        if isinstance(module, Excited):
            module.gate[-1] = Gate()
    return (theirs(model, eps, (0.0, 1.0), x.float(), y, conv_mode="matrix") - others(lower, y)).amax(1)


def certified(model: nn.Module, x: Tensor, y: Tensor, args: argparse.Namespace) -> bool:
    """Prints a row for every ball; whether something is wrong."""
    network, wrong = classifier(model, x), False
    for eps_w in args.eps_w:
        for eps_x in args.eps_x:
            ball = JointBall(eps_x / 255, eps_w, moves="all", relative=True)
            alive = survives(model, x, y, ball)
            started = time.process_time()
            lower = torch.cat([crown(network, a, b, ball) for a, b in zip(x.split(1), y.split(1), strict=True)])
            seconds = (time.process_time() - started) / len(x)
            proved = worst_margin(lower, y) > 0
            row = [f"{eps_x:g}/255", f"{eps_w:g}", f"{100 * alive.double().mean():.0f}", f"{100 * proved.double().mean():.0f}"]
            row += [f"{worst_margin(lower, y).median():.3g}", f"{seconds:.2g}"]
            wrong |= bool((proved & ~alive).any())
            if args.peer:
                gap = below(model, x, y, lower, eps_x / 255) if eps_w == 0 else torch.zeros(0)
                row.append(f"{float(gap.max()):.2g}" if len(gap) else "")
                wrong |= bool((gap > 1e-4).any())
            print("| " + " | ".join(row) + " |", flush=True)
    return wrong


def main() -> int:
    parser = options(__doc__, epochs=8, images=20)
    parser.add_argument("--folder", type=Path, required=True, help="where weights are kept")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--eps-x", type=float, nargs="+", default=[0, 0.1, 0.25], help="in 255ths")
    parser.add_argument("--eps-w", type=float, nargs="+", default=[0, 1e-5, 1e-4], help="parts of each tensor's largest |value|")
    parser.add_argument("--peer", action="store_true", help="compare with auto_LiRPA at eps_w = 0")
    parser.add_argument("--train", action="store_true", help="train and stop")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    data, wrong = load("cifar10", args.data_dir), False
    for name in args.networks:
        model = trained(name, data, args.folder, args.epochs)
        parameters = sum(p.numel() for p in model.parameters())
        print(f"\n{name}: {parameters:,} parameters, clean accuracy on all test images {100 * accuracy(model, data.test):.1f} %")
        if args.train:
            continue
        test = data.test.take(args.images)
        model, x, y = model.double(), test.x.double(), test.y
        with torch.no_grad():
            right = is_correct(model(x), y)
        print(f"the {int(right.sum())} of {len(x)} test images that it classifies correctly:\n")
        heads = ["ε_x", "ε_w", "attacked %", "CROWN %", "median margin", "CPU s an image"] + ["below theirs by"] * args.peer
        print("| " + " | ".join(heads) + " |\n|" + "--:|" * len(heads))
        wrong |= certified(model, x[right], y[right], args)
        print(
            f"\nlargest memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB", flush=True
        )
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
