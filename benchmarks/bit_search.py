"""bit_search.py - flips that bring a ResNet-20 on CIFAR-10 at 8 bits to guessing: progressive bit search beside `ns.flip_attack`.

    python benchmarks/bit_search.py --keep NETS --data-dir FOLDER        # trains the network into NETS first

The attacker has 128 test images, another 128 for each seed; words of int8, a step for each tensor, kernels and matrices only.
`published`: the search of Rakin et al., arXiv:1903.12269, written here on its own: at each step the bit of each tensor with the
largest gradient, tried one by one; the one that raises the loss most is flipped.  `flip_attack`: ours, by the loss as well, two
sets of two candidates a tensor.  `with inputs`: ours, one candidate, by accuracy, the inputs moved within 2/255 as well.  After
each flip the accuracy of --test test images, as many of each class, is measured; where the inputs move, that of a tenth of them,
moved by ten steps of projected gradients.  What counts is how many flips bring it below 11 %.
Exit code 1 if ours takes more flips than the published search on average, or more than 70 % of these with inputs.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from sample_convolutions import resnet20
from timing import machine, options, verdict
from torch import Generator, Tensor, nn

import nonsingular as ns
from nonsingular.attacks.joint_pgd import joint_pgd
from nonsingular.data.datasets import Dataset, Split, load
from nonsingular.training.loop import accuracy
from nonsingular.training.objectives import Loss

GUESSING = 0.11
"""Below this accuracy ten classes are guessed, as in the paper."""
WORTH = torch.tensor([1.0, 2, 4, 8, 16, 32, 64, -128])[:, None]
"""(8, 1) what each bit adds to a word of int8 when it is set."""
Search = Callable[[], list[tuple[str, int, int]]]


def augmented(model: nn.Module) -> Loss:
    """Cross-entropy of images that are mirrored at random and moved by up to four pixels, as is usual on CIFAR-10."""

    def loss(x: Tensor, y: Tensor, progress: float, generator: Generator) -> Tensor:
        n, _, height, width = x.shape
        mirrored = torch.rand(n, generator=generator) < 0.5
        x = F.pad(torch.where(mirrored[:, None, None, None], x.flip(-1), x), (4, 4, 4, 4))
        down, right = (torch.randint(9, (n, 1), generator=generator) for _ in range(2))
        rows, columns = down + torch.arange(height), right + torch.arange(width)
        x = x[torch.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]]  # (N, H, W, C)
        return F.cross_entropy(model(x.permute(0, 3, 1, 2)).float(), y.long())

    return loss


def one_cycle(done: float) -> float:
    """Up to the largest rate over the first quarter, then down to 0 along a cosine."""
    return 0.04 + 0.96 * done / 0.25 if done < 0.25 else 0.5 * (1 + math.cos(math.pi * (done - 0.25) / 0.75))


def trained(data: Dataset, keep: Path, epochs: int) -> nn.Module:
    """The network, read from `keep` or trained there; a training that was stopped goes on."""
    torch.manual_seed(0)
    model, file = resnet20(), keep / "resnet20.safetensors"
    if file.exists():
        model.load_state_dict(load_file(file))
        return model.eval()
    found = ns.train(
        model, data, method=augmented, epochs=epochs, optimizer="sgd", lr=0.2, momentum=0.9, weight_decay=5e-4,
        schedule=one_cycle, amp="bfloat16", directory=keep,
        callbacks=[lambda e, _: print(f"epoch {e.epoch}: loss {e.loss:.3f}, validation {e.val_accuracy:.3f}", flush=True)],
    )  # fmt: skip
    save_file(found.model.state_dict(), file)
    return found.model


class Words:
    """The network with its int8 words, whose bits flip in place: an injector of its own, for the search and for the counts."""

    def __init__(self, model: nn.Module) -> None:
        self.model = copy.deepcopy(model)
        self.params = {name: p for name, p in self.model.named_parameters() if p.dim() > 1}
        self.steps = {name: p.detach().abs().max() / 127 for name, p in self.params.items()}
        for name, p in self.params.items():
            p.data = (p.detach() / self.steps[name]).round() * self.steps[name]

    def word(self, name: str) -> Tensor:
        """The words of a tensor, 0 to 255, two's complement."""
        return (self.params[name].detach() / self.steps[name]).round().long() % 256

    def flip(self, name: str, index: int, bit: int) -> None:
        word = int(self.word(name).view(-1)[index]) ^ (1 << bit)
        self.params[name].data.view(-1)[index] = (word - 256 if word >= 128 else word) * self.steps[name]


def published(words: Words, x: Tensor, y: Tensor, most: int) -> list[tuple[str, int, int]]:
    """The bits that the progressive search flips; `words` is left with them flipped."""
    chosen: list[tuple[str, int, int]] = []
    for _ in range(most):
        loss = F.cross_entropy(words.model(x), y)
        grads = torch.autograd.grad(loss, list(words.params.values()))
        tried: list[tuple[float, tuple[str, int, int]]] = []
        for (name, _), g in zip(words.params.items(), grads, strict=True):
            held = (words.word(name).view(1, -1) >> torch.arange(8)[:, None]) & 1
            gain = g.view(1, -1) * words.steps[name] * WORTH * (1 - 2 * held)
            for old in chosen:
                if old[0] == name:
                    gain[old[2], old[1]] = -math.inf
            bit, index = divmod(int(gain.argmax()), gain.shape[1])
            flip = name, index, bit
            words.flip(*flip)
            with torch.no_grad():
                tried.append((F.cross_entropy(words.model(x), y).item(), flip))
            words.flip(*flip)
        chosen.append(max(tried)[1])
        words.flip(*chosen[-1])
    return chosen


def needed(model: nn.Module, flips: list[tuple[str, int, int]], test: Split, eps_x: float) -> tuple[int | None, list[float]]:
    """(how many of the flips, in their order, bring the test accuracy below 11 %; None: not all of them), the accuracies."""
    words, seen = Words(model), list[float]()
    for count in range(len(flips) + 1):
        if count:
            words.flip(*flips[count - 1])
        seen.append(tested(words.model, test, eps_x))
        if seen[-1] < GUESSING:
            return count, seen
    return None, seen


def balanced(test: Split, most: int) -> Split:
    """The first images of each class, as many of each: guessing is then a tenth whatever class is guessed."""
    classes = test.y.unique()
    at = torch.cat([(test.y == c).nonzero().flatten()[: most // len(classes)] for c in classes])
    return Split(test.x[at], test.y[at].long())


def tested(model: nn.Module, test: Split, eps_x: float) -> float:
    """Accuracy on the test images, moved within eps_x."""
    ball = ns.JointBall(eps_x, 0.0)
    pairs = zip(test.x.split(250), test.y.split(250), strict=True)
    moved = [joint_pgd(model, x, y, ball, steps=10, scope="sample").x for x, y in pairs] if eps_x else [test.x]
    return accuracy(model, Split(torch.cat(moved), test.y), 250)


def main() -> int:
    parser = options(__doc__, epochs=20, test=2000, seeds=5, most=20)
    parser.add_argument("--keep", type=Path, required=True, help="folder of the trained network")
    args = parser.parse_args()
    data = load("cifar10", args.data_dir)
    model = trained(data, args.keep, args.epochs)
    torch.set_num_threads(1)
    test = balanced(data.test, args.test)
    print(machine())
    print(f"test accuracy {100 * tested(model, test, 0.0):.1f} %, as words {100 * tested(Words(model).model, test, 0.0):.1f} %")
    print(f"{'':12} seed  flips  CPU s  accuracies in %")
    counts: dict[str, list[float]] = {}
    for seed in range(args.seeds):
        at = torch.randperm(len(data.test), generator=Generator().manual_seed(seed))[:128]
        x, y = data.test.x[at], data.test.y[at].long()
        for name, search, eps_x in contenders(model, x, y, args.most):
            started = time.process_time()
            flips = search()
            seconds = time.process_time() - started
            count, seen = needed(model, flips, balanced(test, args.test // 10) if eps_x else test, eps_x)
            counts.setdefault(name, []).append(math.inf if count is None else count)
            told = "more" if count is None else count
            print(f"{name:12} {seed:4} {told:>6} {seconds:6.0f}  {' '.join(f'{100 * a:.1f}' for a in seen)}", flush=True)
    means = {name: sum(found) / len(found) for name, found in counts.items()}
    print(", ".join(f"{name}: {mean:.1f} flips" for name, mean in means.items()))
    fewer = verdict("flips of flip_attack / published", means["flip_attack"] / means["published"], 1.0)
    return verdict("flips with inputs / without", means["with inputs"] / means["flip_attack"], 0.7) or fewer


def contenders(model: nn.Module, x: Tensor, y: Tensor, most: int) -> Iterator[tuple[str, Search, float]]:
    """(name, search, radius of the inputs) of what is compared, on the same images."""

    def ours(eps_x: float, **settings: Any) -> Search:
        how = {"flips": most, "eps_x": eps_x, "exchange": False, **settings}
        return lambda: [(f.name, f.index, f.bit) for f in ns.flip_attack(model, x, y, **how).flips]

    yield "published", lambda: published(Words(model), x, y, most), 0.0
    yield "flip_attack", ours(0.0, goal=0.08, by_loss=True, candidates=2, beam=2), 0.0
    yield "with inputs", ours(2 / 255, goal=0.1, candidates=1, beam=1), 2 / 255


if __name__ == "__main__":
    raise SystemExit(main())
