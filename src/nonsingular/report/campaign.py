"""campaign.py - the page of a campaign on simulated chips, from campaign.json alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from markupsafe import Markup, escape

from nonsingular.plain import legible_all
from nonsingular.report.lines import LEFT, RIGHT, Axis, Line, chart, key_mark
from nonsingular.report.templating import render, style
from nonsingular.results.campaign import WAYS, Campaign
from nonsingular.results.protection import Protection


def campaign_page(results: Mapping[str, Any]) -> str:
    """One self-contained HTML page without scripts: what was found, curves with bands, every number, and how to do it again."""
    results = legible_all(results)
    found, required = Campaign.from_dict(results["campaign"]), results.get("required")
    made = render(
        "campaign.html", title=f"Faults of stored weights: {results['label']} on {results['data']['name']}", style=style(),
        lines=found.lines(required), chart=_chart(found), keys=[(key_mark(k), name) for k, name in enumerate(_names(found))],
        tables=[_table(found, j, required) for j in range(len(found.eps_x))], ways=_ways(found), n=found.n,
        clean=f"{100 * found.clean:.1f} %", chips=len(found.chips), warnings=found.about.get("doubts", []),
        command=str(results.get("command", "")), record=_record(results, found), protection=_protection(results),
    )  # fmt: skip
    return str(made)


def _names(found: Campaign) -> list[str]:
    return [f"ε_x = {e:g}" for e in found.eps_x]


def _ways(found: Campaign) -> list[tuple[str, str]]:
    return [(way, what) for way, what in WAYS.items() if way != "before" or found.before is not None]


def _chart(found: Campaign) -> Markup | None:
    """Mean over chips along the rate, one line for each radius, with the range from the worst chip to the best; None for one
    rate.
    """
    rates = [r for r in found.rates if r is not None]
    if len(rates) < 2:
        return None
    first = min(r for r in rates if r > 0)
    at = np.log10([r if r > 0 else first / 10 for r in rates])  # 0 has its place one decade before the first
    across = LEFT + 8 + (at - at[0]) / (at[-1] - at[0]) * (RIGHT - LEFT - 16)
    mean, low, high = found.mean(), found.after.min(2), found.after.max(2)
    shown = [Line(name, mean[:, j], low[:, j], high[:, j], j) for j, name in enumerate(_names(found))]
    axis = Axis(across, [f"{r:g}" for r in rates], escape("error rate of a stored bit"), "Accuracy over the error rate")
    return chart(axis, shown)


def _table(found: Campaign, j: int, required: float | None) -> dict[str, Any]:
    """Every number at one input radius."""
    head = ["rate", "mean over chips", "standard deviation", "worst chip", "right on every chip", "wrong and nothing shows it"]
    head += ["inputs chosen before"] if found.before is not None else []
    head += [f"chips with {100 * required:g} % or more (95 % interval)"] if required is not None else []
    head += ["bits in error", "corrected", "detected", "silent words", "not finite"]
    rows: list[list[str]] = []
    for i, rate in enumerate(found.rates):
        values = [found.mean(), found.spread(), found.worst(), found.every, found.unseen.mean(2)]
        row = ["" if rate is None else f"{rate:g}", *(f"{100 * v[i, j]:.1f} %" for v in values)]
        if found.before is not None:
            row.append(f"{100 * found.before[i, j].mean():.1f} %")
        if required is not None:
            share, low, high = (float(t[i, j]) for t in found.share(required))
            row.append(f"{100 * share:.0f} % ({100 * low:.0f} to {100 * high:.0f})")
        counts = ("errors", "corrected", "detected", "silent", "not_finite")
        rows.append(row + [f"{found.counts[name][i].mean():.1f}" for name in counts])
    return {"title": _names(found)[j], "head": head, "rows": rows}


def _protection(results: Mapping[str, Any]) -> dict[str, Any] | None:
    """What to protect: sentences, every option, and the bits that an attacker flips first; None if it was not asked."""
    if "protection" not in results:
        return None
    found = Protection.from_dict(results["protection"])
    options = [
        [o.text, f"{100 * o.share:.3g} %", *(f"{100 * v:.1f} %" for v in (o.still, o.mean, o.worst))] for o in found.options
    ]
    bits = [[str(k), b.tensor, str(b.index), str(b.bit), f"{100 * b.accuracy:.1f} %"] for k, b in enumerate(found.bits, 1)]
    return {"lines": found.lines(), "rate": f"{found.rate:g}", "chips": found.chips, "options": options, "bits": bits}


def _record(results: Mapping[str, Any], found: Campaign) -> dict[str, Any]:
    about = {k: v for k, v in found.about.items() if k != "doubts"}
    return {
        **about, "data": results["data"],
        **{f"environment.{k}": v for k, v in (results.get("environment") or {}).items()},
    }  # fmt: skip
