"""alpha.py - alpha-CROWN: the lower slopes of all hinges moved by gradient ascent.  arXiv:2011.13824."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from nonsingular.bounds.interval import Region, region
from nonsingular.bounds.linear import Choose, Slopes, hidden_bounds, margin_bounds, pieces, refined
from nonsingular.network.calling import recording
from nonsingular.network.memory import room
from nonsingular.network.nodes import Activation, Product
from nonsingular.threat.ball import JointBall

T = TypeVar("T")


def alpha_crown(
    model: nn.Module, x: Tensor, y: Tensor, ball: JointBall, *, steps: int = 20, rate: float = 0.5, batch: int = 64
) -> Tensor:
    """(B, K) as `crown`, with every lower slope, also those for hidden layers, moved by `steps` of gradient ascent.

    Any slope is sound; each element is the best of all steps, so it is never below `crown`.
    batch: largest number of examples at a time.  Where the gradients of one example's hidden bounds do not fit into memory,
    these stay as in `crown` and only the slopes for the logits move.
    Cost: `steps` times crown with gradients.  Source: arXiv:2011.13824.
    """
    with recording():
        whole = region(model, x.clone(), y, ball)
        size, deep = together(whole, batch)
        return torch.cat([ascend(part, labels, steps, rate, deep) for part, labels in pieces(whole, y.long(), size)])


def together(where: Region, batch: int) -> tuple[int, bool]:
    """(examples at a time, whether hidden bounds take part) in an ascent whose gradients fit into memory."""
    logits, hidden = _kept(where)
    most = room(where.x.lo) // 2
    deep = logits + hidden <= most
    return min(batch, most // (logits + hidden if deep else logits)), deep


def _kept(where: Region) -> tuple[int, int]:
    """Numbers kept for the gradient of one example's bounds: those of the logits, and those of all hidden nodes."""
    sizes = [torch.Size(node.shape).numel() for node in where.graph.nodes]
    for i, node in enumerate(where.graph.nodes):
        if isinstance(node, Product) and not node.dense and node.weight is not None and where.moves(node.weight):
            sizes[i] += where.graph.value(node.weight).numel()
    own = (2 * torch.Size(where.graph.nodes[i].shape).numel() * sum(sizes[:i]) for i in refined(where))
    return sizes[-1] * sum(sizes), sum(own)


class _Alphas:
    """Lower slopes as variables: each bounded element has its own where these fit into memory, or one for all of a node."""

    def __init__(self, where: Region) -> None:
        self.where = where
        self.of: dict[tuple[int, int, int], Tensor] = {}

    def __call__(self, bounded: int, end: int, elements: Tensor) -> Choose:
        def choose(at: int, default: Tensor) -> Tensor:
            key = (bounded, end, at)
            if key not in self.of:
                count = torch.Size(self.where.graph.nodes[bounded].shape).numel()
                own = count if count * default.numel() <= room(default) // 16 else 1
                self.of[key] = default.detach().repeat(own, *[1] * (default.dim() - 1)).requires_grad_()
            alpha = self.of[key]
            return alpha if len(alpha) == 1 else alpha[elements]

        return choose

    def clamp_(self) -> None:
        with torch.no_grad():
            for (_, _, at), alpha in self.of.items():
                alpha.clamp_(cast(Activation, self.where.graph.nodes[at]).slope, 1.0)


def ascend(where: Region, y: Tensor, steps: int, rate: float, deep: bool = True) -> Tensor:
    """Adam on the sum of the margins' bounds, with a rate that falls by 5 % a step; hidden bounds take part if `deep`."""
    with torch.no_grad():
        fixed = None if deep else hidden_bounds(where)

    def bounds(slopes: Slopes) -> tuple[Tensor, Tensor]:
        low = margin_bounds(where, fixed or hidden_bounds(where, slopes), y, slopes)
        return low.sum(), low.detach()

    found = ascent(where, bounds, steps, rate)
    best = next(found)
    for low in found:
        best = torch.fmax(best, low)
    return best


def ascent(where: Region, evaluate: Callable[[Slopes], tuple[Tensor, T]], steps: int, rate: float) -> Iterator[T]:
    """What `evaluate` gives beside its goal, a sum that Adam raises: at the default slopes, and after each of up to `steps`."""
    alphas = _Alphas(where)
    goal, found = evaluate(alphas)
    yield found
    if not alphas.of or not goal.requires_grad or not steps:
        return
    optimiser = torch.optim.Adam(alphas.of.values(), lr=rate)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, 0.95)
    for _ in range(steps):
        optimiser.zero_grad()
        goal.neg().backward()
        optimiser.step()
        schedule.step()
        alphas.clamp_()
        goal, found = evaluate(alphas)
        yield found
