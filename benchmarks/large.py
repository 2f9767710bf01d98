"""Networks of ImageNet's size by name: what a preflight says, then one cell in each scope, with time and memory.

    PYTHONPATH=FOLDER python benchmarks/large.py                       # FOLDER has timm; an hour or more
    PYTHONPATH=FOLDER python benchmarks/large.py --only resnet18 --pieces dataset

timm's networks with random weights (seed 0), random images of their own size, labels as predicted.  The radii are so small that
every prediction survives, so that attacks spend all that they would spend on an image: CPU seconds of one thread, and bytes at
the peak beyond the network and the images, each cell in a process of its own.
torchvision, which timm imports, needs operators of a build of torch for CUDA; on another build they are declared, not used.
No target: information only.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from timing import machine, options, peak_memory
from torch import Tensor, nn

from nonsingular.attacks.search.graph_unknowns import graph_space
from nonsingular.attacks.search.weight_unknowns import tensor_space
from nonsingular.errors import UnsupportedModel
from nonsingular.evaluation.attacked import evaluate
from nonsingular.evaluation.estimate import Plan
from nonsingular.evaluation.preflight import looked_at, preflight
from nonsingular.evaluation.problem import Case, Method
from nonsingular.models.loading import load_model
from nonsingular.network.heads import classifier
from nonsingular.threat.ball import JointBall, Scope
from nonsingular.threat.grid import Grid

NAMES = ("resnet18", "resnet50", "mobilenetv2_100", "vit_small_patch16_224")
EXAMPLES: dict[Scope, int] = {"sample": 1, "batch": 8, "dataset": 8}
PIECES = ("passes", "preflight", *EXAMPLES)
EPS_X, EPS_W = 1e-7, 1e-9
OPERATORS = (
    "nms qnms roi_align qroi_align roi_pool _roi_align_backward _roi_pool_backward ps_roi_align _ps_roi_align_backward "
    "ps_roi_pool _ps_roi_pool_backward deform_conv2d _deform_conv2d_backward"
)


def network(name: str, images: int) -> tuple[nn.Module, Tensor, Tensor]:
    try:
        import timm
    except RuntimeError:  # torchvision without its operators
        for part in [module for module in sys.modules if module.split(".")[0] in ("timm", "torchvision")]:
            del sys.modules[part]
        library = torch.library.Library("torchvision", "DEF")
        for operator in OPERATORS.split():
            library.define(f"{operator}(Tensor x) -> Tensor")
        import timm
    torch.manual_seed(0)
    made = timm.create_model(name, pretrained=False)
    with tempfile.TemporaryDirectory() as folder:
        save_file(made.state_dict(), Path(folder) / "w.safetensors")
        model = load_model(f"timm:{name}", Path(folder) / "w.safetensors")
    x = torch.rand(images, *made.default_cfg["input_size"])
    with torch.no_grad():
        return model, x, model(x).argmax(1)


def cell(name: str, scope: Scope) -> dict[str, float]:
    model, x, y = network(name, EXAMPLES[scope])
    started = time.process_time()
    found = list[float]()
    _, held = peak_memory(
        lambda: found.append(evaluate(model, (x, y), eps_x=[EPS_X], eps_w=[EPS_W], scope=scope).accuracy.item())
    )
    return {"seconds": time.process_time() - started, "peak": held, "accuracy": found[0]}


def passes(name: str) -> dict[str, float]:
    """CPU seconds of one pass forward and backward of one image: of the inputs alone, and of each space of scope `sample`."""
    model, x, y = network(name, 1)
    ball, seconds = JointBall(EPS_X, EPS_W), dict[str, float]()
    model = classifier(model, x, ball)
    try:
        fine = graph_space(model, x, y, ball)
        spaces = {"few unknowns": fine.coarse(), "elements": fine}
    except UnsupportedModel:
        spaces = {"elements": tensor_space(model, x, y, ball)}

    def inputs() -> None:
        at = x.clone().requires_grad_()
        torch.autograd.grad(model(at).sum(), [at])

    calls = {"inputs": inputs} | {k: lambda s=s: s.slope(s.origin[None], lambda m: m.amin(-1)) for k, s in spaces.items()}
    for what, call in calls.items():
        call()
        started = time.process_time()
        for _ in range(3):
            call()
        seconds[what] = (time.process_time() - started) / 3
    return seconds


def estimate(name: str, images: int) -> dict[str, float | str | None]:
    """What a preflight says of a grid of 2 x 2 radii in scope `sample`."""
    model, x, y = network(name, images)
    grid = Grid.of([0, EPS_X], [0, EPS_W], input_shape=x.shape[1:])
    case = Case.of(model, x, y, JointBall(EPS_X, EPS_W))
    told = preflight(Plan(case, grid, Method.of()), looked_at(case, grid.unit), [])
    return {"says": told.how_long(), "seconds": told.seconds, "memory": told.memory, "moved": told.numbers}


def main() -> None:
    parser = options(__doc__, images=10, limit=3000)
    parser.add_argument("--only", nargs="+", default=NAMES, help="names of timm's networks (default: %(default)s)")
    parser.add_argument("--pieces", nargs="+", default=PIECES, choices=PIECES, help="default: all")
    parser.add_argument("--one", help="used by this script for its processes")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.one:
        what, *given = json.loads(args.one)
        print(json.dumps({"passes": passes, "preflight": estimate, "cell": cell}[what](*given)))
        return
    print(machine())
    for name in args.only:
        for what in args.pieces:
            pieces = {"passes": ("passes", name), "preflight": ("preflight", name, args.images)}
            piece = pieces.get(what, ("cell", name, what))
            call = [sys.executable, __file__, "--one", json.dumps(piece)]
            try:
                found = json.loads(
                    subprocess.run(call, stdout=subprocess.PIPE, check=True, timeout=args.limit).stdout.splitlines()[-1]
                )
            except subprocess.TimeoutExpired:
                print(f"{name} {what}: more than {args.limit} s", flush=True)
                continue
            if what == "passes":
                print(f"{name}, seconds of a pass: " + ", ".join(f"{k} {s:.3f}" for k, s in found.items()), flush=True)
            elif what == "preflight":
                print(f"{name}: {found['moved']:,} weights move; {args.images} images, 4 cells: {found['says']}", flush=True)
            else:
                print(
                    f"{name} {what}, {EXAMPLES[what]} images: {found['seconds']:.0f} s of the processor, "
                    f"{found['peak'] / 2**20:.0f} MB, accuracy {found['accuracy']:.2f}", flush=True,
                )  # fmt: skip


if __name__ == "__main__":
    main()
