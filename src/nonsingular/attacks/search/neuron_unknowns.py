"""neuron_unknowns.py - a dense network's unknowns: the inputs, and one scalar per hidden neuron (the row lemma of row_lemma.py).

- The last layer needs none: for every z all margins are smallest at once where s_y = -1 and s_j = 1 for j != y.
- An inactive neuron has no derivative.  Its shift has a better end all the same, because an activation is monotone: that end has
  the opposite sign of the derivative behind the activation.  So gradients go through rho'(v) + LEAK, the values through rho(v).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from nonsingular.attacks.search.unknowns import Space, leaky
from nonsingular.network.dense import Dense
from nonsingular.network.row_lemma import Shifts, shifts
from nonsingular.threat.ball import JointBall
from nonsingular.threat.perturbation import Perturbation
from nonsingular.threat.radius import largest


@dataclass(frozen=True, eq=False)
class ShiftSpace(Space):
    """Unknowns: the shifts s of the hidden layers that move.

    network: with a leak in its gradients.  moves: which layers have a radius.
    """

    network: Shifts
    ball: JointBall
    moves: tuple[bool, ...]

    def _shifts(self, w: Tensor) -> list[Tensor]:
        """The shifts of all layers: 0 where nothing moves, those of the last layer at their best end."""
        net, y = self.network.net, self.y.repeat(len(w) // max(1, len(self.y)))
        widths = [len(W) if moves else 0 for W, moves in zip(net.weights[:-1], self.moves, strict=False)]
        hidden = w.split(widths, 1) if widths else ()
        still = w.new_zeros(1, 1)
        return [*(s if moves else still for s, moves in zip(hidden, self.moves, strict=False)), net.worst_outputs(y)]

    def logits(self, x: Tensor, w: Tensor) -> Tensor:
        return self.network(x, self._shifts(w))

    def weights(self, x: Tensor, w: Tensor) -> dict[str, Tensor]:
        return self.network.realise(x, self._shifts(w), self.ball)

    def unknowns_of(self, point: Perturbation) -> Tensor:
        hidden = (self.network.of(point) if point.weights else self.network.start(point.x))[:-1]
        moving = (s for s, moves in zip(hidden, self.moves, strict=False) if moves)
        return torch.cat([point.x.new_zeros(len(point.x), 0), *moving], 1)


def shift_space(model: nn.Module | Dense, x: Tensor, y: Tensor, ball: JointBall) -> ShiftSpace:
    """The space of a dense network.  Raises UnsupportedModel as `shifts` does."""
    network, box = shifts(model, ball, x), ball.input_box(x)
    net = network.net
    free = x[0].numel() if ball.moves_inputs and len(x) else 0
    moves = tuple(largest(r) + largest(b) > 0 for r, b in zip(*net.radii(ball), strict=True))
    neurons = sum(len(W) for W, m in zip(net.weights[:-1], moves, strict=False) if m)
    groups = torch.cat([torch.full((free,), -1), torch.arange(neurons)]).to(x.device)
    soft = replace(net, activation=leaky(net.activation))
    network = replace(network, net=soft, positive=bool((net.enter(box.lo) >= 0).all() and (net.enter(box.hi) >= 0).all()))
    space = ShiftSpace(x, box, y, x.new_zeros(len(x), 0), free, groups, network, ball, moves)
    return replace(space, origin=space.at(Perturbation(x, scope="sample")))
