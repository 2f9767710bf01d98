"""highs.py - the program of program.py, handed to HiGHS."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from nonsingular.bounds.program import Program
from nonsingular.errors import InvalidInput

TOLERANCE = 1e-9
"""HiGHS's tolerances here: of a row, of a reduced cost and of a whole number."""
Status = Literal["optimal", "decided", "time limit", "failed"]
"""How the search for one margin ended.

`optimal`: searched to the end, or nothing to search.  `decided`: stopped, because the sign of this margin, or of another one of
the example, is known (only `decide`).  `time limit`: stopped.  `failed`: HiGHS could not go on.
"""


def solver() -> Any:
    """The package highspy.  Raises InvalidInput without it."""
    try:
        return importlib.import_module("highspy")
    except ModuleNotFoundError:
        raise InvalidInput(
            "an exact bound needs the solver HiGHS, which is not installed; pip install nonsingular[exact]"
        ) from None


@dataclass(frozen=True)
class Effort:
    """Limits of a search: seconds, and the gap between its two bounds at which it ends."""

    time_limit: float
    gap: float

    def checked(self) -> Effort:
        """Itself.  Raises InvalidInput unless both are finite and above 0."""
        for name, value in (("gap", self.gap), ("time_limit", self.time_limit)):
            if not (math.isfinite(value) and value > 0):
                raise InvalidInput(f"{name} is {value}; give a finite number above 0")
        return self


@dataclass(frozen=True, eq=False)
class Found:
    """The result of HiGHS: its bound of the objective, the unknowns of its best point, and how it ended."""

    bound: float
    unknowns: Tensor | None
    status: Status


def minimise(program: Program, cost: Tensor, effort: Effort, *, enough: tuple[float, float] | None = None) -> Found:
    """Minimises cost[0] + cost[1:] unknowns.  enough: stop at a point below the first or a bound above the second.

    HiGHS is given no point to start from, and no presolve: with both, 1.15.1 may call that point optimal where it is not, without
    searching a node.  Presolve saves no time here.
    """
    if not program.rows:  # every unknown at its better end
        lo, hi = (torch.cat(ends) for ends in zip(*((c.lo, c.hi) for c in program.columns), strict=True))
        unknowns = torch.where(cost[1:] > 0, lo, hi)
        return Found((cost[0] + cost[1:] @ unknowns).item(), unknowns, "optimal")
    highspy = solver()
    h = highspy.Highs()
    options = {
        "output_flag": False, "threads": 1, "time_limit": effort.time_limit, "mip_abs_gap": effort.gap, "mip_rel_gap": 0.0,
        "presolve": "off", "primal_feasibility_tolerance": TOLERANCE, "dual_feasibility_tolerance": TOLERANCE,
        "mip_feasibility_tolerance": TOLERANCE, "small_matrix_value": 1e-12,
    }  # fmt: skip
    for name, value in options.items():
        h.setOptionValue(name, value)
    h.passModel(_lp(highspy, program, cost))
    if enough is not None:
        below, above = enough

        def look(event: Any) -> None:
            if event.data_out.mip_primal_bound < below or event.data_out.mip_dual_bound > above:
                event.interrupt()

        h.cbMipInterrupt += look
    h.run()
    ended, info = h.getModelStatus(), h.getInfo()
    names: Mapping[Any, Status] = {
        highspy.HighsModelStatus.kOptimal: "optimal",
        highspy.HighsModelStatus.kInterrupt: "decided",
        highspy.HighsModelStatus.kTimeLimit: "time limit",
    }
    status: Status = names.get(ended, "failed")
    assert ended != highspy.HighsModelStatus.kInfeasible, "the program of a ball has no point: a fault of nonsingular"
    if program.binaries:
        bound = -math.inf if status == "failed" else info.mip_dual_bound
    else:  # a linear program has no bound before its end
        bound = info.objective_function_value if status == "optimal" else -math.inf
    feasible = info.primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible
    unknowns = torch.tensor(list(h.getSolution().col_value), dtype=cost.dtype) if feasible else None
    return Found(bound, unknowns, status)


def _lp(highspy: Any, program: Program, cost: Tensor) -> Any:
    def joined(parts: Sequence[Tensor], dtype: torch.dtype = torch.float64) -> Any:
        return torch.cat([torch.zeros(0, dtype=dtype), *(p.to(dtype) for p in parts)]).numpy()

    lp = highspy.HighsLp()
    columns, rows = program.columns, program.rows
    lp.num_col_, lp.num_row_ = program.count, sum(len(r.lo) for r in rows)
    lp.col_cost_, lp.offset_ = cost[1:].numpy(), cost[0].item()
    lp.col_lower_, lp.col_upper_ = joined([c.lo for c in columns]), joined([c.hi for c in columns])
    lp.row_lower_, lp.row_upper_ = joined([r.lo for r in rows]), joined([r.hi for r in rows])
    matrix = lp.a_matrix_
    matrix.format_, matrix.num_col_, matrix.num_row_ = highspy.MatrixFormat.kRowwise, lp.num_col_, lp.num_row_
    matrix.start_ = joined([torch.cat([torch.zeros(1, dtype=torch.long), *(r.counts for r in rows)]).cumsum(0)], torch.int32)
    matrix.index_, matrix.value_ = joined([r.index for r in rows], torch.int32), joined([r.value for r in rows])
    whole, real = highspy.HighsVarType.kInteger, highspy.HighsVarType.kContinuous
    lp.integrality_ = [whole if c.whole else real for c in columns for _ in c.lo]
    return lp
