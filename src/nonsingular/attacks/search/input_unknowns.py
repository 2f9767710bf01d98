"""input_unknowns.py - the unknowns of a network whose weights stay where they are: the inputs alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nonsingular.attacks.search.descent import Budget, search
from nonsingular.attacks.search.unknowns import Space
from nonsingular.threat.interval import Interval
from nonsingular.threat.perturbation import Perturbation


@dataclass(frozen=True, eq=False)
class InputSpace(Space):
    """No unknowns but the inputs.  network: (N, *input), which it may overwrite -> (N, K) logits.  chunk: inputs at a time."""

    network: Callable[[Tensor], Tensor]
    chunk: int

    def logits(self, x: Tensor, w: Tensor) -> Tensor:
        return torch.cat([self.network(part.clone()) for part in x.split(self.chunk)])

    def weights(self, x: Tensor, w: Tensor) -> dict[str, Tensor]:
        return {}

    def unknowns_of(self, point: Perturbation) -> Tensor:
        return point.x.new_zeros(len(point.x), 0)


def input_space(network: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, box: Interval, chunk: int) -> InputSpace:
    """The space of these inputs within their box.  chunk: how many inputs a pass has at most."""
    free = x[0].numel() if len(x) else 0
    groups = torch.full((free,), -1, device=x.device)
    space = InputSpace(x, box, y, x.new_zeros(len(x), 0), free, groups, network, chunk)
    return replace(space, origin=space.at(Perturbation(x, scope="sample")))


def seek(space: InputSpace, start: Tensor, budget: Budget) -> Tensor:
    """(B, *input) where the search ends for each example, begun from x and from `start`; random points from seed 0."""
    v = space.at(Perturbation(start, scope="sample"))[None]
    return space.realise(search(space, v, budget, torch.Generator(start.device).manual_seed(0))).x
