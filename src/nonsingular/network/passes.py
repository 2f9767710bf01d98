"""passes.py - how many examples this process has put through networks, forward and backward: the cost that no machine changes."""

from __future__ import annotations

from typing import NamedTuple


class Passes(NamedTuple):
    """Examples times passes.  With one W' for each example, an example at each point that is tried counts once."""

    forward: int = 0
    backward: int = 0

    def since(self, before: Passes) -> Passes:
        return Passes(self.forward - before.forward, self.backward - before.backward)


_seen = [0, 0]


def count(forward: int = 0, backward: int = 0) -> None:
    """Called where a network is called.  Passes inside user functions and plug-ins are not counted."""
    _seen[0] += forward
    _seen[1] += backward


def so_far() -> Passes:
    """The passes of this process since it began."""
    return Passes(*_seen)
