"""radii.py - for which radii of training do the claims of the paper hold?  Its own are not public.

    python docs/reproduction/radii.py digits --out runs/radii                   # 4 factors, 3 seeds: about 40 minutes of one core
    python docs/reproduction/radii.py mnist --data-dir DIR --out runs/radii     # hours

All training radii of the preset, of inputs and of weights, times each factor; then `nonsingular reproduce` under the attack of
the paper and under the strongest one (scope dataset), each into OUT/ATTACK-FACTOR, and the claims judged.  Draws OUT/radii.png
and prints the table.  What is finished is not run again.
"""

from __future__ import annotations

import argparse
import math
import textwrap
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from nonsingular.results.claims import judge
from nonsingular.runs.engine import Workplace
from nonsingular.runs.presets import RECOMMENDED, REPRODUCTIONS
from nonsingular.runs.reproduce import reproduce
from nonsingular.settings import Recipe, ReproduceSettings, checked

ATTACKS = {"paper": ("#1f4e9c", "o"), "strongest": ("#c8500a", "s")}
MARKS = {"reproduced": "yes", "not reproduced": "no", "undecided": "?"}
CLAIMS = ("C1", "C2", "C3", "C4", "C5", "C6")


def scaled(recipe: Recipe, factor: float) -> Recipe:
    """The recipe with both radii of training times `factor`."""
    return recipe.model_copy(update={name: round(getattr(recipe, name) * factor, 12) for name in ("eps_x", "eps_w")})


def claims(args: argparse.Namespace, factor: float, attack: str) -> dict[str, Any]:
    """What `judge` says of the preset with these radii."""
    preset = REPRODUCTIONS[args.data]
    recipes = {name: scaled(recipe, factor).model_dump() for name, recipe in preset.recipes.items() if name != RECOMMENDED}
    values = {**preset.model_dump(), "recipes": recipes, "seeds": args.seeds, "attack": attack, "data_dir": args.data_dir}
    settings = checked(ReproduceSettings, values)
    return judge(reproduce(settings, args.out / f"{attack}-{factor:g}", Workplace(args.workers))["models"])


def draw(found: dict[tuple[str, float], dict[str, Any]], factors: list[float], path: Path) -> None:
    """A panel for each claim: its number over the factor, with 95 % t-intervals; shaded where the claim holds."""
    figure = Figure(figsize=(11, 6), layout="constrained")
    for axes, name in zip(figure.subplots(2, 3, sharex=True).flat, CLAIMS, strict=True):
        one = found[next(iter(ATTACKS)), factors[0]][name]
        for k, (attack, (colour, mark)) in enumerate(ATTACKS.items()):
            numbers = [found[attack, f][name]["numbers"] for f in factors]
            shown = [(f * (1 + 0.02 * k), n["mean"], n["half_width"] or 0.0) for f, n in zip(factors, numbers, strict=True)]
            kept = [row for row in shown if row[1] is not None]
            if kept:
                axes.errorbar(*zip(*kept, strict=True), color=colour, marker=mark, capsize=3, linewidth=1, label=attack)
        bottom, top = axes.get_ylim()
        low, high = (one["numbers"].get(end) for end in ("above", "below"))
        axes.axhspan(bottom if low is None else low, top if high is None else high, color="#2b8a3e", alpha=0.15, linewidth=0)
        ends = [v for v in (low, high) if v is not None]
        axes.set(ylim=(min(bottom, *ends), max(top, *ends)), xscale="log")
        axes.set_title(textwrap.fill(f"{name}: {one['statement']}", 50), fontsize=8)
        axes.set_xticks(factors, [f"{f:g}" for f in factors], minor=False)
        axes.minorticks_off()
    figure.supxlabel("training radii, times those of the preset")
    figure.axes[0].legend(fontsize=8, title="attack")
    figure.savefig(path, dpi=130, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=[*REPRODUCTIONS])
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--factors", type=float, nargs="+", default=[0.5, 1.0, 1.5, 2.0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    found = {(attack, f): claims(args, f, attack) for f in args.factors for attack in ATTACKS}
    draw(found, args.factors, args.out / "radii.png")
    print("| claim | attack | " + " | ".join(f"{f:g} ×" for f in args.factors) + " |\n|---|---|" + "---|" * len(args.factors))
    for name in CLAIMS:
        for attack in ATTACKS:
            cells = [
                f"{MARKS[found[attack, f][name]['verdict']]}: " + number(found[attack, f][name]["numbers"]) for f in args.factors
            ]
            print(f"| {name} | {attack} | " + " | ".join(cells) + " |")


def number(of: dict[str, Any]) -> str:
    if of["mean"] is None:
        return "not defined"
    half = of["half_width"]
    return f"{of['mean']:.3f}" + ("" if half is None or math.isinf(half) else f" ± {half:.3f}")


if __name__ == "__main__":
    main()
