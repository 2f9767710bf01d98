"""compare.py - merge the results of runs with the same data, grid and threat model; keep the others apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nonsingular.report.summary import read
from nonsingular.results.surface import arithmetic

Results = Mapping[str, Any]


def together(runs: Mapping[str, Results]) -> list[dict[str, Any]]:
    """Group the results of several runs (name -> results) so that numbers compare within a group; each group is one result.

    Raises InvalidInput for results that cannot be shown.
    """
    groups: list[dict[str, Results]] = []
    for name, results in runs.items():
        read(results)
        fitting = (g for g in groups if not any(differences(other, results) for other in g.values()))
        group = next(fitting, None)
        if group is None:
            groups.append({name: results})
        else:
            group[name] = results
    return [_merged(group) for group in groups]


def differences(a: Results, b: Results) -> list[str]:
    """Why the numbers of two results do not compare, one reason a line; empty if they do.

    Attacks may differ: each gives an upper bound of the same quantity.  A certified surface holds in every scope.
    """
    found: list[str] = []
    for what, key in (("examples", "n"), ("data", "sha256")):
        if a["data"][key] != b["data"][key]:
            found.append(f"{what}: {_data(a)} and {_data(b)}")
            break
    found += [
        f"{axis}: {_span(a['grid'][axis])} and {_span(b['grid'][axis])}"
        for axis in ("eps_x", "eps_w")
        if a["grid"][axis] != b["grid"][axis]
    ]
    (about_a, attacked_a), (about_b, attacked_b) = (_first(r) for r in (a, b))
    for key, what in (
        ("domain", "range of the inputs"), ("moves", "what moves"), ("relative", "radii relative to the tensor"),
        ("eps_w_per_tensor", "radii of the tensors"), ("eps_x_per_element", "radii of the inputs"),
    ):  # fmt: skip
        if about_a.get(key) != about_b.get(key):
            found.append(f"{what}: {about_a.get(key)} and {about_b.get(key)}")
    kinds = [_deployed(r) for r in (a, b)]
    if None not in kinds and kinds[0] != kinds[1]:
        found.append(f"arithmetic of the certificates: {kinds[0]} and {kinds[1]}")
    if attacked_a and attacked_b and a.get("scope") != b.get("scope"):
        found.append(f"scope, that is who shares W': {a.get('scope')} and {b.get('scope')}")
    return found


def _first(results: Results) -> tuple[Mapping[str, Any], bool]:
    """The record `about` of the first surface, and whether it is attacked."""
    surface = next(iter(results["models"].values()))["surfaces"][0]
    return surface["about"], surface.get("kind", "attacked") == "attacked"


def _deployed(results: Results) -> str | None:
    """The arithmetic in which its certificates hold; None without any."""
    surface = next(iter(results["models"].values()))["surfaces"][0]
    proven = surface if surface.get("kind") == "certified" else surface.get("certified")
    return None if proven is None else arithmetic(proven["about"])


def _data(results: Results) -> str:
    data = results["data"]
    return f"{data['n']:,} {data['split']} examples of {data['name']} (sha256 {str(data['sha256'])[:8]})"


def _span(radii: Sequence[float]) -> str:
    return f"{radii[0]:g} to {radii[-1]:g} in {len(radii)} points"


def _merged(group: Mapping[str, Results]) -> dict[str, Any]:
    """Merge the results of one group; each model is under the name of its run."""
    if len(group) == 1:
        (only,) = group.items()
        return {**only[1], "run": only[0]}
    first = next((r for r in group.values() if _first(r)[1]), next(iter(group.values())))
    titles = [m["title"] for r in group.values() for m in r["models"].values()]
    models: dict[str, Any] = {}
    claims: dict[str, Any] = {}
    for name, results in group.items():
        for key, model in results["models"].items():
            title = model["title"] if titles.count(model["title"]) == 1 else f"{model['title']} ({name})"
            models[f"{name}/{key}"] = {**model, "title": title}
        claims |= {f"{name}: {key}": claim for key, claim in (results.get("claims") or {}).items()}
    same = ("format", "data", "grid", "kind", "scope", "attack")
    return {k: first[k] for k in same if k in first} | {
        "run": ", ".join(group), "models": models, "command": "\n".join(str(r.get("command", "")) for r in group.values()),
        "config": {name: r.get("config") for name, r in group.items()},
        "environment": {name: r.get("environment") for name, r in group.items()},
        **({"claims": claims} if claims else {}),
    }  # fmt: skip


def statement(groups: Sequence[Results]) -> list[str]:
    """Why the groups are not merged, in sentences; empty for a single one."""
    told: list[str] = []
    for other in groups[1:]:
        reasons = "; ".join(differences(groups[0], other))
        told.append(
            f"The numbers of {other.get('run')} do not compare with those of {groups[0].get('run')}. They differ in {reasons}."
        )
    return told
