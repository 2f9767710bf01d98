"""auto_lirpa.py - joint bounds over inputs and weights: the package against auto_LiRPA 0.7.1, where that runs.

`--tightness`: every bound of both, in float64, on dense networks with biases.  `--cost`: joint CROWN, time and memory.
`--facts`: what auto_LiRPA does with convolutions, BatchNorm and layers without bias.  None of them: all three.
Exit code 1 if the best of our bounds is below one of auto_LiRPA's anywhere, if our CROWN takes more than 1/20 of its time or of
its extra memory, if 1,000 examples need more than 1 GB, or if a fact does not hold.  Linux.

auto_LiRPA 0.7.1:  pip install appdirs graphviz tqdm && pip install --no-deps \
    git+https://github.com/Verified-Intelligence/auto_LiRPA@a050a3d61f4cb68b108fa7f07dcb3e4d7ef304df
"""

from __future__ import annotations

import copy
import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from timing import machine, options, peak_memory, verdict
from torch import Tensor, nn

from nonsingular.bounds.alpha import alpha_crown
from nonsingular.bounds.interval import interval
from nonsingular.bounds.linear import crown, crown_ibp
from nonsingular.data.datasets import load
from nonsingular.models.architectures import mlp
from nonsingular.network.margins import margins
from nonsingular.threat.ball import JointBall, Moves
from nonsingular.training.train import train

VERSION = "0.7.1"
SPARSE = ("sparse_intermediate_bounds", "sparse_conv_intermediate_bounds", "sparse_intermediate_bounds_with_ibp")
TOLERANCE = 1e-9
"""Relative: a bound is below another b if it is below b - TOLERANCE max(1, |b|)."""
OURS: dict[str, Callable[..., Tensor]] = {
    "IBP": interval,
    "CROWN-IBP": crown_ibp,
    "CROWN": crown,
    "CROWN-Optimized": partial(alpha_crown, steps=100, rate=0.5),  # its own default is 20 steps; ours cost a hundredth
}
"""auto_LiRPA's method -> our counterpart."""
NETWORKS = (("mnist", (64,)), ("mnist", (128, 64)), ("mnist", (128, 64, 32)), ("digits", (32, 16)), ("digits", (32, 16, 16)))
CELLS: tuple[tuple[float, float, Moves], ...] = (
    (0.01, 0.0005, "weights"),
    (0.02, 0.001, "all"),
    (0.1, 0.01, "weights"),
    (0.1, 0.01, "all"),
)
"""(eps_x, eps_w, what moves): the last two leave nearly every neuron open."""
GIB, MIB = 2**30, 2**20


# ---- auto_LiRPA ------------------------------------------------------------------------------------------------------


def peer() -> Any:
    """The module, or the end of the run with a sentence."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import auto_LiRPA  # pyright: ignore[reportMissingImports]
    except ImportError as e:
        sys.exit(f"auto_LiRPA is not installed ({e}); how to install it: the top of {__file__}")
    if auto_LiRPA.__version__ != VERSION:
        sys.exit(f"auto_LiRPA is {auto_LiRPA.__version__}; this comparison is with {VERSION}")
    return auto_LiRPA


def prepared(model: nn.Module, x: Tensor, ball: JointBall) -> Callable[[Tensor, Tensor, str], Tensor]:
    """(x, y, method) -> (B, K) lower bounds of logit_y - logit_j by auto_LiRPA, with the parameters of `ball` in their boxes."""
    lib = peer()
    twin = copy.deepcopy(model)
    for name, radius in ball.radii(dict(model.named_parameters())).items():
        owner, _, leaf = name.rpartition(".")
        value = twin.get_parameter(name).detach().clone()
        moved = lib.BoundedParameter(value, lib.PerturbationLpNorm(norm=float("inf"), eps=radius))
        setattr(twin.get_submodule(owner), leaf, moved)
    bounded = lib.BoundedModule(twin, x, bound_opts=dict.fromkeys(SPARSE, False))

    def bounds(x: Tensor, y: Tensor, method: str) -> Tensor:
        box = ball.input_box(x)
        moved = lib.BoundedTensor(x, lib.PerturbationLpNorm(norm=float("inf"), x_L=box.lo, x_U=box.hi))
        one = torch.eye(model(x[:1]).shape[1], dtype=x.dtype)
        with torch.set_grad_enabled(method == "CROWN-Optimized"):  # recording would double its memory
            low, _ = bounded.compute_bounds(x=(moved,), C=one[y][:, None] - one, method=method, bound_upper=False)
        return low.detach()

    return bounds


# ---- tightness -------------------------------------------------------------------------------------------------------


@dataclass
class Tally:
    """Differences, ours minus theirs, over all (example, class) with class not the label."""

    pairs: int = 0
    below: int = 0
    smallest: float = float("inf")
    total: float = 0.0

    def add(self, ours: Tensor, theirs: Tensor) -> None:
        difference = ours - theirs
        self.pairs += difference.numel()
        self.below += int((difference < -TOLERANCE * theirs.abs().clamp(min=1)).sum())
        self.smallest = min(self.smallest, difference.min().item())
        self.total += difference.sum().item()

    def __str__(self) -> str:
        return f"{self.pairs:8} {self.below:8} {self.smallest:12.2e} {self.total / max(1, self.pairs):10.4f}"


def networks(data_dir: str | None, examples: int, seed: int) -> Iterator[tuple[str, nn.Module, Tensor, Tensor]]:
    """(name, model, x, y) in float64: each network as initialised, and after one epoch of standard training (digits: 20)."""
    for name, hidden in NETWORKS:
        data = load(name, data_dir if name == "mnist" else None)
        shape = data.test.x.shape[1:]
        x, y = data.test.x[:examples].double(), data.test.y[:examples]
        torch.manual_seed(seed)
        model = mlp(shape, 10, hidden=hidden, bias=True).float()
        title = "-".join(map(str, (shape.numel(), *hidden, 10)))
        yield f"{title} random", copy.deepcopy(model).double().eval(), x, y
        model = train(model, data, epochs=1 if name == "mnist" else 20, seed=seed).model
        yield f"{title} trained", model.double().eval(), x, y


def tightness(data_dir: str | None, examples: int, batch: int, seed: int) -> int:
    """Prints the differences by network and over all; 1 if the best of ours is below one of theirs."""
    torch.set_default_dtype(torch.float64)  # auto_LiRPA makes its identity matrices in the default type
    own = {method: Tally() for method in OURS}
    best = {method: Tally() for method in OURS}
    verified = dict.fromkeys(("ours", "theirs"), 0)
    print(f"\nours minus theirs over all (example, class); below: by more than {TOLERANCE} max(1, |bound|)")
    print(f"cells (eps_x, eps_w, what moves): {CELLS}; {examples} examples each")
    print(f"{'':30}{'':16} {'pairs':>8} {'below':>8} {'smallest':>12} {'mean':>10}")
    for title, model, x, y in networks(data_dir, examples, seed):
        methods = [m for m in OURS if m != "CROWN-Optimized" or title.startswith("64-")]  # minutes a cell on MNIST
        here = {method: Tally() for method in methods}
        for eps_x, eps_w, moves in CELLS:
            ball = JointBall(eps_x, eps_w, moves=moves)
            theirs = prepared(model, x[:1], ball)
            other = torch.ones(len(x), 10, dtype=torch.bool).scatter_(1, y[:, None], False)
            found = {m: torch.cat([theirs(*p, m) for p in zip(x.split(batch), y.split(batch), strict=True)]) for m in methods}
            ours = {m: OURS[m](model, x, y, ball).detach() for m in methods}
            all_theirs, all_ours = (torch.stack([*low.values()]).amax(0) for low in (found, ours))
            if bool((all_ours < all_theirs)[other].any()):  # the dearest bound, where it was not asked for already
                all_ours = torch.maximum(all_ours, alpha_crown(model, x, y, ball).detach())
            for method, low in found.items():
                for tally in (own[method], here[method]):
                    tally.add(ours[method][other], low[other])
                best[method].add(all_ours[other], low[other])
            for who, low in (("ours", all_ours), ("theirs", all_theirs)):
                verified[who] += int((low.masked_fill(~other, 1.0) > 0).all(1).sum())
        for method, tally in here.items():
            print(f"{title:30}{method:16} {tally}", flush=True)
    for what, tallies in (("all: its counterpart", own), ("all: the best of ours", best)):
        for method, tally in tallies.items():
            print(f"{what:30}{method:16} {tally}")
    cells = len(CELLS) * 2 * len(NETWORKS)
    print(f"certified (example, cell), best of each: ours {verified['ours']}, theirs {verified['theirs']} of {cells * examples}")
    torch.set_default_dtype(torch.float32)
    below = sum(tally.below for tally in best.values())
    return verdict("pairs where the best of ours is below one of theirs", below, 0)


# ---- cost ------------------------------------------------------------------------------------------------------------


def worker(who: str, file: str, batch: int, limit: int) -> None:
    """Joint CROWN once, after a first call on one example that is not counted: seconds and extra bytes, or the error, as JSON."""
    case = torch.load(file, weights_only=True)
    model = mlp((1, 28, 28), 10, hidden=case["hidden"], bias=True).eval()
    model.load_state_dict(case["weights"])
    x, y, ball = case["x"][:batch], case["y"][:batch], JointBall(0.01, 0.001)
    if limit:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        call = partial(crown, model, ball=ball) if who == "nonsingular" else partial(prepared(model, x[:1], ball), method="CROWN")
        if not limit:
            call(x[:1], y=y[:1])
        seconds, extra = peak_memory(lambda: call(x, y=y))
    except RuntimeError as e:  # torch's way to say that memory is short
        print(json.dumps({"error": str(e).strip().splitlines()[-1]}))
    else:
        print(json.dumps({"seconds": seconds, "extra": extra}))


def fresh(who: str, file: str, batch: int, limit: int = 0) -> dict[str, Any]:
    """What `worker` finds in a new process."""
    command = [sys.executable, __file__, "--worker", who, "--file", file, "--batch", str(batch), "--limit", str(limit)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def cost(data_dir: str | None, rounds: int, seed: int) -> int:
    """Joint CROWN, float32, (0.01, 0.001): both at batch 32, then ours at batch 1,000 on a larger network."""
    with tempfile.TemporaryDirectory() as folder:
        save = partial(saved, folder, data_dir, seed)
        return compared(save((128, 64, 32)), rounds) | alone(save((256, 256, 256)), 1000)


def saved(folder: str, data_dir: str | None, seed: int, hidden: tuple[int, ...]) -> str:
    """A file with a network after one epoch on MNIST, and the first 1,000 test examples."""
    data, file = load("mnist", data_dir), str(Path(folder) / "case.pt")
    torch.manual_seed(seed)
    model = train(mlp((1, 28, 28), 10, hidden=hidden, bias=True), data, epochs=1, seed=seed).model
    x, y = data.test.x[:1000].clone(), data.test.y[:1000].clone()
    torch.save({"hidden": hidden, "weights": model.state_dict(), "x": x, "y": y}, file)
    return file


def compared(file: str, rounds: int) -> int:
    """A B A B, each in a fresh process."""
    runs: dict[str, list[dict[str, Any]]] = {"auto_LiRPA": [], "nonsingular": []}
    for _ in range(rounds):
        for who, found in runs.items():
            found.append(fresh(who, file, 32))
    print(f"\njoint CROWN on 784-128-64-32-10, batch 32, float32, (0.01, 0.001), {rounds} interleaved rounds of fresh processes")
    print(f"{'':12} median s      min s  extra MiB, smallest and largest")
    for who, found in runs.items():
        seconds, extra = [r["seconds"] for r in found], [r["extra"] / MIB for r in found]
        print(f"{who:12} {median(seconds):8.3f} {min(seconds):10.3f} {min(extra):10.1f} {max(extra):10.1f}")
    theirs, ours = runs.values()
    times = median(r["seconds"] for r in ours) / median(r["seconds"] for r in theirs)
    memory = max(r["extra"] for r in ours) / min(r["extra"] for r in theirs)  # our largest over its smallest
    return verdict("time, ours/theirs", times, 1 / 20) | verdict("extra memory, ours/theirs", memory, 1 / 20)


def alone(file: str, batch: int) -> int:
    """Ours within 1 GB, and what auto_LiRPA says at smaller batches when it may have 8 GiB."""
    found = fresh("nonsingular", file, batch)
    print(f"\njoint CROWN on 784-256-256-256-10, batch {batch}: {found['seconds']:.1f} s, {found['extra'] / MIB:.0f} MiB extra")
    size = 256 * batch * 256 * 784 * 4 / 1e9
    print(f"auto_LiRPA's bound of the second layer: 256 x {batch} x 256 x 784 coefficients on the first weights, {size:.0f} GB")
    for small in (32, 1):
        tried = fresh("auto_LiRPA", file, small, 8 * GIB)
        said = tried.get("error") or f"{tried['seconds']:.1f} s, {tried['extra'] / MIB:.0f} MiB extra"
        print(f"auto_LiRPA at batch {small} in an address space of 8 GiB: {said}")
    return verdict("extra memory in GB", found["extra"] / 1e9, 1.0)


# ---- facts -----------------------------------------------------------------------------------------------------------


def outcome(model: nn.Module, names: tuple[str, ...], x: Tensor, radius: float, method: str) -> tuple[Tensor | None, str]:
    """auto_LiRPA's bounds and "" with `names` in boxes at the input x itself, or None and its error."""
    try:
        return prepared(model, x, JointBall(0.0, dict.fromkeys(names, radius)))(
            x, torch.zeros(len(x), dtype=torch.long), method
        ), ""
    except Exception as e:  # whatever it raises is what is to be reported
        return None, f"{type(e).__name__}: {e}"


def facts() -> int:
    """Four statements on auto_LiRPA; 1 unless all hold, and ours has a bound wherever it has none."""
    torch.manual_seed(0)
    images, zero = torch.rand(2, 1, 4, 4), torch.zeros(2, dtype=torch.long)
    normalised = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2)).eval()
    bare = nn.Sequential(nn.Flatten(), nn.Linear(16, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False)).eval()
    wrong = 0
    print("\nwhat auto_LiRPA says")
    cases = (
        ("weight of Conv2d", normalised, ("0.weight",), ("IBP", "CROWN-IBP", "CROWN")),
        ("weight of BatchNorm2d", normalised, ("1.weight",), ("IBP", "CROWN-IBP", "CROWN")),
        ("weights of Linear(bias=False)", bare, ("1.weight", "3.weight"), ("CROWN-IBP", "CROWN")),
    )
    for what, model, names, methods in cases:
        for method in methods:
            found, error = outcome(model, names, images, 0.01, method)
            print(f"{what}, {method}: {error or 'it runs'}")
            wrong |= found is not None
        ours = crown(model, images, zero, JointBall(0.0, dict.fromkeys(names, 0.01)))[:, 1]
        print(f"  ours, crown: margins >= {[round(v, 4) for v in ours.tolist()]}")
    return int(wrong) | perturbed_bias()


def perturbed_bias() -> int:
    """By hand: a 1x1 convolution with weights 1 and 0, input 1, biases 0 -+ 0.4: the margin 1 + b_0 - b_1 falls to 0.2."""
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten()).eval()
    x, y, radius = torch.ones(1, 1, 1, 1), torch.zeros(1, dtype=torch.long), 0.4
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, 0.0]).view(2, 1, 1, 1))
        model[0].bias.zero_()
        attained = copy.deepcopy(model)
        attained[0].bias.copy_(torch.tensor([-radius, radius]))
        reached = margins(attained(x), y)[0, 1].item()
    wrong = 0
    print(f"bias of Conv2d, radius {radius}: attained margin {reached:.4f}")
    for method, ours in list(OURS.items())[:3]:
        low, error = outcome(model, ("0.bias",), x, radius, method)
        own = ours(model, x, y, JointBall(0.0, {"0.bias": radius}))[0, 1].item()
        print(f"  {method}: auto_LiRPA {error if low is None else f'{low[0, 1].item():.4f}'}, ours {own:.4f}")
        wrong |= low is None or low[0, 1].item() <= reached + 1e-6 or own > reached + 1e-6
    return int(wrong)


def main() -> int:
    parser = options(__doc__, examples=4, batch=4, rounds=3, seed=0, limit=0)
    for part in ("tightness", "cost", "facts"):
        parser.add_argument(f"--{part}", action="store_true", help="only this part (and others named)")
    parser.add_argument("--worker", help="used by --cost for its processes")
    parser.add_argument("--file", help="likewise, as is --limit")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=DeprecationWarning)  # auto_LiRPA uses torch.jit
    torch.set_num_threads(1)
    if args.worker:
        worker(args.worker, args.file, args.batch, args.limit)
        return 0
    peer()
    print(f"{machine()}; auto_LiRPA {VERSION}, without its options {', '.join(SPARSE)}")
    every = not (args.tightness or args.cost or args.facts)
    missed, started = 0, time.perf_counter()
    if every or args.facts:
        missed |= facts()
    if every or args.cost:
        missed |= cost(args.data_dir, args.rounds, args.seed)
    if every or args.tightness:
        missed |= tightness(args.data_dir, args.examples, args.batch, args.seed)
    print(f"\n{time.perf_counter() - started:.0f} s in all")
    return missed


if __name__ == "__main__":
    sys.exit(main())
