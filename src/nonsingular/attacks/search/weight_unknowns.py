"""weight_unknowns.py - the unknowns of a network that cannot be read: the inputs, and every element of every tensor that moves.

The elements of an output channel form a group: after a ReLU they all pull it the same way.  Random corners move it as one, and an
element that has no derivative, as its input is 0 there, goes where its group goes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from nonsingular.attacks.search.unknowns import Loss, Space, of_channels, scaled
from nonsingular.network.calling import Each, logits_of_each
from nonsingular.network.row_lemma import of_each
from nonsingular.threat.ball import JointBall
from nonsingular.threat.interval import Interval
from nonsingular.threat.perturbation import Perturbation


@dataclass(frozen=True, eq=False)
class TensorSpace(Space):
    """Unknowns: all elements of the tensors that move, which lie in `boxes`.  params: all parameters of the model, by name."""

    network: Each
    boxes: Mapping[str, Interval]
    params: Mapping[str, Tensor]

    def _columns(self) -> dict[str, slice]:
        """The columns of each tensor, counted after the inputs."""
        found, at = dict[str, slice](), 0
        for name, box in self.boxes.items():
            found[name] = slice(at, at + box.lo.numel())
            at = found[name].stop
        return found

    def _placed(self, w: Tensor) -> dict[str, Tensor]:
        """(N, *shape) by name; they may leave their boxes by rounding."""
        found = dict[str, Tensor]()
        for name, columns in self._columns().items():
            lo, hi = self.boxes[name].lo, self.boxes[name].hi
            found[name] = torch.addcmul(
                (lo + hi) / 2, (hi - lo) / 2, w[:, columns].unflatten(1, lo.shape or (1,)).view(-1, *lo.shape)
            )
        return found

    def logits(self, x: Tensor, w: Tensor) -> Tensor:
        return self.network(self._placed(w), x)

    def weights(self, x: Tensor, w: Tensor) -> dict[str, Tensor]:
        return {name: self.boxes[name].project_(t) for name, t in self._placed(w).items()}

    def unknowns_of(self, point: Perturbation) -> Tensor:
        each = {name: of_each(point, self.params, name) for name in self.boxes}
        parts = [scaled(t, self.boxes[name].lo, self.boxes[name].hi)[..., None].flatten(1) for name, t in each.items()]
        return torch.cat([point.x.new_zeros(len(point.x), 0), *parts], 1)

    def slope(self, v: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
        value, g = super().slope(v, loss)
        of_channels(g[..., self.free :], self._columns(), self.boxes)
        return value, g


def tensor_space(model: nn.Module, x: Tensor, y: Tensor, ball: JointBall) -> TensorSpace:
    """The space of any network whose logits have a gradient."""
    params = dict(model.named_parameters())
    boxes = ball.weight_boxes(params)
    free = x[0].numel() if ball.moves_inputs and len(x) else 0
    groups, count = [torch.full((free,), -1)], 0
    for box in boxes.values():
        channels = len(box.lo) if box.lo.dim() else 1
        groups.append(torch.arange(count, count + channels).repeat_interleave(box.lo.numel() // channels))
        count += channels
    space = TensorSpace(
        x, ball.input_box(x), y, x.new_zeros(len(x), 0), free, torch.cat(groups).to(x.device),
        network=logits_of_each(model), boxes=boxes, params=params,
    )  # fmt: skip
    return replace(space, origin=space.at(Perturbation(x, scope="sample")))
