"""house.py - the picture of the folders in docs/architecture.md, from the imports; `python tests/house.py` writes it anew."""

from __future__ import annotations

import ast
import tomllib
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "nonsingular"
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- picture -->", "<!-- end of picture -->"
WIDTH = 140


@cache
def trees() -> dict[Path, ast.Module]:
    """Path within the package -> what it parses to."""
    return {p.relative_to(PACKAGE): ast.parse(p.read_text(encoding="utf-8")) for p in sorted(PACKAGE.rglob("*.py"))}


def place(path: Path) -> str:
    """The folder of a module, or the module itself where it lies at the root."""
    return path.parts[0].removesuffix(".py")


def imports() -> dict[str, set[str]]:
    """Folder -> the folders that it imports from."""
    found: dict[str, set[str]] = {}
    for path, tree in trees().items():
        mine = found.setdefault(place(path), set())
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("nonsingular."):
                mine.add(node.module.split(".")[1])
    return {name: others - {name} for name, others in found.items() if name != "__init__"}


def said(name: str) -> str:
    """The first line of a folder's docstring."""
    path = PACKAGE / name / "__init__.py" if (PACKAGE / name).is_dir() else PACKAGE / f"{name}.py"
    text = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").splitlines()[0]
    return text.removeprefix(f"{name}.py - ").rstrip(".")


def layers() -> list[list[str]]:
    """The floors that the contract in pyproject.toml states, highest first."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    (folders,) = (c for c in contracts if c.get("containers") == ["nonsingular"])
    return [[name.strip() for name in floor.split("|")] for floor in folders["layers"]]


def picture() -> str:
    """Every floor as a row of boxes, with what each folder holds and whom it asks."""
    known, rows = imports(), ["```text"]
    for floor in layers():
        rows.append("┌" + "─" * (WIDTH - 2) + "┐")
        for name in floor:
            rows.append(f"│ {name:<13} {said(name)[: WIDTH - 18]:<{WIDTH - 18}} │")
            asks = ", ".join(sorted(known.get(name, ()))) or "nothing"
            rows.append(f"│ {'':<13} asks {asks:<{WIDTH - 23}} │")
        rows.append("└" + "─" * (WIDTH - 2) + "┘")
    return "\n".join([*rows, "```"])


def main() -> None:
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{picture()}\n{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
