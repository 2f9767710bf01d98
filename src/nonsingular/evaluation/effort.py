"""effort.py - quick, standard, thorough: how often attacks walk over the grid, and what they may spend.

A sweep visits every cell once.  Down: from large balls to small ones, each cell from what was found at its larger neighbours,
shrunk into its own ball.  Up: from small balls to large ones, each cell from its smaller neighbours, grown.  A cell also begins
from what it reached in the sweep before, and is never left above it; the last sweep goes up, after which no cell is above a
smaller one.  So the result is monotone along both axes, and in the effort, whose sweeps begin with those of the smaller one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from nonsingular.errors import InvalidInput
from nonsingular.threat.ball import Scope
from nonsingular.threat.grid import Grid, Radii

Budget = Mapping[str, Any]
Effort = Literal["quick", "standard", "thorough"]


@dataclass(frozen=True)
class Sweep:
    """down: from large balls to small ones.  attacks: otherwise cells only take over what smaller balls hold.

    rounds: most attacks on a cell: each begins where the last one ended, if that one lowered the accuracy by more than half the
    width of its 95 % interval.  A cell where the last of all still did has the flag "moving".
    explores: the attack looks for other starts in every so many rows and columns, counted from the largest; 0: nowhere.
    budget: arguments of an attack that takes them (`Attack.budget` of the catalog).
    """

    down: bool = False
    attacks: bool = True
    rounds: int = 1
    explores: int = 1
    budget: Budget = field(default_factory=dict[str, Any])

    def explores_at(self, radii: Radii, grid: Grid) -> bool:
        """Whether the attack explores in this cell; where W' stays, and in one that is not of the grid, if it does anywhere."""
        if self.explores < 2 or not radii[1] or radii not in grid.points:
            return self.explores > 0
        return all(k % self.explores == 0 for k in divmod(len(grid.points) - 1 - grid.points.index(radii), grid.shape[1]))


_DOWN, _TAKE_OVER = Sweep(down=True, explores=2, budget={"steps": 3}), Sweep(attacks=False)
_UP = Sweep(explores=0, rounds=4, budget={"steps": 3})
_AGAIN = (Sweep(down=True, budget={"steps": 16}), Sweep(explores=0, rounds=4, budget={"steps": 16}))

TOGETHER: Mapping[str, tuple[Sweep, ...]] = {
    "quick": (_DOWN, _TAKE_OVER),
    "standard": (_DOWN, _UP),
    "thorough": (_DOWN, _UP, *_AGAIN, *_AGAIN),
}
"""Scopes batch and dataset: exploring finds which way W' goes, and the way back carries what is best."""
ALONE: Mapping[str, tuple[Sweep, ...]] = {
    "quick": (Sweep(budget={"restarts": 0, "targets": 3, "keep": 2, "rounds": 1}),),
    "standard": (Sweep(),),
    "thorough": (Sweep(), Sweep(budget={"restarts": 100, "steps": 20, "keep": 8, "rounds": 6})),
}
"""Scope sample: the second sweep attacks what the first one left."""
EFFORTS = tuple(TOGETHER)


def check_effort(effort: str) -> None:
    """Raises InvalidInput for an unknown effort."""
    if effort not in EFFORTS:
        raise InvalidInput(f"there is no effort '{effort}'; choose one of {', '.join(EFFORTS)}")


def sweeps(effort: str, scope: Scope, budget: bool) -> tuple[Sweep, ...]:
    """The sweeps of an effort, in their order.  budget: whether the attack takes one; others walk up once, thorough also back."""
    if budget:
        return (ALONE if scope == "sample" else TOGETHER)[effort]
    up = Sweep(rounds=2)
    return (up,) if effort != "thorough" or scope == "sample" else (up, _DOWN, up)


def longer(effort: str) -> Sweep:
    """How a few cells are attacked once more after the last sweep, which shows what is still to be had."""
    return Sweep(down=True, budget={"steps": 64 if effort == "thorough" else 16})
