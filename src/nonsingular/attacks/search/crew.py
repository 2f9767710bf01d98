"""crew.py - who does the chunks of many examples, and sums over them that have the same bits whoever does which."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from torch import Tensor

from nonsingular.threat.ball import JointBall
from nonsingular.threat.interval import Interval
from nonsingular.threat.perturbation import Perturbation

T = TypeVar("T")
Span = tuple[int, int]
"""Numbers of neighbouring chunks, first to last + 1."""


class Crew(Protocol):
    """Workers that all have the network and the examples (x, y), and see the tensors that were put where all of them look."""

    @property
    def workers(self) -> int:
        """How many there are."""
        ...

    def empty(self) -> Tensor:
        """A tensor like x, not filled, that all of them see."""
        ...

    def seen(self, t: Tensor) -> Tensor:
        """The same numbers where all of them see them."""
        ...

    def box(self, ball: JointBall) -> Interval:
        """`ball.input_box(x)`, seen by all."""
        ...

    def logits(self, point: Perturbation) -> Tensor:
        """(N, K) logits at a perturbation of all examples, as they decide verdicts (network/calling.py)."""
        ...

    def do(self, work: Callable[..., T], todo: Sequence[tuple[Any, ...]]) -> list[T]:
        """work(network, x, y, *args) for each of these args, in their order.  Calls may be repeated where a worker dies."""
        ...


def folded(span: Span, most: int, of: Callable[[Span], T], add: Callable[[T, T], T]) -> T:
    """The sum of `of` over chunks, as a binary tree that depends on the span alone.

    of: the sum over a node of the tree; asked for the first nodes with at most so many chunks.
    """
    first, last = span
    if last - first <= most:
        return of(span)
    middle = (first + last) // 2
    return add(folded((first, middle), most, of, add), folded((middle, last), most, of, add))


def nodes(span: Span, parts: int) -> tuple[list[Span], int]:
    """The nodes of that tree which `parts` workers do, about two each, and their largest size."""
    most = max(1, -(-(span[1] - span[0]) // (2 * parts)))
    return folded(span, most, lambda node: [node], lambda a, b: a + b), most
