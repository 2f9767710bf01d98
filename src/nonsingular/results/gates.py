"""gates.py - the accuracies that a run must reach, for continuous integration, and JUnit XML.  Needs no torch."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from nonsingular.errors import InvalidInput
from nonsingular.plain import legible
from nonsingular.results.comparison import per_example
from nonsingular.results.statistics import Z, volume
from nonsingular.results.surface import Surface

Kind = Literal["attacked", "certified"]


@dataclass(frozen=True)
class Gate:
    """A number that a surface must reach: its AUC, or its accuracy at one point of the grid (eps_x, eps_w).

    least: in [0, 1].  kind: of the attacked surface, or of the certified one; where W' is shared, of the shared certificates.
    """

    least: float
    kind: Kind = "attacked"
    point: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.least <= 1:
            raise InvalidInput(f"the least {self.name} is {self.least}; give a share from 0 to 1")

    @property
    def name(self) -> str:
        if self.point is None:
            return f"{self.kind} AUC"
        return f"{self.kind} accuracy at eps_x={self.point[0]:g}, eps_w={self.point[1]:g}"

    @staticmethod
    def at_point(text: str, kind: Kind = "attacked") -> Gate:
        """From 'eps_x=0.1,eps_w=0.005:0.4'.

        >>> Gate.at_point("eps_x=0.1,eps_w=0.005:0.4")
        Gate(least=0.4, kind='attacked', point=(0.1, 0.005))
        """
        try:
            where, _, least = text.rpartition(":")
            radii = {k.strip(): float(v) for k, v in (part.split("=") for part in where.split(","))}
            return Gate(float(least), kind, (radii.pop("eps_x"), radii.pop("eps_w"))) if len(radii) == 2 else _malformed(text)
        except InvalidInput:
            raise
        except (ValueError, KeyError):
            return _malformed(text)

    def of(self, surface: Surface) -> tuple[float, float]:
        """The number of a surface, and the lower end of its 95 % interval.

        Raises InvalidInput if it has no such surface or no such point.
        """
        shown = surface if self.kind == surface.kind else surface.shared or surface.certified
        if shown is None or (shown.kind == "attacked") != (self.kind == "attacked"):
            raise InvalidInput(f"{surface.model} has no {self.kind} surface; evaluate it with --certify, or leave this gate out")
        if self.point is None:
            if shown.outcomes is None:  # the mean of the cells' lower ends lies below that of their mean
                return shown.auc, volume(shown.interval[0], shown.eps_w, shown.eps_x)
            low = shown.auc
            if shown.n > 1:
                low -= Z * float(per_example(shown).std(ddof=1)) / np.sqrt(shown.n)
            return shown.auc, max(0.0, low)
        at = [(i, j) for i, w in enumerate(shown.eps_w) for j, x in enumerate(shown.eps_x) if np.allclose((x, w), self.point)]
        if not at:
            raise InvalidInput(
                f"the grid of {surface.model} has no point eps_x={self.point[0]:g}, eps_w={self.point[1]:g}; "
                f"eps_x is one of {_list(shown.eps_x)}, eps_w of {_list(shown.eps_w)}"
            )
        return float(shown.accuracy[at[0]]), float(shown.interval[0][at[0]])


def _malformed(text: str) -> Gate:
    raise InvalidInput(f"cannot read the gate '{text}'; write radii and least accuracy as eps_x=0.1,eps_w=0.005:0.4")


def _list(radii: Sequence[float]) -> str:
    return ", ".join(f"{r:g}" for r in radii)


@dataclass(frozen=True)
class Checked:
    """One gate on one model (and seed).  found: the number that is compared with it."""

    model: str
    gate: Gate
    found: float

    @property
    def passed(self) -> bool:
        return self.found >= self.gate.least

    def __str__(self) -> str:
        verdict = "passed" if self.passed else "FAILED"
        return f"{verdict}: {self.model}: {self.gate.name} is {self.found:.4f}, at least {self.gate.least:g} asked"


def check(results: Mapping[str, Any], gates: Sequence[Gate], *, interval: bool = False) -> list[Checked]:
    """Every gate on every surface of a run's results.

    interval: compare the lower end of the 95 % interval with the gate, instead of the number itself.
    Raises InvalidInput without gates, and for a gate that a surface has no number for.
    """
    if not gates:
        raise InvalidInput("nothing to check; give --min-auc, --min-accuracy, --min-certified-auc or --min-certified")
    found: list[Checked] = []
    for name, model in results["models"].items():
        for seed, record in zip(model["seeds"], model["surfaces"], strict=True):
            surface = Surface.from_dict(record)
            label = name if len(model["seeds"]) == 1 else f"{name}, seed {seed}"
            found += [Checked(label, gate, gate.of(surface)[interval]) for gate in gates]
    return found


def junit(run: str, outcomes: Sequence[Checked]) -> str:
    """The outcomes as JUnit XML, which continuous integration shows as tests."""
    failures = sum(not o.passed for o in outcomes)
    suite = ET.Element("testsuite", name=f"nonsingular check {run}", tests=str(len(outcomes)), failures=str(failures), errors="0")
    for o in outcomes:
        case = ET.SubElement(suite, "testcase", classname=o.model, name=f"{o.gate.name} >= {o.gate.least:g}")
        if not o.passed:
            ET.SubElement(case, "failure", message=str(o))
    for element in suite.iter():
        element.attrib = {k: legible(v, keep="") for k, v in element.attrib.items()}  # XML has no way to write control characters
    ET.indent(suite)
    return ET.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"
