"""claims.py - the claims of arXiv:2102.11935, section 4.1, compared with measured surfaces.

Each claim becomes a number per seed and an interval that it should lie in.  The verdict follows from the 95 % t-interval of the
mean over seeds: reproduced if it lies inside, not reproduced if it lies outside, undecided if it overlaps an end or there is a
single seed.  All seeds share the same test examples, so the interval does not cover the choice of examples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from nonsingular.results.statistics import half_width

SLIGHTLY = 0.25
"""C2: `slightly` is less than this fraction of what adversarial training gains on the same axis."""
BROKEN = 0.5
"""C1: `vulnerable` is below this fraction of the clean accuracy at the largest radius of the axis."""
ABOUT = 0.1
"""C5: `about 1.24 times` is within this relative distance."""


def judge(models: Mapping[str, Any]) -> dict[str, Any]:
    """Claims C1-C6 on the `models` of a results.json, and `joint`: the joint model's AUC over AT's and over AT + beta's.

    The grid must start at radius 0 on both axes.  AT + beta is `at-beta-2`, the better one on the validation split.
    Returns name -> {statement, verdict, evidence, numbers}.
    """

    auc, auc_x, auc_w = (partial(_column, models, which) for which in ("auc", "auc_x", "auc_w"))
    best = "at-beta-2"
    worst_axis = [max(pair) for pair in zip(_kept(models, 0, -1), _kept(models, -1, 0), strict=True)]
    gain = _over(_minus(auc_x("weight-perturb"), auc_x("standard")), _minus(auc_x("at"), auc_x("standard")))
    over_best = _over(auc("joint"), auc(best))
    return {
        "C1": _claim(
            "The standard model is vulnerable on both axes",
            worst_axis, (-math.inf, BROKEN), "part of its clean accuracy kept at the largest radius of its stronger axis",
        ),
        "C2": _claim(
            "Weight-perturb training helps against input perturbations only slightly",
            gain, (0.0, SLIGHTLY), "its gain in input AUC over standard, as a part of AT's gain",
        ),
        "C3": _claim(
            "AT is less robust to weight perturbations than standard",
            _minus(auc_w("at"), auc_w("standard")), (-math.inf, 0.0), "weight AUC of AT minus that of standard",
        ),
        "C4": _above_baselines(models),
        "C5": _claim(
            "The best AT + β has about 1.24 times the AUC of AT",
            _over(auc(best), auc("at")), (1.24 * (1 - ABOUT), 1.24 * (1 + ABOUT)), f"AUC of {models[best]['title']} over AT's",
        ),
        "C6": _claim(
            "AT + β has a larger AUC than JIWP",
            _minus(auc(best), auc("jiwp")), (0.0, math.inf), f"AUC of {models[best]['title']} minus JIWP's",
        ),
        "joint": _own(
            "Joint adversarial training has at least 1.8 times the AUC of AT (the project's claim, not the paper's)",
            _over(auc("joint"), auc("at")), (1.8, math.inf), "AUC of the joint model over AT's",
        )
        | {"over_at_beta": [None if math.isnan(v) else v for v in over_best]},
    }  # fmt: skip


def _column(models: Mapping[str, Any], which: str, name: str) -> list[float]:
    """One area of a model, for each seed."""
    return list(models[name][which])


def _kept(models: Mapping[str, Any], row: int, column: int) -> list[float]:
    """The fraction of its clean accuracy that the standard model keeps at one point of the grid, for each seed."""
    return [_part(s["accuracy"][row][column], s["about"]["clean_accuracy"]) for s in models["standard"]["surfaces"]]


def _above_baselines(models: Mapping[str, Any]) -> dict[str, Any]:
    """C4, which holds if it holds for each of the three models; its numbers are those of the weakest."""
    baselines = [models[name]["auc"] for name in ("standard", "weight-perturb", "at")]
    least = {
        name: [a - max(b) for a, *b in zip(models[name]["auc"], *baselines, strict=True)]
        for name in ("at-beta-1", "at-beta-2", "jiwp")
    }
    weakest = min(least, key=lambda name: _mean(least[name]))
    each = {name: _verdict(least[name], (0.0, math.inf)) for name in least}
    top = [models[name]["title"] for name, verdict in each.items() if verdict == "reproduced"]
    claim = _claim(
        "Each of the three regularised models has a larger AUC than standard, weight perturb and AT",
        least[weakest], (0.0, math.inf), f"AUC of the weakest of the three ({models[weakest]['title']}) minus the best baseline",
    )  # fmt: skip
    claim["verdict"] = next((v for v in ("not reproduced", "undecided") if v in each.values()), "reproduced")
    claim["numbers"]["by_model"] = least
    claim["evidence"] += f"; above every baseline: {', '.join(top) or 'none of the three'}"
    return claim


def _own(statement: str, values: Sequence[float], interval: tuple[float, float], what: str) -> dict[str, Any]:
    """A claim of this project, not of the paper: its verdict is that it holds or does not hold."""
    claim = _claim(statement, values, interval, what)
    words = {"reproduced": "holds", "not reproduced": "does not hold"}
    return claim | {"verdict": words.get(claim["verdict"], claim["verdict"])}


def _claim(statement: str, values: Sequence[float], interval: tuple[float, float], what: str) -> dict[str, Any]:
    if any(math.isnan(v) for v in values):
        evidence = f"{what}: not defined, it divides by zero for a seed"
        numbers = {"per_seed": [None if math.isnan(v) else v for v in values], "mean": None, "half_width": None}
        return {"statement": statement, "verdict": "undecided", "evidence": evidence, "numbers": numbers}
    lo, hi = interval
    wanted = f"above {lo:g}" if math.isinf(hi) else f"below {hi:g}" if math.isinf(lo) else f"between {lo:.4g} and {hi:.4g}"
    half = half_width(values)
    spread = f" ± {half:.3f} (95 %, {len(values)} seeds)" if len(values) > 1 else " (one seed)"
    return {
        "statement": statement,
        "verdict": _verdict(values, interval),
        "evidence": f"{what}: {_mean(values):.3f}{spread}; the claim needs it {wanted}",
        "numbers": {
            "per_seed": list(values), "mean": _mean(values), "half_width": half if len(values) > 1 else None,
            "above": None if math.isinf(lo) else lo, "below": None if math.isinf(hi) else hi,
        },
    }  # fmt: skip


def _verdict(values: Sequence[float], interval: tuple[float, float]) -> str:
    low, high = _mean(values) - half_width(values), _mean(values) + half_width(values)
    if interval[0] < low and high < interval[1]:
        return "reproduced"
    return "not reproduced" if high <= interval[0] or low >= interval[1] else "undecided"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _minus(a: Sequence[float], b: Sequence[float]) -> list[float]:
    return [p - q for p, q in zip(a, b, strict=True)]


def _over(a: Sequence[float], b: Sequence[float]) -> list[float]:
    return [_part(p, q) for p, q in zip(a, b, strict=True)]


def _part(p: float, q: float) -> float:
    return p / q if q else math.nan
