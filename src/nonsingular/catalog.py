"""catalog.py - the only tables from a name to the function that it stands for.

Entries are references, resolved when used: naming an attack in a config file or in `--help` does not import torch.
A new attack, bound or model is one function in its folder and one line here; the contract tests run over these tables.
"""

from __future__ import annotations

import ast
import difflib
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nonsingular.errors import InvalidInput

ATTACKS = {
    "strongest": "nonsingular.attacks.strongest:strongest",
    "paper": "nonsingular.attacks.joint_pgd:joint_pgd",
    "neuron": "nonsingular.attacks.neuron_pgd:neuron_pgd",
    "apgd": "nonsingular.attacks.apgd:apgd",
    "alternating": "nonsingular.attacks.strongest:alternating",
    "square": "nonsingular.attacks.square:square",
    "corners": "nonsingular.attacks.corners:corners",
}
BOUNDS = {
    "theorem1": "nonsingular.bounds.theorem:theorem1",
    "theorem1-printed": "nonsingular.bounds.theorem:theorem1_printed",
    "interval": "nonsingular.bounds.interval:interval",
    "crown-ibp": "nonsingular.bounds.linear:crown_ibp",
    "crown": "nonsingular.bounds.linear:crown",
    "alpha-crown": "nonsingular.bounds.alpha:alpha_crown",
    "branch-and-bound": "nonsingular.bounds.branch:branch_and_bound",
    "best": "nonsingular.bounds.best:best",
    "exact": "nonsingular.bounds.exact:exact",
}
UNSOUND = frozenset({"theorem1-printed"})
"""Bounds that are offered for reproduction and may not certify."""
OBJECTIVES = {
    "standard": "nonsingular.training.objectives:standard",
    "weight-perturb": "nonsingular.training.objectives:weight_perturb",
    "at": "nonsingular.training.objectives:at",
    "at-beta": "nonsingular.training.objectives:at_beta",
    "jiwp": "nonsingular.training.objectives:jiwp",
    "joint": "nonsingular.training.objectives:joint",
}
MODELS = {
    "mlp": "nonsingular.models.architectures:mlp",
    "conv": "nonsingular.models.architectures:conv",
    "resnet": "nonsingular.models.architectures:resnet",
}
DATASETS = {name: "nonsingular.data.datasets:load" for name in ("digits", "mnist", "fashion-mnist", "cifar10")}


def described(table: Mapping[str, str], name: str) -> str:
    """The first paragraph of the docstring behind `name`, read from its file: nothing is imported."""
    module, function = table[name].split(":")
    path = Path(__file__).parent.joinpath(*module.split(".")[1:]).with_suffix(".py")
    body = ast.parse(path.read_text(encoding="utf-8")).body
    text = next(ast.get_docstring(node) for node in body if isinstance(node, ast.FunctionDef) and node.name == function)
    return " ".join((text or "").split("\n\n")[0].split())


def known(table: Mapping[str, str], name: str, kind: str) -> str:
    """`name` itself.  Raises InvalidInput, with the nearest name, if the table does not have it."""
    if name not in table:
        near = difflib.get_close_matches(name, table, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InvalidInput(f"there is no {kind} '{name}'{hint}; choose one of {', '.join(table)}")
    return name


def lookup(table: Mapping[str, str], name: str, kind: str) -> Any:
    """The function behind `name`.  Raises InvalidInput if the table does not have it."""
    module, function = table[known(table, name, kind)].split(":")
    return getattr(importlib.import_module(module), function)
