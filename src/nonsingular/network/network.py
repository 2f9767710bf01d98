"""network.py - a model to ask questions about: one private copy, and the answers so far, each computed once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Hashable, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from nonsingular.errors import InvalidInput, UnsupportedModel
from nonsingular.network import memory
from nonsingular.network.copies import duplicate
from nonsingular.network.one_logit import Adapter, OneLogit
from nonsingular.network.precision import Floats
from nonsingular.threat.ball import JointBall
from nonsingular.threat.interval import Interval

T = TypeVar("T")


class Network(Adapter):
    """A private copy of a model, in which nothing is changed.  It computes what the model computes, so it is a module like it.

    Parameters, buffers and modules have the model's own names.  Its graph, its chain of dense layers, its form in another dtype
    (network/graph.py, dense.py) and the way to run it with weights for each example (calling.py) are found once, and kept here.
    Every function that takes a module also takes a Network, and then makes no further copy.
    told: notes for the user on how the model is seen.
    """

    told: tuple[str, ...]
    floats: Floats | None = None
    """What bounds of it allow for rounding; None: nothing."""
    _found: dict[Hashable, Any]
    _boxes: dict[Hashable, Mapping[str, Interval]]
    _spare: list[nn.Module]

    def __init__(self, inner: nn.Module, told: tuple[str, ...] = ()) -> None:
        """inner: a private copy (`twin`)."""
        super().__init__(inner)
        self.keep(told=told, _found={}, _boxes={}, _spare=[])

    def __repr__(self) -> str:
        return repr(self.inner)

    def __deepcopy__(self, memo: dict[int, Any]) -> Network:
        found = Network(copy.deepcopy(self.inner, memo), self.told)
        found.keep(floats=self.floats)
        return found

    def allowing(self, floats: Floats) -> Network:
        """The same network, of which bounds allow for rounding."""

        def view() -> Network:
            seen = copy.copy(self)  # what was found about either is kept for both
            seen.keep(floats=floats)
            return seen

        return self.once(("allowing", floats), view)

    def once(self, what: Hashable, find: Callable[[], T]) -> T:
        """The result of `find`, or the UnsupportedModel that it raised, from the first call for `what`."""
        if what not in self._found:
            try:
                with torch.inference_mode(False):  # or what is kept could not be used outside of it
                    self._found[what] = find()
            except UnsupportedModel as e:
                self._found[what] = e
        found = self._found[what]
        if isinstance(found, UnsupportedModel):
            raise type(found)(*found.args) from found.__cause__
        return cast(T, found)

    def weight_boxes(self, ball: JointBall) -> Mapping[str, Interval]:
        """The boxes that cover a ball of weights, as in `JointBall.weight_boxes`; do not write into them.

        Every batch of examples needs them, so the last ones used are kept, in an eighth of the memory budget.
        """
        key = type(ball), ball.of_weights
        boxes = self._boxes.pop(key, None)
        if boxes is None:
            with torch.inference_mode(False):
                boxes = ball.weight_boxes(dict(self.named_parameters()), outward=True)
        self._boxes[key] = boxes  # as the last one used
        while self._boxes and sum(map(_bytes, self._boxes.values())) > memory.BUDGET // 8:
            del self._boxes[next(iter(self._boxes))]
        return boxes

    @contextmanager
    def lent(self, weights: Mapping[str, Tensor] | None = None) -> Generator[nn.Module]:
        """A copy whose parameters may be moved in place inside the context.  It begins at `weights`, by name; restored after."""
        with torch.inference_mode(False):
            moving = self._spare.pop() if self._spare else twin(self.inner)
        try:
            load(moving, weights or {})
            yield moving
        finally:
            for p in moving.parameters():
                p.requires_grad_(False)
            load(moving, _held(self.inner))
            own = dict(self.inner.named_modules())
            for name, part in moving.named_modules():
                part.training = own[name].training if name in own else part.training
            self._spare.append(moving)


def _bytes(boxes: Mapping[str, Interval]) -> int:
    return sum(2 * box.lo.nbytes for box in boxes.values())


def _held(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, also those buffers that are not part of a module's state."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def load(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Writes values into the parameters and buffers of these names."""
    held = _held(module)
    with torch.inference_mode(False), torch.no_grad():
        for name, value in values.items():
            held[name].copy_(value)


def twin(model: nn.Module) -> nn.Module:
    """A copy of `model` to run, whose parameters need no gradient; a Network is one already.

    Raises InvalidInput in train mode if the model has BatchNorm or Dropout (its output would depend on the batch or on chance),
    and if the model cannot be copied.
    """
    if isinstance(model, Network):
        return model
    if isinstance(model, OneLogit):
        return OneLogit(twin(model.inner), flat=model.flat)
    moving = duplicate(model)
    for name, module in moving.named_modules():
        if module.training and isinstance(module, nn.modules.batchnorm._NormBase | nn.modules.dropout._DropoutNd):  # pyright: ignore[reportPrivateUsage]
            raise InvalidInput(f"the model is in train mode and has {type(module).__name__} at '{name}'; call model.eval() first")
    for p in moving.parameters():  # requires_grad_ of a scripted module refuses
        p.requires_grad_(False)
    return moving


def network_of(model: nn.Module) -> Network:
    """The network of a module as it is.  Public functions use heads.classifier, which also checks what it returns."""
    if isinstance(model, Network):
        return model
    with torch.inference_mode(False):
        return Network(twin(model))
