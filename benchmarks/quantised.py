"""quantised.py - quantised networks: the bits of onnxruntime, what rounded activations cost a certificate, bits and protection.

python benchmarks/quantised.py --data-dir FOLDER        # 5 minutes; needs onnxruntime and the extra onnx
Trains a small convolutional and a dense network on MNIST here, quantises the first with onnxruntime's static quantiser (8 bits,
weights for each channel, ranges from 500 training images), and prints four tables.  Exit code 1 where a file in integers gives
other bits than onnxruntime without optimisations, or an attack beats a certificate.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import torch
from timing import machine, options
from torch import nn

import nonsingular as ns

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from quantised_models import N, quantised, reference, written

RADII = (0.0, 1 / 255, 2 / 255, 4 / 255)


def conv(data) -> nn.Module:
    layers = [nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(784, 10)]
    return ns.train(nn.Sequential(*layers), data, epochs=2).model


def dense(data) -> nn.Module:
    return ns.train(nn.Sequential(nn.Flatten(), nn.Linear(784, 50), nn.ReLU(), nn.Linear(50, 10)), data, epochs=2).model


def to_onnx(model: nn.Module, path: Path) -> Path:
    held = {name: p.detach().numpy() for name, p in model.named_parameters()}
    walk = {"pads": [1, 1, 1, 1], "strides": [2, 2], "kernel_shape": [3, 3]}
    nodes = [
        N("Conv", ["x", "0.weight", "0.bias"], ["1"], name="conv1", **walk), N("Relu", ["1"], ["2"], name="relu1"),
        N("Conv", ["2", "2.weight", "2.bias"], ["3"], name="conv2", **walk), N("Relu", ["3"], ["4"], name="relu2"),
        N("Flatten", ["4"], ["5"], name="flat"), N("Gemm", ["5", "5.weight", "5.bias"], ["y"], name="gemm", transB=1),
    ]  # fmt: skip
    return written(path, nodes, held, (1, 28, 28))


def same_bits(files: dict[str, Path], x: torch.Tensor, y: torch.Tensor) -> bool:
    print("| file | accuracy | images with its bits | largest difference of a logit | CPU seconds: ours | onnxruntime |")
    print("|---|--:|--:|--:|--:|--:|")
    wrong = False
    for form, path in files.items():
        model, started = ns.load_model(path), time.process_time()
        with torch.no_grad():
            ours = torch.cat([model(part) for part in x.split(500)])
        middle = time.process_time()
        theirs = torch.cat([reference(path, part) for part in x.split(500)])
        seconds = middle - started, time.process_time() - middle
        equal = (ours == theirs).all(1)
        wrong |= form == "QOperator" and not bool(equal.all())
        right, off = (ours.argmax(1) == y).double().mean(), (ours - theirs).abs().max()
        print(
            f"| {form} | {100 * right:.2f} % | {int(equal.sum())} of {len(x)} | {off:.3g} | {seconds[0]:.1f} | {seconds[1]:.1f} |"
        )
    return wrong


def certified(models: dict[str, nn.Module], x: torch.Tensor, y: torch.Tensor) -> bool:
    print("\n| network | " + " | ".join(f"{255 * e:.0f}/255: attacked, certified, CPU seconds an image" for e in RADII) + " |")
    print("|---|" + "--:|" * len(RADII))
    wrong = False
    for name, model in models.items():
        cells: list[str] = []
        for eps in RADII:
            started = time.process_time()
            ball = ns.JointBall(eps, 0.0)
            proven = ns.certify(model, x, y, ball, bound="crown").verified
            seconds = (time.process_time() - started) / len(x)
            lost = model(ns.apgd(model, x, y, ball, scope="sample").x).argmax(1) != y
            wrong |= bool((proven & lost).any())
            cells.append(f"{int((~lost).sum())}, {int(proven.sum())}, {seconds:.2f}")
        print(f"| {name} | " + " | ".join(cells) + " |")
    return wrong


def words(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    print("\n| certified accuracy kept | ε_x | bits of each matrix | stored bits | with as many for all | CPU seconds |")
    print("|--:|--:|---|--:|--:|--:|")
    for accuracy in (0.9, 0.8):
        for eps in RADII[:2]:
            started = time.process_time()
            found = ns.bits_needed(model, x, y, accuracy=accuracy, eps_x=eps)
            each = ", ".join(f"{n}: {b}" for n, b in found.bits.items())
            spent = time.process_time() - started
            total = f"{found.total} | {found.total_uniform}"
            print(f"| {accuracy:g} | {255 * eps:.0f}/255 | {each} | {total} | {spent:.1f} |")
    print("\n| ε_x | matrix | one flipped bit does harm, between | of its highest bit | CPU seconds an image |")
    print("|--:|---|---|---|--:|")
    for eps in RADII[:2]:
        started = time.process_time()
        found = ns.vulnerability(model, x, y, eps_x=eps)
        spent = (time.process_time() - started) / len(x)
        for name in found.breaks:
            ends, top = found.of(name), (found.lower[name][-1], found.upper[name][-1])
            text = [f"{100 * a:.3g} % and {100 * b:.3g} %" for a, b in (ends, top)]
            print(f"| {255 * eps:.0f}/255 | {name} | {text[0]} | {text[1]} | {spent:.3f} |")


def main() -> int:
    asked = options(__doc__, images=20).parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = ns.load("mnist", asked.data_dir)
    x, y = data.test.x, data.test.y
    net, ranges = conv(data), data.train.x[:500]
    print(machine())
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        source = to_onnx(net, Path(folder) / "float.onnx")
        files = {
            form: quantised(source, Path(folder) / f"{form}.onnx", ranges, form=form, per_channel=True)
            for form in ("QDQ", "QOperator")
        }  # fmt: skip
        wrong = same_bits(files, x, y)
        models = {"float32": net, **{form: ns.load_model(path) for form, path in files.items()}}
        for bits in (8, 4):
            models[f"quantize({bits}, activations={bits})"] = ns.quantize(net, bits, activations=bits, calibration=ranges)
    some = x[: asked.images], y[: asked.images]
    with torch.enable_grad():
        wrong |= certified(models, *some)
    words(dense(data), x[:100], y[:100])
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
