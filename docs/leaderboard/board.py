"""board.py - the leaderboard from the run directories of measure.py: board.json, the table of README.md, and board.html.

    python docs/leaderboard/board.py runs/leaderboard --out docs/leaderboard

Everything in it is read from the run directories; what a part does not have is shown as -.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import jinja2

from nonsingular.models import zoo
from nonsingular.plain import legible
from nonsingular.results.campaign import Campaign
from nonsingular.results.surface import RESULTS, Surface
from nonsingular.runs.campaigns import CAMPAIGN, read_campaign
from nonsingular.runs.directory import read_surface

COLUMNS = {
    "clean": ("Clean", "accuracy on up to 1,000 test examples, %"),
    "auc": ("AUC", "attacked, one Ŵ for all examples, over the grid of the data set"),
    "relative": (
        "AUC, relative",
        "the same with ε_w to 2 % of the largest |weight| of each tensor: no matter of scale",
    ),
    "sample": ("AUC, own Ŵ", "attacked, each of 100 examples with its own Ŵ, at every second radius"),
    "certified": ("Certified", "AUC of what CROWN proves of these"),
    "int8": ("int8", "accuracy with weights stored in 8 bits, %"),
    "int4": ("int4", "the same in 4 bits"),
    "ber3": ("0.1 % bit errors", "int8, mean over 20 chips, %"),
    "ber2": ("1 % bit errors", "int8, mean over 20 chips, %"),
    "flips": ("Flips", "bits of int8 until guessing; - where 100 do not suffice"),
    "seconds": ("Training", "CPU seconds, one thread"),
}
"""Name -> (its head, what it says).  Higher is better but for the last one."""
BEGIN, END = "<!-- table -->\n", "<!-- end of table -->"


def row(folder: Path) -> dict[str, Any]:
    """One network: None for what was not measured."""
    about = json.loads((folder / "model.json").read_text())
    model, by = str(about["model"]), str(about.get("by") or "")
    found: dict[str, Any] = {"model": legible(f"{model} ({by})" if by else model)} | dict.fromkeys(COLUMNS)

    def surface(part: str) -> Surface | None:
        return read_surface(folder / part) if (folder / part / RESULTS).exists() else None

    if (whole := surface("dataset")) is not None:
        found |= {"clean": 100 * whole.about["clean_accuracy"], "auc": whole.auc}
    if (relative := surface("relative")) is not None:
        found["relative"] = relative.auc
    if (own := surface("sample")) is not None:
        found |= {"sample": own.auc, "certified": None if own.certified is None else own.certified.auc}
    for part in ("int8", "int4"):
        if (folder / part / CAMPAIGN).exists():
            means = 100 * Campaign.from_dict(read_campaign(folder / part)["campaign"]).mean()[:, 0]
            found |= {part: means[0]} | ({"ber3": means[1], "ber2": means[2]} if part == "int8" else {})
    if (folder / "flips.json").exists():
        found["flips"] = json.loads((folder / "flips.json").read_text())["flips"]
    if (name := model.removeprefix(zoo.PREFIX)) in zoo.names() and not by:
        found["seconds"] = zoo.card(name)["cpu_seconds"]
    return found


def shown(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if name in ("flips", "seconds"):
        return f"{value:.0f}"
    return f"{value:.1f}" if name in ("clean", "int8", "int4", "ber3", "ber2") else f"{value:.3f}"


def table(rows: list[dict[str, Any]]) -> str:
    heads = ["Model", *(head for head, _ in COLUMNS.values())]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for r in rows:
        name = r["model"].replace("|", "\\|").replace("`", "")
        lines.append(f"| `{name}` | " + " | ".join(shown(n, r[n]) for n in COLUMNS) + " |")
    return "\n".join([*lines, "", *(f"- **{head}**: {says}." for head, says in COLUMNS.values()), ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    rows = [row(path.parent) for path in sorted(args.runs.glob("*/model.json"))]
    if not rows:
        raise SystemExit(f"{args.runs} holds no run of measure.py; give the folder of its --out")
    rows.sort(key=lambda r: (r["model"].split("/")[0], -(r["auc"] or 0.0)))
    (args.out / "board.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    page = args.out / "README.md"
    text = page.read_text(encoding="utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    page.write_text(before + BEGIN + table(rows) + END + after, encoding="utf-8")
    lookup = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    cells = [(r["model"], [(r[n], shown(n, r[n])) for n in COLUMNS]) for r in rows]
    html = lookup.get_template("board.html.jinja").render(columns=list(COLUMNS.values()), rows=cells)
    (args.out / "board.html").write_text(html, encoding="utf-8")


if __name__ == "__main__":
    main()
